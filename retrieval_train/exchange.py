"""How fast the ranks reach each other, by pairs of neighbours: in an all-reduce all take as long as the slowest.

Every rank swaps a tensor with the ranks of its place on both neighbouring nodes (on one node: with both neighbouring
ranks), so a node that is slow or cannot be reached is the one with which *both* its neighbours have trouble.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from retrieval_train.meeting import BadNode, first_line
from retrieval_train.world import Group

log = logging.getLogger(__name__)

MB_OF = {"cpu": 4, "cuda": 64}
SLOW = 3.0  # times the median, from which on a rank is told of
_FAILED = -1.0


@dataclass(frozen=True)
class Exchange:
    """Speeds in MB/s, of a tensor of `mb`."""

    mb: int
    sum_mb_s: float
    """All-reduce over all ranks."""
    swap_mb_s: list[float]
    """Of each rank: with the faster one of its neighbours, each way."""

    def slow(self) -> list[int]:
        """Ranks with less than a third of the median. Of two ranks neither is told of: it may be either."""
        return [rank for rank, speed in enumerate(self.swap_mb_s) if SLOW * speed < statistics.median(self.swap_mb_s)]


def measure(world: Group, *, limit_s: float = 10) -> Exchange:
    """Swap and sum, each within `limit_s`. Collective, and for two ranks or more.

    Raises BadNode: it names the node that neither of its neighbours reaches or, where that is not clear, the pairs.
    """
    meeting = world.meeting
    assert meeting is not None and world.size > 1, "of the world that open_world gives, with several ranks"
    patience_s = 2 * limit_s + 15  # to connect, to swap, and what a busy machine takes

    def in_rounds(about: str, seconds: Callable[[int], float]) -> list[list[float]]:
        """Every rank's seconds in each round; no round begins before all ranks are done with the one before."""
        meeting.every(about, True, limit_s=patience_s)
        swaps_RW = []
        for number, peer_W in enumerate(plan):
            swaps_RW.append(meeting.every(f"{about} {number}", seconds(peer_W[world.rank]), limit_s=patience_s))
        refuse_unreached(meeting.nodes, plan, swaps_RW)
        return swaps_RW

    mb, plan = MB_OF[world.device.type], rounds(meeting.nodes)
    swaps_RW = in_rounds("swap", lambda peer: _paired(world, peer, limit_s))
    x = torch.ones(mb * 250_000, device=world.device)
    with world.impatient(limit_s) as group:
        if world.device.type == "cuda":  # a failure breaks NCCL for all pairs: it is found, but not whose it is
            swaps_RW = in_rounds(
                "swap of GPUs", lambda peer: _seconds(lambda: group.swap(x, peer)) if peer != world.rank else 0.0
            )
        sum_s = meeting.every("sum", _seconds(lambda: group.sum_within(x)), limit_s=patience_s)
    if _FAILED in sum_s:
        failed = meeting.where(rank for rank, seconds in enumerate(sum_s) if seconds == _FAILED)
        raise BadNode(f"neighbours reach each other, but an all-reduce fails or takes over {limit_s:g} s on {failed}")
    best_W = [min(row[rank] for row in swaps_RW if row[rank] > 0) for rank in range(world.size)]
    return Exchange(mb, round(mb / max(sum_s)), [round(mb / seconds) for seconds in best_W])


def rounds(nodes: Sequence[str]) -> list[list[int]]:
    """Who swaps with whom: for each round each rank's peer, itself where it has none. `nodes` are those of the ranks."""
    names = list(dict.fromkeys(nodes))
    each = len(nodes) // len(names)
    is_even = len(names) > 1 and list(nodes) == [name for name in names for _ in range(each)]
    each = each if is_even else 1
    stops = len(nodes) // each
    # a ring of stops; of two stops it has one edge, and an odd ring takes a third round
    edges = [(at, (at + 1) % stops) for at in range(stops if stops > 2 else stops - 1)]
    peer_RW = [list(range(len(nodes))) for _ in range(min(len(edges), 2 + stops % 2))]
    for at, (one, other) in enumerate(edges):
        row = peer_RW[2 if stops % 2 and at == stops - 1 else at % 2]
        for place in range(each):
            a, b = one * each + place, other * each + place
            row[a], row[b] = b, a
    return peer_RW


def refuse_unreached(nodes: Sequence[str], plan: list[list[int]], swaps_RW: list[list[float]]) -> None:
    """Raises BadNode for pairs of which one at least failed."""
    is_bad: dict[tuple[str, str], bool] = {}  # one node: by ranks
    is_one = len(set(nodes)) == 1
    names = [f"rank {rank}" if is_one else node for rank, node in enumerate(nodes)]
    for peer_W, swap_W in zip(plan, swaps_RW, strict=True):
        for rank, peer in enumerate(peer_W):
            pair = (names[min(rank, peer)], names[max(rank, peer)])
            if rank != peer:
                is_bad[pair] = is_bad.get(pair, False) or swap_W[rank] == _FAILED
    bad = [pair for pair, failed in is_bad.items() if failed]
    if not bad:
        return
    lonely = [name for name in dict.fromkeys(names) if all(failed for pair, failed in is_bad.items() if name in pair)]
    told = ", ".join(f"{one} and {other}" for one, other in bad[:8])
    # all of them: a switch, or the wrong interface; two of two: either
    at_fault = lonely if 0 < 2 * len(lonely) < len(set(names)) else []
    verdict = (
        f"none of its neighbours reaches {', '.join(at_fault)}" if at_fault else "it is not clear which is at fault"
    )
    raise BadNode(
        f"no exchange between {told}: {verdict}. Look at the network of these nodes, and whether GLOO_SOCKET_IFNAME "
        "and NCCL_SOCKET_IFNAME name an interface over which they reach each other",
        nodes=set(nodes) if is_one else at_fault,
    )


def _paired(world: Group, peer: int, limit_s: float) -> float:
    """In a group of two, on CPUs: one that breaks leaves those of other pairs whole. Without a peer: 0."""
    x = torch.ones(MB_OF["cpu"] * 250_000)
    try:
        with world.pair(peer, limit_s) as pair:
            return _seconds(lambda: pair.swap(x, 1 - pair.rank)) if peer != world.rank else 0.0
    except RuntimeError as error:
        log.warning("pre-flight: %s", first_line(error))
        return _FAILED


def _seconds(exchange: Callable[[], torch.Tensor]) -> float:
    """The best of some; the first opens connections."""
    try:
        exchange()
        times = []
        for _ in range(8):
            began = time.perf_counter()
            exchange()
            times.append(time.perf_counter() - began)
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        log.warning("pre-flight: %s", first_line(error))
        return _FAILED
    return min(times)
