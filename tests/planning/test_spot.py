"""Spot: how often it is reclaimed, what that costs in capacity, and what the plan says of it."""

from __future__ import annotations

import json

import pytest

from planner.catalog.spot import load_reclaim_rates
from planner.errors import InputError
from planner.planning.answer import plan

OFFERS = """provider,instance_type,region,market,gpu,gpu_count,price_usd_per_hour
aws,g6.xlarge,us-east-1,spot,L4,1,0.4
aws,g6.xlarge,us-east-1,on-demand,L4,1,0.8
elsewhere,vm,moon,spot,L4,1,5.0
"""


def request(folder, **catalog):
    (folder / "spot.csv").write_text(OFFERS, encoding="utf-8")
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "Qwen/Qwen2.5-1.5B",
                "workload": {"constant": {"input_tokens": 500, "output_tokens": 100}, "rate": "200 req/s"},
                "slo": ["ttft p99 <= 2s", "tpot p95 <= 60ms"],
            }
        ],
        "catalog": {"bundled": False, "files": ["spot.csv"], "markets": ["on-demand", "spot"], **catalog},
        "constraints": {"headroom": "0%"},
    }


def planned(folder, **catalog):
    return plan(request(folder, **catalog), base_dir=folder).plan


def n_replicas(plan):
    return sum(item.replicas for item in plan.allocation)


def load(plan):
    """Return how many replicas' worth of capacity the requests keep busy."""
    return sum(item.utilization * item.replicas for item in plan.allocation)


def test_the_bundled_rates_are_parts_of_gpu_instances_that_the_bands_allow():
    rates = load_reclaim_rates()
    assert set(rates.values()) == {0.05, 0.1, 0.15, 0.2, 1.0}
    assert {provider for provider, _, _ in rates} == {"aws"}
    assert rates["aws", "us-east-1", "g6.xlarge"] in rates.values()
    assert not any(kind.startswith(("inf", "trn", "dl")) for _, _, kind in rates)


def test_the_loss_is_rate_times_recovery_and_what_is_stated_goes_first(tmp_path):
    whole = planned(tmp_path)
    rate = load_reclaim_rates()["aws", "us-east-1", "g6.xlarge"]
    recovered = planned(tmp_path, spot_recovery="72h")
    assert load(recovered) == pytest.approx(load(whole) * (1 + rate * 72 / 720), rel=1e-9)
    stated = planned(tmp_path, spot_recovery="72h", spot_interruptions={"aws": "50%"})
    assert load(stated) == pytest.approx(load(whole) * 1.05, rel=1e-9)
    offer = planned(
        tmp_path, spot_recovery="72h", spot_interruptions={"aws/g6.xlarge/us-east-1/spot": "100%", "aws": "50%"}
    )
    assert load(offer) == pytest.approx(load(whole) * 1.1, rel=1e-9)
    override = planned(tmp_path, spot_recovery="72h", spot_availability="80%")
    assert load(override) == pytest.approx(load(whole) / 0.8, rel=1e-9)
    assert planned(tmp_path, spot_recovery="72h", spot_availability="100%").allocation == whole.allocation


def test_a_horizons_start_up_is_the_recovery_time_unless_one_is_stated(tmp_path):
    asked = request(tmp_path, spot_interruptions={"aws": "100%"})
    asked["horizon"] = {"periods": "4h", "step": "1h", "start_up": "1h"}
    asked["services"][0]["workload"]["by_hour"] = "hours.csv"
    (tmp_path / "hours.csv").write_text("hour,rate_rps\n0,200\n1,200\n2,200\n3,200\n", encoding="utf-8")
    by_start_up = plan(asked, base_dir=tmp_path).plan
    assert load(by_start_up) == pytest.approx(load(planned(tmp_path)) * (1 + 1 / 720), rel=1e-9)


def test_the_plan_says_how_many_interruptions_to_expect(tmp_path, gpuplan):
    found = planned(tmp_path, spot_recovery="15min")
    (rental,) = found.rentals
    rate = load_reclaim_rates()["aws", "us-east-1", "g6.xlarge"]
    assert rental.interruptions_per_day == pytest.approx(rate / 30 * rental.instances)
    (warning,) = [item for item in found.warnings if item.code == "W402"]
    assert "interruptions a day" in warning.message
    assert any("not known of 1 of 2 offers (elsewhere)" in text for text in found.assumptions)
    on_demand = planned(tmp_path, markets=["on-demand"])
    assert [item.interruptions_per_day for item in on_demand.rentals] == [None]
    unknown = planned(tmp_path, providers=["elsewhere"])
    assert [item.interruptions_per_day for item in unknown.rentals] == [None]
    assert any("How often is not known" in item.message for item in unknown.warnings)
    (tmp_path / "r.json").write_text(json.dumps(request(tmp_path, spot_recovery="15min")), encoding="utf-8")
    assert "interruptions a day, at most: g6.xlarge in us-east-1" in gpuplan("plan", tmp_path / "r.json").out


def test_wrong_rates_are_refused(tmp_path):
    with pytest.raises(InputError, match="on spot as 'awss'") as caught:
        planned(tmp_path, spot_interruptions={"awss": "5%"})
    assert "aws" in caught.value.hint
    with pytest.raises(InputError, match="must not be negative"):
        planned(tmp_path, spot_interruptions={"aws": "-5%"})
