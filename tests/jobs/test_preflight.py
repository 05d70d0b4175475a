"""What is wrong with a node is told with its name; what is wrong with the user's command is told as that."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.job import JobConfig
from jobs.preflight import Check, Preflight, expanded, judge, node_names
from retrieval_train import node
from retrieval_train.meeting import BadNode
from retrieval_train.node import Facts, Gpu
from retrieval_train.rundir import RunDir, read_json
from retrieval_train.world import Group
from tests.processes import run_ranks
from tests.retrieval_train.test_rendezvous import new_meeting

H100 = Gpu("GPU-a", "H100", 78.0, 80.0)
GOOD = Facts("n1", 0.0, H100, {"runs_root": ("/runs", 500.0), "temporary files": ("/tmp", 50.0)}, {"torch": "2.15"})


def nodes(**of_last: Any) -> list[Facts]:
    """Three good nodes, the last of which differs."""
    return [
        dataclasses.replace(GOOD, node="n1"),
        dataclasses.replace(GOOD, node="n2"),
        dataclasses.replace(GOOD, **{"node": "n3", **of_last}),
    ]


def worst(ranks: list[Facts], device: Any = "auto") -> Check:
    checks = judge(ranks, device=device)
    bad = [check for check in checks if check.level != "ok"]
    assert len(bad) == 1, bad
    return bad[0]


def test_good_nodes_pass_and_each_check_has_its_line() -> None:
    checks = judge(nodes(), device="cuda")
    assert {check.level for check in checks} == {"ok"}
    assert [check.name for check in checks] == ["GPUs", "GPU memory", "disk", "disk", "clock", "versions"]
    assert checks[0].words == "3, one a rank: H100"


@pytest.mark.parametrize(
    ("of_last", "level", "at_fault", "words"),
    [
        ({"gpu": None}, "error", ("n3",), "n3: torch sees no GPU there"),
        (
            {"gpu": dataclasses.replace(H100, free_gib=60.0)},
            "error",
            ("n3",),
            "n3 60 of 80 GiB free (GPU-a); wanted are 90%",
        ),
        ({"gpu": H100, "node": "n2"}, "error", ("n2",), "n2: several ranks would share a GPU"),
        ({"gpu": dataclasses.replace(H100, name="A100")}, "warning", (), "of several kinds"),
        ({"disks": {"runs_root": ("/runs", 0.001)}}, "error", ("n3",), "/runs (runs_root) has 0.001 GB free on n3"),
        ({"disks": {"temporary files": ("/tmp", 0.5)}}, "warning", (), "/tmp (temporary files) has 0.5 GB free on n3"),
        ({"disks": {"data workers": ("/dev/shm", 0.0)}}, "warning", (), "/dev/shm (data workers) has 0 GB free"),
        ({"began": -3.0}, "warning", (), "n3 -3.0 s"),
        ({"versions": {"torch": "2.14"}}, "error", (), "torch is 2.15 on n1, n2 and 2.14 on n3"),
    ],
)
def test_a_node_that_differs_is_named(
    of_last: dict[str, Any], level: str, at_fault: tuple[str, ...], words: str
) -> None:
    check = worst(nodes(**of_last))
    assert (check.level, check.nodes) == (level, at_fault) and words in check.words


def test_what_is_so_on_all_nodes_is_the_users_to_correct() -> None:
    without = [dataclasses.replace(one, gpu=None) for one in nodes()]
    assert worst(without, "cuda").nodes == () and "no GPU on any node" in worst(without, "cuda").words
    assert judge(without, device="auto")[0] == Check("GPUs", "torch sees none on any node: the job runs on CPUs")
    shared = [one for one in nodes() for _ in range(2)]
    assert worst(shared).nodes == () and "as many tasks a node as it has GPUs" in worst(shared).words
    full = [dataclasses.replace(one, disks={"runs_root": ("/runs", 0.0)}) for one in nodes()]
    assert worst(full).level == "error" and worst(full).nodes == ()
    drivers = [dataclasses.replace(one, versions={"CUDA driver": one.node}) for one in nodes()]
    assert worst(drivers).level == "warning"


def config(root: Path) -> JobConfig:
    return JobConfig.model_validate({"job": "noop", "run": {"name": "it", "device": "cpu"}, "runs_root": root})


def starts(world: Group, root: Path) -> list[tuple[str, str, Any]]:
    """(type, words, nodes) of starts in which the last rank's torch, disk or nothing is wrong."""
    names, is_last = ["n1", "n2"], world.rank == world.size - 1
    versions, free_gb = node._versions, node._free_gb
    found: list[tuple[str, str, Any]] = []
    for wrong in ("torch", "disk", "nothing"):
        if is_last and wrong == "torch":
            node._versions = lambda *, is_cpu: versions(is_cpu=is_cpu) | {"torch": "1.0"}
        if is_last and wrong == "disk":
            node._free_gb = lambda path: 0.002
        meeting = new_meeting(world, names)
        before = Preflight(config(root), RunDir(root / wrong))
        try:
            before.look(meeting)
            before.exchange(Group(world.device, meeting=meeting))
            found.append(("", "", ()))
        except (ValueError, BadNode) as error:
            found.append((type(error).__name__, str(error), getattr(error, "nodes", None)))
        world.barrier()
        node._versions, node._free_gb = versions, free_gb
    return found


