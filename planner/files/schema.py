"""What all schemas of user files share: the strict base, and field types for quantities with units."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from planner import units
from planner.domain.hardware import PowerCap
from planner.errors import InputError


class Strict(BaseModel):
    """Base of all schemas: an unknown key is an error, and nothing changes after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _quantity(pattern_hint: str, *examples: str | float) -> WithJsonSchema:
    kinds = sorted({"string" if isinstance(example, str) else "number" for example in examples})
    schema_type: str | list[str] = kinds[0] if len(kinds) == 1 else kinds
    return WithJsonSchema({"type": schema_type, "description": pattern_hint, "examples": list(examples)})


def _positive(value: float) -> float:
    if value <= 0:
        raise InputError(f"It must be more than zero, not {value:g}.")
    return value


def _not_negative(value: float) -> float:
    if value < 0:
        raise InputError(f"It must not be negative, not {value:g}.")
    return value


DurationS = Annotated[
    float,
    BeforeValidator(lambda text: _positive(units.parse_duration_s(text))),
    _quantity("A duration with its unit.", "30s", "200ms", "1h", "180d"),
]
RateRps = Annotated[
    float,
    BeforeValidator(lambda text: _positive(units.parse_rate_rps(text))),
    _quantity("A request rate with its unit.", "30 req/s", "120 req/min"),
]
RateRpsOrZero = Annotated[
    float,
    BeforeValidator(lambda text: _not_negative(units.parse_rate_rps(text))),
    _quantity("A request rate with its unit; 0 req/s for no requests.", "2 req/s", "30 req/h"),
]
UsdPerHour = Annotated[
    float,
    BeforeValidator(lambda text: _not_negative(units.parse_usd_per_hour(text))),
    _quantity("A price with its unit.", "2.49 USD/h", "5000 USD/month"),
]
Usd = Annotated[
    float,
    BeforeValidator(lambda text: _not_negative(units.parse_usd(text))),
    _quantity("An amount of money with its unit.", "2.50 USD"),
]
PowerW = Annotated[
    float,
    BeforeValidator(lambda text: _not_negative(units.parse_power_w(text))),
    _quantity("A power with its unit.", "40kW", "700W"),
]
UsdPerGb = Annotated[
    float,
    BeforeValidator(lambda text: _not_negative(units.parse_usd_per_gb(text))),
    _quantity("A price of traffic with its unit.", "0.02 USD/GB"),
]
UsdPerKwh = Annotated[
    float,
    BeforeValidator(lambda text: _not_negative(units.parse_usd_per_kwh(text))),
    _quantity("A price of electricity with its unit.", "0.12 USD/kWh"),
]
UsdPerTonne = Annotated[
    float,
    BeforeValidator(lambda text: _not_negative(units.parse_usd_per_kg(text))),
    _quantity("A price of emissions with its unit.", "80 USD/t"),
]
CarbonRate = Annotated[
    float,
    BeforeValidator(lambda text: _not_negative(units.parse_kg_per_hour(text))),
    _quantity("Emissions over time with their unit.", "12 kg/h", "10 t/year"),
]
MeanPower = Annotated[
    float,
    BeforeValidator(lambda text: _not_negative(units.parse_mean_kw(text))),
    _quantity("Energy over time with its unit.", "3000 kWh/month"),
]
CarbonIntensity = Annotated[
    float,
    BeforeValidator(lambda text: _not_negative(units.parse_carbon_g_per_kwh(text))),
    _quantity("Emissions per energy with their unit.", "230 g/kWh"),
]
BytesPerS = Annotated[
    float,
    BeforeValidator(lambda text: _positive(units.parse_bytes_per_s(text))),
    _quantity("A rate of data with its unit.", "100 Gbit/s", "12.5 GB/s"),
]
Bytes = Annotated[
    float,
    BeforeValidator(lambda text: _positive(units.parse_bytes(text))),
    _quantity("A size with its unit.", "12 GB", "9 GiB"),
]
Fraction = Annotated[
    float,
    BeforeValidator(lambda text: _not_negative(units.parse_fraction(text))),
    _quantity("A fraction, as a percentage or between 0 and 1.", "10%", 0.1),
]


def _power_cap(text: object) -> PowerCap:
    if isinstance(text, PowerCap):
        return text
    if isinstance(text, str) and text.strip().endswith("W"):
        return PowerCap(watts=units.WattsPerGpu(_positive(units.parse_power_w(text))))
    if isinstance(text, int | float) and not isinstance(text, bool) and text > 1:
        raise InputError(f"{text!r} has no unit: is it {text}% or {text} watts?", hint=f"Write '{text}%' or '{text}W'.")
    fraction = _positive(units.parse_fraction(text))
    if fraction > 1:
        raise InputError(
            f"A power limit of {fraction:.0%} is above what the GPU draws.", hint="Write e.g. 70% or 350W."
        )
    return PowerCap(tdp_fraction=fraction)


PowerCapField = Annotated[
    PowerCap,
    BeforeValidator(_power_cap),
    _quantity("A part of the GPU's TDP, or watts.", "70%", "350W"),
]
Count = Annotated[int, Field(ge=0, strict=True)]
