"""`shards check --repair`: from the source the same bytes, without it everything that is intact."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.cli import main
from shards.manifest import Manifest
from tests.shards.conftest import FIVE_CLASSES, Ran, Run, files_of, picture, write_release
from tests.shards.test_check import (
    DAMAGES,
    TRAIN,
    change,
    exchange,
    flip_in_label,
    flip_pixels,
    row_of,
    samples_of,
    write_shard,
)
from tests.shards.test_manifest import edit_manifest


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a release of 19 images, and a set of it."""
    root = tmp_path_factory.mktemp("place")
    write_release(root / "release", FIVE_CLASSES)
    words = ("--out", str(root / "pets"), "--shard-samples", "4", "--workers", "1")
    assert main(["make", "folder", str(root / "release"), *words]) == 0
    return root


@pytest.fixture
def pets(place: Path, tmp_path: Path) -> Manifest:
    """A copy of the set; its source is still there."""
    return Manifest.load(shutil.copytree(place / "pets", tmp_path / "pets"))


@pytest.fixture
def orphan(pets: Manifest) -> Manifest:
    """A copy of the set whose source is gone."""
    gone = str(pets.folder.parent / "gone")
    edit_manifest(pets.folder, lambda about: about["given"].update(root=gone))
    write_json_again(pets.folder)
    manifest = Manifest.load(pets.folder)
    assert len(manifest.classes) == 5  # read now
    return manifest


