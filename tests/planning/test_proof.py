"""Planning until the replay holds: against all fleets of a small catalog, and what it promises."""

import itertools
import json
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

import planner
from planner.domain.proof import ProofEnd
from planner.errors import InputError
from planner.optimize import Assignment, SolverSettings, solve, verify_plan
from planner.optimize.fleets import chosen_fleet
from planner.planning import replay_traffic
from planner.planning.answer import answer, read_question, read_request
from planner.planning.proving import climb as loop
from planner.planning.proving.caps import with_found_caps
from planner.planning.proving.search import is_cheaper
from planner.planning.proving.verdict import judge
from planner.planning.replay import ReplaySettings, replay_of

TODAY = date(2026, 11, 21)
SETTINGS = SolverSettings(time_limit_s=600.0)
FREE = Assignment.fractional()
N_REQUESTS = 2000
OFFERS = """provider,instance_type,region,market,gpu,gpu_count,price_usd_per_hour,vcpus,ram_gib,as_of,available,source
acme,small,dc1,on-demand,L40S,1,1.90,16,128,2026-10-01,,contract 1
acme,large,dc1,on-demand,H100 SXM,1,5.00,16,128,2026-10-01,,contract 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two offers, a trace with bursts of five seconds, and one with the same requests and no bursts."""
    at = tmp_path_factory.mktemp("proof")
    (at / "offers.csv").write_text(OFFERS)
    rng = np.random.default_rng(3)
    rates = np.where(np.arange(16) % 8 == 3, 5.0, 1.0)
    stretch = np.sort(rng.choice(16, N_REQUESTS, p=rates / rates.sum()))
    arrivals = np.sort((stretch + rng.random(N_REQUESTS)) * 3.0)
    inputs = np.clip(rng.lognormal(6.0, 0.8, N_REQUESTS), 16, 4000).astype(int)
    outputs = np.clip(rng.lognormal(5.3, 0.5, N_REQUESTS), 4, 800).astype(int)
    for name, times in (("trace", arrivals), ("smooth", np.sort(rng.random(N_REQUESTS) * 48))):
        lines = [f"{t:.3f},{i},{o}" for t, i, o in zip(times, inputs, outputs, strict=True)]
        (at / f"{name}.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines]) + "\n")
    return at


def request(
    *, rate="40 req/s", slo=("ttft p99 <= 1s", "tpot p95 <= 60ms"), services=("chat",), trace="trace.csv", **given
):
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": name,
                "model": "meta-llama/Llama-3.1-8B",
                "parallelism": {"tp": [1]},
                "workload": {"trace": trace, "rate": rate, "grid": {"kind": "adaptive", "rows": 3, "columns": 2}},
                "slo": list(slo),
            }
            for name in services
        ],
        "catalog": {"bundled": False, "files": ["offers.csv"]},
        **given,
    }


def question_of(folder, **given):
    return read_question(read_request(request(**given)), base_dir=folder, today=TODAY, strict=False)


def planned(folder, *, verify=True, settings=SETTINGS, **given):
    return planner.plan(request(**given), base_dir=folder, today=TODAY, settings=settings, verify=verify).plan


@pytest.fixture(scope="module")
def proven(folder):
    return planned(folder)


def holds(question, plan):
    load = 1 + question.problem.headroom_fraction
    return judge(replay_of(question, plan, settings=ReplaySettings(load=load))).holds


def cheapest_by_trying_all(question, base, most):
    """Return the least cost of all fleets of up to `most` replicas of each option that hold, routed evenly."""
    options = [option for option in question.problem.options if (option.throughput_rps > 0).any()]
    prices = [option.offer.price_usd_per_hour for option in options]
    fleets = itertools.product(*(range(count + 1) for count in most))
    best = np.inf
    for counts in sorted(fleets, key=lambda counts: sum(map(lambda n, p: n * p, counts, prices))):
        if sum(n * p for n, p in zip(counts, prices, strict=True)) >= best:
            break
        names = {(option.service, option.offer.name): n for option, n in zip(options, counts, strict=True) if n}
        found = chosen_fleet(question.problem, base, names, settings=SETTINGS, assignment=FREE) if names else None
        if found is not None and holds(question, found.plan):
            best = found.plan.cost_usd_per_hour
    return best


