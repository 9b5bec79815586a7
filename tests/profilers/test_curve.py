"""Curves of timed kernels: between knots, in the step model, in the engine loop, and against kernels of real GPUs."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.hardware import EngineConfig
from planner.errors import InputError
from planner.planning.estimate import estimate_rows
from planner.profilers import roofline
from planner.profilers.curve import MAX_KNOTS, make_curve, stack_curves
from planner.profilers.efficiency import default_params
from planner.profilers.kernels.fit import (
    LayerPoint,
    Rates,
    efficiency_rows,
    fit_allreduce,
    fit_layers,
    layer_factors,
    layers_s,
    link_factors,
)
from planner.profilers.kernels.shapes import Kernel, KernelKind
from planner.profilers.params_file import parse_rows, rows_csv
from planner.simulate.engine import factor_at, step_seconds
from planner.simulate.steps import EngineKind, engine_table

DATA = Path(__file__).resolve().parents[1] / "data" / "kernels"
LLAMA = "meta-llama/Llama-3.1-8B"
H100 = load_gpus().get("H100-80GB")


@given(
    st.dictionaries(st.integers(1, 10_000), st.floats(0.1, 10.0), min_size=2, max_size=MAX_KNOTS),
    st.floats(0.01, 1e5),
)
def test_a_curve_is_straight_between_its_knots_and_flat_beyond(knots, size):
    pairs = sorted(knots.items())
    curve = make_curve(pairs)
    expected = np.interp(np.log(size), np.log([at for at, _ in pairs]), [factor for _, factor in pairs])
    assert curve.at(np.array([size]))[0] == pytest.approx(expected, rel=1e-9)
    assert factor_at(curve.log_sizes, curve.factors, size) == pytest.approx(expected, rel=1e-9)
    stacked = stack_curves([None, curve], [1, 2])
    assert stacked.at(np.full((4, 3), size))[2] == pytest.approx([1.0, expected, expected], rel=1e-9)
    assert stacked.take(np.array([1, 0, 2])).at(np.full(3, size)) == pytest.approx([expected, 1.0, expected], rel=1e-9)


def test_too_many_knots_are_thinned_to_those_that_span_the_range():
    curve = make_curve([(float(size), float(size)) for size in range(1, 101)])
    assert curve.at(np.array([1.0, 100.0])) == pytest.approx([1.0, 100.0])


def rows(*cells):
    lines = "".join(f"{parameter},{scope},{value},,test,\n" for parameter, scope, value in cells)
    return parse_rows("parameter,scope,value,unit,source,reason\n" + lines, "params.csv")


BENT = default_params().with_rows(
    rows(
        ("layer_time_factor", "H100-80GB/bf16@1", 1.5),
        ("layer_time_factor", "H100-80GB/bf16@1024", 1.0),
        ("link_time_factor", "H100-80GB/nvlink/2@8192", 2.0),
        ("link_time_factor", "H100-80GB/nvlink/2@8388608", 1.0),
    )
)


def step_s(params, *, tokens, gpu=H100, **config):
    model = load_model(LLAMA)
    steps = roofline.step_model(model, gpu, EngineConfig(**config), params)
    zero = np.zeros(1)
    return steps.step_s(sequences=zero, prefill=np.array([tokens]), decode_s=zero, attention_s=zero)[0]


def test_a_curve_lengthens_the_layers_of_its_own_gpu_and_format_alone():
    plain = default_params()
    model = load_model(LLAMA)
    steps = roofline.step_model(model, H100, EngineConfig(), plain)
    for tokens, factor in ((1.0, 1.5), (32.0, 1.25), (1024.0, 1.0), (8192.0, 1.0)):
        layers = np.hypot(tokens * steps.linear_s_per_token, steps.dense_read_s)
        longer = step_s(BENT, tokens=tokens) - step_s(plain, tokens=tokens)
        assert longer == pytest.approx((factor - 1.0) * layers, rel=1e-6, abs=1e-12)
    assert step_s(BENT, tokens=1.0, precision="fp8") == step_s(plain, tokens=1.0, precision="fp8")
    a100 = load_gpus().get("A100-80GB")
    assert step_s(BENT, tokens=1.0, gpu=a100) == step_s(plain, tokens=1.0, gpu=a100)


def test_a_curve_of_the_link_goes_by_bytes_and_number_of_gpus():
    plain = default_params()
    model = load_model(LLAMA)
    links_alone = replace(
        BENT, curves={key: value for key, value in BENT.curves.items() if key[0] != "layer_time_factor"}
    )
    steps = roofline.step_model(model, H100, EngineConfig(tensor_parallel=2), plain)
    longer = step_s(links_alone, tokens=1.0, tensor_parallel=2) - step_s(plain, tokens=1.0, tensor_parallel=2)
    assert longer == pytest.approx(steps.communication_s_per_token, rel=1e-6)  # 8192 bytes: a factor of 2
    assert step_s(links_alone, tokens=1.0, tensor_parallel=4) == step_s(plain, tokens=1.0, tensor_parallel=4)


def test_replays_take_the_curves_too():
    model = load_model(LLAMA)
    for ranks in (1, 2):
        config = EngineConfig(tensor_parallel=ranks)
        table = engine_table([EngineKind(model, H100, config, BENT)])
        for tokens in (1.0, 7.0, 300.0, 9000.0):
            found = step_seconds(table[0], 0.0, tokens, 0.0, 0.0, 0)
            assert found == pytest.approx(step_s(BENT, tokens=tokens, tensor_parallel=ranks), rel=1e-9)


def test_estimates_of_single_points_take_them_too():
    row = {"model": LLAMA, "gpu": "H100", "input_tokens": "128", "output_tokens": "256", "load_kind": "static_batch"}
    for batch, least, most in (("1", 1.2, 1.5), ("2048", 0.99, 1.1)):
        plain, bent = (
            estimate_rows([{**row, "concurrency_or_rate": batch}], params)[0].estimate.output_tps
            for params in (default_params(), BENT)
        )
        assert least < plain / bent < most


@pytest.mark.parametrize("cells", [("H100-80GB", 1.0), ("H100-80GB/bf16@", 1.0), ("@64", 1.0), ("L4/bf16@64", 0.0)])
def test_rows_that_are_no_curve_are_refused(cells):
    with pytest.raises(InputError):
        rows(("layer_time_factor", *cells))


def layer_points(gpu, model):
    found = []
    for row in csv.DictReader((DATA / "vidur_layers.csv").read_text(encoding="utf-8").splitlines()):
        hidden, width, tokens = (float(row[column]) for column in ("n_embd", "n_ffn", "num_tokens"))
        cached = 2 * float(row["n_kv_head"]) * hidden / float(row["n_head"])
        weights = hidden * (2 * hidden + cached + 3 * width)
        if (row["gpu"], row["model"]) == (gpu, model):
            seconds = (float(row["products_ms"]) + float(row["elementwise_ms"])) / 1e3
            found.append(
                LayerPoint(
                    number_format="bf16", tokens=int(tokens), seconds=seconds, flops=2 * weights * tokens,
                    cold_bytes=2 * weights, n_calls=9.0, is_check=False,
                )
            )  # fmt: skip
    return sorted(found, key=lambda point: point.tokens)


def test_the_curve_is_nearer_to_layers_that_were_held_back_than_rates_alone():
    """Timings of A100 and H100 by Vidur; every fifth size is held back."""
    by_rates, by_curve = [], []
    cases = [
        (gpu, model) for gpu in ("A100-80GB", "H100-80GB") for model in ("CodeLlama-34B", "Llama-2-70B", "Llama-2-7B")
    ]
    for (gpu, model), first in product(cases, range(5)):
        points = layer_points(gpu, model)
        held, kept = points[first::5], [point for i, point in enumerate(points) if i % 5 != first]
        flops, rate = fit_layers({"bf16": kept}, [])
        rates = Rates(gemm_flops_per_s=flops, weight_bytes_per_s=rate)
        curve = make_curve(list(layer_factors(kept, flops["bf16"], rate).items()))
        for point in held:
            wanted = layers_s(point, rates)
            by_rates.append(abs(wanted / point.seconds - 1.0))
            by_curve.append(abs(wanted * curve.at(np.array([float(point.tokens)]))[0] / point.seconds - 1.0))
    assert len(by_curve) > 180
    assert np.median(by_curve) < 0.8 * np.median(by_rates)
    assert np.mean(by_curve) < np.mean(by_rates)


def test_timings_pass_through_the_file_to_the_step_model():
    points = layer_points("H100-80GB", "Llama-2-7B")
    flops, rate = fit_layers({"bf16": points}, [])
    factors = layer_factors(points, flops["bf16"], rate)
    rates = Rates(gemm_flops_per_s=flops, weight_bytes_per_s=rate, layer_factors={"bf16": factors})
    made = efficiency_rows(rates, H100, load_model(LLAMA), source="test", tensor_parallel=1)
    params = default_params().with_rows(parse_rows(rows_csv(made), "params.csv"))
    model = load_model("meta-llama/Llama-2-7b-hf")
    steps = roofline.step_model(model, H100, EngineConfig(), params)
    ends = [min(factors), max(factors)]
    for point in points:
        if point.tokens in ends:
            one_layer = np.hypot(point.tokens * steps.linear_s_per_token, steps.dense_read_s) / model.n_layers
            found = one_layer * steps.layer_curve.at(np.array([float(point.tokens)]))[0]
            assert found == pytest.approx(point.seconds, rel=0.03)


def test_the_curve_is_nearer_to_all_reduces_that_were_held_back_than_a_rate_alone():
    """Timings of a DGX H100 by Vidur over 2, 4 and 8 GPUs; every fifth size is held back."""
    by_rate, by_curve = [], []
    timed = [
        (
            Kernel(
                kind=KernelKind.ALL_REDUCE, role="all-reduce", tokens=int(row["size_bytes"]) // 2,
                batch=int(row["num_workers"]), width_in=1,
            ),
            float(row["time_ms"]) / 1e3,
        )
        for row in csv.DictReader((DATA / "vidur_all_reduces.csv").read_text(encoding="utf-8").splitlines())
    ]  # fmt: skip
    timed.sort(key=lambda pair: (pair[0].batch, pair[0].tokens))
    kept = [pair for i, pair in enumerate(timed) if i % 5 != 2]
    latency_s, rate = fit_allreduce(kept)
    curves = {n: make_curve(list(found.items())) for n, found in link_factors(kept, latency_s, rate).items()}
    for kernel, seconds in timed[2::5]:
        n = kernel.batch
        latency, on_links = latency_s * np.log2(n), 2 * (n - 1) / n * kernel.cold_bytes / rate
        by_rate.append(abs((latency + on_links) / seconds - 1.0))
        factor = curves[n].at(np.array([float(kernel.cold_bytes)]))[0]
        by_curve.append(abs((latency + on_links * factor) / seconds - 1.0))
    assert np.median(by_curve) < np.median(by_rate)
    assert np.mean(by_curve) < np.mean(by_rate)
