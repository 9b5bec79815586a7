"""`gpuplan sweep` and `objective:` of a request, from the file to the answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests_support import copy_user_files

import planner
from planner.files.documents import parse_document
from planner.files.plan_schema import plan_from_document


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    copy_user_files(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_a_front_in_every_form(gpuplan):
    names = ["front.csv", "front.json", "front.html"]
    done = gpuplan("sweep", "examples/least_power.yaml", "--points", "5", *(f"-o{name}" for name in names))
    assert done.code == 0
    document = json.loads(Path("front.json").read_text(encoding="utf-8"))
    costs = [point["cost_usd_per_hour"] for point in document["points"]]
    watts = [point["power_kw"] for point in document["points"]]
    assert len(costs) >= 2
    assert costs == sorted(costs)
    assert watts == sorted(watts, reverse=True)
    for point in document["points"]:
        plan = plan_from_document(parse_document(json.dumps(point["plan"]).encode(), name="point"))
        assert plan.status == "optimal"
        assert [item.minimise for item in plan.objectives][:1] in (["cost"], ["power"])
    rows = Path("front.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "cost_usd_per_hour,power_kw,gpus,mean_power_kw,carbon_kg_per_hour,status,rent"
    assert len(rows) == len(costs) + 1
    page = Path("front.html").read_text(encoding="utf-8")
    assert page.count("<circle") == len(costs)
    assert "http://" not in page


def test_wrong_sweeps(gpuplan):
    request = "examples/least_power.yaml"
    assert gpuplan("sweep", request, "--pareto", "cost,speed").code == 2
    assert gpuplan("sweep", request, "--pareto", "cost,cost").code == 2
    assert gpuplan("sweep", request, "-o", "front.pdf").code == 2


def test_no_plan_is_explained(gpuplan):
    text = Path("examples/least_power.yaml").read_text(encoding="utf-8").replace("cost_cap: 40", "cost_cap: 4")
    Path("tight.yaml").write_text(text, encoding="utf-8")
    done = gpuplan("sweep", "tight.yaml")
    assert done.code == 3
    assert "cost cap" in done.out


@pytest.mark.parametrize(
    ("objective", "first"),
    [
        ("power", "power"),
        ({"minimise": {"cost": 1, "power": 2}}, "1 cost + 2 power"),
        ({"minimise": ["gpus", "power"], "within": "10%"}, "gpus"),
    ],
)
def test_the_objective_of_a_request(objective, first):
    request = example() | {"objective": objective}
    plan = planner.plan(request).plan
    assert plan.objectives[0].minimise == first
    assert plan.bound_usd_per_hour is None


def example():
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(Path("examples/least_power.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("cots", "not a measure; there are cost"),
        ({"minimise": {"cost": -1}}, "above zero"),
        ({"minimise": []}, "not a measure"),
        ({"minimize": "cost"}, "minimise"),
        ({"minimise": "power", "cost_cap": 5}, "has no unit"),
    ],
)
def test_wrong_objectives(objective, words):
    with pytest.raises(planner.InputError, match=words):
        planner.plan(example() | {"objective": objective})
