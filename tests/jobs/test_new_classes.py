"""Centres of classes that an earlier run did not have: by name, at random, at the mean of their images, on any ranks."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs import train
from retrieval_train.config import ConfigError
from retrieval_train.data.decode import decode
from retrieval_train.engine.centre_step import CentreStep
from retrieval_train.engine.optimizers.adamw import Config as AdamW
from retrieval_train.engine.state_file import CheckpointError
from retrieval_train.heads import arcface
from retrieval_train.heads.centres import Head
from retrieval_train.models import exported
from retrieval_train.rundir import RunDir, write_names
from retrieval_train.world import Alone, World
from tests.jobs.test_origin import checked, config
from tests.processes import run_ranks
from tests.retrieval_train.data.conftest import make_sets

DIM = 8  # as in `config`
OLD = [f"cold/c{number}" for number in range(4)] + ["warm/c0", "warm/c1", "gone/c7"]
"""Classes of the export: `shapes` has three more in `warm`, `more` all four of `grey`."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    folder = tmp_path_factory.mktemp("export")
    values = checked(config(folder, sets, seed=5))
    embedder = train.fresh_embedder(values).eval()
    start = exported.Start(backbone=values.backbone, neck=values.neck, seed=5)
    card = exported.Card(backbone=values.backbone, neck=values.neck, view=embedder.view, seed=5, began=start)
    exported.save(folder, embedder, card, {})
    exported.save_centres(folder, OLD, torch.arange(len(OLD) * DIM).float().view(len(OLD), 1, DIM))
    return folder


