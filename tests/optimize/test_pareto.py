"""The front of two objectives: against enumeration, and what every front must be."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from planner.domain.problem import Measure
from planner.errors import InputError
from planner.optimize import Assignment, SolverSettings, verify_plan
from planner.optimize.pareto import pareto_front

EXACT = SolverSettings(relative_gap=0.0)
FREE = Assignment.fractional()
PAIRS = list(itertools.permutations((Measure.COST, Measure.POWER, Measure.GPUS), 2))
"""Their fronts are points; those of energy and carbon, in which shares count, are in test_carbon.py."""


def random_request(make, rng):
    options = [
        make.option(
            make.offer(f"O{index}", price=float(rng.integers(2, 12)) / 2),
            [float(rng.integers(1, 7))],
            power_w=100.0 * int(rng.integers(1, 10)),
        )
        for index in range(3)
    ]
    return make.problem(make.demand([float(rng.integers(4, 16))]), options)


def true_front(problem, first, second):
    """Return the undominated (first, second) over all replica counts."""
    rate = problem.demands[0].buckets[0].rate_rps
    upper = [int(np.ceil(rate / option.throughput_rps[0])) for option in problem.options]
    seen = set()
    for counts in itertools.product(*(range(bound + 1) for bound in upper)):
        if sum(n * o.throughput_rps[0] for n, o in zip(counts, problem.options, strict=True)) < rate:
            continue
        value = {
            Measure.COST: sum(n * o.offer.price_usd_per_hour for n, o in zip(counts, problem.options, strict=True)),
            Measure.POWER: sum(n * o.power_w for n, o in zip(counts, problem.options, strict=True)) / 1000,
            Measure.GPUS: float(sum(counts)),
        }
        seen.add((round(value[first], 6), round(value[second], 6)))
    return sorted(p for p in seen if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in seen))


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=str)
def test_every_point_is_on_the_true_front(make, first, second):
    rng = np.random.default_rng(5)
    for _ in range(6):
        problem = random_request(make, rng)
        points = pareto_front(problem, (first, second), n_points=12, settings=EXACT, assignment=FREE)
        expected = true_front(problem, first, second)
        found = [(round(point.values[first], 6), round(point.values[second], 6)) for point in points]
        assert set(found) <= set(expected)
        assert (found[0], found[-1]) == (expected[0], expected[-1])
        assert found == sorted(found)
        for point in points:
            verify_plan(replace(problem, goal=None), replace(point.plan, objectives=()))


def test_finely_enough_all_points_are_found(make):
    problem = random_request(make, np.random.default_rng(2))
    points = pareto_front(problem, (Measure.COST, Measure.POWER), n_points=80, settings=EXACT, assignment=FREE)
    expected = true_front(problem, Measure.COST, Measure.POWER)
    assert len(expected) >= 2
    assert [point.values[Measure.COST] for point in points] == pytest.approx([cost for cost, _ in expected])


def test_one_plan_that_is_best_in_both(make):
    problem = make.problem(make.demand([4.0]), [make.option(make.offer("A", 1.0), [2.0], power_w=100.0)])
    [point] = pareto_front(problem, (Measure.COST, Measure.GPUS), n_points=5, settings=EXACT, assignment=FREE)
    expected = {Measure.COST: 2.0, Measure.POWER: 0.2, Measure.GPUS: 2.0, Measure.ENERGY: None, Measure.CARBON: None}
    assert point.values == expected


def test_no_plan_no_front(make):
    problem = make.melange_example(limits=(make.limit("budget", "usd_per_hour", 1.0),))
    assert pareto_front(problem, (Measure.COST, Measure.GPUS), n_points=4, settings=EXACT, assignment=FREE) == ()


def test_wrong_questions(make):
    problem = make.melange_example()
    with pytest.raises(InputError, match="both are cost"):
        pareto_front(problem, (Measure.COST, Measure.COST), n_points=4, settings=EXACT, assignment=FREE)
    with pytest.raises(InputError, match="at least two"):
        pareto_front(problem, (Measure.COST, Measure.GPUS), n_points=1, settings=EXACT, assignment=FREE)
    with pytest.raises(InputError, match="power"):
        pareto_front(problem, (Measure.COST, Measure.POWER), n_points=3, settings=EXACT, assignment=FREE)
