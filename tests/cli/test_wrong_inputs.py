"""Wrong inputs: each ends with the right exit code and one clear message, and none with a traceback."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

MELANGE: dict[str, Any] = {
    "gpu_info": {
        "A10G": {"cost": 1.01, "tputs": [[2, 1], [5, 2]]},
        "A100-80GB": {"cost": 3.67, "tputs": [[20, 20], [40, 20]]},
    },
    "workload_distribution": [[0.2, 0.1], [0.5, 0.2]],
    "total_request_rate": 30,
}

REQUEST = """\
schema_version: "1"
kind: PlanRequest
services:
  - name: chat
    model: meta-llama/Llama-3.1-8B
    workload: {constant: {input_tokens: 500, output_tokens: 100}, rate: 5 req/s}
    slo: [ttft p99 <= 2s]
catalog: {providers: [gcp], gpus: {include: [L4, A100-80GB]}}
"""


def melange(**changes: Any) -> str:
    config = deepcopy(MELANGE)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = config
        for parent in parents:
            node = node[parent.replace("_80GB", "-80GB") if parent.startswith("A100") else parent]
        node[last] = value
    return json.dumps(config)


def request(old: str, new: str) -> str:
    assert old in REQUEST, "the case no longer matches the request that it changes"
    return REQUEST.replace(old, new)


def with_trace(content: str | bytes, **keys: Any) -> tuple[str, str | bytes]:
    extra = "".join(f", {key}: {value}" for key, value in keys.items())
    old = "{constant: {input_tokens: 500, output_tokens: 100}, rate: 5 req/s}"
    return request(old, f"{{trace: trace.csv{extra}}}"), content


AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AZURE_ROW = "2023-11-16 18:15:46.6805900,374,44\n"

# name -> (request text or (request text, trace), exit code, what the message must say)
CASES: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "empty file": ("", 2, ("empty",)),
    "only blanks": ("  \n\n", 2, ("empty",)),
    "a scalar": ("hello", 2, ("mapping",)),
    "a list": ("[1, 2]", 2, ("mapping",)),
    "not a request": ("a: 1\n", 2, ("kind",)),
    "another kind": ('schema_version: "1"\nkind: Plan\n', 2, ("kind is 'Plan'",)),
    "broken YAML": ("a: [1, 2\nb: 3\n", 2, ("request.yaml:2", "broken")),
    "a tab in YAML": ("a:\n\tb: 1\n", 2, ("request.yaml:2", "broken")),
    "broken JSON": ('{"gpu_info": {', 2, ("request.yaml:1", "JSON")),
    "duplicate YAML key": ("kind: PlanRequest\nkind: PlanRequest\n", 2, ("kind", "request.yaml:2")),
    "duplicate JSON key": ('{"a": 1, "a": 2}', 2, ("'a'", "twice")),
    "binary garbage": (random.Random(1).randbytes(2000), 2, ("UTF-8",)),
    "ten megabytes of garbage": ("x" * 10_000_000, 2, ("10,000,000 bytes",)),
    "a number as key": (request("kind: PlanRequest", "kind: PlanRequest\n1: 2"), 2, ("not text",)),
    "unknown key": (request("catalog:", "catalgo:"), 2, ("catalgo", "Did you mean 'catalog'", "request.yaml:8")),
    "unknown nested key": (request("rate:", "rat:"), 2, ("'rat'", "Did you mean 'rate'", "request.yaml:6")),
    "missing key": (request("    slo: [ttft p99 <= 2s]\n", ""), 2, ("slo", "missing", "services[0]")),
    "wrong schema version": (request('schema_version: "1"', 'schema_version: "9"'), 2, ("schema_version",)),
    "no services": (request(REQUEST[REQUEST.index("services"): REQUEST.index("catalog")], "services: []\n"), 2, ("services",)),
    "two services of one name": (
        request("catalog:", REQUEST[REQUEST.index("  - name"): REQUEST.index("catalog")] + "catalog:"), 2, ("'chat'",)
    ),
    "a bare duration": (request("<= 2s", "<= 2"), 2, ("no unit", "request.yaml:7")),
    "an unknown unit": (request("<= 2s", "<= 2 parsecs"), 2, ("'parsecs'",)),
    "an unknown metric": (request("ttft p99", "latency p99"), 2, ("'latency'", "ttft")),
    "an unknown statistic": (request("ttft p99", "ttft max"), 2, ("ttft max",)),
    "a negative bound": (request("<= 2s", "<= -2s"), 2, ("more than zero",)),
    "a negative rate": (request("5 req/s", "-5 req/s"), 2, ("more than zero",)),
    "a rate without unit": (request("5 req/s", "5"), 2, ("no unit",)),
    "a constant without rate": (request(", rate: 5 req/s", ""), 2, ("rate",)),
    "two workload sources": (request("{constant:", "{trace: x.csv, constant:"), 2, ("exactly one",)),
    "zero input tokens": (request("input_tokens: 500", "input_tokens: 0"), 2, ("input_tokens", "greater than 0")),
    "NaN tokens": (request("input_tokens: 500", "input_tokens: .nan"), 2, ("input_tokens",)),
    "unknown model": (request("meta-llama/Llama-3.1-8B", "meta-llama/Lama-3.1-8B"), 6, ("Lama-3.1-8B", "meta-llama/Llama-3.1-8B")),
    "unknown GPU": (request("[L4, A100-80GB]", "[L5]"), 6, ("L5", "gpuplan catalog gpus", "request.yaml:8")),
    "unknown provider": (request("[gcp]", "[gpc]"), 2, ("gpc", "gcp")),
    "unknown market": (request("providers: [gcp]", "markets: [spott]"), 2, ("spott", "spot")),
    "unknown precision": (request("    slo:", "    precision: [bf8]\n    slo:"), 2, ("precision", "bf8")),
    "misspelt engine": (
        request("    slo:", "    engine: {name: vlllm}\n    slo:"), 2,
        ("The engine 'vlllm' is not known", "Did you mean 'vllm'", "request.yaml:7", "services[0].engine.name"),
    ),
    "impossible tensor parallelism": (request("    slo:", "    parallelism: {tp: [3]}\n    slo:"), 2, ("[3]", "heads")),
    "headroom of 20 without unit": (REQUEST + "constraints: {headroom: 20}\n", 2, ("headroom", "20%")),
    "power without unit": (REQUEST + "constraints: {power: {us-central1: 40}}\n", 2, ("no unit", "power")),
    "power of an unknown region": (REQUEST + "constraints: {power: {mars: 40kW}}\n", 2, ("mars",)),
    "a quota of two resources": (REQUEST + "constraints: {quotas: [{gpus: 1, vcpus: 1}]}\n", 2, ("exactly one",)),
    "a quota of half a GPU": (REQUEST + "constraints: {quotas: [{gpus: 1.5}]}\n", 2, ("quotas[0].gpus",)),
    "availability of an unknown GPU": (REQUEST + "constraints: {available: {H1000: 8}}\n", 6, ("H1000",)),
    "owned GPUs not whole machines": (
        request("{providers: [gcp],", "{owned: [{gpu: L4, count: 3, price: 0 USD/h}],"), 2, ("whole machines",)
    ),
    "a missing catalog file": (request("{providers: [gcp],", "{files: [none.csv],"), 2, ("none.csv",)),
    "a missing trace": (with_trace("", rate="1 req/s")[0].replace("trace.csv", "none.csv"), 2, ("none.csv",)),
    "an unknown bundled trace": (with_trace("")[0].replace("trace.csv", '"bundled:nope"'), 2, ("nope", "azure_conv_2023")),
    "an empty trace": (with_trace(""), 2, ("trace.csv",)),
    "a trace with a header only": (with_trace(AZURE_HEADER), 2, ("trace.csv",)),
    "a truncated trace": (with_trace(AZURE_HEADER + AZURE_ROW + "2023-11-16 18:15:47.0,37"), 2, ("trace.csv:3",)),
    "a trace with negative tokens": (with_trace(AZURE_HEADER + AZURE_ROW + AZURE_ROW.replace("374", "-3")), 2, ("trace.csv:3",)),
    "a trace of garbage": (with_trace(random.Random(2).randbytes(3000)), 2, ("trace.csv",)),
    "a wrong peak": (with_trace(AZURE_HEADER + AZURE_ROW * 9, peak="sometimes"), 2, ("sometimes",)),
    "a quota for an unknown provider": (REQUEST + "constraints: {quotas: [{provider: gpc, gpus: 1}]}\n", 2, ("gpc", "gcp", "quotas[0]")),
    "a quota for an unknown region": (REQUEST + "constraints: {quotas: [{region: nowhere, gpus: 0}]}\n", 2, ("nowhere",)),
    "no provider at all": (request("[gcp]", "[]"), 6, ("No offer", "catalog")),
    "a market without offers": (request("providers: [gcp]", "markets: [reserved-1y]"), 6, ("No offer", "market")),
    "an SLO that nothing meets": (request("<= 2s", "<= 1us"), 3, ()),
    "zero availability": (REQUEST + "constraints: {available: {L4: 0, A100-80GB: 0}}\n", 3, ()),
    "a budget of nothing": (REQUEST + "constraints: {budget: 0 USD/h}\n", 3, ()),
    "a power budget below one GPU": (REQUEST + "constraints: {power: 10W}\n", 3, ()),
    "a model that fits nowhere": (
        request("meta-llama/Llama-3.1-8B", "deepseek-ai/DeepSeek-R1").replace("[L4, A100-80GB]", "[L4]"), 3, ()
    ),
    "melange: negative price": (melange(gpu_info__A10G__cost=-1), 2, ("gpu_info.A10G.cost",)),
    "melange: NaN": (melange().replace("1.01", "NaN"), 2, ("NaN",)),
    "melange: text for a number": (melange(total_request_rate="30"), 2, ("total_request_rate",)),
    "melange: zero rate": (melange(total_request_rate=0), 2, ("total_request_rate",)),
    "melange: negative throughput": (melange(gpu_info__A10G__tputs=[[2, -1], [5, 2]]), 2, ("tputs",)),
    "melange: ragged throughput": (melange(gpu_info__A10G__tputs=[[2], [5, 2]]), 2, ("different lengths",)),
    "melange: wrong shape": (melange(gpu_info__A10G__tputs=[[2, 1]]), 2, ("1 x 2", "2 x 2")),
    "melange: shares that do not sum to 1": (melange(workload_distribution=[[0.2, 0.1], [0.5, 0.1]]), 2, ("sum to 0.9",)),
    "melange: a GPU without a name": (melange().replace('"A10G"', '" "'), 2, ("GPU type of gpu_info has an empty name",)),
    "melange: no GPUs": (melange(gpu_info={}), 2, ("gpu_info",)),
    "melange: unknown key": (melange(gpu_info__A10G__price=1), 2, ("'price'",)),
    "melange: slice factor 0": (melange(slice_factor=0), 2, ("slice_factor",)),
    "melange: a bucket that no GPU serves": (
        melange(gpu_info={"A10G": {"cost": 1.01, "tputs": [[2, 0], [5, 2]]}}), 3, ("row 0", "column 1")
    ),
    "melange: everything sold out": (
        melange(gpu_info={"A10G": {"cost": 1.01, "tputs": [[2, 1], [5, 2]], "available": 0}}), 3, ("A10G",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_gets_its_exit_code_and_a_clear_message(name, gpuplan, tmp_path, monkeypatch):
    content, code, words = CASES[name]
    monkeypatch.chdir(tmp_path)
    if isinstance(content, tuple):
        content, trace = content
        Path("trace.csv").write_bytes(trace if isinstance(trace, bytes) else trace.encode())
    Path("request.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    ran = gpuplan("plan", "request.yaml", "--json", "--as-of", "2026-11-21")
    said = ran.out + ran.err
    assert ran.code == code, said
    assert "Traceback" not in said
    assert not [word for word in words if word not in said], said
    if code == 3:
        assert ran.json["status"] == "infeasible"
        assert ran.json["conflicts"]
        assert ran.json["allocation"] == []
    else:
        assert ran.out == ""
        error = json.loads(ran.err)["error"]
        assert set(error) == {"code", "message", "hint", "where"}
        assert error["message"]


def test_every_infeasible_case_offers_a_way_out_or_says_why_there_is_none(gpuplan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, (content, code, _) in CASES.items():
        if code != 3:
            continue
        Path("request.yaml").write_text(content, encoding="utf-8")
        conflicts = gpuplan("plan", "request.yaml", "--json", "--as-of", "2026-11-21").json["conflicts"]
        assert all(conflict["requirement"] and conflict["explanation"] for conflict in conflicts), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "none.yaml"], ("none.yaml", "no such file")),
        (["plan", "."], ("folder",)),
        (["plan"], ("Missing argument",)),
        (["plan", "good.json", "--solver", "gurobi"], ("gurobi", "highs")),
        (["plan", "good.json", "--gap", "-1%"], ("gap",)),
        (["plan", "good.json", "--gap", "200%"], ("gap",)),
        (["plan", "good.json", "--time-limit", "60"], ("no unit",)),
        (["plan", "good.json", "--assignment", "whole"], ("whole", "fractional")),
        (["plan", "good.json", "--as-of", "yesterday"], ("yesterday",)),
        (["plan", "good.json", "-o", "plan.xls"], (".xls", ".csv")),
        (["plan", "good.json", "-o", "none/plan.json"], ("folder does not exist",)),
        (["plan", "good.json", "-o", "old.json"], ("exists", "--force")),
        (["plan", "good.json", "-o", "a.json", "-o", "a.json"], ("asked for twice",)),
        (["sweep", "good.json", "-o", "front.txt"], (".txt", ".csv")),
        (["sweep", "good.json", "-o", "a.csv", "-o", "a.csv"], ("asked for twice",)),
        (["sweep", "good.json", "-o", "old.json"], ("exists", "--force")),
        (["plan", "good.json", "--slice-factor", "3"], ("sliced",)),
        (["plan", "good.json", "--nonsense"], ("--nonsense",)),
        (["pln", "good.json"], ("pln",)),
        (["explain", "good.json"], ("good.json",)),
        (["explain", "none.json"], ("none.json",)),
        (["schema", "nope"], ("nope", "plan-request")),
        (["catalog", "show", "H1000"], ("H1000",)),
        (["models", "show", "no/such-model"], ("no/such-model",)),
        (["workload", "describe", "none.csv"], ("none.csv",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_command_lines(arguments, words, gpuplan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.json").write_text(json.dumps(MELANGE), encoding="utf-8")
    Path("old.json").write_text("precious", encoding="utf-8")
    ran = gpuplan(*arguments)
    assert ran.code in {2, 6}, ran
    assert ran.err.startswith("Error: ")
    assert "Traceback" not in ran.err
    assert not [word for word in words if word not in ran.err], ran.err
    assert Path("old.json").read_text(encoding="utf-8") == "precious"


def test_a_file_that_the_system_refuses_to_read(gpuplan):
    ran = gpuplan("plan", "/proc/self/mem")  # permissions do not stop root, but nobody can read this from its start
    assert ran.code == 2
    assert ran.err == "Error: /proc/self/mem: The file cannot be read: Input/output error.\n"


def test_a_folder_that_cannot_be_written(gpuplan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.json").write_text(json.dumps(MELANGE), encoding="utf-8")
    ran = gpuplan("plan", "good.json", "-o", "/proc/plan.json")
    assert ran.code == 2
    assert "/proc/plan.json" in ran.err
    assert "Traceback" not in ran.err


BROKEN = """
import sys
import planner.cli.doctor
def command(): {body}
planner.cli.doctor.command = command
sys.argv = ["gpuplan", "doctor", *{flags!r}]
from planner.cli.main import main
main()
"""


def run_broken(body, *flags):
    script = BROKEN.format(body=body, flags=flags)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_a_bug_is_reported_as_one_with_its_traceback_only_when_asked_for():
    done = run_broken("1 / 0")
    assert done.returncode == 1
    assert "unexpected ZeroDivisionError" in done.stderr
    assert "bug in gpuplan" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run_broken("1 / 0", "-v").stderr


@pytest.mark.parametrize(
    "body", ["raise KeyboardInterrupt", "raise ImportError('initialization failed') from KeyboardInterrupt()"]
)
def test_ctrl_c_is_no_bug(body):
    done = run_broken(body)
    assert (done.returncode, done.stderr.strip()) == (130, "Interrupted.")
