"""What holds for every rule of a problem, whatever its kind: its words, how tight it is, and the problem without it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import (
    MEASURE_UNITS,
    EnergyBudget,
    FleetProblem,
    Minimum,
    Redundancy,
    Resource,
    Rule,
    Scenario,
    ShareCap,
    VarietyLimit,
)
from planner.optimize.energy import budget_rows
from planner.optimize.rows.minimums import counted, minimum_coefficients
from planner.optimize.rows.shares import share_rows
from planner.optimize.rows.variety import group_offers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray

TIGHT = 1e-6
"""Relative: a rule this close to its bound binds."""


def rule_text(rule: Rule, bound: float | None = None) -> str:
    """Return a rule in words: "GPU types <= 2", "minimum aws gpus >= 8", "survive zone"."""
    value = rule.bound if bound is None else bound
    if isinstance(rule, ShareCap):
        whose = f" of {rule.service}" if rule.service else ""
        return f"{rule.name}{whose} <= {100 * value:.4g}%"
    if isinstance(rule, Redundancy):
        return rule.name if value >= 1 else f"{rule.name} >= {100 * value:.4g}%"
    if isinstance(rule, Scenario):
        return f"scenario {rule.name}: served >= {100 * value:.4g}%"
    if isinstance(rule, Minimum):
        unit = "GPUs" if rule.resource is Resource.GPUS else "instances"
        return f"{rule.name} >= {value:.10g} {unit}"
    if isinstance(rule, EnergyBudget):
        return f"{rule.name} <= {value:.6g} {MEASURE_UNITS[rule.measure]}"
    return f"{rule.name} <= {value:.10g}"


def without_rule(problem: FleetProblem, rule: Rule) -> FleetProblem:
    """Return `problem` without `rule`."""
    return replace(problem, rules=tuple(other for other in problem.rules if other is not rule))


def tight_rules(fleet: FleetArrays, instances: IntArray, shares: FloatArray, *, replicas: IntArray) -> Iterator[str]:
    """Yield the names of the rules that a fleet is at the bound of, and that can hold a fleet up at all."""
    full = {
        row.position for row in share_rows(fleet) if float(row.parts @ shares[row.pairs]) >= row.bound * (1 - TIGHT)
    } | {row.position for row in budget_rows(fleet) if row.usage(replicas, shares) >= row.bound * (1 - TIGHT)}
    for position, rule in enumerate(fleet.rules):
        if isinstance(rule, VarietyLimit):
            names, group = group_offers(rule.facet, fleet.offers)
            rented = len(np.unique(group[fleet.pool_offer[instances > 0]]))
            is_tight = rented >= rule.bound and rule.bound < len(names)
        elif isinstance(rule, Minimum):
            each = minimum_coefficients(rule, fleet)
            step = float(each[each > 0].min()) if np.any(each > 0) else 0.0
            least = float(counted(rule, fleet, instances).min())
            is_tight = rule.bound > 0 and least - step < rule.bound * (1 - TIGHT)
        else:
            is_tight = position in full  # a loss that decides is told by its price, not by one row
        if is_tight:
            yield rule_text(rule)
