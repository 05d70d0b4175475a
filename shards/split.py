"""Where every record goes: train, or an evaluation split as query, index or distractor.

A split that the release brings wins. Without one, each class draws a number from a hash of `domain/label`: below
`dev_fraction` it is a dev class, then come `test_fraction` and train. So a class keeps its place when others are added.
The one exception keeps tiny sets usable: where a domain has at least 4 classes, the 2 with the smallest numbers are dev
whatever the numbers are (and the next 2 test, from 6 classes on, if test is asked for), and the 2 with the largest stay
in train. Within an evaluation class one image is the query, two from 6 images on (smallest hashes of their keys), the
rest is the index. An image without a label is a distractor.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shards.errors import ShardError, did_you_mean, first_few
from shards.record import Record

DEV_FRACTION = 0.2
IMAGES_FOR_TWO_QUERIES = 6
PLACES = (
    "train",
    *(f"{split}{role}" for split in ("dev", "test") for role in ("", "_query", "_index", "_distractor")),
)
ClassName = tuple[str, str]  # domain, label


@dataclass(frozen=True, slots=True)
class Rules:
    """How to split."""

    dev_fraction: float | None = None
    """Share of the classes; None is 0.2, unless the release brings its own split."""
    test_fraction: float | None = None
    """None is 0."""
    min_images: int | None = None
    """Classes with fewer images are dropped; None refuses classes with one image."""
    train_only: bool = False
    """Every class is for training, and the set has no evaluation split."""

    def __post_init__(self) -> None:
        dev, test = self.dev_fraction or 0.0, self.test_fraction or 0.0
        if not (0 <= dev < 1 and 0 <= test < 1 and dev + test < 1):
            raise ShardError(
                f"--dev-fraction {dev:g} and --test-fraction {test:g} must be in [0, 1) and leave classes for training"
            )
        if self.train_only and (dev or test):
            raise ShardError("--train-only and a fraction for dev or test exclude each other; leave one out")


@dataclass(frozen=True, slots=True)
class Placed:
    """A record that will become a sample."""

    record: Record
    key: str
    split: str
    role: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The places of all records that are kept."""

    placed: list[Placed]
    small: list[Record]
    """Of classes with fewer than min_images."""
    lonely: list[Record]
    """Queries without an index image of their class; only where `spare_lonely` was asked for."""


def make_plan(records: Sequence[Record], keys: Sequence[str], rules: Rules, *, spare_lonely: bool = False) -> Plan:
    """Places records and keeps their order; ShardError where the rules cannot be met.

    A query that nothing could be found for is the user's mistake, unless unreadable images made it so: then
    `spare_lonely` leaves it out.
    """
    pairs = list(zip(records, keys, strict=True))
    explicit = [record for record in records if record.split]
    if explicit:
        refuse_mixed(records, explicit, rules)
        pairs, small = drop_small(pairs, rules.min_images or 1)
        placed = give_roles([(record, key, *parse_place(record)) for record, key in pairs])
    else:
        refuse_single(records, rules)
        pairs, small = drop_small(pairs, rules.min_images or 1)
        splits = split_classes(count_images([record for record, _ in pairs]), rules)
        placed = give_roles([(record, key, split_of(record, splits, rules), None) for record, key in pairs])
    lonely = lonely_queries(placed)
    if lonely and not spare_lonely:
        names = [entry.record.name for entry in lonely]
        raise ShardError(
            f"{len(names)} queries have no index image of their class ({first_few(names)}): nothing could be found"
        )
    left_out = {entry.key for entry in lonely}
    placed = [entry for entry in placed if entry.key not in left_out]
    refuse_useless(placed, rules)
    return Plan(placed, small, [entry.record for entry in lonely])


def parse_place(record: Record) -> tuple[str, str | None]:
    """`dev_query` -> dev, query; `dev` -> dev, None."""
    assert record.split, "only called where the release brings a split"
    if record.split not in PLACES:
        hint = did_you_mean(record.split, PLACES)
        raise ShardError(f"{record.name}: split {record.split!r} is not one of {', '.join(PLACES)}{hint}")
    split, _, role = record.split.partition("_")
    if record.label is None and (split == "train" or role in ("query", "index")):
        raise ShardError(
            f"{record.name}: no label, but split {record.split}; only distractors go without, as dev_distractor"
        )
    if record.label is not None and role == "distractor":
        raise ShardError(f"{record.name}: a {record.split} with the label {record.label!r}; distractors have none")
    return split, role or None


def split_classes(counts: Mapping[ClassName, int], rules: Rules) -> dict[ClassName, str]:
    """train, dev or test for every class, by domain."""
    splits = dict.fromkeys(counts, "train")
    if rules.train_only:
        return splits
    dev_below = DEV_FRACTION if rules.dev_fraction is None else rules.dev_fraction
    test_below = dev_below + (rules.test_fraction or 0.0)
    by_domain: dict[str, list[ClassName]] = defaultdict(list)
    for name in sorted(counts, key=draw):
        if counts[name] >= 2:  # a lone image cannot be both query and index
            by_domain[name[0]].append(name)
    for names in by_domain.values():
        num_dev = sum(draw(name) < dev_below for name in names)
        num_test = sum(dev_below <= draw(name) < test_below for name in names)
        if dev_below and len(names) >= 4:
            num_dev = max(num_dev, 2)
        if test_below > dev_below and len(names) >= 6:
            num_test = max(num_test, 2)
        evaluated = names[: -2 if len(names) >= 4 else None]
        splits |= dict.fromkeys(evaluated[:num_dev], "dev")
        splits |= dict.fromkeys(evaluated[num_dev : num_dev + num_test], "test")
    return splits


