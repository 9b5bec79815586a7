"""`gpuplan profile`: what a replica serves, measured, imported or estimated, as one kind of file."""

from __future__ import annotations

import typer

from planner.cli.profile import endpoint, show

app = typer.Typer(add_completion=False)
app.command("endpoint")(endpoint.command)
app.command("show")(show.command)
