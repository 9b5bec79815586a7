"""Timing of kernels: the shapes, the loop, the fit and the file; on a GPU whose rates are known."""

from __future__ import annotations

import csv
import io
import json
import random
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from synthetic_gpu import SyntheticGpu
from tests_support import REPO

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.hardware import EngineConfig
from planner.errors import InputError, UnsupportedFormatError
from planner.profilers import roofline
from planner.profilers.efficiency import default_params
from planner.profilers.kernels import machine
from planner.profilers.kernels.document import read_step_times
from planner.profilers.kernels.fit import (
    LayerPoint,
    Rates,
    efficiency_rows,
    fit_allreduce,
    fit_layers,
    fit_rates,
    impossible,
    layers_s,
    out_of_order,
)
from planner.profilers.kernels.run import BUDGET_SPENT, Outcome, forecast_s, time_kernels
from planner.profilers.kernels.sampling import Timing, collect, median_interval
from planner.profilers.kernels.shapes import (
    Kernel,
    KernelKind,
    ShapeSettings,
    coarse_to_fine,
    distinct_experts,
    kernels_to_time,
)
from planner.profilers.kernels.table import interpolate, left_out_errors, steps
from planner.profilers.params_file import EfficiencyRow, parse_rows, rows_csv

LLAMA = "meta-llama/Llama-3.1-8B"
MODELS = (
    LLAMA,
    "facebook/opt-6.7b",
    "mistralai/Mixtral-8x7B-v0.1",
    "deepseek-ai/DeepSeek-R1",
    "google/gemma-3-27b-it",
    "Qwen/Qwen3-Next-80B-A3B-Thinking",
    "nvidia/Nemotron-H-56B-Base-8K",
    "openai/gpt-oss-120b",
)
PRODUCTS = (KernelKind.LINEAR, KernelKind.EXPERTS)


def of(kernels, *kinds, **wanted):
    return [
        kernel
        for kernel in kernels
        if kernel.kind in kinds and all(getattr(kernel, name) == value for name, value in wanted.items())
    ]


def timed(gpu: SyntheticGpu, model: str = LLAMA, **settings) -> tuple[Outcome, ...]:
    kernels = kernels_to_time(load_model(model), ShapeSettings(**settings))
    return tuple(gpu.time(kernel, limit_s=0.1) for kernel in kernels)


# shapes


