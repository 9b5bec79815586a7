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
from planner.planning.scaling_ways import always_on, best_given_back, chosen, vetoed, vetoed_to_give_back
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
MISSES = "Its fleet misses an objective in the replay."
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
    """Of the services that could be given back, the one to take."""
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
            learnt_usd_per_hour=math.fsum(way.learnt_usd_per_hour or 0.0 for way in mine),
            reason=reason,
        )

    def total(self, names: frozenset[str]) -> float:
        """Return what it comes to in all where it was learnt; infinite where no fleet was found for the others."""
        if names not in self.plans:
            if self.is_interrupted or self.clock.is_over:
                self.is_late = True
                return math.inf
            problem = problem_without(self.question.problem, names)
            plan = solve(problem, settings=self.clock.settings(), assignment=self.assignment)
            self.is_interrupted |= _is_interrupted(plan)
            self.plans[names] = plan
        total = self.row(names, self.plans[names]).learnt_total_usd_per_hour
        return math.inf if total is None else total

    def compare(self) -> None:
        """Plan for all sets of services, or for those that giving and taking back one after the other leads to."""
        names = sorted(self.ways)
        if len(names) <= MOST_ENUMERATED:
            for count in range(1, len(names) + 1):
                for given_back in combinations(names, count):
                    self.total(frozenset(given_back))
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
    found: Plan,
    *,
    prove: Callable[[Question, Plan], tuple[Question, Plan]],
    settings: SolverSettings,
    assignment: Assignment,
) -> tuple[Question, Plan]:
    """Return the plan with the services given back that make all of it cheaper, and the question of its fleet.

    Parameters
    ----------
    question : with all services.
    found : its plan, with all of them always on, not yet proven; or an infeasible one.
    prove : replays a plan where that is wanted, and returns the one that holds with the question that it answers.
    """
    decides = {ask.name for ask in question.scaling if ask.decides}
    if found.cost_usd_per_hour is None and not decides:
        return question, found
    choices = {ask.name: ask(found) for ask in question.scaling}
    positions = {name: best_given_back(choice.ways) for name, choice in choices.items() if name in decides}
    ways = {name: choices[name].ways[position] for name, position in positions.items() if position}
    fleets = _Fleets(question=question, ways=ways, clock=Clock(settings), assignment=assignment)
    fleets.plans[frozenset()] = found
    fleets.is_interrupted = _is_interrupted(found)
    if not fleets.is_interrupted:
        fleets.compare()
    rows: tuple[FleetWithout, ...] = ()
    if fleets.is_interrupted:
        names, asked, plan = frozenset[str](), question, _interrupted(found)
    else:
        names, (asked, plan), rows = _best(question, fleets, prove, settings.relative_gap)
    note = INTERRUPTED if fleets.is_interrupted else NOT_IN_TIME if fleets.is_late else ""
    for name, choice in choices.items():
        if name in names:
            choices[name] = replace(choice, chosen=positions[name], is_applied=True)
        else:
            own = (always_on(plan, name), *choice.ways[1:])
            choices[name] = replace(choice, ways=own, chosen=0 if name in decides else chosen(own), vetoed=vetoed(own))
        if name in decides:
            choices[name] = replace(choices[name], vetoed=vetoed_to_give_back(choice.ways))
        if note and name in decides:
            choices[name] = replace(choices[name], notes=(*choice.notes, note))
    if plan.cost_usd_per_hour is None:
        return question, found  # and what stands in its way is another matter
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
    prove: Callable[[Question, Plan], tuple[Question, Plan]],
    gap: float,
) -> tuple[frozenset[str], tuple[Question, Plan], tuple[FleetWithout, ...]]:
    """Return the services to give back, the proven plan for the others, and all that was compared.

    Sets are ranked by their totals where ways were learnt; where they were judged the total can only speak against one,
    by not being below that of always on. A proof only makes a fleet dearer, so sets are proven in this order until the
    next one is dearer than the best of these. Giving back has to save more than the gap within which fleets are known.
    """
    nothing: frozenset[str] = frozenset()
    rows = {each: fleets.row(each, plan, reason=_no_fleet(plan)) for each, plan in fleets.plans.items()}

    def rank(each: frozenset[str]) -> tuple[float, int, list[str]]:
        total = rows[each].learnt_total_usd_per_hour
        return (math.inf if total is None else total * (1 + gap * bool(each)), len(each), sorted(each))

    names, best, always = nothing, None, None
    for each in sorted(rows, key=rank):
        if best is not None and rank(each) > rank(names):
            break
        if rows[each].fleet_usd_per_hour is None:
            continue
        over = _over_budget(question.problem, fleets.plans[each], rows[each])
        if against := over or _against(rows[each], rows[nothing]):
            rows[each] = replace(rows[each], reason=against)
            continue
        asked, plan = prove(without(question, each), fleets.plans[each])
        always = always if each else (asked, plan)
        is_missed = plan.proof is not None and not plan.proof.holds
        rows[each] = fleets.row(each, plan, reason=MISSES if is_missed else "")
        if not is_missed and (against := _against(rows[each], rows[nothing])):
            rows[each] = replace(rows[each], reason=against)
        elif not is_missed and (best is None or rank(each) < rank(names)):
            names, best = each, (asked, plan)
        if _is_interrupted(plan):
            names, best = (each, (asked, plan)) if best is None else (names, (best[0], _interrupted(best[1])))
            break
    if best is None:  # none holds, so it stays as it is
        names, best = nothing, always or prove(question, fleets.plans[nothing])
    return names, best, tuple(rows[each] for each in sorted(rows, key=lambda each: (len(each), sorted(each))))


def _against(row: FleetWithout, always_on: FleetWithout) -> str:
    """Return that the judged halves speak against a set, where always on has a fleet that holds; empty if not."""
    now, then = row.total_usd_per_hour, always_on.total_usd_per_hour
    if not row.given_back or always_on.reason or now is None or then is None or now < then:
        return ""
    return "It costs no less than always on where it was judged."


def _is_interrupted(plan: Plan) -> bool:
    return plan.solver.termination == Termination.INTERRUPTED.value


def _no_fleet(plan: Plan) -> str:
    if plan.cost_usd_per_hour is not None:
        return ""
    if plan.status is PlanStatus.INFEASIBLE:
        return "Limits and rules leave no fleet for the others."
    return "No fleet for the others was found in time."


def _over_budget(problem: FleetProblem, plan: Plan, row: FleetWithout) -> str:
    """Return which budget of the whole fleet does not hold with what is given back; empty where all do."""
    spent = (plan.cost_usd_per_hour or 0.0) + row.given_back_usd_per_hour
    for limit in problem.limits:
        if row.given_back and _is_budget(limit) and spent > limit.bound * (1 + 1e-9):
            return f"The limit {limit.name} does not hold with what is given back."
    return ""


def _is_budget(limit: Limit) -> bool:
    return limit.resource is Resource.USD_PER_HOUR and limit.scope == Scope()


def _interrupted(plan: Plan) -> Plan:
    stopped = replace(plan.solver, termination=Termination.INTERRUPTED.value)
    return replace(plan, status=PlanStatus.FEASIBLE, solver=stopped)


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
