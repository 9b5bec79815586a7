"""The periods of a request."""

from __future__ import annotations

from pydantic import Field, model_validator

from planner.errors import InputError
from planner.files.schema import DurationS, Strict

MAX_PERIODS = 2000
"""Twelve weeks by the hour; beyond it a typical week says as much."""


class HorizonChoice(Strict):
    """Periods of which each has its demand and its fleet. The horizon repeats: after the last comes the first."""

    periods: DurationS = Field(description="Length of the horizon: a day, a fortnight.", examples=["24h", "14d"])
    step: DurationS = Field(
        default=3600.0, description="Length of a period.", json_schema_extra={"default": "1h"}, examples=["1h", "15min"]
    )
    start_up: DurationS | None = Field(
        default=None, description="How long an instance is rented before it serves: provisioning, image, weights."
    )
    minimum_lease: DurationS | None = Field(
        default=None, description="How long an instance is kept at least once it serves, in whole periods."
    )

    @property
    def n_periods(self) -> int:
        """Number of periods."""
        return round(self.periods / self.step)

    @model_validator(mode="after")
    def _whole_periods(self) -> HorizonChoice:
        if abs(self.periods / self.step - self.n_periods) > 1e-6 or not 1 <= self.n_periods <= MAX_PERIODS:
            raise InputError(
                f"A horizon of {self.periods:g} s does not have 1 to {MAX_PERIODS} whole periods of {self.step:g} s.",
                hint="Write e.g. {periods: 24h, step: 1h}.",
            )
        for name, value in (("start_up", self.start_up), ("minimum_lease", self.minimum_lease)):
            if value is not None and value > self.periods:
                raise InputError(
                    f"{name} is longer than the horizon.", hint="Make the horizon longer, or this shorter."
                )
        return self
