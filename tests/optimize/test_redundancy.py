"""Losses of zones, instances and replicas: against an exact enumeration, between solvers, and what must hold."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from enumeration import fits, served

from planner.domain.plan import PlanStatus
from planner.domain.problem import Facet, InstanceLoss, ReplicaLoss, Resource, ShareCap, Survival
from planner.errors import InputError, SolverLiedError
from planner.optimize import (
    Assignment,
    SolverSettings,
    find_conflicts,
    redundancy_price,
    redundancy_prices,
    solve,
    verify_plan,
)
from planner.optimize.arrays import fleet_arrays
from planner.optimize.prune import prune
from planner.optimize.rows import survival
from planner.optimize.search import search
from planner.optimize.termination import Termination

EXACT = SolverSettings(relative_gap=0.0)
FRACTIONAL = Assignment.fractional()
ZONES = Survival(name="survive zone", facet=Facet.ZONE)


def lose_instances(count=1, bound=1.0):
    return InstanceLoss(name=f"survive largest {count} instances", count=count, bound=bound)


def lose_replicas(count=1, service="default"):
    return ReplicaLoss(name=f"{count} spare replicas", count=count, service=service)


def plan_of(problem, assignment=FRACTIONAL):
    plan = solve(problem, settings=EXACT, assignment=assignment)
    verify_plan(problem, plan)
    return plan


def counts(plan):
    return {item.option: item.replicas for item in plan.allocation}


def random_problem(make, rng):
    """One service; up to three offers of one or two GPUs in two zones, one of them with replicas of both sizes."""
    n_buckets = int(rng.integers(1, 3))
    options = []
    for j in range(int(rng.integers(2, 4))):
        gpus = int(rng.choice([1, 2]))
        offered = make.offer(
            f"O{j}",
            price=float(rng.integers(1, 8)) * gpus / 2,
            gpus_per_instance=gpus,
            gpu=f"G{rng.integers(0, 2)}",
            zone=f"z{rng.integers(0, 2)}",
        )
        sizes = [1, 2] if gpus == 2 and rng.random() < 0.3 else [int(rng.choice([1, gpus]))]
        for size in sizes:
            table = rng.integers(1, 6, n_buckets) * size * (rng.random(n_buckets) < 0.9)
            options.append(make.option(offered, table, gpus=size))
    rules = [
        rule
        for rule in (
            Survival(name="survive zone", facet=Facet.ZONE, bound=float(rng.choice([0.5, 1.0]))),
            lose_instances(int(rng.integers(1, 3))),
            lose_replicas(int(rng.integers(1, 3))),
        )
        if rng.random() < 0.5
    ]
    return make.problem(make.demand(rng.integers(1, 7, n_buckets)), options, rules=tuple(rules))


def loads_of(problem):
    return {
        (b, j): Fraction(int(bucket.rate_rps)) / Fraction(int(option.throughput_rps[b]))
        for b, bucket in enumerate(problem.demands[0].buckets)
        for j, option in enumerate(problem.options)
        if option.throughput_rps[b] > 0
    }


def rented(problem, replicas):
    """Return the fewest instances of each offer that hold `replicas`."""
    sizes = {option.offer.name: [] for option in problem.options}
    gpus = {option.offer.name: int(option.offer.gpus_per_instance) for option in problem.options}
    for option, n in zip(problem.options, replicas, strict=True):
        sizes[option.offer.name] += [option.gpus_per_replica] * n
    return {name: fits(each, gpus[name]) for name, each in sizes.items()}


def losses(problem, rule, replicas):
    """Yield what every loss leaves of `replicas`."""
    options = problem.options
    if isinstance(rule, Survival):
        groups = [rule.facet.of(option.offer) for option in options]
        for group in set(groups):
            yield [0 if own == group else n for own, n in zip(groups, replicas, strict=True)]
    elif isinstance(rule, InstanceLoss):
        names = sorted({option.offer.name for option in options})
        for chosen in itertools.combinations_with_replacement(names, rule.count):
            lost = Counter(chosen)
            yield [
                max(0, n - lost[option.offer.name] * (int(option.offer.gpus_per_instance) // option.gpus_per_replica))
                for option, n in zip(options, replicas, strict=True)
            ]
    else:
        for chosen in itertools.combinations_with_replacement(range(len(options)), rule.count):
            lost = Counter(chosen)
            yield [max(0, n - lost[j]) for j, n in enumerate(replicas)]


def survives(problem, loads, replicas):
    n_buckets = len(problem.demands[0].buckets)
    return all(
        served(loads, left) >= rule.bound * n_buckets
        if rule.bound == 1.0 or n_buckets == 1
        else served({at: load * Fraction(rule.bound) for at, load in loads.items()}, left) == n_buckets
        for rule in problem.rules
        for left in losses(problem, rule, replicas)
    )


def brute_force(problem):
    """Return the least cost, None if there is no fleet within reach, or "large"."""
    loads = loads_of(problem)
    n_buckets = len(problem.demands[0].buckets)
    if {b for b, _ in loads} != set(range(n_buckets)):
        return None
    upper = []
    for j, option in enumerate(problem.options):
        per_instance = int(option.offer.gpus_per_instance) // option.gpus_per_replica
        spares = [
            rule.count * (per_instance if isinstance(rule, InstanceLoss) else 1)
            for rule in problem.rules
            if not isinstance(rule, Survival)
        ]
        upper.append(int(np.ceil(float(sum(v for (_, own), v in loads.items() if own == j)))) + max(spares, default=0))
    if np.prod([bound + 1 for bound in upper]) > 2500:
        return "large"
    prices = {option.offer.name: float(option.offer.price_usd_per_hour) for option in problem.options}
    fleets = sorted(
        (sum(prices[name] * m for name, m in rented(problem, replicas).items()), replicas)
        for replicas in itertools.product(*(range(bound + 1) for bound in upper))
    )
    return next(
        (
            price
            for price, replicas in fleets
            if served(loads, replicas) == n_buckets and survives(problem, loads, replicas)
        ),
        None,
    )


@pytest.mark.parametrize("block", range(4))
def test_random_losses_equal_an_enumeration_and_pruning_and_the_other_solver_agree(make, block):
    rng = np.random.default_rng(9100 + block)
    n_optimal = 0
    for _ in range(14):
        problem = random_problem(make, rng)
        expected = brute_force(problem)
        if expected == "large":
            continue
        plan = plan_of(problem)
        if expected is None:
            assert plan.status is PlanStatus.INFEASIBLE
            continue
        assert plan.status is PlanStatus.OPTIMAL
        assert plan.cost_usd_per_hour == pytest.approx(expected, rel=1e-9)
        n_optimal += 1
        for each in (problem, prune(problem)):
            other = search(fleet_arrays(each, FRACTIONAL), replace(EXACT, solver="cbc")).fleet
            assert other.cost_usd_per_hour == pytest.approx(expected, rel=1e-9)
    assert n_optimal >= 5


def two_sizes(make, **given):
    """Four req/s on A (one GPU an instance) or B (four GPUs an instance), 1 req/s a GPU, B a little cheaper a GPU."""
    options = [
        make.option(make.offer("A", 1.0, gpu="G", zone="a"), [1.0]),
        make.option(make.offer("B", 3.6, gpu="G", zone="b", gpus_per_instance=4), [1.0]),
    ]
    return make.problem(make.demand([4.0]), options, **given)


def test_a_lost_instance_takes_all_replicas_that_fit_on_it(make):
    assert counts(plan_of(two_sizes(make))) == {"B": 4}
    plan = plan_of(two_sizes(make, rules=(lose_instances(),)))
    assert counts(plan) == {"A": 5}
    plan = plan_of(two_sizes(make, rules=(lose_instances(3),)))
    assert counts(plan) == {"A": 7}
    with_few = two_sizes(make, rules=(lose_instances(),), limits=(make.limit("few", "instances", 2),))
    assert counts(plan_of(with_few)) == {"B": 8}


def test_spare_replicas_are_those_that_serve_most(make):
    """Two small ones serve what a large one does: after the loss of the large one four are needed."""
    options = [
        make.option(make.offer("small", 1.0), [1.0]),
        make.option(make.offer("large", 1.9), [2.0]),
    ]
    problem = make.problem(make.demand([4.0]), options)
    assert counts(plan_of(problem)) == {"large": 2}
    assert plan_of(replace(problem, rules=(lose_replicas(),))).cost_usd_per_hour == pytest.approx(5.0)
    assert counts(plan_of(replace(problem, rules=(lose_replicas(2),)))) == {"small": 6}
    dear = replace(problem, options=(replace(options[0], offer=make.offer("small", 1.9)), options[1]))
    assert counts(plan_of(replace(dear, rules=(lose_replicas(),)))) == {"large": 3}


def test_spares_are_of_one_service(make):
    options = [make.option(make.offer("A", 1.0), [1.0], service=name) for name in ("chat", "code")]
    demands = (make.demand([2.0], service="chat"), make.demand([2.0], service="code"))
    plan = plan_of(make.problem(demands, options, rules=(lose_replicas(service="code"),)))
    assert {item.service: item.replicas for item in plan.allocation} == {"chat": 2, "code": 3}


def test_one_zone_is_lost_of_offers_that_can_be_had_in_every_zone(make):
    listed = make.offer("A", 1.0, available=7)
    parts = [replace(listed, name=f"A/{zone}", zone=zone, part_of="A") for zone in ("zone-1", "zone-2", "zone-3")]
    problem = make.problem(make.demand([4.0]), [make.option(part, [1.0]) for part in parts], rules=(ZONES,))
    plan = plan_of(problem)
    assert sorted(counts(plan).values()) == [2, 2, 2]
    assert {rental.zone for rental in plan.rentals} == {"zone-1", "zone-2", "zone-3"}
    fewer = replace(problem, demands=(make.demand([5.0]),))
    assert plan_of(fewer).status is PlanStatus.INFEASIBLE  # 8 are needed, and the zones share what is available
    by_name = {item.requirement: item for item in find_conflicts(fewer, settings=EXACT)}
    assert by_name["available A <= 7 instances"].relaxed == 8.0
    assert by_name["survive zone"].relaxed == 0.8
    with pytest.raises(SolverLiedError, match="6 instances of A are rented, 5 are available"):
        verify_plan(
            replace(
                problem,
                options=tuple(replace(o, offer=replace(o.offer, available=5)) for o in problem.options),
            ),
            plan,
        )
    capped = ShareCap(name="share of one zone", facet=Facet.ZONE, bound=0.5)
    spread = plan_of(replace(problem, rules=(capped,)))
    assert max(item.rate_rps for item in spread.allocation) <= 2.0 + 1e-5


@pytest.mark.parametrize("rule", [lose_instances(2), lose_replicas(2), ZONES])
def test_a_plan_that_does_not_survive_is_caught(make, rule):
    problem = two_sizes(make, rules=(rule,))
    plan = plan_of(replace(problem, rules=()))
    with pytest.raises(SolverLiedError, match="what is left of default serves less"):
        verify_plan(problem, plan)


def test_more_losses_never_cost_less(make):
    rng = np.random.default_rng(21)
    for _ in range(8):
        problem = random_problem(make, rng)
        for kind in (lose_instances, lose_replicas):
            costs = [
                plan_of(replace(problem, rules=rules)).cost_usd_per_hour or np.inf
                for rules in ((), (kind(1),), (kind(2),))
            ]
            assert costs == sorted(costs)


def test_a_loss_in_the_way_is_named_with_what_would_hold(make):
    options = [make.option(make.offer("A", 1.0, available=4), [1.0])]
    for rule in (lose_instances(), lose_replicas()):
        problem = make.problem(make.demand([4.0]), options, rules=(rule,))
        assert plan_of(problem).status is PlanStatus.INFEASIBLE
        found = {item.requirement: item for item in find_conflicts(problem, settings=EXACT)}
        assert found[rule.name].relaxed == 0.75
        assert found[rule.name].suggestion.startswith(f"leave out {rule.name} (at best 75% of the requests")
        enough = replace(problem, rules=(replace(rule, bound=0.75),))
        assert counts(plan_of(enough)) == {"A": 4}


def test_losses_hold_with_slices_another_objective_and_a_budget(make):
    from planner.domain.problem import Goal, Measure

    sliced = plan_of(two_sizes(make, rules=(lose_replicas(),)), Assignment.sliced(4))
    assert sum(counts(sliced).values()) == 5
    goal = Goal(stages=({Measure.GPUS: 1.0},))
    assert counts(plan_of(two_sizes(make, rules=(lose_instances(),), goal=goal))) == {"A": 5}
    budget = make.limit("budget", Resource.USD_PER_HOUR, 4.5)
    short = two_sizes(make, rules=(lose_instances(),), limits=(budget,))
    found = {item.requirement: item for item in find_conflicts(short, settings=EXACT)}
    assert found["budget <= 4.50 USD/h"].relaxed == 5.0


def test_each_loss_has_its_price_and_all_together_theirs(make, monkeypatch):
    problem = two_sizes(make, rules=(lose_instances(), lose_replicas()))
    plan = plan_of(problem)
    prices = redundancy_prices(problem, plan, settings=EXACT, assignment=FRACTIONAL)
    assert [(item.requirement, item.extra_usd_per_hour, item.is_proven) for item in prices] == [
        ("survive largest 1 instances", pytest.approx(0.4), True),
        ("1 spare replicas", 0.0, True),
        ("all of these together", pytest.approx(1.4), True),
    ]
    assert prices[2].cost_without_usd_per_hour == pytest.approx(3.6)
    priced = replace(plan, redundancy=prices)
    verify_plan(problem, priced)
    for wrong, words in (
        ({"extra_usd_per_hour": 0.9}, "costs 0.9 USD/h more"),
        ({"extra_usd_per_hour": None}, "cannot be proven"),
        ({"requirement": "survive zone"}, "its rules are"),
    ):
        with pytest.raises(SolverLiedError, match=words):
            verify_plan(problem, replace(priced, redundancy=(replace(prices[0], **wrong), *prices[1:])))
    with pytest.raises(SolverLiedError, match="cannot be proven"):
        verify_plan(problem, replace(priced, status=PlanStatus.FEASIBLE))
    unproven = replace(plan, status=PlanStatus.FEASIBLE)
    of_unproven = redundancy_prices(problem, unproven, settings=EXACT, assignment=FRACTIONAL)
    assert not any(item.is_proven for item in of_unproven)
    assert redundancy_prices(replace(problem, rules=()), plan, settings=EXACT, assignment=FRACTIONAL) == ()
    stopped = search(fleet_arrays(replace(problem, rules=()), FRACTIONAL), EXACT)
    for result, extra in ((stopped, pytest.approx(1.4)), (replace(stopped, fleet=None), None)):
        late_result = replace(result, termination=Termination.TIME_LIMIT)
        monkeypatch.setattr(redundancy_price, "cheapest", lambda *_, found=late_result: (None, found))
        late = redundancy_prices(problem, plan, settings=EXACT, assignment=FRACTIONAL)
        assert [(item.extra_usd_per_hour, item.is_proven) for item in late] == [(extra, False)] * 3


def test_too_many_losses_and_wrong_counts_are_input_errors(make, monkeypatch):
    monkeypatch.setattr(survival, "MOST_SHARES", 5)
    with pytest.raises(InputError, match="6 losses to survive") as caught:
        plan_of(two_sizes(make, rules=(lose_instances(5),)))
    assert "Lose fewer at once" in caught.value.hint
    with pytest.raises(InputError, match="counts 0"):
        plan_of(two_sizes(make, rules=(lose_replicas(0),)))
    with pytest.raises(InputError, match="no demand"):
        plan_of(two_sizes(make, rules=(lose_replicas(1, "code"),)))
