"""The live parts of one start of a training run on one rank: how they take up an earlier start's state, and end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jobs.failure import Failure, Kind
from jobs.job import Preempted, Progress, tell_failure
from jobs.training.figures import Speed
from jobs.training.halving import Halving, digest_of, forget
from jobs.training.judge import Judge, Model, Patience
from jobs.training.origin import check_same, described, still_true
from retrieval_train.data.deaths import deaths_told
from retrieval_train.data.intake import Intake, cut_back
from retrieval_train.data.loader import Loader
from retrieval_train.engine.agreement import Agreement
from retrieval_train.engine.divergence import check_equal
from retrieval_train.engine.engine import Engine, Report
from retrieval_train.engine.faults import Faults
from retrieval_train.engine.hang import Watchdog
from retrieval_train.engine.loop import Clock, Watcher, train
from retrieval_train.engine.mirror import Mirror, catch_up
from retrieval_train.engine.resume import load_newest
from retrieval_train.engine.saving import Checkpoints, NotSaved
from retrieval_train.engine.stop import Ending, Stop
from retrieval_train.engine.stragglers import Stragglers
from retrieval_train.engine.uploads import Uploads
from retrieval_train.engine.watchers import Follow, Show, Track
from retrieval_train.learner import Learner
from retrieval_train.rundir import RunDir, write_text
from retrieval_train.tracking import cut_metrics, open_tracker

if TYPE_CHECKING:
    from jobs.train import Config
    from retrieval_train.data.view import View
    from retrieval_train.world import World

log = logging.getLogger(__name__)

_UPLOAD_S, _PREEMPTED_UPLOAD_S = 600.0, 60.0  # the last upload's time; a scheduler that warned kills before long


class NotFinite(ValueError):
    """The loss or gradients are no numbers, again and again."""

    failure: ClassVar[Kind] = "not_finite"


class Session:
    """Methods are collective."""

    def __init__(
        self,
        config: Config,
        run: RunDir,
        world: World,
        *,
        learner: Learner,
        loader: Loader,
        engine: Engine,
        speed: Speed,
        view: View,
        num_steps: int,
    ) -> None:
        self._config, self._run, self._world, self._num_steps = config, run, world, num_steps
        self._learner, self._loader, self._speed, self.engine = learner, loader, speed, engine
        self._intake = Intake(
            world,
            bad_file=run.bad / f"{world.rank:05d}.jsonl",
            ledger_file=run.ledger / f"{world.rank:05d}.tsv" if config.data.ledger else None,
            max_bad_fraction=config.data.max_bad_fraction,
        )
        self._faults = Faults(config.faults, engine, learner, run, world)
        self._agreement, self._stragglers, self._clock = Agreement(world), Stragglers(world), Clock()
        self._stop = Stop(self._agreement, max_minutes=config.run.max_minutes)
        self._mirror = self._open_mirror()
        self._uploads = Uploads(self._mirror) if self._mirror and world.rank == 0 else None  # rank 0 sends
        self._described = described(config)
        self._beat: Callable[[str], None] = lambda phase: None
        self._judge = self._open_judge(view)
        self._resume()
        self.checkpoints = Checkpoints(
            engine,
            run,
            world,
            config.checkpoint,
            self._agreement,
            extra=self._extra,
            sealed=self._uploads.submit if self._uploads else lambda folder: None,
            held=self._uploads.holds if self._uploads else set,
        )
        self._tracker = open_tracker(
            config.tracking, run, is_first=world.rank == 0, values=config.model_dump(mode="json")
        )

    # --- training

    def train(self) -> None:
        """To the end, through roll-backs. Raises Preempted when it stopped before, and NotFinite."""
        failed = True
        try:
            with self._stop.listening(), deaths_told(self._world.rank), self._watchdog():
                if self._judge:
                    self._judge.start()
                if self._judge and self._judge.has_seen_enough:  # a kill came between the last save and the end
                    self._end("early stop")
                else:
                    while self._train() == "roll back":
                        self._go_back()
            failed = False
        except Preempted:
            failed = False
            raise
        finally:
            self._tracker.close(failed=failed)
            with contextlib.suppress(Exception):
                self.engine.close()

    @property
    def result(self) -> Path:
        """The checkpoint to export: the best one where training was judged, else the last."""
        best = self._judge.best if self._judge else None
        return best or self._run.checkpoint(self.engine.step)

    @property
    def judged(self) -> tuple[list[int], list[float]]:
        """Steps and the judge's metric after each."""
        return self._judge.curve if self._judge else ([], [])

    def _train(self) -> Ending:
        first = self.engine.step
        with contextlib.closing(self._loader.draws(first, self._num_steps)) as draws:
            watched = self._faults.watched(self._intake.watched(draws, first=first))
            ending = train(
                self.engine, watched, self._watchers(), self._agreement, self._stop, beat=self._beat, clock=self._clock
            )
            self._beat("save")
            self._end(ending)  # before the wait for the data workers to end: time may be short
        return ending

    def _watchers(self) -> list[Watcher]:
        progress = Progress(self._run, self._world, "train", total=self._num_steps, unit="steps")
        track = Track(
            self._tracker,
            epoch_steps=self._loader.epoch_steps,
            num_steps=self._num_steps,
            clock=self._clock,
            of_step=[self._speed.of_step, self._of_step],
            of_ranks=[
                lambda report: self._intake.agree(),
                lambda report: self._stragglers.agree(),
                self._speed.of_ranks,
            ],
        )
        judge: list[Watcher] = [self._judge] if self._judge else []
        patience: list[Watcher] = [Patience(self._judge)] if self._judge else []
        replicas = Replicas(self.engine, self._world, every=self._config.faults.compare_every)
        follow, show = Follow(self._loader.order, self._world), Show(progress.show, num_steps=self._num_steps)
        return [follow, replicas, *judge, track, show, self._faults, self.checkpoints, *patience]

    def _of_step(self, report: Report) -> dict[str, float]:
        self._stragglers.note(report.embed_s + report.wait_s)
        return {
            "skipped_steps": self._faults.skipped,
            "checkpoint_stall_s": round(self.checkpoints.stall_s, 4),
            "checkpoints_failed": self.checkpoints.num_failed,
            **(self._judge.figures() if self._judge else {}),
        }

    @contextlib.contextmanager
    def _watchdog(self) -> Iterator[None]:
        minutes, rank = self._config.run.hang_minutes, self._world.rank
        if minutes is None:
            yield
            return

        def say(reason: str) -> None:
            tell_failure(self._run, rank, Failure("hang", reason))

        with Watchdog(self._run.stacks, rank, self._stragglers.hosts, timeout_s=minutes * 60, say=say) as watchdog:
            self._beat = lambda phase: watchdog.beat(phase, self.engine.step)
            yield

    def _open_judge(self, view: View) -> Judge | None:
        judge = self._config.judge
        if judge is None:
            return None
        return Judge(
            judge,
            Model(self.engine, view, self._config.backbone.image_px),
            self._run,
            self._world,
            shards_root=self._config.shards_root,
            num_steps=self._num_steps,
            save=lambda: self.checkpoints.save(),
            is_stopping=self._stop.is_wanted,
            beat=lambda phase: self._beat(phase),
            halving=self._open_halving(),
        )

    def _open_halving(self) -> Halving | None:
        config, name = self._config, self._run.path.name
        if config.halving is None or config.judge is None:
            return None
        judge = digest_of(config.judge, config.shards_root)
        return Halving(config.halving, name=name, judge=judge, num_steps=self._num_steps, world=self._world)

    def _end(self, ending: Ending) -> None:
        """Save; raise what the ending means."""
        step = self.engine.step
        if ending == "roll back":
            return
        if ending == "not finite":
            raise NotFinite(
                f"the loss or a gradient was not a finite number for {self._config.faults.skip + 1} steps in a row, up to "
                f"{step} ({self._faults.last}). Lower optimizer.lr or head_lr, or set engine.clip_norm lower, in a new run"
            )
        is_early, told = ending in ("signal", "time"), ""
        try:
            if step or not is_early:  # before the first one there is nothing to save
                self.checkpoints.save()
                told = "; saved"
        except NotSaved as error:
            if not is_early:
                raise
            log.error("%s", error)
            told = f"; NOT saved: {error}"
        if self._uploads:
            wait_s = _PREEMPTED_UPLOAD_S if is_early else _UPLOAD_S
            self._uploads.close(wait_s, beat=lambda: self._beat("last upload"))
        if is_early:
            raise Preempted(f"{ending} at step {step}{told}")

    # --- state

    def _resume(self) -> Path | None:
        """Go on from the newest checkpoint that is whole; what lies beyond it is done again. Which one, if any."""
        folder = None
        if found := load_newest(self.engine, self._run, self._world, self._mirror):
            folder, saved = found
            check_same(saved, self._config, folder)
            self._restore(saved)
            self._take(saved)
            log.info("going on from %s", folder)
        else:
            if self._config.halving and self._world.rank == 0:
                forget(self._config.halving, self._run.path.name)
            self._take_from_origin()
        if self._world.rank == 0:
            cut_metrics(self._run.metrics, last_step=self.engine.step)
            for beside in (self._run.bad, self._run.ledger, self._run.faults.parent):
                cut_back(beside, steps=self.engine.step)
        self._world.barrier()
        return folder

    def _take_from_origin(self) -> None:
        """There is no checkpoint: the first step is the first, or another run's next."""
        origin = self._config.origin
        if origin is None:
            return
        folder = origin.fetch(self._config, self._run, self._world)
        self._take(still_true(self.engine.load(folder, new_classes=True), self._config))
        log.info("going on from %s", folder)

    def _restore(self, saved: dict[str, Any]) -> None:
        """What lies beside the checkpoints of this run, where only the checkpoint came here, from the mirror."""
        self._faults.take_roll_backs(saved.get("roll_backs", []))
        if self._world.rank != 0:
            return
        best, tracker = saved.get("judge", {}).get("best"), saved.get("tracker")
        try:
            if tracker:  # another than the submit made, where the run went on from the mirror
                write_text(self._run.tracker_id, tracker + "\n")
            if self._mirror and best and not (self._run.checkpoint(best[0]) / "state.json").is_file():
                self._mirror.bring(best[0], self._run.checkpoints)
        except (OSError, ValueError) as error:  # the run can do without
            log.warning("not all of the run could be brought here: %s", error)

    def _take(self, saved: dict[str, Any]) -> None:
        self._loader.order.take_state(saved.get("order", {}))
        self._intake.take_state(saved.get("intake", {}))
        self._faults.skipped = saved.get("skipped", 0)
        if self._judge:
            self._judge.take_state(saved.get("judge", {}))

    def _extra(self) -> dict[str, Any]:
        return {
            "tracker": self._tracker.id,
            "order": self._loader.order.state(),
            "intake": self._intake.state(self.engine.step),
            "skipped": self._faults.skipped,
            "roll_backs": list(self._faults.roll_backs),
            "judge": self._judge.state() if self._judge else {},
            "config": self._described,
        }

    def _go_back(self) -> None:
        self.checkpoints.finish()
        before = self.engine.step
        folder = self._resume()
        if folder is None or self.engine.step == before:
            raise NotFinite(
                f"the loss or a gradient is not finite, up to step {before}, and there is no checkpoint to go back to"
            )
        self.checkpoints.went_back_to(folder)
        self._faults.roll_back(to_step=self.engine.step, from_step=before)

    def _open_mirror(self) -> Mirror | None:
        """The mirror, and what it has beyond this folder taken from it."""
        url, keep = self._config.checkpoint.mirror, self._config.checkpoint.keep
        if url is None:
            return None
        mirror, problem = Mirror(url, self._run.path.name, keep=keep, best=self._run.best_checkpoint), ""
        if self._world.rank == 0:
            try:
                catch_up(mirror, self._run)
            except ValueError as error:
                problem = str(error)
        if problem := self._world.from_first(problem):
            raise ValueError(problem)
        return mirror


class Replicas:
    """Now and then, whether what must be the same on all ranks still is."""

    def __init__(self, engine: Engine, world: World, *, every: int) -> None:
        self._engine, self._world, self._every = engine, world, every

    def after(self, report: Report) -> None:
        if self._every and report.step % self._every == 0:
            check_equal(self._engine.replicated(), self._world, step=report.step)
