"""The plan on a terminal, from 60 columns up. Names are folded, never cut: two offers must not look alike.

Everything is built from Text, not from rich's markup, so a service called "[red]" stays what it is.
"""

from __future__ import annotations

import string
from collections import defaultdict
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from planner.domain.plan import PlanStatus
from planner.report.adapters import WAY_COLUMNS, group_text
from planner.report.serves import NEGLIGIBLE_WEIGHT, bucket_text
from planner.report.summary import service_names, summarize
from planner.report.wording import clean, number, plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from planner.domain.plan import Plan, Route
    from planner.report.adapters import WaysView
    from planner.report.notes import Note
    from planner.report.robustness import RobustnessView
    from planner.report.scaling import GivenBackView
    from planner.report.schedule import ScheduleView
    from planner.report.summary import ConflictView, PlanSummary, RentalView

WIDE_COLUMNS = 116
"""From here on every figure has a column of its own."""
NARROW_COLUMNS = 76
"""Below, a table's columns would be narrower than the names in them: rentals are listed instead."""

STATUS_STYLES = {
    PlanStatus.OPTIMAL: "bold green",
    PlanStatus.FEASIBLE: "bold yellow",
    PlanStatus.INFEASIBLE: "bold red",
    PlanStatus.UNKNOWN: "bold red",
}


def plan_renderables(plan: Plan, *, today: date, verbose: bool = False) -> list[RenderableType]:
    """Return what to print of `plan`, in order; `verbose` adds the routing weights of every bucket.

    today : what the age of prices is counted to.
    """
    summary = summarize(plan, today=today)
    parts: list[RenderableType] = [_headline(summary)]
    if summary.rentals or summary.given_back:
        parts.append(RentTable(summary))
    if summary.schedule is not None:
        parts += [Text.assemble(("Schedule", "bold"), f": {summary.schedule.title}"), _schedule_table(summary.schedule)]
    if summary.robustness is not None:
        parts += [
            Text.assemble(("Scenarios", "bold"), f" ({summary.robustness.title})"),
            _scenario_table(summary.robustness),
        ]
    if verbose and plan.routing:
        parts += _routing_tables(plan)
    if summary.conflicts:
        parts += _conflicts(summary.conflicts)
    if summary.baselines:
        parts += [Text("One GPU type alone", style="bold"), _baseline_table(summary)]
    for view in summary.ways:
        parts += [Text(view.title, style="bold"), _ways_table(view)]
        parts += [Text(view.note, style="dim")] if view.note else []
    parts += _rollout(summary.rollout)
    parts += [_labelled(note, style="bold") for note in summary.notes]
    parts += [_labelled(warning, style="bold yellow") for warning in summary.warnings]
    parts += _assumptions(summary.assumptions)
    if plan.routing and not verbose:
        parts.append(
            Text(f"Routing: {plural(len(plan.routing), 'bucket')}; --routes shows each one's weights.", style="dim")
        )
    return parts


def _headline(summary: PlanSummary) -> Text:
    title = f"{summary.title}\n" if summary.title else ""
    return Text.assemble((title, "bold"), (summary.headline, STATUS_STYLES[summary.status]))


def _labelled(note: Note, *, style: str) -> Text:
    return Text.assemble((f"{note.label}: ", style), note.text)


class RentTable:
    """What to rent and what runs on it, laid out for the width that there is."""

    def __init__(self, summary: PlanSummary) -> None:
        self.summary = summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a wide table, a compact one or a list."""
        if options.max_width >= WIDE_COLUMNS:
            yield _wide_table(self.summary)
        elif options.max_width >= NARROW_COLUMNS:
            yield _compact_table(self.summary)
        else:
            yield from _rent_list(self.summary)


def _table(*columns: tuple[str, str]) -> Table:
    """Return an empty table; columns are (header, "left" or "right"). Figures are right, and never broken."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for header, justify in columns:
        is_figure = justify == "right"
        table.add_column(Text(header), justify="right" if is_figure else "left", overflow="fold", no_wrap=is_figure)
    return table


def _rent_cell(rental: RentalView) -> Text:
    return Text.assemble(
        (f"{rental.count} x {rental.what}", "bold cyan"), (f"\n{rental.where}" if rental.where else "", "dim")
    )


