"""The tables of benchmarks/accuracy.py."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np
from _accuracy_fit import bare, fit_all, fit_base, fit_power, leave_out, power_features
from _accuracy_habits import parallelism
from _accuracy_intervals import GPU, MODEL, PARALLELISM

from planner.catalog.offers import load_offers
from planner.domain.hardware import Market
from planner.planning import calibration
from planner.planning.estimate import estimate_rows

if TYPE_CHECKING:
    from _accuracy_fit import Row

    from planner.profilers.efficiency import EstimatorParams

METRICS = ("throughput", "ttft", "tpot")
TPOT_BOUNDS_S = (0.02, 0.04, 0.1)
NOISE = 0.1
"""Gaps below this are hardly more than the spread between engine versions."""
LEAST_CASES = 30
"""Fewer points of a GPU and an engine are no test of `gpuplan profile calibrate`."""
LEFT_OUT = ("in-sample", GPU, MODEL)


@dataclass(frozen=True)
class Errors:
    """Estimate / measured of every row and metric, shape (rows, 3), by what was left out of the fit; NaN = unknown."""

    rows: list[Row]
    ratios: dict[str, np.ndarray]
    unaided: dict[str, np.ndarray]
    """The same, but engines that nothing is left of without the row's key have no habits either (`learn_habits`)."""
    power: dict[str, np.ndarray]
    """The same of the power, shape (rows,)."""
    is_known: dict[str, np.ndarray]
    """Whether rows of the same engine's era were left to fit its factors to, shape (rows,)."""
    no_engine: np.ndarray
    """With no engine's own factors at all: as if none of them were known."""


def measure(rows: list[Row], params: EstimatorParams) -> Errors:
    measured = np.array([row.measurement.values for row in rows])
    questions = [row.measurement.question for row in rows]
    plain = bare(params)
    whole, _ = fit_all(rows, plain)
    found = {
        GPU: leave_out(rows, lambda row: row.gpu, plain),
        MODEL: leave_out(rows, lambda row: row.model, plain),
        PARALLELISM: leave_out(rows, parallelism, plain),
    }
    learnt = {"in-sample": calibration.estimates(questions, whole)} | {name: pair[1] for name, pair in found.items()}
    return Errors(
        rows=rows,
        ratios={name: estimates / measured for name, estimates in learnt.items()},
        unaided={name: pair[0] / measured for name, pair in found.items()},
        power={name: _power_ratios(rows, whole, name) for name in LEFT_OUT},
        is_known={
            GPU: _has_others(rows, [row.gpu for row in rows]),
            MODEL: _has_others(rows, [row.model for row in rows]),
            PARALLELISM: _has_others(rows, [parallelism(row) for row in rows]),
        },
        no_engine=calibration.estimates(questions, fit_base(rows, plain)[0]) / measured,
    )


def _has_others(rows: list[Row], keys: list[str]) -> np.ndarray:
    kept: dict[str, set[str]] = {}
    for row, key in zip(rows, keys, strict=True):
        kept.setdefault(row.era, set()).add(key)
    return np.array([len(kept[row.era]) > 1 for row in rows])


def _power_ratios(rows: list[Row], params: EstimatorParams, name: str) -> np.ndarray:
    known = [i for i, row in enumerate(rows) if row.measured("power_w_per_gpu") > 0]
    found = np.full(len(rows), np.nan)
    features = dict(zip(known, power_features([rows[i] for i in known], params), strict=True))
    architecture = {i: rows[i].measurement.question.gpu.architecture for i in known}
    left_out_key = {
        "in-sample": lambda _: "",
        "GPU left out": lambda i: architecture[i],
        "model left out": lambda i: rows[i].model,
    }[name]
    for key in {left_out_key(i) for i in known}:
        inside = [i for i in known if left_out_key(i) == key]
        for own in {architecture[i] for i in inside}:
            fitted = [j for j in known if name == "in-sample" or left_out_key(j) != key]
            if name != "GPU left out":
                fitted = [j for j in fitted if architecture[j] == own] or fitted
            shares = fit_power([rows[j] for j in fitted], params)
            for i in (i for i in inside if architecture[i] == own):
                tdp = rows[i].measurement.question.gpu.tdp_w
                found[i] = min(1.0, float(features[i] @ shares)) * tdp / rows[i].measured("power_w_per_gpu")
    return found


