"""Services with adapters, from the request to the plan: what is read, what it costs, what is refused."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import REPO

import planner
from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.adapters import Isolation, adapter_params
from planner.domain.hardware import EngineConfig, Market, Offer
from planner.domain.plan import PlanStatus
from planner.domain.problem import FleetProblem, ServingOption
from planner.domain.workload import Bucket, Demand
from planner.errors import InputError, SolverLiedError
from planner.files.documents import parse_document
from planner.files.plan_document import plan_to_document
from planner.files.plan_schema import plan_from_document, read_plan
from planner.optimize import Assignment, SolverSettings, solve
from planner.optimize.unserved import unserved_positions
from planner.planning import relax
from planner.planning.answer import read_question, read_request
from planner.planning.explain import explain
from planner.profilers.adapters import AdapterRoom
from planner.profilers.capacity import estimate_buckets
from planner.profilers.efficiency import default_params
from planner.profilers.roofline import kv_bytes_per_gpu, replica_memory
from planner.report.adapters import adapter_texts

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
TODAY = "2026-11-29"
CONSTANT = {"input_tokens": 800, "output_tokens": 200}


def adapter(name, rate="0.2 req/s", **given):
    return {"name": name, "rank": 16, "target_modules": "q k v o", "rate": rate} | given


def request(adapters, *, service=None, **given):
    asked = {
        "name": "chat",
        "model": MODEL,
        "adapters": adapters,
        "parallelism": {"tp": 1},
        "workload": {"constant": CONSTANT},
        "slo": ["ttft p99 <= 2s", "tpot mean <= 60ms"],
    }
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [asked | (service or {})],
        "catalog": {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-40GB"]}},
    } | given


WORK = {"name": "tuning", "kind": "fine-tune", "model": MODEL, "method": "lora", "tokens": "300e6", "deadline": "16h"}


def planned(adapters, **given):
    return planner.plan(request(adapters, **given), today=date.fromisoformat(TODAY))


@pytest.fixture(scope="module")
def mixed():
    """Two adapters that share an engine, one that must not, one that nobody asks for."""
    each = [adapter("a"), adapter("b", rank=20), adapter("own", isolation="dedicated"), adapter("idle", "0 req/s")]
    return planned({"each": each})


def test_adapters_share_replicas_unless_they_must_not(mixed):
    (item,) = mixed.plan.adapters
    together = {frozenset(held.adapter for held in replica.adapters) for replica in item.placement}
    assert together == {frozenset({"a", "b"}), frozenset({"own"})}
    assert item.idle == ("idle",)
    assert mixed.plan.rate_rps == pytest.approx(0.6)
    assert mixed.plan.gap == pytest.approx(0)


def test_slots_have_the_largest_rank_that_the_engine_knows(mixed):
    (host,) = (host for host in mixed.plan.adapters[0].hosts if host.isolation is Isolation.SHARED_PROCESS)
    assert host.slot_bytes == 2 * adapter_params(load_model(MODEL), rank=32, target_modules=["all-linear"])
    assert host.engine_flags == "--enable-lora --max-loras 2 --max-lora-rank 32 --max-cpu-loras 3"
    rows = [row for row in mixed.plan.allocation if row.option == host.option]
    assert rows[0].engine_flags == host.engine_flags


def test_a_slot_takes_more_where_tensor_parallelism_copies_half_of_it():
    problem = question_of({"each": [adapter("a"), adapter("b")]}, service={"parallelism": {"tp": [1, 2]}}).problem
    slots = {option.gpus_per_replica: option.slots for option in problem.options if option.slots.count == 2}
    assert 1.3 < slots[2].bytes_each / slots[1].bytes_each < 1.6
    assert slots[2].isolation is slots[1].isolation


def question_of(adapters, **given):
    asked = read_request(request(adapters, **given))
    return read_question(asked, base_dir=REPO, today=date.fromisoformat(TODAY), strict=False, current=None)


def held_bytes(slots):
    """Return what a replica holds with all of its slots taken."""
    beside, n = slots.beside, slots.count if slots.isolation is Isolation.SHARED_BACKBONE else 1
    processes = n * (beside.activations + beside.kv) + (n - 1) * beside.context
    return beside.weights + slots.count * slots.bytes_each + processes


LOOSE = {"slo": ["e2e mean <= 10min"]}
"""So that what a replica serves is what its memory holds."""


@pytest.mark.parametrize("isolation", ["shared-process", "shared-backbone"])
def test_every_option_with_slots_fits_the_memory_of_its_gpus(isolation):
    each = [adapter(f"a{i}") for i in range(12)]
    problem = question_of({"each": each, "isolation": isolation}, service=LOOSE).problem
    assert len(problem.options) > 2
    for option in problem.options:
        beside = option.slots.beside
        assert beside.usable < load_gpus().get("A100-40GB").memory_bytes
        assert beside.weights == pytest.approx(16.06e9, rel=0.01)
        assert 0.9 * beside.usable < held_bytes(option.slots) <= beside.usable * (1 + 1e-9)


@pytest.mark.parametrize("isolation", ["shared-process", "shared-backbone"])
def test_rates_that_forget_the_slots_are_found_out(isolation, monkeypatch):
    monkeypatch.setattr(AdapterRoom, "taken_bytes", lambda *_, **__: 0.0)
    each = [adapter(f"a{i}", "0.05 req/s", rank=256) for i in range(12)]
    with pytest.raises(SolverLiedError, match="its GPUs have"):
        planned({"each": each, "isolation": isolation}, service=LOOSE)


def test_the_check_is_told_what_each_adapter_may_share():
    problem = question_of({"each": [adapter("a"), adapter("own", isolation="dedicated")]}).problem
    asked = {tenant.name: tenant.isolation for tenant in problem.tenancies[0].tenants}
    assert asked == {"a": Isolation.SHARED_PROCESS, "own": Isolation.DEDICATED}


def test_the_other_ways_cost_no_less(mixed):
    (item,) = mixed.plan.adapters
    costs = {other.way: other.cost_usd_per_hour for other in item.alternatives}
    assert costs["dedicated"] == pytest.approx(1.5 * mixed.plan.cost_usd_per_hour)
    assert costs["one pool"] >= mixed.plan.cost_usd_per_hour - 1e-9


def test_the_document_is_read_back_as_it_was_written(mixed):
    again = plan_from_document(parse_document(mixed.to_json().encode(), name="plan.json"))
    assert again.adapters[0].hosts == mixed.plan.adapters[0].hosts
    assert planner_json(again) == mixed.to_json()


def planner_json(plan):
    return json.dumps(plan_to_document(plan), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def test_reports_tell_processes_from_slots_and_engines_whose_flags_are_not_known():
    each = [adapter(name) for name in "ab"] + [adapter(name, isolation="shared-backbone") for name in "cd"]
    text = planned({"each": each}, service={"engine": {"name": "vllm"}}).to_markdown()
    assert "1 replica with 2 slots, 1 replica with 2 processes on one copy of the weights." in text
    assert "Start engines that have slots with --enable-lora --max-loras 2 " in text
    assert "is not known here" not in text
    other = planned({"each": each[:2]}, service={"engine": {"name": "lmdeploy"}}).to_markdown()
    assert "How to start lmdeploy with adapters is not known here." in other
    assert "Start engines" not in other
    apart = planned({"each": each[2:]}, service={"engine": {"name": "lmdeploy"}}).to_markdown()
    assert "is not known here" not in apart  # no engine has slots


def test_replicas_with_the_same_room_are_counted_together(mixed):
    (item,) = mixed.plan.adapters
    shared = next(host for host in item.hosts if host.isolation is Isolation.SHARED_PROCESS)
    hosts = (*item.hosts, replace(shared, option="of another offer", replicas=2))
    (text,) = adapter_texts(replace(mixed.plan, adapters=(replace(item, hosts=hosts),)))
    assert "on 3 replicas with 2 slots, 1 replica of one merged adapter each" in text


def test_a_plan_says_whose_figure_the_time_of_adapters_is(mixed, tmp_path):
    published = "a published figure (Punica, arXiv 2310.18547: 2 ms a token of 32 layers), not measured on it."
    said = [text for text in mixed.plan.assumptions if "add to a step" in text]
    assert said == [f"chat: the time that adapters add to a step of vllm is {published}"]
    each = [adapter("a"), adapter("b")]
    own = tmp_path / "own.csv"
    own.write_text(
        "parameter,scope,value,unit,source,reason\nadapter_overhead_s,vllm,0.0001,s,measured,mine\n", encoding="utf-8"
    )
    for known in ({"service": {"engine": {"name": "s-lora"}}}, {"profiles": {"parameters": str(own)}}):
        assert not any(published in text for text in planned({"each": each}, **known).plan.assumptions)


def test_reports_say_where_adapters_are_and_what_they_cost(mixed):
    text = mixed.to_markdown()
    assert "3 adapters on 1 replica with 2 slots, 1 replica of one merged adapter each" in text
    assert "1 adapter without requests" in text
    assert "replicas for each adapter" in text
    assert "3 adapters on" in mixed.to_html()
    rows = list(csv.DictReader(io.StringIO(mixed.to_adapters_csv())))
    assert {row["adapter"] for row in rows} == {"a", "b", "own", "idle"}
    paid = sum({row["adapter"]: float(row["adapter_usd_per_month"]) for row in rows}.values())
    assert paid == pytest.approx(730 * mixed.plan.cost_usd_per_hour)


def test_plans_without_adapters_have_no_key_for_them():
    document = planner.plan(REPO / "examples" / "melange.json", verify=False).to_document()
    assert "adapters" not in document


def test_processes_on_one_backbone_are_few_and_slow():
    each = [adapter(f"a{i}", "0.01 req/s") for i in range(12)]
    shared = planned({"each": each, "isolation": "shared-backbone"}).plan
    one_engine = planned({"each": each}).plan
    assert len(one_engine.adapters[0].placement) == 1
    assert len(shared.adapters[0].placement) > 1
    assert {host.isolation for host in shared.adapters[0].hosts} == {Isolation.SHARED_BACKBONE}


def test_an_objective_of_its_own_is_kept_by_its_replicas():
    each = [adapter("a"), adapter("fast", slo=["ttft p99 <= 300ms", "tpot mean <= 14ms"])]
    found = planned({"each": each}, catalog={"providers": ["gcp"], "gpus": {"include": ["A100-40GB", "H100-80GB"]}})
    problem_gpu = {row.option: row.gpu for row in found.plan.allocation}
    place = {held.adapter: problem_gpu[r.option] for r in found.plan.adapters[0].placement for held in r.adapters}
    assert place["fast"] == "H100-80GB"


def test_a_trace_gives_an_adapter_its_rate(tmp_path):
    rows = "".join(f"{second}.0,100,10\n" for second in range(0, 101, 2))
    (tmp_path / "t.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    traced = {"name": "t", "rank": 8, "target_modules": "q v", "trace": "t.csv"}
    found = planner.plan(request({"each": [traced, adapter("a")]}), base_dir=tmp_path)
    rates = {share.adapter: share.rate_rps for share in found.plan.adapters[0].shares}
    assert rates["t"] == pytest.approx(51 / 100)
    assert "t.csv" in found.plan.inputs["files"]


@pytest.mark.parametrize(
    ("service", "given", "what", "field"),
    [
        (
            {"workload": {"constant": {"input_tokens": 8, "output_tokens": 2}, "rate": "9 req/s"}},
            {},
            "together 0.2",
            "rate",
        ),
        ({"disaggregate": "allowed"}, {}, "disaggregation", "disaggregate"),
        ({}, {"horizon": {"periods": "24h", "step": "1h"}}, "a horizon", "horizon"),
        ({}, {"robust": {"scenarios": [{"name": "launch", "demand": 2}]}}, "scenarios", "robust"),
        ({}, {"constraints": {"shed": "allowed"}}, "shed", None),
        ({}, {"constraints": {"spare_replicas": 1}}, "spare", None),
        ({}, {"constraints": {"survive": ["region"]}}, "survive region", None),
        ({}, {"deferrable": [WORK]}, "deferrable work", "deferrable"),
    ],
)
def test_what_does_not_combine_is_refused(service, given, what, field):
    with pytest.raises(InputError, match=what) as raised:
        planned({"each": [adapter("a")]}, service=service, **given)
    if field is not None:
        assert field in str(raised.value.where)


def test_a_rank_beyond_the_engine_and_a_module_that_is_not_there_are_refused():
    with pytest.raises(InputError, match="ranks up to 512"):
        planned({"each": [adapter("a"), adapter("b", rank=1024)]})
    with pytest.raises(InputError, match="no module 'x_proj'"):
        planned({"each": [adapter("a", target_modules=["x_proj"])]})
    with pytest.raises(InputError, match="Nothing is asked"):
        planned({"each": [adapter("a", "0 req/s")]})


def test_a_workload_without_adapters_still_needs_its_rate():
    with pytest.raises(InputError, match="says nothing of time"):
        planner.plan(request(None))


def test_a_plan_with_adapters_is_explained_and_swept(tmp_path, gpuplan):
    asked = request(
        {"each": [adapter("a"), adapter("b")]},
        catalog={"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-40GB", "H100-80GB"]}},
        constraints={"minimum": [{"gpu": "A100-40GB", "instances": 2}]},
    )
    path = tmp_path / "r.json"
    path.write_text(json.dumps(asked), encoding="utf-8")
    assert gpuplan("plan", path, "--assignment", "sliced").code == 2
    made = gpuplan("plan", path, "-o", tmp_path / "plan.json")
    assert made.code == 0
    assert "throughput_error" not in made.out  # what does not combine is no way out
    found = explain(read_plan(tmp_path / "plan.json"), plan_path=tmp_path / "plan.json", gpus=["H100-80GB"])
    one = planned({"each": [adapter("a"), adapter("b")]}).plan.cost_usd_per_hour
    assert found.cost_usd_per_hour == pytest.approx(2 * one)
    (minimum,) = found.limits
    assert minimum.saving_usd_per_hour == pytest.approx(one)  # without it one instance holds both
    h100 = {"catalog": {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["H100-80GB"]}}}
    another = planned({"each": [adapter("a"), adapter("b")]}, **h100).plan.cost_usd_per_hour  # one, beside the two
    assert found.gpus[0].extra_usd_per_hour == pytest.approx(another)
    ran = gpuplan("sweep", path, "--pareto", "cost,power", "--points", "2")
    assert ran.code == 0


def test_the_fewest_gpus_and_the_least_power_are_planned():
    each = [adapter(f"a{i}", "1 req/s") for i in range(3)]
    catalog = {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-40GB", "H100-80GB"]}}
    found = planned({"each": each}, catalog=catalog, objective={"minimise": ["power", "cost"]}).plan
    power, cost = found.objectives
    assert power.value == pytest.approx(found.power_w / 1000)
    assert power.bound == pytest.approx(power.value)
    assert cost.value == pytest.approx(found.cost_usd_per_hour)


def test_todays_replicas_stay_and_an_adapter_in_the_weights_is_not_another_one(mixed, tmp_path):
    today = tmp_path / "today.json"
    today.write_text(mixed.to_json(), encoding="utf-8")
    cost = {"constraints": {"change_cost": {"start": "2 USD", "stop": "0.50 USD", "horizon": "1h"}}}

    def after(own):
        each = [adapter("a"), adapter("b", rank=20), adapter(own, isolation="dedicated"), adapter("idle", "0 req/s")]
        asked = request({"each": each}, **cost)
        return planner.plan(asked, current=today, today=date.fromisoformat(TODAY), verify=False).plan

    same = after("own")
    assert (same.rollout, same.change_usd_per_hour) == ((), 0.0)
    other = after("newcomer")
    assert other.change_usd_per_hour == pytest.approx(2.5)
    moved = [(step.action, step.replicas) for step in other.rollout]
    assert moved == [("start", 1), ("route", 0), ("stop", 1)]
    assert any("loaded into it while it serves" in text for text in other.assumptions)


def test_spot_counts_for_its_availability_and_serves_no_more_than_its_part():
    catalog = {
        "providers": ["gcp"],
        "regions": ["us-central1"],
        "gpus": {"include": ["A100-40GB"]},
        "markets": ["on-demand", "spot"],
        "spot_availability": "80%",
    }
    each = [adapter("a", "20 req/s"), adapter("b", "15 req/s")]
    asked = request({"each": each}, catalog=catalog, constraints={"spot_share": {"max": "40%"}})
    day = date.fromisoformat(TODAY)
    options = read_question(read_request(asked), base_dir=REPO, today=day, strict=False, current=None).problem.options
    rates = {(str(option.offer.market), option.slots.count): option.throughput_rps for option in options}
    for (market, slots), rps in rates.items():
        assert rps == pytest.approx((0.8 if market == "spot" else 1.0) * rates["on-demand", slots])
    found = planner.plan(asked, today=day, verify=False).plan
    on_spot = sum(row.rate_rps for row in found.allocation if row.market == "spot")
    assert 0 < on_spot <= (0.4 + 1e-6) * found.rate_rps  # cheaper there, and capped


def test_users_elsewhere_cost_traffic_and_time():
    catalog = {"providers": ["gcp"], "gpus": {"include": ["A100-40GB"]}, "regions": ["us-central1", "europe-west4"]}
    egress = {"price": "0.02 USD/GB", "bytes_per_token": 400, "round_trip": "100ms"}
    users = {"users": {"europe-west4": "100%"}}
    each = [adapter("a"), adapter("own", slo=["ttft p99 <= 90ms", "tpot mean <= 60ms"])]
    found = planned({"each": each}, service=users, catalog=catalog | {"egress": egress}).plan
    region = {row.option: row.region for row in found.allocation}
    place = {h.adapter: region[r.option] for r in found.adapters[0].placement for h in r.adapters}
    assert place["own"] == "europe-west4"  # a round trip of 100 ms leaves nothing of its 90 ms elsewhere
    away = sum(row.rate_rps for row in found.allocation if row.region != "europe-west4")
    assert found.egress_gb_per_hour == pytest.approx(away * 3600 * 1000 * 400 / 1e9)


def test_at_a_peak_every_adapter_is_asked_for_so_many_times_as_often(tmp_path):
    busy = [60.0 + i / 10 for i in range(100)]  # 10 req/s for ten seconds of a minute with 1 req/s else
    times = sorted([*map(float, range(120)), *busy])
    rows = "".join(f"{t},100,10\n" for t in times)
    (tmp_path / "t.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    workload = {"trace": "t.csv", "peak": "max of 10s"}
    asked = request({"each": [adapter("a", "0.6 req/s"), adapter("b")]}, service={"workload": workload})
    found = planner.plan(asked, base_dir=tmp_path, verify=False).plan
    rates = {share.adapter: share.rate_rps for share in found.adapters[0].shares}
    mean = len(times) / (times[-1] - times[0])
    assert rates["a"] == pytest.approx(3 * rates["b"])
    assert sum(rates.values()) == pytest.approx(0.8 * 11.0 / mean, rel=0.02)
    assert any("at the peak" in text for text in found.assumptions)


def test_ways_out_of_an_objective_are_found_with_few_plans(monkeypatch):
    solves = []
    monkeypatch.setattr(relax, "solve", lambda *given, **more: solves.append(1) or solve(*given, **more))
    impossible = {"slo": ["ttft p99 <= 20ms", "tpot mean <= 60ms"]}
    each = [adapter("a", "4 req/s"), adapter("b"), adapter("own", isolation="dedicated")]
    found = planned({"each": each}, service=impossible).plan
    assert found.status is PlanStatus.INFEASIBLE
    (conflict,) = (each for each in found.conflicts if each.relaxed is not None)
    assert conflict.requirement == "chat: ttft p99 <= 20 ms"
    assert len(solves) <= 3

    def is_served(bound_s):
        asked = request({"each": each}, service={"slo": [f"ttft p99 <= {bound_s}s", "tpot mean <= 60ms"]})
        question = read_question(
            read_request(asked), base_dir=REPO, today=date.fromisoformat(TODAY), strict=False, current=None
        )
        return not unserved_positions(question.problem.demands[0], question.problem)

    assert is_served(conflict.relaxed)
    assert not is_served(conflict.relaxed * 0.97)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.1, 5), min_size=1, max_size=4), st.floats(0, 0.5))
def test_requests_cost_at_least_what_they_do_where_they_are_cheapest(rates, headroom):
    offers = [
        Offer(
            name=f"K{i}",
            provider="p",
            instance_type="t",
            region="r",
            market=Market.ON_DEMAND,
            gpu=f"G{i}",
            gpus_per_instance=2,
            price_usd_per_hour=1.0 + i,
        )
        for i in range(2)
    ]
    options = tuple(
        ServingOption(
            service="s",
            offer=each,
            gpus_per_replica=1,
            throughput_rps=np.array([1.0 + 2 * i, *[2.0] * (len(rates) - 1)]),
        )
        for i, each in enumerate(offers)
    )
    buckets = tuple(Bucket(row=i, column=0, rate_rps=rate) for i, rate in enumerate(rates))
    problem = FleetProblem(demands=(Demand(service="s", buckets=buckets),), options=options, headroom_fraction=headroom)
    plan = solve(problem, settings=SolverSettings(), assignment=Assignment.fractional())
    least = relax.least_cost(problem)
    assert least <= plan.cost_usd_per_hour + 1e-9
    # Each of two instances can be empty but for a request.
    assert least >= plan.cost_usd_per_hour - 3.0 - 1e-9


SIZES = {"input_tokens": np.array([800.0]), "output_tokens": np.array([200.0]), "slos": ()}


@pytest.mark.parametrize("isolation", [Isolation.SHARED_PROCESS, Isolation.SHARED_BACKBONE])
def test_more_room_for_adapters_serves_no_more(isolation):
    model, gpu, config = load_model(MODEL), load_gpus().get("A100-40GB"), EngineConfig()
    rates = []
    for count in (2, 4, 8, 16):
        room = AdapterRoom(count=count, bytes_each=1e8, isolation=isolation, context_bytes=0.5e9)
        found = estimate_buckets(model, gpu, config, params=default_params(), adapters=room, **SIZES)
        rates.append(float(found.rate_rps[0]))
    bare = float(estimate_buckets(model, gpu, config, params=default_params(), **SIZES).rate_rps[0])
    assert all(a >= b for a, b in zip([bare, *rates], rates, strict=False))


def test_slots_and_a_request_fit_the_memory_wherever_anything_is_served():
    model, gpu, config, params = load_model(MODEL), load_gpus().get("A100-40GB"), EngineConfig(), default_params()
    memory = replica_memory(model, gpu, config, params)
    sequence = float(kv_bytes_per_gpu(model, config, np.array([1000.0]), is_read=False)[0])
    most = int((memory.kv_bytes - sequence) // 1e8)
    for count, is_served in ((most, True), (most + 1, False)):
        room = AdapterRoom(count=count, bytes_each=1e8, isolation=Isolation.SHARED_PROCESS)
        found = estimate_buckets(model, gpu, config, params=params, adapters=room, **SIZES)
        assert bool(found.rate_rps[0] > 0) is is_served
    assert "adapters" in found.limiting[0]
