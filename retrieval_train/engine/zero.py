"""DeepSpeed ZeRO, the engine that users run: its options, all typed, and the configuration that DeepSpeed makes of them.

How it is driven is in `sharded`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from retrieval_train.config import Section, place
from retrieval_train.engine.engine import EngineConfig

if TYPE_CHECKING:
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

    ranks_with_all_weights: int = Field(default=1, ge=1, json_schema_extra=place())
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
    weights: Literal["fp32", "bf16"] = "fp32"
    """bf16: the forward's weights and the backward's gradients in 16 bits, with float32 copies that ZeRO shares out: half the
    memory of both. Stages 2 and 3, with precision bf16."""
    bucket_mb: float = Field(default=200, gt=0, json_schema_extra=place())
    """Size of the buffers in which gradients and weights travel."""
    overlap: bool | None = Field(default=None, json_schema_extra=place())
    """Gradients travel while the backward goes on; twice the buffers at stages 1 and 2. Null: where there are GPUs."""
    live_mb: float = Field(default=2000, ge=0, json_schema_extra=place())
    """Stage 3: gathered weights that may stay for their next use; 0 frees each after its use."""
    offload: Offload = Field(default=Offload(), json_schema_extra=place())
    """What is kept off the GPU."""
    plus_plus: PlusPlus = PlusPlus()
    """ZeRO++."""

    def problems(self) -> list[tuple[str, str]]:
        return [*super().problems(), *self._offload_problems(), *self._stage_problems()]

    def _stage_problems(self) -> Iterator[tuple[str, str]]:
        if self.weights == "bf16" and self.stage < 2:
            yield "weights", f"bf16 is for stages 2 and 3, this is stage {self.stage}; set engine.stage=2"
        if self.weights == "bf16" and self.precision != "bf16":
            yield "weights", f"bf16 needs precision bf16, this is {self.precision}; set engine.precision=bf16"
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

    def overlaps(self, *, on_gpu: bool) -> bool:
        return on_gpu if self.overlap is None else self.overlap

    def memory(self, *, on_gpu: bool) -> dict[str, Any]:
        bucket_bytes = int(self.bucket_mb * 2**20)
        return {
            "stage": self.stage,
            "weight_bytes": 2 if self.weights == "bf16" else 4,
            "optimizer": self.offload.optimizer or "device",
            "weights": self.offload.weights or "device",
            "bucket_bytes": bucket_bytes * (2 if self.overlaps(on_gpu=on_gpu) and self.stage in (1, 2) else 1),
            "max_live": int(self.live_mb * 2**20 / 4),
        }

    def deepspeed_json(self, *, on_gpu: bool, nvme: Path | None = None) -> dict[str, Any]:
        """DeepSpeed's own configuration. Batch sizes are ours to keep: rows per rank may differ, so it is told 1."""
        bucket, live = int(self.bucket_mb * 2**20 / 4), int(self.live_mb * 2**20 / 4)
        zero: dict[str, Any] = {
            "stage": self.stage,
            "contiguous_gradients": True,
            "overlap_comm": self.overlaps(on_gpu=on_gpu),
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        }
        if self.stage == 3:
            zero |= {
                "stage3_prefetch_bucket_size": bucket,
                "stage3_param_persistence_threshold": 100_000,  # biases and norms stay whole: a gather each is all latency
                "memory_efficient_linear": False,  # else torch's linear is replaced for the whole process, the head's too
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
                    zero[key]["nvme_path"] = str(nvme)
        of_16_bits = {
            "bf16": {"enabled": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": self.accumulate,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
            "zero_optimization": zero,
            **(of_16_bits if self.weights == "bf16" else {}),
        }

    def build(self, learner: Learner, optimizer: OptimizerConfig, schedule: Rates, *, seed: int) -> Stepper:
        from retrieval_train.engine.sharded import Sharded
        from retrieval_train.engine.stepper import Stepper

        self.prepare(learner.embedder)
        return Stepper(self, Sharded(self, learner, optimizer), learner, optimizer, schedule, seed)
