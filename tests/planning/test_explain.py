from __future__ import annotations

import json
import re

import pytest
from tests_support import REPO

from planner.domain.problem import Limit, Resource
from planner.planning.explain import limit_step

AS_OF = "2026-11-21"


@pytest.fixture
def planned(gpuplan, tmp_path):
    """Plan a Mélange config with the given changes and return plan.json's path."""

    def plan(**changes):
        config = {**json.loads((REPO / "examples/melange_services.json").read_text(encoding="utf-8")), **changes}
        request = tmp_path / "request.json"
        request.write_text(json.dumps(config), encoding="utf-8")
        path = tmp_path / "plan.json"
        gpuplan("plan", request, "-o", path, "--force")
        return path

    return plan


def test_a_limit_that_binds_has_its_price(gpuplan, tmp_path):
    config = {
        "gpu_info": {
            "hungry": {"cost": 1, "power_w": 1000, "tputs": [[2]]},
            "lean": {"cost": 3, "power_w": 300, "tputs": [[2]]},
        },
        "workload_distribution": [[1]],
        "total_request_rate": 4,
        "power_budget_w": 1300,
        "budget_usd_per_hour": 100,
    }
    request, path = tmp_path / "request.json", tmp_path / "plan.json"
    request.write_text(json.dumps(config), encoding="utf-8")
    gpuplan("plan", request, "-o", path)
    prices = {
        price["requirement"]: price["saving_usd_per_hour"]
        for price in gpuplan("explain", path, "--json").json["limits"]
    }
    assert prices["power"] == pytest.approx(4.0 - 2.0)  # one of each against two hungry ones
    assert prices["budget"] == pytest.approx(0.0)


def test_a_limit_is_priced_by_a_step_as_well(gpuplan, tmp_path):
    config = {
        "gpu_info": {
            "hungry": {"cost": 1, "power_w": 1000, "tputs": [[2]]},
            "lean": {"cost": 3, "power_w": 300, "tputs": [[2]]},
        },
        "workload_distribution": [[1]],
        "total_request_rate": 4,
    }
    request, path = tmp_path / "request.json", tmp_path / "plan.json"
    for watts, saving, words in (
        (1900, 2.0, "With 190 W more it would be 2.00 USD/h (1,460 a month) cheaper."),
        (1500, 0.0, "150 W more would change nothing."),
    ):
        request.write_text(json.dumps(config | {"power_budget_w": watts}), encoding="utf-8")
        gpuplan("plan", request, "-o", path, "--force")
        (price,) = gpuplan("explain", path, "--json").json["limits"]
        assert price["step_saving_usd_per_hour"] == pytest.approx(saving)
        assert price["sentence"].endswith(words)


@pytest.mark.parametrize(
    ("resource", "bound", "step"),
    [
        ("watts", 40_000.0, 10_000.0),
        ("watts", 3_000.0, 300.0),
        ("gpus", 4.0, 8.0),
        ("instances", 3.0, 1.0),
        ("usd_per_hour", 250.0, 25.0),
        ("vcpus", 96.0, 9.6),
    ],
)
def test_the_step_of_a_limit(resource, bound, step):
    assert limit_step(Limit(name="l", resource=Resource(resource), bound=bound)) == pytest.approx(step)


def test_objectives_have_a_price_on_both_sides(gpuplan, tmp_path):
    request = {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "meta-llama/Llama-3.1-8B",
                "workload": {"constant": {"input_tokens": 800, "output_tokens": 250}, "rate": "200 req/s"},
                "slo": ["tpot mean <= 12ms"],
            }
        ],
        "catalog": {"providers": ["aws"], "gpus": {"include": ["L4", "L40S", "H100-80GB"]}},
    }
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    costs = {}
    for bound in ("18ms", "12ms", "8ms"):
        request["services"][0]["slo"] = [f"tpot mean <= {bound}"]
        (tmp_path / f"{bound}.json").write_text(json.dumps(request), encoding="utf-8")
        path = tmp_path / f"plan-{bound}.json"
        gpuplan("plan", tmp_path / f"{bound}.json", "-o", path)
        costs[bound] = json.loads(path.read_text(encoding="utf-8"))["cost_usd_per_hour"]
    (price,) = gpuplan("explain", tmp_path / "plan-12ms.json", "--json").json["objectives"]
    assert price["saving_usd_per_hour"] == pytest.approx(costs["12ms"] - costs["18ms"], abs=0.02)
    assert price["step_saving_usd_per_hour"] == pytest.approx(costs["12ms"] - costs["8ms"], abs=0.02)
    assert costs["18ms"] < costs["12ms"] < costs["8ms"]
    assert "instead of 12 ms the plan would be" in price["sentence"]
    assert "with 8 ms it would be" in price["sentence"]


def test_a_plan_for_another_objective_is_explained_in_it(gpuplan, tmp_path):
    text = (REPO / "examples/least_power.yaml").read_text(encoding="utf-8").replace("cost_cap: 40", "cost_cap: 34")
    (tmp_path / "request.yaml").write_text(text, encoding="utf-8")
    gpuplan("plan", tmp_path / "request.yaml", "-o", tmp_path / "plan.json")
    explained = gpuplan("explain", tmp_path / "plan.json", "--gpu", "L4").out
    told = re.search(
        r"Without the limit 'cost cap' the plan would come to (\S+) instead of (\S+) kW in power",
        " ".join(explained.split()),
    )
    assert told is not None
    assert float(told[1]) < float(told[2])
    assert "L4: what it would cost is only told" in explained


