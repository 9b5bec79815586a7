"""Compares `gpuplan profile estimate` with published measurements, in-sample and with GPUs and models left out.

Run: python benchmarks/accuracy.py            prints the tables and writes them into docs/benchmarks.md
     python benchmarks/accuracy.py --dry-run  prints only
     python benchmarks/accuracy.py --fit      fits the parameters first and writes them into profiles/
     python benchmarks/accuracy.py --adapters the part about many adapters alone; with --fit fits S-LoRA's parameters
"""

from __future__ import annotations

import csv
import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from typing import TYPE_CHECKING

import _accuracy_adapters as adapters
import _accuracy_intervals as intervals
import _accuracy_tables as tables
from _accuracy_calibration import BARS_OF, N_TRIPLES, SEED, recalibrated
from _accuracy_fit import BASE_ERA, Row, bare, fit_all, fit_engines, fit_power, is_fitted_here, load_rows, lora_rows
from _report import machine, write_section

from planner.profilers.efficiency import default_params

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROFILES = Path(__file__).resolve().parents[1] / "profiles"
UNITS = {
    "bandwidth_fraction": "of data-sheet rate",
    "link_fraction": "of link rate",
    "attention_fraction": "of dense bf16 peak",
    "_bf16": "of dense peak",
    "_fp8": "of dense peak",
    "allreduce_latency_s": "s per all-reduce x log2(tp)",
    "_s": "s",
    "_factor": "of the GPU's own fraction",
    "_fraction": "of the output",
    "_wait": "completions",
    "_exponent": "exponent of KV heads / 32",
}


def write_rows(
    name: str, keys: tuple[str, ...], new: list[dict[str, str]], *, is_stale: Callable[..., bool] = lambda *_: False
) -> None:
    """Replace the rows of a table that share their keys with new ones, drop stale ones, and append the others."""
    path = PROFILES / name
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        header, old = list(reader.fieldnames or ()), list(reader)
    fresh = {tuple(row[key] for key in keys): row for row in new}
    place = [tuple(row[key] for key in keys) for row in old]
    kept = [fresh.pop(own, row) for own, row in zip(place, old, strict=True) if own in fresh or not is_stale(*own)]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *fresh.values()])


def parameter_rows(values: Mapping[tuple[str, str], float], rows: list[Row]) -> list[dict[str, str]]:
    """Return fitted engine factors as rows of profiles/efficiency.csv."""
    counts: dict[str, int] = {}
    origins: dict[str, set[str]] = {}
    for row in rows:
        gpu = row.architecture
        base = [gpu, "default", "nvlink"] if row.era == BASE_ERA else []
        for scope in (row.era, f"{row.era}/{gpu}", *base):
            counts[scope] = counts.get(scope, 0) + 1
            origins.setdefault(scope, set()).add(row.cells["source"])
    today = datetime.now(tz=UTC).strftime("%Y-%m")
    return [
        {
            "parameter": parameter,
            "scope": scope,
            "value": f"{value:.4g}",
            "unit": next((unit for end, unit in UNITS.items() if parameter.endswith(end)), "share"),
            "source": f"fit of {today} by benchmarks/accuracy.py",
            "reason": f"{counts[scope]} rows: {' and '.join(sorted(origins[scope]))}",
        }
        for (parameter, scope), value in values.items()
    ]


def power_rows(rows: list[Row]) -> list[dict[str, str]]:
    """Return the fitted shares of the TDP as rows of profiles/power.csv."""
    params = default_params()
    measured = [row for row in rows if row.measured("power_w_per_gpu") > 0]
    groups: dict[str, list[Row]] = {"default": measured}
    for row in measured:
        groups.setdefault(row.measurement.question.gpu.architecture.lower(), []).append(row)
    found = []
    for scope, group in groups.items():
        for name, value in zip(
            ("awake_fraction", "memory_fraction", "arithmetic_fraction"), fit_power(group, params), strict=True
        ):
            found.append(
                {
                    "parameter": name,
                    "scope": scope,
                    "value": f"{value:.3f}",
                    "unit": "of TDP",
                    "source": f"fit by benchmarks/accuracy.py: {len(group)} rows",
                    "licence": "Apache-2.0",
                    "reason": " and ".join(sorted({row.cells["source"] for row in group})),
                }
            )
    return found


def fit() -> tables.Errors:
    """Fit everything and write it: GPUs, links, engines, power, and the errors of what was left out."""
    params = default_params()
    rows = load_rows(params)
    _, values = fit_all([*rows, *lora_rows(params)], bare(params))
    write_rows(
        "efficiency.csv",
        ("parameter", "scope"),
        parameter_rows(values, [*rows, *lora_rows(params)]),
        is_stale=is_fitted_here,
    )
    errors = tables.measure(rows, params)
    write_rows("power.csv", ("parameter", "scope"), power_rows(rows))
    write_rows("estimate_error.csv", ("metric", "case"), intervals.error_rows(errors), is_stale=lambda *_: True)
    default_params.cache_clear()
    return errors


