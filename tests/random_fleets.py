"""Small random fleets in which every family of the problem is drawn in combination with the others.

One function adds one family to a problem; `FAMILIES` lists them with how often each is drawn. A family that a release
adds takes one function and one entry here (and, where an enumeration can follow it, its part of `fleet_enumeration`).
Numbers are small integers and quarters, so that ties and exact fits are frequent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapter_groups import group_adapters
from planner.domain.adapters import Adapter, AdapterSlots, Isolation, ReplicaBytes, Tenancy, Tenant
from planner.domain.disaggregation import Handover, Role
from planner.domain.egress import Egress
from planner.domain.energy import Energy, Site
from planner.domain.hardware import Market, Offer
from planner.domain.jobs import Job
from planner.domain.problem import (
    ChangeCost,
    EnergyBudget,
    Facet,
    FleetProblem,
    Goal,
    Horizon,
    InstanceLoss,
    Limit,
    Measure,
    Minimum,
    ReplicaLoss,
    Resource,
    Running,
    Scenario,
    Scope,
    ServingOption,
    ShareCap,
    Shedding,
    Survival,
    VarietyLimit,
)
from planner.domain.workload import Bucket, Demand
from planner.optimize import Assignment

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.domain.problem import Rule

    Family = Callable[[FleetProblem, np.random.Generator], FleetProblem]

HOUR_S = 3600.0
SLICED = "slices"
ADAPTERS = "adapters"
NOT_WITH_ADAPTERS = (
    "share caps", "survival", "spare replicas", "instance loss", "scenarios", "energy", "egress", "spot", "shedding",
    "goals", "changes", "horizon", "disaggregation", "jobs", SLICED,
)  # fmt: skip
"""Not drawn together with adapters: refused, or held to all small fleets in test_adapters_combined.py instead."""
GOALS = (
    ({Measure.POWER: 1.0},),
    ({Measure.GPUS: 1.0},),
    ({Measure.COST: 1.0, Measure.POWER: 8.0},),
    ({Measure.GPUS: 1.0}, {Measure.POWER: 1.0}),
    ({Measure.COST: 1.0}, {Measure.POWER: 1.0}),
    ({Measure.POWER: 2.0, Measure.GPUS: 0.5}, {Measure.GPUS: 1.0}),
)


@dataclass(frozen=True)
class Case:
    """One random problem, how its buckets may be split, and what was drawn for it."""

    problem: FleetProblem
    assignment: Assignment
    families: tuple[str, ...]


def random_case(
    rng: np.random.Generator, *, without: frozenset[str] = frozenset(), always: frozenset[str] = frozenset()
) -> Case:
    """Return a fleet with every family by its chance, in random order; what is refused together is not drawn.

    without : families that are not drawn at all.
    always : families that are drawn in any case, if nothing that was drawn before them is refused together with them.
    """
    problem = plain_fleet(rng)
    drawn: list[str] = []
    for name in rng.permutation(list(FAMILIES)).tolist():
        chance, add = FAMILIES[name]
        is_drawn = rng.random() < chance or name in always
        if is_drawn and name not in without and not any({name, other} in REFUSED for other in drawn):
            problem = add(problem, rng)
            drawn.append(name)
    assignment = Assignment.sliced(int(rng.integers(1, 4))) if SLICED in drawn else Assignment.fractional()
    return Case(problem=problem, assignment=assignment, families=tuple(sorted(drawn)))


def adapter_case(rng: np.random.Generator) -> Case:
    """Return a fleet with adapters, and with every family by its chance that is planned together with them."""
    return random_case(rng, without=frozenset(NOT_WITH_ADAPTERS), always=frozenset({ADAPTERS}))


def plain_fleet(rng: np.random.Generator) -> FleetProblem:
    """Return one or two services on two or three offers, without any limit."""
    offers = [_offer(index, rng) for index in range(int(rng.integers(2, 4)))]
    demands, options = [], []
    for service in ("chat", "code")[: int(rng.choice([1, 1, 2]))]:
        n_buckets = int(rng.choice([1, 2, 2, 3]))
        rates = rng.integers(1, 6, n_buckets)
        buckets = tuple(Bucket(row=row, column=0, rate_rps=float(rate)) for row, rate in enumerate(rates.tolist()))
        demands.append(Demand(service=service, buckets=buckets))
        for offer in offers:
            sizes = [size for size in (1, 2, 4) if size <= offer.gpus_per_instance]
            for size in rng.choice(sizes, size=1 if rng.random() < 0.8 else len(sizes), replace=False).tolist():
                table = rng.integers(1, 6, n_buckets) * size * (rng.random(n_buckets) < 0.9)
                options.append(
                    ServingOption(
                        service=service,
                        offer=offer,
                        gpus_per_replica=size,
                        throughput_rps=table.astype(float),
                        power_w=100.0 * size * int(rng.integers(1, 6)),
                    )
                )
    return FleetProblem(demands=tuple(demands), options=tuple(options))


def _offer(index: int, rng: np.random.Generator) -> Offer:
    gpus = int(rng.choice([1, 1, 2, 4]))
    return Offer(
        name=f"O{index}",
        provider=f"p{rng.integers(0, 2)}",
        instance_type=f"{gpus}x",
        region=f"r{rng.integers(0, 2)}",
        zone=f"z{rng.integers(0, 2)}",
        market=Market.ON_DEMAND,
        gpu=f"G{rng.integers(0, 3)}",
        gpus_per_instance=gpus,
        price_usd_per_hour=float(rng.integers(2, 13)) / 4 * gpus,
        vcpus=4.0 * gpus,
    )


def _with_offers(problem: FleetProblem, changed: dict[str, Offer]) -> FleetProblem:
    options = (replace(option, offer=changed.get(option.offer.name, option.offer)) for option in problem.options)
    return replace(problem, options=tuple(options))


def _offers(problem: FleetProblem) -> list[Offer]:
    return list({option.offer.name: option.offer for option in problem.options}.values())


def _scope(problem: FleetProblem, rng: np.random.Generator) -> Scope:
    offer = _offers(problem)[int(rng.integers(0, len(_offers(problem))))]
    scopes = (
        Scope(),
        Scope(),
        Scope(provider=offer.provider),
        Scope(region=offer.region),
        Scope(gpu=offer.gpu),
        Scope(market=offer.market),
        Scope(offer=offer.name),
    )
    return scopes[int(rng.integers(0, len(scopes)))]


def _facet(rng: np.random.Generator, *names: str) -> Facet:
    return Facet(str(rng.choice(names)))


def _ruled(problem: FleetProblem, *rules: Rule) -> FleetProblem:
    return replace(problem, rules=(*problem.rules, *rules))


# --- one function per family ----------------------------------------------------------------------------------------

STEP_OF = {
    Resource.INSTANCES: 1.0,
    Resource.GPUS: 1.0,
    Resource.VCPUS: 4.0,
    Resource.USD_PER_HOUR: 1.5,
    Resource.WATTS: 300.0,
}


def add_limits(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """One or two limits of any resource on any scope."""
    limits = []
    for index in range(int(rng.integers(1, 3))):
        resource = Resource(str(rng.choice(list(Resource))))
        bound = STEP_OF[resource] * float(rng.integers(1, 9))
        limits.append(Limit(name=f"limit {index}", resource=resource, bound=bound, scope=_scope(problem, rng)))
    return replace(problem, limits=tuple(limits))


def add_availability(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Some offers have only a few instances."""
    scarce = {
        offer.name: replace(offer, available=int(rng.integers(0, 4)))
        for offer in _offers(problem)
        if rng.random() < 0.5
    }
    return _with_offers(problem, scarce)


