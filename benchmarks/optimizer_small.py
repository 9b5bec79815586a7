"""How fast the optimiser is, beside the slice model of Mélange in the same run, and on a catalog-sized request.

Run it with `python benchmarks/optimizer_small.py`; it writes its section of docs/benchmarks.md.

The requests are synthetic and seeded: a request's work on a GPU grows with its input and output tokens, small GPUs
cannot hold long requests, and prices grow a little more slowly than speed, so that mixing pays. "Mélange" is its
published formulation: binary slices (factor 8), one covering row per slice, one capacity row per GPU type, solved by
CBC through PuLP with its defaults.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pulp

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _report import machine, write_section

from planner.domain.hardware import EngineConfig, Market, Offer
from planner.domain.problem import FleetProblem, ServingOption
from planner.domain.workload import Bucket, Demand
from planner.optimize import Assignment, SolverSettings, solve
from planner.optimize.prune import prune

INPUT_TOKENS = (25, 100, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000)
OUTPUT_TOKENS = (25, 100, 250, 500, 1000, 2000)
SLICE_FACTOR = 8
MELANGE_TIME_LIMIT_S = 120
REPEATS = 3


@dataclass(frozen=True)
class Gpu:
    name: str
    speed: float
    price: float
    longest_tokens: int


def gpus(count: int, rng: np.random.Generator) -> list[Gpu]:
    """Return GPUs from slow and cheap to fast and dear."""
    speeds = np.sort(rng.uniform(1.0, 12.0, count))
    prices = 0.7 * speeds**0.9 * rng.uniform(0.85, 1.15, count)
    longest = np.where(speeds < 3, 8000, 40000)
    return [
        Gpu(f"GPU{index:02d}", float(speed), round(float(price), 3), int(tokens))
        for index, (speed, price, tokens) in enumerate(zip(speeds, prices, longest, strict=True))
    ]


def buckets(rate_rps: float, rng: np.random.Generator) -> tuple[Bucket, ...]:
    """Return 10 x 6 buckets, short requests being more frequent."""
    share = rng.dirichlet(np.full(60, 0.7)).reshape(10, 6) / np.sqrt(np.outer(INPUT_TOKENS, OUTPUT_TOKENS))
    rates = rate_rps * share / share.sum()
    return tuple(
        Bucket(row=row, column=column, rate_rps=float(rates[row, column])) for row in range(10) for column in range(6)
    )


def throughput(gpu: Gpu, scale: float, rng: np.random.Generator, *, longest_tokens: float) -> np.ndarray:
    """Return req/s of one replica per bucket."""
    work = np.add.outer(np.array(INPUT_TOKENS) * 4e-5, np.array(OUTPUT_TOKENS) * 4e-3)
    rates = gpu.speed * scale / work * rng.uniform(0.7, 1.3, work.shape)
    fits = np.add.outer(INPUT_TOKENS, OUTPUT_TOKENS) <= longest_tokens
    return np.where(fits, rates, 0.0).ravel()


def offer(name: str, gpu: Gpu, count: int, price: float) -> Offer:
    return Offer(
        name=name,
        provider="synthetic",
        instance_type=f"{count}x{gpu.name}",
        region=name.rsplit("/", 1)[-1],
        market=Market.ON_DEMAND,
        gpu=gpu.name,
        gpus_per_instance=count,
        price_usd_per_hour=round(price, 4),
    )


def plain_problem(n_gpus: int, *, rate_rps: float, seed: int) -> FleetProblem:
    """Return Mélange's kind of request: one offer and one configuration per GPU type."""
    rng = np.random.default_rng(seed)
    demand = Demand(service="chat", buckets=buckets(rate_rps, rng))
    options = tuple(
        ServingOption(
            service="chat",
            offer=offer(f"{gpu.name}/any", gpu, 1, gpu.price),
            gpus_per_replica=1,
            throughput_rps=throughput(gpu, 1.0, rng, longest_tokens=gpu.longest_tokens),
        )
        for gpu in gpus(n_gpus, rng)
    )
    return FleetProblem(demands=(demand,), options=options)


def catalog_problem(*, n_gpus: int, n_regions: int, rate_rps: float, seed: int) -> FleetProblem:
    """Return a catalog's kind of request: regions, instances of 1, 4 and 8 GPUs, parallelism, two precisions."""
    rng = np.random.default_rng(seed)
    demand = Demand(service="chat", buckets=buckets(rate_rps, rng))
    options: list[ServingOption] = []
    for gpu in gpus(n_gpus, rng):
        tables = {
            (tp, precision): throughput(
                gpu,
                tp**0.9 * (1.5 if precision == "fp8" else 1.0),
                rng,
                longest_tokens=gpu.longest_tokens * tp * (2 if precision == "fp8" else 1),
            )
            for tp in (1, 2, 4, 8)
            for precision in ("bf16", "fp8")
        }
        for region in range(n_regions):
            factor = rng.choice([1.0, 1.0, 1.05, 1.1, 1.25])
            for count in (1, 4, 8):
                rented = offer(f"{gpu.name}x{count}/region{region}", gpu, count, gpu.price * count * factor)
                options += [
                    ServingOption(
                        service="chat",
                        offer=rented,
                        gpus_per_replica=tp,
                        throughput_rps=table,
                        config=EngineConfig(precision=precision, tensor_parallel=tp),
                    )
                    for (tp, precision), table in tables.items()
                    if tp <= count
                ]
    return FleetProblem(demands=(demand,), options=tuple(options))


