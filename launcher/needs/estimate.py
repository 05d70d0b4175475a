"""What a run needs, before it is queued: memory, hours, disk, cores; and what to change where it does not fit.

Arithmetic on the config, the manifests and a model without numbers (`jobs.training.planned`): no GPU is touched, nothing is
written. Figures are of one rank unless they say otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from jobs.evaluate import Config as Evaluate
from jobs.job import JobConfig
from jobs.train import Config as Train
from launcher.needs import gpus
from launcher.needs.gpus import Gpu
from launcher.needs.throughput import Throughput, assumed, given, measured
from launcher.plan import Plan

if TYPE_CHECKING:
    from jobs.training.planned import Planner

GIB = 2**30
ROOM = 0.9
"""Share of a device that may be planned with: the rest is its context, communication and what lies between blocks."""
CORE_FULL, CORE_SMALL = 473, 1384
"""Images a second of a core, of full-size photos and of 256 px: docs/data.md, one machine (AMD EPYC), random crops."""


@dataclass(frozen=True)
class Estimate:
    """Bytes, but where a name says otherwise."""

    job: str
    ranks: int
    note: str = ""
    """Where nothing is estimated: why."""
    trained: int = 0
    """Parameters, those of class centres left out."""
    parameters: int = 0
    centres: int = 0
    """Parameters of class centres, over all ranks."""
    classes: int = 0
    device: str = ""
    """What a rank runs on, in words."""
    capacity: int | None = None
    """Memory of a rank's device; None: not known."""
    parts: Mapping[str, int] | None = None
    """Of the memory of a rank."""
    total: int = 0
    """The most at a time: not the sum of the parts, which are not all there together."""
    host: int = 0
    """Memory of the host for what a GPU rank offloads."""
    total_of_stage: Mapping[int, int] | None = None
    """The same with each ZeRO stage; None: another engine."""
    steps: int = 0
    images: int = 0
    epochs: float | None = None
    flops: float = 0.0
    """Of the whole run, over all ranks."""
    throughput: Throughput | None = None
    checkpoint: int = 0
    """Of one."""
    checkpoints: int = 0
    """How many are on disk at the end."""
    advice: tuple[str, ...] = ()
    """Settings that would fit, the mildest first."""
    problem: tuple[str, str] | None = None
    """Why it cannot run: (key, what to do)."""

    @property
    def hours(self) -> float | None:
        return self.images / self.throughput.images_per_s / 3600 if self.throughput else None

    @property
    def gpu_hours(self) -> float | None:
        return None if self.hours is None else self.hours * self.ranks

    @property
    def cores_per_rank(self) -> tuple[float, float] | None:
        """That keep up with the throughput: for full-size photos and for images of 256 px."""
        if self.throughput is None:
            return None
        per_rank = self.throughput.images_per_s / self.ranks
        return per_rank / CORE_FULL, per_rank / CORE_SMALL


def of(config: JobConfig, plan: Plan, *, gpu: str | None = None, images_per_s: float | None = None) -> Estimate:
    """The estimate of a checked config; of jobs that do not train a sentence instead.

    `gpu`: a name or a number of GB, else that of the cluster's file; `images_per_s`: of the whole run. Raises ConfigError
    for a GPU that is not known, ValueError for a model that cannot be built.
    """
    if isinstance(config, Evaluate):
        return Estimate(config.job, plan.num_ranks, note=_of_evaluation(config))
    if not isinstance(config, Train):
        return Estimate(config.job, plan.num_ranks, note=f"no estimate: the job {config.job} trains nothing")
    text = gpu or plan.gpu
    return _of_training(config, plan, gpus.find(text) if text and plan.gpus_per_node else None, images_per_s)


def _of_evaluation(config: Evaluate) -> str:
    """What is embedded, and how large that is."""
    shards = config.data.manifest(config.shards_root).select(config.data.split)
    images = sum(shard.samples for shard in shards)
    exports = [config.model, *config.compare.values()]
    weights = sum(file.stat().st_size for folder in exports for file in folder.glob("*.safetensors"))
    models = f"{len(exports)} model" + ("s" if len(exports) > 1 else "")
    return (
        f"{images:,} images of {config.data.set}/{config.data.split} through {models} ({_bytes(weights)} of weights) and "
        f"{len(config.baselines)} baselines, {config.embed.batch} at a time on each rank; memory is not estimated"
    )


