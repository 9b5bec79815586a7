"""A front of plans as CSV, JSON and one HTML page."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.domain.problem import MEASURE_UNITS, Measure
from planner.errors import InputError
from planner.files.plan_document import SIGNIFICANT_DIGITS, plan_to_document
from planner.report.page import environment
from planner.report.wording import clean, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.domain.plan import Plan
    from planner.optimize.pareto import FrontPoint

FRONT_SUFFIXES = (".csv", ".json", ".html")
COLUMNS = {
    Measure.COST: "cost_usd_per_hour",
    Measure.POWER: "power_kw",
    Measure.GPUS: "gpus",
    Measure.ENERGY: "mean_power_kw",
    Measure.CARBON: "carbon_kg_per_hour",
}
CHART_WIDTH, CHART_HEIGHT, MARGIN = 640.0, 360.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One plan, placed in the chart."""

    x: float
    y: float
    label: str


def fleet_text(plan: Plan) -> str:
    """Return what a plan rents, in short: "2 x g6e.xlarge + 1 x p5.4xlarge"."""
    return " + ".join(f"{row.instances} x {clean(row.instance_type or row.offer)}" for row in plan.rentals)


def front_rows(points: Sequence[FrontPoint]) -> list[dict[str, Any]]:
    """Return one row per plan: its measures, how it ended and what it rents."""
    return [
        {
            **{column: point.values[measure] for measure, column in COLUMNS.items()},
            "status": point.plan.status.value,
            "rent": fleet_text(point.plan),
        }
        for point in points
    ]


def front_text(points: Sequence[FrontPoint], measures: tuple[Measure, Measure], suffix: str) -> str:
    """Return the front in the form that belongs to a file suffix: .csv, .json or .html.

    Raises
    ------
    InputError: if the suffix is none of these.
    """
    if suffix == ".csv":
        return _csv(front_rows(points))
    if suffix == ".json":
        return json.dumps(front_document(points, measures), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if suffix == ".html":
        return _html(points, measures)
    raise InputError(
        f"{suffix!r} is not a form that a front can be written in.", hint=f"Suffixes: {', '.join(FRONT_SUFFIXES)}."
    )


def front_document(points: Sequence[FrontPoint], measures: tuple[Measure, Measure]) -> dict[str, Any]:
    """Return the front as JSON can say it, every point with its whole plan."""
    return {
        "schema_version": "1",
        "kind": "Front",
        "measures": [measure.value for measure in measures],
        "points": [
            {
                **{key: _rounded(value) for key, value in row.items()},
                "plan": plan_to_document(point.plan),
            }
            for row, point in zip(front_rows(points), points, strict=True)
        ],
    }


def _rounded(value: Any) -> Any:  # noqa: ANN401 - a cell: text, a number or nothing
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS.values(), "status", "rent"])
    writer.writerows([_rounded(value) for value in row.values()] for row in rows)
    return stream.getvalue()


def _html(points: Sequence[FrontPoint], measures: tuple[Measure, Measure]) -> str:
    names = [f"{measure} ({MEASURE_UNITS[measure]})" for measure in measures]
    rows = [
        [*(number(point.values[measure] or 0.0) for measure in measures), fleet_text(point.plan)] for point in points
    ]
    return (
        environment()
        .get_template("front.html.j2")
        .render(names=names, rows=rows, dots=_dots(points, measures), width=CHART_WIDTH, height=CHART_HEIGHT)
    )


def _dots(points: Sequence[FrontPoint], measures: tuple[Measure, Measure]) -> list[Dot]:
    """Return the plans placed in the chart: the first measure to the right, the second upwards."""
    across, up = ([point.values[measure] or 0.0 for point in points] for measure in measures)
    return [
        Dot(
            x=round(MARGIN + _part(x, across) * (CHART_WIDTH - 2 * MARGIN), 1),
            y=round(CHART_HEIGHT - MARGIN - _part(y, up) * (CHART_HEIGHT - 2 * MARGIN), 1),
            label=f"{number(x)} {MEASURE_UNITS[measures[0]]}, {number(y)} {MEASURE_UNITS[measures[1]]}",
        )
        for x, y in zip(across, up, strict=True)
    ]


def _part(value: float, among: Sequence[float]) -> float:
    low, high = min(among), max(among)
    return 0.5 if high <= low else (value - low) / (high - low)
