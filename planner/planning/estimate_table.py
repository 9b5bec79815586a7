"""The columns that `gpuplan profile estimate` adds to a row, and the document of one point."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

from planner.errors import InputError, Where
from planner.planning.estimate import STATISTICS
from planner.planning.estimate_points import REQUIRED
from planner.profilers.efficiency import ENGINES, engine_family
from planner.profilers.eras import engine_scopes
from planner.profilers.interval import Band, band
from planner.profilers.variation import QUANTILE, known_sd

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from planner.planning.estimate import Answer, Estimate
    from planner.profilers.efficiency import EstimatorParams

MILLI = 1e3

ESTIMATE_COLUMNS = (
    *(f"ttft_{name}_ms" for name in STATISTICS),
    *(f"tpot_{name}_ms" for name in STATISTICS),
    "throughput_output_tok_s",
    "throughput_req_s",
    "power_w_per_gpu",
    "energy_j_per_output_token",
)

OUT_COLUMNS = (
    *(f"{column}{end}" for column in ESTIMATE_COLUMNS for end in ("", "_lo", "_hi")),
    "status",
    "note",
)
"""What is added to a row: each figure with the ends of its 80% interval."""


def read_points(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the header and the rows of a table of points.

    Raises
    ------
    InputError: if it is no table with a header, or lacks a column that every row needs.
    """
    where = Where(path=str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"Cannot read the points: {error.strerror}.", where=where) from error
    except UnicodeDecodeError as error:
        raise InputError("The points are not UTF-8 text.", hint="Write them as CSV in UTF-8.", where=where) from error
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        rows = [{name: row[name] for name in reader.fieldnames or []} for row in reader]
    except csv.Error as error:
        raise InputError(f"The points are no CSV table: {error}.", where=where) from error
    header = list(reader.fieldnames or [])
    if not header:
        raise InputError("The file is empty.", hint="Write the points as CSV.", where=where)
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise InputError(
            f"The points have no column {', '.join(missing)}.",
            hint="The first line names the columns; see docs/reference/profile.md.",
            where=Where(path=str(path), line=1),
        )
    return header, rows


def table_text(
    header: Sequence[str], rows: Iterable[Mapping[str, str]], answers: Iterable[Answer], params: EstimatorParams
) -> str:
    """Return the rows with their estimates as CSV text; a column of the input that an estimate has is replaced."""
    columns = [name for name in header if name not in OUT_COLUMNS] + list(OUT_COLUMNS)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row, answer in zip(rows, answers, strict=True):
        kept = {key: value for key, value in row.items() if key not in OUT_COLUMNS}
        figures = {name: "" if value is None else f"{value:.6g}" for name, value in figures_of(answer, params).items()}
        writer.writerow(kept | figures | {"status": answer.status, "note": answer.note})
    return stream.getvalue()


def figures_of(answer: Answer, params: EstimatorParams) -> dict[str, float | None]:
    """Return the figures of a row by column, with the ends of their intervals; all None if it has no estimate."""
    found = {} if answer.estimate is None else _figures(answer.estimate)
    figures: dict[str, float | None] = {}
    for column in ESTIMATE_COLUMNS:
        value = found.get(column)
        bounds = None if value is None or answer.estimate is None else bounds_of(column, answer.estimate, params)
        figures[column] = value
        figures[f"{column}_lo"] = None if value is None or bounds is None else value * bounds.low
        figures[f"{column}_hi"] = None if value is None or bounds is None else value * bounds.high
    if answer.estimate is not None and figures["power_w_per_gpu_hi"] is not None:  # drivers hold it to the TDP
        most = max(answer.estimate.question.gpu.tdp_w, figures["power_w_per_gpu"] or 0.0)
        figures["power_w_per_gpu_hi"] = min(figures["power_w_per_gpu_hi"], most)
    return figures


def _figures(estimate: Estimate) -> dict[str, float | None]:
    figures = {f"ttft_{name}_ms": _milli(value) for name, value in estimate.ttft_s.items()}
    figures |= {f"tpot_{name}_ms": _milli(value) for name, value in estimate.tpot_s.items()}
    return figures | {
        "throughput_output_tok_s": estimate.output_tps,
        "throughput_req_s": estimate.rate_rps,
        "power_w_per_gpu": estimate.power_w,
        "energy_j_per_output_token": estimate.energy_j,
    }


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * MILLI


def bounds_of(column: str, estimate: Estimate, params: EstimatorParams) -> Band:
    """Return the multiples of a column's figure between which eight in ten measurements lie."""
    question = estimate.question
    metric = column.split("_", 1)[0]
    novelties = novelties_of(estimate, params)
    power = [*novelties, "new_gpu"] if is_new_in_power(estimate, params) else novelties
    if metric == "power":
        return band(metric, question.load_kind, novelties=power)
    if metric == "energy":
        slow = band("throughput", question.load_kind, novelties=novelties, further=left_open(estimate, "throughput"))
        return Band(1.0 / slow.high, 1.0 / slow.low).widened([band("power", question.load_kind, novelties=()).high])
    return band(metric, question.load_kind, novelties=novelties, further=left_open(estimate, metric))


def left_open(estimate: Estimate, metric: str) -> list[float]:
    """Return by what factors a band is widened by what a user's fit leaves open, beyond what it holds already.

    Bands are those of known GPUs and engines, whose own differences are in them.
    """
    in_band = known_sd("gpu") ** 2 + known_sd("engine") ** 2
    further = estimate.spread.get(metric, 0.0) ** 2 - in_band
    return [math.exp(QUANTILE * math.sqrt(further))] if further > 0 else []


def is_new_in_power(estimate: Estimate, params: EstimatorParams) -> bool:
    """Return whether the GPU is one that a user's own points, which tell nothing of power, made known."""
    gpu = estimate.question.gpu
    return gpu.architecture.lower() not in params.fitted_architectures and params.is_fitted(gpu)


def novelties_of(estimate: Estimate, params: EstimatorParams) -> tuple[str, ...]:
    """Return in what the question is far from everything that was fitted."""
    question, found = estimate.question, []
    gpu, config = question.gpu, question.config
    if not params.is_fitted(gpu):
        found.append("new_gpu")
    scopes = engine_scopes(engine_family(config.engine), config.engine_version, gpu.vendor, gpu.architecture)
    is_family_known = params.is_engine_fitted(config.engine)
    if not is_family_known or not params.is_release_fitted(config.engine, config.engine_version):
        is_borrowed = is_family_known or engine_family(config.engine) in ENGINES
        is_measured = params.has_spread(*scopes)
        found.append("measured_engine" if is_measured else "borrowed_engine" if is_borrowed else "new_engine")
    if any(group.n_experts or group.state_bytes_per_sequence for group in question.model.layers):
        found.append("new_kind_of_model")
    if question.config.gpus_per_replica > LARGEST_FITTED_REPLICA or question.config.pipeline_parallel > 1:
        found.append("new_parallelism")
    return tuple(found)


LARGEST_FITTED_REPLICA = 8
"""GPUs of the largest replica in the fitted measurements, all of them tensor-parallel."""
