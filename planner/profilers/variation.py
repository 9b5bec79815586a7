"""How much GPUs, engines and measurements differ from what is believed of them: profiles/calibration.csv."""

from __future__ import annotations

import csv
import math
from functools import cache
from typing import TYPE_CHECKING

from planner.files.bundled import bundled
from planner.profilers.interval import load_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

ENGINE_PARAMETERS = (
    "gemm_factor",
    "bandwidth_factor",
    "kv_bandwidth_factor",
    "attention_factor",
    "step_overhead_s",
    "sequence_overhead_s",
    "layer_overhead_s",
)
"""Of an engine, what a few points may move."""

LINK_PARAMETERS = ("allreduce_latency_factor", "link_factor")
"""The same, for what several GPUs do together."""

QUANTILE = 1.2816
"""An 80% interval reaches so many standard deviations to either side."""


@cache
def load_variation() -> Mapping[tuple[str, str], float]:
    """Return the bundled table, (kind, of what) -> standard deviation of a logarithm."""
    text = bundled("profiles", "calibration.csv").read_text(encoding="utf-8")
    return {(row["parameter"], row["scope"]): float(row["value"]) for row in csv.DictReader(text.splitlines())}


def known_sd(kind: str) -> float:
    """Return by how much a GPU or an engine ("gpu", "engine") that was fitted differs from one machine to the next."""
    return load_variation()["known", kind]


def new_sd(kind: str) -> float:
    """Return the same of one that nothing was fitted on, as its estimates' interval widens."""
    widened = math.log(load_errors()["throughput", f"new_{kind}"].high) / QUANTILE
    return math.hypot(known_sd(kind), widened)