def _wide_table(summary: PlanSummary) -> Table:
    table = _table(
        ("rent", "left"),
        ("each has", "left"),
        ("service", "left"),
        ("replicas", "right"),
        ("engine", "left"),
        ("serves", "left"),
        ("busy", "right"),
        ("USD/h", "right"),
        ("USD/month", "right"),
    )
    for rental in summary.rentals:
        head = (_rent_cell(rental), Text(rental.gpus))
        for serving in rental.serving:
            table.add_row(
                *head,
                Text(serving.service),
                Text(str(serving.replicas)),
                Text(serving.engine),
                Text(serving.serves),
                Text(serving.busy),
                Text(serving.usd_per_hour),
                Text(serving.usd_per_month),
            )
            head = (Text(), Text())
        if not rental.serving:
            costs = (Text(rental.usd_per_hour), Text(rental.usd_per_month))
            table.add_row(*head, Text("nothing"), *[Text()] * 4, *costs)
    for given in summary.given_back:
        what = (given.gpus, given.service, given.replicas, given.engine, given.kept, "")
        table.add_row(_given_back_cell(given), *map(Text, (*what, given.usd_per_hour, given.usd_per_month)))
    table.add_section()
    for item in summary.totals:
        costs = (Text(item.usd_per_hour, style="bold"), Text(item.usd_per_month, style="bold"))
        table.add_row(Text(item.label, style="bold"), *[Text()] * 6, *costs)
    return table


def _given_back_cell(given: GivenBackView) -> Text:
    return Text.assemble((given.what, "bold cyan"), (f"\n{given.where}", "dim"))


def _given_back_text(given: GivenBackView) -> Text:
    """Return who is served how by what is given back."""
    details = ", ".join(part for part in (given.engine, given.replicas, given.kept) if part)
    return Text.assemble((given.service, "bold"), f" {details}")


def _runs_lines(rental: RentalView) -> list[Text]:
    """Return one line per option: who is served by how many replicas, how, and how busy they are."""
    lines = []
    for serving in rental.serving:
        replicas = plural(serving.replicas, "replica") + (f" {serving.engine}" if serving.engine else "")
        details = ", ".join(part for part in (replicas, f"{serving.busy} busy") if part)
        serves = f": {serving.serves}" if serving.serves else ""
        lines.append(Text.assemble((serving.service, "bold"), f" {details}{serves}"))
    return lines or [Text("nothing")]


def _compact_table(summary: PlanSummary) -> Table:
    table = _table(("rent", "left"), ("runs", "left"), ("USD/h", "right"))
    for rental in summary.rentals:
        head = Text.assemble((f"{rental.count} x {rental.what}", "bold cyan"), f"\n{rental.gpus} each")
        if rental.where:
            head.append(f"\n{rental.where}", style="dim")
        cost = Text(rental.usd_per_hour)
        table.add_row(head, Text("\n").join(_runs_lines(rental)), cost)
    for given in summary.given_back:
        table.add_row(_given_back_cell(given), _given_back_text(given), Text(given.usd_per_hour))
    table.add_section()
    for item in summary.totals:
        month = Text(f"{item.usd_per_month} USD a month")
        table.add_row(Text(item.label, style="bold"), month, Text(item.usd_per_hour, style="bold"))
    return table


def _rent_list(summary: PlanSummary) -> RenderResult:
    yield Text("Rent", style="bold")
    for rental in summary.rentals:
        where = f", {rental.where}" if rental.where else ""
        head = Text.assemble((f"{rental.count} x {rental.what}", "bold cyan"), f" ({rental.gpus} each){where}")
        yield Padding(Text.assemble(head, f": {rental.usd_per_hour} USD/h"), (0, 0, 0, 2), expand=False)
        for line in _runs_lines(rental):
            yield Padding(line, (0, 0, 0, 4), expand=False)
    for given in summary.given_back:
        head = Text.assemble((given.what, "bold cyan"), f" ({given.where})")
        yield Padding(Text.assemble(head, f": {given.usd_per_hour} USD/h"), (0, 0, 0, 2), expand=False)
        yield Padding(_given_back_text(given), (0, 0, 0, 4), expand=False)
    for item in summary.totals:
        yield Text(f"  {item.label} {item.usd_per_hour} USD/h, {item.usd_per_month} USD a month", style="bold")


def _schedule_table(view: ScheduleView) -> Table:
    table = _table(
        ("instances", "left"), ("least", "right"), ("mean", "right"), ("most", "right"), ("over time", "left")
    )
    for item in view.lines:
        table.add_row(*map(Text, (item.name, item.least, item.mean, item.most, item.line)))
    return table


def _scenario_table(view: RobustnessView) -> Table:
    table = _table(("scenario", "left"), ("own fleet", "right"), ("plain fleet", "left"), ("this plan", "left"))
    for line in view.lines:
        table.add_row(*map(Text, (line.name, line.least, line.plain, line.robust)))
    return table


