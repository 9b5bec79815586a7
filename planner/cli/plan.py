"""`gpuplan plan`: the cheapest verified plan for a request."""

from __future__ import annotations

import sys
from pathlib import Path
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
    from planner.domain.plan import Plan
    from planner.domain.proof import ProofRound
    from planner.report.result import PlanResult


def command(
    request: Annotated[
        str, typer.Argument(help="A PlanRequest or a Mélange config, YAML or JSON; - is stdin.", show_default=False)
    ],
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the plan to FILE: .json, .yaml, .csv, .md or .html by its suffix; - is stdout. Repeatable.",
        ),
    ] = None,
    as_json: JsonOption = False,
    assignment: Annotated[
        str, typer.Option(help="fractional: a bucket may be split between GPUs; sliced: Mélange's binary slices.")
    ] = "fractional",
    slice_factor: Annotated[
        int | None, typer.Option(min=1, help="Slices per bucket for --assignment sliced; default: the request's own.")
    ] = None,
    solver: SolverOption = "highs",
    time_limit: TimeLimitOption = "60s",
    gap: GapOption = "0.01%",
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
    as_of: AsOfOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse stale prices instead of warning of them.")] = False,
    current: Annotated[
        Path | None,
        typer.Option(metavar="PLAN", help="plan.json that runs today: plan the changes to it, and show their order."),
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Replay the plan request by request, and plan again until its SLOs hold. "
            "Default: where all traffic comes from traces with arrival times.",
            show_default=False,
        ),
    ] = None,
    routes: Annotated[bool, typer.Option("--routes", help="Show the routing weights of every bucket.")] = False,
    force: ForceOption = False,
) -> int:
    """Find the cheapest mix of GPUs that serves a request within its SLOs."""
    from planner.planning.answer import plan
    from planner.report.result import SUFFIXES

    settings = solver_settings(solver=solver, time_limit=time_limit, gap=gap, seed=seed, threads=threads)
    targets = output or []
    check_targets(targets, suffixes=SUFFIXES, force=force)
    result = plan(
        request,
        today=parse_date(as_of),
        settings=settings,
        assignment=assignment,
        slice_factor=slice_factor,
        strict=strict,
        current=current,
        verify=verify,
        on_round=_progress if sys.stderr.isatty() else None,
    )
    for target in targets:
        console.write_result(target, result.to_text(suffix_of(target)), force=force)
    if as_json and "-" not in targets:
        console.print_json(result.to_document())
    elif "-" not in targets:
        show(result, routes=routes)
    return int(exit_code(result.plan))


def exit_code(plan: Plan) -> ExitCode:
    """Return the exit code that says how the plan ended."""
    from planner.domain.plan import PlanStatus
    from planner.domain.proof import ProofEnd

    if plan.solver.termination == "interrupted":
        return ExitCode.INTERRUPTED
    if plan.proof is not None and plan.proof.ended is ProofEnd.MISSED:
        return ExitCode.CHECK_FAILED
    return {
        PlanStatus.OPTIMAL: ExitCode.OK,
        PlanStatus.INFEASIBLE: ExitCode.INFEASIBLE,
        PlanStatus.FEASIBLE: ExitCode.LIMIT_REACHED,
        PlanStatus.UNKNOWN: ExitCode.LIMIT_REACHED,
    }[plan.status]


def _progress(found: ProofRound) -> None:
    """Tell the user on stderr of a fleet that was replayed."""
    services = ", ".join(f"{item.service} {item.worst} {item.attainment:.2%} in time" for item in found.services)
    verdict = "holds" if found.holds else "misses"
    console.note(f"Replayed a fleet of {found.cost_usd_per_hour:,.2f} USD/h ({found.step}): {verdict}; {services}.")


def show(result: PlanResult, *, routes: bool) -> None:
    """Print the plan, with its warnings, for a person."""
    from planner.report.terminal import plan_renderables

    console.print_result(*plan_renderables(result.plan, today=result.today, verbose=routes))