def report(errors: tables.Errors | None = None) -> str:
    params = default_params()
    rows = load_rows(params)
    errors = errors or tables.measure(rows, params)
    n_versions, gap = tables.noise_floor(rows)
    seconds = min(tables.seconds_per_thousand(rows, params) for _ in range(3))
    lines = [
        "## Estimated operating points against measurements",
        "",
        f"`python benchmarks/accuracy.py`: {len(rows)} published operating points",
        "(`benchmarks/data/SOURCES.md`) against `gpuplan profile estimate`. Errors are |estimate / measured - 1|.",
        "A GPU or a model left out: everything fitted anew without its rows, the parameters of GPUs and links as well",
        "as every engine's factors; an architecture of which nothing is left gets the means of the others' parameters,",
        "bandwidths as parts of what a memory benchmark reaches (`catalogs/gpu_achieved.csv`).",
        "",
        *tables.aims(errors),
        "",
        "Where every row of an engine's release is of one GPU or one model, nothing is left of the engine: its step",
        "times are then those of the next newer release or of any engine. Its habits, how requests are let in, are no",
        "property of a GPU; they are learnt from its runs at other degrees of tensor parallelism. What it is without",
        "them has a line of its own. Those of TensorRT-LLM 1.0 cannot be foreseen: with equal requests one waits for",
        "the end of another.",
        "",
        *tables.by_source(errors),
        "",
        f"Noise floor: {n_versions} configurations were published with two versions of TensorRT-LLM; the two differ by",
        f"{gap:.0%} in the median. No estimate that does not know the version can be better than about half of that.",
        "",
        "Closed loops whose throughput and TPOT contradict each other, with the model left out. By Little's law their",
        "product is the number of requests that decode; in ML.ENERGY's published runs with many clients and short",
        "answers (2024) it is as little as a third of the clients. Their files do not tell where the others were, so",
        "that an estimate meets one of the two figures at most:",
        "",
        *tables.contradictions(errors),
        "",
        "Coverage of the 80% intervals (`profiles/estimate_error.csv`), on rows that had no part in the fit that",
        "estimates them, nor their GPU, model or degree of parallelism in the errors that set the interval:",
        "",
        *intervals.coverage(errors),
        "",
        "Tokens per dollar: which of two GPUs gives more for the same model, engine and request size, at the",
        "cheapest on-demand prices of the bundled catalog. Static batches: the rate at the bound is read off between",
        "the batches of a sweep, or only measured batches count, and of the estimates the same ones. What lies closer",
        "together than two versions of one engine nobody can order. Lost is what the better GPU would have given more:",
        "",
        *tables.ordering(errors),
        "",
        "Where the wrong pairs under a bound are, with a GPU left out:",
        "",
        *tables.misordered(errors),
        "",
        "Calibration: a GPU is left out of the fit, and `gpuplan profile calibrate` gets three of its points, drawn at",
        f"random {N_TRIPLES} times (seed {SEED}); errors of the throughput of all others. Figures after",
        "it are medians over the triples; better and worse count triples that move the median error by more than one",
        "percentage point. The last two columns: measured values inside of their 80% intervals",
        f"({BARS_OF} triples). Half the belief beforehand is that nothing but scatter is off, so that three points",
        "hardly move what is good already. What is believed beforehand of GPUs, engines and scatter",
        "(`profiles/calibration.csv`) was taken from all rows, the left-out ones among them.",
        "",
        *recalibrated(errors, params),
        "",
        f"1000 points take {seconds:.2f} s ({machine()}).",
    ]
    return "\n".join(lines)


def fit_adapters() -> None:
    """Fit S-LoRA's parameters, which no others depend on, and write them."""
    params = default_params()
    rows = [row for row in lora_rows(params) if row.era == adapters.ENGINE]
    _, values = fit_engines(rows, adapters.without_s_lora(params))
    write_rows("efficiency.csv", ("parameter", "scope"), parameter_rows(values, rows))
    default_params.cache_clear()


def main() -> None:
    """Write what was asked for."""
    is_part = "--adapters" in sys.argv
    errors = None
    if "--fit" in sys.argv:
        errors = fit_adapters() if is_part else fit()
    texts = {} if is_part else {"accuracy": report(errors)}
    for name, text in (texts | {"adapter-accuracy": adapters.section(default_params())}).items():
        print(text)
        if "--dry-run" not in sys.argv:
            write_section(name, text)


if __name__ == "__main__":
    main()
