"""What surviving scenarios costs, and what other fleets would cost and leave unserved in each of them."""

from __future__ import annotations

from dataclasses import dataclass

PLANNED = "planned"
"""What is planned for, where scenarios are listed."""
PLAIN = "plain"
"""The fleet for what is planned alone."""
ROBUST = "robust"
"""The fleet of the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReplicas:
    """Replicas of one option in a fleet."""

    service: str
    option: str
    replicas: int
    period: int | None = None
    """Of the horizon, from 0; None where there is one steady state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a fleet fares when one scenario comes true."""

    scenario: str
    unserved_rps: float
    """Requests per second that it cannot serve within the objectives, however they are routed; mean over periods."""
    regret_usd_per_hour: float | None
    """What the fleet costs more than the one for this scenario alone; None where that one is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOutcomes:
    """A fleet, through all scenarios."""

    fleet: str
    """"plain", "robust", or the scenario that it is the best fleet for, by the objective."""
    cost_usd_per_hour: float
    replicas: tuple[FleetReplicas, ...]
    outcomes: tuple[Outcome, ...]
    """In the order of `Robustness.scenarios`."""
    expected_unserved_rps: float | None = None
    """By the scenarios' probabilities; what is left of 1 is what is planned. None where no scenario has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioCase:
    """One column of the regret table."""

    name: str
    """"planned", or the scenario's name."""
    description: str
    rate_rps: float
    least_usd_per_hour: float | None
    """What the best fleet for it alone costs, by the objective; None where the time limit came first."""
    probability: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """The price of surviving, and the regret table."""

    price_usd_per_hour: float | None
    """What the plan costs more than the plain fleet; None where that one is not known."""
    scenarios: tuple[ScenarioCase, ...]
    """What is planned first."""
    fleets: tuple[FleetOutcomes, ...]
    unaffected: tuple[str, ...] = ()
    """Scenarios that touch neither the plan nor the plain fleet: GPU types that both do without."""
