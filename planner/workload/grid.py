"""Grids of request sizes, and what is lost by planning with a bucket's mean instead of its requests."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.domain.workload import Trace

MELANGE_INPUT_EDGES = (25, 100, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000)
MELANGE_OUTPUT_EDGES = (25, 100, 250, 500, 1000, 2000)
"""Upper edges of the buckets in tokens. Source: Griggs et al., Mélange, arXiv:2404.14527, figure 5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketGrid:
    """Ranges of input sizes (rows) and output sizes (columns), by their upper edges in tokens.

    Row r covers [input_edges[r - 1], input_edges[r]), row 0 begins at 0; columns alike.
    """

    input_edges: tuple[int, ...]
    output_edges: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, edges in (("input", self.input_edges), ("output", self.output_edges)):
            if not edges or edges[0] <= 0 or any(low >= high for low, high in pairwise(edges)):
                hint = "Edges are upper ends in tokens, each larger than the one before, the first above 0."
                raise InputError(f"The {name} edges {edges} are not ascending.", hint=hint)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.input_edges), len(self.output_edges)

    def input_range(self, row: int) -> tuple[int, int]:
        """Return [from, to) of a row in tokens."""
        return (self.input_edges[row - 1] if row else 0), self.input_edges[row]

    def output_range(self, column: int) -> tuple[int, int]:
        """Return [from, to) of a column in tokens."""
        return (self.output_edges[column - 1] if column else 0), self.output_edges[column]

    def covering(self, *, max_input: int, max_output: int) -> BucketGrid:
        """Return this grid with as many rows and columns added, each edge twice the last, as such sizes need.

        Nothing beyond the last edge is dropped or counted as smaller than it is.

        Examples
        --------
        >>> melange_grid().covering(max_input=40_000, max_output=100).input_edges[-3:]
        (16000, 32000, 64000)
        """
        return BucketGrid(
            input_edges=_extended(self.input_edges, max_input), output_edges=_extended(self.output_edges, max_output)
        )

    def cells(self, trace: Trace) -> NDArray[np.intp]:
        """Return the flat index row x columns + column of every request's bucket; shape (requests,)."""
        rows = np.searchsorted(np.asarray(self.input_edges), trace.input_tokens, side="right")
        columns = np.searchsorted(np.asarray(self.output_edges), trace.output_tokens, side="right")
        n_rows, n_columns = self.shape
        if rows.max(initial=0) >= n_rows or columns.max(initial=0) >= n_columns:
            msg = "the grid does not cover the trace; use BucketGrid.covering first"
            raise ValueError(msg)
        return rows * n_columns + columns


def _extended(edges: tuple[int, ...], largest: int) -> tuple[int, ...]:
    extended = list(edges)
    while extended[-1] <= largest:
        extended.append(2 * extended[-1])
    return tuple(extended)


def melange_grid() -> BucketGrid:
    """Return Mélange's 10 x 6 grid.

    Examples
    --------
    >>> melange_grid().shape, melange_grid().input_range(1)
    ((10, 6), (25, 100))
    """
    return BucketGrid(input_edges=MELANGE_INPUT_EDGES, output_edges=MELANGE_OUTPUT_EDGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSpread:
    """How alike the requests of one bucket are."""

    row: int
    column: int
    n_requests: int
    input_spread: float
    """(largest - smallest) / mean input tokens."""
    output_spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionError:
    """What is lost when every request is replaced by the mean request of its bucket.

    Linear work (tokens read, tokens written) is kept exactly, whatever the grid. What is not linear changes by:
    """

    prefill_error: float
    """Relative change of the sum of input^2, the quadratic part of attention. An upper bound (in size) for the whole
    prefill work of any model, because its other part is linear. Never above 0: means understate squares."""
    kv_error: float
    """Relative change of the KV-cache occupancy, the sum of output x (input + output / 2) token-steps: a request holds
    input + k tokens while it writes its k-th."""
    n_buckets: int
    """Buckets that are not empty."""
    max_input_spread: float
    max_output_spread: float
    buckets: tuple[BucketSpread, ...]

    @property
    def worst_error(self) -> float:
        """The larger of the two errors in size."""
        return max(abs(self.prefill_error), abs(self.kv_error))


def compression_error(trace: Trace, grid: BucketGrid) -> CompressionError:
    """Return what planning with this grid's bucket means instead of the trace's requests loses."""
    grid = grid.covering(max_input=int(trace.input_tokens.max()), max_output=int(trace.output_tokens.max()))
    present, cells = np.unique(grid.cells(trace), return_inverse=True)
    counts = np.bincount(cells).astype(np.float64)
    inputs, outputs = trace.input_tokens.astype(np.float64), trace.output_tokens.astype(np.float64)
    mean_in, mean_out = np.bincount(cells, inputs) / counts, np.bincount(cells, outputs) / counts
    spread_in, spread_out = _ranges(inputs, cells) / mean_in, _ranges(outputs, cells) / mean_out
    buckets = tuple(
        BucketSpread(
            row=int(cell) // grid.shape[1],
            column=int(cell) % grid.shape[1],
            n_requests=int(counts[at]),
            input_spread=float(spread_in[at]),
            output_spread=float(spread_out[at]),
        )
        for at, cell in enumerate(present)
    )
    return CompressionError(
        prefill_error=float(np.sum(counts * mean_in**2) / np.sum(inputs**2) - 1),
        kv_error=float(np.sum(counts * _kv(mean_in, mean_out)) / np.sum(_kv(inputs, outputs)) - 1),
        n_buckets=len(present),
        max_input_spread=float(spread_in.max()),
        max_output_spread=float(spread_out.max()),
        buckets=buckets,
    )


def _kv(inputs: NDArray[np.float64], outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    kv: NDArray[np.float64] = outputs * (inputs + outputs / 2)
    return kv


def _ranges(values: NDArray[np.float64], cells: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return largest - smallest value per cell."""
    n_cells = int(cells.max()) + 1
    low, high = np.full(n_cells, np.inf), np.full(n_cells, -np.inf)
    np.minimum.at(low, cells, values)
    np.maximum.at(high, cells, values)
    spread: NDArray[np.float64] = high - low
    return spread


def mean_sizes(cells: NDArray[np.intp], values: NDArray[np.int64], n_cells: int) -> NDArray[np.float64]:
    """Return the mean value per cell; NaN where a cell is empty."""
    counts = np.bincount(cells, minlength=n_cells)
    totals = np.bincount(cells, values.astype(np.float64), minlength=n_cells)
    means: NDArray[np.float64] = totals / np.where(counts > 0, counts, np.nan)
    return means


def count_cells(cells: NDArray[np.intp], n_cells: int) -> NDArray[np.int64]:
    """Return the requests per cell."""
    return np.bincount(cells, minlength=n_cells).astype(np.int64)