def summary(ratios: np.ndarray) -> str:
    errors = np.abs(ratios[np.isfinite(ratios)] - 1.0)
    return f"{np.median(errors):.1%} | {np.quantile(errors, 0.9):.1%}" if len(errors) else "- | -"


def by_source(errors: Errors) -> list[str]:
    lines = [
        "| source | metric | points | in-sample: median | 90% below | GPU left out: median | 90% below "
        "| model left out: median | 90% below |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    sources = np.array([row.cells["source"] for row in errors.rows])
    for source in sorted(set(sources)):
        for column, metric in enumerate((*METRICS, "power")):
            picked = [
                (errors.power[name] if metric == "power" else errors.ratios[name][:, column])[sources == source]
                for name in LEFT_OUT
            ]
            n_points = int(np.isfinite(picked[0]).sum())
            if n_points:
                lines.append(f"| {source} | {metric} | {n_points} | {' | '.join(summary(part) for part in picked)} |")
    return lines


def aims(errors: Errors) -> list[str]:
    """Return the table of what the estimator is meant to reach on what was left out of its fit."""
    kinds = np.array([row.measurement.question.load_kind for row in errors.rows])
    alone = np.array([row.measurement.question.load <= 1.0 for row in errors.rows])
    cases = (
        ("offline-max throughput", 0, kinds == "offline_max", 0.20),
        ("static-batch throughput", 0, kinds == "static_batch", None),
        ("closed-loop TPOT", 2, kinds == "concurrency", 0.15),
        ("the same, where throughput agrees with it", 2, _decoding_share(errors.rows) >= LITTLE[-2], 0.15),
        ("TTFT of a lone request", 1, (kinds == "static_batch") & alone, 0.20),
        ("TTFT in a closed loop", 1, kinds == "concurrency", None),
        ("largest rate under objectives", 0, kinds == "poisson_max_under_slo", None),
        ("power", None, np.ones(len(kinds), dtype=bool), 0.20),
    )
    lines = [
        "| metric | aim: median below | the engine | points | GPU left out: median | 90% below "
        "| points | model left out: median | 90% below |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, column, chosen, aim in cases:
        bound = "" if aim is None else f"{aim:.0%}"
        for is_known, words in ((None, "any"), (True, "known"), (False, "new as well")):
            cells = []
            for left_out in LEFT_OUT[1:]:
                if column is None:
                    picked = errors.power[left_out]
                else:
                    of_engine = True if is_known is None else errors.is_known[left_out] == is_known
                    picked = errors.ratios[left_out][chosen & of_engine, column]
                cells.append(f"{np.isfinite(picked).sum()} | {summary(picked)}")
            if column is not None or is_known is None:
                lines.append(f"| {name} | {bound} | {words} | {' | '.join(cells)} |")
    parts = [
        np.where(errors.is_known[name], np.nan, errors.unaided[name][:, 1])[kinds == "concurrency"]
        for name in LEFT_OUT[1:]
    ]
    cells = [f"{np.isfinite(part).sum()} | {summary(part)}" for part in parts]
    name = "TTFT in a closed loop, nothing known of how requests are let in"
    lines.append(f"| {name} |  | new as well | {' | '.join(cells)} |")
    return lines


@dataclass(frozen=True)
class Pair:
    """Two GPUs that did the same work, by tokens per dollar."""

    engine: str
    gpus: tuple[str, str]
    measured: tuple[float, float]
    estimated: tuple[float, float]

    @property
    def is_right(self) -> bool:
        return (self.measured[0] > self.measured[1]) == (self.estimated[0] > self.estimated[1])

    @property
    def gap(self) -> float:
        """By what part the better one is better."""
        return max(self.measured) / min(self.measured) - 1.0

    @property
    def lost(self) -> float:
        """Part of the better one's tokens per dollar that who goes by the estimates does not get."""
        return 1.0 - self.measured[int(self.estimated[1] > self.estimated[0])] / max(self.measured)


def ordering(errors: Errors) -> list[str]:
    """Return how often the GPU with more tokens per dollar is named right, and what the wrong ones cost."""
    prices, (_, floor) = _prices(), noise_floor(errors.rows)
    lines = [
        f"| objective | left out | pairs of GPUs: right | at measured batches | more than {floor:.0%} apart "
        f"| at measured batches | more than {NOISE:.0%} apart | tokens per dollar lost: mean | most |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    pooled: dict[tuple[str, bool], list[Pair]] = {}
    for bound_s in (None, *TPOT_BOUNDS_S, "all of them"):
        for name in LEFT_OUT:
            if isinstance(bound_s, str):
                text = bound_s
                read, at_batches = (pooled[name, off] for off in (True, False))
            else:
                text = "none: largest throughput" if bound_s is None else f"time per token <= {bound_s * 1e3:g} ms"
                read, at_batches = (_pairs(errors, name, bound_s, prices, is_read_off=off) for off in (True, False))
                pooled[name, True] = [*pooled.get((name, True), []), *read]
                pooled[name, False] = [*pooled.get((name, False), []), *at_batches]
            lost = [pair.lost for pair in read]
            cells = [
                text,
                name.replace("in-sample", "nothing").removesuffix(" left out"),
                _share_right(read, 0.0),
                _share_right(at_batches, 0.0),
                _share_right(read, floor),
                _share_right(at_batches, floor),
                _share_right(read, NOISE),
                f"{np.mean(lost):.1%}",
                f"{max(lost):.0%}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _share_right(pairs: list[Pair], least_gap: float) -> str:
    right = [pair.is_right for pair in pairs if pair.gap > least_gap]
    return f"{np.mean(right):.0%} of {len(right)}" if right else "-"


def misordered(errors: Errors) -> list[str]:
    """Return where the wrong pairs under a bound on the time per token are: engines, GPUs, and how far apart."""
    prices = _prices()
    lines = [
        "| time per token | engine | GPUs | pairs | wrong | their gaps: median | largest |",
        "|---|---|---|---|---|---|---|",
    ]
    for bound_s in TPOT_BOUNDS_S:
        groups: dict[tuple[str, tuple[str, str]], list[Pair]] = {}
        for pair in _pairs(errors, "GPU left out", bound_s, prices, is_read_off=True):
            groups.setdefault((pair.engine, pair.gpus), []).append(pair)
        for (engine, gpus), pairs in sorted(groups.items()):
            gaps = [pair.gap for pair in pairs if not pair.is_right]
            if gaps:
                ends = f"{np.median(gaps):.0%} | {max(gaps):.0%}"
                names = " and ".join(gpus)
                lines.append(f"| <= {bound_s * 1e3:g} ms | {engine} | {names} | {len(pairs)} | {len(gaps)} | {ends} |")
    return lines


def _prices() -> dict[str, float]:
    prices: dict[str, float] = {}
    for offer in load_offers():
        if offer.market is Market.ON_DEMAND and offer.gpus_per_instance >= 1:
            price = float(offer.price_usd_per_hour) / offer.gpus_per_instance
            prices[offer.gpu] = min(price, prices.get(offer.gpu, price))
    return prices


def _pairs(
    errors: Errors, name: str, bound_s: float | None, prices: dict[str, float], *, is_read_off: bool
) -> list[Pair]:
    """Return the pairs of GPUs that were measured with the same work, both within the bound.

    `is_read_off`: the rate at the bound is read off between the batches of a sweep; else the best measured batch within
    the bound counts, and of the estimates the best one of the same batches.
    """
    sweeps: dict[tuple, dict[str, list[tuple[float, float, float, float]]]] = {}
    for row, ratios in zip(errors.rows, errors.ratios[name], strict=True):
        question, ratio = row.measurement.question, ratios[0]
        kind = "offline_max" if bound_s is None else "static_batch"
        if not np.isfinite(ratio) or question.gpu.name not in prices or question.load_kind != kind:
            continue
        n_gpus = question.n_gpus
        work = (row.model, row.era, question.input_tokens, question.output_tokens)
        place = sweeps.setdefault(work, {}).setdefault(question.gpu.name, [])
        place.append((n_gpus * prices[question.gpu.name], question.load, row.measurement.throughput, ratio))
    found = []
    for (_, era, *_), by_gpu in sweeps.items():
        values = {
            gpu: [_per_dollar(rows, bound_s, is_estimate=each, is_read_off=is_read_off) for each in (False, True)]
            for gpu, rows in by_gpu.items()
        }
        for one, other in combinations(sorted(values), 2):
            measured, estimated = zip(values[one], values[other], strict=True)
            if min(measured) > 0:
                found.append(Pair(era, (one, other), measured, estimated))
    return found


def _per_dollar(
    sweep: list[tuple[float, float, float, float]], bound_s: float | None, *, is_estimate: bool, is_read_off: bool
) -> float:
    """Return the most tokens per dollar within the bound, over the sweeps of each price."""
    best = 0.0
    for price in {row[0] for row in sweep}:
        rows = sorted((load, tps * (ratio if is_estimate else 1.0)) for own, load, tps, ratio in sweep if own == price)
        rates = np.array([tps for _, tps in rows])
        if bound_s is None:
            best = max(best, rates.max() / price)
            continue
        pace = np.array([max(load, 1.0) for load, _ in rows]) / rates
        if not is_read_off:
            best = max(best, float(np.where(pace <= bound_s, rates, 0.0).max()) / price)
            continue
        pace = np.maximum.accumulate(pace)
        if pace[0] <= bound_s:
            best = max(best, float(np.interp(np.log(bound_s), np.log(pace), np.maximum.accumulate(rates))) / price)
    return best


LITTLE = (0.0, 0.6, 0.85, np.inf)
"""Bounds between classes of closed loops, by the share of the clients that throughput and TPOT account for."""


def _decoding_share(rows: list[Row]) -> np.ndarray:
    """Return throughput x TPOT over the clients of closed loops, shape (rows,); NaN elsewhere."""
    values = np.array([row.measurement.values for row in rows])
    questions = [row.measurement.question for row in rows]
    is_loop = np.array([question.load_kind == "concurrency" for question in questions])
    clients = np.array([max(question.load, 1.0) for question in questions])
    return np.where(is_loop, values[:, 0] * values[:, 2] / 1e3 / clients, np.nan)


def contradictions(errors: Errors) -> list[str]:
    """Return the errors of closed loops by the share of their clients that is decoding by their own figures.

    By Little's law throughput times TPOT is the mean number of requests that decode. With lengths as these, nearly all
    clients' requests do, in a steady state.
    """
    share = _decoding_share(errors.rows)
    lines = [
        "| throughput x TPOT / clients | points | throughput: median | 90% below | TPOT: median | 90% below |",
        "|---|---|---|---|---|---|",
    ]
    for low, high in pairwise(LITTLE):
        chosen = (share >= low) & (share < high)
        cells = [summary(errors.ratios[MODEL][chosen, column]) for column in (0, 2)]
        name = f"{low:g} to {high:g}" if np.isfinite(high) else f"above {low:g}"
        lines.append(f"| {name} | {chosen.sum()} | {' | '.join(cells)} |")
    return lines


def seconds_per_thousand(rows: list[Row], params: EstimatorParams) -> float:
    cells = [row.cells for row in rows][:1000]
    started = time.perf_counter()
    estimate_rows(cells, params)
    return (time.perf_counter() - started) * 1000 / len(cells)


def noise_floor(rows: list[Row]) -> tuple[int, float]:
    """Return how far the same configuration measured with two engine versions lies apart, in the median."""
    found: dict[tuple, dict[str, float]] = {}
    for row in rows:
        question = row.measurement.question
        if question.load_kind == "offline_max" and row.cells["source"].startswith("trtllm"):
            config = replace(question.config, engine_version="")
            key = (row.model, row.gpu, config, question.input_tokens, question.output_tokens)
            found.setdefault(key, {})[row.cells["engine_version"]] = row.measurement.throughput
    gaps = [max(same.values()) / min(same.values()) - 1.0 for same in found.values() if len(same) > 1]
    return len(gaps), float(np.median(gaps))
