"""Line charts for pages that need no network: lines placed in the units of an SVG's view box."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH, HEIGHT = 960, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 40
"""Room for the axes, and above for the names of what happens."""
N_TICKS = 5
LABEL_CHAR_WIDTH = 6.5
"""Of a letter in a label, about."""
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Values over an axis; NaN breaks the line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A stretch of the x axis in which something happens; a line where it has no length."""

    start: float
    end: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What an axis goes over."""

    low: float
    high: float
    label: str
    show: Callable[[float], str]
    """A tick's value in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnLine:
    """A line, placed."""

    name: str
    path: str
    style: int
    """1, 2, 3, ...: which colour and dash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnMark:
    """A mark, placed."""

    x: float
    width: float
    label: str
    text_x: float
    anchor: str
    level: int
    """Row of its label: 0 is the lowest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """A chart, placed; lengths are in the units of its view box."""

    name: str
    """Prefix of the ids in the SVG."""
    title: str
    description: str
    """What it shows, for those who cannot see it."""
    lines: tuple[DrawnLine, ...]
    marks: tuple[DrawnMark, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_label: str
    y_label: str
    limit_y: float | None = None
    """Where a bound lies."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    description: str,
    marks: Sequence[Mark] = (),
    limit: float | None = None,
) -> LineChart:
    """Return `series` placed in a chart; what is beyond an axis is drawn at its end."""

    def at_x(value: float) -> float:
        return round(LEFT + _part(value, x) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(value: float) -> float:
        return round(HEIGHT - BOTTOM - _part(value, y) * (HEIGHT - TOP - BOTTOM), 1)

    return LineChart(
        name=name,
        title=title,
        description=description,
        lines=tuple(
            DrawnLine(name=each.name, path=_path(each, at_x, at_y), style=number % 6 + 1)
            for number, each in enumerate(series)
        ),
        marks=tuple(_placed_marks(marks, at_x)),
        x_ticks=tuple((at_x(value), x.show(value)) for value in ticks(x.low, x.high)),
        y_ticks=tuple((at_y(value), y.show(value)) for value in ticks(y.low, y.high)),
        x_label=x.label,
        y_label=y.label,
        limit_y=None if limit is None else at_y(limit),
    )


def ticks(low: float, high: float) -> list[float]:
    """Return round values between two ends, some five of them.

    Examples
    --------
    >>> ticks(0.0, 1.0), ticks(3.0, 98.0)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [20.0, 40.0, 60.0, 80.0])
    """
    span = high - low
    if not span > 0:
        return [low]
    rough = span / N_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(part * power for part in _STEPS if part * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def _part(value: float, axis: Axis) -> float:
    span = axis.high - axis.low
    return 0.5 if span <= 0 else min(1.0, max(0.0, (value - axis.low) / span))


def _path(series: Series, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> str:
    words, is_broken = [], True
    for x, y in zip(series.x, series.y, strict=True):
        if math.isnan(y):
            is_broken = True
            continue
        words.append(f"{'M' if is_broken else 'L'}{at_x(x):g} {at_y(y):g}")
        is_broken = False
    return "".join(words)


def _placed_marks(marks: Sequence[Mark], at_x: Callable[[float], float]) -> list[DrawnMark]:
    """Return marks whose labels do not cover each other: one that would is put a row higher, as far as rows go."""
    placed: list[DrawnMark] = []
    ends = [-math.inf, -math.inf]
    for mark in sorted(marks, key=lambda mark: mark.start):
        start, end = at_x(mark.start), at_x(mark.end)
        room = LABEL_CHAR_WIDTH * len(mark.label)
        is_late = start + room > WIDTH
        left = start - room if is_late else start
        level = next((row for row, taken in enumerate(ends) if taken < left), len(ends) - 1)
        ends[level] = left + room + LABEL_CHAR_WIDTH
        placed.append(
            DrawnMark(
                x=start,
                width=round(end - start, 1),
                label=mark.label,
                text_x=max(end, start) if is_late else start,
                anchor="end" if is_late else "start",
                level=level,
            )
        )
    return placed
