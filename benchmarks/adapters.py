"""How long plans with many adapters take, and how near the proven bound they come; section `adapters` of benchmarks.md.

Adapters are made up: the bundled popularity law spreads a rate over them (docs/explanation/adapters.md), ranks come in
turn. Their requests have one size, or the sizes of a recorded trace; they have the service's objectives, or many of
their own. `python benchmarks/adapters.py [--print] [ADAPTERS ...]` plans all cases, or those with so many adapters.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from _report import machine, write_section

import planner
from planner.workload.popularity import default_popularity

RATE_RPS = 60.0
RANKS = (8, 16, 32)
TRACE = "bundled:azure_conv_2023"
STRICTEST_MS, LOOSEST_MS = 30.0, 80.0
"""Mean TPOT of the first and the last of many objectives."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row."""

    count: int
    has_sizes: bool = False
    """Whether requests have the sizes of the recorded trace."""
    n_slos: int = 0
    """Different objectives of adapters; 0 = the service's for all."""


CASES = (
    *(Case(count=count, has_sizes=has_sizes) for has_sizes in (False, True) for count in (100, 1000, 5000)),
    Case(count=300, n_slos=300),
    Case(count=5000, n_slos=50),
    Case(count=5000, n_slos=50, has_sizes=True),
)


def write_adapters(folder: Path, count: int, n_slos: int = 0) -> None:
    """Write a list of `count` adapters that are asked for `RATE_RPS` together, with so many objectives in turn."""
    rates = RATE_RPS * default_popularity().shares(count)
    rows = []
    for i, rate in enumerate(rates.tolist()):
        part = (i % n_slos) / max(n_slos - 1, 1) if n_slos else 0.0
        slo = f"tpot mean <= {STRICTEST_MS + part * (LOOSEST_MS - STRICTEST_MS):.3f}ms" if n_slos else ""
        rows.append(f"a{i:05},{RANKS[i % len(RANKS)]},q k v o,{rate!r},{slo}")
    text = "\n".join(["name,rank,target_modules,rate_rps,slo", *rows, ""])
    (folder / "adapters.csv").write_text(text, encoding="utf-8")


def row(case: Case) -> str:
    """Return a case's row: solve time alone, and all of a plan with its comparisons."""
    request = copy.deepcopy(REQUEST)
    if case.has_sizes:
        request["services"][0]["workload"] = {"trace": TRACE}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_adapters(folder, case.count, case.n_slos)
        start, cpu = time.perf_counter(), time.process_time()
        plan = planner.plan(request, base_dir=folder, verify=False).plan
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    (item,) = plan.adapters
    costs = {other.way: other.cost_usd_per_hour or float("nan") for other in item.alternatives}
    n_sizes = len(plan.routing) // item.groups
    return (
        f"| {case.count:,} | {n_sizes} | {case.n_slos or 1} | {item.groups} | {len(item.placement)} "
        f"| {plan.cost_usd_per_hour:.2f} | {plan.bound_usd_per_hour:.2f} | {plan.gap:.1%} | {plan.solver.seconds:.1f} "
        f"| {seconds:.1f} | {cpu_s:.1f} | {costs['dedicated']:.2f} | {costs['one pool']:.2f} |"
    )


HEAD = (
    "| adapters | sizes | objectives | groups | replicas | USD/h | bound | gap | solve (s) | whole plan (s) | CPU (s) "
    "| dedicated | one pool |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)


def section(rows: list[str]) -> str:
    """Return the section of docs/benchmarks.md."""
    return "\n".join(
        [
            "## Many adapters",
            "",
            "`python benchmarks/adapters.py` plans a Llama-3.1-8B with adapters of ranks 8, 16 and 32 in turn on four "
            "GPU types of one region of gcp; 60 req/s, spread by the popularity law that ships. Requests have 800 + "
            f"200 tokens, or the sizes of {TRACE}; the objectives are the service's, or adapters' own: a mean TPOT of "
            f"{STRICTEST_MS:g} to {LOOSEST_MS:g} ms in turn, planned as six. The bound is for every plan, whichever "
            "requests of an adapter go where. "
            f'"Whole plan" has reading, throughputs, baselines and both other ways in it. {machine()}.',
            "",
            *HEAD,
            *rows,
        ]
    )


def main(words: list[str]) -> None:
    """Print the rows, and write the section if all cases were planned."""
    counts = {int(word) for word in words if word != "--print"}
    rows = []
    print("\n".join(HEAD))
    for case in CASES:
        if not counts or case.count in counts:
            rows.append(row(case))
            print(rows[-1], flush=True)
    if len(rows) == len(CASES) and "--print" not in words:
        write_section("adapters", section(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
