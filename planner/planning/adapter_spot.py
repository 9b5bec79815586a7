"""Adapters that only spot capacity holds: while it is taken back, no other replica answers their requests.

A replica's availability counts as capacity, which is right of requests that any replica may serve. An adapter is only
where a slot has it: while a spot replica is away, every request for the adapters that are nowhere else is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from planner.domain.hardware import Market
from planner.domain.provenance import Warning_

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.domain.plan import AdapterPlan, Plan

ONLY_ON_SPOT = "W416"


def away_fractions(plan: Plan, item: AdapterPlan, availability: Mapping[str, float]) -> dict[str, float]:
    """Return by adapter, of those with no copy off spot, the part of the time in which none of its copies is there.

    Replicas of one spot offer are taken to go at once, and offers by chance.

    Parameters
    ----------
    availability : by offer, the part of the time that a replica there runs; 1 where it is not known.
    """
    rows = {row.option: row for row in plan.allocation if row.service == item.service}
    offers: dict[str, set[str]] = defaultdict(set)
    kept: set[str] = set()
    for replica in item.placement:
        row = rows[replica.option]
        for held in replica.adapters:
            offers[held.adapter].add(row.offer)
            if row.market != Market.SPOT:
                kept.add(held.adapter)
    return {
        name: math.prod(1.0 - availability.get(offer, 1.0) for offer in sorted(where))
        for name, where in offers.items()
        if name not in kept
    }


def spot_warnings(plan: Plan, availability: Mapping[str, float]) -> Iterator[Warning_]:
    """Yield for each service how many of its adapters have no copy off spot, and what part of the time they miss."""
    for item in plan.adapters:
        away = away_fractions(plan, item, availability)
        if away:
            most = max(away.values())
            how_long = (
                f", up to {most:.2%} of the time by its availability"
                if most > 0
                else "; for how long is not known (catalog.spot_recovery)"
            )
            yield Warning_(
                code=ONLY_ON_SPOT,
                message=f"{len(away)} of {item.adapters} adapters of {item.service} have no copy off spot. While that"
                f" is taken back no replica serves them{how_long}: another would have to load them, beside those that"
                " it is planned for. Availability counts as capacity, which does not help them, and no replay takes a"
                " replica away. For adapters that must always be there: spot_share: {max: 0%} of the service, or"
                " catalog.markets: [on-demand].",
                observed=len(away),
            )
