"""How requests spread over adapters: a few busy ones and a long tail (profiles/lora/popularity.csv)."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.distributions import HyperExponential
from planner.files.bundled import bundled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

FILE = ("profiles", "lora", "popularity.csv")
LARGEST_EXPONENT = 20.0
"""Fits are searched below this: the second adapter then has a millionth of the first one's requests."""
LARGEST_SHIFT = 1000.0
_STEPS = 60
"""Halvings, and golden sections, of what is searched: to twelve digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Popularity:
    """The r-th of n adapters has a share proportional to 1 / (r + shift)^exponent (Zipf and Mandelbrot's law)."""

    exponent: float
    """0 = all alike; the larger, the more the first ones have."""
    shift: float = 0.0
    """0 = Zipf's law; the larger, the more alike the first ones are."""

    def __post_init__(self) -> None:
        """Refuse what orders nothing."""
        if not (0 <= self.exponent < math.inf and 0 <= self.shift < math.inf):
            msg = f"exponent and shift must be at least 0 and finite, not {self.exponent!r} and {self.shift!r}"
            raise ValueError(msg)

    def shares(self, n: int) -> NDArray[np.float64]:
        """Return the share of each of `n` adapters, shape (n,), largest first; they sum to 1.

        Examples
        --------
        >>> Popularity(exponent=1.0).shares(3).round(3).tolist()
        [0.545, 0.273, 0.182]
        """
        if n < 1:
            msg = f"n must be >= 1, not {n!r}"
            raise ValueError(msg)
        logs = -self.exponent * np.log(np.arange(1, n + 1) + self.shift)
        weights = np.exp(logs - logs[0])
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    @classmethod
    def fitted(cls, counts: ArrayLike, *, is_shifted: bool = True) -> Popularity:
        """Return the most likely law for counts of requests, shape (adapters,), in any order.

        Ranks are taken from the counts themselves, which makes a law from few requests look steeper than it is.

        Parameters
        ----------
        is_shifted : false = Zipf's law, without a shift.

        Raises
        ------
        ValueError: if there are fewer than two counts, or one is not above 0.
        """
        ordered = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
        if ordered.ndim != 1 or len(ordered) < 2 or not np.all((ordered > 0) & np.isfinite(ordered)):
            msg = "a law of popularity is fitted to at least two counts above 0"
            raise ValueError(msg)
        if not is_shifted:
            return cls._with_shift(ordered, 0.0)[0]
        low, high = 0.0, math.log1p(LARGEST_SHIFT)  # golden section over log(1 + shift)
        ratio = (math.sqrt(5) - 1) / 2
        for _ in range(_STEPS):
            left, right = high - ratio * (high - low), low + ratio * (high - low)
            if cls._with_shift(ordered, math.expm1(left))[1] >= cls._with_shift(ordered, math.expm1(right))[1]:
                high = right
            else:
                low = left
        best, plain = cls._with_shift(ordered, math.expm1((low + high) / 2)), cls._with_shift(ordered, 0.0)
        return max(plain, best, key=lambda found: found[1])[0]

    @classmethod
    def _with_shift(cls, counts: NDArray[np.float64], shift: float) -> tuple[Popularity, float]:
        """Return the likeliest exponent for a shift, and its mean log-likelihood per request.

        The likelihood is largest where the mean of log(rank + shift) is that of the counts; it falls as the exponent
        grows.
        """
        logs = np.log(np.arange(1, len(counts) + 1) + shift)
        wanted = float(counts @ logs / counts.sum())
        low, high = 0.0, LARGEST_EXPONENT
        for _ in range(_STEPS):
            middle = (low + high) / 2
            weights = np.exp(-middle * (logs - logs[0]))
            low, high = (middle, high) if weights @ logs / weights.sum() > wanted else (low, middle)
        exponent = (low + high) / 2
        likelihood = -exponent * wanted - math.log(float(np.exp(-exponent * logs).sum()))
        return cls(exponent=exponent, shift=shift), likelihood


@cache
def fitted_parameters() -> Mapping[str, float]:
    """Return what was fitted to a production trace, by name (profiles/lora/popularity.csv)."""
    rows = csv.DictReader(bundled(*FILE).read_text(encoding="utf-8").splitlines())
    return MappingProxyType({row["parameter"]: float(row["value"]) for row in rows})


def default_popularity() -> Popularity:
    """Return the law fitted to the users of a service of image models with adapters, who stand for adapters here."""
    known = fitted_parameters()
    return Popularity(exponent=known["exponent"], shift=known["shift"])


def default_gaps() -> HyperExponential:
    """Return the gaps between requests of one of them, of mean 1 s: `stretched` gives them another one."""
    known = fitted_parameters()
    return HyperExponential(
        short_fraction=known["short_gap_fraction"],
        short_mean_s=known["short_gap_mean"],
        long_mean_s=known["long_gap_mean"],
    ).stretched(1.0)
