"""What the run writes down of its samples: readable whatever a key is, cut where a run goes on, counted over all starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval_train.data.batch import Bad, Batch
from retrieval_train.data.intake import Intake, TooManyBad, cut_back
from retrieval_train.data.ledger import Seen, replaced_rows, written
from retrieval_train.world import Alone, World
from tests.processes import run_ranks

ODD = ("glyphs/a\u2028b", "glyphs/a\nb\tc", "glyphs/undecodable-\udc80", "glyphs/lone-\ud800", "glyphs/50%", "ä/日 本")


def batch(step: int, keys: Sequence[str], *, bad: int = 0, unlabelled: Batch | None = None) -> Batch:
    reasons = tuple(Bad(step, row, "shapes", f"{row}.tar", 3, "line\u2028 or\nline, \udc80") for row in range(bad))
    rows = tuple(range(len(keys)))
    image_NCHW = torch.zeros(len(rows), 3, 2, 2, dtype=torch.uint8)
    counts, label_N = (len(rows),), torch.zeros(len(rows), dtype=torch.int64)
    return Batch(image_NCHW, label_N, counts, 1.0, row_N=rows, key_N=tuple(keys), bad=reasons, unlabelled=unlabelled)


def intake(folder: Path, world: World | None = None, *, most: float = 1.0) -> Intake:
    world = world or Alone()
    files = {"bad_file": folder / f"bad/{world.rank}.jsonl", "ledger_file": folder / f"ledger/{world.rank}.tsv"}
    return Intake(world, max_bad_fraction=most, **files)


def through(watch: Intake, steps: Sequence[Batch], *, first: int = 0) -> None:
    for _ in watch.watched([[one] for one in steps], first=first):
        continue


# --- files


def test_any_key_and_any_reason_is_one_line_and_a_run_goes_on_behind_it(tmp_path: Path) -> None:
    through(intake(tmp_path), [batch(step, ODD, bad=2) for step in range(3)])
    cut_back(tmp_path / "ledger", steps=2)
    cut_back(tmp_path / "bad", steps=2)
    lines = (tmp_path / "ledger/0.tsv").read_text().splitlines()
    assert lines == [f"{step}\t{row}\t{written(key)}" for step in range(2) for row, key in enumerate(ODD)]
    bad = [json.loads(line) for line in (tmp_path / "bad/0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in bad] == [0, 0, 1, 1] and bad[0]["reason"] == "line\u2028 or\nline, \udc80"


def test_a_key_that_can_be_printed_is_written_as_it_is() -> None:
    assert [written(key) for key in ODD[-2:]] == list(ODD[-2:])
    assert written("a/b%2Fc\u2028d") == "a/b%2Fc%E2%80%A8d"
    assert all(written(key).isprintable() for key in ODD) and len({written(key) for key in ODD}) == len(ODD)


def test_rows_without_labels_are_no_replaced_rows(tmp_path: Path) -> None:
    both = [batch(step, "abcd", bad=step, unlabelled=batch(step, "xy", bad=2)) for step in range(3)]
    through(intake(tmp_path), both)
    assert replaced_rows(tmp_path / "bad") == {Seen(1, 0): 1, Seen(2, 0): 1, Seen(2, 1): 1}
    streams = [json.loads(line)["stream"] for line in (tmp_path / "bad/0.jsonl").read_text().splitlines()]
    assert streams == [1, 1, 0, 1, 1, 0, 0, 1, 1]
    assert len((tmp_path / "ledger/0.tsv").read_text().splitlines()) == 12, "the labelled rows"


def test_half_a_line_is_no_replaced_row(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text('{"step": 4, "row": 1}\n{"step": 4, "row": 2')
    assert replaced_rows(tmp_path) == {Seen(4, 1): 1}


@pytest.mark.parametrize("torn", ["", "9", "9\t0\thalf of a ke"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_file_is_cut_where_reading_all_of_it_would_cut_it(tmp_path: Path, torn: str, rows: int) -> None:
    lines = [f"{step}\t{row}\t{'k' * (step * 7 % 11)}\n" for step in range(2, 9) for row in range(rows)]
    for steps in range(11):
        (tmp_path / "0.tsv").write_text("".join(lines) + torn)
        (tmp_path / "1.tsv").write_text("")
        cut_back(tmp_path, steps=steps)
        assert (tmp_path / "0.tsv").read_text() == "".join(line for line in lines if int(line[0]) < steps)
        assert (tmp_path / "1.tsv").read_text() == ""


def test_cutting_a_long_file_reads_its_end_only(tmp_path: Path) -> None:
    block = "".join(f"{{step:>9}}\t{row}\tglyphs/a-{row:08d}\n" for row in range(1000))
    (tmp_path / "0.tsv").write_text("".join(block.format(step=step) for step in range(300)))
    size = (tmp_path / "0.tsv").stat().st_size
    before = bytes_read()
    cut_back(tmp_path, steps=298)
    assert (tmp_path / "0.tsv").stat().st_size == size // 300 * 298
    assert bytes_read() - before < size / 20


def bytes_read() -> int:
    """By this process so far."""
    return int(Path("/proc/self/io").read_text().splitlines()[0].removeprefix("rchar: "))


# --- counts


def test_counts_go_on_from_the_checkpoint_without_the_step_that_is_done_again(tmp_path: Path) -> None:
    kept: dict[str, Any] = {}
    for start in range(4):  # each does three steps, and has drawn a fourth when it is stopped
        watch = intake(tmp_path, most=0.1)
        watch.take_state(kept)
        first = 3 * start
        through(watch, [batch(first + at, "ab" * 50, bad=9 if at < 3 else 50) for at in range(4)], first=first)
        kept = watch.state(first + 3)
    assert kept == {"rows": 1200, "bad": 108, "bad_of": {f"shapes/{row}.tar": 12 for row in range(9)}}
    last = intake(tmp_path, most=0.08)
    last.take_state(kept)
    with pytest.raises(TooManyBad, match=r"108 of 1200 samples could .* since the run began.*: shapes/0\.tar \(12\)"):
        last.agree()


def test_what_is_done_again_after_going_back_is_counted_once(tmp_path: Path) -> None:
    watch, steps = intake(tmp_path), [batch(step, "ab" * 50, bad=5) for step in range(9)]
    through(watch, steps[:4])
    kept = watch.state(4)
    through(watch, steps[4:], first=4)
    watch.take_state(kept)
    assert watch.state(4) == kept and watch.agree()["bad_samples"] == 20
    through(watch, steps[4:6], first=4)
    assert watch.state(5) == {"rows": 500, "bad": 25, "bad_of": {f"shapes/{row}.tar": 5 for row in range(5)}}


def test_a_full_disk_loses_no_run_and_no_line_when_there_is_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad_file, steps = tmp_path / "bad/0.jsonl", [batch(step, "abc", bad=2) for step in range(3)]
    bad_file.parent.mkdir()
    bad_file.symlink_to("/dev/full")
    watch = intake(tmp_path)
    for step, _ in enumerate(watch.watched([[one] for one in steps], first=0)):
        if step == 1:
            bad_file.unlink()
    assert [json.loads(line)["step"] for line in bad_file.read_text().splitlines()] == [0, 0, 1, 1, 2, 2]
    bad_file.unlink()
    bad_file.symlink_to("/dev/full")
    through(watch, steps, first=3)
    assert "no room for its last lines" in caplog.text and watch.state(6)["bad"] == 12


def counted(world: World, folder: Path) -> dict[str, Any]:
    watch = intake(folder, world)
    watch.take_state({"rows": 1000, "bad": 5, "bad_of": {"shapes/0.tar": 5}})
    through(watch, [batch(7, "abc", bad=world.rank)], first=7)
    assert watch.agree()["bad_samples"] == 6
    return watch.state(8)


def test_counts_are_of_all_ranks(tmp_path: Path) -> None:
    one, two = run_ranks(counted, 2, tmp_path)
    assert one == two == {"rows": 1006, "bad": 6, "bad_of": {"shapes/0.tar": 6}}
