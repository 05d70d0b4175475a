"""The engine in bare torch: for tests, and for finding out whether DeepSpeed is at fault."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retrieval_train.engine.engine import EngineConfig, NotFinite, Report
from retrieval_train.engine.params import MOMENTS, Optimizer, clip_factor, set_lr, squared_norm
from retrieval_train.engine.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.data.batch import Batch
    from retrieval_train.learner import Learner


class Config(EngineConfig):
    """Every rank keeps everything; gradients are summed tensor by tensor."""

    name: Literal["plain"] = "plain"
    """The engine."""

    def build(self, learner: Learner, optimizer: Optimizer, schedule: Schedule, *, seed: int) -> Plain:
        return Plain(self, learner, optimizer, schedule, seed=seed)


class Plain:
    def __init__(
        self, config: Config, learner: Learner, optimizer: Optimizer, schedule: Schedule, *, seed: int
    ) -> None:
        from retrieval_train.engine.centre_step import CentreStep

        self.step = 0
        self._config, self._learner, self._schedule, self._seed = config, learner, schedule, seed
        self._world = learner.world
        learner.embedder.bf16 = config.precision == "bf16"  # type: ignore[assignment]
        self._centres = CentreStep(learner.head, optimizer, self._world)
        self._optimizer = optimizer.build(optimizer.groups(learner.embedder))
        self._trained = {name: p for name, p in learner.embedder.named_parameters() if p.requires_grad}
        for tensor in (*self._trained.values(), *learner.embedder.buffers()):
            tensor.data.copy_(self._world.from_first(tensor.detach().cpu()))

    def train_step(self, micro_batches: Sequence[Batch]) -> Report:
        from retrieval_train.engine.forward import DomainLosses, global_loss, seeded

        started = time.perf_counter()
        seeded(self._seed, self.step, self._world.rank)
        loss, domain_losses = 0.0, DomainLosses(self._learner.domains)
        for batch in micro_batches:
            part, of_domain_2M = global_loss(self._learner, self._learner.embedder, batch)
            domain_losses.add(of_domain_2M)
            if not part.isfinite():
                raise NotFinite(f"loss {part.item()} at step {self.step}")
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        for parameter in self._trained.values():
            if parameter.grad is not None:
                parameter.grad = self._world.sum(parameter.grad)
        norm = float((squared_norm(p.grad for p in self._trained.values()) + self._centres.squared_norm()).sqrt())
        factor = self._schedule.factor(self.step)
        clip = clip_factor(norm, self._config.clip_norm)
        set_lr(self._optimizer, factor)
        for parameter in self._trained.values():
            if parameter.grad is not None:
                parameter.grad.mul_(clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._centres.step(lr_factor=factor, clip_factor=clip)
        self.step += 1
        lr = max(group["lr"] for group in self._optimizer.param_groups)
        return Report.of(
            micro_batches,
            step=self.step,
            loss=loss,
            lr=lr,
            grad_norm=norm,
            step_s=time.perf_counter() - started,
            loss_of_domain=domain_losses.means(),
        )

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        from retrieval_train.engine import checkpoint

        if self._world.rank == 0:
            moments = {
                f"{name}.{kind}": self._optimizer.state[p][kind]
                for name, p in self._trained.items()
                for kind in MOMENTS
            }
            checkpoint.write_tensors(folder / "model.safetensors", self.trained_weights())
            checkpoint.write_tensors(folder / "optimizer-00000.safetensors", moments)
        checkpoint.write_buffers(folder, self._learner.embedder, self._world)
        self._centres.save(folder)
        self._world.barrier()
        if self._world.rank == 0:
            checkpoint.seal(folder, {"step": self.step, "extra": extra})
        self._world.barrier()

    def load(self, folder: Path) -> dict[str, Any]:
        import torch

        from retrieval_train.engine import checkpoint

        state = checkpoint.read_state(folder)
        weights = checkpoint.Tensors(folder, "model.safetensors")
        moments = checkpoint.Tensors(folder, "optimizer-*.safetensors")
        checkpoint.check_names(folder, weights.names(), set(self._trained))
        for name, parameter in self._trained.items():
            parameter.data.copy_(weights[name])
            kept = {kind: moments[f"{name}.{kind}"].to(parameter) for kind in MOMENTS}
            self._optimizer.state[parameter] = {"step": torch.tensor(float(state["step"])), **kept}
        checkpoint.read_buffers(folder, self._learner.embedder)
        self._centres.load(folder, updates=state["step"])
        self.step = state["step"]
        extra: dict[str, Any] = state["extra"]
        return extra

    def trained_weights(self) -> dict[str, Tensor]:
        if self._world.rank != 0:
            return {}
        return {name: parameter.detach().float().cpu() for name, parameter in self._trained.items()}

    def close(self) -> None:
        return None
