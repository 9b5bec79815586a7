"""What the optimiser does over many periods: a fortnight by the hour, five services, reserved, on demand and spot.

Run it with `python benchmarks/optimizer_horizon.py` or `make bench-optimizer`; it writes its section of
docs/benchmarks.md. Every case runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _report import machine, write_section

from planner.optimize import Assignment, SolverSettings, search, solve
from planner.planning.answer import read_question, read_request

if TYPE_CHECKING:
    from planner.domain.problem import FleetProblem

TODAY = date(2026, 11, 21)
INSTANCE_TYPES = (
    "g2-standard-4",
    "g2-standard-48",
    "a2-highgpu-1g",
    "a2-highgpu-8g",
    "a2-ultragpu-1g",
    "a2-ultragpu-8g",
    "a3-highgpu-1g",
    "a3-highgpu-8g",
    "g4-standard-48",
    "g4-standard-384",
)
"""1 and 4 or 8 GPUs of five types; each on demand, spot and reserved: 30 offers."""
SERVICES = (
    ("chat", "meta-llama/Llama-3.1-8B", "azure_conv_2023", 600, "servegen_m_small", [1]),
    ("code", "Qwen/Qwen2.5-32B", "azure_code_2023", 150, "servegen_m_large", [1, 2, 4]),
    ("assistant", "meta-llama/Llama-3.3-70B-Instruct", "azure_conv_2023", 120, "servegen_m_mid", [2, 4, 8]),
    ("vision", "google/gemma-3-27b-it", "azure_conv_2023", 150, "servegen_mm_image", [1, 2]),
    ("reason", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "azure_conv_2023", 250, "servegen_deepseek_r1", [1, 2]),
)
"""Name, model, sizes of requests, mean req/s, demand by the hour, tensor-parallel degrees."""
SPOT_GPUS = {"L4": 400, "A100-40GB": 160, "A100-80GB": 160, "H100-80GB": 160, "RTX-PRO-6000": 160}
DISCOUNT = "37%"
"""Of a year's commitment against on demand: an assumption of this benchmark."""
TIME_LIMIT_S = 600.0
GROWTH_TIME_LIMIT_S = 180.0
GAP = 0.01
GROWTH = (24, 72, 168)
COMPARED = 20
"""Periods of one service that both searches can do."""


def fortnight(n_periods: int, n_services: int = len(SERVICES)) -> FleetProblem:
    """Return the first `n_periods` hours of the benchmark."""
    request = {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": name,
                "model": model,
                "parallelism": {"tp": degrees},
                "workload": {
                    "trace": f"bundled:{trace}",
                    "rate": f"{rate} req/s",
                    "by_hour": f"bundled:{by_hour}",
                    "grid": {"kind": "adaptive", "rows": 10, "columns": 6},
                },
                "slo": ["ttft p99 <= 4s", "tpot p95 <= 100ms"],
            }
            for name, model, trace, rate, by_hour, degrees in SERVICES[:n_services]
        ],
        "catalog": {
            "providers": ["gcp"],
            "regions": ["us-central1"],
            "markets": ["on-demand", "spot"],
            "commitments": [{"gpu": gpu, "term": "1y", "discount": DISCOUNT} for gpu in SPOT_GPUS],
            "spot_availability": "95%",
        },
        "constraints": {
            "headroom": "10%",
            "quotas": [{"market": "spot", "gpu": gpu, "gpus": count} for gpu, count in SPOT_GPUS.items()],
        },
        "horizon": {"periods": f"{n_periods}h", "step": "1h", "start_up": "15min", "minimum_lease": "2h"},
    }
    question = read_question(read_request(request), base_dir=Path(), today=TODAY, strict=False, current=None)
    problem = question.problem
    return replace(
        problem,
        options=tuple(option for option in problem.options if option.offer.instance_type in INSTANCE_TYPES),
    )


