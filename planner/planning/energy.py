"""The electricity of a request: what is known of each place, and what the request says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.catalog.carbon_hours import read_carbon_hours
from planner.catalog.sites import known_site
from planner.domain.energy import Energy, Site
from planner.domain.problem import EnergyBudget, Measure
from planner.domain.provenance import Warning_
from planner.errors import InputError
from planner.files.documents import did_you_mean
from planner.planning.located import at, inside
from planner.workload.hourly import hours_over_periods

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from planner.domain.hardware import Offer
    from planner.domain.problem import FleetProblem, Rule
    from planner.files.request import PlanRequest
    from planner.files.request.catalog import CatalogChoice
    from planner.files.request.constraints import Constraints
    from planner.files.request.energy import SiteChoice

KG_PER_TONNE = 1000.0
ENERGY_ASSUMPTION = (
    "Mean power counts GPUs that run replicas, linear in their load from idle to full, with each site's PUE; hosts, "
    "spare GPUs and machines that start up are not in it."
)


def energy_of(request: PlanRequest, offers: Sequence[Offer], *, base_dir: Path) -> Energy:
    """Return the electricity of every place that an offer stands in.

    Raises
    ------
    InputError: if the request describes a site in which nothing can be rented, or its intensities are wrong.
    """
    _check_names(request.catalog, offers)
    places = sorted({(offer.provider, offer.region) for offer in offers})
    sites = {place: _stated(known_site(*place), request.catalog.sites.get(place[1])) for place in places}
    hourly = _by_hour(request, {offer.region for offer in offers}, base_dir)
    carbon = request.constraints.carbon
    return Energy(
        sites={
            (provider, region): replace(site, carbon_g_per_kwh=hourly.get(region, site.carbon_g_per_kwh))
            for (provider, region), site in sites.items()
        },
        carbon_usd_per_kg=(carbon.price or 0.0) if carbon is not None else 0.0,
    )


def counts_carbon(request: PlanRequest) -> bool:
    """Return whether the request limits, prices or minimises emissions."""
    carbon = request.constraints.carbon
    is_limited = carbon is not None and (carbon.max is not None or bool(carbon.price))
    return is_limited or any(Measure.CARBON in stage for stage in request.objective.minimise)


def of_known_intensity(offers: tuple[Offer, ...], energy: Energy) -> tuple[tuple[Offer, ...], tuple[Warning_, ...]]:
    """Return the offers in places of known intensity, and a warning if others are left out.

    Raises
    ------
    InputError: if none is left.
    """
    known = tuple(offer for offer in offers if _intensity(energy, offer))
    n_unknown = len(offers) - len(known)
    if not n_unknown:
        return offers, ()
    places = sorted({f"{offer.region} ({offer.provider})" for offer in offers if not _intensity(energy, offer)})
    named = ", ".join(places[:MAX_PLACES])
    if not known:
        raise InputError(
            f"Carbon is counted, and what a kWh emits is not known in {named}.",
            hint="State it: catalog.sites: {dc1: {carbon: 230 g/kWh}}.",
            where=at("catalog.sites"),
        )
    more = f" and {len(places) - MAX_PLACES} more places" if len(places) > MAX_PLACES else ""
    message = f"{n_unknown} offers in {named}{more} are left out: what a kWh emits there is not known."
    return known, (Warning_(code=UNKNOWN_INTENSITY, message=message, observed=n_unknown),)


def with_known_intensity(problem: FleetProblem) -> tuple[FleetProblem, tuple[Warning_, ...]]:
    """Return `problem` with the options in places of known intensity alone, and a warning if others are left out."""
    if problem.energy is None:
        return problem, ()
    offers = {option.offer.name: option.offer for option in problem.options}
    known, warnings = of_known_intensity(tuple(offers.values()), problem.energy)
    names = {offer.name for offer in known}
    return replace(problem, options=tuple(each for each in problem.options if each.offer.name in names)), warnings


def _intensity(energy: Energy, offer: Offer) -> tuple[float, ...]:
    site = energy.site(offer)
    return () if site is None else site.carbon_g_per_kwh


UNKNOWN_INTENSITY = "W205"
MAX_PLACES = 3
"""Places that a message names."""


def energy_rules(constraints: Constraints) -> Iterator[Rule]:
    """Yield the budgets of energy and carbon."""
    if constraints.carbon is not None and constraints.carbon.max is not None:
        yield EnergyBudget(name="carbon", measure=Measure.CARBON, bound=constraints.carbon.max)
    if constraints.energy is not None:
        yield EnergyBudget(name="energy", measure=Measure.ENERGY, bound=constraints.energy.max)


def price_assumptions(request: PlanRequest) -> Iterator[str]:
    """Yield what is paid for electricity and emissions."""
    carbon = request.constraints.carbon
    if carbon is not None and carbon.price:
        price = f"{carbon.price * KG_PER_TONNE:g} USD/t"
        yield f"Emissions cost {price}; that is minimised with the cost, and stands beside it."
    if request.catalog.carbon_by_hour is not None:
        name = request.catalog.carbon_by_hour
        yield f"What a kWh emits changes by the hour as in {name}; its hours are those of the demand."
    for name, site in request.catalog.sites.items():
        if site.energy_price:
            yield f"Electricity in {name} costs {site.energy_price:g} USD/kWh on top of its machines' price."


def _by_hour(request: PlanRequest, regions: set[str], base_dir: Path) -> dict[str, tuple[float, ...]]:
    """Return the intensity of every period by region, of the regions that the request's file has."""
    name, horizon = request.catalog.carbon_by_hour, request.horizon
    if name is None:
        return {}
    if horizon is None:
        raise InputError(
            f"{name} has intensities by the hour, and there is no horizon to plan over.",
            hint="Add horizon: {periods: 24h, step: 1h}.",
            where=at("catalog.carbon_by_hour"),
        )
    with inside("catalog.carbon_by_hour"):
        hours = read_carbon_hours(base_dir / name)
        if not regions & set(hours):
            raise InputError(
                f"There is no offer in any region of {name}: {', '.join(sorted(hours)[:MAX_PLACES])}.",
                hint=f"Regions with offers: {', '.join(sorted(regions)[:20])}.",
            )
    return {
        region: tuple(
            hours_over_periods(values, name=f"{name} ({region})", n_periods=horizon.n_periods, step_s=horizon.step)
        )
        for region, values in hours.items()
    }


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
        usd_per_kwh=choice.energy_price,
    )
