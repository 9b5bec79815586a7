"""The same fleet's problem with something loosened: what the search for ways out solves again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from planner.planning.question import DisaggregationWaysOut, Relaxation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.domain.problem import FleetProblem
    from planner.domain.slo import Slo
    from planner.planning.prepared import Prepared


def relaxations(prepared: Prepared, slos: Mapping[str, tuple[Slo, ...]]) -> Iterator[Relaxation]:
    """Yield every objective of every service, with the problem in which its bound is another."""
    for service, objectives in slos.items():
        for index, slo in enumerate(objectives):
            with_bound = partial(_problem_with_bound, prepared, slos, service, index)
            yield Relaxation(service=service, slo=slo, problem_with_bound=with_bound)


def problem_with_all_bounds(prepared: Prepared, slos: Mapping[str, tuple[Slo, ...]], factor: float) -> FleetProblem:
    """Return the problem with every bound of every service `factor` times as large."""
    looser = {
        service: tuple(replace(slo, bound_s=slo.bound_s * factor) for slo in objectives)
        for service, objectives in slos.items()
    }
    return prepared.problem(looser)


def disaggregation_ways_out(prepared: Prepared, slos: Mapping[str, tuple[Slo, ...]]) -> DisaggregationWaysOut | None:
    """Return what can be loosened of prefill apart from decode; None where nothing is served so."""
    if all(service.request.disaggregate == "never" for service in prepared.services):
        return None
    only = tuple(service.request.name for service in prepared.services if service.request.disaggregate == "only")
    return DisaggregationWaysOut(
        only=only,
        problem_with_whole=partial(_problem_with_whole, prepared, slos) if only else None,
        problem_with_network=lambda factor: replace(prepared, network_factor=factor).problem(slos),
    )


def _problem_with_whole(prepared: Prepared, slos: Mapping[str, tuple[Slo, ...]]) -> FleetProblem:
    """Return the problem in which services that must be disaggregated only may be."""
    services = tuple(
        replace(service, request=service.request.model_copy(update={"disaggregate": "allowed"}))
        if service.request.disaggregate == "only"
        else service
        for service in prepared.services
    )
    return replace(prepared, services=services).problem(slos)


def _problem_with_bound(
    prepared: Prepared, slos: Mapping[str, tuple[Slo, ...]], service: str, index: int, bound_s: float
) -> FleetProblem:
    """Return the problem with the bound of one service's objective number `index` changed to `bound_s`."""
    objectives = list(slos[service])
    objectives[index] = replace(objectives[index], bound_s=bound_s)
    return prepared.problem({**slos, service: tuple(objectives)})
