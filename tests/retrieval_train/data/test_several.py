"""Images with several labels: every label of every row reaches the batch, and no class id that is not the set's."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval_train.data.batch import Batch
from retrieval_train.data.config import DataConfig
from retrieval_train.data.foreign import read_classes
from retrieval_train.data.foreign_loader import foreign_labels
from retrieval_train.data.labels import Labels
from retrieval_train.data.loader import Loader, build_loader
from retrieval_train.data.order.classes import ClassOrder
from retrieval_train.data.reader import Reader
from retrieval_train.data.several import LabelError
from shards.manifest import LABELS, Manifest, ShardError
from tests.retrieval_train.data.test_loader import Rank

BOTH = {"tags": 1.0, "more": 1.0}


def loader(root: Path, *, rank: int = 0, size: int = 1, accumulate: int = 1, **more: Any) -> Loader:
    config = DataConfig(**{"mixture": BOTH, "batch": 12, "workers": 0, **more})
    return build_loader(config, root, Rank(rank, size), image_px=16, accumulate=accumulate, seed=3)


def drawn(made: Loader, first: int = 0, stop: int = 6) -> list[list[Batch]]:
    with contextlib.closing(made.draws(first, stop)) as draws:
        return list(draws)


def pairs_of(batch: Batch) -> list[tuple[int, ...]]:
    """Class ids of each row."""
    assert batch.pair_row_P is not None and batch.pair_class_P is not None
    assert batch.pair_row_P.dtype == batch.pair_class_P.dtype == torch.int64
    assert bool((batch.pair_row_P.diff() >= 0).all()), "rows ascend"
    found: list[list[int]] = [[] for _ in batch.row_N]
    for row, label in zip(batch.pair_row_P.tolist(), batch.pair_class_P.tolist(), strict=True):
        found[row].append(label)
    return [tuple(labels) for labels in found]


def stated(root: Path) -> dict[str, list[str]]:
    """Key -> class names, as the jsons of the tars have them."""
    found = {}
    for name in ("tags", "more"):
        manifest = Manifest.load(root / name)
        for shard in manifest.select("train"):
            for row in range(shard.samples):
                meta = (sample := manifest.read(shard, row)).meta
                labels = meta["labels"] if "labels" in meta else [meta["label"]]
                found[sample.key] = [f"{meta['domain']}/{label}" for label in labels]
    return found


@pytest.mark.parametrize("order", [{"name": "mixed", "share": "equal"}, {"name": "grouped", "share": "equal"}])
@pytest.mark.parametrize(("size", "workers", "accumulate"), [(1, 0, 1), (2, 2, 2), (3, 0, 1)])
def test_every_label_of_every_row_reaches_the_batch_of_its_rank(
    tagged: Path, order: dict[str, Any], size: int, workers: int, accumulate: int
) -> None:
    jsons, seen, numbers = stated(tagged), set(), Counter[int]()
    for rank in range(size):
        made = loader(tagged, rank=rank, size=size, workers=workers, accumulate=accumulate, order=order)
        for batch in (batch for step in drawn(made) for batch in step):
            rows = zip(batch.key_N, pairs_of(batch), batch.label_N.tolist(), strict=True)
            for key, labels, first in rows:
                assert labels == tuple(sorted(labels)) and first == labels[0]
                assert sorted(made.labels.names[label] for label in labels) == sorted(jsons[key])
                numbers[len(labels)] += 1
                seen.add(key.partition("/")[0])
    assert seen == {"sea", "hills", "grey"} and set(numbers) == {1, 2, 3}
    assert numbers.total() == 6 * 12


def test_every_image_comes_once_an_epoch_whatever_its_labels(tagged: Path) -> None:
    made = loader(tagged, mixture={"tags": 1.0}, batch=8)
    assert made.epoch_steps == 5, "40 images, and more labels"
    keys = [key for [batch] in drawn(made, 0, 5) for key in batch.key_N]
    assert len(keys) == len(set(keys)) == 40
    [step] = drawn(made, 3, 4)
    assert step[0].key_N == drawn(made, 0, 4)[3][0].key_N


def test_pairs_go_where_the_batch_goes_and_are_there_in_such_runs_only(tagged: Path) -> None:
    others = {"mixture": {"tags": 1.0}, "batch": 3}
    [[plain]] = drawn(loader(tagged, mixture={"more": 1.0}, batch=5, unlabelled=others), 0, 1)
    assert plain.pair_row_P is plain.pair_class_P is None
    assert plain.unlabelled is not None and plain.unlabelled.pair_row_P is None
    [[batch]] = drawn(loader(tagged, mixture={"tags": 1.0}), 0, 1)
    moved = batch.to(torch.device("meta"))
    assert moved.pair_row_P is not None and moved.pair_class_P is not None
    assert moved.pair_row_P.is_meta and moved.pair_class_P.is_meta
    assert moved.pair_class_P.shape == moved.pair_row_P.shape == (sum(map(len, pairs_of(batch))),)


def test_unlabelled_rows_have_keys_rows_and_both_views(tagged: Path) -> None:
    asked: dict[str, Any] = {
        "augment": {"preset": "none"},
        "strong": {"preset": "ucu_strong"},
        "unlabelled": {"mixture": {"more": 1.0}, "batch": 5},
    }
    parts = [drawn(loader(tagged, rank=rank, size=2, **asked), 0, 1)[0][0] for rank in range(2)]
    rows: list[int] = []
    keys: list[str] = []
    for batch in parts:
        other = batch.unlabelled
        assert other is not None and batch.strong_NCHW is not None and other.strong_NCHW is not None
        assert other.strong_NCHW.shape == other.image_NCHW.shape == (len(other.row_N), 3, 16, 16)
        assert not torch.equal(other.strong_NCHW, other.image_NCHW)
        assert len(pairs_of(batch)) == 6 and set(other.label_N.tolist()) == {-1}
        rows += other.row_N
        keys += other.key_N
    assert rows == [0, 1, 2, 3, 4] and len(set(keys)) == 5 and all(key.startswith("grey/") for key in keys)


# --- classes


def test_classes_count_every_label_of_every_image(tagged: Path) -> None:
    labels, jsons = loader(tagged).labels, stated(tagged)
    counted = Counter(name for names in jsons.values() for name in names)
    assert labels.counts_C is not None and labels.has_several
    assert dict(zip(labels.names, labels.counts_C.tolist(), strict=True)) == counted
    assert sum(counted.values()) > len(jsons)


def test_nobody_knows_how_many_images_foreign_tars_have(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cats\ndogs\n")
    assert foreign_labels(read_classes(tmp_path / "classes.txt", "pets")).counts_C is None


def test_joint_ids_are_in_their_own_order() -> None:
    labels = Labels(("a b/x", "a/x"), None, (np.array([1, 0]),))
    assert labels.joint_each(0, (0, 1)) == (0, 1) and labels.joint_each(0, (0,)) == (1,)
    assert labels.joint_each(0, ()) == ()


@pytest.mark.parametrize(
    "order",
    [
        {"name": "pk", "classes": 6, "images": 2},
        {"name": "pk", "classes": 6, "images": 2, "coverage": "full", "groups": 2, "group_by": "domain"},
        {"name": "balanced", "per_class": 3},
    ],
)
def test_orders_by_classes_draw_an_image_for_any_of_its_labels(tagged: Path, order: dict[str, Any]) -> None:
    config = DataConfig.model_validate({"mixture": BOTH, "batch": 12, "order": order})
    assert config.problems(tagged) == []
    made, drawn_for = loader(tagged, order=order), set()
    assert isinstance(made.order, ClassOrder)
    for step, [batch] in enumerate(drawn(made, 0, 12)):
        class_B, _ = made.order.picked(step, np.arange(12))
        for one, labels in zip(class_B.tolist(), pairs_of(batch), strict=True):
            assert one in labels
            drawn_for.add(labels.index(one))
    assert drawn_for == {0, 1, 2}, "not for its first label only"


def test_the_class_index_has_each_image_once_for_each_label(tagged: Path) -> None:
    made = loader(tagged, order={"name": "balanced", "per_class": 3})
    assert isinstance(made.order, ClassOrder)
    jsons, names = stated(tagged), made.labels.names
    found: dict[str, list[str]] = {name: [] for name in names}
    for one, name in enumerate(names):
        count = int(made.order.index.counts_C[one])
        for number, sample in zip(*made.order.index.samples(np.full(count, one), np.arange(count)), strict=True):
            found[name].append(made.streams[0].readers[number].read(int(sample)).key)
    expected = {name: sorted(key for key, labels in jsons.items() if name in labels) for name in names}
    assert {name: sorted(keys) for name, keys in found.items()} == expected


def test_the_config_knows_it_without_torch(tagged: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from retrieval_train.data.config import DataConfig\n"
        f"root = Path({str(tagged)!r})\n"
        "for names in (['tags'], ['more'], ['more', 'tags'], ['nothing', 'more']):\n"
        "    print(DataConfig(mixture=dict.fromkeys(names, 1.0), batch=4).is_multi_label(root))\n"
        "print('torch' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "False", "True", "False", "False"]


# --- labels that are not the set's


@pytest.fixture
def copied(tagged: Path, tmp_path: Path) -> Path:
    """The sets, to be damaged."""
    for name in ("tags", "more"):
        shutil.copytree(tagged / name, tmp_path / name)
    return tmp_path


def spoil(root: Path, name: str, *, row: int, label: int) -> str:
    """Gives a row of the set's second shard another class id; the name of its tar."""
    manifest = Manifest.load(root / name)
    shard = manifest.shards[1]
    path = manifest.folder / (shard.labels if manifest.is_multi_label else shard.sidecar)
    entries = np.load(path)
    at = np.flatnonzero(entries["row"] == row)[-1] if manifest.is_multi_label else row
    entries["label"][at] = label
    np.save(path, entries)
    return shard.file


