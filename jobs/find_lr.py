"""Find the learning rate of a train config: raise it every step, on the real model, data and ranks, and look at the loss.

All learning rates rise together and keep their ratios; what is told and plotted is `optimizer.lr`. The weights are
thrown away.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs import train
from jobs.job import Progress, Run
from jobs.training.lr_curve import Curve, Ramp, Suggestion
from jobs.training.origin import Origin
from retrieval_train.config import Section
from retrieval_train.rundir import RunDir, read_json, write_json, write_text
from retrieval_train.tracking import cut_metrics, open_tracker

if TYPE_CHECKING:
    from retrieval_train.data.loader import Loader
    from retrieval_train.engine.engine import Engine, Report
    from retrieval_train.engine.stop import Ending
    from retrieval_train.tracking import Tracker
    from retrieval_train.world import World

log = logging.getLogger(__name__)

_SUFFIX = "-find_lr"
_NAMES = {"steepest": "where the loss falls fastest", "before_rise": "a tenth of where the loss is lowest"}


class FindConfig(Section):
    """Which learning rates are tried: values of `optimizer.lr`."""

    low: float = Field(default=1e-6, gt=0)
    """That of the first step ..."""
    high: float = Field(default=1.0, gt=0)
    """... and of the last."""
    steps: int = Field(default=100, ge=10)
    """From one to the other; each step's learning rate is the same factor above the one before."""
    smooth: float = Field(default=0.9, ge=0, lt=1)
    """Weight of the mean so far in the running mean of the loss, by which the curve is read: it reaches back over about
    1 / (1 - smooth) steps, which should be a tenth of `steps` or less."""
    stop_at: float = Field(default=4.0, gt=1)
    """It ends early when the smoothed loss is so many times the best one."""

    @model_validator(mode="after")
    def _rises(self) -> FindConfig:
        if self.low >= self.high:
            raise ValueError(
                f"low {self.low:g} is not below high {self.high:g}; the learning rate rises from low to high"
            )
        return self


class Config(train.Config):
    """Find the learning rate of a train config.

    Of its keys `schedule`, `checkpoint`, `evaluate` and `faults` have no effect here.
    """

    job: Literal["find_lr"]  # type: ignore[assignment]
    find: FindConfig = FindConfig()
    """Which learning rates are tried."""

    @field_validator("origin")
    @classmethod
    def _begins_anew(cls, origin: Origin | None) -> Origin | None:
        if origin is not None:
            raise ValueError("find_lr begins with fresh weights or those of init; say origin=null")
        return origin

    @field_validator("run")
    @classmethod
    def _named_apart(cls, run: Run) -> Run:
        """`runs/<name>` stays the link to the training run of that name."""
        name = run.name.removesuffix(_SUFFIX)[: 80 - len(_SUFFIX)]
        return run.model_copy(update={"name": name + _SUFFIX})


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    """The suggested learning rates, where there are any. A start after a kill begins anew."""
    from retrieval_train.data.intake import cut_back

    find = config.find
    parts = train.build(config, run, world)
    ramp = Ramp(find.low, find.high, find.steps, peak=config.optimizer.lr)
    engine = config.engine.build(parts.learner, config.optimizer, ramp, seed=config.seed)
    if world.rank == 0:
        cut_metrics(run.metrics, last_step=0)
        cut_back(run.bad, steps=0)
    world.barrier()
    values = config.model_dump(mode="json")
    tracker = open_tracker(config.tracking, run, is_first=world.rank == 0, values=values)
    trace, failed = Trace(Curve(smooth=find.smooth), ramp, find.stop_at, tracker), True
    try:
        ending = _step_through(config, run, world, parts.loader, engine, trace)
        failed = False
    finally:
        tracker.close(failed=failed)
        engine.close()
    found = trace.curve.suggest(diverged=ending in ("early stop", "not finite"))
    if world.rank == 0:
        write_report(config, run, trace.curve, found, ending)
    world.barrier()
    return {"steps": float(len(trace.curve.lr_P)), **{f"lr_{name}": lr for name, lr in _rates(found).items()}}


def _step_through(config: Config, run: RunDir, world: World, loader: Loader, engine: Engine, trace: Trace) -> Ending:
    """As a training run does, but that nothing is saved."""
    from retrieval_train.data.deaths import deaths_told
    from retrieval_train.data.intake import Intake
    from retrieval_train.engine.agreement import Agreement
    from retrieval_train.engine.loop import Clock, Watcher
    from retrieval_train.engine.loop import train as step_through
    from retrieval_train.engine.stop import Stop
    from retrieval_train.engine.watchers import Follow, Show

    steps, bad_file = config.find.steps, run.bad / f"{world.rank:05d}.jsonl"
    intake = Intake(world, bad_file=bad_file, ledger_file=None, max_bad_fraction=config.data.max_bad_fraction)
    agreement, progress = Agreement(world), Progress(run, world, "find lr", total=steps, unit="steps")
    stop = Stop(agreement, max_minutes=config.run.max_minutes)
    watchers: list[Watcher] = [Follow(loader.order, world), trace, Show(progress.show, num_steps=steps)]
    # images have the sizes that they have in the first steps of the training run
    run_steps = max(steps, config.length.num_steps(loader.epoch_steps, config.data.batch))
    with (
        contextlib.closing(loader.draws(0, steps, num_steps=run_steps)) as draws,
        stop.listening(),
        deaths_told(world.rank),
    ):
        watched = intake.watched(draws, first=0)
        ending = step_through(engine, watched, watchers, agreement, stop, beat=lambda phase: None, clock=Clock())
        intake.agree()
    return ending


