"""Part of the independent check of a plan: what it says of other fleets and scenarios, each recomputed by itself."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import Scenario
from planner.domain.robustness import PLAIN, PLANNED, ROBUST
from planner.errors import SolverLiedError
from planner.optimize.backends import solve_milp
from planner.optimize.loss_check import least_served
from planner.optimize.milp import MilpBuilder
from planner.optimize.packing_check import instances_needed
from planner.optimize.settings import SolverSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from planner.domain.hardware import Offer
    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.robustness import FleetOutcomes, Robustness
    from planner.domain.workload import Demand

TOLERANCE = 1e-6
"""Relative, of costs and of a scenario's requests."""

Replicas = list[tuple["ServingOption", int]]


def check_robustness(problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]) -> None:
    """Return if the regret table of `plan`, where it has one, is what its fleets come to.

    Raises
    ------
    SolverLiedError: naming the entry that is not.
    """
    found = plan.robustness
    if found is None:
        return
    scenarios = {rule.name: rule for rule in problem.rules if isinstance(rule, Scenario)}
    names = [case.name for case in found.scenarios]
    if sorted([*names, *found.unaffected]) != sorted([PLANNED, *scenarios]):
        _fail(f"the scenarios are {sorted(scenarios)}, and it tells of {names}")
    rows = {row.fleet: row for row in found.fleets}
    n_periods = 1 if problem.horizon is None else problem.horizon.n_periods
    _check_price(plan, found, rows)
    for case in found.scenarios:
        demands = problem.demands if case.name == PLANNED else scenarios[case.name].demands
        factors = {
            demand.service: (1.0,) if problem.horizon is None else problem.horizon.factors[demand.service]
            for demand in demands
        }
        asked_rps = sum(demand.total_rate_rps * sum(factors[demand.service]) for demand in demands) / n_periods
        if not _is_near(asked_rps, case.rate_rps):
            _fail(f"{asked_rps!r} req/s are asked in {case.name}, not {case.rate_rps!r}")
    for row in found.fleets:
        _check_cost(row, by_key, n_periods)
        if [item.scenario for item in row.outcomes] != names:
            _fail(f"the row of {row.fleet} is not about {names}")
        for item in row.outcomes:
            asked = list(_asked(problem, scenarios.get(item.scenario), row, by_key))
            total = sum(demand.total_rate_rps for demand, _ in asked)
            left = (total - _served_rps(asked, item.scenario, problem.utilization_cap)) / n_periods
            if abs(left - item.unserved_rps) > 5 * TOLERANCE * max(total, 1.0):
                _fail(f"{row.fleet} leaves {left!r} req/s in {item.scenario}, not {item.unserved_rps!r}")
    _check_expected(found, scenarios)


def _asked(
    problem: FleetProblem,
    scenario: Scenario | None,
    row: FleetOutcomes,
    by_key: Mapping[tuple[str, str], ServingOption],
) -> Iterator[tuple[Demand, Replicas]]:
    """Yield each demand of each period, what is planned or a scenario's, with the replicas that the row has then."""
    horizon = problem.horizon
    for period in range(1 if horizon is None else horizon.n_periods):
        now = [item for item in row.replicas if item.period in {None, period}]
        fleet: Replicas = [(by_key[item.service, item.option], item.replicas) for item in now]
        for demand in problem.demands if scenario is None else scenario.demands:
            factor = 1.0 if horizon is None else horizon.factors[demand.service][period]
            rates = (replace(bucket, rate_rps=bucket.rate_rps * factor) for bucket in demand.buckets)
            yield replace(demand, buckets=tuple(rates) if factor else ()), fleet


def check_scenario(
    rule: Scenario, problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]
) -> None:
    """Return if `plan` serves what `rule` asks for: one linear programme per service, with its demand and speeds.

    Raises
    ------
    SolverLiedError: naming the service that is not served.
    """
    running = [
        (replace(option, throughput_rps=option.throughput_in(rule.name)), item.replicas)
        for item in plan.allocation
        for option in (by_key[item.service, item.option],)
    ]
    for demand in rule.demands:
        mine = [(option, replicas) for option, replicas in running if option.service == demand.service]
        served = least_served(demand, mine, problem.utilization_cap / (1 + rule.headroom_fraction))
        if served < rule.bound - 5 * TOLERANCE:
            _fail(f"in the scenario {rule.name} it serves {served:.6f} of {demand.service}, not {rule.bound:g}")


