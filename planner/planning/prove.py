"""Plan, replay, correct, and plan again until the replay holds: what a plan must keep free is measured, not guessed.

A throughput table knows steady traffic of one size. Bursts, mixed sizes and small pools need room, and a cautious
estimate leaves too much of it. So the plan is replayed at several loads; for each pool the largest load at which its
own requests hold every objective says how much of the assumed throughput its replicas can really be loaded with. Those
utilisation caps go back into the problem, and the next plan is replayed in turn. A last search on one factor of all
caps ends within one replica of the cheapest plan that holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.naming import option_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem

LOADS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)
"""Multiples of the planned load at which a plan is replayed to find what each pool holds."""

LARGEST_CAP = 2.0
SMALLEST_CAP = 0.05
"""Caps outside mean that the model of the throughput is of no use for this traffic."""

MAX_CORRECTIONS = 3
MAX_NARROWINGS = 8
FINEST = 1.01
"""The search on the common factor ends when it is known to so much."""

OptionName = tuple[str, str]
"""Service and key of an option."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a replay says of a plan."""

    is_met: bool
    """Every objective holds, with confidence."""
    attainment: Mapping[str, float]
    """Fraction of each service's requests within every bound."""
    held_load: Mapping[OptionName, float] = field(default_factory=dict)
    """Largest of `LOADS` at which the requests of each pool hold; 0 = at none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One plan, and how it fared."""

    cost_usd_per_hour: float
    replicas: int
    lowest_cap: float
    """Least of the utilisation caps that it was planned with."""
    verdict: Verdict
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How a plan was found that holds when it is replayed; or the best that was tried."""

    rounds: tuple[Round, ...]
    proven: Round | None
    """The cheapest round that holds; None if none did."""

    @property
    def extra_usd_per_hour(self) -> float | None:
        """What the proven plan costs more than the first, unproven one."""
        return None if self.proven is None else self.proven.cost_usd_per_hour - self.rounds[0].cost_usd_per_hour


def with_caps(problem: FleetProblem, caps: Mapping[OptionName, float], default: Mapping[str, float]) -> FleetProblem:
    """Return the problem in which a replica may be loaded with that part of its throughput.

    Parameters
    ----------
    default : by service, for options that no cap is known of.
    """
    options = tuple(
        replace(
            option,
            throughput_rps=option.throughput_rps * caps.get((option.service, key), default.get(option.service, 1.0)),
        )
        for option, key in zip(problem.options, option_keys(problem.options), strict=True)
    )
    return replace(problem, options=options)


def prove(
    problem: FleetProblem, solve: Callable[[FleetProblem], Plan], judge: Callable[[Plan, bool], Verdict]
) -> Proof:
    """Return the cheapest plan that `judge` finds to hold, within one replica, and how it was found.

    Parameters
    ----------
    solve : plans a problem; a plan without cost means that there is none.
    judge : replays a plan; asked to, it says at which load each pool holds.
    """
    rounds: list[Round] = []
    caps: dict[OptionName, float] = {}
    default: dict[str, float] = {}

    def attempt(factor: float, *, look_closer: bool) -> Round | None:
        scaled = {name: _bounded(cap * factor) for name, cap in caps.items()}
        others = {name: _bounded(cap * factor) for name, cap in default.items()}
        plan = solve(with_caps(problem, scaled, others))
        if plan.cost_usd_per_hour is None:
            return None
        found = Round(
            cost_usd_per_hour=plan.cost_usd_per_hour,
            replicas=sum(item.replicas for item in plan.allocation),
            lowest_cap=min((scaled.get((i.service, i.option), 1.0) for i in plan.allocation), default=1.0),
            verdict=judge(plan, look_closer),
            plan=plan,
        )
        rounds.append(found)
        return found

    last = attempt(1.0, look_closer=True)
    if last is None:
        return Proof(rounds=(), proven=None)
    for _ in range(MAX_CORRECTIONS):
        _learn(last, caps, default)
        again = attempt(1.0, look_closer=True)
        if again is None:
            break
        last = again
        if last.verdict.is_met and math.isclose(last.cost_usd_per_hour, rounds[-2].cost_usd_per_hour):
            break
    _narrow(attempt, last)
    proven = [found for found in rounds if found.verdict.is_met]
    return Proof(
        rounds=tuple(rounds), proven=min(proven, key=lambda found: found.cost_usd_per_hour) if proven else None
    )


def _bounded(cap: float) -> float:
    return min(LARGEST_CAP, max(SMALLEST_CAP, cap))


def _learn(last: Round, caps: dict[OptionName, float], default: dict[str, float]) -> None:
    """Correct the caps by the loads at which the last plan's pools held; others get the mean of their service."""
    for item in last.plan.allocation:
        name = (item.service, item.option)
        held = last.verdict.held_load.get(name, 1.0)
        caps[name] = _bounded(caps.get(name, default.get(item.service, 1.0)) * max(held, LOADS[0] / 2))
    for service in {item.service for item in last.plan.allocation}:
        mine = [item for item in last.plan.allocation if item.service == service]
        weights = np.array([item.rate_rps or item.replicas for item in mine])
        values = np.array([caps[item.service, item.option] for item in mine])
        default[service] = float((weights * values).sum() / weights.sum())


def _narrow(attempt: Callable[..., Round | None], last: Round) -> None:
    """Search the common factor of all caps for the cheapest plan that holds."""
    holds = 1.0 if last.verdict.is_met else 0.0
    fails = math.inf if last.verdict.is_met else 1.0
    cheapest_failed = -math.inf if last.verdict.is_met else last.cost_usd_per_hour
    for _ in range(MAX_NARROWINGS):
        if holds and fails < math.inf and (fails / holds <= FINEST):
            return
        factor = holds * 1.15 if fails == math.inf else fails * 0.8 if not holds else math.sqrt(holds * fails)
        found = attempt(factor, look_closer=False)
        if found is None or not found.verdict.is_met:
            fails = factor
            cheapest_failed = math.inf if found is None else found.cost_usd_per_hour
        else:
            holds = factor
            if found.cost_usd_per_hour - cheapest_failed <= _cheapest_replica(found):
                return


def _cheapest_replica(found: Round) -> float:
    """Return the least price of one replica of the plan, in USD/h."""
    return min(item.cost_usd_per_hour / item.replicas for item in found.plan.allocation)
