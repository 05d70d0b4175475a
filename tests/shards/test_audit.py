"""`shards audit` finds what was planted, nothing in a clean set, and its list mends what it found."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.classes import Classes
from shards.manifest import Manifest, Shard, write_manifest, write_sidecar
from shards.tar import Ready, TarWriter
from tests.shards.conftest import Ran, Run

SIZE = (96, 72)


@dataclass(frozen=True)
class Planted:
    """A sample to be."""

    source: str
    image: bytes
    label: str | None = "a"
    place: str = "train"
    """`train`, `dev query`, …"""
    group: str = ""
    extension: str = "jpg"

    @property
    def key(self) -> str:
        """As the set has it."""
        return f"pets/{self.source}"


def draw(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture that no other seed gives."""
    grain = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(grain).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options: int) -> bytes:
    """As a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 90} | options if kind == "JPEG" else options))
    return stream.getvalue()


def write_set(folder: Path, samples: Sequence[Planted]) -> Manifest:
    """A set of these samples, one shard a place."""
    folder.mkdir()
    found = [("pets", one.label, one.group or None, (*one.place.split(), "")[0]) for one in samples]
    classes = Classes.count(found)
    groups = [("", ""), *sorted({("pets", one.group) for one in samples if one.group})]
    shards = []
    for place in dict.fromkeys(one.place for one in samples):
        split, role = place.split() if " " in place else (place, place)
        name = "-".join(dict.fromkeys((split, role))) + "-000000.tar"
        with (folder / name).open("wb") as file:
            tar = TarWriter(file)
            for one in samples:
                if one.place == place:
                    label = -1 if one.label is None else classes.ids["pets", one.label]
                    group = groups.index(("pets", one.group)) if one.group else 0
                    tar.add(Ready(one.key, one.extension, one.image, b"{}", (label, 0, group)))
            shard = Shard(name, split, role, len(tar.rows), 0, tar.end())
        shard = replace(shard, bytes=tar.num_bytes)
        write_sidecar(folder, shard, tar.rows)
        shards.append(shard)
    about = {"config": {"source": "planted"}, "given": {}, "skipped": 0, "small": 0}
    write_manifest(
        folder, name=folder.name, shards=shards, domains=["pets"], classes=classes, groups=groups, about=about
    )
    return Manifest.load(folder)


def clean(first_seed: int = 0) -> list[Planted]:
    """Six classes to train on, two to evaluate with, three distractors: nothing is wrong with them."""
    samples = []
    for number, label in enumerate("abcdef"):
        samples += [
            Planted(f"{label}{view}", encode(draw(first_seed + 10 * number + view)), label) for view in range(4)
        ]
    for number, label in enumerate("gh"):
        for view, role in enumerate(("query", "index", "index")):
            image = encode(draw(first_seed + 100 + 10 * number + view))
            samples.append(Planted(f"{label}{view}", image, label, f"dev {role}"))
    samples += [Planted(f"x{at}", encode(draw(first_seed + 200 + at)), None, "dev distractor") for at in range(3)]
    return samples


def again(samples: Sequence[Planted], key: str, **changes: Any) -> Planted:
    """The sample of this source once more, changed."""
    one = next(one for one in samples if one.source == key)
    return replace(one, source=f"{key}-again", **changes)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Audited:
    """What an audit left behind."""

    ran: Ran
    folder: Path

    @property
    def findings(self) -> set[tuple[str, str, str]]:
        """(kind, severity, title)"""
        return {(row["kind"], row["severity"], row["title"]) for row in read_csv(self.folder / "findings.csv")}

    @property
    def drops(self) -> dict[str, str]:
        """Reason by key."""
        return {row["key"]: row["reason"] for row in read_csv(self.folder / "drop.csv")}

    @property
    def page(self) -> str:
        """Its HTML."""
        return (self.folder / "report.html").read_text()


def audit(run: Run, manifest: Manifest, *options: object) -> Audited:
    """`shards audit` of a set, in this process."""
    ran = run("audit", manifest.folder, "--workers", 1, *options)
    assert not ran.err
    return Audited(ran, manifest.folder.with_name(f"{manifest.folder.name}.audit"))


def test_a_clean_set_has_no_finding(tmp_path: Path, run: Run) -> None:
    audited = audit(run, write_set(tmp_path / "set", clean()), "--strict")
    assert audited.ran.code == 0
    assert "33 images: no finding." in audited.ran.out
    assert audited.findings == set() and audited.drops == {}


RELATIONS: dict[tuple[str, str], tuple[str, dict[str, Any], dict[str, str]]] = {
    ("grave", "leak"): ("a0", {"place": "dev query", "label": "g"}, {"a0": "leak", "a0-again": ""}),
    ("grave", "two labels"): ("a0", {"label": "b"}, {"a0": "two labels", "a0-again": "two labels"}),
    ("grave", "false distractor"): (
        "g1",
        {"place": "dev distractor", "label": None},
        {"g1": "", "g1-again": "false distractor"},
    ),
    ("notable", "dev and test"): ("g1", {"place": "test index"}, {"g1": "dev and test", "g1-again": ""}),
    ("notable", "easy query"): ("g0", {"place": "dev index"}, {"g0": "", "g0-again": "easy query"}),
    ("mild", "repeat"): ("a0", {}, {"a0": "", "a0-again": "repeat"}),
}
COPIES = {
    "exact duplicate": lambda image: encode(image),
    "near duplicate": lambda image: encode(image.resize((64, 48), Image.Resampling.LANCZOS), quality=60),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation[1])
def test_a_planted_copy_is_the_one_finding_and_its_drop_mends_it(
    tmp_path: Path, run: Run, kind: str, relation: tuple[str, str]
) -> None:
    source, changes, drops = RELATIONS[relation]
    samples = clean()
    whole = next(one.image for one in samples if one.source == source)
    copy = encode(Image.open(io.BytesIO(whole)), "PNG") if kind == "exact duplicate" else whole
    image = COPIES[kind](Image.open(io.BytesIO(copy))) if kind == "near duplicate" else whole
    samples.append(again(samples, source, image=image, **changes))
    audited = audit(run, write_set(tmp_path / "set", samples), "--strict")
    expected = {(kind, *relation)}
    if relation[1] == "leak":
        expected.add((kind, "grave", "two labels"))  # the copy has another label too
    if relation[1] == "dev and test":
        expected.add(("shared classes", "mild", ""))
    assert audited.findings == expected
    assert audited.ran.code == int(relation[0] == "grave")
    told = {key: audited.drops.get(f"pets/{key}", "").partition(":")[0] for key in drops}
    assert told == drops and len(audited.drops) == sum(map(bool, drops.values()))
    rest = [one for one in samples if one.key not in audited.drops]
    assert not {found for found in audit(run, write_set(tmp_path / "rest", rest)).findings if found[0] == kind}


def test_an_evaluation_keeps_its_copy_and_training_loses_every_one_of_its(tmp_path: Path, run: Run) -> None:
    samples = clean()
    near = encode(Image.open(io.BytesIO(samples[0].image)), quality=40)
    samples += [replace(samples[0], source=f"copy{at}", image=near if at % 2 else samples[0].image) for at in range(6)]
    samples.append(again(samples, "a0", place="dev index", label="g"))
    audited = audit(run, write_set(tmp_path / "set", samples))
    assert set(audited.drops) == {"pets/a0", *(f"pets/copy{at}" for at in range(6))}
    assert all(reason == "leak: as pets/a0-again" for reason in audited.drops.values())


def test_the_last_answer_of_a_query_stays_and_the_query_goes(tmp_path: Path, run: Run) -> None:
    samples = [one for one in clean() if one.source != "g2"]
    samples.append(again(samples, "g1", place="dev query"))
    audited = audit(run, write_set(tmp_path / "set", samples))
    assert audited.drops == {"pets/g1-again": "easy query: as pets/g1"}


def test_two_sets_are_compared_and_ours_gives_way(tmp_path: Path, run: Run) -> None:
    ours, theirs = clean(), clean(first_seed=1000)
    theirs += [again(ours, "g1", place="train"), again(ours, "a0", place="dev index"), again(ours, "b0")]
    theirs.append(replace(theirs[0], source="their own repeat"))
    other = write_set(tmp_path / "other", theirs)
    audited = audit(run, write_set(tmp_path / "set", ours), "--against", other.folder)
    assert audited.findings == {
        ("exact duplicate", "grave", "evaluation trained on elsewhere"),
        ("exact duplicate", "grave", "training evaluated elsewhere"),
        ("exact duplicate", "mild", "shared"),
    }
    assert audited.drops == {
        "pets/g1": "evaluation trained on elsewhere: as pets/g1-again",
        "pets/a0": "training evaluated elsewhere: as pets/a0-again",
    }
    assert "other: train" in audited.page


def test_a_group_finer_than_a_class_leaks_and_one_of_whole_classes_does_not(tmp_path: Path, run: Run) -> None:
    samples = clean()
    brands = [replace(one, group="brand") for one in samples]
    assert audit(run, write_set(tmp_path / "brands", brands)).findings == {("known groups", "mild", "")}
    photos = [replace(one, group="photo") if one.source in ("a0", "b0", "g1") else one for one in samples]
    audited = audit(run, write_set(tmp_path / "photos", photos))
    assert audited.findings == {("group leak", "grave", "pets")}
    assert set(audited.drops) == {"pets/a0", "pets/b0"}


def test_images_that_are_bad_by_themselves_are_named(tmp_path: Path, run: Run) -> None:
    samples = clean()
    samples += [
        Planted("white", encode(Image.new("RGB", SIZE, "white"))),
        Planted("small", encode(draw(300, (40, 20)))),
        Planted("cut", samples[0].image[:300]),
        Planted("text", b"no image at all"),
    ]
    audited = audit(run, write_set(tmp_path / "set", samples))
    assert audited.findings == {("broken", "grave", ""), ("blank", "notable", ""), ("tiny", "mild", "")}
    assert audited.drops == {"pets/white": "blank", "pets/cut": "broken", "pets/text": "broken"}
    named = {row["key"] for row in read_csv(audited.folder / "findings.csv")}
    assert named == {"pets/white", "pets/small", "pets/cut", "pets/text"}
    assert not audit(run, Manifest.load(tmp_path / "set"), "--tiny", 20).findings & {("tiny", "mild", "")}


def test_a_picture_that_occurs_hundreds_of_times_is_counted_and_not_listed_in_full(tmp_path: Path, run: Run) -> None:
    blank = encode(Image.new("RGB", SIZE, "grey"))
    samples = [*clean(), *(Planted(f"none{at}", blank, place="dev index" if at % 2 else "train") for at in range(300))]
    samples += [Planted(f"copy{at}", encode(draw(400))) for at in range(200)]
    samples += [Planted(f"soon{at}", encode(draw(500)) + bytes(at)) for at in range(150)]  # different files
    samples.append(Planted("soon again", encode(draw(500), quality=50)))
    audited = audit(run, write_set(tmp_path / "set", samples))
    rows = [[cell.strip() for cell in line.split("│")] for line in audited.ran.out.splitlines() if "│" in line]
    counts = {row[2]: row[4] for row in rows if row[4]}
    pairs = {"exact duplicate": "19,900", "near duplicate": "11,325"}
    assert counts == {**pairs, "blank": "300", "imbalance": "6", "shared classes": "1"}
    assert len(read_csv(audited.folder / "findings.csv")) < 1000
    assert {key for key in audited.drops if "none" in key} == {f"pets/none{at}" for at in range(300)}
    assert [sum(name in key for key in audited.drops) for name in ("copy", "soon")] == [199, 150]


def test_classes_far_from_even_are_told(tmp_path: Path, run: Run) -> None:
    samples = [*clean(), *(Planted(f"more{at}", encode(draw(600 + at)), "a") for at in range(40))]
    samples.append(Planted("alone", encode(draw(700)), "z"))
    audited = audit(run, write_set(tmp_path / "set", samples))
    assert audited.findings == {("imbalance", "notable", "pets")}
    assert "the largest class has 44 images, 11.0 times the median (4)" in audited.ran.out


def test_one_process_and_two_say_the_same(tmp_path: Path, run: Run) -> None:
    samples = clean()
    samples += [again(samples, f"a{view}", image=encode(draw(view), quality=50)) for view in range(4)]
    manifest = write_set(tmp_path / "set", samples)
    audit(run, manifest)
    run("audit", manifest.folder, "--workers", 2, "--out", tmp_path / "two")
    for name in ("findings.csv", "drop.csv"):
        assert (tmp_path / "set.audit" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_mistakes_are_answered(tmp_path: Path, run: Run) -> None:
    manifest = write_set(tmp_path / "set", clean())
    for words, message in (
        ((tmp_path / "sett",), "there are in .*: set; did you mean set"),
        ((manifest.folder, "--out", manifest.folder / "audit"), "lies inside the set"),
        ((manifest.folder, "--against", manifest.folder), "is the set itself"),
        ((manifest.folder, "--threshold", 40), "--threshold 40 is not in 0 to 16"),
    ):
        ran = run("audit", *words)
        assert ran.code == 2
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(ran.err)


def test_a_damaged_shard_is_an_error_that_says_what_to_run(tmp_path: Path, run: Run) -> None:
    manifest = write_set(tmp_path / "set", clean())
    shard = manifest.folder / manifest.shards[0].file
    shard.write_bytes(bytes(2048) + shard.read_bytes()[2048:])
    ran = run("audit", manifest.folder, "--workers", 1)
    assert ran.code == 2 and "run `shards check`" in ran.err


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    slow = encode(draw(0).resize((2400, 2400), Image.Resampling.NEAREST), "PNG")
    samples = [Planted(f"a{at}", slow + bytes(at), extension="png") for at in range(1000)]
    manifest = write_set(tmp_path / "set", samples)
    command = [sys.executable, "-m", "shards", "audit", str(manifest.folder), "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        time.sleep(1.5)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err.decode().strip()) == (130, "shards: stopped; nothing was changed")
    assert not (tmp_path / "set.audit").exists()
    deadline = time.monotonic() + 5
    while is_group_alive(process.pid):
        assert time.monotonic() < deadline, "a worker outlives its caller"
        time.sleep(0.05)


def is_group_alive(group: int) -> bool:
    """Whether a process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
