"""The curves of a training run as `report.html`."""

from __future__ import annotations

import json

from markupsafe import Markup

from retrieval_train import page
from retrieval_train.rundir import RunDir, write_text

_SHOWN = {"loss": "loss", "lr": "learning rate", "grad_norm": "gradient norm", "images_per_s": "images a second"}


def write_page(run: RunDir, *, judged: tuple[list[int], list[float]], metric: str) -> None:
    """`judged` are the steps of evaluations on the way, and their `metric`."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    curves = [page.curve({metric: judged}, ylabel=f"{metric} on the way")] if judged[0] else []
    curves += [page.curve({run.path.name: _points(lines, key)}, ylabel=y) for key, y in _SHOWN.items()]
    terms = {key.partition("/")[2]: _points(lines, key) for key in (lines or [{}])[-1] if key.startswith("loss_of/")}
    curves += [page.curve(terms, ylabel="each loss, without its weight")] if terms else []
    body = Markup("").join(curves)
    last = next((line["loss"] for line in reversed(lines) if line["loss"] is not None), float("nan"))
    images = lines[-1]["images"] if lines else 0
    lead = f"{len(lines)} steps, {images:,} images; the last loss is {last:.4f}."
    write_text(run.page, page.page(f"Training run {run.path.name}", lead=lead, sections=[page.Section("Curves", body)]))


def _points(lines: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values, where there are any."""
    there = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in there], [value for _, value in there]
