"""What every replayed request saw, as CSV or Parquet."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.errors import InputError, Where
from planner.files.output import check_writable
from planner.report.replay_page import rows_csv

if TYPE_CHECKING:
    from pathlib import Path

    from planner.planning.replay_outcome import Replay

RECORD_SUFFIXES = (".csv", ".parquet")
COLUMNS = (
    "service", "arrival_s", "input_tokens", "output_tokens", "ttft_s", "tpot_s", "longest_gap_s", "e2e_s", "replica",
    "preemptions", "restarts", "prefix_hit_tokens", "is_turned_away",
)  # fmt: skip
_DIGITS = 9


def write_records(found: Replay, path: Path, *, force: bool) -> None:
    """Write one row for every request of the first replication, in the order of arrival.

    Times of requests that were never answered are empty; `arrival_s` counts from where the time that counts begins.

    Raises
    ------
    InputError: if the file cannot be written, or is Parquet and pyarrow is not installed; or if the fleet is empty.
    """
    if not len(found.simulation.records):
        raise InputError("Every service is given back: no request is replayed on a fleet.", hint="Leave --records out.")
    columns = record_columns(found)
    check_writable(path, force=force)
    if path.suffix.lower() == ".parquet":
        _write_parquet(columns, path)
        return
    from planner.files.output import write_text  # noqa: PLC0415 - one form per run

    rows = [dict(zip(columns, values, strict=True)) for values in zip(*map(_cells, columns.values()), strict=True)]
    write_text(path, rows_csv(rows), force=force)


def record_columns(found: Replay) -> dict[str, np.ndarray[Any, Any]]:
    """Return the columns by name, shape (requests,); that of adapters only where there are any."""
    records = found.simulation.records
    names = np.array([service.service for service in found.services])
    special = {"service": names[records.service], "arrival_s": records.arrival_s - found.origin_s}
    columns = {name: special[name] if name in special else getattr(records, name) for name in COLUMNS}
    if found.adapter_names:
        columns["adapter"] = np.array([*found.adapter_names, ""])[records.adapter]  # -1 = none
    return columns


def _cells(column: np.ndarray[Any, Any]) -> list[object]:
    """Return a column's values as they are written: times to a nanosecond, nothing for what never was."""
    if column.dtype.kind != "f":
        return list(column.tolist())
    return [round(value, _DIGITS) if math.isfinite(value) else None for value in column.tolist()]


def check_parquet(path: Path) -> None:
    """Raise before any work if `path` is to be Parquet and pyarrow is not installed.

    Raises
    ------
    InputError: naming what to install.
    """
    if path.suffix.lower() == ".parquet":
        _pyarrow(path)


def _pyarrow(path: Path) -> Any:  # noqa: ANN401 - an untyped module
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        hint = "Install gpuplan with its parquet extra, or write .csv."
        raise InputError(
            "Writing Parquet needs pyarrow, which is not installed.", hint=hint, where=Where(path=str(path))
        ) from error
    return pa


def _write_parquet(columns: dict[str, np.ndarray[Any, Any]], path: Path) -> None:
    pa = _pyarrow(path)
    table = pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        pa.parquet.write_table(table, temporary)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"Cannot write the file: {error.strerror}.", where=Where(path=str(path))) from error
    finally:
        temporary.unlink(missing_ok=True)
