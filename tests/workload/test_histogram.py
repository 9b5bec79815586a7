"""Histograms in, demand out; every way in which one can be wrong is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.errors import InputError, UnsupportedFormatError
from planner.workload.buckets import demand_from_trace
from planner.workload.histogram import demand_from_histogram, read_histogram
from planner.workload.read import read_trace

DATA = Path(__file__).resolve().parents[1] / "data" / "workload"
HEADER = "in_lo,in_hi,out_lo,out_hi,count\n"


def write(tmp_path, text, name="hist.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_histogram_of_the_code_trace_has_its_rates_per_bucket():
    histogram = read_histogram(DATA / "histogram.csv")
    assert histogram.total == 8819
    demand = demand_from_histogram(histogram, service="code", rate_rps=10.0)
    trace_demand = demand_from_trace(read_trace("bundled:azure_code_2023"), service="code", rate_rps=10.0)
    assert demand.total_rate_rps == pytest.approx(10.0, rel=1e-9)
    by_range = {(b.input_range, b.output_range): b.rate_rps for b in demand.buckets}
    assert by_range == pytest.approx({(b.input_range, b.output_range): b.rate_rps for b in trace_demand.buckets})
    assert "histogram.csv" in demand.basis


def test_representative_size_is_the_middle_or_the_mean_of_the_file(tmp_path):
    histogram = read_histogram(write(tmp_path, HEADER + "100,300,0,50,1\n300,400,0,50,3\n"))
    demand = demand_from_histogram(histogram, service="s", rate_rps=8.0)
    assert [(b.input_tokens, b.output_tokens, b.rate_rps) for b in demand.buckets] == [(200, 25, 2), (350, 25, 6)]
    assert [(b.row, b.column) for b in demand.buckets] == [(0, 0), (1, 0)]
    with_means = "in_lo,in_hi,out_lo,out_hi,in_mean,out_mean,rate\n100,300,0,50,120,,2.5\n"
    (bucket,) = demand_from_histogram(read_histogram(write(tmp_path, with_means)), service="s").buckets
    assert (bucket.input_tokens, bucket.output_tokens, bucket.rate_rps) == (120, 25, 2.5)


def test_json_matrix_is_the_same_as_the_csv(tmp_path):
    document = {"input_edges": [100, 300], "output_edges": [50, 80], "counts": [[1, 2], [0, 5]]}
    matrix = read_histogram(write(tmp_path, json.dumps(document), "h.json"))
    rows = "0,100,0,50,1\n0,100,50,80,2\n100,300,0,50,0\n100,300,50,80,5\n"
    table = read_histogram(write(tmp_path, HEADER + rows))
    assert (matrix.cells, matrix.kind) == (table.cells, table.kind)
    demand = demand_from_histogram(matrix, service="s", rate_rps=8.0)
    assert [(b.row, b.column, b.rate_rps) for b in demand.buckets] == [(0, 0, 1), (0, 1, 2), (1, 1, 5)]


def test_fractions_and_rates(tmp_path):
    fractions = read_histogram(
        write(tmp_path, HEADER.replace("count", "fraction") + "0,10,0,5,0.333\n10,20,0,5,0.666\n")
    )
    assert demand_from_histogram(fractions, service="s", rate_rps=3.0).total_rate_rps == pytest.approx(3.0, rel=1e-9)
    with pytest.raises(InputError, match="holds fractions, so it has no rate"):
        demand_from_histogram(fractions, service="s")
    with pytest.raises(InputError, match="makes no demand"):
        demand_from_histogram(fractions, service="s", rate_rps=-3.0)
    rates = read_histogram(write(tmp_path, HEADER.replace("count", "rate") + "0,10,0,5,1.5\n10,20,0,5,2.5\n"))
    assert demand_from_histogram(rates, service="s").total_rate_rps == pytest.approx(4.0)
    assert demand_from_histogram(rates, service="s", rate_rps=8.0).buckets[0].rate_rps == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("rows", "message", "line"),
    [
        ("0,10,0,5,-1", "'-1' is not a number of 0 or more", 3),
        ("0,10,0,5,nan", "'nan' is not a number", 3),
        ("0,10,0,5", "(empty) is not a number", 3),
        ("0,inf,0,5,1", "Ranges need an upper end", 3),
        ("0,x,0,5,1", "'x' is not a number", 3),
        ("0,10.5,0,5,1", "whole tokens", 3),
        ("10,10,0,5,1", "from 10 to 10 tokens is empty", 3),
        ("50,100,0,5,1", "stands in the file twice", 3),
        ("60,120,0,5,1", "input ranges 50 to 100 and 60 to 120 overlap", None),
        ("100,200,3,9,1", "output ranges 0 to 5 and 3 to 9 overlap", None),
    ],
)
def test_wrong_rows(tmp_path, rows, message, line):
    path = write(tmp_path, HEADER + "50,100,0,5,1\n" + rows + "\n")
    with pytest.raises(InputError) as caught:
        read_histogram(path)
    assert message in str(caught.value)
    assert (caught.value.where.path, caught.value.where.line) == (str(path), line)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("in_lo,in_hi,count\n0,10,5\n", "its columns are in_lo, in_hi, count"),
        (HEADER, "counts no requests"),
        (HEADER + "0,10,0,5,0\n", "counts no requests"),
        (HEADER.replace("count", "fraction") + "0,10,0,5,0.5\n", "add up to 0.5, not to 1"),
        ("in_lo,in_hi,out_lo,out_hi,in_mean,count\n0,10,0,5,11,1\n", "mean 11 lies outside"),
        ("", "empty"),
        ("{", "Not valid JSON"),
        ('{"input_edges": [1], "output_edges": [1]}', "its keys are input_edges, output_edges"),
        ('{"input_edges": [5, 5], "output_edges": [1], "counts": [[1], [1]]}', "each larger than the one before"),
        ('{"input_edges": ["a"], "output_edges": [1], "counts": [[1]]}', "list of whole numbers"),
        ('{"input_edges": [5, 9], "output_edges": [1], "counts": [[1]]}', "not 2 rows of 1"),
        ('{"input_edges": [5], "output_edges": [1], "counts": [[-1]]}', "-1 is not a number of 0 or more"),
        ('{"input_edges": [5], "output_edges": [1], "counts": [[NaN]]}', "nan is not a number of 0 or more"),
        ('{"input_edges": [5], "output_edges": [1], "counts": [["1"]]}', "not 1 rows of 1"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_histogram(path)
    assert message in str(caught.value)
    assert caught.value.where.path == str(path)


def test_not_a_histogram_at_all():
    with pytest.raises(UnsupportedFormatError, match="in_lo, in_hi, out_lo, out_hi"):
        read_histogram(DATA / "burstgpt_v1.csv")
