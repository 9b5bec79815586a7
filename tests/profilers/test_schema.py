"""Profile files: what is written is what is read."""

from dataclasses import fields, replace
from datetime import date

import pytest

from planner.errors import InputError, Where
from planner.files.bundled import bundled
from planner.profilers.schema import COLUMNS, parse_points, point_record, points_csv

FILES = sorted(
    file
    for folder in bundled("profiles").iterdir()
    if folder.is_dir() and folder.name != "lora"
    for file in folder.iterdir()
    if file.name.endswith(".csv")
)


def full_point():
    first = parse_points(FILES[0].read_text(encoding="utf-8"), "x.csv")[0]
    texts = {f.name: f.name for f in fields(first) if f.name in COLUMNS and isinstance(getattr(first, f.name), str)}
    texts |= {"precision": "fp8", "load_kind": "concurrency", "sanity": "ok"}
    return replace(
        first,
        **texts,
        tensor_parallel=4,
        pipeline_parallel=2,
        expert_parallel=4,
        load=12.5,
        rate_rps=3.25,
        output_tokens_per_s=812.5,
        ttft_s={"mean": 0.125, "p99": 0.5},
        tpot_s={"median": 0.03125},
        e2e_s={"p95": 12.0},
        power_w_per_gpu=512.25,
        energy_j_per_output_token=0.75,
        as_of=date(2026, 11, 29),
        where=Where(path="y.csv", line=2),
    )


def test_a_point_with_everything_is_read_back_as_it_was():
    point = full_point()
    assert parse_points(points_csv([point]), "y.csv") == (point,)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_bundled_points_are_read_back(file):
    points = parse_points(file.read_text(encoding="utf-8"), "a.csv")
    again = parse_points(points_csv(points), "a.csv")
    assert len(again) == len(points)
    for one, two in zip(points, again, strict=True):
        for name in (f.name for f in fields(one) if f.name not in {"where"}):
            before, after = getattr(one, name), getattr(two, name)
            if isinstance(before, float | dict):
                assert after == pytest.approx(before, rel=1e-6)
            else:
                assert after == before


def test_empty_columns_are_left_out():
    header = points_csv([replace(full_point(), e2e_s={}, slo="")]).splitlines()[0].split(",")
    assert "slo" not in header
    assert not [column for column in header if column.startswith("e2e")]


def test_a_record_holds_the_columns_by_name():
    record = point_record(full_point())
    assert record["ttft_p99_ms"] == 500.0
    assert record["gpu_count"] == 8
    assert set(record) <= set(COLUMNS)


def test_expert_parallel_ranks_are_whole():
    text = points_csv([replace(full_point(), expert_parallel=7)])
    assert text.count(",7,") == 1
    with pytest.raises(InputError, match="ep must be a whole number"):
        parse_points(text.replace(",7,", ",7.5,"), "y.csv")