@pytest.mark.parametrize("name", MODELS)
def test_one_tokens_products_have_the_models_active_parameters(name):
    model = load_model(name)
    products = of(kernels_to_time(model, ShapeSettings()), *PRODUCTS, step_tokens=1)
    active = sum(group.count * (group.mixer_params + group.mlp_active_params) for group in model.layers)
    assert sum(kernel.count * kernel.flops for kernel in products) == pytest.approx(2 * active, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_many_tokens_read_all_weights_of_the_layers(name):
    model = load_model(name)
    products = of(kernels_to_time(model, ShapeSettings()), *PRODUCTS, step_tokens=8192)
    weights = sum(group.count * (group.mixer_params + group.mlp_params) for group in model.layers)
    assert sum(kernel.count * kernel.cold_bytes for kernel in products) == pytest.approx(2 * weights, rel=0.02)


@pytest.mark.parametrize("name", [LLAMA, "google/gemma-3-27b-it", "deepseek-ai/DeepSeek-R1"])
def test_decode_attention_reads_what_the_estimator_says(name):
    model = load_model(name)
    kernels = of(kernels_to_time(model, ShapeSettings()), KernelKind.DECODE_ATTENTION, batch=1, is_check=False)
    for context in (512, 8192, 32768):
        longest = {}
        for kernel in sorted(kernels, key=lambda kernel: kernel.context_tokens):
            if kernel.context_tokens <= context:
                longest[kernel.role] = kernel
        read = sum(kernel.count * kernel.cold_bytes for kernel in longest.values())
        config = EngineConfig()
        wanted = roofline.kv_bytes_per_gpu(model, config, np.array([float(context)]), is_read=True)[0]
        assert read == pytest.approx(wanted, rel=1e-9)


def test_prefill_attention_has_the_estimators_operations():
    model = load_model(LLAMA)
    for kernel in of(kernels_to_time(model, ShapeSettings()), KernelKind.PREFILL_ATTENTION):
        whole = roofline.prefill_attention_flops(model, np.array([float(kernel.tokens)]))[0]
        assert kernel.flops * model.n_layers == pytest.approx(whole)


def test_a_tensor_parallel_share_has_half_the_weights():
    model = load_model(LLAMA)
    one, two = (
        sum(kernel.count * kernel.cold_bytes for kernel in of(kernels, KernelKind.LINEAR, step_tokens=1))
        for kernels in (kernels_to_time(model, ShapeSettings(tensor_parallel=tp)) for tp in (1, 2))
    )
    assert two == pytest.approx(one / 2)


def test_fp8_weights_are_half_as_large():
    kernels = kernels_to_time(load_model(LLAMA), ShapeSettings(formats=("bf16", "fp8")))
    bf16, fp8 = (
        of(kernels, KernelKind.LINEAR, number_format=name, role="qkv", tokens=1)[0] for name in ("bf16", "fp8")
    )
    assert fp8.cold_bytes == bf16.cold_bytes / 2
    assert fp8.flops == bf16.flops


@pytest.mark.parametrize("name", MODELS)
def test_shapes_have_names_of_their_own_and_some_are_held_back(name):
    kernels = kernels_to_time(load_model(name), ShapeSettings(formats=("bf16", "fp8"), reduce_over=(2,)))
    assert len({kernel.key for kernel in kernels}) == len(kernels)
    held_back = {kernel.kind for kernel in kernels if kernel.is_check}
    assert held_back >= {kernel.kind for kernel in kernels} - {KernelKind.LAUNCH}
    assert sum(kernel.is_check for kernel in kernels) < len(kernels) / 3


def test_every_beginning_spans_the_range():
    for n in (1, 2, 3, 7, 18):
        assert sorted(coarse_to_fine(n)) == list(range(n))
    widest = [
        abs(a - b) for a, b in zip(sorted(coarse_to_fine(17)[:5]), sorted(coarse_to_fine(17)[:5])[1:], strict=False)
    ]
    assert max(widest) == 4


def test_distinct_experts_are_all_with_many_tokens():
    assert distinct_experts(256, 8, 1) == pytest.approx(8)
    assert distinct_experts(256, 8, 4096) == pytest.approx(256)


# sampling


def test_interval_of_the_median_covers_it_nineteen_times_in_twenty():
    generator = random.Random(1)
    inside = 0
    for _ in range(2000):
        _, low, high = median_interval([generator.expovariate(1.0) for _ in range(15)])
        inside += low <= 0.6931472 <= high
    assert 0.94 <= inside / 2000 <= 0.99


class Stopwatch:
    def __init__(self, call_s):
        self.call_s, self.now_s, self.calls = call_s, 0.0, []

    def sample(self, n_calls):
        self.calls.append(n_calls)
        seconds = sum(self.call_s() for _ in range(n_calls))
        self.now_s += seconds
        return seconds

    def clock(self):
        return self.now_s


def test_a_quiet_kernel_is_settled_after_six_samples_of_a_millisecond():
    watch = Stopwatch(lambda: 1e-5)
    timing = collect(watch.sample, limit_s=1.0, clock=watch.clock)
    assert timing.is_settled
    assert timing.median_s == pytest.approx(1e-5)
    assert (timing.n_samples, timing.calls_per_sample) == (6, 100)
    assert timing.low_s <= timing.median_s <= timing.high_s


def test_a_noisy_kernel_is_repeated_until_its_time_is_spent():
    generator = random.Random(2)
    watch = Stopwatch(lambda: 0.01 * generator.choice([1.0, 2.0]))
    timing = collect(watch.sample, limit_s=0.5, clock=watch.clock)
    assert not timing.is_settled
    assert 0.5 <= watch.now_s <= 0.6


def test_a_slow_kernel_is_run_twice_however_short_the_time():
    watch = Stopwatch(lambda: 3.0)
    timing = collect(watch.sample, limit_s=0.1, clock=watch.clock)
    assert timing.n_samples == 2
    assert timing.median_s == pytest.approx(3.0)


def test_every_copy_of_an_operand_has_its_turn():
    watch = Stopwatch(lambda: 1.0)
    assert collect(watch.sample, limit_s=0.1, clock=watch.clock, least_calls=7).calls_per_sample == 7


# the loop


def run(gpu, kernels, *, budget_s, known=None, seen=None):
    return time_kernels(
        kernels,
        gpu,
        budget_s=budget_s,
        clock=gpu.clock,
        known=known or {},
        on_outcome=(seen if seen is not None else []).append,
    )


def test_a_short_budget_spans_the_range_and_says_what_it_skipped():
    gpu = SyntheticGpu(seconds_per_kernel=1.0)
    kernels = kernels_to_time(load_model(LLAMA), ShapeSettings())
    outcomes = run(gpu, kernels, budget_s=30.0)
    assert [outcome.kernel for outcome in outcomes] == list(kernels)
    assert 29.0 < gpu.now_s < 32.0
    assert {outcome.skipped for outcome in outcomes if outcome.timing is None} <= {BUDGET_SPENT}
    tokens = {o.kernel.tokens for o in outcomes if o.kernel.role == "qkv" and o.timing is not None}
    assert {1, 8192} <= tokens


def test_a_shape_that_does_not_fit_the_budget_is_left_out_and_smaller_ones_are_not():
    gpu = SyntheticGpu(attention_flops_per_s=1e9)
    outcomes = run(gpu, kernels_to_time(load_model(LLAMA), ShapeSettings()), budget_s=600.0)
    done = {o.kernel.tokens: o.timing is not None for o in outcomes if o.kernel.kind is KernelKind.PREFILL_ATTENTION}
    assert done[256]
    assert not done[32768]
    assert gpu.now_s < 620.0


def test_what_is_known_is_not_timed_again():
    kernels = kernels_to_time(load_model(LLAMA), ShapeSettings())
    first = SyntheticGpu(interrupt_after=20)
    seen: list[Outcome] = []
    with pytest.raises(KeyboardInterrupt):
        run(first, kernels, budget_s=600.0, seen=seen)
    assert len(seen) == 20
    second = SyntheticGpu()
    known = {outcome.kernel.key: outcome for outcome in seen}
    outcomes = run(second, kernels, budget_s=600.0, known=known)
    assert not set(second.timed) & set(known)
    assert all(outcome.timing for outcome in outcomes)


def test_a_forecast_comes_from_the_nearest_smaller_shape():
    small, large = (
        Kernel(kind=KernelKind.HEAD, role="head", tokens=n, width_in=4096, width_out=128) for n in (1, 4096)
    )
    seconds = Timing(median_s=1.0, low_s=1.0, high_s=1.0, n_samples=6, calls_per_sample=1, is_settled=True)
    assert forecast_s(large, [Outcome(kernel=small, timing=seconds)]) == pytest.approx(large.work / small.work)
    assert forecast_s(small, [Outcome(kernel=large, timing=seconds)]) is None


# the fit


@pytest.mark.parametrize("name", [LLAMA, "deepseek-ai/DeepSeek-R1", "google/gemma-3-27b-it"])
def test_the_fit_finds_the_rates_that_the_timings_were_made_with(name):
    gpu = SyntheticGpu(n_devices=4)
    outcomes = timed(gpu, name, formats=("bf16", "fp8"), reduce_over=(2, 4))
    rates = fit_rates(outcomes, ("bf16", "fp8"))
    # experts see few tokens each while the dense layers see many: one ridge for the sum of both is a compromise
    slack = 0.15 if "DeepSeek" in name else 0.03
    assert rates.gemm_flops_per_s["bf16"] == pytest.approx(gpu.flops_per_s["bf16"], rel=slack)
    assert rates.gemm_flops_per_s["fp8"] == pytest.approx(gpu.flops_per_s["fp8"], rel=0.03)
    assert rates.weight_bytes_per_s == pytest.approx(gpu.weight_bytes_per_s, rel=0.03)
    assert rates.launch_s == gpu.launch_s
    assert rates.allreduce_latency_s == pytest.approx(gpu.allreduce_latency_s, rel=1e-6)
    assert rates.link_bytes_per_s == pytest.approx(gpu.link_bytes_per_s, rel=1e-6)
    if "DeepSeek" in name:  # torch has no fused attention for its heads, so nothing is said of any
        assert rates.attention_flops_per_s is None
        assert rates.kv_bytes_per_s is None
        assert any("fused" in reason for reason in rates.untold)
    else:
        assert rates.attention_flops_per_s == pytest.approx(gpu.attention_flops_per_s, rel=1e-6)
        assert rates.kv_bytes_per_s == pytest.approx(gpu.kv_bytes_per_s, rel=1e-6)


def vidur(name):
    return list(csv.DictReader((REPO / "tests/data/kernels" / name).read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize(
    ("gpu", "engines_gemm", "engines_bandwidth"),
    # what the throughputs of engines gave (docs/explanation/throughput.md), by another way altogether
    [("A100-80GB", 0.70, 0.69), ("H100-80GB", 0.67, 0.77)],
)
def test_kernels_that_others_measured_give_the_rates_that_engines_reach(gpu, engines_gemm, engines_bandwidth):
    points = []
    for row in vidur("vidur_layers.csv"):
        hidden, width, tokens = (float(row[column]) for column in ("n_embd", "n_ffn", "num_tokens"))
        cached = 2 * float(row["n_kv_head"]) * hidden / float(row["n_head"])
        weights = hidden * (2 * hidden + cached + 3 * width)
        seconds = (float(row["products_ms"]) + float(row["elementwise_ms"])) / 1e3
        if row["gpu"] == gpu:
            points.append(
                LayerPoint(
                    number_format="bf16",
                    tokens=int(tokens),
                    seconds=seconds,
                    flops=2 * weights * tokens,
                    cold_bytes=2 * weights,
                    n_calls=9.0,
                    is_check=False,
                )
            )
    flops, bytes_per_s = fit_layers({"bf16": points}, [])
    spec = load_gpus().get(gpu)
    assert flops["bf16"] / spec.peak_flops["bf16"] == pytest.approx(engines_gemm, rel=0.08)
    assert bytes_per_s / spec.bandwidth_bytes_per_s == pytest.approx(engines_bandwidth, rel=0.08)
    rates = Rates(gemm_flops_per_s=flops, weight_bytes_per_s=bytes_per_s)
    assert np.median([abs(layers_s(point, rates) / point.seconds - 1.0) for point in points]) < 0.08


def test_all_reduces_that_others_measured_give_the_links_known_share():
    all_reduces = [
        (
            Kernel(
                kind=KernelKind.ALL_REDUCE,
                role="all-reduce",
                tokens=int(row["size_bytes"]) // 2,
                batch=int(row["num_workers"]),
                width_in=1,
            ),
            float(row["time_ms"]) / 1e3,
        )
        for row in vidur("vidur_all_reduces.csv")
    ]
    latency_s, bytes_per_s = fit_allreduce(all_reduces)
    assert bytes_per_s / load_gpus().get("H100-80GB").link_bytes_per_s == pytest.approx(0.75, rel=0.08)
    assert 5e-6 < latency_s < 20e-6


def test_a_rate_that_no_shape_is_bound_by_is_not_told():
    rates = fit_rates(timed(SyntheticGpu(), max_tokens=32, max_sequences=32), ("bf16",))
    assert rates.gemm_flops_per_s == {}
    assert rates.weight_bytes_per_s == pytest.approx(2.7e12, rel=0.03)
    assert any("raise --max-tokens" in reason for reason in rates.untold)


def test_held_back_shapes_have_no_part_in_the_fit():
    gpu = SyntheticGpu()
    outcomes = timed(gpu)
    bent = tuple(
        replace(outcome, timing=replace(outcome.timing, median_s=9 * outcome.timing.median_s))
        if outcome.kernel.is_check
        else outcome
        for outcome in outcomes
    )
    assert fit_rates(bent, ("bf16",)) == fit_rates(outcomes, ("bf16",))
    rates = fit_rates(bent, ("bf16",))
    errors = {error.part: error for error in left_out_errors(bent, rates, formats=("bf16",), tensor_parallel=1)}
    assert errors["layers in bf16"].roofline_median == pytest.approx(8 / 9, abs=0.02)
    assert errors["prefill-attention"].table_median == pytest.approx(8 / 9, abs=0.02)


def test_table_and_rates_agree_where_the_roofline_holds():
    gpu = SyntheticGpu(n_devices=2)
    model = load_model("google/gemma-3-27b-it")
    outcomes = timed(gpu, "google/gemma-3-27b-it", tensor_parallel=2, reduce_over=(2,))
    rates = fit_rates(outcomes, ("bf16",))
    found = steps(model, outcomes, rates, number_format="bf16", tensor_parallel=2)
    assert {step.phase for step in found} == {"decode", "prefill"}
    # elementwise kernels take their launch alone on this GPU, which the fitted form has no term for
    for step in found:
        assert step.table_s == pytest.approx(step.roofline_s, rel=0.06), step
    errors = left_out_errors(outcomes, rates, formats=("bf16",), tensor_parallel=2)
    assert all(error.roofline_median < 0.05 for error in errors)
    assert all(error.table_median < 0.12 for error in errors if error.table_median is not None)


def test_steps_are_what_the_step_model_says_with_the_fitted_rows():
    """The whole way: timings, fit, rows, parameters, step model; without an engine's own overhead."""
    spec, model = load_gpus().get("H100-80GB"), load_model(LLAMA)
    outcomes = timed(SyntheticGpu())
    rates = fit_rates(outcomes, ("bf16",))
    rows = efficiency_rows(rates, spec, model, source="test", tensor_parallel=1)
    params = default_params().with_rows(rows).with_values(step_overhead_s=0.0, sequence_overhead_s=0.0)
    config = EngineConfig()
    model_steps = roofline.step_model(model, spec, config, params)
    for step in steps(model, outcomes, rates, number_format="bf16", tensor_parallel=1):
        if step.phase != "decode":
            continue
        attention = roofline.decode_attention_s(model_steps, model, config, np.array([float(step.tokens)]))
        zero = np.zeros(1)
        wanted = model_steps.step_s(
            sequences=np.array([float(step.sequences)]), prefill=zero, decode_s=attention, attention_s=zero
        )[0]
        assert step.table_s == pytest.approx(wanted, rel=0.06), step


def test_steps_take_longer_with_more_sequences_and_longer_contexts():
    outcomes = timed(SyntheticGpu())
    found = {
        (step.phase, step.sequences, step.tokens): step.table_s
        for step in steps(
            load_model(LLAMA), outcomes, fit_rates(outcomes, ("bf16",)), number_format="bf16", tensor_parallel=1
        )
    }
    assert found["decode", 256, 32768] > found["decode", 256, 512] > found["decode", 1, 512]
    assert found["prefill", 1, 32768] > 4 * found["prefill", 1, 8192]  # attention grows with the square


def test_the_table_says_nothing_of_what_was_not_timed():
    model = load_model(LLAMA)
    outcomes = timed(SyntheticGpu(refused={"decode-attention bf16 t1 b256 c32768 h32/8x128/128": "out of memory"}))
    rates = fit_rates(outcomes, ("bf16",))
    found = steps(model, outcomes, rates, number_format="bf16", tensor_parallel=1)
    sizes = {(step.sequences, step.tokens) for step in found if step.phase == "decode"}
    assert (256, 32768) not in sizes
    assert (256, 8192) in sizes
    none = steps(model, outcomes, rates, number_format="bf16", tensor_parallel=2)  # no all-reduce was timed
    assert none == ()


def test_interpolation_is_exact_for_powers_and_stops_at_the_ends():
    curve = {float(n): 3.0 * n**1.5 for n in (1, 4, 64)}
    assert interpolate(curve, 10.0) == pytest.approx(3.0 * 10**1.5)
    assert interpolate(curve, 0.5) is None
    assert interpolate(curve, 65.0) is None


# checks


def test_faster_than_the_data_sheet_is_seen():
    spec = load_gpus().get("H100-80GB")
    outcomes = timed(SyntheticGpu())
    assert impossible(outcomes, spec) == {}
    fast = timed(SyntheticGpu(flops_per_s={"bf16": 2000e12}))
    assert "dense peak" in impossible(fast, spec)["gate-up bf16 t8192 4096x28672"]
    cached = timed(SyntheticGpu(kv_bytes_per_s=9e12))
    assert "GB/s" in impossible(cached, spec)["decode-attention bf16 t1 b256 c32768 h32/8x128/128"]


def test_attention_that_shrinks_with_its_work_is_seen():
    outcomes = timed(SyntheticGpu())
    assert out_of_order(outcomes) == ()
    key = "prefill-attention bf16 t32768 h32/32x128/128"
    assert out_of_order(timed(SyntheticGpu(too_fast=frozenset({key})))) == (key,)


# rows


def test_a_gpus_own_row_goes_before_its_architectures():
    h100, h200 = load_gpus().get("H100-80GB"), load_gpus().get("H200-141GB")
    row = EfficiencyRow(
        parameter="gemm_fraction_bf16", scope="H100-80GB", value=0.75, unit="of dense peak", source="s", reason="r"
    )
    link = replace(row, parameter="link_fraction", scope="H100-80GB/nvlink", value=0.5)
    params = default_params().with_rows([row, link])
    own = params.efficiency(h100, "vllm", link_kind="nvlink")
    assert own.gemm_fraction["bf16"] == 0.75
    assert own.link_fraction == 0.5
    assert own.own_formats == {"bf16"}
    other = params.efficiency(h200, "vllm", link_kind="nvlink")
    assert other == default_params().efficiency(h200, "vllm", link_kind="nvlink")
    assert params.efficiency(h100, "vllm", link_kind="pcie").link_fraction == other_pcie(h100)


def other_pcie(gpu):
    return default_params().efficiency(gpu, "vllm", link_kind="pcie").link_fraction


def test_what_was_measured_on_this_gpu_is_not_capped_by_what_others_reached_on_it():
    spec = replace(load_gpus().get("H100-80GB"), achieved_flops={"bf16": 1e12})
    model, config = load_model(LLAMA), EngineConfig()
    capped = roofline.step_model(model, spec, config, default_params())
    row = EfficiencyRow(
        parameter="gemm_fraction_bf16", scope=spec.name, value=0.5, unit="of dense peak", source="s", reason="r"
    )
    own = roofline.step_model(model, spec, config, default_params().with_rows([row]))
    assert own.linear_s_per_token < capped.linear_s_per_token / 100


def test_a_gpu_with_rows_of_its_own_counts_as_fitted():
    gaudi = load_gpus().get("Gaudi3")
    assert not default_params().is_fitted(gaudi)
    row = EfficiencyRow(parameter="gemm_fraction_bf16", scope="gaudi3", value=0.5, unit="", source="", reason="")
    assert default_params().with_rows([row]).is_fitted(gaudi)


def test_rows_read_back():
    spec = load_gpus().get("H100-80GB")
    outcomes = timed(SyntheticGpu(n_devices=2), reduce_over=(2,), formats=("bf16", "fp8"))
    rates = fit_rates(outcomes, ("bf16", "fp8"))
    rows = efficiency_rows(rates, spec, load_model(LLAMA), source="a, source", tensor_parallel=2)
    assert {row.parameter for row in rows} == {
        "gemm_fraction_bf16",
        "gemm_fraction_fp8",
        "bandwidth_fraction",
        "kv_bandwidth_fraction",
        "attention_fraction",
        "link_fraction",
        "layer_time_factor",
        "link_time_factor",
    }
    again = parse_rows(rows_csv(rows), "rows.csv")
    assert [replace(row, value=0.0) for row in again] == [replace(row, value=0.0) for row in rows]
    assert [row.value for row in again] == pytest.approx([row.value for row in rows], rel=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameter,value\n", "columns"),
        ("parameter,scope,value,unit,source,reason\ngem_fraction_bf16,x,1,,,\n", "gemm_fraction_bf16"),
        ("parameter,scope,value,unit,source,reason\ngemm_fraction_bf16,x,much,,,\n", "not a number"),
        ("parameter,scope,value,unit,source,reason\ngemm_fraction_bf16,x,nan,,,\n", "cannot be"),
        ("parameter,scope,value,unit,source,reason\ngemm_fraction_bf16,x,-1,,,\n", "cannot be"),
        ("parameter,scope,value,unit,source,reason\ngemm_fraction_bf16,x\n", "6 columns"),
    ],
)
def test_wrong_rows_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_rows(text, "rows.csv")


# the machine


def test_nvidia_smi_is_read_with_new_and_old_field_names():
    asked = []

    def old_driver(command):
        asked.append(command)
        if "clocks_event_reasons.active" in command[1]:
            return None
        return "NVIDIA A100-SXM4-80GB, 525.60.13, 1234, 97, 1095, 1410, 1593, 398.2, 400.00, 0x0000000000000044\n"

    state = machine.read_state("GPU-1", run=old_driver)
    assert len(asked) == 2
    assert "--id=GPU-1" in asked[1]
    assert state.driver_version == "525.60.13"
    assert state.memory_used_bytes == 1234 * 2**20
    assert state.utilisation_fraction == 0.97
    assert (state.sm_clock_mhz, state.max_sm_clock_mhz, state.power_limit_w) == (1095.0, 1410.0, 400.0)
    assert state.slowdowns == ("power limit", "temperature (hardware limit)")
    assert state.is_throttled
    assert "97%" in machine.busy_reason(state) or "1.3 GB" in machine.busy_reason(state)


def test_without_nvidia_smi_nothing_is_known_and_nobody_accused():
    state = machine.read_state("0", run=lambda command: None)
    assert state == machine.MachineState()
    assert machine.busy_reason(state) == ""
    assert not state.is_throttled


def test_what_a_card_does_not_report_is_not_known():
    state = machine.parse_state(("memory.used", "power.draw"), "[N/A], [Not Supported]")
    assert state.memory_used_bytes is None
    assert state.power_w is None


def test_the_power_limit_alone_is_no_fault():
    assert not machine.MachineState(slowdown_mask=0x4).is_throttled


# the command, on the synthetic GPU


@pytest.fixture
def on(monkeypatch):
    """Put a synthetic GPU where torch would find a real one."""

    def put(gpu: SyntheticGpu) -> SyntheticGpu:
        monkeypatch.setattr("planner.profilers.kernels.timing.open_device", lambda device: gpu)
        monkeypatch.setattr("planner.profilers.kernels.machine.read_state", lambda gpu_id: machine.MachineState())
        return gpu

    return put


def test_rows_and_document_of_a_run(on, gpuplan, tmp_path):
    on(SyntheticGpu())
    rows, document = tmp_path / "rows.csv", tmp_path / "times.json"
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "--precision", "fp8", "-o", rows, "-o", document, "--json")
    assert ran.code == 0
    assert ran.json == json.loads(document.read_text(encoding="utf-8"))
    jsonschema.validate(ran.json, gpuplan("schema", "step-times").json)
    by_parameter = {row["parameter"]: row for row in csv.DictReader(io.StringIO(rows.read_text(encoding="utf-8")))}
    assert float(by_parameter["gemm_fraction_bf16"]["value"]) == pytest.approx(650 / 989, rel=0.03)
    assert float(by_parameter["gemm_fraction_fp8"]["value"]) == pytest.approx(1200 / 1979, rel=0.03)
    assert float(by_parameter["bandwidth_fraction"]["value"]) == pytest.approx(2.7 / 3.35, rel=0.03)
    assert {row["scope"].partition("/")[0] for row in by_parameter.values()} == {"H100-80GB"}
    read = read_step_times(document)
    assert read.is_complete
    assert read.machine.gpu == "H100-80GB"
    assert fit_rates([row.outcome for row in read.kernels], ("bf16", "fp8")).gemm_flops_per_s == pytest.approx(
        read.rates.gemm_flops_per_s
    )
    assert gpuplan("profile", "kernels", "--model", LLAMA, "-o", document).code == 2  # it exists


def test_an_interrupted_run_goes_on_where_it_stopped(on, gpuplan, tmp_path):
    document, part = tmp_path / "times.json", tmp_path / "times.json.part"
    on(SyntheticGpu(interrupt_after=25))
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "-o", document)
    assert ran.code == 130
    assert part.exists()
    assert not document.exists()
    assert not read_step_times(part).is_complete
    second = on(SyntheticGpu())
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "-o", document)
    assert ran.code == 0
    assert "25 shapes were timed before" in ran.err
    assert not part.exists()
    assert len(second.timed) == len(read_step_times(document).kernels) - 25


