"""`gpuplan profile startup`: how long a replica takes to start, part by part."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import console
from planner.cli.options import JsonOption
from planner.errors import InputError

GIGA = 1e9


def command(
    model: Annotated[str, typer.Option(metavar="NAME_OR_CONFIG", help="A library model or a config.json.")],
    gpu: Annotated[str, typer.Option(metavar="NAME", help="A GPU of the catalog.")],
    storage_gb_s: Annotated[
        float, typer.Option("--storage-gb-s", metavar="X", help="Read rate of where the weights lie, in GB/s.")
    ],
    tp: Annotated[int, typer.Option(min=1, help="GPUs that the weights are spread over.")] = 1,
    precision: Annotated[str, typer.Option(metavar="NAME", help="Of the weights; default: as published.")] = "",
    loader: Annotated[
        str, typer.Option(metavar="NAME", help="safetensors, runai-streamer, tensorizer or serverlessllm.")
    ] = "safetensors",
    provision: Annotated[
        str | None, typer.Option(metavar="TIME", help="Until the machine runs; default: it does already.")
    ] = None,
    image_gb: Annotated[
        float, typer.Option("--image-gb", min=0.0, metavar="X", help="Size of the container's image, if not there yet.")
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Tell how long a replica takes from a rented machine to its first token, in the median and at the p99."""
    from planner.catalog.gpus import load_gpus
    from planner.catalog.models import load_model
    from planner.domain.precision import BYTES_PER_PARAMETER, weight_bytes
    from planner.profilers.startup import start_up
    from planner.units import format_bytes, parse_duration_s

    if not 0 < storage_gb_s < float("inf"):
        raise InputError(f"--storage-gb-s {storage_gb_s:g} is no rate.", hint="Give GB/s above 0, e.g. 2.5.")
    architecture = load_model(model)
    named = precision or architecture.native_precision
    used = named if named in BYTES_PER_PARAMETER or precision else "bf16"
    spec = load_gpus().get(gpu)
    needed = weight_bytes(architecture, used)
    if needed > tp * spec.memory_bytes:
        raise InputError(
            f"The weights of {architecture.name} in {used} take {format_bytes(needed)}: {tp} x {spec.name} has less.",
            hint="Use more GPUs (--tp) or another --precision.",
        )
    found = start_up(
        architecture,
        spec,
        precision=used,
        n_gpus=tp,
        storage_bytes_per_s=storage_gb_s * GIGA,
        loader=loader,
        provision_s=None if provision is None else parse_duration_s(provision),
        image_bytes=image_gb * GIGA,
    )
    if as_json:
        document = {
            "schema_version": "1",
            "kind": "StartUp",
            "total_s": {"p50": found.total_s.p50, "p99": found.total_s.p99},
            "parts": {name: part.p50 for name, part in found.parts.items()},
            "parts_p99": {name: part.p99 for name, part in found.parts.items()},
            "assumptions": list(found.assumptions),
        }
        console.print_json(document)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("part", "p50 s", "p99 s"):
        table.add_column(title, justify="left" if title == "part" else "right")
    for name, part in (*found.parts.items(), ("total_s", found.total_s)):
        table.add_row(name.removesuffix("_s"), f"{part.p50:.1f}", f"{part.p99:.1f}")
    console.print_result(table)
    for text in found.assumptions:
        console.note(text)
