"""Work with a deadline in a PlanRequest, end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pytest
from pydantic import TypeAdapter, ValidationError
from tests_support import REPO

import planner
from planner.domain.plan import PlanStatus
from planner.errors import InputError
from planner.files.documents import parse_document
from planner.files.plan_document import plan_to_document
from planner.files.plan_schema import plan_from_document
from planner.files.request.deferrable import Amount, parse_moment

DAY = date(2026, 11, 21)
HOUR = 3600.0
SIZES = {"constant": {"input_tokens": 500, "output_tokens": 100}}


def job(**given):
    base = {"name": "batch", "model": "meta-llama/Llama-3.1-8B", "parallelism": {"tp": [1]}, "workload": SIZES}
    return base | {"requests": 1e5, "deadline": "8h"} | given


def request(*jobs, **given):
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "meta-llama/Llama-3.1-8B",
                "parallelism": {"tp": [1]},
                "workload": {**SIZES, "rate": "60 req/s"},
                "slo": ["ttft p99 <= 2s", "tpot p95 <= 60ms"],
            }
        ],
        "deferrable": list(jobs),
        "catalog": {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["L4", "A100-80GB"]}},
    } | given


def planned(*jobs, **given):
    return planner.plan(request(*jobs, **given), today=DAY).plan


def test_the_example_shows_both_kinds_of_places(gpuplan, tmp_path):
    page = tmp_path / "plan.html"
    example = REPO / "examples" / "overnight.yaml"
    ran = gpuplan("plan", example, "--as-of", "2026-11-21", "-o", tmp_path / "plan.json", "-o", page)
    assert ran.code == 0
    document = json.loads((tmp_path / "plan.json").read_text())
    evaluation, summaries = document["jobs"]
    assert 0 < evaluation["harvested_fraction"] < 1
    assert summaries["harvested_fraction"] == 0
    assert {run["period"] for run in evaluation["runs"]} <= {11, 0, 1, 2}
    assert evaluation["finish_s"] <= 6 * HOUR
    assert sum(run["amount"] for run in summaries["runs"]) == pytest.approx(200e3)
    assert 0 < evaluation["extra_usd_per_hour"] < document["cost_usd_per_hour"]
    text = " ".join(ran.out.split())
    assert "evaluation: 1,000,000,000 tokens, due at 06:00, done at 06:00;" in text
    assert "in what chat leaves of its replicas, the rest on its own" in text
    assert "summaries (busy)" in text
    assert "in what chat leaves of its replicas" in page.read_text(encoding="utf-8")


def test_a_steady_state_harvests_first():
    alone = planned()
    little = planned(job(requests=1000))
    assert little.cost_usd_per_hour == alone.cost_usd_per_hour
    assert little.jobs[0].harvested_fraction == 1.0
    assert little.jobs[0].extra_usd_per_hour == 0.0
    assert any(text.startswith("batch: 1,000 requests at a steady rate") for text in little.assumptions)
    never = planned(job(requests=1000, harvest="never"))
    assert never.jobs[0].harvested_fraction == 0.0
    assert "W407" in {item.code for item in never.warnings}
    assert "W407" not in {item.code for item in little.warnings}
    assert never.cost_usd_per_hour > alone.cost_usd_per_hour
    assert {item.service for item in never.allocation} == {"chat", "batch"}
    assert never.jobs[0].extra_usd_per_hour == pytest.approx(never.cost_usd_per_hour - alone.cost_usd_per_hour)
    assert never.rate_rps == alone.rate_rps
    assert never.output_tokens_per_s == pytest.approx(alone.output_tokens_per_s + 1000 * 100 / (8 * HOUR))


def test_work_on_spot_gets_the_time_that_a_replica_runs():
    """Half of the time, half of the work: on replicas of its own and beside requests."""
    spot = {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-80GB"]}, "markets": ["spot"]}

    def busy(availability, harvest):
        catalog = spot | {"spot_availability": availability}
        found = planned(job(requests=1e4, harvest=harvest), catalog=catalog).jobs[0]
        return sum(run.busy_replicas for run in found.runs)

    for harvest in ("never", "allowed"):
        assert busy("50%", harvest) == pytest.approx(2 * busy("100%", harvest))


def test_only_the_same_model_in_an_allowed_format_is_shared():
    other = planned(job(requests=1000, model="mistralai/Mistral-7B-v0.1"))
    assert other.jobs[0].harvested_fraction == 0.0
    assert any("batch: 1,000 requests" in text and "GPUs of its own only" in text for text in other.assumptions)
    assert planned(job(requests=1000, precision="int8")).jobs[0].harvested_fraction == 0.0
    assert planned(job(requests=1000, precision=["int8", "bf16"])).jobs[0].harvested_fraction == 1.0


def test_tokens_and_a_histogram_say_the_same_as_requests(tmp_path):
    (tmp_path / "sizes.csv").write_text("in_lo,in_hi,out_lo,out_hi,count,in_mean,out_mean\n0,1000,0,200,7,500,100\n")
    plans = [
        planner.plan(request(given), today=DAY, base_dir=tmp_path).plan
        for given in (
            job(requests=2e6),
            job(requests=None, tokens=2e6 * 600),
            job(requests=2e6, workload={"histogram": "sizes.csv"}),
        )
    ]
    assert len({round(plan.cost_usd_per_hour, 9) for plan in plans}) == 1
    assert [plan.jobs[0].unit for plan in plans] == ["requests", "tokens", "requests"]
    assert "sizes.csv" in plans[2].inputs["files"]


def test_a_mix_of_sizes_takes_as_long_as_its_parts_one_after_the_other(tmp_path):
    header = "in_lo,in_hi,out_lo,out_hi,count,in_mean,out_mean\n"
    (tmp_path / "mix.csv").write_text(f"{header}0,1000,0,200,1,500,100\n1000,9000,0,200,1,4000,100\n")

    def busy(**given):
        plan = planner.plan(request(job(harvest="never", **given)), today=DAY, base_dir=tmp_path).plan
        (run,) = plan.jobs[0].runs
        assert run.option.startswith("gcp/")
        return run.busy_replicas, run.option

    mixed, option = busy(workload={"histogram": "mix.csv"}, requests=2e5)
    short, same = busy(requests=1e5)
    long, again = busy(workload={"constant": {"input_tokens": 4000, "output_tokens": 100}}, requests=1e5)
    assert option == same == again
    assert mixed == pytest.approx(short + long, rel=1e-9)


def tuning(**given):
    base = {"name": "tune", "kind": "fine-tune", "model": "meta-llama/Llama-3.1-8B", "tokens": 1e7, "deadline": "8h"}
    return base | given


def test_fine_tuning_runs_on_gpus_of_its_own_unless_it_may_share():
    alone = planned(tuning())
    assert alone.jobs[0].harvested_fraction == 0.0
    (own,) = [item for item in alone.allocation if item.service == "tune"]
    assert (own.engine, own.precision) == ("fine-tuning", "bf16")
    assert alone.output_tokens_per_s is None
    shared = planned(tuning(harvest="allowed"))
    assert shared.jobs[0].harvested_fraction == 1.0
    assert shared.cost_usd_per_hour < alone.cost_usd_per_hour
    assert any("beside chat it reaches 0.76" in text for text in shared.assumptions)
    full = planned(tuning(method="full", parallelism={"tp": [1, 8]}))
    assert [item.gpus_per_replica for item in full.allocation if item.service == "tune"] == [8]
    assert full.cost_usd_per_hour >= alone.cost_usd_per_hour


def test_the_example_of_fine_tuning_uses_what_chat_leaves(gpuplan, tmp_path):
    ran = gpuplan("plan", REPO / "examples" / "finetune.yaml", "--as-of", "2026-11-21", "--json")
    assert ran.code == 0
    (job,) = ran.json["jobs"]
    assert 0 < job["harvested_fraction"] < 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"requests": 10}, "requests belongs to the other one"),
        ({"workload": SIZES}, "workload belongs to the other one"),
        ({"tokens": None}, "exactly one of requests and tokens"),
        ({"method": "full", "harvest": "allowed"}, "cannot share a service's"),
        ({"kind": "offline", "method": "lora", "workload": SIZES}, "method belongs to the other one"),
        ({"kind": "offline"}, "how large the requests"),
    ],
)
def test_wrong_fine_tuning_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        planned(tuning(**given))


def test_a_job_that_limits_do_not_hold_is_named():
    plan = planned(job(requests=1e8), constraints={"budget": "60 USD/h"})
    assert plan.status is PlanStatus.INFEASIBLE
    named = {conflict.requirement: conflict for conflict in plan.conflicts}
    late = named["batch: 1e+08 requests by 8 h"]
    assert late.relaxed > 8 * HOUR
    assert "deadline 8 h -> " in late.suggestion
    assert any(text.startswith("budget") for text in named)


def test_a_model_too_large_for_every_gpu_is_named():
    plan = planned(job(model="meta-llama/Llama-3.1-70B"))
    assert plan.status is PlanStatus.INFEASIBLE
    assert "do not fit" in plan.conflicts[0].explanation


def test_a_plan_with_jobs_is_written_and_read():
    plan = planned(job(requests=5e6))
    document = plan_to_document(plan)
    read = plan_from_document(parse_document(json.dumps(document).encode(), name="plan.json"))
    assert plan_to_document(read) == document
    assert (
        replace(read, inputs={}).jobs
        == plan_from_document(parse_document(json.dumps(document).encode(), name="plan.json")).jobs
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"deadline": "06:00"}, "time of the day, and without a horizon"),
        ({"deadline": "25:00"}, "25:00"),
        ({"deadline": "24:30"}, "no time of the day"),
        ({"deadline": 8}, "neither a time of the day nor a duration"),
        ({"deadline": "22:75"}, "no time of the day"),
        ({"deadline": "0h"}, "is the very start"),
        ({"start": "9h"}, "due before it may start"),
        ({"tokens": 1e6}, "exactly one of requests and tokens"),
        ({"requests": None}, "exactly one of requests and tokens"),
        ({"requests": 0}, "greater than 0"),
        ({"workload": {}}, "constant or in a histogram"),
        ({"efficiency": "120%"}, "less than or equal to 1"),
        ({"name": "chat"}, "Two services or jobs are called 'chat'"),
        ({"harvest": "maybe"}, "harvest"),
        ({"parallelism": {"tp": [7]}}, "attention heads"),
    ],
)
def test_wrong_jobs_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        planned(job(**given))


def test_times_beyond_the_horizon_are_refused():
    with pytest.raises(InputError, match=r"lies beyond the horizon of 12 h"):
        planned(job(deadline="18:00"), horizon={"periods": "12h"})


def test_times_without_a_day_between_them_are_refused():
    with pytest.raises(InputError, match="is the very start") as caught:
        planned(job(start="22:00", deadline="00:00"), horizon={"periods": "24h"})
    assert caught.value.where.field == "deferrable[0].deadline"
    assert "24:00" in caught.value.hint
    with pytest.raises(InputError, match="may start at the end of the horizon"):
        planned(job(start="24:00", deadline="06:00"), horizon={"periods": "24h"})


def test_work_without_end_is_refused():
    with pytest.raises(ValidationError, match="finite"):
        TypeAdapter(Amount).validate_python(float("inf"))


def test_an_unquoted_time_of_the_day_is_explained():
    with pytest.raises(InputError) as caught:
        parse_moment(1320)
    assert '"22:00"' in caught.value.hint


def test_moments():
    assert parse_moment("24:00").seconds == 24 * HOUR
    assert parse_moment("6:05").is_clock
    assert not parse_moment("30min").is_clock