class Trace:
    """Draws the curve, and ends the run when it has seen enough: the loss is the same on all ranks, and so is the end."""

    def __init__(self, curve: Curve, ramp: Ramp, stop_at: float, tracker: Tracker) -> None:
        self.curve = curve
        self._ramp, self._stop_at, self._tracker = ramp, stop_at, tracker

    def after(self, report: Report) -> Ending | None:
        if not (math.isfinite(report.loss) and report.skipped in ("", "overflow")):  # fp16 mends an overflow itself
            return "not finite"
        curve, lr = self.curve, self._ramp.lr(report.step - 1)
        curve.add(lr, report.loss)
        smooth = {"lr_smooth": curve.smooth_lr_P[-1], "loss_smooth": curve.smooth_loss_P[-1]}
        figures = {"lr": lr, "loss": report.loss, "grad_norm": report.grad_norm, **smooth}
        self._tracker.write(report.step, figures)
        return "early stop" if curve.is_over(self._stop_at) else None


# --- the report


def write_report(config: Config, run: RunDir, curve: Curve, found: Suggestion, ending: Ending) -> None:
    told = {name: {"lr": lr, **_usage(config, run, lr)} for name, lr in _rates(found).items()}
    steps, ended = len(curve.lr_P), _ended(config.find, curve, ending)
    tried = {"low": config.find.low, "high": curve.lr_P[-1] if curve.lr_P else None, "steps": steps}
    about = {"schema": 1, "command": _command(run), "ending": ending, "tried": tried}
    write_json(run.report, {**about, "suggestion": told, "why": found.why})
    lines = [f"{steps} of {config.find.steps} steps: {ended}."]
    for name, use in told.items():
        lines += [f"{name}: optimizer.lr {use['lr']:.2g}, {_NAMES[name]}", f"  {use['command'] or use['overrides']}"]
    lines += [f"{'no suggestion' if not told else 'note'}: {found.why}"] if found.why else []
    write_text(run.text, "\n".join(lines) + "\n")
    log.info("%s", "\n".join(lines))
    _write_page(run, curve, _rates(found), lines)


def _ended(find: FindConfig, curve: Curve, ending: Ending) -> str:
    at = f" at optimizer.lr {curve.lr_P[-1]:.2g}" if curve.lr_P else ""
    return {
        "finished": f"up to optimizer.lr {find.high:g}",
        "early stop": f"the smoothed loss went beyond {find.stop_at:g} times the best{at}",
        "not finite": f"the loss or a gradient was no finite number in the step after the last{at}",
        "signal": f"a signal (Ctrl-C or the scheduler) ended it{at}; --again runs it whole",
        "time": f"run.max_minutes ended it{at}; --again runs it whole",
    }[ending]


def _rates(found: Suggestion) -> dict[str, float]:
    named = {"steepest": found.steepest, "before_rise": found.before_rise}
    return {name: lr for name, lr in named.items() if lr is not None}


def _usage(config: Config, run: RunDir, lr: float) -> dict[str, str | None]:
    """The overrides that make it the peak, the ratios kept; and the train command, where ours was that with `job=find_lr`."""
    given = {key: getattr(config.optimizer, key) for key in ("lr", "backbone_lr", "head_lr")}
    scaled = {key: peak * lr / config.optimizer.lr for key, peak in given.items() if peak is not None}
    overrides = [f"optimizer.{key}={float(f'{value:.2g}')!r}" for key, value in scaled.items()]
    words = shlex.split(_command(run))
    replaced = ("job=", "find.", "--again", *(f"{item.partition('=')[0]}=" for item in overrides))
    kept = [word for word in words if not word.startswith(replaced)]
    command = shlex.join([*kept, *overrides]) if "job=find_lr" in words else None
    return {"overrides": " ".join(overrides), "command": command}


def _command(run: RunDir) -> str:
    plan: dict[str, Any] = read_json(run.plan) if run.plan.is_file() else {}
    return str(plan.get("command", f"python -m jobs {run.path}"))


def _write_page(run: RunDir, curve: Curve, marks: dict[str, float], lines: list[str]) -> None:
    from retrieval_train import page

    series = {"each step": (curve.lr_P, curve.loss_P), "smoothed": (curve.smooth_lr_P, curve.smooth_loss_P)}
    drawn = page.curve(series, ylabel="loss", xlabel="optimizer.lr", is_log=True, marks=marks)
    sections = [page.Section("Curve", drawn), page.Section("Suggestion", page.command("\n".join(lines[1:])))]
    write_text(run.page, page.page(f"Learning rates of {run.path.name}", lead=lines[0], sections=sections))
