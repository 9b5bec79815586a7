"""Spot capacity: how often it is reclaimed, and how much of it counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.catalog.spot import reclaims_per_month
from planner.domain.hardware import Market
from planner.errors import InputError
from planner.files.documents import did_you_mean
from planner.planning.located import at
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.domain.hardware import Offer
    from planner.files.request import PlanRequest

MONTH_S = 30 * 86400.0
"""The window that interruption rates are published for: the trailing month."""


def with_reclaims(request: PlanRequest, offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """Return `offers`, the spot ones with how often they are reclaimed, where that is known.

    Raises
    ------
    InputError: if the request states a rate for what is not offered on spot.
    """
    stated = request.catalog.spot_interruptions
    spot = [offer for offer in offers if offer.market is Market.SPOT]
    known = {name for offer in spot for name in (offer.listing, offer.provider)}
    for name in stated:
        if name not in known:
            raise InputError(
                f"Nothing is offered on spot as {name!r}.",
                hint=did_you_mean(name, known) or "Name a provider or an offer, and have spot in catalog.markets.",
                where=at(f"catalog.spot_interruptions.{name}"),
            )
    return tuple(
        replace(offer, reclaims_per_month=reclaims_per_month(offer, stated)) if offer.market is Market.SPOT else offer
        for offer in offers
    )


def availability(request: PlanRequest, offer: Offer) -> float:
    """Return the part of the time that a replica on `offer` runs: A = 1 / (1 + r T).

    r: reclaims per instance and second; T: seconds until a replacement serves. What the request states as a whole goes
    first; 1 where r or T is not known, and off spot.
    """
    if offer.market is not Market.SPOT:
        return 1.0
    if request.catalog.spot_availability is not None:
        return request.catalog.spot_availability
    recovery_s = recovery_time_s(request)
    if recovery_s is None or offer.reclaims_per_month is None:
        return 1.0
    return 1.0 / (1.0 + offer.reclaims_per_month / MONTH_S * recovery_s)


def recovery_time_s(request: PlanRequest) -> float | None:
    """Return how long it takes until a replacement of a reclaimed instance serves; None = not stated."""
    start_up_s = request.horizon.start_up if request.horizon is not None else None
    return request.catalog.spot_recovery or start_up_s


def spot_assumptions(request: PlanRequest, offers: Sequence[Offer]) -> Iterator[str]:
    """Yield how much of spot capacity counts, and why."""
    spot = [offer for offer in offers if offer.market is Market.SPOT]
    if not spot:
        return
    stated = request.catalog.spot_availability
    if stated is not None:
        if stated < 1:
            yield (
                f"A spot replica runs {stated:.4g} of the time: its throughput counts for so much, whenever it is"
                " reclaimed."
            )
        return
    recovery_s = recovery_time_s(request)
    known = [offer for offer in spot if offer.reclaims_per_month is not None]
    if known and recovery_s is not None:
        least = min(availability(request, offer) for offer in known)
        yield (
            f"A reclaimed spot replica serves again after {format_duration(recovery_s)}: spot counts for {least:.2%} or"
            " more of its capacity, by how often each instance type is reclaimed."
        )
    if known and recovery_s is None:
        yield "Spot counts for all of its capacity: nothing says how long a replacement takes (catalog.spot_recovery)."
    if len(known) < len(spot):
        names = ", ".join(sorted({offer.provider for offer in spot if offer.reclaims_per_month is None}))
        yield (
            f"How often spot is reclaimed is not known of {len(spot) - len(known)} of {len(spot)} offers ({names}):"
            " they count for all of their capacity (catalog.spot_interruptions)."
        )
