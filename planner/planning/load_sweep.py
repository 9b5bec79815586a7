"""A plan replayed at one load after another: where does it stop to hold its objectives?"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from planner.errors import InputError
from planner.planning.replay_outcome import finite, slo_dict
from planner.planning.replay_page import interval_text, percent_text, seconds_text
from planner.report.lines import Axis, Mark, Series, line_chart
from planner.report.page import Figure
from planner.report.replay_page import Cell, ResultPage, Table, result_html, rows_csv
from planner.report.wording import clean, plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.planning.replay import Prepared, ReplaySettings
    from planner.planning.replay_given_back import GivenBackOutcome
    from planner.planning.replay_outcome import Replay, ServiceOutcome
    from planner.report.lines import LineChart

PRECISION = 0.01
"""The knee is known when the next load that misses is at most so much above it."""
MOST_RATIO = 2.0
"""Where the chart of statistics over their bounds ends."""

_RANGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """A plan at one load."""

    load: float
    services: tuple[ServiceOutcome, ...]
    late_adapters: tuple[tuple[str, int], ...] = ()
    """Service, and how many of its adapters surely miss an objective by themselves, where any does."""
    given_back: tuple[GivenBackOutcome, ...] = ()
    """Services that the fleet does not serve."""

    @property
    def missed(self) -> tuple[str, ...]:
        """The objectives that do not hold, in words."""
        missed = [f"{service.service}: {item}" for service in self.services for item in service.slos if not item.is_met]
        late = (f"{service}: an SLO of {plural(n, 'adapter')}" for service, n in self.late_adapters)
        given_back = (f"{item.service}, given back: an SLO" for item in self.given_back if not item.is_met)
        return (*missed, *late, *given_back)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSweep:
    """A plan over a range of loads."""

    points: tuple[LoadPoint, ...]
    """By load."""
    notes: tuple[str, ...] = ()

    @property
    def knee(self) -> float | None:
        """The largest load below which, and at which, every objective holds; None = not even the first one's."""
        held = [point.load for point in self._before_the_first_miss()]
        return held[-1] if held else None

    @property
    def breaks(self) -> tuple[str, ...]:
        """What no longer holds at the first load above the knee; empty where everything holds."""
        n_held = len(self._before_the_first_miss())
        return self.points[n_held].missed if n_held < len(self.points) else ()

    def _before_the_first_miss(self) -> tuple[LoadPoint, ...]:
        n_held = next((i for i, point in enumerate(self.points) if point.missed), len(self.points))
        return self.points[:n_held]

    def sentence(self) -> str:
        """Return what came of it in one sentence."""
        if self.knee is None:
            return (
                f"Already at {self.points[0].load:g} times the planned rate this is missed: {'; '.join(self.breaks)}."
            )
        if not self.breaks:
            return f"Every SLO holds up to {self.knee:.4g} times the planned rate, the most that was tried."
        return f"Every SLO holds up to {self.knee:.3g} times the planned rate; then {'; '.join(self.breaks)} is missed."

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as JSON-ready data."""
        return {
            "schema_version": "1",
            "kind": "LoadSweep",
            "knee": self.knee,
            "breaks": list(self.breaks),
            "is_found": self.knee is not None and bool(self.breaks),
            "points": [
                {
                    "load": point.load,
                    "met": not point.missed,
                    "services": {
                        service.service: {
                            "rate_rps": service.rate_rps,
                            "attainment": finite(service.attainment.value),
                            "slo": [slo_dict(item) for item in service.slos],
                        }
                        for service in point.services
                    },
                    **(
                        {"given_back": {item.service: item.to_dict() for item in point.given_back}}
                        if point.given_back
                        else {}
                    ),
                }
                for point in self.points
            ],
            "notes": list(self.notes),
        }

    def rows(self) -> list[dict[str, object]]:
        """Return one row for each load, service and objective."""
        return [
            {
                "load": float(f"{point.load:.6g}"),
                "service": service.service,
                "rate_rps": service.rate_rps,
                "slo": str(item),
                "bound_s": item.slo.bound_s,
                "simulated_s": finite(item.simulated.value),
                "low_s": finite(item.simulated.low),
                "high_s": finite(item.simulated.high),
                "met": item.is_met,
                "attainment": finite(service.attainment.value),
            }
            for point in self.points
            for service in point.services
            for item in service.slos
        ]


def parse_loads(text: str) -> tuple[float, float]:
    """Return the loads that "0.5-1.5" goes from and to.

    Raises
    ------
    InputError: if it names no range.
    """
    match = _RANGE.fullmatch(text)
    low, high = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if not 0 < low < high:
        raise InputError(
            f"{text!r} is no range of loads.", hint="Write --load 0.5-1.5: factors of the planned rate, above 0."
        )
    return low, high


def load_sweep(prepared: Prepared, settings: ReplaySettings, *, low: float, high: float, n_points: int) -> LoadSweep:
    """Return the plan at `n_points` loads from `low` to `high`, and at those in between that find the knee."""
    n_threads = settings.n_threads or os.cpu_count() or 1
    notes: tuple[str, ...] = ()

    def at(load: float, threads: int) -> tuple[LoadPoint, Replay]:
        found = prepared.run(replace(settings, load=load, n_threads=threads))
        late = Counter(item.service for item in found.adapters if item.is_surely_late)
        point = LoadPoint(
            load=load, services=found.services, late_adapters=tuple(late.items()), given_back=found.given_back
        )
        return point, found

    loads = [low + (high - low) * i / (n_points - 1) for i in range(n_points)]
    with ThreadPoolExecutor(max_workers=min(n_threads, n_points)) as pool:
        ran = list(pool.map(lambda load: _without_records(at(load, 1)), loads))
    points = [point for point, _ in ran]
    notes = ran[0][1]
    held, missed = _bracket(points)
    while held is not None and missed is not None and missed / held > 1 + PRECISION:
        point, _ = at((held + missed) / 2, n_threads)
        points.append(point)
        held, missed = (held, point.load) if point.missed else (point.load, missed)
    return LoadSweep(points=tuple(sorted(points, key=lambda point: point.load)), notes=notes)


def _without_records(ran: tuple[LoadPoint, Replay]) -> tuple[LoadPoint, tuple[str, ...]]:
    """Return a point and its notes; what every request saw is let go."""
    point, found = ran
    return point, found.notes


def _bracket(points: Sequence[LoadPoint]) -> tuple[float | None, float | None]:
    """Return the last load that holds before the first one that misses, and that one."""
    if points[0].missed:
        return None, points[0].load
    for before, after in pairwise(points):
        if after.missed:
            return before.load, after.load
    return points[-1].load, None


def load_text(found: LoadSweep, suffix: str, *, title: str) -> str:
    """Return the sweep in the form of a suffix: .csv or .html.

    Raises
    ------
    InputError: if the suffix is neither.
    """
    if suffix == ".csv":
        return rows_csv(found.rows())
    if suffix == ".html":
        return _html(found, title=title)
    raise InputError(f"{suffix!r} is not a form that a sweep can be written in.", hint="Suffixes: .csv, .json, .html.")


def _html(found: LoadSweep, *, title: str) -> str:
    figures = [] if found.knee is None else [Figure(label="Knee", value=f"{found.knee:.3g}", unit="times the rate")]
    return result_html(
        ResultPage(
            title=clean(title or "A plan over load"),
            verdict="knee found" if found.knee is not None and found.breaks else "no knee in the range",
            tone="good" if found.knee is not None else "bad",
            headline=clean(found.sentence()),
            figures=tuple(figures),
            tables=(),
            charts=tuple(_charts(found)),
            later_tables=(_table(found),),
            notes=tuple(map(clean, found.notes)),
        )
    )


def _charts(found: LoadSweep) -> Iterator[LineChart]:
    loads = [point.load for point in found.points]
    across = Axis(low=loads[0], high=loads[-1], label="times the planned rate", show=lambda value: f"{value:g}")
    marks = () if found.knee is None else (Mark(start=found.knee, end=found.knee, label=f"knee {found.knee:.3g}"),)
    attained, parts = [], []
    for i, service in enumerate(found.points[0].services):
        name = clean(service.service)
        values = [point.services[i].attainment.value for point in found.points]
        attained.append(Series(name=name, x=loads, y=values))
        for j, item in enumerate(service.slos):
            part = [point.services[i].slos[j].simulated.value / item.slo.bound_s for point in found.points]
            parts.append(Series(name=f"{name}: {clean(str(item))}", x=loads, y=part))
    yield line_chart(
        "attainment",
        "Requests within every SLO, by load",
        attained,
        x=across,
        y=Axis(low=0.0, high=1.0, label="", show=lambda value: f"{value:.0%}"),
        description=f"{found.sentence()}",
        marks=marks,
    )
    yield line_chart(
        "statistics",
        "Each SLO's statistic as a part of its bound, by load",
        parts,
        x=across,
        y=Axis(low=0.0, high=MOST_RATIO, label="", show=lambda value: f"{value:.0%}"),
        description="; ".join(f"{each.name}: {_at_ends(each)}" for each in parts) + ".",
        marks=marks,
        limit=1.0,
    )


def _at_ends(series: Series) -> str:
    first, last = (f"{value:.0%}" if math.isfinite(value) else "never" for value in (series.y[0], series.y[-1]))
    return f"{first} of its bound at the lowest load, {last} at the highest"


def _table(found: LoadSweep) -> Table:
    rows = [
        (
            Cell(text=f"{point.load:.4g}"),
            Cell(text=clean(service.service)),
            Cell(text=clean(str(item))),
            Cell(text=seconds_text(item.simulated.value)),
            Cell(text=interval_text(item.simulated)),
            Cell(text="ok" if item.is_met else "missed", tone="good" if item.is_met else "bad"),
            Cell(text=percent_text(service.attainment.value)),
        )
        for point in found.points
        for service in point.services
        for item in service.slos
    ]
    columns = ("load#", "service", "SLO", "simulated#", "95% interval#", "verdict", "within all#")
    return Table(title="By load", columns=columns, rows=tuple(rows))
