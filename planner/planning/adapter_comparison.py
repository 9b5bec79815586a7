"""All ways to serve a plan's adapters, side by side: the plan, a replica for each, one pool, and what is given back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.catalog.pay_per_use import load_pay_per_use
from planner.domain.plan import AdapterAlternative, AdapterWay
from planner.domain.provenance import Warning_
from planner.domain.scaling import ScalingWay
from planner.errors import InputError
from planner.planning.fleet_replay import fared_on
from planner.planning.plain_serverless import PlainServerless, default_choice
from planner.planning.scaling import wanted_pay_per_use
from planner.planning.scaling_ways import LEARNT, dated
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.plan import AdapterPlan, Plan
    from planner.domain.problem import FleetProblem
    from planner.domain.scaling import ScaledService
    from planner.files.request import PlanRequest
    from planner.optimize import OtherWay
    from planner.planning.fleet_replay import Fared
    from planner.planning.plain_serverless import PlainOutcome, Requests
    from planner.planning.question import Question
    from planner.planning.services import PreparedService
    from planner.profilers.efficiency import EstimatorParams


MISSED = "W415"
MOST_REPLICAS = 500
"""Of a fleet that is replayed: thousands take seconds, and are one for each adapter, with no queues to speak of."""


def compared(
    question: Question,
    plan: Plan,
    others: Sequence[OtherWay],
    *,
    request: PlanRequest,
    services: Sequence[PreparedService],
    gpus: GpuCatalog,
    params: EstimatorParams,
    base_dir: Path,
) -> Plan:
    """Return `plan` with itself first among the ways to serve its adapters, and those last that are given back.

    The costs are of the whole plan, all services with adapters served that way at once. Fleets and containers are
    replayed on the same requests, at the rates that the plan is for; what cannot be is planned at mean rates. What
    containers cost is told at mean rates: a peak does not last.

    Parameters
    ----------
    others : other ways that are planned, as fleets that stay.
    """
    if not plan.adapters or plan.cost_usd_per_hour is None:
        return plan
    on_fleet = {item.service for item in plan.adapters}  # others are given back
    here = [service for service in services if service.request.name in on_fleet]
    plain = dict(_plain(request, here, gpus=gpus, params=params, base_dir=base_dir))
    asked: dict[str, Requests] = {}
    outcomes: dict[str, PlainOutcome | str] = {}
    for service, each in plain.items():
        try:
            asked[service] = each.requests(times=each.times())
            outcomes[service] = _paid_at_mean_rates(each, each.play(asked[service]), asked[service])
        except InputError as error:
            outcomes[service] = error.message.rstrip(".")
    fared = {}
    if asked:
        fared[AdapterWay.PLAN] = _fared(question, question.problem, plan, asked)
        for other in others:
            if other.problem is not None and other.plan is not None:
                fared[other.told.way] = _fared(question, other.problem, other.plan, asked)
    items = tuple(replace(item, alternatives=tuple(_ways(plan, item, outcomes, fared))) for item in plan.adapters)
    said = (text for service, found in outcomes.items() for text in _assumptions(plain[service], found, asked))
    return replace(
        plan,
        adapters=items,
        assumptions=(*plan.assumptions, *said),
        warnings=(*plan.warnings, *_warnings(fared.get(AdapterWay.PLAN, {}), asked)),
    )


def _paid_at_mean_rates(plain: PlainServerless, found: PlainOutcome, asked: Requests) -> PlainOutcome:
    """Return what plain serverless comes to with its cost at mean rates, where the requests are those of a peak."""
    if asked.times == 1:
        return found
    return replace(found, cost_usd_per_hour=plain.play(plain.requests()).cost_usd_per_hour)


def _warnings(fared: Mapping[str, Fared], asked: Mapping[str, Requests]) -> Iterator[Warning_]:
    """Yield for each service that the plan itself misses an objective of, on the requests that all ways are given."""
    for service, found in fared.items():
        if not found.is_met:
            made_up = "made-up requests" if asked[service].are_made_up else "requests of its adapters' traces"
            rates = "mean rates" if asked[service].times == 1 else "the rates of a peak"
            yield Warning_(
                code=MISSED,
                message=f"{service} misses an objective in a replay of {found.requests:,} {made_up}"
                f" ({found.attainment:.0%} are within the bounds): the plan is for {rates}. --verify plans until a"
                " replay holds, and constraints.headroom leaves room for bursts.",
                observed=found.attainment,
            )


def _plain(
    request: PlanRequest,
    services: Sequence[PreparedService],
    *,
    gpus: GpuCatalog,
    params: EstimatorParams,
    base_dir: Path,
) -> Iterator[tuple[str, PlainServerless]]:
    """Yield what replays plain serverless for each service with adapters; storage that is not stated is assumed."""
    for service in services:
        if service.adapters is None:
            continue
        asked = service.request.scale_to_zero
        choice = asked or default_choice()
        others = (offer for offer in load_pay_per_use() if choice.clouds is None or offer.provider in choice.clouds)
        yield (
            service.request.name,
            PlainServerless(
                service=service,
                choice=choice,
                offers=wanted_pay_per_use(request, choice, gpus=gpus, base_dir=base_dir),
                others=tuple(others),
                gpus=gpus,
                params=params,
                base_dir=base_dir,
                is_asked=asked is not None,
            ),
        )


def _fared(question: Question, problem: FleetProblem, plan: Plan, asked: Mapping[str, Requests]) -> dict[str, Fared]:
    """Return how a fleet fares; nothing where it is too large to be replayed, or turns requests away."""
    if plan.unserved or sum(row.replicas for row in plan.allocation) > MOST_REPLICAS:
        return {}
    try:
        return fared_on(question, problem, plan, asked)
    except InputError:
        return {}


def _ways(
    plan: Plan,
    item: AdapterPlan,
    outcomes: Mapping[str, PlainOutcome | str],
    fared: Mapping[AdapterWay, Mapping[str, Fared]],
) -> Iterator[AdapterAlternative]:
    own = AdapterAlternative(
        way=AdapterWay.PLAN, cost_usd_per_hour=plan.cost_usd_per_hour, bound_usd_per_hour=plan.bound_usd_per_hour
    )
    for other in (own, *item.alternatives):
        found = fared.get(other.way, {}).get(item.service)
        yield other if found is None else _with_fares(other, found)
    yield _serverless(plan, item.service, outcomes)
    for way in (AdapterWay.KEPT, AdapterWay.SHARED_BACKBONE):
        scaled = {each.service: _of_scaling(plan, each.service, way) for each in plan.adapters}
        told = {service: found for service, found in scaled.items() if found is not None}
        if len(told) == len(plan.adapters):
            yield _scaled(plan, way, item.service, told)


def _with_fares(other: AdapterAlternative, found: Fared | PlainOutcome) -> AdapterAlternative:
    return replace(
        other,
        is_met=found.is_met,
        attainment=found.attainment,
        ttft_p50_s=found.ttft_p50_s if math.isfinite(found.ttft_p50_s) else None,
        ttft_p99_s=found.ttft_p99_s if math.isfinite(found.ttft_p99_s) else None,
        requests=found.requests,
    )


def _whole_usd(plan: Plan, parts: Mapping[str, float]) -> float:
    """Return what the plan costs with these costs for its services with adapters."""
    fleets = math.fsum(row.cost_usd_per_hour for row in plan.allocation if row.service in parts)
    return max(0.0, (plan.cost_usd_per_hour or 0.0) - fleets) + math.fsum(parts.values())


def _serverless(plan: Plan, service: str, outcomes: Mapping[str, PlainOutcome | str]) -> AdapterAlternative:
    """Return plain serverless for all services with adapters, and how this one's requests fare."""
    reasons = [f"{name}: {found}" for name, found in outcomes.items() if isinstance(found, str)]
    found = outcomes[service]
    if reasons or isinstance(found, str):
        return AdapterAlternative(
            way=AdapterWay.SERVERLESS, cost_usd_per_hour=None, bound_usd_per_hour=None, reason=reasons[0]
        )
    costs = {name: each.cost_usd_per_hour for name, each in outcomes.items() if not isinstance(each, str)}
    return _with_fares(
        AdapterAlternative(
            way=AdapterWay.SERVERLESS,
            cost_usd_per_hour=_whole_usd(plan, costs),
            bound_usd_per_hour=None,
            offer=found.offer.name,
        ),
        found,
    )


