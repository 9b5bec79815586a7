"""Mélange's config, as published (arXiv 2404.14527), and the same extended to several services."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from planner.errors import InputError
from planner.files.schema import Count, Strict

SHARE_TOLERANCE = 1e-6
"""How far the shares of a workload distribution may be from 1 in sum."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Matrix = Annotated[list[Annotated[list[NotNegative], Field(min_length=1)]], Field(min_length=1)]

DEFAULT_SERVICE = "default"
"""Name of the one service of a config that names none."""


def _shape(matrix: list[list[float]], what: str) -> tuple[int, int]:
    widths = {len(row) for row in matrix}
    if len(widths) != 1:
        raise InputError(f"The rows of {what} have different lengths: {sorted(widths)}.")
    return len(matrix), widths.pop()


class MelangeGpu(Strict):
    """One GPU type."""

    cost: NotNegative = Field(description="USD per hour of one replica.")
    tputs: Matrix | dict[str, Matrix] = Field(
        description="Largest rate in req/s by input row and output column, 0 = cannot serve; by service for several."
    )
    available: Count | None = Field(default=None, description="Most replicas; default: no limit.")
    power_w: NotNegative | None = Field(default=None, description="Peak power of one replica in watts.")


class MelangeService(Strict):
    """One service's traffic."""

    workload_distribution: Matrix = Field(description="Share of requests by input row and output column; sums to 1.")
    total_request_rate: Positive = Field(description="Requests per second.")

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> MelangeService:
        _shape(self.workload_distribution, "workload_distribution")
        total = sum(map(sum, self.workload_distribution))
        if abs(total - 1.0) > SHARE_TOLERANCE:
            raise InputError(f"The shares of workload_distribution sum to {total:.6g}, not to 1.")
        return self


class MelangeConfig(Strict):
    """A Mélange config; `services` instead of the two top-level workload keys where there are several."""

    gpu_info: dict[str, MelangeGpu] = Field(min_length=1, description="GPU types by name.")
    workload_distribution: Matrix | None = Field(default=None, description="Share of requests by size; sums to 1.")
    total_request_rate: Positive | None = Field(default=None, description="Requests per second.")
    services: dict[str, MelangeService] | None = Field(default=None, description="Several services by name.")
    slice_factor: int = Field(default=1, ge=1, description="Slices per bucket, used by --assignment sliced.")
    power_budget_w: NotNegative | None = Field(default=None, description="Most peak power of all replicas in watts.")
    budget_usd_per_hour: NotNegative | None = Field(default=None, description="Most dollars per hour.")

    @property
    def demand_by_service(self) -> dict[str, MelangeService]:
        """Each service's traffic; a config for one service calls it "default"."""
        if self.services is not None:
            return self.services
        return {
            DEFAULT_SERVICE: MelangeService.model_construct(
                workload_distribution=self.workload_distribution, total_request_rate=self.total_request_rate
            )
        }

    @model_validator(mode="after")
    def _names_are_not_empty(self) -> MelangeConfig:
        for what, names in (("GPU type of gpu_info", self.gpu_info), ("service", self.services or ())):
            if any(not name.strip() for name in names):
                raise InputError(f"A {what} has an empty name.", hint="The plan tells them apart by their names.")
        return self

    @model_validator(mode="after")
    def _one_form(self) -> MelangeConfig:
        single = (self.workload_distribution, self.total_request_rate)
        if self.services is None:
            for key, value in zip(("workload_distribution", "total_request_rate"), single, strict=True):
                if value is None:
                    raise InputError(f"The key {key!r} is missing.", hint="Or give `services`, each with its own.")
            MelangeService(workload_distribution=single[0] or [], total_request_rate=single[1] or 0.0)
        elif any(value is not None for value in single):
            raise InputError("Give either `services` or the two top-level workload keys, not both.")
        elif not self.services:
            raise InputError("`services` is empty.")
        return self

    @model_validator(mode="after")
    def _tputs_fit_the_workload(self) -> MelangeConfig:
        for service, traffic in self.demand_by_service.items():
            wanted = _shape(traffic.workload_distribution, "workload_distribution")
            for name, gpu in self.gpu_info.items():
                found = _shape(self.tputs(name, gpu, service), f"tputs of {name}")
                if found != wanted:
                    raise InputError(
                        f"tputs of {name} has {found[0]} x {found[1]} buckets, the workload of {service!r} has"
                        f" {wanted[0]} x {wanted[1]}."
                    )
        return self

    def tputs(self, name: str, gpu: MelangeGpu, service: str) -> list[list[float]]:
        """Return the throughput table of one GPU type for one service.

        Raises
        ------
        InputError: if the table is not by service although there are several, or lacks the service.
        """
        if isinstance(gpu.tputs, dict):
            if service not in gpu.tputs:
                raise InputError(
                    f"tputs of {name} has no table for the service {service!r}.",
                    hint=f"It has: {', '.join(gpu.tputs)}.",
                )
            return gpu.tputs[service]
        if self.services is not None:
            raise InputError(f"tputs of {name} must be by service, as `services` is.", hint="tputs: {SERVICE: [[...]]}")
        return gpu.tputs
