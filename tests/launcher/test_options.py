"""What the options of `submit` accept, and that reading them needs nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launcher import options as options_of
from launcher.clusters.durations import minutes
from tests.launcher.conftest import ROOT


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("90", 90),
        ("90:30", 91),
        ("2:00:00", 120),
        ("0:00:01", 1),
        ("1-0", 1440),
        ("1-06:30", 1830),
        ("2-01:00:30", 2941),
    ],
)
def test_a_time_is_read_as_sbatch_reads_it(text: str, number: int) -> None:
    assert options_of.parse(["--time", text], about=None).time == number
    assert number - 1 < minutes(text) <= number


@pytest.mark.parametrize(
    ("text", "number"), [("64", 64), ("0.5", 0.5), ("64G", 64), ("512M", 0.5), ("1T", 1024), ("8gb", 8)]
)
def test_memory_is_in_gb_unless_it_has_a_unit(text: str, number: float) -> None:
    assert options_of.parse(["--mem", text], about=None).mem == number


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--time", "2h"], "argument --time: '2h' is no time; write minutes, H:MM:SS or D-HH:MM"),
        (["--time", "1:2:3:4"], "'1:2:3:4' is no time"),
        (["--time", "0"], "argument --time: '0' is no time above 0"),
        (["--mem", "64X"], "argument --mem: '64X' is not a number above 0, of GB"),
        (["--mem", "inf"], "argument --mem: 'inf' is not a number above 0, of GB"),
        (["--parallel", "0"], "argument --parallel: '0' is not a whole number from 1 up"),
        (["--constrain", "a"], "unrecognized arguments: --constrain (--help lists"),
    ],
)
def test_an_option_that_cannot_be_read_is_told_in_one_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        options_of.parse(argv, about=None)
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert words in told
    assert told.count("\n") == 1


def test_every_option_that_says_where_reaches_the_request() -> None:
    said = {
        "nodes": 2,
        "gpus_per_node": 3,
        "tasks_per_node": 3,
        "cpus_per_gpu": 4,
        "cpus_per_task": 4,
        "partition": "a",
        "account": "b",
        "qos": "c",
        "constraint": "d",
        "exclude": "e",
        "nodelist": "f",
        "reservation": "g",
        "comment": "h",
    }
    argv = [word for name, value in said.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    asked = options_of.request(
        options_of.parse([*argv, "--mem", "5", "--time", "6", "--sbatch", "x=y", "--sbatch", "z"], about=None)
    )
    assert vars(asked) == said | {"mem_gb": 5, "time_min": 6, "sbatch": ("x=y", "z")}


def test_help_reads_no_library() -> None:
    """So that it comes at once; the standard library's argparse is enough."""
    code = "import sys; from launcher import options; options.parse(sys.argv[1:], about='x')"
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    read = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.stderr.splitlines()}
    assert "--print-command" in told.stdout
    assert not read & {"pydantic", "omegaconf", "numpy", "yaml", "submitit", "torch"}
