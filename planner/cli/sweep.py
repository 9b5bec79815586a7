"""`gpuplan sweep`: the front of two objectives, or one plan over a range of loads."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import console
from planner.cli.options import (
    AsOfOption,
    ForceOption,
    GapOption,
    JsonOption,
    SolverOption,
    TimeLimitOption,
    check_targets,
    parse_date,
    solver_settings,
    suffix_of,
)
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
from planner.errors import ExitCode, InputError

if TYPE_CHECKING:
    from rich.table import Table

    from planner.optimize import SolverSettings
    from planner.planning.load_sweep import LoadSweep
    from planner.planning.replay import ReplaySettings
    from planner.planning.sweep import Sweep


def command(
    ctx: typer.Context,
    request: Annotated[
        str,
        typer.Argument(help="A PlanRequest or a Mélange config, YAML or JSON; - is stdin. With --load: a plan.json."),
    ],
    pareto: Annotated[
        str, typer.Option(metavar="A,B", help="The two objectives: of cost, power, gpus, energy and carbon.")
    ] = "cost,power",
    points: Annotated[
        int | None,
        typer.Option(
            min=2, max=200, help="Most plans on the front (8), or loads before the knee is closed in on (11)."
        ),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(metavar="FROM-TO", help="Replay a plan at these multiples of its rate instead: 0.5-1.5."),
    ] = None,
    trace: TraceOption = None,
    arrivals: ArrivalsOption = None,
    policy: PolicyOption = "weights",
    event: EventOption = None,
    requests: RequestsOption = None,
    periods: PeriodsOption = None,
    replications: ReplicationsOption = 1,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write to FILE: .csv, .json or .html; - is stdout. Repeatable."
        ),
    ] = None,
    as_json: JsonOption = False,
    solver: SolverOption = "highs",
    time_limit: TimeLimitOption = "60s",
    gap: GapOption = "0.01%",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the solver, or of the replays.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the solver, or replays at a time.")] = 1,
    as_of: AsOfOption = None,
    force: ForceOption = False,
) -> int:
    """Find plans of which none is better in one objective without being worse in the other; or a plan's knee.

    With --load a plan is replayed at one load after another: up to which of them does it hold its SLOs? Plans of a
    front are not replayed.
    """
    from planner.report.front import FRONT_SUFFIXES

    _check_not_mixed(ctx, is_load=load is not None)
    targets = output or []
    check_targets(targets, suffixes=FRONT_SUFFIXES, force=force)
    if load is not None:
        settings = settings_of(
            load=1.0,
            policy=policy,
            seed=seed,
            exact=False,
            requests=requests,
            event=event,
            arrivals=arrivals,
            periods=periods,
            replications=replications,
            threads=threads,
            spot_interruptions=False,
        )
        return _load_sweep(
            request, load, points or LOADS, trace or [], settings, targets=targets, as_json=as_json, force=force
        )
    return _front(
        request,
        pareto,
        points or FRONT_POINTS,
        solver_settings(solver=solver, time_limit=time_limit, gap=gap, seed=seed, threads=threads),
        today=parse_date(as_of) or date.today(),
        targets=targets,
        as_json=as_json,
        force=force,
    )


FRONT_POINTS, LOADS = 8, 11
OF_FRONTS = ("pareto", "solver", "time_limit", "gap", "as_of")
OF_LOADS = ("trace", "arrivals", "policy", "event", "requests", "periods", "replications")


def _check_not_mixed(ctx: typer.Context, *, is_load: bool) -> None:
    """Refuse options of fronts beside --load, and those of replays without it."""
    for name in OF_FRONTS if is_load else OF_LOADS:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            if is_load:
                raise InputError(
                    f"{option} is for the front of two objectives, and --load replays one plan.",
                    hint=f"Leave {option} or --load out.",
                )
            raise InputError(
                f"{option} is for a plan that is replayed over load.", hint="Add --load 0.5-1.5 and give a plan.json."
            )


def _front(
    request: str,
    pareto: str,
    n_points: int,
    settings: SolverSettings,
    *,
    today: date,
    targets: list[str],
    as_json: bool,
    force: bool,
) -> int:
    from planner.planning.sweep import pareto_sweep, parse_measures
    from planner.report.front import front_document, front_text

    measures = parse_measures(pareto)
    sweep = pareto_sweep(request, measures=measures, n_points=n_points, today=today, settings=settings)
    if sweep.failed is not None:
        return _show_failure(sweep, today=today, as_json=as_json)
    for target in targets:
        console.write_result(target, front_text(sweep.points, measures, suffix_of(target)), force=force)
    if as_json and "-" not in targets:
        console.print_json(front_document(sweep.points, measures))
    elif "-" not in targets:
        console.print_result(_table(sweep))
    is_proven = all(point.plan.status == "optimal" for point in sweep.points)
    return int(ExitCode.OK if is_proven else ExitCode.LIMIT_REACHED)


def _load_sweep(
    plan: str,
    loads: str,
    n_points: int,
    traces: list[str],
    settings: ReplaySettings,
    *,
    targets: list[str],
    as_json: bool,
    force: bool,
) -> int:
    from planner.files.plan_schema import read_plan
    from planner.planning.explain import question_of
    from planner.planning.load_sweep import load_sweep, load_text, parse_loads
    from planner.planning.replay import prepare

    low, high = parse_loads(loads)
    document = read_plan(Path(plan))
    prepared = prepare(question_of(document, Path(plan)), document, traces=traces_of(traces, document))
    found = load_sweep(prepared, settings, low=low, high=high, n_points=n_points)
    for target in targets:
        suffix = suffix_of(target)
        text = console.to_json(found.to_dict()) if suffix == ".json" else load_text(found, suffix, title=document.name)
        console.write_result(target, text, force=force)
    if as_json and "-" not in targets:
        console.print_json(found.to_dict())
    elif "-" not in targets:
        from rich.text import Text

        console.print_result(_load_table(found), *map(Text, (found.sentence(), *found.notes)))
    return int(ExitCode.OK)


def _load_table(found: LoadSweep) -> Table:
    from rich.table import Table

    from planner.planning.replay_page import percent_text, seconds_text

    table = Table(box=None, pad_edge=False)
    table.add_column("load", justify="right")
    for service in found.points[0].services:
        for item in service.slos:
            table.add_column(f"{service.service}: {item.slo}", justify="right")
        table.add_column(f"{service.service}: within all", justify="right")
    for given in found.points[0].given_back:
        table.add_column(f"{given.service}, given back: within all", justify="right")
    table.add_column("")
    for point in found.points:
        cells = [
            cell
            for service in point.services
            for cell in (
                *(seconds_text(item.simulated.value) for item in service.slos),
                percent_text(service.attainment.value),
            )
        ]
        cells += [percent_text(item.found.attainment or 0.0) for item in point.given_back]
        table.add_row(f"{point.load:.4g}", *cells, "missed" if point.missed else "ok")
    return table


def _show_failure(sweep: Sweep, *, today: date, as_json: bool) -> int:
    """Show the plan that says why there is none."""
    from planner.cli.plan import exit_code, show
    from planner.report.result import PlanResult

    if sweep.failed is None:
        return int(ExitCode.OK)
    result = PlanResult(plan=sweep.failed, today=today)
    if as_json:
        console.print_json(result.to_document())
    else:
        show(result, routes=False)
    return int(exit_code(sweep.failed))


def _table(sweep: Sweep) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from planner.domain.problem import MEASURE_UNITS
    from planner.report.front import fleet_text
    from planner.report.wording import number

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for measure in sweep.measures:
        table.add_column(Text(f"{measure} ({MEASURE_UNITS[measure]})"), justify="right", no_wrap=True)
    table.add_column(Text("rent"), overflow="fold")
    for point in sweep.points:
        cells = [number(point.values[measure] or 0.0) for measure in sweep.measures]
        table.add_row(*map(Text, cells), Text(fleet_text(point.plan)))
    return table
