"""From arrays back to what people read: a `Plan` of allocations, rentals and routing weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.disaggregation import Role
from planner.domain.plan import Allocation, Plan, PlanStatus, Rental, Route, SolverInfo
from planner.domain.problem import Resource
from planner.domain.provenance import ProvenanceKind
from planner.optimize.energy_report import with_energy, with_totals
from planner.optimize.job_plans import job_plans
from planner.optimize.naming import option_keys, service_order
from planner.optimize.periods import pairs_of, period_of, rented, slice_of
from planner.optimize.rollout import change_cost, rollout
from planner.optimize.rows.disaggregation import transfer_load
from planner.optimize.rows.limits import all_limits, instance_usage, limit_usage
from planner.optimize.rules import tight_rules
from planner.optimize.schedule import Schedule, SteadyState, commitments, mean_state, schedule_periods
from planner.optimize.search import occupied, price_bound
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from planner.domain.hardware import Offer
    from planner.domain.jobs import Job
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.provenance import Provenance
    from planner.domain.workload import Bucket
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray
    from planner.optimize.search import Fleet, SearchResult
    from planner.optimize.settings import SolverSettings

BINDING_TOLERANCE = 1e-6
"""Relative: a limit or a replica this close to full binds."""
_WORST_FIRST = tuple(reversed(ProvenanceKind))


def assemble(
    problem: FleetProblem,
    fleet: FleetArrays,
    chosen: Fleet,
    result: SearchResult,
    *,
    settings: SolverSettings,
    assumptions: tuple[str, ...] = (),
) -> Plan:
    """Return the plan that `chosen` is, in the order of the request's demands.

    Parameters
    ----------
    problem : the whole problem; `fleet` may be its pruned form.
    """
    names = dict(zip(map(id, problem.options), option_keys(problem.options), strict=True))
    keys = [names[id(option)] for option in fleet.options]
    order = service_order(problem)
    options = {(option.service, key): option for option, key in zip(fleet.options, keys, strict=True)}
    states = [
        SteadyState(
            allocation=with_energy(
                sorted(
                    _allocations(problem, alone, part, keys, done),
                    key=lambda item: (order[item.service], item.offer, item.option),
                ),
                options,
                problem.energy,
                period,
            ),
            rentals=_rentals(alone, part),
            routing=_routes(alone, part, keys, order),
        )
        for period, (alone, part, done) in enumerate(_periods(fleet, chosen))
    ]
    schedule = Schedule(problem=problem, fleet=fleet, chosen=chosen, states=tuple(states))
    whole = states[0] if fleet.horizon is None else mean_state(schedule)
    power = [_power_w(state) for state in states]
    rates = np.array([bucket.rate_rps for _, bucket in fleet.buckets])
    tokens = [_tokens_per_s(fleet), *(_job_tokens_per_s(job, problem) for job in problem.jobs)]
    change = problem.change
    traffic = None if fleet.egress_gb is None else float(fleet.egress_gb @ chosen.shares) / fleet.n_periods
    cost = chosen.cost_usd_per_hour
    bound = _bound(result, chosen)
    plan = Plan(
        status=plan_status(result),
        cost_usd_per_hour=cost,
        bound_usd_per_hour=bound,
        gap=relative_gap(cost, bound),
        solver=solver_info(result, settings),
        allocation=whole.allocation,
        rentals=whole.rentals,
        routing=whole.routing,
        change_usd_per_hour=change_cost(change, whole.allocation, options) if change and change.is_priced else None,
        rollout=rollout(change, whole.allocation, whole.rentals, options) if change else (),
        egress_gb_per_hour=traffic,
        egress_usd_per_hour=None if traffic is None else traffic * fleet.egress_usd_per_gb,
        binding=binding(fleet, chosen, keys),
        assumptions=assumptions,
        rate_rps=float(rates @ fleet.served_shares) / fleet.n_periods,
        output_tokens_per_s=None if None in tokens else sum(value or 0.0 for value in tokens),
        jobs=job_plans(problem, fleet, chosen, keys=keys, allocation=whole.allocation),
        power_w=None if None in power else max(value or 0.0 for value in power),
        schedule=() if fleet.horizon is None else schedule_periods(schedule),
        commitments=() if fleet.horizon is None else commitments(whole.rentals),
    )
    return with_totals(plan, problem.energy)


def _bound(result: SearchResult, chosen: Fleet) -> float | None:
    """Return a bound of the cost beside changes and energy no dearer than those of `chosen`.

    Ties may trade one for the other.
    """
    if result.bound_usd_per_hour is None or result.fleet is None:
        return result.bound_usd_per_hour
    traded = result.fleet.beside_usd_per_hour - chosen.beside_usd_per_hour
    if not traded:
        return result.bound_usd_per_hour
    return price_bound(result.bound_usd_per_hour + traded, chosen.cost_usd_per_hour)


def _periods(fleet: FleetArrays, chosen: Fleet) -> Iterator[tuple[FleetArrays, Fleet, FloatArray]]:
    """Yield every period alone, what it has of the fleet, and each option's mean load of work."""
    done = fleet.work.done(chosen.work, len(fleet.options))
    if fleet.horizon is None:
        yield fleet, chosen, done
        return
    n_options, n_pools = len(fleet.options) // fleet.n_periods, len(fleet.pool_offer) // fleet.n_periods
    for period in range(fleet.n_periods):
        yield (
            period_of(fleet, period),
            replace(
                chosen,
                replicas=chosen.replicas[slice_of(period, n_options)],
                instances=chosen.instances[slice_of(period, n_pools)],
                shares=chosen.shares[pairs_of(fleet, period)],
            ),
            done[slice_of(period, n_options)],
        )


