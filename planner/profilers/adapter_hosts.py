"""Adapters that wait in host memory: how many find room there, and how long a request waits for one that does.

Engines that serve many adapters keep a copy in host memory of each one that is in a slot (vLLM's --max-cpu-loras and
SGLang's --max-loaded-loras count these, too). Where every adapter has a process of its own, what waits is its container
with the libraries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.domain.adapters import Isolation
from planner.profilers.serverless_figures import figures
from planner.profilers.startup import load_startup

if TYPE_CHECKING:
    from planner.domain.hardware import GpuSpec, Offer

GIGA = 1e9
HOST_BYTES_PER_GPU = 64e9
"""Host memory of a machine for each of its GPUs, where nobody says; assumed."""
HOST_FRACTION = 0.5
"""Of a replica's part of the host memory: what adapters may take by plan. The rest is for the engine, the operating
system, the files of the weights, and for larger adapters that take the place of smaller ones; assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoom:
    """Host memory of one replica: its part of the instance's, by GPUs."""

    planned_bytes: float
    """What adapters may take by plan."""
    most_bytes: float
    """What they could take beside the engine, whichever they are."""
    is_stated: bool
    """False: the offer does not say how much memory an instance has, and `HOST_BYTES_PER_GPU` is assumed."""


def host_room(offer: Offer, n_gpus: float) -> HostRoom:
    """Return the host memory that a replica on `n_gpus` GPUs of an instance has for adapters."""
    part = n_gpus / offer.gpus_per_instance
    whole = HOST_BYTES_PER_GPU * n_gpus if offer.ram_bytes is None else offer.ram_bytes * part
    return HostRoom(
        planned_bytes=HOST_FRACTION * whole,
        most_bytes=max(HOST_FRACTION * whole, whole - n_gpus * container_bytes()),
        is_stated=offer.ram_bytes is not None,
    )


def container_bytes() -> float:
    """Return the host memory of a process with its libraries (profiles/lora/serverless.csv)."""
    published = figures("re-implementation")
    return (published["container_gb"] + published["libraries_gb"]) * GIGA


def bytes_beside(isolation: Isolation) -> float:
    """Return what an adapter takes of host memory beside its own size: where it has a process of its own, that one."""
    return container_bytes() if isolation is Isolation.SHARED_BACKBONE else 0.0


def host_wait_s(isolation: Isolation, gpu: GpuSpec, adapter_bytes: float) -> float:
    """Return what a request waits for an adapter that is in host memory: the copy to the GPU over PCIe.

    A process that waits maps the weights and loads its kernels first.
    """
    copy_s = adapter_bytes / gpu.pcie_bytes_per_s
    if isolation is not Isolation.SHARED_BACKBONE:
        return copy_s
    published = figures("re-implementation")
    return copy_s + published["backbone_shared_s"] + published["kernels_s"]


def disk_wait_s(isolation: Isolation, gpu: GpuSpec, adapter_bytes: float) -> float:
    """Return what a request waits for an adapter that is on the machine's disk, as it was read off a figure.

    A process of its own also starts its container and imports its libraries (profiles/startup.csv).
    """
    read_s = max(figures("timeline")["adapter_s"], adapter_bytes / gpu.pcie_bytes_per_s)
    if isolation is not Isolation.SHARED_BACKBONE:
        return read_s
    table, published = load_startup(), figures("re-implementation")
    started_s = table["container_s", "warm"].p50 + table["libraries_s", "default"].p50
    return read_s + started_s + published["backbone_shared_s"] + published["kernels_s"]
