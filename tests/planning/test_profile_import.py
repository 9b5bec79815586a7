"""Golden points of every importer: each expected figure was worked out by hand from the fixture's own."""

from __future__ import annotations

import contextlib
import json
from copy import deepcopy
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from planner.errors import DataMissingError, InputError, PlannerError, UnsupportedFormatError
from planner.planning.profile_import import Catalogs, appended, import_files
from planner.profilers.importers import IMPORTERS, importer_of
from planner.profilers.importers.base import Given, Replica
from planner.profilers.importers.content import parse_content, read_content
from planner.profilers.importers.settle import objections, settled
from planner.profilers.importers.solvers import AiBrix, aibrix_profile
from planner.profilers.schema import parse_points, points_csv

FORMATS = Path(__file__).resolve().parents[1] / "data" / "formats"
H100 = Replica(gpu="H100", tensor_parallel=1, engine="vllm", precision="bf16")
LLAMA = Replica(model="Llama-3.1-8B", gpu="H100", tensor_parallel=1, engine="vllm", precision="bf16")
SMALL = Replica(model="Qwen/Qwen2.5-0.5B", gpu="H100", tensor_parallel=1, engine="vllm", precision="bf16")
"""The mock servers answer faster than a larger model could."""

FORMAT_OF = {
    "vllm_serve_0.32.json": "vllm-serve",
    "vllm_serve_0.6.json": "vllm-serve",
    "vllm_serve_append.json": "vllm-serve",
    "sweep/run=0.json": "vllm-serve",
    "sweep/summary.json": "vllm-serve",
    "sweep/summary.csv": "vllm-serve",
    "vllm_throughput.json": "vllm-throughput",
    "vllm_latency.json": "vllm-latency",
    "sglang_serving.jsonl": "sglang",
    "guidellm_v2_0.8.1.json": "guidellm",
    "guidellm_v2_0.8.1.yaml": "guidellm",
    "guidellm_v2_0.8.1.csv": "guidellm",
    "guidellm_v1_0.6.json": "guidellm",
    "guidellm_0.3.json": "guidellm",
    "aiperf_1.4_0.13.json": "aiperf",
    "aiperf_1.0.json": "aiperf",
    "aiperf_0.13.csv": "aiperf-csv",
    "aiperf_records_0.13.jsonl": "aiperf-records",
    "genai_perf_25.01.json": "genai-perf",
    "inference_perf_stage.json": "inference-perf",
    "inference_perf_summary.json": "inference-perf",
    "llmd_report_0.2.json": "llm-d-report",
    "llmd_report_0.2.1.yaml": "llm-d-report",
    "llmd_planner.json": "llm-d-planner",
    "trtllm_bench_1.0.json": "trtllm-bench",
    "trtllm_tables_0.17.md": "trtllm-tables",
    "trtllm_tables_1.0.md": "trtllm-tables",
    "aiconfigurator_0.7.csv": "aiconfigurator",
    "aibrix.json": "aibrix",
}


NOTHING = Replica()


def imported(path, replica=NOTHING, **given):
    return import_files([path if isinstance(path, Path) else FORMATS / path], Given(replica=replica, **given))


def only_point(path, replica=NOTHING, **given):
    (point,) = imported(path, replica, **given).points
    return point


def changed(tmp_path, name, change):
    """Return a copy of a JSON fixture after `change` was called with what it holds; its name says nothing."""
    document = json.loads((FORMATS / name).read_text(encoding="utf-8"))
    change(document)
    path = tmp_path / "whatever.txt"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FORMAT_OF)
def test_every_file_is_of_exactly_one_format(name):
    content = read_content(FORMATS / name)
    assert [known.name for known in IMPORTERS if known.matches(content)] == [FORMAT_OF[name]]


def test_every_importer_has_a_fixture():
    assert {known.name for known in IMPORTERS} == {*FORMAT_OF.values(), "melange"}


def test_content_decides_and_not_the_name(tmp_path):
    path = tmp_path / "guidellm_report.csv"
    path.write_bytes((FORMATS / "vllm_serve_0.6.json").read_bytes())
    assert only_point(path, H100).tool == "vllm bench serve"


# ------------------------------------------------------------------------------------------------------- vLLM, SGLang


def test_vllm_serve():
    point = only_point("vllm_serve_0.32.json", SMALL)
    assert (point.load_kind, point.load) == ("request_rate", 8.0)
    assert point.input_tokens == pytest.approx(7692 / 60)
    assert point.output_tokens == 64.0
    assert point.rate_rps == pytest.approx(7.881660160912321)
    assert point.output_tokens_per_s == pytest.approx(504.42625029838854)
    assert point.ttft_s == pytest.approx({"mean": 0.013946545667, "median": 0.0121882625, "p99": 0.02538094092})
    assert point.tpot_s == pytest.approx({"mean": 0.00207155040291, "median": 0.00180012973809, "p99": 0.0047587868541})
    assert point.e2e_s == pytest.approx({"mean": 0.14445422105, "median": 0.125688027, "p99": 0.31969831867})
    assert point.as_of == date(2026, 11, 21)
    assert point.model == "Qwen/Qwen2.5-0.5B"
    assert point.published_as == "./tiny"
    assert point.source_ref == "vllm_serve_0.32.json"
    assert len(point.source_sha256) == 64
    assert point.sanity == "ok"


