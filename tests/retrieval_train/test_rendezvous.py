"""Who does not come, falls silent or is not reached is named, within the time that it was given."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from jobs.failure import Failure
from retrieval_train.exchange import Exchange, measure, refuse_unreached, rounds
from retrieval_train.meeting import BadNode, LostRank, Meeting
from retrieval_train.world import Group, _store, open_world
from tests.processes import run_ranks

NAMES = ["n1", "n2", "n3"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def at_a_new_port(world: Group) -> None:
    """So that a process can be in several meetings."""
    os.environ["MASTER_PORT"] = str(world.from_first(free_port()))


def new_meeting(world: Group, names: list[str]) -> Meeting:
    at_a_new_port(world)
    return Meeting(_store(30, names), world.rank, world.size, limit_s=30, names=names)


def refused(world: Group, act: Callable[[], Any]) -> tuple[str, tuple[str, ...], float] | None:
    """Words, nodes and seconds of a BadNode."""
    began = time.monotonic()
    try:
        act()
    except BadNode as error:
        waited = time.monotonic() - began
        world.barrier()  # rank 0's store stays until all have read it
        return str(error), error.nodes, waited
    world.barrier()
    return None


def meetings(world: Group) -> list[tuple[str, tuple[str, ...], float] | None]:
    def enter() -> None:
        with open_world("cpu", join_min=1 / 60, nodes=NAMES):
            raise AssertionError("not all are there")

    found = []
    for absent in (2, 0):
        at_a_new_port(world)
        found.append(refused(world, enter if world.rank != absent else lambda: None))
    meeting = new_meeting(world, NAMES)
    assert meeting.nodes == NAMES and meeting.every("names", meeting.node, limit_s=9) == NAMES

    def say() -> None:
        time.sleep(0.8 if world.rank == 0 else 0)  # it asks later than others wait, and is not to blame for it
        meeting.every("anything", world.rank, limit_s=1)

    found.append(refused(world, say if world.rank != 1 else lambda: None))
    return found


def test_a_rank_that_does_not_come_or_falls_silent_is_named_within_its_limit() -> None:
    of_rank = run_ranks(meetings, 3)
    for rank in (0, 1):
        told = of_rank[rank][0]
        assert told is not None
        words, nodes, waited = told
        assert "1 of 3 ranks did not come within 0.0166667 min: rank 2 on n3; those on n1, n2 did" in words
        assert nodes == ("n3",) and 0.9 < waited < 5
    for rank in (1, 2):
        told = of_rank[rank][1]
        assert told is not None
        words, nodes, waited = told
        assert f"rank {rank} on " in words and "cannot reach rank 0 at 127.0.0.1:" in words and "n1 is up" in words
        assert nodes == ("n1",) and waited < 15
    for rank in (0, 2):
        told = of_rank[rank][2]
        assert told is not None and "rank 1 on n2 came, and then said nothing of 'anything' for 1 s" in told[0]
        assert told[1] == ("n2",) and told[2] < 5


def without_the_first(world: Group) -> str:
    """Rank 0 dies, while others wait for what it has to say."""
    meeting: Meeting | None = new_meeting(world, ["n1", "n2"])
    if world.rank == 0:
        meeting = None
    try:
        assert meeting is None or meeting.every("anything", 1, limit_s=20)
        return ""
    except LostRank as error:
        return str(error)
    finally:
        world.barrier()


def test_a_first_rank_that_is_gone_is_lost_and_its_node_not_blamed() -> None:
    _, words = run_ranks(without_the_first, 2)
    assert words.startswith("rank 1 waits in vain for rank 0 on n1 to answer ('anything'): ")
    assert Failure.of(LostRank(words)) == Failure("lost_rank", words)


def short_meetings(world: Group) -> list[list[int]]:
    """Of which rank 0 goes, and takes its store along, as soon as it knows all."""
    told = []
    for _ in range(20):
        at_a_new_port(world)
        told.append(Meeting(_store(30, []), world.rank, world.size, limit_s=30).every("rank", world.rank, limit_s=9))
    return told


def test_all_have_read_the_answer_before_rank_0_goes() -> None:
    assert run_ranks(short_meetings, 3) == [[[0, 1, 2]] * 20] * 3


def of_two_attempts(world: Group) -> list[list[Any]]:
    """A store that outlives an attempt, as torchrun's agent's does."""
    at_a_new_port(world)
    agent: Any = None
    if world.rank == 0:
        make: Any = torch.distributed.TCPStore  # type: ignore[attr-defined]
        agent = make("127.0.0.1", int(os.environ["MASTER_PORT"]), None, True, wait_for_workers=False)
    world.barrier()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    told = []
    for attempt in ("0", "1"):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = attempt
        meeting = Meeting(_store(30, ["n1"]), world.rank, world.size, limit_s=30, names=["n1"])
        told.append(meeting.every("attempt", attempt, limit_s=9))
        world.barrier()
    del agent
    return told


def test_an_attempt_under_torchrun_reads_no_answer_of_the_one_before() -> None:
    assert run_ranks(of_two_attempts, 2) == [[["0", "0"], ["1", "1"]]] * 2


def exchanges(world: Group) -> tuple[Exchange, tuple[str, tuple[str, ...], float]]:
    """With a rank whose swaps take long; with one that keeps its peers waiting."""
    names = ["n1", "n2", "n3", "n4"]
    swap = Group.swap

    def slowly(self: Group, x: Any, peer: int) -> Any:
        if world.rank == 2:
            time.sleep(0.1)
        return swap(self, x, peer)

    def stuck(self: Group, x: Any, peer: int) -> Any:
        time.sleep(2)
        raise RuntimeError("timed out")

    Group.swap = slowly  # type: ignore[method-assign]
    slow = measure(Group(world.device, meeting=new_meeting(world, names)))
    Group.swap = swap  # type: ignore[method-assign]
    if world.rank == 3:  # its network hangs: real time-outs
        Group.swap = stuck  # type: ignore[method-assign]
    hung = refused(world, lambda: measure(Group(world.device, meeting=new_meeting(world, names)), limit_s=0.5))
    assert hung is not None
    return slow, hung


def test_a_slow_and_an_unreachable_node_are_told_from_their_neighbours() -> None:
    for slow, (words, nodes, waited) in run_ranks(exchanges, 4):
        assert 2 in slow.slow() and slow.swap_mb_s[2] == min(slow.swap_mb_s)  # a busy machine makes others slow, too
        assert nodes == ("n4",) and "none of its neighbours reaches n4" in words and waited < 15
        assert "n3 and n4" in words and "n1 and n4" in words and "n2 and n3" not in words


def of_three(world: Group) -> tuple[Exchange, float]:
    """Of an odd ring; and the world can still be split afterwards."""
    found = measure(Group(world.device, meeting=new_meeting(world, ["n1", "n2", "n3"])), limit_s=5)
    with world.impatient(5) as group:
        return found, float(group.sum_within(torch.ones(1)))


def test_three_ranks_of_which_one_has_no_peer_in_each_round_reach_each_other() -> None:
    for found, summed in run_ranks(of_three, 3):
        assert min(found.swap_mb_s) > 0 and summed == 3


@pytest.mark.parametrize(
    ("nodes", "stride"),
    [(["a"] * 2, 1), (["a"] * 5, 1), (list("aabb"), 2), (list("aabbcc"), 2), (list("abcd"), 1), (list("aab"), 1)],
)
def test_in_each_round_pairs_are_disjoint_and_over_all_rounds_they_are_the_ring(nodes: list[str], stride: int) -> None:
    size, seen = len(nodes), set()
    for peer_W in rounds(nodes):
        assert all(peer_W[peer] == rank for rank, peer in enumerate(peer_W))
        seen |= {frozenset((rank, peer)) for rank, peer in enumerate(peer_W) if rank != peer}
    assert seen == {frozenset((rank, (rank + stride) % size)) for rank in range(size)}


def test_where_two_of_two_or_all_fail_nobody_is_accused() -> None:
    for nodes in (["a", "b"], ["a", "b", "c", "d"]):
        plan = rounds(nodes)
        with pytest.raises(BadNode, match=r"a and b.*not clear which") as told:
            refuse_unreached(nodes, plan, [[-1.0] * len(nodes) for _ in plan])
        assert told.value.nodes == ()
