"""A plan as a fleet to simulate: its allocations as pools of replicas, its routing weights as the router's table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.disaggregation import Role
from planner.domain.workload import PrefixHashes
from planner.errors import InputError
from planner.optimize.naming import option_keys
from planner.profilers.roofline import kv_bytes_per_gpu, kv_transfer_bytes
from planner.simulate import arrivals
from planner.simulate.faults import Place
from planner.simulate.run import TURNED_AWAY, Policy, Pools, Router, Traffic, prefixes_of
from planner.simulate.steps import engine_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from planner.domain.plan import Allocation, Period, PeriodRoute, PeriodUnserved, Plan, Route, Unserved
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Demand, Trace
    from planner.simulate.arrivals import Process
    from planner.simulate.faults import Span
    from planner.simulate.steps import EngineKind, Floats

SIZES_AT_ONCE = 100_000
"""Requests whose sizes are compared with all buckets at once; bounds the memory of a large trace."""

N_BLOCKS = 20
"""Blocks that a replication draws its trace from: as many as a replay's batch means have batches."""

TRANSFER_TOKENS = 1000
"""Length at which the KV cache of a whole replica is compared with that on one of its GPUs."""

MONTH_S = 30 * 86400.0
"""The window that interruption rates are published for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeClass:
    """Requests that one row of the router's table is for."""

    service: str
    input_tokens: tuple[int, int] | None
    output_tokens: tuple[int, int] | None


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
    router: Router
    """Rows are the classes, for each stretch again."""
    allocation: tuple[Allocation, ...]
    """Of each pool."""
    places: tuple[Place, ...]
    """Of each pool."""
    classes: tuple[SizeClass, ...]
    turned_away: Floats
    """(stretches x classes,): part of a row's requests that the plan leaves unserved."""
    replicas: NDArray[np.int64]
    """(stretches, pools): how many replicas the plan has then."""
    stretches: tuple[Stretch, ...]

    def scheduled(self) -> list[list[Span]]:
        """Return by replica when the plan has it; what it has in the last stretch stays to the end."""
        ends = [stretch.end_s for stretch in self.stretches[:-1]] + [np.inf]
        found: list[list[Span]] = []
        for pool, most in enumerate(self.pools.replicas):
            for i in range(most):
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
    """
    services = {demand.service for demand in problem.demands}
    allocation = tuple(item for item in plan.allocation if item.service in services)
    keys = option_keys(problem.options)
    options = {(option.service, key): option for option, key in zip(problem.options, keys, strict=True)}
    chosen = [options[item.service, item.option] for item in allocation]
    classes = tuple(
        SizeClass(service=demand.service, input_tokens=bucket.input_range, output_tokens=bucket.output_range)
        for demand in problem.demands
        for bucket in demand.buckets
    )
    kinds = [engine(option, _sent_rps(problem, plan, item)) for option, item in zip(chosen, allocation, strict=True)]
    table = engine_table(kinds)
    for row, kind, option in zip(table, kinds, chosen, strict=True):
        if option.role is Role.PREFILL:
            row["is_prefill"], row["transfer_s"] = 1, _transfer_s(option, kind, chosen)
    return PlannedFleet(
        pools=Pools(kinds=table, replicas=tuple(item.replicas for item in allocation)),
        router=_router(problem, plan, allocation, chosen, stretches, policy=policy),
        allocation=allocation,
        places=tuple(map(_place, allocation, chosen)),
        classes=classes,
        turned_away=np.concatenate([_turned_away(problem, plan, stretch) for stretch in stretches]),
        replicas=np.array([_replicas_in(plan, allocation, stretch) for stretch in stretches]),
        stretches=tuple(stretches),
    )


def _period(plan: Plan, stretch: Stretch) -> Period | Plan:
    return plan if stretch.period is None else plan.schedule[stretch.period]


def _bucket_numbers(problem: FleetProblem) -> dict[tuple[str, int, int], int]:
    """Return the position of each bucket among those of all services."""
    found = [(demand.service, bucket.row, bucket.column) for demand in problem.demands for bucket in demand.buckets]
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
    numbers = _bucket_numbers(problem)
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
    policy: Policy,
) -> Router:
    """Return the table: a block of rows for the requests as they come, then one for each place where KV caches pass."""
    numbers = _bucket_numbers(problem)
    meeting = [option.meeting_point for option in options]
    points = sorted({point for point in meeting if point is not None})
    shape = (1 + len(points), len(stretches), len(numbers), len(allocation))
    weights, rates = np.zeros(shape), np.zeros(shape)
    pools = {(item.service, item.option): index for index, item in enumerate(allocation)}
    handover = [0 if point is None else 1 + points.index(point) for point in meeting]
    blocks = [at if option.role is Role.DECODE else 0 for option, at in zip(options, handover, strict=True)]
    for pool, option in enumerate(options):
        mine = [index for (service, _, _), index in numbers.items() if service == option.service]
        rates[blocks[pool], :, mine, pool] = option.throughput_rps[:, None]
    counts = np.array([_replicas_in(plan, allocation, stretch) for stretch in stretches], dtype=np.float64)
    planned = np.broadcast_to(counts[None, :, None, :], shape)
    for number, stretch in enumerate(stretches):
        routing: Sequence[Route | PeriodRoute] = _period(plan, stretch).routing
        for route in routing:
            for key, share in route.shares.items():
                pool = pools[route.service, key]
                weights[blocks[pool], number, numbers[route.service, route.row, route.column], pool] = share
    return Router(
        weights=weights.reshape(-1, len(allocation)),
        rate_rps=rates.reshape(-1, len(allocation)),
        decode_row=len(stretches) * len(numbers),
        handover=tuple(handover),
        policy=policy,
        planned=planned.reshape(-1, len(allocation)),
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTraffic:
    """Requests of one service in the order of arrival; arrays of shape (requests,)."""

    arrival_s: Floats
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    prefix: PrefixHashes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How many requests a second come in, by piece of the time."""

    edges_s: Floats
    rates_rps: Floats
    """One fewer than edges."""
    step_s: float | None = None
    """Of a schedule: changes of a trace's own rate between stretches of this length make way for these rates."""


