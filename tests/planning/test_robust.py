"""Scenarios and error bars of a PlanRequest, end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pytest
from tests_support import REPO

import planner
from planner.domain.plan import PlanStatus
from planner.errors import InputError, SolverLiedError
from planner.files.documents import parse_document
from planner.files.plan_schema import plan_from_document
from planner.optimize import verify_plan
from planner.planning.answer import plan, read_question, read_request
from planner.report.robustness import robustness_text, robustness_view


def request(robust=None, *, rate="40 req/s", constraints=None, **more):
    sizes = {"input_tokens": 500, "output_tokens": 100}
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": name,
                "model": "meta-llama/Llama-3.1-8B",
                "workload": {"constant": sizes, "rate": rate},
                "slo": ["e2e mean <= 60s"],
                "parallelism": {"tp": [1]},
            }
            for name in ("chat", "code")
        ],
        "catalog": {
            "providers": ["gcp", "aws"],
            "regions": ["us-central1", "us-east-1"],
            "gpus": {"include": ["L4", "A10G"]},
        },
        "constraints": constraints or {},
        **({} if robust is None else {"robust": robust}),
        **more,
    }


def cost(robust=None, **given):
    return plan(request(robust, **given)).plan.cost_usd_per_hour


READING = {"base_dir": REPO, "today": date(2026, 11, 21), "strict": False}
LAUNCH = {"name": "launch", "demand": {"chat": 2}}


@pytest.fixture(scope="module")
def launch():
    return plan(request({"scenarios": [{**LAUNCH, "probability": "25%"}], "throughput_error": "20%"}))


def test_the_plan_says_what_surviving_costs_and_what_others_would_leave_unserved(launch):
    found = launch.plan.robustness
    plain = plan(request()).plan
    assert found.price_usd_per_hour == pytest.approx(launch.plan.cost_usd_per_hour - plain.cost_usd_per_hour)
    assert found.price_usd_per_hour > 0
    assert [case.name for case in found.scenarios][:2] == ["planned", "launch"]
    assert found.scenarios[1].rate_rps == pytest.approx(120.0)
    rows = {row.fleet: row for row in found.fleets}
    assert {"plain", "robust", "launch"} <= set(rows)
    assert rows["plain"].outcomes[0].unserved_rps == 0
    # Two thirds of the demand, of which each replica has the headroom and its own rounding to spare.
    assert 0 < rows["plain"].outcomes[1].unserved_rps < 40
    assert all(item.unserved_rps == 0 for item in rows["robust"].outcomes)
    assert all(item.regret_usd_per_hour >= -1e-9 for item in rows["robust"].outcomes)
    assert rows["launch"].outcomes[1].regret_usd_per_hour == 0
    expected = 0.25 * rows["plain"].outcomes[1].unserved_rps
    assert rows["plain"].expected_unserved_rps == pytest.approx(expected)
    assert "scenario launch" in launch.plan.binding
    names = {case.name for case in found.scenarios} | set(found.unaffected)
    assert names == {"planned", "launch", "A10G slow", "L4 slow"}


def test_only_what_a_scenario_is_about_is_slower_in_it():
    asked = {"throughput_error": "20%", "scenarios": [{"name": "worst", "demand": 2, "throughput_error": "30%"}]}
    problem = read_question(read_request(request(asked)), **READING).problem
    for option in problem.options:
        assert set(option.scenario_rps) == {"worst", f"{option.offer.gpu} slow"}
        assert option.throughput_in("worst") == pytest.approx(option.throughput_rps * 0.7, rel=0.02)
        assert option.throughput_in(f"{option.offer.gpu} slow") == pytest.approx(option.throughput_rps * 0.8, rel=0.02)
    at_once = read_question(read_request(request({"throughput_error": {"size": "20%", "per": "fleet"}})), **READING)
    assert {name for option in at_once.problem.options for name in option.scenario_rps} == {"all GPUs slow"}


def test_a_quiet_day_is_expected_by_its_probability_and_gpus_in_no_fleet_are_left_out():
    asked = request({"scenarios": [{"name": "quiet", "demand": 0.4, "probability": "25%"}], "throughput_error": "20%"})
    asked["catalog"]["gpus"]["include"].append("H100-80GB")
    found = plan(asked).plan
    rows = {row.fleet: row for row in found.robustness.fleets}
    quiet = rows["quiet"]
    assert quiet.outcomes[0].unserved_rps > 0
    assert quiet.outcomes[1].unserved_rps == 0
    assert quiet.expected_unserved_rps == pytest.approx(0.75 * quiet.outcomes[0].unserved_rps)
    used = {key.split("/")[1] for fleet in ("plain", "robust") for key in (i.option for i in rows[fleet].replicas)}
    types = {
        option.offer.instance_type: option.offer.gpu
        for option in read_question(read_request(asked), **READING).problem.options
    }
    slow = {f"{types[name]} slow" for name in used}
    assert set(found.robustness.unaffected) == {f"{gpu} slow" for gpu in set(types.values())} - slow
    assert found.robustness.unaffected


def test_factors_errors_and_traces_do_what_they_say(tmp_path):
    plain = cost()
    every = cost({"scenarios": [{"name": "all", "demand": 1.5}]})
    one = cost({"scenarios": [{"name": "one", "demand": {"code": 1.5}}]})
    assert plain <= one <= every
    assert every == cost(rate="60 req/s", constraints={"headroom": "0%"})
    kept = cost({"scenarios": [{"name": "all", "demand": 1.5}], "headroom": "10%"})
    assert kept == cost(rate="60 req/s") >= every
    part = cost({"scenarios": [{"name": "all", "demand": 3}], "served": "50%"})
    assert part == every
    errors = [cost({"throughput_error": size}) for size in ("5%", "20%", "40%")]
    assert [plain, *errors] == sorted([plain, *errors])
    at_once = cost({"throughput_error": {"size": "40%", "per": "fleet"}})
    assert at_once >= errors[-1]
    assert at_once == cost({"scenarios": [{"name": "slow", "throughput_error": "40%"}]})
    profile = cost({"throughput_error": {"size": "profile", "per": "fleet"}})
    assert profile == cost({"throughput_error": {"size": "29%", "per": "fleet"}})
    longer = {"constant": {"input_tokens": 3000, "output_tokens": 400}, "rate": "40 req/s"}
    assert cost({"scenarios": [{"name": "long", "workload": {"chat": longer}}]}) > plain


def test_a_scenario_of_the_same_traffic_changes_nothing_but_what_is_said():
    same = plan(request({"scenarios": [{"name": "same", "demand": 1}]})).plan
    plain = plan(request()).plan
    assert (same.allocation, same.routing, same.cost_usd_per_hour) == (
        plain.allocation,
        plain.routing,
        plain.cost_usd_per_hour,
    )
    assert same.robustness.price_usd_per_hour == 0
    assert robustness_text(same) == "surviving 1 scenario costs nothing: the plain fleet does so too, or one as cheap."


def test_limits_that_do_not_hold_a_scenario_are_named():
    budget = {"budget": f"{cost() + 0.01:.2f} USD/h"}
    found = plan(request({"scenarios": [LAUNCH]}, constraints=budget)).plan
    assert found.status is PlanStatus.INFEASIBLE
    requirements = [item.requirement for item in found.conflicts]
    assert "scenario launch: served >= 100%" in requirements
    assert any(text.startswith("budget") for text in requirements)


def test_a_plan_says_how_far_its_throughputs_may_be_off():
    found = plan(request())
    assert {row.error_fraction for row in found.plan.allocation} == {0.29}
    assert "They may be up to 29% too high" in found.to_markdown()
    given = plan(REPO / "examples" / "melange.json")
    assert {row.error_fraction for row in given.plan.allocation} == {None}
    assert "too high" not in given.to_markdown()


def test_explain_prices_every_scenario(tmp_path, launch):
    target = tmp_path / "plan.json"
    launch.save(target)
    found = planner.explain(planner.read_plan(target), plan_path=target)
    prices = {price.requirement: price.saving_usd_per_hour for price in found.limits}
    assert set(prices) == {f"scenario {name}: served >= 100%" for name in ("launch", "A10G slow", "L4 slow")}
    assert prices["scenario launch: served >= 100%"] > 0
    assert max(prices.values()) <= launch.plan.robustness.price_usd_per_hour + 1e-9


def test_the_regret_table_is_on_paper(launch):
    view = robustness_view(launch.plan)
    page, markdown = launch.to_html(), launch.to_markdown()
    for line in view.lines:
        assert line.name in page
        assert line.name in markdown
    assert "surviving 3 scenarios costs" in page
    rows = launch.to_regret_csv().splitlines()
    assert len(rows) == 1 + len(view.rows) * len(view.lines)
    assert rows[0].startswith("fleet,scenario,rate_rps")


@pytest.mark.parametrize("constraints", [{"spare_replicas": 1}, {"survive": ["region"]}], ids=str)
def test_neither_fleet_costs_less_than_the_best_one_for_a_scenario_that_it_serves(constraints):
    found = plan(request({"scenarios": [LAUNCH], "headroom": "10%"}, constraints=constraints)).plan.robustness
    for row in found.fleets[:2]:  # plain and robust keep the limits of what is planned, others need not
        for item in row.outcomes:
            assert item.unserved_rps > 0 or item.regret_usd_per_hour >= -1e-6


def test_a_wrong_regret_table_is_found(launch):
    likely = {"scenarios": [{**LAUNCH, "probability": "25%"}], "throughput_error": "20%"}
    question = read_question(read_request(request(likely)), **READING)
    good = launch.plan
    verify_plan(question.problem, launch.plan)
    found = good.robustness
    rows = found.fleets
    first = rows[0]
    outcome = first.outcomes[1]
    for change, words in (
        ({"unserved_rps": outcome.unserved_rps + 1}, "leaves"),
        ({"regret_usd_per_hour": outcome.regret_usd_per_hour + 1}, "regret of plain"),
    ):
        wrong = replace(first, outcomes=(first.outcomes[0], replace(outcome, **change), *first.outcomes[2:]))
        with pytest.raises(SolverLiedError, match=words):
            verify_plan(question.problem, replace(good, robustness=replace(found, fleets=(wrong, *rows[1:]))))
    for index, row in enumerate(rows):
        cheap = (*rows[:index], replace(row, cost_usd_per_hour=0.01), *rows[index + 1 :])
        with pytest.raises(SolverLiedError):
            verify_plan(question.problem, replace(good, robustness=replace(found, fleets=cheap)))
    # Row, least costs and regrets may be wrong together; what the replicas fill is not.
    own = rows[-1]
    off = own.cost_usd_per_hour - 0.01
    cases = tuple(
        replace(case, least_usd_per_hour=0.01) if case.name == own.fleet else case for case in found.scenarios
    )
    cheap = tuple(
        replace(
            row,
            cost_usd_per_hour=row.cost_usd_per_hour - (off if row is own else 0),
            outcomes=tuple(
                replace(
                    item,
                    regret_usd_per_hour=item.regret_usd_per_hour
                    + (off if item.scenario == own.fleet else 0)
                    - (off if row is own else 0),
                )
                for item in row.outcomes
            ),
        )
        for row in rows
    )
    with pytest.raises(SolverLiedError, match="costs at least"):
        verify_plan(question.problem, replace(good, robustness=replace(found, fleets=cheap, scenarios=cases)))
    robust = next(row for row in rows if row.fleet == "robust")
    dear = replace(
        robust,
        cost_usd_per_hour=robust.cost_usd_per_hour + 1,
        outcomes=tuple(replace(i, regret_usd_per_hour=i.regret_usd_per_hour + 1) for i in robust.outcomes),
    )
    dear_rows = tuple(dear if row is robust else row for row in rows)
    with pytest.raises(SolverLiedError, match="the robust fleet costs"):
        verify_plan(question.problem, replace(good, robustness=replace(found, fleets=dear_rows)))
    busier = (found.scenarios[0], replace(found.scenarios[1], rate_rps=1.0), *found.scenarios[2:])
    with pytest.raises(SolverLiedError, match="are asked in launch"):
        verify_plan(question.problem, replace(good, robustness=replace(found, scenarios=busier)))
    with pytest.raises(SolverLiedError, match="surviving costs"):
        verify_plan(question.problem, replace(good, robustness=replace(found, price_usd_per_hour=0.0)))
    unlikely = tuple(replace(row, expected_unserved_rps=(row.expected_unserved_rps or 0.0) + 1) for row in rows)
    for table, words in (
        (replace(found, fleets=unlikely), "expected unserved"),
        (replace(found, scenarios=tuple(replace(case, probability=0.9) for case in found.scenarios)), "probabilities"),
    ):
        with pytest.raises(SolverLiedError, match=words):
            verify_plan(question.problem, replace(good, robustness=table))
    with pytest.raises(SolverLiedError, match="tells of"):
        verify_plan(question.problem, replace(good, robustness=replace(found, unaffected=("storm",))))
    with pytest.raises(SolverLiedError, match="not its own"):
        verify_plan(question.problem, replace(good, robustness=replace(found, fleets=rows[:1])))


def test_the_table_says_what_its_fleets_are_best_in(launch):
    assert "against the cheapest fleet" in robustness_view(launch.plan).title
    greedy = plan(request({"scenarios": [LAUNCH]}, objective={"minimise": ["gpus"]})).plan
    assert "the best fleet by the objective (not by cost)" in robustness_view(greedy).title


def test_a_headroom_that_differs_is_said(launch):
    assert any("part of the regret" in text for text in launch.plan.assumptions)
    same = plan(request({"scenarios": [LAUNCH], "headroom": "10%"}, constraints={"headroom": "10%"})).plan
    assert not any("part of the regret" in text for text in same.assumptions)


def test_plan_json_reads_back_and_is_the_same_on_every_run(launch):
    document = json.loads(launch.to_json())
    again = plan_from_document(parse_document(json.dumps(document).encode(), name="plan.json"))
    assert again.robustness.scenarios[1].name == "launch"
    other = json.loads(
        plan(request({"scenarios": [{**LAUNCH, "probability": "25%"}], "throughput_error": "20%"})).to_json()
    )
    for each in (document, other):
        each["solver"].pop("seconds")
        each.pop("inputs")
    assert document == other


@pytest.mark.parametrize(
    ("robust", "message"),
    [
        ({}, "nothing to survive"),
        ({"scenarios": [{"name": "x"}]}, "Nothing is different"),
        ({"scenarios": [{"name": "plain", "demand": 2}]}, "cannot be called 'plain'"),
        ({"scenarios": [{"name": "x", "demand": 2}, {"name": "x", "demand": 3}]}, "Two scenarios are called 'x'"),
        ({"scenarios": [{"name": "x", "demand": {"chatt": 2}}]}, "no service 'chatt'"),
        ({"scenarios": [{"name": "x", "demand": 0}]}, "greater than 0"),
        ({"scenarios": [{"name": "x", "demand": 2, "likely": 1}]}, "Unknown key 'likely'"),
        ({"throughput_error": "120%"}, "leaves no throughput"),
        ({"throughput_error": 0}, "nothing is slower"),
        ({"throughput_error": {"size": "10%", "per": "rack"}}, "gpu-type"),
        ({"throughput_error": "10%", "served": "0%"}, "greater than 0"),
        ({"scenarios": [{"name": "x", "workload": {"chat": {"trace": "gone.csv"}}}]}, "gone.csv"),
        ({"scenarios": [{"name": "A10G slow", "demand": 2}], "throughput_error": "10%"}, "robust.scenarios[0].name"),
        (
            {"scenarios": [{"name": name, "demand": 2, "probability": "60%"} for name in ("x", "y")]},
            "probabilities sum to 1.2",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(robust, message):
    with pytest.raises(InputError) as caught:
        plan(request(robust))
    assert message in str(caught.value)


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(InputError, match="cannot be shed"):
        plan(request({"scenarios": [LAUNCH]}, constraints={"shed": "allowed", "budget": "1 USD/h"}))
    job = {
        "name": "evaluation",
        "model": "meta-llama/Llama-3.1-8B",
        "workload": {"constant": {"input_tokens": 1000, "output_tokens": 300}},
        "requests": 1000.0,
        "deadline": "10h",
    }
    with pytest.raises(InputError, match="work with a deadline"):
        plan(request({"scenarios": [LAUNCH]}, deferrable=[job]))


def test_a_schedule_survives_scenarios_in_every_period():
    by_hour = REPO / "examples" / "demand" / "servegen_m_large.csv"

    def asked(robust=None, **horizon):
        made = request(robust, horizon={"periods": "4h", "step": "1h", **horizon})
        for service in made["services"]:
            service["workload"]["by_hour"] = str(by_hour)
        return made

    plain = plan(asked()).plan
    found = plan(asked({"scenarios": [LAUNCH], "throughput_error": {"size": "20%", "per": "fleet"}})).plan
    table = found.robustness
    assert table.price_usd_per_hour == pytest.approx(found.cost_usd_per_hour - plain.cost_usd_per_hour)
    assert table.price_usd_per_hour > 0
    assert [case.name for case in table.scenarios] == ["planned", "launch", "all GPUs slow"]
    assert table.scenarios[1].rate_rps == pytest.approx(1.5 * table.scenarios[0].rate_rps)
    assert table.scenarios[0].rate_rps == pytest.approx(found.rate_rps)
    rows = {row.fleet: row for row in table.fleets}
    assert rows["plain"].outcomes[1].unserved_rps > 0
    assert all(item.unserved_rps == 0 for item in rows["robust"].outcomes)
    assert {item.period for item in rows["robust"].replicas} == {0, 1, 2, 3}
    document = json.loads(json.dumps(planner.files.plan_document.plan_to_document(found)))
    assert plan_from_document(parse_document(json.dumps(document).encode(), name="plan.json")).robustness is not None


def test_requests_that_only_slow_gpus_cannot_serve_are_named():
    asked = request({"throughput_error": {"size": "60%", "per": "fleet"}})
    asked["services"][0]["slo"] = ["tpot p95 <= 45ms"]
    asked["services"][0]["workload"]["constant"] = {"input_tokens": 2000, "output_tokens": 300}
    found = plan(asked).plan
    assert found.status is PlanStatus.INFEASIBLE
    assert found.conflicts[0].requirement.startswith("in the scenario all GPUs slow, chat: input")
