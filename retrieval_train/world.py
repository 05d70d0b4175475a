"""Rank, size, device and collectives as one object: `Alone` for one process, `Group` for torch.distributed.

Code takes a world as an argument and never asks whether it is distributed. Legend: N my rows, T all ranks' rows.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from retrieval_train.meeting import LONGER, BadNode, Meeting, first_line

T = TypeVar("T")

Device = Literal["auto", "cpu", "cuda"]

_CONNECTED_WITHIN = datetime.timedelta(minutes=3)


class World(Protocol):
    """All methods but the properties are collective: every rank calls them, in the same order."""

    rank: int
    size: int
    device: torch.device

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks. Not differentiable: losses write their own backward."""
        ...

    def max(self, x: Tensor) -> Tensor:
        """The element-wise maximum over ranks. Not differentiable."""
        ...

    def gather(self, x: Tensor, counts: list[int] | None = None) -> Tensor:
        """All ranks' rows in rank order, (T, ...). The backward *sums* all ranks' gradients of my rows.

        `counts` are the rows of each rank; without it they are exchanged first.
        """
        ...

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""
        ...

    def from_first(self, value: T) -> T:
        """Rank 0's value (anything that pickles) on every rank."""
        ...

    def every(self, value: T) -> list[T]:
        """Each rank's value (anything that pickles), in rank order, on every rank."""
        ...

    def barrier(self) -> None: ...

    def split(self, size: int) -> tuple[World, World]:
        """(the `size` neighbouring ranks that I am one of, the ranks at my place in all such groups)."""
        ...


class Alone:
    """One process: every collective is the identity."""

    rank = 0
    size = 1

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def sum(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor, counts: list[int] | None = None) -> Tensor:
        return x

    def any(self, flag: bool) -> bool:
        return flag

    def from_first(self, value: T) -> T:
        return value

    def every(self, value: T) -> list[T]:
        return [value]

    def barrier(self) -> None:
        return None

    def split(self, size: int) -> tuple[World, World]:
        return self, self


