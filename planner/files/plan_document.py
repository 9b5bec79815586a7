"""plan.json: a Plan as a JSON-ready document, and back.

Same plan, same bytes: keys stand in one order, mappings keyed by option are sorted, floats carry 12 significant
digits, and there is no time stamp. `solver.seconds` is the one field that differs between two runs on the same input.

This module only writes, and does so without pydantic, which would cost more to import than planning a small fleet
takes; `planner.files.plan_schema` reads, and checks everything.
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.domain.costs import usd_per_million_tokens, usd_per_month
from planner.errors import PlannerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.plan import Plan

SCHEMA_VERSION = "1"
KIND = "Plan"

SIGNIFICANT_DIGITS = 12
"""Far below what any input is known to, and above the noise of a floating-point sum in another order."""

HEAD = (
    "name",
    "status",
    "cost_usd_per_hour",
    "cost_usd_per_month",
    "usd_per_million_output_tokens",
    "bound_usd_per_hour",
    "gap",
    "savings_vs_best_single",
    "rate_rps",
    "output_tokens_per_s",
    "power_w",
)
"""What a person looks for first stands first; the other fields follow in the order of `Plan`."""

DERIVED = ("cost_usd_per_month", "usd_per_million_output_tokens")
"""Fields of the document that follow from others; ignored when a plan is read."""
DERIVED_OF_GIVEN_BACK = (
    "given_back_usd_per_hour",
    "with_given_back_usd_per_hour",
    "with_given_back_usd_per_month",
)
"""The same, only there where services are given back."""


def plan_to_document(plan: Plan) -> dict[str, Any]:
    """Return `plan` as plan.json's content: dicts, lists, text and finite numbers only.

    Raises
    ------
    PlannerError: if the plan holds a NaN, an infinity or something that JSON cannot say; names the field.
    """
    body = _encode_dataclass(plan, "plan")
    if not plan.scale_to_zero:
        del body["scale_to_zero"]
    if not plan.fleets_without:
        del body["fleets_without"]
    if not plan.adapters:
        del body["adapters"]
    for route in body["routing"]:
        if route["group"] is None:
            del route["group"]
    # Derived from the rounded figures, so that writing a plan that was read gives the same bytes again.
    cost, tokens = body["cost_usd_per_hour"], body["output_tokens_per_s"]
    body["cost_usd_per_month"] = _round(usd_per_month(cost))
    body["usd_per_million_output_tokens"] = _round(usd_per_million_tokens(cost, tokens))
    head = {"schema_version": SCHEMA_VERSION, "kind": KIND} | {key: body.pop(key) for key in HEAD}
    return head | _with_given_back(plan, cost) | body


def _with_given_back(plan: Plan, cost_usd_per_hour: float | None) -> dict[str, Any]:
    """Return what the services cost that are given back, and all together; empty where none is."""
    if not plan.given_back or cost_usd_per_hour is None:
        return {}
    ways = (_round(choice.way.cost_usd_per_hour) or 0.0 for choice in plan.given_back)
    given_back = math.fsum(ways)
    return {
        "given_back_usd_per_hour": _round(given_back),
        "with_given_back_usd_per_hour": _round(cost_usd_per_hour + given_back),
        "with_given_back_usd_per_month": _round(usd_per_month(cost_usd_per_hour + given_back)),
    }


def _encode_dataclass(item: Any, at: str) -> dict[str, Any]:  # noqa: ANN401 - any of the plan's dataclasses
    encoded = {}
    for field in fields(item):
        value = getattr(item, field.name)
        if type(value) is int and field.type in {"float", "float | None"}:
            value = float(value)  # or 300 and 300.0 W would be different bytes
        encoded[field.name] = _encode(value, f"{at}.{field.name}", keep_order=field.name == "inputs")
    return encoded


def _encode(value: Any, at: str, *, keep_order: bool) -> Any:  # noqa: ANN401 - whatever a plan holds
    """Return `value` as JSON can say it; `keep_order` leaves mappings in the user's order (the echoed request)."""
    if is_dataclass(value):
        return _encode_dataclass(value, at)
    if isinstance(value, tuple | list):
        return [_encode(item, f"{at}[{index}]", keep_order=keep_order) for index, item in enumerate(value)]
    if hasattr(value, "items"):
        return _encode_mapping(value, at, keep_order=keep_order)
    return _encode_scalar(value, at)


def _encode_scalar(value: Any, at: str) -> str | int | float | None:  # noqa: ANN401 - whatever a plan holds
    if isinstance(value, Enum):
        value = value.value
    elif hasattr(value, "item"):
        value = value.item()  # of numpy
    if isinstance(value, float):
        return _round(value, at)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, date | Path):
        return str(value)
    raise PlannerError(f"{at} holds {value!r}, which plan.json cannot say.", hint="This is a bug in gpuplan.")


def _encode_mapping(mapping: Mapping[Any, Any], at: str, *, keep_order: bool) -> dict[str, Any]:
    keys = list(mapping) if keep_order else sorted(mapping)
    return {str(key): _encode(mapping[key], f"{at}.{key}", keep_order=keep_order) for key in keys}


def _round(value: float | None, at: str = "plan") -> float | None:
    """Return `value` with 12 significant digits, -0.0 as 0.0."""
    if value is None:
        return None
    if not math.isfinite(value):
        raise PlannerError(f"{at} is {value}, which is no number to plan with.", hint="This is a bug in gpuplan.")
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0
