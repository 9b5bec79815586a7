"""The bundled measurements as data, their reader, the physical floor, and how they correct the estimate."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.hardware import EngineConfig
from planner.domain.provenance import ProvenanceKind
from planner.domain.slo import Metric, Slo
from planner.domain.workload import Bucket
from planner.errors import InputError, Where
from planner.files.bundled import bundled
from planner.files.slo import slo_text
from planner.profilers import floor, measured
from planner.profilers.efficiency import default_params
from planner.profilers.measured import MeasuredStore, load_measured, read_profile_file
from planner.profilers.options import profile_option
from planner.profilers.schema import MeasuredPoint, parse_points

GPUS = load_gpus()
LLAMA = load_model("Llama-3.1-8B")
H100 = GPUS.get("H100-80GB")
TRT_FP8 = EngineConfig(engine="tensorrt-llm", precision="fp8", kv_precision="fp8", max_num_seqs=2048)

HEADER = "model,gpu,gpu_count,tp,pp,engine,engine_version,precision,input_tokens,output_tokens,load_kind,"
HEADER += "throughput_req_s,ttft_mean_ms,tpot_mean_ms,date,source\n"


def csv_text(*rows):
    return HEADER + "".join(row + "\n" for row in rows)


GOOD = "Llama-3.1-8B,H100-80GB,1,1,1,vllm,0.11,bf16,1000,200,offline_max,30,,,2026-03,our lab"


def point(**changes):
    fields = {
        "model": LLAMA.name,
        "gpu": "H100-80GB",
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "engine": "vllm",
        "engine_version": "0.11",
        "precision": "bf16",
        "input_tokens": 1000.0,
        "output_tokens": 200.0,
        "load_kind": "offline_max",
        "load": None,
        "rate_rps": 30.0,
        "output_tokens_per_s": 6000.0,
        "ttft_s": {},
        "tpot_s": {},
        "as_of": date(2026, 3, 1),
        "source": "our lab",
        "where": Where(path="mine.csv", line=2),
    }
    return MeasuredPoint(**{**fields, **changes})


def bucket(prompt, output):
    return Bucket(row=0, column=0, rate_rps=1.0, input_tokens=prompt, output_tokens=output)


def profile(*sizes, config=TRT_FP8, slos=(), store=None, gpu=H100, model=LLAMA):
    return profile_option(
        model, gpu, config, [bucket(*size) for size in sizes], slos, store=load_measured() if store is None else store
    )


# --- the data --------------------------------------------------------------------------------------------------------


def test_bundled_points_name_known_models_and_gpus_and_their_source():
    points = load_measured().points
    assert len(points) == 423
    for one in points:
        assert load_model(one.model).name == one.model, one.where
        assert GPUS.get(one.gpu).name == one.gpu
        assert one.source
        assert one.as_of is not None
        assert date(2023, 6, 1) < one.as_of < date(2026, 11, 1)
        assert one.rate_rps or one.ttft_s


def test_known_published_figures_are_there():
    """TensorRT-LLM 0.17 performance overview: Llama-3.1-8B fp8, H100, 128x128: 28,836.8 tokens/s."""
    found = [
        one
        for one in load_measured().points
        if (one.model, one.gpu, one.engine_version, one.size) == (LLAMA.name, "H100-80GB", "0.17", "128x128")
    ]
    assert [one.output_tokens_per_s for one in found] == [28836.8]
    assert found[0].rate_rps == pytest.approx(28836.8 / 128, rel=1e-4)


def test_no_bundled_point_beats_physics():
    broken = {
        str(one.where): found
        for one in load_measured().points
        if (found := floor.violations(one, load_model(one.model), GPUS.get(one.gpu)))
    }
    assert broken == {}


def test_sources_page_names_every_bundled_file_and_licence():
    page = bundled("profiles", "SOURCES.md").read_text(encoding="utf-8")
    files = {one.where.path.rsplit("/", 1)[1] for one in load_measured().points}
    assert files
    for name in files:
        assert name in page
    assert "Apache-2.0" in page


def test_adapter_measurements_are_bundled():
    rows = bundled("profiles", "lora", "s-lora.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 445
    assert rows[0].startswith("source,source_ref,base_model,")
    assert all(row.endswith(",Apache-2.0") for row in rows[1:])


def test_every_efficiency_row_has_a_source_and_a_reason():
    lines = bundled("profiles", "efficiency.csv").read_text(encoding="utf-8").splitlines()
    for line in lines[1:]:
        cells = line.split(",")
        assert len(cells) == 6, line
        assert all(cells), line


# --- the reader ------------------------------------------------------------------------------------------------------


def test_reading_a_profile_file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(csv_text(GOOD), encoding="utf-8")
    (one,) = read_profile_file(path)
    assert (one.model, one.rate_rps, one.output_tokens_per_s) == ("Llama-3.1-8B", 30.0, 6000.0)
    assert one.as_of == date(2026, 3, 1)
    assert one.where == Where(path=str(path), line=2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD.replace(",1000,", ",many,"), "'many' is not a number in column input_tokens"),
        (GOOD.replace(",1000,", ",-5,"), "must not be negative"),
        (GOOD.replace(",1000,", ",,"), "input_tokens must be a positive number"),
        (GOOD.replace("offline_max", "flat out"), "'flat out' is not a load_kind"),
        (GOOD.replace(",1,1,1,", ",4,2,1,"), "gpu_count 4 is not tp 2 x pp 1"),
        (GOOD.replace(",1,1,1,", ",1,1.5,1,"), "tp must be a whole number"),
        (GOOD.replace("2026-03", "March"), "'March' is not a date"),
        (GOOD.rsplit(",", 1)[0], "does not have 16 columns"),
        (GOOD + ",extra", "does not have 16 columns"),
        (GOOD.replace(",30,", ",nan,"), "must not be negative"),
    ],
)
def test_broken_rows_are_refused_with_their_line(row, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as caught:
        parse_points(csv_text(GOOD, row), "mine.csv")
    assert str(caught.value.where) == "mine.csv:3"


def test_missing_and_unknown_columns_are_refused():
    with pytest.raises(InputError, match="no column tp, pp"):
        parse_points("model,gpu,gpu_count,engine,precision,input_tokens,output_tokens,load_kind\n", "mine.csv")
    with pytest.raises(InputError, match="not known: troughput"):
        parse_points(csv_text(GOOD).replace("throughput_req_s", "troughput", 1), "mine.csv")
    with pytest.raises(InputError, match="Cannot read the profile"):
        read_profile_file(bundled("profiles") / "no-such-file.csv")


def test_flagged_rows_are_left_out_and_unchecked_ones_kept():
    text = csv_text(GOOD).replace("source\n", "source,sanity\n").rstrip("\n")
    for sanity, n_rows in (("ok", 1), ("unchecked", 1), ("above compute peak", 0)):
        assert len(parse_points(f"{text},{sanity}\n", "mine.csv")) == n_rows


# --- the floor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        # 2 x 7.5e9 x 1199 FLOPs at 989 TFLOP/s: at most 54.6 requests/s
        ({"rate_rps": 60.0}, "FLOPs"),
        # 199 steps, batch 1: at most 3350 / (15 + 0.07) / 199 = 1.12 requests/s
        ({"rate_rps": 1.3, "load_kind": "concurrency", "load": 1.0}, "bytes"),
        # 2 x 7e9 x 1000 / 989e12 = 14 ms
        ({"ttft_s": {"mean": 0.0079}}, "TTFT mean"),
        # 14 GB at 3350 GB/s = 4.2 ms
        ({"tpot_s": {"median": 0.0035}}, "TPOT median"),
    ],
)
def test_profiles_faster_than_physics_are_refused(changes, bound):
    with pytest.raises(InputError, match=bound) as caught:
        floor.check_points([point(**changes)], LLAMA, H100)
    assert str(caught.value.where) == "mine.csv:2"


def test_possible_profiles_pass():
    floor.check_points([point(rate_rps=50.0), point(ttft_s={"mean": 0.016}, tpot_s={"median": 0.0046})], LLAMA, H100)
    lone = point(rate_rps=1.0, load_kind="concurrency", load=1.0)
    floor.check_points([lone], LLAMA, H100)


def test_low_precision_lowers_the_floor():
    fast = point(tpot_s={"mean": 0.003})
    assert floor.violations(fast, LLAMA, H100)
    assert not floor.violations(replace(fast, precision="fp8"), LLAMA, H100)
    assert not floor.violations(replace(fast, precision=""), LLAMA, H100)


def test_an_impossible_profile_stops_the_plan_that_would_use_it():
    store = MeasuredStore.empty().with_rows([point(rate_rps=500.0)])
    with pytest.raises(InputError, match="need more FLOPs"):
        profile((1000, 200), config=EngineConfig(), store=store)


def test_calibrated_rates_are_held_to_the_floor():
    """A lone client, whose steps are reads, beats an estimate with slow reads; the arithmetic cannot follow."""
    lone = point(rate_rps=1.1, load_kind="concurrency", load=1.0)
    store = MeasuredStore.empty().with_rows([lone])
    slow_reads = default_params().with_values(bandwidth_fraction=0.3)
    config = EngineConfig(max_num_seqs=2048)
    found = profile_option(LLAMA, H100, config, [bucket(1000, 200)], (), store=store, params=slow_reads)
    bounds = floor.rate_bounds_rps(LLAMA, H100, n_gpus=1, precision="bf16", input_tokens=1000, output_tokens=200)
    assert found.estimates.rate_rps[0] > min(bounds)
    assert found.throughput_rps[0] == min(bounds)
    assert found.provenance[0].kind is ProvenanceKind.CALIBRATED
    assert "that physics allows" in found.provenance[0].note
    assert "that physics allows" not in profile((700, 1300)).provenance[0].note


def test_adapter_measurements_are_not_used():
    assert (bundled("profiles") / measured.LORA_FOLDER).is_dir()
    assert not any(measured.LORA_FOLDER in str(one.where) for one in load_measured().points)


# --- look-up and correction ------------------------------------------------------------------------------------------


def test_lookup_takes_the_newest_version_unless_one_is_asked_for():
    store = load_measured()
    table = store.lookup([LLAMA.name], "H100-80GB", TRT_FP8)
    versions = {one.size: one.engine_version for one in table.points}
    assert set(versions.values()) == {"1.0"}
    older = store.lookup([LLAMA.name], "H100-80GB", replace(TRT_FP8, engine_version="0.17"))
    assert {one.engine_version for one in older.points} == {"0.17", "1.0"}
    assert {one.size for one in older.points if one.engine_version == "1.0"} == {"1000x2000"}


def test_lookup_keys():
    store = load_measured()
    fp16 = EngineConfig(engine="TRTLLM", precision="fp16")
    assert store.lookup(["llama-3.1-8b"], "A100-80GB", fp16) == store.lookup(
        [LLAMA.name], "A100-80GB", replace(fp16, engine="tensorrt-llm", precision="bf16")
    )
    assert store.lookup([LLAMA.name], "A100-80GB", replace(fp16, tensor_parallel=2)) is None
    assert store.lookup([LLAMA.name], "A100-80GB", replace(fp16, precision="fp8")) is None
    assert store.lookup([LLAMA.name], "A100-40GB", fp16) is None
    assert store.lookup([LLAMA.name], "A100-80GB", EngineConfig()) is None
    assert store.lookup(["anything"], "A100-80GB", fp16) is None


def test_measured_sizes_give_the_measured_rate():
    found = profile((128, 128), (2048, 2048))
    assert list(found.throughput_rps) == pytest.approx([221.188, 4.54346])
    for one in found.provenance:
        assert one.kind is ProvenanceKind.MEASURED
        assert one.source.startswith("profiles/llama-3.1-8b/tensorrt-llm-1.0.csv: ")
        assert one.as_of == date(2025, 8, 1)
    assert found.power_w == 700


def test_an_slo_or_a_smaller_batch_makes_it_calibrated():
    tight = Slo(metric=Metric.TPOT, percentile=95, bound_s=0.01)
    loose = Slo(metric=Metric.TPOT, percentile=95, bound_s=10.0)
    for config, slos in ((TRT_FP8, (tight,)), (replace(TRT_FP8, max_num_seqs=64), ())):
        found = profile((1000, 1000), config=config, slos=slos)
        assert found.provenance[0].kind is ProvenanceKind.CALIBRATED
        assert found.throughput_rps[0] < 15.22
        assert "measured / estimated" in found.provenance[0].note
    assert profile((1000, 1000), slos=(loose,)).provenance[0].kind is ProvenanceKind.MEASURED


def test_between_measured_sizes_it_interpolates_and_says_so():
    found = profile((700, 1300))
    assert found.provenance[0].kind is ProvenanceKind.CALIBRATED
    assert "interpolated" in found.provenance[0].note
    assert 8.0 < found.throughput_rps[0] < 15.3


def test_outside_measured_sizes_it_estimates_and_says_so():
    found = profile((32, 16), (50_000, 100))
    bare = profile((32, 16), (50_000, 100), store=MeasuredStore.empty())
    assert list(found.throughput_rps) == list(bare.throughput_rps)
    for one in found.provenance:
        assert one.kind is ProvenanceKind.ESTIMATED
        assert "outside the sizes measured with tensorrt-llm" in one.note


def test_another_engines_figures_are_not_used():
    config = EngineConfig(precision="fp8", kv_precision="fp8")
    found = profile((128, 128), config=config)
    bare = profile((128, 128), config=config, store=MeasuredStore.empty())
    assert found.throughput_rps[0] == bare.throughput_rps[0]
    assert found.provenance[0].kind is ProvenanceKind.ESTIMATED
    assert "tensorrt-llm are not used" in found.provenance[0].note


def test_a_users_profile_wins_over_the_estimate():
    mine = parse_points(csv_text(GOOD), "mine.csv")
    found = profile((1000, 200), config=EngineConfig(max_num_seqs=2048), store=load_measured().with_rows(mine))
    assert found.throughput_rps[0] == 30
    assert found.provenance[0].kind is ProvenanceKind.MEASURED
    assert found.provenance[0].source == "mine.csv: our lab"


def test_closed_loop_figures_calibrate_but_are_not_called_the_maximum():
    model, a100 = load_model("Llama-2-7B"), GPUS.get("A100-80GB")
    found = profile((128, 2048), config=EngineConfig(engine="lmdeploy"), model=model, gpu=a100)
    assert found.provenance[0].kind is ProvenanceKind.CALIBRATED


def test_nothing_that_cannot_run_raises():
    big, a10g = load_model("Llama-2-70B"), GPUS.get("A10G")
    found = profile((128, 128), (1000, 1000), config=EngineConfig(), model=big, gpu=a10g)
    assert list(found.throughput_rps) == [0, 0]
    assert all("do not fit" in text for text in found.limiting)
    assert len(found.provenance) == 2
    odd = profile((128, 128), config=EngineConfig(precision="int3"))
    assert odd.limiting == (
        "precision int3 is not known (known: bf16, fp16, fp8, int8, int4, nvfp4, mxfp4, int8-2:4, int4-2:4)",
    )
    assert profile(config=EngineConfig()).throughput_rps.shape == (0,)


def test_buckets_known_by_position_only_cannot_be_profiled():
    with pytest.raises(ValueError, match="without token counts"):
        profile((None, None))


TIGHT = (
    Slo(metric=Metric.TTFT, percentile=99, bound_s=0.4),
    Slo(metric=Metric.TPOT, percentile=95, bound_s=0.02),
)


def under(slos, rate_rps, **changes):
    text = "; ".join(map(slo_text, slos))
    return point(load_kind="poisson_max_under_slo", load=rate_rps, rate_rps=rate_rps, slo=text, **changes)


def vllm_profile(store, *sizes, slos=TIGHT):
    return profile(*sizes, config=EngineConfig(), slos=slos, store=MeasuredStore(points=tuple(store)))


def test_a_rate_measured_under_the_same_objectives_is_the_rate_of_the_plan():
    bare = vllm_profile((), (1000, 200)).throughput_rps[0]
    for factor in (0.6, 1.3):
        found = vllm_profile([under(TIGHT[::-1], bare * factor)], (1000, 200))
        assert found.throughput_rps[0] == bare * factor
        assert found.provenance[0].kind is ProvenanceKind.MEASURED


def test_a_rate_under_objectives_corrects_the_speed_so_that_the_estimate_gives_it():
    bare = vllm_profile((), (1000, 200), (1000, 400))
    loose = (Slo(metric=Metric.TPOT, percentile=95, bound_s=1.0),)
    found = vllm_profile([under(TIGHT, bare.throughput_rps[0] * 0.7)], (1000, 200), slos=loose)
    assert found.provenance[0].kind is ProvenanceKind.CALIBRATED
    assert found.estimates.rate_rps[0] < vllm_profile((), (1000, 200), slos=loose).throughput_rps[0]
    again = vllm_profile([under(TIGHT, bare.throughput_rps[0] * 0.7)], (1000, 200))
    assert again.estimates.rate_rps[0] == pytest.approx(bare.throughput_rps[0] * 0.7, rel=3e-3)
    speed = again.speed[0]
    assert 0.7 < speed < 1.0  # where an objective binds, the rate falls by more than the speed
    assert found.speed[0] == speed


def test_a_rate_under_these_objectives_beats_other_rows_of_its_size_and_open_loop_rows_without_are_no_maxima():
    mine, other = under(TIGHT, 11.0), under(TIGHT[:1], 12.0)
    rows = [other, point(rate_rps=30.0), mine, point(load_kind="request_rate", load=5.0, rate_rps=5.0)]
    names = [LLAMA.name]
    assert MeasuredStore(points=tuple(rows)).lookup(names, "H100-80GB", EngineConfig(), slos=TIGHT).points == (mine,)
    rest = MeasuredStore(points=tuple(row for row in rows if row is not mine))
    assert rest.lookup(names, "H100-80GB", EngineConfig(), slos=TIGHT).points == (other,)
    assert rest.lookup(names, "H100-80GB", EngineConfig()).points == (rows[1],)
    unsaid = MeasuredStore(points=(point(load_kind="poisson_max_under_slo"), rows[3]))
    assert unsaid.lookup(names, "H100-80GB", EngineConfig(), slos=TIGHT) is None


def test_a_rate_far_from_the_estimate_is_not_used_and_objectives_that_cannot_be_read_are_told():
    loose = (Slo(metric=Metric.E2E, percentile=50, bound_s=1e6),)
    bare = vllm_profile((), (1000, 200), slos=loose).throughput_rps[0]
    found = vllm_profile([under(loose, bare / 1e3)], (1000, 200), slos=loose)
    assert found.throughput_rps[0] == bare
    text = csv_text(GOOD.replace("offline_max", "poisson_max_under_slo") + ",quick").replace(",source", ",source,slo")
    with pytest.raises(InputError, match=r"mine.csv:2: Column slo: 'quick' is not"):
        parse_points(text, "mine.csv")


def test_shepards_interpolation_is_exact_at_the_points_and_bounded():
    table = measured.MeasuredTable(
        points=tuple(
            point(input_tokens=a, output_tokens=b) for a, b in ((100.0, 100.0), (100.0, 1000.0), (1000.0, 100.0))
        )
    )
    ratios = [0.8, 1.0, 1.25]
    sizes = np.array([[100.0, 100.0], [1000, 100], [200, 200], [1000, 1000], [50, 100], [316.0, 100.0]])
    found = measured.correct(sizes, table, ratios)
    assert found.is_exact == (True, True, False, False, False, False)
    assert found.is_inside == (True, True, True, False, False, True)
    assert found.speed[:2] == pytest.approx([0.8, 1.25])
    assert 0.8 < found.speed[2] < 1.25
    assert list(found.speed[3:5]) == [1, 1]


def test_estimates_lie_near_the_measurements():
    """Half of the published maxima within 15%, nine in ten within 35%: benchmarks/estimator.py has the figures."""
    errors = []
    open_ended = replace(default_params(), is_context_enforced=False)
    for one in load_measured().points:
        if one.load_kind != "offline_max":
            continue
        config = EngineConfig(engine=one.engine, precision=one.precision, tensor_parallel=one.tensor_parallel)
        estimate = measured.estimated_rate_rps(one, load_model(one.model), GPUS.get(one.gpu), config, open_ended)
        errors.append(abs(estimate / one.rate_rps - 1))
    assert len(errors) > 300
    assert np.median(errors) < 0.15
    assert np.quantile(errors, 0.9) < 0.35
