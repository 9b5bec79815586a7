"""A plan as a fleet to simulate: its allocations as pools of replicas, its routing weights as the router's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.disaggregation import Role
from planner.errors import InputError
from planner.optimize.naming import option_keys
from planner.profilers.roofline import kv_bytes_per_gpu, kv_transfer_bytes
from planner.simulate.faults import Place
from planner.simulate.run import TURNED_AWAY, Policy, Pools, Router
from planner.simulate.steps import engine_table
from planner.simulate.tenants import NO_ADAPTER, adapter_numbers, engine_pools, seats_of, sizes_of, tenants_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from planner.domain.plan import Allocation, Period, PeriodRoute, PeriodUnserved, Plan, Route, Unserved
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Bucket
    from planner.simulate.faults import Span
    from planner.simulate.run import Traffic
    from planner.simulate.steps import EngineKind, Floats
    from planner.simulate.tenants import EnginePool, Seats

TRANSFER_TOKENS = 1000
"""Length at which the KV cache of a whole replica is compared with that on one of its GPUs."""

MOST_ROUTES = 25_000_000
"""Entries of the router's table, of eight bytes each and kept three times: 600 MB."""

MONTH_S = 30 * 86400.0
"""The window that interruption rates are published for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeClass:
    """Requests that one row of the router's table is for."""

    service: str
    input_tokens: tuple[int, int] | None
    output_tokens: tuple[int, int] | None
    adapter: int = NO_ADAPTER
    """Number of the adapter that they are for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A piece of the time that is replayed, with one fleet and one set of routing weights."""

    start_s: float
    """Since the replay began."""
    end_s: float
    period: int | None = None
    """Position in the plan's schedule; None = the plan has none."""
    is_counted: bool = True
    """False for a lead-in, in which the fleet fills."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFleet:
    """A plan's replicas and router."""

    pools: Pools
    """Of engines: as many as the allocation has rows, unless replicas of one row hold different adapters."""
    router: Router
    """Rows are the classes, for each stretch again."""
    allocation: tuple[Allocation, ...]
    places: tuple[Place, ...]
    """Of each row of the allocation."""
    classes: tuple[SizeClass, ...]
    turned_away: Floats
    """(stretches x classes,): part of a row's requests that the plan leaves unserved."""
    replicas: NDArray[np.int64]
    """(stretches, rows of the allocation): how many replicas the plan has then."""
    stretches: tuple[Stretch, ...]
    seats: Seats
    adapters: Mapping[tuple[str, str], int]
    """Number of every adapter with requests, by service and name; class numbers follow the same order."""

    def scheduled(self) -> list[list[Span]]:
        """Return by replica when the plan has it; what it has in the last stretch stays to the end."""
        ends = [stretch.end_s for stretch in self.stretches[:-1]] + [np.inf]
        found: list[list[Span]] = []
        for pool, place in enumerate(self.places):
            for i in range(place.replicas):
                spans: list[Span] = []
                for stretch, end_s, counts in zip(self.stretches, ends, self.replicas, strict=True):
                    if counts[pool] <= i:
                        continue
                    if spans and spans[-1][1] == stretch.start_s:
                        spans[-1] = (spans[-1][0], end_s)
                    else:
                        spans.append((stretch.start_s, end_s))
                found.append(spans)
        return found

    def adapter_names(self, service: str) -> dict[int, str]:
        """Return the names of a service's adapters by number."""
        return {number: name for (mine, name), number in self.adapters.items() if mine == service}

    def adapter_named(self, name: str) -> tuple[str, int]:
        """Return the service and the number of the adapter that is called so, or SERVICE/NAME where several are.

        Raises
        ------
        InputError: if no replica holds such an adapter, or it is not clear which one is meant.
        """
        found = [(key, number) for key, number in self.adapters.items() if name in {key[1], "/".join(key)}]
        if not found:
            raise InputError(
                f"No replica of the plan holds an adapter {name!r}.",
                hint="Name one that the plan places; adapters without requests have no place.",
            )
        if len(found) > 1:
            services = ", ".join(f"{service}/{adapter}" for (service, adapter), _ in found)
            raise InputError(f"Several services have an adapter {name!r}.", hint=f"Say which: {services}.")
        (service, _), number = found[0]
        return service, number

    def routed(self, traffic: Traffic, rng: np.random.Generator) -> Traffic:
        """Return the traffic with each request's row: that of its class and its time, or none if it is turned away."""
        starts = np.array([stretch.start_s for stretch in self.stretches])
        at = np.maximum(np.searchsorted(starts, traffic.arrival_s, side="right") - 1, 0)
        rows = traffic.row + at * len(self.classes)
        draws = rng.random(len(rows))
        return traffic.with_rows(np.where(draws < self.turned_away[rows], TURNED_AWAY, rows))


