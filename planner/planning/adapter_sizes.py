"""Sizes of an adapter's requests that are routed apart: the workload's buckets, or few enough rectangles of them.

Every group of adapters times every size is a bucket of the programme. With many groups the workload's grid is made
coarser: neighbouring rows or columns are put together, those first whose sizes differ least for the tokens they have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from planner.domain.workload import Bucket, Demand

Range = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeClass:
    """Buckets of a workload whose requests go together."""

    positions: tuple[int, ...]
    """In the demand's buckets."""
    input_range: Range | None
    output_range: Range | None


def size_classes(sizes: Demand, most: int) -> tuple[SizeClass, ...]:
    """Return the buckets of a workload in at most `most` classes (at least one), each a rectangle of its grid.

    As many classes as buckets where that is few enough. The loss of putting neighbours A and B together is
    tokens(A) tokens(B) / (tokens(A) + tokens(B)) (log size(A) - log size(B))^2, sizes being means: Ward's.
    """
    rows = _parts(sizes, lambda bucket: bucket.row)
    columns = _parts(sizes, lambda bucket: bucket.column)
    while len(_cells(sizes, rows, columns)) > max(most, 1):
        by_row = _least_loss(sizes, rows, lambda bucket: bucket.input_tokens)
        by_column = _least_loss(sizes, columns, lambda bucket: bucket.output_tokens)
        if by_row is None and by_column is None:
            break
        if by_column is None or (by_row is not None and by_row[0] <= by_column[0]):
            rows = _joined(rows, by_row)
        else:
            columns = _joined(columns, by_column)
    return tuple(
        SizeClass(
            positions=tuple(positions),
            input_range=_hull([sizes.buckets[position].input_range for position in rows[at[0]]]),
            output_range=_hull([sizes.buckets[position].output_range for position in columns[at[1]]]),
        )
        for at, positions in sorted(_cells(sizes, rows, columns).items())
    )


def _parts(sizes: Demand, of: Callable[[Bucket], int]) -> list[list[int]]:
    """Return the positions of the buckets of every row, or column, in their order."""
    found: dict[int, list[int]] = {}
    for position, bucket in enumerate(sizes.buckets):
        found.setdefault(of(bucket), []).append(position)
    return [found[key] for key in sorted(found)]


def _cells(sizes: Demand, rows: Sequence[Sequence[int]], columns: Sequence[Sequence[int]]) -> dict[Range, list[int]]:
    """Return the buckets in every rectangle that has any, by the numbers of its row and column."""
    row_of = {position: number for number, part in enumerate(rows) for position in part}
    column_of = {position: number for number, part in enumerate(columns) for position in part}
    found: dict[Range, list[int]] = {}
    for position in range(len(sizes.buckets)):
        found.setdefault((row_of[position], column_of[position]), []).append(position)
    return found


def _least_loss(
    sizes: Demand, parts: Sequence[Sequence[int]], size: Callable[[Bucket], float | None]
) -> tuple[float, int] | None:
    """Return the least loss of putting a part and the next one together, and the part's number; None of one part."""
    measured = [_measure(sizes, part, size) for part in parts]
    return min(_losses(measured), default=None)


def _losses(measured: Sequence[tuple[float, float]]) -> Iterator[tuple[float, int]]:
    for number in range(len(measured) - 1):
        (tokens, size), (others, other) = measured[number], measured[number + 1]
        weight = tokens * others / (tokens + others) if tokens + others else 0.0
        yield weight * (math.log1p(size) - math.log1p(other)) ** 2, number


def _measure(sizes: Demand, part: Sequence[int], size: Callable[[Bucket], float | None]) -> tuple[float, float]:
    """Return the tokens per second of a part, and its mean size."""
    chosen = [sizes.buckets[position] for position in part]
    rate = sum(bucket.rate_rps for bucket in chosen)
    tokens = sum(bucket.rate_rps * ((bucket.input_tokens or 0.0) + (bucket.output_tokens or 0.0)) for bucket in chosen)
    return tokens, sum(bucket.rate_rps * (size(bucket) or 0.0) for bucket in chosen) / rate


def _joined(parts: list[list[int]], found: tuple[float, int] | None) -> list[list[int]]:
    if found is None:
        return parts
    at = found[1]
    return [*parts[:at], [*parts[at], *parts[at + 1]], *parts[at + 2 :]]


def _hull(ranges: Sequence[Range | None]) -> Range | None:
    known = [each for each in ranges if each is not None]
    if len(known) < len(ranges):
        return None
    return min(low for low, _ in known), max(high for _, high in known)
