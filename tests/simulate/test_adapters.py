"""Adapters in the event loop: steps that read them, engines that take turns, memory, and where requests may go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate.stations import one_row, pools_of, station, traffic

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.adapters import Isolation
from planner.domain.hardware import EngineConfig
from planner.profilers.adapters import AdapterRoom
from planner.profilers.efficiency import default_params
from planner.profilers.roofline import replica_memory
from planner.simulate import arrivals, statistics
from planner.simulate.events import AdapterBurst, with_burst
from planner.simulate.run import Fault, Pools, Router, simulate
from planner.simulate.steps import EngineKind, engine_table
from planner.simulate.tenants import Seats

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def reading(step_s, read_s, *, slots=8):
    """Return a station whose steps also take `read_s` for each different adapter in them."""
    kind = station(step_s, slots=slots)
    kind["dense_read_s"], kind["adapter_read_s"] = 0.0, read_s
    return kind


def of_adapters(arrival_s, tokens, adapter):
    asked = traffic(np.asarray(arrival_s, dtype=np.float64), np.asarray(tokens, dtype=np.int64))
    return replace(asked, adapter=np.asarray(adapter, dtype=np.int64))


@pytest.mark.parametrize("is_exact", [True, False])
@pytest.mark.parametrize(
    ("adapters", "n_different"), [((0, 0, 0), 1), ((0, 1, 0), 2), ((2, 1, 0), 3), ((-1, 1, -1), 1)]
)
def test_a_step_reads_each_of_its_adapters_once(adapters, n_different, is_exact):
    asked = of_adapters([0.0, 0.0, 0.0], [10, 10, 10], adapters)
    found = simulate(pools_of(reading(1.0, 0.25)), asked, one_row(), is_exact=is_exact)
    # The first request comes alone and begins a step before the others are there.
    alone = 1.0 + 0.25 * (adapters[0] >= 0)
    assert found.records.ttft_s[1] == pytest.approx(alone + 1.0 + 0.25 * n_different)
    assert found.records.e2e_s[0] == pytest.approx(alone + 9 * (1.0 + 0.25 * n_different))
    assert found.peak_adapters[0] == n_different


def test_an_adapter_is_read_no_more_when_its_last_request_ends():
    asked = of_adapters([0.0, 0.0], [2, 5], [0, 1])
    found = simulate(pools_of(reading(1.0, 0.5)), asked, one_row())
    # Alone 1.5 s; together 2 s, at the end of which the first is done; then 1.5 s for each of the other's 4 steps left.
    assert found.records.e2e_s.tolist() == pytest.approx([3.5, 1.5 + 2.0 + 4 * 1.5])


def test_adapters_that_cost_nothing_change_nothing():
    rng = np.random.default_rng(3)
    n = 5000
    plain = traffic(arrivals.poisson(3.0, n, rng), rng.geometric(1 / 50, n))
    adapter = rng.integers(0, 7, n)
    kind = station(0.02, slots=4)
    bare = simulate(pools_of(kind, 2), plain, one_row(), seed=5)
    rows = Router(weights=np.ones((7, 1)), rate_rps=np.ones((7, 1)))
    mixed = simulate(pools_of(kind, 2), replace(plain, adapter=adapter, row=adapter), rows, seed=5)
    for name in ("ttft_s", "e2e_s", "longest_gap_s", "replica"):
        assert np.array_equal(getattr(bare.records, name), getattr(mixed.records, name))


def test_adapters_with_engines_of_their_own_are_queues_of_their_own():
    """A Poisson process whose requests are for adapters at random is one for each: M/D/1 by itself."""
    rng = np.random.default_rng(4)
    n, rates = 200_000, np.array([0.5, 0.8])
    adapter = rng.choice(2, size=n, p=rates / rates.sum())
    asked = of_adapters(arrivals.poisson(rates.sum(), n, rng), np.full(n, 100), adapter)
    kinds = np.concatenate([station(0.01, slots=1)] * 2)
    router = Router(weights=np.eye(2), rate_rps=np.eye(2))
    records = simulate(Pools(kinds=kinds, replicas=(1, 1)), replace(asked, row=adapter), router).records
    for number, rate in enumerate(rates.tolist()):
        mine = records.select((records.adapter == number) & (records.arrival_s > 0.05 * records.arrival_s[-1]))
        found = statistics.mean(mine.e2e_s)
        assert found.low <= 1 + rate / 2 / (1 - rate) <= found.high
        assert set(mine.replica.tolist()) == {number}


def taking_turns(n_processes, step_s, *, slots=1):
    kinds = np.concatenate([station(step_s, slots=slots)] * n_processes)
    return Pools(kinds=kinds, replicas=(1,) * n_processes, gpus=np.zeros(n_processes, dtype=np.int64))


def to_its_process(asked, n_processes):
    router = Router(weights=np.eye(n_processes), rate_rps=np.eye(n_processes))
    return replace(asked, row=asked.adapter), router


def test_processes_that_take_turns_are_one_server():
    """With requests of one step each the wait, over all processes, is that of one queue of all: the M/D/1 mean."""
    rng = np.random.default_rng(5)
    n, rate = 200_000, 0.7
    asked = of_adapters(arrivals.poisson(rate, n, rng), np.ones(n), rng.choice(3, size=n, p=[0.6, 0.3, 0.1]))
    records = simulate(taking_turns(3, 1.0), *to_its_process(asked, 3)).records
    after = records.select(records.arrival_s > 0.05 * records.arrival_s[-1])
    found = statistics.mean(after.e2e_s)
    assert found.low <= 1 + rate / 2 / (1 - rate) <= found.high


@pytest.mark.parametrize("is_exact", [True, False])
def test_processes_that_are_all_busy_are_as_many_times_as_slow(is_exact):
    asked = of_adapters([0.0, 0.0, 0.0, 50.0], [10, 10, 10, 10], [0, 1, 2, 1])
    found = simulate(taking_turns(3, 1.0), *to_its_process(asked, 3), is_exact=is_exact)
    # Turn by turn: process k's steps end at k + 1, k + 4, ...; later one is alone and is not slowed.
    assert found.records.ttft_s.tolist() == pytest.approx([1.0, 2.0, 3.0, 1.0])
    assert found.records.e2e_s.tolist() == pytest.approx([28.0, 29.0, 30.0, 10.0])
    assert found.busy_s.tolist() == pytest.approx([10.0, 20.0, 10.0])


@pytest.mark.parametrize("seed", range(3))
def test_jumping_over_steps_changes_nothing_where_processes_take_turns(seed):
    rng = np.random.default_rng(seed)
    n = 800
    asked = of_adapters(arrivals.poisson(0.5, n, rng), rng.geometric(1 / 30, n), rng.integers(0, 3, n))
    faults = [Fault(at_s=200.3, replica=1, is_up=False), Fault(at_s=260.7, replica=1, is_up=True)]
    ran = [
        simulate(taking_turns(3, 0.03, slots=2), *to_its_process(asked, 3), faults=faults, is_exact=is_exact)
        for is_exact in (True, False)
    ]
    for name in ("ttft_s", "e2e_s", "longest_gap_s", "restarts"):
        exact, fast = (getattr(each.records, name) for each in ran)
        assert np.allclose(exact, fast, rtol=1e-9, atol=1e-9), name
    assert ran[0].records.is_answered.all()
    assert ran[0].records.restarts.max() > 0  # a process that is lost takes the others on its GPU with it
    lost = (ran[0].records.arrival_s > 200.4) & (ran[0].records.arrival_s < 250)
    assert (ran[0].records.ttft_s[lost] > 5).all()


SIZES = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 400)), min_size=20, max_size=60)


@given(
    SIZES,
    st.integers(1, 300),
    st.floats(0.0, 6e8),
    st.sampled_from([Isolation.SHARED_PROCESS, Isolation.SHARED_BACKBONE]),
    st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_weights_adapters_contexts_and_caches_never_exceed_the_memory(sizes, count, bytes_each, isolation, seed):
    """Counted up from what the replica has at its fullest instant, against what its GPU has."""
    model, gpu, config, params = load_model(MODEL), load_gpus().get("A100-40GB"), EngineConfig(), default_params()
    memory = replica_memory(model, gpu, config, params)
    room = AdapterRoom(count=count, bytes_each=bytes_each, isolation=isolation, context_bytes=0.5e9)
    (kind,) = engine_table([EngineKind(model, gpu, config, params, room=room)])
    rng = np.random.default_rng(seed)
    n_engines = count if isolation is Isolation.SHARED_BACKBONE else 1
    asked = of_adapters(
        np.sort(rng.random(len(sizes))) * 0.5, [out for _, out in sizes], rng.integers(0, count, len(sizes))
    )
    asked = replace(asked, input_tokens=np.array([tokens for tokens, _ in sizes]))
    pools = Pools(
        kinds=np.repeat(np.array([kind]), n_engines), replicas=(1,) * n_engines, gpus=np.zeros(n_engines, int)
    )
    router = Router(weights=np.eye(n_engines), rate_rps=np.eye(n_engines))
    row = asked.adapter if n_engines > 1 else np.zeros(len(sizes), dtype=np.int64)
    found = simulate(pools, replace(asked, row=row), router)
    caches = float((found.peak_kv_fraction * kind["kv_room"]).sum()) if kind["kv_room"] > 0 else 0.0
    processes = (n_engines - 1) * (0.5e9 + memory.activation_bytes)
    held = memory.weight_bytes + memory.activation_bytes + count * bytes_each + processes
    whole = memory.weight_bytes + memory.activation_bytes + memory.kv_bytes
    if held <= whole:
        assert held + caches <= whole * (1 + 1e-9)
    else:
        assert caches == 0
        assert not found.records.is_answered.any()
    assert found.peak_adapters.sum() <= count


def test_a_request_on_a_replica_without_its_adapter_is_an_error():
    rng = np.random.default_rng(6)
    asked = of_adapters(np.arange(50.0), np.full(50, 3), rng.integers(0, 2, 50))
    kinds = np.concatenate([station(0.01, slots=2)] * 2)
    right, wrong = np.eye(2), np.eye(2)[::-1]
    seats = Seats(replica=np.array([0, 1]), n_replicas=2, holds=np.eye(2, dtype=np.bool_))
    for weights in (right, wrong):
        router = Router(weights=weights, rate_rps=weights)
        found = simulate(Pools(kinds=kinds, replicas=(1, 1)), replace(asked, row=asked.adapter), router)
        if weights is right:
            assert seats.by_replica(found).records.replica.tolist() == asked.adapter.tolist()
        else:
            with pytest.raises(RuntimeError, match="does not hold it"):
                seats.by_replica(found)


def test_engines_count_for_the_replica_that_they_are_on():
    asked = of_adapters([0.0, 0.0, 0.0, 50.0], [10, 10, 10, 10], [0, 1, 2, 1])
    found = simulate(taking_turns(3, 1.0), *to_its_process(asked, 3))
    seats = Seats(replica=np.array([0, 0, 0]), n_replicas=1, holds=np.ones((1, 3), dtype=np.bool_))
    whole = seats.by_replica(found)
    assert whole.busy_s.tolist() == pytest.approx([40.0])
    assert whole.records.replica.tolist() == [0, 0, 0, 0]


def test_a_burst_adds_requests_of_one_adapter_while_it_lasts():
    asked = of_adapters(np.arange(1000.0), np.full(1000, 3), np.zeros(1000))
    burst = AdapterBurst(start_s=100.0, end_s=200.0, text="", name="cold", rate_rps=4.0)
    rng = np.random.default_rng(0)
    found = with_burst(asked, burst, service=0, adapter=1, row_of=lambda _, numbers: numbers + 7, rng=rng)
    new = found.adapter == 1
    assert 300 < new.sum() < 500
    assert found.arrival_s[new].min() >= 100
    assert found.arrival_s[new].max() <= 200
    assert (found.row[new] == 8).all()
    assert (found.row[~new] == 0).all()
    assert (np.diff(found.arrival_s) >= 0).all()
    assert np.array_equal(found.arrival_s[~new], asked.arrival_s)
