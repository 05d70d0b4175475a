"""YAML of files that are no config of a job (sweeps, pipelines): what they say goes on to configs as it is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from retrieval_train import config as configs
from retrieval_train.config import ConfigError

_TIME = ("tag:yaml.org,2002:str", re.compile(r"\d+(:\d+)+$"))


class Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as OmegaConf does, leaves 2:00:00 a text, and refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


Loader.yaml_implicit_resolvers = {  # YAML 1.1 takes 2:00:00 for 7200, and the first that matches counts
    first: [_TIME, *known] for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_mapping(path: Path) -> dict[str, Any]:
    """The file's keys and values. Raises ConfigError."""
    if not path.is_file():
        configs.read(path)  # says which file was meant
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(str(path), [("config", f"not readable as YAML: {words}")]) from error
    if not isinstance(values, dict):
        raise ConfigError(str(path), [("config", "holds no mapping of keys to values")])
    return {str(key): value for key, value in values.items()}


def value(text: str, item: str) -> Any:
    """What comes after `=` in `item` of the command line. Raises ConfigError."""
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigError("command line", [(item, f"{text!r} is not readable as YAML")]) from error
