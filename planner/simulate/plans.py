"""A plan as a fleet to simulate: its allocations as pools of replicas, its routing weights as the router's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.workload import PrefixHashes
from planner.errors import InputError
from planner.optimize.naming import option_keys
from planner.simulate import arrivals
from planner.simulate.run import Policy, Pools, Router, Traffic, prefixes_of
from planner.simulate.steps import engine_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from planner.domain.plan import Allocation, Plan, Route
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Demand, Trace
    from planner.simulate.steps import EngineKind, Floats

SIZES_AT_ONCE = 100_000
"""Requests whose sizes are compared with all buckets at once; bounds the memory of a large trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFleet:
    """A plan's replicas and router."""

    pools: Pools
    router: Router
    allocation: tuple[Allocation, ...]
    """Of each pool."""
    routes: tuple[Route, ...]
    """Of each row of the router's table."""


def planned_fleet(
    problem: FleetProblem,
    plan: Plan,
    engine: Callable[[ServingOption, Mapping[int, float]], EngineKind],
    *,
    policy: Policy = Policy.WEIGHTS,
) -> PlannedFleet:
    """Return the fleet that `plan`, an answer to `problem`, describes.

    Parameters
    ----------
    engine : one replica of an option, given the req/s that the plan sends it of each of its service's buckets.
    """
    keys = option_keys(problem.options)
    options = {(option.service, key): option for option, key in zip(problem.options, keys, strict=True)}
    numbers = {
        (demand.service, bucket.row, bucket.column): number
        for demand in problem.demands
        for number, bucket in enumerate(demand.buckets)
    }
    rows = [numbers[route.service, route.row, route.column] for route in plan.routing]
    weights = np.zeros((len(plan.routing), len(plan.allocation)))
    rates = np.zeros_like(weights)
    kinds = []
    for pool, item in enumerate(plan.allocation):
        option = options[item.service, item.option]
        sent: dict[int, float] = {}
        for index, (route, number) in enumerate(zip(plan.routing, rows, strict=True)):
            if route.service == item.service:
                weights[index, pool] = route.weights.get(item.option, 0.0)
                rates[index, pool] = float(option.throughput_rps[number])
                sent[number] = weights[index, pool] * route.rate_rps
        kinds.append(engine(option, sent))
    return PlannedFleet(
        pools=Pools(kinds=engine_table(kinds), replicas=tuple(item.replicas for item in plan.allocation)),
        router=Router(weights=weights, rate_rps=rates, policy=policy),
        allocation=tuple(plan.allocation),
        routes=tuple(plan.routing),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTraffic:
    """Requests of one service in the order of arrival; arrays of shape (requests,)."""

    arrival_s: Floats
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    prefix: PrefixHashes | None = None


def requests_of(
    demand: Demand, trace: Trace | None, *, rate_rps: float, n_requests: int, rng: np.random.Generator
) -> ServiceTraffic:
    """Return requests of one service at a mean rate of `rate_rps`.

    A trace is replayed from its start, faster or slower, `n_requests` of it at most. Sizes without times arrive as a
    Poisson process; without a trace, sizes are drawn from the demand's buckets.
    """
    if trace is not None:
        n = min(n_requests, trace.n_requests)
        at = arrivals.at_rate(trace.arrival_s[:n], rate_rps) if trace.has_arrivals else np.zeros(0)
        if len(at) == 0 or at[-1] <= 0:
            at = arrivals.poisson(rate_rps, n, rng)
        return ServiceTraffic(
            arrival_s=at,
            input_tokens=trace.input_tokens[:n],
            output_tokens=trace.output_tokens[:n],
            prefix=None if trace.prefix is None else prefixes_of(trace.prefix, np.arange(n)),
        )
    shares = np.array([bucket.rate_rps for bucket in demand.buckets])
    drawn = rng.choice(len(shares), size=n_requests, p=shares / shares.sum())
    inputs = np.array([bucket.input_tokens or 1.0 for bucket in demand.buckets])
    outputs = np.array([bucket.output_tokens or 1.0 for bucket in demand.buckets])
    return ServiceTraffic(
        arrival_s=arrivals.poisson(rate_rps, n_requests, rng),
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
    routes: Sequence[Route], service: str, input_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return for each request the route of its size; one that the plan did not foresee takes that of the nearest size.

    Near is in the logarithm of the tokens: twice as long is as far at any length.
    """
    mine = [index for index, route in enumerate(routes) if route.service == service]
    edges = np.array([[*_range(routes[i].input_tokens), *_range(routes[i].output_tokens)] for i in mine])
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
