"""The steps of a large search, each of which leaves a plan no worse and a bound no lower than it found them.

1. The linear relaxation, by columns: a bound, and prices of everything shared (`relaxation`).
2. The fleet that runs today, where the request names one, with what it lacks; or that solution rounded: a plan at once
   (`rounding`).
3. Every service on its own at those prices, whole replicas: a better bound, and other choices (`priced`), which are
   taken over where they fit.
4. What is shared dealt out, block by block, those choices first: a good plan (`sharing`), unless today's fleet is one.
   Without a plan so far the choices are put together and repaired (`neighbours.repair`).
5. Services solved anew, alone and in twos and threes, in what the others leave (`neighbours.improve`).
6. Prices moved towards what the services took too much of, and from 3 again.

It ends where the gap that was asked for is proven, after a fixed number of rounds, or when the time is over. Numbers
of rounds and nodes are fixed, so only the last of these differs from run to run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.decompose.budget import Budget
from planner.optimize.decompose.neighbours import Neighbourhood, improve, repair
from planner.optimize.decompose.parts import cut
from planner.optimize.decompose.priced import NODE_LIMIT, Priced, linear_terms, price_services, total_bound
from planner.optimize.decompose.relaxation import Relaxation, relax, repriced
from planner.optimize.decompose.rounding import from_today, rounded
from planner.optimize.decompose.sharing import share_out
from planner.optimize.decompose.state import option_scores, state_of
from planner.optimize.routing import balanced_shares
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from planner.optimize.alike import Merged
    from planner.optimize.decompose.parts import Cut
    from planner.optimize.decompose.state import State
    from planner.optimize.milp import FloatArray
    from planner.optimize.settings import SolverSettings

logger = logging.getLogger(__name__)

ROUNDS = 3
"""How often prices are moved at most."""
GROUP_SIZES = (1, 3, 4, 4, 5)
"""Services that are solved together, one pass over all of them each."""
NEAR = 0.03
"""Relative to the bound: today's fleet is a first plan no dearer than sharing out gives."""
STEP = 0.5
"""Of Polyak's step for the prices."""
GROUP_GAP = 0.1
"""Of the gap of services alone: what one service could save is a small part of a group's cost."""
PRICING_GAP = 0.2
"""Of the gap that was asked for: how far services are priced, since what is missing there is missing in the bound."""
PRICING_FRACTION = 0.5
"""Of the time that is left: what a round may spend on pricing services before it fits them together."""
LOOSEST_GAP = 0.01
TIGHTEST_GAP = 2e-4
"""Relative; how far small programmes are solved, between which the gap that was asked for decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How a decomposed search ended."""

    replicas: FloatArray | None
    """Shape (options,); keeps all limits."""
    instances: FloatArray | None
    shares: FloatArray | None
    bound: float
    termination: Termination
    seconds: float
    version: str


def decomposed_fleet(merged: Merged, settings: SolverSettings) -> Found | None:
    """Return the best fleet found and the bound proven; None if the whole programme must be solved after all.

    That is so where the limits seem to leave too little for everybody: then only the whole programme can tell.
    """
    budget = Budget(settings)
    pieces = cut(merged)
    prices = relax(pieces, budget)
    if isinstance(prices, Termination):
        return None if prices is Termination.INFEASIBLE else _stopped(budget, prices)
    if prices.short:
        return None if budget.stopped_by is None else _stopped(budget, Termination.TIME_LIMIT)
    hunt = _Hunt(pieces, prices, settings, budget)
    hunt.run()
    if hunt.state is None:
        stopped_by = budget.stopped_by
        return None if stopped_by is None else _stopped(budget, stopped_by, bound=hunt.bound)
    shares = _shares(pieces, hunt.state)
    if shares is None:
        return None
    stopped_by = budget.stopped_by or Termination.OTHER_LIMIT
    return Found(
        replicas=hunt.state.replicas,
        instances=hunt.state.instances,
        shares=shares,
        bound=hunt.bound,
        termination=Termination.OPTIMAL if hunt.is_done else stopped_by,
        seconds=budget.seconds,
        version=budget.version,
    )


def _stopped(budget: Budget, why: Termination, *, bound: float = 0.0) -> Found:
    return Found(
        replicas=None,
        instances=None,
        shares=None,
        bound=bound,
        termination=why,
        seconds=budget.seconds,
        version=budget.version,
    )


