"""Who comes when, by apportionment and not by draws: shares are exact in every stretch, not on average.

Slot k belongs to whichever party's next slot is due first, when party p takes its j-th slot at time (j + 1/2) / quota_p
(Webster's method, also Sainte-Laguë's): a party's part of any prefix is its share to about one slot. Any slot is found
without those before it: the cost is the number of parties, whatever the place.

Legend: P parties, T moments, K slots that may lie in the asked stretch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval_train.data.order.permutation import Int

_MOMENTS = 33  # tried at once to find when a slot is due
_SLACK = 1e-3  # of a slot: more than float64 is off by, up to 1e12 slots


def slots(quotas: Int, start: int, stop: int) -> tuple[Int, Int]:
    """Party, and number among the party's own, of the slots [start, stop) of the sequence of sum(quotas) slots."""
    party_K, own_K, first = _candidates(quotas, start, stop)
    picked = slice(start - first, stop - first)
    return party_K[picked], own_K[picked]


def counted(quotas: Int, stop: int) -> Int:
    """How many of the first `stop` slots each party has, (P,)."""
    party_K, _, first = _candidates(quotas, stop, stop)
    before, _ = _around(quotas, stop)
    before += np.bincount(party_K[: stop - first], minlength=len(quotas))
    return before


def largest_remainders(total: int, weights: Sequence[float] | Int) -> Int:
    """`total` seats by `weights` (not all zero): exact parts rounded down, the seats left over to the largest remainders."""
    exact = [int(weight) if float(weight).is_integer() else weight for weight in np.asarray(weights).tolist()]
    whole = sum(exact)
    # integers stay integers: with weights that are counts no seat is given that rounding made
    parts = [total * weight // whole if isinstance(whole, int) else int(total * weight / whole) for weight in exact]
    rest = [total * weight / whole - part for weight, part in zip(exact, parts, strict=True)]
    order = sorted(range(len(parts)), key=lambda party: (-rest[party], party))
    for party in order[: total - sum(parts)]:
        parts[party] += 1
    return np.array(parts, np.int64)


def _around(quotas: Int, slot: int) -> tuple[Int, Int]:
    """How many slots of each party surely lie before slot `slot`, and how many at most, both (P,).

    Up to time t party p has had floor(quota_p t + 1/2) slots, so slot k is due at t = k / total, give or take P / 2 slots.
    Of some moments in this range the two next to the slot are taken.
    """
    reach = 0.51 * len(quotas) + 1
    time_T = (slot + np.linspace(-reach, reach, _MOMENTS)) / max(int(quotas.sum()), 1)
    had_TP = time_T[:, None] * quotas + 0.5
    few_TP, many_TP = (np.clip(np.floor(had_TP + slack), 0, quotas).astype(np.int64) for slack in (-_SLACK, _SLACK))
    before = np.flatnonzero(many_TP.sum(1) <= slot)[-1]
    after = np.flatnonzero(few_TP.sum(1) >= slot)[0]
    return few_TP[before], many_TP[after]


def _candidates(quotas: Int, start: int, stop: int) -> tuple[Int, Int, int]:
    """Party and number of consecutive slots that hold [start, stop), and the slot at which they begin."""
    (low, _), (_, high) = _around(quotas, start), _around(quotas, stop)
    party_K = np.repeat(np.arange(len(quotas)), high - low)
    own_K = np.arange(len(party_K)) - np.repeat(np.cumsum(high - low) - (high - low), high - low) + low[party_K]
    # a comparison of (2j + 1) / (2 quota); long double keeps 64 bits, enough to tell slots of 1e9 samples apart
    due_K = (2 * own_K + 1).astype(np.longdouble) / quotas[party_K]
    ordered = np.lexsort((party_K, due_K))
    return party_K[ordered], own_K[ordered], int(low.sum())
