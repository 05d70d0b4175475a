"""Exact search over an index set that is cut into parts: the same hits, bit for bit, however it is cut.

FAISS only proposes. Its float32 sums differ in the last bits between batch shapes, machines and GPUs, so two
copies of one image can get two scores and the order of near-ties would depend on the cut. Therefore each part
fetches a few more candidates than asked for, until no row that was left out can belong to the best k; every
candidate is scored again by `score_pairs`, which depends on the pair alone; and the order is: higher score
first, then smaller id.

Ids are row numbers of the whole index set sorted by sample key (bytes), so "smaller id" is CONTRACT's
"smaller key".

Shapes: Q queries, B of them at a time, N rows of this part, D dimensions, K hits kept, F candidates fetched
for a query, P pairs of one query and one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval_train.evaluation.index import Index, check_vectors

MOST_FETCHED = 2048
"""FAISS on GPU returns no more for a query; one with more candidates is compared with every row, here."""
PAIRS_AT_ONCE = 2**20
"""Candidates held in memory at a time: 12 MB of scores and ids."""
NUMBERS_AT_ONCE = 2**20
"""Float64 products held at a time while pairs are scored: 8 MB."""
SCORES_AT_ONCE = 2**24
"""Float32 scores held at a time while every row is compared: 64 MB, or one query's where a part is larger."""


@dataclass(frozen=True, eq=False)
class Hits:
    """The best K of each query, best first. Where there are fewer than K: score -inf, id -1, at the end."""

    score_QK: np.ndarray  # float32
    id_QK: np.ndarray  # int64

    def __post_init__(self) -> None:
        assert self.score_QK.shape == self.id_QK.shape and self.score_QK.ndim == 2, (
            self.score_QK.shape,
            self.id_QK.shape,
        )
        for array, dtype in ((self.score_QK, "float32"), (self.id_QK, "int64")):
            assert str(array.dtype) == dtype, f"{array.dtype} where {dtype} is promised"

    @staticmethod
    def none(num_queries: int, k: int) -> Hits:
        return Hits(np.full((num_queries, k), -np.inf, np.float32), np.full((num_queries, k), -1, np.int64))


