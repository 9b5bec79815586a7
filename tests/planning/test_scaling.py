"""Replicas that are given back while nobody asks: what is learnt, what is judged, and what plans say of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from planner.domain.pay_per_use import PayPerUse
from planner.domain.scaling import ScaledService, ScalingWay
from planner.files.slo import parse_slo
from planner.optimize.keep_alive import KeepAlivePrices, best_keep_alive, idle_gaps
from planner.optimize.preload import Tier
from planner.planning.answer import plan
from planner.planning.scaling_replica import Candidate, ReplicaKind, Requests, learnt, play, replica_kind
from planner.planning.scaling_ways import chosen
from planner.profilers.adapter_batching import BatchLatency
from planner.profilers.startup import Quantiles
from planner.simulate.functions.setting import NOTHING, Setting, StartTimes

START_S, FIRST_S, LATER_S = 20.0, 0.5, 1.5


SURE = Quantiles(START_S, START_S)


def kind(*, start=SURE, most_batch=8):
    setting = Setting(
        gpu_bytes=1.0,
        host_bytes=math.inf,
        backbone_bytes=1.0,
        context_bytes=0.0,
        kv_bytes=0.0,
        container_bytes=1.0,
        prefill=BatchLatency(first_s=FIRST_S, per_request_s=0.1),
        decode=BatchLatency(first_s=LATER_S, per_request_s=0.1),
        start=StartTimes(
            container_s=NOTHING,
            libraries_s=NOTHING,
            backbone_s={Tier.DISK: start},
            backbone_shared_s=NOTHING,
            adapter_s={Tier.DISK: NOTHING, Tier.HOST: NOTHING},
            kernels_s=NOTHING,
        ),
    )
    return ReplicaKind(gpu="L4", n_gpus=2, setting=setting, most_batch=most_batch, mean_output_tokens=11.0)


def candidate(*, way=ScalingWay.PAY_PER_USE, provision_s=0.0, start=SURE, **billing):
    sold = PayPerUse(**({"name": "a/L4", "provider": "a", "gpu": "L4", "usd_per_gpu_s": 1e-3} | billing))
    return Candidate(way=way, kind=kind(start=start), billing=sold, provision_s=provision_s)


def requests(times, *, end_s=None, output_tokens=11.0):
    arrivals = np.asarray(times, dtype=np.float64)
    n = len(arrivals)
    return Requests(
        arrival_s=arrivals,
        input_tokens=np.full(n, 100.0),
        output_tokens=np.full(n, output_tokens),
        duration_s=float(end_s or arrivals[-1] + 100.0),
    )


def slos(*texts):
    return [parse_slo(text) for text in texts]


TIMER = requests(100.0 * np.arange(100))
"""A request every 100 s: 98 s idle in between, and a start takes 20."""


# --- one rule --------------------------------------------------------------------------------------------------------


def test_what_is_given_back_at_once_pays_for_starts_and_work():
    outcome = play(candidate(), TIMER, slos("ttft p50 <= 1s"), rule="never", keep_alive_s=0.0, missed_usd=0.01)
    assert outcome.replay.records.ttft_s == pytest.approx([START_S + FIRST_S] * 100)
    assert not outcome.is_met
    assert outcome.attainment == 0.0
    assert outcome.cost_usd == pytest.approx(100 * 2 * 1e-3 * (START_S + FIRST_S + LATER_S))  # two GPUs
    assert outcome.missed_usd == pytest.approx(100 * 0.01)


def test_what_is_kept_over_the_gaps_pays_for_them_and_starts_once():
    outcome = play(candidate(), TIMER, slos("ttft p50 <= 1s"), rule="long", keep_alive_s=98.0, missed_usd=0.01)
    assert outcome.is_met
    assert outcome.attainment == 0.99
    assert outcome.missed_usd == pytest.approx(0.01)
    assert outcome.cost_usd == pytest.approx(2 * 1e-3 * TIMER.duration_s, rel=0.01)
    tail = play(candidate(), TIMER, slos("ttft p99.5 <= 1s"), rule="long", keep_alive_s=98.0, missed_usd=0.0)
    assert not tail.is_met  # the one cold start is in the tail


def test_answers_have_their_own_lengths():
    """TPOT and E2E follow each request's tokens; one token has no TPOT."""
    mixed = replace(TIMER, output_tokens=np.where(np.arange(100) % 2, 21.0, 1.0))
    outcome = play(candidate(), mixed, slos("e2e p99 <= 4s"), rule="long", keep_alive_s=100.0, missed_usd=0.0)
    e2e = outcome.replay.records.e2e_s[2:]
    assert e2e[0::2] == pytest.approx([FIRST_S] * 49)
    assert e2e[1::2] == pytest.approx([FIRST_S + 2 * LATER_S] * 49)
    tpot = LATER_S / 10
    for bound, is_met in ((tpot * 1.01, True), (tpot * 0.99, False)):
        slo = [replace(parse_slo("tpot p90 <= 1s"), bound_s=bound)]
        assert play(candidate(), mixed, slo, rule="", keep_alive_s=100.0, missed_usd=0.0).is_met is is_met


