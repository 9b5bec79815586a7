"""`gpuplan workload`: stdout is the result, --json is one document, every width and encoding works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planner.workload.grid import BucketGrid
from planner.workload.histogram import demand_from_histogram, read_histogram
from planner.workload.terminal import ASCII_SHADES, histogram_lines

DATA = Path(__file__).resolve().parents[1] / "data" / "workload"
CONV = "bundled:azure_conv_2023"


def test_describe_shows_rates_sizes_and_burstiness(gpuplan):
    ran = gpuplan("workload", "describe", CONV)
    assert ran.code == 0
    assert "19,366 requests, format azure" in ran.out
    assert "5.53 req/s on average over 58.4 min" in ran.out
    assert "CV 1.09, burstier than a Poisson process" in ran.out
    assert "14,050" in ran.out
    assert "26.4" in ran.out  # percent of the fullest bucket, 1000-2000 in, 250-500 out
    assert ran.err == ""


def test_describe_as_json(gpuplan):
    ran = gpuplan("workload", "describe", DATA / "mooncake_conversation_200.jsonl", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["kind"] == "TraceSummary"
    assert ran.json["n_requests"] == sum(map(sum, ran.json["histogram"]["counts"])) == 200
    assert ran.json["prefix_reuse_fraction"] == pytest.approx(0.0588, abs=5e-4)
    assert [warning["code"] for warning in ran.json["warnings"]] == ["W301", "W301"]


def test_what_was_left_out_is_said(gpuplan, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text((DATA / "burstgpt_v1.csv").read_text() + "190,GPT-4,oops,5,5,API log\n")
    assert "n_bad_rows" not in gpuplan("workload", "describe", path).out
    refused = gpuplan("workload", "describe", path)
    assert (refused.code, refused.out) == (2, "")
    assert f"{path}:7, field Request tokens: 'oops' is not a number of tokens" in refused.err
    ran = gpuplan("workload", "describe", path, "--skip-bad-rows")
    assert ran.code == 0
    assert "Left out: 1 failed requests" in ran.out
    assert "Dropped: 1 malformed rows" in ran.out
    assert "W304" in ran.err


def test_describe_without_times(gpuplan):
    ran = gpuplan("workload", "describe", DATA / "sharegpt_lengths.csv")
    assert ran.code == 0
    assert "No arrival times" in ran.out


def test_errors_as_json(gpuplan):
    ran = gpuplan("workload", "describe", "bundled:nothing", "--json")
    assert (ran.code, ran.out) == (2, "")
    error = json.loads(ran.err)["error"]
    assert error["code"] == "bad-input"
    assert "bundled:azure_code_2023" in error["hint"]


def test_named_columns(gpuplan, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("when;prompt;answer\n1000;5;6\n3500;7;8\n")
    ran = gpuplan("workload", "describe", path, "--columns", "arrival=when:ms,input=prompt,output=answer", "--json")
    assert ran.json["duration_s"] == 2.5
    assert gpuplan("workload", "describe", path).code == 2


@pytest.mark.parametrize("width", [30, 60, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_width_and_encoding(width, encoding):
    environment = os.environ | {"COLUMNS": str(width), "NO_COLOR": "1", "PYTHONIOENCODING": encoding}
    command = [
        sys.executable,
        "-m",
        "planner.cli.main",
        "workload",
        "describe",
        DATA / "mooncake_conversation_200.jsonl",
    ]
    ran = subprocess.run(command, env=environment, capture_output=True, check=True)
    lines = ran.stdout.decode(encoding).splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in ran.stdout.decode(encoding)


def test_bucket_prints_its_basis_and_what_the_grid_loses(gpuplan):
    ran = gpuplan("workload", "bucket", CONV, "--rate", "30 req/s", "--peak", "max of 10s")
    assert ran.code == 0
    said = " ".join(ran.out.split())  # however wide the terminal is
    assert "53.16 req/s in 38 buckets: max of 10 s windows" in said
    assert "squared input by -1.32% and KV-cache occupancy by -0.13%" in said
    fitted = gpuplan("workload", "bucket", CONV, "--grid", "adaptive", "--rows", "4", "--columns-count", "3", "--json")
    assert len(fitted.json["buckets"]) <= 12
    assert fitted.json["inputs"]["trace_sha256"].startswith("2f1e5b66")
    assert [warning["code"] for warning in fitted.json["warnings"]] == ["W302"]


def test_bucket_csv_is_a_histogram_of_the_same_demand(gpuplan, tmp_path):
    target = tmp_path / "demand.csv"
    ran = gpuplan("workload", "bucket", CONV, "-o", target, "--json")
    demand = demand_from_histogram(read_histogram(target), service="default")
    assert demand.total_rate_rps == pytest.approx(ran.json["total_rate_rps"], rel=1e-12)
    assert [b.input_tokens for b in demand.buckets] == [b["mean_input_tokens"] for b in ran.json["buckets"]]
    assert [b.rate_rps for b in demand.buckets] == pytest.approx([b["rate_rps"] for b in ran.json["buckets"]])
    assert gpuplan("workload", "bucket", CONV, "-o", target).code == 2
    assert gpuplan("workload", "bucket", CONV, "-o", target, "--force").code == 0


def test_bucket_json_to_file_and_stdout(gpuplan, tmp_path):
    target = tmp_path / "demand.json"
    assert gpuplan("workload", "bucket", CONV, "-o", target).code == 0
    document = json.loads(target.read_text())
    assert gpuplan("workload", "bucket", CONV, "-o", "-").json == document
    assert gpuplan("workload", "bucket", CONV, "-o", "-", "--json").json == document


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "30"], "no unit"),
        (["--rate", "0 req/s"], "makes no demand"),
        (["--peak", "often"], "does not say which peak"),
        (["--peak", "max of 3h"], "less than one window"),
        (["--grid", "square"], "is not a grid"),
        (["--rows", "0"], "rows"),
        (["-o", "demand.txt"], "names no format"),
        (["--format", "nope"], "not a trace format"),
        (["--columns", "a=b"], "does not name a column"),
    ],
)
def test_wrong_options(gpuplan, options, message):
    ran = gpuplan("workload", "bucket", CONV, *options)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_histogram_lines_by_hand():
    grid = BucketGrid(input_edges=(10, 200, 3000), output_edges=(5, 60))
    lines = histogram_lines(np.array([[0, 30], [69, 1], [0, 0]]), grid, width=80, shades=ASCII_SHADES)
    assert lines == [
        "Requests in % by tokens (rows in, columns out; upper ends)",
        "  in     <5    <60",
        " <10        * 30.0  #########",
        "<200 # 69.0 .  1.0  ####################",
    ]
    narrow = histogram_lines(np.array([[0, 30], [69, 1], [0, 0]]), grid, width=12, shades=ASCII_SHADES)
    assert narrow[1:] == [" <10  *  #", "<200 #.  ###"]
