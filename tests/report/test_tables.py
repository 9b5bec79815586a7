"""CSV, data frames and Markdown."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from planner.report.tables import (
    PLAN_COLUMNS,
    REGRET_COLUMNS,
    ROUTING_COLUMNS,
    plan_csv,
    plan_frame,
    plan_markdown,
    routing_csv,
)

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("melange", "catalog", "infeasible", "odd_names")


def golden(name):
    return (GOLDEN / name).read_bytes().decode("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_markdown_is_as_it_was(name, request, today):
    assert plan_markdown(request.getfixturevalue(name), today=today) == golden(f"{name}.md")


@pytest.mark.parametrize("name", NAMES)
def test_csv_is_as_it_was(name, request):
    plan = request.getfixturevalue(name)
    assert plan_csv(plan) == golden(f"{name}.csv")
    assert routing_csv(plan) == golden(f"{name}.routing.csv")


def test_the_columns_are_documented():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "plan.md").read_text(encoding="utf-8")
    for column in PLAN_COLUMNS + ROUTING_COLUMNS + REGRET_COLUMNS:
        assert f"`{column}`" in page


def test_csv_holds_odd_names_unchanged(odd_names):
    (row,) = csv.DictReader(io.StringIO(plan_csv(odd_names), newline=""))
    assert row["service"] == odd_names.allocation[0].service
    assert row["offer"] == odd_names.allocation[0].offer
    assert row["power_w"] == ""
    assert float(row["cost_usd_per_month"]) == pytest.approx(1234.5 * 730)


def test_routing_csv_says_where_every_request_goes(catalog):
    rows = list(csv.DictReader(io.StringIO(routing_csv(catalog))))
    assert len(rows) == 6
    assert sum(float(row["option_rate_rps"]) for row in rows) == pytest.approx(150.0)
    split = [row for row in rows if row["service"] == "chat" and row["row"] == "0" and row["column"] == "1"]
    assert [float(row["weight_fraction"]) for row in split] == [0.5, 0.5]
    assert {row["input_tokens_to"] for row in split} == {"1000"}


def test_frame_has_the_columns_of_the_csv_with_types(catalog, infeasible):
    frame = plan_frame(catalog)
    assert tuple(frame.columns) == PLAN_COLUMNS
    assert frame["cost_usd_per_hour"].sum() == pytest.approx(36.86)
    for plan in (catalog, infeasible):
        types = plan_frame(plan).dtypes
        assert types["replicas"] == "int64"
        assert types["power_w"] == "float64"
    assert plan_frame(replace(catalog, allocation=())).empty


def test_frame_of_unknown_figures_has_nan_not_objects(melange):
    frame = plan_frame(melange)
    assert frame["power_w"].isna().all()
    assert frame["power_w"].dtype == "float64"


def cells(line):
    """Split a Markdown table row at the pipes that are not escaped."""
    return line.replace("\\|", "\0").strip().strip("|").split("|")


@pytest.mark.parametrize("name", NAMES)
def test_markdown_tables_keep_their_columns_whatever_the_names(name, request, today):
    text = plan_markdown(request.getfixturevalue(name), today=today)
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for block in blocks:
        assert {len(cells(line)) for line in block} == {len(cells(block[0]))}


def test_markdown_takes_no_name_for_markup(odd_names, today):
    text = plan_markdown(odd_names, today=today)
    assert "<script" not in text.replace("\\<", "")
    assert "GPU\\|1" in text
    assert "\\[red\\]" in text
    assert "r&amp;d \\_team\\_" in text
    assert "très_long" in text
