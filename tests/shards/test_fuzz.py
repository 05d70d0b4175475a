"""Damage that nobody thought of: `shards check` names it, repair mends it, and nothing crashes, hangs or reads elsewhere."""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import shards
from shards.checking.check import inspect_set
from shards.checking.repair import repair_set
from shards.cli import main
from shards.errors import ShardError
from shards.manifest import Manifest
from shards.sources import load_source
from tests.shards.conftest import files_of, picture
from tests.shards.test_check import samples_of

LIMIT_S = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small sets: one label an image, and several."""
    root = tmp_path_factory.mktemp("place")
    plain, several = ["image,label,group"], ["image,labels"]
    for n in range(14):
        kind = ("JPEG", "PNG")[n % 2]
        (root / f"{n}.{kind.lower()}").write_bytes(picture(n, kind=kind, size=(12, 8)))
        plain.append(f"{n}.{kind.lower()},class{n % 4},group{n % 2}")
        several.append(f"{n}.{kind.lower()},tag{n % 2};all")
    (root / "one.csv").write_text("\n".join(plain) + "\n")
    (root / "many.csv").write_text("\n".join(several) + "\n")
    words = ["--shard-samples", "5", "--workers", "1"]
    assert main(["make", "table", str(root / "one.csv"), "--out", str(root / "one"), *words]) == 0
    labels = ["--labels-column", "labels", "--label-separator", ";", "--dev-fraction", "50%"]
    assert main(["make", "table", str(root / "many.csv"), "--out", str(root / "many"), *labels, *words]) == 0
    for name in ("one", "many"):
        assert not inspect_set(Manifest.load(root / name)).num_problems
    return root


def mutate(raw: bytes, chance: random.Random, kinds: str = "flip byte cut insert swap zero") -> bytes:
    """The bytes with one random damage."""
    kind = chance.choice(kinds.split())
    at = chance.randrange(len(raw))
    if kind == "flip":
        return raw[:at] + bytes([raw[at] ^ 1 << chance.randrange(8)]) + raw[at + 1 :]
    if kind == "byte":
        return raw[:at] + chance.randbytes(1) + raw[at + 1 :]
    if kind == "cut":
        return raw[:at] + raw[at + chance.choice((1, 7, 512, 10**9)) :]
    if kind == "insert":
        return raw[:at] + chance.randbytes(chance.choice((1, 5, 512))) + raw[at:]
    if kind == "zero":
        return raw[:at] + bytes(len(raw[at : at + 600])) + raw[at + 600 :]
    first, second = at // 512 * 512, chance.randrange(len(raw)) // 512 * 512
    blocks = bytearray(raw)
    one, other = raw[first : first + 512], raw[second : second + 512]
    if len(one) == len(other):
        blocks[first : first + 512], blocks[second : second + 512] = other, one
    return bytes(blocks)


class Opened:
    """What this process opens while somebody watches."""

    paths: list[str] | None = None
    is_set = False


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which can never be taken out again."""
    if event == "open" and Opened.paths is not None and isinstance(arguments[0], (str, bytes)):
        Opened.paths.append(os.fsdecode(arguments[0]))


