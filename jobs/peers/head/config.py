"""What a race of heads is about."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from retrieval_train.config import Section

Whole = Annotated[int, Field(ge=1)]


class MemoryConfig(Section):
    """A table of what a rank holds: measured where it fits, else by arithmetic."""

    classes: tuple[Whole, ...] = Field(default=(10_000, 100_000, 1_000_000, 10_000_000), min_length=1)
    """Classes over all ranks: one row each."""
    ranks: tuple[Whole, ...] = Field(default=(1, 2, 4, 64), min_length=1)
    """Ranks that share them: one column each."""
    measured_ranks: int = Field(default=4, ge=0)
    """Up to so many ranks are started; more are arithmetic."""
    measured_gb: float = Field(default=6.0, ge=0)
    """What takes more memory than this on all ranks together is arithmetic."""


class HeadRaceConfig(Section):
    """Heads side by side."""

    classes: tuple[Whole, ...] = Field(default=(100_000,), min_length=1)
    """One race each."""
    dim: int = Field(default=512, ge=2)
    """Dimensions of the embeddings."""
    batch: int = Field(default=256, ge=1)
    """Rows of a step, over all ranks."""
    optimizers: tuple[Literal["sgd", "adamw"], ...] = Field(default=("sgd", "adamw"), min_length=1)
    """sgd has no momentum. One race each."""
    ranks: tuple[Whole, ...] = Field(default=(1,), min_length=1)
    """Processes of each contestant, which share its cores and classes: one race each."""
    cores: int = Field(default=2, ge=1)
    """CPU cores of each contestant: at least one a rank."""
    beside: tuple[Literal["partial_fc", "metric_learning", "bf16", "sampled"], ...] = (
        "partial_fc",
        "metric_learning",
        "bf16",
        "sampled",
    )
    """Who takes part beside this suite's head and the bare products; bf16 and sampled are other ways to run it."""
    sample_rate: float = Field(default=0.1, gt=0, lt=1)
    """Share of the classes, for those that sample."""
    steps: int = Field(default=2, ge=1)
    """Steps of a turn."""
    memory: MemoryConfig | None = None
    """A table of what a rank of ours holds, by classes and ranks."""

    def problems(self, usable_cores: int) -> list[tuple[str, str]]:
        """(key, what is wrong): see `JobConfig.problems`."""
        found = []
        if self.cores > usable_cores:
            found.append(("head.cores", f"{self.cores} cores are asked for; there are {usable_cores}"))
        if max(self.ranks) > self.cores:
            found.append(("head.ranks", f"{max(self.ranks)} ranks on {self.cores} cores; give each rank a core"))
        if max(self.ranks) > min(self.batch, *self.classes):
            text = f"{max(self.ranks)} ranks need as many rows and classes; there are {self.batch}, {min(self.classes)}"
            found.append(("head.ranks", text))
        if self.memory and min(self.memory.classes) < min(self.memory.measured_ranks, max(self.memory.ranks)):
            text = f"{min(self.memory.classes)} are fewer than the ranks that are measured"
            found.append(("head.memory.classes", text))
        return found
