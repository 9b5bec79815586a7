"""`gpuplan simulate`: replay a plan, request by request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import console
from planner.cli.options import STDOUT, ForceOption, JsonOption, check_targets, suffix_of
from planner.cli.replaying import (
    ArrivalsOption,
    EventOption,
    PeriodsOption,
    PolicyOption,
    ReplicationsOption,
    RequestsOption,
    TraceOption,
    settings_of,
    traces_of,
)
from planner.errors import ExitCode
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from planner.planning.replay_outcome import Phase, Replay

SUFFIXES = (".json", ".html")
MOST_PHASES = 48
"""Rows of the table over time; of more the worst are shown."""
MOST_PERIODS_NAMED = 6
MOST_ADAPTERS = 5
"""Rows of the table of adapters: the worst."""


def command(
    plan: Annotated[
        Path, typer.Argument(help="plan.json as `gpuplan plan -o plan.json` wrote it.", show_default=False)
    ],
    trace: TraceOption = None,
    load: Annotated[float, typer.Option(metavar="FACTOR", help="Multiply the rates: 1.3 is 30% more.")] = 1.0,
    arrivals: ArrivalsOption = None,
    policy: PolicyOption = "weights",
    event: EventOption = None,
    spot_interruptions: Annotated[
        bool, typer.Option("--spot-interruptions", help="Reclaim spot at random, as often as the catalog says.")
    ] = False,
    requests: RequestsOption = None,
    periods: PeriodsOption = None,
    replications: ReplicationsOption = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Replications at a time; default: one for each core.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Walk every engine step: slower, the same result.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of routing, random arrivals and random losses.")] = 0,
    as_json: JsonOption = False,
    output: Annotated[
        list[str] | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to FILE: .json or .html; - is stdout. Repeatable."),
    ] = None,
    records: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write what every request saw to FILE: .csv or .parquet."),
    ] = None,
    adapters: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write how every adapter fares to FILE, a .csv.")
    ] = None,
    force: ForceOption = False,
) -> int:
    """Replay a plan request by request and say whether every service holds its SLOs; exit code 5 if one does not."""
    from planner.files.plan_schema import read_plan
    from planner.planning.replay import replay
    from planner.planning.replay_records import RECORD_SUFFIXES, check_parquet, write_records

    targets = output or []
    check_targets(targets, suffixes=SUFFIXES, force=force)
    if records is not None:
        check_targets([records], suffixes=RECORD_SUFFIXES, force=force)
        check_parquet(Path(records))
    if adapters is not None:
        check_targets([adapters], suffixes=(".csv",), force=force)
    settings = settings_of(
        load=load,
        policy=policy,
        seed=seed,
        exact=exact,
        requests=requests,
        event=event,
        arrivals=arrivals,
        periods=periods,
        replications=replications,
        threads=threads,
        spot_interruptions=spot_interruptions,
    )
    document = read_plan(plan)
    found = replay(document, plan_path=plan, traces=traces_of(trace or [], document), settings=settings)
    for target in targets:
        console.write_result(target, _text(found, target, title=document.name), force=force)
    if records is not None:
        write_records(found, Path(records), force=force)
        console.note(f"Wrote {records}.")
    if adapters is not None:
        console.write_result(adapters, found.to_adapters_csv(), force=force)
    if as_json and STDOUT not in targets:
        console.print_json(found.to_dict())
    elif STDOUT not in targets:
        from rich.text import Text

        has_phases = bool(found.phases) and (bool(event) or found.phases[0].period is not None)
        lines = map(Text, _lines(found))  # not markup: options have [brackets] in their names
        tables = [*([_table(found)] if found.services else []), *_given_back_tables(found), *_adapter_tables(found)]
        tables += [_phases(found)] if has_phases else []
        console.print_result(*tables, *lines)
    return int(ExitCode.OK if found.is_met else ExitCode.CHECK_FAILED)


def _text(found: Replay, target: str, *, title: str) -> str:
    if suffix_of(target) == ".html":
        from planner.planning.replay_page import replay_html

        return replay_html(found, title=title)
    return console.to_json(found.to_dict())


def _table(found: Replay) -> Table:
    from rich.table import Table

    from planner.planning.replay_page import interval_text, percent_text, seconds_text

    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("service", "left"), ("SLO", "left"), ("simulated", "right"), ("95% interval", "right"), ("", "left"),
        ("within", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for service in found.services:
        for item in service.slos:
            verdict = ("ok" if item.is_met else "missed") + ("" if item.is_sure else ", not sure")
            verdict = verdict if item.simulated.n else "none to judge"
            table.add_row(
                service.service,
                str(item),
                seconds_text(item.simulated.value),
                interval_text(item.simulated),
                verdict,
                percent_text(item.attainment.value),
            )
    return table


def _given_back_tables(found: Replay) -> Iterator[Table]:
    """Yield how the services fare that are given back."""
    from rich.table import Table

    from planner.planning.replay_page import GIVEN_BACK_COLUMNS, given_back_cells

    if found.given_back:
        table = Table(box=None, pad_edge=False)
        for name in GIVEN_BACK_COLUMNS:
            table.add_column(name.rstrip("#"), justify="right" if name.endswith("#") else "left", overflow="fold")
        for item in found.given_back:
            table.add_row(*given_back_cells(item))
        yield table


def _adapter_tables(found: Replay) -> Iterator[Table]:
    """Yield the worst adapters of each service that has any."""
    from rich.table import Table

    from planner.planning.replay_page import adapter_slos_text, adapter_verdict, percent_text

    for service in found.services:
        adapters = found.adapters_of(service.service)
        if not adapters:
            continue
        title = f"{service.service}: the {min(MOST_ADAPTERS, len(adapters))} worst of {len(adapters):,} adapters"
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for name, justify in (
            ("adapter", "left"), ("requests", "right"), ("simulated", "left"), ("", "left"),
            ("within every SLO", "right"),
        ):  # fmt: skip
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for item in adapters[:MOST_ADAPTERS]:
            cells = (item.adapter, f"{item.n_requests:,}", adapter_slos_text(item), adapter_verdict(item))
            table.add_row(*cells, percent_text(item.attainment))
        yield table


def _phases(found: Replay) -> Table:
    from rich.table import Table

    from planner.planning.replay_page import percent_text

    phases, title = _shown_phases(found)
    has_periods = found.phases[0].period is not None
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    if has_periods:
        table.add_column("period", justify="right")
        table.add_column("replicas", justify="right")
    table.add_column("from")
    table.add_column("to")
    table.add_column("what is wrong")
    for service in found.services:
        table.add_column(service.service, justify="right")
    for phase in phases:
        table.add_row(
            *([str(phase.period), str(phase.replicas)] if has_periods else []),
            format_duration(phase.start_s),
            format_duration(phase.end_s),
            "; ".join(phase.events) or "-",
            *map(percent_text, phase.attainment.values()),
        )
    return table


def _shown_phases(found: Replay) -> tuple[list[Phase], str]:
    title = "Within every SLO, by time of arrival"
    phases = list(found.phases)
    if len(phases) <= MOST_PHASES:
        return phases, title

    def worst(phase: Phase) -> float:
        return min((value for value in phase.attainment.values() if value >= 0), default=1.0)

    phases = sorted(sorted(phases, key=worst)[:MOST_PHASES], key=lambda phase: phase.start_s)
    return phases, f"{title}: the {MOST_PHASES} worst of {len(found.phases)} stretches"


def _lines(found: Replay) -> Iterator[str]:
    from planner.planning.replay_adapters import adapters_sentence

    yield ""
    for service in found.services:
        lost = f", {service.n_unanswered:,} never answered" if service.n_unanswered else ""
        away = f", {service.n_turned_away:,} turned away" if service.n_turned_away else ""
        of_all = f" ({service.attainment_of_all.value:.2%} of all)" if service.n_turned_away else ""
        yield (
            f"{service.service}: {service.n_requests:,} requests at {service.rate_rps:,.4g} req/s{away}{lost}; "
            f"{service.attainment.value:.2%} within every SLO{of_all}."
        )
    for given in found.given_back:
        mean = given.found.mean_replicas
        held = "" if mean is None else f" on {mean:.3g} replicas on average, {given.found.most_replicas} at most"
        at = "" if given.load == 1.0 else f" at {given.load:g} times the rate"
        yield f"{given.service}: {given.n_requests:,} requests{at}{held}."
    yield from _period_lines(found)
    for service in found.services:
        if adapters := found.adapters_of(service.service):
            yield adapters_sentence(service.service, adapters)
    for pool in found.pools:
        at_a_time = f", {pool.at_a_time:.3g} requests at a time" if pool.at_a_time >= 0 else ""
        yield (
            f"{pool.name}: at work {pool.utilization:.0%} of the time{at_a_time}, {pool.peak_kv_fraction:.0%} of the "
            "KV memory at most."
        )
    if found.n_lost:
        yield f"{found.n_lost:,} times a replica was lost."
    yield from found.notes
    if not found.services:
        return
    simulation = found.simulation
    rounds = f" (the first of {found.n_replications} replications)" if found.n_replications > 1 else ""
    yield (
        f"{simulation.n_steps:,} engine steps in {simulation.n_events:,} events, simulated in "
        f"{format_duration(simulation.seconds)}{rounds}."
    )


def _period_lines(found: Replay) -> Iterator[str]:
    missed = found.missed_periods()
    for service in found.services:
        mine = [str(period) for period, name in missed if name == service.service]
        if mine:
            more = f" and {len(mine) - MOST_PERIODS_NAMED} more" if len(mine) > MOST_PERIODS_NAMED else ""
            yield (
                f"{service.service}: by itself {'period' if len(mine) == 1 else 'periods'} "
                f"{', '.join(mine[:MOST_PERIODS_NAMED])}{more} would miss an SLO."
            )
