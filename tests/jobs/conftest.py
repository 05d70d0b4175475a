"""What tests share that run a job of one rank in their own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a run of one rank in this process changes is put back."""
    threads = torch.get_num_threads()
    one_rank(monkeypatch)
    yield
    torch.set_num_threads(threads)


def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
