"""A replay as one HTML page that needs no network, and a sweep over load as CSV and such a page."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from planner.report.page import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.report.lines import LineChart
    from planner.report.page import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str
    tone: str = ""
    """good, bad or warn; empty = as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of a page."""

    title: str
    columns: tuple[str, ...]
    """Names; those that end in "#" hold numbers."""
    rows: tuple[tuple[Cell, ...], ...]
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPage:
    """What a page shows, from top to bottom."""

    title: str
    verdict: str
    tone: str
    """good or bad."""
    headline: str
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    charts: tuple[LineChart, ...]
    later_tables: tuple[Table, ...] = ()
    """Below the charts, folded where they are long."""
    notes: tuple[str, ...] = ()


def result_html(page: ResultPage) -> str:
    """Return the page; it loads nothing from anywhere."""
    return environment().get_template("result.html.j2").render(page=page, version=metadata.version("gpuplan"))


def rows_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows with the same keys as CSV; None is an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return stream.getvalue()
