"""What a request wants to survive, as scenarios of the problem, and how fast options are in them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from planner.domain.problem import Scenario
from planner.errors import InputError
from planner.files.documents import did_you_mean
from planner.files.request.robust import EVERY_SERVICE
from planner.planning.located import at, inside
from planner.planning.traffic import read_demand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from planner.domain.workload import Bucket, Demand
    from planner.files.request.robust import RobustChoice, ScenarioChoice
    from planner.planning.services import PreparedService
    from planner.profilers.options import OptionProfile

    Profile = Callable[[Sequence[Bucket], NDArray[np.float64] | None], OptionProfile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """Replicas serve less than their figures say."""

    size: Literal["profile"] | float
    """By what part; "profile" = by the error of each figure."""
    gpu: str | None = None
    """On this GPU type alone; None = on all."""

    def shortfall(self, profile: OptionProfile) -> NDArray[np.float64]:
        """Return by what part each figure of `profile` is too large, shape (buckets,)."""
        if self.size == "profile":
            return np.array([origin.error_fraction or 0.0 for origin in profile.provenance])
        return np.full(len(profile.provenance), self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """A scenario, and what it does to the throughput of options."""

    scenario: Scenario
    slowdown: Slowdown | None = None
    resized: frozenset[str] = frozenset()
    """Services whose requests are of other sizes."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every file that it was read from."""

    def throughput_rps(
        self, service: str, gpu: str, profile: OptionProfile, profile_of: Profile
    ) -> NDArray[np.float64] | None:
        """Return the largest rates of an option in this scenario; None where they are as planned.

        Parameters
        ----------
        profile : of the planned demand.
        profile_of : gives the profile of other buckets, or of slower replicas.
        """
        is_slow = self.slowdown is not None and self.slowdown.gpu in {None, gpu}
        demand = next(demand for demand in self.scenario.demands if demand.service == service)
        if service in self.resized:
            profile = profile_of(demand.buckets, None)
        elif not is_slow:
            return None
        if self.slowdown is None or not is_slow:
            return profile.throughput_rps
        return profile_of(demand.buckets, self.slowdown.shortfall(profile)).throughput_rps


def prospects_of(
    choice: RobustChoice, services: Sequence[PreparedService], gpus: Sequence[str], *, base_dir: Path
) -> Iterator[Prospect]:
    """Yield what the fleet must survive.

    Parameters
    ----------
    gpus : GPU types that can be rented.

    Raises
    ------
    InputError: if a scenario names a service that is not planned for, or a file of it is wrong.
    """
    for index, form in enumerate(choice.scenarios):
        with inside(f"robust.scenarios[{index}]"):
            yield _prospect(form, choice, services, base_dir=base_dir)
    error = choice.throughput_error
    if error is None:
        return
    planned = tuple(service.demand for service in services)
    given = [form.name for form in choice.scenarios]
    for gpu in (None,) if error.per == "fleet" else tuple(sorted(set(gpus))):
        if f"{gpu or 'all GPUs'} slow" in given:
            index = given.index(f"{gpu or 'all GPUs'} slow")
            raise InputError(
                f"{given[index]!r} is what robust.throughput_error calls a scenario of its own.",
                hint="Give yours another name.",
                where=at(f"robust.scenarios[{index}].name"),
            )
        scenario = Scenario(
            name=f"{gpu or 'all GPUs'} slow",
            demands=planned,
            bound=choice.served,
            headroom_fraction=choice.headroom,
            description=f"{gpu or 'every GPU type'} {_amount(error.size)}",
        )
        yield Prospect(scenario=scenario, slowdown=Slowdown(size=error.size, gpu=gpu))


def _prospect(
    form: ScenarioChoice, choice: RobustChoice, services: Sequence[PreparedService], *, base_dir: Path
) -> Prospect:
    names = [service.request.name for service in services]
    for key, named in (("demand", form.demand), ("workload", form.workload)):
        for name in named:
            if name not in {*names, EVERY_SERVICE} or (name == EVERY_SERVICE and key == "workload"):
                hint = did_you_mean(name, names) or f"There are: {', '.join(names)}."
                raise InputError(f"There is no service {name!r}.", hint=hint, where=at(key))
    demands, words = [], []
    files: dict[str, str] = {}
    for service in services:
        demand, digests, text = _demand(form, service, base_dir=base_dir)
        demands.append(demand)
        files |= digests
        words += text
    if form.throughput_error is not None:
        words.append(f"every GPU type {_amount(form.throughput_error)}")
    scenario = Scenario(
        name=form.name,
        demands=tuple(demands),
        bound=choice.served,
        headroom_fraction=choice.headroom,
        probability=form.probability,
        description="; ".join(words),
    )
    slowdown = None if form.throughput_error is None else Slowdown(size=form.throughput_error)
    return Prospect(scenario=scenario, slowdown=slowdown, resized=frozenset(form.workload), files=files)


def _demand(
    form: ScenarioChoice, service: PreparedService, *, base_dir: Path
) -> tuple[Demand, dict[str, str], list[str]]:
    """Return what is asked of a service in a scenario, the files that say so, and that in words."""
    name, demand = service.request.name, service.demand
    files: dict[str, str] = {}
    words = []
    workload = form.workload.get(name)
    if workload is not None:
        with inside(f"workload.{name}"):
            demand, source = read_demand(service.request.model_copy(update={"workload": workload}), base_dir=base_dir)
        files = {source.name: source.sha256} if source.sha256 else {}
        words.append(f"{name}: {demand.basis or source.name}")
    factor = form.demand.get(name, form.demand.get(EVERY_SERVICE, 1.0))
    if factor != 1:
        words.append(f"{name}: {factor:g} times the requests")
    buckets = tuple(replace(bucket, rate_rps=bucket.rate_rps * factor) for bucket in demand.buckets)
    return replace(demand, buckets=buckets), files, words


def _amount(size: Literal["profile"] | float) -> str:
    how = "by the error of its figures" if size == "profile" else f"by {100 * size:.4g}%"
    return f"slower than estimated {how}"


def robust_assumptions(choice: RobustChoice, planned_headroom: float) -> Iterator[str]:
    """Yield what surviving takes for granted; `planned_headroom` is that above what is planned."""
    served = "" if choice.served >= 1 else f" at least {choice.served:.4g} of"
    yield (
        f"In each scenario alone{served} all requests are served within the objectives, routed anew, with"
        f" {choice.headroom:.0%} headroom; the fleet is the same in all of them."
    )
    if choice.headroom != planned_headroom:
        yield (
            f"Fleets for one scenario alone have {choice.headroom:.0%} headroom and the plan has {planned_headroom:.0%}"
            " above what is planned: what that costs is part of the regret."
        )
    error = choice.throughput_error
    if error is not None and error.size == "profile":
        yield "A figure's error is what one in ten measurements fell short of such figures by, or more."
