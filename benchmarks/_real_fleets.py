"""Large fleets as real as the bundled data makes them: library models, catalog offers, traces, estimated throughput.

What `gpuplan plan` would make of a request: every service is a model of the library under one of three levels of
service-level objectives, with the request sizes of a stretch of a bundled trace; every throughput is the profiler's;
offers are the bundled catalog's on-demand ones with their prices. Drawn by the seed: which models and offers, which
stretch of which trace, how much traffic, and how much of each scarce offer there is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from planner.catalog.gpus import load_gpus
from planner.catalog.models import list_models, load_record
from planner.catalog.offers import load_offers
from planner.domain.hardware import EngineConfig, Market, Offer, replica_price
from planner.domain.problem import FleetProblem, ServingOption
from planner.files.slo import parse_slo
from planner.profilers.efficiency import default_params
from planner.profilers.measured import MeasuredStore, load_measured
from planner.profilers.options import OptionProfile, profile_option
from planner.workload.buckets import adaptive_grid, demand_from_trace
from planner.workload.read import read_trace, resolve_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.domain.workload import Demand, Trace

LEVELS = (
    ("ttft p99 <= 1s", "tpot p95 <= 40ms"),
    ("ttft p99 <= 2s", "tpot p95 <= 60ms"),
    ("ttft p99 <= 5s", "tpot p95 <= 120ms"),
)
TRACES = ("bundled:azure_conv_2023", "bundled:azure_code_2023")
STRETCH = 2_000
"""Requests of a trace that give one service its sizes."""
TENSOR_PARALLEL = (1, 2, 4, 8)
LEAST_CONTEXT_TOKENS = 16_384
"""The longest request of the traces has 14,000 tokens."""
SMALLEST, LARGEST = 3e9, 130e9
"""Parameters of the models that services run."""
N_GPU_TYPES = 12
SCARCE = 0.5
"""Of the offers, those that services want most."""


def real_fleet(n_services: int, n_buckets: int, n_offers: int, *, replicas: float, seed: int) -> FleetProblem:
    """Return a problem whose services need about `replicas` replicas each, at most `n_buckets` buckets each.

    Half of the offers, those most wanted, are scarce: 30 to 80% of what is wanted of them can be had. Wanted is what
    the services would take if each bucket went in equal parts to the `n_offers / 2` offers that serve it for least.
    """
    rng = np.random.default_rng(seed)
    offers = _offers(n_offers, rng)
    traces = [read_trace(resolve_trace(name)) for name in TRACES]
    store = load_measured()
    demands: list[Demand] = []
    options: list[ServingOption] = []
    names = [
        model.name
        for model in list_models()
        if SMALLEST <= model.total_params <= LARGEST and model.max_context_tokens >= LEAST_CONTEXT_TOKENS
    ]
    for name in rng.permutation(names).tolist():
        if len(demands) == n_services:
            break
        stretch = _stretch(traces[int(rng.integers(len(traces)))], rng)
        service = f"{len(demands):02d} {name}"
        demand = _demand(stretch, service, n_buckets)
        mine = _options(service, name, demand, offers, first_level=int(rng.integers(len(LEVELS))), store=store)
        size = replicas * float(np.exp(rng.normal(0, 0.5)))
        if mine:
            demands.append(_scaled(demand, mine, size))
            options += mine
    return FleetProblem(demands=tuple(demands), options=tuple(_with_stock(options, demands, offers, rng)))


def _offers(count: int, rng: np.random.Generator) -> list[Offer]:
    """Return on-demand offers of the GPU types that most of the catalog's are of, in equal parts."""
    params = default_params()
    gpus = load_gpus()
    whole = [
        offer
        for offer in load_offers()
        if offer.market is Market.ON_DEMAND and offer.gpus_per_instance in TENSOR_PARALLEL
        if params.is_fitted(gpus.get(offer.gpu))
    ]
    types = [gpu for gpu, _ in Counter(offer.gpu for offer in whole).most_common(N_GPU_TYPES)]
    by_type = [rng.permutation([offer for offer in whole if offer.gpu == gpu]).tolist() for gpu in types]
    turns = [offer for turn in zip_longest(*by_type) for offer in turn if offer is not None]
    return turns[:count]


