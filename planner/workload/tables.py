"""The containers of a trace: CSV, JSON lines and Parquet, each handing out its rows in chunks of a few columns.

CSV has two ways. The fast one is pandas' parser, which neither tells the lines of rows nor notices a row with too many
fields; its result is used only if nothing about the file is suspicious. The exact one knows every row's line.
"""

from __future__ import annotations

import csv
import io
import json
from array import array
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from planner.errors import InputError, UnsupportedFormatError
from planner.workload.formats.base import Container

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from planner.workload.formats.base import TraceFormat
    from planner.workload.source import ByteFacts, SourceFile

CHUNK_ROWS = 50_000
"""Bounds memory, and is faster than larger chunks: a chunk's columns stay in the processor's cache."""
EXACT_CHUNK_ROWS = 8_000
"""Smaller, because the exact way makes an object of every field."""
_DELIMITERS = (",", ";", "\t")
_FIRST_ROW_CHARS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some consecutive rows of a file."""

    numbers: Mapping[str, pd.Series[Any]]
    """By column name; not converted yet."""
    hash_counts: NDArray[np.int64] | None = None
    """Hashed blocks per row; 0 = none given, -1 = not a list of whole numbers."""
    hashes: NDArray[np.int64] | None = None
    """Those of all rows, one after another."""
    lines: Sequence[int] | None = None
    """1-based line (Parquet: row) of each row; None = not known, the fast way."""
    broken: Mapping[int, str] = field(default_factory=dict)
    """What is wrong with a row as a whole, by its position in the chunk."""


class Table(Protocol):
    """A file whose columns are known and whose rows can be read."""

    @property
    def container(self) -> Container:
        """The container."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, or keys of the first object."""

    def sample(self, column: str) -> object:
        """Return the first row's value of a column, None if there is none."""

    def exact_chunks(self, layout: TraceFormat, facts: ByteFacts) -> Iterator[Chunk]:
        """Return chunks with line numbers."""


class SuspiciousError(Exception):
    """The fast way cannot vouch for what it read; take the exact one. Never leaves this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvTable:
    """A CSV file with a header."""

    source: SourceFile
    delimiter: str
    columns: tuple[str, ...]
    first_row: tuple[str, ...]
    container: Container = Container.CSV

    def sample(self, column: str) -> object:
        """Return the first row's value of a column, None if there is none."""
        index = self.columns.index(column)
        return self.first_row[index] if index < len(self.first_row) else None

    def fast_chunks(self, layout: TraceFormat, facts: ByteFacts) -> Iterator[Chunk]:
        """Return chunks by pandas' parser, without line numbers, or raise `SuspiciousError`.

        A row with too many fields passes unnoticed there. Either the file's delimiters are then more than they should
        be, or some other row has too few and so an empty last field; both are looked for.
        """
        import pandas as pd  # noqa: PLC0415

        if facts.has_quotes:
            raise SuspiciousError
        wanted = sorted({self.columns.index(name) for name in layout.numbers} | {len(self.columns) - 1})
        n_rows = 0
        try:
            with (
                self.source.open_binary() as stream,
                pd.read_csv(
                    stream,
                    sep=self.delimiter,
                    usecols=wanted,
                    chunksize=CHUNK_ROWS,
                    low_memory=False,
                    encoding="utf-8-sig",
                    encoding_errors="replace",
                ) as frames,
            ):
                for frame in frames:
                    n_rows += len(frame)
                    if frame.iloc[:, -1].isna().any():
                        raise SuspiciousError
                    yield Chunk(numbers={self.columns[i]: frame.iloc[:, at] for at, i in enumerate(wanted)})
        except ValueError as error:  # pandas has several for what it cannot parse, some of them by accident
            raise SuspiciousError from error
        if facts.n_delimiters != (n_rows + 1) * (len(self.columns) - 1):
            raise SuspiciousError

    def exact_chunks(self, layout: TraceFormat, facts: ByteFacts) -> Iterator[Chunk]:
        """Return chunks with the line that each row starts at."""
        with self.source.open_text() as text:
            if facts.has_quotes:  # a row may then be longer than a line
                rows = numbered_rows(text, delimiter=self.delimiter, source=self.source)
                next(rows)  # the header
                while chunk := self._chunk_of_rows(rows, layout):
                    yield chunk
                return
            numbered = enumerate(text, start=1)
            next(number for number, line in numbered if not line.isspace())  # the header
            while block := list(islice(numbered, CHUNK_ROWS)):
                yield from self._chunks_of_lines(block, layout)

    def _chunks_of_lines(self, block: list[tuple[int, str]], layout: TraceFormat) -> Iterator[Chunk]:
        """Return the rows of some lines, by pandas' parser if all have as many fields as the header, none empty."""
        import pandas as pd  # noqa: PLC0415

        first_line, lines = block[0][0], [line for _, line in block]
        content = "".join(lines)
        if content.count(self.delimiter) == len(lines) * (len(self.columns) - 1):
            wanted = sorted({self.columns.index(name) for name in layout.numbers} | {len(self.columns) - 1})
            try:
                frame = pd.read_csv(
                    io.StringIO(content), sep=self.delimiter, header=None, usecols=wanted, low_memory=False
                )
            except ValueError:
                frame = pd.DataFrame()
            if len(frame) == len(lines) and not frame.isna().to_numpy().any():
                numbers = {self.columns[i]: frame.iloc[:, at] for at, i in enumerate(wanted)}
                yield Chunk(numbers=numbers, lines=range(first_line, first_line + len(lines)))
                return
        rows = numbered_rows(iter(lines), delimiter=self.delimiter, source=self.source, first_line=first_line)
        while chunk := self._chunk_of_rows(rows, layout):
            yield chunk

    def _chunk_of_rows(self, rows: Iterator[tuple[int, list[str]]], layout: TraceFormat) -> Chunk | None:
        import pandas as pd  # noqa: PLC0415

        n_fields = len(self.columns)
        wanted = [self.columns.index(name) for name in layout.numbers]
        pick = itemgetter(*wanted)
        nothing = ("",) * len(wanted)
        # All fields in one list, row by row: a list per row would cost more than reading the file.
        fields: list[str] = []
        lines = array("q")
        broken: dict[int, str] = {}
        for line, row in islice(rows, EXACT_CHUNK_ROWS):
            if len(row) == n_fields:
                fields += pick(row)
            else:
                broken[len(lines)] = f"The row has {len(row)} fields, the header {n_fields}."
                fields += nothing
            lines.append(line)
        if not lines:
            return None
        step = len(wanted)
        numbers = {name: pd.Series(fields[at::step], dtype=object) for at, name in enumerate(layout.numbers)}
        return Chunk(numbers=numbers, lines=lines, broken=broken)


