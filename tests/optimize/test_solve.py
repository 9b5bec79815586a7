"""Whole solves: known answers, several services, limits, ties, statuses, baselines, conflicts and prices."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from planner.cli.plan import exit_code
from planner.domain.plan import PlanStatus
from planner.errors import InputError, SolverError, SolverUnavailableError
from planner.optimize import (
    Assignment,
    SolverSettings,
    find_conflicts,
    price_of_gpu,
    price_of_limits,
    savings_vs_best_single,
    single_gpu_baselines,
    solve,
    verify_plan,
)
from planner.optimize import baselines as baselines_module
from planner.optimize import search as search_module
from planner.optimize import settings as settings_module
from planner.optimize.arrays import fleet_arrays
from planner.optimize.assemble import relative_gap
from planner.optimize.backends.base import RawSolution
from planner.optimize.termination import Termination

FRACTIONAL = Assignment.fractional()
SETTINGS = SolverSettings()


def plan_of(problem, assignment=FRACTIONAL, settings=SETTINGS):
    return solve(problem, settings=settings, assignment=assignment)


def counts(plan):
    return {(item.service, item.option): item.replicas for item in plan.allocation}


@pytest.mark.parametrize("solver", ["highs", "cbc", "scip"])
def test_melange_example_with_shares(make, solver):
    """Continuous shares: {A10G: 1, A100: 1} at 4.68 USD/h, both capacity rows tight."""
    plan = plan_of(make.melange_example(), settings=SolverSettings(solver=solver))
    assert plan.status is PlanStatus.OPTIMAL
    assert plan.cost_usd_per_hour == 4.68
    assert (plan.bound_usd_per_hour, plan.gap) == (4.68, 0.0)
    assert counts(plan) == {("default", "A10G"): 1, ("default", "A100-80GB"): 1}
    assert all(abs(item.utilization - 1) <= 1e-9 for item in plan.allocation)
    assert all(abs(sum(route.weights.values()) - 1) <= 1e-12 for route in plan.routing)
    assert set(plan.binding) == {"capacity A10G", "capacity A100-80GB"}


@pytest.mark.parametrize("solver", ["highs", "cbc", "scip", "cp-sat"])
def test_melange_example_sliced(make, solver):
    """Mélange's own answer with slice_factor 1: {A10G: 3, A100: 1} at 6.70 USD/h."""
    plan = plan_of(make.melange_example(), Assignment.sliced(1), SolverSettings(solver=solver))
    assert plan.cost_usd_per_hour == 6.7
    assert counts(plan) == {("default", "A10G"): 3, ("default", "A100-80GB"): 1}
    assert all(set(route.weights.values()) == {1.0} for route in plan.routing)


def test_published_figure_of_one_request_size(make):
    """Mélange Fig. 9 (1000 in, 250 out): at 4.3 req/s 12 A10G, 3 A100, or the mix of 2 and 1 at 8.35 USD/h."""
    problem = make.problem(
        make.demand([4.3]),
        [make.option(make.offer("A10G", 1.01), [0.37]), make.option(make.offer("A100", 3.67), [2.0])],
    )
    plan = plan_of(problem)
    baselines = single_gpu_baselines(problem, settings=SETTINGS, assignment=FRACTIONAL)
    assert plan.cost_usd_per_hour == 8.35
    assert {item.offer: item.cost_usd_per_hour for item in baselines} == {"A10G": 12.12, "A100": 11.01}
    assert savings_vs_best_single(plan, baselines) == pytest.approx(1 - 8.35 / 11.01)


def test_headroom_and_utilization_cap_scale_the_load(make):
    options = [make.option(make.offer(), [1.0])]
    assert plan_of(make.problem(make.demand([10.0]), options)).allocation[0].replicas == 10
    assert plan_of(make.problem(make.demand([10.0]), options, headroom_fraction=0.1)).allocation[0].replicas == 11
    capped = plan_of(make.problem(make.demand([10.0]), options, headroom_fraction=0.2, utilization_cap=0.8))
    assert capped.allocation[0].replicas == 15
    assert capped.allocation[0].utilization == pytest.approx(10 / 15)  # mean load, headroom left out


