"""`gpuplan profile estimate`: what replicas reach at the operating points that rows of a table ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.slo import Metric
from planner.planning.estimate_points import STATUS_OK, STATUS_OUT_OF_REACH, CannotEstimate, Question, read_question
from planner.profilers import draw, operating, spread
from planner.profilers.operating import Case, Points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.roofline import Array
    from planner.profilers.steady import Replica

STATISTICS = ("mean", "median", "p90", "p95", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one row gets; all for the whole configuration but for the power. None = nothing can be said."""

    ttft_s: Mapping[str, float | None]
    """By statistic."""
    tpot_s: Mapping[str, float | None]
    rate_rps: float | None
    output_tps: float | None
    power_w: float | None
    """Of one GPU."""
    energy_j: float | None
    """Per output token, all GPUs."""
    question: Question
    spread: Mapping[str, float] = field(default_factory=dict)
    """By metric, standard deviation of the logarithm that a user's fit leaves; empty without such a fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A row's estimate, or why it has none."""

    estimate: Estimate | None
    status: str
    note: str


def estimate_rows(rows: Sequence[Mapping[str, str]], params: EstimatorParams) -> list[Answer]:
    """Return an answer to every row, in order; what cannot be estimated says why and stops nothing else."""
    answers: list[Answer | None] = [None] * len(rows)
    questions: dict[int, Question] = {}
    for index, row in enumerate(rows):
        try:
            questions[index] = read_question(row, params)
        except CannotEstimate as reason:
            answers[index] = Answer(estimate=None, status=reason.status, note=reason.note)
    found = estimate_questions(list(questions.values()), params)
    for index, estimate in zip(questions, found, strict=True):
        answers[index] = estimate
    return [answer for answer in answers if answer is not None]


def estimate_questions(questions: Sequence[Question], params: EstimatorParams) -> list[Answer]:
    """Return an answer to every question, in order."""
    answers: dict[int, Answer] = {}
    by_kind: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        by_kind.setdefault(question.load_kind, []).append(index)
    for kind, indices in by_kind.items():
        asked = [questions[i] for i in indices]
        answers |= dict(zip(indices, _answers(kind, asked, params), strict=True))
    return [answers[i] for i in range(len(questions))]


def cases(questions: Sequence[Question]) -> list[Case]:
    """Return the replicas and request sizes of the questions.

    The beams of one request are sequences of their own that share the prompt: its prefill and its cache.
    """
    return [
        Case(
            model=question.model,
            gpu=question.gpu,
            config=question.config,
            input_tokens=max(1.0, question.input_tokens / question.beams),
            output_tokens=question.output_tokens,
            adapters=question.adapters,
            offload=question.offload,
            drafting=question.drafting,
        )
        for question in questions
    ]


def solve(kind: str, questions: Sequence[Question], params: EstimatorParams) -> tuple[Replica, Points, Array]:
    """Return the questions of one load kind as stacked replicas, their points, and where the load is too high.

    `params` decide everything; the points are of single replicas, request overheads included in TTFT.
    """
    replica, habits = operating.stack_replicas(cases(questions), params)
    loads = np.array([question.load / question.n_streams for question in questions])
    is_over = np.zeros(len(questions), dtype=bool)
    if kind == "static_batch":
        points = operating.static_batches(replica, np.maximum(loads, 1.0))
    elif kind == "concurrency":
        # Requests of one length end in turn, each a step behind the last: only they wait for each other.
        in_turn = np.array([question.is_fixed_length for question in questions], dtype=np.float64)
        points = operating.closed_loops(
            replica,
            np.maximum(loads, 1.0),
            turnover_wait=habits.turnover_wait * in_turn,
            burst_share=habits.burst_share,
            is_random=1.0 - in_turn,
        )
        in_step = operating.loops_in_step(replica, np.maximum(loads, 1.0), habits.starts)
        points = operating.chosen(habits.keeps_step * in_turn > 0, in_step, points)
    elif kind == "request_rate":
        points, is_over = operating.open_loops(replica, loads)
    elif kind == "poisson_max_under_slo":
        points, is_over = operating.under_objectives(replica, _bounds(questions))
    else:
        points = operating.saturated(replica)
    total = points.ttft_s + replica.decode_steps * points.tpot_s
    if kind in {"static_batch", "concurrency"}:
        points = replace(points, rate_rps=points.rate_rps * total / (total + habits.request_overhead_s))
    per_step = np.array([1.0 if q.drafting is None else q.drafting.tokens_per_step for q in questions])
    points = replace(points, ttft_s=points.ttft_s + habits.request_overhead_s, tpot_s=points.tpot_s / per_step)
    return replica, points, is_over


