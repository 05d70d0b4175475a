"""Go on from the newest checkpoint that is whole; damaged ones are set aside, and nothing begins again unasked.

checkpoints/damaged-step-XXXXXXXX    one that was set aside, for its user to look at; `.2` and so on where that is taken
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_train.engine.mirror import Mirror, catch_up
from retrieval_train.engine.state_file import Damaged
from retrieval_train.rundir import RunDir

if TYPE_CHECKING:
    from retrieval_train.engine.engine import Engine
    from retrieval_train.world import World

log = logging.getLogger(__name__)


def load_newest(engine: Engine, run: RunDir, world: World, mirror: Mirror | None) -> tuple[Path, dict[str, Any]] | None:
    """Which checkpoint was loaded, and what its job had added; None for a run that has none. Collective.

    Raises Damaged on all ranks when there were some and none is whole, here or at the mirror.
    """
    while (newest := world.from_first(run.latest_checkpoint())) is not None:
        try:
            return newest, engine.load(newest)
        except Damaged as error:  # on all ranks: they share the summing
            log.warning("%s: going on from the checkpoint before it", error)
            problem = _set_aside(newest, run, mirror) if world.rank == 0 else ""
            if problem := world.from_first(problem):
                raise Damaged(f"{error}; {newest} cannot be renamed: {problem}. Move it away") from error
    # also those of earlier starts: a scheduler that starts a run again has read no message
    aside = sorted(path.name for path in run.checkpoints.glob("damaged-*")) if world.rank == 0 else []
    if aside := world.from_first(aside):
        raise Damaged(
            f"no checkpoint in {run.checkpoints} is whole: {', '.join(aside)} had damaged files and were set aside. Put a "
            "whole one back as step-XXXXXXXX, from a copy of yours, or submit with --again to start anew"
        )
    return None


def _set_aside(folder: Path, run: RunDir, mirror: Mirror | None) -> str:
    """Rename it to a free name, and ask the mirror for one in its place; why it cannot be renamed."""
    names = itertools.chain([f"damaged-{folder.name}"], (f"damaged-{folder.name}.{n}" for n in itertools.count(2)))
    try:
        folder.rename(next(path for path in map(folder.with_name, names) if not path.exists()))
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    if mirror is not None:
        try:
            catch_up(mirror, run)
        except (OSError, ValueError) as error:  # one may be left here; if not, the run ends with all that was set aside
            log.warning("the mirror has none in its place: %s", error)
    return ""
