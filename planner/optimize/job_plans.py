"""Jobs as people read them: when and where each is done, and how much of it beside requests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.plan import JobPlan, JobRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.domain.jobs import Job
    from planner.domain.plan import Allocation
    from planner.domain.problem import FleetProblem, Horizon
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.search import Fleet


def job_plans(
    problem: FleetProblem, fleet: FleetArrays, chosen: Fleet, *, keys: list[str], allocation: Sequence[Allocation]
) -> tuple[JobPlan, ...]:
    """Return the plan of every job, in the request's order.

    allocation : of the whole plan; the job's own replicas bear their cost there.
    """
    position = {job.name: index for index, job in enumerate(fleet.jobs)}
    return tuple(
        _job_plan(
            job,
            fleet,
            chosen,
            np.flatnonzero((fleet.work.job == position[job.name]) & (chosen.work > 0)),
            keys=keys,
            own_usd_per_hour=sum(item.cost_usd_per_hour for item in allocation if item.service == job.name),
        )
        for job in problem.jobs
    )


def _job_plan(
    job: Job, fleet: FleetArrays, chosen: Fleet, mine: IntArray, *, keys: list[str], own_usd_per_hour: float
) -> JobPlan:
    work, n_options = fleet.work, len(fleet.options) // fleet.n_periods
    periods = work.option[mine] // n_options
    beside = ~work.is_own[mine]
    return JobPlan(
        job=job.name,
        amount=job.amount,
        unit=job.unit,
        release_s=job.release_s,
        deadline_s=job.deadline_s,
        finish_s=_finish_s(job, fleet.horizon, periods, work.order[mine]),
        harvested_fraction=float(chosen.work[mine][beside].sum()),
        own_usd_per_hour=own_usd_per_hour,
        runs=tuple(
            JobRun(
                period=None if fleet.horizon is None else period,
                service=fleet.options[option].service,
                option=keys[option],
                amount=job.amount * part,
                busy_replicas=load * part,
            )
            for period, option, part, load in sorted(
                zip(
                    periods.tolist(),
                    work.option[mine].tolist(),
                    chosen.work[mine].tolist(),
                    work.load[mine].tolist(),
                    strict=True,
                )
            )
        ),
    )


def _finish_s(job: Job, horizon: Horizon | None, periods: IntArray, order: FloatArray) -> float:
    """Return when the last of `periods` after the release ends; the deadline if that lies in any of them."""
    if horizon is None or math.ceil(job.deadline_s / horizon.step_s - 1e-9) - 1 in periods:
        return job.deadline_s
    return (int(periods[np.argmax(order)]) + 1) * horizon.step_s
