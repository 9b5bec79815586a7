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

from planner.domain.plan import Conflict, PlanStatus
from planner.domain.problem import Limit, ReplicaLoss, Resource, Scope, ShareCap
from planner.domain.scaling import FleetWithout
from planner.optimize import Termination, solve, verify_plan
from planner.optimize.conflicts import change, requirement, round_up
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

BUDGET_TOLERANCE = 1e-9
MOST_ENUMERATED = 4
"""Services of which all sets are planned for: 15 fleets beside the first."""
NOT_IN_TIME = "The time limit came before a fleet was planned for every set of services that could be given back."
JUDGED_DEARER = "It costs no less than always on where it was judged."
MISSES = "Its fleet misses an objective in the replay."
NOT_LEARNT = "No saving beyond the gap where it was learnt."
NOT_REACHED = "Ctrl-C came before its turn."
NOTHING: frozenset[str] = frozenset()
"""To give back: all is always on."""
INTERRUPTED = "Ctrl-C came before it was decided what to give back: everything is always on."


# --- a question without some of its services -------------------------------------------------------------------------


def without(question: Question, services: Collection[str], *, usd_per_hour: float) -> Question:
    """Return the question of a fleet for the other services, and all that could be asked instead of it.

    usd_per_hour : what giving `services` back costs.
    """
    names = frozenset(services)
    if not names:
        return question

    def left(problem: FleetProblem) -> FleetProblem:
        return problem_without(problem, names, usd_per_hour=usd_per_hour)

    def after(make: Callable[[float], FleetProblem]) -> Callable[[float], FleetProblem]:
        return lambda value: left(make(value))

    together, ways, replay = question.problem_with_all_bounds, question.disaggregation, question.replay
    if ways is not None:
        whole = ways.problem_with_whole
        ways = replace(
            ways,
            only=tuple(name for name in ways.only if name not in names),
            problem_with_whole=None if whole is None else lambda: left(whole()),
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
        problem=left(question.problem),
        relaxations=tuple(
            replace(item, problem_with_bound=after(item.problem_with_bound))
            for item in question.relaxations
            if item.service not in names
        ),
        problem_with_all_bounds=None if together is None else after(together),
        disaggregation=ways,
        replay=replay,
    )


def problem_without(problem: FleetProblem, services: Collection[str], *, usd_per_hour: float = 0.0) -> FleetProblem:
    """Return the problem of a fleet for the other services; what runs today for these stops.

    usd_per_hour : what giving them back costs: budgets of the whole fleet have so much less left for it.
    """
    return replace(
        problem,
        limits=tuple(_left(limit, usd_per_hour) if _is_budget(limit) else limit for limit in problem.limits),
        demands=tuple(demand for demand in problem.demands if demand.service not in services),
        options=tuple(option for option in problem.options if option.service not in services),
        rules=tuple(rule for rule in problem.rules if _service_of(rule) not in services),
        tenancies=tuple(tenancy for tenancy in problem.tenancies if tenancy.service not in services),
    )


def _left(budget: Limit, usd_per_hour: float) -> Limit:
    left = budget.bound - usd_per_hour
    return replace(
        budget, bound=left if left < -BUDGET_TOLERANCE * budget.bound else max(left, 0.0), beside=usd_per_hour
    )


