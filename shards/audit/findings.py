"""What an audit says, in one form for the screen, the page and the lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from shards.audit.copies import EXACT, NEAR
from shards.audit.images import BLANK_DEVIATION, Images
from shards.audit.meetings import Meetings
from shards.audit.relations import GRAVE, MILD, NOTABLE, RELATIONS

SEVERITIES = (GRAVE, NOTABLE, MILD)
MOST_LISTED = 20
"""Pairs of one meeting that are listed; all are counted."""
Pair = tuple[int, int, int]
"""Two images, and in how many bits their hashes differ."""


@dataclass(frozen=True)
class Finding:
    """One thing that is so, with the images that show it."""

    kind: str
    """`exact duplicate`, `near duplicate`, `group leak`, `format leak`, `imbalance`, `tiny`, `blank`, `broken`, …"""
    severity: str
    title: str
    """Which one of its kind: the relation of the images, the domain."""
    what: str
    """A sentence with the numbers."""
    count: int
    """Pairs, images, groups or classes."""
    pairs: Sequence[Pair] = ()
    images: Sequence[int] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


def pair_findings(meetings: Meetings) -> Iterator[Finding]:
    """One a kind of copy and relation; exact before near."""
    is_exact = np.array([bundle.kind == EXACT for bundle in meetings.bundles], bool)[meetings.bundle]
    num_pairs = meetings.num_pairs()
    for relation in RELATIONS:
        holds = meetings.holds(relation)
        for kind, chosen in ((EXACT, holds & is_exact), (NEAR, holds & ~is_exact)):
            count = int(num_pairs[chosen].sum())
            if count:
                numbers = {"bundles": len(np.unique(meetings.bundle[chosen]))}
                pairs = list_pairs(meetings, chosen)
                yield Finding(kind, relation.severity, relation.name, relation.meaning, count, pairs, (), numbers)


def list_pairs(meetings: Meetings, chosen: np.ndarray) -> list[Pair]:
    """The pairs of these meetings, at most MOST_LISTED of each: one of every meeting first, equal hashes before others."""
    listed = []
    for at in np.flatnonzero(chosen).tolist():
        bits = meetings.bundles[meetings.bundle[at]].bits
        listed += [(turn, bits, *pair) for turn, pair in enumerate(meetings.pairs(at, MOST_LISTED))]
    return [(one, other, bits) for _, bits, one, other in sorted(listed)]


def image_findings(images: Images, *, tiny_px: int) -> Iterator[Finding]:
    """Images that are bad by themselves."""
    rows = images.rows
    is_tiny = ~images.is_broken & (np.minimum(rows["width"], rows["height"]) < tiny_px)
    for kind, severity, what, is_so in (
        ("broken", GRAVE, "cannot be decoded; `shards check` names the reason", images.is_broken),
        ("blank", NOTABLE, f"of one colour: the grey levels deviate by less than {BLANK_DEVIATION:g}", images.is_blank),
        ("tiny", MILD, f"the short side has less than {tiny_px} pixels", is_tiny),
    ):
        found = np.flatnonzero(is_so & images.is_ours)
        if len(found):
            yield Finding(kind, severity, "", what, len(found), images=found.tolist())
