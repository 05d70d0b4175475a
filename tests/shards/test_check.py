"""`shards check` finds what is broken and says where, by shard and sample."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.cli import main
from shards.manifest import LABELS, Manifest, Shard, write_sidecar
from shards.tar import Ready, TarWriter
from tests.shards.conftest import FIVE_CLASSES, Ran, Run, files_of, picture, write_release
from tests.shards.test_manifest import edit_manifest

Damage = Callable[[Path], object]
TRAIN = "train-000000.tar"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that nothing is wrong with."""
    root = tmp_path_factory.mktemp("whole")
    release = write_release(root / "release", FIVE_CLASSES)
    words = ("--shard-samples", "4", "--workers", "1")
    assert main(["make", "folder", str(release), "--out", str(root / "pets"), *words]) == 0
    return root / "pets"


@pytest.fixture
def pets(whole: Path, tmp_path: Path) -> Manifest:
    """A copy of it."""
    return Manifest.load(shutil.copytree(whole, tmp_path / "pets"))


def check(run: Run, manifest: Manifest) -> Ran:
    """`shards check` in this process."""
    return run("check", manifest.folder, "--workers", 1)


def test_a_sound_set_passes_with_any_number_of_workers(pets: Manifest, run: Run) -> None:
    for words in (("--workers", 1), ("--workers", 3), ("--quick",)):
        ran = run("check", pets.folder, *words)
        assert (ran.code, ran.out) == (0, f"{pets.folder}: no problem in 19 samples of {len(pets.shards)} shards\n")


def row_of(folder: Path, file: str, at: int) -> np.void:
    """A row of a sidecar."""
    row: np.void = np.load(folder / f"{file}.index.npy")[at]
    return row


def change(path: Path, at: int, new: bytes) -> None:
    """Puts other bytes there."""
    raw = bytearray(path.read_bytes())
    assert raw[at : at + len(new)] != new
    raw[at : at + len(new)] = new
    path.write_bytes(raw)


def flip_pixels(folder: Path) -> None:
    """In the image of sample 1, beyond its header."""
    row = row_of(folder, TRAIN, 1)
    change(folder / TRAIN, int(row["image_at"]) + 20, bytes(int(row["image_bytes"]) - 20))


def flip_in_image_header(folder: Path) -> None:
    change(folder / TRAIN, int(row_of(folder, TRAIN, 1)["image_at"]) - 512 + 130, b"\x01")


def flip_in_json_header(folder: Path) -> None:
    change(folder / TRAIN, int(row_of(folder, TRAIN, 1)["json_at"]) - 512 + 130, b"\x01")


def flip_in_json(folder: Path) -> None:
    change(folder / TRAIN, int(row_of(folder, TRAIN, 1)["json_at"]), b"[")


def flip_in_label(folder: Path) -> None:
    """A json that says another class."""
    row = row_of(folder, TRAIN, 1)
    raw = (folder / TRAIN).read_bytes()[int(row["json_at"]) :][: int(row["json_bytes"])]
    label = json.loads(raw)["label"]
    other = next(name for name in ("cat", "dog", "fox", "hen", "owl") if name != label)
    change(folder / TRAIN, int(row["json_at"]) + raw.index(label.encode()), other.encode())


def cut_at(place: Callable[[np.void], int]) -> Damage:
    """A copy that was interrupted at a place of sample 2."""

    def cut(folder: Path) -> None:
        os.truncate(folder / TRAIN, place(row_of(folder, TRAIN, 2)))

    return cut


def without(number: int) -> Damage:
    """The tar without one of its members, as somebody packs it again."""

    def remove(folder: Path) -> None:
        with tarfile.open(folder / TRAIN) as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        with tarfile.open(folder / TRAIN, "w", format=tarfile.USTAR_FORMAT) as tar:
            for at, (member, data) in enumerate(members):
                if at != number:
                    tar.addfile(member, io.BytesIO(data))

    return remove


def exchange(folder: Path) -> None:
    """Two tars under each other's name."""
    raw = (folder / TRAIN).read_bytes()
    (folder / TRAIN).write_bytes((folder / "train-000001.tar").read_bytes())
    (folder / "train-000001.tar").write_bytes(raw)


