"""DeepSpeed ZeRO, the engine that users run: the embedder is DeepSpeed's, the class centres stay outside.

What DeepSpeed is given it broadcasts from rank 0 and averages, which would destroy centres that differ by rank. So a
step has two halves that share one backward, one norm, one clipping factor and one decision:

    backward(loss x W)      DeepSpeed averages over the W ranks, our gradients are shares that must be summed
    gate                    where DeepSpeed would step torch's optimizer, `Stepper` decides: scale and step, or leave it out
    DeepSpeed steps, then the centres step

Tensors and moments are read from and put back into ZeRO one by one, whole and float32, so that any stage and world size
loads any other's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from retrieval_train.config import Section, place
from retrieval_train.engine.engine import EngineConfig
from retrieval_train.engine.half import Decide
from retrieval_train.engine.params import lr_of_group, set_lr, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_train.engine.optimizers.optimizer import OptimizerConfig
    from retrieval_train.engine.schedule import Rates
    from retrieval_train.engine.stepper import Stepper
    from retrieval_train.learner import Learner


Away = Literal["cpu", "nvme"]


class Offload(Section):
    """What is kept off the GPU. Slower; for what does not fit otherwise."""

    optimizer: Away | None = None
    """Float32 copies and moments, stepped by the CPU: stage 1 and up; nvme stage 3 only."""
    weights: Away | None = None
    """This rank's part of the weights: stage 3."""
    nvme: Path | None = None
    """A folder on a fast local disk, for what is on nvme."""


class PlusPlus(Section):
    """ZeRO++ (Wang et al., 2023): less traffic between nodes under stage 3."""

    ranks_with_all_weights: int = Field(default=1, ge=1)
    """Ranks that hold a second, whole copy of the weights together, for the backward: those of a node."""
    quantized_weights: bool = False
    """Weights travel in 8 bits. GPUs only."""
    quantized_gradients: bool = False
    """Gradients travel in 4 bits between nodes. GPUs only."""


class Config(EngineConfig):
    """ZeRO by stage: 0 shares nothing, 1 the optimizer's state, 2 also the gradients, 3 also the weights."""

    name: Literal["zero"] = "zero"
    """The engine."""
    stage: Literal[0, 1, 2, 3] = Field(default=2, json_schema_extra=place())
    """ZeRO stage."""
    bucket_mb: float = Field(default=200, gt=0, json_schema_extra=place())
    """Size of the buffers in which gradients and weights travel."""
    overlap: bool | None = Field(default=None, json_schema_extra=place())
    """Gradients travel while the backward goes on; twice the buffers at stages 1 and 2. Null: on GPUs."""
    live_mb: float = Field(default=2000, ge=0, json_schema_extra=place())
    """Stage 3: gathered weights that may stay for their next use; 0 frees each after its use."""
    offload: Offload = Field(default=Offload(), json_schema_extra=place())
    """What is kept off the GPU."""
    plus_plus: PlusPlus = Field(default=PlusPlus(), json_schema_extra=place())
    """ZeRO++."""

    def problems(self) -> list[tuple[str, str]]:
        return [*super().problems(), *self._offload_problems(), *self._stage_problems()]

    def _stage_problems(self) -> Iterator[tuple[str, str]]:
        if self.plus_plus != PlusPlus() and self.stage != 3:
            yield "plus_plus", f"is for stage 3, this is stage {self.stage}; set engine.stage=3 or leave it out"
        if self.compile and self.stage == 3:
            text = "stage 3 fetches each layer's weights as it is called, which torch.compile cannot see; use stage 2 or less"
            yield "compile", text

    def _offload_problems(self) -> Iterator[tuple[str, str]]:
        offload, stage = self.offload, self.stage
        if offload.optimizer and stage == 0:
            yield "offload.optimizer", "stage 0 leaves the optimizer to torch; set engine.stage to 1, 2 or 3"
        if offload.optimizer == "nvme" and stage != 3:
            yield "offload.optimizer", f"nvme is for stage 3, this is stage {stage}; set engine.stage=3, or take cpu"
        if offload.weights and stage != 3:
            yield "offload.weights", f"only stage 3 shares the weights out, this is stage {stage}; set engine.stage=3"
        if "nvme" in (offload.optimizer, offload.weights) and offload.nvme is None:
            yield "offload.nvme", "is needed: a folder on a local disk of every node, as /scratch/$USER"

    def memory(self) -> dict[str, Any]:
        bucket_bytes = int(self.bucket_mb * 2**20)
        return {
            "stage": self.stage,
            "optimizer": self.offload.optimizer or "device",
            "weights": self.offload.weights or "device",
            "bucket_bytes": bucket_bytes * (2 if self.overlap and self.stage in (1, 2) else 1),
            "max_live": int(self.live_mb * 2**20 / 4),
        }

    def deepspeed_json(self, *, on_gpu: bool) -> dict[str, Any]:
        """DeepSpeed's own configuration. Batch sizes are ours to keep: rows per rank may differ, so it is told 1."""
        bucket, live = int(self.bucket_mb * 2**20 / 4), int(self.live_mb * 2**20 / 4)
        zero: dict[str, Any] = {
            "stage": self.stage,
            "contiguous_gradients": True,
            "overlap_comm": on_gpu if self.overlap is None else self.overlap,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        }
        if self.stage == 3:
            zero |= {
                "stage3_prefetch_bucket_size": bucket,
                "stage3_param_persistence_threshold": 0,
                "stage3_max_live_parameters": max(live, 1),
                "stage3_max_reuse_distance": live,
                "zero_hpz_partition_size": self.plus_plus.ranks_with_all_weights,
                "zero_quantized_weights": self.plus_plus.quantized_weights,
                "zero_quantized_gradients": self.plus_plus.quantized_gradients,
            }
        for key, away in (("offload_optimizer", self.offload.optimizer), ("offload_param", self.offload.weights)):
            if away:
                zero[key] = {"device": away, "pin_memory": on_gpu}
                if away == "nvme":
                    zero[key]["nvme_path"] = str(self.offload.nvme)
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": self.accumulate,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
            "zero_optimization": zero,
        }

    def build(self, learner: Learner, optimizer: OptimizerConfig, schedule: Rates, *, seed: int) -> Stepper:
        from retrieval_train.engine.stepper import Stepper

        self.prepare(learner.embedder)
        return Stepper(self, Sharded(self, learner, optimizer), learner, optimizer, schedule, seed)