def _power_w(state: SteadyState) -> float | None:
    """Return the peak power of all replicas; None where one's is not known."""
    power = [item.power_w for item in state.allocation]
    return None if None in power else sum(value or 0.0 for value in power)


def _tokens_per_s(fleet: FleetArrays) -> float | None:
    """Return the generated tokens per second of what is served, the mean over the periods; None if not known."""
    total = 0.0
    for (_, bucket), served in zip(fleet.buckets, fleet.served_shares.tolist(), strict=True):
        if bucket.output_tokens is None:
            return None
        total += bucket.rate_rps * served * bucket.output_tokens
    return total / fleet.n_periods


def _job_tokens_per_s(job: Job, problem: FleetProblem) -> float | None:
    """Return the tokens that a job generates per second on average."""
    length_s = job.window_s(None) if problem.horizon is None else problem.horizon.length_s
    return None if job.output_tokens_per_unit is None else job.output_tokens_per_unit * job.amount / length_s


def empty_plan(result: SearchResult, settings: SolverSettings) -> Plan:
    """Return the plan of a search that found none."""
    return Plan(
        status=plan_status(result),
        cost_usd_per_hour=None,
        bound_usd_per_hour=result.bound_usd_per_hour if result.termination is not Termination.INFEASIBLE else None,
        gap=relative_gap(None, None),
        solver=solver_info(result, settings),
    )


def plan_status(result: SearchResult) -> PlanStatus:
    """Return what is known of a plan from how its search ended."""
    if result.fleet is not None:
        return PlanStatus.OPTIMAL if result.termination is Termination.OPTIMAL else PlanStatus.FEASIBLE
    return PlanStatus.INFEASIBLE if result.termination is Termination.INFEASIBLE else PlanStatus.UNKNOWN


def relative_gap(cost: float | None, bound: float | None) -> float | None:
    """Return (cost - bound) / cost; 0 for a plan that costs nothing, None where one of them is not known.

    Examples
    --------
    >>> relative_gap(10.0, 9.0), relative_gap(0.0, 0.0), relative_gap(10.0, None)
    (0.1, 0.0, None)
    """
    if cost is None or bound is None:
        return None
    return 0.0 if cost <= 0 else max(0.0, (cost - bound) / cost)


