"""What a forward and its backward keep in memory, found without doing them: on tensors that have a shape and no numbers.

An embedder that was built on torch's meta device is given such tensors ("fake" ones of the CPU: the meta device knows no
autocast), and every storage is counted from the operation that makes it to the end of its last user. No GPU is touched.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from retrieval_train.models.embedder import Embedder

_FLOAT32_ON_GPUS = ("layer_norm", "group_norm", "softmax")
"""What autocast computes in float32 on a GPU and leaves as it comes on the CPU (of what backbones call)."""


@dataclass(frozen=True)
class Activations:
    """Bytes of one rank for one micro-batch, beside weights and buffers."""

    kept: int
    """From the embedder's forward to its backward: there while logits and loss are computed."""
    peak: int
    """The most at a time in forward and backward, gradients of weights left out ..."""
    peak_with_gradients: int
    """... and with them, where each stays from the moment at which it is made."""

    def most(self, share: float) -> int:
        """The most at a time where this share of the gradients stays: a bound (the chord of a convex curve)."""
        return int(self.peak + share * (self.peak_with_gradients - self.peak))


@contextlib.contextmanager
def shapes_only(embedder: Embedder) -> Iterator[Embedder]:
    """`embedder`, built on the meta device, can be called in the block: all of its tensors have shapes and no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        embedder.to_empty(device="cpu")
        yield embedder


def activations_of(embedder: Embedder, *, rows: int, image_px: int, on_gpu: bool) -> Activations:
    """Of `rows` images in one training forward and backward, as `embedder.precision` and its blocks' checkpointing say.

    Call it in `shapes_only`. Attention is taken to be fused, as torch's is on GPUs and on the CPU: it keeps no scores.
    """
    parameters = list(embedder.parameters())
    lasting = [tensor.untyped_storage()._cdata for tensor in (*parameters, *embedder.buffers())]
    live = _Live(lasting)
    hooks = [p.register_post_accumulate_grad_hook(live.is_gradient) for p in parameters if p.requires_grad]
    embedder.train()
    try:
        with _as_on_device(casts=on_gpu and embedder.precision != "fp32"), live:
            image_NCHW = torch.zeros(rows, 3, image_px, image_px, dtype=torch.uint8)
            embedder.draw(torch.arange(rows))
            emb_ND = embedder(image_NCHW)
            kept = live.now
            if emb_ND.requires_grad:
                emb_ND.backward(torch.ones_like(emb_ND))  # type: ignore[no-untyped-call]
    finally:
        embedder.draw(None)
        for hook in hooks:
            hook.remove()
        for parameter in parameters:
            parameter.grad = None
    return Activations(kept, live.peak, live.peak_with_gradients)


class _Live(TorchDispatchMode):
    """Counts the storages that operations make, until nobody has them any more."""

    def __init__(self, lasting: list[int]) -> None:
        super().__init__()
        self._size_of: dict[int, int] = dict.fromkeys(lasting, 0)
        self._gradients: set[int] = set()
        self.now = self.gradients = self.peak = self.peak_with_gradients = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        at = storage._cdata
        if at in self._size_of:
            return
        self._size_of[at] = size = storage.nbytes()
        self.now += size
        weakref.finalize(storage, self._drop, at)
        self.peak = max(self.peak, self.now)
        self.peak_with_gradients = max(self.peak_with_gradients, self.now + self.gradients)

    def _drop(self, at: int) -> None:
        size = self._size_of.pop(at, 0)
        if at in self._gradients:
            self._gradients.discard(at)
            self.gradients -= size
        else:
            self.now -= size

    def is_gradient(self, parameter: Tensor) -> None:
        """Told of each trained tensor whose gradient is made."""
        assert parameter.grad is not None, "the hook is called after it"
        at = parameter.grad.untyped_storage()._cdata
        if at not in self._gradients and at in self._size_of:
            self._gradients.add(at)
            self.now -= self._size_of[at]
            self.gradients += self._size_of[at]


@contextlib.contextmanager
def _as_on_device(*, casts: bool) -> Iterator[None]:
    """Attention by the kernel that keeps no scores, which torch does not choose for such tensors; GPUs' casts to float32.

    They are put in torch's place by name: a mode of torch's own is off while checkpointed blocks are done again.
    """
    plain = {name: getattr(functional, name) for name in ("scaled_dot_product_attention", *_FLOAT32_ON_GPUS)}

    def attention(*args: Any, **kwargs: Any) -> Any:
        fused = _fused_attention(*args, **kwargs)
        return fused if fused is not None else plain["scaled_dot_product_attention"](*args, **kwargs)

    def in_float32(function: Any) -> Any:
        def cast(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            return function(x.float() if x.is_floating_point() else x, *args, **kwargs)

        return cast

    changed = {"scaled_dot_product_attention": attention}
    changed |= {name: in_float32(plain[name]) for name in _FLOAT32_ON_GPUS} if casts else {}
    try:
        for name, function in changed.items():
            setattr(functional, name, function)
        yield
    finally:
        for name, function in plain.items():
            setattr(functional, name, function)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """None: torch has no fused kernel for it (a mask that is trained, heads that share keys)."""
    if enable_gqa or query.dim() != 4 or (attn_mask is not None and attn_mask.requires_grad):
        return None
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out: Tensor = kernel(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out
