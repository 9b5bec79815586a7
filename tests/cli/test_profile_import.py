"""`gpuplan profile import` as users call it: broken files, outputs, appending, AIBrix, and a plan from the result."""

from __future__ import annotations

import json

import pytest
from tests_support import REPO

FORMATS = REPO / "tests" / "data" / "formats"
OPTIONS = ("--gpu", "H100", "--tp", "1", "--engine", "vllm", "--precision", "bf16")
OPTIONS_MODEL = (*OPTIONS, "--model", "Llama-3.1-8B")


def text_of(name: str) -> str:
    return (FORMATS / name).read_text(encoding="utf-8")


def with_changes(name: str, **changes) -> str:
    return json.dumps(json.loads(text_of(name)) | changes)


def nested(name: str, *path, **changes) -> str:
    document = json.loads(text_of(name))
    node = document
    for key in path:
        node = node[key]
    node.update(changes)
    return json.dumps(document)


SERVE = text_of("vllm_serve_0.6.json")
BROKEN = {
    "empty file": ("", OPTIONS, "The file is empty"),
    "only spaces": (" \n\n ", OPTIONS, "The file is empty"),
    "binary": (b"\x89PNG\r\n\x1a\n\xff\xfe", OPTIONS, "is not UTF-8"),
    "zero bytes": (b'{"a": "\x00"}', OPTIONS, "zero bytes"),
    "truncated JSON": (SERVE[: len(SERVE) // 2], OPTIONS, "The JSON is broken"),
    "truncated second object": (SERVE + SERVE[:100], OPTIONS, "The JSON is broken"),
    "a number": ("[1, 2]", OPTIONS, "not a mapping"),
    "empty list": ("[]", OPTIONS, "holds no result"),
    "unknown JSON": ('{"hello": 1}', OPTIONS, "of no format that is read"),
    "unknown CSV": ("a,b\n1,2\n", OPTIONS, "of no format that is read"),
    "unknown YAML": ("a: 1\n", OPTIONS, "of no format that is read"),
    "broken YAML": ("a: [1\nb: 2\n", OPTIONS, "The YAML is broken"),
    "a sentence": ("There were no results.\n", OPTIONS, "of no format that is read"),
    "duplicate keys": (SERVE.replace('"completed"', '"duration": 1,\n "completed"'), OPTIONS, "appears twice"),
    "two kinds": (SERVE + text_of("aiperf_1.0.json"), OPTIONS, "several kinds: aiperf, vllm-serve"),
    "missing GPU": (SERVE, ("--tp", "1", "--engine", "vllm"), "Pass --gpu NAME, --precision NAME"),
    "NaN": (SERVE.replace('"mean_ttft_ms": 120.0', '"mean_ttft_ms": NaN'), OPTIONS, "NaN"),
    "infinite": (SERVE.replace('"mean_ttft_ms": 120.0', '"mean_ttft_ms": Infinity'), OPTIONS, "infinite"),
    "negative": (with_changes("vllm_serve_0.6.json", mean_ttft_ms=-5.0), OPTIONS, "negative"),
    "text for a number": (with_changes("vllm_serve_0.6.json", mean_ttft_ms="fast"), OPTIONS, "'fast' is not a number"),
    "boolean for a number": (with_changes("vllm_serve_0.6.json", mean_ttft_ms=True), OPTIONS, "True is not a number"),
    "huge number": (SERVE.replace("120.0", "1" + "0" * 400), OPTIONS, "is not a number"),
    "number with thousands of digits": (SERVE.replace("120.0", "1" * 5000), OPTIONS, "too many digits"),
    "nested too deeply": ("[" * 100_000, OPTIONS, "nested too deeply"),
    "many tokens": (with_changes("vllm_serve_0.6.json", total_input_tokens=1e30), OPTIONS, "more than any replica has"),
    "list for a mapping": (nested("inference_perf_stage.json", successes=[1]), OPTIONS_MODEL, "is not a mapping"),
    "mapping for a text": (with_changes("vllm_serve_0.6.json", model_id={}), OPTIONS, "is not a text"),
    "half a character": (SERVE.replace("meta-llama/", "\\ud800"), OPTIONS, "not printable"),
    "escape codes": (SERVE.replace("meta-llama/", "\\u001b[2J"), OPTIONS, "not printable"),
    "tp that is no count": (with_changes("vllm_serve_0.6.json", tp="two"), OPTIONS, "'two' is not a whole number"),
    "all failed": (with_changes("vllm_serve_0.6.json", completed=0), OPTIONS, "no request was completed"),
    "too many failed": (with_changes("vllm_serve_0.6.json", num_prompts=300), OPTIONS, "104 of 300 requests failed"),
    "ramp-up": (with_changes("vllm_serve_0.6.json", ramp_up_strategy="linear"), OPTIONS, "no steady state"),
    "seconds under ms": (with_changes("vllm_serve_0.6.json", mean_tpot_ms=0.03), OPTIONS, "weights can be read"),
    "cancelled": (with_changes("aiperf_1.0.json", was_cancelled=True), OPTIONS, "was cancelled"),
    "incomplete": (
        with_changes("aiperf_1.0.json", is_complete=False, incomplete_reason="out of time"),
        OPTIONS,
        "not complete (out of time)",
    ),
    "unknown unit": (nested("aiperf_1.0.json", "request_latency", unit="minutes"), OPTIONS, "The unit is 'minutes'"),
    "no unit": (nested("aiperf_1.0.json", "request_latency", unit=None), OPTIONS, "The unit is ''"),
    "other token counts": (text_of("aiperf_1.4_0.13.json"), OPTIONS_MODEL, "the server 16"),
    "ramped concurrency": (
        nested("aiperf_1.0.json", "input_config", "loadgen", concurrency_ramp_duration=30.0),
        OPTIONS,
        "ramps up",
    ),
    "more tokens than asked for": (
        nested("genai_perf_25.01.json", "input_config", output_tokens_mean=40),
        OPTIONS,
        "40 were asked for",
    ),
    "client too slow": (text_of("guidellm_v2_0.8.1.json"), OPTIONS_MODEL, "the client was the bottleneck"),
    "no benchmark": (with_changes("guidellm_v1_0.6.json", benchmarks=[]), OPTIONS, "no benchmark"),
    "report of version 3": (nested("guidellm_v1_0.6.json", "metadata", version=3), OPTIONS, "Read are: 1, 2, none"),
    "AIPerf of version 9": (with_changes("aiperf_1.0.json", schema_version="9.9"), OPTIONS, "Version 9.9"),
    "disaggregated": (
        text_of("aiconfigurator_0.7.csv").replace("global_bs", "(p)global_bs"),
        OPTIONS,
        "disaggregated serving",
    ),
    "short row": (text_of("aiconfigurator_0.7.csv") + "a,b\n", OPTIONS, "The row has 2 cells"),
    "ragged table": (text_of("aibrix.json").replace("[\n   4.0,", "[\n   4.0, 1.0,"), OPTIONS_MODEL, "matrix"),
    "wrong shape": (with_changes("aibrix.json", indexes=[[128], [256]]), OPTIONS_MODEL, "not 1 x 1"),
    "size without end": (
        nested("aibrix.json", indexes=[[10**400, 512], [256, 2048]]),
        OPTIONS_MODEL,
        "is not a number",
    ),
    "no rates": (with_changes("aibrix.json", tputs=None), OPTIONS_MODEL, "None is no matrix"),
    "GPU without a precision": (text_of("trtllm_tables_0.17.md").replace(" | FP16 ", " "), (), "5 GPUs and 4"),
    "page without a version": (text_of("trtllm_tables_0.17.md").replace("0.17", ""), (), "which version"),
    "table with words": (text_of("trtllm_tables_0.17.md").replace("28836.77", "fast"), (), "'fast'"),
    "Mélange without sizes": ((REPO / "examples/melange.json").read_text(encoding="utf-8"), (), "--input-tokens N,N"),
    "unknown GPU": (SERVE, ("--gpu", "H1000", *OPTIONS[2:]), "The GPU 'H1000' is not known"),
    "unknown model": (SERVE, (*OPTIONS, "--model", "Lama-3.1-8B"), "no model 'Lama-3.1-8B'"),
    "unknown engine": (SERVE, (*OPTIONS[:4], "--engine", "vlm", "--precision", "bf16"), "Did you mean 'vllm'"),
    "unknown precision": (SERVE, (*OPTIONS[:6], "--precision", "bf15"), "Did you mean"),
    "two loads": (SERVE, (*OPTIONS, "--rate", "1", "--offline"), "exclude each other"),
    "no load": (SERVE, (*OPTIONS, "--rate", "0"), "--rate 0 is not a positive number"),
    "no size": (SERVE, (*OPTIONS, "--input-tokens", "many"), "no list of numbers"),
    "negative size": (SERVE, (*OPTIONS, "--input-tokens", "-3"), "not positive"),
    "tp of zero": (SERVE, ("--gpu", "H100", "--tp", "0"), "--tp 0 is not a number of GPUs"),
    "another format": (SERVE, (*OPTIONS, "--format", "guidellm"), "The file is not of GuideLLM"),
    "misspelt format": (SERVE, (*OPTIONS, "--format", "guidelm"), "Did you mean 'guidellm'"),
}
DATA_MISSING = {"unknown GPU", "unknown model"}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_end_with_a_clear_message(case, gpuplan, tmp_path):
    content, options, message = BROKEN[case]
    path = tmp_path / "result"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", errors="surrogatepass"))
    ran = gpuplan("profile", "import", path, *options, "-o", tmp_path / "out.csv")
    assert ran.code == (6 if case in DATA_MISSING else 2), ran.err
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert "bug in gpuplan" not in ran.err
    assert ran.out == ""
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["result"]


def test_a_repeated_column_is_named(gpuplan, tmp_path):
    path = tmp_path / "result"
    head, *rows = text_of("aiconfigurator_0.7.csv").splitlines()
    path.write_text("\n".join((head.replace("bs,global_bs", "bs,bs"), *rows)), encoding="utf-8")
    ran = gpuplan("profile", "import", path)
    assert ran.code == 2
    assert "The column 'bs' appears twice" in ran.err


def test_files_and_folders_that_are_not_there(gpuplan, tmp_path):
    assert "no such file" in gpuplan("profile", "import", tmp_path / "nowhere.json").err
    (tmp_path / "notes.md").write_text("nothing", encoding="utf-8")
    ran = gpuplan("profile", "import", tmp_path)
    assert ran.code == 2
    assert "The folder holds no result" in ran.err


def test_a_broken_file_of_a_folder_stops_all(gpuplan, tmp_path):
    (tmp_path / "a.json").write_text(SERVE, encoding="utf-8")
    (tmp_path / "b.json").write_text(SERVE[:50], encoding="utf-8")
    ran = gpuplan("profile", "import", tmp_path, *OPTIONS)
    assert ran.code == 2
    assert "b.json" in ran.err


def test_json_prints_one_document_and_tells_what_is_left_out(gpuplan):
    ran = gpuplan("profile", "import", FORMATS / "aiconfigurator_0.7.csv", "--json")
    assert ran.code == 0
    assert ran.json["kind"] == "Profile"
    assert len(ran.json["points"]) == 2
    assert len(ran.json["left_out"]) == 1
    error = gpuplan("profile", "import", FORMATS / "vllm_serve_0.6.json", "--json")
    assert json.loads(error.err)["error"]["hint"] == "Pass --gpu NAME, --tp N, --engine NAME, --precision NAME."


def test_a_table_is_shown_and_nothing_is_written(gpuplan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    ran = gpuplan("profile", "import", FORMATS / "vllm_serve_append.json")
    assert ran.code == 0
    assert "concurrency 32" in ran.out
    assert "form factor not stated" in ran.err
    assert not list(tmp_path.iterdir())


def test_names_cannot_forge_the_table(gpuplan, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "a.json"
    path.write_text(SERVE.replace("meta-llama/Llama-3.1-8B-Instruct", "[/bold]my[red]model"), encoding="utf-8")
    ran = gpuplan("profile", "import", path, *OPTIONS)
    assert ran.code == 0
    assert "[/bold]my[red]model" in ran.out
    assert "not in the model library" in ran.err


def test_nothing_is_overwritten_and_doubles_are_skipped(gpuplan, tmp_path):
    out = tmp_path / "p.csv"
    first = gpuplan("profile", "import", FORMATS / "vllm_serve_append.json", "-o", out)
    assert first.code == 0
    before = out.read_bytes()
    again = gpuplan("profile", "import", FORMATS / "vllm_serve_append.json", "-o", out)
    assert again.code == 2
    assert "--force" in again.err
    renamed = tmp_path / "renamed.json"
    renamed.write_bytes((FORMATS / "vllm_serve_append.json").read_bytes())
    same = gpuplan("profile", "import", renamed, FORMATS / "vllm_serve_append.json", "-o", out, "--append")
    assert same.code == 0
    assert "4 points were there already" in same.err
    assert out.read_bytes() == before
    more = gpuplan(
        "profile", "import", FORMATS / "vllm_serve_append.json", FORMATS / "vllm_serve_0.6.json", "-o", out, "--append"
    )
    assert more.code == 2  # the one file says H100 with tp 2, the other says nothing
    assert out.read_bytes() == before
    more = gpuplan("profile", "import", FORMATS / "vllm_serve_0.6.json", *OPTIONS, "-o", out, "--append")
    assert more.code == 0
    rows = zip(out.read_bytes().splitlines()[1:3], before.splitlines()[1:3], strict=True)
    assert all(now.startswith(then) and not now[len(then) :].strip(b",") for now, then in rows)
    shown = gpuplan("profile", "show", out, "--json").json["points"]
    assert [point["throughput_req_s"] for point in shown] == [2.5, 4.0, 2.45]


def test_appending_to_what_is_no_profile_leaves_it_alone(gpuplan, tmp_path):
    out = tmp_path / "p.csv"
    out.write_text("my,notes\n1,2\n", encoding="utf-8")
    ran = gpuplan("profile", "import", FORMATS / "vllm_serve_append.json", "-o", out, "--append")
    assert ran.code == 2
    assert out.read_text(encoding="utf-8") == "my,notes\n1,2\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--append",), "needs a file"),
        (("--to", "aibrix"), "needs a file"),
        (("--to", "melange", "-o", "x.json"), "no format that can be written"),
        (("-o", "-", "--json"), "exclude each other"),
        (("-o", "x.html"), "names no format"),
        (("-o", "x.json", "--append"), "can be added to"),
        (("--to", "aibrix", "-o", "x.csv"), "names no format"),
        (("--to", "aibrix", "-o", "x.json", "--cost", "2"), "2"),
    ],
)
def test_outputs_that_make_no_sense(options, message, gpuplan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = gpuplan("profile", "import", FORMATS / "vllm_serve_append.json", *options)
    assert ran.code == 2
    assert message in ran.err
    assert not list(tmp_path.iterdir())


def test_to_stdout(gpuplan):
    ran = gpuplan("profile", "import", FORMATS / "vllm_serve_append.json", "-o", "-")
    assert ran.out.startswith("model,gpu,gpu_count,")
    assert len(ran.out.splitlines()) == 3


def test_aibrix_profiles_are_written_and_read(gpuplan, tmp_path):
    tables, out = FORMATS / "trtllm_tables_0.17.md", tmp_path / "aibrix.json"
    several = gpuplan("profile", "import", tables, "--to", "aibrix", "-o", out)
    assert several.code == 2
    assert "Pick one with --model, --gpu" in several.err
    asked = ("--model", "Llama-3.1-8B", "--gpu", "H100")
    ran = gpuplan("profile", "import", tables, *asked, "--to", "aibrix", "-o", out, "--cost", "2.5 USD/h")
    assert ran.code == 0, ran.err
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["indexes"] == [[128, 2048], [128]]
    assert document["tputs"] == [[pytest.approx(28836.77 / 128)], [pytest.approx(21109.38 / 2048)]]
    assert document["cost"] == 2.5
    assert document["slos"] == {"percentile": 0}
    back = gpuplan(
        *("profile", "import", out, "--json", "--model", "Llama-3.1-8B"),
        *("--tp", "1", "--engine", "tensorrt-llm", "--precision", "fp8"),
    )
    assert [point["throughput_req_s"] for point in back.json["points"]] == pytest.approx(
        [28836.77 / 128, 21109.38 / 2048]
    )


def test_an_aibrix_grid_with_holes_is_not_filled_unasked(gpuplan, tmp_path):
    out = tmp_path / "a.json"
    asked = ("--model", "Llama-3.1-8B", "--tp", "1", "--engine", "vllm", "--precision", "bf16", "--to", "aibrix")
    ran = gpuplan("profile", "import", FORMATS / "aibrix.json", *asked, "-o", out)
    assert ran.code == 2
    assert "1 of 4 sizes have no point: 2048x512" in ran.err
    ran = gpuplan("profile", "import", FORMATS / "aibrix.json", *asked, "-o", out, "--fill-zero")
    assert ran.code == 0
    written, original = json.loads(out.read_text(encoding="utf-8")), json.loads(text_of("aibrix.json"))
    for key in ("gpu", "tputs", "indexes", "slos"):
        assert written[key] == original[key]


REQUEST = """\
schema_version: "1"
kind: PlanRequest
services:
  - name: chat
    model: meta-llama/Llama-3.1-8B
    workload: {{constant: {{input_tokens: 1000, output_tokens: 200}}, rate: 5 req/s}}
    engine: {{name: vllm}}
    precision: bf16
    parallelism: {{tp: [2]}}
    slo: [e2e mean <= 60s]
catalog: {{gpus: {{include: [H100-80GB]}}}}
profiles: {{files: [{name}]}}
"""


def test_a_plan_uses_what_was_imported(gpuplan, tmp_path):
    out = tmp_path / "mine.csv"
    assert gpuplan("profile", "import", FORMATS / "vllm_serve_append.json", "-o", out).code == 0
    request = tmp_path / "request.yaml"
    request.write_text(REQUEST.format(name="mine.csv"), encoding="utf-8")
    ran = gpuplan("plan", request, "--json", "--no-verify")
    assert ran.code == 0, ran.err
    (served,) = ran.json["allocation"]
    assert served["provenance"] == "calibrated"
    assert "measured / estimated), vllm 0.10.1, at 1000x200" in served["provenance_note"]


def test_estimates_do_not_pass_for_measurements_in_a_plan(gpuplan, tmp_path):
    out = tmp_path / "theirs.csv"
    assert gpuplan("profile", "import", FORMATS / "aiconfigurator_0.7.csv", "-o", out).code == 0
    assert len(gpuplan("profile", "show", out, "--json").json["points"]) == 2
    request = tmp_path / "request.yaml"
    request.write_text(REQUEST.format(name="theirs.csv").replace("tp: [2]", "tp: [1]"), encoding="utf-8")
    ran = gpuplan("plan", request, "--json", "--no-verify")
    assert ran.code == 0, ran.err
    assert {served["provenance"] for served in ran.json["allocation"]} == {"estimated"}


def test_help_is_short(gpuplan):
    ran = gpuplan("profile", "import", "--help")
    assert ran.code == 0
    assert "--concurrency" in ran.out