def test_the_part_of_another_gpu_is_not_mixed_in_and_not_lost(on, gpuplan, tmp_path):
    document, part = tmp_path / "times.json", tmp_path / "times.json.part"
    on(SyntheticGpu(interrupt_after=25))
    gpuplan("profile", "kernels", "--model", LLAMA, "-o", document)
    on(SyntheticGpu(name="NVIDIA A100-SXM4-80GB"))
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "-o", document, "--force")
    assert ran.code == 2
    assert "NVIDIA A100-SXM4-80GB" in ran.err
    assert part.exists()


def test_timings_beyond_physics_are_told_and_left_out(on, gpuplan, tmp_path):
    on(SyntheticGpu(too_fast=frozenset({"gate-up bf16 t8192 4096x28672"})))
    document = tmp_path / "times.json"
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "-o", document)
    assert ran.code == 5
    assert "W523" in ran.err
    read = read_step_times(document)
    assert [row.tokens for row in read.kernels if row.impossible] == [8192]
    assert read.rates.gemm_flops_per_s["bf16"] == pytest.approx(650e12, rel=0.05)


def test_what_cannot_be_timed_is_told(on, gpuplan):
    key = "decode-attention bf16 t1 b256 c32768 h32/8x128/128"
    on(
        SyntheticGpu(
            refused={key: "out of memory: 300 GB"}, unsupported_formats={"fp8": "needs compute capability 8.9"}
        )
    )
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "--precision", "fp8", "--json")
    assert ran.code == 0
    assert "needs compute capability 8.9" in ran.err
    assert "W524" in ran.err
    assert "out of memory" in ran.err
    assert ran.json["settings"]["formats"] == ["bf16"]


