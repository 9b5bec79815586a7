"""Horizons searched by periods: the same plans as the whole programme, and bounds that hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.domain.hardware import Market
from planner.domain.plan import PlanStatus
from planner.domain.problem import Horizon, Minimum, Resource, Scope
from planner.optimize import Assignment, SolverSettings, search, solve, verify_plan
from planner.optimize.arrays import fleet_arrays
from planner.optimize.decompose.budget import Budget
from planner.optimize.horizon import can_be_projected, driver, horizon_fleet, relaxation
from planner.optimize.horizon.driver import _Hunt
from planner.optimize.horizon.master import master_of
from planner.optimize.horizon.needs import needs_of
from planner.optimize.horizon.relaxation import first_cuts, relax
from planner.optimize.horizon.rounding import _without_short_runs
from planner.optimize.model import build_model
from planner.optimize.periods import _kept
from planner.optimize.routing import balanced_shares

HOUR = 3600.0
GAP = SolverSettings(relative_gap=1e-4, time_limit_s=60)


@pytest.fixture
def by_periods(monkeypatch):
    monkeypatch.setattr(search, "BY_PERIODS_FROM_PAIRS", 0)
    monkeypatch.setattr(search, "BY_PERIODS_FROM", 2)


def over(problem, factors, *, start_up=0.0, lease=0.0):
    return replace(
        problem,
        horizon=Horizon(step_s=HOUR, factors=factors, start_up_s=start_up * HOUR, minimum_lease_s=lease * HOUR),
    )


@st.composite
def schedules(draw, make):
    """One or two services, two offers of 1 or 4 GPUs, at times a reserved one and a quota, over 2 to 6 hours."""
    services = draw(st.sampled_from([("a",), ("a", "b")]))
    offers = [
        make.offer(name, draw(st.integers(2, 20)) / 4 * gpus, gpus_per_instance=gpus, gpu=name)
        for name, gpus in zip("AB", draw(st.lists(st.sampled_from([1, 1, 4]), min_size=2, max_size=2)), strict=True)
    ]
    if draw(st.booleans()):
        first = offers[0]
        price = first.price_usd_per_hour * 0.6
        offers.append(replace(first, name="A1y", market=Market.RESERVED_1Y, price_usd_per_hour=price))
    demands, options = [], []
    for service in services:
        rates = draw(st.lists(st.integers(1, 30), min_size=1, max_size=3))
        tables = {
            gpu: draw(st.lists(st.integers(1, 9), min_size=len(rates), max_size=len(rates)))
            for gpu in sorted({offered.gpu for offered in offers})
        }
        demands.append(make.demand(rates, service=service))
        options += [make.option(offered, tables[offered.gpu], service=service) for offered in offers]
    n_periods = draw(st.integers(2, 6))
    factor = st.sampled_from([0.0, 0.3, 1.0, 2.0])
    factors = {
        service: (1.0, *draw(st.lists(factor, min_size=n_periods - 1, max_size=n_periods - 1))) for service in services
    }
    limits = (make.limit("quota", "gpus", draw(st.integers(0, 12)), gpu="A"),) if draw(st.booleans()) else ()
    return over(
        make.problem(tuple(demands), options, limits=limits, headroom_fraction=draw(st.sampled_from([0.0, 0.1]))),
        factors,
        start_up=draw(st.sampled_from([0.0, 0.25, 1.0])),
        lease=draw(st.sampled_from([0.0, 1.0, 2.0])),
    )


def searched(problem, asked=GAP):
    """What the search by periods alone makes of the problem."""
    model = build_model(fleet_arrays(problem, Assignment.fractional()))
    milp = model.freeze()
    assert can_be_projected(model, milp)
    return horizon_fleet(model, milp, asked)


@settings(max_examples=10)
@given(data=st.data())
def test_the_bound_never_lies_above_the_optimum_nor_a_plan_below_it(make, data):
    problem = data.draw(schedules(make))
    best = solve(problem, settings=SolverSettings(relative_gap=0.0), assignment=Assignment.fractional())
    found = searched(problem)
    if best.cost_usd_per_hour is None:
        assert found is None or found.replicas is None
        return
    assert found is not None
    assert found.bound <= best.cost_usd_per_hour * (1 + 1e-9)
    if found.replicas is None:
        return
    fleet = fleet_arrays(problem, Assignment.fractional())
    cost = search.exact_cost(fleet, found.instances)
    assert cost >= best.cost_usd_per_hour * (1 - 1e-9)
    # Rounded apart from each other, commitments and periods may cost an instance of each offer too many.
    assert cost <= best.cost_usd_per_hour + sum(offer.price_usd_per_hour for offer in fleet.offers)
    assert balanced_shares(fleet, found.replicas, found.shares) is not None


@settings(max_examples=10)
@given(data=st.data())
def test_the_relaxation_by_cuts_is_that_of_the_whole_programme(make, data):
    problem = data.draw(schedules(make))
    model = build_model(fleet_arrays(problem, Assignment.fractional()))
    milp = model.freeze()
    whole = search.run(replace(milp, is_integer=np.zeros(milp.n_columns, dtype=np.bool_)), SolverSettings())
    budget = Budget(GAP)
    hunt = _Hunt(model.fleet, master_of(model, milp), needs_of(model.fleet), GAP, budget)
    found = relax(hunt._master, first_cuts(hunt._needs, hunt._price), budget)
    if whole.values is None:
        return
    assert found.bound == pytest.approx(whole.objective, rel=2e-3)
    assert found.bound <= whole.objective * (1 + 1e-7)


@pytest.mark.usefixtures("by_periods")
@settings(max_examples=10)
@given(data=st.data())
def test_plans_by_periods_pass_the_independent_check(make, data):
    problem = data.draw(schedules(make))
    plan = solve(problem, settings=GAP, assignment=Assignment.fractional())
    if plan.cost_usd_per_hour is not None:
        verify_plan(problem, plan)
        assert plan.bound_usd_per_hour <= plan.cost_usd_per_hour


HOURS = 14


def busy_hours(make, *, lease=2.0):
    """Two services whose peaks differ, on machines on demand, reserved and scarce spot ones."""
    hours = np.arange(HOURS)
    offers = [
        make.offer("A", 1.0),
        make.offer("A1y", 0.6, gpu="A", market=Market.RESERVED_1Y),
        make.offer("Aspot", 0.4, gpu="A", market=Market.SPOT),
        make.offer("B", 6.4, gpus_per_instance=8),
    ]
    tables = {"a": {"A": [4.0, 1.5, 0.6], "B": [9.0, 4.0, 2.0]}, "b": {"A": [3.0, 1.0, 0.0], "B": [4.0, 2.5, 1.1]}}
    demands = tuple(make.demand([300.0, 150.0, 40.0], service=service) for service in tables)
    options = [
        make.option(offered, tables[service][offered.gpu], service=service) for service in tables for offered in offers
    ]
    shapes = {
        service: tuple((1.2 + np.sin((hours + shift) * np.pi / 7)).round(3).tolist())
        for service, shift in (("a", 0), ("b", 3))
    }
    problem = make.problem(demands, options, limits=(make.limit("spot", "gpus", 60, market="spot"),))
    return over(problem, shapes, start_up=0.25, lease=lease)


@pytest.mark.usefixtures("by_periods")
def test_many_replicas_come_close_to_the_bound_and_are_the_same_again(make, monkeypatch):
    monkeypatch.setattr(relaxation, "SAMPLE", 5)  # so that cuts come from some of the periods first
    problem = busy_hours(make)
    asked = SolverSettings(relative_gap=0.01, time_limit_s=120)
    plan = solve(problem, settings=asked, assignment=Assignment.fractional())
    verify_plan(problem, plan)
    assert plan.gap <= 0.02
    again = solve(problem, settings=asked, assignment=Assignment.fractional())
    assert (again.schedule, again.routing) == (plan.schedule, plan.routing)


def rounded(problem):
    """The relaxation rounded and topped up, with nothing after it; and the relaxation's bound."""
    model = build_model(fleet_arrays(problem, Assignment.fractional()))
    master = master_of(model, model.freeze())
    hunt = _Hunt(model.fleet, master, needs_of(model.fleet), GAP, Budget(GAP))
    cuts = first_cuts(hunt._needs, hunt._price)
    relaxed = relax(master, cuts, Budget(GAP))
    return hunt, hunt._rounded(relaxed.values, cuts), relaxed.bound


