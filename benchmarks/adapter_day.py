"""A day of many adapters, served in five ways; section `adapter-day` of docs/benchmarks.md.

Two days of made-up requests: each way learns on the first one, and the second one is told. Takes ten minutes.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import numpy as np
from _report import machine, write_section

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.catalog.offers import load_offers
from planner.domain.adapters import Adapter
from planner.domain.hardware import Market
from planner.files.slo import parse_slo
from planner.planning.function_case import FunctionCase, Hosting, Sizes, function_case
from planner.planning.function_ways import Comparison, Prices, Way
from planner.planning.functions import compare_ways, saving
from planner.planning.keep_alive_rules import RULES
from planner.profilers.efficiency import default_params
from planner.workload.adapter_traffic import DAY_S, traffic_at_rates
from planner.workload.popularity import default_popularity, fitted_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL, GPU, RANK = "meta-llama/Llama-2-7b-hf", "L40S", 16
ADAPTERS = (100, 1000, 5000)
RATES_RPS = (fitted_parameters()["mean_rate_rps"], 0.05, 0.5)
"""Of all adapters together: that of the trace that the gaps were fitted to, and busier ones."""
SLO = "ttft p95 <= 2s"
SIZES = Sizes(input_tokens=512, output_tokens=128)
HOSTING = Hosting(storage_bytes_per_s=2e9, loader="serverlessllm", host_bytes=128e9)
NAMES = {
    Way.DEDICATED: "a process for each, always on",
    Way.POOL: "one pool, always on",
    Way.SERVERLESS: "serverless, 60 s",
    Way.KEPT: "serverless, keep-alive learnt",
    Way.SHARED: "shared backbone, learnt",
}


SAVED_HEADER = (
    "ServerlessLoRA was compared with serverless systems in which every function has weights of its own, and saved up",
    "to 89% of their cost and 86% of their TTFT. That is `serverless, 60 s` here. A process for each adapter that is",
    "always on is not what it was compared with: what is saved against that says how many adapters one copy of the",
    "weights serves, and has no bound. What the shared backbone saves against plain serverless (`first token as",
    "there`: if a first token took 1.06 s, as in the paper; more TTFT than published is saved only where the cost is",
    "higher, since a GPU then stays on for the objective):",
    "",
    "| adapters | req/s | billed | cost saved | mean TTFT saved | first token as there | plain within 2 s"
    " | shared within 2 s |",
    "|---|---|---|---|---|---|---|---|",
)
RULES_HEADER = (
    "What it costs in USD to keep each adapter's own process by a rule: idle time, and the GPU time of cold starts,",
    "whose number is in brackets. Learnt on the first day and told on the second; no objective is asked for here:",
    "",
    f"| adapters | req/s | {' | '.join(RULES)} |",
    f"|{'---|' * (len(RULES) + 2)}",
)


def case_of(rates: np.ndarray) -> FunctionCase:
    adapters = [
        Adapter(name=str(i), rank=RANK, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"), rate_rps=float(rate))
        for i, rate in enumerate(rates)
    ]
    return function_case(
        load_model(MODEL), load_gpus().get(GPU), adapters, sizes=SIZES, slos=[parse_slo(SLO)], hosting=HOSTING,
        params=default_params(),
    )  # fmt: skip


def compared(n: int, rate_rps: float, usd_per_hour: float) -> tuple[Comparison, Comparison, FunctionCase]:
    """Compare the ways with whole GPUs rented, and those that give memory back also billed by its use."""
    rates = rate_rps * default_popularity().shares(n)
    traffic = traffic_at_rates(rates, np.random.default_rng(n), duration_s=2 * DAY_S)
    case = case_of(rates)
    rented = compare_ways(traffic, case, Prices(usd_per_gpu_hour=usd_per_hour))
    prices = Prices(usd_per_gpu_hour=usd_per_hour, usd_per_used_gpu_s=usd_per_hour / 3600)
    used = compare_ways(traffic, case, prices, ways=[Way.SERVERLESS, Way.KEPT, Way.SHARED])
    return rented, used, case


def rows(n: int, rate_rps: float, rented: Comparison, used: Comparison) -> Iterator[str]:
    best = float("nan") if rented.cheapest is None else rented.cheapest.cost_usd
    for found, billed in ((rented, "whole GPUs"), (used, "by use")):
        for outcome in found.ways:
            held = gpus(outcome.n_always_on, outcome.most_gpus)
            misses = "" if found.meets(outcome) else " (misses)"
            yield (
                f"| {n:,} | {rate_rps:.3g} | {NAMES[outcome.way]} | {billed} | {held}"
                f" | {outcome.gpu_s / 3600:.1f} | {found.usd_per_1000(outcome):,.2f} | {outcome.cost_usd / best:.2f}"
                f" | {outcome.ttft_p50_s:.2f} | {outcome.ttft_p99_s:.1f} | {outcome.e2e_p50_s:.1f}"
                f" | {outcome.attainment:.1%}{misses} | {outcome.cold_fraction:.1%} |"
            )
        for text in found.cautions:
            print(f"{n} adapters, {rate_rps:.3g} req/s, {billed}: {text}")


def reading(n: int, rate_rps: float, rented: Comparison, used: Comparison) -> str:
    """Say where the shared backbone stands."""
    shared, pool, dedicated = (rented.of(way) for way in (Way.SHARED, Way.POOL, Way.DEDICATED))
    by_use = used.of(Way.SHARED)
    cheaper, of_pool = dedicated.cost_usd / shared.cost_usd, shared.cost_usd / pool.cost_usd
    return (
        f"- {n:,} adapters, {rate_rps:.3g} req/s: {cheaper:,.0f} times cheaper than a process for each that is always"
        f" on; {of_pool:.2f} of a pool's cost, with answers in {shared.e2e_p50_s:.1f} s against {pool.e2e_p50_s:.1f} s"
        " (median). Billed by use it is cheaper than the pool while a used second costs less than"
        f" {pool.cost_usd / by_use.cost_usd:.1f} times a rented one."
    )


def saved_row(n: int, rate_rps: float, found: Comparison, billed: str, case: FunctionCase) -> str:
    """Say what the shared backbone saves against plain serverless."""
    shared, plain = found.of(Way.SHARED), found.of(Way.SERVERLESS)
    part = saving(shared, plain, case)
    return (
        f"| {n:,} | {rate_rps:.3g} | {billed} | {part.cost:.0%} | {part.ttft:.0%} | {part.ttft_as_published:.0%}"
        f" | {plain.attainment:.1%} | {shared.attainment:.1%} |"
    )


def rules_row(n: int, rate_rps: float, found: Comparison) -> str:
    """Say what rules to keep idle processes cost."""
    parts = (f"{found.rules.total_usd(rule):.2f} ({found.rules.n_cold(rule):,})" for rule in RULES)
    return f"| {n:,} | {rate_rps:.3g} | {' | '.join(parts)} |"


def gpus(n_always_on: int, most: int) -> str:
    return f"{n_always_on}" if most == n_always_on else f"{n_always_on} to {most}"


def main() -> None:
    """Compare, print and write the table; numbers of adapters can be given as arguments."""
    counts = [int(text) for text in sys.argv[1:]] or list(ADAPTERS)
    price = min(
        offer.price_usd_per_hour / offer.gpus_per_instance
        for offer in load_offers()
        if offer.gpu == GPU and offer.market is Market.ON_DEMAND and offer.gpus_per_instance >= 1
    )
    start = time.perf_counter()
    readings: list[str] = []
    table = [
        "| adapters | req/s | way | billed | GPUs | GPU h | USD/1000 | of the cheapest | TTFT p50 (s) | p99 (s)"
        " | E2E p50 (s) | within 2 s | cold |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    saved, rules = list(SAVED_HEADER), list(RULES_HEADER)
    for n in counts:
        for rate_rps in RATES_RPS:
            rented, used, case = compared(n, rate_rps, float(price))
            readings.append(reading(n, rate_rps, rented, used))
            saved += [
                saved_row(n, rate_rps, found, billed, case)
                for found, billed in ((rented, "whole GPUs"), (used, "by use"))
            ]
            rules.append(rules_row(n, rate_rps, rented))
            for row in rows(n, rate_rps, rented, used):
                print(row, flush=True)
                table.append(row)
        took = f"Took {time.perf_counter() - start:.0f} s ({machine()})."
        write_section(
            "adapter-day",
            "\n".join([*header(float(price)), *table, "", *saved, "", *readings, "", *rules, "", took]),
        )


def header(price: float) -> list[str]:
    return [
        "## A day of many adapters",
        "",
        f"Llama-2-7B with adapters of rank {RANK}, {SIZES.input_tokens:g} tokens in and {SIZES.output_tokens:g} out, on"
        f" {GPU}s at {price:.2f} USD/h",
        "(the cheapest on-demand offer of the catalog); 95% of the requests are to have their first token within 2 s.",
        "Popularity and sessions as fitted to a production trace; one day is learnt from and the next one is told.",
        "Simulated, with load times of `profiles/startup.csv` and `profiles/lora/serverless.csv`, the loader of",
        "ServerlessLLM and 128 GB of host memory. `by use`: a second of a GPU costs the same, but only the part of its",
        "memory that is held is paid. `of the cheapest`: cost over that of the cheapest way with whole GPUs that meets",
        "the objective.",
        "Reproduce: `python benchmarks/adapter_day.py`.",
        "",
    ]


if __name__ == "__main__":
    main()
