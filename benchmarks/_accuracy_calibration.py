"""What three of a user's own points do for a GPU that was left out of the fit: a table of benchmarks/accuracy.py."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from _accuracy_fit import bare, fit_all
from _accuracy_tables import LEAST_CASES

from planner.planning import calibration, recalibration
from planner.planning.estimate import estimate_questions
from planner.planning.estimate_table import bounds_of

if TYPE_CHECKING:
    from _accuracy_fit import Row
    from _accuracy_tables import Errors

    from planner.planning.calibration import Measurement
    from planner.profilers.efficiency import EstimatorParams

N_TRIPLES = 20
SEED = 5
BARS_OF = 5
"""Of so many triples the intervals are looked at."""
HARM = 0.01


def recalibrated(errors: Errors, params: EstimatorParams) -> list[str]:
    """Return what three measured points of a GPU that was left out of the fit do for the others."""
    lines = [
        "| GPU left out | engine | points | before: median error | 90% below | after: median | 90% below "
        "| worst triple | best | better | worse | inside 80% interval: before | after |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(errors.rows):
        if np.isfinite(errors.ratios["GPU left out"][index, 0]):
            groups.setdefault((row.gpu, row.era), []).append(index)
    bases: dict[str, EstimatorParams] = {}
    for (gpu, era), indices in sorted(groups.items()):
        if len(indices) >= LEAST_CASES:
            if gpu not in bases:
                bases[gpu] = _without_gpu(errors.rows, gpu, params)
            lines.append(_of_triples([errors.rows[i].measurement for i in indices], f"| {gpu} | {era} |", bases[gpu]))
    return lines


def _without_gpu(rows: list[Row], gpu: str, params: EstimatorParams) -> EstimatorParams:
    """Return parameters fitted without a GPU, which know what architecture and engines that leaves unknown."""
    others = [row for row in rows if row.gpu != gpu]
    base, _ = fit_all(others, bare(params))
    architectures = {row.measurement.question.gpu.architecture.lower() for row in others}
    eras = {row.era for row in others}
    families = {era.partition("@")[0] for era in eras}
    return replace(
        base,
        fitted_architectures=base.fitted_architectures & architectures,
        fitted_engines=frozenset(name for name in base.fitted_engines if name in families),
        fitted_releases=frozenset(scope for scope in base.fitted_releases if scope.partition("/")[0] in eras),
    )


def _of_triples(measurements: list[Measurement], title: str, base: EstimatorParams) -> str:
    """Return a line of `recalibrated`: `N_TRIPLES` random triples, each judged by all points that are not in it."""
    random, n_points = np.random.default_rng(SEED), len(measurements)
    questions = [measurement.question for measurement in measurements]
    measured = np.array([measurement.throughput for measurement in measurements])
    plain = np.abs(calibration.estimates(questions, base)[:, 0] / measured - 1.0)
    before, after, far, inside = [], [], [], []
    for number in range(N_TRIPLES):
        three = random.choice(n_points, 3, replace=False)
        fitted = recalibration.fit_own([measurements[i] for i in three], base).params
        rest = np.setdiff1d(np.arange(n_points), three)
        found = np.abs(calibration.estimates([questions[i] for i in rest], fitted)[:, 0] / measured[rest] - 1.0)
        before.append(np.median(plain[rest]))
        after.append(np.median(found))
        far.append(np.quantile(found, 0.9))
        if number < BARS_OF:
            inside.append(_inside([measurements[i] for i in rest], fitted))
    gain = np.array(before) - np.array(after)
    cells = (
        f"{n_points} | {np.median(plain):.1%} | {np.quantile(plain, 0.9):.1%} | {np.median(after):.1%} "
        f"| {np.median(far):.1%} | {max(after):.1%} | {min(after):.1%} "
        f"| {np.sum(gain > HARM)} | {np.sum(gain < -HARM)} | {_inside(measurements, base):.0%} | {np.mean(inside):.0%}"
    )
    return f"{title} {cells} |"


def _inside(measurements: list[Measurement], params: EstimatorParams) -> float:
    """Return the share of measured throughputs inside of their estimates' 80% intervals."""
    found = []
    answers = estimate_questions([measurement.question for measurement in measurements], params)
    for measurement, answer in zip(measurements, answers, strict=True):
        if answer.estimate is not None and answer.estimate.output_tps is not None:
            band = bounds_of("throughput_output_tok_s", answer.estimate, params)
            found.append(band.low <= measurement.throughput / answer.estimate.output_tps <= band.high)
    return float(np.mean(found))
