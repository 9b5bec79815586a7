"""Buckets that no option can serve, and jobs that none can do: the first thing that makes a request infeasible."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.disaggregation import Role
from planner.domain.plan import Conflict
from planner.optimize.naming import bucket_name
from planner.optimize.scenarios import in_scenario, scenarios_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.domain.jobs import Job
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Demand

_REASONS_SHOWN = 3


ADAPTERS_NAMED = 3
"""Of those that nothing serves."""


def unserved_conflicts(problem: FleetProblem) -> tuple[Conflict, ...]:
    """Return one conflict for every bucket that no option serves, and every job that none does, in their order.

    Groups of adapters that nothing serves for the same reason are one conflict.
    """
    cases = [("", problem)]
    cases += [
        (f"in the scenario {each.name}, ", in_scenario(problem, each))
        for each in scenarios_of(problem)
        if each.bound > 0
    ]
    buckets = tuple(
        conflict for when, then in cases for demand in then.demands for conflict in _of_demand(when, demand, then)
    )
    return buckets + tuple(_undone(job, problem) for job in problem.jobs if not _can_be_done(job, problem))


def _of_demand(when: str, demand: Demand, then: FleetProblem) -> list[Conflict]:
    """Return the conflicts of one service's buckets, or of its adapters."""
    options = [option for option in then.options if option.service == demand.service]
    found = {index: _conflict(when, demand, index, options) for index in unserved_positions(demand, then)}
    tenancy = next((each for each in then.tenancies if each.service == demand.service), None)
    if tenancy is None:
        return list(found.values())
    alike: dict[str, list[int]] = {}
    for index, conflict in found.items():
        alike.setdefault(conflict.explanation, []).append(index)
    merged = []
    for groups in alike.values():
        # Several sizes of one group are the same adapters.
        alike_groups = dict.fromkeys(demand.buckets[index].group for index in groups)
        names = [tenant.name for group in alike_groups for tenant in tenancy.members(group)]
        more = f" and {len(names) - ADAPTERS_NAMED} more" if len(names) > ADAPTERS_NAMED else ""
        what = f"{demand.service}: adapters {', '.join(names[:ADAPTERS_NAMED])}{more}"
        merged.append(replace(found[groups[0]], requirement=what))
    return merged


def _can_be_done(job: Job, problem: FleetProblem) -> bool:
    return any(
        np.any(option.throughput_rps > 0) and (option.service == job.name or option.job_rates.get(job.name, 0.0) > 0)
        for option in problem.options
    )


def _undone(job: Job, problem: FleetProblem) -> Conflict:
    options = [option for option in problem.options if option.service == job.name]
    return Conflict(
        requirement=f"{job.name}: {job.amount:.6g} {job.unit}",
        explanation=f"None of the {len(options)} options of {job.name} can do it.{_because(options, 0)}"
        if options
        else f"There is no option at all for {job.name}.",
        suggestion="Allow larger or more GPUs, providers or engine configurations, or leave the job out.",
    )


def unserved_positions(demand: Demand, problem: FleetProblem) -> list[int]:
    """Return which buckets of `demand` no option serves whole, and no two options of a meeting point in two parts."""
    served = np.zeros(len(demand.buckets), dtype=np.bool_)
    stages: dict[object, dict[Role, NDArray[np.bool_]]] = {}
    for option in problem.options:
        if option.service != demand.service:
            continue
        able = option.throughput_rps > 0
        if option.meeting_point is None:
            served |= able
            continue
        here = stages.setdefault(option.meeting_point, {})
        here[option.role] = here.get(option.role, np.zeros_like(able)) | able
    for here in stages.values():
        if len(here) == len((Role.PREFILL, Role.DECODE)):
            served |= here[Role.PREFILL] & here[Role.DECODE]
    return np.flatnonzero(~served).tolist()


def _conflict(when: str, demand: Demand, index: int, options: list[ServingOption]) -> Conflict:
    name = when + bucket_name(demand.service, demand.buckets[index])
    if not options:
        return Conflict(
            requirement=name,
            explanation=f"There is no option at all for {demand.service}.",
            suggestion="Allow more GPUs, providers or engine configurations.",
        )
    return Conflict(
        requirement=name,
        explanation=f"None of the {len(options)} options of {demand.service} can serve it within its objectives."
        f"{_because(options, index)}",
        suggestion="Loosen the service's objectives, allow larger or more GPUs, or leave such requests out.",
    )


def _because(options: list[ServingOption], index: int) -> str:
    """Return in words what bounds options at a bucket, the most frequent first; empty if that is not known."""
    reasons = Counter(option.limiting[index] for option in options if option.limiting)
    shown = reasons.most_common(_REASONS_SHOWN)
    words = ", ".join(f"{reason} ({count})" for reason, count in shown if reason)
    others = f", and {len(reasons) - len(shown)} more reasons" if len(reasons) > len(shown) else ""
    return f" What bounds them: {words}{others}." if words else ""
