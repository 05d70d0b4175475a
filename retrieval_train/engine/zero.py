"""DeepSpeed ZeRO, the engine that users run: the embedder is DeepSpeed's, the class centres stay outside.

What DeepSpeed is given it broadcasts from rank 0 and averages, which would destroy centres that differ by rank. So a
step has two halves that share one backward, one norm and one learning-rate factor:

    backward(loss x W)      DeepSpeed averages over the W ranks, our gradients are shares that must be summed
    norm over both halves   DeepSpeed's own clipping is off; a hook before its optimizer's step scales the gradients
    DeepSpeed steps, then the centres step

Checkpoints are read from and put back into ZeRO tensor by tensor, whole and float32, so that any stage and world size
loads any other's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from retrieval_train.engine.engine import EngineConfig, NotFinite, Report
from retrieval_train.engine.params import MOMENTS, Optimizer, clip_factor, set_lr, squared_norm
from retrieval_train.engine.schedule import Schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from retrieval_train.data.batch import Batch
    from retrieval_train.learner import Learner


class Config(EngineConfig):
    """ZeRO by stage: 0 shares nothing, 1 the optimizer's state, 2 also the gradients, 3 also the weights."""

    name: Literal["zero"] = "zero"
    """The engine."""
    stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage."""
    bucket_mb: float = Field(default=200, gt=0)
    """Size of the buffers in which gradients and weights travel."""

    def deepspeed_json(self) -> dict[str, Any]:
        """DeepSpeed's own configuration. Batch sizes are ours to keep: rows per rank may differ, so it is told 1."""
        bucket = int(self.bucket_mb * 2**20 / 4)
        values: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": self.accumulate,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
            "zero_optimization": {
                "stage": self.stage,
                "contiguous_gradients": True,
                "overlap_comm": False,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
            },
        }
        if self.stage == 3:
            values["zero_optimization"] |= {
                "stage3_prefetch_bucket_size": bucket,
                "stage3_param_persistence_threshold": 0,
            }
        return values

    def build(self, learner: Learner, optimizer: Optimizer, schedule: Schedule, *, seed: int) -> Zero:
        return Zero(self, learner, optimizer, schedule, seed=seed)


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


