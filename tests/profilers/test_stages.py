"""Prefill and decode on replicas of their own: sizes of KV caches, networks, and what each stage can hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.disaggregation import Role
from planner.domain.hardware import EngineConfig
from planner.domain.provenance import ProvenanceKind
from planner.domain.slo import Metric, Slo
from planner.domain.workload import Bucket
from planner.errors import InputError
from planner.profilers import roofline, steady
from planner.profilers.efficiency import default_params
from planner.profilers.measured import MeasuredStore, load_measured
from planner.profilers.options import profile_option
from planner.profilers.roles import check_disaggregated, load_role_flags, role_flags
from planner.profilers.stages import E2E_OF_PREFILL, TTFT_OF_PREFILL, Stage, e2e_parts, most_rps

LLAMA = load_model("Llama-3.1-8B")
GPUS = load_gpus()
H100 = GPUS.get("H100-80GB")


def slo(metric, percentile, bound_s):
    return Slo(metric=Metric(metric), percentile=percentile, bound_s=bound_s)


CHAT = (slo("ttft", 99, 2.0), slo("tpot", 95, 0.03))


def profile(role=Role.BOTH, *, size=(2000, 250), slos=CHAT, model=LLAMA, gpu=H100, config=None, store=None, **stage):
    stage = {"bytes_per_s": 12.5e9} | stage
    return profile_option(
        model,
        gpu,
        config or EngineConfig(),
        [Bucket(row=0, column=0, rate_rps=1.0, input_tokens=size[0], output_tokens=size[1])],
        slos,
        store=store or MeasuredStore.empty(),
        stage=None if role is Role.BOTH else Stage(role=role, **stage),
    )


def rate(*args, **given_fields):
    return float(profile(*args, **given_fields).throughput_rps[0])


def kv_bytes(model, tokens, config=None):
    return float(roofline.kv_transfer_bytes(model, config or EngineConfig(), np.array([float(tokens)]))[0])


def test_a_kv_cache_has_the_size_that_the_architecture_says():
    # 32 layers x 2 x 8 KV heads x 128 x 2 bytes = 128 KiB a token
    assert kv_bytes(LLAMA, 1000) == 1000 * 131072
    assert kv_bytes(LLAMA, 1000, EngineConfig(tensor_parallel=4, pipeline_parallel=2)) == 1000 * 131072
    assert kv_bytes(LLAMA, 1000, EngineConfig(kv_precision="fp8")) == 1000 * 65536
    # latent attention: 61 layers x (512 + 64) x 2 bytes
    deepseek = load_model("DeepSeek-V3")
    assert kv_bytes(deepseek, 1000) == pytest.approx(1000 * 61 * 576 * 2)
    # a sliding window keeps no more than the window: 5 of 6 layers of Gemma 3 see 1024 tokens
    gemma = load_model("google/gemma-3-27b-it")
    per_token = (kv_bytes(gemma, 16000) - kv_bytes(gemma, 8000)) / 8000
    assert per_token < 0.3 * kv_bytes(gemma, 1000) / 1000


def test_without_objectives_each_stage_alone_is_faster_than_both():
    whole = rate(slos=())
    prefill, decode = rate(Role.PREFILL, slos=()), rate(Role.DECODE, slos=())
    assert min(prefill, decode) > whole
    # and both stages one after the other on one GPU are about as fast as the whole
    assert 1 / (1 / prefill + 1 / decode) == pytest.approx(whole, rel=0.15)


def test_decode_replicas_see_no_prompts_and_keep_a_tight_tpot():
    """Long prompts interrupt the decoding of a replica that serves whole requests."""
    tight = (slo("ttft", 99, 4.0), slo("tpot", 95, 0.02))
    assert rate(slos=tight, size=(8000, 250)) < 0.3 * rate(Role.DECODE, slos=tight, size=(8000, 250))


def test_a_prefill_replica_knows_nothing_of_answers():
    assert rate(Role.PREFILL, size=(2000, 20000)) == rate(Role.PREFILL, size=(2000, 2))
    assert rate(Role.DECODE, size=(2000, 20000)) < rate(Role.DECODE, size=(2000, 200))
    # The cache of 20,000 tokens fits beside the weights on an L4, that of 50,000 does not.
    rates = [rate(role, size=(20_000, 30_000), slos=(), gpu=GPUS.get("L4")) for role in Role]
    assert [each > 0 for each in rates] == [role is Role.PREFILL for role in Role]


def test_a_stage_answers_for_its_part_of_an_objective():
    ttft, tpot = CHAT
    e2e = slo("e2e", 95, 10.0)
    prefill = Stage(role=Role.PREFILL, bytes_per_s=1.0, e2e_of_prefill=0.3)
    decode = Stage(role=Role.DECODE, bytes_per_s=1.0, e2e_of_prefill=0.3)
    for bound in (ttft, e2e):
        assert sum(stage.slos((bound,))[0].bound_s for stage in (prefill, decode)) == pytest.approx(bound.bound_s)
    assert prefill.slos((ttft, tpot))[0].bound_s == TTFT_OF_PREFILL * ttft.bound_s
    assert prefill.slos((tpot,)) == ()
    assert decode.slos((tpot,)) == (tpot,)
    assert (e2e_parts((ttft,)), e2e_parts((e2e,))) == ((None,), E2E_OF_PREFILL)
    assert prefill.group != Stage(role=Role.DECODE, bytes_per_s=1.0, e2e_of_prefill=0.1).group


def test_the_transfer_takes_its_time_from_both_ends():
    seconds = kv_bytes(LLAMA, 2000) / 1e9
    for role in (Role.PREFILL, Role.DECODE):
        replica = steady.make_replica(
            LLAMA,
            H100,
            EngineConfig(),
            input_tokens=np.array([2000.0]),
            output_tokens=np.array([250.0]),
            params=default_params(),
            role=role,
            handover_s=np.array([seconds]),
        )
        fast = steady.make_replica(
            LLAMA,
            H100,
            EngineConfig(),
            input_tokens=np.array([2000.0]),
            output_tokens=np.array([250.0]),
            params=default_params(),
            role=role,
        )
        alone = np.array([[1e-9]])
        slow_load, fast_load = steady.steady_state(replica, alone), steady.steady_state(fast, alone)
        assert slow_load.ttft_s - fast_load.ttft_s == pytest.approx(seconds)
        assert slow_load.occupancy > fast_load.occupancy  # the cache stays until it has gone, and has its room before
    assert rate(Role.PREFILL, bytes_per_s=1e9) < rate(Role.PREFILL, bytes_per_s=1e11)
    assert rate(Role.DECODE, bytes_per_s=3e8) < rate(Role.DECODE, bytes_per_s=1e11)
    nothing = profile(Role.PREFILL, bytes_per_s=1e7)
    assert nothing.throughput_rps[0] == 0
    assert "ttft p99" in nothing.limiting[0]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([Role.PREFILL, Role.DECODE]),
    st.integers(16, 12000),
    st.integers(1, 1500),
    st.floats(1e8, 1e12),
    st.floats(0.2, 8.0),
)
def test_slower_networks_and_tighter_bounds_never_help(role, prompt, output, bytes_per_s, ttft_s):
    def at(network, bound_s):
        return rate(role, size=(prompt, output), slos=(slo("ttft", 99, bound_s), CHAT[1]), bytes_per_s=network)

    here = at(bytes_per_s, ttft_s)
    assert here <= at(2 * bytes_per_s, ttft_s) * 1.005
    assert here <= at(bytes_per_s, 2 * ttft_s) * 1.005
    assert here <= most_rps(role, LLAMA, H100, EngineConfig(), size=(prompt, output)) * 1.001


def test_measurements_of_whole_serving_correct_both_stages_and_stay_estimates():
    llama70, a100 = load_model("Llama-2-70B"), GPUS.get("A100-80GB")
    config = EngineConfig(engine="tensorrt-llm", precision="fp16", tensor_parallel=4)
    plain = profile(Role.DECODE, model=llama70, gpu=a100, config=config, slos=(), size=(512, 512))
    known = profile(
        Role.DECODE, model=llama70, gpu=a100, config=config, slos=(), size=(512, 512), store=load_measured()
    )
    assert known.throughput_rps[0] != plain.throughput_rps[0]
    assert known.provenance[0].kind is ProvenanceKind.ESTIMATED
    assert "no measurement of disaggregated serving; steps as measured" in known.provenance[0].note


def test_the_better_gpu_gains_more_at_prompts_than_at_tokens():
    """As measured for Splitwise, Llama-2-70B on 8 H100 over 8 A100: prompts 1.7 to 2.6 times, tokens 1.4 to 1.5 times.

    Mutinifni/splitwise-sim@8f99e7dc9b40 (MIT), data/perf_model.csv, prompts of 512 to 8192 tokens.
    """
    ratios = {}
    for role, sequences, prefill in ((Role.PREFILL, 0.0, 2048.0), (Role.DECODE, 16.0, 0.0)):
        times = [
            steady.make_replica(
                load_model("Llama-2-70B"),
                GPUS.get(gpu),
                EngineConfig(precision="fp16", tensor_parallel=8),
                input_tokens=np.array([512.0]),
                output_tokens=np.array([128.0]),
                params=default_params(),
            ).step_s(np.array([sequences]), np.array([prefill]))[0]
            for gpu in ("A100-80GB", "H100-80GB")
        ]
        ratios[role] = times[0] / times[1]
    assert 1.7 <= ratios[Role.PREFILL] <= 2.6
    assert 1.35 <= ratios[Role.DECODE] <= 1.65


def test_engines_that_serve_in_two_stages_are_named_with_their_flags():
    flags = load_role_flags()
    assert {role for _, role in flags} == {Role.PREFILL, Role.DECODE}
    assert all((engine, role) in flags for engine, _ in flags for role in (Role.PREFILL, Role.DECODE))
    assert "kv_producer" in role_flags("vllm", Role.PREFILL)
    assert role_flags("tgi", Role.PREFILL) == ""
    check_disaggregated("vllm")
    with pytest.raises(InputError, match="'tgi' is not known to serve prefill apart from decode") as error:
        check_disaggregated("tgi")
    assert "sglang" in error.value.hint