def requests_of(
    demand: Demand,
    trace: Trace | None,
    rates: Rates,
    *,
    process: Process | None,
    n_most: int | None,
    rng: np.random.Generator,
    is_resampled: bool = False,
) -> ServiceTraffic:
    """Return requests of one service at the given rates.

    Parameters
    ----------
    process : how they arrive; None = as in the trace where it has times, else as a Poisson process.
    n_most : so many requests of a trace, from its start on; None = all.
    is_resampled : blocks of the trace are drawn at random instead of the whole in its order.

    Raises
    ------
    InputError: if requests shall arrive as in a trace that has no times.
    """
    has_times = trace is not None and trace.has_arrivals and float(np.ptp(trace.arrival_s[:n_most])) > 0
    process = process or arrivals.Process(kind="trace" if has_times else "poisson")
    if process.kind == "trace" and (trace is None or not has_times):
        raise InputError(
            f"The traffic of {demand.service!r} has no arrival times to replay.",
            hint="Use --arrivals poisson, gamma:CV or mmpp:FACTOR,LENGTH,SHARE.",
        )
    if trace is None:
        at_s = arrivals.drawn(process, rates.edges_s, rates.rates_rps, rng)
        return _drawn_sizes(demand, at_s, rng)
    n = trace.n_requests if n_most is None else min(n_most, trace.n_requests)
    order = arrivals.resampled(n, N_BLOCKS, rng) if is_resampled else np.arange(n)
    if process.kind == "trace":
        at_s = _as_in_trace(trace.arrival_s[:n], order if is_resampled else None, rates)
    else:
        at_s = arrivals.drawn(process, rates.edges_s, rates.rates_rps, rng)
    chosen = order[np.arange(len(at_s)) % n]
    return ServiceTraffic(
        arrival_s=at_s,
        input_tokens=trace.input_tokens[chosen],
        output_tokens=trace.output_tokens[chosen],
        prefix=None if trace.prefix is None else prefixes_of(trace.prefix, chosen),
    )


def _as_in_trace(own_s: Floats, order: NDArray[np.int64] | None, rates: Rates) -> Floats:
    """Return the trace's arrivals, faster or slower, so that the rate is as wanted; bursts stay.

    order : requests drawn from it, with the gaps before them; None = as they are.
    """
    if rates.step_s is None:
        at_s = own_s if order is None else arrivals.gaps_of(own_s, order)
        return arrivals.at_rate(at_s, float(rates.rates_rps[0]))
    unit = arrivals.in_unit_rate(own_s, rates.step_s)
    if order is not None:
        unit = arrivals.gaps_of(unit, order) + 1.0
    expected = float(np.sum(rates.rates_rps * np.diff(rates.edges_s)))
    return arrivals.at_rates(arrivals.repeated(unit, math.ceil(expected) + len(unit)), rates.edges_s, rates.rates_rps)


