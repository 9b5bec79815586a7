"""Part of the independent check of a plan: what it says that its redundancy costs, rule by rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.domain.plan import PlanStatus
from planner.domain.problem import Redundancy
from planner.errors import SolverLiedError

if TYPE_CHECKING:
    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem

TOLERANCE = 1e-6
"""Relative, of a cost."""


def check_redundancy_prices(problem: FleetProblem, plan: Plan) -> None:
    """Return if every price is that of a rule, and the difference of two costs; a plan without prices passes.

    What stands beside the cost of the fleet without a rule is not in the plan: where anything does, a price is only
    held to be no less than nothing.

    Raises
    ------
    SolverLiedError: naming the price that does not hold.
    """
    if not plan.redundancy:
        return
    names = [rule.name for rule in problem.rules if isinstance(rule, Redundancy) and rule.bound > 0]
    stated = [item.requirement for item in plan.redundancy]
    if len(stated) != len(names) + (len(names) > 1) or not all(
        text.startswith(name) for text, name in zip(stated, names, strict=False)
    ):
        _fail(f"it prices {', '.join(stated)}, and its rules are {', '.join(names)}")
    cost = plan.cost_usd_per_hour or 0.0
    beside = (plan.egress_usd_per_hour, plan.energy_usd_per_hour, plan.change_usd_per_hour)
    for item in plan.redundancy:
        extra, without = item.extra_usd_per_hour, item.cost_without_usd_per_hour
        if item.is_proven and (extra is None or plan.status is not PlanStatus.OPTIMAL):
            _fail(f"the price of {item.requirement} cannot be proven")
        if extra is None or without is None:
            if extra is not without:
                _fail(f"the price of {item.requirement} is half unknown")
            continue
        is_difference = abs(extra - max(cost - without, 0.0)) <= TOLERANCE * max(cost, 1.0)
        if extra < 0 or not (is_difference or any(part is not None for part in beside)):
            _fail(f"{item.requirement} costs {extra:g} USD/h more, and {cost:g} is not that much above {without:g}")


def _fail(what: str) -> None:
    raise SolverLiedError(f"The plan does not hold: {what}.", hint="Try another solver with --solver.")
