"""Small raw releases of real image files, and the command line as a function."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.cli import main
from shards.making.catalog import fill
from shards.making.rules import Rules
from shards.making.split import make_plan
from shards.manifest import Manifest
from shards.record import ROLES, SPLITS, Record

Run = Callable[..., "Ran"]
FIVE_CLASSES = {"cat": 7, "dog": 3, "fox": 3, "hen": 2, "owl": 4}


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


def picture(seed: int, *, kind: str = "JPEG", size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    """A small image file that no other seed gives."""
    grain = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(grain).resize(size, Image.Resampling.BICUBIC).convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def write_release(root: Path, classes: Mapping[str, int]) -> Path:
    """A folder of class folders; the numbers are images."""
    for place, (label, count) in enumerate(classes.items()):
        (root / label).mkdir(parents=True)
        for view in range(count):
            (root / label / f"{view}.jpg").write_bytes(picture(100 * place + view))
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@dataclass(frozen=True)
class Placed:
    """Where a record goes."""

    record: Record
    key: str
    split: str
    role: str


def place(records: Iterable[Record], rules: Rules = Rules()) -> list[Placed]:  # noqa: B008
    """The records that are kept, in their order, each with its place."""
    with tempfile.TemporaryDirectory() as folder:
        listed = list(records)
        catalog = fill(Path(folder), listed)
        plan = make_plan(catalog, ~catalog["is_out"], rules)
        kept = np.flatnonzero(plan.kept)
        return [
            Placed(listed[row], key, SPLITS[plan.split[row]], ROLES[plan.role[row]])
            for row, key in zip(kept.tolist(), catalog.keys(kept), strict=True)
        ]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("show", folder)` is `shards show FOLDER` in this process."""

    def command(*words: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return command


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Five classes, 19 images."""
    return write_release(tmp_path / "release", FIVE_CLASSES)


@pytest.fixture
def pets(run: Run, release: Path, tmp_path: Path) -> Manifest:
    """The set made of the release, in shards of at most 4 samples."""
    ran = run("make", "folder", release, "--out", tmp_path / "pets", "--shard-samples", 4)
    assert ran.code == 0, ran.err
    return Manifest.load(tmp_path / "pets")