def test_vllm_serve_of_old_versions_counts_failures_itself():
    point = only_point("vllm_serve_0.6.json", H100)
    assert point.notes == "4 of 200 requests failed"
    assert (point.input_tokens, point.output_tokens) == (1000.0, 200.0)
    assert (point.load_kind, point.load, point.rate_rps) == ("concurrency", 16.0, 2.45)


def test_vllm_metadata_says_what_was_measured():
    one, two = imported("vllm_serve_append.json").points
    assert (one.gpu, one.tensor_parallel, one.engine, one.engine_version, one.precision) == (
        "H100-80GB",
        2,
        "vllm",
        "0.10.1",
        "bf16",
    )
    assert (one.load, two.load) == (16.0, 32.0)
    assert two.tpot_s["p99"] == pytest.approx(0.044)
    assert one.source_ref.endswith(", result 1")


def test_a_sweep_folder_is_read_once():
    found = imported("sweep")
    assert [(point.load, point.rate_rps) for point in found.points] == [(16.0, 2.5), (32.0, 4.0)]
    assert [reason.rsplit("/")[-1] for reason in found.left_out] == ["2.failure.json: the benchmark failed"]


def test_summary_csv_holds_the_same_as_summary_json():
    one, two = (imported(f"sweep/summary.{suffix}").points for suffix in ("csv", "json"))
    assert [(p.rate_rps, p.load, p.ttft_s, p.tpot_s, p.gpu) for p in one] == [
        (p.rate_rps, p.load, p.ttft_s, p.tpot_s, p.gpu) for p in two
    ]


@pytest.mark.parametrize(
    ("changes", "kind", "load", "note"),
    [
        ({"request_rate": "inf", "max_concurrency": None}, "offline_max", None, ""),
        ({"request_rate": 4.0, "max_concurrency": None}, "request_rate", 4.0, ""),
        ({"request_rate": 4.0, "max_concurrency": 64}, "request_rate", 4.0, "at most 64 requests in flight"),
        ({"request_rate": 4.0, "max_concurrency": None, "burstiness": 0.5}, "request_rate", 4.0, "burstiness 0.5"),
    ],
)
def test_vllm_loads(tmp_path, changes, kind, load, note):
    point = only_point(changed(tmp_path, "vllm_serve_0.6.json", lambda d: d.update(changes)), H100)
    assert (point.load_kind, point.load) == (kind, load)
    assert note in point.notes


def test_vllm_throughput_takes_sizes_from_options():
    sizes = {"input_tokens": (128.0,), "output_tokens": (128.0,)}
    point = only_point("vllm_throughput.json", LLAMA, **sizes)
    assert (point.load_kind, point.rate_rps, point.output_tokens_per_s) == ("offline_max", 40.0, 5120.0)
    with pytest.raises(InputError, match=r"128 \+ 512 tokens are not the file's 256"):
        imported("vllm_throughput.json", LLAMA, input_tokens=(128.0,), output_tokens=(512.0,))


def test_vllm_latency_is_a_static_batch():
    point = only_point(
        "vllm_latency.json", LLAMA, load_kind="static_batch", load=8.0, input_tokens=(128.0,), output_tokens=(128.0,)
    )
    assert point.rate_rps == 4.0
    assert point.e2e_s == {"mean": 2.0, "median": 2.0, "p90": 2.1, "p99": 2.2}
    assert not point.ttft_s


def test_sglang_says_engine_and_parallelism():
    one, two = imported("sglang_serving.jsonl", Replica(gpu="H100")).points
    assert (one.engine, one.engine_version, one.tensor_parallel, one.precision) == ("sglang", "0.5.3", 1, "bf16")
    assert (one.load_kind, one.load, two.load_kind, two.load) == ("request_rate", 4.0, "concurrency", 64.0)
    assert one.e2e_s == pytest.approx({"mean": 2.6, "median": 2.5, "p90": 3.0, "p99": 3.4})
    assert one.tpot_s == pytest.approx({"mean": 0.0125, "median": 0.012, "p99": 0.016})


def test_sglang_tokens_that_nobody_counted_are_refused(tmp_path):
    text = (FORMATS / "sglang_serving.jsonl").read_text(encoding="utf-8").splitlines()[0]
    wrong = text.replace('"total_output_tokens_retokenized": 39800', '"total_output_tokens_retokenized": 20000')
    path = tmp_path / "a.jsonl"
    path.write_text(wrong, encoding="utf-8")
    assert "20000 when the texts were tokenized again" in only_point(path, Replica(gpu="H100")).notes
    path.write_text(wrong.replace('"backend": "sglang"', '"backend": "vllm"'), encoding="utf-8")
    with pytest.raises(InputError, match="nobody knows how many the server made"):
        imported(path, Replica(gpu="H100"))


