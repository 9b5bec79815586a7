"""Losses and bursts in a replay."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from simulate.stations import one_row, pools_of, station, traffic

from planner.domain.workload import PrefixHashes
from planner.errors import InputError
from planner.simulate import arrivals
from planner.simulate.events import faults_of, parse_event, with_surge
from planner.simulate.run import simulate


def pool(replicas, **place):
    return SimpleNamespace(replicas=replicas, **{"region": "r1", "market": "spot", "gpu": "A", **place})


def changes(text, allocation):
    return [
        (f.at_s, f.replica, f.is_up)
        for f in sorted(faults_of([parse_event(text)], allocation), key=lambda f: (f.at_s, f.replica))
    ]


def test_everything_in_a_place_goes_and_comes_back():
    allocation = [pool(2), pool(1, region="r2"), pool(1)]
    assert changes("10s-20s: lose region r1", allocation) == [
        (10.0, 0, False), (10.0, 1, False), (10.0, 3, False), (20.0, 0, True), (20.0, 1, True), (20.0, 3, True),
    ]  # fmt: skip


@pytest.mark.parametrize(("percent", "lost"), [(10, [0]), (30, [0, 4]), (50, [0, 1, 4]), (100, [0, 1, 2, 3, 4, 5])])
def test_a_part_is_taken_from_every_pool_alike_rounded_up(percent, lost):
    gone = changes(f"1s-2s: lose {percent}% of market spot", [pool(4), pool(2)])
    assert sorted(replica for _, replica, is_up in gone if not is_up) == lost


def test_losses_that_overlap_are_one():
    losses = [parse_event("1s-5s: lose gpu A"), parse_event("3s-9s: lose region r1"), parse_event("9s-10s: lose gpu A")]
    assert [(f.at_s, f.is_up) for f in faults_of(losses, [pool(1)])] == [(1.0, False), (10.0, True)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10min: lose gpu A", "is no event"),
        ("20s-10s: lose gpu A", "ends before it begins"),
        ("1s-2s: break gpu A", "nothing that can happen"),
        ("1s-2s: lose 0% of gpu A", "cannot be lost"),
        ("1s-2s: lose 130% of gpu A", "cannot be lost"),
        ("1s-later: load x 2", "later"),
    ],
)
def test_what_is_no_event_is_told(text, words):
    with pytest.raises(InputError, match=words):
        parse_event(text)


def test_a_place_that_the_plan_does_not_use_is_told():
    with pytest.raises(InputError, match="nothing in region 'r9'"):
        list(faults_of([parse_event("1s-2s: lose region r9")], [pool(1)]))


@pytest.mark.parametrize("factor", [2, 2.5, 0.5, 1])
def test_a_burst_multiplies_the_requests_of_its_time_and_no_others(factor):
    n = 6000
    requests = traffic(arrivals.poisson(10, n, np.random.default_rng(0)), np.arange(n) + 1)
    blocks = PrefixHashes(hashes=np.arange(n), offsets=np.arange(n + 1), block_tokens=512)
    requests = replace(requests, prefix=blocks)
    more = with_surge(requests, parse_event(f"100s-200s: load x {factor}"), np.random.default_rng(1))

    def count(of, low, high):
        return int(((of.arrival_s >= low) & (of.arrival_s < high)).sum())

    assert np.all(np.diff(more.arrival_s) >= 0)
    assert count(more, 100, 200) == pytest.approx(factor * count(requests, 100, 200), abs=1)
    assert count(more, 0, 100) == count(requests, 0, 100)
    assert count(more, 200, 1e9) == count(requests, 200, 1e9)
    assert (more.prefix.hashes + 1 == more.output_tokens).all()  # every request kept its own blocks


def test_a_lost_replica_costs_those_who_come_then_and_no_others():
    rng = np.random.default_rng(2)
    requests = traffic(arrivals.poisson(1.0, 2000, rng), np.full(2000, 10))
    fault = list(faults_of([parse_event("500s-600s: lose gpu A")], [pool(1)]))
    records = simulate(pools_of(station(0.01, slots=4)), requests, one_row(), faults=fault).records
    late = records.e2e_s > 1
    assert records.is_answered.all()
    assert late[(records.arrival_s > 500) & (records.arrival_s < 599)].all()
    assert not late[(records.arrival_s < 499) | (records.arrival_s > 605)].any()
