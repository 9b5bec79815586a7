"""No group of offers carries more than its share of a service: spread, and caps on spot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import ShareCap
from planner.optimize.milp import always
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
    """One group's part of one service's requests."""

    position: int
    """Of the rule in `FleetArrays.rules`."""
    service: str
    group: str
    pairs: IntArray
    """Pairs of the service's buckets and the group's options."""
    parts: FloatArray
    """Each pair's bucket as a fraction of the service's requests, shape (pairs of the row,)."""
    bound: float


def share_rows(fleet: FleetArrays) -> Iterator[ShareRow]:
    """Yield every row that the caps on shares have; caps of 1 have none."""
    if not any(isinstance(rule, ShareCap) and rule.bound < 1 for rule in fleet.rules):
        return
    rates = np.array([bucket.rate_rps for _, bucket in fleet.buckets])
    services = np.array([service for service, _ in fleet.buckets], dtype=np.str_)
    for position, rule in enumerate(fleet.rules):
        if not isinstance(rule, ShareCap) or rule.bound >= 1:
            continue
        names, group = group_offers(rule.facet, fleet.offers)
        covered = np.array([rule.scope.covers(offer) for offer in fleet.offers], dtype=np.bool_)
        pair_offer = fleet.option_offer[fleet.pair_option]
        for service in sorted(set(services.tolist())):
            if rule.service not in {None, service}:
                continue
            mine = services[fleet.pair_bucket] == service
            total = float(rates[services == service].sum())
            for index in sorted(set(group[pair_offer[mine & covered[pair_offer]]].tolist())):
                pairs = _members(mine & covered[pair_offer] & (group[pair_offer] == index))
                yield ShareRow(
                    position=position,
                    service=service,
                    group=names[index],
                    pairs=pairs,
                    parts=rates[fleet.pair_bucket[pairs]] / total,
                    bound=rule.bound,
                )


def _members(mask: NDArray[np.bool_]) -> IntArray:
    return np.flatnonzero(mask).astype(np.int64)


def define_share_caps(
    builder: MilpBuilder, fleet: FleetArrays, x: IntArray, *, slack: dict[int, int] | None = None
) -> None:
    """For every cap f, service s and group v:  sum_{b of s, j in v} lam[b] x[b, j] <= (f (+ e)) sum_{b of s} lam[b].

    x : columns of the eligible pairs, shape (pairs,).
    slack : columns e by the rule's position: an elastic copy of the model.
    """
    slack = slack or {}
    for row in share_rows(fleet):
        extra = [slack[row.position]] if row.position in slack else []
        builder.add_rows(
            "share",
            rows=np.zeros(len(row.pairs) + len(extra), dtype=np.int64),
            columns=np.concatenate([x[row.pairs], np.array(extra, dtype=np.int64)]),
            values=np.concatenate([row.parts / fleet.units_per_bucket, -np.ones(len(extra))]),
            upper=[row.bound],
            label=always(f"{row.service} on {row.group}"),
        )


def share_caps_hold(fleet: FleetArrays, shares: FloatArray) -> bool:
    """Return whether `shares` (shape (pairs,), each bucket's sum to 1) keep every cap."""
    return all(float(row.parts @ shares[row.pairs]) <= row.bound + SHARE_TOLERANCE for row in share_rows(fleet))
