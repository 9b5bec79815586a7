"""Work with a deadline: against every fleet of tiny cases, the properties that must hold, and checks that must fire."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.domain.disaggregation import Handover, Role
from planner.domain.hardware import Market
from planner.domain.jobs import Job
from planner.domain.plan import PlanStatus
from planner.domain.problem import (
    ChangeCost,
    Facet,
    Goal,
    Horizon,
    Measure,
    Minimum,
    Resource,
    ShareCap,
    Shedding,
    Survival,
    VarietyLimit,
)
from planner.errors import InputError, SolverLiedError
from planner.optimize import (
    Assignment,
    SolverSettings,
    find_conflicts,
    price_of_jobs,
    single_gpu_baselines,
    solve,
    verify_plan,
)
from planner.optimize.arrays import fleet_arrays
from planner.optimize.explain import without_job
from planner.optimize.model import build_model
from planner.optimize.prune import prune
from planner.optimize.search import search

EXACT = SolverSettings(relative_gap=0.0)
HOUR = 3600.0
FREE = Assignment.fractional()


def planned(problem, **given):
    plan = solve(problem, settings=EXACT, assignment=FREE, **given)
    verify_plan(problem, plan)
    assert plan.status in {PlanStatus.OPTIMAL, PlanStatus.INFEASIBLE}
    return plan


def cost(problem):
    plan = planned(problem)
    return np.inf if plan.cost_usd_per_hour is None else plan.cost_usd_per_hour


def chat_and_batch(
    make, *, rate=3.0, job=None, prices=(1.0, 3.0), serves=(2.0, 1.0), beside=(1.0, 1.0), own=(1.0, 5.0)
):
    """A service and a job on offers A and B; `beside` and `own` are the job's units per second on a replica."""
    offers = [make.offer(name, price) for name, price in zip("AB", prices, strict=True)]
    hosts = [
        make.option(offered, [speed], service="chat", job_rates={"batch": rate_}, power_w=100.0)
        for offered, speed, rate_ in zip(offers, serves, beside, strict=True)
    ]
    owns = [
        make.option(offered, [speed], service="batch", power_w=100.0)
        for offered, speed in zip(offers, own, strict=True)
    ]
    whole = make.problem(make.demand([rate], service="chat"), [*hosts, *owns], headroom_fraction=0.1)
    return replace(whole, jobs=(job or batch(),))


def batch(amount=3600.0, **given):
    return Job(**({"name": "batch", "amount": amount, "deadline_s": 2 * HOUR, "harvest_efficiency": 0.8} | given))


def over(problem, factors, *, start_up=0.0):
    horizon = Horizon(
        step_s=HOUR, factors={d.service: tuple(factors) for d in problem.demands}, start_up_s=start_up * HOUR
    )
    return replace(problem, horizon=horizon)


def with_job(problem, **given):
    return replace(problem, jobs=(replace(problem.jobs[0], **given),))


# --- against every fleet ------------------------------------------------------------------------------------------


def most_work(problem, counts, factor, seconds):
    """The units that these replicas can do in `seconds` beside the requests; None where they do not hold those.

    One bucket on two options: what is left of them is linear in the part that goes to the first, so an end decides.
    """
    (job,) = problem.jobs
    chat_a, chat_b, own_a, own_b = problem.options
    n_a, n_b, m_a, m_b = counts
    rate = problem.demands[0].buckets[0].rate_rps * factor
    speed_a, speed_b = float(chat_a.throughput_rps[0]), float(chat_b.throughput_rps[0])
    padded = rate * (1 + problem.headroom_fraction)
    low, high = (max(0.0, 1 - n_b * speed_b / padded), min(1.0, n_a * speed_a / padded)) if rate else (0.0, 0.0)
    if low > high + 1e-12:
        return None
    beside = max(
        (n_a - rate * part / speed_a) * chat_a.job_rates["batch"]
        + (n_b - (rate * (1 - part) / speed_b if rate else 0.0)) * chat_b.job_rates["batch"]
        for part in (low, high)
    )
    own = m_a * float(own_a.throughput_rps[0]) + m_b * float(own_b.throughput_rps[0])
    return (beside * job.harvest_efficiency + own) * seconds


