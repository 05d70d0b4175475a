"""Whether so many ranks can share a training run, told before they start. Reads manifests and class names, no sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.train import Config


def problems(config: Config, num_ranks: int) -> list[tuple[str, str]]:
    """(dotted path, what to do)."""
    from retrieval_train.data.loader import rows_problems

    found = rows_problems(config.data, config.engine.accumulate, num_ranks)
    if _shares_classes(config):
        classes = _num_classes(config, enough=num_ranks)
        if classes is not None and classes < num_ranks:
            found.append(("data", f"{classes} classes cannot be shared by {num_ranks} ranks; use fewer ranks"))
    return found


def _shares_classes(config: Config) -> bool:
    """Whether all ranks share a table of class centres; the ranks of a node may be fewer than its classes."""
    if config.head is not None:
        return config.head.shard_within == "world"
    losses = [config.loss, *(aux.loss for aux in config.aux.values())]
    return any(aux.head is not None for aux in config.aux.values()) or any(loss.heads(dim=1) for loss in losses)


def _num_classes(config: Config, *, enough: int) -> int | None:
    """With training images; of one set, where that has `enough`. None: the sets are not there to tell."""
    from retrieval_train.data.labels import join

    data = config.data
    try:
        if data.foreign is not None:
            return len(data.foreign.class_list().names)
        manifests = [data.open_manifest(name, config.shards_root) for name in sorted(data.mixture)]
        most = max(int((manifest.classes.counts("train") > 0).sum()) for manifest in manifests)
        return most if most >= enough else len(join(manifests).names)
    except (ValueError, OSError):
        return None