def search_part(index: Index, *, vectors_ND: np.ndarray, id_N: np.ndarray, query_QD: np.ndarray, k: int) -> Hits:
    """The best k rows of one part for each query. `vectors_ND` are the rows in `index`, `id_N` their global
    ids.

    Raises ValueError for vectors that are not finite float32, and RuntimeError where the index scores less
    exactly than float32 does (TF32, half precision, a compressed index): then nothing is known about the rows
    it left out.
    """
    part = _Part(index, vectors_ND, id_N, longest=float(check_vectors(vectors_ND, what="index").max(initial=0.0)))
    if k < 1:
        raise ValueError(f"k={k}: ask for at least one hit")
    if query_QD.ndim == 2 and query_QD.shape[1] != vectors_ND.shape[1]:
        raise ValueError(f"queries have {query_QD.shape[1]} dimensions, the index has {vectors_ND.shape[1]}")
    slack_Q = rounding_bound(check_vectors(query_QD, what="query") * part.longest, dim=vectors_ND.shape[1])
    hits = Hits.none(len(query_QD), k)
    unsettled = np.arange(len(query_QD) if len(id_N) else 0)
    fetch = min(2 * k + 16, len(id_N))
    while len(unsettled) and fetch <= MOST_FETCHED:
        left = []
        for rows in _blocks(unsettled, PAIRS_AT_ONCE // fetch):
            found, is_settled_B = _fetch(part, query_QD[rows], slack_Q[rows], fetch=fetch, k=k)
            _put(hits, found, rows)
            left.append(rows[~is_settled_B])
        unsettled = np.concatenate(left)
        fetch = min(2 * fetch, len(id_N))
    for rows in _blocks(unsettled, SCORES_AT_ONCE // max(len(id_N), 1)):
        _put(hits, _compare_all(part, query_QD[rows], slack_Q[rows], k=k), rows)
    return hits


def merge_hits(parts: Sequence[Hits], *, k: int) -> Hits:
    """The best k over all parts, which must hold different ids. Any order and number of parts will do."""
    assert parts, "no parts to merge"
    score_QF = np.concatenate([part.score_QK for part in parts], axis=1)
    id_QF = np.concatenate([part.id_QK for part in parts], axis=1)
    return _best(score_QF, id_QF, k=k)


def score_pairs(query_PD: np.ndarray, row_PD: np.ndarray) -> np.ndarray:
    """The score that counts: a float64 dot product in a fixed order of summation, rounded to float32.

    Products of float32 numbers are exact in float64. They are summed by adding the last half to the first
    until one number is left: every addition is elementwise, so no library, thread or batch shape can change
    the order (as it does in `@`, `einsum` and `sum`).
    """
    term_PD = query_PD.astype(np.float64) * row_PD
    while (width := term_PD.shape[1]) > 1:
        half = width // 2
        term_PD[:, :half] += term_PD[:, width - half :]
        term_PD = term_PD[:, : width - half]
    score_P: np.ndarray = term_PD[:, 0].astype(np.float32)
    return score_P


def rounding_bound(product_Q: np.ndarray, *, dim: int) -> np.ndarray:
    """How far a float32 inner product in any order can lie from `score_pairs`, given |query| * |longest row|.

    A float32 sum of D products is off by at most D u / (1 - D u) * sum |q_i x_i| with u = 2^-24, whatever the
    order and with or without fused multiply-add (Higham, Accuracy and Stability of Numerical Algorithms,
    3.1), and the sum is at most |q| |x|. `score_pairs` adds its own last rounding, u |q| |x|. 1.01 covers the
    denominator for D < 2^16 and the float64 errors; the last term covers underflow where denormals are
    flushed to zero.
    """
    assert dim <= 2**16, dim
    bound_Q: np.ndarray = 1.01 * (dim + 2) * 2.0**-24 * product_Q + dim * 2.0**-126
    return bound_Q


@dataclass(frozen=True, eq=False)
class _Part:
    index: Index
    vectors_ND: np.ndarray
    id_N: np.ndarray
    longest: float

    def __post_init__(self) -> None:
        rows = (self.index.ntotal, len(self.vectors_ND), len(self.id_N))
        assert len(set(rows)) == 1, f"rows of the index, the vectors and the ids differ: {rows}"


def _fetch(part: _Part, query_BD: np.ndarray, slack_B: np.ndarray, *, fetch: int, k: int) -> tuple[Hits, np.ndarray]:
    """The best k of FAISS's best `fetch`, and whether they are certain to be the best k of all rows."""
    rough_BF, row_BF = part.index.search(np.ascontiguousarray(query_BD), fetch)
    query_P, row_P = np.repeat(np.arange(len(query_BD)), fetch), row_BF.reshape(-1)
    assert row_P.min() >= 0, f"the index found fewer than {fetch} of its {part.index.ntotal} rows"
    score_BF = _score(part, query_BD, query_P, row_P).reshape(row_BF.shape)
    _check_precision(rough_BF, score_BF, slack_B)
    found = _best(score_BF, part.id_N[row_BF], k=k)
    if fetch == len(part.id_N):
        return found, np.ones(len(query_BD), bool)
    # A row left out scores at most the last fetched one in FAISS's sums, so at most this in ours.
    outside_B = rough_BF[:, -1].astype(np.float64) + slack_B
    return found, outside_B < found.score_QK[:, -1]


def _compare_all(part: _Part, query_BD: np.ndarray, slack_B: np.ndarray, *, k: int) -> Hits:
    """For queries with very many rows within rounding of the k-th place (a thousand copies of one image)."""
    num_rows = len(part.id_N)
    place = max(num_rows - k, 0)
    hits = Hits.none(len(query_BD), k)
    rough_BN = query_BD @ part.vectors_ND.T
    for b, slack in enumerate(slack_B):
        # k rows score at least (k-th rough - slack); what can reach that is at most 2 slacks below in rough.
        cut = np.partition(rough_BN[b], place)[place].astype(np.float64) - 2 * slack
        row_P = np.flatnonzero(rough_BN[b].astype(np.float64) >= cut)
        score_P = _score(part, query_BD, np.full(len(row_P), b), row_P)
        _put(hits, _best(score_P[None], part.id_N[row_P][None], k=k), np.array([b]))
    return hits


def _score(part: _Part, query_BD: np.ndarray, query_P: np.ndarray, row_P: np.ndarray) -> np.ndarray:
    score_P = np.empty(len(row_P), np.float32)
    for pairs in _blocks(np.arange(len(row_P)), NUMBERS_AT_ONCE // query_BD.shape[1]):
        score_P[pairs] = score_pairs(query_BD[query_P[pairs]], part.vectors_ND[row_P[pairs]])
    return score_P


def _check_precision(rough_BF: np.ndarray, score_BF: np.ndarray, slack_B: np.ndarray) -> None:
    off_B = np.abs(rough_BF.astype(np.float64) - score_BF).max(axis=1)
    worst = int((off_B - slack_B).argmax())
    if off_B[worst] > slack_B[worst]:
        raise RuntimeError(
            f"the index scores a pair {off_B[worst]:.2g} off its float64 score; float32 sums stay within "
            f"{slack_B[worst]:.2g}. Is TF32 or half precision on (NVIDIA_TF32_OVERRIDE)?"
        )


def _best(score_QF: np.ndarray, id_QF: np.ndarray, *, k: int) -> Hits:
    order_QK = np.lexsort((id_QF, -score_QF), axis=1)[:, :k]
    hits = Hits.none(len(score_QF), k)
    hits.score_QK[:, : order_QK.shape[1]] = np.take_along_axis(score_QF, order_QK, axis=1)
    hits.id_QK[:, : order_QK.shape[1]] = np.take_along_axis(id_QF, order_QK, axis=1)
    return hits


def _put(hits: Hits, found: Hits, rows: np.ndarray) -> None:
    hits.score_QK[rows], hits.id_QK[rows] = found.score_QK, found.id_QK


def _blocks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), max(size, 1)):
        yield rows[start : start + max(size, 1)]
