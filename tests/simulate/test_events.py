"""Losses and bursts in a replay."""

from dataclasses import replace

import numpy as np
import pytest
from simulate.stations import one_row, pools_of, station, traffic

from planner.domain.workload import PrefixHashes
from planner.errors import InputError
from planner.simulate import arrivals
from planner.simulate.events import AS_THE_CATALOG_SAYS, parse_event, with_surge
from planner.simulate.faults import Place, Recovery, timeline
from planner.simulate.run import simulate

DAY_S = 86400.0


def pool(replicas, **place):
    return Place(replicas=replicas, **{"region": "r1", "market": "spot", "gpu": "A", **place})


def faults_of(texts, places, **more):
    found = timeline(places, [parse_event(text) for text in texts], **({"length_s": 1e9} | more))
    return sorted(found.faults, key=lambda f: (f.at_s, f.replica))


def changes(text, places, **more):
    return [(f.at_s, f.replica, f.is_up) for f in faults_of([text], places, **more)]


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
    losses = ["1s-5s: lose gpu A", "3s-9s: lose region r1", "9s-10s: lose gpu A"]
    assert [(f.at_s, f.is_up) for f in faults_of(losses, [pool(1)])] == [(1.0, False), (10.0, True)]


def test_what_comes_back_has_to_start_first():
    assert changes("1s-5s: lose gpu A", [pool(1)], recovery=Recovery(start_up_s=90.0)) == [
        (1.0, 0, False), (95.0, 0, True),
    ]  # fmt: skip


def test_a_zone_is_one_region_s():
    places = [pool(1, provider="p", region=region, zone=zone) for region in ("r1", "r2") for zone in ("z1", "z2")]
    assert [r for _, r, up in changes("1s-2s: lose zone p r2 z1", places) if not up] == [2]
    assert [r for _, r, up in changes("1s-2s: lose zone r1 z2", places) if not up] == [1]
    assert [r for _, r, up in changes("1s-2s: lose zone z1", places[:2]) if not up] == [0]
    with pytest.raises(InputError, match=r"more than one zone 'z1'.*p r1 z1, p r2 z1"):
        changes("1s-2s: lose zone z1", places)
    with pytest.raises(InputError, match="does not say in which zone"):
        changes("1s-2s: lose zone z1", [pool(1)])


def test_an_offer_is_lost_in_all_of_its_zones():
    places = [pool(1, offer=f"o/{zone}", listing="o", zone=zone) for zone in ("z1", "z2")]
    assert len([up for _, _, up in changes("1s-2s: lose offer o", places) if not up]) == 2
    assert len([up for _, _, up in changes("1s-2s: lose offer o/z2", places) if not up]) == 1


def test_a_loss_within_a_schedule():
    """Wanted from 0 to 10 and from 20 on; lost from 5 to 12 and from 30 to 40."""
    scheduled = [[(0.0, 10.0), (20.0, np.inf)]]
    found = timeline(
        [pool(1)],
        [parse_event("5s-12s: lose gpu A"), parse_event("30s-40s: lose gpu A")],
        length_s=100.0,
        scheduled=scheduled,
    )
    told = [(f.at_s, f.is_up, f.lets_finish) for f in found.faults]
    assert told == [(5, False, False), (20, True, False), (30, False, False), (40, True, False)]
    assert found.served_s(100.0) == [5 + 70]
    assert timeline([pool(1)], [], length_s=100.0, scheduled=[[(20.0, np.inf)]]).down_at_start == (0,)
    drains = timeline([pool(1)], [], length_s=100.0, scheduled=[[(0.0, 10.0)]]).faults
    assert [(f.at_s, f.is_up, f.lets_finish) for f in drains] == [(10, False, True)]


@pytest.mark.parametrize("seed", range(3))
def test_replicas_fail_as_often_as_is_said(seed):
    found = timeline(
        [pool(50)],
        [parse_event("fail every 2d, back in 1h")],
        length_s=100 * DAY_S,
        rng=np.random.default_rng(seed),
    )
    assert found.n_lost == pytest.approx(50 * 100 / (2 + 1 / 24), rel=0.06)
    assert all(end - start == pytest.approx(3600) for spans in found.gone for start, end in spans)
    starts = np.concatenate([[start for start, _ in spans] for spans in found.gone])
    assert len(set(starts)) == len(starts)  # each by itself


