"""Part of the independent check of a plan: its jobs, from the plan's own runs, replicas and routing weights."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from planner.errors import SolverLiedError
from planner.optimize.jobs import work_cap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.domain.jobs import Job
    from planner.domain.plan import Allocation, JobPlan, JobRun, PeriodAllocation, PeriodRoute, Plan, Route
    from planner.domain.problem import FleetProblem, Horizon, ServingOption

TOLERANCE = 1e-8
"""Relative, of a job's amount and of replicas."""

Place = tuple[int, str, str]
"""Period, service and option."""


def check_jobs(problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]) -> None:
    """Return if every job is done in its window, by replicas that are there and that requests leave room on.

    Raises
    ------
    SolverLiedError: naming the job or the option that does not hold.
    """
    stated = {item.job: item for item in plan.jobs}
    jobs = {job.name: job for job in problem.jobs}
    if len(stated) != len(plan.jobs) or set(stated) != set(jobs):
        _fail(f"it does the jobs {sorted(item.job for item in plan.jobs)}, and the request has {sorted(jobs)}")
    replicas, busy = _replicas(plan), _request_loads(problem, plan, by_key)
    full: dict[Place, float] = {place: busy[place] / _request_cap(problem, by_key[place[1:]]) for place in busy}
    for name, item in stated.items():
        for run in item.runs:
            place = (run.period or 0, run.service, run.option)
            load = _load(jobs[name], run, problem, by_key)
            is_own = run.service == name
            share = load / (1.0 if is_own else work_cap(problem, by_key[run.service, run.option]))
            if abs(share - run.busy_replicas) > 10 * TOLERANCE * max(share, 1.0):
                _fail(f"{run.amount:g} {item.unit} of {name} take {share!r} replicas, not {run.busy_replicas!r}")
            full[place] = full.get(place, 0.0) + share
            if full[place] > replicas.get(place, 0) * (1 + TOLERANCE):
                _fail(f"{run.service} on {run.option} has {full[place]!r} replicas' work, and {replicas.get(place, 0)}")
        _check_amounts(jobs[name], item, problem.horizon)
        paid = sum(row.cost_usd_per_hour for row in plan.allocation if row.service == name)
        if abs(paid - item.own_usd_per_hour) > TOLERANCE * max(paid, 1.0):
            _fail(f"the replicas of {name} cost {paid!r} USD/h, and it says {item.own_usd_per_hour!r}")
    done = work_loads(problem, plan, by_key)
    for place, stated_load in _stated_loads(plan).items():
        if abs(done.get(place, 0.0) - stated_load) > 10 * TOLERANCE * max(stated_load, 1.0):
            _fail(f"{place[1]} on {place[2]} does {done.get(place, 0.0)!r} replicas' work, not {stated_load!r}")


def _fail(what: str) -> None:
    raise SolverLiedError(f"The plan does not hold: {what}.", hint="Try another solver with --solver.")


def _replicas(plan: Plan) -> dict[Place, int]:
    if not plan.schedule:
        return {(0, item.service, item.option): item.replicas for item in plan.allocation}
    return {
        (index, item.service, item.option): item.replicas
        for index, period in enumerate(plan.schedule)
        for item in period.allocation
    }


def _stated_loads(plan: Plan) -> dict[Place, float]:
    """Return the mean load of work that the plan states of each option."""
    parts: list[Sequence[Allocation | PeriodAllocation]]
    parts = [period.allocation for period in plan.schedule] or [plan.allocation]
    return {
        (index, item.service, item.option): item.work_utilization * item.replicas
        for index, allocation in enumerate(parts)
        for item in allocation
    }


def _request_cap(problem: FleetProblem, option: ServingOption) -> float:
    return problem.utilization_cap * option.utilization_cap


def _request_loads(
    problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]
) -> dict[Place, float]:
    """Return the replicas that requests keep busy on average: rate x weight / largest rate."""
    position = {
        (demand.service, bucket.row, bucket.column): index
        for demand in problem.demands
        for index, bucket in enumerate(demand.buckets)
    }
    loads: dict[Place, float] = defaultdict(float)
    periods: list[Sequence[Route | PeriodRoute]] = [period.routing for period in plan.schedule] or [plan.routing]
    for index, routing in enumerate(periods):
        for route in routing:
            at = position[route.service, route.row, route.column]
            for key, weight in route.weights.items():
                if weight > 0:
                    rate = float(by_key[route.service, key].throughput_rps[at])
                    loads[index, route.service, key] += route.rate_rps * weight / rate
    return loads