def test_two_services_share_what_is_available(make):
    big, small = make.offer("big", 4.0, available=1), make.offer("small", 3.0)
    problem = make.problem(
        (make.demand([4.0], service="chat"), make.demand([4.0], service="code")),
        [
            make.option(big, [4.0], service="chat"),
            make.option(small, [1.0], service="chat"),
            make.option(big, [4.0], service="code"),
            make.option(small, [2.0], service="code"),
        ],
    )
    plan = plan_of(problem)
    assert plan.cost_usd_per_hour == 10.0  # big to chat (4), two small to code (6)
    assert counts(plan) == {("chat", "big"): 1, ("code", "small"): 2}
    assert "available big" in plan.binding
    assert price_of_limits(problem, plan, SETTINGS)["available big"] == pytest.approx(2.0)


def test_services_share_one_instance(make):
    machine = make.offer("8x", 8.0, gpus_per_instance=8)
    problem = make.problem(
        (make.demand([4.0], service="chat"), make.demand([2.0], service="code")),
        [
            make.option(machine, [1.0], service="chat"),
            make.option(machine, [1.0], service="code", gpus=2, config=make.config(tp=2)),
        ],
    )
    plan = plan_of(problem)
    assert [(item.offer, item.instances, item.cost_usd_per_hour) for item in plan.rentals] == [("8x", 1, 8.0)]
    assert sorted(item.cost_usd_per_hour for item in plan.allocation) == [4.0, 4.0]


def test_precisions_and_parallelism_compete_and_have_keys(make):
    machine = make.offer("4x", 4.0, gpus_per_instance=4)
    problem = make.problem(
        make.demand([8.0, 1.0]),
        [
            make.option(machine, [1.0, 0.0], config=make.config("bf16")),
            make.option(machine, [2.0, 0.0], config=make.config("fp8")),
            make.option(machine, [3.0, 1.0], gpus=4, config=make.config("bf16", tp=4)),
            make.option(machine, [3.0, 1.0], gpus=4, config=make.config("bf16", tp=2, pp=2)),
        ],
    )
    plan = plan_of(problem)
    assert plan.cost_usd_per_hour == 8.0
    keys = {item.option for item in plan.allocation}
    assert "4x[fp8 tp1]" in keys
    assert keys & {"4x[bf16 tp4]", "4x[bf16 tp2 pp2]"}


def test_equal_options_differ_in_their_keys(make):
    from planner.optimize.naming import option_keys

    machine = make.offer()
    same = [make.option(machine, [1.0], config=make.config(max_num_seqs=n)) for n in (64, 128)]
    assert option_keys(same) == [
        "A[bf16 tp1 kv bf16 vllm max_num_seqs 64]",
        "A[bf16 tp1 kv bf16 vllm max_num_seqs 128]",
    ]
    assert len(set(option_keys([same[0], same[0]]))) == 2
    assert option_keys([make.option(machine, [1.0], gpus=1), make.option(machine, [2.0], gpus=2)]) == [
        "A[1 GPUs]",
        "A[2 GPUs]",
    ]


@pytest.mark.parametrize(
    ("resource", "bound", "expected"),
    [("instances", 1, 8.0), ("gpus", 3, 5.6), ("vcpus", 20, 6.0), ("watts", 650.0, 6.0), ("usd_per_hour", 5.0, None)],
)
def test_every_resource_limits(make, resource, bound, expected):
    """Unlimited: 4 small at 5.2. One box costs 8, two fast ones 6, a fast one with two small ones 5.6."""
    problem = make.problem(
        make.demand([4.0]),
        [
            make.option(make.offer("small", 1.3, vcpus=8), [1.0], power_w=200.0),
            make.option(make.offer("fast", 3.0, vcpus=8), [2.0], power_w=300.0),
            make.option(make.offer("box", 8.0, gpus_per_instance=4, vcpus=64), [4.0], gpus=4, power_w=900.0),
        ],
        limits=(make.limit("cap", resource, bound),),
    )
    plan = plan_of(problem)
    assert plan.cost_usd_per_hour == expected
    if expected is not None:
        assert "cap" in plan.binding or resource == "watts"
        assert price_of_limits(problem, plan, SETTINGS)["cap"] == pytest.approx(expected - 5.2)