def window(job, n_hours):
    """The seconds of every hour in which the job may run, counted minute by minute round the horizon."""
    seconds = [0.0] * n_hours
    minutes = round((job.deadline_s - job.release_s) / 60) % (60 * n_hours) or 60 * n_hours
    for minute in range(round(job.release_s / 60), round(job.release_s / 60) + minutes):
        seconds[minute // 60 % n_hours] += 60.0
    return seconds


def brute_force(problem, most):
    """The least cost over all counts of four options up to `most` in every period."""
    (job,), horizon = problem.jobs, problem.horizon
    prices = [problem.options[0].offer.price_usd_per_hour, problem.options[1].offer.price_usd_per_hour]
    factors = (1.0,) if horizon is None else horizon.factors["chat"]
    seconds = [job.deadline_s - job.release_s] if horizon is None else window(job, len(factors))
    share = 0.0 if horizon is None else horizon.start_up_s / horizon.step_s
    states = []
    for factor, length in zip(factors, seconds, strict=True):
        found = {}
        for counts in itertools.product(range(most + 1), repeat=4):
            work = most_work(problem, counts, factor, length)
            if work is not None:
                rented = (counts[0] + counts[2], counts[1] + counts[3])
                found[rented] = max(found.get(rented, 0.0), work)
        states.append(list(found.items()))
    best = np.inf
    for schedule in itertools.product(*states):
        if sum(work for _, work in schedule) < job.amount * (1 - 1e-12):
            continue
        total = 0.0
        for which, price in enumerate(prices):
            rented = [counts[which] for counts, _ in schedule]
            ups = sum(max(0, now - before) for now, before in zip(rented, [rented[-1], *rented[:-1]], strict=True))
            total += price * (sum(rented) + share * ups)
        best = min(best, total / len(factors))
    return best


def tiny_case(make, rng, **job):
    beside, own = rng.integers(1, 5, 2) / 2, rng.integers(1, 7, 2) / 2
    return chat_and_batch(
        make,
        rate=float(rng.integers(1, 5)),
        prices=tuple((rng.integers(2, 9, 2) / 2).tolist()),
        serves=tuple(rng.integers(2, 5, 2).tolist()),
        beside=tuple(beside.tolist()),
        own=tuple(own.tolist()),
        job=batch(float(rng.integers(1, 30)) * 360, harvest_efficiency=float(rng.choice([0.3, 0.85, 1.0])), **job),
    )


@pytest.mark.parametrize("seed", range(30))
def test_every_fleet_of_tiny_cases(make, seed):
    problem = tiny_case(make, np.random.default_rng(100 + seed))
    assert cost(problem) == pytest.approx(brute_force(problem, 4), rel=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_every_schedule_of_tiny_cases(make, seed):
    rng = np.random.default_rng(500 + seed)
    release, deadline = ((0, 2), (1, 2), (0, 1), (0.5, 1.5), (1.5, 0.75), (1, 1))[int(rng.integers(6))]
    problem = tiny_case(make, rng, release_s=release * HOUR, deadline_s=deadline * HOUR)
    factors = [1.0, float(rng.choice([0.0, 0.3, 1.5]))]
    problem = over(problem, factors, start_up=float(rng.choice([0.0, 0.25, 1.0])))
    assert cost(problem) == pytest.approx(brute_force(problem, 4), rel=1e-9)


# --- properties ---------------------------------------------------------------------------------------------------


@st.composite
def problems(draw, make, *, is_steady=False):
    """Two services, one or two jobs, offers of one or four GPUs; one steady state or two to four periods."""
    offers = [
        make.offer(name, draw(st.integers(2, 20)) / 4 * gpus, gpus_per_instance=gpus, gpu=name)
        for name, gpus in zip("AB", draw(st.lists(st.sampled_from([1, 1, 4]), min_size=2, max_size=2)), strict=True)
    ]
    n_periods = 1 if is_steady else draw(st.sampled_from([1, 2, 3]))
    names = draw(st.sampled_from([("batch",), ("batch", "nightly")]))
    demands, options = [], []
    for service in ("chat", "code"):
        rates = draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))
        demands.append(make.demand(rates, service=service))
        for offered in offers:
            speeds = draw(st.lists(st.integers(1, 9), min_size=len(rates), max_size=len(rates)))
            harvest = {name: float(draw(st.integers(1, 6))) for name in names if draw(st.booleans())}
            options.append(make.option(offered, speeds, service=service, power_w=100.0, job_rates=harvest))
    jobs = []
    for name in names:
        options += [make.option(each, [draw(st.integers(1, 6))], service=name, power_w=100.0) for each in offers]
        deadline = draw(st.integers(1, 4 * n_periods)) / 4
        release = draw(st.sampled_from([0.0, 0.0, 0.3])) * (deadline if n_periods == 1 else n_periods)
        jobs.append(
            Job(
                name=name,
                amount=float(draw(st.integers(1, 20))) * 500,
                release_s=release * HOUR,
                deadline_s=deadline * HOUR,
                harvest_efficiency=draw(st.sampled_from([0.4, 0.85, 1.0])),
            )
        )
    problem = replace(make.problem(tuple(demands), options, headroom_fraction=draw(st.sampled_from([0.0, 0.1]))),
                      jobs=tuple(jobs))  # fmt: skip
    if n_periods == 1:
        return problem
    factors = st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.0]), min_size=n_periods - 1, max_size=n_periods - 1)
    shapes = {service: (1.0, *draw(factors)) for service in ("chat", "code")}
    start_up = draw(st.sampled_from([0.0, 0.2]))
    return replace(problem, horizon=Horizon(step_s=HOUR, factors=shapes, start_up_s=start_up * HOUR))


