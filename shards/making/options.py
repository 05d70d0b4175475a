"""The options that all sources share, given on the command line or in a YAML file, and the order that they make.

A YAML file has the options' names as keys, and `source`; what the command line says wins over it:

    source: table
    table: food.csv
    images: photos
    min_images: 3
    rename_domain: {dish: food}
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.arguments import add_workers, count, pair, seed, share
from shards.errors import ShardError, did_you_mean
from shards.files import is_url, place_path, shown
from shards.sources import load_source, source_names

if TYPE_CHECKING:
    from shards.making.maker import Order
    from shards.manifest import Manifest

NOT_COMPARED = ("command", "source", "run", "out", "force", "workers", "max_skipped", "drop")
KINDS = (".yaml", ".yml")


def add_set_options(parser: argparse.ArgumentParser) -> None:
    """How the set is written."""
    add = parser.add_argument_group("the set").add_argument
    add("--force", action="store_true", help="replace a set that is there")
    add_workers(add)
    add("--seed", type=seed, default=0, help="of the shuffle (default: 0)")
    add("--shard-mb", type=count, default=256, metavar="MB", help="largest shard in 10^6 bytes (default: 256)")
    add("--shard-samples", type=count, metavar="N", help="most samples in a shard (default: as many as fit)")
    add("--max-skipped", type=share, default=0.01, metavar="SHARE", help="unreadable images allowed (default: 1%%)")
    add("--drop", type=Path, metavar="CSV", help="leave out the samples in its column `key` (shards audit writes one)")


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """What the images become."""
    add = parser.add_argument_group("the images (default: the files as they are)").add_argument
    add("--max-side", type=count, metavar="PX", help="make the longest side at most this")
    add("--short-side", type=count, metavar="PX", help="make the shortest side at most this")
    add("--format", choices=("keep", "jpeg", "png", "webp"), default="keep", help="of all images (default: keep)")
    add("--quality", type=percent, default=90, metavar="Q", help="of re-encoded JPEG and WebP (default: 90)")
    add("--crop", action="store_true", help="cut to the bounding box, where there is one")
    add("--margin", type=share, default=0.0, metavar="SHARE", help="of the box, to keep around it (default: 0)")
    add(
        "--verify",
        choices=("pixels", "structure"),
        default="pixels",
        help="decode every image once, or only look whether the file is whole (default: pixels)",
    )


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """What is kept and where it goes."""
    add = parser.add_argument_group("what is kept").add_argument
    add("--min-images", type=count, metavar="N", help="drop classes with fewer images (default: refuse single ones)")
    add("--max-images", type=count, metavar="N", help="drop classes with more images")
    add("--cap-images", type=count, metavar="N", help="keep at most so many images of each class")
    add("--num-classes", type=count, metavar="N", help="keep at most so many classes of each domain")
    add("--rename-domain", type=pair, action="append", default=[], metavar="OLD=NEW", help="may be repeated")
    add = parser.add_argument_group("the split").add_argument
    add(
        "--dev-fraction",
        type=share,
        metavar="SHARE",
        help="of the classes, if the input brings no split (default: 20%%)",
    )
    add("--test-fraction", type=share, metavar="SHARE", help="of the classes (default: none)")
    add(
        "--folds",
        type=count,
        metavar="K",
        help="stratified group k-fold instead of fractions; training says data.fold=0",
    )
    add(
        "--fold",
        type=seed,
        metavar="I",
        help="make the set of one fold: it is dev, the others are train (default: all)",
    )
    add("--fold-units", choices=("class", "group"), default="class", help="what never straddles folds (default: class)")
    add("--strata", choices=("domain", "group", "label"), help="what is balanced over the folds (default: domain)")
    add(
        "--queries", type=count, metavar="N", help="queries of each evaluated class (default: 1, or 2 from 6 images on)"
    )
    add("--train-only", action="store_true", help="make no evaluation split")


def percent(text: str) -> int:
    """1 to 100"""
    value = count(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text} is more than 100")
    return value


def read_order(options: argparse.Namespace, out: Path | str) -> Order:
    """What the options ask for."""
    from shards.images.imaging import Look
    from shards.making.drops import read_drops
    from shards.making.layout import Sizes
    from shards.making.maker import Order
    from shards.making.rules import Rules

    named = {name: value for name, value in sorted(vars(options).items()) if name not in NOT_COMPARED}
    paths = {name: where(value) for name, value in named.items() if isinstance(value, Path) or is_url(str(value))}
    dropped = read_drops(options.drop) if options.drop else frozenset[int]()
    return Order(
        out=out,
        config={
            "source": options.source,
            **{name: plain(value) for name, value in named.items() if name not in paths},
            **({"dropped": digest(dropped)} if dropped else {}),
        },
        given=paths | ({"drop": str(options.drop.absolute())} if options.drop else {}),
        rules=Rules(
            **{name: getattr(options, name) for name in RULES if name != "rename_domains"},
            rename_domains=dict(options.rename_domain),
        ),
        sizes=Sizes(options.shard_mb * 10**6, options.shard_samples),
        look=Look(**{name: getattr(options, name) for name in LOOKS}),
        seed=options.seed,
        max_skipped=options.max_skipped,
        dropped=dropped,
        workers=options.workers,
        force=options.force,
    )


RULES = [
    "min_images",
    "max_images",
    "cap_images",
    "num_classes",
    "rename_domains",
    "dev_fraction",
    "test_fraction",
    "queries",
    "train_only",
    "folds",
    "fold",
    "fold_units",
    "strata",
]
SIZES = ["seed", "shard_mb", "shard_samples"]
LOOKS = ["max_side", "short_side", "format", "quality", "crop", "margin", "verify"]


def where(path: Path | str) -> str:
    """Absolute, or the URL without what signs it."""
    return str(path.absolute()) if isinstance(path, Path) else shown(path)


def rule_defaults() -> dict[str, Any]:
    """Every option of add_split_options as if it had not been given."""
    parser = argparse.ArgumentParser(add_help=False)
    add_split_options(parser)
    return vars(parser.parse_args([]))


def options_of(manifest: Manifest) -> argparse.Namespace:
    """The options that a set was made with; ShardError where it was not made from a source."""
    source = manifest.about["config"].get("source")
    if source not in source_names():
        raise ShardError(f"{manifest.folder} was made by {source!r}, not from a source that could be read again")
    actions = source_parser(source)._actions
    options = argparse.Namespace(**{action.dest: action.default for action in actions if action.dest != "help"})
    for name, value in manifest.about["config"].items():
        setattr(options, name, value)
    for name, value in manifest.about["given"].items():
        setattr(options, name, place_path(value))
    return options


def set_option_names() -> list[str]:
    """Of add_set_options."""
    parser = argparse.ArgumentParser(add_help=False)
    add_set_options(parser)
    return [action.dest for action in parser._actions]


def shared_options_of(manifest: Manifest) -> dict[str, Any]:
    """Those that the set was made with and that say something of any source."""
    names = {*RULES, *LOOKS, *SIZES} - {"rename_domains"}
    return {name: value for name, value in manifest.about["config"].items() if name in names}


def plain(value: Any) -> Any:
    """As JSON gives it back, so that what was written compares equal."""
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def digest(hashes: frozenset[int]) -> str:
    """Of a list of samples to leave out."""
    import hashlib

    return hashlib.sha256(",".join(map(str, sorted(hashes))).encode()).hexdigest()[:16]


def from_yaml(path: Path) -> list[str]:
    """The command-line words that say the same as the file: source first."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not isinstance(content.get("source"), str):
        raise ShardError(f"{path}: needs `source: NAME` and options by their names, like `min_images: 2`")
    source = content.pop("source")
    return [source, *as_words(path, source, content)]


