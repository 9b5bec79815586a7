"""How each adapter of a service fares in a replay, against the objectives that it has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.report.replay_page import rows_csv
from planner.simulate.statistics import fraction, mean, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from planner.domain.slo import Slo
    from planner.simulate.records import RequestRecords

WORST = 20
"""Adapters that are named one by one, the worst first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectivesOf:
    """Objectives, and the requests that they are about."""

    slos: tuple[Slo, ...]
    adapters: tuple[int, ...] | None = None
    """Numbers of those that have these objectives of their own; None = all requests of the service that no other part
    is about."""
    name: str = ""
    """Whose they are in words, where not everybody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """What a service promises: the same to all requests, or something else to some of its adapters."""

    parts: tuple[ObjectivesOf, ...]

    def masks(self, records: RequestRecords) -> Iterator[tuple[ObjectivesOf, NDArray[np.bool_]]]:
        """Yield each part with which of a service's `records` it is about, shape (requests,)."""
        own = [number for part in self.parts for number in part.adapters or ()]
        for part in self.parts:
            if part.adapters is not None:
                yield part, np.isin(records.adapter, part.adapters)
            else:
                yield part, ~np.isin(records.adapter, own) if own else np.ones(len(records), dtype=np.bool_)

    def of(self, adapter: int) -> tuple[Slo, ...]:
        """Return the objectives of one adapter."""
        own = (part.slos for part in self.parts if part.adapters is not None and adapter in part.adapters)
        others = (part.slos for part in self.parts if part.adapters is None)
        return next(own, next(others, ()))


def objectives_of(slos: tuple[Slo, ...], own: Mapping[str, tuple[Slo, ...]], numbers: Mapping[str, int]) -> Objectives:
    """Return what a service promises.

    Parameters
    ----------
    slos : the service's; own : those of adapters that have their own, by name.
    numbers : of all its adapters with requests, by name.
    """
    alike: dict[tuple[Slo, ...], list[str]] = {}
    for name in numbers:
        if name in own:
            alike.setdefault(own[name], []).append(name)
    n_own = sum(map(len, alike.values()))
    parts = [
        ObjectivesOf(
            slos=mine,
            adapters=tuple(numbers[name] for name in names),
            name=f"adapter {names[0]}" if len(names) == 1 else f"{len(names)} adapters",
        )
        for mine, names in alike.items()
    ]
    if not numbers or n_own < len(numbers):
        parts.insert(0, ObjectivesOf(slos=slos, name="the other adapters" if n_own else ""))
    return Objectives(parts=tuple(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOutcome:
    """How one adapter fares."""

    service: str
    adapter: str
    n_requests: int
    slos: tuple[Slo, ...]
    simulated_s: tuple[float, ...]
    """Each objective's statistic."""
    attainment: float
    """Part of its requests that are within every bound."""
    is_met: bool
    """Whether every statistic is within its bound."""
    is_surely_late: bool
    """Whether the interval of one objective lies beyond its bound, at 95% confidence in all adapters of the service
    together; never of fewer than 20 requests."""


def adapter_outcomes(
    service: str, objectives: Objectives, names: Mapping[int, str], records: RequestRecords
) -> tuple[AdapterOutcome, ...]:
    """Return how each adapter fares that is asked for in `records`, the worst first.

    names : of the service's adapters, by number.
    """
    order = np.argsort(records.adapter, kind="stable")
    numbers, starts = np.unique(records.adapter[order], return_index=True)
    parts = np.split(order, starts[1:])
    found = [
        _outcome(service, names[number], objectives.of(number), records.select(mine), among=len(numbers))
        for number, mine in zip(numbers.tolist(), parts, strict=True)
        if number in names
    ]
    return tuple(sorted(found, key=lambda each: (each.is_met, -each.is_surely_late, each.attainment, each.adapter)))


def _outcome(service: str, name: str, slos: tuple[Slo, ...], records: RequestRecords, *, among: int) -> AdapterOutcome:
    judged = [outcome(records, slo) for slo in slos]
    within = np.ones(len(records), dtype=bool)
    for slo in slos:
        within &= ~(records.values(slo.metric) > slo.bound_s)
    return AdapterOutcome(
        service=service,
        adapter=name,
        n_requests=len(records),
        slos=slos,
        simulated_s=tuple(item.simulated.value for item in judged),
        attainment=float(within.mean()),
        is_met=all(item.is_met for item in judged),
        is_surely_late=any(not item.is_met and _is_sure(records, item.slo, among) for item in judged),
    )


def _is_sure(records: RequestRecords, slo: Slo, among: int) -> bool:
    """Return whether an objective that is missed is so with confidence."""
    values = records.values(slo.metric)
    values = values[~np.isnan(values)]
    if slo.percentile is None:
        return mean(values, among).low > slo.bound_s
    return fraction((values <= slo.bound_s).astype(np.float64), among).high < slo.percentile / 100.0


def adapters_sentence(service: str, found: Sequence[AdapterOutcome]) -> str:
    """Return in a sentence how many adapters of a service keep their objectives."""
    met = sum(item.is_met for item in found)
    late = sum(item.is_surely_late for item in found)
    text = f"{service}: {met:,} of {len(found):,} adapters that were asked for keep every SLO by themselves"
    if late:
        return f"{text}; {late:,} surely do not."
    return f"{text}{'; of the others too few requests came to be sure' if met < len(found) else ''}."


def adapters_dict(found: Sequence[AdapterOutcome]) -> dict[str, Any]:
    """Return the adapters of a service as JSON-ready data."""
    met = sum(item.is_met for item in found)
    return {
        "asked": len(found),
        "met": met,
        "met_share": met / len(found) if found else None,
        "surely_late": sum(item.is_surely_late for item in found),
        "worst": [_dict(item) for item in found[:WORST]],
    }


def _dict(item: AdapterOutcome) -> dict[str, Any]:
    return {
        "adapter": item.adapter,
        "requests": item.n_requests,
        "attainment": item.attainment,
        "met": item.is_met,
        "surely_late": item.is_surely_late,
        "slo": [
            {"slo": str(slo), "simulated_s": value if math.isfinite(value) else None}
            for slo, value in zip(item.slos, item.simulated_s, strict=True)
        ],
    }


def adapters_csv(found: Sequence[AdapterOutcome]) -> str:
    """Return a row for each adapter and objective as CSV, the worst adapter of each service first."""
    return rows_csv(
        [
            {
                "service": item.service,
                "adapter": item.adapter,
                "requests": item.n_requests,
                "attainment": item.attainment,
                "slo": str(slo),
                "bound_s": slo.bound_s,
                "simulated_s": value if math.isfinite(value) else None,
                "met": value <= slo.bound_s or math.isnan(value),
                "surely_late": item.is_surely_late,
            }
            for item in found
            for slo, value in zip(item.slos, item.simulated_s, strict=True)
        ]
    )
