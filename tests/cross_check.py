"""One random case against everything that can judge it: the plan's check, two solvers, and an enumeration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from fleet_enumeration import enumerate_fleets

from planner.domain.plan import PlanStatus
from planner.errors import PlannerError, SolverLiedError, SolverUnavailableError
from planner.optimize import SolverSettings, find_conflicts, solve, verify_plan
from planner.optimize.conflicts import requirement
from planner.optimize.goals import stages_of
from planner.optimize.rules import rule_text

EXACT = SolverSettings(relative_gap=0.0, time_limit_s=30.0)
CBC = SolverSettings(solver="cbc", relative_gap=0.0, time_limit_s=30.0)
PROVEN = {PlanStatus.OPTIMAL, PlanStatus.INFEASIBLE}
"""Plans of searches that the clock stopped say nothing of whether solvers agree."""
TOLERANCE = 1e-6
"""Relative, or absolute below 1: what solvers accept of a row."""
SHARE_TOLERANCE = 1e-4
"""The same where shares decide costs and objectives: they are exact to what solvers accept, which later stages use."""


@dataclass
class Finding:
    """What the checks of one case say."""

    status: str = ""
    is_enumerated: bool = False
    cbc: str = ""
    """How CBC was compared: "agrees", "refused", "stopped" by its time limit, or ""."""
    differences: dict[str, float] = field(default_factory=dict)
    """The largest relative difference from HiGHS, by what it was compared with."""
    above: float | None = None
    """By what part a plan of whole adapters costs more than the cheapest fleet; inf where it found none."""
    problems: list[str] = field(default_factory=list)
    """Words for everything that is wrong; empty = everything agrees."""


def check_case(case, *, with_cbc=True) -> Finding:
    """Return what is wrong with the plans of `case`, and how far apart its answers are."""
    finding = Finding()
    try:
        plan = solve(case.problem, settings=EXACT, assignment=case.assignment)
        verify_plan(case.problem, plan)
        finding.status = plan.status.value
        if case.problem.tenancies:
            _check_adapters(case, plan, finding, with_cbc=with_cbc)
            return finding
        if plan.status not in PROVEN:
            return finding
        if plan.status is PlanStatus.INFEASIBLE:
            _check_conflicts(case, finding)
        if with_cbc:
            _compare_with_cbc(case, plan, finding)
    except SolverLiedError as error:
        finding.problems.append(f"verify: {error.message}")
    except PlannerError as error:
        finding.problems.append(f"crash: {type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
        finding.problems.append(f"crash: {type(error).__name__}: {error}")
    else:
        _compare_with_enumeration(case, plan, finding)
    return finding


def _check_conflicts(case, finding):
    """Each relaxation that is said to be enough alone must be."""
    for conflict in find_conflicts(case.problem, settings=EXACT, assignment=case.assignment):
        if conflict.relaxed is None:
            continue
        for relaxed in relaxed_problems(case.problem, conflict):
            if solve(relaxed, settings=EXACT, assignment=case.assignment).status is PlanStatus.INFEASIBLE:
                finding.problems.append(f"conflict: {conflict.suggestion!r} is not enough")


def relaxed_problems(problem, conflict):
    """Yield `problem` with what `conflict` names relaxed as it says; nothing where two things have the same name."""
    limits = [limit for limit in problem.limits if requirement(limit) == conflict.requirement]
    rules = [rule for rule in problem.rules if rule_text(rule) == conflict.requirement]
    if len(limits) == 1:
        others = tuple(limit for limit in problem.limits if limit is not limits[0])
        yield replace(problem, limits=(*others, replace(limits[0], bound=conflict.relaxed)))
    if len(rules) == 1:
        others = tuple(rule for rule in problem.rules if rule is not rules[0])
        yield replace(problem, rules=(*others, replace(rules[0], bound=type(rules[0].bound)(conflict.relaxed))))
    if conflict.requirement.startswith("start-up"):
        yield replace(problem, horizon=replace(problem.horizon, start_up_s=conflict.relaxed))
    if conflict.requirement.startswith("minimum lease"):
        yield replace(problem, horizon=replace(problem.horizon, minimum_lease_s=conflict.relaxed))


def _planned_by_cbc(case, finding):
    """Return CBC's plan; None where it makes none of the case, and the finding says why."""
    try:
        return solve(case.problem, settings=CBC, assignment=case.assignment)
    except SolverUnavailableError:
        finding.cbc = "refused"
    except SolverLiedError:
        finding.cbc = "caught"  # no plan was made of it, and the user is told
    return None


def _compare_with_cbc(case, plan, finding):
    other = _planned_by_cbc(case, finding)
    if other is None:
        return
    verify_plan(case.problem, other)
    if other.status not in PROVEN:
        finding.cbc = "stopped"
        return
    finding.cbc = "agrees"
    if plan.status is not other.status:
        finding.problems.append(f"cbc: {other.status.value}, highs {plan.status.value}")
    elif plan.cost_usd_per_hour is not None:
        _compare(case, finding, "cbc", *values_of(case.problem, other), plan=plan)


