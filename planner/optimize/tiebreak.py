"""Which of several equally cheap fleets is the plan: a documented order, so that nobody's random choice decides.

Among fleets that cost the same: fewest distinct offers, then fewest rented GPUs, then fewest GPUs in use, then the
offers and options that come first by name. Small programmes, one after the other, with the cost held fixed. They stop
at a number of nodes, which is the same on every machine; above a size they are left out. Both are reported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import SolverLiedError
from planner.optimize.model import Objective, build_model, cost_objective, instances_upper, pool_prices
from planner.optimize.problem_check import offer_gpus
from planner.optimize.rows.changes import change_rates
from planner.optimize.search import run, search, settle
from planner.optimize.termination import Termination
from planner.optimize.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.model import FleetModel
    from planner.optimize.search import Fleet
    from planner.optimize.settings import SolverSettings

MAX_PAIRS = 500
"""Eligible (bucket, option) pairs up to which ties are broken: it takes several times as long as the search itself."""
LARGEST_WEIGHT = 1e3
"""Distinct offers are counted in one programme with GPUs up to this weight; above it numbers get too uneven."""
LARGEST_GAP = 0.01
"""Whoever asks for a plan within more than this of the optimum does not mind which one."""
NODE_LIMIT = 100
SAME_COST = 1e-9
"""Relative: costs this close are equal."""
SAME_COST_OF_SHARES = 1e-6
"""Relative: the same where shares cost something."""
SAME_VALUE = 1e-6
"""Rules count things; smaller differences are noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The chosen fleet, and what to assume where it is not proven to be the first one."""

    fleet: Fleet
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One thing to have little of: a coefficient per replica, per instance and per distinct offer."""

    per_replica: FloatArray
    per_instance: FloatArray
    per_offer: float = 0.0
    per_pair: FloatArray | None = None
    per_change: float = 0.0

    def value(self, fleet: FleetArrays, chosen: Fleet) -> float:
        distinct = len(np.unique(fleet.pool_offer[chosen.instances > 0]))
        by_shares = 0.0 if self.per_pair is None else float(self.per_pair @ chosen.shares)
        counted = self.per_replica @ chosen.replicas + self.per_instance @ chosen.instances + self.per_offer * distinct
        return float(counted) + by_shares + self.per_change * chosen.change_usd_per_hour


def break_ties(
    fleet: FleetArrays, found: Fleet, settings: SolverSettings, *, kept: Sequence[tuple[Objective, float]] = ()
) -> Broken:
    """Return the first fleet in the documented order among those that cost what `found` costs.

    Parameters
    ----------
    kept : other objectives, each with the most that it may be.
    """
    if settings.relative_gap > LARGEST_GAP:
        return Broken(fleet=found)
    if fleet.n_periods > 1:
        return Broken(fleet=found, assumptions=(_unsettled("there are several periods"),))
    limited = replace(settings, relative_gap=0.0, node_limit=NODE_LIMIT)
    if len(fleet.pair_bucket) <= MAX_PAIRS:
        return _staged(fleet, found, limited, kept)
    if kept:
        return Broken(fleet=found, assumptions=(_unsettled("the request is large"),))
    alone = [_staged(*pair, limited) for pair in _single_offers(fleet, found, limited)]
    rules = _rules(fleet, found)
    ranked = sorted(alone, key=lambda each: tuple(rule.value(fleet, each.fleet) for rule in rules))
    if ranked:
        return ranked[0]
    return Broken(fleet=found, assumptions=(_unsettled("the request is large"),))


def _staged(
    fleet: FleetArrays, found: Fleet, settings: SolverSettings, kept: Sequence[tuple[Objective, float]] = ()
) -> Broken:
    """Return the first fleet in the documented order, one small programme per rule."""
    best = found
    held = [
        (
            _Rule(
                per_replica=objective.per_replica,
                per_instance=objective.per_instance,
                per_pair=objective.per_pair,
                per_change=objective.per_change,
            ),
            most,
        )
        for objective, most in kept
    ]
    is_proven = True
    for rule in _rules(fleet, found):
        best, is_complete = _improve(fleet, best, rule, held, settings, kept=kept)
        is_proven = is_proven and is_complete
        held.append((rule, rule.value(fleet, best)))
    return Broken(fleet=best, assumptions=() if is_proven else (_unsettled("the search for them was cut short"),))