def change_row(file: str, **values: int) -> Damage:
    """Adds to numbers in row 1 of a sidecar."""

    def shift(folder: Path) -> None:
        rows = np.load(folder / f"{file}.index.npy")
        for name, value in values.items():
            rows[name][1] += value
        np.save(folder / f"{file}.index.npy", rows)

    return shift


def in_manifest(edit: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: edit_manifest(folder, edit)


def rename_class(folder: Path) -> None:
    text = (folder / "classes.tsv").read_text()
    (folder / "classes.tsv").write_text(text.replace("cat", "cow"))


DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    "pixels": (flip_pixels, [f"{TRAIN}: the bytes changed", f"{TRAIN}: sample 1, 'pets/", "image is broken"]),
    "image header": (flip_in_image_header, [f"{TRAIN}: sample 1, 'pets/", "its image is not there: no tar header"]),
    "json header": (flip_in_json_header, [f"{TRAIN}: sample 1, 'pets/", "its json is not behind it: no tar header"]),
    "json": (flip_in_json, [f"{TRAIN}: sample 1, 'pets/", "its json cannot be parsed"]),
    "label": (flip_in_label, [f"{TRAIN}: sample 1, 'pets/", "its json says label ['pets/"]),
    "cut in a header": (
        cut_at(lambda row: int(row["image_at"]) - 200),
        ["but the manifest says", f"{TRAIN}: sample 2: no tar header", f"{TRAIN}: sample 3: is missing"],
    ),
    "cut in an image": (
        cut_at(lambda row: int(row["image_at"]) + 99),
        [f"{TRAIN}: sample 2, 'pets/", ".jpg' goes to byte", f"{TRAIN}: sample 3: is missing"],
    ),
    "cut in a json": (
        cut_at(lambda row: int(row["json_at"]) + 9),
        [f"{TRAIN}: sample 2, 'pets/", "its json is not behind it: 'pets/", ".json' goes to byte"],
    ),
    "cut between samples": (
        cut_at(lambda row: int(row["image_at"]) - 512),
        [f"{TRAIN}: sample 2: the tar ends at byte", f"{TRAIN}: sample 3: is missing"],
    ),
    "cut to nothing": (lambda folder: os.truncate(folder / TRAIN, 0), [f"{TRAIN}: 0 bytes, but the manifest says"]),
    "no image": (without(2), [f"{TRAIN}: sample 1, 'pets/", "its image is not in front of its json"]),
    "no json": (without(3), [f"{TRAIN}: sample 1, 'pets/", "its json is not behind it: followed by 'pets/"]),
    "no tar": (lambda folder: (folder / TRAIN).unlink(), [f"{TRAIN}: is missing"]),
    "no sidecar": (lambda f: (f / f"{TRAIN}.index.npy").unlink(), [f"{TRAIN}.index.npy: is missing"]),
    "a folder for a tar": (
        lambda folder: [(folder / TRAIN).unlink(), (folder / TRAIN).mkdir()],  # type: ignore[func-returns-value]
        [f"{TRAIN}: is no file"],
    ),
    "exchanged": (exchange, [f"{TRAIN}: the bytes changed", "train-000001.tar: the bytes changed"]),
    "offset": (
        change_row(TRAIN, image_at=512),
        [f"{TRAIN}.index.npy: sample 1, 'pets/", "the sidecar says (offset, size, offset, size, key hash)"],
    ),
    "key hash": (change_row(TRAIN, key_hash=1), [f"{TRAIN}.index.npy: sample 1, 'pets/", "the sidecar says"]),
    "class": (
        change_row("dev-index-000000.tar", label=-1),
        [
            "dev-index-000000.tar.index.npy: sample 1, 'pets/",
            "its json says label ['pets/",
            "images in dev, the shards have",
        ],
    ),
    "no such class": (change_row(TRAIN, label=77), [f"{TRAIN}.index.npy: sample 1: label", "has no such number"]),
    "group": (change_row(TRAIN, group=1), [f"{TRAIN}.index.npy: sample 1: group 1, and the set has no such number"]),
    "sidecar header": (
        lambda folder: change(folder / f"{TRAIN}.index.npy", 0, b"\x00"),
        [f"{TRAIN}.index.npy: cannot be read (not an .npy file)"],
    ),
    "sidecar padding": (
        lambda folder: change(folder / f"{TRAIN}.index.npy", 230, b"#"),
        [f"{TRAIN}.index.npy: its header is not as numpy writes it"],
    ),
    "sidecar end": (
        lambda folder: (folder / f"{TRAIN}.index.npy").open("ab").write(b"\0"),
        [f"{TRAIN}.index.npy: ", "bytes, 4 rows end at byte"],
    ),
    "classes": (rename_class, ["classes.tsv: changed after the set was made"]),
    "groups": (lambda f: (f / "groups.tsv").unlink(), ["groups.tsv: No such file"]),
    "sizes": (lambda f: (f / "sizes.json").write_text('{"a": 3}'), ["sizes.json: its counts are not the manifest's"]),
    "wids": (lambda f: (f / "wids.json").write_text("[" * 10**5), ["wids.json: cannot be read (RecursionError"]),
    "count": (
        in_manifest(lambda about: about["shards"][-1].update(samples=99)),
        [
            "manifest.json: train-",
            "99 samples are stated, it has",
            "its totals are not those",
            "sizes.json: its counts",
        ],
    ),
    "bytes": (
        in_manifest(lambda about: about["shards"][-1].update(bytes=99)),
        ["manifest.json: train-", "99 bytes are stated, it has"],
    ),
    "sum": (in_manifest(lambda about: about["shards"][0].update(sha256="0" * 64)), ["(sha256 ", ", not 000000000000)"]),
    "totals": (
        in_manifest(lambda about: about["totals"].clear()),
        ["manifest.json: its totals are not those of its shards"],
    ),
    "domains": (
        in_manifest(lambda about: about.update(domains=["pests"])),
        [f"{TRAIN}: sample 0, 'pets/", "its json says domain 'pets', the sidecar 'pests'"],
    ),
    "foreign tar": (
        lambda f: (f / "train-000099.tar").write_bytes(picture(1)),
        ["train-000099.tar: not in the manifest"],
    ),
    "foreign text": (lambda f: (f / "no\x1b[2Jte").write_text(""), ["no\\x1b[2Jte: not of this set"]),
    "foreign folder": (lambda folder: (folder / "old").mkdir(), ["old: not of this set"]),
}
UNSEEN = frozenset(
    ["pixels", "image header", "json header", "json", "label", "exchanged", "key hash", "sum", "domains"]
)
"""What --quick need not see."""


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_by_shard_and_sample(pets: Manifest, run: Run, name: str) -> None:
    damage, messages = DAMAGES[name]
    damage(pets.folder)
    before = files_of(pets.folder) if name not in ("a folder for a tar", "foreign folder") else {}
    ran = run("check", pets.folder, "--workers", 1)
    assert (ran.code, ran.err) == (1, "")
    for message in messages:
        assert message in ran.out
    assert "\x1b" not in ran.out
    assert not before or files_of(pets.folder) == before
    assert name in UNSEEN or run("check", pets.folder, "--quick").code == 1