def _ways_table(view: WaysView) -> Table:
    right = {"USD/h", "TTFT p50", "p99"}
    table = _table(*((name, "right" if name in right else "left") for name in WAY_COLUMNS))
    for row in view.rows:
        table.add_row(*map(Text, row))
    return table


def _baseline_table(summary: PlanSummary) -> Table:
    table = _table(("GPU type", "left"), ("replicas", "right"), ("USD/h", "right"), ("vs plan", "left"))
    for baseline in summary.baselines:
        table.add_row(*map(Text, (baseline.gpu, baseline.replicas, baseline.usd_per_hour or "-", baseline.versus)))
    if summary.n_baselines_left_out:
        table.caption = Text(f"{summary.n_baselines_left_out} more in plan.json", style="dim")
        table.caption_justify = "left"
    return table


def _conflicts(conflicts: Sequence[ConflictView]) -> list[RenderableType]:
    parts: list[RenderableType] = [Text("What stands in the way", style="bold")]
    for conflict in conflicts:
        parts.append(Padding(Text(conflict.requirement, style="bold red"), (0, 0, 0, 2), expand=False))
        if conflict.explanation:
            parts.append(Padding(Text(conflict.explanation), (0, 0, 0, 4), expand=False))
        parts.append(Padding(Text.assemble(("Way out: ", "bold"), conflict.suggestion), (0, 0, 0, 4), expand=False))
    return parts


def _rollout(steps: Sequence[str]) -> list[RenderableType]:
    if not steps:
        return []
    numbered = Table.grid(padding=(0, 1, 0, 0))
    numbered.add_column(no_wrap=True, justify="right")
    numbered.add_column(overflow="fold")
    for number_, text in enumerate(steps, start=1):
        numbered.add_row(Text(f"  {number_}."), Text(text))
    return [Text("Rollout", style="bold"), numbered]


def _assumptions(assumptions: Sequence[str]) -> list[RenderableType]:
    if not assumptions:
        return []
    bullets = Table.grid(padding=(0, 1, 0, 0))
    bullets.add_column(no_wrap=True)
    bullets.add_column(overflow="fold")
    for text in assumptions:
        bullets.add_row(Text("  -"), Text(text))
    return [Text("Assumed", style="bold"), bullets]


def _routing_tables(plan: Plan) -> list[RenderableType]:
    """Return, per service, which letter stands for which option, and a table of buckets and where they go."""
    by_service: dict[str, list[Route]] = defaultdict(list)
    for route in plan.routing:
        by_service[route.service].append(route)
    parts: list[RenderableType] = []
    for service in service_names(plan):
        routes = by_service[service]
        letters = _letters(routes)
        parts.append(Text(f"Routing of {clean(service)}", style="bold"))
        parts += [
            Padding(Text.assemble((letter, "bold"), f" = {clean(option)}"), (0, 0, 0, 2), expand=False)
            for option, letter in letters.items()
        ]
        parts.append(_routing_table(plan, routes, letters))
    return parts


def _letters(routes: Sequence[Route]) -> dict[str, str]:
    """Return a letter for each option in use: names in every row would leave no room for figures."""
    used = {option for route in routes for option, weight in route.shares.items() if weight > NEGLIGIBLE_WEIGHT}
    alphabet = string.ascii_uppercase
    return {
        option: alphabet[index % len(alphabet)] * (1 + index // len(alphabet))
        for index, option in enumerate(sorted(used))
    }


def _shares_text(weights: Mapping[str, float], letters: Mapping[str, str]) -> str:
    ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(
        f"{100 * weight:.3g}% {letters[option]}" for option, weight in ranked if weight > NEGLIGIBLE_WEIGHT
    )


def _routing_table(plan: Plan, routes: Sequence[Route], letters: Mapping[str, str]) -> Table:
    table = _table(("input", "left"), ("output", "left"), ("req/s", "right"), ("goes to", "left"))
    for route in routes:
        stages = (_shares_text(weights, letters) for weights in (route.weights, route.decode_weights))
        shares = "; decode ".join(text for text in stages if text)
        inputs = bucket_text(route.input_tokens, f"row {route.row}")
        if route.group is not None:
            inputs = f"{group_text(plan, route)}: {inputs if route.input_tokens else 'all sizes'}"
        table.add_row(
            Text(inputs),
            Text(bucket_text(route.output_tokens, f"column {route.column}")),
            Text(number(route.rate_rps)),
            Text(shares),
        )
    return table
