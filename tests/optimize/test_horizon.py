"""Schedules: against every schedule of tiny cases, the properties that must hold, and checks that must fire."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.hardware import Market
from planner.domain.plan import PlanStatus
from planner.domain.problem import ChangeCost, Horizon
from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, find_conflicts, solve, verify_plan
from planner.optimize.arrays import fleet_arrays
from planner.optimize.prune import prune
from planner.optimize.search import search

EXACT = SolverSettings(relative_gap=0.0)
HOUR = 3600.0


def over(problem, factors, *, start_up=0.0, lease=0.0):
    """The problem over hours; `factors` of every service alike, or by service."""
    by_service = factors if isinstance(factors, dict) else {d.service: tuple(factors) for d in problem.demands}
    horizon = Horizon(step_s=HOUR, factors=by_service, start_up_s=start_up * HOUR, minimum_lease_s=lease * HOUR)
    return replace(problem, horizon=horizon)


def cost(problem, **given):
    plan = solve(problem, settings=EXACT, assignment=Assignment.fractional(), **given)
    verify_plan(problem, plan)
    assert plan.status in {PlanStatus.OPTIMAL, PlanStatus.INFEASIBLE}
    return np.inf if plan.cost_usd_per_hour is None else plan.cost_usd_per_hour


def two_options(make, *, reserved=None, throughputs=((4, 4), (7, 9)), prices=(1.0, 1.9)):
    offers = [make.offer("A", prices[0]), make.offer("B", prices[1])]
    if reserved is not None:
        offers.append(make.offer("A1y", reserved, gpu="A", market=Market.RESERVED_1Y))
    tables = [throughputs[0], throughputs[1], throughputs[0]]
    return [make.option(offered, table) for offered, table in zip(offers, tables, strict=False)]


# --- against every schedule ---------------------------------------------------------------------------------------


def serves(loads, counts):
    """Whether fractional shares of two buckets at most fit `counts` of the options: every cut of the polyhedron.

    With one bucket the options' parts add up; with two, what matters are the points where the cheaper one changes.
    """
    n_buckets = len(loads)
    ratios = {Fraction(0), Fraction(1)}
    for a, b in itertools.combinations(range(len(counts)), 2):
        for row in loads:
            if row[a] is not None and row[b] is not None:
                ratios |= {Fraction(row[b]) / Fraction(row[a]), Fraction(row[a]) / Fraction(row[b])}
    weights = itertools.product(sorted(ratios | {1 / r for r in ratios if r}), repeat=len(counts))
    for prices in weights:
        need = sum(min(Fraction(row[j]) * prices[j] for j in range(len(counts)) if row[j] is not None) for row in loads)
        if need > sum(count * price for count, price in zip(counts, prices, strict=True)):
            return False
    return n_buckets > 0


def brute_force(problem):
    """The least cost over all schedules of 1-GPU options: counts per period, one by one, with lease and commitments."""
    horizon = problem.horizon
    (demand,) = problem.demands
    n_periods, lease = horizon.n_periods, horizon.lease_periods
    fleets = []
    for t in range(n_periods):
        factor = Fraction(horizon.factors[demand.service][t]).limit_denominator(100)
        loads = [
            [
                Fraction(int(bucket.rate_rps)) * factor / int(option.throughput_rps[b])
                if option.throughput_rps[b] > 0
                else None
                for option in problem.options
            ]
            for b, bucket in enumerate(demand.buckets)
        ]
        upper = [int(np.ceil(sum(float(row[j] or 0) for row in loads))) for j in range(len(problem.options))]
        fleets.append((loads, upper))
    most = [max(upper[j] for _, upper in fleets) for j in range(len(problem.options))]
    ok = [
        {
            counts: (not factor_zero(loads) and serves(loads, counts)) or factor_zero(loads)
            for counts in itertools.product(*(range(m + 1) for m in most))
        }
        for loads, _ in fleets
    ]
    best = np.inf
    for schedule in itertools.product(*([c for c, good in each.items() if good] for each in ok)):
        total = 0.0
        for j, option in enumerate(problem.options):
            counts = [schedule[t][j] for t in range(n_periods)]
            if option.offer.market is Market.RESERVED_1Y:
                if len(set(counts)) > 1:
                    break
                ups = 0
            else:
                if not lease_holds(counts, lease):
                    break
                ups = sum(max(0, counts[t] - counts[t - 1]) for t in range(n_periods))
            share = horizon.start_up_s / horizon.step_s
            total += option.offer.price_usd_per_hour * (sum(counts) + share * ups) / n_periods
        else:
            best = min(best, total)
    return best


def factor_zero(loads):
    return all(value in {None, 0} for row in loads for value in row)


def lease_holds(counts, lease):
    """Instances start when the count rises and stop oldest first: is each kept for a lease, going round and round?"""
    ages = [99] * counts[-1]
    for _ in range(4):
        for count in counts:
            ages = [age + 1 for age in ages]
            stopped = ages[: max(0, len(ages) - count)]
            if any(age < lease for age in stopped):
                return False
            ages = ages[len(stopped) :] + [0] * (count - len(ages))
    return True


@pytest.mark.parametrize("seed", range(40))
def test_every_schedule_of_tiny_cases(make, seed):
    rng = np.random.default_rng(7000 + seed)
    n_buckets, n_periods = int(rng.integers(1, 3)), int(rng.integers(2, 4))
    tables = rng.integers(2, 7, (2, n_buckets))
    prices = rng.integers(2, 9, 2) / 2
    reserved = float(prices[0]) * float(rng.choice([0.4, 0.6, 0.8])) if rng.random() < 0.5 else None
    options = two_options(make, reserved=reserved, throughputs=tables, prices=tuple(prices.tolist()))
    if reserved is not None and n_buckets == 2:
        options = [options[0], options[2]]
    steady = make.problem(make.demand(rng.integers(1, 5, n_buckets)), options)
    factors = rng.choice([0.0, 0.5, 1.0, 1.5, 2.0], n_periods)
    factors[int(rng.integers(n_periods))] = 1.0
    problem = over(
        steady,
        factors.tolist(),
        start_up=float(rng.choice([0.0, 0.25, 1.0])),
        lease=float(rng.choice([0, 1, 2, 3][: n_periods + 1])),
    )
    assert cost(problem) == pytest.approx(brute_force(problem), rel=1e-9)


# --- properties ---------------------------------------------------------------------------------------------------


@st.composite
def schedules(draw, make):
    """One or two services, two or three offers of one or four GPUs, two to five periods."""
    services = draw(st.sampled_from([("chat",), ("chat", "code")]))
    offers = [
        make.offer(name, draw(st.integers(2, 20)) / 4 * gpus, gpus_per_instance=gpus, gpu=name)
        for name, gpus in zip("ABC", draw(st.lists(st.sampled_from([1, 1, 4]), min_size=2, max_size=3)), strict=False)
    ]
    demands, options = [], []
    for service in services:
        rates = draw(st.lists(st.integers(1, 9), min_size=1, max_size=2))
        demands.append(make.demand(rates, service=service))
        options += [
            make.option(
                offered,
                draw(st.lists(st.integers(1, 9), min_size=len(rates), max_size=len(rates))),
                service=service,
                power_w=100.0,
            )
            for offered in offers
        ]
    n_periods = draw(st.integers(2, 5))
    shapes = {
        service: (
            1.0,
            *draw(st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.0]), min_size=n_periods - 1, max_size=n_periods - 1)),
        )
        for service in services
    }
    return over(
        make.problem(tuple(demands), options, headroom_fraction=draw(st.sampled_from([0.0, 0.1]))),
        shapes,
        start_up=draw(st.sampled_from([0.0, 0.1, 1.0, 1.5])),
        lease=draw(st.sampled_from([0.0, 1.0, 2.0])),
    )


def with_horizon(problem, **given):
    return replace(problem, horizon=replace(problem.horizon, **given))


@given(data=st.data())
def test_one_period_is_todays_plan(make, data):
    problem = data.draw(schedules(make))
    steady = replace(problem, horizon=None)
    one = over(steady, dict.fromkeys(problem.horizon.factors, (1.0,)))
    assert cost(one) == pytest.approx(cost(steady), rel=1e-9)


@given(data=st.data())
def test_constant_demand_costs_what_the_steady_state_costs(make, data):
    problem = data.draw(schedules(make))
    constant = dict.fromkeys(problem.horizon.factors, (1.0,) * 3)
    assert cost(with_horizon(problem, factors=constant, start_up_s=1.0, minimum_lease_s=2.0)) == pytest.approx(
        cost(replace(problem, horizon=None)), rel=1e-9
    )


@given(data=st.data())
def test_longer_leases_and_start_ups_never_cost_less(make, data):
    problem = data.draw(schedules(make))
    now = cost(problem)
    whole = problem.horizon.step_s * problem.horizon.n_periods
    for name in ("minimum_lease_s", "start_up_s"):
        longer = min(getattr(problem.horizon, name) + 0.9 * HOUR, whole)
        assert now <= cost(with_horizon(problem, **{name: longer})) * (1 + 1e-9)


@given(data=st.data())
def test_a_commitment_on_offer_never_costs_more_and_a_schedule_at_most_its_peak(make, data):
    problem = data.draw(schedules(make))
    now = cost(problem)
    reserved = tuple(
        replace(
            option,
            offer=replace(
                option.offer,
                name=f"{option.offer.name}1y",
                market=Market.RESERVED_1Y,
                price_usd_per_hour=option.offer.price_usd_per_hour * 0.6,
            ),
        )
        for option in problem.options
    )
    both = cost(replace(problem, options=problem.options + reserved))
    assert both <= now * (1 + 1e-9)
    peak = {service: (max(factors),) for service, factors in problem.horizon.factors.items()}
    assert now <= cost(with_horizon(problem, factors=peak, start_up_s=0.0, minimum_lease_s=0.0)) * (1 + 1e-9)


@given(data=st.data())
def test_pruning_keeps_the_cost_of_schedules_and_the_two_solvers_agree(make, data):
    problem = data.draw(schedules(make))
    reserved = replace(problem.options[0].offer, name="R", market=Market.RESERVED_1Y, price_usd_per_hour=0.3)
    problem = replace(problem, options=(*problem.options, replace(problem.options[0], offer=reserved)))
    fleets = [
        search(fleet_arrays(each, Assignment.fractional()), replace(EXACT, solver=solver)).fleet
        for each, solver in ((problem, "highs"), (prune(problem), "highs"), (prune(problem), "cbc"))
    ]
    assert len({round(fleet.cost_usd_per_hour, 6) for fleet in fleets}) == 1


# --- known answers ------------------------------------------------------------------------------------------------


def day(make, **given):
    """10 replicas at noon, 2 at night, on machines of 1 USD/h."""
    problem = make.problem(make.demand([2.0]), [make.option(make.offer("A", 1.0), [1.0])])
    return over(problem, (1.0, 5.0, 1.0, 1.0), **given)


def test_start_up_and_lease_have_their_price(make):
    assert cost(day(make)) == pytest.approx((2 * 3 + 10) / 4)
    assert cost(day(make, start_up=0.25)) == pytest.approx((2 * 3 + 10 + 8 * 0.25) / 4)
    # Five run all along and five more at noon; the older five then go, so that each is kept for five hours.
    assert cost(day(make, lease=3)) == pytest.approx((5 * 4 + 5) / 4)
    # Within its only hour of a lease of two an instance cannot be replaced: it stays for a second one.
    lone = make.problem(make.demand([1.0]), [make.option(make.offer("A", 1.0), [1.0])])
    assert cost(over(lone, (1.0, 0.0, 0.0, 0.0), lease=2)) == pytest.approx(2 / 4)
    assert cost(over(lone, (1.0, 0.0, 0.0, 0.0), lease=1.5, start_up=0.5)) == pytest.approx(2.5 / 4)


def test_the_base_is_reserved_and_the_peak_is_not(make):
    problem = day(make)
    reserved = make.option(make.offer("A1y", 0.6, gpu="A", market=Market.RESERVED_1Y), [1.0])
    plan = solve(replace(problem, options=(*problem.options, reserved)), settings=EXACT, assignment=Assignment())
    assert [(item.offer, item.instances) for item in plan.commitments] == [("A1y", 2)]
    assert plan.cost_usd_per_hour == pytest.approx((2 * 0.6 * 4 + 8) / 4)
    assert [period.cost_usd_per_hour for period in plan.schedule] == pytest.approx([1.2, 9.2, 1.2, 1.2])
    assert {item.offer: item.instances for item in plan.rentals} == {"A1y": 2, "A": 8}
    assert plan.rate_rps == pytest.approx(4.0)
    assert sum(item.cost_usd_per_hour for item in plan.allocation) == pytest.approx(plan.cost_usd_per_hour)


def test_a_service_can_scale_to_zero(make):
    problem = make.problem(make.demand([2.0]), [make.option(make.offer("A", 1.0), [1.0])])
    plan = solve(over(problem, (1.0, 0.0, 0.0)), settings=EXACT, assignment=Assignment())
    assert [period.rentals for period in plan.schedule][1:] == [(), ()]
    assert plan.cost_usd_per_hour == pytest.approx(2 / 3)


def test_limits_hold_in_every_period_with_what_is_starting_up(make):
    """Two services peak one after the other; while the second one's machines start, the first one's still run."""
    a, b = make.offer("A", 1.0), make.offer("B", 1.0)
    demands = (make.demand([2.0], service="a"), make.demand([2.0], service="b"))
    options = [make.option(a, [1.0], service="a"), make.option(b, [1.0], service="b")]
    problem = make.problem(demands, options, limits=(make.limit("quota", "gpus", 2),))
    turns = {"a": (1.0, 0.0, 0.0, 0.0), "b": (0.0, 1.0, 0.0, 0.0)}
    assert cost(over(problem, turns)) == pytest.approx(1.0)
    assert cost(over(problem, turns, start_up=0.1)) == np.inf
    conflicts = find_conflicts(over(problem, turns, start_up=0.1), settings=EXACT)
    assert conflicts[0].requirement == "quota <= 2 GPUs"
    assert conflicts[0].relaxed == 4
    assert conflicts[1].suggestion == "start-up 6 min -> none"
    assert len(conflicts) == 2
    wider = replace(problem, limits=(make.limit("quota", "gpus", 4),))
    assert cost(over(wider, turns, start_up=0.1)) == pytest.approx(1.1)


def test_a_lease_that_stands_in_the_way_is_named(make):
    a, b = make.offer("A", 1.0), make.offer("B", 1.0)
    demands = (make.demand([2.0], service="a"), make.demand([2.0], service="b"))
    options = [make.option(a, [1.0], service="a"), make.option(b, [1.0], service="b")]
    problem = make.problem(demands, options, limits=(make.limit("quota", "gpus", 2),))
    turns = over(problem, {"a": (1.0, 1.0, 0.0, 0.0), "b": (0.0, 0.0, 1.0, 1.0)}, lease=3)
    assert cost(turns) == np.inf
    named = find_conflicts(turns, settings=EXACT)
    assert [(item.requirement, item.relaxed) for item in named] == [
        ("quota <= 2 GPUs", 3.0),
        ("minimum lease of 3 h", 2 * HOUR),
    ]


# --- checks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: replace(p, rentals=tuple(replace(r, instances=r.instances - 1) for r in p.rentals)), "period 1"),
        (lambda p: replace(p, rentals=tuple(replace(r, starting=0) for r in p.rentals)), "never started"),
        (lambda p: replace(p, cost_usd_per_hour=p.cost_usd_per_hour - 1), "period 1 costs"),
        (lambda p: replace(p, routing=()), "routing weights"),
        (lambda p: replace(p, allocation=tuple(replace(a, utilization=0.5) for a in p.allocation)), "not utilised"),
    ],
)
def test_a_wrong_period_is_found(make, change, message):
    problem = day(make, start_up=0.5)
    plan = solve(problem, settings=EXACT, assignment=Assignment())
    periods = list(plan.schedule)
    periods[1] = change(periods[1])
    with pytest.raises(SolverLiedError, match=message):
        verify_plan(problem, replace(plan, schedule=tuple(periods)))


def test_a_broken_lease_or_commitment_and_a_missing_period_are_found(make):
    problem = day(make, start_up=0.5)
    plan = solve(problem, settings=EXACT, assignment=Assignment())
    with pytest.raises(SolverLiedError, match="of its lease"):
        verify_plan(with_horizon(problem, minimum_lease_s=2 * HOUR), plan)
    reserved = replace(problem.options[0], offer=replace(problem.options[0].offer, market=Market.RESERVED_3Y))
    with pytest.raises(SolverLiedError, match="is reserved"):
        verify_plan(replace(problem, options=(reserved,)), plan)
    with pytest.raises(SolverLiedError, match="3 periods"):
        verify_plan(problem, replace(plan, schedule=plan.schedule[:3]))


@pytest.mark.parametrize(
    ("horizon", "message"),
    [
        ({"factors": {"default": (1.0, -1.0)}}, "negative"),
        ({"factors": {"default": (0.0, 0.0)}}, "nothing at all"),
        ({"factors": {}}, "periods"),
        ({"step_s": 0.0}, "no length"),
        ({"start_up_s": 1e6}, "start-up of"),
        ({"minimum_lease_s": 1e6}, "minimum lease of"),
    ],
)
def test_a_horizon_that_contradicts_itself_is_refused(make, horizon, message):
    problem = with_horizon(day(make), **horizon)
    with pytest.raises(InputError, match=message):
        fleet_arrays(problem, Assignment.fractional())


def test_a_schedule_from_a_fleet_that_runs_today_is_refused(make):
    with pytest.raises(InputError, match="whatever runs today"):
        solve(replace(day(make), change=ChangeCost(running=(), instances={})), settings=EXACT, assignment=Assignment())


def test_a_stopped_search_rounds_up_and_keeps_leases(make):
    problem = over(
        make.problem(
            make.demand([3.0, 5.0]),
            [make.option(make.offer("A", 1.0), [1.1, 0.7]), make.option(make.offer("B", 1.4), [0.9, 1.3])],
        ),
        (0.2, 1.0, 0.3, 2.0, 0.1, 0.2),
        start_up=0.2,
        lease=2,
    )
    plan = solve(problem, settings=SolverSettings(time_limit_s=0.0), assignment=Assignment())
    verify_plan(problem, plan)
    assert plan.status in {PlanStatus.FEASIBLE, PlanStatus.UNKNOWN}
