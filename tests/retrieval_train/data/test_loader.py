"""The stream as ranks and workers see it: the same rows everywhere, exact resume, nothing lost in silence."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval_train.data.batch import Batch
from retrieval_train.data.config import DataConfig
from retrieval_train.data.intake import Intake, TooManyBad, cut_back
from retrieval_train.data.ledger import Seen, find_key, keys_of_step, replaced_rows
from retrieval_train.data.loader import Loader, build_loader
from retrieval_train.world import Alone
from shards.manifest import Manifest


class Rank(Alone):
    """One of several ranks, whose rows are looked at without the others."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size


def config(**more: Any) -> DataConfig:
    return DataConfig(**{"mixture": {"shapes": 1.0, "more": 1.0}, "batch": 12, "workers": 0, **more})


def loader(sets: Path, *, rank: int = 0, size: int = 1, accumulate: int = 1, **more: Any) -> Loader:
    return build_loader(config(**more), sets, Rank(rank, size), image_px=24, accumulate=accumulate, seed=3)


def rows_of(batches: Iterator[list[Batch]]) -> Iterator[dict[int, tuple[str, int, bytes]]]:
    """Of each step: row -> (key, label, pixels)."""
    for micro_batches in batches:
        found = {}
        for batch in micro_batches:
            images = [image.numpy().tobytes() for image in batch.image_NCHW]
            triples = zip(batch.key_N, batch.label_N.tolist(), images, strict=True)
            found.update(dict(zip(batch.row_N, triples, strict=True)))
        yield found


def steps(made: Loader, first: int = 0, stop: int = 8) -> list[dict[int, tuple[str, int, bytes]]]:
    with contextlib.closing(made.draws(first, stop)) as draws:
        return list(rows_of(draws))


def test_every_row_is_the_sample_of_the_order_with_its_label(sets: Path) -> None:
    made = loader(sets)
    for step, rows in enumerate(steps(made)):
        set_B, sample_B = made.order.batch_rows(step)
        for row, (key, label, pixels) in rows.items():
            sample = made.streams[0].readers[set_B[row]].read(int(sample_B[row]))
            assert key == sample.key and len(pixels) == 3 * 24 * 24
            assert made.labels.names[label] == f"{sample.meta['domain']}/{sample.meta['label']}"


@pytest.mark.parametrize(("size", "workers", "accumulate"), [(1, 2, 1), (2, 1, 1), (3, 0, 2), (5, 0, 1)])
def test_ranks_and_workers_together_give_what_one_process_gives(
    sets: Path, size: int, workers: int, accumulate: int
) -> None:
    whole = steps(loader(sets))
    together: list[dict[int, Any]] = [{} for _ in whole]
    for rank in range(size):
        made = loader(sets, rank=rank, size=size, workers=workers, accumulate=accumulate)
        for step, rows in enumerate(steps(made)):
            assert not together[step].keys() & rows.keys()
            together[step].update(rows)
    assert together == whole, "keys, labels and every pixel"


def test_micro_batches_hold_the_same_rows_on_any_world(sets: Path) -> None:
    parts = [
        [set(loader(sets, rank=rank, size=size, accumulate=3).my_rows(0, part).row_N.tolist()) for rank in range(size)]
        for size in (1, 4)
        for part in range(3)
    ]
    assert [set.union(*part) for part in parts[:3]] == [set.union(*part) for part in parts[3:]]
    made = loader(sets, rank=1, size=4, accumulate=3)
    assert sum(batch.weight for batch in next(made.draws(0, 1))) == pytest.approx(1)


def test_a_run_that_goes_on_sees_what_the_whole_run_sees(sets: Path) -> None:
    whole = steps(loader(sets), 0, 14)
    assert loader(sets).epoch_steps == 6, "the third epoch too"
    assert steps(loader(sets, workers=2), 5, 14) == whole[5:]


def test_what_is_kept_in_memory_is_what_is_decoded(sets: Path) -> None:
    assert steps(loader(sets, cache_gb=0.01, workers=2, ledger=True), 0, 14) == steps(loader(sets), 0, 14)
    little = loader(sets, cache_gb=1e-5)
    assert [set(rows) for rows in steps(little)] == [set(range(12))] * 8


def test_the_second_view_shows_the_same_images_otherwise(sets: Path) -> None:
    [batch] = next(loader(sets, augment={"preset": "none"}, strong={"preset": "ucu_strong"}).draws(0, 1))
    [again] = next(loader(sets, augment={"preset": "none"}, strong={"preset": "ucu_strong"}, workers=1).draws(0, 1))
    assert batch.strong_NCHW is not None and again.strong_NCHW is not None
    assert batch.strong_NCHW.shape == batch.image_NCHW.shape
    assert torch.equal(batch.strong_NCHW, again.strong_NCHW)
    assert not torch.equal(batch.strong_NCHW, batch.image_NCHW)