@pytest.mark.parametrize(
    ("slo", "most"),
    [
        (("ttft p99 <= 1s", "tpot p95 <= 60ms"), (9, 5)),
        (("ttft p99 <= 3s", "tpot p95 <= 100ms"), (8, 4)),
        (("e2e mean <= 6s",), (8, 4)),
    ],
)
def test_it_is_within_one_replica_of_the_cheapest_of_all_fleets_that_hold(folder, slo, most):
    question = question_of(folder, slo=slo)
    plain = answer(question, settings=SETTINGS, assignment=FREE, verify=False)
    found = answer(question, settings=SETTINGS, assignment=FREE, verify=True)
    best = cheapest_by_trying_all(question, plain, most)
    assert np.isfinite(best)
    assert found.proof.holds
    assert holds(with_found_caps(question, found.proof), found)
    assert found.cost_usd_per_hour <= best + 1.90 + 1e-9


def test_what_the_proof_says_is_what_a_replay_of_the_plan_says(folder, proven):
    proof = proven.proof
    assert (proof.ended, proof.holds, proof.sure) == (ProofEnd.HELD, True, True)
    assert proof.load == pytest.approx(1.1)
    question = with_found_caps(question_of(folder), proof)
    found = judge(replay_of(question, proven, settings=ReplaySettings(load=proof.load)))
    assert [item.slo for service in found.services for item in service.objectives] == list(proof.slos)
    verify_plan(question.problem, proven)
    plain = planned(folder, verify=False)
    assert proof.unproven_usd_per_hour == plain.cost_usd_per_hour
    assert proof.extra_usd_per_hour == pytest.approx(proven.cost_usd_per_hour - plain.cost_usd_per_hour)
    assert proof.rounds[0].cost_usd_per_hour == plain.cost_usd_per_hour
    assert min(each.cost_usd_per_hour for each in proof.rounds if each.holds) == proven.cost_usd_per_hour
    assert proof.services[0].knee >= proof.load
    assert any("simulated" in text for text in proven.binding)


def test_without_an_instance_it_misses(folder, proven):
    question = with_found_caps(question_of(folder), proven.proof)
    replicas = {(item.service, item.option): item.replicas for item in proven.allocation}
    n_tried = 0
    for name in replicas:
        fewer = {key: count - (key == name) for key, count in replicas.items()}
        found = chosen_fleet(
            question.problem, proven, {k: n for k, n in fewer.items() if n}, settings=SETTINGS, assignment=FREE
        )
        if found is not None:
            n_tried += 1
            assert not holds(question, found.plan)
    assert proven.proof.removals == n_tried > 0


def test_the_bound_is_of_the_caps_that_were_found(folder, proven):
    question = with_found_caps(question_of(folder), proven.proof)
    least = solve(question.problem, settings=SETTINGS, assignment=FREE)
    assert proven.bound_usd_per_hour == pytest.approx(min(least.bound_usd_per_hour, proven.cost_usd_per_hour))
    assert proven.gap == pytest.approx(1 - proven.bound_usd_per_hour / proven.cost_usd_per_hour)


def test_it_loosens_where_the_throughput_is_stricter_than_the_objective(folder):
    """Every bucket by itself keeps p99; all requests together may be late elsewhere than in the slowest bucket."""
    given = {"slo": ("ttft p90 <= 150ms",), "trace": "smooth.csv"}
    plain, found = (planned(folder, verify=verify, **given) for verify in (False, True))
    assert found.cost_usd_per_hour < plain.cost_usd_per_hour
    assert found.proof.extra_usd_per_hour < 0
    assert max(cap.utilization_cap for cap in found.proof.caps) > 1
    assert found.proof.holds


