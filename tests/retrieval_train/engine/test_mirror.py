"""Checkpoints at a URL: whole or not there, whatever is killed, damaged or hostile."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from retrieval_train.engine.mirror import Damaged, Mirror, MirrorError, catch_up, fetch
from retrieval_train.engine.uploads import Uploads
from retrieval_train.rundir import RunDir
from tests.processes import ROOT

FILES = ("model.safetensors", "centres-0.safetensors", "classes-0.txt")


def checkpoint(at: Path, step: int, content: str = "") -> Path:
    """A folder with the files of a checkpoint, whose contents are told apart by step and `content`."""
    folder = at / f"step-{step:08d}"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(f"{name} {step} {content}".encode() * 1000)
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / "sums.json").write_text(json.dumps(sums))
    (folder / "state.json").write_text(json.dumps({"schema": 1, "step": step}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.files.FIRST_PAUSE_S", 0)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Where the run's checkpoints are, for the eyes of the test."""
    return tmp_path / "there" / "run"


@pytest.fixture
def mirror(there: Path) -> Mirror:
    return Mirror(f"file://{there.parent}", "run", keep=2)


@pytest.mark.parametrize("kind", ["file", "memory", "folder"])
def test_what_is_sent_comes_back(tmp_path: Path, kind: str) -> None:
    where = {"file": f"file://{tmp_path}/t", "memory": f"memory://{tmp_path.name}", "folder": f"{tmp_path}/t #1?"}[kind]
    mirror = Mirror(where, "run")
    assert mirror.newest() is None
    for step in (9, 10, 100):
        mirror.put(checkpoint(tmp_path / "mine", step))
    found = mirror.newest()
    assert found is not None and found[0] == 100
    folder = fetch(found[1], tmp_path / "other")
    assert folder == tmp_path / "other/step-00000100"
    assert contents(folder) == contents(tmp_path / "mine/step-00000100")
    assert [path.name for path in (tmp_path / "other").iterdir()] == [folder.name]


def test_the_newest_few_are_kept_and_those_of_a_future_that_was_left_are_not(
    tmp_path: Path, there: Path, mirror: Mirror
) -> None:
    (there / "step-00000015").mkdir(parents=True)
    (there / "step-00000015/sums.json").write_text("{}")  # a half one, of a sender that was killed
    (there / "notes.txt").write_text("mine")
    for step in (10, 20, 30):
        mirror.put(checkpoint(tmp_path / "mine", step))
    assert sorted(path.name for path in there.iterdir()) == ["notes.txt", "step-00000020", "step-00000030"]
    mirror.put(checkpoint(tmp_path / "mine", 25))
    assert sorted(path.name for path in there.iterdir()) == ["notes.txt", "step-00000020", "step-00000025"]


def test_the_best_stays_beside_the_newest_and_comes_back(tmp_path: Path, there: Path) -> None:
    best = tmp_path / "mine/step-00000010"
    mirror = Mirror(f"file://{there.parent}", "run", keep=1, best=lambda: best)
    for step in (10, 20, 30):
        mirror.put(checkpoint(tmp_path / "mine", step))
    assert sorted(path.name for path in there.iterdir()) == ["step-00000010", "step-00000030"]
    assert contents(mirror.bring(10, tmp_path / "other")) == contents(best)
    best = tmp_path / "mine/step-00000040"
    mirror.put(checkpoint(tmp_path / "mine", 40))
    assert [path.name for path in there.iterdir()] == ["step-00000040"]


