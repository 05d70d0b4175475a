"""Groups and classes on both sides: trained on, and evaluated with.

A group that is finer than a class (a photo with several crops, a burst) must not be on both sides: its images nearly are
copies. A group that holds whole classes (a brand, an alphabet) may; that is then an evaluation on known groups, which is
worth knowing and no mistake, unless the set was split by group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shards.audit.findings import Finding
from shards.audit.images import TRAIN, Images, is_trained
from shards.audit.relations import GRAVE, MILD
from shards.errors import first_few
from shards.manifest import Manifest

KIND = "group leak"


def group_findings(images: Images) -> Iterator[Finding]:
    """One a domain where groups leak, one for all known groups of the set, and one for known classes."""
    known = list[Shared]()
    for one in shared_groups(images):
        if one.is_coarse:
            known.append(one)
            continue
        what = (
            f"{len(one.groups)} of {one.num_groups} groups have images in training ({one.num_train:,}) and in "
            f"evaluation ({one.num_evaluation:,}): {first_few(one.names)}"
        )
        is_in = images.is_ours & np.isin(images.rows["group"], one.groups)
        yield Finding(KIND, GRAVE, one.domain, what, len(one.groups), images=np.flatnonzero(is_in).tolist())
    if known:
        told = ", ".join(f"{one.domain} {len(one.groups)} of {one.num_groups}" for one in known)
        what = f"groups of whole classes have classes in training and in evaluation: {told}; no class leaks by that"
        yield Finding("known groups", MILD, "", what, sum(len(one.groups) for one in known))
    yield from class_findings(images)


class Shared(NamedTuple):
    """The groups of a domain that are on both sides."""

    domain: str
    groups: np.ndarray
    names: Sequence[str]
    num_groups: int
    """All of the domain."""
    num_train: int
    """Images of these groups."""
    num_evaluation: int
    is_coarse: bool
    """Whether they hold whole classes, and nobody asked to keep them together."""


def shared_groups(images: Images) -> Iterator[Shared]:
    """By domain, where there are any."""
    manifest = images.sets[0]
    rows = images.rows[images.is_ours]
    trained, evaluated = (
        np.bincount(rows["group"][side], minlength=len(manifest.groups))
        for side in (is_trained(rows), rows["split"] != TRAIN)
    )
    places = np.unique(rows[["split", "group"]])
    is_parted = np.bincount(places["group"], minlength=len(manifest.groups)) > 1
    owners = np.array([owner for owner, _ in manifest.groups])
    is_fine = manifest.is_multi_label or is_split_by_group(manifest)
    for domain in manifest.domains:
        is_owned = (owners == domain) & (np.arange(len(owners)) > 0)  # 0 is no group
        shared = np.flatnonzero(is_owned & is_parted & (trained > 0) & (evaluated > 0))
        if len(shared):
            yield Shared(
                domain,
                shared,
                [manifest.groups[group][1] for group in shared.tolist()],
                int((is_owned & (trained + evaluated > 0)).sum()),
                int(trained[shared].sum()),
                int(evaluated[shared].sum()),
                not is_fine and holds_whole_classes(images, domain),
            )


def is_split_by_group(manifest: Manifest) -> bool:
    """Whether `shards make` was told to keep groups together."""
    config = manifest.about.get("config", {})
    return bool(config.get("folds")) and config.get("fold_units") == "group"


def holds_whole_classes(images: Images, domain: str) -> bool:
    """Whether every class of the domain lies in one group."""
    classes = images.sets[0].classes
    return all(group for owner, group in zip(classes.domains, classes.groups, strict=True) if owner == domain)


def class_findings(images: Images) -> Iterator[Finding]:
    """Classes with images in several splits; only an input that brings its own split makes such sets."""
    classes = images.sets[0].classes
    shared = np.flatnonzero(((classes.table > 0).sum(0) > 1) | ((classes.folds > 0).sum(0) > 1))
    if len(shared):
        names = classes.class_names()
        splits = [part for part in classes.parts if classes.counts(part)[shared].any()]
        yield Finding(
            "shared classes",
            MILD,
            "",
            f"{len(shared)} of {len(classes)} classes have images in more than one of {', '.join(splits)}, as the input "
            f"says: {first_few(names[at] for at in shared.tolist())}; the evaluation is on known classes",
            len(shared),
        )


def leaking(findings: Iterator[Finding] | list[Finding], images: Images) -> Iterator[tuple[int, str]]:
    """(image, reason) of the training images of grave group leaks."""
    for finding in findings:
        if finding.kind == KIND and finding.severity == GRAVE:
            for at in finding.images:
                if images.rows["split"][at] == TRAIN:
                    yield at, f"{KIND}: its group is in an evaluation split"