def _check_adapters(case, plan, finding, *, with_cbc):
    """Whole adapters are placed by rules of thumb: the bound is below the cheapest fleet, which is not above the plan.

    A plan without a cost for adapters that some fleet serves is allowed only where groups of them have a plan; it says
    so (W413).
    """
    if plan.status is PlanStatus.INFEASIBLE:
        _check_conflicts(case, finding)
    if plan.cost_usd_per_hour is not None:
        gap = 1 - plan.bound_usd_per_hour / plan.cost_usd_per_hour if plan.cost_usd_per_hour else 0.0
        if abs(plan.gap - gap) > TOLERANCE or gap < -TOLERANCE:
            finding.problems.append(f"gap: {plan.gap}, {plan.bound_usd_per_hour} of {plan.cost_usd_per_hour}")
        if (plan.status is PlanStatus.OPTIMAL) != (gap <= TOLERANCE):
            finding.problems.append(f"gap: {plan.status.value} with a gap of {gap}")
    elif plan.status is not PlanStatus.INFEASIBLE and [each.code for each in plan.warnings] != ["W413"]:
        finding.problems.append(f"adapters: {plan.status.value} without a plan or a reason")
    if with_cbc:
        _compare_bounds_with_cbc(case, plan, finding)
    expected = enumerate_fleets(case.problem)
    if expected == "large":
        return
    finding.is_enumerated = True
    if expected is None:
        if plan.cost_usd_per_hour is not None:
            finding.problems.append(f"enumeration: none, highs {plan.cost_usd_per_hour}")
        return
    (least,) = expected[1]
    slack = TOLERANCE * max(least, 1.0)
    if plan.status is PlanStatus.INFEASIBLE:
        finding.problems.append(f"enumeration: {least}, highs has none")
    elif plan.cost_usd_per_hour is None:
        finding.above = math.inf
    else:
        finding.above = plan.cost_usd_per_hour / least - 1 if least else 0.0
        if not plan.bound_usd_per_hour - slack <= least <= plan.cost_usd_per_hour + slack:
            bounds = (plan.bound_usd_per_hour, plan.cost_usd_per_hour)
            finding.problems.append(f"enumeration: {least} is not within bound and cost {bounds}")


def _compare_bounds_with_cbc(case, plan, finding):
    """Both solve the same programme over groups; what each placed may differ."""
    other = _planned_by_cbc(case, finding)
    if other is None:
        return
    finding.cbc = "agrees"
    if (plan.status is PlanStatus.INFEASIBLE) != (other.status is PlanStatus.INFEASIBLE):
        finding.problems.append(f"cbc: {other.status.value}, highs {plan.status.value}")
    if None in {plan.cost_usd_per_hour, other.cost_usd_per_hour}:
        return
    verify_plan(case.problem, other)
    difference = abs(plan.bound_usd_per_hour - other.bound_usd_per_hour) / max(plan.bound_usd_per_hour, 1.0)
    finding.differences["cbc"] = difference
    if difference > TOLERANCE:
        finding.problems.append(f"cbc: a bound of {other.bound_usd_per_hour}, highs {plan.bound_usd_per_hour}")


def _compare_with_enumeration(case, plan, finding):
    expected = enumerate_fleets(case.problem)
    if expected == "large":
        return
    finding.is_enumerated = True
    if case.assignment.slice_factor is not None:
        _compare_slices(case, plan, expected, finding)
    elif (expected is None) != (plan.cost_usd_per_hour is None):
        finding.problems.append(f"enumeration: {expected}, highs {plan.status.value} {plan.cost_usd_per_hour}")
    elif expected is not None:
        _compare(case, finding, "enumeration", *expected, plan=plan)


def _compare_slices(case, plan, expected, finding):
    """Slices are a restriction: they have no fleet where shares have none, and are never better."""
    if plan.cost_usd_per_hour is None:
        return
    if expected is None:
        finding.problems.append("enumeration: none, slices have a plan")
        return
    mine, best = values_of(case.problem, plan)[1][0], expected[1][0]
    if mine < best - TOLERANCE * max(best, 1.0):
        finding.problems.append(f"enumeration: slices come to {mine}, shares to {best}")


def _compare(case, finding, name, unserved, values, *, plan):
    own_unserved, own = values_of(case.problem, plan)
    within = 0.0 if case.problem.goal is None else case.problem.goal.within
    pairs = list(zip(own_unserved, unserved, strict=True))
    # Where objectives may be missed for the sake of later ones, only the last one says which fleet is best.
    pairs += list(zip(own[-1:], values[-1:], strict=True)) if within else list(zip(own, values, strict=True))
    for mine, theirs in pairs:
        difference = abs(mine - theirs) / max(abs(theirs), 1.0)
        finding.differences[name] = max(finding.differences.get(name, 0.0), difference)
    for mine, theirs in zip(own, values, strict=True):
        if name == "enumeration" and mine > theirs * (1 + within) + TOLERANCE * max(theirs, 1.0):
            finding.problems.append(f"{name}: {mine} is more than {within} above {theirs}")
    by_shares = case.problem.energy is not None or case.problem.egress is not None
    if finding.differences.get(name, 0.0) > (SHARE_TOLERANCE if by_shares else TOLERANCE):
        finding.problems.append(f"{name}: {unserved} {values}, highs {own_unserved} {own}")


def values_of(problem, plan):
    """Return a plan's unserved req/s by priority, and its objectives, the cost with changes as the last one."""
    priority = problem.shed.priority if problem.shed else {}
    ranks = sorted({priority.get(demand.service, 1) for demand in problem.demands})
    unserved = [sum(item.rate_rps for item in plan.unserved if item.priority == rank) for rank in ranks]
    if problem.goal is None:
        beside = (plan.change_usd_per_hour, plan.energy_usd_per_hour, plan.egress_usd_per_hour)
        return unserved, [plan.cost_usd_per_hour + sum(part or 0.0 for part in beside)]
    return unserved, [item.value for item, _ in zip(plan.objectives, stages_of(problem.goal), strict=True)]