def test_rented_machines_are_waited_for_and_paid_meanwhile():
    rented = candidate(way=ScalingWay.SCALE_TO_ZERO, provision_s=60.0)
    outcome = play(rented, TIMER, slos("ttft p50 <= 90s"), rule="never", keep_alive_s=0.0, missed_usd=0.0)
    assert outcome.replay.records.ttft_s == pytest.approx([60.0 + START_S + FIRST_S] * 100)
    assert outcome.cost_usd == pytest.approx(100 * 2 * 1e-3 * (60.0 + START_S + FIRST_S + LATER_S))


def test_a_burst_waits_for_one_start_and_then_gets_more_replicas():
    burst = requests(np.zeros(20), end_s=1000.0)
    outcome = play(candidate(), burst, slos("ttft p50 <= 90s"), rule="never", keep_alive_s=0.0, missed_usd=0.0)
    assert outcome.replay.n_starts == 3  # batches of 8
    assert (outcome.replay.records.ttft_s >= START_S).all()


def test_cold_starts_have_their_tail():
    sure, unsure = (
        play(
            candidate(start=start), requests(1000.0 * np.arange(400)), slos("ttft p50 <= 1s"),
            rule="never", keep_alive_s=0.0, missed_usd=0.0,
        ).replay.records.ttft_s
        for start in (SURE, Quantiles(START_S, 3 * START_S))
    )  # fmt: skip
    assert np.median(unsure) == pytest.approx(np.median(sure), rel=0.1)
    assert np.quantile(unsure, 0.99) == pytest.approx(3 * START_S + FIRST_S, rel=0.25)
    assert np.quantile(sure, 0.99) == pytest.approx(START_S + FIRST_S)


# --- what is learnt --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "missed_usd", "kept_s"),
    [
        (("ttft p50 <= 90s",), 0.0, 0.0),  # a start costs 20 s of a replica, and idling 98
        (("ttft p50 <= 90s",), 1.0, 0.0),  # a cold start is no miss
        (("ttft p50 <= 1s",), 0.0, 98.0),  # the objective has to hold
        (("ttft p1 <= 1s",), 1.0, 98.0),  # a late answer is dear
        (("ttft p1 <= 1s", "e2e p1 <= 60s"), 0.0, 98.0),
    ],
)
def test_a_timer_is_kept_or_not(texts, missed_usd, kept_s):
    found = learnt(candidate(), TIMER, slos(*texts), missed_usd=missed_usd)
    assert found.keep_alive_s == pytest.approx(kept_s)
    assert found.rule == "learnt"


def test_a_cloud_that_keeps_as_it_likes_leaves_nothing_to_learn():
    found = learnt(candidate(keep_alive_s=300.0), TIMER, slos("ttft p50 <= 90s"), missed_usd=0.0)
    assert (found.rule, found.keep_alive_s) == ("as the cloud keeps it", 300.0)


