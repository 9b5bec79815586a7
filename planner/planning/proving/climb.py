"""Closing the loop: plan, replay, learn how full each kind of replica may be, plan again, until the replay holds.

Three stages, each keeping the cheapest fleet so far whose replay holds every objective with confidence:

1. Learn: every pool's own requests say how full its kind of replica may be (`pools`); the next plan is made with that.
   Kinds that were never used count as the best one known, so each is tried once before it is given up.
2. Level: what the pools keep by their values must be kept by all requests with confidence. One factor on all caps of a
   service is halved in between the largest that held and the smallest that missed.
3. Descend (`descent`): take an instance away, or put a cheaper one in its place, as long as that holds.

Services share limits, not replicas, so that each is judged and moved by itself in every round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.domain.plan import Plan, PlanStatus
from planner.domain.proof import (
    PeriodMiss,
    Proof,
    ProofEnd,
    ProofStep,
    ServiceProof,
    UtilizationCap,
)
from planner.errors import InputError
from planner.optimize import Assignment, SolverSettings, solve
from planner.optimize.fleets import ChosenFleet, chosen_fleet, kind_of
from planner.optimize.naming import option_keys
from planner.optimize.settings import Clock
from planner.optimize.termination import Termination
from planner.planning.proving.alone import learn_alone
from planner.planning.proving.descent import can_descend, removals, replicas_of, swaps
from planner.planning.proving.search import ProofSearch, Tried, fleet_key, is_cheaper, rank, replicas_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from planner.domain.problem import FleetProblem
    from planner.domain.proof import ProofRound
    from planner.optimize.fleets import OptionKind
    from planner.planning.proving.verdict import ServiceVerdict, Verdict
    from planner.planning.question import Question

TIMES_THE_LIMIT = 4.0
"""All searches and replays of a proof together may take so many times the time limit of one search. Counts stop it
before on an idle machine, so that the same request gives the same plan."""
MAX_LEARNING_ROUNDS = 3
"""Then the descent goes on from what is known."""
MAX_LEVEL_ROUNDS = 10
FIRST_STEP = 0.07
"""By what fraction the factor of a service moves first; steps double until it has both held and missed."""
LEAST_FACTOR = 0.1
"""Replicas that may be a tenth as full as their pools say, and still miss, will not hold."""
FINE = 0.3
"""Of a replica: factors nearer than this give the same fleet, or one that the descent finds."""
FINEST = (0.01, 0.1)
"""Relative: factors are sought to no more and no less than this."""
MAX_SWAPS = 40
"""In all."""
NEARLY = -1.0
"""Margin of a fleet that misses, but would not if its pools were loaded otherwise: twice as many late as may be."""
MAX_BALANCINGS = 2
MAX_STARTS = 2
"""Fleets that are descended from: the landscape has more than one valley."""
MAX_FINAL_SEARCHES = 3
MAX_SWAP_TRIES = 10
"""Fleets with a cheaper instance that may miss, one after the other, before no other is tried."""
KNEE_STEP = 0.02
"""Relative precision of the load up to which a plan holds."""
MOST_LOAD = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """A plan with its proof, and the problem that it solves: with the caps that were found."""

    plan: Plan
    problem: FleetProblem


def prove(
    question: Question,
    plan: Plan,
    *,
    settings: SolverSettings,
    assignment: Assignment,
    on_round: Callable[[ProofRound], None] | None = None,
) -> Proven:
    """Return the cheapest plan found whose replay holds, with its proof; `plan` itself where none does.

    Parameters
    ----------
    plan : the unproven answer to `question`.
    settings : of the searches; all searches and replays together take `TIMES_THE_LIMIT` its time limit at most.
    on_round : is told of every fleet that was simulated.

    Raises
    ------
    InputError: if the plan cannot be replayed, or not planned again with other caps.
    KeyboardInterrupt: if Ctrl-C comes before anything was replayed.
    """
    check_can_be_proven(question, plan)
    search = _started(question, settings, assignment, on_round or (lambda _: None))
    ended = ProofEnd.HELD
    try:
        search.attempt(plan, question.problem)
        # The first run compiled the simulator, which no time limit should count.
        search.clock = Clock(replace(settings, time_limit_s=settings.time_limit_s * TIMES_THE_LIMIT))
        _climb(search, plan)
    except KeyboardInterrupt:
        if not search.tried:
            raise
        ended = ProofEnd.INTERRUPTED
    if ended is ProofEnd.HELD and search.clock.is_over:
        ended = ProofEnd.TIME_LIMIT
    return _proven(search, plan, ended)


def check_can_be_proven(question: Question, plan: Plan) -> None:
    """Return if `plan` can be replayed and planned again.

    Raises
    ------
    InputError: saying what stands in the way.
    """
    problem = question.problem
    for is_so, what in (
        (question.replay is None, "has throughputs alone: nothing says how long an engine step takes"),
        (not plan.allocation, "rents nothing"),
        (bool(problem.jobs), "does work with a deadline"),
    ):
        if is_so:
            raise InputError(f"This plan {what}, and cannot be proven by simulation.", hint="Plan with --no-verify.")


def _started(
    question: Question, settings: SolverSettings, assignment: Assignment, on_round: Callable[[ProofRound], None]
) -> ProofSearch:
    problem = question.problem
    services = [demand.service for demand in problem.demands]
    traffic = question.replay.traffic if question.replay else {}
    return ProofSearch(
        question=question,
        settings=settings,
        assignment=assignment,
        on_round=on_round,
        clock=Clock(settings),
        load=1 + problem.headroom_fraction,
        # Who plans for a peak asks for that much, whatever the replay at the mean rate needs.
        may_loosen={
            demand.service: demand.total_rate_rps <= traffic[demand.service].rate_rps * (1 + 1e-6)
            for demand in problem.demands
        },
        kinds={
            (option.service, key): kind_of(option)
            for option, key in zip(problem.options, option_keys(problem.options), strict=True)
        },
        others=dict.fromkeys(services, 1.0),
        factors=dict.fromkeys(services, 1.0),
    )


def _climb(search: ProofSearch, unproven: Plan) -> None:
    """Look for the cheapest fleet that holds, as described at the top."""
    if can_descend(search.question.problem, search.assignment):
        learn_alone(search, unproven)
        search.forget_guesses()
    _learn(search, unproven)
    _level(search)
    for _ in range(MAX_FINAL_SEARCHES):
        if search.best is None or search.clock.is_over:
            return
        if can_descend(search.question.problem, search.assignment):
            for start in _starts(search):
                _descend(search, search.rebased(start))
        search.best = search.rebased(search.best)
        if not _searched_once_more(search):
            return


def _learn(search: ProofSearch, plan: Plan) -> None:
    """Plan with what is known of each kind, and learn from the pools of that plan, until a fleet comes again."""
    if not search.caps:
        search.learn(plan)
    seen: set[tuple[object, ...]] = set()
    for _ in range(MAX_LEARNING_ROUNDS):
        again = None if search.clock.is_over else search.solve()
        if again is None:
            return
        search.attempt(again, search.problem())
        if replicas_key(again) in seen:
            return
        seen.add(replicas_key(again))
        search.learn(again)


@dataclass(slots=True)
class _Bracket:
    """The factor of one service: the largest that held, the smallest that missed, and how far to go next."""

    precision: float = FINEST[1]
    low: float = 0.0
    high: float = math.inf
    step: float = FIRST_STEP
    is_done: bool = False

    def move(self, factor: float, *, holds: bool) -> float:
        """Return the next factor to try after `factor`."""
        if holds:
            self.low = max(self.low, factor)
        else:
            self.high = min(self.high, factor)
        if self.low and self.high < math.inf:
            self.is_done = self.high <= self.low * (1 + self.precision)
            return self.low if self.is_done else math.sqrt(self.low * self.high)
        moved = factor * (1 + self.step) if holds else factor / (1 + self.step)
        self.step *= 2
        self.is_done = moved < LEAST_FACTOR or moved > 1 / LEAST_FACTOR
        return factor if self.is_done else moved


def _level(search: ProofSearch) -> None:
    """Move the factor of every service to where it just holds."""
    brackets = {service: _Bracket() for service in search.factors}
    for _ in range(MAX_LEVEL_ROUNDS):
        plan = None if search.clock.is_over else search.solve()
        if plan is None and search.clock.is_over:
            return
        if plan is None:
            _back(search, brackets)
            continue
        if search.best is not None and not is_cheaper(plan, search.best.plan):
            held = set(brackets)  # dearer than what is known to hold: nothing is gained further down
        else:
            held = set(brackets) - search.attempt(plan, search.problem()).verdict.missed
            search.learn(plan, only_new=True)
        for service, bracket in brackets.items():
            if service in held and search.factors[service] >= 1 and not search.may_loosen[service]:
                bracket.is_done = True  # its caps stay at 1, however large the factor
            if not bracket.is_done:
                replicas = sum(item.replicas for item in plan.allocation if item.service == service)
                bracket.precision = min(max(FINE / max(replicas, 1), FINEST[0]), FINEST[1])
                search.factors[service] = bracket.move(search.factors[service], holds=service in held)
        if all(bracket.is_done for bracket in brackets.values()):
            return


def _back(search: ProofSearch, brackets: Mapping[str, _Bracket]) -> None:
    """Move factors back, by halves: the limits allow no plan with so much headroom."""
    for service, bracket in brackets.items():
        back = bracket.high if bracket.high < math.inf else search.factors[service] * 2
        search.factors[service] = math.sqrt(search.factors[service] * back)


def _descend(search: ProofSearch, start: Tried) -> None:
    """Take instances away from a fleet that holds, or put cheaper ones in their place, as long as that holds."""
    now: Tried | None = start
    while now is not None and not search.clock.is_over:
        now = _removed(search, now) or _swapped(search, now)


def _removed(search: ProofSearch, now: Tried) -> Tried | None:
    """Return the fleet without an instance that it can do without, the dearest one; None if there is none."""
    n_missed = 0
    for found in removals(now.problem, now.plan, settings=search.settings, assignment=search.assignment):
        if search.clock.is_over:
            return None
        if search.is_allowed(found):
            tried = _tried(search, found, now, ProofStep.REMOVE)
            if tried.verdict.holds:
                return tried
            n_missed += 1
    search.removals[fleet_key(now.plan)] = n_missed
    return None


def _tried(search: ProofSearch, found: ChosenFleet, now: Tried, step: ProofStep) -> Tried:
    """Return how a fleet fares: if it nearly holds, with its load moved from pools that miss to those that do not."""
    tried = search.attempt(found.plan, found.problem, others=now.others, step=step)
    for _ in range(MAX_BALANCINGS):
        margin = min(service.worst.margin for service in tried.verdict.services)
        if tried.verdict.holds or margin < NEARLY or search.clock.is_over or len(tried.plan.allocation) < 2:
            break
        moved = chosen_fleet(
            search.problem_by_pools(tried),
            tried.plan,
            replicas_of(tried.plan),
            settings=search.settings,
            assignment=search.assignment,
        )
        if moved is None or not search.is_allowed(moved):
            break
        tried = search.attempt(moved.plan, moved.problem, others=now.others, step=ProofStep.BALANCE)
    return tried


def _swapped(search: ProofSearch, now: Tried) -> Tried | None:
    """Return a fleet with cheaper instances in the place of others; None if none that was tried holds."""
    n_missed = 0
    for found in swaps(now.problem, now.plan, settings=search.settings, assignment=search.assignment):
        if search.clock.is_over or n_missed >= MAX_SWAP_TRIES or search.n_swaps >= MAX_SWAPS:
            return None
        if search.is_allowed(found) and is_cheaper(found.plan, now.plan):
            search.n_swaps += 1
            tried = _tried(search, found, now, ProofStep.SWAP)
            if tried.verdict.holds:
                return tried
            n_missed += 1
    return None


def _starts(search: ProofSearch) -> list[Tried]:
    """Return the cheapest fleets that hold, each of other kinds of replicas, to descend from: the best one first."""
    held = sorted((tried for tried in search.tried if tried.verdict.holds), key=lambda tried: rank(tried.plan))
    kinds: set[tuple[object, ...]] = set()
    starts = []
    for tried in held:
        mine = tuple(sorted((item.service, item.gpu, item.gpus_per_replica) for item in tried.plan.allocation))
        if mine not in kinds:
            kinds.add(mine)
            starts.append(tried)
    return starts[:MAX_STARTS]


def _searched_once_more(search: ProofSearch) -> bool:
    """Return whether a search with the best fleet's own caps finds a cheaper one that holds; its bound is kept."""
    best = search.best
    if best is None or search.clock.is_over:
        return False
    found = solve(best.problem, settings=search.limited(), assignment=search.assignment)
    if found.solver.termination == Termination.INTERRUPTED.value:
        raise KeyboardInterrupt
    if found.cost_usd_per_hour is not None:
        search.attempt(found, best.problem, others=best.others)
    if search.best is not best:
        return True
    search.best = replace(best, plan=_bounded(best.plan, found))
    return False