def test_a_gpu_in_use_and_a_hot_one_are_told(on, gpuplan, monkeypatch):
    on(SyntheticGpu())
    busy = machine.MachineState(memory_used_bytes=30e9, slowdown_mask=0x40, sm_clock_mhz=900.0)
    monkeypatch.setattr("planner.profilers.kernels.machine.read_state", lambda gpu_id: busy)
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "--json")
    assert {warning["code"] for warning in ran.json["warnings"]} >= {"W521", "W522"}
    assert ran.json["machine"]["slowdowns"] == ["temperature (hardware limit)"]


def test_another_gpu_than_was_named_is_told(on, gpuplan):
    on(SyntheticGpu())
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "--gpu", "L4", "--json")
    assert "W526" in {warning["code"] for warning in ran.json["warnings"]}


def test_an_unknown_gpu_needs_a_name_or_goes_without_rows(on, gpuplan, tmp_path):
    on(SyntheticGpu(name="NVIDIA Q7"))
    ran = gpuplan("profile", "kernels", "--model", LLAMA)
    assert ran.code == 6
    assert "--gpu" in ran.err
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "--gpu", "unknown", "--json")
    assert ran.code == 0
    assert ran.json["efficiency"] == []
    assert gpuplan("profile", "kernels", "--model", LLAMA, "--gpu", "unknown", "-o", tmp_path / "rows.csv").code == 6