def _single_offers(fleet: FleetArrays, found: Fleet, settings: SolverSettings) -> Iterator[tuple[FleetArrays, Fleet]]:
    """Yield the fleets of a single offer that cost the same, each with the arrays that have no other offer.

    No order of distinct offers comes before one, so these are all that matter where there is any; and few offers have
    a price of which the cost is a multiple.
    """
    if fleet.change is not None:
        return  # what is stopped costs something too, so the cost is no multiple of a price
    cost = found.cost_usd_per_hour
    for index, offer in enumerate(fleet.offers):
        price = float(offer.price_usd_per_hour)
        if price <= 0 or abs(cost / price - round(cost / price)) > SAME_COST * max(cost / price, 1.0):
            continue
        only = replace(fleet, replicas_upper=np.where(fleet.option_offer == index, fleet.replicas_upper, 0.0))
        alone = search(only, settings).fleet
        if alone is not None and alone.cost_usd_per_hour <= cost + SAME_COST * max(cost, 1.0):
            yield only, alone


def _rules(fleet: FleetArrays, found: Fleet) -> tuple[_Rule, ...]:
    n_options, n_pools = len(fleet.options), len(fleet.pool_offer)
    gpus = np.array([offer_gpus(fleet.offers[offer]) for offer in fleet.pool_offer.tolist()], dtype=np.float64)
    most_instances = _affordable(fleet, found.total_usd_per_hour)
    most_gpus = float(gpus @ most_instances) + 1.0
    # GPUs in use count as a fraction that never adds up to one rented GPU, distinct offers as more than all GPUs that
    # the money buys: three orders in one programme.
    in_use = fleet.option_gpus / most_gpus
    rank = np.arange(n_options, dtype=np.float64)
    by_name = _Rule(per_replica=rank, per_instance=n_options * fleet.pool_offer.astype(np.float64))
    if most_gpus <= LARGEST_WEIGHT:
        return (_Rule(per_replica=in_use, per_instance=gpus, per_offer=most_gpus), by_name)
    offers = _Rule(per_replica=np.zeros(n_options), per_instance=np.zeros(n_pools), per_offer=1.0)
    return (offers, _Rule(per_replica=in_use, per_instance=gpus), by_name)


def _affordable(fleet: FleetArrays, cost_usd_per_hour: float) -> FloatArray:
    """Return how many instances of each pool a fleet of this cost can have, shape (pools,)."""
    prices = pool_prices(fleet)
    affordable = np.full(len(prices), np.inf)
    affordable[prices > 0] = np.floor(cost_usd_per_hour / prices[prices > 0] + 1e-6)
    return np.asarray(np.minimum(affordable, instances_upper(fleet)), dtype=np.float64)


def _improve(
    fleet: FleetArrays,
    best: Fleet,
    rule: _Rule,
    held: list[tuple[_Rule, float]],
    settings: SolverSettings,
    *,
    kept: Sequence[tuple[Objective, float]],
) -> tuple[Fleet, bool]:
    """Return the fleet of the same cost that `rule` likes best, earlier rules kept, and whether that is proven."""
    model = build_model(fleet, Objective(per_replica=rule.per_replica, per_instance=rule.per_instance))
    _hold_cost(model, best.total_usd_per_hour)
    y = _count_offers(model, best.total_usd_per_hour, cost=rule.per_offer)
    for earlier, value in held:
        _hold(model, y, earlier, value)
    milp = model.freeze()
    raw = run(milp, settings)
    is_complete = raw.termination is Termination.OPTIMAL
    if raw.values is None:
        return best, False
    try:
        verified = verify(milp, raw.values, stated_objective=raw.objective)
    except SolverLiedError:
        return best, False  # a worse tie-break, never a wrong plan: `best` is verified
    candidate = settle(
        fleet,
        replicas=verified.values[model.n].round().astype(np.int64),
        instances=verified.values[model.m].round().astype(np.int64),
        assigned=verified.values[model.x] / fleet.units_per_bucket,
        kept=kept,
    )
    if candidate is None or not _is_allowed(fleet, candidate, best, held):
        return best, False
    is_better = rule.value(fleet, candidate) < rule.value(fleet, best) - SAME_VALUE
    return (candidate, is_complete) if is_better else (best, is_complete)


