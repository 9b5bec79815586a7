"""What all comparisons with replicas that are given back share: the plan's own fleet, and which one is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from planner.catalog.billing import billing_rule
from planner.domain.pay_per_use import BillingRule
from planner.domain.scaling import ScaledService, ScalingWay
from planner.errors import InputError
from planner.planning.located import at
from planner.profilers.startup import Quantiles, pull_s
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from planner.domain.hardware import Offer
    from planner.domain.plan import Plan
    from planner.files.request.scaling import ScaleToZero
    from planner.planning.services import PreparedService

HOUR_S = 3600.0
SEED = 0
MOST_HELD = 0.95
"""Part of the time with a replica above which hardly anything is given back: that can save less than a fleet's headroom
and an estimate's error are worth, so what it saves is by another price for the same replica."""
NO_PROVISION = (
    "Rented machines that are given back are not compared: scale_to_zero.provision does not say how long one takes to"
    " be there."
)
MEAN = "mean"
BY_THE_SECOND = BillingRule(provider="", source="taken for granted")
"""Of machines whose cloud does not say how it counts."""
MEASURED_ENGINE = "vllm"
"""Whose start was measured (profiles/startup.csv)."""
LEARNT, CLOUDS = "learnt", "as the cloud keeps it"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedService:
    """A service that may be given back, and what its request says of that."""

    service: PreparedService
    choice: ScaleToZero

    @property
    def name(self) -> str:
        """The service's."""
        return self.service.request.name

    @property
    def decides(self) -> bool:
        """Whether the plan is to give it back where that is cheaper."""
        return self.choice.mode == "decide"

    @property
    def at_stake_usd_per_hour(self) -> float:
        """What all its requests would be worth if they missed an objective."""
        return self.choice.missed * self.service.traffic.rate_rps * HOUR_S


def always_on(plan: Plan, service: str, *, at_stake_usd_per_hour: float = 0.0) -> ScaledService:
    """Return what the plan's own fleet costs for one service; it holds the objectives, as far as the plan says.

    An infeasible plan has none, which meets nothing.

    at_stake_usd_per_hour : what all its requests would be worth if they missed an objective; a replay of the plan says
        how many do.
    """
    mine = [row for row in plan.allocation if row.service == service]
    attainment = replayed_attainment(plan, service)
    return ScaledService(
        way=ScalingWay.ALWAYS_ON,
        rule="",
        offer="",
        gpu=", ".join(sorted({row.gpu for row in mine})),
        gpus_per_replica=max((row.gpus_per_replica for row in mine), default=1),
        keep_alive_s=None,
        cost_usd_per_hour=math.fsum(row.cost_usd_per_hour for row in mine),
        missed_usd_per_hour=0.0 if attainment is None else (1.0 - attainment) * at_stake_usd_per_hour,
        is_met=plan.cost_usd_per_hour is not None,
        attainment=attainment,
        ttft_p50_s=None,
        ttft_p99_s=None,
        cold_fraction=None,
        mean_replicas=float(sum(row.replicas for row in mine)),
        learnt_usd_per_hour=math.fsum(row.cost_usd_per_hour for row in mine),
        is_safe=plan.cost_usd_per_hour is not None,
    )


def replayed_attainment(plan: Plan, service: str) -> float | None:
    """Return the part of a service's requests within its bounds in the plan's replay; None where there was none.

    That of the objective that most requests miss, as the proof counts them one by one: those that miss only another
    come on top. Bounds of means are none of single requests, unless there are no others.
    """
    mine = [] if plan.proof is None else [slo for slo in plan.proof.slos if slo.service == service]
    percentiles = [slo for slo in mine if slo.statistic != MEAN]
    return min((slo.attainment for slo in percentiles or mine), default=None)


def chosen(ways: Sequence[ScaledService]) -> int:
    """Return the position of the way to take: the first of `preferred` that the judged half does not speak against.

    The first way, always on, if there is none.
    """
    return next((index for index in preferred(ways) if not is_vetoed(ways[index], ways[0])), 0)