@given(data=st.data())
def test_more_work_never_costs_less_and_less_never_more(make, data):
    problem = data.draw(problems(make))
    more = replace(problem, jobs=tuple(replace(job, amount=job.amount * 1.7) for job in problem.jobs))
    assert cost(problem) <= cost(more) * (1 + 1e-9)
    alone = problem
    for job in problem.jobs:
        alone = without_job(alone, job.name)
    assert cost(alone) <= cost(problem) * (1 + 1e-9)


@given(data=st.data())
def test_a_later_deadline_and_an_earlier_release_never_cost_more(make, data):
    problem = data.draw(problems(make))
    job = problem.jobs[0]
    whole = np.inf if problem.horizon is None else problem.horizon.length_s
    later = min(job.deadline_s + 0.5 * HOUR, whole)
    assume(problem.horizon is None or (later <= job.release_s) == (job.deadline_s <= job.release_s))
    assert cost(replace(problem, jobs=(replace(job, deadline_s=later), *problem.jobs[1:]))) <= cost(problem) * (
        1 + 1e-9
    )
    if job.deadline_s > job.release_s:
        earlier = replace(job, release_s=0.5 * job.release_s)
        assert cost(replace(problem, jobs=(earlier, *problem.jobs[1:]))) <= cost(problem) * (1 + 1e-9)


@given(data=st.data())
def test_harvesting_never_costs_more_and_a_better_harvest_neither(make, data):
    problem = data.draw(problems(make))
    never = replace(problem, options=tuple(replace(option, job_rates={}) for option in problem.options))
    assert cost(problem) <= cost(never) * (1 + 1e-9)
    better = replace(problem, jobs=tuple(replace(job, harvest_efficiency=1.0) for job in problem.jobs))
    assert cost(better) <= cost(problem) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_next_to_no_work_beside_requests_costs_nothing(make, seed):
    problem = tiny_case(make, np.random.default_rng(900 + seed))
    plain = cost(without_job(problem, "batch"))
    assert cost(with_job(problem, amount=1e-3)) == pytest.approx(plain, rel=1e-12)
    assert cost(over(with_job(problem, amount=1e-3), (1.0, 0.5))) <= cost(
        over(without_job(problem, "batch"), (1.0, 0.5))
    )


@given(data=st.data())
def test_pruning_keeps_the_cost_and_the_two_solvers_agree(make, data):
    problem = data.draw(problems(make))
    fleets = [
        search(fleet_arrays(each, FREE), replace(EXACT, solver=solver)).fleet
        for each, solver in ((problem, "highs"), (prune(problem), "highs"), (prune(problem), "cbc"))
    ]
    assert len({round(fleet.cost_usd_per_hour, 6) for fleet in fleets}) == 1


