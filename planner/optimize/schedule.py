"""A fleet over periods as people read it: the schedule, what to commit to, and the horizon in one table."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.plan import Commitment, Period, PeriodAllocation, PeriodRental, PeriodRoute, PeriodUnserved
from planner.domain.problem import COMMITTED_MARKETS
from planner.optimize.energy_report import period_totals, with_mean_energy
from planner.optimize.naming import service_order
from planner.optimize.periods import starts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.domain.plan import Allocation, Rental, Route
    from planner.domain.problem import FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import IntArray
    from planner.optimize.search import Fleet

COST_DIGITS = 9
"""Decimals of a part of a cost: cuts floating-point dust, nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyState:
    """What runs, what is rented and what goes where, in one period or on the whole."""

    allocation: tuple[Allocation, ...]
    rentals: tuple[Rental, ...]
    routing: tuple[Route, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A fleet over periods and each period alone."""

    problem: FleetProblem
    fleet: FleetArrays
    chosen: Fleet
    states: tuple[SteadyState, ...]

    def starts_by_offer(self) -> list[dict[str, int]]:
        """Return for every period how many instances of each offer are started for it."""
        return _by_offer(self.fleet, starts(self.fleet, self.chosen.instances))

    @property
    def start_share(self) -> float:
        """Price of a start, as a multiple of a period's price."""
        horizon = self.fleet.horizon
        return 0.0 if horizon is None else horizon.start_up_s / horizon.step_s


def _by_offer(fleet: FleetArrays, counts: IntArray) -> list[dict[str, int]]:
    """Return counts (shape (pools,)) by offer name, one mapping per period."""
    found: list[dict[str, int]] = [defaultdict(int) for _ in range(fleet.n_periods)]
    for period, offer, count in zip(
        fleet.pool_period.tolist(), fleet.pool_offer.tolist(), counts.tolist(), strict=True
    ):
        found[period][fleet.offers[offer].name] += count
    return found


def schedule_periods(schedule: Schedule) -> tuple[Period, ...]:
    """Return the periods of the plan, in order."""
    horizon = schedule.fleet.horizon
    step_s = horizon.step_s if horizon is not None else 0.0
    started = schedule.starts_by_offer()
    return tuple(
        replace(
            _period(schedule, state, started[index], start_s=index * step_s, step_s=step_s),
            unserved=_unserved(schedule.fleet, index),
        )
        for index, state in enumerate(schedule.states)
    )


def _period(
    schedule: Schedule, state: SteadyState, started: dict[str, int], *, start_s: float, step_s: float
) -> Period:
    extra = {item.offer: _start_cost(item, started[item.offer], schedule.start_share) for item in state.rentals}
    gpus = _gpus_in_use(state.allocation)
    period = Period(
        start_s=start_s,
        duration_s=step_s,
        rate_rps=float(sum(route.rate_rps for route in state.routing)),
        cost_usd_per_hour=round(sum(item.cost_usd_per_hour + extra[item.offer] for item in state.rentals), COST_DIGITS),
        allocation=tuple(
            PeriodAllocation(
                service=item.service,
                option=item.option,
                replicas=item.replicas,
                utilization=item.utilization,
                work_utilization=item.work_utilization,
                cost_usd_per_hour=_with_start(item, extra[item.offer], gpus[item.offer]),
            )
            for item in state.allocation
        ),
        rentals=tuple(
            PeriodRental(offer=item.offer, instances=item.instances, starting=started[item.offer])
            for item in state.rentals
        ),
        routing=tuple(
            PeriodRoute(
                service=route.service,
                row=route.row,
                column=route.column,
                rate_rps=route.rate_rps,
                weights=route.weights,
                decode_weights=route.decode_weights,
            )
            for route in state.routing
        ),
    )
    return period_totals(period, state.allocation)


def _unserved(fleet: FleetArrays, period: int) -> tuple[PeriodUnserved, ...]:
    """Return what one period leaves unserved."""
    if fleet.served is None:
        return ()
    left = np.flatnonzero((fleet.bucket_period == period) & (fleet.served < 1))
    return tuple(
        PeriodUnserved(
            service=fleet.buckets[b][0],
            row=fleet.buckets[b][1].row,
            column=fleet.buckets[b][1].column,
            rate_rps=float(fleet.buckets[b][1].rate_rps * (1 - fleet.served[b])),
        )
        for b in left.tolist()
    )


def _start_cost(rental: Rental, started: int, share: float) -> float:
    return rental.cost_usd_per_hour / rental.instances * started * share


def _gpus_in_use(allocation: Sequence[Allocation]) -> dict[str, int]:
    """Return the GPUs that replicas occupy, by offer."""
    used: dict[str, int] = defaultdict(int)
    for item in allocation:
        used[item.offer] += item.gpus_per_replica * item.replicas
    return used


def _with_start(item: Allocation, extra: float, gpus: int) -> float:
    """Return an allocation's cost with its share, by GPUs, of what starting up costs on its offer."""
    return round(item.cost_usd_per_hour + extra * item.gpus_per_replica * item.replicas / gpus, COST_DIGITS)


def commitments(rentals: Sequence[Rental]) -> tuple[Commitment, ...]:
    """Return what is to be reserved: instances that are paid in every period."""
    return tuple(
        Commitment(
            offer=item.offer,
            market=item.market,
            gpu=item.gpu,
            instances=item.instances,
            cost_usd_per_hour=item.cost_usd_per_hour,
        )
        for item in rentals
        if item.market in COMMITTED_MARKETS
    )


def mean_state(schedule: Schedule) -> SteadyState:
    """Return the horizon in one table: counts are the most of any period; costs, rates and weights are means."""
    rentals = _whole_rentals(schedule)
    return SteadyState(
        allocation=_whole_allocations(schedule, rentals), rentals=rentals, routing=_whole_routing(schedule)
    )


def _whole_rentals(schedule: Schedule) -> tuple[Rental, ...]:
    started = schedule.starts_by_offer()
    mean: dict[str, list[float]] = defaultdict(list)
    most: dict[str, Rental] = {}
    for index, state in enumerate(schedule.states):
        for item in state.rentals:
            mean[item.offer].append(
                item.cost_usd_per_hour + _start_cost(item, started[index][item.offer], schedule.start_share)
            )
            most[item.offer] = max(most.get(item.offer, item), item, key=lambda rental: rental.instances)
    n_periods = len(schedule.states)
    return tuple(
        replace(most[name], cost_usd_per_hour=round(sum(mean[name]) / n_periods, COST_DIGITS)) for name in sorted(most)
    )


def _whole_allocations(schedule: Schedule, rentals: Sequence[Rental]) -> tuple[Allocation, ...]:
    rows: dict[tuple[str, str], list[Allocation]] = defaultdict(list)
    for state in schedule.states:
        for item in state.allocation:
            rows[item.service, item.option].append(item)
    order = service_order(schedule.problem)
    ranked = sorted(rows, key=lambda key: (order[key[0]], rows[key][0].offer, key[1]))
    offers = {item.offer: item for item in rentals}
    used = _gpus_in_use([item for items in rows.values() for item in items])
    return tuple(_whole_allocation(rows[key], offers, used, n_periods=len(schedule.states)) for key in ranked)


def _whole_allocation(
    items: Sequence[Allocation], offers: dict[str, Rental], used: dict[str, int], *, n_periods: int
) -> Allocation:
    """Return one option over the horizon; it bears its part of the offer's whole cost by GPU-hours."""
    busiest = max(items, key=lambda item: item.replicas)
    rental = offers[busiest.offer]
    replicas = sum(item.replicas for item in items)
    tokens = [item.output_tokens_per_s for item in items]
    transfers = [item.transfer_bytes_per_s or 0.0 for item in items]
    part = busiest.gpus_per_replica * replicas / used[busiest.offer]
    whole = replace(
        busiest,
        instances=rental.instances,
        cost_usd_per_hour=round(rental.cost_usd_per_hour * part, COST_DIGITS),
        utilization=sum(item.utilization * item.replicas for item in items) / replicas,
        work_utilization=sum(item.work_utilization * item.replicas for item in items) / replicas,
        rate_rps=sum(item.rate_rps for item in items) / n_periods,
        output_tokens_per_s=None if None in tokens else sum(value or 0.0 for value in tokens) / n_periods,
        transfer_bytes_per_s=None if busiest.transfer_bytes_per_s is None else sum(transfers) / n_periods,
    )
    return with_mean_energy(whole, items, n_periods)


def _whole_routing(schedule: Schedule) -> tuple[Route, ...]:
    routes: dict[tuple[str, int, int], list[Route]] = defaultdict(list)
    for state in schedule.states:
        for route in state.routing:
            routes[route.service, route.row, route.column].append(route)
    order = {
        (demand.service, bucket.row, bucket.column): index
        for index, (demand, bucket) in enumerate(
            (demand, bucket) for demand in schedule.problem.demands for bucket in demand.buckets
        )
    }
    return tuple(
        _whole_route(routes[key], n_periods=len(schedule.states)) for key in sorted(routes, key=lambda key: order[key])
    )


def _whole_route(routes: Sequence[Route], *, n_periods: int) -> Route:
    """Return a bucket's route over the horizon: the share of all its requests that each option gets."""
    total = sum(route.rate_rps for route in routes)
    weights: dict[str, float] = defaultdict(float)
    decode_weights: dict[str, float] = defaultdict(float)
    for route in routes:
        for whole, now in ((weights, route.weights), (decode_weights, route.decode_weights)):
            for option, weight in now.items():
                whole[option] += weight * route.rate_rps / total
    sums = float(np.sum(list(weights.values())))
    return replace(
        routes[0],
        rate_rps=total / n_periods,
        weights={option: weight / sums for option, weight in weights.items()},
        decode_weights={option: weight / sums for option, weight in decode_weights.items()},
        provenance={key: kind for route in routes for key, kind in route.provenance.items()},
    )
