"""Objectives of a service's adapters in few classes, so that a programme over groups of adapters stays small.

Adapters of one class are planned as if all had the strictest objectives of any of them: a plan that keeps these keeps
everybody's. The bound of a plan's cost is that with the loosest of them: whoever serves every adapter within its own
objectives serves it within looser ones, so no plan costs less (`planner.optimize.adapter_bound`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from planner.domain.adapters import Adapter
    from planner.domain.slo import Slo

    Slos = tuple[Slo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SloClass:
    """Objectives that are planned as one."""

    strictest: Slos
    """Of every statistic the least bound of any member."""
    loosest: Slos
    """The greatest one."""


def slo_classes(adapters: Sequence[Adapter], most: int) -> Mapping[Slos, SloClass]:
    """Return the class of all objectives that any adapter has of its own, at most `most` of them.

    Objectives are put together only if they bound the same statistics; so there are more classes if there are more
    sets of statistics. The class with the largest product of requests per second and of the range of a bound's
    logarithm is cut in two in the middle of that range, until there are as many as may be.
    """
    rates: dict[Slos, float] = defaultdict(float)
    for adapter in adapters:
        if adapter.slos:
            rates[adapter.slos] += adapter.rate_rps or 0.0
    if len(rates) <= most:
        return {slos: SloClass(strictest=slos, loosest=slos) for slos in rates}
    by_statistics: dict[tuple[str, ...], list[Slos]] = defaultdict(list)
    for slos in rates:
        by_statistics[tuple(sorted(_name(slo) for slo in slos))].append(slos)
    classes = list(by_statistics.values())
    while len(classes) < most:
        ranges = [_widest(members) for members in classes]
        worth = [
            width * sum(rates[slos] for slos in members) for members, (width, _) in zip(classes, ranges, strict=True)
        ]
        at = max(range(len(classes)), key=worth.__getitem__)
        if ranges[at][0] <= 0:
            break
        classes[at : at + 1] = _halves(classes[at], ranges[at][1])
    return {slos: found for members in classes for found in [_class(members)] for slos in members}


def _name(slo: Slo) -> str:
    return f"{slo.metric} {slo.statistic}"


def _bounds(slos: Slos) -> dict[str, float]:
    """Return the bound of every statistic, the least where one is named twice."""
    found: dict[str, float] = {}
    for slo in slos:
        found[_name(slo)] = min(slo.bound_s, found.get(_name(slo), math.inf))
    return found


def _widest(members: Iterable[Slos]) -> tuple[float, str]:
    """Return the widest range of a bound's logarithm, and the statistic that it is of."""
    logs: dict[str, list[float]] = defaultdict(list)
    for slos in members:
        for name, bound in _bounds(slos).items():
            logs[name].append(math.log(bound))
    return max(((max(values) - min(values), name) for name, values in logs.items()), default=(0.0, ""))


def _halves(members: Sequence[Slos], name: str) -> list[list[Slos]]:
    logs = {slos: math.log(_bounds(slos)[name]) for slos in members}
    middle = (min(logs.values()) + max(logs.values())) / 2
    return [[slos for slos in members if logs[slos] <= middle], [slos for slos in members if logs[slos] > middle]]


def _class(members: Sequence[Slos]) -> SloClass:
    bounds = [_bounds(slos) for slos in members]
    first = {_name(slo): slo for slo in members[0]}

    def each(of: dict[str, float]) -> Slos:
        return tuple(replace(slo, bound_s=of[name]) for name, slo in first.items())

    return SloClass(
        strictest=each({name: min(bound[name] for bound in bounds) for name in first}),
        loosest=each({name: max(bound[name] for bound in bounds) for name in first}),
    )
