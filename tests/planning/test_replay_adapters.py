"""Plans of services with adapters, replayed: who serves whom, how each adapter fares, and the proof."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from planning.test_adapters import CONSTANT, adapter, request

from planner.domain.proof import ProofEnd
from planner.domain.slo import Metric, Slo
from planner.errors import InputError
from planner.optimize import SolverSettings
from planner.planning import prepared as planning_prepared
from planner.planning.answer import answer, read_question, read_request
from planner.planning.load_sweep import load_sweep
from planner.planning.proving.verdict import judge
from planner.planning.replay import ReplaySettings, prepare, replay_of
from planner.planning.replay_adapters import adapter_outcomes, objectives_of
from planner.planning.replay_outcome import is_within, service_outcome
from planner.planning.replay_records import record_columns
from planner.simulate import plans
from planner.simulate.events import parse_event
from planner.simulate.records import RequestRecords

TODAY = date(2026, 11, 29)
QUICK = ReplaySettings(n_requests=4000)
SETTINGS = SolverSettings(time_limit_s=60.0)


def question_of(folder, adapters, **given):
    return read_question(read_request(request(adapters, **given)), base_dir=folder, today=TODAY, strict=False)


def planned(question, *, verify=False):
    from planner.optimize import Assignment

    return answer(question, settings=SETTINGS, assignment=Assignment.fractional(), verify=verify)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Twelve adapters that share engines, one of them hot, and one that must not."""
    each = [adapter(f"a{i}", "0.3 req/s") for i in range(12)]
    each += [adapter("hot", "9 req/s"), adapter("own", "0.2 req/s", isolation="dedicated")]
    question = question_of(tmp_path_factory.mktemp("mixed"), {"each": each})
    return question, planned(question)


def holders(plan):
    """Return the adapters that each replica holds, in the order in which records number replicas."""
    found = []
    for row in plan.allocation:
        placed = next(item.placement for item in plan.adapters if item.service == row.service)
        found += [{held.adapter for held in each.adapters} for each in placed if each.option == row.option]
    return found


@pytest.mark.parametrize("policy", ["weights", "weighted-random", "least-loaded", "least-kv"])
def test_requests_go_to_replicas_that_hold_their_adapter_as_often_as_planned(mixed, policy):
    question, plan = mixed
    found = replay_of(question, plan, settings=replace(QUICK, policy=policy))
    records, held = found.simulation.records, holders(plan)
    names = found.adapter_names
    assert all(names[a] in held[r] for a, r in zip(records.adapter.tolist(), records.replica.tolist(), strict=True))
    asked = {t.name: t.rate_rps for t in question.problem.tenancies[0].tenants}
    shares = np.bincount(records.adapter, minlength=len(names)) / len(records)
    total = sum(asked.values())
    for number, name in enumerate(names):
        expected = asked[name] / total
        assert shares[number] == pytest.approx(expected, abs=5 * np.sqrt(expected / len(records)))
    if policy == "weights":
        for replica, where in enumerate(held):
            if len([each for each in held if each == where]) > 1:
                continue  # replicas that hold the same share their requests evenly, whatever the plan's parts
            wanted = sum(
                each.rate_rps for item in plan.adapters for p in item.placement for each in p.adapters
                if {h.adapter for h in p.adapters} == where
            ) / total  # fmt: skip
            got = float((records.replica == replica).mean())
            assert got == pytest.approx(wanted, abs=5 * np.sqrt(wanted / len(records)) + 1e-9)


def test_a_router_that_sends_a_request_elsewhere_is_found_out(mixed, monkeypatch):
    question, plan = mixed
    right = plans._router

    def wrong(*args, **given):
        made = right(*args, **given)
        return replace(made, weights=made.weights[:, ::-1], rate_rps=np.ones_like(made.rate_rps))

    monkeypatch.setattr(plans, "_router", wrong)
    with pytest.raises(RuntimeError, match="does not hold it"):
        replay_of(question, plan, settings=QUICK)


