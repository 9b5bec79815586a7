"""The cost-minimising search: arrays to a verified number of replicas and instances."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import SolverError, SolverLiedError
from planner.optimize.alike import merged
from planner.optimize.backends import solve_milp
from planner.optimize.decompose import can_be_cut, decomposed_fleet
from planner.optimize.energy import running_usd_per_hour
from planner.optimize.horizon import can_be_projected, horizon_fleet
from planner.optimize.model import build_model
from planner.optimize.periods import instance_periods, kept_long_enough, starts, without_spare
from planner.optimize.routing import option_load
from planner.optimize.rows.changes import change_usd_per_hour
from planner.optimize.rows.minimums import is_counted, kept_instances
from planner.optimize.rows.packing import instances_needed
from planner.optimize.scenario_search import is_large, search_in_rounds
from planner.optimize.settings import SolverSettings
from planner.optimize.termination import Termination
from planner.optimize.verify import PLAN_TOLERANCE, verify
from planner.optimize.warm_start import warm_start
from planner.optimize.wishes import share_wishes
from planner.optimize.work import laid_out, shares_and_work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.backends import RawSolution
    from planner.optimize.decompose.driver import Found
    from planner.optimize.horizon.driver import Found as FoundOverPeriods
    from planner.optimize.milp import FloatArray, IntArray, Milp
    from planner.optimize.model import FleetModel, Objective

STRICT_MARGIN = 5e-6
"""Solvers may overfill a replica by their tolerance (1e-6). Where the fleet that they return does not hold the demand
exactly, the search is repeated with loads this much larger, relative; the bound stays that of the true demand."""
_STRICT_TRIES = 2
_SEARCH_SLACK = 1e-6
"""A replica is not needed for less load than this: a solver's tolerance."""
_DROP_ROUNDS = 20
"""Replicas that new shares leave idle are dropped, which gives new shares; each round drops one replica or more."""
INTERRUPTED_TIME_LIMIT_S = 3.0
"""How long what follows a stopped search may take: a second one after Ctrl-C on a solver that cannot hand its best
solution over, and the relaxation that its fleet is compared with."""
DECOMPOSED_FROM_PAIRS = 20_000
"""Eligible (bucket, option) pairs of several services from which the search is decomposed: 5 services of 100 buckets
and 40 options. Below, the whole programme is the faster way to a proof; one service is always one programme."""
BY_PERIODS_FROM_PAIRS = 100_000
"""Eligible (bucket, option) pairs of all periods from which a horizon is searched by periods."""
BY_PERIODS_FROM = 6
"""Periods; fewer are always one programme."""
BOUND_DUST = 1e-9
"""Relative: a bound this close below the cost is the cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A verified choice of replicas, instances and shares."""

    replicas: IntArray
    """n, shape (options,)."""
    instances: IntArray
    """m, shape (pools,)."""
    shares: FloatArray
    """x as fractions, shape (pairs,); each bucket's sum to 1, or to the part of it that is served."""
    cost_usd_per_hour: float
    """Of what is rented."""
    change_usd_per_hour: float = 0.0
    """Of the changes to today's fleet."""
    running_usd_per_hour: float = 0.0
    """Of electricity, emissions and egress at their prices; the objective is the sum of all three."""
    work: FloatArray = field(default_factory=lambda: np.zeros(0))
    """y, the part of its job that each pair of job and option does, shape (work pairs,); each job's sum to 1."""

    @property
    def beside_usd_per_hour(self) -> float:
        """What is minimised beside the cost of what is rented."""
        return self.change_usd_per_hour + self.running_usd_per_hour

    @property
    def total_usd_per_hour(self) -> float:
        """What is minimised."""
        return self.cost_usd_per_hour + self.beside_usd_per_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """How a search ended and what it found."""

    fleet: Fleet | None
    bound_usd_per_hour: float | None
    """No fleet costs less whose changes, electricity and emissions cost no more than this fleet's."""
    termination: Termination
    seconds: float
    solver: str
    version: str


def exact_cost(fleet: FleetArrays, instances: IntArray) -> float:
    """Return the price of `instances` (shape (pools,)) in USD/h, summed in decimal: 3 x 1.01 + 3.67 is 6.7.

    With a horizon it is the mean over the periods, with what is paid for starting up.
    """
    prices = (fleet.offers[offer].price_usd_per_hour for offer in fleet.pool_offer.tolist())
    paid = instance_periods(fleet, instances).tolist()
    terms = (Decimal(str(price)) * Decimal(repr(count)) for price, count in zip(prices, paid, strict=True))
    return float(sum(terms, Decimal()) / fleet.n_periods)


