"""`shards make folder`: which folder is which class, and layouts that would give wrong labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import ShardError
from shards.manifest import Manifest
from shards.place import File
from tests.shards.conftest import FIVE_CLASSES, Run, picture, write_release
from tests.shards.sourcing import read, serve


def test_every_folder_with_images_is_a_class(pets: Manifest) -> None:
    assert pets.domains == ("pets",)
    assert pets.classes.class_names() == [f"pets/{label}" for label in sorted(FIVE_CLASSES)]
    found = [pets.classes.counts(split) for split in ("train", "dev", "test")]
    assert [sum(counts) for counts in zip(*found, strict=True)] == [
        FIVE_CLASSES[label] for label in sorted(FIVE_CLASSES)
    ]


def write_files(root: Path, *paths: str) -> Path:
    """A different image at each path."""
    root.mkdir(exist_ok=True)
    for place, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(place))
    return root


def test_the_label_of_a_deeper_folder_is_its_path(tmp_path: Path) -> None:
    root = write_files(tmp_path / "r", "dog/poodle/1.jpg", "cat/tabby/1.jpg", "dog/1.jpg", "cat/siamese/1.jpg")
    records = list(read("folder", root))
    assert [record.label for record in records] == ["cat/siamese", "cat/tabby", "dog", "dog/poodle"]
    assert [record.source for record in records] == [f"{record.label}/1.jpg" for record in records]
    assert {(record.domain, record.group, record.split, record.problem) for record in records} == {
        ("pets", None, None, None)
    }


def test_records_say_where_and_how_large_the_files_are(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(release.parent)
    for record in read("folder", release.name):
        status = (release / record.source).stat()
        assert record.place == File(str(release / record.source))
        assert (record.num_bytes, record.changed_at) == (status.st_size, status.st_mtime)


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    names = [f"{label}/{view}.jpg" for label in ("b", "a/x", "a", "c") for view in (3, 1, 2)]
    sources = [record.source for record in read("folder", write_files(tmp_path / "r", *names))]
    assert sources == [f"{label}/{view}.jpg" for label in ("a", "a/x", "b", "c") for view in (1, 2, 3)]


@pytest.mark.parametrize(
    ("levels", "path", "said"),
    [
        ("class", "a/b/c/1.jpg", ("pets", "a/b/c", None, None, "a/b/c/1.jpg")),
        ("domain/class", "a/b/c/1.jpg", ("a", "b/c", None, None, "b/c/1.jpg")),
        ("domain/group/class", "a/b/c/d/1.jpg", ("a", "c/d", "b", None, "b/c/d/1.jpg")),
        ("group/class", "a/b/1.jpg", ("pets", "b", "a", None, "a/b/1.jpg")),
        ("split/class", "train/b/1.jpg", ("pets", "b", None, "train", "train/b/1.jpg")),
        ("split/domain/class", "val/b/c/1.jpg", ("b", "c", None, "dev", "val/c/1.jpg")),
        ("domain/split/group/class", "a/Validation/g/c/1.jpg", ("a", "c", "g", "dev", "Validation/g/c/1.jpg")),
        ("*/class", "a/b/1.jpg", ("pets", "b", None, None, "a/b/1.jpg")),
        ("*/*/split/class", "a/b/test/c/1.jpg", ("pets", "c", None, "test", "a/b/test/c/1.jpg")),
        ("split/class", "dev_query/c/1.jpg", ("pets", "c", None, "dev_query", "dev_query/c/1.jpg")),
    ],
)
def test_levels_say_what_the_folders_are(tmp_path: Path, levels: str, path: str, said: tuple[str | None, ...]) -> None:
    (record,) = read("folder", write_files(tmp_path / "r", path), "--levels", levels)
    assert (record.domain, record.label, record.group, record.split, record.source) == said


def test_levels_and_domain_exclude_each_other(release: Path) -> None:
    with pytest.raises(ShardError, match="--domain and --levels domain/class exclude each other"):
        list(read("folder", release, "--levels", "domain/class", "--domain", "food"))


def test_a_set_with_the_splits_of_its_folders(run: Run, tmp_path: Path) -> None:
    root = write_files(tmp_path / "r", *(f"{s}/{c}/{n}.jpg" for s in ("train", "val") for c in "abc" for n in range(4)))
    ran = run("make", "folder", root, "--out", tmp_path / "letters", "--levels", "split/class")
    assert ran.code == 0, ran.err
    counts = dict.fromkeys(("train", "dev", "test"), 0)
    for shard in Manifest.load(tmp_path / "letters").shards:
        counts[shard.split] += shard.samples
    assert counts == {"train": 12, "dev": 12, "test": 0}


def test_hidden_files_other_files_and_circles_of_links_are_passed_over(release: Path) -> None:
    expected = sorted(record.source for record in read("folder", release))
    (release / "cat/._0.jpg").write_bytes(b"a resource fork")
    (release / "cat/notes.txt").write_text("no image")
    (release / ".cache").mkdir()
    (release / ".cache/thumb.jpg").write_bytes(picture(1))
    (release / "__MACOSX").mkdir()
    (release / "__MACOSX/thumb.jpg").write_bytes(picture(1))
    (release / "dog/all").symlink_to(release)
    os.mkfifo(release / "dog/pipe.jpg")
    assert sorted(record.source for record in read("folder", release)) == expected
    assert len(expected) == sum(FIVE_CLASSES.values())


def test_links_are_followed_and_one_to_nowhere_is_a_file_that_cannot_be_read(release: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "elsewhere", "cow/1.jpg")
    (release / "cow").symlink_to(tmp_path / "elsewhere/cow")
    (release / "cat/gone.jpg").symlink_to(tmp_path / "nothing")
    (release / "cat/self").symlink_to("self")
    records = {record.source: record for record in read("folder", release)}
    assert records["cow/1.jpg"].place.read() == picture(0)
    assert records["cat/gone.jpg"].num_bytes == 0
    with pytest.raises(FileNotFoundError):
        records["cat/gone.jpg"].place.read()


@pytest.fixture
def urls(release: Path) -> Iterator[list[str]]:
    """The release behind two kinds of URL."""
    with serve(release) as server:
        yield [f"file://{release}", server.url, f"{server.url}/"]


def test_a_url_gives_the_same_records(release: Path, urls: list[str]) -> None:
    (release / "top.txt").write_text("no image")
    write_files(release, "cat/a #1?.jpg", "cat/deep er/1.png")
    expected = {record.source: (record.label, record.place.read()) for record in read("folder", release)}
    for url in urls:
        records = list(read("folder", url))
        assert {record.source: (record.label, record.place.read()) for record in records} == expected
        assert len(records) == len(expected)
    (release / "top.jpg").write_bytes(picture(1))
    for url in urls:
        with pytest.raises(ShardError, match=r"1 images are in no class folder \(top.jpg\); expected ROOT/class/image"):
            list(read("folder", url))


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
        ([], [], "no images in it or below; image files end in .bmp"),
        (["0.jpg", "cat/0.jpg"], [], "1 images are in no class folder (0.jpg); expected ROOT/class/image"),
        (
            ["1.jpg", "0.jpg", "2.jpg", "3.jpg", "cat/0.jpg"],
            [],
            "4 images are in no class folder (0.jpg, 1.jpg, 2.jpg, …)",
        ),
        (["cat/0.jpg"], ["--levels", "domain/class"], "(cat/0.jpg); expected ROOT/domain/class/image"),
        (["a/cat/0.jpg", "b/0.jpg"], ["--levels", "domain/class"], "1 images are in no class folder (b/0.jpg)"),
        (["train/cat/0.jpg", "val/cat/0.jpg"], [], "train, val look like splits"),
        (["Train/cat/0.jpg", "gallery/cat/0.jpg", "notes/a.txt"], [], "(--levels split/class), or pass --levels class"),
        (
            ["train/a/0.jpg", "vall/a/0.jpg"],
            ["--levels", "split/class"],
            "vall/a: 'vall' is no split; there are: train",
        ),
        (["train/a/0.jpg", "vall/a/0.jpg"], ["--levels", "split/class"], "did you mean val?"),
    ],
)
def test_a_layout_that_would_give_wrong_labels_is_refused(
    tmp_path: Path, layout: list[str], options: list[str], message: str
) -> None:
    with pytest.raises(ShardError) as refused:
        list(read("folder", write_files(tmp_path / "release", *layout), *options))
    assert message in str(refused.value)


@pytest.mark.parametrize("layout", [["train/cat/0.jpg", "cat/0.jpg"], ["test/0.jpg", "zebra/0.jpg"]])
def test_folders_beside_others_may_be_called_like_splits(tmp_path: Path, layout: list[str]) -> None:
    assert len(list(read("folder", write_files(tmp_path / "release", *layout)))) == 2


@pytest.mark.parametrize("levels", ["class/domain", "domain", "domain/domain/class", "brand/class", "class/class", ""])
def test_levels_that_mean_nothing_are_refused(run: Run, release: Path, levels: str) -> None:
    ran = run("make", "folder", release, "--out", "x", "--levels", levels)
    assert ran.code == 2
    assert f"{levels!r} is not a way to read folders; write domain, group, split, *" in ran.err


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        (["cat/0.jpg", "dog/0.jpg", "dog/1.jpg"], [], "1 class has one image only (pets/cat)"),
        (["cat/0.jpg", "cat/1.jpg"], [], "1 training classes among 2 images"),
        (["cat/0.jpg", "cat/1.jpg"], ["--dev-fraction", "1.5"], "'1.5' is not a share; write it as 5% or 0.05"),
    ],
)
def test_a_layout_that_gives_no_good_set_is_refused(
    run: Run, tmp_path: Path, layout: list[str], options: list[str], message: str
) -> None:
    ran = run("make", "folder", write_files(tmp_path / "release", *layout), "--out", tmp_path / "pets", *options)
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "pets").exists()


def test_a_folder_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    ran = run("make", "folder", tmp_path / "nowhere", "--out", tmp_path / "pets")
    assert (ran.code, ran.err) == (2, f"shards: {tmp_path / 'nowhere'}: no such folder\n")