def test_without_overhead_and_with_all_adapters_everywhere_it_is_the_ordinary_plans_replay(tmp_path, monkeypatch):
    """The same requests at the same times and sizes on the same replicas, to the bit."""
    monkeypatch.setattr(planning_prepared, "room_of", lambda _: None)
    rng = np.random.default_rng(1)
    rows = zip(
        np.cumsum(rng.gamma(0.3, 1.0, 3000)), rng.integers(10, 1500, 3000), rng.integers(1, 300, 3000), strict=True
    )
    text = "".join(f"{at:.3f},{tokens},{out}\n" for at, tokens, out in rows)
    (tmp_path / "mixed.csv").write_text("arrival_s,input_tokens,output_tokens\n" + text, encoding="utf-8")
    each = [adapter(f"a{i}", "0.5 req/s") for i in range(4)]
    workload = {"trace": "mixed.csv", "grid": {"kind": "adaptive", "rows": 1, "columns": 1}}
    question = question_of(tmp_path, {"each": each}, service={"workload": workload})
    plan = planned(question)
    assert len(holders(plan)) == 1
    document = request({"each": each}, service={"workload": workload | {"rate": "2 req/s"}})
    del document["services"][0]["adapters"]
    plain_question = read_question(read_request(document), base_dir=tmp_path, today=TODAY, strict=False)
    plain = planned(plain_question)
    assert [row.gpu for row in plain.allocation] == [row.gpu for row in plan.allocation]
    one, other = replay_of(question, plan, settings=QUICK), replay_of(plain_question, plain, settings=QUICK)
    for name in ("arrival_s", "input_tokens", "output_tokens", "ttft_s", "e2e_s", "longest_gap_s", "replica"):
        assert np.array_equal(getattr(one.simulation.records, name), getattr(other.simulation.records, name)), name
    assert set(one.simulation.records.adapter.tolist()) == {0, 1, 2, 3}


def test_adapters_slow_a_replica_by_no_more_than_was_planned(tmp_path):
    """The replay reads the adapters that are there, the plan as if all were asked for alike."""
    each = [adapter(f"a{i}", f"{4 / (i + 1):.4f} req/s") for i in range(16)]
    question = question_of(tmp_path, {"each": each})
    plan = planned(question)
    found = replay_of(question, plan, settings=QUICK)
    assert all(service.is_met for service in found.services)
    held = holders(plan)
    assert all(
        0 < n <= len(h) for n, h in zip(found.simulation.peak_adapters.tolist(), held, strict=True) if len(h) > 1
    )


def test_processes_on_one_backbone_take_turns_in_a_replay(tmp_path):
    each = [adapter(f"a{i}", "0.05 req/s") for i in range(5)]
    question = question_of(tmp_path, {"each": each, "isolation": "shared-backbone"})
    plan = planned(question)
    found = replay_of(question, plan, settings=QUICK)
    assert found.services[0].n_unanswered == 0
    assert all(pool.utilization < 1 for pool in found.pools)
    assert len(found.simulation.busy_s) == sum(row.replicas for row in plan.allocation)


def test_the_seed_decides_which_adapter_a_request_is_for(mixed):
    question, plan = mixed
    ready = prepare(question, plan)
    first, again, other = (ready.run(replace(QUICK, seed=seed)).simulation.records for seed in (1, 1, 2))
    assert np.array_equal(first.adapter, again.adapter)
    assert np.array_equal(first.ttft_s, again.ttft_s)
    assert len(first) != len(other) or not np.array_equal(first.adapter, other.adapter)


def test_an_adapter_with_a_trace_has_the_traces_requests(tmp_path):
    rows = [(60.0 * minute + second, 300 + second, 20) for minute in range(40) for second in range(6)]
    text = "".join(f"{at},{tokens},{out}\n" for at, tokens, out in rows)
    (tmp_path / "own.csv").write_text("arrival_s,input_tokens,output_tokens\n" + text, encoding="utf-8")
    each = [adapter("drawn", "0.3 req/s"), {**adapter("bursty"), "trace": "own.csv"}]
    del each[1]["rate"]
    question = question_of(tmp_path, {"each": each})
    plan = planned(question)
    records = replay_of(question, plan, settings=replace(QUICK, n_requests=2000)).simulation.records
    own = records.select(records.adapter == 1)
    assert set(own.input_tokens.tolist()) == set(range(300, 306))
    assert set(records.input_tokens[records.adapter == 0].tolist()) == {800}
    gaps = np.diff(own.arrival_s)
    assert np.median(gaps) == pytest.approx(1.0, rel=0.05)
    assert gaps.max() == pytest.approx(55.0, rel=0.05)
    rate = len(own) / records.arrival_s[-1]
    assert rate == pytest.approx((len(rows) - 1) / rows[-1][0], rel=0.05)


def some_records(adapter_numbers, ttft_s):
    n = len(ttft_s)
    whole = np.zeros(n, dtype=np.int64)
    columns = dict.fromkeys(RequestRecords.__slots__, whole) | {
        "arrival_s": np.arange(n, dtype=np.float64),
        "output_tokens": whole + 2,
        "ttft_s": np.asarray(ttft_s, dtype=np.float64),
        "e2e_s": np.asarray(ttft_s, dtype=np.float64) + 0.1,
        "longest_gap_s": np.zeros(n),
        "is_turned_away": np.zeros(n, dtype=np.bool_),
        "adapter": np.asarray(adapter_numbers, dtype=np.int64),
    }
    return RequestRecords(**columns)


