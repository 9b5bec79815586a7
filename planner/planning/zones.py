"""Zones: an offer that is listed for a region becomes one offer per zone where zones matter to a rule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.catalog.offers import csv_rows
from planner.errors import InputError
from planner.files.bundled import bundled
from planner.files.documents import did_you_mean
from planner.files.request.catalog import ANY_PROVIDER
from planner.planning.located import at

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from planner.domain.hardware import Offer
    from planner.files.request import PlanRequest
    from planner.files.request.catalog import CatalogChoice

ZONES_FILE = "zones.csv"


def asks_for_zones(request: PlanRequest) -> bool:
    """Return whether a rule of `request` tells zones apart."""
    shares = [request.constraints.max_share, *(service.max_share for service in request.services)]
    return "zone" in request.constraints.survive or any(share and share.zone is not None for share in shares)


def check_zones(choice: CatalogChoice, offers: Sequence[Offer]) -> None:
    """Return if zones are stated of what is offered.

    Raises
    ------
    InputError: if zones are stated for a provider that has no offer.
    """
    known = {offer.provider for offer in offers}
    for provider in choice.zones_per_region:
        if provider != ANY_PROVIDER and provider not in known:
            raise InputError(
                f"There is no offer of {provider!r} to spread over zones.",
                hint=did_you_mean(provider, known) or f"Providers: {', '.join(sorted(known))}.",
                where=at(f"catalog.zones_per_region.{provider}"),
            )


def offers_by_zone(choice: CatalogChoice, offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """Return `offers` with one offer per zone in the place of each that names none, at the same price."""
    zones = _zones(choice)
    return tuple(part for offer in offers for part in _parts(offer, zones.get(offer.provider, zones[ANY_PROVIDER])))


def zone_assumptions(choice: CatalogChoice, offers: Sequence[Offer]) -> Iterator[str]:
    """Yield how many zones each provider's regions were taken to have.

    offers : as `offers_by_zone` returned them.
    """
    zones = _zones(choice)
    spread = sorted({offer.provider for offer in offers if offer.part_of})
    whole = {offer.provider for offer in offers if not offer.zone}
    stated = {name for name in whole if name in choice.zones_per_region or ANY_PROVIDER in choice.zones_per_region}
    if spread:
        counts = ", ".join(f"{name} {zones.get(name, zones[ANY_PROVIDER])}" for name in spread)
        yield (
            f"Zones per region: {counts}; each has every instance type of the region at the region's price. Zones are "
            "numbered, since which letter is which is the account's own."
        )
    if stated:
        yield f"One zone per region: {', '.join(sorted(stated))}, as stated."
    if whole - stated:
        yield f"One zone per region: {', '.join(sorted(whole - stated))}, of which no zones are known."


def _parts(offer: Offer, n_zones: int) -> Iterator[Offer]:
    if offer.zone or n_zones == 1:
        yield offer
        return
    for number in range(1, n_zones + 1):
        yield replace(offer, name=f"{offer.name}/zone-{number}", zone=f"zone-{number}", part_of=offer.name)


def _zones(choice: CatalogChoice) -> Mapping[str, int]:
    """Return the zones per region by provider; what the request states takes the place of the table."""
    if ANY_PROVIDER in choice.zones_per_region:
        return choice.zones_per_region
    rows = csv_rows(bundled("catalogs", ZONES_FILE).read_text(encoding="utf-8"), name=ZONES_FILE)
    listed = {row.text("provider"): round(row.number("zones_per_region")) for row in rows}
    return {ANY_PROVIDER: 1} | listed | dict(choice.zones_per_region)
