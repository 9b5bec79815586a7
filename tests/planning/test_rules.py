"""Variety, minima, spread and changes in a PlanRequest, end to end."""

from __future__ import annotations

import json

import pytest
from tests_support import REPO

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
                "workload": {"constant": {"input_tokens": 500, "output_tokens": 100}, "rate": "60 req/s"},
                "slo": ["ttft p99 <= 2s", "tpot p95 <= 60ms"],
            }
        ],
        "catalog": {
            "providers": ["gcp", "aws"],
            "regions": ["us-central1", "us-east-1"],
            "gpus": {"include": ["L4", "A100-80GB", "A10G"]},
            **catalog,
        },
        "constraints": constraints or {},
    }


def rentals(plan, field):
    return {getattr(rental, field) for rental in plan.rentals}


def test_variety_spread_and_minima_hold_in_the_plan():
    free = plan(request()).plan
    spread = plan(request({"max_share": {"provider": "50%"}})).plan
    assert rentals(spread, "provider") == {"gcp", "aws"}
    by_provider = {name: sum(a.rate_rps for a in spread.allocation if a.provider == name) for name in ("gcp", "aws")}
    assert by_provider["gcp"] == pytest.approx(30.0, rel=1e-5)
    assert spread.cost_usd_per_hour > free.cost_usd_per_hour
    one = plan(
        request({"max_share": {"provider": "50%"}, "max_offers": 2, "max_gpu_types": 2, "max_providers": 2})
    ).plan
    assert len(one.rentals) == 2
    least = plan(request({"minimum": [{"gpu": "A100-80GB", "gpus": 3}]})).plan
    assert sum(r.instances * r.gpus_per_instance for r in least.rentals if r.gpu == "A100-80GB") >= 3
    capped = next(iter(rentals(free, "offer")))
    without = plan(request({"quotas": [{"offer": capped, "instances": 0}]})).plan
    assert capped not in rentals(without, "offer")


def test_a_services_own_share_takes_the_place_of_the_fleets():
    asked = request({"max_share": {"provider": "50%"}})
    asked["services"][0]["max_share"] = {"provider": "100%"}
    assert plan(asked).plan.cost_usd_per_hour == plan(request()).plan.cost_usd_per_hour


def test_owned_machines_that_must_be_used_are_in_the_plan_even_if_dear():
    owned = {"gpu": "L4", "count": 4, "gpus_per_instance": 1, "region": "dc1", "price": "9 USD/h"}
    spare = plan(request(owned=[owned], markets=["on-demand", "owned"])).plan
    assert "owned" not in rentals(spare, "provider")
    used = plan(request(owned=[{**owned, "must_use": True}], markets=["on-demand", "owned"])).plan
    assert [rental.instances for rental in used.rentals if rental.provider == "owned"] == [4]


@pytest.mark.parametrize(
    ("constraints", "name"),
    [
        ({"max_providers": 1, "max_share": {"provider": "50%"}}, "providers <= 1"),
        ({"max_share": {"provider": "30%"}}, "share of one provider <= 30%"),
        ({"minimum": [{"gpu": "L4", "gpus": 9}], "available": {"L4": 4}}, "minimum L4 >= 9 GPUs"),
    ],
)
def test_a_rule_in_the_way_is_named(constraints, name):
    found = plan(request(constraints)).plan
    assert found.status == "infeasible"
    by_name = {conflict.requirement: conflict for conflict in found.conflicts}
    assert by_name[name].relaxed is not None


def test_wrong_rules_say_where():
    wrong = {
        "constraints.minimum[0]": {"minimum": [{"provider": "gpc", "gpus": 1}]},
        "constraints.change_cost": {"change_cost": {"start": "1 USD", "horizon": "1h"}},
        "constraints.max_offers": {"max_offers": 0},
        "constraints.max_share.provider": {"max_share": {"provider": "160%"}},
    }
    for field, constraints in wrong.items():
        with pytest.raises(InputError) as caught:
            plan(request(constraints))
        assert str(caught.value.where.field).startswith(field.split("[")[0])
    with pytest.raises(InputError, match="exactly one of gpus and instances"):
        plan(request({"minimum": [{"provider": "gcp"}]}))
    with pytest.raises(InputError, match="Mélange"):
        plan(REPO / "examples/melange.json", current="x.json")


