"""What a GPU draws on average, idle and busy, and how fast it is under a power limit (profiles/power.csv)."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
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
    fractions = _parameters()
    scope = gpu.architecture.lower()
    idle = fractions.get(("idle_fraction", scope), fractions["idle_fraction", DEFAULT_SCOPE])
    busy = fractions.get(("busy_fraction", scope), fractions["busy_fraction", DEFAULT_SCOPE])
    return GpuDraw(
        idle_w=gpu.idle_w if gpu.idle_w is not None else WattsPerGpu(gpu.tdp_w * idle),
        busy_w=WattsPerGpu(gpu.tdp_w * busy),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerFractions:
    """How the mean draw of a GPU that serves grows with its work, in shares of the TDP."""

    awake: float
    """While an engine runs on it, clocks up, before any work."""
    memory: float
    """Added when the memory is read at its data-sheet rate."""
    arithmetic: float
    """Added when the arithmetic runs at its dense peak; grows with the square root of that share."""


def power_fractions(gpu: GpuSpec) -> PowerFractions:
    """Return how the draw of `gpu` grows with its work: its architecture's fit, or the default."""
    table = _parameters()
    awake, memory, arithmetic = (
        table.get((name, gpu.architecture.lower()), table[name, DEFAULT_SCOPE])
        for name in ("awake_fraction", "memory_fraction", "arithmetic_fraction")
    )
    return PowerFractions(awake=awake, memory=memory, arithmetic=arithmetic)


def lowest_cap_w(gpu: GpuSpec) -> WattsPerGpu | None:
    """Return the lowest power limit at which the throughput of `gpu` can be told; None if it can be at none."""
    fraction = _parameters().get(("lowest_cap_fraction", gpu.architecture.lower()))
    return None if fraction is None else WattsPerGpu(gpu.tdp_w * fraction)


def capped(gpu: GpuSpec, cap_w: WattsPerGpu) -> GpuSpec:
    """Return `gpu` as it is under a power limit: its arithmetic is slower, its memory as fast as ever.

    A limit lowers the clock of the arithmetic units; with the power above idle in proportion to clock^a,

        clock / highest clock = ((cap - idle) / (TDP - idle))^(1 / a).

    Prefills are bound by arithmetic and slow down with the clock; decoding waits for the memory and hardly does.

    Raises
    ------
    ValueError: if nothing is known of this GPU under so low a limit.
    """
    lowest = lowest_cap_w(gpu)
    if lowest is None or cap_w < lowest * (1 - ROUNDING):
        msg = f"nothing is known of {gpu.name} at {cap_w:g} W"
        raise ValueError(msg)
    idle = gpu_draw(gpu).idle_w
    exponent = _parameters()["cap_exponent", gpu.architecture.lower()]
    clock = min(1.0, (cap_w - idle) / (gpu.tdp_w - idle)) ** (1 / exponent)
    return replace(
        gpu,
        peak_flops={name: rate * clock for name, rate in gpu.peak_flops.items()},
        achieved_flops={name: rate * clock for name, rate in gpu.achieved_flops.items()},
    )


ROUNDING = 1e-9


@cache
def _parameters() -> Mapping[tuple[str, str], float]:
    rows = csv.DictReader(bundled("profiles", "power.csv").read_text(encoding="utf-8").splitlines())
    return MappingProxyType({(row["parameter"], row["scope"]): float(row["value"]) for row in rows})
