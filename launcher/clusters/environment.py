"""What a node needs before Python starts, as a cluster's file says it: modules, an environment, a container, variables.

All of it becomes shell lines and arguments here. `$NAME` and `${NAME}` are filled in on the node; everything else is
quoted, so that a value is never read as a command.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from retrieval_train.config import Section

Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$")]
"""Text without line breaks."""
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Bind = Annotated[str, StringConstraints(pattern=r"^/[^,:\x00-\x1f\x7f]*(:/[^,:\x00-\x1f\x7f]*(:r[ow])?)?$")]
"""/folder, /outside:/inside or /outside:/inside:ro."""
_FILLED_IN = re.compile(r"(\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_]*\})")


class Container(Section):
    """The ranks run in it; the launcher itself runs outside, by the Python that submitted."""

    image: Line
    """A file (.sif, .sqsh) or what the runtime can fetch, as docker://name:tag."""
    runtime: Literal["apptainer", "singularity", "pyxis"] = "apptainer"
    """pyxis: srun's --container-image, which enroot runs."""
    binds: tuple[Bind, ...] = ()
    """Folders that are seen inside, as /data or /outside:/inside; where you submit and where runs lie always are."""
    python: Line = "python"
    """The Python inside that has our requirements."""
    options: tuple[Line, ...] = ()
    """More arguments of the runtime, or for pyxis of srun."""

    def python_words(self, folders: tuple[Path, ...], *, with_gpus: bool) -> tuple[str, ...]:
        """The beginning of a rank's command line."""
        if self.runtime == "pyxis":
            return (self.python,)
        binds = [word for bind in self._all_binds(folders) for word in ("--bind", bind)]
        gpus = ["--nv"] if with_gpus else []
        return (self.runtime, "exec", *gpus, *binds, *self.options, self.image, self.python)

    def srun_words(self, folders: tuple[Path, ...]) -> tuple[str, ...]:
        """What srun needs to know of it."""
        if self.runtime != "pyxis":
            return ()
        mounts = ",".join(bind if ":" in bind else f"{bind}:{bind}" for bind in self._all_binds(folders))
        return (f"--container-image={self.image}", *([f"--container-mounts={mounts}"] if mounts else []), *self.options)

    def _all_binds(self, folders: tuple[Path, ...]) -> list[str]:
        return list(dict.fromkeys([*self.binds, *map(str, folders)]))


class Environment(Section):
    """The part of a cluster's file that is about its nodes' software."""

    setup: tuple[Line, ...] = ()
    """Shell lines that come first, as they are, on the first node; the ranks on all nodes get the variables they set. A line
    that fails ends nothing, unless it ends in `|| exit 1`."""
    modules: tuple[Line, ...] = ()
    """Loaded in this order by `module load`; the job ends where one is not there."""
    conda: Line | None = None
    """Name or folder of a conda environment that is activated, whose Python the ranks run."""
    venv: Line | None = None
    """Folder of a virtual environment that is activated, whose Python the ranks run."""
    container: Container | None = None
    """None: the ranks run outside of containers."""
    scratch: Line | None = None
    """Folder on each node's own disk, as $SLURM_TMPDIR; becomes RETRIEVAL_SCRATCH, for data.store.scratch, say."""
    env: dict[Variable, Line] = Field(default_factory=dict)
    """Variables of all ranks: NCCL_SOCKET_IFNAME, FI_PROVIDER."""

    @model_validator(mode="after")
    def _one_python(self) -> Environment:
        given = [name for name in ("conda", "venv", "container") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: each says which Python the ranks run; give one of them")
        return self

    def shell_lines(self) -> tuple[str, ...]:
        """For the first node's shell; a module or environment that is not there ends the job with the shell's own words."""
        variables = dict(self.env) | ({"RETRIEVAL_SCRATCH": self.scratch} if self.scratch else {})
        lines = [*self.setup, *(f"module load {quoted(module)} || exit 1" for module in self.modules)]
        if self.conda:
            lines += ['eval "$(conda shell.bash hook)" || exit 1', f"conda activate {quoted(self.conda)} || exit 1"]
        if self.venv:
            lines.append(f". {quoted(self.venv)}/bin/activate || exit 1")
        return (*lines, *(f"export {name}={quoted(value)}" for name, value in variables.items()))

    def python_words(self, folders: tuple[Path, ...], *, with_gpus: bool) -> tuple[str, ...]:
        """The beginning of a rank's command line; empty: the Python that submitted."""
        if self.container:
            return self.container.python_words(folders, with_gpus=with_gpus)
        return ("python",) if self.conda or self.venv else ()

    def srun_words(self, folders: tuple[Path, ...]) -> tuple[str, ...]:
        return self.container.srun_words(folders) if self.container else ()


def quoted(text: str) -> str:
    """One word of a shell, in which variables by name are filled in and nothing else is read."""
    parts = [part for part in _FILLED_IN.split(text) if part]
    return "".join(f'"{part}"' if _FILLED_IN.fullmatch(part) else shlex.quote(part) for part in parts) or "''"
