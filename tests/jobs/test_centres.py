"""The job that looks at class centres: its tables are what loops over everything say, on any number of ranks."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import centres, job, train
from retrieval_train.config import ConfigError
from retrieval_train.data.reader import Reader
from retrieval_train.evaluation import class_centres
from retrieval_train.models import exported
from retrieval_train.rundir import RunDir, read_json
from retrieval_train.world import Alone, World
from shards.manifest import Manifest
from tests.processes import run_ranks
from tests.retrieval_train.data.conftest import make_sets

DIM = 8


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"))


def make_export(folder: Path, sets: Path, names: list[str], *, sub_centres: int, columns: int = DIM) -> Path:
    values: Any = job.check(
        {
            "job": "train",
            "run": {"name": "one"},
            "shards_root": str(sets),
            "backbone": {"name": "timm", "model": "test_vit", "image_px": 16, "weights": "none", "blocks": 1},
            "neck": {"name": "linear", "out": DIM},
            "head": {"name": "arcface"},
            "engine": {"name": "plain"},
            "data": {"mixture": {"shapes": 1.0}, "batch": 12},
            "length": {"steps": 2},
        },
        where="a config",
    )
    embedder = train.fresh_embedder(values).eval()
    start = exported.Start(backbone=values.backbone, neck=values.neck, seed=0)
    card = exported.Card(backbone=values.backbone, neck=values.neck, view=embedder.view, seed=0, began=start)
    folder.mkdir()
    exported.save(folder, embedder, card, {})
    if names:
        generator = torch.Generator().manual_seed(1)
        table = torch.randn(len(names), sub_centres, columns, generator=generator) * 3
        exported.save_centres(folder, names, table)
    return folder


def config(sets: Path, export: Path, **more: Any) -> Any:
    values = {
        "job": "centres",
        "run": {"name": "two", "device": "cpu"},
        "shards_root": str(sets),
        "model": str(export),
        "set": "shapes",
        "threshold_degrees": 100,
        "neighbours": 3,
        "embed": {"batch": 4, "workers": 0},
    }
    return job.check(values | more, where="a config")


def look(world: World, config: Any, folder: Path) -> dict[str, str]:
    run = RunDir(folder)
    centres.run(config, run, world)
    world.barrier()
    return {name: (folder / name).read_text() for name in ("centres.tsv", "outliers.tsv")}


def rows_of(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(table.splitlines(), delimiter="\t"))


# --- the arithmetic


def random_units(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def fitted(world: World) -> tuple[class_centres.Fit, tuple[Any, Any]]:
    """60 images of 7 classes with 3 centres each; every 5th image has two labels, and the last class has no image."""
    emb_ND, centre_CKD = random_units(60, 5, seed=0), random_units(7, 3, 5, seed=1)
    mine = np.arange(60)[world.rank :: world.size]
    pairs = [(place, number % 6) for place, number in enumerate(mine)]
    pairs += [(place, (number + 1) % 6) for place, number in enumerate(mine) if number % 5 == 0]
    columns = tuple(np.array(pairs).reshape(-1, 2).T)
    found = class_centres.fit(emb_ND[mine], mine, columns, centre_CKD, world, threshold_degrees=80)  # type: ignore[arg-type]
    return found, class_centres.neighbours(centre_CKD, world, num=4)


def test_far_images_and_close_classes_are_what_loops_say_on_any_ranks() -> None:
    emb_ND, centre_CKD = random_units(60, 5, seed=0).numpy(), random_units(7, 3, 5, seed=1).numpy()
    labels = {(n, n % 6) for n in range(60)} | {(n, (n + 1) % 6) for n in range(0, 60, 5)}
    on = {c: [int(np.argmax(centre_CKD[c] @ emb_ND[n])) for n, label in sorted(labels) if label == c] for c in range(7)}
    dominant = {c: max(range(3), key=lambda k, c=c: (on[c].count(k), -k)) for c in range(7)}  # type: ignore[misc]
    angle = {(n, c): math.degrees(math.acos(float(emb_ND[n] @ centre_CKD[c, dominant[c]]))) for n, c in labels}
    far = sorted((key for key in labels if angle[key] > 80), key=lambda key: -angle[key])
    assert 10 < len(far) < len(labels)
    for fit, (class_CM, cosine_CM) in [fitted(Alone()), *run_ranks(fitted, 3)]:
        assert [(one.number, one.own) for one in fit.far] == far
        for one in fit.far:
            others = {c: float((centre_CKD[c] @ emb_ND[one.number]).max()) for c in range(7) if c != one.own}
            nearest = max(others, key=lambda c: others[c])
            assert (one.nearest, one.cosine) == (nearest, pytest.approx(others[nearest], abs=1e-5))
            assert one.angle == pytest.approx(angle[one.number, one.own], abs=1e-3)
        assert fit.images_CK.tolist() == [[on[c].count(k) for k in range(3)] for c in range(7)]
        assert fit.dominant_share_C[0] == max(fit.images_CK[0]) / len(on[0]) and math.isnan(fit.dominant_share_C[6])
        typical = [min((n for n, c in labels if c == own), key=lambda n: angle[n, own]) for own in range(6)]
        assert fit.typical_C.tolist() == [*typical, -1]
        assert fit.angles.sum() == len(labels) and fit.mean_angle == pytest.approx(np.mean(list(angle.values())))
        for own in range(7):
            cosines = {c: float((centre_CKD[own] @ centre_CKD[c].T).max()) for c in range(7) if c != own}
            wanted = sorted(cosines, key=lambda c: -cosines[c])[:4]
            assert class_CM[own].tolist() == wanted
            assert cosine_CM[own].tolist() == pytest.approx([cosines[c] for c in wanted], abs=1e-5)
        [(one_class, other, cosine)] = class_centres.close_pairs(class_CM, cosine_CM, num=1)
        assert cosine == cosine_CM.max() and class_CM[one_class][0] == other


def test_blocks_of_classes_and_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, (class_CM, _) = fitted(Alone())
    monkeypatch.setattr(class_centres, "_ROWS", 4)
    monkeypatch.setitem(class_centres._BYTES, "cpu", 4 * 4 * 9 * 2)
    parts, (again_CM, _) = fitted(Alone())
    assert [one[1:4] for one in parts.far] == [one[1:4] for one in whole.far]
    assert again_CM.tolist() == class_CM.tolist()


def test_a_single_class_has_no_neighbour() -> None:
    fit = class_centres.fit(
        random_units(3, 5, seed=0),
        np.arange(3),
        (np.arange(3), np.zeros(3)),
        random_units(1, 1, 5, seed=1),
        Alone(),
        threshold_degrees=1,
    )
    assert [one.nearest for one in fit.far] == [-1, -1, -1]
    near = class_centres.neighbours(random_units(1, 1, 5, seed=1), Alone(), num=5)
    assert near[0].shape == (1, 0) and class_centres.close_pairs(*near, num=3) == []


# --- the job


def test_the_tables_are_those_of_a_loop_over_the_images_on_any_ranks(tmp_path: Path, sets: Path) -> None:
    names = ["cold/c0", "cold/c1", "cold/c2", "cold/c3", "else/<b>\t1", "warm/c0", "warm/c1", "warm/c2", "warm/c3"]
    export = make_export(
        tmp_path / "export", sets, names, sub_centres=2, columns=DIM + 1
    )  # a linear head's, with biases
    one = look(Alone(), config(sets, export), tmp_path / "one")
    assert [run == one for run in run_ranks(look, 2, config(sets, export), tmp_path / "two")] == [True, True]

    classes, outliers = rows_of(one["centres.tsv"]), rows_of(one["outliers.tsv"])
    assert [row["class"] for row in classes] == ["else/<b>\\t1" if "else" in name else name for name in names]
    assert [int(row["images"]) for row in classes] == [0 if "else" in name else 7 for name in names]
    assert {"dominant_share", "nearest_3", "cosine_3"} <= classes[0].keys()
    manifest = Manifest.load(sets / "shapes")
    reader, embedder = Reader(manifest, manifest.select("train")), exported.load(export)
    table = {name: row[:, :DIM].numpy() for name, row in exported.read_centres(export).items()}
    vectors = np.concatenate([np.load(file) for file in sorted((tmp_path / "one/embeddings/train").glob("*.npy"))])
    assert embedder.dim == vectors.shape[1]
    ids = manifest.classes.class_names()

    def cosine(number: int, row_D: np.ndarray) -> float:
        vector_D = vectors[number].astype(np.float64)
        return float(vector_D @ row_D / np.linalg.norm(vector_D) / np.linalg.norm(row_D))

    wanted: dict[tuple[str, str], float] = {}
    for own in {ids[label] for label in reader.labels()} & set(names):
        numbers = [n for n, label in enumerate(reader.labels()) if ids[label] == own]
        on = [int(np.argmax([cosine(n, row) for row in table[own]])) for n in numbers]
        dominant = 0 if on.count(0) >= on.count(1) else 1
        share = {row["class"]: row["dominant_share"] for row in classes}[own]
        assert share == f"{max(on.count(0), on.count(1)) / len(on):.4f}"
        angles = {n: math.degrees(math.acos(cosine(n, table[own][dominant]))) for n in numbers}
        wanted |= {(reader.read(n).key, own): angle for n, angle in angles.items() if angle > 100}
    assert 0 < len(wanted) < 56
    assert {(row["key"], row["class"]): pytest.approx(float(row["angle"]), abs=0.01) for row in outliers} == wanted
    assert [float(row["angle"]) for row in outliers] == sorted((float(row["angle"]) for row in outliers), reverse=True)
    assert {row["set"] for row in outliers} == {"shapes"}

    report = read_json(tmp_path / "one/report.json")
    assert report["metrics"]["outliers"] == len(outliers)
    assert report["counts"]["classes_without_images"] == 1 and report["counts"]["labels_of_no_centre"] == 7
    page = (tmp_path / "one/report.html").read_text()
    assert "<b>\t1" not in page and "&lt;b&gt;" in page, "a name is shown, not run"
    assert page.count('class="card wrong"') == min(60, len(outliers))


def test_what_does_not_fit_is_told_before_anything_starts(tmp_path: Path, sets: Path) -> None:
    none = make_export(tmp_path / "none", sets, [], sub_centres=1)
    with pytest.raises(ConfigError, match=r"model +\S+/none has no class centres: it was trained with head: null"):
        config(sets, none)
    other = make_export(tmp_path / "other", sets, ["a/1", "a/2"], sub_centres=1)
    told = (
        r"set +none of its 9 classes \('cold/c0', 'cold/c1', 'cold/c2' \.\.\.\) is among the 2 of the export \('a/1',"
    )
    with pytest.raises(ConfigError, match=told):
        config(sets, other)
    with pytest.raises(ConfigError, match=r"set +no shard set \S+/shape"):
        config(sets, other, set="shape")
    mine = make_export(tmp_path / "mine", sets, ["cold/c0"], sub_centres=1)
    before = config(sets, mine).inputs()
    exported.save_centres(mine, ["cold/c0"], torch.zeros(1, 1, DIM))
    after = config(sets, mine).inputs()
    assert [key for key in before if before[key] != after[key]] == ["centres"], "another table is another run"
    with pytest.raises(ConfigError, match=r"model +\S+/nowhere is no export"):
        config(sets, tmp_path / "nowhere")
