"""The part of plan.json's schema that tells what surviving scenarios costs."""

from typing import Annotated, Any

from pydantic import Field

from planner.domain.robustness import FleetOutcomes, FleetReplicas, Outcome, Robustness, ScenarioCase
from planner.files.parts import NonNegative, Part


class FleetReplicasDocument(Part):
    """Replicas of one serving option in a fleet of the regret table."""

    service: str = Field(description="The service that these replicas serve.")
    option: str = Field(description="The offer, with the engine configuration where it could have several.")
    replicas: int = Field(ge=0, description="Replicas.")
    period: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Period of the horizon, from 0; null where there is one steady state."
    )


class OutcomeDocument(Part):
    """How a fleet fares when one scenario comes true."""

    scenario: str = Field(description="Name of the scenario, as in `scenarios`.")
    unserved_rps: NonNegative = Field(
        description="Requests per second that it cannot serve within the objectives, however they are routed; without"
        " headroom, and the mean over a horizon."
    )
    regret_usd_per_hour: float | None = Field(
        description="What the fleet costs more than the cheapest one for this scenario alone; null = that is not known."
    )


class FleetOutcomesDocument(Part):
    """A row of the regret table: one fleet through all scenarios."""

    fleet: str = Field(description="plain, robust (this plan), or the scenario that it is the cheapest fleet for.")
    cost_usd_per_hour: NonNegative = Field(description="Price of what it rents.")
    replicas: list[FleetReplicasDocument] = Field(description="What it consists of.")
    outcomes: list[OutcomeDocument] = Field(description="In the order of `scenarios`.")
    expected_unserved_rps: NonNegative | None = Field(
        None, description="By the scenarios' probabilities, the rest being what is planned; null where none is stated."
    )


class ScenarioCaseDocument(Part):
    """A column of the regret table."""

    name: str = Field(description="planned, or the scenario's name.")
    description: str = Field(description="What is different in it.")
    rate_rps: NonNegative = Field(description="Requests per second over all services, without headroom.")
    least_usd_per_hour: NonNegative | None = Field(
        description="What the cheapest fleet for it alone costs; null if the time limit came first."
    )
    probability: NonNegative | None = Field(None, description="As the request states it.")


class RobustnessDocument(Part):
    """The price of the scenarios that the plan survives, and the regret table."""

    price_usd_per_hour: float | None = Field(
        description="What the plan costs more than the plain fleet, the one for what is planned alone; null = not"
        " known."
    )
    scenarios: list[ScenarioCaseDocument] = Field(description="Columns; what is planned comes first.")
    fleets: list[FleetOutcomesDocument] = Field(description="Rows: plain, robust, and each scenario's own.")
    unaffected: list[str] = Field(
        default_factory=list, description="Scenarios that touch neither the plan nor the plain fleet."
    )

    def to_robustness(self) -> Robustness:
        """Return the domain's form."""
        parts: dict[str, Any] = {
            "scenarios": tuple(ScenarioCase(**dict(case)) for case in self.scenarios),
            "fleets": tuple(_fleet(row) for row in self.fleets),
            "unaffected": tuple(self.unaffected),
        }
        return Robustness(**(dict(self) | parts))


def _fleet(row: FleetOutcomesDocument) -> FleetOutcomes:
    parts: dict[str, Any] = {
        "replicas": tuple(FleetReplicas(**dict(item)) for item in row.replicas),
        "outcomes": tuple(Outcome(**dict(item)) for item in row.outcomes),
    }
    return FleetOutcomes(**(dict(row) | parts))
