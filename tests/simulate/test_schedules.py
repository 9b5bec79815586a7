"""Fleets that change by period, requests that are turned away, and pools of their own, against queueing theory."""

from itertools import pairwise

import numpy as np
import pytest
from simulate.stations import one_row, pools_of, station, traffic
from simulate.test_theory import MEAN_TOKENS, STEP_S, erlang_c, geometric

from planner.simulate import arrivals, statistics
from planner.simulate.faults import Place, timeline
from planner.simulate.plans import PlannedFleet, SizeClass, Stretch
from planner.simulate.run import Fault, Policy, Pools, Router, simulate
from planner.simulate.tenants import Seats

SERVICE_S = MEAN_TOKENS * STEP_S


def planned(replicas, lengths_s, *, turned_away=None, slots=1, policy=Policy.WEIGHTS):
    """Return a fleet of one pool with so many replicas in each stretch."""
    edges = np.concatenate([[0.0], np.cumsum(lengths_s)])
    most = max(replicas)
    return PlannedFleet(
        pools=pools_of(station(STEP_S, slots=slots), most),
        router=Router(weights=np.ones((len(replicas), 1)), rate_rps=np.ones((len(replicas), 1)), policy=policy),
        allocation=(),
        places=(Place(replicas=most, gpu="A"),),
        classes=(SizeClass(service="s", input_tokens=None, output_tokens=None),),
        turned_away=np.zeros(len(replicas)) if turned_away is None else np.array(turned_away),
        replicas=np.array(replicas)[:, None],
        stretches=tuple(
            Stretch(start_s=start, end_s=end, period=i) for i, (start, end) in enumerate(pairwise(edges.tolist()))
        ),
        seats=Seats(replica=np.arange(most), n_replicas=most, holds=np.zeros((most, 0), dtype=np.bool_)),
        adapters={},
    )


def run(fleet, requests, rng, events=()):
    changes = timeline(fleet.places, events, length_s=float(requests.arrival_s[-1]), scheduled=fleet.scheduled())
    return simulate(
        fleet.pools,
        fleet.routed(requests, rng),
        fleet.router,
        faults=changes.faults,
        down_at_start=changes.down_at_start,
    ).records


def mean_time_s(servers, rate):
    """Return the mean time in an M/M/c queue with service times of a second."""
    return SERVICE_S + erlang_c(servers, rate * SERVICE_S) * SERVICE_S / (servers - rate * SERVICE_S)