def test_each_adapter_is_judged_by_its_own_objectives_and_its_own_requests():
    slow, fast = (Slo(metric=Metric.TTFT, percentile=90.0, bound_s=bound) for bound in (2.0, 0.5))
    numbers = {"a": 0, "b": 1, "c": 2}
    objectives = objectives_of((slow,), {"b": (fast,)}, numbers)
    # a: all at 1 s, b: all at 1 s, which is too slow for it, c: a fifth at 3 s of 200.
    ttft = [1.0] * 1000 + [1.0] * 100 + ([3.0] + [1.0] * 4) * 40
    records = some_records([0] * 1000 + [1] * 100 + [2] * 200, ttft)
    service = service_outcome("s", objectives, records)
    judged = {str(item): (item.is_met, item.simulated.n) for item in service.slos}
    assert judged == {
        "ttft p90 <= 2 s (the other adapters)": (True, 1200),
        "ttft p90 <= 500 ms (adapter b)": (False, 100),
    }
    assert service.attainment.value == pytest.approx((1000 + 160) / 1300)
    assert is_within(records, objectives).sum() == 1160
    found = {each.adapter: each for each in adapter_outcomes("s", objectives, {0: "a", 1: "b", 2: "c"}, records)}
    assert list(found) == ["b", "c", "a"]  # the worst first
    assert {name: each.is_met for name, each in found.items()} == {"a": True, "b": False, "c": False}
    assert {name: each.is_surely_late for name, each in found.items()} == {"a": False, "b": True, "c": True}
    assert found["c"].attainment == pytest.approx(0.8)


def test_an_adapter_with_few_requests_is_never_surely_late():
    slo = Slo(metric=Metric.TTFT, percentile=99.0, bound_s=1.0)
    objectives = objectives_of((slo,), {}, {"a": 0})
    (found,) = adapter_outcomes("s", objectives, {0: "a"}, some_records([0] * 12, [5.0] * 3 + [0.1] * 9))
    assert not found.is_met
    assert not found.is_surely_late


