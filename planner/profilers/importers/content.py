"""A user's file as text with structure: JSON (one value, several, or one a line), YAML, CSV or Markdown.

What a file is, is decided by its content; its name never matters.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from planner.errors import InputError, UnsupportedFormatError, Where
from planner.files.documents import MAX_DOCUMENT_BYTES, parse_document, parse_json_values, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAX_FILE_BYTES = 200_000_000
"""Reports with every request in them have some tens of megabytes; more is another kind of file."""

_YAML_START = re.compile(r"(---\s*$|%YAML|[\w\"'.-]+\s*:(\s|$))")
_TABLE_RULE = re.compile(r"\|\s*:?-{2,}:?\s*\|")


class Container(StrEnum):
    """How the figures of a file are wrapped."""

    JSON = "JSON"
    YAML = "YAML"
    CSV = "CSV"
    MARKDOWN = "Markdown"


@dataclass(frozen=True, slots=True)
class Node:
    """A mapping out of a file, read key by key so that an error can name the place."""

    data: Mapping[str, Any]
    place: Where
    """The file and line of the document that the mapping is part of."""
    at: str = ""
    """Dotted path of the mapping within its document."""
    is_text: bool = False
    """All values are text (a row of CSV): numbers are to be parsed, and an empty text is no value."""

    def where(self, key: str = "") -> Where:
        """Return the place of the value at `key`."""
        dotted = ".".join(part for part in (self.at, key) if part)
        return Where(path=self.place.path, line=self.place.line, field=dotted or None)

    def raw(self, key: str) -> Any:  # noqa: ANN401 - whatever the file holds
        """Return the value at `key` as it stands; None if there is none."""
        value = self.data.get(key)
        return None if self.is_text and isinstance(value, str) and not value.strip() else value

    def number(self, key: str) -> float | None:
        """Return the number at `key`, None if it is absent or null.

        Raises
        ------
        InputError: if it is not a finite number of at least 0.
        """
        value = self.rate(key)
        if value is not None and math.isinf(value):
            raise InputError("The value is infinite.", hint="A figure must be a number.", where=self.where(key))
        return value

    def rate(self, key: str) -> float | None:
        """Return the number at `key` as `number`; infinity is allowed, as tools write an unlimited rate."""
        value = self.raw(key)
        if value is None:
            return None
        is_unlimited = isinstance(value, str) and value.strip().lower() in {"inf", "infinity"}
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        try:
            found = float(value) if is_number or is_unlimited or (self.is_text and isinstance(value, str)) else None
        except (ValueError, OverflowError):
            found = None
        if found is None:
            raise InputError(f"{_short(value)} is not a number.", where=self.where(key))
        if math.isnan(found):
            raise InputError("The value is NaN: nothing was measured.", where=self.where(key))
        if found < 0:
            raise InputError(f"{found:g} is negative.", hint="No figure of a benchmark is.", where=self.where(key))
        return found

    def count(self, key: str) -> int | None:
        """Return the whole number of at least 1 at `key`, which may be text; None if it is absent.

        Raises
        ------
        InputError: if it is something else.
        """
        value = self.raw(key)
        if value is None:
            return None
        text = str(value).strip()
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}(\.0)?", text) or float(text) < 1:
            raise InputError(f"{_short(value)} is not a whole number of at least 1.", where=self.where(key))
        return int(float(text))

    def text(self, key: str) -> str:
        """Return the text at `key`, without spaces around it; "" if it is absent.

        Raises
        ------
        InputError: if it is a list or a mapping, or holds characters that no name has.
        """
        value = self.raw(key)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InputError(f"{_short(value)} is not a text.", where=self.where(key))
        text = str(value).strip()
        if not text.isprintable():  # false for control characters and for halves of surrogate pairs
            raise InputError(f"{_short(value)} holds characters that are not printable.", where=self.where(key))
        return text

    def node(self, *keys: str) -> Node:
        """Return the mapping at `keys`, an empty one if it is absent.

        Raises
        ------
        InputError: if something else stands there.
        """
        found = self
        for key in keys:
            value = found.data.get(key)
            if value is not None and not isinstance(value, dict):
                raise InputError(f"{_short(value)} is not a mapping.", where=found.where(key))
            dotted = ".".join(part for part in (found.at, key) if part)
            found = Node(data=value or {}, place=found.place, at=dotted, is_text=self.is_text)
        return found

    def numbers(self, key: str) -> list[list[float]]:
        """Return the matrix at `key`, null as 0; a list of lists, which may differ in length.

        Raises
        ------
        InputError: if it is none, or an entry is not a finite number of at least 0.
        """
        rows = self.raw(key)
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise InputError(f"{_short(rows)} is no matrix.", where=self.where(key))
        found = []
        for i, row in enumerate(rows):
            cells = Node(data={f"[{j}]": cell for j, cell in enumerate(row)}, place=self.place, at=f"{key}[{i}]")
            found.append([cells.number(name) or 0.0 for name in cells.data])
        return found

    def nodes(self, key: str) -> Iterator[Node]:
        """Yield the mappings in the list at `key`.

        Raises
        ------
        InputError: if it is no list of mappings.
        """
        items = self.data.get(key)
        if items is None:
            return
        if not isinstance(items, list):
            raise InputError(f"{_short(items)} is not a list.", where=self.where(key))
        dotted = ".".join(part for part in (self.at, key) if part)
        for index, item in enumerate(items):
            if not isinstance(item, dict):
                raise InputError(f"{_short(item)} is not a mapping.", where=self.where(f"{key}[{index}]"))
            yield Node(data=item, place=self.place, at=f"{dotted}[{index}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A file that was read, and how it is built."""

    path: str
    """As the user gave it."""
    sha256: str
    container: Container
    text: str
    documents: tuple[Node, ...] = ()
    """Mappings of a JSON or YAML file: the one value, the values one after the other, or the items of one list."""
    rows: tuple[tuple[str, ...], ...] = ()
    """Of a CSV file; a row without any text is empty."""

    @property
    def where(self) -> Where:
        """The file."""
        return Where(path=self.path)

    @property
    def header(self) -> tuple[str, ...]:
        """The first row that is not empty; () if the file is no CSV."""
        return next((row for row in self.rows if row), ())

    def table(self) -> Iterator[Node]:
        """Yield the rows below the header.

        Raises
        ------
        InputError: if a column appears twice, or a row has more or fewer cells than the header.
        """
        header = self.header
        repeated = [name for name in header if name and header.count(name) > 1]
        if repeated:
            raise InputError(f"The column {repeated[0]!r} appears twice.", where=Where(path=self.path, line=1))
        start = self.rows.index(header)
        for line, row in enumerate(self.rows[start + 1 :], start=start + 2):
            if row:
                place = Where(path=self.path, line=line)
                if len(row) != len(header):
                    raise InputError(f"The row has {len(row)} cells, the header {len(header)}.", where=place)
                yield Node(data=dict(zip(header, row, strict=True)), place=place, is_text=True)


