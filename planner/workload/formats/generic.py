"""Files of no published format: columns that the user names, or names that can mean only one thing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.workload.formats.base import ColumnMap, Container, TimeUnit, TraceFormat

if TYPE_CHECKING:
    from collections.abc import Iterable

GENERIC_NAME = "generic"
LENGTHS_NAME = "lengths"

_INPUT = (
    "input_tokens",
    "input_length",
    "input_len",
    "prompt_tokens",
    "prompt_length",
    "prompt_len",
    "num_prefill_tokens",
    "num_prompt_tokens",
)
_OUTPUT = (
    "output_tokens",
    "output_length",
    "output_len",
    "completion_tokens",
    "completion_len",
    "response_tokens",
    "generated_tokens",
    "num_decode_tokens",
    "num_output_tokens",
)
_ARRIVAL = re.compile(
    r"arriv|timestamp|start|when|offset|(?:^|_)(?:time|ts|date|datetime|at)(?:_|$)|_(?:s|sec|seconds|ms|us|ns)$",
    re.IGNORECASE,
)
_DURATION = re.compile(r"elapsed|latency|duration|ttft|tpot|e2e", re.IGNORECASE)
_UNIT_SUFFIX = {"s": TimeUnit.SECONDS, "sec": TimeUnit.SECONDS, "seconds": TimeUnit.SECONDS} | {
    unit.value: unit for unit in (TimeUnit.MILLISECONDS, TimeUnit.MICROSECONDS, TimeUnit.NANOSECONDS)
}


def format_of_columns(columns: ColumnMap) -> TraceFormat:
    """Return the format of a file whose columns the user names."""
    arrival, unit = _split_unit(columns.arrival)
    return TraceFormat(
        name=LENGTHS_NAME if arrival is None else GENERIC_NAME,
        title="columns named by the user",
        arrival=arrival,
        arrival_unit=unit,
        input=columns.input,
        output=columns.output,
        containers=tuple(Container),
    )


def guess_columns(columns: Iterable[str]) -> ColumnMap | None:
    """Return what the columns mean if their names leave no choice, else None.

    A column that looks like a time of arrival is never left out: lengths without times are a different workload.
    """
    names = list(columns)
    by_lower = {name.lower(): name for name in names}
    inputs = [by_lower[name] for name in _INPUT if name in by_lower]
    outputs = [by_lower[name] for name in _OUTPUT if name in by_lower]
    arrivals = [name for name in names if _ARRIVAL.search(name) and not _DURATION.search(name)]
    if len(inputs) != 1 or len(outputs) != 1 or len(arrivals) > 1:
        return None
    return ColumnMap(input=inputs[0], output=outputs[0], arrival=arrivals[0] if arrivals else None)


def unit_of_name(column: str) -> TimeUnit | None:
    """Return the unit that a column's name ends in.

    Examples
    --------
    >>> unit_of_name("arrival_ms").value, unit_of_name("timestamp")
    ('ms', None)
    """
    return _UNIT_SUFFIX.get(column.lower().rpartition("_")[2]) if "_" in column else None


def parse_columns(text: str) -> ColumnMap:
    """Return the columns that "arrival=ts:ms,input=prompt,output=completion" names.

    Raises
    ------
    InputError: if a part is unknown, repeated or missing.

    Examples
    --------
    >>> parse_columns("input=a,output=b").output
    'b'
    """
    hint = "Write it as 'arrival=COLUMN[:s|ms|us|ns],input=COLUMN,output=COLUMN'; without arrival, lengths only."
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, column = part.partition("=")
        key, column = key.strip(), column.strip()
        if not equals or not column or key not in {"arrival", "input", "output"}:
            raise InputError(f"{part.strip()!r} does not name a column.", hint=hint)
        if key in found:
            raise InputError(f"{key!r} is named twice in {text!r}.", hint=hint)
        found[key] = column
    for key in ("input", "output"):
        if key not in found:
            raise InputError(f"{text!r} does not say which column is {key!r}.", hint=hint)
    return ColumnMap(arrival=found.get("arrival"), input=found["input"], output=found["output"])


def _split_unit(arrival: str | None) -> tuple[str | None, TimeUnit | None]:
    if arrival is None or ":" not in arrival:
        return arrival, None
    column, _, unit = arrival.rpartition(":")
    return (column, TimeUnit(unit)) if unit in set(TimeUnit) else (arrival, None)