def test_the_report_is_the_same_with_any_number_of_workers(pets: Manifest, run: Run) -> None:
    for damage in (flip_pixels, change_row("dev-index-000000.tar", label=-1), without(5)):
        damage(pets.folder)
    one, three = (run("check", pets.folder, "--workers", workers) for workers in (1, 3))
    assert one == three
    assert one.code == 1


def test_many_problems_are_counted_and_the_first_shown(pets: Manifest, run: Run) -> None:
    for number in range(40):
        (pets.folder / f"note{number:02d}.txt").write_text("")
    lines = check(run, pets).out.splitlines()
    assert lines[0] == "note00.txt: not of this set"
    assert lines[20:] == ["… and 20 more", f"{pets.folder}: 40 problems in 19 samples of {len(pets.shards)} shards"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda about: about["shards"][0].update(file="../x.tar"), "shards[0].file '../x.tar' is not possible"),
        (lambda about: about["shards"][0].update(file="/etc/x.tar"), "shards[0].file '/etc/x.tar' is not possible"),
        (lambda about: about["shards"][1].update(file="a\0.tar"), "shards[1].file 'a\\x00.tar' is not possible"),
        (lambda about: about["shards"][1].update(about["shards"][0]), "is listed twice"),
        (lambda about: about["shards"][0].update(samples=-1), "shards[0].samples -1 is not possible"),
        (lambda about: about["shards"][0].update(samples=True), "shards[0].samples True is not possible"),
        (lambda about: about["shards"][0].update(bytes="9"), "shards[0].bytes '9' is not possible"),
        (lambda about: about["shards"][0].update(split="trian"), "shards[0].split 'trian' is not possible"),
        (lambda about: about["shards"][0].update(role="train"), "shards[0].role 'train' is not possible"),
        (lambda about: about["shards"][0].update(sha256="x" * 64), "shards[0].sha256"),
        (lambda about: about["shards"][0].update(more=1), "shards[0].more 1 is not possible"),
        (lambda about: about["shards"].append("x"), "is missing ('x')"),
        (lambda about: about.update(shards={}), "shards is not a list"),
        (lambda about: about.update(domains="pets"), "domains is not a list of different names"),
        (lambda about: about.update(classes={"classes.tsv": "0"}), "classes does not give the sums"),
        (lambda about: about.update(config=[]), "config is not an object"),
        (lambda about: about.update(multi_label=1), "multi_label is neither true nor false"),
        (lambda about: about.update(salvaged={"shards": [{}]}), "salvaged.shards[0].file"),
    ],
)
def test_a_manifest_that_states_what_none_can_is_refused(pets: Manifest, run: Run, edit: Any, message: str) -> None:
    edit_manifest(pets.folder, edit)
    ran = check(run, pets)
    assert (ran.code, message in ran.err) == (2, True), ran.err


