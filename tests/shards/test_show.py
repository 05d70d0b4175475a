"""`shards show`: its numbers against a loop over the tar members, its page, and one sample."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.classes import Classes
from shards.key import encode, encode_domain
from shards.manifest import Manifest, Shard, write_labels, write_manifest, write_sidecar
from shards.showing.sizes import HEAD_BYTES, measure_images
from shards.showing.stats import Stats
from shards.tar import Ready, TarWriter
from tests.shards.conftest import Run, picture

HOSTILE = "<script>alert(1)</script>[/]\x1b[31m"
HOSTILE_DOMAIN = "<img src=x onerror=alert(2)>[bold]\x1b[31m"
PLACES = [("train", "train")] * 6 + [("dev", "query")] + [("dev", "index")] * 3 + [("dev", "distractor")]
KINDS = [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tif")]
Member = tuple[str, bytes, dict[str, Any]]


def write_set(folder: Path, metas: list[dict[str, Any]], images: list[tuple[bytes, str]]) -> Manifest:
    """The set of these samples (their json) and images (bytes, extension), with several labels where a json has."""
    folder.mkdir()
    domains = sorted({meta["domain"] for meta in metas})
    is_multi_label = any("labels" in meta for meta in metas)

    def labels(meta: dict[str, Any]) -> list[str]:
        return list(meta.get("labels", [meta["label"]] if meta.get("label") else []))

    classes = Classes.count((meta["domain"], label, None, meta["split"]) for meta in metas for label in labels(meta))
    shards = []
    order = sorted(range(len(metas)), key=lambda at: (metas[at]["split"], metas[at]["role"]))
    for (split, role), rows in groupby(order, key=lambda at: (metas[at]["split"], metas[at]["role"])):
        file = f"{split}-{role}-000000.tar"
        with (folder / file).open("wb") as stream:
            tar = TarWriter(stream)
            for at in rows:
                meta = metas[at]
                ids = tuple(classes.ids[meta["domain"], label] for label in labels(meta))
                key = f"{encode_domain(meta['domain'])}/{encode(meta['source'].partition('.')[0])}"
                numbers = (ids[0] if ids and not is_multi_label else -1, domains.index(meta["domain"]), 0)
                raw = json.dumps(meta).encode()
                tar.add(Ready(key, images[at][1], images[at][0], raw, numbers, ids if is_multi_label else ()))
            shard = Shard(file, split, role, len(tar.rows), stream.tell(), tar.end())
        shard = Shard(file, split, role, len(tar.rows), (folder / file).stat().st_size, shard.sha256)
        write_sidecar(folder, shard, tar.rows)
        if is_multi_label:
            write_labels(folder, shard, tar.labels)
        shards.append(shard)
    write_manifest(
        folder,
        name=folder.name,
        shards=shards,
        domains=domains,
        classes=classes,
        groups=[("", "")],
        about={"config": {"source": "folder"}, "given": {}, "skipped": 3, "small": 0, "multi_label": is_multi_label},
    )
    return Manifest.load(folder)


def late_size() -> bytes:
    """A JPEG whose size stands behind a long comment."""
    plain = picture(1, size=(51, 37))
    return plain[:2] + b"\xff\xfe\xff\xf0" + bytes(0xFFEE) + plain[2:]


@pytest.fixture
def zoo(tmp_path: Path) -> Manifest:
    """66 images of 12 classes in two domains, one with a hostile name, in five formats; 3 images were skipped."""
    metas: list[dict[str, Any]] = []
    images: list[tuple[bytes, str]] = []
    for at in range(66):
        split, role = PLACES[at % len(PLACES)]
        domain = HOSTILE_DOMAIN if at >= 44 else "food"
        label = None if role == "distractor" else f"{HOSTILE}{split}{at // 11}"
        meta = {"label": label, "domain": domain, "group": None, "split": split, "role": role}
        metas.append({**meta, "source": f"a/{at}.jpg", "extra": {}})
        kind, extension = KINDS[at % len(KINDS)]
        images.append((picture(at, kind=kind, size=(20 + at, 90 - at)), extension))
    images[0] = late_size(), "jpg"
    assert len(images[0][0]) > 3 * HEAD_BYTES
    manifest = write_set(tmp_path / "zoo", metas, images)
    rows = [f'food,,{name}.jpg,"not an image, {HOSTILE}"' for name in ("x", "y")]
    lines = ["domain,label,source,reason", *rows, "food,,z.jpg,empty"]
    (manifest.folder / "skipped.csv").write_text("\n".join(lines) + "\n")
    return manifest


@pytest.fixture
def tagged(tmp_path: Path) -> Manifest:
    """30 images with one to three labels each, a query without any."""
    random = np.random.default_rng(0)
    metas: list[dict[str, Any]] = []
    for at in range(30):
        split, role = PLACES[at % 10]
        labels = sorted(random.choice(["blue", "red", "round", "soft"], random.integers(1, 4), replace=False).tolist())
        meta = {"labels": labels if at != 6 else [], "domain": "toys", "group": None, "split": split, "role": role}
        metas.append({**meta, "source": f"{at}.jpg", "extra": {}})
    return write_set(tmp_path / "tagged", metas, [(picture(at), "jpg") for at in range(30)])


def members(manifest: Manifest) -> Iterator[Member]:
    """(name, image, json) of all samples, read with tarfile."""
    for shard in manifest.shards:
        with tarfile.open(manifest.folder / shard.file) as tar:
            entries = [(entry.name, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]
        for (name, image), (_, raw) in zip(entries[::2], entries[1::2], strict=True):
            yield name, image, json.loads(raw)


def pixels(image: bytes) -> tuple[int, int]:
    """Width and height as Pillow sees the whole file."""
    return Image.open(io.BytesIO(image)).size


def shown(run: Run, manifest: Manifest) -> dict[str, Any]:
    """What `shards show --json` says."""
    ran = run("show", manifest.folder, "--json")
    assert ran.code == 0, ran.err
    said: dict[str, Any] = json.loads(ran.out)
    return said


def test_the_numbers_are_those_of_a_loop_over_the_tars(zoo: Manifest, run: Run) -> None:
    said, samples = shown(run, zoo), list(members(zoo))
    counts = Counter((meta["domain"], meta["split"], meta["role"]) for _, _, meta in samples)
    assert {(c["domain"], c["split"], c["role"]): c["images"] for c in said["counts"]} == counts
    classes = Counter((m["domain"], m["split"], m["label"]) for _, _, m in samples if m["label"])
    for entry in said["class_sizes"]:
        sizes = [n for (domain, split, _), n in classes.items() if (domain, split) == (entry["domain"], entry["split"])]
        assert entry["classes"] == len(sizes) and entry["images"] == [min(sizes), np.median(sizes), max(sizes)]
    assert len(said["class_sizes"]) == 4 and said["shared_classes"] == []
    for entry in said["sizes"]:
        mine = [(name, image) for name, image, m in samples if entry["domain"] in (None, m["domain"])]
        for axis, side in enumerate(("width", "height")):
            sides = [pixels(image)[axis] for _, image in mine]
            assert entry[side] == [min(sides), np.median(sides), max(sides)]
        lengths = [len(image) for _, image in mine]
        assert entry["bytes"] == [min(lengths), np.median(lengths), max(lengths)]
        assert entry["formats"] == Counter(name.rpartition(".")[2] for name, _ in mine)
    assert [entry["domain"] for entry in said["sizes"]] == [*zoo.domains, None]
    assert (said["images"], said["measured"], said["unreadable"], said["classes"]) == (66, 66, 0, 12)
    assert [(entry["images"], entry["first"][0]) for entry in said["skipped"]] == [(2, "food/x.jpg"), (1, "food/z.jpg")]


@pytest.mark.parametrize("most", [1, 7, 65, 66, 100])
def test_measured_sizes_are_pillows_and_evenly_spread(zoo: Manifest, most: int) -> None:
    sizes, whole = measure_images(zoo, most=most), [pixels(image) for _, image, _ in members(zoo)]
    assert len(sizes.at) == min(most, 66) and sizes.at[0] == 0 and (most == 1 or sizes.at[-1] == 65)
    assert np.ptp(np.diff(sizes.at)) <= 1 if most > 2 else True
    assert [whole[at] for at in sizes.at] == list(zip(sizes.width.tolist(), sizes.height.tolist(), strict=True))


def test_a_broken_image_is_counted_and_shown_as_one(zoo: Manifest, run: Run) -> None:
    row = zoo.sidecar(zoo.shards[0])[0]
    with (zoo.folder / zoo.shards[0].file).open("r+b") as file:
        file.seek(int(row["image_at"]))
        file.write(bytes(int(row["image_bytes"])))
    assert shown(run, zoo)["unreadable"] == 1
    ran = run("show", zoo.folder, "--page")
    assert ran.code == 0 and "1 unreadable, run `shards check`" in ran.out
    assert "image unreadable" in (zoo.folder.parent / "zoo.show.html").read_text()


def test_tables_show_other_peoples_names_without_obeying_them(zoo: Manifest, run: Run) -> None:
    ran = run("show", zoo.folder)
    assert ran.code == 0, ran.err
    assert "zoo: 66 images of 12 classes in 2 domains" in ran.out
    for name in (HOSTILE, HOSTILE_DOMAIN):
        assert name.replace("\x1b", "\N{REPLACEMENT CHARACTER}") in ran.out and "\x1b" not in ran.out
    for cell in (" 24 ", " 12 ", " 36 ", "train", "dev query", "dev index", "dev distractor", "jpg 9", "not an image"):
        assert cell in ran.out


def test_the_page_shows_samples_and_lies_beside_the_set(zoo: Manifest, run: Run) -> None:
    before = {path.name for path in zoo.folder.iterdir()}
    ran = run("show", zoo.folder, "--page")
    assert ran.code == 0, ran.err
    assert {path.name for path in zoo.folder.iterdir()} == before
    text = (zoo.folder.parent / "zoo.show.html").read_text()
    assert "<script" not in text and "<img src=x" not in text and "http:" not in text and "https:" not in text
    assert text.count('<figure class="tile">') == (12 + 4 * 4) + (12 + 2 * 4) + 6
    assert text.count('<div class="match">') == 6
    assert zoo.digest in text and "food/x.jpg, food/y.jpg" in text
    elsewhere = zoo.folder.parent / "new" / "a.html"
    assert run("show", zoo.folder, "--json", "--page", elsewhere).code == 0 and elsewhere.exists()


def test_a_query_is_shown_with_index_images_of_its_class(zoo: Manifest, tagged: Manifest, run: Run) -> None:
    for manifest in (zoo, tagged):
        assert run("show", manifest.folder, "--page").code == 0
        text = (manifest.folder.parent / f"{manifest.name}.show.html").read_text()
        metas = {name.partition(".")[0]: meta for name, _, meta in members(manifest)}
        pieces = [piece.partition("</div></div>")[0] for piece in text.split('<div class="match">')[1:]]
        rows = [re.findall(r'<span class="note clamp">([^<]+)<', piece) for piece in pieces]
        assert {row[0] for row in rows} == {key for key, meta in metas.items() if meta["role"] == "query"}
        for query, *found in rows:
            labels = {key: set(meta.get("labels") or [meta.get("label")]) for key, meta in metas.items()}
            index = {key for key, meta in metas.items() if meta["role"] == "index" and labels[key] & labels[query]}
            assert set(found) <= index and len(found) == min(len(index), 6)


def test_labels_of_several_are_counted_in_pairs(tagged: Manifest, run: Run) -> None:
    samples = [meta for _, _, meta in members(tagged)]
    pairs = Counter(pair for meta in samples for pair in combinations(meta["labels"], 2))
    found = Stats(tagged).labels_together(most=100)
    assert {(tagged.classes.labels[one], tagged.classes.labels[two]): n for one, two, n in found} == pairs
    assert [n for *_, n in found] == sorted(pairs.values(), reverse=True)
    assert Stats(tagged).labels_together(most=2) == found[:2]
    said = shown(run, tagged)
    assert [entry["images"] for entry in said["labels_together"]] == [n for *_, n in found]
    shared = {label for meta in samples for label in meta["labels"] if meta["split"] == "train"}
    shared &= {label for meta in samples for label in meta["labels"] if meta["split"] == "dev"}
    assert said["multi_label"] and said["shared_classes"][0]["splits"] == ["train", "dev"]
    assert said["shared_classes"][0]["first"] == [f"toys/{label}" for label in sorted(shared)]


def test_a_sample_is_found_by_its_key_and_its_image_saved(zoo: Manifest, run: Run, tmp_path: Path) -> None:
    for name, image, meta in members(zoo):
        ran = run("show", zoo.folder, "--sample", name.rpartition(".")[0], "--to", tmp_path / "image")
        assert ran.code == 0, ran.err
        said = json.loads(ran.out)
        assert (tmp_path / "image").read_bytes() == image and said["json"] == meta
        assert (said["width"], said["height"]) == pixels(image)
        with (zoo.folder / said["shard"]).open("rb") as file:
            file.seek(said["image_at"])
            assert file.read(said["image_bytes"]) == image
            file.seek(said["json_at"])
            assert json.loads(file.read(said["json_bytes"])) == meta
        for word in (name, f"{meta['domain']}/{meta['source']}"):
            assert run("show", zoo.folder, "--sample", word).out == ran.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sample", "food/a%2F1x"], r"no sample 'food/a%2F1x' in .*; did you mean food/a%2F\d+\?"),
        (["--sample", "fod/a"], r"no sample 'fod/a' in .*; keys start with %3Cimg.*, food/; did you mean food/\?"),
        (["--sample", "\udcff\0/"], "no sample"),
        (["--to", "x.jpg"], "say which one with --sample KEY"),
        (["--sample", "food/a%2F1", "--page"], "leave --page out"),
        (["--sample", "food/a%2F1", "--to", "zoo/../zoo/x.jpg"], r"zoo/\.\./zoo/x\.jpg lies inside the set"),
        (["--sample", "food/a%2F1", "--to", "none/x.jpg"], r"none/x\.jpg: No such file or directory"),
        (["--page", "zoo/x.html"], r"zoo/x\.html lies inside the set"),
        (["--page", "zoo.txt/x.html"], r"zoo\.txt/x\.html: .*cannot be written"),
    ],
)
def test_a_mistake_is_answered_with_the_reason(
    zoo: Manifest, run: Run, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(zoo.folder.parent)
    Path("zoo.txt").write_text("in the way")
    ran = run("show", zoo.folder, *words)
    assert ran.code == 2 and re.search(message, ran.err), ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"image_at": 2**63}, "places outside of dev-distractor-000000.tar"),
        ({"json_bytes": 2**31}, "places outside of dev-distractor-000000.tar"),
        ({"domain": 7}, "domain 7, but the set has 2"),
        ({"label": 99}, "label 99, but the set has 12"),
    ],
)
def test_a_damaged_sidecar_is_named(zoo: Manifest, run: Run, damage: dict[str, int], message: str) -> None:
    shard = zoo.shards[0]
    rows = np.array(zoo.sidecar(shard))
    for name, value in damage.items():
        rows[name][0] = value
    np.save(zoo.folder / shard.sidecar, rows)
    ran = run("show", zoo.folder, "--page")
    assert ran.code == 2 and message in ran.err


def test_a_missing_shard_and_a_damaged_list_are_named(zoo: Manifest, run: Run) -> None:
    (zoo.folder / "skipped.csv").write_text("domain,source\nfood,x\n")
    ran = run("show", zoo.folder)
    assert ran.code == 2 and "skipped.csv: a row without" in ran.err
    (zoo.folder / zoo.shards[1].file).unlink()
    ran = run("show", zoo.folder)
    assert ran.code == 2 and zoo.shards[1].file in ran.err