@settings(max_examples=15, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    gaps=st.lists(st.floats(30.0, 400.0), min_size=20, max_size=40),
    percentile=st.sampled_from([10, 30, 50, 70, 90]),
    missed_usd=st.sampled_from([0.0, 0.02, 1.0]),
)
def test_the_shortest_time_that_holds_is_found(gaps, percentile, missed_usd):
    """Against every gap as the time to keep, where each request is over before the next one: one replica is enough."""
    seen, asked_for = requests(np.cumsum([0.0, *gaps])), slos(f"ttft p{percentile} <= 1s")
    found = learnt(candidate(), seen, asked_for, missed_usd=missed_usd)
    idle = idle_gaps(seen.arrival_s, service_s=FIRST_S + LATER_S, end_s=seen.duration_s)
    every = [
        play(candidate(), seen, asked_for, rule="", keep_alive_s=time_s, missed_usd=missed_usd)
        for time_s in [0.0, *np.unique(idle.gaps_s).tolist(), math.inf]
    ]
    for shorter, longer in pairwise(every):
        assert longer.attainment >= shorter.attainment
    prices = KeepAlivePrices(idle_usd_per_s=2e-3, cold_start_usd=2e-3 * START_S + missed_usd)
    cheapest_s = best_keep_alive(idle, prices).until_s
    safe = [outcome.keep_alive_s for outcome in every if outcome.is_safe]
    if safe:
        assert found.is_safe
        assert found.keep_alive_s == pytest.approx(max(cheapest_s, min(safe)))
    else:
        assert not found.is_safe
        assert found.attainment == max(outcome.attainment for outcome in every)


def test_only_the_first_half_is_learnt_from(repo, tmp_path):
    """Whatever comes later, what is decided stays."""
    header, *rows = (repo / "examples/rare.csv").read_text(encoding="utf-8").split()
    middle = float(rows[-1].split(",")[0]) / 2
    late = [row for row in rows[:-1] if float(row.split(",")[0]) >= middle]
    sparse = [row for row in rows if row not in late[::3]]
    (tmp_path / "all.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    (tmp_path / "sparse.csv").write_text("\n".join([header, *sparse]), encoding="utf-8")
    whole, fewer = (
        plan(asked(trace=name), base_dir=tmp_path, verify=False).plan.scale_to_zero[0]
        for name in ("all.csv", "sparse.csv")
    )
    assert fewer.requests < 0.8 * whole.requests
    assert fewer.judged_s == pytest.approx(whole.judged_s)
    assert fewer.ways[1].keep_alive_s == pytest.approx(
        whole.ways[1].keep_alive_s, abs=1.0
    )  # mean sizes differ a little
    assert fewer.ways[1].cost_usd_per_hour != whole.ways[1].cost_usd_per_hour


def test_safely_means_more_than_just():
    """Twenty of forty in time are not enough for a median that is to hold on the other half, too."""
    gaps = [50.0] * 20 + [300.0] * 20
    seen = requests(np.cumsum([0.0, *gaps]))
    found = learnt(candidate(), seen, slos("ttft p48 <= 1s"), missed_usd=0.0)
    assert found.keep_alive_s == pytest.approx(298.0)
    enough = learnt(candidate(), seen, slos("ttft p40 <= 1s"), missed_usd=0.0)
    assert enough.keep_alive_s == pytest.approx(48.0)


# --- who is cheapest -------------------------------------------------------------------------------------------------


def way(cost, *, missed=0.0, is_met=True):
    return ScaledService(
        way=ScalingWay.PAY_PER_USE, rule="learnt", offer="a/L4", gpu="L4", gpus_per_replica=1, keep_alive_s=1.0,
        cost_usd_per_hour=cost, missed_usd_per_hour=missed, is_met=is_met, attainment=0.9, ttft_p50_s=0.1,
        ttft_p99_s=1.0, cold_fraction=0.1, mean_replicas=1.0,
    )  # fmt: skip


def test_the_cheapest_that_holds_is_chosen():
    assert chosen([way(1.0), way(0.1, is_met=False), way(0.5)]) == 2
    assert chosen([way(1.0), way(0.5, missed=0.6)]) == 0
    assert chosen([way(1.0), way(1.0)]) == 0


# --- in plans --------------------------------------------------------------------------------------------------------


def asked(trace="rare.csv", *, slo=("ttft p50 <= 3s",), catalog=None, scale=None, **service):
    workload = service.pop("workload", {"trace": trace})
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "legal",
                "model": "llama-2-7b",
                "workload": workload,
                "slo": list(slo),
                "parallelism": {"tp": 1},
                "scale_to_zero": {"mode": "compare", "storage": "2 GB/s", "clouds": ["modal"]} | (scale or {}),
            }
            | service
        ],
        "catalog": {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["L4", "L40S"]}}
        | (catalog or {}),
    }


