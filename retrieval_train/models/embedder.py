"""uint8 image -> vector: normalisation, backbone and neck as one module, so that an export is complete."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrieval_train.data.view import View
from retrieval_train.models.backbones.backbone import BackboneConfig
from retrieval_train.models.drop import Rows, follow_rows
from retrieval_train.models.necks.neck import NeckConfig


class Embedder(nn.Module):
    """Takes uint8 RGB (N, 3, H, W) as it comes from the decoder; gives embeddings (N, D), not normalised."""

    mean_3HW: Tensor
    std_3HW: Tensor
    view: View
    """How an image becomes the network's square, where nothing else is said."""
    precision: str = "fp32"
    """bf16, fp16: matrix products in 16 bits. Switched on in here, because DeepSpeed's wrapper switches off what is around
    it."""

    def __init__(self, backbone: BackboneConfig, neck: NeckConfig, *, with_weights: bool = True) -> None:
        super().__init__()
        built = backbone.build(with_weights=with_weights)
        self.backbone = built.module
        self.neck = neck.build(built.num_features)
        self.view = built.view
        self.num_features, self.dim = built.num_features, neck.dim(built.num_features)
        self.layers = nn.ModuleDict()
        self.rows = Rows()
        follow_rows(self, self.rows)
        # whether a buffer is in the export does not matter: both are in its JSON
        self.register_buffer("mean_3HW", torch.tensor(built.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std_3HW", torch.tensor(built.std).view(3, 1, 1) * 255, persistent=False)

    def draw(self, seed_N: Tensor | None) -> None:
        """What dropout drops in the next training forwards: models/drop.py. The seeds must stay until their backward."""
        self.rows.draw(seed_N)

    def add_layers(self, name: str, layers: nn.Module) -> int:
        """Train `layers` too: what (features_NF, emb_ND) they make of a training batch, (N, E), stands behind the embedding's
        columns, in the order in which they were added. E."""
        layers = layers.to(self.mean_3HW.device)
        follow_rows(layers, self.rows)
        self.layers[name] = layers
        with torch.no_grad():
            layers.eval()
            features, emb = (torch.zeros(1, dim, device=self.mean_3HW.device) for dim in (self.num_features, self.dim))
            num_columns: int = layers(features, emb).shape[1]
            layers.train()
        return num_columns

    def checkpoint_activations(self) -> None:
        """Compute each block's activations again in the backward. Raises ValueError where the backbone cannot."""
        able = next((module for module in self.backbone.modules() if hasattr(module, "set_grad_checkpointing")), None)
        if able is None:
            raise ValueError(
                "engine.checkpoint_activations: this backbone cannot; leave it out, or set engine.accumulate"
            )
        try:
            able.set_grad_checkpointing(True)  # type: ignore[operator]
        except AssertionError as error:  # timm's way to say that a model has none
            raise ValueError(f"engine.checkpoint_activations: this backbone cannot ({error}); leave it out") from None

    def compile_blocks(self) -> None:
        """torch.compile each transformer block, or the whole backbone where there are none, in place."""
        blocks = [
            block
            for module in self.backbone.modules()
            if isinstance(found := getattr(module, "blocks", None), (nn.ModuleList, nn.Sequential))
            for block in found
        ]
        for block in dict.fromkeys(blocks) or (self.backbone,):
            block.compile()

    def forward(self, image_NCHW: Tensor) -> Tensor:
        if self.training:
            self.rows.check(len(image_NCHW))
        normal_NCHW = (image_NCHW.to(self.mean_3HW.dtype) - self.mean_3HW) / self.std_3HW
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(image_NCHW.device.type, dtype=dtype, enabled=self.precision != "fp32"):
            features_NF = self.backbone(normal_NCHW)
            emb_ND: Tensor = self.neck(features_NF)
            if not self.training or not self.layers:
                return emb_ND
            # one tensor: engines wrap and time what takes a tensor and gives one
            more = [layers(features_NF, emb_ND).to(emb_ND.dtype) for layers in self.layers.values()]
            return torch.cat([emb_ND, *more], dim=1)


def build_embedder(backbone: BackboneConfig, neck: NeckConfig, *, seed: int, with_weights: bool = True) -> Embedder:
    """The embedder with its first weights: the same for the same configs and seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Embedder(backbone, neck, with_weights=with_weights)