@pytest.mark.parametrize(("name", "workers"), [("tags", 0), ("more", 0), ("more", 1)])
@pytest.mark.parametrize("label", [99, -7])
def test_a_class_id_that_is_not_the_sets_ends_the_run_with_its_place(
    copied: Path, name: str, workers: int, label: int
) -> None:
    tar, num_classes = spoil(copied, name, row=3, label=label), len(Manifest.load(copied / name).classes)
    told = rf"{name}/train-000001\..*: row 3 of {tar} has class id {label}, but the set has {num_classes} classes"
    with pytest.raises(LabelError, match=told):
        drawn(loader(copied, workers=workers), 0, 8)


def test_a_class_without_an_image_of_the_split_is_not_the_sets_either(copied: Path) -> None:
    manifest = Manifest.load(copied / "more")
    manifest.classes.table[0, 2] = 0
    with pytest.raises(LabelError, match=r"has class id 2, but the set counts no train image of 'grey/c2'"):
        Reader(manifest, manifest.shards).labels()


def test_a_sidecar_with_single_labels_beside_lists_is_refused(copied: Path) -> None:
    manifest = Manifest.load(copied / "tags")
    path = manifest.folder / manifest.shards[0].sidecar
    rows = np.load(path)
    rows["label"][4] = 1
    np.save(path, rows)
    with pytest.raises(LabelError, match=r"tags/train-000000.*: row 4 has a label, but the images of this set have"):
        Reader(manifest, manifest.shards).row(0)