def _is_budget(limit: Limit) -> bool:
    return limit.resource is Resource.USD_PER_HOUR and limit.scope == Scope()


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
    at_stake: Mapping[str, float]
    """Service that may be given back -> what all its requests would be worth if they missed, USD/h."""
    plans: dict[frozenset[str], Plan] = field(default_factory=dict)
    over: dict[frozenset[str], str] = field(default_factory=dict)
    """Sets that no fleet keeps a budget with -> which budget; their plans are without budgets."""
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
            fleet_missed_usd_per_hour=math.fsum(
                always_on(plan, name, at_stake_usd_per_hour=at_stake).missed_usd_per_hour
                for name, at_stake in self.at_stake.items()
                if name not in names
            ),
            is_replayed=plan.proof is not None,
            reason=reason,
        )

    def usd_per_hour(self, names: frozenset[str]) -> float:
        """Return what is paid for what is given back."""
        return math.fsum(self.ways[name].cost_usd_per_hour for name in sorted(names))

    def total(self, names: frozenset[str]) -> float:
        """Return what it comes to in all where it was learnt; infinite where no fleet was found for the others."""
        if names not in self.plans:
            if self.is_interrupted or self.clock.is_over:
                self.is_late = True
                return math.inf
            self.plans[names] = self._planned(names)
        if names in self.over:
            return math.inf
        total = self.row(names, self.plans[names]).learnt_total_usd_per_hour
        return math.inf if total is None else total

    def _planned(self, names: frozenset[str]) -> Plan:
        """Return the fleet for the others; where a budget leaves none, the one without budgets: it may be a way out."""
        problem, spent = self.question.problem, self.usd_per_hour(names)
        budgets = sorted(filter(_is_budget, problem.limits), key=lambda limit: limit.bound)
        plan = None
        if all(spent <= limit.bound * (1 + BUDGET_TOLERANCE) for limit in budgets):
            plan = self._solved(problem_without(problem, names, usd_per_hour=spent))
            if not budgets or plan.status is not PlanStatus.INFEASIBLE:
                return plan
        free = replace(problem, limits=tuple(limit for limit in problem.limits if not _is_budget(limit)))
        beyond = self._solved(problem_without(free, names))
        if beyond.cost_usd_per_hour is None and plan is not None:
            return plan
        self.over[names] = budgets[0].name
        return beyond

    def _solved(self, problem: FleetProblem) -> Plan:
        plan = solve(problem, settings=self.clock.settings(), assignment=self.assignment)
        self.is_interrupted |= _is_interrupted(plan)
        return plan

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


def budget_with_given_back(problem: FleetProblem, plan: Plan) -> Conflict | None:
    """Return what the only budget of the whole fleet has to be for a plan that gives services back; None if none.

    plan : infeasible, with what was compared.
    """
    budgets = [limit for limit in problem.limits if _is_budget(limit)]
    totals = [
        (row.fleet_usd_per_hour + row.given_back_usd_per_hour, row.given_back)
        for row in plan.fleets_without
        if row.fleet_usd_per_hour is not None
    ]
    if len(budgets) != 1 or not totals:
        return None
    (budget,), (usd_per_hour, names) = budgets, min(totals)
    relaxed = round_up(Resource.USD_PER_HOUR, usd_per_hour)
    return Conflict(
        requirement=requirement(budget),
        explanation=f"With {', '.join(names)} given back while nobody asks a plan costs no more in all, before any"
        " replay.",
        current=budget.bound,
        relaxed=relaxed,
        unit="USD/h",
        suggestion=f"{change(budget, relaxed)}, with {', '.join(names)} given back",
    )


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
    at_stake = {ask.name: ask.at_stake_usd_per_hour for ask in question.scaling}
    fleets = _Fleets(question=question, ways=ways, clock=Clock(settings), assignment=assignment, at_stake=at_stake)
    fleets.plans[frozenset()] = found
    fleets.is_interrupted = _is_interrupted(found)
    if not fleets.is_interrupted:
        fleets.compare()
    rows: tuple[FleetWithout, ...] = ()
    if fleets.is_interrupted:
        names, asked, plan, beside = frozenset[str](), question, _interrupted(found), found
    else:
        proofs = _Proofs(fleets=fleets, prove=prove, gap=settings.relative_gap)
        names, (asked, plan) = proofs.best()
        rows, beside = proofs.compared(names), proofs.plan_of(frozenset())
    if plan.cost_usd_per_hour is None:
        return question, replace(found, fleets_without=rows if ways else ())  # and what stands in its way is not here
    note = INTERRUPTED if fleets.is_interrupted else NOT_IN_TIME if fleets.is_late else ""
    for name, choice in choices.items():
        first = always_on(beside if name in names else plan, name, at_stake_usd_per_hour=at_stake[name])
        own = (first, *choice.ways[1:])
        if name in names:
            choices[name] = replace(choice, ways=own, chosen=positions[name], is_applied=True)
        else:
            choices[name] = replace(choice, ways=own, chosen=0 if name in decides else chosen(own), vetoed=vetoed(own))
        if name in decides:
            choices[name] = replace(choices[name], vetoed=vetoed_to_give_back(choice.ways))
        if note and name in decides:
            choices[name] = replace(choices[name], notes=(*choice.notes, note))
    plan = replace(
        plan,
        scale_to_zero=tuple(choices.values()),
        fleets_without=rows if ways else (),
        assumptions=(*plan.assumptions, *_assumptions(choices.values())),
    )
    verify_plan(asked.problem, plan)
    return asked, plan