def test_who_plans_for_a_peak_keeps_it(folder):
    def with_peak(verify):
        asked = request(slo=("ttft p90 <= 150ms",), trace="smooth.csv")
        del asked["services"][0]["workload"]["rate"]
        asked["services"][0]["workload"]["peak"] = "p99 of 5s"
        return planner.plan(asked, base_dir=folder, today=TODAY, settings=SETTINGS, verify=verify).plan

    plain, found = with_peak(False), with_peak(True)
    assert found.cost_usd_per_hour >= plain.cost_usd_per_hour
    assert all(item.utilization * 1.1 <= 1 + 1e-9 for item in found.allocation)


@pytest.mark.parametrize(
    "limits",
    [
        {"available": {"L40S": 3}},
        {"survive": ["largest 1 instances"]},
        {"spare_replicas": 1},
        {"minimum": [{"gpu": "H100-80GB", "gpus": 2}]},
    ],
)
def test_no_limit_is_broken_on_the_way_down(folder, limits):
    constraints = {"headroom": "10%", **limits}
    try:
        found = planned(folder, constraints=constraints)
    except InputError as error:
        pytest.fail(f"{error}")
    question = with_found_caps(question_of(folder, constraints=constraints), found.proof)
    verify_plan(question.problem, found)
    free = planned(folder)
    assert found.proof.holds
    assert found.cost_usd_per_hour >= free.cost_usd_per_hour - 1.90 - 1e-9