def test_checking_what_is_no_set_is_the_users_mistake(run: Run, tmp_path: Path) -> None:
    ran = run("check", tmp_path / "none")
    assert (ran.code, ran.err) == (2, f"shards: no shard set {tmp_path / 'none'}\n")


def write_shard(folder: Path, at: int, samples: list[tuple[str, bytes, dict[str, Any]]]) -> None:
    """Puts other samples into a shard, with a sidecar and a manifest that are right for them."""
    manifest = Manifest.load(folder)
    old = manifest.shards[at]
    with (folder / old.file).open("wb") as file:
        tar = TarWriter(file)
        for key, image, meta in samples:
            label = manifest.classes.ids.get((meta["domain"], str(meta.get("label"))), -1)
            tar.add(Ready(key, "jpg", image, json.dumps(meta).encode(), (label, 0, 0)))
        sha256 = tar.end()
    new = Shard(old.file, old.split, old.role, len(tar.rows), tar.num_bytes, sha256)
    write_sidecar(folder, new, tar.rows)
    entry = {"samples": new.samples, "bytes": new.bytes, "sha256": sha256}
    edit_manifest(folder, lambda about: about["shards"][at].update(entry))


def samples_of(manifest: Manifest, shard: Shard) -> list[tuple[str, bytes, dict[str, Any]]]:
    """Key, image and json."""
    samples = [manifest.read(shard, row) for row in range(shard.samples)]
    return [(sample.key, sample.image, sample.meta) for sample in samples]


@pytest.mark.parametrize(
    ("meta", "wrong"),
    [
        ({"label": 3}, "label"),
        ({"labels": ["cat"]}, "labels"),
        ({"source": None}, "source"),
        ({"extra": []}, "extra"),
        ({"box": [1, 2, 3]}, "box"),
        ({"box": [1, 2, 3, float("nan")]}, "box"),
        ({"licence": "free"}, "'licence'"),
        ({"domain": "\ud800"}, "domain"),
    ],
)
def test_a_json_that_breaks_the_schema_is_named(pets: Manifest, run: Run, meta: dict[str, Any], wrong: str) -> None:
    at = len(pets.shards) - 1
    samples = samples_of(pets, pets.shards[at])
    samples[1] = (*samples[1][:2], samples[1][2] | meta)
    write_shard(pets.folder, at, samples)
    ran = check(run, pets)
    assert f"{pets.shards[at].file}: sample 1, {samples[1][0]!r}: its json lacks, adds or mistypes {wrong}\n" in ran.out


