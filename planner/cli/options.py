"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.errors import InputError, Where
from planner.units import parse_duration_s, parse_fraction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.optimize import SolverSettings

STDOUT = "-"

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
        help="Stop each search after this long with the best found; the single-GPU plans share as much again, and the"
        " proof of a plan takes four times as long at most.",
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


def check_targets(targets: list[str], *, suffixes: Sequence[str], force: bool) -> None:
    """Raise before any work if one of the outputs cannot be written as asked; "-" is stdout.

    Raises
    ------
    InputError: if a suffix names no format, an output is asked for twice, or its file cannot be written.
    """
    from planner.files.output import check_writable

    for target in targets:
        where = Where(path=target)
        if targets.count(target) > 1:
            raise InputError("This output is asked for twice.", where=where)
        if suffix_of(target) not in suffixes:
            raise InputError(
                f"The suffix {suffix_of(target)!r} names no format.",
                hint=f"Use one of {', '.join(suffixes)}.",
                where=where,
            )
        if target != STDOUT:
            check_writable(Path(target), force=force)


def suffix_of(target: str) -> str:
    """Return the suffix that says in which form to write `target`; stdout gets JSON."""
    return ".json" if target == STDOUT else Path(target).suffix.lower()


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
