"""A trace's request sizes as a table of shares in plain characters, for a terminal of any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.workload.grid import BucketGrid

SHADES = "·░▒▓█"
ASCII_SHADES = ".:+*#"
_CELL_WIDTH = 7
"""A shade, "100.0" and a space between columns."""
_BAR_WIDTH = 20


def histogram_lines(counts: NDArray[np.int64], grid: BucketGrid, *, width: int, shades: str = SHADES) -> list[str]:
    """Return the lines of a histogram of requests over a grid, none wider than `width` characters.

    Rows are input sizes, columns output sizes, each named by its upper end; numbers are percent of all requests.
    Where columns do not fit, numbers are left out and the shades remain. Empty rows and columns at the end are cut.

    Parameters
    ----------
    counts : requests per bucket; shape as the grid's.
    shades : from the lightest to the darkest, by share relative to the fullest bucket.
    """
    n_rows = int(np.flatnonzero(counts.sum(axis=1))[-1]) + 1
    n_columns = int(np.flatnonzero(counts.sum(axis=0))[-1]) + 1
    shares = counts[:n_rows, :n_columns] / counts.sum()
    labels = [f"<{edge}" for edge in grid.input_edges[:n_rows]]
    label_width = max(len("in"), *map(len, labels))
    has_numbers = label_width + n_columns * _CELL_WIDTH <= width
    lines = ["Requests by tokens (rows in, columns out, named by their upper ends)"[:width]]
    if has_numbers:
        lines[0] = "Requests in % by tokens (rows in, columns out; upper ends)"[:width]
        lines.append(
            "in".rjust(label_width) + "".join(f"<{edge}".rjust(_CELL_WIDTH) for edge in grid.output_edges[:n_columns])
        )
    used = label_width + n_columns * _CELL_WIDTH if has_numbers else label_width + 1 + n_columns
    bar_width = min(_BAR_WIDTH, width - used - 2)
    row_shares = shares.sum(axis=1)
    for label, row, row_share in zip(labels, shares, row_shares, strict=True):
        cells = "".join(_cell(float(share), float(shares.max()), shades, has_number=has_numbers) for share in row)
        bar = shades[-1] * round(bar_width * float(row_share / row_shares.max())) if bar_width > 2 else ""
        gap = "" if has_numbers else " "
        lines.append(f"{label.rjust(label_width)}{gap}{cells}  {bar}".rstrip()[:width])
    return lines


def _cell(share: float, largest: float, shades: str, *, has_number: bool) -> str:
    # The square root spreads the light end: most buckets hold little.
    level = min(len(shades) - 1, int(len(shades) * (share / largest) ** 0.5))
    shade = shades[level] if share > 0 else " "
    if not has_number:
        return shade
    number = f"{100 * share:.1f}" if share >= 0.0005 else ("<.1" if share > 0 else "")
    return f"{shade}{number.rjust(5)}".rjust(_CELL_WIDTH)
