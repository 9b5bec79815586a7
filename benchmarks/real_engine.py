"""The simulator against a real engine: vLLM on one CPU core, calibrated on some loads and predicted on others.

Installs vLLM into .venv-engine (some three minutes), starts it with a dummy model on core 0, sends requests from
core 1, fits the step-time model to the loads that are there to calibrate it, and compares what the simulator says of
the others with what was measured. Run: .venv/bin/python benchmarks/real_engine.py [--stored] [--no-write] [--only
CASE ...]; `--stored` measures nothing and takes the figures of the last run, in benchmarks/data.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _engine_cases import CASES
from _engine_measure import NotMeasuredError, measure_all
from _engine_model import METRICS, STATISTICS, Run, calibrate, errors, predict, read, statistic, write
from _engine_server import MODEL, TORCH, VENV, VLLM, EngineError, install
from _report import write_section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _engine_cases import Case
    from _engine_model import Coefficients

DATA = Path(__file__).resolve().parent / "data"
TARGET, AIM = 0.20, 0.10


def _machine() -> dict[str, str]:
    names = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    return {
        "processor": names[0].split(":")[1].strip() if names else platform.machine(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "engine": VLLM,
        "torch": TORCH,
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _row(run: Run, found: Coefficients) -> str:
    simulated = predict(run, found)
    off = errors(run, simulated)
    cells = [
        f"{statistic(run, *key) * 1e3:,.0f} → {statistic(simulated, *key) * 1e3:,.0f} ({off[key]:+.0%})"
        if key[0] != "TPOT"
        else f"{statistic(run, *key) * 1e3:.1f} → {statistic(simulated, *key) * 1e3:.1f} ({off[key]:+.0%})"
        for key in off
    ]
    load = f"{len(run.sent_s)} | {run.rate_rps:.2f} | {run.sizes}"
    return f"| {run.case} | {load} | {' | '.join(cells)} |"


def _said(found: Coefficients) -> str:
    """Return the coefficients as a sentence."""
    return (
        f"a request reaches the scheduler after {found.delay_s * 1e3:.1f} ms and {found.delay_token_s * 1e6:.2g} µs a"
        f" prompt token; a step takes {found.fixed_s * 1e3:.1f} ms, √((tokens × {found.token_s * 1e3:.2f} ms)² +"
        f" ({found.read_s * 1e3:.1f} ms)²), {found.sequence_s * 1e3:.2f} ms a decoding sequence,"
        f" {found.context_s * 1e6:.2f} µs a token of its context, {found.pair_s * 1e6:.2f} µs a pair of prompt tokens"
    )


def _counts(runs: Sequence[Run], found: Coefficients) -> str:
    """Return what the engine and the simulator counted in the runs where there is something to count."""
    parts = []
    for run in runs:
        simulated = predict(run, found).conditions
        for name, what in (("preemptions", "preemptions"), ("cached_tokens", "prompt tokens found in the cache")):
            if run.conditions.get(name):
                parts.append(f"{run.case}: {run.conditions[name]:,} → {simulated[name]:,} {what}")
    return "; ".join(parts)


def all_errors(runs: Sequence[Run], found: Coefficients) -> np.ndarray:
    """Return the sizes of all errors of some runs: (runs, metrics x statistics)."""
    return np.abs([list(errors(run, predict(run, found)).values()) for run in runs])


def noise(runs: Sequence[Run]) -> np.ndarray:
    """Return how far the second measurement of a case is off the first, for those that were measured twice."""
    pairs = [[run for run in runs if run.case == name] for name in dict.fromkeys(run.case for run in runs)]
    return np.abs([list(errors(*pair[:2]).values()) for pair in pairs if len(pair) > 1])


def report(runs: Sequence[Run], about: dict[str, Any]) -> str:
    """Return the section of docs/benchmarks.md."""
    fitted = [run for run in runs if run.purpose == "calibrate"]
    others = [run for run in runs if run.purpose == "predict"]
    found = calibrate(fitted)
    inside, outside, twice = all_errors(fitted, found), all_errors(others, found), noise(runs)
    columns = " | ".join(f"{metric} {name}" for metric in METRICS for name in STATISTICS)
    head = [f"| load | n | req/s | in / out tokens | {columns} |", "|---" * (4 + len(METRICS) * len(STATISTICS)) + "|"]
    pace = [run.conditions["pace_s"] * 1e3 for run in runs]
    busy = np.median([run.conditions["others_cores"] for run in runs])
    late = max(max(run.conditions["send_late_p99_s"], run.conditions["read_late_p99_s"]) for run in runs)
    median = float(np.median(outside))
    verdict = "yes" if median <= TARGET else "no"
    aimed = "yes" if median <= AIM else "no"
    by_metric = ", ".join(
        f"{metric} {name} {np.median(outside[:, i]):.1%}"
        for i, (metric, name) in enumerate((m, s) for m in METRICS for s in STATISTICS)
    )
    machine = about["machine"]
    settings = "; ".join(
        f"{name}: {run.settings['max_num_batched_tokens']} tokens and {run.settings['max_num_seqs']} sequences a step,"
        f" {run.settings['kv_blocks']} blocks of {run.settings['block_size']}"
        for name, run in {run.engine: run for run in runs}.items()
    )
    return "\n".join([
        "## Against a real engine",
        "",
        f"`make bench-engine`: {machine['engine']} on one core of {machine['processor']} ({machine['cores']} cores),"
        f" measured {machine['measured']}; a Llama with {about['parameters'] / 1e6:.0f} million random weights in"
        " bfloat16, eager mode. Cells are measured → simulated, in ms. A percentile of so few requests is near its"
        " largest value.",
        "",
        "Calibrated on (in-sample):",
        "",
        *head,
        *[_row(run, found) for run in fitted],
        "",
        "Predicted (not seen by the calibration; a load that was measured twice stands twice):",
        "",
        *head,
        *[_row(run, found) for run in others],
        "",
        "| | figures | median error | 90% of errors below | largest |",
        "|---|---|---|---|---|",
        *[
            f"| {name} | {values.size} | {np.median(values):.1%} | {np.quantile(values, 0.9):.1%} |"
            f" {values.max():.1%} |"
            for name, values in (
                ("predicted", outside),
                ("calibrated on", inside),
                ("the same load measured twice", twice),
            )
            if values.size
        ],
        "",
        f"Median error of the predictions within {TARGET:.0%}: {verdict}; within {AIM:.0%}: {aimed}. By figure:"
        f" {by_metric}. The next section sets that beside what others publish.",
        "",
        f"What the engine counted itself → what the simulator counted: {_counts(others, found)}.",
        "",
        f"Engines ({settings}) all run with the coefficients of the first: {_said(found)}.",
        "",
        "What the two shared cores do: the server's three processes (HTTP, scheduler, worker) share core 0, the client"
        " has core 1. So the HTTP server's work on a token delays the step under way instead of hiding behind it: it is"
        " part of every step that was fitted, and a request that comes in during a step slows that step down while it"
        " is read. The cores share cache and memory bandwidth with the client and with whatever else the machine does."
        " What that leaves of one load is the line of those measured twice, and near saturation a small difference in"
        " pace becomes a large one in waiting."
        f" In these runs others kept {busy:.1f} of the {machine['cores']} cores busy (median), at a lower"
        f" priority where the system allows it; a lone request's tokens came {min(pace):.1f} to {max(pace):.1f} ms"
        " apart before and after the runs, and the client sent and read at most"
        f" {late * 1e3:.1f} ms late (p99).",
    ])  # fmt: skip


def _measured(chosen: Sequence[Case]) -> tuple[list[Run], dict[str, Any]]:
    if sys.platform != "linux" or (os.cpu_count() or 1) < 2:
        msg = "the benchmark pins processes to two cores, which needs Linux and two cores"
        raise EngineError(msg)
    install()
    runs, about, scratch = [], {"machine": _machine(), "parameters": parameters()}, VENV / "run"
    for run in measure_all(chosen, scratch):
        runs.append(run)
        write(scratch, runs, about)  # what there is, should the next one fail
    return runs, about


def parameters() -> int:
    """Return the number of weights of the dummy model."""
    hidden, heads = MODEL["hidden_size"], MODEL["num_attention_heads"] + 2 * MODEL["num_key_value_heads"]
    attention = hidden * MODEL["head_dim"] * (heads + MODEL["num_attention_heads"])
    layer = attention + 3 * hidden * MODEL["intermediate_size"] + 2 * hidden
    return int(MODEL["num_hidden_layers"] * layer + (2 * MODEL["vocab_size"] + 1) * hidden)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", action="store_true")
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], metavar="CASE")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    started = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped too
    if options.stored:
        runs, about = read(options.data)
    else:
        try:
            runs, about = _measured([case for case in CASES if not options.only or case.name in options.only])
        except (EngineError, NotMeasuredError) as error:
            print(f"Not measured: {error}", file=sys.stderr)
            return 1
        if not options.no_write or options.data != DATA:
            write(options.data, runs, about)
            runs, about = read(options.data)
    if not any(run.purpose == "calibrate" for run in runs):
        return 0
    text = report(runs, about)
    print(text)
    print(f"took {time.perf_counter() - started:.0f} s")
    if not options.no_write:
        write_section("real_engine", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
