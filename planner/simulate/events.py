"""What goes wrong in a replay: places lost for a while, bursts of load, replicas that fail and spot that is reclaimed.

Written as "FROM-TO: WHAT": "10min-20min: lose region us-east-1", "10min-20min: lose 30% of market spot",
"10min-20min: load x 2", "10min-20min: spot at 5%/h, back in 15min", "10min-11min: adapter NAME at 5 req/s"; what
happens at random may do so all the time: "fail every 30d, back in 10min".
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from planner.errors import InputError
from planner.units import format_duration, parse_duration_s, parse_rate_rps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from planner.simulate.run import Traffic

PLACES = ("provider", "region", "zone", "market", "gpu", "offer")
"""What can be lost."""

_SPAN_S = {"h": 3600.0, "day": 86400.0, "week": 7 * 86400.0, "month": 30 * 86400.0}
_TIMES = re.compile(r"\s*([^:]+?)\s*-\s*([^:]+?)\s*:\s*(.*?)\s*")
_LOSS = re.compile(rf"lose\s+(?:(\d+(?:\.\d+)?)\s*%\s+of\s+)?({'|'.join(PLACES)})\s+(\S.*)", re.IGNORECASE)
_SURGE = re.compile(r"load\s*x\s*(\d+(?:\.\d+)?)", re.IGNORECASE)
_BURST = re.compile(r"adapter\s+(\S.*?)\s+at\s+(\S.*)", re.IGNORECASE)
_BACK = r"(?:\s*,\s*back\s+in\s+(\S.*))?"
_SPOT = re.compile(rf"spot\s+at\s+(\d+(?:\.\d+)?)\s*%\s*/\s*({'|'.join(_SPAN_S)}){_BACK}", re.IGNORECASE)
_FAIL = re.compile(rf"fail\s+every\s+([^,]+?){_BACK}", re.IGNORECASE)
_HINT = (
    "Write '10min-20min: lose region us-east-1', 'lose 30% of market spot', 'load x 2', 'adapter NAME at 5 req/s', "
    "'spot at 20%/month' or 'fail every 30d, back in 10min'."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens to a fleet and passes."""

    start_s: float
    """Since the replay began."""
    end_s: float
    """Infinite where it lasts as long as the replay."""
    text: str

    def moved(self, by_s: float) -> Self:
        """Return the same, so much later; what lasts all the time still begins at once."""
        start_s = self.start_s + by_s if math.isfinite(self.end_s) else self.start_s
        return replace(self, start_s=start_s, end_s=self.end_s + by_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss(Event):
    """Replicas are gone; they come back empty."""

    place: str
    """One of `PLACES`."""
    name: str
    fraction: float = 1.0
    """Of the replicas there, rounded up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surge(Event):
    """Requests come in so many times as fast."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterBurst(Event):
    """Requests for one adapter, beside those that come anyway."""

    name: str
    rate_rps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaims(Event):
    """Spot instances are taken back at random, each by itself."""

    per_s: float | None
    """How often, of one instance; None = as the catalog, or the request, says of each offer."""
    back_s: float | None = None
    """Until a replacement serves; None = as the request says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures(Event):
    """Replicas fail at random, each by itself."""

    per_s: float
    """How often, of one replica."""
    back_s: float | None = None
    """Until it serves again; None = the request's start-up time."""


MOST_REQUESTS = 50_000_000
MOST_TIMES = 100_000

AnyEvent = Loss | Surge | AdapterBurst | Reclaims | Failures

AS_THE_CATALOG_SAYS = Reclaims(start_s=0.0, end_s=math.inf, text="spot interruptions", per_s=None)
"""What `--spot-interruptions` asks for."""


def parse_event(text: str) -> AnyEvent:
    """Return the event that `text` describes.

    Raises
    ------
    InputError: if it describes none.

    Examples
    --------
    >>> event = parse_event("10min-20min: lose 30% of market spot")
    >>> event.start_s, event.end_s, event.place, event.name, event.fraction
    (600.0, 1200.0, 'market', 'spot', 0.3)
    >>> parse_event("0s-1h: load x 2").factor
    2.0
    >>> parse_event("1min-2min: adapter a7 at 5 req/s").rate_rps
    5.0
    >>> parse_event("fail every 10h, back in 5min").back_s
    300.0
    >>> round(1 / parse_event("spot at 50%/h").per_s)
    7200
    """
    match = _TIMES.fullmatch(text)
    what = match[3] if match else text.strip()
    start_s, end_s = (parse_duration_s(match[1]), parse_duration_s(match[2])) if match else (0.0, math.inf)
    if not 0 <= start_s < end_s:
        raise InputError(f"{text!r} ends before it begins.", hint=_HINT)
    if spot := _SPOT.fullmatch(what):
        per_s = float(spot[1]) / 100 / _SPAN_S[spot[2].lower()]
        return Reclaims(start_s=start_s, end_s=end_s, text=what, per_s=_above_0(per_s, text), back_s=_back_s(spot[3]))
    if fail := _FAIL.fullmatch(what):
        every_s = _above_0(parse_duration_s(fail[1]), text)
        return Failures(start_s=start_s, end_s=end_s, text=what, per_s=1.0 / every_s, back_s=_back_s(fail[2]))
    if match is None:
        raise InputError(f"{text!r} is no event.", hint=_HINT)
    if surge := _SURGE.fullmatch(what):
        return Surge(start_s=start_s, end_s=end_s, text=what, factor=float(surge[1]))
    if burst := _BURST.fullmatch(what):
        rate_rps = _above_0(parse_rate_rps(burst[2]), text)
        return AdapterBurst(start_s=start_s, end_s=end_s, text=what, name=burst[1], rate_rps=rate_rps)
    if loss := _LOSS.fullmatch(what):
        fraction = float(loss[1]) / 100 if loss[1] else 1.0
        if not 0 < fraction <= 1:
            raise InputError(f"{loss[1]}% of the replicas cannot be lost.", hint=_HINT)
        return Loss(start_s=start_s, end_s=end_s, text=what, place=loss[2].lower(), name=loss[3], fraction=fraction)
    raise InputError(f"{what!r} is nothing that can happen.", hint=_HINT)


def _above_0(value: float, text: str) -> float:
    if value <= 0:
        raise InputError(f"{text!r} has a rate or a time of 0.", hint=_HINT)
    return value


def _back_s(text: str | None) -> float | None:
    if text is None:
        return None
    back_s = parse_duration_s(text)
    if back_s < 0:
        raise InputError(f"Nothing is back in {format_duration(back_s)}.", hint=_HINT)
    return back_s


def with_surge(traffic: Traffic, surge: Surge, rng: np.random.Generator) -> Traffic:
    """Return the traffic with the requests of a stretch of time multiplied: copies of its own at random times in it.

    A factor below 1 leaves requests out. The stretch ends with the traffic at the latest.

    Raises
    ------
    InputError: if that makes more requests than can be simulated.
    """
    inside = np.flatnonzero((traffic.arrival_s >= surge.start_s) & (traffic.arrival_s < surge.end_s))
    more = round((surge.factor - 1.0) * len(inside))
    if more > MOST_REQUESTS:
        raise InputError(
            f"{surge.text!r} makes {more:,} requests more.", hint=f"At most {MOST_REQUESTS:,} can be simulated."
        )
    if more <= 0:
        keep = np.ones(len(traffic.arrival_s), dtype=bool)
        keep[rng.choice(inside, size=-more, replace=False)] = False
        order = np.flatnonzero(keep)
        times = traffic.arrival_s[order]
    else:
        copied = rng.choice(inside, size=more)
        source = np.concatenate([np.arange(len(traffic.arrival_s)), copied])
        end_s = min(surge.end_s, float(traffic.arrival_s[-1]))
        times = np.concatenate([traffic.arrival_s, rng.uniform(surge.start_s, end_s, more)])
        by_time = np.argsort(times, kind="stable")
        order, times = source[by_time], times[by_time]
    return replace(traffic.select(order), arrival_s=times)


def with_burst(
    traffic: Traffic,
    burst: AdapterBurst,
    *,
    service: int,
    adapter: int,
    row_of: Callable[[Traffic, NDArray[np.int64]], NDArray[np.int64]],
    rng: np.random.Generator,
) -> Traffic:
    """Return the traffic with requests of `service` for one adapter more, a Poisson process while the burst lasts.

    Their sizes are those of other requests of the service, at random. The burst ends with the traffic at the latest.

    row_of : requests of the service, and the adapters that they are for -> their rows of the router's table.

    Raises
    ------
    InputError: if that makes more requests than can be simulated.
    """
    span_s = max(0.0, min(burst.end_s, float(traffic.arrival_s[-1])) - burst.start_s)
    if span_s * burst.rate_rps > MOST_REQUESTS:
        raise InputError(
            f"{burst.text!r} makes {span_s * burst.rate_rps:,.0f} requests more.",
            hint=f"At most {MOST_REQUESTS:,} can be simulated.",
        )
    more = int(rng.poisson(span_s * burst.rate_rps))
    alike = np.flatnonzero(traffic.service == service)
    if more == 0 or not len(alike) or traffic.adapter is None:
        return traffic
    drawn = rng.choice(alike, size=more)
    numbers = np.full(more, adapter, dtype=np.int64)
    rows = row_of(traffic.select(drawn), numbers)
    times = np.concatenate([traffic.arrival_s, burst.start_s + rng.random(more) * span_s])
    together = replace(
        traffic.select(np.concatenate([np.arange(len(traffic.arrival_s)), drawn])),
        arrival_s=times,
        row=np.concatenate([traffic.row, rows]),
        adapter=np.concatenate([traffic.adapter, numbers]),
    )
    return together.select(np.argsort(times, kind="stable"))


def random_times_s(
    event: Event, per_s: float, back_s: float, length_s: float, rng: np.random.Generator
) -> Iterator[float]:
    """Yield when one thing goes, in the time of `event` and before `length_s`: exponential times while it is there.

    Raises
    ------
    InputError: if that is so often that it cannot be simulated.
    """
    span_s = min(event.end_s, length_s) - event.start_s
    if span_s * per_s > MOST_TIMES:
        raise InputError(
            f"{event.text!r} happens some {span_s * per_s:,.0f} times to one replica in this replay.",
            hint=f"At most {MOST_TIMES:,} times can be simulated: make it rarer, or the replay shorter.",
        )
    now_s = event.start_s + float(rng.exponential(1.0 / per_s))
    while now_s < min(event.end_s, length_s):
        yield now_s
        now_s += back_s + float(rng.exponential(1.0 / per_s))
