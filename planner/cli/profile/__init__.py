"""`gpuplan profile`: what a replica serves, measured, imported or estimated, as one kind of file."""

from __future__ import annotations

import typer

from planner.cli.profile import calibrate, endpoint, estimate, import_, kernels, show, startup

app = typer.Typer(add_completion=False)
app.command("endpoint")(endpoint.command)
app.command("kernels")(kernels.command)
app.command("import")(import_.command)
app.command("estimate")(estimate.command)
app.command("calibrate")(calibrate.command)
app.command("startup")(startup.command)
app.command("show")(show.command)
