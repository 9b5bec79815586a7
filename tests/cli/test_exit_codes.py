"""Every way in which a plan can end has its documented exit code."""

from __future__ import annotations

import pytest

from planner.cli.plan import exit_code
from planner.domain.plan import Plan, PlanStatus, SolverInfo
from planner.optimize import Termination


def plan(status: PlanStatus, termination: Termination) -> Plan:
    return Plan(
        status=status,
        cost_usd_per_hour=None,
        bound_usd_per_hour=None,
        gap=None,
        solver=SolverInfo(name="highs", version="1", seconds=0.0, termination=termination.value),
    )


@pytest.mark.parametrize(
    ("status", "termination", "code"),
    [
        (PlanStatus.OPTIMAL, Termination.OPTIMAL, 0),
        (PlanStatus.INFEASIBLE, Termination.INFEASIBLE, 3),
        (PlanStatus.FEASIBLE, Termination.TIME_LIMIT, 4),
        (PlanStatus.FEASIBLE, Termination.NODE_LIMIT, 4),
        (PlanStatus.FEASIBLE, Termination.OTHER_LIMIT, 4),
        (PlanStatus.UNKNOWN, Termination.TIME_LIMIT, 4),
        (PlanStatus.FEASIBLE, Termination.INTERRUPTED, 130),
        (PlanStatus.UNKNOWN, Termination.INTERRUPTED, 130),
    ],
)
def test_exit_code(status, termination, code):
    assert exit_code(plan(status, termination)) == code
