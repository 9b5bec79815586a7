"""The decomposed search: its bound is one, its plans hold, and it says the same on every run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.plan import PlanStatus
from planner.optimize import Assignment, SolverSettings, solve, verify_plan
from planner.optimize import search as search_module
from planner.optimize.alike import merged
from planner.optimize.arrays import fleet_arrays
from planner.optimize.backends import solve_milp
from planner.optimize.decompose.budget import Budget
from planner.optimize.decompose.neighbours import Neighbourhood, repair
from planner.optimize.decompose.parts import can_be_cut, cut
from planner.optimize.decompose.programmes import priced_service
from planner.optimize.decompose.relaxation import Relaxation, lower_bound, relax
from planner.optimize.decompose.state import option_scores, state_of
from planner.optimize.decompose.workers import solve_all
from planner.optimize.milp import MilpBuilder
from planner.optimize.model import build_model
from planner.optimize.prune import prune
from planner.optimize.termination import Termination

EXACT = SolverSettings(relative_gap=1e-6, time_limit_s=30)
FRACTIONAL = Assignment.fractional()


@pytest.fixture
def always(monkeypatch):
    """Every fleet of several services is decomposed, however small."""
    monkeypatch.setattr(search_module, "DECOMPOSED_FROM_PAIRS", 0)


def made_up(make, seed, *, sizes=(1,), watts=False, twins=False):
    """Three services on four offers, the two cheapest of which are scarce; `twins` are dearer and scarce as well."""
    rng = np.random.default_rng(seed)
    services = ("chat", "code", "sum")
    offers = [
        make.offer(
            f"g{index}",
            round(float(rng.uniform(0.8, 1.2) * (index + 1) * max(sizes)), 2),
            gpus_per_instance=max(sizes),
            available=int(rng.integers(0, 4)) if index < 2 else None,
        )
        for index in range(4)
    ]
    demands = tuple(make.demand(rng.uniform(0.5, 6.0, 3), service=service) for service in services)
    options = [
        make.option(
            offered,
            rng.uniform(0.7, 1.5, 3) * (index + 1) * size * (rng.uniform(size=3) > (0.0 if index == 3 else 0.2)),
            service=service,
            gpus=size,
            config=make.config(tp=size),
            power_w=400.0 * size,
        )
        for service in services
        for index, offered in enumerate(offers)
        for size in sizes
    ]
    limits = (make.limit("power", "watts", 400.0 * 60),) if watts else ()
    if twins:
        dearer = {
            offered.name: replace(
                offered,
                name=f"{offered.name} elsewhere",
                price_usd_per_hour=round(offered.price_usd_per_hour * float(rng.uniform(1.0, 1.2)), 2),
                available=int(rng.integers(1, 4)),
            )
            for offered in offers
        }
        options += [replace(item, offer=dearer[item.offer.name]) for item in options]
    return make.problem(demands, [item for item in options if item.throughput_rps.any()], limits=limits)


def pieces_of(problem):
    model = build_model(fleet_arrays(prune(problem), FRACTIONAL))
    milp = model.freeze()
    return model, milp, cut(merged(model, milp))


def whole_and_decomposed(problem, monkeypatch, settings=EXACT):
    whole = solve(problem, settings=settings, assignment=FRACTIONAL)
    with monkeypatch.context() as patch:
        patch.setattr(search_module, "DECOMPOSED_FROM_PAIRS", 0)
        return whole, solve(problem, settings=settings, assignment=FRACTIONAL)


@pytest.mark.parametrize(("sizes", "watts"), [((1,), False), ((1, 2, 4), False), ((1,), True)])
@pytest.mark.parametrize("seed", range(4))
def test_cost_and_bound_enclose_the_optimum(make, monkeypatch, seed, sizes, watts):
    problem = made_up(make, seed, sizes=sizes, watts=watts, twins=seed % 2 == 1)
    whole, parts = whole_and_decomposed(problem, monkeypatch)
    assert whole.status is PlanStatus.OPTIMAL
    assert parts.status in {PlanStatus.OPTIMAL, PlanStatus.FEASIBLE}
    verify_plan(problem, parts)
    assert parts.bound_usd_per_hour <= whole.cost_usd_per_hour * (1 + 1e-9)
    assert parts.cost_usd_per_hour >= whole.cost_usd_per_hour * (1 - 1e-6)
    assert whole.cost_usd_per_hour <= parts.cost_usd_per_hour * (1 + 1e-6)
    if parts.status is PlanStatus.OPTIMAL:
        assert parts.cost_usd_per_hour == pytest.approx(whole.cost_usd_per_hour, rel=1e-5)
    assert parts.cost_usd_per_hour <= whole.cost_usd_per_hour * 1.1


@given(seed=st.integers(0, 10_000), twins=st.booleans(), data=st.data())
def test_any_duals_give_a_lower_bound(make, seed, twins, data):
    _, milp, _ = pieces_of(made_up(make, seed, twins=twins))
    best = solve_milp(milp, replace(EXACT, relative_gap=0.0))
    if best.objective is None:
        return
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    assert lower_bound(milp, rng.normal(0, 3, milp.n_rows)) <= best.objective + 1e-6
    relaxed = solve_milp(replace(milp, is_integer=np.zeros(milp.n_columns, dtype=bool)), EXACT)
    assert lower_bound(milp, relaxed.row_duals) == pytest.approx(relaxed.objective, rel=1e-6)


@given(seed=st.integers(0, 10_000), sizes=st.sampled_from([(1,), (1, 2), (2, 8)]), twins=st.booleans())
def test_the_relaxation_by_columns_is_the_relaxation(make, seed, sizes, twins):
    _, milp, pieces = pieces_of(made_up(make, seed, sizes=sizes, twins=twins))
    whole = solve_milp(replace(milp, is_integer=np.zeros(milp.n_columns, dtype=bool)), EXACT)
    found = relax(pieces, Budget(EXACT))
    assert isinstance(found, Relaxation)
    if whole.objective is None:
        assert found.short
    else:
        assert found.bound == pytest.approx(whole.objective, rel=1e-5)
        assert found.bound <= whole.objective * (1 + 1e-9)


@given(seed=st.integers(0, 10_000), twins=st.booleans())
def test_scores_bound_what_an_option_adds(make, seed, twins):
    model, milp, pieces = pieces_of(made_up(make, seed, twins=twins))
    found = relax(pieces, Budget(EXACT))
    if found.short:
        return
    scores = np.concatenate([option_scores(part, found) for part in pieces.parts])
    order = np.concatenate([part.options for part in pieces.parts])
    option = int(order[np.argmax(scores)])
    lower = milp.col_lower.copy()
    lower[model.n[option]] = 1.0
    forced = solve_milp(replace(milp, col_lower=lower), EXACT)
    if forced.objective is not None:
        assert forced.objective >= found.bound + scores.max() - 1e-6


@given(seed=st.integers(0, 10_000), sizes=st.sampled_from([(1,), (1, 2, 4)]))
def test_a_service_priced_by_classes_costs_what_it_costs_by_options(make, seed, sizes):
    _, _, pieces = pieces_of(made_up(make, seed, sizes=sizes, twins=True))
    prices = np.random.default_rng(seed).uniform(0.5, 3.0, len(pieces.fleet.options))
    fleet = pieces.fleet
    for part in pieces.parts:
        small = priced_service(part, prices)
        found = solve_milp(small.milp, EXACT)
        mine = np.isin(fleet.pair_option, part.options)
        builder = MilpBuilder()
        x = builder.add_columns("x", int(mine.sum()), upper=1.0)
        n = builder.add_columns("n", len(part.options), cost=prices[part.options], is_integer=True)
        ones = np.ones(len(part.buckets))
        rows = np.searchsorted(part.buckets, fleet.pair_bucket[mine])
        builder.add_rows("coverage", rows=rows, columns=x, values=1.0, lower=ones, upper=ones)
        builder.add_rows(
            "capacity",
            rows=np.concatenate([np.searchsorted(part.options, fleet.pair_option[mine]), np.arange(len(n))]),
            columns=np.concatenate([x, n]),
            values=np.concatenate([fleet.pair_load[mine], -np.ones(len(n))]),
            upper=np.zeros(len(n)),
        )
        whole = solve_milp(builder.freeze(), EXACT)
        assert found.objective == pytest.approx(whole.objective, rel=1e-5)
        assert np.all(np.isin(small.options, part.options))


def test_the_same_on_every_run(make, always):
    problem = made_up(make, 3)
    first = solve(problem, settings=EXACT, assignment=FRACTIONAL)
    second = solve(problem, settings=EXACT, assignment=FRACTIONAL)
    assert replace(first, solver=None) == replace(second, solver=None)
    assert first.solver.termination == second.solver.termination != Termination.TIME_LIMIT.value


@pytest.mark.parametrize("limit_s", [0.0, 0.02, 0.1, 0.3])
def test_no_time_is_no_plan_or_one_that_holds(make, always, limit_s):
    problem = made_up(make, 1)
    plan = solve(problem, settings=replace(EXACT, time_limit_s=limit_s), assignment=FRACTIONAL)
    assert plan.status is not PlanStatus.INFEASIBLE
    verify_plan(problem, plan)
    if plan.cost_usd_per_hour is None:
        assert plan.status is PlanStatus.UNKNOWN


def test_limits_that_leave_nothing_are_proven(make, always):
    problem = replace(made_up(make, 2), limits=(make.limit("budget", "usd_per_hour", 0.5),))
    assert solve(problem, settings=EXACT, assignment=FRACTIONAL).status is PlanStatus.INFEASIBLE


def test_one_service_and_slices_are_solved_whole(make, always, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(search_module, "decomposed_fleet", refuse)
    solve(make.melange_example(), settings=EXACT, assignment=FRACTIONAL)
    solve(made_up(make, 0), settings=EXACT, assignment=Assignment.sliced(2))
    with pytest.raises(AssertionError):
        solve(made_up(make, 0), settings=EXACT, assignment=FRACTIONAL)


def test_a_model_with_other_rows_is_not_cut(make):
    model = build_model(fleet_arrays(made_up(make, 0), FRACTIONAL))
    assert can_be_cut(model, model.freeze())
    model.builder.add_rows("rule", rows=[0], columns=model.n[:1], values=1.0, upper=[1.0])
    assert not can_be_cut(model, model.freeze())


@given(seed=st.integers(0, 10_000))
def test_repair_never_exceeds_more_and_mostly_nothing(make, seed):
    _, _, pieces = pieces_of(made_up(make, seed))
    budget = Budget(EXACT)
    prices = relax(pieces, budget)
    if prices.short:
        return
    near = Neighbourhood(
        cut=pieces,
        prices=prices,
        scores=tuple(option_scores(part, prices) for part in pieces.parts),
        budget=budget,
    )
    start = state_of(pieces, np.ceil(prices.replicas))
    repaired = repair(near, start, gap=1e-4)
    assert repaired.excess.sum() <= start.excess.sum()
    assert start.is_feasible or not repaired.is_feasible or repaired.excess.sum() == 0


def test_work_in_parallel_keeps_its_order_and_its_errors():
    budget = Budget(EXACT)
    assert solve_all(lambda item: item * item, range(5), budget) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        solve_all(lambda item: 1 // item, [1, 0], budget)
    budget.interrupt()
    assert solve_all(lambda item: item, [1, 2], budget) == [None, None]
