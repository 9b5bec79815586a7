"""From a chunk of a file to checked numbers: what makes a row malformed, and how that is said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.workload.formats.base import TimeUnit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from planner.workload.formats.base import TraceFormat
    from planner.workload.tables import Chunk

MAX_TOKENS = 1_000_000_000
"""A larger number in a token column is an identifier or a date, not a length; no model has a context near it."""

DEFAULT_BLOCK_TOKENS = 512
"""Tokens per prefix block of Mooncake's own traces (FAST'25 release)."""
_MAX_SHOWN_CHARS = 60
_MIN_DATETIME_CHARS = len("20231116T1815")
_BLOCK_TOKENS = (DEFAULT_BLOCK_TOKENS, 16, 32, 64, 128, 256, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The numbers of a chunk; shape (rows,) each."""

    ticks: NDArray[np.float64] | None
    """Arrival in the layout's unit (datetimes: microseconds since 1970); NaN = no time."""
    inputs: NDArray[np.float64]
    outputs: NDArray[np.float64]
    totals: NDArray[np.float64] | None
    hash_counts: NDArray[np.int64] | None
    """Hashed blocks per request; -1 = not a list of whole numbers."""
    hashes: NDArray[np.int64] | None
    """Flattened; of rows with count >= 0 only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Which rows of a chunk are usable."""

    is_failed: NDArray[np.bool_]
    """Requests that failed, not malformed."""
    is_bad: NDArray[np.bool_]

    @property
    def is_good(self) -> NDArray[np.bool_]:
        """Rows that become requests."""
        return ~(self.is_failed | self.is_bad)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with one row."""

    row: int
    """Position in the chunk."""
    field: str | None
    message: str


def convert(chunk: Chunk, layout: TraceFormat) -> Rows:
    """Return a chunk's numbers; what is not a number is NaN."""
    return Rows(
        ticks=None if layout.arrival is None else _ticks(chunk.numbers[layout.arrival], layout.arrival_unit),
        inputs=_numbers(chunk.numbers[layout.input]),
        outputs=_numbers(chunk.numbers[layout.output]),
        totals=None if layout.total is None else _numbers(chunk.numbers[layout.total]),
        hash_counts=chunk.hash_counts,
        hashes=chunk.hashes,
    )


def _numbers(column: pd.Series[Any]) -> NDArray[np.float64]:
    import pandas as pd  # noqa: PLC0415

    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_bool_dtype(column):
        return np.full(len(column), np.nan)
    numeric = pd.to_numeric(column, errors="coerce")
    return np.asarray(numeric.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)


def _ticks(column: pd.Series[Any], unit: TimeUnit | None) -> NDArray[np.float64]:
    import pandas as pd  # noqa: PLC0415

    if unit is not TimeUnit.DATETIME:
        return _numbers(column)
    if pd.api.types.is_numeric_dtype(column):
        return np.full(len(column), np.nan)
    times = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")
    ticks = np.asarray(times.dt.as_unit("us").astype("int64").to_numpy(), dtype=np.float64)
    is_time = times.notna()
    if not pd.api.types.is_datetime64_any_dtype(column):
        # pandas also takes "now", "today" and a year alone.
        is_time &= column.str.len() >= _MIN_DATETIME_CHARS
    ticks[~is_time.to_numpy()] = np.nan
    return ticks


def with_block_tokens(layout: TraceFormat, rows: Rows) -> TraceFormat:
    """Return the layout with the block size under which most rows have as many hashes as their input has blocks."""
    if layout.hashes is None or layout.block_tokens is not None or rows.hash_counts is None:
        return layout
    has_hashes = rows.hash_counts > 0
    counts, inputs = rows.hash_counts[has_hashes], rows.inputs[has_hashes]
    matches = [int(np.count_nonzero(np.ceil(inputs / size) == counts)) for size in _BLOCK_TOKENS]
    best = _BLOCK_TOKENS[int(np.argmax(matches))] if 2 * max(matches) > len(counts) else DEFAULT_BLOCK_TOKENS
    return replace(layout, block_tokens=best)