def _is_allowed(fleet: FleetArrays, candidate: Fleet, best: Fleet, held: list[tuple[_Rule, float]]) -> bool:
    same = _same_cost(fleet)
    cost_limit = best.total_usd_per_hour + same * max(best.total_usd_per_hour, 1.0)
    return candidate.total_usd_per_hour <= cost_limit and all(
        rule.value(fleet, candidate) <= value + same * max(value, 1.0) for rule, value in held
    )


def _same_cost(fleet: FleetArrays) -> float:
    """Return the relative difference below which costs are equal: shares are exact to what solvers accept only."""
    return SAME_COST if fleet.energy is None and fleet.egress_gb is None else SAME_COST_OF_SHARES


def _hold_cost(model: FleetModel, cost_usd_per_hour: float) -> None:
    """sum_p c[p] m[p] + what energy and changes cost <= the cheapest cost."""
    aim = cost_objective(model.fleet)
    per_pair = np.zeros(len(model.x)) if aim.per_pair is None else aim.per_pair / model.fleet.units_per_bucket
    columns = np.concatenate([model.m, model.n, model.x, model.changes])
    rates = np.repeat(change_rates(model.fleet), len(model.changes) // 2)
    model.builder.add_rows(
        "cost",
        rows=np.zeros(len(columns), dtype=np.int64),
        columns=columns,
        values=np.concatenate([aim.per_instance, aim.per_replica, per_pair, rates]),
        upper=[cost_usd_per_hour + _same_cost(model.fleet) * max(cost_usd_per_hour, 1.0)],
    )


def _hold(model: FleetModel, y: IntArray, rule: _Rule, value: float) -> None:
    """An earlier rule's sum stays at most at its best value."""
    per_pair = np.zeros(len(model.x)) if rule.per_pair is None else rule.per_pair / model.fleet.units_per_bucket
    columns = np.concatenate([model.n, model.m, model.x, y, model.changes])
    changes = rule.per_change * np.repeat(change_rates(model.fleet), len(model.changes) // 2)
    values = np.concatenate([rule.per_replica, rule.per_instance, per_pair, np.full(len(y), rule.per_offer), changes])
    scale = float(values.max(initial=0.0)) if rule.per_pair is not None else 1.0
    model.builder.add_rows(
        "rule",
        rows=np.zeros(len(columns), dtype=np.int64),
        columns=columns,
        values=values / scale,
        upper=[(value + SAME_COST * max(value, 1.0)) / scale],
    )


def _count_offers(model: FleetModel, cost_usd_per_hour: float, *, cost: float) -> IntArray:
    """m[p] <= M[p] y[o(p)] for every pool p, y binary: whether an offer is rented at all."""
    fleet = model.fleet
    n_pools = len(fleet.pool_offer)
    y = model.builder.add_columns("y", len(fleet.offers), upper=1.0, cost=cost, is_integer=True)
    pools = np.arange(n_pools)
    model.builder.add_rows(
        "rented",
        rows=np.concatenate([pools, pools]),
        columns=np.concatenate([model.m, y[fleet.pool_offer]]),
        values=np.concatenate([np.ones(n_pools), -_affordable(fleet, cost_usd_per_hour)]),
        upper=np.zeros(n_pools),
    )
    return y


def _unsettled(why: str) -> str:
    return (
        f"Other fleets may cost the same and come first in the documented order ({why}); this is the one that the "
        "solver finds every time."
    )
