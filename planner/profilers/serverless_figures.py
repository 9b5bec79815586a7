"""Published figures of serverless serving (profiles/lora/serverless.csv): load times, cold starts and sanity bounds."""

from __future__ import annotations

import csv
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.domain.distributions import LogNormal, Weibull
from planner.errors import DataMissingError
from planner.files.bundled import bundled

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = ("profiles", "lora", "serverless.csv")


@cache
def figures(scope: str) -> Mapping[str, float]:
    """Return the published figures of one scope by parameter; the unit stands in the parameter's name.

    Scopes: timeline (read off ServerlessLoRA's figure), re-implementation (estimates of somebody who rebuilt it),
    published (what its abstract claims), cold-starts (fits to a month of Huawei's cloud).

    Raises
    ------
    DataMissingError: if there is no such scope.
    """
    text = bundled(*FILE).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    found = {row["parameter"]: float(row["value"]) for row in rows if row["scope"] == scope}
    if not found:
        known = ", ".join(dict.fromkeys(row["scope"] for row in rows))
        raise DataMissingError(f"There are no figures called {scope!r}.", hint=f"There are: {known}.")
    return MappingProxyType(found)


def cold_start_durations() -> LogNormal:
    """Return how long cold starts take on Huawei's serverless cloud: of CPU functions, without model weights."""
    known = figures("cold-starts")
    return LogNormal.from_moments(mean_s=known["duration_mean_s"], sd_s=known["duration_sd_s"])


def cold_start_gaps() -> Weibull:
    """Return the time from one cold start to the next one there."""
    known = figures("cold-starts")
    return Weibull.from_moments(mean_s=known["gap_mean_s"], sd_s=known["gap_sd_s"])


def beyond_published(*, ttft_reduction: float, cost_reduction: float) -> tuple[str, ...]:
    """Return a sentence for each reduction that exceeds the best that was published, beyond how well that is known.

    The published figures are the largest of many settings, so they bound what a model of the same system may claim;
    meeting them proves nothing.

    Parameters
    ----------
    ttft_reduction, cost_reduction : 1 - (with sharing and pre-loading) / (without), as fractions.

    Examples
    --------
    >>> beyond_published(ttft_reduction=0.86, cost_reduction=0.5)
    ()
    >>> beyond_published(ttft_reduction=0.95, cost_reduction=0.5)
    ('TTFT falls by 95%; the most that was published is 86%.',)
    """
    known = figures("published")
    most = {
        "TTFT falls": (ttft_reduction, known["ttft_reduction_at_most"]),
        "Cost falls": (cost_reduction, known["cost_reduction_at_most"]),
    }
    return tuple(
        f"{what} by {found:.0%}; the most that was published is {limit:.0%}."
        for what, (found, limit) in most.items()
        if found > limit + known["reduction_tolerance"]
    )