def _bounded(plan: Plan, found: Plan) -> Plan:
    """Return `plan` with the bound of the search for the cheapest one with the same caps."""
    cost = plan.cost_usd_per_hour or 0.0
    if found.bound_usd_per_hour is None or plan.objectives:
        return plan
    bound = min(found.bound_usd_per_hour, cost)
    gap = max(0.0, (cost - bound) / cost) if cost > 0 else 0.0
    status = PlanStatus.OPTIMAL if found.status is PlanStatus.OPTIMAL else PlanStatus.FEASIBLE
    return replace(plan, bound_usd_per_hour=bound, gap=gap, status=status)


def _proven(search: ProofSearch, unproven: Plan, ended: ProofEnd) -> Proven:
    best = search.best
    if best is None:
        best = max(search.tried, key=_nearness)
        ended = ProofEnd.MISSED if ended is ProofEnd.HELD else ended
    knees = _knees(search, best) if ended is ProofEnd.HELD else {}
    plan, verdict = best.plan, best.verdict
    cost, before = plan.cost_usd_per_hour or 0.0, unproven.cost_usd_per_hour or 0.0
    judged = [item for service in verdict.services for item in service.objectives]
    traffic = search.question.replay.traffic if search.question.replay else {}
    proof = Proof(
        holds=verdict.holds,
        sure=verdict.holds and verdict.is_long_enough,
        ended=ended,
        load=search.load,
        seed=search.settings.seed,
        requests=verdict.requests,
        fleets=len(search.rounds),
        unproven_usd_per_hour=before,
        extra_usd_per_hour=round(cost - before, 9),
        bound_of="plans whose replicas are no fuller than `caps` and `other_cap` say",
        slos=tuple(item.slo for item in judged),
        services=tuple(
            ServiceProof(
                service=service.service,
                traffic=traffic[service.service].name,
                rate_rps=service.rate_rps,
                requests=service.requests,
                other_cap=best.others[service.service],
                knee=knees.get(service.service),
            )
            for service in verdict.services
        ),
        caps=tuple(
            UtilizationCap(service=service, option=option, utilization_cap=cap)
            for (service, option), cap in _caps(search, best).items()
        ),
        rounds=tuple(search.rounds),
        removals=search.removals.get(fleet_key(plan), 0),
        missed_periods=tuple(PeriodMiss(period=period, service=name) for period, name in verdict.missed_periods),
        adapters=verdict.adapters,
        notes=verdict.notes,
    )
    status, solver = plan.status, plan.solver
    if ended in {ProofEnd.TIME_LIMIT, ProofEnd.INTERRUPTED}:
        status = PlanStatus.FEASIBLE
        solver = replace(solver, termination=ended.value)
    return Proven(
        plan=replace(plan, proof=proof, status=status, solver=solver, binding=(*_deciding(verdict), *plan.binding)),
        problem=best.problem,
    )


