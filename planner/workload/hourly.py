"""Demand over time: rates or factors by the hour from a CSV, and a trace's own rates, as one rate per period."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError, Where
from planner.files.bundled import bundled

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from planner.domain.workload import Trace

BUNDLED_PREFIX = "bundled:"
HOUR_S = 3600.0
_MAX_BYTES = 20_000_000
_SHAPE = "Columns: hour (0, 1, 2, ...) and rate_rps (req/s), or hour and factor (of the service's rate)."


@dataclass(frozen=True, slots=True, kw_only=True)
class HourlyDemand:
    """Demand by the hour, from hour 0 on without gaps."""

    name: str
    values: NDArray[np.float64]
    """Requests per second, or multiples of the service's rate; shape (hours,)."""
    is_rate: bool
    sha256: str = ""


def bundled_hourly() -> tuple[str, ...]:
    """Return the names of the hourly demands that ship with gpuplan."""
    folder = bundled("examples", "demand")
    if not folder.is_dir():
        return ()
    names = sorted(entry.name.removesuffix(".csv") for entry in folder.iterdir() if entry.name.endswith(".csv"))
    return tuple(f"{BUNDLED_PREFIX}{name}" for name in names)


def read_hourly(name: str, *, base_dir: Path) -> HourlyDemand:
    """Return the demand by the hour in the file `name`, or the one that ships as "bundled:NAME".

    Raises
    ------
    InputError: if there is no such file, or a line of it is not what it should be; names the line.
    """
    raw = _read(name, base_dir)
    rows = list(csv.DictReader(io.StringIO(_text(raw, name))))
    columns = set(rows[0]) if rows else set()
    kinds = columns & {"rate_rps", "factor"}
    if "hour" not in columns or len(kinds) != 1:
        raise InputError(f"{name} does not say what is asked by the hour.", hint=_SHAPE, where=Where(path=name))
    kind = kinds.pop()
    values = np.array([_value(row, kind, index, name) for index, row in enumerate(rows)])
    if not values.any():
        raise InputError(f"{name} asks for nothing at all.", hint=_SHAPE, where=Where(path=name))
    return HourlyDemand(name=name, values=values, is_rate=kind == "rate_rps", sha256=hashlib.sha256(raw).hexdigest())


def _read(name: str, base_dir: Path) -> bytes:
    if name.startswith(BUNDLED_PREFIX):
        if name not in bundled_hourly():
            raise InputError(
                f"No demand by the hour ships as {name!r}.", hint=f"There are: {', '.join(bundled_hourly())}."
            )
        return bundled("examples", "demand", f"{name.removeprefix(BUNDLED_PREFIX)}.csv").read_bytes()
    path = base_dir / name
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError("The file is too large for a demand by the hour.", hint=_SHAPE, where=Where(path=name))
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"The file cannot be read: {error.strerror}.", hint="Check the path.", where=Where(path=name)
        ) from error


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("The file is not UTF-8 text.", hint=_SHAPE, where=Where(path=name)) from error


def _value(row: dict[str, str | None], kind: str, index: int, name: str) -> float:
    where = Where(path=name, line=index + 2)
    try:
        hour, value = float(row["hour"] or ""), float(row[kind] or "")
    except ValueError as error:
        raise InputError(f"hour and {kind} are not both numbers.", hint=_SHAPE, where=where) from error
    if hour != index:
        raise InputError(f"Hour {index} is missing: this line is of hour {hour:g}.", hint=_SHAPE, where=where)
    if not (np.isfinite(value) and value >= 0):
        raise InputError(f"{kind} is {value:g}.", hint="It is finite and not negative.", where=where)
    return value


def over_periods(demand: HourlyDemand, *, n_periods: int, step_s: float) -> NDArray[np.float64]:
    """Return the mean of hourly values in each period, shape (periods,); a file that is shorter repeats.

    Raises
    ------
    InputError: if the horizon is longer than the file and not a multiple of it.

    Examples
    --------
    >>> day = HourlyDemand(name="d", values=np.array([1.0, 3.0]), is_rate=True)
    >>> over_periods(day, n_periods=2, step_s=1800.0), over_periods(day, n_periods=2, step_s=7200.0)
    (array([1., 1.]), array([2., 2.]))
    """
    return hours_over_periods(demand.values, name=demand.name, n_periods=n_periods, step_s=step_s)


def hours_over_periods(values: NDArray[np.float64], *, name: str, n_periods: int, step_s: float) -> NDArray[np.float64]:
    """Return the mean of hourly `values` (shape (hours,)) in each period, shape (periods,), as `over_periods`.

    name : what errors call them.
    """
    whole_h, hours = n_periods * step_s / HOUR_S, len(values)
    if whole_h > hours and abs(whole_h / hours - round(whole_h / hours)) > 1e-9:
        raise InputError(
            f"{name} has {hours} hours, and the horizon is {whole_h:g} hours long.",
            hint="Give at least as many hours as the horizon has, or a number of which it is a multiple.",
        )
    edges = np.arange(n_periods + 1) * step_s / HOUR_S
    repeated = np.tile(values, int(np.ceil(max(whole_h, 1.0) / hours)))
    total = np.interp(edges, np.arange(len(repeated) + 1), np.concatenate(([0.0], np.cumsum(repeated))))
    return np.asarray(np.diff(total) / (step_s / HOUR_S), dtype=np.float64)


def trace_rates_rps(trace: Trace, *, n_periods: int, step_s: float) -> NDArray[np.float64] | None:
    """Return a trace's rate in each period from its first request on, shape (periods,); None if it is too short."""
    if not trace.has_arrivals or float(trace.arrival_s[-1]) < n_periods * step_s * (1 - 1e-3):
        return None
    counts = np.diff(np.searchsorted(trace.arrival_s, np.arange(n_periods + 1) * step_s, side="left"))
    return np.asarray(counts / step_s, dtype=np.float64)
