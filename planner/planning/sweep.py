"""One request, many plans: the front of two objectives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.domain.plan import PlanStatus
from planner.domain.problem import Measure
from planner.errors import InputError
from planner.optimize import Assignment, find_conflicts
from planner.optimize.pareto import pareto_front
from planner.optimize.solving import solve
from planner.planning.answer import read_question, read_request
from planner.planning.energy import with_known_intensity

if TYPE_CHECKING:
    from datetime import date

    from planner.domain.plan import Plan
    from planner.optimize import SolverSettings
    from planner.optimize.pareto import FrontPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The plans of a front, or the plan that says why there is none."""

    name: str
    measures: tuple[Measure, Measure]
    points: tuple[FrontPoint, ...]
    failed: Plan | None = None
    """The infeasible plan, or the one of a search that found nothing; None where there are points."""


def parse_measures(text: str) -> tuple[Measure, Measure]:
    """Return the two measures that "cost,power" names.

    Raises
    ------
    InputError: if these are not two different measures.
    """
    names = [part.strip() for part in text.split(",")]
    known = [measure.value for measure in Measure]
    if len(names) != 2 or len(set(names)) != 2 or not set(names) <= set(known):
        raise InputError(f"{text!r} does not name two measures.", hint=f"Two of {', '.join(known)}: cost,power.")
    return Measure(names[0]), Measure(names[1])


def pareto_sweep(
    request: str | Path, *, measures: tuple[Measure, Measure], n_points: int, today: date, settings: SolverSettings
) -> Sweep:
    """Return the front of two measures for a request; its own objective is left aside, its limits are kept.

    These plans rest on throughput alone: they are not replayed.

    Raises
    ------
    InputError: if the request, or a file that it names, is wrong.
    DataMissingError: if it names something that is not known.
    """
    document = read_request(request)
    question = read_question(document, base_dir=Path(document.path).parent, today=today, strict=False)
    for name in (ask.name for ask in question.scaling if ask.decides):
        raise InputError(
            f"{name} may be given back in between, and the plans of a front are of fleets that are always on.",
            hint="Write mode: compare in its scale_to_zero; then the front leaves it always on.",
        )
    free = Assignment.fractional()
    problem, left_out = question.problem, question.warnings[:0]
    if Measure.CARBON in measures:
        problem, left_out = with_known_intensity(problem)
    points = pareto_front(problem, measures, n_points=n_points, settings=settings, assignment=free)
    named = tuple(
        replace(
            point,
            plan=replace(
                point.plan,
                name=question.name,
                warnings=question.warnings + left_out + point.plan.warnings,
                assumptions=question.assumptions + point.plan.assumptions,
            ),
        )
        for point in points
    )
    failed = None
    if not points:
        failed = solve(replace(problem, goal=None), settings=settings, assignment=free)
        if failed.status is PlanStatus.INFEASIBLE and not failed.conflicts:
            failed = replace(failed, conflicts=find_conflicts(problem, settings=settings, assignment=free))
    return Sweep(name=question.name, measures=measures, points=named, failed=failed)
