"""`gpuplan catalog`: what can be rented, at what price, and what is known of each GPU."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import console
from planner.cli.options import AsOfOption, ForceOption, JsonOption, OutputOption, parse_date
from planner.errors import DataMissingError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.table import Table

    from planner.catalog.select import Selection
    from planner.domain.hardware import GpuSpec, Market, Offer
    from planner.domain.pay_per_use import PayPerUse
    from planner.domain.provenance import Warning_

app = typer.Typer(add_completion=False)

WIDE_COLUMNS = 90
"""Narrower terminals get fewer columns, so that no number is cut off."""
SHOWN_OFFERS = 10
"""Offers of a GPU that `show` prints."""
SHOWN_WARNINGS = 3
SECONDS_PER_DAY = 86400.0
GIGA = 1e9
TERA = 1e12

FileOption = Annotated[
    list[Path], typer.Option("--file", metavar="FILE", help="Add your own offers: CSV, YAML, gpuhunt or SkyPilot.")
]
SORTS: dict[str, Callable[[Offer], Any]] = {
    "price-per-gpu": lambda offer: (offer.price_usd_per_hour / offer.gpus_per_instance, offer.name),
    "price": lambda offer: (offer.price_usd_per_hour, offer.name),
    "provider": lambda offer: (offer.provider, offer.region, offer.name),
    "gpu": lambda offer: (offer.gpu, offer.price_usd_per_hour / offer.gpus_per_instance, offer.name),
}


@app.command("list")
def list_command(
    provider: Annotated[list[str], typer.Option(metavar="NAME", help="Only this cloud; may be repeated.")] = [],  # noqa: B006 - typer wants it
    region: Annotated[list[str], typer.Option(metavar="NAME", help="Only this region; us-* takes all that fit.")] = [],  # noqa: B006
    gpu: Annotated[list[str], typer.Option(metavar="NAME", help="Only this GPU, or family of GPUs (A100).")] = [],  # noqa: B006
    market: Annotated[
        list[str], typer.Option(metavar="NAME", help="on-demand, spot, reserved-1y or reserved-3y.")
    ] = [],  # noqa: B006
    max_age: Annotated[str, typer.Option(metavar="TIME", help="Warn of prices older than this.")] = "180d",
    sort: Annotated[str, typer.Option(metavar="KEY", help="price-per-gpu, price, provider or gpu.")] = "price-per-gpu",
    limit: Annotated[int, typer.Option(min=1, help="Rows of the table; --json and -o have all.")] = 40,
    file: FileOption = [],  # noqa: B006
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """List what can be rented, cheapest per GPU first."""
    from planner.catalog.gpus import load_gpus
    from planner.catalog.select import OfferFilter, select_offers
    from planner.units import parse_duration_s

    _check_output(output, force=force)
    if sort not in SORTS:
        raise InputError(f"{sort!r} is no order of offers.", hint=f"Use one of {', '.join(SORTS)}.")
    wanted = OfferFilter(
        providers=provider or None,
        regions=region or None,
        gpus_include=gpu or None,
        markets=_markets(market) or None,
        max_price_age_days=parse_duration_s(max_age) / SECONDS_PER_DAY,
    )
    today = parse_date(as_of) or date.today()
    selection = select_offers(_all_offers(file), wanted, today=today, gpus=load_gpus())
    if not selection.offers:
        dropped = ", ".join(f"{count} by {name}" for name, count in selection.n_dropped_by.items() if count)
        raise DataMissingError("No offer fits all filters together.", hint=f"Dropped: {dropped}.")
    offers = sorted(selection.offers, key=SORTS[sort])
    _show_warnings(selection.warnings)
    if output is not None:
        console.write_result(output, _as_text(offers, selection, suffix=_suffix(output)), force=force)
    elif as_json:
        console.print_json(_document(offers, selection))
    else:
        console.print_result(_offer_table(offers[:limit]))
        if len(offers) > limit:
            console.note(f"{len(offers) - limit:,} more; raise --limit, or narrow with --gpu, --provider, --region.")


def _show_warnings(warnings: Sequence[Warning_]) -> None:
    """Show the gravest warnings: without a filter, most small clouds have one."""
    gravest = sorted(warnings, key=lambda warning: -float(warning.observed or 0))
    console.show_warnings(gravest[:SHOWN_WARNINGS])
    if len(gravest) > SHOWN_WARNINGS:
        console.note(f"{len(gravest) - SHOWN_WARNINGS} more providers have such prices; --json lists them.")


def _markets(names: Iterable[str]) -> list[Market]:
    from planner.domain.hardware import Market
    from planner.files.documents import did_you_mean

    known = [market.value for market in Market]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"Use one of {', '.join(known)}."
            raise InputError(f"{name!r} is no market.", hint=hint)
    return [Market(name) for name in names]


def _all_offers(files: Iterable[Path]) -> tuple[Offer, ...]:
    from planner.catalog.files import read_offers_file
    from planner.catalog.gpus import load_gpus
    from planner.catalog.offers import load_offers, with_own_offers

    offers = load_offers()
    for path in files:
        offers = with_own_offers(offers, read_offers_file(path, gpus=load_gpus()))
    return offers


def _suffix(output: str) -> str:
    return ".csv" if output == "-" else Path(output).suffix.lower()


def _check_output(output: str | None, *, force: bool) -> None:
    from planner.files.output import check_writable

    if output is None:
        return
    if _suffix(output) not in {".csv", ".json"}:
        raise InputError(f"{output!r} is neither a .csv nor a .json file.", hint="Offers are written as one of these.")
    if output != "-":
        check_writable(Path(output), force=force)


def _as_text(offers: Sequence[Offer], selection: Selection, *, suffix: str) -> str:
    from planner.catalog.offers import offers_csv

    return offers_csv(offers) if suffix == ".csv" else console.to_json(_document(offers, selection))


def _document(offers: Iterable[Offer], selection: Selection) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "schema_version": "1",
        "kind": "Offers",
        "offers": [_offer_document(offer) for offer in offers],
        "dropped_by": dict(selection.n_dropped_by),
        "warnings": [asdict(warning) for warning in selection.warnings],
    }


def _offer_document(offer: Offer) -> dict[str, Any]:
    from planner.catalog.offers import offer_record

    per_gpu = offer.price_usd_per_hour / offer.gpus_per_instance
    return {"name": offer.name, **offer_record(offer), "price_usd_per_gpu_hour": per_gpu}


def _offer_table(offers: Iterable[Offer], *, title: str | None = None) -> Table:
    from rich.table import Table

    is_wide = console.result_console().width >= WIDE_COLUMNS
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("gpu", "provider", "instance type", "region") if is_wide else ("gpu", "offer"):
        table.add_column(name, overflow="fold")
    table.add_column("market")
    for name in ("GPUs", "USD/h", "per GPU"):
        table.add_column(name, justify="right", no_wrap=True)
    if is_wide:
        table.add_column("as of", no_wrap=True)
    for offer in offers:
        place = offer.zone or offer.region
        what = (
            (offer.provider, offer.instance_type, place)
            if is_wide
            else (f"{offer.provider} {offer.instance_type} {place}",)
        )
        price = offer.price_usd_per_hour
        numbers = (f"{offer.gpus_per_instance:.3g}", f"{price:.2f}", f"{price / offer.gpus_per_instance:.2f}")
        dated = (offer.as_of.isoformat() if offer.as_of else "?",) if is_wide else ()
        table.add_row(offer.gpu, *what, str(offer.market), *numbers, *dated)
    return table


@app.command("pay-per-use")
def pay_per_use_command(
    provider: Annotated[list[str], typer.Option(metavar="NAME", help="Only this cloud; may be repeated.")] = [],  # noqa: B006 - typer wants it
    gpu: Annotated[list[str], typer.Option(metavar="NAME", help="Only this GPU, or family of GPUs (A100).")] = [],  # noqa: B006
    file: Annotated[
        list[Path], typer.Option("--file", metavar="FILE", help="Add your own: CSV with provider, gpu, usd_per_gpu_s.")
    ] = [],  # noqa: B006 - typer wants it
    as_json: JsonOption = False,
) -> None:
    """List GPUs of serverless clouds, paid while a container holds them, cheapest first."""
    offers = [
        offer for offer in _pay_per_use(file) if _is_wanted(offer.provider, provider) and _is_gpu_wanted(offer.gpu, gpu)
    ]
    if not offers:
        raise DataMissingError(
            "No pay-per-use offer fits all filters together.", hint="See all: gpuplan catalog pay-per-use"
        )
    offers.sort(key=lambda offer: (offer.usd_per_container_s, offer.name))
    if as_json:
        document = {
            "schema_version": "1",
            "kind": "PayPerUseOffers",
            "offers": [_pay_document(each) for each in offers],
        }
        console.print_json(document)
        return
    console.print_result(_pay_table(offers))
    console.note(
        "With the vCPUs and the memory that are billed beside a GPU; --json has them, and where prices are from."
    )
    if not all(offer.is_all_in for offer in offers):
        console.note("+: CPU and memory may be billed on top; nothing that can be cited says it.")


def _pay_per_use(files: Iterable[Path]) -> tuple[PayPerUse, ...]:
    from planner.catalog.gpus import load_gpus
    from planner.catalog.pay_per_use import load_pay_per_use, read_pay_per_use, with_own

    offers = load_pay_per_use()
    for path in files:
        offers = with_own(offers, read_pay_per_use(path, gpus=load_gpus()))
    return offers


def _is_wanted(name: str, wanted: Sequence[str]) -> bool:
    return not wanted or name in wanted


def _is_gpu_wanted(gpu: str, wanted: Sequence[str]) -> bool:
    from planner.catalog.gpus import load_gpus

    return not wanted or any(gpu in load_gpus().matching(name) for name in wanted)


def _pay_document(offer: PayPerUse) -> dict[str, Any]:
    from dataclasses import asdict

    priced = {"usd_per_container_s": offer.usd_per_container_s}
    return asdict(offer) | priced | {"as_of": offer.as_of.isoformat() if offer.as_of else None}


def _pay_table(offers: Iterable[PayPerUse], *, title: str | None = None) -> Table:
    from rich.table import Table

    from planner.units import format_duration

    is_wide = console.result_console().width >= WIDE_COLUMNS
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("gpu", "provider"):
        table.add_column(name, overflow="fold")
    more = ("USD/request", "steps", "at least", "idle billed") if is_wide else ()
    for name in ("USD/s", "USD/h", *more, "keeps"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("as of", no_wrap=True)
    for offer in offers:
        rules = (
            f"{offer.usd_per_request:g}" if offer.usd_per_request else "-",
            format_duration(offer.step_s) if offer.step_s else "-",
            format_duration(offer.minimum_s) if offer.minimum_s else "-",
            "yes" if offer.bills_idle else "no",
        )
        table.add_row(
            offer.gpu,
            offer.provider,
            f"{offer.usd_per_container_s:.6f}{'' if offer.is_all_in else '+'}",
            f"{3600 * offer.usd_per_container_s:.2f}",
            *(rules if is_wide else ()),
            "as set" if offer.keep_alive_s is None else format_duration(offer.keep_alive_s),
            offer.as_of.isoformat() if offer.as_of else "?",
        )
    return table


@app.command("gpus")
def gpus_command(as_json: JsonOption = False) -> None:
    """List the GPUs that gpuplan knows."""
    from planner.catalog.gpus import load_gpus

    specs = load_gpus().specs
    if as_json:
        console.print_json({"gpus": [_gpu_document(spec) for spec in specs]})
        return
    console.print_result(_gpu_table(specs))


def _gpu_table(specs: Iterable[GpuSpec]) -> Table:
    from rich.table import Table

    is_wide = console.result_console().width >= WIDE_COLUMNS
    table = Table(box=None, pad_edge=False)
    table.add_column("gpu", overflow="fold")
    titles = ("GB", "GB/s", "bf16", "fp8", "TDP W")
    for name in (*titles, "int8", "fp4", "idle W") if is_wide else titles:
        table.add_column(name, justify="right", no_wrap=True)
    if is_wide:
        table.add_column("link")
    for spec in specs:
        bf16, fp8, int8, fp4 = (_number(spec.peak_flops.get(key), TERA) for key in ("bf16", "fp8", "int8", "fp4"))
        numbers = (_number(spec.memory_bytes, GIGA), _number(spec.bandwidth_bytes_per_s, GIGA), bf16, fp8)
        more = (int8, fp4, _number(spec.idle_w, 1), spec.link) if is_wide else ()
        table.add_row(spec.name, *numbers, _number(spec.tdp_w, 1), *more)
    return table


def _number(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:,.0f}"


def _gpu_document(spec: GpuSpec) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(spec)


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A GPU in any spelling, or an offer's name.")],
    file: FileOption = [],  # noqa: B006 - typer wants it
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of a GPU and its cheapest offers, or all fields of one offer."""
    from planner.catalog.gpus import load_gpus

    offers = _all_offers(file)
    offer = next((offer for offer in offers if offer.name == name), None)
    if offer is not None:
        _show_offer(offer, as_json=as_json)
        return
    if "/" in name:
        from planner.files.documents import did_you_mean

        hint = did_you_mean(name, [known.name for known in offers]) or "See: gpuplan catalog list --json"
        raise DataMissingError(f"There is no offer {name!r}.", hint=hint)
    gpus = load_gpus()
    spec, found = gpus.get(name), gpus.find(name)
    theirs = sorted((offer for offer in offers if offer.gpu == spec.name), key=SORTS["price-per-gpu"])
    by_use = sorted(
        (offer for offer in _pay_per_use(()) if offer.gpu == spec.name),
        key=lambda offer: (offer.usd_per_container_s, offer.name),
    )
    if as_json:
        document = {
            "gpu": _gpu_document(spec),
            "offers": [_offer_document(known) for known in theirs],
            "pay_per_use": [_pay_document(known) for known in by_use],
        }
        console.print_json(document)
        return
    console.print_result(_facts_table(spec))
    if theirs:
        title = f"\ncheapest of {len(theirs)} offers"
        console.print_result(_offer_table(theirs[:SHOWN_OFFERS], title=title))
    if by_use:
        console.print_result(_pay_table(by_use, title="\npaid while a container holds it"))
    if found is not None and found.note:
        console.note(f"{name!r} was read as {spec.name}: {found.note}.")