@pytest.mark.parametrize("nth", range(len(FILES) + 2))
def test_a_sender_killed_in_any_file_leaves_the_checkpoint_before_it(
    tmp_path: Path, there: Path, mirror: Mirror, nth: int
) -> None:
    mirror.put(checkpoint(tmp_path / "mine", 1))
    folder = checkpoint(tmp_path / "mine", 2)
    code = f"""
import os, signal
from fsspec.implementations.local import LocalFileSystem as System
from retrieval_train.engine.mirror import Mirror
sent = 0
def write_or_die(system, path, data):
    global sent
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2] if sent == {nth} else data)
    if sent == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
    sent += 1
System.pipe_file = write_or_die
System.put_file = lambda system, here, there: write_or_die(system, there, open(here, "rb").read())
Mirror("file://{there.parent}", "run").put(__import__("pathlib").Path({str(folder)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == -9
    assert mirror.newest() == (1, f"file://{there}/step-00000001")
    sent = {path: path.stat().st_mtime_ns for path in (there / folder.name).iterdir()}

    mirror.put(folder)
    assert mirror.newest() == (2, f"file://{there}/step-00000002")
    assert contents(there / folder.name) == contents(folder)
    again = [path.name for path, when in sent.items() if path.stat().st_mtime_ns == when]
    assert set(again) >= set(FILES[: nth - 1] if nth else ())


def test_nothing_of_another_checkpoint_of_the_same_step_and_size_stays(
    tmp_path: Path, there: Path, mirror: Mirror
) -> None:
    mirror.put(checkpoint(tmp_path / "theirs", 1, "red"))
    folder = checkpoint(tmp_path / "mine", 1, "tan")
    mirror.put(folder)
    assert contents(there / folder.name) == contents(folder)


def test_a_damaged_byte_is_refused_with_the_name_of_the_file(tmp_path: Path, there: Path, mirror: Mirror) -> None:
    mirror.put(checkpoint(tmp_path / "mine", 1))
    url = f"file://{there}/step-00000001"
    file = there / "step-00000001/centres-0.safetensors"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(Damaged, match=r"step-00000001/centres-0.safetensors was changed"):
        fetch(url, tmp_path / "other")
    file.unlink()
    with pytest.raises(Damaged, match=r"step-00000001/centres-0.safetensors is missing"):
        fetch(url, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../../x", "../x.txt", "{out}/x.txt", "..", ".", "", "a/b.txt", "a\\b.txt", ".x.txt", "x.pt", "state.json"]
)
def test_a_name_that_no_checkpoint_has_is_refused_and_nothing_is_written(
    tmp_path: Path, there: Path, mirror: Mirror, name: str
) -> None:
    mirror.put(checkpoint(tmp_path / "mine", 1))
    name = name.format(out=tmp_path)
    sums = json.loads((there / "step-00000001/sums.json").read_text()) | {name: hashlib.sha256(b"evil").hexdigest()}
    (there / "step-00000001/sums.json").write_text(json.dumps(sums))
    for place in (there, there.parent, there / "step-00000001/a"):
        place.mkdir(exist_ok=True)
        (place / "x.txt").write_bytes(b"evil")
    before = contents(tmp_path)
    with pytest.raises(Damaged, match=r"sums\.json lists .*, which is no name"):
        fetch(f"file://{there}/step-00000001", tmp_path / "other")
    assert contents(tmp_path) == before


def test_links_on_either_side_lead_nowhere(tmp_path: Path, there: Path, mirror: Mirror) -> None:
    mirror.put(checkpoint(tmp_path / "mine", 1))
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (there / "step-00000001/classes-0.txt").unlink()
    (there / "step-00000001/classes-0.txt").symlink_to(secret)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/step-00000001").symlink_to(tmp_path / "mine")
    before = contents(tmp_path / "mine/step-00000001")
    with pytest.raises(Damaged, match=r"classes-0.txt was changed"):
        fetch(f"file://{there}/step-00000001", tmp_path / "other")
    (there / "step-00000001/classes-0.txt").unlink()
    mirror.put(tmp_path / "mine/step-00000001")
    folder = fetch(f"file://{there}/step-00000001", tmp_path / "other")
    assert not folder.is_symlink() and contents(folder) == before
    assert contents(tmp_path / "mine") == {f"step-00000001/{name}": data for name, data in before.items()}
    assert secret.read_text() == "mine"


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("state.json", '{"step": "../../x"}', "state.json holds no step but '../../x'"),
        ("state.json", '{"step": -1}', "holds no step but -1"),
        ("state.json", '{"step"', "holds no step but None"),
        ("sums.json", "[]", "sums.json is no mapping"),
        ("sums.json", '{"model.safetensors": 3}', "sums.json is no mapping"),
    ],
)
def test_a_damaged_description_is_refused(
    tmp_path: Path, there: Path, mirror: Mirror, file: str, text: str, told: str
) -> None:
    mirror.put(checkpoint(tmp_path / "mine", 1))
    (there / "step-00000001" / file).write_text(text)
    with pytest.raises(Damaged, match=told):
        fetch(f"file://{there}/step-00000001", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_url_that_is_no_checkpoint_or_not_there_is_told_without_its_secrets(tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match=r"nowhere is no checkpoint: it has no state.json"):
        fetch(f"file://{tmp_path}/nowhere", tmp_path / "other")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MirrorError, match=rf"{tmp_path}/file/run/step-00000001 cannot be written: .*Not a directory"):
        Mirror(f"{tmp_path}/file", "run").put(checkpoint(tmp_path / "mine", 1))
    pytest.importorskip("aiohttp")
    with pytest.raises(MirrorError, match=r"http://127.0.0.1:9/run cannot be read") as caught:
        fetch("http://me:hunter2@127.0.0.1:9/run?token=swordfish", tmp_path / "other")
    assert "hunter2" not in str(caught.value) and "swordfish" not in str(caught.value)


def test_a_run_takes_only_what_is_newer_and_passes_over_what_is_damaged(
    tmp_path: Path, there: Path, mirror: Mirror
) -> None:
    run = RunDir(tmp_path / "run")
    assert catch_up(mirror, run) is None
    for step in (10, 20):
        mirror.put(checkpoint(tmp_path / "mine", step))
    (there / "step-00000020/model.safetensors").write_bytes(b"")
    assert catch_up(mirror, run) == run.checkpoint(10) == run.latest_checkpoint()
    assert catch_up(mirror, run) is None
    shutil.rmtree(run.path)
    (there / "step-00000010/model.safetensors").write_bytes(b"")
    with pytest.raises(Damaged, match=r"step-00000020/model.safetensors was changed"):  # rather than begin again
        catch_up(mirror, run)


class Gated(Mirror):
    """Waits at a gate before each upload."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "run")
        self.came, self.gate, self.put_names = threading.Semaphore(0), threading.Semaphore(0), list[str]()

    def put(self, folder: Path) -> None:
        self.put_names.append(folder.name)
        self.came.release()
        assert self.gate.acquire(timeout=20)
        super().put(folder)


