"""Lengths of time as SLURM writes them."""

from __future__ import annotations

import re

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})", re.ASCII)


def minutes(text: str) -> float:
    """MIN, MIN:S, H:MM:SS, D-H, D-H:MM or D-H:MM:SS, as sbatch reads them. Raises ValueError."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no time; write minutes, H:MM:SS or D-HH:MM")
    parts = [int(part) for part in found["parts"].split(":")]
    if found["days"] is not None:
        hours, mins, seconds = (*parts, 0, 0)[:3]
        return 1440 * int(found["days"]) + 60 * hours + mins + seconds / 60
    hours, mins, seconds = {1: (0, *parts, 0), 2: (0, *parts), 3: tuple(parts)}[len(parts)]
    return 60 * hours + mins + seconds / 60