class Group:
    """Ranks of torch.distributed: all of them, or those of `members`, a process group."""

    def __init__(
        self,
        device: torch.device,
        members: Any = None,
        *,
        timeout: datetime.timedelta | None = None,
        meeting: Meeting | None = None,
    ) -> None:
        """`timeout` is what groups split from it wait for a rank; None: torch's default. `meeting` is that of all ranks."""
        self._members, self._timeout, self.meeting = members, timeout, meeting
        self.rank = torch.distributed.get_rank(members)
        self.size = torch.distributed.get_world_size(members)
        self.device = device

    def split(self, size: int) -> tuple[World, World]:
        """(the `size` neighbouring ranks that I am one of, the ranks at my place in all such groups). Collective.

        Raises ValueError where `size` does not divide the ranks.
        """
        if self.size % size:
            raise ValueError(f"{self.size} ranks cannot be split into groups of {size}; start as many on every node")
        inner = [list(range(first, first + size)) for first in range(0, self.size, size)]
        outer = [list(range(place, self.size, size)) for place in range(size)]
        return self._group_of_mine(inner), self._group_of_mine(outer)

    def _group_of_mine(self, groups: list[list[int]]) -> Group:
        """Every rank makes all groups, since torch.distributed wants it so."""
        made = [torch.distributed.new_group(ranks, timeout=self._timeout) for ranks in groups]
        mine = next(group for ranks, group in zip(groups, made, strict=True) if self.rank in ranks)
        return Group(self.device, mine, timeout=self._timeout)

    def sum(self, x: Tensor) -> Tensor:
        out = x.clone()
        torch.distributed.all_reduce(out, op=torch.distributed.ReduceOp.SUM, group=self._members)
        return out

    def max(self, x: Tensor) -> Tensor:
        out = x.clone()
        torch.distributed.all_reduce(out, op=torch.distributed.ReduceOp.MAX, group=self._members)
        return out

    def all_gather(self, parts: list[Tensor], mine: Tensor) -> None:
        """Fill `parts`, one of each rank, all of the shape of `mine`."""
        torch.distributed.all_gather(parts, mine, group=self._members)

    def gather(self, x: Tensor, counts: list[int] | None = None) -> Tensor:
        counts = counts if counts is not None else self.every(len(x))
        assert counts[self.rank] == len(x), f"rank {self.rank} brings {len(x)} rows, counts say {counts}"
        gathered: Tensor = _Gather.apply(x, self, counts)
        return gathered

    def any(self, flag: bool) -> bool:
        return bool(self.max(torch.tensor(float(flag), device=self.device)).item())

    def from_first(self, value: T) -> T:
        box: list[Any] = [value]
        torch.distributed.broadcast_object_list(box, group_src=0, group=self._members, device=self.device)
        first: T = box[0]
        return first

    def every(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self._members)
        return values

    @contextlib.contextmanager
    def impatient(self, limit_s: float) -> Iterator[Group]:
        """The same ranks, for `swap` and `sum_within`, and on CPUs for whatever else is not to wait longer. Collective."""
        limit = datetime.timedelta(seconds=limit_s)
        if self.device.type == "cuda":  # NCCL's calls take a limit each; another communicator costs seconds
            yield Group(self.device, self._members, timeout=limit)
            return
        members = torch.distributed.new_group(backend="gloo", timeout=limit)
        try:
            yield Group(self.device, members, timeout=limit)
        finally:
            torch.distributed.destroy_process_group(members)

    @contextlib.contextmanager
    def pair(self, peer: int, limit_s: float) -> Iterator[Group]:
        """This rank and `peer` on their CPUs, for `swap`. RuntimeError where they do not connect.

        All ranks have to call it equally often: torch names a group by how many a rank has made before. A rank without a
        peer gives itself.
        """
        limit, ranks = datetime.timedelta(seconds=limit_s), sorted({self.rank, peer})
        members = torch.distributed.new_group(ranks, backend="gloo", timeout=limit, use_local_synchronization=True)
        try:
            yield Group(torch.device("cpu"), members, timeout=limit)
        finally:
            torch.distributed.destroy_process_group(members)

    def swap(self, x: Tensor, peer: int) -> Tensor:
        """What `peer` gives for my `x`, of the same shape. Raises RuntimeError after the group's time limit."""
        theirs = torch.empty_like(x)
        ways = [
            torch.distributed.P2POp(way, y, group=self._members, group_peer=peer)
            for way, y in ((torch.distributed.isend, x), (torch.distributed.irecv, theirs))
        ]
        assert self._timeout is not None, "made by `impatient`"
        for work in torch.distributed.batch_isend_irecv(ways):
            work.wait(self._timeout)
        return theirs

    def sum_within(self, x: Tensor) -> Tensor:
        """`sum`, in place. Raises RuntimeError after the group's time limit."""
        assert self._timeout is not None, "made by `impatient`"
        torch.distributed.all_reduce(x, group=self._members, async_op=True).wait(self._timeout)
        return x

    def barrier(self) -> None:
        # reading the sum makes the host wait: NCCL's collectives alone only order the GPU's work
        self.sum(torch.zeros(1, device=self.device)).item()


