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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from planner.domain.disaggregation import Role
from planner.domain.plan import Plan, PlanStatus
from planner.domain.proof import (
    Proof,
    ProofEnd,
    ProofRound,
    ProofStep,
    RoundService,
    ServiceProof,
    UtilizationCap,
)
from planner.errors import InputError
from planner.optimize import Assignment, SolverSettings, solve
from planner.optimize.fleets import ChosenFleet, kind_of, with_caps
from planner.optimize.naming import option_keys
from planner.optimize.settings import Clock
from planner.optimize.termination import Termination
from planner.planning.descent import can_descend, removals, swaps
from planner.planning.pools import PoolMargins, pool_knees, pool_margins
from planner.planning.replay import WARM_UP_FRACTION, ReplaySettings, replay_of
from planner.planning.verdict import ServiceVerdict, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from planner.domain.problem import FleetProblem
    from planner.optimize.fleets import OptionKind
    from planner.planning.question import Question

MAX_LEARNING_ROUNDS = 8
"""Fleets repeat after three to five in what was measured."""
MAX_LEVEL_ROUNDS = 10
FIRST_STEP = 0.07
"""By what fraction the factor of a service moves first; steps double until it has both held and missed."""
LEAST_FACTOR = 0.1
"""Replicas that may be a tenth as full as their pools say, and still miss, will not hold."""
FINE = 0.025
"""Relative: factors nearer than this give the same fleet."""
MAX_FINAL_SEARCHES = 3
MAX_SWAP_TRIES = 12
"""Fleets with a cheaper instance that may miss, one after the other, before no other is tried."""
KNEE_STEP = 0.02
"""Relative precision of the load up to which a plan holds."""
MOST_LOAD = 4.0
PROOF_REQUESTS = 50_000
"""Requests of each service that are replayed, at most."""
SAVES = 1e-9
"""Relative: what is less cheaper than this is as dear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """A plan with its proof, and the problem that it solves: with the caps that were found."""

    plan: Plan
    problem: FleetProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """A fleet that was simulated."""

    plan: Plan
    problem: FleetProblem
    verdict: Verdict
    others: Mapping[str, float]
    """By service the cap of kinds of replicas that no plan has used."""


@dataclass(slots=True, kw_only=True)
class _Search:
    """What is known so far."""

    question: Question
    settings: SolverSettings
    assignment: Assignment
    on_round: Callable[[ProofRound], None]
    clock: Clock
    load: float
    may_loosen: Mapping[str, bool]
    kinds: Mapping[tuple[str, str], OptionKind]
    caps: dict[OptionKind, float] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    simulated: dict[tuple[object, ...], tuple[Verdict, PoolMargins]] = field(default_factory=dict)
    rounds: list[ProofRound] = field(default_factory=list)
    tried: list[_Tried] = field(default_factory=list)
    best: _Tried | None = None
    removals: tuple[int, int] = (0, 0)

    def problem(self) -> FleetProblem:
        """Return the problem with the caps as they are now believed to be."""
        caps = {kind: self._level(kind[0], cap) for kind, cap in self.caps.items()}
        return with_caps(self.question.problem, caps, self.other_caps())

    def other_caps(self) -> dict[str, float]:
        """Return by service the cap of kinds of replicas that no plan has used."""
        return {service: self._level(service, cap) for service, cap in self.others.items()}

    def _level(self, service: str, cap: float) -> float:
        level = cap * self.factors[service]
        return level if self.may_loosen[service] else min(level, 1.0)

    def solve(self) -> Plan | None:
        """Return the plan with the present caps; None if there is none, or the time is over."""
        plan = solve(self.problem(), settings=self.clock.settings(), assignment=self.assignment)
        if plan.solver.termination == Termination.INTERRUPTED.value:
            raise KeyboardInterrupt
        return None if plan.cost_usd_per_hour is None or plan.unserved else plan

    def simulate(self, plan: Plan, times: float = 1.0) -> tuple[Verdict, PoolMargins]:
        """Return how `plan` fares at `times` the load that is to be proven, whole and pool by pool."""
        key = (times, *_fleet_key(plan))
        if key not in self.simulated:
            settings = ReplaySettings(load=self.load * times, seed=self.settings.seed, n_requests=PROOF_REQUESTS)
            found = replay_of(self.question, plan, settings=settings)
            slos = self.question.replay.slos if self.question.replay else {}
            self.simulated[key] = judge(found), pool_margins(plan, found, slos, WARM_UP_FRACTION)
        return self.simulated[key]

    def attempt(
        self,
        plan: Plan,
        problem: FleetProblem,
        *,
        others: Mapping[str, float] | None = None,
        step: ProofStep = ProofStep.PLAN,
    ) -> Verdict:
        """Return how `plan` fares, and keep it if it is the cheapest that holds."""
        is_new = (1.0, *_fleet_key(plan)) not in self.simulated
        verdict, _ = self.simulate(plan)
        tried = _Tried(plan=plan, problem=problem, verdict=verdict, others=others or self.other_caps())
        if is_new:
            self.tried.append(tried)
            self.rounds.append(_round(step, plan, verdict, self.factors))
            self.on_round(self.rounds[-1])
        if verdict.holds and (self.best is None or is_cheaper(plan, self.best.plan)):
            self.best = tried
        return verdict

    def learn(self, plan: Plan, *, only_new: bool = False) -> None:
        """Set the caps of the kinds that `plan` uses to what their pools keep, halfway to what was known before."""
        used = {self.kinds[item.service, item.option] for item in plan.allocation}
        if only_new and used <= set(self.caps):
            return
        knees = pool_knees(lambda times: self.simulate(plan, times)[1])
        headroom = 1 + self.question.problem.headroom_fraction
        for item in plan.allocation:
            knee = knees.get((item.service, item.option))
            if knee is None:
                continue
            kind = self.kinds[item.service, item.option]
            if only_new and kind in self.caps:
                continue
            seen = item.utilization * headroom * knee / self.factors[item.service]
            self.caps[kind] = math.sqrt(self.caps[kind] * seen) if kind in self.caps else seen
        for service in self.others:
            known = [cap for kind, cap in self.caps.items() if kind[0] == service]
            self.others[service] = max(known, default=1.0)


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
    settings : of the searches; its time limit is that of all searches and replays together.
    on_round : is told of every fleet that was simulated.

    Raises
    ------
    InputError: if the plan cannot be replayed, or not planned again with other caps.
    """
    check_can_be_proven(question, plan)
    search = _started(question, settings, assignment, on_round or (lambda _: None))
    ended = ProofEnd.HELD
    try:
        search.attempt(plan, question.problem)
        search.clock = Clock(settings)  # the first run compiles the simulator, which no time limit should count
        _climb(search, plan)
    except KeyboardInterrupt:
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
        (problem.horizon is not None, "is a schedule"),
        (bool(plan.unserved), "leaves requests unserved"),
        (bool(problem.jobs), "does work with a deadline"),
        (any(item.role is not Role.BOTH for item in plan.allocation), "serves prefill and decode apart"),
        (any(item.power_cap_w is not None for item in plan.allocation), "runs GPUs at a lower power limit"),
    ):
        if is_so:
            raise InputError(f"This plan {what}, and cannot be proven by simulation.", hint="Plan with --no-verify.")


