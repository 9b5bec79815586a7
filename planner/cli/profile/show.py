"""`gpuplan profile show`: what a profile file holds, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import console

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.table import Table

    from planner.profilers.schema import MeasuredPoint


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A profile file (CSV).", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the points as one JSON document.")] = False,
) -> None:
    """Show the points of a profile file and where they come from."""
    from planner.profilers.schema import point_record, read_profile_file

    points = read_profile_file(file, with_unusable=True)
    if as_json:
        document = {"schema_version": "1", "kind": "Profile", "points": [point_record(point) for point in points]}
        console.print_json(document)
        return
    if not points:
        console.note(f"{file} has no points.")
    console.print_result(points_table(points))
    origins = dict.fromkeys(origin for point in points if (origin := _origin(point)))
    for origin in origins:
        console.note(origin)


def points_table(points: Iterable[MeasuredPoint]) -> Table:
    """Return the points as a table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("model", "left"),
        ("replica", "left"),
        ("engine", "left"),
        ("tokens", "right"),
        ("load", "left"),
        ("req/s", "right"),
        ("TTFT ms", "right"),
        ("TPOT ms", "right"),
    ):
        table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    for point in points:
        table.add_row(
            escape(point.model),
            escape(f"{point.n_gpus} x {point.gpu} {point.precision}"),
            escape(f"{point.engine} {point.engine_version}".strip()),
            point.size,
            _load(point),
            "-" if point.rate_rps is None else f"{point.rate_rps:.4g}",
            _milliseconds(point.ttft_s),
            _milliseconds(point.tpot_s),
        )
    return table


def _load(point: MeasuredPoint) -> str:
    from rich.markup import escape

    from planner.profilers.schema import USABLE_SANITY

    load = point.load_kind if point.load is None else f"{point.load_kind} {point.load:g}"
    return load if point.sanity in USABLE_SANITY else f"{load}, {escape(point.sanity)}"


def _milliseconds(latencies_s: Mapping[str, float]) -> str:

    if not latencies_s:
        return "-"
    statistic = next(iter(latencies_s))
    return f"{statistic} {latencies_s[statistic] * 1e3:.4g}"


def _origin(point: MeasuredPoint) -> str:
    made = f"{point.tool} {point.tool_version}".strip()
    parts = (point.source, point.source_ref, made, point.as_of.isoformat() if point.as_of else "", point.source_sha256)
    return ", ".join(part for part in parts if part)
