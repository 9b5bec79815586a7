"""GPUs of serverless clouds, paid while a container holds them: catalogs/pay_per_use.csv, and files of the user's."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from planner.catalog.cells import Row, gpu_of
from planner.catalog.gpus import load_gpus, spelling
from planner.catalog.offers import csv_rows, join_notes
from planner.domain.pay_per_use import PayPerUse
from planner.errors import DataMissingError, InputError, UnsupportedFormatError, Where
from planner.files.bundled import bundled
from planner.files.documents import did_you_mean, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from planner.catalog.gpus import GpuCatalog

FILE = "pay_per_use.csv"
REQUIRED_COLUMNS = ("provider", "gpu")
OPTIONAL_COLUMNS = (
    *("usd_per_gpu_s", "usd_per_vcpu_s", "usd_per_gib_s", "vcpus", "gib", "all_in"),
    *("usd_per_request", "step_s", "minimum_s", "bills_idle", "bills_container_start", "keep_alive_s"),
    *("as_of", "source", "notes"),
)
EXAMPLE = "provider,gpu,usd_per_gpu_s,step_s\nacme,L40S,0.0005,1"
TRUTH = {"yes": True, "no": False}
LARGEST_USD_PER_GPU_S = 1.0
"""No cloud is near 3,600 USD/h; a larger number is a price per hour."""
MAX_FILE_BYTES = 10_000_000


@cache
def load_pay_per_use() -> tuple[PayPerUse, ...]:
    """Return what ships with gpuplan, ordered by provider."""
    text = bundled("catalogs", FILE).read_text(encoding="utf-8")
    return tuple(_offers(text, FILE, load_gpus()))


def read_pay_per_use(path: Path, *, gpus: GpuCatalog) -> tuple[PayPerUse, ...]:
    """Return the offers in a user's CSV.

    Raises
    ------
    InputError: if the file cannot be read, a column is missing or not known, a value is wrong, or an offer appears
        twice; names line and column.
    UnsupportedFormatError: if it is not text.
    """
    name = str(path)
    try:
        text = read_bytes(path, max_bytes=MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsupportedFormatError(
            f"Byte {error.start} is not UTF-8: this is no CSV text.", where=Where(path=name)
        ) from error
    found = tuple(_offers(text, name, gpus))
    if not found:
        raise InputError("The file holds no offer.", hint=f"Write e.g.\n{EXAMPLE}", where=Where(path=name))
    return found


def with_own(offers: Sequence[PayPerUse], own: Sequence[PayPerUse]) -> tuple[PayPerUse, ...]:
    """Return `offers` and the user's `own`; of two of the same name, the user's knows better."""
    names = {offer.name for offer in own}
    return (*(offer for offer in offers if offer.name not in names), *own)


def find_pay_per_use(name: str, offers: Iterable[PayPerUse], gpus: GpuCatalog) -> PayPerUse:
    """Return the offer called provider/gpu, the GPU in any spelling.

    Raises
    ------
    DataMissingError: if there is none.
    """
    by_name = {offer.name: offer for offer in offers}
    provider, _, gpu = name.partition("/")
    known = gpus.find(gpu) if gpu else None
    found = by_name.get(name) or by_name.get(f"{provider}/{known.gpu}" if known is not None else "")
    if found is None:
        alike = _alike(provider, gpu, by_name.values(), gpus)
        hint = f"Did you mean {' or '.join(map(repr, alike))}?" if alike else did_you_mean(name, by_name)
        hint = hint or "`gpuplan catalog pay-per-use` lists them; --offers adds a file of yours."
        raise DataMissingError(f"There is no pay-per-use offer {name!r}.", hint=hint)
    return found


def _alike(provider: str, gpu: str, offers: Iterable[PayPerUse], gpus: GpuCatalog) -> list[str]:
    """Return the offers of the same cloud whose GPU `gpu` may stand for: of that family, or with that beginning."""
    family = gpus.families.get(spelling(gpu), ())
    return sorted(
        offer.name
        for offer in offers
        if offer.provider == provider and gpu and (offer.gpu in family or spelling(offer.gpu).startswith(spelling(gpu)))
    )


def _offers(text: str, name: str, gpus: GpuCatalog) -> Iterator[PayPerUse]:
    lines: dict[str, int | None] = {}
    for row in csv_rows(text, name=name):
        if not lines:
            _check_columns(row)
        offer = _offer(row, gpus)
        if offer.name in lines:
            raise InputError(
                f"{offer.name} is offered twice, first at line {lines[offer.name]}.",
                hint="Keep one of the two rows.",
                where=row.where,
            )
        lines[offer.name] = row.where.line
        yield offer


def _check_columns(row: Row) -> None:
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    where = Where(path=row.where.path, line=1)
    for column in row.cells:
        if column not in known:
            hint = did_you_mean(column, known) or f"Known: {', '.join(known)}."
            raise InputError(f"Unknown column {column!r}.", hint=hint, where=where)
    for column in REQUIRED_COLUMNS:
        if column not in row.cells:
            raise InputError(f"The column {column!r} is missing.", hint=f"Write e.g.\n{EXAMPLE}", where=where)


def _offer(row: Row, gpus: GpuCatalog) -> PayPerUse:
    provider, gpu = row.text("provider"), gpu_of(row, "gpu", gpus)
    by_second = row.optional_number("usd_per_gpu_s") or 0.0
    by_request = row.optional_number("usd_per_request") or 0.0
    if by_second > LARGEST_USD_PER_GPU_S:
        raise InputError(
            f"{by_second:g} USD per second of a GPU is more than {LARGEST_USD_PER_GPU_S:g}.",
            hint="Give the price per second: that of an hour divided by 3600.",
            where=row.at("usd_per_gpu_s"),
        )
    if not by_second and not by_request:
        raise InputError(
            "The row has no price.", hint="Give usd_per_gpu_s, usd_per_request or both.", where=row.at("usd_per_gpu_s")
        )
    bills_idle = _is_true(row, "bills_idle")
    keep_alive_s = row.optional_number("keep_alive_s")
    if not bills_idle and keep_alive_s is None:
        raise InputError(
            "Idle time is not billed, and nothing says how long a container is kept.",
            hint="Give keep_alive_s, e.g. 300: a cloud that keeps it for nothing says itself for how long.",
            where=row.at("keep_alive_s"),
        )
    return PayPerUse(
        name=f"{provider}/{gpu.gpu}",
        provider=provider,
        gpu=gpu.gpu,
        usd_per_gpu_s=by_second,
        **_beside(row),
        is_all_in=_is_true(row, "all_in"),
        usd_per_request=by_request,
        step_s=row.optional_number("step_s") or 0.0,
        minimum_s=row.optional_number("minimum_s") or 0.0,
        bills_idle=bills_idle,
        bills_container_start=_is_true(row, "bills_container_start"),
        keep_alive_s=keep_alive_s,
        as_of=row.optional_date("as_of"),
        source=row.cells.get("source", ""),
        notes=join_notes(row.cells.get("notes", ""), gpu.note),
    )


def _beside(row: Row) -> dict[str, float]:
    """Return what is billed beside a GPU: a price without an amount, or the other way round, is half of a fact."""
    found: dict[str, float] = {}
    for price, amount in (("usd_per_vcpu_s", "vcpus"), ("usd_per_gib_s", "gib")):
        values = {column: row.optional_number(column) for column in (price, amount)}
        missing = [column for column, value in values.items() if value is None]
        if len(missing) == 1:
            given = amount if missing == [price] else price
            raise InputError(
                f"{given} is given, and {missing[0]} is not.",
                hint="Give both, or neither where it is in usd_per_gpu_s.",
                where=row.at(missing[0]),
            )
        found |= {column: value or 0.0 for column, value in values.items()}
    return found


def _is_true(row: Row, column: str) -> bool:
    return TRUTH[row.choice(column, TRUTH)] if row.cells.get(column) else True