def test_limits_have_scopes(make):
    problem = make.problem(
        make.demand([4.0]),
        [
            make.option(make.offer("east", 1.0, region="east", gpu="L4"), [1.0]),
            make.option(make.offer("west", 1.5, region="west", gpu="L4"), [1.0]),
        ],
        limits=(make.limit("quota east", "instances", 3, region="east"),),
    )
    plan = plan_of(problem)
    assert counts(plan) == {("default", "east"): 3, ("default", "west"): 1}
    assert "quota east" in plan.binding


def test_ties_fewest_offers_then_gpus_then_names(make):
    """Four fleets cost 4: one offer beats two, fewer GPUs beat more, the first name beats the second."""
    options = [
        make.option(make.offer("c-two", 2.0, gpus_per_instance=2, available=9), [2.0], gpus=2),
        make.option(make.offer("b-one", 2.0, available=9), [2.0]),
        make.option(make.offer("a-one", 2.0, available=9), [2.0]),
        make.option(make.offer("0-half", 1.0, available=2), [1.0]),
    ]
    for permutation in (options, options[::-1]):
        plan = plan_of(make.problem(make.demand([4.0]), permutation))
        assert plan.cost_usd_per_hour == 4.0
        assert counts(plan) == {("default", "a-one"): 2}
        assert plan.assumptions == ()


def test_same_bytes_twice_and_in_any_order(make):
    rng = np.random.default_rng(5)
    options = [
        make.option(make.offer(f"g{j}", float(rng.integers(2, 9)), available=5), rng.uniform(1, 9, 6)) for j in range(5)
    ]
    texts = set()
    for permutation in (options, options, options[::-1]):
        plan = plan_of(make.problem(make.demand(range(1, 7)), permutation))
        texts.add(json.dumps(asdict(replace(plan, solver=replace(plan.solver, seconds=0.0))), default=str))
    assert len(texts) == 1


def test_no_demand_costs_nothing(make):
    plan = plan_of(make.problem(make.demand([]), [make.option(make.offer(), [])]))
    assert (plan.status, plan.cost_usd_per_hour, plan.gap, plan.allocation) == (PlanStatus.OPTIMAL, 0.0, 0.0, ())


def test_an_unserved_bucket_is_named(make):
    problem = make.problem(
        make.demand([1.0, 1.0], columns=2), [make.option(make.offer(), [1.0, 0.0], limiting=("", "kv memory"))]
    )
    plan = plan_of(problem)
    assert plan.status is PlanStatus.INFEASIBLE
    assert plan.cost_usd_per_hour is None
    assert [item.requirement for item in plan.conflicts] == ["default: bucket row 0, column 1"]
    assert "kv memory" in plan.conflicts[0].explanation
    assert find_conflicts(problem, settings=SETTINGS) == plan.conflicts


def test_a_service_without_options_is_named(make):
    problem = make.problem((make.demand([1.0]), make.demand([1.0], service="x")), [make.option(make.offer(), [1.0])])
    assert "no option at all for x" in plan_of(problem).conflicts[0].explanation


def test_a_time_limit_of_nothing_never_claims_an_optimum(make):
    plan = plan_of(make.melange_example(), settings=SolverSettings(time_limit_s=0.0))
    assert plan.status in {PlanStatus.FEASIBLE, PlanStatus.UNKNOWN}
    assert plan.solver.termination == "time-limit"