def read_content(path: Path) -> Content:
    """Return the content of a user's file.

    Raises
    ------
    InputError: if the file cannot be read, is empty, broken or too large.
    UnsupportedFormatError: if it is not text.
    """
    return parse_content(read_bytes(path, max_bytes=MAX_FILE_BYTES), str(path))


def parse_content(content: bytes, path: str) -> Content:
    """Return `content` with its structure; `path` is what errors name. Raises as `read_content`."""
    where = Where(path=path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsupportedFormatError(f"Byte {error.start} is not UTF-8: this is no text file.", where=where) from error
    if "\0" in text:
        raise UnsupportedFormatError("The file holds zero bytes: this is no text file.", where=where)
    if not text.strip():
        raise InputError("The file is empty.", hint="Was the benchmark still running?", where=where)
    digest = hashlib.sha256(content).hexdigest()
    container = _container(text)
    documents: tuple[Node, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    if container == Container.JSON:
        documents = _json_documents(text, path)
    elif container == Container.YAML:
        documents = _yaml_documents(content, path)
    elif container == Container.CSV:
        rows = _csv_rows(text, path)
    return Content(path=path, sha256=digest, container=container, text=text, documents=documents, rows=rows)


def _container(text: str) -> Container:
    start = text.lstrip()
    if start.startswith(("{", "[")):
        return Container.JSON
    if _TABLE_RULE.search(text):
        return Container.MARKDOWN
    lines = (line for line in start.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return Container.YAML if _YAML_START.match(next(lines, "")) else Container.CSV


def _json_documents(text: str, path: str) -> tuple[Node, ...]:
    values = parse_json_values(text, path)
    if len(values) == 1 and isinstance(values[0][0], list):
        line = values[0][1]
        values = tuple((item, line) for item in values[0][0])
    found = []
    for index, (value, line) in enumerate(values):
        place = Where(path=path, line=line)
        if not isinstance(value, dict):
            raise InputError(f"Item {index + 1} is {_short(value)}, not a mapping.", where=place)
        found.append(Node(data=value, place=place))
    if not found:
        raise InputError("The file holds no result.", where=Where(path=path))
    return tuple(found)


def _yaml_documents(content: bytes, path: str) -> tuple[Node, ...]:
    where = Where(path=path)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise InputError(
            f"The YAML has {len(content):,} bytes; more than {MAX_DOCUMENT_BYTES:,} takes too long to read.",
            hint="Import the JSON form of the report.",
            where=where,
        )
    data = parse_document(content, name=path).data
    if not isinstance(data, dict):
        raise InputError("The YAML is not a mapping.", where=where)
    return (Node(data=data, place=where),)


def _csv_rows(text: str, path: str) -> tuple[tuple[str, ...], ...]:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"The CSV is broken: {error}.", where=Where(path=path)) from error
    return tuple(tuple(cell.strip() for cell in row) if any(map(str.strip, row)) else () for row in rows)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
