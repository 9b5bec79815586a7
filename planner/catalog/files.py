"""A user's own offers: gpuplan's own CSV or YAML, gpuhunt's CSV, SkyPilot's catalog CSV; told apart by content."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from planner.catalog.cells import SKIPPABLE, Row, unique
from planner.catalog.foreign import Origin, gpuhunt_offers, merge_zones, skypilot_offers
from planner.catalog.offers import REQUIRED_COLUMNS, check_columns, csv_rows, header_of, offer_of
from planner.errors import InputError, PlannerError, UnsupportedFormatError, Where
from planner.files.documents import load_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.hardware import Offer
    from planner.files.documents import Document

    Reader = Callable[[Row, GpuCatalog, Origin], Iterator[Offer]]

MAX_FILE_BYTES = 200_000_000
"""The largest price list in use (all of Azure, gpuhunt) has some 20 MB."""

GENERIC_NAMES = frozenset({"vms", "offers", "catalog", "prices"})
"""File names that do not name a provider; the folder does (SkyPilot: catalogs/v8/lambda/vms.csv)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferFormat:
    """One layout of a price list."""

    name: str
    signature: frozenset[str]
    """Columns that tell this layout from the others."""
    read: Reader


def _own(row: Row, gpus: GpuCatalog, _: Origin) -> Iterator[Offer]:
    yield offer_of(row, gpus)


