"""Service-level objectives.

TTFT is the time from arrival to the first token. TPOT is (latency - TTFT) / (output tokens - 1). E2E is the time from
arrival to the last token. All in seconds; docs/reference/glossary.md tells how other tools define them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from planner.units import format_duration


class Metric(StrEnum):
    """What a service-level objective bounds."""

    TTFT = "ttft"
    TPOT = "tpot"
    E2E = "e2e"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """`statistic` of `metric` over all requests of a service must be at most `bound_s` seconds."""

    metric: Metric
    percentile: float | None
    """In (0, 100); None = the mean."""
    bound_s: float

    @property
    def statistic(self) -> str:
        """The statistic's name: "mean", "p50", "p99.9"."""
        return "mean" if self.percentile is None else f"p{self.percentile:g}"

    def __str__(self) -> str:
        return f"{self.metric} {self.statistic} <= {format_duration(self.bound_s)}"
