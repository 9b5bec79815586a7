"""Electricity and emissions as coefficients of the programme: so much per replica, and so much per bucket served.

    E[j] = PUE (P_idle n[j] + (P_busy - P_idle) L[j]),     L[j] = sum_b lam[b] / X[j, b] x[b, j]

in kW; times the intensity of the region and the period in kg/h; times the prices in USD/h. They exist only where the
problem limits, prices or minimises one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.energy import GRAMS_PER_KG, WATTS_PER_KW
from planner.domain.problem import EnergyBudget, Measure
from planner.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.domain.energy import Energy
    from planner.domain.problem import FleetProblem, Goal, ServingOption
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray

ENERGY_MEASURES = frozenset({Measure.ENERGY, Measure.CARBON})
"""Measures that depend on the load, not only on what is rented."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyArrays:
    """Mean power and what a kWh of it emits and costs; options and pairs as in `FleetArrays`."""

    idle_kw: FloatArray
    """Shape (options,): of a replica that waits, PUE included."""
    pair_kw: FloatArray
    """Shape (pairs,): what serving the whole bucket adds."""
    kg_per_kwh: FloatArray
    """Shape (options,)."""
    usd_per_kwh: FloatArray
    """Shape (options,): electricity and emissions at their prices."""


def counts_energy(problem: FleetProblem) -> bool:
    """Return whether energy or emissions are limited, priced or minimised."""
    is_priced = problem.energy is not None and problem.energy.is_priced
    return is_priced or bool(_counted(problem))


def _counted(problem: FleetProblem) -> set[Measure]:
    """Return the energy measures that the problem limits or minimises."""
    limited = {rule.measure for rule in problem.rules if isinstance(rule, EnergyBudget)}
    return limited | (goal_measures(problem.goal) & ENERGY_MEASURES)


def goal_measures(goal: Goal | None) -> set[Measure]:
    """Return every measure that a goal minimises."""
    return set() if goal is None else {measure for stage in goal.stages for measure in stage}


def needs_carbon(problem: FleetProblem) -> bool:
    """Return whether the problem cannot do without the intensity of every place."""
    has_price = problem.energy is not None and problem.energy.carbon_usd_per_kg > 0
    return has_price or Measure.CARBON in _counted(problem)


def check_energy_data(problem: FleetProblem) -> None:
    """Return if everything is known that the problem counts.

    Raises
    ------
    InputError: naming the option whose power, or the place whose intensity, is not known.
    """
    for rule in problem.rules:
        if isinstance(rule, EnergyBudget):
            _check_budget(rule)
    if not counts_energy(problem):
        return
    for option in problem.options:
        site = None if problem.energy is None else problem.energy.site(option.offer)
        where = f"{option.service} on {option.offer.name}"
        if site is None or option.idle_power_w is None or option.busy_power_w is None:
            raise InputError(
                f"Energy or carbon is counted, and what {where} draws is not known.",
                hint="Give its idle and busy power and its site, or leave it out.",
            )
        if not 0 <= option.idle_power_w <= option.busy_power_w:
            raise InputError(f"{where} draws {option.idle_power_w!r} W idle and {option.busy_power_w!r} W busy.")
        if needs_carbon(problem) and not site.carbon_g_per_kwh:
            raise InputError(
                f"Carbon is counted, and the intensity in {option.offer.region or option.offer.name!r} is not known.",
                hint="State it (catalog.sites), or leave the place out.",
            )


def _check_budget(rule: EnergyBudget) -> None:
    if rule.measure not in ENERGY_MEASURES:
        raise InputError(f"The budget {rule.name} is of {rule.measure}.", hint="It counts energy or carbon.")
    if not (np.isfinite(rule.bound) and rule.bound >= 0):
        raise InputError(f"The budget {rule.name} is {rule.bound!r}.", hint="It must not be negative.")


