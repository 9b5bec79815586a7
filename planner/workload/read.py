"""Reading a trace file of any known format into requests in order of arrival."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.workload import PrefixHashes, Trace
from planner.errors import InputError, UnsupportedFormatError
from planner.units import format_duration
from planner.workload.formats import FORMATS, describe_formats, detect
from planner.workload.formats.base import ColumnMap, Container, TimeUnit, TraceFormat
from planner.workload.formats.generic import (
    GENERIC_NAME,
    LENGTHS_NAME,
    format_of_columns,
    guess_columns,
    parse_columns,
    unit_of_name,
)
from planner.workload.rows import convert, first_problem, judge, with_block_tokens
from planner.workload.source import bundled_traces, open_source, resolve_trace, scan_bytes
from planner.workload.tables import CsvTable, SuspiciousError, open_table

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from planner.workload.rows import Rows, Verdict
    from planner.workload.source import ByteFacts, SourceFile
    from planner.workload.tables import Chunk, Table

__all__ = ["ColumnMap", "TimeUnit", "bundled_traces", "format_names", "parse_columns", "read_trace", "resolve_trace"]

logger = logging.getLogger(__name__)

MAX_DURATION_S = 10 * 365 * 86400.0
"""A wrong unit or a zero among dates makes traces longer than LLM services have existed."""


@dataclass(slots=True, kw_only=True)
class _Gathered:
    """What has been read of a file so far."""

    layout: TraceFormat
    ticks: list[NDArray[np.float64]] = field(default_factory=list)
    inputs: list[NDArray[np.float64]] = field(default_factory=list)
    outputs: list[NDArray[np.float64]] = field(default_factory=list)
    hash_counts: list[NDArray[np.int64]] = field(default_factory=list)
    hashes: list[NDArray[np.int64]] = field(default_factory=list)
    n_bad: int = 0
    n_failed: int = 0

    def add(self, rows: Rows, verdict: Verdict) -> None:
        good = verdict.is_good
        if rows.ticks is not None:
            self.ticks.append(rows.ticks[good])
        self.inputs.append(rows.inputs[good])
        self.outputs.append(rows.outputs[good])
        self.n_bad += int(np.count_nonzero(verdict.is_bad))
        self.n_failed += int(np.count_nonzero(verdict.is_failed))
        if rows.hash_counts is not None and rows.hashes is not None:
            owner_is_good = np.repeat(good, np.maximum(rows.hash_counts, 0))
            self.hash_counts.append(rows.hash_counts[good])
            self.hashes.append(rows.hashes[owner_is_good])


def format_names() -> tuple[str, ...]:
    """Return the names that `read_trace` takes for `format_name`."""
    return (*(known.name for known in FORMATS), GENERIC_NAME, LENGTHS_NAME)


def read_trace(
    path: Path | str,
    *,
    format_name: str | None = None,
    columns: ColumnMap | None = None,
    skip_bad_rows: bool = False,
) -> Trace:
    """Return the requests of a trace file, zero-based and in order of arrival (ties in the file's order).

    Parameters
    ----------
    path : the file, plain or gzip, or "bundled:NAME"; its format is found by its content.
    format_name : one of `format_names()`, to insist on a format.
    columns : which columns mean what, for a file of no known format.
    skip_bad_rows : drop malformed rows and count them in `Trace.n_bad_rows`, instead of refusing the file.

    Raises
    ------
    InputError: if the file cannot be read or a row is malformed (with its line); if no request is left.
    UnsupportedFormatError: if the format is not one that gpuplan knows; lists those.
    """
    source = open_source(path)
    table = open_table(source)
    layout = _settle_time(_choose(table, source, format_name=format_name, columns=columns), table, source)
    delimiter = table.delimiter if isinstance(table, CsvTable) else ","
    facts = scan_bytes(source, delimiter=delimiter)
    gathered = _gather(table, layout, facts, source=source, skip_bad_rows=skip_bad_rows)
    n_requests = sum(len(part) for part in gathered.inputs)
    if n_requests == 0:
        n_left_out = gathered.n_bad + gathered.n_failed
        detail = f": all {n_left_out} rows are malformed or failed" if n_left_out else ""
        raise InputError(f"The trace has no requests{detail}.", where=source.where())
    logger.debug("read %d requests from %s as %s", n_requests, source.label, layout.name)
    return _trace(gathered, source=source, facts=facts)


def _choose(table: Table, source: SourceFile, *, format_name: str | None, columns: ColumnMap | None) -> TraceFormat:
    if columns is not None:
        if format_name not in {None, GENERIC_NAME, LENGTHS_NAME}:
            message = f"Columns are named although the format {format_name!r} has its own."
            raise InputError(message, hint="Give one of the two.", where=source.where())
        return _checked(format_of_columns(columns), table, source)
    if format_name is None:
        found = detect(table.container, table.columns)
        if found is None:
            raise _unknown(table, source)
        return _checked(found, table, source)
    return _checked(_named(format_name, table, source), table, source)


def _named(format_name: str, table: Table, source: SourceFile) -> TraceFormat:
    if format_name in {GENERIC_NAME, LENGTHS_NAME}:
        guessed = guess_columns(table.columns)
        if guessed is None:
            raise _unknown(table, source)
        return format_of_columns(guessed if format_name == GENERIC_NAME else replace(guessed, arrival=None))
    for known in FORMATS:
        if known.name == format_name:
            return known
    hint = f"Known are {', '.join(format_names())}."
    raise UnsupportedFormatError(f"{format_name!r} is not a trace format.", hint=hint)


def _unknown(table: Table, source: SourceFile) -> UnsupportedFormatError:
    message = f"The trace format is not known; its columns are {', '.join(table.columns)}."
    hint = (
        "Name the columns: --columns arrival=COLUMN,input=COLUMN,output=COLUMN (without arrival: lengths only). "
        f"Formats: {describe_formats()}."
    )
    return UnsupportedFormatError(message, hint=hint, where=source.where())


def _checked(layout: TraceFormat, table: Table, source: SourceFile) -> TraceFormat:
    """Return the layout if the file has its columns, each once."""
    if table.container not in layout.containers:
        message = f"The format {layout.name} is {'/'.join(layout.containers)}, and the file is {table.container}."
        raise UnsupportedFormatError(message, where=source.where())
    for column in layout.required:
        # JSON keys may be absent from single objects; the first one need not have them all.
        if column not in table.columns:
            hint = f"The file's columns are {', '.join(table.columns)}."
            message = f"There is no column {column!r}."
            raise UnsupportedFormatError(message, hint=hint, where=source.where(field=column))
        if table.columns.count(column) > 1:
            message = f"The column {column!r} stands in the header twice."
            raise InputError(message, hint="Rename or remove one.", where=source.where(field=column))
    return layout


def _settle_time(layout: TraceFormat, table: Table, source: SourceFile) -> TraceFormat:
    """Return the layout with the unit of its arrival times; a number whose unit would be a guess is refused."""
    if layout.arrival is None or layout.arrival_unit is not None:
        return layout
    sample = table.sample(layout.arrival)
    is_number = isinstance(sample, int | float)
    if isinstance(sample, str):
        try:
            float(sample)
        except ValueError:
            is_number = False
        else:
            is_number = True
    if not is_number:
        return replace(layout, arrival_unit=TimeUnit.DATETIME)
    unit = unit_of_name(layout.arrival)
    if unit is None:
        raise InputError(
            f"The arrival times are numbers such as {sample}, and the column's name does not tell their unit.",
            hint=f"Say it: --columns arrival={layout.arrival}:s,input={layout.input},output={layout.output} (or ms).",
            where=source.where(field=layout.arrival),
        )
    return replace(layout, arrival_unit=unit)


def _gather(
    table: Table, layout: TraceFormat, facts: ByteFacts, *, source: SourceFile, skip_bad_rows: bool
) -> _Gathered:
    if not isinstance(table, CsvTable):
        return _gather_exactly(table, layout, facts, source=source, skip_bad_rows=skip_bad_rows)
    try:
        fast = _Gathered(layout=layout)
        for chunk in table.fast_chunks(layout, facts):
            rows = convert(chunk, layout)
            verdict = judge(rows, layout)
            if verdict.is_bad.any():
                raise SuspiciousError  # noqa: TRY301 - the exact way tells the line
            fast.add(rows, verdict)
    except SuspiciousError:
        return _gather_exactly(table, layout, facts, source=source, skip_bad_rows=skip_bad_rows)
    return fast


def _gather_exactly(
    table: Table, layout: TraceFormat, facts: ByteFacts, *, source: SourceFile, skip_bad_rows: bool
) -> _Gathered:
    gathered = _Gathered(layout=layout)
    for chunk in table.exact_chunks(layout, facts):
        rows = convert(chunk, gathered.layout)
        gathered.layout = with_block_tokens(gathered.layout, rows)
        verdict = judge(rows, gathered.layout, broken=tuple(chunk.broken))
        if verdict.is_bad.any() and not skip_bad_rows:
            raise _bad_row(chunk, rows, gathered.layout, verdict, table=table, source=source)
        gathered.add(rows, verdict)
    return gathered


def _bad_row(
    chunk: Chunk, rows: Rows, layout: TraceFormat, verdict: Verdict, *, table: Table, source: SourceFile
) -> InputError:
    problem = first_problem(chunk, rows, layout, verdict)
    hint = "Correct the row, or skip bad rows (--skip-bad-rows) to drop and count those like it."
    number = chunk.lines[problem.row] if chunk.lines is not None else None
    if table.container is Container.PARQUET:  # has rows, no lines
        message = f"Row {number}: {problem.message}"
        return InputError(message, hint=hint, where=source.where(field=problem.field))
    return InputError(problem.message, hint=hint, where=source.where(line=number, field=problem.field))


def _trace(gathered: _Gathered, *, source: SourceFile, facts: ByteFacts) -> Trace:
    inputs, outputs = np.concatenate(gathered.inputs), np.concatenate(gathered.outputs)
    order: NDArray[np.int64] | None = None
    arrival_s = np.zeros(len(inputs))
    if gathered.ticks and gathered.layout.arrival_unit is not None:
        ticks = np.concatenate(gathered.ticks)
        if np.any(ticks[1:] < ticks[:-1]):
            order = np.argsort(ticks, kind="stable")
            ticks, inputs, outputs = ticks[order], inputs[order], outputs[order]
        ticks_per_s = gathered.layout.arrival_unit.ticks_per_s
        _check_span((float(ticks[-1]) - float(ticks[0])) / ticks_per_s, gathered.layout, source)
        arrival_s = (ticks - ticks[0]) / ticks_per_s
    return Trace(
        arrival_s=arrival_s,
        input_tokens=inputs.astype(np.int64),
        output_tokens=outputs.astype(np.int64),
        prefix=_prefix(gathered, order),
        source=source.label,
        sha256=facts.sha256,
        format_name=gathered.layout.name,
        n_bad_rows=gathered.n_bad,
        n_failed_requests=gathered.n_failed,
        has_arrivals=bool(gathered.ticks),
    )


def _check_span(duration_s: float, layout: TraceFormat, source: SourceFile) -> None:
    if duration_s > MAX_DURATION_S:
        message = f"The arrivals span {format_duration(duration_s)}, more than any trace lasts."
        hint = f"Either one of them is wrong (a 0 among dates?) or their unit is not {layout.arrival_unit}."
        raise InputError(message, hint=hint, where=source.where(field=layout.arrival))


def _prefix(gathered: _Gathered, order: NDArray[np.int64] | None) -> PrefixHashes | None:
    if not gathered.hashes or gathered.layout.block_tokens is None:
        return None
    counts, hashes = np.concatenate(gathered.hash_counts), np.concatenate(gathered.hashes)
    if len(hashes) == 0:
        return None
    if order is not None:
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))[order]
        counts = counts[order]
        # Element k of the result is element (k - first k of its request) of that request's old place.
        within = np.arange(len(hashes)) - np.repeat(np.cumsum(counts) - counts, counts)
        hashes = hashes[np.repeat(starts, counts) + within]
    offsets = np.concatenate(([0], np.cumsum(counts)))
    return PrefixHashes(hashes=hashes, offsets=offsets, block_tokens=gathered.layout.block_tokens)
