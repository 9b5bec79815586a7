"""Fits an engine's factors to measured rows; a user's own few points are for `planner.planning.recalibration`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import Where
from planner.planning.estimate import solve
from planner.planning.estimate_points import CannotEstimate, Question, read_question
from planner.profilers.eras import newer_scopes
from planner.profilers.fitting import fit_logs
from planner.profilers.floor import violations
from planner.profilers.schema import MeasuredPoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.roofline import Array

METRICS = ("throughput", "ttft", "tpot")

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "throughput": ("throughput_output_tok_s",),
    "ttft": ("ttft_mean_ms", "ttft_median_ms"),
    "tpot": ("tpot_mean_ms", "tpot_median_ms"),
}
"""Where a metric is found in a row of measurements, best first."""

LOADED_TTFT_WEIGHT = 0.15
"""Of a first-token time under load: queues make it noisy. One of a static batch counts `LONE_TTFT_WEIGHT`."""
LONE_TTFT_WEIGHT = 0.7

PRIOR_SD: Mapping[str, float] = {
    "gemm_factor": 0.3,
    "bandwidth_factor": 0.1,
    "kv_bandwidth_factor": 0.3,
    "attention_factor": 0.3,
    "step_overhead_s": 1.0,
    "sequence_overhead_s": 1.0,
    "layer_overhead_s": 1.0,
    "allreduce_latency_factor": 0.4,
    "link_factor": 0.4,
    "request_overhead_s": 0.7,
    "output_reserve_fraction": 0.1,
    "adapter_overhead_s": 1.0,
    "turnover_wait": 1.0,
    "burst_share": 0.7,
    "bandwidth_fraction": 0.15,
    "kv_bandwidth_fraction": 0.3,
    "attention_fraction": 0.4,
    "kv_heads_exponent": 0.4,
    "allreduce_latency_s": 0.7,
    "link_fraction": 0.4,
}
"""How far the logarithm of a parameter is believed to lie from where the fit starts."""
MATRIX_SD = 0.4

PRIOR_START: Mapping[str, float] = {"layer_overhead_s": 2e-5, "request_overhead_s": 5e-3, "turnover_wait": 0.5}
"""Where the fit of a parameter starts whose present value is 0."""

ENGINE_RECIPE = (
    "gemm_factor",
    "bandwidth_factor",
    "kv_bandwidth_factor",
    "attention_factor",
    "step_overhead_s",
    "sequence_overhead_s",
    "layer_overhead_s",
    "allreduce_latency_factor",
    "link_factor",
    "request_overhead_s",
    "output_reserve_fraction",
    "kv_heads_exponent",
)
"""What is fitted of an engine's releases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A question and what was measured there; NaN = not measured."""

    question: Question
    throughput: float
    """Output tokens per second of the whole configuration."""
    ttft_ms: float
    tpot_ms: float

    @property
    def values(self) -> tuple[float, float, float]:
        """The measured values in the order of `METRICS`."""
        return self.throughput, self.ttft_ms, self.tpot_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Parameters after a fit."""

    params: EstimatorParams
    values: Mapping[tuple[str, str], float]
    """(parameter, scope) -> fitted value."""
    n_values: int
    """Measured values that went into it."""
    before: float
    after: float
    """Median absolute error of these values before and after."""


def read_measurements(
    rows: Iterable[Mapping[str, str]], params: EstimatorParams, *, is_published: bool = True
) -> tuple[list[Measurement], list[tuple[int, str]]]:
    """Return the measurements in rows that can be estimated, and (index, note) of the others.

    `is_published`: as in `read_question`.
    """
    found, left_out = [], []
    for index, row in enumerate(rows):
        try:
            question = read_question(row, params, is_published=is_published)
        except CannotEstimate as reason:
            left_out.append((index, reason.note))
            continue
        throughput, ttft, tpot = (_first(row, COLUMNS[metric]) for metric in METRICS)
        rate = _first(row, ("throughput_req_s",))
        if np.isnan(throughput):
            throughput = rate * question.output_tokens
        if np.isnan([throughput, ttft, tpot]).all():
            left_out.append((index, "nothing was measured"))
            continue
        broken = _impossible(question, throughput, ttft, tpot)
        if broken:
            left_out.append((index, broken))
            continue
        found.append(Measurement(question=question, throughput=throughput, ttft_ms=ttft, tpot_ms=tpot))
    return found, left_out


def _impossible(question: Question, throughput: float, ttft_ms: float, tpot_ms: float) -> str:
    """Return why no GPU of that kind can have been so fast; "" if it can."""
    if question.drafting is not None or question.offload is not None or question.adapters is not None:
        return ""  # other bounds hold there
    replicas = question.n_busy
    point = MeasuredPoint(
        model=question.model.name,
        gpu=question.gpu.name,
        tensor_parallel=question.config.tensor_parallel,
        pipeline_parallel=question.config.pipeline_parallel,
        engine=question.config.engine,
        engine_version=question.config.engine_version,
        precision=question.config.precision,
        input_tokens=question.input_tokens,
        output_tokens=question.output_tokens,
        load_kind=question.load_kind,
        load=question.load / replicas or None,
        rate_rps=None if np.isnan(throughput) else throughput / question.output_tokens / replicas,
        output_tokens_per_s=None if np.isnan(throughput) else throughput / replicas,
        ttft_s={} if np.isnan(ttft_ms) else {"mean": ttft_ms / 1e3},
        tpot_s={} if np.isnan(tpot_ms) else {"mean": tpot_ms / 1e3},
        as_of=None,
        source="",
        where=Where(),
    )
    return "; ".join(violations(point, question.model, question.gpu))


def _first(row: Mapping[str, str], columns: Sequence[str]) -> float:
    for column in columns:
        text = (row.get(column) or "").strip()
        try:
            value = float(text)
        except ValueError:
            continue
        if np.isfinite(value) and value > 0:
            return value
    return float("nan")


def estimates(questions: Sequence[Question], params: EstimatorParams) -> Array:
    """Return throughput (tokens/s), TTFT and TPOT (ms) of the questions, shape (questions, 3); NaN = not told."""
    found = np.full((len(questions), len(METRICS)), np.nan)
    by_kind: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        by_kind.setdefault(question.load_kind, []).append(index)
    for kind, indices in by_kind.items():
        asked = [questions[i] for i in indices]
        _, points, _ = solve(kind, asked, params)
        replicas = np.array([question.n_streams * question.output_tokens for question in asked])
        found[indices, 0] = points.rate_rps * replicas
        found[indices, 2] = points.tpot_s * 1e3
        if kind != "offline_max":
            found[indices, 1] = points.ttft_s * 1e3
    return found


def fit(
    measurements: Sequence[Measurement],
    recipe: Sequence[tuple[str, str]],
    params: EstimatorParams,
) -> Fitted:
    """Return the parameters with those of `recipe`, (parameter, scope) pairs, fitted to the measurements.

    Raises
    ------
    ValueError: if there is nothing to fit to.
    """
    if not measurements:
        msg = "there are no measurements to fit to"
        raise ValueError(msg)
    questions = [measurement.question for measurement in measurements]
    logs_measured = np.log(np.array([measurement.values for measurement in measurements]))
    is_known = np.isfinite(logs_measured) & np.isfinite(estimates(questions, params))
    weights = _weights(questions)[is_known]

    def with_logs(logs: Array) -> EstimatorParams:
        values = {key: float(np.exp(log)) for key, log in zip(recipe, logs, strict=True)}
        return replace(params, table={**params.table, **values})

    def errors(logs: Array) -> Array:
        found: Array = (np.log(np.maximum(estimates(questions, with_logs(logs)), 1e-9)) - logs_measured)[is_known]
        return found

    starts = [_start(parameter, scope, params) for parameter, scope in recipe]
    spreads = np.array([_sd(parameter) for parameter, _ in recipe])
    prior = np.log(starts)
    found = fit_logs(errors, weights, prior=prior, prior_sd=spreads)
    return Fitted(
        params=with_logs(found.logs),
        values={key: float(np.exp(log)) for key, log in zip(recipe, found.logs, strict=True)},
        n_values=int(is_known.sum()),
        before=median_error(errors(prior)),
        after=median_error(errors(found.logs)),
    )


def median_error(errors: Array) -> float:
    """Return the median absolute error of logarithmic ones, estimate / measurement or the other way round."""
    return float(np.median(np.abs(np.expm1(errors))))


def _weights(questions: Sequence[Question]) -> Array:
    first = [LONE_TTFT_WEIGHT if question.load_kind == "static_batch" else LOADED_TTFT_WEIGHT for question in questions]
    return np.stack([np.ones(len(questions)), np.array(first), np.ones(len(questions))], axis=1)


def _sd(parameter: str) -> float:
    return MATRIX_SD if parameter.startswith("gemm_fraction_") else PRIOR_SD[parameter]


def _start(parameter: str, scope: str, params: EstimatorParams) -> float:
    value = params.value(parameter, scope, *newer_scopes(scope))
    return value if value > 0 else PRIOR_START[parameter]
