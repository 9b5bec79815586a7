"""Price lists of other tools, read into offers: gpuhunt's CSV (version 2) and SkyPilot's catalog CSV.

Neither carries the provider or the date of its prices; gpuhunt does not tell a GPU's form factor either.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.catalog.cells import (
    BYTES_PER_GIB,
    Row,
    UnknownGpuError,
    gpu_count_of,
    gpu_of,
    offer_name,
    price_of,
)
from planner.catalog.offers import join_notes
from planner.domain.hardware import Market, Offer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import date

    from planner.catalog.gpus import Alias, GpuCatalog

MEMORY_TOLERANCE_FRACTION = 0.15
"""How far a price list's GPU memory may be from the specification's: lists mix GB, GiB and what a driver reports
(A10G 22.35 or 24, B300 268.6 or 288), while a card with other memory differs by a third or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the file itself does not say about its prices."""

    provider: str
    as_of: date | None
    source: str


def gpuhunt_offers(row: Row, gpus: GpuCatalog, origin: Origin) -> Iterator[Offer]:
    """Yield the offer in one row of gpuhunt's CSV; nothing for a machine without GPUs.

    Raises
    ------
    InputError: if a value is wrong; names its place.
    """
    name = row.cells.get("gpu_name", "")
    if not name and row.optional_number("gpu_count") in {None, 0.0}:
        return
    gpu = _gpu_with_memory(row, gpus)
    market = Market.SPOT if row.choice("spot", ("True", "False")) == "True" else Market.ON_DEMAND
    yield _offer(
        origin,
        row,
        instance_type=row.text("instance_name"),
        region=row.text("location"),
        market=market,
        gpu=gpu,
        gpu_count=gpu_count_of(row, "gpu_count"),
        price_column="price",
        vcpus_column="cpu",
        ram_column="memory",
    )


def _gpu_with_memory(row: Row, gpus: GpuCatalog) -> Alias:
    """Return the GPU that a name and its memory in GB mean together: "A100" and 80 is not "A100" and 40."""
    name, memory_gb = row.text("gpu_name"), row.optional_number("gpu_memory")
    if memory_gb:
        exact = gpus.find(f"{name}-{memory_gb:.0f}GB")
        if exact is not None:
            return exact
    found = gpu_of(row, "gpu_name", gpus)
    known_gb = gpus.by_name[found.gpu].memory_bytes / 1e9
    if memory_gb and abs(memory_gb / known_gb - 1) > MEMORY_TOLERANCE_FRACTION:
        raise UnknownGpuError(
            f"No {name} with {memory_gb:g} GB is known; {found.gpu} has {known_gb:.0f} GB.", where=row.at("gpu_memory")
        )
    return found


def skypilot_offers(row: Row, gpus: GpuCatalog, origin: Origin) -> Iterator[Offer]:
    """Yield the offers in one row of SkyPilot's catalog: on demand (Price) and spot (SpotPrice), where priced.

    Raises
    ------
    InputError: if a value is wrong; names its place.
    """
    if not row.cells.get("AcceleratorName", ""):
        return
    gpu, gpu_count = gpu_of(row, "AcceleratorName", gpus), gpu_count_of(row, "AcceleratorCount")
    for market, column in ((Market.ON_DEMAND, "Price"), (Market.SPOT, "SpotPrice")):
        if row.cells.get(column, ""):
            yield _offer(
                origin,
                row,
                instance_type=row.cells.get("InstanceType") or f"{row.cells['AcceleratorName']}:{gpu_count:g}",
                region=row.text("Region"),
                zone=row.cells.get("AvailabilityZone") or None,
                market=market,
                gpu=gpu,
                gpu_count=gpu_count,
                price_column=column,
                vcpus_column="vCPUs",
                ram_column="MemoryGiB",
            )


def _offer(
    origin: Origin,
    row: Row,
    *,
    instance_type: str,
    region: str,
    market: Market,
    gpu: Alias,
    gpu_count: float,
    price_column: str,
    vcpus_column: str,
    ram_column: str,
    zone: str | None = None,
) -> Offer:
    provider, ram_gib = origin.provider, row.optional_number(ram_column)
    return Offer(
        name=offer_name(provider=provider, instance_type=instance_type, region=region, zone=zone, market=market),
        provider=provider,
        instance_type=instance_type,
        region=region,
        zone=zone,
        market=market,
        gpu=gpu.gpu,
        gpus_per_instance=gpu_count,
        price_usd_per_hour=price_of(row, price_column, provider=provider, region=region, market=market),
        vcpus=row.optional_number(vcpus_column),
        ram_bytes=None if ram_gib is None else ram_gib * BYTES_PER_GIB,
        as_of=origin.as_of,
        source=origin.source,
        notes=join_notes(gpu.note),
    )


def merge_zones(offers: Iterable[tuple[Offer, Row]]) -> Iterator[tuple[Offer, Row]]:
    """Yield one offer per region where all its zones have the same price, and one per zone elsewhere.

    SkyPilot writes a row per zone, though only spot prices differ between zones.
    """
    groups: dict[tuple[str, ...], list[tuple[Offer, Row]]] = defaultdict(list)
    for offer, row in offers:
        groups[offer.provider, offer.instance_type, offer.region, offer.market].append((offer, row))
    for group in groups.values():
        zones = [offer.zone for offer, _ in group]
        one_price = len({offer.price_usd_per_hour for offer, _ in group}) == 1
        if None in zones or len(set(zones)) < len(zones) or not one_price:
            yield from group
            continue
        offer, row = group[0]
        name = offer_name(
            provider=offer.provider,
            instance_type=offer.instance_type,
            region=offer.region,
            zone=None,
            market=offer.market,
        )
        yield replace(offer, name=name, zone=None), row
