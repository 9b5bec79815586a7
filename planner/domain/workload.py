"""Requests and the demand made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from planner.domain.provenance import Warning_


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixHashes:
    """Prefix-cache block hashes of every request, flattened: request i owns `hashes[offsets[i]:offsets[i + 1]]`."""

    hashes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    block_tokens: int
    """Tokens per hashed block (Mooncake: 512)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in order of arrival. All arrays have shape (requests,)."""

    arrival_s: NDArray[np.float64]
    """Seconds since the first request; non-decreasing."""
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    prefix: PrefixHashes | None = None
    source: str = ""
    sha256: str = ""
    format_name: str = ""
    n_bad_rows: int = 0
    """Rows dropped because they were malformed and the user asked to skip those."""
    n_failed_requests: int = 0
    """Rows left out because they record a request that failed (BurstGPT: no response tokens), not a malformed row."""
    has_arrivals: bool = True
    """False for a table of lengths without times: `arrival_s` is then all zero and only a given rate makes sense."""

    @property
    def n_requests(self) -> int:
        """Number of requests."""
        return len(self.arrival_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Requests of one service that are alike in size; what the optimiser routes."""

    row: int
    """Input-size row, 0-based."""
    column: int
    """Output-size column, 0-based."""
    rate_rps: float
    input_range: tuple[int, int] | None = None
    """[from, to) in tokens; None where a bucket is known only by its position (Mélange's form)."""
    output_range: tuple[int, int] | None = None
    input_tokens: float | None = None
    """Mean input length of the bucket's requests; profilers plan with it."""
    output_tokens: float | None = None
    group: int | None = None
    """Of the service's adapters: whose requests these are; None where they are for the model itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one service must serve, before headroom."""

    service: str
    buckets: tuple[Bucket, ...]
    """Only buckets with a positive rate, ordered by (row, column)."""
    basis: str = ""
    """In words how the rate was chosen: "mean of the trace", "p99 of 1-minute windows", ..."""
    warnings: tuple[Warning_, ...] = ()

    @property
    def total_rate_rps(self) -> float:
        """Requests per second over all buckets."""
        return sum(bucket.rate_rps for bucket in self.buckets)

    @property
    def output_tokens_per_s(self) -> float | None:
        """Generated tokens per second over all buckets; None where the sizes are not known."""
        if any(bucket.output_tokens is None for bucket in self.buckets):
            return None
        return sum(bucket.rate_rps * (bucket.output_tokens or 0.0) for bucket in self.buckets)