def _of_scaling(plan: Plan, service: str, way: AdapterWay) -> ScaledService | None:
    """Return the best of the service's comparison for scale to zero that serves it this way; None if none does."""
    wanted = ScalingWay.SERVERLESS if way is AdapterWay.KEPT else ScalingWay.SHARED
    found = [
        scaled
        for choice in plan.scale_to_zero
        if choice.service == service
        for scaled in choice.ways
        if scaled.way is wanted and (way is not AdapterWay.KEPT or scaled.rule == LEARNT)
    ]
    return min(found, key=lambda each: (not each.is_met, each.total_usd_per_hour), default=None)


def _scaled(plan: Plan, way: AdapterWay, service: str, found: Mapping[str, ScaledService]) -> AdapterAlternative:
    mine = found[service]
    requests = next((choice.requests for choice in plan.scale_to_zero if choice.service == service), 0)
    return AdapterAlternative(
        way=way,
        cost_usd_per_hour=_whole_usd(plan, {name: each.cost_usd_per_hour for name, each in found.items()}),
        bound_usd_per_hour=None,
        is_met=mine.is_met,
        attainment=mine.attainment,
        ttft_p50_s=mine.ttft_p50_s,
        ttft_p99_s=mine.ttft_p99_s,
        requests=requests,
        offer=mine.offer,
    )


