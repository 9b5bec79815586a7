"""Which services are given back while nobody asks: a fleet is planned for the others, and the totals are compared.

What a service costs in the fleet is not what the fleet would cost less without it: instances are shared, minimums have
to be rented all the same, and what is left may be served by others. So every set of services to give back gets a fleet
of its own, where they are few; where they are many, one is given back or taken back after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, TypeVar

from planner.domain.plan import PlanStatus
from planner.domain.problem import Limit, ReplicaLoss, Resource, Scope, ShareCap
from planner.domain.scaling import FleetWithout
from planner.optimize import Termination, solve, verify_plan
from planner.optimize.settings import Clock
from planner.planning.scaling_ways import best_given_back
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem, Rule
    from planner.domain.scaling import ScaledService, ScalingChoice
    from planner.optimize import Assignment, SolverSettings
    from planner.planning.question import Question

_T = TypeVar("_T")

MOST_ENUMERATED = 4
"""Services of which all sets are planned for: 15 fleets beside the first."""
NOT_IN_TIME = "The time limit came before a fleet was planned for every set of services that could be given back."
MISSES = "The replay of its fleet misses an objective."
INTERRUPTED = "Ctrl-C came before it was decided what to give back: everything is always on."


# --- a question without some of its services -------------------------------------------------------------------------


def without(question: Question, services: Collection[str]) -> Question:
    """Return the question of a fleet for the other services, and all that could be asked instead of it."""
    names = frozenset(services)
    if not names:
        return question

    def after(make: Callable[[float], FleetProblem]) -> Callable[[float], FleetProblem]:
        return lambda value: problem_without(make(value), names)

    together, ways, replay = question.problem_with_all_bounds, question.disaggregation, question.replay
    if ways is not None:
        whole = ways.problem_with_whole
        ways = replace(
            ways,
            only=tuple(name for name in ways.only if name not in names),
            problem_with_whole=None if whole is None else lambda: problem_without(whole(), names),
            problem_with_network=after(ways.problem_with_network),
        )
    if replay is not None:
        replay = replace(
            replay,
            traffic=_others(replay.traffic, names),
            slos=_others(replay.slos, names),
            adapters=_others(replay.adapters, names),
        )
    return replace(
        question,
        problem=problem_without(question.problem, names),
        relaxations=tuple(
            replace(item, problem_with_bound=after(item.problem_with_bound))
            for item in question.relaxations
            if item.service not in names
        ),
        problem_with_all_bounds=None if together is None else after(together),
        disaggregation=ways,
        replay=replay,
    )


def problem_without(problem: FleetProblem, services: Collection[str]) -> FleetProblem:
    """Return the problem of a fleet for the other services; what runs today for these stops."""
    return replace(
        problem,
        demands=tuple(demand for demand in problem.demands if demand.service not in services),
        options=tuple(option for option in problem.options if option.service not in services),
        rules=tuple(rule for rule in problem.rules if _service_of(rule) not in services),
        tenancies=tuple(tenancy for tenancy in problem.tenancies if tenancy.service not in services),
    )


def _service_of(rule: Rule) -> str | None:
    return rule.service if isinstance(rule, ShareCap | ReplicaLoss) else None


def _others(found: Mapping[str, _T], names: Collection[str]) -> dict[str, _T]:
    return {name: value for name, value in found.items() if name not in names}


# --- what is compared ------------------------------------------------------------------------------------------------


def fleet_usd_per_hour(plan: Plan) -> float | None:
    """Return what a fleet costs with what its changes do; None where there is none."""
    if plan.cost_usd_per_hour is None:
        return None
    return plan.cost_usd_per_hour + (plan.change_usd_per_hour or 0.0)


@dataclass(slots=True, kw_only=True)
class _Fleets:
    """Fleets without some services, each planned once; all of them share one time limit."""

    question: Question
    ways: Mapping[str, ScaledService]
    """Of the services that could be given back, the cheapest that holds."""
    clock: Clock
    assignment: Assignment
    plans: dict[frozenset[str], Plan] = field(default_factory=dict)
    is_late: bool = False
    is_interrupted: bool = False

    def row(self, names: frozenset[str], plan: Plan, *, reason: str = "") -> FleetWithout:
        """Return what it comes to in all if `names` are given back and `plan` serves the others."""
        mine = [self.ways[name] for name in sorted(names)]
        return FleetWithout(
            given_back=tuple(sorted(names)),
            fleet_usd_per_hour=fleet_usd_per_hour(plan),
            given_back_usd_per_hour=math.fsum(way.cost_usd_per_hour for way in mine),
            missed_usd_per_hour=math.fsum(way.missed_usd_per_hour for way in mine),
            reason=reason,
        )

    def total(self, names: frozenset[str]) -> float:
        """Return what it comes to in all; infinite where no fleet was found for the others."""
        if names not in self.plans:
            if self.is_interrupted or self.clock.is_over:
                self.is_late = True
                return math.inf
            problem = problem_without(self.question.problem, names)
            plan = solve(problem, settings=self.clock.settings(), assignment=self.assignment)
            self.is_interrupted |= plan.solver.termination == Termination.INTERRUPTED.value
            self.plans[names] = plan
        total = self.row(names, self.plans[names]).total_usd_per_hour
        return math.inf if total is None else total

    def compare(self) -> None:
        """Plan for all sets of services, or for those that giving and taking back one after the other leads to."""
        names = sorted(self.ways)
        if len(names) <= MOST_ENUMERATED:
            for count in range(1, len(names) + 1):
                for chosen in combinations(names, count):
                    self.total(frozenset(chosen))
            return
        # One alone may save nothing of an instance that several share, so it begins at both ends.
        self._climb(frozenset())
        self._climb(frozenset(names))

    def _climb(self, now: frozenset[str]) -> None:
        """Give back or take back the one service that saves the most, until none saves anything."""
        while True:
            best = min((now ^ {name} for name in sorted(self.ways)), key=self.total)
            if not self.total(best) < self.total(now):
                return
            now = best


# --- the decision ----------------------------------------------------------------------------------------------------


def decided(
    question: Question,
    found: tuple[Question, Plan],
    *,
    prove: Callable[[Question, Plan], tuple[Question, Plan]],
    settings: SolverSettings,
    assignment: Assignment,
) -> tuple[Question, Plan]:
    """Return the plan with the services given back that make all of it cheaper, and what its fleet answers.

    Parameters
    ----------
    question : with all services.
    found : what `prove` returned for it: the plan with all of them always on.
    prove : replays a plan where that is wanted, and returns the one that holds with the question that it answers.
    """
    choices = {ask.name: ask(found[1]) for ask in question.scaling}
    decides = [ask.name for ask in question.scaling if ask.decides]
    positions = {name: position for name in decides if (position := best_given_back(choices[name].ways))}
    ways = {name: choices[name].ways[position] for name, position in positions.items()}
    fleets = _Fleets(question=question, ways=ways, clock=Clock(settings), assignment=assignment)
    fleets.plans[frozenset()] = found[1]
    fleets.is_interrupted = found[1].solver.termination == Termination.INTERRUPTED.value
    if not fleets.is_interrupted:
        fleets.compare()
    if fleets.is_interrupted:
        return found[0], _interrupted(found[1], choices, decides)
    names, best, rows = _best(question, fleets, found, prove, settings)
    for name, choice in choices.items():
        if name in names:
            choices[name] = replace(choice, chosen=positions[name], is_applied=True)
        elif name in decides:
            choices[name] = replace(choice, chosen=0)
        if fleets.is_late and name in decides:
            choices[name] = replace(choices[name], notes=(*choices[name].notes, NOT_IN_TIME))
    asked, plan = best
    plan = replace(
        plan,
        scale_to_zero=tuple(choices.values()),
        fleets_without=rows if ways else (),
        assumptions=(*plan.assumptions, *_assumptions(choices.values())),
    )
    verify_plan(asked.problem, plan)
    return asked, plan


def _best(
    question: Question,
    fleets: _Fleets,
    found: tuple[Question, Plan],
    prove: Callable[[Question, Plan], tuple[Question, Plan]],
    settings: SolverSettings,
) -> tuple[frozenset[str], tuple[Question, Plan], tuple[FleetWithout, ...]]:
    """Return the services to give back, what is left, and all that was compared; cheapest first, each is proven.

    A proof only makes a fleet dearer, so the first set whose total is above the best proven one ends the search.
    """
    nothing: frozenset[str] = frozenset()
    names, best, least = nothing, found, fleets.total(nothing)
    rows = {each: fleets.row(each, plan, reason=_no_fleet(plan)) for each, plan in fleets.plans.items()}
    if _misses(found[1]):
        rows[nothing] = replace(rows[nothing], reason=MISSES)
    ranked = sorted((fleets.total(each), len(each), sorted(each)) for each in fleets.plans if each)
    for total, _, members in ranked:
        is_held = not _misses(best[1])
        if is_held and not total < least - settings.relative_gap * least:
            break
        each = frozenset(members)
        if over := _over_budget(question.problem, rows[each]):
            rows[each] = replace(rows[each], reason=over)
            continue
        proven = prove(without(question, each), fleets.plans[each])
        rows[each] = fleets.row(each, proven[1])
        total_now = rows[each].total_usd_per_hour
        if total_now is None or (_misses(proven[1]) and is_held):
            rows[each] = replace(rows[each], reason=MISSES)
        elif not is_held or total_now < least - settings.relative_gap * least:
            names, best, least = each, proven, total_now
    return names, best, tuple(rows[each] for each in sorted(rows, key=lambda each: (len(each), sorted(each))))


def _misses(plan: Plan) -> bool:
    return plan.proof is not None and not plan.proof.holds


def _no_fleet(plan: Plan) -> str:
    if plan.cost_usd_per_hour is not None:
        return ""
    if plan.status is PlanStatus.INFEASIBLE:
        return "Limits and rules leave no fleet for the others."
    return "No fleet for the others was found in time."


def _over_budget(problem: FleetProblem, row: FleetWithout) -> str:
    """Return which budget of the whole fleet does not hold with what is given back; empty where all do."""
    spent = (row.fleet_usd_per_hour or 0.0) + row.given_back_usd_per_hour
    for limit in problem.limits:
        if _is_budget(limit) and spent > limit.bound * (1 + 1e-9):
            return f"The limit {limit.name} does not hold with what is given back."
    return ""


def _is_budget(limit: Limit) -> bool:
    return limit.resource is Resource.USD_PER_HOUR and limit.scope == Scope()


def _interrupted(plan: Plan, choices: Mapping[str, ScalingChoice], decides: Collection[str]) -> Plan:
    told = (
        replace(choice, chosen=0, notes=(*choice.notes, INTERRUPTED)) if name in decides else choice
        for name, choice in choices.items()
    )
    stopped = replace(plan.solver, termination=Termination.INTERRUPTED.value)
    return replace(plan, status=PlanStatus.FEASIBLE, solver=stopped, scale_to_zero=tuple(told))


def _assumptions(choices: Collection[ScalingChoice]) -> Iterator[str]:
    for choice in choices:
        if choice.is_applied:
            yield (
                f"What {choice.service} costs given back is an expectation, not a rent: the mean over"
                f" {choice.requests:,} requests in {format_duration(choice.judged_s)}, the judged half of its trace."
                " More requests cost more; that the offer can be had then is taken for granted."
            )
    if any(choice.is_applied for choice in choices):
        yield (
            "Limits, minimums, shares and power are those of the fleet, without what is given back; a budget of the"
            " whole fleet holds with it."
        )