def solver_info(result: SearchResult, settings: SolverSettings) -> SolverInfo:
    """Return which solver said so."""
    return SolverInfo(
        name=result.solver,
        version=result.version,
        seconds=result.seconds,
        termination=result.termination.value,
        seed=settings.seed,
        threads=settings.threads,
    )


def _allocations(
    problem: FleetProblem, fleet: FleetArrays, chosen: Fleet, keys: list[str], done: FloatArray
) -> list[Allocation]:
    instances = _instances_by_offer(fleet, chosen)
    in_use = _replicas(fleet, chosen, done)
    gpus_in_use = np.bincount(fleet.option_offer, weights=fleet.option_gpus * in_use, minlength=len(fleet.offers))
    rates = np.array([bucket.rate_rps for _, bucket in fleet.buckets])
    pressure = (1 + problem.headroom_fraction) / problem.utilization_cap
    loads = np.bincount(fleet.pair_option, weights=fleet.pair_load * chosen.shares, minlength=len(fleet.options))
    served = np.bincount(
        fleet.pair_option, weights=rates[fleet.pair_bucket] * chosen.shares, minlength=len(fleet.options)
    )
    found = []
    for j in np.flatnonzero(in_use).tolist():
        option, replicas = fleet.options[j], int(chosen.replicas[j])
        offer_index = int(fleet.option_offer[j])
        shares = _bucket_shares(fleet, chosen, j)
        part = float(fleet.option_gpus[j] * replicas / gpus_in_use[offer_index])
        found.append(
            _allocation(
                option,
                key=keys[j],
                replicas=replicas,
                instances=instances[offer_index],
                cost=part * float(option.offer.price_usd_per_hour) * instances[offer_index],
                utilization=float(loads[j]) * option.utilization_cap / pressure / replicas,
                work_utilization=float(done[j]) / replicas,
                rate_rps=float(served[j]),
                shares=shares,
                fleet=fleet,
            )
        )
    return found


def _allocation(
    option: ServingOption,
    *,
    key: str,
    replicas: int,
    instances: int,
    cost: float,
    utilization: float,
    work_utilization: float,
    rate_rps: float,
    shares: dict[int, float],
    fleet: FleetArrays,
) -> Allocation:
    offer, config = option.offer, option.config
    # A replica without requests serves a job, or nothing.
    origins = [_provenance(option, bucket, fleet) for bucket in sorted(shares)] or option.provenance[:1]
    worst = _worst(origins)
    return Allocation(
        service=option.service,
        offer=offer.name,
        option=key,
        gpu=offer.gpu,
        gpus_per_replica=option.gpus_per_replica,
        replicas=replicas,
        cost_usd_per_hour=round(cost, COST_DIGITS),
        power_w=None if option.power_w is None else float(option.power_w) * replicas,
        utilization=utilization,
        work_utilization=work_utilization,
        provider=offer.provider,
        region=offer.region,
        market=str(offer.market),
        instance_type=offer.instance_type,
        instances=instances,
        engine=config.engine if config else "",
        precision=config.precision if config else "",
        tensor_parallel=config.tensor_parallel if config else option.gpus_per_replica,
        pipeline_parallel=config.pipeline_parallel if config else 1,
        rate_rps=rate_rps,
        output_tokens_per_s=0.0 if option.role is Role.PREFILL else _output_tokens(shares, fleet),
        provenance=worst.kind if worst else ProvenanceKind.GIVEN,
        provenance_note=(worst.note or worst.source) if worst else "",
        price_as_of=_date(offer),
        role=option.role,
        transfer_bytes_per_s=_transfer_bytes(option, shares, fleet),
        engine_flags=_engine_flags(option),
        power_cap_w=None if config is None else config.power_cap_w,
        error_fraction=max((o.error_fraction for o in origins if o and o.error_fraction is not None), default=None),
    )


def _engine_flags(option: ServingOption) -> str:
    """Return how the engine is started for a part of serving, or for adapters."""
    parts = (option.handover, option.slots)
    return " ".join(part.engine_flags for part in parts if part is not None and part.engine_flags)


