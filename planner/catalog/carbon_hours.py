"""Carbon intensities by the hour, from the user's own CSV: region, hour, g_per_kwh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.catalog.offers import csv_rows
from planner.errors import InputError, Where

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

COLUMNS = frozenset({"region", "hour", "g_per_kwh"})
_SHAPE = "Columns: region, hour (0, 1, 2, ... for every region) and g_per_kwh."
_MAX_BYTES = 20_000_000


def read_carbon_hours(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return g CO2e/kWh by the hour for every region in the file, each from hour 0 on without gaps.

    Raises
    ------
    InputError: if it cannot be read, or a line of it is not what it should be; names the line.
    """
    hours: dict[str, list[float]] = {}
    for row in csv_rows(_text(path), name=path.name):
        if set(row.cells) != COLUMNS:
            raise InputError(
                f"The columns are {', '.join(row.cells)}.", hint=_SHAPE, where=Where(path=path.name, line=1)
            )
        values = hours.setdefault(row.text("region"), [])
        if row.number("hour") != len(values):
            raise InputError(
                f"Hour {len(values)} of {row.text('region')} is missing: this line is of hour {row.text('hour')}.",
                hint=_SHAPE,
                where=row.where,
            )
        values.append(row.number("g_per_kwh"))
    if not hours:
        raise InputError("There are no intensities in it.", hint=_SHAPE, where=Where(path=path.name))
    return {region: np.array(values) for region, values in hours.items()}


def _text(path: Path) -> str:
    where = Where(path=path.name)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError("The file is too large for intensities by the hour.", hint=_SHAPE, where=where)
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"The file cannot be read: {error.strerror}.", hint="Check the path.", where=where) from error
    except UnicodeDecodeError as error:
        raise InputError("The file is not UTF-8 text.", hint=_SHAPE, where=where) from error
