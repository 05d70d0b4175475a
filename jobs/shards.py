"""Run a command of `shards` as a job, so that a pipeline can begin with it. One process; it goes on where it stopped."""

from __future__ import annotations

import contextlib
import io
import logging
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from jobs.job import JobConfig, Progress
from retrieval_train.rundir import RunDir

if TYPE_CHECKING:
    from retrieval_train.world import World

log = logging.getLogger(__name__)

_STOPPED = 130
_NUM_LINES = 20


class Config(JobConfig):
    """Run a command of `shards`."""

    job: Literal["shards"]
    arguments: tuple[str, ...] = Field(min_length=1)
    """What comes after `shards`: [make, folder, photos, --out, shard_sets/photos]."""

    def problems(self) -> list[tuple[str, str]]:
        from shards import cli
        from shards.errors import ShardError

        told = io.StringIO()
        try:
            with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
                words = cli.expand(list(self.arguments))
                cli.build_parser(words).parse_args(words)
        except ShardError as error:
            return [("arguments", str(error))]
        except SystemExit as end:  # argparse has printed what is wrong
            return [("arguments", told.getvalue().strip() if end.code else "only show help; say what to do")]
        return []

    def problems_with(self, num_ranks: int) -> list[tuple[str, str]]:
        return [("job", _one_process(num_ranks))] if num_ranks > 1 else []


def run(config: Config, run: RunDir, world: World) -> dict[str, float]:
    """What the command prints goes to the log. Raises ValueError with its words when it does not end well."""
    if world.size > 1:
        raise ValueError(_one_process(world.size))
    from shards import cli

    progress = Progress(run, world, f"shards {config.arguments[0]}", total=1, unit="command")
    told, said = _Lines(), _Lines()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(said):
        code = cli.main(config.arguments)
    if code == _STOPPED:
        raise SystemExit("ended by SIGTERM")
    if code != 0:
        words = "".join((told.lines or said.lines)[-_NUM_LINES:]).removeprefix("shards: ").strip()
        raise ValueError(words or f"shards ended with exit code {code}")
    progress.show(1)
    return {}


def _one_process(num_ranks: int) -> str:
    return f"shards works in one process, not {num_ranks}; --nodes 1 --gpus-per-node 0 --tasks-per-node 1"


class _Lines(io.TextIOBase):
    """Text that goes to the log line by line, and is kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._begun = ""

    def write(self, text: str) -> int:
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            self.lines.append(f"{line}\n")
            log.info("%s", line)
        return len(text)