def split_of(record: Record, splits: Mapping[ClassName, str], rules: Rules) -> str:
    """The record's split where the release brings none; a distractor draws like a class of its own."""
    if record.label is not None:
        return splits[record.domain, record.label]
    dev = DEV_FRACTION if rules.dev_fraction is None else rules.dev_fraction
    test = rules.test_fraction or 0.0
    return "test" if test and draw((record.domain, record.source)) * (dev + test) >= dev else "dev"


def draw(name: tuple[str, ...]) -> float:
    """A number in [0, 1) that depends on the name only."""
    return (
        int.from_bytes(
            hashlib.blake2b("\0".join(name).encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big"
        )
        / 2**64
    )


def give_roles(entries: Sequence[tuple[Record, str, str, str | None]]) -> list[Placed]:
    """Fills in the roles that nobody said."""
    open_keys: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for record, key, split, role in entries:
        if split != "train" and role is None and record.label is not None:
            open_keys[split, record.domain, record.label].append(key)
    queries = set()
    for keys in open_keys.values():
        num_queries = 0 if len(keys) < 2 else 1 if len(keys) < IMAGES_FOR_TWO_QUERIES else 2
        queries |= set(sorted(keys, key=lambda key: draw((key,)))[:num_queries])
    placed = []
    for record, key, split, role in entries:
        if split == "train":
            role = "train"
        elif role is None:
            role = "distractor" if record.label is None else "query" if key in queries else "index"
        placed.append(Placed(record, key, split, role))
    return placed


def drop_small(pairs: list[tuple[Record, str]], min_images: int) -> tuple[list[tuple[Record, str]], list[Record]]:
    """Those of large enough classes, and the records of the others."""
    counts = count_images([record for record, _ in pairs])
    names = {name for name, count in counts.items() if count < min_images}
    kept = [(record, key) for record, key in pairs if (record.domain, record.label) not in names]
    return kept, [record for record, _ in pairs if (record.domain, record.label) in names]


def count_images(records: Sequence[Record]) -> Counter[ClassName]:
    """Images by class."""
    return Counter((record.domain, record.label) for record in records if record.label is not None)


def refuse_mixed(records: Sequence[Record], explicit: Sequence[Record], rules: Rules) -> None:
    """A split that the release brings must cover everything, and leaves nothing to choose."""
    if len(explicit) < len(records):
        lacking = [record.name for record in records if not record.split]
        raise ShardError(
            f"{len(lacking)} of {len(records)} images have no split ({first_few(lacking)}); give all or none one"
        )
    for option, value in (("--dev-fraction", rules.dev_fraction), ("--test-fraction", rules.test_fraction)):
        if value is not None:
            raise ShardError(f"{option} {value:g} would not be used: the input brings its own split; leave it out")
    evaluated = sum(record.split != "train" for record in records)
    if rules.train_only and evaluated:
        raise ShardError(f"--train-only, but the input puts {evaluated} images into dev or test; leave it out")


def refuse_single(records: Sequence[Record], rules: Rules) -> None:
    """A class with one image is a decision for the user."""
    single = sorted(f"{domain}/{label}" for (domain, label), count in count_images(records).items() if count == 1)
    if single and rules.min_images is None:
        verb = "class has" if len(single) == 1 else "classes have"
        raise ShardError(
            f"{len(single)} {verb} one image only ({first_few(single)}): they cannot be found again; "
            "--min-images 2 drops them, --min-images 1 keeps them for training"
        )


def refuse_useless(placed: Sequence[Placed], rules: Rules) -> None:
    """A set must be good for training and, unless told otherwise, for evaluation."""
    trained = {(p.record.domain, p.record.label) for p in placed if p.split == "train"}
    if len(trained) < 2:
        images = len(placed)
        raise ShardError(
            f"{len(trained)} training classes among {images} images; training needs at least 2: "
            "add classes, or lower --dev-fraction or --min-images"
        )
    evaluated = [entry for entry in placed if entry.split != "train"]
    if rules.train_only and evaluated:
        raise ShardError(f"{len(evaluated)} images have no label, and --train-only leaves no evaluation split for them")
    if not rules.train_only and not any(entry.role == "query" for entry in evaluated):
        raise ShardError(
            f"none of the {len(trained)} classes ended in an evaluation split, so nothing could be measured; "
            "raise --dev-fraction, or pass --train-only to accept it"
        )


def lonely_queries(placed: Sequence[Placed]) -> list[Placed]:
    """Queries whose class has no index image in their split."""
    found = {(p.split, p.record.domain, p.record.label) for p in placed if p.role == "index"}
    return [p for p in placed if p.role == "query" and (p.split, p.record.domain, p.record.label) not in found]
