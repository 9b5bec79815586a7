"""The 80% interval of an estimate: how far measurements lay from it where they had no part in the fit.

profiles/estimate_error.csv holds, by metric and load kind, between which multiples of the estimate eight in ten
measurements lie whose GPU or model set neither the fit nor the band, and how much wider that gets on a GPU
architecture, with an engine or with a kind of model that no measurement was fitted on. benchmarks/accuracy.py
recomputes it.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from planner.files.bundled import bundled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ANY = "any"


@dataclass(frozen=True, slots=True)
class Band:
    """Multiples of an estimate between which eight in ten measurements lie."""

    low: float
    high: float

    def widened(self, factors: Iterable[float]) -> Band:
        """Return the band for estimates far from the data: each factor is a ratio that is added in quadrature."""
        extra = sum(math.log(factor) ** 2 for factor in factors)
        below = math.sqrt(min(math.log(self.low), 0.0) ** 2 + extra)
        above = math.sqrt(max(math.log(self.high), 0.0) ** 2 + extra)
        return Band(min(self.low, math.exp(-below)), max(self.high, math.exp(above)))


@cache
def load_errors() -> Mapping[tuple[str, str], Band]:
    """Return the bundled table, (metric, load kind or what is new) -> band."""
    text = bundled("profiles", "estimate_error.csv").read_text(encoding="utf-8")
    return {
        (row["metric"], row["case"]): Band(float(row["low"]), float(row["high"]))
        for row in csv.DictReader(text.splitlines())
    }


def band(metric: str, load_kind: str, *, novelties: Iterable[str], further: Iterable[float] = ()) -> Band:
    """Return the band of a metric under a load.

    `novelties` name what no measurement was fitted on; `further` are other factors by which it widens.
    """
    table = load_errors()
    base = table.get((metric, load_kind)) or table[metric, ANY]
    return base.widened([*(table[metric, name].high for name in novelties), *further])