def add_headroom(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Headroom above the demand, and a cap on utilisation."""
    return replace(
        problem,
        headroom_fraction=float(rng.choice([0.0, 0.25, 0.5])),
        utilization_cap=float(rng.choice([1.0, 0.5, 0.75])),
    )


def add_variety(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """At most one group, or two."""
    facet = _facet(rng, "gpu", "provider", "offer")
    return _ruled(problem, VarietyLimit(name=f"{facet} groups", facet=facet, bound=int(rng.integers(1, 3))))


def add_minimum(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Instances or GPUs that are rented in any case."""
    resource = Resource(str(rng.choice(["gpus", "instances"])))
    bound = float(rng.integers(1, 4))
    return _ruled(problem, Minimum(name="minimum", resource=resource, bound=bound, scope=_scope(problem, rng)))


def add_share(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """A cap on what one group serves, of all services or of one."""
    service = problem.demands[0].service if rng.random() < 0.3 else None
    facet = _facet(rng, "gpu", "provider", "region", "offer")
    bound = float(rng.choice([0.5, 0.625, 0.75]))
    return _ruled(problem, ShareCap(name="share", facet=facet, bound=bound, service=service))


def add_survival(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """The loss of any one group is survived, in whole or in part."""
    facet = _facet(rng, "gpu", "provider", "region", "zone", "offer")
    scope = _scope(problem, rng) if rng.random() < 0.3 else Scope()
    return _ruled(problem, Survival(name="survive", facet=facet, bound=float(rng.choice([1.0, 0.5])), scope=scope))


def add_spares(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """N+k: any replicas of one service may be lost."""
    service = problem.demands[-1].service
    bound = float(rng.choice([1.0, 0.5]))
    return _ruled(problem, ReplicaLoss(name="spares", count=int(rng.integers(1, 3)), service=service, bound=bound))


def add_instance_loss(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Any instance may be lost."""
    return _ruled(problem, InstanceLoss(name="largest", count=1, bound=float(rng.choice([1.0, 0.5]))))


def add_scenarios(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """More requests, requests of other sizes, or a slow GPU type, each in whole or in part."""
    for kind in rng.choice(["busy", "other", "slow"], size=int(rng.integers(1, 3)), replace=False).tolist():
        given = {"bound": float(rng.choice([1.0, 1.0, 0.5])), "headroom_fraction": float(rng.choice([0.0, 0.25]))}
        demands, options = problem.demands, problem.options
        if kind == "busy":
            factor = float(rng.choice([1.5, 2.0]))
            demands = tuple(
                replace(d, buckets=tuple(replace(b, rate_rps=b.rate_rps * factor) for b in d.buckets)) for d in demands
            )
        elif kind == "slow":
            gpu = problem.options[0].offer.gpu
            options = tuple(
                replace(o, scenario_rps={**o.scenario_rps, kind: o.throughput_rps * 0.75}) if o.offer.gpu == gpu else o
                for o in options
            )
        else:
            changed = demands[0].service
            buckets = tuple(Bucket(row=row, column=1, rate_rps=float(rng.integers(1, 5))) for row in range(2))
            demands = (Demand(service=changed, buckets=buckets), *demands[1:])
            options = tuple(
                replace(o, scenario_rps={**o.scenario_rps, kind: rng.integers(1, 6, 2).astype(float)})
                if o.service == changed
                else o
                for o in options
            )
        problem = _ruled(replace(problem, options=options), Scenario(name=kind, demands=demands, **given))
    return problem


def add_energy(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Electricity and carbon: priced, budgeted, or minimised."""
    options = []
    for option in problem.options:
        idle = 20.0 * int(rng.integers(0, 6))
        busy = idle + 100.0 * int(rng.integers(1, 6))
        options.append(replace(option, idle_power_w=idle, busy_power_w=busy))
    n_periods = problem.horizon.n_periods if problem.horizon else 1
    sites = {
        (offer.provider, offer.region): Site(
            pue=float(rng.choice([1.0, 1.25, 1.5])),
            carbon_g_per_kwh=tuple((100.0 * rng.integers(1, 7, n_periods)).tolist()),
            usd_per_kwh=float(rng.choice([0.0, 0.25])),
        )
        for offer in _offers(problem)
    }
    energy = Energy(sites=sites, carbon_usd_per_kg=float(rng.choice([0.0, 0.5])))
    problem = replace(problem, options=tuple(options), energy=energy)
    measure = Measure.ENERGY if rng.random() < 0.5 else Measure.CARBON
    if rng.random() < 0.5:
        bound = float(rng.integers(1, 9)) / 4
        return _ruled(problem, EnergyBudget(name=f"{measure} budget", measure=measure, bound=bound))
    return problem if problem.goal is not None else replace(problem, goal=Goal(stages=({measure: 1.0},)))


def add_egress(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Users of a service are in one region, and what leaves another one for them costs something."""
    demands = tuple(
        replace(
            demand,
            buckets=tuple(replace(bucket, input_tokens=1000.0, output_tokens=500.0) for bucket in demand.buckets),
        )
        for demand in problem.demands
    )
    near = float(rng.choice([1.0, 0.5]))
    users = {problem.demands[0].service: {"r0": near, "elsewhere": 1 - near}}
    return replace(problem, demands=demands, egress=Egress(users=users, usd_per_gb=0.1, bytes_per_token=1000.0))


def add_spot(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Some offers are spot, which runs only a part of the time and may serve only a part of the requests."""
    spot = {offer.name: replace(offer, market=Market.SPOT) for offer in _offers(problem) if rng.random() < 0.5}
    problem = _with_offers(problem, spot)
    options = tuple(
        replace(option, throughput_rps=option.throughput_rps * 0.75) if option.offer.name in spot else option
        for option in problem.options
    )
    cap = ShareCap(
        name="share of spot",
        facet=Facet.MARKET,
        bound=float(rng.choice([0.25, 0.5])),
        scope=Scope(market=Market.SPOT),
    )
    return _ruled(replace(problem, options=options), cap)


def add_shedding(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Demand may stay unserved, by priority."""
    return replace(problem, shed=Shedding(priority={item.service: int(rng.integers(1, 3)) for item in problem.demands}))


def add_goal(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Objectives other than the cost: single, weighted, one after the other."""
    stages = GOALS[int(rng.integers(0, len(GOALS)))]
    return replace(problem, goal=Goal(stages=stages, within=float(rng.choice([0.0, 0.0, 0.25]))))


def add_change(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """A fleet runs today, and leaving it costs something."""
    chosen = [option for option in problem.options if rng.random() < 0.6]
    return replace(
        problem,
        change=ChangeCost(
            running=tuple(
                Running(
                    service=option.service,
                    offer=option.offer.name,
                    option=option.offer.name,
                    gpus_per_replica=option.gpus_per_replica,
                    tensor_parallel=option.gpus_per_replica,
                    replicas=int(rng.integers(1, 4)),
                )
                for option in {(each.service, each.offer.name): each for each in chosen}.values()
            ),
            instances={},
            start_usd=float(rng.integers(0, 4)),
            stop_usd=float(rng.integers(0, 4)),
            horizon_hours=2.0,
        ),
    )


def add_horizon(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Two or three periods, start-up and lease, sometimes with commitments on offer."""
    n_periods = int(rng.integers(2, 4))
    factors = {
        item.service: (1.0, *rng.choice([0.0, 0.5, 1.0, 2.0], n_periods - 1).tolist()) for item in problem.demands
    }
    horizon = Horizon(
        step_s=HOUR_S,
        factors=factors,
        start_up_s=float(rng.choice([0.0, 0.25, 1.0])) * HOUR_S,
        minimum_lease_s=float(rng.choice([0.0, 1.0, 2.0])) * HOUR_S,
    )
    problem = replace(problem, horizon=horizon)
    if rng.random() < 0.4:
        first = problem.options[0].offer
        reserved = replace(
            first,
            name=f"{first.name}-1y",
            market=Market.RESERVED_1Y,
            price_usd_per_hour=first.price_usd_per_hour * float(rng.choice([0.5, 0.75])),
        )
        twins = [replace(item, offer=reserved) for item in problem.options if item.offer == first]
        problem = replace(problem, options=(*problem.options, *twins))
    return problem


def add_disaggregation(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Prefill and decode options beside some of the whole ones, in the place of others; networks of any rate."""
    rate = float(rng.choice([2.0, 6.0, np.inf]))
    services = {demand.service for demand in problem.demands}
    options = []
    for option in problem.options:
        is_of_job = option.service not in services
        if is_of_job or rng.random() < 0.7:
            options.append(option)
        if is_of_job:
            continue
        size = len(option.throughput_rps)
        for role in (Role.PREFILL, Role.DECODE):
            if rng.random() < 0.5:
                faster = option.throughput_rps * rng.integers(1, 4, size)
                handover = Handover(
                    kv_bytes=rng.integers(0, 3, size).astype(float), bytes_per_s=rate * option.gpus_per_replica
                )
                options.append(replace(option, role=role, throughput_rps=faster, handover=handover))
    return replace(problem, options=tuple(options or problem.options))


def add_jobs(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """A batch, a fine-tuning, or both, with replicas of their own; some may use what requests leave of others."""
    for kind in rng.choice(["batch", "tuning"], size=int(rng.choice([1, 1, 2])), replace=False).tolist():
        release, deadline = _window_hours(problem.horizon, rng)
        job = Job(
            name=kind,
            unit="requests" if kind == "batch" else "tokens",
            amount=HOUR_S * float(rng.choice([0.0001, 1.0, 2.0, 5.0, 12.0])),
            release_s=release * HOUR_S,
            deadline_s=deadline * HOUR_S,
            harvest_efficiency=float(rng.choice([1.0, 0.75, 0.5])),
        )
        harvests = rng.random() < 0.6
        options = []
        for option in problem.options:
            is_host = harvests and option.service not in {"batch", "tuning"} and rng.random() < 0.8
            rate = float(rng.integers(1, 6) * option.gpus_per_replica)
            options.append(replace(option, job_rates={**option.job_rates, kind: rate}) if is_host else option)
        for offer in _offers(problem):
            if rng.random() < 0.8:
                size = int(rng.choice([size for size in (1, 2, 4) if size <= offer.gpus_per_instance]))
                options.append(
                    ServingOption(
                        service=kind,
                        offer=offer,
                        gpus_per_replica=size,
                        throughput_rps=np.array([float(rng.integers(0, 6) * size)]),
                        power_w=100.0 * size * int(rng.integers(1, 6)),
                    )
                )
        problem = replace(problem, options=tuple(options), jobs=(*problem.jobs, job))
    return problem


def _window_hours(horizon: Horizon | None, rng: np.random.Generator) -> tuple[float, float]:
    """Return release and deadline; over a horizon in quarters of an hour, and often round its end."""
    if horizon is None:  # one that may be added has two hours at least
        return float(rng.choice([0.0, 0.5])), float(rng.choice([1.0, 1.5, 2.0]))
    quarters = 4 * horizon.n_periods
    step = int(rng.choice([1, 4]))
    return float(rng.integers(0, quarters // step) * step) / 4, float(rng.integers(1, quarters // step + 1) * step) / 4


def add_adapters(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """One service is for a few adapters, in groups, on replicas with a slot or several, in one size or two."""
    service = problem.demands[int(rng.integers(0, len(problem.demands)))].service
    adapters = [
        Adapter(
            name=f"a{index}",
            rank=8,
            target_modules=("q_proj",),
            rate_rps=float(rng.choice([0.25, 0.5, 1.0, 1.5, 2.5])),
            isolation=Isolation.DEDICATED if rng.random() < 0.2 else Isolation.SHARED_PROCESS,
        )
        for index in range(int(rng.integers(2, 5)))
    ]
    groups = group_adapters(adapters, n_alone=int(rng.choice([0, 1, 16])))
    of = {adapter.name: adapter for adapter in adapters}
    parts = ((1.0,), (1.0,), (0.5, 0.5), (0.75, 0.25))[int(rng.integers(0, 4))]
    buckets = tuple(
        Bucket(row=row, column=size, group=row, rate_rps=group.total_rate_rps * part)
        for row, group in enumerate(groups)
        for size, part in enumerate(parts)
    )
    tenants = tuple(
        Tenant(name=name, rate_rps=of[name].rate_rps, memory_bytes=1e8, group=row, isolation=of[name].isolation)
        for row, group in enumerate(groups)
        for name in group.names
    )
    options = []
    for option in problem.options:
        if option.service != service:
            options.append(option)
            continue
        speeds = rng.integers(1, 6, len(parts)) * option.gpus_per_replica * (rng.random(len(parts)) < 0.9)
        kinds = ([1], [2], [1, 2], [1, 3])[int(rng.integers(0, 4))]
        for count in kinds:
            may_share = [count == 1 or group.isolation is not Isolation.DEDICATED for group in groups]
            slower = 1.0 if count == 1 else float(rng.choice([1.0, 0.75]))
            options.append(
                replace(
                    option,
                    throughput_rps=np.concatenate([speeds * slower * may for may in may_share]),
                    slots=_slots(count, rng),
                )
            )
    demand = Demand(service=service, buckets=buckets)
    return replace(
        problem,
        demands=tuple(demand if item.service == service else item for item in problem.demands),
        options=tuple(options),
        tenancies=(Tenancy(service=service, tenants=tenants),),
    )


def _slots(count: int, rng: np.random.Generator) -> AdapterSlots:
    if count == 1:
        return AdapterSlots(count=1, bytes_each=0.0, isolation=Isolation.DEDICATED)
    shared = Isolation.SHARED_BACKBONE if rng.random() < 0.3 else Isolation.SHARED_PROCESS
    beside = ReplicaBytes(usable=40e9, weights=16e9, activations=1e9, context=5e8, kv=2e9)
    return AdapterSlots(count=count, bytes_each=1e8, isolation=shared, beside=beside)


def no_change(problem: FleetProblem, rng: np.random.Generator) -> FleetProblem:
    """Slices are an assignment, not a part of the problem."""
    return problem


FAMILIES: dict[str, tuple[float, Family]] = {
    "limits": (0.4, add_limits),
    "availability": (0.25, add_availability),
    "headroom": (0.3, add_headroom),
    "variety": (0.2, add_variety),
    "minimum": (0.2, add_minimum),
    "share caps": (0.2, add_share),
    "survival": (0.2, add_survival),
    "spare replicas": (0.1, add_spares),
    "instance loss": (0.1, add_instance_loss),
    "scenarios": (0.25, add_scenarios),
    "energy": (0.15, add_energy),
    "egress": (0.1, add_egress),
    "spot": (0.2, add_spot),
    "shedding": (0.25, add_shedding),
    "goals": (0.25, add_goal),
    "changes": (0.25, add_change),
    "horizon": (0.3, add_horizon),
    "disaggregation": (0.1, add_disaggregation),
    "jobs": (0.1, add_jobs),
    ADAPTERS: (0.15, add_adapters),
    SLICED: (0.1, no_change),
}
"""How often each family is drawn, and what adds it."""

REFUSED: tuple[set[str], ...] = (
    {"disaggregation", "scenarios"},
    {"horizon", "changes"},
    *({"shedding", other} for other in ("scenarios", SLICED)),
    *({"jobs", other} for other in ("scenarios", "shedding", "energy")),
    *({ADAPTERS, other} for other in NOT_WITH_ADAPTERS),
)
"""Pairs that are not drawn: the planner refuses to plan for them (docs/explanation/limits.md), but for adapters."""
