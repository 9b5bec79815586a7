"""`gpuplan adapters`: ways to serve many adapters (LoRA) of one model, compared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import console
from planner.cli.options import JsonOption
from planner.errors import InputError
from planner.units import parse_duration_s, parse_usd, parse_usd_per_hour

if TYPE_CHECKING:
    from planner.domain.distributions import HyperExponential, Weibull
    from planner.domain.pay_per_use import PayPerUse

app = typer.Typer(add_completion=False)

GIGA = 1e9
POISSON_SHAPE = 1.0
"""Weibull gaps of this shape are those of a Poisson process."""


@app.command("compare")
def compare(
    adapters: Annotated[
        Path,
        typer.Argument(
            help="CSV with the columns name, rank, target_modules and rate or trace; optionally slo and isolation."
        ),
    ],
    model: Annotated[str, typer.Option(metavar="NAME_OR_CONFIG", help="The backbone: a library model or config.json.")],
    gpu: Annotated[str, typer.Option(metavar="NAME", help="A GPU of the catalog; each machine has one.")],
    price: Annotated[str, typer.Option(metavar="PRICE", help="Of such a machine, e.g. '1.86 USD/h'.")],
    slo: Annotated[list[str], typer.Option(metavar="SLO", help="'ttft p95 <= 2s' or of tpot. Repeatable.")],
    storage_gb_s: Annotated[
        float, typer.Option("--storage-gb-s", metavar="X", help="Read rate of where the weights lie, in GB/s.")
    ],
    input_tokens: Annotated[float, typer.Option("--input", min=1, metavar="N", help="Tokens of a prompt.")],
    output_tokens: Annotated[float, typer.Option("--output", min=1, metavar="N", help="Tokens of an answer.")],
    used_price: Annotated[
        float | None,
        typer.Option(
            "--used-price",
            min=0.0,
            metavar="USD",
            help="What a serverless cloud bills for a second of a whole GPU, by the part of its memory that is held;"
            " default: whole machines are rented by the second.",
        ),
    ] = None,
    offer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What GPUs cost that are given back: a pay-per-use offer, e.g. modal/L40S (`gpuplan catalog"
            " pay-per-use`).",
        ),
    ] = None,
    offers: Annotated[
        list[Path], typer.Option("--offers", metavar="FILE", help="A CSV of pay-per-use offers of yours.")
    ] = [],  # noqa: B006 - typer wants it
    miss_price: Annotated[
        str,
        typer.Option("--miss-price", metavar="PRICE", help="What a request is worth that misses its SLO: '0.01 USD'."),
    ] = "0 USD",
    hours: Annotated[
        float | None,
        typer.Option(
            metavar="H", help="Time that requests are made for, or the most that is read of traces; half is judged."
        ),
    ] = None,
    arrivals: Annotated[
        str, typer.Option(metavar="KIND", help="bursty: sessions as in a production trace; or poisson.")
    ] = "bursty",
    precision: Annotated[str, typer.Option(metavar="NAME", help="Of the weights; default: as published.")] = "",
    loader: Annotated[
        str, typer.Option(metavar="NAME", help="safetensors, runai-streamer, tensorizer or serverlessllm.")
    ] = "safetensors",
    host_gb: Annotated[
        float, typer.Option("--host-gb", min=0.0, metavar="X", help="Host memory for containers, for each GPU.")
    ] = 64.0,
    provision: Annotated[
        str, typer.Option(metavar="TIME", help="Until a machine that was given back is there again.")
    ] = "0s",
    graphs: Annotated[bool, typer.Option("--graphs", help="Every process captures CUDA graphs as it starts.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the requests and of all that is drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare ways to serve adapters: always on, in one pool, serverless, or on a shared backbone."""
    import numpy as np

    from planner.catalog.gpus import load_gpus
    from planner.catalog.models import load_model
    from planner.cli.adapter_ways import offer_notes, ready_lines, rules_table, ways_document, ways_lines, ways_table
    from planner.files.adapters_csv import read_adapters
    from planner.files.slo import parse_slo
    from planner.planning.function_case import Hosting, Sizes, function_case
    from planner.planning.function_traffic import function_traffic
    from planner.planning.function_ways import Prices
    from planner.planning.functions import compare_ways
    from planner.profilers.efficiency import default_params

    if not 0 < storage_gb_s < math.inf:
        raise InputError(f"--storage-gb-s {storage_gb_s:g} is no rate.", hint="Give GB/s above 0, e.g. 2.5.")
    if hours is not None and not 0 < hours < math.inf:
        raise InputError(f"--hours {hours:g} is no time.", hint="Give hours above 0, e.g. 24.")
    amounts = {
        "--provision": parse_duration_s(provision),
        "--price": parse_usd_per_hour(price),
        "--miss-price": parse_usd(miss_price),
    }
    for option, amount in amounts.items():
        if amount < 0:
            raise InputError(f"{option} is below 0.", hint="Give 0 or more.")
    gpus = load_gpus()
    spec = gpus.get(gpu)
    prices = Prices(
        usd_per_gpu_hour=amounts["--price"],
        usd_per_used_gpu_s=used_price,
        offer=None if offer is None else _offer(offer, offers, spec.name, used_price),
        usd_per_miss=amounts["--miss-price"],
    )
    listed, requests = function_traffic(
        read_adapters(adapters),
        gaps=_gaps(arrivals),
        duration_s=None if hours is None else hours * 3600.0,
        rng=np.random.default_rng(seed),
        base_dir=adapters.parent,
    )
    case = function_case(
        load_model(model),
        spec,
        listed,
        sizes=Sizes(input_tokens=input_tokens, output_tokens=output_tokens),
        slos=[parse_slo(text) for text in slo],
        hosting=Hosting(
            storage_bytes_per_s=storage_gb_s * GIGA,
            loader=loader,
            host_bytes=host_gb * GIGA,
            provision_s=amounts["--provision"],
            captures_graphs=graphs,
        ),
        params=default_params(),
        precision=precision,
    )
    found = compare_ways(requests, case, prices, seed=seed)
    names = [adapter.name for adapter in listed]
    if as_json:
        console.print_json(ways_document(found, case, prices, names, hours=requests.duration_s / 3600.0))
        return
    lines = (*ways_lines(found, len(listed)), *ready_lines(found, names))
    console.print_result(ways_table(found), *lines, rules_table(found.rules))
    for text in (*found.cautions, *offer_notes(prices), *case.assumptions):
        console.note(text)


