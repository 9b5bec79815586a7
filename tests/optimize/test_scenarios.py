"""Scenarios that a fleet must survive: against an exact enumeration, between solvers, and what must hold of them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from enumeration import fits, served
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.plan import PlanStatus
from planner.domain.problem import (
    Facet,
    Goal,
    Horizon,
    Measure,
    Minimum,
    Resource,
    Scenario,
    ShareCap,
    Shedding,
    Survival,
)
from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, find_conflicts, price_of_limits, solve, verify_plan
from planner.optimize.arrays import fleet_arrays
from planner.optimize.prune import prune
from planner.optimize.robustness import robustness
from planner.optimize.scenario_search import is_large, is_missed, search_in_rounds
from planner.optimize.search import search
from planner.optimize.termination import Termination

EXACT = SolverSettings(relative_gap=0.0)
FRACTIONAL = Assignment.fractional()


def plan_of(problem, *, settings=EXACT, assignment=FRACTIONAL):
    plan = solve(problem, settings=settings, assignment=assignment)
    verify_plan(problem, plan)
    return plan


def cost(problem, **given):
    found = plan_of(problem, **given).cost_usd_per_hour
    return np.inf if found is None else found


def times(problem, factors, *, name="busy", **given):
    """Return the scenario in which every service asks for so many times as much."""
    demands = tuple(
        replace(
            demand,
            buckets=tuple(
                replace(bucket, rate_rps=bucket.rate_rps * factors.get(demand.service, 1)) for bucket in demand.buckets
            ),
        )
        for demand in problem.demands
    )
    return Scenario(name=name, demands=demands, **given)


def slow(problem, gpu, error, **given):
    """Return `problem` with the scenario in which replicas on `gpu` (None: all) serve that part less."""
    name = f"{gpu} slow"
    options = tuple(
        replace(option, scenario_rps={**option.scenario_rps, name: option.throughput_rps * (1 - error)})
        if gpu in {None, option.offer.gpu}
        else option
        for option in problem.options
    )
    scenario = Scenario(name=name, demands=problem.demands, **given)
    return replace(problem, options=options, rules=(*problem.rules, scenario))


def with_scenarios(problem, *scenarios):
    return replace(problem, rules=(*problem.rules, *scenarios))


def random_problem(make, rng):
    """One service, one option per offer, small integers; scenarios of demand, of other sizes, and of speed."""
    n_options, n_buckets = int(rng.integers(2, 4)), int(rng.integers(1, 3))
    n_then = int(rng.integers(1, 3))
    options = []
    for j in range(n_options):
        count = int(rng.choice([1, 1, 2]))
        offered = make.offer(
            f"O{j}", price=float(rng.integers(1, 12)) / 2 * count, gpus_per_instance=count, gpu=f"G{rng.integers(0, 2)}"
        )
        table = rng.integers(1, 7, n_buckets) * (rng.random(n_buckets) < 0.9)
        then = {"other": rng.integers(1, 7, n_then).astype(float)} | (
            {"slow": np.maximum(table - 1, 0.0).astype(float)} if offered.gpu == "G0" else {}
        )
        options.append(make.option(offered, table, gpus=int(rng.choice([1, count])), scenario_rps=then))
    problem = make.problem(make.demand(rng.integers(1, 5, n_buckets)), options)
    scenarios = [
        times(problem, {"default": 2}),
        Scenario(name="other", demands=(make.demand(rng.integers(1, 5, n_then)),), bound=0.5),
        Scenario(name="slow", demands=problem.demands),
    ]
    chosen = [each for each in scenarios if rng.random() < 0.6]
    kept = {each.name for each in chosen}
    options = tuple(
        replace(each, scenario_rps={name: rate for name, rate in each.scenario_rps.items() if name in kept})
        for each in problem.options
    )
    return replace(problem, options=options, rules=tuple(chosen))


def loads_of(demand, rates, options, bound=Fraction(1)):
    return {
        (b, j): bound * Fraction(bucket.rate_rps) / Fraction(rates(option)[b])
        for b, bucket in enumerate(demand.buckets)
        for j, option in enumerate(options)
        if rates(option)[b] > 0
    }


def brute_force(problem):
    """Return the least cost, None if there is no fleet, or "large"."""
    options = problem.options
    cases = [(problem.demands[0], lambda option: option.throughput_rps, Fraction(1))]
    cases += [
        (rule.demands[0], lambda option, name=rule.name: option.throughput_in(name), Fraction(rule.bound))
        for rule in problem.rules
    ]
    loads = [(len(demand.buckets), loads_of(demand, rates, options, bound)) for demand, rates, bound in cases]
    if any({b for b, _ in part} != set(range(n_buckets)) for n_buckets, part in loads):
        return None
    upper = [
        max(int(np.ceil(float(sum(load for (_, other), load in part.items() if other == j)))) for _, part in loads)
        for j in range(len(options))
    ]
    if np.prod([bound + 1 for bound in upper]) > 1500:
        return "large"
    ranked = sorted(
        (
            sum(
                float(o.offer.price_usd_per_hour) * fits([o.gpus_per_replica] * n, int(o.offer.gpus_per_instance))
                for o, n in zip(options, counts, strict=True)
            ),
            counts,
        )
        for counts in itertools.product(*(range(bound + 1) for bound in upper))
    )
    holds = (price for price, counts in ranked if all(served(part, counts) == n_buckets for n_buckets, part in loads))
    return next(holds, None)


@pytest.mark.parametrize("block", range(6))
def test_random_requests_equal_an_enumeration(make, block):
    rng = np.random.default_rng(9100 + block)
    outcomes = {"optimal": 0, "infeasible": 0}
    for _ in range(25):
        problem = random_problem(make, rng)
        plan = plan_of(problem)
        expected = brute_force(problem)
        if expected == "large":
            continue
        if plan.status is PlanStatus.INFEASIBLE:
            assert expected is None
            outcomes["infeasible"] += 1
            continue
        assert plan.cost_usd_per_hour == pytest.approx(expected, rel=1e-9)
        outcomes["optimal"] += 1
    assert outcomes["optimal"] >= 8


def test_the_two_solvers_agree_and_pruning_keeps_the_cost(make):
    rng = np.random.default_rng(77)
    n_found = 0
    for _ in range(30):
        problem = random_problem(make, rng)
        plan = plan_of(problem)
        other = plan_of(problem, settings=replace(EXACT, solver="cbc"))
        assert other.status is plan.status
        whole = fleet_arrays(problem, FRACTIONAL)
        if plan.cost_usd_per_hour is None or whole.unserved:
            continue
        assert other.cost_usd_per_hour == pytest.approx(plan.cost_usd_per_hour, rel=1e-6)
        assert search(whole, EXACT).fleet.cost_usd_per_hour == pytest.approx(plan.cost_usd_per_hour, rel=1e-9)
        n_found += 1
    assert n_found >= 15


def two_types(make, rates=(4.0, 3.0)):
    """A cheap GPU that serves the second bucket badly, and a dear one; two services on both."""
    slow_gpu, fast_gpu = make.offer("small", 1.0), make.offer("large", 3.5)
    return make.problem(
        (make.demand(rates, service="chat"), make.demand([2.0], service="code")),
        [
            make.option(slow_gpu, [2.0, 0.5], service="chat"),
            make.option(fast_gpu, [6.0, 6.0], service="chat"),
            make.option(slow_gpu, [1.0], service="code"),
            make.option(fast_gpu, [5.0], service="code"),
        ],
    )


@given(first=st.floats(0.2, 3.0), second=st.floats(0.2, 3.0), code=st.floats(0.2, 3.0))
def test_a_scenario_costs_never_less_and_a_second_one_neither(make, first, second, code):
    plain = two_types(make)
    one = with_scenarios(plain, times(plain, {"chat": first}))
    two = with_scenarios(one, times(plain, {"chat": second, "code": code}, name="code"))
    costs = [cost(plain), cost(one), cost(two)]
    assert costs == sorted(costs)
    # Whoever knew what comes would pay less; whoever plans for the sum of all, more.
    assert costs[2] >= cost(replace(plain, demands=times(plain, {"chat": first}).demands)) - 1e-9
    most = {"chat": max(1.0, first, second), "code": max(1.0, code)}
    assert costs[2] <= cost(replace(plain, demands=times(plain, most).demands)) + 1e-9


@given(small=st.floats(0.0, 0.5), more=st.floats(0.0, 0.4), gpu=st.sampled_from(["small", "large", None]))
def test_a_larger_error_never_costs_less(make, small, more, gpu):
    plain = two_types(make)
    costs = [cost(plain), *(cost(slow(plain, gpu, error)) for error in (small, small + more))]
    assert costs == sorted(costs)


def test_all_types_slow_at_once_costs_no_less_than_one_at_a_time(make):
    plain = two_types(make)
    each = slow(slow(plain, "small", 0.3), "large", 0.3)
    assert cost(plain) <= cost(each) <= cost(slow(plain, None, 0.3))
    assert cost(each) == cost(replace(each, rules=tuple(reversed(each.rules))))


def test_a_scenario_that_asks_for_no_more_changes_nothing_and_has_no_rows(make):
    plain = two_types(make)
    plain = replace(plain, headroom_fraction=0.1)
    mild = slow(with_scenarios(plain, times(plain, {"chat": 1.1, "code": 0.5})), "small", 0.05)
    assert fleet_arrays(mild, FRACTIONAL).scenarios == ()
    expected = plan_of(plain)
    found = plan_of(mild)
    assert (found.allocation, found.routing) == (expected.allocation, expected.routing)
    busy = with_scenarios(plain, times(plain, {"chat": 1.2}))
    assert [part.name for part in fleet_arrays(busy, FRACTIONAL).scenarios] == ["busy"]


def test_headroom_of_a_scenario_and_the_part_that_must_be_served(make):
    plain = two_types(make)
    assert cost(with_scenarios(plain, times(plain, {"chat": 2}, headroom_fraction=0.5))) == cost(
        with_scenarios(plain, times(plain, {"chat": 3, "code": 1.5}))
    )
    assert cost(with_scenarios(plain, times(plain, {"chat": 4, "code": 4}, bound=0.5))) == cost(
        with_scenarios(plain, times(plain, {"chat": 2, "code": 2}))
    )


def test_a_rare_request_of_a_scenario_has_a_replica(make):
    """Its load is below what solvers call nothing."""
    cheap, able = make.offer("A", 1.0), make.offer("B", 9.0)
    problem = make.problem(
        make.demand([5.0]),
        [
            make.option(cheap, [5.0], scenario_rps={"long": np.array([5.0, 0.0])}),
            make.option(able, [5.0], scenario_rps={"long": np.array([5.0, 1.0])}),
        ],
    )
    rare = Scenario(name="long", demands=(make.demand([1.0, 1e-8]),))
    plan = plan_of(with_scenarios(problem, rare))
    assert plan.cost_usd_per_hour == 9.0


def test_a_scenario_keeps_an_option_that_pruning_would_leave_out(make):
    """The dearer option is no faster as planned, but it is the one that is sure of its speed."""
    sure, unsure = make.offer("sure", 1.2), make.offer("unsure", 1.0)
    problem = make.problem(make.demand([6.0]), [make.option(sure, [1.0]), make.option(unsure, [1.0])])
    robust = slow(problem, "unsure", 0.5)
    assert len(prune(problem).options) == 1
    assert len(prune(robust).options) == 2
    assert cost(robust) == pytest.approx(7.2)


def test_the_check_finds_a_fleet_that_does_not_survive(make):
    plain = two_types(make)
    robust = with_scenarios(plain, times(plain, {"chat": 2}))
    plan = plan_of(plain)
    with pytest.raises(SolverLiedError, match="in the scenario busy it serves 0"):
        verify_plan(robust, plan)
    slower = slow(plain, None, 0.5)
    with pytest.raises(SolverLiedError, match="None slow"):
        verify_plan(slower, plan)


def test_a_scenario_that_limits_do_not_hold_is_named_with_what_they_do_hold(make):
    plain = two_types(make)
    budget = make.limit("budget", "usd_per_hour", cost(plain))
    robust = replace(with_scenarios(plain, times(plain, {"chat": 2})), limits=(budget,))
    assert plan_of(robust).status is PlanStatus.INFEASIBLE
    found = {conflict.requirement: conflict for conflict in find_conflicts(robust, settings=EXACT)}
    assert set(found) == {f"budget <= {budget.bound:.2f} USD/h", "scenario busy: served >= 100%"}
    conflict = found["scenario busy: served >= 100%"]
    assert 0.5 <= conflict.relaxed < 1.0
    scenario = robust.rules[0]
    enough = replace(robust, rules=(replace(scenario, bound=conflict.relaxed),))
    assert plan_of(enough).status is PlanStatus.OPTIMAL
    beyond = replace(robust, rules=(replace(scenario, bound=conflict.relaxed + 0.002),))
    assert plan_of(beyond).status is PlanStatus.INFEASIBLE


def test_requests_of_a_scenario_that_nothing_serves_are_named(make):
    problem = make.problem(
        make.demand([1.0]), [make.option(make.offer(), [1.0], scenario_rps={"long": np.array([1.0, 0.0])})]
    )
    long = Scenario(name="long", demands=(make.demand([1.0, 1.0]),))
    plan = plan_of(with_scenarios(problem, long))
    assert plan.status is PlanStatus.INFEASIBLE
    assert [item.requirement for item in plan.conflicts] == ["in the scenario long, default: bucket row 1, column 0"]


def test_scenarios_have_a_price_each(make):
    plain = two_types(make)
    robust = with_scenarios(plain, times(plain, {"chat": 2}), times(plain, {"code": 1.1}, name="code"))
    plan = plan_of(robust)
    prices = price_of_limits(robust, plan, EXACT)
    without = with_scenarios(plain, robust.rules[1])
    assert prices["scenario busy: served >= 100%"] == pytest.approx(plan.cost_usd_per_hour - cost(without))


def test_scenarios_go_with_other_rules_limits_objectives_and_slices(make):
    plain = two_types(make)
    busy = times(plain, {"chat": 2, "code": 2})
    capped = ShareCap(name="share of one GPU type", facet=Facet.GPU, bound=0.5, service="chat")
    lost = Survival(name="survive offer", facet=Facet.OFFER)
    least = Minimum(name="minimum", resource=Resource.GPUS, bound=4)
    for rules in ((capped,), (lost,), (least,), (capped, lost, least)):
        assert cost(replace(plain, rules=(*rules, busy))) >= max(
            cost(replace(plain, rules=rules)), cost(with_scenarios(plain, busy))
        )
    powered = replace(
        with_scenarios(plain, busy), options=tuple(replace(option, power_w=100.0) for option in plain.options)
    )
    goal = plan_of(replace(powered, goal=Goal(stages=({Measure.GPUS: 1.0},))))
    assert goal.objectives[0].value <= sum(item.instances for item in plan_of(powered).rentals)
    watts = plan_of(replace(powered, limits=(make.limit("power", "watts", 500.0),)))
    assert watts.power_w <= 500.0
    sliced = plan_of(with_scenarios(plain, busy), assignment=Assignment.sliced(2))
    assert sliced.cost_usd_per_hour >= cost(with_scenarios(plain, busy))


def test_what_cannot_be_planned_together_is_refused(make):
    plain = two_types(make)
    busy = times(plain, {"chat": 2})
    with pytest.raises(InputError, match="cannot be shed"):
        plan_of(replace(with_scenarios(plain, busy), shed=Shedding(priority={})))
    with pytest.raises(InputError, match="Two scenarios are called 'busy'"):
        plan_of(with_scenarios(plain, busy, busy))
    with pytest.raises(InputError, match="In the scenario busy: The throughput of chat"):
        plan_of(with_scenarios(plain, replace(busy, demands=(make.demand([1.0], service="chat"), busy.demands[1]))))
    with pytest.raises(InputError, match="The headroom in busy"):
        plan_of(with_scenarios(plain, replace(busy, headroom_fraction=-1.0)))


def test_the_plan_does_not_depend_on_the_order_of_the_request(make):
    plain = two_types(make)
    robust = slow(with_scenarios(plain, times(plain, {"chat": 1.7})), "small", 0.2)
    one = plan_of(robust)
    other = plan_of(
        replace(
            robust,
            options=tuple(reversed(robust.options)),
            rules=tuple(reversed(robust.rules)),
            demands=tuple(reversed(robust.demands)),
        )
    )
    assert sorted(one.allocation, key=str) == sorted(other.allocation, key=str)


def test_a_few_scenarios_at_a_time_end_where_all_at_once_do(make, monkeypatch):
    rng = np.random.default_rng(5)
    n_rounds = n_found = 0
    for _ in range(40):
        problem = random_problem(make, rng)
        fleet = fleet_arrays(prune(problem), FRACTIONAL)
        if fleet.unserved or len(fleet.scenarios) < 2:
            continue
        whole = search(fleet, EXACT)
        asked = []

        def traced(part, settings, asked=asked):
            asked.append(tuple(each.name for each in part.scenarios))
            return search(part, settings)

        found = search_in_rounds(fleet, EXACT, traced)
        assert found.termination is whole.termination
        n_rounds += len(asked)
        if whole.fleet is None:
            continue
        assert found.fleet.cost_usd_per_hour == pytest.approx(whole.fleet.cost_usd_per_hour, rel=1e-9)
        assert found.bound_usd_per_hour <= found.fleet.cost_usd_per_hour * (1 + 1e-9)
        assert not any(is_missed(fleet, each, found.fleet.replicas) for each in fleet.scenarios)
        n_found += 1
    assert n_found >= 10
    assert n_rounds > n_found * 2
    monkeypatch.setattr("planner.optimize.scenario_search.ROUNDS_FROM_PAIRS", 0)
    plain = two_types(make)
    robust = slow(with_scenarios(plain, times(plain, {"chat": 2})), "small", 0.4)
    assert is_large(fleet_arrays(robust, FRACTIONAL))
    plan = plan_of(robust)
    monkeypatch.undo()
    assert plan.cost_usd_per_hour == cost(robust)


def test_rounds_that_a_limit_stops_leave_a_fleet_that_survives_everything(make):
    plain = two_types(make)
    robust = slow(with_scenarios(plain, times(plain, {"chat": 2, "code": 3})), "small", 0.4)
    fleet = fleet_arrays(prune(robust), FRACTIONAL)
    calls = []

    def stopped(part, settings):
        """The second round is cut short, after its fleet was found."""
        calls.append(len(part.scenarios))
        found = search(part, settings)
        return replace(found, termination=Termination.TIME_LIMIT) if len(calls) == 2 else found

    found = search_in_rounds(fleet, EXACT, stopped)
    assert not any(is_missed(fleet, each, found.fleet.replicas) for each in fleet.scenarios)
    assert found.termination is Termination.TIME_LIMIT
    assert found.bound_usd_per_hour <= found.fleet.cost_usd_per_hour


def test_rounds_that_would_repeat_themselves_end(make, monkeypatch):
    """Where the check misses what the search survives, by a solver's tolerance, no round is searched twice."""
    plain = two_types(make)
    robust = slow(with_scenarios(plain, times(plain, {"chat": 2})), "small", 0.4)
    fleet = fleet_arrays(prune(robust), FRACTIONAL)
    monkeypatch.setattr("planner.optimize.scenario_search.is_missed", lambda *_: True)
    calls = []

    def counted(part, settings):
        calls.append(len(part.scenarios))
        assert len(calls) < 5
        return search(part, settings)

    found = search_in_rounds(fleet, EXACT, counted)
    assert calls == [0, len(fleet.scenarios), len(fleet.scenarios)]
    assert found.fleet.cost_usd_per_hour == cost(robust)


