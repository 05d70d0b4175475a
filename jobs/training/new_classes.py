"""Where class centres begin in a run with `init`: with the export's centre of the same name, at random, or at a mean.

The mean is that of the normalised embeddings of some of the class's training images, as the first embedder sees them,
stretched to length 1, about that of a random centre: an optimizer then turns both alike. Sub-centres lie around it, a tenth
of a random centre away (some 6 degrees), for equal ones would stay equal. A linear head's biases begin at 0.

Legend: B images of a batch, C new classes of a block, P (image, class) pairs, D dimensions.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from retrieval_train.rundir import RunDir, read_json, read_names, sampled_digest

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.train import Config
    from retrieval_train.data.loader import Loader
    from retrieval_train.data.reader import Reader
    from retrieval_train.data.view import View
    from retrieval_train.heads.centres import Head
    from retrieval_train.models.embedder import Embedder
    from retrieval_train.world import World

log = logging.getLogger(__name__)

_BLOCK = 4096  # new classes whose means are summed at once: 17 MB of 512 dimensions
_BATCH = 64
_SPREAD = 0.1

Image = tuple[int, int]
"""Number of the set, and of the sample there."""


# --- what can be told on a login node


def problems(config: Config) -> list[tuple[str, str]]:
    """Of an export and sets that are there: (key, what to do). Reads class names and the shape of the centres."""
    init, head = config.init, config.head
    assert init is not None
    if head is None:
        return [] if init.new_classes == "random" else [("init.new_classes", "head is null: no class has a centre")]
    if config.data.foreign and init.new_classes == "mean":
        text = "tars of data.foreign cannot be read class by class; make shard sets of them, or set init.new_classes=random"
        return [("init.new_classes", text)]
    names = _names(config)
    if not names or config.origin is not None:
        return []
    found = [] if config.data.foreign else [_names_problem(names, _training_classes(config))]
    return [("init.centres", text) for text in (_shape_problem(config, init.model), *found) if text]


def _names(config: Config) -> list[str]:
    """The classes whose centres may be taken."""
    init = config.init
    has_some = init is not None and init.centres == "by_name" and (init.model / "centres.safetensors").is_file()
    return read_names(init.model / "classes.txt") if init is not None and has_some else []


def centres_digest(export: Path) -> str:
    """sha256 over an export's class centres and their names, which the sha256 in its model.json does not cover."""
    parts = [sampled_digest(export / name) for name in ("centres.safetensors", "classes.txt")]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def digests(config: Config) -> dict[str, str]:
    """Of the export's centres, where the run begins with any of them."""
    init = config.init
    if init is None or config.head is None or not _names(config):
        return {}
    return {"init.centres": centres_digest(init.model)}


def _training_classes(config: Config) -> Sequence[str]:
    from retrieval_train.data.labels import join

    data = config.data
    return join([data.open_manifest(name, config.shards_root) for name in sorted(data.mixture)]).names


def _names_problem(theirs: Sequence[str], mine: Sequence[str]) -> str:
    if not set(theirs).isdisjoint(mine):
        return ""
    few, others = (", ".join(f"'{name}'" for name in sorted(names)[:3]) for names in (theirs, mine))
    return (
        f"none of the {len(theirs)} classes that the export has centres of ({few} ...) is among the {len(mine)} of these "
        f"sets ({others} ...): a class is known by its name, domain/label; set init.centres=none to begin all of them anew"
    )


def _shape_problem(config: Config, export: Path) -> str:
    """Of sub-centres and bias; the dimensions are the embedder's, which is the export's."""
    from safetensors import safe_open

    head = config.head
    assert head is not None
    with safe_open(export / "centres.safetensors", framework="np") as file:
        _, sub_centres, columns = file.get_slice("centre").get_shape()
    if sub_centres != head.sub_centres:
        return (
            f"the export has {sub_centres} centres a class and head.sub_centres is {head.sub_centres}; set "
            f"head.sub_centres={sub_centres}, or init.centres=none"
        )
    has_bias = columns == read_json(export / "model.json")["dim"] + 1
    if has_bias != head.has_bias:
        one, other = ("have", "has none") if has_bias else ("have no", "has one")
        return (
            f"the export's centres {one} bias and head '{head.name}' {other}; take the head that they were trained with, or "
            "set init.centres=none"
        )
    return ""


