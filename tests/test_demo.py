"""What `make demo` promises, on the run that it left: CI makes the demo first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

REPORT = Path(__file__).resolve().parents[1] / "runs" / "demo-evaluation" / "report.json"


def test_the_demo_beats_the_untrained_model_everywhere_and_raw_pixels_merged() -> None:
    if not REPORT.is_file():
        pytest.skip("`make demo` has not been run in this checkout")
    report = json.loads(REPORT.read_text())
    trained, baselines = report["metrics"], report["baselines"]
    assert len(trained) >= 4, "at least three domains, and merged"
    for metric in ("mMP@5", "R@1"):
        assert all(trained[scope][metric] > baselines["untrained"][scope][metric] for scope in trained), metric
        assert trained["merged"][metric] > baselines["raw_pixels"]["merged"][metric]
        for scope in trained:
            chance, raw = baselines["chance"][scope][metric], baselines["raw_pixels"][scope][metric]
            assert 5 * chance < raw < 0.7, f"{scope}: raw pixels are neither at chance nor near perfect"