def _is_length(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    is_length: NDArray[np.bool_] = (values >= 1) & (values <= MAX_TOKENS) & (values == np.floor(values))
    return is_length


def _has_right_hashes(rows: Rows, layout: TraceFormat) -> NDArray[np.bool_]:
    if rows.hash_counts is None or layout.block_tokens is None:
        return np.ones(len(rows.inputs), dtype=np.bool_)
    is_list: NDArray[np.bool_] = rows.hash_counts >= 0
    if layout.marks:  # Bailian: how it counts the last, partial block is not published
        return is_list
    is_list &= (rows.hash_counts == 0) | (rows.hash_counts == np.ceil(rows.inputs / layout.block_tokens))
    return is_list


def judge(rows: Rows, layout: TraceFormat, *, broken: Sequence[int] = ()) -> Verdict:
    """Return which rows record failures and which are malformed."""
    is_whole = np.ones(len(rows.inputs), dtype=np.bool_)
    is_whole[list(broken)] = False
    if rows.ticks is not None:
        is_whole &= np.isfinite(rows.ticks)
    if rows.totals is not None:
        is_whole &= rows.totals == rows.inputs + rows.outputs
    is_failed = is_whole & (rows.outputs == 0) & (rows.inputs >= 0) & layout.is_failure_without_output
    is_request = is_whole & _is_length(rows.inputs) & _is_length(rows.outputs) & _has_right_hashes(rows, layout)
    return Verdict(is_failed=is_failed, is_bad=~(is_request | is_failed))


def first_problem(chunk: Chunk, rows: Rows, layout: TraceFormat, verdict: Verdict) -> Problem:
    """Return what is wrong with the chunk's first malformed row."""
    row = int(np.argmax(verdict.is_bad))
    if row in chunk.broken:
        return Problem(row=row, field=None, message=chunk.broken[row])
    if rows.ticks is not None and layout.arrival is not None and not np.isfinite(rows.ticks[row]):
        wanted = (
            "a date and time such as 2023-11-16 18:15:46.68"
            if layout.arrival_unit is TimeUnit.DATETIME
            else f"a number ({layout.arrival_unit})"
        )
        return Problem(
            row=row, field=layout.arrival, message=f"The arrival {_raw(chunk, layout.arrival, row)} is not {wanted}."
        )
    for column, values in ((layout.input, rows.inputs), (layout.output, rows.outputs)):
        if not _is_length(values[row : row + 1])[0]:
            message = f"{_raw(chunk, column, row)} is not a number of tokens; it must be whole and at least 1."
            return Problem(row=row, field=column, message=message)
    if (
        rows.totals is not None
        and layout.total is not None
        and rows.totals[row] != rows.inputs[row] + rows.outputs[row]
    ):
        total = rows.inputs[row] + rows.outputs[row]
        message = f"The total is {_raw(chunk, layout.total, row)}, but input and output add up to {total:.0f}."
        return Problem(row=row, field=layout.total, message=message)
    return _hash_problem(row, rows, layout)


def _hash_problem(row: int, rows: Rows, layout: TraceFormat) -> Problem:
    counts = rows.hash_counts
    if counts is None or counts[row] < 0 or layout.block_tokens is None:
        return Problem(row=row, field=layout.hashes, message="The prefix hashes are not a list of whole numbers.")
    n_blocks = int(np.ceil(rows.inputs[row] / layout.block_tokens))
    message = f"{counts[row]} prefix hashes, but {rows.inputs[row]:.0f} tokens fill {n_blocks} blocks of "
    return Problem(row=row, field=layout.hashes, message=f"{message}{layout.block_tokens}.")


def _raw(chunk: Chunk, column: str, row: int) -> str:
    value = chunk.numbers[column].iloc[row]
    value = value.item() if isinstance(value, np.generic) else value
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    if value is None or value == "" or value != value:  # noqa: PLR0124 - NaN
        return "(empty)"
    text = str(value) if _is_number(value) else repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."


def _is_number(value: object) -> bool:
    if not isinstance(value, str):
        return isinstance(value, int | float)
    try:
        float(value)
    except ValueError:
        return False
    return True