def is_cheaper(plan: Plan, other: Plan) -> bool:
    """Return whether `plan` is better by what the request minimises: its objectives in their order, then the cost."""
    for one, two in zip(rank(plan), rank(other), strict=True):
        if abs(one - two) > SAVES * max(abs(two), 1.0):
            return one < two
    return False


def rank(plan: Plan) -> tuple[float, ...]:
    """Return what plans are compared by."""
    beside = (plan.change_usd_per_hour, plan.energy_usd_per_hour, plan.egress_usd_per_hour)
    total = (plan.cost_usd_per_hour or 0.0) + sum(part or 0.0 for part in beside)
    return (*(item.value for item in plan.objectives), total)


def _started(
    question: Question, settings: SolverSettings, assignment: Assignment, on_round: Callable[[ProofRound], None]
) -> _Search:
    problem = question.problem
    services = [demand.service for demand in problem.demands]
    traffic = question.replay.traffic if question.replay else {}
    return _Search(
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


def _climb(search: _Search, unproven: Plan) -> None:
    """Look for the cheapest fleet that holds, as described at the top."""
    _learn(search, unproven)
    _level(search)
    for _ in range(MAX_FINAL_SEARCHES):
        if search.best is None or search.clock.is_over:
            return
        _descend(search)
        if not _searched_once_more(search):
            return


def _learn(search: _Search, plan: Plan) -> None:
    seen = {_replicas_key(plan)}
    for _ in range(MAX_LEARNING_ROUNDS):
        if search.clock.is_over:
            return
        search.learn(plan)
        again = search.solve()
        if again is None:
            return
        search.attempt(again, search.problem())
        if _replicas_key(again) in seen:
            return
        seen.add(_replicas_key(again))
        plan = again


@dataclass(slots=True)
class _Bracket:
    """The factor of one service: the largest that held, the smallest that missed, and how far to go next."""

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
            self.is_done = self.high <= self.low * (1 + FINE)
            return self.low if self.is_done else math.sqrt(self.low * self.high)
        moved = factor * (1 + self.step) if holds else factor / (1 + self.step)
        self.step *= 2
        self.is_done = moved < LEAST_FACTOR or moved > 1 / LEAST_FACTOR
        return factor if self.is_done else moved


def _level(search: _Search) -> None:
    """Move the factor of every service to where it just holds."""
    brackets = {service: _Bracket() for service in search.factors}
    for _ in range(MAX_LEVEL_ROUNDS):
        if search.clock.is_over:
            return
        plan = search.solve()
        if plan is None:
            # The limits do not allow so much: as far back as needed, by halves.
            for service, bracket in brackets.items():
                back = bracket.high if bracket.high < math.inf else search.factors[service] * 2
                search.factors[service] = math.sqrt(search.factors[service] * back)
            continue
        verdict = search.attempt(plan, search.problem())
        search.learn(plan, only_new=True)
        for service in verdict.services:
            bracket = brackets[service.service]
            if not bracket.is_done:
                at = search.factors[service.service]
                search.factors[service.service] = bracket.move(at, holds=service.holds)
        if all(bracket.is_done for bracket in brackets.values()):
            return


def _descend(search: _Search) -> None:
    """Take instances away from the best fleet, or put cheaper ones in their place, as long as it holds."""
    if not can_descend(search.question.problem, search.assignment):
        return
    while not search.clock.is_over and search.best is not None:
        if not (_removed(search) or _swapped(search)):
            return


def _removed(search: _Search) -> bool:
    """Return whether the best fleet could do without an instance; the dearest one goes."""
    best = search.best
    if best is None:
        return False
    n_tried = 0
    for found in removals(best.problem, best.plan, settings=search.settings, assignment=search.assignment):
        if search.clock.is_over:
            return False
        if not _is_allowed(search, found):
            continue
        n_tried += 1
        if search.attempt(found.plan, found.problem, others=best.others, step=ProofStep.REMOVE).holds:
            return True
    search.removals = (n_tried, n_tried)
    return False


def _swapped(search: _Search) -> bool:
    """Return whether a cheaper instance in the place of another one held."""
    best = search.best
    if best is None:
        return False
    n_missed = 0
    for found in swaps(best.problem, best.plan, settings=search.settings, assignment=search.assignment):
        if search.clock.is_over or n_missed >= MAX_SWAP_TRIES:
            return False
        if not _is_allowed(search, found) or not is_cheaper(found.plan, best.plan):
            continue
        search.attempt(found.plan, found.problem, others=best.others, step=ProofStep.SWAP)
        if search.best is not best:
            return True
        n_missed += 1
    return False


def _is_allowed(search: _Search, found: ChosenFleet) -> bool:
    """Return whether the fleet is no fuller than the request lets its services be."""
    headroom = 1 + search.question.problem.headroom_fraction
    return all(
        search.may_loosen[item.service] or item.utilization * headroom <= 1 + 1e-9 for item in found.plan.allocation
    )


def _searched_once_more(search: _Search) -> bool:
    """Return whether a search with the best fleet's own caps finds a cheaper one that holds; its bound is kept."""
    best = search.best
    if best is None or search.clock.is_over:
        return False
    found = solve(best.problem, settings=search.clock.settings(), assignment=search.assignment)
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


def _proven(search: _Search, unproven: Plan, ended: ProofEnd) -> Proven:
    best = search.best
    if best is None:
        best = max(search.tried, key=_nearness) if search.tried else _untried(search, unproven)
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
        removals=search.removals[0],
        removals_missed=search.removals[1],
    )
    status, solver = plan.status, plan.solver
    if ended in {ProofEnd.TIME_LIMIT, ProofEnd.INTERRUPTED}:
        status = PlanStatus.FEASIBLE
        solver = replace(solver, termination=ended.value)
    return Proven(
        plan=replace(plan, proof=proof, status=status, solver=solver, binding=(*_deciding(verdict), *plan.binding)),
        problem=best.problem,
    )