@pytest.fixture(scope="module")
def rare(repo):
    request = asked(scale={"provision": "60s", "missed": "0.001 USD"})
    return plan(request, base_dir=repo / "examples", verify=False)


def test_a_service_that_is_rarely_called_is_cheaper_given_back(rare):
    (choice,) = rare.plan.scale_to_zero
    ways = choice.ways
    assert [each.way for each in ways] == [
        ScalingWay.ALWAYS_ON, *[ScalingWay.SCALE_TO_ZERO] * 3, *[ScalingWay.PAY_PER_USE] * 3,
    ]  # fmt: skip
    assert [each.rule for each in ways[1:]] == ["learnt", "60 s", "10 min"] * 2
    assert ways[0].cost_usd_per_hour == rare.plan.cost_usd_per_hour
    assert {(each.offer.split("/")[0], each.price_as_of) for each in ways[4:]} == {("modal", "2026-07-01")}
    best = ways[choice.chosen]
    assert best.is_met
    assert best.total_usd_per_hour < 0.6 * ways[0].total_usd_per_hour
    assert best.attainment >= 0.5
    assert not ways[2].is_met  # 60 s are too short for half of the requests
    assert ways[2].cost_usd_per_hour < ways[1].cost_usd_per_hour
    assert all(each.total_usd_per_hour >= best.total_usd_per_hour for each in ways if each.is_met)
    assert rare.plan.allocation  # the fleet stays


def test_it_is_read_back_as_it_was_written_and_told(rare, tmp_path):
    from planner.files.plan_schema import read_plan

    path = tmp_path / "plan.json"
    path.write_text(rare.to_json(), encoding="utf-8")
    read = read_plan(path).scale_to_zero[0]
    assert read.chosen == rare.plan.scale_to_zero[0].chosen
    assert read.ways[1].cost_usd_per_hour == pytest.approx(rare.plan.scale_to_zero[0].ways[1].cost_usd_per_hour)
    text = rare.to_markdown()
    assert "legal: always on" in text
    assert "the fleet serves it all the same" in text
    wrong = json.loads(rare.to_json())
    wrong["scale_to_zero"][0]["chosen"] = 9
    path.write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(Exception, match="chosen is 9"):
        read_plan(path)


def test_a_tight_tail_keeps_it_always_on(repo):
    found = plan(asked(slo=("ttft p99.9 <= 1s",)), base_dir=repo / "examples", verify=False)
    (choice,) = found.plan.scale_to_zero
    assert choice.chosen == 0
    assert not any(each.is_met for each in choice.ways[1:3])
    assert any("provision" in note for note in choice.notes)
    assert "Always on is the cheapest that holds the objectives" in found.to_markdown()


def test_plans_that_do_not_ask_have_no_key_for_it(repo):
    request = asked()
    del request["services"][0]["scale_to_zero"]
    assert "scale_to_zero" not in json.loads(plan(request, base_dir=repo / "examples", verify=False).to_json())


def test_own_offers_and_gpus_that_may_be_used(repo, tmp_path):
    own = tmp_path / "own.csv"
    own.write_text("provider,gpu,usd_per_gpu_s,keep_alive_s\nmodal,L4,0.0001,900\nacme,A100-80GB,0.00001,\n", "utf-8")
    request = asked(scale={"files": [str(own)], "clouds": ["modal", "acme"]})
    (choice,) = plan(request, base_dir=repo / "examples", verify=False).plan.scale_to_zero
    offers = {each.offer for each in choice.ways[1:]}
    assert offers == {"modal/L4"}  # an A100 is not among the catalog's GPUs
    assert [each.rule for each in choice.ways[1:]] == ["as the cloud keeps it"]
    assert choice.ways[1].keep_alive_s == 900.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workload": {"constant": {"input_tokens": 100, "output_tokens": 10}, "rate": "1 req/h"}}, "has no trace"),
        ({"scale": {"clouds": ["modul"]}}, "Did you mean 'modal'"),
        ({"scale": {"loader": "floppy"}}, "'floppy' is not known"),
        ({"scale": {"storage": 2}}, "rate of data"),
        ({"scale": {"missed": "-1 USD"}}, "not be negative"),
        ({"scale": {"keep": "60s"}}, "keep"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, words, repo, tmp_path, gpuplan):
    path = tmp_path / "request.json"
    path.write_text(json.dumps(asked(trace=str(repo / "examples/rare.csv"), **change)), encoding="utf-8")
    ran = gpuplan("plan", path, "--no-verify")
    assert ran.code == 2
    assert words in " ".join(ran.err.split())
    assert "scale_to_zero" in ran.err


