"""Services that are given back leave the fleet: decided by totals, for all sets of them, and followed everywhere."""

import csv
import io
import json
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from fleet_enumeration import enumerate_fleets
from random_fleets import random_case

from planner.domain.hardware import Market, Offer
from planner.domain.plan import PlanStatus
from planner.domain.problem import ChangeCost, FleetProblem, Limit, Minimum, Resource, ServingOption
from planner.domain.scaling import ScaledService, ScalingChoice, ScalingWay
from planner.domain.workload import Bucket, Demand
from planner.errors import InputError, SolverLiedError
from planner.files.documents import parse_document
from planner.files.plan_schema import read_plan
from planner.optimize import Assignment, SolverSettings, solve, verify_plan
from planner.optimize.scaling_check import check_given_back
from planner.planning import giving_back, scaling_replica
from planner.planning.answer import plan, read_question
from planner.planning.explain import explain, question_of
from planner.planning.giving_back import decided, problem_without
from planner.planning.question import Question
from planner.planning.replay import ReplaySettings, replay
from planner.planning.replay_given_back import given_back_notes, given_back_outcomes
from planner.planning.scaling_ways import always_on
from planner.report.scaling import comparison_of_fleets, fleet_texts, given_back_texts

RARE = {"trace": "rare.csv"}
BUSY = {"constant": {"input_tokens": 500, "output_tokens": 200}, "rate": "2 req/s"}
OWNED_PAIR = {"bundled": False, "owned": [{"gpu": "L4", "count": 2, "gpus_per_instance": 2, "price": "0.40 USD/h"}]}


def service(name, workload=RARE, *, slo=("ttft p50 <= 3s",), scale=None, **fields):
    found = {"name": name, "model": "llama-2-7b", "workload": workload, "slo": list(slo), "parallelism": {"tp": 1}}
    if scale is not None:
        found["scale_to_zero"] = {"storage": "2 GB/s", "clouds": ["modal"]} | scale
    return found | fields


def asked(*services, catalog=None, **fields):
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": list(services),
        "catalog": catalog or {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["L4", "L40S"]}},
    } | fields


@pytest.fixture
def planned(repo):
    return partial(plan, base_dir=repo / "examples", verify=False)


THREE = (
    service("legal", scale={"missed": "0.001 USD"}),
    service("notes", {"trace": "rare.csv", "rate": "20 req/h"}, scale={"provision": "60s"}),
    service("chat", BUSY, slo=["ttft p90 <= 2s", "tpot p90 <= 100ms"]),
)


@pytest.fixture(scope="module")
def mixed(repo):
    """A busy service and two that are rarely called."""
    return plan(asked(*THREE), base_dir=repo / "examples", verify=False)


# --- the decision ----------------------------------------------------------------------------------------------------


def test_the_total_is_the_least_of_all_sets_of_services(mixed, planned):
    """Against plans of requests that leave services out, and the ways of one that only compares."""
    compared = planned(asked(*(each | _compare(each) for each in THREE))).plan
    assert not compared.given_back
    assert not compared.fleets_without
    ways = {choice.service: choice.ways[choice.chosen] for choice in compared.scale_to_zero}
    totals = {}
    for count in range(3):
        for names in combinations(sorted(ways), count):
            left = [
                {k: v for k, v in each.items() if k != "scale_to_zero"} for each in THREE if each["name"] not in names
            ]
            fleet = planned(asked(*left)).plan.cost_usd_per_hour
            totals[names] = fleet + sum(ways[name].learnt_usd_per_hour for name in names)
    found = mixed.plan
    assert {row.given_back: row.learnt_total_usd_per_hour for row in found.fleets_without} == pytest.approx(totals)
    own = tuple(sorted(choice.service for choice in found.given_back))
    assert own == min(totals, key=totals.get) == ("legal", "notes")
    always_on, best = (
        next(row for row in found.fleets_without if row.given_back == names).total_usd_per_hour for names in ((), own)
    )
    missed = sum(choice.way.missed_usd_per_hour for choice in found.given_back)
    assert found.with_given_back_usd_per_hour + missed == pytest.approx(best)
    assert best < always_on == totals[()]
    assert {item.service for item in found.allocation} == {"chat"}
    assert {route.service for route in found.routing} == {"chat"}
    for choice in found.given_back:
        assert choice.way.is_met
        assert choice.way == ways[choice.service]