FORMATS = (
    OfferFormat(name="gpuplan CSV", signature=frozenset(REQUIRED_COLUMNS), read=_own),
    OfferFormat(
        name="gpuhunt CSV v2",
        signature=frozenset({"instance_name", "location", "price", "gpu_count", "gpu_name", "gpu_memory", "spot"}),
        read=gpuhunt_offers,
    ),
    OfferFormat(
        name="SkyPilot catalog CSV",
        signature=frozenset({"InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "Region"}),
        read=skypilot_offers,
    ),
)
"""A new layout is one line here and one reader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OffersFile:
    """What a file of offers held."""

    offers: tuple[Offer, ...]
    format_name: str
    skipped: Mapping[str, int]
    """Reason -> rows left out for it; only where that was asked for."""


def read_offers_file(
    path: Path, *, gpus: GpuCatalog, as_of: date | None = None, provider: str | None = None
) -> tuple[Offer, ...]:
    """Return the offers in a user's file.

    Parameters
    ----------
    as_of : date of the prices, for layouts that do not carry it.
    provider : provider, for layouts that do not carry it; None = the file's or its folder's name.

    Raises
    ------
    InputError: if the file cannot be read, a row is wrong or an offer appears twice; names line, column and value.
    UnsupportedFormatError: if the layout is not known.
    """
    return import_offers(path, gpus=gpus, as_of=as_of, provider=provider).offers


def import_offers(
    path: Path,
    *,
    gpus: GpuCatalog,
    as_of: date | None = None,
    provider: str | None = None,
    skip_unknown: bool = False,
) -> OffersFile:
    """Return the offers in a user's file and what was left out.

    Parameters
    ----------
    skip_unknown : leave out, and count, rows whose GPU has no specification or whose price is not in US dollars,
        as the price list of a whole cloud has them; false = the first such row is an error.

    Raises
    ------
    InputError, UnsupportedFormatError: as `read_offers_file`.
    """
    text = _read_text(path)
    header = header_of(text)
    found = next((layout for layout in FORMATS if layout.signature <= header), None)
    if found is not None:
        rows, layout = csv_rows(text, name=str(path)), found
        if layout.read is _own:
            check_columns(sorted(header), Where(path=str(path), line=1))
    elif len(header & {column for layout in FORMATS for column in layout.signature}) > 1:
        raise _unknown_layout(path, header)
    else:
        rows, layout = _document_rows(load_document(path)), FORMATS[0]
    origin = Origin(provider=provider or _provider_of(path), as_of=as_of, source=f"{path.name} ({layout.name})")
    skipped: Counter[str] = Counter()
    pairs = _offers(rows, layout.read, gpus=gpus, origin=origin, skipped=skipped if skip_unknown else None)
    pairs = _dated(merge_zones(pairs) if layout.read is skypilot_offers else pairs)
    offers = tuple(unique(pairs))
    if not offers:
        hint = "Rows without GPUs are passed over." + (f" Left out: {dict(skipped)}." if skipped else "")
        raise InputError(f"The file ({layout.name}) holds no GPU offer.", hint=hint, where=Where(path=str(path)))
    return OffersFile(offers=offers, format_name=layout.name, skipped=dict(skipped))


def _offers(
    rows: Iterable[Row], read: Reader, *, gpus: GpuCatalog, origin: Origin, skipped: Counter[str] | None
) -> Iterator[tuple[Offer, Row]]:
    for row in rows:
        try:
            offers = list(read(row, gpus, origin))
        except tuple(SKIPPABLE) as error:
            if skipped is None:
                raise
            skipped[SKIPPABLE[type(error)]] += 1
            continue
        yield from ((offer, row) for offer in offers)


def _dated(offers: Iterable[tuple[Offer, Row]]) -> Iterator[tuple[Offer, Row]]:
    """Yield the offers, refusing a price of a later day than today anywhere on Earth.

    The clock counts here, not the day that a plan is made for: a plan for a past day may use newer prices.
    """
    latest = date.today() + timedelta(days=1)
    for offer, row in offers:
        if offer.as_of is not None and offer.as_of > latest:
            raise InputError(
                f"The price is dated {offer.as_of.isoformat()}, which has not come yet.",
                hint="Give the day on which the price was read.",
                where=row.at("as_of"),
            )
        yield offer, row


def _unknown_layout(path: Path, header: Iterable[str]) -> PlannerError:
    best = max(FORMATS, key=lambda layout: len(layout.signature & set(header)))
    missing = ", ".join(sorted(best.signature - set(header)))
    supported = ", ".join(layout.name for layout in FORMATS)
    return UnsupportedFormatError(
        f"The columns fit no known layout; it looks most like {best.name}, but lacks {missing}.",
        hint=f"Supported: {supported}, and YAML or JSON lists (docs/reference/catalog.md).",
        where=Where(path=str(path), line=1),
    )


def _read_text(path: Path) -> str:
    where = Where(path=str(path))
    try:
        if path.is_dir():
            raise InputError("This is a folder, not a file.", hint="Give a CSV, YAML or JSON file.", where=where)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"The file has {path.stat().st_size:,} bytes; that is no price list.", where=where)
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("There is no such file.", hint="Check the path.", where=where) from error
    except UnicodeDecodeError as error:
        raise UnsupportedFormatError(f"Byte {error.start} is not UTF-8: this is not a text.", where=where) from error
    except OSError as error:
        raise InputError(f"The file cannot be read: {error.strerror}.", where=where) from error
    if not text.strip():
        raise InputError("The file is empty.", where=where)
    return text


def _provider_of(path: Path) -> str:
    full = path.absolute()
    return full.parent.name if full.stem.casefold() in GENERIC_NAMES else full.stem


def _document_rows(document: Document) -> Iterator[Row]:
    """Yield the rows of a YAML or JSON list of offers, or of a mapping that holds the list as `offers`."""
    data: Any = document.data
    at: tuple[str | int, ...] = ()
    if isinstance(data, dict) and set(data) <= {"schema_version", "kind", "offers"} and "offers" in data:
        data, at = data["offers"], ("offers",)
    if not isinstance(data, list):
        supported = ", ".join(layout.name for layout in FORMATS)
        raise UnsupportedFormatError(
            "This is neither a list of offers nor a table of them.",
            hint=f"Supported: {supported}, and YAML or JSON lists (docs/reference/catalog.md).",
            where=document.where(),
        )
    for index, item in enumerate(data):
        where = document.where(*at, index)
        if not isinstance(item, dict):
            raise InputError(f"An offer is a mapping of columns to values, not {item!r}.", where=where)
        for key, value in item.items():
            check_columns([key], document.where(*at, index, key))
            if isinstance(value, dict | list | bool):
                raise InputError(f"{value!r} is not a single value.", where=document.where(*at, index, key))
        yield Row({key: "" if value is None else str(value).strip() for key, value in item.items()}, where)
