"""Loading ahead: against enumeration, and what evicting leaves."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.optimize.preload import (
    Artifact,
    Eviction,
    Place,
    Preload,
    Shelves,
    Tier,
    artifact_rates,
    best_preload,
    bytes_to_free,
    evict,
    greedy_preload,
)
from planner.optimize.settings import SolverSettings

EXACT = SolverSettings(relative_gap=1e-9)
GB = 1e9
HOST = Place(name="host", tier=Tier.HOST, capacity_bytes=2 * GB)
GPU = Place(name="gpu0", tier=Tier.GPU, capacity_bytes=44.4 * GB)


def function(name, rate_rps, backbone="7b"):
    """Return the artifacts of one function that are its own."""
    return [
        Artifact(
            name=f"{name}-lora", size_bytes=0.1 * GB, rate_rps=rate_rps, saved_s={Tier.GPU: 0.6}, requires=(backbone,)
        ),
        Artifact(
            name=f"{name}-kernels",
            size_bytes=0.02 * GB,
            rate_rps=rate_rps,
            saved_s={Tier.GPU: 0.5},
            requires=(backbone,),
        ),
    ]


def shared(rate_rps, *, backbone="7b", size_bytes=14 * GB):
    """Return the libraries and a backbone."""
    return [
        Artifact(name=f"libs-{backbone}", size_bytes=0.6 * GB, rate_rps=rate_rps, saved_s={Tier.HOST: 2.5}),
        Artifact(
            name=backbone,
            size_bytes=size_bytes,
            rate_rps=rate_rps,
            saved_s={Tier.GPU: 10.0, Tier.HOST: 7.0},
            requires=(f"libs-{backbone}",),
        ),
    ]


def best_by_enumeration(artifacts, places):
    """Return the largest value of all subsets that fit and have what they require."""
    tier_of = {place.name: place.tier for place in places}
    machine_of = {place.name: place.machine for place in places}
    pairs = [
        (a, p.name) for a in artifacts for p in places if p.tier in a.saved_s and (not a.places or p.name in a.places)
    ]
    homes = {a.name: {name for b, name in pairs if b is a} for a in artifacts}
    best = 0.0
    for size in range(len(pairs) + 1):
        for chosen in combinations(pairs, size):
            names = {(artifact.name, place) for artifact, place in chosen}
            if any(
                sum(a.size_bytes for a, where in chosen if where == p.name) > p.capacity_bytes
                or sum(where == p.name for _, where in chosen) > p.most
                for p in places
            ) or any(
                not names
                & {
                    (needed, where)
                    for where in ({place} if place in homes[needed] else homes[needed])
                    if machine_of[where] == machine_of[place]
                }
                for artifact, place in chosen
                for needed in artifact.requires
            ):
                continue
            worth = {}
            for artifact, place in chosen:
                value = artifact.rate_rps * artifact.saved_at_s.get(place, artifact.saved_s[tier_of[place]])
                counts_as = artifact.credit or artifact.name
                worth[counts_as] = max(worth.get(counts_as, 0.0), value)
            best = max(best, sum(worth.values()))
    return best


tiers = st.dictionaries(st.sampled_from(list(Tier)), st.integers(0, 8).map(float), min_size=1, max_size=2)


@st.composite
def shelves(draw):
    artifacts = []
    kinds = draw(st.lists(st.sampled_from(list(Tier)), min_size=1, max_size=3))
    somewhere = st.frozensets(st.sampled_from([f"p{i}" for i in range(len(kinds))]), min_size=1)
    for i in range(draw(st.integers(1, 4))):
        requires = draw(st.sets(st.sampled_from([a.name for a in artifacts]), max_size=2)) if artifacts else set()
        saved_s = draw(tiers)
        less = {f"p{j}": saved_s[tier] / draw(st.integers(1, 3)) for j, tier in enumerate(kinds) if tier in saved_s}
        artifacts.append(
            Artifact(
                name=f"a{i}",
                size_bytes=float(draw(st.integers(0, 6))),
                rate_rps=float(draw(st.integers(0, 5))),
                saved_s=saved_s,
                requires=tuple(sorted(requires)),
                places=draw(st.none() | somewhere),
                saved_at_s=draw(st.sampled_from([{}, less])),
                credit=draw(st.sampled_from(["", "", "together"])),
            )
        )
    places = [
        Place(
            name=f"p{i}",
            tier=tier,
            capacity_bytes=float(draw(st.integers(0, 12))),
            machine=draw(st.sampled_from(["m0", "m1"])),
            most=draw(st.sampled_from([math.inf, 1.0, 2.0])),
        )
        for i, tier in enumerate(kinds)
    ]
    return artifacts, places


@given(shelves())
@settings(max_examples=150)
def test_the_programme_finds_what_enumeration_finds(given_shelves):
    artifacts, places = given_shelves
    expected = best_by_enumeration(artifacts, places)
    best, greedy = best_preload(artifacts, places, settings=EXACT), greedy_preload(artifacts, places)
    checked = Shelves(artifacts, places)
    for found in (best, greedy):
        assert checked.is_allowed(found.held)
        assert found.saved_s_per_s == pytest.approx(checked.worth(found.held))
    assert best.saved_s_per_s == pytest.approx(expected, abs=1e-6)
    assert best.bound_s_per_s == pytest.approx(expected, abs=1e-5)
    assert greedy.saved_s_per_s <= expected + 1e-9
    assert greedy.bound_s_per_s >= expected - 1e-9


def test_a_backbone_is_worth_all_its_functions():
    rates = artifact_rates({"a": ["libs-7b", "7b", "a-lora"], "b": ["libs-7b", "7b", "b-lora"]}, {"a": 1.0, "b": 3.0})
    assert rates == {"libs-7b": 4.0, "7b": 4.0, "a-lora": 1.0, "b-lora": 3.0}
    artifacts = [*shared(4.0), *function("a", 1.0), *function("b", 3.0)]
    for found in (best_preload(artifacts, [HOST, GPU], settings=EXACT), greedy_preload(artifacts, [HOST, GPU])):
        assert found.held == {
            ("libs-7b", "host"), ("7b", "gpu0"),
            ("a-lora", "gpu0"), ("a-kernels", "gpu0"), ("b-lora", "gpu0"), ("b-kernels", "gpu0"),
        }  # fmt: skip
        assert found.saved_s_per_s == pytest.approx(4 * (2.5 + 10) + 4 * 1.1)


def test_without_room_for_libraries_nothing_is_loaded():
    artifacts = [*shared(4.0), *function("a", 4.0)]
    cramped = [Place(name="host", tier=Tier.HOST, capacity_bytes=0.5 * GB), GPU]
    assert best_preload(artifacts, cramped) == Preload(held=frozenset(), saved_s_per_s=0.0, bound_s_per_s=0.0)
    assert greedy_preload(artifacts, cramped).held == frozenset()


def test_two_gpus_may_each_have_the_backbone_for_its_adapters():
    small = [Place(name=f"gpu{i}", tier=Tier.GPU, capacity_bytes=14.15 * GB) for i in range(2)]
    artifacts = [*shared(2.0), *(one for name in "ab" for one in function(name, 1.0)[:1])]
    found = best_preload(artifacts, [HOST, *small], settings=EXACT)
    assert {pair for pair in found.held if pair[0] == "7b"} == {("7b", "gpu0"), ("7b", "gpu1")}
    assert found.saved_s_per_s == pytest.approx(2 * 12.5 + 2 * 0.6)


def test_greed_by_density_can_miss_the_best():
    """One byte worth 2 keeps ten bytes worth 10 out."""
    small = Artifact(name="small", size_bytes=1.0, rate_rps=1.0, saved_s={Tier.GPU: 2.0})
    large = Artifact(name="large", size_bytes=10.0, rate_rps=1.0, saved_s={Tier.GPU: 10.0})
    room = [Place(name="gpu0", tier=Tier.GPU, capacity_bytes=10.0)]
    greedy = greedy_preload([small, large], room)
    assert (greedy.saved_s_per_s, greedy.bound_s_per_s) == (2.0, pytest.approx(2 + 0.9 * 10))
    assert best_preload([small, large], room, settings=EXACT).saved_s_per_s == 10.0


def test_hundreds_of_functions_are_loaded_close_to_the_best():
    artifacts = [*shared(100.0, backbone="7b"), *shared(30.0, backbone="13b", size_bytes=26 * GB)]
    for i in range(300):
        artifacts += function(f"f{i}", 20.0 / (1 + i), backbone="7b" if i % 3 else "13b")
    places = [HOST, *(Place(name=f"gpu{i}", tier=Tier.GPU, capacity_bytes=44.4 * GB) for i in range(2))]
    greedy = greedy_preload(artifacts, places)
    best = best_preload(artifacts, places, settings=SolverSettings(time_limit_s=20, relative_gap=1e-3))
    assert Shelves(artifacts, places).is_allowed(greedy.held)
    assert 0.9 * best.bound_s_per_s <= greedy.saved_s_per_s <= best.saved_s_per_s <= best.bound_s_per_s


# --- evicting --------------------------------------------------------------------------------------------------------

CROWD = [*shared(3.0), *function("busy", 2.0), *function("idle", 0.1)]
CROWDED = frozenset({("libs-7b", "host"), *((one.name, "gpu0") for one in CROWD[1:])})


def test_what_saves_least_for_its_room_goes_first():
    found = evict(CROWD, [HOST, GPU], CROWDED, place="gpu0", need_bytes=0.05 * GB)
    assert found == Eviction(
        evicted=(("idle-lora", "gpu0"),), freed_bytes=0.1 * GB, is_enough=True, lost_s_per_s=pytest.approx(0.06)
    )


def test_a_backbone_takes_its_adapters_with_it():
    found = evict(CROWD, [HOST, GPU], CROWDED, place="gpu0", need_bytes=10 * GB)
    assert found.is_enough
    assert ("7b", "gpu0") in found.evicted
    assert {name for name, _ in found.evicted} == {one.name for one in CROWD[1:]}
    assert found.lost_s_per_s == pytest.approx(3 * 10 + 2.1 * 1.1)


def test_what_a_batch_uses_stays_with_what_it_requires():
    found = evict(CROWD, [HOST, GPU], CROWDED, place="gpu0", need_bytes=10 * GB, pinned={("busy-lora", "gpu0")})
    assert not found.is_enough
    assert {name for name, _ in found.evicted} == {"idle-lora", "idle-kernels", "busy-kernels"}


def test_libraries_take_everything_with_them():
    found = evict(CROWD, [HOST, GPU], CROWDED, place="host", need_bytes=1.0)
    assert set(found.evicted) == CROWDED
    assert found.freed_bytes == 0.6 * GB


def test_a_copy_elsewhere_is_lost_at_no_cost():
    twice = {*CROWDED, ("7b", "gpu1")}
    places = [HOST, GPU, Place(name="gpu1", tier=Tier.GPU, capacity_bytes=44.4 * GB)]
    found = evict(CROWD, places, twice, place="gpu1", need_bytes=1.0)
    assert found.evicted == (("7b", "gpu1"),)
    assert found.lost_s_per_s == 0.0


@given(shelves(), st.integers(0, 12))
def test_what_is_left_is_of_use_and_nothing_goes_in_vain(given_shelves, need):
    artifacts, places = given_shelves
    held = greedy_preload(artifacts, places).held
    found = evict(artifacts, places, held, place="p0", need_bytes=float(need))
    left = held - set(found.evicted)
    assert set(found.evicted) <= held
    assert Shelves(artifacts, places).is_allowed(left)
    freed = Shelves(artifacts, places).used_bytes(held)["p0"] - Shelves(artifacts, places).used_bytes(left)["p0"]
    assert found.freed_bytes == pytest.approx(freed)
    assert found.is_enough == (found.freed_bytes >= need)
    assert found.is_enough or Shelves(artifacts, places).used_bytes(left)["p0"] == 0


def test_a_gpu_is_under_pressure_above_nine_tenths():
    assert bytes_to_free(used_bytes=43 * GB, capacity_bytes=44.4 * GB) == pytest.approx(3.04 * GB)
    assert bytes_to_free(used_bytes=30 * GB, capacity_bytes=44.4 * GB) == 0.0


@pytest.mark.parametrize(
    ("artifacts", "words"),
    [
        ([*function("a", 1.0)], "requires '7b', which is not there"),
        ([*shared(1.0), *shared(1.0)], "names of their own"),
        ([Artifact(name="a", size_bytes=-1.0, rate_rps=1.0, saved_s={})], "negative"),
        ([Artifact(name="a", size_bytes=1.0, rate_rps=1.0, saved_s={}, requires=("a",))], "requires itself"),
        (
            [
                Artifact(name="a", size_bytes=1.0, rate_rps=1.0, saved_s={}, requires=("b",)),
                Artifact(name="b", size_bytes=1.0, rate_rps=1.0, saved_s={}, requires=("a",)),
            ],
            "a requires itself, through b",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(artifacts, words):
    with pytest.raises(ValueError, match=words):
        greedy_preload(artifacts, [GPU])


def test_an_artifact_that_is_where_it_cannot_be_is_refused():
    with pytest.raises(ValueError, match="libs-7b at gpu0 cannot be"):
        evict(CROWD, [HOST, GPU], {("libs-7b", "gpu0")}, place="gpu0", need_bytes=1.0)