def _compare(each):
    return {"scale_to_zero": each["scale_to_zero"] | {"mode": "compare"}} if "scale_to_zero" in each else {}


def test_two_services_that_share_an_instance_leave_it_together_or_not_at_all(planned, monkeypatch):
    both = [service("legal", scale={}), service("notes", scale={})]
    found = planned(asked(*both, catalog=OWNED_PAIR)).plan
    rows = {row.given_back: row for row in found.fleets_without}
    assert rows[()].fleet_usd_per_hour == pytest.approx(0.80)
    for name in ("legal", "notes"):
        assert rows[name,].fleet_usd_per_hour == pytest.approx(0.80)  # the other one still needs the machine
        assert rows[name,].total_usd_per_hour > rows[()].total_usd_per_hour
    assert [choice.service for choice in found.given_back] == ["legal", "notes"]
    assert found.allocation == found.rentals == found.routing == found.baselines == ()
    assert found.status is PlanStatus.OPTIMAL
    assert found.cost_usd_per_hour == 0.0
    assert found.with_given_back_usd_per_hour < 0.80
    monkeypatch.setattr(giving_back, "MOST_ENUMERATED", 0)  # one after the other, from both ends
    assert planned(asked(*both, catalog=OWNED_PAIR)).plan.given_back == found.given_back
    only = planned(asked(service("legal", scale={}), service("notes"), catalog=OWNED_PAIR)).plan
    assert not only.given_back
    text = " ".join(plan_text(only).split())
    assert "legal: always on" in text
    assert "It stays always on: without it the fleet costs 0.80 instead of 0.80 USD/h" in text


def plan_text(found):
    from planner.report.notes import notes

    return " ".join(note.text for note in notes(found, today=None) if note.label == "Scale to zero")


def test_what_is_paid_for_anyway_keeps_a_service_always_on(planned):
    owned = OWNED_PAIR["owned"][0] | {"must_use": True}
    found = planned(asked(service("legal", scale={}), service("notes"), catalog=OWNED_PAIR | {"owned": [owned]})).plan
    assert not found.given_back
    assert found.fleets_without[1].fleet_usd_per_hour == pytest.approx(0.80)
    alone = planned(asked(service("legal", scale={}), catalog=OWNED_PAIR | {"owned": [owned]})).plan
    assert not alone.given_back
    assert alone.fleets_without[1].fleet_usd_per_hour is None
    assert "leave no fleet" in alone.fleets_without[1].reason


def test_it_stays_always_on_where_nothing_that_is_given_back_holds(planned):
    found = planned(asked(service("legal", slo=["ttft p99.9 <= 1s"], scale={}))).plan
    (choice,) = found.scale_to_zero
    assert not choice.is_applied
    assert choice.way.way is ScalingWay.ALWAYS_ON
    assert found.fleets_without == ()
    assert found.allocation


def test_a_replica_that_is_nearly_always_there_is_not_given_back(planned, monkeypatch):
    """A p95 of 3 s allows few cold starts, so it would be kept for hours: a cheaper price is another matter."""
    result = planned(asked(service("legal", slo=["ttft p95 <= 3s"], scale={"clouds": ["runpod"]})))
    (choice,) = result.plan.scale_to_zero
    assert not choice.is_applied
    assert "learnt" not in {way.rule for way in choice.ways}
    assert any("runpod/L4, kept" in note and "is left out" in note for note in choice.notes)
    monkeypatch.setattr(scaling_replica, "MOST_HELD", 1.0)
    found = planned(asked(service("legal", slo=["ttft p95 <= 3s"], scale={"clouds": ["runpod"]})))
    (choice,) = found.plan.given_back
    assert choice.way.mean_replicas > 0.9
    assert "the objectives ask for no more than ttft p95 <= 3 s." in next(given_back_texts(found.plan))


def one_replica(*, limits=(), change=None):
    """A service that one replica of 1 USD/h serves."""
    one = Offer(
        name="a", provider="p", instance_type="a", region="r", market=Market.ON_DEMAND, gpu="L4", gpus_per_instance=1,
        price_usd_per_hour=1.0,
    )  # fmt: skip
    option = ServingOption(service="chat", offer=one, gpus_per_replica=1, throughput_rps=np.array([1.0]))
    demand = Demand(service="chat", buckets=(Bucket(row=0, column=0, rate_rps=0.5),))
    return FleetProblem(demands=(demand,), options=(option,), limits=limits, change=change)