def _caps(search: ProofSearch, best: Tried) -> dict[tuple[str, str], float]:
    """Return the caps that are not the service's own: of one option for each kind, one that the plan uses if any."""
    names = zip(best.problem.options, option_keys(best.problem.options), strict=True)
    caps = {(option.service, key): option.utilization_cap for option, key in names}
    used = [(item.service, item.option) for item in best.plan.allocation]
    found: dict[OptionKind, tuple[str, str]] = {}
    for name in [*used, *caps]:
        if caps[name] != best.others.get(name[0], 1.0):
            found.setdefault(search.kinds[name], name)
    return {name: caps[name] for name in found.values()}


def _nearness(tried: Tried) -> tuple[float, float]:
    """Return how near a fleet that misses comes to holding: by its worst service, then by cost."""
    worst = min(service.worst.margin for service in tried.verdict.services)
    return (round(worst, 6), -(tried.plan.cost_usd_per_hour or 0.0))


def _deciding(verdict: Verdict) -> tuple[str, ...]:
    """Return the objective of each service that is nearest to being missed, as what holds the cost up."""
    several = len(verdict.services) > 1
    return tuple(
        f"simulated {f'{service.service}: ' if several else ''}{service.worst.slo.metric} {service.worst.slo.statistic}"
        for service in verdict.services
        if service.objectives
    )


def _knees(search: ProofSearch, best: Tried) -> dict[str, float | None]:
    """Return by service the largest multiple of the planned rate at which the plan holds, to 2%."""
    return {service.service: _knee(search, best.plan, service) for service in best.verdict.services}


def _knee(search: ProofSearch, plan: Plan, verdict: ServiceVerdict) -> float | None:
    def holds(times: float) -> bool:
        found = search.simulate(plan, times)[0]
        return next(service.holds for service in found.services if service.service == verdict.service)

    if not verdict.holds:
        return None
    low, high = 1.0, 1.1
    while high < MOST_LOAD and holds(high):
        low, high = high, high * 1.2
    while high / low > 1 + KNEE_STEP and high < MOST_LOAD:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return round(low * search.load, 3)
