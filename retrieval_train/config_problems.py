"""What pydantic finds wrong with a config, in the words of its file: the path as it is written there, what is allowed."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from retrieval_train.choice import Chosen


def problem_of(model: type[BaseModel], values: Mapping[str, Any], item: Any) -> tuple[str, str]:
    """(dotted path, what is wrong there and what is allowed) of one of the errors of pydantic for these `values`."""
    path = _spoken_path(item["loc"], values)
    kind, given, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind == "extra_forbidden":
        return path, _unknown_key(model, item["loc"], path)
    if kind == "missing":
        return path, "is required and missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = ".".join(filter(None, (path, "name")))
        names = sorted(str(_tag(choice)) for choice in _models_at(model, item["loc"]))
        if kind == "union_tag_not_found":
            return path, f"is required and missing; one of: {', '.join(names)}"
        tag = str(context.get("tag"))
        return path, f"'{tag}' is unknown{_did_you_mean(tag, names)} there are: {', '.join(names)}"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        return path or "config", message
    return path or "config", f"{given!r} is not allowed: {message[0].lower()}{message[1:]}"


def _spoken_path(loc: Sequence[Any], values: Any) -> str:
    """The dotted path as a user writes it: pydantic adds the chosen name of a union, which is no key."""
    spoken: list[str] = []
    for part in loc:
        if isinstance(values, Mapping) and part not in values and part == values.get("name"):
            continue
        spoken.append(str(part))
        values = values.get(part) if isinstance(values, Mapping) else None
    return ".".join(spoken)


def _unknown_key(model: type[BaseModel], loc: Sequence[Any], path: str) -> str:
    keys = sorted({key for inner in _models_at(model, loc[:-1]) for key in inner.model_fields})
    prefix = path.rpartition(".")[0]
    nearest = difflib.get_close_matches(str(loc[-1]), keys, n=1, cutoff=0.6)
    if nearest:
        return f"unknown key; did you mean {'.'.join(filter(None, (prefix, nearest[0])))}?"
    return f"unknown key; there are: {', '.join(keys)}"


def _models_at(model: type[BaseModel], loc: Sequence[Any]) -> list[type[BaseModel]]:
    """The models whose fields a place in the config may have."""
    models: list[type[BaseModel]] = [model]
    for part in loc:
        inner = [field for m in models if (field := m.model_fields.get(str(part))) is not None]
        if inner:
            models = [m for field in inner for m in _models_in(field.annotation, field.metadata)]
        else:  # the chosen name of a union
            models = [m for m in models if _tag(m) == part] or models
    return models


def _tag(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("name")
    return field.default if field is not None else None


def _models_in(annotation: Any, metadata: Sequence[Any]) -> list[type[BaseModel]]:
    chosen = [mark for mark in metadata if isinstance(mark, Chosen)]
    if chosen:
        return list(chosen[0].configs().values())
    found: list[type[BaseModel]] = []
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            found.append(part)
        elif typing.get_origin(part) is typing.Annotated:
            found.extend(_models_in(typing.get_args(part)[0], typing.get_args(part)[1:]))
    return found


def _did_you_mean(word: str, words: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ";"
