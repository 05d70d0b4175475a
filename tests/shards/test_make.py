"""`shards make`: what ends in the folder, and what never does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.maker import Order, make_set
from shards.manifest import Manifest
from shards.record import Record
from shards.split import Rules
from tests.shards.conftest import Run, files_of, picture, write_release


def test_the_same_input_gives_the_same_bytes_twice(run: Run, release: Path, tmp_path: Path) -> None:
    for place in ("one", "two"):
        assert run("make", "folder", release, "--out", tmp_path / place / "pets", "--shard-samples", 4).code == 0
    one, two = files_of(tmp_path / "one/pets"), files_of(tmp_path / "two/pets")
    assert len([name for name in one if name.endswith(".tar")]) > 4
    assert one == two


def test_the_order_in_which_a_source_lists_its_images_changes_nothing(tmp_path: Path) -> None:
    records = [
        Record("pets", f"class{i % 5}", f"{i}.jpg", lambda i=i: picture(i))  # type: ignore[misc]
        for i in range(20)
    ]
    for place, listed in (("one", records), ("two", records[::-1])):
        make_set(Order(out=tmp_path / place / "pets", config={"source": "test"}, given={}), listed)
    assert files_of(tmp_path / "one/pets") == files_of(tmp_path / "two/pets")


def test_another_seed_shuffles_otherwise_and_changes_no_split(run: Run, release: Path, tmp_path: Path) -> None:
    sources = []
    for seed in (0, 1):
        run("make", "folder", release, "--out", tmp_path / f"{seed}", "--domain", "pets", "--seed", seed)
        manifest = Manifest.load(tmp_path / f"{seed}")
        train = manifest.select("train")[0]
        sources.append([manifest.read(train, row).meta["source"] for row in range(train.samples)])
    assert sources[0] != sources[1]
    assert sorted(sources[0]) == sorted(sources[1])


def test_shards_hold_no_more_than_was_asked_for(pets: Manifest, run: Run, release: Path, tmp_path: Path) -> None:
    assert max(shard.samples for shard in pets.shards) == 4
    assert [shard.file for shard in pets.select("train")] == [
        f"train-{n:06d}.tar" for n in range(len(pets.select("train")))
    ]
    order = Order(out=tmp_path / "big", config={"source": "test"}, given={}, rules=Rules(train_only=True))
    records = [
        Record("big", f"{i % 2}", f"{i}.bmp", lambda i=i: picture(i, kind="BMP", size=(600, 400))) for i in range(4)
    ]  # type: ignore[misc]
    sized = Order(
        **{**{f: getattr(order, f) for f in order.__slots__}, "sizes": type(order.sizes)(shard_bytes=1_500_000)}
    )
    assert [shard.samples for shard in make_set(sized, records).manifest.shards] == [2, 2]


def test_making_a_set_again_finds_that_it_is_there(run: Run, release: Path, tmp_path: Path) -> None:
    make = ("make", "folder", release, "--out", tmp_path / "pets")
    assert run(*make).code == 0
    before = (tmp_path / "pets/manifest.json").stat().st_mtime_ns
    again = run(*make)
    assert (again.code, "already there" in again.out) == (0, True)
    assert (tmp_path / "pets/manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("option", "seed was 0 and is 3"),
        ("image", "images changed after it was made"),
        ("more images", "made from other images or labels"),
        ("shard", "train-000000.tar: 7 bytes"),
    ],
)
def test_a_set_that_is_not_the_one_asked_for_is_left_alone(
    run: Run, release: Path, tmp_path: Path, change: str, message: str
) -> None:
    make = ["make", "folder", release, "--out", tmp_path / "pets"]
    assert run(*make).code == 0
    later = time.time() + 60
    if change == "option":
        make += ["--seed", 3]
    elif change == "image":
        os.utime(release / "cat/0.jpg", (later, later))
    elif change == "more images":
        (release / "cat/more.jpg").write_bytes(picture(999))
    else:
        (tmp_path / "pets/train-000000.tar").write_bytes(b"damaged")
    before = files_of(tmp_path / "pets")
    refused = run(*make)
    assert refused.code == 2
    assert message in refused.err
    assert "--force" in refused.err
    assert files_of(tmp_path / "pets") == before
    assert run(*make, "--force").code == 0
    assert run("check", tmp_path / "pets").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets", "release"]


def test_force_never_replaces_a_folder_that_is_no_set(run: Run, release: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("years of work")
    refused = run("make", "folder", release, "--out", tmp_path / "thesis", "--force")
    assert refused.code == 2
    assert f"{tmp_path / 'thesis'} exists and is not a shard set" in refused.err
    assert files_of(tmp_path / "thesis") == {"chapter1.tex": b"years of work"}


def test_an_error_on_the_way_leaves_nothing(run: Run, tmp_path: Path) -> None:
    def broken() -> bytes:
        raise RuntimeError("the disk caught fire")

    records = [Record("pets", f"{i % 5}", f"{i}.jpg", lambda i=i: picture(i)) for i in range(20)]  # type: ignore[misc]
    records[13] = Record("pets", "3", "13.jpg", broken)
    with pytest.raises(RuntimeError, match="caught fire"):
        make_set(Order(out=tmp_path / "pets", config={}, given={}), records)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_so_and_leaves_nothing(tmp_path: Path, signum: signal.Signals) -> None:
    command = [sys.executable, "-m", "shards", "make", "sample", "--out", str(tmp_path / "set")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("set.partial-*/*.tar")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signum)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "shards: stopped; nothing half-written is left\n")
    assert list(tmp_path.iterdir()) == []


def test_unreadable_images_are_left_out_and_listed(run: Run, release: Path, tmp_path: Path) -> None:
    write_release(release / "many", {"a": 10, "b": 10})
    whole = (release / "cat/0.jpg").read_bytes()
    (release / "many/a/cut.jpg").write_bytes(whole[:-150])
    (release / "many/b/text.jpg").write_text("not an image at all")
    ran = run("make", "folder", release, "--out", tmp_path / "pets", "--max-skipped", "10%")
    assert ran.code == 0
    assert "2 images skipped" in ran.out
    skipped = (tmp_path / "pets/skipped.csv").read_text().splitlines()
    assert skipped[0] == "domain,label,source,reason"
    assert skipped[1].startswith("pets,many/a,many/a/cut.jpg,") and "truncated" in skipped[1]
    assert skipped[2] == "pets,many/b,many/b/text.jpg,not an image"
    assert Manifest.load(tmp_path / "pets").about["skipped"] == 2
    assert run("check", tmp_path / "pets").code == 0


def test_too_many_unreadable_images_fail_the_run_and_name_the_first(run: Run, release: Path, tmp_path: Path) -> None:
    (release / "cat/0.jpg").write_bytes(b"")
    (release / "dog/1.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    ran = run("make", "folder", release, "--out", tmp_path / "pets")
    assert ran.code == 2
    assert "2 of 19 images cannot be used, more than --max-skipped 0.01" in ran.err
    assert "pets/cat/0.jpg: the file is empty" in ran.err
    assert "pets/dog/1.jpg: " in ran.err
    assert not (tmp_path / "pets").exists()


def test_a_class_that_loses_its_images_to_damage_is_planned_anew(run: Run, tmp_path: Path) -> None:
    """A dev class of two, one of them truncated, would be a query that nothing can be found for."""
    release = write_release(tmp_path / "release", {f"class{n}": 2 for n in range(30)})
    assert run("make", "folder", release, "--out", tmp_path / "whole", "--domain", "d").code == 0
    whole = Manifest.load(tmp_path / "whole")
    query = whole.read(whole.select("dev", "query")[0], 0)
    broken = release / query.meta["source"]
    broken.write_bytes(query.image[:200])

    refused = run("make", "folder", release, "--out", tmp_path / "pets", "--domain", "d", "--max-skipped", "5%")
    assert refused.code == 2
    assert f"1 class has one image only (d/{query.meta['label']})" in refused.err

    options = ("--domain", "d", "--max-skipped", "5%", "--min-images", 2)
    assert run("make", "folder", release, "--out", tmp_path / "pets", *options).code == 0
    pets = Manifest.load(tmp_path / "pets")
    assert f"d/{query.meta['label']}" not in pets.classes.class_names()
    assert (pets.about["skipped"], pets.about["small"]) == (1, 1)
    broken.unlink()
    assert run("make", "folder", release, "--out", tmp_path / "without", *options).code == 0
    without = Manifest.load(tmp_path / "without")
    assert without.digest == pets.digest


def test_an_image_that_is_listed_twice_becomes_one_sample(run: Run, release: Path, tmp_path: Path) -> None:
    lines = ["image,label", *(f"{p.relative_to(release)},{p.parent.name}" for p in sorted(release.rglob("*.jpg")))]
    (release / "table.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    ran = run("make", "table", release / "table.csv", "--out", tmp_path / "pets", "--max-skipped", "10%")
    assert ran.code == 0, ran.err
    assert "listed more than once" in (tmp_path / "pets/skipped.csv").read_text()
    assert sum(shard.samples for shard in Manifest.load(tmp_path / "pets").shards) == 19


def test_a_full_disk_is_one_line_and_leaves_nothing(run: Run, release: Path, tmp_path: Path) -> None:
    if not shutil.which("prlimit"):
        pytest.skip("needs prlimit to bound the size of a file")
    command = ["prlimit", "--fsize=2000", sys.executable, "-m", "shards", "make", "folder", str(release)]
    ran = subprocess.run([*command, "--out", str(tmp_path / "pets")], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "File too large; the set was not made" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["release"]
