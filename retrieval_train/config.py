"""YAML + overrides -> frozen, typed, strict models; every mistake at once, each with its path.

Three steps, so that each can be tested alone: `read` merges a file with its `base:` and the `key=value` overrides
and resolves `${...}` (OmegaConf); `check` turns the plain mapping into a model (pydantic) or raises one `ConfigError`
that lists all problems; `dump` writes the model with every default, such that `load(dump(c)) == c`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from retrieval_train.config_problems import problem_of


class ConfigError(ValueError):
    """What is wrong with a config: `where` and one line a problem, fit to be shown as it is."""

    def __init__(self, where: str, problems: Sequence[tuple[str, str]]) -> None:
        self.where = where
        self.problems = list(problems)
        width = max((len(path) for path, _ in problems), default=0)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"  {path:<{width}}  {text}".rstrip() for path, text in problems]
        super().__init__("\n".join([f"{where}: {count}", *lines]))


class Section(BaseModel):
    """A part of a config: unknown keys are refused, values are never changed after they were checked.

    A field marked with `place=True` in its `json_schema_extra` says where a thing runs or lies, not what it is: it is
    left out of the run's identity (see `identity`). One marked by `later()` came when there were runs already: it is left
    out while it has its default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_text_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic reads "3" as 3 and true as 1; in a config both are mistakes that should be seen."""
        assert info.field_name is not None
        kinds = set(_plain_types(cls.model_fields[info.field_name].annotation))
        inside = (
            value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
        )
        for one in inside:
            if isinstance(one, bool) and kinds & {int, float} and bool not in kinds:
                raise ValueError(f"{str(one).lower()} is not a number")
            if isinstance(one, str) and kinds & {int, float, bool} and not kinds & {str, Path}:
                wanted = "true or false" if bool in kinds else "a number"
                raise ValueError(f"'{one}' is text where {wanted} is needed")
        return value


Model = TypeVar("Model", bound=BaseModel)

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
"""A name that becomes a folder's: letters, digits, '.', '_' and '-'."""


def read(path: Path, *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain mapping of a YAML file over its `base:` (a path relative to the file), under `key=value` overrides.

    A `head` or `loss` that is given another name begins anew: what lower layers say of the former one is dropped, for its
    margin is no margin of another rule.

    Raises ConfigError for a file that is missing or no YAML mapping, a malformed override and an unresolvable `${...}`.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    layers: list[Any] = [OmegaConf.create(layer) for layer in _chain(Path(path))]
    problems = [(item, "not of the form key=value") for item in overrides if "=" not in item or item.startswith("=")]
    if problems:
        raise ConfigError("command line", problems)
    merged: Any = OmegaConf.create({})
    for layer in layers:
        _drop_renamed(merged, layer)
        merged = OmegaConf.unsafe_merge(merged, layer)

    def in_turn(lower: Any) -> Any:
        for item in overrides:
            try:
                lower = OmegaConf.unsafe_merge(lower, OmegaConf.from_dotlist([item]))
            except Exception as error:  # OmegaConf lets YAML's own errors through
                raise ConfigError("command line", [(item, _first_line(error))]) from error
        return lower

    # by all overrides at once, so that `head.scale=20 head.name=cosface` keeps the 20
    _drop_renamed(merged, in_turn(OmegaConf.create({})))
    merged = in_turn(merged)
    try:
        resolved = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(path), [(str(error.full_key or "${...}"), _unresolved(error))]) from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


_WHOLE = ("head", "loss")


def _drop_renamed(lower: Any, layer: Any) -> None:
    """Take the sections out of `lower` that `layer` gives another name."""
    from omegaconf import DictConfig

    for key in layer:
        below, above = lower._get_node(key), layer._get_node(key)  # as they are written: ${...} may lead nowhere yet
        if not all(isinstance(node, DictConfig) and not node._is_none() for node in (below, above)):
            continue
        if key in _WHOLE and "name" in above and above.get("name") != below.get("name"):
            del lower[key]
        else:
            _drop_renamed(below, above)


