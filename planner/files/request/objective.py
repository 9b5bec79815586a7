"""What a request wants least of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from planner.domain.problem import Measure
from planner.errors import InputError
from planner.files.schema import Fraction, Strict, UsdPerHour

_MEASURES = [measure.value for measure in Measure]
_OBJECTIVE_HINT = "Write e.g. power, {cost: 1, power: 0.05} or [gpus, cost]."


def parse_minimise(value: Any) -> tuple[dict[Measure, float], ...]:  # noqa: ANN401 - whatever the document holds
    """Return what to minimise, one objective after the other: a measure, weights of measures, or a list of measures.

    Raises
    ------
    InputError: if it is none of these.

    Examples
    --------
    >>> parse_minimise("power") == ({Measure.POWER: 1.0},)
    True
    >>> [list(stage.values()) for stage in parse_minimise({"cost": 1, "power": 0.05})]
    [[1.0, 0.05]]
    """
    if isinstance(value, dict) and value:
        return ({_measure(name): _weight(name, weight) for name, weight in value.items()},)
    if isinstance(value, list) and value:
        return tuple({measure: 1.0} for measure in dict.fromkeys(map(_measure, value)))
    return ({_measure(value): 1.0},)


def _measure(name: object) -> Measure:
    if name not in _MEASURES:
        raise InputError(f"{name!r} is not a measure; there are {', '.join(_MEASURES)}.", hint=_OBJECTIVE_HINT)
    return Measure(str(name))


def _weight(name: object, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise InputError(f"The weight of {name} must be a number above zero, not {weight!r}.", hint=_OBJECTIVE_HINT)
    return float(weight)


Minimise = Annotated[
    tuple[dict[Measure, float], ...],
    BeforeValidator(parse_minimise),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": _MEASURES},
                {
                    "type": "object",
                    "propertyNames": {"enum": _MEASURES},
                    "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
                    "minProperties": 1,
                },
                {"type": "array", "items": {"enum": _MEASURES}, "minItems": 1},
            ]
        }
    ),
]


class Objective(Strict):
    """What the plan should have least of. The cost breaks ties."""

    minimise: Minimise = Field(
        description="One measure; a weighted sum, {cost: 1, power: 0.05}, in USD/h, kW, GPUs and kg/h; or a list of"
        " measures, minimised one after the other."
    )
    cost_cap: UsdPerHour | None = Field(default=None, description="Most that the plan may cost.")
    within: Fraction = Field(
        default=0.0,
        le=1.0,
        json_schema_extra={"default": "0%"},
        description="By how much an objective of a list may be missed for the sake of those after it.",
    )


def name_alone(schema: dict[str, Any]) -> None:
    """Let the JSON Schema take the name of a measure in place of the mapping."""
    schema["anyOf"] = [{"enum": _MEASURES}, {"$ref": schema.pop("$ref")}]
    schema["default"] = Measure.COST.value