def of_names(world: World, root: Path, cases: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """After `build`: every class's centre (K, D), of each case, on all ranks together."""
    found = []
    for number, case in enumerate(cases):
        learner = train.build(checked(case), RunDir(root / f"run{number}-{world.size}"), world).learner
        assert learner.head is not None and learner.embedder.training  # type: ignore[union-attr]
        mine = dict(zip(learner.head.class_names, learner.head.centre_CKD.detach(), strict=True))
        found.append({name: row for rows in world.every(mine) for name, row in rows.items()})
    return found


def mean_of(values: Any, name: str, *, most: int) -> Tensor:
    """The slow twin: images one by one, each by itself."""
    embedder, rows = train.fresh_embedder(values).eval(), []
    view = train.view_of(values, embedder)
    loader = train.build(values, RunDir(values.runs_root / "twin"), Alone()).loader
    for number, reader in enumerate(loader.streams[0].readers):
        joint_N = loader.labels.joint(number, reader.labels())
        for sample in np.flatnonzero(joint_N == loader.labels.names.index(name)).tolist():
            image_CHW = decode(reader.read(sample).image, key="", min_side=view.min_side(16))
            with torch.no_grad():
                emb_1D = embedder(view.apply(image_CHW, 16)[None])
            rows.append(torch.nn.functional.normalize(emb_1D[0], dim=0))
    count = min(most, len(rows))
    chosen = [rows[place * len(rows) // count] for place in range(count)]
    return torch.nn.functional.normalize(torch.stack(chosen).mean(0), dim=0)


def test_new_classes_begin_at_their_images_mean_or_at_random_on_any_ranks(
    tmp_path: Path, sets: Path, export: Path
) -> None:
    init = {"model": str(export)}
    linear = {"name": "linear"}
    cases = [
        config(tmp_path, sets),
        config(tmp_path, sets, init=init),
        config(tmp_path, sets, init=init | {"new_classes": "mean", "mean_images": 3}),
        config(tmp_path, sets, init=init | {"new_classes": "mean", "centres": "none"}, head=linear),
        config(tmp_path, sets, head={"name": "arcface", "sub_centres": 2}),
        config(
            tmp_path,
            sets,
            init=init | {"new_classes": "mean", "centres": "none"},
            head={"name": "arcface", "sub_centres": 2},
            data={"mixture": {"shapes": 1.0, "more": 1.0}, "batch": 12, "workers": 1},
        ),
    ]
    alone = of_names(Alone(), tmp_path, cases)
    for several in run_ranks(of_names, 3, tmp_path, cases):
        for one, other in zip(alone, several, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    fresh, by_name, mean, biased, fresh_two, two = alone
    new = sorted(fresh.keys() - set(OLD))
    assert len(new) == 7 and len(fresh) == 13
    for name in fresh.keys() & set(OLD):
        row = OLD.index(name)
        assert by_name[name].tolist() == mean[name].tolist() == [list(range(row * DIM, (row + 1) * DIM))]
    assert all(torch.equal(by_name[name], fresh[name]) for name in new)
    for name in new:
        assert torch.allclose(mean[name][0], mean_of(checked(cases[2]), name, most=3), atol=1e-5)
    for name in ("cold/c1", "grey/c2"):
        wanted = mean_of(checked(cases[3]), name, most=16)
        assert torch.allclose(biased[name], torch.cat([wanted, torch.zeros(1)])[None], atol=1e-5)
        assert torch.allclose(two[name], wanted + 0.1 * fresh_two[name], atol=1e-5)
        assert not torch.allclose(two[name][0], two[name][1], atol=1e-3), "equal sub-centres would stay equal"


def test_what_was_taken_is_told_and_a_run_with_a_checkpoint_takes_nothing(
    tmp_path: Path, sets: Path, export: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = checked(config(tmp_path, sets, init={"model": str(export), "new_classes": "mean"}))
    run = RunDir(tmp_path / "run")
    with caplog.at_level(logging.INFO):
        train.build(values, run, Alone())
        assert f"class centres: 6 are taken from {export}, which has 1 more" in caplog.text
        assert "7 classes are new and begin at the mean of up to 16 of their images (0 had none" in caplog.text
        caplog.clear()
        (run.checkpoint(1)).mkdir(parents=True)
        (run.checkpoint(1) / "state.json").write_text("{}")
        train.build(values, run, Alone())
        assert "class centres" not in caplog.text


def test_an_image_that_cannot_be_read_is_left_out_of_the_mean(tmp_path: Path, export: Path) -> None:
    sets = make_sets(tmp_path)
    values = checked(config(tmp_path, sets, init={"model": str(export), "new_classes": "mean"}))
    loader = train.build(values, RunDir(tmp_path / "one"), Alone()).loader
    reader = next(reader for reader in loader.streams[0].readers if reader.manifest.name == "more")
    bad = set(np.flatnonzero(reader.labels() == 0).tolist())  # grey/c0, but for its last image
    for number in sorted(bad)[:-1]:
        row = reader.row(number)
        with (sets / "more" / row.shard.file).open("r+b") as file:
            file.seek(int(row.entry["image_at"]))
            file.write(b"\0" * int(row.entry["image_bytes"]))
    [found] = of_names(Alone(), tmp_path, [config(tmp_path, sets, init={"model": str(export), "new_classes": "mean"})])
    embedder = train.fresh_embedder(values).eval()
    view = train.view_of(values, embedder)
    image_CHW = decode(reader.read(max(bad)).image, key="", min_side=view.min_side(16))
    with torch.no_grad():
        last_D = torch.nn.functional.normalize(embedder(view.apply(image_CHW, 16)[None])[0], dim=0)
    assert torch.allclose(found["grey/c0"][0], last_D, atol=1e-5)


def test_what_does_not_fit_is_told_before_anything_starts(tmp_path: Path, sets: Path, export: Path) -> None:
    init = {"model": str(export), "new_classes": "mean"}
    only_more = {"mixture": {"more": 1.0}, "batch": 12}
    wrong: dict[str, dict[str, Any]] = {
        r"init.centres +none of the 7 classes .*'cold/c0', 'cold/c1', 'cold/c2' .*of these sets \('grey/c0', 'grey/c1', "
        r"'grey/c2' \.\.\.\).*init.centres=none": {"data": only_more},
        r"init.centres +the export has 1 centres a class and head.sub_centres is 3; set head.sub_centres=1": {
            "head": {"name": "arcface", "sub_centres": 3}
        },
        r"init.centres +the export's centres have no bias and head 'linear' has one": {"head": {"name": "linear"}},
        r"init.new_classes +head is null": {
            "head": None,
            "loss": {"name": "triplet"},
        },
    }
    for told, edit in wrong.items():
        with pytest.raises(ConfigError, match=told):
            checked(config(tmp_path, sets, init=init, **edit))
    checked(config(tmp_path, sets, init=init | {"centres": "none"}, data=only_more))


def test_another_table_of_centres_is_another_run_where_it_is_read(tmp_path: Path, sets: Path, export: Path) -> None:
    """The sha256 in model.json is of the model alone."""
    folder = tmp_path / "export"
    shutil.copytree(export, folder)

    def inputs() -> list[dict[str, str]]:
        init = {"model": str(folder)}
        edits: list[dict[str, Any]] = [{"init": init}, {"init": init | {"centres": "none"}}]
        return [checked(config(tmp_path, sets, **edit)).inputs() for edit in edits]

    (named, none), table = inputs(), torch.zeros(len(OLD), 1, DIM)
    exported.save_centres(folder, OLD, table)
    (other, same) = inputs()
    assert {key for key in named if named[key] != other[key]} == {"init.centres"}
    assert none == same and "init.centres" not in none
    exported.save_centres(folder, OLD[::-1], table)
    assert inputs()[0]["init.centres"] != other["init.centres"], "rows of other classes"


# --- going on from a checkpoint


NAMES = ["a/1", "a/2", "b/1", "b/2", "c/1"]


def table_of(world: World, names: list[str], *, seed: int) -> tuple[Head, CentreStep]:
    head = Head(arcface.Config(sub_centres=2), names, dim=3, world=world, seed=seed)
    return head, CentreStep({"": head}, AdamW())


def save_table(folder: Path) -> dict[str, dict[str, Tensor]]:
    """A checkpoint's centres, in two parts and another order of classes."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(3)
    rows: dict[str, dict[str, Tensor]] = {}
    for part, names in enumerate((["c/1", "a/1", "b/2"], ["b/1", "a/2"])):
        tables = {
            kind: torch.rand(len(names), 2, 3, generator=generator) for kind in ("centre", "exp_avg", "exp_avg_sq")
        }
        save_file(tables, folder / f"centres-{part:05d}.safetensors")
        write_names(folder / f"classes-{part:05d}.txt", names)
        rows |= {name: {kind: tables[kind][row] for kind in tables} for row, name in enumerate(names)}
    return rows


def go_on(world: World, folder: Path, names: list[str]) -> tuple[str, dict[str, dict[str, Tensor]]]:
    """What a plain resume says, and what a run that may have new classes has: by class."""
    _, strict = table_of(world, names, seed=1)
    told = ""
    try:
        strict.load(folder, updates=4)
    except CheckpointError as error:
        told = str(error)
    head, step = table_of(world, names, seed=1)
    step.load(folder, updates=4, new_classes=True)
    mine = {
        name: {kind: tensor[row].clone() for kind, tensor in step.tensors().items()}
        for row, name in enumerate(head.class_names)
    }
    return told, {name: row for rows in world.every(mine) for name, row in rows.items()}


def test_a_checkpoint_goes_on_with_classes_added_and_dropped_on_any_ranks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = save_table(tmp_path)
    names = ["a/0", "a/2", "b/1", "c/1", "d/1"]
    with caplog.at_level(logging.WARNING):
        told, found = go_on(Alone(), tmp_path, names)
    assert "2 of its classes are gone" in caplog.text and "2 classes are new (a/0, d/1 ...)" in caplog.text
    assert "has no centres for 2 of the classes (a/0, d/1 ...)" in told
    fresh = dict(zip(names, table_of(Alone(), names, seed=1)[0].centre_CKD.detach(), strict=True))
    for name, row in found.items():
        if name in stored:
            assert all(torch.equal(row[kind], stored[name][kind]) for kind in row)
        else:
            assert torch.equal(row["centre"], fresh[name]) and not row["exp_avg"].any() and not row["exp_avg_sq"].any()
    for told_there, there in run_ranks(go_on, 3, tmp_path, names):
        assert told_there == told, "every rank, also one that lacks nothing"
        assert all(torch.equal(there[name][kind], row[kind]) for name, row in found.items() for kind in row)
    assert go_on(Alone(), tmp_path, NAMES)[0] == ""
    with pytest.raises(CheckpointError, match=r"5 classes \(a/1, a/2, b/1 \.\.\.\) and none of the 2 here \(x/1, x/2"):
        go_on(Alone(), tmp_path, ["x/1", "x/2"])
