"""Replicas that are given back while nobody asks: what is learnt, what is judged, and what plans say of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import date
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.hardware import EngineConfig
from planner.domain.pay_per_use import PayPerUse
from planner.domain.scaling import ScaledService, ScalingWay
from planner.errors import DataMissingError, InputError
from planner.files.request.scaling import ScaleToZero
from planner.files.slo import parse_slo
from planner.optimize.keep_alive import KeepAlivePrices, best_keep_alive, idle_gaps
from planner.optimize.preload import Tier
from planner.planning.answer import plan
from planner.planning.function_case import Sizes, batch_times
from planner.planning.scaling_replica import (
    Candidate,
    ReplicaKind,
    Requests,
    learnt,
    other_rules,
    play,
    replica_kind,
)
from planner.planning.scaling_ways import chosen, preferred, vetoed
from planner.profilers.adapter_batching import BatchLatency
from planner.profilers.efficiency import default_params
from planner.profilers.startup import Quantiles
from planner.simulate.functions.setting import NOTHING, Setting, StartTimes
from planner.units import format_duration

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


def candidate(*, way=ScalingWay.PAY_PER_USE, provision_s=0.0, tail_s=None, start=SURE, **billing):
    sold = PayPerUse(**({"name": "a/L4", "provider": "a", "gpu": "L4", "usd_per_gpu_s": 1e-3} | billing))
    return Candidate(
        way=way, kind=kind(start=start), billing=sold, provision_s=Quantiles(provision_s, tail_s or provision_s)
    )


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


@pytest.mark.parametrize(("keep_alive_s", "held_s"), [(0.0, 22.0), (70.0, 92.0), (97.0, 100.0), (math.inf, 100.0)])
def test_the_time_with_a_replica_tells_what_is_given_back(keep_alive_s, held_s):
    """Every 100 s one is there for its start, 20 s, the request, 2 s, and what it is kept for."""
    told = play(candidate(), TIMER, slos("ttft p50 <= 1s"), rule="", keep_alive_s=keep_alive_s, missed_usd=0.0)
    assert told.held_fraction == pytest.approx(held_s / 100.0, abs=0.01)
    assert told.held_fraction == pytest.approx(told.replay.gpu_s / TIMER.duration_s, abs=0.01)  # one at a time
    assert told.is_given_back == (held_s < 95.0)
    by_use = candidate(bills_idle=False, keep_alive_s=900.0)
    assert play(by_use, TIMER, slos("ttft p50 <= 1s"), rule="", keep_alive_s=900.0, missed_usd=0.0).is_given_back


def test_objectives_hold_with_the_headroom_of_the_fleet_too():
    """The second of each pair comes when the first, with its start, is just done; 10% closer it has to wait."""
    firsts = 100.0 * np.arange(50)
    pairs = requests(np.sort(np.append(firsts, firsts + START_S + FIRST_S + LATER_S + 0.1)))
    alone = replace(candidate(), kind=kind(most_batch=1))
    at_rate, with_headroom = (
        play(
            alone,
            replace(pairs, headroom_fraction=room),
            slos("ttft p50 <= 1s"),
            rule="",
            keep_alive_s=1.0,
            missed_usd=1,
        )
        for room in (0.0, 0.1)
    )
    assert at_rate.is_met
    assert not with_headroom.is_met
    assert not with_headroom.is_safe
    assert at_rate.cost_usd == with_headroom.cost_usd
    assert at_rate.missed_usd == with_headroom.missed_usd == 50


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


def test_the_wait_for_a_machine_has_the_tail_that_is_stated():
    often = requests(1000.0 * np.arange(400))
    sure, unsure = (
        play(
            candidate(way=ScalingWay.SCALE_TO_ZERO, provision_s=60.0, tail_s=tail_s), often, slos("ttft p50 <= 90s"),
            rule="never", keep_alive_s=0.0, missed_usd=0.0,
        ).replay.records.ttft_s
        for tail_s in (None, 180.0)
    )  # fmt: skip
    assert sure == pytest.approx(np.full(400, 60.0 + START_S + FIRST_S))
    assert np.quantile(unsure, 0.5) == pytest.approx(60.0 + START_S + FIRST_S, rel=0.1)
    assert np.quantile(unsure, 0.99) > 140.0 + START_S


def test_a_rented_machine_waits_for_its_image_and_a_container_does_not(repo):
    def p99(**scale):
        request = asked(scale={"provision": "60s", "clouds": ["runpod"], "graphs": False} | scale)
        (choice,) = plan(request, base_dir=repo / "examples", verify=False).plan.scale_to_zero
        return {way.way: way.ttft_p99_s for way in choice.ways if way.rule == "60 s"}

    plain, pulled, late = p99(), p99(image="10 GB"), p99(provision={"p50": "60s", "p99": "600s"})
    assert pulled[ScalingWay.SCALE_TO_ZERO] > plain[ScalingWay.SCALE_TO_ZERO] + 45.0  # at 0.2 GB/s, and 0.1 in the tail
    assert late[ScalingWay.SCALE_TO_ZERO] > plain[ScalingWay.SCALE_TO_ZERO] + 100.0
    assert pulled[ScalingWay.PAY_PER_USE] == late[ScalingWay.PAY_PER_USE] == plain[ScalingWay.PAY_PER_USE]


def test_a_rented_machine_for_adapters_waits_for_its_image(repo):
    def p50(**scale):
        request = asked(
            workload={"constant": {"input_tokens": 512, "output_tokens": 128}}, adapters={"file": "tenants.csv"},
            slo=("ttft p50 <= 60s",), scale={"provision": "60s", "clouds": [], "graphs": False} | scale,
        )  # fmt: skip
        (choice,) = plan(request, base_dir=repo / "examples", verify=False).plan.scale_to_zero
        return max(way.ttft_p99_s for way in choice.ways[1:])

    assert p50(image="10 GB") > p50() + 45.0


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
    if every[-1].is_safe:
        assert found.is_safe
        shorter = [each for each in every if cheapest_s - 1e-6 <= each.keep_alive_s < found.keep_alive_s - 1e-6]
        assert not (shorter and shorter[-1].is_safe)  # none is a little shorter and long enough
    elif not any(outcome.is_safe for outcome in every):
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
    assert fewer.ways[1].keep_alive_s == pytest.approx(whole.ways[1].keep_alive_s, rel=1e-12)
    assert fewer.ways[1].cost_usd_per_hour != whole.ways[1].cost_usd_per_hour
    assert preferred(fewer.ways) == preferred(whole.ways) != []
    for one, other in zip(fewer.ways[1:], whole.ways[1:], strict=True):
        assert one.learnt_usd_per_hour == pytest.approx(other.learnt_usd_per_hour, rel=1e-12)
        assert (one.offer, one.rule, one.is_safe) == (other.offer, other.rule, other.is_safe)


def test_safely_means_more_than_just():
    """Twenty of forty in time are not enough for a median that is to hold on the other half, too."""
    gaps = [50.0, 300.0] * 20
    seen = requests(np.cumsum([0.0, *gaps]))
    found = learnt(candidate(), seen, slos("ttft p48 <= 1s"), missed_usd=0.0)
    assert found.keep_alive_s == pytest.approx(298.0)
    enough = learnt(candidate(), seen, slos("ttft p38 <= 1s"), missed_usd=0.0)
    assert enough.keep_alive_s == pytest.approx(48.0)


def test_a_mean_has_to_be_more_than_just_within_its_bound():
    """A bound that the mean only just keeps is kept by chance; with room it is kept safely."""
    gaps = np.where(np.random.default_rng(2).random(200) < 0.5, 50.0, 300.0)
    seen = requests(np.cumsum([0.0, *gaps]))
    mean_s = play(
        candidate(), seen, slos("ttft mean <= 90s"), rule="", keep_alive_s=48.0, missed_usd=0.0
    ).replay.records.ttft_s.mean()
    for room, is_safe in ((1.001, False), (1.3, True)):
        slo = [replace(parse_slo("ttft mean <= 1s"), bound_s=room * mean_s)]
        outcome = play(candidate(), seen, slo, rule="", keep_alive_s=48.0, missed_usd=0.0)
        assert (outcome.is_met, outcome.is_safe) == (True, is_safe)
        found = learnt(candidate(), seen, slo, missed_usd=0.0)
        assert found.is_safe
        assert (found.keep_alive_s <= 48.0 + 1e-6) is is_safe


# --- how it is billed ------------------------------------------------------------------------------------------------


def test_a_start_is_billed_as_its_cloud_says():
    """Of 20 s of a start a container takes 5: a cloud that does not bill those is paid for less."""
    parts = replace(
        kind().setting.start, container_s=Quantiles(5.0, 5.0), backbone_s={Tier.DISK: Quantiles(15.0, 15.0)}
    )
    billed, free = (candidate(bills_container_start=bills) for bills in (True, False))
    setting = replace(kind().setting, start=parts)
    billed, free = (replace(each, kind=replace(each.kind, setting=setting)) for each in (billed, free))
    slo = slos("ttft p50 <= 90s")
    dear, cheap = (play(each, TIMER, slo, rule="", keep_alive_s=0.0, missed_usd=0.0) for each in (billed, free))
    assert dear.replay.records.ttft_s.tolist() == cheap.replay.records.ttft_s.tolist()
    assert dear.cost_usd - cheap.cost_usd == pytest.approx(100 * 2 * 1e-3 * 5.0)
    assert billed.usd_per_start == pytest.approx(2 * 1e-3 * 20.0)
    assert free.usd_per_start == pytest.approx(2 * 1e-3 * 15.0)


def test_a_machine_that_is_billed_by_the_hour_is_best_kept_for_one():
    """Given back between two requests of a timer, each costs an hour; the hour is a rule, and it is learnt that way."""
    hourly = candidate(way=ScalingWay.SCALE_TO_ZERO, provision_s=60.0, step_s=3600.0)
    at_once = play(hourly, TIMER, slos("ttft p50 <= 90s"), rule="", keep_alive_s=0.0, missed_usd=0.0)
    assert at_once.cost_usd == pytest.approx(100 * 2 * 1e-3 * 3600.0)
    assert hourly.usd_per_start == pytest.approx(2 * 1e-3 * (3600.0 - FIRST_S - LATER_S))
    best = learnt(hourly, TIMER, slos("ttft p50 <= 90s"), missed_usd=0.0)
    assert best.keep_alive_s == pytest.approx(98.0)
    assert best.cost_usd == pytest.approx(2 * 1e-3 * 3 * 3600.0)  # 10,000 s are three hours that have begun
    assert dict(other_rules(best)) == {"60 s": 60.0, "10 min": 600.0, "1 h": 3600.0}
    assert dict(other_rules(learnt(candidate(), TIMER, slos("ttft p50 <= 90s"), missed_usd=0.0))) == {
        "60 s": 60.0, "10 min": 600.0,
    }  # fmt: skip


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_take_what_the_estimator_says_of_each_alone():
    """Between the lengths that were asked about lies a line, which strays little from the estimate."""
    model, gpu, config = load_model("llama-2-7b"), load_gpus().get("L4"), EngineConfig(precision="fp16")
    found = replica_kind(
        model, gpu, config, Sizes(input_tokens=700.0, output_tokens=128.0), slos=slos("ttft p50 <= 3s"),
        choice=ScaleToZero(storage="2 GB/s"), params=default_params(),
    )  # fmt: skip
    tokens = [20.0, 64.0, 300.0, 700.0, 1500.0, 3000.0]
    asked_for = replace(requests(1000.0 * np.arange(6)), input_tokens=np.array(tokens))
    billing = candidate().billing
    outcome = play(
        Candidate(way=ScalingWay.PAY_PER_USE, kind=found, billing=billing), asked_for, slos("ttft p50 <= 90s"),
        rule="", keep_alive_s=math.inf, missed_usd=0.0,
    )  # fmt: skip
    for length, first_s in zip(tokens, outcome.replay.records.inference_s.tolist(), strict=True):
        alone, _ = batch_times(
            model, gpu, config, Sizes(input_tokens=length, output_tokens=128.0), default_params(),
            adapters=None, batch=2,
        )  # fmt: skip
        assert first_s == pytest.approx(alone.first_s, rel=0.08), length
    assert outcome.replay.records.inference_s[-1] > 4 * outcome.replay.records.inference_s[2]


# --- which one is chosen ---------------------------------------------------------------------------------------------


def way(cost, *, missed=0.0, is_met=True, learnt_at=None, is_safe=True):
    return ScaledService(
        way=ScalingWay.PAY_PER_USE, rule="learnt", offer="a/L4", gpu="L4", gpus_per_replica=1, keep_alive_s=1.0,
        cost_usd_per_hour=cost, missed_usd_per_hour=missed, is_met=is_met, attainment=0.9, ttft_p50_s=0.1,
        ttft_p99_s=1.0, cold_fraction=0.1, mean_replicas=1.0, is_safe=is_safe,
        learnt_usd_per_hour=cost + missed if learnt_at is None else learnt_at,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("others", "position", "against"),
    [
        ([way(0.6, learnt_at=0.3), way(0.1, learnt_at=0.4)], 1, ()),  # cheaper where it was judged is no reason
        ([way(0.1, is_safe=False), way(0.5)], 2, ()),  # held by chance where it was learnt
        ([way(0.1, is_met=False), way(0.5)], 2, (1,)),
        ([way(1.2, learnt_at=0.1), way(0.5)], 2, (1,)),  # dearer than always on where it was judged
        ([way(0.1, is_met=False), way(0.2, is_met=False)], 0, (1, 2)),
        ([way(0.5, missed=0.6)], 0, ()),
        ([way(0.5, learnt_at=1.0)], 0, ()),
        ([way(1.0)], 0, ()),
        ([], 0, ()),
    ],
)
def test_what_was_learnt_chooses_and_what_is_judged_can_only_veto(others, position, against):
    ways = [way(1.0), *others]
    assert (chosen(ways), vetoed(ways)) == (position, against)


@given(
    st.lists(st.tuples(st.floats(0.1, 2.0), st.floats(0.1, 2.0), st.booleans(), st.booleans()), min_size=1, max_size=6)
)
def test_no_way_is_chosen_for_how_it_fares_where_it_is_judged(drawn):
    """Whatever the judged costs are, of those that it does not veto the cheapest one where it was learnt is taken."""
    ways = [way(1.0), *(way(usd, learnt_at=at, is_met=met, is_safe=safe) for usd, at, met, safe in drawn)]
    position = chosen(ways)
    able = [i for i, each in enumerate(ways) if each.is_safe and each.is_met and each.learnt_usd_per_hour < 1.0]
    able = [i for i in able if ways[i].total_usd_per_hour < 1.0 and i > 0]
    if not able:
        assert position == 0
    else:
        assert position in able
        assert ways[position].learnt_usd_per_hour == min(ways[i].learnt_usd_per_hour for i in able)
        assert not set(vetoed(ways)) & set(able)


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
    assert choice.chosen == preferred(ways)[0]
    assert choice.vetoed == ()
    assert any("gcp bills a machine by the second, and 1 min at least" in note for note in choice.notes)
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
    assert "Always on is chosen" in found.to_markdown()


def test_a_rule_that_only_held_where_it_was_learnt_is_vetoed(tmp_path):
    """Four requests a minute apart every hour become one every half an hour: all are cold, as long as it is kept."""
    sessions = 3600.0 * np.arange(20)[:, None] + 60.0 * np.arange(4)
    times = np.concatenate([sessions.ravel(), 72_000.0 + 1800.0 * np.arange(41)])
    rows = [f"{time:.1f},500,100" for time in times]
    (tmp_path / "changed.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]), "utf-8")
    request = asked(trace="changed.csv", slo=("ttft p50 <= 3s",), scale={"missed": "0.01 USD"})
    found = plan(request, base_dir=tmp_path, verify=False)
    (choice,) = found.plan.scale_to_zero
    assert choice.vetoed
    assert choice.chosen not in choice.vetoed
    assert not any(choice.ways[position].is_met for position in choice.vetoed)
    assert all(choice.ways[position].is_safe for position in choice.vetoed)
    assert "seemed cheaper and missed an objective where it was judged" in found.to_markdown()


def test_the_time_after_the_last_request_is_paid_where_it_is_known(repo, rare):
    """Four days of requests in a recording of eight: the idle half costs what always on costs, too."""
    request = asked(scale={"provision": "60s", "missed": "0.001 USD", "recorded": "8d"})
    with pytest.raises(InputError, match="nothing can be learnt or judged"):
        plan(request, base_dir=repo / "examples", verify=False)  # all come in the first half
    request["services"][0]["scale_to_zero"]["recorded"] = "5d"
    (choice,) = plan(request, base_dir=repo / "examples", verify=False).plan.scale_to_zero
    assert choice.judged_s == pytest.approx(2.5 * 86_400)
    assert rare.plan.scale_to_zero[0].judged_s == pytest.approx(344_445.2 / 2, rel=0.01)
    request["services"][0]["scale_to_zero"]["recorded"] = "3d"
    with pytest.raises(InputError, match="its last request comes after"):
        plan(request, base_dir=repo / "examples", verify=False)


def test_traces_of_adapters_may_go_on_after_their_last_request(repo, tmp_path):
    times = np.cumsum(np.random.default_rng(4).exponential(120.0, 200))
    for name in ("one", "two"):
        rows = [f"{time:.1f},500,100" for time in times]
        (tmp_path / f"{name}.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]), "utf-8")
    (tmp_path / "adapters.csv").write_text(
        "name,rank,target_modules,trace\none,16,q v,one.csv\ntwo,16,q v,two.csv\n", "utf-8"
    )
    last_s = times[-1] - times[0]

    def asks(recorded, file="adapters.csv", base_dir=tmp_path):
        request = asked(
            workload={"constant": {"input_tokens": 512, "output_tokens": 128}}, adapters={"file": file},
            slo=("ttft p90 <= 60s",), scale={"graphs": False} | ({"recorded": recorded} if recorded else {}),
        )  # fmt: skip
        return plan(request, base_dir=base_dir, verify=False).plan.scale_to_zero[0]

    assert asks(None).judged_s == pytest.approx(last_s / 2, rel=1e-3)
    assert asks("8h").judged_s == pytest.approx(4 * 3600.0)
    assert any("its last request comes after" in note for note in asks("1h").notes)
    with pytest.raises(InputError, match="adapters have rates"):
        asks("8h", file="tenants.csv", base_dir=repo / "examples")


def test_a_busy_service_is_said_to_be_too_busy(tmp_path):
    times = np.cumsum(np.random.default_rng(0).exponential(0.1, 25_000))
    rows = [f"{time:.3f},500,100" for time in times]
    (tmp_path / "busy.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]), "utf-8")
    found = plan(asked(trace="busy.csv"), base_dir=tmp_path, verify=False)
    (choice,) = found.plan.scale_to_zero
    assert (choice.chosen, len(choice.ways)) == (0, 1)
    longest_s = np.diff(times[:20_000]).max()
    (note,) = choice.notes
    assert "Too busy to be given back: 20,000 requests come in" in note
    assert f"the longest time without one is {format_duration(longest_s)}" in note
    assert "Nothing was compared with it." in found.to_markdown()
    assert "heapest" not in next(text for text in found.to_markdown().split("\n") if "legal: always on" in text)


def rented_from(provider, repo, tmp_path, **service):
    """The same machine at the same price, of another cloud."""
    (tmp_path / "own.csv").write_text(
        "provider,instance_type,region,market,gpu,gpu_count,price_usd_per_hour,as_of\n"
        f"{provider},one,here,on-demand,L4,1,0.7,2026-11-01\n",
        "utf-8",
    )
    request = asked(scale={"provision": "60s", "clouds": ["gcp-cloud-run"], "graphs": False}, **service)
    request["catalog"] = {"bundled": False, "files": [str(tmp_path / "own.csv")]}
    (choice,) = plan(request, base_dir=repo / "examples", verify=False).plan.scale_to_zero
    return choice


def test_rented_machines_are_billed_as_their_cloud_says(repo, tmp_path):
    hourly, unknown = (rented_from(provider, repo, tmp_path) for provider in ("vultr", "acme"))
    assert any("vultr bills a machine in whole steps of 1 h (2025-09-15)" in note for note in hourly.notes)
    assert any("How acme bills a machine that is given back is not stated" in note for note in unknown.notes)
    by_rule = [
        {way.rule: way for way in each.ways if way.offer.startswith(("vultr", "acme"))} for each in (hourly, unknown)
    ]
    assert set(by_rule[0]) - set(by_rule[1]) == {"1 h"}
    dear, cheap = (rules["60 s"] for rules in by_rule)
    assert dear.attainment == cheap.attainment
    assert dear.cost_usd_per_hour > 2 * cheap.cost_usd_per_hour


def test_rented_machines_for_adapters_are_billed_as_their_cloud_says(repo, tmp_path):
    adapters = {
        "workload": {"constant": {"input_tokens": 512, "output_tokens": 128}},
        "adapters": {"file": "tenants.csv"},
        "slo": ("ttft p90 <= 2s",),
    }
    hourly, unknown = (rented_from(provider, repo, tmp_path, **adapters) for provider in ("vultr", "acme"))
    assert any("vultr bills a machine in whole steps of 1 h" in note for note in hourly.notes)
    assert any("How acme bills a machine that is given back is not stated" in note for note in unknown.notes)
    dear, cheap = (choice.ways[1] for choice in (hourly, unknown))
    assert (dear.rule, cheap.rule) == ("60 s", "60 s")
    assert dear.attainment == cheap.attainment
    assert dear.cost_usd_per_hour > 2 * cheap.cost_usd_per_hour


def test_a_price_without_a_date_or_an_old_one_wins_with_a_warning(repo):
    request = asked(scale={"clouds": ["runpod"]})
    found = plan(request, base_dir=repo / "examples", verify=False)
    assert found.plan.scale_to_zero[0].chosen > 0
    (warning,) = [each for each in found.plan.warnings if each.code == "W206"]
    assert "runpod/L4, whose price is without a date" in warning.message
    with pytest.raises(DataMissingError, match="runpod/L4 is without a date"):
        plan(request, base_dir=repo / "examples", verify=False, strict=True, today=date(2026, 9, 1))
    request = asked(scale={"clouds": ["modal"]})
    known = {"base_dir": repo / "examples", "verify": False}
    assert "W206" not in {each.code for each in plan(request, today=date(2026, 9, 1), **known).plan.warnings}
    assert plan(request, today=date(2026, 9, 1), strict=True, **known).plan.scale_to_zero[0].chosen > 0
    (warning,) = [each for each in plan(request, today=date(2027, 3, 1), **known).plan.warnings if each.code == "W206"]
    assert "243 days old, as of 2026-07-01" in warning.message
    assert (warning.observed, warning.threshold) == (8.0, 5.9)


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


def test_clouds_are_those_of_the_providers_unless_they_are_named(repo, tmp_path):
    def offers(**scale):
        request = asked(scale={"clouds": None} | scale)
        (choice,) = plan(request, base_dir=repo / "examples", verify=False).plan.scale_to_zero
        return {each.offer for each in choice.ways[1:]}

    own = tmp_path / "own.csv"
    own.write_text("provider,gpu,usd_per_gpu_s,keep_alive_s\nacme,L4,0.00001,900\n", "utf-8")
    assert offers() == {"gcp-cloud-run/L4"}
    assert offers(files=[str(own)]) == {"acme/L4"}
    assert offers(clouds=[]) == set()


def cloud_of(repo, tmp_path, columns="", values="", **change):
    """What is said of a cloud that costs next to nothing."""
    own = tmp_path / "own.csv"
    own.write_text(f"provider,gpu,usd_per_gpu_s,as_of{columns}\nacme,L4,0.00001,2026-11-01{values}\n", "utf-8")
    catalog = {"providers": ["gcp"], "gpus": {"include": ["L4"]}} | change.pop("catalog", {})
    request = asked(scale={"files": [str(own)], "clouds": None, "mode": "decide"} | change.pop("scale", {}), **change)
    request["catalog"] = catalog
    found = plan(request, base_dir=repo / "examples", verify=False, today=date(2026, 11, 20)).plan
    (choice,) = found.scale_to_zero
    return choice, {each.code: each.message for each in found.warnings}


@pytest.mark.parametrize(
    ("unsure", "named", "code", "doubt"),
    [
        ({"catalog": {"regions": ["us-central1"]}}, {"code": None}, "W208", "region"),
        ({"columns": ",all_in", "values": ",no"}, {"code": "W207"}, "W207", "price"),
    ],
)
def test_a_cloud_of_which_too_little_is_known_is_chosen_only_if_it_is_named(unsure, named, code, doubt, repo, tmp_path):
    sure, warned = cloud_of(repo, tmp_path)
    assert sure.way.offer == "acme/L4"
    assert not warned.keys() & {"W207", "W208"}
    choice, warned = cloud_of(repo, tmp_path, **unsure)
    assert not choice.way.offer.startswith("acme")
    assert "acme/L4" in warned[code]
    assert "Name the cloud in scale_to_zero.clouds" in warned[code]
    barred = {way.offer: (list(way.doubts), way.is_barred) for way in choice.ways}
    assert barred["acme/L4"] == ([doubt], True)
    choice, warned = cloud_of(repo, tmp_path, scale={"clouds": ["acme"]}, **unsure)
    assert choice.way.offer == "acme/L4"
    assert {each for each in warned if each in {"W207", "W208"}} == {named["code"]} - {None}


def test_a_cloud_that_may_not_be_chosen_takes_no_place_from_one_that_may(repo, tmp_path):
    choice, _ = cloud_of(repo, tmp_path, columns=",all_in", values=",no", catalog={"providers": ["gcp", "runpod"]})
    by_offer = {way.offer: way.is_barred for way in choice.ways}
    assert by_offer["acme/L4"]
    assert by_offer["runpod/L4"] is False
    assert choice.way.offer == "runpod/L4"


def test_a_cloud_for_adapters_is_chosen_only_if_its_region_may_be(repo, tmp_path):
    adapters = {
        "workload": {"constant": {"input_tokens": 512, "output_tokens": 128}},
        "adapters": {"file": "tenants.csv"},
        "slo": ("ttft p50 <= 60s",),
    }
    free, _ = cloud_of(repo, tmp_path, **adapters)
    assert free.way.offer == "acme/L4"
    bound, warned = cloud_of(repo, tmp_path, **adapters, catalog={"regions": ["us-central1"]})
    assert bound.way.offer == ""
    assert "W208" in warned


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workload": {"constant": {"input_tokens": 100, "output_tokens": 10}, "rate": "1 req/h"}}, "has no trace"),
        ({"scale": {"clouds": ["modul"]}}, "Did you mean 'modal'"),
        ({"scale": {"loader": "floppy"}}, "'floppy' is not known"),
        ({"scale": {"storage": 2}}, "rate of data"),
        ({"scale": {"missed": "-1 USD"}}, "not be negative"),
        ({"scale": {"keep": "60s"}}, "keep"),
        ({"scale": {"provision": {"p50": "60s", "p99": "30s"}}}, "less than the median"),
        ({"scale": {"image": "-1 GB"}}, "more than zero"),
        ({"scale": {"image": 12}}, "has no unit"),
        ({"scale": {"provision": 60}}, "scale_to_zero.provision: 60 has no unit"),
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


def test_means_and_ends_are_judged_with_adapters_too(repo, tmp_path):
    (tmp_path / "two.csv").write_text(
        "name,rank,target_modules,rate\nlegal,16,q v,40 req/h\ntax,16,q v,25 req/h\n", "utf-8"
    )

    def asks(slo):
        request = asked(
            workload={"constant": {"input_tokens": 512, "output_tokens": 128}},
            adapters={"file": str(tmp_path / "two.csv")},
            slo=(slo,),
            scale={"graphs": False},
        )
        return plan(request, base_dir=repo / "examples", verify=False).plan.scale_to_zero[0]

    loose, tight, late = asks("ttft mean <= 60s"), asks("ttft mean <= 0.2s"), asks("e2e p90 <= 90s")
    for choice in (loose, tight, late):
        assert not any("Not compared" in note for note in choice.notes)
    assert [len(choice.ways) for choice in (loose, tight, late)] == [4, 3, 4]
    assert any("as shared-backbone is left out" in note for note in tight.notes)  # kept for the mean, all the time
    assert all(each.is_met for each in (*loose.ways, *late.ways))
    assert loose.chosen > 0
    assert not tight.ways[1].is_met  # starts of many seconds are in the mean
    assert 0.0 < tight.ways[1].attainment < loose.ways[1].attainment


def test_adapters_that_are_too_busy_are_not_compared(repo, tmp_path):
    rows = [f"a{i},8,q v,{3600 * 0.3:.0f} req/h" for i in range(10)]
    (tmp_path / "busy.csv").write_text("\n".join(["name,rank,target_modules,rate", *rows]), "utf-8")
    request = asked(
        workload={"constant": {"input_tokens": 512, "output_tokens": 128}},
        adapters={"file": str(tmp_path / "busy.csv")},
        slo=("ttft p90 <= 2s",),
        scale={"graphs": False},
    )
    (choice,) = plan(request, base_dir=repo / "examples", verify=False).plan.scale_to_zero
    assert len(choice.ways) == 1
    assert any("too busy to be given back" in note and "longest time without one" in note for note in choice.notes)


def test_a_replica_is_of_a_kind_that_serves_a_request_alone():
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


def test_another_engine_is_said_to_start_like_the_measured_one(repo):
    notes = {}
    for engine in ("vllm", "sglang"):
        request = asked(scale={"clouds": ["modal"]}, engine={"name": engine})
        (choice,) = plan(request, base_dir=repo / "examples", verify=False).plan.scale_to_zero
        notes[engine] = " ".join(choice.notes)
    assert "Starts are those of vllm: how long sglang takes" in notes["sglang"]
    assert "Starts are" not in notes["vllm"]