def energy_arrays(problem: FleetProblem, fleet: FleetArrays) -> EnergyArrays | None:
    """Return the coefficients for `fleet`, the arrays of `problem`; None where nothing counts energy."""
    energy = problem.energy
    if energy is None or not counts_energy(problem):
        return None
    sites = [energy.site(option.offer) for option in fleet.options]
    pue = np.array([1.0 if site is None else site.pue for site in sites])
    idle = pue * np.array([_watts(option.idle_power_w) for option in fleet.options]) / WATTS_PER_KW
    busy = pue * np.array([_watts(option.busy_power_w) for option in fleet.options]) / WATTS_PER_KW
    caps = np.array([option.utilization_cap for option in fleet.options])[fleet.pair_option]
    load = fleet.pair_load * caps * problem.utilization_cap / (1 + problem.headroom_fraction)
    kg = np.array(
        [_kg_per_kwh(energy, option, period) for option, period in zip(fleet.options, fleet.option_period, strict=True)]
    )
    usd = np.array([0.0 if site is None else site.usd_per_kwh for site in sites])
    return EnergyArrays(
        idle_kw=idle,
        pair_kw=load * (busy - idle)[fleet.pair_option],
        kg_per_kwh=kg,
        usd_per_kwh=usd + kg * energy.carbon_usd_per_kg,
    )


def _watts(value: float | None) -> float:
    return 0.0 if value is None else float(value)


def _kg_per_kwh(energy: Energy, option: ServingOption, period: int) -> float:
    site = energy.site(option.offer)
    return ((None if site is None else site.carbon_in(int(period))) or 0.0) / GRAMS_PER_KG


def measure_coefficients(measure: Measure, fleet: FleetArrays) -> tuple[FloatArray, FloatArray]:
    """Return what a replica (shape (options,)) and a whole bucket served (pairs,) come to: mean kW, or kg/h.

    Over a horizon they are parts of its mean.
    """
    energy = fleet.energy
    if energy is None:
        return np.zeros(len(fleet.options)), np.zeros(len(fleet.pair_bucket))
    weight = energy.kg_per_kwh if measure is Measure.CARBON else np.ones(len(fleet.options))
    return _weighted(energy, weight, fleet)


def price_coefficients(fleet: FleetArrays) -> tuple[FloatArray, FloatArray] | None:
    """Return what a replica and a whole bucket served cost in USD/h beside what is rented; None if nothing.

    Electricity and emissions where they have a price, and egress.
    """
    energy = None
    if fleet.energy is not None and np.any(fleet.energy.usd_per_kwh > 0):
        energy = _weighted(fleet.energy, fleet.energy.usd_per_kwh, fleet)
    if fleet.egress_gb is None or not fleet.egress_usd_per_gb:
        return energy
    traffic = fleet.egress_gb * fleet.egress_usd_per_gb / fleet.n_periods
    if energy is None:
        return np.zeros(len(fleet.options)), traffic
    return energy[0], energy[1] + traffic


def _weighted(energy: EnergyArrays, weight: FloatArray, fleet: FleetArrays) -> tuple[FloatArray, FloatArray]:
    return (
        energy.idle_kw * weight / fleet.n_periods,
        energy.pair_kw * weight[fleet.pair_option] / fleet.n_periods,
    )


def running_usd_per_hour(fleet: FleetArrays, replicas: IntArray, shares: FloatArray) -> float:
    """Return what the electricity, emissions and egress of a fleet cost in USD/h, the mean over its periods."""
    prices = price_coefficients(fleet)
    return 0.0 if prices is None else float(prices[0] @ replicas + prices[1] @ shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """One budget as a row over replicas and shares."""

    position: int
    """Of the rule in `FleetArrays.rules`."""
    per_replica: FloatArray
    per_pair: FloatArray
    bound: float

    def usage(self, replicas: IntArray, shares: FloatArray) -> float:
        """Return how much of the budget a fleet uses."""
        return float(self.per_replica @ replicas + self.per_pair @ shares)


def budget_rows(fleet: FleetArrays) -> Iterator[BudgetRow]:
    """Yield the row of every energy or carbon budget."""
    for position, rule in enumerate(fleet.rules):
        if not isinstance(rule, EnergyBudget):
            continue
        per_replica, per_pair = measure_coefficients(rule.measure, fleet)
        inside = np.array([rule.scope.covers(option.offer) for option in fleet.options], dtype=np.bool_)
        yield BudgetRow(
            position=position,
            per_replica=np.where(inside, per_replica, 0.0),
            per_pair=np.where(inside[fleet.pair_option], per_pair, 0.0),
            bound=float(rule.bound),
        )