def test_current_gives_a_rollout_and_a_price_to_changes(gpuplan, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(request()), encoding="utf-8")
    more = request({"change_cost": {"start": "3 USD", "stop": "1 USD", "horizon": "1h"}})
    more["services"][0]["workload"]["rate"] = "20 req/s"
    (tmp_path / "b.json").write_text(json.dumps(more), encoding="utf-8")
    now = tmp_path / "now.json"
    assert gpuplan("plan", tmp_path / "a.json", "-o", now).code == 0
    again = gpuplan("plan", tmp_path / "a.json", "--current", now, "--json").json
    assert (again["rollout"], again["change_usd_per_hour"]) == ([], None)
    changed = gpuplan("plan", tmp_path / "b.json", "--current", now, "-o", tmp_path / "next.json").out
    assert "Rollout" in changed
    assert "Changes:" in changed
    read = planner.read_plan(tmp_path / "next.json")
    assert read.change_usd_per_hour > 0
    assert {step.action for step in read.rollout} >= {"route", "stop"}
    assert f"--current {now}" in read.inputs["reproduce"]
    markdown = tmp_path / "next.md"
    assert gpuplan("plan", tmp_path / "b.json", "--current", now, "-o", markdown, "-o", tmp_path / "n.html").code == 0
    assert "### Rollout\n\n1. " in markdown.read_text(encoding="utf-8")
    assert "<h2>Rollout</h2>" in (tmp_path / "n.html").read_text(encoding="utf-8")
    assert gpuplan("explain", tmp_path / "next.json").code == 0
    free = {**more, "constraints": {}}
    assert plan(free).plan.cost_usd_per_hour <= read.cost_usd_per_hour + 1e-9
    in_request = plan({**more, "current": str(now)}).plan
    assert in_request.rollout == read.rollout


def test_a_current_plan_without_a_plan_is_refused(tmp_path):
    from planner.report.result import PlanResult

    found = plan(request({"budget": "0.01 USD/h"}))
    assert isinstance(found, PlanResult)
    found.save(tmp_path / "none.json")
    with pytest.raises(InputError, match="no plan that could run"):
        plan(request(), current=tmp_path / "none.json")


class TestSpot:
    MARKETS = ("on-demand", "spot")

    def spot(self, share=None, **catalog):
        constraints = {} if share is None else {"spot_share": {"max": share}}
        return plan(request(constraints, markets=list(self.MARKETS), **catalog)).plan

    def part(self, plan):
        return sum(item.rate_rps for item in plan.allocation if item.market == "spot") / plan.rate_rps

    def test_a_cap_on_spot_holds_and_a_tighter_one_never_costs_less(self):
        plans = [self.spot(share) for share in (None, "100%", "40%", "10%", "0%")]
        costs = [each.cost_usd_per_hour for each in plans]
        assert costs == sorted(costs)
        assert costs[0] == costs[1]
        assert costs[0] < costs[2]
        assert [self.part(each) <= share + 2e-6 for each, share in zip(plans[2:], (0.4, 0.1, 0.0), strict=True)] == [
            True
        ] * 3
        assert plan(request()).plan.cost_usd_per_hour == costs[-1]

    def test_a_services_own_cap_takes_the_place_of_the_fleets(self):
        asked = request({"spot_share": {"max": "0%"}}, markets=list(self.MARKETS))
        asked["services"][0]["spot_share"] = {"max": "100%"}
        assert plan(asked).plan.cost_usd_per_hour == self.spot().cost_usd_per_hour

    def test_spot_capacity_counts_for_the_time_that_it_runs(self):
        whole, half = self.spot(), self.spot(spot_availability="50%")
        assert half.cost_usd_per_hour > whole.cost_usd_per_hour
        assert any("runs 0.5 of the time" in text for text in half.assumptions)
        assert not any("of the time" in text for text in whole.assumptions)
        only = {"markets": ["spot"], "gpus": {"include": ["L4"]}, "providers": ["gcp"], "regions": ["us-central1"]}
        replicas = [
            sum(item.replicas for item in plan(request(None, **only, spot_availability=part)).plan.allocation)
            for part in ("100%", "50%")
        ]
        assert replicas[1] == pytest.approx(2 * replicas[0], abs=1)

    def test_a_cap_in_the_way_is_named(self):
        found = plan(request({"spot_share": {"max": "25%"}}, markets=["spot"])).plan
        assert found.status == "infeasible"
        (conflict,) = [item for item in found.conflicts if item.requirement == "share of spot <= 25%"]
        assert conflict.relaxed == 1.0


def test_a_fleet_that_survives_the_loss_of_a_provider_or_a_spot_pool():
    free = plan(request()).plan
    spread = plan(request({"survive": ["provider"]})).plan
    assert rentals(spread, "provider") == {"gcp", "aws"}
    assert spread.cost_usd_per_hour > free.cost_usd_per_hour
    markets = {"markets": ["on-demand", "spot"]}
    pools = plan(request({"survive": ["spot-pool"]}, **markets)).plan
    assert plan(request(**markets)).plan.cost_usd_per_hour < pools.cost_usd_per_hour <= free.cost_usd_per_hour
    alone = plan(request({"survive": ["provider"]}, providers=["gcp"])).plan
    assert alone.status == "infeasible"
    assert "survive provider" in {conflict.requirement for conflict in alone.conflicts}
