"""The properties that the model must have (docs/explanation/formulation.md), on problems that hypothesis makes up."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.plan import PlanStatus
from planner.optimize import Assignment, SolverSettings, single_gpu_baselines, solve, verify_plan
from planner.optimize.arrays import chains, fleet_arrays
from planner.optimize.packing_check import pack
from planner.optimize.prune import prune
from planner.optimize.rows.packing import instances_needed
from planner.optimize.search import search

if TYPE_CHECKING:
    from types import SimpleNamespace

    from planner.domain.problem import FleetProblem

EXACT = SolverSettings(relative_gap=0.0)
NAMES = "ABCDE"


@st.composite
def problems(draw, make: SimpleNamespace, *, limited: bool = True) -> FleetProblem:
    """Two services, up to five offers of up to 8 GPUs, up to two configurations each, sometimes limits."""
    services = draw(st.sampled_from([("chat",), ("chat", "code")]))
    sizes = {service: draw(st.integers(1, 3)) for service in services}
    demands = tuple(
        make.demand(draw(st.lists(st.integers(1, 12), min_size=size, max_size=size)), service=service)
        for service, size in sizes.items()
    )
    options = []
    for name in NAMES[: draw(st.integers(1, 5))]:
        gpus = draw(st.sampled_from([1, 1, 2, 4, 8]))
        offered = make.offer(
            name,
            price=draw(st.integers(1, 40)) / 10 * gpus,
            gpus_per_instance=gpus,
            gpu=draw(st.sampled_from(["L4", "H100"])),
            available=draw(st.sampled_from([None, None, None, 3])) if limited else None,
        )
        for service in services:
            for width in sorted({1, draw(st.sampled_from([1, 2, 3, 4]))}):
                if width <= gpus:
                    table = draw(st.lists(st.integers(0, 20), min_size=sizes[service], max_size=sizes[service]))
                    options.append(make.option(offered, table, service=service, gpus=width, power_w=200.0 * width))
    limits = ()
    if limited and draw(st.booleans()):
        limits = (make.limit("power", "watts", 200.0 * draw(st.integers(1, 40))),)
    return make.problem(demands, options, limits=limits, headroom_fraction=draw(st.sampled_from([0.0, 0.1])))


def cost(problem: FleetProblem, assignment: Assignment | None = None) -> float:
    """Return the least cost; infinite where there is no plan. Every plan is verified inside `solve`."""
    plan = solve(problem, settings=EXACT, assignment=assignment or Assignment.fractional())
    verify_plan(problem, plan)
    assert plan.status in {PlanStatus.OPTIMAL, PlanStatus.INFEASIBLE}
    return np.inf if plan.cost_usd_per_hour is None else plan.cost_usd_per_hour


def at_most(left: float, right: float) -> bool:
    return left <= right + 1e-9 * max(abs(right), 1.0) if np.isfinite(right) else True


def scaled_demand(problem: FleetProblem, factor: float) -> FleetProblem:
    demands = tuple(
        replace(
            demand,
            buckets=tuple(replace(bucket, rate_rps=bucket.rate_rps * factor) for bucket in demand.buckets),
        )
        for demand in problem.demands
    )
    return replace(problem, demands=demands)


def map_options(problem: FleetProblem, change) -> FleetProblem:
    return replace(problem, options=tuple(change(option) for option in problem.options))


def with_price(problem: FleetProblem, factor: float, *, offer: str | None = None) -> FleetProblem:
    def change(option):
        if offer is not None and option.offer.name != offer:
            return option
        dearer = replace(option.offer, price_usd_per_hour=option.offer.price_usd_per_hour * factor)
        return replace(option, offer=dearer)

    return map_options(problem, change)


@given(data=st.data())
def test_twice_the_demand_costs_at_most_twice(make, data):
    problem = data.draw(problems(make, limited=False))
    assert at_most(cost(scaled_demand(problem, 2.0)), 2 * cost(problem))


@given(data=st.data(), factor=st.sampled_from([1.1, 1.5, 3.0]))
def test_more_demand_never_costs_less(make, data, factor):
    problem = data.draw(problems(make))
    assert at_most(cost(problem), cost(scaled_demand(problem, factor)))


@given(data=st.data())
def test_a_tighter_objective_never_costs_less(make, data):
    """A tighter SLO lowers throughputs, some of them to nothing."""
    problem = data.draw(problems(make))
    factors = data.draw(st.lists(st.sampled_from([0.0, 0.5, 0.9, 1.0]), min_size=3, max_size=3))
    tighter = map_options(
        problem,
        lambda option: replace(
            option, throughput_rps=option.throughput_rps * np.array(factors)[: len(option.throughput_rps)]
        ),
    )
    assert at_most(cost(problem), cost(tighter))


@given(data=st.data())
def test_another_offer_never_costs_more(make, data):
    problem = data.draw(problems(make))
    fewer = replace(problem, options=tuple(option for option in problem.options if option.offer.name != "A"))
    assert at_most(cost(problem), cost(fewer))


@given(data=st.data())
def test_more_availability_and_looser_limits_never_cost_more(make, data):
    problem = data.draw(problems(make))
    freed = map_options(problem, lambda option: replace(option, offer=replace(option.offer, available=None)))
    assert at_most(cost(freed), cost(problem))
    looser = replace(problem, limits=tuple(replace(limit, bound=limit.bound * 2) for limit in problem.limits))
    assert at_most(cost(looser), cost(problem))


@given(data=st.data())
def test_a_higher_price_never_costs_less(make, data):
    problem = data.draw(problems(make))
    assert at_most(cost(problem), cost(with_price(problem, 1.5, offer="A")))


@given(data=st.data(), factor=st.sampled_from([0.5, 4.0]))
def test_scaling_prices_scales_the_cost(make, data, factor):
    problem = data.draw(problems(make))
    assert cost(with_price(problem, factor)) == pytest.approx(factor * cost(problem), rel=1e-9)


@given(data=st.data(), factor=st.sampled_from([0.25, 8.0]))
def test_scaling_rates_and_throughputs_together_changes_nothing(make, data, factor):
    problem = data.draw(problems(make))
    faster = map_options(problem, lambda option: replace(option, throughput_rps=option.throughput_rps * factor))
    assert cost(scaled_demand(faster, factor)) == pytest.approx(cost(problem), rel=1e-9)


@given(data=st.data(), slices=st.sampled_from([1, 2]), finer=st.sampled_from([2, 3]))
def test_finer_slices_cost_no_more_and_shares_least(make, data, slices, finer):
    problem = data.draw(problems(make))
    coarse, fine = (cost(problem, Assignment.sliced(k)) for k in (slices, slices * finer))
    assert at_most(fine, coarse)
    assert at_most(cost(problem), fine)


@given(data=st.data())
def test_a_mix_costs_no_more_than_the_best_single_type(make, data):
    problem = data.draw(problems(make))
    for assignment in (Assignment.fractional(), Assignment.sliced(2)):
        baselines = single_gpu_baselines(problem, settings=EXACT, assignment=assignment)
        singles = [item.cost_usd_per_hour for item in baselines if item.feasible]
        assert at_most(cost(problem, assignment), min(singles, default=np.inf))


@given(data=st.data())
def test_pruning_keeps_the_cost(make, data):
    problem = data.draw(problems(make))
    fleet, pruned = (fleet_arrays(each, Assignment.fractional()) for each in (problem, prune(problem)))
    if fleet.unserved:
        return
    found = [search(each, EXACT).fleet for each in (fleet, pruned)]
    costs = [each.cost_usd_per_hour if each else np.inf for each in found]
    assert costs[0] == pytest.approx(costs[1], rel=1e-9)


@given(data=st.data())
def test_the_two_solvers_agree(make, data):
    fleet = fleet_arrays(data.draw(problems(make)), Assignment.fractional())
    if fleet.unserved:
        return
    found = [search(fleet, replace(EXACT, solver=solver)).fleet for solver in ("highs", "cbc")]
    costs = [each.cost_usd_per_hour if each else np.inf for each in found]
    assert costs[0] == pytest.approx(costs[1], rel=1e-9)


@given(counts=st.lists(st.integers(0, 4), min_size=4, max_size=4), gpus=st.sampled_from([1, 2, 3, 4, 6, 8]))
def test_packing_rows_are_exact_for_dividing_sizes(make, counts, gpus):
    """The rows' instances equal the real bin packing: one fewer never holds the replicas, so many always do."""
    machine = make.offer("M", gpus_per_instance=gpus)
    sizes = [size for size in (1, 2, 4, 8) if size <= gpus]
    problem = make.problem(make.demand([1.0]), [make.option(machine, [1.0], gpus=size) for size in sizes])
    fleet = fleet_arrays(problem, Assignment.fractional())
    replicas = np.array(counts[: len(sizes)], dtype=np.int64)
    items = [size for size, count in zip(sizes, replicas.tolist(), strict=True) for _ in range(count)]
    needed = int(instances_needed(fleet, replicas).sum())
    assert pack(items, gpus) == needed
    assert needed == smallest_packing(items, gpus)


