"""Which number formats an engine runs on which GPUs, read from profiles/engine_support.csv.

The table lists what runs: an engine that has rows runs nothing else. Engines without rows (a user's own) are believed.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from planner.files.bundled import bundled
from planner.profilers.efficiency import engine_family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.hardware import EngineConfig, GpuSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Where one engine runs weights of one precision on one vendor's GPUs; at least one of the limits is given."""

    least_capability: float | None
    """CUDA compute capability from which on it runs."""
    below_capability: float | None
    """CUDA compute capability from which on it does NOT run any more."""
    architectures: tuple[str, ...]
    """Architectures on which it runs, where there are no compute capabilities; () = not limited."""
    certainty: str
    """"documented" by the engine, "inferred" from what it is built on, or "assumed"."""
    source: str


@cache
def load_support() -> Mapping[tuple[str, str, str], Support]:
    """Return the bundled table, (engine family, vendor, precision) -> where that runs."""
    text = bundled("profiles", "engine_support.csv").read_text(encoding="utf-8")
    return {
        (row["engine"], row["vendor"], row["precision"]): Support(
            least_capability=_optional(row["least_compute_capability"]),
            below_capability=_optional(row["below_compute_capability"]),
            architectures=tuple(row["architectures"].split()),
            certainty=row["certainty"],
            source=row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    }


def _optional(text: str) -> float | None:
    return float(text) if text else None


def unsupported(gpu: GpuSpec, config: EngineConfig) -> str:
    """Return in words why the engine does not run the precision on this GPU; "" if it does, or if nobody knows.

    Examples
    --------
    >>> from planner.catalog.gpus import load_gpus
    >>> from planner.domain.hardware import EngineConfig
    >>> unsupported(load_gpus().get("T4"), EngineConfig(precision="bf16"))
    'vllm runs bf16 from compute capability 8.0 on; T4 has 7.5; it runs fp16: ask for precision fp16'
    """
    table, family = load_support(), engine_family(config.engine)
    if all(engine != family for engine, _, _ in table):
        return ""
    reason = _why_not(table, family, gpu, config.precision)
    if reason and config.precision == "bf16" and not _why_not(table, family, gpu, "fp16"):
        reason += "; it runs fp16: ask for precision fp16"
    return reason


def _why_not(table: Mapping[tuple[str, str, str], Support], family: str, gpu: GpuSpec, precision: str) -> str:
    row = table.get((family, gpu.vendor, precision))
    if row is None:
        if all((engine, vendor) != (family, gpu.vendor) for engine, vendor, _ in table):
            return f"{family} does not run on GPUs of {gpu.vendor}"
        return f"{family} does not run {precision} on GPUs of {gpu.vendor}"
    if row.architectures and gpu.architecture not in row.architectures:
        return f"{family} runs {precision} on {', '.join(row.architectures)}; {gpu.name} is {gpu.architecture}"
    found = "" if gpu.compute_capability is None else _capability_misfit(row, gpu.compute_capability)
    return found and f"{family} runs {precision} {found}; {gpu.name} has {gpu.compute_capability:.1f}"


def _capability_misfit(row: Support, capability: float) -> str:
    """Return where it runs instead, in words; "" if it runs at `capability`."""
    if row.least_capability is not None and capability < row.least_capability:
        return f"from compute capability {row.least_capability:.1f} on"
    if row.below_capability is not None and capability >= row.below_capability:
        return f"below compute capability {row.below_capability:.1f} only"
    return ""