# ------------------------------------------------------------------------------------------------------------ GuideLLM


def without_warnings(document):
    document["benchmarks"][0]["warnings"] = []


def test_guidellm_v2(tmp_path):
    point = only_point(changed(tmp_path, "guidellm_v2_0.8.1.json", without_warnings), SMALL)
    assert (point.load_kind, point.load) == ("concurrency", 2.0)
    assert point.input_tokens == pytest.approx(169 / 12)
    assert point.output_tokens == 16.0
    assert point.rate_rps == pytest.approx(12 / 0.67099928855896, rel=1e-4)
    assert point.output_tokens_per_s == pytest.approx(192 / 0.67099928855896, rel=1e-4)
    assert point.ttft_s["mean"] == pytest.approx(0.04109787940979)
    assert point.ttft_s["p95"] == pytest.approx(0.06656837463379)
    assert point.e2e_s["median"] == pytest.approx(0.10177350044250)
    assert (point.tool, point.tool_version, point.as_of) == ("guidellm", "0.8.1", date(2026, 11, 21))


def test_guidellm_tpot_leaves_the_first_token_out(tmp_path):
    """By definition (latency - TTFT) / (output - 1); GuideLLM's own time_per_output_token of 6.53 ms has the first."""
    point = only_point(changed(tmp_path, "guidellm_v2_0.8.1.json", without_warnings), SMALL)
    assert point.tpot_s["mean"] == pytest.approx((0.10506842533747 - 0.04109787940979) / 15, rel=0.01)
    assert point.tpot_s["mean"] == pytest.approx(0.004229582680596)


def test_guidellm_tpot_of_unequal_outputs_comes_from_single_requests(tmp_path):
    def unequal(document):
        without_warnings(document)
        benchmark = document["benchmarks"][0]
        benchmark["metrics"]["output_token_count"]["successful"]["std_dev"] = 1.0
        benchmark["requests"]["successful"][0].update(
            request_latency=1.064244747161865, time_to_first_token_ms=64.244747161865, output_tokens=11
        )

    point = only_point(changed(tmp_path, "guidellm_v2_0.8.1.json", unequal), SMALL)
    assert max(point.tpot_s.values()) == pytest.approx(point.tpot_s["p99"])
    assert point.tpot_s["median"] == pytest.approx(0.00424, rel=0.01)
    # One request took 1 s for 10 tokens after the first, eleven took about 4.23 ms a token.
    assert point.tpot_s["mean"] == pytest.approx((0.1 + 11 * 0.00423) / 12, rel=0.01)


def test_guidellm_v1_without_single_requests_has_no_percentiles_of_tpot():
    point = only_point("guidellm_v1_0.6.json", H100)
    assert point.tpot_s == {"mean": pytest.approx(0.020)}
    assert "no percentiles" in point.notes
    assert "3 of 303 requests failed" in point.notes
    assert (point.load_kind, point.load, point.rate_rps) == ("request_rate", 5.0, 5.0)
    assert point.ttft_s["p99"] == pytest.approx(0.3)
    assert point.as_of == date(2026, 2, 25)


def test_guidellm_without_a_version():
    point = only_point("guidellm_0.3.json", LLAMA)
    assert (point.load_kind, point.load, point.rate_rps) == ("concurrency", 1.0, 0.24)
    assert point.tpot_s["p99"] == pytest.approx(0.031)


def test_guidellm_yaml_says_the_same_as_json(tmp_path):
    one = only_point(changed(tmp_path, "guidellm_v2_0.8.1.json", without_warnings), SMALL)
    text = (FORMATS / "guidellm_v2_0.8.1.yaml").read_text(encoding="utf-8")
    start, end = text.index("  warnings:"), text.index("  start_time:")
    path = tmp_path / "report"
    path.write_text(text[:start] + text[end:], encoding="utf-8")
    two = only_point(path, SMALL)
    assert (one.ttft_s, one.tpot_s, one.e2e_s, one.rate_rps) == (two.ttft_s, two.tpot_s, two.e2e_s, two.rate_rps)


def test_guidellm_csv_says_the_same_as_json(tmp_path):
    one = only_point(changed(tmp_path, "guidellm_v2_0.8.1.json", without_warnings), SMALL)
    text = (FORMATS / "guidellm_v2_0.8.1.csv").read_text(encoding="utf-8")
    assert "0.0046599564999686045" in text
    path = tmp_path / "report"
    path.write_text(text.replace("0.0046599564999686045", "0.0001"), encoding="utf-8")
    two = only_point(path, SMALL)
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert getattr(two, name) == pytest.approx(getattr(one, name))
    assert (two.rate_rps, two.load, two.input_tokens) == (one.rate_rps, one.load, one.input_tokens)
    assert two.as_of == one.as_of