def planned_fleet(
    problem: FleetProblem,
    plan: Plan,
    engine: Callable[[ServingOption, Mapping[int, float]], EngineKind],
    stretches: Sequence[Stretch],
    *,
    policy: Policy = Policy.WEIGHTS,
) -> PlannedFleet:
    """Return the fleet that `plan`, an answer to `problem`, describes; replicas that only do jobs are not in it.

    Parameters
    ----------
    engine : one replica of an option, given the req/s that the plan sends it of each of its service's buckets.

    Raises
    ------
    InputError: if so many adapters are on so many different replicas that the router's table would not fit the memory.
    """
    services = {demand.service for demand in problem.demands}
    allocation = tuple(item for item in plan.allocation if item.service in services)
    keys = option_keys(problem.options)
    options = {(option.service, key): option for option, key in zip(problem.options, keys, strict=True)}
    chosen = [options[item.service, item.option] for item in allocation]
    numbers = adapter_numbers(problem)
    classes = tuple(_classes(problem, numbers))
    pools = engine_pools(plan, allocation, chosen)
    seats = seats_of(plan, allocation, pools, numbers)
    if numbers and len(classes) * len(pools) > MOST_ROUTES:
        raise InputError(
            f"{len(numbers):,} adapters on {len(pools):,} different replicas are too many to be simulated.",
            hint="Let more of them share replicas, or plan with --no-verify.",
        )
    kinds = [engine(option, _sent_rps(problem, plan, item)) for option, item in zip(chosen, allocation, strict=True)]
    table = engine_table(kinds)
    for row, kind, option in zip(table, kinds, chosen, strict=True):
        if option.role is Role.PREFILL:
            row["is_prefill"], row["transfer_s"] = 1, _transfer_s(option, kind, chosen)
    return PlannedFleet(
        pools=Pools(
            kinds=table[[pool.item for pool in pools]],
            replicas=tuple(len(pool.replicas) for pool in pools),
            gpus=seats.replica,
        ),
        router=_router(problem, plan, allocation, chosen, stretches, pools=pools, policy=policy),
        allocation=allocation,
        places=tuple(map(_place, allocation, chosen)),
        classes=classes,
        turned_away=np.concatenate([_turned_away(problem, plan, stretch) for stretch in stretches]),
        replicas=np.array([_replicas_in(plan, allocation, stretch) for stretch in stretches]),
        stretches=tuple(stretches),
        seats=seats,
        adapters=numbers,
    )


def _classes(problem: FleetProblem, numbers: Mapping[tuple[str, str], int]) -> Iterator[SizeClass]:
    """Yield who a row of the router's table is for: requests of one size, and for one adapter where they are for any.

    The rows of one adapter stand side by side, in the order of its sizes.
    """
    for demand in problem.demands:
        tenants, sizes = tenants_of(problem.tenancies, demand.service), sizes_of(demand)
        for tenant in tenants:
            number = numbers[demand.service, tenant.name]
            for bucket in (demand.buckets[position] for position in sizes[tenant.group]):
                yield _class_of(demand.service, bucket, number)
        if not tenants:
            yield from (_class_of(demand.service, bucket, NO_ADAPTER) for bucket in demand.buckets)