def test_stopped_with_an_incumbent_is_feasible_with_its_gap(make):
    rng = np.random.default_rng(0)
    options = [
        make.option(make.offer(f"g{j:02}", float(rng.uniform(1, 9))), rng.uniform(0.3, 9, 40)) for j in range(25)
    ]
    problem = make.problem(make.demand(rng.uniform(0.1, 1, 40)), options)
    plan = plan_of(problem, settings=SolverSettings(node_limit=1, relative_gap=0.0))
    assert plan.status is PlanStatus.FEASIBLE
    assert plan.solver.termination == "node-limit"
    assert 0 < plan.gap == relative_gap(plan.cost_usd_per_hour, plan.bound_usd_per_hour)
    verify_plan(problem, plan)


def test_a_replica_that_a_tolerance_overfills_is_not_believed(make):
    """A load of 1 + 5e-7 passes a solver's 1e-6; the plan must hold it exactly, with two replicas."""
    problem = make.problem(make.demand([1.0 + 5e-7]), [make.option(make.offer(), [1.0])])
    plan = plan_of(problem)
    assert plan.allocation[0].replicas == 2
    assert plan.status is PlanStatus.OPTIMAL


def test_a_broken_solver_is_an_error(make, monkeypatch):
    def broken(milp, settings):
        return RawSolution(
            values=None,
            objective=None,
            bound=None,
            termination=Termination.NUMERICAL_ERROR,
            seconds=0.0,
            solver="highs",
            version="",
        )

    monkeypatch.setattr(search_module, "solve_milp", broken)
    with pytest.raises(SolverError, match="numerical-error"):
        plan_of(make.melange_example())


def test_unknown_solver(make):
    with pytest.raises(SolverUnavailableError):
        plan_of(make.melange_example(), settings=SolverSettings(solver="glpk"))


def test_infeasible_baselines_say_why(make):
    problem = make.problem(
        make.demand([2.0, 1.0]),
        [
            make.option(make.offer("L4", 1.0), [1.0, 0.0]),
            make.option(make.offer("H100", 5.0, available=1), [1.0, 1.0]),
            make.option(make.offer("H200", 9.0), [5.0, 5.0]),
        ],
    )
    found = {item.offer: item for item in single_gpu_baselines(problem, settings=SETTINGS, assignment=FRACTIONAL)}
    assert "cannot serve default: bucket row 1" in found["L4"].reason
    assert "available H100" in found["H100"].reason
    assert (found["H200"].replicas, found["H200"].cost_usd_per_hour) == (1, 9.0)
    assert found["L4"].cost_usd_per_hour is None
    assert savings_vs_best_single(plan_of(problem), found.values()) == pytest.approx(1 - 7.0 / 9.0)
    assert savings_vs_best_single(plan_of(problem), ()) is None


@pytest.mark.parametrize(
    ("limit", "relaxed", "suggestion"),
    [
        (("available A", "instances", 2), 4.0, "available A: 2 -> 4 instances"),
        (("gpus", "gpus", 3), 4.0, "gpus: 3 -> 4 GPUs"),
        (("budget", "usd_per_hour", 3.0), 4.52, "budget 3.00 -> 4.52 USD/h"),
        (("power dc1", "watts", 3000.0), 6100.0, "power dc1 3 -> 6.1 kW"),
        (("vcpus", "vcpus", 20), 32.0, "vcpus: 20 -> 32 vCPUs"),
    ],
)
def test_the_smallest_relaxation_of_a_limit(make, limit, relaxed, suggestion):
    """Four replicas are needed: 4 instances, 4.52 USD/h, 6.1 kW."""
    problem = make.problem(
        make.demand([4.0]),
        [make.option(make.offer("A", 1.13, vcpus=8), [1.0], power_w=1525.0)],
        limits=(make.limit(*limit),),
    )
    assert plan_of(problem).status is PlanStatus.INFEASIBLE
    (conflict,) = find_conflicts(problem, settings=SETTINGS)
    assert conflict.relaxed == relaxed
    assert conflict.suggestion == suggestion
    enough = replace(problem, limits=(replace(problem.limits[0], bound=relaxed),))
    short = replace(problem, limits=(replace(problem.limits[0], bound=relaxed * 0.999),))
    assert plan_of(enough).status is PlanStatus.OPTIMAL
    assert plan_of(short).status is PlanStatus.INFEASIBLE