def test_why_not_a_gpu_says_what_it_would_add(gpuplan, tmp_path):
    config = {
        "gpu_info": {"cheap": {"cost": 1, "tputs": [[2]]}, "dear": {"cost": 5, "tputs": [[2]]}},
        "workload_distribution": [[1]],
        "total_request_rate": 4,
    }
    request, path = tmp_path / "request.json", tmp_path / "plan.json"
    request.write_text(json.dumps(config), encoding="utf-8")
    gpuplan("plan", request, "-o", path)
    (reason,) = gpuplan("explain", path, "--gpu", "dear", "--json").json["gpus"]
    assert reason["extra_usd_per_hour"] == pytest.approx(4.0)  # one dear replica instead of one cheap one
    assert "dear" in reason["sentence"]


def test_an_infeasible_plan_is_explained_by_its_ways_out(planned, gpuplan):
    path = planned(budget_usd_per_hour=1.0)
    ran = gpuplan("explain", path)
    assert ran.code == 0
    assert "budget" in ran.out


def test_a_trace_that_changed_is_refused(gpuplan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"2023-11-16 18:15:{second:02d}.000,500,100\n" for second in range(1, 60))
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows, encoding="utf-8")
    request = {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "meta-llama/Llama-3.1-8B",
                "workload": {"trace": "trace.csv"},
                "slo": ["ttft p99 <= 2s"],
            }
        ],
        "catalog": {"providers": ["gcp"], "gpus": {"include": ["L4"]}},
    }
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    assert gpuplan("plan", "request.json", "-o", "plan.json", "--as-of", AS_OF).code == 0
    explained = gpuplan("explain", "plan.json", "--json")
    assert explained.code == 0, explained.err
    assert len(explained.json["objectives"]) == 1
    trace.write_text(trace.read_text(encoding="utf-8").replace(",500,", ",600,"), encoding="utf-8")
    refused = gpuplan("explain", "plan.json")
    assert refused.code == 2
    assert "trace.csv has changed" in refused.err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (lambda plan: plan["inputs"].update(as_of="yesterday"), "inputs.as_of"),
        (lambda plan: plan["inputs"].update(slice_factor="many"), "inputs.slice_factor"),
        (lambda plan: plan["inputs"].update(request_path=5), "inputs.request_path"),
        (lambda plan: plan["inputs"].update(files=3), "inputs.files"),
        (lambda plan: plan["inputs"].update(request=[1]), "inputs.request"),
        (lambda plan: plan["inputs"].pop("request"), "does not carry its request"),
        (lambda plan: plan["inputs"]["request"].update(total_request_rate=300), "does not fit its request"),
        (lambda plan: plan.update(cost_usd_per_hour=1.0), "does not fit its request"),
        (lambda plan: plan["inputs"]["request"]["gpu_info"].pop("A10G"), "does not fit its request"),
    ],
    ids=range(9),
)
def test_a_plan_that_was_tampered_with_is_refused(changed, words, gpuplan, tmp_path):
    path = tmp_path / "plan.json"
    gpuplan("plan", REPO / "examples/melange.json", "-o", path)
    document = json.loads(path.read_text(encoding="utf-8"))
    changed(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    refused = gpuplan("explain", path)
    assert refused.code == 2, refused
    assert words in refused.err
    assert "Traceback" not in refused.err


def test_a_plan_is_explained_from_any_folder(gpuplan, tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    (project / "prices.csv").write_text(
        "provider,instance_type,region,market,gpu,gpu_count,price_usd_per_hour\nhome,box,here,on-demand,H100-80GB,1,2\n",
        encoding="utf-8",
    )
    request = {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "meta-llama/Llama-3.1-8B",
                "workload": {"constant": {"input_tokens": 500, "output_tokens": 100}, "rate": "5 req/s"},
                "slo": ["ttft p99 <= 2s"],
            }
        ],
        "catalog": {"bundled": False, "files": ["prices.csv"]},
    }
    (project / "request.json").write_text(json.dumps(request), encoding="utf-8")
    monkeypatch.chdir(project)
    assert gpuplan("plan", "request.json", "-o", "plan.json", "--as-of", AS_OF).code == 0
    for folder, plan in ((project, "plan.json"), (tmp_path, "project/plan.json"), (REPO, project / "plan.json")):
        monkeypatch.chdir(folder)
        explained = gpuplan("explain", plan, "--json")
        assert explained.code == 0, explained.err
    (project / "prices.csv").write_text(
        (project / "prices.csv").read_text(encoding="utf-8").replace(",2\n", ",200\n"), encoding="utf-8"
    )
    assert "prices.csv has changed" in gpuplan("explain", project / "plan.json").err


def test_a_result_explains_without_a_file():
    import planner

    explanation = planner.explain(planner.plan(REPO / "examples/melange.json"))
    assert explanation.cost_usd_per_hour == pytest.approx(4.68)
