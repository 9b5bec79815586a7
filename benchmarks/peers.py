"""How far off others say that they are, and how far off gpuplan is: on the engine at hand, and on GPUs that are not.

Measures nothing: it reads the runs that real_engine.py has stored, and the published points of accuracy.py with their
GPU or model left out of the fit. Run: python benchmarks/peers.py [--dry-run]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from _accuracy_fit import bare, leave_out, load_rows
from _accuracy_intervals import GPU, MODEL
from _engine_model import calibrate, errors, predict, read
from _report import write_section

from planner.profilers.efficiency import default_params

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _accuracy_fit import Row

DATA = Path(__file__).resolve().parent / "data"
END_TO_END = ("E2E", "mean")
GPUS = ("H100-80GB", "A100-80GB", "L40S")
"""Those of BLIS's validation."""
ENGINE = "vllm"
LOADS = {"static_batch": "static batches", "concurrency": "closed loops"}


@dataclass(frozen=True)
class Published:
    """What a project says of its own error."""

    name: str
    predicted: str
    fitted_to: str
    error: str
    mean: float
    """Its figure, as a part."""
    source: str


PEERS = (
    Published(
        name="BLIS (evolved)",
        predicted="mean end-to-end latency of 38 runs of vLLM 0.15 on H100, A100-80GB and L40S, traffic with queues",
        fitted_to="coefficients learned from runs of vLLM on H100",
        error="11.8% mean, 7.4% median; TTFT 22.8% mean",
        mean=0.118,
        source="inference-sim/inference-sim@0632ebb7f204, docs/blog/posts/inference-simulator-showdown.md and"
        " docs/guide/latency-models.md",
    ),
    Published(
        name="Vidur",
        predicted="latency of requests of several models, static and dynamic traffic",
        fitted_to="kernels timed on the GPU that is predicted",
        error="below 9%",
        mean=0.09,
        source="Agrawal et al., MLSys 2024, arXiv 2405.05465, abstract",
    ),
)


def _told(found: np.ndarray) -> str:
    return f"{found.mean():.1%} mean, {np.median(found):.1%} median, {np.quantile(found, 0.9):.1%} for nine in ten"


def at_hand() -> tuple[np.ndarray, np.ndarray, str]:
    """Return the errors of the mean latency of each predicted run, those of all its figures, and the engine."""
    runs, about = read(DATA)
    found = calibrate([run for run in runs if run.purpose == "calibrate"])
    off = [errors(run, predict(run, found)) for run in runs if run.purpose == "predict"]
    return (
        np.abs([one[END_TO_END] for one in off]),
        np.abs([list(one.values()) for one in off]).ravel(),
        about["machine"]["engine"],
    )


def left_out_ratios(rows: list[Row]) -> dict[str, np.ndarray]:
    """Return estimate / measured throughput of every row, shape (rows,), with nothing kept of its GPU or its model."""
    measured = np.array([row.measurement.values[0] for row in rows])
    plain = bare(default_params())
    keys = {GPU: lambda row: row.gpu, MODEL: lambda row: row.model}
    return {name: leave_out(rows, key, plain)[0][:, 0] / measured for name, key in keys.items()}


def elsewhere(rows: list[Row], ratios: np.ndarray, gpu: str, load_kind: str) -> np.ndarray:
    """Return the errors of the time of a request: those in service over the rate (Little's law)."""
    chosen = [
        row.gpu == gpu and row.measurement.question.load_kind == load_kind and row.cells["engine"] == ENGINE
        for row in rows
    ]
    ratios = ratios[chosen]
    return np.abs(1.0 / ratios[np.isfinite(ratios)] - 1.0)


def _estimates(rows: list[Row], found: Mapping[str, np.ndarray]) -> list[str]:
    lines = []
    for gpu in GPUS:
        n_before = len(lines)
        for kind, what in LOADS.items():
            for name, ratios in found.items():
                off = elsewhere(rows, ratios, gpu, kind)
                if len(off):
                    lines.append(
                        f"| gpuplan, estimate | time of a request, {len(off)} {what} of vLLM on {gpu}, no queue |"
                        f" {name} of the fit | {_told(off)} |"
                    )
        if len(lines) == n_before:
            lines.append(f"| gpuplan, estimate | vLLM on {gpu} | | not known: no batch or closed loop of it is there |")
    return lines


def report() -> str:
    """Return the section of docs/benchmarks.md."""
    latency, everything, engine = at_hand()
    rows = load_rows(default_params())
    verdict = {
        peer.name: "yes" if latency.mean() < peer.mean and np.median(latency) < peer.mean else "no" for peer in PEERS
    }
    return "\n".join([
        "## What other simulators say of themselves, and this one",
        "",
        "`python benchmarks/peers.py`: errors as published, beside those of the sections above and below. It measures"
        " nothing anew.",
        "",
        "| whose | predicted | fitted to | error |",
        "|---|---|---|---|",
        *[f"| {peer.name} | {peer.predicted} | {peer.fitted_to} | {peer.error} |" for peer in PEERS],
        f"| gpuplan, simulator | mean end-to-end latency of {len(latency)} runs of {engine} on one CPU core, traffic"
        f" with queues | other loads of the same server | {_told(latency)} |",
        *_estimates(rows, left_out_ratios(rows)),
        "",
        "Better than the published figure on the real engine at hand, by mean and median: "
        + ", ".join(f"{name} {answer}" for name, answer in verdict.items())
        + f". With TTFT and TPOT, means and p99, the median of all {everything.size} figures is"
        f" {np.median(everything):.1%}.",
        "",
        "What can be compared: the first three rows are whole servers with requests that arrive by themselves and wait."
        " But a dummy model on a CPU core only has steps as long as a large model's on a GPU, 10 to 50 ms, and no GPU's"
        " kernels: a small error there says that scheduler, queues and memory are right, not that a GPU's step"
        " times would be. No server with a GPU was at hand. Known of those is the estimate's error on published points"
        " whose GPU, or whose model, was left out of the fit (what that leaves in is said in the section on estimated"
        " operating points). These are full batches and closed loops, where nobody waits, of older vLLM (2023 to 0.11):"
        f" easier loads, and no fit to the server. Of {GPUS[-1]} there are largest throughputs, most of TensorRT-LLM.",
        "",
        "Sources: " + "; ".join(f"{peer.name}: {peer.source}" for peer in PEERS) + ".",
    ])  # fmt: skip


def main() -> int:
    text = report()
    print(text)
    if "--dry-run" not in sys.argv[1:]:
        write_section("peers", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
