"""Electricity: what a site adds to what its GPUs draw, what a kWh emits there and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.hardware import Offer

GRAMS_PER_KG = 1000.0
WATTS_PER_KW = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The electricity of one region of a provider."""

    pue: float = 1.0
    """Power usage effectiveness: what the site draws per watt of its machines."""
    carbon_g_per_kwh: tuple[float, ...] = ()
    """Emitted per kWh: one value, or one per period of the horizon; empty = not known."""
    usd_per_kwh: float = 0.0
    """Price of electricity that is not in the price of the machines."""

    def carbon_in(self, period: int) -> float | None:
        """Return g CO2e/kWh in a period; None if that is not known."""
        if not self.carbon_g_per_kwh:
            return None
        return self.carbon_g_per_kwh[period if len(self.carbon_g_per_kwh) > 1 else 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Electricity of every place where the fleet can be, and what emissions cost."""

    sites: Mapping[tuple[str, str], Site]
    """By provider and region."""
    carbon_usd_per_kg: float = 0.0
    """Price of a kg CO2e."""

    def site(self, offer: Offer) -> Site | None:
        """Return the electricity where `offer` stands; None if nothing is known of it."""
        return self.sites.get((offer.provider, offer.region))

    @property
    def is_priced(self) -> bool:
        """Whether electricity or emissions cost anything beside the machines."""
        return self.carbon_usd_per_kg > 0 or any(site.usd_per_kwh > 0 for site in self.sites.values())
