"""Requests over a horizon: where the demand by the hour comes from, commitments, and what is wrong with them."""

from __future__ import annotations

import csv
import io
import json
from datetime import date

import numpy as np
import pytest
from tests_support import REPO

import planner
from planner.errors import InputError
from planner.files.documents import parse_document
from planner.files.plan_document import plan_to_document
from planner.files.plan_schema import plan_from_document
from planner.optimize import SolverSettings
from planner.workload.hourly import bundled_hourly, over_periods, read_hourly

DAY = date(2026, 11, 21)


def request(*, workload=None, horizon=None, **given):
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "meta-llama/Llama-3.1-8B",
                "parallelism": {"tp": [1]},
                "workload": {"constant": {"input_tokens": 500, "output_tokens": 200}, "rate": "20 req/s"}
                | (workload or {}),
                "slo": ["ttft p99 <= 2s", "tpot p95 <= 60ms"],
            }
        ],
        "catalog": {"providers": ["gcp"], "gpus": {"include": ["L4", "A100-40GB"]}, **given.pop("catalog", {})},
        "horizon": horizon or {"periods": "4h"},
    } | given


def planned(folder, **given):
    return planner.plan(request(**given), base_dir=folder, today=DAY, settings=SolverSettings(), verify=False).plan


def rates(plan):
    return [period.rate_rps for period in plan.schedule]


def test_the_example_is_a_schedule_with_a_commitment(gpuplan, tmp_path):
    asked = ("plan", REPO / "examples" / "day.yaml", "--as-of", "2026-11-21", "--no-verify")
    ran = gpuplan(*asked, "--json", "-o", tmp_path / "day.csv")
    assert ran.code == 0
    document = ran.json
    assert len(document["schedule"]) == 24
    assert document["commitments"][0]["instances"] >= 1
    assert np.mean([period["rate_rps"] for period in document["schedule"]]) == pytest.approx(20.0)
    assert np.mean([period["cost_usd_per_hour"] for period in document["schedule"]]) == pytest.approx(
        document["cost_usd_per_hour"]
    )
    rows = list(csv.DictReader(io.StringIO((tmp_path / "day.csv").read_text())))
    assert len(rows) == sum(len(period["allocation"]) for period in document["schedule"])
    assert sum(float(row["cost_usd_per_month"]) for row in rows) <= document["cost_usd_per_month"] * (1 + 1e-9)
    assert {float(row["period_start_s"]) for row in rows} == {3600.0 * hour for hour in range(24)}
    shown = gpuplan(*asked).out
    assert "Schedule: 24 periods of 1 h" in shown
    assert "37.0% less than on demand: the request's word" in " ".join(shown.split())


def test_the_example_on_a_budget_sheds_at_the_peak_what_matters_least(gpuplan):
    ran = gpuplan("plan", REPO / "examples" / "day_budget.yaml", "--as-of", "2026-11-21", "--json")
    assert ran.code == 0
    schedule = ran.json["schedule"]
    assert all(period["cost_usd_per_hour"] <= 17.0 for period in schedule)
    assert {item["service"] for period in schedule for item in period["unserved"]} == {"batch-summaries"}
    assert not all(period["unserved"] for period in schedule)
    shown = gpuplan("plan", REPO / "examples" / "day_budget.yaml", "--as-of", "2026-11-21").out
    assert "unserved requests/s" in shown


def test_rates_by_the_hour_are_planned_for_or_rescaled(tmp_path):
    (tmp_path / "rates.csv").write_text("hour,rate_rps\n0,10\n1,30\n")
    assert rates(planned(tmp_path, workload={"by_hour": "rates.csv", "rate": None})) == pytest.approx([10, 30, 10, 30])
    assert rates(planned(tmp_path, workload={"by_hour": "rates.csv"})) == pytest.approx([10, 30, 10, 30])
    doubled = planned(tmp_path, workload={"by_hour": "rates.csv", "rate": "40 req/s"})
    assert rates(doubled) == pytest.approx([20, 60, 20, 60])
    assert doubled.rate_rps == pytest.approx(40)
    assert "rates.csv" in doubled.inputs["files"]


def test_factors_multiply_the_rate(tmp_path):
    (tmp_path / "f.csv").write_text("hour,factor\n0,0\n1,1.5\n2,1\n3,1\n")
    plan = planned(tmp_path, workload={"by_hour": "f.csv"})
    assert rates(plan) == pytest.approx([0, 30, 20, 20])
    assert plan.schedule[0].rentals == ()
    with pytest.raises(InputError, match="factors of a rate that is not stated"):
        planned(tmp_path, workload={"by_hour": "f.csv", "rate": None})


