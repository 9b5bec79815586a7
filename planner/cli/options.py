"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from planner.errors import InputError
from planner.units import parse_duration_s, parse_fraction

if TYPE_CHECKING:
    from planner.optimize import SolverSettings

JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document to stdout.")]
OutputOption = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write to FILE, format by its suffix; - is stdout."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
SolverOption = Annotated[str, typer.Option(metavar="NAME", help="highs, cbc, scip or cp-sat.")]
TimeLimitOption = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help="Stop each search after this long with the best found; the single-GPU plans share as much again.",
    ),
]
GapOption = Annotated[
    str, typer.Option(metavar="GAP", help="Stop when the plan is proven to be within this of the cheapest.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the solver.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of the solver; more than 1 may change ties.")]
AsOfOption = Annotated[
    str | None, typer.Option("--as-of", metavar="DATE", help="Count the age of prices to this date; default: today.")
]


def parse_date(text: str | None) -> date | None:
    """Return the date that an option gives as YYYY-MM-DD.

    Raises
    ------
    InputError: if it is not one.
    """
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not a date.", hint="Write it as 2026-11-30.") from error


def solver_settings(*, solver: str, time_limit: str, gap: str, seed: int, threads: int) -> SolverSettings:
    """Return the solver's settings from the options above.

    Raises
    ------
    InputError: if one of them is wrong.
    """
    from planner.optimize import SolverSettings

    try:
        return SolverSettings(
            solver=solver,
            time_limit_s=parse_duration_s(time_limit),
            relative_gap=parse_fraction(gap),
            seed=seed,
            threads=threads,
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{error}.", hint="See: gpuplan plan --help") from error
