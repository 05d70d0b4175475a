"""Search over any parts is compared with `brute_force`: exact sums, every pair, one sort."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retrieval_train.evaluation import search
from retrieval_train.evaluation.index import Config, Index, build_index
from retrieval_train.evaluation.search import Hits, merge_hits, rounding_bound, score_pairs, search_part


def brute_force(query_QD: np.ndarray, vectors_ND: np.ndarray, k: int) -> tuple[list[list[float]], list[list[int]]]:
    scores, ids = [], []
    for query in query_QD.astype(float).tolist():
        ranked = []
        for row, vector in enumerate(vectors_ND.astype(float).tolist()):
            score = np.float32(math.fsum(a * b for a, b in zip(query, vector, strict=True)))
            ranked.append((-float(score), row))
        best = sorted(ranked)[:k] + [(math.inf, -1)] * max(0, k - len(ranked))
        scores.append([-score for score, _ in best])
        ids.append([row for _, row in best])
    return scores, ids


def search_in_parts(query_QD: np.ndarray, vectors_ND: np.ndarray, *, parts: Sequence[np.ndarray], k: int) -> Hits:
    found = []
    for id_N in parts:
        index = build_index(vectors_ND[id_N], config=Config())
        found.append(search_part(index, vectors_ND=vectors_ND[id_N], id_N=id_N, query_QD=query_QD, k=k))
    return merge_hits(found, k=k)


def assert_same(hits: Hits, query_QD: np.ndarray, vectors_ND: np.ndarray, k: int) -> None:
    scores, ids = brute_force(query_QD, vectors_ND, k)
    assert hits.id_QK.tolist() == ids
    assert hits.score_QK.tolist() == scores


def normalised(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def with_copies(num_rows: int, *, distinct: int, dim: int, seed: int) -> np.ndarray:
    """Few distinct vectors, many copies, and rows that differ from another one in one last bit."""
    rng = np.random.default_rng(seed)
    vectors_ND = normalised(rng.standard_normal((distinct, dim)))[rng.integers(distinct, size=num_rows)]
    shaken = rng.integers(num_rows, size=num_rows // 4)
    column = rng.integers(dim, size=len(shaken))
    vectors_ND[shaken, column] = np.nextafter(vectors_ND[shaken, column], np.float32(1))
    return vectors_ND


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
@pytest.mark.parametrize("dim", [5, 64])
def test_any_number_of_parts_finds_what_brute_force_finds(num_parts: int, dim: int) -> None:
    vectors_ND = with_copies(150, distinct=12, dim=dim, seed=dim)
    query_QD = vectors_ND[::5]  # 30 queries: FAISS takes its matrix path from 20
    hits = search_in_parts(query_QD, vectors_ND, parts=np.array_split(np.arange(150), num_parts), k=10)
    assert_same(hits, query_QD, vectors_ND, 10)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_cut_even_ragged_and_empty_finds_what_brute_force_finds(data: st.DataObject) -> None:
    dim = data.draw(st.integers(1, 5), label="dim")
    number = st.sampled_from([0.0, 0.5, -0.5, 0.1, 1 / 3])
    rows = st.lists(st.lists(number, min_size=dim, max_size=dim), max_size=14)
    vectors_ND = np.array(data.draw(rows, label="index"), np.float32).reshape(-1, dim)
    query_QD = np.array(data.draw(rows, label="queries"), np.float32).reshape(-1, dim)
    k = data.draw(st.integers(1, 18), label="k")
    owner_N = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(vectors_ND), max_size=len(vectors_ND))), int)
    parts = [np.flatnonzero(owner_N == part) for part in range(5)]
    assert_same(search_in_parts(query_QD, vectors_ND, parts=parts, k=k), query_QD, vectors_ND, k)


@pytest.mark.parametrize("copies", [100, 3000])
def test_thousands_of_copies_are_ranked_by_id(copies: int) -> None:
    """100: settled by fetching more; 3000: more copies than FAISS may fetch, so all rows are compared."""
    rng = np.random.default_rng(0)
    one, other = normalised(rng.standard_normal((2, 48)))
    vectors_ND = np.concatenate([other[None], np.repeat(one[None], copies, axis=0), other[None]])
    parts = np.array_split(np.arange(copies + 2), [copies // 3])
    hits = search_in_parts(np.stack([one, other]), vectors_ND, parts=parts, k=4)
    assert hits.id_QK.tolist() == [[1, 2, 3, 4], [0, copies + 1, 1, 2]]


def test_memory_is_bounded_by_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks of a few numbers and a limit of 20 candidates, the hits are the same."""
    vectors_ND = with_copies(120, distinct=3, dim=7, seed=1)
    query_QD = with_copies(9, distinct=9, dim=7, seed=2)
    for name, size in (
        ("PAIRS_AT_ONCE", 64),
        ("NUMBERS_AT_ONCE", 50),
        ("SCORES_AT_ONCE", 250),
        ("MOST_FETCHED", 20),
    ):
        monkeypatch.setattr(search, name, size)
    hits = search_in_parts(query_QD, vectors_ND, parts=[np.arange(120)], k=5)
    assert_same(hits, query_QD, vectors_ND, 5)


