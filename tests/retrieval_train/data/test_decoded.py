"""Decoded images in shared memory: what one process puts all others get whole, whoever is killed; nothing stays behind."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_train.data.decoded import DecodedCache, Pixels

fork = multiprocessing.get_context("fork")


def image_of(number: int) -> Pixels:
    """A size and pixels that no other number has."""
    draw = np.random.default_rng(number)
    return draw.integers(0, 256, (*draw.integers(1, 60, 2), 3), np.uint8)


@settings(deadline=None, max_examples=30)
@given(numbers=st.lists(st.integers(0, 99), max_size=60), max_kb=st.integers(4, 300), writers=st.integers(1, 4))
def test_what_was_put_is_what_is_got_and_the_bound_is_kept(numbers: list[int], max_kb: int, writers: int) -> None:
    cache = DecodedCache(100, max_kb * 1000, writers)
    there: set[int] = set()
    for turn, number in enumerate(numbers):
        if cache.put(number, image_of(number), turn % writers):
            there.add(number)
        assert sum(image_of(number).size for number in there) <= max_kb * 1000
    assert len(cache) == len(there)
    for number in range(100):
        got = cache.get(number)
        assert (got is None) == (number not in there)
        if got is not None:
            assert np.array_equal(got, image_of(number)) and not got.flags.writeable


def test_a_full_region_refuses_and_what_is_smaller_still_fits() -> None:
    cache = DecodedCache(4, 20_000, 1)
    assert cache.put(0, np.zeros((50, 60, 3), np.uint8), 0)
    assert cache.put(1, np.zeros((50, 60, 3), np.uint8), 0)
    assert not cache.put(2, np.zeros((50, 60, 3), np.uint8), 0)
    assert cache.put(0, np.ones((9, 9, 3), np.uint8), 0), "it is there"
    assert cache.put(3, np.ones((9, 9, 3), np.uint8), 0)
    assert [cache.get(number) is None for number in range(4)] == [False, False, True, False]


def fill(cache: DecodedCache, writer: int, numbers: range) -> None:
    for number in numbers:
        cache.put(number, image_of(number), writer)
    os._exit(0)


def test_forked_workers_see_each_others_images() -> None:
    cache = DecodedCache(400, 50_000_000, 4)
    for start in (0, 100):  # the second pair of workers goes on where a dead worker of that number stopped
        workers = [
            fork.Process(target=fill, args=(cache, writer, range(start + writer, start + 100, 2))) for writer in (0, 1)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
    assert len(cache) == 200
    for number in range(200):
        assert np.array_equal(cache.get(number), image_of(number))  # type: ignore[arg-type]


def test_readers_meet_whole_images_only_while_a_writer_is_killed() -> None:
    cache = DecodedCache(10_000, 200_000_000, 2)
    images = [np.full((64, 64, 3), number % 251, np.uint8) for number in range(10_000)]

    def write(writer: int) -> None:
        for number in range(10_000):
            cache.put(number, images[number], writer)
        os._exit(0)

    for writer in (0, 1):
        process = fork.Process(target=write, args=(writer,))
        process.start()
        stop = time.monotonic() + 0.15
        while time.monotonic() < stop:
            for number in range(0, 10_000, 97):
                got = cache.get(number)
                assert got is None or (got.shape == (64, 64, 3) and (got == number % 251).all())
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join(10)
    assert len(cache) > 0
    assert all((got == number % 251).all() for number in range(10_000) if (got := cache.get(number)) is not None)


def test_memory_goes_with_its_last_user() -> None:
    def shared() -> int:
        return Path("/proc/self/maps").read_text().count("/dev/zero (deleted)")

    before, num_files = shared(), len(os.listdir("/proc/self/fd"))
    cache = DecodedCache(10, 10_000_000, 1)
    cache.put(1, image_of(1), 0)
    view = cache.get(1)
    del cache
    assert view is not None and np.array_equal(view, image_of(1)), "a view outlives the cache"
    assert shared() == before + 1
    del view
    assert shared() == before and len(os.listdir("/proc/self/fd")) == num_files


def test_mistakes_are_named() -> None:
    cache = DecodedCache(3, 10_000, 1)
    with pytest.raises(ValueError, match=r"an image is uint8 \(H, W, C\), not float32 \(2, 2, 3\)"):
        cache.put(0, np.zeros((2, 2, 3), np.float32), 0)  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        cache.get(3)
    with pytest.raises(ValueError, match="100 bytes for 8 writers hold no image"):
        DecodedCache(3, 100, 8)
    with pytest.raises(TypeError, match="by fork"):
        pickle.dumps(cache)
