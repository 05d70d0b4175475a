"""What to change so that a run fits the memory: settings in the order in which they do least, each computed anew."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jobs.train import Config
from jobs.training import objective

if TYPE_CHECKING:
    from jobs.training.planned import Planner

Setting = tuple[str, Any]
"""(dotted key, value)."""
NAMED = 3
"""So many are told."""


def total_of_stage(config: Config, planner: Planner) -> dict[int, int] | None:
    """Bytes of a rank with each ZeRO stage that the other settings allow; None for another engine than zero."""
    if config.engine.name != "zero":
        return None
    found = {}
    for stage in range(4):
        other = changed(config, ("engine.stage", stage))
        if not other.engine.problems():
            found[stage] = planner.need(other).total
    return found


def settings_that_fit(config: Config, planner: Planner, *, room: int) -> tuple[str, ...]:
    """The nearest value of each setting that fits alone, or the fewest together; as `key=value` for the command line."""
    found = []
    for _, kind in groupby(settings(config, planner), key=lambda setting: setting[0]):
        fitting = next((one for one in kind if _fits([one], config, planner, room)), None)
        found += [_told([fitting])] if fitting else []
        if len(found) == NAMED:
            break
    return tuple(found) or _together(config, planner, room)


def _together(config: Config, planner: Planner, room: int) -> tuple[str, ...]:
    chosen: list[Setting] = []
    for _, kind in groupby(settings(config, planner), key=lambda setting: setting[0]):
        values = [one for one in kind if _is_allowed([*chosen, one], config)]
        if not values:
            continue
        fitting = next((one for one in values if _fits([*chosen, one], config, planner, room)), None)
        if fitting:
            return (_told([*chosen, fitting]),)
        chosen.append(values[-1])
    return ()


def settings(config: Config, planner: Planner) -> Iterator[Setting]:
    """First those that leave the training as it is, then those that change its numbers a little, then others."""
    engine, rows = config.engine, config.data.batch // planner.num_ranks
    parts = [times * engine.accumulate for times in (2, 4, 8, 16, 32, 64)]
    yield from (("engine.accumulate", count) for count in parts if count <= rows)
    if not engine.checkpoint_activations:
        yield "engine.checkpoint_activations", True
    stage = getattr(engine, "stage", None)
    if stage is not None and planner.num_ranks > 1:
        yield from (("engine.stage", higher) for higher in (1, 2, 3) if higher > stage)
    if engine.precision == "fp32":
        yield "engine.precision", planner.half
    if stage and engine.offload.optimizer is None:  # type: ignore[attr-defined]
        yield "engine.offload.optimizer", "cpu"
    if config.head is not None and config.head.logits_mb > 0:
        yield from (("head.logits_mb", size) for size in (512, 128, 0) if size < config.head.logits_mb)
    if config.head is not None:
        yield from (("head.sample_rate", rate) for rate in (0.5, 0.2, 0.1) if rate < config.head.sample_rate)
    parts = [config.data.batch // part for part in (2, 4, 8, 16)]
    yield from (("data.batch", batch) for batch in parts if batch >= planner.num_ranks * engine.accumulate)


def changed(config: Config, setting: Setting) -> Config:
    """The config with another value of one key; the rest is checked by `_is_allowed`."""
    key, value = setting
    other: Config = _put(config, key.split("."), value)
    return other


def _put(section: Any, keys: list[str], value: Any) -> Any:
    first, *rest = keys
    return section.model_copy(update={first: _put(getattr(section, first), rest, value) if rest else value})


def _with(settings: list[Setting], config: Config) -> Config:
    for setting in settings:
        config = changed(config, setting)
    return config


def _is_allowed(settings: list[Setting], config: Config) -> bool:
    """Whether the config's own checks have nothing against it."""
    other = _with(settings, config)
    return not (other.engine.problems() or objective.problems(other) or _optimizer_problem(other))


def _optimizer_problem(config: Config) -> str | None:
    return config.optimizer.problem(config.engine.name, getattr(config.engine, "stage", None))


def _fits(settings: list[Setting], config: Config, planner: Planner, room: int) -> bool:
    if not _is_allowed(settings, config):
        return False
    try:
        return planner.need(_with(settings, config)).total <= room
    except ValueError:  # a backbone that cannot
        return False


def _told(settings: list[Setting]) -> str:
    return " ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings)
