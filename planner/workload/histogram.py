"""Histograms of request sizes: what is known of a load where there is no trace of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

from planner.domain.workload import Bucket, Demand
from planner.errors import InputError, UnsupportedFormatError
from planner.workload.buckets import check_rate, constant_demand
from planner.workload.source import open_source
from planner.workload.tables import numbered_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from planner.workload.source import SourceFile

__all__ = ["Histogram", "HistogramCell", "WeightKind", "constant_demand", "demand_from_histogram", "read_histogram"]

FRACTION_TOLERANCE = 0.01
"""Fractions are rounded when written; further than this from 1 in total, some are missing."""

_RANGE_COLUMNS = ("in_lo", "in_hi", "out_lo", "out_hi")
_MEAN_COLUMNS = ("in_mean", "out_mean")


class WeightKind(StrEnum):
    """What a histogram's cells hold."""

    COUNT = "count"
    FRACTION = "fraction"
    RATE = "rate"
    """Requests per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramCell:
    """Requests of sizes in [from, to) tokens."""

    input_range: tuple[int, int]
    output_range: tuple[int, int]
    weight: float
    input_tokens: float
    """Representative size: the mean where the file has it, else the middle of the range."""
    output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """A table of request sizes and how often they occur."""

    cells: tuple[HistogramCell, ...]
    """Ordered by (input, output); input ranges are equal or apart, output ranges alike."""
    kind: WeightKind
    source: str

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return math.fsum(cell.weight for cell in self.cells)


def read_histogram(path: Path | str) -> Histogram:
    """Return a histogram from a CSV file or a JSON matrix.

    CSV: columns in_lo, in_hi, out_lo, out_hi (tokens, upper ends excluded), one of count, fraction and rate (req/s),
    and optionally in_mean, out_mean. JSON: {"input_edges": [...], "output_edges": [...], "counts": [[...]]} with upper
    edges as in Mélange, one row per input range; "fractions" or "rates" instead of "counts".

    Raises
    ------
    InputError: if the file cannot be read or makes no sense, with the line.
    """
    source = open_source(path)
    if source.head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        cells, kind = _from_json(source)
    else:
        cells, kind = _from_csv(source)
    ordered = tuple(sorted(cells, key=lambda cell: (cell.input_range, cell.output_range)))
    histogram = Histogram(cells=ordered, kind=kind, source=source.label)
    if not histogram.total > 0:
        raise InputError("The histogram counts no requests.", where=source.where())
    if kind is WeightKind.FRACTION and abs(histogram.total - 1) > FRACTION_TOLERANCE:
        message = f"The fractions add up to {histogram.total:.6g}, not to 1."
        raise InputError(message, hint="Complete them, or call the column 'count'.", where=source.where())
    _check_ranges(histogram, source)
    return histogram


def demand_from_histogram(histogram: Histogram, *, service: str, rate_rps: float | None = None) -> Demand:
    """Return the demand of a load with these sizes at a total rate in requests per second.

    `rate_rps` may be left out only if the histogram holds rates. Buckets plan with the mean size where the file has
    it, else with the middle of the range, (from + to) / 2.

    Raises
    ------
    InputError: if there is no rate, or it makes no sense.
    """
    if rate_rps is None:
        if histogram.kind is not WeightKind.RATE:
            message = f"{histogram.source} holds {histogram.kind}s, so it has no rate."
            raise InputError(message, hint="Give a rate, e.g. '30 req/s'.")
        rate_rps = histogram.total
    check_rate(rate_rps)
    rows = {key: row for row, key in enumerate(sorted({cell.input_range for cell in histogram.cells}))}
    columns = {key: column for column, key in enumerate(sorted({cell.output_range for cell in histogram.cells}))}
    buckets = tuple(
        Bucket(
            row=rows[cell.input_range],
            column=columns[cell.output_range],
            rate_rps=rate_rps * cell.weight / histogram.total,
            input_range=cell.input_range,
            output_range=cell.output_range,
            input_tokens=cell.input_tokens,
            output_tokens=cell.output_tokens,
        )
        for cell in histogram.cells
        if cell.weight > 0
    )
    basis = f"{rate_rps:g} req/s with the sizes of {histogram.source}"
    return Demand(service=service, buckets=buckets, basis=basis)


def _from_csv(source: SourceFile) -> tuple[list[HistogramCell], WeightKind]:
    with source.open_text() as text:
        rows = numbered_rows(text, delimiter=",", source=source)
        header_line, header = next(rows)
        names = [name.strip() for name in header]
        kind = _kind_of_columns(names, source, header_line)
        cells: dict[tuple[tuple[int, int], tuple[int, int]], HistogramCell] = {}
        for line, row in rows:
            cell = _csv_cell(dict(zip(names, row, strict=False)), kind, source, line)
            key = (cell.input_range, cell.output_range)
            if key in cells:
                raise InputError("This pair of ranges stands in the file twice.", where=source.where(line=line))
            cells[key] = cell
    return list(cells.values()), kind


def _kind_of_columns(names: list[str], source: SourceFile, line: int) -> WeightKind:
    kinds = [kind for kind in WeightKind if kind.value in names]
    missing = [name for name in _RANGE_COLUMNS if name not in names]
    if missing or not kinds:
        hint = f"A histogram has the columns {', '.join(_RANGE_COLUMNS)} and one of count, fraction and rate."
        message = f"Not a histogram: its columns are {', '.join(names)}."
        raise UnsupportedFormatError(message, hint=hint, where=source.where(line=line))
    # Where a file has several, they tell the same; rates say most, counts are exact.
    return next(kind for kind in (WeightKind.RATE, WeightKind.COUNT, WeightKind.FRACTION) if kind in kinds)


def _csv_cell(row: dict[str, str], kind: WeightKind, source: SourceFile, line: int) -> HistogramCell:
    def number(name: str) -> float:
        text = row.get(name, "")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            shown = repr(text) if text else "(empty)"
            hint = "Ranges need an upper end; open ones are not known to end." if name.endswith("_hi") else ""
            message = f"{shown} is not a number of 0 or more."
            raise InputError(message, hint=hint, where=source.where(line=line, field=name))
        return value

    ranges = [number(name) for name in _RANGE_COLUMNS]
    if any(value != int(value) for value in ranges):
        raise InputError("Ranges are whole tokens.", where=source.where(line=line))
    in_lo, in_hi, out_lo, out_hi = map(int, ranges)
    means = [number(name) if row.get(name) else None for name in _MEAN_COLUMNS]
    return HistogramCell(
        input_range=(in_lo, in_hi),
        output_range=(out_lo, out_hi),
        weight=number(kind.value),
        input_tokens=_representative(in_lo, in_hi, means[0], source, line=line, field="in_mean"),
        output_tokens=_representative(out_lo, out_hi, means[1], source, line=line, field="out_mean"),
    )


def _representative(
    low: int, high: int, mean: float | None, source: SourceFile, *, line: int | None, field: str
) -> float:
    if low >= high:
        message = f"The range from {low} to {high} tokens is empty."
        raise InputError(message, hint="Upper ends are excluded.", where=source.where(line=line))
    if mean is None:
        return max(1.0, (low + high) / 2)
    if not low <= mean <= high:
        message = f"The mean {mean:g} lies outside of its range, {low} to {high}."
        raise InputError(message, where=source.where(line=line, field=field))
    return mean


def _from_json(source: SourceFile) -> tuple[list[HistogramCell], WeightKind]:
    with source.open_text() as text:
        content = text.read()
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(f"Not valid JSON: {error.msg}.", where=source.where(line=error.lineno)) from error
    kinds = [kind for kind in WeightKind if f"{kind}s" in document]
    if len(kinds) != 1 or not {"input_edges", "output_edges"} <= document.keys():
        hint = "It has the keys input_edges, output_edges and one of counts, fractions and rates."
        message = f"Not a histogram: its keys are {', '.join(document)}."
        raise UnsupportedFormatError(message, hint=hint, where=source.where())
    inputs, outputs = (_json_ranges(document[name], name, source) for name in ("input_edges", "output_edges"))
    matrix, name = document[f"{kinds[0]}s"], f"{kinds[0]}s"
    if not _is_matrix(matrix, len(inputs), len(outputs)):
        message = f"The matrix is not {len(inputs)} rows of {len(outputs)} numbers, as the edges have it."
        raise InputError(message, where=source.where(field=name))
    cells = []
    for row, input_range in enumerate(inputs):
        for column, output_range in enumerate(outputs):
            weight = matrix[row][column]
            if not (math.isfinite(weight) and weight >= 0):
                _refuse(source, f"{name}[{row}][{column}]", f"{weight!r} is not a number of 0 or more.")
            cells.append(
                HistogramCell(
                    input_range=input_range,
                    output_range=output_range,
                    weight=float(weight),
                    input_tokens=max(1.0, sum(input_range) / 2),
                    output_tokens=max(1.0, sum(output_range) / 2),
                )
            )
    return cells, kinds[0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_matrix(matrix: object, n_rows: int, n_columns: int) -> bool:
    return (
        isinstance(matrix, list)
        and len(matrix) == n_rows
        and all(isinstance(row, list) and len(row) == n_columns and all(map(_is_number, row)) for row in matrix)
    )


def _refuse(source: SourceFile, field: str, message: str) -> NoReturn:
    raise InputError(message, where=source.where(field=field))


def _json_ranges(edges: object, name: str, source: SourceFile) -> Sequence[tuple[int, int]]:
    if not isinstance(edges, list) or not edges or any(type(edge) is not int for edge in edges):
        _refuse(source, name, "Edges are a list of whole numbers of tokens.")
    ends = [0, *edges]
    if any(low >= high for low, high in pairwise(ends)):
        _refuse(source, name, "Edges are upper ends: each larger than the one before, the first above 0.")
    return list(pairwise(ends))


def _check_ranges(histogram: Histogram, source: SourceFile) -> None:
    for what, ranges in (
        ("input", sorted({cell.input_range for cell in histogram.cells})),
        ("output", sorted({cell.output_range for cell in histogram.cells})),
    ):
        for (low, high), (next_low, next_high) in pairwise(ranges):
            if next_low < high:
                message = f"The {what} ranges {low} to {high} and {next_low} to {next_high} overlap."
                raise InputError(message, hint="Ranges are equal or apart.", where=source.where())
