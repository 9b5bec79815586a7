"""`gpuplan adapters`: ways to serve many adapters (LoRA) of one model, compared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import console
from planner.cli.options import JsonOption
from planner.errors import InputError, Where
from planner.units import format_duration, format_usd, parse_duration_s, parse_usd_per_hour

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from planner.domain.adapters import Adapter
    from planner.domain.distributions import HyperExponential, Weibull
    from planner.planning.function_case import FunctionCase
    from planner.planning.function_ways import Comparison, WayOutcome
    from planner.workload.adapter_traffic import AdapterTraffic

app = typer.Typer(add_completion=False)

GIGA = 1e9
POISSON_SHAPE = 1.0
"""Weibull gaps of this shape are those of a Poisson process."""


@app.command("compare")
def compare(
    adapters: Annotated[
        Path, typer.Argument(help="CSV with the columns name, rank, target_modules and rate; optionally slo.")
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
    hours: Annotated[float, typer.Option(metavar="H", help="Time to make requests for; half of it is judged.")] = 24.0,
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
    """Compare four ways to serve adapters: always on, in one pool, serverless, or on a shared backbone."""
    import numpy as np

    from planner.catalog.gpus import load_gpus
    from planner.catalog.models import load_model
    from planner.files.adapters_csv import read_adapters
    from planner.files.slo import parse_slo
    from planner.planning.function_case import Hosting, Sizes, function_case
    from planner.planning.function_ways import Prices
    from planner.planning.functions import compare_ways
    from planner.profilers.efficiency import default_params

    if not 0 < storage_gb_s < math.inf:
        raise InputError(f"--storage-gb-s {storage_gb_s:g} is no rate.", hint="Give GB/s above 0, e.g. 2.5.")
    if not 0 < hours < math.inf:
        raise InputError(f"--hours {hours:g} is no time.", hint="Give hours above 0, e.g. 24.")
    prices = Prices(usd_per_gpu_hour=parse_usd_per_hour(price), usd_per_used_gpu_s=used_price)
    listed = read_adapters(adapters)
    case = function_case(
        load_model(model),
        load_gpus().get(gpu),
        listed,
        sizes=Sizes(input_tokens=input_tokens, output_tokens=output_tokens),
        slos=[parse_slo(text) for text in slo],
        hosting=Hosting(
            storage_bytes_per_s=storage_gb_s * GIGA,
            loader=loader,
            host_bytes=host_gb * GIGA,
            provision_s=parse_duration_s(provision),
            captures_graphs=graphs,
        ),
        params=default_params(),
        precision=precision,
    )
    requests = _traffic(listed, adapters, arrivals, hours, np.random.default_rng(seed))
    found = compare_ways(requests, case, prices, seed=seed)
    if as_json:
        console.print_json(_document(found, case, hours))
        return
    console.print_result(_table(found), *_lines(found, len(listed)))
    for text in (*found.cautions, *case.assumptions):
        console.note(text)


def _traffic(
    listed: tuple[Adapter, ...], path: Path, arrivals: str, hours: float, rng: np.random.Generator
) -> AdapterTraffic:
    """Return made-up requests at the stated rates."""
    from planner.domain.distributions import Weibull
    from planner.workload.adapter_traffic import traffic_at_rates
    from planner.workload.popularity import default_gaps

    kinds: dict[str, HyperExponential | Weibull] = {
        "bursty": default_gaps(),
        "poisson": Weibull.of_mean(1.0, shape=POISSON_SHAPE),
    }
    if arrivals not in kinds:
        raise InputError(f"--arrivals {arrivals!r} is not known.", hint=f"Use {' or '.join(kinds)}.")
    for adapter in listed:
        if adapter.rate_rps is None:
            raise InputError(
                f"Adapter {adapter.name!r} has a trace, which is not read here.",
                hint="Give its mean rate, e.g. rate: 2 req/s.",
                where=Where(path=str(path)),
            )
    rates = [adapter.rate_rps or 0.0 for adapter in listed]
    return traffic_at_rates(rates, rng, duration_s=hours * 3600.0, gaps=kinds[arrivals])


def _table(found: Comparison) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in (
        "way",
        "GPUs",
        "GPU h",
        "USD",
        "USD/1000",
        "TTFT p50",
        "p99",
        "E2E p50",
        "within",
        "worst",
        "cold",
        "",
    ):
        is_word = title in {"way", ""}
        table.add_column(title, justify="left" if is_word else "right", no_wrap=is_word, overflow="fold")
    for way in found.ways:
        table.add_row(
            way.way.value,
            _gpus(way),
            f"{way.gpu_s / 3600:.1f}",
            format_usd(way.cost_usd),
            format_usd(found.usd_per_1000(way)),
            format_duration(way.ttft_p50_s),
            format_duration(way.ttft_p99_s),
            format_duration(way.e2e_p50_s),
            f"{way.attainment:.1%}",
            "-" if math.isnan(way.least_attainment) else f"{way.least_attainment:.0%}",
            f"{way.cold_fraction:.1%}",
            "" if found.meets(way) else "misses",
        )
    return table


def _gpus(way: WayOutcome) -> str:
    """Return how many GPUs are always on, and the most that were held at a time."""
    return f"{way.n_always_on}" if way.most_gpus == way.n_always_on else f"{way.n_always_on} to {way.most_gpus}"


def _lines(found: Comparison, n_adapters: int) -> list[str]:
    judged = (
        f"{found.n_requests:,} requests for {n_adapters} adapters in {format_duration(found.duration_s)};"
        f" {found.target_fraction:.1%} have to be within their SLOs."
    )
    best = found.cheapest
    if best is None:
        return [judged, "No way meets the SLOs."]
    return [
        judged,
        f"Cheapest that does: {best.way.value}, {format_usd(found.usd_per_1000(best))} USD for 1000 requests.",
    ]


def _document(found: Comparison, case: FunctionCase, hours: float) -> dict[str, Any]:
    best = found.cheapest
    return {
        "schema_version": "1",
        "kind": "AdapterWays",
        "hours": hours,
        "judged_s": found.duration_s,
        "requests": found.n_requests,
        "target_fraction": found.target_fraction,
        "cheapest": None if best is None else best.way.value,
        "ways": [_way(way, found) for way in found.ways],
        "cautions": list(found.cautions),
        "assumptions": list(case.assumptions),
    }


def _way(way: WayOutcome, found: Comparison) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "way": way.way.value,
        "is_met": found.meets(way),
        "gpus_always_on": way.n_always_on,
        "gpus_at_most": way.most_gpus,
        "gpu_s": way.gpu_s,
        "cost_usd": way.cost_usd,
        "usd_per_1000_requests": found.usd_per_1000(way),
        "ttft_p50_s": number(way.ttft_p50_s),
        "ttft_p99_s": number(way.ttft_p99_s),
        "e2e_p50_s": number(way.e2e_p50_s),
        "attainment": way.attainment,
        "least_attainment": number(way.least_attainment),
        "cold_fraction": way.cold_fraction,
        "busy_fraction": way.busy_fraction,
        "peak_gpu_bytes": float(way.replay.peak_bytes.max()),
        "learnt": {name: number(value) for name, value in way.learnt.items()},
    }
