"""How long plans with many adapters take, and how near the proven bound they come. Prints a table in Markdown.

Adapters are made up: the bundled popularity law spreads a rate over them (docs/explanation/adapters.md), ranks come in
turn. `python benchmarks/adapters.py [ADAPTERS ...]`; the default is 100 1000 5000.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import planner
from planner.workload.popularity import default_popularity

DEFAULT_COUNTS = (100, 1000, 5000)
RATE_RPS = 60.0
RANKS = (8, 16, 32)
REQUEST = {
    "schema_version": "1",
    "kind": "PlanRequest",
    "services": [
        {
            "name": "assistant",
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "adapters": {"file": "adapters.csv"},
            "parallelism": {"tp": 1},
            "workload": {"constant": {"input_tokens": 800, "output_tokens": 200}},
            "slo": ["ttft p99 <= 2s", "tpot mean <= 60ms"],
        }
    ],
    "catalog": {
        "providers": ["gcp"],
        "regions": ["us-central1"],
        "gpus": {"include": ["L4", "A100-40GB", "A100-80GB", "H100-80GB"]},
    },
}


def write_adapters(folder: Path, count: int) -> None:
    """Write a list of `count` adapters that are asked for `RATE_RPS` together."""
    rates = RATE_RPS * default_popularity().shares(count)
    rows = (f"a{i:05},{RANKS[i % len(RANKS)]},q k v o,{rate!r}" for i, rate in enumerate(rates.tolist()))
    (folder / "adapters.csv").write_text("\n".join(["name,rank,target_modules,rate_rps", *rows, ""]), encoding="utf-8")


def main(counts: list[int]) -> None:
    """Print one row per number of adapters: solve time alone, and all of a plan with its comparisons."""
    print("| adapters | groups | replicas | USD/h | bound | gap | solve (s) | whole plan (s) | dedicated | one pool |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_adapters(folder, count)
            start = time.perf_counter()
            plan = planner.plan(REQUEST, base_dir=folder).plan
            seconds = time.perf_counter() - start
        (item,) = plan.adapters
        costs = {other.way: other.cost_usd_per_hour or float("nan") for other in item.alternatives}
        print(
            f"| {count:,} | {item.groups} | {len(item.placement)} | {plan.cost_usd_per_hour:.2f} "
            f"| {plan.bound_usd_per_hour:.2f} | {plan.gap:.1%} | {plan.solver.seconds:.1f} | {seconds:.1f} "
            f"| {costs['dedicated']:.2f} | {costs['one pool']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or list(DEFAULT_COUNTS))
