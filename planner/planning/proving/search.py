"""What a proof knows so far: how full each kind of replica may be, every fleet that was replayed, and the best one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from planner.domain.proof import ProofRound, ProofStep, RoundService
from planner.errors import SolverLiedError
from planner.optimize import Assignment, SolverSettings, solve, verify_plan
from planner.optimize.fleets import kind_of, with_caps
from planner.optimize.termination import Termination
from planner.planning.proving.pools import PoolMargins, pool_knees, pool_margins
from planner.planning.proving.verdict import Verdict, judge
from planner.planning.replay import ReplaySettings, replay_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from planner.domain.plan import Period, Plan
    from planner.domain.problem import FleetProblem
    from planner.optimize.fleets import ChosenFleet, OptionKind
    from planner.optimize.settings import Clock
    from planner.planning.question import Question

PROOF_REQUESTS = 50_000
"""Requests of each service that are replayed, at most; of a schedule as many as `gpuplan simulate` replays."""
SAVES = 1e-9
"""Relative: what is less cheaper than this is as dear."""
ROOM = 1e-9
"""Relative: for the rounding of a plan's own loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A fleet that was simulated."""

    plan: Plan
    problem: FleetProblem
    verdict: Verdict
    others: Mapping[str, float]
    """By service the cap of kinds of replicas that no plan has used."""


@dataclass(slots=True, kw_only=True)
class ProofSearch:
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
    tried: list[Tried] = field(default_factory=list)
    best: Tried | None = None
    n_swaps: int = 0
    removals: dict[tuple[object, ...], int] = field(default_factory=dict)
    """By fleet: how many fleets with an instance less were replayed, if all of them miss."""

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

    def limited(self) -> SolverSettings:
        """Return the settings of one search, within the time that is left for all."""
        left = self.clock.settings()
        return replace(left, time_limit_s=min(left.time_limit_s, self.settings.time_limit_s))

    def solve(self) -> Plan | None:
        """Return the plan with the present caps; None if there is none, or the time is over."""
        plan = solve(self.problem(), settings=self.limited(), assignment=self.assignment)
        if plan.solver.termination == Termination.INTERRUPTED.value:
            raise KeyboardInterrupt
        return None if plan.cost_usd_per_hour is None else plan

    def simulate(self, plan: Plan, times: float = 1.0) -> tuple[Verdict, PoolMargins]:
        """Return how `plan` fares at `times` the load that is to be proven, whole and pool by pool."""
        key = (times, *fleet_key(plan))
        if key not in self.simulated:
            settings = ReplaySettings(
                load=self.load * times,
                seed=self.settings.seed,
                n_requests=None if plan.schedule else PROOF_REQUESTS,
            )
            found = replay_of(self.question, plan, settings=settings)
            self.simulated[key] = judge(found), pool_margins(plan, found)
        return self.simulated[key]

    def attempt(
        self,
        plan: Plan,
        problem: FleetProblem,
        *,
        others: Mapping[str, float] | None = None,
        step: ProofStep = ProofStep.PLAN,
    ) -> Tried:
        """Return how `plan` fares, and keep it if it is the cheapest that holds."""
        is_new = (1.0, *fleet_key(plan)) not in self.simulated
        verdict, _ = self.simulate(plan)
        tried = Tried(plan=plan, problem=problem, verdict=verdict, others=others or self.other_caps())
        if is_new:
            self.tried.append(tried)
            self.rounds.append(_round(step, plan, verdict, self.factors))
            self.on_round(self.rounds[-1])
        if verdict.holds and (self.best is None or is_cheaper(plan, self.best.plan)):
            self.best = tried
        return tried

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
        self.forget_guesses()

    def problem_by_pools(self, tried: Tried) -> FleetProblem:
        """Return the problem of a fleet with its kinds' caps at what their pools keep, so that these share its load."""
        knees = pool_knees(lambda times: self.simulate(tried.plan, times)[1])
        headroom = 1 + self.question.problem.headroom_fraction
        caps = {kind_of(option): option.utilization_cap for option in tried.problem.options}
        for item in tried.plan.allocation:
            knee = knees.get((item.service, item.option))
            if knee is not None:
                caps[self.kinds[item.service, item.option]] = item.utilization * headroom * knee
        return with_caps(self.question.problem, caps, tried.others)

    def forget_guesses(self) -> None:
        """Let kinds of which nothing is known count as the best one known: each is tried once before it is given up."""
        for service in self.others:
            known = [cap for kind, cap in self.caps.items() if kind[0] == service]
            self.others[service] = max(known, default=1.0)

    def rebased(self, best: Tried) -> Tried:
        """Return `best` with the caps as they are now believed to be, and as high as itself needs them."""
        headroom = 1 + self.question.problem.headroom_fraction
        others = self.other_caps()
        caps = {kind: self._level(kind[0], cap) for kind, cap in self.caps.items()}
        for item in best.plan.allocation:
            kind = self.kinds[item.service, item.option]
            caps[kind] = max(caps.get(kind, others[item.service]), item.utilization * headroom * (1 + ROOM))
        problem = with_caps(self.question.problem, caps, others)
        try:
            verify_plan(problem, best.plan)
        except SolverLiedError:
            return best  # what is left after a loss must be fuller than that
        return replace(best, problem=problem, others=others)

    def is_allowed(self, found: ChosenFleet) -> bool:
        """Return whether a fleet is no fuller than the request lets its services be."""
        headroom = 1 + self.question.problem.headroom_fraction
        return all(
            self.may_loosen[item.service] or item.utilization * headroom <= 1 + 1e-9 for item in found.plan.allocation
        )


