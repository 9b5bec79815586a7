"""All ways to serve adapters beside a plan: what each costs, how requests fare, and where that is from."""

from __future__ import annotations

import io
from datetime import date

import numpy as np
import pytest
from rich.console import Console

import planner
from planner.catalog.pay_per_use import load_pay_per_use
from planner.domain.plan import AdapterWay
from planner.files.documents import parse_document
from planner.files.plan_schema import plan_from_document
from planner.planning import adapter_comparison
from planner.planning.answer import read_question, read_request
from planner.planning.replay import replay_of
from planner.report.terminal import plan_renderables

TODAY = date(2026, 11, 29)
SLOS = ["ttft p99 <= 2s", "tpot mean <= 60ms"]
STORAGE = {"storage": "2 GB/s", "graphs": False}


def service(name, adapters, **given):
    return {
        "name": name,
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "adapters": {"each": adapters},
        "parallelism": {"tp": 1},
        "workload": {"constant": {"input_tokens": 800, "output_tokens": 200}},
        "slo": SLOS,
    } | given


def request_of(*services, gpus=("A100-40GB",)):
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": list(services),
        "catalog": {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": list(gpus)}},
    }


def planned(*services, base_dir=None, **given):
    return planner.plan(request_of(*services, **given), base_dir=base_dir, today=TODAY, verify=False)


