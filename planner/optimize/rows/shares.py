"""No group of offers carries more than its share of a service: spread, and caps on spot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import ShareCap
from planner.optimize.milp import always
from planner.optimize.periods import pairs_of
from planner.optimize.rows.variety import group_offers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder

SHARE_TOLERANCE = 1e-6
"""Of a service's requests: what solvers accept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRow:
    """One group's part of one service's requests; where prefill and decode are apart, of one stage of them."""

    position: int
    """Of the rule in `FleetArrays.rules`."""
    service: str
    group: str
    pairs: IntArray
    """Pairs of the service's buckets and the group's options."""
    parts: FloatArray
    """Each pair's bucket as a fraction of the service's requests that are served, shape (pairs of the row,)."""
    buckets: IntArray
    """The service's buckets, in the period of the row."""
    bucket_parts: FloatArray
    """Each of them as a fraction of the same."""
    bound: float


def share_rows(fleet: FleetArrays) -> Iterator[ShareRow]:
    """Yield every row that the caps on shares have, period by period; caps of 1 have none."""
    if not any(isinstance(rule, ShareCap) and rule.bound < 1 for rule in fleet.rules):
        return
    periods = [slice(None)] if fleet.horizon is None else [pairs_of(fleet, t) for t in range(fleet.n_periods)]
    every = np.arange(len(fleet.pair_bucket))
    for position, rule in enumerate(fleet.rules):
        if isinstance(rule, ShareCap) and rule.bound < 1:
            for period in periods:
                yield from _cap_rows(position, rule, fleet, every[period])


def _cap_rows(position: int, rule: ShareCap, fleet: FleetArrays, now: IntArray) -> Iterator[ShareRow]:
    """Yield the rows of one cap in one period, the pairs of which are `now`."""
    names, group = group_offers(rule.facet, fleet.offers)
    covered = np.array([rule.scope.covers(offer) for offer in fleet.offers], dtype=np.bool_)
    offers = fleet.option_offer[fleet.pair_option[now]]
    present, bucket = np.unique(fleet.pair_bucket[now], return_inverse=True)
    services = np.array([fleet.buckets[b][0] for b in present.tolist()], dtype=np.str_)
    rates = np.array([fleet.buckets[b][1].rate_rps for b in present.tolist()])
    for service in sorted(set(services.tolist())):
        if rule.service not in {None, service}:
            continue
        mine = services[bucket] == service
        own = present[services == service]
        total = float((rates * fleet.served_shares[present])[services == service].sum())
        if total <= 0:
            continue
        for index in sorted(set(group[offers[mine & covered[offers]]].tolist())):
            inside = mine & covered[offers] & (group[offers] == index)
            for stage in _stages(fleet):
                chosen = inside & stage[now]
                yield ShareRow(
                    position=position,
                    service=service,
                    group=names[index],
                    pairs=now[chosen],
                    parts=rates[bucket[chosen]] / total,
                    buckets=own,
                    bucket_parts=rates[services == service] / total,
                    bound=rule.bound,
                )


def _stages(fleet: FleetArrays) -> Iterator[NDArray[np.bool_]]:
    """Yield the pairs that prefill, and those that decode: a cap holds for each of the two stages by itself."""
    yield fleet.pair_covers
    if fleet.is_disaggregated:
        yield fleet.option_link[fleet.pair_option] <= 0


def define_share_caps(
    builder: MilpBuilder,
    fleet: FleetArrays,
    x: IntArray,
    *,
    u: IntArray | None = None,
    slack: dict[int, int] | None = None,
) -> None:
    """For every cap f, service s and group v:  sum_{b of s, j in v} lam[b] x[b, j] <= (f (+ e)) sum_{b of s} lam[b].

    With a horizon there is one such row for every period. Where prefill and decode are apart, once over the options
    that prefill and once over those that decode. Where demand may be shed the right side is that of what is served:
    f sum_{b of s} lam[b] (1 - u[b]).

    x : columns of the eligible pairs, shape (pairs,).
    u : columns of unserved shares, shape (buckets,), where the request lets demand be shed.
    slack : columns e by the rule's position: an elastic copy of the model.
    """
    slack = slack or {}
    for row in share_rows(fleet):
        extra = [slack[row.position]] if row.position in slack else []
        left = np.zeros(0, dtype=np.int64) if u is None else u[row.buckets]
        lost = row.bound * row.bucket_parts[: len(left)]
        builder.add_rows(
            "share",
            rows=np.zeros(len(row.pairs) + len(extra) + len(left), dtype=np.int64),
            columns=np.concatenate([x[row.pairs], np.array(extra, dtype=np.int64), left]),
            values=np.concatenate([row.parts / fleet.units_per_bucket, -np.ones(len(extra)), lost]),
            upper=[row.bound],
            label=always(f"{row.service} on {row.group}"),
        )


def share_caps_hold(fleet: FleetArrays, shares: FloatArray) -> bool:
    """Return whether `shares` (shape (pairs,), each bucket's sum to 1) keep every cap."""
    return all(float(row.parts @ shares[row.pairs]) <= row.bound + SHARE_TOLERANCE for row in share_rows(fleet))
