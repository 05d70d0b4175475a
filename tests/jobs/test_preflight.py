"""What is wrong with a node is told with its name; what is wrong with the user's command is told as that."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import job, preflight
from jobs.job import JobConfig
from jobs.preflight import Check, Preflight, judge, node_names
from retrieval_train import node
from retrieval_train.meeting import BadNode
from retrieval_train.node import Facts, Gpu, expanded
from retrieval_train.rundir import RunDir, read_json, write_json
from retrieval_train.world import Group, meet
from tests.processes import run_ranks
from tests.retrieval_train.test_rendezvous import at_a_new_port, new_meeting

H100 = Gpu("GPU-a", "H100", 78.0, 80.0)
GOOD = Facts("n1", 0.0, H100, {"runs_root": ("/runs", 500.0), "temporary files": ("/tmp", 50.0)}, {"torch": "2.15"})


def nodes(**of_last: Any) -> list[Facts]:
    """Three good nodes, the last of which differs."""
    return [
        dataclasses.replace(GOOD, node="n1"),
        dataclasses.replace(GOOD, node="n2"),
        dataclasses.replace(GOOD, **{"node": "n3", **of_last}),
    ]


def worst(ranks: list[Facts], device: Any = "auto", planned: int = 0) -> Check:
    checks = judge(ranks, device=device, gpus_per_node=planned)
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
            {"gpu": dataclasses.replace(H100, free_gib=30.0)},
            "error",
            ("n3",),
            "n3 30 of 80 GiB free (GPU-a); wanted are 90%",
        ),
        ({"gpu": dataclasses.replace(H100, free_gib=60.0)}, "warning", (), "n3 60 of 80 GiB free (GPU-a)"),
        (
            {"gpu": None, "problems": {"GPU": "RuntimeError: ECC"}},
            "error",
            ("n3",),
            "GPU cannot be looked at: on n3 Run",
        ),
        ({"problems": {"runs_root": "OSError: [Errno 116]"}}, "error", ("n3",), "runs_root cannot be looked at: on n3"),
        ({"gpu": H100, "node": "n2"}, "error", ("n2",), "n2: several ranks would share a GPU"),
        ({"gpu": dataclasses.replace(H100, name="A100")}, "warning", (), "of several kinds"),
        ({"disks": {"runs_root": ("/runs", 0.001)}}, "error", (), "/runs (runs_root) has 0.001 GB free on n3"),
        ({"disks": {"runs_root": ("/runs", 9.0)}}, "warning", (), "/runs (runs_root) has 9 GB free on n3"),
        (
            {"disks": {"temporary files": ("/tmp", 0.001)}},
            "error",
            ("n3",),
            "(temporary files) has 0.001 GB free on n3",
        ),
        ({"disks": {"temporary files": ("/tmp", 0.5)}}, "warning", (), "/tmp (temporary files) has 0.5 GB free on n3"),
        ({"disks": {"data workers": ("/dev/shm", 0.0)}}, "warning", (), "/dev/shm (data workers) has 0 GB free"),
        ({"began": -3.0}, "warning", (), "n3 -3.0 s"),
        ({"versions": {"torch": "2.14"}}, "error", ("n3",), "torch is 2.15 on n1, n2 and 2.14 on n3"),
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
    assert worst(without, planned=8).nodes == () and "8 GPUs a node were asked for" in worst(without, planned=8).words
    assert judge(without, device="cpu", gpus_per_node=8)[0].level == "ok"
    shared = [one for one in nodes() for _ in range(2)]
    assert worst(shared).nodes == () and "as many tasks a node as it has GPUs" in worst(shared).words
    full = [dataclasses.replace(one, disks={"runs_root": ("/runs", 0.0)}) for one in nodes()]
    assert worst(full).level == "error" and worst(full).nodes == ()
    for versions in (["1", "2"], ["1", "1", "2", "2"], ["1", "2", "3"]):  # no clear majority
        told = [dataclasses.replace(GOOD, node=f"n{n}", versions={"torch": v}) for n, v in enumerate(versions)]
        assert worst(told).level == "error" and worst(told).nodes == ()
    broken = [dataclasses.replace(one, gpu=None, problems={"GPU": "RuntimeError: no driver"}) for one in nodes()]
    assert worst(broken).nodes == () and worst(broken[:1]).nodes == ("n1",)
    denied = dataclasses.replace(GOOD, problems={"data.store.scratch": "PermissionError: [Errno 13]"})
    assert worst([denied]).nodes == ()
    drivers = [dataclasses.replace(one, versions={"CUDA driver": one.node}) for one in nodes()]
    assert worst(drivers).level == "warning"


def config(root: Path) -> JobConfig:
    return JobConfig.model_validate({"job": "noop", "run": {"name": "it", "device": "cpu"}, "runs_root": root})


def stale(path: Path) -> float:
    raise OSError(116, "Stale file handle", str(path))


def starts(world: Group, root: Path) -> list[tuple[str, str, Any]]:
    """(type, words, nodes) of starts in which the last rank's torch, disk or nothing is wrong."""
    names, is_last = ["n1", "n2"], world.rank == world.size - 1
    versions, free_gb = node._versions, node._free_gb
    found: list[tuple[str, str, Any]] = []
    for wrong in ("torch", "disk", "file system", "nothing"):
        if is_last and wrong == "torch":
            node._versions = lambda *, is_cpu: versions(is_cpu=is_cpu) | {"torch": "1.0"}
        if is_last and wrong == "disk":
            node._free_gb = lambda path: 0.002
        if is_last and wrong == "file system":
            node._free_gb = stale
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
    torch, disk, file_system, nothing = results[0]
    assert torch[0] == "ValueError" and "1.0 on n2" in torch[1] and torch[2] is None
    assert disk[0] == "BadNode" and disk[2] == ("n2",) and "(runs_root) has 0.002 GB free on n2" in disk[1]
    assert file_system[0] == "BadNode" and file_system[2] == ("n2",) and "n2 OSError: [Errno 116]" in file_system[1]
    assert nothing == ("", "", ())
    said = read_json(RunDir(tmp_path / "nothing").preflight)
    assert {check["level"] for check in said["checks"]} <= {"ok", "warning"}  # the disk that tests run on may be short
    assert [rank["node"] for rank in said["ranks"]] == ["n1", "n2"] and said["exchange"]["sum_mb_s"] > 0
    assert "not checked, for run.device is cpu" in [check["words"] for check in said["checks"]]
    assert any(check["level"] == "error" for check in read_json(RunDir(tmp_path / "disk").preflight)["checks"])


