"""How old the prices are that giving a service back is decided by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from planner.catalog.select import DAYS_PER_MONTH, age_months
from planner.domain.provenance import Warning_
from planner.domain.scaling import ScalingWay
from planner.errors import DataMissingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from planner.domain.pay_per_use import PayPerUse
    from planner.domain.scaling import ScalingChoice

UNSURE_PRICE = "W206"
"""A service would be given back for a price that is old, or has no date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceAges:
    """Until when a price is taken for today's."""

    today: date
    max_age_days: float
    is_strict: bool
    """Older prices, and those without a date, are refused."""

    def doubt(self, as_of: date | None) -> str:
        """Return what is wrong with a price of that date; empty if nothing is."""
        if as_of is None:
            return "without a date"
        age_days = (self.today - as_of).days
        return f"{age_days} days old, as of {as_of}" if age_days > self.max_age_days else ""

    def check(self, offers: Iterable[PayPerUse]) -> None:
        """Return if prices may be used.

        Raises
        ------
        DataMissingError: if one is too old or has no date, and that is refused.
        """
        if not self.is_strict:
            return
        for offer in offers:
            if doubt := self.doubt(offer.as_of):
                raise DataMissingError(
                    f"The price of {offer.name} is {doubt}; the limit is {self.max_age_days:g} days.",
                    hint="Name the clouds to compare in scale_to_zero.clouds, bring newer prices in"
                    " scale_to_zero.files, raise catalog.max_price_age, or drop --strict.",
                )

    def warnings(self, choices: Iterable[ScalingChoice]) -> Iterator[Warning_]:
        """Yield a warning for each service that would be given back for a price that may not be today's."""
        for choice in choices:
            best = choice.ways[choice.chosen]
            if best.way is ScalingWay.ALWAYS_ON:
                continue
            as_of = None if best.price_as_of is None else date.fromisoformat(best.price_as_of)
            if doubt := self.doubt(as_of):
                yield Warning_(
                    code=UNSURE_PRICE,
                    message=f"{choice.service} would be given back for {best.offer}, whose price is {doubt}: look it up"
                    " first.",
                    observed="no date" if as_of is None else round(age_months(as_of, self.today), 1),
                    threshold=round(self.max_age_days / DAYS_PER_MONTH, 1),
                )
