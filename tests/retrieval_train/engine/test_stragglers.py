"""The slowest rank is found and named once it stays slow; clocks that are apart are told of."""

from __future__ import annotations

import logging
import re
import time

import pytest

from retrieval_train.engine import stragglers
from retrieval_train.engine.stragglers import Stragglers, clock_skew_s, host_facts
from retrieval_train.world import Alone, Group
from tests.processes import run_ranks


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def two_ranks(world: Group) -> tuple[list[dict[str, float]], list[list[str]], float, list[str]]:
    heard = Heard()
    stragglers.log.addHandler(heard)
    slow = Stragglers(world)
    figures, lines = [], []
    for own_s in ([0.5, 0.8], [0.8, 0.5], [0.5, 0.8], [0.5, 0.8], [0.5, 0.8], [0.5, 0.8]):
        slow.note(own_s[world.rank] - 0.1)
        slow.note(own_s[world.rank] + 0.1)
        figures.append(slow.agree())
        lines.append(heard.lines.copy())
    heard.lines.clear()
    clock = time.time
    if world.rank == 1:
        time.time = lambda: clock() + 100
    skew = clock_skew_s(world)
    time.time = clock
    return figures, lines, skew, heard.lines


def test_a_rank_that_stays_slow_is_told_of_once_and_a_clock_that_is_off_too() -> None:
    results = run_ranks(two_ranks, 2)
    host = host_facts()["host"]
    figures, lines, skew, clocks = results[0]
    assert figures[0] == {
        "own_mean_s": 0.65,
        "own_max_s": 0.8,
        "slowest_rank": 1,
        "slowest_host": host,
        "slowest_ratio": 1.6,
    }
    assert figures[1]["slowest_rank"] == 0
    assert lines[4] == lines[5] == [f"rank 1 on {host} takes 1.6 x the median step"]
    assert lines[3] == []  # slow for the second time in a row, and once before another rank was
    assert 99 < skew < 101
    assert len(clocks) == 1 and re.search(r" is \+(99\.\d|100\.\d) s off", clocks[0])
    assert results[1][0] == figures and results[1][2] == skew
    assert results[1][1][-1] == [] and results[1][3] == []  # only rank 0 tells


def test_one_process_is_its_own_median(caplog: pytest.LogCaptureFixture) -> None:
    alone = Stragglers(Alone())
    for _ in range(5):
        alone.note(2.0)
        assert alone.agree()["slowest_ratio"] == 1.0
    assert clock_skew_s(Alone()) == 0.0 and not caplog.records


def test_the_facts_of_this_machine_are_there() -> None:
    facts = host_facts()
    assert facts["host"] and facts["cpu"] and facts["kernel"]
    assert int(facts["cpus"]) >= 1 and float(facts["memory_gib"]) > 0.1
    assert str(facts["torch"])[0].isdigit() and str(facts["deepspeed"])[0].isdigit()
