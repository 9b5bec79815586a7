"""The plan as CSV, as a data frame and as Markdown."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any

from planner.domain.disaggregation import Role
from planner.optimize.preload import Tier
from planner.report.adapters import WAY_COLUMNS
from planner.report.robustness import RegretEntry, regret_entries
from planner.report.summary import AllocationRow, allocation_rows, summarize

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date

    import pandas as pd

    from planner.domain.plan import AdapterPlan, AdapterReplica, Plan
    from planner.report.robustness import RobustnessView
    from planner.report.summary import PlanSummary

PLAN_COLUMNS = tuple(field.name for field in fields(AllocationRow))
"""Header of plan.csv; columns are only ever added at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRow:
    """One line of routing.csv: what share of one bucket's requests goes to one option."""

    service: str
    row: int
    column: int
    input_tokens_from: int | None
    input_tokens_to: int | None
    output_tokens_from: int | None
    output_tokens_to: int | None
    rate_rps: float
    option: str
    weight_fraction: float
    option_rate_rps: float
    provenance: str
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRow:
    """An adapter on a replica, or on disk only."""

    service: str
    replica: int | None
    """Number of the replica among those of the service, from 0; None = on every machine's disk, and nowhere else."""
    option: str
    slots: int | None
    adapter: str
    rate_rps: float
    """What this replica serves of it; 0 = it is ready there for requests that nobody plans for."""
    adapter_rate_rps: float
    """What all replicas do."""
    adapter_usd_per_month: float
    tier: str
    """Where this replica has it: gpu, host or disk."""


ADAPTER_COLUMNS = tuple(field.name for field in fields(AdapterRow))
ROUTING_COLUMNS = tuple(field.name for field in fields(RoutingRow))
REGRET_COLUMNS = tuple(field.name for field in fields(RegretEntry))


def plan_csv(plan: Plan) -> str:
    """Return plan.csv: one row per allocation, and per period if there is a schedule; empty = not known."""
    return _csv(PLAN_COLUMNS, (astuple(row) for row in allocation_rows(plan)))


def routing_csv(plan: Plan) -> str:
    """Return routing.csv: one row per bucket and option with a positive weight."""
    return _csv(ROUTING_COLUMNS, (astuple(row) for row in _routing_rows(plan)))


def regret_csv(plan: Plan) -> str:
    """Return regret.csv: one row per fleet and scenario; the header alone where there are no scenarios."""
    entries = () if plan.robustness is None else regret_entries(plan.robustness)
    return _csv(REGRET_COLUMNS, (astuple(entry) for entry in entries))


def adapters_csv(plan: Plan) -> str:
    """Return adapters.csv: a row for each replica and adapter in its slots or host memory, and for each on disk only.

    The header alone where there are no adapters.
    """
    return _csv(ADAPTER_COLUMNS, (astuple(row) for row in _adapter_rows(plan)))


def _adapter_rows(plan: Plan) -> Iterator[AdapterRow]:
    for item in plan.adapters:
        slots = {host.option: host.slots for host in item.hosts}
        shares = {share.adapter: share for share in item.shares}
        for number, replica, name, rate_rps, tier in _held(item):
            share = shares.get(name)
            yield AdapterRow(
                service=item.service,
                replica=number,
                option="" if replica is None else replica.option,
                slots=None if replica is None else slots[replica.option],
                adapter=name,
                rate_rps=rate_rps,
                adapter_rate_rps=0.0 if share is None else share.rate_rps,
                adapter_usd_per_month=0.0 if share is None else share.usd_per_month,
                tier=tier,
            )


def _held(item: AdapterPlan) -> Iterator[tuple[int | None, AdapterReplica | None, str, float, Tier]]:
    """Yield where the adapters of a service are: the replica, the adapter, what it serves of it, and the tier."""
    for number, replica in enumerate(item.placement):
        for held in replica.adapters:
            yield number, replica, held.adapter, held.rate_rps, Tier.GPU
        if replica.tiers is not None:
            for name in replica.tiers.gpu:
                yield number, replica, name, 0.0, Tier.GPU
            for name in replica.tiers.host:
                yield number, replica, name, 0.0, Tier.HOST
    for name in () if item.preload is None else item.preload.on_disk:
        yield None, None, name, 0.0, Tier.DISK


def plan_frame(plan: Plan) -> pd.DataFrame:
    """Return the plan as a pandas data frame with the columns and rows of plan.csv."""
    import pandas as pd  # noqa: PLC0415 - only those who ask for a frame pay for pandas

    frame = pd.DataFrame([astuple(row) for row in allocation_rows(plan)], columns=list(PLAN_COLUMNS))
    types = {"str": "string", "int": "int64", "float": "float64"}  # None in a column must not make it one of objects
    return frame.astype({field.name: types[str(field.type).split(" ", 1)[0]] for field in fields(AllocationRow)})


