"""An index holds the vectors of one part of the index set, on a GPU where there is one.

The index set is cut over the ranks: each builds its own index over its own part, and `search.merge_hits` puts
the parts' answers together.

Shapes: N rows of this part, D dimensions.
"""

from __future__ import annotations

import logging
from typing import Any, Literal, Protocol, cast

import numpy as np

from retrieval_train.config import Section

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 65536
LONGEST = 1e18
"""Longer vectors could overflow a float32 inner product (largest float32: 3.4e38)."""


class Config(Section):
    name: Literal["flat"] = "flat"
    """`flat`: every query is compared with every vector by inner product, so nothing is lost."""


class Index(Protocol):
    """What `search` needs of a FAISS index; row numbers count from 0 within this part."""

    ntotal: int
    d: int

    def search(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]: ...


def build_index(vectors_ND: np.ndarray, *, config: Config, gpu: int | None = None) -> Index:
    """Copies float32 vectors into an index. They are expected L2-normalised, so that the inner product is the
    cosine.

    `gpu` is this rank's device among those that FAISS sees; None keeps the index on the CPU. It is not looked at
    where FAISS sees none (faiss-cpu).
    """
    import faiss

    assert config.name == "flat", config.name
    check_vectors(vectors_ND, what="index")
    dim = vectors_ND.shape[1]
    num_gpus = faiss.get_num_gpus()
    index: Any  # FAISS's classes wrap `search` at import, which its stubs do not say
    if gpu is None or num_gpus == 0:
        index = faiss.IndexFlatIP(dim)
    elif gpu < num_gpus:
        place = faiss.GpuIndexFlatConfig()
        place.device = gpu
        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim, place)
    else:
        raise ValueError(f"gpu {gpu} is not one of the {num_gpus} that FAISS sees (0 to {num_gpus - 1})")
    for start in range(0, len(vectors_ND), ROWS_AT_ONCE):  # a memory-mapped file never lies in memory twice
        index.add(np.ascontiguousarray(vectors_ND[start : start + ROWS_AT_ONCE]))
    where = f"GPU {gpu}" if num_gpus and gpu is not None else "CPU"
    log.info("index: %d vectors of %d dimensions on %s", index.ntotal, dim, where)
    return cast(Index, index)


def check_vectors(vectors_ND: np.ndarray, *, what: str) -> np.ndarray:
    """The rows' lengths (float64), once they are known to be float32 and finite. `what` names them in the
    error.
    """
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] == 0 or vectors_ND.dtype != np.float32:
        raise ValueError(
            f"{what} vectors: {vectors_ND.dtype} of shape {vectors_ND.shape}; give float32 of shape (rows, dimensions)"
        )
    length_N = np.empty(len(vectors_ND))
    for start in range(0, len(vectors_ND), ROWS_AT_ONCE):
        row_CD = np.asarray(vectors_ND[start : start + ROWS_AT_ONCE])
        length_N[start : start + len(row_CD)] = np.sqrt(np.einsum("cd,cd->c", row_CD, row_CD, dtype=np.float64))
    if len(bad := np.flatnonzero(~np.isfinite(length_N))):
        raise ValueError(f"{what} vectors: NaN or infinity in {_rows(bad)} of {len(length_N)}")
    if len(bad := np.flatnonzero(length_N > LONGEST)):
        raise ValueError(f"{what} vectors: longer than {LONGEST:g} in {_rows(bad)}; L2-normalise them")
    return length_N


def _rows(row: np.ndarray, *, most: int = 5) -> str:
    named = ", ".join(str(r) for r in row[:most])
    more = f" and {len(row) - most} more" if len(row) > most else ""
    return f"row{'s' if len(row) > 1 else ''} {named}{more}"