def decision(problem, *asks):
    """Return the plan that gives back what is cheaper so."""
    settings, free = SolverSettings(), Assignment.fractional()
    always = solve(problem, settings=settings, assignment=free)
    question = Question(problem=problem, scaling=asks)
    return decided(question, always, prove=lambda *both: both, settings=settings, assignment=free)[1]


def test_a_budget_of_the_whole_fleet_holds_with_what_is_given_back():
    """Starting a replica is what makes the fleet dear, and a budget is of what is rented."""
    start = ChangeCost(running=(), instances={}, start_usd=0.5, horizon_hours=1.0)
    for budget, given_back in ((1.0, []), (1.25, ["chat"])):
        limit = Limit(name="budget", resource=Resource.USD_PER_HOUR, bound=budget)
        found = decision(one_replica(limits=(limit,), change=start), Ask("chat", 1.2))
        assert [choice.service for choice in found.given_back] == given_back
    assert found.fleets_without[0].total_usd_per_hour == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("learnt", "judged", "is_given_back", "reason"),
    [
        (0.5, 0.6, True, ""),
        (0.5, 1.0, False, "where it was judged"),
        (1.0, 0.5, False, "learnt"),
        (1.5, 0.5, False, "learnt"),
    ],
)
def test_the_judged_half_can_only_speak_against_giving_back(learnt, judged, is_given_back, reason):
    found = decision(one_replica(), Ask("chat", judged, learnt))
    assert bool(found.given_back) == is_given_back
    assert found.fleets_without[1].total_usd_per_hour == pytest.approx(judged)
    assert reason in found.fleets_without[1].reason
    assert bool(reason) == bool(found.fleets_without[1].reason)


FREE, DEFAULT = Assignment.fractional(), SolverSettings()


def proven(asked_of, made, *, replicas=1, holds=True, attainment=1.0):
    """Return the plan that a proof comes to if a service needs that many replicas, within the limits."""
    if not asked_of.problem.demands:
        return asked_of, made
    problem = replace(asked_of.problem, headroom_fraction=2.0 * replicas - 1.0)  # each demand is half of a replica's
    dearer = solve(problem, settings=DEFAULT, assignment=FREE)
    if dearer.cost_usd_per_hour is None:
        dearer, holds = made, False
    else:
        asked_of = replace(asked_of, problem=problem)
    slos = tuple(
        SimpleNamespace(service=demand.service, statistic="p90", attainment=attainment) for demand in problem.demands
    )
    return asked_of, replace(dearer, proof=SimpleNamespace(holds=holds, slos=slos))


def two_services(**fields):
    """Two services that one replica of 1 USD/h each serves."""
    one = one_replica(**fields)
    (demand,), (option,) = one.demands, one.options
    other = replace(demand, service="other"), replace(option, service="other")
    return replace(one, demands=(demand, other[0]), options=(option, other[1]))


def test_always_on_is_proven_before_it_speaks_against_anything():
    """It costs 1 USD/h by throughput alone and 2 as proven, and what would be given back 1.2."""
    question = Question(problem=one_replica(), scaling=(Ask("chat", 1.2, 0.9),))
    always = solve(question.problem, settings=DEFAULT, assignment=FREE)
    for how, is_given_back in (({"replicas": 2}, True), ({"holds": False}, True), ({}, False)):
        prove = partial(proven, **how)
        found = decided(question, always, prove=prove, settings=DEFAULT, assignment=FREE)[1]
        assert bool(found.given_back) == is_given_back
        first = found.fleets_without[0]
        assert first.is_replayed
        assert first.fleet_usd_per_hour == pytest.approx(how.get("replicas", 1))
        assert bool(first.reason) == (not how.get("holds", True))


def test_a_proof_leaves_of_a_budget_what_is_given_back():
    """The other's proof needs 2 replicas, and 0.7 USD/h are given back: too little of a budget of 2.2 is left."""
    for budget, names, usd, holds in ((1.75, ["chat"], 1.7, False), (2.2, [], 2.0, False), (2.75, ["chat"], 2.7, True)):
        limit = Limit(name="budget", resource=Resource.USD_PER_HOUR, bound=budget)
        question = Question(problem=two_services(limits=(limit,)), scaling=(Ask("chat", 0.7),))
        always = solve(question.problem, settings=DEFAULT, assignment=FREE)
        prove = partial(proven, replicas=2)
        asked_of, found = decided(question, always, prove=prove, settings=DEFAULT, assignment=FREE)
        assert [choice.service for choice in found.given_back] == names
        assert found.with_given_back_usd_per_hour == pytest.approx(usd)
        assert found.proof.holds == holds
        if names:
            with pytest.raises(SolverLiedError, match="what a budget leaves to the fleet"):
                check_given_back(replace(asked_of.problem, limits=(limit,)), found)