def every(folder, name, gap_s, *, count=60):
    """Return an adapter with a request every `gap_s` seconds."""
    rows = "".join(f"{number * gap_s},800,200\n" for number in range(count))
    (folder / f"{name}.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    return {"name": name, "rank": 16, "target_modules": "q v", "trace": f"{name}.csv"}


def ways(result, index=0):
    return {other.way: other for other in result.plan.adapters[index].alternatives}


def printed(plan):
    stream = io.StringIO()
    console = Console(file=stream, width=160)
    for part in plan_renderables(plan, today=TODAY):
        console.print(part)
    return stream.getvalue()


def offer_called(name):
    return next(offer for offer in load_pay_per_use() if offer.name == name)


def test_who_is_asked_for_within_a_minute_keeps_a_container_and_pays_for_it(tmp_path):
    found = planned(service("chat", [every(tmp_path, "a", 20.0), every(tmp_path, "b", 20.0)]), base_dir=tmp_path)
    told = ways(found)
    assert list(told) == [AdapterWay.PLAN, AdapterWay.DEDICATED, AdapterWay.ONE_POOL, AdapterWay.SERVERLESS]
    plain = told[AdapterWay.SERVERLESS]
    assert plain.cost_usd_per_hour == pytest.approx(2 * 3600 * offer_called(plain.offer).usd_per_container_s, rel=0.01)
    assert plain.is_met
    assert plain.attainment == 1.0
    assert plain.ttft_p99_s < 1.0
    assert plain.requests == 60  # the second half of both
    assert told[AdapterWay.PLAN].cost_usd_per_hour == found.plan.cost_usd_per_hour
    for fleet in list(told.values())[:3]:  # on the same requests
        assert fleet.requests == 60
        assert fleet.is_met
        assert 0 < fleet.ttft_p50_s <= fleet.ttft_p99_s < 1.0


def test_who_is_asked_for_more_rarely_is_cold_each_time_and_pays_a_minute_more(tmp_path):
    # Container and libraries 4.3 s, weights of 16 GB at a quarter of 2 GB/s 32 s, kernels 0.5 s.
    rare = service("chat", [every(tmp_path, "a", 600.0), every(tmp_path, "b", 600.0)], scale_to_zero=STORAGE)
    plain = ways(planned(rare, base_dir=tmp_path))[AdapterWay.SERVERLESS]
    assert not plain.is_met
    assert plain.attainment == 0.0
    assert 36 < plain.ttft_p50_s < 39
    per_s = offer_called(plain.offer).usd_per_container_s
    # Start, answer and a minute of each ten: an answer of 200 tokens takes 3 to 12 s.
    low, high = ((60 + 37 + answer) / 600 * 2 * 3600 * per_s for answer in (3, 15))
    assert low < plain.cost_usd_per_hour < high


def test_what_was_compared_for_scale_to_zero_stands_in_the_same_table(tmp_path):
    asked = [every(tmp_path, "a", 90.0), every(tmp_path, "b", 70.0)]
    slow = ["ttft p50 <= 60s"]
    gpus = ["A100-40GB", "L4"]
    found = planned(
        service("chat", asked, scale_to_zero=STORAGE | {"clouds": ["runpod"], "mode": "compare"}, slo=slow),
        base_dir=tmp_path,
        gpus=gpus,
    )
    told = ways(found)
    assert list(told)[3:] == [AdapterWay.SERVERLESS, AdapterWay.KEPT, AdapterWay.SHARED_BACKBONE]
    rows = {row.way: row for row in found.plan.scale_to_zero[0].ways}
    shared = told[AdapterWay.SHARED_BACKBONE]
    assert shared.cost_usd_per_hour == pytest.approx(rows["shared-backbone"].cost_usd_per_hour)
    assert shared.ttft_p99_s == rows["shared-backbone"].ttft_p99_s
    again = plan_from_document(parse_document(found.to_json().encode(), name="plan.json"))
    assert [other.way for other in again.adapters[0].alternatives] == list(told)


def test_a_cloud_that_keeps_containers_says_for_how_long_on_shared_weights_too(tmp_path):
    asked = [every(tmp_path, "a", 3600.0), every(tmp_path, "b", 2800.0)]
    choice = STORAGE | {"clouds": ["gcp-cloud-run"]}
    found = planned(
        service("chat", asked, scale_to_zero=choice, slo=["ttft p50 <= 60s"]),
        base_dir=tmp_path,
        gpus=["A100-40GB", "L4"],
    )
    given_back = [way for way in found.plan.scale_to_zero[0].ways if way.offer == "gcp-cloud-run/L4"]
    assert [way.way for way in given_back] == ["serverless", "shared-backbone"]
    assert [way.keep_alive_s for way in given_back] == [900.0, 900.0]
    assert "kept by the cloud" not in found.to_markdown()


def test_costs_are_of_the_whole_plan_with_all_services_served_that_way(tmp_path):
    chat = service("chat", [every(tmp_path, "a", 20.0), every(tmp_path, "b", 20.0)])
    code = service("code", [every(tmp_path, "c", 20.0)])
    both = planned(chat, code, base_dir=tmp_path)
    alone = [ways(planned(each, base_dir=tmp_path))[AdapterWay.SERVERLESS].cost_usd_per_hour for each in (chat, code)]
    for index in (0, 1):
        assert ways(both, index)[AdapterWay.SERVERLESS].cost_usd_per_hour == pytest.approx(sum(alone))
    for text in (printed(both.plan), both.to_markdown(), both.to_html(), both._repr_html_()):
        for name in ("chat", "code"):
            assert f"adapters of {name} (USD/h of the whole plan, all adapters served so)" in text


def rated(name, rate, **given):
    return {"name": name, "rank": 16, "target_modules": "q v", "rate": rate} | given


def test_an_adapter_in_weights_of_its_own_is_what_plain_serverless_serves(tmp_path):
    asked = every(tmp_path, "a", 20.0)
    beside, merged = (ways(planned(service("chat", [asked | changes]), base_dir=tmp_path))[AdapterWay.SERVERLESS]
                      for changes in ({"isolation": "dedicated"}, {"merged": True}))  # fmt: skip
    assert merged.is_met
    assert merged.offer == beside.offer
    assert merged.cost_usd_per_hour == pytest.approx(beside.cost_usd_per_hour)


def test_a_service_without_requests_to_judge_by_leaves_the_others_theirs(tmp_path):
    # One request in five years: a day has none.
    found = planned(
        service("chat", [every(tmp_path, "a", 20.0), every(tmp_path, "b", 20.0)]),
        service("rare", [rated("c", "0.00002 req/h")]),
        base_dir=tmp_path,
    )
    chat, rare = ways(found), ways(found, 1)
    assert chat[AdapterWay.PLAN].requests == chat[AdapterWay.DEDICATED].requests == 60
    assert rare[AdapterWay.PLAN].is_met is None
    assert chat[AdapterWay.SERVERLESS].reason == "rare: There are too few requests to judge by"


def test_traces_are_played_over_and_over_beside_rates(tmp_path):
    found = planned(service("chat", [every(tmp_path, "a", 20.0), rated("b", "0.15 req/s")]), base_dir=tmp_path)
    # 0.05 and 0.15 req/s: 4,000 requests in 20,000 s, and the trace is 1,180 s long.
    for way in ways(found).values():
        assert way.is_met
        assert way.requests == pytest.approx(2000, rel=0.05)
    assert any("beside those of the traces, over and over" in text for text in found.plan.assumptions)


def test_at_a_peak_all_ways_have_as_many_requests_as_the_plan_is_for(tmp_path):
    times = np.concatenate([np.arange(0, 3000, 10.0), 3000 + np.arange(0, 600, 1.25)])
    rows = "".join(f"{at},800,200\n" for at in times)
    (tmp_path / "w.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    asked = [every(tmp_path, "a", 2.0, count=200), every(tmp_path, "b", 2.0, count=200)]
    calm, busy = (
        planned(service("chat", asked, workload={"trace": "w.csv"} | peak), base_dir=tmp_path)
        for peak in ({}, {"peak": "max of 1m"})
    )
    factor = busy.plan.rate_rps / calm.plan.rate_rps
    assert 3 < factor < 5
    mean, peak = ways(calm), ways(busy)
    assert peak[AdapterWay.SERVERLESS].requests == mean[AdapterWay.SERVERLESS].requests
    # The same 400 requests in a quarter of the time: more of them in a step.
    assert peak[AdapterWay.PLAN].ttft_p50_s > 1.01 * mean[AdapterWay.PLAN].ttft_p50_s
    assert any(f"come {factor:.3g} times as often as on average" in text for text in busy.plan.assumptions)
    rates = [rated("a", "0.005 req/s"), rated("b", "0.005 req/s")]
    found = planned(service("chat", rates, workload={"trace": "w.csv", "peak": "max of 1m"}), base_dir=tmp_path)
    plain = ways(found)[AdapterWay.SERVERLESS]
    flat = ways(planned(service("chat", rates, workload={"trace": "w.csv"}), base_dir=tmp_path))[AdapterWay.SERVERLESS]
    assert plain.cost_usd_per_hour == pytest.approx(flat.cost_usd_per_hour)  # a peak does not last
    assert plain.requests > 3 * flat.requests
    assert plain.attainment > flat.attainment  # asked for within the minute that containers are kept


def test_all_forms_show_the_table_and_say_what_is_replayed(tmp_path):
    found = planned(service("chat", [every(tmp_path, "a", 20.0), every(tmp_path, "b", 20.0)]), base_dir=tmp_path)
    for text in (printed(found.plan), found.to_markdown(), found.to_html(), found._repr_html_()):
        assert "Ways to serve the adapters of chat" in text
        assert "of the whole plan" not in text
        for words in ("replicas for each adapter", "one pool of equal replicas", "hold, 100% within; 60 replayed"):
            assert words in text
    assert not any(warning.code == "W415" for warning in found.plan.warnings)
    assert any("plain serverless: a container of" in text and "assumed" in text for text in found.plan.assumptions)


def test_a_fleet_that_is_too_small_for_bursts_is_shown_to_miss(tmp_path):
    # Forty requests at once, every two minutes: one replica at their mean rate answers the last of them too late.
    rows = "".join(f"{120 * burst},4000,20\n" for burst in range(10) for _ in range(40))
    (tmp_path / "a.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    adapters = [
        {"name": "a", "rank": 16, "target_modules": "q v", "trace": "a.csv"},
        every(tmp_path, "b", 20.0),
    ]
    sizes = {"constant": {"input_tokens": 4000, "output_tokens": 20}}
    found = planned(service("chat", adapters, workload=sizes), base_dir=tmp_path)
    own = ways(found)[AdapterWay.PLAN]
    assert own.is_met is False
    assert own.attainment < 0.9
    assert own.ttft_p99_s > 2.0
    (warning,) = (warning for warning in found.plan.warnings if warning.code == "W415")
    assert warning.observed == own.attainment
    assert "not proven: replayed beside other ways on 2" in found.to_markdown()


def test_the_plan_is_replayed_as_gpuplan_simulate_does(tmp_path):
    request = request_of(service("chat", [every(tmp_path, "a", 20.0), every(tmp_path, "b", 27.0)]))
    plan = planner.plan(request, base_dir=tmp_path, today=TODAY, verify=False).plan
    question = read_question(read_request(request), base_dir=tmp_path, today=TODAY, strict=False)
    records = replay_of(question, plan).simulation.records
    own = next(other for other in plan.adapters[0].alternatives if other.way is AdapterWay.PLAN)
    assert own.ttft_p50_s == pytest.approx(float(np.median(records.ttft_s)), rel=0.02)


def test_many_replicas_are_planned_and_not_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_comparison, "MOST_REPLICAS", 1)
    found = planned(service("chat", [every(tmp_path, "a", 20.0), every(tmp_path, "b", 20.0)]), base_dir=tmp_path)
    told = ways(found)
    assert told[AdapterWay.DEDICATED].is_met is None
    assert told[AdapterWay.PLAN].is_met
    assert "planned at mean rates" in found.to_markdown()