def test_all_ranks_of_a_start_refuse_it_in_the_same_words(tmp_path: Path) -> None:
    results = run_ranks(starts, 2, tmp_path)
    assert results[0] == results[1]
    torch, disk, nothing = results[0]
    assert torch[0] == "ValueError" and "1.0 on n2" in torch[1] and torch[2] is None
    assert disk[0] == "BadNode" and disk[2] == ("n2",) and "(runs_root) has 0.002 GB free on n2" in disk[1]
    assert nothing == ("", "", ())
    said = read_json(RunDir(tmp_path / "nothing").preflight)
    assert {check["level"] for check in said["checks"]} <= {"ok", "warning"}  # the disk that tests run on may be short
    assert [rank["node"] for rank in said["ranks"]] == ["n1", "n2"] and said["exchange"]["sum_mb_s"] > 0
    assert "not checked, for run.device is cpu" in [check["words"] for check in said["checks"]]
    assert any(check["level"] == "error" for check in read_json(RunDir(tmp_path / "disk").preflight)["checks"])


def alone(world: Group, root: Path) -> tuple[float, list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("jobs.preflight")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    began = time.monotonic()
    before = Preflight(config(root), RunDir(root / "alone"))
    assert world.meeting is not None
    before.look(world.meeting)
    before.exchange(world)
    return time.monotonic() - began, lines


def test_one_rank_is_looked_at_in_less_than_a_second_and_says_that_gpus_are_not(tmp_path: Path) -> None:
    ((took_s, lines),) = run_ranks(alone, 1, tmp_path)
    assert took_s < 1
    assert "pre-flight, GPUs: not checked, for run.device is cpu" in lines


def test_slurms_lists_of_nodes_are_read_and_used_only_where_slurm_placed_the_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert expanded("a[01-03,7]-x,b") == ["a01-x", "a02-x", "a03-x", "a7-x", "b"]
    assert expanded("r[1-2]n[09-10]") == ["r1n09", "r1n10", "r2n09", "r2n10"]
    assert expanded("") == []
    for name, value in {
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURMD_NODENAME": "n2",
        "WORLD_SIZE": "4",
        "RANK": "2",
    }.items():
        monkeypatch.setenv(name, value)
    assert node_names() == ["n1", "n2"]
    monkeypatch.setenv("RANK", "1")  # dealt out in turn
    assert node_names() == []
    monkeypatch.setenv("WORLD_SIZE", "2")  # ranks that somebody starts by hand inside a step of four
    assert node_names() == []
