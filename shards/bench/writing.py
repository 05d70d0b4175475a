"""How fast photos become tars, as they are and made smaller, beside other tools and beside what no tool can avoid."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.bench import others, shardwriter
from shards.bench.contestants import QUALITY, SHORT_SIDE, Case, Make
from shards.bench.outcome import Goal, Outcome
from shards.bench.photos import write_photos
from shards.bench.turns import Contestant, Turns, Watch, open_processes, take_turns
from shards.errors import ShardError
from shards.images.imaging import Look, prepare
from shards.pool import usable_cpus
from shards.showing.tables import Table

TAR, TAR_PHOTOS, TARFILE = "tar -cf, photos and jsons", "tar -cf, photos only", "Python's tarfile"
SHARD_WRITER, SHARD_WRITER_SUMS = "webdataset ShardWriter", "ShardWriter, then sha256 of its tars"
MAKE, MAKE_CHECKED = "shards make", "shards make, pixels checked"
WRITING = f"{MAKE}: writing"
BYTES, SUMS, COPY = "read, sha256, write", "sha256 alone", "shutil.copyfile"
SHARD_WRITER_SMALL, MAKE_SMALL, CODECS = (
    "ShardWriter and Pillow",
    "shards make --short-side 256",
    "decode at 1/2, encode",
)
RESIZED_SHARE = 5  # a fifth of the photos are made smaller: it takes that much longer
LIKENESS_TRIED = 60
FAST_SUMS = 1e9  # bytes/s; without SHA instructions it is a third of that
COLUMNS = ("", "images/s", "from", "to", "MB/s", "per CPU second", "to ShardWriter", "to tar")
NOTES = (
    "One process each, in turns, medians of {rounds} rounds (from: the slowest, to: the fastest); the first round is not "
    "counted. Everything lies in the page cache and on one file system ({scratch}); what is written is removed after each "
    "turn, nobody syncs.",
    "{count} photos of {kb:.0f} kB. ShardWriter, tarfile and shards read photos and make jsons; tar reads both from files. "
    "ShardWriter as documented, with a time of its own for every file, so two headers more a sample.",
    "shards make: from listing the folder to the finished set: catalog, plan, tars with sha256, sidecars, manifest; "
    "--verify structure, but for pixels checked (--verify pixels, the default: every JPEG decoded at 1/8; nobody else "
    "here looks at the images). writing: of that, from the finished plan to the last sidecar. Workers: their start counts.",
    "read, sha256, write: of the photos' bytes and a header each, in the same way; the least that a tar with a sum takes.",
    f"Made smaller: {{few}} of the photos, to a short side of {SHORT_SIDE}, JPEG quality {QUALITY}. SSIM of what shards and "
    "Pillow's bicubic make of {tried} of them: mean {mean:.4f}, lowest {lowest:.4f}.",
)


def bench_writing(scratch: Path, *, count: int, rounds: int, given: Path | None, watch: Watch) -> Outcome:
    """Both tables."""
    photos = scratch / "photos"
    case = Case(photos, tuple(write_photos(photos, count, given)), scratch / "out")
    few = Case(scratch / "few", link_some(case, scratch / "few"), case.out)
    with open_processes() as processes:
        copied = take_turns(copying_contestants(), case, rounds, processes, watch)
        resized = take_turns(resizing_contestants(), few, rounds, processes, watch)
    copied[SUMS] = copied.pop(f"{SUMS}: sums")
    likeness = compare_pixels(few)
    told = {"rounds": rounds, "scratch": scratch.parent, "count": len(case.names)}
    told |= {"kb": case.num_bytes / len(case.names) / 1000, "few": len(few.names), "tried": len(likeness)}
    told |= {"mean": np.mean(likeness), "lowest": min(likeness)}
    return Outcome(
        name="write",
        notes=tuple(note.format(**told) for note in NOTES),
        tables=(
            Table("photos as they are", COLUMNS, rows_of(copied, case, SHARD_WRITER, TAR)),
            Table("photos made smaller", COLUMNS[:-1], rows_of(resized, few, SHARD_WRITER_SMALL)),
        ),
        goals=(*goals_of_copies(copied, case.num_bytes), *goals_of_resizing(resized, likeness)),
        numbers={
            "photos": {"count": len(case.names), "bytes": case.num_bytes, "made smaller": len(few.names)},
            "seconds": {name: as_numbers(turns) for name, turns in (copied | resized).items()},
            "ssim": {"mean": float(np.mean(likeness)), "lowest": min(likeness), "photos": len(likeness)},
        },
    )


def link_some(case: Case, folder: Path) -> tuple[str, ...]:
    """A folder with a part of the photos, evenly spread."""
    names = case.names[::RESIZED_SHARE] if len(case.names) >= 100 else case.names
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).hardlink_to(case.photos / name)
    return names


def copying_contestants() -> dict[str, Contestant]:
    """Of photos as they are; those who are not installed are left out."""
    workers = usable_cpus()
    known: dict[str, Contestant | None] = {
        TAR: others.tar_all if shutil.which("tar") else None,
        TAR_PHOTOS: others.tar_photos if shutil.which("tar") else None,
        TARFILE: others.python_tarfile,
        SHARD_WRITER: shardwriter.write if shardwriter.is_there() else None,
        SHARD_WRITER_SUMS: shardwriter.write_and_sum if shardwriter.is_there() else None,
        MAKE: Make(),
        MAKE_CHECKED: Make(verify="pixels"),
        f"{MAKE}, {workers} workers": Make(workers=workers) if workers > 1 else None,
        f"{MAKE_CHECKED}, {workers} workers": Make(verify="pixels", workers=workers) if workers > 1 else None,
        BYTES: others.read_sum_write,
        SUMS: others.sum_alone,
        COPY: others.copy_files,
    }
    return {name: contestant for name, contestant in known.items() if contestant}


def resizing_contestants() -> dict[str, Contestant]:
    """Of photos made smaller."""
    workers = usable_cpus()
    known: dict[str, Contestant | None] = {
        SHARD_WRITER_SMALL: shardwriter.write_smaller if shardwriter.is_there() else None,
        MAKE_SMALL: Make(short_side=SHORT_SIDE),
        f"{MAKE_SMALL}, {workers} workers": Make(short_side=SHORT_SIDE, workers=workers) if workers > 1 else None,
        CODECS: others.decode_and_encode,
    }
    return {name: contestant for name, contestant in known.items() if contestant}


def compare_pixels(case: Case) -> list[float]:
    """SSIM of what shards and Pillow make of the same photos."""
    from PIL import Image
    from skimage.metrics import structural_similarity

    def decode(jpeg: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))

    look = Look(short_side=SHORT_SIDE, quality=QUALITY)
    compare = partial(structural_similarity, channel_axis=2)
    found = []
    for name in case.names[:: -(-len(case.names) // LIKENESS_TRIED)]:
        photo = case.read(name)
        ours, theirs = decode(prepare(photo, look)[0]), decode(shardwriter.shrink(photo))
        if ours.shape != theirs.shape:
            raise ShardError(f"{name}: {ours.shape} pixels, but Pillow was asked for {theirs.shape}")
        found.append(float(compare(ours, theirs)))
    return found


def rows_of(turns: Mapping[str, Turns], case: Case, peer: str, tar: str | None = None) -> list[list[object]]:
    """A row a contestant."""
    rows: list[list[object]] = []
    for name, found in turns.items():
        if ": " in name and name != WRITING:
            continue
        fastest, slowest = found.range_s
        rates = [round(len(case.names) / seconds) for seconds in (found.seconds, slowest, fastest)]
        per_cpu = round(len(case.names) / found.cpu_s) if found.cpu_s else None
        ratios = [ratio(turns, other, name) for other in (peer, tar) if other]
        rows.append([name, *rates, round(case.num_bytes / found.seconds / 1e6), per_cpu, *ratios])
    return rows


def ratio(turns: Mapping[str, Turns], other: str, name: str) -> float | None:
    """How many times as fast as the other, if that is here."""
    return round(turns[other].seconds / turns[name].seconds, 2) if other in turns else None


def goals_of_copies(turns: Mapping[str, Turns], num_bytes: int) -> list[Goal]:
    """Where the CPU has no SHA instructions, the goals are meant without sums."""
    ours = turns[MAKE].seconds
    what = "photos as they are, one worker"
    if num_bytes / turns[SUMS].seconds < FAST_SUMS:
        ours -= turns[SUMS].seconds
        what += ", without sums (this CPU has no SHA instructions)"
    found = []
    for other, wanted in ((SHARD_WRITER, 2.0), (TAR, 0.6)):
        if other in turns:
            times = turns[other].seconds / ours
            found.append(Goal(f"{what}, to {other}", f">= {wanted}", f"{times:.2f}", times >= wanted))
    return found


def goals_of_resizing(turns: Mapping[str, Turns], likeness: list[float]) -> list[Goal]:
    """Speed and likeness."""
    mean = float(np.mean(likeness))
    found = [Goal("photos made smaller, SSIM to Pillow's", ">= 0.98", f"{mean:.4f}", mean >= 0.98)]
    if SHARD_WRITER_SMALL in turns:
        times = turns[SHARD_WRITER_SMALL].seconds / turns[MAKE_SMALL].seconds
        what = f"photos made smaller, one worker, to {SHARD_WRITER_SMALL}"
        found.insert(0, Goal(what, ">= 2.5", f"{times:.2f}", times >= 2.5))
    return found


def as_numbers(turns: Turns) -> dict[str, Any]:
    """For the file."""
    return {"median": turns.seconds, "median_cpu": turns.cpu_s, "turns": [asdict(turn) for turn in turns.turns]}
