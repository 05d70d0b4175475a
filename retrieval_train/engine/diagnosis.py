"""A second look at a step that was not finite: which rank, which layer, which samples.

The rows go through the embedder again with hooks on every layer, first forward, then, where that is finite, backward. It is
the embedder as in evaluation, without dropout; nothing is stepped and no gradient is kept. Under ZeRO 3, whose weights are
there for the time of a forward only, just the forward is looked at.

Legend: N rows of this rank, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from retrieval_train.data.batch import Batch
    from retrieval_train.engine.engine import Engine
    from retrieval_train.learner import Learner

_NAMED = 5  # sample keys in a finding


def look_again(engine: Engine, learner: Learner, micro_batches: Sequence[Batch]) -> str:
    """What this rank found, in words; "" for nothing. Collective."""
    found = ""
    with engine.embedding() as embed:
        for batch in micro_batches:
            found = found or _in_forward(learner, embed, batch)
    if learner.world.any(bool(found)) or not engine.replicated():
        return found
    for batch in micro_batches:
        found = found or _in_backward(learner, batch)
    return found


def _in_forward(learner: Learner, embed: Callable[[Tensor], Tensor], batch: Batch) -> str:
    if not len(batch.label_N):
        return ""
    bad: list[str] = []

    def note(name: str, out: Tensor) -> None:
        if not bad and not out.isfinite().all():
            bad.append(name)

    with torch.no_grad(), _outputs_told(learner.embedder, note):
        emb_ND = embed(batch.image_NCHW.to(learner.world.device))
    rows_N = ~emb_ND.isfinite().all(dim=1)
    if not bad and not rows_N.any():
        return ""
    return _words(learner, f"first in the output of {bad[0] if bad else 'the embedder'}", batch, rows_N)


def _in_backward(learner: Learner, batch: Batch) -> str:
    """Collective: the loss needs all ranks' embeddings."""
    outputs: dict[str, Tensor] = {}

    def note(name: str, out: Tensor) -> None:
        if out.requires_grad:
            outputs[name] = out

    learner.embedder.eval()
    try:
        with _outputs_told(learner.embedder, note), torch.enable_grad():
            kept: list[Tensor] = []

            def embed(image_NCHW: Tensor) -> Tensor:
                kept.append(learner.embedder(image_NCHW))
                return kept[0]

            loss = learner.forward(embed, batch.to(learner.world.device)).loss
            grads = torch.autograd.grad(loss, [kept[0], *outputs.values()], allow_unused=True)
    finally:
        learner.embedder.train()
    of_emb_ND, of_outputs = grads[0], dict(zip(outputs, grads[1:], strict=True))
    rows_N = ~of_emb_ND.isfinite().all(dim=1)
    bad = [name for name, grad in of_outputs.items() if grad is not None and not grad.isfinite().all()]
    if rows_N.any():
        return _words(learner, f"in the gradient of the embeddings (loss {loss.item():g})", batch, rows_N)
    return _words(learner, f"first in the gradient of {bad[-1]}'s output", batch, rows_N) if bad else ""


@contextmanager
def _outputs_told(module: nn.Module, tell: Callable[[str, Tensor], None]) -> Iterator[None]:
    """`tell(name, output)` for every layer that holds no other, in the order in which they are called."""

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda layer, inputs, out: tell(name, out) if isinstance(out, Tensor) else None

    leaves = [(name, layer) for name, layer in module.named_modules() if next(layer.children(), None) is None]
    handles = [layer.register_forward_hook(hook_of(name)) for name, layer in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _words(learner: Learner, where: str, batch: Batch, rows_N: Tensor) -> str:
    keys = [key for key, is_bad in zip(batch.key_N, rows_N.tolist(), strict=False) if is_bad]
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    samples = f"; samples {', '.join(keys[:_NAMED])}{more}" if keys else ""
    return f"rank {learner.world.rank}: {where}{samples}"
