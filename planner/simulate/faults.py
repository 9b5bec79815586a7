"""When each replica of a fleet serves: the schedule's periods, less what is lost on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from planner.errors import InputError
from planner.simulate.events import Failures, Loss, Reclaims, random_times_s
from planner.simulate.run import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.simulate.events import AnyEvent

Span: TypeAlias = tuple[float, float]
"""From, to; in seconds since the replay began."""

SPOT = "spot"
_STATE_HINT = "Say it with the event, e.g. 'spot at 20%/month, back in 15min'."


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one pool's replicas run."""

    replicas: int
    provider: str = ""
    region: str = ""
    zone: str = ""
    """Empty where the plan tells none apart."""
    market: str = ""
    gpu: str = ""
    offer: str = ""
    listing: str = ""
    """The offer's name without its zone."""
    replicas_per_instance: int = 1
    """An instance that is reclaimed takes so many with it."""
    reclaims_per_s: float | None = None
    """Of one instance; None = not known, or not spot."""

    def whole_name(self, kind: str) -> str:
        """Return the full name of the place of a kind: "gcp us-central1 zone-1" for a zone; empty = it is in none."""
        if kind == "zone":
            return f"{self.provider} {self.region} {self.zone}" if self.zone else ""
        return str(getattr(self, kind))

    def is_in(self, kind: str, name: str) -> bool:
        """Return whether `name` is the place of that kind, in full or short."""
        if kind == "zone":
            return bool(self.zone) and name in {self.zone, f"{self.region} {self.zone}", self.whole_name("zone")}
        return name == self.whole_name(kind) or (kind == "offer" and name == self.listing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How long it takes until what is lost serves again, where nothing else says so."""

    start_up_s: float | None = None
    """Of a replica that is started; None = not known."""
    spot_s: float | None = None
    """Until a replacement of a reclaimed instance serves; None = not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """When replicas come and go."""

    faults: tuple[Fault, ...]
    down_at_start: tuple[int, ...]
    wanted: tuple[tuple[Span, ...], ...]
    """By replica, when the plan has it."""
    gone: tuple[tuple[Span, ...], ...]
    """By replica, when it is lost."""

    @property
    def n_lost(self) -> int:
        """Times that a replica was lost."""
        return sum(map(len, self.gone))

    def served_s(self, length_s: float) -> list[float]:
        """Return for each replica how long it takes requests in a replay of that length."""
        return [
            _length_s(wanted, length_s) - sum(_length_s(wanted, length_s, within=span) for span in gone)
            for wanted, gone in zip(self.wanted, self.gone, strict=True)
        ]


def timeline(
    places: Sequence[Place],
    events: Sequence[AnyEvent],
    *,
    length_s: float,
    scheduled: Sequence[Sequence[Span]] | None = None,
    recovery: Recovery | None = None,
    rng: np.random.Generator | None = None,
) -> Timeline:
    """Return when each replica, counted through all pools, comes and goes.

    Parameters
    ----------
    length_s : how long the replay lasts.
    scheduled : by replica, when the plan wants it, in order; None = always.
    rng : for what happens at random.

    Raises
    ------
    InputError: if nothing of the plan is in a place that is lost, or it is not known when something comes back.
    """
    lost = _lost_spans(places, events, length_s, recovery or Recovery(), rng or np.random.default_rng(0))
    n_replicas = sum(place.replicas for place in places)
    wanted = [((0.0, np.inf),)] * n_replicas if scheduled is None else [tuple(spans) for spans in scheduled]
    gone = [tuple(_merged(lost.get(replica, []))) for replica in range(n_replicas)]
    return Timeline(
        faults=tuple(fault for r in range(n_replicas) for fault in _changes(r, wanted[r], gone[r])),
        down_at_start=tuple(r for r in range(n_replicas) if not _is_inside(0.0, wanted[r])),
        wanted=tuple(wanted),
        gone=tuple(gone),
    )


def _is_inside(at_s: float, spans: Sequence[Span]) -> bool:
    return any(start_s <= at_s < end_s for start_s, end_s in spans)


def _changes(replica: int, wanted: Sequence[Span], gone: Sequence[Span]) -> Iterator[Fault]:
    """Yield a replica's comings and goings: it drains where the schedule ends it, and is lost with its requests."""
    times = sorted({time for span in (*wanted, *gone) for time in span if np.isfinite(time)})
    was_up = _is_inside(0.0, wanted)
    for now_s in times:
        is_up = _is_inside(now_s, wanted) and not _is_inside(now_s, gone)
        if any(start_s == now_s for start_s, _ in gone):  # also while it drains
            yield Fault(at_s=now_s, replica=replica, is_up=False)
        elif is_up and not was_up:
            yield Fault(at_s=now_s, replica=replica, is_up=True)
        elif was_up and not is_up:
            yield Fault(at_s=now_s, replica=replica, is_up=False, lets_finish=True)
        was_up = is_up


def _length_s(spans: Sequence[Span], length_s: float, within: Span = (0.0, np.inf)) -> float:
    low, high = within
    return sum(max(0.0, min(end_s, high, length_s) - max(start_s, low, 0.0)) for start_s, end_s in spans)


def _lost_spans(
    places: Sequence[Place],
    events: Sequence[AnyEvent],
    length_s: float,
    recovery: Recovery,
    rng: np.random.Generator,
) -> dict[int, list[Span]]:
    """Return by replica when it is gone; spans of one replica may overlap."""
    spans: dict[int, list[Span]] = {}
    for event in events:
        found: Iterator[tuple[int, Span]] = iter(())
        if isinstance(event, Loss):
            back_s = event.end_s + (recovery.start_up_s or 0.0)
            found = ((replica, (event.start_s, back_s)) for replica in _lost(event, places))
        elif isinstance(event, Failures):
            found = _failing(event, places, length_s, recovery, rng)
        elif isinstance(event, Reclaims):
            found = _reclaimed(event, places, length_s, recovery, rng)
        for replica, span in found:
            spans.setdefault(replica, []).append(span)
    return spans


def _failing(
    event: Failures, places: Sequence[Place], length_s: float, recovery: Recovery, rng: np.random.Generator
) -> Iterator[tuple[int, Span]]:
    back_s = recovery.start_up_s if event.back_s is None else event.back_s
    if back_s is None:
        raise InputError(
            f"Nothing says how long a replica that fails is away: {event.text!r}.",
            hint="Write e.g. 'fail every 30d, back in 10min'.",
        )
    for replica in range(sum(place.replicas for place in places)):
        for at_s in random_times_s(event, event.per_s, back_s, length_s, rng):
            yield replica, (at_s, at_s + back_s)


def _reclaimed(
    event: Reclaims, places: Sequence[Place], length_s: float, recovery: Recovery, rng: np.random.Generator
) -> Iterator[tuple[int, Span]]:
    """Yield what is taken back: an instance with all replicas on it."""
    spot = [place for place in places if place.market == SPOT]
    rates = [place.reclaims_per_s if event.per_s is None else event.per_s for place in spot]
    back_s = recovery.spot_s if event.back_s is None else event.back_s
    if not spot:
        raise InputError("The plan has nothing on spot that could be reclaimed.", hint="Leave spot interruptions out.")
    if all(rate is None for rate in rates):
        raise InputError(
            "It is not known how often the spot offers of this plan are reclaimed.",
            hint="Say it: --event 'spot at 20%/month'.",
        )
    if back_s is None:
        raise InputError(
            "Nothing says how long it takes until a replacement of a reclaimed instance serves.",
            hint=f"Set catalog.spot_recovery in the request and plan again. {_STATE_HINT}",
        )
    first = 0
    for place in places:
        rate = place.reclaims_per_s if event.per_s is None else event.per_s
        if place.market == SPOT and rate:
            for start in range(0, place.replicas, place.replicas_per_instance):
                members = range(first + start, first + min(start + place.replicas_per_instance, place.replicas))
                for at_s in random_times_s(event, rate, back_s, length_s, rng):
                    yield from ((replica, (at_s, at_s + back_s)) for replica in members)
        first += place.replicas


def _lost(loss: Loss, places: Sequence[Place]) -> list[int]:
    """Return the replicas that are lost: of a fraction the first of each pool, rounded up over the pools together."""
    first, inside = 0, []
    for place in places:
        if place.is_in(loss.place, loss.name):
            inside += [(i / place.replicas, first + i) for i in range(place.replicas)]
        first += place.replicas
    there = sorted({place.whole_name(loss.place) for place in places} - {""})
    meant = {place.whole_name(loss.place) for place in places if place.is_in(loss.place, loss.name)}
    if not there:
        raise InputError(
            f"The plan does not say in which {loss.place} its replicas are.",
            hint="Lose a region instead, or plan with survive: [zone] or max_share: {zone: ...}.",
        )
    if not inside:
        raise InputError(
            f"The plan has nothing in {loss.place} {loss.name!r} that could be lost.",
            hint=f"It is in: {', '.join(there)}.",
        )
    if loss.place == "zone" and len(meant) > 1:
        raise InputError(
            f"The plan has more than one {loss.place} {loss.name!r}.",
            hint=f"Say which: {', '.join(sorted(meant))}.",
        )
    inside.sort()
    return [replica for _, replica in inside[: int(np.ceil(loss.fraction * len(inside) - 1e-9))]]


def _merged(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end_s, merged[-1][1]))
        else:
            merged.append((start_s, end_s))
    return merged
