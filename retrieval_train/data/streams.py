"""The streams of a loader, built from the config and the sets that lie there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retrieval_train.data.config import DataConfig
from retrieval_train.data.decoded import DecodedCache
from retrieval_train.data.labels import Labels, join
from retrieval_train.data.looks import Looks
from retrieval_train.data.order.mixed import Config as Mixed
from retrieval_train.data.order.order import Samples
from retrieval_train.data.reader import Reader
from retrieval_train.data.view import View
from retrieval_train.data.worker import Stream


def looks_of(config: DataConfig, view: View | None) -> Looks:
    """`view` stands where the config has none."""
    return Looks(config.augment, config.augment_by_domain, config.strong, config.view or view or View())


def labelled_stream(config: DataConfig, shards_root: Path, looks: Looks, *, image_px: int, seed: int) -> Stream:
    """The samples that have a label, in the order that the config names."""
    readers, labels = _opened(config, shards_root, "train")
    samples = Samples(readers, labels, config.weights())
    order = config.order.build(samples, batch=config.batch, seed=seed)
    caches = _caches(config, readers)
    largest_px = config.largest_px(image_px)
    return Stream(readers, labels, order, looks, keeps_keys=config.ledger, caches=caches, cache_px=largest_px)


def unlabelled_stream(config: DataConfig, shards_root: Path, looks: Looks, *, image_px: int, seed: int) -> Stream:
    """All samples of another mixture, whatever their labels, mixed by size."""
    assert config.unlabelled is not None, "asked for"
    others = config.model_copy(update={"mixture": config.unlabelled.mixture})
    readers, labels = _opened(others, shards_root, config.unlabelled.split)
    samples = Samples(readers, labels, others.weights(), only_labelled=False)
    order = Mixed().build(samples, batch=config.unlabelled.batch, seed=seed)
    caches = _caches(others, readers)
    return Stream(
        readers,
        labels,
        order,
        looks,
        is_labelled=False,
        keeps_keys=config.ledger,
        caches=caches,
        cache_px=config.largest_px(image_px),
    )


def _opened(config: DataConfig, shards_root: Path, split: str) -> tuple[list[Reader], Labels]:
    opened = config.open_sets(shards_root)
    readers = [Reader(manifest, manifest.select(split), store) for manifest, store in opened]
    return readers, join([manifest for manifest, _ in opened])


def _caches(config: DataConfig, readers: Sequence[Reader]) -> list[DecodedCache]:
    """Room for the decoded images of each set, by its number of images."""
    if not config.cache_gb:
        return []
    total = max(sum(map(len, readers)), 1)
    sizes = [int(config.cache_gb * 1e9 * len(reader) / total) for reader in readers]
    return [
        DecodedCache(len(reader), size, max(config.workers, 1)) for reader, size in zip(readers, sizes, strict=True)
    ]
