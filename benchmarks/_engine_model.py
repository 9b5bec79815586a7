"""From what was measured on the real engine to the simulator's step times, and back to what it should have measured."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.domain.workload import PrefixHashes
from planner.simulate import statistics
from planner.simulate.run import Pools, Router, Traffic, simulate
from planner.simulate.steps import MeasuredKind, measured_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from planner.simulate.steps import Floats

COLUMNS = ("run", "sent_s", "input_tokens", "output_tokens", "shared_tokens", "family", "ttft_s", "e2e_s")
METRICS = ("TTFT", "TPOT", "E2E")
STATISTICS = ("mean", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measurement of one case; arrays of shape (requests,), in the order of sending."""

    case: str
    sizes: str
    purpose: str
    engine: str
    settings: dict[str, int | bool]
    conditions: dict[str, float]
    """How quiet the machine was and how punctual the client; what the engine counted: preemptions, tokens found in its
    prefix cache."""
    sent_s: Floats
    input_tokens: Floats
    output_tokens: Floats
    shared_tokens: Floats
    family: Floats
    ttft_s: Floats
    e2e_s: Floats

    @property
    def tpot_s(self) -> Floats:
        """Mean time per token after the first; every request has at least two."""
        found: Floats = (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)
        return found

    @property
    def rate_rps(self) -> float:
        """Mean rate of arrivals."""
        return float((len(self.sent_s) - 1) / (self.sent_s[-1] - self.sent_s[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """What calibration finds, in seconds; the names of `MeasuredKind`, and the way to and from the scheduler."""

    delay_s: float = 0.004
    delay_token_s: float = 2e-6
    """Per prompt token, before the scheduler sees the request."""
    fixed_s: float = 0.008
    read_s: float = 0.005
    token_s: float = 6e-4
    sequence_s: float = 2e-4
    pair_s: float = 2e-7
    context_s: float = 1.5e-6


def write(folder: Path, runs: Sequence[Run], about: dict[str, Any]) -> None:
    """Keep what was measured: a row for each request, and a JSON file that describes the runs."""
    with (folder / "real_engine.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, run in enumerate(runs):
            for i in range(len(run.sent_s)):
                times = [round(float(getattr(run, name)[i]), 5) for name in ("sent_s", "ttft_s", "e2e_s")]
                sizes = [int(getattr(run, name)[i]) for name in COLUMNS[2:6]]
                writer.writerow([number, times[0], *sizes, *times[1:]])
    described = [
        {name: getattr(run, name) for name in ("case", "sizes", "purpose", "engine", "settings", "conditions")}
        for run in runs
    ]
    text = json.dumps(about | {"runs": described}, indent=1)
    (folder / "real_engine.json").write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> tuple[list[Run], dict[str, Any]]:
    """Return the runs that `write` kept, and what else it was told."""
    about = json.loads((folder / "real_engine.json").read_text(encoding="utf-8"))
    table = np.genfromtxt(folder / "real_engine.csv", delimiter=",", names=True)
    runs = []
    for number, described in enumerate(about.pop("runs")):
        rows = table[table["run"] == number]
        runs.append(Run(**described, **{name: np.ascontiguousarray(rows[name]) for name in COLUMNS[1:]}))
    return runs, about


def kind_of(found: Coefficients, settings: dict[str, int | bool]) -> MeasuredKind:
    """Return the simulator's replica for an engine; one block of vLLM's stays empty (its null block)."""
    values = asdict(found)
    return MeasuredKind(
        **{name: values[name] for name in values if not name.startswith("delay")},
        kv_tokens=(settings["kv_blocks"] - 1) * settings["block_size"],
        block_tokens=settings["block_size"],
        max_num_seqs=settings["max_num_seqs"],
        max_num_batched_tokens=settings["max_num_batched_tokens"],
    )


def _prefixes(run: Run) -> PrefixHashes:
    """Return the whole blocks of every prompt: those of the family's head, then the request's own."""
    size = int(run.settings["block_size"])
    hashes: list[int] = []
    offsets = [0]
    for i in range(len(run.sent_s)):
        n_shared, n_all = int(run.shared_tokens[i]) // size, int(run.input_tokens[i]) // size
        hashes += [int(run.family[i]) * 1000 + block for block in range(n_shared)]
        hashes += [10**6 + i * 1000 + block for block in range(n_all - n_shared)]
        offsets.append(len(hashes))
    return PrefixHashes(hashes=np.array(hashes), offsets=np.array(offsets), block_tokens=size)


def predict(run: Run, found: Coefficients) -> Run:
    """Return the run as the simulator sees it: the same requests, sent at the same times."""
    delay_s = found.delay_s + found.delay_token_s * run.input_tokens
    at_s = run.sent_s + delay_s
    order = np.argsort(at_s, kind="stable")
    zeros = np.zeros(len(order), dtype=np.int64)
    traffic = Traffic(
        arrival_s=at_s,
        input_tokens=run.input_tokens.astype(np.int64),
        output_tokens=run.output_tokens.astype(np.int64),
        row=zeros,
        service=zeros,
        prefix=_prefixes(run) if run.settings["prefix_caching"] else None,
    ).select(order)
    pools = Pools(kinds=measured_table([kind_of(found, run.settings)]), replicas=(1,))
    records = simulate(pools, traffic, Router(weights=np.ones((1, 1)), rate_rps=np.ones((1, 1)))).records
    back = np.argsort(order)
    return replace(
        run,
        ttft_s=records.ttft_s[back] + delay_s,
        e2e_s=records.e2e_s[back] + delay_s,
        conditions={
            "preemptions": int(records.preemptions.sum()),
            "cached_tokens": int(records.prefix_hit_tokens.sum()),
        },
    )


def statistic(run: Run, metric: str, name: str) -> float:
    """Return the mean or the p99 of a metric, in seconds."""
    values = {"TTFT": run.ttft_s, "TPOT": run.tpot_s, "E2E": run.e2e_s}[metric]
    return statistics.mean(values).value if name == "mean" else statistics.percentile(values, 99.0).value


def errors(run: Run, other: Run) -> dict[tuple[str, str], float]:
    """Return by metric and statistic by which part `other` is off `run`."""
    return {
        (metric, name): statistic(other, metric, name) / statistic(run, metric, name) - 1.0
        for metric in METRICS
        for name in STATISTICS
    }


QUANTILES = (0.25, 0.5, 0.75, 0.95)
FIT_STEPS = (0.2, 0.1, 0.05)
"""By how much the coefficients' logarithms are moved to see what it does, from coarse to fine: a request that just
makes it into a step, or not, makes the sum of squares rough."""
N_ROUNDS = 40


def _described(run: Run) -> Floats:
    """Return the logarithms of what the fit looks at: mean and quantiles of each metric."""
    found = [
        value
        for times in (run.ttft_s, run.tpot_s, run.e2e_s)
        for value in (times.mean(), *np.quantile(times, QUANTILES))
    ]
    return np.log(found)


def _coefficients(logs: Floats) -> Coefficients:
    return Coefficients(**dict(zip(asdict(Coefficients()), np.exp(logs).tolist(), strict=True)))


def calibrate(runs: Sequence[Run]) -> Coefficients:
    """Return the coefficients that fit the runs best: least squares on logarithms, by Levenberg and Marquardt."""
    measured = np.concatenate([_described(run) for run in runs])

    def residuals(logs: Floats) -> Floats:
        found = _coefficients(logs)
        return np.concatenate([_described(predict(run, found)) for run in runs]) - measured

    logs = np.log(list(asdict(Coefficients()).values()))
    for step in FIT_STEPS * 2:
        logs = _descend(residuals, logs, step)
    return _coefficients(logs)


def _descend(residuals: Callable[[Floats], Floats], logs: Floats, step: float) -> Floats:
    """Return where the sum of squares is least, as far as slopes over `step` lead there."""
    now, damping, units = residuals(logs), 1e-2, np.eye(len(logs))
    for _ in range(N_ROUNDS):
        slopes = [(residuals(logs + step * unit) - residuals(logs - step * unit)) / (2 * step) for unit in units]
        jacobian = np.stack(slopes, axis=1)
        for _ in range(10):
            change = np.linalg.solve(jacobian.T @ jacobian + damping * units, -jacobian.T @ now)
            trial = logs + np.clip(change, -0.7, 0.7)
            after = residuals(trial)
            if after @ after < now @ now:
                break
            damping *= 4
        else:
            return logs
        gain = 1 - (after @ after) / (now @ now)
        logs, now, damping = trial, after, damping / 3
        if gain < 1e-4:
            return logs
    return logs
