"""What a job of SLURM asks about itself, and what it may change, from its own batch step."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import time
from collections.abc import Mapping, Sequence

from launcher.clusters.cluster import NoAnswer, ask, job_state

_GONE = {"DOWN", "FAIL", "NO_RESPOND", "NOT_RESPONDING", "UNKNOWN"}
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


def seconds_left(job_id: str) -> float | None:
    """Until the job's time limit; None where it has none, or SLURM does not say."""
    try:
        text = ask(["squeue", "-h", "-j", job_id, "-o", "%L"]).strip()
    except NoAnswer:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:  # UNLIMITED, NOT_SET, INVALID
        return 0.0 if text == "INVALID" else None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def how_the_last_start_ended(job_id: str, nodes: Sequence[str], begun: float) -> tuple[str, tuple[str, ...]]:
    """(SLURM's word for the end of the start before this one, the nodes of it that went away or began anew since `begun`).

    The word is empty where there is no accounting.
    """
    state = ""
    with contextlib.suppress(NoAnswer):  # -D: all starts of the job, the present one last
        lines = ask(["sacct", "-X", "-D", "-n", "-P", "-j", job_id, "-o", "State"]).splitlines()
        ended = [line.split()[0] for line in lines if line.strip() and line.split()[0] not in ("RUNNING", "PENDING")]
        state = ended[-1] if ended else ""
    lost = _away(nodes, begun) | _was_down(nodes, begun)
    return state, tuple(node for node in nodes if node in lost)


def _away(nodes: Sequence[str], begun: float) -> set[str]:
    """The nodes that are gone, or have booted since."""
    found: set[str] = set()
    with contextlib.suppress(NoAnswer):
        for line in ask(["scontrol", "-o", "show", "node", ",".join(nodes)]).splitlines():
            about = dict(word.partition("=")[::2] for word in line.split())
            words = about.get("State", "")
            if _GONE & set(re.split(r"[+*]+", words)) or words.endswith("*") or _booted(about) > begun:
                found.add(about["NodeName"])
    return found


def _was_down(nodes: Sequence[str], begun: float) -> set[str]:
    """The nodes that accounting has seen down since, also where they came back without a boot: a cable, a daemon."""
    since = datetime.datetime.fromtimestamp(begun).isoformat(timespec="seconds")  # SLURM speaks local time
    what = (
        "show",
        "event",
        "event=node",
        f"nodes={','.join(nodes)}",
        f"start={since}",
        "format=NodeName,TimeStart,State",
    )
    found: set[str] = set()
    with contextlib.suppress(NoAnswer):
        for line in ask(["sacctmgr", "-n", "-P", *what]).splitlines():
            node, start, state = line.split("|")
            if start >= since and state.startswith("DOWN"):
                found.add(node)
    return found


def _booted(about: Mapping[str, str]) -> float:
    """Seconds since 1970; 0 where SLURM does not say."""
    try:
        return datetime.datetime.fromisoformat(about["BootTime"]).timestamp()
    except (KeyError, ValueError):
        return 0.0


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