@given(data=st.data())
def test_scaling_amounts_and_rates_of_work_changes_nothing(make, data):
    problem = data.draw(problems(make))
    names = {job.name for job in problem.jobs}
    options = tuple(
        replace(option, throughput_rps=option.throughput_rps * 1000)
        if option.service in names
        else replace(option, job_rates={name: rate * 1000 for name, rate in option.job_rates.items()})
        for option in problem.options
    )
    jobs = tuple(replace(job, amount=job.amount * 1000) for job in problem.jobs)
    assert cost(replace(problem, options=options, jobs=jobs)) == pytest.approx(cost(problem), rel=1e-9)


@given(data=st.data())
def test_one_period_is_the_steady_state(make, data):
    problem = data.draw(problems(make, is_steady=True))
    step_s = max(job.deadline_s for job in problem.jobs)
    horizon = Horizon(step_s=step_s, factors={"chat": (1.0,), "code": (1.0,)})
    assert cost(replace(problem, horizon=horizon)) == pytest.approx(cost(problem), rel=1e-9)


# --- known answers ------------------------------------------------------------------------------------------------


def test_the_harvest_of_a_fleet_built_for_its_peak_is_what_its_requests_leave(make):
    """Mean / peak = 0.45: with nothing lost, work of 0.55 / 0.45 of the requests is free, a gain of 1 / 0.45."""
    reserved = make.offer("A", 1.0, market=Market.RESERVED_1Y)
    hosts = make.option(reserved, [1.0], service="chat", job_rates={"batch": 1.0})
    factors = (1.0, 0.2, 0.25, 0.35)
    problem = make.problem(make.demand([20.0], service="chat"), [hosts], limits=(make.limit("quota", "gpus", 20),))
    free = 0.55 / 0.45 * 20 * sum(factors) * HOUR
    problem = over(replace(problem, jobs=(batch(free * 0.9999, deadline_s=4 * HOUR, harvest_efficiency=1.0),)), factors)
    plan = planned(problem)
    assert plan.cost_usd_per_hour == 20.0
    assert plan.jobs[0].harvested_fraction == pytest.approx(1.0)
    assert plan.jobs[0].finish_s == 4 * HOUR
    assert cost(with_job(problem, amount=free * 1.0001)) == np.inf
    assert cost(with_job(problem, amount=free * 0.85, harvest_efficiency=0.85 / 0.9999)) == 20.0
    assert cost(with_job(problem, amount=free * 0.8501, harvest_efficiency=0.85)) == np.inf


def test_work_is_done_beside_requests_and_early_and_the_rest_on_replicas_of_its_own(make):
    problem = over(chat_and_batch(make, job=batch(5000.0, deadline_s=HOUR)), (1.0, 0.1, 0.1, 0.5))
    plan = planned(problem)
    (job,) = plan.jobs
    # Chat: 3 req/s need two replicas and keep 1.5 busy; the rest does 0.5 x 0.8 x 3600 requests in the hour.
    assert job.harvested_fraction == pytest.approx(1 - 3600 / 5000)
    assert {(run.period, run.service) for run in job.runs} == {(0, "batch"), (0, "chat")}
    assert [(a.service, a.replicas) for a in plan.schedule[0].allocation] == [
        ("chat", 2),
        ("batch", 1),
    ]
    assert all(item.service == "chat" for period in plan.schedule[1:] for item in period.allocation)
    assert job.own_usd_per_hour == pytest.approx(0.25)
    later = planned(with_job(problem, deadline_s=4 * HOUR)).jobs[0]
    assert (later.harvested_fraction, later.finish_s) == (pytest.approx(1.0), 3 * HOUR)
    assert price_of_jobs(problem, plan, EXACT) == {"batch": pytest.approx(0.25)}


def test_a_window_goes_round_the_end_of_the_horizon(make):
    problem = over(
        chat_and_batch(make, job=batch(5000.0, release_s=3 * HOUR, deadline_s=2 * HOUR)), (1.0, 0.1, 0.1, 0.5)
    )
    plan = planned(problem)
    assert {run.period for run in plan.jobs[0].runs} <= {3, 0, 1}
    assert plan.jobs[0].finish_s in {HOUR, 2 * HOUR}
    narrow = with_job(problem, amount=100.0, release_s=2.5 * HOUR, deadline_s=2.25 * HOUR)
    assert planned(narrow).jobs[0].finish_s <= 4 * HOUR


