"""The embedder's half under DeepSpeed ZeRO; the class centres stay outside.

What DeepSpeed is given it broadcasts from rank 0 and averages, which would destroy centres that differ by rank. So a
step has two halves that share one backward, one norm, one clipping factor and one decision:

    backward(loss x W)      DeepSpeed averages over the W ranks, our gradients are shares that must be summed
    gate                    where DeepSpeed would step torch's optimizer, `Stepper` decides: scale and step, or leave it out
    DeepSpeed steps, then the centres step

Tensors and moments are read from and put back into ZeRO one by one, whole and float32, so that any stage and world size
loads any other's.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_train.engine.half import Decide
from retrieval_train.engine.params import lr_of_group, set_lr, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.engine.optimizers.optimizer import OptimizerConfig
    from retrieval_train.engine.zero import Config
    from retrieval_train.learner import Learner
    from retrieval_train.world import World


def keep_compiled_ops_with_this_python() -> None:
    """DeepSpeed compiles a small op for CPU ranks at its first use. Torch keeps it by Python version alone, so another
    torch would load it and crash: keep it in this environment instead, where that may be written."""
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    # this environment's ninja, whether it was activated or not: another version of it would compile all anew
    own, path = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    if not path.startswith(own + os.pathsep):
        os.environ["PATH"] = own + os.pathsep + path


def compile_ops() -> None:
    """Compile that op now, so that the first run does not wait for it. Needs g++ and Python's headers."""
    import torch

    if torch.cuda.is_available():
        return
    keep_compiled_ops_with_this_python()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)


def _check_ranks(config: Config, world: World) -> None:
    """What only the ranks know. Raises ValueError."""
    plus_plus, on_gpu = config.plus_plus, world.device.type == "cuda"
    if world.size % plus_plus.ranks_with_all_weights:
        raise ValueError(
            f"engine.plus_plus.ranks_with_all_weights is {plus_plus.ranks_with_all_weights}, which does not divide the "
            f"{world.size} ranks; take the ranks of a node"
        )
    if not on_gpu and (plus_plus.quantized_weights or plus_plus.quantized_gradients):
        raise ValueError(
            "engine.plus_plus: what is quantized travels between GPUs only, and this rank has none; leave it out"
        )
    if "nvme" in (config.offload.optimizer, config.offload.weights):
        _check_nvme()


def _check_nvme() -> None:
    """DeepSpeed compiles an op for it at the first use, and looks for its library at every start."""
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import is_ninja_available

    lacking = "c++ (package g++)" if shutil.which("c++") is None else ""
    lacking = lacking or ("" if is_ninja_available() else "ninja (package ninja-build)")
    lacking = lacking or ("" if AsyncIOBuilder().is_compatible() else "libaio with its headers (package libaio-dev)")
    if lacking:
        raise ValueError(
            f"engine.offload: nvme needs an op that is compiled here, and {socket.gethostname()} has no {lacking}; "
            "install it on every node, or take cpu"
        )


