"""Going on from another run's checkpoint: where it lies, how the two configs differ, and what of its state still holds.

A config is compared as its frozen values (no places, no paths) with the digests of its inputs beside them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints

from retrieval_train import config as configs
from retrieval_train.choice import Chosen
from retrieval_train.config import LinkedPath, Section, place
from retrieval_train.engine import mirror
from retrieval_train.engine.state_file import CheckpointError, peek
from retrieval_train.losses.loss import LossConfig
from retrieval_train.rundir import RunDir

if TYPE_CHECKING:
    from jobs.train import Config
    from retrieval_train.world import World

log = logging.getLogger(__name__)

Change = tuple[str, Any, Any]
"""A dotted path, its value there and here."""
ABSENT = object()

_TENSORS = ("backbone", "neck", "lora")
_BUT_NO_TENSORS = ("backbone.drop_path", "lora.dropout", "lora.alpha")
_FROZEN = ("backbone.weights", "inputs.backbone.weights", "init", "inputs.init")
"""Where the weights come from that LoRA leaves alone and checkpoints leave out."""
_BUT_NO_WEIGHTS = ("init.centres", "init.new_classes", "init.mean_images", "inputs.init.centres")
_ORDER = ("data.order", "data.mixture", "inputs.data")
_JUDGE = ("evaluate", "inputs.evaluate")


def _newest(path: Path) -> Path:
    """A run folder as its newest checkpoint: config.yaml then says which one that was."""
    return (RunDir(path).latest_checkpoint() if path.is_dir() else None) or path


class Origin(Section):
    """Go on from a checkpoint of another run: its weights, optimizer, class centres and place in the order."""

    checkpoint: Annotated[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*://")]
        | Annotated[LinkedPath, AfterValidator(_newest)],
        Field(union_mode="left_to_right"),
    ]
    """A checkpoint, <run folder>/checkpoints/step-XXXXXXXX; a run folder, for its newest; or the URL of a checkpoint or of
    the folder that checkpoints were sent to."""
    force_config: bool = Field(default=False, json_schema_extra=place())
    """Go on although the config is another one."""

    def problems(self, config: Config) -> list[tuple[str, str]]:
        """What can be told on a login node, of a config that has no other problems; nothing of a URL."""
        if isinstance(self.checkpoint, str):
            return []
        try:
            misfit = self._misfit(peek(self.checkpoint), config)
        except CheckpointError as error:
            misfit = f"{error}; give a run folder or its checkpoints/step-XXXXXXXX"
        return [("origin.checkpoint", misfit)] if misfit else []

    def digests(self) -> dict[str, str]:
        """What lies at the path; a URL says itself where the run begins."""
        if isinstance(self.checkpoint, str):
            return {}
        return {"origin.checkpoint": hashlib.sha256((self.checkpoint / "sums.json").read_bytes()).hexdigest()}

    def fetch(self, config: Config, run: RunDir, world: World) -> Path:
        """The checkpoint's folder; of a URL, a copy in the run folder. Collective: raises ValueError on all ranks."""
        folder, problem = None, ""
        if world.rank == 0:
            try:
                folder = self._brought(run)
                state = peek(folder)
                problem = self._misfit(state, config) or ""
                if not problem and (changes := changes_of(state.get("extra", {}), config)):
                    log.warning("the config changes from %s on:%s", folder, _lines(changes))
            except (ValueError, OSError) as error:
                problem = str(error)
        folder, problem = world.from_first((folder, problem))
        if problem or folder is None:
            raise ValueError(f"origin.checkpoint: {problem}")
        return folder

    def _brought(self, run: RunDir) -> Path:
        if isinstance(self.checkpoint, Path):
            return self.checkpoint
        into = run.origin
        there = sorted(into.glob("step-*"))  # of an earlier start: the URL may have a newer one by now
        return there[-1] if there else mirror.fetch(_checkpoint_at(self.checkpoint), into)

    def _misfit(self, state: Mapping[str, Any], config: Config) -> str | None:
        """Why a run with this config cannot go on from there, if it cannot."""
        saved, steps = state.get("extra", {}), config.length.steps
        if steps is not None and steps <= state["step"]:
            return f"is at step {state['step']} already, and length.steps is {steps}; make the run longer"
        if not _is_told(saved):
            text = "does not say with what config it was written; --force-config goes on all the same"
            return None if self.force_config else text
        changes, is_lora = changes_of(saved, config), _is_lora(saved, config)
        fixed = [change[0] for change in changes if _is_fixed(change, config, is_lora=is_lora)]
        if not changes or (self.force_config and not fixed):
            return None
        if fixed:
            way_out = (
                "those marked * cannot be changed on the way, not even with --force-config: put them back; or begin a new "
                "run from that one's weights, with init.model=<its folder>/export instead of origin"
            )
        else:
            way_out = "say --force-config to go on with them changed; or leave origin out to start anew"
        return f"was written with another config (there -> here):{_lines(changes, marked=fixed)}\n    {way_out}"


def told(config: object) -> str:
    """What `--force-config` changes, for the user who submits; empty where nothing is forced or it lies at a URL."""
    origin: Origin | None = getattr(config, "origin", None)
    if origin is None or isinstance(origin.checkpoint, str):
        return ""
    changes = changes_of(peek(origin.checkpoint).get("extra", {}), config)  # type: ignore[arg-type]
    return f"the config changes from {origin.checkpoint} on:{_lines(changes)}" if changes else ""


# --- what a checkpoint says of its config


