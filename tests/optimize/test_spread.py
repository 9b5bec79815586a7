"""Fleets over many groups, of which few are searched: never dearer than allowed, and the bound is one for all plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.domain.problem import (
    Facet,
    InstanceLoss,
    Minimum,
    ReplicaLoss,
    Resource,
    Scenario,
    Scope,
    ShareCap,
    Survival,
)
from planner.optimize import Assignment, SolverSettings, solve, spread, verify_plan
from planner.optimize.arrays import fleet_arrays
from planner.optimize.search import search
from planner.optimize.spread import cheapest
from planner.optimize.termination import Termination

EXACT = SolverSettings(relative_gap=0.0)
FRACTIONAL = Assignment.fractional()
REGIONS = Survival(name="survive region", facet=Facet.REGION)


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    monkeypatch.setattr(spread, "SPREAD_FROM_SHARES", 0)
    monkeypatch.setattr(spread, "NEARLY_ALL", 0.99)


def random_problem(make, rng, rules, *, n_services=1):
    """Two or three kinds of machines, each in some of five regions at prices of their own."""
    names = ["chat", "code"][:n_services]
    options, demands = [], []
    tables = {(service, kind): rng.integers(1, 6, 2) for service in names for kind in range(3)}
    for kind in range(int(rng.integers(2, 4))):
        gpus = int(rng.choice([1, 1, 2]))
        for region in range(5):
            if rng.random() < 0.75:
                offered = make.offer(
                    f"K{kind}/r{region}",
                    price=float(rng.integers(4, 12)) / 4 * gpus,
                    gpus_per_instance=gpus,
                    gpu=f"K{kind}",
                    region=f"r{region}",
                    available=int(rng.integers(1, 4)) if rng.random() < 0.1 else None,
                )
                options += [make.option(offered, tables[service, kind], service=service) for service in names]
    demands = tuple(make.demand(rng.integers(1, 5, 2), service=service) for service in names)
    return make.problem(demands, options, rules=tuple(rules), headroom_fraction=0.1)


def rules_of(rng):
    facet = Facet.REGION
    found = [Survival(name="survive region", facet=facet, bound=float(rng.choice([0.5, 1.0])))]
    if rng.random() < 0.4:
        found = [ShareCap(name="share of one region", facet=facet, bound=float(rng.choice([0.3, 0.5])))]
    if rng.random() < 0.2:
        found.append(InstanceLoss(name="instances", count=1))
    if rng.random() < 0.2:
        found.append(Minimum(name="minimum", resource=Resource.INSTANCES, bound=2.0, scope=Scope(gpu="K0")))
    return found


@pytest.mark.parametrize("block", range(2))
def test_the_bound_holds_for_all_plans_and_what_is_called_optimal_is(make, block):
    rng = np.random.default_rng(880 + block)
    n_optimal = n_few = 0
    for number in range(6):
        problem = random_problem(make, rng, rules_of(rng), n_services=2 if number == 5 else 1)
        whole = search(fleet_arrays(problem, FRACTIONAL), EXACT)
        fleet, found = cheapest(problem, EXACT, FRACTIONAL)
        if whole.fleet is None:
            assert found.fleet is None
            assert found.termination is Termination.INFEASIBLE
            continue
        least = whole.fleet.cost_usd_per_hour
        assert found.fleet.cost_usd_per_hour >= least - 1e-9
        assert found.bound_usd_per_hour <= least + 1e-6
        if found.termination is Termination.OPTIMAL:
            assert found.fleet.cost_usd_per_hour == pytest.approx(least, rel=1e-6)
            n_optimal += 1
        n_few += len(fleet.options) < len(problem.options)
        plan = solve(problem, settings=EXACT, assignment=FRACTIONAL)
        verify_plan(problem, plan)
        assert plan.cost_usd_per_hour == pytest.approx(found.fleet.cost_usd_per_hour)
    assert n_optimal >= 1
    assert n_few >= 2


def many_regions(make, n_regions=12, demand=2.0):
    options = [
        make.option(make.offer(f"A/r{i:02}", 1.0 + i / 100, gpu="A", region=f"r{i:02}"), [1.0])
        for i in range(n_regions)
    ]
    return make.problem(make.demand([demand]), options, rules=(REGIONS,))


def test_a_few_replicas_are_proven_in_the_few_cheapest_regions(make):
    fleet, found = cheapest(many_regions(make), EXACT, FRACTIONAL)
    assert found.termination is Termination.OPTIMAL
    assert found.fleet.cost_usd_per_hour == pytest.approx(1.0 + 1.01 + 1.02)
    assert len(fleet.offers) == 4
    beside = replace(many_regions(make), rules=(REGIONS, ReplicaLoss(name="spare", count=1, service="default")))
    assert cheapest(beside, EXACT, FRACTIONAL)[1].fleet.cost_usd_per_hour == found.fleet.cost_usd_per_hour


def test_more_groups_are_searched_while_they_save_something(make):
    fleet, found = cheapest(many_regions(make, demand=6.0), EXACT, FRACTIONAL)
    assert found.fleet.cost_usd_per_hour == pytest.approx(7.0 + sum(range(7)) / 100)
    assert len(fleet.offers) >= 8


@pytest.mark.parametrize("demand", [0.4, 1.3, 2.5, 3.6])
def test_the_bound_leaves_room_for_the_replica_that_a_loss_takes(make, demand):
    problem = replace(many_regions(make, demand=demand), headroom_fraction=0.1)
    least = search(fleet_arrays(problem, FRACTIONAL), EXACT).fleet.cost_usd_per_hour
    _, found = cheapest(problem, EXACT, FRACTIONAL)
    assert found.bound_usd_per_hour <= least + 1e-9
    assert found.fleet.cost_usd_per_hour == pytest.approx(least)


def test_what_cannot_be_survived_in_few_groups_is_found_in_more(make):
    problem = many_regions(make)
    capped = replace(problem, rules=(ShareCap(name="share", facet=Facet.REGION, bound=0.2),))
    _, found = cheapest(capped, EXACT, FRACTIONAL)
    assert len(np.unique(np.flatnonzero(found.fleet.replicas))) == 5
    impossible = replace(problem, rules=(ShareCap(name="share", facet=Facet.REGION, bound=0.05),))
    assert cheapest(impossible, EXACT, FRACTIONAL)[1].termination is Termination.INFEASIBLE


def test_other_problems_are_searched_whole(make, monkeypatch):
    problem = many_regions(make)
    monkeypatch.setattr(spread, "_in_few_groups", lambda *_: pytest.fail("searched in few groups"))
    some = replace(REGIONS, scope=Scope(gpu="A"))
    scenario = Scenario(name="launch", demands=problem.demands)
    for each in (
        replace(problem, rules=()),
        replace(problem, rules=(some,)),
        replace(problem, rules=(REGIONS, scenario)),
    ):
        cheapest(each, EXACT, FRACTIONAL)
    cheapest(problem, EXACT, Assignment.sliced(2))
    monkeypatch.setattr(spread, "SPREAD_FROM_SHARES", 1e9)
    cheapest(problem, EXACT, FRACTIONAL)


def test_no_time_gives_no_plan_or_a_bound_that_holds(make):
    found = cheapest(many_regions(make), replace(EXACT, time_limit_s=1e-3), FRACTIONAL)[1]
    assert found.termination is not Termination.INFEASIBLE
    assert found.bound_usd_per_hour is None or found.bound_usd_per_hour <= 3.03 + 1e-9
