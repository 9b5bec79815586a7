"""Figures that follow from a cost per hour."""

from __future__ import annotations

import math

from planner.units import HOURS_PER_MONTH


def usd_per_month(usd_per_hour: float | None) -> float | None:
    """Return the cost of a month of `HOURS_PER_MONTH` hours in USD; None if the cost is not known.

    Examples
    --------
    >>> round(usd_per_month(6.70), 2)
    4891.0
    """
    return None if usd_per_hour is None else usd_per_hour * HOURS_PER_MONTH


def usd_per_million_tokens(usd_per_hour: float | None, tokens_per_s: float | None) -> float | None:
    """Return cost / (tokens per second x 3600 s/h) x 1e6, in USD per million tokens.

    None if either is not known or nothing is generated: a price of no tokens is not a number.

    Examples
    --------
    >>> usd_per_million_tokens(3.6, 1000.0)
    1.0
    """
    if usd_per_hour is None or not tokens_per_s:
        return None
    price = usd_per_hour / (tokens_per_s * 3600.0) * 1e6
    return price if math.isfinite(price) else None