def test_a_trace_that_is_too_short_and_a_horizon_are_refused(repo, tmp_path, gpuplan):
    lines = (repo / "examples/rare.csv").read_text(encoding="utf-8").splitlines()[:30]
    (tmp_path / "short.csv").write_text("\n".join(lines), encoding="utf-8")
    path = tmp_path / "request.json"
    path.write_text(json.dumps(asked(trace="short.csv")), encoding="utf-8")
    ran = gpuplan("plan", path, "--no-verify")
    assert ran.code == 2
    assert "nothing can be learnt or judged" in " ".join(ran.err.split())
    path.write_text(json.dumps(asked(trace="short.csv") | {"horizon": {"periods": "24h"}}), encoding="utf-8")
    ran = gpuplan("plan", path, "--no-verify")
    assert ran.code == 2
    assert "the plan has a horizon" in " ".join(ran.err.split())


def test_services_with_adapters_are_compared_with_processes_that_come_and_go(repo):
    request = asked(
        workload={"constant": {"input_tokens": 512, "output_tokens": 128}},
        adapters={"file": "tenants.csv"},
        slo=("ttft p90 <= 2s",),
        scale={"graphs": False},
    )
    found = plan(request, base_dir=repo / "examples", verify=False)
    (choice,) = found.plan.scale_to_zero
    assert [(each.way, each.rule) for each in choice.ways[1:]] == [
        (ScalingWay.SERVERLESS, "60 s"), (ScalingWay.SERVERLESS, "learnt"), (ScalingWay.SHARED, "learnt"),
    ]  # fmt: skip
    plain, kept, shared = choice.ways[1:]
    assert sorted(kept.keep_alive_by_adapter_s) == sorted(share.adapter for share in found.plan.adapters[0].shares)
    assert plain.keep_alive_by_adapter_s == {}
    assert kept.attainment > plain.attainment
    assert plain.offer == shared.offer == "modal/L4"
    assert shared.price_as_of == "2026-07-01"
    assert plain.keep_alive_s == 60.0
    assert not plain.is_met
    assert shared.attainment > plain.attainment
    assert choice.requests > 100
    assert any("made up at the stated rates" in note for note in choice.notes)
    apart = {"file": "tenants.csv", "isolation": "dedicated"}
    request["services"][0]["adapters"] = apart
    (choice,) = plan(request, base_dir=repo / "examples", verify=False).plan.scale_to_zero
    assert {each.way for each in choice.ways} == {ScalingWay.ALWAYS_ON, ScalingWay.SERVERLESS}
    assert any("shared is left out" in note for note in choice.notes)


def test_a_replica_is_of_a_kind_that_serves_a_request_alone():
    from planner.catalog.gpus import load_gpus
    from planner.catalog.models import load_model
    from planner.domain.hardware import EngineConfig
    from planner.files.request.scaling import ScaleToZero
    from planner.planning.function_case import Sizes
    from planner.profilers.efficiency import default_params

    def found(gpu="L4", slo="ttft p50 <= 3s", **config):
        return replica_kind(
            load_model("llama-2-7b"),
            load_gpus().get(gpu),
            EngineConfig(**({"engine": "vllm", "precision": "fp16"} | config)),
            Sizes(input_tokens=512, output_tokens=128),
            slos=slos(slo),
            choice=ScaleToZero(storage="2 GB/s"),
            params=default_params(),
        )

    one, two = found(), found(tensor_parallel=2)
    assert (one.n_gpus, two.n_gpus) == (1, 2)
    assert two.alone_s < one.alone_s
    assert one.setting.start.backbone_s[Tier.DISK].p50 > 13.5 / 2  # 13.5 GB at 2 GB/s at most
    assert found("L4", precision="fp16", max_num_seqs=4).most_batch == 4
    assert found(slo="tpot p50 <= 5ms") is None  # an L4 reads 300 GB/s: 45 ms a token
    assert found(slo="tpot p50 <= 80ms").most_batch < one.most_batch <= 256
