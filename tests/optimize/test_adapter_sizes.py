"""Adapters whose requests come in sizes: all fleets are tried on small cases, and one route for all is no better."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.adapter_groups import group_adapters
from planner.domain.adapters import Adapter, AdapterSlots, Isolation, Tenancy, Tenant
from planner.domain.energy import Energy, Site
from planner.domain.hardware import Market, Offer
from planner.domain.plan import PlanStatus
from planner.domain.problem import FleetProblem, Goal, Limit, Measure, Resource, ServingOption
from planner.domain.workload import Bucket, Demand
from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, find_conflicts, solve, verify_plan
from planner.optimize import adapters as adapters_module
from planner.optimize.adapter_bound import Proof, Whole
from planner.optimize.backends import solve_milp
from planner.optimize.coarser import alike_sizes, has_sizes, on_one_route, with_kin
from planner.optimize.milp import MilpBuilder
from planner.optimize.termination import Termination

SETTINGS = SolverSettings(time_limit_s=20.0, relative_gap=0.0)
FRACTIONAL = Assignment.fractional()


def option_of(name, price, speeds, count):
    """Return an option on an offer of one GPU without limit."""
    given = {"provider": "p", "instance_type": name, "region": "r", "market": Market.ON_DEMAND, "gpu": name}
    slots = AdapterSlots(
        count=count,
        bytes_each=0.0 if count == 1 else 1e8,
        isolation=Isolation.DEDICATED if count == 1 else Isolation.SHARED_PROCESS,
    )
    return ServingOption(
        service="s",
        offer=Offer(name=name, gpus_per_instance=1, price_usd_per_hour=price, **given),
        gpus_per_replica=1,
        throughput_rps=np.array(speeds, dtype=float),
        slots=slots,
    )


def problem_of(rates, kinds, parts, *, n_alone=16, **given_parts):
    """Return adapters with `rates` on `kinds`: (name, price, req/s of a replica by size, slots); sizes in `parts`."""
    adapters = [
        Adapter(name=f"a{i}", rank=8, target_modules=("q_proj",), rate_rps=rate) for i, rate in enumerate(rates)
    ]
    groups = group_adapters(adapters, n_alone=n_alone)
    tenants = tuple(
        Tenant(name=name, rate_rps=rates[int(name[1:])], memory_bytes=1e8, group=index)
        for index, group in enumerate(groups)
        for name in group.names
    )
    buckets = tuple(
        Bucket(row=i, column=size, group=i, rate_rps=group.total_rate_rps * part)
        for i, group in enumerate(groups)
        for size, part in enumerate(parts)
    )
    options = tuple(option_of(name, price, [*speeds] * len(groups), count) for name, price, speeds, count in kinds)
    return FleetProblem(
        demands=(Demand(service="s", buckets=buckets),),
        options=options,
        tenancies=(Tenancy(service="s", tenants=tenants),),
        **given_parts,
    )


def solved(problem):
    return solve(problem, settings=SETTINGS, assignment=FRACTIONAL)


def holds(replicas, rates, parts, paces=None):
    """Return whether these replicas serve the adapters, whichever of them each holds: every way to fill them is tried.

    replicas : (speeds by size, slots) of each.
    paces : by adapter, what speeds are multiplied by.
    """
    paces = paces or [1.0] * len(rates)
    n, n_sizes = len(rates), len(parts)
    fillings = (itertools.combinations(range(n), min(slots, n)) for _, slots in replicas)
    for filling in itertools.product(*fillings):
        flows = [
            (host, adapter, size)
            for host, held in enumerate(filling)
            for adapter in held
            for size in range(n_sizes)
            if replicas[host][0][size] > 0
        ]
        asked = {
            (adapter, size): row for row, (adapter, size) in enumerate(itertools.product(range(n), range(n_sizes)))
        }
        hosts = np.array([host for host, _, _ in flows])
        builder = MilpBuilder()
        flow = builder.add_columns("flow", len(flows), cost=1.0)
        speed = np.array([replicas[host][0][size] * paces[adapter] for host, adapter, size in flows])
        builder.add_rows("busy", rows=hosts, columns=flow, values=1.0 / speed, upper=np.ones(len(replicas)))
        want = np.array([rates[adapter] * parts[size] for adapter, size in asked])
        rows = np.array([asked[adapter, size] for _, adapter, size in flows])
        builder.add_rows("served", rows=rows, columns=flow, values=1.0, lower=want, upper=want)
        if len(set(rows.tolist())) == len(asked):
            found = solve_milp(builder.freeze(), SETTINGS)
            if found.termination is not Termination.INFEASIBLE:
                return True
    return False


def cheapest_of_all(rates, kinds, parts, most, paces=None):
    """Return the least price of up to `most` replicas that serve these adapters, splitting them at will."""
    fleets = [
        chosen
        for count in range(1, most + 1)
        for chosen in itertools.combinations_with_replacement(range(len(kinds)), count)
    ]
    for chosen in sorted(fleets, key=lambda fleet: sum(kinds[k][1] for k in fleet)):
        if holds([(kinds[k][2], kinds[k][3]) for k in chosen], rates, parts, paces):
            return sum(kinds[k][1] for k in chosen)
    return math.inf


SMALL = st.lists(st.sampled_from([0.3, 0.5, 1.0, 1.4]), min_size=1, max_size=3)
PARTS = st.sampled_from([(0.5, 0.5), (0.8, 0.2), (0.9, 0.1)])
KINDS = st.sampled_from(
    [
        [("A", 1.0, (2.0, 0.5), 1), ("B", 2.5, (4.0, 3.0), 2)],
        [("A", 1.0, (2.0, 0.0), 2), ("B", 2.0, (2.0, 2.0), 2)],
        [("A", 1.0, (2.0, 0.2), 3), ("B", 3.0, (3.0, 3.0), 3)],
    ]
)


@given(SMALL, KINDS, PARTS)
def test_the_bound_is_below_every_fleet_and_no_plan_is_below_the_cheapest(rates, kinds, parts):
    plan = solved(problem_of(rates, kinds, parts))
    least = cheapest_of_all(rates, kinds, parts, most=4)
    assert plan.bound_usd_per_hour <= least + 1e-6
    if least < math.inf:
        assert plan.cost_usd_per_hour >= least - 1e-6


@given(
    st.lists(st.sampled_from([0.05, 0.3, 0.5, 1.0, 2.5]), min_size=1, max_size=8),
    KINDS,
    PARTS,
    st.sampled_from([0, 16]),
)
def test_routes_by_size_never_cost_more_than_one_route(rates, kinds, parts, n_alone):
    problem = problem_of(rates, kinds, parts, n_alone=n_alone)
    together = on_one_route(problem).problem
    assert has_sizes(problem)
    assert not has_sizes(together)
    apart, one = solved(problem), solved(together)
    assert apart.cost_usd_per_hour <= one.cost_usd_per_hour + 1e-9
    assert apart.bound_usd_per_hour <= one.bound_usd_per_hour + 1e-6


@given(st.floats(0.2, 9.0), st.lists(st.tuples(st.floats(0.5, 4), st.floats(0.1, 4)), min_size=1, max_size=3), PARTS)
def test_one_adapter_that_costs_nothing_is_planned_like_the_model_itself(rate, speeds, parts):
    kinds = [(f"K{i}", 1.0 + i, speed, 1) for i, speed in enumerate(speeds)]
    problem = problem_of([rate], kinds, parts)
    plain = replace(problem, tenancies=(), options=tuple(replace(option, slots=None) for option in problem.options))
    bare = tuple(replace(bucket, group=None) for bucket in problem.demands[0].buckets)
    plain = replace(plain, demands=(replace(problem.demands[0], buckets=bare),))
    assert solved(problem).cost_usd_per_hour == pytest.approx(solved(plain).cost_usd_per_hour)


def test_long_and_short_requests_of_one_adapter_go_to_different_replicas():
    # Short ones are cheap on A, which is no good for long ones; one route for both would need B for all of them.
    kinds = [("A", 1.0, (2.0, 0.1), 2), ("B", 4.0, (2.0, 2.0), 2)]
    problem = problem_of([2.0, 2.0], kinds, (0.5, 0.5))
    plan = solved(problem)
    assert plan.cost_usd_per_hour == pytest.approx(5.0)
    assert solved(on_one_route(problem).problem).cost_usd_per_hour == pytest.approx(8.0)
    weights = {(route.group, route.column): route.weights for route in plan.routing}
    assert weights == {(g, size): {"AB"[size]: 1.0} for g in range(2) for size in range(2)}
    (item,) = plan.adapters
    assert item.groups == 2
    held = {(r.option, h.adapter): h.by_size_rps for r in item.placement for h in r.adapters}
    assert held == {
        (option, name): pytest.approx((1.0, 0.0) if option == "A" else (0.0, 1.0))
        for option in "AB"
        for name in ("a0", "a1")
    }


def test_the_check_finds_sizes_that_do_not_hold():
    kinds = [("A", 1.0, (2.0, 0.1), 2), ("B", 4.0, (2.0, 2.0), 2)]
    problem = problem_of([2.0, 2.0], kinds, (0.5, 0.5))
    plan = solved(problem)
    verify_plan(problem, plan)
    (item,) = plan.adapters

    def with_sizes(*sizes):
        first = replace(item.placement[0].adapters[0], by_size_rps=sizes)
        replica = replace(item.placement[0], adapters=(first, *item.placement[0].adapters[1:]))
        return replace(plan, adapters=(replace(item, placement=(replica, *item.placement[1:])),))

    for sizes, what in (((), "1 sizes"), ((0.0, 1.0), "are served in bucket"), ((2.0, -1.0), "nothing is served")):
        with pytest.raises(SolverLiedError, match=what):
            verify_plan(problem, with_sizes(*sizes))
    regrouped = replace(item, shares=tuple(replace(share, group=1 - share.group) for share in item.shares))
    with pytest.raises(SolverLiedError, match="another group"):
        verify_plan(problem, replace(plan, adapters=(regrouped,)))


def test_a_group_has_the_rates_of_its_adapters_in_all_sizes_together():
    problem = problem_of([2.0, 2.0], [("A", 1.0, (2.0, 2.0), 2)], (0.5, 0.5))
    first, *others = problem.demands[0].buckets
    wrong = replace(problem.demands[0], buckets=(replace(first, rate_rps=1.5), *others))
    with pytest.raises(InputError, match="and the group"):
        solved(replace(problem, demands=(wrong,)))


def test_a_process_that_has_half_of_a_replica_needs_two_for_its_sizes_together():
    # 0.3 of a replica in each size: no size needs more than its half, both do; and then a slot is missing for a1.
    problem = problem_of([1.2, 0.1], [("A", 1.0, (2.0, 2.0), 2)], (0.5, 0.5))
    turns = AdapterSlots(count=2, bytes_each=1e8, isolation=Isolation.SHARED_BACKBONE)
    problem = replace(problem, options=tuple(replace(option, slots=turns) for option in problem.options))
    plan = solved(problem)
    assert plan.bound_usd_per_hour == pytest.approx(2.0)
    assert plan.cost_usd_per_hour == pytest.approx(2.0)


def together(problem, parts):
    """Return the problem whose buckets stand for all sizes of a group, each option as fast as in their mix."""
    one = on_one_route(problem)
    n_groups = len(one.problem.demands[0].buckets)
    options = tuple(
        replace(option, loose_rps=one.made_of[id(option)].throughput_rps.reshape(n_groups, len(parts)).max(axis=1))
        for option in one.problem.options
    )
    return replace(one.problem, options=options)


@given(SMALL, KINDS, PARTS)
def test_where_sizes_are_put_together_the_bound_holds_for_plans_that_tell_them_apart(rates, kinds, parts):
    least = cheapest_of_all(rates, kinds, parts, most=4)
    plan = solved(together(problem_of(rates, kinds, parts), parts))
    assert plan.bound_usd_per_hour <= least + 1e-6
    if least < math.inf:
        assert plan.cost_usd_per_hour >= least - 1e-6


@given(
    st.lists(st.tuples(st.sampled_from([0.3, 0.5]), st.sampled_from([0.6, 1.0, 1.2])), min_size=1, max_size=3),
    KINDS,
    PARTS,
)
def test_adapters_with_other_objectives_are_planned_as_the_strictest_and_bounded_as_the_loosest(drawn, kinds, parts):
    rates, paces = [rate for rate, _ in drawn], [pace for _, pace in drawn]
    problem = problem_of(rates, kinds, parts, n_alone=0)
    options = tuple(
        replace(o, throughput_rps=o.throughput_rps * min(paces), loose_rps=o.throughput_rps * max(paces))
        for o in problem.options
    )
    plan = solved(replace(problem, options=options))
    least = cheapest_of_all(rates, kinds, parts, most=4, paces=paces)
    assert plan.bound_usd_per_hour <= least + 1e-6
    if least < math.inf:
        assert plan.cost_usd_per_hour >= least - 1e-6


MIXED = [("A", 1.0, (2.0, 0.1), 2), ("B", 4.0, (2.0, 2.0), 2)]
STEPS = (Measure.COST, Measure.GPUS)


@pytest.mark.parametrize("stages", [STEPS, STEPS[::-1]])
def test_nothing_is_proven_of_objectives_where_sizes_are_put_together(stages):
    goal = Goal(stages=tuple({measure: 1.0} for measure in stages))
    problem = replace(problem_of([2.0, 2.0], MIXED, (0.5, 0.5)), goal=goal)
    apart, joined = solved(problem), solved(together(problem, (0.5, 0.5)))
    assert apart.status is PlanStatus.OPTIMAL
    assert joined.status is PlanStatus.FEASIBLE
    assert [item.bound for item in joined.objectives] == [None, None]


def test_one_route_proves_nothing_of_plans_over_sizes():
    kinds = [("A", 1.0, (2.0, 0.1), 2), ("C", 4.0, (2.0, 2.0), 2)]
    goal = Goal(stages=({Measure.GPUS: 1.0}, {Measure.COST: 1.0}))
    plan = solved(replace(problem_of([1.0, 1.4, 0.3], kinds, (0.8, 0.2)), goal=goal))
    gpus, cost = plan.objectives  # two replicas at 5.0 serve them, which no route for all sizes does
    assert gpus.value == 2.0
    assert cost.bound <= 5.0 + 1e-6
    assert (plan.status is PlanStatus.OPTIMAL) == (cost.value <= 5.0 + 1e-6)


def test_what_has_no_plan_together_may_have_one_apart():
    problem = replace(problem_of([2.0, 2.0], MIXED, (0.5, 0.5)), limits=(budget(6.0),))
    assert solved(problem).cost_usd_per_hour == pytest.approx(5.0)
    joined = solved(together(problem, (0.5, 0.5)))
    assert (joined.status, [warning.code for warning in joined.warnings]) == (PlanStatus.UNKNOWN, ["W413"])
    for goal in (None, Goal(stages=({Measure.COST: 1.0},))):
        again = solved(replace(together(problem, (0.5, 0.5)), goal=goal))
        assert again.status is PlanStatus.UNKNOWN


def test_more_processes_that_take_turns_do_not_stand_in_for_fewer():
    problem = problem_of([1.0, 1.0, 2.0], [(f"A{n}", 1.0, (2.0,), n) for n in (2, 3)], (1.0,))
    offer = problem.options[0].offer
    turns = tuple(
        replace(o, offer=offer, slots=replace(o.slots, isolation=Isolation.SHARED_BACKBONE)) for o in problem.options
    )
    assert solved(replace(problem, options=turns)).cost_usd_per_hour == pytest.approx(2.0)


def test_energy_without_a_price_leaves_the_search_over_sizes_as_it_is(monkeypatch):
    problem = problem_of([2.0, 2.0, 0.5], MIXED, (0.5, 0.5))

    class UsedError(Exception):
        pass

    def over_sizes(*_args, **_given):
        raise UsedError

    monkeypatch.setattr(adapters_module, "_with_sizes", over_sizes)
    unpriced = Energy(sites={("p", "p"): Site(usd_per_kwh=0.0, carbon_g_per_kwh=(400.0,))})
    with pytest.raises(UsedError):
        solved(replace(problem, energy=unpriced))


def test_a_bound_is_not_that_of_the_sizes_together():
    kinds = [("A", 1.0, (2.0, 0.1), 2), ("B", 4.0, (2.0, 2.0), 2)]
    problem = problem_of([2.0, 2.0], kinds, (0.5, 0.5))
    plan = solved(together(problem, (0.5, 0.5)))
    assert plan.cost_usd_per_hour == pytest.approx(8.0)
    assert plan.bound_usd_per_hour <= 5.0
    assert plan.status is PlanStatus.FEASIBLE
    with pytest.raises(InputError, match="cheapest requests"):
        solved(replace(problem, options=tuple(replace(o, loose_rps=o.throughput_rps / 2) for o in problem.options)))


@given(SMALL, KINDS, PARTS)
def test_every_relaxation_is_below_the_next_and_none_above_a_plan(rates, kinds, parts):
    problem = problem_of(rates, kinds, parts)
    proof, bounds = Proof(with_kin(problem).problem, FRACTIONAL), []
    for whole in Whole:
        proof.relax(whole, SETTINGS)
        bounds.append(proof.total_usd_per_hour)
    assert bounds == sorted(bounds)
    cost = solved(problem).cost_usd_per_hour
    assert bounds[-1] <= cost + 1e-6
    fresh = Proof(with_kin(problem).problem, FRACTIONAL)
    fresh.relax(Whole.REPLICAS, SETTINGS, known_usd_per_hour=bounds[-1])  # nothing is cheaper than the cheapest
    assert fresh.total_usd_per_hour == pytest.approx(bounds[-1])
    fresh = Proof(with_kin(problem).problem, FRACTIONAL)
    fresh.relax(Whole.REPLICAS, SETTINGS, known_usd_per_hour=2 * bounds[-1])
    assert fresh.total_usd_per_hour == pytest.approx(bounds[-1])


def test_sizes_whose_loads_are_in_proportion_lose_nothing_by_going_together():
    kinds = [("A", 1.0, (4.0, 0.2, 2.0, 0.1), 2), ("B", 4.0, (4.0, 4.0, 2.0, 2.0), 2)]
    problem = problem_of([2.0, 2.0], kinds, (0.25, 0.25, 0.25, 0.25))
    demand = problem.demands[0]
    assert alike_sizes(demand, range(4), problem.options, 2).tolist() == [0, 1, 0, 1]
    assert alike_sizes(demand, range(4), problem.options, 4).tolist() == [0, 1, 2, 3]
    few, all_apart = (Proof(with_kin(problem, sizes=n).problem, FRACTIONAL) for n in (2, None))
    for proof in (few, all_apart):
        proof.relax(Whole.REPLICAS, SETTINGS)
    assert few.total_usd_per_hour == pytest.approx(all_apart.total_usd_per_hour)


def test_many_adapters_with_sizes_have_homes_near_to_the_bound():
    rates = [8.0 / (rank + 4.0) for rank in range(300)]
    kinds = [
        (name, price, [speed * each for each in speeds], count)
        for name, price, speeds in (("A", 3.7, (6, 3, 1, 0.3)), ("B", 11.0, (20, 12, 8, 3)))
        for count, speed in ((1, 1.0), (32, 0.95), (128, 0.85))
    ]
    problem = problem_of(rates, [(f"{k}{i}", *rest) for i, (k, *rest) in enumerate(kinds)], (0.4, 0.3, 0.2, 0.1))
    plan = solve(problem, settings=replace(SETTINGS, relative_gap=1e-3), assignment=FRACTIONAL)
    verify_plan(problem, plan)
    assert plan.gap < 0.06
    (item,) = plan.adapters
    assert item.added_replicas == 0


def test_a_budget_too_small_for_adapters_is_told_with_one_that_does():
    kinds = [("A", 1.0, (2.0, 0.1), 2), ("B", 4.0, (2.0, 2.0), 2)]
    problem = problem_of([2.0, 2.0], kinds, (0.5, 0.5), limits=(budget(3.0),))
    assert solved(problem).status is PlanStatus.INFEASIBLE
    (conflict,) = find_conflicts(problem, settings=SETTINGS)
    assert conflict.relaxed == pytest.approx(5.0)
    assert solved(replace(problem, limits=(budget(conflict.relaxed),))).cost_usd_per_hour == pytest.approx(5.0)


def budget(bound):
    return Limit(name="budget", resource=Resource.USD_PER_HOUR, bound=bound)
