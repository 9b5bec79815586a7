"""A problem as it is if one of its scenarios comes true, or if nobody had thought of any."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.domain.problem import Scenario

if TYPE_CHECKING:
    from planner.domain.problem import FleetProblem


def scenarios_of(problem: FleetProblem) -> tuple[Scenario, ...]:
    """Return the scenarios that the fleet must survive."""
    return tuple(rule for rule in problem.rules if isinstance(rule, Scenario))


def without_scenarios(problem: FleetProblem) -> FleetProblem:
    """Return `problem` with what is planned for alone."""
    return replace(problem, rules=tuple(rule for rule in problem.rules if not isinstance(rule, Scenario)))


def in_scenario(problem: FleetProblem, scenario: Scenario) -> FleetProblem:
    """Return the problem in which `scenario` is what is planned for; options keep their order.

    Of every bucket the part that must be served is asked for.
    """
    demands = tuple(
        replace(
            demand,
            buckets=tuple(replace(bucket, rate_rps=bucket.rate_rps * scenario.bound) for bucket in demand.buckets),
        )
        for demand in scenario.demands
    )
    options = tuple(
        replace(
            option,
            throughput_rps=option.throughput_in(scenario.name),
            scenario_rps={},
            provenance=option.provenance if len(option.provenance) <= 1 else (),
            limiting=(),
        )
        for option in problem.options
    )
    return replace(
        without_scenarios(problem), demands=demands, options=options, headroom_fraction=scenario.headroom_fraction
    )
