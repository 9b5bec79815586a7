"""Offers in gpuplan's own table, and the ones that ship with gpuplan (catalogs/offers/, one file per provider)."""

from __future__ import annotations

import csv
import io
from functools import cache
from typing import TYPE_CHECKING

from planner.catalog.cells import (
    BYTES_PER_GBIT,
    BYTES_PER_GIB,
    Row,
    gpu_count_of,
    gpu_of,
    offer_name,
    price_of,
    unique,
)
from planner.catalog.gpus import load_gpus
from planner.domain.hardware import Market, Offer
from planner.errors import InputError, Where
from planner.files.bundled import bundled
from planner.files.documents import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from planner.catalog.gpus import GpuCatalog

REQUIRED_COLUMNS = ("provider", "instance_type", "region", "market", "gpu", "gpu_count", "price_usd_per_hour")
OPTIONAL_COLUMNS = ("zone", "vcpus", "ram_gib", "available", "as_of", "source", "notes", "network_gbps")
WRITTEN_COLUMNS = (
    *("provider", "instance_type", "region", "zone", "market", "gpu", "gpu_count", "price_usd_per_hour"),
    *("vcpus", "ram_gib", "available", "as_of", "source", "notes", "network_gbps"),
)


@cache
def load_offers() -> tuple[Offer, ...]:
    """Return every offer that ships with gpuplan, ordered by provider; read once per process."""
    gpus = load_gpus()
    folder = bundled("catalogs", "offers")
    offers: list[Offer] = []
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".csv"):
            rows = csv_rows(file.read_text(encoding="utf-8"), name=file.name)
            offers += unique((offer_of(row, gpus), row) for row in rows)
    return tuple(offers)


def csv_rows(text: str, *, name: str) -> Iterator[Row]:
    """Yield the rows of a CSV text; `name` stands in errors.

    Raises
    ------
    InputError: if a column has no name or two have the same, or a row has too many or too few cells.
    """
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [column.strip() for column in next((cells for cells in reader if any(cells)), [])]
        _check_header(header, name)
        for cells in reader:
            if not any(cells):
                continue
            where = Where(path=name, line=reader.line_num)
            if len(cells) != len(header):
                hint = "Put a text that has a comma in quotes."
                raise InputError(f"The row has {len(cells)} cells, the header {len(header)}.", hint=hint, where=where)
            yield Row(dict(zip(header, [cell.strip() for cell in cells], strict=True)), where)
    except csv.Error as error:
        raise InputError(f"The CSV is broken: {error}.", where=Where(path=name, line=reader.line_num)) from error


def _check_header(header: Sequence[str], name: str) -> None:
    where = Where(path=name, line=1)
    for column in header:
        if not column:
            raise InputError("A column has no name.", where=where)
        if header.count(column) > 1:
            raise InputError(f"The column {column!r} appears twice.", where=where)


def header_of(text: str) -> frozenset[str]:
    """Return the columns of the first line of `text` that is not blank, if that is CSV."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    try:
        return frozenset(column.strip() for column in next(csv.reader([first]), []))
    except csv.Error:
        return frozenset()


def with_own_offers(offers: Sequence[Offer], own: Sequence[Offer]) -> tuple[Offer, ...]:
    """Return `offers` and the user's `own`; of two of the same name, the user's knows better."""
    names = {offer.name for offer in own}
    return (*(offer for offer in offers if offer.name not in names), *own)


def check_columns(columns: Iterable[str], where: Where) -> None:
    """Refuse columns that gpuplan's own table does not have.

    Raises
    ------
    InputError: naming the column and the one that was probably meant.
    """
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    for column in columns:
        if column not in known:
            hint = did_you_mean(column, known) or f"Known: {', '.join(known)}."
            raise InputError(f"Unknown column {column!r}.", hint=hint, where=where)


def offer_of(row: Row, gpus: GpuCatalog) -> Offer:
    """Return the offer in one row of gpuplan's own table.

    Raises
    ------
    InputError: if a value is missing or wrong; names its place.
    """
    provider, instance_type, region = (row.text(column) for column in ("provider", "instance_type", "region"))
    market = Market(row.choice("market", Market))
    zone = row.cells.get("zone") or None
    gpu = gpu_of(row, "gpu", gpus)
    ram_gib = row.optional_number("ram_gib")
    network_gbps = row.optional_number("network_gbps")
    available = row.optional_number("available")
    if available is not None and available != int(available):
        raise InputError(f"{available:g} is not a whole number of instances.", where=row.at("available"))
    return Offer(
        name=offer_name(provider=provider, instance_type=instance_type, region=region, zone=zone, market=market),
        provider=provider,
        instance_type=instance_type,
        region=region,
        zone=zone,
        market=market,
        gpu=gpu.gpu,
        gpus_per_instance=gpu_count_of(row, "gpu_count"),
        price_usd_per_hour=price_of(row, "price_usd_per_hour", provider=provider, region=region, market=market),
        vcpus=row.optional_number("vcpus"),
        ram_bytes=None if ram_gib is None else ram_gib * BYTES_PER_GIB,
        as_of=row.optional_date("as_of"),
        source=row.cells.get("source", ""),
        available=None if available is None else int(available),
        notes=join_notes(row.cells.get("notes", ""), gpu.note),
        network_bytes_per_s=network_gbps * BYTES_PER_GBIT if network_gbps else None,
    )


def join_notes(*notes: str) -> str:
    """Return the notes that are not empty, each once, as one text."""
    return "; ".join(dict.fromkeys(note for note in notes if note))


def offer_record(offer: Offer) -> dict[str, str | float | int | None]:
    """Return the offer as a row of gpuplan's own table: column -> value, None where not known."""
    return {
        "provider": offer.provider,
        "instance_type": offer.instance_type,
        "region": offer.region,
        "zone": offer.zone,
        "market": str(offer.market),
        "gpu": offer.gpu,
        "gpu_count": offer.gpus_per_instance,
        "price_usd_per_hour": offer.price_usd_per_hour,
        "vcpus": offer.vcpus,
        "ram_gib": None if offer.ram_bytes is None else offer.ram_bytes / BYTES_PER_GIB,
        "available": offer.available,
        "as_of": None if offer.as_of is None else offer.as_of.isoformat(),
        "source": offer.source,
        "notes": offer.notes,
        "network_gbps": None if offer.network_bytes_per_s is None else offer.network_bytes_per_s / BYTES_PER_GBIT,
    }


def offers_csv(offers: Iterable[Offer]) -> str:
    """Return the offers as a CSV in gpuplan's own table, which `read_offers_file` reads back unchanged."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, WRITTEN_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for offer in offers:
        record = offer_record(offer)
        writer.writerow({key: _short(value) for key, value in record.items()})
    return stream.getvalue()


def _short(value: str | float | None) -> str | int | float | None:
    return int(value) if isinstance(value, float) and value.is_integer() else value