def test_without_a_horizon_work_is_a_steady_rate(make):
    problem = chat_and_batch(make, job=batch(7200.0, harvest_efficiency=1e-3))
    plan = planned(problem)
    assert [(a.service, a.option, a.replicas, a.utilization, a.work_utilization) for a in plan.allocation] == [
        ("chat", "A", 2, pytest.approx(0.75), 0.0),
        ("batch", "A", 1, 0.0, pytest.approx(1.0)),
    ]
    assert plan.rate_rps == 3.0  # requests of services alone
    assert "capacity batch on A" in plan.binding
    half = planned(with_job(problem, deadline_s=HOUR, release_s=0.5 * HOUR))
    assert half.cost_usd_per_hour == 5.0  # 4 units/s: one B of 3 USD/h beside the two A


# --- together with other families ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"rules": (VarietyLimit(name="GPU types", facet=Facet.GPU, bound=1),)},
        {"rules": (Minimum(name="minimum B", resource=Resource.INSTANCES, bound=2),)},
        {"rules": (ShareCap(name="share of one GPU", facet=Facet.GPU, bound=0.6),)},
        {"rules": (Survival(name="survive provider", facet=Facet.OFFER),)},
        {"goal": Goal(stages=({Measure.GPUS: 1.0}, {Measure.COST: 1.0}))},
        {"goal": Goal(stages=({Measure.COST: 1.0, Measure.POWER: 2.0},))},
        {"change": ChangeCost(running=(), instances={}, start_usd=0.5)},
        {"utilization_cap": 0.7},
    ],
)
@pytest.mark.parametrize("amount", [500.0, 3600.0, 9000.0, 50_000.0])
def test_other_families_hold_beside_jobs(make, other, amount):
    problem = replace(chat_and_batch(make, job=batch(amount)), **other)
    plan = planned(problem)
    assert plan.status is PlanStatus.OPTIMAL
    less = planned(with_job(problem, amount=amount / 2))
    assert less.cost_usd_per_hour <= plan.cost_usd_per_hour * (1 + 1e-9) or problem.goal or problem.change


@pytest.mark.parametrize("amount", [500.0, 3600.0, 9000.0])
def test_slices_of_requests_leave_room_for_work(make, amount):
    problem = chat_and_batch(make, job=batch(amount))
    sliced = solve(problem, settings=EXACT, assignment=Assignment.sliced(4))
    verify_plan(problem, sliced)
    assert sliced.cost_usd_per_hour >= cost(problem) * (1 - 1e-9)


def test_work_beside_prefill_uses_gpus_whose_network_is_busy(make):
    """KV caches that fill a replica's network take none of its GPUs' time."""
    offered = make.offer("A", 1.0)
    handed_over = Handover(kv_bytes=np.array([1.0]), bytes_per_s=1.0)
    stages = [
        make.option(offered, [4.0], service="chat", role=role, handover=handed_over, job_rates=rates)
        for role, rates in ((Role.PREFILL, {"batch": 1.0}), (Role.DECODE, {}))
    ]
    job = batch(0.75 * HOUR, deadline_s=HOUR, harvest_efficiency=1.0)
    problem = replace(make.problem(make.demand([1.0], service="chat"), stages), jobs=(job,))
    plan = planned(problem)
    assert {(item.role, item.replicas) for item in plan.allocation} == {(Role.PREFILL, 1), (Role.DECODE, 1)}
    assert plan.jobs[0].harvested_fraction == 1.0
    more = planned(with_job(problem, amount=0.76 * HOUR))
    assert sum(item.replicas for item in more.allocation if item.role == Role.PREFILL) == 2
    idle = over(with_job(problem, release_s=HOUR, deadline_s=2 * HOUR, amount=HOUR), (1.0, 0.0))
    (asleep,) = planned(idle).schedule[1].allocation  # no request, nothing to hand over
    assert (asleep.service, asleep.replicas, asleep.work_utilization) == ("chat", 1, pytest.approx(1.0))


