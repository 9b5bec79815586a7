"""A grid fitted to a trace: the edges that keep alike what is alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError
from planner.workload.grid import MELANGE_INPUT_EDGES, MELANGE_OUTPUT_EDGES, BucketGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.domain.workload import Trace

_MAX_CANDIDATES = 512
"""Edges that are tried; more would cost time and gain nothing at 10 rows."""


def adaptive_grid(
    trace: Trace, *, rows: int = len(MELANGE_INPUT_EDGES), columns: int = len(MELANGE_OUTPUT_EDGES)
) -> BucketGrid:
    """Return the grid that fits a trace: of all ways to cut its sizes, inputs and outputs apart, the least lossy one.

    The loss is the sum over requests of (sqrt(size) - mean of sqrt(size) in its range)^2, which is about
    size x (relative deviation)^2 / 4: how far each request is from its bucket, in proportion, weighted by its tokens.
    Equal shares of requests or of tokens, the usual choices, lose two to four times as much attention work on the
    bundled traces (docs/reference/workload.md). The optimum is exact over up to 512 candidate edges, by dynamic
    programming. Fewer rows or columns come back if there are fewer distinct sizes.

    Raises
    ------
    InputError: if rows or columns are not positive.
    """
    if rows < 1 or columns < 1:
        raise InputError(f"A grid of {rows} x {columns} has no buckets.", hint="Ask for at least one row and column.")
    return BucketGrid(
        input_edges=least_loss_edges(trace.input_tokens, rows),
        output_edges=least_loss_edges(trace.output_tokens, columns),
    )


def least_loss_edges(tokens: NDArray[np.int64], n_ranges: int) -> tuple[int, ...]:
    """Return the upper edges of at most `n_ranges` ranges with the least loss, the last one above the largest size.

    Examples
    --------
    >>> least_loss_edges(np.array([10, 11, 12, 500, 510, 9000]), 3)
    (13, 511, 9001)
    """
    sizes, counts = np.unique(tokens, return_counts=True)
    ends = _candidate_ends(sizes, counts)
    loss = _range_losses(sizes, counts, ends)
    n_ends = len(ends)
    n_ranges = min(n_ranges, n_ends)
    best = loss[0]  # best[k]: least loss of the sizes before bound k + 1, with the ranges so far
    choices: list[NDArray[np.intp]] = []
    for _ in range(n_ranges - 1):
        # The last range runs from bound i + 1 to bound k + 1; what lies before it was solved in the last round.
        total = best[:, np.newaxis] + np.vstack((loss[1:], np.full((1, n_ends), np.inf)))
        choices.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
    at = n_ends - 1
    chosen = [at]
    for choice in reversed(choices):
        at = int(choice[at])
        chosen.append(at)
    return tuple(int(sizes[ends[at]]) + 1 for at in sorted(set(chosen)))


def _candidate_ends(sizes: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return indices of sizes after which a range may end: all, or those at equal steps of requests and of tokens."""
    if len(sizes) <= _MAX_CANDIDATES:
        return np.arange(len(sizes))
    steps = np.arange(1, _MAX_CANDIDATES // 2 + 1) / (_MAX_CANDIDATES // 2)
    requests, work = np.cumsum(counts, dtype=np.float64), np.cumsum(sizes * counts.astype(np.float64))
    at = np.concatenate([np.searchsorted(total, total[-1] * steps) for total in (requests, work)])
    return np.unique(np.append(np.minimum(at, len(sizes) - 1), len(sizes) - 1))


def _range_losses(sizes: NDArray[np.int64], counts: NDArray[np.int64], ends: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return loss[i, k] of the range after bound i up to end k (infinite where it is empty); shape (ends, ends)."""
    roots = np.sqrt(sizes.astype(np.float64))
    bounds = np.concatenate(([0], ends + 1))
    n, total, squares = (
        np.concatenate(([0.0], np.cumsum(part)))[bounds]
        for part in (counts.astype(np.float64), counts * roots, counts * roots**2)
    )
    weight, sums, square_sums = (part[np.newaxis, 1:] - part[:-1, np.newaxis] for part in (n, total, squares))
    safe = np.where(weight > 0, weight, 1.0)
    return np.where(weight > 0, np.maximum(square_sums - sums**2 / safe, 0.0), np.inf)
