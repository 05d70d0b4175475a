"""Images a second of a run to come: as told, as an earlier run of the same model had it, or by the GPU's peak."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.train import Config
from launcher.needs.gpus import Gpu, find
from launcher.plan import Plan
from retrieval_train.config import ConfigError, read
from retrieval_train.engine.engine import Precision
from retrieval_train.rundir import RunDir, read_json

ASSUMED_MFU = 0.35
"""Share of its peak at which a GPU is taken to work; images that come too slowly, small images and small models take less."""
LAST = 50
"""Steps of an earlier run that count: its last ones."""
MOST_ROWS = 2.0
"""By so much an earlier run's rows of a rank may differ: with more of them a device is faster, up to where it is full."""
UNKNOWN = "an unknown device"
_ENGINE = ("name", "precision", "checkpoint_activations", "compile", "stage", "offload", "accumulate")
MOST_RUNS = 200
"""So many of the newest are looked at."""


@dataclass(frozen=True)
class Throughput:
    images_per_s: float
    """Of all ranks, through the embedder: views count."""
    source: str
    """Whether it is given, measured or assumed, in words."""


def given(images_per_s: float | None) -> Throughput | None:
    """Raises ConfigError for a number that is none."""
    if images_per_s is None:
        return None
    if not images_per_s > 0:
        raise ConfigError("estimate", [("images_per_s", f"{images_per_s:g} is not above 0")])
    return Throughput(images_per_s, "given")


def measured(config: Config, plan: Plan, gpu: Gpu | None = None) -> Throughput | None:
    """By the newest run of the same model and settings on the same device, as far as that is known, with about as many rows
    a rank; as many ranks more, as much faster."""
    mine = _model(config.model_dump(mode="json"))
    rows = config.data.batch / plan.num_ranks
    folder = plan.run_dir.parent
    runs = [RunDir(path) for path in folder.iterdir() if not path.is_symlink()] if folder.is_dir() else []
    found = [(run.metrics.stat().st_mtime, run) for run in runs if run.metrics.is_file() and run.config.is_file()]
    for _, run in sorted(found, key=lambda pair: -pair[0])[:MOST_RUNS]:
        device = _device_of(run)
        if plan.gpus_per_node and _is_another(device, gpu):
            continue
        if (per_rank := _per_rank(run, mine, rows, on_gpu=plan.gpus_per_node > 0)) is not None:
            where = f"{folder.name}/{run.path.name} on {device}"
            return Throughput(per_rank * plan.num_ranks, f"measured by {where}: {per_rank:.3g} a rank")
    return None


def assumed(gpu: Gpu | None, precision: Precision, ranks: int, flops_of_image: float) -> Throughput | None:
    """None for a device whose peak is not known."""
    from retrieval_train.engine.flops import peak_flops

    peak = peak_flops(gpu.device_name, precision) if gpu and gpu.device_name else None
    if gpu is None or peak is None or not flops_of_image:
        return None
    words = f"assumed: {ASSUMED_MFU:.0%} of the peak of {gpu.name}, {peak / 1e12:.0f} TFLOP/s"
    return Throughput(ranks * ASSUMED_MFU * peak / flops_of_image, words)


def _device_of(run: RunDir) -> str:
    """What rank 0 found at the run's last start, as torch calls it."""
    try:
        first = read_json(run.preflight)["ranks"][0]
        return str(first["gpu"]["name"] if first["gpu"] else f"the CPU of {first['node']}")
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # submitted without the pre-flight, or half written
        return UNKNOWN


def _is_another(device: str, gpu: Gpu | None) -> bool:
    """Whether both are known, and not the same."""
    if device == UNKNOWN or gpu is None or gpu.device_name is None:
        return False
    try:
        return find(device).name != gpu.name
    except ConfigError:  # it is none of those that are known, and `gpu` is one
        return True


def _per_rank(run: RunDir, mine: dict[str, Any], rows: float, *, on_gpu: bool) -> float | None:
    """None: a run of something else, or one that has not measured anything."""
    try:
        plan = read_json(run.plan)
        if bool(plan["gpus_per_node"]) != on_gpu:
            return None
        text = run.config.read_text(encoding="utf-8")  # most are of other models, and reading them whole takes its time
        if not all(str(value) in text for value in mine["backbone"].values() if isinstance(value, str)):
            return None
        values = read(run.config)
        its_rows = values["data"]["batch"] / (plan["nodes"] * plan["tasks_per_node"])
        if _model(values) != mine or not 1 / MOST_ROWS <= its_rows / rows <= MOST_ROWS:
            return None
        return _last_median(run.metrics)
    except (ConfigError, OSError, ValueError, KeyError, TypeError):  # of another version, or half written
        return None


def _last_median(metrics: Path) -> float | None:
    rates = []
    for line in metrics.read_text(encoding="utf-8").splitlines()[-LAST:]:
        rate = json.loads(line).get("images_per_s_rank")
        rates += [float(rate)] if rate else []
    return statistics.median(rates[len(rates) // 10 :]) if rates else None


def _model(values: dict[str, Any]) -> dict[str, Any]:
    """What of a config decides the speed of a rank, more or less."""
    backbone = {key: value for key, value in values["backbone"].items() if key != "weights"}
    engine = {key: values["engine"].get(key) for key in _ENGINE}
    data = {"resolutions": values["data"].get("resolutions"), "views": values["data"].get("strong") is not None}
    return {"backbone": backbone, "neck": values["neck"], "lora": values.get("lora"), "engine": engine, "data": data}
