"""A mixed-integer linear program as plain arrays, and the builder that row families append to.

    minimise  cost . v    subject to    row_lower <= A v <= row_upper,   col_lower <= v <= col_upper,
                                        v[i] integer where is_integer[i]

A is kept in compressed rows (row_starts, columns, values). No solver is imported here; back ends read these arrays,
and `planner.optimize.verify` checks their answers against them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    Label = Callable[[int], str]
    FloatArray: TypeAlias = NDArray[np.float64]
    IntArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive rows or columns that one family added."""

    name: str
    start: int
    size: int
    label: Label | None = None
    """Names the i-th member; called only when somebody asks."""

    def member(self, index: int) -> str:
        """Return the name of the member at absolute position `index`."""
        inner = index - self.start
        return f"{self.name}[{self.label(inner) if self.label else inner}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """Where a linear programme's simplex method ended, in the solver's own codes: the next one can begin there."""

    columns: IntArray
    rows: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Milp:
    """A mixed-integer linear program to be minimised."""

    cost: FloatArray
    row_starts: IntArray
    """Shape (rows + 1,): row i owns `columns[row_starts[i]:row_starts[i + 1]]`."""
    columns: IntArray
    values: FloatArray
    row_lower: FloatArray
    row_upper: FloatArray
    col_lower: FloatArray
    col_upper: FloatArray
    is_integer: NDArray[np.bool_]
    row_blocks: tuple[Block, ...] = ()
    col_blocks: tuple[Block, ...] = ()
    start: FloatArray | None = None
    """A solution to begin with, NaN where it is not known; back ends that cannot take one do without."""
    basis: Basis | None = None
    """Where the simplex method of a linear programme begins; only `solve_linear` looks at it."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.row_lower)

    @property
    def n_columns(self) -> int:
        """Number of variables."""
        return len(self.cost)

    @property
    def row_of_entry(self) -> IntArray:
        """Row index of every entry of A."""
        return np.repeat(np.arange(self.n_rows), np.diff(self.row_starts))

    def activity(self, solution: FloatArray) -> FloatArray:
        """Return A v, shape (rows,)."""
        products = self.values * solution[self.columns]
        return np.bincount(self.row_of_entry, weights=products, minlength=self.n_rows).astype(np.float64)

    def row_scale(self, solution: FloatArray) -> FloatArray:
        """Return sum_i |A[r, i] v[i]| of every row: what a relative tolerance of that row is relative to."""
        products = np.abs(self.values * solution[self.columns])
        return np.bincount(self.row_of_entry, weights=products, minlength=self.n_rows).astype(np.float64)

    def row_name(self, row: int) -> str:
        """Return the name of a row."""
        return _name(self.row_blocks, row, "row")

    def column_name(self, column: int) -> str:
        """Return the name of a variable."""
        return _name(self.col_blocks, column, "column")


def _name(blocks: tuple[Block, ...], index: int, default: str) -> str:
    for block in blocks:
        if block.start <= index < block.start + block.size:
            return block.member(index)
    return f"{default}[{index}]"


