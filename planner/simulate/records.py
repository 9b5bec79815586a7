"""What is told of every request: one immutable record each, kept as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.slo import Metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.simulate.steps import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request's way through the fleet; times in seconds."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float
    """(E2E - TTFT) / (output tokens - 1); NaN where there is one output token."""
    longest_gap_s: float
    """Between two of its tokens (ITL)."""
    e2e_s: float
    replica: int
    preemptions: int
    restarts: int
    """Times that its replica was lost under it."""
    prefix_hit_tokens: int
    """Prompt tokens that were found in the cache."""
    is_turned_away: bool = False
    """The router sent it to no replica, because the plan leaves so many unserved."""
    adapter: int = -1
    """Number of its adapter; -1 = it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecords:
    """Records of many requests in the order of arrival; arrays of shape (requests,), not to be written to."""

    arrival_s: Floats
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    service: NDArray[np.int64]
    ttft_s: Floats
    """NaN where a request was never answered: turned away, rejected, or without a replica when the simulation ended."""
    longest_gap_s: Floats
    e2e_s: Floats
    replica: NDArray[np.int64]
    """-1 = none."""
    preemptions: NDArray[np.int64]
    restarts: NDArray[np.int64]
    prefix_hit_tokens: NDArray[np.int64]
    is_turned_away: NDArray[np.bool_]
    adapter: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrival_s)

    def __getitem__(self, index: int) -> RequestRecord:
        return RequestRecord(
            arrival_s=float(self.arrival_s[index]),
            input_tokens=int(self.input_tokens[index]),
            output_tokens=int(self.output_tokens[index]),
            ttft_s=float(self.ttft_s[index]),
            tpot_s=float(self.tpot_s[index]),
            longest_gap_s=float(self.longest_gap_s[index]),
            e2e_s=float(self.e2e_s[index]),
            replica=int(self.replica[index]),
            preemptions=int(self.preemptions[index]),
            restarts=int(self.restarts[index]),
            prefix_hit_tokens=int(self.prefix_hit_tokens[index]),
            is_turned_away=bool(self.is_turned_away[index]),
            adapter=int(self.adapter[index]),
        )

    @property
    def tpot_s(self) -> Floats:
        """Mean time per output token after the first; NaN where there is none."""
        further = np.where(self.output_tokens > 1, self.output_tokens - 1, 0)
        none = np.full(len(self), np.nan)
        found: Floats = np.divide(self.e2e_s - self.ttft_s, further, out=none, where=further > 0)
        return found

    @property
    def is_answered(self) -> NDArray[np.bool_]:
        """Whether each request got all of its tokens."""
        return np.isfinite(self.e2e_s)

    def values(self, metric: Metric) -> Floats:
        """Return a metric of every request, in seconds; infinite where it was never answered.

        It is NaN where a request neither meets nor misses an objective: turned away, or TPOT with one output token.
        """
        found = {Metric.TTFT: self.ttft_s, Metric.TPOT: self.tpot_s, Metric.E2E: self.e2e_s}[metric]
        never = ~self.is_answered & ~self.is_turned_away
        if metric is Metric.TPOT:
            never &= self.output_tokens > 1
        return np.where(never, np.inf, found)

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> RequestRecords:
        """Return the records of which `chosen` is true, or those of the given numbers."""
        return RequestRecords(**{name: getattr(self, name)[chosen] for name in self.__slots__})
