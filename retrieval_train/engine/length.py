"""How long a run or a part of it is: in epochs, in steps or in images seen."""

from __future__ import annotations

from pydantic import Field, model_validator

from retrieval_train.config import Section


class Length(Section):
    """Exactly one of epochs, steps and images; the others are null."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the mixture."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    images: int | None = Field(default=None, ge=1)
    """Images seen, repeats counted; the last step may see a few more."""

    @model_validator(mode="after")
    def _one(self) -> Length:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            told = " and ".join(f"{key}={value}" for key, value in given.items()) or "none of them"
            raise ValueError(f"needs exactly one of epochs, steps and images, not {told}; set the others to null")
        return self

    def num_steps(self, epoch_steps: int, batch: int) -> int:
        """Optimizer steps, at least one, where an epoch has `epoch_steps` of them and a step sees `batch` images."""
        if self.steps is not None:
            return self.steps
        if self.images is not None:
            return -(-self.images // batch)
        assert self.epochs is not None, "one of the three was checked to be there"
        return max(1, round(self.epochs * epoch_steps))
