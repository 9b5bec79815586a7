"""The event loop beside two other simulators on the same numbers: SimPy request by request, Ciw on the same network."""

import ciw
import numpy as np
import pytest
import simpy
from simulate.stations import one_row, pools_of, station, traffic

from planner.simulate import arrivals, statistics
from planner.simulate.run import simulate

STEP_S = 1e-3


def in_simpy(arrival_s, service_s, servers):
    """Return each request's time in a first-come-first-served queue before `servers` servers."""
    env = simpy.Environment()
    desk = simpy.Resource(env, capacity=servers)
    times = np.zeros(len(arrival_s))

    def customer(i):
        yield env.timeout(arrival_s[i])
        with desk.request() as turn:
            yield turn
            yield env.timeout(service_s[i])
        times[i] = env.now - arrival_s[i]

    for i in range(len(arrival_s)):
        env.process(customer(i))
    env.run()
    return times


@pytest.mark.parametrize("seed", range(5))
def test_simpy_serves_every_request_at_the_same_time(seed):
    rng = np.random.default_rng(seed)
    n = 2000
    at, tokens = arrivals.gamma(0.8, n, rng, cv=2.0), rng.integers(1, 2000, n)
    ours = simulate(pools_of(station(STEP_S, slots=1)), traffic(at, tokens), one_row()).records
    np.testing.assert_allclose(ours.e2e_s, in_simpy(at, tokens * STEP_S, 1), rtol=1e-9)


@pytest.mark.parametrize("servers", [3, 16])
def test_simpy_agrees_within_a_step_where_servers_share_a_queue(servers):
    """A slot that comes free is taken at the next step, so a request may start a step later than at a free server."""
    rng = np.random.default_rng(servers)
    n = 5000
    at, tokens = arrivals.poisson(0.9 * servers, n, rng), rng.integers(200, 1800, n)
    ours = simulate(pools_of(station(STEP_S, slots=servers)), traffic(at, tokens), one_row()).records
    theirs = in_simpy(at, tokens * STEP_S, servers)
    assert ours.e2e_s.mean() == pytest.approx(theirs.mean(), rel=0.01)
    assert np.percentile(ours.e2e_s, 99) == pytest.approx(np.percentile(theirs, 99), rel=0.01)


def test_ciw_agrees_within_the_intervals():
    """Not the same draws: Ciw has its own, so the intervals of both must meet."""
    rate, mean_tokens, n = 1.5, 800, 40_000
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Exponential(rate=rate)],
        service_distributions=[ciw.dists.Exponential(rate=1 / (mean_tokens * STEP_S))],
        number_of_servers=[2],
    )
    ciw.seed(1)
    peer = ciw.Simulation(network)
    peer.simulate_until_max_customers(n, method="Finish")
    records = sorted(peer.get_all_records(), key=lambda record: record.arrival_date)
    theirs = statistics.mean(np.array([record.exit_date - record.arrival_date for record in records[n // 20 :]]))
    rng = np.random.default_rng(1)
    result = simulate(
        pools_of(station(STEP_S, slots=2)),
        traffic(arrivals.poisson(rate, n, rng), rng.geometric(1 / mean_tokens, n)),
        one_row(),
    )
    ours = statistics.mean(result.records.e2e_s[n // 20 :])
    assert ours.low <= theirs.high
    assert theirs.low <= ours.high
