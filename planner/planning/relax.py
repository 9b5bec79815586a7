"""How far a service-level objective must be loosened before a plan exists, and before one at a fair price."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.hardware import replica_price
from planner.domain.plan import Conflict
from planner.optimize import Assignment, SolverSettings, solve
from planner.optimize.unserved import unserved_positions
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.domain.problem import FleetProblem
    from planner.domain.workload import Demand
    from planner.planning.question import Question, Relaxation

LONGEST_BOUND_S = 3600.0
"""An objective that would have to be looser than this is not what stands in the way."""
LARGEST_FACTOR = 1e6
"""Objectives that would all have to be looser than this are not what stands in the way."""
LARGEST_NETWORK_FACTOR = 1e3
"""Networks that would have to be faster by more than this are not what stands in the way."""
RELATIVE_STEP = 0.02
"""Bounds are found to 2%, and rounded up."""
ROUGH_GAP = 0.05
"""Close enough to tell whether there is a plan, and about what it costs."""
NOT_PLACED_FROM_USD_PER_HOUR = 5000.0
"""Adapters are not given places in dearer fleets, where whole replicas hardly matter and placing takes minutes."""
TIME_LIMIT_WITH_ADAPTERS_S = 3.0
"""For each plan in which every adapter needs its place."""
FAIR_COST_FACTOR = 1.5
"""At the edge of what is possible replicas serve next to nothing, so a plan may need thousands. A fair bound is one
whose plan costs at most this many times what it would without the objective."""


def slo_conflicts(question: Question, *, settings: SolverSettings, assignment: Assignment) -> tuple[Conflict, ...]:
    """Return, for each objective of an infeasible question, the smallest loosening of it alone that gives a plan.

    Where none of them alone is enough, the smallest factor by which all of them together must be loosened.
    """
    rough = replace(settings, relative_gap=ROUGH_GAP)
    if question.problem.tenancies:
        rough = replace(rough, time_limit_s=min(settings.time_limit_s, TIME_LIMIT_WITH_ADAPTERS_S))
    found = [_conflict(relaxation, rough, assignment) for relaxation in question.relaxations]
    alone = tuple(conflict for conflict in found if conflict is not None)
    if alone or question.problem_with_all_bounds is None:
        return alone
    together = _together(question.problem_with_all_bounds, rough, assignment)
    return () if together is None else (together,)


def disaggregation_conflicts(
    question: Question, *, settings: SolverSettings, assignment: Assignment
) -> tuple[Conflict, ...]:
    """Return the conflicts with prefill apart from decode: serving whole requests, or faster networks, gives a plan."""
    ways = question.disaggregation
    if ways is None:
        return ()
    rough = replace(settings, relative_gap=ROUGH_GAP)
    found: list[Conflict] = []
    if ways.problem_with_whole is not None:
        problem = ways.problem_with_whole()
        cost = _Answers(lambda _: problem, rough, assignment).cost(1.0)
        if cost is not None:
            change = "; ".join(f"{name}: disaggregate only -> allowed" for name in ways.only)
            found.append(
                Conflict(
                    requirement="; ".join(f"{name}: disaggregate only" for name in ways.only),
                    explanation="No plan serves all prompts and answers on replicas of their own.",
                    suggestion=change + _price(cost),
                )
            )
    answers = _Answers(ways.problem_with_network, rough, assignment)
    cost_at = answers.cost
    if answers.is_possible(LARGEST_NETWORK_FACTOR) and not answers.is_possible(1.0):
        factor = _smallest(answers.is_possible, 1.0, LARGEST_NETWORK_FACTOR)
        found.append(
            Conflict(
                requirement="network for KV caches",
                explanation="KV caches take too long to pass from prefill to decode replicas.",
                current=1.0,
                relaxed=factor,
                unit="times the network rate",
                suggestion=f"engine.kv_transfer x {factor:g}{_price(cost_at(factor))}",
            )
        )
    return tuple(found)


def _conflict(relaxation: Relaxation, settings: SolverSettings, assignment: Assignment) -> Conflict | None:
    answers = _Answers(relaxation.problem_with_bound, settings, assignment)
    slo, longest = relaxation.slo, max(LONGEST_BOUND_S, relaxation.slo.bound_s)
    cheapest = answers.cost(longest)
    if cheapest is None:
        return None
    most = FAIR_COST_FACTOR * cheapest
    edge_s = _smallest(answers.is_possible, slo.bound_s, longest)
    if answers.has_adapters:  # whose plans take seconds each: by what their requests cost at least
        most = FAIR_COST_FACTOR * answers.least_cost(longest)
        fair_s = _smallest(lambda bound_s: answers.least_cost(bound_s) <= most, edge_s, longest)
    else:
        fair_s = _smallest(lambda bound_s: answers.costs_at_most(most, bound_s), edge_s, longest)
    edge, fair = (f"{format_duration(bound_s)}{_price(answers.price(bound_s))}" for bound_s in (edge_s, fair_s))
    change = f"{relaxation.service}: {slo.metric} {slo.statistic} {format_duration(slo.bound_s)} -> {edge}"
    return Conflict(
        requirement=f"{relaxation.service}: {slo}",
        explanation="No plan meets this objective together with everything else that was asked.",
        current=slo.bound_s,
        relaxed=edge_s,
        unit="s",
        suggestion=change if fair == edge else f"{change}, or {fair}",
    )


def _together(
    problem_at: Callable[[float], FleetProblem], settings: SolverSettings, assignment: Assignment
) -> Conflict | None:
    answers = _Answers(problem_at, settings, assignment)
    cost_at = answers.cost
    if not answers.is_possible(LARGEST_FACTOR):
        return None
    factor = _smallest(answers.is_possible, 1.0, LARGEST_FACTOR)
    return Conflict(
        requirement="all objectives together",
        explanation="No plan meets them, and loosening one of them alone is not enough.",
        current=1.0,
        relaxed=factor,
        unit="times every bound",
        suggestion=f"every objective's bound x {factor:g}{_price(cost_at(factor))}",
    )


def _price(usd_per_hour: float | None) -> str:
    if usd_per_hour is None:
        return ""
    return f" (then about {usd_per_hour:,.{2 if usd_per_hour < 100 else 0}f} USD/h)"


class _Answers:
    """Whether there is a plan with a bound or factor, and about what it costs; each is found out once."""

    def __init__(
        self, problem_at: Callable[[float], FleetProblem], settings: SolverSettings, assignment: Assignment
    ) -> None:
        self._problem_at = problem_at
        self._settings = settings
        self._assignment = assignment
        self._problems: dict[float, FleetProblem | None] = {}
        self._costs: dict[float, float | None] = {}

    def is_possible(self, change: float) -> bool:
        """Return whether there is a plan; where nothing limits the fleet, there is one if all can be served."""
        problem = self._problem(change)
        return problem is not None and (not _is_limited(problem) or self.cost(change) is not None)

    def cost(self, change: float) -> float | None:
        """Return about what a plan costs in USD/h with this bound or factor; None if there is none."""
        if change not in self._costs:
            problem = self._problem(change)
            self._costs[change] = (
                None
                if problem is None
                else solve(problem, settings=self._settings, assignment=self._assignment).cost_usd_per_hour
            )
        return self._costs[change]

    @property
    def has_adapters(self) -> bool:
        """Whether any request is for an adapter."""
        return any(problem is not None and problem.tenancies for problem in self._problems.values())

    def least_cost(self, change: float) -> float:
        """Return what no plan is cheaper than in USD/h, at least an instance; infinite if there is none."""
        problem = self._problem(change)
        if problem is None:
            return math.inf
        cheapest = min(float(option.offer.price_usd_per_hour) for option in problem.options)
        return max(least_cost(problem), cheapest)

    def price(self, change: float) -> float | None:
        """Return about what a plan costs in USD/h; of thousands of replicas with adapters, what they cost at least."""
        if self.has_adapters and NOT_PLACED_FROM_USD_PER_HOUR < self.least_cost(change) < math.inf:
            return self.least_cost(change)
        return self.cost(change)

    def costs_at_most(self, most: float, change: float) -> bool:
        """Return whether a plan costs no more than `most`; often its requests alone tell that it does not."""
        problem = self._problem(change)
        if problem is None or least_cost(problem) > most:
            return False
        return (self.cost(change) or math.inf) <= most

    def _problem(self, change: float) -> FleetProblem | None:
        """Return the problem, None where some bucket has no option that can serve it: far cheaper than a solve."""
        if change not in self._problems:
            problem = self._problem_at(change)
            self._problems[change] = problem if all(_is_served(problem, demand) for demand in problem.demands) else None
        return self._problems[change]


def _is_limited(problem: FleetProblem) -> bool:
    """Return whether anything but the service of every request stands in the way of a plan."""
    return (
        bool(problem.limits or problem.rules or problem.jobs)
        or problem.horizon is not None
        or any(option.handover is not None for option in problem.options)
        or any(option.offer.available is not None for option in problem.options)
    )


def least_cost(problem: FleetProblem) -> float:
    """Return what no steady plan is cheaper than, in USD/h: every bucket's requests where they cost least, in parts.

    0 where that is no bound, or not worth working out.
    """
    if (
        problem.horizon is not None
        or problem.shed is not None
        or any(option.handover is not None for option in problem.options)
    ):
        return 0.0
    least = {demand.service: np.full(len(demand.buckets), np.inf) for demand in problem.demands}
    for option in problem.options:
        if option.service not in least:
            continue  # a job's own
        rps = option.usable_rps * problem.utilization_cap / (1 + problem.headroom_fraction)
        price = float(replica_price(option.offer, option.gpus_per_replica))
        served = rps > 0
        each = np.full(len(rps), np.inf)
        each[served] = price / rps[served]
        least[option.service] = np.minimum(least[option.service], each)
    return sum(
        bucket.rate_rps * float(usd)
        for demand in problem.demands
        for bucket, usd in zip(demand.buckets, least[demand.service], strict=True)
    )


def _is_served(problem: FleetProblem, demand: Demand) -> bool:
    """Return whether every bucket of `demand` has an option that can serve it; far cheaper than a solve."""
    return not unserved_positions(demand, problem)


def _smallest(works: Callable[[float], bool], low: float, high: float) -> float:
    """Return the smallest value that works, to 2% and rounded up to 3 digits; `high` is known to work."""
    if works(low):
        return low
    while high / low > 1.0 + RELATIVE_STEP:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if works(middle) else (middle, high)
    return _round_up(high)


def _round_up(value: float) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return round(math.ceil(value / step) * step, 12)
