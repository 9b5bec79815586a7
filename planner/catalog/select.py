"""Choosing offers: by provider, region, GPU and market, and how old their prices are."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from planner.domain.hardware import Market, Offer
from planner.domain.provenance import Warning_
from planner.errors import DataMissingError, InputError, Where
from planner.files.documents import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import date

    from planner.catalog.gpus import GpuCatalog

DEFAULT_MAX_PRICE_AGE_DAYS = 180.0
"""Age from which a price is warned of: between its lists of 2024-02 and 2026-07 AWS cut p5 by 44% and p4d by 33%."""

DAYS_PER_MONTH = 365.25 / 12

STALE_PRICES = "W201"
UNDATED_PRICES = "W202"
GPU_SHARES = "W203"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferFilter:
    """What may be rented; None = any. A region may have wildcards ("us-*"); a GPU may be a family ("A100")."""

    providers: Sequence[str] | None = None
    regions: Sequence[str] | None = None
    gpus_include: Sequence[str] | None = None
    gpus_exclude: Sequence[str] = ()
    markets: Sequence[Market] | None = None
    max_price_age_days: float = DEFAULT_MAX_PRICE_AGE_DAYS
    """Older prices are warned of, not dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The offers that a filter lets through."""

    offers: tuple[Offer, ...]
    warnings: tuple[Warning_, ...]
    n_dropped_by: Mapping[str, int]
    """Filter ("provider", "region", "gpu", "market") -> offers that it was the first to drop."""


def select_offers(offers: Sequence[Offer], wanted: OfferFilter, *, today: date, gpus: GpuCatalog) -> Selection:
    """Return the offers that `wanted` lets through, in their order, and a warning per provider with stale prices.

    Raises
    ------
    InputError: if a provider, region or GPU in the filter matches no offer at all.
    DataMissingError: if a GPU in it is not known.
    """
    keep = _tests(offers, wanted, gpus)
    dropped = dict.fromkeys(keep, 0)
    selected = []
    for offer in offers:
        failed = next((name for name, test in keep.items() if not test(offer)), None)
        if failed is None:
            selected.append(offer)
        else:
            dropped[failed] += 1
    return Selection(
        offers=tuple(selected),
        warnings=price_warnings(selected, today=today, max_age_days=wanted.max_price_age_days),
        n_dropped_by=dropped,
    )


def _tests(offers: Sequence[Offer], wanted: OfferFilter, gpus: GpuCatalog) -> dict[str, Callable[[Offer], bool]]:
    """Return the filters as tests by name; None filters let everything through."""
    tests: dict[str, Callable[[Offer], bool]] = {}
    if wanted.providers is not None:
        providers = _matches(wanted.providers, {offer.provider for offer in offers}, what="provider")
        tests["provider"] = lambda offer: offer.provider in providers
    if wanted.regions is not None:
        regions = _matches(wanted.regions, {offer.region for offer in offers}, what="region")
        tests["region"] = lambda offer: offer.region in regions
    if wanted.gpus_include is not None or wanted.gpus_exclude:
        names = _gpu_names(offers, wanted, gpus)
        tests["gpu"] = lambda offer: offer.gpu in names
    if wanted.markets is not None:
        markets = frozenset(wanted.markets)
        tests["market"] = lambda offer: offer.market in markets
    return tests


def _matches(patterns: Iterable[str], known: Iterable[str], *, what: str) -> frozenset[str]:
    """Return the `known` names that any of the `patterns` matches, ignoring case.

    Raises
    ------
    InputError: if a pattern matches none.
    """
    names = sorted(known)
    matched: set[str] = set()
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name.casefold(), pattern.casefold())]
        if not hits:
            shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
            hint = did_you_mean(pattern, names) or f"There are offers of: {shown}."
            raise InputError(f"No offer is of the {what} {pattern!r}.", hint=hint, where=Where(field=f"{what}s"))
        matched.update(hits)
    return frozenset(matched)


def _gpu_names(offers: Sequence[Offer], wanted: OfferFilter, gpus: GpuCatalog) -> frozenset[str]:
    offered = {offer.gpu for offer in offers}
    included = offered
    if wanted.gpus_include is not None:
        included = set()
        for name in wanted.gpus_include:
            meant = offered & set(_known(name, gpus))
            if not meant:
                hint = did_you_mean(name, offered) or "See: gpuplan catalog gpus"
                raise InputError(f"No offer has the GPU {name!r}.", hint=hint, where=Where(field="gpus"))
            included |= meant
    excluded = {member for name in wanted.gpus_exclude for member in _known(name, gpus)}
    return frozenset(included - excluded)


def _known(name: str, gpus: GpuCatalog) -> tuple[str, ...]:
    try:
        return gpus.matching(name)
    except DataMissingError as error:
        error.where = Where(field="gpus")
        raise


def age_months(as_of: date, today: date) -> float:
    """Return the age of a price in months.

    Examples
    --------
    >>> from datetime import date
    >>> round(age_months(date(2026, 5, 21), date(2026, 11, 21)), 1)
    6.0
    """
    return (today - as_of).days / DAYS_PER_MONTH


def price_warnings(offers: Iterable[Offer], *, today: date, max_age_days: float) -> tuple[Warning_, ...]:
    """Return one warning per provider whose prices are older than `max_age_days`, or have no date."""
    by_provider: dict[str, list[Offer]] = defaultdict(list)
    for offer in offers:
        if offer.market is not Market.OWNED:
            by_provider[offer.provider].append(offer)
    warnings = []
    for provider, theirs in by_provider.items():
        dates = [offer.as_of for offer in theirs if offer.as_of is not None]
        stale = [as_of for as_of in dates if (today - as_of).days > max_age_days]
        if stale:
            warnings.append(_stale(provider, stale, len(theirs), today=today, max_age_days=max_age_days))
        if len(dates) < len(theirs):
            warnings.append(
                Warning_(
                    code=UNDATED_PRICES,
                    message=f"{provider}: {_of(len(theirs) - len(dates), len(theirs))} without a date; perhaps stale.",
                    observed=len(theirs) - len(dates),
                )
            )
    return tuple(warnings)


def _stale(provider: str, stale: Sequence[date], n_offers: int, *, today: date, max_age_days: float) -> Warning_:
    oldest = min(stale)
    months = age_months(oldest, today)
    return Warning_(
        code=STALE_PRICES,
        message=(
            f"{provider}: {_of(len(stale), n_offers)} up to {(today - oldest).days} days ({months:.1f} months) old,"
            f" as of {oldest}; the limit is {max_age_days:g} days."
        ),
        observed=round(months, 1),
        threshold=round(max_age_days / DAYS_PER_MONTH, 1),
    )


def _of(n: int, total: int) -> str:
    return f"all {total} prices" if n == total > 1 else f"{n} of {total} prices"


def plannable(offers: Iterable[Offer]) -> tuple[tuple[Offer, ...], tuple[Warning_, ...]]:
    """Return the offers of whole GPUs, and a warning that counts the others: shares of a GPU are not planned on."""
    every = tuple(offers)
    whole = tuple(offer for offer in every if float(offer.gpus_per_instance).is_integer())
    n_shares = len(every) - len(whole)
    if not n_shares:
        return whole, ()
    message = f"{n_shares} offers of a share of a GPU are left out: no profile tells what a share can serve."
    return whole, (Warning_(code=GPU_SHARES, message=message, observed=n_shares),)
