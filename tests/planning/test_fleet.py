"""A PlanRequest, end to end, on the bundled trace and prices."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
from tests_support import REPO, copy_user_files

import planner
from planner.domain.slo import Metric
from planner.errors import InputError
from planner.planning.answer import read_question, read_request

AS_OF = "2026-11-21"
REQUEST = REPO / "examples" / "request.yaml"


@pytest.fixture(scope="module")
def result():
    from datetime import date

    return planner.plan(REQUEST, today=date.fromisoformat(AS_OF), verify=False)


def small(**changes):
    """Return a request that plans in a fraction of a second."""
    request = {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "meta-llama/Llama-3.1-8B",
                "workload": {"constant": {"input_tokens": 500, "output_tokens": 100}, "rate": "20 req/s"},
                "slo": ["ttft p99 <= 2s", "tpot p95 <= 60ms"],
            }
        ],
        "catalog": {"providers": ["gcp"], "gpus": {"include": ["L4", "A100-80GB"]}},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = request
        for parent in parents:
            node = node[0].setdefault(parent, {}) if isinstance(node, list) else node.setdefault(parent, {})
        (node[0] if isinstance(node, list) else node)[last] = value
    return request


def cost(request):
    from datetime import date

    plan = planner.plan(request, today=date.fromisoformat(AS_OF)).plan
    assert plan.cost_usd_per_hour is not None, plan.conflicts
    return plan.cost_usd_per_hour


class TestTheMainJob:
    def test_it_is_proven_and_serves_everything(self, result):
        plan = result.plan
        assert plan.status == "optimal"
        assert plan.gap <= 1e-4
        assert plan.rate_rps == pytest.approx(30.0)
        assert sum(route.rate_rps for route in plan.routing) == pytest.approx(30.0)
        for route in plan.routing:
            assert sum(route.weights.values()) == pytest.approx(1.0)
        assert all(0 < allocation.utilization <= 1 / 1.1 + 1e-9 for allocation in plan.allocation)

    def test_the_costs_add_up_from_the_catalogs_prices(self, result):
        from planner.catalog.offers import load_offers

        prices = {offer.name: offer.price_usd_per_hour for offer in load_offers()}
        plan = result.plan
        rented = sum(rental.instances * prices[rental.offer] for rental in plan.rentals)
        assert plan.cost_usd_per_hour == pytest.approx(rented)
        assert sum(allocation.cost_usd_per_hour for allocation in plan.allocation) == pytest.approx(rented)

    def test_it_uses_only_what_was_asked_for(self, result):
        assert {rental.provider for rental in result.plan.rentals} <= {"aws", "gcp", "azure"}
        assert {rental.market for rental in result.plan.rentals} == {"on-demand"}

    def test_every_line_says_where_its_throughput_comes_from(self, result):
        for allocation in result.plan.allocation:
            assert allocation.provenance in {"measured", "calibrated", "estimated"}
            assert allocation.provenance_note

    def test_it_never_costs_more_than_the_best_single_type(self, result):
        feasible = [baseline.cost_usd_per_hour for baseline in result.plan.baselines if baseline.feasible]
        assert result.plan.cost_usd_per_hour <= min(feasible) + 1e-9
        assert result.plan.savings_vs_best_single == pytest.approx(1 - result.plan.cost_usd_per_hour / min(feasible))

    def test_plan_json_matches_its_schema(self, result, gpuplan):
        schema = gpuplan("schema", "plan").json
        jsonschema.validate(result.to_document(), schema)


def test_reproduce_gives_the_same_plan(gpuplan, tmp_path, monkeypatch):
    copy_user_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert gpuplan("plan", "examples/request.yaml", "--no-verify", "-o", "plan.json").code == 0
    first = json.loads(Path("plan.json").read_text(encoding="utf-8"))
    words = shlex.split(first["inputs"]["reproduce"])
    assert words[0] == "gpuplan"
    again = gpuplan(*words[1:], "--json").json
    for document in (first, again):
        del document["solver"]["seconds"]
    assert again == first


def test_reproduce_says_every_option_that_changes_the_plan(gpuplan, tmp_path):
    options = [
        "--as-of",
        "2026-08-01",
        "--strict",
        "--time-limit",
        "50s",
        "--gap",
        "1%",
        "--seed",
        "3",
    ]
    path = tmp_path / "request.json"
    path.write_text(json.dumps(small(catalog__providers=["aws"], catalog__gpus={})), encoding="utf-8")
    made = gpuplan("plan", path, "--json", *options)
    assert made.code == 0, made.err
    words = shlex.split(made.json["inputs"]["reproduce"])
    assert words[:3] == ["gpuplan", "plan", str(path)]
    pairs = {words[index]: words[index + 1] for index in range(len(words) - 1) if words[index].startswith("--")}
    assert "--strict" in words
    for name, value in (
        ("--as-of", "2026-08-01"),
        ("--time-limit", "50s"),
        ("--gap", "1%"),
        ("--seed", "3"),
        ("--threads", "1"),
    ):
        assert pairs[name] == value


def test_a_request_that_is_no_file_has_no_command(gpuplan):
    assert planner.plan(small()).plan.inputs["reproduce"] is None


def test_json_to_stdout_is_one_document_however_it_is_asked_for(gpuplan, tmp_path):
    path = tmp_path / "request.json"
    path.write_text(json.dumps(small()), encoding="utf-8")
    assert gpuplan("plan", path, "--json", "-o", "-", "-o", tmp_path / "plan.csv").json["kind"] == "Plan"


def test_same_inputs_same_bytes(gpuplan):
    runs = [gpuplan("plan", REQUEST, "--no-verify", "--json", "--as-of", AS_OF).out for _ in range(2)]
    documents = [json.loads(run) for run in runs]
    for document in documents:
        del document["solver"]["seconds"]
    assert json.dumps(documents[0]) == json.dumps(documents[1])


class TestWhatChangesTheCost:
    def test_more_traffic_never_costs_less(self):
        assert cost(small()) <= cost(
            small(services__workload={**small()["services"][0]["workload"], "rate": "60 req/s"})
        )

    def test_a_looser_slo_never_costs_more(self):
        assert cost(small(services__slo=["ttft p99 <= 4s", "tpot p95 <= 120ms"])) <= cost(small())

    def test_more_headroom_never_costs_less(self):
        assert cost(small(constraints__headroom="0%")) <= cost(small(constraints__headroom="50%"))

    def test_more_offers_never_cost_more(self):
        assert cost(small(catalog__gpus={})) <= cost(small())
        assert cost(small(catalog={})) <= cost(small(catalog__gpus={}))

    def test_a_competing_precision_never_costs_more(self):
        assert cost(small(services__precision=["bf16", "fp8"])) <= cost(small())

    def test_owned_machines_cost_their_price_per_gpu_and_come_in_whole_machines(self):
        def owned(count):
            machines = {"gpu": "A100-80GB", "count": count, "gpus_per_instance": 4, "region": "dc1", "price": "1 USD/h"}
            workload = {"constant": {"input_tokens": 500, "output_tokens": 100}, "rate": "100 req/s"}
            return small(catalog={"bundled": False, "owned": [machines]}, services__workload=workload)

        plan = planner.plan(owned(40)).plan
        (rental,) = plan.rentals
        assert rental.cost_usd_per_hour == pytest.approx(4.0 * rental.instances)
        (conflict,) = planner.plan(owned(4)).plan.conflicts[:1]
        assert conflict.current == 1  # one machine of 4 GPUs, not 4 machines
        assert conflict.relaxed == rental.instances

    def test_available_counts_gpus_and_not_machines(self):
        machines = {"gpu": "A100-80GB", "count": 80, "gpus_per_instance": 8, "region": "dc1", "price": "1 USD/h"}
        catalog = {"bundled": False, "owned": [machines]}
        assert planner.plan(small(catalog=catalog, constraints={"available": {"A100-80GB": 8}})).plan.rentals
        assert planner.plan(small(catalog=catalog, constraints={"available": {"A100-80GB": 7}})).plan.conflicts

    def test_owned_machines_at_no_cost_are_used_first(self):
        owned = [{"gpu": "H100-80GB", "count": 8, "region": "dc1", "price": "0 USD/h"}]
        assert cost(small(catalog={"owned": owned})) == pytest.approx(0.0)


def test_a_replica_never_spans_instances_and_pays_for_whole_ones():
    request = small(services__model="meta-llama/Llama-3.1-70B", catalog={"providers": ["gcp"]})
    plan = planner.plan(request).plan
    for allocation in plan.allocation:
        assert allocation.gpus_per_replica == allocation.tensor_parallel * allocation.pipeline_parallel
    for rental in plan.rentals:
        used = sum(a.replicas * a.gpus_per_replica for a in plan.allocation if a.offer == rental.offer)
        assert used <= rental.instances * rental.gpus_per_instance
        assert all(a.gpus_per_replica <= rental.gpus_per_instance for a in plan.allocation if a.offer == rental.offer)


def test_measured_profiles_are_used_where_they_match_and_said():
    workload = {"constant": {"input_tokens": 1000, "output_tokens": 1000}, "rate": "20 req/s"}
    request = small(services__engine={"name": "tensorrt-llm"}, services__workload=workload)
    request["catalog"] = {"gpus": {"include": ["H100-80GB", "A100-80GB"]}}
    used = {allocation.provenance for allocation in planner.plan(request).plan.allocation}
    assert used <= {"measured", "calibrated"}
    only_estimates = planner.plan({**request, "profiles": {"prefer": "estimated"}}).plan
    assert {allocation.provenance for allocation in only_estimates.allocation} == {"estimated"}


@pytest.mark.parametrize(
    ("constraints", "name"),
    [
        ({"budget": "1 USD/h"}, "budget"),
        ({"power": "100W"}, "power fleet"),
        ({"available": {"L4": 1, "A100-80GB": 0}}, "available L4"),
        ({"quotas": [{"provider": "gcp", "gpus": 1, "gpu": "L4"}], "available": {"A100-80GB": 0}}, "quota gcp L4 gpus"),
    ],
)
def test_infeasible_limits_name_a_relaxation_that_works(constraints, name):
    plan = planner.plan(small(constraints=constraints)).plan
    assert plan.status == "infeasible"
    by_name = {conflict.requirement.split(" <=")[0]: conflict for conflict in plan.conflicts}
    assert name in by_name, plan.conflicts
    assert by_name[name].relaxed > by_name[name].current


def test_two_objectives_that_are_both_impossible_are_relaxed_together():
    request = small(services__slo=["ttft p99 <= 1ms", "tpot p95 <= 0.1ms"])
    (conflict,) = [found for found in planner.plan(request).plan.conflicts if "objectives" in found.requirement]
    factor = conflict.relaxed
    for scale, status in ((factor, "optimal"), (factor * 0.95, "infeasible")):
        bounds = [f"ttft p99 <= {1e-3 * scale}s", f"tpot p95 <= {1e-4 * scale}s"]
        assert planner.plan(small(services__slo=bounds)).plan.status == status


def test_the_second_bound_of_a_way_out_is_at_a_fair_price():
    plan = planner.plan(small(services__slo=["ttft p99 <= 1ms", "tpot p95 <= 60ms"])).plan
    (conflict,) = [conflict for conflict in plan.conflicts if "ttft" in conflict.requirement]
    costs = [float(cost.replace(",", "")) for cost in re.findall(r"about ([0-9,.]+) USD/h", conflict.suggestion)]
    without = cost(small(services__slo=["ttft p99 <= 1h", "tpot p95 <= 60ms"]))
    assert len(costs) == 2
    assert costs[1] <= 1.6 * without < costs[0]


def test_an_impossible_slo_names_the_bound_that_is_possible():
    plan = planner.plan(small(services__slo=["ttft p99 <= 1ms", "tpot p95 <= 60ms"])).plan
    assert plan.status == "infeasible"
    (conflict,) = [conflict for conflict in plan.conflicts if "ttft" in conflict.requirement]
    bound_s = conflict.relaxed
    loosened = planner.plan(small(services__slo=[f"ttft p99 <= {bound_s}s", "tpot p95 <= 60ms"])).plan
    tightened = planner.plan(small(services__slo=[f"ttft p99 <= {bound_s * 0.95}s", "tpot p95 <= 60ms"])).plan
    assert loosened.status == "optimal"
    assert tightened.status == "infeasible"


def test_stale_prices_are_warned_of_and_refused_when_strict(gpuplan, tmp_path):
    path = tmp_path / "request.json"
    path.write_text(json.dumps(small(catalog__max_price_age="1d")), encoding="utf-8")
    warned = gpuplan("plan", path, "--json", "--as-of", AS_OF)
    assert warned.code == 0
    assert "W201" in {warning["code"] for warning in warned.json["warnings"]}
    for as_of, code in (("2026-08-04", 0), ("2026-08-05", 6)):  # one and two days after gcp's prices
        assert gpuplan("plan", path, "--json", "--as-of", as_of, "--strict").code == code
    strict = gpuplan("plan", path, "--json", "--as-of", AS_OF, "--strict")
    assert strict.code == 6
    assert "old" in json.loads(strict.err)["error"]["message"]


def test_a_users_own_offers_and_model(tmp_path):
    config = json.loads((REPO / "catalogs/models/meta-llama--Llama-3.1-8B.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 16}), encoding="utf-8")
    prices = "provider,instance_type,region,market,gpu,gpu_count,price_usd_per_hour\n"
    prices += "home,box,here,on-demand,L4,1,0.01\n"
    (tmp_path / "prices.csv").write_text(prices, encoding="utf-8")
    request = small(services__model="config.json", catalog={"bundled": False, "files": ["prices.csv"]})
    plan = planner.plan(request, base_dir=tmp_path).plan
    assert {rental.provider for rental in plan.rentals} == {"home"}


def test_offers_of_unknown_vcpus_are_left_out_of_a_vcpu_quota_and_counted(tmp_path):
    rows = ["provider,instance_type,region,market,gpu,gpu_count,price_usd_per_hour,vcpus"]
    rows += ["home,unknown,here,on-demand,H100-80GB,1,0.01,", "home,known,here,on-demand,H100-80GB,1,0.02,8"]
    (tmp_path / "prices.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    request = small(catalog={"bundled": False, "files": ["prices.csv"]}, constraints={"quotas": [{"vcpus": 800}]})
    plan = planner.plan(request, base_dir=tmp_path).plan
    assert {rental.instance_type for rental in plan.rentals} == {"known"}
    assert [warning.observed for warning in plan.warnings if warning.code == "W204"] == [1]


def test_an_engine_of_ones_own_needs_measurements(tmp_path):
    rows = ["model,gpu,gpu_count,tp,pp,engine,precision,input_tokens,output_tokens,load_kind,throughput_req_s"]
    rows += ["Llama-3.1-8B,L4,1,1,1,inhouse,bf16,500,100,offline_max,4"]
    (tmp_path / "mine.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    request = small(services__engine={"name": "InHouse"}, catalog__gpus={"include": ["L4"]})
    with pytest.raises(InputError, match=r"'InHouse' is not known.*profiles\.files") as caught:
        planner.plan(request)
    assert caught.value.where.field == "services[0].engine.name"
    for prefer in ("measured", "estimated"):
        profiles = {"prefer": prefer, "files": ["mine.csv"]}
        assert planner.plan({**request, "profiles": profiles}, base_dir=tmp_path).plan.status == "optimal"


def test_standard_input(gpuplan, monkeypatch):
    import io
    import sys

    text = json.dumps(small())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert gpuplan("plan", "-", "--json", "--as-of", AS_OF).json["status"] == "optimal"


def test_a_problem_with_another_bound_differs_only_in_that():
    from datetime import date

    document = read_request(small())
    question = read_question(document, base_dir=Path(), today=date.fromisoformat(AS_OF), strict=False)
    assert [relaxation.slo.metric for relaxation in question.relaxations] == [Metric.TTFT, Metric.TPOT]
    same = question.relaxations[0].problem_with_bound(2.0)
    for ours, theirs in zip(question.problem.options, same.options, strict=True):
        assert (ours.throughput_rps == theirs.throughput_rps).all()


def test_a_budget_that_holds_too_little_sheds_the_less_important_service(gpuplan, tmp_path, monkeypatch):
    copy_user_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = gpuplan("plan", "examples/priorities.yaml", "--json", "-o", "plan.json")
    assert done.code == 0
    plan = done.json
    assert {row["service"] for row in plan["unserved"]} == {"batch-summaries"}
    left = sum(row["rate_rps"] for row in plan["unserved"])
    assert plan["rate_rps"] + left == pytest.approx(70.0)
    [warning] = [item for item in plan["warnings"] if item["code"] == "W401"]
    assert "To serve all: budget 30.00 -> " in warning["message"]
    explained = " ".join(gpuplan("explain", "plan.json").out.split())
    assert f"Without the limit 'budget' the plan would serve {left:.4g} req/s more and be " in explained
    assert "With 3.00 USD/h more it would serve " in explained
    assert (
        f"Unserved: batch-summaries {left:.3g} of 30 req/s (priority 2)"
        in gpuplan("plan", "examples/priorities.yaml").out
    )


def test_parameters_of_one_s_own_replace_the_bundled_ones(tmp_path):
    text = "parameter,scope,value,unit,source,reason\nbandwidth_fraction,L4,0.2,,ours,\n"
    (tmp_path / "params.csv").write_text(text)
    request = small(catalog={"providers": ["gcp"], "gpus": {"include": ["L4"]}})
    bundled = planner.plan(request, verify=False).plan
    slower = planner.plan(request | {"profiles": {"parameters": "params.csv"}}, base_dir=tmp_path, verify=True).plan
    assert slower.cost_usd_per_hour > bundled.cost_usd_per_hour
    assert slower.proof.holds  # the replay's steps are as slow
    assert "params.csv" in slower.inputs["files"]
    (tmp_path / "params.csv").write_text(text.replace("bandwidth", "bandwith"))
    with pytest.raises(InputError, match="There is no parameter 'bandwith_fraction'"):
        planner.plan(request | {"profiles": {"parameters": "params.csv"}}, base_dir=tmp_path)
    with pytest.raises(InputError, match="Cannot read the parameters"):
        planner.plan(request | {"profiles": {"parameters": "none.csv"}}, base_dir=tmp_path)
