"""Which images, in which order, how they look: the `data` part of a training config."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from retrieval_train.choice import Chosen
from retrieval_train.config import FileName, Section, later, place
from retrieval_train.data.augment.augment import Augment
from retrieval_train.data.foreign import ForeignConfig
from retrieval_train.data.order.mixed import Config as Mixed
from retrieval_train.data.order.order import OrderConfig
from retrieval_train.data.order.pools import bad_weights
from retrieval_train.data.store.store import StoreConfig
from retrieval_train.data.view import View

if TYPE_CHECKING:
    from retrieval_train.data.store.store import Store
    from shards.manifest import Manifest


class Resolution(Section):
    """A stretch of the run at one image size."""

    until: float = Field(gt=0, le=1)
    """Share of the run's steps at which it ends."""
    px: int = Field(ge=8)
    """Side of the square image."""


class Unlabelled(Section):
    """Rows that come along without labels, for losses that use them."""

    mixture: dict[FileName, float]
    """Set name -> how often an epoch takes each of its samples."""
    batch: int = Field(ge=1)
    """Rows beside those of data.batch, over all ranks."""
    split: Literal["train", "dev", "test"] = "train"
    """Whose samples, all of them: labels are not looked at."""

    @field_validator("mixture")
    @classmethod
    def _some_weight(cls, mixture: dict[str, float]) -> dict[str, float]:
        return _checked_mixture(mixture, "data.unlabelled.mixture")

    def problems(self, manifests: Sequence[Manifest]) -> list[tuple[str, str]]:
        rows = sum(
            int(self.mixture[manifest.name] * sum(shard.samples for shard in manifest.select(self.split)) + 1e-6)
            for manifest in manifests
        )
        if rows >= self.batch:
            return []
        text = f"{self.batch} rows, but an epoch of data.unlabelled.mixture has only {rows}; take a smaller batch"
        return [("data.unlabelled.batch", text)]


def _checked_mixture(mixture: dict[str, float], where: str) -> dict[str, float]:
    if not mixture:
        raise ValueError(f"names no set; say for example {where}.sample=1.0")
    if problem := bad_weights(mixture):
        raise ValueError(problem)
    return mixture


