"""Dynamic loss scale for fp16 (Micikevicius et al., ICLR 2018, section 3.2): small gradients are lifted over 2^-24."""

from __future__ import annotations

from typing import Any

FIRST, LEAST, MOST = 2.0**16, 1.0, 2.0**24
GROW_AFTER = 2000  # good steps in a row


class LossScale:
    """`fixed` stays as it is; None is found: halved at an overflow, doubled after many good steps."""

    def __init__(self, fixed: float | None = None) -> None:
        self.value = fixed or FIRST
        self._is_fixed, self._good = fixed is not None, 0

    def stepped(self) -> None:
        self._good += 1
        if not self._is_fixed and self._good % GROW_AFTER == 0:
            self.value = min(self.value * 2, MOST)

    def overflowed(self) -> bool:
        """Whether a smaller scale may help: an overflow at the smallest is a fault of the model."""
        self._good = 0
        if self._is_fixed or self.value <= LEAST:
            return False
        self.value /= 2
        return True

    def state(self) -> dict[str, Any]:
        return {"value": self.value, "good": self._good}

    def take_state(self, state: dict[str, Any]) -> None:
        if not self._is_fixed and state:
            self.value, self._good = float(state["value"]), int(state["good"])
