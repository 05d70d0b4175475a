"""All ranks tell each other something through rank 0's key-value store, before there is a group: who does not is named.

A collective in which one rank is missing hangs in all others, and says nothing of whose fault it is. This one waits in
one place, rank 0, for a given time. Legend: W ranks.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

LONGER = 1.25  # times rank 0's limit, for those who wait for its answer: it knows more, and is to speak first
_READ_WITHIN_S = 5.0


class BadNode(Exception):
    """A machine is at fault, not the run: `nodes` by name, empty where it is not known which."""

    failure: ClassVar[str] = "bad_node"

    def __init__(self, words: str, *, nodes: Iterable[str] = ()) -> None:
        super().__init__(words)
        self.nodes = tuple(dict.fromkeys(nodes))


class LostRank(Exception):
    """Rank 0 is gone, and with it the store. Why, its own words or the scheduler's say: no node is to blame for it yet."""

    failure: ClassVar[str] = "lost_rank"


class Store(Protocol):
    """What is used of torch.distributed's stores.

    They raise RuntimeError: DistStoreError when time is up, DistNetworkError when rank 0 is gone.
    """

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def wait(self, keys: list[str], timeout: datetime.timedelta, /) -> None: ...


class Meeting:
    """The ranks of a start. Its methods are collective."""

    def __init__(self, store: Store, rank: int, size: int, *, limit_s: float, names: Sequence[str] = ()) -> None:
        """Wait for all ranks. `names` are the nodes', in the order of their ranks, where somebody knows them.

        Raises BadNode that names those that did not come within `limit_s`, or LostRank.
        """
        self.store, self.rank, self.size = store, rank, size
        planned = _planned(names, size)
        first = planned[0] or "rank 0's node"
        came = self._ask("hello", planned[rank] or socket.gethostname(), limit_s=limit_s, first=first)
        self.began = time.time()
        """By this node's clock; all nodes' at the same moment, to some milliseconds."""
        self.nodes = [name or planned[rank] or "" for rank, name in enumerate(came)]
        """The name of each rank's machine."""
        missing_R = [rank for rank, name in enumerate(came) if name is None]
        if missing_R:
            here = dict.fromkeys(name for name in came if name)
            raise BadNode(
                f"{len(missing_R)} of {size} ranks did not come within {limit_s / 60:g} min: {self.where(missing_R)}; "
                f"those on {listed(here)} did. The node may be down, or its file system or setup lines slow: look at "
                "what the scheduler and the logs of these ranks say (run.join_minutes is how long they are waited for)",
                nodes=(self.nodes[rank] for rank in missing_R if self.nodes[rank]),
            )

    @property
    def node(self) -> str:
        """This rank's."""
        return self.nodes[self.rank]

    def where(self, ranks: Iterable[int]) -> str:
        """These ranks in words: `ranks 4-7 on node2, rank 9 on node3`."""
        of_node: dict[str, list[int]] = {}
        for rank in ranks:
            of_node.setdefault(self.nodes[rank], []).append(rank)
        return listed([_ranks(mine) + (f" on {node}" if node else "") for node, mine in of_node.items()])

    def every(self, about: str, value: Any, *, limit_s: float) -> list[Any]:
        """Each rank's value (anything of JSON) in rank order. `about` is used once.

        Raises BadNode that names the ranks that said nothing within `limit_s`, or LostRank.
        """
        told_W = self._ask(about, value, limit_s=limit_s, first=self.nodes[0])
        silent_R = [rank for rank, told in enumerate(told_W) if told is None]
        if silent_R:
            raise BadNode(
                f"{self.where(silent_R)} came, and then said nothing of '{about}' for {limit_s:g} s: the process hangs "
                "or has died; its log says how far it got",
                nodes=(self.nodes[rank] for rank in silent_R),
            )
        return told_W

    def _ask(self, about: str, value: Any, *, limit_s: float, first: str) -> list[Any | None]:
        """Each rank's value; None where none came within the limit, counted from when rank 0 asks."""
        assert value is not None, "None is for those that say nothing"
        keys_W = [f"{about}/{rank}" for rank in range(self.size)]
        asked, answer = f"{about}/asked", f"{about}/all"
        try:
            self.store.set(keys_W[self.rank], json.dumps(value))
            if self.rank == 0:
                self.store.set(asked, "yes")
                told_W: list[Any | None] = self._gathered(keys_W, limit_s)
                self.store.set(answer, json.dumps(told_W))
                self._until_read(answer, [rank for rank, told in enumerate(told_W) if told is not None])
            else:  # rank 0 may still wait for readers of the last answer; once it has asked, it is to speak first
                self.store.wait([asked], datetime.timedelta(seconds=limit_s + _READ_WITHIN_S))
                self.store.wait([answer], datetime.timedelta(seconds=LONGER * limit_s))
                told_W = json.loads(self.store.get(answer))
                with contextlib.suppress(RuntimeError):  # rank 0 does not wait for long
                    self.store.set(f"{answer}/{self.rank}", "read")
        except RuntimeError as error:
            words = f"rank {self.rank} waits in vain for rank 0 on {first} to answer ('{about}'): {first_line(error)}"
            if type(error).__name__ == "DistNetworkError":
                raise LostRank(words) from error
            raise BadNode(words, nodes=(first,)) from error
        return told_W

    def _gathered(self, keys: list[str], limit_s: float) -> list[Any | None]:
        with contextlib.suppress(RuntimeError):  # who is missing is seen below
            self.store.wait(keys, datetime.timedelta(seconds=limit_s))
        return [json.loads(self.store.get(key)) if self.store.check([key]) else None for key in keys]

    def _until_read(self, answer: str, ranks: Sequence[int]) -> None:
        """Rank 0 may leave next, and its store with it: who has not read by then would blame rank 0's node."""
        with contextlib.suppress(RuntimeError):  # somebody died since
            read = [f"{answer}/{rank}" for rank in ranks if rank != 0]
            self.store.wait(read, datetime.timedelta(seconds=_READ_WITHIN_S))


def first_line(error: BaseException) -> str:
    """What torch says, without the stack of its C++ half."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _planned(names: Sequence[str], size: int) -> list[str | None]:
    """Each rank's node: as many ranks on each, one node after the other. None where that does not go up."""
    if not names or size % len(names):
        return [None] * size
    return [names[rank * len(names) // size] for rank in range(size)]


def _ranks(ranks: list[int]) -> str:
    """`rank 3`, `ranks 4-7`, `ranks 1, 3, 6`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks))}"


def listed(words: Iterable[str], *, most: int = 8) -> str:
    """A list that stays readable on a thousand nodes."""
    every = list(words)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
