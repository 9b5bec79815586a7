"""Demand that the limits do not hold: what is left unserved, against enumeration, and what must always be so."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.plan import PlanStatus
from planner.domain.problem import Shedding
from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, find_conflicts, solve, verify_plan

EXACT = SolverSettings(relative_gap=0.0)
FREE = Assignment.fractional()


def unserved_by_priority(plan):
    totals = {}
    for item in plan.unserved:
        totals[item.priority] = totals.get(item.priority, 0.0) + item.rate_rps
    return totals


def random_request(make, rng, *, wide):
    """Services of one bucket on up to 2 options each, or of up to 3 buckets on one option: both have a closed form."""
    services = [f"s{index}" for index in range(int(rng.integers(1, 4)))]
    demands, options = [], []
    for service in services:
        n_buckets = int(rng.integers(1, 4)) if wide else 1
        demands.append(make.demand(rng.integers(1, 9, n_buckets), service=service))
        for index in range(1 if wide else int(rng.integers(1, 3))):
            offered = make.offer(f"{service}-{index}", price=float(rng.integers(1, 9)))
            options.append(make.option(offered, rng.integers(1, 9, n_buckets), service=service, power_w=100.0))
    limits = (make.limit("budget", "usd_per_hour", float(rng.integers(0, 16))),)
    if rng.random() < 0.4:
        limits += (make.limit("power", "watts", 100.0 * int(rng.integers(0, 5))),)
    shed = Shedding(priority={service: int(rng.integers(1, 4)) for service in services})
    return make.problem(tuple(demands), options, limits=limits, shed=shed)


def unserved_of(demand, mine):
    """Return the least unserved req/s of one service on (option, replicas) pairs, in closed form."""
    if len(demand.buckets) == 1:
        served = sum(float(option.throughput_rps[0]) * count for option, count in mine)
        return max(demand.buckets[0].rate_rps - served, 0.0)
    [(option, room)] = mine
    left = 0.0
    order = sorted(range(len(demand.buckets)), key=lambda b: -option.throughput_rps[b])
    for bucket in order:  # the requests that take least time first
        rate, speed = demand.buckets[bucket].rate_rps, float(option.throughput_rps[bucket])
        done = min(rate, room * speed)
        room -= done / speed
        left += rate - done
    return left


def brute_force(problem):
    """Return (unserved by priority, cost) of the lexicographically best fleet, over all replica counts."""
    ranks = sorted(set(problem.shed.priority.values()))
    upper = [
        int(sum(np.ceil(b.rate_rps / x) for b, x in zip(d.buckets, o.throughput_rps, strict=True)))
        for o in problem.options
        for d in problem.demands
        if d.service == o.service
    ]
    best = None
    for counts in itertools.product(*(range(bound + 1) for bound in upper)):
        cost = sum(float(o.offer.price_usd_per_hour) * n for o, n in zip(problem.options, counts, strict=True))
        used = {"usd_per_hour": cost, "watts": 100.0 * sum(counts)}
        if any(used[limit.resource] > limit.bound for limit in problem.limits):
            continue
        left = dict.fromkeys(ranks, 0.0)
        for demand in problem.demands:
            mine = [(o, n) for o, n in zip(problem.options, counts, strict=True) if o.service == demand.service]
            left[problem.shed.priority[demand.service]] += unserved_of(demand, mine)
        key = (*(round(left[rank], 9) for rank in ranks), cost)
        best = key if best is None or key < best else best
    return dict(zip(ranks, best, strict=False)), best[-1]


@pytest.mark.parametrize("wide", [False, True])
def test_equals_the_enumeration(make, wide):
    rng = np.random.default_rng(7 + wide)
    n_shed = 0
    for _ in range(40):
        problem = random_request(make, rng, wide=wide)
        plan = solve(problem, settings=EXACT, assignment=FREE)
        verify_plan(problem, plan)
        left, cost = brute_force(problem)
        assert plan.status is PlanStatus.OPTIMAL
        assert plan.cost_usd_per_hour == pytest.approx(cost, abs=1e-9)
        for rank, rate in left.items():
            assert unserved_by_priority(plan).get(rank, 0.0) == pytest.approx(rate, abs=1e-6)
        n_shed += bool(plan.unserved)
    assert n_shed >= 15


def test_a_less_important_service_sheds_first_and_the_plan_says_so(make):
    offered = make.offer("A", 1.0)
    demands = (make.demand([10.0], service="chat"), make.demand([10.0], service="batch"))
    options = [make.option(offered, [5.0], service=name) for name in ("chat", "batch")]
    limits = (make.limit("budget", "usd_per_hour", 3.0),)
    for first, last in (("chat", "batch"), ("batch", "chat")):
        shed = Shedding(priority={first: 1, last: 2})
        plan = solve(make.problem(demands, options, limits=limits, shed=shed), settings=EXACT, assignment=FREE)
        [item] = plan.unserved
        assert (item.service, item.rate_rps, item.fraction, item.priority) == (last, pytest.approx(5.0), 0.5, 2)
        assert plan.rate_rps == pytest.approx(15.0)
        [warning] = plan.warnings
        assert warning.code == "W401"
        assert warning.message == f"5 of 20 req/s are not served: {last} 5 of 10 req/s (priority 2)."


def test_what_fits_is_the_same_plan_as_without(make):
    problem = make.melange_example()
    plan = solve(problem, settings=EXACT, assignment=FREE)
    may_shed = solve(replace(problem, shed=Shedding(priority={})), settings=EXACT, assignment=FREE)
    assert replace(may_shed, solver=plan.solver) == plan


def test_nothing_fits(make):
    problem = make.melange_example(limits=(make.limit("budget", "usd_per_hour", 0.5),), shed=Shedding(priority={}))
    plan = solve(problem, settings=EXACT, assignment=FREE)
    assert (plan.status, plan.cost_usd_per_hour, plan.allocation, plan.routing) == (PlanStatus.OPTIMAL, 0.0, (), ())
    assert sum(item.rate_rps for item in plan.unserved) == pytest.approx(30.0)
    assert {item.fraction for item in plan.unserved} == {1.0}


def test_not_allowed_stays_infeasible(make):
    problem = make.melange_example(limits=(make.limit("budget", "usd_per_hour", 2.0),))
    assert solve(problem, settings=EXACT, assignment=FREE).status is PlanStatus.INFEASIBLE
    assert [item.requirement for item in find_conflicts(problem, settings=EXACT)] == ["budget <= 2.00 USD/h"]


def test_requests_that_nothing_can_serve_are_no_matter_of_limits(make):
    problem = make.problem(make.demand([1.0]), [make.option(make.offer(), [0.0])], shed=Shedding(priority={}))
    assert solve(problem, settings=EXACT, assignment=FREE).status is PlanStatus.INFEASIBLE


def test_sliced_buckets_cannot_be_shed(make):
    problem = make.melange_example(limits=(make.limit("budget", "usd_per_hour", 2.0),), shed=Shedding(priority={}))
    with pytest.raises(InputError, match="split freely"):
        solve(problem, settings=EXACT, assignment=Assignment.sliced(2))


def shed_example(make):
    problem = make.melange_example(limits=(make.limit("budget", "usd_per_hour", 4.0),), shed=Shedding(priority={}))
    return problem, solve(problem, settings=EXACT, assignment=FREE)


def test_the_check_refuses_plans_that_lose_requests(make):
    problem, plan = shed_example(make)
    verify_plan(problem, plan)
    half = tuple(replace(item, rate_rps=item.rate_rps / 2) for item in plan.unserved)
    for wrong in (half, plan.unserved * 2, (), (replace(plan.unserved[0], row=9), *plan.unserved[1:])):
        with pytest.raises(SolverLiedError):
            verify_plan(problem, replace(plan, unserved=wrong))
    with pytest.raises(SolverLiedError, match="does not allow"):
        verify_plan(replace(problem, shed=None), plan)


def test_priorities_matter(make, monkeypatch):
    """Without the rows that keep earlier priorities served, the enumeration is missed."""
    monkeypatch.setattr("planner.optimize.partial.define_shed_limits", lambda *_: None)
    offered = make.offer("A", 1.0)
    demands = (make.demand([10.0], service="chat"), make.demand([10.0], service="batch"))
    options = [make.option(offered, [5.0], service=name) for name in ("chat", "batch")]
    limits = (make.limit("budget", "usd_per_hour", 3.0),)
    shed = Shedding(priority={"chat": 1, "batch": 2})
    plan = solve(make.problem(demands, options, limits=limits, shed=shed), settings=EXACT, assignment=FREE)
    assert unserved_by_priority(plan).get(1, 0.0) > 0


@given(seed=st.integers(0, 10_000), more=st.integers(1, 5))
def test_a_larger_budget_never_leaves_more_of_the_first_priorities(make, seed, more):
    problem = random_request(make, np.random.default_rng(seed), wide=False)
    budget = problem.limits[0]
    larger = replace(problem, limits=(replace(budget, bound=budget.bound + more), *problem.limits[1:]))
    ranks = sorted(set(problem.shed.priority.values()))
    before, after = (unserved_by_priority(solve(each, settings=EXACT, assignment=FREE)) for each in (problem, larger))
    for rank in ranks:
        now, then = after.get(rank, 0.0), before.get(rank, 0.0)
        assert now <= then + 1e-6
        if now < then - 1e-6:
            break


def test_answers_are_the_same_every_time(make):
    problem, plan = shed_example(make)
    again = solve(problem, settings=EXACT, assignment=FREE)
    assert replace(again, solver=plan.solver) == plan
