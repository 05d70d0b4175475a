"""Any image model of timm by its name, with the weights of the hub, of a file, or none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from retrieval_train.data.view import View
from retrieval_train.models.backbones.backbone import BackboneConfig, Built


def _path_or_word(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and value not in ("hub", "none") else value


class Config(BackboneConfig):
    """The classifier is cut off: the features are what timm pools before it."""

    name: Literal["timm"] = "timm"
    """The backbone."""
    model: str
    """timm's name, as `eva02_large_patch14_448.mim_m38m_ft_in22k_in1k` (`timm.list_models()`)."""
    weights: Annotated[Literal["hub", "none"] | Path, BeforeValidator(_path_or_word)] = "hub"
    """hub: what timm downloads for the name; none: random; a path: a .safetensors file in timm's own names."""
    blocks: int | None = Field(default=None, ge=1)
    """Keep the first n blocks only, of a transformer; null keeps all."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth while training."""

    @property
    def is_pretrained(self) -> bool:
        return self.weights != "none"

    def weights_file(self) -> Path | None:
        return self.weights if isinstance(self.weights, Path) else None

    def problems(self) -> list[tuple[str, str]]:
        file = self.weights_file()
        if file is None:
            return []
        if file.suffix != ".safetensors":
            return [("weights", f"{file} is no .safetensors file; pickles (.pth, .bin) run code when they are read")]
        if not file.is_file():
            return [("weights", f"{file} does not exist")]
        return []

    def size_problem(self, image_px: int) -> str | None:
        patch_px = self._patch_px()
        if patch_px is None or image_px % patch_px == 0:
            return None
        below = image_px // patch_px * patch_px
        near = f"{below} or {below + patch_px}" if below else str(patch_px)
        return f"{image_px} px are no whole number of {self.model}'s patches of {patch_px} px; take {near}"

    def _patch_px(self) -> int | None:
        """timm's names of models that cut an image into patches say so; None: this one is not known to."""
        found = re.search(r"patch(\d+)", self.model)
        return int(found[1]) if found else None

    def build(self, *, with_weights: bool = True) -> Built:
        import timm

        # the re-entrant way of computing activations again is silently wrong behind frozen blocks
        timm.layers.set_reentrant_ckpt(False)
        file = self.weights_file()
        options: dict[str, Any] = {
            "pretrained": with_weights and self.is_pretrained,
            "pretrained_cfg_overlay": {"file": str(file)} if with_weights and file else None,
            "num_classes": 0,
            "drop_path_rate": self.drop_path,
        }
        try:
            module = self._created(**options)
        except RuntimeError as error:
            if "Unknown model" not in str(error):
                raise
            near = timm.list_models(f"*{self.model.split('.')[0][:12]}*")[:5]
            raise ValueError(f"backbone.model: timm has no '{self.model}'; there are: {', '.join(near)} ...") from None
        if self.blocks is not None:
            if len(getattr(module, "blocks", ())) < self.blocks:
                have = len(getattr(module, "blocks", ()))
                raise ValueError(f"backbone.blocks: {self.model} has {have} blocks, {self.blocks} cannot be kept")
            module.blocks = module.blocks[: self.blocks]
        cfg = module.pretrained_cfg
        mean, std = tuple(map(float, cfg["mean"])), tuple(map(float, cfg["std"]))
        return Built(module, module.num_features, mean, std, view_of(cfg))

    def _created(self, **options: Any) -> Any:
        import timm

        of_size = {"img_size": self.image_px}
        # Position embeddings are then fitted to each image; at image_px they, and all weights, are as without it. But it
        # cuts no rest off: 384 px in patches of 14 (vit_so400m_patch14_siglip_384) stay at one size.
        of_any_size = [] if self.size_problem(self.image_px) else [of_size | {"dynamic_img_size": True}]
        for more in (*of_any_size, of_size):
            try:
                return timm.create_model(self.model, **more, **options)
            except TypeError as error:
                if not any(name in str(error) for name in more):
                    raise
        return timm.create_model(self.model, **options)  # a convolutional net takes any size and no such argument


def view_of(pretrained_cfg: Any) -> View:
    """timm's own evaluation transform, but for what a View has not: a crop that is larger than the resized image (3 models)
    takes all of it, and interpolations other than bilinear are bicubic."""
    from timm.data import resolve_data_config

    told = resolve_data_config(pretrained_cfg=pretrained_cfg)
    resizes: dict[str, Literal["squeeze", "longer"]] = {"squash": "squeeze", "border": "longer"}
    view = View(
        resize=resizes.get(told["crop_mode"], "shorter"),
        crop=min(told["crop_pct"], 1.0),
        interpolation="bilinear" if told["interpolation"] == "bilinear" else "bicubic",
    )
    red, green, blue = (round(255 * value) for value in told["mean"])
    return view.model_copy(update={"border": (red, green, blue)}) if view.resize == "longer" else view
