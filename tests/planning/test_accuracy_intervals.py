"""How benchmarks/accuracy.py sets the 80% intervals: they hold groups that did not set them as often as promised."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from tests_support import REPO

BENCHMARKS = str(REPO / "benchmarks")
KINDS = np.array(["static_batch", "concurrency"])


@pytest.fixture
def intervals(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import _accuracy_intervals

    yield _accuracy_intervals
    for name in [name for name in sys.modules if name.startswith("_accuracy_")]:
        del sys.modules[name]


def cases(intervals, rng, *, n_groups, n_each=60, between=0.2, new=0.0, borrowed=0.0):
    """Errors of groups (models) that are off by something of their own; the last half is new, the third borrowed."""
    group = np.repeat(np.arange(n_groups), n_each)
    spread = rng.normal(0.0, 0.1, len(group))
    is_new, is_borrowed = group % 4 == 3, group % 4 == 2
    extra = np.where(is_new, new, np.where(is_borrowed, borrowed, 0.0))
    shift = rng.normal(0.0, between, n_groups)[group] + rng.choice([-1.0, 1.0], len(group)) * extra
    return intervals.Cases(
        logs=shift + spread,
        unaided=shift + spread,
        kind=KINDS[np.arange(len(group)) % 2],
        left_out=np.full(len(group), intervals.MODEL),
        labels={intervals.MODEL: np.array([f"model {i}" for i in group])},
        is_new_gpu=is_new & (new > 0),
        is_borrowed=is_borrowed & (borrowed > 0),
    )


def held(intervals, *, is_stretched, repeats=100):
    """Return how often intervals that seven groups set hold the cases of an eighth."""
    rng, inside = np.random.default_rng(5), []
    for _ in range(repeats):
        found = cases(intervals, rng, n_groups=8, n_each=20)
        others = found.labels[intervals.MODEL] != "model 7"
        if is_stretched:
            inside.append(intervals.set_bands(found, others).holds(found, ~others).mean())
        else:
            inside.append((intervals.lacks(found, ~others, intervals.quantiles(found, others)) == 0).mean())
    return np.mean(inside)


def test_intervals_hold_groups_that_did_not_set_them(intervals):
    plain, stretched = (held(intervals, is_stretched=is_stretched) for is_stretched in (False, True))
    assert plain < 0.76
    assert stretched == pytest.approx(0.8, abs=0.05)


def test_where_groups_are_alike_nothing_is_stretched_much(intervals):
    found = cases(intervals, np.random.default_rng(1), n_groups=12, between=0.0)
    bands = intervals.set_bands(found, np.ones(len(found.logs), dtype=bool))
    low, high = bands.ends["any"]
    assert (low, high) == pytest.approx((-0.128, 0.128), abs=0.02)  # eight in ten of a normal law
    assert set(bands.ends) == {"any", *KINDS}


def test_what_is_new_widens_by_what_it_needs(intervals):
    found = cases(intervals, np.random.default_rng(2), n_groups=40, new=0.8, borrowed=0.5)
    everything = np.ones(len(found.logs), dtype=bool)
    bands = intervals.set_bands(found, everything)
    assert bands.new_gpu > bands.borrowed > np.log(intervals.LEAST_BORROWED)
    inside = bands.holds(found, everything)
    for chosen in (found.is_new_gpu, found.is_borrowed, ~(found.is_new_gpu | found.is_borrowed)):
        assert inside[chosen].mean() == pytest.approx(0.8, abs=0.05)


def test_a_kind_with_few_cases_takes_the_interval_of_any(intervals):
    found = cases(intervals, np.random.default_rng(3), n_groups=4, n_each=20)
    few = found.kind.copy()
    few[:5] = "request_rate"
    rare = intervals.Cases(**{**found.__dict__, "kind": few})
    bands = intervals.set_bands(rare, np.ones(len(few), dtype=bool))
    assert "request_rate" not in bands.ends
    assert bands.holds(rare, rare.kind == "request_rate").shape == (5,)
