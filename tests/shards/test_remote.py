"""Sets that are written to a URL. file:// goes the way of s3:// and gs://: nothing is renamed, manifest.json comes last."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.making.output import partial_folder
from tests.shards.conftest import Run, files_of, picture


@pytest.fixture(autouse=True)
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where shards are written before they are sent."""
    folder = tmp_path / "staging"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_url_gets_the_same_set_as_a_folder(
    run: Run, release: Path, tmp_path: Path, staging: Path, workers: int
) -> None:
    (release / "cat/3.jpg").write_bytes(b"broken")
    make = ("make", "folder", release, "--shard-samples", 3, "--max-skipped", "10%", "--workers", workers)
    assert run(*make, "--out", tmp_path / "here/pets").code == 0
    ran = run(*make, "--out", f"file://{tmp_path}/there/pets")
    assert ran.code == 0, ran.err
    assert files_of(tmp_path / "there/pets") == files_of(tmp_path / "here/pets")
    assert list(staging.glob("*/*")) == []
    assert run("check", tmp_path / "there/pets").code == 0
    again = run(*make, "--out", f"file://{tmp_path}/there/pets")
    assert (again.code, "already there" in again.out) == (0, True), again.err
    other = run(*make, "--out", f"file://{tmp_path}/there/pets", "--seed", 2)
    assert (other.code, "(seed was 0 and is 2); pass --force" in other.err) == (2, True)


def test_what_was_sent_before_a_kill_is_not_sent_again(run: Run, tmp_path: Path) -> None:
    release = tmp_path / "pets_release"
    for label in "abcdef":
        (release / label).mkdir(parents=True)
        for view in range(12):
            (release / label / f"{view}.jpg").write_bytes(picture(ord(label) * 100 + view, size=(900, 700)))
    out = f"file://{tmp_path}/there/pets"
    make = [
        "make",
        "folder",
        str(release),
        "--out",
        out,
        "--shard-samples",
        "2",
        "--workers",
        "1",
        "--short-side",
        "40",
    ]
    process = subprocess.Popen([sys.executable, "-m", "shards", *make])
    partial = partial_folder(out)
    deadline = time.monotonic() + 30
    while len(list(partial.glob("*.done.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait(30)
    sent = {path: path.stat().st_mtime_ns for path in (tmp_path / "there/pets").glob("*.tar")}
    done = [json.loads(path.read_text())["shard"]["file"] for path in partial.glob("*.done.json")]
    assert len(done) >= 5
    assert not (tmp_path / "there/pets/manifest.json").exists()
    assert not {path.name for path in (partial / "set").glob("*.tar")} & set(done)

    ran = run(*make)
    assert ran.code == 0, ran.err
    assert f"{len(done)} shards were finished by an earlier run" in ran.out
    assert all(path.stat().st_mtime_ns == when for path, when in sent.items() if path.name in done)
    assert run("check", tmp_path / "there/pets").code == 0
    assert run("make", *make[1:3], "--out", tmp_path / "here/pets", *make[5:]).code == 0
    assert files_of(tmp_path / "there/pets") == files_of(tmp_path / "here/pets")


def test_a_place_that_cannot_be_written_is_one_line(run: Run, release: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ran = run("make", "folder", release, "--out", f"file://{tmp_path}/file/pets")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    unknown = run("make", "folder", release, "--out", "gopher://host/pets")
    assert unknown.code == 2
    assert "gopher://host/pets" in unknown.err


@pytest.fixture
def remote(run: Run, release: Path, tmp_path: Path) -> Path:
    """The folder behind the URL of a set."""
    ran = run("make", "folder", release, "--shard-samples", 3, "--out", f"file://{tmp_path}/there/pets")
    assert ran.code == 0, ran.err
    return tmp_path / "there/pets"


def test_a_manifest_from_a_url_chooses_no_files_of_this_machine(
    run: Run, release: Path, remote: Path, tmp_path: Path, staging: Path
) -> None:
    (remote.parent / "pwned").write_text("from elsewhere")
    about = json.loads((remote / "manifest.json").read_bytes())
    about["classes"]["../pwned"] = about["classes"]["classes.tsv"]
    (remote / "manifest.json").write_text(json.dumps(about))
    ran = run("make", "folder", release, "--shard-samples", 3, "--out", f"file://{remote}")
    assert ran.code in (0, 2)
    assert not list(staging.rglob("pwned"))


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": 1}', '{"schema": 1, "classes": 3}'])
def test_a_damaged_manifest_behind_a_url_is_one_line(run: Run, release: Path, remote: Path, damage: str) -> None:
    (remote / "manifest.json").write_text(damage)
    ran = run("make", "folder", release, "--shard-samples", 3, "--out", f"file://{remote}")
    assert ran.code == 2
    assert "exists but cannot be read" in ran.err
    assert "pass --force" in ran.err
    assert ran.err.count("\n") == 1


def test_an_upload_that_fails_at_the_end_is_made_up_for_by_the_same_command(
    run: Run, release: Path, tmp_path: Path, staging: Path
) -> None:
    there = tmp_path / "there/pets"
    (there / "sizes.json").mkdir(parents=True)  # in the way of a file that is sent after the tars
    make = ("make", "folder", release, "--shard-samples", 3, "--out", f"file://{there}")
    ran = run(*make)
    assert ran.code == 2, ran.out
    assert not (there / "manifest.json").exists()
    sent = {path: path.stat().st_mtime_ns for path in there.glob("*.tar")}
    (there / "sizes.json").rmdir()
    ran = run(*make)
    assert ran.code == 0, ran.err
    assert f"{len(sent)} shards were finished by an earlier run" in ran.out
    assert {path: path.stat().st_mtime_ns for path in there.glob("*.tar")} == sent
    assert run("check", there).code == 0
    assert not list(staging.rglob("*.partial"))


def test_a_set_that_replaces_another_leaves_nothing_of_it_and_nothing_else_is_touched(
    run: Run, release: Path, remote: Path, tmp_path: Path
) -> None:
    (remote / "notes.tar").write_text("mine")
    make = ("make", "folder", release, "--shard-samples", 7)
    assert run(*make, "--out", tmp_path / "here/pets").code == 0
    ran = run(*make, "--out", f"file://{remote}", "--force")
    assert ran.code == 0, ran.err
    there = files_of(remote)
    assert there.pop("notes.tar") == b"mine"
    assert there == files_of(tmp_path / "here/pets")


def test_with_force_a_set_is_none_any_more_before_its_tars_are_replaced(run: Run, release: Path, remote: Path) -> None:
    (remote / "train-000000.tar").unlink()
    (remote / "train-000000.tar").mkdir()  # no tar can be sent there
    ran = run("make", "folder", release, "--shard-samples", 7, "--out", f"file://{remote}", "--force")
    assert ran.code == 2, ran.out
    assert not (remote / "manifest.json").exists()