def described(config: Config) -> dict[str, Any]:
    """What a checkpoint keeps as `config`. Opens the manifests: call it once."""
    alone = config.model_copy(update={"origin": None})  # what the run began from may be gone when it has begun
    return {**configs.frozen_values(alone), "inputs": alone.inputs()}


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any], *, under: str = "") -> Iterator[Change]:
    """(dotted path, theirs, mine) of every value that is not equal or in one of the two only, which gives ABSENT."""
    for key in dict.fromkeys([*mine, *theirs]):
        one, other, path = theirs.get(key, ABSENT), mine.get(key, ABSENT), f"{under}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from differences(one, other, under=f"{path}.")
        elif one != other:
            yield path, one, other


def changes_of(saved: Mapping[str, Any], config: Config) -> list[Change]:
    """How `config` differs from the one a checkpoint was written with; `saved` is what the job saved there."""
    if not _is_told(saved):
        return []
    mine, theirs = described(config), configs.as_now(saved["config"], config)
    digests, their_digests = mine.pop("inputs"), theirs.pop("inputs", {})
    found = differences(_compared(theirs), _compared(mine))
    common = digests.keys() & their_digests.keys()  # what only one of them takes in, its config says
    of_inputs = differences({key: their_digests[key] for key in common}, {key: digests[key] for key in common})
    return [*found, *((f"inputs.{path}", one, other) for path, one, other in sorted(of_inputs))]


def check_same(saved: Mapping[str, Any], config: Config, folder: Path) -> None:
    """Raises ValueError when the run's config is not the one with which it wrote its own checkpoint `folder`."""
    if changes := changes_of(saved, config):
        raise ValueError(
            f"config.yaml is not what it was when {folder} was written (there -> here):{_lines(changes)}\n    put it "
            f"back; or make it a run of its own: submit it with --continue-from {folder} --force-config"
        )


def still_true(saved: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Of what the other run's job saved, what holds in this run: no state of another order or another judge."""
    paths = [path for path, *_ in changes_of(saved, config)]
    stale = {"tracker", "config"}
    stale |= {"order"} if any(_is_in(path, _ORDER) for path in paths) else set()
    stale |= {"judge"} if any(_is_in(path, _JUDGE) for path in paths) else set()
    return {key: value for key, value in saved.items() if key not in stale}


def _is_told(saved: Mapping[str, Any]) -> bool:
    return isinstance(saved.get("config"), Mapping)


def _compared(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what names the run and says what it began from."""
    run = {key: value for key, value in values["run"].items() if key != "name"}
    return {**{key: value for key, value in values.items() if key != "origin"}, "run": run}


def _is_lora(saved: Mapping[str, Any], config: Config) -> bool:
    return config.lora is not None or saved["config"].get("lora") is not None


def _is_fixed(change: Change, config: Config, *, is_lora: bool) -> bool:
    """Whether the state of a run with another value there cannot be taken over."""
    path = change[0]
    if _is_in(path, _FROZEN):
        return is_lora and not _is_in(path, _BUT_NO_WEIGHTS)
    if _is_in(path, _ORDER):  # shares that follow the losses are settled from the first step on
        return getattr(config.data.order, "share", None) == "loss"
    return _is_shape(change, config) or (_is_in(path, _TENSORS) and not _is_in(path, _BUT_NO_TENSORS))


def _is_shape(change: Change, config: Config) -> bool:
    """Whether class centres or layers of a loss, the main one or one under aux, would have other shapes or names.

    A head that is new or gone is neither: its centres begin at random, or are left.
    """
    path, *values = change
    match = re.fullmatch(r"(?:aux\.(?P<aux>[^.]+)(?:\.|$))?(?:(?P<part>head|loss)\.(?P<key>[^.]+))?", path)
    if match is None:
        return False
    if match["part"] == "head":
        return match["key"] == "sub_centres" or (match["key"] == "bias" and values.count(True) == 1)
    if match["part"] is None:  # a whole loss, there or here only
        losses = [value.get("loss") for value in values if isinstance(value, Mapping)]
        return any(_has_layers(loss.get("name")) for loss in losses if isinstance(loss, Mapping))
    if match["key"] == "name":
        return any(_has_layers(value) for value in values)
    loss = config.aux[match["aux"]].loss if match["aux"] else config.loss
    # floats are weights and temperatures; what only one of the two has goes with the name
    is_size = ABSENT not in values and not all(isinstance(value, float) for value in values)
    return is_size and _has_layers(loss.name)


def _has_layers(name: Any) -> bool:
    """Whether losses of this name train layers or class centres of their own; one that this code has not may have."""
    kind = Chosen("retrieval_train.losses").configs().get(name)
    if kind is None or not issubclass(kind, LossConfig):
        return True
    return kind.layers is not LossConfig.layers or kind.heads is not LossConfig.heads


def _is_in(path: str, prefixes: Sequence[str]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)


def _lines(changes: Sequence[Change], *, marked: Sequence[str] = ()) -> str:
    stars = {path: " *" if path in marked else "" for path, *_ in changes}
    return "".join(f"\n    {path}: {_shown(one)} -> {_shown(other)}{stars[path]}" for path, one, other in changes)


def _shown(value: Any) -> str:
    text = "absent" if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _checkpoint_at(url: str) -> str:
    """The URL of a checkpoint: this one, or the newest of those that lie there."""
    name = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    if re.fullmatch(r"step-\d+", name):
        return url
    newest = mirror.Mirror(url, "").newest()
    if newest is None:
        raise ValueError(
            "there is no whole checkpoint at the URL; give that of a folder step-XXXXXXXX, or of the one they lie in"
        )
    return newest[1]
