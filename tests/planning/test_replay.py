"""`gpuplan simulate`: plans replayed on their own traffic, on more of it, and what cannot be replayed."""

import json
import shutil

import numpy as np
import pytest
from conftest import AS_OF, REPO
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.plan import Route
from planner.simulate.requests import rows_of

REQUESTS = ("--requests", "6000")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two plans of the same service: for the trace's mean rate, and for its busiest minutes."""
    from planner.cli.main import run

    at = tmp_path_factory.mktemp("replay")
    for name in ("request", "busy_minutes", "two_services"):
        shutil.copy(REPO / "examples" / f"{name}.yaml", at)
        plan = ["plan", str(at / f"{name}.yaml"), "-o", str(at / f"{name}.json"), "--no-verify"]
        assert run([*plan, "--as-of", AS_OF, "-q"]) in {0, 4}
    shutil.copy(REPO / "examples" / "melange.json", at / "table.json")
    assert run(["plan", str(at / "table.json"), "-o", str(at / "melange.json"), "--as-of", AS_OF, "-q"]) == 0
    return at


def test_a_plan_for_the_mean_rate_misses_and_one_for_the_busy_minutes_holds(gpuplan, folder):
    missed = gpuplan("simulate", str(folder / "request.json"), "--json")
    assert missed.code == 5
    assert not all(slo["met"] for slo in missed.json["services"]["chat"]["slo"])
    held = gpuplan("simulate", str(folder / "busy_minutes.json"), "--json")
    assert held.code == 0
    assert all(slo["met"] for slo in held.json["services"]["chat"]["slo"])
    assert held.json["services"]["chat"]["attainment"] > 0.95


def test_the_answer_has_the_fields_that_scripts_read(gpuplan, folder):
    found = gpuplan("simulate", str(folder / "busy_minutes.json"), "--json", *REQUESTS).json
    assert set(found) == {
        "requests", "replications", "met", "services", "phases", "utilization", "pools", "replicas_lost", "notes",
        "events", "seconds",
    }  # fmt: skip
    chat = found["services"]["chat"]
    assert chat["slo"][0].keys() >= {"metric", "statistic", "bound_s", "simulated_s", "met"}
    assert (chat["slo"][0]["metric"], chat["slo"][0]["statistic"], chat["slo"][0]["bound_s"]) == ("ttft", "p99", 2.0)
    assert found["requests"] == 6000
    assert chat["requests"] + chat["unanswered"] == pytest.approx(6000 * 0.95, rel=0.05)


def test_more_load_is_worse_and_little_load_is_as_fast_as_it_gets(gpuplan, folder):
    ran = [
        gpuplan("simulate", str(folder / "busy_minutes.json"), "--json", *REQUESTS, "--load", str(load)).json
        for load in (0.1, 1, 3)
    ]
    ttft, tpot = ([found["services"]["chat"]["slo"][i]["simulated_s"] for found in ran] for i in (0, 1))
    assert ttft == sorted(ttft)
    assert tpot == sorted(tpot)
    assert not ran[2]["services"]["chat"]["slo"][1]["met"]


def test_every_service_of_a_plan_has_its_own_outcome(gpuplan, folder):
    found = gpuplan("simulate", str(folder / "two_services.json"), "--json", *REQUESTS).json
    request = (folder / "two_services.yaml").read_text()
    assert all(f"name: {name}" in request for name in found["services"])
    assert len(found["services"]) == 2
    assert sum(item["requests"] for item in found["services"].values()) == pytest.approx(
        found["requests"] * 0.95, rel=0.05
    )


def test_exact_and_fast_say_the_same_and_a_seed_repeats_itself(gpuplan, folder):
    plan = str(folder / "busy_minutes.json")
    ran = [
        gpuplan("simulate", plan, "--json", "--requests", "3000", *more).json
        for more in ((), ("--exact",), (), ("--policy", "weighted-random", "--seed", "1"))
    ]
    answers = [[slo["simulated_s"] for slo in found["services"]["chat"]["slo"]] for found in ran]
    assert answers[0] == pytest.approx(answers[1], rel=1e-6)
    assert answers[0] == answers[2]
    assert answers[0] != answers[3]
    assert ran[1]["events"] > 2 * ran[0]["events"]


def test_a_loss_shows_in_the_phase_in_which_it_happens(gpuplan, folder):
    event = "60s-90s: lose provider aws"
    found = gpuplan("simulate", str(folder / "busy_minutes.json"), "--json", *REQUESTS, "--event", event).json
    attainment = [phase["attainment"]["chat"] for phase in found["phases"]]
    assert [phase["events"] for phase in found["phases"]] == [[], ["lose provider aws"], []]
    assert attainment[0] > 0.8  # those under way when it happens start over
    assert attainment[1] < 0.05


def test_another_trace_and_an_output_file(gpuplan, folder):
    target = folder / "replay.json"
    ran = gpuplan(
        "simulate",
        str(folder / "busy_minutes.json"),
        "--trace",
        "bundled:azure_code_2023",
        "-o",
        str(target),
        *REQUESTS,
    )
    assert "ttft p99 <= 2 s" in ran.out
    own = gpuplan("simulate", str(folder / "busy_minutes.json"), "--json", *REQUESTS).json
    assert json.loads(target.read_text())["services"] != own["services"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["request.json", "--load", "0"], "cannot be multiplied by 0"),
        (["request.json", "--policy", "fastest"], "'fastest' is not a router"),
        (["request.json", "--trace", "nobody=bundled:azure_code_2023"], "no service 'nobody'"),
        (["two_services.json", "--trace", "bundled:azure_code_2023"], "Which service"),
        (["request.json", "--trace", "missing.csv"], "missing.csv"),
        (["request.json", "-o", "answer.csv"], "'.csv' names no format"),
        (["request.json", "--event", "1s-2s: lose region nowhere"], "nothing in region 'nowhere'"),
        (["melange.json"], "throughputs alone"),
        (["nothing.json"], "no such file"),
    ],
)
def test_what_cannot_be_replayed_is_told(gpuplan, folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    ran = gpuplan("simulate", *arguments)
    assert ran.code == 2
    assert words in ran.err
    assert "Traceback" not in ran.err


def route(inputs, outputs, row, column):
    return Route(
        service="s", input_tokens=inputs, output_tokens=outputs, row=row, column=column, rate_rps=1.0, weights={}
    )


@given(
    sizes=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=20),
)
def test_a_request_takes_the_route_of_its_size_or_the_nearest(sizes):
    edges = [(0, 100), (100, 1000), (1000, 4000)]
    routes = [route(i, o, r, c) for r, i in enumerate(edges) for c, o in enumerate(edges) if (r, c) != (2, 2)]
    rows = rows_of(routes, "s", np.array([i for i, _ in sizes]), np.array([o for _, o in sizes]))
    for (inputs, outputs), row in zip(sizes, rows.tolist(), strict=True):
        fits = [
            k
            for k, item in enumerate(routes)
            if item.input_tokens[0] <= inputs < item.input_tokens[1]
            and item.output_tokens[0] <= outputs < item.output_tokens[1]
        ]
        if fits:
            assert row == fits[0]
    far = rows_of(routes, "s", np.array([50, 100_000]), np.array([100_000, 50]))
    assert [(routes[k].row, routes[k].column) for k in far] == [(0, 2), (2, 0)]
