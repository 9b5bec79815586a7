"""How long a million requests take from a trace file to demand in buckets.

Run: .venv/bin/python benchmarks/workload_read.py [--rows N] [--no-write]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from _report import machine, write_section

from planner.workload.buckets import demand_from_trace, melange_grid, parse_peak
from planner.workload.read import read_trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.domain.workload import Trace

SEED = 20231116
REPEATS = 3
TARGET_S = 3.0
START = np.datetime64("2023-11-16T18:15:46", "ns")


def requests(n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return arrival times in steps of 100 ns, input tokens and output tokens, with the spread of real traces."""
    rng = np.random.default_rng(SEED)
    ticks = np.cumsum(rng.exponential(0.18e7, n_rows)).astype(np.int64)
    inputs = np.clip(rng.lognormal(6.5, 1.1, n_rows), 1, 120_000).astype(np.int64)
    outputs = np.clip(rng.lognormal(5.0, 1.0, n_rows), 1, 4_000).astype(np.int64)
    return ticks, inputs, outputs


def write_azure(path: Path, n_rows: int) -> None:
    ticks, inputs, outputs = requests(n_rows)
    stamps = np.datetime_as_string(START + (ticks * 100).astype("timedelta64[ns]"), unit="ns")
    with path.open("w") as stream:
        stream.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        rows = zip(stamps.tolist(), inputs.tolist(), outputs.tolist(), strict=True)
        stream.writelines(f"{stamp[:10]} {stamp[11:27]},{i},{o}\n" for stamp, i, o in rows)


def write_azure_damaged(path: Path, n_rows: int) -> None:
    write_azure(path, n_rows)
    with path.open("a") as stream:
        stream.write("2023-11-20 18:00:00.0000000,12\n" * 10)


def write_burstgpt(path: Path, n_rows: int) -> None:
    ticks, inputs, outputs = requests(n_rows)
    outputs[::37] = 0  # failures
    with path.open("w") as stream:
        stream.write("Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n")
        rows = enumerate(zip((ticks / 1e7).round(1).tolist(), inputs.tolist(), outputs.tolist(), strict=True))
        stream.writelines(
            f"{t},{k:08x}-7a39-4d4a-9a6e-0d5be1a7f001,{k % 60},ChatGPT,{i},{o},{i + o},API log\n"
            for k, (t, i, o) in rows
        )


def write_mooncake(path: Path, n_rows: int) -> None:
    ticks, inputs, outputs = requests(n_rows)
    first = 0
    with path.open("w") as stream:
        for t, i, o in zip((ticks // 10_000).tolist(), inputs.tolist(), outputs.tolist(), strict=True):
            blocks = list(range(first, first - (-i // 512)))
            first += len(blocks) // 2
            stream.write(f'{{"timestamp": {t}, "input_length": {i}, "output_length": {o}, "hash_ids": {blocks}}}\n')


CASES: dict[str, tuple[Callable[[Path, int], None], bool]] = {
    "Azure": (write_azure, False),
    "Azure, 10 bad rows skipped": (write_azure_damaged, True),
    "BurstGPT, 8 columns": (write_burstgpt, False),
    "Mooncake with hashes": (write_mooncake, False),
}


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def to_demand(trace: Trace) -> None:
    demand_from_trace(trace, service="s", grid=melange_grid(), peak=parse_peak("p99 of 1m"))


def measure(name: str, n_rows: int) -> str:
    write, skip = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        write(path, n_rows)
        trace = read_trace(path, skip_bad_rows=skip)
        read_s = statistics.median(timed(lambda: read_trace(path, skip_bad_rows=skip)) for _ in range(REPEATS))
        demand_s = statistics.median(timed(lambda: to_demand(trace)) for _ in range(REPEATS))
        plain, plain_s = "", 0.0
        if name != "Mooncake with hashes":
            plain_s = statistics.median(timed(lambda: pd.read_csv(path)) for _ in range(REPEATS))
            plain = f"{plain_s:.2f}"
        size_mb = path.stat().st_size / 1e6
    total_s = read_s + demand_s
    verdict = "yes" if total_s < TARGET_S else "**no**"
    ratio = f"{read_s / plain_s:.1f}" if plain_s else ""
    return (
        f"| {name} | {trace.n_requests:,} | {size_mb:.0f} | {read_s:.2f} | {demand_s:.2f} | {total_s:.2f} | {verdict} "
        f"| {plain} | {ratio} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    read_trace("bundled:azure_code_2023")  # imports are not part of the figures
    lines = [
        "## Reading traces",
        "",
        f"`benchmarks/workload_read.py`: {options.rows:,} generated requests (seed {SEED}) from a file to demand in "
        f"Mélange's buckets at the p99 of one-minute windows; median of {REPEATS} runs; {machine()}. The last columns "
        "compare with `pandas.read_csv` of the same file in the same run, which checks nothing, parses no times and "
        "keeps all columns.",
        "",
        "| trace | requests | MB | read s | bucket s | total s | under 3 s | plain pandas s | read / plain |",
        "|---|---|---|---|---|---|---|---|---|",
        *(measure(name, options.rows) for name in CASES),
    ]
    markdown = "\n".join(lines)
    print(markdown)
    if not options.no_write:
        write_section("workload_read", markdown)


if __name__ == "__main__":
    main()
