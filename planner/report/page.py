"""The plan as HTML: a fragment for notebooks, and a page in one file that needs no network."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from planner.report.adapters import WAY_COLUMNS, group_text
from planner.report.serves import NEGLIGIBLE_WEIGHT, bucket_text
from planner.report.summary import service_names, summarize, usd_per_million_output_tokens
from planner.report.wording import clean, number, percent, plural, price
from planner.units import format_power

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date

    from jinja2 import Environment

    from planner.domain.plan import Plan, Route
    from planner.report.summary import PlanSummary

CHART_WIDTH = 480
BAR_STEP = 42
"""Height of one bar with its label and the gap below, in the chart's units, as all lengths here."""
LABEL_CHARS = 68
"""What fits above a bar at the chart's font size; a longer name keeps its beginning and its end."""
VALUE_WIDTH = 90
"""Room right of the longest bar for its figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of a chart, placed."""

    label: str
    full_label: str
    value: str
    y: int
    width: float
    is_plan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A bar chart; lengths are in the units of its view box."""

    name: str
    """Prefix of the ids in the SVG."""
    title: str
    description: str
    """What the chart shows, for those who cannot see it."""
    bars: tuple[Bar, ...]
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """One service's routing weights: a row per bucket, a column per option."""

    service: str
    options: tuple[str, ...]
    rows: tuple[tuple[str, str, str, tuple[float, ...]], ...]
    """Input range, output range, req/s, and each option's share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One of the large figures at the top of the page."""

    label: str
    value: str
    unit: str


def plan_html(plan: Plan, *, today: date) -> str:
    """Return a compact HTML fragment of the plan, for notebooks."""
    return (
        environment()
        .get_template("fragment.html.j2")
        .render(summary=summarize(plan, today=today), way_columns=WAY_COLUMNS)
    )


def report_html(plan: Plan, *, today: date) -> str:
    """Return the plan as one HTML page with charts; it loads nothing from anywhere."""
    summary = summarize(plan, today=today)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            way_columns=WAY_COLUMNS,
            figures=tuple(_figures(plan, summary)),
            charts=tuple(chart for chart in (_rental_chart(summary, plan), _baseline_chart(summary, plan)) if chart),
            routing=tuple(_routing_tables(plan)),
            solver=f"{plan.solver.name} {plan.solver.version}".strip(),
            inputs=_flat_inputs(plan),
            version=metadata.version("gpuplan"),
        )
    )