@pytest.mark.parametrize("suffix", ["json", "yaml", "csv"])
def test_guidellm_whose_client_was_the_bottleneck_is_refused(suffix):
    with pytest.raises(InputError, match=r"the client was the bottleneck: .*11%"):
        imported(f"guidellm_v2_0.8.1.{suffix}", SMALL)


def test_only_the_bad_benchmark_of_a_report_is_left_out(tmp_path):
    def one_more(document):
        good = json.loads(json.dumps(document["benchmarks"][0]))
        good["warnings"] = [{"code": "something_else", "message": "odd", "note": ""}]
        document["benchmarks"].append(good)

    found = imported(changed(tmp_path, "guidellm_v2_0.8.1.json", one_more), SMALL)
    assert [point.source_ref.rsplit(", ")[-1] for point in found.points] == ["benchmark 2"]
    assert found.points[0].notes == "odd"
    assert len(found.left_out) == 1
    assert "benchmark 1: the client was the bottleneck" in found.left_out[0]


def test_groups_that_counted_nothing_are_not_read_as_zero(tmp_path):
    def empty(document):
        without_warnings(document)
        for metric in ("time_to_first_token_ms", "inter_token_latency_ms"):
            group = document["benchmarks"][0]["metrics"][metric]["successful"]
            group.update(count=0, mean=77.0, median=77.0, percentiles={"p99": 77.0})

    point = only_point(changed(tmp_path, "guidellm_v2_0.8.1.json", empty), SMALL)
    assert point.ttft_s == {}
    assert point.tpot_s == {}
    assert point.e2e_s["mean"] == pytest.approx(0.10506842533747)


# -------------------------------------------------------------------------------------------------- AIPerf, GenAI-Perf


def without_usage(document):
    document.pop("usage_completion_tokens")


def test_aiperf(tmp_path):
    point = only_point(changed(tmp_path, "aiperf_1.4_0.13.json", without_usage), SMALL)
    assert (point.load_kind, point.load) == ("concurrency", 2.0)
    assert point.rate_rps == pytest.approx(18.779009373547222)
    assert point.output_tokens_per_s == pytest.approx(1051.6245249186445)
    assert point.ttft_s == pytest.approx(
        {"mean": 0.034878285, "median": 0.0342624895, "p90": 0.0379578198, "p95": 0.03852425965, "p99": 0.03904181273}
    )
    assert point.tpot_s["mean"] == pytest.approx((0.1017616655 - 0.034878285) / 55)
    assert point.e2e_s["p99"] == pytest.approx(0.10636474802)
    assert point.output_tokens == 56.0
    assert point.input_tokens == pytest.approx(161 / 12)  # as the server counted
    assert (point.tool_version, point.as_of) == ("0.13.0", date(2026, 11, 21))


@pytest.mark.parametrize("name", ["aiperf_1.4_0.13.json", "aiperf_0.13.csv", "aiperf_records_0.13.jsonl"])
def test_aiperf_whose_counts_of_tokens_differ_is_refused(name):
    with pytest.raises(InputError, match="counted 56 output tokens per request, the server 16"):
        imported(name, SMALL, load_kind="concurrency", load=2.0)


