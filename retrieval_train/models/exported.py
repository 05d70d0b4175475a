"""The export: one safetensors with LoRA merged, and a JSON that says how to build the model and how to feed it.

export/model.safetensors    the embedder, float32, names of the merged model
export/model.json           architecture, image size and view, mean, std, dimension, sha256, how it began
export/centres.safetensors  the class centres (rows x K x D) and
export/classes.txt          their names, for inspection and for a next stage
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from retrieval_train.choice import Chosen
from retrieval_train.config import Section
from retrieval_train.data.view import View
from retrieval_train.models.backbones.backbone import BackboneConfig
from retrieval_train.models.embedder import Embedder, build_embedder
from retrieval_train.models.necks.neck import NeckConfig
from retrieval_train.rundir import read_json, read_names, write_json, write_names

SCHEMA = 1
_ROWS = 65536  # of centres, read at once


class ExportError(ValueError):
    """An export that cannot be read: which file, and what to do."""


class Card(Section):
    """`model.json`, as far as it takes to build the model and to feed it."""

    backbone: Annotated[BackboneConfig, Chosen("retrieval_train.models.backbones")]
    neck: Annotated[NeckConfig, Chosen("retrieval_train.models.necks")]
    view: View
    """How an image becomes the network's square."""
    seed: int
    """What the first weights were drawn from, where they were drawn."""
    began: Start
    """What training started from: the column `untrained` or `zero_shot` of a report."""


class Start(Section):
    """The embedder before the first step of the first stage."""

    backbone: Annotated[BackboneConfig, Chosen("retrieval_train.models.backbones")]
    neck: Annotated[NeckConfig, Chosen("retrieval_train.models.necks")]
    seed: int

    def build(self) -> Embedder:
        return build_embedder(self.backbone, self.neck, seed=self.seed)


def save(folder: Path, embedder: Embedder, card: Card, facts: dict[str, Any]) -> None:
    """Write a model whose adapters are merged. `folder` is there and empty."""
    save_file(
        {name: tensor.contiguous() for name, tensor in embedder.state_dict().items()}, folder / "model.safetensors"
    )
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    more = {
        "dim": embedder.dim,
        "normalised": False,
        "input": "uint8 RGB, normalised inside with mean and std",
        "mean": [round(value, 6) for value in (embedder.mean_3HW.flatten() / 255).tolist()],
        "std": [round(value, 6) for value in (embedder.std_3HW.flatten() / 255).tolist()],
        "sha256": sha256,
    }
    write_json(folder / "model.json", {"schema": SCHEMA, "model": card.model_dump(mode="json"), **more, **facts})


def read_card(folder: Path) -> tuple[Card, dict[str, Any]]:
    """The card and the whole of `model.json`. Raises ExportError."""
    file = folder / "model.json"
    if not file.is_file():
        raise ExportError(f"{folder} is no export: it has no model.json; a train run writes one to <run folder>/export")
    values = read_json(file)
    if values.get("schema", 0) > SCHEMA:
        raise ExportError(f"{file} has schema {values['schema']}, this code reads up to {SCHEMA}; update the code")
    try:
        return Card.model_validate(values["model"]), values
    except (ValidationError, KeyError) as error:
        raise ExportError(f"{file} does not describe a model that this code builds: {error}") from None


def load(folder: Path) -> Embedder:
    """The exported embedder, on the CPU, in evaluation mode."""
    card, _ = read_card(folder)
    embedder = build_embedder(card.backbone, card.neck, seed=card.seed, with_weights=False)
    put_weights(embedder, folder)
    return embedder.eval()


def put_weights(embedder: Embedder, folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    wanted = embedder.state_dict()
    differing = sorted(stored.keys() ^ wanted.keys())
    differing += sorted(name for name in stored.keys() & wanted.keys() if stored[name].shape != wanted[name].shape)
    if differing:
        few = ", ".join(differing[:3])
        raise ExportError(
            f"{folder / 'model.safetensors'} is of another model: {len(differing)} tensors differ ({few})"
        )
    embedder.load_state_dict(stored)


def save_centres(folder: Path, names: list[str], centre_CKD: Tensor) -> None:
    save_file({"centre": centre_CKD.contiguous()}, folder / "centres.safetensors")
    write_names(folder / "classes.txt", names)


def centre_names(folder: Path) -> list[str]:
    """The classes that have centres, in the order of their rows; [] for an export without centres."""
    return read_names(folder / "classes.txt") if (folder / "centres.safetensors").is_file() else []


def read_centres(folder: Path, wanted: Collection[str] | None = None) -> dict[str, Tensor]:
    """Class name -> (K, D), of the `wanted` classes that it has, else of all; {} for an export without centres.

    Reads a stretch of rows at a time: a rank of many never holds the whole table. Raises ExportError.
    """
    names, found = centre_names(folder), dict[str, Tensor]()
    if not names:
        return found
    keep = set(names if wanted is None else wanted)
    with safe_open(folder / "centres.safetensors", framework="pt") as file:
        table = file.get_slice("centre")
        if len(names) != (rows := table.get_shape()[0]):
            raise ExportError(
                f"{folder}: classes.txt has {len(names)} names, centres.safetensors {rows} rows; export that run again"
            )
        for at in range(0, len(names), _ROWS):
            here = [(row, name) for row, name in enumerate(names[at : at + _ROWS]) if name in keep]
            if here:
                block = table[at : at + _ROWS]
                found |= {name: block[row].clone() for row, name in here}
    return found


Card.model_rebuild()
