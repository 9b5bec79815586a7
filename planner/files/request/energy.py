"""Electricity of a request's places."""

from __future__ import annotations

from pydantic import Field

from planner.files.schema import CarbonIntensity, Strict


class SiteChoice(Strict):
    """The electricity of one region, where you know it better than the catalog does."""

    pue: float | None = Field(
        default=None,
        ge=1.0,
        le=5.0,
        description="What the site draws per watt of its machines; default: the provider's, or the industry's average.",
    )
    carbon: CarbonIntensity | None = Field(
        default=None, description="Emitted per kWh; default: the region's in the catalog, if it is known."
    )
