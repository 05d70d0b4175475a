"""Pipelines: what a file means and what is wrong with it; and as a command, with real runs of the noop job."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.pipelines import deferred, pipeline, pipeline_run, pipeline_stages
from launcher.pipelines.pipeline import Pipeline
from launcher.plan import Plan
from launcher.snapshot import Code
from launcher.ticket import SlurmTicket
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir, read_json
from tests.launcher.conftest import Repo, wait_until

ROOT = Path(__file__).resolve().parents[2]


def made(stages: dict[str, Any], *overrides: str, **more: Any) -> Pipeline:
    values = {"job": "pipeline", "stages": stages, **more}
    return pipeline.make(values, overrides, file=Path("pipelines/mine.yaml"))


def stage(*needs: str, **values: Any) -> dict[str, Any]:
    return {"config": "any.yaml", "needs": list(needs), "set": values}


# --- what a file means


def test_stages_come_after_those_that_they_need_whether_listed_or_named_in_a_value() -> None:
    found = made({"report": stage(model="{train}/export"), "train": stage("shards"), "shards": stage()})
    assert [step.name for step in found.steps] == ["shards", "train", "report"]
    shards, train, report = found.steps
    assert (shards.needs, train.needs, report.needs) == ((), ("shards",), ("train",))
    assert (set(train.unnamed), set(report.unnamed)) == ({"shards"}, set())
    assert (found.name, report.overrides) == ("mine", ('model="{train}/export"',))
    assert pipeline.fill({"a": ["{train}/x", 3, "${train}"]}, {"train": Path("/r")}) == {"a": ["/r/x", 3, "${train}"]}


def test_the_command_line_reaches_one_stage_or_all() -> None:
    stages = {"a": stage(seed=3), "b": stage(**{"head": {"name": "arcface"}, "head.margin": 0.2})}
    said = ("b.seed=1", "run.device=cpu", "b.model={a}/export", "b.resources.time=2:00:00", "name=other")
    a, b = made(stages, *said).steps
    assert a.overrides == ("seed=3", "run.device=cpu")
    sets = ("head=null", 'head={"name": "arcface"}', "head.margin=0.2")
    assert b.overrides == (*sets, "run.device=cpu", "seed=1", 'model="{a}/export"')
    assert b.needs == ("a",)
    assert (b.resources.given(), a.resources.given()) == ({"time": 120}, {})
    assert made(stages, *said).name == "other"


def test_a_stage_without_gpus_takes_no_cores_by_the_gpu_from_the_command_line() -> None:
    (step,) = made({"a": {"config": "a.yaml", "resources": {"gpus_per_node": 0, "sbatch": ["x=1"]}}}).steps
    assert step.resources.given() == {"cpus_per_gpu": None, "gpus_per_node": 0, "sbatch": ["x=1"]}


@pytest.mark.parametrize(
    ("stages", "overrides", "told"),
    [
        (
            {"a": stage("b"), "b": stage("c"), "c": stage(model="{a}/x")},
            (),
            "stages  they wait for each other: a needs ",
        ),
        ({"train": stage(), "b": stage("tarin")}, (), "stages.b.needs  'tarin' is no stage; did you mean train? there"),
        ({"train": stage(), "b": stage(x="{trian}")}, (), "stages.b.set  {trian} names no stage; did you mean train?"),
        ({"run": stage(), "a.b": stage()}, (), "stages.run  run=... on the command line means something else"),
        ({"run": stage(), "a.b": stage()}, (), "stages.a.b  is no name of a stage: at most 40 letters"),
        ({}, (), "stages  there is none"),
        ({"a": stage()}, ("seed=1", "b.seed=1"), "b.seed=1  begins with no stage; there are: a; as a.b.seed=..."),
        ({"a": stage()}, ("a.seed=0,1",), "a.seed=0,1  gives several values, and a pipeline is no sweep"),
        ({"a": stage()}, ("a.resources.nodes=0",), "stages.a.resources.nodes  0 is not allowed"),
        ({"a": stage()}, ("a.resources.time=soon",), "stages.a.resources.time  'soon' is no time"),
        ({"a": stage()}, ("name=a b",), "name=a b  is no name"),
        ({"a": {"set": 3}}, (), "stages.a.config  is required and missing"),
    ],
)
def test_mistakes_are_told(stages: dict[str, Any], overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(stages, *overrides)
    lines = [" ".join(line.split()) for line in str(error.value).splitlines()]
    assert any(line.startswith(" ".join(told.split())) for line in lines), str(error.value)


def test_times_of_a_file_are_hours_as_sbatch_reads_them(tmp_path: Path) -> None:
    text = "job: pipeline\nstages: {a: {config: a.yaml, resources: {time: 2:00:00}}}\n"
    (tmp_path / "it.yaml").write_text(text)
    found = pipeline.find(str(tmp_path / "it.yaml"), [])
    assert found is not None
    assert found.steps[0].resources.time == 120
    (tmp_path / "it.yaml").write_text(text + "stages: {}\n")
    with pytest.raises(ConfigError, match="'stages' is there twice"):
        pipeline.find(str(tmp_path / "it.yaml"), [])


@pytest.mark.parametrize("file", sorted((ROOT / "configs/pipeline").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_pipelines_of_the_repo_are_whole(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRIEVAL_DATA", "RETRIEVAL_WEIGHTS"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = pipeline.find(str(file), [])
    assert found is not None
    stages = pipeline_stages.look(found)
    assert stages[0].step.name == "shards"
    assert set(pipeline_stages.states(stages).values()) == {"not begun"}
    groups = [one.values["tracking"]["wandb"]["group"] for one in stages if one.values["job"] == "train"]
    assert set(groups) == {file.stem}


def test_a_stage_that_waits_keeps_its_config_and_gets_the_folders_of_the_runs_when_its_turn_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, folder = tmp_path / "it.yaml", tmp_path / "runs/.stages/pipe/it-1"
    file.write_text("job: shards\nrun: {name: it}\narguments: [show, '{first}/set']\n")
    needed = RunDir(tmp_path / 'runs/a "b" {c}')
    (tmp_path / "first").mkdir()
    (tmp_path / "first/run").symlink_to(needed.path)
    (tmp_path / "code").mkdir()
    plan = Plan("shards", tmp_path / "runs/it", "slurm", "slurm", 1, 1, 0, None, None, None, 120, None, None, None)
    values, needs, belongs_to = configs.read(file), {"first": tmp_path / "first"}, {"pipeline": "pipe", "stage": "it"}
    waiting = deferred.Stage(folder, file, [], needs, plan, "submit", belongs_to, values=values)
    deferred.write(waiting, Code(tmp_path / "code", {}), after="afterok:3:4_1")
    assert deferred.after(folder) == ["3", "4_1"]

    file.write_text("job: edited meanwhile\n")
    run = deferred.begin(folder, "7")
    assert configs.read(run.config)["arguments"] == ["show", f"{needed.path}/set"]
    assert (run.state, read_json(run.ticket)) == ("queued", {"job_id": "7"})
    assert read_json(run.plan)["pipeline"] == "pipe"
    assert deferred.begin(folder, "7") == run, "queued again, it does not ask SLURM about itself"
    found = deferred.run_of(folder)
    assert found is not None
    assert found.path == run.path.resolve() == (tmp_path / "runs/it").resolve()


def test_why_a_stage_cannot_begin_is_written_down_whatever_it_is(tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text(f'{{"cwd": "{tmp_path}/gone"}}')
    with pytest.raises(FileNotFoundError):
        deferred.begin(tmp_path, "7")
    assert (tmp_path / "error.txt").read_text().startswith("FileNotFoundError: ")


def test_a_stage_waits_for_jobs_only_where_there_are_any() -> None:
    """sbatch takes no bare afterok."""
    assert pipeline_run._all_done({"a": SlurmTicket("3"), "b": SlurmTicket("4_1")}) == "afterok:3:4_1"
    assert pipeline_run._all_done({}) == ""


def test_ranks_that_a_stage_cannot_use_are_told_with_its_name_also_of_one_that_waits(piped: Repo) -> None:
    (piped.path / "shards.yaml").write_text("job: shards\nrun: {name: made}\narguments: [show, '{first}/set']\n")
    stages = {**STAGES, "made": {"config": "shards.yaml"}}
    (piped.path / "pipe.yaml").write_text(yaml.safe_dump({"job": "pipeline", "stages": stages}, sort_keys=False))
    ended = piped.python(*SUBMIT, "--dry-run", "--gpus-per-node", "0", "--tasks-per-node", "2")
    assert ended.code == 2
    assert "made.job  shards works in one process, not 2; --nodes 1" in ended.err, ended.err


# --- as a command

STAGES = {
    "first": {"config": "noop.yaml", "set": {"run.name": "first", "note": "one"}},
    "second": {"config": "noop.yaml", "set": {"run.name": "second", "note": "{first}/export"}},
    "other": {"config": "noop.yaml", "set": {"run.name": "other"}},
    "last": {"config": "noop.yaml", "needs": ["other"], "set": {"run.name": "last", "note": "{second}"}},
}


@pytest.fixture
def piped(repo: Repo) -> Repo:
    (repo.path / "pipe.yaml").write_text(yaml.safe_dump({"job": "pipeline", "stages": STAGES}, sort_keys=False))
    return repo


SUBMIT = ("launcher/submit.py", "config=pipe.yaml")


def starts(repo: Repo) -> dict[str, int]:
    found = {name: repo.path / "runs" / name / "starts/0" for name in STAGES}
    return {name: len(list(path.iterdir())) if path.exists() else 0 for name, path in found.items()}


def test_a_failed_stage_takes_along_what_needs_it_and_the_same_command_goes_on(piped: Repo) -> None:
    assert piped.submit("run.name=first", "note=one").code == 0, "a stage is a run like any other"
    failed = piped.python(*SUBMIT, "second.does=refuse")
    assert failed.code == 1, failed.err
    assert f"done already: runs/{piped.run('first').path.name}" in failed.out
    assert starts(piped) == {"first": 1, "second": 1, "other": 1, "last": 0}
    assert "== last is not begun: it needs second, which failed" in failed.err
    assert "== failed or stopped: second; not begun, because they need it: last; the same command goes on" in failed.err

    dry = piped.python(*SUBMIT, "second.does=refuse", "--dry-run")
    shown = piped.status("pipeline", "pipe.yaml", "second.does=refuse")
    assert shown.code == 0, shown.err
    assert dry.out.startswith(shown.out)
    rows = [" ".join(line.split()) for line in shown.out.splitlines()]
    second, last = (next(row for row in rows if row.startswith(f"{name} ")) for name in ("second", "last"))
    assert second.startswith("second failed first runs/second-")
    assert second.endswith("the set 'food' has no class with two images; make it with --min-images 2")
    assert last == "last not begun: second failed other, second -"
    assert "job      noop\nwhere    local (this machine)\n" in dry.out

    done = piped.python(*SUBMIT)
    assert done.code == 0, done.err
    assert starts(piped) == {"first": 1, "second": 1, "other": 1, "last": 1}
    first, second_run = (piped.run(name) for name in ("first", "second"))
    assert f"note: {first.path}/export\n" in second_run.config.read_text()
    assert read_json(second_run.plan)["pipeline"] == "pipe"
    assert read_json(second_run.plan)["stage"] == "second"
    assert "== 4 stages; how they stand: python launcher/status.py pipeline pipe.yaml" in done.err

    again = piped.python(*SUBMIT, "--again", "--dry-run")
    assert [line.split()[:2] for line in again.out.splitlines()[1:3]] == [["first", "done"], ["second", "not"]]


def test_ctrl_c_stops_the_stage_and_begins_no_more(piped: Repo) -> None:
    command = (*SUBMIT, "second.does=stop_once", "second.step_s=60", "second.steps=1")
    child = piped.start(*command)
    wait_until(lambda: any(piped.path.glob("runs/second/starts/0/*.json")))
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=30)
    assert child.returncode == 1, told
    assert "== stopped: 2 of 4 stages were not begun; the same command goes on" in told
    assert starts(piped) == {"first": 1, "second": 1, "other": 0, "last": 0}


def test_every_mistake_is_told_before_anything_starts(piped: Repo) -> None:
    said = ("first.nots=1", "second.steps=soon", "last.does=fly", "other.note=missing", "other.resources.partition=x")
    ended = piped.python(*SUBMIT, *said)
    assert ended.code == 2
    lines = [" ".join(line.split()) for line in ended.err.splitlines()]
    assert lines[0] == "pipe.yaml: 4 problems"
    assert lines[1].startswith("first.nots unknown key; did you mean note?")
    assert lines[2].startswith("second.steps 'soon' is text where a number is needed")
    assert lines[3] == "other.note 'missing' is a set that is not there"
    assert lines[4].startswith("last.does 'fly' is not allowed")
    assert not (piped.path / "runs").exists()
    ended = piped.python(*SUBMIT, said[-1], "--detach")
    assert ended.code == 2
    assert "--detach  this command itself starts one stage after the other" in ended.err
    ended = piped.python(*SUBMIT, said[-1])
    assert "other: --partition x  is for SLURM, and this run is local" in ended.err


def test_what_a_stage_that_is_not_done_may_still_make_is_no_problem_yet(piped: Repo) -> None:
    ended = piped.python(*SUBMIT, "last.note=missing", "--dry-run")
    assert ended.code == 0, ended.err
    ended = piped.python(*SUBMIT, "second.note=missing", "--dry-run")
    assert "second.note  'missing' is a set that is not there" in ended.err
