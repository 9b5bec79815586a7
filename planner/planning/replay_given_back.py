"""Services that a plan gives back while nobody asks, replayed by what judged them with other starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.errors import InputError
from planner.simulate.records import RequestRecords
from planner.simulate.run import Simulation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.domain.plan import Plan
    from planner.domain.scaling import ScaledService
    from planner.planning.question import Question
    from planner.planning.replay import ReplaySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenBackOutcome:
    """How a service fares that is given back, beside what the plan says of it."""

    service: str
    n_requests: int
    planned: ScaledService
    found: ScaledService
    load: float
    """Times the planned rate at which it was played."""

    @property
    def is_met(self) -> bool:
        """Whether every objective holds, cold starts in the percentiles."""
        return self.found.is_met

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready data."""
        return {
            "way": self.found.way.value,
            "rule": self.found.rule,
            "offer": self.found.offer,
            "requests": self.n_requests,
            "load": self.load,
            "met": self.is_met,
            **{name: getattr(self.found, name) for name in FIGURES},
            "planned": {name: getattr(self.planned, name) for name in FIGURES},
        }


FIGURES = (
    "attainment", "ttft_p50_s", "ttft_p99_s", "cold_fraction", "cost_usd_per_hour", "missed_usd_per_hour",
    "mean_replicas", "most_replicas",
)  # fmt: skip
"""What is told of the replay, and of the plan beside it."""


def given_back_outcomes(question: Question, plan: Plan, settings: ReplaySettings) -> Iterator[GivenBackOutcome]:
    """Yield how each service fares that `plan`, whose fleet answers `question`, gives back.

    Raises
    ------
    InputError: if what it is given back on is no longer there.
    """
    asks = {ask.name: ask for ask in question.scaling}
    for choice in plan.given_back:
        ask = asks[choice.service]
        load = settings.load if ask.follows_load else 1.0
        yield GivenBackOutcome(
            service=choice.service,
            n_requests=choice.requests,
            planned=choice.way,
            found=ask.replayed(choice.way, seed=settings.seed, load=load),
            load=load,
        )


def given_back_notes(question: Question, plan: Plan, settings: ReplaySettings) -> Iterator[str]:
    """Yield what is played of services that are given back, and what is not."""
    names = [choice.service for choice in plan.given_back]
    if not names:
        return
    yield (
        f"{', '.join(names)}: given back in between, so not on the fleet. What judged it in its trace is played again"
        " with other starts, once; routers, arrivals, events and replications are the fleet's."
    )
    fixed = [ask.name for ask in question.scaling if ask.name in names and not ask.follows_load]
    if fixed and settings.load != 1.0:
        yield f"{', '.join(fixed)}: played at the planned rate, whatever the load of the fleet."


def check_settings(settings: ReplaySettings) -> None:
    """Refuse what only a fleet can be asked, where all services are given back.

    Raises
    ------
    InputError: naming the option.
    """
    asked = {
        "--event": settings.events,
        "--arrivals": settings.process,
        "--periods": settings.periods,
    }
    for option, value in asked.items():
        if value:
            raise InputError(
                f"{option} is about the plan's fleet, and that serves nobody: every service is given back.",
                hint=f"Leave {option} out.",
            )


def no_simulation() -> Simulation:
    """Return what comes of a fleet that nobody asks anything of."""
    none, numbers = np.zeros(0), np.zeros(0, dtype=np.int64)
    records = RequestRecords(
        arrival_s=none,
        input_tokens=numbers,
        output_tokens=numbers,
        service=numbers,
        ttft_s=none,
        longest_gap_s=none,
        e2e_s=none,
        replica=numbers,
        preemptions=numbers,
        restarts=numbers,
        prefix_hit_tokens=numbers,
        is_turned_away=np.zeros(0, dtype=np.bool_),
        adapter=numbers,
    )
    return Simulation(
        records=records,
        n_events=0,
        n_steps=0,
        utilization=none,
        busy_s=none,
        peak_kv_fraction=none,
        peak_adapters=numbers,
        seconds=0.0,
    )