def numbered_rows(
    text: Iterator[str], *, delimiter: str, source: SourceFile, first_line: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """Return the rows that are not blank, each with the 1-based line that it starts at."""
    reader = csv.reader(text, delimiter=delimiter)
    line = first_line
    try:
        for row in reader:
            if row and (len(row) > 1 or row[0].strip()):
                yield line, row
            line = reader.line_num + first_line
    except csv.Error as error:
        raise InputError(f"Not readable as CSV: {error}.", where=source.where(line=line)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLinesTable:
    """A file with one JSON object per line."""

    source: SourceFile
    first: Mapping[str, object]
    container: Container = Container.JSON_LINES

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys of the first object."""
        return tuple(self.first)

    def sample(self, column: str) -> object:
        """Return the first object's value."""
        return self.first.get(column)

    def exact_chunks(self, layout: TraceFormat, facts: ByteFacts) -> Iterator[Chunk]:  # noqa: ARG002 - as Table has it
        """Return chunks of values with their line."""
        with self.source.open_text() as text:
            numbered = ((number, line) for number, raw in enumerate(text, start=1) if (line := raw.strip()))
            while chunk := _json_chunk(numbered, layout):
                yield chunk


def _json_chunk(numbered: Iterator[tuple[int, str]], layout: TraceFormat) -> Chunk | None:
    # Objects are let go one by one: keeping a chunk's costs more than parsing them, in memory and garbage collection.
    values: dict[str, list[object]] = {name: [] for name in layout.numbers}
    hash_counts, hashes = array("q"), array("q")
    lines = array("q")
    broken: dict[int, str] = {}
    for number, line in islice(numbered, EXACT_CHUNK_ROWS):
        item = _json_object(line)
        if item is None:
            broken[len(lines)] = "The line is not a JSON object."
            item = {}
        for name, column in values.items():
            column.append(item.get(name))
        if layout.hashes:
            hash_counts.append(_extend(hashes, item.get(layout.hashes)))
        lines.append(number)
    if not lines:
        return None
    numbers = {name: _series(column) for name, column in values.items()}
    if not layout.hashes:
        return Chunk(numbers=numbers, lines=lines, broken=broken)
    return Chunk(
        numbers=numbers,
        hash_counts=np.array(hash_counts, dtype=np.int64),
        hashes=np.array(hashes, dtype=np.int64),
        lines=lines,
        broken=broken,
    )


def _extend(hashes: array[int], blocks: object) -> int:
    """Append a list of whole numbers and return its length; 0 for None, -1 for anything else."""
    if blocks is None:
        return 0
    if not isinstance(blocks, list):
        return -1
    before = len(hashes)
    try:
        hashes.extend(blocks)
    except (TypeError, OverflowError):
        del hashes[before:]
        return -1
    return len(blocks)


_DECODER = json.JSONDecoder()


def _json_object(text: str) -> dict[str, object] | None:
    try:
        item, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return item if isinstance(item, dict) and end == len(text) else None


def _series(values: list[object]) -> pd.Series[Any]:
    import pandas as pd  # noqa: PLC0415

    if set(map(type, values)) <= {int, float}:
        try:
            return pd.Series(np.array(values, dtype=np.float64))
        except OverflowError:  # an integer of hundreds of digits
            pass
    return pd.Series([_scalar(value) for value in values], dtype=object)


def _scalar(value: object) -> object:
    """Return a JSON value if it can be a number or a time, else None (which every check refuses)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 1 << 63 else str(value)  # pandas fails on larger ones rather than refuse them
    return value if isinstance(value, float | str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetTable:
    """A Parquet file; needs pyarrow."""

    source: SourceFile
    columns: tuple[str, ...]
    first: Mapping[str, object]
    container: Container = Container.PARQUET

    def sample(self, column: str) -> object:
        """Return the first row's value."""
        return self.first.get(column)

    def exact_chunks(self, layout: TraceFormat, facts: ByteFacts) -> Iterator[Chunk]:  # noqa: ARG002 - as Table has it
        """Return chunks with row numbers."""
        import pyarrow.parquet as pq  # noqa: PLC0415

        start = 1
        wanted = list(dict.fromkeys(layout.numbers))
        with pq.ParquetFile(self.source.path) as stream:
            for batch in stream.iter_batches(batch_size=CHUNK_ROWS, columns=wanted):
                frame = batch.to_pandas()
                lines = range(start, start + len(frame))
                yield Chunk(numbers={name: frame[name] for name in wanted}, lines=lines)
                start += len(frame)


def open_table(source: SourceFile) -> CsvTable | JsonLinesTable | ParquetTable:
    """Return the file as a table of named columns.

    Raises
    ------
    InputError, UnsupportedFormatError: if it has no rows, no header, or is not what it begins like.
    """
    if source.is_parquet:
        return _open_parquet(source)
    if source.head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in {b"{", b"["}:
        return _open_json_lines(source)
    return _open_csv(source)


def _open_csv(source: SourceFile) -> CsvTable:
    with source.open_text() as text:
        first_line = next(line for line in text if not line.isspace())
    delimiter = max(_DELIMITERS, key=first_line.count)
    with source.open_text() as text:
        rows = numbered_rows(text, delimiter=delimiter, source=source)
        line, header = next(rows)
        first_row = next(rows, (0, []))[1]
    columns = tuple(name.strip() for name in header)
    if len(columns) < 2 or any(_is_number(name) for name in columns):
        hint = "gpuplan reads CSV with a header, JSON lines and Parquet."
        message = "The first line is not a header that names columns."
        raise UnsupportedFormatError(message, hint=hint, where=source.where(line=line))
    return CsvTable(source=source, delimiter=delimiter, columns=columns, first_row=tuple(first_row))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _open_json_lines(source: SourceFile) -> JsonLinesTable:
    with source.open_text() as text:
        lines = enumerate(iter(lambda: text.readline(_FIRST_ROW_CHARS), ""), start=1)
        number, line = next((number, line) for number, line in lines if not line.isspace())
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        first = None
    if not isinstance(first, dict):
        hint = "Write one JSON object per line and request, not an array or an object over several lines."
        raise UnsupportedFormatError("The line is not a JSON object.", hint=hint, where=source.where(line=number))
    return JsonLinesTable(source=source, first=first)


def _open_parquet(source: SourceFile) -> ParquetTable:
    where = source.where()
    try:
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        hint = "Install it with `pip install 'gpuplan[parquet]'`, or convert the file to CSV."
        raise InputError("Reading Parquet needs pyarrow, which is not installed.", hint=hint, where=where) from error
    try:
        with pq.ParquetFile(source.path) as stream:
            columns = tuple(stream.schema_arrow.names)
            head = next(stream.iter_batches(batch_size=1), None)
    except (pa.ArrowInvalid, OSError) as error:
        hint = "The file is cut short or damaged; fetch it again."
        raise InputError("The file begins like Parquet but is not readable.", hint=hint, where=where) from error
    first = head.to_pylist()[0] if head is not None and head.num_rows else {}
    return ParquetTable(source=source, columns=columns, first=first)
