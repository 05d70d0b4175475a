"""LoRA by peft on the linear layers of the backbone's blocks, proven alive before a run starts (Hu et al., ICLR 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from retrieval_train.config import Section

if TYPE_CHECKING:
    from torch import nn

    from retrieval_train.models.embedder import Embedder


class Config(Section):
    """W + (alpha / rank) B A on the chosen layers; everything else of the backbone is frozen."""

    rank: int = Field(default=8, ge=1)
    """Rows of A."""
    alpha: float = Field(default=16, gt=0)
    """Scale: alpha / rank multiplies BA."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """On the adapter's input while training."""
    targets: tuple[str, ...] = ("qkv", "q_proj", "k_proj", "v_proj", "proj", "fc1", "fc2", "fc1_g", "fc1_x")
    """Last part of the names of the linear layers to adapt; a name that the model lacks is passed over."""
    last_blocks: int | None = Field(default=None, ge=1)
    """Adapt the last n blocks only; None adapts all. The last half takes about 0.65 of the step time of all."""

    def apply(self, embedder: Embedder, *, seed: int) -> None:
        """Freeze the backbone and put the adapters in, A drawn from `seed`. Raises ValueError when no layer fits."""
        import torch
        from peft import LoraConfig, get_peft_model

        from retrieval_train.models.drop import follow_rows

        _call_fused_layers(embedder.backbone)
        names = self._layers(embedder.backbone)
        if not names:
            linear = sorted({name.rpartition(".")[2] for name, _ in _linear(embedder.backbone)})
            raise ValueError(
                f"lora.targets: the backbone has no such layer in its blocks; there are: {', '.join(linear)}"
            )
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            embedder.backbone = get_peft_model(embedder.backbone, config)
        follow_rows(embedder.backbone, embedder.rows)

    def _layers(self, backbone: nn.Module) -> list[str]:
        found = [name for name, _ in _linear(backbone) if name.rpartition(".")[2] in self.targets and "blocks." in name]
        if self.last_blocks is None or not found:
            return found
        block_of = {name: int(name.partition("blocks.")[2].partition(".")[0]) for name in found}
        first = max(block_of.values()) + 1 - self.last_blocks
        return [name for name in found if block_of[name] >= first]


def merge(embedder: Embedder) -> None:
    """Fold the adapters into the weights: the embedder is then a plain one."""
    backbone: Any = embedder.backbone
    embedder.backbone = backbone.merge_and_unload()


def check_alive(embedder: Embedder, *, image_px: int) -> None:
    """One tiny forward and backward: every trainable tensor must get a gradient.

    A layer that its model calls in another way than `layer(x)` (a fused product, a functional call) leaves its adapter
    without one, and it would never learn. Raises ValueError that names the dead tensors. Leaves the embedder as it was:
    batch norm's running statistics, which the forward moves, are put back.
    """
    import torch

    device = next(embedder.parameters()).device
    image = torch.randint(0, 255, (2, 3, image_px, image_px), dtype=torch.uint8, device=device)
    before = {name: buffer.clone() for name, buffer in embedder.named_buffers()}
    embedder.draw(torch.arange(2, device=device))
    with torch.random.fork_rng():
        embedder(image).square().sum().backward()
    embedder.draw(None)
    for name, value in before.items():
        embedder.get_buffer(name).copy_(value)
    dead = [name for name, p in embedder.named_parameters() if p.requires_grad and p.grad is None]
    embedder.zero_grad(set_to_none=True)
    if dead:
        few = ", ".join(dead[:4])
        raise ValueError(
            f"{len(dead)} trainable tensors get no gradient and would never learn: {few} ...; "
            "leave their layers out of lora.targets"
        )


def _linear(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    from torch import nn

    return [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]


def _call_fused_layers(backbone: nn.Module) -> None:
    """timm's EVA and BEiT attention hand `qkv.weight` to a functional call when q and v have biases of their own: an
    adapter around `qkv` would never be called. With this switch they call the layer; the output is the same."""
    for module in backbone.modules():
        if getattr(module, "qkv_bias_separate", None) is False and getattr(module, "q_bias", None) is not None:
            module.qkv_bias_separate = True  # type: ignore[assignment]
