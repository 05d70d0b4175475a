"""Which sample was in which row of which step, found out afterwards: the order is arithmetic, so nothing need be recorded.

Rows whose sample could not be read are known from the run's `bad/`: each line there stands for one attempt, and the order
says which sample took its place. All of this is about the labelled rows: unlabelled ones are in another order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import numpy as np

if TYPE_CHECKING:
    from retrieval_train.data.order.permutation import Int
    from retrieval_train.data.worker import Stream


def written(key: str) -> str:
    """A key on one line: what cannot be printed is percent-encoded, undecodable bytes of a file name too."""
    if key.isprintable():
        return key
    return "".join(sign if sign.isprintable() else quote(sign, errors="surrogatepass") for sign in key)


class Seen(NamedTuple):
    step: int
    row: int
    """Of the global batch."""


def replaced_rows(folder: Path) -> dict[Seen, int]:
    """How many samples were tried in vain for each labelled row, from the files of all ranks."""
    found: Counter[Seen] = Counter()
    for file in sorted(folder.glob("*.jsonl")):
        whole = file.read_text(encoding="utf-8").split("\n")[:-1]  # the rest may be the half of a line
        lines = map(json.loads, whole)
        found.update(Seen(line["step"], line["row"]) for line in lines if line.get("stream", 0) == 0)
    return dict(found)


def trained_rows(stream: Stream, step: int, replaced: dict[Seen, int]) -> tuple[Int, Int]:
    """(set, sample) that each row of a step was trained on, both (B,)."""
    set_B, sample_B = stream.order.batch_rows(step)
    for row in range(len(set_B)) if replaced else ():
        if attempts := replaced.get(Seen(step, row)):
            set_B[row], sample_B[row] = stream.order.substitute(step, row, attempts - 1)
    return set_B, sample_B


def keys_of_step(stream: Stream, step: int, replaced: dict[Seen, int]) -> list[str]:
    """The key of every row of a step."""
    pairs = zip(*trained_rows(stream, step, replaced), strict=True)
    return [stream.readers[number].read(int(sample)).key for number, sample in pairs]


def find_key(
    stream: Stream, key: str, steps: range, replaced: dict[Seen, int], shown: Callable[[int], None]
) -> Iterator[Seen]:
    """Where a sample was trained on; `shown` is told the steps done. Raises ValueError for a key that no set has."""
    wanted = {(number, sample) for number, reader in enumerate(stream.readers) for sample in reader.find(key)}
    if not wanted:
        names = ", ".join(reader.manifest.name for reader in stream.readers)
        raise ValueError(f"no training sample has the key '{key}'; looked in: {names}. A key is <domain>/<name>")
    for done, step in enumerate(steps, start=1):
        set_B, sample_B = trained_rows(stream, step, replaced)
        for number, sample in wanted:
            for row in np.flatnonzero((set_B == number) & (sample_B == sample)):
                yield Seen(step, int(row))
        shown(done)
