"""Statistics of few requests: a value, and an interval that says how little is known."""

import math

import numpy as np
import pytest

from planner.simulate import statistics


@pytest.mark.parametrize("n", [1, 2, 19])
def test_a_percentile_of_fewer_requests_than_batches_has_no_upper_bound(n):
    values = np.arange(n, dtype=np.float64)
    found = statistics.percentile(values, 99.0)
    assert (found.value, found.low, found.high, found.n) == (n - 1, 0, math.inf, n)


def test_a_mean_of_fewer_requests_than_batches_may_be_anywhere():
    found = statistics.mean(np.array([1.0, 3.0]))
    assert (found.value, found.low, found.high) == (2, -math.inf, math.inf)
