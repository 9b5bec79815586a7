"""The rules of a request, and the fleet that runs today, as the problem wants them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

from planner.domain.adapters import AdapterSlots
from planner.domain.hardware import Market
from planner.domain.problem import (
    ChangeCost,
    Facet,
    InstanceLoss,
    Minimum,
    ReplicaLoss,
    Resource,
    Running,
    Scope,
    ShareCap,
    Survival,
    VarietyLimit,
)
from planner.errors import InputError, Where
from planner.files.plan_schema import read_plan
from planner.files.request.constraints import LARGEST_INSTANCES
from planner.optimize.rollout import merged_replicas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from planner.domain.hardware import Offer
    from planner.domain.plan import AdapterPlan
    from planner.domain.problem import Rule
    from planner.files.request import PlanRequest
    from planner.files.request.constraints import Constraints
    from planner.files.request.constraints import Minimum as MinimumForm
    from planner.files.request.services import MaxShare

SECONDS_PER_HOUR = 3600.0


def request_rules(
    request: PlanRequest, *, offers: Sequence[Offer], owned: Sequence[Offer], gpu_name: Callable[[str, str], str]
) -> Iterator[Rule]:
    """Yield the rules that `request` states.

    Parameters
    ----------
    offers : everything that can be rented.
    owned : one offer per entry of catalog.owned.
    gpu_name : a GPU's canonical name, from what the user wrote and where.

    Raises
    ------
    InputError: if a minimum is on what nobody offers.
    """
    yield from _variety(request.constraints)
    for index, minimum in enumerate(request.constraints.minimum):
        yield _minimum(minimum, f"constraints.minimum[{index}]", offers, gpu_name)
    for choice, offer in zip(request.catalog.owned, owned, strict=True):
        if choice.must_use:
            yield Minimum(
                name=f"must use {offer.name}",
                resource=Resource.INSTANCES,
                bound=float(offer.available or 0),
                scope=Scope(offer=offer.name),
            )
    yield from _spread(request)
    yield from _spot(request)
    yield from _redundancy(request)


def _redundancy(request: PlanRequest) -> Iterator[Rule]:
    """Yield what the fleet must be able to lose."""
    for loss in dict.fromkeys(request.constraints.survive):
        is_pool = loss == "spot-pool"
        instances = LARGEST_INSTANCES.fullmatch(loss)
        if instances:
            yield InstanceLoss(name=f"survive {loss}", count=int(instances[1]))
        else:
            yield Survival(
                name=f"survive {loss}",
                facet=Facet.OFFER if is_pool else Facet(loss),
                scope=Scope(market=Market.SPOT) if is_pool else Scope(),
            )
    for service in request.services:
        spares = request.constraints.spare_replicas if service.spare_replicas is None else service.spare_replicas
        if spares:
            name = f"{spares} spare replica{'s' if spares > 1 else ''} of {service.name}"
            yield ReplicaLoss(name=name, count=spares, service=service.name)


def _spread(request: PlanRequest) -> Iterator[Rule]:
    """Yield the caps on shares: a service's own ones take the place of the fleet's."""
    own = [service for service in request.services if service.max_share is not None]
    common = request.constraints.max_share
    if common is not None and not own:
        yield from _shares(common, None)
    elif common is not None:
        for service in request.services:
            if service.max_share is None:
                yield from _shares(common, service.name)
    for service in own:
        if service.max_share is not None:
            yield from _shares(service.max_share, service.name)


def _spot(request: PlanRequest) -> Iterator[Rule]:
    """Yield the caps on what spot may serve: a service's own one takes the place of the fleet's."""
    common = request.constraints.spot_share
    for service in request.services:
        form = service.spot_share or common
        if form is not None:
            yield ShareCap(
                name="share of spot",
                facet=Facet.MARKET,
                bound=form.max,
                service=service.name if len(request.services) > 1 else None,
                scope=Scope(market=Market.SPOT),
            )


def _variety(constraints: Constraints) -> Iterator[Rule]:
    for facet, name, bound in (
        (Facet.GPU, "GPU types", constraints.max_gpu_types),
        (Facet.PROVIDER, "providers", constraints.max_providers),
        (Facet.OFFER, "offers", constraints.max_offers),
    ):
        if bound is not None:
            yield VarietyLimit(name=name, facet=facet, bound=bound)


def _minimum(form: MinimumForm, at: str, offers: Sequence[Offer], gpu_name: Callable[[str, str], str]) -> Minimum:
    gpu = gpu_name(form.gpu, f"{at}.gpu") if form.gpu else None
    scope = Scope(provider=form.provider, region=form.region, gpu=gpu, market=form.market, offer=form.offer)
    parts = [part for part in (form.provider, form.region, gpu, form.market, form.offer) if part]
    if not any(scope.covers(offer) for offer in offers):
        raise InputError(
            f"There is no offer of {' '.join(parts) or 'anything'} to rent a minimum of.",
            hint="Check the names, and whether catalog leaves it out.",
            where=Where(field=at),
        )
    resource = Resource.GPUS if form.gpus is not None else Resource.INSTANCES
    bound = form.gpus if form.gpus is not None else form.instances
    return Minimum(name=" ".join(["minimum", *parts]), resource=resource, bound=float(bound or 0), scope=scope)


def _shares(form: MaxShare, service: str | None) -> Iterator[Rule]:
    for facet, name, bound in (
        (Facet.PROVIDER, "provider", form.provider),
        (Facet.REGION, "region", form.region),
        (Facet.ZONE, "zone", form.zone),
        (Facet.OFFER, "offer", form.offer),
        (Facet.GPU, "GPU type", form.gpu),
    ):
        if bound is not None:
            yield ShareCap(name=f"share of one {name}", facet=facet, bound=bound, service=service)


def todays_fleet(path: Path, constraints: Constraints) -> tuple[ChangeCost, tuple[AdapterPlan, ...], str]:
    """Return the fleet in the plan.json at `path` with the price of leaving it, its adapters, and the file's sha256.

    Raises
    ------
    InputError: if it cannot be read or holds no plan.
    """
    plan = read_plan(path)
    if plan.cost_usd_per_hour is None:
        raise InputError(
            "It holds no plan that could run.", hint="Give one with status optimal.", where=Where(str(path))
        )
    form = constraints.change_cost
    slots = {
        (item.service, host.option): AdapterSlots(
            count=host.slots, bytes_each=host.slot_bytes, isolation=host.isolation, rank=host.rank
        )
        for item in plan.adapters
        for host in item.hosts
    }
    merged = merged_replicas(plan.adapters)
    holds: dict[tuple[str, str], list[dict[str, tuple[float, ...]]]] = defaultdict(list)
    for item in plan.adapters:
        for replica in item.placement:
            held = {each.adapter: each.by_size_rps or (each.rate_rps,) for each in replica.adapters}
            holds[item.service, replica.option].append(held)
    running = tuple(
        Running(
            service=row.service,
            offer=row.offer,
            option=row.option,
            gpus_per_replica=row.gpus_per_replica,
            replicas=row.replicas,
            precision=row.precision,
            tensor_parallel=row.tensor_parallel,
            pipeline_parallel=row.pipeline_parallel,
            engine=row.engine,
            role=row.role,
            power_cap_w=row.power_cap_w,
            slots=slots.get((row.service, row.option)),
            merged=merged.get((row.service, row.option), {}),
            holds=tuple(holds.get((row.service, row.option), ())),
        )
        for row in plan.allocation
        if row.replicas > 0
    )
    change = ChangeCost(
        running=running,
        instances={rental.offer: rental.instances for rental in plan.rentals},
        start_usd=form.start if form else 0.0,
        stop_usd=form.stop if form else 0.0,
        horizon_hours=form.horizon / SECONDS_PER_HOUR if form else 1.0,
    )
    return change, plan.adapters, hashlib.sha256(path.read_bytes()).hexdigest()