def _of_requests(plain: PlainServerless, asked: Requests) -> Iterator[str]:
    """Yield what requests all ways are given, where they are not just those of the traces."""
    service, times = plain.service.request.name, asked.times
    if asked.are_made_up:
        how = "in sessions as in a production trace" if plain.is_asked else "at random"
        traced = any(adapter.trace is not None for adapter in plain.asked())
        yield (
            f"{service}: ways to serve its adapters are compared on made-up requests, {how} at the adapters' rates"
            f"{', beside those of the traces, over and over' if traced else ''};"
            " those in the second half of the time count."
        )
    if times != 1:
        learnt = ", and ways that are kept as was learnt have requests at mean rates" if plain.is_asked else ""
        yield (
            f"{service}: the ways' requests come {times:.3g} times as often as on average, as the plan is for a peak;"
            f" containers are paid at mean rates{learnt}."
        )


def _assumptions(plain: PlainServerless, found: PlainOutcome | str, asked: Mapping[str, Requests]) -> Iterator[str]:
    """Yield what the replays take for granted."""
    service = plain.service.request.name
    if service in asked:
        yield from _of_requests(plain, asked[service])
    if isinstance(found, str):
        return
    day = dated(found.offer.as_of)
    graphs = "with" if plain.choice.graphs else "without"
    is_other = found.offer.name not in {offer.name for offer in plain.offers}
    yield (
        f"{service}, plain serverless: a container of {found.offer.name} ({'no date' if day is None else day}) for each"
        f" adapter while it is asked for and {format_duration(found.keep_alive_s)} longer; starts as in"
        f" profiles/startup.csv, {graphs} CUDA graphs, weights from storage of {plain.choice.storage / 1e9:.3g} GB/s"
        f" with {plain.choice.loader}{'' if plain.is_asked else ' (assumed; scale_to_zero.storage says another)'};"
        " requests have the mean size."
        f"{'' if found.offer.is_all_in else ' CPU and memory may be billed on top.'}"
        f"{' Nothing that the request allows is sold so and fast enough.' if is_other else ''}"
    )
