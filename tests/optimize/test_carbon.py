"""Budgets, prices and objectives of energy and carbon: against enumeration, and what must always be so."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.energy import Energy, Site
from planner.domain.plan import PlanStatus
from planner.domain.problem import (
    ChangeCost,
    EnergyBudget,
    Facet,
    Goal,
    Horizon,
    Measure,
    Running,
    Shedding,
    Survival,
)
from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, find_conflicts, price_of_limits, solve, verify_plan
from planner.optimize.pareto import pareto_front
from planner.optimize.prune import prune

EXACT = SolverSettings(relative_gap=0.0)
FREE = Assignment.fractional()
CARBON, ENERGY = Measure.CARBON, Measure.ENERGY


def random_request(make, rng, *, budget=None, price=0.0, goal=None, horizon=None):
    """One bucket and up to 4 offers of one option each, in places of their own PUE and intensity."""
    options, sites = [], {}
    for index in range(int(rng.integers(2, 5))):
        count = int(rng.choice([1, 1, 2]))
        name = f"O{index}"
        offered = make.offer(name, price=float(rng.integers(1, 12)) / 2 * count, gpus_per_instance=count, region=name)
        idle = 100.0 * int(rng.integers(0, 4))
        busy = idle + 100.0 * int(rng.integers(1, 8))
        rate = float(rng.integers(1, 9))
        options.append(make.option(offered, [rate], power_w=busy, idle_power_w=idle, busy_power_w=busy))
        sites["p", name] = Site(
            pue=1 + int(rng.integers(0, 6)) / 10,
            carbon_g_per_kwh=(float(rng.integers(0, 8)) * 100 + 10,),
            usd_per_kwh=float(rng.choice([0.0, 0.1, 0.3])),
        )
    rules = () if budget is None else (EnergyBudget(name=str(budget[0]), measure=budget[0], bound=budget[1]),)
    return make.problem(
        make.demand([float(rng.integers(1, 20))]),
        options,
        rules=rules,
        goal=goal,
        horizon=horizon,
        energy=Energy(sites=sites, carbon_usd_per_kg=price),
    )


def draws(problem, counts, order):
    """Return kW and kg/h of a fleet whose requests go where `order` (per request) is least; None if it is too small."""
    left = problem.demands[0].buckets[0].rate_rps
    loads = [0.0] * len(counts)
    ranked = sorted(range(len(counts)), key=lambda j: order(problem.options[j]) / problem.options[j].throughput_rps[0])
    for j in ranked:
        rate = float(problem.options[j].throughput_rps[0])
        loads[j] = min(counts[j], left / rate)
        left -= loads[j] * rate
    if left > 1e-9:
        return None
    kw = kg = usd = 0.0
    for option, n, load in zip(problem.options, counts, loads, strict=True):
        site = problem.energy.site(option.offer)
        drawn = site.pue * (option.idle_power_w * n + (option.busy_power_w - option.idle_power_w) * load) / 1000
        emitted = drawn * site.carbon_g_per_kwh[0] / 1000
        kw, kg = kw + drawn, kg + emitted
        usd += drawn * site.usd_per_kwh + emitted * problem.energy.carbon_usd_per_kg
    return {ENERGY: kw, CARBON: kg, "usd": usd}


def weight_of(problem, measure):
    def weight(option):
        site = problem.energy.site(option.offer)
        kw = site.pue * (option.busy_power_w - option.idle_power_w) / 1000
        kg = kw * site.carbon_g_per_kwh[0] / 1000
        return {ENERGY: kw, CARBON: kg, "usd": kw * site.usd_per_kwh + kg * problem.energy.carbon_usd_per_kg}[measure]

    return weight


def fleets(problem):
    rate = problem.demands[0].buckets[0].rate_rps
    upper = [int(np.ceil(rate / option.throughput_rps[0])) for option in problem.options]
    for counts in itertools.product(*(range(bound + 1) for bound in upper)):
        cost = sum(
            float(o.offer.price_usd_per_hour) * -(-n // int(o.offer.gpus_per_instance))
            for o, n in zip(problem.options, counts, strict=True)
        )
        yield counts, cost


def total(plan):
    return plan.cost_usd_per_hour + (plan.energy_usd_per_hour or 0.0)


@pytest.mark.parametrize("measure", [CARBON, ENERGY])
def test_a_budget_equals_the_enumeration(make, measure):
    """Without prices the shares that use least of the budget decide whether a fleet keeps it."""
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(25):
        problem = random_request(make, rng, budget=(measure, float(rng.integers(2, 20)) / 10))
        sites = {place: replace(site, usd_per_kwh=0.0) for place, site in problem.energy.sites.items()}
        problem = replace(problem, energy=Energy(sites=sites))
        costs = [
            cost
            for counts, cost in fleets(problem)
            if (drawn := draws(problem, counts, weight_of(problem, measure)))
            and drawn[measure] <= problem.rules[0].bound + 1e-9
        ]
        plan = solve(problem, settings=EXACT, assignment=FREE)
        verify_plan(problem, plan)
        if not costs:
            assert plan.status is PlanStatus.INFEASIBLE
            continue
        found += 1
        assert plan.cost_usd_per_hour == pytest.approx(min(costs), rel=1e-6)
    assert found >= 10


def test_prices_equal_the_enumeration(make):
    rng = np.random.default_rng(6)
    for _ in range(25):
        problem = random_request(make, rng, price=float(rng.integers(0, 30)) / 10)
        costs = [
            cost + drawn["usd"]
            for counts, cost in fleets(problem)
            if (drawn := draws(problem, counts, weight_of(problem, "usd")))
        ]
        plan = solve(problem, settings=EXACT, assignment=FREE)
        assert total(plan) == pytest.approx(min(costs), rel=1e-6)
        assert plan.bound_usd_per_hour == pytest.approx(plan.cost_usd_per_hour, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("measure", [CARBON, ENERGY])
def test_the_least_of_a_measure_equals_the_enumeration(make, measure):
    rng = np.random.default_rng(7)
    for _ in range(15):
        problem = random_request(make, rng, goal=Goal(stages=({measure: 1.0},)))
        least = min(
            drawn[measure]
            for counts, _ in fleets(problem)
            if (drawn := draws(problem, counts, weight_of(problem, measure)))
        )
        plan = solve(problem, settings=EXACT, assignment=FREE)
        verify_plan(problem, plan)
        assert plan.objectives[0].value == pytest.approx(least, rel=1e-5, abs=1e-6)
        assert plan.objectives[0].bound == pytest.approx(least, rel=1e-4, abs=1e-5)


@given(seed=st.integers(0, 10_000), price=st.integers(1, 40))
def test_a_price_never_raises_emissions_and_none_is_as_no_energy(make, seed, price):
    rng = np.random.default_rng(seed)
    problem = random_request(make, rng)
    sites = {place: replace(site, usd_per_kwh=0.0) for place, site in problem.energy.sites.items()}
    plans = [
        solve(replace(problem, energy=Energy(sites=sites, carbon_usd_per_kg=usd)), settings=EXACT, assignment=FREE)
        for usd in (0.0, price / 10, price / 5)
    ]
    plain = solve(replace(problem, energy=None), settings=EXACT, assignment=FREE)
    assert plans[0].cost_usd_per_hour == plain.cost_usd_per_hour
    assert plans[0].energy_usd_per_hour is None
    costs = [plan.cost_usd_per_hour for plan in plans]
    assert costs == sorted(costs)
    # At price 0 plans that cost the same may emit more or less; from then on a dearer kg never means more of them.
    assert plans[2].carbon_kg_per_hour <= plans[1].carbon_kg_per_hour * (1 + 1e-6) + 1e-9
    assert total(plans[1]) <= total(plans[2]) * (1 + 1e-6)


@given(seed=st.integers(0, 10_000), use=st.sampled_from(["price", "budget", "goal"]))
def test_pruning_keeps_the_optimum(make, seed, use):
    rng = np.random.default_rng(seed)
    problem = random_request(
        make,
        rng,
        price=1.0 if use == "price" else 0.0,
        budget=(CARBON, 1.0) if use == "budget" else None,
        goal=Goal(stages=({CARBON: 1.0},)) if use == "goal" else None,
    )
    # The same machines again, cleaner or dirtier, hungrier or not: what pruning is for.
    twins = [
        replace(
            option,
            offer=replace(option.offer, name=f"{option.offer.name}-twin", region=other.offer.region),
            idle_power_w=option.idle_power_w + float(rng.choice([0.0, 50.0])),
            busy_power_w=option.busy_power_w + 60.0,
        )
        for option, other in zip(problem.options, reversed(problem.options), strict=True)
    ]
    whole = replace(problem, options=(*problem.options, *twins))
    pruned = prune(whole)
    assert len(pruned.options) <= len(whole.options)
    plan = solve(whole, settings=EXACT, assignment=FREE)
    everything = solve_unpruned(whole)
    if plan.cost_usd_per_hour is None:
        assert everything is None
        return
    value = plan.objectives[0].value if use == "goal" else total(plan)
    assert value == pytest.approx(everything, rel=1e-5, abs=1e-6)


def solve_unpruned(problem):
    """Return the optimum of the whole model, without pruning or ties; None if there is none."""
    from planner.optimize.arrays import fleet_arrays
    from planner.optimize.goals import search_goal
    from planner.optimize.search import search

    fleet = fleet_arrays(problem, FREE)
    if problem.goal is not None:
        reached = search_goal(fleet, problem.goal, EXACT).reached
        return reached[0].value if reached else None
    found = search(fleet, EXACT).fleet
    return None if found is None else found.total_usd_per_hour


def coal_or_hydro(make, **given_fields):
    """The same card for 1 USD/h where electricity is dirty and for 1.10 where it is clean; 20 req/s need two."""
    options = [
        make.option(make.offer(name, usd, region=name), [10.0], power_w=600.0, idle_power_w=100.0, busy_power_w=500.0)
        for name, usd in (("coal", 1.0), ("hydro", 1.1))
    ]
    sites = {("p", "coal"): Site(carbon_g_per_kwh=(800.0,)), ("p", "hydro"): Site(carbon_g_per_kwh=(20.0,))}
    return make.problem(make.demand([20.0]), options, **{"energy": Energy(sites=sites), **given_fields})


def used(plan):
    return {row.gpu: row.replicas for row in plan.allocation}


def budget(bound, measure=CARBON):
    return EnergyBudget(name=str(measure), measure=measure, bound=bound)


def test_what_carbon_costs_decides(make):
    problem = coal_or_hydro(make)
    priced = replace(problem.energy, carbon_usd_per_kg=0.3)
    cases = (
        ({}, {"coal": 2}),
        ({"rules": (budget(0.8),)}, {"coal": 2}),
        ({"rules": (budget(0.5),)}, {"coal": 1, "hydro": 1}),
        ({"rules": (budget(0.1),)}, {"hydro": 2}),
        ({"energy": priced}, {"hydro": 2}),
        ({"energy": replace(priced, carbon_usd_per_kg=0.1)}, {"coal": 2}),
        ({"goal": Goal(stages=({CARBON: 1.0},))}, {"hydro": 2}),
        ({"goal": Goal(stages=({Measure.COST: 1.0}, {CARBON: 1.0}), within=0.06)}, {"coal": 1, "hydro": 1}),
    )
    for changes, fleet in cases:
        plan = solve(replace(problem, **changes), settings=EXACT, assignment=FREE)
        assert used(plan) == fleet, changes


def test_requests_move_to_where_they_emit_least(make):
    """One replica each is rented; what the clean one can take it takes, and the budget is full to the last gram."""
    problem = replace(coal_or_hydro(make), demands=(make.demand([15.0]),), rules=(budget(0.3),))
    plan = solve(problem, settings=EXACT, assignment=FREE)
    assert used(plan) == {"coal": 1, "hydro": 1}
    assert plan.carbon_kg_per_hour <= 0.3 * (1 + 1e-5)
    least = 0.8 * (0.1 + 0.4 * 0.5) + 0.02 * 0.5
    tight = replace(problem, rules=(budget(least),))
    plan = solve(tight, settings=EXACT, assignment=FREE)
    assert plan.carbon_kg_per_hour == pytest.approx(least, rel=1e-5)
    assert plan.routing[0].weights["hydro"] == pytest.approx(10 / 15, rel=1e-4)
    assert f"carbon <= {least:.6g} kg/h" in plan.binding


def test_an_impossible_budget_is_named_with_the_least_that_would_do(make):
    problem = replace(coal_or_hydro(make), rules=(budget(0.01),))
    plan = solve(problem, settings=EXACT, assignment=FREE)
    assert plan.status is PlanStatus.INFEASIBLE
    (conflict,) = find_conflicts(problem, settings=EXACT)
    assert conflict.requirement == "carbon <= 0.01 kg/h"
    assert (conflict.relaxed, conflict.unit) == (pytest.approx(0.02, rel=0.01), "kg/h")
    relaxed = replace(problem, rules=(budget(conflict.relaxed),))
    assert solve(relaxed, settings=EXACT, assignment=FREE).status is PlanStatus.OPTIMAL


def test_a_budget_has_a_price(make):
    problem = replace(coal_or_hydro(make), rules=(budget(0.1),))
    plan = solve(problem, settings=EXACT, assignment=FREE)
    assert price_of_limits(problem, plan, EXACT) == {"carbon <= 0.1 kg/h": pytest.approx(0.2)}


def test_a_plan_over_its_budget_is_caught(make):
    problem = coal_or_hydro(make)
    plan = solve(problem, settings=EXACT, assignment=FREE)
    with pytest.raises(SolverLiedError, match="budget carbon"):
        verify_plan(replace(problem, rules=(budget(0.5),)), plan)
    with pytest.raises(SolverLiedError, match="budget energy"):
        verify_plan(replace(problem, rules=(budget(0.9, ENERGY),)), plan)


def test_what_is_not_known_cannot_be_counted(make):
    problem = coal_or_hydro(make, energy=Energy(sites={("p", "coal"): Site(), ("p", "hydro"): Site()}))
    assert solve(replace(problem, rules=(budget(2.0, ENERGY),)), settings=EXACT, assignment=FREE).cost_usd_per_hour == 2
    for changes in (
        {"rules": (budget(1.0),)},
        {"energy": replace(problem.energy, carbon_usd_per_kg=1.0)},
        {"goal": Goal(stages=({CARBON: 1.0},))},
        {"rules": (budget(1.0, ENERGY),), "energy": None},
        {"rules": (budget(1.0, Measure.GPUS),)},
        {"rules": (budget(-1.0, ENERGY),)},
    ):
        with pytest.raises(InputError):
            solve(replace(problem, **changes), settings=EXACT, assignment=FREE)


def test_demand_is_shed_until_the_budget_holds(make):
    problem = replace(coal_or_hydro(make), rules=(budget(0.015),), shed=Shedding(priority={}))
    plan = solve(problem, settings=EXACT, assignment=FREE)
    assert plan.status is PlanStatus.OPTIMAL
    # 0.02 kg/kWh x (0.1 kW n + 0.4 kW L): two replicas under the load 1.375 emit 0.015 kg/h.
    assert plan.rate_rps == pytest.approx(13.75, rel=1e-4)


def test_sliced_buckets_keep_the_budget(make):
    problem = replace(coal_or_hydro(make), rules=(budget(0.5),))
    plan = solve(problem, settings=EXACT, assignment=Assignment.sliced(4))
    assert used(plan) == {"coal": 1, "hydro": 1}


def test_the_front_of_cost_and_carbon(make):
    problem = coal_or_hydro(make)
    points = pareto_front(problem, (Measure.COST, CARBON), n_points=3, settings=EXACT, assignment=FREE)
    assert [point.values[Measure.COST] for point in points] == pytest.approx([2.0, 2.1, 2.2])
    assert [point.values[CARBON] for point in points] == pytest.approx([0.8, 0.41, 0.02], rel=1e-4)
    priced = replace(problem, energy=replace(problem.energy, carbon_usd_per_kg=0.01))
    other = pareto_front(priced, (CARBON, Measure.COST), n_points=3, settings=EXACT, assignment=FREE)
    assert [point.values[CARBON] for point in other] == pytest.approx([0.02, 0.41, 0.8], rel=1e-4)


def test_load_follows_clean_electricity_through_the_day(make):
    """Each place is clean in half of the day: a price moves the fleet, a budget counts the mean."""
    sites = {
        ("p", "coal"): Site(carbon_g_per_kwh=(900.0, 100.0)),
        ("p", "hydro"): Site(carbon_g_per_kwh=(100.0, 900.0)),
    }
    horizon = Horizon(step_s=3600.0, factors={"default": (1.0, 1.0)})
    problem = coal_or_hydro(make, energy=Energy(sites=sites, carbon_usd_per_kg=1.0), horizon=horizon)
    plan = solve(problem, settings=EXACT, assignment=FREE)
    assert [{item.offer for item in period.rentals} for period in plan.schedule] == [{"hydro"}, {"coal"}]
    assert plan.carbon_kg_per_hour == pytest.approx(0.1)
    capped = replace(problem, energy=Energy(sites=sites), rules=(budget(0.4),))
    plan = solve(capped, settings=EXACT, assignment=FREE)
    assert plan.carbon_kg_per_hour <= 0.4 * (1 + 1e-5)
    assert plan.cost_usd_per_hour == pytest.approx(2.05)
    impossible = replace(capped, rules=(budget(0.05),))
    (conflict,) = find_conflicts(impossible, settings=EXACT)
    assert conflict.relaxed == pytest.approx(0.1, rel=0.01)


def test_two_solvers_agree(make):
    rng = np.random.default_rng(11)
    for _ in range(8):
        problem = random_request(make, rng, price=0.5, budget=(ENERGY, 3.0))
        ours, theirs = (
            solve(problem, settings=replace(EXACT, solver=name), assignment=FREE) for name in ("highs", "cbc")
        )
        assert ours.status == theirs.status
        if ours.cost_usd_per_hour is not None:
            assert total(ours) == pytest.approx(total(theirs), rel=1e-5)


def test_prices_beside_changes_and_survival(make):
    """Leaving what runs costs more than its emissions; what survives the loss of a region emits in both."""
    problem = coal_or_hydro(make)
    priced = replace(problem, energy=replace(problem.energy, carbon_usd_per_kg=0.3))
    running = Running(service="default", offer="coal", option="coal", gpus_per_replica=1, replicas=2)
    for start_usd, fleet in ((0.001, {"hydro": 2}), (1.0, {"coal": 2})):
        change = ChangeCost(running=(running,), instances={"coal": 2}, start_usd=start_usd)
        plan = solve(replace(priced, change=change), settings=EXACT, assignment=FREE)
        assert used(plan) == fleet
        assert plan.bound_usd_per_hour == pytest.approx(plan.cost_usd_per_hour)
    survival = Survival(name="survive region", facet=Facet.REGION)
    plan = solve(replace(priced, rules=(survival, budget(0.7))), settings=EXACT, assignment=FREE)
    assert used(plan) == {"coal": 2, "hydro": 2}
    # The clean ones do the work, the dirty ones wait: 0.02 x 1 kW + 0.8 x 0.2 kW.
    assert plan.carbon_kg_per_hour == pytest.approx(0.18, rel=1e-4)


def test_the_factor_of_a_power_limit_counts_in_every_place(make):
    """Two cards of 600 W count for 1.2 kW, times what a watt counts for."""
    problem = coal_or_hydro(make)
    for factor, fits in ((1.0, True), (1.3, False), (0.79, True)):
        limit = replace(make.limit("power", "watts", 1300.0), factor=factor)
        limited = replace(problem, limits=(limit,))
        plan = solve(limited, settings=EXACT, assignment=FREE)
        assert (plan.status is PlanStatus.OPTIMAL) is fits
        if not fits:
            (conflict,) = find_conflicts(limited, settings=EXACT)
            assert conflict.relaxed == pytest.approx(1560.0)
            unlimited = solve(problem, settings=EXACT, assignment=FREE)
            with pytest.raises(SolverLiedError, match="limit power"):
                verify_plan(limited, unlimited)
    broken = replace(make.limit("power", "watts", 1.0), factor=0.0)
    with pytest.raises(InputError, match="factor"):
        solve(replace(problem, limits=(broken,)), settings=EXACT, assignment=FREE)


def test_slower_and_frugal_options_of_one_offer_stay_where_power_or_energy_counts(make):
    """A capped card of the same offer: half the watts, three quarters of the rate."""
    card = make.offer("card", 1.0)
    drawn = {"idle_power_w": 100.0}
    whole = make.option(card, [10.0], config=make.config(), power_w=700.0, busy_power_w=700.0, **drawn)
    capped = make.option(card, [7.5], config=make.config(power_cap_w=350.0), power_w=350.0, busy_power_w=350.0, **drawn)
    energy = Energy(sites={("p", "r"): Site(carbon_g_per_kwh=(500.0,))})
    problem = make.problem(make.demand([40.0]), [whole, capped], energy=energy)
    assert len(prune(problem).options) == 1
    for changes in (
        {"limits": (make.limit("power", "watts", 2500.0),)},
        {"energy": replace(energy, carbon_usd_per_kg=5.0)},
        {"goal": Goal(stages=({ENERGY: 1.0},))},
    ):
        changed = replace(problem, **changes)
        assert len(prune(changed).options) == 2
        plan = solve(changed, settings=EXACT, assignment=FREE)
        verify_plan(changed, plan)
        assert any(row.power_cap_w == 350.0 for row in plan.allocation)
        assert all(("350W" in row.option) is (row.power_cap_w == 350.0) for row in plan.allocation)
