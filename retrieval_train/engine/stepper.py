"""One optimizer step over both halves, and its state: what all engines share.

The embedder's half (`half.Half`) is replicated and differs by engine; the class centres' half is sharded by class. Both have
one backward, one norm, one clipping factor and one decision whether to step at all. Nothing is stepped where the loss or a
gradient is not finite: the step is counted, its rows are passed over, and the report says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from retrieval_train.engine import checkpoint
from retrieval_train.engine.centre_step import CentreStep
from retrieval_train.engine.engine import EngineConfig, Report
from retrieval_train.engine.forward import Losses, draw, global_loss
from retrieval_train.engine.half import Half
from retrieval_train.engine.loss_scale import LossScale
from retrieval_train.engine.snapshot import Host, Snapshot, mean_buffers
from retrieval_train.learner import views

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.data.batch import Batch
    from retrieval_train.engine.optimizers.optimizer import OptimizerConfig
    from retrieval_train.engine.schedule import Rates
    from retrieval_train.learner import Learner

_LARGEST = torch.finfo(torch.float32).max


@dataclass
class Pass:
    """One forward and backward over the micro-batches of a step, and what was decided on their gradients."""

    losses: Losses
    loss: float = math.nan
    norm: float = math.nan
    """Stays so where the engine forgot gradients that are not finite, without asking."""
    factor: float | None = None
    """What the summed gradients were multiplied by; None: nothing was stepped."""
    embed_s: float = 0.0
    forward_s: float = 0.0
    backward_s: float = 0.0
    update_s: float = 0.0


@dataclass
class Stepper:
    """The engine: `half` steps the embedder, `centres` the head."""

    config: EngineConfig
    half: Half
    learner: Learner
    optimizer: OptimizerConfig
    schedule: Rates
    seed: int
    step: int = 0
    updates: int = 0
    """Steps that were not left out: what the optimizers count."""
    lr_scale: float = 1.0
    centres: CentreStep = field(init=False)

    def __post_init__(self) -> None:
        self.centres = CentreStep(self.learner.heads, self.optimizer)
        self._world = self.learner.world
        self._loss_scale = LossScale(self.config.loss_scale) if self.config.precision == "fp16" else None
        self._host = Host()
        self._buffers = list(checkpoint.persistent_buffers(self.learner.embedder).values())
        self._running = self._buffers + list(self.learner.running().values())
        """What a forward changes beside the gradients."""

    # --- stepping

    def train_step(self, micro_batches: Sequence[Batch]) -> Report:
        assert len(micro_batches) == self.config.accumulate, "the order deals as many micro-batches as make a step"
        started = time.perf_counter()
        lr_factor = self.schedule.factor(self.step) * self.lr_scale
        running = _copies(self._running)
        if self.optimizer.sam is None:
            done = self._pass(micro_batches, lr_factor)
        else:
            done = self._sharpness_aware(micro_batches, lr_factor)
        skipped = "" if done.factor is not None else self._why_skipped(done)
        if skipped:
            _put(self._running, running)  # batch norm's means of rows that are not finite would stay so for good
        else:
            self.updates += 1
            if self._loss_scale:
                self._loss_scale.stepped()
        self.step += 1
        first = micro_batches[0]
        return Report(
            step=self.step,
            loss=done.loss,
            lr_of_group={**self.half.lr_of_group(), **self.centres.lr_of_group()},
            grad_norm=done.norm,
            images=sum(sum(batch.counts) for batch in micro_batches),
            rows=sum(len(view.row_N) for batch in micro_batches for view in views(batch).values()),
            step_s=time.perf_counter() - started,
            wait_s=sum(batch.wait_s for batch in micro_batches),
            forward_s=done.forward_s,
            backward_s=done.backward_s,
            update_s=done.update_s,
            embed_s=done.embed_s,
            image_px=first.image_NCHW.shape[-1],
            loss_of_domain=done.losses.means(),
            loss_of_term=done.losses.of_terms(),
            skipped=skipped,
            loss_scale=self._loss_scale.value if self._loss_scale else None,
        )

    def _pass(
        self,
        micro_batches: Sequence[Batch],
        lr_factor: float,
        *,
        act: Callable[[Pass, float], float | None] | None = None,
    ) -> Pass:
        """`act` decides what becomes of finite gradients: by default they are clipped and stepped."""
        # over `times`, so that the 16-bit gradients are as large, and overflow as soon, with every half
        scale = self._loss_scale.value / self.half.times if self._loss_scale else 1.0
        done, timer = Pass(Losses(self.learner.domains)), Timer()
        total: Tensor | float = 0.0
        for index, batch in enumerate(micro_batches):
            draw(self.learner, batch, seed=self.seed, step=self.step)
            found = global_loss(self.learner, timer.timed(self.half.embed), batch)
            part = found.loss
            done.losses.add(found)
            total = total + part.detach()
            done.forward_s += timer.lap()
            self.half.backward(part * scale, is_last=index == len(micro_batches) - 1)
            done.backward_s += timer.lap()
        done.loss, done.embed_s = float(total), timer.inner_s()  # the same number on every rank
        centres_squared = float(self.centres.squared_norm(scale=self.half.times * scale))

        def decide(embedder_squared: float) -> float | None:
            done.norm = math.sqrt(embedder_squared / scale**2 + centres_squared)
            # ZeRO 3 adds its squares up in float64: it leaves out what overflows float32 in the others
            if embedder_squared <= _LARGEST and math.isfinite(done.norm) and math.isfinite(done.loss):
                done.factor = act(done, scale) if act else self._clip(done.norm) / scale
            return done.factor

        self.half.step(decide, lr_factor=lr_factor)
        if done.factor is None:
            self.centres.forget()
        else:
            self.centres.step(lr_factor=lr_factor, clip_factor=done.factor * scale)
        done.update_s = timer.lap()
        return done

    def _clip(self, norm: float) -> float:
        """What gradients are multiplied by so that their norm stays within the limit."""
        limit = self.config.clip_norm
        return min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0

    def _sharpness_aware(self, micro_batches: Sequence[Batch], lr_factor: float) -> Pass:
        """SAM (Foret et al., ICLR 2021): the step is made with the gradients at the worst point near the weights."""
        sam, climbed = self.optimizer.sam, []
        assert sam is not None
        replicated, sharded = list(self.half.trained.values()), self.learner.sharded()
        before, classes_world = _copies(self._running), self.learner.together

        def climb(done: Pass, scale: float) -> None:
            climbed.append(sam.climb(replicated, sharded, scale=scale, world=classes_world))

        def descend_and_step(done: Pass, scale: float) -> float:
            climbed.pop().descend()
            return self._clip(done.norm) / scale

        first = self._pass(micro_batches, lr_factor, act=climb)
        if not climbed:  # its gradients were not finite
            return first
        running = _copies(self._running)
        _put(self._running, before)  # the same loss again: a memory of embeddings does not have these rows yet
        second = self._pass(micro_batches, lr_factor, act=descend_and_step)
        _put(self._running, running)  # batch norm has seen these rows once, with the weights that are kept
        if climbed:  # those of the second were not
            climbed.pop().descend()
        second.loss, second.losses = first.loss, first.losses  # of the weights, not of the point near them
        for name in ("embed_s", "forward_s", "backward_s", "update_s"):
            setattr(second, name, getattr(first, name) + getattr(second, name))
        return second

    def _why_skipped(self, done: Pass) -> str:
        if not math.isfinite(done.loss):
            return "loss"
        return "overflow" if self._loss_scale and self._loss_scale.overflowed() else "gradient"

    # --- state

    def snapshot(self, extra: dict[str, Any]) -> Snapshot:
        rank, size = self._world.rank, self._world.size
        model: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        for index, name in enumerate(self.half.trained):
            whole = self.half.whole(name)
            if rank == 0:
                model[name] = self._host.copy(name, whole)
            for kind in self.optimizer.moments:
                whole = self.half.whole(name, kind)
                if index % size == rank:
                    moments[f"{name}.{kind}"] = self._host.copy(f"{name}.{kind}", whole)
        snapshot = Snapshot(self._state(extra))
        buffers = mean_buffers(self.learner.embedder, self._world)
        if rank == 0:
            snapshot.tensors["model.safetensors"] = model
            snapshot.tensors["buffers.safetensors"] = {
                name: self._host.copy(f"buffer {name}", buffer) for name, buffer in buffers.items()
            }
        snapshot.tensors[f"optimizer-{rank:05d}.safetensors"] = moments
        if rank == 0 and (running := self.learner.running()):
            snapshot.tensors[checkpoint.RUNNING] = {
                name: self._host.copy(f"running {name}", tensor) for name, tensor in running.items()
            }
        if centres := self.centres.tensors():
            snapshot.tensors[f"centres-{rank:05d}.safetensors"] = {
                name: self._host.copy(f"centres {name}", tensor) for name, tensor in centres.items()
            }
            snapshot.names[f"classes-{rank:05d}.txt"] = self.centres.class_names
        self._host.wait()
        return snapshot

    def _state(self, extra: dict[str, Any]) -> dict[str, Any]:
        loss_scale = self._loss_scale.state() if self._loss_scale else {}
        return {
            "step": self.step,
            "updates": self.updates,
            "optimizer": self.optimizer.name,
            "moments": list(self.optimizer.moments),
            "loss_scale": loss_scale,
            "extra": extra,
        }

    def load(self, folder: Path, *, new_classes: bool = False) -> dict[str, Any]:
        state = checkpoint.read_state(folder, self._world)
        weights = checkpoint.Tensors(folder, "model.safetensors")
        moments = checkpoint.Tensors(folder, "optimizer-*.safetensors")
        checkpoint.check_names(folder, weights.names(), set(self.half.trained))
        updates = int(state.get("updates", state["step"]))
        theirs, mine = (
            (state.get("optimizer"), state.get("moments")),
            (self.optimizer.name, list(self.optimizer.moments)),
        )
        if None not in theirs and theirs != mine:
            checkpoint.tell_fresh_moments(folder, state["optimizer"], self.optimizer.name)
            updates = 0
        self.half.set_updates(updates)
        for name in self.half.trained:
            whole = weights[name].to(self._world.device)
            kept = {
                kind: moments[f"{name}.{kind}"].to(whole) if updates else torch.zeros_like(whole)
                for kind in self.optimizer.moments
            }
            self.half.put(name, whole, kept)
        checkpoint.read_buffers(folder, self.learner.embedder)
        self.centres.load(folder, updates=updates, new_classes=new_classes)
        # a loss's memory holds numbers of classes, which may be others now: it fills itself again
        checkpoint.read_running(folder, self.learner.running(of_losses=not new_classes))
        if self._loss_scale:
            self._loss_scale.take_state(state.get("loss_scale", {}))
        self.step, self.updates = state["step"], updates
        extra: dict[str, Any] = state["extra"]
        return extra

    @contextmanager
    def embedding(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """As an export of this step would embed: with the mean of the ranks' running statistics."""
        embedder, own = self.learner.embedder, _copies(self._buffers)
        _put(self._buffers, mean_buffers(embedder, self._world).values())
        embedder.eval()
        try:
            with self.half.embedding() as embed:
                yield embed
        finally:
            embedder.train()
            _put(self._buffers, own)

    def replicated(self) -> Mapping[str, Tensor]:
        found = self.half.replicated()
        return {**found, **self.learner.running()} if found else {}

    def close(self) -> None:
        self.half.close()


def _copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _put(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


class Timer:
    """Laps of wall-clock, and the time that one function takes: on a GPU its own time, not how long it took to be queued."""

    def __init__(self) -> None:
        self._at = time.perf_counter()
        self._inner_s = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def lap(self) -> float:
        before, self._at = self._at, time.perf_counter()
        return self._at - before

    def timed(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def wrapped(x: Tensor) -> Tensor:
            if x.is_cuda:
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                self._events.append((begin, end))
                begin.record()
                out = function(x)
                end.record()
                return out
            before = time.perf_counter()
            out = function(x)
            self._inner_s += time.perf_counter() - before
            return out

        return wrapped

    def inner_s(self) -> float:
        """Asked after the GPU has done what was queued."""
        return self._inner_s + sum(float(begin.elapsed_time(end)) for begin, end in self._events) / 1000