def melange(problem: FleetProblem, *, time_limit_s: float = MELANGE_TIME_LIMIT_S) -> tuple[float, float]:
    """Return cost and seconds of Mélange's formulation, as published."""
    started = time.perf_counter()
    rates = [bucket.rate_rps / SLICE_FACTOR for bucket in problem.demands[0].buckets for _ in range(SLICE_FACTOR)]
    tables = [np.repeat(option.throughput_rps, SLICE_FACTOR) for option in problem.options]
    model = pulp.LpProblem("melange", pulp.LpMinimize)
    assign = [
        [model.add_variable(f"a{i}_{j}", 0, 1 if table[i] > 0 else 0, "Integer") for j, table in enumerate(tables)]
        for i in range(len(rates))
    ]
    count = [model.add_variable(f"n{j}", 0, None, "Integer") for j in range(len(tables))]
    model += pulp.lpSum(
        float(option.offer.price_usd_per_hour) * n for option, n in zip(problem.options, count, strict=True)
    )
    for row in assign:
        model += pulp.lpSum(row) == 1
    for j, table in enumerate(tables):
        served = [i for i in range(len(rates)) if table[i] > 0]
        model += pulp.lpSum(float(rates[i] / table[i]) * assign[i][j] for i in served) <= count[j]
    from pulp.apis import coin_api

    path = getattr(coin_api, "pulp_cbc_path", None)
    model.solve(pulp.COIN_CMD(path=path, msg=False, timeLimit=time_limit_s))
    cost = sum(
        float(option.offer.price_usd_per_hour) * round(n.varValue)
        for option, n in zip(problem.options, count, strict=True)
    )
    return cost, time.perf_counter() - started


def ours(problem: FleetProblem, assignment: Assignment) -> tuple[float, float, float]:
    """Return cost, gap and the median seconds of whole `solve` calls: pruning, search, ties, routing and checks."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        plan = solve(problem, settings=SolverSettings(), assignment=assignment)
        seconds.append(time.perf_counter() - started)
    return float(plan.cost_usd_per_hour or 0.0), float(plan.gap or 0.0), float(np.median(seconds))


def main() -> None:
    solve(plain_problem(2, rate_rps=5, seed=0), settings=SolverSettings(), assignment=Assignment.fractional())
    lines = [
        "## Optimiser",
        "",
        f"`python benchmarks/optimizer_small.py`, {machine()}. Synthetic requests with 60 buckets; seconds are whole "
        "calls of `solve`, its checks and tie-breaks included, the median of three. Mélange's formulation ran in the "
        f"same process, with slice factor {SLICE_FACTOR} and CBC, for at most {MELANGE_TIME_LIMIT_S} s.",
        "",
        "| request | Mélange USD/h | s | sliced USD/h | s | shares USD/h | s | gap | shares / Mélange cost | time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for n_gpus in (4, 16):
        for rate in (2.0, 8.0, 32.0):
            problem = plain_problem(n_gpus, rate_rps=rate, seed=1)
            published, published_s = melange(problem)
            sliced, _, sliced_s = ours(problem, Assignment.sliced(SLICE_FACTOR))
            cost, gap, seconds = ours(problem, Assignment.fractional())
            lines.append(
                f"| {n_gpus} GPU types, {rate:g} req/s | {published:.3f} | {published_s:.2f} | {sliced:.3f} "
                f"| {sliced_s:.2f} | {cost:.3f} | {seconds:.2f} | {gap:.4%} | {cost / published:.3f} "
                f"| {published_s / seconds:.0f}x faster |"
            )
            print(lines[-1], flush=True)
    lines += [
        "",
        "| catalog request | options | after pruning | USD/h | gap | s |",
        "|---|---|---|---|---|---|",
    ]
    for n_gpus, n_regions in ((6, 4), (12, 20)):
        problem = catalog_problem(n_gpus=n_gpus, n_regions=n_regions, rate_rps=32.0, seed=2)
        cost, gap, seconds = ours(problem, Assignment.fractional())
        lines.append(
            f"| {n_gpus} GPU types x {n_regions} regions | {len(problem.options):,} | {len(prune(problem).options)} "
            f"| {cost:.3f} | {gap:.4%} | {seconds:.2f} |"
        )
        print(lines[-1], flush=True)
    write_section("optimizer_small", "\n".join(lines))


if __name__ == "__main__":
    main()
