"""The folder is the registry: `name: arcface` means the file `heads/arcface.py` and the `Config` in it.

    head: Annotated[RuleConfig, Chosen("retrieval_train.heads")]

makes pydantic read `head` as the union of all `Config`s of that folder, told apart by their `name`. A file without a
`Config` (a base class, a shared piece) is no choice.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import BaseModel, Discriminator, GetCoreSchemaHandler, Tag


class Chosen:
    """Marks a field whose value is one of the `Config`s of `package`, chosen by `name`."""

    def __init__(self, package: str) -> None:
        self.package = package

    def configs(self) -> dict[str, type[BaseModel]]:
        """Every `Config` of the folder by file name. Those files import nothing heavy at module level: this is cheap."""
        folder = importlib.import_module(self.package)
        found = {}
        for file in sorted(Path(next(iter(folder.__path__))).glob("*.py")):
            # looked for in the text: importing the other files could import torch, on a login node
            if "\nclass Config(" in file.read_text(encoding="utf-8"):
                config = importlib.import_module(f"{self.package}.{file.stem}").Config
                assert config.model_fields["name"].default == file.stem, f"{file}: Config has another name"
                found[file.stem] = config
        return found

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        configs = self.configs()
        if len(configs) == 1:  # a union of one has nothing to discriminate; its own Literal name is the check then
            return handler.generate_schema(next(iter(configs.values())))
        members = tuple(Annotated[config, Tag(name)] for name, config in configs.items())
        return handler.generate_schema(Annotated[Union[members], Discriminator(_name_of)])  # noqa: UP007 - made at run time


def _name_of(value: Any) -> Any:
    return value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
