"""Measured figures as files: the CSV schema of `profiles/` and its reader, for bundled and for users' files alike."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from planner.errors import InputError, Where
from planner.files.slo import parse_slos

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

REQUIRED_COLUMNS = (
    "model",
    "gpu",
    "gpu_count",
    "tp",
    "pp",
    "engine",
    "precision",
    "input_tokens",
    "output_tokens",
    "load_kind",
)
STATISTICS = ("mean", "median", "p90", "p95", "p99")
OPTIONAL_COLUMNS = (
    "published_as",
    "ep",
    "engine_version",
    "length_dist",
    "concurrency_or_rate",
    "slo",
    "throughput_req_s",
    "throughput_output_tok_s",
    *(f"{metric}_{statistic}_ms" for metric in ("ttft", "tpot", "e2e") for statistic in STATISTICS),
    "power_w_per_gpu",
    "energy_j_per_output_token",
    "date",
    "source",
    "source_ref",
    "source_sha256",
    "tool",
    "tool_version",
    "licence",
    "sanity",
    "notes",
)
COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS
UNDER_SLO = "poisson_max_under_slo"
"""Load kind of rates that were searched under objectives, which their rows state."""

LOAD_KINDS = ("offline_max", "static_batch", "concurrency", "request_rate", UNDER_SLO)
USABLE_SANITY = frozenset({"", "ok", "unchecked"})
"""Rows with any other verdict are left out; unchecked ones are decided by our own floor check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPoint:
    """One measured operating point of a whole replica (not per GPU)."""

    model: str
    """Canonical id in the model library; any other spelling of it in users' files."""
    gpu: str
    tensor_parallel: int
    pipeline_parallel: int
    engine: str
    engine_version: str
    precision: str
    """As the source names it; fp16 counts as bf16 in look-ups. "" = not stated."""
    input_tokens: float
    output_tokens: float
    load_kind: str
    load: float | None
    """Concurrency, batch size or rate, by `load_kind`; None = not stated, or without end ("inf")."""
    rate_rps: float | None
    output_tokens_per_s: float | None
    ttft_s: Mapping[str, float]
    """By statistic."""
    tpot_s: Mapping[str, float]
    as_of: date | None
    source: str
    where: Where
    """File and line."""
    expert_parallel: int | None = None
    """Ranks that a mixture's experts are spread over; None = not stated. They are among the GPUs of the replica."""
    length_dist: str = ""
    """How the sizes of requests scatter: "fixed", "uniform 0.8-1.0", a dataset's name; "" = not stated."""
    slo: str = ""
    """Objectives that the rate was searched under, joined by "; ", as `slo.parse_slo` reads them."""
    e2e_s: Mapping[str, float] = field(default_factory=dict)
    """By statistic."""
    power_w_per_gpu: float | None = None
    energy_j_per_output_token: float | None = None
    published_as: str = ""
    """The source's own name of the model."""
    source_ref: str = ""
    """Where in the source: a file, a page, a commit."""
    source_sha256: str = ""
    """Of the file that the point was read from."""
    tool: str = ""
    """What measured it."""
    tool_version: str = ""
    licence: str = ""
    sanity: str = ""
    notes: str = ""

    @property
    def n_gpus(self) -> int:
        """GPUs of the replica."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def size(self) -> str:
        """Input x output tokens, for people."""
        return f"{self.input_tokens:g}x{self.output_tokens:g}"


def _number(row: Mapping[str, str], column: str, where: Where) -> float | None:
    text = (row.get(column) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not a number in column {column}.", where=where) from error
    if math.isnan(value) or value < 0:
        raise InputError(f"{text!r} in column {column} must not be negative.", where=where)
    return value


def _positive(row: Mapping[str, str], column: str, where: Where) -> float:
    value = _number(row, column, where)
    if value is None or value <= 0 or math.isinf(value):
        raise InputError(f"Column {column} must be a positive number, not {row.get(column)!r}.", where=where)
    return value


def _count(row: Mapping[str, str], column: str, where: Where) -> int:
    value = _positive(row, column, where)
    if value != int(value):
        raise InputError(f"Column {column} must be a whole number, not {value:g}.", where=where)
    return int(value)


def _date(text: str, where: Where) -> date | None:
    parts = [part for part in text.strip().split("-") if part]
    if not parts:
        return None
    try:
        year, month, day = (*map(int, parts), 1, 1)[:3]
        return date(year, month, day)
    except ValueError as error:
        raise InputError(f"{text!r} is not a date.", hint="Write it as 2025-02 or 2025-02-28.", where=where) from error


def _latencies_s(row: Mapping[str, str], metric: str, where: Where) -> dict[str, float]:
    found = {statistic: _number(row, f"{metric}_{statistic}_ms", where) for statistic in STATISTICS}
    return {statistic: value / 1e3 for statistic, value in found.items() if value}


def _text(row: Mapping[str, str], column: str) -> str:
    return (row.get(column) or "").strip()


def _slo(row: Mapping[str, str], kind: str, where: Where) -> str:
    text = _text(row, "slo")
    if kind == UNDER_SLO:
        try:
            parse_slos(text)
        except InputError as error:
            raise InputError(f"Column slo: {error.message}", hint=error.hint, where=where) from error
    return text


def _point(row: Mapping[str, str], where: Where) -> MeasuredPoint:
    kind = row["load_kind"].strip()
    if kind not in LOAD_KINDS:
        raise InputError(f"{kind!r} is not a load_kind.", hint=f"Use one of {', '.join(LOAD_KINDS)}.", where=where)
    tp, pp = _count(row, "tp", where), _count(row, "pp", where)
    n_gpus = _count(row, "gpu_count", where)
    if n_gpus != tp * pp:
        raise InputError(f"gpu_count {n_gpus} is not tp {tp} x pp {pp}.", hint="Give one replica per row.", where=where)
    output = _positive(row, "output_tokens", where)
    tokens_per_s = _number(row, "throughput_output_tok_s", where)
    rate, load = _number(row, "throughput_req_s", where), _number(row, "concurrency_or_rate", where)
    if rate is None and tokens_per_s:
        rate = tokens_per_s / output
    return MeasuredPoint(
        model=row["model"].strip(),
        gpu=row["gpu"].strip(),
        tensor_parallel=tp,
        pipeline_parallel=pp,
        engine=row["engine"].strip(),
        engine_version=_text(row, "engine_version"),
        precision=row["precision"].strip().lower(),
        input_tokens=_positive(row, "input_tokens", where),
        output_tokens=output,
        load_kind=kind,
        load=load if load is not None and math.isfinite(load) else None,
        rate_rps=rate or None,
        output_tokens_per_s=tokens_per_s or (rate * output if rate else None),
        ttft_s=_latencies_s(row, "ttft", where),
        tpot_s=_latencies_s(row, "tpot", where),
        as_of=_date(row.get("date") or "", where),
        source=_text(row, "source"),
        where=where,
        expert_parallel=_count(row, "ep", where) if _text(row, "ep") else None,
        length_dist=_text(row, "length_dist"),
        slo=_slo(row, kind, where),
        e2e_s=_latencies_s(row, "e2e", where),
        power_w_per_gpu=_number(row, "power_w_per_gpu", where),
        energy_j_per_output_token=_number(row, "energy_j_per_output_token", where),
        published_as=_text(row, "published_as"),
        source_ref=_text(row, "source_ref"),
        source_sha256=_text(row, "source_sha256"),
        tool=_text(row, "tool"),
        tool_version=_text(row, "tool_version"),
        licence=_text(row, "licence"),
        sanity=_text(row, "sanity"),
        notes=_text(row, "notes"),
    )


def read_profile_file(path: Path, *, with_unusable: bool = False) -> tuple[MeasuredPoint, ...]:
    """Return the rows of a user's profile file. `floor.check_points` refuses impossible ones once their GPU is known.

    Parameters
    ----------
    with_unusable : as `parse_points`.

    Raises
    ------
    InputError: if the file cannot be read, or as `parse_points`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"Cannot read the profile: {error.strerror}.", where=Where(path=str(path))) from error
    except UnicodeDecodeError as error:
        raise InputError("The profile is not UTF-8 text.", where=Where(path=str(path))) from error
    return parse_points(text, str(path), with_unusable=with_unusable)


