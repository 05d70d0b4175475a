"""UDON: a teacher a domain is trained along on the same backbone, and the embedding learns from them.

    L = w_c L_teacher + w_l KL(softmax(cos_t / T) || softmax(cos_s / T)) + w_r mean over pairs (S_t - S_s)^2

t is the teacher of the row's domain: a linear layer on the backbone's features (of length 1), with class centres of its
own, s the embedding that is exported. L_teacher is the softmax over the classes of the domain, cos the cosines with those
classes' centres, S the cosines of the batch's rows with each other. Teachers learn from L_teacher alone: the other two are
not differentiated by them. The embedding's own softmax is no part of this loss: it is the run's main one, and should be over
the classes of the domain too. (Ypsilantis et al., "UDON: Universal Dynamic Online distillatioN for generic image
representations", NeurIPS 2024; defaults from github.com/nikosips/UDON: T 0.1 for both sides, 256 dimensions, scale 16.)

What differs from their code:
- Their batches are of one domain. Here a batch may be mixed: S then counts pairs of one domain only, since teachers of two
  domains share no space; a pair counts alike in whatever domain.
- Their squared differences of S are summed over the 32 columns of a device's share and averaged over rows. Here they are
  averaged over pairs, whatever the batch; the default weight of 32 makes that their weight of 1.
- Their sum of the four losses is divided by the sum of the four weights; here it is not.

Logits of all rows and all classes of this rank are in memory at once, of teacher and embedding.

Legend: N rows of this rank, B rows of all ranks, C classes of this rank, D dimensions of the embedding, K of a teacher.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from retrieval_train.losses import softmax
from retrieval_train.losses.classes import needed
from retrieval_train.losses.consistency import no_loss
from retrieval_train.losses.loss import LossConfig, Value, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from retrieval_train.losses.classes import Classes
    from retrieval_train.losses.loss import Seen


class Config(LossConfig):
    """Teachers of single domains, trained along, and what the embedding learns from them."""

    name: Literal["distillation"] = "distillation"
    """The loss."""
    teacher_dim: int = Field(default=256, ge=1)
    """K: dimensions of a teacher's embedding."""
    teacher_scale: float = Field(default=16.0, gt=0)
    """s of the teachers' softmax."""
    temperature: float = Field(default=0.1, gt=0)
    """T: what the cosines of both are divided by before the KL."""
    classification: float = Field(default=1.0, ge=0)
    """w_c: weight of the teachers' own loss; 0 leaves them untrained."""
    logits: float = Field(default=1.0, ge=0)
    """w_l: weight of the KL between teacher and embedding."""
    relations: float = Field(default=32.0, ge=0)
    """w_r: weight of the squared differences between the batch's cosines."""

    needs_head: ClassVar[bool] = True
    needs_cosines: ClassVar[bool] = True
    needs_all_classes: ClassVar[bool] = True
    compares_rows: ClassVar[bool] = True

    @model_validator(mode="after")
    def _has_a_term(self) -> Config:
        if not (self.classification or self.logits or self.relations):
            raise ValueError(
                "classification, logits and relations are all 0: nothing would be learned; set one of them"
            )
        return self

    def layers(self, *, num_features: int, dim: int, num_domains: int) -> nn.Module:
        from retrieval_train.losses.layers import Teachers

        return Teachers(num_features, num_domains=num_domains, dim=self.teacher_dim)

    def heads(self, *, dim: int) -> dict[str, tuple[Any, int]]:
        return {"teacher": ({"name": "normface", "scale": self.teacher_scale}, self.teacher_dim)}

    def value(self, seen: Seen) -> Value:
        if seen.extra_NE is None:
            return no_loss(seen)
        teacher_BK = self._teacher_of_its_domain(seen, seen.extra_NE)
        loss_B = seen.emb_BD.new_zeros(len(seen.emb_BD))
        if self.logits:
            loss_B = loss_B + self.logits * self._logits(seen, teacher_BK.detach())
        if self.relations:
            loss_B = loss_B + self.relations * _relations(seen, teacher_BK.detach())
        loss, row_B = loss_B.mean(), loss_B.detach()
        if self.classification:
            of_teacher = replace(seen, emb_BD=teacher_BK, classes=seen.own_classes["teacher"])
            own = softmax.Config(over="domain").value(of_teacher)
            assert own.row_B is not None, "a softmax has a loss for every row"
            loss, row_B = loss + self.classification * own.loss, row_B + self.classification * own.row_B
        return Value(loss, row_B)

    def _teacher_of_its_domain(self, seen: Seen, extra_NX: Tensor) -> Tensor:
        """What the teacher of each row's domain says, of all ranks' rows, (B, K)."""
        import torch

        of_domain_NMK = extra_NX.unflatten(1, (-1, self.teacher_dim))
        domain_N = seen.domain_B[seen.first : seen.first + len(extra_NX)]
        row_N = torch.arange(len(extra_NX), device=extra_NX.device)
        return seen.world.gather(of_domain_NMK[row_N, domain_N], list(seen.counts))

    def _logits(self, seen: Seen, teacher_BK: Tensor) -> Tensor:
        """The KL of every row, (B,): each rank differentiates what its classes add to every row."""
        import torch

        student, teacher = needed(seen.classes), seen.own_classes["teacher"]
        with torch.no_grad():
            teacher_BC = self._log_probabilities(teacher.cosines(teacher_BK), teacher, seen)
        student_BC = self._log_probabilities(student.cosines(seen.emb_BD), student, seen)
        return spread((teacher_BC.exp() * (teacher_BC - student_BC)).sum(dim=1), seen.world)

    def _log_probabilities(self, cosine_BC: Tensor, classes: Classes, seen: Seen) -> Tensor:
        """log softmax over the classes of the row's domain, of all ranks; of others about -1e30, of probability 0."""
        from retrieval_train.losses.sharded import log_softmax

        is_other_BC = classes.domain_C[None] != seen.domain_B[:, None]
        # not -inf: a rank, or all of them, may have no class of a row's domain, and 0 * -inf is no number
        return log_softmax((cosine_BC / self.temperature).masked_fill(is_other_BC, -1e30), classes.world)


def _relations(seen: Seen, teacher_BK: Tensor) -> Tensor:
    """What every row's cosines add, (B,): the mean over rows is that over pairs. Each rank differentiates its rows'.

    Pairs are of one domain; a row with itself, where both cosines are 1, is one of them.
    """
    from torch.nn import functional

    first, stop = seen.first, seen.first + len(seen.emb_ND)
    unit_BK = functional.normalize(teacher_BK, dim=-1)
    apart_NB = seen.unit_ND @ seen.unit_BD.T - unit_BK[first:stop] @ unit_BK.T
    is_one_domain_NB = seen.domain_B[first:stop, None] == seen.domain_B[None]
    num_pairs = seen.domain_B.bincount().square().sum()
    loss_N = (apart_NB.square() * is_one_domain_NB).sum(dim=1) * len(unit_BK) / num_pairs
    return spread(functional.pad(loss_N, (first, len(unit_BK) - stop)), seen.world)
