"""The demand that a service's `workload` states."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.workload.buckets import (
    BucketGrid,
    adaptive_grid,
    constant_demand,
    demand_from_trace,
    melange_grid,
    parse_peak,
)
from planner.workload.histogram import demand_from_histogram, read_histogram
from planner.workload.rates import mean_rate_rps
from planner.workload.read import ColumnMap, read_trace, resolve_trace

if TYPE_CHECKING:
    from pathlib import Path

    from planner.domain.workload import Demand, Trace
    from planner.files.request.services import Grid, Service, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSource:
    """What a demand was read from."""

    name: str
    """As the request has it."""
    rate_rps: float
    """Mean rate; where a peak is planned for, less than the demand."""
    sha256: str = ""
    trace: Trace | None = None


def read_demand(service: Service, *, base_dir: Path) -> tuple[Demand, TrafficSource]:
    """Return what `service` must serve, and the file it was read from.

    Raises
    ------
    InputError: if a file is missing or wrong.
    """
    workload = service.workload
    if workload.constant is not None and workload.rate is not None:
        demand = constant_demand(
            service.name, workload.rate, workload.constant.input_tokens, workload.constant.output_tokens
        )
        return demand, TrafficSource(name="constant", rate_rps=workload.rate)
    if workload.histogram is not None and workload.rate is not None:
        path = base_dir / workload.histogram
        demand = demand_from_histogram(read_histogram(path), service=service.name, rate_rps=workload.rate)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return demand, TrafficSource(name=workload.histogram, rate_rps=workload.rate, sha256=digest)
    trace = _read_trace(workload, base_dir)
    demand = demand_from_trace(
        trace,
        service=service.name,
        grid=_grid(workload.grid, trace),
        rate_rps=workload.rate,
        peak=None if workload.peak is None else parse_peak(workload.peak),
    )
    rate_rps = workload.rate or mean_rate_rps(trace) or demand.total_rate_rps
    return demand, TrafficSource(name=workload.trace or "", rate_rps=rate_rps, sha256=trace.sha256, trace=trace)


def _read_trace(workload: Workload, base_dir: Path) -> Trace:
    columns = workload.columns
    return read_trace(
        resolve_trace(workload.trace or "", base_dir=base_dir),
        format_name=workload.format,
        columns=None if columns is None else ColumnMap(columns.arrival, columns.input, columns.output),
        skip_bad_rows=workload.skip_bad_rows,
    )


def _grid(grid: Grid, trace: Trace) -> BucketGrid:
    if grid.kind == "adaptive":
        return adaptive_grid(trace, rows=grid.rows, columns=grid.columns)
    if grid.kind == "edges" and grid.input_edges is not None and grid.output_edges is not None:
        return BucketGrid(input_edges=tuple(grid.input_edges), output_edges=tuple(grid.output_edges))
    return melange_grid()