def on_two_nodes(world: Group) -> None:
    """The ranks, as SLURM would have started them on n1 and n2."""
    slurm = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "2", "SLURMD_NODENAME": f"n{world.rank + 1}"}
    os.environ |= slurm | {"RANK": str(world.rank), "WORLD_SIZE": "2"}


def without_a_disk(world: Group, root: Path) -> list[tuple[str, str, Any]]:
    """Starts of two nodes: the second, and both, find no model where the config says that it is."""
    on_two_nodes(world)
    found: list[tuple[str, str, Any]] = []
    for number, absent in enumerate(((1,), (0, 1))):
        at_a_new_port(world)
        run = RunDir(root / f"run{number}-{world.rank}")
        run.path.mkdir()
        run.config.write_text(json.dumps({"job": "centres", "run": {"name": "it"}, "model": str(root), "set": "food"}))
        try:
            if world.rank in absent:
                job._load_on_this_node(run)
            Preflight(config(root), run).look(meet(nodes=node_names()))
        except (ValueError, BadNode) as error:
            found.append((type(error).__name__, str(error), getattr(error, "nodes", None)))
        world.barrier()
    return found


def test_a_node_that_lacks_what_the_others_have_is_at_fault_and_what_all_lack_is_the_users(tmp_path: Path) -> None:
    for one, both in run_ranks(without_a_disk, 2, tmp_path):
        assert one[0] == "BadNode" and one[2] == ("n2",)
        assert "the run's config and data cannot be looked at: on n2" in one[1] and "no model.json" in one[1]
        assert both[0] == "ConfigError" and "no model.json" in both[1]


def without_a_disk_and_unchecked(world: Group, root: Path) -> tuple[str, tuple[str, ...]]:
    """The second of two nodes finds no model; the first does not ask, for the run's preflight is false."""
    on_two_nodes(world)
    preflight._SAID_WITH_GPU_S = 0.5
    at_a_new_port(world)
    meeting, told = None, ("", ())
    if world.rank == 0:
        meeting = meet(nodes=["n1", "n2"])
    else:
        with pytest.raises(BadNode) as refused:
            preflight.tell_problem(FileNotFoundError("no model.json"), nodes=["n1", "n2"])
        told = str(refused.value), refused.value.nodes
    world.barrier()
    del meeting
    return told


def test_a_node_that_nobody_asks_blames_itself(tmp_path: Path) -> None:
    _, (words, nodes) = run_ranks(without_a_disk_and_unchecked, 2, tmp_path)
    assert nodes == ("n2",) and words == "n2: the run's config and data cannot be looked at: no model.json"


def planned_for_gpus(world: Group, root: Path) -> str:
    run = RunDir(root / "planned")
    run.path.mkdir()
    write_json(run.plan, {"cwd": str(root), "gpus_per_node": 8})
    wants = config(root).model_copy(update={"run": config(root).run.model_copy(update={"device": "auto"})})
    assert world.meeting is not None
    with pytest.raises(ValueError) as told:
        Preflight(wants, run).look(world.meeting)
    return str(told.value)


def test_a_run_that_was_planned_for_gpus_does_not_begin_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (words,) = run_ranks(planned_for_gpus, 1, tmp_path)
    assert "8 GPUs a node were asked for, but torch sees no GPU" in words


def test_a_gpu_that_gives_an_error_is_a_problem_of_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Gpu:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore")

    monkeypatch.setattr(node, "_gpu", broken)
    found = node.look("n1", began=0.0, device="auto", folders={"runs_root": tmp_path}, is_first=True)
    assert found.problems == {"GPU": "RuntimeError: CUDA error: uncorrectable ECC error encountered"}
    assert found.gpu is None and set(found.disks) == {"runs_root"} and "our code" in found.versions
    assert Facts.of(dataclasses.asdict(found)) == found


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