def _transfer_bytes(option: ServingOption, shares: dict[int, float], fleet: FleetArrays) -> float | None:
    """Return the KV caches that the requests in `shares` (by bucket) bring, in bytes/s."""
    if option.handover is None:
        return None
    if not shares:
        return 0.0  # there is work with a deadline alone
    first = _first_bucket(option, fleet)
    sizes = option.handover.kv_bytes
    return float(sum(share * fleet.buckets[b][1].rate_rps * sizes[b - first] for b, share in shares.items()))


COST_DIGITS = 9
"""Decimals of an allocation's part of a price: cuts floating-point dust (3.0300000000000002), nothing more."""


def _output_tokens(shares: dict[int, float], fleet: FleetArrays) -> float | None:
    total = 0.0
    for index, share in shares.items():
        bucket = fleet.buckets[index][1]
        if bucket.output_tokens is None:
            return None
        total += share * bucket.rate_rps * bucket.output_tokens
    return float(total)


def _replicas(fleet: FleetArrays, chosen: Fleet, done: FloatArray) -> FloatArray:
    """Return replicas without those that do nothing (spare GPUs of an instance can hold such at no cost).

    Where spares can be worth their keep, they stay.
    """
    if fleet.keeps_spares:
        return chosen.replicas.astype(np.float64)
    used = np.bincount(fleet.pair_option, weights=chosen.shares, minlength=len(fleet.options)) + done > 0
    return np.where(used, chosen.replicas, 0).astype(np.float64)


def _instances_by_offer(fleet: FleetArrays, chosen: Fleet) -> list[int]:
    counts = np.bincount(fleet.pool_offer, weights=chosen.instances, minlength=len(fleet.offers))
    return [round(count) for count in counts.tolist()]


def _bucket_shares(fleet: FleetArrays, chosen: Fleet, option: int) -> dict[int, float]:
    mine = np.flatnonzero((fleet.pair_option == option) & (chosen.shares > 0))
    return dict(zip(fleet.pair_bucket[mine].tolist(), chosen.shares[mine].tolist(), strict=True))


def _rentals(fleet: FleetArrays, chosen: Fleet) -> tuple[Rental, ...]:
    return tuple(
        Rental(
            offer=offer.name,
            provider=offer.provider,
            instance_type=offer.instance_type,
            region=offer.region,
            market=str(offer.market),
            gpu=offer.gpu,
            gpus_per_instance=offer.gpus_per_instance,
            instances=count,
            cost_usd_per_hour=round(float(offer.price_usd_per_hour) * count, COST_DIGITS),
            price_as_of=_date(offer),
            price_source=offer.source,
            interruptions_per_day=interruptions_per_day(offer, count),
            zone=offer.zone or "",
        )
        for offer, count in zip(fleet.offers, _instances_by_offer(fleet, chosen), strict=True)
        if count
    )


def interruptions_per_day(offer: Offer, instances: int) -> float | None:
    """Return how often one of so many spot instances is taken back in a day, at most; None = not known.

    Examples
    --------
    At most a fifth of the instances in 30 days: of 15 instances one every 10 days.

    >>> from types import SimpleNamespace
    >>> round(interruptions_per_day(SimpleNamespace(reclaims_per_month=0.2), 15), 6)
    0.1
    """
    if offer.reclaims_per_month is None:
        return None
    return offer.reclaims_per_month / DAYS_PER_MONTH * instances


DAYS_PER_MONTH = 30.0
"""Of the window that interruption rates are published for."""


