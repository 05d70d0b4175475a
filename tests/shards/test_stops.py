"""`shards make` that is killed, stopped or runs out of disk: nothing is lost, and the same command goes on."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shards.manifest import Manifest
from shards.record import Record
from shards.sources import folder
from tests.shards.conftest import Run, files_of, picture, write_release

CLASSES = {f"class{n}": 12 for n in range(20)}
OPTIONS = ("--shard-samples", "7", "--short-side", "24", "--max-skipped", "5%")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 images, two of them broken."""
    root = tmp_path_factory.mktemp("pets") / "release"
    for place, (label, count) in enumerate(CLASSES.items()):
        (root / label).mkdir(parents=True)
        for view in range(count):  # large enough that there is time to stop anything
            (root / label / f"{view}.jpg").write_bytes(picture(100 * place + view, size=(900, 700)))
    (root / "class3/5.jpg").write_bytes(b"broken")
    (root / "class7/2.jpg").write_bytes(picture(1)[:300])
    return root


@pytest.fixture(scope="module")
def whole(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the set that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "pets"
    assert start(release, out).wait(60) == 0
    return files_of(out)


def start(release: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """`shards make` as a process group of its own."""
    command = [sys.executable, "-m", "shards", "make", "folder", str(release), "--out", str(out), *OPTIONS, *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_shards(out: Path, count: int) -> None:
    """Until so many are finished."""
    partial = out.with_name(f"{out.name}.partial")
    deadline = time.monotonic() + 30
    while len(list(partial.glob("*.done.json"))) < count and not out.exists() and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.mark.parametrize("seed", range(int(os.environ.get("KILLS", "4"))))  # `make test-long`: 100
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(
    release: Path, whole: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    out, kills = tmp_path / "pets", 0
    while not out.exists():
        process = start(release, out, "--workers", str(chance.choice([1, 2])))
        if kills < 3:
            wait_for_shards(out, chance.randrange(30))
            time.sleep(chance.random() * 0.05)
            process.kill()  # the workers are left to find out for themselves
            kills += 1
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), err
        assert "Traceback" not in err
    assert files_of(out) == whole
    assert os.listdir(tmp_path) == ["pets"]
    assert not workers_of(process.pid)


def workers_of(session: int) -> list[int]:
    """Worker processes of this session that still run."""
    listed = subprocess.run(
        ["ps", "-ewwo", "sess=,pid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(maxsplit=3) for line in listed.splitlines()]
    return [
        int(pid) for sess, pid, stat, args in rows if int(sess) == session and stat[0] != "Z" and "spawn_main" in args
    ]


@pytest.mark.parametrize(("signum", "workers"), [(signal.SIGINT, "1"), (signal.SIGINT, "2"), (signal.SIGTERM, "2")])
def test_stopped_it_says_what_it_keeps(
    release: Path, whole: dict[str, bytes], tmp_path: Path, signum: int, workers: str
) -> None:
    out = tmp_path / "pets"
    process = start(release, out, "--workers", workers)
    wait_for_shards(out, 3)
    os.killpg(process.pid, signum) if signum == signal.SIGINT else process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    kept = len(list(tmp_path.glob("pets.partial/*.done.json")))
    assert kept >= 3
    assert err == (f"shards: stopped; {kept} finished shards are kept in {out}.partial; repeat the command to go on\n")
    left = {path.name for path in (tmp_path / "pets.partial").iterdir()}
    assert not [name for name in left if name.startswith(".") or name in ("lock", "records.jsonl")]
    again = start(release, out)
    assert again.wait(60) == 0
    assert files_of(out) == whole


def test_what_was_begun_with_other_options_is_not_thrown_away(run: Run, release: Path, tmp_path: Path) -> None:
    out = tmp_path / "pets"
    process = start(release, out)
    wait_for_shards(out, 3)
    process.kill()
    process.communicate(timeout=30)
    before = files_of(tmp_path / "pets.partial/set")
    refused = run("make", "folder", release, "--out", out, *OPTIONS, "--seed", 3)
    assert refused.code == 2
    assert "finished shards of a set made with other options (seed was 0 and is 3)" in refused.err
    after = files_of(tmp_path / "pets.partial/set")
    assert {name for name in before if name.endswith(".tar")} <= set(after)
    assert run("make", "folder", release, "--out", out, *OPTIONS, "--seed", 3, "--force").code == 0
    assert Manifest.load(out).about["config"]["seed"] == 3


def test_a_shard_that_was_damaged_meanwhile_is_written_again(
    release: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, partial = tmp_path / "pets", tmp_path / "pets.partial"
    process = start(release, out)
    wait_for_shards(out, 6)
    process.kill()
    process.communicate(timeout=30)
    done = sorted(partial.glob("*.done.json"))
    (partial / "set" / done[0].name.removesuffix(".done.json")).write_bytes(b"short")
    (partial / "set" / (done[1].name.removesuffix(".done.json") + ".index.npy")).unlink()
    done[2].write_text("{")
    assert start(release, out).wait(60) == 0
    assert files_of(out) == whole


def test_two_processes_cannot_make_the_same_set(run: Run, release: Path, tmp_path: Path) -> None:
    out = tmp_path / "pets"
    process = start(release, out, "--workers", "1")
    wait_for_shards(out, 1)
    process.send_signal(signal.SIGSTOP)
    try:
        refused = run("make", "folder", release, "--out", out, *OPTIONS)
        assert (refused.code, "another process is making this set" in refused.err) == (2, True)
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0


def test_a_full_disk_is_one_line_and_goes_on_later(release: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """A limit on the size of a file stops the writing as a full disk does: the first larger shard fails."""
    out = tmp_path / "pets"
    sizes = sorted(len(data) for name, data in whole.items() if name.endswith(".tar"))
    limit = sizes[len(sizes) // 2]
    command = [sys.executable, "-m", "shards", "make", "folder", str(release), "--out", str(out), *OPTIONS]

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(limit, 60_000), resource.RLIM_INFINITY))

    ran = subprocess.run(
        [*command, "--workers", "1", "--shard-samples", "40"],
        capture_output=True,
        text=True,
        preexec_fn=bound,
        check=False,
    )
    assert ran.returncode == 2
    assert "File too large" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not out.exists()
    assert start(release, out, "--force").wait(60) == 0
    assert files_of(out) == whole


def test_a_worker_that_is_killed_is_one_line_and_goes_on_later(
    release: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "pets"
    process = start(release, out, "--workers", "2")
    wait_for_shards(out, 1)
    while not (workers := workers_of(process.pid)) and process.poll() is None:
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "a worker process was killed" in err) == (2, True)
    assert err.count("\n") == 1
    assert start(release, out).wait(60) == 0
    assert files_of(out) == whole


def test_a_mount_that_is_gone_stops_the_run_and_costs_no_picture(run: Run, tmp_path: Path) -> None:
    release, away = tmp_path / "release", tmp_path / "away"
    write_release(release, {f"class{n}": 30 for n in range(10)})
    make = ("make", "folder", release, "--out", tmp_path / "pets", "--workers", 1, "--max-skipped", "50%")
    assert run(*make, "--out", tmp_path / "whole/pets").code == 0

    listed = folder.records

    def and_then_gone(options: Any) -> list[Record]:
        records = list(listed(options))
        release.rename(away)
        return records

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "records", and_then_gone)
        ran = run(*make)
    assert ran.code == 2
    assert "20 images in a row that were listed before cannot be read now (No such file or directory)" in ran.err
    assert not (tmp_path / "pets").exists()
    away.rename(release)
    assert run(*make).code == 0
    assert files_of(tmp_path / "pets") == files_of(tmp_path / "whole/pets")


def test_shards_that_lack_a_file_that_is_back_are_written_again(
    run: Run, release: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, image = tmp_path / "pets", release / "class0/0.jpg"
    listed = folder.records
    with pytest.MonkeyPatch.context() as patch:

        def without_one(options: Any) -> list[Record]:
            records = list(listed(options))
            image.rename(tmp_path / "0.jpg")
            return records

        patch.setattr(folder, "records", without_one)
        patch.setattr("shards.making.maker.finish", stop)
        with pytest.raises(RuntimeError):
            run("make", "folder", release, "--out", out, *OPTIONS)
    (tmp_path / "0.jpg").rename(image)
    ran = run("make", "folder", release, "--out", out, *OPTIONS)
    assert ran.code == 0, ran.err
    assert "34 shards were finished by an earlier run" in ran.out
    assert files_of(out) == whole


def stop(*_: Any) -> None:
    """Instead of finishing."""
    raise RuntimeError


def lose(release: Path, count: int) -> None:
    """Makes images of one class unreadable."""
    for view in range(count):
        (release / f"class1/{view}.jpg").write_bytes(b"junk")


@pytest.mark.parametrize("where", ["shards.making.maker.write_manifest", "shards.making.output.publish"])
def test_stopped_while_finishing_it_ends_with_the_same_bytes(run: Run, tmp_path: Path, where: str) -> None:
    """A class whose images all proved unreadable takes its id with it: ids are set anew, once or twice."""
    root = write_release(tmp_path / "pets", {f"class{n}": 6 for n in range(8)})
    lose(root, 6)
    make = ("make", "folder", root, "--max-skipped", "20%", "--shard-samples", 5)
    assert run(*make, "--out", tmp_path / "whole/pets").code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, interrupt)
        assert run(*make, "--out", tmp_path / "again/pets").code == 130
    ran = run(*make, "--out", tmp_path / "again/pets")
    assert ran.code == 0, ran.err
    assert files_of(tmp_path / "again/pets") == files_of(tmp_path / "whole/pets")
    assert run("check", tmp_path / "again/pets").code == 0


def test_an_image_that_is_back_brings_back_what_could_not_stand_without_it(run: Run, tmp_path: Path) -> None:
    root = write_release(tmp_path / "pets", {f"class{n}": 5 for n in range(8)})
    away = tmp_path / "away.jpg"
    make = ("make", "folder", root, "--max-skipped", "20%", "--shard-samples", 5, "--min-images", 5)
    assert run(*make, "--out", tmp_path / "whole/pets").code == 0
    listed = folder.records
    with pytest.MonkeyPatch.context() as patch:

        def without_one(options: Any) -> list[Record]:
            records = list(listed(options))
            (root / "class2/0.jpg").rename(away)
            return records

        patch.setattr(folder, "records", without_one)
        patch.setattr("shards.making.maker.write_manifest", interrupt)
        assert run(*make, "--out", tmp_path / "again/pets").code == 130
    away.rename(root / "class2/0.jpg")
    assert run(*make, "--out", tmp_path / "again/pets").code == 0
    assert files_of(tmp_path / "again/pets") == files_of(tmp_path / "whole/pets")


def test_shards_without_a_single_readable_image_leave_no_file(run: Run, tmp_path: Path) -> None:
    root = write_release(tmp_path / "pets", {f"class{n}": 6 for n in range(8)})
    lose(root, 3)
    ran = run("make", "folder", root, "--out", tmp_path / "set", "--shard-samples", 1, "--max-skipped", "20%")
    assert ran.code == 0, ran.err
    assert run("check", tmp_path / "set").code == 0
    none = write_release(tmp_path / "none", {"class1": 3})
    lose(none, 3)
    ran = run("make", "folder", none, "--out", tmp_path / "no", "--max-skipped", "100%", "--train-only")
    assert ran.code == 2
    assert not (tmp_path / "no").exists()


def test_a_forced_run_that_is_stopped_goes_on_when_it_is_forced_again(
    release: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "pets"
    assert start(release, out, "--seed", "5").wait(60) == 0
    old = files_of(out)
    process = start(release, out, "--force", "--workers", "1")
    wait_for_forced(out, 5)
    process.kill()
    process.communicate(timeout=30)
    assert files_of(out) == old
    again = subprocess.run(
        [sys.executable, "-m", "shards", "make", "folder", release, "--out", out, *OPTIONS, "--force"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "finished by an earlier run" in again.stdout
    assert files_of(out) == whole


def wait_for_forced(out: Path, count: int) -> None:
    """As wait_for_shards, where an older set is there all the time."""
    deadline = time.monotonic() + 30
    while len(list(out.with_name(f"{out.name}.partial").glob("*.done.json"))) < count and time.monotonic() < deadline:
        time.sleep(0.002)


def test_a_folder_of_somebody_else_in_the_way_is_left_alone(run: Run, release: Path, tmp_path: Path) -> None:
    (tmp_path / "pets.partial").mkdir()
    (tmp_path / "pets.partial/thesis.tex").write_text("years of work")
    ran = run("make", "folder", release, "--out", tmp_path / "pets", *OPTIONS)
    assert (ran.code, "pets.partial is in the way and was not made by `shards`" in ran.err) == (2, True)
    assert (tmp_path / "pets.partial/thesis.tex").read_text() == "years of work"


def test_an_older_set_that_a_killed_process_had_moved_away_comes_back(
    run: Run, release: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert run("make", "folder", release, "--out", tmp_path / "pets", *OPTIONS).code == 0
    (tmp_path / "pets").rename(tmp_path / "pets.replaced")
    again = run("make", "folder", release, "--out", tmp_path / "pets", *OPTIONS)
    assert (again.code, "already there" in again.out) == (0, True)
    assert files_of(tmp_path / "pets") == whole


def interrupt(*_: Any, **__: Any) -> None:
    """Ctrl-C."""
    raise KeyboardInterrupt
