"""Cells of a table of offers: text turned into values, with errors that name file, line, column and value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.domain.hardware import Market, Offer
from planner.errors import InputError, PlannerError, Where
from planner.files.documents import did_you_mean
from planner.units import UsdPerInstanceHour

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from planner.catalog.gpus import Alias, GpuCatalog

CNY_REGIONS: Mapping[str, str] = MappingProxyType({"aws": "cn-", "azure": "china"})
"""Provider -> prefix of the regions that it bills in Chinese yuan, whatever a price list calls the column."""

BYTES_PER_GIB = 2.0**30
BYTES_PER_GBIT = 1e9 / 8

MAX_GPUS_PER_INSTANCE = 1024
"""No machine has more; a larger number is another column or a number of bytes."""


class CurrencyError(InputError):
    """A price that is not in US dollars."""

    code = "not-usd"


class UnknownGpuError(InputError):
    """An offer of a GPU that the catalog has no specification of, or of no whole or partial GPU at all."""

    code = "unknown-gpu"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: column name -> text, and where it stands."""

    cells: Mapping[str, str]
    where: Where

    def at(self, column: str) -> Where:
        """Return the place of one cell."""
        return Where(path=self.where.path, line=self.where.line, column=self.where.column, field=column)

    def text(self, column: str) -> str:
        """Return the cell's text; an empty cell is an error."""
        value = self.cells.get(column, "")
        if not value:
            raise InputError("The cell is empty.", hint="Every offer needs this value.", where=self.at(column))
        return value

    def number(self, column: str) -> float:
        """Return the cell as a finite number that is not negative; an empty cell is an error."""
        value = self.optional_number(column)
        if value is None:
            raise InputError("The cell is empty.", hint="Every offer needs this number.", where=self.at(column))
        return value

    def optional_number(self, column: str) -> float | None:
        """Return the cell as a finite number that is not negative; None if it is empty."""
        text = self.cells.get(column, "")
        if not text:
            return None
        try:
            value = float(text) if "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            hint = "Write it as 2.49: no unit, no thousands separator."
            raise InputError(f"{text!r} is not a finite number.", hint=hint, where=self.at(column))
        if value < 0:
            raise InputError(f"{text} is negative.", where=self.at(column))
        return value

    def optional_date(self, column: str) -> date | None:
        """Return the cell as a date; None if it is empty."""
        text = self.cells.get(column, "")
        if not text:
            return None
        try:
            return date.fromisoformat(text)
        except ValueError as error:
            hint = "Write it as 2026-07-20."
            raise InputError(f"{text!r} is not a date.", hint=hint, where=self.at(column)) from error

    def choice(self, column: str, choices: Iterable[str]) -> str:
        """Return the cell's text if it is one of `choices`."""
        value, known = self.text(column), list(choices)
        if value not in known:
            hint = did_you_mean(value, known) or f"Use one of {', '.join(known)}."
            raise InputError(f"{value!r} is not known here.", hint=hint, where=self.at(column))
        return value


def gpu_of(row: Row, column: str, gpus: GpuCatalog) -> Alias:
    """Return the GPU that the cell names.

    Raises
    ------
    UnknownGpuError: if the catalog has no such GPU.
    """
    name = row.text(column)
    found = gpus.find(name)
    if found is None:
        hint = did_you_mean(name, gpus.by_name) or "`gpuplan catalog gpus` shows the GPUs that are known."
        raise UnknownGpuError(f"The GPU {name!r} is not known.", hint=hint, where=row.at(column))
    return found


def gpu_count_of(row: Row, column: str) -> float:
    """Return a number of GPUs, above 0 and at most `MAX_GPUS_PER_INSTANCE`; a fraction for a share of a GPU."""
    count = row.number(column)
    if count <= 0:
        hint = "For a share of a GPU write its fraction, e.g. 0.125."
        raise UnknownGpuError("An offer of 0 GPUs cannot be planned with.", hint=hint, where=row.at(column))
    if count > MAX_GPUS_PER_INSTANCE:
        raise InputError(
            f"{count:g} GPUs in one instance are more than {MAX_GPUS_PER_INSTANCE}.",
            hint="Give the GPUs of ONE instance; how many instances there are goes into `available`.",
            where=row.at(column),
        )
    return count


def price_of(row: Row, column: str, *, provider: str, region: str, market: Market) -> UsdPerInstanceHour:
    """Return a price in USD per instance and hour; above 0, except for machines that are owned.

    Raises
    ------
    CurrencyError: if the provider bills this region in another currency.
    """
    prefix = CNY_REGIONS.get(provider)
    if prefix and region.startswith(prefix):
        raise CurrencyError(
            f"{provider} bills {region} in Chinese yuan, and this column must be US dollars.",
            hint="Remove the row, or convert the price and name the region differently.",
            where=row.at(column),
        )
    price = row.number(column)
    if price == 0 and market is not Market.OWNED:
        hint = "Leave out what has no price; only market 'owned' may cost 0."
        raise InputError("The price is 0.", hint=hint, where=row.at(column))
    return UsdPerInstanceHour(price)


def offer_name(*, provider: str, instance_type: str, region: str, zone: str | None, market: Market) -> str:
    """Return the unique name of an offer; the zone stands for the region where the price differs by zone."""
    place = region if not zone else zone if zone.startswith(region) else f"{region}-{zone}"
    return f"{provider}/{instance_type}/{place}/{market}"


def unique(offers: Iterable[tuple[Offer, Row]]) -> Iterator[Offer]:
    """Yield the offers, refusing a second one of the same name.

    Raises
    ------
    InputError: if two rows offer the same instance type in the same place on the same market.
    """
    lines: dict[str, Where] = {}
    for offer, row in offers:
        if offer.name in lines:
            first = lines[offer.name]
            before = f"line {first.line}" if first.line else first.field
            raise InputError(
                f"{offer.name} is offered twice, first at {before}.", hint="Keep one of the two rows.", where=row.where
            )
        lines[offer.name] = row.where
        yield offer


SKIPPABLE: Mapping[type[PlannerError], str] = MappingProxyType(
    {UnknownGpuError: "GPU without a specification", CurrencyError: "price not in US dollars"}
)
"""Errors of single rows that a price list of a whole cloud may be full of -> why those rows are left out."""