@pytest.fixture
def gated(there: Path) -> Gated:
    return Gated(f"file://{there.parent}")


def test_a_newer_checkpoint_takes_the_place_of_one_that_waits_and_what_is_held_is_told(
    tmp_path: Path, gated: Gated
) -> None:
    uploads = Uploads(gated)
    folders = [checkpoint(tmp_path / "mine", step) for step in (1, 2, 3)]
    uploads.submit(folders[0])
    assert gated.came.acquire(timeout=20)
    for folder in folders[1:]:
        uploads.submit(folder)
    assert uploads.holds() == {folders[0], folders[2]}
    gated.gate.release(2)
    uploads.close(20)
    assert gated.put_names == ["step-00000001", "step-00000003"]
    assert (uploads.holds(), uploads.failed()) == (set(), None)
    assert (gated.newest() or (0,))[0] == 3


def test_the_best_gives_way_to_a_better_one_only(tmp_path: Path, gated: Gated) -> None:
    uploads = Uploads(gated)
    folders = [checkpoint(tmp_path / "mine", step) for step in range(1, 7)]
    uploads.submit(folders[0])
    assert gated.came.acquire(timeout=20)
    for folder, is_best in zip(folders[1:], (True, False, True, False, False), strict=True):
        uploads.submit(folder)
        if is_best:  # known when it is submitted or soon after
            gated.best = partial(Path, folder)
    assert uploads.holds() == {folders[0], folders[3], folders[5]}
    gated.gate.release(3)
    uploads.close(20)
    assert gated.put_names == [folders[at].name for at in (0, 3, 5)]


def test_a_folder_that_is_removed_while_it_waits_is_given_up_and_told(
    tmp_path: Path, there: Path, gated: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = Uploads(gated)
    folder = checkpoint(tmp_path / "mine", 1)
    uploads.submit(folder)
    assert gated.came.acquire(timeout=20)
    shutil.rmtree(folder)
    gated.gate.release()
    uploads.close(20)
    assert (uploads.failed(), gated.newest()) == (None, None)
    assert f"{folder} was removed or replaced" in caplog.text


@pytest.mark.parametrize("becomes", ["removed", "replaced"])
def test_a_folder_that_goes_in_the_middle_never_becomes_half_a_checkpoint(
    tmp_path: Path, there: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    from shards import remote

    folder = checkpoint(tmp_path / "mine", 1)
    send = remote.send

    def send_and_lose(path: Path, url: str) -> None:
        send(path, url)
        if path.name == FILES[1]:
            shutil.rmtree(folder)
            if becomes == "replaced":
                checkpoint(tmp_path / "mine", 1, "another")

    monkeypatch.setattr(remote, "send", send_and_lose)
    mirror.put(folder)
    assert (there / folder.name / FILES[1]).is_file()
    assert mirror.newest() is None


def test_trouble_is_told_once_and_ends_when_it_works_again(
    tmp_path: Path, there: Path, gated: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    there.parent.write_text("in the way")
    uploads = Uploads(gated)
    for step in (1, 2, 3):
        uploads.submit(checkpoint(tmp_path / "mine", step))
        assert gated.came.acquire(timeout=20)
        if step == 3:
            assert "cannot be written" in (uploads.failed() or "")
            there.parent.unlink()
        gated.gate.release()
    uploads.close(20)
    assert uploads.failed() is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_the_end_of_a_run_does_not_wait_longer_than_it_may(
    tmp_path: Path, gated: Gated, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = Uploads(gated)
    uploads.submit(checkpoint(tmp_path / "mine", 1))
    assert gated.came.acquire(timeout=20)
    monkeypatch.setattr("retrieval_train.engine.uploads._SLICE_S", 0.01)
    beats: list[float] = []
    uploads.close(0.2, beat=lambda: beats.append(time.monotonic()))
    assert len(beats) > 2, "a watchdog is told all the while that this is no hang"
    assert "step-00000001: not at the mirror" in caplog.text
    gated.gate.release()
    uploads.close(20)
    assert (gated.newest() or (0,))[0] == 1
