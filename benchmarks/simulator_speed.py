"""How fast the simulator is: a million requests on 64 replicas, and the fast mode beside the exact one.

The exact mode walks every engine step, as Vidur does; both run the same compiled code, so their ratio is what jumping
over unchanged steps is worth. Run: .venv/bin/python benchmarks/simulator_speed.py [--no-write]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
from _report import machine, write_section

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_record
from planner.domain.hardware import EngineConfig
from planner.profilers.efficiency import default_params
from planner.simulate import arrivals
from planner.simulate.run import Pools, Router, Traffic, simulate
from planner.simulate.steps import EngineKind, engine_table
from planner.workload.read import read_trace, resolve_trace

REPLICAS = 64
RATE_PER_REPLICA_RPS = 12.0
"""About two thirds of what an H100 serves of this traffic within TPOT p95 <= 60 ms."""
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
EXACT_SIZES = (10_000, 30_000, 100_000)
TARGET_S = 60.0
TARGET_MIB = 2048


def traffic(n: int) -> Traffic:
    """Return Poisson arrivals with the sizes of the Azure 2023 conversation trace, drawn with replacement."""
    trace = read_trace(resolve_trace("bundled:azure_conv_2023", base_dir=Path()))
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, trace.n_requests, n)
    zeros = np.zeros(n, dtype=np.int64)
    return Traffic(
        arrival_s=arrivals.poisson(RATE_PER_REPLICA_RPS * REPLICAS, n, rng),
        input_tokens=trace.input_tokens[drawn],
        output_tokens=trace.output_tokens[drawn],
        row=zeros,
        service=zeros,
    )


def measure(n: int, *, is_exact: bool) -> None:
    """Simulate once to compile, then `n` requests; print what it took."""
    record = load_record("meta-llama/Llama-3.1-8B", base_dir=Path())
    kind = EngineKind(record.architecture, load_gpus().get("H100-80GB"), EngineConfig(), default_params())
    pools = Pools(kinds=engine_table([kind]), replicas=(REPLICAS,))
    router = Router(weights=np.ones((1, 1)), rate_rps=np.ones((1, 1)))
    simulate(pools, traffic(100), router)
    found = simulate(pools, traffic(n), router, is_exact=is_exact)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    p99 = (
        np.percentile(found.records.ttft_s, 99),
        np.percentile(found.records.tpot_s[found.records.output_tokens > 1], 99),
    )
    print(found.seconds, found.n_events, found.n_steps, mib, *p99)


def in_a_process(n: int, *, is_exact: bool) -> list[float]:
    """Return the figures of `measure` in a process of its own, so that memory is this run's alone."""
    flags = ["--measure", str(n)] + (["--exact"] if is_exact else [])
    ran = subprocess.run([sys.executable, __file__, *flags], check=True, capture_output=True, text=True)
    return [float(word) for word in ran.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--measure", type=int)
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, is_exact=options.exact)
        return
    fast = {n: in_a_process(n, is_exact=False) for n in SIZES}
    exact = {n: in_a_process(n, is_exact=True) for n in EXACT_SIZES}
    rows = [
        f"| {mode} | {n:,} | {int(events):,} | {int(steps):,} | {seconds:.2f} | {n / seconds:,.0f} "
        f"| {events / seconds:,.0f} | {seconds / n * 1e6:.1f} | {mib:.0f} | {ttft * 1e3:.3f} | {tpot * 1e3:.3f} |"
        for mode, table in (("fast", fast), ("exact", exact))
        for n, (seconds, events, steps, mib, ttft, tpot) in table.items()
    ]
    last = fast[SIZES[-1]]
    common = EXACT_SIZES[-1]
    verdict = "yes" if last[0] <= TARGET_S and last[3] <= TARGET_MIB else "no"
    text = "\n".join([
        "## Simulator speed",
        "",
        f"`python benchmarks/simulator_speed.py`, {machine()}, one thread. Llama-3.1-8B on {REPLICAS} H100 replicas,"
        f" Poisson arrivals at {RATE_PER_REPLICA_RPS:g} req/s a replica, sizes of the Azure 2023 conversation trace;"
        " compiled beforehand (some 20 s, once on a machine).",
        "",
        "| mode | requests | events | engine steps | s | requests/s | events/s | µs per request | peak MiB"
        " | TTFT p99 ms | TPOT p99 ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"A million requests within {TARGET_S:g} s and {TARGET_MIB / 1024:g} GiB: {verdict}. At {common:,} requests the"
        f" step-by-step mode takes {exact[common][0] / fast[common][0]:.1f} times as long for the same percentiles.",
    ])  # fmt: skip
    print(text)
    if not options.no_write:
        write_section("simulator_speed", text)


if __name__ == "__main__":
    main()