def _stretch(trace: Trace, rng: np.random.Generator) -> Trace:
    start = int(rng.integers(trace.n_requests - STRETCH))
    part = slice(start, start + STRETCH)
    return replace(
        trace,
        arrival_s=trace.arrival_s[part] - trace.arrival_s[start],
        input_tokens=trace.input_tokens[part],
        output_tokens=trace.output_tokens[part],
    )


def _demand(stretch: Trace, service: str, n_buckets: int) -> Demand:
    """Return the stretch as one request a second in the finest square grid of at most so many buckets."""
    found: Demand | None = None
    for side in range(int(n_buckets**0.5), n_buckets + 1):
        grid = adaptive_grid(stretch, rows=side, columns=side)
        finer = demand_from_trace(stretch, service=service, grid=grid, rate_rps=1.0)
        if found is not None and len(finer.buckets) > n_buckets:
            break
        found = finer
    return found


def _options(
    service: str, name: str, demand: Demand, offers: list[Offer], *, first_level: int, store: MeasuredStore
) -> list[ServingOption]:
    """Return the options at the tightest level, from the first one on, that all buckets can be served at."""
    record = load_record(name)
    gpus = load_gpus()
    for level in LEVELS[first_level:]:
        profiles: dict[tuple[str, int], OptionProfile] = {}
        found = []
        for offer in offers:
            for degree in TENSOR_PARALLEL:
                if degree > offer.gpus_per_instance:
                    continue
                config = EngineConfig(precision=record.architecture.native_precision, tensor_parallel=degree)
                if (offer.gpu, degree) not in profiles:
                    profiles[offer.gpu, degree] = profile_option(
                        record.architecture,
                        gpus.get(offer.gpu),
                        config,
                        demand.buckets,
                        [parse_slo(text) for text in level],
                        store=store,
                        aliases=record.aliases,
                    )
                rates = profiles[offer.gpu, degree].throughput_rps
                if rates.any():
                    found.append(
                        ServingOption(
                            service=service, offer=offer, gpus_per_replica=degree, throughput_rps=rates, config=config
                        )
                    )
        if found and np.all(np.max([option.throughput_rps for option in found], axis=0) > 0):
            return found
    return []


def _loads(options: list[ServingOption], demand: Demand) -> tuple[np.ndarray, np.ndarray]:
    """Return what serving each bucket takes in replicas, and what that costs; shape (options, buckets)."""
    rates = np.array([bucket.rate_rps for bucket in demand.buckets])
    with np.errstate(divide="ignore"):
        load = rates / np.array([option.throughput_rps for option in options])
    prices = np.array([float(replica_price(option.offer, option.gpus_per_replica)) for option in options])
    return load, load * prices[:, np.newaxis]


def _scaled(demand: Demand, options: list[ServingOption], replicas: float) -> Demand:
    """Return the demand for which every bucket where it is cheapest comes to so many replicas."""
    load, cost = _loads(options, demand)
    factor = replicas / load[cost.argmin(axis=0), np.arange(load.shape[1])].sum()
    buckets = (replace(bucket, rate_rps=bucket.rate_rps * factor) for bucket in demand.buckets)
    return replace(demand, buckets=tuple(buckets))


def _with_stock(
    options: list[ServingOption], demands: list[Demand], offers: list[Offer], rng: np.random.Generator
) -> Iterator[ServingOption]:
    """Yield the options on offers of which the scarce ones say how many there are."""
    wanted: Counter[str] = Counter()
    for demand in demands:
        mine = [option for option in options if option.service == demand.service]
        names = np.array([option.offer.name for option in mine])
        load, cost = _loads(mine, demand)
        for bucket in range(load.shape[1]):
            cheapest: dict[str, int] = {}
            for index in np.argsort(cost[:, bucket], kind="stable").tolist():
                if np.isfinite(cost[index, bucket]) and len(cheapest) < len(offers) * SCARCE:
                    cheapest.setdefault(str(names[index]), index)
            for name, index in cheapest.items():
                wanted[name] += load[index, bucket] / len(cheapest) * mine[index].gpus_per_replica
    stock = {
        name: max(1, round(gpus * rng.uniform(0.3, 0.8) / by_name.gpus_per_instance))
        for name, gpus in wanted.most_common(round(len(offers) * SCARCE))
        for by_name in offers
        if by_name.name == name
    }
    scarce = {offer.name: replace(offer, available=stock.get(offer.name)) for offer in offers}
    for option in options:
        yield replace(option, offer=scarce[option.offer.name])