@contextmanager
def watched(*allowed: Path) -> Iterator[None]:
    """Fails where a file outside of these folders is opened, or all takes too long."""
    if not Opened.is_set:
        sys.addaudithook(note)
        Opened.is_set = True

    def hang(*_: object) -> None:
        raise AssertionError(f"not done after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT_S)
    Opened.paths = []
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        opened, Opened.paths = Opened.paths, None
    code = (Path(shards.__file__).parent, Path(sys.prefix), Path(sys.base_prefix))  # what is imported late
    roots = tuple(f"{path.resolve()}/" for path in (*allowed, *code))
    outside = [path for path in opened if not f"{os.path.realpath(path)}/".startswith(roots)]
    assert not outside


def read_all(manifest: Manifest) -> None:
    """Everything that trainers read."""
    for read in (lambda: manifest.classes, lambda: manifest.groups, lambda: manifest.select("train")):
        with ignoring_shard_errors():
            read()
    for shard in manifest.shards:
        with ignoring_shard_errors():
            manifest.labels(shard)
        with ignoring_shard_errors():
            rows = manifest.sidecar(shard)
            for row in range(len(rows)):
                with ignoring_shard_errors():
                    manifest.read(shard, row)


@contextmanager
def ignoring_shard_errors() -> Iterator[None]:
    """They are what a damaged set may raise."""
    try:
        yield
    except ShardError as error:
        assert str(error)


@pytest.mark.parametrize("name", ["one", "many"])
@pytest.mark.parametrize("kind", ["tar", "npy", "text"])
def test_every_damage_is_found_and_none_is_more_than_a_report(
    place: Path, tmp_path: Path, name: str, kind: str
) -> None:
    folder = Path(shutil.copytree(place / name, tmp_path / name))
    chance = random.Random(f"{name} {kind}")
    suffixes = {"tar": (".tar",), "npy": (".npy",), "text": (".json", ".tsv")}[kind]
    files = [path for path in sorted(folder.iterdir()) if path.suffix in suffixes]
    for _ in range(70):
        path = chance.choice(files)
        raw = path.read_bytes()
        new = mutate(raw, chance)
        path.write_bytes(new)
        with watched(folder):
            try:
                manifest = Manifest.load(folder)
                findings = inspect_set(manifest)
                lines = [str(problem) for problem in findings.named()]
                inspect_set(manifest, is_quick=True)
                read_all(manifest)
            except ShardError as error:
                assert path.name == "manifest.json"
                assert "manifest.json: " in str(error)
                lines = [str(error)]
        assert all(line.isprintable() for line in lines)
        if new != raw and path.name != "manifest.json" and path.suffix != ".json":
            assert any(line.startswith(path.name.removesuffix(".index.npy")) for line in lines), (path.name, lines)
        path.write_bytes(raw)
    assert not inspect_set(Manifest.load(folder)).num_problems


@pytest.mark.parametrize("name", ["one", "many"])
@pytest.mark.parametrize("seed", range(10))
def test_from_the_source_any_damage_is_mended(place: Path, tmp_path: Path, name: str, seed: int) -> None:
    folder = Path(shutil.copytree(place / name, tmp_path / name))
    whole, chance = files_of(folder), random.Random(seed)
    files = [path for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    for path in chance.sample(files, chance.randint(1, len(files))):
        if chance.random() < 0.2:
            path.unlink()
        else:
            path.write_bytes(mutate(path.read_bytes(), chance))
    outcome = repair_set(Manifest.load(folder))
    assert (files_of(folder) == whole, outcome.is_whole) == (True, True), outcome.lines


@pytest.mark.parametrize("name", ["one", "many"])
@pytest.mark.parametrize("seed", range(10))
def test_without_the_source_no_intact_sample_is_lost(place: Path, tmp_path: Path, name: str, seed: int) -> None:
    folder = Path(shutil.copytree(place / name, tmp_path / name))
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace(str(place), str(tmp_path / "gone")))
    before, chance = Manifest.load(folder), random.Random(seed)
    intact = {}
    for shard in before.shards:
        raw = (folder / shard.file).read_bytes()
        new = mutate(raw, chance, "flip byte cut insert zero")
        for row, (key, image, meta) in zip(before.sidecar(shard), samples_of(before, shard), strict=True):
            if raw[int(row["image_at"]) - 512 : int(row["json_at"] + row["json_bytes"])] in new:
                intact[key] = (image, meta)
        (folder / shard.file).write_bytes(new)
        if chance.random() < 0.3:
            (folder / shard.sidecar).unlink()
    outcome = repair_set(before)
    if "no sample is left" in "".join(outcome.lines):
        return
    after = Manifest.load(folder)
    assert not inspect_set(after).num_problems, outcome.lines
    left = {key: (image, meta) for shard in after.shards for key, image, meta in samples_of(after, shard)}
    assert intact.items() <= left.items()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, **more: Any) -> bytes:
    """A header block as tarfile packs it, with a size that may be a lie."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for word, value in more.items():
        setattr(info, word, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


IMAGE = picture(3)
META = b'{"label": "cat"}'
GOOD = header("a.jpg", len(IMAGE)) + padded(IMAGE) + header("a.json", len(META)) + padded(META)
NEGATIVE = bytearray(header("n.jpg", 0))
NEGATIVE[124:136] = b"\xff" * 12
NEGATIVE[148:156] = b"%06o\0 " % (sum(NEGATIVE[:148]) + 8 * 32 + sum(NEGATIVE[156:]))
HOSTILE = {
    "a link out": header("b.jpg", 0, tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link out": header("b.jpg", 0, tarfile.LNKTYPE, linkname="../../etc/passwd"),
    "an absolute path": header("/etc/passwd.jpg", len(IMAGE)) + padded(IMAGE),
    "a path out": header("../../x.jpg", len(IMAGE)) + padded(IMAGE),
    "a device": header("b.jpg", 0, tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a queue": header("b.jpg", 0, tarfile.FIFOTYPE),
    "a huge size": header("b.jpg", 2**40) + padded(IMAGE),
    "a huge json": header("b.jpg", len(IMAGE)) + padded(IMAGE) + header("b.json", 2**33) + padded(META),
    "a negative size": bytes(NEGATIVE) + padded(IMAGE),
    "sparse": header("b.jpg", len(IMAGE), tarfile.GNUTYPE_SPARSE) + padded(IMAGE),
    "a pax size": header("p", 18, tarfile.XHDTYPE)
    + padded(b"18 size=999999999\n")
    + header("b.jpg", 9)
    + padded(IMAGE),
    "a pax loop": header("p", 5, tarfile.XHDTYPE) + padded(b"0 a=\n") + header("b.jpg", 9) + padded(IMAGE),
    "a pax of nothing": header("p", 2**31, tarfile.XHDTYPE),
    "many pax": (header("p", 12, tarfile.XHDTYPE) + padded(b"12 path=q/r\n")) * 3000,
    "a long name": header("l", 2**30, tarfile.GNUTYPE_LONGNAME) + padded(b"x" * 400),
    "a deep json": header("b.jpg", len(IMAGE)) + padded(IMAGE) + header("b.json", 60000) + padded(b"[" * 60000),
    "half a name": header("b\udcff.jpg", len(IMAGE)) + padded(IMAGE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_as_input_is_refused_or_becomes_problems(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "00000.tar").write_bytes(GOOD + HOSTILE[name] + GOOD + bytes(1024))
    (tmp_path / "t.csv").write_text("image,label\na.jpg,cat\nb.jpg,dog\n../../x.jpg,dog\n/etc/passwd.jpg,dog\n")
    for source, words in (
        ("img2dataset", [str(inside), "--label-field", "label"]),
        ("table", [str(tmp_path / "t.csv"), "--images", str(inside / "00000.tar")]),
    ):
        read_watched(source, words, tmp_path)


def read_watched(source: str, words: list[str], allowed: Path) -> None:
    """Reads all records of a source and their images."""
    parser = argparse.ArgumentParser()
    load_source(source).add_options(parser)
    options = parser.parse_args(words)
    options.out = allowed / "set"
    with watched(allowed):
        list_records(source, options)


def list_records(source: str, options: argparse.Namespace) -> None:
    """All of them, as far as there are any."""
    with ignoring_shard_errors():
        for record in load_source(source).records(options):
            if not record.problem:
                try:
                    assert len(record.place.read()) < 2**20
                except OSError as error:
                    assert str(error)


def test_a_hostile_tar_inside_a_set_is_reported(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "one", tmp_path / "one"))
    manifest = Manifest.load(folder)
    path = folder / manifest.shards[0].file
    raw = path.read_bytes()
    for name, members in HOSTILE.items():
        for new in (members + raw, raw[:-1024] + members + bytes(1024), members * 2):
            path.write_bytes(new)
            with watched(folder):
                lines = [str(problem) for problem in inspect_set(manifest).named()]
            assert any(line.startswith(path.name) for line in lines), name
            assert all(line.isprintable() for line in lines)


def test_a_queue_in_place_of_a_file_is_not_waited_for(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "many", tmp_path / "many"))
    for path in sorted(folder.iterdir()):
        path.rename(tmp_path / "kept")
        os.mkfifo(path)
        with watched(folder):
            if path.name == "manifest.json":
                with pytest.raises(ShardError, match=r"no manifest\.json"):
                    Manifest.load(folder)
            else:
                manifest = Manifest.load(folder)
                lines = [str(problem) for problem in inspect_set(manifest).named()]
                assert any(line.startswith(f"{path.name}: ") for line in lines)
                read_all(manifest)
        path.unlink()
        (tmp_path / "kept").rename(path)


def test_tars_of_other_data_sets_survive_any_damage(tmp_path: Path) -> None:
    chance = random.Random(0)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for n in range(4):
            for suffix, data in (("jpg", picture(n)), ("json", b'{"label": "cat", "w": 3}')):
                info = tarfile.TarInfo(f"{'long' * 30}/{n}.{suffix}")
                info.size, info.mtime = len(data), n + 0.5  # type: ignore[assignment]
                tar.addfile(info, io.BytesIO(data))
    inside = tmp_path / "in"
    inside.mkdir()
    for _ in range(60):
        (inside / "0.tar").write_bytes(mutate(stream.getvalue(), chance))
        read_watched("img2dataset", [str(inside), "--label-field", "label"], tmp_path)
