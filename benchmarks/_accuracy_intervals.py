"""Sets the 80% intervals of estimates from what was left out of the fit, and checks them on what did not set them.

A case is one measured value and its estimate by a fit that its GPU, its model or its degree of parallelism had no part
in. The interval of a metric and a load kind lies between quantiles of the cases' errors, stretched: cases of a GPU or a
model that set no quantile miss them more often than the others do. With the stretch, the interval from the other
groups' cases holds `SHARE` of each group's own, all groups taken together (conformal prediction by groups). What is new
beside that, a GPU's architecture or an engine's release, widens it in quadrature, by what its cases need.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from _accuracy_habits import parallelism

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from _accuracy_tables import Errors

SHARE = 0.8
"""Part of the measurements that an interval is to hold."""

LEAST_CASES, LEAST_GROUPS = 30, 2
"""A load kind with fewer cases, or with cases of fewer GPUs, models and so on, sets no interval of its own."""

SMALLEST_END = 0.03
"""Logarithm that an interval's ends are at least away from the estimate: no measurement is better than that."""

LEAST_NEW_GPU = 1.25
LEAST_BORROWED = 1.25
MEASURED_SHARE = 0.55
MEASURED_REASON = (
    "assumed: 0.55 of borrowed_engine (as logarithms); what no few points take away; "
    "as DeepSpeed-MII's rows scatter on the GPU left out"
)
NEW_KIND = 1.3
NEW_PARALLELISM = 1.2

METRICS = ("throughput", "ttft", "tpot", "power")
GPU, MODEL, PARALLELISM = "GPU left out", "model left out", "parallelism left out"