def test_requests_that_miss_are_priced_on_both_sides():
    """Given back it costs 1.1 USD/h, and always on 1 with a tenth of requests late that would cost 5 if all were."""
    for at_stake, is_given_back in ((0.0, False), (5.0, True)):
        question = Question(problem=two_services(), scaling=(Ask("chat", 1.1, at_stake_usd_per_hour=at_stake),))
        always = solve(question.problem, settings=DEFAULT, assignment=FREE)
        prove = partial(proven, attainment=0.9)
        found = decided(question, always, prove=prove, settings=DEFAULT, assignment=FREE)[1]
        assert bool(found.given_back) == is_given_back
        kept = found.scale_to_zero[0].ways[0]
        assert kept.missed_usd_per_hour == pytest.approx(0.1 * at_stake)
        assert kept.attainment == pytest.approx(0.9)


@dataclass(frozen=True)
class Ask:
    """A service that costs so much given back."""

    name: str
    usd_per_hour: float
    learnt_usd_per_hour: float | None = None
    decides = True
    follows_load = True
    at_stake_usd_per_hour: float = 0.0

    def __call__(self, found):
        learnt = self.usd_per_hour if self.learnt_usd_per_hour is None else self.learnt_usd_per_hour
        ways = (
            always_on(found, self.name),
            replace(WAY, cost_usd_per_hour=self.usd_per_hour, learnt_usd_per_hour=learnt),
        )
        return ScalingChoice(service=self.name, chosen=0, ways=ways, requests=1, judged_s=1.0)


WAY = ScaledService(
    way=ScalingWay.PAY_PER_USE, rule="learnt", offer="a/L4", gpu="L4", gpus_per_replica=1, keep_alive_s=1.0,
    cost_usd_per_hour=1.0, missed_usd_per_hour=0.0, is_met=True, learnt_usd_per_hour=1.0, is_safe=True, attainment=1.0,
    ttft_p50_s=0.1, ttft_p99_s=0.1, cold_fraction=0.1, mean_replicas=0.1,
)  # fmt: skip


NOT_DRAWN = frozenset(
    {"goals", "shedding", "horizon", "jobs", "energy", "egress", "scenarios", "slices", "disaggregation"}
)