def parse_points(text: str, path: str, *, with_unusable: bool = False) -> tuple[MeasuredPoint, ...]:
    """Return the usable rows of a profile file; `path` is what errors name.

    Parameters
    ----------
    with_unusable : return the rows too that plans leave out because of their verdict in `sanity`.

    Raises
    ------
    InputError: if a required column is missing, a column is not known, or a value is not what its column holds.
    """
    reader = csv.DictReader(io.StringIO(text))
    columns = tuple(reader.fieldnames or ())
    if not text.strip():
        raise InputError("The file is empty.", where=Where(path=path))
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    if len(missing) == len(REQUIRED_COLUMNS):
        raise InputError(
            "This is no profile: its first line has none of a profile's columns.",
            hint="`gpuplan profile import FILE` reads the results of other tools.",
            where=Where(path=path, line=1),
        )
    if missing:
        raise InputError(
            f"The profile has no column {', '.join(missing)}.",
            hint="docs/explanation/throughput.md lists the columns.",
            where=Where(path=path, line=1),
        )
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise InputError(
            f"The profile has columns that are not known: {', '.join(unknown)}.",
            hint=f"Known: {', '.join(COLUMNS)}.",
            where=Where(path=path, line=1),
        )
    points = []
    for row in reader:
        where = Where(path=path, line=reader.line_num)
        if None in row or None in row.values():
            raise InputError(f"The row does not have {len(columns)} columns.", where=where)
        if with_unusable or (row.get("sanity") or "").strip() in USABLE_SANITY:
            points.append(_point(row, where))
    return tuple(points)