def search(fleet: FleetArrays, settings: SolverSettings) -> SearchResult:
    """Return the cheapest fleet that the solver finds within its limits, verified, and the proven bound.

    Raises
    ------
    SolverError: if the solver fails or its answer does not satisfy the model.
    """
    if is_large(fleet):
        return search_in_rounds(fleet, settings, _search)
    return _search(fleet, settings)


def _search(fleet: FleetArrays, settings: SolverSettings) -> SearchResult:
    """Return the result of one programme for all of `fleet`, or of its parts."""
    large = _decomposed(fleet, settings) if fleet.horizon is None else _over_periods(fleet, settings)
    if large is not None:
        return large
    bound: float | None = None
    seconds = 0.0
    margin = 0.0
    for _ in range(_STRICT_TRIES + 1):
        model = build_model(fleet.with_margin(margin))
        milp = warm_start(model, model.freeze(), settings)
        raw = run_by_class(model, milp, settings)
        if raw.values is None and raw.termination is Termination.INTERRUPTED:
            raw = _searched_again(model, milp, raw, settings)
        found = _fleet(fleet, model, milp, raw)
        if raw.termination.is_limit and not fleet.is_sliced:
            raw, found = _or_rounded_up(fleet, model, milp, raw, found=found, settings=settings)
        seconds += raw.seconds
        bound = raw.bound if bound is None else bound
        if found is not None or raw.values is None:
            return SearchResult(
                fleet=found,
                bound_usd_per_hour=clean_bound(bound, found),
                termination=raw.termination,
                seconds=seconds,
                solver=raw.solver,
                version=raw.version,
            )
        margin = STRICT_MARGIN if not margin else margin * 10
    raise SolverError(
        "The solver's fleets do not hold the demand, even with its tolerance allowed for.",
        hint="Try another solver with --solver.",
    )


def _searched_again(model: FleetModel, milp: Milp, stopped: RawSolution, settings: SolverSettings) -> RawSolution:
    """Return what a short search finds after Ctrl-C on a solver that handed nothing over."""
    again = run_by_class(
        model, milp, replace(settings, time_limit_s=min(settings.time_limit_s, INTERRUPTED_TIME_LIMIT_S))
    )
    seconds = stopped.seconds + again.seconds
    if again.termination is Termination.INFEASIBLE:
        return replace(again, seconds=seconds)
    found = stopped if again.values is None else again
    return replace(found, termination=stopped.termination, seconds=seconds)


def _or_rounded_up(
    fleet: FleetArrays,
    model: FleetModel,
    milp: Milp,
    stopped: RawSolution,
    *,
    found: Fleet | None,
    settings: SolverSettings,
) -> tuple[RawSolution, Fleet | None]:
    """Return a stopped search's answer with the cheapest of its fleet, the rounded-up relaxation and today's fleet.

    The first fleets of a search that is stopped early can cost several times what the relaxation says. The bound is the
    better one.
    """
    is_hurried = found is not None or stopped.termination is Termination.INTERRUPTED
    limit_s = min(settings.time_limit_s, INTERRUPTED_TIME_LIMIT_S) if is_hurried else settings.time_limit_s
    rounded = _rounded_relaxation(model, milp, stopped, limit_s=limit_s)
    bounds = [bound for bound in (stopped.bound, rounded.bound) if bound is not None]
    others = [rounded]
    if milp.start is not None and np.all(np.isfinite(milp.start)):
        others.append(replace(stopped, values=milp.start, objective=None, bound=None))
    for raw in others:
        other = _fleet(fleet, model, milp, raw)
        if other is not None and (found is None or other.total_usd_per_hour < found.total_usd_per_hour):
            stopped, found = raw, other
    return replace(stopped, bound=max(bounds, default=None), seconds=rounded.seconds), found


def _decomposed(fleet: FleetArrays, settings: SolverSettings) -> SearchResult | None:
    """Return the result of a decomposed search where the fleet is large enough for one; None: solve it whole."""
    n_services = len({service for service, _ in fleet.buckets})
    if len(fleet.pair_bucket) < DECOMPOSED_FROM_PAIRS or n_services < 2 or fleet.is_sliced:
        return None
    model = build_model(fleet)
    milp = model.freeze()
    by_class = merged(model, milp) if can_be_cut(model, milp) else None
    found = None if by_class is None else decomposed_fleet(by_class, settings)
    return None if found is None else _verified(fleet, model, milp, found, settings)


def _over_periods(fleet: FleetArrays, settings: SolverSettings) -> SearchResult | None:
    """Return the result of a search by periods where they are many and large enough for one; None: solve it whole."""
    if len(fleet.pair_bucket) < BY_PERIODS_FROM_PAIRS or fleet.n_periods < BY_PERIODS_FROM or fleet.is_sliced:
        return None
    model = build_model(fleet)
    milp = model.freeze()
    found = horizon_fleet(model, milp, settings) if can_be_projected(model, milp) else None
    return None if found is None else _verified(fleet, model, milp, found, settings)