def test_a_reclaimed_instance_takes_all_of_its_replicas_and_spares_other_markets():
    places = [pool(8, replicas_per_instance=4), pool(3, market="on-demand")]
    found = timeline(
        places, [parse_event("spot at 50%/day, back in 15min")], length_s=200 * DAY_S, rng=np.random.default_rng(1)
    )
    assert found.gone[0] == found.gone[3] != found.gone[4]
    assert found.gone[4] == found.gone[7]
    assert not any(found.gone[8:])
    assert len(found.gone[0]) == pytest.approx(100, rel=0.3)


def test_the_catalog_says_how_often_and_the_request_for_how_long():
    places = [pool(20, reclaims_per_s=1 / DAY_S), pool(20)]
    recovery = Recovery(spot_s=600.0)
    found = timeline(
        places, [AS_THE_CATALOG_SAYS], length_s=50 * DAY_S, recovery=recovery, rng=np.random.default_rng(2)
    )
    assert sum(map(len, found.gone[:20])) == pytest.approx(20 * 50, rel=0.1)
    assert not any(found.gone[20:])
    for wrong, words in (
        ([pool(1, market="on-demand")], "nothing on spot"),
        ([pool(1)], "not known how often"),
        ([pool(1, reclaims_per_s=1.0)], "how long it takes until a replacement"),
    ):
        with pytest.raises(InputError, match=words):
            timeline(wrong, [AS_THE_CATALOG_SAYS], length_s=1.0)
    with pytest.raises(InputError, match="how long a replica that fails is away"):
        timeline([pool(1)], [parse_event("fail every 1d")], length_s=1.0)


def test_what_happens_at_random_keeps_to_its_time():
    found = timeline(
        [pool(100)], [parse_event("1h-2h: fail every 1h, back in 1s")], length_s=DAY_S, rng=np.random.default_rng(3)
    )
    starts = [start for spans in found.gone for start, _ in spans]
    assert len(starts) == pytest.approx(100, rel=0.3)
    assert 3600 <= min(starts) < max(starts) < 7200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10min: lose gpu A", "is no event"),
        ("20s-10s: lose gpu A", "ends before it begins"),
        ("1s-2s: break gpu A", "nothing that can happen"),
        ("1s-2s: lose 0% of gpu A", "cannot be lost"),
        ("1s-2s: lose 130% of gpu A", "cannot be lost"),
        ("1s-later: load x 2", "later"),
        ("load x 2", "is no event"),
        ("spot at 20%", "is no event"),
        ("1s-2s: spot at 20%", "nothing that can happen"),
        ("spot at 0%/month", "a rate or a time of 0"),
        ("fail every 0s, back in 1s", "a rate or a time of 0"),
        ("fail every day", "day"),
        ("fail every 1d, back in -1s", "back in"),
    ],
)
def test_what_is_no_event_is_told(text, words):
    with pytest.raises(InputError, match=words):
        parse_event(text)


def test_a_place_that_the_plan_does_not_use_is_told():
    with pytest.raises(InputError, match="nothing in region 'r9'"):
        faults_of(["1s-2s: lose region r9"], [pool(1)])


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


def test_a_burst_that_outlasts_the_traffic_ends_with_it():
    n = 2000
    requests = traffic(arrivals.poisson(10, n, np.random.default_rng(0)), np.full(n, 1))
    more = with_surge(requests, parse_event("0s-10h: load x 2"), np.random.default_rng(1))
    assert len(more.arrival_s) == 2 * n
    assert more.arrival_s[-1] == requests.arrival_s[-1]


def test_what_is_too_much_to_simulate_is_told():
    requests = traffic(np.arange(100.0), np.full(100, 1))
    with pytest.raises(InputError, match="requests more"):
        with_surge(requests, parse_event("0s-1h: load x 1000000000000"), np.random.default_rng(1))
    with pytest.raises(InputError, match="times to one replica"):
        faults_of(["fail every 1us, back in 1us"], [pool(1)], length_s=1000.0)


def test_a_lost_replica_costs_those_who_come_then_and_no_others():
    rng = np.random.default_rng(2)
    requests = traffic(arrivals.poisson(1.0, 2000, rng), np.full(2000, 10))
    fault = faults_of(["500s-600s: lose gpu A"], [pool(1)])
    records = simulate(pools_of(station(0.01, slots=4)), requests, one_row(), faults=fault).records
    late = records.e2e_s > 1
    assert records.is_answered.all()
    assert late[(records.arrival_s > 500) & (records.arrival_s < 599)].all()
    assert not late[(records.arrival_s < 499) | (records.arrival_s > 605)].any()