def test_a_budget_too_short_for_anything_is_an_error(on, gpuplan):
    on(SyntheticGpu())
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "--budget", "1ns")
    assert ran.code == 2
    assert "--budget" in ran.err


def test_the_table_for_people_names_rates_errors_and_steps(on, gpuplan):
    on(SyntheticGpu())
    ran = gpuplan("profile", "kernels", "--model", LLAMA)
    assert ran.code == 0
    for words in (
        "matrix products, bf16",
        "of data sheet",
        "reading the KV cache",
        "Median error",
        "decode",
        "prefill",
    ):
        assert words in ran.out


def test_a_dry_run_lists_the_shapes(gpuplan):
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "--dry-run")
    assert ran.code == 0
    assert "gate-up" in ran.out
    listed = gpuplan("profile", "kernels", "--model", LLAMA, "--dry-run", "--json").json
    assert len(listed["kernels"]) == len(kernels_to_time(load_model(LLAMA), ShapeSettings()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "int4"), "int4"),
        (("--tp", "3"), "does not divide"),
        (("--budget", "5"), "unit"),
        (("--budget", "0s"), "more than nothing"),
        (("--device", "tpu"), "tpu"),
        (("--max-context", "9999999"), "longer than"),
        (("-o", "times.xml"), ".xml"),
        (("-o", "no/such/folder/times.json"), "folder"),
    ],
)
def test_wrong_options_are_refused(arguments, message, gpuplan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = gpuplan("profile", "kernels", "--model", LLAMA, "--dry-run", *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert ran.out == ""


def test_other_documents_are_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"kind": "Plan", "schema_version": "1"}', encoding="utf-8")
    with pytest.raises(InputError, match="no StepTimes"):
        read_step_times(path)
    path.write_text('{"kind": "StepTimes", "schema_version": "9"}', encoding="utf-8")
    with pytest.raises(UnsupportedFormatError, match="'9'"):
        read_step_times(path)
    path.write_text('{"kind": "StepTimes", "schema_version": "1", "is_complete": true}', encoding="utf-8")
    with pytest.raises(InputError, match="missing"):
        read_step_times(path)