def _class_of(service: str, bucket: Bucket, adapter: int) -> SizeClass:
    return SizeClass(
        service=service, input_tokens=bucket.input_range, output_tokens=bucket.output_range, adapter=adapter
    )


def _period(plan: Plan, stretch: Stretch) -> Period | Plan:
    return plan if stretch.period is None else plan.schedule[stretch.period]


def _class_numbers(problem: FleetProblem) -> dict[tuple[str, int | str, int], int]:
    """Return the position of each class among those of all services: by row and column, or by adapter and size."""
    found: list[tuple[str, int | str, int]] = []
    for demand in problem.demands:
        tenants, sizes = tenants_of(problem.tenancies, demand.service), sizes_of(demand)
        found += [(demand.service, tenant.name, size) for tenant in tenants for size in range(len(sizes[tenant.group]))]
        found += [] if tenants else [(demand.service, bucket.row, bucket.column) for bucket in demand.buckets]
    return {key: index for index, key in enumerate(found)}


def _sent_rps(problem: FleetProblem, plan: Plan, item: Allocation) -> dict[int, float]:
    """Return the req/s that the plan sends to an option on average, by its service's number of the bucket."""
    demand = next(demand for demand in problem.demands if demand.service == item.service)
    numbers = {(bucket.row, bucket.column): index for index, bucket in enumerate(demand.buckets)}
    return {
        numbers[route.row, route.column]: route.shares.get(item.option, 0.0) * route.rate_rps
        for route in plan.routing
        if route.service == item.service
    }


def _replicas_in(plan: Plan, allocation: Sequence[Allocation], stretch: Stretch) -> list[int]:
    counts = {(item.service, item.option): item.replicas for item in _period(plan, stretch).allocation}
    return [counts.get((item.service, item.option), 0) for item in allocation]


def _turned_away(problem: FleetProblem, plan: Plan, stretch: Stretch) -> Floats:
    """Return the part of each bucket's requests that is not served, shape (classes,)."""
    numbers = _class_numbers(problem)
    if problem.tenancies:
        return np.zeros(len(numbers))  # plans with adapters leave nobody unserved
    asked = np.array([bucket.rate_rps for demand in problem.demands for bucket in demand.buckets])
    if stretch.period is not None and problem.horizon is not None:
        factors = [problem.horizon.factors[demand.service][stretch.period] for demand in problem.demands]
        asked *= np.repeat(factors, [len(demand.buckets) for demand in problem.demands])
    left = np.zeros(len(asked))
    missing: Sequence[Unserved | PeriodUnserved] = _period(plan, stretch).unserved
    for item in missing:
        left[numbers[item.service, item.row, item.column]] += item.rate_rps
    return np.asarray(np.minimum(1.0, np.divide(left, asked, out=np.zeros(len(asked)), where=asked > 0)))


