"""The largest rate within the SLOs: queueing formulas against theory, limits, and monotonicity."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.hardware import EngineConfig
from planner.domain.slo import Metric, Slo
from planner.profilers import capacity, points, steady
from planner.profilers.efficiency import default_params
from planner.units import format_duration

LLAMA = load_model("Llama-3.1-8B")
H100 = load_gpus().get("H100-80GB")


def slo(metric, percentile, bound_s):
    return Slo(metric=Metric(metric), percentile=percentile, bound_s=bound_s)


def rate(*slos, model=LLAMA, gpu=H100, config=None, size=(1000, 250), params=None):
    return capacity.bucket_throughput(
        model,
        gpu,
        config or EngineConfig(),
        input_tokens=size[0],
        output_tokens=size[1],
        slos=slos,
        params=params or default_params(),
    )


def replica_of(size=(1000, 250), config=None, params=None):
    prompt, output = (np.array([float(tokens)]) for tokens in size)
    return steady.make_replica(
        LLAMA,
        H100,
        config or EngineConfig(),
        input_tokens=prompt,
        output_tokens=output,
        params=params or default_params(),
    )


def test_rate_and_latency_grow_with_the_load():
    replica = replica_of()
    loads = np.geomspace(1e-4, 0.9, 40)[:, None]
    load = steady.steady_state(replica, loads)
    assert load.batch == pytest.approx(loads * replica.decode_steps)
    for values in (load.rate_rps, load.tpot_s, load.ttft_s, load.dispersion, load.occupancy):
        assert (np.diff(values[:, 0]) > 0).all()
    # a request meets the long steps more often than the mean step does
    in_time = load.rate_rps * replica.decode_steps * load.tpot_s
    assert (in_time >= load.batch * (1 - 1e-12)).all()


def test_a_lone_request_takes_its_prefill_and_its_decode_steps():
    replica = replica_of()
    load = steady.steady_state(replica, np.array([[1e-9]]))
    one, none = np.array([1.0]), np.array([0.0])
    prompt = replica.step_s(one, replica.input_tokens)
    alone = replica.step_s(one, none)
    factor = replica.steps.lone_prefill_factor
    assert factor > 1
    assert load.ttft_s[0, 0] == pytest.approx(prompt[0] + (factor - 1) * (prompt[0] - alone[0]), rel=1e-6)
    assert load.tpot_s[0, 0] == pytest.approx(replica.step_s(one, none)[0], rel=1e-6)


def test_prefill_wait_is_pollaczek_khinchine():
    """M/G/1: W = rho / (1 - rho) (1 + c^2) / 2 s; for exponential service the p99 is the M/M/1's."""
    replica = replica_of(size=(4000, 1))
    load = steady.steady_state(replica, np.array([[0.8]]))
    utilisation = load.prefill_utilisation[0, 0]
    service = utilisation / load.rate_rps[0, 0]
    mean = utilisation * load.prefill_wait_s[0, 0]
    assert mean == pytest.approx(utilisation / (1 - utilisation) * service)
    level = 0.99
    exact = service / (1 - utilisation) * np.log(utilisation / (1 - level))
    tail = steady.wait_quantile(load.prefill_wait_s, load.prefill_utilisation, level)
    assert tail[0, 0] == pytest.approx(exact)


def test_deterministic_prompts_wait_half_as_long():
    even = replace(default_params(), service_scv=0.0)
    waits = [
        steady.steady_state(replica_of((4000, 1), params=params), np.array([[0.8]])).prefill_wait_s[0, 0]
        for params in (default_params(), even)
    ]
    assert waits[1] == pytest.approx(waits[0] / 2)


def test_one_slot_waits_like_a_single_server():
    """Sakasegawa's formula is exact for one server: P(wait) = rho, mean wait of those that wait = T / (1 - rho)."""
    replica = replica_of(config=EngineConfig(max_num_seqs=1))
    load = steady.steady_state(replica, np.array([[0.002]]))
    filled = load.occupancy[0, 0]
    assert 0.3 < filled < 0.9
    assert load.slot_wait_probability[0, 0] == pytest.approx(filled)
    residence = filled / load.rate_rps[0, 0]
    assert load.slot_wait_s[0, 0] == pytest.approx(residence / (1 - filled))