def _check_price(plan: Plan, found: Robustness, rows: Mapping[str, FleetOutcomes]) -> None:
    """The robust fleet is the plan's, and price and regrets are differences between the stated costs."""
    robust, plain = rows.get(ROBUST), rows.get(PLAIN)
    cost = plan.cost_usd_per_hour or 0.0
    periods = enumerate(plan.schedule) if plan.schedule else [(None, plan)]
    mine = {(at, item.service, item.option): item.replicas for at, now in periods for item in now.allocation}
    if robust is None or {(i.period, i.service, i.option): i.replicas for i in robust.replicas} != mine:
        _fail("the robust fleet is not its own")
        return
    if not _is_near(robust.cost_usd_per_hour, cost):
        _fail(f"the robust fleet costs {cost!r} USD/h, and it says {robust.cost_usd_per_hour!r}")
    price = None if plain is None else cost - plain.cost_usd_per_hour
    if (price is None) != (found.price_usd_per_hour is None) or not _is_near(
        price or 0.0, found.price_usd_per_hour or 0.0
    ):
        _fail(f"surviving costs {price!r} USD/h, and it says {found.price_usd_per_hour!r}")
    for row in found.fleets:
        for case, item in zip(found.scenarios, row.outcomes, strict=True):
            least = PLAIN if case.name == PLANNED else case.name
            if case.least_usd_per_hour is None:
                is_right = item.regret_usd_per_hour is None and least not in rows
            else:
                regret = row.cost_usd_per_hour - case.least_usd_per_hour
                is_right = _is_near(rows[least].cost_usd_per_hour, case.least_usd_per_hour) and _is_near(
                    regret, item.regret_usd_per_hour or 0.0
                )
            if not is_right:
                _fail(f"the regret of {row.fleet} in {case.name} is not {item.regret_usd_per_hour!r}")


def _check_cost(row: FleetOutcomes, by_key: Mapping[tuple[str, str], ServingOption], n_periods: int) -> None:
    """A fleet costs no less than the instances that its replicas fill: whole ones, in the mean of the periods."""
    sizes: dict[tuple[int | None, Offer], list[int]] = defaultdict(list)
    for item in row.replicas:
        option = by_key[item.service, item.option]
        sizes[item.period, option.offer] += [option.gpus_per_replica] * item.replicas
    least = sum(
        instances_needed(found, round(offer.gpus_per_instance)) * float(offer.price_usd_per_hour)
        for (_, offer), found in sizes.items()
    )
    if row.cost_usd_per_hour < least / n_periods - TOLERANCE * max(least, 1.0):
        _fail(f"the fleet {row.fleet} costs at least {least / n_periods!r} USD/h, not {row.cost_usd_per_hour!r}")


def _check_expected(found: Robustness, scenarios: Mapping[str, Scenario]) -> None:
    """Probabilities are the request's, and what is expected to be unserved is by them."""
    stated = {name: scenario.probability for name, scenario in scenarios.items()} | {PLANNED: None}
    chances = {case.name: stated[case.name] for case in found.scenarios}
    if any(case.probability != chances[case.name] for case in found.scenarios):
        _fail(f"the scenarios' probabilities are {chances}")
    rest = 1 - sum(chance or 0.0 for chance in chances.values())
    for row in found.fleets:
        expected = sum(
            item.unserved_rps * (rest if item.scenario == PLANNED else chances[item.scenario] or 0.0)
            for item in row.outcomes
        )
        is_known = any(chance is not None for chance in chances.values())
        if (row.expected_unserved_rps is not None) != is_known or (
            is_known and not _is_near(expected, row.expected_unserved_rps or 0.0)
        ):
            _fail(f"{expected!r} req/s of {row.fleet} are expected unserved, not {row.expected_unserved_rps!r}")


def _is_near(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * max(abs(one), 1.0)


def _served_rps(asked: Sequence[tuple[Demand, Replicas]], scenario: str, cap: float) -> float:
    """Return the most req/s that is served in a scenario: a flow from buckets to options, in req/s.

    asked : demands, each with the replicas that are there for it; the sum over all.
    """
    builder = MilpBuilder()
    for demand, fleet in asked:
        by_bucket: dict[int, list[int]] = defaultdict(list)
        for option, count in fleet:
            if option.service != demand.service or not demand.buckets:
                continue
            speed = option.throughput_in(scenario) * option.utilization_cap
            able = np.flatnonzero(speed > 0).tolist()
            flow = builder.add_columns("flow", len(able), cost=-1.0).tolist()
            for bucket, column in zip(able, flow, strict=True):
                by_bucket[bucket].append(column)
            seconds = [1.0 / float(speed[bucket]) for bucket in able]
            builder.add_rows("busy", rows=[0] * len(able), columns=flow, values=seconds, upper=[cap * count])
        for bucket, columns in by_bucket.items():
            most = [demand.buckets[bucket].rate_rps]
            builder.add_rows("asked", rows=[0] * len(columns), columns=columns, values=1.0, upper=most)
    milp = builder.freeze()
    if not milp.n_columns:
        return 0.0
    raw = solve_milp(milp, SolverSettings())
    return 0.0 if raw.objective is None else -float(raw.objective)


def _fail(what: str) -> None:
    raise SolverLiedError(f"The plan does not hold: {what}.", hint="Plan again.")
