"""A user's own parameters of the estimator: a CSV table of the rows of profiles/efficiency.csv that differ."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.errors import InputError, Where
from planner.files.documents import did_you_mean
from planner.profilers.efficiency import default_params

if TYPE_CHECKING:
    from pathlib import Path

    from planner.profilers.efficiency import EstimatorParams

COLUMNS = ("parameter", "scope", "value", "unit", "source", "reason")


def read_params(path: Path) -> EstimatorParams:
    """Return the bundled parameters with those of a user's file in their place.

    Raises
    ------
    InputError: naming the line of what is no parameter or no number.
    """
    base, changed = default_params(), {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the parameters: {error}.", where=Where(path=str(path))) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    if not {"parameter", "scope", "value"} <= set(reader.fieldnames or ()):
        raise InputError(
            "The parameters need the columns parameter, scope and value.",
            hint="`gpuplan profile calibrate` writes such a file.",
            where=Where(path=str(path), line=1),
        )
    known = {name for name, _ in base.table}
    for row in reader:
        where = Where(path=str(path), line=reader.line_num)
        if row["parameter"] not in known:
            hint = did_you_mean(row["parameter"], known)
            raise InputError(f"{row['parameter']!r} is no parameter of the estimator.", hint=hint, where=where)
        changed[row["parameter"], row["scope"].strip().lower()] = _value(row["value"], where)
    return replace(base, table={**base.table, **changed})


def _value(text: str, where: Where) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{text!r} is no value of a parameter.", hint="Give a number >= 0.", where=where)
    return value


def params_text(rows: list[dict[str, str]]) -> str:
    """Return rows of parameters as CSV text."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
