"""`shards make folder`: which folder is which class, and layouts that would give wrong labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.manifest import Manifest
from tests.shards.conftest import FIVE_CLASSES, Run, picture, write_release


def test_every_folder_with_images_is_a_class(pets: Manifest) -> None:
    assert pets.domains == ("pets",)
    assert pets.classes.class_names() == [f"pets/{label}" for label in sorted(FIVE_CLASSES)]
    found = sum(pets.classes.counts(split) for split in ("train", "dev", "test"))
    assert found.tolist() == [FIVE_CLASSES[label] for label in sorted(FIVE_CLASSES)]


def test_the_label_of_a_deeper_folder_is_its_path(run: Run, tmp_path: Path) -> None:
    classes = {"cat/tabby": 3, "cat/siamese": 3, "dog": 3, "dog/poodle": 3}
    write_release(tmp_path / "release", classes)
    assert run("make", "folder", tmp_path / "release", "--out", tmp_path / "pets").code == 0
    assert Manifest.load(tmp_path / "pets").classes.labels == ("cat/siamese", "cat/tabby", "dog", "dog/poodle")


def test_levels_take_the_domain_from_the_first_folder(run: Run, tmp_path: Path) -> None:
    classes = {f"{domain}/{n}": 2 for domain in ("food", "toys") for n in range(4)}
    write_release(tmp_path / "release", classes)
    make = ("make", "folder", tmp_path / "release", "--out", tmp_path / "all", "--levels", "domain/class")
    assert run(*make).code == 0
    manifest = Manifest.load(tmp_path / "all")
    assert manifest.domains == ("food", "toys")
    assert manifest.classes.class_names() == sorted(classes)
    assert "exclude each other" in run(*make, "--domain", "food").err


def test_hidden_files_other_files_and_circles_of_links_are_passed_over(run: Run, release: Path, tmp_path: Path) -> None:
    (release / "cat/._0.jpg").write_bytes(b"a resource fork")
    (release / "cat/notes.txt").write_text("no image")
    (release / ".cache").mkdir()
    (release / ".cache/thumb.jpg").write_bytes(picture(1))
    (release / "dog/all").symlink_to(release)
    assert run("make", "folder", release, "--out", tmp_path / "pets").code == 0
    assert sum(shard.samples for shard in Manifest.load(tmp_path / "pets").shards) == sum(FIVE_CLASSES.values())


def test_names_that_are_not_plain_text_survive(run: Run, tmp_path: Path) -> None:
    classes = ["blåbær", "tab\there", "naïve.v2", "back\\slash", b"\xff\xfe".decode(errors="surrogateescape")]
    release = write_release(tmp_path / "release", dict.fromkeys(classes, 2))
    assert run("make", "folder", release, "--out", tmp_path / "odd").code == 0
    assert run("check", tmp_path / "odd").code == 0
    manifest = Manifest.load(tmp_path / "odd")
    assert manifest.classes.labels == tuple(sorted(classes))
    for shard in manifest.shards:
        for row in range(shard.samples):
            sample = manifest.read(shard, row)
            assert (release / sample.meta["source"]).read_bytes() == sample.image


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ([], [], "no images in it or below"),
        (["0.jpg", "cat/0.jpg"], [], "1 images are in no class folder (0.jpg); expected ROOT/class/image"),
        (["cat/0.jpg"], ["--levels", "domain/class"], "(cat/0.jpg); expected ROOT/domain/class/image"),
        (["train/cat/0.jpg", "val/cat/0.jpg"], [], "train, val look like splits"),
        (["cat/0.jpg", "dog/0.jpg", "dog/1.jpg"], [], "1 class has one image only (pets/cat)"),
        (["cat/0.jpg", "cat/1.jpg"], [], "1 training classes among 2 images"),
        (["cat/0.jpg", "cat/1.jpg"], ["--dev-fraction", "1.5"], "'1.5' is not a share; write it as 5% or 0.05"),
        (["cat/0.jpg", "cat/1.jpg"], ["--levels", "class/domain"], "invalid choice: 'class/domain'"),
    ],
)
def test_a_layout_that_gives_no_good_set_is_refused(
    run: Run, tmp_path: Path, layout: list[str], options: list[str], message: str
) -> None:
    (tmp_path / "release").mkdir()
    for place, name in enumerate(layout):
        path = tmp_path / "release" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(place))
    ran = run("make", "folder", tmp_path / "release", "--out", tmp_path / "pets", *options)
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "pets").exists()


def test_a_folder_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    ran = run("make", "folder", tmp_path / "nowhere", "--out", tmp_path / "pets")
    assert (ran.code, ran.err) == (2, f"shards: {tmp_path / 'nowhere'}: no such folder\n")