def test_rows_without_labels_come_along_in_an_order_of_their_own(sets: Path) -> None:
    extra = {"mixture": {"shapes": 1.0}, "unlabelled": {"mixture": {"more": 1.0}, "batch": 5}}
    seen: list[str] = []
    for rank in range(2):
        made = loader(sets, rank=rank, size=2, workers=1, **extra)
        for step in range(4):
            [batch] = next(made.draws(step, step + 1))
            assert batch.unlabelled is not None and len(batch.unlabelled.label_N) == (2, 3)[rank]
            assert set(batch.unlabelled.label_N.tolist()) == {-1} and -1 not in batch.label_N
            seen += batch.unlabelled.key_N
    assert len(set(seen)) == 20, "four steps of five rows are one epoch of the other set"


def test_image_sizes_follow_the_run(sets: Path) -> None:
    made = loader(sets, resolutions=[{"until": 0.5, "px": 16}, {"until": 1.0, "px": 24}])
    sides = [batches[0].image_NCHW.shape[-1] for batches in made.draws(0, 6, num_steps=6)]
    assert sides == [16, 16, 16, 24, 24, 24]


def test_a_domain_can_look_different(sets: Path) -> None:
    plain, other = loader(sets), loader(sets, augment_by_domain={"warm": {"flip": 1.0}})
    for [one], [two] in zip(plain.draws(0, 4), other.draws(0, 4), strict=True):
        for row, key in enumerate(one.key_N):
            same = torch.equal(one.image_NCHW[row], two.image_NCHW[row])
            assert same == (not key.startswith("warm/")), key


# --- what cannot be read


@pytest.fixture
def damaged(sets: Path, tmp_path: Path) -> tuple[Path, set[str]]:
    """The sets with four images overwritten, and the keys of those."""
    for name in ("shapes", "more"):
        shutil.copytree(sets / name, tmp_path / name)
    manifest, keys = Manifest.load(tmp_path / "shapes"), set()
    for shard in manifest.select("train")[:2]:
        rows = manifest.sidecar(shard)
        for place in (1, 4):
            keys.add(manifest.read(shard, place).key)
            with (tmp_path / "shapes" / shard.file).open("r+b") as file:
                file.seek(int(rows[place]["image_at"]))
                file.write(b"\0" * 400)
    return tmp_path, keys


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (2, 1), (3, 0)])
def test_a_sample_that_cannot_be_read_is_replaced_by_the_same_one_everywhere(
    damaged: tuple[Path, set[str]], size: int, workers: int
) -> None:
    folder, keys = damaged
    whole = steps(loader(folder), 0, 12)
    assert not keys & {key for rows in whole for key, _, _ in rows.values()}
    together: list[dict[int, Any]] = [{} for _ in whole]
    for rank in range(size):
        for step, rows in enumerate(steps(loader(folder, rank=rank, size=size, workers=workers), 0, 12)):
            together[step].update(rows)
    assert together == whole


def test_what_was_replaced_is_written_down_and_the_ledger_knows_it(
    damaged: tuple[Path, set[str]], tmp_path: Path
) -> None:
    folder, keys = damaged
    ledgers: dict[tuple[int, int], str] = {}
    for rank in range(2):
        made = loader(folder, rank=rank, size=2, ledger=True)
        files = {"bad_file": tmp_path / f"bad/{rank}.jsonl", "ledger_file": tmp_path / f"ledger/{rank}.tsv"}
        intake = Intake(Alone(), max_bad_fraction=1.0, **files)
        for _ in intake.watched(made.draws(0, 12), first=0):
            pass
        lines = (line.rstrip("\n").split("\t") for line in files["ledger_file"].open())
        ledgers.update({(int(step), int(row)): key for step, row, key in lines})
        assert intake.agree()["bad_samples"] == len(files["bad_file"].read_text().splitlines())
    replaced = replaced_rows(tmp_path / "bad")
    assert sum(replaced.values()) >= 4 and set(replaced) <= {Seen(*place) for place in ledgers}
    stream = loader(folder).streams[0]
    for step in range(12):
        assert keys_of_step(stream, step, replaced) == [ledgers[step, row] for row in range(12)]
    some = ledgers[7, 3]
    found = list(find_key(stream, some, range(12), replaced, lambda done: None))
    assert found == sorted(Seen(*place) for place, key in ledgers.items() if key == some)
    assert list(find_key(stream, min(keys), range(12), replaced, lambda done: None)) == []
    with pytest.raises(ValueError, match="no training sample has the key 'warm/nobody'; looked in: more, shapes"):
        list(find_key(stream, "warm/nobody", range(12), replaced, lambda done: None))