def test_a_box_is_no_problem(pets: Manifest, run: Run) -> None:
    at = len(pets.shards) - 1
    samples = samples_of(pets, pets.shards[at])
    samples[1] = (*samples[1][:2], samples[1][2] | {"box": [1, 2.5, 9, 12]})
    write_shard(pets.folder, at, samples)
    assert "sample" not in check(run, pets).out.partition("no problem")[0].partition("manifest.json")[0]


@pytest.mark.parametrize("is_same_shard", [True, False])
def test_a_key_that_two_samples_have_is_named_with_both(pets: Manifest, run: Run, is_same_shard: bool) -> None:
    last = len(pets.shards) - 1
    source, at = pets.shards[last if is_same_shard else last - 1], last
    assert source.role == pets.shards[at].role == "train"
    samples = samples_of(pets, pets.shards[at])
    copied = samples_of(pets, source)[0]
    write_shard(pets.folder, at, [*samples, copied])
    place = f"{pets.shards[at].file}: sample {len(samples)}, {copied[0]!r}"
    for words in ((), ("--quick",)):
        ran = run("check", pets.folder, *words)
        assert f"{place}: its key occurs before, at {source.file}: sample 0\n" in ran.out


def test_an_image_of_another_kind_than_its_name_says_is_named(pets: Manifest, run: Run) -> None:
    at = len(pets.shards) - 1
    samples = samples_of(pets, pets.shards[at])
    samples[0] = (samples[0][0], picture(5, kind="PNG"), samples[0][2])
    write_shard(pets.folder, at, samples)
    assert f"sample 0, {samples[0][0]!r}: '{samples[0][0]}.jpg' is a png" in check(run, pets).out


@pytest.fixture
def tags(run: Run, tmp_path: Path) -> Manifest:
    """40 images with several labels each."""
    lines = ["image,labels"]
    for n in range(40):
        (tmp_path / f"{n}.jpg").write_bytes(picture(n))
        lines.append(f"{n}.jpg,tag{n % 3};tag{3 + n % 5};all")
    (tmp_path / "tags.csv").write_text("\n".join(lines) + "\n")
    words = ("--labels-column", "labels", "--label-separator", ";", "--shard-samples", 20, "--workers", 1)
    ran = run("make", "table", tmp_path / "tags.csv", *words, "--out", tmp_path / "tags")
    assert ran.code == 0, ran.err
    return Manifest.load(tmp_path / "tags")


def test_labels_of_samples_that_have_several_are_checked(tags: Manifest, run: Run) -> None:
    assert check(run, tags).code == 0
    name = tags.select("train")[0].labels
    whole = np.load(tags.folder / name)
    assert whole.dtype == LABELS

    def damaged(change: Callable[[np.ndarray], np.ndarray]) -> str:
        np.save(tags.folder / name, change(whole.copy()))
        ran = check(run, tags)
        assert ran.code == 1
        return ran.out

    def put(at: int, field: str, value: int) -> Callable[[np.ndarray], np.ndarray]:
        def change(pairs: np.ndarray) -> np.ndarray:
            pairs[field][at] = value
            return pairs

        return change

    assert f"{name}: sample 0, 'tags/" in damaged(lambda pairs: pairs[1:])
    assert "tag" in damaged(lambda pairs: pairs[1:])
    other = next(n for n in range(len(tags.classes)) if n not in whole["label"][:3] and n > whole["label"][1])
    assert f"{name}: sample 0, 'tags/" in damaged(put(2, "label", max(other, int(whole["label"][1]) + 1)))
    assert f"{name}: rows or classes that are none" in damaged(put(0, "label", 99))
    assert f"{name}: rows or classes that are none" in damaged(put(-1, "row", 99))
    assert f"{name}: rows and classes are not in order" in damaged(lambda pairs: pairs[::-1])
    (tags.folder / name).unlink()
    assert f"{name}: is missing" in check(run, tags).out
