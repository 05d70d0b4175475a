"""Draws the pictures of docs/data.md, from the order and the augmentations themselves: `python docs/data/draw.py`.

stream.png     tars of two sets -> streams -> rows of a global batch -> ranks
presets.jpg    four draws of every preset, of one photo
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from retrieval_train.data.augment.augment import Augment
from retrieval_train.data.augment.presets import PRESETS
from retrieval_train.data.decode import decode
from retrieval_train.data.order.dealt import Dealt
from retrieval_train.data.order.order import share
from retrieval_train.data.order.pools import Pool

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
COLOURS = ("#a8d0ec", "#fdcf8a", "#b9e2a0", "#d9c3e8")
SETS = {"food": 600, "cars": 300}
SHARD, BATCH, STREAMS, STEP = 100, 12, 4, 7
INK, PALE = "#222222", "#777777"

ORDER = Dealt(
    pools=[Pool(number, name, size) for number, (name, size) in enumerate(SETS.items())],
    quotas=tuple(SETS.values()),
    components=(0, 0),
    batch=BATCH,
    seed=1,
    streams=STREAMS,
)


def opened_tars(rows: slice) -> str:
    """What whoever has these rows of every batch reads in an epoch, as `food-0 … 2`."""
    texts = []
    for number, name in enumerate(SETS):
        found: set[int] = set()
        for step in range(ORDER.epoch_steps):
            set_R, sample_R = ORDER.rows(step, np.arange(BATCH)[rows])
            found |= set((sample_R[set_R == number] // SHARD).tolist())
        texts.append(f"{name}-{min(found)} … {max(found)}" if len(found) > 1 else f"{name}-{min(found)}")
    return ", ".join(texts)


# --- tars, streams, rows, ranks


def draw_stream() -> None:
    figure, axes = plt.subplots(figsize=(9.6, 6.3))
    axes.set(xlim=(-0.2, 12.2), ylim=(-0.35, 7.95))
    axes.axis("off")
    _draw_tars(axes, 6.95)
    _draw_streams(axes, 5.25)
    _draw_batch(axes, 3.75)
    _say(axes, 0, 3.15, "who reads and decodes them: 2 nodes with 2 ranks each", is_title=True)
    for node in range(2):
        rows = share(BATCH, node, 2)
        _bracket(axes, 2.55, rows, f"node {node} opens {opened_tars(rows)}", height=0.42, colour="#efefef")
    _draw_ranks(axes, 2.05, 4, "rank {}")
    _say(axes, 0, 1.55, "the same rows, after a resume on 1 rank …", is_title=True)
    _draw_ranks(axes, 0.95, 1, "rank {}")
    _say(axes, 0, 0.45, "… or on 5, which have 2 or 3 rows each", is_title=True)
    _draw_ranks(axes, -0.15, 5, "rank {}")
    figure.savefig(HERE / "stream.png", dpi=150, bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)


def _draw_tars(axes: Axes, y: float) -> None:
    _say(
        axes,
        0,
        y + 0.7,
        f"tars of two sets, {SHARD} samples each; every set is cut into {STREAMS} ranges",
        is_title=True,
    )
    left, width = 0.0, 1.3
    for name, size in SETS.items():
        for stream in range(STREAMS):
            start, stop = (size * edge // STREAMS / SHARD * width for edge in (stream, stream + 1))
            axes.add_patch(Rectangle((left + start, y), stop - start, 0.5, color=COLOURS[stream], lw=0))
        for shard in range(size // SHARD):
            axes.add_patch(Rectangle((left + shard * width, y), width, 0.5, fill=False, ec=INK, lw=1.2))
            _say(axes, left + (shard + 0.5) * width, y + 0.25, f"{name}-{shard}", middle=True)
        left += size // SHARD * width + 0.3


def _draw_streams(axes: Axes, y: float) -> None:
    _say(axes, 0, y + 1.15, "streams: one range of every set, shuffled anew each epoch", is_title=True)
    for stream in range(STREAMS):
        axes.add_patch(Rectangle((stream * 3 + 0.05, y), 2.9, 0.9, color=COLOURS[stream], lw=0))
        ranges = [
            f"{name} {size * stream // STREAMS} to {size * (stream + 1) // STREAMS - 1}" for name, size in SETS.items()
        ]
        _say(axes, stream * 3 + 1.5, y + 0.45, "\n".join((f"stream {stream}", *ranges)), middle=True, size=9)


def _draw_batch(axes: Axes, y: float) -> None:
    title = f"global batch of step {STEP}: {BATCH} rows, 8 of food and 4 of cars; each stream has rows of its own"
    _say(axes, 0, y + 1.05, title, is_title=True)
    names = list(SETS)
    set_B, sample_B = ORDER.batch_rows(STEP)
    for row, (number, sample) in enumerate(zip(set_B.tolist(), sample_B.tolist(), strict=True)):
        colour = COLOURS[row * STREAMS // BATCH]
        axes.add_patch(Rectangle((row, y), 1, 0.55, fc=colour, ec=INK, lw=1.2))
        _say(axes, row + 0.5, y + 0.275, f"{names[number]}\n{sample}", middle=True, size=9)
        _say(axes, row + 0.5, y + 0.72, f"row {row}", middle=True, size=8, colour=PALE)


def _draw_ranks(axes: Axes, y: float, ranks: int, text: str) -> None:
    for rank in range(ranks):
        _bracket(axes, y, share(BATCH, rank, ranks), text.format(rank))


def _bracket(axes: Axes, y: float, rows: slice, text: str, *, height: float = 0.38, colour: str = "white") -> None:
    box = Rectangle((rows.start + 0.05, y), rows.stop - rows.start - 0.1, height, fc=colour, ec=PALE, lw=1)
    axes.add_patch(box)
    _say(axes, (rows.start + rows.stop) / 2, y + height / 2, text, middle=True, size=9)


def _say(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    middle: bool = False,
    is_title: bool = False,
    size: float = 10,
    colour: str = INK,
) -> None:
    weight = "bold" if is_title else "normal"
    axes.text(x, y, text, ha="center" if middle else "left", va="center", fontsize=size, color=colour, weight=weight)


# --- presets


def draw_presets(image_px: int = 150, views: int = 4) -> None:
    """`views` draws of every preset, of a photo that scikit-image ships (Stefan van der Walt, CC0)."""
    from io import BytesIO

    from PIL import Image
    from skimage import data

    stream = BytesIO()
    Image.fromarray(data.chelsea()).save(stream, "JPEG", quality=95)
    image_CHW = decode(stream.getvalue(), key="chelsea")
    figure, grid = plt.subplots(len(PRESETS) // 2, 2, figsize=(9.6, 9.4))
    for axes, name in zip(np.transpose(grid).ravel(), PRESETS, strict=True):
        augment = Augment(preset=name)
        drawn = [augment.apply(image_CHW, image_px, seed=seed).permute(1, 2, 0).numpy() for seed in range(1, views + 1)]
        gap = np.full((image_px, 6, 3), 255, np.uint8)
        axes.imshow(np.concatenate([part for image in drawn for part in (image, gap)], axis=1))
        axes.set_title(name, fontsize=10, loc="left", pad=3)
        axes.axis("off")
    figure.tight_layout(h_pad=0.6, w_pad=0.6)
    figure.savefig(HERE / "presets.jpg", dpi=100, pil_kwargs={"quality": 85, "optimize": True})
    plt.close(figure)


if __name__ == "__main__":
    matplotlib.use("Agg")
    draw_stream()
    draw_presets()