@pytest.mark.parametrize(("mean", "elasticity"), [(20.0, 0.0), (20.0, 0.6), (150.0, 0.8)])
def test_batch_quantile_is_that_of_the_birth_death_process(mean, elasticity):
    """The stationary law of arrivals at a constant rate and death rates n / (a + b n), as one of the n sees it."""
    b_over_a = elasticity / (1 - elasticity) / mean
    n = np.arange(1, 4000)
    logs = np.cumsum(np.log(mean * (1 - elasticity) * (1 + b_over_a * (n - 1)) / n))
    weights = np.concatenate(([0.0], logs))
    law = np.exp(weights - weights.max())
    law /= law.sum()
    n = np.arange(4000)
    batch = float((law * n).sum())
    assert (law * n**2).sum() - batch**2 == pytest.approx(batch / (1 - elasticity), rel=1e-6)
    seen = law * n / batch
    zero = np.array([[0.0]])
    load = steady.Load(
        rate_rps=zero,
        batch=np.array([[batch]]),
        arrivals_per_step=zero,
        mean_step_s=zero,
        dispersion=np.array([[1 / (1 - elasticity)]]),
        prefill_wait_s=zero,
        prefill_utilisation=zero,
        slot_wait_s=zero,
        slot_wait_probability=zero,
        occupancy=zero,
        ttft_s=zero,
        tpot_s=zero,
    )
    for level in (0.5, 0.9, 0.99):
        exact = int(np.searchsorted(np.cumsum(seen), level)) - 1  # the others
        assert steady.batch_quantile(load, level)[0, 0] == pytest.approx(exact, rel=0.06, abs=1.5)


def test_without_slo_the_rate_is_saturation():
    found = rate()
    assert found.limiting == "max_num_seqs 256"
    assert found.batch == pytest.approx(256, rel=0.05)
    assert rate(slo("tpot", None, 10.0)).rate_rps == pytest.approx(found.rate_rps)


def test_memory_is_named_when_it_limits():
    found = rate(size=(16_000, 4000), config=EngineConfig(max_num_seqs=1024))
    assert found.limiting.startswith("kv memory: ")
    slots = float(found.limiting.split()[2])
    assert found.batch <= slots


def test_token_budget_is_named_when_it_limits():
    found = rate(size=(4000, 1))
    assert found.limiting == "max_num_batched_tokens 8192"
    replica = replica_of((4000, 1))
    full = replica.step_s(np.array([0.0]), np.array([8192.0]))[0]
    assert found.rate_rps == pytest.approx(8192 / 4000 / full, rel=0.01)


def test_binding_slo_is_named_and_held():
    tight = slo("tpot", 95, 0.02)
    found = rate(tight, slo("ttft", 99, 5.0))
    assert found.limiting == str(tight)
    assert 0 < found.rate_rps < rate().rate_rps
    assert found.tpot_s < 0.02  # the mean lies below the percentile


def test_impossible_slo_says_what_is_possible():
    found = rate(slo("ttft", 99, 0.001))
    assert found.rate_rps == 0
    assert found.limiting.startswith("ttft p99 ")
    assert found.limiting.endswith("for a lone request > 1 ms")
    best = float(found.limiting.split()[2])
    assert rate(slo("ttft", 99, best / 1e3 * 1.2)).rate_rps > 0


def test_too_long_requests_are_refused_with_the_reason():
    assert "context of 131,072 tokens" in rate(size=(131_000, 1000)).limiting
    found = rate(size=(100_000, 1000), gpu=load_gpus().get("L4"))
    assert found.rate_rps == 0
    assert "KV cache of one request" in found.limiting


def test_percentiles_cost_rate_and_more_so_the_higher():
    rates = [rate(slo("ttft", level, 0.5)).rate_rps for level in (None, 90, 99, 99.9)]
    assert rates[0] > rates[1] > rates[2] > rates[3] > 0


def test_burstier_arrivals_cost_rate():
    bursty = replace(default_params(), arrival_scv=6.0)
    bound = slo("ttft", 99, 0.5)
    assert rate(bound, params=bursty).rate_rps < rate(bound).rate_rps


def test_many_sizes_at_once_equal_one_at_a_time():
    sizes = np.array([[50.0, 50], [1000, 250], [12_000, 25], [200_000, 10]])
    bounds = (slo("ttft", 99, 2.0), slo("e2e", None, 20.0))
    together = capacity.estimate_buckets(
        LLAMA,
        H100,
        EngineConfig(),
        input_tokens=sizes[:, 0],
        output_tokens=sizes[:, 1],
        slos=bounds,
        params=default_params(),
    )
    alone = [rate(*bounds, size=tuple(size)) for size in sizes]
    assert list(together.rate_rps) == pytest.approx([one.rate_rps for one in alone])
    assert list(together.limiting) == [one.limiting for one in alone]


def test_speed_scales_time():
    """A replica that is twice as fast serves twice the rate at half the latency."""
    arrays = {"input_tokens": np.array([1000.0]), "output_tokens": np.array([250.0]), "params": default_params()}
    slow = capacity.estimate_buckets(LLAMA, H100, EngineConfig(), slos=(slo("ttft", 99, 1.0),), **arrays)
    fast = capacity.estimate_buckets(
        LLAMA, H100, EngineConfig(), slos=(slo("ttft", 99, 0.5),), speed=np.array([2.0]), **arrays
    )
    assert fast.rate_rps == pytest.approx(2 * slow.rate_rps)
    assert fast.tpot_s == pytest.approx(slow.tpot_s / 2)


