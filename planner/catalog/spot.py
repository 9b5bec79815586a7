"""How often spot instances are reclaimed, by region and instance type (catalogs/spot_interruptions.csv)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from planner.catalog.offers import csv_rows
from planner.files.bundled import bundled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.hardware import Offer

INTERRUPTIONS_FILE = "spot_interruptions.csv"


@cache
def load_reclaim_rates() -> Mapping[tuple[str, str, str], float]:
    """Return the largest part of instances reclaimed in a month by (provider, region, instance type)."""
    rows = csv_rows(bundled("catalogs", INTERRUPTIONS_FILE).read_text(encoding="utf-8"), name=INTERRUPTIONS_FILE)
    return {
        (row.text("provider"), row.text("region"), row.text("instance_type")): row.number("reclaimed_a_month_at_most")
        for row in rows
    }


def reclaims_per_month(offer: Offer, stated: Mapping[str, float]) -> float | None:
    """Return how many times a month an instance of the spot offer is reclaimed at most; None = not known.

    stated : the user's figures by offer or provider, which take the place of the table's.
    """
    for name in (offer.listing, offer.provider):
        if name in stated:
            return stated[name]
    return load_reclaim_rates().get((offer.provider, offer.region, offer.instance_type))