def _routes(fleet: FleetArrays, chosen: Fleet, keys: list[str], order: dict[str, int]) -> tuple[Route, ...]:
    weights: list[dict[str, float]] = [{} for _ in fleet.buckets]
    provenance: list[dict[str, ProvenanceKind]] = [{} for _ in fleet.buckets]
    decode_weights: list[dict[str, float]] = [{} for _ in fleet.buckets]
    covers = fleet.pair_covers
    for pair in np.flatnonzero(chosen.shares > 0).tolist():
        bucket, option = int(fleet.pair_bucket[pair]), int(fleet.pair_option[pair])
        share = float(chosen.shares[pair] / fleet.served_shares[bucket])
        (weights if covers[pair] else decode_weights)[bucket][keys[option]] = share
        origin = _provenance(fleet.options[option], bucket, fleet)
        provenance[bucket][keys[option]] = origin.kind if origin else ProvenanceKind.GIVEN
    ranked = sorted(np.flatnonzero(fleet.served_shares > 0).tolist(), key=lambda b: order[fleet.buckets[b][0]])
    return tuple(
        replace(
            _route(
                *fleet.buckets[index],
                served=float(fleet.served_shares[index]),
                weights=weights[index],
                provenance=provenance[index],
            ),
            decode_weights=decode_weights[index],
        )
        for index in ranked
    )


def _route(
    service: str, bucket: Bucket, *, served: float, weights: dict[str, float], provenance: dict[str, ProvenanceKind]
) -> Route:
    return Route(
        service=service,
        input_tokens=bucket.input_range,
        output_tokens=bucket.output_range,
        row=bucket.row,
        column=bucket.column,
        rate_rps=float(bucket.rate_rps) * served,
        weights=weights,
        provenance=provenance,
        group=bucket.group,
    )


def _provenance(option: ServingOption, bucket: int, fleet: FleetArrays) -> Provenance | None:
    """Return where the option's throughput for a bucket comes from."""
    if len(option.provenance) <= 1:
        return option.provenance[0] if option.provenance else None
    return option.provenance[bucket - _first_bucket(option, fleet)]


def _first_bucket(option: ServingOption, fleet: FleetArrays) -> int:
    """Return where the buckets of the option's service begin."""
    return next(index for index, (service, _) in enumerate(fleet.buckets) if service == option.service)


def _worst(found: Iterable[Provenance | None]) -> Provenance | None:
    known = [item for item in found if item is not None]
    return min(known, key=lambda item: _WORST_FIRST.index(item.kind)) if known else None


def _date(offer: Offer) -> str | None:
    return offer.as_of.isoformat() if offer.as_of else None


def binding(fleet: FleetArrays, chosen: Fleet, keys: list[str]) -> tuple[str, ...]:
    """Return what stands in the way of a cheaper plan: full limits, and options whose replicas are full.

    A limit that counts whole things is full where one more instance of anything in its scope exceeds it.
    """
    names = [limit.name for index, limit in enumerate(all_limits(fleet)) if _is_full(index, fleet, chosen)]
    names += tight_rules(fleet, chosen.instances, chosen.shares, replicas=chosen.replicas)
    loads = occupied(fleet, chosen.shares, chosen.work)
    full = (loads > 0) & (loads >= chosen.replicas * (1 - BINDING_TOLERANCE))
    several = len({service for service, _ in fleet.buckets}) + len(fleet.jobs) > 1
    names += [
        f"capacity {fleet.options[j].service} on {keys[j]}" if several else f"capacity {keys[j]}"
        for j in np.flatnonzero(full).tolist()
    ]
    busy = transfer_load(fleet, chosen.shares)
    jammed = (busy > 0) & (busy >= chosen.replicas * (1 - BINDING_TOLERANCE))
    names += [f"KV transfer {fleet.options[j].service} on {keys[j]}" for j in np.flatnonzero(jammed).tolist()]
    return tuple(dict.fromkeys(names))


def _is_full(index: int, fleet: FleetArrays, chosen: Fleet) -> bool:
    limit = all_limits(fleet)[index]
    used = float(limit_usage(limit, fleet, chosen.replicas, rented(fleet, chosen.instances)).max())
    step = 0.0
    if limit.resource in {Resource.INSTANCES, Resource.GPUS, Resource.VCPUS}:
        usages = [instance_usage(limit.resource, offer) for offer in fleet.offers if limit.scope.covers(offer)]
        step = min((usage for usage in usages if usage > 0), default=np.inf)
        return used + step > limit.bound * (1 + BINDING_TOLERANCE) and step < np.inf
    return used > 0 and used >= limit.bound * (1 - BINDING_TOLERANCE)