def bursty(folder, n=2400, seed=7):
    """Write a trace that alternates between 200 requests at the mean rate's half and 200 at its two and a half fold."""
    rng = np.random.default_rng(seed)
    rates = np.where(np.arange(n) // 200 % 2, 2.5, 0.5)
    rows = "".join(f"{at:.3f},800,200\n" for at in np.cumsum(rng.exponential(1.0, n) / rates).tolist())
    (folder / "bursty.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows, encoding="utf-8")
    return {"workload": {"trace": "bursty.csv", "grid": {"kind": "adaptive", "rows": 1, "columns": 1}}}


TWELVE = [adapter(f"a{i}", f"{5 / (i + 1):.4f} req/s") for i in range(12)]
SMALL = {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-40GB"]}}


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proven")
    question = question_of(folder, {"each": TWELVE}, service=bursty(folder), catalog=SMALL)
    return question, planned(question), planned(question, verify=None)


def test_a_bursty_trace_is_planned_again_until_the_replay_holds(proven):
    question, plain, found = proven
    load = 1 + question.problem.headroom_fraction
    assert not replay_of(question, plain, settings=ReplaySettings(load=load)).is_met
    assert found.proof.holds
    assert found.proof.ended is ProofEnd.HELD
    assert found.cost_usd_per_hour > plain.cost_usd_per_hour
    assert found.proof.extra_usd_per_hour == pytest.approx(found.cost_usd_per_hour - plain.cost_usd_per_hour)
    replayed = replay_of(question, found, settings=ReplaySettings(load=load))
    assert replayed.is_met
    assert {item.service: item.asked for item in found.proof.adapters} == {"chat": 12}
    assert found.bound_usd_per_hour <= found.cost_usd_per_hour + 1e-9


def test_the_same_request_and_seed_give_the_same_proof(proven):
    question, _, found = proven
    assert planned(question, verify=None).proof == found.proof


def test_a_limit_that_leaves_no_plan_that_holds_ends_with_exit_code_5(tmp_path, gpuplan):
    service = bursty(tmp_path)
    document = request({"each": TWELVE}, service=service, catalog=SMALL, constraints={"available": {"A100-40GB": 2}})
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    ran = gpuplan("plan", path, "-o", tmp_path / "plan.json")
    assert ran.code == 5, ran.out + ran.err
    assert "W410" in ran.out + ran.err
    read = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert read["proof"]["ended"] == "missed"


def test_the_command_says_how_adapters_fare(tmp_path, gpuplan, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    each = [adapter("a", "4 req/s"), adapter("b", "4 req/s"), adapter("cold", "0.001 req/s")]
    path = tmp_path / "r.json"
    rows = "".join(f"{at}.0,800,200\n" for at in range(3000))
    (tmp_path / "even.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows, encoding="utf-8")
    service = {"workload": {"trace": "even.csv", "grid": {"kind": "adaptive", "rows": 1, "columns": 1}}}
    path.write_text(json.dumps(request({"each": each}, service=service)), encoding="utf-8")
    made = gpuplan("plan", path, "--verify", "-o", tmp_path / "plan.json", "-o", tmp_path / "plan.html")
    assert made.code == 0, made.err
    assert "adapters keep every SLO by themselves" in (tmp_path / "plan.html").read_text(encoding="utf-8")
    options = ("--requests", "5000", "--adapters", tmp_path / "a.csv", "--records", tmp_path / "r.csv")
    event = ("--event", "1min-2min: adapter cold at 40 req/s", "-o", tmp_path / "out.html", "-o", tmp_path / "out.json")
    ran = gpuplan("simulate", tmp_path / "plan.json", *options, *event)
    assert ran.code in {0, 5}
    assert "worst of 3 adapters" in ran.out
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    adapters = found["services"]["chat"]["adapters"]
    assert adapters["asked"] == 3
    assert adapters["met_share"] == adapters["met"] / 3
    with (tmp_path / "a.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["adapter"] for row in rows} == {"a", "b", "cold"}
    assert len(rows) == 6
    with (tmp_path / "r.csv").open(encoding="utf-8") as stream:
        asked = list(csv.DictReader(stream))
    cold = [float(row["arrival_s"]) for row in asked if row["adapter"] == "cold"]
    assert sum(60 <= at <= 120 for at in cold) > 2000
    assert "Adapters of chat" in (tmp_path / "out.html").read_text(encoding="utf-8")
    bad = gpuplan("simulate", tmp_path / "plan.json", "--event", "1min-2min: adapter nobody at 1 req/s")
    assert bad.code == 2
    assert "holds an adapter" in bad.err


def test_one_overloaded_replica_is_no_plan_however_well_the_others_do(proven):
    """A percentile of all requests can hold while all of an adapter's are late: the verdict looks at each."""
    question, _, found = proven
    load = 1 + question.problem.headroom_fraction
    replay = replay_of(question, found, settings=ReplaySettings(load=load))
    assert judge(replay).holds
    busy = max(replay.adapters, key=lambda each: each.n_requests)
    late = replace(busy, is_met=False, is_surely_late=True)
    others = tuple(each for each in replay.adapters if each is not busy)
    worse = replace(replay, adapters=(late, *others))
    assert not worse.is_met
    assert not judge(worse).holds
    assert judge(worse).missed == {"chat"}
    assert judge(worse).adapters[0].late[0].adapter == busy.adapter


def test_adapters_that_all_have_traces_are_proven_unasked(tmp_path):
    rows = "".join(f"{2.0 * at},800,20\n" for at in range(400))
    (tmp_path / "own.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows, encoding="utf-8")
    each = [{"name": name, "rank": 16, "target_modules": "q v", "trace": "own.csv"} for name in ("a", "b")]
    assert planned(question_of(tmp_path, {"each": each}), verify=None).proof.holds
    each[1] = adapter("b")  # its requests would have to be drawn
    assert planned(question_of(tmp_path, {"each": each}), verify=None).proof is None


def test_adapters_of_a_replica_that_is_lost_wait_for_it_and_others_do_not(tmp_path):
    each = [*(adapter(f"a{i}", "0.3 req/s") for i in range(6)), adapter("own", "0.3 req/s", isolation="dedicated")]
    question = question_of(tmp_path, {"each": each})
    plan = planned(question)
    loss = parse_event("2min-4min: lose 1% of gpu A100-40GB")  # one replica: the first
    found = replay_of(question, plan, settings=replace(QUICK, events=(loss,)))
    records, held = found.simulation.records, holders(plan)
    assert found.n_lost == 1
    elsewhere = set().union(*held[1:])
    during = (records.arrival_s > 121) & (records.arrival_s < 200)
    only_here = [n for n, name in enumerate(found.adapter_names) if name in held[0] - elsewhere]
    assert only_here
    waits = records.select(during & np.isin(records.adapter, only_here))
    others = records.select(during & ~np.isin(records.adapter, only_here))
    assert (waits.ttft_s > 30).all()
    assert (others.ttft_s < 30).all()
    assert set(others.replica.tolist()).isdisjoint({0})
    assert records.is_answered.all()


def test_services_with_and_without_adapters_are_replayed_together(tmp_path):
    document = request({"each": [adapter("a"), adapter("b")]})
    plain = {**document["services"][0], "name": "plain", "workload": {"constant": CONSTANT, "rate": "1 req/s"}}
    del plain["adapters"]
    document["services"].insert(0, plain)
    question = read_question(read_request(document), base_dir=tmp_path, today=TODAY, strict=False)
    plan = planned(question)
    found = replay_of(question, plan, settings=replace(QUICK, n_requests=1000, n_replications=2))
    assert [service.service for service in found.services] == ["plain", "chat"]
    records = found.simulation.records
    assert set(records.adapter[records.service == 0].tolist()) == {-1}
    assert set(records.adapter[records.service == 1].tolist()) == {0, 1}
    assert {each.service for each in found.adapters} == {"chat"}
    assert found.is_met
    columns = record_columns(found)
    assert set(columns["adapter"][records.service == 0].tolist()) == {""}


def test_a_plan_with_adapters_can_be_swept_over_loads(mixed):
    question, plan = mixed
    found = load_sweep(prepare(question, plan), replace(QUICK, n_requests=1500), low=0.5, high=3.0, n_points=2)
    assert found.knee is not None
    assert any("adapter" in text for text in found.points[-1].missed)


def test_more_adapters_and_replicas_than_the_memory_holds_are_refused_and_only_a_warning_unasked(
    mixed, tmp_path, monkeypatch
):
    question, plan = mixed
    monkeypatch.setattr(plans, "MOST_ROUTES", 10)
    with pytest.raises(InputError, match="too many to be simulated"):
        replay_of(question, plan, settings=QUICK)
    traced = question_of(tmp_path, {"each": TWELVE}, service=bursty(tmp_path), catalog=SMALL)
    found = planned(traced, verify=None)
    assert found.proof is None
    assert "W408" in {item.code for item in found.warnings}
    with pytest.raises(InputError, match="too many to be simulated"):
        planned(traced, verify=True)


def test_sizes_of_an_adapter_go_where_the_plan_sends_them(tmp_path):
    """Where a placement tells sizes apart, so does the router."""
    rng = np.random.default_rng(2)
    sizes = zip(
        rng.exponential(0.1, 4000).cumsum(), rng.choice([60, 6000], 4000), rng.choice([20, 300], 4000), strict=True
    )
    text = "".join(f"{at:.3f},{tokens},{out}\n" for at, tokens, out in sizes)
    (tmp_path / "two.csv").write_text("arrival_s,input_tokens,output_tokens\n" + text, encoding="utf-8")
    service = {"workload": {"trace": "two.csv", "grid": {"kind": "adaptive", "rows": 2, "columns": 2}}}
    catalog = {"providers": ["gcp"], "gpus": {"include": ["A100-40GB", "L4", "H100-80GB"]}}
    each = [adapter(f"a{i}", "4 req/s") for i in range(3)]
    question = question_of(tmp_path, {"each": each}, service=service, catalog=catalog)
    plan = planned(question)
    records = replay_of(question, plan, settings=replace(QUICK, n_requests=4000)).simulation.records
    n_sizes = {len(held.by_size_rps) for r in plan.adapters[0].placement for held in r.adapters}
    assert max(n_sizes) > 1
    served = np.zeros(len(holders(plan)))
    for row in plan.allocation:
        mine = [p for p in plan.adapters[0].placement if p.option == row.option]
        first = sum(other.replicas for other in plan.allocation[: plan.allocation.index(row)])
        for number, replica in enumerate(mine):
            served[first + number] = sum(held.rate_rps for held in replica.adapters)
    got = np.bincount(records.replica, minlength=len(served)) / len(records)
    alike = [frozenset(each) for each in holders(plan)]
    for names in set(alike):
        together = [index for index, each in enumerate(alike) if each == names]
        for option in {_option_of(plan, index) for index in together}:
            these = [index for index in together if _option_of(plan, index) == option]
            assert got[these].sum() == pytest.approx(served[these].sum() / served.sum(), abs=0.03)


def _option_of(plan, replica):
    return [row.option for row in plan.allocation for _ in range(row.replicas)][replica]
