"""`status.py seen`: which steps of a run trained on an image, or which images a step trained on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from retrieval_train.rundir import RunDir, read_json

if TYPE_CHECKING:
    from retrieval_train.data.order.order import Order
    from retrieval_train.data.worker import Stream


def show_key(run: RunDir, key: str) -> None:
    """Prints when the run trained on the image with this key."""
    from rich.console import Console
    from rich.progress import Progress

    from retrieval_train.data.ledger import find_key, replaced_rows

    stream, steps = _opened(run)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("steps", total=steps)
        watch = lambda done: progress.update(task, completed=done)  # noqa: E731 - a callback
        found = list(find_key(stream, key, range(steps), replaced_rows(run.bad), watch))
    times = f"{len(found)} times" if len(found) != 1 else "once"
    print(f"{run.path.name} trained on {key} {times} in {steps} steps" + (":" if found else ""))
    for seen in found:
        print(f"step {seen.step + 1}, row {seen.row}, epoch {seen.step // stream.order.epoch_steps + 1}")


def show_step(run: RunDir, step: int) -> None:
    """Prints the key of every row of a step; steps count from 1, as in metrics.jsonl."""
    from retrieval_train.data.ledger import keys_of_step, replaced_rows, written

    stream, steps = _opened(run)
    if not 1 <= step <= steps:
        raise ValueError(f"no step {step}: {run.path.name} can tell of steps 1 to {steps}")
    for row, key in enumerate(keys_of_step(stream, step - 1, replaced_rows(run.bad))):
        print(f"{row}\t{written(key)}")


def _opened(run: RunDir) -> tuple[Stream, int]:
    """The labelled stream of a training run, and of how many steps its samples are known."""
    import jobs.train
    from jobs.job import enter_submit_folder, load
    from retrieval_train.data.loader import build_loader
    from retrieval_train.world import Alone

    enter_submit_folder(run)
    config = load(run)
    if not isinstance(config, jobs.train.Config):
        raise ValueError(f"{run.path.name} is a run of job {config.job}; only train runs see images in steps")
    if config.data.foreign is not None:
        raise ValueError(
            f"{run.path.name} streamed tars without sidecars: which image came when is known only where data.ledger=true "
            f"wrote it down, in {run.ledger}"
        )
    # nothing is trained here: no room for decoded images, no copies of tars
    data = config.data.model_copy(
        update={"cache_gb": 0, "store": config.data.store.model_copy(update={"scratch": None})}
    )
    image_px = config.backbone.image_px
    loader = build_loader(data, config.shards_root, Alone(), image_px=image_px, accumulate=1, seed=config.seed)
    if run.sets.is_file():
        jobs.train.check_sets(loader.sets, run)
    if (latest := run.latest_checkpoint()) is not None:
        loader.order.take_state(read_json(latest / "state.json")["extra"].get("order", {}))
    return loader.streams[0], _known(loader.order, run)


def _known(order: Order, run: RunDir) -> int:
    """The steps that the run has done, but for those that only its next checkpoint will tell of."""
    from retrieval_train.data.order.loss_driven import LossDriven

    if not run.metrics.is_file():
        print(f"{run.path.name} has not done a step yet", file=sys.stderr)
        return 0
    with run.metrics.open(encoding="utf-8") as lines:
        done = sum(1 for line in lines if line.endswith("\n"))
    if not isinstance(order, LossDriven):
        return done
    known = min(done, len(order.state()["shares"]) * order.every)
    if known < done:
        print(
            f"{run.path.name} has done {done} steps; the shares of those behind step {known} come with its next checkpoint",
            file=sys.stderr,
        )
    return known