def write_json_again(folder: Path) -> None:
    """As `shards` writes it, so that bytes can be compared."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1) + "\n")


def repair(run: Run, folder: Path, workers: int = 1) -> Ran:
    """`shards check --repair`, and that what it leaves is sound and nothing half-done."""
    ran = run("check", folder, "--repair", "--workers", workers)
    assert not folder.with_name(f"{folder.name}.repair.partial").exists()
    if "copy manifest.json" not in ran.out:
        assert run("check", folder, "--workers", 1).code == 0
    return ran


def all_samples(manifest: Manifest) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """(image, json) by key."""
    listed = [sample for shard in manifest.shards for sample in samples_of(manifest, shard)]
    return {key: (image, meta) for key, image, meta in listed}


def lost_rows(folder: Path) -> list[list[str]]:
    """What the quarantine lists, without the header."""
    with (folder.with_name(f"{folder.name}.quarantine") / "lost.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def test_a_sound_set_is_left_alone(pets: Manifest, run: Run) -> None:
    before = {path: path.stat() for path in pets.folder.parent.rglob("*")}
    ran = repair(run, pets.folder)
    assert (ran.code, ran.out) == (0, f"{pets.folder}: no problem, nothing to repair\n")
    after = {path: path.stat() for path in pets.folder.parent.rglob("*")}
    assert [(path, one.st_mtime_ns, one.st_ino) for path, one in after.items() if path != pets.folder.parent] == [
        (path, one.st_mtime_ns, one.st_ino) for path, one in before.items() if path != pets.folder.parent
    ]


@pytest.mark.parametrize("name", DAMAGES)
def test_with_the_source_every_file_is_what_it_was(place: Path, pets: Manifest, run: Run, name: str) -> None:
    DAMAGES[name][0](pets.folder)
    ran = repair(run, pets.folder)
    assert ran.code == 0, ran.out
    assert files_of(pets.folder) == files_of(place / "pets")
    is_moved = name.startswith("foreign") or name == "a folder for a tar"
    assert pets.folder.with_name("pets.quarantine").exists() == is_moved


LOSES = {
    **dict.fromkeys(("pixels", "image header", "json header", "json", "label", "no image", "no json"), 1),
    **dict.fromkeys(("cut in a header", "cut in an image", "cut in a json", "cut between samples"), 2),
    **dict.fromkeys(("cut to nothing", "no tar", "a folder for a tar"), 4),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_without_the_source_what_is_intact_stays(orphan: Manifest, run: Run, name: str) -> None:
    whole, before = files_of(orphan.folder), all_samples(orphan)
    DAMAGES[name][0](orphan.folder)
    ran = repair(run, orphan.folder)
    left = Manifest.load(orphan.folder)
    after = all_samples(left)
    assert len(after) == len(before) - LOSES.get(name, 0)
    assert after.items() <= before.items()
    if name == "sum":  # nobody can tell whether the tar or the sum was changed
        assert (ran.code, "none of its 4 samples is seen to be broken" in ran.out) == (1, True)
    elif name not in LOSES:
        assert ran.code == 0, ran.out
        assert files_of(orphan.folder) == whole
    else:
        assert ran.code == 1
        assert f"{len(before) - len(after)} lost\n  listed in" in ran.out
        listed = lost_rows(orphan.folder)
        assert {row[0] for row in listed} == {TRAIN}
        assert len(listed) == len(before) - len(after)
        assert {row[2] for row in listed} - {""} <= before.keys() - after.keys()
        assert left.classes.class_names() == orphan.classes.class_names()


def test_where_the_source_comes_back_the_set_becomes_what_it_was(orphan: Manifest, place: Path, run: Run) -> None:
    whole = files_of(orphan.folder)
    flip_pixels(orphan.folder)
    (orphan.folder / "dev-query-000000.tar").unlink()
    (orphan.folder / "dev-query-000000.tar.index.npy").unlink()
    ran = repair(run, orphan.folder)
    assert (ran.code, "3 samples lost" in ran.out) == (1, True)
    assert not Manifest.load(orphan.folder).select("dev", "query")
    assert "3 samples lost" in run("check", orphan.folder).out
    assert repair(run, orphan.folder).code == 0
    assert "cannot be read again" in repair(run, orphan.folder).out

    make = ("make", "folder", place / "release", "--shard-samples", 4, "--workers", 1, "--out", orphan.folder)
    refused = run(*make)
    assert (refused.code, "exists and was made" in refused.err) == (2, True)

    shutil.copytree(place / "release", orphan.folder.parent / "gone")
    ran = repair(run, orphan.folder)
    assert ran.code == 0, ran.out
    assert files_of(orphan.folder) == whole


def test_a_source_that_comes_back_with_more_in_it_is_good_enough(orphan: Manifest, place: Path, run: Run) -> None:
    """What the shard had is known from the sidecar in quarantine."""
    whole = files_of(orphan.folder)
    flip_pixels(orphan.folder)
    assert repair(run, orphan.folder).code == 1
    shutil.copytree(place / "release", orphan.folder.parent / "gone")
    (orphan.folder.parent / "gone/cat/more.jpg").write_bytes(picture(99))
    assert repair(run, orphan.folder).code == 0
    assert files_of(orphan.folder) == whole


def test_a_flipped_bit_that_still_decodes_is_not_taken_for_whole(orphan: Manifest, place: Path, run: Run) -> None:
    """Nobody can tell where it is; with the source it is found by the sum of the tar."""
    whole = files_of(orphan.folder)
    row = row_of(orphan.folder, TRAIN, 1)
    middle = int(row["image_at"]) + int(row["image_bytes"]) // 2 + 60
    raw = (orphan.folder / TRAIN).read_bytes()
    change(orphan.folder / TRAIN, middle, bytes([raw[middle] ^ 4]))
    assert "sample" not in run("check", orphan.folder).out.partition(":")[2].partition("samples")[0]
    ran = repair(run, orphan.folder)
    assert (ran.code, "none of its 4 samples is seen to be broken" in ran.out) == (1, True)
    shutil.copytree(place / "release", orphan.folder.parent / "gone")
    assert repair(run, orphan.folder).code == 0
    assert files_of(orphan.folder) == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_changed_skipped_and_left_out_images_come_out_the_same(run: Run, tmp_path: Path, workers: int) -> None:
    """Small images, two that cannot be read, and a class that fell below --min-images by one of them: from the sidecars,
    and where those are gone too, from the same plan."""
    release = write_release(tmp_path / "release", {f"class{n}": 2 + n % 3 for n in range(12)})
    (release / "class1/0.jpg").write_bytes(b"broken")
    (release / "class3/1.jpg").write_bytes(picture(1)[:300])
    options = ("--short-side", 20, "--max-skipped", "20%", "--min-images", 2, "--shard-samples", 3, "--workers", 1)
    assert run("make", "folder", release, "--out", tmp_path / "pets", *options).code == 0
    made = Manifest.load(tmp_path / "pets")
    assert (made.about["skipped"], made.about["small"]) == (2, 1)
    whole = files_of(made.folder)
    for number, shard in enumerate(made.shards):
        change(made.folder / shard.file, 700, b"damaged")
        if number % 2:
            (made.folder / shard.sidecar).unlink()
    ran = repair(run, made.folder, workers)
    assert ran.code == 0, ran.out
    assert ran.out.count("written again from the source, same bytes") == len(made.shards)
    assert files_of(made.folder) == whole


def test_a_source_that_grew_or_lost_others_is_good_enough(run: Run, tmp_path: Path) -> None:
    """Each shard is proved by its own sum; what the source lacks is taken from the tar if it is intact there."""
    release = write_release(tmp_path / "release", FIVE_CLASSES)
    words = ("--shard-samples", 4, "--workers", 1, "--out", tmp_path / "pets")
    assert run("make", "folder", release, *words).code == 0
    pets = Manifest.load(tmp_path / "pets")
    whole = files_of(pets.folder)
    first = pets.read(pets.select("train")[0], 0)
    (release / "cat/new.jpg").write_bytes(picture(77))
    (release / "owl/0.png").write_bytes(picture(78, kind="PNG"))
    flip_pixels(pets.folder)
    ran = repair(run, pets.folder)
    assert (ran.code, files_of(pets.folder)) == (0, whole), ran.out

    (release / first.meta["source"]).unlink()
    flip_pixels(pets.folder)
    ran = repair(run, pets.folder)
    assert "written again from what is intact and the source, same bytes" in ran.out
    assert (ran.code, files_of(pets.folder)) == (0, whole), ran.out

    second = pets.read(pets.select("train")[0], 1)
    (release / second.meta["source"]).unlink()
    flip_pixels(pets.folder)
    ran = repair(run, pets.folder)
    assert (ran.code, "the source: changed since the set was made" in ran.out) == (1, True)
    assert lost_rows(pets.folder)[0][:3] == [TRAIN, "1", second.key]
    shutil.rmtree(release)


def test_images_that_another_version_encodes_otherwise_are_made_again(run: Run, tmp_path: Path) -> None:
    """The sum cannot be reached any more, but the source is unchanged: only what is broken is made again."""
    release = write_release(tmp_path / "release", FIVE_CLASSES)
    words = ("--short-side", 20, "--quality", 80, "--shard-samples", 4, "--workers", 1, "--out", tmp_path / "pets")
    assert run("make", "folder", release, *words).code == 0
    edit_manifest(tmp_path / "pets", lambda about: about["config"].update(quality=95))
    pets = Manifest.load(tmp_path / "pets")
    before = all_samples(pets)
    flip_pixels(pets.folder)
    ran = repair(run, pets.folder)
    assert ran.code == 0, ran.out
    assert f"{TRAIN}: all 4 samples kept, 1 of them made again from the source" in ran.out
    after = all_samples(Manifest.load(pets.folder))
    changed = {key for key in before if before[key] != after[key]}
    assert (before.keys(), len(changed)) == (after.keys(), 1)
    assert "nothing to repair" in repair(run, pets.folder).out


def test_an_appended_set_is_written_again_from_both_its_sources(run: Run, place: Path, tmp_path: Path) -> None:
    pets = tmp_path / "pets"
    shutil.copytree(place / "pets", pets)
    more = write_release(tmp_path / "more", {"cat": 2, "yak": 5})
    for path in sorted(more.rglob("*.jpg")):
        path.rename(path.with_name(f"new{path.name}"))
    assert run("append", pets, "folder", more, "--domain", "pets", "--workers", 1).code == 0
    whole = files_of(pets)
    for shard in Manifest.load(pets).shards:
        change(pets / shard.file, 700, b"damaged")
    ran = repair(run, pets)
    assert (ran.code, files_of(pets) == whole) == (0, True), ran.out


def test_a_merged_set_takes_tars_from_the_sets_it_was_made_of(run: Run, place: Path, tmp_path: Path) -> None:
    other = write_release(tmp_path / "other", {"a": 3, "b": 3, "c": 3, "d": 3})
    assert run("make", "folder", other, "--out", tmp_path / "set", "--workers", 1).code == 0
    shutil.copytree(place / "pets", tmp_path / "pets")
    assert run("merge", tmp_path / "pets", tmp_path / "set", "--out", tmp_path / "both").code == 0
    whole = files_of(tmp_path / "both")
    for path in sorted((tmp_path / "both").glob("*.tar")):
        path.unlink()
    ran = repair(run, tmp_path / "both")
    assert (ran.code, files_of(tmp_path / "both") == whole) == (0, True), ran.out
    flip_pixels(tmp_path / "both")  # the same file, under two names: a hard link
    ran = repair(run, tmp_path / "both")
    assert (ran.code, "made by 'merge'" in ran.out) == (1, True)
    assert run("check", tmp_path / "pets").code == 1


def test_tars_that_were_exchanged_or_renamed_are_put_back(orphan: Manifest, run: Run) -> None:
    whole = files_of(orphan.folder)
    exchange(orphan.folder)
    query = orphan.folder / "dev-query-000000.tar"
    query.rename(query.with_name("dev-query-000000 (1).tar"))
    ran = repair(run, orphan.folder)
    assert (ran.code, ran.out.count("put back")) == (0, 3)
    assert files_of(orphan.folder) == whole


@pytest.mark.parametrize(("kept", "broken"), [(TRAIN, "train-000001.tar"), ("train-000001.tar", TRAIN)])
@pytest.mark.parametrize("has_source", [True, False])
def test_a_tar_under_the_name_of_another_leaves_no_sample_twice(
    orphan: Manifest, place: Path, run: Run, kept: str, broken: str, has_source: bool
) -> None:
    whole = files_of(orphan.folder)
    if has_source:
        shutil.copytree(place / "release", orphan.folder.parent / "gone")
    shutil.copyfile(orphan.folder / kept, orphan.folder / broken)
    assert "its key occurs before" in run("check", orphan.folder, "--workers", 1).out
    ran = repair(run, orphan.folder)
    if has_source:
        assert (ran.code, ran.out.count("train-"), files_of(orphan.folder) == whole) == (0, 1, True), ran.out
    else:
        assert (ran.code, f"{broken}: 0 of 4 samples kept; 4 lost" in ran.out) == (1, True)
        assert files_of(orphan.folder)[kept] == whole[kept]


def test_a_source_that_lists_images_and_has_none_does_not_hold_up_the_rest(run: Run, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    lines = ["image,label"]
    for n in range(210):
        (images / f"{n}.jpg").write_bytes(picture(n, size=(8, 8)))
        lines.append(f"{n}.jpg,{n % 2}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    words = ("--images", f"file://{images}", "--train-only", "--workers", 1, "--out", tmp_path / "pets")
    assert run("make", "table", tmp_path / "t.csv", *words).code == 0
    flip_pixels(tmp_path / "pets")
    images.rename(tmp_path / "moved")
    ran = repair(run, tmp_path / "pets")
    assert (ran.code, "the source: 20 images in a row" in ran.out, "209 of 210 samples kept" in ran.out) == (
        1,
        True,
        True,
    )
    (tmp_path / "moved").rename(images)
    assert repair(run, tmp_path / "pets").code == 0


def test_samples_that_were_written_broken_are_taken_out(pets: Manifest, run: Run) -> None:
    """The sums are right, so the source would give the same again: an image that never decoded, a key that came twice."""
    last = len(pets.shards) - 1
    twice = samples_of(pets, pets.shards[last - 1])[0]
    samples = samples_of(pets, pets.shards[last])
    write_shard(pets.folder, last, [*samples[:2], (samples[2][0], b"no image", samples[2][2]), twice, samples[3]])
    ran = repair(run, pets.folder)
    assert (ran.code, f"{pets.shards[last].file}: 3 of 5 samples kept" in ran.out) == (1, True)
    left = Manifest.load(pets.folder)
    assert [key for key, _, _ in samples_of(left, left.shards[last])] == [samples[at][0] for at in (0, 1, 3)]
    assert [(row[1], row[2]) for row in lost_rows(pets.folder)] == [("2", samples[2][0]), ("3", twice[0])]
    assert not {key for key, _, _ in samples_of(left, left.shards[last - 1])} ^ {
        key for key, _, _ in samples_of(pets, pets.shards[last - 1])
    }


def test_bytes_put_in_between_cost_one_sample(orphan: Manifest, run: Run) -> None:
    """Everything behind them lies elsewhere than the sidecar says, and off the blocks."""
    before = all_samples(orphan)
    for name in (TRAIN, "train-000001.tar"):
        at = int(row_of(orphan.folder, name, 1)["image_at"]) + 30
        raw = (orphan.folder / name).read_bytes()
        cut = 7 if name == TRAIN else 0
        (orphan.folder / name).write_bytes(raw[:at] + (b"" if cut else b"more") + raw[at + cut :])
    (orphan.folder / f"{TRAIN}.index.npy").unlink()
    assert repair(run, orphan.folder).code == 1
    after = all_samples(Manifest.load(orphan.folder))
    assert after.items() <= before.items()
    assert len(after) == len(before) - 2


def test_names_are_not_guessed(orphan: Manifest, run: Run) -> None:
    """Without classes.tsv and with a broken tar nobody knows all classes: nothing is thrown away."""
    (orphan.folder / "classes.tsv").unlink()
    flip_pixels(orphan.folder)
    before = files_of(orphan.folder)
    ran = repair(run, orphan.folder)
    assert (ran.code, "copy manifest.json, classes.tsv and groups.tsv" in ran.out) == (1, True)
    assert files_of(orphan.folder) == before


def test_an_emptied_class_keeps_its_id(orphan: Manifest, run: Run) -> None:
    for shard in orphan.select("dev"):
        (orphan.folder / shard.file).unlink()
    assert repair(run, orphan.folder).code == 1
    left = Manifest.load(orphan.folder)
    assert left.classes.class_names() == orphan.classes.class_names()
    assert left.classes.counts("dev").tolist() == [0] * 5
    assert left.classes.counts("train").tolist() == orphan.classes.counts("train").tolist()
    for shard in left.shards:
        assert np.array_equal(left.sidecar(shard), np.load(orphan.folder / shard.sidecar))


def test_the_last_sample_is_never_thrown_away(orphan: Manifest, run: Run) -> None:
    for shard in orphan.shards:
        os.truncate(orphan.folder / shard.file, 100)
    before = files_of(orphan.folder)
    ran = repair(run, orphan.folder)
    assert (ran.code, "no sample is left" in ran.out) == (1, True)
    assert files_of(orphan.folder) == before


KILLED = 9


def killed_repair(folder: Path, step: int) -> bool:
    """Repairs in a child that is gone before its rename number `step`; whether it got that far."""
    child = os.fork()
    if child == 0:
        left = step

        def counted(do: Callable[..., Any]) -> Callable[..., Any]:
            def call(*words: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(KILLED)
                return do(*words, **named)

            return call

        os.replace, os.rename, os.link = counted(os.replace), counted(os.rename), counted(os.link)  # type: ignore[assignment]
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        main(["check", str(folder), "--repair", "--workers", "1"])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED


@pytest.mark.parametrize("has_source", [True, False])
def test_killed_at_any_rename_another_repair_goes_on(
    place: Path, orphan: Manifest, run: Run, tmp_path: Path, has_source: bool
) -> None:
    before = all_samples(orphan)
    if has_source:
        (tmp_path / "gone").symlink_to(place / "release")
    exchange(orphan.folder)
    query = orphan.folder / "dev-query-000000.tar"
    change(query, int(row_of(orphan.folder, query.name, 1)["image_at"]), bytes(200))
    (orphan.folder / "note.txt").write_text("of somebody")
    (orphan.folder / "sizes.json").unlink()
    shutil.copytree(orphan.folder, tmp_path / "damaged")
    for step in range(100):
        shutil.rmtree(orphan.folder)
        shutil.rmtree(tmp_path / "pets.quarantine", ignore_errors=True)
        shutil.copytree(tmp_path / "damaged", orphan.folder)
        if not killed_repair(orphan.folder, step):
            break
        assert run("check", orphan.folder, "--workers", 1).code in (0, 1)
        repair(run, orphan.folder)
        after = all_samples(Manifest.load(orphan.folder))
        assert after.items() <= before.items()
        assert len(after) == len(before) - (not has_source)
        assert (tmp_path / "pets.quarantine/note.txt").read_text() == "of somebody"
    assert step > 3


def test_two_repairs_of_one_set_exclude_each_other(pets: Manifest, run: Run) -> None:
    from shards.making.output import locked

    flip_in_label(pets.folder)
    with locked(pets.folder.with_name("pets.repair.partial")):
        ran = run("check", pets.folder, "--repair")
    assert (ran.code, "another process" in ran.err) == (2, True)


def test_a_quick_look_repairs_nothing(pets: Manifest, run: Run) -> None:
    ran = run("check", pets.folder, "--quick", "--repair")
    assert (ran.code, "not allowed with argument --quick" in ran.err) == (2, True)
