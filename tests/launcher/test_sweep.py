"""Sweeps: which points there are, what their configs say, how they run, and what their table tells."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

import jobs
from jobs import job
from launcher import status, submit, yaml_reader
from launcher.clusters import cluster
from launcher.sweeps import points, sweep, sweep_table
from launcher.sweeps.sweep_table import Result
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir, read_json
from tests.launcher.conftest import ROOT, Repo, wait_until

EXTRA = Path(__file__).parent / "extra_jobs"
BASE = """\
job: maker
run: {name: it, device: cpu}
head: {name: margin, margin: 0.2}
"""
JUDGE = """\
job: judge
run: {name: unused, device: cpu}
model: nowhere
"""


def names(**values: Any) -> list[str]:
    return [point.name for point in made(**values)]


def made(**values: Any) -> list[sweep.Point]:
    return sweep.points({"base": "it.yaml", **values}, where="s.yaml", prefix="s")


# --- which points


def test_the_points_are_every_choice_of_every_axis_but_for_those_dropped() -> None:
    seeds, margins, steps = [0, 1, 2], [0.2, 0.3], [(3, 64), (6, 128)]
    found = made(
        run="{point}-{head.margin}-{steps}-{seed}",
        points={"one": {"rate": 1}, "two": {"rate": 2}},
        zip={"steps": [3, 6], "batch": [64, 128]},
        grid={"head.margin": margins, "seed": seeds},
        drop=[{"point": "two", "head.margin": 0.3}, {"steps": 3, "seed": 1}],
    )
    expected = []
    for rate, (step, batch), margin, seed in itertools.product([1, 2], steps, margins, seeds):
        if not (rate == 2 and margin == 0.3) and not (step == 3 and seed == 1):
            name = f"{['one', 'two'][rate - 1]}-{margin}-{step}-{seed}"
            values = {"rate": rate, "steps": step, "batch": batch, "head.margin": margin, "seed": seed}
            expected.append(values | {"run.name": name})
    assert [dict(point.overrides) for point in found] == expected


def test_a_name_is_made_of_all_that_varies_and_fits_a_folder() -> None:
    head = [{"name": "plain"}, None]
    assert names(grid={"head": head, "a.path": ["x/y z"], "b": [[1, 2], True], "rate": [1e-5]}) == [
        f"s-head{first}-pathx-y-z-b{second}-rate1e-05"
        for first, second in itertools.product(["plain", "none"], ["1-2", "true"])
    ]


@pytest.mark.parametrize("name", ["margin", "plain"])
def test_a_mapping_replaces_the_section_and_a_dotted_key_changes_one_value(name: str, tmp_path: Path) -> None:
    text = BASE + "data: {batch: 64, sets: [a, b]}\nlabel: it-${seed}\nseed: 0\n"
    (tmp_path / "it.yaml").write_text(text)
    section: dict[str, Any] = {"name": name, "tiny": 1e-05, "text": "1e-3, 'x' # \n", "odd": {"a": [None, True]}}
    (point,) = made(points={"p": {"head.more": 3, "head": section, "data.batch": 8, "seed": 7, "neck": None}})
    values = configs.read(tmp_path / "it.yaml", overrides=point.assignments())
    assert values == {
        "job": "maker",
        "run": {"name": "s-p", "device": "cpu"},
        "head": {**section, "more": 3},
        "data": {"batch": 8, "sets": ["a", "b"]},
        "label": "it-7",
        "seed": 7,
        "neck": None,
    }


def test_all_mistakes_of_a_file_are_told_at_once_each_with_its_path() -> None:
    with pytest.raises(ConfigError) as told:
        made(
            run="x{sed}",
            grid={"seed": [0, 0], "rate": [], "run.name": ["a"]},
            zip={"a": [1, 2], "b": [1], "seed": [1, 2]},
            points={"p": {"a": 1, "not a key": 2}},
            drop=[{"sede": 1}, {"seed": 5}, {}],
        )
    assert {path: text.partition(";")[0] for path, text in told.value.problems} == {
        "grid.run.name": "cannot vary: `run` names the points",
        "points.p.not a key": "'not a key' is no key of a config",
        "grid.seed": "zip changes it, too",
        "grid.rate": "has no value",
        "zip": "its keys walk in step and need as many values each",
        "zip.a": "points changes it, too",
        "run": "{sed} is nothing that varies",
        "drop.0.sede": "is nothing that varies",
        "drop.1.seed": "5 is none of its values: 1, 2, 0, 0",
        "drop.2": "is empty: it would drop every point",
    }
    assert ("grid.seed", "has 0 twice") in told.value.problems


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "grid  nothing varies; give grid, zip, points, random, folds or seeds"),
        ({"grd": {"seed": [1]}}, "grd  unknown key; did you mean grid?"),
        ({"grid": {"seed": 3}}, "grid.seed  3 is not allowed: input should be a valid list"),
        ({"grid": {"seed": [1, 2]}, "run": "same"}, "2 points are called 'same'; put {seed} into run"),
        ({"grid": {"seed": [1]}, "run": "a{seed"}, "run  'a{seed' is not readable"),
        ({"grid": {"seed": [1]}, "run": "a/{seed}"}, "run  'a/1' is no name of a run"),
        ({"grid": {"seed": [1]}, "drop": [{"seed": 1}]}, "drop  drops every point"),
        ({"points": {"a b": {}}}, "points.a b"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as told:
        made(**values)
    assert words in re.sub(r" {2,}", "  ", str(told.value))


@pytest.mark.parametrize(
    ("item", "texts"),
    [
        ("a=1,2", ["1", "2"]),
        ("a=[1,2]", ["[1,2]"]),
        ("a=[1,2],[3]", ["[1,2]", "[3]"]),
        ("a={b: 1, c: 2},null", ["{b: 1, c: 2}", "null"]),
        ("a='x, y'", ["'x, y'"]),
        ("a=it's here,it's there", ["it's here", "it's there"]),
        ("a=${oc.env:A,b}", ["${oc.env:A,b}"]),
        ('a="it\'s, so",b=c', ['"it\'s, so"', "b=c"]),
    ],
)
def test_commas_divide_values_but_not_within_lists_mappings_and_quoted_texts(item: str, texts: list[str]) -> None:
    assert points.several(item) == ("a", texts)


def test_the_example_of_the_docs_has_as_many_points_as_it_says() -> None:
    text = (ROOT / "docs/sweeps.md").read_text()
    example, *others = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    found = sweep.points(yaml.safe_load(example), where="docs", prefix="x")
    assert f"= {len(found)} points" in example
    assert len({point.name for point in found}) == len(found)
    (one, *more) = [yaml.load(other, Loader=yaml_reader.Loader) for other in others]
    random, *_ = sweep.points({"base": "x", **one}, where="docs", prefix="x")
    assert one["random"]["count"] == 20 and len(random.name) < 80
    for other in more:
        seeds = {} if "search" in other else {"seeds": 1}
        assert sweep.points({"base": "x", **seeds, **other}, where="docs", prefix="x")


@pytest.mark.parametrize("file", sorted((ROOT / "configs/sweep").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_points_of_our_own_sweeps_are_configs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRIEVAL_WEIGHTS", "/weights")
    monkeypatch.setenv("RETRIEVAL_DATA", "/data")
    found = points.find(str(file), [], is_named=True)
    assert found is not None and len(found.points) > 1
    for point in found.points:
        values = configs.read(found.base, overrides=point.assignments())
        checked = configs.check(job.find(values["job"], where=str(file)).Config, values, where=point.name)
        assert checked.run.name == point.name


# --- what the table says


@pytest.mark.parametrize("values", [[0.5, 0.6], [0.61, 0.64, 0.65], [1.0, 1.0, 1.0, 1.0], [0.1, 0.9, 0.4, 0.2, 0.6]])
def test_the_interval_is_that_of_students_t(values: list[float]) -> None:
    found = sweep_table.estimate(values)
    n, mean = len(values), sum(values) / len(values)
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)) / math.sqrt(n)
    assert found.mean is not None and found.half is not None
    low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=error) if error else (mean, mean)
    assert (found.n, found.mean - found.half, found.mean + found.half) == pytest.approx((n, low, high))


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert sweep_table.estimate([0.5]) == sweep_table.Estimate(1, 0.5, None)
    assert sweep_table.estimate([]) == sweep_table.Estimate(0, None, None)


def test_rows_are_ordered_by_the_mean_over_seeds_and_missing_points_are_shown_last() -> None:
    def result(row: str, seed: int, value: float | None) -> Result:
        metrics = {} if value is None else {"m": value}
        return Result(f"{row}-{seed}", row, "runs/x", "failed" if value is None else "done", None, True, metrics)

    found = [result("a", 0, 0.2), result("gone", 0, None), result("b", 0, 0.1), result("b", 1, 0.5)]
    found += [result("a", 1, None)]
    assert sweep_table.cells(found, ["m"])[1:] == [
        ["b (best)", "2", "0.300 ± 2.541", ""],
        ["a", "1", "0.200", "a-1 (failed)"],
        ["gone", "0", "--", "gone-0 (failed)"],
    ]


# --- the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep, its base and its evaluation, on a machine without SLURM and GPUs."""
    monkeypatch.setattr(jobs, "__path__", [*jobs.__path__, str(EXTRA)])
    monkeypatch.setattr(cluster, "visible_gpus", lambda: ())
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path