def test_each_limit_that_helps_alone_and_an_offers_own_availability(make):
    problem = make.problem(
        make.demand([4.0]),
        [
            make.option(make.offer("A", 1.0, available=3), [1.0]),
            make.option(make.offer("B", 10.0), [1.0]),
        ],
        limits=(make.limit("budget", "usd_per_hour", 5.0), make.limit("gpus", "gpus", 50)),
    )
    found = {item.requirement: item for item in find_conflicts(problem, settings=SETTINGS)}
    assert found["budget <= 5.00 USD/h"].relaxed == 13.0
    assert found["available A <= 3 instances"].relaxed == 4.0
    assert len(found) == 2


def test_limits_that_help_only_together(make):
    problem = make.problem(
        make.demand([4.0]),
        [make.option(make.offer("A", 1.0), [1.0])],
        limits=(make.limit("budget", "usd_per_hour", 3.0), make.limit("gpus", "gpus", 2)),
    )
    found = find_conflicts(problem, settings=SETTINGS)
    assert {item.requirement for item in found} == {"budget <= 3.00 USD/h", "gpus <= 2 GPUs"}
    assert all(item.relaxed is None for item in found)
    assert found[0].suggestion == "all of: budget 3.00 -> 4.00 USD/h; gpus: 2 -> 4 GPUs"


def test_a_feasible_problem_has_no_conflicts(make):
    assert find_conflicts(make.melange_example(), settings=SETTINGS) == ()
    limits = (make.limit("budget", "usd_per_hour", 50.0),)
    assert find_conflicts(make.melange_example(limits=limits), settings=SETTINGS) == ()


def test_price_of_a_gpu(make):
    problem = make.problem(
        make.demand([4.0]),
        [
            make.option(make.offer("good", 1.0), [1.0]),
            make.option(make.offer("poor", 3.0), [2.0]),
            make.option(make.offer("none", 1.0), [0.0], limiting=("does not fit",)),
            make.option(make.offer("gone", 1.0, available=0), [2.0]),
        ],
    )
    plan = plan_of(problem)
    assert price_of_gpu(problem, plan, "good", SETTINGS).extra_usd_per_hour == 0.0
    poor = price_of_gpu(problem, plan, "poor", SETTINGS)
    assert poor.extra_usd_per_hour == pytest.approx(1.0)
    assert "1.50 times as much" in poor.sentence
    assert price_of_gpu(problem, plan, "none", SETTINGS).extra_usd_per_hour is None
    assert "does not fit" in price_of_gpu(problem, plan, "none", SETTINGS).sentence
    assert "keeps the limits" in price_of_gpu(problem, plan, "gone", SETTINGS).sentence
    assert "No offer" in price_of_gpu(problem, plan, "H900", SETTINGS).sentence