def as_words(path: Path, source: str, content: Mapping[Any, Any]) -> list[str]:
    """`min_images: 2` -> --min-images 2; all mistakes in one error."""
    actions = {action.dest: action for action in source_parser(source)._actions if action.dest != "help"}
    problems: list[str] = []
    words: list[str] = []
    positional: list[str] = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        action = actions.get(name)
        if action is None:
            problems.append(
                f"{key}  unknown key{did_you_mean(name, actions) or '; see shards make ' + source + ' --help'}"
            )
            continue
        try:
            given = to_words(action, value)
        except ValueError as error:
            problems.append(f"{key}  {error}")
            continue
        (words if action.option_strings else positional).extend(given)
    if problems:
        count_of = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ShardError(f"{path}: {count_of}\n" + "\n".join(f"  {problem}" for problem in problems))
    return [*positional, *words]


def to_words(action: argparse.Action, value: Any) -> list[str]:
    """The words for one option; ValueError that says what is wrong with its value."""
    option = list(action.option_strings[-1:])
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is not true or false")
        return option if value else []
    if isinstance(value, dict):
        value = [f"{old}={new}" for old, new in value.items()]
    elif isinstance(value, list) and not isinstance(action, argparse._AppendAction) and action.nargs is None:
        value = ",".join(map(str, value))
    words = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, (bool, dict, list)) or one is None:
            raise ValueError(f"{one!r} is not a text or a number")
        if not option and str(one).startswith("-"):
            raise ValueError(f"{one!r} would be taken for an option; write ./{one}")
        check_word(action, str(one))
        words += [*option, str(one)] if not option else [f"{option[0]}={one}"]
    return words


def check_word(action: argparse.Action, word: str) -> None:
    """ValueError where the option would not take it."""
    try:
        value = action.type(word) if callable(action.type) else word
    except (argparse.ArgumentTypeError, ValueError, TypeError) as error:
        raise ValueError(str(error)) from error
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"{word!r} is not one of {', '.join(map(str, action.choices))}")


def source_parser(name: str) -> argparse.ArgumentParser:
    """A parser with the options of this source, to look them up."""
    parser = argparse.ArgumentParser(add_help=False)
    load_source(name).add_options(parser)
    parser.add_argument("--out")
    for add in (add_set_options, add_image_options, add_split_options):
        add(parser)
    return parser


def is_yaml(words: Sequence[str]) -> bool:
    """Whether the source is a file that says which."""
    return bool(words) and words[0].endswith(KINDS)
