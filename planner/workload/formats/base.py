"""What a trace format is: data, not code. Adding one is a file beside this one and a line in the registry."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Container(StrEnum):
    """How the rows of a file are wrapped."""

    CSV = "CSV"
    JSON_LINES = "JSON lines"
    PARQUET = "Parquet"


class TimeUnit(StrEnum):
    """What an arrival time is written in."""

    DATETIME = "datetime"
    """A date and time of day as in ISO 8601, with or without a zone (then UTC)."""
    SECONDS = "s"
    MILLISECONDS = "ms"
    MICROSECONDS = "us"
    NANOSECONDS = "ns"

    @property
    def ticks_per_s(self) -> float:
        """Ticks of the numeric form per second; datetimes are read into microseconds."""
        return _TICKS_PER_S[self]


_TICKS_PER_S = {
    TimeUnit.DATETIME: 1e6,
    TimeUnit.SECONDS: 1.0,
    TimeUnit.MILLISECONDS: 1e3,
    TimeUnit.MICROSECONDS: 1e6,
    TimeUnit.NANOSECONDS: 1e9,
}


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Which of a file's columns mean what, for files of no known format."""

    arrival: str | None
    """Arrival time; None = the file has lengths only. Numbers need their unit: "ts:ms", or a column whose name ends in
    it (_s, _ms, _us, _ns)."""
    input: str
    """Input (prompt) tokens of a request."""
    output: str
    """Output (generated) tokens of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFormat:
    """The columns (or JSON keys) of one trace format and what they mean."""

    name: str
    title: str
    """For lists that a person reads."""
    input: str
    output: str
    arrival: str | None = None
    arrival_unit: TimeUnit | None = None
    """None = to be found out from the column's name and values."""
    marks: tuple[str, ...] = ()
    """Further columns that a file of this format has; they tell it from others."""
    containers: tuple[Container, ...] = (Container.CSV, Container.PARQUET)
    total: str | None = None
    """Column that must equal input + output: a row cut short is found by it."""
    hashes: str | None = None
    """Key of the prefix-cache block hashes; a file without it is fine."""
    block_tokens: int | None = None
    """Tokens per hashed block; None = found from the file by input = blocks x tokens."""
    is_failure_without_output: bool = False
    """Whether a row with 0 output tokens records a failed request rather than a malformed one."""

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that a file must have to be of this format."""
        columns = (self.arrival, self.input, self.output, self.total, *self.marks)
        return tuple(column for column in columns if column is not None)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Columns that are read from every row, arrival first if there is one."""
        columns = (self.arrival, self.input, self.output, self.total)
        return tuple(column for column in columns if column is not None)

    def matches(self, container: Container, columns: frozenset[str]) -> bool:
        """Return whether a file with these columns in this container is of this format."""
        return container in self.containers and columns.issuperset(self.required)