def environment() -> Environment:
    """Return the templates of the reports; what they are given is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - only HTML pays for it

    return Environment(
        loader=PackageLoader("planner.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _figures(plan: Plan, summary: PlanSummary) -> Iterator[Figure]:
    if plan.cost_usd_per_hour is None:
        return
    last = summary.totals[-1]
    apart = " in all, what is given back expected" if plan.given_back else ""
    yield Figure(label="Cost", value=last.usd_per_hour, unit=f"USD per hour{apart}")
    yield Figure(label="Cost", value=last.usd_per_month, unit=f"USD per month of 730 h{apart}")
    if plan.given_back:
        given_back = price(plan.given_back_usd_per_hour)
        yield Figure(label="Given back", value=given_back, unit=f"USD per hour, and the fleet {summary.usd_per_hour}")
    if (per_token := usd_per_million_output_tokens(plan)) is not None:
        yield Figure(label="Tokens", value=price(per_token), unit="USD per million output tokens")
    gpus = sum(rental.instances * rental.gpus_per_instance for rental in plan.rentals)
    yield Figure(label="GPUs", value=number(gpus), unit=f"rented, of {plural(len(plan.rentals), 'offer')}")
    if plan.savings_vs_best_single is not None:
        yield Figure(
            label="Saving", value=percent(plan.savings_vs_best_single), unit="against the best single GPU type"
        )
    if plan.power_w is not None:
        value, unit = format_power(plan.power_w).split(" ")
        yield Figure(label="Power", value=value, unit=f"{unit} at peak")
    if plan.carbon_kg_per_hour is not None:
        unit = "kg CO2e per hour" + (", where it is known" if plan.carbon_unknown_w else "")
        yield Figure(label="Carbon", value=number(plan.carbon_kg_per_hour), unit=unit)


def _bars(items: Sequence[tuple[str, float, str, bool]]) -> tuple[Bar, ...]:
    """Return placed bars of (label, length, figure shown, is it the plan)."""
    longest = max(value for _, value, _, _ in items) or 1.0
    room = CHART_WIDTH - VALUE_WIDTH
    return tuple(
        Bar(
            label=_shorten(label),
            full_label=label,
            value=shown,
            y=index * BAR_STEP,
            width=round(room * value / longest, 1),
            is_plan=is_plan,
        )
        for index, (label, value, shown, is_plan) in enumerate(items)
    )


def _shorten(label: str) -> str:
    if len(label) <= LABEL_CHARS:
        return label
    half = LABEL_CHARS // 2 - 1
    return f"{label[:half]}…{label[-half:]}"


def _chart(name: str, title: str, items: Sequence[tuple[str, float, str, bool]]) -> Chart:
    return Chart(
        name=name,
        title=title,
        description="; ".join(f"{label}: {shown}" for label, _, shown, _ in items) + ".",
        bars=_bars(items),
        width=CHART_WIDTH,
        height=len(items) * BAR_STEP,
    )


def _rental_chart(summary: PlanSummary, plan: Plan) -> Chart | None:
    items = [
        (
            f"{rental.count} x {rental.what}{', ' + rental.where if rental.where else ''}",
            rental.cost_usd_per_hour,
            rental.usd_per_hour,
            True,
        )
        for rental in summary.rentals
    ]
    items += [
        (f"{choice.service} given back: {choice.way.offer}", cost, price(cost), True)
        for choice in plan.given_back
        for cost in (choice.way.cost_usd_per_hour,)
    ]
    return _chart("rent", "Where the money goes, USD per hour", items) if items else None


def _baseline_chart(summary: PlanSummary, plan: Plan) -> Chart | None:
    if plan.cost_usd_per_hour is None or not summary.baselines:
        return None
    feasible = [baseline for baseline in summary.baselines if baseline.cost_usd_per_hour is not None]
    mine = "This plan's fleet" if plan.given_back else "This plan"
    items = [(mine, plan.cost_usd_per_hour, summary.usd_per_hour, True)]
    items += [
        (
            f"{baseline.gpu} alone ({baseline.replicas} replica{'' if baseline.replicas == '1' else 's'})",
            baseline.cost_usd_per_hour or 0.0,
            baseline.usd_per_hour,
            False,
        )
        for baseline in feasible
    ]
    return _chart("baselines", "Against one GPU type alone, USD per hour", items)


def _routing_tables(plan: Plan) -> Iterator[RoutingTable]:
    for service in service_names(plan):
        routes = [route for route in plan.routing if route.service == service]
        used = {key for route in routes for key, weight in route.shares.items() if weight > NEGLIGIBLE_WEIGHT}
        options = tuple(sorted(used))
        rows = tuple(
            (*_sizes(plan, route), tuple(route.shares.get(option, 0.0) for option in options)) for route in routes
        )
        if rows:
            yield RoutingTable(service=clean(service), options=tuple(map(clean, options)), rows=rows)


def _sizes(plan: Plan, route: Route) -> tuple[str, str, str]:
    inputs = bucket_text(route.input_tokens, f"row {route.row}")
    if route.group is not None:
        inputs = f"{group_text(plan, route)}: {inputs if route.input_tokens else 'all sizes'}"
    outputs = bucket_text(route.output_tokens, f"column {route.column}")
    return inputs, outputs, number(route.rate_rps)


def _flat_inputs(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Return hashes and dates of what was read; the echoed request, nested as it is, stays in plan.json."""
    return tuple(
        (clean(str(key)), clean(str(value)))
        for key, value in plan.inputs.items()
        if isinstance(value, str | int | float)
    )
