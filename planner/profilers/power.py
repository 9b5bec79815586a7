"""What a GPU draws on average, idle and busy (profiles/power.csv); its peak is its TDP."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.files.bundled import bundled
from planner.units import WattsPerGpu

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.hardware import GpuSpec

DEFAULT_SCOPE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDraw:
    """Mean power of ONE GPU."""

    idle_w: WattsPerGpu
    busy_w: WattsPerGpu


def gpu_draw(gpu: GpuSpec) -> GpuDraw:
    """Return what `gpu` draws while it waits for requests, and under full load.

    Idle power is the catalog's where it has one, else a share of the TDP; busy power is a share of the TDP.
    """
    fractions = _fractions()
    scope = gpu.architecture.lower()
    idle = fractions.get(("idle_fraction", scope), fractions["idle_fraction", DEFAULT_SCOPE])
    busy = fractions.get(("busy_fraction", scope), fractions["busy_fraction", DEFAULT_SCOPE])
    return GpuDraw(
        idle_w=gpu.idle_w if gpu.idle_w is not None else WattsPerGpu(gpu.tdp_w * idle),
        busy_w=WattsPerGpu(gpu.tdp_w * busy),
    )


@cache
def _fractions() -> Mapping[tuple[str, str], float]:
    rows = csv.DictReader(bundled("profiles", "power.csv").read_text(encoding="utf-8").splitlines())
    return MappingProxyType({(row["parameter"], row["scope"]): float(row["value"]) for row in rows})