@dataclass(frozen=True)
class Cases:
    """Left-out errors of one metric; arrays of shape (cases,)."""

    logs: np.ndarray
    """log(measured / estimate); the habits of an engine that nothing is left of are learnt from its other runs."""
    unaided: np.ndarray
    """The same with nothing known of such an engine."""
    kind: np.ndarray
    left_out: np.ndarray
    """Which of GPU, model and parallelism the fit was made without."""
    labels: Mapping[str, np.ndarray]
    """Left-out -> each case's own GPU (architecture, for power), model and degree of parallelism."""
    is_new_gpu: np.ndarray
    """Whether nothing was left of the GPU's architecture."""
    is_borrowed: np.ndarray
    """Whether nothing was left of the engine's release."""

    def groups(self, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, for each group that was left out at once, its own cases and all those of rows outside it."""
        for left_out, labels in self.labels.items():
            own = chosen & (self.left_out == left_out)
            for name in sorted(set(labels[own])):
                yield own & (labels == name), chosen & (labels != name)


@dataclass(frozen=True)
class Bands:
    """Intervals of one metric, as logarithms of measured / estimate."""

    ends: Mapping[str, tuple[float, float]]
    """Load kind, or any -> low and high, stretched."""
    counts: Mapping[str, int]
    new_gpu: float
    borrowed: float

    def holds(self, cases: Cases, chosen: np.ndarray) -> np.ndarray:
        """Return whether the interval of each chosen case holds its measurement."""
        extra = self.new_gpu**2 * cases.is_new_gpu + self.borrowed**2 * cases.is_borrowed
        return lacks(cases, chosen, self.ends) <= np.sqrt(extra[chosen]) + 1e-12


def lacks(cases: Cases, chosen: np.ndarray, ends: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """Return what must be added to the ends in quadrature for the chosen cases to lie inside; shape (chosen,)."""
    logs, own = cases.logs[chosen], _ends_of(cases, chosen, ends)
    return np.sqrt(np.maximum(np.square(logs) - np.square(own), 0.0))


def _ends_of(cases: Cases, chosen: np.ndarray, ends: Mapping[str, tuple[float, float]]) -> np.ndarray:
    both = np.array([ends.get(kind, ends["any"]) for kind in cases.kind[chosen]]).reshape(-1, 2)
    return np.where(cases.logs[chosen] > 0, both[:, 1], both[:, 0])


def quantiles(cases: Cases, chosen: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the ends between which `SHARE` of the chosen cases lie, by load kind and of any."""
    found = {}
    for kind in ("any", *sorted(set(cases.kind[chosen]))):
        own = chosen & ((cases.kind == kind) | (kind == "any"))
        n_groups = sum(1 for _ in cases.groups(own))
        if kind == "any" or (own.sum() >= LEAST_CASES and n_groups >= LEAST_GROUPS):
            low, high = np.quantile(cases.logs[own], ((1 - SHARE) / 2, (1 + SHARE) / 2))
            found[kind] = (min(low, -SMALLEST_END), max(high, SMALLEST_END))
    return found


def set_bands(cases: Cases, chosen: np.ndarray, *, has_least: bool = True) -> Bands:
    """Return the intervals that the chosen cases set; `has_least`: with the least widenings that are assumed."""
    base = chosen & ~cases.is_new_gpu & ~cases.is_borrowed
    needed = [np.ones(1)]
    for own, others in cases.groups(base):
        if others.sum() >= LEAST_CASES:
            needed.append(np.abs(cases.logs[own] / _ends_of(cases, own, quantiles(cases, others))))
    stretch = max(1.0, float(np.quantile(np.concatenate(needed), SHARE)))
    ends = {kind: (low * stretch, high * stretch) for kind, (low, high) in quantiles(cases, base).items()}
    counts = {kind: int((base & ((cases.kind == kind) | (kind == "any"))).sum()) for kind in ends}

    unaided = replace(cases, logs=cases.unaided)

    def widening(new: np.ndarray, least: float) -> float:
        needed = lacks(unaided, chosen & new, ends)
        own = float(np.quantile(needed, SHARE)) if len(needed) else 0.0
        return max(own, float(np.log(least))) if has_least else own

    return Bands(
        ends=ends,
        counts=counts,
        new_gpu=widening(cases.is_new_gpu & ~cases.is_borrowed, LEAST_NEW_GPU),
        borrowed=widening(cases.is_borrowed & ~cases.is_new_gpu, LEAST_BORROWED),
    )


def cases_of(errors: Errors, metric: str) -> Cases:
    """Return the left-out errors of a metric.

    A degree of parallelism is left out only where the engine's rows are all of one GPU and one model. Of power, whole
    architectures are, and no engine's factors: those of the steps are always there.
    """
    rows, column = errors.rows, METRICS.index(metric)
    is_power = metric == "power"
    gpus = np.array([row.measurement.question.gpu.architecture if is_power else row.gpu for row in rows])
    own = {GPU: gpus, MODEL: np.array([row.model for row in rows]), PARALLELISM: np.array(list(map(parallelism, rows)))}
    is_known = {name: np.ones(len(rows), dtype=bool) if is_power else errors.is_known[name] for name in own}
    architectures = {row.gpu: row.measurement.question.gpu.architecture for row in rows}
    alone = np.array([list(architectures.values()).count(architectures[row.gpu]) == 1 for row in rows])
    picked, left_out = [], []
    for name in own:
        if name == PARALLELISM and is_power:
            continue
        both = (
            [errors.power[name]] * 2 if is_power else [errors.ratios[name][:, column], errors.unaided[name][:, column]]
        )
        usable = np.isfinite(both[0])
        if name == PARALLELISM:
            usable &= is_known[name] & ~is_known[GPU] & ~is_known[MODEL]
        indices = np.flatnonzero(usable)
        picked.append((indices, -np.log(np.stack(both)[:, indices])))
        left_out += [name] * len(indices)
    index = np.concatenate([indices for indices, _ in picked])
    names, logs = np.array(left_out), np.concatenate([both for _, both in picked], axis=1)
    return Cases(
        logs=logs[0],
        unaided=logs[1],
        kind=np.array([rows[i].measurement.question.load_kind for i in index]),
        left_out=names,
        labels={name: labels[index] for name, labels in own.items()},
        is_new_gpu=(names == GPU) & (alone[index] | is_power),
        is_borrowed=np.array([not is_known[name][i] for name, i in zip(names, index, strict=True)]),
    )


def error_rows(errors: Errors) -> list[dict[str, str]]:
    """Return profiles/estimate_error.csv: intervals of measured / estimate."""
    found: list[dict[str, str]] = []
    throughput_borrowed = 0.0
    for column, metric in enumerate(METRICS):
        cases = cases_of(errors, metric)
        everything = np.ones(len(cases.logs), dtype=bool)
        bands = set_bands(cases, everything)
        if metric == "throughput":
            throughput_borrowed = bands.borrowed
        if metric == "tpot":  # a full batch's throughput is the batch over TPOT; fewer rows tell TPOT
            bands = replace(bands, borrowed=max(bands.borrowed, throughput_borrowed))
        for kind, (low, high) in bands.ends.items():
            reason = "a GPU, a model or a degree of parallelism left out of the fit"
            found.append(_row(metric, kind, low, high, str(bands.counts[kind]), reason))
        unknown = bands.borrowed if metric == "power" else max(bands.borrowed, _without_engines(errors, column, bands))
        found.append(_new(metric, "new_gpu", bands.new_gpu, "architectures left out; at least 1.25 (assumed)"))
        found.append(
            _new(metric, "borrowed_engine", bands.borrowed, "engines' releases left out; at least 1.25 (assumed)")
        )
        found.append(_new(metric, "new_engine", unknown, "the same without any engine's own factors"))
        found.append(_new(metric, "measured_engine", MEASURED_SHARE * bands.borrowed, MEASURED_REASON))
        assumed = (("new_kind_of_model", NEW_KIND, "mixture-of-experts and state-space models"),)
        assumed += (("new_parallelism", NEW_PARALLELISM, "pipelines and more than 8 GPUs"),)
        found += [_new(metric, case, float(np.log(factor)), f"assumed: {what}") for case, factor, what in assumed]
    return found


def _without_engines(errors: Errors, column: int, bands: Bands) -> float:
    """Return how much wider intervals get where an engine has no factors at all."""
    ratios = errors.no_engine[:, column]
    known = np.isfinite(ratios)
    kind = np.array([row.measurement.question.load_kind for row in errors.rows])[known]
    nothing = np.zeros(len(kind), dtype=bool)
    logs = -np.log(ratios[known])
    cases = Cases(logs=logs, unaided=logs, kind=kind, left_out=kind, labels={}, is_new_gpu=nothing, is_borrowed=nothing)
    return float(np.quantile(lacks(cases, ~nothing, bands.ends), SHARE))


def _row(metric: str, case: str, low: float, high: float, n_cases: str, reason: str) -> dict[str, str]:
    source = "assumed" if reason.startswith("assumed") else "benchmarks/accuracy.py --fit"
    ends = {"low": f"{np.exp(low):.3f}", "high": f"{np.exp(high):.3f}"}
    return {"metric": metric, "case": case, **ends, "cases": n_cases, "source": source, "reason": reason}


def _new(metric: str, case: str, log_factor: float, reason: str) -> dict[str, str]:
    return _row(metric, case, -log_factor, log_factor, "", reason)


def coverage(errors: Errors) -> list[str]:
    """Return how many cases lie inside intervals that their own group had no part in."""
    names = (GPU, MODEL, PARALLELISM)
    heads = " | ".join(f"{name}: cases | inside | without the assumed least" for name in names)
    lines = [f"| metric | {heads} |", f"|---|{'---|---|---|' * len(names)}"]
    for metric in METRICS:
        cases = cases_of(errors, metric)
        inside: dict[str, list[np.ndarray]] = {name: [np.zeros((2, 0))] for name in names}
        for own, others in cases.groups(np.ones(len(cases.logs), dtype=bool)):
            both = [set_bands(cases, others, has_least=least).holds(cases, own) for least in (True, False)]
            inside[cases.left_out[own][0]].append(np.stack(both))
        cells = []
        for name in names:
            held = np.concatenate(inside[name], axis=1)
            cells.append(f"{held.shape[1]} | {held[0].mean():.0%} | {held[1].mean():.0%}" if held.size else "0 | - | -")
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    return lines
