"""Step-time model against closed forms and the published checks of long-context serving."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.hardware import EngineConfig
from planner.domain.model import LayerGroup, MixerKind, ModelArchitecture
from planner.profilers import roofline
from planner.profilers.efficiency import default_params, engine_family


def array(*values):
    return np.array(values, dtype=np.float64)


@pytest.fixture
def a100():
    """The A100 of the long-context analysis: 80 GB, 312 TFLOP/s, 2 TB/s."""
    return replace(load_gpus().get("A100-80GB"), memory_bytes=80e9, bandwidth_bytes_per_s=2e12, achieved_flops={})


@pytest.fixture
def ideal():
    """Every rate at its peak, no overheads."""
    return default_params().with_values(
        gemm_fraction_bf16=1.0,
        gemm_fraction_fp8=1.0,
        bandwidth_fraction=1.0,
        kv_bandwidth_fraction=1.0,
        kv_heads_exponent=0.0,
        attention_fraction=1.0,
        step_overhead_s=0.0,
        sequence_overhead_s=0.0,
        activation_factor=0.0,
        memory_fraction=0.9,
    )


YI = "01-ai/Yi-34B-200K"


def test_kv_bytes_of_yi_34b():
    model, config = load_model(YI), EngineConfig()
    per_token = roofline.kv_bytes_per_gpu(model, config, array(1), is_read=False)[0]
    assert per_token == 245_760  # 2 x 60 layers x 8 heads x 128 x 2 bytes
    four, fifty = roofline.kv_bytes_per_gpu(model, config, array(4000, 50_000), is_read=False)
    assert four == pytest.approx(0.983e9, rel=1e-3)
    assert fifty / four == 12.5


def test_concurrency_of_yi_34b(a100, ideal):
    model = load_model(YI)
    one = roofline.kv_sequences(model, a100, EngineConfig(), array(4000, 50_000), ideal)
    two = roofline.kv_sequences(model, a100, EngineConfig(tensor_parallel=2), array(4000, 4096, 50_000, 100_000), ideal)
    # floor((0.9 x 80 GB - 68.8 GB) / 0.98 GB) = 3: the published 12 keeps no tenth of the memory back
    assert list(one) == [3, 0]
    room = 2 * 72e9 - 68.78e9
    assert list(two) == [np.floor(room / (245_760 * size)) for size in (4000, 4096, 50_000, 100_000)]
    assert list(two) == [76, 74, 6, 3]


def test_concurrency_with_the_whole_memory_is_the_published_one(a100, ideal):
    model, whole = load_model(YI), ideal.with_values(memory_fraction=1.0)
    two = roofline.kv_sequences(model, a100, EngineConfig(tensor_parallel=2), array(4000, 50_000, 100_000), whole)
    assert list(two) == [92, 7, 3]  # published as 93, 7, 3 with 68 GB of weights; they are 68.8 GB


def test_prefill_of_yi_34b(a100, ideal):
    """S (2 P + 2 L d S) / F: 0.92 s for 4k and 17.8 s for 50k tokens at the peak rate."""
    model, config = load_model(YI), EngineConfig(tensor_parallel=1, max_num_batched_tokens=50_000)
    steps = roofline.step_model(model, a100, config, ideal)
    for tokens, published in ((4000, 0.92), (50_000, 17.8)):
        dense = 2 * 33.93e9 * tokens / 312e12
        attention = 2 * 60 * 7168 * tokens**2 / 312e12
        attention_s = roofline.prefill_attention_s(steps, model, array(tokens))
        took = steps.step_s(sequences=array(0), prefill=array(tokens), decode_s=array(0), attention_s=attention_s)[0]
        assert took == pytest.approx(dense + attention, rel=0.03)
        assert took == pytest.approx(published, rel=0.04)


def test_decode_of_yi_34b(a100, ideal):
    """250 tokens of one sequence: 8.6 s at 4k and 10.0 s at 50k; the ratio of the steps is 0.86."""
    model, config = load_model(YI), EngineConfig()
    steps = roofline.step_model(model, a100, config, ideal)
    decode_s = roofline.decode_attention_s(steps, model, config, array(4000, 50_000))
    short, long = steps.step_s(sequences=array(1, 1), prefill=array(0, 0), decode_s=decode_s, attention_s=array(0, 0))
    assert 250 * short == pytest.approx(8.62, rel=0.02)
    assert 250 * long == pytest.approx(10.04, rel=0.02)
    assert short / long == pytest.approx(0.86, abs=0.005)


def test_gqa_multiplies_concurrency_and_tp_frees_memory(a100, ideal):
    model = load_model(YI)
    group = model.layers[0]
    narrow = replace(model, layers=(replace(group, kv_elements_per_token=group.kv_elements_per_token / 8),))
    config = EngineConfig(tensor_parallel=2)
    wide_count = roofline.kv_sequences(model, a100, config, array(4000), ideal)[0]
    narrow_count = roofline.kv_sequences(narrow, a100, config, array(4000), ideal)[0]
    assert narrow_count // 8 == wide_count
    two = roofline.replica_memory(model, a100, config, ideal)
    four = roofline.replica_memory(model, a100, replace(config, tensor_parallel=4), ideal)
    assert 4 * four.kv_bytes - 2 * two.kv_bytes == pytest.approx(2 * 0.9 * 80e9)


def windowed(window):
    return ModelArchitecture(
        name="toy",
        hidden_size=1024,
        vocab_size=1000,
        layers=(
            LayerGroup(
                count=2,
                mixer=MixerKind.SLIDING_WINDOW if window else MixerKind.FULL_ATTENTION,
                mixer_params=1e6,
                kv_elements_per_token=512,
                window_tokens=window,
                n_query_heads=8,
                n_kv_heads=2,
                head_dim=128,
                value_head_dim=128,
                mlp_params=1e6,
                mlp_active_params=1e6,
            ),
        ),
        is_embedding_tied=True,
        max_context_tokens=100_000,
        native_precision="bf16",
    )


@pytest.mark.parametrize(("window", "length"), [(None, 50), (8, 50), (8, 5), (50, 50)])
def test_prefill_attention_counts_every_visible_pair(window, length):
    pairs = sum(min(t, window or length) for t in range(1, length + 1))
    exact = 2 * 2 * 8 * (128 + 128) * pairs
    ours = roofline.prefill_attention_flops(windowed(window), array(length))[0]
    assert ours == exact


def test_window_bounds_cache_and_reads():
    config = EngineConfig()
    for is_read in (True, False):
        inside, outside = roofline.kv_bytes_per_gpu(windowed(8), config, array(8, 8000), is_read=is_read)
        assert inside == outside == 2 * 512 * 8 * 2


def test_mla_cache_is_replicated_over_ranks():
    model = load_model("deepseek-ai/DeepSeek-V3")
    one, eight = (
        roofline.kv_bytes_per_gpu(model, EngineConfig(tensor_parallel=tp), array(1000), is_read=False)[0]
        for tp in (1, 8)
    )
    assert one == eight == 61 * (512 + 64) * 2 * 1000
    grouped = load_model(YI)
    tp8, tp16 = (
        roofline.kv_bytes_per_gpu(grouped, EngineConfig(tensor_parallel=tp), array(1000), is_read=False)[0]
        for tp in (8, 16)
    )
    assert tp8 == tp16 == 245_760_000 / 8


def test_small_batches_touch_few_experts(ideal):
    """Expected distinct experts of T tokens, each drawing k of n: n (1 - (1 - k/n)^T)."""
    model, gpu = load_model("mistralai/Mixtral-8x7B-v0.1"), load_gpus().get("H100-80GB")
    steps = roofline.step_model(model, gpu, EngineConfig(tensor_parallel=2), ideal)
    took = {}
    for tokens in (1, 8, 64):
        took[tokens] = steps.step_s(sequences=array(tokens), prefill=array(0), decode_s=array(0), attention_s=array(0))[
            0
        ]
    experts = steps.experts[0]
    assert (experts.n_experts, experts.n_active) == (8, 2)
    assert experts.read_s == pytest.approx(32 * 8 * 3 * 4096 * 14336 * 2 / (2 * gpu.bandwidth_bytes_per_s))
    grown = took[8] - took[1]
    assert grown == pytest.approx(experts.read_s * ((1 - 0.75**8) - 0.25), rel=0.05)
    assert took[64] - took[8] < 0.2 * experts.read_s


def test_fp8_math_needs_fp8_hardware():
    gpus = load_gpus()
    assert roofline.math_format("fp8", gpus.get("H100-80GB")) == "fp8"
    assert roofline.math_format("fp8", gpus.get("A100-80GB")) == "bf16"
    assert roofline.math_format("int4", gpus.get("H100-80GB")) == "bf16"
    assert roofline.math_format("nvfp4", gpus.get("B200-180GB")) == "fp4"
    assert roofline.math_format("nvfp4", gpus.get("H100-80GB")) == "bf16"


def test_weight_only_saves_bytes_but_no_flops(ideal):
    model, gpu = load_model("Llama-3.1-8B"), load_gpus().get("A100-80GB")
    wide, narrow = (
        roofline.step_model(model, gpu, EngineConfig(precision=precision), ideal) for precision in ("bf16", "int4")
    )
    assert narrow.linear_s_per_token == wide.linear_s_per_token
    assert narrow.dense_read_s == pytest.approx(wide.dense_read_s * (0.5 + 2.5 / 128) / 2, rel=1e-3)


def test_all_reduce_is_a_ring_twice_a_layer(ideal):
    model, gpu = load_model("Llama-2-70B"), load_gpus().get("H100-80GB")
    params = ideal.with_values(link_fraction=1.0, allreduce_latency_s=1e-5)
    eight = roofline.step_model(model, gpu, EngineConfig(tensor_parallel=8), params)
    assert eight.communication_s_per_token == pytest.approx(160 * 2 * 7 / 8 * 8192 * 2 / 450e9)
    assert eight.communication_fixed_s == pytest.approx(160 * 3 * 1e-5)
    alone = roofline.step_model(model, gpu, EngineConfig(), params)
    assert alone.communication_s_per_token == alone.communication_fixed_s == 0


def test_pcie_cards_reduce_slower_than_nvlink():
    model, gpus = load_model("Llama-3.1-8B"), load_gpus()
    config = EngineConfig(tensor_parallel=2)
    nvlink, pcie = (
        roofline.step_model(model, gpus.get(name), config, default_params()).communication_s_per_token
        for name in ("H100-80GB", "L40S")
    )
    assert pcie > 8 * nvlink
    bridged = gpus.get("H100-NVL-94GB")
    assert roofline.link_kind(bridged, 2) == "nvlink"
    assert roofline.link_kind(bridged, 4) == "pcie"


def test_pipeline_stages_multiply_throughput_not_speed():
    model, gpu = load_model("Llama-2-70B"), load_gpus().get("H100-80GB")
    flat, deep = (
        roofline.step_model(model, gpu, EngineConfig(tensor_parallel=2, pipeline_parallel=pp), default_params())
        for pp in (1, 2)
    )
    zero = array(0)
    lone = [
        steps.step_s(sequences=array(1), prefill=zero, decode_s=zero, attention_s=zero)[0] for steps in (flat, deep)
    ]
    assert lone[1] == pytest.approx(lone[0], rel=0.02)
    full = [
        steps.step_s(sequences=zero, prefill=array(8192), decode_s=zero, attention_s=zero)[0] for steps in (flat, deep)
    ]
    assert full[0] / full[1] == pytest.approx(2.0, rel=0.1)


def test_misfits_are_named_in_words():
    gpus, params = load_gpus(), default_params()
    big = load_model("Llama-2-70B")
    assert "138 GB" in roofline.misfit(big, gpus.get("A10G"), EngineConfig(), params)
    assert "1 x A10G" in roofline.misfit(big, gpus.get("A10G"), EngineConfig(), params)
    assert roofline.misfit(big, gpus.get("H100-80GB"), EngineConfig(tensor_parallel=4), params) == ""
    assert "int3" in roofline.misfit(big, gpus.get("H100-80GB"), EngineConfig(precision="int3"), params)
    assert "fp5" in roofline.misfit(big, gpus.get("H100-80GB"), EngineConfig(kv_precision="fp5"), params)
    assert "81 pipeline" in roofline.misfit(big, gpus.get("H100-80GB"), EngineConfig(pipeline_parallel=81), params)
    no_tensor = replace(gpus.get("H100-80GB"), peak_flops={"int8": 1e15})
    assert "no tensor arithmetic" in roofline.misfit(big, no_tensor, EngineConfig(), params)


def test_engine_spellings_share_a_family():
    assert engine_family("TRTLLM") == engine_family("tensorrt_llm") == "tensorrt-llm"
    assert engine_family("vllm") == "vllm"