def test_too_many_bad_samples_stop_the_run_and_name_the_shards(damaged: tuple[Path, set[str]], tmp_path: Path) -> None:
    folder, _ = damaged
    intake = Intake(Alone(), bad_file=tmp_path / "bad/0.jsonl", ledger_file=None, max_bad_fraction=0.001)
    for _ in intake.watched(loader(folder).draws(0, 7), first=0):
        pass
    with pytest.raises(TooManyBad, match=r"\d of 84 samples .*shapes/train-00000[01]\.tar \(\d\)"):
        intake.agree()


def test_lines_of_steps_that_are_done_again_are_cut(tmp_path: Path) -> None:
    (tmp_path / "0.tsv").write_text("0\t1\ta\n1\t1\tb\n2\t1\tc\n2\t2")
    (tmp_path / "0.jsonl").write_text('{"step": 1, "row": 0}\n{"step": 2, "row": 0}\n{"st')
    cut_back(tmp_path, steps=2)
    assert (tmp_path / "0.tsv").read_text() == "0\t1\ta\n1\t1\tb\n"
    assert (tmp_path / "0.jsonl").read_text() == '{"step": 1, "row": 0}\n'


def test_a_worker_that_is_killed_ends_the_run_with_a_word(sets: Path) -> None:
    import psutil

    before = set(psutil.Process().children())
    with contextlib.closing(loader(sets, workers=1).draws(0, 1000)) as draws:
        next(draws)
        [worker] = set(psutil.Process().children()) - before
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(ValueError, match=r"a data worker of rank 0 died .*take fewer data\.workers"):
            for _ in draws:
                pass


# --- bad input


@pytest.mark.parametrize(
    ("values", "where", "told"),
    [
        ({"mixture": {"shapes": 1.0, "shaeps": 1.0}}, "data.mixture.shaeps", "did you mean shapes?"),
        ({"batch": 84}, "data.batch", "84 rows, but an epoch has only 83"),
        ({"augment_by_domain": {"hot": {"flip": 1.0}}}, "data.augment_by_domain.hot", "there are: cold, grey, warm"),
        (
            {"order": {"name": "mixed", "by": "domain", "share": "given", "weights": {"warm": 1}}},
            "data.order.weights",
            "names no 'cold'",
        ),
        (
            {"order": {"name": "grouped", "groups": 5}, "batch": 12},
            "data.order.groups",
            "5 groups do not cut data.batch 12",
        ),
        ({"unlabelled": {"mixture": {"more": 1.0}, "batch": 2, "split": "dev"}}, "data.unlabelled", "has no dev"),
    ],
)
def test_what_does_not_fit_the_sets_is_told_before_anything_starts(
    sets: Path, values: dict[str, Any], where: str, told: str
) -> None:
    problems = config(**values).problems(sets)
    assert any(key.startswith(where) and told in text for key, text in problems), problems


def test_fewer_rows_than_ranks_are_refused(sets: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.batch 12 in 4 micro-batches gives 4 ranks less than one row each"):
        loader(sets, size=4, accumulate=4)


def test_every_sample_comes_once_an_epoch_by_domain_too(sets: Path) -> None:
    made = loader(sets, order={"name": "grouped"}, batch=5)
    for step in range(made.epoch_steps):
        set_B, sample_B = made.order.batch_rows(step)
        domains = {made.streams[0].readers[s].read(int(n)).meta["domain"] for s, n in zip(set_B, sample_B, strict=True)}
        assert len(domains) == 1
    assert np.unique(np.concatenate([made.order.batch_rows(s)[1] for s in range(made.epoch_steps)])).size > 30


def test_a_batch_that_is_still_held_keeps_its_images(sets: Path) -> None:
    held, copies = [], []
    with contextlib.closing(loader(sets, workers=1).draws(0, 12)) as draws:
        for [batch] in draws:
            held.append(batch.image_NCHW)
            copies.append(batch.image_NCHW.clone())
    assert all(torch.equal(one, two) for one, two in zip(held, copies, strict=True))
    with contextlib.closing(loader(sets, workers=1).draws(0, 12)) as draws:
        places = {batch.image_NCHW.data_ptr() for [batch] in draws}
    assert len(places) <= 3, "memory that nobody holds is given out again"
