"""The tables of benchmarks/accuracy.py."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from _accuracy_fit import bare, fit_all, fit_base, fit_power, leave_out, lora_cells, power_features

from planner.catalog.offers import load_offers
from planner.domain.hardware import Market
from planner.planning import calibration
from planner.planning.estimate import Estimate, estimate_rows
from planner.planning.estimate_table import bounds_of

if TYPE_CHECKING:
    from _accuracy_fit import Row

    from planner.profilers.efficiency import EstimatorParams

METRICS = ("throughput", "ttft", "tpot")
TPOT_BOUNDS_S = (0.02, 0.04, 0.1)
NOISE = 0.1
"""Gaps below this are hardly more than the spread between engine versions."""
LEFT_OUT = ("in-sample", "GPU left out", "model left out")


@dataclass(frozen=True)
class Errors:
    """Estimate / measured of every row and metric, shape (rows, 3), by what was left out of the fit; NaN = unknown."""

    rows: list[Row]
    ratios: dict[str, np.ndarray]
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
        "in-sample": calibration.estimates(questions, whole),
        "GPU left out": leave_out(rows, lambda row: row.gpu, plain),
        "model left out": leave_out(rows, lambda row: row.model, plain),
    }
    return Errors(
        rows=rows,
        ratios={name: estimates / measured for name, estimates in found.items()},
        power={name: _power_ratios(rows, whole, name) for name in LEFT_OUT},
        is_known={
            "in-sample": np.ones(len(rows), dtype=bool),
            "GPU left out": _has_others(rows, [row.gpu for row in rows]),
            "model left out": _has_others(rows, [row.model for row in rows]),
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
        for is_known, words in ((True, "known"), (False, "new as well")):
            cells = []
            for left_out in LEFT_OUT[1:]:
                if column is None:
                    picked = errors.power[left_out]
                else:
                    picked = errors.ratios[left_out][chosen & (errors.is_known[left_out] == is_known), column]
                cells.append(f"{np.isfinite(picked).sum()} | {summary(picked)}")
            if column is not None or is_known:
                lines.append(f"| {name} | {bound} | {words} | {' | '.join(cells)} |")
    return lines


def error_rows(errors: Errors) -> list[dict[str, str]]:
    """Return profiles/estimate_error.csv: bands of measured / estimate on what was left out of the fit."""
    kinds = np.array([row.measurement.question.load_kind for row in errors.rows])
    found: list[dict[str, str]] = []
    for column, metric in enumerate((*METRICS, "power")):
        picked = {
            name: 1.0 / (errors.power[name] if metric == "power" else errors.ratios[name][:, column])
            for name in LEFT_OUT
        }
        for kind in (None, *sorted(set(kinds))):
            values, reason = _pool(errors, picked, np.ones(len(kinds), dtype=bool) if kind is None else kinds == kind)
            if len(values) >= LEAST_CASES:
                low, high = np.quantile(values, (0.1, 0.9))
                found.append(_band(metric, kind or "any", low, high, len(values), reason))
        known = errors.is_known["GPU left out"]
        picked["GPU left out"] = np.where(known, picked["GPU left out"], np.nan)
        picked["in-sample"] = np.where(known, picked["in-sample"], np.nan)
        near, far = _half_width(picked["in-sample"]), _half_width(picked["GPU left out"])
        new_gpu = max(float(np.exp(np.sqrt(max(far**2 - near**2, 0.0)))), LEAST_NEW_GPU)
        found.append(
            _new(metric, "new_gpu", new_gpu, "how much wider it gets with a GPU left out, at least 1.25 (assumed)")
        )
        apart = 1.0 / errors.no_engine[:, column] if metric != "power" else picked["GPU left out"]
        new_engine = float(np.exp(np.sqrt(max(_half_width(apart) ** 2 - near**2, 0.0))))
        found.append(_new(metric, "new_engine", new_engine, "the same without any engine's own factors"))
        found.append(_new(metric, "borrowed_engine", BORROWED, "assumed: engines that take another's overheads"))
        found.append(_new(metric, "new_kind_of_model", NEW_KIND, "assumed: mixture-of-experts and state-space models"))
        found.append(_new(metric, "new_parallelism", NEW_PARALLELISM, "assumed: pipelines and more than 8 GPUs"))
    return found


def _pool(errors: Errors, picked: dict[str, np.ndarray], chosen: np.ndarray) -> tuple[np.ndarray, str]:
    """Return measured / estimate where the engine was known, and which these are.

    Where every row of an engine shares its GPU or model, nothing can be left out: then the fit's own rows stand in.
    """
    parts = [picked[name][chosen & errors.is_known[name]] for name in LEFT_OUT[1:]]
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if len(values) >= LEAST_CASES:
        return values, "a GPU or a model left out of the fit"
    values = picked["in-sample"][chosen]
    values = values[np.isfinite(values)]
    centre = np.median(values) if len(values) else 1.0
    return centre * (values / centre) ** IN_SAMPLE_STRETCH, "the fit's own rows; logarithms times 1.3 (assumed)"


IN_SAMPLE_STRETCH = 1.3
LEAST_CASES = 30
LEAST_NEW_GPU = 1.25
BORROWED = 1.25
NEW_KIND = 1.3
NEW_PARALLELISM = 1.2


def _half_width(values: np.ndarray) -> float:
    return float(np.quantile(np.abs(np.log(values[np.isfinite(values)])), 0.8))


def _band(metric: str, case: str, low: float, high: float, n_cases: int, reason: str) -> dict[str, str]:
    ends = {"low": f"{min(low, 1.0):.3f}", "high": f"{max(high, 1.0):.3f}"}
    source = "benchmarks/accuracy.py --fit"
    return {"metric": metric, "case": case, **ends, "cases": str(n_cases), "source": source, "reason": reason}


def _new(metric: str, case: str, factor: float, reason: str) -> dict[str, str]:
    source = "assumed" if reason.startswith("assumed") else "benchmarks/accuracy.py --fit"
    ends = {"low": f"{1.0 / factor:.3f}", "high": f"{factor:.3f}"}
    return {"metric": metric, "case": case, **ends, "cases": "", "source": source, "reason": reason}


def coverage(errors: Errors, params: EstimatorParams) -> list[str]:
    """Return how many measured values of left-out rows lie inside the 80% interval."""
    lines = ["| metric | measured values | inside, GPU left out | inside, model left out |", "|---|---|---|---|"]
    columns = ("throughput_output_tok_s", "ttft_mean_ms", "tpot_mean_ms", "power_w_per_gpu")
    for column, name in enumerate(columns):
        shares = []
        for left_out in LEFT_OUT[1:]:
            ratios = errors.power[left_out] if column == len(METRICS) else errors.ratios[left_out][:, column]
            inside = []
            for row, ratio in zip(errors.rows, ratios, strict=True):
                if np.isfinite(ratio):
                    band = bounds_of(name, _stub(row), params)
                    inside.append(band.low <= 1.0 / ratio <= band.high)
            shares.append(f"{np.mean(inside):.0%}")
        lines.append(f"| {name} | {len(inside)} | {' | '.join(shares)} |")
    return lines


def _stub(row: Row) -> Estimate:
    return Estimate(
        ttft_s={}, tpot_s={}, rate_rps=None, output_tps=None, power_w=None, energy_j=None,
        question=row.measurement.question,
    )  # fmt: skip


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
    for bound_s in (None, *TPOT_BOUNDS_S):
        text = "none: largest throughput" if bound_s is None else f"time per token <= {bound_s * 1e3:g} ms"
        for name in LEFT_OUT:
            read, at_batches = (_pairs(errors, name, bound_s, prices, is_read_off=off) for off in (True, False))
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


def recalibrated(errors: Errors, params: EstimatorParams) -> list[str]:
    """Return what three measured points of a GPU that was left out of the fit do for the others."""
    lines = [
        "| GPU left out | engine | points | median error before | 90% below | after three points | 90% below |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(errors.rows):
        if np.isfinite(errors.ratios["GPU left out"][index, 0]):
            groups.setdefault((row.gpu, row.era), []).append(index)
    for (gpu, era), indices in sorted(groups.items()):
        if len(indices) < LEAST_CASES:
            continue
        base, _ = fit_all([row for row in errors.rows if row.gpu != gpu], bare(params))
        picked = [indices[round(place * (len(indices) - 1))] for place in (0.2, 0.5, 0.8)]
        three = [errors.rows[i].measurement for i in picked]
        fitted = calibration.fit_own(three, base)
        rest = [i for i in indices if i not in picked]
        questions = [errors.rows[i].measurement.question for i in rest]
        measured = np.array([errors.rows[i].measurement.throughput for i in rest])
        before, after = (calibration.estimates(questions, used)[:, 0] / measured for used in (base, fitted.params))
        lines.append(f"| {gpu} | {era} | {len(rest)} | {summary(before)} | {summary(after)} |")
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


def lora(params: EstimatorParams) -> list[str]:
    """Return errors of the rates served with many adapters, by engine and number of adapters."""
    cells = lora_cells()
    groups: dict[tuple[str, int], list[float]] = {}
    for row, answer in zip(cells, estimate_rows(cells, params), strict=True):
        if answer.estimate is not None and answer.estimate.rate_rps is not None:
            key = (row["engine"], int(float(row["num_adapters"])))
            groups.setdefault(key, []).append(answer.estimate.rate_rps / float(row["throughput_req_s"]))
    lines = ["| engine | adapters | runs | median error | 90% below |", "|---|---|---|---|---|"]
    for (engine, count), ratios in sorted(groups.items()):
        lines.append(f"| {engine} | {count} | {len(ratios)} | {summary(np.array(ratios))} |")
    return lines