@pytest.mark.parametrize(
    "block", [range(24), pytest.param(range(24, 200), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_random_fleets_against_the_enumeration_of_all_fleets_and_all_sets(block):
    exact, seen = SolverSettings(relative_gap=0.0), []
    for index in block:
        rng = np.random.default_rng([7, index])
        problem = random_case(rng, without=NOT_DRAWN).problem
        names = [demand.service for demand in problem.demands]
        usd = {name: float(rng.integers(1, 24)) / 4 for name in names}
        sets = [given for n in range(len(names) + 1) for given in combinations(names, n)]
        expected = {given: _total(problem, given, usd) for given in sets}
        if "large" in expected.values() or expected[()] is None:
            continue
        question = Question(problem=problem, scaling=tuple(Ask(name, usd[name]) for name in names))
        free = Assignment.fractional()
        always = solve(problem, settings=exact, assignment=free)
        asked_of, found = decided(question, always, prove=lambda *both: both, settings=exact, assignment=free)
        verify_plan(asked_of.problem, found)
        total = found.with_given_back_usd_per_hour + (found.change_usd_per_hour or 0.0)
        assert total == pytest.approx(min(value for value in expected.values() if value is not None))
        seen.append(len(found.given_back))
    assert len(seen) >= len(block) // 3
    assert {0, 1} <= set(seen)


def _total(problem, given, usd):
    """Return what a set of services to give back comes to by enumeration, "large" if there are too many fleets.

    Without anybody to serve, a minimum of GPUs has nothing to be rented of; what ran for them stops.
    """
    left, change = problem_without(problem, given), problem.change
    if not left.demands and any(isinstance(rule, Minimum) for rule in left.rules):
        return None
    best = enumerate_fleets(left)
    if best in (None, "large"):
        return best
    stops = 0.0
    if change is not None:
        gone = sum(item.replicas for item in change.running if item.service in given)
        stops = gone * change.stop_usd / change.horizon_hours
    return float(best[1][-1]) + stops + sum(usd[name] for name in given)


def test_the_fleet_that_is_left_has_to_hold_in_its_replay(mixed, repo):
    """A proof that misses, or makes the fleet dearer than all of it was, leaves the next best set of services."""
    three = [dict(each) for each in THREE]
    for each in three[:2]:
        each["scale_to_zero"] = each["scale_to_zero"] | {"clouds": ["runpod"]}
    document = parse_document(json.dumps(asked(*three)).encode(), name="request")
    question = read_question(document, base_dir=repo / "examples", today=mixed.today, strict=False)
    settings, free = SolverSettings(), Assignment.fractional()
    always = solve(question.problem, settings=settings, assignment=free)

    def found(prove):
        made = decided(question, always, prove=prove, settings=settings, assignment=free)[1]
        return [choice.service for choice in made.given_back], {
            row.given_back: row.reason for row in made.fleets_without
        }

    def misses_alone(asked_of, made):
        is_alone = len(asked_of.problem.demands) == 1
        return asked_of, replace(made, proof=SimpleNamespace(holds=not is_alone, slos=()))

    names, reasons = found(misses_alone)
    assert len(names) == 1
    assert "replay" in reasons["legal", "notes"]
    assert found(lambda asked_of, made: (asked_of, replace(made, proof=SimpleNamespace(holds=False, slos=()))))[0] == []
    assert found(lambda asked_of, made: (asked_of, made))[0] == ["legal", "notes"]

    def dearer(asked_of, made):
        """The fewer services are left, the less room their proof asks for."""
        room = (0.0, 0.6, 3.0, 5.0)[len(asked_of.problem.demands)]
        asked_of = replace(asked_of, problem=replace(asked_of.problem, headroom_fraction=room))
        proven.append(len(asked_of.problem.demands))
        return asked_of, solve(asked_of.problem, settings=settings, assignment=free)

    proven = []
    assert found(dearer)[0] == ["legal", "notes"]
    assert proven[:3] == [3, 1, 2]  # the next one looked cheaper than the first one's proof came to


# --- what follows ----------------------------------------------------------------------------------------------------


def test_totals_stand_together_in_every_form(mixed, monkeypatch):
    found, document = mixed.plan, json.loads(mixed.to_json())
    fleet, given_back = found.cost_usd_per_hour, found.given_back_usd_per_hour
    assert document["cost_usd_per_hour"] == pytest.approx(fleet)
    assert document["given_back_usd_per_hour"] == pytest.approx(given_back)
    assert document["with_given_back_usd_per_hour"] == pytest.approx(fleet + given_back)
    assert document["with_given_back_usd_per_month"] == pytest.approx(730 * (fleet + given_back))
    rows = list(csv.DictReader(io.StringIO(mixed.to_csv())))
    assert [row["way"] for row in rows if row["service"] != "chat"] == ["pay-per-use", "scale-to-zero"]
    assert sum(float(row["cost_usd_per_hour"]) for row in rows) == pytest.approx(fleet + given_back)
    assert float(mixed.to_frame()["cost_usd_per_month"].sum()) == pytest.approx(730 * (fleet + given_back))
    in_all = f"{fleet + given_back:,.2f}"
    for text in (mixed.to_markdown(), mixed.to_html(), mixed._repr_html_()):
        assert "given back, expected" in text
        assert in_all in text
    assert f"legal + notes given back while nobody asks, {given_back:.2f} USD/h expected: {in_all} USD/h in all" in (
        mixed.to_markdown()
    )
    assert any("an expectation, not a rent" in text and "legal" in text for text in found.assumptions)
    best = min(item.cost_usd_per_hour for item in found.baselines if item.feasible)
    assert found.savings_vs_best_single == pytest.approx(1 - fleet / best)  # the same services on both sides
    assert "Both without what is given back" in mixed.to_markdown()


def test_what_was_not_replayed_is_marked_and_what_was_learnt_told_where_it_differs(mixed):
    assert comparison_of_fleets(mixed.plan).endswith("No fleet was replayed.")
    rows = tuple(replace(row, is_replayed=row.given_back != ("legal",)) for row in mixed.plan.fleets_without)
    rows = (*rows[:-1], replace(rows[-1], learnt_usd_per_hour=rows[-1].learnt_usd_per_hour + 1.0))
    own, *others = fleet_texts(replace(mixed.plan, fleets_without=rows))
    assert own.startswith("legal, notes given back")
    assert f"USD/h, {rows[-1].learnt_total_usd_per_hour:.2f} where it was learnt" in own
    assert [text.split(" given")[0] for text in others if "its fleet not replayed" in text] == ["legal"]


def test_it_is_shown_at_every_width(mixed, planned, monkeypatch):
    from rich.console import Console

    from planner.report.terminal import plan_renderables

    alone = planned(asked(service("legal", scale={})))
    for result in (mixed, alone):
        for width in (60, 100, 160):
            console = Console(width=width, file=io.StringIO(), record=True)
            console.print(*plan_renderables(result.plan, today=result.today))
            text = " ".join(console.export_text().split())
            assert "given back, expected" in text
            assert "modal/L4" in text
    assert "nothing is rented all day; legal given back" in text


def test_it_is_read_back_and_checked_against_its_request(mixed, repo, tmp_path):
    path = tmp_path / "plan.json"

    def written(change):
        document = json.loads(mixed.to_json())
        document["inputs"]["request_path"] = str(repo / "examples" / "none.yaml")
        change(document)
        path.write_text(json.dumps(document), encoding="utf-8")
        return explain(read_plan(path), plan_path=path)

    told = written(lambda document: None)
    assert told.given_back[0].startswith("legal, notes given back")
    assert "all always on" in " ".join(told.given_back)
    assert all("chat" in each.requirement for each in told.objectives)

    def claims(**values):
        return lambda document: document["fleets_without"][-1].update(values)

    def cheaper(document):
        document["fleets_without"][1]["fleet_usd_per_hour"] = 0.0

    def keeps(document):
        document["scale_to_zero"][0]["is_applied"] = False

    def ways(**values):
        def change(document):
            choice = document["scale_to_zero"][0]
            choice["ways"][choice["chosen"]].update(values)

        return change

    def unasked(document):
        document["inputs"]["request"]["services"][0]["scale_to_zero"]["mode"] = "compare"

    for change, words in (
        (claims(fleet_usd_per_hour=0.1), "its fleet costs"),
        (ways(cost_usd_per_hour=0.001), "what it gives back costs"),
        (ways(is_met=False), "does not hold its objectives"),
        (ways(is_barred=True), "which is only compared"),
        (keeps, "its fleet costs"),
        (unasked, "gives back legal, which its request does not ask for"),
        (lambda document: document["fleets_without"].pop(0), "what it compares"),
        (cheaper, "comes to .* without a reason against it"),
    ):
        with pytest.raises(InputError, match=words):
            written(change)


def test_the_check_knows_a_fleet_that_serves_what_is_given_back(mixed):
    found = mixed.plan
    choices = tuple(replace(choice, service="chat") for choice in found.given_back[:1])
    bucket = Bucket(row=0, column=0, rate_rps=1.0)
    problem = FleetProblem(demands=(Demand(service="chat", buckets=(bucket,)),), options=())
    with pytest.raises(SolverLiedError, match="its fleet serves"):
        check_given_back(problem, replace(found, scale_to_zero=choices))


def test_what_is_given_back_is_replayed_by_what_judged_it(planned, repo, tmp_path):
    result = planned(asked(service("legal", scale={"missed": "0.001 USD"})))
    path = tmp_path / "plan.json"
    document = json.loads(result.to_json())
    document["inputs"]["request_path"] = str(repo / "examples" / "none.yaml")
    path.write_text(json.dumps(document), encoding="utf-8")
    found = read_plan(path)

    def replayed(**settings):
        return replay(found, plan_path=path, settings=ReplaySettings(**settings))

    outcome = replayed(seed=5)
    (legal,) = outcome.given_back
    assert outcome.is_met
    assert outcome.services == outcome.phases == ()
    assert replayed(seed=1).given_back[0].found.cost_usd_per_hour == pytest.approx(legal.planned.cost_usd_per_hour)
    assert legal.found.cost_usd_per_hour != legal.planned.cost_usd_per_hour  # other starts
    assert legal.found.cost_usd_per_hour == pytest.approx(legal.planned.cost_usd_per_hour, rel=0.1)
    assert legal.found.keep_alive_s == legal.planned.keep_alive_s
    assert legal.found.attainment == pytest.approx(legal.planned.attainment, abs=0.05)
    assert legal.found.most_replicas >= 1
    assert outcome.to_dict()["given_back"]["legal"]["planned"]["cost_usd_per_hour"] > 0
    twice = replayed(load=2.0).given_back[0].found
    assert legal.found.cost_usd_per_hour < twice.cost_usd_per_hour < 2 * legal.found.cost_usd_per_hour
    from planner.simulate.events import parse_event

    with pytest.raises(InputError, match="--event is about the plan's fleet, and that serves nobody"):
        replayed(events=(parse_event("1min-2min: load x 2"),))
    assert explain(found, plan_path=path).given_back


@pytest.mark.slow
def test_a_fleet_and_what_is_given_back_are_proven_and_simulated_together(repo, tmp_path, gpuplan, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code = {"trace": "bundled:azure_conv_2023", "rate": "2 req/s"}
    busy = service("chat", code, slo=["ttft p90 <= 5s"], model="meta-llama/Llama-3.1-8B")
    request = tmp_path / "request.json"
    request.write_text(
        json.dumps(asked(service("legal", RARE | {"trace": str(repo / "examples/rare.csv")}, scale={}), busy))
    )
    made = gpuplan("plan", request, "-o", tmp_path / "plan.json")
    assert made.code == 0, made.err
    found = read_plan(tmp_path / "plan.json")
    assert [choice.service for choice in found.given_back] == ["legal"]
    assert {item.service for item in found.proof.services} == {"chat"}
    ran = gpuplan("simulate", tmp_path / "plan.json", "--requests", 2000, "-o", tmp_path / "page.html")
    assert ran.code == 0
    assert "pay-per-use, modal/L4" in ran.out
    assert "chat on" in ran.out
    assert "Given back" in (tmp_path / "page.html").read_text(encoding="utf-8")
    ran = gpuplan("simulate", tmp_path / "plan.json", "--trace", f"legal={repo / 'examples/rare.csv'}")
    assert ran.code == 2
    assert "legal is given back in between" in ran.err
    knee = gpuplan("sweep", tmp_path / "plan.json", "--load", "0.5-1", "--points", 2, "--requests", 1000)
    assert "legal, given back: within all" in " ".join(knee.out.split())


def test_what_runs_today_stops_where_it_is_given_back(planned, tmp_path):
    both = asked(*(each | _compare(each) for each in THREE[:1]), THREE[2])
    today = tmp_path / "today.json"
    today.write_text(planned(both).to_json(), encoding="utf-8")
    result = planned(asked(THREE[0], THREE[2]), current=today)
    found = result.plan
    stops = [step for step in found.rollout if step.action == "stop"]
    assert {step.service for step in stops} == {"legal"}
    assert "Send the requests of legal to what is given back in between." in result.to_markdown()
    dear = {"change_cost": {"start": "0 USD", "stop": "1000 USD", "horizon": "1h"}}
    kept = planned(asked(THREE[0], THREE[2], constraints=dear), current=today).plan
    assert not kept.given_back  # stopping it costs more than it saves
    assert kept.fleets_without[1].fleet_usd_per_hour > 1000


def test_old_plans_without_the_decision_are_read_as_always_on(mixed, planned, tmp_path):
    compared = planned(asked(*(each | _compare(each) for each in THREE)))
    document = json.loads(compared.to_json())
    for choice in document["scale_to_zero"]:
        del choice["is_applied"]
        for each in choice["ways"]:
            for name in ("most_replicas", "precision", "tensor_parallel", "pipeline_parallel"):
                del each[name]
    assert "fleets_without" not in document
    (tmp_path / "old.json").write_text(json.dumps(document), encoding="utf-8")
    assert read_plan(tmp_path / "old.json").given_back == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"objective": "power"}, "least of more than its cost"),
        ({"constraints": {"shed": "allowed"}}, "may stay unserved"),
        ({"constraints": {"spare_replicas": 1}}, "survive losses"),
        ({"robust": {"throughput_error": "15%"}}, "survive scenarios"),
        ({"constraints": {"carbon": {"price": "80 USD/t"}}}, "have a price"),
    ],
)
def test_what_cannot_be_decided_by_price_is_refused(fields, words, planned):
    with pytest.raises(InputError, match="costs less") as caught:
        planned(asked(service("legal", scale={}), **fields))
    assert words in caught.value.message
    assert "mode: compare" in caught.value.hint


