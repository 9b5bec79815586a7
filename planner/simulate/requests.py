"""The requests that come in: their times, sizes and adapters, as in a trace or drawn, and their rows for the router."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.workload import PrefixHashes
from planner.errors import InputError
from planner.simulate import arrivals
from planner.simulate.run import Traffic, prefixes_of
from planner.simulate.tenants import NO_ADAPTER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from planner.domain.plan import Route
    from planner.domain.workload import Demand, Trace
    from planner.simulate.arrivals import Process
    from planner.simulate.plans import SizeClass
    from planner.simulate.steps import Floats

SIZES_AT_ONCE = 100_000
"""Requests whose sizes are compared with all buckets at once; bounds the memory of a large trace."""

N_BLOCKS = 20
"""Blocks that a replication draws its trace from: as many as a replay's batch means have batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTraffic:
    """Requests of one service in the order of arrival; arrays of shape (requests,)."""

    arrival_s: Floats
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    prefix: PrefixHashes | None = None
    adapter: NDArray[np.int64] | None = None
    """Number of each request's adapter; None where requests are for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How many requests a second come in, by piece of the time."""

    edges_s: Floats
    rates_rps: Floats
    """One fewer than edges."""
    step_s: float | None = None
    """Of a schedule: changes of a trace's own rate between stretches of this length make way for these rates."""

    def times(self, factor: float) -> Rates:
        """Return so many times as many; at 1 the very same."""
        return self if factor == 1.0 else replace(self, rates_rps=self.rates_rps * factor)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTraffic:
    """Who the requests of a service are for."""

    numbers: NDArray[np.int64]
    """(adapters,)"""
    rates_rps: Floats
    """(adapters,): as planned; their shares count."""
    sizes: Demand
    """What sizes are drawn from, where there is no trace."""
    traces: Mapping[int, Trace]
    """By number, of the adapters whose own requests are known: these come as in their traces, at the planned rate."""


def adapter_requests_of(
    asked: AdapterTraffic,
    trace: Trace | None,
    rates: Rates,
    *,
    process: Process | None,
    n_most: int | None,
    rng: np.random.Generator,
    adapter_rng: np.random.Generator,
    is_resampled: bool = False,
) -> ServiceTraffic:
    """Return the requests of a service with adapters at the given rates, in the order of arrival.

    Requests as they would come without adapters get one each, at random by the adapters' rates; adapters with traces of
    their own add theirs to that, and the others' rate is less by as much. Parameters are those of `requests_of`.

    adapter_rng : draws adapters, so that the rest of the traffic does not depend on them.
    """
    own = np.isin(asked.numbers, list(asked.traces))
    total = asked.rates_rps.sum()
    share = 1.0 if not own.any() else float(asked.rates_rps[~own].sum() / total)
    parts = []
    if share > 0:
        drawn = requests_of(
            asked.sizes,
            trace,
            rates.times(share),
            process=process,
            n_most=None if n_most is None else max(1, round(n_most * share)),
            rng=rng,
            is_resampled=is_resampled,
        )
        p = np.where(own, 0.0, asked.rates_rps) / (total * share)
        chosen = adapter_rng.choice(asked.numbers, size=len(drawn.arrival_s), p=p / p.sum())
        parts.append(replace(drawn, adapter=chosen))
    for number, rate in zip(asked.numbers[own].tolist(), asked.rates_rps[own].tolist(), strict=True):
        its = _own_requests(
            asked.traces[number], rates.times(rate / total), process, adapter_rng, is_resampled=is_resampled
        )
        parts.append(replace(its, adapter=np.full(len(its.arrival_s), number, dtype=np.int64)))
    return parts[0] if len(parts) == 1 else _in_order(parts)


def _own_requests(
    trace: Trace, rates: Rates, process: Process | None, rng: np.random.Generator, *, is_resampled: bool
) -> ServiceTraffic:
    """Return an adapter's own requests, its trace beginning again as often as the time asks for."""
    n = trace.n_requests
    order = arrivals.resampled(n, N_BLOCKS, rng) if is_resampled else np.arange(n)
    if process is None or process.kind == "trace":
        unit = arrivals.in_unit_rate(trace.arrival_s)
        unit = arrivals.gaps_of(unit, order) + 1.0 if is_resampled else unit
        expected = float(np.sum(rates.rates_rps * np.diff(rates.edges_s)))
        at_s = arrivals.at_rates(arrivals.repeated(unit, math.ceil(expected) + n), rates.edges_s, rates.rates_rps)
    else:
        at_s = arrivals.drawn(process, rates.edges_s, rates.rates_rps, rng)
    chosen = order[np.arange(len(at_s)) % n]
    return ServiceTraffic(
        arrival_s=at_s, input_tokens=trace.input_tokens[chosen], output_tokens=trace.output_tokens[chosen]
    )


def _in_order(parts: Sequence[ServiceTraffic]) -> ServiceTraffic:
    """Return the requests of all parts in one order of arrival; prefixes of prompts are not kept."""
    arrival_s = np.concatenate([part.arrival_s for part in parts])
    order = np.argsort(arrival_s, kind="stable")
    return ServiceTraffic(
        arrival_s=arrival_s[order],
        input_tokens=np.concatenate([part.input_tokens for part in parts])[order],
        output_tokens=np.concatenate([part.output_tokens for part in parts])[order],
        adapter=np.concatenate([_adapters_of(part) for part in parts])[order],
    )


def _adapters_of(part: ServiceTraffic) -> NDArray[np.int64]:
    none = np.full(len(part.arrival_s), NO_ADAPTER, dtype=np.int64)
    return none if part.adapter is None else part.adapter


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
        adapter=(
            np.concatenate([_adapters_of(service) for service in services])
            if any(service.adapter is not None for service in services)
            else None
        ),
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


def adapter_rows(
    classes: Sequence[SizeClass], service: str, requests: ServiceTraffic | Traffic, adapter: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return for each request of a service with adapters the class of its adapter and its, or the nearest, size."""
    first: dict[int, int] = {}
    for index, each in enumerate(classes):
        if each.service == service:
            first.setdefault(each.adapter, index)
    table = np.full(max(first) + 1, NO_ADAPTER, dtype=np.int64)
    table[list(first)] = list(first.values())
    # All adapters of a service have the same sizes, side by side.
    number = next(iter(first))
    sizes = [each for each in classes if each.service == service and each.adapter == number]
    size = rows_of(sizes, service, requests.input_tokens, requests.output_tokens)
    return np.asarray(table[adapter] + size)


def _range(tokens: tuple[int, int] | None) -> tuple[float, float]:
    return (0.0, np.inf) if tokens is None else (float(tokens[0]), float(tokens[1]))


def _away(tokens: NDArray[np.int64], edges: Floats) -> Floats:
    """Return how far each request lies outside each range, in nats; shape (requests, ranges)."""
    size = np.log(np.maximum(tokens, 1)[:, None])
    below = np.log(np.maximum(edges[None, :, 0], 1.0)) - size
    above = size - np.log(np.maximum(edges[None, :, 1] - 1.0, 1.0))
    return np.asarray(np.maximum(0.0, np.maximum(below, above)))
