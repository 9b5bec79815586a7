"""Work with a deadline in words: when and where it is done, and what it costs."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from planner.report.wording import clean, percent, usd
from planner.units import format_count, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.domain.plan import JobPlan, Plan

NEGLIGIBLE_FRACTION = 5e-4
"""Of a job; smaller parts are not told."""


def job_texts(plan: Plan) -> Iterator[str]:
    """Yield one sentence per job."""
    for job in plan.jobs:
        parts = [_work_text(job, plan), _where_text(job)]
        if job.own_usd_per_hour > 0:
            parts.append(f"GPUs of its own cost {usd(job.own_usd_per_hour)} USD/h")
        if job.extra_usd_per_hour is not None:
            parts.append(f"without it the plan would cost {usd(job.extra_usd_per_hour)} USD/h less")
        yield "; ".join(parts) + "."


def _work_text(job: JobPlan, plan: Plan) -> str:
    what = f"{clean(job.job)}: {format_count(job.amount, job.unit)}"
    if not plan.schedule:
        return f"{what} at a steady rate over {format_duration(job.deadline_s - job.release_s)}"
    return f"{what}, due at {clock(job.deadline_s)}, done at {clock(job.finish_s)}"


def _where_text(job: JobPlan) -> str:
    """Return beside which services' requests how much of the work is done."""
    beside: dict[str, float] = defaultdict(float)
    for run in job.runs:
        if run.service != job.job:
            beside[run.service] += run.amount / job.amount
    told = [
        f"{percent(part)} in what {clean(service)} leaves of its replicas"
        for service, part in sorted(beside.items())
        if part >= NEGLIGIBLE_FRACTION
    ]
    if not told:
        return "all of it on GPUs of its own"
    return ", ".join(told) + ("" if job.harvested_fraction > 1 - NEGLIGIBLE_FRACTION else ", the rest on its own")


def clock(seconds: float) -> str:
    """Return a time since the start of the horizon as hours and minutes; on later days with the day.

    Examples
    --------
    >>> clock(23400.0), clock(86400.0), clock(90000.0), clock(1.5)
    ('06:30', '24:00', 'day 2 01:00', '1.5 s')
    """
    minutes, rest = divmod(seconds, 60.0)
    if rest:
        return format_duration(seconds)
    days = int(max(minutes - 1, 0) // 1440)
    hours, minute = divmod(int(minutes) - days * 1440, 60)
    return f"day {days + 1} {hours:02}:{minute:02}" if days else f"{hours:02}:{minute:02}"


def busy_by_period(plan: Plan, job: JobPlan) -> list[float]:
    """Return the replicas that a job keeps busy in each period of the schedule."""
    busy = [0.0] * len(plan.schedule)
    for run in job.runs:
        if run.period is not None:
            busy[run.period] += run.busy_replicas
    return busy
