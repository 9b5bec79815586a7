"""The electricity of a request: what is known of each place, and what the request says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.catalog.sites import known_site
from planner.domain.energy import Energy, Site
from planner.errors import InputError
from planner.files.documents import did_you_mean
from planner.planning.located import at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.domain.hardware import Offer
    from planner.files.request import PlanRequest
    from planner.files.request.catalog import CatalogChoice
    from planner.files.request.energy import SiteChoice

ENERGY_ASSUMPTION = (
    "Mean power counts GPUs that run replicas, linear in their load from idle to full, with each site's PUE; hosts, "
    "spare GPUs and machines that start up are not in it."
)


def energy_of(request: PlanRequest, offers: Sequence[Offer]) -> Energy:
    """Return the electricity of every place that an offer stands in.

    Raises
    ------
    InputError: if the request describes a site in which nothing can be rented.
    """
    _check_names(request.catalog, offers)
    places = sorted({(offer.provider, offer.region) for offer in offers})
    return Energy(sites={place: _stated(known_site(*place), request.catalog.sites.get(place[1])) for place in places})


def _check_names(choice: CatalogChoice, offers: Sequence[Offer]) -> None:
    regions = {offer.region for offer in offers}
    for name in choice.sites:
        if name not in regions:
            raise InputError(
                f"There is no offer in the region {name!r}.",
                hint=did_you_mean(name, regions) or f"Regions with offers: {', '.join(sorted(regions)[:20])}.",
                where=at(f"catalog.sites.{name}"),
            )


def _stated(site: Site, choice: SiteChoice | None) -> Site:
    """Return `site` with what the request says of it."""
    if choice is None:
        return site
    return replace(
        site,
        pue=site.pue if choice.pue is None else choice.pue,
        carbon_g_per_kwh=site.carbon_g_per_kwh if choice.carbon is None else (choice.carbon,),
    )
