"""Consistency regularisation: what the model makes of an image's strong view follows what it makes of the weak one.

    L = mean over rows of d(stop-gradient(f(weak)), f(strong))

The rows are labelled and unlabelled images alike, f by default the probabilities of all classes without margins, d their
squared difference averaged over the classes: so small a number that weights of 100 to 300 are usual. Squared differences of
probabilities: the Pi-model (Laine and Aila, ICLR 2017, section 2.1). One view fixed, and KL: UDA (Xie et al., NeurIPS 2020,
section 2.2); a weak and a strong view: FixMatch (Sohn et al., NeurIPS 2020, section 2).

Logits of all rows and classes of this rank are in memory at once, of both views.

Legend: N my labelled rows, U my unlabelled rows, B labelled rows of all ranks, T labelled and unlabelled rows of all ranks,
C classes of this rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ValidationInfo, field_validator

from retrieval_train.losses.classes import needed
from retrieval_train.losses.loss import LossConfig, Value, spread

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.losses.classes import Classes
    from retrieval_train.losses.loss import Seen


class Config(LossConfig):
    """d(stop-gradient(f(weak)), f(strong)), the mean over labelled and unlabelled rows."""

    name: Literal["consistency"] = "consistency"
    """The loss."""
    kind: Literal["mse", "kl"] = "mse"
    """mse: squared difference, averaged over classes or dimensions; kl: KL(weak || strong), for probabilities only."""
    on: Literal["probabilities", "logits", "embeddings"] = "probabilities"
    """f: what is compared. Logits are the head's, without margins; embeddings are brought to length 1 and need no head."""

    needs_strong: ClassVar[bool] = True
    takes_unlabelled: ClassVar[bool] = True

    @property
    def needs_all_classes(self) -> bool:  # type: ignore[override]
        return self.needs_head

    @property
    def needs_head(self) -> bool:  # type: ignore[override]  # which it is depends on a field
        return self.on != "embeddings"

    @field_validator("on", mode="after")
    @classmethod
    def _kl_is_of_probabilities(cls, on: str, info: ValidationInfo) -> str:
        if info.data.get("kind") == "kl" and on != "probabilities":
            raise ValueError(f"KL compares probabilities, not {on}; set kind: mse or on: probabilities")
        return on

    def value(self, seen: Seen) -> Value:
        if seen.strong_ND is None:
            return no_loss(seen)
        return self._of_embeddings(seen, seen.strong_ND) if self.on == "embeddings" else self._of_classes(seen)

    def _of_classes(self, seen: Seen) -> Value:
        """Each rank differentiates what its classes add to every row."""
        import torch

        classes = needed(seen.classes)
        weak_TD, strong_TD = _rows_of_all(seen)
        with torch.no_grad():
            weak_TC = classes.logits(weak_TD)
        loss_T = spread(self._difference(weak_TC, classes.logits(strong_TD), classes), seen.world)
        return Value(loss_T.mean(), loss_T.detach()[: len(seen.label_B)])

    def _difference(self, weak_TC: Tensor, strong_TC: Tensor, classes: Classes) -> Tensor:
        """This rank's part of each row's loss, (T,)."""
        from retrieval_train.losses.sharded import log_softmax

        if self.on == "probabilities":
            weak_TC, strong_TC = log_softmax(weak_TC, classes.world), log_softmax(strong_TC, classes.world)
            if self.kind == "kl":
                return (weak_TC.exp() * (weak_TC - strong_TC)).sum(dim=1)
            weak_TC, strong_TC = weak_TC.exp(), strong_TC.exp()
        return (weak_TC - strong_TC).square().sum(dim=1) / classes.num_classes

    def _of_embeddings(self, seen: Seen, strong_ND: Tensor) -> Value:
        """Each rank differentiates its own rows."""
        loss_N = _apart(seen.emb_ND, strong_ND)
        part = loss_N.sum()
        if seen.unlabelled_UD is not None and seen.unlabelled_strong_UD is not None:
            part = part + _apart(seen.unlabelled_UD, seen.unlabelled_strong_UD).sum()
        num_rows = len(seen.label_B) + sum(seen.unlabelled_counts)
        row_B = seen.world.gather(loss_N.detach(), list(seen.counts))
        return Value(spread(part / num_rows, seen.world), row_B)


def _apart(weak_RD: Tensor, strong_RD: Tensor) -> Tensor:
    from torch.nn import functional

    weak_RD, strong_RD = functional.normalize(weak_RD.detach(), dim=-1), functional.normalize(strong_RD, dim=-1)
    return (weak_RD - strong_RD).square().mean(dim=1)


def _rows_of_all(seen: Seen) -> tuple[Tensor, Tensor]:
    """Weak (without gradient) and strong embeddings of all ranks' rows, the labelled ones first: both (T, D)."""
    import torch

    assert seen.strong_ND is not None
    weak, strong = [seen.emb_BD.detach()], [seen.world.gather(seen.strong_ND, list(seen.counts))]
    if counts := list(seen.unlabelled_counts) if any(seen.unlabelled_counts) else None:
        assert seen.unlabelled_UD is not None and seen.unlabelled_strong_UD is not None
        weak.append(seen.world.gather(seen.unlabelled_UD.detach(), counts))
        strong.append(seen.world.gather(seen.unlabelled_strong_UD, counts))
    return torch.cat(weak), torch.cat(strong)


def no_loss(seen: Seen) -> Value:
    """0 with a gradient of 0: what a loss answers that needs more of the images than this forward made."""
    return Value(spread(seen.emb_ND.sum() * 0, seen.world))
