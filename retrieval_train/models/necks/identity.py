"""No neck: the backbone's own features are the embedding, as in zero-shot retrieval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from retrieval_train.models.necks.neck import NeckConfig

if TYPE_CHECKING:
    from torch import nn


class Config(NeckConfig):
    """embedding = features."""

    name: Literal["identity"] = "identity"
    """The neck."""

    def build(self, num_features: int) -> nn.Module:
        from torch import nn

        return nn.Identity()

    def dim(self, num_features: int) -> int:
        return num_features
