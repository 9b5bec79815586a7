"""`disaggregate` in a PlanRequest, end to end."""

from __future__ import annotations

import pytest
from tests_support import REPO

import planner
from planner.domain.disaggregation import Role
from planner.errors import InputError
from planner.planning.answer import plan
from planner.report.disaggregation import disaggregation_text


def request(disaggregate="allowed", *, kv_transfer="100 Gbit/s", slo=None, engine=None, constraints=None, **service):
    engine = {"name": "vllm"} | ({"kv_transfer": kv_transfer} if kv_transfer else {}) | (engine or {})
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "meta-llama/Llama-3.1-8B",
                "workload": {"constant": {"input_tokens": 4000, "output_tokens": 300}, "rate": "30 req/s"},
                "slo": slo or ["ttft p99 <= 2s", "tpot p95 <= 20ms"],
                "engine": engine,
                "parallelism": {"tp": [1, 2]},
                "disaggregate": disaggregate,
                **service,
            }
        ],
        "catalog": {
            "providers": ["gcp"],
            "regions": ["us-central1"],
            "gpus": {"include": ["A100-80GB", "H100-80GB"]},
        },
        "constraints": constraints or {},
    }


def roles(found):
    return {row.role for row in found.allocation}


def test_pools_are_rented_where_they_pay_and_never_cost_more():
    never, allowed, only = (plan(request(word)).plan for word in ("never", "allowed", "only"))
    assert roles(never) == {Role.BOTH}
    assert roles(only) == {Role.PREFILL, Role.DECODE} <= roles(allowed)
    assert allowed.cost_usd_per_hour <= only.cost_usd_per_hour
    assert allowed.cost_usd_per_hour < never.cost_usd_per_hour
    assert never.assumptions == tuple(text for text in never.assumptions if "KV cache" not in text)
    assert any("80% of a ttft bound" in text for text in allowed.assumptions)
    (warning,) = (warning for warning in allowed.warnings if warning.code == "W406")
    assert warning.observed == sum(row.replicas for row in allowed.allocation if row.role is not Role.BOTH)
    assert not any(warning.code == "W406" for warning in never.warnings)
    assert {row.provenance.value for row in only.allocation} == {"estimated"}


def test_a_plan_says_how_pools_are_started_and_what_passes_between_them():
    result = plan(request("only"))
    found = result.plan
    sent = sum(row.transfer_bytes_per_s for row in found.allocation if row.role is Role.PREFILL)
    assert sent == pytest.approx(30 * 4000 * 131072)  # requests/s x tokens x 32 layers x 2 x 8 heads x 128 x 2 bytes
    assert sent == pytest.approx(sum(row.transfer_bytes_per_s for row in found.allocation if row.role is Role.DECODE))
    text = disaggregation_text(found)
    assert "15.7 GB/s of KV caches" in text
    assert '"kv_role":"kv_producer"' in text
    for document in (result.to_markdown(), result.to_html()):
        assert "kv_consumer" in document
        assert "decode TP" in document
    assert "prefill" in result.to_csv()
    assert "decode" in result.to_routing_csv()


def test_a_faster_network_never_costs_more_and_the_catalog_knows_some():
    costs = [plan(request("only", kv_transfer=rate)).plan.cost_usd_per_hour for rate in ("400 Gbit/s", "25 Gbit/s")]
    assert costs[0] <= costs[1]
    unknown = plan(request(kv_transfer=None)).plan
    assert any("taken to have 10 Gbit/s" in text for text in unknown.assumptions)
    asked = request(kv_transfer=None)
    asked["catalog"] = {"providers": ["aws"], "regions": ["us-east-1"], "gpus": {"include": ["H100-80GB"]}}
    known = plan(asked).plan
    assert any("at the network rate that the catalog states." in text for text in known.assumptions)


def test_an_e2e_objective_is_divided_between_the_stages():
    asked = {"slo": ["e2e p95 <= 12s"], "parallelism": {"tp": [1]}}
    found = plan(request("only", **asked)).plan
    assert roles(found) == {Role.PREFILL, Role.DECODE}
    assert plan(request("allowed", **asked)).plan.cost_usd_per_hour <= found.cost_usd_per_hour


@pytest.mark.parametrize(
    ("changes", "message", "where"),
    [
        ({"engine": {"name": "tgi"}}, "'tgi' is not known to serve prefill apart from decode", "disaggregate"),
        ({"kv_transfer": "100"}, "has no unit", "kv_transfer"),
        ({"kv_transfer": "0 Gbit/s"}, "more than zero", "kv_transfer"),
        ({"disaggregate": "sometimes"}, "never", "disaggregate"),
    ],
)
def test_wrong_requests_are_refused(changes, message, where):
    with pytest.raises(InputError, match=message) as error:
        plan(request(**changes))
    assert where in str(error.value.where)


def test_a_network_that_is_too_slow_is_named_with_the_ways_out():
    def at(gbit_per_s):
        asked = request("only", kv_transfer=f"{gbit_per_s} Gbit/s", parallelism={"tp": [1]}, slo=["ttft p99 <= 2s"])
        asked["catalog"]["gpus"] = {"include": ["H100-80GB"]}
        return plan(asked).plan

    found = at(1)
    assert found.status == "infeasible"
    by_name = {conflict.requirement: conflict for conflict in found.conflicts}
    assert "only -> allowed" in by_name["chat: disaggregate only"].suggestion
    network = by_name["network for KV caches"]
    assert [at(factor * network.relaxed).status for factor in (1.001, 0.9)] == ["optimal", "infeasible"]


def test_pools_go_with_limits_rules_and_a_horizon():
    free = plan(request("only")).plan
    capped = plan(request("only", constraints={"max_gpu_types": 1, "max_share": {"offer": "60%"}})).plan
    assert capped.cost_usd_per_hour >= free.cost_usd_per_hour
    assert len({row.gpu for row in capped.allocation}) == 1
    shed = plan(request("only", constraints={"budget": "40 USD/h", "shed": "allowed"})).plan
    assert shed.unserved
    assert shed.cost_usd_per_hour <= 40.0
    over_time = request("only")
    over_time["horizon"] = {"periods": "24h", "step": "6h"}
    over_time["services"][0]["workload"]["by_hour"] = "bundled:servegen_m_large"
    scheduled = plan(over_time).plan
    assert all(route.decode_weights for period in scheduled.schedule for route in period.routing)


def test_the_example_rents_pools_on_two_gpu_types():
    found = planner.plan(REPO / "examples" / "disaggregated.yaml", verify=False).plan
    assert {(row.gpu, row.role) for row in found.allocation} >= {
        ("H100-80GB", Role.PREFILL),
        ("A100-80GB", Role.DECODE),
    }
