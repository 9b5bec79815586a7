"""Adapters that a plan has elsewhere than the one that runs today: named in every form, and none that stays."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import planner
from planner.files.documents import parse_document
from planner.files.plan_schema import plan_from_document
from planner.planning.adapter_moves import with_moves
from planner.planning.answer import read_question, read_request

TODAY = date(2026, 11, 29)
RATES = [3.1, 2.7, 2.2, 1.3, 0.9, 0.6]


def request(rates=RATES):
    each = [
        {"name": f"a{number}", "rank": 16, "target_modules": "q v", "rate": f"{rate} req/s"}
        for number, rate in enumerate(rates)
    ]
    service = {
        "name": "chat",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "adapters": {"each": each},
        "parallelism": {"tp": 1},
        "workload": {"constant": {"input_tokens": 800, "output_tokens": 200}},
        "slo": ["ttft p99 <= 2s", "tpot mean <= 60ms"],
    }
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [service],
        "catalog": {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-40GB"]}},
    }


def held(replica):
    return {each.adapter for each in replica.adapters}


def test_adapters_that_are_elsewhere_than_today_are_named_and_no_others(tmp_path):
    first = planner.plan(request(), today=TODAY, verify=False)
    (item,) = first.plan.adapters
    assert item.moved is None
    path = tmp_path / "today.json"
    path.write_text(first.to_json(), encoding="utf-8")
    problem = read_question(read_request(request()), base_dir=tmp_path, today=TODAY, strict=False, current=path).problem

    def moved(placement):
        """Return the plan with what it says where the replicas hold this today."""
        return with_moves(problem, first.plan, [replace(item, placement=tuple(placement))])

    assert moved(item.placement).adapters[0].moved == ()
    # In another order they are the same replicas.
    assert moved(reversed(item.placement)).adapters[0].moved == ()
    one, *others = item.placement
    two = next(other for other in others if held(other) != held(one))
    was = {id(one): replace(one, adapters=two.adapters[:1] + one.adapters[1:])}
    was[id(two)] = replace(two, adapters=one.adapters[:1] + two.adapters[1:])
    found = replace(first, plan=moved([was.get(id(replica), replica) for replica in item.placement]))
    swapped = {one.adapters[0].adapter, two.adapters[0].adapter}
    assert set(found.plan.adapters[0].moved) == swapped
    for text in (found.to_markdown(), found.to_html()):
        assert "2 adapters of chat are on other replicas than today" in text
    document = parse_document(found.to_json().encode(), name="plan.json")
    assert set(plan_from_document(document).adapters[0].moved) == swapped
    assert moved([]).adapters[0].moved == ()  # nobody was anywhere


def test_who_is_somewhere_stays_there_as_long_as_it_serves(tmp_path):
    first = planner.plan(request(), today=TODAY, verify=False)
    (item,) = first.plan.adapters
    path = tmp_path / "today.json"

    def after(placement, rates=RATES):
        today = replace(first, plan=replace(first.plan, adapters=(replace(item, placement=tuple(placement)),)))
        path.write_text(today.to_json(), encoding="utf-8")
        return planner.plan(request(rates), today=TODAY, verify=False, current=path)

    def places(found):
        return sorted(sorted(held(replica)) for replica in found.plan.adapters[0].placement)

    # Of one place that costs the same and another the search finds one, whatever is there today: the least asked for
    # of the fullest replica go to the emptiest.
    full, *_, empty = sorted(item.placement, key=lambda each: -each.utilization)
    least = min(full.adapters, key=lambda each: each.rate_rps)
    other = [replica for replica in item.placement if replica not in (full, empty)]
    rest = tuple(each for each in full.adapters if each is not least)
    today = [*other, replace(full, adapters=rest), replace(empty, adapters=(*empty.adapters, least))]
    kept = after(today)
    assert places(kept) == sorted(sorted(held(replica)) for replica in today) != places(first)
    assert kept.plan.adapters[0].moved == ()
    assert kept.plan.cost_usd_per_hour == first.plan.cost_usd_per_hour
    # A little more of one, and they stay; where they do not fit any more they move.
    assert places(after(today, [RATES[0] * 1.02, *RATES[1:]])) == places(kept)
    more = after(today, [*RATES[:3], 0.2, 0.2, 0.2])
    assert more.plan.cost_usd_per_hour <= first.plan.cost_usd_per_hour