def _show_offer(offer: Offer, *, as_json: bool) -> None:
    document = _offer_document(offer)
    if as_json:
        console.print_json(document)
        return
    table = _pairs()
    for key, value in document.items():
        if value not in {None, ""}:
            table.add_row(key, f"{value:g}" if isinstance(value, float) else str(value))
    console.print_result(table)


def _pairs() -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _facts_table(spec: GpuSpec) -> Table:
    table = _pairs()
    for key in ("name", "vendor", "architecture", "form_factor"):
        table.add_row(key.replace("_", " "), getattr(spec, key))
    table.add_row("memory", f"{spec.memory_bytes / GIGA:.1f} GB")
    table.add_row("memory rate", f"{spec.bandwidth_bytes_per_s / GIGA:,.0f} GB/s{_reached(spec)}")
    for key, rate in spec.peak_flops.items():
        unit = "TOP/s" if key.startswith("int") else "TFLOP/s"
        reached = spec.achieved_flops.get(key)
        measured = f", {reached / TERA:,.0f} measured" if reached else ""
        table.add_row(f"{key}, dense", f"{rate / TERA:,.4g} {unit}{measured}")
    table.add_row("power", f"{spec.tdp_w:g} W" + (f", {spec.idle_w:g} W idle" if spec.idle_w is not None else ""))
    table.add_row("link", f"{spec.link}, {spec.link_bytes_per_s / GIGA:g} GB/s each way")
    table.add_row("PCIe", f"{spec.pcie_bytes_per_s / GIGA:g} GB/s each way")
    if spec.compute_capability is not None:
        table.add_row("compute capability", f"{spec.compute_capability:.1f}")
    if spec.unverified_fields:
        table.add_row("one source only", ", ".join(spec.unverified_fields))
    for key in ("notes", "source"):
        if getattr(spec, key):
            table.add_row(key, getattr(spec, key))
    return table


