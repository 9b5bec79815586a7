"""What a fleet must survive although nobody knows whether it comes: other demand, and slower GPUs than estimated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from planner.errors import InputError
from planner.files.request.services import Workload
from planner.files.schema import Fraction, Strict
from planner.units import parse_fraction

OWN_NAMES = ("planned", "plain", "robust")
"""What the regret table calls what is planned for, and the two fleets that it compares."""

EVERY_SERVICE = "*"
"""The service that a factor without a name is for."""

ROUNDING = 1e-9
"""Of a sum of probabilities."""


def _factors(value: Any) -> Any:  # noqa: ANN401 - whatever the document holds
    return value if isinstance(value, dict) else {EVERY_SERVICE: value}


Factors = Annotated[
    dict[str, Annotated[float, Field(gt=0, le=1e6, strict=True)]],
    BeforeValidator(_factors),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}},
            ]
        }
    ),
]


def _error(value: Any) -> Any:  # noqa: ANN401 - whatever the document holds
    if value == "profile":
        return value
    fraction = parse_fraction(value)
    if fraction >= 1:
        raise InputError(f"An error of {value} leaves no throughput.", hint="Write e.g. 15%, or profile.")
    if fraction <= 0:
        raise InputError(f"With an error of {value} nothing is slower.", hint="Write e.g. 15%, or profile.")
    return fraction


Shortfall = Annotated[
    Literal["profile"] | float,
    BeforeValidator(_error),
    WithJsonSchema(
        {
            "type": ["string", "number"],
            "description": "profile, or a fraction as a percentage or between 0 and 1.",
            "examples": ["profile", "15%", 0.15],
        }
    ),
]


class ScenarioChoice(Strict):
    """Something that may come instead of what is planned for."""

    name: str = Field(min_length=1, description="Your name for it.")
    demand: Factors = Field(
        default={}, description="Times as many requests as planned: of every service, or by service ({chat: 1.5})."
    )
    workload: dict[str, Workload] = Field(
        default={}, description="By service, a workload in place of its own: another day's trace, other sizes."
    )
    throughput_error: Shortfall | None = Field(
        default=None, description="All replicas are slower by so much: profile = by what their figures may be wrong."
    )
    probability: Fraction | None = Field(
        default=None, le=1.0, description="How likely it is; only for what is expected in the regret table."
    )

    @model_validator(mode="after")
    def _something_differs(self) -> ScenarioChoice:
        if self.name in OWN_NAMES:
            raise InputError(f"A scenario cannot be called {self.name!r}.", hint=f"{', '.join(OWN_NAMES)} are taken.")
        if not self.demand and not self.workload and self.throughput_error is None:
            raise InputError(f"Nothing is different in the scenario {self.name!r}.", hint="demand: 1.5")
        for service, workload in self.workload.items():
            workload.check_rate()
            if workload.by_hour is not None:
                raise InputError(f"The workload of {service!r} in the scenario {self.name!r} changes by the hour.")
        return self


class ThroughputError(Strict):
    """How much slower than its figures say a replica may be."""

    size: Shortfall = Field(description="profile = by the error of each figure, which depends on its origin; or 15%.")
    per: Literal["gpu-type", "fleet"] = Field(
        default="gpu-type",
        description="gpu-type: any one GPU type is slower, the others are as they should be; fleet: all at once.",
    )


def _size_alone(schema: dict[str, Any]) -> None:
    """Let the JSON Schema take the size alone in place of the mapping."""
    schema["anyOf"] = [*schema["anyOf"], {"type": ["string", "number"], "examples": ["profile", "15%", 0.15]}]


class RobustChoice(Strict):
    """What the fleet must survive: each scenario alone, its requests routed anew."""

    scenarios: list[ScenarioChoice] = Field(default=[], description="What may come instead of what is planned for.")
    throughput_error: Annotated[
        ThroughputError | None,
        BeforeValidator(lambda value: {"size": value} if isinstance(value, str | int | float) else value),
    ] = Field(
        default=None,
        description="Throughputs may be lower than the figures say: profile, 15%, or a mapping.",
        json_schema_extra=_size_alone,
    )
    served: Fraction = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Part of every bucket's requests that must be served in every scenario.",
        json_schema_extra={"default": "100%"},
    )
    headroom: Fraction = Field(
        default=0.0,
        le=10.0,
        description="Capacity kept free above the scenarios' rates; constraints.headroom is for what is planned.",
        json_schema_extra={"default": "0%"},
    )

    @model_validator(mode="after")
    def _something_to_survive(self) -> RobustChoice:
        if not self.scenarios and self.throughput_error is None:
            raise InputError("There is nothing to survive.", hint="Give robust.scenarios or robust.throughput_error.")
        names = [scenario.name for scenario in self.scenarios]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"Two scenarios are called {name!r}.", hint="Give each its own name.")
        total = sum(scenario.probability or 0.0 for scenario in self.scenarios)
        if total > 1 + ROUNDING:
            raise InputError(
                f"The scenarios' probabilities sum to {total:.4g}: only one scenario comes true.",
                hint="At most 100% together; the rest is what is planned for.",
            )
        return self
