"""How clouds count the time of a machine that is rented for a while and given back (catalogs/billing.csv)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from planner.catalog.offers import csv_rows
from planner.domain.pay_per_use import BillingRule
from planner.files.bundled import bundled

if TYPE_CHECKING:
    from planner.domain.hardware import Offer

BILLING_FILE = "billing.csv"


@cache
def load_billing_rules() -> tuple[BillingRule, ...]:
    """Return the bundled rules; a provider without one does not say, or nothing that could be cited was found."""
    rows = csv_rows(bundled("catalogs", BILLING_FILE).read_text(encoding="utf-8"), name=BILLING_FILE)
    return tuple(
        BillingRule(
            provider=row.text("provider"),
            instance_prefix=row.cells.get("instance_prefix", ""),
            minimum_s=row.optional_number("minimum_s") or 0.0,
            step_s=row.optional_number("step_s") or 0.0,
            as_of=row.optional_date("as_of"),
            source=f"{row.text('source')} ({row.text('source_url')})",
            notes=row.cells.get("notes", ""),
        )
        for row in rows
    )


def billing_rule(offer: Offer) -> BillingRule | None:
    """Return how an offer's time is counted, by the longest prefix of its instance type; None = not stated.

    Examples
    --------
    >>> from planner.catalog.offers import load_offers
    >>> offers = {offer.instance_type: offer for offer in load_offers() if offer.provider == "oracle-cloud"}
    >>> billing_rule(offers["bm-gpu-h100-8"]).minimum_s, billing_rule(offers["vm-gpu-a10-1"]).minimum_s
    (3600.0, 60.0)
    """
    mine = [
        rule
        for rule in load_billing_rules()
        if rule.provider == offer.provider and offer.instance_type.startswith(rule.instance_prefix)
    ]
    return max(mine, key=lambda rule: len(rule.instance_prefix), default=None)
