"""Egress: against an exact enumeration, between solvers, with pruning, and what must hold of it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from enumeration import fits

from planner.domain.egress import Egress
from planner.domain.problem import Facet, Goal, Horizon, Measure, Shedding, Survival
from planner.domain.workload import Bucket, Demand
from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, price_of_limits, solve, verify_plan
from planner.optimize.arrays import fleet_arrays
from planner.optimize.backends import solve_milp
from planner.optimize.milp import MilpBuilder
from planner.optimize.pareto import pareto_front
from planner.optimize.prune import prune
from planner.optimize.search import search

EXACT = SolverSettings(relative_gap=0.0)
FRACTIONAL = Assignment.fractional()
GB_TOKENS = 1e9 / 3600
"""Tokens of one byte that make a request per second a gigabyte an hour."""


def egress(price=1.0, **users):
    return Egress(users={"default": users or {"near": 1.0}}, usd_per_gb=price, bytes_per_token=1.0)


def demand(rates):
    """Requests that are a gigabyte an hour for each per second, prompt and answer together."""
    return Demand(
        service="default",
        buckets=tuple(
            Bucket(row=i, column=0, rate_rps=float(rate), input_tokens=GB_TOKENS / 4, output_tokens=GB_TOKENS * 3 / 4)
            for i, rate in enumerate(rates)
        ),
    )


def two(make, *, far_price=0.5, **given):
    """Four req/s on a near machine at 1 USD/h or a far one at 0.5 USD/h, 1 req/s each."""
    options = [
        make.option(make.offer("N", 1.0, gpu="G", region="near"), [1.0]),
        make.option(make.offer("F", far_price, gpu="G", region="far"), [1.0]),
    ]
    return make.problem((demand([4.0]),), options, **given)


def plan_of(problem, settings=EXACT):
    plan = solve(problem, settings=settings, assignment=FRACTIONAL)
    verify_plan(problem, plan)
    return plan


def counts(plan):
    return {item.option: item.replicas for item in plan.allocation}


def paid(plan):
    return plan.cost_usd_per_hour + (plan.egress_usd_per_hour or 0.0) + (plan.change_usd_per_hour or 0.0)


def test_what_is_far_is_worth_its_traffic_or_not(make):
    assert counts(plan_of(two(make))) == {"F": 4}
    cheap = plan_of(two(make, egress=egress(0.4)))
    assert (counts(cheap), cheap.cost_usd_per_hour) == ({"F": 4}, 2.0)
    assert cheap.egress_gb_per_hour == pytest.approx(4.0)
    assert cheap.egress_usd_per_hour == pytest.approx(1.6)
    assert cheap.bound_usd_per_hour == pytest.approx(2.0)
    dear = plan_of(two(make, egress=egress(0.6)))
    assert (counts(dear), dear.egress_gb_per_hour, dear.egress_usd_per_hour) == ({"N": 4}, 0.0, 0.0)
    free = plan_of(two(make, egress=egress(0.0)))
    assert (counts(free), free.egress_usd_per_hour) == ({"F": 4}, 0.0)
    assert plan_of(two(make)).egress_gb_per_hour is None


def test_the_part_of_the_users_that_is_elsewhere_counts(make):
    plan = plan_of(two(make, egress=egress(1.1, near=0.75, far=0.25)))
    assert (counts(plan), plan.egress_gb_per_hour) == ({"N": 4}, pytest.approx(1.0))
    plan = plan_of(two(make, egress=egress(0.9, near=0.75, far=0.25)))
    assert (counts(plan), plan.egress_gb_per_hour) == ({"F": 4}, pytest.approx(3.0))


def random_problem(make, rng):
    n_buckets = int(rng.integers(1, 3))
    options = []
    for j in range(int(rng.integers(2, 5))):
        gpus = int(rng.choice([1, 2]))
        offered = make.offer(
            f"O{j}",
            price=float(rng.integers(1, 8)) * gpus / 4,
            gpus_per_instance=gpus,
            gpu=f"G{rng.integers(0, 2)}",
            region=str(rng.choice(["near", "mid", "far"])),
        )
        table = rng.integers(1, 6, n_buckets) * (rng.random(n_buckets) < 0.9)
        options.append(make.option(offered, table, gpus=int(rng.choice([1, gpus]))))
    part = float(rng.choice([0.25, 0.5, 1.0]))
    users = {"near": part, "mid": 1 - part} if part < 1 else {"near": 1.0}
    where = egress(float(rng.choice([0.125, 0.5, 1.0])), **users)
    return make.problem((demand(rng.integers(1, 5, n_buckets)),), options, egress=where)


def cheapest_routing(problem, replicas):
    """Return the least traffic in USD/h with which these replicas serve everything; None if they cannot."""
    users = problem.egress.users["default"]
    builder = MilpBuilder()
    pairs = [
        (b, j, bucket.rate_rps)
        for b, bucket in enumerate(problem.demands[0].buckets)
        for j, option in enumerate(problem.options)
        if replicas[j] and option.throughput_rps[b] > 0
    ]
    n_buckets = len(problem.demands[0].buckets)
    if {b for b, _, _ in pairs} != set(range(n_buckets)):
        return None
    regions = [option.offer.region for option in problem.options]
    cost = [problem.egress.usd_per_gb * rate * (1 - users.get(regions[j], 0)) for _, j, rate in pairs]
    x = builder.add_columns("x", len(pairs), cost=cost)
    builder.add_rows("all", rows=[b for b, _, _ in pairs], columns=x, values=1.0, lower=np.ones(n_buckets))
    loads = [rate / float(problem.options[j].throughput_rps[b]) for b, j, rate in pairs]
    builder.add_rows(
        "load", rows=[j for _, j, _ in pairs], columns=x, values=loads, upper=np.array(replicas, dtype=float)
    )
    raw = solve_milp(builder.freeze(), EXACT)
    return None if raw.values is None else raw.objective


def whole_load(problem, option):
    return sum(
        bucket.rate_rps / float(option.throughput_rps[b])
        for b, bucket in enumerate(problem.demands[0].buckets)
        if option.throughput_rps[b] > 0
    )


def brute_force(problem):
    upper = [int(np.ceil(whole_load(problem, option))) for option in problem.options]
    if np.prod([most + 1 for most in upper]) > 400:
        return "large"
    best = None
    for replicas in itertools.product(*(range(most + 1) for most in upper)):
        rented = sum(
            float(option.offer.price_usd_per_hour)
            * fits([option.gpus_per_replica] * n, int(option.offer.gpus_per_instance))
            for option, n in zip(problem.options, replicas, strict=True)
        )
        if best is not None and rented >= best:
            continue
        traffic = cheapest_routing(problem, replicas)
        if traffic is not None and (best is None or rented + traffic < best):
            best = rented + traffic
    return best


def test_random_requests_equal_an_enumeration_whole_and_pruned_and_with_the_other_solver(make):
    rng = np.random.default_rng(4400)
    n_compared = 0
    for _ in range(24):
        problem = random_problem(make, rng)
        expected = brute_force(problem)
        if expected in {None, "large"}:
            continue
        assert paid(plan_of(problem)) == pytest.approx(expected, rel=1e-6)
        for each in (problem, prune(problem)):
            other = search(fleet_arrays(each, FRACTIONAL), replace(EXACT, solver="cbc")).fleet
            assert other.total_usd_per_hour == pytest.approx(expected, rel=1e-6)
        n_compared += 1
    assert n_compared >= 10


def test_dearer_traffic_never_costs_less_and_users_nearby_nothing(make):
    rng = np.random.default_rng(12)
    for _ in range(8):
        problem = random_problem(make, rng)
        if fleet_arrays(problem, FRACTIONAL).unserved:
            continue
        totals = [
            paid(plan_of(replace(problem, egress=replace(problem.egress, usd_per_gb=price)))) for price in (0, 0.25, 1)
        ]
        assert totals == sorted(totals)
        assert totals[0] == pytest.approx(plan_of(replace(problem, egress=None)).cost_usd_per_hour)


def test_traffic_goes_with_losses_slices_shedding_objectives_and_fronts(make):
    where = egress(0.3)
    lost = plan_of(two(make, egress=where, rules=(Survival(name="survive region", facet=Facet.REGION),)))
    assert counts(lost) == {"F": 4, "N": 4}
    assert lost.egress_usd_per_hour == pytest.approx(0.0, abs=1e-5)  # the near ones are there anyway
    sliced = solve(two(make, egress=where), settings=EXACT, assignment=Assignment.sliced(4))
    assert (counts(sliced), sliced.egress_gb_per_hour) == ({"F": 4}, pytest.approx(4.0))
    few = two(make, egress=egress(0.6), shed=Shedding(priority={}), limits=(make.limit("few", "instances", 3),))
    assert (counts(plan_of(few)), plan_of(few).egress_usd_per_hour) == ({"N": 3}, 0.0)
    aim = Goal(stages=({Measure.GPUS: 1.0}, {Measure.COST: 1.0}))
    assert counts(plan_of(two(make, egress=egress(0.6), goal=aim))) == {"N": 4}
    front = pareto_front(
        two(make, egress=where), (Measure.GPUS, Measure.COST), n_points=3, settings=EXACT, assignment=FRACTIONAL
    )
    assert front[0].values[Measure.COST] == pytest.approx(3.2)
    near = make.limit("near ones", "instances", 2, region="near")
    limited = two(make, far_price=2.0, egress=egress(3.0), limits=(near,))
    assert price_of_limits(limited, plan_of(limited), EXACT)["near ones"] == pytest.approx(2.0 + 6.0, rel=1e-6)


def test_over_a_horizon_the_mean_of_the_periods_counts(make):
    problem = two(make, egress=egress(0.4))
    horizon = Horizon(step_s=3600.0, factors={"default": (1.0, 0.5, 0.0)})
    plan = plan_of(replace(problem, horizon=horizon))
    assert plan.egress_gb_per_hour == pytest.approx(4.0 * 1.5 / 3)
    assert plan.egress_usd_per_hour == pytest.approx(0.4 * 4.0 * 1.5 / 3)
    assert {item.option for item in plan.allocation} == {"F"}
    dear = plan_of(replace(problem, egress=egress(0.6), horizon=horizon))
    assert ({item.option for item in dear.allocation}, dear.egress_usd_per_hour) == ({"N"}, 0.0)


def test_wrong_figures_are_caught_or_refused(make):
    problem = two(make, egress=egress(0.4))
    plan = plan_of(problem)
    for field in ("egress_gb_per_hour", "egress_usd_per_hour"):
        for wrong in (None, 0.5):
            with pytest.raises(SolverLiedError, match="its routes come to"):
                verify_plan(problem, replace(plan, **{field: wrong}))
    with pytest.raises(SolverLiedError, match=r"come to 0 GB/h to other regions, and it says 3\.99"):
        verify_plan(replace(problem, egress=None), plan)
    with pytest.raises(InputError, match=r"sum to 0\.5"):
        plan_of(two(make, egress=egress(near=0.5)))
    with pytest.raises(InputError, match="USD/GB"):
        plan_of(two(make, egress=egress(-1.0)))
    with pytest.raises(InputError, match="no demand"):
        plan_of(two(make, egress=replace(egress(), users={"code": {"near": 1.0}})))
    unknown = replace(problem, demands=(make.demand([4.0]),))
    with pytest.raises(InputError, match="sizes of its requests"):
        plan_of(unknown)
