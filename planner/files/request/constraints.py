"""Limits of a request on the whole fleet."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from planner.domain.hardware import Market
from planner.errors import InputError
from planner.files.documents import did_you_mean
from planner.files.request.energy import CarbonLimit, EnergyLimit
from planner.files.request.services import MaxShare, Spares, SpotShare
from planner.files.schema import Count, DurationS, Fraction, PowerW, Strict, Usd, UsdPerHour

DEFAULT_HEADROOM_FRACTION = 0.10
"""Capacity kept above the planned rate; Mélange (arXiv 2404.14527) suggests over-provisioning by about 10%."""


class Quota(Strict):
    """At most so much of one resource in a scope; exactly one of gpus, vcpus and instances."""

    provider: str | None = Field(default=None, description="Cloud; default: any.")
    region: str | None = Field(default=None, description="Region; default: any.")
    gpu: str | None = Field(default=None, description="GPU type; default: any.")
    market: Market | None = Field(default=None, description="Market; default: any.")
    offer: str | None = Field(default=None, description="One offer by its name; default: any.")
    gpus: Count | None = Field(default=None, description="Most GPUs.")
    vcpus: Count | None = Field(default=None, description="Most vCPUs.")
    instances: Count | None = Field(default=None, description="Most instances.")

    @model_validator(mode="after")
    def _one_resource(self) -> Quota:
        if sum(value is not None for value in (self.gpus, self.vcpus, self.instances)) != 1:
            raise InputError("A quota needs exactly one of gpus, vcpus and instances.")
        return self


class Minimum(Strict):
    """At least so much is rented in a scope, used or not; exactly one of gpus and instances."""

    provider: str | None = Field(default=None, description="Cloud; default: any.")
    region: str | None = Field(default=None, description="Region; default: any.")
    gpu: str | None = Field(default=None, description="GPU type; default: any.")
    market: Market | None = Field(default=None, description="Market; default: any.")
    offer: str | None = Field(default=None, description="One offer by its name; default: any.")
    gpus: Count | None = Field(default=None, description="Fewest GPUs.")
    instances: Count | None = Field(default=None, description="Fewest instances.")

    @model_validator(mode="after")
    def _one_resource(self) -> Minimum:
        if sum(value is not None for value in (self.gpus, self.instances)) != 1:
            raise InputError("A minimum needs exactly one of gpus and instances.")
        return self


class ChangeCost(Strict):
    """What it costs to leave the fleet that runs today (`current`, or `--current`), spread over the horizon."""

    start: Usd = Field(default=0.0, description="Per replica started.", json_schema_extra={"default": "0 USD"})
    stop: Usd = Field(default=0.0, description="Per replica stopped.", json_schema_extra={"default": "0 USD"})
    horizon: DurationS = Field(description="How long the plan is going to hold.")


Groups = Annotated[int, Field(ge=1, strict=True)]

LOSSES = ("provider", "region", "zone", "spot-pool")
LARGEST_INSTANCES = re.compile(r"largest ([1-9]|10) instances?")


def _survivable(value: str) -> str:
    if value in LOSSES or LARGEST_INSTANCES.fullmatch(value):
        return value
    hint = did_you_mean(value, LOSSES) or f"Losses: {', '.join(LOSSES)}, or 'largest K instances' with K up to 10."
    raise InputError(f"{value!r} is no loss that can be planned for.", hint=hint)


Survivable = Annotated[
    str,
    AfterValidator(_survivable),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(LOSSES)},
                {
                    "type": "string",
                    "pattern": f"^{LARGEST_INSTANCES.pattern}$",
                    "examples": ["largest 1 instance"],
                },
            ]
        }
    ),
]

WHOLE_FLEET = "fleet"
"""The site that a power limit without a region stands for."""


class PowerLimit(Strict):
    """Most power of a site, and what one watt of its GPUs' peak counts for in it."""

    max: PowerW = Field(description="Most peak power.")
    factor: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="Watts at the meter per watt of GPU peak: PUE and hosts raise it; that not all GPUs peak at once"
        " lowers it (inference rows were seen to peak at 0.79 of what is provisioned: POLCA, arXiv 2308.12908).",
    )


def _power_by_site(value: Any) -> Any:  # noqa: ANN401 - whatever the document holds
    """Return power limits by site: one limit without a site is that of the whole fleet, a bare power has no factor."""
    sites = value if isinstance(value, dict) and "max" not in value else {WHOLE_FLEET: value}
    return {name: limit if isinstance(limit, dict | PowerLimit) else {"max": limit} for name, limit in sites.items()}


_POWER = {"anyOf": [{"type": "string", "examples": ["40kW"]}, PowerLimit.model_json_schema()]}
PowerBySite = Annotated[
    dict[str, PowerLimit],
    BeforeValidator(_power_by_site),
    WithJsonSchema({"anyOf": [*_POWER["anyOf"], {"type": "object", "additionalProperties": _POWER}]}),
]


class Constraints(Strict):
    """Limits on the whole fleet."""

    budget: UsdPerHour | None = Field(
        default=None,
        description="Most dollars per hour for what is rented; egress, electricity and changes come on top.",
    )
    power: PowerBySite = Field(
        default={},
        description="Most peak power: of the whole fleet, or by region ({dc1: 40kW}, or {dc1: {max: 40kW, factor: 1.3}}"
        " where a watt of GPU peak counts for more or less, as PUE does).",
    )
    available: dict[str, Count] = Field(
        default={}, description="Most GPUs of a type, over all offers ({H100-80GB: 8})."
    )
    quotas: list[Quota] = Field(default=[], description="Limits by provider, region, GPU type or market.")
    minimum: list[Minimum] = Field(default=[], description="What is rented in any case, by scope.")
    max_gpu_types: Groups | None = Field(default=None, description="Most different GPU types.")
    max_providers: Groups | None = Field(default=None, description="Most different providers.")
    max_offers: Groups | None = Field(default=None, description="Most different offers.")
    max_share: MaxShare | None = Field(
        default=None, description="Spread: the largest part of each service's requests in one place."
    )
    spot_share: SpotShare | None = Field(default=None, description="Most of each service that spot may serve.")
    survive: list[Survivable] = Field(
        default=[],
        description="After the loss of any one of these (spot-pool: one spot offer), or of any K <= 10 instances, what"
        " is left still serves all requests, without headroom.",
    )
    spare_replicas: Spares | None = Field(
        default=None,
        description="N+k: with any k replicas of a service lost it still serves all requests, without headroom.",
    )
    carbon: CarbonLimit | None = Field(
        default=None,
        description="Most that the fleet may emit, and what emissions cost ({max: 12 kg/h, price: 80 USD/t}).",
    )
    energy: EnergyLimit | None = Field(
        default=None, description="Most that the fleet may draw on average ({max: 3000 kWh/month})."
    )
    change_cost: ChangeCost | None = Field(default=None, description="Price of changes to the fleet that runs today.")
    headroom: Fraction = Field(
        default=DEFAULT_HEADROOM_FRACTION,
        le=10.0,
        json_schema_extra={"default": f"{DEFAULT_HEADROOM_FRACTION:.0%}"},
        description="Capacity kept free above the planned rate.",
    )
    shed: Literal["never", "allowed"] = Field(
        default="never",
        description="What to do where limits cannot hold all demand: never = there is no plan; allowed = leave as few"
        " requests as possible unserved, those of the least important services first, and say which.",
    )
