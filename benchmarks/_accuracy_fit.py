"""Fits the estimator's parameters to the bundled measurements, with or without some of them."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from _accuracy_habits import learn_habits

from planner.catalog.gpus import load_gpus
from planner.planning import calibration
from planner.planning.calibration import ENGINE_RECIPE, Measurement
from planner.planning.estimate import cases, solve
from planner.profilers import draw
from planner.profilers.efficiency import EstimatorParams, engine_family
from planner.profilers.eras import engine_scopes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DATA = Path(__file__).resolve().parent / "data" / "measured.csv.gz"

Recipe = tuple[tuple[str, str], ...]
"""(parameter, scope) pairs that are fitted together."""

BASE_ERA = "tensorrt-llm@0.x"
"""TensorRT-LLM 0.x was measured on all three architectures, so the GPUs' own parameters are fitted to its rows."""

VISIBLE = {"ampere": "A100-80GB", "hopper": "H100-80GB", "ada": "L40S"}
"""Their architectures, and the GPU of each."""
GPU_STARTS = {
    "gemm_fraction_bf16": 0.65,
    "gemm_fraction_fp8": 0.6,
    "bandwidth_fraction": 0.75,
    "kv_bandwidth_fraction": 0.85,
    "attention_fraction": 0.5,
}
"""Where the fit of a GPU's parameters starts: near what kernel benchmarks reach, the same for all (see
docs/explanation/throughput.md)."""

BASE_STARTS: dict[tuple[str, str], float] = {
    **{(name, gpu): value for gpu in VISIBLE for name, value in GPU_STARTS.items()},
    ("link_fraction", "default"): 0.5,
    ("allreduce_latency_factor", BASE_ERA): 5.0,
    ("link_factor", BASE_ERA): 1.0,
    ("step_overhead_s", BASE_ERA): 1e-3,
    ("sequence_overhead_s", BASE_ERA): 1e-5,
    ("kv_heads_exponent", BASE_ERA): 0.2,
}
BASE_RECIPE: Recipe = tuple(key for key in BASE_STARTS if key != ("gemm_fraction_fp8", "ampere"))
"""What is fitted first. Ampere has no fp8."""

ENGINE_RECIPES: dict[str, tuple[str, ...]] = {
    "vllm": ("step_overhead_s", "sequence_overhead_s"),
    "tensorrt-llm": (
        "step_overhead_s",
        "sequence_overhead_s",
        "allreduce_latency_factor",
        "link_factor",
        "gemm_factor",
        "kv_heads_exponent",
        "attention_factor",
        "request_overhead_s",
        "turnover_wait",
        "burst_share",
    ),
    "vllm@unstated": ENGINE_RECIPE,
    "tensorrt-llm@unstated": ENGINE_RECIPE,
    "deepspeed-mii@unstated": ENGINE_RECIPE,
    # CUDA graphs launch whole steps: what is left per step is the scheduler's own loop.
    "vllm@2024": tuple(name for name in ENGINE_RECIPE if name != "layer_overhead_s"),
    "vllm@2023": ENGINE_RECIPE,
    "tensorrt-llm@mlperf": (
        "gemm_factor",
        "sequence_overhead_s",
        "request_overhead_s",
        "output_reserve_fraction",
    ),
    "s-lora": ("gemm_factor", "bandwidth_factor", "step_overhead_s", "sequence_overhead_s", "adapter_overhead_s"),
    "lmdeploy": ("request_overhead_s",),
}
"""What is fitted of each engine's releases, after the GPUs; newer ones first, as older ones start from them."""

PER_ARCHITECTURE = (
    "gemm_factor",
    "bandwidth_factor",
    "kv_bandwidth_factor",
    "step_overhead_s",
    "sequence_overhead_s",
)
"""Of these, what an engine reaches on one architecture is fitted last, where its rows are of several: kernels are
written for one generation before they are for another, and hosts differ with their GPUs."""


@dataclass(frozen=True)
class Row:
    """A measured row and what it asks."""

    cells: dict[str, str]
    measurement: Measurement

    @property
    def era(self) -> str:
        config = self.measurement.question.config
        scopes = engine_scopes(
            engine_family(config.engine), config.engine_version, self.measurement.question.gpu.vendor
        )
        return scopes[1]

    @property
    def architecture(self) -> str:
        return self.measurement.question.gpu.architecture.lower()

    @property
    def gpu(self) -> str:
        return self.measurement.question.gpu.name

    @property
    def model(self) -> str:
        return self.measurement.question.model.name

    def measured(self, column: str) -> float:
        text = self.cells.get(column, "")
        return float(text) if text else float("nan")


LORA_ENGINES = {"slora": "s-lora", "dm": "s-lora", "vllm": "vllm-packed"}
"""Systems of profiles/lora/s-lora.csv that run as published; the others are parts of S-LoRA switched off."""