def write(folder: Path, text: str = "grid: {head.margin: [0.1, 0.2], seed: [0, 1]}\n") -> None:
    (folder / "sweeps").mkdir(exist_ok=True)
    (folder / "sweeps/margin.yaml").write_text(
        f"job: sweep\nbase: ../maker.yaml\nrun: m{{head.margin}}-s{{seed}}\nthen: judge.yaml\n{text}"
    )
    (folder / "maker.yaml").write_text(BASE)
    (folder / "sweeps/judge.yaml").write_text(JUDGE)


SWEEP = ["--sweep", "sweeps/margin.yaml"]


@pytest.mark.parametrize(
    ("command", "there_are"),
    [
        (SWEEP, ["m0.1-s0", "m0.1-s1", "m0.2-s0", "m0.2-s1"]),
        (["config=sweeps/margin.yaml"], ["m0.1-s0", "m0.1-s1", "m0.2-s0", "m0.2-s1"]),
        ([*SWEEP, "seed=7"], ["m0.1-s7", "m0.2-s7"]),
        ([*SWEEP, "seed=1e-3,2", "head.margin=0.3"], None),
        ([*SWEEP, "seed=3,2", "head.margin=0.3", "then.top=5", "rate=2.0"], ["m0.3-s3", "m0.3-s2"]),
        (["config=maker.yaml", "head.margin=0.3,1e-1", "seed=1"], ["it-margin0.3", "it-margin0.1"]),
        (["config=maker.yaml", "head={name: plain},{name: margin}"], ["it-headplain", "it-headmargin"]),
    ],
)
def test_a_dry_run_lists_the_points_and_writes_nothing(
    command: list[str], there_are: list[str] | None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    code = submit.main([*command, "--dry-run"])
    told = capsys.readouterr()
    assert sorted(here.rglob("*")) == before
    if there_are is None:
        assert "seed" in told.err and code == 2, "0.001 is no seed"
        return
    assert code == 0, told.err
    assert re.findall(r"^(\S+) +new +runs/\1-[0-9a-f]{8}$", told.out, flags=re.MULTILINE) == there_are


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([*SWEEP, "config=maker.yaml"], "config=maker.yaml --sweep sweeps/margin.yaml; give one file"),
        (["--sweep", "sweeps/margn.yaml"], "no such file; did you mean sweeps/margin.yaml?"),
        (["--sweep", "maker.yaml"], "job  'maker': this is no sweep"),
        ([*SWEEP, "run.name=x"], "run.name=x  names the points"),
        ([*SWEEP, "head=null"], "head=null  would undo what varies: head.margin"),
        ([*SWEEP, "seed=1,"], "seed=1,  has an empty value"),
        ([*SWEEP, "hed.margin=0.5"], "hed  unknown key; did you mean head?"),
        ([*SWEEP, "head.margin=0.1,wide"], "head.margin  'wide' is text where a number is needed (points m"),
        ([*SWEEP, "then.tpo=3"], "then.tpo  unknown key; did you mean top?"),
        (["config=maker.yaml", "seed=0,1", "then.top=3"], "then.top=3  the sweep has no `then`"),
        ([*SWEEP, "--detach"], "--detach  this command itself starts one point after the other"),
        ([*SWEEP, "--print-command"], "--print-command  prints one run"),
        ([*SWEEP, "--nodes", "2"], "--nodes 2  needs a SLURM"),
        (["config=maker.yaml", "seed=[0,1"], "seed=[0,1"),
    ],
)
def test_a_mistake_is_told_once_before_anything_is_written(
    command: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert submit.main(command) == 2
    told = capsys.readouterr().err
    assert told.count(words) == 1, told
    assert "1 problem\n" in told
    assert sorted(here.rglob("*")) == before


def test_a_base_or_evaluation_that_is_not_there_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (here / "sweeps/margin.yaml").read_text()
    (here / "sweeps/margin.yaml").write_text(text.replace("maker.yaml", "makr.yaml"))
    assert submit.main(SWEEP) == 2
    assert "no such file; did you mean maker.yaml?" in capsys.readouterr().err
    (here / "sweeps/margin.yaml").write_text(text.replace("judge.yaml", "../maker.yaml"))
    assert submit.main(SWEEP) == 2
    assert "then  maker.yaml is of job maker, which takes no model" in capsys.readouterr().err
    (here / "sweeps/margin.yaml").write_text(text.replace("m{head.margin}", "{head.margin}"))
    assert submit.main(SWEEP) == 2
    assert "quote it: run: '{...}'" in capsys.readouterr().err


@pytest.fixture
def sweeping(repo: Repo) -> Repo:
    for name in ("maker", "judge"):
        shutil.copy(EXTRA / f"{name}.py", repo.path / "jobs")
    write(repo.path)
    return repo


def test_points_run_one_after_the_other_with_the_code_of_their_submit_and_end_in_a_table(sweeping: Repo) -> None:
    write(sweeping.path, "points: {bad: {fails_with: flag}, good: {edits_code: true}}\n")
    file = sweeping.path / "sweeps/margin.yaml"
    file.write_text(file.read_text().replace("m{head.margin}-s{seed}", "'{point}'"))
    (sweeping.path / "flag").touch()

    first = sweeping.python("launcher/submit.py", *SWEEP, "then.top=2")
    assert first.code == 1, first.err
    assert re.findall(r"== (point .*)\n", first.err) == [
        "point 1 of 2: bad",
        "point 2 of 2: good",
        "point 2 of 2: evaluation of good",
    ]
    assert first.err.count("there is no such margin") == 1
    assert "== 1 failed or stopped: bad; the same command tries them again" in first.err
    assert sweeping.run("good-evaluation").state == "done", "it does not see the edits of the working tree"

    for name in ("maker", "judge"):
        shutil.copy(EXTRA / f"{name}.py", sweeping.path / "jobs")
    table = json.loads(sweeping.status("sweep", SWEEP[1], "then.top=2", "--json").out)
    found = [(row["name"], row["estimates"]["R@1"]["mean"], row["missing"]) for row in table["rows"]]
    assert found == [("good", 2.2, []), ("bad", None, ["bad (failed: user error)"])]

    (sweeping.path / "flag").unlink()
    second = sweeping.python("launcher/submit.py", *SWEEP, "then.top=2")
    assert second.code == 0, second.err
    assert second.out.count("done already") == 2
    assert "== 2 points; their table: python launcher/status.py sweep sweeps/margin.yaml then.top=2" in second.err
    shown = sweeping.status("sweep", SWEEP[1], "then.top=2", "--markdown", "--metric", "R@1")
    assert "Student t over n seeds and folds" in shown.out
    assert shown.out.count("| 1 | 2.200 |\n") == 2


def test_ctrl_c_stops_the_point_and_starts_no_more(repo: Repo) -> None:
    child = repo.start("launcher/submit.py", "config=noop.yaml", "does=wait", "seed=0,1")
    wait_until(lambda: any(repo.path.glob("runs/it-seed0/progress.json")))
    run = repo.run("it-seed0")
    wait_until(lambda: read_json(run.progress)["done"] > 0)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=30)
    assert child.returncode == 1, told
    assert f"runs/{run.path.name} saves and stops" in told
    assert "== stopped: 1 of 2 points were not begun; the same command goes on" in told
    assert [path.name for path in repo.path.glob("runs/it-*-*")] == [run.path.name]


def test_runs_of_another_config_are_shown_by_their_name_with_a_footnote(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here, "grid: {head.margin: [0.1], seed: [0]}\n")
    file = here / "sweeps/margin.yaml"
    file.write_text(file.read_text().replace("then: judge.yaml\n", ""))
    old = RunDir(here / "runs/m0.1-s0-00000000")
    old.set_state("done")
    old.report.write_text('{"metrics": {"merged": {"mMP@5": 0.25, "R@1": 0.5}}}')
    (here / "runs/m0.1-s0").symlink_to(old.path.name)
    assert status.main(["sweep", SWEEP[1]]) == 0
    told = capsys.readouterr().out
    assert re.search(r"head.margin=0.1 +1 +0.250 +0.500", told)
    assert "found by their name: m0.1-s0" in told
    assert status.main(["sweep", SWEEP[1], "--metric", "mAP"]) == 2
    assert "--metric  'mAP' is not in the report; there are: mMP@5, R@1" in capsys.readouterr().err
    assert status.main(["sweep", "maker.yaml"]) == 2
    assert "maker.yaml is no sweep" in capsys.readouterr().err