def _verified(
    fleet: FleetArrays, model: FleetModel, milp: Milp, found: Found | FoundOverPeriods, settings: SolverSettings
) -> SearchResult:
    """Return what a search in parts found, checked against the whole programme."""
    chosen = None
    if found.replicas is not None and found.instances is not None and found.shares is not None:
        values = np.zeros(milp.n_columns)
        values[model.x], values[model.n], values[model.m] = found.shares, found.replicas, found.instances
        instances = found.instances.round().astype(np.int64)
        if model.up is not None:
            started = model.up >= 0
            values[model.up[started]] = starts(fleet, instances)[started]
        verify(milp, values, bound=found.bound)
        chosen = Fleet(
            replicas=found.replicas.round().astype(np.int64),
            instances=instances,
            shares=found.shares,
            cost_usd_per_hour=exact_cost(fleet, instances),
        )
    return SearchResult(
        fleet=chosen,
        bound_usd_per_hour=clean_bound(found.bound, chosen),
        termination=found.termination,
        seconds=found.seconds,
        solver=settings.solver,
        version=found.version,
    )


def _rounded_relaxation(model: FleetModel, milp: Milp, stopped: RawSolution, *, limit_s: float) -> RawSolution:
    """Return the linear relaxation, rounded up, as a stopped search's solution.

    Rounded-up replicas and instances hold the relaxation's shares; limits may not allow them, and then there is no
    plan. The relaxation's cost is a bound if it was solved to its end.
    """
    relaxed = replace(milp, is_integer=np.zeros(milp.n_columns, dtype=np.bool_))
    raw = run_by_class(model, relaxed, SolverSettings(solver="highs", time_limit_s=limit_s))
    if raw.values is None:
        return replace(stopped, seconds=stopped.seconds + raw.seconds)
    rounded = raw.values.copy()
    rounded[model.n] = np.ceil(rounded[model.n] - PLAN_TOLERANCE)
    instances = np.maximum(
        np.ceil(rounded[model.m] - PLAN_TOLERANCE).astype(np.int64),
        instances_needed(model.fleet, rounded[model.n].round().astype(np.int64)),
    )
    instances = kept_long_enough(model.fleet, instances)
    rounded[model.m] = instances
    if model.up is not None:
        started = model.up >= 0
        rounded[model.up[started]] = starts(model.fleet, instances)[started]
    rounded = model.with_followers(rounded, milp)
    try:
        values: FloatArray | None = verify(milp, rounded).values
    except SolverLiedError:  # not the solver's fault: the limits do not allow what was rounded up
        values = None
    seconds = stopped.seconds + raw.seconds
    bound = raw.objective if raw.termination is Termination.OPTIMAL else None
    return replace(stopped, values=values, objective=None, bound=bound, seconds=seconds)


def run(milp: Milp, settings: SolverSettings) -> RawSolution:
    """Return a solver's answer to `milp`; its failures become errors.

    Raises
    ------
    SolverError: if the solver broke, or calls a programme optimal without a solution.
    """
    raw = solve_milp(milp, settings)
    no_solution = raw.termination is Termination.OPTIMAL and raw.values is None
    if raw.termination.is_failure or raw.termination is Termination.UNBOUNDED or no_solution:
        raise SolverError(
            f"The solver {raw.solver} ended with {raw.termination.value!r} {raw.detail}".rstrip() + ".",
            hint="Try another solver with --solver.",
        )
    if raw.termination is Termination.INFEASIBLE_OR_UNBOUNDED:  # all costs and variables here are bounded from below
        return replace(raw, termination=Termination.INFEASIBLE)
    return raw


def run_by_class(model: FleetModel, milp: Milp, settings: SolverSettings) -> RawSolution:
    """Return a solver's answer to `milp`, asked with options that serve alike taken together where rows allow it."""
    by_class = merged(model, milp)
    if by_class is None or by_class.is_as_large:
        return run(milp, settings)
    raw = run(by_class.milp, settings)
    return raw if raw.values is None else replace(raw, values=by_class.expand(raw.values))


def clean_bound(bound: float | None, found: Fleet | None) -> float | None:
    """Return the bound of what a fleet costs beside changes and energy no dearer than those of `found`."""
    if bound is None:
        return 0.0 if found is not None else None
    if found is None:
        return max(bound, 0.0)
    return price_bound(bound - found.beside_usd_per_hour, found.cost_usd_per_hour)


def price_bound(bound: float, cost: float) -> float:
    """Return the bound as a price: at least 0, and not above the verified cost by floating-point dust."""
    bound = max(bound, 0.0)
    return cost if bound >= cost - BOUND_DUST * max(cost, 1.0) else bound


