"""How much a training run reads: steps, images, epochs and classes, from the config and the sets' manifests."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.train import Config


@dataclass(frozen=True)
class Amount:
    steps: int
    epochs: float | None
    """None: the sets do not say how long one is."""
    classes: int
    domains: int


def amount_of(config: Config) -> Amount:
    """Raises ShardError, a ValueError, for sets that cannot be opened."""
    if config.data.foreign is not None:
        classes = config.data.foreign.class_list()
        epoch_steps = max(1, config.data.foreign.num_samples() // config.data.batch)
        return _amount(config, epoch_steps, len(classes.names), len(classes.domains))
    from retrieval_train.data.streams import labelled_stream, looks_of

    data = config.data
    data = data.model_copy(update={"cache_gb": 0})  # no memory is put aside
    stream = labelled_stream(
        data, config.shards_root, looks_of(data, None), image_px=config.backbone.image_px, seed=config.seed
    )
    return _amount(config, stream.order.epoch_steps, len(stream.labels.names), len(stream.labels.domains))


def _amount(config: Config, epoch_steps: int, classes: int, domains: int) -> Amount:
    steps = config.length.num_steps(epoch_steps, config.data.batch)
    return Amount(steps, steps / epoch_steps, classes, domains)
