"""Which rule (variety, minimum, share) stands in the way of a plan, and by how little it would have to give.

For each rule alone:  minimise  s  subject to the model in which this rule may be missed by s, all else kept. Where
neither a limit nor a rule is enough alone, the least sum of relative misses over all of them is reported.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.plan import Conflict
from planner.domain.problem import (
    MEASURE_UNITS,
    EnergyBudget,
    Minimum,
    Redundancy,
    Resource,
    Scenario,
    ShareCap,
    Survival,
)
from planner.optimize.model import Objective, build_model
from planner.optimize.periods import rented
from planner.optimize.rows.limits import all_limits, limit_usage
from planner.optimize.rules import rule_text
from planner.optimize.search import run, settle
from planner.optimize.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from planner.domain.problem import Rule
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray
    from planner.optimize.settings import SolverSettings

SHARE_STEP = 0.001
"""Shares are relaxed in steps of a tenth of a percent."""
NOTHING_MISSED = 1e-6
"""Relative: below this a rule is kept."""


def rule_conflicts(fleet: FleetArrays, settings: Callable[[], SolverSettings]) -> Iterator[Conflict]:
    """Yield each rule that stands in the way alone, and the smallest change of it that makes a plan possible."""
    for position, rule in enumerate(fleet.rules):
        missed = _least_missed(fleet, {position: 1.0}, None, settings())
        if missed is None or not _is_missed(rule, missed[0][position]):
            continue
        relaxed = relaxed_bound(rule, missed[0][position])
        yield Conflict(
            requirement=rule_text(rule),
            explanation=_explanation(rule, fleet),
            current=float(rule.bound),
            relaxed=relaxed,
            unit=_unit(rule),
            suggestion=_way_out(rule, relaxed),
        )


def conflicts_together(fleet: FleetArrays, settings: SolverSettings) -> Iterator[Conflict]:
    """Yield the limits and rules that help only together, in the least relaxation of all of them."""
    limits = all_limits(fleet)
    scale = np.array([max(limit.bound, 1.0) for limit in limits])
    prices = {position: 1.0 / max(float(rule.bound), 1.0) for position, rule in enumerate(fleet.rules)}
    found = _least_missed(fleet, prices, 1.0 / scale, settings)
    if found is None:
        return
    missed, usage = found
    texts = {
        rule_text(rule): _way_out(rule, relaxed_bound(rule, missed[position]))
        for position, rule in enumerate(fleet.rules)
        if _is_missed(rule, missed[position])
    }
    texts |= {
        f"{limit.name} <= {limit.bound:.10g}": f"{limit.name}: {limit.bound:.10g} -> {math.ceil(used * 100) / 100:g}"
        for limit, used in zip(limits, usage.tolist(), strict=True)
        if used > limit.bound + NOTHING_MISSED * max(limit.bound, 1.0)
    }
    for requirement in texts:
        yield Conflict(
            requirement=requirement,
            explanation="No plan keeps this, and changing it alone is not enough.",
            suggestion="all of: " + "; ".join(texts.values()),
        )


def relaxed_bound(rule: Rule, missed: float) -> float:
    """Return the bound nearest to the rule's own that may be missed by so much: whole things, tenths of a percent."""
    if isinstance(rule, ShareCap):
        return min(1.0, round(math.ceil((rule.bound + missed) / SHARE_STEP - NOTHING_MISSED) * SHARE_STEP, 6))
    if isinstance(rule, Redundancy | Scenario):
        return max(0.0, round(math.floor((rule.bound - missed) / SHARE_STEP + NOTHING_MISSED) * SHARE_STEP, 6))
    if isinstance(rule, Minimum):
        return max(0.0, float(math.floor(rule.bound - missed + NOTHING_MISSED * max(rule.bound, 1.0))))
    if isinstance(rule, EnergyBudget):
        return _three_digits_up(rule.bound + missed)
    return float(math.ceil(rule.bound + missed - NOTHING_MISSED))


def _three_digits_up(value: float) -> float:
    """Return the next larger number of three digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2) if value > 0 else 1.0
    return round(math.ceil(value / step - NOTHING_MISSED) * step, 12)


def _least_missed(
    fleet: FleetArrays, prices: Mapping[int, float], slack_cost: FloatArray | None, settings: SolverSettings
) -> tuple[dict[int, float], FloatArray] | None:
    """Return by how much each rule in `prices` is missed in the best fleet, and the use of every limit in it."""
    model = build_model(
        fleet,
        Objective(per_replica=np.zeros(len(fleet.options)), per_instance=np.zeros(len(fleet.pool_offer))),
        slack_cost=slack_cost,
        relaxed_rules=prices,
    )
    milp = model.freeze()
    raw = run(milp, settings)
    if raw.values is None:
        return None
    verified = verify(milp, raw.values, stated_objective=raw.objective)
    kept = tuple(rule for position, rule in enumerate(fleet.rules) if position not in prices)
    found = settle(
        replace(fleet, rules=kept),
        replicas=verified.values[model.n].round().astype(np.int64),
        instances=verified.values[model.m].round().astype(np.int64),
        assigned=verified.values[model.x] / fleet.units_per_bucket,
    )
    if found is None:
        return None
    held = rented(fleet, found.instances)
    usage = [float(limit_usage(limit, fleet, found.replicas, held).max()) for limit in all_limits(fleet)]
    missed = {position: float(verified.values[column]) for position, column in model.relaxations.items()}
    return missed, np.array(usage)


def _is_missed(rule: Rule, missed: float) -> bool:
    least = 0.0 if isinstance(rule, EnergyBudget) else 1.0
    return missed > NOTHING_MISSED * max(float(rule.bound), least)


def _explanation(rule: Rule, fleet: FleetArrays) -> str:
    """Return why a rule stands in the way: of what can be lost there may be only one."""
    if isinstance(rule, Survival):
        covered = tuple(offer for offer in fleet.offers if rule.scope.covers(offer))
        groups = {rule.facet.of(offer) for offer in covered}
        if len(groups) == 1 and len(covered) == len(fleet.offers):
            return f"All offers are in one {rule.facet}, {groups.pop()}: nothing is left without it."
    return "No plan keeps this together with everything else; it alone would have to give."


def _way_out(rule: Rule, bound: float) -> str:
    """Return how a rule would have to give so that what it asks for is `bound`.

    Of a loss a request says only that it is to be survived: it can leave that out, or let less be lost.
    """
    text = rule_text(rule)
    if not isinstance(rule, Redundancy):
        return f"{text} -> {rule_text(rule, bound).rsplit('= ', 1)[1]}"
    fewer = ", or try fewer" if not isinstance(rule, Survival) and rule.count > 1 else ""
    left = f" (at best {100 * bound:.4g}% of the requests can still be served after it)" if bound > 0 else ""
    return f"leave out {text}{fewer}{left}"


def _unit(rule: Rule) -> str:
    if isinstance(rule, ShareCap | Redundancy | Scenario):
        return "of the requests"
    if isinstance(rule, Minimum):
        return "GPUs" if rule.resource is Resource.GPUS else "instances"
    return MEASURE_UNITS[rule.measure] if isinstance(rule, EnergyBudget) else rule.name
