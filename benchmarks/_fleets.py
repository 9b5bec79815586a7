"""Random fleets of realistic shape for benchmarks: several services that share scarce offers."""

from __future__ import annotations

import numpy as np

from planner.domain.hardware import Market, Offer
from planner.domain.problem import FleetProblem, ServingOption
from planner.domain.workload import Bucket, Demand

INPUT_TOKENS = (25, 100, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000)
OUTPUT_TOKENS = (25, 50, 100, 200, 300, 400, 600, 800, 1200, 2000)


def random_fleet(
    n_services: int, n_buckets: int, n_offers: int, *, replicas: float, seed: int, scarce: bool = True
) -> FleetProblem:
    """Return a problem whose services need about `replicas` replicas each.

    Prices grow a little more slowly than speed; GPUs lean towards prompts or towards output; small memories cannot hold
    long requests of large models, and where nothing fits a bucket the largest memory does. Of the half of the offers
    that the services would want most, 30 to 80% of what they want can be had.
    """
    rng = np.random.default_rng(seed)
    speed = np.exp(rng.uniform(np.log(1), np.log(20), n_offers))
    price = 0.6 * speed**0.9 * np.exp(rng.normal(0, 0.15, n_offers))
    balance = rng.uniform(0.5, 2, n_offers)
    memory = np.exp(rng.uniform(np.log(24), np.log(192), n_offers))
    largest = int(np.argmax(memory))
    grid = _grid(n_buckets)
    sizes = np.array([(inputs, outputs) for _, _, inputs, outputs in grid])
    wanted = np.zeros(n_offers)
    rates: list[np.ndarray] = []
    tables: list[np.ndarray] = []
    for _ in range(n_services):
        billions = np.exp(rng.uniform(np.log(3), np.log(70)))
        work = (np.outer(sizes[:, 0] * 4e-5, 1 / balance) + np.outer(sizes[:, 1] * 4e-3, balance)) * billions / 8
        table = speed * 5 / work * np.exp(rng.normal(0, 0.2, work.shape))
        needed = billions * 0.5 + sizes.sum(axis=1)[:, None] * 2e-3 * np.sqrt(billions / 8)
        fits = memory[None, :] >= needed
        fits[:, largest] = True
        table = np.where(fits, table, 0.0)
        share = rng.dirichlet(np.full(n_buckets, 0.7))
        share = np.maximum(share, 1e-6)
        best = np.where(table > 0, price / np.maximum(table, 1e-12), np.inf).argmin(axis=1)
        load = share / table[np.arange(n_buckets), best]
        rate = share * replicas * np.exp(rng.normal(0, 0.5)) / load.sum()
        np.add.at(wanted, best, rate / table[np.arange(n_buckets), best])
        rates.append(rate)
        tables.append(table)
    available: list[int | None] = [None] * n_offers
    ranked = [j for j in np.argsort(-wanted).tolist() if j != largest]
    for j in ranked[: n_offers // 2] if scarce else ():
        available[j] = int(wanted[j] * rng.uniform(0.3, 0.8))
    offers = [_offer(j, float(price[j]), available[j]) for j in range(n_offers)]
    names = [f"service{s:03d}" for s in range(n_services)]
    return FleetProblem(
        demands=tuple(
            Demand(
                service=name,
                buckets=tuple(
                    Bucket(row=row, column=column, rate_rps=float(rate))
                    for (row, column, _, _), rate in zip(grid, mine, strict=True)
                ),
            )
            for name, mine in zip(names, rates, strict=True)
        ),
        options=tuple(
            ServingOption(service=name, offer=offers[j], gpus_per_replica=1, throughput_rps=table[:, j])
            for name, table in zip(names, tables, strict=True)
            for j in range(n_offers)
            if table[:, j].any()
        ),
    )


def _grid(n_buckets: int) -> list[tuple[int, int, float, float]]:
    """Return row, column, input tokens and output tokens of every bucket."""
    rows = int(np.ceil(np.sqrt(n_buckets)))
    columns = -(-n_buckets // rows)
    inputs = _spread(INPUT_TOKENS, rows)
    outputs = _spread(OUTPUT_TOKENS, columns)
    cells = [(row, column, inputs[row], outputs[column]) for row in range(rows) for column in range(columns)]
    return cells[:n_buckets]


def _spread(tokens: tuple[int, ...], count: int) -> list[float]:
    at = np.linspace(0, 1, len(tokens))
    return np.exp(np.interp(np.linspace(0, 1, count), at, np.log(tokens))).tolist()


def _offer(index: int, price: float, available: int | None) -> Offer:
    name = f"GPU{index:03d}"
    return Offer(
        name=name,
        provider="synthetic",
        instance_type=name,
        region="anywhere",
        market=Market.ON_DEMAND,
        gpu=name,
        gpus_per_instance=1,
        price_usd_per_hour=round(price, 4),
        available=available,
    )