def _drawn_sizes(demand: Demand, at_s: Floats, rng: np.random.Generator) -> ServiceTraffic:
    """Return requests whose sizes are those of the demand's buckets, drawn by their rates."""
    shares = np.array([bucket.rate_rps for bucket in demand.buckets])
    drawn = rng.choice(len(shares), size=len(at_s), p=shares / shares.sum())
    inputs = np.array([bucket.input_tokens or 1.0 for bucket in demand.buckets])
    outputs = np.array([bucket.output_tokens or 1.0 for bucket in demand.buckets])
    return ServiceTraffic(
        arrival_s=at_s,
        input_tokens=np.rint(inputs[drawn]).astype(np.int64),
        output_tokens=np.rint(outputs[drawn]).astype(np.int64),
    )


def merged(services: Sequence[ServiceTraffic], rows: Sequence[NDArray[np.int64]]) -> Traffic:
    """Return the requests of all services in one order of arrival, each with its router row."""
    together = Traffic(
        arrival_s=np.concatenate([service.arrival_s for service in services]),
        input_tokens=np.concatenate([service.input_tokens for service in services]),
        output_tokens=np.concatenate([service.output_tokens for service in services]),
        row=np.concatenate(rows),
        service=np.repeat(np.arange(len(services)), [len(service.arrival_s) for service in services]),
        prefix=_all_prefixes(services),
    )
    return together.select(np.argsort(together.arrival_s, kind="stable"))


def _all_prefixes(services: Sequence[ServiceTraffic]) -> PrefixHashes | None:
    """Return the blocks of all services one after the other; those of two services are never the same."""
    sizes = {service.prefix.block_tokens for service in services if service.prefix is not None}
    if not sizes:
        return None
    if len(sizes) > 1:
        raise InputError(
            f"The traces have prefix blocks of different sizes: {sorted(sizes)} tokens.", hint="Replay one at a time."
        )
    hashes, counts = [np.zeros(0, dtype=np.int64)], []
    n_before = 0
    for service in services:
        if service.prefix is None:
            counts.append(np.zeros(len(service.arrival_s), dtype=np.int64))
            continue
        distinct, numbers = np.unique(service.prefix.hashes, return_inverse=True)
        hashes.append(numbers + n_before)
        counts.append(np.diff(service.prefix.offsets))
        n_before += len(distinct)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return PrefixHashes(hashes=np.concatenate(hashes), offsets=offsets, block_tokens=sizes.pop())


def rows_of(
    classes: Sequence[SizeClass | Route],
    service: str,
    input_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return for each request the class of its size; one that the plan did not foresee takes that of the nearest size.

    Near is in the logarithm of the tokens: twice as long is as far at any length.
    """
    mine = [index for index, route in enumerate(classes) if route.service == service]
    edges = np.array([[*_range(classes[i].input_tokens), *_range(classes[i].output_tokens)] for i in mine])
    found = np.zeros(len(input_tokens), dtype=np.int64)
    for start in range(0, len(found), SIZES_AT_ONCE):
        part = slice(start, start + SIZES_AT_ONCE)
        away = _away(input_tokens[part], edges[:, :2]) + _away(output_tokens[part], edges[:, 2:])
        found[part] = np.array(mine)[away.argmin(axis=1)]
    return found


def _range(tokens: tuple[int, int] | None) -> tuple[float, float]:
    return (0.0, np.inf) if tokens is None else (float(tokens[0]), float(tokens[1]))


def _away(tokens: NDArray[np.int64], edges: Floats) -> Floats:
    """Return how far each request lies outside each range, in nats; shape (requests, ranges)."""
    size = np.maximum(tokens, 1)[:, None].astype(np.float64)
    below = np.log(np.maximum(edges[None, :, 0], 1.0) / size)
    above = np.log(size / np.maximum(edges[None, :, 1] - 1.0, 1.0))
    return np.maximum(0.0, np.maximum(below, above))
