"""`gpuplan workload`: what a trace is like, and the demand in buckets that a plan is made for."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import console
from planner.cli.options import ForceOption, JsonOption, OutputOption

if TYPE_CHECKING:
    from rich.table import Table

    from planner.domain.workload import Demand, Trace
    from planner.workload.buckets import BucketGrid, CompressionError
    from planner.workload.summary import TraceSummary

app = typer.Typer(help="Look at a request trace.")

TraceArgument = Annotated[
    str, typer.Argument(metavar="TRACE", help="A trace file, or bundled:NAME for one that ships.", show_default=False)
]
FormatOption = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="Insist on a format; else the content tells.")
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(metavar="MAP", help="Columns of an unknown format: arrival=ts:ms,input=prompt,output=completion."),
]
SkipOption = Annotated[bool, typer.Option("--skip-bad-rows", help="Drop and count malformed rows.")]

DEMAND_COLUMNS = ("in_lo", "in_hi", "out_lo", "out_hi", "in_mean", "out_mean", "rate")
"""Of the CSV that `bucket` writes; a plan request takes it back as a histogram."""


@app.command()
def describe(
    trace: TraceArgument,
    format_name: FormatOption = None,
    columns: ColumnsOption = None,
    skip_bad_rows: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show a trace's rates, sizes and burstiness, and a histogram of its requests."""
    from planner.workload.buckets import melange_grid, quality_warnings
    from planner.workload.grid import count_cells
    from planner.workload.summary import summarize

    requests = _read(trace, format_name, columns, skip_bad_rows=skip_bad_rows)
    summary, warnings = summarize(requests), quality_warnings(requests)
    grid = melange_grid().covering(
        max_input=int(requests.input_tokens.max()), max_output=int(requests.output_tokens.max())
    )
    counts = count_cells(grid.cells(requests), grid.shape[0] * grid.shape[1]).reshape(grid.shape)
    if as_json:
        histogram = {
            "input_edges": list(grid.input_edges),
            "output_edges": list(grid.output_edges),
            "counts": counts.tolist(),
        }
        document = {"schema_version": "1", "kind": "TraceSummary"} | summary.to_dict()
        console.print_json(document | {"histogram": histogram, "warnings": [_warning(item) for item in warnings]})
        return
    from rich.text import Text

    from planner.workload.terminal import ASCII_SHADES, SHADES, histogram_lines

    shades = SHADES if _can_print(SHADES) else ASCII_SHADES
    lines = histogram_lines(counts, grid, width=console.result_console().width, shades=shades)
    console.print_result(
        *map(Text, _headlines(summary)),
        *([_rate_table(summary)] if summary.windows else []),
        _size_table(summary),
        "",
        *(Text(line, no_wrap=True) for line in lines),
    )
    console.show_warnings(warnings)


