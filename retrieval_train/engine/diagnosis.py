"""A second look at a step that was not finite: which rank, which layer, which samples.

The rows go through the embedder again with hooks on every layer, then through head and loss, then, where those are finite,
backward. It is the embedder as in evaluation, without dropout; nothing is stepped and no gradient is kept. Under ZeRO 3,
whose weights are there for the time of a forward only, no layer's backward is looked at.

    look        collective: every rank makes the same calls for every micro-batch, whatever it finds
    backward    this rank's alone: from the gradient of its embeddings

Legend: N rows of this rank, D dimensions, C classes of this rank, K sub-centres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from retrieval_train.learner import views

if TYPE_CHECKING:
    from retrieval_train.data.batch import Batch
    from retrieval_train.engine.engine import Engine
    from retrieval_train.learner import Learner

_NAMED = 5  # sample keys or classes in a finding


@dataclass
class Look:
    """What one micro-batch showed on this rank; "" for nothing."""

    in_forward: str
    in_loss: str
    grad_ND: Tensor
    """Of the loss by the embeddings."""


def look_again(engine: Engine, learner: Learner, micro_batches: Sequence[Batch]) -> str:
    """What this rank found, in words; "" for nothing. Where several ranks find something they found the same kind of
    thing, the first on the way from the images to the gradients. Collective."""
    with torch.compiler.set_stance("force_eager"):  # compiled blocks would not call hooks
        with engine.embedding() as embed:
            looks = [_look(learner, embed, batch) for batch in micro_batches]
        in_forward, in_loss = _first(look.in_forward for look in looks), _first(look.in_loss for look in looks)
        for found in (in_forward, _in_centres(learner), in_loss):
            if learner.world.any(bool(found)):
                return found
        if not engine.replicated():
            return ""
        pairs = zip(micro_batches, looks, strict=True)
        return _first(_in_backward(learner, batch, look.grad_ND) for batch, look in pairs)


def _first(texts: Iterable[str]) -> str:
    return next((text for text in texts if text), "")


def _look(learner: Learner, embed: Callable[[Tensor], Tensor], batch: Batch) -> Look:
    bad: list[str] = []
    leaves: list[Tensor] = []

    def note(name: str, layer: nn.Module, inputs: Any, out: Tensor) -> None:
        if not bad and not _is_finite(out):
            weights = [key for key, weight in layer.named_parameters() if not _is_finite(weight)]
            bad.append(f"the output of {name}" + (f", whose {weights[0]} is not finite" if weights else ""))

    def leaf(image_NCHW: Tensor) -> Tensor:
        with torch.no_grad(), _outputs_told(learner.embedder, note):
            leaves.append(embed(image_NCHW).detach().requires_grad_())
        return leaves[-1]

    loss = learner.forward(leaf, batch.to(learner.world.device)).loss
    emb_ND = leaves[0]
    (grad_ND,) = torch.autograd.grad(loss, [emb_ND])
    bad_N = _bad_rows(emb_ND)
    look = Look("", "", grad_ND)
    if bad_N.any():
        look.in_forward = _words(learner, f"first in {bad[0] if bad else 'the embeddings'}", batch, bad_N)
    elif (bad_N := _bad_rows(grad_ND)).any():
        where = f"in the loss ({loss.item():g}) or its gradient, of finite embeddings and centres"
        look.in_loss = _words(learner, where, batch, bad_N)
    return look


def _in_centres(learner: Learner) -> str:
    for head in learner.heads.values():
        is_bad_C = _bad_rows(head.centre_CKD)
        if names := [name for name, is_bad in zip(head.class_names, is_bad_C.tolist(), strict=True) if is_bad]:
            return f"rank {learner.world.rank}: in the class centres of {_few(names)}"
    return ""


@dataclass
class Output:
    """Of one layer, on its way to the next."""

    layer: str
    taker: str = ""
    """The layer that takes it as it is; "" where something else is done to it first."""


class Backward:
    """Told every gradient in the order in which the backward makes them; keeps where it was first not finite."""

    def __init__(self) -> None:
        self.where, self.bad_N = "", torch.zeros(0)
        self._outputs = WeakTensorKeyDictionary()  # a held output would be memory that the training does not need

    def watch_layer(self, name: str, layer: nn.Module, inputs: Any, out: Tensor) -> None:
        for tensor in inputs:
            if isinstance(tensor, Tensor) and tensor in self._outputs:
                self._outputs[tensor].taker = name
        if out.requires_grad:
            self._outputs[out] = output = Output(name)
            out.register_hook(lambda grad: self._see_output(grad, output))

    def watch_weight(self, name: str, weight: Tensor) -> Any:
        def see(grad: Tensor) -> Tensor:
            if not self.where and not _is_finite(grad):
                self.where = f"the gradient of {name}"
            return grad.new_zeros(()).expand_as(grad)  # one number: all weights' gradients together may not fit

        return weight.register_hook(see)

    def _see_output(self, grad: Tensor, output: Output) -> None:
        if not self.where and not _is_finite(grad):
            self.where = (
                f"the backward of {output.taker}" if output.taker else f"the gradient of {output.layer}'s output"
            )
            self.bad_N = _bad_rows(grad)


def _in_backward(learner: Learner, batch: Batch, grad_ND: Tensor) -> str:
    """Of this rank's rows, through its embedder."""
    watch, embedder = Backward(), learner.embedder
    weights = {name: weight for name, weight in embedder.named_parameters() if weight.requires_grad}
    handles = [watch.watch_weight(name, weight) for name, weight in weights.items()]
    embedder.eval()
    try:
        with _outputs_told(embedder, watch.watch_layer), torch.enable_grad():
            emb_ND = embedder(torch.cat([view.image_NCHW for view in views(batch).values()]).to(learner.world.device))
        torch.autograd.grad(emb_ND, list(weights.values()), grad_ND, allow_unused=True)
    finally:
        embedder.train()
        for handle in handles:
            handle.remove()
    return _words(learner, f"first in {watch.where}", batch, watch.bad_N) if watch.where else ""


