"""Which job cannot be done by its deadline, and what would help: a later deadline, or less work.

For each job alone:  minimise  short  subject to the model in which a part `short` of the job may be left undone, all
else kept. Without periods the time that it needs follows, window / (1 - short); with periods later deadlines are tried.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.plan import Conflict
from planner.optimize.arrays import fleet_arrays
from planner.optimize.model import Objective, build_model
from planner.optimize.prune import prune
from planner.optimize.search import run, search
from planner.optimize.verify import verify
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from planner.domain.jobs import Job
    from planner.domain.problem import FleetProblem, Horizon
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray
    from planner.optimize.settings import Assignment, SolverSettings

NOTHING_SHORT = 1e-6
"""Of a job: below this all of it is done."""
SAFETY = 1e-6
"""Relative: a deadline that is exact to the last digit would be missed by a solver's tolerance."""
ROUGH_GAP = 0.5
"""Close enough where all that matters is whether there is a plan."""


def job_conflicts(
    problem: FleetProblem, fleet: FleetArrays, assignment: Assignment, settings: Callable[[], SolverSettings]
) -> Iterator[Conflict]:
    """Yield each job that stands in the way alone, with the earliest deadline and the most work that are possible.

    Where none does so alone, but leaving work of several jobs undone gives a plan, these are named together.

    Parameters
    ----------
    fleet : the pruned problem's arrays.
    settings : for each search, within a common time limit.
    """
    by_name = {job.name: job for job in problem.jobs}
    alone = []
    for position, job in enumerate(fleet.jobs):
        price = np.full(len(fleet.jobs), np.inf)
        price[position] = 1.0
        short = _least_short(fleet, price, settings())
        if short is not None and short[position] > NOTHING_SHORT:
            alone.append(_conflict(problem, by_name[job.name], float(short[position]), assignment, settings))
    yield from alone or _together(fleet, settings())


def _least_short(fleet: FleetArrays, price: FloatArray, settings: SolverSettings) -> FloatArray | None:
    """Return the parts of jobs that are left undone at least, shape (jobs,); None if there is no plan even so."""
    nothing = Objective(per_replica=np.zeros(len(fleet.options)), per_instance=np.zeros(len(fleet.pool_offer)))
    model = build_model(fleet, nothing, short_cost=price)
    milp = model.freeze()
    raw = run(milp, settings)
    if raw.values is None:
        return None
    return np.clip(verify(milp, raw.values, stated_objective=raw.objective).values[model.short], 0.0, 1.0)


def _conflict(
    problem: FleetProblem,
    job: Job,
    short: float,
    assignment: Assignment,
    settings: Callable[[], SolverSettings],
) -> Conflict:
    deadline_s = _earliest_deadline(problem, job, short, assignment, settings)
    most = _rounded_down(job.amount * (1 - short) * (1 - SAFETY))
    ways = (
        [] if deadline_s is None else [f"deadline {format_duration(job.deadline_s)} -> {format_duration(deadline_s)}"]
    )
    if most > 0:
        ways.append(f"{job.amount:.6g} -> {most:.6g} {job.unit}")
    return Conflict(
        requirement=deadline_text(job),
        explanation="No plan does this work by its deadline together with everything else.",
        current=job.deadline_s,
        relaxed=deadline_s,
        unit="s",
        suggestion=f"{job.name}: " + (", or ".join(ways) if ways else "leave it out, or allow more capacity"),
    )


def deadline_text(job: Job) -> str:
    """Return a job's requirement in words: "nightly: 4e+09 tokens by 6 h"."""
    return f"{job.name}: {job.amount:.6g} {job.unit} by {format_duration(job.deadline_s)}"


def _rounded_down(amount: float) -> float:
    """Return the largest number of three digits that is not above `amount`."""
    if amount <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(amount)) - 2)
    return math.floor(amount / step) * step


def _earliest_deadline(
    problem: FleetProblem,
    job: Job,
    short: float,
    assignment: Assignment,
    settings: Callable[[], SolverSettings],
) -> float | None:
    """Return the earliest deadline, to whole periods or three digits, with which there is a plan; None if none has."""
    if problem.horizon is None:
        if short >= 1 - NOTHING_SHORT:
            return None
        window_s = job.window_s(None) / (1 - short) * (1 + SAFETY)
        step = 10.0 ** (math.floor(math.log10(window_s)) - 2)
        return job.release_s + math.ceil(window_s / step) * step
    later = _later_deadlines(job, problem.horizon)

    def works(deadline_s: float) -> bool:
        jobs = tuple(replace(each, deadline_s=deadline_s) if each is job else each for each in problem.jobs)
        changed = prune(replace(problem, jobs=jobs))
        return search(fleet_arrays(changed, assignment), replace(settings(), relative_gap=ROUGH_GAP)).fleet is not None

    if not later or not works(later[-1]):
        return None
    low, high = -1, len(later) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(later[middle]) else (middle, high)
    return later[high]


def _later_deadlines(job: Job, horizon: Horizon) -> list[float]:
    """Return the ends of periods between the deadline and the release of the next round, in order."""
    window_s = job.window_s(horizon)
    ends = [(period + 1) * horizon.step_s for period in range(horizon.n_periods)]
    length_s = horizon.length_s
    windows = {end: (end - job.release_s) % length_s or length_s for end in ends}
    return sorted((end for end in ends if windows[end] > window_s), key=lambda end: windows[end])


def _together(fleet: FleetArrays, settings: SolverSettings) -> Iterator[Conflict]:
    """Yield the jobs that are in the way only together, in the least relaxation of all of them."""
    if len(fleet.jobs) < 2:
        return
    short = _least_short(fleet, np.ones(len(fleet.jobs)), settings)
    if short is None:
        return
    changes = {
        job: f"{job.name}: {job.amount:.6g} -> {_rounded_down(job.amount * (1 - part) * (1 - SAFETY)):.6g} {job.unit}"
        for job, part in zip(fleet.jobs, short.tolist(), strict=True)
        if part > NOTHING_SHORT
    }
    for job in changes:
        yield Conflict(
            requirement=deadline_text(job),
            explanation="No plan does this work by its deadline, and less of it alone is not enough.",
            suggestion="all of: " + "; ".join(changes.values()),
        )