SATURATED = 0.93
"""Share of the request rate below which a run counts as saturated: its throughput is the largest one."""

LEAST_RUN_S = 300.0
"""Of a run whose throughput is one. Requests take 20 s and more at this load, and what is left of them when no new ones
come counts: of a run of 60 s (`ablation_merge`) batches are full for half of the time."""


def lora_cells() -> list[dict[str, str]]:
    """Return the runs with many adapters (A10G) as rows of points, with what was measured."""
    found = []
    with (DATA.parents[2] / "profiles" / "lora" / "s-lora.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["system"] not in LORA_ENGINES or not row["num_adapters"] or not row["input_range"]:
                continue
            lengths = [np.mean([float(end) for end in row[name].strip("[]").split(",")]) for name in LENGTHS]
            found.append(
                {
                    "source": "s-lora",
                    "model": row["base_model"],
                    "gpu": row["gpu"],
                    "gpu_count": "1",
                    "tp": "1",
                    "engine": LORA_ENGINES[row["system"]],
                    "precision": "fp16",
                    "input_tokens": str(lengths[0]),
                    "output_tokens": str(lengths[1]),
                    "length_dist": "varied",
                    "load_kind": "request_rate",
                    "concurrency_or_rate": row["request_rate"],
                    "num_adapters": row["num_adapters"],
                    "adapter_rank": row["lora_ranks"],
                    "zipf_alpha": row["zipf_alpha"],
                    "throughput_req_s": row["throughput_req_s"],
                    "duration_s": row["duration_s"],
                    "cv": row["cv"],
                    "figure": row["source_ref"].rpartition("/")[2].partition("_a10g")[0],
                }
            )
    return found


LENGTHS = ("input_range", "output_range")


def lora_rows(params: EstimatorParams) -> list[Row]:
    """Return the saturated runs with many adapters, if they are long enough, as offline maxima."""
    cells = [
        row | {"load_kind": "offline_max", "concurrency_or_rate": ""}
        for row in lora_cells()
        if float(row["throughput_req_s"]) < SATURATED * float(row["concurrency_or_rate"])
        and float(row["duration_s"]) >= LEAST_RUN_S
    ]
    found, _ = calibration.read_measurements(cells, params)
    return [Row(row, measurement) for row, measurement in zip(cells, found, strict=True)]


def load_rows(params: EstimatorParams) -> list[Row]:
    """Return the bundled measurements."""
    with gzip.open(DATA, "rt", encoding="utf-8", newline="") as stream:
        cells = list(csv.DictReader(stream))
    found, left_out = calibration.read_measurements(cells, params)
    skipped = {index for index, _ in left_out}
    kept = [row for index, row in enumerate(cells) if index not in skipped]
    return [Row(row, measurement) for row, measurement in zip(kept, found, strict=True)]


def fit_all(rows: list[Row], params: EstimatorParams) -> tuple[EstimatorParams, dict[tuple[str, str], float]]:
    """Return the parameters with those of GPUs, links and engines fitted to the rows, and the fitted values.

    An architecture without rows of `BASE_ERA` gets what the others' parameters let expect.
    """
    params, base = fit_base(rows, params)
    params, engines = fit_engines(rows, params)
    return params, base | engines


def fit_base(rows: list[Row], params: EstimatorParams) -> tuple[EstimatorParams, dict[tuple[str, str], float]]:
    """Return the parameters with those of GPUs and links fitted to the rows of `BASE_ERA`."""
    base = [row for row in rows if row.era == BASE_ERA]
    seen = {row.architecture for row in base}
    recipe = [key for key in BASE_RECIPE if key[1] not in VISIBLE or key[1] in seen]
    found = calibration.fit([row.measurement for row in base], recipe, params)
    means = {
        (name, gpu): _expected(
            name, gpu, {other: found.values[name, other] for other in seen if (name, other) in recipe}
        )
        for gpu in VISIBLE
        if gpu not in seen
        for name in GPU_STARTS
    }
    return replace(found.params, table={**found.params.table, **means}), {**found.values, **means}


def _expected(name: str, gpu: str, others: dict[str, float]) -> float:
    """Return what is expected of an architecture's parameter from the others' fitted values.

    Of a bandwidth they reach about the same part of what a memory benchmark does, which the catalog tells of all three.
    """
    if "bandwidth" not in name:
        return float(np.mean(list(others.values())))
    return float(np.mean([value / _memory_share(other) for other, value in others.items()])) * _memory_share(gpu)


def _memory_share(architecture: str) -> float:
    spec = load_gpus().get(VISIBLE[architecture])
    return (spec.achieved_bandwidth_bytes_per_s or spec.bandwidth_bytes_per_s) / spec.bandwidth_bytes_per_s


def fit_engines(rows: Iterable[Row], params: EstimatorParams) -> tuple[EstimatorParams, dict[tuple[str, str], float]]:
    """Return the parameters with every engine's factors fitted to the rows, and the fitted values."""
    by_era: dict[str, list[Row]] = {}
    for row in rows:
        by_era.setdefault(row.era, []).append(row)
    values: dict[tuple[str, str], float] = {}
    for era, names in ENGINE_RECIPES.items():
        own = by_era.get(era, [])
        parts = {gpu: [row for row in own if row.architecture == gpu] for gpu in {row.architecture for row in own}}
        apart = [name for name in names if name in PER_ARCHITECTURE] if len(parts) > 1 else []
        stages = [(own, [(name, era) for name in names])] if own else []
        stages += [(part, [(name, f"{era}/{gpu}") for name in apart]) for gpu, part in sorted(parts.items()) if apart]
        for part, recipe in stages:
            found = calibration.fit([row.measurement for row in part], recipe, params)
            values, params = values | dict(found.values), found.params
    return params, values


def bare(params: EstimatorParams) -> EstimatorParams:
    """Return the parameters as before any fit: GPUs where their fit starts, engines without factors of their own."""
    table = {key: value for key, value in params.table.items() if not is_fitted_here(*key)}
    return replace(params, table={**table, **BASE_STARTS})


def is_fitted_here(parameter: str, scope: str) -> bool:
    """Return whether a parameter is one that `fit_all` sets, or set when its recipe was another."""
    era = scope.partition("/")[0]
    if (parameter, scope) in BASE_RECIPE:
        return True
    if era not in ENGINE_RECIPES or scope.endswith("/amd"):
        return False
    return "@" in scope or "/" in scope or parameter in ENGINE_RECIPES[era]


def power_features(rows: list[Row], params: EstimatorParams) -> np.ndarray:
    """Return (1, memory share, sqrt of the arithmetic share) of the rows, shape (rows, 3)."""
    found = np.ones((len(rows), 3))
    by_kind: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_kind.setdefault(row.measurement.question.load_kind, []).append(index)
    for kind, indices in by_kind.items():
        questions = [rows[i].measurement.question for i in indices]
        replica, points, _ = solve(kind, questions, params)
        memory, arithmetic = draw.utilisation(cases(questions), replica, points)
        found[indices, 1], found[indices, 2] = memory, np.sqrt(arithmetic)
    return found


def fit_power(rows: list[Row], params: EstimatorParams) -> np.ndarray:
    """Return the non-negative (awake, memory, arithmetic) shares of the TDP that fit best by reweighted least squares.

    Every source counts the same, however many rows it has.
    """
    features = power_features(rows, params)
    shares = np.array([row.measured("power_w_per_gpu") / row.measurement.question.gpu.tdp_w for row in rows])
    sources = [row.cells["source"] for row in rows]
    importance = np.array([1.0 / sources.count(source) for source in sources]) ** 0.5
    weights = importance / shares
    solution = np.zeros(3)
    for _ in range(30):
        active = [0, 1, 2]
        while True:
            scaled = features[:, active] * weights[:, None]
            part = np.linalg.lstsq(scaled, shares * weights, rcond=None)[0]
            if (part >= 0).all() or len(active) == 1:
                break
            del active[int(np.argmin(part))]
        solution = np.zeros(3)
        solution[active] = np.maximum(part, 0.0)
        errors = np.abs(features @ solution / shares - 1.0)
        weights = importance / (shares * np.sqrt(errors + 0.02))
    return solution


def leave_out(rows: list[Row], key: Callable[[Row], str], params: EstimatorParams) -> tuple[np.ndarray, np.ndarray]:
    """Return the estimates (rows, 3) of every row by parameters fitted without the rows that share its key.

    Second the same, but where nothing is left of an engine then, its habits are learnt from its runs at other degrees
    of tensor parallelism (`learn_habits`).
    """
    found, learnt = np.full((2, len(rows), 3), np.nan)
    keys = [key(row) for row in rows]
    base, _ = fit_base(rows, params)
    _, whole = fit_engines(rows, base)
    for left_out in sorted(set(keys)):
        others = [row for row, own in zip(rows, keys, strict=True) if own != left_out]
        touched = {row.era for row, own in zip(rows, keys, strict=True) if own == left_out}
        if BASE_ERA in touched:
            fitted, _ = fit_all(others, params)
        else:
            untouched = {at: value for at, value in whole.items() if at[1].partition("/")[0] not in touched}
            start = replace(base, table={**base.table, **untouched})
            fitted, _ = fit_engines([row for row in others if row.era in touched], start)
        indices = [index for index, own in enumerate(keys) if own == left_out]
        found[indices] = calibration.estimates([rows[i].measurement.question for i in indices], fitted)
        learnt[indices] = found[indices]
        for era in touched.difference(row.era for row in others):
            own = [index for index in indices if rows[index].era == era]
            learnt[own] = learn_habits([rows[i] for i in own], ENGINE_RECIPES.get(era, ()), fitted, found[own])
    return found, learnt