def _reached(spec: GpuSpec) -> str:
    rate = spec.achieved_bandwidth_bytes_per_s
    return "" if rate is None else f", {rate / GIGA:,.0f} measured"


@app.command("import")
def import_command(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A gpuhunt or SkyPilot catalog CSV, or your own.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to write the CSV; - is stdout.")],
    provider: Annotated[
        str | None, typer.Option(metavar="NAME", help="The cloud, where FILE does not say; default: FILE's name.")
    ] = None,
    dated: Annotated[
        str | None, typer.Option(metavar="DATE", help="Date of the prices, where FILE does not say.")
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out, and count, GPUs without a specification.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Convert another tool's price list to gpuplan's own CSV, for `catalog.files` in a request."""
    from planner.catalog.files import import_offers
    from planner.catalog.gpus import load_gpus
    from planner.catalog.offers import offers_csv

    _check_output(output, force=force)
    imported = import_offers(
        path, gpus=load_gpus(), provider=provider, as_of=parse_date(dated), skip_unknown=skip_unknown
    )
    console.write_result(output, offers_csv(imported.offers), force=force)
    console.note(f"{len(imported.offers)} offers read from {imported.format_name}.")
    for reason, count in imported.skipped.items():
        console.note(f"{count} rows left out: {reason}.")
