"""Random fleets of all families together: plan check, two solvers and an enumeration must agree.

`python benchmarks/optimizer_cross_check.py` does the same for thousands.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from cross_check import check_case
from fleet_enumeration import enumerate_fleets, maximum
from random_fleets import FAMILIES, GOALS, adapter_case, random_case

from planner.domain.adapters import AdapterSlots, Isolation, Tenancy, Tenant
from planner.domain.problem import FleetProblem, Goal, Limit, Resource, Scope
from planner.domain.workload import Bucket, Demand
from planner.optimize import Assignment, SolverSettings, solve, verify_plan

EXACT = SolverSettings(relative_gap=0.0)


@pytest.mark.parametrize("block", range(4))
def test_everything_that_can_judge_a_random_fleet_agrees(block):
    assert enumerated(block, n=30, cbc_every=3) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("block", range(100, 110))
def test_the_same_for_hundreds(block):
    assert enumerated(block, n=60, cbc_every=1) >= 20


def test_plans_of_whole_adapters_lie_between_the_bound_and_the_cheapest_fleet():
    found = adapters_enumerated(200, n=30, cbc_every=3)
    assert len(found) >= 10
    assert np.mean(np.array(found) <= 1e-9) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("block", range(201, 206))
def test_the_same_for_hundreds_with_adapters(block):
    found = adapters_enumerated(block, n=80, cbc_every=1)
    assert np.mean(np.array(found) <= 1e-9) >= 0.8


def adapters_enumerated(block, *, n, cbc_every):
    """Check `n` random fleets with adapters; by what part those with a plan cost more than the cheapest fleet."""
    above = []
    for index in range(n):
        case = adapter_case(np.random.default_rng([2026, block, index]))
        finding = check_case(case, with_cbc=index % cbc_every == 0)
        assert not finding.problems, (index, case.families, finding.problems)
        if finding.above is not None and finding.above < np.inf:
            above.append(finding.above)
    return above


ALONE = AdapterSlots(count=1, bytes_each=0.0, isolation=Isolation.DEDICATED)
THREE = AdapterSlots(count=3, bytes_each=1e8, isolation=Isolation.SHARED_PROCESS)
TURNS = replace(THREE, isolation=Isolation.SHARED_BACKBONE)


@pytest.mark.parametrize(
    ("rates", "kinds", "least"),
    [
        ([2.0, 0.1, 0.1, 0.1], [(1.0, ALONE), (1.5, THREE)], 2.5),  # the busy one alone, three together
        ([0.1] * 4, [(1.5, THREE)], 3.0),  # slots bind
        ([3.0], [(1.0, ALONE)], 2.0),  # one adapter on two replicas
        ([1.0, 0.1], [(1.0, TURNS)], 2.0),  # half of a replica, and a process has a third
        ([1.5, 1.5, 1.0], [(1.0, THREE)], 2.0),  # two full replicas, one adapter on both
    ],
)
def test_the_enumeration_of_slots_on_known_answers(make, rates, kinds, least):
    """Replicas serve 2 req/s."""
    buckets = tuple(Bucket(row=row, column=0, group=row, rate_rps=rate) for row, rate in enumerate(rates))
    tenants = tuple(
        Tenant(name=f"a{row}", rate_rps=rate, memory_bytes=1e8, group=row) for row, rate in enumerate(rates)
    )
    options = [
        replace(make.option(make.offer(f"O{index}", price), [2.0] * len(rates)), slots=slots)
        for index, (price, slots) in enumerate(kinds)
    ]
    problem = FleetProblem(
        demands=(Demand(service=options[0].service, buckets=buckets),),
        options=tuple(options),
        tenancies=(Tenancy(service=options[0].service, tenants=tenants),),
    )
    assert enumerate_fleets(problem)[1] == [pytest.approx(least)]
    one = Limit(name="one", resource=Resource.USD_PER_HOUR, bound=least - 0.5, scope=Scope())
    assert enumerate_fleets(replace(problem, limits=(one,))) is None


def enumerated(block, *, n, cbc_every):
    """Check `n` random fleets, and return how many of them could be enumerated."""
    found = 0
    for index in range(n):
        case = random_case(np.random.default_rng([2026, block, index]))
        finding = check_case(case, with_cbc=index % cbc_every == 0)
        assert not finding.problems, (index, case.families, finding.problems)
        found += finding.is_enumerated
    return found


def test_every_family_is_drawn_and_often_with_others():
    drawn = [random_case(np.random.default_rng([1, index])).families for index in range(300)]
    assert {name for families in drawn for name in families} == set(FAMILIES)
    assert np.mean([len(families) for families in drawn]) >= 2


def test_the_enumerations_simplex_and_its_duals():
    value, duals = maximum([3, 2], [[1, 1], [1, 3], [Fraction(1, 2), 0]], [4, 6, Fraction(3, 2)])
    assert value == 11
    assert sum(dual * bound for dual, bound in zip(duals, [4, 6, Fraction(3, 2)], strict=True)) == 11
    assert min(duals) >= 0


def test_the_enumeration_on_the_known_answer(make):
    assert enumerate_fleets(make.melange_example())[1] == [pytest.approx(4.68)]
    capped = make.melange_example(limits=(make.limit("few", "usd_per_hour", 2.0),))
    assert enumerate_fleets(capped) is None


@pytest.mark.parametrize("stages", GOALS, ids=str)
def test_ties_use_nothing_of_what_objectives_may_be_missed_by(make, stages):
    """A looser objective is for later ones to use; fleets that differ in it are no ties."""
    offers = [make.offer(f"O{i}", price) for i, price in enumerate((1.0, 1.0, 2.0))]
    watts = (500.0, 450.0, 900.0)
    options = [
        make.option(each, [rate], power_w=power) for each, rate, power in zip(offers, (2, 2, 4), watts, strict=True)
    ]
    problem = make.problem(make.demand([6.0]), options, goal=Goal(stages=stages, within=0.25))
    plan = solve(problem, settings=EXACT, assignment=Assignment.fractional())
    verify_plan(problem, plan)
    last = enumerate_fleets(problem)[1][-1]
    assert plan.objectives[-1].value == pytest.approx(last)
