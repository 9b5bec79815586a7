"""Groups of like adapters: what they hold, and that a programme over them costs no more than one over adapters."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.adapter_groups import group_adapters
from planner.domain.adapters import Adapter, Isolation
from planner.domain.slo import Metric, Slo
from planner.optimize.backends import solve_milp
from planner.optimize.milp import MilpBuilder
from planner.optimize.settings import SolverSettings
from planner.optimize.termination import Termination
from planner.optimize.verify import verify


def adapter(name, rate, **changes):
    return Adapter(**({"name": name, "rank": 8, "target_modules": ("q_proj",), "rate_rps": rate} | changes))


def test_adapters_that_differ_are_not_put_together():
    slo = Slo(metric=Metric.TTFT, percentile=99.0, bound_s=1.0)
    differing = [
        adapter("a", 1.0),
        adapter("b", 1.0, rank=16),
        adapter("c", 1.0, target_modules=("q_proj", "v_proj")),
        adapter("d", 1.0, slos=(slo,)),
        adapter("e", 1.0, isolation=Isolation.SHARED_BACKBONE),
        adapter("f", 1.0, isolation=Isolation.DEDICATED),
        adapter("g", 1.0, isolation=Isolation.DEDICATED, is_merged=True),
        adapter("h", 0.0),
        adapter("i", 2.0),
    ]
    assert [group.names for group in group_adapters(differing)] == [(one.name,) for one in differing]


def test_a_thousand_adapters_are_a_few_groups_with_the_same_requests():
    rates = 100.0 / np.arange(1, 1001) ** 1.1
    groups = group_adapters([adapter(f"a{i}", float(rate)) for i, rate in enumerate(rates)])
    assert len(groups) == 14
    assert sum(group.count for group in groups) == 1000
    assert sum(group.total_rate_rps for group in groups) == pytest.approx(rates.sum())
    for group in groups:
        assert group.lowest_rate_rps <= group.mean_rate_rps <= group.highest_rate_rps
        assert group.highest_rate_rps / group.lowest_rate_rps <= 10**0.25 * (1 + 1e-9)


def test_an_unread_trace_or_no_band_is_refused():
    with pytest.raises(ValueError, match="has to be read first"):
        group_adapters([adapter("a", None, trace="a.csv")])
    with pytest.raises(ValueError, match="bands_per_decade"):
        group_adapters([adapter("a", 1.0)], bands_per_decade=0)


LOAD_S, MEMORY_SHARE = 0.09, 0.3
"""One request takes 0.09 s of a place, one resident adapter 30% of its memory."""


def least_cost(totals, counts, highest, prices, *, is_integer):
    """Return the least price of places that hold and serve groups of adapters; with counts of 1, of adapters."""
    builder = MilpBuilder()
    pairs = list(product(range(len(totals)), range(len(prices))))
    groups, places = (np.array(part) for part in zip(*pairs, strict=True))
    share = builder.add_columns("share", len(pairs), upper=1.0)
    resident = builder.add_columns("resident", len(pairs), upper=np.array(counts)[groups], is_integer=is_integer)
    rented = builder.add_columns("rented", len(prices), upper=1.0, cost=prices, is_integer=is_integer)
    load = np.array(totals)[groups] * LOAD_S
    each = np.arange(len(prices))
    builder.add_rows(
        "served", rows=groups, columns=share, values=1.0, lower=np.ones(len(totals)), upper=np.ones(len(totals))
    )
    for name, columns, weights in (("load", share, load), ("memory", resident, np.full(len(pairs), MEMORY_SHARE))):
        builder.add_rows(
            name,
            rows=np.concatenate([places, each]),
            columns=np.concatenate([columns, rented]),
            values=np.concatenate([weights, -np.ones(len(prices))]),
            upper=np.zeros(len(prices)),
        )
    one = np.arange(len(pairs))
    builder.add_rows(
        "residence",
        rows=np.concatenate([one, one]),
        columns=np.concatenate([share, resident]),
        values=np.concatenate([np.array(totals)[groups], -np.array(highest)[groups]]),
        upper=np.zeros(len(pairs)),
    )
    milp = builder.freeze()
    raw = solve_milp(milp, SolverSettings(relative_gap=1e-9))
    if raw.termination is Termination.INFEASIBLE:
        return np.inf
    return verify(milp, raw.values, stated_objective=raw.objective).cost


@given(
    st.lists(st.sampled_from([1.0, 1.1, 1.3, 1.7, 2.0, 3.0, 5.0]), min_size=2, max_size=5),
    st.lists(st.integers(1, 9), min_size=2, max_size=3),
)
def test_a_programme_over_groups_bounds_the_one_over_adapters_from_below(rates, prices):
    groups = group_adapters([adapter(f"a{i}", rate) for i, rate in enumerate(rates)])
    single = least_cost(rates, [1] * len(rates), rates, prices, is_integer=True)
    grouped = least_cost(
        [group.total_rate_rps for group in groups],
        [group.count for group in groups],
        [group.highest_rate_rps for group in groups],
        prices,
        is_integer=False,
    )
    assert grouped <= single + 1e-6


def test_the_bound_is_sharp_where_rates_are_equal_and_places_are_full():
    rates, prices = [2.0] * 5, [1.0, 1.0]
    single = least_cost(rates, [1] * 5, rates, prices, is_integer=True)
    (group,) = group_adapters([adapter(f"a{i}", 2.0) for i in range(5)])
    grouped = least_cost([10.0], [5], [2.0], prices, is_integer=False)
    assert group.count == 5
    assert single == 2.0
    assert grouped == pytest.approx(max(10 * LOAD_S, 5 * MEMORY_SHARE))
