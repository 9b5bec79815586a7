"""The periods of a request: each service's demand over them, and the prices of capacity that is reserved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.hardware import Market, Offer
from planner.domain.problem import Horizon
from planner.errors import InputError, Where
from planner.units import UsdPerInstanceHour, format_duration
from planner.workload.hourly import over_periods, read_hourly, trace_rates_rps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.workload import Trace
    from planner.files.request.catalog import CatalogChoice, CommitmentOffer
    from planner.files.request.horizon import HorizonChoice
    from planner.files.request.services import Service

REPEATS = "The horizon repeats: before its first period comes its last one."
SAME_SIZES = "The sizes of a service's requests are mixed alike in every period; only their rate changes."
_TERMS = {"1y": Market.RESERVED_1Y, "3y": Market.RESERVED_3Y}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """How a service's demand changes over the periods."""

    factors: tuple[float, ...]
    """Of the service's planned rate."""
    basis: str
    rate_rps: float | None = None
    """The mean rate over the horizon, where the demand by the hour states rates and the request none."""
    name: str = ""
    sha256: str = ""
    """Of the file that it was read from."""


def stated_rhythm(service: Service, choice: HorizonChoice, *, base_dir: Path) -> Rhythm | None:
    """Return the demand over the periods that `by_hour` states; None where there is none.

    Rates are a shape where the workload states its own (mean) rate, and what is planned for where it does not. Factors
    multiply the workload's rate as they are.

    Raises
    ------
    InputError: if the file is wrong, or gives factors of a rate that is not stated.
    """
    workload = service.workload
    if workload.by_hour is None:
        return None
    hourly = read_hourly(workload.by_hour, base_dir=base_dir)
    values = over_periods(hourly, n_periods=choice.n_periods, step_s=choice.step)
    mean = float(values.mean())
    if mean <= 0:
        raise InputError(f"{hourly.name} asks for nothing within the horizon.", hint="Give hours with requests.")
    if hourly.is_rate:
        shape = values / mean
        rate = None if workload.rate is not None else mean
        words = f"rates by the hour of {hourly.name}"
    else:
        if workload.rate is None and workload.trace is None:
            raise InputError(f"{hourly.name} gives factors of a rate that is not stated.", hint="rate: 30 req/s")
        shape, rate, words = values, None, f"factors by the hour of {hourly.name}"
    return Rhythm(factors=tuple(shape.tolist()), basis=words, rate_rps=rate, name=hourly.name, sha256=hourly.sha256)


def own_rhythm(trace: Trace | None, choice: HorizonChoice) -> Rhythm:
    """Return the demand over the periods that a trace has itself; the same in all of them where it has none."""
    rates = None if trace is None else trace_rates_rps(trace, n_periods=choice.n_periods, step_s=choice.step)
    if rates is None or rates.mean() <= 0:
        return Rhythm(
            factors=(1.0,) * choice.n_periods, basis="the same in every period, as nothing says how it changes"
        )
    whole = format_duration(choice.periods)
    return Rhythm(factors=tuple((rates / rates.mean()).tolist()), basis=f"as in the first {whole} of the trace")


def horizon_of(choice: HorizonChoice, rhythms: dict[str, Rhythm]) -> Horizon:
    """Return the periods that the request asks for."""
    return Horizon(
        step_s=choice.step,
        factors={service: rhythm.factors for service, rhythm in rhythms.items()},
        start_up_s=choice.start_up or 0.0,
        minimum_lease_s=choice.minimum_lease or 0.0,
    )


def horizon_assumptions(choice: HorizonChoice, rhythms: dict[str, Rhythm]) -> Iterator[str]:
    """Yield what a schedule takes for granted."""
    yield f"{choice.n_periods} periods of {format_duration(choice.step)}. {REPEATS}"
    for service, rhythm in rhythms.items():
        peak = float(np.max(rhythm.factors) / np.mean(rhythm.factors))
        yield f"{service}: demand over the periods is {rhythm.basis}; its peak is {peak:.3g} times its mean."
    yield SAME_SIZES
    if choice.start_up:
        yield f"An instance is rented {format_duration(choice.start_up)} before the period it first serves in."
    if choice.minimum_lease:
        yield f"An instance that serves is kept for at least {format_duration(choice.minimum_lease)}, in whole periods."


def reserved_offers(choice: CatalogChoice, offers: Sequence[Offer], gpus: GpuCatalog) -> tuple[Offer, ...]:
    """Return the reserved offers that the request's commitments make of its on-demand ones.

    Raises
    ------
    InputError: if a commitment is on a GPU or an offer that cannot be rented on demand.
    """
    found: dict[str, Offer] = {}
    for index, commitment in enumerate(choice.commitments):
        matching = list(_on_demand(commitment, offers, gpus))
        if not matching:
            what = commitment.gpu or commitment.offer
            raise InputError(
                f"There is no on-demand offer of {what!r} to reserve.",
                hint="Let catalog.markets have on-demand, and check the name with: gpuplan catalog list",
                where=Where(field=f"catalog.commitments[{index}]"),
            )
        for offer in matching:
            reserved = _reserved(offer, commitment)
            cheapest = found.get(reserved.name, reserved)
            found[reserved.name] = min(cheapest, reserved, key=lambda each: each.price_usd_per_hour)
    return tuple(found.values())


def _on_demand(commitment: CommitmentOffer, offers: Sequence[Offer], gpus: GpuCatalog) -> Iterator[Offer]:
    gpu = gpus.get(commitment.gpu).name if commitment.gpu is not None else None
    for offer in offers:
        if offer.market is Market.ON_DEMAND and commitment.offer in {None, offer.name} and gpu in {None, offer.gpu}:
            yield offer


def _reserved(offer: Offer, commitment: CommitmentOffer) -> Offer:
    market = _TERMS[commitment.term]
    stem = offer.name.removesuffix(f"/{Market.ON_DEMAND}")
    return replace(
        offer,
        name=f"{stem}/{market}",
        market=market,
        price_usd_per_hour=UsdPerInstanceHour(round(offer.price_usd_per_hour * (1 - commitment.discount), 9)),
        available=commitment.max_instances,
        source=f"catalog.commitments of the request: {commitment.discount:.4g} off {offer.name}",
    )


def commitment_assumptions(choice: CatalogChoice) -> Iterator[str]:
    """Yield the prices of reserved capacity as the request states them."""
    for item in choice.commitments:
        what = item.gpu or item.offer
        yield (
            f"Reserved {what} for {item.term} costs {item.discount:.1%} less than on demand: the request's word, in no "
            "catalog. It is paid in every period, and for the whole term."
        )