def _cell(value: float | str | None) -> str:
    """Return a cell of the file: numbers to seven digits, so that files stay legible and the same on every machine."""
    return value if isinstance(value, str) else "" if value is None else f"{value:.7g}"


def _cells(point: MeasuredPoint) -> dict[str, float | str | None]:
    latencies = {"ttft": point.ttft_s, "tpot": point.tpot_s, "e2e": point.e2e_s}
    cells: dict[str, float | str | None] = {
        f"{metric}_{statistic}_ms": value * 1e3
        for metric, found in latencies.items()
        for statistic, value in found.items()
    }
    cells |= {
        "gpu_count": point.n_gpus,
        "tp": point.tensor_parallel,
        "pp": point.pipeline_parallel,
        "ep": point.expert_parallel,
        "concurrency_or_rate": point.load,
        "throughput_req_s": point.rate_rps,
        "throughput_output_tok_s": point.output_tokens_per_s,
        "date": point.as_of.isoformat() if point.as_of else "",
    }
    own = (column for column in COLUMNS if column not in cells and hasattr(point, column))
    return cells | {column: getattr(point, column) for column in own}


def point_record(point: MeasuredPoint) -> dict[str, float | str]:
    """Return a point as one record of a JSON document: the columns of a profile file, empty ones left out."""
    return {column: value for column in COLUMNS if (value := _cells(point).get(column)) not in (None, "")}


def points_csv(points: Iterable[MeasuredPoint]) -> str:
    """Return a profile file that `parse_points` reads back to these points, without columns that all leave empty."""
    rows = [{column: _cell(value) for column, value in _cells(point).items()} for point in points]
    columns = [column for column in COLUMNS if column in REQUIRED_COLUMNS or any(row.get(column) for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
