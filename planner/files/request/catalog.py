"""What a request lets be rented, and where throughput comes from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from planner.domain.hardware import Market
from planner.errors import InputError
from planner.files.request.egress import EgressField
from planner.files.request.energy import SiteChoice
from planner.files.schema import Count, DurationS, Fraction, Strict, UsdPerHour
from planner.units import parse_duration_s

DEFAULT_MAX_PRICE_AGE = "180d"
"""Half a year: cloud GPU prices have been cut once or twice a year since 2023."""


class GpuChoice(Strict):
    """Which GPU types may be used."""

    include: list[str] | None = Field(default=None, description="Only these; default: all.")
    exclude: list[str] = Field(default=[], description="Never these.")


class Owned(Strict):
    """GPUs that you have, priced as you account for them."""

    gpu: str = Field(description="GPU name (`gpuplan catalog list`).")
    count: int = Field(ge=1, description="GPUs.")
    gpus_per_instance: int = Field(default=8, ge=1, description="GPUs per machine; a replica stays within one.")
    region: str = Field(default="owned", description="Your name for the place; power limits refer to it.")
    price: UsdPerHour = Field(description="Per GPU and hour, e.g. depreciation and power; 0 USD/h if it is sunk.")
    must_use: bool = Field(default=False, description="They are paid for in any case: count all of them in the plan.")

    @model_validator(mode="after")
    def _whole_machines(self) -> Owned:
        if self.count % self.gpus_per_instance:
            raise InputError(
                f"{self.count} GPUs are not whole machines of {self.gpus_per_instance}.", hint="Set gpus_per_instance."
            )
        return self


class CommitmentOffer(Strict):
    """A discount for paying all along; exactly one of gpu and offer."""

    gpu: str | None = Field(default=None, description="On all on-demand offers of this GPU.")
    offer: str | None = Field(default=None, description="On this on-demand offer alone.")
    term: Literal["1y", "3y"] = Field(default="1y", description="How long it binds.")
    discount: Fraction = Field(
        lt=1.0, description="Off the on-demand price; prices of reserved capacity are yours to state."
    )
    max_instances: Count | None = Field(default=None, description="Most instances of each offer that can be reserved.")

    @model_validator(mode="after")
    def _one_subject(self) -> CommitmentOffer:
        if (self.gpu is None) == (self.offer is None):
            raise InputError("A commitment needs exactly one of gpu and offer.", hint="gpu: H100-80GB")
        return self


ANY_PROVIDER = "any"
"""The provider that a number of zones without one stands for."""

ZonesByProvider = Annotated[
    dict[str, Annotated[int, Field(ge=1, le=10, strict=True)]],
    BeforeValidator(lambda value: value if isinstance(value, dict) else {ANY_PROVIDER: value}),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 10},
                {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 10}},
            ]
        }
    ),
]


class CatalogChoice(Strict):
    """What may be rented."""

    bundled: bool = Field(default=True, description="Use the offers that ship with gpuplan.")
    providers: list[str] | None = Field(default=None, description="Only these clouds; default: all.")
    regions: list[str] | None = Field(default=None, description="Only these regions; default: all.")
    gpus: GpuChoice = Field(default=GpuChoice(), description="Only, or never, these GPU types.")
    markets: list[Market] = Field(
        default=[Market.ON_DEMAND, Market.OWNED], min_length=1, description="Markets to buy on."
    )
    max_price_age: DurationS = Field(
        default=parse_duration_s(DEFAULT_MAX_PRICE_AGE),
        description="Older prices are warned of, and refused with --strict.",
        json_schema_extra={"default": DEFAULT_MAX_PRICE_AGE},
    )
    files: list[str] = Field(default=[], description="Your own offers: gpuplan, gpuhunt or SkyPilot CSV, or YAML.")
    owned: list[Owned] = Field(default=[], description="GPUs that you have.")
    spot_availability: Fraction | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Part of the time that a spot replica runs, reclaims and restarts taken off: so much of its"
        " capacity counts. Default: by offer, from how often it is reclaimed and spot_recovery.",
    )
    spot_recovery: DurationS | None = Field(
        default=None,
        description="How long it takes until a replacement of a reclaimed spot instance serves; default: the horizon's"
        " start_up, and without one reclaims cost no capacity.",
    )
    spot_interruptions: dict[str, Fraction] = Field(
        default={},
        description="Part of the spot instances that is reclaimed in 30 days, by provider or offer ({gcp: 15%});"
        " default: catalogs/spot_interruptions.csv.",
    )
    zones_per_region: ZonesByProvider = Field(
        default={},
        description="Zones that an offer which names none can be spread over, where zones matter: of every region, or"
        " by provider ({aws: 3}); default: catalogs/zones.csv, and one zone for providers that it does not have.",
    )
    egress: EgressField | None = Field(
        default=None, description="Traffic between regions, for services that state their users: a price, or in full."
    )
    commitments: list[CommitmentOffer] = Field(
        default=[], description="Discounts for reserving capacity: 1y or 3y offers beside the on-demand ones."
    )
    carbon_by_hour: str | None = Field(
        default=None,
        description="Intensities over the horizon: a CSV with the columns region, hour and g_per_kwh; regions that are"
        " not in it keep their one value.",
        examples=["carbon.csv"],
    )
    sites: dict[str, SiteChoice] = Field(
        default={}, description="Electricity by region ({dc1: {pue: 1.3, carbon: 230 g/kWh}}), yours or a cloud's."
    )


class ProfileChoice(Strict):
    """Where throughput comes from."""

    prefer: Literal["measured", "estimated"] = Field(
        default="measured",
        description="measured: measurements where they match, estimates elsewhere; estimated: only those.",
    )
    files: list[str] = Field(default=[], description="Your own measurements, in the CSV form of profiles/.")
    parameters: str | None = Field(
        default=None,
        description="Parameters of the estimator in place of the bundled ones: a CSV as `gpuplan profile calibrate` and"
        " `gpuplan profile kernels` write it.",
        examples=["params.csv"],
    )