def smallest_packing(items: list[int], gpus: int) -> int:
    """Return the fewest instances, by trying every place for every replica (largest first, equal rooms once)."""
    best = [len(items)]
    ordered = sorted(items, reverse=True)

    def place(index: int, rooms: tuple[int, ...]) -> None:
        if len(rooms) >= best[0]:
            return
        if index == len(ordered):
            best[0] = len(rooms)
            return
        for room in sorted(set(rooms)):
            if room >= ordered[index]:
                rest = list(rooms)
                rest.remove(room)
                place(index + 1, tuple(sorted([*rest, room - ordered[index]])))
        place(index + 1, tuple(sorted([*rooms, gpus - ordered[index]])))

    place(0, ())
    return best[0]


@given(sizes=st.sets(st.integers(1, 12), min_size=1))
def test_chains_divide(sizes):
    found = chains(sorted(sizes))
    assert sorted(size for chain in found for size in chain) == sorted(sizes)
    assert all(big % small == 0 for chain in found for big, small in itertools.pairwise(chain))


def test_sizes_that_do_not_divide_get_instances_of_their_own(make):
    """2 and 3 GPUs on 8: the pools are apart, which is safe; the real packing (3 + 3 + 2) would need one fewer."""
    machine = make.offer("M", 8.0, gpus_per_instance=8)
    problem = make.problem(
        (make.demand([2.0], service="a"), make.demand([1.0], service="b")),
        [make.option(machine, [1.0], service="a", gpus=3), make.option(machine, [1.0], service="b", gpus=2)],
    )
    plan = solve(problem, settings=EXACT, assignment=Assignment.fractional())
    assert plan.rentals[0].instances == 2
    verify_plan(problem, plan)


def test_pruning_leaves_out_regions_and_large_instances_at_no_discount(make):
    def offers(price_of_eight):
        small = [make.offer(f"1x/r{i}", 2.0 + 0.1 * i, gpu="G", region=f"r{i}") for i in range(5)]
        return [*small, make.offer("8x/r0", price_of_eight, gpu="G", gpus_per_instance=8, region="r0")]

    def kept(problem):
        return sorted({option.offer.name for option in prune(problem).options})

    demand = make.demand([5.0])
    plain = make.problem(demand, [make.option(each, [1.0]) for each in offers(16.0)])
    assert kept(plain) == ["1x/r0"]
    assert kept(make.problem(demand, [make.option(each, [1.0]) for each in offers(15.9)])) == ["1x/r0", "8x/r0"]
    by_instances = replace(plain, limits=(make.limit("few", "instances", 3),))
    assert kept(by_instances) == ["1x/r0", "8x/r0"]
    by_region = replace(plain, limits=(make.limit("r0 only", "gpus", 3, region="r0"),))
    assert kept(by_region) == ["1x/r0", "1x/r1"]
    limited = map_options(plain, lambda option: replace(option, offer=replace(option.offer, available=3)))
    assert len(kept(limited)) == 6
