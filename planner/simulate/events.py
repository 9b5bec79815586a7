"""What goes wrong in a replay: places lost for a while, and bursts of load.

Written as "FROM-TO: WHAT": "10min-20min: lose region us-east-1", "10min-20min: lose 30% of market spot",
"10min-20min: load x 2".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError
from planner.simulate.run import Fault
from planner.units import parse_duration_s

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.domain.plan import Allocation
    from planner.simulate.run import Traffic

PLACES = ("provider", "region", "market", "gpu", "offer")
"""What can be lost; the names are fields of an allocation."""

_EVENT = re.compile(r"\s*([^:]+?)\s*-\s*([^:]+?)\s*:\s*(.*?)\s*")
_LOSS = re.compile(rf"lose\s+(?:(\d+(?:\.\d+)?)\s*%\s+of\s+)?({'|'.join(PLACES)})\s+(\S.*)", re.IGNORECASE)
_SURGE = re.compile(r"load\s*x\s*(\d+(?:\.\d+)?)", re.IGNORECASE)
_HINT = "Write '10min-20min: lose region us-east-1', 'lose 30% of market spot' or 'load x 2'."


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens to a fleet and passes."""

    start_s: float
    """Since the first arrival."""
    end_s: float
    text: str


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


def parse_event(text: str) -> Loss | Surge:
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
    """
    match = _EVENT.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is no event.", hint=_HINT)
    start_s, end_s = parse_duration_s(match[1]), parse_duration_s(match[2])
    if not 0 <= start_s < end_s:
        raise InputError(f"{text!r} ends before it begins.", hint=_HINT)
    if surge := _SURGE.fullmatch(match[3]):
        return Surge(start_s=start_s, end_s=end_s, text=match[3], factor=float(surge[1]))
    if loss := _LOSS.fullmatch(match[3]):
        fraction = float(loss[1]) / 100 if loss[1] else 1.0
        if not 0 < fraction <= 1:
            raise InputError(f"{loss[1]}% of the replicas cannot be lost.", hint=_HINT)
        return Loss(start_s=start_s, end_s=end_s, text=match[3], place=loss[2].lower(), name=loss[3], fraction=fraction)
    raise InputError(f"{match[3]!r} is nothing that can happen.", hint=_HINT)


def faults_of(losses: Sequence[Loss], allocation: Sequence[Allocation]) -> Iterator[Fault]:
    """Yield when each replica goes and comes back; a replica that is lost twice at a time comes back after both.

    Of a fraction the first replicas of each pool are lost, rounded up over the pools together.

    Raises
    ------
    InputError: if nothing of the plan is in the place that is lost.
    """
    gone: dict[int, list[tuple[float, float]]] = {}
    for loss in losses:
        for replica in _lost(loss, allocation):
            gone.setdefault(replica, []).append((loss.start_s, loss.end_s))
    for replica, spans in gone.items():
        for start_s, end_s in _merged(spans):
            yield Fault(at_s=start_s, replica=replica, is_up=False)
            yield Fault(at_s=end_s, replica=replica, is_up=True)


def _lost(loss: Loss, allocation: Sequence[Allocation]) -> list[int]:
    first, inside = 0, []
    for item in allocation:
        if getattr(item, loss.place) == loss.name:
            inside += [(i / item.replicas, first + i) for i in range(item.replicas)]
        first += item.replicas
    if not inside:
        there = sorted({getattr(item, loss.place) for item in allocation})
        raise InputError(
            f"The plan has nothing in {loss.place} {loss.name!r} that could be lost.",
            hint=f"It is in: {', '.join(there)}.",
        )
    inside.sort()
    return [replica for _, replica in inside[: int(np.ceil(loss.fraction * len(inside) - 1e-9))]]


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end_s, merged[-1][1]))
        else:
            merged.append((start_s, end_s))
    return merged


def with_surge(traffic: Traffic, surge: Surge, rng: np.random.Generator) -> Traffic:
    """Return the traffic with the requests of a stretch of time multiplied: copies of its own at random times in it.

    A factor below 1 leaves requests out.
    """
    inside = np.flatnonzero((traffic.arrival_s >= surge.start_s) & (traffic.arrival_s < surge.end_s))
    more = round((surge.factor - 1.0) * len(inside))
    if more <= 0:
        keep = np.ones(len(traffic.arrival_s), dtype=bool)
        keep[rng.choice(inside, size=-more, replace=False)] = False
        order = np.flatnonzero(keep)
        times = traffic.arrival_s[order]
    else:
        copied = rng.choice(inside, size=more)
        source = np.concatenate([np.arange(len(traffic.arrival_s)), copied])
        times = np.concatenate([traffic.arrival_s, rng.uniform(surge.start_s, surge.end_s, more)])
        by_time = np.argsort(times, kind="stable")
        order, times = source[by_time], times[by_time]
    return replace(traffic.select(order), arrival_s=times)