def is_cheaper(plan: Plan, other: Plan) -> bool:
    """Return whether `plan` leaves less unserved, the most important first, or else is better by its `rank`."""
    priorities = sorted({item.priority for item in (*plan.unserved, *other.unserved)})
    mine, theirs = ((*(_unserved_rps(each, k) for k in priorities), *rank(each)) for each in (plan, other))
    for one, two in zip(mine, theirs, strict=True):
        if abs(one - two) > SAVES * max(abs(two), 1.0):
            return one < two
    return False


def _unserved_rps(plan: Plan, priority: int) -> float:
    return sum(item.rate_rps for item in plan.unserved if item.priority == priority)


def rank(plan: Plan) -> tuple[float, ...]:
    """Return what the request minimises: its objectives in their order, then the cost."""
    beside = (plan.change_usd_per_hour, plan.energy_usd_per_hour, plan.egress_usd_per_hour)
    total = (plan.cost_usd_per_hour or 0.0) + sum(part or 0.0 for part in beside)
    return (*(item.value for item in plan.objectives), total)


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
                late_adapters=service.n_late,
            )
            for service in verdict.services
            if service.objectives
        ),
    )


def replicas_key(plan: Plan) -> tuple[object, ...]:
    """Return what two plans with replicas of the same kinds have in common, wherever they are."""
    return tuple(sorted((item.service, item.gpu, item.precision, item.replicas) for item in plan.allocation))


def fleet_key(plan: Plan) -> tuple[object, ...]:
    """Return what decides how a plan fares: replicas, weights, who is turned away, by period too, and adapters."""
    placed = tuple(
        (
            item.service,
            replica.option,
            tuple(
                (each.adapter, *(round(rate, 9) for rate in each.by_size_rps or (each.rate_rps,)))
                for each in replica.adapters
            ),
        )
        for item in plan.adapters
        for replica in item.placement
    )
    return (_part_key(plan), *map(_part_key, plan.schedule), placed)


def _part_key(part: Plan | Period) -> tuple[object, ...]:
    return (
        tuple((item.service, item.option, item.replicas) for item in part.allocation),
        tuple(
            (route.service, route.row, route.column, *((k, round(w, 9)) for k, w in sorted(route.weights.items())))
            for route in part.routing
        ),
        tuple((item.service, item.row, item.column, round(item.rate_rps, 9)) for item in part.unserved),
    )
