"""A fleet for adapters on given requests: how a plan, or another way to serve its adapters, fares on the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.planning.replay import objectives_in
from planner.planning.replay_outcome import service_outcome
from planner.simulate.plans import Stretch, planned_fleet
from planner.simulate.requests import ServiceTraffic, adapter_rows, merged
from planner.simulate.run import simulate
from planner.simulate.tenants import adapter_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem
    from planner.domain.workload import Demand
    from planner.planning.plain_serverless import Requests
    from planner.planning.question import Question
    from planner.simulate.steps import Floats

SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fared:
    """How the judged requests of one service fare."""

    is_met: bool
    """Whether every objective holds."""
    attainment: float
    ttft_p50_s: float
    """Infinite where so many were never answered."""
    ttft_p99_s: float
    requests: int


def fared_on(question: Question, problem: FleetProblem, plan: Plan, asked: Mapping[str, Requests]) -> dict[str, Fared]:
    """Return by service how `plan`, an answer to `problem`, fares on the requests that are `asked` of its adapters.

    Services without adapters get no requests: they have replicas of their own.

    Raises
    ------
    InputError: if there are too many adapters on too many different replicas to be simulated.
    """
    source = question.replay
    if source is None:
        return {}
    end_s = max(each.end_s for each in asked.values())
    fleet = planned_fleet(problem, plan, source.engine, (Stretch(start_s=0.0, end_s=end_s),))
    numbers, rng = adapter_numbers(problem), np.random.default_rng(SEED)
    traffic, rows = [], []
    for service, each in asked.items():
        table = np.array([numbers[service, adapter.name] for adapter in each.adapters], dtype=np.int64)
        requests = _sized(each, source.adapters[service].sizes, table, rng)
        traffic.append(requests)
        rows.append(adapter_rows(fleet.classes, service, requests, table[each.adapter]))
    simulated = simulate(fleet.pools, fleet.routed(merged(traffic, rows), rng), fleet.router, seed=SEED)
    records = fleet.seats.by_replica(simulated).records
    found = {}
    for index, (service, each) in enumerate(asked.items()):
        mine = records.select((records.service == index) & (records.arrival_s >= each.end_s / 2))
        outcome = service_outcome(service, objectives_in(question, service), mine)
        ttft_s = np.where(mine.is_answered, mine.ttft_s, np.inf)
        found[service] = Fared(
            is_met=outcome.is_met,
            attainment=outcome.attainment.value,
            ttft_p50_s=quantile(ttft_s, 0.5),
            ttft_p99_s=quantile(ttft_s, 0.99),
            requests=len(mine),
        )
    return found


def _sized(asked: Requests, sizes: Demand, table: NDArray[np.int64], rng: np.random.Generator) -> ServiceTraffic:
    """Return the requests with the mean tokens of buckets that are drawn by their rates."""
    buckets = sizes.buckets
    rates = np.array([bucket.rate_rps for bucket in buckets])
    drawn = rng.choice(len(buckets), size=len(asked.arrival_s), p=rates / rates.sum())
    inputs = np.array([max(1, round(bucket.input_tokens or 1.0)) for bucket in buckets], dtype=np.int64)
    outputs = np.array([max(1, round(bucket.output_tokens or 1.0)) for bucket in buckets], dtype=np.int64)
    return ServiceTraffic(
        arrival_s=asked.arrival_s,
        input_tokens=inputs[drawn],
        output_tokens=outputs[drawn],
        adapter=table[asked.adapter],
    )


def quantile(values_s: Floats, fraction: float) -> float:
    """Return the smallest value that so many do not exceed."""
    return float(np.quantile(values_s, fraction, method="inverted_cdf"))
