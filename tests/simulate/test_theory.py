"""The event loop against queueing theory: each station has a known answer, which the 95% interval must hold."""

import math

import numpy as np
import pytest
from simulate.stations import one_row, pools_of, station, traffic

from planner.simulate import arrivals, statistics
from planner.simulate.run import ClosedLoop, simulate

N = 200_000
MEAN_TOKENS = 400
STEP_S = 1.0 / MEAN_TOKENS
"""So that the mean service time is a second."""


def replay(arrival_s, tokens, *, slots=1, sequence_s=0.0, step_s=STEP_S, warm=0.05):
    result = simulate(
        pools_of(station(step_s, slots=slots, sequence_s=sequence_s)), traffic(arrival_s, tokens), one_row()
    )
    after = result.records.arrival_s >= result.records.arrival_s[-1] * warm
    return result, result.records.select(after)


def geometric(rng, n=N, mean=MEAN_TOKENS):
    return rng.geometric(1.0 / mean, n)


def pollaczek_khinchine(rate, service_s):
    """Return the mean time in an M/G/1 queue of the given service times."""
    utilisation = rate * service_s.mean()
    return service_s.mean() + rate * (service_s**2).mean() / 2 / (1 - utilisation)


def erlang_c(servers, offered):
    """Return the probability that an arrival waits in M/M/c."""
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


@pytest.mark.parametrize("utilisation", [0.3, 0.7, 0.85])
def test_m_m_1(utilisation):
    rng = np.random.default_rng(1)
    _, records = replay(arrivals.poisson(utilisation, N, rng), geometric(rng))
    found = statistics.mean(records.e2e_s)
    assert found.low <= 1 / (1 - utilisation) <= found.high
    tail = statistics.percentile(records.e2e_s, 99)
    assert tail.low <= math.log(100) / (1 - utilisation) <= tail.high


@pytest.mark.parametrize("utilisation", [0.4, 0.8])
def test_m_d_1(utilisation):
    rng = np.random.default_rng(2)
    _, records = replay(arrivals.poisson(utilisation, N, rng), np.full(N, MEAN_TOKENS))
    found = statistics.mean(records.e2e_s)
    assert found.low <= 1 + utilisation / 2 / (1 - utilisation) <= found.high


def test_m_g_1_with_service_times_of_high_variance():
    rng = np.random.default_rng(3)
    tokens = np.where(rng.random(N) < 0.9, 100, 3100)
    _, records = replay(arrivals.poisson(0.6, N, rng), tokens)
    found = statistics.mean(records.e2e_s)
    mix = np.repeat([100, 3100], [9, 1]) * STEP_S
    assert found.low <= pollaczek_khinchine(0.6, mix) <= found.high


@pytest.mark.parametrize(("servers", "utilisation"), [(2, 0.7), (8, 0.8), (32, 0.9)])
def test_m_m_c(servers, utilisation):
    """One replica with c slots is c servers before one queue; starts wait for the next step, half of one on average."""
    rng = np.random.default_rng(4)
    rate = utilisation * servers
    _, records = replay(arrivals.poisson(rate, N, rng), geometric(rng), slots=servers)
    wait = erlang_c(servers, rate) / (servers - rate)
    found = statistics.mean(records.e2e_s)
    assert found.low - STEP_S <= 1 + wait <= found.high + STEP_S


def test_processor_sharing():
    """A step that takes as long as there are sequences in it is M/G/1 processor sharing: s / (1 - rho) for any law."""
    rng = np.random.default_rng(5)
    tokens = np.where(rng.random(N) < 0.5, 100, 700)
    _, records = replay(arrivals.poisson(0.7, N, rng), tokens, slots=4096, step_s=0.0, sequence_s=STEP_S)
    found = statistics.mean(records.e2e_s)
    assert found.low <= 1 / (1 - 0.7) * 1.01
    assert found.high >= 1 / (1 - 0.7) * 0.99


def test_closed_network_of_clients_that_think():
    """The machine-repair model: N clients think for Z and are served one at a time; mean value analysis solves it."""
    clients, think_s, n = 12, 8.0, 100_000
    rng = np.random.default_rng(6)
    result = simulate(
        pools_of(station(STEP_S, slots=1)),
        traffic(np.sort(rng.exponential(think_s, n)) * 0, geometric(rng, n)),
        one_row(),
        closed_loop=ClosedLoop(clients=clients, think_s=rng.exponential(think_s, n)),
    )
    waiting = 0.0
    for population in range(1, clients + 1):
        response_s = 1 + waiting
        waiting = population / (response_s + think_s) * response_s
    records = result.records.select(np.arange(n) > n // 20)
    found = statistics.mean(records.e2e_s)
    assert found.low <= response_s <= found.high
    span = records.arrival_s.max() - records.arrival_s.min()
    assert len(records) / span == pytest.approx(clients / (response_s + think_s), rel=0.01)


def test_littles_law_and_conservation():
    rng = np.random.default_rng(7)
    at = arrivals.gamma(3.0, N, rng, cv=2.0)
    result, _ = replay(at, geometric(rng), slots=4)
    records = result.records
    assert records.is_answered.all()
    ends = np.sort(records.arrival_s + records.e2e_s)
    times = np.concatenate([records.arrival_s, ends])
    change = np.concatenate([np.ones(N), -np.ones(N)])
    order = np.lexsort((-change, times))
    inside = np.cumsum(change[order])
    assert inside.min() >= 0
    assert inside[-1] == 0
    held = np.sum(inside[:-1] * np.diff(times[order]))
    assert held == pytest.approx(records.e2e_s.sum(), rel=1e-9)  # L T = sum of times in the system
    assert result.utilization[0] <= 1 + 1e-9
