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


LOAD_S, MEMORY_SHARE = 0.09, 0.5
"""One request takes 0.09 s of a place, one resident adapter half of its memory."""


def least_cost(totals, counts, highest, prices, *, is_integer, per_request=None):
    """Return the least price of places that hold and serve groups of adapters; with counts of 1, of adapters.

    prices : of renting each place; per_request : of a request in each place.
    """
    builder = MilpBuilder()
    pairs = list(product(range(len(totals)), range(len(prices))))
    groups, places = (np.array(part) for part in zip(*pairs, strict=True))
    asked = np.array(per_request or [0.0] * len(prices))
    share = builder.add_columns("share", len(pairs), upper=1.0, cost=np.array(totals)[groups] * asked[places])
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
    st.lists(st.sampled_from([1.0, 1.1, 1.3, 1.7, 2.0, 3.0]), min_size=2, max_size=6),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=3),
)
def test_a_programme_over_groups_bounds_the_one_over_adapters_from_below(rates, places):
    prices, per_request = zip(*places, strict=True)
    groups = group_adapters([adapter(f"a{i}", rate) for i, rate in enumerate(rates)])
    single = least_cost(rates, [1] * len(rates), rates, prices, is_integer=True, per_request=per_request)
    grouped = least_cost(
        [group.total_rate_rps for group in groups],
        [group.count for group in groups],
        [group.highest_rate_rps for group in groups],
        prices,
        is_integer=False,
        per_request=per_request,
    )
    assert grouped <= single + 1e-6


@pytest.mark.parametrize(("highest", "is_bound"), [(1.7, True), (1.0 + 0.7 / 4, False)])
def test_residence_by_the_highest_rate_is_what_makes_it_a_bound(highest, is_bound):
    """Two of four fit where requests are cheap: the busiest goes there, and serves more than a mean one."""
    rates, prices, per_request = [1.0, 1.0, 1.0, 1.7], [0.0, 0.0], [1.0, 2.0]
    single = least_cost(rates, [1] * 4, rates, prices, is_integer=True, per_request=per_request)
    assert single == pytest.approx(2.7 + 2 * 2.0)
    grouped = least_cost([4.7], [4], [highest], prices, is_integer=False, per_request=per_request)
    assert (grouped <= single + 1e-6) is is_bound


def test_the_bound_is_sharp_where_rates_are_equal_and_places_are_full():
    rates, prices = [2.0] * 4, [1.0, 1.0]
    (group,) = group_adapters([adapter(f"a{i}", 2.0) for i in range(4)])
    assert group.count == 4
    assert least_cost(rates, [1] * 4, rates, prices, is_integer=True) == 2.0
    assert least_cost([8.0], [4], [2.0], prices, is_integer=False) == pytest.approx(4 * MEMORY_SHARE)
