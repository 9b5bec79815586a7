"""Variety, minima, spread and changes: against an exact enumeration, between solvers, and what must hold of each."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from enumeration import fits, served

from planner.domain.plan import PlanStatus, RolloutAction
from planner.domain.problem import (
    ChangeCost,
    Facet,
    Minimum,
    Resource,
    Running,
    Scope,
    ShareCap,
    Survival,
    VarietyLimit,
)
from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, find_conflicts, price_of_limits, solve, verify_plan
from planner.optimize.arrays import fleet_arrays
from planner.optimize.prune import prune
from planner.optimize.search import search

EXACT = SolverSettings(relative_gap=0.0)
FRACTIONAL = Assignment.fractional()


def plan_of(problem, assignment=FRACTIONAL):
    plan = solve(problem, settings=EXACT, assignment=assignment)
    verify_plan(problem, plan)
    return plan


def total(plan):
    return np.inf if plan.cost_usd_per_hour is None else plan.cost_usd_per_hour + (plan.change_usd_per_hour or 0.0)


def running(option, replicas):
    return Running(
        service=option.service,
        offer=option.offer.name,
        option=option.offer.name,
        gpus_per_replica=option.gpus_per_replica,
        tensor_parallel=option.gpus_per_replica,
        replicas=replicas,
    )


def random_problem(make, rng, *, kinds=("variety", "minimum", "share", "change", "survive")):
    """One service, one option per offer, small integers; two GPU types and two providers, some rules."""
    n_options, n_buckets = int(rng.integers(2, 5)), int(rng.integers(1, 3))
    options = []
    for j in range(n_options):
        count = int(rng.choice([1, 1, 2]))
        offered = make.offer(
            f"O{j}",
            price=float(rng.integers(1, 12)) / 2 * count,
            gpus_per_instance=count,
            gpu=f"G{rng.integers(0, 3)}",
            provider=f"p{rng.integers(0, 2)}",
        )
        table = rng.integers(1, 7, n_buckets) * (rng.random(n_buckets) < 0.9)
        options.append(make.option(offered, table, gpus=int(rng.choice([1, count]))))
    rules = []
    if "variety" in kinds and rng.random() < 0.5:
        rules.append(VarietyLimit(name="groups", facet=Facet(rng.choice(["gpu", "provider", "offer"])), bound=1))
    if "minimum" in kinds and rng.random() < 0.5:
        scope = Scope(gpu="G0") if rng.random() < 0.5 else Scope(provider="p0")
        resource = Resource(rng.choice(["gpus", "instances"]))
        rules.append(Minimum(name="minimum", resource=resource, bound=float(rng.integers(1, 4)), scope=scope))
    if "share" in kinds and rng.random() < 0.6:
        facet = Facet(rng.choice(["gpu", "provider", "offer"]))
        rules.append(ShareCap(name="share", facet=facet, bound=float(rng.choice([0.5, 0.625, 0.75]))))
    if "survive" in kinds and rng.random() < 0.6:
        rules.append(Survival(name="survive", facet=Facet(rng.choice(["gpu", "provider", "offer"]))))
    change = None
    if "change" in kinds and rng.random() < 0.5:
        change = ChangeCost(
            running=tuple(running(option, int(rng.integers(0, 4))) for option in options),
            instances={},
            start_usd=float(rng.integers(0, 5)),
            stop_usd=float(rng.integers(0, 5)),
            horizon_hours=2.0,
        )
    return make.problem(make.demand(rng.integers(1, 7, n_buckets)), options, rules=tuple(rules), change=change)


def brute_force(problem):
    """Return the least cost with changes, None if there is no fleet, or "large"."""
    demand, options = problem.demands[0], problem.options
    loads = {
        (b, j): Fraction(int(bucket.rate_rps)) / Fraction(int(option.throughput_rps[b]))
        for b, bucket in enumerate(demand.buckets)
        for j, option in enumerate(options)
        if option.throughput_rps[b] > 0
    }
    n_buckets = len(demand.buckets)
    if {b for b, _ in loads} != set(range(n_buckets)):
        return None
    now = [problem.change.replicas_of(option) if problem.change else 0 for option in options]
    upper = [
        max(int(np.ceil(float(sum(load for (_, other), load in loads.items() if other == j)))), now[j])
        for j in range(len(options))
    ]
    most = int(max([rule.bound for rule in problem.rules if isinstance(rule, Minimum)], default=0))
    if np.prod([bound + 1 for bound in upper]) > 900:
        return "large"
    fleets = {}
    for counts in itertools.product(*(range(bound + 1) for bound in upper)):
        needed = [
            fits([option.gpus_per_replica] * n, int(option.offer.gpus_per_instance))
            for option, n in zip(options, counts, strict=True)
        ]
        for rented in itertools.product(*(range(least, max(least, most) + 1) for least in needed)):
            if fits_rules(problem, rented):
                price = sum(float(o.offer.price_usd_per_hour) * m for o, m in zip(options, rented, strict=True))
                price += change_price(problem, counts, now)
                fleets[counts] = min(price, fleets.get(counts, np.inf))
    caps = list(share_rows(problem, loads))
    ranked = sorted((price, counts) for counts, price in fleets.items())
    return next(
        (
            price
            for price, counts in ranked
            if served(loads, counts, caps) == n_buckets and survives(problem, loads, counts)
        ),
        None,
    )


def survives(problem, loads, counts):
    for rule in problem.rules:
        if isinstance(rule, Survival):
            groups = [rule.facet.of(option.offer) for option in problem.options]
            for group in set(groups):
                left = tuple(0 if groups[j] == group else n for j, n in enumerate(counts))
                if served(loads, left) != len(problem.demands[0].buckets):
                    return False
    return True


def fits_rules(problem, rented):
    for rule in problem.rules:
        pairs = [(o.offer, m) for o, m in zip(problem.options, rented, strict=True) if m]
        if isinstance(rule, VarietyLimit) and len({rule.facet.of(offer) for offer, _ in pairs}) > rule.bound:
            return False
        if isinstance(rule, Minimum):
            each = (lambda o: o.gpus_per_instance) if rule.resource == "gpus" else (lambda _: 1)
            if sum(each(offer) * m for offer, m in pairs if rule.scope.covers(offer)) < rule.bound:
                return False
    return True


def change_price(problem, counts, now):
    if problem.change is None:
        return 0.0
    up = sum(max(n - old, 0) for n, old in zip(counts, now, strict=True))
    down = sum(max(old - n, 0) for n, old in zip(counts, now, strict=True))
    return (up * problem.change.start_usd + down * problem.change.stop_usd) / problem.change.horizon_hours


def share_rows(problem, loads):
    rates = [Fraction(int(bucket.rate_rps)) for bucket in problem.demands[0].buckets]
    for rule in problem.rules:
        if isinstance(rule, ShareCap):
            groups = [rule.facet.of(option.offer) for option in problem.options]
            for group in set(groups):
                yield {(b, j): rates[b] for b, j in loads if groups[j] == group}, Fraction(rule.bound) * sum(rates)


@pytest.mark.parametrize("block", range(6))
def test_random_requests_equal_an_enumeration(make, block):
    rng = np.random.default_rng(7000 + block)
    outcomes = {"optimal": 0, "infeasible": 0}
    for _ in range(40):
        problem = random_problem(make, rng)
        plan = plan_of(problem)
        expected = brute_force(problem)
        if expected == "large":
            continue
        if plan.status is PlanStatus.INFEASIBLE:
            assert expected is None
            outcomes["infeasible"] += 1
            continue
        assert plan.status is PlanStatus.OPTIMAL
        assert total(plan) == pytest.approx(expected, rel=1e-9)
        assert plan.bound_usd_per_hour == pytest.approx(plan.cost_usd_per_hour, rel=1e-6)
        outcomes["optimal"] += 1
    assert outcomes["optimal"] >= 10
    assert outcomes["infeasible"] >= 1


def test_the_two_solvers_agree_and_pruning_keeps_the_cost(make):
    rng = np.random.default_rng(77)
    for _ in range(60):
        problem = random_problem(make, rng)
        whole = fleet_arrays(problem, FRACTIONAL)
        if whole.unserved:
            continue
        pruned = fleet_arrays(prune(problem), FRACTIONAL)
        found = [
            search(whole, EXACT).fleet,
            search(pruned, EXACT).fleet,
            search(pruned, replace(EXACT, solver="cbc")).fleet,
        ]
        costs = [each.total_usd_per_hour if each else np.inf for each in found]
        assert costs == pytest.approx([costs[0]] * 3, rel=1e-9)


def tightened(rule):
    if isinstance(rule, VarietyLimit):
        return replace(rule, bound=max(1, rule.bound - 1))
    if isinstance(rule, Minimum):
        return replace(rule, bound=rule.bound + 1)
    return rule if isinstance(rule, Survival) else replace(rule, bound=rule.bound - 0.125)


def test_tightening_a_rule_never_costs_less_and_dropping_it_never_more(make):
    rng = np.random.default_rng(3)
    for _ in range(40):
        problem = random_problem(make, rng)
        cost = total(plan_of(problem))
        tighter = replace(problem, rules=tuple(tightened(rule) for rule in problem.rules))
        assert total(plan_of(tighter)) >= cost - 1e-9
        assert total(plan_of(replace(problem, rules=()))) <= cost + 1e-9


def test_rules_that_cannot_bind_change_nothing(make):
    rng = np.random.default_rng(11)
    loose = (
        VarietyLimit(name="GPU types", facet=Facet.GPU, bound=9),
        Minimum(name="minimum", resource=Resource.GPUS, bound=0.0),
        ShareCap(name="share of one offer", facet=Facet.OFFER, bound=1.0),
    )
    for _ in range(15):
        problem = random_problem(make, rng, kinds=())
        free = ChangeCost(running=(running(problem.options[0], 2),), instances={})
        plain, ruled = plan_of(problem), plan_of(replace(problem, rules=loose, change=free))
        assert (ruled.cost_usd_per_hour, ruled.allocation, ruled.routing) == (
            plain.cost_usd_per_hour,
            plain.allocation,
            plain.routing,
        )
        assert ruled.binding == plain.binding


def two(make, **given):
    """Four req/s on A at 1 USD/h or B at 3, 1 req/s each; of different types and providers."""
    options = [
        make.option(make.offer("A", 1.0, provider="p"), [1.0]),
        make.option(make.offer("B", 3.0, provider="q"), [1.0]),
    ]
    return make.problem(make.demand([4.0]), options, **given)


def counts(plan):
    return {item.option: item.replicas for item in plan.allocation}


def test_spread_over_two_providers(make):
    problem = two(make, rules=(ShareCap(name="share of one provider", facet=Facet.PROVIDER, bound=0.5),))
    plan = plan_of(problem)
    assert (counts(plan), plan.cost_usd_per_hour) == ({"A": 2, "B": 2}, 8.0)
    assert "share of one provider <= 50%" in plan.binding
    assert price_of_limits(problem, plan, EXACT) == {"share of one provider <= 50%": pytest.approx(4.0)}


def test_a_share_of_one_service_and_within_a_scope(make):
    on_b = Scope(offer="B")
    cheap_b = two(make)
    cheap_b = replace(
        cheap_b,
        options=(
            cheap_b.options[0],
            replace(cheap_b.options[1], offer=replace(cheap_b.options[1].offer, price_usd_per_hour=0.5)),
        ),
    )
    capped = replace(cheap_b, rules=(ShareCap(name="share", facet=Facet.OFFER, bound=0.25, scope=on_b),))
    assert counts(plan_of(cheap_b)) == {"B": 4}
    assert counts(plan_of(capped)) == {"A": 3, "B": 1}
    elsewhere = replace(capped, rules=(replace(capped.rules[0], service="chat"),))
    with pytest.raises(InputError, match="no demand"):
        plan_of(elsewhere)


def test_slices_keep_shares_too(make):
    problem = two(make, rules=(ShareCap(name="share", facet=Facet.PROVIDER, bound=0.6),))
    plan = plan_of(problem, Assignment.sliced(4))
    assert counts(plan) == {"A": 2, "B": 2}


def test_a_minimum_is_rented_and_said_even_where_nothing_runs_on_it(make):
    rule = Minimum(name="minimum q", resource=Resource.INSTANCES, bound=2.0, scope=Scope(provider="q"))
    slow = two(make)
    slow = replace(slow, options=(slow.options[0], replace(slow.options[1], throughput_rps=np.array([0.1]))))
    plan = plan_of(replace(slow, rules=(rule,)))
    assert {rental.offer: rental.instances for rental in plan.rentals}["B"] == 2
    assert plan.cost_usd_per_hour == 10.0
    assert "minimum q >= 2 instances" in plan.binding
    used = plan_of(two(make, rules=(rule,)))
    assert (counts(used), used.cost_usd_per_hour) == ({"A": 2, "B": 2}, 8.0)


def change(make, problem, a, b, *, start, stop):
    now = tuple(running(option, n) for option, n in zip(problem.options, (a, b), strict=True) if n)
    instances = {item.offer: item.replicas for item in now}
    return replace(
        problem,
        change=ChangeCost(running=now, instances=instances, start_usd=start, stop_usd=stop, horizon_hours=10.0),
    )


def test_a_dear_change_is_not_made(make):
    """B to A saves 2 USD/h a replica; starting and stopping cost 1 + 0.5 or 2 + 0.5 over the horizon."""
    worth_it = plan_of(change(make, two(make), 0, 4, start=10.0, stop=5.0))
    assert counts(worth_it) == {"A": 4}
    assert (worth_it.cost_usd_per_hour, worth_it.change_usd_per_hour) == (4.0, 6.0)
    assert worth_it.bound_usd_per_hour == 4.0
    stay = plan_of(change(make, two(make), 0, 4, start=20.0, stop=5.0))
    assert (counts(stay), stay.change_usd_per_hour, stay.rollout) == ({"B": 4}, 0.0, ())


def test_a_replica_that_is_dear_to_stop_goes_on(make):
    plan = plan_of(change(make, two(make), 5, 0, start=0.0, stop=11.0))
    assert counts(plan) == {"A": 5}
    plan = plan_of(change(make, two(make), 5, 0, start=0.0, stop=9.0))
    assert (counts(plan), plan.change_usd_per_hour) == ({"A": 4}, 0.9)


def test_the_rollout_starts_first_then_moves_traffic_then_stops(make):
    plan = plan_of(change(make, two(make), 1, 3, start=0.0, stop=0.0))
    steps = [(step.action, step.offer, step.replicas, step.instances) for step in plan.rollout]
    assert steps == [
        (RolloutAction.START, "A", 3, 3),
        (RolloutAction.ROUTE, "", 0, 0),
        (RolloutAction.STOP, "B", 3, 3),
    ]
    assert plan.change_usd_per_hour is None
    assert plan.rollout[1].service == "default"


def test_what_is_no_longer_offered_is_stopped_and_paid_for(make):
    problem = change(make, two(make), 4, 0, start=1.0, stop=10.0)
    gone = replace(problem.change, running=(*problem.change.running, replace(problem.change.running[0], offer="Z")))
    plan = plan_of(replace(problem, change=gone))
    assert plan.change_usd_per_hour == 4.0
    assert [(step.action, step.offer) for step in plan.rollout][-1] == (RolloutAction.STOP, "Z")
    assert price_of_limits(replace(problem, change=gone), plan, EXACT) == {}


CONFLICTS = [
    ((VarietyLimit(name="GPU types", facet=Facet.GPU, bound=1),), "GPU types <= 1", 2.0),
    ((ShareCap(name="share of one GPU type", facet=Facet.GPU, bound=0.2),), "share of one GPU type <= 20%", 0.5),
    (
        (Minimum(name="minimum A", resource=Resource.INSTANCES, bound=9.0, scope=Scope(gpu="A")),),
        "minimum A >= 9 instances",
        3.0,
    ),
]


@pytest.mark.parametrize(("rules", "requirement", "relaxed"), CONFLICTS)
def test_a_rule_in_the_way_is_named_with_the_least_that_helps(make, rules, requirement, relaxed):
    """A serves one bucket, B the other one; at most three of A can be had."""
    options = [
        make.option(make.offer("A", 1.0, available=3), [1.0, 0.0]),
        make.option(make.offer("B", 3.0), [0.0, 1.0]),
    ]
    problem = make.problem(make.demand([2.0, 2.0]), options, rules=rules)
    assert plan_of(problem).status is PlanStatus.INFEASIBLE
    found = {item.requirement: item for item in find_conflicts(problem, settings=EXACT)}
    assert found[requirement].relaxed == pytest.approx(relaxed)
    enough = replace(problem, rules=(replace(rules[0], bound=relaxed),))
    assert plan_of(enough).status is PlanStatus.OPTIMAL
    assert find_conflicts(enough, settings=EXACT) == ()


def test_a_rule_and_a_limit_that_help_only_together(make):
    rules = (Minimum(name="minimum B", resource=Resource.INSTANCES, bound=2.0, scope=Scope(gpu="B")),)
    limits = (make.limit("budget", "usd_per_hour", 3.0),)
    found = {item.requirement: item for item in find_conflicts(two(make, rules=rules, limits=limits), settings=EXACT)}
    assert found["budget <= 3.00 USD/h"].relaxed == 8.0
    both = two(make, rules=(VarietyLimit(name="GPU types", facet=Facet.GPU, bound=1), *rules))
    both = replace(both, options=(both.options[0], replace(both.options[1], throughput_rps=np.array([0.0]))))
    with_limit = replace(both, limits=(make.limit("few", "instances", 3),))
    together = find_conflicts(with_limit, settings=EXACT)
    assert len({item.suggestion for item in together}) == 1
    assert together[0].suggestion.startswith("all of: ")


def test_a_plan_that_breaks_a_rule_is_caught(make):
    problem = change(make, two(make), 1, 3, start=2.0, stop=1.0)
    plan = plan_of(problem)
    broken = {
        "GPU types are allowed": VarietyLimit(name="GPU types", facet=Facet.GPU, bound=0),
        "minimum is 9": Minimum(name="minimum", resource=Resource.GPUS, bound=9.0),
        "share of one offer is 0.5": ShareCap(name="share of one offer", facet=Facet.OFFER, bound=0.5),
    }
    for words, rule in broken.items():
        with pytest.raises(SolverLiedError, match=words):
            verify_plan(replace(problem, rules=(rule,)), plan)
    tampered = {
        "changes cost": replace(plan, change_usd_per_hour=0.0),
        "its rollout starts": replace(plan, rollout=plan.rollout[1:]),
        "stops something before": replace(plan, rollout=plan.rollout[::-1]),
    }
    for words, each in tampered.items():
        with pytest.raises(SolverLiedError, match=words):
            verify_plan(problem, each)
    more = replace(plan.rentals[0], offer="B", instances=1, cost_usd_per_hour=3.0)
    idle = replace(plan, rentals=(*plan.rentals, more), cost_usd_per_hour=plan.cost_usd_per_hour + 3.0)
    with pytest.raises(SolverLiedError, match="nothing runs"):
        verify_plan(problem, idle)


def test_bad_rules_are_input_errors(make):
    wrong = {
        "most GPU types is 0": VarietyLimit(name="GPU types", facet=Facet.GPU, bound=0),
        "counts watts": Minimum(name="minimum", resource=Resource.WATTS, bound=1.0),
        "must not be negative": Minimum(name="minimum", resource=Resource.GPUS, bound=-1.0),
        "between 0 and 1": ShareCap(name="share", facet=Facet.GPU, bound=1.5),
    }
    for words, rule in wrong.items():
        with pytest.raises(InputError) as caught:
            plan_of(two(make, rules=(rule,)))
        assert words in f"{caught.value.message} {caught.value.hint}"
    with pytest.raises(InputError, match="Changes cost"):
        plan_of(change(make, two(make), 1, 1, start=-1.0, stop=0.0))


def test_rules_hold_under_another_objective_and_while_demand_is_shed(make):
    from planner.domain.problem import Goal, Measure, Shedding

    goal = Goal(stages=({Measure.GPUS: 1.0},))
    spread = (ShareCap(name="share", facet=Facet.PROVIDER, bound=0.5),)
    plan = plan_of(two(make, rules=spread, goal=goal))
    assert counts(plan) == {"A": 2, "B": 2}
    few = (make.limit("few", "instances", 2),)
    shed = plan_of(two(make, rules=spread, limits=few, shed=Shedding(priority={})))
    assert counts(shed) == {"A": 1, "B": 1}
    moved = plan_of(change(make, two(make, goal=goal), 1, 1, start=1.0, stop=1.0))
    assert sum(counts(moved).values()) == 4


def test_what_is_left_after_a_loss_still_serves_everything_and_its_price_is_said(make):
    rule = Survival(name="survive provider", facet=Facet.PROVIDER)
    problem = two(make, rules=(rule,), headroom_fraction=0.5)
    plan = plan_of(problem)
    assert (counts(plan), plan.cost_usd_per_hour) == ({"A": 4, "B": 4}, 16.0)
    assert price_of_limits(problem, plan, EXACT) == {"survive provider": pytest.approx(10.0)}
    half = replace(problem, rules=(replace(rule, bound=0.5),))
    assert counts(plan_of(half)) == {"A": 4, "B": 2}
    none = replace(problem, rules=(replace(rule, scope=Scope(market="spot")),))
    assert plan_of(none).cost_usd_per_hour == 6.0


def test_a_loss_that_cannot_be_survived_is_named_and_a_plan_that_does_not_is_caught(make):
    rule = Survival(name="survive provider", facet=Facet.PROVIDER)
    options = [
        make.option(make.offer("A", 1.0), [1.0]),
        make.option(make.offer("B", 3.0, provider="q", available=3), [1.0]),
    ]
    problem = make.problem(make.demand([4.0]), options, rules=(rule,))
    found = {item.requirement: item for item in find_conflicts(problem, settings=EXACT)}
    assert found["survive provider"].relaxed == 0.75
    assert found["available B <= 3 instances"].relaxed == 4.0
    plan = plan_of(replace(problem, rules=()))
    with pytest.raises(SolverLiedError, match="what is left of default"):
        verify_plan(problem, plan)
