"""Adapters on replicas: the bound against brute force, the placement against its check, what sharing must never do."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.adapter_groups import group_adapters
from planner.domain.adapters import Adapter, AdapterSlots, Isolation, ReplicaBytes, Tenancy, Tenant
from planner.domain.hardware import Market, Offer
from planner.domain.plan import HostedAdapter, PlanStatus
from planner.domain.problem import (
    Facet,
    FleetProblem,
    Horizon,
    InstanceLoss,
    Limit,
    ReplicaLoss,
    Resource,
    Scenario,
    Scope,
    ServingOption,
    Shedding,
    Survival,
)
from planner.domain.workload import Bucket, Demand
from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, solve, verify_plan
from planner.optimize.adapter_ways import other_ways, with_alternatives
from planner.report.summary import headline


def offer(name, price):
    """Return an offer of one GPU, without limit."""
    return Offer(
        name=name,
        provider="p",
        instance_type=name,
        region="r",
        market=Market.ON_DEMAND,
        gpu=name,
        gpus_per_instance=1,
        price_usd_per_hour=price,
    )


SETTINGS = SolverSettings(time_limit_s=20.0, relative_gap=0.0)
FRACTIONAL = Assignment.fractional()


def problem_of(rates, kinds, *, isolation=Isolation.SHARED_PROCESS, n_alone=16, **given_parts):
    """Return the problem of adapters with `rates` on `kinds`: (name, price, req/s of a replica, slots)."""
    adapters = [
        Adapter(name=f"a{i}", rank=8, target_modules=("q_proj",), rate_rps=rate, isolation=isolation)
        for i, rate in enumerate(rates)
    ]
    groups = group_adapters(adapters, n_alone=n_alone)
    rate_of = {adapter.name: adapter.rate_rps for adapter in adapters}
    tenants = tuple(
        Tenant(name=name, rate_rps=rate_of[name], memory_bytes=1e8, group=index, isolation=isolation)
        for index, group in enumerate(groups)
        for name in group.names
    )
    buckets = tuple(
        Bucket(row=i, column=0, group=i, rate_rps=sum(t.rate_rps for t in tenants if t.group == i))
        for i in range(len(groups))
    )
    options = tuple(
        ServingOption(
            service="s",
            offer=offer(name, price),
            gpus_per_replica=1,
            throughput_rps=np.full(len(groups), float(speed)),
            slots=slots_of(count),
        )
        for name, price, speed, count in kinds
    )
    tenancy = Tenancy(service="s", tenants=tenants)
    return FleetProblem(
        demands=(Demand(service="s", buckets=buckets),), options=options, tenancies=(tenancy,), **given_parts
    )


def slots_of(count):
    isolation = Isolation.DEDICATED if count == 1 else Isolation.SHARED_PROCESS
    return AdapterSlots(count=count, bytes_each=0.0 if count == 1 else 1e8, isolation=isolation)


def solved(problem):
    return solve(problem, settings=SETTINGS, assignment=FRACTIONAL)


def cheapest_whole(rates, kinds):
    """Return the least price of replicas on which these adapters fit, each on one replica, found by trying all.

    Every partition of the adapters is tried, each part on the cheapest kind that holds it.
    """
    best = math.inf
    for labels in itertools.product(range(len(rates)), repeat=len(rates)):
        if any(label > max(labels[:i], default=-1) + 1 for i, label in enumerate(labels)):
            continue  # the same partition under other names
        parts = [[rate for rate, at in zip(rates, labels, strict=True) if at == part] for part in set(labels)]
        cost = 0.0
        for part in parts:
            able = [price for _, price, speed, count in kinds if len(part) <= count and sum(part) <= speed + 1e-12]
            cost += min(able, default=math.inf)
        best = min(best, cost)
    return best


SMALL = st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0]), min_size=1, max_size=6)
KINDS = st.sampled_from(
    [
        [("A", 1.0, 2.0, 1), ("B", 1.5, 2.0, 3)],
        [("A", 1.0, 2.0, 2), ("B", 3.0, 8.0, 4)],
        [("A", 1.0, 2.5, 1), ("B", 2.0, 4.0, 6)],
    ]
)


@given(SMALL, KINDS, st.sampled_from([0, 2, 16]))
def test_the_bound_is_below_every_placement_and_the_plan_is_one(rates, kinds, n_alone):
    plan = solved(problem_of(rates, kinds, n_alone=n_alone))
    whole = cheapest_whole(rates, kinds)
    assert plan.bound_usd_per_hour <= whole + 1e-6
    # The plan may split an adapter and the brute force may not, so it may cost less; never less than the bound.
    assert plan.cost_usd_per_hour >= plan.bound_usd_per_hour - 1e-9
    assert plan.cost_usd_per_hour <= 2 * whole + 1e-9


@pytest.mark.parametrize(
    ("rates", "kinds", "cost"),
    [
        ([0.1] * 6, [("A", 1.0, 2.0, 1), ("B", 1.5, 2.0, 3)], 3.0),  # two pools of three: slots bind
        ([2.0, 0.1, 0.1, 0.1], [("A", 1.0, 2.0, 1), ("B", 1.5, 2.0, 3)], 2.5),  # hot one alone, the tail together
        ([2.0, 2.0, 2.0], [("A", 1.0, 2.0, 1), ("B", 1.5, 2.0, 3)], 3.0),  # nothing to share
        ([3.0], [("A", 1.0, 2.0, 1)], 2.0),  # one adapter on two replicas
    ],
)
def test_small_cases_are_solved_to_the_optimum(rates, kinds, cost):
    plan = solved(problem_of(rates, kinds))
    assert plan.cost_usd_per_hour == pytest.approx(cost)
    assert plan.bound_usd_per_hour == pytest.approx(cost)


@given(SMALL)
def test_sharing_never_costs_more_where_it_slows_nothing_down(rates):
    alone = [("A", 1.0, 2.0, 1)]
    shared = [*alone, ("A", 1.0, 2.0, 4)]
    apart, together = solved(problem_of(rates, alone)), solved(problem_of(rates, shared))
    assert together.cost_usd_per_hour <= apart.cost_usd_per_hour + 1e-9


@given(SMALL, KINDS, st.sampled_from([0.25, 1.0]))
def test_one_more_adapter_never_lowers_the_bound(rates, kinds, more):
    before = solved(problem_of(rates, kinds)).bound_usd_per_hour
    after = solved(problem_of([*rates, more], kinds)).bound_usd_per_hour
    assert after >= before - 1e-6


@given(SMALL, KINDS, st.floats(0, 0.5))
def test_slots_and_loads_are_kept_with_headroom(rates, kinds, headroom):
    problem = problem_of(rates, kinds, headroom_fraction=headroom)
    plan = solved(problem)
    speed = {name: (rate, count) for name, _, rate, count in kinds}
    placed = dict.fromkeys((f"a{i}" for i in range(len(rates))), 0.0)
    for replica in plan.adapters[0].placement:
        rate, count = speed[replica.option.split("[")[0]]
        assert len(replica.adapters) <= count
        assert sum(held.rate_rps for held in replica.adapters) * (1 + headroom) <= rate * (1 + 1e-8)
        for held in replica.adapters:
            placed[held.adapter] += held.rate_rps
    assert [placed[f"a{i}"] for i in range(len(rates))] == pytest.approx(rates)


def test_processes_that_take_turns_have_a_part_of_the_replica_each():
    problem = problem_of([1.0, 0.1], [("A", 1.0, 2.0, 4)])
    turns = AdapterSlots(count=4, bytes_each=1e8, isolation=Isolation.SHARED_BACKBONE)
    problem = replace(problem, options=tuple(replace(option, slots=turns) for option in problem.options))
    plan = solved(problem)
    # 1 req/s is half of a replica, and a process has a quarter: two replicas although 1.1 of 2 req/s are asked.
    assert plan.cost_usd_per_hour == pytest.approx(2.0)
    assert plan.bound_usd_per_hour == pytest.approx(1.0)


def test_a_limit_that_leaves_no_room_for_whole_adapters_leaves_no_plan():
    gpus = Limit(name="gpus", resource=Resource.GPUS, bound=1, scope=Scope())
    plan = solved(problem_of([0.5] * 4, [("A", 1.0, 2.0, 2)], limits=(gpus,)))
    assert plan.status is PlanStatus.INFEASIBLE
    # Three adapters of two thirds of a replica: two replicas' load, and one of the three has to be split, which takes
    # a slot more than there are.
    two = replace(gpus, bound=2)
    plan = solved(problem_of([1.25] * 3, [("A", 1.0, 2.0, 2)], limits=(two,)))
    assert plan.cost_usd_per_hour == pytest.approx(2.0)
    crowded = solved(problem_of([1.3, 1.3, 0.7, 0.7], [("A", 1.0, 2.0, 2)], limits=(two,)))
    assert crowded.cost_usd_per_hour == pytest.approx(2.0)
    split = solved(problem_of([1.3, 1.3, 1.3, 0.1], [("A", 1.0, 2.0, 2)], limits=(two,)))
    assert split.cost_usd_per_hour is None
    assert [warning.code for warning in split.warnings] == ["W413"]
    assert split.solver.termination == "other-limit"  # more time would not help
    assert headline(split).startswith("No place was found for every adapter within the limits")


def test_the_check_finds_a_placement_that_does_not_hold():
    problem = problem_of([0.5, 0.5, 0.25], [("A", 1.0, 2.0, 2)])
    plan = solved(problem)
    verify_plan(problem, plan)
    (item,) = plan.adapters
    busiest = max(item.placement, key=lambda replica: len(replica.adapters))
    other = next(replica for replica in item.placement if replica is not busiest)

    def with_placement(*placement):
        return replace(plan, adapters=(replace(item, placement=placement),))

    lost = replace(busiest, adapters=busiest.adapters[1:])
    crowded = replace(busiest, adapters=(*busiest.adapters, *other.adapters))
    faked = replace(busiest, adapters=(HostedAdapter(adapter="nobody", rate_rps=0.5), *busiest.adapters[1:]))
    for placement in ((lost, other), (crowded,), (faked, other), (busiest, other, other)):
        with pytest.raises(SolverLiedError):
            verify_plan(problem, with_placement(*placement))
    with pytest.raises(SolverLiedError, match="places the adapters"):
        verify_plan(problem, replace(plan, adapters=()))
    small = replace(problem.options[0], slots=replace(problem.options[0].slots, bytes_each=1e7))
    with pytest.raises(SolverLiedError, match="a slot has"):
        verify_plan(replace(problem, options=(small,)), plan)


SHARING = [(Isolation.SHARED_PROCESS, 1), (Isolation.SHARED_BACKBONE, 3)]
"""With the processes of a replica that has three slots."""


def with_slots(problem, **changes):
    options = (replace(option, slots=replace(option.slots, **changes)) for option in problem.options)
    return replace(problem, options=tuple(options))


@pytest.mark.parametrize("asked", [Isolation.SHARED_BACKBONE, Isolation.DEDICATED])
def test_the_check_finds_an_adapter_that_shares_more_than_it_may(asked):
    problem = problem_of([0.5, 0.5], [("A", 1.0, 2.0, 2)])
    plan = solved(problem)
    (tenancy,) = problem.tenancies
    apart = replace(tenancy, tenants=(tenancy.tenants[0], replace(tenancy.tenants[1], isolation=asked)))
    with pytest.raises(SolverLiedError, match=f"a1 asks for {asked}"):
        verify_plan(replace(problem, tenancies=(apart,)), plan)


def test_adapters_may_share_less_than_they_would():
    problem = problem_of([0.5, 0.5], [("A", 1.0, 2.0, 1)])
    verify_plan(problem, solved(problem))


@pytest.mark.parametrize(("isolation", "n_processes"), SHARING)
def test_the_check_adds_up_what_a_replica_holds(isolation, n_processes):
    """40 GB hold weights, three slots, and of each process activations, caches and all contexts but the first."""
    caches = (40e9 - 14e9 - 3 * 1e8 - n_processes * 2e9 - (n_processes - 1) * 5e8) / n_processes
    fits = ReplicaBytes(usable=40e9, weights=14e9, activations=2e9, context=5e8, kv=caches)
    problem = problem_of([0.5, 0.5, 0.25], [("A", 1.0, 2.0, 3)], isolation=isolation)
    problem = with_slots(problem, beside=fits, isolation=isolation)
    plan = solved(problem)
    verify_plan(problem, plan)
    for part in ("weights", "activations", "kv", *(("context",) if n_processes > 1 else ())):
        more = replace(fits, **{part: getattr(fits, part) * 1.001})
        with pytest.raises(SolverLiedError, match="its GPUs have"):
            verify_plan(with_slots(problem, beside=more), plan)
    with pytest.raises(SolverLiedError, match="its GPUs have"):
        verify_plan(with_slots(problem, bytes_each=1.01e8), plan)


def test_the_check_finds_room_that_replicas_have_not():
    problem = problem_of([0.5, 0.5, 0.25], [("A", 1.0, 2.0, 3)])
    plan = solved(problem)
    (item,) = plan.adapters
    for stated in ({"slots": 4}, {"slot_bytes": 2e8}, {"isolation": Isolation.SHARED_BACKBONE}):
        told = replace(item, hosts=(replace(item.hosts[0], **stated),))
        with pytest.raises(SolverLiedError, match="whose replicas have others"):
            verify_plan(problem, replace(plan, adapters=(told,)))


def test_what_adapters_cost_adds_up_to_the_plan():
    plan = solved(problem_of([2.0, 0.5, 0.25, 0.25], [("A", 1.0, 2.0, 1), ("B", 1.5, 2.0, 4)]))
    total = sum(share.usd_per_month for share in plan.adapters[0].shares)
    assert total == pytest.approx(plan.cost_usd_per_hour * 730)


def with_other_ways(problem):
    plan = solved(problem)
    return with_alternatives(plan, other_ways(problem, plan, SETTINGS, FRACTIONAL))


def test_a_dearer_fleet_with_more_room_is_found_where_slots_are_too_few():
    kinds = [("A", 1.0, 2.0, 2), ("B", 1.7, 3.5, 3), ("C", 2.6, 6.0, 8)]
    rates = [0.25, 0.25, 1.3, 2.0, 0.5, 2.0]
    plan = solved(problem_of(rates, kinds))  # two of B have the speed and the slots, and no room for all six whole
    assert plan.bound_usd_per_hour == pytest.approx(3.4)
    assert plan.cost_usd_per_hour == pytest.approx(3.6)
    assert solved(problem_of([*rates, 1.0], kinds)).cost_usd_per_hour >= plan.cost_usd_per_hour - 1e-9


def test_one_pool_is_of_the_kind_that_can_be_had():
    kinds = [("A", 1.0, 2.0, 3), ("B", 1.5, 2.0, 3)]
    problem = problem_of([0.5, 0.5, 0.5], kinds)
    stock = {"A": 0, "B": None}
    options = [replace(o, offer=replace(o.offer, available=stock[o.offer.name])) for o in problem.options]
    plan = with_other_ways(replace(problem, options=tuple(options)))
    pool = next(other for other in plan.adapters[0].alternatives if other.way == "one pool")
    assert (pool.cost_usd_per_hour, plan.cost_usd_per_hour) == (pytest.approx(1.5), pytest.approx(1.5))


def test_two_other_ways_are_planned_alike():
    problem = problem_of([2.0, 0.1, 0.1, 0.1], [("A", 1.0, 2.0, 1), ("B", 1.5, 2.0, 3)])
    plan = with_other_ways(problem)
    costs = {other.way: other.cost_usd_per_hour for other in plan.adapters[0].alternatives}
    assert costs == {"dedicated": pytest.approx(4.0), "one pool": pytest.approx(3.0)}
    assert plan.cost_usd_per_hour < min(costs.values())


def test_without_replicas_for_several_there_is_no_pool():
    problem = problem_of([1.0, 1.0], [("A", 1.0, 2.0, 1)])
    plan = with_other_ways(problem)
    pool = plan.adapters[0].alternatives[1]
    assert pool.cost_usd_per_hour is None
    assert pool.reason


@pytest.mark.parametrize(
    ("parts", "what", "instead"),
    [
        ({"shed": Shedding(priority={})}, "constraints.shed", "limits"),
        ({"horizon": Horizon(step_s=3600.0, factors={"s": (1.0, 2.0)})}, "a horizon", "--current"),
        ({"rules": (ReplicaLoss(name="1 spare", count=1, service="s"),)}, "1 spare: .* only copy", "headroom"),
        ({"rules": (InstanceLoss(name="survive one", count=1),)}, "survive one: .* only copy", "headroom"),
        ({"rules": (Survival(name="survive zone", facet=Facet.ZONE),)}, "survive zone: .* only copy", "each place"),
    ],
)
def test_what_does_not_combine_is_refused(parts, what, instead):
    problem = problem_of([1.0], [("A", 1.0, 2.0, 1)], **parts)
    with pytest.raises(InputError, match=what) as raised:
        solved(problem)
    assert instead in (raised.value.hint or "")


def test_a_scenario_is_refused():
    problem = problem_of([1.0], [("A", 1.0, 2.0, 1)])
    launch = Scenario(name="launch", demands=problem.demands)
    with pytest.raises(InputError, match="the scenario launch"):
        solved(replace(problem, rules=(launch,)))


def test_adapters_that_nothing_serves_are_named_together():
    plan = solved(problem_of([5.0, 4.0, 3.0, 2.0, 1.0], [("A", 1.0, 0.0, 2)]))
    assert plan.status is PlanStatus.INFEASIBLE
    assert [conflict.requirement for conflict in plan.conflicts] == ["s: adapters a0, a1, a2 and 2 more"]


def test_slices_are_refused():
    with pytest.raises(InputError, match="slices"):
        solve(problem_of([1.0], [("A", 1.0, 2.0, 1)]), settings=SETTINGS, assignment=Assignment.sliced(2))


def test_rates_must_agree_with_the_demand():
    problem = problem_of([1.0, 2.0], [("A", 1.0, 2.0, 2)])
    (tenancy,) = problem.tenancies
    fewer = replace(tenancy, tenants=(replace(tenancy.tenants[0], rate_rps=0.5), *tenancy.tenants[1:]))
    with pytest.raises(InputError, match="req/s"):
        solved(replace(problem, tenancies=(fewer,)))