def test_what_is_left_of_a_poisson_process_with_some_turned_away_is_m_m_c():
    rng = np.random.default_rng(1)
    n, rate, away = 150_000, 5.0, 0.4
    requests = traffic(arrivals.poisson(rate, n, rng), geometric(rng, n))
    records = run(planned([1], [1.0], turned_away=[away], slots=4), requests, rng)
    found = statistics.mean(records.select(~records.is_turned_away).e2e_s[n // 20 :])
    assert found.low <= mean_time_s(4, rate * (1 - away)) <= found.high
    assert records.is_turned_away.mean() == pytest.approx(away, abs=0.01)
    assert len(records) == n == records.is_turned_away.sum() + records.is_answered.sum()  # conservation
    assert (records.replica[records.is_turned_away] == -1).all()


def test_two_periods_of_constant_rate_are_two_queues_away_from_the_edges():
    """Chance chooses the replica, so that each is an M/M/1 queue with its part of the requests."""
    rng = np.random.default_rng(2)
    length, rates, servers = 40_000.0, [1.4, 3.2], [2, 4]
    at_s = arrivals.drawn(arrivals.Process(kind="poisson"), np.array([0.0, length, 2 * length]), np.array(rates), rng)
    fleet = planned(servers, [length, length], policy=Policy.WEIGHTED_RANDOM)
    records = run(fleet, traffic(at_s, geometric(rng, len(at_s))), rng)
    assert records.is_answered.all()
    for period in (0, 1):
        inside = (records.arrival_s > length * (period + 0.05)) & (records.arrival_s < length * (period + 0.98))
        found = statistics.mean(records.e2e_s[inside])
        assert found.low <= 1 / (1 - rates[period] / servers[period]) <= found.high


def test_a_replica_that_is_stopped_finishes_what_it_has_and_takes_no_more():
    rng = np.random.default_rng(3)
    at_s = arrivals.poisson(3.0, 6000, rng)
    records = run(planned([5, 2, 5], [600.0, 300.0, 1e9]), traffic(at_s, geometric(rng, len(at_s))), rng)
    assert records.is_answered.all()
    assert records.restarts.sum() == 0
    inside = (at_s > 600) & (at_s < 900)
    assert set(records.replica[inside]) == {0, 1}
    assert set(records.replica[~inside]) == set(range(5))
    drained = (records.arrival_s < 600) & (records.arrival_s + records.e2e_s > 600) & (records.replica >= 2)
    assert drained.any()


def test_losing_instead_of_draining_starts_requests_over():
    from planner.simulate.events import parse_event

    rng = np.random.default_rng(3)
    at_s = arrivals.poisson(3.0, 6000, rng)
    requests = traffic(at_s, geometric(rng, len(at_s)))
    records = run(planned([5], [1.0]), requests, rng, events=(parse_event("600s-900s: lose 60% of gpu A"),))
    assert records.is_answered.all()
    assert records.restarts.sum() > 0


def test_a_replica_that_comes_back_while_it_drains_keeps_its_requests():
    rng = np.random.default_rng(4)
    at_s = arrivals.poisson(3.0, 6000, rng)
    tokens = np.full(len(at_s), 20 * MEAN_TOKENS)  # 20 s of service: still under way when the short period ends
    records = run(planned([90, 1, 90], [600.0, 5.0, 1e9]), traffic(at_s, tokens), rng)
    assert records.is_answered.all()
    assert records.restarts.sum() == 0
    assert records.e2e_s[at_s < 595].max() == pytest.approx(20 * SERVICE_S, rel=0.01)


def test_prefill_and_decode_are_two_queues_in_tandem():
    rng = np.random.default_rng(5)
    n, rate = 30_000, 0.7
    prefill, decode = station(STEP_S, slots=1), station(STEP_S, slots=1)
    prefill["token_budget"], prefill["is_prefill"] = 1, 1  # a prompt token per step: exponential service times
    router = Router(weights=np.eye(2), rate_rps=np.eye(2), decode_row=1)
    requests = traffic(arrivals.poisson(rate, n, rng), geometric(rng, n), geometric(rng, n))
    pools = Pools(kinds=np.concatenate([prefill, decode]), replicas=(1, 1))
    records = simulate(pools, requests, router).records.select(np.arange(n) > n // 20)
    # M/M/1 twice: departures of the first are Poisson (Burke); the first token comes from the prefill.
    waits, later = 1 / (1 / SERVICE_S - rate), 1 / (1 / (SERVICE_S - STEP_S) - rate)
    first, second = statistics.mean(records.ttft_s), statistics.mean(records.e2e_s - records.ttft_s)
    assert first.low <= waits <= first.high
    assert second.low <= later <= second.high


def test_kv_caches_pass_only_where_both_ends_meet():
    """Two places, each with a prefill and a decode pool: the second half is served where the first one was."""
    kinds = np.concatenate([station(0.01, slots=4) for _ in range(4)])
    kinds["is_prefill"] = [1, 1, 0, 0]
    n = 4000
    rng = np.random.default_rng(6)
    weights = np.zeros((3, 4))
    weights[0, :2] = 0.5  # prompts to either place
    weights[1, 2] = weights[2, 3] = 0.5  # answers, by place
    router = Router(weights=weights, rate_rps=weights * 2, decode_row=1, handover=(1, 2, 0, 0))
    requests = traffic(arrivals.poisson(2.0, n, rng), np.full(n, 5))
    records = simulate(Pools(kinds=kinds, replicas=(1, 1, 1, 1)), requests, router).records
    assert set(records.replica) == {2, 3}
    assert (records.replica == 2).mean() == pytest.approx(0.5, abs=0.03)
    draws = np.random.default_rng(0).random(n)  # those that routed the prompts
    assert ((records.replica == 2) == (draws < 0.5)).all()


def test_the_second_choice_of_a_request_does_not_follow_from_its_first():
    kinds = np.concatenate([station(0.001, slots=50) for _ in range(4)])
    kinds["is_prefill"] = [1, 0, 0, 0]
    n = 8000
    rng = np.random.default_rng(7)
    weights = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.25, 0.25]])  # half of the requests are handed over, to two pools
    router = Router(weights=weights, rate_rps=weights * 2, decode_row=1, handover=(1, 0, 0, 0))
    records = simulate(
        Pools(kinds=kinds, replicas=(1, 1, 1, 1)), traffic(arrivals.poisson(20.0, n, rng), np.full(n, 5)), router
    ).records
    counts = np.bincount(records.replica, minlength=4) / n
    assert counts == pytest.approx([0, 0.5, 0.25, 0.25], abs=0.02)


def test_replications_hold_the_known_mean():
    found = []
    for seed in range(20, 32):
        rng = np.random.default_rng(seed)
        n = 20_000
        requests = traffic(arrivals.poisson(0.7, n, rng), geometric(rng, n))
        records = simulate(pools_of(station(STEP_S, slots=1)), requests, one_row(), seed=seed).records
        found.append(statistics.mean(records.e2e_s[n // 10 :]))
    together = statistics.across(found)
    assert together.low <= 1 / (1 - 0.7) <= together.high
    assert together.high - together.low < 2 * np.median([one.high - one.low for one in found])
    assert statistics.across(found[:1]) == found[0]


def test_a_pool_that_has_lost_replicas_gets_as_much_less():
    """Weights are meant for the replicas that the plan has: one of two lost leaves half, the rest goes elsewhere."""
    rng = np.random.default_rng(8)
    n = 20_000
    kinds = np.concatenate([station(0.001, slots=50), station(0.001, slots=50)])
    router = Router(weights=np.array([[0.5, 0.5]]), rate_rps=np.ones((1, 2)))
    requests = traffic(arrivals.poisson(20.0, n, rng), np.full(n, 5))
    lost = [Fault(at_s=0.0, replica=0, is_up=False)]
    records = simulate(Pools(kinds=kinds, replicas=(2, 1)), requests, router, faults=lost).records
    assert np.bincount(records.replica, minlength=3) / n == pytest.approx([0, 1 / 3, 2 / 3], abs=0.02)
