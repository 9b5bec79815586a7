"""Settings that change nothing beside what else a request says: the plan says so, lest they be taken for kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.domain.hardware import Market
from planner.planning.zones import asks_for_zones

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.domain.hardware import Offer
    from planner.files.request import PlanRequest


def unused_settings(request: PlanRequest, offers: Sequence[Offer]) -> Iterator[str]:
    """Yield which settings of `request` have no use, and why."""
    catalog = request.catalog
    has_spot = any(offer.market is Market.SPOT for offer in offers)
    if catalog.spot_recovery is not None and not has_spot:
        yield "catalog.spot_recovery is not used: nothing is offered on spot (catalog.markets)."
    shares = [request.constraints.spot_share, *(service.spot_share for service in request.services)]
    if not has_spot and any(share is not None for share in shares):
        yield "spot_share is not used: nothing is offered on spot (catalog.markets)."
    if has_spot and catalog.spot_availability is not None:
        if catalog.spot_recovery is not None:
            yield "catalog.spot_recovery is not used: catalog.spot_availability says what counts."
        if catalog.spot_interruptions:
            yield "catalog.spot_interruptions cost no capacity: catalog.spot_availability says what counts."
    if catalog.zones_per_region and not asks_for_zones(request):
        yield "catalog.zones_per_region is not used: no rule tells zones apart (survive: [zone], max_share)."
    for service in request.services:
        if service.engine.kv_transfer is not None and service.disaggregate == "never":
            yield f"{service.name}: engine.kv_transfer is not used, since nothing is disaggregated (disaggregate)."