def test_a_traces_own_rates_are_used_where_it_is_long_enough(tmp_path):
    seconds = [*np.arange(0, 1800, 2.0), *np.arange(1800, 3601, 1.0)]
    lines = "\n".join(f"{second},500,200" for second in seconds)
    (tmp_path / "t.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{lines}\n")
    workload = {"constant": None, "trace": "t.csv", "rate": "30 req/s"}
    plan = planned(tmp_path, workload=workload, horizon={"periods": "1h", "step": "30min"})
    assert rates(plan) == pytest.approx([20, 40], rel=1e-3)
    constant = planned(tmp_path, workload=workload, horizon={"periods": "2h"})
    assert rates(constant) == pytest.approx([30, 30])
    assert any("the same in every period" in text for text in constant.assumptions)


def test_commitments_are_bought_where_they_pay(tmp_path):
    def bought(discount, **given):
        commitments = [{"gpu": "A100-40GB", "term": "3y", "discount": discount} | given]
        plan = planned(tmp_path, catalog={"commitments": commitments, "gpus": {"include": ["A100-40GB"]}})
        return sum(item.instances for item in plan.commitments), plan

    assert bought("0%")[0] in {0, 4, 5}
    count, plan = bought("60%")
    assert count == sum(item.instances for item in plan.rentals)
    assert plan.commitments[0].market == "reserved-3y"
    assert all(item.instances == 1 for item in bought("60%", max_instances=1)[1].commitments)


def test_a_schedule_is_written_and_read(tmp_path):
    (tmp_path / "rates.csv").write_text("hour,rate_rps\n0,10\n1,30\n")
    plan = planned(tmp_path, workload={"by_hour": "rates.csv"})
    document = plan_to_document(plan)
    read = plan_from_document(parse_document(json.dumps(document).encode(), name="plan.json"))
    assert plan_to_document(read) == document
    assert [len(period.rentals) for period in read.schedule] == [len(period.rentals) for period in plan.schedule]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": {"periods": "90min"}}, "whole periods"),
        ({"horizon": {"periods": "24h", "step": "10s"}}, "whole periods"),
        ({"horizon": {"periods": "4h", "start_up": "5h"}}, "start_up is longer"),
        ({"horizon": {"periods": "4h", "minimum_lease": "1d"}}, "minimum_lease is longer"),
        ({"horizon": None, "workload": {"by_hour": "rates.csv"}}, "no horizon"),
        ({"workload": {"by_hour": "missing.csv"}}, "cannot be read"),
        ({"workload": {"by_hour": "bundled:nothing"}}, "ships as"),
        ({"workload": {"by_hour": "rates.csv"}, "horizon": {"periods": "3h"}}, "has 2 hours"),
        ({"workload": {"by_hour": "gap.csv"}}, "Hour 1 is missing"),
        ({"workload": {"by_hour": "words.csv"}}, "not both numbers"),
        ({"workload": {"by_hour": "negative.csv"}}, "rate_rps is -1"),
        ({"workload": {"by_hour": "columns.csv"}}, "does not say what is asked"),
        ({"workload": {"by_hour": "nothing.csv"}}, "nothing at all"),
        ({"workload": {"by_hour": "night.csv"}, "horizon": {"periods": "1h"}}, "nothing within the horizon"),
        ({"workload": {"by_hour": "bytes.csv"}}, "not UTF-8"),
        ({"catalog": {"commitments": [{"term": "1y", "discount": "10%"}]}}, "exactly one of gpu and offer"),
        ({"catalog": {"commitments": [{"offer": "nothing", "discount": "10%"}]}}, "no on-demand offer of 'nothing'"),
        ({"catalog": {"commitments": [{"gpu": "L4", "discount": "100%"}]}}, "less than 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    for name, text in {
        "rates": "hour,rate_rps\n0,10\n1,30\n",
        "gap": "hour,rate_rps\n0,10\n2,30\n",
        "words": "hour,rate_rps\n0,many\n",
        "negative": "hour,rate_rps\n0,-1\n",
        "columns": "time,rate\n0,1\n",
        "nothing": "hour,rate_rps\n0,0\n",
        "night": "hour,rate_rps\n0,0\n1,5\n",
    }.items():
        (tmp_path / f"{name}.csv").write_text(text)
    (tmp_path / "bytes.csv").write_bytes(b"hour,rate_rps\n0,\xff\n")
    asked = request(**{key: value for key, value in change.items() if value is not None})
    if change.get("horizon", 1) is None:
        del asked["horizon"]
    with pytest.raises(InputError, match=message):
        planner.plan(asked, base_dir=tmp_path, today=DAY)


def test_every_bundled_demand_reads(tmp_path):
    assert "bundled:servegen_m_large" in bundled_hourly()
    for name in bundled_hourly():
        hourly = read_hourly(name, base_dir=tmp_path)
        assert len(hourly.values) in {24, 336}
        assert over_periods(hourly, n_periods=24, step_s=3600.0) == pytest.approx(hourly.values[:24])
    quarter = over_periods(read_hourly("bundled:servegen_m_large", base_dir=tmp_path), n_periods=8, step_s=900.0)
    assert quarter[:4] == pytest.approx([quarter[0]] * 4)
