"""Replays of every kind of plan: schedules, shed demand, pools of their own, power limits, jobs, spot and zones."""

import csv
import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

import planner
from planner.domain.disaggregation import Role
from planner.planning.explain import question_of
from planner.planning.replay import WARM_UP_FRACTION, ReplaySettings, prepare
from planner.planning.replay_traffic import LEAST_WINDOW_S
from planner.simulate.events import parse_event

SMALL = {"constant": {"input_tokens": 500, "output_tokens": 150}, "rate": "20 req/s"}
TRACE = {"trace": "bundled:azure_conv_2023", "rate": "12 req/s", "grid": {"kind": "adaptive", "rows": 2, "columns": 2}}
CHAT = {
    "name": "chat",
    "model": "meta-llama/Llama-3.1-8B",
    "parallelism": {"tp": [1]},
    "slo": ["ttft p99 <= 2s", "tpot p95 <= 60ms"],
}
H100 = {"bundled": False, "owned": [{"gpu": "H100-80GB", "count": 16, "region": "dc1", "price": "2 USD/h"}]}
REQUESTS = {
    "day": {
        "services": [{**CHAT, "workload": {**TRACE, "by_hour": "bundled:servegen_m_large"}}],
        "catalog": {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-40GB"]}},
        "horizon": {"periods": "6h", "step": "1h", "start_up": "5min"},
        "constraints": {"headroom": "25%"},
    },
    "shed": {
        "services": [
            {**CHAT, "workload": SMALL, "priority": 1},
            {**CHAT, "name": "batch", "workload": {**SMALL, "rate": "150 req/s"}, "priority": 2},
        ],
        "catalog": {**H100, "owned": [{**H100["owned"][0], "count": 2, "gpus_per_instance": 1}]},
        "constraints": {"shed": "allowed"},
    },
    "apart": {
        "services": [{**CHAT, "workload": SMALL, "disaggregate": "only", "engine": {"kv_transfer": "100 Gbit/s"}}],
        "catalog": H100,
    },
    "capped": {
        "services": [{**CHAT, "workload": SMALL, "engine": {"power_caps": ["50%"]}}],
        "catalog": H100,
    },
    "uncapped": {"services": [{**CHAT, "workload": SMALL}], "catalog": H100},
    "jobs": {
        "services": [{**CHAT, "workload": SMALL}],
        "catalog": H100,
        "deferrable": [
            {
                "name": "night",
                "model": "mistralai/Mistral-7B-v0.1",
                "parallelism": {"tp": [1]},
                "workload": {"constant": {"input_tokens": 1000, "output_tokens": 100}},
                "requests": 100_000,
                "deadline": "8h",
            }
        ],
    },
    "zones": {
        "services": [{**CHAT, "workload": SMALL}],
        "catalog": {
            "providers": ["gcp"],
            "regions": ["us-central1"],
            "gpus": {"include": ["A100-40GB"]},
            "markets": ["spot"],
            "spot_interruptions": {"gcp": "20%"},
            "spot_recovery": "15min",
        },
        "constraints": {"max_share": {"zone": "50%"}},
    },
}
N = "4000"


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """A folder with a plan.json of every kind."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, request in REQUESTS.items():
        whole = {"schema_version": "1", "kind": "PlanRequest", "name": name, **deepcopy(request)}
        planner.plan(whole, verify=False).save(folder / f"{name}.json")
    return folder


def prepared(plans, name):
    path = plans / f"{name}.json"
    plan = planner.read_plan(path)
    return prepare(question_of(plan, path), plan)


def replayed(plans, name, **settings):
    return prepared(plans, name).run(ReplaySettings(**settings))


def conserved(found):
    """Every request that came in was answered, turned away or never answered, and nothing else."""
    for service in found.services:
        index = list(found.slos).index(service.service)
        records = found.simulation.records
        counts_from_s = found.origin_s or WARM_UP_FRACTION * records.arrival_s[-1]
        records = records.select((records.service == index) & (records.arrival_s >= counts_from_s))
        answered = int(records.is_answered.sum())
        assert service.n_requests == answered + service.n_turned_away + service.n_unanswered
    return found


def test_a_schedule_has_each_period_s_fleet_and_rate(plans):
    ready = prepared(plans, "day")
    found = conserved(ready.run(ReplaySettings()))
    plan, horizon = ready.plan, ready.question.problem.horizon
    assert [phase.period for phase in found.phases] == list(range(6))
    counts = [sum(item.replicas for item in period.allocation) for period in plan.schedule]
    assert [phase.replicas for phase in found.phases] == counts
    assert len(set(counts)) > 1
    lengths = np.array([phase.end_s - phase.start_s for phase in found.phases])
    came = np.array([phase.services["chat"].n_requests for phase in found.phases]) / lengths
    assert came == pytest.approx(12.0 * np.array(horizon.factors["chat"]), rel=0.35)  # the trace is bursty
    assert came.mean() == pytest.approx(12.0 * np.mean(horizon.factors["chat"]), rel=0.1)
    assert not any(service.n_unanswered for service in found.services)
    assert found.simulation.records.restarts.sum() == 0  # what stops, drains
    records = found.simulation.records
    for phase, count in zip(found.phases, counts, strict=True):
        inside = (records.arrival_s - found.origin_s >= phase.start_s) & (
            records.arrival_s - found.origin_s < phase.end_s
        )
        assert len(set(records.replica[inside])) == count
    assert "played" in found.notes[0]


def test_poisson_arrivals_follow_the_rate_of_each_period_closely(plans):
    from planner.simulate.arrivals import parse_process

    ready = prepared(plans, "day")
    found = ready.run(ReplaySettings(process=parse_process("poisson"), n_requests=20_000))
    lengths = np.array([phase.end_s - phase.start_s for phase in found.phases])
    came = np.array([phase.services["chat"].n_requests for phase in found.phases]) / lengths
    assert came == pytest.approx(12.0 * np.array(ready.question.problem.horizon.factors["chat"]), rel=0.06)


def test_some_periods_alone_and_how_much_of_each_is_played(plans):
    found = replayed(plans, "day", periods=(2, 3))
    assert [phase.period for phase in found.phases] == [2, 3]
    assert found.phases[0].start_s == 0
    few = replayed(plans, "day", n_requests=1200)
    assert sum(service.n_requests for service in few.services) == pytest.approx(1200, rel=0.15)
    ready = prepared(plans, "day")
    long = replace(ready.question.problem.horizon, step_s=1e6)
    question = replace(ready.question, problem=replace(ready.question.problem, horizon=long))
    windows = [p.end_s - p.start_s for p in replace(ready, question=question).run(ReplaySettings()).phases]
    assert min(windows[:-1]) >= LEAST_WINDOW_S


def test_a_loss_within_a_schedule_counts_from_its_first_period(plans):
    event = parse_event("60s-120s: lose gpu A100-40GB")
    found = replayed(plans, "day", periods=(2, 3), events=(event,))
    wrong = [phase for phase in found.phases if phase.events]
    assert [(phase.start_s, phase.end_s) for phase in wrong] == [(60.0, 120.0)]
    assert wrong[0].attainment["chat"] < 0.05
    records = found.simulation.records
    first = records.arrival_s[(records.restarts > 0)] - found.origin_s
    assert len(first)
    assert first.max() < 60.0
    # Started anew: nobody who came while it was lost has an answer before the start-up time of 5 min is over.
    inside = (records.arrival_s - found.origin_s > 60) & (records.arrival_s - found.origin_s < 120)
    assert (records.arrival_s + records.ttft_s)[inside].min() - found.origin_s > 120 + 300


def test_what_the_plan_leaves_unserved_is_turned_away(plans):
    ready = prepared(plans, "shed")
    found = conserved(ready.run(ReplaySettings(n_requests=8000)))
    by_name = {service.service: service for service in found.services}
    fraction = ready.plan.unserved[0].fraction
    assert 0 < fraction < 1
    batch = by_name[ready.plan.unserved[0].service]
    assert batch.n_turned_away / batch.n_requests == pytest.approx(fraction, abs=0.02)
    assert by_name["chat"].n_turned_away == 0
    assert batch.attainment_of_all.value == pytest.approx(
        batch.attainment.value * (1 - batch.n_turned_away / batch.n_requests)
    )
    assert found.to_dict()["services"]["batch"]["turned_away"] == batch.n_turned_away


def test_prefill_and_decode_serve_apart(plans):
    ready = prepared(plans, "apart")
    found = conserved(ready.run(ReplaySettings(n_requests=8000)))
    roles = [item.role for item in ready.plan.allocation]
    assert set(roles) == {Role.PREFILL, Role.DECODE}
    pools = np.repeat(np.arange(len(roles)), [item.replicas for item in ready.plan.allocation])
    assert {roles[pools[r]] for r in set(found.simulation.records.replica)} == {Role.DECODE}
    assert all(pool.utilization > 0.05 for pool in found.pools)
    assert found.services[0].n_unanswered == 0


def test_a_slower_network_makes_first_tokens_wait(plans):
    ready = prepared(plans, "apart")
    fast = ready.run(ReplaySettings(n_requests=3000))
    options = tuple(
        replace(option, handover=replace(option.handover, bytes_per_s=option.handover.bytes_per_s / 50))
        if option.handover
        else option
        for option in ready.question.problem.options
    )
    question = replace(ready.question, problem=replace(ready.question.problem, options=options))
    slow = replace(ready, question=question).run(ReplaySettings(n_requests=3000))
    gaps = [np.median(found.simulation.records.longest_gap_s) for found in (fast, slow)]
    # 500 tokens of an 8B model are 65 MB: 5 ms at 12.5 GB/s, and fifty times as much at a fiftieth of it
    assert gaps[1] - gaps[0] > 0.2


def test_gpus_at_a_lower_power_limit_are_slower(plans):
    capped, own = (prepared(plans, name) for name in ("capped", "uncapped"))
    assert capped.plan.allocation[0].power_cap_w == 350
    ran = [ready.run(ReplaySettings(n_requests=3000, load=0.1)) for ready in (capped, own)]
    ttft = [np.median(found.simulation.records.ttft_s) for found in ran]
    assert 1.15 < ttft[0] / ttft[1] < 3  # prefills are bound by arithmetic


def test_services_are_replayed_without_the_jobs_beside_them_and_it_is_said(plans):
    ready = prepared(plans, "jobs")
    assert any(item.service == "night" for item in ready.plan.allocation)
    found = ready.run(ReplaySettings(n_requests=3000))
    assert [service.service for service in found.services] == ["chat"]
    assert all(pool.name.startswith("chat on ") for pool in found.pools)
    assert any("night" in note and "not replayed" in note for note in found.notes)


def test_a_zone_can_be_lost(plans):
    ready = prepared(plans, "zones")
    zones = sorted({rental.zone for rental in ready.plan.rentals})
    assert len(zones) > 1
    calm = ready.run(ReplaySettings(n_requests=6000))
    event = parse_event(f"60s-150s: lose zone {zones[0]}")
    found = conserved(ready.run(ReplaySettings(n_requests=6000, events=(event,))))
    lost = sum(item.replicas for item in ready.plan.allocation if item.offer.endswith(zones[0]))
    assert found.n_lost == lost > 0
    assert found.phases[1].attainment["chat"] < calm.services[0].attainment.value


def test_spot_is_reclaimed_as_often_as_the_request_says(plans):
    from planner.simulate.events import AS_THE_CATALOG_SAYS

    ready = prepared(plans, "zones")
    settings = ReplaySettings(n_requests=3000, events=(AS_THE_CATALOG_SAYS,), n_replications=2)
    assert ready.run(settings).n_lost == 0  # 20% a month is nothing in minutes
    often = parse_event("spot at 3000%/h")
    found = ready.run(ReplaySettings(n_requests=6000, events=(often,), n_replications=3))
    assert found.n_lost > 0
    assert found.simulation.records.restarts.sum() > 0


@pytest.mark.parametrize("name", ["day", "shed", "apart"])
def test_replications_do_not_depend_on_the_threads(plans, name):
    ready = prepared(plans, name)
    events = (parse_event("fail every 1h, back in 10s"),)
    one, two = (
        ready.run(ReplaySettings(n_requests=2000, n_replications=3, n_threads=threads, seed=5, events=events))
        for threads in (1, 2)
    )
    first, second = one.to_dict(), two.to_dict()
    first.pop("seconds"), second.pop("seconds")
    assert first == second
    assert one.simulation.records.e2e_s.tobytes() == two.simulation.records.e2e_s.tobytes()
    other = ready.run(ReplaySettings(n_requests=2000, n_replications=3, seed=6, events=events))
    assert other.to_dict()["services"] != first["services"]


def test_replications_differ_and_their_interval_holds_each_statistic_s_mean(plans):
    ready = prepared(plans, "day")
    runs = [ready.run(ReplaySettings(n_requests=3000, seed=seed)) for seed in range(3)]
    together = ready.run(ReplaySettings(n_requests=3000, n_replications=8))
    found = together.services[0].slos[0].simulated
    assert found.low < found.value < found.high
    assert together.n_replications == 8
    assert together.services[0].n_requests > 7 * runs[0].services[0].n_requests * 0.8


def test_the_command_says_what_was_played_of_a_schedule(gpuplan, plans):
    ran = gpuplan("simulate", plans / "day.json", "--requests", N, "--periods", "1-4")
    assert ran.code in {0, 5}
    assert "Every one of 4 periods is played for its first" in " ".join(ran.out.split())
    assert ran.out.count("\n     ") >= 4
    found = gpuplan("simulate", plans / "day.json", "--requests", N, "--json").json
    assert [phase["period"] for phase in found["phases"]] == list(range(6))
    assert all(phase["services"]["chat"]["requests"] for phase in found["phases"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["day.json", "--periods", "4-9"], "no period 9"),
        (["day.json", "--periods", "late"], "names no periods"),
        (["day.json", "--periods", "3-1"], "names no periods"),
        (["shed.json", "--periods", "0"], "one steady state"),
        (["shed.json", "--arrivals", "trace"], "no arrival times to replay"),
        (["shed.json", "--arrivals", "gamma"], "no way for requests to arrive"),
        (["shed.json", "--spot-interruptions"], "nothing on spot"),
        (["shed.json", "--event", "fail every 1h"], "how long a replica that fails is away"),
        (["shed.json", "--event", "1s-2s: lose zone a"], "does not say in which zone"),
        (["shed.json", "--records", "x.txt"], "names no format"),
        (["shed.json", "-o", "missing/x.html"], "folder does not exist"),
    ],
)
def test_what_cannot_be_is_told(gpuplan, plans, monkeypatch, arguments, words):
    monkeypatch.chdir(plans)
    ran = gpuplan("simulate", *arguments)
    assert ran.code == 2
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_records_have_every_request(gpuplan, plans, tmp_path):
    import pyarrow.parquet as pq

    arguments = ["simulate", plans / "shed.json", "--requests", "1000", "--json", "--records"]
    found = gpuplan(*arguments, tmp_path / "all.csv").json
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert len(rows) == found["requests"]
    away = [row for row in rows if row["is_turned_away"] == "True"]
    assert away
    assert all(row["ttft_s"] == row["e2e_s"] == "" for row in away)
    served = [row for row in rows if row["is_turned_away"] == "False"]
    assert all(0 < float(row["ttft_s"]) <= float(row["e2e_s"]) for row in served)
    assert {row["service"] for row in rows} == {"chat", "batch"}
    gpuplan(*arguments, tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.num_rows == len(rows)
    assert table.column("ttft_s").null_count == len(away)
    assert gpuplan(*arguments, tmp_path / "all.csv").code == 2  # it exists


def test_a_page_loads_nothing_and_shows_what_went_wrong(gpuplan, plans, tmp_path):
    event = "20s-60s: lose market spot"
    ran = gpuplan(
        "simulate", plans / "zones.json", "--requests", N, "--event", event, "-o", tmp_path / "r.html", "-o",
        tmp_path / "r.json", "--replications", "2",
    )  # fmt: skip
    assert ran.code == 5
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") >= 2
    assert "http" not in page.replace("http-equiv", "")
    assert 'class="mark"' in page
    assert "lose market spot" in page
    assert "an SLO is missed" in page
    assert "NaN" not in page
    assert json.loads((tmp_path / "r.json").read_text())["replications"] == 2


def test_a_sweep_over_load_finds_the_knee(gpuplan, plans, tmp_path):
    arguments = ["sweep", plans / "uncapped.json", "--load", "0.5-4", "--points", "4", "--requests", N]
    ran = gpuplan(*arguments, "--json", "-o", tmp_path / "k.csv", "-o", tmp_path / "k.html")
    assert ran.code == 0
    found = ran.json
    loads = [point["load"] for point in found["points"]]
    assert loads == sorted(loads)
    assert {0.5, 4.0} <= set(loads)
    below = [point for point in found["points"] if point["load"] <= found["knee"]]
    above = next(point for point in found["points"] if point["load"] > found["knee"])
    assert all(point["met"] for point in below)
    assert not above["met"]
    assert above["load"] / found["knee"] <= 1.011
    assert found["breaks"]
    rows = list(csv.DictReader((tmp_path / "k.csv").read_text().splitlines()))
    assert len(rows) == 2 * len(loads)
    page = (tmp_path / "k.html").read_text()
    assert "knee" in page
    assert page.count("<svg") >= 2
    # The knee holds in a replay of its own, and what is above it does not.
    for load, code in ((found["knee"], 0), (above["load"], 5)):
        assert gpuplan("simulate", plans / "uncapped.json", "--requests", N, "--load", load).code == code


def test_a_knee_outside_of_the_range_is_told(gpuplan, plans):
    low = gpuplan("sweep", plans / "uncapped.json", "--load", "0.1-0.2", "--points", "2", "--requests", N)
    assert "holds up to 0.2 times the planned rate, the most that was tried" in " ".join(low.out.split())
    high = gpuplan("sweep", plans / "uncapped.json", "--load", "20-21", "--points", "2", "--requests", N)
    assert "Already at 20 times" in " ".join(high.out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["uncapped.json", "--load", "1.5"], "no range of loads"),
        (["uncapped.json", "--load", "2-1"], "no range of loads"),
        (["uncapped.json", "--load", "0-1"], "no range of loads"),
        (["uncapped.json", "--load", "0.5-1", "--pareto", "cost,power"], "--pareto is for the front"),
        (["uncapped.json", "--load", "0.5-1", "--time-limit", "5s"], "--time-limit is for the front"),
        (["uncapped.json", "--replications", "2"], "--replications is for a plan that is replayed over load"),
        (["uncapped.json"], "kind is 'Plan'"),
        (["missing.json", "--load", "0.5-1"], "missing.json"),
    ],
)
def test_the_two_uses_of_sweep_are_not_mixed(gpuplan, plans, monkeypatch, arguments, words):
    monkeypatch.chdir(plans)
    ran = gpuplan("sweep", *arguments)
    assert ran.code == 2
    assert words in ran.err


def test_a_handful_of_requests_is_replayed_too(gpuplan, plans):
    found = gpuplan("simulate", plans / "uncapped.json", "--requests", "5", "--json")
    assert found.code == 0
    assert found.json["services"]["chat"]["slo"][0]["interval_s"][1] is None  # too few to say


@pytest.mark.parametrize("seed", [1, 4])
def test_replications_are_cut_at_the_same_times(gpuplan, plans, seed):
    found = gpuplan(
        "simulate", plans / "uncapped.json", "--requests", "30", "--arrivals", "poisson", "--replications", "6",
        "--seed", seed, "--event", "0s-980ms: load x 1", "--json",
    )  # fmt: skip
    assert found.code in {0, 5}, found.err
    assert len(found.json["phases"]) == 2


def test_an_objective_that_no_request_has_is_not_missed(gpuplan, plans, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    lines = "\n".join(f"{i * 0.05:.2f},500,1" for i in range(2000))
    (tmp_path / "first_tokens.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{lines}\n")
    found = gpuplan("simulate", plans / "uncapped.json", "--trace", tmp_path / "first_tokens.csv")
    assert found.code == 0, found.out + found.err
    assert "none to judge" in found.out
