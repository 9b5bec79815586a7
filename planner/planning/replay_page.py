"""A replay as a page: its objectives, attainment over time with what went wrong, and how busy each pool was."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.planning.replay_adapters import WORST, adapters_sentence
from planner.planning.replay_outcome import is_within
from planner.report.lines import Axis, Mark, Series, line_chart
from planner.report.page import Figure
from planner.report.replay_page import Cell, ResultPage, Table, result_html
from planner.report.wording import clean, price
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.planning.replay_adapters import AdapterOutcome
    from planner.planning.replay_given_back import GivenBackOutcome
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
    n = sum(each.n_requests for each in found.services) + sum(each.n_requests for each in found.given_back)
    rounds = f" in {found.n_replications} replications" if found.n_replications > 1 else ""
    return result_html(
        ResultPage(
            title=clean(title or "Replay of a plan"),
            verdict="every SLO holds" if found.is_met else "an SLO is missed",
            tone="good" if found.is_met else "bad",
            headline=f"{n:,} requests replayed{rounds}, one by one.",
            figures=tuple(_figures(found)),
            tables=(*([_slo_table(found)] if found.services else []), *_given_back_tables(found)),
            charts=tuple(_charts(found)) if found.services else (),
            later_tables=(
                *_adapter_tables(found),
                *([_pool_table(found), _phase_table(found)] if found.services else []),
            ),
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
    for given in found.given_back:
        name, within = clean(given.service), given.found.attainment
        yield Figure(label=name, value="-" if within is None else f"{within:.2%}", unit="within every SLO, given back")
    if found.n_lost:
        yield Figure(label="Replicas", value=f"{found.n_lost:,}", unit="losses on the way")


def _slo_table(found: Replay) -> Table:
    rows = []
    for service in found.services:
        for item in service.slos:
            verdict = ("ok" if item.is_met else "missed") + ("" if item.is_sure else ", not sure")
            verdict = verdict if item.simulated.n else "none to judge"
            rows.append(
                (
                    Cell(text=clean(service.service)),
                    Cell(text=clean(str(item))),
                    Cell(text=seconds_text(item.simulated.value)),
                    Cell(text=interval_text(item.simulated)),
                    Cell(text=verdict, tone="good" if item.is_met else "bad"),
                    Cell(text=percent_text(item.attainment.value)),
                )
            )
    columns = ("service", "SLO", "simulated#", "95% interval#", "verdict", "requests within#")
    what = "the scatter between replications" if found.n_replications > 1 else "20 batch means"
    return Table(title="Objectives", columns=columns, rows=tuple(rows), remark=f"Intervals are from {what}.")


GIVEN_BACK_COLUMNS = (
    "service",
    "given back",
    "TTFT p50#",
    "p99#",
    "cold#",
    "within#",
    "USD/h#",
    "in the plan#",
    "verdict",
)


def given_back_cells(item: GivenBackOutcome) -> tuple[str, ...]:
    """Return how a service fares that is given back, in words; see `GIVEN_BACK_COLUMNS`."""
    way = item.found
    p50, p99 = (seconds_text(math.inf if value is None else value) for value in (way.ttft_p50_s, way.ttft_p99_s))
    cold, within = (percent_text(math.nan if v is None else v) for v in (way.cold_fraction, way.attainment))
    return (
        item.service,
        f"{way.way}, {way.offer}",
        p50,
        p99,
        cold,
        within,
        price(way.cost_usd_per_hour),
        price(item.planned.cost_usd_per_hour),
        "ok" if item.is_met else "missed",
    )


def _given_back_tables(found: Replay) -> Iterator[Table]:
    if not found.given_back:
        return
    rows = []
    for item in found.given_back:
        *cells, verdict = map(clean, given_back_cells(item))
        tone = "good" if item.is_met else "bad"
        rows.append((*(Cell(text=cell) for cell in cells), Cell(text=verdict, tone=tone)))
    remark = "Played on what judged them, with other starts; the cost beside that of the plan."
    yield Table(title="Given back", columns=GIVEN_BACK_COLUMNS, rows=tuple(rows), remark=remark)


@dataclass(frozen=True, slots=True)
class _TimeAxis:
    """How seconds since what counts began are shown: in a round unit, or a schedule in periods."""

    unit_s: float
    first: float
    label: str

    def at(self, seconds: float) -> float:
        return self.first + seconds / self.unit_s

    def axis(self, last_s: float) -> Axis:
        return Axis(low=self.first, high=self.at(last_s), label=self.label, show=lambda value: f"{value:g}")


def _time_axis(found: Replay, last_s: float) -> _TimeAxis:
    periods = [phase for phase in found.phases if phase.period is not None]
    if periods and periods[0].period is not None:
        ends = [phase.end_s for phase in periods if phase.period == periods[0].period]
        return _TimeAxis(ends[-1] - periods[0].start_s, periods[0].period, "period of the schedule")
    for name, unit_s in (("hours", 3600.0), ("minutes", 60.0)):
        if last_s >= 2 * unit_s:
            return _TimeAxis(unit_s, 0.0, f"time of arrival, {name}")
    return _TimeAxis(1.0, 0.0, "time of arrival, seconds")


def _charts(found: Replay) -> Iterator[LineChart]:
    records = found.simulation.records
    counted = records.select(records.arrival_s >= found.origin_s)
    at_s = counted.arrival_s - found.origin_s
    last_s = float(at_s[-1])
    n_bins = int(min(MOST_BINS, max(4, len(counted) / BIN_REQUESTS)))
    edges = np.linspace(0.0, last_s, n_bins + 1)
    time = _time_axis(found, last_s)
    middles = [time.at(at) for at in ((edges[1:] + edges[:-1]) / 2).tolist()]
    held, came = [], []
    for index, (name, objectives) in enumerate(found.objectives.items()):
        mine = counted.service == index
        served = mine & ~counted.is_turned_away
        n_served = np.histogram(at_s[served], edges)[0].astype(np.float64)
        n_held = np.histogram(at_s[served & is_within(counted, objectives)], edges)[0]
        shares = np.divide(n_held, n_served, out=np.full(n_bins, np.nan), where=n_served > 0)
        held.append(Series(name=clean(name), x=middles, y=shares.tolist()))
        rates = np.histogram(at_s[mine], edges)[0] / (edges[1] - edges[0])
        came.append(Series(name=clean(name), x=middles, y=rates.tolist()))
    marks = tuple(replace(mark, start=time.at(mark.start), end=time.at(mark.end)) for mark in _marks(found.phases))
    yield line_chart(
        "attainment",
        "Requests within every SLO",
        held,
        x=time.axis(last_s),
        y=Axis(low=0.0, high=1.0, label="", show=lambda value: f"{value:.0%}"),
        description="; ".join(f"{each.name}: {_range(each.y)}" for each in held) + ".",
        marks=marks,
    )
    yield line_chart(
        "rate",
        "Requests per second that came in",
        came,
        x=time.axis(last_s),
        y=_from_0(max(max(each.y) for each in came)),
        description="; ".join(f"{each.name}: up to {max(each.y):.3g} req/s" for each in came) + ".",
        marks=marks,
    )
    if found.phases[0].period is not None:
        yield _replicas_chart(found, time, last_s)


def _from_0(most: float) -> Axis:
    return Axis(low=0.0, high=most * 1.05 or 1.0, label="", show=lambda value: f"{value:g}")


def _replicas_chart(found: Replay, time: _TimeAxis, last_s: float) -> LineChart:
    steps = [(time.at(at), phase.replicas) for phase in found.phases for at in (phase.start_s, phase.end_s)]
    counts = [float(count) for _, count in steps]
    return line_chart(
        "replicas",
        "Replicas that the plan has",
        [Series(name="replicas", x=[at for at, _ in steps], y=counts)],
        x=time.axis(last_s),
        y=_from_0(max(counts)),
        description=f"{min(counts):g} to {max(counts):g} replicas.",
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


def _pool_table(found: Replay) -> Table:
    rows = tuple(
        (
            Cell(text=clean(pool.name)),
            Cell(text=str(pool.replicas)),
            Cell(text=f"{pool.utilization:.0%}"),
            Cell(text="-" if math.isnan(pool.at_a_time) else f"{pool.at_a_time:.3g}"),
            Cell(text=f"{pool.peak_kv_fraction:.0%}"),
        )
        for pool in found.pools
    )
    columns = ("pool", "replicas#", "time at work#", "requests at a time#", "most KV memory#")
    return Table(title="Pools", columns=columns, rows=rows, remark="Requests at a time: mean of one replica.")


def _adapter_tables(found: Replay) -> Iterator[Table]:
    """Yield the worst adapters of each service that has any, and how many keep their objectives."""
    for service in found.services:
        adapters = found.adapters_of(service.service)
        if not adapters:
            continue
        rows = tuple(
            (
                Cell(text=clean(item.adapter)),
                Cell(text=f"{item.n_requests:,}"),
                Cell(text=adapter_slos_text(item)),
                Cell(text=adapter_verdict(item), tone="good" if item.is_met else "bad"),
                Cell(text=percent_text(item.attainment)),
            )
            for item in adapters[:WORST]
        )
        remark = adapters_sentence(clean(service.service), adapters)
        if len(adapters) > WORST:
            remark += f" The {WORST} worst are shown."
        columns = ("adapter", "requests#", "simulated", "verdict", "within every SLO#")
        yield Table(title=f"Adapters of {clean(service.service)}", columns=columns, rows=rows, remark=remark)


def adapter_slos_text(item: AdapterOutcome) -> str:
    """Return what an adapter's objectives came to in words."""
    found = zip(item.slos, item.simulated_s, strict=True)
    return ", ".join(f"{slo.metric} {slo.statistic} {seconds_text(value)}" for slo, value in found)


def adapter_verdict(item: AdapterOutcome) -> str:
    """Return whether an adapter keeps its objectives by itself in words."""
    if item.is_met:
        return "ok"
    return "missed" if item.is_surely_late else "missed, not sure"


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