def _routing_rows(plan: Plan) -> Iterator[RoutingRow]:
    roles = {(row.service, row.option): row.role for row in plan.allocation}
    for route in plan.routing:
        inputs, outputs = route.input_tokens or (None, None), route.output_tokens or (None, None)
        for option, weight in sorted(route.shares.items()):
            if weight <= 0:
                continue
            stage = Role.DECODE if option in route.decode_weights else roles.get((route.service, option), Role.BOTH)
            origin = route.provenance.get(option)
            yield RoutingRow(
                service=route.service,
                row=route.row,
                column=route.column,
                input_tokens_from=inputs[0],
                input_tokens_to=inputs[1],
                output_tokens_from=outputs[0],
                output_tokens_to=outputs[1],
                rate_rps=route.rate_rps,
                option=option,
                weight_fraction=weight,
                option_rate_rps=weight * route.rate_rps,
                provenance="" if origin is None else origin.value,
                stage=stage.value,
            )


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{value:.12g}" if isinstance(value, float) else value for value in row])
    return stream.getvalue()


def plan_markdown(plan: Plan, *, today: date) -> str:
    """Return the plan as GitHub-flavoured Markdown, e.g. for a pull request."""
    summary = summarize(plan, today=today)
    blocks = [f"## {_md(summary.title or 'GPU plan')}", f"**{_md(summary.headline)}**"]
    if summary.rentals or summary.given_back:
        blocks.append(_rent_markdown(summary))
    if summary.schedule is not None:
        header = ("instances", "least", "mean", "most", "over time")
        lines = [(item.name, item.least, item.mean, item.most, item.line) for item in summary.schedule.lines]
        blocks += ["### Schedule", f"{_md(summary.schedule.title)}.", _md_table(header, lines, right=(1, 2, 3))]
    if summary.robustness is not None:
        blocks += ["### Scenarios", f"{_md(summary.robustness.title)}.", _regret_markdown(summary.robustness)]
    if summary.conflicts:
        rows = [(item.requirement, item.explanation, item.suggestion) for item in summary.conflicts]
        blocks += ["### What stands in the way", _md_table(("requirement", "why", "way out"), rows)]
    if summary.baselines:
        blocks += ["### One GPU type alone", _baseline_markdown(summary)]
    for view in summary.ways:
        blocks += [f"### {_md(view.title)}", _md_table(WAY_COLUMNS, view.rows, right=(1, 4, 5))]
        blocks += [_md(view.note)] if view.note else []
    if summary.rollout:
        steps = [f"{index}. {_md(text)}" for index, text in enumerate(summary.rollout, start=1)]
        blocks += ["### Rollout", "\n".join(steps)]
    blocks += _list_markdown("", [(note.label, note.text) for note in summary.notes])
    blocks += _list_markdown("### Warnings", [(warning.label, warning.text) for warning in summary.warnings])
    blocks += _list_markdown("### Assumed", [("", text) for text in summary.assumptions])
    reproduce = plan.inputs.get("reproduce")
    if isinstance(reproduce, str) and reproduce.isprintable() and "```" not in reproduce:
        blocks += ["Made with:", f"```sh\n{reproduce}\n```"]
    return "\n\n".join(blocks) + "\n"


def _rent_markdown(summary: PlanSummary) -> str:
    what = ("rent", "each has", "where", "service", "replicas", "engine", "serves", "busy", "throughput")
    header = (*what, "USD/h", "USD/month")
    rows: list[Sequence[Any]] = []
    for rental in summary.rentals:
        head: tuple[str, ...] = (f"{rental.count} x {rental.what}", rental.gpus, rental.where)
        for item in rental.serving:
            costs = (item.usd_per_hour, item.usd_per_month)
            rows.append((*head, item.service, item.replicas, item.engine, item.serves, item.busy, item.origin, *costs))
            head = ("", "", "")
        if not rental.serving:
            rows.append((*head, "nothing", *[""] * 5, rental.usd_per_hour, rental.usd_per_month))
    for given in summary.given_back:
        mine = (given.what, given.gpus, given.where, given.service, given.replicas, given.engine, given.kept)
        rows.append((*mine, "", "estimated", given.usd_per_hour, given.usd_per_month))
    rows += [(item.label, *[""] * 8, item.usd_per_hour, item.usd_per_month) for item in summary.totals]
    return _md_table(header, rows, right=(4, 7, 9, 10))


def _regret_markdown(view: RobustnessView) -> str:
    header = [_md(name) for name in ("fleet", "USD/h", *(line.name for line in view.lines))]
    return _md_table(header, [(row.fleet, row.usd_per_hour, *row.cells) for row in view.rows], right=(1,))


def _baseline_markdown(summary: PlanSummary) -> str:
    rows = [(item.gpu, item.replicas, item.usd_per_hour or "-", item.versus) for item in summary.baselines]
    table = _md_table(("GPU type", "replicas", "USD/h", "vs plan"), rows, right=(1, 2))
    return table + (f"\n\n{summary.n_baselines_left_out} more in plan.json." if summary.n_baselines_left_out else "")


def _list_markdown(heading: str, items: Sequence[tuple[str, str]]) -> list[str]:
    if not items:
        return []
    lines = [f"- **{_md(label)}**: {_md(text)}" if label else f"- {_md(text)}" for label, text in items]
    return ([heading] if heading else []) + ["\n".join(lines)]


def _md_table(header: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> str:
    rule = ["---:" if index in right else "---" for index in range(len(header))]
    lines = [header, rule, *([_md(str(cell)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str) -> str:
    """Return `text` so that Markdown shows it as it is: no markup, no HTML, no end of a table cell."""
    escaped = re.sub(r"([\\`*\[\]<>|~])", r"\\\1", text.replace("&", "&amp;"))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)
