"""Which requests an option serves, in a few words: "<= 1k in, < 250 out (64% of requests)"."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from planner.report.wording import percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from planner.domain.plan import Route

NEGLIGIBLE_WEIGHT = 1e-6
"""Weights below are a solver's rounding, not a decision."""
ROUND_TOKENS = 5
"""Edges that people choose are multiples of it: [0, 251) was meant as "<= 250"."""

Range = tuple[int, int]


@dataclass(slots=True)
class _Service:
    routes: list[Route] = field(default_factory=list)
    rate_rps: float = 0.0
    by_option: dict[str, list[tuple[Route, float]]] = field(default_factory=lambda: defaultdict(list))


class ServesIndex:
    """The plan's routes, looked up by service and option."""

    def __init__(self, routing: Iterable[Route]) -> None:
        self._services: dict[str, _Service] = defaultdict(_Service)
        for route in routing:
            service = self._services[route.service]
            service.routes.append(route)
            service.rate_rps += route.rate_rps
            for option, weight in route.shares.items():
                if weight > NEGLIGIBLE_WEIGHT:
                    service.by_option[option].append((route, weight))

    def request_share(self, service: str, option: str) -> float | None:
        """Return the fraction of the service's requests that `option` serves; None if no route is known."""
        if service not in self._services or not self._services[service].rate_rps:
            return None
        known = self._services[service]
        return sum(route.rate_rps * weight for route, weight in known.by_option.get(option, [])) / known.rate_rps

    def text(self, service: str, option: str) -> str:
        """Return in words which of the service's requests `option` serves; empty if no route is known."""
        share = self.request_share(service, option)
        if share is None:
            return ""
        known = self._services[service]
        served = known.by_option.get(option, [])
        if not served:
            return "nothing"
        if len(served) == len(known.routes) and share > 1 - NEGLIGIBLE_WEIGHT:
            return "all requests"
        sizes = _sizes_text([route for route, _ in served], known.routes)
        return f"{sizes} ({percent(share)} of requests)"


def _sizes_text(served: Sequence[Route], routes: Sequence[Route]) -> str:
    """Return the sizes that `served` cover out of `routes`: as ranges if they are a block, else as a count."""
    if len(served) == len(routes):
        return "all sizes"
    count = f"{len(served)} of {len(routes)} buckets"
    if any(route.input_tokens is None or route.output_tokens is None for route in routes):
        return count
    inputs, outputs = (_hull(route.input_tokens for route in served), _hull(route.output_tokens for route in served))
    whole_in, whole_out = (
        _hull(route.input_tokens for route in routes),
        _hull(route.output_tokens for route in routes),
    )
    texts = (range_text(inputs, whole_in, "in"), range_text(outputs, whole_out, "out"))
    ranges = ", ".join(text for text in texts if text)
    inside = sum(_within(route.input_tokens, inputs) and _within(route.output_tokens, outputs) for route in routes)
    if inside == len(served):
        return ranges
    return f"{count}, all {ranges}" if ranges else count


def _hull(ranges: Iterable[Range | None]) -> Range:
    known = [item for item in ranges if item is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else (0, 0)


def _within(inner: Range | None, outer: Range) -> bool:
    return inner is not None and outer[0] <= inner[0] and inner[1] <= outer[1]


def range_text(tokens: Range, whole: Range, direction: str) -> str:
    """Return the half-open range `tokens` in words; an end that is also the end of `whole` is left out.

    Examples
    --------
    >>> range_text((0, 1000), (0, 16000), "in"), range_text((251, 16001), (0, 16001), "in")
    ('< 1k in', '> 250 in')
    >>> range_text((1000, 4000), (0, 16000), "out"), range_text((512, 513), (0, 4096), "in")
    ('1k to < 4k out', '512 in')
    """
    low, high = tokens
    if high == low + 1:
        return "" if tokens == whole else f"{tokens_text(low)} {direction}"
    is_inclusive = high % ROUND_TOKENS != 0 and (high - 1) % ROUND_TOKENS == 0
    upper = f"<= {tokens_text(high - 1)}" if is_inclusive else f"< {tokens_text(high)}"
    is_after = low % ROUND_TOKENS != 0 and (low - 1) % ROUND_TOKENS == 0 and low > 1
    lower = f"> {tokens_text(low - 1)}" if is_after else f">= {tokens_text(low)}"
    if low <= whole[0]:
        return "" if high >= whole[1] else f"{upper} {direction}"
    if high >= whole[1]:
        return f"{lower} {direction}"
    return f"{lower if is_after else tokens_text(low)} to {upper} {direction}"


def bucket_text(tokens: Range | None, position: str) -> str:
    """Return one bucket's range of sizes, or its `position` where only that is known.

    Examples
    --------
    >>> bucket_text((0, 1000), "row 0"), bucket_text((512, 513), "row 0"), bucket_text(None, "row 0")
    ('0 to < 1k', '512', 'row 0')
    """
    if tokens is None:
        return position
    low, high = tokens
    return tokens_text(low) if high == low + 1 else f"{tokens_text(low)} to < {tokens_text(high)}"


def tokens_text(count: int) -> str:
    """Return a number of tokens, exactly: 1000 as "1k", 1500 as "1.5k", 2048 as "2048"."""
    return f"{count / 1000:.10g}k" if count >= 1000 and count % 100 == 0 else str(count)
