"""What watchers make of a report."""

from __future__ import annotations

import numpy as np

from retrieval_train.engine.engine import Report
from retrieval_train.engine.watchers import Follow
from retrieval_train.world import Alone
from tests.retrieval_train.data.order.test_dealt import loss_driven


def report_of(step: int, loss_of_domain: dict[str, float], *, skipped: str = "") -> Report:
    spans = dict.fromkeys(("step_s", "wait_s", "forward_s", "backward_s", "update_s", "embed_s"), 0.01)
    counts = {"step": step, "images": 40, "rows": 40, "image_px": 16}
    figures = {"loss": 1.0, "lr_of_group": {"neck": 0.1}, "grad_norm": 1.0, "loss_of_domain": loss_of_domain}
    return Report(**counts, **spans, **figures, skipped=skipped)  # type: ignore[arg-type]


def test_shares_are_settled_at_a_step_that_is_left_out_too_by_the_losses_before_it() -> None:
    order = loss_driven()
    follow = Follow(order, Alone())
    for step in range(1, 64):
        follow.after(report_of(step, {"set0": 1.0, "set1": 3.0}))
    follow.after(report_of(64, {"set0": float("nan"), "set1": 3.0}, skipped="loss"))
    assert np.bincount(order.batch_rows(128)[0], minlength=2).tolist() == [10, 30]