class Sharded:
    """The embedder's half under ZeRO."""

    def __init__(self, config: Config, learner: Learner, optimizer: OptimizerConfig) -> None:
        keep_compiled_ops_with_this_python()
        import deepspeed

        self._stage, self._config, self._world = config.stage, optimizer, learner.world
        _check_ranks(config, learner.world)
        # of this start alone: DeepSpeed leaves its files there, and two runs may be given the same folder
        self._nvme = Path(tempfile.mkdtemp(dir=config.offload.nvme, prefix="zero-")) if config.offload.nvme else None
        self.times = float(self._world.size)
        self.trained = {name: p for name, p in learner.embedder.named_parameters() if p.requires_grad}
        self._optimizer = optimizer.build(optimizer.groups(learner.embedder))
        self._decide: Decide | None = None
        self._factor: float | None = None
        self._deepspeed, *_ = deepspeed.initialize(
            model=learner.embedder,
            optimizer=self._optimizer,
            config=config.deepspeed_json(on_gpu=self._world.device.type == "cuda", nvme=self._nvme),
            dist_init_required=False,
        )
        # ZeRO looks `step` up when it steps; before, wrappers of its own may step once while they are made
        self._step_optimizer = self._optimizer.step
        self._optimizer.step = self._gate  # type: ignore[method-assign]
        self._make_moments()

    # --- stepping

    def embed(self, image_NCHW: Tensor) -> Tensor:
        emb_ND: Tensor = self._deepspeed(image_NCHW)
        return emb_ND

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._deepspeed.backward(loss * self._world.size, scale_wrt_gas=False)
        if not is_last:
            self._deepspeed.step()  # only counts the micro-batch

    def step(self, decide: Decide, *, lr_factor: float) -> None:
        set_lr(self._optimizer, lr_factor)
        self._decide = decide
        self._deepspeed.step()
        self._decide = None

    def _gate(self, closure: Any = None) -> Any:
        """What DeepSpeed takes for torch's step; ZeRO calls it once for every group that it steps."""
        if self._decide is not None:
            self._factor, self._decide = self._decide(self._squared_norm()), None
        if self._factor is None:
            return None
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(self._factor)
        return self._step_optimizer()

    def _squared_norm(self) -> float:
        if self._stage == 0:
            return float(squared_norm(p.grad for p in self.trained.values()))
        norm = float(self._deepspeed.optimizer._global_grad_norm)
        return norm**2 if norm >= 0 else math.inf  # -1 is DeepSpeed's word for a norm that is none

    # --- state

    def whole(self, name: str, moment: str | None = None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter: Any = self.trained[name]
        if self._stage == 0:
            return parameter.detach() if moment is None else self._optimizer.state[parameter][moment]  # type: ignore[no-any-return]
        whole = (
            safe_get_full_fp32_param(parameter) if moment is None else safe_get_full_optimizer_state(parameter, moment)
        )
        return whole.view(self._shape(parameter))  # type: ignore[no-any-return]

    def put(self, name: str, whole: Tensor, moments: Mapping[str, Tensor]) -> None:
        parameter = self.trained[name]
        self._put(parameter, whole)
        for kind, moment in moments.items():
            self._put_moment(parameter, kind, moment)

    def set_updates(self, updates: int) -> None:
        for flat in self._stepped():
            self._config.set_step(self._optimizer, flat, updates)

    def lr_of_group(self) -> dict[str, float]:
        return lr_of_group(self._optimizer)

    def replicated(self) -> dict[str, Tensor]:
        return {} if self._stage == 3 else dict(self._deepspeed.module.named_parameters())

    @contextmanager
    def embedding(self) -> Iterator[Callable[[Tensor], Tensor]]:
        if self._stage < 3:
            yield self._deepspeed.module
            return
        import torch

        yield self._in_step
        with torch.no_grad():
            while side := self._largest(0):  # a rank that has no more images goes along with those that have
                self._deepspeed.module(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self._world.device))

    def _in_step(self, image_NCHW: Tensor) -> Tensor:
        """Under stage 3 a forward gathers weights from all ranks: all of them do one, or none does."""
        self._largest(image_NCHW.shape[-1])
        emb_ND: Tensor = self._deepspeed.module(image_NCHW)
        return emb_ND

    def _largest(self, side: int) -> int:
        import torch

        return int(self._world.max(torch.tensor(side)).item())

    def close(self) -> None:
        self._deepspeed.destroy()
        if self._nvme:
            shutil.rmtree(self._nvme, ignore_errors=True)
        if self._stage == 3:  # DeepSpeed 0.19 leaves the module there, and with it the whole engine
            from deepspeed.runtime.zero import parameter_offload

            parameter_offload.FWD_MODULE_STACK.clear()

    def _put(self, parameter: Any, whole: Tensor) -> None:
        """Into ZeRO's float32 copy and into the weights that the forward uses."""
        import deepspeed
        import torch
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(whole)
        if self._stage == 3:
            safe_set_local_fp32_param(parameter, self._my_part(parameter, whole))
        elif self._stage > 0:
            safe_set_full_fp32_param(parameter, whole)

    def _put_moment(self, parameter: Any, kind: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self._stage == 0:
            self._optimizer.state[parameter][kind].copy_(whole)
        elif self._stage == 3:
            safe_set_local_optimizer_state(parameter, self._my_part(parameter, whole), kind)
        else:
            safe_set_full_optimizer_state(parameter, whole, kind)

    def _my_part(self, parameter: Any, whole: Tensor) -> Tensor:
        """This rank's slice of a tensor under stage 3: equal slices, the last one padded with zeros.

        DeepSpeed 0.19's own `safe_set_full_*` forgets the padding and fails where the ranks do not divide the tensor.
        """
        size = parameter.ds_tensor.ds_numel
        padded = whole.new_zeros(size * self._world.size)
        padded[: whole.numel()] = whole.flatten()
        return padded[size * self._world.rank :][:size]

    def _make_moments(self) -> None:
        """The optimizer's state before its first step: a resumed run puts its values there.

        Without a resume too: ZeRO 1 and 2 link moments to tensors once, after the first group's step, when the later
        groups have none yet; those would stay unreadable (DeepSpeed 0.19).
        """
        for flat in self._stepped():
            self._config.make_state(self._optimizer, flat, step=0, moments=None)
        if self._stage in (1, 2):
            self._deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def _stepped(self) -> Iterator[Any]:
        """What torch's optimizer steps: our tensors at stage 0, ZeRO's flat partitions else, each in memory for its turn."""
        if self._stage < 3:
            for group in self._optimizer.param_groups:
                yield from group["params"]
            return
        zero = self._deepspeed.optimizer
        for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
            is_away = zero._swappable_optimizer_subgroup(index)  # on NVMe: it has no entries until it is brought in
            if is_away:
                zero._optimizer_states_and_gradient_swap_in(index)
            yield flat
            if is_away:
                zero._optimizer_states_and_gradient_swap_out(index)

    def _shape(self, parameter: Any) -> Any:
        return parameter.ds_shape if self._stage == 3 else parameter.shape