def test_rounds_without_any_fleet_search_everything_at_once(make):
    plain = two_types(make)
    robust = slow(with_scenarios(plain, times(plain, {"chat": 2})), "small", 0.4)
    fleet = fleet_arrays(prune(robust), FRACTIONAL)
    calls = []

    def stopped(part, settings):
        calls.append(len(part.scenarios))
        found = search(part, settings)
        return replace(found, fleet=None, termination=Termination.TIME_LIMIT) if len(calls) == 1 else found

    found = search_in_rounds(fleet, EXACT, stopped)
    assert calls == [0, len(fleet.scenarios)]
    assert found.fleet.cost_usd_per_hour == cost(robust)


def test_over_periods_a_scenario_is_survived_in_each_of_them(make):
    """Two requests/s by day and none by night, twice as many if it is busy; a slow GPU is slow all day."""
    cheap = make.offer("A", 1.0)
    horizon = Horizon(step_s=3600.0, factors={"default": (1.0, 0.0, 2.0)})
    plain = make.problem(make.demand([2.0]), [make.option(cheap, [1.0])], horizon=horizon)
    assert cost(plain) == pytest.approx((2 + 0 + 4) / 3)
    busy = with_scenarios(plain, times(plain, {"default": 2}))
    plan = plan_of(busy)
    assert [period.rentals[0].instances if period.rentals else 0 for period in plan.schedule] == [4, 0, 8]
    slower = slow(plain, "A", 0.5)
    assert cost(slower) == pytest.approx(4.0)
    table = robustness(busy, plan, settings=EXACT, assignment=FRACTIONAL)
    rows = {row.fleet: row for row in table.fleets}
    assert table.price_usd_per_hour == pytest.approx(2.0)
    assert [item.unserved_rps for item in rows["plain"].outcomes] == [0, pytest.approx(2.0)]
    verify_plan(busy, replace(plan, robustness=table))
    less = tuple(replace(item, replicas=item.replicas - 1) for item in rows["robust"].replicas)
    wrong = tuple(replace(row, replicas=less) if row.fleet == "robust" else row for row in table.fleets)
    with pytest.raises(SolverLiedError, match="not its own"):
        verify_plan(busy, replace(plan, robustness=replace(table, fleets=wrong)))
    idle = tuple(replace(row, replicas=less) if row.fleet == "busy" else row for row in table.fleets)
    with pytest.raises(SolverLiedError, match="busy leaves"):
        verify_plan(busy, replace(plan, robustness=replace(table, fleets=idle)))


def test_the_check_finds_a_schedule_that_does_not_survive_one_period(make):
    horizon = Horizon(step_s=3600.0, factors={"default": (1.0, 2.0)})
    plain = make.problem(make.demand([2.0]), [make.option(make.offer("A", 1.0), [1.0])], horizon=horizon)
    other = Scenario(name="other", demands=(make.demand([1.0, 2.0]),))
    options = tuple(replace(each, scenario_rps={"other": np.array([1.0, 1.0])}) for each in plain.options)
    robust = with_scenarios(replace(plain, options=options), other)
    assert cost(robust) == pytest.approx((3 + 6) / 2)
    with pytest.raises(SolverLiedError, match=r"period 0: .*in the scenario other"):
        verify_plan(robust, plan_of(plain))
