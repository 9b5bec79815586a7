"""500 random requests: against an exact enumeration, between solvers, and between assignments."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from enumeration import fits, served

from planner.domain.plan import PlanStatus
from planner.optimize import Assignment, SolverSettings, solve, verify_plan
from planner.optimize.arrays import fleet_arrays
from planner.optimize.search import search

EXACT = SolverSettings(relative_gap=0.0)
N_REQUESTS = 500


def random_request(make, rng):
    """A request whose numbers are small integers, so that ties and exact fits are frequent."""
    n_options, n_buckets = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    rates = rng.integers(1, 7, n_buckets)
    options = []
    for j in range(n_options):
        count = int(rng.choice([1, 1, 2, 4]))
        offered = make.offer(
            f"O{j}",
            price=float(rng.integers(1, 12)) / 2 * count,
            gpus_per_instance=count,
            available=int(rng.integers(0, 4)) if rng.random() < 0.25 else None,
        )
        sizes = [size for size in (1, 2, 4) if size <= count]
        table = rng.integers(0, 9, n_buckets) * (rng.random(n_buckets) < 0.85)
        options.append(
            make.option(offered, table, gpus=int(rng.choice(sizes)), power_w=100.0 * int(rng.integers(1, 5)))
        )
    limits = []
    if rng.random() < 0.2:
        limits.append(make.limit("power", "watts", 100.0 * int(rng.integers(2, 15))))
    if rng.random() < 0.2:
        limits.append(make.limit("gpus", "gpus", int(rng.integers(1, 9))))
    return make.problem(make.demand(rates), options, limits=tuple(limits))


def brute_force(problem):
    """Return the least cost over all replica counts, None if no fleet serves the demand, or "large"."""
    loads = {
        (b, j): Fraction(int(bucket.rate_rps)) / Fraction(int(option.throughput_rps[b]))
        for b, bucket in enumerate(problem.demands[0].buckets)
        for j, option in enumerate(problem.options)
        if option.throughput_rps[b] > 0
    }
    n_buckets = len(problem.demands[0].buckets)
    if {b for b, _ in loads} != set(range(n_buckets)):
        return None
    upper = [
        int(np.ceil(float(sum(load for (_, other), load in loads.items() if other == j))))
        for j in range(len(problem.options))
    ]
    if np.prod([bound + 1 for bound in upper]) > 2500:
        return "large"
    fleets = []
    for counts in itertools.product(*(range(bound + 1) for bound in upper)):
        rented = [
            fits([option.gpus_per_replica] * n, int(option.offer.gpus_per_instance))
            for option, n in zip(problem.options, counts, strict=True)
        ]
        if allowed(problem, counts, rented):
            cost = sum(float(o.offer.price_usd_per_hour) * m for o, m in zip(problem.options, rented, strict=True))
            fleets.append((cost, counts))
    return next((cost for cost, counts in sorted(fleets) if served(loads, counts) == n_buckets), None)


def allowed(problem, counts, rented):
    if any(
        o.offer.available is not None and m > o.offer.available for o, m in zip(problem.options, rented, strict=True)
    ):
        return False
    for limit in problem.limits:
        if limit.resource == "watts":
            used = sum(float(option.power_w) * n for option, n in zip(problem.options, counts, strict=True))
        else:
            used = sum(option.offer.gpus_per_instance * m for option, m in zip(problem.options, rented, strict=True))
        if used > limit.bound:
            return False
    return True


@pytest.mark.parametrize("block", range(10))
def test_random_requests(make, block):
    rng = np.random.default_rng(1000 + block)
    outcomes = {"optimal": 0, "infeasible": 0, "enumerated": 0}
    for _ in range(N_REQUESTS // 10):
        problem = random_request(make, rng)
        plan = solve(problem, settings=EXACT, assignment=Assignment.fractional())
        verify_plan(problem, plan)
        sliced = solve(problem, settings=EXACT, assignment=Assignment.sliced(2))
        verify_plan(problem, sliced)
        expected = brute_force(problem)
        if plan.status is PlanStatus.INFEASIBLE:
            assert expected in {None, "large"}
            assert sliced.status is PlanStatus.INFEASIBLE
            outcomes["infeasible"] += 1
            continue
        assert plan.status is PlanStatus.OPTIMAL
        assert plan.bound_usd_per_hour == plan.cost_usd_per_hour
        if expected != "large":
            assert plan.cost_usd_per_hour == pytest.approx(expected, rel=1e-9)
            outcomes["enumerated"] += 1
        if sliced.cost_usd_per_hour is not None:
            assert plan.cost_usd_per_hour <= sliced.cost_usd_per_hour + 1e-9
        other = search(fleet_arrays(problem, Assignment.fractional()), SolverSettings(solver="cbc", relative_gap=0.0))
        assert other.fleet.cost_usd_per_hour == pytest.approx(plan.cost_usd_per_hour, rel=1e-9)
        outcomes["optimal"] += 1
    assert outcomes["optimal"] >= 15
    assert outcomes["infeasible"] >= 3
    assert outcomes["enumerated"] >= 10


def test_the_enumeration_itself_on_the_known_answer(make):
    loads = {(0, 0): Fraction(3), (0, 1): Fraction(6, 20), (1, 0): Fraction(3), (1, 1): Fraction(3, 20)}
    assert served(loads, (0, 1)) == 2
    assert served(loads, (1, 0)) == Fraction(1, 3)
    assert fits([4, 4, 2, 2, 1], 8) == 2
    assert fits([3, 3, 2], 4) == 3
    example = make.melange_example()
    assert brute_force(example) == pytest.approx(4.68)