@pytest.mark.parametrize("most_fetched", [2, 2048])
def test_rows_closer_than_float32_sums_can_tell_are_ranked_right(
    most_fetched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 rows, each one vector with its last bits shaken: by fetching more, and by comparing all."""
    monkeypatch.setattr(search, "MOST_FETCHED", most_fetched)
    rng = np.random.default_rng(4)
    query_QD = normalised(rng.standard_normal((3, 200)))
    last_bits_ND = rng.integers(-2, 3, (600, 200)).astype(np.float32) * np.float32(2**-23)
    vectors_ND = query_QD[:1] * (1 + last_bits_ND)
    hits = search_in_parts(query_QD, vectors_ND, parts=np.array_split(np.arange(600), [250]), k=3)
    assert_same(hits, query_QD, vectors_ND, 3)


def test_a_pair_scores_the_same_in_any_batch() -> None:
    rng = np.random.default_rng(3)
    for dim in (1, 2, 3, 63, 64, 65, 768):
        query_PD, row_PD = rng.standard_normal((2, 50, dim)).astype(np.float32)
        together = score_pairs(query_PD, row_PD)
        alone = [score_pairs(query_PD[p : p + 1], row_PD[p : p + 1])[0] for p in range(50)]
        strided = score_pairs(np.asfortranarray(query_PD), np.asfortranarray(row_PD))
        exact = [np.float32(math.fsum((query_PD[p].astype(float) * row_PD[p]).tolist())) for p in range(50)]
        assert together.tolist() == alone == strided.tolist() == exact


@pytest.mark.parametrize("dim", [1, 16, 300])
def test_float32_sums_in_any_order_stay_within_the_bound(dim: int) -> None:
    rng = np.random.default_rng(dim)
    query_PD, row_PD = (1000 * rng.standard_normal((2, 400, dim)) ** 3).astype(np.float32)
    length_P = np.linalg.norm(query_PD.astype(float), axis=1) * np.linalg.norm(row_PD.astype(float), axis=1)
    in_order_P = np.zeros(400, np.float32)
    for d in np.argsort(-np.abs(query_PD * row_PD).sum(0)):  # largest first: the worst order
        in_order_P += query_PD[:, d] * row_PD[:, d]
    off_P = np.abs(in_order_P - score_pairs(query_PD, row_PD).astype(float))
    assert (off_P <= rounding_bound(length_P, dim=dim)).all()
    assert dim == 1 or off_P.max() > 0


class Noisy:
    """An index whose scores are off by `share` of what float32 may be off: a GPU, another BLAS, or TF32."""

    def __init__(self, index: Index, vectors_ND: np.ndarray, *, share: float) -> None:
        self.ntotal, self.d, self.vectors_ND, self.share = index.ntotal, index.d, vectors_ND, share
        self.rng = np.random.default_rng(0)

    def search(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        score_QN = x.astype(float) @ self.vectors_ND.T.astype(float)
        off = rounding_bound(np.ones(1), dim=self.d) * self.share
        rough_QN = (score_QN + off * self.rng.uniform(-1, 1, score_QN.shape)).astype(np.float32)
        row_QK = np.argsort(-rough_QN, axis=1)[:, :k]
        return np.take_along_axis(rough_QN, row_QK, axis=1), row_QK


def test_the_hits_do_not_depend_on_how_the_index_rounds() -> None:
    vectors_ND = with_copies(200, distinct=4, dim=128, seed=5)
    query_QD = vectors_ND[:8]
    noisy = Noisy(build_index(vectors_ND, config=Config()), vectors_ND, share=0.9)
    hits = search_part(noisy, vectors_ND=vectors_ND, id_N=np.arange(200), query_QD=query_QD, k=6)
    assert_same(hits, query_QD, vectors_ND, 6)


def test_an_index_less_exact_than_float32_is_refused() -> None:
    vectors_ND = with_copies(50, distinct=4, dim=8, seed=6)
    coarse = Noisy(build_index(vectors_ND, config=Config()), vectors_ND, share=1000)
    with pytest.raises(RuntimeError, match=r"float32 sums stay within 6e-07.*TF32"):
        search_part(coarse, vectors_ND=vectors_ND, id_N=np.arange(50), query_QD=vectors_ND[:3], k=5)


def test_fewer_rows_than_k_are_padded() -> None:
    vectors_ND = np.eye(3, dtype=np.float32)
    hits = search_in_parts(vectors_ND[:2], vectors_ND, parts=[np.arange(0), np.arange(3)], k=5)
    assert hits.id_QK.tolist() == [[0, 1, 2, -1, -1], [1, 0, 2, -1, -1]]
    assert hits.score_QK[0].tolist() == [1, 0, 0, -np.inf, -np.inf]


def test_no_queries_give_no_hits() -> None:
    vectors_ND = np.eye(3, dtype=np.float32)
    assert search_in_parts(vectors_ND[:0], vectors_ND, parts=[np.arange(3)], k=2).id_QK.shape == (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused_by_row(bad: float) -> None:
    vectors_ND = np.eye(9, dtype=np.float32)
    index = build_index(vectors_ND, config=Config())
    broken_ND = vectors_ND.copy()
    broken_ND[[2, 7], 3] = bad
    with pytest.raises(ValueError, match=r"index vectors: NaN or infinity in rows 2, 7 of 9"):
        build_index(broken_ND, config=Config())
    with pytest.raises(ValueError, match=r"query vectors: NaN or infinity in row 0 of 1"):
        search_part(index, vectors_ND=vectors_ND, id_N=np.arange(9), query_QD=broken_ND[2:3], k=1)
    with pytest.raises(ValueError, match=r"in rows 0, 1, 2, 3, 4 and 4 more of 9"):
        build_index(np.full_like(vectors_ND, bad), config=Config())


def test_vectors_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float64 of shape \(3, 3\)"):
        build_index(np.eye(3), config=Config())
    with pytest.raises(ValueError, match=r"longer than 1e\+18 in row 1; L2-normalise"):
        build_index(np.diag([1, 1e19]).astype(np.float32), config=Config())
    vectors_ND = np.eye(3, dtype=np.float32)
    index = build_index(vectors_ND, config=Config())
    with pytest.raises(ValueError, match="queries have 2 dimensions, the index has 3"):
        search_part(index, vectors_ND=vectors_ND, id_N=np.arange(3), query_QD=np.eye(2, dtype=np.float32), k=1)
    with pytest.raises(ValueError, match="k=0"):
        search_part(index, vectors_ND=vectors_ND, id_N=np.arange(3), query_QD=vectors_ND, k=0)


def test_an_index_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match="ivf"):
        Config.model_validate({"name": "ivf"})
