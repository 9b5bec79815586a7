"""A schedule in words: how many instances of each offer run when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.report.jobs import busy_by_period
from planner.report.wording import clean, number, plural, usd
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.domain.plan import Plan

MARKS = "_.:-=+*#"
"""From nothing to the most: plain ASCII, which every terminal and font has."""
MAX_MARKS = 48
"""Marks of a line; a longer schedule shows the most of several periods as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleLine:
    """One offer over the periods."""

    name: str
    least: str
    mean: str
    most: str
    line: str
    """One mark per period, or per few periods."""
    is_committed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleView:
    """The schedule, line by line."""

    title: str
    lines: tuple[ScheduleLine, ...]
    """The demand first, then what is emitted where that is known, then every offer's instances, then what jobs take."""


def sparkline(values: Sequence[float]) -> str:
    """Return values as marks from "_" (0) to "#" (the most), at most 48 of them.

    Examples
    --------
    >>> sparkline([0, 1, 2, 4, 8, 8])
    '_.:=##'
    """
    parts = np.array_split(np.asarray(values, dtype=float), min(len(values), MAX_MARKS))
    most = max(float(part.max()) for part in parts)
    scale = (len(MARKS) - 1) / most if most > 0 else 0.0
    return "".join(MARKS[int(np.ceil(part.max() * scale - 1e-9))] for part in parts)


def schedule_view(plan: Plan) -> ScheduleView | None:
    """Return the schedule of a plan in words; None if it has none."""
    if not plan.schedule:
        return None
    committed = {item.offer for item in plan.commitments}
    counts = {
        rental.offer: [
            next((item.instances for item in period.rentals if item.offer == rental.offer), 0)
            for period in plan.schedule
        ]
        for rental in plan.rentals
    }
    ranked = sorted(counts, key=lambda name: (name not in committed, -sum(counts[name]), name))
    costs = [period.cost_usd_per_hour for period in plan.schedule]
    step = format_duration(plan.schedule[0].duration_s)
    title = (
        f"{plural(len(plan.schedule), 'period')} of {step}, {usd(min(costs))} to {usd(max(costs))} USD/h; "
        f"marks go from {MARKS[0]} (none) to {MARKS[-1]} (the most)"
    )
    demand = _line("requests/s", [period.rate_rps for period in plan.schedule], is_committed=False)
    left = [sum(item.rate_rps for item in period.unserved) for period in plan.schedule]
    unserved = [_line("unserved requests/s", left, is_committed=False)] if any(left) else []
    emitted = [period.carbon_kg_per_hour for period in plan.schedule if period.carbon_kg_per_hour is not None]
    carbon = [_line("kg CO2e/h", emitted, is_committed=False)] if len(emitted) == len(plan.schedule) else []
    offers = (_line(name, counts[name], is_committed=name in committed) for name in ranked)
    jobs = (_line(f"{job.job} (busy)", busy_by_period(plan, job), is_committed=False) for job in plan.jobs)
    return ScheduleView(title=title, lines=(demand, *unserved, *carbon, *offers, *jobs))


def _line(name: str, values: Sequence[float], *, is_committed: bool) -> ScheduleLine:
    return ScheduleLine(
        name=clean(name),
        least=number(min(values)),
        mean=number(sum(values) / len(values)),
        most=number(max(values)),
        line=sparkline(values),
        is_committed=is_committed,
    )