class MilpBuilder:
    """Collects blocks of columns and rows, and freezes them into a `Milp`.

    Examples
    --------
    >>> builder = MilpBuilder()
    >>> n = builder.add_columns("n", 2, upper=10, cost=[1.0, 3.0], is_integer=True)
    >>> _ = builder.add_rows("need", rows=[0, 0], columns=n, values=[1.0, 4.0], lower=[5.0])
    >>> milp = builder.freeze()
    >>> milp.n_rows, milp.n_columns, milp.column_name(1)
    (1, 2, 'n[1]')
    """

    def __init__(self) -> None:
        self._n_columns = 0
        self._n_rows = 0
        self._col_lower: list[FloatArray] = []
        self._col_upper: list[FloatArray] = []
        self._cost: list[FloatArray] = []
        self._is_integer: list[NDArray[np.bool_]] = []
        self._rows: list[IntArray] = []
        self._columns: list[IntArray] = []
        self._values: list[FloatArray] = []
        self._row_lower: list[FloatArray] = []
        self._row_upper: list[FloatArray] = []
        self._row_blocks: list[Block] = []
        self._col_blocks: list[Block] = []

    def add_columns(
        self,
        name: str,
        size: int,
        *,
        lower: ArrayLike = 0.0,
        upper: ArrayLike = np.inf,
        cost: ArrayLike = 0.0,
        is_integer: ArrayLike = False,
        label: Label | None = None,
    ) -> IntArray:
        """Append `size` variables and return their indices."""
        self._col_lower.append(_filled(lower, size))
        self._col_upper.append(_filled(upper, size))
        self._cost.append(_filled(cost, size))
        self._is_integer.append(np.array(np.broadcast_to(np.asarray(is_integer, dtype=np.bool_), (size,))))
        self._col_blocks.append(Block(name=name, start=self._n_columns, size=size, label=label))
        self._n_columns += size
        return np.arange(self._n_columns - size, self._n_columns)

    def add_rows(
        self,
        name: str,
        *,
        rows: ArrayLike,
        columns: ArrayLike,
        values: ArrayLike,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        size: int | None = None,
        label: Label | None = None,
    ) -> IntArray:
        """Append a block of rows and return their indices.

        Parameters
        ----------
        rows, columns, values : entries of A, shape (entries,); `rows` counts from 0 inside the block.
        lower, upper : bounds, shape (size,); None = none on that side.
        size : number of rows; by default as many as `lower` or `upper` has.
        """
        if size is None:
            size = len(np.atleast_1d(np.asarray(lower if lower is not None else upper)))
        self._rows.append(np.asarray(rows, dtype=np.int64) + self._n_rows)
        self._columns.append(np.asarray(columns, dtype=np.int64))
        self._values.append(np.broadcast_to(np.asarray(values, dtype=np.float64), self._rows[-1].shape))
        self._row_lower.append(_filled(-np.inf if lower is None else lower, size))
        self._row_upper.append(_filled(np.inf if upper is None else upper, size))
        self._row_blocks.append(Block(name=name, start=self._n_rows, size=size, label=label))
        self._n_rows += size
        return np.arange(self._n_rows - size, self._n_rows)

    def freeze(self) -> Milp:
        """Return the program collected so far; duplicate entries are summed, zeros dropped."""
        rows, columns = _joined_integers(self._rows), _joined_integers(self._columns)
        values = _joined(self._values)
        keys, inverse = np.unique(rows * max(self._n_columns, 1) + columns, return_inverse=True)
        summed = np.bincount(inverse, weights=values, minlength=len(keys)).astype(np.float64)
        keys, summed = keys[summed != 0], summed[summed != 0]
        entry_rows = keys // max(self._n_columns, 1)
        starts = np.zeros(self._n_rows + 1, dtype=np.int64)
        starts[1:] = np.cumsum(np.bincount(entry_rows, minlength=self._n_rows))
        return Milp(
            cost=_joined(self._cost),
            row_starts=starts,
            columns=keys % max(self._n_columns, 1),
            values=summed,
            row_lower=_joined(self._row_lower),
            row_upper=_joined(self._row_upper),
            col_lower=_joined(self._col_lower),
            col_upper=_joined(self._col_upper),
            is_integer=np.concatenate([*self._is_integer, np.zeros(0, dtype=np.bool_)]),
            row_blocks=tuple(self._row_blocks),
            col_blocks=tuple(self._col_blocks),
        )


def always(name: str) -> Label:
    """Return a label that calls every member `name`: for blocks of one row."""
    return lambda _: name


def _filled(value: ArrayLike, size: int) -> FloatArray:
    return np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), (size,)))


def _joined(parts: list[FloatArray]) -> FloatArray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _joined_integers(parts: list[IntArray]) -> IntArray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