def test_baselines_say_that_a_gpu_cannot_do_a_job(make):
    problem = chat_and_batch(make, own=(1.0, 0.0), beside=(1.0, 0.0))
    baselines = {item.offer: item for item in single_gpu_baselines(problem, settings=EXACT, assignment=FREE)}
    assert baselines["A"].feasible
    assert baselines["B"].reason == "cannot serve the job batch"
    day = single_gpu_baselines(over(problem, (1.0, 0.5, 1.0)), settings=EXACT, assignment=FREE)
    assert [item.feasible for item in day] == [True, False]


# --- conflicts ----------------------------------------------------------------------------------------------------


def test_a_deadline_that_cannot_be_kept_is_named_with_what_would_help(make):
    problem = replace(chat_and_batch(make, job=batch(50_000.0)), limits=(make.limit("quota", "gpus", 3),))
    conflicts = find_conflicts(problem, settings=EXACT)
    assert [item.requirement for item in conflicts] == ["quota <= 3 GPUs", "batch: 50000 requests by 2 h"]
    assert conflicts[1].suggestion == "batch: deadline 2 h -> 2.57 h, or 50000 -> 38800 requests"
    assert cost(with_job(problem, deadline_s=conflicts[1].relaxed)) < np.inf
    assert cost(with_job(problem, deadline_s=conflicts[1].relaxed * 0.99)) == np.inf
    assert cost(with_job(problem, amount=38_800.0)) < np.inf
    assert cost(with_job(problem, amount=39_000.0)) == np.inf


def test_over_periods_the_earliest_deadline_is_found(make):
    problem = replace(chat_and_batch(make, job=batch(60_000.0)), limits=(make.limit("quota", "gpus", 3),))
    problem = over(problem, (1.0, 0.1, 0.1, 0.5))
    (_, job) = find_conflicts(problem, settings=EXACT)
    assert job.relaxed == 3 * HOUR
    assert cost(with_job(problem, deadline_s=3 * HOUR)) < np.inf


def test_jobs_that_are_in_the_way_together_are_named_together(make):
    problem = chat_and_batch(make, job=batch(50_000.0))
    twin = batch(50_000.0, name="twin")
    options = (*problem.options, make.option(problem.options[0].offer, [1.0], service="twin"))
    tight = replace(problem, options=options, jobs=(problem.jobs[0], twin), limits=(make.limit("quota", "gpus", 2),))
    conflicts = [item for item in find_conflicts(tight, settings=EXACT) if "requests by" in item.requirement]
    assert len(conflicts) == 2
    assert all(item.suggestion.startswith("all of: batch: 50000 -> ") for item in conflicts)


def test_a_job_that_no_option_can_do_is_named_with_the_reason(make):
    problem = chat_and_batch(make, own=(0.0, 0.0), beside=(0.0, 0.0))
    options = tuple(
        replace(option, limiting=("does not fit",)) if option.service == "batch" else option
        for option in problem.options
    )
    plan = planned(replace(problem, options=options))
    assert plan.status is PlanStatus.INFEASIBLE
    assert plan.conflicts[0].requirement == "batch: 3600 requests"
    assert "does not fit (2)" in plan.conflicts[0].explanation


# --- checks -------------------------------------------------------------------------------------------------------


def tampered(plan, **given):
    return replace(plan, jobs=(replace(plan.jobs[0], **given),))


def moved(plan, **given):
    (job,) = plan.jobs
    return tampered(plan, runs=(replace(job.runs[0], **given), *job.runs[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: replace(p, jobs=()), "does the jobs"),
        (lambda p: tampered(p, runs=p.jobs[0].runs[:1]), "which has 5000"),
        (lambda p: moved(p, period=3), "where it cannot"),
        (lambda p: moved(p, option="C"), "where it cannot"),
        (lambda p: moved(p, busy_replicas=0.0), "replicas, not 0.0"),
        (lambda p: tampered(p, harvested_fraction=0.5), "beside requests, not 0.5"),
        (lambda p: tampered(p, finish_s=7 * HOUR), "says 25200 s"),
        (
            lambda p: replace(
                p,
                schedule=(
                    replace(
                        p.schedule[0],
                        allocation=tuple(replace(a, work_utilization=0.1) for a in p.schedule[0].allocation),
                    ),
                    *p.schedule[1:],
                ),
            ),
            "replicas' work, not 0.",
        ),
        (lambda p: tampered(p, deadline_s=2 * HOUR), "another amount, unit, release or deadline"),
        (lambda p: tampered(p, unit="tokens"), "another amount, unit, release or deadline"),
        (lambda p: tampered(p, own_usd_per_hour=99.0), "USD/h, and it says 99"),
        (
            lambda p: replace(p, schedule=(replace(p.schedule[0], allocation=()), *p.schedule[1:])),
            "which is not in the plan",
        ),
    ],
)
def test_a_wrong_job_is_found(make, change, message):
    problem = over(chat_and_batch(make, job=batch(5000.0, deadline_s=HOUR)), (1.0, 0.1, 0.1, 0.5))
    plan = planned(problem)
    with pytest.raises(SolverLiedError, match=message):
        verify_plan(problem, change(plan))


