"""What is kept of the input and where it goes: the decisions of `shards make`, typed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shards.errors import ShardError
from shards.stated import MOST_FOLDS

FOLD_UNITS = ("class", "group")
STRATA = ("group", "label", "domain")


@dataclass(frozen=True, slots=True)
class Rules:
    """Filters first, then the split."""

    min_images: int | None = None
    """Classes with fewer images are dropped; None refuses classes with one image, unless the input brings its split."""
    max_images: int | None = None
    """Classes with more images are dropped."""
    cap_images: int | None = None
    """Of every class at most so many images are kept, those with the smallest hashes of their keys."""
    num_classes: int | None = None
    """Of every domain at most so many classes are kept, those with the smallest hashes (not those that split)."""
    rename_domains: Mapping[str, str] = field(default_factory=dict)
    """Domain as the input has it -> domain in the set."""
    dev_fraction: float | None = None
    """Share of the classes; None is 0.2, unless the input brings its own split."""
    test_fraction: float | None = None
    """None is 0."""
    queries: int | None = None
    """Query images of each evaluation class; None is one, and two from six images on."""
    train_only: bool = False
    """Every class is for training, and the set has no evaluation split."""
    folds: int | None = None
    """Number of folds of a k-fold split, which takes the place of the fractions."""
    fold: int | None = None
    """The fold that is dev, from 0; the others are for training. None: the set has all folds, and who trains on it says
    which one is held out."""
    fold_units: str = "class"
    """What never straddles folds: a class, or a group."""
    strata: str | None = None
    """What every fold gets its share of: the classes' groups, labels (for groups as units) or domains; None is domain."""

    def __post_init__(self) -> None:
        dev, test = self.dev_fraction or 0.0, self.test_fraction or 0.0
        if not (0 <= dev < 1 and 0 <= test < 1 and dev + test < 1):
            raise ShardError(
                f"--dev-fraction {dev:g} and --test-fraction {test:g} must be in [0, 1) and leave classes for training"
            )
        if self.train_only and (dev or test or self.folds):
            raise ShardError("--train-only and a split for dev or test exclude each other; leave one out")
        if self.min_images and self.max_images and self.max_images < self.min_images:
            raise ShardError(
                f"--max-images {self.max_images} is less than --min-images {self.min_images}: no class would be left"
            )
        self._check_folds(dev + test)

    @property
    def folds_in_set(self) -> int:
        """How many the set will have; 0 where one of them is its dev split for good."""
        return self.folds if self.folds and self.fold is None else 0

    def _check_folds(self, fractions: float) -> None:
        if self.folds is None:
            if self.fold is not None or self.fold_units != "class" or self.strata:
                raise ShardError("--fold, --fold-units and --strata belong to --folds; give the number of folds too")
            return
        if fractions:
            raise ShardError("--folds takes the place of --dev-fraction and --test-fraction; leave one out")
        if not 2 <= self.folds <= MOST_FOLDS:
            raise ShardError(f"--folds {self.folds}: at least 2, and at most {MOST_FOLDS}")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise ShardError(
                f"--fold {self.fold} is not one of the {self.folds} folds; give 0 to {self.folds - 1}, or leave it out for "
                "a set with all of them"
            )
        if self.fold_units not in FOLD_UNITS:
            raise ShardError(f"--fold-units {self.fold_units!r} is not one of {', '.join(FOLD_UNITS)}")
        if self.strata not in (None, *STRATA):
            raise ShardError(f"--strata {self.strata!r} is not one of {', '.join(STRATA)}")
        if self.strata == ("label" if self.fold_units == "class" else "group"):
            raise ShardError(f"--strata {self.strata}: with --fold-units {self.fold_units} each unit has only one")
