"""A factor that depends on a size: straight between its knots over the logarithm of the size, flat beyond them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_KNOTS = 16
"""Most knots of a curve; of more, evenly spread ones are kept."""

SMALLEST = 1e-9
"""Sizes are at least so large, as logarithms are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Factors at knots, shape (knots,) or, for several replicas side by side, (buckets, knots)."""

    log_sizes: NDArray[np.float64]
    """Rising; padded with larger ones, at which the factor stays."""
    factors: NDArray[np.float64]

    def at(self, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the factor at each size; the last axis of `sizes` is that of the buckets."""
        place = np.log(np.maximum(sizes, SMALLEST))[..., None]
        share = np.clip((place - self.log_sizes[..., :-1]) / np.diff(self.log_sizes, axis=-1), 0.0, 1.0)
        found: NDArray[np.float64] = self.factors[..., 0] + (share * np.diff(self.factors, axis=-1)).sum(axis=-1)
        return found

    def take(self, order: NDArray[np.intp]) -> Curve:
        """Return the buckets of a stacked curve in another order."""
        return Curve(log_sizes=self.log_sizes[order], factors=self.factors[order])


def make_curve(pairs: Sequence[tuple[float, float]]) -> Curve:
    """Return the curve through (size, factor) pairs, the smallest size first; without pairs it is 1 everywhere.

    Examples
    --------
    >>> make_curve([(1.0, 2.0), (100.0, 1.0)]).at(np.array([0.5, 10.0, 1e4])).tolist()
    [2.0, 1.5, 1.0]
    """
    kept = list(pairs)
    if len(kept) > MAX_KNOTS:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, MAX_KNOTS).round().astype(int)]
    kept = kept or [(1.0, 1.0)]
    n_padded = MAX_KNOTS - len(kept)
    log_sizes = np.log([size for size, _ in kept])
    log_sizes = np.append(log_sizes, log_sizes[-1] + np.arange(1.0, n_padded + 1.0))
    factors = np.append([factor for _, factor in kept], np.full(n_padded, kept[-1][1]))
    return Curve(log_sizes=log_sizes, factors=factors)


def stack_curves(curves: Sequence[Curve | None], counts: Sequence[int]) -> Curve | None:
    """Return curves side by side, each repeated for so many buckets; None if there are none."""
    if all(curve is None for curve in curves):
        return None
    whole = [make_curve([]) if curve is None else curve for curve in curves]
    return Curve(
        log_sizes=np.repeat([curve.log_sizes for curve in whole], counts, axis=0),
        factors=np.repeat([curve.factors for curve in whole], counts, axis=0),
    )
