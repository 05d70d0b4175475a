"""SAM: take the gradient where the loss nearby is highest, and step with it from where the weights were.

Foret et al., ICLR 2021, equation 2: e = rho g / |g|. ASAM (Kwon et al., ICML 2021) measures "nearby" in each weight's own
size: e = rho w^2 g / |w g|. A step has two passes: climb by e, a second backward, descend, then the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from retrieval_train.config import Section

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.world import World


class Sam(Section):
    """Sharpness-aware minimisation around any optimizer; a step costs two passes."""

    rho: float = Field(default=0.05, gt=0)
    """How far the weights climb, over all of them."""
    adaptive: bool = False
    """ASAM: climb in proportion to each weight's size; its authors take a rho about 10 times larger."""

    def climb(self, replicated: Sequence[Tensor], sharded: Sequence[Tensor], *, scale: float, world: World) -> Climbed:
        """Move the weights along their gradients, by `rho` over all ranks' parameters, each counted once. Collective.

        Gradients are those of the global batch; the replicated ones are still multiplied by the loss scale `scale`.
        """
        sharded_squared = float(world.sum(self._squared(sharded).to(world.device)))
        norm = (float(self._squared(replicated)) / scale**2 + sharded_squared) ** 0.5 + 1e-12
        return Climbed([*self._move(replicated, self.rho / (norm * scale)), *self._move(sharded, self.rho / norm)])

    def _squared(self, parameters: Iterable[Tensor]) -> Tensor:
        """The sum of squares of what the climb is divided by, float32."""
        import torch

        moved = [(p.grad.float(), p.detach()) for p in parameters if p.grad is not None]
        parts = [(grad * weight if self.adaptive else grad).square().sum() for grad, weight in moved]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def _move(self, parameters: Iterable[Tensor], factor: float) -> list[tuple[Tensor, Tensor]]:
        before = []
        for parameter in parameters:
            if parameter.grad is not None:
                weight = parameter.detach()  # the same memory, out of autograd's sight
                before.append((weight, weight.clone()))
                direction = parameter.grad * weight.square() if self.adaptive else parameter.grad
                weight.add_(direction, alpha=factor)
        return before


@dataclass(frozen=True)
class Climbed:
    """Weights away from where they were."""

    before: list[tuple[Tensor, Tensor]]
    """Each tensor that was moved, and its values before."""

    def descend(self) -> None:
        """Put the weights back to the last bit, which subtracting e would not."""
        for weight, value in self.before:
            weight.copy_(value)