def _fleet(fleet: FleetArrays, model: FleetModel, milp: Milp, raw: RawSolution) -> Fleet | None:
    """Return the verified fleet in a solver's answer; None if there is none or it does not hold the demand exactly."""
    if raw.values is None:
        return None
    verified = verify(milp, raw.values, stated_objective=raw.objective, bound=raw.bound)
    assigned = verified.values[model.x] / fleet.units_per_bucket
    return settle(
        fleet,
        replicas=verified.values[model.n].round().astype(np.int64),
        instances=verified.values[model.m].round().astype(np.int64),
        assigned=assigned,
    )


def settle(
    fleet: FleetArrays,
    *,
    replicas: IntArray,
    instances: IntArray,
    assigned: FloatArray,
    aim: Objective | None = None,
    kept: Sequence[tuple[Objective, float]] = (),
) -> Fleet | None:
    """Return the fleet without replicas and instances that nothing needs, shares exact to 1e-9; None if it cannot hold.

    Spare GPUs of a rented instance can run replicas at no cost, and a search that was stopped early can rent what it
    does not need; neither belongs in a plan.

    Parameters
    ----------
    replicas, instances : as the solver has them, shape (options,) and (pools,).
    assigned : the solver's shares, shape (pairs,); kept as they are where buckets are sliced.
    aim, kept : what shares should have little of, and objectives that must not get worse, as in `share_wishes`.
    """

    def routed(replicas: IntArray, assigned: FloatArray) -> tuple[FloatArray, FloatArray] | None:
        wishes = share_wishes(fleet, replicas=replicas, instances=instances, aim=aim, kept=kept)
        return shares_and_work(fleet, replicas, assigned, wishes)

    work = laid_out(fleet, replicas, assigned)
    if work is None:
        return None
    by_load = np.ceil(occupied(fleet, assigned, work) - _SEARCH_SLACK).astype(np.int64)
    # However little the load is:
    in_use = _replicas_in_use(fleet, np.where(assigned > _SEARCH_SLACK, assigned, 0.0), work)
    fewest = (by_load, np.maximum(by_load, np.minimum(in_use, 1)), replicas)
    for wanted in fewest if not fleet.keeps_spares else (replicas,):
        needed = np.minimum(replicas, wanted)
        found = routed(needed, assigned)
        if found is not None:
            break
    else:
        return None
    if not fleet.keeps_spares:
        needed, found = _without_spares(fleet, needed, found, routed)
    holding = instances_needed(fleet, needed)
    if fleet.horizon is None:
        packed = kept_instances(fleet, instances, holding)
    else:  # what a minimum counts stays as the search has it: fewer in one period can break a lease in another
        packed = without_spare(fleet, instances, np.where(is_counted(fleet), instances, holding))
    return Fleet(
        replicas=needed,
        instances=packed,
        shares=found[0],
        cost_usd_per_hour=exact_cost(fleet, packed),
        change_usd_per_hour=change_usd_per_hour(fleet, needed),
        running_usd_per_hour=running_usd_per_hour(fleet, needed, found[0]),
        work=found[1],
    )


def _without_spares(
    fleet: FleetArrays,
    replicas: IntArray,
    found: tuple[FloatArray, FloatArray],
    routed: Callable[[IntArray, FloatArray], tuple[FloatArray, FloatArray] | None],
) -> tuple[IntArray, tuple[FloatArray, FloatArray]]:
    """Return replicas without those that nothing needs, and what is left does, as `routed` finds it."""
    needed = replicas
    for _ in range(_DROP_ROUNDS):
        fewer = np.minimum(needed, _replicas_in_use(fleet, *found))
        again = routed(fewer, found[0]) if np.any(fewer < needed) else None
        if again is None:
            break
        needed, found = fewer, again
    return np.where(_replicas_in_use(fleet, *found) > 0, needed, 0), found


def occupied(fleet: FleetArrays, shares: FloatArray, work: FloatArray) -> FloatArray:
    """Return the replicas that requests with their headroom need, or requests and work without it if that is more."""
    requests = option_load(fleet, shares)
    if not fleet.jobs:
        return requests
    beside = requests / (1 + fleet.headroom_fraction) + fleet.work.busy(work, len(fleet.options))
    return np.asarray(np.maximum(requests, beside), dtype=np.float64)


def _replicas_in_use(fleet: FleetArrays, shares: FloatArray, work: FloatArray) -> IntArray:
    """Return the replicas that shares and work fill, at least one wherever there is any, shape (options,)."""
    full = np.ceil(occupied(fleet, shares, work) - PLAN_TOLERANCE).astype(np.int64)
    is_used = np.bincount(fleet.pair_option, weights=shares, minlength=len(fleet.options)) > 0
    is_used |= fleet.work.busy(work, len(fleet.options)) > 0
    return np.maximum(full, is_used)
