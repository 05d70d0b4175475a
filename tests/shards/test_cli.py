"""The command line: what it imports, and what it says to a mistake."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.shards.conftest import Run

HEAVY = ("torch", "webdataset", "numpy", "PIL", "pyarrow", "matplotlib", "skimage", "sklearn", "rich")


def modules_after(code: str) -> set[str]:
    """Names of our heavy dependencies in sys.modules after running this in a new interpreter."""
    report = f"{code}\nimport sys\nprint('\\nHEAVY', *(name for name in {HEAVY!r} if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(ran.stdout.rpartition("HEAVY")[2].split())


@pytest.mark.parametrize("words", [["--help"], ["make", "--help"], ["make", "table", "--help"], ["show", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = f"import shards.cli\ntry:\n    shards.cli.main({words!r})\nexcept SystemExit:\n    pass"
    assert modules_after(code) == set()


def test_the_reader_that_trainers_use_needs_numpy_only() -> None:
    assert modules_after("import shards.manifest") == {"numpy"}


def test_a_whole_run_imports_no_torch(pets: object, release: Path, tmp_path: Path) -> None:
    words = ["make", "folder", str(release), "--out", str(tmp_path / "again")]
    loaded = modules_after(f"import shards.cli\nassert shards.cli.main({words!r}) == 0")
    assert not loaded & {"torch", "webdataset", "pyarrow", "skimage", "sklearn", "matplotlib"}


def test_help_answers_in_half_a_second() -> None:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "shards", "--help"], capture_output=True, check=True)
        return time.perf_counter() - started

    assert min(once() for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["make", "foldr", "x"], "no source 'foldr'; there are: deepfashion, folder, "),
        (["make", "foldr", "x"], "; did you mean folder?"),
        (
            ["make", "--out", "x"],
            "the source comes first: shards make SOURCE --out …; there are: deepfashion, folder, ",
        ),
        (["make", "none.yaml", "--out", "y"], "none.yaml: No such file or directory"),
        (["make", "folder", "x"], "the following arguments are required: --out"),
        (["make", "folder", "x", "--out", "y", "--shard-samples", "0"], "'0' is not a whole number from 1 up"),
        (["make", "folder", "x", "--out", "y", "--max-skipped", "1"], "'1' is not a share; write it as 5% or 0.05"),
        (["make", "folder", "x", "--out", "y", "--dev", "1%"], "unrecognized arguments: --dev"),
        (["mkae"], "invalid choice: 'mkae'"),
    ],
)
def test_a_mistake_is_answered_without_a_traceback(run: Run, words: list[str], message: str) -> None:
    ran = run(*words)
    assert ran.code == 2
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_show_prints_counts_by_domain_split_and_role(pets: object, run: Run, tmp_path: Path) -> None:
    ran = run("show", tmp_path / "pets")
    assert ran.code == 0
    assert "pets: 19 images of 5 classes in 1 domains" in ran.out
    for word in ("dev query", "dev index", "train", "smallest / median / largest"):
        assert word in ran.out


def test_every_source_has_a_line_of_help(run: Run) -> None:
    listed = run("make", "--help").out
    for line in ("folder +Images in class folders", "sample +A small retrieval set", "table +Images listed in a table"):
        assert re.search(line, listed)


def test_one_file_adds_a_source(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is the registry: nothing else learns of it."""
    (tmp_path / "mine.py").write_text(
        '"""Ten bright squares."""\n'
        "from shards.place import Inline\n"
        "from shards.record import Record\n"
        "from tests.shards.conftest import picture\n"
        "def add_options(parser):\n"
        "    parser.add_argument('--most', type=int, default=10)\n"
        "def records(options):\n"
        "    for n in range(options.most):\n"
        "        yield Record('mine', str(n % 5), f'{n}.jpg', Inline(picture(n)))\n"
    )
    import shards.sources

    monkeypatch.setattr(shards.sources, "__path__", [*shards.sources.__path__, str(tmp_path)])
    assert re.search("mine +Ten bright squares.", run("make", "--help").out)
    ran = run("make", "mine", "--out", tmp_path / "mine_set", "--most", 20)
    assert ran.code == 0, ran.err
    assert "20 images of 5 classes" in ran.out


def test_classes_in_two_splits_are_pointed_out(run: Run, release: Path, tmp_path: Path) -> None:
    lines = ["image,label,split"]
    for path in sorted(release.rglob("*.jpg")):
        split = "dev" if path.name == "2.jpg" or path.parent.name in ("cat", "owl") else "train"
        lines.append(f"{path.relative_to(release)},{path.parent.name},{split}")
    (release / "table.csv").write_text("\n".join(lines))
    ran = run("make", "table", release / "table.csv", "--out", tmp_path / "pets")
    assert "2 classes have images in more than one split (pets/dog, pets/fox), as the input says" in ran.out
