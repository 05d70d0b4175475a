"""Starts, budgets and bad nodes: what is queued again, and what is never."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import failure as failures
from jobs.failure import Failure
from launcher.starts import attempts, bad_nodes
from launcher.starts.attempts import Attempt, Requeue
from launcher.starts.bad_nodes import Incident
from retrieval_train.rundir import RunDir

_BEGUN = Attempt(0, "7", ("n1", "n2"), begun=1.0, step_before=100)


def after(*kinds: attempts.Ending, step: int = 200, budgets: Requeue | None = None) -> list[Attempt]:
    """The history of a run whose starts end so, for as long as it is queued again."""
    history: list[Attempt] = []
    for number, kind in enumerate(kinds):
        ended = replace(_BEGUN, number=number, ended=2.0, step=step, kind=kind, words="it ended")
        history.append(attempts.decide(history, ended, budgets or Requeue()))
        if not history[-1].queued_again:
            break
    return history


@pytest.mark.parametrize("kind", ["user_error", "error", "out_of_memory", "not_finite", "cancelled", "done"])
def test_what_would_only_happen_again_is_never_queued_again(kind: attempts.Ending) -> None:
    assert [attempt.queued_again for attempt in after(kind)] == [False]


def test_each_kind_of_ending_has_a_budget_of_its_own() -> None:
    budgets = Requeue(preempted=2, timed_out=1, node=1, crash=0)
    kinds: tuple[attempts.Ending, ...] = ("preempted", "node_failure", "preempted", "timed_out", "bad_node")
    history = after(*kinds, budgets=budgets)
    assert [attempt.queued_again for attempt in history] == [True, True, True, True, False]
    assert history[-1].words == "it ended; not queued again: requeue.node is 1"
    assert not after("killed", budgets=budgets)[0].queued_again


def test_crashes_hangs_and_lost_ranks_share_a_budget() -> None:
    assert [attempt.queued_again for attempt in after("killed", "hang", "lost_rank")] == [True, True, False]


def test_a_run_that_saves_nothing_within_its_time_limit_is_not_tried_for_ever() -> None:
    history = after("timed_out", "timed_out", "timed_out", step=100)
    assert [attempt.queued_again for attempt in history] == [True, False]
    assert "give more --time" in history[-1].words
    assert all(attempt.queued_again for attempt in after(*["timed_out"] * 20, step=200))  # type: ignore[list-item]
    without_steps = [replace(attempt, step=None) for attempt in after(*["timed_out"] * 9, step=200)]  # type: ignore[list-item]
    late = replace(_BEGUN, number=9, kind="timed_out", ended=2.0)
    assert attempts.decide(without_steps[:8], late, Requeue()).queued_again
    assert "10 starts in a row" in attempts.decide(without_steps, late, Requeue()).words


def test_attempts_are_read_as_they_were_written_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert attempts.read(run) == []
    attempts.write(run, _BEGUN)
    assert attempts.read(run) == [_BEGUN]
    ended = replace(_BEGUN, ended=3.0, step=120, kind="bad_node", words="ü\n", at_fault=("n2",), queued_again=True)
    attempts.write(run, ended)
    with run.attempts.open("a") as file:
        file.write(json.dumps({"number": 1})[:-3])
    assert attempts.read(run) == [ended]
    attempts.write(run, replace(_BEGUN, number=1))
    assert [attempt.number for attempt in attempts.read(run)] == [0, 1]


def test_a_node_that_failed_twice_within_a_week_is_left_out_until_it_is_forgotten(tmp_path: Path) -> None:
    now = time.time()
    incident = Incident(now, "run-1", "node_failure", "lost n2")
    bad_nodes.note(tmp_path, ["n1"], replace(incident, time=now - 8 * 86400))
    bad_nodes.note(tmp_path, ["n1", "n2"], incident)
    assert bad_nodes.to_leave_out(tmp_path) == ()
    bad_nodes.note(tmp_path, ["n2"], incident)
    assert bad_nodes.to_leave_out(tmp_path) == ("n2",)
    assert {node: len(found) for node, found in bad_nodes.read(tmp_path).items()} == {"n1": 1, "n2": 2}
    assert bad_nodes.forget(tmp_path, "n2")
    assert not bad_nodes.forget(tmp_path, "n2")
    assert bad_nodes.to_leave_out(tmp_path) == ()


def test_an_exception_says_what_kind_of_failure_it_is() -> None:
    class Mine(ValueError):
        failure = "out_of_memory"
        nodes = ("n3",)

    assert Failure.of(Mine("no room")) == Failure("out_of_memory", "no room", ("n3",))
    assert Failure.of(ValueError("no set 'food'")) == Failure("user_error", "no set 'food'")
    assert Failure.of(KeyError("x")) == Failure("error", "KeyError: 'x'")
    broken = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:4")
    assert Failure.of(broken).kind == "lost_rank"


def test_the_gravest_failure_of_all_ranks_counts_and_a_launcher_knows_better(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert failures.read(run) is None
    assert failures.tell(run, 3, Failure("lost_rank", "connection closed"))
    assert failures.tell(run, 1, Failure("user_error", "no set 'food'"))
    assert not failures.tell(run, 2, Failure("lost_rank", "connection reset"))
    told = failures.read(run)
    assert told is not None
    assert (told.rank, told.failure.kind, told.failure.words) == (1, "user_error", "no set 'food'")
    failures.tell(run, 0, Failure("killed", "rank 0 was ended"), is_verdict=True)
    told = failures.read(run)
    assert told is not None
    assert told.failure.kind == "killed"
    failures.clear(run)
    assert failures.read(run) is None