def test_a_service_whose_objective_no_load_meets_is_named(folder, gpuplan, tmp_path):
    for name in ("offers.csv", "trace.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    # A budget that the throughput keeps and the replay does not.
    plain = planned(folder, verify=False)
    asked = request(constraints={"budget": f"{plain.cost_usd_per_hour + 0.01} USD/h"})
    (tmp_path / "request.json").write_text(json.dumps(asked))
    ran = gpuplan("plan", str(tmp_path / "request.json"), "--json", "--as-of", "2026-11-21")
    assert ran.code == 5, ran.err
    assert ran.json["proof"]["ended"] == "missed"
    assert ran.json["proof"]["holds"] is False
    assert ran.json["cost_usd_per_hour"] <= plain.cost_usd_per_hour + 0.01
    warning = next(item for item in ran.json["warnings"] if item["code"] == "W410")
    assert warning["observed"] == "chat"
    assert "chat ttft p99" in warning["message"] or "chat tpot p95" in warning["message"]
    shown = gpuplan("plan", str(tmp_path / "request.json"), "--as-of", "2026-11-21")
    assert shown.code == 5
    assert "MISSED" in shown.out


def test_no_verify_is_the_plan_by_throughput(folder):
    question = question_of(folder)
    plain = planned(folder, verify=False)
    bare = solve(question.problem, settings=SETTINGS, assignment=FREE)
    assert plain.proof is None
    assert (plain.cost_usd_per_hour, plain.allocation, plain.routing) == (
        bare.cost_usd_per_hour,
        bare.allocation,
        bare.routing,
    )


def test_two_runs_give_the_same_bytes_and_the_document_reads_back(folder, proven, tmp_path):
    again = planned(folder)

    def text(plan):
        result = planner.PlanResult(replace(plan, solver=replace(plan.solver, seconds=0.0)), TODAY)
        return result.to_json()

    assert text(again) == text(proven)
    path = tmp_path / "plan.json"
    path.write_text(text(proven))
    assert text(planner.read_plan(path)) == text(proven)


def test_every_service_is_judged_by_itself(folder):
    found = planned(folder, services=("chat", "code"), rate="20 req/s")
    assert found.proof.holds
    assert [service.service for service in found.proof.services] == ["chat", "code"]
    assert {slo.service for slo in found.proof.slos} == {"chat", "code"}


def test_ctrl_c_keeps_the_best_until_then(folder, monkeypatch):
    proper = loop.learn_alone

    def interrupted(search, base):
        proper(search, base)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "learn_alone", interrupted)
    found = planned(folder)
    assert found.proof.ended is ProofEnd.INTERRUPTED
    assert found.proof.holds
    assert found.solver.termination == "interrupted"
    assert any(warning.code == "W411" for warning in found.warnings)
    monkeypatch.setattr(loop, "learn_alone", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    nothing = planned(folder)
    plain = planned(folder, verify=False)
    assert nothing.cost_usd_per_hour == plain.cost_usd_per_hour
    assert not nothing.proof.holds
    assert "no plan was found" in next(item.message for item in nothing.warnings if item.code == "W411")
    monkeypatch.setattr(loop.ProofSearch, "attempt", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    at_once = planned(folder)
    assert (at_once.proof, at_once.solver.termination) == (None, "interrupted")
    assert at_once.cost_usd_per_hour == plain.cost_usd_per_hour
    assert "not proven" in next(item.message for item in at_once.warnings if item.code == "W411")


def test_the_time_limit_stops_the_proof_and_is_told(folder, monkeypatch):
    monkeypatch.setattr(loop, "TIMES_THE_LIMIT", 0.001)
    found = planned(folder, settings=SolverSettings(time_limit_s=60.0))
    assert found.proof.ended is ProofEnd.TIME_LIMIT
    assert found.status == "feasible"
    assert any(warning.code == "W411" for warning in found.warnings)


def with_service(**fields):
    asked = request()
    asked["services"][0] |= fields
    return asked


KINDS = {
    "shed": request(constraints={"shed": "allowed", "budget": "9 USD/h"}),
    "schedule": request(rate="25 req/s", slo=("ttft p90 <= 1s",), horizon={"periods": "2h", "step": "1h"}),
    "power limits": with_service(engine={"power_caps": ["50%"]}),
    "prefill apart from decode": with_service(disaggregate="only", parallelism={"tp": [1]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_plan_is_proven(folder, kind, monkeypatch):
    monkeypatch.setattr(replay_traffic, "DEFAULT_REQUESTS", 5000)  # it plays its trace over and over: less will do
    asked = KINDS[kind]
    settings = SolverSettings(time_limit_s=600.0)
    plain = planner.plan(asked, base_dir=folder, today=TODAY, settings=settings, verify=False).plan
    found = planner.plan(asked, base_dir=folder, today=TODAY, settings=settings, verify=True).plan
    what = {
        "shed": bool(found.unserved),
        "schedule": len(found.schedule) == 2,
        "power limits": all(item.power_cap_w for item in found.allocation),
        "prefill apart from decode": {item.role for item in found.allocation} == {"prefill", "decode"},
    }
    assert what[kind]
    question = read_question(read_request(asked), base_dir=folder, today=TODAY, strict=False)
    assert not holds(question, plain)
    assert (found.proof.holds, found.proof.ended) == (True, ProofEnd.HELD)
    assert holds(with_found_caps(question, found.proof), found)
    verify_plan(with_found_caps(question, found.proof).problem, found)
    again = replay_of(with_found_caps(question, found.proof), found, settings=ReplaySettings(load=found.proof.load))
    assert [item.slo for service in judge(again).services for item in service.objectives] == list(found.proof.slos)
    assert [(miss.period, miss.service) for miss in found.proof.missed_periods] == again.missed_periods()
    assert list(found.proof.notes) == list(again.notes)


@pytest.fixture
def one_kind(folder, tmp_path):
    """The folder with one offer, so that plans differ in numbers alone: all weights are 1."""
    (tmp_path / "trace.csv").write_text((folder / "trace.csv").read_text())
    (tmp_path / "offers.csv").write_text("\n".join(OFFERS.splitlines()[:2]) + "\n")
    (tmp_path / "hours.csv").write_text("hour,factor\n0,0.3\n1,0.8\n2,1.6\n3,1.3\n")
    return tmp_path


@pytest.mark.parametrize("kind", ["shed", "schedule"])
def test_plans_that_differ_in_who_is_served_or_when_are_not_taken_for_one_another(one_kind, kind, monkeypatch):
    monkeypatch.setattr(replay_traffic, "DEFAULT_REQUESTS", 3000)
    monkeypatch.setattr(replay_traffic, "LEAST_WINDOW_S", 10.0)
    if kind == "shed":
        asked = request(constraints={"shed": "allowed", "budget": "8 USD/h"})
    else:
        asked = request(rate="20 req/s", horizon={"periods": "4h", "step": "1h"})
        asked["services"][0]["workload"]["by_hour"] = "hours.csv"
    found = planner.plan(asked, base_dir=one_kind, today=TODAY, settings=SETTINGS, verify=True).plan
    question = with_found_caps(
        read_question(read_request(asked), base_dir=one_kind, today=TODAY, strict=False), found.proof
    )
    again = judge(replay_of(question, found, settings=ReplaySettings(load=found.proof.load)))
    assert [item.slo for service in again.services for item in service.objectives] == list(found.proof.slos)
    assert again.holds == found.proof.holds


def test_less_unserved_is_better_than_cheaper(folder):
    asked = KINDS["shed"]
    plans = [
        planner.plan(
            asked | {"constraints": {"shed": "allowed", "budget": budget}}, base_dir=folder, today=TODAY, verify=False
        ).plan
        for budget in ("6 USD/h", "9 USD/h")
    ]
    assert plans[0].cost_usd_per_hour < plans[1].cost_usd_per_hour
    assert is_cheaper(plans[1], plans[0])
    assert not is_cheaper(plans[0], plans[1])


def test_what_cannot_be_proven_is_told(folder):
    asked = request(
        rate="25 req/s",
        horizon={"periods": "4h", "step": "1h", "start_up": "5min"},
        deferrable=[
            {
                "name": "evaluation",
                "model": "meta-llama/Llama-3.1-8B",
                "parallelism": {"tp": [1]},
                "workload": {"constant": {"input_tokens": 1000, "output_tokens": 300}},
                "requests": 1000,
                "deadline": "04:00",
            }
        ],
    )
    found = planner.plan(asked, base_dir=folder, today=TODAY).plan
    assert found.proof is None
    assert "does work with a deadline" in next(item.message for item in found.warnings if item.code == "W408")
    with pytest.raises(InputError, match="does work with a deadline"):
        planner.plan(asked, base_dir=folder, today=TODAY, verify=True)
    constant = request()
    constant["services"][0]["workload"] = {"constant": {"input_tokens": 500, "output_tokens": 100}, "rate": "24 req/s"}
    by_default = planner.plan(constant, base_dir=folder, today=TODAY).plan
    assert by_default.proof is None
    assert not [item for item in by_default.warnings if item.code == "W408"]
    melange = {
        "gpu_info": {"L4": {"cost": 0.7, "tputs": [[2.0]]}},
        "workload_distribution": [[1.0]],
        "total_request_rate": 5.0,
    }
    with pytest.raises(InputError, match="throughputs alone"):
        planner.plan(melange, verify=True)


def test_too_few_requests_for_confidence_are_told(folder, tmp_path):
    lines = (folder / "trace.csv").read_text().splitlines()[:201]
    (tmp_path / "trace.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "offers.csv").write_text(OFFERS)
    found = planned(tmp_path)
    assert found.proof.holds
    assert not found.proof.sure
    assert any(warning.code == "W409" for warning in found.warnings)


def test_explain_speaks_of_the_caps_that_were_found(folder, proven, tmp_path, gpuplan):
    for name in ("offers.csv", "trace.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "request.json").write_text(json.dumps(request()))
    plan = tmp_path / "plan.json"
    ran = gpuplan("plan", str(tmp_path / "request.json"), "-o", str(plan), "--as-of", "2026-11-21")
    assert ran.code == 0, ran.err
    made = json.loads(plan.read_text())
    assert made["cost_usd_per_hour"] == proven.cost_usd_per_hour
    assert gpuplan("simulate", str(plan), "--load", "1.1").code == 0
    explained = gpuplan("explain", str(plan), "--json")
    assert explained.code == 0, explained.err
    assert explained.json["cost_usd_per_hour"] == proven.cost_usd_per_hour
    assert explained.json["binding"][0].startswith("simulated")
