"""Properties of the files that tell what a picture is for, or its label, without a look at the picture.

Distractors that are all 512 x 512, an evaluation that another program wrote: a network finds that, and a score means
nothing. A rule is learnt from half of the data and tried on the other: for each value, on which of two sides it is more
frequent. Its balanced accuracy (the mean of the shares that it gets right on each side) is 0.5 where the property says
nothing. The halves are made of whole classes, because images of a class often come from one camera, and that alone would
tell its split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from shards.audit.findings import Finding
from shards.audit.images import TRAIN, Images, is_trained
from shards.audit.relations import GRAVE, INDEX, NOTABLE, QUERY
from shards.audit.traits import FORMATS, HAS_ALPHA, HAS_EXIF, IS_GREY
from shards.record import ROLES

KIND = "format leak"
LEAST_ACCURACY, GRAVE_ACCURACY = 0.65, 0.85
LEAST_ERRORS = 4.0
"""Standard errors above one half; hundreds of properties, domains and sides are tried."""
LEAST_IMAGES, LEAST_UNITS = 20, 5
"""On each side."""
LABEL_ACCURACY = 0.5
"""Of what could be gained over chance, for a property that tells the label."""
DISTRACTOR = ROLES.index("distractor")
OF_DETAIL = ("file size", "bytes per pixel")
"""These also say how much detail a picture has, so another property comes first, and alone they are never grave."""


class Contrast(NamedTuple):
    """Two sides that nothing but their pictures should tell apart."""

    one: str
    other: str
    is_one: np.ndarray
    is_other: np.ndarray
    worst: str
    """How grave it is at most."""


class Tell(NamedTuple):
    """How well one property tells two sides apart."""

    name: str
    accuracy: float
    error: float
    """Standard error of the accuracy."""
    value: str
    """The one most typical of the first side, with its share on both."""
    share_one: float
    share_other: float


def tell_findings(images: Images) -> Iterator[Finding]:
    """One a contrast and domain, by its most telling property; then properties that tell labels."""
    rows = images.rows[images.is_ours & ~images.is_broken]
    positions = np.flatnonzero(images.is_ours & ~images.is_broken)
    values = properties(rows)
    domain_ids = [(name, rows["domain"] == at) for at, name in enumerate(images.domains)]
    for contrast in contrasts(rows):
        parts = [(name, part) for name, part in domain_ids if is_enough(rows, contrast, part)]
        if not parts and is_enough(rows, contrast, np.ones(len(rows), bool)):
            parts = [("", np.ones(len(rows), bool))]  # distractors in a domain of their own
        for domain, part in parts:
            yield from contrast_findings(rows, values, contrast, domain, part, positions)
    for at, name in enumerate(images.domains):
        is_mine = (rows["domain"] == at) & is_trained(rows) & (rows["label"] >= 0)
        yield from label_findings(rows[is_mine], {key: value[is_mine] for key, value in values.items()}, name)


def contrasts(rows: np.ndarray) -> list[Contrast]:
    """Training and evaluation; distractors and what has a label; queries and index."""
    is_train = rows["split"] == TRAIN
    is_distractor = ~is_train & (rows["role"] == DISTRACTOR)
    is_query, is_index = ((rows["role"] == role) & ~is_train for role in (QUERY, INDEX))
    return [
        Contrast("evaluation", "training", is_query | is_index, is_train, GRAVE),
        Contrast("distractors", "the other evaluation images", is_distractor, is_query | is_index, GRAVE),
        Contrast("queries", "the index", is_query, is_index, NOTABLE),
    ]


def properties(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Text by name of property and image: the file as it is, nothing of the picture."""
    width, height = rows["width"].astype(np.int64), rows["height"].astype(np.int64)
    flags = rows["flags"]
    aspect = np.round(4 * np.log2(np.maximum(width, 1) / np.maximum(height, 1))) / 4
    colour = np.where(flags & IS_GREY, 1, 0) + np.where(flags & HAS_ALPHA, 2, 0)
    pixels = np.maximum(width * height, 1)
    return {
        "size": width << 32 | height,
        "width": width,
        "height": height,
        "aspect ratio": aspect,
        "format": rows["format"].astype(np.int64),
        "JPEG quality": rows["quality"].astype(np.int64),
        "JPEG tables": rows["encoder"].astype(np.int64),
        "EXIF": (flags & HAS_EXIF).astype(np.int64),
        "colour mode": colour,
        "file size": np.round(2 * np.log2(np.maximum(rows["bytes"], 1))),
        "bytes per pixel": np.round(2 * np.log2(np.maximum(rows["bytes"], 1) / pixels)),
    }


