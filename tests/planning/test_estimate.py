"""`gpuplan profile estimate`: every load kind, every way in which a row can be odd, and measurements."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import REPO

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.hardware import EngineConfig
from planner.planning import calibration, recalibration
from planner.planning.estimate import estimate_rows
from planner.planning.estimate_points import LOAD_KINDS
from planner.planning.estimate_table import ESTIMATE_COLUMNS, OUT_COLUMNS, bounds_of, figures_of
from planner.profilers import capacity, points
from planner.profilers.adapters import Adapters, distinct
from planner.profilers.efficiency import default_params

PARAMS = default_params()
ROW = {
    "test_id": "a",
    "model": "Llama-3.1-8B",
    "gpu": "H100-80GB",
    "gpu_count": "1",
    "tp": "1",
    "pp": "1",
    "ep": "",
    "engine": "vllm",
    "engine_version": "0.11.0",
    "precision": "bf16",
    "input_tokens": "1000",
    "output_tokens": "200",
    "length_dist": "varied",
    "load_kind": "concurrency",
    "concurrency_or_rate": "16",
}
LOADS = {"offline_max": "inf", "static_batch": "16", "concurrency": "16", "request_rate": "2"}


def one(**changes):
    (answer,) = estimate_rows([{**ROW, **changes}], PARAMS)
    return answer


def measured_rows():
    with (REPO / "tests" / "data" / "measured_points.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("kind", LOAD_KINDS)
def test_every_load_kind_has_an_estimate_inside_its_interval(kind):
    answer = one(load_kind=kind, concurrency_or_rate=LOADS.get(kind, "max"))
    assert answer.status == "ok"
    figures = figures_of(answer, PARAMS)
    assert set(figures) == set(OUT_COLUMNS) - {"status", "note"}
    told = [column for column in ESTIMATE_COLUMNS if figures[column] is not None]
    assert {"throughput_output_tok_s", "throughput_req_s", "power_w_per_gpu", "energy_j_per_output_token"} <= set(told)
    assert ("ttft_p99_ms" in told) == (kind != "offline_max")
    for column in told:
        assert 0 < figures[f"{column}_lo"] <= figures[column] <= figures[f"{column}_hi"]
    assert figures["throughput_output_tok_s"] == pytest.approx(200 * figures["throughput_req_s"])
    energy = figures["power_w_per_gpu"] / figures["throughput_output_tok_s"]
    assert figures["energy_j_per_output_token"] == pytest.approx(energy)
    assert figures["power_w_per_gpu"] <= load_gpus().get("H100-80GB").tdp_w


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"gpu": "H1000"}, "unknown_gpu", "H1000"),
        ({"gpu": ""}, "unknown_gpu", "no GPU"),
        ({"model": "NoSuchModel-9B"}, "unknown_model", "NoSuchModel-9B"),
        ({"model": ""}, "unknown_model", "no model"),
        ({"gpu": "A10G", "model": "Llama-3.1-70B"}, "does_not_fit", "do not fit 1 x A10G"),
        ({"precision": "fp7"}, "bad_value", "fp7"),
        ({"input_tokens": "many"}, "bad_value", "many"),
        ({"input_tokens": "-1"}, "bad_value", "-1"),
        ({"load_kind": "burst"}, "bad_value", "burst"),
        ({"concurrency_or_rate": "0"}, "bad_value", "0"),
        ({"load_kind": "poisson_max_under_slo", "slo": "fast"}, "bad_value", "fast"),
        ({"num_adapters": "-3"}, "bad_value", "num_adapters"),
        ({"num_adapters": "1e9"}, "bad_value", "1e9"),
        ({"gpu_count": "inf"}, "bad_value", "inf"),
        ({"tp": "1.5"}, "bad_value", "tp 1.5"),
        ({"tp": "0"}, "bad_value", "tp 0"),
    ],
)
def test_a_row_that_cannot_be_estimated_says_why_and_stops_no_other(changes, status, words):
    first, second = estimate_rows([{**ROW, **changes}, ROW], PARAMS)
    assert (first.estimate, first.status) == (None, status)
    assert words in first.note
    assert all(value is None for value in figures_of(first, PARAMS).values())
    assert second.status == "ok"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load_kind": ""}, "load_kind not told: concurrency assumed"),
        ({"load_kind": "", "concurrency_or_rate": ""}, "offline_max assumed"),
        ({"load_kind": "request_rate", "concurrency_or_rate": "inf"}, "the largest throughput"),
        ({"precision": ""}, "precision not told"),
        ({"precision": "", "model": "nvidia/Llama-3.1-70B-Instruct-FP8", "tp": "4"}, "fp8 as the model's name says"),
        ({"engine": ""}, "engine not told: vllm assumed"),
        ({"engine": "own-engine"}, "nothing was fitted for own-engine"),
        ({"engine_version": "", "load_kind": "static_batch"}, "engine version not told"),
        ({"tp": "", "gpu_count": "8"}, "tp not told"),
        ({"input_tokens": "", "output_tokens": "", "length_dist": "ShareGPT"}, "lengths assumed"),
        ({"length_dist": "uniform 0.6-1.0"}, "lengths uniform in 0.6 to 1"),
        ({"model": "meta_llama/Meta-Llama-3.1-8B-Instruct-FP8-dynamic"}, "read as meta-llama/Llama-3.1-8B"),
        ({"model": "DeepSeek-R1", "gpu": "H200", "tp": "8", "ep": "8", "precision": "fp8"}, "data-parallel attention"),
    ],
)
def test_what_is_not_told_is_assumed_in_words(changes, words):
    answer = one(**changes)
    assert answer.status == "ok"
    assert words in answer.note


@pytest.mark.parametrize("gpu", [spec.name for spec in load_gpus().specs])
def test_every_gpu_of_the_catalog_runs_a_small_model(gpu):
    answer = one(model="TinyLlama-1.1B-Chat-v1.0", gpu=gpu, precision="fp16")
    assert answer.status in {"ok", "does_not_fit"}
    assert (answer.status == "ok") == bool(load_gpus().get(gpu).peak_flops.get("bf16"))


def test_uniform_lengths_are_shorter_in_the_mean():
    nominal, uniform = one(), one(length_dist="uniform 0.8-1.0")
    assert uniform.estimate.question.input_tokens == pytest.approx(900)
    assert uniform.estimate.rate_rps > nominal.estimate.rate_rps


def test_an_overloaded_replica_serves_what_it_can_and_tells_no_latency():
    answer = one(load_kind="request_rate", concurrency_or_rate="1000")
    most = one(load_kind="offline_max")
    assert "overloaded" in answer.note
    assert answer.estimate.rate_rps == pytest.approx(most.estimate.rate_rps, rel=1e-3)
    assert answer.estimate.ttft_s["mean"] is None


def test_many_points_at_once_equal_each_alone():
    rows = [{**ROW, "load_kind": kind, "concurrency_or_rate": load} for kind, load in LOADS.items()]
    rows += [{**row, "gpu": "L40S", "precision": "fp8", "model": "Qwen3-30B-A3B"} for row in rows]
    together = estimate_rows(rows, PARAMS)
    for row, answer in zip(rows, together, strict=True):
        (alone,) = estimate_rows([row], PARAMS)
        assert answer.estimate.rate_rps == pytest.approx(alone.estimate.rate_rps, rel=1e-9)


def test_the_saturation_rate_is_that_of_plans():
    config = EngineConfig(max_num_seqs=2048)
    found = capacity.estimate_buckets(
        load_model("Llama-3.1-8B"),
        load_gpus().get("H100-80GB"),
        config,
        input_tokens=np.array([1000.0]),
        output_tokens=np.array([200.0]),
        slos=(),
        params=PARAMS,
    )
    assert one(load_kind="offline_max").estimate.rate_rps == pytest.approx(found.rate_rps[0], rel=2e-3)


def test_a_static_batch_that_fits_is_that_of_the_simple_model():
    config = EngineConfig(max_num_seqs=2048)
    model, gpu = load_model("Llama-3.1-8B"), load_gpus().get("H100-80GB")
    simple = points.static_batch(model, gpu, config, sizes=(1000, 200), batch=16, params=PARAMS)
    found = one(load_kind="static_batch").estimate
    request_s = PARAMS.value("request_overhead_s", "vllm")
    assert 16 / found.rate_rps == pytest.approx(16 / simple.rate_rps + request_s, rel=1e-6)
    assert found.tpot_s["mean"] == pytest.approx(simple.tpot_s, rel=1e-9)


def test_a_batch_beyond_the_cache_runs_in_rounds():
    fitting, beyond = (one(gpu="A10G", load_kind="static_batch", concurrency_or_rate=n) for n in ("8", "800"))
    assert beyond.estimate.tpot_s["mean"] < 5 * fitting.estimate.tpot_s["mean"]
    assert beyond.estimate.output_tps < 5 * fitting.estimate.output_tps


@settings(max_examples=30, deadline=None)
@given(
    gpu=st.sampled_from(["A100-80GB", "L40S", "MI300X", "B200-180GB", "Gaudi2"]),
    low=st.integers(1, 100),
    factor=st.floats(1.05, 8),
    prompt=st.integers(16, 8000),
    output=st.integers(2, 2000),
)
def test_more_clients_never_lower_throughput_or_speed_up_tokens(gpu, low, factor, prompt, output):
    sizes = {"gpu": gpu, "input_tokens": str(prompt), "output_tokens": str(output)}
    rows = [{**ROW, **sizes, "concurrency_or_rate": f"{n:.6g}"} for n in (low, low * factor)]
    few, many = (answer.estimate for answer in estimate_rows(rows, PARAMS))
    assert many.rate_rps >= few.rate_rps * (1 - 1e-6)
    assert many.tpot_s["mean"] >= few.tpot_s["mean"] * (1 - 1e-6)


@settings(max_examples=15, deadline=None)
@given(bound_ms=st.integers(20, 400), factor=st.floats(1.1, 4))
def test_looser_objectives_never_lower_the_rate(bound_ms, factor):
    rows = [
        {**ROW, "load_kind": "poisson_max_under_slo", "slo": f"tpot p99 <= {bound:.6g}ms; ttft p99 <= 2s"}
        for bound in (bound_ms, bound_ms * factor)
    ]
    tight, loose = (answer.estimate.rate_rps for answer in estimate_rows(rows, PARAMS))
    assert loose >= tight * (1 - 1e-6)


def test_an_objective_on_the_mean_allows_more_than_one_on_the_p99():
    rows = [
        {**ROW, "load_kind": "poisson_max_under_slo", "slo": f"tpot {statistic} <= 15ms"}
        for statistic in ("p99", "p50", "mean")
    ]
    late, middle, mean = (answer.estimate.rate_rps for answer in estimate_rows(rows, PARAMS))
    assert late < middle
    assert late < mean


def test_replicas_side_by_side_multiply_the_rate():
    alone, eight = (one(load_kind="offline_max", gpu_count=n).estimate for n in ("1", "8"))
    assert eight.rate_rps == pytest.approx(8 * alone.rate_rps)
    assert eight.power_w == pytest.approx(alone.power_w)


def test_older_engines_are_slower():
    oldest, old, today = (one(engine_version=version).estimate.rate_rps for version in ("0.2.7", "0.5.4", "0.11.0"))
    assert max(oldest, old) < today


ADAPTERS = {
    "model": "Llama-2-7B",
    "gpu": "A10G",
    "engine": "s-lora",
    "precision": "fp16",
    "load_kind": "request_rate",
    "concurrency_or_rate": "50",
    "input_tokens": "250",
    "output_tokens": "250",
    "zipf_alpha": "1",
}


def test_more_adapters_and_larger_ones_serve_less():
    few, many = (one(**ADAPTERS, adapter_rank="16", num_adapters=n).estimate.rate_rps for n in ("2", "200"))
    large = one(**ADAPTERS, adapter_rank="64", num_adapters="200").estimate.rate_rps
    bare = one(**ADAPTERS).estimate.rate_rps
    assert bare > few > many > large > 0.3 * bare


@pytest.mark.parametrize(("engine", "like"), [("s-lora", "30"), ("sglang", "30"), ("vllm", "64")])
def test_adapters_of_several_ranks_are_computed_as_the_engine_does_it(engine, like):
    """30 is the mean of the four; vLLM pads all to the largest."""
    asked = ADAPTERS | {"engine": engine, "engine_version": "0.11", "num_adapters": "200"}
    mixed, alike = (one(**asked, adapter_rank=rank).estimate.rate_rps for rank in ("64/32/16/8", like))
    assert mixed == alike
    assert one(**asked, adapter_rank="8").estimate.rate_rps > mixed


def test_merged_copies_stop_where_memory_ends():
    packed = ADAPTERS | {"engine": "vllm-packed", "adapter_rank": "16", "gpu": "A100-80GB"}
    assert one(**packed, num_adapters="2").status == "ok"
    assert one(**packed, num_adapters="200").status == "does_not_fit"


def test_adapter_arithmetic():
    alike = Adapters(count=100, rank=8, zipf_alpha=0, is_shared=True)
    assert distinct(alike, 1) == pytest.approx(1)
    assert distinct(alike, 1e9) == pytest.approx(100)
    skewed = Adapters(count=100, rank=8, zipf_alpha=1, is_shared=True)
    assert distinct(skewed, 20) < distinct(alike, 20)


def test_offloading_fits_more_and_costs_time():
    large = {"model": "Llama-3.1-70B", "gpu": "A100-80GB", "precision": "fp16"}
    assert one(**large).status == "does_not_fit"
    half, all_of_it = (one(**large, offload_fraction=part, load_kind="offline_max") for part in ("0.6", "1"))
    assert half.status == all_of_it.status == "ok"
    assert half.estimate.tpot_s["mean"] < all_of_it.estimate.tpot_s["mean"]
    small = {"load_kind": "static_batch", "concurrency_or_rate": "1"}
    streamed = one(**small, offload_fraction="1", offload_gb_s="16").estimate
    assert streamed.tpot_s["mean"] == pytest.approx(16e9 / 16e9, rel=0.05)
    assert one(**small, offload_fraction="2").status == "bad_value"


def test_equal_requests_on_lmdeploy_stay_in_step():
    """Measured with 16 clients and prompts of 128 tokens: 0.129 s to the first token, 0.130 s with long answers."""
    equal = {"gpu": "A100-80GB", "model": "Llama-2-7B", "engine": "lmdeploy", "engine_version": "0.2.0"}
    equal |= {"input_tokens": "128", "length_dist": "fixed"}
    loops = [one(output_tokens=output, **equal).estimate for output in ("128", "2048")]
    batches = [one(output_tokens=output, load_kind="static_batch", **equal).estimate for output in ("128", "2048")]
    for loop, batch in zip(loops, batches, strict=True):
        assert loop.ttft_s["mean"] == pytest.approx(batch.ttft_s["mean"])
        assert loop.rate_rps == pytest.approx(batch.rate_rps)
        assert loop.ttft_s["mean"] == pytest.approx(0.13, rel=0.15)
    varied = one(output_tokens="128", **{**equal, "length_dist": "ShareGPT"}).estimate
    assert varied.ttft_s["mean"] < loops[0].ttft_s["mean"]


def test_lmdeploy_starts_more_than_its_cache_holds_to_the_end():
    """Measured with 64 clients and answers of 2048 tokens: 0.535 s to the first token, 39 s with prompts of 2048."""
    equal = {"gpu": "A100-80GB", "model": "Llama-2-7B", "engine": "lmdeploy", "engine_version": "0.2.0"}
    equal |= {"length_dist": "fixed", "output_tokens": "2048", "concurrency_or_rate": "64"}
    short, long = (one(input_tokens=tokens, **equal).estimate for tokens in ("128", "2048"))
    assert short.ttft_s["mean"] == pytest.approx(0.535, rel=0.15)
    assert 15 < long.ttft_s["mean"] < 60
    assert long.rate_rps * 2048 == pytest.approx(756, rel=0.1)
    whole = replace(PARAMS, table={**PARAMS.table, ("start_reserve_fraction", "lmdeploy"): 1.0})
    for tokens, started in (("128", short), ("2048", long)):
        (reserving,) = (answer.estimate for answer in estimate_rows([{**ROW, **equal, "input_tokens": tokens}], whole))
        assert reserving.rate_rps == pytest.approx(started.rate_rps, rel=0.01)
        under_way = reserving.rate_rps * (reserving.ttft_s["mean"] + 2047 * reserving.tpot_s["mean"])
        assert under_way == pytest.approx(64, rel=1e-6)  # Little's law: nobody is set aside
        assert reserving.ttft_s["mean"] > 2 * started.ttft_s["mean"]


def test_sparse_weights_save_bytes_everywhere_and_arithmetic_on_sparse_tensor_cores():
    few, many = {"load_kind": "static_batch", "concurrency_or_rate": "1"}, {"load_kind": "offline_max"}
    for gpu, gain in (("A100-80GB", 1.38), ("T4", 1.0)):
        size = {"gpu": gpu, "model": "Llama-3.2-1B", "input_tokens": "4000", "output_tokens": "2"}
        dense, sparse = (one(precision=name, **size, **many) for name in ("int8", "int8-2:4"))
        assert 1.0 <= sparse.estimate.rate_rps / dense.estimate.rate_rps <= gain + 0.02
        assert (sparse.estimate.rate_rps > 1.05 * dense.estimate.rate_rps) == (gain > 1.0)
        size["output_tokens"] = "200"
        dense, sparse = (one(precision=name, **size, **few) for name in ("int8", "int8-2:4"))
        assert sparse.estimate.tpot_s["mean"] < 0.95 * dense.estimate.tpot_s["mean"]
        assert "must be measured" in sparse.note
        assert ("saves bytes and no arithmetic" in sparse.note) == (gain == 1.0)


def test_drafted_tokens_shorten_small_batches():
    small = {"load_kind": "static_batch", "concurrency_or_rate": "1"}
    plain = one(**small).estimate
    drafted = one(**small, draft_tokens="3", draft_acceptance="0.7").estimate
    useless = one(**small, draft_tokens="3", draft_acceptance="0").estimate
    assert 2 < plain.tpot_s["mean"] / drafted.tpot_s["mean"] <= (1 - 0.7**4) / 0.3
    assert useless.rate_rps < plain.rate_rps < drafted.rate_rps
    assert one(**small, draft_tokens="3").status == "bad_value"


def test_measurements_are_met_and_covered():
    rows = measured_rows()
    measurements, left_out = calibration.read_measurements(rows, PARAMS)
    assert not left_out
    found = calibration.estimates([each.question for each in measurements], PARAMS)
    ratios = found / np.array([each.values for each in measurements])
    kinds = np.array([each.question.load_kind for each in measurements])
    errors = np.abs(ratios - 1)
    assert np.nanmedian(errors[kinds == "offline_max", 0]) < 0.15
    assert np.nanmedian(errors[kinds == "static_batch", 0]) < 0.15
    assert np.nanmedian(errors[kinds == "concurrency", 2]) < 0.15
    assert np.nanmedian(errors[kinds == "static_batch", 1]) < 0.20
    answers = estimate_rows(rows, PARAMS)
    covered = []
    for row, answer in zip(rows, answers, strict=True):
        for column in ("throughput_output_tok_s", "tpot_mean_ms", "power_w_per_gpu"):
            value = figures_of(answer, PARAMS)[column]
            if row[column] and value is not None:
                band = bounds_of(column, answer.estimate, PARAMS)
                covered.append(band.low <= float(row[column]) / value <= band.high)
    assert 0.7 < np.mean(covered) < 1


@pytest.mark.parametrize(("gpu", "era"), [("A100-40GB", ""), ("H100-80GB", "")])
def test_a_gpu_left_out_of_the_fit_is_met(gpu, era):
    rows = [row for row in measured_rows() if row["engine"] == "vllm" and row["engine_version"] == era]
    measurements, _ = calibration.read_measurements(rows, PARAMS)
    kept = [each for each in measurements if each.question.gpu.name != gpu]
    others = [each for each in measurements if each.question.gpu.name == gpu]
    recipe = [(name, "vllm@unstated") for name in calibration.ENGINE_RECIPE]
    bare = {key: value for key, value in PARAMS.table.items() if key[1] != "vllm@unstated"}
    fitted = calibration.fit(kept, recipe, type(PARAMS)(table=bare, arrival_scv=1.0, service_scv=1.0))
    assert fitted.after < fitted.before
    estimates = calibration.estimates([each.question for each in others], fitted.params)
    errors = np.abs(estimates[:, 0] / np.array([each.throughput for each in others]) - 1)
    assert np.median(errors) < 0.20


def test_three_points_calibrate_a_slower_gpu():
    slower = 0.6
    sizes = [("128", "128"), ("1024", "512"), ("2048", "128"), ("512", "1024"), ("4096", "256")]
    rows = [{**ROW, "load_kind": "offline_max", "input_tokens": a, "output_tokens": b} for a, b in sizes]
    truth = [answer.estimate.output_tps * slower for answer in estimate_rows(rows, PARAMS)]
    told = [row | {"throughput_output_tok_s": str(value)} for row, value in zip(rows, truth, strict=True)]
    measurements, _ = calibration.read_measurements(told[:3], PARAMS)
    fitted = recalibration.fit_own(measurements, PARAMS)
    again = estimate_rows(rows[3:], fitted.params)
    for answer, value in zip(again, truth[3:], strict=True):
        assert answer.estimate.output_tps == pytest.approx(value, rel=0.2)
    others = [scope for _, scope in fitted.values]
    assert set(others) == {"h100-80gb", "vllm/hopper"}


def test_the_command_writes_the_table_and_passes_columns_through(gpuplan, tmp_path):
    points_file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    with points_file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [*ROW, "mine"])
        writer.writeheader()
        writer.writerows([ROW | {"mine": "kept"}, ROW | {"gpu": "H1000", "mine": "too"}])
    ran = gpuplan("profile", "estimate", "--points", str(points_file), "-o", str(out))
    assert ran.code == 0
    assert "1 of 2 rows have no estimate" in ran.err
    with out.open(encoding="utf-8", newline="") as stream:
        first, second = csv.DictReader(stream)
    assert list(first) == [*ROW, "mine", *OUT_COLUMNS]
    assert (first["mine"], first["status"], second["mine"], second["status"]) == ("kept", "ok", "too", "unknown_gpu")
    assert second["throughput_req_s"] == ""
    assert gpuplan("profile", "estimate", "--points", str(points_file), "-o", str(out)).code == 2
    assert gpuplan("profile", "estimate", "--points", str(points_file), "-o", str(out), "--force").code == 0


POINT = ("profile", "estimate", "--model", "llama-3.1-8b", "--gpu", "H100", "--input", "1000", "--output", "200")


def test_one_point_as_json(gpuplan):
    ran = gpuplan(*POINT, "--tp", "2", "--concurrency", "32", "--json")
    document = json.loads(ran.out)
    assert (ran.code, document["status"]) == (0, "ok")
    assert document["tpot_mean_ms_lo"] < document["tpot_mean_ms"] < document["tpot_mean_ms_hi"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--gpu", "H1000"), 6),
        (("--model", "NoSuchModel-9B"), 6),
        (("--model", "Llama-3.1-405B"), 2),
        (("--concurrency", "4", "--offline"), 2),
        (("--points", "none.csv"), 2),
    ],
)
def test_one_wrong_point_ends_with_its_exit_code(gpuplan, arguments, code):
    ran = gpuplan(*POINT, *arguments, "--json")
    assert (ran.code, ran.out) == (code, "")


def test_a_table_without_its_columns_is_refused(gpuplan, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("model,gpu\nLlama-3.1-8B,H100\n", encoding="utf-8")
    ran = gpuplan("profile", "estimate", "--points", str(path))
    assert ran.code == 2
    assert "input_tokens" in ran.err


def test_calibrate_writes_parameters_that_estimate_reads(gpuplan, tmp_path):
    measured, params = tmp_path / "measured.csv", tmp_path / "params.csv"
    with measured.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [*ROW, "throughput_output_tok_s"])
        writer.writeheader()
        writer.writerow(ROW | {"throughput_output_tok_s": "900"})
        writer.writerow(ROW | {"throughput_output_tok_s": ""})
    ran = gpuplan("profile", "calibrate", "--with", str(measured), "-o", str(params))
    assert ran.code == 0
    assert "row 2 left out: nothing was measured" in ran.err
    before, after = (
        json.loads(gpuplan(*POINT, "--concurrency", "16", "--engine-version", "0.11.0", "--json", *more).out)
        for more in ((), ("--params", str(params)))
    )
    assert after["throughput_output_tok_s"] < before["throughput_output_tok_s"]
    again = gpuplan("profile", "calibrate", "--with", str(measured), "--params", str(params))
    assert again.code == 2
    assert "a calibration already" in again.err
    kernels = tmp_path / "kernels.csv"
    header = "parameter,scope,value,unit,source,reason\n"
    kernels.write_text(header + "link_fraction,H100-80GB/nvlink,0.5,,ours,\nbandwidth_fraction,H100-80GB,0.5,,ours,\n")
    built = gpuplan("profile", "calibrate", "--with", str(measured), "--params", str(kernels), "--json").json
    rows = {(row["parameter"], row["scope"].lower()): row for row in built["parameters"]}
    assert rows["link_fraction", "h100-80gb/nvlink"]["value"] == 0.5  # kept: nothing was fitted to it
    assert "fit to measured.csv" in rows["bandwidth_fraction", "h100-80gb"]["source"]
    assert len(rows) == len(built["parameters"])
    params.write_text("parameter,scope,value\nno_such,default,1\n", encoding="utf-8")
    assert gpuplan(*POINT, "--offline", "--params", str(params)).code == 2
    params.write_text("parameter,scope,value\ngemm_factor,default,-1\n", encoding="utf-8")
    assert gpuplan(*POINT, "--offline", "--params", str(params)).code == 2


def figure(column, **changes):
    answer = one(**changes)
    assert answer.status == "ok", answer.note
    return figures_of(answer, PARAMS)[column]


def test_no_figure_is_infinite_and_json_is_json(gpuplan, tmp_path):
    table = tmp_path / "points.csv"
    table.write_text(
        "model,gpu,input_tokens,output_tokens,load_kind,slo\n"
        "Llama-3.1-8B,H100-80GB,1000,200,poisson_max_under_slo,tpot p99 <= 1s\n"
        "Llama-3.1-8B,H100-80GB,1000,200,poisson_max_under_slo,ttft p99 <= 1ms\n"
        "Llama-3.1-8B,H100-80GB,1000,200,poisson_max_under_slo,;;\n"
    )
    ran = gpuplan("profile", "estimate", "--points", table, "--json")
    assert ran.code == 0, ran.err
    free, out_of_reach, empty = ran.json["points"]
    assert (free["status"], free["ttft_mean_ms"]) == ("ok", None)
    assert "no objective binds" in free["note"]
    assert (out_of_reach["status"], out_of_reach["throughput_req_s"]) == ("out_of_reach", None)
    assert "a lone request has TTFT" in out_of_reach["note"]
    assert empty["status"] == "bad_value"


def test_what_plans_refuse_is_refused_here(gpuplan):
    answer = one(model="Llama-3.1-8B", gpu="RTX-4090", precision="bf16", input_tokens="60000", output_tokens="200")
    assert (answer.status, answer.note.split(";")[-1].strip()) == (
        "does_not_fit",
        "the KV cache of one request of 60,200 tokens does not fit beside the weights",
    )
    assert "more than the model's context" in one(model="Llama-2-7B", input_tokens="20000").note


@pytest.mark.parametrize("kind", ["concurrency", "static_batch"])
def test_clients_fewer_than_replicas_leave_replicas_idle(kind):
    alone = figure("throughput_req_s", load_kind=kind, concurrency_or_rate="1")
    for n_clients in (1, 2, 4):
        many = figure("throughput_req_s", load_kind=kind, concurrency_or_rate=str(n_clients), gpu_count="8")
        assert many == pytest.approx(n_clients * alone)
    assert one(load_kind=kind, concurrency_or_rate="0.5").status == "bad_value"


def test_a_lone_prompt_passes_pipeline_stages_one_after_the_other():
    lone = {"load_kind": "static_batch", "concurrency_or_rate": "1", "input_tokens": "8000", "output_tokens": "2"}
    whole = figure("ttft_mean_ms", **lone)
    for stages in (2, 4, 8):
        piped = figure("ttft_mean_ms", **lone, pp=str(stages), gpu_count=str(stages))
        assert whole * 0.95 < piped < whole * 1.3  # hand-overs and overheads come on top
    batch = lone | {"concurrency_or_rate": "8"}
    assert figure("ttft_mean_ms", **batch, pp="4", gpu_count="4") < figure("ttft_mean_ms", **batch) / 2


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"gpu_count": "4", "tp": "8"}, "ok", "no multiple of tp 8 x pp 1: 1 such replica"),
        ({"gpu_count": "3", "tp": "2"}, "ok", "no multiple of tp 2 x pp 1: 1 such replica"),
        ({"ep": "2.5"}, "bad_value", "whole numbers"),
        ({"model": "instruct"}, "unknown_model", "no model"),
        ({"model": "meta-llama"}, "unknown_model", "no model"),
        ({"model": "DeepSeek-R1", "tp": "8", "gpu_count": "8", "num_adapters": "5"}, "bad_value", "num_adapters"),
        ({"input_tokens": "1e7"}, "bad_value", "beyond 1,000,000"),
    ],
)
def test_what_contradicts_itself_or_names_nothing_is_told(changes, status, words):
    answer = one(**changes)
    assert answer.status == status
    assert words in answer.note


def test_power_stays_within_what_the_board_draws():
    assert figure("power_w_per_gpu_hi", load_kind="offline_max", concurrency_or_rate="") <= 700.0


@pytest.mark.parametrize(
    "novel",
    [
        {"gpu": "Gaudi3"},
        {"engine": "my-own-engine"},
        {"engine_version": "0.7.0"},
        {"model": "mistralai/Mixtral-8x7B-v0.1", "tp": "2", "gpu_count": "2"},
        {"tp": "1", "pp": "2", "gpu_count": "2"},
    ],
    ids=["GPU", "engine", "release", "kind of model", "parallelism"],
)
def test_intervals_grow_far_from_the_data(novel):
    def width(**changes):
        found = figures_of(one(load_kind="offline_max", concurrency_or_rate="", **changes), PARAMS)
        return found["throughput_output_tok_s_hi"] / found["throughput_output_tok_s_lo"]

    assert width(**novel) > 1.1 * width()


def test_the_form_of_the_output_follows_its_name(gpuplan, tmp_path):
    table = tmp_path / "points.csv"
    table.write_text("model,gpu,input_tokens,output_tokens,load_kind\nLlama-3.1-8B,H100-80GB,1000,200,offline_max\n")
    assert gpuplan("profile", "estimate", "--points", table, "-o", tmp_path / "out.json").code == 0
    assert json.loads((tmp_path / "out.json").read_text())["kind"] == "Estimates"
    assert gpuplan("profile", "estimate", "--points", table, "-o", tmp_path / "out.html").code == 2
    ran = gpuplan("profile", "estimate", "--points", table, "--precision", "fp8")
    assert ran.code == 2
    assert "in its rows" in ran.err


def test_impossible_points_and_fits_that_explain_nothing_are_refused(gpuplan, tmp_path):
    head = "model,gpu,gpu_count,tp,pp,engine,precision,input_tokens,output_tokens,load_kind,concurrency_or_rate,"
    row = "Llama-3.1-8B,H100-80GB,1,1,1,vllm,bf16,1000,200,concurrency,1,"
    (tmp_path / "fast.csv").write_text(f"{head}throughput_output_tok_s,tpot_mean_ms\n{row}1000000,0.001\n")
    ran = gpuplan("profile", "calibrate", "--with", tmp_path / "fast.csv", "-o", tmp_path / "params.csv")
    assert ran.code == 2
    assert "read more bytes than the memory delivers" in ran.err
    assert not (tmp_path / "params.csv").exists()


@pytest.mark.parametrize("engine", ["vllm", "tensorrt-llm", "sglang", "lmdeploy"])
@pytest.mark.parametrize("length_dist", ["fixed", "varied"])
def test_few_clients_have_no_cliff(engine, length_dist):
    loop = {"engine": engine, "engine_version": "1.0", "load_kind": "concurrency", "length_dist": length_dist}
    clients = (1, 2, 3, 4, 6, 8, 12, 16)
    rates = [figure("throughput_req_s", **loop, concurrency_or_rate=str(n)) for n in clients]
    firsts = [figure("ttft_mean_ms", **loop, concurrency_or_rate=str(n)) for n in clients]
    assert rates == sorted(rates)
    assert firsts[1] < 8 * firsts[0]
