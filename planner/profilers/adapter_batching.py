"""Batches of functions that take turns on a GPU: how large they may be, how long they may be filled, who goes first.

A batch of b requests yields its first tokens after T(b) = T0 + alpha (b - 1); while M batches share the GPU, each after
M T(b). Source of the model and the rules: ServerlessLoRA (arXiv 2505.14468, section 4.2, equations 4 and 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SLACK = 1e-9
"""Requests; a batch that meets its objective to the last digit is not cut by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLatency:
    """Time from the start of a batch to its first tokens, alone on the GPU: T(b) = T0 + alpha (b - 1)."""

    first_s: float
    """T0: a batch of one."""
    per_request_s: float
    """alpha: what each further request adds."""

    def __post_init__(self) -> None:
        """Refuse times that are none."""
        if not (0 < self.first_s < math.inf and 0 <= self.per_request_s < math.inf):
            msg = f"T0 must be above 0 and alpha at least 0, not {self.first_s!r} and {self.per_request_s!r}"
            raise ValueError(msg)

    def seconds(self, batch: int, *, n_sharing: int = 1) -> float:
        """Return the time of a batch while `n_sharing` batches share the GPU, itself included."""
        return n_sharing * (self.first_s + self.per_request_s * (batch - 1))


def batch_cap(latency: BatchLatency, *, slo_s: float, n_sharing: int = 1) -> float:
    """Return the largest batch that meets a TTFT of `slo_s`: floor((SLO / M - T0) / alpha) + 1; 0 if none does.

    inf if further requests cost no time.

    Examples
    --------
    >>> latency = BatchLatency(first_s=0.4, per_request_s=0.05)
    >>> batch_cap(latency, slo_s=2.0), batch_cap(latency, slo_s=2.0, n_sharing=3)
    (33.0, 6.0)
    """
    left_s = slo_s / n_sharing - latency.first_s
    if left_s < 0:
        return 0.0
    if latency.per_request_s == 0:
        return math.inf
    return float(math.floor(left_s / latency.per_request_s + SLACK) + 1)


def expire_delay_s(latency: BatchLatency, *, slo_s: float, batch: int, n_sharing: int = 1) -> float:
    """Return how long the oldest request of a batch may wait for it to fill: SLO - M T(batch); at least 0.

    Examples
    --------
    >>> round(expire_delay_s(BatchLatency(first_s=0.4, per_request_s=0.05), slo_s=2.0, batch=8), 6)
    1.25
    """
    return max(0.0, slo_s - latency.seconds(batch, n_sharing=n_sharing))


def margin_s(latency: BatchLatency, *, slo_s: float, waited_s: float, batch: int, n_sharing: int) -> float:
    """Return what a batch has left before its objective: SLO - (waited + M T(batch)). The smallest goes first."""
    return slo_s - (waited_s + latency.seconds(batch, n_sharing=n_sharing))


def rate_while_sharing_rps(latency: BatchLatency, *, slo_s: float, n_sharing: int) -> float:
    """Return the largest rate of one of M functions that share a GPU evenly, each in batches of b* = cap(SLO / M).

    X(M) = b* / (M T(b*)); 0 where not even a batch of one meets the objective, 1 / (M alpha) in the limit of batches
    without end. M X(M), the rate of the whole GPU, falls as M grows, since batches get smaller.

    Raises
    ------
    ValueError: if further requests cost no time: the rate then has no bound.
    """
    cap = batch_cap(latency, slo_s=slo_s, n_sharing=n_sharing)
    if math.isinf(cap):
        msg = "with no time per further request the rate has no bound"
        raise ValueError(msg)
    return cap / latency.seconds(int(cap), n_sharing=n_sharing) if cap else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Requests that start together."""

    start_s: float
    """When it is full, or may wait no longer."""
    first: int
    """Index of its oldest request."""
    size: int


def fill_or_expire(
    arrival_s: Sequence[float], latency: BatchLatency, *, slo_s: float, most: int, n_sharing: int = 1
) -> tuple[Batch, ...]:
    """Return the batches of one function: each starts when it has `most` requests or its oldest may wait no longer.

    A batch may wait until its oldest request arrived plus SLO - M T(n) for the n requests that it has by then, so each
    request that joins shortens the wait of all; one that would make it late starts the next batch instead.

    Parameters
    ----------
    arrival_s : ascending times in seconds.
    most : largest batch; `batch_cap` is the largest that can be in time.

    Raises
    ------
    ValueError: if arrivals do not ascend or `most` is below 1.
    """
    if most < 1:
        msg = f"most must be >= 1, not {most!r}"
        raise ValueError(msg)
    if any(later < earlier for earlier, later in pairwise(arrival_s)):
        msg = "arrivals must be in ascending order"
        raise ValueError(msg)
    batches: list[Batch] = []
    first = 0
    while first < len(arrival_s):
        size = 1
        expires_s = _latest_s(arrival_s[first], latency, slo_s, size, n_sharing)
        while size < most and first + size < len(arrival_s):
            joins_s = arrival_s[first + size]
            shorter_s = _latest_s(arrival_s[first], latency, slo_s, size + 1, n_sharing)
            if joins_s > shorter_s:
                break
            size, expires_s = size + 1, shorter_s
        newest_s = arrival_s[first + size - 1]
        batches.append(Batch(start_s=newest_s if size == most else expires_s, first=first, size=size))
        first += size
    return tuple(batches)


def _latest_s(oldest_s: float, latency: BatchLatency, slo_s: float, size: int, n_sharing: int) -> float:
    return oldest_s + expire_delay_s(latency, slo_s=slo_s, batch=size, n_sharing=n_sharing)