@dataclass(slots=True, kw_only=True)
class _Proofs:
    """Sets of services to give back, and the fleets for the others that were proven.

    Sets are ranked by their totals where ways were learnt; where they were judged the total can only speak against one,
    by not being below that of always on, which is proven first. A proof mostly makes a fleet dearer, so what is dearer
    before it is not proven. Giving back has to save more than the gap within which fleets are known.
    """

    fleets: _Fleets
    prove: Callable[[Question, Plan], tuple[Question, Plan]]
    gap: float
    rows: dict[frozenset[str], FleetWithout] = field(init=False)
    proven: dict[frozenset[str], tuple[Question, Plan]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with what was planned."""
        self.rows = {
            each: self.fleets.row(each, plan, reason=_no_fleet(plan, self.fleets.over.get(each)))
            for each, plan in self.fleets.plans.items()
        }

    def plan_of(self, names: frozenset[str]) -> Plan:
        """Return the fleet without `names`, proven where that was done."""
        return self.proven[names][1] if names in self.proven else self.fleets.plans[names]

    def best(self) -> tuple[frozenset[str], tuple[Question, Plan]]:
        """Return the services to give back, and the proven plan for the others with its question.

        Sets are proven in the order of their totals until the next one is dearer than the best of these. If no fleet
        holds it stays always on, or where that has no fleet the first one that misses is told.
        """
        best: frozenset[str] | None = None
        order = sorted(self.rows, key=self._rank)
        if not self.rows[NOTHING].reason:
            self._prove(NOTHING)
        for each in order:
            if self.is_interrupted:
                break
            is_dearer = best is not None and self._rank(each) > self._rank(best)
            if is_dearer or self.rows[each].reason or self._is_against(each):
                continue
            self._prove(each)
            if not self.rows[each].reason and not self._is_against(each):
                best = each if best is None or self._rank(each) < self._rank(best) else best
        if self.is_interrupted:
            best = list(self.proven)[-1] if best is None else best
            asked, plan = self.proven[best]
            return best, (asked, _interrupted(plan))
        if best is None:
            missed = [each for each in self.proven if each and self.rows[each].reason == MISSES]
            has_fleet = self.fleets.plans[NOTHING].cost_usd_per_hour is not None
            best = NOTHING if has_fleet or not missed else missed[0]
        self._prove(best)
        return best, self.proven[best]

    def compared(self, taken: frozenset[str]) -> tuple[FleetWithout, ...]:
        """Return all that was compared, each that looks cheaper than what was taken with the reason why it was not."""
        total = self.rows[taken].total_usd_per_hour
        for each, row in self.rows.items():
            mine = row.total_usd_per_hour
            if each == taken or row.reason or mine is None or total is None or mine >= total:
                continue
            is_dearer = self._rank(each) >= self._rank(taken)
            self.rows[each] = replace(row, reason=NOT_LEARNT if is_dearer else NOT_REACHED)
        return tuple(self.rows[each] for each in sorted(self.rows, key=lambda each: (len(each), sorted(each))))

    def _rank(self, each: frozenset[str]) -> tuple[float, int, list[str]]:
        total = self.rows[each].learnt_total_usd_per_hour
        return (math.inf if total is None else total * (1 + self.gap * bool(each)), len(each), sorted(each))

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C came in a proof: there are no more after it."""
        return any(_is_interrupted(plan) for _, plan in self.proven.values())

    def _prove(self, each: frozenset[str]) -> None:
        if each in self.proven:
            return
        fleets = self.fleets
        asked = without(fleets.question, each, usd_per_hour=fleets.usd_per_hour(each))
        self.proven[each] = self.prove(asked, fleets.plans[each])
        plan = self.proven[each][1]
        is_missed = plan.proof is not None and not plan.proof.holds
        self.rows[each] = fleets.row(each, plan, reason=MISSES if is_missed else self.rows[each].reason)

    def _is_against(self, each: frozenset[str]) -> bool:
        """Return whether the judged halves speak against a set, where always on has a fleet that holds; note it."""
        now, then = self.rows[each].total_usd_per_hour, self.rows[NOTHING].total_usd_per_hour
        if not each or self.rows[NOTHING].reason or now is None or then is None or now < then:
            return False
        self.rows[each] = replace(self.rows[each], reason=JUDGED_DEARER)
        return True


def _is_interrupted(plan: Plan) -> bool:
    return plan.solver.termination == Termination.INTERRUPTED.value


def _no_fleet(plan: Plan, budget: str | None) -> str:
    if budget is not None:
        return f"The limit {budget} does not hold with what is given back."
    if plan.cost_usd_per_hour is not None:
        return ""
    if plan.status is PlanStatus.INFEASIBLE:
        return "Limits and rules leave no fleet for the others."
    return "No fleet for the others was found in time."


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