def _bounds(questions: Sequence[Question]) -> list[operating.Bounds]:
    """Return the objectives of the questions, one for each statistic that any of them is stated for."""
    percentiles = {slo.percentile for question in questions for slo in question.slos}

    def bound(question: Question, metric: Metric, percentile: float | None) -> float:
        own = (slo.bound_s for slo in question.slos if (slo.metric, slo.percentile) == (metric, percentile))
        return min(own, default=np.inf)

    found = []
    for percentile in percentiles:
        ttft, tpot, e2e = (
            np.array([bound(question, metric, percentile) for question in questions])
            for metric in (Metric.TTFT, Metric.TPOT, Metric.E2E)
        )
        level = None if percentile is None else max(percentile / 100.0, LOWEST_LEVEL)
        found.append(operating.Bounds(level=level, ttft_s=ttft, tpot_s=tpot, e2e_s=e2e))
    return found


LOWEST_LEVEL = 0.5
"""Objectives on lower percentiles are held as if they were on the median."""


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _answers(kind: str, questions: Sequence[Question], params: EstimatorParams) -> list[Answer]:
    replica, points, is_over = solve(kind, questions, params)
    ttft, tpot = spread.percentiles(kind, replica, points)
    power = draw.mean_power_w(cases(questions), replica, points)
    spreads = _spreads(kind, questions, params, points)
    answers = []
    for i, question in enumerate(questions):
        if kind == "poisson_max_under_slo" and is_over[i]:
            asked = ", ".join(map(str, question.slos))
            best = f"TTFT {points.ttft_s[i] * 1e3:.3g} ms, TPOT {points.tpot_s[i] * 1e3:.3g} ms"
            note = "; ".join([*question.notes, f"{asked}: out of reach, a lone request has {best}"])
            answers.append(Answer(estimate=None, status=STATUS_OUT_OF_REACH, note=note))
            continue
        rate = float(points.rate_rps[i]) * question.n_streams
        output = rate * question.output_tokens
        notes = list(question.notes)
        late = kind == "offline_max" or bool(is_over[i])
        if not late and not np.isfinite(ttft["mean"][i]):
            notes.append("no objective binds: the largest throughput, at which the queue grows without end")
        if is_over[i]:
            notes.append(f"overloaded: {rate:.4g} requests/s are served, and the queue grows without end")
        estimate = Estimate(
            ttft_s={name: None if late else _finite(values[i]) for name, values in ttft.items()},
            tpot_s={name: float(values[i]) if question.output_tokens > 1 else None for name, values in tpot.items()},
            rate_rps=rate,
            output_tps=output,
            power_w=float(power[i]),
            energy_j=float(power[i]) * question.n_gpus / output,
            question=question,
            spread={metric: float(sd[i]) for metric, sd in spreads.items()},
        )
        answers.append(Answer(estimate=estimate, status=STATUS_OK, note="; ".join(notes)))
    return answers


def _spreads(kind: str, questions: Sequence[Question], params: EstimatorParams, points: Points) -> Mapping[str, Array]:
    """Return by metric the standard deviation of the estimates' logarithms that a user's fit leaves; {} without one.

    Along each way in which the fit may be off the estimates are computed once more.
    """
    n_ways = max(map(len, params.spreads.values()), default=0)
    if not n_ways:
        return {}
    squares: dict[str, Array] = {metric: np.zeros(len(questions)) for metric in ("throughput", "ttft", "tpot")}
    for way in range(n_ways):
        moved = {key: params.table[key] * math.exp(spread[way]) for key, spread in params.spreads.items()}
        _, others, _ = solve(kind, questions, replace(params, table={**params.table, **moved}))
        for metric, one, other in (
            ("throughput", points.rate_rps, others.rate_rps),
            ("ttft", points.ttft_s, others.ttft_s),
            ("tpot", points.tpot_s, others.tpot_s),
        ):
            with np.errstate(divide="ignore", invalid="ignore"):
                gap = np.log(other / one)
            squares[metric] += np.square(np.where(np.isfinite(gap), gap, 0.0))
    return {metric: np.sqrt(square) for metric, square in squares.items()}
