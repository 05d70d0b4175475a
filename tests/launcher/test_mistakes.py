"""What people get wrong: one clear message, exit code 2, and nothing written."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import jobs
from launcher import submit
from launcher.clusters import cluster
from tests.launcher.conftest import CONFIG, program


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the config of the job `noop`, on a machine without SLURM and GPUs."""
    monkeypatch.setattr(jobs, "__path__", [*jobs.__path__, str(Path(__file__).parent / "extra_jobs")])
    monkeypatch.setattr(cluster, "visible_gpus", lambda: ())
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noop.yaml").write_text(CONFIG)
    return tmp_path


OURS = "config=noop.yaml"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], "config  is required and missing; give one file, as config=configs/train/demo.yaml"),
        (["config=a.yaml", "config=b.yaml"], "config  config=a.yaml config=b.yaml; give one file"),
        (["config=nop.yaml"], "no such file; did you mean noop.yaml?"),
        ([OURS, "stepz=3"], "stepz  unknown key; did you mean steps?"),
        ([OURS, "steps", "3"], "not of the form key=value"),
        ([OURS, "--steps", "3"], "unrecognized arguments: --steps"),
        ([OURS, "job=nop"], "'nop' is unknown; did you mean noop?"),
        ([OURS, "note=missing"], "note  'missing' is a set that is not there"),
        ([OURS, "run.name=a/b"], "run.name  'a/b' is not allowed"),
        ([OURS, "--nodes", "0"], "argument --nodes: '0' is not a whole number from 1 up"),
        ([OURS, "--gpus-per-node", "two"], "argument --gpus-per-node: 'two' is not a whole number"),
        ([OURS, "--mem", "-4"], "argument --mem: '-4' is not a number above 0"),
        ([OURS, "--wait", "--detach"], "argument --detach: not allowed with argument --wait"),
        (
            [OURS, "--nodes", "4"],
            "--nodes 4  needs a SLURM; there is none here (no sbatch on PATH); run on this machine",
        ),
        ([OURS, "--nodes", "3", "--cluster", "local"], "--nodes 3  needs a SLURM; cluster local is this machine"),
        (
            [OURS, "--gpus-per-node", "3", "run.device=auto"],
            "--gpus-per-node 3  this machine shows no GPU; --tasks-per",
        ),
        ([OURS, "--gpus-per-node", "2"], "--gpus-per-node 2  run.device is cpu; --tasks-per-node 2 takes no GPU"),
        ([OURS, "run.device=cuda"], "run.device  cuda needs a GPU, and the plan has none"),
        ([OURS, "--cluster", "slrum"], "--cluster slrum  no such cluster; did you mean slurm? there are: allocation, "),
        ([OURS, "--cluster", "slurm"], "--cluster slurm  there is no SLURM here (no sbatch on PATH); --cluster local"),
        ([OURS, "--cluster", "mine.yaml"], "mine.yaml: 1 problem"),
        ([OURS, "--partition", "gpu"], "--partition gpu  is for SLURM, and this run is local"),
        ([OURS, "--sbatch", "constraint=a100"], "--sbatch constraint=a100  is for SLURM"),
        ([OURS, "runs_root=a%b"], "has '%', which schedulers read as something else"),
    ],
)
def test_a_mistake_is_told_in_one_message_and_writes_nothing(
    command: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert exit_code(command) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.out == ""
    assert "Traceback" not in told.err
    assert sorted(here.rglob("*")) == before


def test_all_mistakes_of_a_plan_are_told_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([OURS, "--nodes", "4", "--qos", "long", "--mem", "4"]) == 2
    told = capsys.readouterr().err
    assert "3 problems" in told
    assert "--nodes 4" in told
    assert "--qos long" in told
    assert "--mem 4" in told


def test_a_real_folder_under_the_name_of_the_link_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs/it").mkdir(parents=True)
    assert exit_code([OURS]) == 2
    assert f"{Path('runs/it')} is a real folder or file" in capsys.readouterr().err
    assert list((here / "runs").iterdir()) == [here / "runs/it"]


def test_sbatch_that_knows_no_controller_is_no_slurm(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(here, "sbatch", "exit 1")
    program(here, "scontrol", "echo 'scontrol: fatal: no configuration' >&2; exit 1")
    assert exit_code([OURS, "--nodes", "2"]) == 2
    told = capsys.readouterr().err
    assert "none here (sbatch is there, and knows no controller: scontrol: fatal: no configuration)" in told
    assert exit_code([OURS, "--dry-run"]) == 0
    assert "local (this machine)" in capsys.readouterr().out


DOWN = "echo 'Slurmctld(primary) at head is DOWN'; echo '** RESTORE SLURMCTLD **'; exit 1"
SILENT = {
    "down": (DOWN, "Slurmctld(primary) at head is DOWN"),
    "busy": ("/bin/sleep 60; /bin/true", "`scontrol ping` took more than 0.3 s"),
}


@pytest.mark.parametrize(("scontrol", "words"), SILENT.values(), ids=SILENT)
def test_a_run_does_not_begin_on_the_login_node_because_the_controller_is_silent(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scontrol: str,
    words: str,
) -> None:
    program(here, "sbatch", "exit 1")
    program(here, "scontrol", scontrol)
    quick = partial(cluster.why_no_slurm, timeout_s=0.3, patience_s=0)
    monkeypatch.setattr(cluster, "why_no_slurm", quick)
    assert exit_code([OURS]) == 2
    assert f"SLURM's controller does not answer: {words}; submit later, or run on" in capsys.readouterr().err
    assert exit_code([OURS, "--cluster", "local", "--dry-run"]) == 0
    assert "local (this machine)" in capsys.readouterr().out


def test_a_controller_that_is_back_in_a_moment_is_asked_again(here: Path) -> None:
    program(here, "sbatch", "exit 1")
    once = f"if [ ! -e '{here}/asked' ]; then > '{here}/asked'; {DOWN}; fi"
    program(here, "scontrol", f"{once}; echo 'Slurmctld(primary) at head is UP'")
    assert cluster.why_no_slurm() is None


def test_a_mistake_in_a_clusters_file_names_the_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.yaml").write_text("scheduler: local\ngpus_per_nod: 4\n")
    assert exit_code([OURS, "--cluster", "mine.yaml"]) == 2
    assert "gpus_per_nod  unknown key; did you mean gpus_per_node?" in capsys.readouterr().err


def test_a_local_cluster_cannot_ask_for_what_only_slurm_gives(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.yaml").write_text("scheduler: local\nmem_gb: 4\nsetup: [module load cuda]\n")
    assert exit_code([OURS, "--cluster", "mine.yaml"]) == 2
    assert "mem_gb, setup: for SLURM only" in capsys.readouterr().err


def exit_code(command: list[str]) -> int:
    try:
        return submit.main(command)
    except SystemExit as left:  # argparse's way
        assert isinstance(left.code, int)
        return left.code
