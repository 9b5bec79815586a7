"""The estimator's parameters as a file: the table profiles/efficiency.csv, and a user's rows of the same columns."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from planner.errors import InputError, Where
from planner.files.documents import did_you_mean
from planner.profilers.efficiency import CURVES, default_params, split_size

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from planner.profilers.efficiency import EstimatorParams

COLUMNS = ("parameter", "scope", "value", "unit", "source", "reason")

SPREAD = "spread"
"""A column that only a user's fit has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyRow:
    """One row of profiles/efficiency.csv, or of a user's file of the same columns."""

    parameter: str
    scope: str
    """What it holds for: a GPU's name, architecture or vendor; an engine's family or era ("vllm", "vllm@2024"), on a
    vendor's GPUs or an architecture alone ("vllm/nvidia", "vllm@2024/ampere"); a kind of link or "<GPU>/<link>"; a
    curve's place and size; or "default". The narrowest one that applies is taken, a user's own before any bundled."""
    value: float
    unit: str
    source: str
    reason: str
    spread: tuple[float, ...] = ()
    """How far the value's logarithm moves along each way in which the fit may be off by one standard deviation."""

    @property
    def key(self) -> tuple[str, str]:
        """What it is a value of: (parameter, scope in lower case)."""
        return self.parameter, self.scope.lower()


def rows_csv(rows: Iterable[EfficiencyRow]) -> str:
    """Return rows as the text of a CSV file, numbers to six digits; without spreads it has no column for them."""
    found = list(rows)
    has_spread = any(row.spread for row in found)
    text = io.StringIO()
    columns = (*COLUMNS, SPREAD) if has_spread else COLUMNS
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in found:
        spread = " ".join(f"{part:.4g}" for part in row.spread)
        writer.writerow(asdict(row) | {"value": f"{row.value:.6g}", SPREAD: spread})
    return text.getvalue()


def parse_rows(text: str, path: str) -> tuple[EfficiencyRow, ...]:
    """Return the rows of an efficiency table; `path` is what errors name.

    Raises
    ------
    InputError: if the columns are not those of profiles/efficiency.csv, a value is not a number that can be one, or
        the bundled table has no such parameter.
    """
    reader = csv.DictReader(io.StringIO(text))
    columns = tuple(reader.fieldnames or ())
    if {*columns, SPREAD} != {*COLUMNS, SPREAD} or len(columns) != len(set(columns)):
        raise InputError(
            f"The table's columns are {', '.join(columns) or 'missing'}.",
            hint=f"They must be {', '.join(COLUMNS)}; {SPREAD} may be there too.",
            where=Where(path=path, line=1),
        )
    known = {parameter for parameter, _ in default_params().table} | set(CURVES)
    rows = []
    lines: dict[tuple[str, str], int] = {}
    for cells in reader:
        where = Where(path=path, line=reader.line_num)
        if None in cells or None in cells.values():
            raise InputError(f"The row does not have {len(columns)} columns.", where=where)
        if cells["parameter"] not in known:
            hint = did_you_mean(cells["parameter"], known)
            raise InputError(f"There is no parameter {cells['parameter']!r}.", hint=hint, where=where)
        try:
            value = float(cells["value"])
        except ValueError as error:
            raise InputError(f"{cells['value']!r} is not a number.", where=where) from error
        if not math.isfinite(value) or value < 0:
            raise InputError(f"A value of {cells['value']} cannot be.", hint="Give a number from 0 on.", where=where)
        texts = {column: cells[column] for column in COLUMNS if column != "value"}
        if cells["parameter"] in CURVES:
            _check_curve(cells["scope"], value, where)
        key = (cells["parameter"], cells["scope"].lower())
        if key in lines:
            raise InputError(
                f"{key[0]} of {cells['scope']} is here twice, first in line {lines[key]}.",
                hint="Keep one of them. To fit on top of a table of timed kernels: gpuplan profile calibrate --params.",
                where=where,
            )
        lines[key] = reader.line_num
        spread = _spread(cells.get(SPREAD) or "", where)
        rows.append(EfficiencyRow(value=value, spread=spread, **texts))
    if len({len(row.spread) for row in rows if row.spread}) > 1:
        raise InputError(
            f"The rows have {SPREAD}s of different lengths.",
            hint="They come from several fits: calibrate once with all points, or leave the column out.",
            where=Where(path=path),
        )
    return tuple(rows)


def _check_curve(scope: str, factor: float, where: Where) -> None:
    try:
        split_size(scope)
    except ValueError as error:
        hint = 'It ends with a size, as in "H100-80GB/bf16@64" or "H100-80GB/nvlink/2@65536".'
        raise InputError(f"{scope!r} is no scope of a curve.", hint=hint, where=where) from error
    if factor <= 0:
        raise InputError(f"A factor of {factor:g} cannot be.", hint="Give a number above 0.", where=where)


def _spread(text: str, where: Where) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split())
    except ValueError as error:
        raise InputError(f"The {SPREAD} {text!r} is not a list of numbers.", where=where) from error
    if not all(math.isfinite(part) for part in found):
        raise InputError(f"A {SPREAD} of {text!r} cannot be.", hint="Give finite numbers.", where=where)
    return found


def read_params(path: Path) -> EstimatorParams:
    """Return the bundled parameters with those of a user's file in their place.

    Raises
    ------
    InputError: as `read_rows`.
    """
    return default_params().with_rows(read_rows(path))


def read_rows(path: Path) -> tuple[EfficiencyRow, ...]:
    """Return the rows of a user's file.

    Raises
    ------
    InputError: if the file cannot be read, or as `parse_rows`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the parameters: {error}.", where=Where(path=str(path))) from error
    return parse_rows(text, str(path))