def _router(
    problem: FleetProblem,
    plan: Plan,
    allocation: Sequence[Allocation],
    options: Sequence[ServingOption],
    stretches: Sequence[Stretch],
    *,
    pools: Sequence[EnginePool],
    policy: Policy,
) -> Router:
    """Return the table: a block of rows for the requests as they come, then one for each place where KV caches pass."""
    numbers = _class_numbers(problem)
    meeting = [option.meeting_point for option in options]
    points = sorted({point for point in meeting if point is not None})
    shape = (1 + len(points), len(stretches), len(numbers), len(pools))
    weights, rates = np.zeros(shape), np.zeros(shape)
    whole = {
        (allocation[pool.item].service, allocation[pool.item].option): index
        for index, pool in enumerate(pools)
        if pool.rates is None
    }
    handover = [0 if point is None else 1 + points.index(point) for point in meeting]
    blocks = [at if option.role is Role.DECODE else 0 for option, at in zip(options, handover, strict=True)]
    counts = np.zeros((len(stretches), len(pools)))
    in_stretch = np.array([_replicas_in(plan, allocation, stretch) for stretch in stretches], dtype=np.float64)
    for index, pool in enumerate(pools):
        option, block = options[pool.item], blocks[pool.item]
        if pool.rates is not None:
            counts[:, index] = len(pool.replicas)
            _route_adapters(problem, option, pool, (weights[0, :, :, index], rates[0, :, :, index]), numbers)
            continue
        counts[:, index] = in_stretch[:, pool.item]
        mine = [number for (service, _, _), number in numbers.items() if service == option.service]
        rates[block, :, mine, index] = option.throughput_rps[:, None]
    adapters = [row for (_, key, _), row in numbers.items() if isinstance(key, str)]
    weights[0, :, adapters] /= weights[0, :, adapters].sum(axis=-1, keepdims=True)
    planned = np.broadcast_to(counts[None, :, None, :], shape)
    for number, stretch in enumerate(stretches):
        routing: Sequence[Route | PeriodRoute] = _period(plan, stretch).routing
        for route in routing:
            for key, share in route.shares.items():
                at = whole.get((route.service, key))
                if at is not None:  # else it routes groups of adapters, whose members have rows of their own
                    row = numbers[route.service, route.row, route.column]
                    weights[blocks[pools[at].item], number, row, at] = share
    return Router(
        weights=weights.reshape(-1, len(pools)),
        rate_rps=rates.reshape(-1, len(pools)),
        decode_row=len(stretches) * len(numbers),
        handover=tuple(handover[pool.item] for pool in pools),
        policy=policy,
        planned=planned.reshape(-1, len(pools)),
    )


def _route_adapters(
    problem: FleetProblem,
    option: ServingOption,
    pool: EnginePool,
    columns: tuple[Floats, Floats],
    numbers: Mapping[tuple[str, int | str, int], int],
) -> None:
    """Fill a pool's `columns`, weights and rates of shape (stretches, classes), in the rows of what it holds.

    The weights are req/s still.
    """
    weights, rates = columns
    sizes = sizes_of(next(demand for demand in problem.demands if demand.service == option.service))
    for tenant in tenants_of(problem.tenancies, option.service):
        here = (pool.rates or {}).get(tenant.name)
        if here is not None:
            for size, position in enumerate(sizes[tenant.group]):
                row = numbers[option.service, tenant.name, size]
                weights[:, row] = here[size]
                rates[:, row] = option.throughput_rps[position] * pool.gpu_share


def _transfer_s(option: ServingOption, kind: EngineKind, options: Sequence[ServingOption]) -> float:
    """Return the time to hand over a byte of KV cache on one GPU of a prefill replica, all its GPUs together.

    The slower end of the way counts: the replica's own network, or that of the slowest decode option in its place.
    """
    if option.handover is None:
        return 0.0
    ends = [
        other.handover.bytes_per_s
        for other in options
        if other.handover is not None and other.meeting_point == option.meeting_point
    ]
    tokens = np.array([float(TRANSFER_TOKENS)])
    on_gpu = float(kv_bytes_per_gpu(kind.model, kind.config, tokens, is_read=False)[0])
    return float(kv_transfer_bytes(kind.model, kind.config, tokens)[0]) / on_gpu / min(ends) if on_gpu > 0 else 0.0


def _place(item: Allocation, option: ServingOption) -> Place:
    offer = option.offer
    monthly = offer.reclaims_per_month
    return Place(
        replicas=item.replicas,
        provider=offer.provider,
        region=offer.region,
        zone=offer.zone or "",
        market=str(offer.market),
        gpu=offer.gpu,
        offer=offer.name,
        listing=offer.listing,
        replicas_per_instance=max(1, int(offer.gpus_per_instance // option.gpus_per_replica)),
        reclaims_per_s=None if monthly is None else monthly / MONTH_S,
    )