SIZES = st.tuples(st.integers(10, 12_000), st.integers(1, 2000))
METRICS = st.sampled_from(("ttft", "tpot", "e2e"))
LEVELS = st.sampled_from((None, 50.0, 90.0, 99.0))
GRAIN = 2e-3
"""The search's resolution."""


@settings(max_examples=60)
@given(SIZES, METRICS, LEVELS, st.floats(0.01, 20.0), st.floats(1.0, 3.0))
def test_a_tighter_slo_never_raises_the_rate(size, metric, level, bound_s, factor):
    loose = rate(slo(metric, level, bound_s * factor), size=size).rate_rps
    tight = rate(slo(metric, level, bound_s), size=size).rate_rps
    assert tight <= loose * (1 + GRAIN)


@settings(max_examples=60)
@given(SIZES, METRICS, LEVELS, st.floats(0.01, 20.0), st.integers(1, 4000))
def test_a_longer_prompt_never_raises_the_rate(size, metric, level, bound_s, more):
    bound = slo(metric, level, bound_s)
    short = rate(bound, size=size).rate_rps
    long = rate(bound, size=(size[0] + more, size[1])).rate_rps
    assert long <= short * (1 + GRAIN)


@settings(max_examples=60)
@given(SIZES, METRICS, LEVELS, st.floats(0.01, 20.0), METRICS, st.floats(0.01, 20.0))
def test_another_slo_never_raises_the_rate(size, metric, level, bound_s, other, other_bound_s):
    first = slo(metric, level, bound_s)
    both = rate(first, slo(other, 99, other_bound_s), size=size).rate_rps
    assert both <= rate(first, size=size).rate_rps * (1 + GRAIN)


@settings(max_examples=40)
@given(SIZES, METRICS, st.floats(0.01, 20.0), st.floats(1.0, 2.0))
def test_more_bandwidth_never_lowers_the_rate(size, metric, bound_s, factor):
    better = replace(H100, bandwidth_bytes_per_s=H100.bandwidth_bytes_per_s * factor)
    bound = slo(metric, 95, bound_s)
    assert rate(bound, size=size, gpu=better).rate_rps >= rate(bound, size=size).rate_rps * (1 - GRAIN)


@settings(max_examples=40)
@given(SIZES, st.floats(1.0, 2.0))
def test_more_memory_never_lowers_the_saturation_rate(size, factor):
    better = replace(H100, memory_bytes=H100.memory_bytes * factor)
    assert rate(size=size, gpu=better).rate_rps >= rate(size=size).rate_rps * (1 - GRAIN)


@settings(max_examples=40)
@given(SIZES, METRICS, LEVELS, st.floats(0.01, 20.0))
def test_zero_rates_always_carry_a_reason(size, metric, level, bound_s):
    found = rate(slo(metric, level, bound_s), size=size)
    assert np.isfinite(found.rate_rps)
    assert found.limiting
    if found.rate_rps == 0:
        assert f"for a lone request > {format_duration(bound_s)}" in found.limiting


def test_three_hundred_options_of_sixty_buckets_take_seconds():
    sizes = np.array([[a, b] for a in np.geomspace(25, 12_000, 10) for b in np.geomspace(25, 2000, 6)])
    bounds = (slo("ttft", 99, 2.0), slo("tpot", 95, 0.06))
    repeats = 10
    started = time.process_time()
    for _ in range(repeats):
        capacity.estimate_buckets(
            LLAMA,
            H100,
            EngineConfig(),
            input_tokens=sizes[:, 0],
            output_tokens=sizes[:, 1],
            slos=bounds,
            params=default_params(),
        )
    assert (time.process_time() - started) / repeats * 300 < 5.0  # about 1 s; room for slow machines


def test_closed_loop_obeys_littles_law_and_static_batches_add_up():
    point = points.closed_loop(LLAMA, H100, EngineConfig(), sizes=(500, 200), concurrency=32, params=default_params())
    assert point.rate_rps * (point.ttft_s + 199 * point.tpot_s) == pytest.approx(32)
    batch = points.static_batch(LLAMA, H100, EngineConfig(), sizes=(500, 200), batch=32, params=default_params())
    assert batch.rate_rps * (batch.ttft_s + 199 * batch.tpot_s) == pytest.approx(32)
    lone = points.static_batch(LLAMA, H100, EngineConfig(), sizes=(500, 200), batch=1, params=default_params())
    assert lone.ttft_s < batch.ttft_s
    assert lone.tpot_s < batch.tpot_s
