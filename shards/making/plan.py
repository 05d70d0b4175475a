"""The place of every record, as numbers: what split.py decides, and layout.py, numbering.py and maker.py act on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.making.filters import Bools
from shards.record import SPLITS

OUT = -1
TRAIN, DEV, TEST = range(3)  # positions in SPLITS
QUERY, INDEX, DISTRACTOR = 1, 2, 3  # positions in ROLES; 0 is train
Numbers = NDArray[np.int8]
NO_FOLD = -1


@dataclass(frozen=True, slots=True)
class Plan:
    """The place of every row of the catalog."""

    split: Numbers
    """Position in SPLITS, OUT where the row is left out."""
    role: Numbers
    """Position in ROLES."""
    fold: Numbers
    """NO_FOLD where the row is in none."""
    num_folds: int = 0

    @property
    def kept(self) -> Bools:
        """Rows that become samples."""
        kept: Bools = self.split != OUT
        return kept

    @property
    def part(self) -> NDArray[np.int64]:
        """What is searched as one: a position in SPLITS, the folds behind them. Rows that are left out have any."""
        return np.where(self.fold == NO_FOLD, self.split, len(SPLITS) + self.fold.astype(np.int64))

    @property
    def num_parts(self) -> int:
        """Splits and folds."""
        return len(SPLITS) + self.num_folds