class _Gather(torch.autograd.Function):
    """All-gather of ragged rows: padded to the longest, since gloo and NCCL want equal shapes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, counts: list[int]) -> Tensor:
        ctx.group, ctx.counts = group, counts
        padded = x.new_zeros((max(counts), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        group.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        total = ctx.group.sum(grads[0].contiguous())
        first = sum(ctx.counts[: ctx.group.rank])
        return total[first : first + ctx.counts[ctx.group.rank]], None, None


@contextlib.contextmanager
def open_world(
    device: Device = "auto",
    *,
    timeout_min: float = 30,
    join_min: float = 10,
    nodes: Sequence[str] = (),
    look: Callable[[Meeting], None] | None = None,
) -> Iterator[Group]:
    """The process group that the launcher's variables describe (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    Without these variables it is a group of one. All ranks have to come within `join_min`; `nodes` are the names of their
    machines in the order of ranks, where known. `look` is called when all are there and before any collective.
    Raises BadNode that names who did not come, ValueError when `device` is cuda and there is no GPU.
    """
    with _variables():
        meeting = meet(join_min=join_min, nodes=nodes)
        if look is not None:
            look(meeting)
        mine = _device(device, int(os.environ["LOCAL_RANK"]))
        if mine.type == "cuda":
            torch.cuda.set_device(mine)
            os.environ["LOCAL_RANK"] = str(mine.index)  # DeepSpeed takes it for the device's number
        else:
            os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed takes a GPU where there is one
        timeout = datetime.timedelta(minutes=timeout_min)
        _connect(meeting, mine, timeout)
        try:
            yield Group(mine, timeout=timeout, meeting=meeting)
        finally:
            torch.distributed.destroy_process_group()


def meet(*, join_min: float = 10, nodes: Sequence[str] = ()) -> Meeting:
    """All ranks, as open_world begins; for a rank that will go no further, and tells the others why.

    Raises BadNode that names who did not come.
    """
    store = _store(60 * join_min, nodes)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Meeting(store, rank, size, limit_s=60 * join_min, names=nodes)


def _store(limit_s: float, nodes: Sequence[str]) -> Any:
    """Rank 0's key-value store; under torchrun its agent's, which outlives an attempt: each has its own keys."""
    rank, host, port = int(os.environ["RANK"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_host = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    timeout = datetime.timedelta(seconds=limit_s if rank == 0 else LONGER * limit_s)
    try:
        make: Any = torch.distributed.TCPStore  # type: ignore[attr-defined]
        store = make(host, port, None, is_host, timeout, wait_for_workers=False)
    except RuntimeError as error:
        node = nodes[0] if nodes else socket.gethostname() if is_host else host
        words = f"rank {rank} on {socket.gethostname()} cannot reach rank 0 at {host}:{port}: {first_line(error)}. "
        words += f"Look whether {node} is up and rank 0 started (its log), and whether a firewall is in between"
        if is_host:
            words = f"rank 0 on {node} cannot listen on port {port}: {first_line(error)}. Another process may hold it"
        raise BadNode(words, nodes=(node,)) from error
    of_attempt: Any = torch.distributed.PrefixStore  # type: ignore[attr-defined]
    return of_attempt(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _connect(meeting: Meeting, device: torch.device, timeout: datetime.timedelta) -> None:
    """Make the default group. Connecting has a short limit: it fails where nodes cannot reach each other."""
    store: Any = meeting.store
    try:
        torch.distributed.init_process_group(
            backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=meeting.rank,
            world_size=meeting.size,
            timeout=_CONNECTED_WITHIN,
            device_id=device if device.type == "cuda" else None,
        )
    except RuntimeError as error:
        raise BadNode(
            f"{meeting.where([meeting.rank])} met all ranks, but cannot connect to them: {first_line(error)}. "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME have to name an interface over which all nodes reach each other"
        ) from error
    store.set_timeout(timeout)
    _set_timeout(timeout)


def _set_timeout(timeout: datetime.timedelta) -> None:
    """Of the default group."""
    # its public name is newer than the oldest torch that is supported
    if (set_it := getattr(torch.distributed, "set_timeout", None)) is not None:
        set_it(timeout)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.distributed.distributed_c10d._set_pg_timeout(timeout)


@contextlib.contextmanager
def _variables() -> Iterator[None]:
    """Those of a group of one where the launcher set none; taken back at the end, for a next one listens elsewhere."""
    needed = {"LOCAL_RANK": "0"}
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        needed |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    missing = {name: value for name, value in needed.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def _device(device: Device, local_rank: int) -> torch.device:
    if device == "cpu":
        return torch.device("cpu")
    # one GPU a task: SLURM shows each task its own (count 1), torchrun shows all of the node's
    count = torch.cuda.device_count()
    if count > 0:
        return torch.device("cuda", local_rank % count)
    if device == "cuda":
        raise ValueError("run.device is cuda, but torch sees no GPU here; ask for GPUs or set run.device=auto")
    return torch.device("cpu")
