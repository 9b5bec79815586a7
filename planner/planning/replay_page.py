"""A replay as a page: its objectives, attainment over time with what went wrong, and how busy each pool was."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from planner.planning.replay_outcome import is_within
from planner.report.lines import Axis, Mark, Series, line_chart
from planner.report.page import BAR_STEP, CHART_WIDTH, Figure, placed_bars
from planner.report.replay_page import Bars, Cell, ResultPage, Table, result_html
from planner.report.wording import clean
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.planning.replay_outcome import Phase, Replay
    from planner.report.lines import LineChart
    from planner.simulate.statistics import Estimate

MOST_BINS = 72
"""Points of a line over time."""
BIN_REQUESTS = 50
"""Requests of all services behind a point, about, so that a percentage says something."""
MOST_PHASES = 60
"""Rows of the table over time; of more the worst are shown."""


def replay_html(found: Replay, *, title: str) -> str:
    """Return a replay as one HTML page that loads nothing from anywhere."""
    n = sum(service.n_requests for service in found.services)
    rounds = f" in {found.n_replications} replications" if found.n_replications > 1 else ""
    return result_html(
        ResultPage(
            title=clean(title or "Replay of a plan"),
            verdict="every SLO holds" if found.is_met else "an SLO is missed",
            tone="good" if found.is_met else "bad",
            headline=f"{n:,} requests replayed{rounds}, one by one.",
            figures=tuple(_figures(found)),
            tables=(_slo_table(found),),
            charts=tuple(_charts(found)),
            bars=_bars(found),
            later_tables=(_phase_table(found),),
            notes=tuple(map(clean, found.notes)),
        )
    )


def seconds_text(value: float) -> str:
    """Return a time in words; infinite is never, NaN a dash."""
    if math.isnan(value):
        return "-"
    return format_duration(value) if math.isfinite(value) else "never"


def interval_text(found: Estimate) -> str:
    """Return the interval of a time in words."""
    return f"{seconds_text(max(0.0, found.low))} to {seconds_text(found.high)}"


def percent_text(value: float) -> str:
    """Return a share in words; NaN is a dash."""
    return "-" if math.isnan(value) else f"{value:.2%}"


def _figures(found: Replay) -> Iterator[Figure]:
    for service in found.services:
        name = clean(service.service)
        yield Figure(label=name, value=percent_text(service.attainment.value), unit="within every SLO")
        yield Figure(label=name, value=f"{service.rate_rps:,.4g}", unit="requests a second came in")
        if service.n_turned_away:
            yield Figure(label=name, value=f"{service.n_turned_away:,}", unit="turned away")
        if service.n_unanswered:
            yield Figure(label=name, value=f"{service.n_unanswered:,}", unit="never answered")
    if found.n_lost:
        yield Figure(label="Replicas", value=f"{found.n_lost:,}", unit="losses on the way")


def _slo_table(found: Replay) -> Table:
    rows = []
    for service in found.services:
        for item in service.slos:
            verdict = ("ok" if item.is_met else "missed") + ("" if item.is_sure else ", not sure")
            rows.append(
                (
                    Cell(text=clean(service.service)),
                    Cell(text=str(item.slo)),
                    Cell(text=seconds_text(item.simulated.value)),
                    Cell(text=interval_text(item.simulated)),
                    Cell(text=verdict, tone="good" if item.is_met else "bad"),
                    Cell(text=percent_text(item.attainment.value)),
                )
            )
    columns = ("service", "SLO", "simulated#", "95% interval#", "verdict", "requests within#")
    what = "the scatter between replications" if found.n_replications > 1 else "20 batch means"
    return Table(title="Objectives", columns=columns, rows=tuple(rows), remark=f"Intervals are from {what}.")


def _charts(found: Replay) -> Iterator[LineChart]:
    records = found.simulation.records
    counted = records.select(records.arrival_s >= found.origin_s)
    at_s = counted.arrival_s - found.origin_s
    last_s = float(at_s[-1])
    n_bins = int(min(MOST_BINS, max(4, len(counted) / BIN_REQUESTS)))
    edges = np.linspace(0.0, last_s, n_bins + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    held, came = [], []
    for index, (name, slos) in enumerate(found.slos.items()):
        mine = counted.service == index
        served = mine & ~counted.is_turned_away
        n_served = np.histogram(at_s[served], edges)[0].astype(np.float64)
        n_held = np.histogram(at_s[served & is_within(counted, slos)], edges)[0]
        shares = np.divide(n_held, n_served, out=np.full(n_bins, np.nan), where=n_served > 0)
        held.append(Series(name=clean(name), x=middles, y=shares.tolist()))
        rates = np.histogram(at_s[mine], edges)[0] / (edges[1] - edges[0])
        came.append(Series(name=clean(name), x=middles, y=rates.tolist()))
    time = Axis(low=0.0, high=last_s, label="time of arrival", show=_clock)
    marks = tuple(_marks(found.phases))
    yield line_chart(
        "attainment",
        "Requests within every SLO, by time of arrival",
        held,
        x=time,
        y=Axis(low=0.0, high=1.0, label="", show=lambda value: f"{value:.0%}"),
        description="; ".join(f"{each.name}: {_range(each.y)}" for each in held) + ".",
        marks=marks,
    )
    most = max(max(each.y) for each in came) * 1.05
    yield line_chart(
        "rate",
        "Requests per second that came in",
        came,
        x=time,
        y=Axis(low=0.0, high=most, label="", show=lambda value: f"{value:g}"),
        description="; ".join(f"{each.name}: up to {max(each.y):.3g} req/s" for each in came) + ".",
        marks=marks,
    )


def _range(values: Sequence[float]) -> str:
    numbers = [value for value in values if not math.isnan(value)]
    return f"{min(numbers):.1%} to {max(numbers):.1%}" if numbers else "no requests"


def _clock(seconds: float) -> str:
    return format_duration(seconds) if seconds else "0"


def _marks(phases: tuple[Phase, ...]) -> Iterator[Mark]:
    """Yield what went wrong, each event once from its beginning to its end; what lasts all the time is not marked."""
    texts = dict.fromkeys(text for phase in phases for text in phase.events)
    for text in texts:
        inside = [phase for phase in phases if text in phase.events]
        if len(inside) < len(phases):
            yield Mark(start=inside[0].start_s, end=inside[-1].end_s, label=clean(text))


def _bars(found: Replay) -> Bars:
    items = [(clean(name), share, f"{share:.0%}", True) for name, share in found.utilization.items()]
    return Bars(
        title="Time at work",
        description="; ".join(f"{label}: {shown}" for label, _, shown, _ in items) + ".",
        bars=placed_bars(items, longest=1.0),
        width=CHART_WIDTH,
        height=len(items) * BAR_STEP,
    )


def _phase_table(found: Replay) -> Table:
    services = [service.service for service in found.services]
    phases = list(found.phases)
    remark = "Of the requests that came in then and were not turned away."
    if len(phases) > MOST_PHASES:
        phases.sort(key=lambda phase: min((v for v in phase.attainment.values() if not math.isnan(v)), default=1.0))
        phases = sorted(phases[:MOST_PHASES], key=lambda phase: phase.start_s)
        remark += f" The {MOST_PHASES} worst of {len(found.phases)} stretches."
    has_periods = any(phase.period is not None for phase in phases)
    columns = ("from", "to", *(("period#", "replicas#") if has_periods else ()), "what is wrong")
    rows = []
    for phase in phases:
        cells = [Cell(text=_clock(phase.start_s)), Cell(text=_clock(phase.end_s))]
        if has_periods:
            cells += [Cell(text=str(phase.period)), Cell(text=str(phase.replicas))]
        cells.append(Cell(text=clean("; ".join(phase.events)) or "-"))
        missed = {name for period, name in found.missed_periods() if period == phase.period and has_periods}
        cells += [
            Cell(text=percent_text(phase.attainment[name]), tone="bad" if name in missed else "") for name in services
        ]
        rows.append(tuple(cells))
    names = tuple(f"{clean(name)}#" for name in services)
    return Table(title="Within every SLO, over time", columns=(*columns, *names), rows=tuple(rows), remark=remark)