def test_a_front_of_plans_is_refused(repo, gpuplan):
    ran = gpuplan("sweep", repo / "examples" / "scale_to_zero.yaml")
    assert ran.code == 2
    assert "fleets that are always on" in ran.err


def test_services_with_adapters_are_given_back_too(planned, repo, tmp_path):
    adapters = service(
        "tenants",
        {"constant": {"input_tokens": 512, "output_tokens": 128}},
        slo=["ttft p50 <= 60s"],
        scale={"graphs": False},
        adapters={"file": "tenants.csv"},
    )
    dear = {"gpu": "L4", "count": 4, "gpus_per_instance": 1, "price": "1.50 USD/h"}
    result = planned(asked(adapters, service("notes"), catalog={"bundled": False, "owned": [dear]}))
    found = result.plan
    (choice,) = found.given_back
    assert choice.service == "tenants"
    assert choice.way.way is ScalingWay.SHARED
    path = tmp_path / "plan.json"
    document = json.loads(result.to_json())
    document["inputs"]["request_path"] = str(repo / "examples" / "none.yaml")
    path.write_text(json.dumps(document), encoding="utf-8")
    question = question_of(read_plan(path), path)
    assert question.problem.tenancies == ()
    (outcome,) = given_back_outcomes(question, found, ReplaySettings(load=2.0))
    assert outcome.load == 1.0  # what is kept of adapters is learnt at their rates
    assert outcome.found.cost_usd_per_hour == pytest.approx(choice.way.cost_usd_per_hour, rel=0.1)
    assert any("whatever the load" in text for text in given_back_notes(question, found, ReplaySettings(load=2.0)))
    assert found.adapters == ()
    assert {item.service for item in found.allocation} == {"notes"}


