"""Dropout and stochastic depth that follow the sample: a row of the global batch drops the same on any number of ranks.

What a layer drops of a row is a hash of (row seed, number of the layer, place in the row); there is no generator whose state
could differ. So ranks do not matter, a resumed run drops what the first would have dropped, and a forward that activation
checkpointing does again drops the same, as long as the seeds stay until the backward is through.

A layer that is called twice in one forward drops the same places both times: a count of calls would go wrong where the
forward is done again. Dropout that is no layer (the functional one, as in attention with `attn_drop`) and layers of other
kinds (Dropout2d, DropBlock, PatchDropout) are left alone and follow torch's generator; no setting of ours switches them on,
but a few timm models have a functional `drop_rate` by default (ghostnet, repghost).

Legend: N rows of the images, R rows of a layer's input (a multiple of N where images are cut into windows), L layers,
E elements of a row, P the part of the elements, or of the R, that a row has.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # splitmix64's, as int64
_FIRST_32, _SECOND_32 = 0x7FEB352D, -0x7B935975  # of a finaliser for 32 bits by C. Wellons ("lowbias32"), as int32
_CACHED = 2**17
"""Elements that a CPU hashes at once: the passes then stay in its cache, and take a quarter of the time."""


def row_seeds(seed: int, step: int, rows_N: Tensor) -> Tensor:
    """int64 (N,): for rows of the global batch of one step, on their device."""
    seed_1 = torch.full((1,), seed, dtype=torch.int64, device=rows_N.device)
    return _mixed(rows_N.to(torch.int64) * _GOLDEN + _mixed(_mixed(seed_1) + step))


class Rows:
    """The seeds of the rows that are in a model, for all its layers."""

    def __init__(self) -> None:
        self.num_layers = 0
        self._key_LN: Tensor | None = None

    def draw(self, seed_N: Tensor | None) -> None:
        """For the next forwards; None: a forward that would drop something fails."""
        if seed_N is None:
            self._key_LN = None
            return
        layer_L1 = torch.arange(1, self.num_layers + 1, device=seed_N.device)[:, None]
        self._key_LN = _mixed(seed_N + layer_L1 * _GOLDEN)

    def check(self, num_rows: int) -> None:
        """Every row of a training forward has its seed."""
        if self.num_layers:
            have = 0 if self._key_LN is None else self._key_LN.shape[1]
            assert have == num_rows, (
                f"dropout has seeds for {have} rows and got {num_rows}: draw(row_seeds(...)) before a forward"
            )

    def is_dropped(self, layer: int, p: float, shape: tuple[int, ...]) -> Tensor:
        """bool of the shape (R, ...); True with probability p."""
        assert self._key_LN is not None, "dropout has no seeds of rows: draw(row_seeds(...)) before a training forward"
        key_N = self._key_LN[layer]
        assert shape[0] % len(key_N) == 0, (
            f"a dropout layer got {shape[0]} rows for {len(key_N)} images: no whole number of rows an image"
        )
        return _is_dropped(key_N, p, math.prod(shape) // len(key_N)).view(shape)


class RowDropout(nn.Module):
    """In the place of nn.Dropout."""

    def __init__(self, rows: Rows, layer: int, p: float) -> None:
        super().__init__()
        assert 0 < p < 1, f"dropout of {p} leaves nothing, or everything, as it is"
        self.rows, self.layer, self.p = rows, layer, p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x.masked_fill(self.rows.is_dropped(self.layer, self.p, tuple(x.shape)), 0).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}"


class RowDropPath(nn.Module):
    """In the place of timm's DropPath: whole rows of a residual branch (Huang et al., ECCV 2016)."""

    def __init__(self, rows: Rows, layer: int, drop_prob: float, *, scale_by_keep: bool = True) -> None:
        super().__init__()
        assert 0 < drop_prob < 1, f"a drop_prob of {drop_prob} leaves nothing, or everything, as it is"
        self.rows, self.layer, self.drop_prob, self.scale_by_keep = rows, layer, drop_prob, scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        of_row = (len(x), *(1,) * (x.ndim - 1))
        kept = x.masked_fill(self.rows.is_dropped(self.layer, self.drop_prob, of_row), 0)
        return kept.mul_(1 / (1 - self.drop_prob)) if self.scale_by_keep else kept

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:0.3f}, layer={self.layer}"


def follow_rows(module: nn.Module, rows: Rows) -> None:
    """Put these layers in the place of torch's and timm's that drop anything, numbered on from those that `rows` has."""
    new: dict[nn.Module, nn.Module] = {}  # a layer that has two names stays one layer
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if layer not in new:
            if (made := _following(layer, rows)) is None:
                continue
            new[layer] = made.train(layer.training)
            rows.num_layers += 1
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, new[layer])
    rows.draw(None)


def _following(layer: nn.Module, rows: Rows) -> nn.Module | None:
    if type(layer) is nn.Dropout and layer.p > 0:
        return RowDropout(rows, rows.num_layers, layer.p)
    if type(layer).__name__ == "DropPath" and (drop_prob := float(layer.drop_prob or 0)) > 0:  # type: ignore[arg-type]
        return RowDropPath(rows, rows.num_layers, drop_prob, scale_by_keep=bool(layer.scale_by_keep))
    return None


def _is_dropped(key_N: Tensor, p: float, num: int) -> Tensor:
    """bool (N, P). Half of a key is where a row's numbers begin, half how far apart they are; then they are mixed."""
    at_P = torch.arange(num, dtype=torch.int32, device=key_N.device)
    first_N1 = key_N.to(torch.int32)[:, None]
    apart_N1 = (key_N >> 32).to(torch.int32)[:, None] | 1
    below = min(round(p * 2**32), 2**32 - 1) - 2**31
    size = max(_CACHED // num, 1) if key_N.device.type == "cpu" else len(key_N)
    return torch.cat(
        [
            _mixed_32(torch.addcmul(first, at_P, apart)) < below
            for first, apart in zip(first_N1.split(size), apart_N1.split(size), strict=True)
        ]
    )


def _mixed_32(word: Tensor) -> Tensor:
    """In place. The shifts copy the sign, so different words stay different; the last product's high bits are what counts."""
    word ^= word >> 16
    word *= _FIRST_32
    word ^= word >> 15
    word *= _SECOND_32
    return word


def _mixed(word: Tensor) -> Tensor:
    """splitmix64's finaliser; int64 wraps around, and what its shifts copy of the sign is masked."""
    word = (word ^ (word >> 30 & 2**34 - 1)) * _FIRST
    word = (word ^ (word >> 27 & 2**37 - 1)) * _SECOND
    return word ^ (word >> 31 & 2**33 - 1)
