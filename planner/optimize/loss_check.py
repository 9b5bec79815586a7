"""Part of the independent check of a plan: every loss that a rule names, one by one, and what the rest can serve."""

from __future__ import annotations

from collections import Counter
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from planner.domain.disaggregation import Role
from planner.domain.problem import InstanceLoss, ReplicaLoss, Survival
from planner.errors import SolverLiedError
from planner.optimize.backends import solve_milp
from planner.optimize.milp import MilpBuilder
from planner.optimize.settings import SolverSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem, Redundancy, ServingOption
    from planner.domain.workload import Demand

    Running = list[tuple[ServingOption, int]]
    """Options and how many replicas of each run."""

Key = TypeVar("Key", str, int)

TOLERANCE = 5e-6
"""Of the demand: what solvers accept, summed over a few rows."""


def check_losses(
    rule: Redundancy, problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]
) -> None:
    """Return if what each loss leaves of `plan` serves what `rule` asks for.

    One linear programme per loss and service says how much the replicas that are left serve.

    Raises
    ------
    SolverLiedError: naming the loss that the plan does not survive.
    """
    running = [(by_key[item.service, item.option], item.replicas) for item in plan.allocation]
    least: dict[tuple[int, ...], float] = {}
    for name, left in _after_losses(rule, running, plan):
        for demand in problem.demands:
            if isinstance(rule, ReplicaLoss) and rule.service != demand.service:
                continue
            mine = [(option, count) for option, count in left if option.service == demand.service]
            key = tuple(part for option, count in mine for part in (id(option), count))
            if key not in least:
                least[key] = least_served(demand, mine, problem.utilization_cap)
            if least[key] < rule.bound - TOLERANCE:
                raise SolverLiedError(
                    f"The plan does not hold: without {name} what is left of {demand.service} serves less than"
                    f" {rule.bound:g} of the demand.",
                    hint="Try another solver with --solver.",
                )


def _after_losses(rule: Redundancy, running: Running, plan: Plan) -> Iterator[tuple[str, Running]]:
    """Yield what is lost, and the replicas that are left, for every loss that `rule` names."""
    if isinstance(rule, Survival):
        for group in sorted({rule.facet.of(option.offer) for option, _ in running if rule.scope.covers(option.offer)}):
            yield (
                group,
                [
                    (option, count)
                    for option, count in running
                    if not (rule.scope.covers(option.offer) and rule.facet.of(option.offer) == group)
                ],
            )
    elif isinstance(rule, InstanceLoss):
        rented = {rental.offer: rental.instances for rental in plan.rentals}
        for chosen in _choices(rented, rule.count):
            yield (
                " and ".join(f"{count} x {name}" for name, count in chosen.items()),
                [
                    (option, max(0, count - chosen[option.offer.name] * _per_instance(option)))
                    for option, count in running
                ],
            )
    else:
        mine = {index: count for index, (option, count) in enumerate(running) if option.service == rule.service}
        for lost in _choices(mine, rule.count):
            yield (
                f"{rule.count} of {rule.service}",
                [(option, count - lost[index]) for index, (option, count) in enumerate(running)],
            )


def _choices(available: Mapping[Key, int], count: int) -> Iterator[Counter[Key]]:
    """Yield every way to take `count` of what is available, or all of it where there is less."""
    wanted = min(count, sum(available.values()))
    for chosen in combinations_with_replacement(sorted(available), wanted):
        taken = Counter(chosen)
        if all(number <= available[key] for key, number in taken.items()):
            yield taken


def _per_instance(option: ServingOption) -> int:
    return round(option.offer.gpus_per_instance) // option.gpus_per_replica


def least_served(demand: Demand, running: list[tuple[ServingOption, int]], cap: float) -> float:
    """Return the largest fraction f, at most 1, of every bucket's requests that `running` serves together."""
    if not demand.buckets:
        return 1.0
    size = len(demand.buckets)
    is_asked = np.array([bucket.rate_rps > 0 for bucket in demand.buckets])
    builder = MilpBuilder()
    f = builder.add_columns("f", 1, upper=1.0, cost=-1.0)
    points = list(dict.fromkeys(option.meeting_point for option, _ in running if option.meeting_point is not None))
    first_meeting = size + 2 * len(running)  # rows: buckets, loads, networks, then what is handed over, which is even
    n_rows = first_meeting + size * len(points)
    lower, upper = np.zeros(n_rows), np.full(n_rows, np.inf)
    upper[first_meeting:] = 0.0
    rows, columns, values = [], [], []
    for index, (option, count) in enumerate(running):
        able = np.flatnonzero(option.throughput_rps > 0)
        rates = np.array([demand.buckets[bucket].rate_rps for bucket in able])
        share = builder.add_columns("share", len(able))
        terms = [(np.full(len(able), size + index), -rates / option.usable_rps[able])]
        lower[size + index] = -cap * count
        if option.role is not Role.DECODE:
            terms.append((able, np.ones(len(able))))
        if option.handover is not None and option.meeting_point is not None:
            sign = 1.0 if option.role is Role.PREFILL else -1.0
            meeting = first_meeting + size * points.index(option.meeting_point) + able
            terms.append((meeting, np.full(len(able), sign)))
            busy = rates * option.handover.kv_bytes[able] / option.handover.bytes_per_s
            terms.append((np.full(len(able), size + len(running) + index), -busy))
            lower[size + len(running) + index] = -cap * count
        for row, value in terms:
            rows.append(row)
            columns.append(share)
            values.append(value)
    builder.add_rows(
        "left",
        rows=np.concatenate([np.arange(size), *rows]),
        columns=np.concatenate([np.repeat(f, size), *columns]),
        values=np.concatenate([-is_asked.astype(np.float64), *values]),
        lower=lower,
        upper=upper,
    )
    raw = solve_milp(builder.freeze(), SolverSettings())
    return 0.0 if raw.values is None else float(raw.values[f[0]])