def vetoed(ways: Sequence[ScaledService]) -> tuple[int, ...]:
    """Return the positions of the ways that go before the chosen one, in the order of preference."""
    return tuple(takewhile(lambda index: is_vetoed(ways[index], ways[0]), preferred(ways)))


def preferred(ways: Sequence[ScaledService]) -> list[int]:
    """Return the positions of the ways that are safe and cheaper than the first one where they were learnt, best first.

    Ways that are only compared are none of them.

    Nothing of the judged half is looked at.
    """
    costs = [(way.learnt_usd_per_hour, index) for index, way in enumerate(ways) if way.is_safe and not way.is_barred]
    known = sorted((usd, index) for usd, index in costs if usd is not None)
    return [index for usd, index in known if usd < ways[0].total_usd_per_hour]


def is_vetoed(way: ScaledService, always_on: ScaledService) -> bool:
    """Return whether the judged half speaks against a way: an objective is missed, or always on would be cheaper."""
    return not way.is_met or way.total_usd_per_hour >= always_on.total_usd_per_hour


def best_given_back(ways: Sequence[ScaledService]) -> int:
    """Return the position of the way to give back that goes before the others, whatever always on costs; 0 if none.

    It was safe where it was learnt and cheapest there of those that hold on the judged half.
    """
    return chosen(_whatever_always_on_costs(ways))


def vetoed_to_give_back(ways: Sequence[ScaledService]) -> tuple[int, ...]:
    """Return the positions of the ways that go before that one, and miss an objective on the judged half."""
    return vetoed(_whatever_always_on_costs(ways))


def _whatever_always_on_costs(ways: Sequence[ScaledService]) -> list[ScaledService]:
    always_on, *others = ways
    return [replace(always_on, cost_usd_per_hour=math.inf, learnt_usd_per_hour=math.inf), *others]


def machine_s(choice: ScaleToZero) -> Quantiles | None:
    """Return how long a rented machine takes until containers can start on it, with its image; None = not stated."""
    wait_s = choice.provision_s
    return None if wait_s is None else Quantiles(*wait_s) + pull_s(choice.image or 0.0)


def engine_note(engine: str) -> str:
    """Return what to say of starts of an engine that are not its own; nothing of vLLM's."""
    if engine == MEASURED_ENGINE:
        return ""
    return (
        f"Starts are those of {MEASURED_ENGINE}: how long {engine} takes to compile and to capture graphs is not known."
    )


def dated(as_of: date | None) -> str | None:
    """Return the date of a price as plan.json has it."""
    return None if as_of is None else as_of.isoformat()


def recorded_end_s(last_s: float, recorded_s: float | None) -> float:
    """Return when a recording ends whose last request comes at `last_s`; that request where nothing says.

    Raises
    ------
    InputError: if it goes on after its end.
    """
    if recorded_s is not None and recorded_s < last_s:
        raise InputError(
            f"The trace was recorded for {format_duration(recorded_s)}, and its last request comes after"
            f" {format_duration(last_s)}.",
            hint="Give the time from the first request to the end of the recording.",
            where=at("recorded"),
        )
    return last_s if recorded_s is None else recorded_s


def billing_note(offer: Offer) -> str:
    """Return how a machine that is given back is billed, in words."""
    rule = billing_rule(offer)
    if rule is None:
        return f"How {offer.provider} bills a machine that is given back is not stated: by the second is taken."
    step = "by the second" if rule.step_s <= 1 else f"in whole steps of {format_duration(rule.step_s)}"
    least = f", and {format_duration(rule.minimum_s)} at least" if rule.minimum_s else ""
    dated_ = f" ({rule.as_of.isoformat()})" if rule.as_of else " (undated)"
    return f"{offer.provider} bills a machine {step}{least}{dated_}."
