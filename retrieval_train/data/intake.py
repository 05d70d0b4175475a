"""What came in: samples that could not be read, who waited for data, and on demand the key of every row (the ledger).

    bad/<rank>.jsonl      one line a sample that was replaced: step, row, set, shard, place, reason, stream
    ledger/<rank>.tsv     step, row, key of every labelled row of this rank, in the order in which they were trained on

A key is as `ledger.written` makes it. Both files are cut back to the checkpoint when a run goes on, so that no step
is in them twice.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from retrieval_train.data.ledger import written
from retrieval_train.lines import Lines

if TYPE_CHECKING:
    from retrieval_train.data.batch import Bad, Batch
    from retrieval_train.world import World

log = logging.getLogger(__name__)

LEAST_ROWS = 1000  # from which on a share of bad samples means something
MOST_TOLD = 5  # shards that an error names
MOST_KEPT = 100  # worst shards that a checkpoint names


class TooManyBad(ValueError):
    """More samples than `data.max_bad_fraction` allows could not be read."""


class Intake:
    """Watches the draws of one rank. `agree` and `state` are collective; everything else is this rank's own.

    Samples are counted since the run began: `state` goes into the checkpoint, `take_state` goes on from it.
    """

    def __init__(self, world: World, *, bad_file: Path, ledger_file: Path | None, max_bad_fraction: float) -> None:
        self._world, self._max_bad_fraction = world, max_bad_fraction
        self._bad_file, self._ledger_file = bad_file, ledger_file
        self._rows = self._rows_before = self._bad_before = self._bad_everywhere = 0
        self._bad_of, self._bad_of_before = Counter[str](), Counter[str]()
        self._next_step = 0
        self._one_before: tuple[int, Counter[str]] = (0, Counter())
        """What was counted before the step that was drawn last."""
        self._waited: list[float] = []
        self._read_s = self._decode_s = 0.0

    def watched(self, draws: Iterable[list[Batch]], *, first: int) -> Generator[list[Batch], None, None]:
        """`draws`, which begin with step `first`, as they are."""
        ledger = Lines(self._ledger_file) if self._ledger_file else None
        bad = Lines(self._bad_file)
        try:
            for step, micro_batches in enumerate(draws, start=first):
                self._next_step, self._one_before = step + 1, (self._rows, self._bad_of.copy())
                self._waited.append(sum(batch.wait_s for batch in micro_batches))
                for batch in micro_batches:
                    self._count(batch, bad, stream=0)
                    if batch.unlabelled:
                        self._count(batch.unlabelled, bad, stream=1)
                    if ledger:
                        pairs = zip(batch.row_N, batch.key_N, strict=True)
                        ledger.write("".join(f"{step}\t{row}\t{written(key)}\n" for row, key in pairs))
                yield micro_batches
        finally:
            _close(bad, self._bad_file)
            if ledger:
                ledger.close()

    def agree(self) -> dict[str, float]:
        """Figures over all ranks and the steps since the last call. Raises TooManyBad on all ranks together."""
        import torch

        waited = self._waited or [0.0]
        own = [
            sum(waited) / len(waited),
            self._read_s / len(waited),
            self._decode_s / len(waited),
            self._bad_of.total(),
            self._rows,
        ]
        self._waited, self._read_s, self._decode_s = [], 0.0, 0.0
        table_W5 = self._world.gather(
            torch.tensor([own], dtype=torch.float64, device=self._world.device), [1] * self._world.size
        )
        wait_W, read_W, decode_W, bad_W, rows_W = table_W5.T.tolist()
        bad, rows = self._bad_before + int(sum(bad_W)), self._rows_before + int(sum(rows_W))
        self._check(bad, rows)
        return {
            "data_wait_mean_s": round(sum(wait_W) / len(wait_W), 4),
            "data_wait_max_s": round(max(wait_W), 4),
            "data_wait_max_rank": wait_W.index(max(wait_W)),
            "data_read_core_s": round(sum(read_W), 4),
            "data_decode_core_s": round(sum(decode_W), 4),
            "bad_samples": bad,
        }

    def state(self, steps: int) -> dict[str, Any]:
        """What was counted on all ranks over the first `steps` steps; one more may be drawn already. Collective."""
        own = (self._rows, self._bad_of) if self._next_step <= steps else self._one_before
        rows, bad, bad_of = self._rows_before, self._bad_before, self._bad_of_before.copy()
        for rows_of_rank, bad_of_rank in self._world.every(own):
            rows, bad = rows + rows_of_rank, bad + bad_of_rank.total()
            bad_of.update(bad_of_rank)
        return {"rows": rows, "bad": bad, "bad_of": dict(bad_of.most_common(MOST_KEPT))}

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what was counted up to a checkpoint; {}: from nothing. What this start counted itself is in it, or
        is counted again after a roll-back."""
        self._rows, self._bad_of, self._next_step, self._one_before = 0, Counter(), 0, (0, Counter())
        self._rows_before, self._bad_before = state.get("rows", 0), state.get("bad", 0)
        self._bad_of_before = Counter(state.get("bad_of", {}))
        self._bad_everywhere = self._bad_before

    def _count(self, batch: Batch, lines: Lines, *, stream: int) -> None:
        self._rows += len(batch.row_N)
        self._read_s += batch.read_s
        self._decode_s += batch.decode_s
        if batch.bad:
            self._bad_of.update(f"{bad.set}/{bad.shard}" for bad in batch.bad)
            lines.write("".join(_line(dataclasses.replace(bad, stream=stream)) for bad in batch.bad))

    def _check(self, bad: int, rows: int) -> None:
        """Equal on all ranks, so that all stop or none."""
        if bad > self._bad_everywhere and self._world.rank == 0:
            log.warning(
                "%d of %d samples could not be read since the run began and were replaced; see %s",
                bad,
                rows,
                self._bad_file.parent,
            )
        self._bad_everywhere = bad
        if bad <= self._max_bad_fraction * max(rows, LEAST_ROWS):
            return
        everywhere = self._bad_of_before.copy()
        for counter in self._world.every(self._bad_of):
            everywhere.update(counter)
        worst = ", ".join(f"{shard} ({count})" for shard, count in everywhere.most_common(MOST_TOLD))
        raise TooManyBad(
            f"{bad} of {rows} samples could not be read since the run began, more than data.max_bad_fraction "
            f"{self._max_bad_fraction} allows; the worst shards: {worst}. {self._bad_file.parent} has them all; run "
            "`shards check` on the set, or allow more"
        )


