"""A data worker's death in words. torch tells of it wherever its rank just is: in a collective as well as in the loader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def deaths_told(rank: int) -> Iterator[None]:
    """Raises ValueError in place of what torch raises when a worker of this rank died."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ValueError(
            f"a data worker of rank {rank} died ({str(error).strip()}). Most often the machine's memory was full and the "
            "kernel killed it: take fewer data.workers, a smaller data.cache_gb, or more memory"
        ) from None