class Zero:
    def __init__(
        self, config: Config, learner: Learner, optimizer: Optimizer, schedule: Schedule, *, seed: int
    ) -> None:
        from retrieval_train.engine.centre_step import CentreStep

        keep_compiled_ops_with_this_python()
        import deepspeed

        self.step = 0
        self._config, self._learner, self._schedule, self._seed = config, learner, schedule, seed
        self._world = learner.world
        learner.embedder.bf16 = config.precision == "bf16"  # type: ignore[assignment]
        self._centres = CentreStep(learner.head, optimizer, self._world)
        self._trained = {name: p for name, p in learner.embedder.named_parameters() if p.requires_grad}
        self._optimizer = optimizer.build(optimizer.groups(learner.embedder))
        self._optimizer.register_step_pre_hook(self._clip)
        self._deepspeed, *_ = deepspeed.initialize(
            model=learner.embedder,
            optimizer=self._optimizer,
            config=config.deepspeed_json(),
            dist_init_required=False,
        )
        self._make_moments()
        self._norm = 0.0
        self._clip_factor: float | None = None
        self._centres_squared = 0.0

    # --- stepping

    def train_step(self, micro_batches: Sequence[Batch]) -> Report:
        from retrieval_train.engine.forward import DomainLosses, global_loss, seeded

        assert len(micro_batches) == self._config.accumulate, "DeepSpeed counts the micro-batches of a step"
        started = time.perf_counter()
        seeded(self._seed, self.step, self._world.rank)
        factor = self._schedule.factor(self.step)
        set_lr(self._optimizer, factor)
        loss, domain_losses = 0.0, DomainLosses(self._learner.domains)
        for index, batch in enumerate(micro_batches):
            part, of_domain_2M = global_loss(self._learner, self._deepspeed, batch)
            domain_losses.add(of_domain_2M)
            if not part.isfinite():  # the same number on every rank, so all stop here
                raise NotFinite(f"loss {part.item()} at step {self.step}")
            self._deepspeed.backward(part * self._world.size, scale_wrt_gas=False)
            loss += part.item()
            if index == len(micro_batches) - 1:
                self._centres_squared = float(self._centres.squared_norm(scale=self._world.size))
                self._clip_factor = None
            self._deepspeed.step()
        if self._clip_factor is None:
            raise NotFinite(f"gradient at step {self.step}: DeepSpeed left its step out")
        self._centres.step(lr_factor=factor, clip_factor=self._clip_factor)
        self.step += 1
        lr = max(group["lr"] for group in self._optimizer.param_groups)
        return Report.of(
            micro_batches,
            step=self.step,
            loss=loss,
            lr=lr,
            grad_norm=self._norm,
            step_s=time.perf_counter() - started,
            loss_of_domain=domain_losses.means(),
        )

    def _clip(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Runs right before torch's own step, once per call: ZeRO calls it once for every group it steps."""
        if self._clip_factor is None:  # the first group of this step
            if self._config.stage == 0:
                embedder_squared = float(squared_norm(p.grad for p in self._trained.values()))
            else:
                embedder_squared = float(self._deepspeed.optimizer._global_grad_norm) ** 2
            self._norm = (embedder_squared + self._centres_squared) ** 0.5
            self._clip_factor = clip_factor(self._norm, self._config.clip_norm)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(self._clip_factor)

    # --- state

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        from retrieval_train.engine import checkpoint

        weights = self.trained_weights()
        if self._world.rank == 0:
            checkpoint.write_tensors(folder / "model.safetensors", weights)
        mine = {}
        for index, (name, parameter) in enumerate(self._trained.items()):
            for kind in MOMENTS:
                whole = self._whole(parameter, kind)
                if index % self._world.size == self._world.rank:
                    mine[f"{name}.{kind}"] = whole.cpu()
        checkpoint.write_tensors(folder / f"optimizer-{self._world.rank:05d}.safetensors", mine)
        checkpoint.write_buffers(folder, self._learner.embedder, self._world)
        self._centres.save(folder)
        self._world.barrier()
        if self._world.rank == 0:
            checkpoint.seal(folder, {"step": self.step, "extra": extra})
        self._world.barrier()

    def load(self, folder: Path) -> dict[str, Any]:
        from retrieval_train.engine import checkpoint

        state = checkpoint.read_state(folder)
        weights = checkpoint.Tensors(folder, "model.safetensors")
        moments = checkpoint.Tensors(folder, "optimizer-*.safetensors")
        checkpoint.check_names(folder, weights.names(), set(self._trained))
        for flat in self._stepped():
            self._optimizer.state[flat]["step"].fill_(float(state["step"]))
        for name, parameter in self._trained.items():
            self._put(parameter, weights[name].to(self._world.device))
            for kind in MOMENTS:
                self._put_moment(parameter, kind, moments[f"{name}.{kind}"].to(self._world.device))
        checkpoint.read_buffers(folder, self._learner.embedder)
        self._centres.load(folder, updates=state["step"])
        self.step = state["step"]
        extra: dict[str, Any] = state["extra"]
        return extra

    def trained_weights(self) -> dict[str, Tensor]:
        wholes = {}
        for name, parameter in self._trained.items():
            whole = self._whole(parameter)
            if self._world.rank == 0:
                wholes[name] = whole.detach().float().cpu().clone()
        return wholes

    def close(self) -> None:
        self._deepspeed.destroy()

    def _whole(self, parameter: Tensor, kind: str | None = None) -> Tensor:
        """A trained tensor, or one of its moments, whole and float32 on every rank. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self._config.stage == 0:
            return parameter.detach() if kind is None else self._optimizer.state[parameter][kind]
        whole = safe_get_full_fp32_param(parameter) if kind is None else safe_get_full_optimizer_state(parameter, kind)
        return whole.view(self._shape(parameter))  # type: ignore[no-any-return]

    def _put(self, parameter: Any, whole: Tensor) -> None:
        """Into ZeRO's float32 copy and into the weights that the forward uses."""
        import deepspeed
        import torch
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(whole)
        if self._config.stage == 3:
            safe_set_local_fp32_param(parameter, self._my_part(parameter, whole))
        elif self._config.stage > 0:
            safe_set_full_fp32_param(parameter, whole)

    def _put_moment(self, parameter: Any, kind: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self._config.stage == 0:
            self._optimizer.state[parameter][kind].copy_(whole)
        elif self._config.stage == 3:
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
        """AdamW's state before its first step: a resumed run puts its values there.

        Without a resume too: ZeRO 1 and 2 link moments to tensors once, after the first group's step, when the later
        groups have none yet; those would stay unreadable (DeepSpeed 0.19).
        """
        import torch

        for flat in self._stepped():
            moments = {kind: torch.zeros_like(flat) for kind in MOMENTS}
            self._optimizer.state[flat] = {"step": torch.tensor(0.0), **moments}
        if self._config.stage in (1, 2):
            self._deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def _stepped(self) -> Iterator[Any]:
        """The tensors that torch's optimizer steps: ours at stage 0, ZeRO's flat partitions else."""
        if self._config.stage == 3:
            yield from self._deepspeed.optimizer.fp32_partitioned_groups_flat
        else:
            for group in self._optimizer.param_groups:
                yield from group["params"]

    def _shape(self, parameter: Any) -> Any:
        return parameter.ds_shape if self._config.stage == 3 else parameter.shape
