"""The replica: the profile's step times, memory, preemption, and that jumping over steps changes nothing."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from simulate.stations import one_row, pools_of, station, traffic

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_record
from planner.domain.hardware import EngineConfig
from planner.domain.workload import PrefixHashes
from planner.profilers import roofline
from planner.profilers.efficiency import default_params
from planner.simulate import arrivals
from planner.simulate.engine import kv_bytes, step_seconds
from planner.simulate.run import Fault, Policy, Pools, Router, simulate
from planner.simulate.steps import EngineKind, MeasuredKind, engine_table, measured_table

MODELS = ("meta-llama/Llama-3.1-8B", "google/gemma-3-27b-it", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-V2-Lite")


def kind_of(model="meta-llama/Llama-3.1-8B", gpu="H100-80GB", **config):
    record = load_record(model, base_dir=Path())
    return EngineKind(record.architecture, load_gpus().get(gpu), EngineConfig(**config), default_params())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("parallel", [{"tensor_parallel": 2}, {"tensor_parallel": 2, "pipeline_parallel": 2}])
def test_a_step_takes_what_the_profile_says(model, parallel):
    kind = kind_of(model, **parallel)
    row = engine_table([kind])[0]
    steps = roofline.step_model(*kind[:4])
    for sequences, context, prompt in ((1, 1, 0), (40, 700, 0), (0, 1, 900), (200, 5000, 3000), (7, 120_000, 8000)):
        decode_s = roofline.decode_attention_s(steps, kind.model, kind.config, np.array([float(context)]))[0]
        attention_s = roofline.prefill_attention_s(steps, kind.model, np.array([float(max(prompt, 1))]))[0]
        at = int(np.searchsorted(row["knots"], context, side="right")) - 1
        line = row["decode_s"][at] + row["decode_slope"][at] * (context - row["knots"][at])
        assert line == pytest.approx(decode_s, rel=1e-9)
        expected = steps.step_s(
            sequences=np.array([float(sequences)]),
            prefill=np.array([float(prompt)]),
            decode_s=np.array([decode_s]),
            attention_s=np.array([attention_s]),
        )[0]
        record = engine_table([kind])[0]
        found = step_seconds(record, sequences, prompt, sequences * decode_s, prompt * attention_s, 0)
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_memory_of_a_sequence_is_the_profiles(model):
    kind = kind_of(model)
    row = engine_table([kind])[0]
    for tokens in (16, 96, 128, 144, 1024, 4096, 100_000):
        expected = roofline.kv_bytes_per_gpu(kind.model, kind.config, np.array([float(tokens)]), is_read=False)[0]
        assert kv_bytes(row, tokens) == pytest.approx(expected, rel=1e-9)


def test_a_lone_request_takes_its_prefill_and_its_decode_steps():
    kind = kind_of()
    result = simulate(pools_of(engine_table([kind])), traffic(np.array([5.0]), [101], [512]), one_row())
    steps = roofline.step_model(*kind[:4])

    def step_s(sequences, prefill, context):
        at = np.array([float(context)])
        return steps.step_s(
            sequences=np.array([sequences]),
            prefill=np.array([prefill]),
            decode_s=roofline.decode_attention_s(steps, kind.model, kind.config, at),
            attention_s=roofline.prefill_attention_s(steps, kind.model, np.array([512.0])),
        )[0]

    first = step_s(0.0, 512.0, 1)
    lone = (steps.lone_prefill_factor - 1) * (first - step_s(0.0, 0.0, 1))
    record = result.records[0]
    assert record.ttft_s == pytest.approx(first + lone)
    decode = sum(step_s(1.0, 0.0, 513 + i) for i in range(100))
    assert record.e2e_s - record.ttft_s == pytest.approx(decode)
    assert record.tpot_s == pytest.approx(decode / 100)
    assert record.longest_gap_s == pytest.approx(step_s(1.0, 0.0, 612))


def test_an_engine_that_was_measured_takes_the_sum_of_its_parts():
    kind = MeasuredKind(
        fixed_s=0.01, read_s=0.003, token_s=1e-4, sequence_s=5e-4, pair_s=1e-7, context_s=2e-6,
        kv_tokens=10_000, block_tokens=32, max_num_seqs=4, max_num_batched_tokens=64,
    )  # fmt: skip
    records = simulate(pools_of(measured_table([kind])), traffic(np.zeros(1), [3], [100]), one_row()).records

    def prefill_s(first, last):
        pairs = (last * (last + 1) - first * (first + 1)) / 2
        return 0.01 + math.hypot((last - first) * 1e-4, 0.003) + pairs * 1e-7

    def decode_s(context):
        return 0.01 + math.hypot(1e-4, 0.003) + 5e-4 + context * 2e-6

    assert records.ttft_s[0] == pytest.approx(prefill_s(0, 64) + prefill_s(64, 100))
    assert records.e2e_s[0] - records.ttft_s[0] == pytest.approx(decode_s(101) + decode_s(102))
    too_long = traffic(np.zeros(1), [1], [10_001])
    assert not simulate(pools_of(measured_table([kind])), too_long, one_row()).records.is_answered[0]


@pytest.fixture(scope="module")
def tight():
    """Replicas with so little memory that sequences are preempted, and a model with attention windows."""
    kinds = engine_table(
        [kind_of("google/gemma-3-27b-it", max_num_seqs=32), kind_of(max_num_seqs=8, max_num_batched_tokens=512)]
    )
    kinds["kv_room"] = [kv_bytes(kind, 9000) for kind in kinds]
    return kinds


@given(seed=st.integers(0, 10_000), policy=st.sampled_from(list(Policy)), load=st.floats(0.3, 3.0))
def test_jumping_over_steps_changes_nothing(tight, seed, policy, load):
    rng = np.random.default_rng(seed)
    n = 120
    requests = traffic(arrivals.poisson(4 * load, n, rng), rng.integers(1, 300, n), rng.integers(1, 3000, n))
    pools = Pools(kinds=tight, replicas=(2, 1))
    router = Router(weights=np.array([[0.6, 0.4]]), rate_rps=np.array([[2.0, 1.0]]), policy=policy)
    faults = [Fault(at_s=5.0, replica=0, is_up=False), Fault(at_s=9.0, replica=0, is_up=True)]
    fast = simulate(pools, requests, router, seed=seed, faults=faults)
    exact = simulate(pools, requests, router, seed=seed, faults=faults, is_exact=True)
    assert fast.n_steps == exact.n_steps
    assert fast.n_events <= exact.n_events
    for name in ("ttft_s", "e2e_s", "longest_gap_s"):
        np.testing.assert_allclose(getattr(fast.records, name), getattr(exact.records, name), rtol=1e-7)
    np.testing.assert_array_equal(fast.records.replica, exact.records.replica)
    np.testing.assert_array_equal(fast.records.preemptions, exact.records.preemptions)
    assert fast.records.is_answered.all()
    assert fast.peak_kv_fraction.max() <= 1


def test_memory_that_runs_out_preempts_and_everyone_is_served_in_the_end(tight):
    rng = np.random.default_rng(1)
    requests = traffic(np.zeros(60), np.full(60, 400), rng.integers(200, 600, 60))
    result = simulate(Pools(kinds=tight[:1], replicas=(1,)), requests, one_row())
    assert result.records.preemptions.sum() > 0
    assert result.records.is_answered.all()
    assert 0.9 < result.peak_kv_fraction[0] <= 1


def test_a_request_larger_than_the_memory_is_rejected(tight):
    result = simulate(
        Pools(kinds=tight[:1], replicas=(1,)), traffic(np.array([0.0, 1.0]), [10, 10], [20_000, 100]), one_row()
    )
    assert result.records.is_answered.tolist() == [False, True]


def test_a_step_carries_no_more_tokens_than_its_budget():
    kind = engine_table([kind_of(max_num_batched_tokens=256)])
    wide = engine_table([kind_of(max_num_batched_tokens=8192)])
    prompts = traffic(np.zeros(1), [1], [1024])
    assert simulate(pools_of(kind), prompts, one_row()).n_steps == 4
    assert simulate(pools_of(wide), prompts, one_row()).n_steps == 1


def test_no_more_sequences_run_than_slots():
    """The first one starts alone, the next two join it after its first step, the others as slots come free."""
    result = simulate(pools_of(station(1.0, slots=3)), traffic(np.zeros(7), np.full(7, 10)), one_row())
    assert result.records.e2e_s.tolist() == [10.0, 11.0, 11.0, 20.0, 21.0, 21.0, 30.0]


def test_requests_of_a_lost_replica_start_over_elsewhere():
    pools = Pools(kinds=station(1.0, slots=8), replicas=(2,))
    requests = traffic(np.array([0.0, 0.0]), [10, 10])
    faults = [Fault(at_s=4.5, replica=0, is_up=False)]
    result = simulate(pools, requests, one_row(), faults=faults)
    assert result.records.restarts.tolist() == [1, 0]
    assert result.records.replica.tolist() == [1, 1]
    assert result.records.e2e_s.tolist() == [15.0, 10.0]


def test_requests_wait_for_a_replica_that_comes_up():
    pools = Pools(kinds=station(1.0, slots=8), replicas=(1,))
    came_up = [Fault(at_s=30.0, replica=0, is_up=True)]
    result = simulate(pools, traffic(np.array([0.0]), [5]), one_row(), faults=came_up, down_at_start=[0])
    assert result.records.ttft_s.tolist() == [31.0]
    never = simulate(pools, traffic(np.array([0.0]), [5]), one_row(), down_at_start=[0])
    assert not never.records.is_answered.any()


def test_weights_decide_where_requests_go():
    rng = np.random.default_rng(0)
    pools = Pools(kinds=np.concatenate([station(1e-3, slots=64)] * 2), replicas=(1, 3))
    router = Router(weights=np.array([[0.25, 0.75]]), rate_rps=np.ones((1, 2)), policy=Policy.WEIGHTED_RANDOM)
    n = 20_000
    result = simulate(pools, traffic(arrivals.poisson(50, n, rng), np.full(n, 5)), router)
    assert np.bincount(result.records.replica) / n == pytest.approx([0.25] * 4, abs=0.01)


def test_the_same_seed_gives_the_same_records_and_another_one_does_not(tight):
    rng = np.random.default_rng(3)
    requests = traffic(arrivals.poisson(3, 200, rng), rng.integers(1, 200, 200), rng.integers(1, 900, 200))
    router = Router(weights=np.array([[0.5, 0.5]]), rate_rps=np.ones((1, 2)))
    pools = Pools(kinds=tight, replicas=(1, 1))
    runs = [simulate(pools, requests, router, seed=seed).records for seed in (0, 0, 1)]
    assert runs[0].e2e_s.tobytes() == runs[1].e2e_s.tobytes()
    assert runs[0].e2e_s.tobytes() != runs[2].e2e_s.tobytes()


def with_prefixes(rng, n, *, rate=2.0, families=5, block=64):
    """Return traffic whose prompts begin like others of the same family."""
    family = rng.integers(0, families, n)
    shared, own = rng.integers(0, 8, n), rng.integers(0, 8, n)
    lists = [
        [f * 1000 + b for b in range(s)] + [10**6 + i * 100 + b for b in range(o)]
        for i, (f, s, o) in enumerate(zip(family, shared, own, strict=True))
    ]
    requests = traffic(
        arrivals.poisson(rate, n, rng), rng.integers(1, 200, n), (shared + own) * block + rng.integers(1, block, n)
    )
    hashes = PrefixHashes(
        hashes=np.array([h for blocks in lists for h in blocks], dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum([len(blocks) for blocks in lists])]),
        block_tokens=block,
    )
    return replace(requests, prefix=hashes)


def test_a_prompt_waits_until_all_of_it_finds_room():
    """As vLLM V1 has it (scheduler_reserve_full_isl): admitted for its first chunk, it would be preempted again."""
    kinds = engine_table([kind_of(max_num_batched_tokens=128)])
    kinds["lone_prefill_factor"] = 1.0
    kinds["kv_room"] = kv_bytes(kinds[0], 1600)
    requests = traffic(np.array([0.0, 0.0]), [10, 10], 1024)
    records = simulate(pools_of(kinds), requests, one_row()).records
    alone = simulate(pools_of(kinds), traffic(np.array([0.0]), [10], 1024), one_row()).records
    assert records.preemptions.tolist() == [0, 0]
    assert records.e2e_s[0] == pytest.approx(alone.e2e_s[0])
    assert records.ttft_s[1] == pytest.approx(records.e2e_s[0] + alone.ttft_s[0])


def test_memory_is_given_out_in_blocks_of_the_kinds_size():
    kinds = engine_table([kind_of()])
    kinds["kv_room"] = kv_bytes(kinds[0], 240)
    requests = traffic(np.zeros(2), [20, 20], 100)
    together = simulate(pools_of(kinds), requests, one_row()).records
    assert together.ttft_s[1] < together.e2e_s[0]
    kinds["block_tokens"] = 128
    records = simulate(pools_of(kinds), requests, one_row()).records
    assert records.ttft_s[1] > records.e2e_s[0]


@given(seed=st.integers(0, 10_000), policy=st.sampled_from(list(Policy)), load=st.floats(0.3, 3.0))
@example(seed=485, policy=Policy.PREFIX_AWARE, load=2.0)  # blocks are evicted in the middle of a jump
@example(seed=5, policy=Policy.PREFIX_AWARE, load=2.0)
def test_jumping_changes_nothing_with_a_prefix_cache_either(seed, policy, load):
    kinds = engine_table([kind_of(max_num_seqs=8), kind_of(max_num_seqs=8, max_num_batched_tokens=256)])
    kinds["kv_room"] = [kv_bytes(kind, 3000) for kind in kinds]
    requests = with_prefixes(np.random.default_rng(seed), 120, rate=6 * load)
    pools = Pools(kinds=kinds, replicas=(2, 1))
    router = Router(weights=np.array([[0.6, 0.4]]), rate_rps=np.array([[2.0, 1.0]]), policy=policy)
    faults = [Fault(at_s=3.0, replica=0, is_up=False), Fault(at_s=6.0, replica=0, is_up=True)]
    fast = simulate(pools, requests, router, seed=seed, faults=faults)
    exact = simulate(pools, requests, router, seed=seed, faults=faults, is_exact=True)
    np.testing.assert_allclose(fast.records.e2e_s, exact.records.e2e_s, rtol=1e-7)
    np.testing.assert_array_equal(fast.records.prefix_hit_tokens, exact.records.prefix_hit_tokens)
    assert fast.records.is_answered.all()
    assert fast.peak_kv_fraction.max() <= 1


def test_a_prompt_seen_before_is_not_computed_again():
    kinds = engine_table([kind_of()])
    blocks = PrefixHashes(hashes=np.array([7, 8, 9] * 2), offsets=np.array([0, 3, 6]), block_tokens=512)
    requests = replace(traffic(np.array([0.0, 60.0]), [5, 5], 1536), prefix=blocks)
    records = simulate(pools_of(kinds), requests, one_row()).records
    assert records.prefix_hit_tokens.tolist() == [0, 1024]  # the last block is computed again for its logits
    assert records.ttft_s[1] < records.ttft_s[0] / 2


def test_the_blocks_used_longest_ago_make_room():
    kinds = engine_table([kind_of()])
    kinds["kv_room"] = kv_bytes(kinds[0], 2100)
    hashes = np.array([1, 2, 3, 4, 1, 5, 1, 2])
    blocks = PrefixHashes(hashes=hashes, offsets=np.arange(0, 9, 2), block_tokens=512)
    requests = replace(traffic(np.arange(4) * 60.0, [5] * 4, 1030), prefix=blocks)
    records = simulate(pools_of(kinds), requests, one_row()).records
    # [1 2] and [3 4] fill the memory; [1 5] finds 1, and 2, left longer ago than 3 and 4, makes room for 5
    assert records.prefix_hit_tokens.tolist() == [0, 0, 512, 512]


def test_prefix_aware_routing_finds_more_in_the_cache():
    kinds = engine_table([kind_of()])
    pools = Pools(kinds=kinds, replicas=(6,))
    requests = with_prefixes(np.random.default_rng(5), 2000, rate=20.0, families=40, block=256)
    hits = {
        policy: simulate(pools, requests, one_row(policy=policy)).records.prefix_hit_tokens.sum()
        for policy in (Policy.WEIGHTED_RANDOM, Policy.PREFIX_AWARE)
    }
    assert hits[Policy.PREFIX_AWARE] > 1.1 * hits[Policy.WEIGHTED_RANDOM]


def test_prefill_hands_over_to_decode_and_the_cache_takes_its_time():
    kinds = engine_table([kind_of(), kind_of()])
    kinds["is_prefill"] = [1, 0]
    kinds["transfer_s"] = 1 / 10e9
    router = Router(weights=np.eye(2), rate_rps=np.eye(2), decode_row=1)
    requests = traffic(np.array([0.0, 0.0]), [50, 1], 1000)
    alone = simulate(pools_of(kinds[1:]), traffic(np.array([0.0]), [50], 1000), one_row()).records
    records = simulate(Pools(kinds=kinds, replicas=(1, 1)), requests, router).records
    moved_s = kv_bytes(kinds[0], 1000) / 10e9
    assert records.replica.tolist() == [1, 0]
    assert records.ttft_s[0] == pytest.approx(alone.ttft_s[0])
    assert records.e2e_s[0] == pytest.approx(alone.e2e_s[0] + moved_s)
    assert records.longest_gap_s[0] > moved_s


def test_caches_leave_a_prefill_replica_one_after_the_other():
    kinds = engine_table([kind_of(), kind_of()])
    kinds["is_prefill"] = [1, 0]
    kinds["transfer_s"] = 1 / 1e9
    router = Router(weights=np.eye(2), rate_rps=np.eye(2), decode_row=1)
    both = traffic(np.zeros(2), [2, 2], 1000)
    records = simulate(Pools(kinds=kinds, replicas=(1, 1)), both, router).records
    moved_s = kv_bytes(kinds[0], 1000) / 1e9
    ends = np.sort(records.arrival_s + records.e2e_s)
    assert np.ptp(records.ttft_s) < moved_s / 4  # ready long before the other's cache is sent
    assert ends[1] - ends[0] == pytest.approx(moved_s, rel=0.1)


@pytest.mark.parametrize("policy", [Policy.WEIGHTS, Policy.WEIGHTED_RANDOM])
def test_decode_pools_share_as_their_weights_say_whatever_the_prefill_replica(policy):
    n = 4000
    kinds = engine_table([kind_of()] * 3)
    kinds["is_prefill"] = [1, 0, 0]
    weights = np.array([[1.0, 0.0, 0.0], [0.0, 0.3, 0.7]])
    router = Router(weights=weights, rate_rps=np.ones((2, 3)), decode_row=1, policy=policy)
    requests = traffic(np.arange(n) * 0.05, [2] * n, 100)
    records = simulate(Pools(kinds=kinds, replicas=(2, 2, 2)), requests, router).records
    counts = np.bincount(records.replica, minlength=6)
    assert counts[:2].sum() == 0
    assert counts[2:4].sum() / n == pytest.approx(0.3, abs=0.03)
    if policy is Policy.WEIGHTED_RANDOM:
        assert counts[2] / counts[2:4].sum() == pytest.approx(0.5, abs=0.05)
        assert counts[4] / counts[4:].sum() == pytest.approx(0.5, abs=0.05)


def test_a_lone_prompt_passes_pipeline_stages_one_after_the_other():
    def ttft(stages, prompt):
        kinds = engine_table([kind_of(pipeline_parallel=stages, max_num_batched_tokens=2048)])
        return float(simulate(pools_of(kinds), traffic(np.array([0.0]), [2], prompt), one_row()).records.ttft_s[0])

    assert ttft(4, 2000) == pytest.approx(ttft(1, 2000), rel=0.1)  # one chunk: nothing overlaps
    assert ttft(4, 16_000) < 0.5 * ttft(1, 16_000)  # eight chunks follow one another through the stages
