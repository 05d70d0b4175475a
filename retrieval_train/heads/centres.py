"""Class centres, sharded by class over the ranks, and the head that compares embeddings with them.

Every rank holds the rows [rC/W, (r+1)C/W) of the C classes and sees the embeddings of the whole global batch, so no rank
ever holds all centres or all logits. Rows are named, so that a file of centres fits any world size and any class order.

Legend: B rows of the global batch, P (row, label) pairs, C classes (here: of this rank), K sub-centres, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval_train.heads.rule import RuleConfig, Targets
from retrieval_train.heads.scored import Block, Pairs, Scored, with_bias
from retrieval_train.world import World

if TYPE_CHECKING:
    import numpy as np

_BLOCK = 4096  # classes whose initial centres, and whose sampling, come from one random generator
_ALIGNED = 64  # columns: a matrix product of 16-bit numbers wants rows that begin at multiples of 16 bytes
_BLOCK_MB = {"cpu": 2.0, "cuda": 256.0}  # of a block's logits: a CPU's cache, a GPU's few launches


class Head(nn.Module):
    """Embeddings of the global batch -> logits of this rank's classes.

    Its parameters differ from rank to rank: they must never be handed to anything that broadcasts or averages. Its
    `state`, the rule's running state, is the same on all ranks.
    """

    domain_C: Tensor
    """int64: the domain of each class of this rank, as batches number them."""

    def __init__(
        self,
        rule: RuleConfig,
        class_names: Sequence[str],
        *,
        dim: int,
        world: World,
        seed: int,
        domains: Sequence[str] = (),
        counts: np.ndarray | None = None,
        nodes: World | None = None,
    ) -> None:
        """`world` shares the classes; `nodes` are the ranks of other such worlds that have the same classes.

        `domains` are what batches number: a class is of the one before the "/" of its name. `counts` are training images of
        each class. Raises ValueError for fewer classes than ranks, or counts that the rule
        needs and nobody knows.
        """
        super().__init__()
        if len(class_names) < world.size:
            raise ValueError(f"{len(class_names)} classes cannot be shared by {world.size} ranks; use fewer ranks")
        self.rule, self.world, self.nodes = rule, world, nodes
        self.num_classes = len(class_names)
        self.first = self.num_classes * world.rank // world.size
        stop = self.num_classes * (world.rank + 1) // world.size
        self.class_names = list(class_names[self.first : stop])
        normal_CKD = _random(torch.randn, self.first, stop, rule.sub_centres, dim, seed=seed * 1_000_003)
        centre_CKD = normal_CKD.div_(dim**0.5)
        if rule.has_bias:
            centre_CKD = functional.pad(centre_CKD, (0, 1))
        self.centre_CKD = nn.Parameter(centre_CKD.to(world.device))
        self.state = {name: value.to(world.device) for name, value in rule.first_state(self.num_classes).items()}
        self.sampled: list[tuple[Tensor, Tensor]] = []
        """Of each micro-batch of this step: which rows of the table were compared with, and their leaf of the graph."""
        self._margin_C = _margins(rule, counts, self.num_classes)[self.first : stop].to(world.device)
        domain_of = _domains(class_names, domains)
        self._num_domains = int(domain_of.max()) + 1
        self._is_by_domain = len(domain_of.unique_consecutive()) == len(domain_of.unique())
        self._domain_of = domain_of.to(world.device)
        self.domain_C = self._domain_of[self.first : stop]
        self.block_mb = _BLOCK_MB.get(world.device.type, 2.0)
        """Logits that are computed at once."""
        self._row_R: Tensor | None = None
        self._drawn_C: Tensor | None = None
        """bool: the sample of this step, without the classes of its images."""
        self._seed = -1
        self.draw(seed=seed, step=0)

    # --- comparing

    def draw(self, *, seed: int, step: int) -> None:
        """Which classes are sampled in this step: the same on any number of ranks."""
        seed = (seed * 1_000_003 + step) % 2**40
        if seed != self._seed:
            self._seed, self._drawn_C = seed, None

    def active(self, class_P: Tensor) -> Tensor:
        """The centres (C, K, D) that this micro-batch is compared with, as a leaf of the graph: all of them, or a sample."""
        if self.rule.sample_rate == 1:
            self._row_R = None
            return self.centre_CKD
        column_P = class_P - self.first
        if self._drawn_C is None:
            stop = self.first + len(self.class_names)
            uniform_C = _random(torch.rand, self.first, stop, seed=self._seed * 65_537)
            self._drawn_C = (uniform_C < self.rule.sample_rate).to(self.centre_CKD.device)
        chosen_C = self._drawn_C.clone()
        chosen_C[column_P[(column_P >= 0) & (column_P < len(chosen_C))]] = True
        self._row_R = chosen_C.nonzero(as_tuple=True)[0]
        leaf_RKD = self.centre_CKD.detach()[self._row_R].requires_grad_()
        if self.training:
            self.sampled.append((self._row_R, leaf_RKD))
        return leaf_RKD

    def score(self, emb_BD: Tensor, centre_CKD: Tensor, row_P: Tensor, class_P: Tensor, *, own_domain: bool) -> Scored:
        """Compare with `centre_CKD`, which `active` gave. In training the running state is brought up to date. Collective.

        Raises ValueError for `own_domain` where the classes of a domain are no neighbours, and on the CPU for a label that is
        no class.
        """
        self._check(class_P, own_domain=own_domain)
        pairs = self._pairs(row_P, class_P)
        rows_R = slice(None) if self._row_R is None else self._row_R
        margin_C = self._margin_C[rows_R] if len(self._margin_C) else None
        scored = Scored(self.rule, emb_BD, centre_CKD, pairs, margin_C=margin_C, world=self.world)
        domain_C = self.domain_C[rows_R] if own_domain else None
        scored.cut(*self._cut(len(emb_BD), domain_C, pairs, len(centre_CKD)))
        if self.training:
            self._observe(scored)
        scored.apply(self.state)
        return scored

    def _check(self, class_P: Tensor, *, own_domain: bool) -> None:
        if own_domain and not self._is_by_domain:
            raise ValueError(
                "classes of several domains alternate, but a softmax over a domain's classes (over: domain) wants them to be "
                "neighbours; make shard sets of the tars with `shards make`, which sorts classes, or set over: all"
            )
        # the data has checked the labels: on a GPU, reading them would make the host wait
        if class_P.device.type != "cpu":
            return
        if len(class_P) and not (int(class_P.min()) >= 0 and int(class_P.max()) < self.num_classes):
            raise ValueError(
                f"labels run from {class_P.min()} to {class_P.max()}, but there are {self.num_classes} classes"
            )

    def cosines(self, emb_BD: Tensor) -> Tensor:
        """Scores (B, C) of all classes of this rank, raw products for a linear head, by autograd: all in memory at once."""
        with torch.autocast(emb_BD.device.type, enabled=False):
            emb_BD = with_bias(emb_BD.to(self.centre_CKD.dtype), self.centre_CKD.shape[-1])
            centre_CKD: Tensor = self.centre_CKD
            if self.rule.is_cosine:
                emb_BD, centre_CKD = functional.normalize(emb_BD, dim=-1), functional.normalize(centre_CKD, dim=-1)
            return (emb_BD @ centre_CKD.flatten(0, 1).T).unflatten(1, centre_CKD.shape[:2]).amax(-1)  # type: ignore[no-any-return]

    def logits(self, emb_BD: Tensor) -> Tensor:
        """Logits (B, C) of all classes of this rank as of other images' classes: without margins."""
        no_pairs = torch.zeros(0, dtype=torch.int64, device=emb_BD.device)
        targets = Targets(emb_BD.new_zeros(0), no_pairs, emb_BD.detach().norm(dim=-1))
        return self.rule.others(self.cosines(emb_BD), targets, self.state)

    def _pairs(self, row_P: Tensor, class_P: Tensor) -> Pairs:
        column_P = class_P - self.first
        is_mine_P = (column_P >= 0) & (column_P < len(self.class_names))
        mine_Q = is_mine_P.nonzero(as_tuple=True)[0]
        column_Q = column_P[mine_Q]
        if self._row_R is not None:
            column_Q = torch.searchsorted(self._row_R, column_Q)
        return Pairs(row_P, class_P, mine_Q, column_Q)

    def _cut(self, rows: int, domain_C: Tensor | None, pairs: Pairs, num_columns: int) -> tuple[list[Block], Tensor]:
        """Blocks of classes, and how many classes each row is compared with on all ranks."""
        limit = max(1, int(self.block_mb * 2**20) // (4 * rows * self.rule.sub_centres))
        limit -= limit % _ALIGNED if limit > _ALIGNED else 0
        ends, row_domain_B = [0, num_columns], None
        if domain_C is not None:
            row_domain_B = pairs.row_P.new_full((rows,), -1)
            row_domain_B[pairs.row_P] = self._domain_of[pairs.class_P]
            ends = [0, *((domain_C[1:] != domain_C[:-1]).nonzero().flatten() + 1).tolist(), num_columns]
        if num_columns == 0:  # none of this rank's classes was sampled
            ends = []
        column_Q, order_Q = pairs.column_Q.sort(stable=True)
        row_Q, blocks = pairs.row_P[pairs.mine_Q][order_Q], []
        for start, stop in pairwise(ends):
            row_b: Tensor | slice = slice(None)
            if row_domain_B is not None and domain_C is not None:
                row_b = (row_domain_B == domain_C[start]).nonzero(as_tuple=True)[0]
            cuts = [*range(start, stop, _width(stop - start, limit)), stop]
            places = torch.searchsorted(column_Q, torch.tensor(cuts, device=column_Q.device)).tolist()
            for (a, b), (low, high) in zip(pairwise(cuts), pairwise(places), strict=True):
                place_q = row_Q[low:high] if isinstance(row_b, slice) else torch.searchsorted(row_b, row_Q[low:high])
                blocks.append(Block(a, b, row_b, place_q, column_Q[low:high] - a))
        return blocks, self._compared_with(rows, domain_C, row_domain_B, num_columns)

    def _compared_with(self, rows: int, domain_C: Tensor | None, row_domain_B: Tensor | None, columns: int) -> Tensor:
        if domain_C is None or row_domain_B is None:
            total = self.num_classes
            if self._row_R is not None:
                total = int(self.world.sum(torch.tensor(columns, device=self.world.device)))
            return torch.full((rows,), total, device=self.world.device)
        of_domain = self.world.sum(torch.bincount(domain_C, minlength=self._num_domains))
        return torch.where(row_domain_B >= 0, of_domain[row_domain_B.clamp(min=0)], 1)

    @torch.no_grad()
    def _observe(self, scored: Scored) -> None:
        if not self.state:
            return
        targets, nodes, rows = scored.targets, self.nodes, [len(scored.targets.norm_B)]
        if nodes is not None:  # other nodes have the same classes and other rows
            sizes = nodes.every((len(targets.norm_B), len(targets.row_P)))
            rows, pairs = [size[0] for size in sizes], [size[1] for size in sizes]
            targets = Targets(
                nodes.gather(targets.cosine_P, pairs),
                nodes.gather(targets.row_P + sum(rows[: nodes.rank]), pairs),
                nodes.gather(targets.norm_B, rows),
                None if targets.margin_P is None else nodes.gather(targets.margin_P, pairs),
            )

        def log_sum_others(scale: Tensor) -> Tensor:
            mine_B = scored.log_sum_others(scale)
            return mine_B if nodes is None else nodes.gather(mine_B, rows)

        for name, value in self.rule.observe(targets, self.state, log_sum_others).items():
            self.state[name].copy_(value)

    # --- what is kept

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


def _random(draw: Callable[..., Tensor], first: int, stop: int, *shape: int, seed: int) -> Tensor:
    """Rows [first, stop) of one random table: the same rows whichever rank makes them."""
    blocks = []
    for start in range(first - first % _BLOCK, stop, _BLOCK):
        generator = torch.Generator().manual_seed(seed + start // _BLOCK)
        blocks.append(draw(_BLOCK, *shape, generator=generator)[max(first - start, 0) : stop - start])
    return torch.cat(blocks)


def _width(columns: int, limit: int) -> int:
    """Of blocks of about equal size, none above `limit`; multiples of `_ALIGNED`, as `limit` is, if wider than that."""
    width = -(-columns // -(-columns // limit))
    return width if width <= _ALIGNED else -(-width // _ALIGNED) * _ALIGNED


def _margins(rule: RuleConfig, counts: Any, num_classes: int) -> Tensor:
    """The margin of every class; empty where the rule has none of its own."""
    known = torch.as_tensor(counts) if counts is not None else None
    margin_C = rule.margins(known if known is not None else torch.ones(num_classes, dtype=torch.int64))
    if margin_C is None:
        return torch.empty(0)
    if known is None:
        raise ValueError(
            f"head '{rule.name}' sets margins by the classes' numbers of images, which these sets do not tell; "
            "make shard sets of them (`shards make`), whose manifest has the counts"
        )
    return margin_C


def _domains(class_names: Sequence[str], domains: Sequence[str]) -> Tensor:
    """The domain of each class; those of one domain are neighbours where names are sorted, which foreign ones need not be."""
    numbers = {name: number for number, name in enumerate(domains)}
    return torch.tensor([numbers.setdefault(name.split("/", 1)[0], len(numbers)) for name in class_names])
