"""The embedder's half of a step, which is what engines differ in; the class centres' half is `centre_step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Decide = Callable[[float], float | None]
"""Sum of squared gradients -> what to multiply them by before stepping; None: do not step."""


class Half(Protocol):
    """An embedder whose replicas are kept equal on all ranks. Methods are collective."""

    times: float
    """`backward` multiplies the gradients of everything behind the loss by this, of what is not the embedder's too."""

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """The trained parameters by name; under ZeRO 3 a rank holds parts of them."""
        ...

    def embed(self, image_NCHW: Tensor) -> Tensor: ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add up this rank's gradients; with the last micro-batch's, sum them over the ranks."""
        ...

    def step(self, decide: Decide, *, lr_factor: float) -> None:
        """Ask `decide` once, with the summed gradients' norm; step or not; forget the gradients.

        An engine that finds a gradient not finite may forget them without asking.
        """
        ...

    def whole(self, name: str, moment: str | None = None) -> Tensor:
        """A trained tensor or one of its moments, whole, float32, on every rank."""
        ...

    def put(self, name: str, whole: Tensor, moments: Mapping[str, Tensor]) -> None:
        """The opposite of `whole`, for a tensor and all its moments."""
        ...

    def set_updates(self, updates: int) -> None:
        """How often the weights were stepped: the optimizer's own count."""
        ...

    def lr_of_group(self) -> dict[str, float]: ...

    def embedding(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]: ...

    def replicated(self) -> Mapping[str, Tensor]: ...

    def close(self) -> None: ...
