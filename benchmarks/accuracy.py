"""Compares `gpuplan profile estimate` with published measurements, in-sample and with GPUs and models left out.

Run: python benchmarks/accuracy.py            prints the tables and writes them into docs/benchmarks.md
     python benchmarks/accuracy.py --dry-run  prints only
     python benchmarks/accuracy.py --fit      fits the parameters and writes them into profiles/
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from _accuracy_fit import Row, bare, fit_engines, fit_power, load_rows

from planner.profilers.efficiency import default_params

PROFILES = Path(__file__).resolve().parents[1] / "profiles"
UNITS = {"_s": "s", "_factor": "of the GPU's own fraction", "_fraction": "of the output", "_wait": "completions"}


def write_rows(name: str, keys: tuple[str, ...], new: list[dict[str, str]]) -> None:
    """Replace the rows of a table that share their keys with new ones, and append the others."""
    path = PROFILES / name
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        header, old = list(reader.fieldnames or ()), list(reader)
    fresh = {tuple(row[key] for key in keys): row for row in new}
    kept = [fresh.pop(tuple(row[key] for key in keys), row) for row in old]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *fresh.values()])


def parameter_rows(values: Mapping[tuple[str, str], float], rows: list[Row]) -> list[dict[str, str]]:
    """Return fitted engine factors as rows of profiles/efficiency.csv."""
    counts: dict[str, int] = {}
    origins: dict[str, set[str]] = {}
    for row in rows:
        counts[row.era] = counts.get(row.era, 0) + 1
        origins.setdefault(row.era, set()).add(row.cells["source"])
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


def fit() -> None:
    params = default_params()
    rows = load_rows(params)
    _, values = fit_engines(rows, bare(params))
    write_rows("efficiency.csv", ("parameter", "scope"), parameter_rows(values, rows))
    default_params.cache_clear()
    write_rows("power.csv", ("parameter", "scope"), power_rows(rows))


if __name__ == "__main__":
    if "--fit" in sys.argv:
        fit()
