"""All ways to serve a plan's adapters, side by side: the plan, a replica for each, one pool, and what is given back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.catalog.pay_per_use import load_pay_per_use
from planner.domain.plan import AdapterAlternative, AdapterWay
from planner.domain.scaling import ScalingWay
from planner.domain.slo import Metric
from planner.errors import InputError
from planner.planning.plain_serverless import PlainServerless, default_choice
from planner.planning.scaling import wanted_pay_per_use
from planner.planning.scaling_ways import LEARNT, dated
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.plan import AdapterPlan, Plan
    from planner.domain.scaling import ScaledService
    from planner.files.request import PlanRequest
    from planner.planning.plain_serverless import PlainOutcome
    from planner.planning.services import PreparedService
    from planner.profilers.efficiency import EstimatorParams


def compared(
    plan: Plan,
    request: PlanRequest,
    services: Sequence[PreparedService],
    *,
    gpus: GpuCatalog,
    params: EstimatorParams,
    base_dir: Path,
) -> Plan:
    """Return `with_comparison` for the services of a request; what one does not say of storage is assumed."""
    plain = {}
    for service in services:
        if service.adapters is None:
            continue
        asked = service.request.scale_to_zero
        choice = asked or default_choice()
        own = wanted_pay_per_use(request, choice, gpus=gpus, base_dir=base_dir)
        plain[service.request.name] = PlainServerless(
            service=service,
            choice=choice,
            offers=own,
            others=tuple(
                each for each in load_pay_per_use() if choice.clouds is None or each.provider in choice.clouds
            ),
            gpus=gpus,
            params=params,
            base_dir=base_dir,
            is_asked=asked is not None,
        )
    return with_comparison(plan, plain)


def with_comparison(plan: Plan, plain: Mapping[str, PlainServerless]) -> Plan:
    """Return `plan` with itself first among the ways to serve its adapters, and those last that are given back.

    The costs are of the whole plan, all services with adapters served that way at once; what is not replayed is planned
    at mean rates, and taken to hold its objectives as a plan does.

    Parameters
    ----------
    plain : what replays plain serverless for each service with adapters.
    """
    if not plan.adapters or plan.cost_usd_per_hour is None:
        return plan
    outcomes: dict[str, PlainOutcome | str] = {}
    for item in plan.adapters:
        try:
            outcomes[item.service] = plain[item.service]()
        except InputError as error:
            outcomes[item.service] = error.message.rstrip(".")
    given_back = {
        way: {item.service: _of_scaling(plan, item.service, way) for item in plan.adapters}
        for way in (AdapterWay.KEPT, AdapterWay.SHARED_BACKBONE)
    }
    items = []
    for item in plan.adapters:
        ways = [_own(plan, item), *item.alternatives, _serverless(plan, item.service, outcomes)]
        for way, found in given_back.items():
            told = {service: scaled for service, scaled in found.items() if scaled is not None}
            if len(told) == len(plan.adapters):
                ways.append(_scaled(plan, way, item.service, told))
        items.append(replace(item, alternatives=tuple(ways)))
    said = (
        text
        for service, found in outcomes.items()
        if not isinstance(found, str)
        for text in _assumptions(service, found, plain[service])
    )
    return replace(plan, adapters=tuple(items), assumptions=(*plan.assumptions, *said))


def _own(plan: Plan, item: AdapterPlan) -> AdapterAlternative:
    """Return the plan itself, with what its own replay says where there is one."""
    slos = [] if plan.proof is None else [slo for slo in plan.proof.slos if slo.service == item.service]
    ttft_s = {slo.statistic: slo.simulated_s for slo in slos if slo.metric == Metric.TTFT}
    replayed = (
        0 if plan.proof is None else sum(each.requests for each in plan.proof.services if each.service == item.service)
    )
    return AdapterAlternative(
        way=AdapterWay.PLAN,
        cost_usd_per_hour=plan.cost_usd_per_hour,
        bound_usd_per_hour=plan.bound_usd_per_hour,
        is_met=all(slo.met for slo in slos) if slos else None,
        ttft_p50_s=ttft_s.get("p50"),
        ttft_p99_s=ttft_s.get("p99"),
        requests=replayed,
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
    return AdapterAlternative(
        way=AdapterWay.SERVERLESS,
        cost_usd_per_hour=_whole_usd(plan, costs),
        bound_usd_per_hour=None,
        is_met=found.is_met,
        attainment=found.attainment,
        ttft_p50_s=found.ttft_p50_s if math.isfinite(found.ttft_p50_s) else None,
        ttft_p99_s=found.ttft_p99_s if math.isfinite(found.ttft_p99_s) else None,
        requests=found.requests,
        offer=found.offer.name,
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


def _assumptions(service: str, found: PlainOutcome, plain: PlainServerless) -> Iterator[str]:
    """Yield what plain serverless takes for granted."""
    day = dated(found.offer.as_of)
    graphs = "with" if plain.choice.graphs else "without"
    is_other = found.offer.name not in {offer.name for offer in plain.offers}
    yield (
        f"{service}, plain serverless: a container of {found.offer.name} ({'no date' if day is None else day}) for each"
        f" adapter while it is asked for and {format_duration(found.keep_alive_s)} longer; starts as in"
        f" profiles/startup.csv, {graphs} CUDA graphs, weights from storage of {plain.choice.storage / 1e9:.3g} GB/s"
        f" with {plain.choice.loader}{'' if plain.is_asked else ' (assumed; scale_to_zero.storage says another)'}."
        f"{' None of the GPUs that the request allows is sold so.' if is_other else ''} Adapters with rates get made-up"
        " requests in sessions; as many come before those that are judged."
    )
