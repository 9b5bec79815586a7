"""Requests that say where their users are."""

from __future__ import annotations

import json

import pytest

from planner.errors import InputError
from planner.planning.answer import plan


def request(users=None, egress="0.5 USD/GB", slo="ttft p99 <= 2s"):
    service = {
        "name": "chat",
        "model": "meta-llama/Llama-3.1-8B",
        "workload": {"constant": {"input_tokens": 500, "output_tokens": 100}, "rate": "120 req/s"},
        "slo": [slo, "tpot p95 <= 60ms"],
    }
    catalog = {
        "providers": ["gcp"],
        "regions": ["us-central1", "europe-west4"],
        "gpus": {"include": ["A100-40GB"]},
    }
    if users is not None:
        service["users"] = users
    if egress is not None:
        catalog["egress"] = egress
    return {"schema_version": "1", "kind": "PlanRequest", "services": [service], "catalog": catalog}


def regions(plan):
    return {rental.region for rental in plan.rentals}


def test_a_pinned_region_serves_its_own_users_where_traffic_is_dear():
    free = plan(request(egress=None)).plan
    (cheapest,) = regions(free)
    (other,) = {"us-central1", "europe-west4"} - {cheapest}
    near = plan(request(other, {"price": "50 USD/GB"})).plan
    assert (regions(near), near.egress_usd_per_hour) == ({other}, 0.0)
    assert near.cost_usd_per_hour > free.cost_usd_per_hour
    far = plan(request(other, "0.0001 USD/GB")).plan
    assert regions(far) == {cheapest}
    assert far.egress_gb_per_hour == pytest.approx(120 * 600 * 4 * 3600 / 1e9)
    assert far.egress_usd_per_hour == pytest.approx(far.egress_gb_per_hour * 0.0001)
    both = plan(request({cheapest: "75%", other: "25%"}, "0.0001 USD/GB")).plan
    assert both.egress_gb_per_hour == pytest.approx(far.egress_gb_per_hour / 4)
    elsewhere = plan(request("asia-east1", "0.0001 USD/GB")).plan
    assert any("nothing is offered in asia-east1" in text for text in elsewhere.assumptions)


def test_the_way_to_another_region_counts_off_the_bounds():
    free = plan(request(egress=None, slo="ttft p99 <= 400ms")).plan
    (cheapest,) = regions(free)
    (other,) = {"us-central1", "europe-west4"} - {cheapest}
    slow = {"price": "0 USD/GB", "round_trip": "500ms"}
    assert regions(plan(request(other, slow, slo="ttft p99 <= 400ms")).plan) == {other}
    same = plan(request(cheapest, slow, slo="ttft p99 <= 400ms")).plan
    assert same.cost_usd_per_hour == free.cost_usd_per_hour
    with pytest.raises(InputError, match="leaves nothing of the ttft bound of chat, 400 ms") as caught:
        plan(request("asia-east1", slow, slo="ttft p99 <= 400ms"))
    assert caught.value.where.field == "catalog.egress.round_trip"
    shorter = {**slow, "round_trip": "399ms"}
    assert plan(request("asia-east1", shorter, slo="ttft p99 <= 400ms")).plan.status == "infeasible"


def test_bytes_per_token_that_nobody_stated_are_called_the_least():
    words = "answers streamed as JSON events take hundreds"
    assert any(words in text for text in plan(request("us-central1")).plan.assumptions)
    stated = plan(request("us-central1", {"price": "0.5 USD/GB", "bytes_per_token": 4})).plan
    assert not any(words in text for text in stated.assumptions)


def test_users_may_be_in_a_region_of_an_own_file_that_the_request_leaves_out(tmp_path):
    (tmp_path / "own.csv").write_text(
        "provider,instance_type,region,market,gpu,gpu_count,price_usd_per_hour\nus,vm,moon,on-demand,L4,1,1.0\n",
        encoding="utf-8",
    )
    asked = request("moon")
    asked["catalog"]["files"] = ["own.csv"]
    assert plan(asked, base_dir=tmp_path).plan.egress_usd_per_hour > 0


def test_the_traffic_is_said(gpuplan, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(request("asia-east1")), encoding="utf-8")
    out = " ".join(gpuplan("plan", tmp_path / "r.json").out.split())
    assert "Egress: 1.04 GB/h between users and other regions, 0.52 USD/h on top of the cost." in out
    found = plan(request("asia-east1")).plan
    total = found.cost_usd_per_hour + found.egress_usd_per_hour
    assert f"Total: {total:.2f} USD/h: {found.cost_usd_per_hour:.2f} for what is rented, 0.52 for egress." in out


@pytest.mark.parametrize(
    ("users", "egress", "words"),
    [
        ({"us-central1": "70%"}, "1 USD/GB", "sum to 0.7"),
        ("us-central1", None, "not what it costs"),
        (None, "1 USD/GB", "no service says where"),
        ("us-central1", 0.02, "0.02 USD/GB"),
        ({}, "1 USD/GB", "at least 1"),
        ("us-centrall1", "1 USD/GB", "Did you mean"),
        ("mars", "1 USD/GB", "nearest to these users"),
    ],
)
def test_what_is_half_said_is_refused(users, egress, words):
    with pytest.raises(InputError) as caught:
        plan(request(users, egress))
    assert words in f"{caught.value.message} {caught.value.hint}"