def test_replicas_with_more_work_than_requests_leave_are_found(make):
    problem = over(chat_and_batch(make, job=batch(1440.0, deadline_s=HOUR)), (1.0, 0.1, 0.1, 0.5))
    plan = planned(problem)
    assert plan.jobs[0].harvested_fraction == 1.0
    more = with_job(problem, amount=1500.0)
    (run,) = plan.jobs[0].runs
    grown = replace(run, amount=1500.0, busy_replicas=run.busy_replicas * 1500 / 1440)
    with pytest.raises(SolverLiedError, match=r"has 2\.0.* replicas' work, and 2"):
        verify_plan(more, tampered(plan, amount=1500.0, runs=(grown,)))


def test_pruning_keeps_an_option_that_serves_less_and_works_more(make):
    offered = make.offer("A", 1.0)
    fast = make.option(offered, [3.0], service="chat", config=make.config("fp8"), job_rates={"batch": 0.5})
    slow = make.option(offered, [2.0], service="chat", config=make.config("bf16"), job_rates={"batch": 5.0})
    problem = replace(
        make.problem(make.demand([1.0], service="chat"), [fast, slow]),
        jobs=(batch(10_000.0, deadline_s=HOUR, harvest_efficiency=1.0),),
    )
    assert len(prune(problem).options) == 2
    assert cost(problem) == 2.0  # with the fast one alone it would take six replicas
    assert len(prune(replace(problem, options=(fast, replace(slow, job_rates={})))).options) == 1


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"amount": 0.0}, "has 0.0 requests to do"),
        ({"amount": np.inf}, "has inf requests"),
        ({"harvest_efficiency": 0.0}, "harvest efficiency"),
        ({"release_s": 3 * HOUR}, "which is no time"),
        ({"name": "chat"}, "'chat' is the name of two jobs, or of a job and a service"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(make, job, message):
    with pytest.raises(InputError, match=message):
        fleet_arrays(with_job(chat_and_batch(make), **job), FREE)


def test_a_job_beyond_its_horizon_and_unknown_rates_are_refused(make):
    problem = over(chat_and_batch(make, job=batch(deadline_s=3 * HOUR)), (1.0, 1.0))
    with pytest.raises(InputError, match="which repeats, is 7200 s long"):
        fleet_arrays(problem, FREE)
    with pytest.raises(InputError, match="batch"):
        fleet_arrays(replace(chat_and_batch(make), jobs=()), FREE)
    option = make.option(make.offer(), [1.0], service="chat", job_rates={"other": 1.0})
    with pytest.raises(InputError, match=r"\['other'\]"):
        fleet_arrays(make.problem(make.demand([1.0], service="chat"), [option]), FREE)


def test_shedding_beside_jobs_is_refused(make):
    with pytest.raises(InputError, match="cannot be shed while there is work with a deadline"):
        solve(replace(chat_and_batch(make), shed=Shedding(priority={})), settings=EXACT, assignment=FREE)


def test_a_model_without_jobs_has_none_of_their_rows(make):
    plain = without_job(chat_and_batch(make), "batch")
    milp = build_model(fleet_arrays(plain, FREE)).freeze()
    assert not [block.name for block in (*milp.row_blocks, *milp.col_blocks) if "work" in block.name]
    with_it = build_model(fleet_arrays(chat_and_batch(make), FREE)).freeze()
    assert {"work done", "work beside requests"} <= {block.name for block in with_it.row_blocks}