def test_a_file_of_labels_that_is_gone_ends_the_run_with_its_name(copied: Path) -> None:
    (copied / "tags/train-000001.labels.npy").unlink()
    with pytest.raises(ShardError, match=r"train-000001\.labels\.npy: cannot be read"):
        loader(copied)


def test_an_image_without_any_label_is_left_out(copied: Path) -> None:
    manifest = Manifest.load(copied / "tags")
    path = manifest.folder / manifest.shards[2].labels
    pairs = np.load(path)
    np.save(path, pairs[pairs["row"] != 5])
    made, key = loader(copied, mixture={"tags": 1.0}, batch=8), manifest.read(manifest.shards[2], 5).key
    assert made.epoch_steps == 4
    keys = {key for [batch] in drawn(made, 0, 20) for key in batch.key_N}
    assert len(keys) == 39 and key not in keys


def test_labels_may_lie_in_any_order_and_twice(copied: Path) -> None:
    manifest = Manifest.load(copied / "tags")
    expected = Reader(manifest, manifest.shards)
    labels = [expected.labels_of(expected.row(number)) for number in range(40)]
    firsts, pairs = expected.labels(), expected.label_pairs()
    for shard in manifest.shards:
        entries = np.load(manifest.folder / shard.labels)
        np.save(manifest.folder / shard.labels, np.concatenate([entries[::-1], entries[:2]]).astype(LABELS))
    reader = Reader(manifest, manifest.shards)
    assert [reader.labels_of(reader.row(number)) for number in range(40)] == labels
    assert reader.labels().tolist() == firsts.tolist() == [some[0] for some in labels]
    assert [part.tolist() for part in reader.label_pairs()] == [part.tolist() for part in pairs]
    assert [reader.label(number) for number in range(40)] == firsts.tolist()


def test_a_json_with_other_labels_than_the_list_is_not_trained_on(copied: Path) -> None:
    manifest = Manifest.load(copied / "tags")
    some = [row for row in range(7) if (manifest.labels(manifest.shards[1])["row"] == row).sum() > 1]
    tar = spoil(copied, "tags", row=some[0], label=_another(manifest, some[0]))
    key = manifest.read(manifest.shards[1], some[0]).key
    made = loader(copied, mixture={"tags": 1.0}, batch=8)
    steps = drawn(made, 0, 10)
    assert key not in {key for [batch] in steps for key in batch.key_N}
    bad = {(bad.shard, bad.place) for [batch] in steps for bad in batch.bad}
    assert bad == {(tar, some[0])}


def _another(manifest: Manifest, row: int) -> int:
    """A class of the image's domain that it has not."""
    pairs, classes = manifest.labels(manifest.shards[1]), manifest.classes
    mine = set(pairs["label"][pairs["row"] == row].tolist())
    domain = classes.domains[min(mine)]
    return next(one for one, name in enumerate(classes.domains) if name == domain and one not in mine)