# --- beginning


def begin(config: Config, run: RunDir, world: World, *, head: Head, embedder: Embedder, loader: Loader) -> None:
    """Put the first centres into the main head; nothing where a checkpoint will bring them. Collective."""
    from jobs.train import view_of
    from retrieval_train.models import exported

    init = config.init
    assert init is not None
    if config.origin is not None or world.from_first(run.latest_checkpoint()) is not None:
        return
    theirs, mine = _names(config), loader.labels.names
    if theirs and (problem := _names_problem(theirs, mine)):  # of foreign tars nobody knew before
        raise ValueError(f"init.centres: {problem}")
    head.take(exported.read_centres(init.model, head.class_names) if theirs else {})
    known = set(theirs)
    new_C = np.array([number for number, name in enumerate(mine) if name not in known], np.int64)
    told = "at random"
    if init.new_classes == "mean" and len(new_C):
        images = Images(loader, view_of(config, embedder), config.backbone.image_px)
        num_random = put_means(head, new_C, embedder, images, world, most=init.mean_images)
        told = f"at the mean of up to {init.mean_images} of their images ({num_random} had none, and began at random)"
    taken, dropped = len(mine) - len(new_C), len(theirs) - (len(mine) - len(new_C))
    log.info("class centres: %d are taken from %s, which has %d more", taken, init.model, dropped)
    if len(new_C):
        log.info("class centres: %d classes are new and begin %s", len(new_C), told)


class Images:
    """The training images of a loader's sets, as the network sees them when nothing is random."""

    def __init__(self, loader: Loader, view: View, image_px: int) -> None:
        from retrieval_train.data.order.classes import ClassIndex
        from retrieval_train.data.order.order import Samples

        stream = loader.streams[0]
        self.readers: Sequence[Reader] = stream.readers
        self.index = ClassIndex.of(Samples(stream.readers, stream.labels, loader.config.weights()))
        self.view, self.image_px, self.workers = view, image_px, loader.config.workers
        self.number = 0

    def of_class(self, number: int, *, most: int) -> list[Image]:
        """Up to `most` images of a class, spread evenly over all that it has."""
        count = int(self.index.counts_C[number])
        image_R = np.arange(min(most, count), dtype=np.int64) * max(count, 1) // max(min(most, count), 1)
        set_R, sample_R = self.index.samples(np.full(len(image_R), number), image_R)
        return list(zip(set_R.tolist(), sample_R.tolist(), strict=True))

    def __getitem__(self, batch: Sequence[Image]) -> tuple[list[Image], Tensor]:
        """Those of a batch that can be read, and their pixels: uint8 (B, 3, H, W)."""
        import torch

        from retrieval_train.data.decode import decode

        read, pixels = [], [torch.empty(0, 3, self.image_px, self.image_px, dtype=torch.uint8)]
        for which, number in batch:
            try:
                sample = self.readers[which].read(number)
                image_CHW = decode(sample.image, key=sample.key, min_side=self.view.min_side(self.image_px))
            except (ValueError, OSError) as error:  # training replaces it by another one
                log.warning("%s", error)
                continue
            read.append((which, number))
            pixels.append(self.view.apply(image_CHW, self.image_px)[None])
        return read, torch.cat(pixels)


class _Block(NamedTuple):
    """Some new classes, and this rank's share of their images."""

    class_C: Any
    rows_of: dict[Image, list[int]]
    """Image -> which of the block's classes it is of: several where it has several labels."""
    batches: list[list[Image]]


