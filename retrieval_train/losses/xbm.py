"""Contrastive loss with a cross-batch memory: earlier batches' embeddings are compared with too (Wang et al., CVPR 2020).

The memory is a ring of the last rows of the global batches, in their order, without gradient and as old as it is long. Pairs
with it and pairs within the batch have one mean (the authors add two losses instead).

Legend: N rows of this rank, B rows of all ranks, M places of the memory, D dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from retrieval_train.losses.contrastive import Contrastive
from retrieval_train.losses.loss import Seen, Value

if TYPE_CHECKING:
    from torch import Tensor


class Config(Contrastive):
    """Pairs within the global batch and with the memory."""

    name: Literal["xbm"] = "xbm"
    """The loss."""
    bank: int = Field(default=8192, ge=1)
    """How many embeddings are kept."""

    many_labels: ClassVar[bool] = False  # a place of the memory holds one

    def first_state(self, *, dim: int) -> dict[str, Tensor]:
        import torch

        return {
            "bank_MD": torch.zeros(self.bank, dim),
            "bank_label_M": torch.full((self.bank,), -1),  # -1: empty, or a row without a label
            "bank_at": torch.zeros((), dtype=torch.int64),  # rows written so far
        }

    def value(self, seen: Seen) -> Value:
        import torch

        from retrieval_train.losses.pairs import alike, cosines, products

        pairs = alike(seen)
        # a copy: the backward still needs what is overwritten below
        bank_MD = seen.state["bank_MD"].to(seen.unit_ND.dtype, copy=True)
        bank_label_M = seen.state["bank_label_M"]
        label_N = seen.label_B[seen.first : seen.first + len(seen.emb_ND)]
        same_NM = label_N[:, None] == bank_label_M[None]
        labelled_NM = (label_N >= 0)[:, None] & (bank_label_M >= 0)[None]
        value = self.of_pairs(
            torch.cat([cosines(seen), products(seen.unit_ND, bank_MD)], dim=1),
            torch.cat([pairs.positive_NB, same_NM & labelled_NM], dim=1),
            torch.cat([pairs.negative_NB, ~same_NM & labelled_NM], dim=1),
            seen,
        )
        if seen.is_training:
            self._write(seen)
        return value

    def _write(self, seen: Seen) -> None:
        import torch

        state, num_rows = seen.state, len(seen.label_B)
        kept = min(num_rows, self.bank)
        place_K = (state["bank_at"] + torch.arange(num_rows - kept, num_rows, device=seen.label_B.device)) % self.bank
        state["bank_MD"][place_K] = seen.unit_BD.detach()[-kept:].to(state["bank_MD"].dtype)
        state["bank_label_M"][place_K] = seen.label_B[-kept:]
        state["bank_at"] += num_rows