class _Hunt:
    """The best state and bound so far, and the rounds that better them."""

    def __init__(self, pieces: Cut, prices: Relaxation, settings: SolverSettings, budget: Budget) -> None:
        self._cut = pieces
        self._linear = prices
        self._budget = budget
        self._wanted_gap = settings.relative_gap
        self._gap = min(max(settings.relative_gap, TIGHTEST_GAP), LOOSEST_GAP)
        self._pricing_gap = max(PRICING_GAP * self._gap, TIGHTEST_GAP)
        self._rng = np.random.default_rng(settings.seed)
        self.bound = prices.bound
        self.state: State | None = None

    @property
    def is_done(self) -> bool:
        """Whether the gap that was asked for is proven."""
        return self.state is not None and self.state.cost - self.bound <= self._wanted_gap * self.state.cost

    def run(self) -> None:
        """Improve plan and bound until there is nothing left to do or no time."""
        prices = self._linear
        self._offer(from_today(self._cut, prices, self._budget))
        has_start = self._is_near()
        if not has_start:
            self._offer(rounded(self._cut, prices, self._budget))
        for _ in range(ROUNDS):
            known = linear_terms(self._cut, prices)
            known = self._price(prices, known, self._budget.part(PRICING_FRACTION))
            self._seek(prices, known, shares_out=prices is not self._linear or not has_start)
            if self.is_done or self._budget.stopped_by is not None or self.state is None:
                return
            known = self._price(prices, known, self._budget)
            logger.info("%.1f s: plan of %.6g, bound %.6g", self._budget.seconds, self.state.cost, self.bound)
            moved = self._moved(prices, known)
            if moved is None:
                return
            prices = moved

    def _is_near(self) -> bool:
        """Whether there is a plan that only needs improving: services solved anew then do more than sharing anew."""
        return self.state is not None and self.state.cost <= (1 + NEAR) * self.bound

    def _price(self, prices: Relaxation, known: list[Priced], budget: Budget) -> list[Priced]:
        """Solve every service that is not known yet on its own, and better the bound by them."""
        missing = [index for index, item in enumerate(known) if item.replicas is None]
        found = price_services(
            self._cut, prices, known, missing, gap=self._pricing_gap, nodes=NODE_LIMIT, budget=budget
        )
        self.bound = max(self.bound, total_bound(prices, found))
        return found

    def _seek(self, prices: Relaxation, known: list[Priced], *, shares_out: bool) -> None:
        """Fit the services' choices together and improve what comes of it."""
        near = self._near(prices)
        self._adopt(known)
        if shares_out:
            self._offer(share_out(near, [item.replicas for item in known], gap=self._gap / 2))
        if self.state is None and all(item.replicas is not None for item in known):
            self._offer(repair(near, self._together(known), gap=self._gap))
        for size in GROUP_SIZES:
            if self.state is None or self.is_done:
                return
            order = self._rng.permutation(len(self._cut.parts)).tolist()
            groups = [sorted(order[start : start + size]) for start in range(0, len(order), size)]
            enough = self.bound / (1 - self._wanted_gap)
            self._offer(improve(near, self.state, groups, gap=self._gap * GROUP_GAP, enough=enough))

    def _near(self, prices: Relaxation) -> Neighbourhood:
        return Neighbourhood(
            cut=self._cut,
            prices=prices,
            scores=tuple(option_scores(part, prices) for part in self._cut.parts),
            budget=self._budget,
        )

    def _adopt(self, known: list[Priced]) -> None:
        """Take over services' choices one by one where what the others have leaves room for them."""
        for part, item in zip(self._cut.parts, known, strict=True):
            if self.state is not None and item.replicas is not None:
                replicas = self.state.replicas.copy()
                replicas[part.options] = item.replicas
                self._offer(state_of(self._cut, replicas))

    def _offer(self, state: State | None) -> None:
        """Keep `state` if it keeps all limits and is the cheapest."""
        if state is not None and state.is_feasible and (self.state is None or state.cost < self.state.cost):
            self.state = state
            logger.debug("%.1f s: plan of %.6g, bound %.6g", self._budget.seconds, state.cost, self.bound)

    def _together(self, known: list[Priced]) -> State:
        replicas = np.zeros(len(self._cut.fleet.options))
        for part, item in zip(self._cut.parts, known, strict=True):
            if item.replicas is not None:
                replicas[part.options] = item.replicas
        return state_of(self._cut, replicas)

    def _moved(self, prices: Relaxation, known: list[Priced]) -> Relaxation | None:
        """Return prices a step along the bound's subgradient, what the services took beyond the limits' sides."""
        if self.state is None or any(item.replicas is None for item in known):
            return None
        together = self._together(known)
        shared = self._cut.shared
        used = shared.activity(together.replicas, together.instances)
        limited = shared.is_limit & np.isfinite(shared.upper)
        slope = np.where(limited, used - np.where(limited, shared.upper, 0.0), 0.0)
        slope = np.where((slope < 0) & (prices.shared_duals == 0), 0.0, slope)
        length = float(slope @ slope)
        if length <= 0:
            return None
        step = STEP * (self.state.cost - self.bound) / length
        return repriced(self._cut, prices, np.minimum(prices.shared_duals - step * slope, 0.0))


def _shares(pieces: Cut, state: State) -> FloatArray | None:
    """Return shares that the replicas serve exactly, service by service; None if one of them cannot."""
    shares = np.zeros(len(pieces.merged.x))
    for part in pieces.parts:
        replicas = part.by_class(state.replicas[part.options]).round().astype(np.int64)
        found = balanced_shares(part.classes, replicas, np.zeros(len(part.pairs)))
        if found is None:
            return None
        shares[part.pairs] = found
    return pieces.merged.spread(shares, state.replicas)
