"""`gpuplan profile calibrate`: the estimator's parameters fitted to the user's own measurements."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import console
from planner.cli.options import STDOUT, ForceOption, JsonOption, check_targets, suffix_of
from planner.errors import InputError, MeasurementError, Where

if TYPE_CHECKING:
    from planner.planning.recalibration import Recalibrated
    from planner.profilers.params_file import EfficiencyRow

UNITS = {"_s": "s", "_factor": "of the GPU's own"}
"""By the end of a parameter's name."""

NOISE = 0.07
"""By so much two releases of one engine differ in the median (docs/benchmarks.md): a fit that is no worse than that is
kept, since other points may gain."""


def command(
    measured: Annotated[
        Path,
        typer.Option(
            "--with", metavar="FILE", help="Measured points: a CSV table as profiles have it.", show_default=False
        ),
    ],
    output: Annotated[
        str, typer.Option("-o", "--out", metavar="FILE", help="Where the parameters go (CSV); - is stdout.")
    ] = "-",
    parameters: Annotated[
        Path | None,
        typer.Option(
            "--params",
            metavar="FILE",
            help="Parameters to start from, as `profile kernels` writes them.",
            show_default="the bundled ones",
        ),
    ] = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Fit how much of its rates a GPU reaches, and an engine's overheads, to a few measured points."""
    from planner.planning import calibration, recalibration
    from planner.planning.estimate_table import read_points
    from planner.profilers.efficiency import default_params
    from planner.profilers.params_file import read_rows, rows_csv

    if output != STDOUT:
        check_targets([output], suffixes=(".csv", ".json"), force=force)
        as_json = as_json or suffix_of(output) == ".json"
    base = () if parameters is None else read_rows(parameters)
    if any(row.spread for row in base):
        raise InputError(
            "These parameters are a calibration already: its points would count twice.",
            hint="Calibrate once with all points, from the bundled parameters or those of timed kernels.",
            where=Where(path=str(parameters)),
        )
    params = default_params().with_rows(base)
    _, rows = read_points(measured)
    found, left_out = calibration.read_measurements(rows, params, is_published=False)
    for index, note in left_out:
        console.note(f"{measured}: row {index + 1} left out: {note}")
    if not found:
        raise InputError(
            "There is no measured point to calibrate with.",
            hint="Rows need throughput_output_tok_s, throughput_req_s, ttft_mean_ms or tpot_mean_ms.",
            where=Where(path=str(measured)),
        )
    fitted = recalibration.fit_own(found, params)
    console.note(
        f"{fitted.n_values} measured values of {len(found)} points: "
        f"median error {fitted.before:.0%} before, {fitted.after:.0%} after"
    )
    console.note(f"probability that the points differ from the estimates by scatter alone: {fitted.odds:.0%}")
    if fitted.after > fitted.before + NOISE:
        raise MeasurementError(
            f"No parameters near the bundled ones explain these points: their median error would be {fitted.after:.0%}"
            f" instead of {fitted.before:.0%}. Nothing was written.",
            hint="Check what was measured: the model, GPU, engine, sizes and load of each row, and its units.",
            where=Where(path=str(measured)),
        )
    records = [*_records(fitted, measured), *(row for row in base if row.key not in fitted.values)]
    if as_json:
        document = {
            "schema_version": "1",
            "kind": "Parameters",
            "measured_values": fitted.n_values,
            "median_error_before": fitted.before,
            "median_error_after": fitted.after,
            "parameters": [asdict(row) for row in records],
        }
        console.write_result(output, console.to_json(document), force=force)
    else:
        console.write_result(output, rows_csv(records), force=force)


def _records(fitted: Recalibrated, measured: Path) -> list[EfficiencyRow]:
    from planner.profilers.params_file import EfficiencyRow

    return [
        EfficiencyRow(
            parameter=parameter,
            scope=scope,
            value=value,
            unit=next((unit for end, unit in UNITS.items() if parameter.endswith(end)), "of the data sheet's rate"),
            source=f"fit to {measured.name}",
            reason=f"{fitted.n_values} measured values; median error {fitted.before:.0%} before and "
            f"{fitted.after:.0%} after",
            spread=fitted.params.spreads[parameter, scope],
        )
        for (parameter, scope), value in fitted.values.items()
    ]
