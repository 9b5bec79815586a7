"""`gpuplan sweep`: the front of two objectives."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import console
from planner.cli.options import (
    AsOfOption,
    ForceOption,
    GapOption,
    JsonOption,
    SeedOption,
    SolverOption,
    ThreadsOption,
    TimeLimitOption,
    check_targets,
    parse_date,
    solver_settings,
    suffix_of,
)
from planner.errors import ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from planner.planning.sweep import Sweep


def command(
    request: Annotated[str, typer.Argument(help="A PlanRequest or a Mélange config, YAML or JSON; - is stdin.")],
    pareto: Annotated[
        str, typer.Option(metavar="A,B", help="The two objectives: of cost, power, gpus, energy and carbon.")
    ] = "cost,power",
    points: Annotated[int, typer.Option(min=2, max=200, help="Most plans on the front.")] = 8,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the front to FILE: .csv, .json or .html; - is stdout. Repeatable.",
        ),
    ] = None,
    as_json: JsonOption = False,
    solver: SolverOption = "highs",
    time_limit: TimeLimitOption = "60s",
    gap: GapOption = "0.01%",
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
    as_of: AsOfOption = None,
    force: ForceOption = False,
) -> int:
    """Find plans of which none is better in one objective without being worse in the other; they are not replayed."""
    from planner.planning.sweep import pareto_sweep, parse_measures
    from planner.report.front import FRONT_SUFFIXES, front_document, front_text

    settings = solver_settings(solver=solver, time_limit=time_limit, gap=gap, seed=seed, threads=threads)
    measures = parse_measures(pareto)
    targets = output or []
    check_targets(targets, suffixes=FRONT_SUFFIXES, force=force)
    today = parse_date(as_of) or date.today()
    sweep = pareto_sweep(request, measures=measures, n_points=points, today=today, settings=settings)
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
