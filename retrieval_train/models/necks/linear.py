"""One matrix from the backbone's features to the embedding, as the universal-embedding challenge's 64 dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from retrieval_train.models.necks.neck import NeckConfig

if TYPE_CHECKING:
    from torch import nn


class Config(NeckConfig):
    """LayerNorm, then Linear without bias: the head compares directions, and a bias would shift them all one way."""

    name: Literal["linear"] = "linear"
    """The neck."""
    out: int = Field(default=64, ge=2)
    """D."""

    def build(self, num_features: int) -> nn.Module:
        from torch import nn

        return nn.Sequential(nn.LayerNorm(num_features), nn.Linear(num_features, self.out, bias=False))

    def dim(self, num_features: int) -> int:
        return self.out