def check(model: type[Model], values: Mapping[str, Any], *, where: str) -> Model:
    """`values` as a `model`. Raises ConfigError with every problem, each with its dotted path and what is allowed."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(where, [problem_of(model, values, item) for item in error.errors()]) from None


def dump(config: BaseModel) -> str:
    """The config as YAML with every default written out."""
    import yaml

    values = json.loads(config.model_dump_json())
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def load(model: type[Model], path: Path) -> Model:
    """A config that `dump` wrote."""
    return check(model, read(path), where=str(path))


def identity(config: BaseModel, inputs: Mapping[str, str]) -> str:
    """8 hex digits of what the run *is*: equal for the same experiment on other nodes, devices, folders or trackers.

    `inputs` are the digests of what the config's paths lead to: the same name with other content is another run.
    """
    values = {"config": frozen_values(config), "inputs": dict(inputs)}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def frozen_values(config: BaseModel) -> dict[str, Any]:
    """What of a config makes the run what it is, as JSON: all but places. Paths are null: what they lead to is an input."""
    kept = {name: _without_places(getattr(config, name)) for name in _kept_fields(config)}
    return {name: value for name, value in kept.items() if not _is_later(config, name, value)}


def as_now(values: Mapping[str, Any], config: BaseModel) -> dict[str, Any]:
    """Frozen values that older code wrote, as this code would: fields that came since have their default, new places go."""
    known = {name: value for name, value in values.items() if name not in type(config).model_fields}
    for name, field in _kept_fields(config).items():
        mine, theirs = getattr(config, name), values.get(name)
        if name in values:
            known[name] = (
                as_now(theirs, mine) if isinstance(mine, BaseModel) and isinstance(theirs, Mapping) else theirs
            )
        elif not field.is_required():
            known[name] = _without_places(field.get_default(call_default_factory=True, validated_data={}))
    return {name: value for name, value in known.items() if not _is_later(config, name, value)}


def _followed(path: Path) -> Path:
    return path.resolve() if path.exists() else path


LinkedPath = Annotated[Path, AfterValidator(_followed)]
"""A path that may go through `runs/<name>`, which follows the newest run: the config says which one that was."""


# --- reading


def _chain(path: Path, seen: tuple[Path, ...] = ()) -> list[Any]:
    """The file's mapping after those of its bases, the most basic first."""
    from omegaconf import OmegaConf

    if path.resolve() in seen:
        raise ConfigError(str(path), [("base", "the files name each other as base in a circle")])
    if not path.is_file():
        beside = sorted(other.name for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        nearest = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {path.parent / nearest[0]}?" if nearest else ""
        raise ConfigError(str(path), [("config", f"no such file{hint}")])
    try:
        values = OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(str(path), [("config", f"not readable as YAML: {_first_line(error)}")]) from error
    if not OmegaConf.is_dict(values):
        raise ConfigError(str(path), [("config", "holds no mapping of keys to values")])
    base = values.pop("base", None)
    return [*(_chain(path.parent / base, (*seen, path.resolve())) if base else []), values]


def _unresolved(error: Exception) -> str:
    text = _first_line(error)
    if "Environment variable" in text:
        name = text.split("'")[1] if "'" in text else "it"
        return f"needs the environment variable {name}, which is not set; export {name}=/path/to/its/folder"
    return text


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _plain_types(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _plain_types(part)
    elif origin in (tuple, list):
        yield from (kind for part in typing.get_args(annotation) for kind in _plain_types(part))
    elif origin is dict:
        yield from _plain_types(typing.get_args(annotation)[1])
    elif origin is typing.Literal:
        yield from (type(value) for value in typing.get_args(annotation))
    else:
        yield annotation


# --- identity


def place(**more: Any) -> dict[str, Any]:
    """`Field(..., json_schema_extra=place())` marks a field that says where, not what."""
    return {"place": True, **more}


def later(**more: Any) -> dict[str, Any]:
    """`Field(default=None, json_schema_extra=later())` marks a field without which there were runs: at its default it
    leaves their identity as it was."""
    return {"later": True, **more}


def _is_later(config: BaseModel, name: str, value: Any) -> bool:
    field = type(config).model_fields.get(name)
    extra = field.json_schema_extra if field else None
    return isinstance(extra, dict) and bool(extra.get("later")) and field is not None and value == field.default


def _kept_fields(config: BaseModel) -> dict[str, FieldInfo]:
    extra_of = {name: field.json_schema_extra for name, field in type(config).model_fields.items()}
    places = {name for name, extra in extra_of.items() if isinstance(extra, dict) and extra.get("place")}
    return {name: field for name, field in type(config).model_fields.items() if name not in places}


def _without_places(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return frozen_values(value)
    if isinstance(value, Mapping):
        return {str(key): _without_places(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_places(inner) for inner in value]
    return None if isinstance(value, Path) else value  # its content is among the inputs