@pytest.mark.parametrize("lease", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("scarce", [0, 7, 60])
def test_the_rounded_relaxation_is_a_plan_at_most_a_tenth_above_it(make, lease, scarce):
    problem = replace(busy_hours(make, lease=lease), limits=(make.limit("spot", "gpus", scarce, market="spot"),))
    hunt, state, bound = rounded(problem)
    assert state.is_feasible
    assert hunt.best is state
    assert np.all(state.values[hunt._master.milp.is_integer] % 1 == 0)
    assert hunt.shares(state) is not None
    assert bound <= state.cost <= 1.1 * bound


@settings(max_examples=15)
@given(data=st.data())
def test_the_rounded_relaxation_never_breaks_a_limit_nor_a_lease(make, data):
    problem = data.draw(schedules(make))
    model = build_model(fleet_arrays(problem, Assignment.fractional()))
    milp = model.freeze()
    best = search.run(milp, SolverSettings())
    if best.values is None:
        return
    hunt, state, _ = rounded(problem)
    if state is not None:
        assert state.is_feasible
        assert state.cost >= best.objective * (1 - 1e-9)
        assert hunt.shares(state) is not None


@given(
    counts=st.lists(st.integers(0, 4), min_size=3, max_size=9),
    lease=st.integers(1, 3),
)
def test_what_is_rounded_down_or_up_keeps_leases_and_little_more_than_them(counts, lease):
    whole = np.array(counts, dtype=float)[:, None]
    down, up = _without_short_runs(whole, lease), _kept(whole, lease)
    for found in (down, up):
        assert is_leased(found.ravel(), lease)
    assert np.all(down <= whole)
    assert np.all(up >= whole)
    if is_leased(whole.ravel(), lease):
        assert np.array_equal(down, whole)
        assert np.array_equal(up, whole)
    apart = sum(made_longer(whole.ravel() >= level, lease) for level in range(1, 5))
    assert np.all(up.ravel() <= apart)


def is_leased(counts, lease):
    """Follow every instance round and round, the oldest going first: whether none leaves before its lease is over."""
    n_periods = len(counts)
    if len(set(counts)) == 1:
        return True
    ages = [lease] * int(counts[0])
    for t in (*range(1, n_periods), *range(n_periods), *range(n_periods)):
        ages = sorted((age + 1 for age in ages), reverse=True)
        gone = len(ages) - int(counts[t])
        if any(age < lease + 1 for age in ages[: max(gone, 0)]):
            return False
        ages = ages[max(gone, 0) :] + [1] * max(-gone, 0)
    return True


def made_longer(runs, lease):
    """Return `runs` as 0 and 1, each at least `lease` long."""
    begins = [] if runs.all() else np.flatnonzero(runs & ~np.roll(runs, 1)).tolist()
    longer = runs.copy()
    for begin in begins:
        longer[(begin + np.arange(lease)) % len(runs)] = True
    return longer.astype(int)


def test_what_windows_break_with_each_other_is_mended(make):
    hunt, state, _ = rounded(busy_hours(make))
    master = hunt._master
    replicas, instances = state.values[master.n], state.values[master.m].copy()
    scarce = int(np.argmax([hunt._fleet.offers[offer].name == "Aspot" for offer in hunt._fleet.pool_offer]))
    instances[4:7, scarce] += 30  # more than there are
    instances[9, 0] += 1  # not for a lease
    broken = hunt._state(replicas, instances)
    assert not broken.is_feasible
    mended = hunt._mended(broken, first_cuts(hunt._needs, hunt._price))
    assert mended.is_feasible
    assert mended.cost <= 1.1 * state.cost
    assert hunt.shares(mended) is not None


@pytest.mark.parametrize("lease", [1.0, 2.0, 3.0])
def test_periods_made_whole_in_order_are_topped_up_to_a_plan_below_the_rounded_one(make, lease):
    problem = busy_hours(make, lease=lease)
    model = build_model(fleet_arrays(problem, Assignment.fractional()))
    asked = SolverSettings(relative_gap=0.01)
    hunt = _Hunt(model.fleet, master_of(model, model.freeze()), needs_of(model.fleet), asked, Budget(asked))
    cuts = first_cuts(hunt._needs, hunt._price)
    relaxed = relax(hunt._master, cuts, Budget(asked))
    rounded = hunt._rounded(relaxed.values, cuts)
    ordered = hunt._in_order(hunt._neighbourhood(relaxed, cuts), hunt._relaxed_state(relaxed.values, rounded))
    assert hunt._is_whole(ordered).all()
    assert hunt.best is rounded  # what is made in order may miss demand, so that it is no plan before it is mended
    mended = hunt._mended(ordered, cuts)
    assert mended.is_feasible
    assert hunt.shares(mended) is not None
    assert relaxed.bound <= mended.cost < rounded.cost


@pytest.mark.usefixtures("by_periods")
def test_without_a_window_there_is_still_the_rounded_plan(make, monkeypatch):
    monkeypatch.setattr(driver, "WINDOWS", ())
    problem = busy_hours(make)
    plan = solve(problem, settings=GAP, assignment=Assignment.fractional())
    verify_plan(problem, plan)
    assert plan.gap <= 0.1


@pytest.mark.usefixtures("by_periods")
def test_no_time_gives_no_plan_or_one_that_holds(make):
    problem = busy_hours(make)
    plan = solve(problem, settings=SolverSettings(time_limit_s=0.0), assignment=Assignment.fractional())
    assert plan.status in {PlanStatus.FEASIBLE, PlanStatus.UNKNOWN}
    if plan.cost_usd_per_hour is not None:
        verify_plan(problem, plan)


@pytest.mark.usefixtures("by_periods")
def test_ctrl_c_hands_the_plan_over_that_was_there_at_once(make, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "relax", interrupted)
    problem = busy_hours(make)
    plan = solve(problem, settings=GAP, assignment=Assignment.fractional())
    verify_plan(problem, plan)
    assert (plan.status, plan.solver.termination) == (PlanStatus.FEASIBLE, "interrupted")
    assert 0 < plan.bound_usd_per_hour < plan.cost_usd_per_hour


def test_a_minimum_stays(make):
    problem = busy_hours(make)
    least = Minimum(name="minimum B", resource=Resource.INSTANCES, bound=3, scope=Scope(gpu="B"))
    found = searched(replace(problem, rules=(least,)), SolverSettings(relative_gap=0.02, time_limit_s=60))
    fleet = fleet_arrays(replace(problem, rules=(least,)), Assignment.fractional())
    of_b = np.array([fleet.offers[offer].gpu == "B" for offer in fleet.pool_offer])
    assert np.all(found.instances.reshape(HOURS, -1)[:, of_b[: len(of_b) // HOURS]].sum(axis=1) >= 3)


def test_demand_that_is_mixed_differently_is_solved_whole(make):
    fleet = fleet_arrays(busy_hours(make), Assignment.fractional())
    load = fleet.pair_load.copy()
    load[0] *= 1.1
    assert needs_of(fleet) is not None
    assert needs_of(replace(fleet, pair_load=load)) is None
