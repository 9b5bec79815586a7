"""Options that serve alike: one share for all of them changes no optimum, and what comes back is a solution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.problem import Facet, ShareCap, Survival
from planner.optimize import Assignment, SolverSettings, solve
from planner.optimize import search as search_module
from planner.optimize.alike import merged
from planner.optimize.arrays import fleet_arrays
from planner.optimize.backends import solve_milp
from planner.optimize.model import build_model
from planner.optimize.verify import verify

EXACT = SolverSettings(relative_gap=1e-7, time_limit_s=30)
FRACTIONAL = Assignment.fractional()


def two_regions(make, seed, *, small_load=False, **given):
    """Two services on three GPUs, each in two regions at two prices and in small numbers."""
    rng = np.random.default_rng(seed)
    offers = [
        make.offer(
            f"g{gpu} {region}",
            round(float(rng.uniform(0.8, 1.3)) * (gpu + 1), 2),
            region=region,
            available=None if gpu == 2 else int(rng.integers(1, 4)),
        )
        for gpu in range(3)
        for region in ("east", "west")
    ]
    demands = tuple(make.demand(rng.uniform(0.5, 4.0, 3), service=service) for service in ("chat", "code"))
    if small_load:
        demands = (*demands, make.demand([1e-5], service="rare"))
    options = []
    for service in demands:
        for gpu in range(3):
            rates = rng.uniform(0.7, 1.5, len(service.buckets)) * (gpu + 1)
            rates *= rng.uniform(size=len(rates)) > (0.0 if gpu == 2 else 0.2)
            here = offers[2 * gpu : 2 * gpu + 2] if rates.any() else []
            options += [make.option(offered, rates, service=service.service) for offered in here]
    return make.problem(demands, options, **given)


def both(problem):
    model = build_model(fleet_arrays(problem, FRACTIONAL))
    milp = model.freeze()
    return model, milp, merged(model, milp)


@given(seed=st.integers(0, 10_000), survives=st.booleans(), small_load=st.booleans())
def test_the_optimum_stays_and_its_solution_holds(make, seed, survives, small_load):
    rules = (Survival(name="survive region", facet=Facet.REGION),) if survives else ()
    problem = two_regions(make, seed, small_load=small_load, rules=rules)
    _, milp, by_class = both(problem)
    assert len(by_class.x) * 2 == len(by_class.model.x)
    whole, small = solve_milp(milp, EXACT), solve_milp(by_class.milp, EXACT)
    assert (whole.objective is None) == (small.objective is None)
    if small.objective is not None:
        assert small.objective == pytest.approx(whole.objective, rel=1e-6)
        verify(milp, by_class.expand(small.values), stated_objective=small.objective)


def test_rows_and_columns_keep_their_names_and_places(make):
    model, milp, by_class = both(two_regions(make, 1, small_load=True))
    small = by_class.milp
    assert [small.column_name(column) for column in by_class.n] == [milp.column_name(column) for column in model.n]
    assert np.array_equal(small.cost[by_class.m], milp.cost[model.m])
    names = {small.row_name(row) for row in range(small.n_rows)}
    assert names <= {milp.row_name(row) for row in range(milp.n_rows)}
    assert {"presence", "packing", "limit", "capacity", "coverage"} <= {block.name for block in small.row_blocks}


def test_shares_without_replicas_go_to_the_first_of_the_class(make):
    model, _, by_class = both(two_regions(make, 2))
    shares = by_class.spread(np.ones(len(by_class.x)), np.zeros(len(model.n)))
    summed = np.bincount(by_class.pair_class, weights=shares, minlength=len(by_class.x))
    assert np.array_equal(summed, np.ones(len(by_class.x)))
    assert set(shares.tolist()) == {0.0, 1.0}


def test_rules_that_tell_regions_apart_and_slices_are_left_as_they_are(make):
    cap = ShareCap(name="share of one region", facet=Facet.REGION, bound=0.6)
    problem = two_regions(make, 3)
    assert both(problem)[2] is not None
    assert both(replace(problem, rules=(cap,)))[2] is None
    fleet = fleet_arrays(problem, FRACTIONAL)
    model = build_model(replace(fleet, pair_load=fleet.pair_load * np.linspace(1, 2, len(fleet.pair_load))))
    assert merged(model, model.freeze()) is None
    model = build_model(fleet_arrays(problem, Assignment.sliced(2)))
    assert merged(model, model.freeze()) is None


@pytest.mark.slow
@given(seed=st.integers(0, 10_000))
def test_plans_cost_the_same_with_and_without(make, seed):
    problem = two_regions(make, seed)
    with_classes = solve(problem, settings=EXACT, assignment=FRACTIONAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "merged", lambda *_: None)
        without = solve(problem, settings=EXACT, assignment=FRACTIONAL)
    assert with_classes.status == without.status
    assert with_classes.cost_usd_per_hour == without.cost_usd_per_hour
