"""`job: shards`: a command of `shards` as a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from jobs import job
from jobs.shards import Config, run
from retrieval_train.config import ConfigError, check
from retrieval_train.rundir import RunDir, read_json
from retrieval_train.world import Alone
from shards.manifest import Manifest


def config(*arguments: str, name: str = "it") -> Config:
    return check(Config, {"job": "shards", "run": {"name": name}, "arguments": arguments}, where="it.yaml")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label in ("cat", "dog", "elk", "fox"):
        for number in range(2):
            path = tmp_path / "photos" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number * 40, 0, ord(label[0]))).save(path)
    return tmp_path / "photos"


def test_a_set_is_made_and_left_as_it_is_by_the_next_start(photos: Path, tmp_path: Path) -> None:
    made = config("make", "folder", str(photos), "--out", str(tmp_path / "set"), "--workers", "1")
    assert made.problems() == []
    folder = RunDir(tmp_path / "run")
    run(made, folder, Alone())
    manifest = Manifest.load(tmp_path / "set")
    assert manifest.classes.class_names() == ["set/cat", "set/dog", "set/elk", "set/fox"]
    assert read_json(folder.progress) == {"stage": "shards make", "total": 1, "unit": "command", "done": 1, "note": ""}
    run(made, folder, Alone())
    assert Manifest.load(tmp_path / "set").digest == manifest.digest


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["maek"], "invalid choice: 'maek'"),
        (["make", "fodler", "x", "--out", "y"], "did you mean folder?"),
        (["make", "folder", "x"], "the following arguments are required: --out"),
        (["show", "--help"], "only show help; say what to do"),
        (["make", "missing.yaml"], "missing.yaml"),
    ],
)
def test_a_command_that_cannot_be_read_is_told_before_it_starts(arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        job.check({"job": "shards", "run": {"name": "it"}, "arguments": arguments}, where="it.yaml")
    ((key, text),) = error.value.problems
    assert key == "arguments"
    assert told in text


def test_more_ranks_than_one_are_told_before_it_starts() -> None:
    assert config("show", "x").problems_with(1) == []
    ((key, text),) = config("show", "x").problems_with(2)
    assert (key, text.startswith("shards works in one process, not 2")) == ("job", True)


def test_a_command_that_fails_says_why_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^(?!shards).*nothing-here"):
        run(config("show", str(tmp_path / "nothing-here")), RunDir(tmp_path / "run"), Alone())
