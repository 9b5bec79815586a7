"""How requests arrive: processes by their mean rate and burstiness, traces at other rates, resampled traces."""

import numpy as np
import pytest

from planner.errors import InputError
from planner.simulate import arrivals
from planner.simulate.arrivals import parse_process


def drawn(text, rate=5.0, length=20_000.0, seed=1):
    return arrivals.drawn(parse_process(text), np.array([0.0, length]), np.array([rate]), np.random.default_rng(seed))


def dispersion(at_s, window_s):
    """Return variance over mean of the requests in windows: 1 for a Poisson process."""
    counts = np.histogram(at_s, np.arange(0, at_s[-1], window_s))[0]
    return counts.var() / counts.mean()


@pytest.mark.parametrize("text", ["poisson", "gamma:3", "gamma:0.3", "mmpp:4,30s,20%"])
def test_every_process_has_the_rate_that_is_asked_for(text):
    at_s = drawn(text)
    assert np.mean([len(drawn(text, seed=seed)) for seed in range(30)]) == pytest.approx(5.0 * 20_000, rel=0.03)
    assert (np.diff(at_s) >= 0).all()
    assert at_s[-1] == pytest.approx(20_000, rel=0.01)


def test_burstiness_is_what_was_asked_for():
    gaps = np.diff(drawn("gamma:3"))
    assert gaps.std() / gaps.mean() == pytest.approx(3, rel=0.05)
    assert dispersion(drawn("poisson"), 60) == pytest.approx(1, rel=0.2)
    # 20% of the time at 4 times the mean, else at a quarter: the counts of long windows spread far more.
    assert dispersion(drawn("mmpp:4,30s,20%"), 60) > 20


def test_bursts_take_their_share_of_the_time():
    at_s = drawn("mmpp:4,30s,20%")
    in_seconds = np.histogram(at_s, np.arange(0, 20_000, 1.0))[0]
    assert (in_seconds > 10).mean() == pytest.approx(0.2, abs=0.05)


def test_rates_of_periods_are_kept_by_every_process():
    edges, rates = np.array([0.0, 1000.0, 2000.0, 3000.0]), np.array([2.0, 0.0, 8.0])
    for text in ("poisson", "gamma:2", "mmpp:2,10s,30%"):
        at_s = arrivals.drawn(parse_process(text), edges, rates, np.random.default_rng(2))
        counts = np.histogram(at_s, edges)[0]
        assert counts == pytest.approx(rates * 1000, rel=0.15)


def test_a_trace_in_a_schedule_keeps_its_bursts_and_loses_its_own_rhythm():
    rng = np.random.default_rng(3)
    own = np.sort(np.concatenate([rng.random(4000) * 1000, 1000 + rng.random(1000) * 1000]))
    unit = arrivals.in_unit_rate(own, 1000.0)
    assert unit[0] == 1
    assert unit[-1] == pytest.approx(len(own), rel=0.01)
    back = arrivals.at_rates(unit, np.array([0.0, 1000.0, 2000.0]), np.array([1.0, 4.0]))
    assert np.histogram(back, [0, 1000, 2000])[0] == pytest.approx([1000, 4000], rel=0.05)
    same = arrivals.at_rates(unit, np.array([0.0, 1000.0, 2000.0]), np.array([4.0, 1.0]))
    assert same == pytest.approx((own - own[0])[: len(same)], abs=2.0)  # its own rates give the trace again


def test_a_trace_that_is_too_short_begins_again():
    unit = arrivals.in_unit_rate(np.array([0.0, 1.0, 5.0]))
    longer = arrivals.repeated(unit, 8)
    assert len(longer) == 8
    assert longer[3:6] - longer[:3] == pytest.approx([3, 3, 3])


def test_a_resampled_trace_keeps_runs_and_their_gaps():
    rng = np.random.default_rng(4)
    own = np.cumsum(rng.exponential(1.0, 1000))
    order = arrivals.resampled(1000, 20, rng)
    assert len(order) == 1000
    assert ((np.diff(order) % 1000) == 1).mean() > 0.97
    again = arrivals.gaps_of(own, order)
    for i in range(1, 50):
        assert again[i] - again[i - 1] == pytest.approx(
            own[order[i]] - own[order[i] - 1] if order[i] else (own[-1] - own[0]) / 999
        )
    assert again[-1] == pytest.approx(1000, rel=0.15)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("weekly", "no way for requests to arrive"),
        ("gamma", "no way for requests to arrive"),
        ("poisson:3", "no way for requests to arrive"),
        ("gamma:much", "not a number"),
        ("gamma:0", "not above 0"),
        ("gamma:-1", "not above 0"),
        ("mmpp:3,1min", "how strong, how long"),
        ("mmpp:3,1min,60%", "more than all requests"),
        ("mmpp:3,1min,100%", "share of the time below 100%"),
        ("mmpp:3,long,10%", "long"),
    ],
)
def test_what_is_no_process_is_told(text, words):
    with pytest.raises(InputError, match=words):
        parse_process(text)
