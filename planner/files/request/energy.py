"""Electricity of a request's places, and limits on energy and carbon."""

from __future__ import annotations

from pydantic import Field, model_validator

from planner.errors import InputError
from planner.files.schema import CarbonIntensity, CarbonRate, MeanPower, Strict, UsdPerKwh, UsdPerTonne


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
    energy_price: UsdPerKwh = Field(
        default=0.0,
        description="Price of electricity, where the price of the machines does not include it: yours.",
        json_schema_extra={"default": "0 USD/kWh"},
    )


class CarbonLimit(Strict):
    """Most that the fleet may emit, what emissions cost, or both."""

    max: CarbonRate | None = Field(default=None, description="Most CO2e on average over the horizon.")
    price: UsdPerTonne | None = Field(
        default=None, description="Price of emissions; it is minimised with the cost, and stands beside it."
    )

    @model_validator(mode="after")
    def _says_something(self) -> CarbonLimit:
        if self.max is None and self.price is None:
            raise InputError("A carbon limit needs max, price or both.", hint="carbon: {max: 12 kg/h}")
        return self


class EnergyLimit(Strict):
    """Most that the fleet may draw on average, PUE included."""

    max: MeanPower = Field(description="Most energy in a time, on average over the horizon.")
