"""The steps of a search over many periods; each leaves a plan no worse and a bound no lower than it found them.

1. Every bucket where it costs least, on what is neither scarce nor committed: a plan at once.
2. The programme without shares, demand as cuts at list prices: a bound at once (`master`, `needs`).
3. More cuts, first in few periods, then in all: a better bound, and prices (`relaxation`).
4. All of it rounded down and topped up (`rounding`): a plan a few percent above the bound.
5. The relaxation's periods made whole one after the other, and topped up where that misses something (`windows`).
6. A few periods at a time solved anew between the others, over and over with the windows shifted.
7. Shares of every service in every period, exact.

It ends where the gap that was asked for is proven, after a fixed number of passes, or when the time is over. Numbers of
passes and nodes are fixed, so only the last of these differs from run to run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.decompose.budget import Budget
from planner.optimize.decompose.workers import WORKERS, solve_all
from planner.optimize.horizon.master import master_of
from planner.optimize.horizon.needs import needs_of
from planner.optimize.horizon.relaxation import Relaxed, bound_of, first_cuts, relax
from planner.optimize.horizon.rounding import Rounding
from planner.optimize.horizon.state import WHOLE, State, fewest_instances, state_of
from planner.optimize.horizon.windows import OVERFULL, Entries, Neighbourhood, split, usable_columns
from planner.optimize.periods import kept_long_enough, without_spare
from planner.optimize.problem_check import offer_gpus
from planner.optimize.routing import option_load
from planner.optimize.rows.limits import all_limits, limit_coefficients
from planner.optimize.rows.minimums import is_counted
from planner.optimize.rows.packing import instances_needed
from planner.optimize.settings import SolverSettings
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.horizon.cuts import Cuts
    from planner.optimize.horizon.master import Master
    from planner.optimize.horizon.needs import Loaded, Need
    from planner.optimize.horizon.windows import Solved
    from planner.optimize.milp import FloatArray, IntArray, Milp
    from planner.optimize.model import FleetModel

logger = logging.getLogger(__name__)

WINDOWS = (1, 1, 1, 2, 2, 3)
"""Periods of a window, pass by pass. Single ones are solved in a fraction of a second; four together take many."""
LATER_GAP = 0.5
"""Windows are solved to the gap that was asked for the first time, and to this part of it later."""
FIRST_TRIES = 3
"""At a window the first time; what it then misses is topped up."""
LOOSEST_GAP = 1e-2
TIGHTEST_GAP = 1e-4
STALLED = 1e-4
"""Relative: a pass that saves less is the last one."""
RELAXATION_FRACTION = 0.5
"""Of the time: what the relaxation may take."""
FINISHING_FRACTION = 0.1
"""Of the time: what is kept for the shares of the plan, and for putting it together and checking it."""
FINISHING_TIME_S = 120.0
"""The longest that finding the shares of the plan may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How a search over many periods ended."""

    replicas: IntArray | None
    """Shape (options,); keeps all limits."""
    instances: IntArray | None
    shares: FloatArray | None
    bound: float
    termination: Termination
    seconds: float
    version: str


def horizon_fleet(model: FleetModel, milp: Milp, settings: SolverSettings) -> Found | None:
    """Return the best fleet found and the bound proven; None if the programme must be solved whole after all."""
    budget = Budget(settings).part(1 - FINISHING_FRACTION)
    needs = needs_of(model.fleet)
    if needs is None:
        return None
    hunt = _Hunt(model.fleet, master_of(model, milp), needs, settings, budget)
    try:
        hunt.run()
    except KeyboardInterrupt:
        budget.interrupt()
    stopped_by = budget.stopped_by
    shares = None if hunt.best is None else hunt.shares(hunt.best)
    if hunt.best is None or shares is None:
        if stopped_by is None:
            return None
        return hunt.found(None, None, stopped_by)
    return hunt.found(hunt.best, shares, Termination.OPTIMAL if hunt.is_done else stopped_by or Termination.OTHER_LIMIT)


class _Hunt:
    """The best state and bound so far, and what betters them."""

    def __init__(
        self, fleet: FleetArrays, master: Master, needs: tuple[Need, ...], settings: SolverSettings, budget: Budget
    ) -> None:
        self._fleet = fleet
        self._master = master
        self._needs = needs
        self._budget = budget
        self._wanted_gap = settings.relative_gap
        self._price = _replica_prices(fleet)
        self.bound = 0.0
        self.best: State | None = None

    @property
    def _margin(self) -> int:
        """Periods after a window in which what is started in it may have to be kept."""
        horizon = self._fleet.horizon
        return 0 if horizon is None else horizon.lease_periods - 1

    @property
    def is_done(self) -> bool:
        """Whether the gap that was asked for is proven."""
        return self.best is not None and self.best.cost - self.bound <= self._wanted_gap * self.best.cost

    def found(self, state: State | None, shares: FloatArray | None, termination: Termination) -> Found:
        """Return how the search ended."""
        replicas = instances = None
        if state is not None and shares is not None:
            whole = state.values.round().astype(np.int64)
            is_used = option_load(self._fleet, shares) > 0
            replicas = np.where(is_used, whole[self._master.n].ravel(), 0)
            instances = whole[self._master.m].ravel()
            holding = instances_needed(self._fleet, replicas)
            holding = np.where(is_counted(self._fleet), instances, holding)
            instances = without_spare(self._fleet, instances, holding)
        return Found(
            replicas=replicas,
            instances=instances,
            shares=shares,
            bound=self.bound,
            termination=termination,
            seconds=self._budget.seconds,
            version=self._budget.version,
        )

    def run(self) -> None:
        """Improve plan and bound until there is nothing left to do or no time."""
        plain = self._plain()
        if plain is not None:
            nothing = self._state(plain, np.zeros(self._master.m.shape))
            self._offer(self._whole(nothing, plain, solved=np.zeros(len(plain), dtype=np.bool_)))
        cuts = first_cuts(self._needs, self._price)
        self.bound = max(self.bound, bound_of(self._master, cuts, self._budget))
        relaxed = relax(self._master, cuts, self._budget.part(RELAXATION_FRACTION))
        if not isinstance(relaxed, Relaxed):
            return
        self.bound = max(self.bound, relaxed.bound)
        rounded = self._rounded(relaxed.values, cuts)
        near = self._neighbourhood(relaxed, cuts)
        current = self._in_order(near, self._relaxed_state(relaxed.values, rounded))
        near = replace(near, gap=near.gap * LATER_GAP)
        solved = self._is_whole(current)
        if plain is None and rounded is None and not solved.all():
            return
        filling = plain if rounded is None else rounded.values[self._master.n]
        mended = self._mended(self._whole(current, filling, solved=solved), cuts)
        tried = [state for state in (mended, rounded, self.best) if state is not None]
        if not tried:
            return
        current = min(tried, key=lambda state: (float(state.excess.sum()), state.cost))
        for number, length in enumerate(WINDOWS):
            if self.is_done or self._budget.stopped_by is not None:
                return
            before = current
            windows = split(len(self._master.periods), length, number)
            current = self._passed(near, current, windows, is_served=True)
            if number and before.is_feasible and before.cost - current.cost <= STALLED * current.cost:
                return

    def _neighbourhood(self, relaxed: Relaxed, cuts: list[Cuts]) -> Neighbourhood:
        return Neighbourhood(
            master=self._master,
            entries=Entries.of(self._master.milp),
            cuts=cuts,
            usable=usable_columns(self._master, relaxed.reduced, self._price / len(self._master.periods)),
            budget=self._budget,
            gap=min(max(self._wanted_gap, TIGHTEST_GAP), LOOSEST_GAP),
        )

    def _relaxed_state(self, values: FloatArray, rounded: State | None) -> State:
        """Return the relaxation with commitments as the rounded plan has them, or to the nearest."""
        committed = self._fleet.pool_is_committed[: self._master.m.shape[1]]
        held = np.round(values[self._master.m]) if rounded is None else rounded.values[self._master.m]
        return self._state(values[self._master.n], np.where(committed, held, values[self._master.m]))

    def _rounded(self, values: FloatArray, cuts: list[Cuts]) -> State | None:
        """Return the relaxation's `values` rounded and topped up, and keep it as a plan; None if it breaks something.

        What is committed is rounded up and to the nearest, and what is cheaper with the cuts known so far is followed
        up.
        """
        replicas, instances = values[self._master.n], values[self._master.m]
        tried: list[tuple[float, Rounding]] = []
        for committed in (np.ceil(instances[0] - WHOLE), np.round(instances[0])):
            rounding = Rounding(
                self._fleet, cuts, self._price, replicas=replicas, instances=instances, committed=committed
            )
            if rounding.top_up():
                state = self._state(rounding.replicas, rounding.instances)
                if state.is_feasible:
                    tried.append((state.cost, rounding))
        if not tried:
            return None
        _, cheapest = min(tried, key=lambda each: each[0])
        if not cheapest.run(self._budget):
            return None
        found = self._state(cheapest.replicas, cheapest.instances)
        logger.info("%.1f s: rounded and topped up, %.6g", self._budget.seconds, found.cost)
        if not found.is_feasible:
            return None
        self._offer(found)
        return found

    def _plain(self) -> FloatArray | None:
        """Return whole replicas of offers that are neither limited nor committed, (periods, options); None: too few."""
        n_options = self._master.n.shape[1]
        n_pools = self._master.m.shape[1]
        limited = self._fleet.pool_is_committed[:n_pools].copy()
        for limit in all_limits(self._fleet):
            per_replica, per_instance = limit_coefficients(limit, self._fleet)
            limited |= per_instance[:n_pools] > 0
            limited[self._fleet.option_pool[:n_options][per_replica[:n_options] > 0]] = True
        is_allowed = ~limited[self._fleet.option_pool[:n_options]]
        found = np.zeros(self._master.n.shape)
        for need in self._needs:
            cheapest = need.cheapest(self._price[need.options], is_allowed[need.options])
            if cheapest is None:
                return None
            found[:, need.options] = np.ceil(need.scale[:, None] * cheapest * (1 - OVERFULL))
        return found

    def _is_whole(self, state: State) -> np.ndarray:
        """Return in which periods replicas are whole, shape (periods,)."""
        replicas = state.values[self._master.n]
        return np.asarray(np.all(replicas == np.round(replicas), axis=1))

    def _whole(self, state: State, filling: FloatArray | None, *, solved: np.ndarray) -> State:
        """Return the state with replicas of `filling` where they are not solved, whole instances, and leases kept."""
        replicas = state.values[self._master.n]
        if filling is not None:
            replicas[~solved] = filling[~solved]
        instances = np.where(
            solved[:, None],
            np.ceil(state.values[self._master.m] - WHOLE),
            fewest_instances(self._fleet, replicas),
        )
        kept = kept_long_enough(self._fleet, instances.ravel().astype(np.int64)).reshape(instances.shape)
        committed = self._fleet.pool_is_committed[: instances.shape[1]]
        return self._state(replicas, np.where(committed, state.values[self._master.m], kept))

    def _in_order(self, near: Neighbourhood, state: State) -> State:
        """Return what comes of making the relaxation's periods whole one after the other.

        Each knows what those before it start and keep, so that limits and leases hold but where two stretches meet:
        one stretch for each worker, side by side. Demand may still be missed by a little.
        """
        stretches = split(len(self._master.periods), -(-len(self._master.periods) // WORKERS), 0)

        def work(stretch: IntArray) -> tuple[list[Solved], Neighbourhood]:
            own, now, found = near.apart(), state, []
            for at in stretch.tolist():
                if self._budget.stopped_by is not None:
                    break
                solved = own.solve(now, np.array([at]), margin=self._margin, tries=FIRST_TRIES)
                if solved is not None:
                    own.take_over(solved.cuts, known=solved.known, periods=solved.periods)
                    now = self._with(now, solved)
                    found.append(solved)
            return found, own

        known = near.n_cuts
        for stretch, done in zip(stretches, solve_all(work, stretches, self._budget), strict=True):
            if done is not None:
                for solved in done[0]:
                    state = self._with(state, solved)
                near.take_over(done[1].cuts, known=known, periods=stretch)
        logger.info("%.1f s: in order, %.6g (%s)", self._budget.seconds, state.cost, float(state.excess.sum()))
        if state.is_feasible or self._budget.stopped_by is not None:
            return state
        meeting = [np.append(before[-1], after[0]) for before, after in pairwise([*stretches, stretches[0]])]
        return self._passed(near, state, meeting, is_served=False)

    def _passed(self, near: Neighbourhood, state: State, windows: list[IntArray], *, is_served: bool) -> State:
        """Return what comes of solving every window once; those solved at the same time do not touch each other.

        is_served : whether the state serves all demand, so that what comes of it is a plan.
        """
        margin = self._margin
        turns = 1 + -(-max(margin, 1) // min(map(len, windows)))
        for turn in range(min(turns, len(windows))):
            now = state

            def work(periods: IntArray, now: State = now) -> Solved | None:
                return near.solve(now, periods, margin=margin, tries=None)

            for solved in solve_all(work, windows[turn::turns], self._budget):
                if solved is None:
                    continue
                near.take_over(solved.cuts, known=solved.known, periods=solved.periods)
                candidate = self._with(state, solved)
                if candidate.is_better_than(state):
                    state = candidate
                    if is_served:
                        self._offer(state)
            logger.info("%.1f s: %.6g (%s)", self._budget.seconds, state.cost, float(state.excess.sum()))
            if self.is_done or self._budget.stopped_by is not None:
                break
        return state

    def _mended(self, state: State, cuts: list[Cuts]) -> State | None:
        """Return the state without the instances that limits do not allow, topped up where demand is missed.

        None if it failed.
        """
        replicas, instances = state.values[self._master.n], state.values[self._master.m]
        rounding = Rounding(
            self._fleet, cuts, self._price, replicas=replicas, instances=instances, committed=instances[0]
        )
        if not rounding.run(self._budget):
            return None
        found = self._state(rounding.replicas, rounding.instances)
        logger.info("%.1f s: mended, %.6g (%s)", self._budget.seconds, found.cost, float(found.excess.sum()))
        self._offer(found)
        return found

    def _with(self, state: State, solved: Solved) -> State:
        """Return the state with a window's values."""
        replicas, instances = state.values[self._master.n], state.values[self._master.m]
        replicas[solved.periods] = solved.values[self._master.n][solved.periods]
        instances[solved.periods] = solved.values[self._master.m][solved.periods]
        more = solved.values[self._master.m][solved.after]
        instances[solved.after] = np.maximum(instances[solved.after], more)
        return self._state(replicas, instances)

    def _state(self, replicas: FloatArray, instances: FloatArray | IntArray) -> State:
        return state_of(self._master, replicas, np.asarray(instances, dtype=np.float64))

    def _offer(self, state: State) -> None:
        """Keep `state` if it is whole, breaks nothing and is the cheapest."""
        is_whole = np.all(state.values[self._master.milp.is_integer] % 1 == 0)
        if is_whole and state.is_feasible and (self.best is None or state.cost < self.best.cost):
            self.best = state

    def shares(self, state: State) -> FloatArray | None:
        """Return the shares of every pair, least load of the fullest replica first; None if something is not served."""
        shares = np.zeros(len(self._fleet.pair_bucket))
        parts = [(need, row) for need in self._needs for row in range(len(need.active))]

        def work(part: tuple[Need, int]) -> Loaded:
            need, row = part
            period = int(need.active[row])
            return need.most_loaded(state.values[self._master.n[period]][need.options] / need.scale[period])

        finishing = Budget(SolverSettings(time_limit_s=FINISHING_TIME_S))
        for (need, row), loaded in zip(parts, solve_all(work, parts, finishing), strict=True):
            if loaded is None or not loaded.load <= 1 + OVERFULL:
                return None
            shares[need.pairs[row]] = loaded.shares
        return shares


def _replica_prices(fleet: FleetArrays) -> FloatArray:
    """Return a replica's part of its instance's price, of every option of a period."""
    n_options = len(fleet.options) // fleet.n_periods
    return np.array(
        [
            float(option.offer.price_usd_per_hour) / offer_gpus(option.offer) * option.gpus_per_replica
            for option in fleet.options[:n_options]
        ]
    )
