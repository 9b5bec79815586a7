"""Requests that ask for something to be lost: zones, instances, replicas."""

from __future__ import annotations

import json
from collections import Counter

import pytest

import planner
from planner.errors import InputError
from planner.planning.answer import plan


def request(constraints=None, **catalog):
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "meta-llama/Llama-3.1-8B",
                "workload": {"constant": {"input_tokens": 500, "output_tokens": 100}, "rate": "120 req/s"},
                "parallelism": {"tp": [1]},
                "slo": ["ttft p99 <= 2s", "tpot p95 <= 60ms"],
            }
        ],
        "catalog": catalog,
        "constraints": constraints or {},
    }


ONE_GPU = {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-80GB"]}}


def gpus(plan, field="zone"):
    found = Counter()
    for rental in plan.rentals:
        found[getattr(rental, field)] += rental.instances * rental.gpus_per_instance
    return found


def test_a_fleet_is_spread_over_the_zones_that_are_stated_or_listed():
    free = plan(request(None, **ONE_GPU)).plan
    n_needed = gpus(free)[""]
    assert set(gpus(free)) == {""}
    two = plan(request({"survive": ["zone"]}, **ONE_GPU, zones_per_region=2)).plan
    assert set(gpus(two)) == {"zone-1", "zone-2"}
    assert min(gpus(two).values()) >= n_needed * 0.8  # without the headroom of 10%
    listed = plan(request({"survive": ["zone"]}, **ONE_GPU)).plan
    assert set(gpus(listed)) == {"zone-1", "zone-2", "zone-3"}
    assert free.cost_usd_per_hour < listed.cost_usd_per_hour < two.cost_usd_per_hour
    assert any("Zones per region: gcp 3" in text for text in listed.assumptions)
    one = plan(request({"survive": ["zone"]}, **ONE_GPU, zones_per_region={"gcp": 1})).plan
    assert one.status == "infeasible"
    assert "One zone per region: gcp, as stated." in one.assumptions
    (conflict,) = one.conflicts
    assert conflict.explanation == "All offers are in one zone, gcp us-central1: nothing is left without it."
    assert conflict.suggestion == "leave out survive zone"
    shares = plan(request({"max_share": {"zone": "50%"}}, **ONE_GPU, zones_per_region=2)).plan
    assert set(gpus(shares)) == {"zone-1", "zone-2"}
    assert shares.cost_usd_per_hour <= listed.cost_usd_per_hour


def test_quotas_and_names_count_for_all_zones_of_an_offer():
    name = next(iter(plan(request(None, **ONE_GPU)).plan.rentals)).offer
    asked = request({"survive": ["zone"], "quotas": [{"offer": name, "instances": 0}]}, **ONE_GPU)
    assert all(not rental.offer.startswith(f"{name}/") for rental in plan(asked).plan.rentals)


def test_spares_of_the_fleet_and_of_one_service():
    headless = {"headroom": "0%"}
    base = sum(item.replicas for item in plan(request(headless, **ONE_GPU)).plan.allocation)
    spared = plan(request({**headless, "spare_replicas": 2}, **ONE_GPU)).plan
    assert sum(item.replicas for item in spared.allocation) == base + 2
    own = request({**headless, "spare_replicas": 2}, **ONE_GPU)
    own["services"][0]["spare_replicas"] = 0
    assert plan(own).plan.cost_usd_per_hour == plan(request(headless, **ONE_GPU)).plan.cost_usd_per_hour


def test_the_largest_instances_are_lost_with_what_they_can_hold():
    only = {**ONE_GPU, "gpus": {"include": ["A100-80GB"]}}
    lost = plan(request({"survive": ["largest 2 instances"]}, **only)).plan
    free = plan(request(None, **only)).plan
    assert lost.cost_usd_per_hour > free.cost_usd_per_hour
    assert any("takes as many replicas" in text for text in lost.assumptions)


def test_the_price_is_in_the_plan_and_in_every_report(gpuplan, tmp_path):
    asked = request({"survive": ["zone", "largest 1 instance"]}, **ONE_GPU)
    (tmp_path / "r.json").write_text(json.dumps(asked), encoding="utf-8")
    shown = gpuplan("plan", tmp_path / "r.json", "-o", tmp_path / "p.json", "-o", tmp_path / "p.html")
    assert "Redundancy: survive zone" in shown.out
    assert "survive zone" in (tmp_path / "p.html").read_text(encoding="utf-8")
    read = planner.read_plan(tmp_path / "p.json")
    free = plan(request(None, **ONE_GPU)).plan.cost_usd_per_hour
    assert read.redundancy[-1].cost_without_usd_per_hour == pytest.approx(free)
    assert read.redundancy[-1].extra_usd_per_hour == pytest.approx(read.cost_usd_per_hour - free)


def test_settings_without_a_use_are_named():
    def unused(asked):
        return [text for text in plan(asked).plan.assumptions if "not used" in text or "cost no capacity" in text]

    assert unused(request(None, **ONE_GPU)) == []
    asked = request({"spot_share": {"max": "40%"}}, **ONE_GPU, spot_recovery="15min", zones_per_region=2)
    asked["services"][0]["engine"] = {"name": "vllm", "kv_transfer": "10 Gbit/s"}
    found = unused(asked)
    assert [text.split(" is not used")[0] for text in found] == [
        "catalog.spot_recovery",
        "spot_share",
        "catalog.zones_per_region",
        "chat: engine.kv_transfer",
    ]
    spot = {**ONE_GPU, "markets": ["spot"], "spot_recovery": "15min", "spot_interruptions": {"gcp": "10%"}}
    assert unused(request({"spot_share": {"max": "100%"}}, **spot)) == []
    found = unused(request(None, **spot, spot_availability="90%"))
    assert [text.split()[0] for text in found] == ["catalog.spot_recovery", "catalog.spot_interruptions"]


@pytest.mark.parametrize(
    ("constraints", "catalog", "words"),
    [
        ({"survive": ["regoin"]}, {}, "Did you mean"),
        ({"survive": ["largest 0 instances"]}, {}, "no loss that can be planned for"),
        ({"survive": ["largest 11 instances"]}, {}, "K up to 10"),
        ({"spare_replicas": 0}, {}, "greater than or equal to 1"),
        ({"survive": ["zone"]}, {"zones_per_region": {"gpc": 3}}, "no offer of 'gpc'"),
        ({}, {"zones_per_region": {"gpc": 3}}, "no offer of 'gpc'"),
    ],
)
def test_what_cannot_be_planned_for_says_why(constraints, catalog, words):
    with pytest.raises(InputError) as caught:
        plan(request(constraints, **catalog))
    assert words in f"{caught.value.message} {caught.value.hint}"
