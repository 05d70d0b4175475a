from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from retrieval_train.evaluation.baselines import chance, raw_pixels
from retrieval_train.evaluation.metrics import METRICS, Truth, evaluate, mean_by_scope, per_query
from retrieval_train.evaluation.search import Hits


def truth_of(query_label: list[int], index_label: list[int]) -> Truth:
    query_label_Q, index_label_N = np.array(query_label), np.array(index_label)
    return Truth(
        query_label_Q=query_label_Q,
        query_domain_Q=query_label_Q % 2,
        index_label_N=index_label_N,
        index_domain_N=np.maximum(index_label_N, 0) % 2,
        domains=("even", "odd"),
    )


def hits_of(id_QK: np.ndarray) -> Hits:
    return Hits(np.zeros(id_QK.shape, np.float32), id_QK.astype(np.int64))


def test_chance_is_the_mean_over_every_ranking_of_a_small_index() -> None:
    index_label = [0, 0, 1, 2, -1, 0]
    truth = truth_of([0, 1, 2], index_label)
    rankings = itertools.permutations(range(len(index_label)))
    scores = [evaluate(hits_of(np.array([ranking] * 3)), truth) for ranking in rankings]
    for scope, expected in chance(truth).items():
        for name, value in expected.items():
            assert np.mean([score[scope][name] for score in scores]) == pytest.approx(value, abs=1e-9), (
                scope,
                name,
            )


def test_chance_agrees_with_simulation_on_a_larger_index() -> None:
    truth = truth_of([0, 1], [0] * 13 + [1] * 2 + [-1] * 45)
    rng = np.random.default_rng(0)
    draws = 4000
    id_QK = rng.permuted(np.tile(np.arange(60), (2 * draws, 1)), axis=1)[:, :10]
    label_Q, domain_Q = np.tile(truth.query_label_Q, draws), np.tile(truth.query_domain_Q, draws)
    every = dataclasses.replace(truth, query_label_Q=label_Q, query_domain_Q=domain_Q)
    values = per_query(hits_of(id_QK), every)
    simulated = mean_by_scope(values, every)
    for scope, expected in chance(truth).items():
        for name in METRICS:
            error = np.nanstd(values[name]) / np.sqrt(draws)
            assert simulated[scope][name] == pytest.approx(expected[name], abs=5 * error), (scope, name)


def test_chance_of_an_index_without_wrong_images_is_certainty() -> None:
    assert set(chance(truth_of([0], [0] * 7))["merged"].values()) == {1.0}


def test_raw_pixels_are_unit_vectors_that_ignore_brightness() -> None:
    rng = np.random.default_rng(0)
    image_HWC = rng.integers(0, 200, (48, 80, 3), dtype=np.uint8)
    vector_D = raw_pixels(image_HWC)
    assert vector_D.shape == (768,) and vector_D.dtype == np.float32
    assert np.linalg.norm(vector_D) == pytest.approx(1, abs=1e-6) and vector_D.sum() == pytest.approx(0, abs=1e-4)
    assert raw_pixels(Image.fromarray(image_HWC)).tolist() == vector_D.tolist()
    assert raw_pixels(image_HWC + np.uint8(50)) @ vector_D == pytest.approx(1, abs=1e-3)


def test_an_image_of_16_by_16_pixels_is_its_own_vector() -> None:
    image_HWC = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    centred_D = (image_HWC - image_HWC.mean()).reshape(-1)
    assert raw_pixels(image_HWC) == pytest.approx(centred_D / np.linalg.norm(centred_D), abs=1e-6)


def test_a_large_image_is_averaged_not_sampled() -> None:
    """Noise of a third of the signal vanishes over 96 pixels (1 - cos is about 0.001); one in 96 would keep it."""
    clean_HWC = np.broadcast_to(np.linspace(60, 195, 192)[None, :, None], (128, 192, 3))
    noise_HWC = np.random.default_rng(1).uniform(-25, 25, clean_HWC.shape)
    noisy_HWC = (clean_HWC + noise_HWC).astype(np.uint8)
    cosine = raw_pixels(noisy_HWC) @ raw_pixels(clean_HWC.astype(np.uint8))
    sampled = raw_pixels(np.ascontiguousarray(noisy_HWC[::8, ::12])) @ raw_pixels(clean_HWC.astype(np.uint8))
    assert sampled < 0.97 < 0.995 < cosine


def test_an_image_of_one_colour_has_a_zero_vector() -> None:
    assert not raw_pixels(Image.new("L", (9, 7), 130)).any()


def test_an_image_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("float32 of shape (3, 8, 8)")):
        raw_pixels(np.zeros((3, 8, 8), np.float32))
