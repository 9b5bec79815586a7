"""A CSV of adapters, one in each row; `planner.files.request.adapters` says what a row may hold."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from planner.domain.adapters import Isolation
from planner.errors import InputError, UnsupportedFormatError, Where
from planner.files.documents import Document, did_you_mean, read_bytes, validation_error
from planner.files.request.adapters import AdapterChoice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from planner.domain.adapters import Adapter

MAX_FILE_BYTES = 50_000_000
"""A row has some 60 bytes: this is the better part of a million adapters."""
REQUIRED_COLUMNS = ("name", "rank", "target_modules")
COLUMNS = (*REQUIRED_COLUMNS, "rate", "rate_rps", "trace", "slo", "isolation", "merged")
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
EXAMPLE = "name,rank,target_modules,rate\nlegal,16,q k v o,2 req/s"
_WHOLE_NUMBER = re.compile(r"\d{1,9}")


def read_adapters(path: Path, *, isolation: Isolation = Isolation.SHARED_PROCESS) -> tuple[Adapter, ...]:
    """Return the adapters in the CSV at `path`.

    Columns: name, rank, target_modules ("q_proj v_proj"), and rate ("2 req/s"), rate_rps (2) or trace (a file, as it is
    written); optionally slo ("ttft p99 <= 2s; tpot mean <= 60ms"), isolation and merged (yes or no).

    Parameters
    ----------
    isolation : of adapters whose row has none.

    Raises
    ------
    InputError: naming file, line and column of the first cell that is wrong, of a name that appears twice, or of a
        column that is missing or not known.
    UnsupportedFormatError: if the file is not text.
    """
    name = str(path)
    seen: dict[str, int] = {}
    adapters = []
    for line, cells in _rows(_text(read_bytes(path, max_bytes=MAX_FILE_BYTES), name), name):
        adapter = _adapter(cells, name, line, isolation)
        if adapter.name in seen:
            raise InputError(
                f"The adapter {adapter.name!r} stands in line {seen[adapter.name]} already.",
                hint="Give every adapter a name of its own.",
                where=Where(path=name, line=line, field="name"),
            )
        seen[adapter.name] = line
        adapters.append(adapter)
    if not adapters:
        raise InputError("The file holds no adapter.", hint=f"Write e.g.\n{EXAMPLE}", where=Where(path=name))
    return tuple(adapters)


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsupportedFormatError(
            f"Byte {error.start} is not UTF-8: this is no CSV text.", where=Where(path=name)
        ) from error


def _rows(text: str, name: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line that is not blank, and its cells that are not empty, by column."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next((cells for cells in reader if any(cells)), [])]
        _check_header(header, Where(path=name, line=reader.line_num or None))
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"The row has {len(cells)} cells, the header {len(header)}.",
                    hint="Put a text that has a comma in quotes.",
                    where=Where(path=name, line=reader.line_num),
                )
            yield (
                reader.line_num,
                {column: cell.strip() for column, cell in zip(header, cells, strict=True) if cell.strip()},
            )
    except csv.Error as error:
        raise InputError(f"The CSV is broken: {error}.", where=Where(path=name, line=reader.line_num)) from error


def _check_header(header: Sequence[str], where: Where) -> None:
    for column in header:
        if column not in COLUMNS:
            hint = did_you_mean(column, COLUMNS) or f"Known: {', '.join(COLUMNS)}."
            raise InputError(f"The column {column!r} is not known.", hint=hint, where=where)
        if header.count(column) > 1:
            raise InputError(f"The column {column!r} appears twice.", where=where)
    if missing := [column for column in REQUIRED_COLUMNS if column not in header]:
        raise InputError(f"The column {missing[0]!r} is missing.", hint=f"Write e.g.\n{EXAMPLE}", where=where)


def _adapter(cells: dict[str, str], name: str, line: int, isolation: Isolation) -> Adapter:
    document = Document(data=cells, path=name, sha256="", positions={(): (line, 1)})
    try:
        return AdapterChoice.model_validate(_typed(cells, name, line)).adapter(isolation)
    except ValidationError as error:
        problem = validation_error(error, AdapterChoice, document)
        where = replace(problem.where or Where(path=name, line=line), column=None)
        raise InputError(problem.message, hint=problem.hint, where=where) from error


def _typed(cells: dict[str, str], name: str, line: int) -> dict[str, Any]:
    """Return the cells of a row as a document would hold them: numbers and switches are not text there."""
    typed: dict[str, Any] = dict(cells)
    if (rank := cells.get("rank")) is not None:
        if not _WHOLE_NUMBER.fullmatch(rank):
            where = Where(path=name, line=line, field="rank")
            raise InputError(f"The rank {rank!r} is not a whole number.", hint="Write it as 16.", where=where)
        typed["rank"] = int(rank)
    if (merged := cells.get("merged")) is not None:
        if merged.lower() not in TRUTH:
            raise InputError(
                f"{merged!r} does not say whether the adapter is merged.",
                hint="Write yes or no.",
                where=Where(path=name, line=line, field="merged"),
            )
        typed["merged"] = TRUTH[merged.lower()]
    if (rate := typed.pop("rate_rps", None)) is not None:
        where = Where(path=name, line=line, field="rate_rps")
        if "rate" in cells:
            raise InputError("The row has both rate and rate_rps.", hint="Leave one of them empty.", where=where)
        try:
            typed["rate"] = f"{float(rate)!r} req/s"
        except ValueError as error:
            hint = "Write it as 2.5, in requests per second; or as 2.5 req/s in a column called rate."
            raise InputError(f"{rate!r} is not a number.", hint=hint, where=where) from error
    return typed
