"""Service-level objectives as users write them: "ttft p99 <= 2s", or a mapping."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from planner.domain.slo import Metric, Slo
from planner.errors import InputError
from planner.units import parse_duration_s

_SLO_TEXT = re.compile(r"\s*(\w+)\s+(mean|p\d{1,2}(?:\.\d+)?)\s*(?:<=|<|≤)\s*(.+?)\s*", re.IGNORECASE)


def parse_statistic(text: object) -> float | None:
    """Return the percentile that "p99" names; None for "mean".

    Raises
    ------
    InputError: if it is neither.
    """
    if text == "mean":
        return None
    match = re.fullmatch(r"p(\d{1,2}(?:\.\d+)?)", str(text))
    if match is None or not 0 < float(match[1]) < 100:
        raise InputError(
            f"{text!r} is not a statistic.", hint="Use mean, or a percentile such as p50, p95, p99, p99.9."
        )
    return float(match[1])


def parse_slo(value: Any) -> Slo:  # noqa: ANN401 - whatever the document holds
    """Return the objective that `value` states: "ttft p99 <= 2s", or a mapping of metric, statistic and bound.

    Raises
    ------
    InputError: if it states none.

    Examples
    --------
    >>> str(parse_slo("ttft p99 <= 2s")), str(parse_slo({"metric": "tpot", "statistic": "mean", "bound": "60ms"}))
    ('ttft p99 <= 2 s', 'tpot mean <= 60 ms')
    """
    if isinstance(value, Slo):
        return value
    hint = "Write e.g. 'ttft p99 <= 2s', 'tpot p95 <= 60ms' or 'e2e mean <= 8s'."
    if isinstance(value, str):
        match = _SLO_TEXT.fullmatch(value)
        if match is None:
            raise InputError(f"{value!r} is not a service-level objective.", hint=hint)
        metric, statistic, bound = match[1].lower(), match[2].lower(), match[3]
    elif isinstance(value, dict):
        if unknown := set(value) - {"metric", "statistic", "bound"}:
            raise InputError(f"Unknown key {min(unknown)!r} in a service-level objective.", hint=hint)
        if missing := {"metric", "statistic", "bound"} - set(value):
            raise InputError(f"The service-level objective has no {min(missing)!r}.", hint=hint)
        metric, statistic, bound = value["metric"], value["statistic"], value["bound"]
    else:
        raise InputError(f"{value!r} is not a service-level objective.", hint=hint)
    if metric not in {known.value for known in Metric}:
        known_metrics = ", ".join(known.value for known in Metric)
        raise InputError(f"{metric!r} is not a metric that can be planned for.", hint=f"Metrics: {known_metrics}.")
    bound_s = parse_duration_s(bound)
    if bound_s <= 0:
        raise InputError(f"The bound must be more than zero, not {bound!r}.", hint=hint)
    return Slo(metric=Metric(metric), percentile=parse_statistic(statistic), bound_s=bound_s)


SLO_SEPARATOR = "; "
"""Between the objectives of one text, as in the column slo of profile files."""


def slo_text(slo: Slo) -> str:
    """Return an objective as `parse_slo` reads it back, without the rounding that is meant for people.

    Examples
    --------
    >>> slo_text(parse_slo("ttft p99 <= 1.23456s")), parse_slo(slo_text(parse_slo("tpot p95 <= 60ms"))).bound_s
    ('ttft p99 <= 1.23456s', 0.06)
    """
    return f"{slo.metric} {slo.statistic} <= {slo.bound_s:.12g}s"


def parse_slos(text: str) -> tuple[Slo, ...]:
    """Return the objectives that a text joins by "; "; none for an empty one.

    Raises
    ------
    InputError: if one of them is none.
    """
    return tuple(parse_slo(part) for part in text.split(SLO_SEPARATOR.strip()) if part.strip())


SloField = Annotated[
    Slo,
    BeforeValidator(parse_slo),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "string",
                    "pattern": r"^\s*(ttft|tpot|e2e)\s+(mean|p[0-9.]+)\s*(<=|<|≤)\s*.+$",
                    "examples": ["ttft p99 <= 2s"],
                },
                {
                    "type": "object",
                    "properties": {
                        "metric": {"enum": ["ttft", "tpot", "e2e"]},
                        "statistic": {"type": "string", "pattern": "^(mean|p[0-9.]+)$"},
                        "bound": {"type": "string", "examples": ["200ms"]},
                    },
                    "required": ["metric", "statistic", "bound"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