def _of_training(config: Train, plan: Plan, gpu: Gpu | None, images_per_s: float | None) -> Estimate:
    from jobs.training.planned import Planner, Ranks, images_of_step
    from launcher.needs.amount import amount_of
    from launcher.needs.fitting import settings_that_fit, total_of_stage

    amount = amount_of(config)
    ranks = Ranks(plan.nodes, plan.tasks_per_node, on_gpu=plan.gpus_per_node > 0)
    planner = Planner(config, ranks, num_classes=amount.classes, num_domains=amount.domains, half=_half(gpu))
    need, capacity = planner.need(config), _capacity(plan, gpu)
    sizes, moments = planner.sizes, len(config.optimizer.moments)
    flops = _flops(config, planner, amount.steps)
    rows = images_of_step(config) / config.data.batch
    throughput = given(images_per_s) or measured(config, plan, gpu)
    throughput = throughput or assumed(
        gpu, config.engine.precision, plan.num_ranks, flops / (amount.steps * config.data.batch)
    )
    advice: tuple[str, ...] = ()
    if capacity is not None and need.total > ROOM * capacity:
        advice = settings_that_fit(config, planner, room=int(ROOM * capacity))
    return Estimate(
        job=config.job,
        ranks=plan.num_ranks,
        trained=sizes.trained,
        parameters=sizes.trained + sizes.frozen,
        centres=planner.centre_bytes() // 4,
        classes=amount.classes,
        device=_device(plan, gpu),
        capacity=capacity,
        parts=need.parts(),
        total=need.total,
        host=need.host,
        total_of_stage=total_of_stage(config, planner),
        steps=amount.steps,
        images=int(amount.steps * config.data.batch * rows),
        epochs=amount.epochs,
        flops=flops,
        throughput=throughput,
        checkpoint=4 * sizes.trained * (1 + moments) + planner.centre_bytes() * (1 + moments) + sizes.buffers,
        checkpoints=_kept(config, amount.steps),
        advice=advice,
        problem=_problem(need.total, capacity, _device(plan, gpu), advice) or _host_problem(need.host, plan),
    )


def _half(gpu: Gpu | None) -> Literal["bf16", "fp16"]:
    """V100s and T4s multiply in fp16 only."""
    from retrieval_train.engine.flops import peak_flops

    name = gpu.device_name if gpu else None
    return "fp16" if name and peak_flops(name, "bf16") is None else "bf16"


def _capacity(plan: Plan, gpu: Gpu | None) -> int | None:
    """Of a rank's device; on CPUs its share of the node's memory."""
    if plan.gpus_per_node:
        return int(gpu.gib * GIB) if gpu else None
    if plan.mem_gb:
        return int(plan.mem_gb * GIB / plan.tasks_per_node)
    if plan.scheduler == "local":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // plan.tasks_per_node
    return None


def _device(plan: Plan, gpu: Gpu | None) -> str:
    if plan.gpus_per_node:
        return f"a GPU ({gpu.name})" if gpu else "a GPU"
    return "a CPU rank"


def _problem(total: int, capacity: int | None, device: str, advice: tuple[str, ...]) -> tuple[str, str] | None:
    """None where it fits, or only just: an estimate may be some percent off."""
    if capacity is None or total <= capacity:
        return None
    instead = " or ".join(advice) or "no setting would do: take more ranks, a larger device, a smaller model or images"
    text = f"{device} has {_bytes(capacity)}, and each rank needs about {_bytes(total)}; {instead}"
    return "memory", text


def _host_problem(host: int, plan: Plan) -> tuple[str, str] | None:
    """Of what GPU ranks put into their node's memory."""
    needed = host * plan.tasks_per_node
    if not host or not plan.mem_gb or needed <= plan.mem_gb * GIB:
        return None
    text = f"{plan.mem_gb:g} GB a node, and what its ranks offload is {_bytes(needed)}; ask for more, or for more nodes"
    return "--mem", text