def test_a_quota_that_holds_no_fleet_may_hold_one_for_the_others(planned):
    both, few = (
        (THREE[0], service("notes")),
        {"bundled": False, "owned": [OWNED_PAIR["owned"][0] | {"gpus_per_instance": 1}]},
    )
    few["owned"][0]["count"] = 1
    result = planned(asked(*both, catalog=few))
    found = result.plan
    assert [choice.service for choice in found.given_back] == ["legal"]
    assert found.fleets_without[0].fleet_usd_per_hour is None
    assert "all always on: no fleet (Limits and rules leave no fleet" in result.to_markdown()
    assert "no fleet has all services always on" in result.to_markdown()
    cheap = planned(asked(*both, catalog=few, constraints={"budget": "0.45 USD/h"})).plan
    assert cheap.status is PlanStatus.INFEASIBLE  # the fleet costs 0.40, and what is given back more than the rest
    assert cheap.scale_to_zero == ()
    (way_out,) = (each for each in cheap.conflicts if each.requirement.startswith("budget"))
    assert "with legal given back" in way_out.suggestion
    assert "does not hold with what is given back" in cheap.fleets_without[1].reason
    for more, given_back in ((0.0, 1), (-0.01, 0)):
        budget = f"{way_out.relaxed + more:.2f} USD/h"
        assert len(planned(asked(*both, catalog=few, constraints={"budget": budget})).plan.given_back) == given_back