def keep_compiled_ops_with_this_python() -> None:
    """DeepSpeed compiles a small op for CPU ranks at its first use. Torch keeps it by Python version alone, so another
    torch would load it and crash: keep it in this environment instead, where that may be written."""
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))


def compile_ops() -> None:
    """Compile that op now, so that the first run does not wait for it. Needs g++ and Python's headers."""
    import torch

    if torch.cuda.is_available():
        return
    keep_compiled_ops_with_this_python()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)


class Sharded:
    """The embedder's half under ZeRO."""

    def __init__(self, config: Config, learner: Learner, optimizer: OptimizerConfig) -> None:
        keep_compiled_ops_with_this_python()
        import deepspeed

        self._stage, self._config, self._world = config.stage, optimizer, learner.world
        self.times = float(self._world.size)
        self.trained = {name: p for name, p in learner.embedder.named_parameters() if p.requires_grad}
        self._optimizer = optimizer.build(optimizer.groups(learner.embedder))
        self._decide: Decide | None = None
        self._factor: float | None = None
        self._step_optimizer = self._optimizer.step
        self._optimizer.step = self._gate  # type: ignore[method-assign]
        self._deepspeed, *_ = deepspeed.initialize(
            model=learner.embedder,
            optimizer=self._optimizer,
            config=config.deepspeed_json(on_gpu=self._world.device.type == "cuda"),
            dist_init_required=False,
        )
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
        return float(self._deepspeed.optimizer._global_grad_norm) ** 2

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
        for flat in self._stepped() if self._config.has_step else ():
            self._optimizer.state[flat]["step"].fill_(float(updates))

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
        """The tensors that torch's optimizer steps: ours at stage 0, ZeRO's flat partitions else."""
        if self._stage == 3:
            yield from self._deepspeed.optimizer.fp32_partitioned_groups_flat
        else:
            for group in self._optimizer.param_groups:
                yield from group["params"]

    def _shape(self, parameter: Any) -> Any:
        return parameter.ds_shape if self._stage == 3 else parameter.shape
