"""Mélange's config, end to end. Known answers: Griggs et al. (arXiv 2404.14527), the example of their repository."""

from __future__ import annotations

import json

import pytest
from tests_support import REPO

import planner

EXAMPLE = REPO / "examples" / "melange.json"
SERVICES = REPO / "examples" / "melange_services.json"


def counts(plan):
    return {allocation.offer: allocation.replicas for allocation in plan.allocation}


def test_sliced_reproduces_the_published_answer():
    plan = planner.plan(EXAMPLE, assignment="sliced").plan
    assert plan.cost_usd_per_hour == pytest.approx(6.70, abs=1e-9)
    assert counts(plan) == {"A10G": 3, "A100-80GB": 1}
    assert plan.bound_usd_per_hour == pytest.approx(6.70, rel=1e-4)


def test_fractional_is_cheaper_and_tight():
    plan = planner.plan(EXAMPLE).plan
    assert plan.cost_usd_per_hour == pytest.approx(4.68, abs=1e-9)
    assert counts(plan) == {"A10G": 1, "A100-80GB": 1}
    assert [allocation.utilization for allocation in plan.allocation] == pytest.approx([1.0, 1.0], abs=1e-9)
    assert {"capacity A10G", "capacity A100-80GB"} == set(plan.binding)


def test_the_saving_is_against_the_best_single_type():
    plan = planner.plan(EXAMPLE).plan
    by_gpu = {baseline.offer: baseline for baseline in plan.baselines}
    assert (by_gpu["A100-80GB"].replicas, by_gpu["A100-80GB"].cost_usd_per_hour) == (2, pytest.approx(7.34))
    assert by_gpu["A10G"].cost_usd_per_hour == pytest.approx(12.12)
    assert plan.savings_vs_best_single == pytest.approx(1 - 4.68 / 7.34)


def test_buckets_known_by_position_carry_row_and_column(gpuplan):
    document = gpuplan("plan", EXAMPLE, "--json").json
    routes = document["routing"]
    assert [(route["row"], route["column"]) for route in routes] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {route["service"] for route in routes} == {"default"}
    assert all(route["input_tokens"] is None and route["output_tokens"] is None for route in routes)
    assert [sum(route["weights"].values()) for route in routes] == pytest.approx([1.0] * 4)


def test_several_services_share_replicas_budget_and_power(gpuplan):
    document = gpuplan("plan", SERVICES, "--json").json
    assert document["status"] == "optimal"
    assert {row["service"] for row in document["allocation"]} == {"chat", "search"}
    assert sum(row["power_w"] for row in document["allocation"]) <= 3000
    assert document["cost_usd_per_hour"] <= 20
    assert sum(row["replicas"] for row in document["allocation"] if row["offer"] == "A10G") <= 4


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [("budget_usd_per_hour", 5.0, "budget"), ("power_budget_w", 700.0, "power")],
)
def test_the_smallest_relaxation_of_a_limit_makes_it_feasible_and_less_does_not(key, value, name):
    config = {**json.loads(SERVICES.read_text(encoding="utf-8")), key: value}
    plan = planner.plan(config).plan
    assert plan.status == "infeasible"
    assert plan.allocation == ()
    (conflict,) = [conflict for conflict in plan.conflicts if conflict.requirement.startswith(name)]
    assert conflict.relaxed is not None
    assert planner.plan({**config, key: conflict.relaxed}).plan.status == "optimal"
    assert planner.plan({**config, key: conflict.relaxed * 0.99}).plan.status == "infeasible"


def test_the_request_is_not_changed():
    config = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    planner.plan(config)
    assert config == json.loads(EXAMPLE.read_text(encoding="utf-8"))


def test_yaml_and_json_say_the_same(gpuplan, tmp_path):
    from ruamel.yaml import YAML

    path = tmp_path / "melange.yaml"
    with path.open("w", encoding="utf-8") as stream:
        YAML().dump(json.loads(EXAMPLE.read_text(encoding="utf-8")), stream)
    as_json, as_yaml = (gpuplan("plan", request, "--json").json for request in (EXAMPLE, path))
    for document in (as_json, as_yaml):
        del document["solver"]["seconds"], document["inputs"]
    assert as_json == as_yaml


@pytest.mark.parametrize(("key", "name"), [("budget_usd_per_hour", "budget")])
def test_ways_out_of_a_sliced_request_are_for_slices(key, name):
    config = {**json.loads(EXAMPLE.read_text(encoding="utf-8")), key: 4.68}  # enough for shares, not for slices
    assert planner.plan(config).plan.status == "optimal"
    plan = planner.plan(config, assignment="sliced").plan
    assert plan.status == "infeasible"
    (conflict,) = plan.conflicts
    assert (conflict.requirement.split(" ")[0], conflict.relaxed) == (name, pytest.approx(6.70))
    assert planner.plan({**config, key: conflict.relaxed}, assignment="sliced").plan.status == "optimal"


def test_a_slice_factor_without_slices_is_refused():
    with pytest.raises(planner.InputError, match="slices"):
        planner.plan(EXAMPLE, slice_factor=2)
