"""What sbatch is told beside the fields of a plan: the named options without a field, `--sbatch KEY=VALUE`, the file's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from launcher.clusters.cluster import Cluster

if TYPE_CHECKING:
    from launcher.plan import Request, There

Problems = list[tuple[str, str]]
Options = dict[str, str | int | bool]

NAMED = ("constraint", "exclude", "nodelist", "reservation", "comment")
"""Options of `submit` with a name of their own that go to sbatch as they are."""

# what the launcher itself says to sbatch, and which option of ours says it
_OURS = {
    "nodes": "--nodes",
    "ntasks": "--nodes and --tasks-per-node",
    "ntasks-per-node": "--tasks-per-node",
    "gpus": "--nodes and --gpus-per-node",
    "gpus-per-node": "--gpus-per-node",
    "gpus-per-task": "--gpus-per-node; there is one task per GPU",
    "cpus-per-task": "--cpus-per-task",
    "cpus-per-gpu": "--cpus-per-gpu",
    "mem": "--mem",
    "time": "--time",
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "job-name": "run.name in the config",
    "output": "nothing: logs lie in the run folder",
    "error": "nothing: logs lie in the run folder",
    "open-mode": "nothing: logs lie in the run folder",
    "chdir": "nothing: relative paths count from where you submit",
    "signal": "signal_delay_s in the cluster's file",
    "requeue": "requeue in the cluster's file",
    "no-requeue": "requeue: {preempted: 0, timed_out: 0, node: 0, crash: 0} in the cluster's file",
    "array": "several values for a key of the config, which is a sweep",
    "kill-on-invalid-dep": "nothing: what waits for a run that failed is cancelled",
    "wrap": "nothing: the launcher writes the script",
    "wait": "--wait of the launcher, without --sbatch",
    "parsable": "nothing: the launcher reads sbatch's answer",
    "test-only": "--dry-run",
}


def collect(request: Request, cluster: Cluster, there: There) -> tuple[Options, Problems]:
    """The user's shell (SBATCH_CONSTRAINT), over that the cluster's file, over that the command line."""
    problems: Problems = []
    options: Options = {name: there.defaults[name] for name in NAMED if name in there.defaults}
    filed = [(key, value) for key, value in cluster.sbatch.items() if value is not False]
    options |= _readable(filed, problems)
    said = [(key, value) for item in request.sbatch for key, value in _key_and_value(item)]
    given = _readable(said, problems)
    for name in NAMED:
        if (value := getattr(request, name)) is None:
            continue
        problems += unreadable(f"--{name}", value)
        if given.setdefault(name, value) != value:
            problems.append((f"--{name} {value}", f"--sbatch {name}={given[name]} says otherwise; give one of them"))
    options |= given
    memory = [name for name in ("mem-per-cpu", "mem-per-gpu") if name in options]
    if memory and (request.mem_gb or cluster.mem_gb):
        whose = "--mem" if request.mem_gb else "mem_gb in the cluster's file"
        problems.append((f"--sbatch {memory[0]}", f"and {whose} say both how much memory; give one of them"))
    return options, problems


def unreadable(what: str, value: str) -> Problems:
    """A value that sbatch would read as something else, or as nothing."""
    if not value.strip():
        return [(what, "is empty; leave it out")]
    if not value.isprintable():
        return [(what, f"{value!r} has a line break or the like, which sbatch cannot read")]
    return []


def _key_and_value(item: str) -> Iterator[tuple[str, str | bool]]:
    key, equals, text = item.partition("=")
    yield key, text if equals else True


def _readable(given: list[tuple[str, str | bool]] | list[tuple[str, str | int | bool]], problems: Problems) -> Options:
    options: Options = {}
    for key, value in given:
        name = key.strip().lstrip("-").replace("_", "-")
        if not name.replace("-", "").isalnum():
            problems.append((f"--sbatch {key}", "is no name of an option; write key=value, as in constraint=a100"))
        elif len(name) == 1:
            problems.append((f"--sbatch {name}", "is short for an option; write its long name, as in constraint=a100"))
        elif name in _OURS:
            problems.append((f"--sbatch {name}", f"the launcher sets it; use {_OURS[name]}"))
        elif name == "gres" and "gpu" in str(value):
            problems.append((f"--sbatch gres={value}", "the launcher asks for GPUs; use --gpus-per-node"))
        elif told := unreadable(f"--sbatch {name}", str(value)):
            problems += told
        else:
            options[name] = value
    return options