def _untried(search: _Search, plan: Plan) -> _Tried:
    problem = search.question.problem
    return _Tried(plan=plan, problem=problem, verdict=search.simulate(plan)[0], others=search.other_caps())


def _caps(search: _Search, best: _Tried) -> dict[tuple[str, str], float]:
    """Return the caps that are not the service's own: of one option for each kind, one that the plan uses if any."""
    names = zip(best.problem.options, option_keys(best.problem.options), strict=True)
    caps = {(option.service, key): option.utilization_cap for option, key in names}
    used = [(item.service, item.option) for item in best.plan.allocation]
    found: dict[OptionKind, tuple[str, str]] = {}
    for name in [*used, *caps]:
        if caps[name] != best.others.get(name[0], 1.0):
            found.setdefault(search.kinds[name], name)
    return {name: caps[name] for name in found.values()}


def _nearness(tried: _Tried) -> tuple[float, float]:
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


def _knees(search: _Search, best: _Tried) -> dict[str, float | None]:
    """Return by service the largest multiple of the planned rate at which the plan holds, to 2%."""
    return {service.service: _knee(search, best.plan, service) for service in best.verdict.services}


def _knee(search: _Search, plan: Plan, verdict: ServiceVerdict) -> float | None:
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


def _round(step: ProofStep, plan: Plan, verdict: Verdict, factors: Mapping[str, float]) -> ProofRound:
    return ProofRound(
        step=step,
        cost_usd_per_hour=plan.cost_usd_per_hour or 0.0,
        holds=verdict.holds,
        services=tuple(
            RoundService(
                service=service.service,
                factor=factors[service.service],
                worst=f"{service.worst.slo.metric} {service.worst.slo.statistic}",
                bound_s=service.worst.slo.bound_s,
                simulated_s=service.worst.slo.simulated_s,
                attainment=service.worst.slo.attainment,
                met=service.worst.slo.met,
                sure=service.worst.slo.sure,
            )
            for service in verdict.services
            if service.objectives
        ),
    )


def _replicas_key(plan: Plan) -> tuple[object, ...]:
    return tuple(sorted((item.service, item.gpu, item.precision, item.replicas) for item in plan.allocation))


def _fleet_key(plan: Plan) -> tuple[object, ...]:
    """Return what decides how a plan fares: its replicas and its weights."""
    fleet = tuple((item.service, item.option, item.replicas) for item in plan.allocation)
    weights = tuple(
        (route.service, route.row, route.column, *((key, round(value, 9)) for key, value in sorted(route.weights.items())))
        for route in plan.routing
    )
    return (fleet, weights)
