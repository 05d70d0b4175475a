"""Images a second of a run to come: as told, as an earlier run of the same model had it, or by the GPU's peak."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.train import Config
from launcher.gpus import Gpu
from launcher.plan import Plan
from retrieval_train.config import ConfigError, read
from retrieval_train.engine.engine import Precision
from retrieval_train.rundir import RunDir, read_json

ASSUMED_MFU = 0.35
"""Share of its peak at which a GPU is taken to work; images that come too slowly, small images and small models take less."""
LAST = 50
"""Steps of an earlier run that count: its last ones."""
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


def measured(config: Config, plan: Plan) -> Throughput | None:
    """By the newest run of the same model and precision on the same kind of device; as many ranks more, as much faster."""
    mine = _model(config.model_dump(mode="json"))
    folder = plan.run_dir.parent
    runs = [RunDir(path) for path in folder.iterdir() if not path.is_symlink()] if folder.is_dir() else []
    found = [(run.metrics.stat().st_mtime, run) for run in runs if run.metrics.is_file() and run.config.is_file()]
    for _, run in sorted(found, key=lambda pair: -pair[0])[:MOST_RUNS]:
        if (per_rank := _per_rank(run, mine, on_gpu=plan.gpus_per_node > 0)) is not None:
            return Throughput(per_rank * plan.num_ranks, f"measured in {run.path.name}: {per_rank:.3g} a rank")
    return None


def assumed(gpu: Gpu | None, precision: Precision, ranks: int, flops_of_image: float) -> Throughput | None:
    """None for a device whose peak is not known."""
    from retrieval_train.engine.flops import peak_flops

    peak = peak_flops(gpu.device_name, precision) if gpu and gpu.device_name else None
    if gpu is None or peak is None or not flops_of_image:
        return None
    words = f"assumed: {ASSUMED_MFU:.0%} of the peak of {gpu.name}, {peak / 1e12:.0f} TFLOP/s"
    return Throughput(ranks * ASSUMED_MFU * peak / flops_of_image, words)


def _per_rank(run: RunDir, mine: dict[str, Any], *, on_gpu: bool) -> float | None:
    """None: a run of something else, or one that has not measured anything."""
    try:
        if bool(read_json(run.plan)["gpus_per_node"]) != on_gpu:
            return None
        text = run.config.read_text(encoding="utf-8")  # most are of other models, and reading them whole takes its time
        if not all(str(value) in text for value in mine["backbone"].values() if isinstance(value, str)):
            return None
        if _model(read(run.config)) != mine:
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
    engine = {key: values["engine"].get(key) for key in ("name", "precision", "checkpoint_activations", "compile")}
    return {"backbone": backbone, "neck": values["neck"], "lora": values.get("lora"), "engine": engine}
