"""What a replay's statistics say of an objective: within it, surely within it, and long enough to tell."""

import numpy as np
import pytest

from planner.files.slo import parse_slo
from planner.planning.proving.verdict import _judge
from planner.simulate.statistics import SloOutcome, fraction, mean, percentile


def judged(text, values):
    slo = parse_slo(text)
    simulated = mean(values) if slo.percentile is None else percentile(values, slo.percentile)
    found = SloOutcome(slo=slo, simulated=simulated, attainment=fraction((values <= slo.bound_s).astype(float)))
    return _judge("chat", found)


def late(n, n_late):
    """`n` values of which `n_late` are above 1 s, evenly spread."""
    values = np.full(n, 0.5)
    values[np.linspace(0, n - 1, n_late).astype(int)] = 2.0
    return values


@pytest.mark.parametrize(
    ("n", "n_late", "met", "sure", "holds"),
    [
        (10_000, 20, True, True, True),
        (10_000, 95, True, False, False),  # within it, but not surely
        (10_000, 300, False, True, False),
        (475, 0, True, False, True),  # too few for confidence: the value decides
        (476, 0, True, True, True),
        (476, 4, True, False, False),
    ],
)
def test_a_percentile_holds_with_confidence_where_there_are_enough_requests(n, n_late, met, sure, holds):
    found = judged("ttft p99 <= 1s", late(n, n_late))
    assert (found.slo.met, found.slo.sure, found.holds) == (met, sure, holds)
    assert found.is_long_enough == (n >= 476)


@pytest.mark.parametrize(("level_s", "met", "sure", "holds"), [(0.9, True, True, True), (0.999, True, False, False)])
def test_a_mean_holds_where_its_interval_does(level_s, met, sure, holds):
    values = np.random.default_rng(1).normal(level_s, 0.2, 2000)
    values += level_s - values.mean()
    found = judged("ttft mean <= 1s", values)
    assert (found.slo.met, found.slo.sure, found.holds) == (met, sure, holds)


def test_an_objective_that_no_request_has_holds():
    found = judged("tpot p95 <= 1s", np.zeros(0))
    assert (found.holds, found.slo.met, found.slo.sure) == (True, True, False)