def cut_back(folder: Path, *, steps: int) -> None:
    """Drops the lines of steps that were not among the first `steps`: they are done again."""
    for path in sorted(folder.glob("*.jsonl")) + sorted(folder.glob("*.tsv")):
        with path.open("r+b") as file:
            file.truncate(_end_of(file, steps))
            os.fsync(file.fileno())


def _end_of(file: IO[bytes], steps: int) -> int:
    """Where the lines of the first `steps` steps end. Steps ascend, so few lines need be read, however long the file."""
    low, high = 0, file.seek(0, os.SEEK_END)
    while low < high:  # lines that begin before `low` stay, those that begin at `high` or behind it go
        middle = (low + high) // 2
        file.seek(max(middle - 1, low))
        if middle > low:
            file.readline()
        begin = file.tell()
        line = file.readline() if begin < high else b""
        if line.endswith(b"\n") and _step_of(line) < steps:
            low = begin + len(line)
        else:
            high = middle
    return low


def _step_of(line: bytes) -> int:
    return int(json.loads(line)["step"]) if line.startswith(b"{") else int(line.partition(b"\t")[0])


def _line(bad: Bad) -> str:
    return json.dumps(dataclasses.asdict(bad)) + "\n"


def _close(lines: Lines, file: Path) -> None:
    try:
        lines.close()
    except OSError as error:  # the samples are counted: no reason to lose a run
        log.warning("%s: there is still no room for its last lines, they are lost: %s", file, error)
