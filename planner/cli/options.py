"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document to stdout.")]
OutputOption = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write to FILE, format by its suffix; - is stdout."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