def put_means(
    head: Head, class_N: Any, embedder: Embedder, images: Images, world: World, *, most: int, batch: int = _BATCH
) -> int:
    """Move the centres of these classes (joint ids) to the means of their images; how many have no image that can be read.

    Every rank embeds a share of the images and moves its own classes. Collective: all ranks leave out the same classes.
    """
    blocks = list(_blocks(class_N, images, world, most=most, batch=batch))
    embedded = _embedded(images, [some for block in blocks for some in block.batches], embedder, world)
    num_lacking, was_training = 0, embedder.training
    embedder.eval()
    try:
        with contextlib.closing(embedded):  # ends the workers
            for block in blocks:
                mean_CD, count_C = _means(block, embedded, embedder.dim, world)
                num_lacking += int((count_C == 0).sum())
                _put(head, block.class_C, mean_CD)
    finally:
        embedder.train(was_training)
    return num_lacking


def _blocks(class_N: Any, images: Images, world: World, *, most: int, batch: int) -> Iterator[_Block]:
    for at in range(0, len(class_N), _BLOCK):
        class_C = class_N[at : at + _BLOCK]
        rows_of: dict[Image, list[int]] = {}
        for row, number in enumerate(class_C.tolist()):
            for image in images.of_class(number, most=most):
                rows_of.setdefault(image, []).append(row)
        every = sorted(rows_of)  # in the order of the tars
        mine = every[len(every) * world.rank // world.size : len(every) * (world.rank + 1) // world.size]
        yield _Block(class_C, rows_of, [mine[first : first + batch] for first in range(0, len(mine), batch)])


def _embedded(
    images: Images, batches: Sequence[Sequence[Image]], embedder: Embedder, world: World
) -> Generator[tuple[list[Image], Tensor], None, None]:
    """Each batch's images that can be read, with their normalised embeddings (B, D), float64."""
    import torch
    from torch.utils.data import DataLoader

    from retrieval_train.data.worker import start_worker

    loader: Any = DataLoader(
        images,  # type: ignore[arg-type]
        batch_size=None,
        sampler=batches,  # type: ignore[arg-type]
        num_workers=images.workers if batches else 0,
        multiprocessing_context="fork" if images.workers and batches else None,
        collate_fn=lambda pair: pair,
        worker_init_fn=start_worker,
    )
    for read, image_BCHW in loader:
        with torch.no_grad():
            emb_BD = embedder(image_BCHW.to(world.device)).double() if read else torch.empty(0, embedder.dim).double()
        yield read, torch.nn.functional.normalize(emb_BD, dim=1).to(world.device)


def _means(
    block: _Block, embedded: Iterator[tuple[list[Image], Tensor]], dim: int, world: World
) -> tuple[Tensor, Tensor]:
    """Directions (C, D) of length 1, 0 where there is none, and how many images (C,) each is of."""
    import torch

    sum_CD = torch.zeros(len(block.class_C), dim + 1, dtype=torch.float64, device=world.device)
    for _ in block.batches:
        read, emb_BD = next(embedded)
        pairs = [(at, row) for at, image in enumerate(read) for row in block.rows_of[image]]
        at_P, row_P = torch.tensor(pairs, dtype=torch.int64, device=world.device).view(-1, 2).T
        one_P1 = emb_BD.new_ones(len(at_P), 1)
        sum_CD.index_add_(0, row_P, torch.cat([emb_BD[at_P], one_P1], dim=1))
    sum_CD = world.sum(sum_CD)
    return torch.nn.functional.normalize(sum_CD[:, :-1], dim=1), sum_CD[:, -1]


def _put(head: Head, class_C: Collection[int], mean_CD: Tensor) -> None:
    import torch

    number_C = torch.as_tensor(class_C, device=mean_CD.device)
    stop = head.first + len(head.class_names)
    is_mine_C = (number_C >= head.first) & (number_C < stop) & (mean_CD != 0).any(dim=1)
    row_M, mean_MD = number_C[is_mine_C] - head.first, mean_CD[is_mine_C]
    with torch.no_grad():
        centre_MKD = head.centre_CKD[row_M]
        dim = mean_MD.shape[1]
        random_MKD = centre_MKD[..., :dim] * (_SPREAD if head.rule.sub_centres > 1 else 0.0)
        # a bias behind these columns is 0 as it is
        centre_MKD[..., :dim] = mean_MD[:, None].to(centre_MKD) + random_MKD
        head.centre_CKD[row_M] = centre_MKD
