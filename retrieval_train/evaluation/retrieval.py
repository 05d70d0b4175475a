"""Queries and what they are searched in: every rank embeds and searches its parts, then all have the merged hits.

Two steps, since an engine that shares its weights over the ranks bears no other collective between two forwards: `embed`
has none, `search` has them all.

Legend: Q queries, N images of the index, D dimensions, K hits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval_train.evaluation.embed import Config as Embed
from retrieval_train.evaluation.embed import Embeddings, Source, embed_mine, join
from retrieval_train.evaluation.index import Config as Index
from retrieval_train.evaluation.index import build_index
from retrieval_train.evaluation.metrics import DEPTH, Truth
from retrieval_train.evaluation.search import Hits, merge_hits, search_part

if TYPE_CHECKING:
    from retrieval_train.data.reader import Reader
    from retrieval_train.world import World


@dataclass(frozen=True, eq=False)
class Retrieval:
    """`query` and `searched` are of one set; the embeddings of both lie in one folder, below their names."""

    query: Reader
    searched: Reader
    """Index and distractors."""

    def __len__(self) -> int:
        return len(self.query) + len(self.searched)

    @cached_property
    def truth(self) -> Truth:
        return Truth(
            query_label_Q=self.query.labels(),
            query_domain_Q=self.query.domains(),
            index_label_N=self.searched.labels(),
            index_domain_N=self.searched.domains(),
            domains=self.query.manifest.domains,
        )

    def keys(self, folder: Path) -> tuple[list[str], list[str]]:
        """Of the queries and of what was searched, once `search` is through."""
        queries, in_index = self._embeddings(folder)
        return queries.keys(), in_index.keys()

    def embed(self, source: Source, folder: Path, world: World, config: Embed, *, shown: Callable[[int], None]) -> None:
        """Embed this rank's parts of both; not collective. `shown` is told, after each, how many images are done."""
        queries, in_index = self._embeddings(folder)
        before = embed_mine(source, self.query, queries, world, config, shown=shown)
        embed_mine(source, self.searched, in_index, world, config, shown=lambda done: shown(before + done))

    def search(self, folder: Path, world: World, config: Index) -> Hits:
        """The best hits of every query, by sample number. Every rank searches all queries in its own parts. Collective."""
        queries, in_index = self._embeddings(folder)
        join((queries, in_index), world)
        query_QD, _ = queries.vectors(range(len(queries.parts)))
        vectors_ND, number_N = in_index.vectors(in_index.mine(world))
        id_of = _ids_by_key(in_index.keys())
        gpu = world.device.index if world.device.type == "cuda" else None
        part = build_index(vectors_ND, config=config, gpu=gpu)
        mine = search_part(part, vectors_ND=vectors_ND, id_N=id_of[number_N], query_QD=query_QD, k=DEPTH)
        return _as_numbers(merge_hits(world.every(mine), k=DEPTH), id_of)

    def _embeddings(self, folder: Path) -> tuple[Embeddings, Embeddings]:
        return (
            Embeddings(folder / "query", len(self.query)),
            Embeddings(folder / "index", len(self.searched)),
        )


def _ids_by_key(keys: list[str]) -> Any:
    """For each sample its place among the keys sorted as bytes: ties are won by the smaller key."""
    order = sorted(range(len(keys)), key=lambda number: keys[number].encode())
    ids = np.empty(len(keys), np.int64)
    ids[order] = np.arange(len(keys))
    return ids


def _as_numbers(hits: Hits, id_of: Any) -> Hits:
    """Hits whose ids are sample numbers again."""
    number_of = np.append(np.argsort(id_of), -1)  # id -1, no hit, stays -1
    return Hits(hits.score_QK, number_of[hits.id_QK])
