"""Power limits of a request as engine configurations: the same replica at several limits of its GPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.planning.located import at
from planner.profilers.power import lowest_cap_w

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.planning.deferrable import PreparedJob
    from planner.planning.services import PreparedService
    from planner.units import WattsPerGpu

MAX_GPUS_NAMED = 5


def power_caps_w(
    service: PreparedService | PreparedJob, gpu: GpuSpec
) -> tuple[list[WattsPerGpu | None], list[WattsPerGpu]]:
    """Return the limits that compete on `gpu`, highest first (None = its own), and those of which nothing is known."""
    lowest = lowest_cap_w(gpu)
    asked = sorted({cap.watts_of(gpu) for cap in service.request.engine.power_caps}, reverse=True)
    own: list[WattsPerGpu | None] = [None] if asked and asked[0] >= gpu.tdp_w else []
    below = [cap for cap in asked if cap < gpu.tdp_w]
    known = [cap for cap in below if lowest is not None and cap >= lowest]
    return own + known, [cap for cap in below if cap not in known]


def capped_configs(service: PreparedService | PreparedJob, gpu: GpuSpec) -> Iterator[EngineConfig]:
    """Yield the engine configurations of a service or a job that compete on `gpu`, without a power limit first."""
    caps, _ = power_caps_w(service, gpu)
    for config in service.configs:
        for cap in caps:
            yield replace(config, power_cap_w=cap)


def check_power_caps(services: Sequence[PreparedService | PreparedJob], gpus: Iterable[GpuSpec], where: str) -> None:
    """Return if every service has a power limit that can be reckoned with on some GPU.

    where : the part of the request that lists them.

    Raises
    ------
    InputError: naming the limits of the first that has none.
    """
    specs = list(gpus)
    for index, service in enumerate(services):
        if specs and not any(power_caps_w(service, spec)[0] for spec in specs):
            lows = {spec.name: lowest_cap_w(spec) for spec in specs}
            known = [f"{name} from {low:.0f}W" for name, low in lows.items() if low is not None]
            raise InputError(
                f"Nothing is known of any GPU at the power limits of {service.request.name!r}.",
                hint=f"Known: {', '.join(known[:MAX_GPUS_NAMED]) or 'no limit below the TDP'}; add 100% for no limit.",
                where=at(f"{where}[{index}].engine.power_caps"),
            )


def power_cap_assumptions(services: Sequence[PreparedService], gpus: Iterable[GpuSpec]) -> Iterator[str]:
    """Yield how power limits were reckoned with, and on which GPUs they could not be."""
    specs = list(gpus)
    found = [power_caps_w(service, spec) for service in services for spec in specs]
    if any(cap is not None for caps, _ in found for cap in caps):
        yield (
            "A power limit slows arithmetic, and so prefills, as far as the clock falls; memory, and so most of "
            "decoding, stays as fast (profiles/power.csv)."
        )
    unknown = sorted({spec.name for service in services for spec in specs if power_caps_w(service, spec)[1]})
    if unknown:
        more = f" and {len(unknown) - MAX_GPUS_NAMED} more" if len(unknown) > MAX_GPUS_NAMED else ""
        names = ", ".join(unknown[:MAX_GPUS_NAMED]) + more
        yield f"Nothing is known of {names} at some of the power limits; there these are left out."