def _offer(name: str, files: list[Path], gpu: str, used_price: float | None) -> PayPerUse:
    from planner.catalog.gpus import load_gpus
    from planner.catalog.pay_per_use import find_pay_per_use, load_pay_per_use, read_pay_per_use, with_own

    if used_price is not None:
        raise InputError(
            "--offer bills whole GPUs and --used-price parts of them: a cloud does one of the two.",
            hint="Leave one of them out.",
        )
    known = load_pay_per_use()
    for path in files:
        known = with_own(known, read_pay_per_use(path, gpus=load_gpus()))
    found = find_pay_per_use(name, known, load_gpus())
    if found.gpu != gpu:
        raise InputError(
            f"--offer {name} has a {found.gpu}, and --gpu is a {gpu}: all ways are compared on one GPU.",
            hint=f"Use --gpu {found.gpu}, or another offer.",
        )
    return found


def _gaps(arrivals: str) -> HyperExponential | Weibull:
    """Return the shape of the gaps between made-up requests."""
    from planner.domain.distributions import Weibull
    from planner.workload.popularity import default_gaps

    kinds: dict[str, HyperExponential | Weibull] = {
        "bursty": default_gaps(),
        "poisson": Weibull.of_mean(1.0, shape=POISSON_SHAPE),
    }
    if arrivals not in kinds:
        raise InputError(f"--arrivals {arrivals!r} is not known.", hint=f"Use {' or '.join(kinds)}.")
    return kinds[arrivals]
