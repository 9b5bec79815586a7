"""Adapters together with prices beside the rent, budgets, caps and objectives: every fleet is tried on small cases."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from adapter_best_fleet import Asked, Kind, best, rent
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.domain.adapter_groups import group_adapters
from planner.domain.adapters import Adapter, AdapterSlots, Isolation, Tenancy, Tenant
from planner.domain.egress import Egress
from planner.domain.energy import Energy, Site
from planner.domain.hardware import Market, Offer
from planner.domain.plan import PlanStatus
from planner.domain.problem import (
    ChangeCost,
    EnergyBudget,
    Facet,
    FleetProblem,
    Goal,
    Limit,
    Measure,
    Resource,
    Running,
    ServingOption,
    ShareCap,
)
from planner.domain.workload import Bucket, Demand
from planner.errors import SolverLiedError
from planner.optimize import Assignment, SolverSettings, price_of_limits, solve, verify_plan
from planner.optimize.pareto import pareto_front

SETTINGS = SolverSettings(time_limit_s=20.0, relative_gap=0.0)
FRACTIONAL = Assignment.fractional()
TOKENS = (1000.0, 4000.0)
"""Of requests, by size."""


def option_of(kind, n_groups):
    slots = AdapterSlots(
        count=kind.slots,
        bytes_each=0.0 if kind.slots == 1 else 1e8,
        isolation=Isolation.DEDICATED if kind.slots == 1 else Isolation.SHARED_PROCESS,
    )
    where = {"provider": kind.place, "region": kind.place, "market": Market.ON_DEMAND}
    offer = Offer(
        name=kind.name,
        instance_type=kind.name,
        gpu=kind.name,
        gpus_per_instance=1,
        price_usd_per_hour=kind.price,
        **where,
    )
    return ServingOption(
        service="s",
        offer=offer,
        gpus_per_replica=1,
        throughput_rps=np.array([*(kind.speed if isinstance(kind.speed, tuple) else (kind.speed,))] * n_groups),
        power_w=1000 * (kind.idle_kw + kind.extra_kw),
        idle_power_w=1000 * kind.idle_kw,
        busy_power_w=1000 * (kind.idle_kw + kind.extra_kw),
        slots=slots,
    )


def problem_of(rates, kinds, *, n_alone=16, parts=(1.0,), **given_parts):
    """Return adapters `a0`, `a1`, ... with `rates` on `kinds`, whose places have the electricity that they state."""
    made = [Adapter(name=f"a{i}", rank=8, target_modules=("q_proj",), rate_rps=rate) for i, rate in enumerate(rates)]
    groups = group_adapters(made, n_alone=n_alone)
    tenants = tuple(
        Tenant(name=name, rate_rps=rates[int(name[1:])], memory_bytes=1e8, group=index)
        for index, group in enumerate(groups)
        for name in group.names
    )
    buckets = tuple(
        Bucket(
            row=i,
            column=size,
            group=i,
            rate_rps=group.total_rate_rps * part,
            input_tokens=TOKENS[size],
            output_tokens=0.0,
        )
        for i, group in enumerate(groups)
        for size, part in enumerate(parts)
    )
    sites = {
        (kind.place, kind.place): Site(usd_per_kwh=kind.beside_per_kw, carbon_g_per_kwh=(400.0,)) for kind in kinds
    }
    return FleetProblem(
        demands=(Demand(service="s", buckets=buckets),),
        options=tuple(option_of(kind, len(groups)) for kind in kinds),
        tenancies=(Tenancy(service="s", tenants=tenants),),
        **({"energy": Energy(sites=sites)} | given_parts),
    )


def solved(problem):
    return solve(problem, settings=SETTINGS, assignment=FRACTIONAL)


def beside(plan):
    return (plan.energy_usd_per_hour or 0.0) + (plan.egress_usd_per_hour or 0.0) + (plan.change_usd_per_hour or 0.0)


def check_against_all(problem, rates, kinds, asked):
    """The bound is below the best fleet of all, the plan is none better, and both agree where the gap is closed."""
    plan = solved(problem)
    least = best(rates, kinds, asked, rent(kinds))
    if plan.cost_usd_per_hour is None:
        # Placing whole adapters may fail where a fleet exists; a proof that there is none must be right.
        assert least is None or plan.status is not PlanStatus.INFEASIBLE
        return plan, least
    is_larger = sum(row.replicas for row in plan.allocation) > asked.most
    if least is None:
        assert is_larger
        return plan, least
    assert plan.bound_usd_per_hour + beside(plan) <= least[0] + 1e-6
    assert is_larger or plan.cost_usd_per_hour + beside(plan) >= least[0] - 1e-6
    return plan, least


SMALL = st.lists(st.sampled_from([0.3, 0.5, 1.0, 1.4]), min_size=1, max_size=3)
ALONE = st.sampled_from([0, 16])
A = Kind(name="A", price=1.0, speed=2.0, slots=2, place="p", idle_kw=0.1, extra_kw=0.5, beside_per_kw=1.0)
B = Kind(name="B", price=0.8, speed=1.5, slots=1, place="q", idle_kw=0.3, extra_kw=0.9, beside_per_kw=2.0)
C = Kind(name="C", price=1.9, speed=3.0, slots=3, place="q", idle_kw=0.2, extra_kw=0.4, beside_per_kw=2.0)


@settings(max_examples=12)
@given(SMALL, st.sampled_from([(A, B), (A, C), (B, C)]), ALONE)
def test_priced_electricity_counts_with_the_rent(rates, kinds, n_alone):
    check_against_all(problem_of(rates, kinds, n_alone=n_alone), rates, kinds, Asked(most=3))


def test_dear_electricity_decides_where_adapters_go():
    # Rent alone says B (0.80 for one); with 2 USD per kWh its 0.3 + 0.9 * 0.5/1.5 kW cost more than A's.
    kinds = (replace(A, beside_per_kw=1.0), replace(B, beside_per_kw=2.0))
    plan = solved(problem_of([0.5], kinds))
    assert {row.option for row in plan.allocation} == {"A"}
    assert plan.energy_usd_per_hour == pytest.approx(0.1 + 0.5 * 0.5 / 2.0)
    assert plan.gap == pytest.approx(0.0)
    free = tuple(replace(kind, beside_per_kw=0.0) for kind in kinds)
    assert {row.option for row in solved(problem_of([0.5], free)).allocation} == {"B"}


@settings(max_examples=12)
@given(SMALL, st.sampled_from([0.4, 0.6, 0.9, 1.3]), ALONE)
def test_a_budget_of_energy_is_kept(rates, most_kw, n_alone):
    kinds = tuple(replace(kind, beside_per_kw=0.0) for kind in (A, B))
    budget = EnergyBudget(name="energy", measure=Measure.ENERGY, bound=most_kw)
    problem = problem_of(rates, kinds, n_alone=n_alone, rules=(budget,))
    plan, least = check_against_all(problem, rates, kinds, Asked(most=3, most_kw=most_kw))
    if n_alone and least is not None:  # every adapter is a group of its own, so little is lost by placing it
        assert plan.cost_usd_per_hour is None or plan.mean_power_w <= 1000 * most_kw * (1 + 1e-5)


def test_a_budget_of_carbon_moves_adapters_and_the_check_finds_when_it_does_not_hold():
    kinds = (replace(A, price=2.0, beside_per_kw=0.0), replace(B, speed=2.0, slots=2, beside_per_kw=0.0))
    problem = problem_of([0.5, 0.5], kinds)
    cheap = solved(problem)
    assert {row.option for row in cheap.allocation} == {"B"}
    kept = replace(problem, rules=(EnergyBudget(name="carbon", measure=Measure.CARBON, bound=0.2),))
    plan = solved(kept)
    assert {row.option for row in plan.allocation} == {"A"}
    assert plan.carbon_kg_per_hour == pytest.approx(0.4 * (0.1 + 0.5 / 2))
    with pytest.raises(SolverLiedError, match="carbon"):
        verify_plan(kept, cheap)


@settings(max_examples=12)
@given(SMALL, st.sampled_from([0.5, 0.6, 0.75]), ALONE)
def test_no_place_serves_more_than_its_part(rates, part, n_alone):
    kinds = tuple(replace(kind, beside_per_kw=0.0) for kind in (A, C))
    cap = ShareCap(name="share of one provider", facet=Facet.PROVIDER, bound=part)
    problem = problem_of(rates, kinds, n_alone=n_alone, rules=(cap,))
    plan, _ = check_against_all(problem, rates, kinds, Asked(most=3, caps={"p": part, "q": part}))
    # Adapters are split just as the programme says, so that a plan is found wherever nothing else is limited.
    assert plan.cost_usd_per_hour is not None


def test_many_adapters_keep_a_cap_that_no_whole_adapter_fits():
    rates = [0.05 + 0.01 * i for i in range(30)]
    kinds = (replace(A, slots=16, beside_per_kw=0.0), replace(C, slots=16, beside_per_kw=0.0))
    cap = ShareCap(name="share of one provider", facet=Facet.PROVIDER, bound=0.5)
    plan = solved(problem_of(rates, kinds, n_alone=4, rules=(cap,)))
    served = {row.option: row.rate_rps for row in plan.allocation}
    assert served["A"] == pytest.approx(sum(rates) / 2)
    assert served["C"] == pytest.approx(sum(rates) / 2)


@settings(max_examples=12)
@given(SMALL, ALONE, st.sampled_from([0.0, 0.3]))
def test_traffic_to_users_elsewhere_counts_with_the_rent(rates, n_alone, here):
    usd_per_gb, size = 0.5, 400.0
    gb_per_rps = 3600 * TOKENS[0] * size / 1e9
    kinds = tuple(
        replace(kind, beside_per_kw=0.0, beside_per_rps=gb_per_rps * usd_per_gb * away)
        for kind, away in ((A, 1.0 - here), (C, here))
    )
    users = {"s": {"p": here, "q": 1.0 - here}}
    egress = Egress(users=users, usd_per_gb=usd_per_gb, bytes_per_token=size)
    problem = problem_of(rates, kinds, n_alone=n_alone, egress=egress)
    check_against_all(problem, rates, kinds, Asked(most=3))


SIZED = st.sampled_from(
    [
        (replace(A, speed=(2.0, 0.5)), replace(C, speed=(3.0, 2.5))),
        (replace(A, speed=(2.0, 0.0)), replace(B, speed=(1.5, 1.5), slots=2)),
    ]
)


@settings(max_examples=10)
@given(st.lists(st.sampled_from([0.3, 0.5, 1.0]), min_size=1, max_size=2), SIZED, ALONE, st.sampled_from([0.5, 0.8]))
def test_long_and_short_requests_have_prices_of_their_own(rates, kinds, n_alone, short):
    parts = (short, 1.0 - short)
    away = tuple(3600 * tokens * 400.0 / 1e9 * 2.0 for tokens in TOKENS)
    kinds = (replace(kinds[0], beside_per_rps=away), kinds[1])  # all users are where the second kind is
    egress = Egress(users={"s": {"q": 1.0}}, usd_per_gb=2.0, bytes_per_token=400.0)
    problem = problem_of(rates, kinds, n_alone=n_alone, parts=parts, egress=egress)
    check_against_all(problem, rates, kinds, Asked(most=3, parts=parts))


@settings(max_examples=10)
@given(st.lists(st.sampled_from([0.3, 0.5, 1.0]), min_size=1, max_size=2), SIZED, ALONE, st.sampled_from([0.7, 0.85]))
def test_caps_hold_for_all_sizes_together(rates, kinds, n_alone, part):
    parts = (0.6, 0.4)
    kinds = tuple(replace(kind, beside_per_kw=0.0) for kind in kinds)
    cap = ShareCap(name="share of one provider", facet=Facet.PROVIDER, bound=part)
    problem = problem_of(rates, kinds, n_alone=n_alone, parts=parts, rules=(cap,))
    plan, _ = check_against_all(problem, rates, kinds, Asked(most=3, parts=parts, caps={"p": part, "q": part}))
    assert plan.cost_usd_per_hour is not None


GOALS = (
    ((Measure.GPUS, Measure.COST), lambda kinds: lambda fleet, _: (_n(fleet), _rent(kinds, fleet))),
    ((Measure.POWER,), lambda kinds: lambda fleet, _: (_kw(kinds, fleet), _rent(kinds, fleet))),
    ((Measure.COST, Measure.POWER), lambda kinds: lambda fleet, _: (_rent(kinds, fleet), _kw(kinds, fleet))),
)


def _n(fleet):
    return sum(fleet.values())


def _rent(kinds, fleet):
    return sum(kinds[k].price * n for k, n in fleet.items())


def _kw(kinds, fleet):
    return sum((kinds[k].idle_kw + kinds[k].extra_kw) * n for k, n in fleet.items())


@settings(max_examples=15)
@given(SMALL, st.sampled_from([(A, B), (A, C), (B, C)]), ALONE, st.sampled_from(GOALS))
def test_objectives_come_one_after_the_other(rates, kinds, n_alone, goal):
    kinds = tuple(replace(kind, beside_per_kw=0.0) for kind in kinds)
    measures, values = goal
    aim = Goal(stages=tuple({measure: 1.0} for measure in measures))
    plan = solved(problem_of(rates, kinds, n_alone=n_alone, goal=aim))
    least = best(rates, kinds, Asked(most=3), values(kinds))
    found = tuple(item.value for item in plan.objectives)
    assert plan.objectives[0].bound <= plan.objectives[0].value + 1e-9
    if least is not None:
        assert plan.objectives[0].bound <= least[0] + 1e-6
        assert [round(value, 6) for value in found] >= [round(value, 6) for value in least]
        if plan.objectives[0].value <= least[0] + 1e-6 and plan.objectives[1].bound is not None:
            assert plan.objectives[1].bound <= least[1] + 1e-6


def test_fewest_gpus_are_found_though_they_cost_more():
    kinds = (replace(A, beside_per_kw=0.0), replace(C, price=5.0, beside_per_kw=0.0))
    problem = problem_of([1.0, 1.0, 1.0], kinds)
    assert solved(problem).cost_usd_per_hour == pytest.approx(2.0)
    plan = solved(replace(problem, goal=Goal(stages=({Measure.GPUS: 1.0},))))
    assert [(item.minimise, item.value, item.bound) for item in plan.objectives] == [
        ("gpus", pytest.approx(1.0), pytest.approx(1.0)),
        ("cost", pytest.approx(5.0), pytest.approx(5.0)),
    ]
    assert (plan.status, plan.gap) == (PlanStatus.OPTIMAL, pytest.approx(0.0))


def test_after_an_objective_that_placing_costs_nothing_is_proven_of_the_next():
    # Three adapters of 1.3 fit two replicas by load, and two slots each; whole they take three.
    kinds = (replace(A, beside_per_kw=0.0),)
    aim = Goal(stages=({Measure.GPUS: 1.0},))
    problem = problem_of([1.3, 1.3, 1.3, 0.1], kinds, goal=aim)
    plan = solved(problem)
    gpus, cost = plan.objectives
    assert (gpus.value, gpus.bound) == (pytest.approx(3.0), pytest.approx(2.0))
    assert (cost.bound, plan.gap, plan.status) == (None, None, PlanStatus.FEASIBLE)


def test_a_front_of_cost_and_gpus_has_both_ends():
    kinds = (replace(A, beside_per_kw=0.0), replace(C, price=5.0, beside_per_kw=0.0))
    problem = problem_of([1.0, 1.0, 1.0], kinds)
    found = pareto_front(problem, (Measure.COST, Measure.GPUS), n_points=3, settings=SETTINGS, assignment=FRACTIONAL)
    ends = [(point.values[Measure.COST], point.values[Measure.GPUS]) for point in found]
    assert ends == [(pytest.approx(2.0), 2), (pytest.approx(5.0), 1)]


def test_what_a_limit_costs_is_told_of_whole_adapters():
    # By load two replicas would do, and whole adapters take three: the limit of three costs nothing.
    three = Limit(name="gpus", resource=Resource.GPUS, bound=3.0)
    problem = problem_of([1.3, 1.3, 1.3, 0.1], (replace(A, beside_per_kw=0.0),), limits=(three,))
    plan = solved(problem)
    assert (plan.cost_usd_per_hour, plan.bound_usd_per_hour) == (pytest.approx(3.0), pytest.approx(2.0))
    assert price_of_limits(problem, plan, SETTINGS) == {"gpus": 0.0}


def test_a_limit_of_power_is_kept():
    kinds = tuple(replace(kind, beside_per_kw=0.0) for kind in (A, B))
    limit = Limit(name="power", resource=Resource.WATTS, bound=700.0)
    plan = solved(problem_of([0.5], kinds, limits=(limit,)))
    assert {row.option for row in plan.allocation} == {"A"}


def running_of(kind, replicas, merged=None):
    """Return so many replicas of `kind` that run today, with these adapters in their weights."""
    slots = option_of(kind, 1).slots
    return Running(
        service="s", offer=kind.name, option=kind.name, gpus_per_replica=1, replicas=replicas, slots=slots,
        merged=merged or {},
    )  # fmt: skip


@settings(max_examples=15)
@given(SMALL, ALONE, st.sampled_from([{}, {"a0": 1}, {"a0": 1, "a1": 1}, {"gone": 2}]), st.integers(0, 2))
def test_changes_count_every_replica_and_what_is_merged_into_it(rates, n_alone, merged, shared):
    kinds = tuple(replace(kind, beside_per_kw=0.0) for kind in (A, B))
    running = ()
    if shared:
        running += (running_of(A, shared),)
    if merged:
        running += (running_of(B, sum(merged.values()), merged),)
    change = ChangeCost(running=running, instances={}, start_usd=0.9, stop_usd=0.2, horizon_hours=2.0)

    def cost(hosts):
        wanted = Counter(f"a{held[0]}" for k, held in hosts if k == 1)
        on_a = sum(1 for k, _ in hosts if k == 0)
        kept = (wanted & Counter(merged)).total() + min(on_a, shared)
        stopped = sum(merged.values()) + shared - kept
        return (0.9 * (len(hosts) - kept) + 0.2 * stopped) / 2.0

    problem = problem_of(rates, kinds, n_alone=n_alone, change=change)
    plan = solved(problem)
    least = best(rates, kinds, Asked(most=3, change=cost), rent(kinds))
    if least is not None:
        assert plan.bound_usd_per_hour + beside(plan) <= least[0] + 1e-6
        assert plan.cost_usd_per_hour + beside(plan) >= least[0] - 1e-6


def test_what_runs_stays_where_changing_costs_more_and_the_check_counts_merged_adapters_apart():
    kinds = (replace(A, price=1.0, speed=1.5, beside_per_kw=0.0), replace(B, price=0.9, beside_per_kw=0.0))
    free = ChangeCost(running=(running_of(A, 1),), instances={"A": 1})
    dear = replace(free, start_usd=10.0, stop_usd=1.0, horizon_hours=24.0)
    problem = problem_of([0.5], kinds, change=free)
    moved = solved(problem)
    assert [(step.action, step.option) for step in moved.rollout] == [("start", "B"), ("route", ""), ("stop", "A")]
    stays = solved(replace(problem, change=dear))
    assert ({row.option for row in stays.allocation}, stays.rollout, stays.change_usd_per_hour) == ({"A"}, (), 0.0)
    other = replace(dear, running=(running_of(B, 1, {"another": 1}),), instances={"B": 1})
    only = problem_of([0.5], kinds[1:], change=other)
    plan = solved(only)  # one replica of B runs and one is planned, and they are not the same
    assert plan.change_usd_per_hour == pytest.approx(11.0 / 24)
    assert [step.replicas for step in plan.rollout if step.action != "route"] == [1, 1]
    with pytest.raises(SolverLiedError, match="changes cost"):
        verify_plan(only, replace(plan, change_usd_per_hour=0.0))


def test_a_share_within_the_solvers_tolerance_is_nobodys():
    # HiGHS leaves 9e-9 of an adapter's requests on B, of which the programme has no replica.
    kinds = (
        Kind(name="A", price=1.0, speed=3.0, slots=1, place="p", idle_kw=0.1, extra_kw=0.6),
        Kind(name="B", price=1.5, speed=2.0, slots=1, place="q", idle_kw=0.3, extra_kw=0.2),
    )
    running = (running_of(kinds[0], 2, {"a1": 2}), running_of(kinds[1], 1, {"a1": 1}))
    change = ChangeCost(running=running, instances={}, start_usd=0.3, horizon_hours=2.0)
    aim = Goal(stages=({Measure.COST: 1.0}, {Measure.POWER: 1.0}))
    cost, power = solved(problem_of([0.3, 0.5, 0.1], kinds, change=change, goal=aim)).objectives
    # Two of the three replicas start, since two of A run for a1; by their number one would.
    assert (cost.value, cost.bound) == (pytest.approx(3.3), pytest.approx(3.15))
    assert (power.value, power.bound) == (pytest.approx(2.1), None)
