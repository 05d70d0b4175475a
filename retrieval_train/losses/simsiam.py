"""SimSiam: one view of an image predicts the other one's projection, without labels and without negatives.

    L = -1/2 (cos(p1, stop-gradient(z2)) + cos(p2, stop-gradient(z1))), the mean over rows

z is the projection of the embedding, p what the predictor makes of z; 1 is the weak, 2 the strong view (Chen and He, CVPR
2021, equations 1 to 4). The loss lies in [-1, 1]. It has no term against collapse: it is the stopped gradient and the
predictor that keep embeddings apart, and batch norm that makes it stable (their sections 4.1 to 4.4).

The paper's projector has three layers of 2048 and its predictor a hidden layer of 512; defaults here are for one small GPU:
two layers to 1024, and 256. The width between the projector's two layers is taken to be that of its output.

Legend: N rows of this rank, D dimensions of the embedding, Z of the projection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from retrieval_train.losses.consistency import no_loss
from retrieval_train.losses.loss import LossConfig, Value, of_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from retrieval_train.losses.loss import Seen


class Config(LossConfig):
    """-1/2 (cos(p1, stop-gradient(z2)) + cos(p2, stop-gradient(z1)))."""

    name: Literal["simsiam"] = "simsiam"
    """The loss."""
    projection: int = Field(default=1024, ge=1)
    """Z: dimensions of the projection."""
    hidden: int = Field(default=256, ge=1)
    """Dimensions between the predictor's two layers: fewer than `projection`, a bottleneck."""

    needs_strong: ClassVar[bool] = True

    def layers(self, *, num_features: int, dim: int, num_domains: int) -> nn.Module:
        from retrieval_train.losses.layers import ProjectAndPredict

        return ProjectAndPredict(dim, projection=self.projection, hidden=self.hidden)

    def value(self, seen: Seen) -> Value:
        if seen.extra_NE is None or seen.strong_extra_NE is None:
            return no_loss(seen)
        weak_z_NZ, weak_p_NZ = seen.extra_NE.split(self.projection, dim=1)
        strong_z_NZ, strong_p_NZ = seen.strong_extra_NE.split(self.projection, dim=1)
        return of_rows(-(_agreement(weak_p_NZ, strong_z_NZ) + _agreement(strong_p_NZ, weak_z_NZ)) / 2, seen)


def _agreement(p_NZ: Tensor, z_NZ: Tensor) -> Tensor:
    from torch.nn import functional

    return (functional.normalize(p_NZ, dim=1) * functional.normalize(z_NZ.detach(), dim=1)).sum(dim=1)