@app.command()
def bucket(
    trace: TraceArgument,
    format_name: FormatOption = None,
    columns: ColumnsOption = None,
    skip_bad_rows: SkipOption = False,
    grid: Annotated[str, typer.Option(metavar="GRID", help="melange, or adaptive: fitted to the trace.")] = "melange",
    rows: Annotated[int, typer.Option(min=1, max=100, help="Input ranges of the adaptive grid.")] = 10,
    columns_count: Annotated[int, typer.Option(min=1, max=100, help="Output ranges of the adaptive grid.")] = 6,
    rate: Annotated[
        str | None, typer.Option(metavar="RATE", help="Rescale to this mean rate, e.g. '30 req/s'.")
    ] = None,
    peak: Annotated[
        str | None, typer.Option(metavar="PEAK", help="Rate of busy windows, not the mean: 'p99 of 1m', 'max of 10s'.")
    ] = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Turn a trace into demand by request size, and say what the grid loses."""
    from planner.units import parse_rate_rps
    from planner.workload.buckets import compression_error, demand_from_trace, parse_peak

    if output is not None:
        _check_target(output, force=force)
    rate_rps = None if rate is None else parse_rate_rps(rate)
    asked_peak = None if peak is None else parse_peak(peak)
    requests = _read(trace, format_name, columns, skip_bad_rows=skip_bad_rows)
    used = _grid(grid, requests, rows=rows, columns=columns_count)
    demand = demand_from_trace(requests, service="default", grid=used, rate_rps=rate_rps, peak=asked_peak)
    loss = compression_error(requests, used)
    document = _demand_document(demand, requests, loss)
    if output is not None:
        is_csv = Path(output).suffix == ".csv"
        console.write_result(output, _demand_csv(demand) if is_csv else console.to_json(document), force=force)
    if as_json and output != "-":
        console.print_json(document)
    elif output != "-":
        console.print_result(*_demand_view(demand, loss))
        console.show_warnings(demand.warnings)


def _read(trace: str, format_name: str | None, columns: str | None, *, skip_bad_rows: bool) -> Trace:
    from planner.workload.read import parse_columns, read_trace

    column_map = None if columns is None else parse_columns(columns)
    return read_trace(trace, format_name=format_name, columns=column_map, skip_bad_rows=skip_bad_rows)


def _grid(name: str, trace: Trace, *, rows: int, columns: int) -> BucketGrid:
    from planner.errors import InputError
    from planner.workload.buckets import adaptive_grid, melange_grid

    if name == "adaptive":
        return adaptive_grid(trace, rows=rows, columns=columns)
    if name == "melange":
        return melange_grid()
    raise InputError(f"{name!r} is not a grid.", hint="Use --grid melange or --grid adaptive.")


def _check_target(target: str, *, force: bool) -> None:
    from planner.errors import InputError, Where
    from planner.files.output import check_writable

    if target == "-":
        return
    if Path(target).suffix not in {".csv", ".json"}:
        message = f"The suffix {Path(target).suffix!r} names no format."
        raise InputError(message, hint="Use .csv or .json.", where=Where(path=target))
    check_writable(Path(target), force=force)


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _warning(warning: Any) -> dict[str, Any]:  # noqa: ANN401 - imported lazily
    return {
        "code": warning.code,
        "message": warning.message,
        "observed": warning.observed,
        "threshold": warning.threshold,
    }


def _headlines(summary: TraceSummary) -> list[str]:
    from planner.units import format_duration

    lines = [f"{summary.source}: {summary.n_requests:,} requests, format {summary.format_name}"]
    if summary.duration_s is None:
        lines.append("No arrival times: a rate has to be given.")
    elif summary.mean_rate_rps is None:
        lines.append("All requests arrive at once: a rate has to be given.")
    else:
        lines.append(f"{summary.mean_rate_rps:.2f} req/s on average over {format_duration(summary.duration_s)}")
    if summary.interarrival_cv is not None:
        kind = "steadier than" if summary.interarrival_cv < 0.95 else "burstier than"
        kind = "like" if 0.95 <= summary.interarrival_cv <= 1.05 else kind
        lines.append(f"Gaps between arrivals: CV {summary.interarrival_cv:.2f}, {kind} a Poisson process (1)")
    if summary.size_correlation is not None:
        lines.append(f"Correlation of input and output tokens: {summary.size_correlation:+.2f}")
    if summary.prefix_reuse_fraction is not None:
        lines.append(f"Input tokens in prefixes seen before: {summary.prefix_reuse_fraction:.1%}")
    if summary.n_failed_requests:
        lines.append(f"Left out: {summary.n_failed_requests:,} failed requests")
    if summary.n_bad_rows:
        lines.append(f"Dropped: {summary.n_bad_rows:,} malformed rows")
    return lines


def _table(*headers: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for at, header in enumerate(headers):
        table.add_column(header, justify="left" if at == 0 else "right", no_wrap=at > 0, overflow="crop")
    return table


def _rate_table(summary: TraceSummary) -> Table:
    from planner.units import format_duration

    def show(value: float | None, *, digits: int = 2) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    table = _table("req/s by", "p99", "max", "max/mean", "var/mean")
    for window in summary.windows:
        ratio = None if window.max_rps is None else window.max_rps / (summary.mean_rate_rps or 1.0)
        table.add_row(
            f"{format_duration(window.window_s)} windows",
            show(window.p99_rps),
            show(window.max_rps),
            show(ratio),
            show(window.dispersion, digits=1),
        )
    return table


def _size_table(summary: TraceSummary) -> Table:
    table = _table("tokens", "mean", "p50", "p90", "p95", "p99", "max")
    for name, sizes in (("input", summary.input_tokens), ("output", summary.output_tokens)):
        figures = (sizes.mean, sizes.p50, sizes.p90, sizes.p95, sizes.p99, sizes.max)
        table.add_row(name, *(f"{figure:,.0f}" for figure in figures))
    return table


def _demand_view(demand: Demand, loss: CompressionError) -> list[Any]:
    from rich.text import Text

    table = _table("tokens in", "out", "req/s", "share", "mean in", "mean out")
    total = demand.total_rate_rps
    for item in demand.buckets:
        low_in, high_in = item.input_range or (0, 0)
        low_out, high_out = item.output_range or (0, 0)
        table.add_row(
            f"{low_in}-{high_in}",
            f"{low_out}-{high_out}",
            f"{item.rate_rps:.4g}",
            f"{item.rate_rps / total:.2%}",
            f"{item.input_tokens or 0:.0f}",
            f"{item.output_tokens or 0:.0f}",
        )
    lines = (
        f"{total:.4g} req/s in {len(demand.buckets)} buckets: {demand.basis}",
        f"Planning with bucket means changes attention's squared input by {loss.prefill_error:+.2%} "
        f"and KV-cache occupancy by {loss.kv_error:+.2%}; token counts not at all.",
    )
    return [*map(Text, lines), table]


def _demand_csv(demand: Demand) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(DEMAND_COLUMNS)
    for item in demand.buckets:
        ranges = (*(item.input_range or ()), *(item.output_range or ()))
        writer.writerow((*ranges, item.input_tokens, item.output_tokens, item.rate_rps))
    return text.getvalue()


def _demand_document(demand: Demand, trace: Trace, loss: CompressionError) -> dict[str, Any]:
    return {
        "schema_version": "1",
        "kind": "Demand",
        "service": demand.service,
        "basis": demand.basis,
        "total_rate_rps": demand.total_rate_rps,
        "output_tokens_per_s": demand.output_tokens_per_s,
        "buckets": [
            {
                "row": item.row,
                "column": item.column,
                "input_tokens": list(item.input_range or ()),
                "output_tokens": list(item.output_range or ()),
                "mean_input_tokens": item.input_tokens,
                "mean_output_tokens": item.output_tokens,
                "rate_rps": item.rate_rps,
            }
            for item in demand.buckets
        ],
        "compression_error": {
            "prefill_error": loss.prefill_error,
            "kv_error": loss.kv_error,
            "max_input_spread": loss.max_input_spread,
            "max_output_spread": loss.max_output_spread,
        },
        "warnings": [_warning(item) for item in demand.warnings],
        "inputs": {
            "trace": trace.source,
            "trace_sha256": trace.sha256,
            "format": trace.format_name,
            "requests": trace.n_requests,
            "bad_rows": trace.n_bad_rows,
            "failed_requests": trace.n_failed_requests,
        },
    }
