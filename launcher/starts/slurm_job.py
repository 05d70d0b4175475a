"""What a job of SLURM asks about itself, and what it may change, from its own batch step."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.clusters.cluster import NoAnswer, ask, job_state, seconds_of

_GONE = {"DOWN", "FAIL", "NO_RESPOND", "NOT_RESPONDING", "UNKNOWN"}
_TOLD_WITHIN_S = 60.0  # SLURM ends a job and writes its node down in one go
_LOST_NODE = re.compile(
    r"srun: error: (?:Node failure on (?P<nodes>\S+)|Task launch for \S+ failed on node (?P<node>[^:\s]+)"
    r"|Aborting, io error and missing step on node (?P<index>\d+))"
)


def my_nodes() -> tuple[str, ...]:
    """The nodes of this job."""
    return names(os.environ["SLURM_JOB_NODELIST"])


def names(node_list: str) -> tuple[str, ...]:
    """n[1-3,7] as SLURM writes it -> the names. Raises NoAnswer."""
    return tuple(ask(["scontrol", "show", "hostnames", node_list]).split())


def seconds_left(job_id: str, *, timeout_s: float = 20.0) -> float | None:
    """Until the job's time limit; None where it has none, or SLURM does not say."""
    try:
        text = ask(["squeue", "-h", "-j", job_id, "-o", "%L"], timeout_s=timeout_s).strip()
    except NoAnswer:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:  # UNLIMITED, NOT_SET, INVALID
        return 0.0 if text == "INVALID" else None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


@dataclass(frozen=True)
class End:
    """Of a start, as SLURM tells it afterwards."""

    state: str
    """SLURM's word, empty where there is no accounting."""
    lost: tuple[str, ...]
    """The nodes of it that went away."""


def end_of_the_start_before(job_id: str, nodes: Sequence[str], begun: float, *, is_recent: bool) -> End:
    """By accounting: who came back since is known, and who went away later is not blamed.

    Without it, and only if `is_recent`, the nodes that are away or have booted since `begun`.
    """
    state, until = "", None
    with contextlib.suppress(NoAnswer):  # -D: all starts of the job, the present one last
        for line in ask(["sacct", "-X", "-D", "-n", "-P", "-j", job_id, "-o", "State,End"]).splitlines():
            words, _, end = line.partition("|")
            if words and words.split()[0] not in ("RUNNING", "PENDING"):
                state, until = words.split()[0], seconds_of(end)
    lost = set() if until is None else _went_down(nodes, begun, until + _TOLD_WITHIN_S)
    if not lost and is_recent and state in ("", "NODE_FAIL"):
        lost = _are_away(nodes, begun)
    return End(state, tuple(node for node in nodes if node in lost))


def _went_down(nodes: Sequence[str], begun: float, until: float) -> set[str]:
    """Of these nodes, by accounting; also those that came back without a boot: a cable, a daemon."""
    start, end = (datetime.datetime.fromtimestamp(time).isoformat(timespec="seconds") for time in (begun, until))
    what = ("event=node", f"nodes={','.join(nodes)}", f"start={start}", f"end={end}", "format=NodeName,TimeStart,State")
    found: set[str] = set()
    with contextlib.suppress(NoAnswer):
        for line in ask(["sacctmgr", "-n", "-P", "show", "event", *what]).splitlines():
            node, at, state = line.split("|")
            if start <= at <= end and state.startswith("DOWN"):  # local times, as ours
                found.add(node)
    return found


def _are_away(nodes: Sequence[str], begun: float) -> set[str]:
    """Of these nodes, now; or they have booted since."""
    found: set[str] = set()
    with contextlib.suppress(NoAnswer):
        for line in ask(["scontrol", "-o", "show", "node", ",".join(nodes)]).splitlines():
            about = dict(word.partition("=")[::2] for word in line.split())
            words = about.get("State", "")
            booted = seconds_of(about.get("BootTime", "")) or 0.0
            if _GONE & set(re.split(r"[+*]+", words)) or words.endswith("*") or booted > begun:
                found.add(about["NodeName"])
    return found


def end_steps(job_id: str, name: str) -> None:
    """End the steps of that name: SLURM keeps the ranks of an srun that was killed running."""
    with contextlib.suppress(NoAnswer):
        lines = ask(["squeue", "-h", "-s", "-j", job_id, "-o", "%i %j"]).splitlines()
        if left := [step for step, _, its_name in (line.strip().partition(" ") for line in lines) if its_name == name]:
            ask(["scancel", *left])


def lost(line: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """The nodes that srun reports as gone in this line of its messages; `nodes` are those of the step."""
    found = _LOST_NODE.match(line)
    if found is None:
        return ()
    if found["index"] is not None:
        return tuple(nodes[int(found["index"]) :][:1])
    with contextlib.suppress(NoAnswer):
        return names(found["nodes"] or found["node"])
    return ()


def requeue(job_id: str, *, patience_s: float = 300.0) -> str:
    """Put the running job back into the queue: "" when it is there, else SLURM's word for what it is instead of running.

    A controller that does not answer is asked again, with growing pauses. Raises NoAnswer with its words after
    `patience_s`.
    """
    until, pause_s = time.monotonic() + patience_s, 0.5
    while True:
        try:
            state, _ = job_state(job_id) or ("gone", "")
            if state == "PENDING":  # SLURM ends scontrol with the job's other processes, often before it has an answer
                return ""
            if state not in ("RUNNING", "COMPLETING"):  # cancelled or out of time: not to be brought back to life
                return state
            if state == "RUNNING":
                ask(["scontrol", "requeue", job_id], timeout_s=60)
                return ""
            if time.monotonic() + pause_s > until:
                return state
        except NoAnswer:
            if time.monotonic() + pause_s > until:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 30.0)


def leave_out(job_id: str, nodes: Sequence[str], *, timeout_s: float) -> bool:
    """Have SLURM choose other nodes. Only for a job that waits: a moment after its requeue, while its processes are ended."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        with contextlib.suppress(NoAnswer):
            ask(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(nodes)}"])
            return True
        time.sleep(0.2)
    return False
