"""Prefill apart from decode, as a request asks for it: ways of serving that compete, and what networks can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.domain.disaggregation import Handover, Role
from planner.planning.located import inside
from planner.profilers.roles import check_disaggregated, role_flags
from planner.profilers.stages import E2E_OF_PREFILL, TTFT_OF_PREFILL, Stage, e2e_parts
from planner.units import BITS_PER_BYTE, format_bit_rate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.domain.hardware import EngineConfig, Offer
    from planner.domain.slo import Slo
    from planner.files.request import PlanRequest
    from planner.files.request.services import Service
    from planner.profilers.options import OptionProfile

DEFAULT_NETWORK_BYTES_PER_S = 10e9 / BITS_PER_BYTE
"""Of an instance whose network nobody states: 10 Gbit/s. Instances with several GPUs mostly have far more."""


def check_engines(services: Sequence[Service]) -> None:
    """Refuse disaggregated services of engines that cannot do it.

    Raises
    ------
    InputError: naming the service's engine and those that can.
    """
    for index, service in enumerate(services):
        if service.disaggregate != "never":
            with inside(f"services[{index}].disaggregate"):
                check_disaggregated(service.engine.name)


def network_bytes_per_s(service: Service, offer: Offer) -> float:
    """Return the rate at which one instance of `offer` sends KV caches of `service`, and receives them."""
    return service.engine.kv_transfer or offer.network_bytes_per_s or DEFAULT_NETWORK_BYTES_PER_S


def stages(
    service: Service, offer: Offer, config: EngineConfig, slos: Sequence[Slo], *, network_factor: float = 1.0
) -> Iterator[Stage | None]:
    """Yield the ways in which replicas of `config` on `offer` may serve: None = requests as a whole.

    A replica has the part of its instance's network that it has of the GPUs.

    network_factor : how many times as fast as stated all networks are taken to be.
    """
    if service.disaggregate != "only":
        yield None
    if service.disaggregate == "never":
        return
    part = config.gpus_per_replica / offer.gpus_per_instance
    rate = network_bytes_per_s(service, offer) * part * network_factor
    for e2e_of_prefill in e2e_parts(slos):
        for role in (Role.PREFILL, Role.DECODE):
            yield Stage(role=role, bytes_per_s=rate, e2e_of_prefill=e2e_of_prefill)


def handover_of(stage: Stage | None, config: EngineConfig, profile: OptionProfile) -> Handover | None:
    """Return what a replica of `stage` hands over or takes over; None where requests stay whole."""
    if stage is None:
        return None
    words = (config.engine, config.precision, f"kv {config.kv_precision}", stage.group)
    return Handover(
        kv_bytes=np.asarray(profile.kv_bytes),
        bytes_per_s=stage.bytes_per_s,
        group=" ".join(word for word in words if word),
        engine_flags=role_flags(config.engine, stage.role),
    )


def disaggregation_assumptions(request: PlanRequest, offers: Sequence[Offer]) -> Iterator[str]:
    """Yield what is assumed of services that may prefill apart from decode."""
    apart = [service for service in request.services if service.disaggregate != "never"]
    for service in apart:
        yield f"{service.name}: {_network_text(service, offers)}"
    if apart:
        e2e = " or ".join(f"{part:.0%}" for part in E2E_OF_PREFILL)
        yield (
            f"Where prefill is apart from decode, {TTFT_OF_PREFILL:.0%} of a ttft bound ({e2e} of an e2e bound) is for "
            "prefill and sending the KV cache, the rest for receiving it and decoding; transfers do not wait in line, "
            "and both stages run the same engine, weights and KV format in one region."
        )


def _network_text(service: Service, offers: Sequence[Offer]) -> str:
    if service.engine.kv_transfer is not None:
        return f"KV caches pass between instances at {format_bit_rate(service.engine.kv_transfer)} each way, as asked."
    unknown = sum(offer.network_bytes_per_s is None for offer in offers)
    default = format_bit_rate(DEFAULT_NETWORK_BYTES_PER_S)
    if not unknown:
        return "KV caches pass between instances at the network rate that the catalog states."
    return (
        f"KV caches pass between instances at the network rate that the catalog states; {unknown} of {len(offers)} "
        f"offers state none and are taken to have {default} (engine.kv_transfer says better)."
    )
