"""P classes with K images each in every batch: what losses over pairs and triplets need.

Groups, the classes of a group and the images of a class are walked through alike. `coverage` says how: with `random` every
batch begins new walks; with `full` walks go on from batch to batch, so that each class comes once before any comes twice,
and so do the images of each class.

Legend: R some rows of a batch, S its class slots (P of K rows each), G groups, M classes that are dealt, ordered by group.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from retrieval_train.data.order.classes import (
    NO_CLASSES,
    NO_GROUPS,
    ClassIndex,
    ClassOrder,
    Groups,
    domain_groups,
    image_groups,
    known_classes,
    odd_weights,
    some_of,
)
from retrieval_train.data.order.order import Order, OrderConfig, Samples
from retrieval_train.data.order.permutation import Int, mixed, mixed_each
from retrieval_train.data.order.walk import walk

if TYPE_CHECKING:
    from shards.manifest import Manifest

log = logging.getLogger(__name__)

Problems = list[tuple[str, str]]


class Config(OrderConfig):
    """Rows of a class are neighbours, and classes of a group; a batch holds no image twice, unless short_class is repeat. An
    image with several labels is one of the images of each of its classes, and comes for each of them.

    An epoch has ceil(images / data.batch) steps with coverage random and ceil(all classes / `classes`) with full.
    """

    name: Literal["pk"] = "pk"
    """The order."""
    classes: int = Field(ge=1)
    """P, classes of a batch: P x K is data.batch."""
    images: int = Field(ge=1)
    """K, images of each class of a batch."""
    coverage: Literal["random", "full"] = "random"
    """random: each batch draws its classes anew; full: every class comes once before any comes again. With groups, full means
    every group once before any again, and of each group every class: classes of small groups come more often."""
    short_class: Literal["error", "repeat", "drop"] = "error"
    """What becomes of classes with fewer than K images, and of groups with fewer classes than a batch takes of them. error:
    no run; repeat: their images (their classes) come several times in a batch; drop: they are left out."""
    groups: int | None = Field(default=None, ge=1)
    """Groups of a batch, each with P / groups classes; null: classes come from anywhere."""
    group_by: Literal["group", "domain"] | None = None
    """What `groups` counts. group: a class is in the group of most of its images, and one without in a group of all those of
    its domain; domain: in its domain."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Config:
        if self.groups is None:
            if self.group_by is not None:
                raise ValueError(
                    f"group_by: {self.group_by} has no meaning without groups; say how many a batch has, or leave it out"
                )
        elif self.group_by is None:
            raise ValueError(f"groups: {self.groups} needs group_by: group or group_by: domain")
        elif self.classes % self.groups:
            raise ValueError(
                f"groups: {self.groups} does not cut classes: {self.classes} into equal parts; "
                f"take a divisor of {self.classes}"
            )
        return self

    @property
    def group_classes(self) -> int:
        """Classes of each group in a batch."""
        return self.classes // (self.groups or 1)

    def problems(self, manifests: Sequence[Manifest], weights: Sequence[float], batch: int) -> Problems:
        names, counts_C = known_classes(manifests, weights)
        groups = domain_groups(names) if self.group_by == "domain" else None
        found = odd_weights([manifest.name for manifest in manifests], weights)
        used = [manifest for manifest, weight in zip(manifests, weights, strict=True) if weight]
        if self.group_by == "group" and not any(len(manifest.groups) > 1 for manifest in used):
            found.append(("group_by", NO_GROUPS))
        return found + self._problems(names, counts_C, groups, batch)

    def build(self, samples: Samples, *, batch: int, seed: int) -> Order:
        index, names = ClassIndex.of(samples), samples.labels.names
        groups = self._groups(samples, index)
        for key, text in self._problems(names, index.counts_C, groups, batch):
            raise ValueError(f"data.order.{key}: {text}")
        self._tell(names, index.counts_C, groups)
        kept = self._dealt_classes(index.counts_C)
        group_M = groups.group_C[kept] if groups else np.zeros_like(kept)
        sizes = np.bincount(group_M)
        least = self.group_classes if self.short_class == "drop" else 1
        kept, group_M = kept[sizes[group_M] >= least], group_M[sizes[group_M] >= least]
        return PK(
            index=index,
            names=names,
            class_M=kept[np.argsort(group_M, kind="stable")],
            group_sizes_G=sizes[sizes >= least],
            groups=self.groups or 1,
            classes=self.group_classes,
            images=self.images,
            is_full=self.coverage == "full",
            batch=batch,
            seed=seed,
        )

    def _groups(self, samples: Samples, index: ClassIndex) -> Groups | None:
        """Raises ValueError where no image has a group."""
        if self.group_by == "group":
            return image_groups(samples, index)
        return domain_groups(samples.labels.names) if self.group_by == "domain" else None

    def _dealt_classes(self, counts_C: Int) -> Int:
        return np.flatnonzero(counts_C >= (self.images if self.short_class == "drop" else 1))

    # --- what does not fit

    def _problems(self, names: Sequence[str], counts_C: Int, groups: Groups | None, batch: int) -> Problems:
        found = self._batch_problems(batch)
        if not counts_C.any():
            return [*found, ("name", NO_CLASSES)]
        short = self._short_classes(counts_C)
        if len(short) and self.short_class == "error":
            text = (
                f"{self._short_text(names, counts_C, short)}; take images: {counts_C[short].min()}, or say short_class: drop "
                "(leaves these classes out) or short_class: repeat (their images come several times in a batch)"
            )
            found.append(("images", text))
        kept = self._dealt_classes(counts_C)
        if groups is not None:
            return found + self._group_problems(kept, groups)
        if self.group_by is None and len(kept) < self.classes:
            enough = f" with {self.images} images" if self.short_class == "drop" else ""
            text = f"{self.classes} classes a batch, but there are only {len(kept)}{enough}; take so many or fewer"
            found.append(("classes", text))
        return found

    def _batch_problems(self, batch: int) -> Problems:
        rows = self.classes * self.images
        if rows == batch:
            return []
        fitting = [f"data.batch={rows}"]
        if batch % self.classes == 0:
            fitting.insert(0, f"images: {batch // self.classes}")
        if batch % (self.images * (self.groups or 1)) == 0:
            fitting.insert(0, f"classes: {batch // self.images}")
        text = f"{self.classes} classes x {self.images} images are {rows} rows, and data.batch is {batch}; take "
        return [("classes", text + " or ".join(fitting))]

    def _group_problems(self, kept: Int, groups: Groups) -> Problems:
        assert self.groups is not None
        sizes = np.bincount(groups.group_C[kept], minlength=len(groups.names))
        here, short = np.flatnonzero(sizes), self._short_groups(sizes)
        found = []
        if len(short) and self.short_class == "error":
            text = (
                f"{self._short_group_text(groups, sizes, short)}; take fewer classes or more groups, or say short_class: "
                "drop (leaves these groups out) or short_class: repeat (their classes come several times in a batch)"
            )
            found.append(("classes", text))
        usable = np.setdiff1d(here, short) if self.short_class == "drop" else here
        if len(usable) < self.groups:
            enough = f" with {self.group_classes} classes" if self.short_class == "drop" else ""
            there = some_of([groups.names[group] for group in usable], sizes[usable]) or "none"
            text = f"{self.groups} groups a batch, but there are only {len(usable)}{enough} ({there}); take fewer"
            found.append(("groups", text))
        return found

    def _short_classes(self, counts_C: Int) -> Int:
        return np.flatnonzero((counts_C > 0) & (counts_C < self.images))

    def _short_groups(self, sizes: Int) -> Int:
        return np.flatnonzero((sizes > 0) & (sizes < self.group_classes))

    def _short_text(self, names: Sequence[str], counts_C: Int, short: Int) -> str:
        named = some_of([names[number] for number in short], counts_C[short])
        return f"{len(short)} of {np.count_nonzero(counts_C)} classes have fewer than {self.images} training images: {named}"

    def _short_group_text(self, groups: Groups, sizes: Int, short: Int) -> str:
        named = some_of([groups.names[number] for number in short], sizes[short])
        return f"{len(short)} of {np.count_nonzero(sizes)} groups have fewer than {self.group_classes} classes: {named}"

    def _tell(self, names: Sequence[str], counts_C: Int, groups: Groups | None) -> None:
        """Says in the run's log what `short_class` changes."""
        done = "left out" if self.short_class == "drop" else "several times in a batch"
        if len(short := self._short_classes(counts_C)):
            log.warning("data.order: %s; %s", self._short_text(names, counts_C, short), done)
        if groups is not None:
            sizes = np.bincount(groups.group_C[self._dealt_classes(counts_C)], minlength=len(groups.names))
            if len(short := self._short_groups(sizes)):
                log.warning("data.order: %s; %s", self._short_group_text(groups, sizes, short), done)


