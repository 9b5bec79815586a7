"""GPUs, what can be rented, and how an engine is spread over GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from planner.units import UsdPerReplicaHour, WattsPerGpu

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from planner.units import BytesPerGpu, UsdPerInstanceHour


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """Data-sheet and measured facts of ONE GPU."""

    name: str
    """Canonical name, e.g. "H100-80GB"; other spellings resolve to it in the catalog."""
    vendor: str
    architecture: str
    form_factor: str
    memory_bytes: BytesPerGpu
    """What a program can allocate where a driver reports it, else the nominal size."""
    bandwidth_bytes_per_s: float
    peak_flops: Mapping[str, float]
    """Dense peak FLOP/s (op/s for int8) by number format: "bf16", "fp8", "int8", "fp4"; absent = not supported."""
    achieved_flops: Mapping[str, float] = field(default_factory=dict)
    """Largest measured matrix-multiply rate by number format; absent = not measured."""
    achieved_bandwidth_bytes_per_s: float | None = None
    """Largest measured memory rate of a streaming kernel; None = not measured."""
    tdp_w: WattsPerGpu
    idle_w: WattsPerGpu | None = None
    link: str
    """GPU-to-GPU link: "NVLink4", "PCIe", "xGMI", ..."""
    link_bytes_per_s: float
    """Uni-directional, per GPU; the PCIe rate where there is no better link."""
    pcie_bytes_per_s: float
    compute_capability: float | None = None
    """CUDA compute capability, e.g. 8.9; None = none (not NVIDIA) or not known."""
    source: str = ""
    unverified_fields: tuple[str, ...] = ()
    notes: str = ""


class Market(StrEnum):
    """How capacity is bought."""

    ON_DEMAND = "on-demand"
    SPOT = "spot"
    RESERVED_1Y = "reserved-1y"
    RESERVED_3Y = "reserved-3y"
    OWNED = "owned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One thing that can be rented: an instance type in a region on a market, at a price PER INSTANCE."""

    name: str
    """Unique, "provider/instance_type/region/market"; for a Mélange config the GPU's name there."""
    provider: str
    instance_type: str
    region: str
    market: Market
    gpu: str
    """Canonical name of a GpuSpec."""
    gpus_per_instance: float
    """Fractional for a share of a GPU (1/8 ...); such offers are listed but not planned on."""
    price_usd_per_hour: UsdPerInstanceHour
    zone: str | None = None
    vcpus: float | None = None
    ram_bytes: float | None = None
    as_of: date | None = None
    source: str = ""
    available: int | None = None
    """Instances that can be had; None = unlimited as far as is known."""
    notes: str = ""
    reclaims_per_month: float | None = None
    """How many times in 30 days a spot instance is taken back, at most; None = not known, or not spot."""
    part_of: str = ""
    """Name of the offer that this is one zone's part of; empty for an offer as it is listed."""

    @property
    def listing(self) -> str:
        """Name under which it is listed: what is available, and what quotas name, counts for all of its zones."""
        return self.part_of or self.name

    network_bytes_per_s: float | None = None
    """What one instance can send, and receive at the same time; None = not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One way to run a model: the engine and how ONE replica is spread over GPUs."""

    engine: str = "vllm"
    engine_version: str = ""
    precision: str = "bf16"
    """Number format of the weights: bf16, fp16, fp8, int8, int4, nvfp4, mxfp4."""
    kv_precision: str = "bf16"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    is_attention_data_parallel: bool = False
    """Each tensor-parallel rank keeps the caches of its own requests whole, instead of some heads of all of them."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    power_cap_w: WattsPerGpu | None = None
    """Power limit that is set on each GPU; None = its own, the TDP."""

    @property
    def gpus_per_replica(self) -> int:
        """GPUs that one replica occupies."""
        return self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerCap:
    """A power limit to set on GPUs: a part of the TDP, or watts."""

    tdp_fraction: float | None = None
    watts: WattsPerGpu | None = None

    def watts_of(self, gpu: GpuSpec) -> WattsPerGpu:
        """Return the limit on one `gpu`, at most its TDP."""
        asked = gpu.tdp_w * self.tdp_fraction if self.tdp_fraction is not None else self.watts
        return gpu.tdp_w if asked is None else WattsPerGpu(min(asked, gpu.tdp_w))


def replica_price(offer: Offer, gpus_per_replica: int) -> UsdPerReplicaHour:
    """Return one replica's share of its instance's price in USD/h: price x (GPUs it occupies / GPUs of the instance).

    Raises
    ------
    ValueError: if the replica does not fit into one instance.
    """
    if gpus_per_replica > offer.gpus_per_instance:
        msg = f"a replica of {gpus_per_replica} GPUs does not fit {offer.name} with {offer.gpus_per_instance:g}"
        raise ValueError(msg)
    return UsdPerReplicaHour(offer.price_usd_per_hour * gpus_per_replica / offer.gpus_per_instance)