def describe(name: str, value: float) -> str:
    """A value as a reader knows it."""
    if name == "size":
        return f"{int(value) >> 32}×{int(value) & 0xFFFFFFFF}"
    if name == "aspect ratio":
        return f"width/height {2**value:.2f}"
    if name == "format":
        return FORMATS[int(value)]
    if name == "EXIF":
        return "with EXIF" if value else "without EXIF"
    if name == "colour mode":
        return ("RGB", "grey", "RGB with alpha", "grey with alpha")[int(value)]
    if name == "file size":
        return f"about {2 ** (value / 2) / 1000:.3g} kB"
    if name == "bytes per pixel":
        return f"about {2 ** (value / 2):.2g} bytes a pixel"
    if name == "JPEG tables":
        return f"JPEG tables {int(value):04x}"
    return f"{name} {value:g}"


def units(rows: np.ndarray) -> np.ndarray:
    """What a half has all or nothing of: a class, or an image without a label."""
    labels = rows["label"].astype(np.int64)
    return np.where(labels >= 0, labels, -1 - np.arange(len(rows)))


def halves(units_N: np.ndarray) -> np.ndarray:
    """0 or 1 by unit, as a hash of it says."""
    mixed = (units_N.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((mixed >> np.uint64(40)) & np.uint64(1), np.int64)


def is_enough(rows: np.ndarray, contrast: Contrast, part: np.ndarray) -> bool:
    """Whether both sides have enough images and classes to say something."""
    return all(
        (side & part).sum() >= LEAST_IMAGES and len(np.unique(units(rows)[side & part])) >= LEAST_UNITS
        for side in (contrast.is_one, contrast.is_other)
    )


def contrast_findings(
    rows: np.ndarray,
    values: Mapping[str, np.ndarray],
    contrast: Contrast,
    domain: str,
    part: np.ndarray,
    positions: np.ndarray,
) -> Iterator[Finding]:
    """The most telling property of one contrast in one domain, if any tells."""
    chosen = np.flatnonzero((contrast.is_one | contrast.is_other) & part)
    is_one = contrast.is_one[chosen]
    unit_N = units(rows)[chosen]
    tells = [measure(name, value[chosen], is_one, unit_N) for name, value in values.items()]
    tells = [one for one in tells if is_telling(one)]
    if not tells:
        return
    tells.sort(
        key=lambda one: (one.name in OF_DETAIL, -round(20 * one.accuracy))
    )  # nearly as good: the first one named
    best, rest = tells[0], [one.name for one in tells[1:]]
    what = (
        f"{best.name} tells {contrast.one} from {contrast.other} with a balanced accuracy of {best.accuracy:.2f} "
        f"(0.5 is chance); {best.value}: {best.share_one:.0%} of {contrast.one} and {best.share_other:.0%} of "
        f"{contrast.other}" + (f"; so do {', '.join(rest)}" if rest else "")
    )
    is_grave = best.accuracy >= GRAVE_ACCURACY and best.name not in OF_DETAIL
    severity = contrast.worst if is_grave else NOTABLE
    numbers = {"accuracy": best.accuracy, "error": best.error}
    title = f"{contrast.one} in {domain}" if domain else contrast.one
    images = positions[chosen[is_one][:8]], positions[chosen[~is_one][:8]]
    yield Finding(
        KIND, severity, title, what, int(is_one.sum()), images=np.concatenate(images).tolist(), numbers=numbers
    )


def is_telling(tell: Tell) -> bool:
    """Whether this is more than chance, by enough to matter."""
    return tell.accuracy >= LEAST_ACCURACY and tell.accuracy - 0.5 >= LEAST_ERRORS * tell.error


def measure(name: str, value_N: np.ndarray, is_one_N: np.ndarray, unit_N: np.ndarray) -> Tell:
    """Each half is judged by what the other half says; a value that it has not seen counts one half."""
    values, code_N = np.unique(value_N, return_inverse=True)
    half_N = halves(unit_N)
    score_N = np.full(len(code_N), 0.5)
    for half in (0, 1):
        learnt, tried = half_N != half, half_N == half
        one, other = (shares(code_N[learnt & side], len(values)) for side in (is_one_N, ~is_one_N))
        score_N[tried] = (0.5 * (1 + np.sign(one - other)))[code_N[tried]]
    right_N = np.where(is_one_N, score_N, 1 - score_N)
    means, errors = zip(*(mean_of_units(right_N[side], unit_N[side]) for side in (is_one_N, ~is_one_N)), strict=True)
    one, other = (shares(code_N[side], len(values)) for side in (is_one_N, ~is_one_N))
    top = int(np.argmax(one - other))
    error = float(np.hypot(*errors)) / 2
    value = describe(name, float(values[top]))
    return Tell(name, sum(means) / 2, error, value, float(one[top]), float(other[top]))


def shares(codes: np.ndarray, count: int) -> np.ndarray:
    """Of each value; 0 everywhere where there is nothing."""
    return np.asarray(np.bincount(codes, minlength=count) / max(len(codes), 1))


def mean_of_units(score_N: np.ndarray, unit_N: np.ndarray) -> tuple[float, float]:
    """(mean, its standard error) over units, each counting as one: images of a class are not independent."""
    _, at_N = np.unique(unit_N, return_inverse=True)
    mean_U = np.bincount(at_N, score_N) / np.bincount(at_N)
    spread = float(mean_U.std(ddof=1)) if len(mean_U) > 1 else 0.5
    return float(mean_U.mean()), max(spread, 1 / len(mean_U)) / float(np.sqrt(len(mean_U)))


def label_findings(rows: np.ndarray, values: Mapping[str, np.ndarray], domain: str) -> Iterator[Finding]:
    """Properties that tell the class of a training image: one with the class's own value is found without being seen."""
    labels, label_N, sizes = np.unique(rows["label"], return_inverse=True, return_counts=True)
    if len(labels) < 2 or len(rows) < LEAST_IMAGES or np.median(sizes) < 4:
        return
    order = np.argsort(label_N, kind="stable")
    starts = np.cumsum(sizes) - sizes
    half_N = np.empty(len(rows), np.int64)
    half_N[order] = (np.arange(len(rows)) - np.repeat(starts, sizes)) % 2  # every class in both halves
    told = []
    for name, value_N in values.items():
        codes, code_N = np.unique(value_N, return_inverse=True)
        accuracy = label_accuracy(code_N, label_N, half_N, len(labels)) if len(codes) > 1 else 0.0
        gain = (accuracy - 1 / len(labels)) / (1 - 1 / len(labels))
        if gain >= LABEL_ACCURACY:
            told.append((gain, accuracy, name))
    if told:
        _, accuracy, best = max(told)
        rest = [name for _, _, name in sorted(told, reverse=True)[1:]]
        what = (
            f"{best} alone gives the right one of {len(labels)} training classes for {accuracy:.0%} of the images "
            f"(chance {1 / len(labels):.1%})" + (f"; also {', '.join(rest)}" if rest else "")
        )
        yield Finding(KIND, NOTABLE, f"labels in {domain}", what, len(labels), numbers={"accuracy": accuracy})


def label_accuracy(code_N: np.ndarray, label_N: np.ndarray, half_N: np.ndarray, num_labels: int) -> float:
    """Mean over classes of the share that the other half's most likely class for the value gets right."""
    sizes = np.bincount(label_N, minlength=num_labels)
    right_N = np.zeros(len(code_N), bool)
    for half in (0, 1):
        learnt, tried = half_N != half, half_N == half
        cells, counts = np.unique(code_N[learnt] * num_labels + label_N[learnt], return_counts=True)
        share = counts / np.maximum(sizes[cells % num_labels], 1)
        order = np.lexsort((-share, cells // num_labels))
        known, first = np.unique(cells[order] // num_labels, return_index=True)
        guess = np.full(int(code_N.max()) + 1, -1)
        guess[known] = cells[order][first] % num_labels
        right_N[tried] = guess[code_N[tried]] == label_N[tried]
    return float((np.bincount(label_N, right_N, minlength=num_labels) / np.maximum(sizes, 1)).mean())
