"""Metrics are compared with loops over one query, and pinned where other codebases score differently."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_train.evaluation.metrics import METRICS, Truth, count, evaluate, per_query
from retrieval_train.evaluation.search import Hits


def truth_of(query_label: list[int], index_label: list[int], *, domains: tuple[str, ...] = ("a",)) -> Truth:
    """Class c is in domain c modulo the number of domains; distractors are in the first."""
    query_label_Q, index_label_N = np.array(query_label, np.int64), np.array(index_label, np.int64)
    num = len(domains)
    return Truth(
        query_label_Q=query_label_Q,
        query_domain_Q=np.maximum(query_label_Q, 0) % num,
        index_label_N=index_label_N,
        index_domain_N=np.maximum(index_label_N, 0) % num,
        domains=domains,
    )


def hits_of(ids: list[list[int]]) -> Hits:
    id_QK = np.array(ids, np.int64)
    return Hits(np.where(id_QK < 0, -np.inf, -np.arange(id_QK.shape[1])).astype(np.float32), id_QK)


def slow(right: list[bool], n: int) -> dict[str, float]:
    """One query: `right` over its ranks, n relevant images in the index."""
    places = min(n, 5)
    matches = 0
    for j in range(places):
        matches += right[j]
    precisions = 0.0
    for j in range(min(10, len(right))):
        if right[j]:
            precisions += sum(right[: j + 1]) / (j + 1)
    found = {f"R@{k}": float(any(right[:k])) for k in (1, 5, 10)}
    return {"mMP@5": matches / places, **found, "mAP@10": precisions / min(n, 10)}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_metric_equals_a_loop_over_queries(data: st.DataObject) -> None:
    label = st.integers(-1, 5)
    index_label = data.draw(st.lists(label, min_size=1, max_size=16))
    query_label = data.draw(st.lists(label, min_size=1, max_size=5))
    rankings = [data.draw(st.permutations(range(len(index_label)))) for _ in query_label]
    ids = [(list(ranking) + [-1] * 10)[: max(10, len(ranking))] for ranking in rankings]
    truth = truth_of(query_label, index_label, domains=("a", "b"))
    rows: dict[str, list[dict[str, float]]] = {"merged": [], "a": [], "b": []}
    for own, ranked in zip(query_label, ids, strict=True):
        n = index_label.count(own) if own >= 0 else 0
        if n:
            row = slow([i >= 0 and index_label[i] == own for i in ranked], n)
            rows["merged"].append(row)
            rows["ab"[own % 2]].append(row)
    if not rows["merged"]:
        with pytest.raises(ValueError, match=f"none of the {len(query_label)} queries"):
            evaluate(hits_of(ids), truth)
        return
    means = {s: {m: sum(row[m] for row in found) / len(found) for m in METRICS} for s, found in rows.items() if found}
    scores = evaluate(hits_of(ids), truth)
    assert scores.keys() == means.keys()
    for scope in means:
        assert scores[scope] == pytest.approx(means[scope], abs=1e-12)


def test_a_lone_image_at_rank_two_scores_nothing_in_mmp() -> None:
    """FIELD b5.2: open-metric-learning's precision@5 would say 1."""
    scores = evaluate(hits_of([[1, 0, 2, 3, 4, 5, 6, 7, 8, 9]]), truth_of([7], [7] + [-1] * 9))["merged"]
    assert scores == {"mMP@5": 0, "R@1": 0, "R@5": 1, "R@10": 1, "mAP@10": 0.5}


def test_a_perfect_ranking_scores_one_however_rare_the_object() -> None:
    for n in (1, 3, 5, 9):
        truth = truth_of([0], [0] * n + [1] * 10)
        assert set(evaluate(hits_of([list(range(10))]), truth)["merged"].values()) == {1.0}


def test_average_precision_is_divided_by_what_could_be_found_not_by_what_was() -> None:
    """Two of four found, at ranks 1 and 3: (1 + 2/3) / 4; dividing by the two found would say 0.83."""
    truth = truth_of([0], [0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    assert evaluate(hits_of([list(range(10))]), truth)["merged"]["mAP@10"] == pytest.approx((1 + 2 / 3) / 4)


def test_a_distractor_query_does_not_match_a_distractor() -> None:
    truth = truth_of([-1, 0], [-1, 0])
    values = per_query(hits_of([[0, 1], [1, 0]]), truth)
    assert np.isnan(values["R@1"][0]) and values["R@1"][1] == 1


def test_queries_without_an_answer_are_left_out_and_counted() -> None:
    truth = truth_of([0, 1, 3, -1], [0, 0, 2, -1, -1], domains=("z", "a"))
    assert count(truth) == {
        "merged": {"queries": 4, "judged": 1, "index": 5, "distractors": 2, "classes": 2},
        "a": {"queries": 2, "judged": 0, "index": 0, "distractors": 0, "classes": 0},
        "z": {"queries": 2, "judged": 1, "index": 5, "distractors": 2, "classes": 2},
    }
    scores = evaluate(hits_of([[0, 1, 2, 3, 4]] * 4), truth)
    assert list(scores) == ["merged", "z"] and scores["merged"]["mMP@5"] == 1


def test_hits_too_shallow_for_the_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="9 hits a query; the metrics read 10"):
        evaluate(hits_of([list(range(9))]), truth_of([0], [0] * 12))


def test_hits_of_another_index_are_refused() -> None:
    with pytest.raises(ValueError, match="ids up to 12 do not belong to 1 queries and an index of 3"):
        evaluate(hits_of([[12, 1, 2]]), truth_of([0], [0, 0, 0]))


def test_a_truth_that_contradicts_itself_is_refused() -> None:
    good = truth_of([4], [4], domains=("a", "b"))
    with pytest.raises(ValueError, match="class 4 is in the domains 'a' and 'b'"):
        dataclasses.replace(good, index_domain_N=np.array([1]))
    with pytest.raises(ValueError, match="index: domain 2 is not one of the 2 domains"):
        dataclasses.replace(good, index_domain_N=np.array([2]))
    with pytest.raises(ValueError, match="query: label -2"):
        dataclasses.replace(good, query_label_Q=np.array([-2]))
    with pytest.raises(ValueError, match=r"query: labels float64\[1\], domains int64\[1\]"):
        dataclasses.replace(good, query_label_Q=np.array([1.0]))
    with pytest.raises(ValueError, match="cannot be called 'merged'"):
        dataclasses.replace(good, domains=("a", "merged"))
