"""The engine in bare torch: for tests, and for finding out whether DeepSpeed is at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from retrieval_train.engine.engine import EngineConfig
from retrieval_train.engine.half import Decide
from retrieval_train.engine.params import lr_of_group, set_lr, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.engine.optimizers.optimizer import OptimizerConfig
    from retrieval_train.engine.schedule import Rates
    from retrieval_train.engine.stepper import Stepper
    from retrieval_train.learner import Learner


class Config(EngineConfig):
    """Every rank keeps everything; gradients are summed tensor by tensor."""

    name: Literal["plain"] = "plain"
    """The engine."""

    def build(self, learner: Learner, optimizer: OptimizerConfig, schedule: Rates, *, seed: int) -> Stepper:
        from retrieval_train.engine.stepper import Stepper

        self.prepare(learner.embedder)
        return Stepper(self, Replicated(learner, optimizer), learner, optimizer, schedule, seed)


class Replicated:
    """The embedder's half without DeepSpeed."""

    times = 1.0

    def __init__(self, learner: Learner, optimizer: OptimizerConfig) -> None:
        self._embedder, self._world, self._config = learner.embedder, learner.world, optimizer
        self._optimizer = optimizer.build(optimizer.groups(learner.embedder))
        self.trained = {name: p for name, p in learner.embedder.named_parameters() if p.requires_grad}
        for tensor in (*self.trained.values(), *learner.embedder.buffers()):
            tensor.data.copy_(self._world.from_first(tensor.detach().cpu()))
        for parameter in self.trained.values():
            optimizer.make_state(self._optimizer, parameter, step=0, moments=None)

    def embed(self, image_NCHW: Tensor) -> Tensor:
        emb_ND: Tensor = self._embedder(image_NCHW)
        return emb_ND

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        if is_last:
            for parameter in self.trained.values():
                if parameter.grad is not None:
                    parameter.grad = self._world.sum(parameter.grad)

    def step(self, decide: Decide, *, lr_factor: float) -> None:
        set_lr(self._optimizer, lr_factor)
        factor = decide(float(squared_norm(p.grad for p in self.trained.values())))
        if factor is not None:
            for parameter in self.trained.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def whole(self, name: str, moment: str | None = None) -> Tensor:
        parameter = self.trained[name]
        return parameter.detach() if moment is None else self._optimizer.state[parameter][moment]

    def put(self, name: str, whole: Tensor, moments: Mapping[str, Tensor]) -> None:
        parameter = self.trained[name]
        parameter.data.copy_(whole)
        self._config.make_state(self._optimizer, parameter, step=self._updates, moments=moments)

    def set_updates(self, updates: int) -> None:
        self._updates = updates

    def lr_of_group(self) -> dict[str, float]:
        return lr_of_group(self._optimizer)

    @contextmanager
    def embedding(self) -> Iterator[Callable[[Tensor], Tensor]]:
        yield self._embedder

    def replicated(self) -> dict[str, Tensor]:
        return dict(self._embedder.named_parameters())

    def close(self) -> None:
        return None