def test_bad_problems_are_input_errors(make):
    fine = make.melange_example()
    watts = make.limit("power", "watts", 100.0)
    part = make.option(make.offer("share", 1.0, gpus_per_instance=0.125), np.ones(4))
    wrong = {
        "watts, and the power of": replace(fine, limits=(watts,)),
        "does not say how many": replace(fine, limits=(make.limit("cpu", "vcpus", 4),)),
        "only whole GPUs": replace(fine, options=(*fine.options, part)),
        "does not fit": replace(fine, options=(replace(fine.options[0], gpus_per_replica=2),)),
        "utilisation cap": replace(fine, utilization_cap=0.0),
        "headroom": replace(fine, headroom_fraction=-0.1),
        "same service": replace(fine, demands=fine.demands * 2),
        "no demand": replace(fine, options=(make.option(make.offer(), np.ones(4), service="x"),)),
        "shape": replace(fine, options=(make.option(make.offer(), [1.0]),)),
        "negative or not finite": replace(fine, options=(make.option(make.offer(), [1, 1, 1, -1]),)),
        "price": replace(fine, options=(make.option(make.offer("A", -1.0), np.ones(4)),)),
        "Two different offers": replace(
            fine, options=(*fine.options, make.option(make.offer("A10G", 9.0), np.ones(4)))
        ),
        "limit budget": replace(fine, limits=(make.limit("budget", "usd_per_hour", -1.0),)),
        "the rate": replace(fine, demands=(make.demand([1.0, 2.0, float("nan"), 1.0]),)),
    }
    for words, problem in wrong.items():
        with pytest.raises(InputError, match=words):
            plan_of(problem)


