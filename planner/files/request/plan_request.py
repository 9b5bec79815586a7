"""The whole form."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from planner.domain.problem import Measure
from planner.errors import InputError
from planner.files.request.catalog import CatalogChoice, ProfileChoice
from planner.files.request.constraints import Constraints
from planner.files.request.deferrable import Deferrable
from planner.files.request.horizon import HorizonChoice
from planner.files.request.objective import Objective, name_alone
from planner.files.request.robust import RobustChoice
from planner.files.request.services import Service
from planner.files.schema import Strict


class PlanRequest(Strict):
    """A question to gpuplan: which GPUs serve these services under these objectives at the least cost?"""

    schema_version: Literal["1"] = Field(description="Version of this form.")
    kind: Literal["PlanRequest"] = Field(description="What this document is.")
    name: str = Field(default="", description="Your name for the plan.")
    services: list[Service] = Field(min_length=1, description="What the fleet must serve.")
    deferrable: list[Deferrable] = Field(default=[], description="Work with a deadline, beside the services.")
    catalog: CatalogChoice = Field(default=CatalogChoice(), description="What may be rented.")
    profiles: ProfileChoice = Field(default=ProfileChoice(), description="Where throughput comes from.")
    constraints: Constraints = Field(default=Constraints(), description="Limits on the whole fleet.")
    objective: Annotated[
        Objective, BeforeValidator(lambda value: {"minimise": value} if isinstance(value, str) else value)
    ] = Field(
        default=Objective.model_construct(minimise=({Measure.COST: 1.0},)),
        description="What the plan should have least of: cost, power, gpus, energy or carbon; or more, in a mapping.",
        json_schema_extra=name_alone,
    )
    current: str | None = Field(
        default=None, description="The plan.json that runs today, for `rollout` and constraints.change_cost."
    )
    horizon: HorizonChoice | None = Field(
        default=None, description="Plan a schedule over periods instead of one steady state."
    )
    robust: RobustChoice | None = Field(
        default=None, description="Survive other demand than planned, and GPUs that are slower than estimated."
    )

    @model_validator(mode="after")
    def _hours_need_a_horizon(self) -> PlanRequest:
        named = [service.name for service in self.services if service.workload.by_hour is not None]
        if named and self.horizon is None:
            raise InputError(
                f"The demand of {named[0]!r} changes by the hour, and there is no horizon to plan over.",
                hint="Add horizon: {periods: 24h, step: 1h}.",
            )
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> PlanRequest:
        names = [service.name for service in self.services] + [job.name for job in self.deferrable]
        for name in names:
            if names.count(name) > 1:
                what = "services or jobs" if self.deferrable else "services"
                raise InputError(f"Two {what} are called {name!r}.", hint="Give each its own name.")
        return self