class DataConfig(Section):
    """Which sets, in which shares, in what batches."""

    foreign: ForeignConfig | None = None
    """Tars without a sidecar, in place of the mixture: streamed in sequence, so neither exactly resumable nor balanced."""
    mixture: dict[FileName, float] = Field(default={}, validate_default=True)
    """Set name (a folder under shards_root) -> how often an epoch takes each of its samples: 1.0 once, 2.0 twice."""
    fold: int | None = Field(default=None, ge=0, json_schema_extra=later())
    """The fold that is held out, from 0, where the sets of the mixture have folds (`shards make ... --folds 5`): the others
    are trained on, and `evaluate` searches in this one. null: all are trained on."""
    batch: int = Field(default=256, ge=1)
    """Rows of the global batch, over all ranks and accumulated micro-batches."""
    order: Annotated[OrderConfig, Chosen("retrieval_train.data.order")] = Mixed()
    """Which samples come together, and when."""
    augment: Augment = Augment()
    """What is random about a training image."""
    augment_by_domain: dict[str, Augment] = Field(default={})
    """Domain -> what is random about its images instead."""
    strong: Augment | None = None
    """A second view of every image, augmented like this; null: one view."""
    view: View | None = None
    """How an image is seen when nothing is random: goes into the export, for evaluation. null: as the backbone was
    pretrained."""
    resolutions: tuple[Resolution, ...] = ()
    """Image sizes over the run; none: backbone.image_px throughout. The last one is backbone.image_px, at which the
    model is exported and evaluated."""
    unlabelled: Unlabelled | None = None
    """Rows without labels in every batch."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1, json_schema_extra=place())
    """The run stops when more than this share of its samples could not be read; each of those was replaced by another."""
    workers: int = Field(default=1, ge=0, json_schema_extra=place())
    """Processes of each rank that decode and augment; 0 does it between the steps."""
    cache_gb: float = Field(default=0, ge=0)
    """Memory of each rank for decoded images: those that fit are read and decoded once in a run. They are decoded for any
    crop, else for the one that is drawn: with a cache a run is another run, whose pixels differ by a grey level or so."""
    ledger: bool = Field(default=False, json_schema_extra=place())
    """Write down the key of every row of every step, in ledger/ of the run folder."""
    store: StoreConfig = Field(default=StoreConfig(), json_schema_extra=place())
    """Where the tars lie."""

    @field_validator("mixture")
    @classmethod
    def _some_weight(cls, mixture: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        is_foreign = info.data.get("foreign", "with mistakes of its own") is not None
        if mixture and is_foreign:
            raise ValueError("excludes data.foreign; make a set of the foreign tars, or leave one of the two out")
        if not mixture and is_foreign:
            return mixture
        return _checked_mixture(mixture, "data.mixture")

    @field_validator("resolutions")
    @classmethod
    def _to_the_end(cls, resolutions: tuple[Resolution, ...]) -> tuple[Resolution, ...]:
        ends = [stretch.until for stretch in resolutions]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1):
            raise ValueError(f"end at {ends}; each must end after the one before, and the last at 1.0")
        return resolutions

    @model_validator(mode="after")
    def _one_augmentation_each(self) -> DataConfig:
        if self.strong is not None and self.strong == self.augment:
            raise ValueError("strong is the same as augment: a second view must look different")
        return self

    def open_sets(self, shards_root: Path) -> list[tuple[Manifest, Store]]:
        """The sets of the mixture, by name. Raises ShardError."""
        from retrieval_train.data.store.store import open_set

        opened = [open_set(name, self.store, shards_root) for name in sorted(self.mixture)]
        return [(self._without_fold(manifest), store) for manifest, store in opened]

    def open_manifest(self, name: str, shards_root: Path) -> Manifest:
        """A set, for looking at what it has to train on. Raises ShardError."""
        from retrieval_train.data.store.store import open_manifest

        return self._without_fold(open_manifest(name, self.store, shards_root))

    def _without_fold(self, manifest: Manifest) -> Manifest:
        """As it is trained on; sets without folds, which only data.unlabelled may have, as they are."""
        return manifest.with_fold(self.fold if manifest.num_folds else None)

    def is_multi_label(self, shards_root: Path) -> bool:
        """Whether images of any set of the mixture have several labels, so that batches carry pairs. Sets that cannot be
        opened are told by `problems`; reads manifests only."""
        from shards.manifest import ShardError

        for name in sorted(self.mixture):
            with suppress(ShardError):
                if self.open_manifest(name, shards_root).is_multi_label:
                    return True
        return False

    def weights(self) -> tuple[float, ...]:
        return tuple(self.mixture[name] for name in sorted(self.mixture))

    def largest_px(self, image_px: int) -> int:
        """Of the whole run."""
        return max([image_px, *(stretch.px for stretch in self.resolutions)])

    def px_at(self, step: int, num_steps: int, *, image_px: int) -> int:
        """Image size of a step."""
        return next((part.px for part in self.resolutions if step < part.until * num_steps), image_px)

    def digests(self, shards_root: Path) -> dict[str, str]:
        """By the config's key, what each set's content is."""
        names = {f"data.{name}": name for name in sorted(self.mixture)}
        if self.unlabelled:
            names |= {f"data.unlabelled.{name}": name for name in sorted(self.unlabelled.mixture)}
        found = {key: self.open_manifest(name, shards_root).digest for key, name in names.items()}
        return found | (self.foreign.digests() if self.foreign else {})

    def problems(self, shards_root: Path) -> list[tuple[str, str]]:
        """What does not fit the sets that lie there: (key, what to do). Reads manifests and class names, no sample."""
        found, manifests = self._set_problems("data.mixture", self.mixture, "train", shards_root)
        if self.foreign and self.fold is not None:
            found.append(
                ("data.fold", "data.foreign has none; make a set of its tars with `shards make ... --folds 5`")
            )
        if self.foreign:
            looks, order = tuple(self.augment_by_domain), self.order.name
            found += self.foreign.problems(batch=self.batch, order=order, cache_gb=self.cache_gb, domains=looks)
        if self.unlabelled:
            of_unlabelled, others = self._set_problems(
                "data.unlabelled.mixture", self.unlabelled.mixture, self.unlabelled.split, shards_root
            )
            found += of_unlabelled or self.unlabelled.problems(others)
        if found or self.foreign:
            return found
        domains = sorted({domain for manifest in manifests for domain in manifest.domains})
        for name in sorted(set(self.augment_by_domain) - set(domains)):
            found.append((f"data.augment_by_domain.{name}", f"no such domain; there are: {', '.join(domains)}"))
        of_order = self.order.problems(manifests, self.weights(), self.batch)
        return found + [("data.batch" if key == "batch" else f"data.order.{key}", text) for key, text in of_order]

    def _set_problems(
        self, where: str, mixture: dict[str, float], split: str, shards_root: Path
    ) -> tuple[list[tuple[str, str]], list[Manifest]]:
        """What is wrong with the sets of a mixture, and those that could be opened."""
        from retrieval_train.data.store.store import open_manifest
        from shards.manifest import ShardError

        found, manifests = [], []
        for name in sorted(mixture):
            try:
                manifest = open_manifest(name, self.store, shards_root)
                try:
                    manifest = (
                        manifest.with_fold(self.fold) if where == "data.mixture" else self._without_fold(manifest)
                    )
                except ShardError as error:
                    found.append(("data.fold", str(error)))
                    continue
                manifests.append(manifest)
                if not manifest.select(split):
                    splits = ", ".join(sorted({shard.split for shard in manifest.shards}))
                    word = "training" if split == "train" else split
                    found.append((f"{where}.{name}", f"has no {word} samples, only {splits}"))
            except ShardError as error:
                found.append((f"{where}.{name}", str(error)))
        return found, manifests