def measure(n_periods: int, n_services: int, gap: float, time_limit_s: float, is_whole: float) -> dict:
    """Return what one call of `solve` took and gave, in this process."""
    problem = fortnight(n_periods, n_services)
    if is_whole:
        search.BY_PERIODS_FROM = n_periods + 1
    elif n_periods == COMPARED:
        search.BY_PERIODS_FROM_PAIRS = 0
    started, cpu = time.perf_counter(), time.process_time()
    settings = SolverSettings(relative_gap=gap, time_limit_s=time_limit_s)
    plan = solve(problem, settings=settings, assignment=Assignment.fractional())
    offers = {option.offer.name: option.offer for option in problem.options}
    by_market: dict[str, float] = {}
    for item in plan.rentals:
        market = offers[item.offer].market.value
        by_market[market] = by_market.get(market, 0.0) + item.cost_usd_per_hour
    return {
        "buckets": [len(demand.buckets) for demand in problem.demands],
        "pairs": n_periods * sum(int(np.count_nonzero(option.throughput_rps)) for option in problem.options),
        "cost": plan.cost_usd_per_hour,
        "gap": plan.gap,
        "status": plan.status.value,
        "by_market": by_market,
        "wall_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def apart(*arguments: float) -> dict:
    """Return `measure(*arguments)` of a fresh process."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(case: str, found: dict) -> str:
    """Return a row of the table."""
    cost = "none" if found["cost"] is None else f"{found['cost']:,.2f}"
    gap = "" if found["gap"] is None else f"{found['gap']:.2%}"
    return (
        f"| {case} | {found['pairs']:,} | {cost} | {gap} | {found['wall_s']:.0f} | {found['cpu_s']:.0f} "
        f"| {found['peak_bytes'] / 2**20:,.0f} | {found['status']} |"
    )


HEAD = (
    "| periods x services | pairs of bucket and option | USD/h | gap | s | CPU s | peak MiB | status |\n"
    "|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure, and write the section."""
    load = os.getloadavg()[0]
    whole = apart(336, len(SERVICES), GAP, TIME_LIMIT_S, 0)
    cost = sum(whole["by_market"].values()) or 1.0
    split = ", ".join(f"{market} {part / cost:.0%}" for market, part in sorted(whole["by_market"].items()))
    lines = [
        "## Many periods",
        "",
        f"`make bench-optimizer`, {machine()}, load average {load:.1f} at the start. {len(SERVICES)} services with the "
        f"demand of ServeGen by the hour, {whole['buckets']} buckets of the Azure traces, 30 offers of gcp us-central1 "
        f"({len(INSTANCE_TYPES)} instance types on demand, spot and reserved for a year at {DISCOUNT} off; spot GPUs "
        "are limited), start-up 15 min, minimum lease 2 h. Whole calls of `solve`, until a gap of "
        f"{GAP:.0%} or {TIME_LIMIT_S:.0f} s ({GROWTH_TIME_LIMIT_S:.0f} s for fewer periods); two threads. "
        "The gap is to the proven bound.",
        "",
        HEAD,
        *(row(f"{n} x {len(SERVICES)}", apart(n, len(SERVICES), GAP, GROWTH_TIME_LIMIT_S, 0)) for n in GROWTH),
        row(f"336 x {len(SERVICES)}", whole),
        "",
        f"Of the fortnight's cost: {split or 'no plan'}.",
        "",
        f"Against the whole programme, {COMPARED} periods of one service, until a gap of {GAP:.0%} or 120 s:",
        "",
        HEAD,
        row(f"{COMPARED} x 1, by periods", apart(COMPARED, 1, GAP, 120, 0)),
        row(f"{COMPARED} x 1, whole", apart(COMPARED, 1, GAP, 120, 1)),
    ]
    write_section("optimizer_horizon", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        numbers = [float(argument) for argument in sys.argv[1:]]
        print(json.dumps(measure(*map(int, numbers[:2]), *numbers[2:])))
    else:
        main()