def _flops(config: Train, planner: Planner, steps: int) -> float:
    """Of the whole run."""
    from jobs.training.planned import images_of_step

    of_px, stretches, begun = planner.flops_of_px(), config.data.resolutions, 0.0
    of_image = 0.0 if stretches else of_px[config.backbone.image_px].training
    for stretch in stretches:
        of_image += (stretch.until - begun) * of_px[stretch.px].training
        begun = stretch.until
    return steps * (images_of_step(config) * of_image + planner.head_flops())


def _kept(config: Train, steps: int) -> int:
    """Checkpoints at the end of the run: the newest, those that stay for good, the best one."""
    saving = config.checkpoint
    written = -(-steps // saving.every_steps)
    for_good = steps // saving.keep_every if saving.keep_every else 0
    return min(written, saving.keep + for_good + (1 if config.evaluate else 0))


# --- in words


def as_dict(estimate: Estimate) -> dict[str, Any]:
    """For plan.json."""
    found = asdict(estimate)
    return found | {"hours": estimate.hours, "gpu_hours": estimate.gpu_hours, "cores_per_rank": estimate.cores_per_rank}


def in_words(estimate: Estimate) -> str:
    """A few lines for the terminal."""
    if estimate.note:
        return f"estimate {estimate.note}"
    one = estimate
    lines = [
        f"model    {one.trained:,} of {one.parameters:,} parameters are trained; {one.classes:,} classes, "
        f"{one.centres:,} parameters of class centres",
        f"memory   {_bytes(one.total)} for each rank, at most; {_against(one)}",
        *_wrapped([f"{name} {_bytes(size)}" for name, size in (one.parts or {}).items() if size]),
    ]
    if one.host:
        lines.append(f"         and {_bytes(one.host)} of the host's for what is offloaded")
    if one.total_of_stage:
        stages = ", ".join(f"{stage}: {_bytes(total)}" for stage, total in one.total_of_stage.items())
        lines.append(f"         by ZeRO stage: {stages}")
    lines += [f"         {'would fit' if number == 0 else 'or'}: {advice}" for number, advice in enumerate(one.advice)]
    lines.append(
        f"length   {one.steps:,} steps, {one.images:,} images"
        + (f", {one.epochs:.3g} epochs" if one.epochs is not None else "")
        + f", {one.flops:.2g} FLOPs"
    )
    lines += _time_lines(one)
    lines.append(
        f"disk     {_bytes(one.checkpoint)} a checkpoint, {one.checkpoints} kept; {_bytes(4 * one.parameters)} the export"
    )
    return "\n".join(lines)


def _against(one: Estimate) -> str:
    if one.capacity is not None:
        word = (
            "does not fit" if one.total > one.capacity else "fits" if one.total <= ROOM * one.capacity else "is tight"
        )
        return f"{word}: {one.device} has {_bytes(one.capacity)}"
    if one.device != "a GPU":
        return "of how much is not known"
    fits = [gpu.name for gpu in gpus.KNOWN if one.total <= ROOM * gpu.gib * GIB]
    return f"fits {', '.join(fits)}" if fits else "fits no GPU that is known here"


def _time_lines(one: Estimate) -> list[str]:
    if one.throughput is None or one.hours is None or one.gpu_hours is None or one.cores_per_rank is None:
        return ["time     not known: no run of this model is there to go by; say --images-per-s, or --gpu"]
    unit = "of GPUs" if "GPU" in one.device else "of ranks"
    full, small = one.cores_per_rank
    return [
        f"time     {_hours(one.hours)}, {_hours(one.gpu_hours)} {unit} at {one.throughput.images_per_s:,.0f} images/s "
        f"({one.throughput.source})",
        f"cores    {full:.1f} a rank keep up for full-size photos, {small:.1f} for images of 256 px "
        f"({CORE_FULL} and {CORE_SMALL:,} images/s a core, as docs/data.md measured)",
    ]


def _wrapped(words: list[str], *, width: int = 110) -> list[str]:
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += (", " if lines[-1] else "") + word
    return [f"         {line}" for line in lines]


def _bytes(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _hours(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 1 else f"{hours * 60:.3g} min" if hours >= 1 / 60 else f"{hours * 3600:.3g} s"