def _load(job: Job, run: JobRun, problem: FleetProblem, by_key: Mapping[tuple[str, str], ServingOption]) -> float:
    """Return the replicas that a run keeps busy while the job may run in that period."""
    option = by_key.get((run.service, run.option))
    is_own = run.service == job.name
    rate = 0.0
    if option is not None:
        rate = float(option.throughput_rps[0]) if is_own else option.job_rates.get(job.name, 0.0)
    seconds = _seconds(job, run.period, problem.horizon)
    if rate <= 0 or seconds <= 0:
        _fail(f"{job.name} runs on {run.service} on {run.option} in period {run.period}, where it cannot")
    return run.amount / (rate * seconds * (1.0 if is_own else job.harvest_efficiency))


def work_loads(
    problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]
) -> dict[Place, float]:
    """Return the replicas that work keeps busy on average over each period, or over the job's whole window."""
    jobs = {job.name: job for job in problem.jobs}
    loads: dict[Place, float] = defaultdict(float)
    for item in plan.jobs:
        job = jobs[item.job]
        for run in item.runs:
            part = 1.0
            if problem.horizon is not None:
                part = _seconds(job, run.period, problem.horizon) / problem.horizon.step_s
            loads[run.period or 0, run.service, run.option] += _load(job, run, problem, by_key) * part
    return loads


def _parts(job: Job, period: int, horizon: Horizon) -> list[tuple[float, float]]:
    """Return the parts of a period between the job's release and its deadline, in this round or the next."""
    whole = horizon.n_periods * horizon.step_s
    due = job.deadline_s + (whole if job.deadline_s <= job.release_s else 0.0)
    begins = (period * horizon.step_s, period * horizon.step_s + whole)
    parts = [(max(begin, job.release_s), min(begin + horizon.step_s, due)) for begin in begins]
    return [(begin, end) for begin, end in parts if end > begin]


def _seconds(job: Job, period: int | None, horizon: Horizon | None) -> float:
    """Return for how long the job may run in a period; in a steady state in all."""
    if horizon is None or period is None:
        return job.deadline_s - job.release_s
    return sum(end - begin for begin, end in _parts(job, period, horizon))


def _check_amounts(job: Job, item: JobPlan, horizon: Horizon | None) -> None:
    """All of the job is done, by the time that the plan says, as much beside requests as it says."""
    total = sum(run.amount for run in item.runs)
    if abs(total - job.amount) > TOLERANCE * job.amount or any(run.amount <= 0 for run in item.runs):
        _fail(f"it does {total!r} {job.unit} of {job.name}, which has {job.amount!r}")
    asked = (job.amount, job.unit, job.release_s, job.deadline_s)
    if (item.amount, item.unit, item.release_s, item.deadline_s) != asked:
        _fail(f"it states another amount, unit, release or deadline of {job.name} than the request")
    beside = sum(run.amount for run in item.runs if run.service != job.name)
    if abs(beside - item.harvested_fraction * job.amount) > TOLERANCE * job.amount:
        _fail(f"{beside!r} {job.unit} of {job.name} are done beside requests, not {item.harvested_fraction!r} of it")
    if abs(_finish(job, item, horizon) - item.finish_s) > TOLERANCE * max(item.finish_s, 1.0):
        _fail(f"{job.name} ends at {_finish(job, item, horizon):g} s, and it says {item.finish_s:g} s")


def _finish(job: Job, item: JobPlan, horizon: Horizon | None) -> float:
    """Return the latest time that any run may last to, on the horizon's clock."""
    if horizon is None:
        return job.deadline_s
    whole = horizon.n_periods * horizon.step_s
    last = max(_parts(job, run.period or 0, horizon)[-1][1] for run in item.runs)
    return last - whole if last > whole else last
