"""What a plan draws and emits, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.domain.energy import WATTS_PER_KW
from planner.report.wording import clean, number, plural, usd
from planner.units import HOURS_PER_MONTH, format_power

if TYPE_CHECKING:
    from planner.domain.plan import Plan

MAX_PLACES = 3
"""Places of unknown emissions that are named."""


def energy_text(plan: Plan) -> str:
    """Return the mean power with what it is a month, and what it costs where it has a price; empty if not known."""
    if plan.mean_power_w is None:
        return ""
    month = number(plan.mean_power_w / WATTS_PER_KW * HOURS_PER_MONTH)
    price = "" if plan.energy_usd_per_hour is None else f", {usd(plan.energy_usd_per_hour)} USD/h on top"
    return f"{format_power(plan.mean_power_w)} on average with PUE ({month} kWh a month){price}."


def carbon_text(plan: Plan) -> str:
    """Return the emissions, and of which places they are not known; empty if nothing is known of electricity."""
    if plan.mean_power_w is None:
        return ""
    places = {
        f"{clean(item.region)} ({clean(item.provider)})": None
        for item in plan.allocation
        if item.mean_power_w is not None and item.carbon_kg_per_hour is None
    }
    names = list(places)
    more = f" and {plural(len(names) - MAX_PLACES, 'more place')}" if len(names) > MAX_PLACES else ""
    where = ", ".join(names[:MAX_PLACES]) + more
    if plan.carbon_kg_per_hour is None:
        return f"not known in {where}."
    emitted = f"{number(plan.carbon_kg_per_hour)} kg CO2e/h"
    if plan.carbon_unknown_w:
        return f"{emitted} without the {format_power(plan.carbon_unknown_w)} in {where}, where it is not known."
    return f"{emitted} ({number(plan.carbon_kg_per_hour * HOURS_PER_MONTH)} kg a month)."