def test_work_with_a_deadline_stays_where_its_service_is_given_back(planned, repo, tmp_path):
    batch = {
        "name": "batch",
        "model": "llama-2-7b",
        "parallelism": {"tp": [1]},
        "workload": {"constant": {"input_tokens": 500, "output_tokens": 100}},
        "requests": 1000,
        "deadline": "8h",
    }
    beside = planned(asked(service("legal", scale={}), deferrable=[batch])).plan
    assert beside.given_back == ()  # its idle replica does the work, which would need one of its own
    assert beside.fleets_without[1].fleet_usd_per_hour == pytest.approx(beside.cost_usd_per_hour)
    result = planned(asked(service("legal", scale={}), deferrable=[batch | {"harvest": "never"}]))
    found = result.plan
    assert [choice.service for choice in found.given_back] == ["legal"]
    assert {item.service for item in found.allocation} == {"batch"}
    assert found.fleets_without[1].fleet_usd_per_hour == found.cost_usd_per_hour > 0
    path = tmp_path / "plan.json"
    document = json.loads(result.to_json())
    document["inputs"]["request_path"] = str(repo / "examples" / "none.yaml")
    path.write_text(json.dumps(document), encoding="utf-8")
    assert any("batch" in note for note in replay(read_plan(path), plan_path=path).notes)
    assert explain(read_plan(path), plan_path=path).given_back