@contextmanager
def _outputs_told(module: nn.Module, tell: Callable[[str, nn.Module, Any, Tensor], None]) -> Iterator[None]:
    """`tell(name, layer, inputs, output)` for every layer that holds no other, in the order in which they are called."""

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda layer, inputs, out: tell(name, layer, inputs, out) if isinstance(out, Tensor) else None

    leaves = [(name, layer) for name, layer in module.named_modules() if next(layer.children(), None) is None]
    handles = [layer.register_forward_hook(hook_of(name)) for name, layer in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.detach().isfinite().all())


def _bad_rows(tensor: Tensor) -> Tensor:
    return ~tensor.detach().flatten(1).isfinite().all(dim=1)


def _words(learner: Learner, where: str, batch: Batch, is_bad_N: Tensor) -> str:
    return f"rank {learner.world.rank}: {where}{_samples(batch, is_bad_N.tolist())}"


def _samples(batch: Batch, is_bad_N: Sequence[bool]) -> str:
    """Of bad rows of all views together, in the order of `views`: the samples of each view."""
    text, at = "", 0
    for name, view in views(batch).items():
        bad_n = is_bad_N[at : at + len(view.image_NCHW)]
        at += len(bad_n)
        if not any(bad_n):
            continue
        source = batch.unlabelled if name.startswith("unlabelled") else batch
        known = source.key_N if source is not None else ()
        keys = [key for key, is_bad in zip(known, bad_n, strict=False) if is_bad]
        if name != "weak":
            text += f"; {name} view: " + (f"samples {_few(keys)}" if keys else f"{sum(bad_n)} rows")
        elif keys:
            text += f"; samples {_few(keys)}"
    return text


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
