"""The catalog of a request: what may be rented, the user's own machines among it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.catalog.files import read_offers_file
from planner.catalog.offers import load_offers, with_own_offers
from planner.catalog.select import STALE_PRICES, OfferFilter, plannable, select_offers
from planner.domain.hardware import Market, Offer
from planner.errors import DataMissingError, InputError
from planner.planning.horizon import reserved_offers
from planner.planning.located import at, inside
from planner.units import UsdPerInstanceHour

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date
    from pathlib import Path

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.provenance import Warning_
    from planner.files.request.catalog import CatalogChoice

SECONDS_PER_DAY = 86400.0


def read_catalog(
    choice: CatalogChoice, *, gpus: GpuCatalog, base_dir: Path, today: date, strict: bool
) -> tuple[tuple[Offer, ...], tuple[Warning_, ...]]:
    """Return the offers that the request allows, and warnings about their prices."""
    offers = load_offers() if choice.bundled else ()
    for name in choice.files:
        offers = with_own_offers(offers, read_offers_file(base_dir / name, gpus=gpus))
    offers += tuple(owned_offers(choice, gpus))
    if not offers:
        raise InputError(
            "There is nothing to rent.",
            hint="Set catalog.bundled, catalog.files or catalog.owned.",
            where=at("catalog"),
        )
    wanted = OfferFilter(
        providers=_with_owned(choice.providers, choice),
        regions=_with_owned_regions(choice),
        gpus_include=choice.gpus.include,
        gpus_exclude=choice.gpus.exclude,
        markets=[*choice.markets, Market.OWNED] if choice.owned else choice.markets,
        max_price_age_days=choice.max_price_age / SECONDS_PER_DAY,
    )
    with inside("catalog"):
        selection = select_offers(offers, wanted, today=today, gpus=gpus)
    usable, more_warnings = plannable(selection.offers)
    if not usable:
        lost = ", ".join(f"{count} by {name}" for name, count in selection.n_dropped_by.items() if count)
        raise DataMissingError(
            f"No offer of whole GPUs is left of {len(offers)}; dropped: {lost or 'shares of GPUs'}.",
            hint="Widen the catalog's filters.",
            where=at("catalog"),
        )
    usable += reserved_offers(choice, usable, gpus)
    stale = [warning for warning in selection.warnings if warning.code == STALE_PRICES]
    if strict and stale:
        raise DataMissingError(
            stale[0].message, hint="Raise catalog.max_price_age, bring newer prices in catalog.files, or drop --strict."
        )
    others = tuple(warning for warning in selection.warnings if warning.code != STALE_PRICES)
    return usable, (*_at_most_a_few(stale), *others, *more_warnings)


MAX_STALE_PROVIDERS_NAMED = 3
"""A plan over the whole catalog would otherwise open with a page of old prices that it does not use."""


def _at_most_a_few(stale: list[Warning_]) -> list[Warning_]:
    """Return the warnings about stale prices, all but the oldest ones in one."""
    oldest_first = sorted(stale, key=lambda warning: -float(warning.observed or 0))
    named, rest = oldest_first[:MAX_STALE_PROVIDERS_NAMED], oldest_first[MAX_STALE_PROVIDERS_NAMED:]
    if not rest:
        return named
    message = f"{len(rest)} more providers have prices over the limit, up to {rest[0].observed} months old."
    return [*named, replace(rest[0], message=message)]


def _with_owned(providers: list[str] | None, choice: CatalogChoice) -> list[str] | None:
    return [*providers, OWNED_PROVIDER] if providers is not None and choice.owned else providers


def _with_owned_regions(choice: CatalogChoice) -> list[str] | None:
    if choice.regions is None:
        return None
    return [*choice.regions, *(owned.region for owned in choice.owned)]


OWNED_PROVIDER = "owned"
"""Provider name of the user's own machines."""


def owned_offers(choice: CatalogChoice, gpus: GpuCatalog) -> Iterator[Offer]:
    """Yield the machines that the user has."""
    for index, owned in enumerate(choice.owned):
        with inside(f"catalog.owned[{index}].gpu"):
            gpu = gpus.get(owned.gpu).name
        instance = f"{owned.gpus_per_instance}x{gpu}" + (f"-{index}" if index else "")
        yield Offer(
            name=f"{OWNED_PROVIDER}/{instance}/{owned.region}/{Market.OWNED}",
            provider=OWNED_PROVIDER,
            instance_type=instance,
            region=owned.region,
            market=Market.OWNED,
            gpu=gpu,
            gpus_per_instance=owned.gpus_per_instance,
            price_usd_per_hour=UsdPerInstanceHour(owned.price * owned.gpus_per_instance),
            available=owned.count // owned.gpus_per_instance,
            source="catalog.owned of the request",
        )