def test_aiperf_csv_and_records_say_the_same_as_json(tmp_path):
    one = only_point(changed(tmp_path, "aiperf_1.4_0.13.json", without_usage), SMALL)
    lines = (FORMATS / "aiperf_0.13.csv").read_text(encoding="utf-8").splitlines()
    table = tmp_path / "table"
    table.write_text("\n".join(line for line in lines if not line.startswith("Usage Completion")), encoding="utf-8")
    records = tmp_path / "records"
    with records.open("w", encoding="utf-8") as stream:
        for line in (FORMATS / "aiperf_records_0.13.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            record["metrics"].pop("usage_completion_tokens")
            stream.write(json.dumps(record) + "\n")
            record["metadata"]["benchmark_phase"] = "warmup"
            record["metrics"]["time_to_first_token"]["value"] = 1e6
            stream.write(json.dumps(record) + "\n")
    for path, tolerance in ((table, 5e-3), (records, 1e-6)):
        two = only_point(path, SMALL, load_kind="concurrency", load=2.0)
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            assert getattr(two, name) == pytest.approx(getattr(one, name), rel=tolerance)
        assert two.rate_rps == pytest.approx(one.rate_rps, rel=0.02)
        assert two.output_tokens == 56.0


def test_aiperf_of_an_older_schema_counts_errors():
    point = only_point("aiperf_1.0.json", H100)
    assert (point.load_kind, point.load) == ("concurrency", 32.0)
    assert point.tpot_s["p99"] == pytest.approx(0.044)
    assert point.notes == "2 of 200 requests failed"


def test_units_are_read_and_not_assumed(tmp_path):
    def in_seconds(document):
        metric = document["time_to_first_token"]
        for key in ("avg", "p50", "p90", "p95", "p99"):
            metric[key] /= 1000
        metric["unit"] = "sec"

    one = only_point("aiperf_1.0.json", H100)
    two = only_point(changed(tmp_path, "aiperf_1.0.json", in_seconds), H100)
    assert two.ttft_s == pytest.approx(one.ttft_s)


def test_answers_that_were_not_streamed_have_no_first_token(tmp_path):
    def whole(document):
        document["input_config"]["streaming"] = False

    point = only_point(changed(tmp_path, "genai_perf_25.01.json", whole), H100)
    assert (point.ttft_s, point.tpot_s) == ({}, {})
    assert point.e2e_s["mean"] == pytest.approx(7.8)


def test_genai_perf():
    point = only_point("genai_perf_25.01.json", H100)
    assert (point.load_kind, point.load, point.rate_rps, point.tool) == ("concurrency", 32.0, 4.0, "genai-perf")
    assert point.tpot_s["mean"] == pytest.approx((7.8 - 0.18) / 199, rel=1e-3)


# ------------------------------------------------------------------------------------------- inference-perf and llm-d


def test_inference_perf_takes_tpot_and_never_ntpot():
    point = only_point("inference_perf_stage.json", LLAMA)
    assert point.tpot_s["mean"] == pytest.approx(0.0216)
    assert (point.load_kind, point.load, point.rate_rps) == ("request_rate", 10.0, 9.9)
    assert point.ttft_s == {"mean": 0.11, "median": 0.1, "p90": 0.18, "p95": 0.22, "p99": 0.3}
    assert point.notes == "6 of 600 requests failed"


def test_inference_perf_says_what_the_client_really_sent(tmp_path):
    def slow(document):
        document["load_summary"].update(requested_rate=100.0)

    point = only_point(changed(tmp_path, "inference_perf_stage.json", slow), LLAMA)
    assert point.load == 9.98
    assert "the client sent 9.98 of the 100 requests/s asked for" in point.notes


def test_inference_perf_summary_needs_the_load():
    with pytest.raises(InputError, match="Pass --concurrency N, --rate R or --offline"):
        imported("inference_perf_summary.json", LLAMA)
    assert only_point("inference_perf_summary.json", LLAMA, load_kind="request_rate", load=10.0).load == 10.0


def test_llmd_report_is_shared_among_its_replicas():
    point = only_point("llmd_report_0.2.1.yaml")
    assert (point.gpu, point.tensor_parallel, point.n_gpus) == ("H100-80GB", 2, 2)
    assert (point.engine, point.engine_version, point.precision) == ("vllm", "0.10.1", "bf16")
    assert (point.load, point.rate_rps, point.output_tokens_per_s) == (10.0, 9.9, 1980.0)
    assert point.ttft_s == pytest.approx({"mean": 0.11, "median": 0.1, "p90": 0.18, "p95": 0.22, "p99": 0.3})
    assert point.tpot_s["mean"] == pytest.approx(0.0216)
    assert point.as_of == date(2026, 4, 5)
    assert (point.tool, point.tool_version) == ("inference-perf", "0.3.0")
    assert "0.2.1" in point.notes


def test_llmd_report_of_guidellm_has_its_itl_for_tpot():
    point = only_point("llmd_report_0.2.json")
    assert point.tpot_s == pytest.approx({"mean": 0.0215, "median": 0.02, "p90": 0.03, "p95": 0.04, "p99": 0.06})
    assert (point.load_kind, point.load, point.rate_rps) == ("concurrency", 100.0, 19.8)


def test_estimates_are_marked_and_not_planned_with():
    for name, replica in (("llmd_planner.json", Replica(precision="bf16")), ("aiconfigurator_0.7.csv", Replica())):
        found = imported(name, replica)
        assert {point.sanity for point in found.points} == {"estimated"}
        assert parse_points(points_csv(found.points), "x.csv") == ()
        assert len(parse_points(points_csv(found.points), "x.csv", with_unusable=True)) == len(found.points)
        assert any("which plans leave out" in remark for remark in found.remarks)


def test_llmd_planner_rows():
    one, two = imported("llmd_planner.json", Replica(precision="bf16")).points
    assert (one.gpu, two.gpu, two.tensor_parallel) == ("H100-80GB", "A100-80GB", 2)
    assert one.tpot_s["p99"] == pytest.approx(0.014)
    assert one.e2e_s["mean"] == pytest.approx(2.335)


def test_aiconfigurator_rows():
    found = imported("aiconfigurator_0.7.csv")
    one, two = found.points
    assert (one.gpu, one.engine, one.engine_version, one.precision) == ("H100-80GB", "vllm", "0.12.0", "bf16")
    assert (two.gpu, two.precision, two.rate_rps, two.output_tokens_per_s) == ("H200-141GB", "fp8", 6.0, 1200.0)
    assert one.ttft_s == {"mean": 0.15}
    assert one.tpot_s == {"mean": 0.039}
    assert found.left_out[0].endswith("rows with several data-parallel ranks, more than one replica: 1")


# --------------------------------------------------------------------------------------------------------- TensorRT-LLM


def test_trtllm_bench():
    point = only_point("trtllm_bench_1.0.json", Replica(gpu="H100"), load_kind="offline_max")
    assert (point.engine, point.engine_version, point.precision) == ("tensorrt-llm", "1.0.0", "fp8")
    assert (point.rate_rps, point.output_tokens_per_s) == (15.0, 15000.0)
    assert point.tpot_s == pytest.approx({"mean": 0.054, "median": 0.053, "p90": 0.06, "p95": 0.062, "p99": 0.066})
    assert point.ttft_s["mean"] == pytest.approx(52.0)


def test_trtllm_tables_give_what_the_bundled_profiles_hold(repo):
    """The bundled rows were transcribed by hand, independently of the importer."""
    for name, folder in (("0.17", "tensorrt-llm-0.17.csv"), ("1.0", "tensorrt-llm-1.0.csv")):
        bundled = parse_points((repo / "profiles/llama-3.1-8b" / folder).read_text(encoding="utf-8"), folder)
        known = {(p.gpu, p.tensor_parallel, p.precision, p.size): p.output_tokens_per_s for p in bundled if p.precision}
        found = [p for p in imported(f"trtllm_tables_{name}.md").points if p.model == "meta-llama/Llama-3.1-8B"]
        same = [p for p in found if (p.gpu, p.tensor_parallel, p.precision, p.size) in known]
        assert same
        for point in same:
            key = (point.gpu, point.tensor_parallel, point.precision, point.size)
            assert point.output_tokens_per_s == pytest.approx(known[key], rel=1e-5)
            assert point.rate_rps == pytest.approx(known[key] / point.output_tokens, rel=1e-5)


def test_trtllm_tables_carry_rows_on_and_skip_empty_cells():
    found = imported("trtllm_tables_0.17.md", Replica(model="Llama-3.1-70B"))
    assert [(p.gpu, p.tensor_parallel, p.precision) for p in found.points] == [
        ("H200-141GB", 1, "fp8"),
        ("H100-80GB", 1, "fp8"),
        ("GH200-96GB", 1, "fp8"),
        ("H200-141GB", 2, "fp8"),
        ("H100-80GB", 2, "fp8"),
        ("A100-80GB", 2, "fp16"),
    ]
    assert found.points[-1].output_tokens_per_s == 1313.96
    assert found.left_out == ("rows of other replicas than the one asked for: 10",)


def test_trtllm_tables_of_1_0():
    points = imported("trtllm_tables_1.0.md").points
    by_key = {(p.model, p.gpu, p.tensor_parallel, p.pipeline_parallel, p.size): p for p in points}
    pro = by_key["meta-llama/Llama-3.3-70B-Instruct", "RTX-PRO-6000", 1, 2, "128x128"]
    assert (pro.output_tokens_per_s, pro.precision, pro.engine_version) == (6172.0, "nvfp4", "1.0")
    assert len(points) == 11


# -------------------------------------------------------------------------------------------------- Mélange and AIBrix


def test_melange_rows_are_inputs_and_columns_outputs(repo):
    replica = Replica(model="Qwen2.5-0.5B", gpu="A10G", tensor_parallel=1, engine="vllm", precision="bf16")
    sizes = {"input_tokens": (100.0, 1000.0), "output_tokens": (100.0, 500.0)}
    points = imported(repo / "examples" / "melange.json", replica, **sizes).points
    assert {p.size: p.rate_rps for p in points} == {"100x100": 2, "100x500": 1, "1000x100": 5, "1000x500": 2}
    assert {p.load_kind for p in points} == {"poisson_max_under_slo"}


def test_aibrix_rows_are_outputs_and_columns_inputs():
    replica = Replica(model="Llama-3.1-8B", tensor_parallel=1, engine="vllm", precision="bf16")
    found = imported("aibrix.json", replica)
    assert {p.size: p.rate_rps for p in found.points} == {"256x128": 12.0, "2048x128": 6.0, "256x512": 4.0}
    assert {p.slo for p in found.points} == {"ttft p99 <= 1 s; e2e p99 <= 8 s"}
    assert found.points[1].ttft_s == {"mean": 0.3}
    assert found.points[2].e2e_s == {"mean": 6.0}
    assert found.left_out[0].endswith("sizes whose rate is 0, as the objective cannot be met: 1")


sizes = st.lists(st.integers(2, 5000), min_size=1, max_size=4, unique=True)


@hypothesis_given(
    inputs=sizes,
    outputs=sizes,
    rates=st.lists(st.floats(0.001, 500.0), min_size=16, max_size=16),
    bound=st.integers(1, 60),
    percentile=st.sampled_from([None, 50, 90, 99]),
)
def test_what_is_written_for_aibrix_is_read_back(inputs, outputs, rates, bound, percentile):
    replica = Replica(model="Llama-3.1-8B", tensor_parallel=1, engine="vllm", precision="bf16")
    first = imported("aibrix.json", replica).points[0]
    slo = f"e2e {'mean' if percentile is None else f'p{percentile}'} <= {bound} s"
    points = [
        replace_point(first, input_tokens=float(i), output_tokens=float(o), rate_rps=rates[4 * a + b], slo=slo)
        for a, i in enumerate(inputs)
        for b, o in enumerate(outputs)
    ]
    text = aibrix_profile(points, cost_usd_per_hour=2.5, fill_zero=False)
    content = parse_content(text.encode(), "x.json")
    assert importer_of(content).name == "aibrix"
    runs = AiBrix().read(content, Given()).runs
    assert {(r.input_tokens, r.output_tokens, r.rate_rps, r.slo, r.as_of) for r in runs} == {
        (p.input_tokens, p.output_tokens, p.rate_rps, p.slo, p.as_of) for p in points
    }
    assert {(r.ttft_s["mean"], r.e2e_s["mean"]) for r in runs} == {(first.ttft_s["mean"], first.e2e_s["mean"])}
    assert json.loads(text)["cost"] == 2.5


def replace_point(point, **changes):
    from dataclasses import replace

    tokens = changes["rate_rps"] * changes["output_tokens"]
    return replace(point, output_tokens_per_s=tokens, **changes)


# ------------------------------------------------------------------------------------------- what is checked of it all


def test_what_is_missing_is_listed_in_full():
    with pytest.raises(InputError) as caught:
        imported("inference_perf_summary.json")
    assert caught.value.hint == (
        "Pass --model NAME, --gpu NAME, --tp N, --engine NAME, --precision NAME,"
        " --concurrency N, --rate R or --offline."
    )


@pytest.mark.parametrize(
    ("replica", "message"),
    [
        (Replica(tensor_parallel=4), "tensor parallelism 4 is asked for, the file says 2"),
        (Replica(gpu="A100-80GB"), "GPU A100-80GB is asked for, the file says H100"),
        (Replica(model="Qwen/Qwen2.5-0.5B"), "model Qwen/Qwen2.5-0.5B is asked for, the file says meta-llama"),
        (Replica(engine="sglang"), "engine sglang is asked for, the file says vllm"),
        (Replica(precision="fp8"), "precision fp8 is asked for, the file says bf16"),
        (Replica(engine_version="0.9"), "engine version 0.9 is asked for, the file says 0.10.1"),
    ],
)
def test_contradictions_are_errors(replica, message):
    with pytest.raises(InputError, match=f"(?i){message}"):
        imported("vllm_serve_append.json", replica)


def test_a_load_that_the_file_contradicts_is_an_error():
    with pytest.raises(InputError, match="said to be concurrency 8, the file says concurrency 16"):
        imported("vllm_serve_0.6.json", H100, load_kind="concurrency", load=8.0)


def test_an_alias_of_the_server_may_be_given_its_model():
    point = only_point("vllm_serve_0.32.json", SMALL)
    assert (point.model, point.published_as) == ("Qwen/Qwen2.5-0.5B", "./tiny")


def test_unknown_names_suggest_known_ones():
    with pytest.raises(DataMissingError, match="H100"):
        imported("vllm_serve_0.6.json", Replica(gpu="H100-90GB"))
    with pytest.raises(InputError, match="vllm"):
        imported("vllm_serve_0.6.json", Replica(engine="vlm"))
    with pytest.raises(InputError, match="fp8"):
        imported("vllm_serve_0.6.json", Replica(precision="fp9"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vllm_serve_0.6.json", {"mean_tpot_ms": 0.03}, "below the .* in which the weights can be read"),
        ("vllm_serve_0.6.json", {"request_throughput": 2450.0}, "another unit or is not of the whole replica"),
        ("vllm_serve_0.6.json", {"completed": 150}, "50 of 200 requests failed"),
        ("vllm_serve_0.6.json", {"mean_e2el_ms": 6.09}, "contradict each other"),
        ("vllm_serve_0.6.json", {"mean_e2el_ms": 16000.0}, "39.2 at a time, not the 16 in flight"),
        ("vllm_serve_0.6.json", {"mean_ttft_ms": 1e12}, "more than a day"),
        ("vllm_serve_0.6.json", {"completed": 0}, "no request was completed"),
        ("vllm_serve_0.6.json", {"ramp_up_strategy": "linear"}, "ramps up"),
    ],
)
def test_implausible_runs_are_left_out_with_the_reason(tmp_path, name, change, message):
    with pytest.raises(InputError, match=message):
        imported(changed(tmp_path, name, lambda document: document.update(change)), H100)


def test_versions_that_are_not_read_are_named(tmp_path):
    for name, change in (
        ("guidellm_v1_0.6.json", lambda d: d["metadata"].update(version=3)),
        ("aiperf_1.0.json", lambda d: d.update(schema_version="2.0")),
        ("llmd_report_0.2.json", lambda d: d.update(version="0.1")),
    ):
        with pytest.raises(UnsupportedFormatError, match="is not read") as caught:
            imported(changed(tmp_path, name, change), H100)
        assert caught.value.hint.startswith("Read are: ")


def test_points_survive_the_profile_file():
    for name, given in (("vllm_serve_append.json", {}), ("llmd_report_0.2.1.yaml", {}), ("trtllm_tables_1.0.md", {})):
        points = imported(name, **given).points
        again = parse_points(points_csv(points), "x.csv")
        assert [(p.source_sha256, p.source_ref, p.tool, p.sanity) for p in again] == [
            (p.source_sha256, p.source_ref, p.tool, p.sanity) for p in points
        ]
        assert [p.rate_rps for p in again] == pytest.approx([p.rate_rps for p in points], rel=1e-6)


def test_appending_leaves_the_rows_that_are_there_alone():
    text = (
        "model,gpu,gpu_count,tp,pp,engine,precision,input_tokens,output_tokens,load_kind,concurrency_or_rate,"
        "throughput_req_s,date\nmine,L4,1,1,1,vllm,bf16,10,20,offline_max,inf,1.123456789012,2025-02\n"
    )
    points = imported("vllm_serve_append.json").points
    lines = appended(text, "x.csv", points).splitlines()
    assert lines[0].startswith(text.splitlines()[0])
    assert lines[1].startswith("mine,L4,1,1,1,vllm,bf16,10,20,offline_max,inf,1.123456789012,2025-02,")
    assert len(parse_points("\n".join(lines), "x.csv")) == 1 + len(points)


def test_several_sizes_for_one_run_are_not_guessed_from():
    with pytest.raises(InputError, match="--input-tokens N"):
        imported("vllm_throughput.json", LLAMA, input_tokens=(128.0, 256.0), output_tokens=(128.0,))


def test_engines_go_by_any_of_their_names(repo):
    path = repo / "profiles" / "llama-2-7b" / "tensorrt-llm-0.13.csv"
    found = imported(path, Replica(engine="trtllm", gpu="H100"))
    assert found.points
    assert {point.engine for point in found.points} == {"tensorrt-llm"}


def test_rounded_rates_are_the_same_load():
    assert only_point("guidellm_v1_0.6.json", H100, load_kind="request_rate", load=5.0001).load == 5.0


def test_estimates_are_not_written_for_aibrix():
    with pytest.raises(InputError, match="No point has a measured largest throughput"):
        aibrix_profile(imported("aiconfigurator_0.7.csv").points, cost_usd_per_hour=1.0, fill_zero=True)


def test_what_vllm_writes_for_pytorch_is_left_out_of_a_folder(tmp_path):
    (tmp_path / "run.json").write_bytes((FORMATS / "vllm_serve_0.6.json").read_bytes())
    row = {"benchmark": {"name": "vLLM benchmark"}, "model": {"name": "x"}, "metric": {"name": "ttft", "values": [1]}}
    (tmp_path / "run.pytorch.json").write_text(json.dumps([row]), encoding="utf-8")
    found = imported(tmp_path, H100)
    assert len(found.points) == 1
    assert "run.pytorch.json: This JSON file is of no format" in found.left_out[0]


JUNK = (None, -1, 0, "x", "", [], {}, [[1]], {"a": 1}, True, 10**400, float("nan"), float("inf"), "\ud800", 1e300)


def places(value, at=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


GIVEN_FOR = {
    "vllm-throughput": Given(replica=LLAMA, input_tokens=(128.0,), output_tokens=(128.0,)),
    "vllm-latency": Given(
        replica=LLAMA, load_kind="static_batch", load=8.0, input_tokens=(128.0,), output_tokens=(128.0,)
    ),
    "inference-perf": Given(replica=LLAMA, load_kind="request_rate", load=10.0),
    "llm-d-report": Given(),
    "llm-d-planner": Given(replica=Replica(precision="bf16")),
    "aibrix": Given(replica=Replica(model="Llama-3.1-8B", tensor_parallel=1, engine="vllm", precision="bf16")),
    "trtllm-bench": Given(replica=Replica(gpu="H100"), load_kind="offline_max"),
}
"""What the files do not say, so that most of them get as far as a point."""


def put(document, at, value):
    node = document
    for key in at[:-1]:
        node = node[key]
    node[at[-1]] = deepcopy(value)


@pytest.mark.parametrize("name", [n for n in FORMAT_OF if n.endswith(".json") and "append" not in n])
@hypothesis_given(data=st.data())
@settings(max_examples=25)
def test_junk_anywhere_in_a_file_is_an_error_of_ours_or_none(name, data):
    document = json.loads((FORMATS / name).read_text(encoding="utf-8"))
    for _ in range(data.draw(st.integers(1, 3))):
        put(document, data.draw(st.sampled_from(list(places(document)))), data.draw(st.sampled_from(JUNK)))
    given = GIVEN_FOR.get(FORMAT_OF[name], Given(replica=H100))
    with contextlib.suppress(PlannerError):  # anything else is a bug, and fails
        content = parse_content(json.dumps(document).encode(), "x.json")
        for run in importer_of(content).read(content, given).runs:
            point = settled(run, given, Catalogs(), content)
            list(objections(run, point))
            points_csv([point]).encode()
