"""What a plan draws and emits: its replicas' mean power with each site's PUE, and the carbon of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.domain.energy import GRAMS_PER_KG, WATTS_PER_KW

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from planner.domain.energy import Energy
    from planner.domain.plan import Allocation, Period, Plan
    from planner.domain.problem import ServingOption


def with_energy(
    allocation: Iterable[Allocation],
    options: Mapping[tuple[str, str], ServingOption],
    energy: Energy | None,
    period: int = 0,
) -> tuple[Allocation, ...]:
    """Return `allocation` with the mean power and the emissions of every row, as far as they are known.

    For n replicas under the load L:  P = PUE (P_idle n + (P_busy - P_idle) L),  and P times the site's intensity.
    """
    return tuple(_with_energy(item, options[item.service, item.option], energy, period) for item in allocation)


def _with_energy(item: Allocation, option: ServingOption, energy: Energy | None, period: int) -> Allocation:
    site = energy.site(option.offer) if energy is not None else None
    if site is None or option.idle_power_w is None or option.busy_power_w is None:
        return item
    load = (item.utilization + item.work_utilization) * item.replicas
    watts = site.pue * (option.idle_power_w * item.replicas + (option.busy_power_w - option.idle_power_w) * load)
    carbon = site.carbon_in(period)
    emitted = None if carbon is None else watts / WATTS_PER_KW * carbon / GRAMS_PER_KG
    return replace(item, mean_power_w=watts, carbon_kg_per_hour=emitted)


def with_totals(plan: Plan, energy: Energy | None) -> Plan:
    """Return `plan` with the sums of what its allocations draw and emit, and with what that costs."""
    if energy is None or not plan.allocation:
        return plan
    return replace(
        plan,
        mean_power_w=_sum(item.mean_power_w for item in plan.allocation),
        carbon_kg_per_hour=_emitted(plan.allocation),
        carbon_unknown_w=sum(item.mean_power_w or 0.0 for item in plan.allocation if item.carbon_kg_per_hour is None),
        energy_usd_per_hour=energy_cost(plan.allocation, energy) if energy.is_priced else None,
    )


def energy_cost(allocation: Sequence[Allocation], energy: Energy) -> float:
    """Return what the electricity and the emissions of `allocation` cost in USD/h, at the prices that are stated."""
    total = 0.0
    for item in allocation:
        site = energy.sites.get((item.provider, item.region))
        usd_per_kwh = 0.0 if site is None else site.usd_per_kwh
        total += (item.mean_power_w or 0.0) / WATTS_PER_KW * usd_per_kwh
        total += (item.carbon_kg_per_hour or 0.0) * energy.carbon_usd_per_kg
    return total


def period_totals(period: Period, allocation: Sequence[Allocation]) -> Period:
    """Return `period` with the sums of what its allocations draw and emit."""
    return replace(
        period,
        mean_power_w=_sum(item.mean_power_w for item in allocation),
        carbon_kg_per_hour=_emitted(allocation),
    )


def with_mean_energy(whole: Allocation, items: Sequence[Allocation], n_periods: int) -> Allocation:
    """Return `whole` with the means over the horizon of its power and emissions, from its rows in the periods."""
    power = _sum(item.mean_power_w for item in items)
    emitted = _sum(item.carbon_kg_per_hour for item in items)
    return replace(
        whole,
        mean_power_w=None if power is None else power / n_periods,
        carbon_kg_per_hour=None if emitted is None else emitted / n_periods,
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(value or 0.0 for value in known)


def _emitted(allocation: Iterable[Allocation]) -> float | None:
    """Return the emissions where they are known; None if they are nowhere."""
    known = [item.carbon_kg_per_hour for item in allocation if item.carbon_kg_per_hour is not None]
    return sum(known) if known else None
