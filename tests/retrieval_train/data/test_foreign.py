"""Tars of others: no rank hangs, nothing of them is run, what cannot be used is counted, and the run says what it is."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pickle
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs import job, train
from retrieval_train.config import ConfigError, check
from retrieval_train.data.batch import Batch
from retrieval_train.data.config import DataConfig
from retrieval_train.data.foreign import ForeignConfig, read_classes
from retrieval_train.data.foreign_tars import MOST_EMPTY, Tars, class_of
from retrieval_train.data.loader import Loader, build_loader
from retrieval_train.world import Alone, World
from tests.processes import run_ranks
from tests.retrieval_train.data.test_loader import Rank

CLASSES = ["cats", "dogs", "toys/bear"]


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40 + number % 7, 36), (number % 256, 90, 160)).save(out, "JPEG")
    return out.getvalue()


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def write_tars(folder: Path, sizes: list[int]) -> Path:
    """Tars with as many samples as `sizes` say, keys 0, 1, … through all of them, and the classes."""
    number = 0
    for which, size in enumerate(sizes):
        members: dict[str, bytes] = {}
        for _ in range(size):
            members |= {f"{number}.jpg": picture(number), f"{number}.cls": str(number % 3).encode()}
            number += 1
        write_tar(folder / f"{which:03d}.tar", members)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def data(folder: Path, *, batch: int = 4, workers: int = 0, **more: Any) -> DataConfig:
    foreign = {"urls": f"{folder}/*.tar", "classes": folder / "classes.txt", "domain": "pets", "samples": 12, **more}
    return DataConfig.model_validate({"foreign": foreign, "batch": batch, "workers": workers})


def loader(config: DataConfig, world: World | None = None, *, accumulate: int = 1) -> Loader:
    return build_loader(config, Path("nowhere"), world or Alone(), image_px=16, accumulate=accumulate, seed=5)


def batches(made: Loader, first: int, stop: int) -> list[list[Batch]]:
    with contextlib.closing(made.draws(first, stop)) as draws:
        return list(draws)


def keys(steps: list[list[Batch]]) -> list[tuple[str, ...]]:
    return [batch.key_N for step in steps for batch in step]


# --- every rank takes every step


def steps_in_step(world: World, folders: list[str], steps: int) -> list[list[tuple[str, ...]]]:
    """On every rank, with a collective after each step that hangs if a rank has none."""
    found = []
    for folder in folders:
        config = data(Path(folder), batch=5, workers=2)
        seen = []
        with contextlib.closing(loader(config, world).draws(0, steps)) as draws:
            for [batch] in draws:
                world.barrier()
                assert batch.counts == (2, 3) and len(batch.label_N) == batch.counts[world.rank]
                seen.append(batch.key_N)
        found.append(seen)
    return found


def test_ranks_take_the_same_steps_whatever_the_sizes_of_the_tars(tmp_path: Path) -> None:
    uneven, few, empty = (tmp_path / name for name in ("uneven", "few", "empty"))
    for folder, sizes in ((uneven, [1, 9, 2, 3, 30]), (few, [7]), (empty, [0, 0, 1, 5])):
        folder.mkdir()
        write_tars(folder, sizes)
    found = run_ranks(steps_in_step, 2, [str(uneven), str(few), str(empty)], 9, timeout_s=100)
    for which, samples in enumerate((45, 7, 6)):
        seen = Counter(key for rank in found for step in rank[which] for key in step)
        assert [len(rank[which]) for rank in found] == [9, 9] and sum(seen.values()) == 45
        assert set(seen) <= {str(number) for number in range(samples)}
        assert len(seen) > 1 or samples == 1


@pytest.mark.parametrize(("sizes", "streams"), [([3, 1, 4], 3), ([5, 0, 2, 7, 1], 2), ([1], 3), ([4, 1], 7), ([6], 1)])
def test_the_streams_of_all_workers_together_take_every_sample_once_a_pass(
    tmp_path: Path, sizes: list[int], streams: int
) -> None:
    config = data(write_tars(tmp_path, sizes)).foreign
    assert config is not None
    tars = Tars(config, config.class_list(), (5, 0), 0, streams)
    every = [(tar, place) for tar, size in enumerate(sizes) for place in range(size)]
    passes = [tars.passes(number) for number in range(streams)]
    taken: list[Counter[int]] = [Counter() for _ in range(streams)]
    for _ in range(12):
        found = []
        for number, stream in enumerate(passes):
            for tar, share, shares in next(stream):
                mine = [(tar, place) for place in range(sizes[tar]) if place % shares == share]
                taken[number].update(tar for tar, _ in mine)
                found += mine
        assert sorted(found) == every
    assert all(taken), "a stream that never gets a sample would wait for ever"


def test_a_pass_of_one_rank_has_every_sample_once(tmp_path: Path) -> None:
    made = loader(data(write_tars(tmp_path, [5, 4, 3]), shuffle=0))
    for at in (0, 3):
        seen = [key for step in keys(batches(made, 0, 6)[at : at + 3]) for key in step]
        assert sorted(seen, key=int) == [str(number) for number in range(12)]


def test_micro_batches_are_those_of_a_set(tmp_path: Path) -> None:
    made = loader(data(write_tars(tmp_path, [20]), batch=7), Rank(1, 2), accumulate=2)
    [first, second], *_ = batches(made, 0, 2)
    assert (first.counts, second.counts) == ((1, 2), (2, 2))
    assert (first.row_N, second.row_N) == ((1, 2), (5, 6)) and first.weight + second.weight == 1
    assert first.image_NCHW.shape == (2, 3, 16, 16) and made.epoch_steps == 12 // 7


def test_a_run_that_goes_on_draws_a_new_order(tmp_path: Path) -> None:
    made = loader(data(write_tars(tmp_path, [40, 40, 40])))
    whole = keys(batches(made, 0, 6))
    assert keys(batches(made, 0, 6)) == whole
    again = keys(batches(made, 3, 6))
    assert again != whole[3:] and again != whole[:3]


def test_unlabelled_rows_of_a_set_come_along(tmp_path: Path, sets: Path) -> None:
    config = data(write_tars(tmp_path, [9]))
    more = DataConfig.model_validate({**config.model_dump(), "unlabelled": {"mixture": {"more": 1.0}, "batch": 3}})
    assert more.problems(sets) == []
    made = build_loader(more, sets, Alone(), image_px=16, accumulate=1, seed=5)
    assert made.sets.keys() == {"data.foreign", "more"}
    for [batch] in batches(made, 0, 2):
        assert batch.unlabelled is not None and batch.unlabelled.label_N.tolist() == [-1] * 3
        assert all(key.startswith("grey/") for key in batch.unlabelled.key_N)
        assert batch.label_N.tolist() == [int(key) % 3 for key in batch.key_N]


# --- labels


@pytest.mark.parametrize(
    ("parts", "field", "name"),
    [
        ({"cls": b"1\n"}, None, "pets/dogs"),
        ({"cls": b"dogs"}, None, "pets/dogs"),
        ({"cls": b"toys/bear"}, None, "toys/bear"),
        ({"cls": b"2", "json": b'{"label": "cats"}'}, None, "toys/bear"),
        ({"json": b'{"label": "cats"}'}, None, "pets/cats"),
        ({"json": b'{"label": "bear", "domain": "toys"}'}, None, "toys/bear"),
        ({"json": b'{"id": "dogs", "label": "cats"}'}, "id", "pets/dogs"),
        ({"json": b'{"label": 0}'}, None, "pets/cats"),
    ],
)
def test_labels_come_from_cls_or_json(tmp_path: Path, parts: dict[str, bytes], field: str | None, name: str) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    classes = read_classes(tmp_path / "classes.txt", "pets")
    assert classes.names[class_of(parts, field, classes)] == name


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({}, "no label"),
        ({"cls": b"3"}, "label 3: .*classes.txt has classes 0 to 2"),
        ({"cls": b"%d" % 2**70}, "has classes 0 to 2"),
        ({"cls": b"9" * 5000}, "digits"),
        ({"json": b'{"label": 3}'}, "has classes 0 to 2"),
        ({"json": b'{"label": -1}'}, "label '-1' of domain 'pets' is not in "),
        ({"cls": b"cows"}, "label 'cows' of domain 'pets' is not in "),
        ({"json": b'{"label": "bear"}'}, "label 'bear' of domain 'pets'"),
        ({"json": b'{"label": ["cats"]}'}, "is no text"),
        ({"json": b"[]"}, "not an object"),
        ({"json": b"{"}, "Expecting"),
        ({"cls": b"\xff"}, "utf-8"),
    ],
)
def test_a_label_that_says_nothing_is_told(tmp_path: Path, parts: dict[str, bytes], why: str) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    with pytest.raises(ValueError, match=why):
        class_of(parts, None, read_classes(tmp_path / "classes.txt", "pets"))


def test_a_number_is_a_name_where_classes_are_named_by_numbers(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0\n1\n10\n2\n")
    classes = read_classes(tmp_path / "classes.txt", "digits")
    assert classes.names[classes.find("10")] == "digits/10" and classes.names[classes.find("2")] == "digits/2"
    with pytest.raises(ValueError, match="label '3' of domain 'digits' is not in"):
        classes.find("3")


def test_batches_carry_the_labels_of_their_keys(tmp_path: Path) -> None:
    made = loader(data(write_tars(tmp_path, [30])))
    assert made.labels.names == ("pets/cats", "pets/dogs", "toys/bear") and made.labels.domains == ("pets", "toys")
    for [batch] in batches(made, 0, 5):
        assert batch.label_N.tolist() == [int(key) % 3 for key in batch.key_N]
        assert batch.domain_N is not None and batch.domain_N.tolist() == [int(key) % 3 == 2 for key in batch.key_N]


# --- what others put into tars


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_nothing_in_a_tar_is_run(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    kinds = ("pyd", "pickle", "pth", "pt", "npy", "npz", "pkl", "ten", "mp", "txt", "id", "index")
    write_tars(tmp_path, [])
    members = {"a.jpg": picture(0), "a.json": b'{"label": "cats"}', **{f"a.{kind}": trap for kind in kinds}}
    write_tar(tmp_path / "a.tar", {**members, "b.pyd": trap, "b.jpg": trap, "c.cls": trap, "c.jpg": picture(1)})
    [[batch]] = batches(loader(data(tmp_path)), 0, 1)
    assert set(batch.key_N) == {"a"} and {bad.reason[:3] for bad in batch.bad} == {"'b'", "'c'"}
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists(), "the trap works"


def test_samples_of_no_use_are_replaced_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tars(tmp_path, [3])
    write_tar(
        tmp_path / "odd.tar",
        {
            "damaged.jpg": picture(0)[:200],
            "damaged.cls": b"0",
            "lonely.jpg": picture(0),
            "wordy.cls": b"1",
            "cow.jpg": picture(0),
            "cow.cls": b"cows",
            "two.jpg": picture(0),
            "two.png": picture(0),
            "far.jpg": picture(0),
            "far.cls": b"3",
        },
    )
    cut = write_tar(tmp_path / "cut.tar", {"x.cls": b"0", "x.jpg": picture(1), "y.cls": b"0", "y.jpg": picture(2)})
    with tarfile.open(cut) as tar:
        end = tar.getmember("y.jpg").offset_data + 100
    cut.write_bytes(cut.read_bytes()[:end])
    (tmp_path / "none.tar").write_bytes(b"")
    (tmp_path / "page.tar").write_text("<html>not found</html>" * 100)
    steps = batches(loader(data(tmp_path, shuffle=0)), 0, 3)
    assert {key for found in keys(steps) for key in found} == {"0", "1", "2", "x"}
    bad = {(Path(one.shard).name, one.place): one.reason for [batch] in steps for one in batch.bad}
    assert "does not decode" in bad["odd.tar", 0] and "shards check" not in bad["odd.tar", 0]
    assert bad["odd.tar", 1].startswith("'lonely': no label") and bad["odd.tar", 2] == "'wordy': no image"
    assert "'cows' of domain 'pets' is not in" in bad["odd.tar", 3]
    assert bad["odd.tar", 4] == "'two': several images: jpg, png"
    assert bad["odd.tar", 5] == f"'far': label 3: {tmp_path}/classes.txt has classes 0 to 2"
    assert bad["cut.tar", 1] == "'y': no image"
    assert {tar for tar, place in bad if place < 0} == {"cut.tar", "none.tar", "page.tar"}
    assert caplog.text.count("page.tar: broken tar: ") == 1, "told once"


def test_tars_that_give_nothing_end_the_run_and_do_not_hang_it(tmp_path: Path) -> None:
    write_tar(write_tars(tmp_path, []) / "a.tar", {f"{n}.0.jpg": picture(n) for n in range(5)})
    with pytest.raises(ValueError, match=rf"{MOST_EMPTY} tars in a row give no sample, the last is .*a\.tar"):
        batches(loader(data(tmp_path)), 0, 1)
    write_tar(tmp_path / "a.tar", {f"{n}.jpg": picture(n) for n in range(5)})
    with pytest.raises(ValueError, match=r"1000 samples in a row .*a\.tar: '\d': no label"):
        batches(loader(data(tmp_path)), 0, 1)


def test_urls_and_commands_give_tars_too(tmp_path: Path) -> None:
    write_tars(tmp_path, [6, 6])
    urls = [f"file://{tmp_path}/000.tar", f"pipe:cat {tmp_path}/001.tar", "pipe:echo oh; exit 3", "memory://gone.tar"]
    made = loader(data(tmp_path, urls=urls, allow_pipe=True, shuffle=0))
    steps = batches(made, 0, 6)
    assert {key for found in keys(steps) for key in found} == {str(number) for number in range(12)}
    bad = {one.shard: one.reason for [batch] in steps for one in batch.bad}
    assert bad.keys() == {"pipe:echo oh; exit 3", "memory://gone.tar"}
    assert "its command ended with 3" in bad["pipe:echo oh; exit 3"] and "No such file" in bad["memory://gone.tar"]


# --- what a config says


def test_a_run_says_what_it_cannot_promise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loader(data(write_tars(tmp_path, [4, 4]), workers=3))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("data.foreign: 2 tars without a sidecar are streamed in sequence: after a stop")
    assert "`shards make img2dataset`" in first
    assert second.startswith("data.foreign: 2 tars for 1 ranks x 3 workers: a tar is read by up to 2 workers")


def told(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check(DataConfig, values, where="x.yaml")
    return str(caught.value)


def test_a_set_or_tars_and_not_both() -> None:
    foreign = {"urls": ["a.tar"], "classes": "c.txt", "domain": "pets"}
    assert "mixture  names no set; say for example data.mixture.sample=1.0" in told({"batch": 4})
    assert "mixture  names no set; say for example" in told({"mixture": {}})
    assert "mixture  excludes data.foreign" in told({"mixture": {"a": 1.0}, "foreign": foreign})
    assert told({"foreign": {**foreign, "urls": []}}).count("\n") == 1


@pytest.mark.parametrize("url", ["pipe:rm -r x", "PIPE:rm -r x", " pipe:rm", "p{i,i}pe:rm -r x", "{a.tar,pipe:rm}"])
def test_a_command_is_refused_unless_it_is_allowed(url: str) -> None:
    values = {"urls": ["a.tar", url], "classes": "c.txt", "domain": "pets"}
    assert "runs a shell command; say data.foreign.allow_pipe=true if you trust it" in told({"foreign": values})
    assert ForeignConfig.model_validate({**values, "allow_pipe": True})


def test_what_does_not_fit_is_told_before_anything_starts(tmp_path: Path) -> None:
    def problems(values: dict[str, Any], **more: Any) -> dict[str, str]:
        foreign = {"urls": f"{tmp_path}/{{000..001}}.tar", "classes": tmp_path / "classes.txt", "domain": "pets"}
        config = DataConfig.model_validate({"batch": 4, **more, "foreign": {**foreign, **values}})
        return dict(config.problems(tmp_path))

    write_tars(tmp_path, [4, 4])
    assert problems({"samples": 8}) == {}
    assert "no sizes.json beside" in problems({})["data.foreign.samples"]
    (tmp_path / "sizes.json").write_text(json.dumps({"000.tar": 4, "001.tar": 4}))
    assert problems({}) == {} and problems({}, batch=9) == {
        "data.batch": "9 rows, but an epoch has only 8; take a smaller batch"
    }
    assert "how many samples are an epoch" in problems({"urls": ["s3://bucket/a.tar"]})["data.foreign.samples"]
    assert "no such tar: b-*.tar" in problems({"urls": "b-*.tar", "samples": 8})["data.foreign.urls"]
    missing = problems({"urls": f"{tmp_path}/{{000..003}}.tar", "samples": 8})["data.foreign.urls"]
    assert missing.startswith("2 of 4 tars are not there, the first is") and "002.tar" in missing
    assert "no file nowhere.txt" in problems({"classes": "nowhere.txt"})["data.foreign.classes"]
    (tmp_path / "twice.txt").write_text("cats\ndogs\npets/cats\n")
    assert "twice.txt:3: 'pets/cats' is line 1 already" in problems({"classes": tmp_path / "twice.txt"}).popitem()[1]
    assert "deals samples by number" in problems({}, order={"name": "balanced", "per_class": 1})["data.order.name"]
    assert "keeps images by number" in problems({}, cache_gb=1)["data.cache_gb"]
    assert "pets, toys" in problems({}, augment_by_domain={"food": {}})["data.augment_by_domain.food"]


def test_the_run_is_another_one_when_a_tar_or_the_classes_change(tmp_path: Path) -> None:
    def digests() -> dict[str, str]:
        return data(tmp_path).digests(tmp_path)

    write_tars(tmp_path, [2, 2])
    before = digests()
    assert digests() == before and before.keys() == {"data.foreign", "data.foreign.classes"}
    write_tar(tmp_path / "002.tar", {})
    added = digests()
    assert added["data.foreign"] != before["data.foreign"]
    (tmp_path / "classes.txt").write_text("cats\ndogs\n")
    assert digests()["data.foreign.classes"] != added["data.foreign.classes"]


# --- the whole way


def test_a_run_trains_on_them(tmp_path: Path) -> None:
    write_tars(tmp_path, [9, 2])
    write_tar(tmp_path / "odd.tar", {"cow.jpg": picture(0), "cow.cls": b"cows"})
    values: dict[str, Any] = {
        "job": "train",
        "run": {"name": "foreign", "device": "cpu"},
        "runs_root": str(tmp_path / "runs"),
        "backbone": {"name": "timm", "model": "eva02_tiny_patch14_224", "image_px": 28, "weights": "none"},
        "neck": {"name": "linear", "out": 8},
        "head": {"name": "arcface", "margin": 0.2, "scale": 16},
        "data": {**data(tmp_path).model_dump(mode="json", include={"foreign", "batch"}), "max_bad_fraction": 1.0},
        "engine": {"name": "plain"},
        "length": {"steps": 3},
        "schedule": {"warmup": 0},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    config = job.check(values, where="x.yaml")
    assert isinstance(config, train.Config)
    folder = job.run_folder(config)
    folder.logs.mkdir(parents=True)
    assert train.run(config, folder, Alone()) == {"steps": 3.0}
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and (folder.export / "model.json").is_file()
    bad = [json.loads(line) for file in folder.bad.iterdir() for line in file.read_text().splitlines()]
    assert {(one["set"], Path(one["shard"]).name) for one in bad} == {("data.foreign", "odd.tar")}
