"""`gpuplan profile estimate`: what a replica serves at an operating point, or at a table of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import console
from planner.cli.options import STDOUT, ForceOption, JsonOption, check_targets, suffix_of
from planner.errors import DataMissingError, InputError, PlannerError

if TYPE_CHECKING:
    from planner.planning.estimate import Answer
    from planner.profilers.efficiency import EstimatorParams

DATA_MISSING = frozenset({"unknown_model", "unknown_gpu"})
"""Statuses of a single point that mean that data is missing rather than that the input is bad."""


def command(
    model: Annotated[
        str | None, typer.Option(metavar="NAME_OR_CONFIG", help="A library model or a config.json.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="A GPU of the catalog.")] = None,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks.")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Pipeline stages.")] = 1,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="bf16, fp16, fp8, int8, int4, nvfp4, mxfp4, int8-2:4 or int4-2:4.")
    ] = "",
    engine: Annotated[str, typer.Option(metavar="NAME", help="vllm, tensorrt-llm, sglang, ...")] = "vllm",
    engine_version: Annotated[str, typer.Option(metavar="VERSION", help="Its release; default: today's.")] = "",
    input_tokens: Annotated[float | None, typer.Option("--input", metavar="N", help="Prompt tokens.")] = None,
    output_tokens: Annotated[float | None, typer.Option("--output", metavar="N", help="Tokens of the answer.")] = None,
    concurrency: Annotated[
        float | None, typer.Option(metavar="N", help="Requests always under way (closed loop).")
    ] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Requests per second (Poisson).")] = None,
    batch: Annotated[float | None, typer.Option(metavar="N", help="One batch of identical requests.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="All requests queued: the largest throughput.")] = False,
    points: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A CSV table of points; see the reference.")
    ] = None,
    params: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parameters from `gpuplan profile calibrate`.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--out", metavar="FILE", help="Write to FILE; - is stdout.")
    ] = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Estimate latencies, throughput and power of a model on GPUs, each with its 80% interval."""
    from planner.profilers.efficiency import default_params
    from planner.profilers.params_file import read_params

    used = default_params() if params is None else read_params(params)
    if points is not None:
        if model or gpu or precision or engine_version or (tp, pp, engine) != (1, 1, "vllm"):
            raise InputError(
                "--points has models, GPUs and engines in its rows.", hint="Leave the options of a single point out."
            )
        if (input_tokens, output_tokens, concurrency, rate, batch, offline) != (None,) * 5 + (False,):
            raise InputError(
                "--points has sizes and loads in its rows.", hint="Leave the options of a single point out."
            )
        _table(points, output or "-", used, as_json=as_json, force=force)
        return
    if not model or not gpu or input_tokens is None or output_tokens is None:
        raise InputError("One point needs --model, --gpu, --input and --output.", hint="Or give --points FILE.")
    loads = {"concurrency": concurrency, "request_rate": rate, "static_batch": batch}
    given = [(kind, value) for kind, value in loads.items() if value is not None]
    if len(given) + offline > 1:
        raise InputError("A point has one load.", hint="Give one of --concurrency, --rate, --batch and --offline.")
    kind, load = given[0] if given else ("offline_max", None)
    row = {
        "model": model,
        "gpu": gpu,
        "gpu_count": str(tp * pp),
        "tp": str(tp),
        "pp": str(pp),
        "engine": engine,
        "engine_version": engine_version or TODAY,
        "precision": precision,
        "input_tokens": f"{input_tokens!r}",
        "output_tokens": f"{output_tokens!r}",
        "length_dist": "fixed" if kind == "static_batch" else "varied",
        "load_kind": kind,
        "concurrency_or_rate": "" if load is None else f"{load!r}",
    }
    _point(row, used, output, as_json=as_json, force=force)


TODAY = "current"
"""Version that stands for an engine's newest parameters."""


def _table(path: Path, target: str, params: EstimatorParams, *, as_json: bool, force: bool) -> None:
    from planner.planning.estimate import estimate_rows
    from planner.planning.estimate_table import figures_of, read_points, table_text

    if target != STDOUT:
        check_targets([target], suffixes=(".csv", ".json"), force=force)
        as_json = as_json or suffix_of(target) == ".json"
    header, rows = read_points(path)
    answers = estimate_rows(rows, params)
    if as_json:
        records = [
            row | figures_of(answer, params) | {"status": answer.status, "note": answer.note}
            for row, answer in zip(rows, answers, strict=True)
        ]
        document = {"schema_version": "1", "kind": "Estimates", "points": records}
        console.write_result(target, console.to_json(document), force=force)
    else:
        console.write_result(target, table_text(header, rows, answers, params), force=force)
    refused = sum(answer.estimate is None for answer in answers)
    if refused:
        console.note(f"{refused} of {len(rows)} rows have no estimate; the column note says why.")


def _point(row: dict[str, str], params: EstimatorParams, output: str | None, *, as_json: bool, force: bool) -> None:
    from planner.planning.estimate import estimate_rows
    from planner.planning.estimate_table import figures_of

    if output not in {None, STDOUT}:
        check_targets([str(output)], suffixes=(".json",), force=force)
    (answer,) = estimate_rows([row], params)
    if answer.estimate is None:
        raise _refusal(answer)
    figures = figures_of(answer, params)
    if as_json or output is not None:
        document = {"schema_version": "1", "kind": "Estimate", "point": row, **figures}
        document |= {"status": answer.status, "note": answer.note}
        console.write_result(output or "-", console.to_json(document), force=force)
        return
    _show(figures, answer)


def _refusal(answer: Answer) -> PlannerError:
    if answer.status in DATA_MISSING:
        return DataMissingError(f"{answer.note[:1].upper()}{answer.note[1:].rstrip('.')}.")
    return InputError(f"No estimate: {answer.note.rstrip('.')}.")


def _show(figures: dict[str, float | None], answer: Answer) -> None:
    from rich.table import Table

    from planner.planning.estimate_table import ESTIMATE_COLUMNS

    table = Table(box=None, pad_edge=False)
    for title in ("figure", "estimate", "80% interval"):
        table.add_column(title, justify="left" if title == "figure" else "right")
    for column in ESTIMATE_COLUMNS:
        value, low, high = (figures[f"{column}{end}"] for end in ("", "_lo", "_hi"))
        if value is not None and low is not None and high is not None:
            table.add_row(column, f"{value:.4g}", f"{low:.4g} to {high:.4g}")
    console.print_result(table)
    if answer.note:
        console.note(answer.note)