@dataclass
class PK(ClassOrder):
    """Deals `groups` x `classes` x `images` rows a batch."""

    index: ClassIndex
    names: Sequence[str]
    class_M: Int
    """The classes that are dealt, by group."""
    group_sizes_G: Int
    """How many of them each group has."""
    groups: int
    """Of a batch."""
    classes: int
    """Of each group of a batch."""
    images: int
    """Of each class of a batch."""
    is_full: bool
    batch: int
    seed: int

    def __post_init__(self) -> None:
        assert self.groups * self.classes * self.images == self.batch
        self._group_starts_G = np.cumsum(self.group_sizes_G) - self.group_sizes_G
        num_images = int(self.index.counts_C[self.class_M].sum())
        dealt, there = (self.batch // self.images, len(self.class_M)) if self.is_full else (self.batch, num_images)
        self.epoch_steps = -(-there // dealt)

    def drawn_class(self, number: int) -> int:
        return int(self.class_M[number % len(self.class_M)])

    def picked(self, step: int, row_R: Int) -> tuple[Int, Int]:
        slot_S, slot_R = np.unique(row_R // self.images, return_inverse=True)
        key, turn = (mixed(self.seed, 21), step) if self.is_full else (mixed(self.seed, 22, step), 0)
        class_S, visit_S = self._picked_classes(slot_S, key, turn)
        image_SK, _ = walk(visit_S, self.index.counts_C[class_S], self.images, _keys(key, 3, class_S))
        return class_S[slot_R], image_SK[slot_R, row_R % self.images]

    def _picked_classes(self, slot_S: Int, key: int, turn: int) -> tuple[Int, Int]:
        """The class of these slots and how often it came before, both (S,)."""
        # int64: a step taken from a numpy array of a smaller type must not overflow
        only, num_groups = np.array([turn], np.int64), np.array([len(self.group_sizes_G)])
        [group_W], [turn_W] = walk(only, num_groups, self.groups, _keys(key, 1, np.zeros(1, np.int64)))
        used_U, used_S = np.unique(slot_S // self.classes, return_inverse=True)
        group_U = group_W[used_U]
        sizes_U, keys_U = self.group_sizes_G[group_U], _keys(key, 2, group_U)
        place_UW, visit_UW = walk(turn_W[used_U], sizes_U, self.classes, keys_U)
        inside_S = slot_S % self.classes
        class_S = self.class_M[self._group_starts_G[group_U[used_S]] + place_UW[used_S, inside_S]]
        return class_S, visit_UW[used_S, inside_S]


def _keys(key: int, level: int, number_R: Int) -> Int:
    return mixed_each(key, level, number_R).astype(np.int64)
