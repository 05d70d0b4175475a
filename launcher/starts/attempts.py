"""The starts of a run: how each ended, and whether the run is queued again. Pure, but for `attempts.jsonl`.

Each kind of ending has a budget of its own, so that ten preemptions in a night leave the budget for bad nodes untouched.
What a user has to correct, and what would only happen again (memory, numbers that are no numbers), is never queued again.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, get_args

from pydantic import Field

from jobs.failure import Kind
from retrieval_train.config import Section
from retrieval_train.rundir import RunDir

Ending = Literal[Kind, "done"]
Group = Literal["preempted", "timed_out", "node", "crash"]

_BLIND = 10  # time-outs in a row of a job that has no steps to tell whether it gets on
_GROUPS: dict[str, Group] = {
    "preempted": "preempted",
    "timed_out": "timed_out",
    "node_failure": "node",
    "bad_node": "node",
    "hang": "crash",
    "killed": "crash",
    "lost_rank": "crash",
}


class Requeue(Section):
    """How often a run is queued again after each kind of ending; 0: never."""

    preempted: int = Field(default=1000, ge=0)
    """Somebody more important needed the nodes; the run saved."""
    timed_out: int = Field(default=100, ge=0)
    """The time limit of one start; the run saved. Two in a row without a step are the last."""
    node: int = Field(default=10, ge=0)
    """A node was lost, or the pre-flight named one."""
    crash: int = Field(default=2, ge=0)
    """A process died without a word, or hung."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run."""

    number: int
    """From 0."""
    job_id: str
    nodes: tuple[str, ...]
    begun: float
    """Seconds since 1970."""
    step_before: int
    """Of the newest checkpoint when it began; 0 in jobs that make none."""
    ended: float | None = None
    step: int | None = None
    """Of the newest checkpoint when it ended; None in jobs that make none."""
    kind: Ending | None = None
    """None: it still runs, or was ended together with whoever writes this down."""
    words: str = ""
    at_fault: tuple[str, ...] = ()
    """Nodes."""
    queued_again: bool = False


_FIELDS = {field.name for field in fields(Attempt)}


def read(run: RunDir) -> list[Attempt]:
    """All starts of the run, oldest first. A line that was cut by a crash is left out."""
    try:
        lines = run.attempts.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found: dict[int, Attempt] = {}
    for line in lines:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        known = {name: value for name, value in values.items() if name in _FIELDS}  # later versions may write more
        found[known["number"]] = Attempt(**known | {key: tuple(known[key]) for key in ("nodes", "at_fault")})
    return [found[number] for number in sorted(found)]


def write(run: RunDir, attempt: Attempt) -> None:
    """Append it; the last line of a number counts."""
    assert attempt.kind is None or attempt.kind in (*get_args(Kind), "done"), attempt.kind
    run.path.mkdir(parents=True, exist_ok=True)
    with run.attempts.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line that a crash cut
                file.write(b"\n")
        file.write(json.dumps(asdict(attempt), ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def step_of(run: RunDir) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    folder = run.latest_checkpoint()
    return int(folder.name.partition("-")[2]) if folder else 0


def decide(history: Sequence[Attempt], last: Attempt, budgets: Requeue) -> Attempt:
    """`last`, which has ended, with the decision whether the run is queued again, and why not in its words."""
    assert last.kind is not None, "it has not ended"
    group = _GROUPS.get(last.kind)
    if group is None:
        return last
    budget: int = getattr(budgets, group)
    spent = sum(attempt.queued_again and _GROUPS.get(str(attempt.kind)) == group for attempt in history)
    if spent >= budget:
        return replace(last, words=f"{last.words}; not queued again: requeue.{group} is {budget}")
    if group == "timed_out" and (why := _fruitless([*history, last])):
        return replace(last, words=f"{last.words}; not queued again: {why}")
    return replace(last, queued_again=True)


def _fruitless(starts: Sequence[Attempt]) -> str:
    """Why it makes no sense to start again; empty where it may."""
    in_a_row = list(itertools.takewhile(lambda each: each.kind == "timed_out", reversed(starts)))
    if len(in_a_row) >= 2 and all(each.step is not None and each.step <= each.step_before for each in in_a_row[:2]):
        return "two starts in a row made no step that was saved within the time limit; give more --time"
    if len(in_a_row) >= _BLIND and in_a_row[0].step is None:
        return f"{_BLIND} starts in a row met the time limit; give more --time"
    return ""