def test_the_python_of_the_formulation_page_runs():
    page = (Path(__file__).resolve().parents[2] / "docs" / "explanation" / "formulation.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "formulation.md", "exec"), {"__name__": "formulation"})


def stopped(termination):
    return RawSolution(
        values=None, objective=None, bound=None, termination=termination, seconds=1.0, solver="highs", version=""
    )


@pytest.mark.parametrize("bound", [100, 1])
def test_a_stopped_search_without_a_plan_rounds_the_relaxation_up(make, monkeypatch, bound):
    """Where the limits allow what is rounded up there is a feasible plan and a bound, else nothing is known."""
    honest = search_module.solve_milp

    def slow(milp, settings):
        return stopped(Termination.TIME_LIMIT) if milp.is_integer.any() else honest(milp, settings)

    monkeypatch.setattr(search_module, "solve_milp", slow)
    plan = plan_of(make.melange_example(limits=(make.limit("few", "instances", bound),)))
    assert plan.solver.termination == "time-limit"
    if bound == 1:
        assert plan.status is PlanStatus.UNKNOWN
    else:
        assert plan.status is PlanStatus.FEASIBLE
        assert plan.bound_usd_per_hour <= 4.68 <= plan.cost_usd_per_hour


@pytest.mark.parametrize("is_possible", [True, False])
def test_ctrl_c_is_followed_by_a_short_search(make, monkeypatch, is_possible):
    answers = [stopped(Termination.INTERRUPTED)]
    honest = search_module.solve_milp

    def first_interrupted(milp, settings):
        return answers.pop() if answers else honest(milp, settings)

    monkeypatch.setattr(search_module, "solve_milp", first_interrupted)
    limits = () if is_possible else (make.limit("few", "instances", 0),)
    plan = plan_of(make.melange_example(limits=limits))
    expected = (
        (PlanStatus.FEASIBLE, "interrupted", 4.68) if is_possible else (PlanStatus.INFEASIBLE, "infeasible", None)
    )
    assert (plan.status, plan.solver.termination, plan.cost_usd_per_hour) == expected


def test_ties_of_a_large_request_are_left_and_said_and_the_plan_is_the_same(make):
    prices = [1.01, 1.37, 1.73, 2.11, 2.57, 3.19, 3.83, 4.27, 5.03]
    half = np.repeat([1.0, 0.0], 40)
    options = [
        make.option(make.offer(f"g{j}", price, available=99), 10 * price * (half if j % 2 else half[::-1]))
        for j, price in enumerate(prices * 2)
    ]
    problem = make.problem(make.demand(np.full(80, 0.5)), options)
    plans = [plan_of(problem) for _ in range(2)]
    assert ["the request is large" in assumption for assumption in plans[0].assumptions] == [True]
    assert plans[0].allocation == plans[1].allocation
    assert plan_of(problem, settings=SolverSettings(relative_gap=0.5)).assumptions == ()


def test_a_large_fleet_is_verified_quickly(make):
    problem = make.problem(make.demand([20000.0]), [make.option(make.offer("8x", 8.0, gpus_per_instance=8), [1.0])])
    plan = plan_of(problem)
    assert (plan.rentals[0].instances, plan.cost_usd_per_hour) == (2500, 20000.0)


def test_ties_of_a_large_request_still_prefer_a_single_offer(make):
    """b and c together cost 4, like one of z, which has one GPU, and one of a, which has two."""
    half = np.repeat([1.0, 0.0], 60)
    options = [
        make.option(make.offer("b", 2.0, available=9), 60 * half),
        make.option(make.offer("c", 2.0, available=9), 60 * half[::-1]),
        make.option(make.offer("z-one", 4.0, available=9), np.full(120, 120.0)),
        make.option(make.offer("a-two", 4.0, available=9, gpus_per_instance=2), np.full(120, 120.0), gpus=2),
        *(make.option(make.offer(f"slow{j}", 3.0, available=9), np.full(120, 2.0 + j)) for j in range(4)),
    ]
    problem = make.problem(make.demand(np.full(120, 1.0)), options)
    plan = plan_of(problem)
    assert (plan.cost_usd_per_hour, counts(plan)) == (4.0, {("default", "z-one"): 1})
    assert plan.assumptions == ()


def test_small_instances_that_waste_gpus_do_not_replace_large_ones(make):
    """Replicas of 3 GPUs leave a GPU of every 4 idle: 4 of them fill one 12-GPU machine, and need four of 4 GPUs."""
    problem = make.problem(
        make.demand([4.0]),
        [
            make.option(make.offer("4x", 4.0, gpus_per_instance=4), [1.0], gpus=3),
            make.option(make.offer("12x", 12.0, gpus_per_instance=12), [1.0], gpus=3),
        ],
    )
    plan = plan_of(problem)
    assert (plan.cost_usd_per_hour, counts(plan)) == (12.0, {("default", "12x"): 4})


@pytest.mark.parametrize("termination", [Termination.TIME_LIMIT, Termination.INTERRUPTED])
def test_what_a_stopped_search_rents_too_much_is_not_in_the_plan(make, monkeypatch, termination):
    """Fewer replicas give new shares, which leave other replicas idle: they go as well, with their instances."""
    problem = make.problem(
        make.demand([4.0, 2.0]),
        [
            make.option(make.offer("a", 4.0), [1.0, 4.0]),
            make.option(make.offer("b", 1.0), [0.0, 1.0]),
            make.option(make.offer("c", 2.0), [0.0, 2.0]),
        ],
    )
    replicas = [5.0, 2.0, 2.0]
    found = RawSolution(
        values=np.array([1.0, 1 / 3, 1 / 3, 1 / 3, *replicas, *replicas]),
        objective=26.0,
        bound=1.0,
        termination=termination,
        seconds=0.0,
        solver="highs",
        version="",
    )
    monkeypatch.setattr(search_module, "run", lambda milp, settings: found)
    plan = plan_of(problem)
    assert (plan.status, plan.solver.termination) == (PlanStatus.FEASIBLE, termination.value)
    assert {item.offer for item in plan.rentals} == {item.offer for item in plan.allocation}
    assert sum(item.cost_usd_per_hour for item in plan.allocation) == pytest.approx(plan.cost_usd_per_hour)
    assert int(exit_code(plan)) == (130 if termination is Termination.INTERRUPTED else 4)


@pytest.mark.parametrize("rate", [1e-300, 1e-12, 5e-7, 5e-6, 5e-5, 2e-4])
@pytest.mark.parametrize("assignment", [FRACTIONAL, Assignment.sliced(4)])
@pytest.mark.parametrize("solver", ["highs", "cbc", "scip"])
def test_a_rare_service_gets_a_replica(make, rate, assignment, solver):
    """Its load is within the solvers' tolerance; alone, beside a busy service, and where an instance has no room."""
    eight = make.offer("8x", 8.0, gpus_per_instance=2)
    one = make.offer("1x", 9.0)
    rare = make.demand([rate, rate], service="rare")
    options = [make.option(one, [1.0, 1.0], service="rare"), make.option(eight, [1.0, 1.0], service="rare")]
    busy = make.option(eight, [10.0], service="busy")
    settings = SolverSettings(solver=solver)
    alone = plan_of(make.problem(rare, options), assignment, settings)
    assert counts(alone) == {("rare", "8x"): 1}
    for busy_rate, cost in ((10.0, 8.0), (20.0, 16.0)):
        problem = make.problem((make.demand([busy_rate], service="busy"), rare), [busy, *options])
        plan = plan_of(problem, assignment, settings)
        assert (plan.cost_usd_per_hour, plan.bound_usd_per_hour) == (cost, pytest.approx(cost, rel=1e-3))
        assert plan.status is PlanStatus.OPTIMAL


def test_demand_beyond_any_fleet_is_refused(make):
    problem = make.problem(make.demand([1.0, 1e300]), [make.option(make.offer(), [1.0, 1.0])])
    with pytest.raises(InputError, match=r"default: bucket row 1.* needs 1e\+300 replicas"):
        plan_of(problem)


def test_baselines_share_one_time_limit_and_the_most_promising_come_first(make, monkeypatch):
    problem = make.problem(
        make.demand([2.0]), [make.option(make.offer(name, price), [1.0]) for name, price in (("A", 9.0), ("B", 1.0))]
    )
    honest, now = baselines_module.cheapest, [0.0]
    monkeypatch.setattr(settings_module.time, "monotonic", lambda: now[0])

    def slow(problem, settings, assignment):
        now[0] += settings.time_limit_s
        return honest(problem, SETTINGS, assignment)

    monkeypatch.setattr(baselines_module, "cheapest", slow)
    found = single_gpu_baselines(problem, settings=SETTINGS, assignment=FRACTIONAL)
    assert [(item.offer, item.cost_usd_per_hour, item.reason) for item in found] == [
        ("A", None, "not solved within the time limit"),
        ("B", 2.0, ""),
    ]


def test_the_bound_is_that_of_the_true_demand(make):
    """What the second search proves, with padded loads, is no bound of this demand; what the first one proved is."""
    problem = make.problem(make.demand([1.0 + 5e-7]), [make.option(make.offer(), [1.0])])
    answers = search_module.search(fleet_arrays(problem, FRACTIONAL), SETTINGS)
    assert answers.fleet.cost_usd_per_hour == 2.0
    assert answers.bound_usd_per_hour == 1.0


def test_a_stopped_search_is_not_dearer_than_the_rounded_relaxation(make, monkeypatch):
    """The first fleet can cost a multiple; the relaxation also proves more than a search that just began."""
    problem = make.problem(
        make.demand([9.9]), [make.option(make.offer("dear", 9.0), [2.0]), make.option(make.offer("fair", 1.0), [1.0])]
    )
    assert len(fleet_arrays(problem, FRACTIONAL).pair_load) == 2
    first = RawSolution(
        values=np.array([1.0, 0.0, 5.0, 0.0, 5.0, 0.0]),
        objective=45.0,
        bound=1.0,
        termination=Termination.TIME_LIMIT,
        seconds=0.0,
        solver="highs",
        version="",
    )
    honest = search_module.run

    def stopped_early(milp, settings):
        return first if milp.is_integer.any() else honest(milp, settings)

    monkeypatch.setattr(search_module, "run", stopped_early)
    result = search_module.search(fleet_arrays(problem, FRACTIONAL), SETTINGS)
    assert result.termination is Termination.TIME_LIMIT
    assert result.fleet.cost_usd_per_hour == 10.0
    assert result.bound_usd_per_hour == pytest.approx(9.9)
