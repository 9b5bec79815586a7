"""`gpuplan init`: a request to start from."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import console
from planner.cli.options import ForceOption, OutputOption


def command(
    output: OutputOption = None,
    model: Annotated[str, typer.Option(help="Model that the request serves.")] = "meta-llama/Llama-3.1-8B",
    trace: Annotated[str, typer.Option(help="Trace that the request plans for.")] = "bundled:azure_conv_2023",
    force: ForceOption = False,
) -> None:
    """Write a commented request that plans as it stands."""
    from planner.files.bundled import bundled

    template = bundled("examples", "request.yaml").read_text(encoding="utf-8")
    text = template.replace("meta-llama/Llama-3.1-8B", model).replace("bundled:azure_conv_2023", trace)
    console.write_result(output or "-", text, force=force)
