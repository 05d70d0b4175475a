"""What came in: samples that could not be read, who waited for data, and on demand the key of every row (the ledger).

    bad/<rank>.jsonl      one line a sample that was replaced: step, row, set, shard, place, reason
    ledger/<rank>.tsv     step, row, key of every row of this rank, in the order in which they were trained on

Both are cut back to the checkpoint when a run goes on, so that no step is in them twice.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from retrieval_train.rundir import write_text

if TYPE_CHECKING:
    from retrieval_train.data.batch import Bad, Batch
    from retrieval_train.world import World

log = logging.getLogger(__name__)

LEAST_ROWS = 1000  # from which on a share of bad samples means something
MOST_TOLD = 5  # shards that an error names


class TooManyBad(ValueError):
    """More samples than `data.max_bad_fraction` allows could not be read."""


class Intake:
    """Watches the draws of one rank. `agree` is collective; everything else is this rank's own."""

    def __init__(self, world: World, *, bad_file: Path, ledger_file: Path | None, max_bad_fraction: float) -> None:
        self._world, self._max_bad_fraction = world, max_bad_fraction
        self._bad_file, self._ledger_file = bad_file, ledger_file
        self._rows = self._bad = self._bad_everywhere = 0
        self._bad_of: Counter[str] = Counter()
        self._waited: list[float] = []
        self._read_s = self._decode_s = 0.0

    def watched(self, draws: Iterable[list[Batch]], *, first: int) -> Generator[list[Batch], None, None]:
        """`draws`, which begin with step `first`, as they are."""
        ledger = _opened(self._ledger_file) if self._ledger_file else None
        try:
            for step, micro_batches in enumerate(draws, start=first):
                self._waited.append(sum(batch.wait_s for batch in micro_batches))
                for batch in micro_batches:
                    for part in filter(None, (batch, batch.unlabelled)):
                        self._count(part)
                    if ledger:
                        pairs = zip(batch.row_N, batch.key_N, strict=True)
                        ledger.writelines(f"{step}\t{row}\t{key}\n" for row, key in pairs)
                        ledger.flush()
                yield micro_batches
        finally:
            if ledger:
                ledger.close()

    def agree(self) -> dict[str, float]:
        """Figures over all ranks and the steps since the last call. Raises TooManyBad on all ranks together."""
        import torch

        waited = self._waited or [0.0]
        own = [
            sum(waited) / len(waited), self._read_s / len(waited), self._decode_s / len(waited), self._bad, self._rows
        ]  # fmt: skip
        self._waited, self._read_s, self._decode_s = [], 0.0, 0.0
        table_W5 = self._world.gather(
            torch.tensor([own], dtype=torch.float64, device=self._world.device), [1] * self._world.size
        )
        wait_W, read_W, decode_W, bad_W, rows_W = table_W5.T.tolist()
        self._check(int(sum(bad_W)), int(sum(rows_W)))
        return {
            "data_wait_mean_s": round(sum(wait_W) / len(wait_W), 4),
            "data_wait_max_s": round(max(wait_W), 4),
            "data_wait_max_rank": wait_W.index(max(wait_W)),
            "data_read_core_s": round(sum(read_W), 4),
            "data_decode_core_s": round(sum(decode_W), 4),
            "bad_samples": int(sum(bad_W)),
        }

    def _count(self, batch: Batch) -> None:
        self._rows += len(batch.row_N)
        self._read_s += batch.read_s
        self._decode_s += batch.decode_s
        if batch.bad:
            self._bad += len(batch.bad)
            self._bad_of.update(f"{bad.set}/{bad.shard}" for bad in batch.bad)
            with _opened(self._bad_file) as file:
                file.writelines(_line(bad) for bad in batch.bad)

    def _check(self, bad: int, rows: int) -> None:
        """Equal on all ranks, so that all stop or none."""
        if bad > self._bad_everywhere and self._world.rank == 0:
            log.warning(
                "%d of %d samples could not be read and were replaced; see %s", bad, rows, self._bad_file.parent
            )
        self._bad_everywhere = bad
        if bad <= self._max_bad_fraction * max(rows, LEAST_ROWS):
            return
        everywhere: Counter[str] = Counter()
        for counter in self._world.every(self._bad_of):
            everywhere.update(counter)
        worst = ", ".join(f"{shard} ({count})" for shard, count in everywhere.most_common(MOST_TOLD))
        raise TooManyBad(
            f"{bad} of the last {rows} samples could not be read, more than data.max_bad_fraction {self._max_bad_fraction} "
            f"allows; the worst shards: {worst}. {self._bad_file.parent} has them all; run `shards check` on the set, or "
            "allow more"
        )


def cut_back(folder: Path, *, steps: int) -> None:
    """Drops the lines of steps that were not among the first `steps`: they are done again."""
    for file in sorted(folder.glob("*.jsonl")) + sorted(folder.glob("*.tsv")):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(file, "".join(line for line in lines if line.endswith("\n") and _step_of(line) < steps))


def _step_of(line: str) -> int:
    return int(json.loads(line)["step"]) if line.startswith("{") else int(line.partition("\t")[0])


def _line(bad: Bad) -> str:
    return json.dumps(dataclasses.asdict(bad), ensure_ascii=False) + "\n"


def _opened(file: Path) -> IO[str]:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("a", encoding="utf-8")
