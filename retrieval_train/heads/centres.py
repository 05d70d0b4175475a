"""Class centres, sharded by class over the ranks, and the head that compares embeddings with them.

Every rank holds the rows [rC/W, (r+1)C/W) of the C classes and sees the embeddings of the whole global batch, so no rank
ever holds all centres or all logits. Rows are named, so that a file of centres fits any world size and any class order.

Legend: B rows of the global batch, C classes (here: of this rank), K sub-centres, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval_train.heads.rule import RuleConfig, Scores
from retrieval_train.world import World

_BLOCK = 4096  # classes whose initial centres come from one random generator


class Head(nn.Module):
    """Embeddings of the global batch -> logits of this rank's classes.

    Its parameters differ from rank to rank: they must never be handed to anything that broadcasts or averages.
    """

    def __init__(self, rule: RuleConfig, class_names: Sequence[str], *, dim: int, world: World, seed: int) -> None:
        super().__init__()
        if len(class_names) < world.size:
            raise ValueError(f"{len(class_names)} classes cannot be shared by {world.size} ranks; use fewer ranks")
        self.rule = rule
        self.num_classes = len(class_names)
        self.first = self.num_classes * world.rank // world.size
        stop = self.num_classes * (world.rank + 1) // world.size
        self.class_names = list(class_names[self.first : stop])
        centre_CKD = _initial(self.first, stop, rule.sub_centres, dim, seed)
        self.centre_CKD = nn.Parameter(centre_CKD.to(world.device))

    def forward(self, emb_BD: Tensor, target_B: Tensor) -> Tensor:
        return self.rule.logits(self.scores(emb_BD), target_B)

    def scores(self, emb_BD: Tensor) -> Scores:
        # bf16 cannot tell cosines near 1 apart, and there the margin's slope is steepest: float32
        with torch.autocast(emb_BD.device.type, enabled=False):
            emb_BD = emb_BD.to(self.centre_CKD.dtype)
            unit_BD = functional.normalize(emb_BD, dim=-1)
            unit_CKD = functional.normalize(self.centre_CKD, dim=-1)
            cosine_BCK = (unit_BD @ unit_CKD.flatten(0, 1).T).unflatten(1, unit_CKD.shape[:2])
            cosine_BC = cosine_BCK.amax(-1) if cosine_BCK.shape[-1] > 1 else cosine_BCK.squeeze(-1)
            return Scores(cosine_BC.clamp(-1, 1), emb_BD.norm(dim=-1), self.first)

    @torch.no_grad()
    def take(self, rows: Mapping[str, Tensor]) -> list[str]:
        """Copy the centres of the classes that `rows` (name -> (K, D)) has; the names that it lacks."""
        lacking = []
        for index, name in enumerate(self.class_names):
            if name not in rows:
                lacking.append(name)
                continue
            row_KD = rows[name]
            if row_KD.shape != self.centre_CKD.shape[1:]:
                given, wanted = tuple(row_KD.shape), tuple(self.centre_CKD.shape[1:])
                raise ValueError(f"centre of '{name}' has shape {given} (sub-centres, dimensions), this head {wanted}")
            self.centre_CKD[index] = row_KD.to(self.centre_CKD)
        return lacking


def _initial(first: int, stop: int, sub_centres: int, dim: int, seed: int) -> Tensor:
    """Rows [first, stop) of one random table: the same rows whichever rank makes them."""
    blocks = []
    for block in range(first // _BLOCK, -(-stop // _BLOCK)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + block)
        table = torch.randn(_BLOCK, sub_centres, dim, generator=generator) / dim**0.5
        start = block * _BLOCK
        blocks.append(table[max(first - start, 0) : stop - start])
    return torch.cat(blocks)
