"""Prefill apart from decode: against an enumeration over pairs of replicas, properties, and the second check."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from enumeration import served
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.disaggregation import Handover, Role
from planner.domain.problem import (
    ChangeCost,
    Facet,
    Goal,
    Horizon,
    InstanceLoss,
    Measure,
    ReplicaLoss,
    Running,
    Scenario,
    Scope,
    ShareCap,
    Shedding,
    Survival,
    VarietyLimit,
)
from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, find_conflicts, solve, verify_plan
from planner.optimize.arrays import fleet_arrays
from planner.optimize.prune import prune
from planner.optimize.search import search

SETTINGS = SolverSettings(relative_gap=1e-9)
FRACTIONAL = Assignment.fractional()


def plan_of(problem, *, solver="highs", assignment=FRACTIONAL):
    return solve(problem, settings=replace(SETTINGS, solver=solver), assignment=assignment)


def part(make, offered, role, throughput, *, kv=1.0, rate=np.inf, group="", **given_fields):
    """A prefill or decode option."""
    handover = Handover(kv_bytes=np.full(len(throughput), float(kv)), bytes_per_s=rate, group=group)
    return make.option(offered, throughput, role=role, handover=handover, **given_fields)


def with_rate(problem, rate):
    """`problem` with all networks at `rate` bytes/s."""
    options = tuple(
        replace(option, handover=replace(option.handover, bytes_per_s=rate)) if option.handover else option
        for option in problem.options
    )
    return replace(problem, options=options)


def whole_only(problem):
    return replace(problem, options=tuple(option for option in problem.options if option.handover is None))


@pytest.fixture
def two_gpus(make):
    """A slow, cheap GPU that decodes well and a fast, dear one that prefills well, in one region."""
    slow, fast = make.offer("slow", 1.0), make.offer("fast", 3.0)
    options = [
        make.option(slow, [1.0, 1.0]),
        make.option(fast, [3.0, 3.0]),
        part(make, slow, Role.PREFILL, [1.5, 1.0]),
        part(make, slow, Role.DECODE, [4.0, 6.0]),
        part(make, fast, Role.PREFILL, [20.0, 30.0]),
        part(make, fast, Role.DECODE, [3.0, 3.0]),
    ]
    return make.problem(make.demand([10.0, 12.0]), options)


# --- the programme ------------------------------------------------------------------------------------------------


def test_each_stage_runs_where_it_is_cheap(two_gpus):
    plan = plan_of(two_gpus)
    # 10 / 20 + 12 / 30 = 0.9 replicas of prefill on `fast`, 10 / 4 + 12 / 6 = 4.5 of decode on `slow`
    assert plan.cost_usd_per_hour == 8.0
    assert {(row.offer, row.role): row.replicas for row in plan.allocation} == {
        ("slow", Role.DECODE): 5,
        ("fast", Role.PREFILL): 1,
    }
    assert all(row.transfer_bytes_per_s == pytest.approx(22.0) for row in plan.allocation)
    assert [row.output_tokens_per_s for row in plan.allocation if row.role is Role.PREFILL] == [0.0]
    for route in plan.routing:
        assert sum(route.weights.values()) == pytest.approx(1.0)
        assert sum(route.decode_weights.values()) == pytest.approx(1.0)


def test_a_slow_network_takes_replicas_and_then_does_not_pay(two_gpus):
    # At 7 requests/s and replica: three fast ones prefill 21 of the 22, a slow one the last; five slow ones decode.
    assert [plan_of(with_rate(two_gpus, rate)).cost_usd_per_hour for rate in (22.0, 7.0, 1.0)] == [8.0, 15.0, 22.0]
    slow = plan_of(with_rate(two_gpus, 22.0 / 4))
    assert {row.role: row.replicas for row in slow.allocation} == {Role.PREFILL: 4, Role.DECODE: 5}
    assert any(name.startswith("KV transfer") for name in plan_of(with_rate(two_gpus, 22.0)).binding)


def test_kv_caches_do_not_leave_their_region_provider_or_group(make, two_gpus):
    far = make.offer("far", 1.0, region="elsewhere")
    prefill, decode = two_gpus.options[4], part(make, far, Role.DECODE, [4.0, 6.0])
    apart = make.problem(two_gpus.demands, [prefill, decode, *two_gpus.options[:2]])
    plan = plan_of(apart)
    assert {row.role for row in plan.allocation} == {Role.BOTH}
    assert plan_of(make.problem(two_gpus.demands, [prefill, decode])).status == "infeasible"
    other_group = part(make, make.offer("slow", 1.0), Role.DECODE, [4.0, 6.0], group="fp8")
    assert plan_of(make.problem(two_gpus.demands, [prefill, other_group])).status == "infeasible"


def test_a_bucket_that_nobody_decodes_is_named(make, two_gpus):
    decode = part(make, make.offer("slow", 1.0), Role.DECODE, [4.0, 0.0])
    plan = plan_of(make.problem(two_gpus.demands, [two_gpus.options[4], decode]))
    assert (plan.status, len(plan.conflicts)) == ("infeasible", 1)
    assert "row 1" in plan.conflicts[0].requirement


def test_whole_and_divided_serving_share_a_service(make):
    """The prefill GPU is dear; one of it is worth it for long prompts alone."""
    options = [
        make.option(make.offer("plain", 1.0), [10.0, 1.0]),
        part(make, make.offer("fast", 2.0), Role.PREFILL, [5.0, 10.0]),
        part(make, make.offer("plain", 1.0), Role.DECODE, [1.0, 10.0]),
    ]
    plan = plan_of(make.problem(make.demand([10.0, 10.0]), options))
    assert plan.cost_usd_per_hour == 4.0
    assert {row.role for row in plan.allocation} == set(Role)


def enumerated(problem, most):
    """The least cost over all numbers of replicas, with shares over PAIRS of a prefill and a decode option."""
    options, buckets = problem.options, problem.demands[0].buckets
    whole = [(j,) for j, option in enumerate(options) if option.handover is None]
    pairs = [
        (p, d)
        for p, d in itertools.product(range(len(options)), repeat=2)
        if (options[p].role, options[d].role) == (Role.PREFILL, Role.DECODE)
        and options[p].offer.region == options[d].offer.region
    ]
    ways = [*whole, *pairs]
    able = {
        (b, way): Fraction(0)
        for b in range(len(buckets))
        for way, members in enumerate(ways)
        if all(options[j].throughput_rps[b] > 0 for j in members)
    }
    if {b for b, _ in able} != set(range(len(buckets))):
        return None
    rates = [Fraction(bucket.rate_rps) for bucket in buckets]
    best = None
    for replicas in itertools.product(range(most + 1), repeat=len(options)):
        cost = sum(Fraction(option.offer.price_usd_per_hour) * n for option, n in zip(options, replicas, strict=True))
        if best is not None and cost >= best:
            continue
        caps = []
        for j, (option, n) in enumerate(zip(options, replicas, strict=True)):
            mine = [key for key in able if j in ways[key[1]]]
            caps.append(({k: rates[k[0]] / Fraction(float(option.throughput_rps[k[0]])) for k in mine}, n))
            if option.handover is not None and np.isfinite(option.handover.bytes_per_s):
                busy = {k: rates[k[0]] * Fraction(float(option.handover.kv_bytes[k[0]])) for k in mine}
                caps.append((busy, n * Fraction(option.handover.bytes_per_s)))
        if served(able, [1] * len(ways), caps) == len(buckets):
            best = cost
    return None if best is None else float(best)


tables = st.lists(st.sampled_from([0.0, 1.0, 2.0, 4.0, 7.0]), min_size=2, max_size=2)


@st.composite
def small_problems(draw, make):
    """Up to four options: whole, prefill and decode, over two regions."""
    offers = [
        make.offer(f"o{index}", draw(st.sampled_from([1.0, 2.0, 3.0])), region=draw(st.sampled_from(["r", "s"])))
        for index in range(4)
    ]
    roles = [Role.PREFILL, Role.DECODE, draw(st.sampled_from(Role)), draw(st.sampled_from(Role))]
    rate = draw(st.sampled_from([np.inf, 8.0, 3.0]))
    options = []
    for offered, role in zip(offers, roles, strict=True):
        table = draw(tables)
        if role is Role.BOTH:
            options.append(make.option(offered, table))
        else:
            options.append(part(make, offered, role, table, kv=draw(st.sampled_from([1.0, 2.0])), rate=rate))
    rates = draw(st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=2, max_size=2))
    return make.problem(make.demand(rates), options)


@given(data=st.data())
def test_the_solver_equals_enumeration(data, make):
    problem = data.draw(small_problems(make))
    expected = enumerated(problem, most=4)
    plan = plan_of(problem)
    if expected is None:
        assert plan.cost_usd_per_hour is None or max(row.replicas for row in plan.allocation) > 4
        return
    assert plan.cost_usd_per_hour <= expected + 1e-9
    if max(row.replicas for row in plan.allocation) <= 4:
        assert plan.cost_usd_per_hour == pytest.approx(expected)


@given(data=st.data())
def test_properties(data, make):
    problem = data.draw(small_problems(make))
    cost = plan_of(problem).cost_usd_per_hour
    fast = plan_of(with_rate(problem, np.inf)).cost_usd_per_hour
    whole = plan_of(whole_only(problem)).cost_usd_per_hour if whole_only(problem).options else None
    if cost is not None:
        assert fast <= cost + 1e-9
        assert plan_of(problem, solver="cbc").cost_usd_per_hour == pytest.approx(cost)
        twice = replace(
            problem,
            demands=tuple(
                replace(demand, buckets=tuple(replace(b, rate_rps=2 * b.rate_rps) for b in demand.buckets))
                for demand in problem.demands
            ),
        )
        assert cost <= plan_of(twice).cost_usd_per_hour <= 2 * cost + 1e-9
        sliced = plan_of(problem, assignment=Assignment.sliced(1)).cost_usd_per_hour
        assert sliced >= plan_of(problem, assignment=Assignment.sliced(2)).cost_usd_per_hour - 1e-9 >= cost - 2e-9
    if whole is not None:
        assert cost <= whole + 1e-9


@given(data=st.data())
def test_pruning_keeps_the_cheapest_cost(data, make):
    problem = data.draw(small_problems(make))
    names = data.draw(st.sampled_from([("r", "s"), ("t", "u"), ("s", "t")]))
    elsewhere = dict(zip(("r", "s"), names, strict=True))
    twins = tuple(
        replace(
            option,
            offer=replace(
                option.offer,
                name=f"{option.offer.name}-dear",
                price_usd_per_hour=data.draw(st.sampled_from([2.0, 4.0])),
                region=elsewhere[option.offer.region],
            ),
        )
        for option in problem.options
    )
    large = replace(problem, options=(*problem.options, *twins))
    whole = fleet_arrays(large, FRACTIONAL)
    if whole.unserved:
        return
    kept = prune(large)
    assert len(kept.options) <= len(large.options)
    costs = [search(arrays, SETTINGS).fleet.cost_usd_per_hour for arrays in (whole, fleet_arrays(kept, FRACTIONAL))]
    assert costs[0] == pytest.approx(costs[1])


def test_a_slower_network_or_another_role_replaces_nothing(make):
    offered, dear = make.offer("a", 1.0), make.offer("b", 2.0)
    slow = part(make, offered, Role.PREFILL, [5.0], rate=1.0)
    decode = part(make, make.offer("d", 1.0), Role.DECODE, [1.0])
    quick = part(make, dear, Role.PREFILL, [5.0], rate=10.0)
    problem = make.problem(make.demand([5.0]), [slow, quick, decode])
    assert {option.offer.name for option in prune(problem).options} == {"a", "b", "d"}
    assert plan_of(problem).cost_usd_per_hour == 7.0


def test_a_region_that_another_one_does_all_the_work_of_goes(make, two_gpus):
    def there(region, *prices):
        return [
            replace(
                option,
                offer=replace(
                    option.offer,
                    name=f"{option.offer.name}-{region}",
                    region=region,
                    price_usd_per_hour=prices[option.offer.name == "fast"],
                ),
            )
            for option in two_gpus.options[2:]
        ]

    def regions(*lists):
        problem = replace(two_gpus, options=tuple(option for each in lists for option in each))
        pruned = prune(problem)
        costs = [search(fleet_arrays(each, FRACTIONAL), SETTINGS).fleet.cost_usd_per_hour for each in (problem, pruned)]
        assert costs[0] == costs[1]
        return {option.offer.region for option in pruned.options}

    here, dear, cheap = there("here", 1.0, 3.0), there("dear", 1.5, 3.0), there("cheap", 0.5, 4.0)
    assert regions(here, dear) == {"here"}
    assert regions(here, cheap, dear) == {"here", "cheap"}  # one GPU is cheaper here, the other one there
    assert regions(there("twin", 1.0, 3.0), here) == {"here"}
    slow = [replace(option, handover=replace(option.handover, bytes_per_s=9.0)) for option in here]
    assert regions(slow, dear) == {"here", "dear"}
    lone = [option for option in here if option.role is Role.PREFILL]
    assert regions(lone, dear) >= {"dear"}


# --- the second check ---------------------------------------------------------------------------------------------


def tampered(plan, **changes):
    return replace(plan, routing=tuple(replace(route, **changes) for route in plan.routing))


def test_the_check_sees_what_does_not_hold(make, two_gpus):
    plan = plan_of(with_rate(two_gpus, 30.0))
    problem = with_rate(two_gpus, 30.0)
    verify_plan(problem, plan)
    decode = next(iter(plan.routing[0].decode_weights))
    prefill = next(iter(plan.routing[0].weights))
    with pytest.raises(SolverLiedError, match="prefilled where they are not decoded"):
        verify_plan(problem, tampered(plan, decode_weights={}))
    with pytest.raises(SolverLiedError, match="a part of serving that it does not do"):
        verify_plan(problem, tampered(plan, weights={decode: 1.0}, decode_weights={prefill: 1.0}))
    with pytest.raises(SolverLiedError, match="whose network carries"):
        verify_plan(with_rate(problem, 2.0), plan)
    for message, changed in (
        ("and the plan says", lambda row: replace(row, transfer_bytes_per_s=1.0)),
        ("is said to serve", lambda row: replace(row, role=Role.BOTH)),
        ("has a load of", lambda row: replace(row, replicas=4) if row.role is Role.DECODE else row),
    ):
        wrong = replace(plan, allocation=tuple(map(changed, plan.allocation)))
        with pytest.raises(SolverLiedError, match=message):
            verify_plan(problem, wrong)


def test_wrong_handovers_are_refused(make):
    offered = make.offer()
    for option, message in (
        (part(make, offered, Role.BOTH, [1.0]), "something to hand over"),
        (make.option(offered, [1.0], role=Role.DECODE), "nothing to hand over"),
        (part(make, offered, Role.DECODE, [1.0], rate=0.0), "network rate"),
        (part(make, offered, Role.DECODE, [1.0], kv=-1.0), "one size of at least 0"),
    ):
        problem = make.problem(make.demand([1.0]), [option])
        with pytest.raises(InputError, match=message):
            plan_of(problem)


# --- together with other families ---------------------------------------------------------------------------------


def test_a_budget_sheds_as_little_as_two_stages_allow(make, two_gpus):
    budget = make.limit("budget", "usd_per_hour", 5.0)
    plan = plan_of(replace(two_gpus, limits=(budget,), shed=Shedding(priority={})))
    # One prefill replica and two of decode serve all 12 req/s of the second bucket: 12 / 6 = 2.
    assert sum(item.rate_rps for item in plan.unserved) == pytest.approx(10.0)
    assert plan.cost_usd_per_hour == 5.0
    conflicts = find_conflicts(replace(two_gpus, limits=(budget,)), settings=SETTINGS)
    assert [conflict.relaxed for conflict in conflicts] == [8.0]


def test_caps_on_shares_hold_for_prompts_and_for_answers(make, two_gpus):
    cap = ShareCap(name="share of one GPU type", facet=Facet.GPU, bound=0.5)
    plan = plan_of(replace(two_gpus, rules=(cap,)))
    roles = {row.option: row for row in plan.allocation}
    for own in (Role.PREFILL, Role.DECODE):
        by_gpu = dict.fromkeys(("slow", "fast"), 0.0)
        for route in plan.routing:
            for key, weight in route.shares.items():
                if roles[key].role in {Role.BOTH, own}:
                    by_gpu[roles[key].gpu] += route.rate_rps * weight / plan.rate_rps
        assert max(by_gpu.values()) <= 0.5 + 1e-5
    with pytest.raises(SolverLiedError, match="share of one GPU type"):
        verify_plan(replace(two_gpus, rules=(cap,)), plan_of(two_gpus))


def test_the_check_counts_answers_and_wants_both_stages_after_a_loss(make):
    one, other = (make.offer(name, 1.0, available=1) for name in ("one", "other"))
    decode = part(make, make.offer("third", 1.0, gpu="one"), Role.DECODE, [2.0])
    halves = make.problem(
        make.demand([2.0]), [*(part(make, each, Role.PREFILL, [1.0]) for each in (one, other)), decode]
    )
    plan = plan_of(halves)
    cap = ShareCap(name="share of one GPU type", facet=Facet.GPU, bound=0.6)
    with pytest.raises(SolverLiedError, match="one serves 1"):  # half of the prompts, and all answers
        verify_plan(replace(halves, rules=(cap,)), plan)
    loss = Survival(name="survive gpu", facet=Facet.OFFER, scope=Scope(offer="third"))
    with pytest.raises(SolverLiedError, match="without third what is left"):  # prompts alone are no service
        verify_plan(replace(halves, rules=(loss,)), plan)


def test_what_is_left_after_a_loss_has_both_stages(make, two_gpus):
    away = [
        replace(
            option,
            offer=replace(option.offer, name=f"{option.offer.name}-away", provider="q", price_usd_per_hour=price),
        )
        for option, price in zip(two_gpus.options, (1.1, 3.1, 1.1, 1.1, 3.1, 3.1), strict=True)
    ]
    both = replace(two_gpus, options=(*two_gpus.options, *away))
    lone = plan_of(both)
    rule = Survival(name="survive provider", facet=Facet.PROVIDER)
    plan = plan_of(replace(both, rules=(rule,)))
    assert plan.cost_usd_per_hour == pytest.approx(8.0 + 5 * 1.1 + 3.1)  # either provider could serve all alone
    with pytest.raises(SolverLiedError, match="without p what is left"):
        verify_plan(replace(both, rules=(rule,)), lone)
    # Only prefill is left of one provider, only decode of the other: nothing is served.
    split = [option for option in both.options if (option.role is Role.PREFILL) == (option.offer.provider == "p")]
    assert plan_of(replace(both, options=tuple(split[:4]), rules=(rule,))).status == "infeasible"


def test_spare_replicas_are_kept_of_both_stages(two_gpus):
    """Any one replica, or any one instance, may be lost: a second one prefills, and 4 of 5 decode 22 of 24 req/s."""
    calm = replace(two_gpus, options=two_gpus.options[2:])
    one = ReplicaLoss(name="survive 1 replica", service="default", count=1)
    for rule in (one, InstanceLoss(name="survive 1 instance", count=1)):
        plan = plan_of(replace(calm, rules=(rule,)))
        replicas = {role: sum(row.replicas for row in plan.allocation if row.role is role) for role in Role}
        assert (replicas[Role.PREFILL], replicas[Role.DECODE]) == (2, 6)
        with pytest.raises(SolverLiedError, match="without 1"):
            verify_plan(replace(calm, rules=(rule,)), plan_of(calm))


def test_other_objectives_variety_and_changes(make, two_gpus):
    fewest = plan_of(replace(two_gpus, goal=Goal(stages=({Measure.GPUS: 1.0},))))
    assert sum(row.replicas for row in fewest.allocation) == 6
    one_type = plan_of(replace(two_gpus, rules=(VarietyLimit(name="GPU types", facet=Facet.GPU, bound=1),)))
    assert (len({row.gpu for row in one_type.allocation}), one_type.cost_usd_per_hour) == (1, 22.0)
    running = Running(service="default", offer="slow", option="x", gpus_per_replica=1, replicas=5, role=Role.DECODE)
    change = ChangeCost(running=(running,), instances={"slow": 5}, start_usd=1.0)
    assert plan_of(replace(two_gpus, change=change)).change_usd_per_hour == 1.0  # the prefill replica alone is new
    as_whole = replace(change, running=(replace(running, role=Role.BOTH),))
    assert plan_of(replace(two_gpus, change=as_whole)).change_usd_per_hour > 1.0


def test_scenarios_are_refused(two_gpus):
    scenario = Scenario(name="twice", demands=two_gpus.demands)
    with pytest.raises(InputError, match="whole requests") as error:
        plan_of(replace(two_gpus, rules=(scenario,)))
    assert "robust" in error.value.hint


def test_over_periods(two_gpus):
    horizon = Horizon(step_s=3600.0, factors={"default": (1.0, 0.5, 0.0)}, minimum_lease_s=3600.0)
    plan = plan_of(replace(two_gpus, horizon=horizon))
    costs = [period.cost_usd_per_hour for period in plan.schedule]
    assert costs == [8.0, 6.0, 0.0]
    assert plan.schedule[1].routing[0].decode_weights
    assert sum(plan.routing[0].decode_weights.values()) == pytest.approx(1.0)
    again = replace(plan, schedule=(plan.schedule[0], replace(plan.schedule[1], routing=()), plan.schedule[2]))
    with pytest.raises(SolverLiedError, match="period 1"):
        verify_plan(replace(two_gpus, horizon=horizon), again)


def test_two_services_share_a_budget(make, two_gpus):
    second = [replace(option, service="second") for option in two_gpus.options]
    demands = (*two_gpus.demands, make.demand([10.0, 12.0], service="second"))
    plan = plan_of(make.problem(demands, [*two_gpus.options, *second]))
    assert plan.cost_usd_per_hour == 16.0
    budget = make.limit("budget", "usd_per_hour", 15.0)
    assert plan_of(make.problem(demands, [*two_gpus.options, *second], limits=(budget,))).status == "infeasible"


def test_the_order_of_the_request_does_not_matter(two_gpus):
    backwards = replace(two_gpus, options=tuple(reversed(two_gpus.options)))
    plans = [plan_of(problem) for problem in (two_gpus, backwards)]
    assert plans[0].allocation == plans[1].allocation
    assert plans[0].routing == plans[1].routing
