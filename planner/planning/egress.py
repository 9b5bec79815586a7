"""Where a request's users are: the price of serving them from elsewhere, and the time that the way there takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.catalog.files import read_offers_file
from planner.catalog.offers import load_offers
from planner.domain.egress import Egress
from planner.domain.slo import Metric
from planner.errors import InputError
from planner.files.documents import did_you_mean
from planner.planning.located import at
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.hardware import Offer
    from planner.domain.slo import Slo
    from planner.files.request import PlanRequest

SUM_TOLERANCE = 1e-6
LEAST_BOUND_S = 1e-6
"""What is left of a bound that the way alone takes: nothing is served in a microsecond."""


def egress_of(request: PlanRequest, offers: Sequence[Offer], *, gpus: GpuCatalog, base_dir: Path) -> Egress | None:
    """Return where the users of the services are; None if the request does not say.

    Raises
    ------
    InputError: if the parts of a service's users do not sum to 1, one of users and price is missing, users are in a
        region that no catalog has, or the way to everything that is offered takes a bound whole.
    """
    users = {service.name: service.users for service in request.services if service.users is not None}
    choice = request.catalog.egress
    if choice is None:
        if users:
            raise InputError(
                "It is said where users are, and not what it costs to serve them from elsewhere.",
                hint="catalog: {egress: 0.02 USD/GB}, or 0 USD/GB if that costs nothing.",
                where=at("services"),
            )
        return None
    if not users:
        raise InputError(
            "Egress has a price, and no service says where its users are.",
            hint="Give a service users: us-east-1.",
            where=at("catalog.egress"),
        )
    for index, service in enumerate(request.services):
        if service.users is not None and abs(sum(service.users.values()) - 1) > SUM_TOLERANCE:
            raise InputError(
                f"The users of {service.name} sum to {sum(service.users.values()):.4g} of them.",
                hint="The parts must sum to 100%.",
                where=at(f"services[{index}].users"),
            )
    _check_regions(request, offers, gpus, base_dir)
    egress = Egress(users=users, usd_per_gb=choice.price, bytes_per_token=choice.bytes_per_token)
    _check_round_trip(request, offers, egress, choice.round_trip or 0.0)
    return egress


def _check_regions(request: PlanRequest, offers: Sequence[Offer], gpus: GpuCatalog, base_dir: Path) -> None:
    """Refuse users in regions that no catalog has; regions that the request leaves out may still have users."""
    offered = {offer.region for offer in offers} | {owned.region for owned in request.catalog.owned}
    for index, service in enumerate(request.services):
        for region in service.users or ():
            if region in offered:
                continue
            own = (offer for name in request.catalog.files for offer in read_offers_file(base_dir / name, gpus=gpus))
            known = offered | {offer.region for offer in (*load_offers(), *own)}
            if region not in known:
                raise InputError(
                    f"{region!r} is no region of a catalog.",
                    hint=did_you_mean(region, known) or "Name the region that is nearest to these users.",
                    where=at(f"services[{index}].users"),
                )


def _check_round_trip(request: PlanRequest, offers: Sequence[Offer], egress: Egress, round_trip_s: float) -> None:
    """Refuse a way that takes the whole of a bound of users whom nothing that is offered serves without it."""
    for service in request.services:
        bounds = [(slo.bound_s, str(slo.metric)) for slo in service.slo if slo.metric is not Metric.TPOT]
        if not bounds or not all(egress.away(service.name, offer) > 0 for offer in offers):
            continue
        bound_s, metric = min(bounds)
        if round_trip_s >= bound_s:
            raise InputError(
                f"A round trip of {format_duration(round_trip_s)} leaves nothing of the {metric} bound of"
                f" {service.name}, {format_duration(bound_s)}: whatever is offered has users of another region.",
                hint="Shorten it, loosen the bound, or give each region's users a service of their own.",
                where=at("catalog.egress.round_trip"),
            )


def slos_from(slos: Sequence[Slo], service: str, offer: Offer, egress: Egress | None, round_trip_s: float) -> list[Slo]:
    """Return the objectives that a replica on `offer` must meet so that users elsewhere see `slos`."""
    if egress is None or not round_trip_s or egress.away(service, offer) <= 0:
        return list(slos)
    return [
        slo if slo.metric is Metric.TPOT else replace(slo, bound_s=max(slo.bound_s - round_trip_s, LEAST_BOUND_S))
        for slo in slos
    ]


def egress_assumptions(request: PlanRequest, offers: Sequence[Offer]) -> Iterator[str]:
    """Yield how traffic to users in other regions was counted."""
    choice = request.catalog.egress
    if choice is None:
        return
    default = (
        ""
        if "bytes_per_token" in choice.model_fields_set
        else " (plain English text, the least there is: answers streamed as JSON events take hundreds;"
        " catalog.egress.bytes_per_token)"
    )
    yield (
        f"Prompts and answers between regions cost {choice.price:g} USD/GB at {choice.bytes_per_token:g} bytes per"
        f" token{default}; the routing weights are the same for users everywhere."
    )
    if choice.round_trip is not None:
        yield (
            f"A round trip between regions of {format_duration(choice.round_trip)} is taken off the TTFT and E2E bounds"
            " wherever users of another region may be served."
        )
    served = {offer.region for offer in offers}
    for service in request.services:
        absent = [region for region in service.users or () if region not in served]
        if absent:
            names = ", ".join(absent)
            yield f"{service.name}: nothing is offered in {names}; its users there are served from elsewhere."
