"""How a measurement of a server is shown while it goes on."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from planner.cli import console
from planner.units import format_duration, format_usd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress

    from planner.profilers.endpoint.journal import Journal
    from planner.profilers.endpoint.session import Watcher

SECONDS_PER_HOUR = 3600.0


@contextmanager
def watching(journal: Journal, usd_per_hour: float | None) -> Iterator[Watcher]:
    """Show how the measurement goes: a bar on a terminal, else nothing but notes."""
    if not sys.stderr.isatty() or not console.logger.isEnabledFor(logging.INFO):
        yield _Quiet()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[rest]}"))
    with Progress(*columns, console=Console(file=sys.stderr, highlight=False), transient=True) as progress:
        yield _Bar(progress, journal, usd_per_hour)


class _Quiet:
    """No terminal: notes only."""

    def part(self, subject: str, n_done: int, n_parts: int) -> None:
        """Show nothing."""

    def run(self, rate_rps: float, n_fewest: int, n_judged: int) -> None:
        """Show nothing."""

    def note(self, message: str) -> None:
        """Show a note."""
        console.note(message)


class _Bar:
    """A bar for all parts, with the run under way, the time left and the cost so far."""

    def __init__(self, progress: Progress, journal: Journal, usd_per_hour: float | None) -> None:
        self._progress = progress
        self._journal = journal
        self._usd_per_hour = usd_per_hour
        self._task = progress.add_task("asking the server", total=None, rest="")
        self._subject, self._n_done, self._n_parts = "", 0, 1

    def part(self, subject: str, n_done: int, n_parts: int) -> None:
        """Show that a part is begun."""
        self._subject, self._n_done, self._n_parts = subject, n_done, n_parts
        self._progress.update(self._task, description=subject, total=n_parts, completed=n_done, rest=self._rest())

    def run(self, rate_rps: float, n_fewest: int, n_judged: int) -> None:
        """Show a run's progress."""
        text = f"{self._subject} ({self._n_done + 1}/{self._n_parts}) at {rate_rps:.4g} req/s, {n_judged}/{n_fewest}"
        self._progress.update(self._task, description=text, rest=self._rest())

    def note(self, message: str) -> None:
        """Show a note above the bar."""
        self._progress.console.print(message, markup=False)

    def _rest(self) -> str:
        spent_s = self._journal.spent_s + self._journal.since_last_s()
        parts = []
        if self._n_done:
            left = self._n_parts - self._n_done
            parts.append(f"about {format_duration(self._journal.spent_s / self._n_done * left)} left")
        if self._usd_per_hour is not None:
            parts.append(f"{format_usd(spent_s / SECONDS_PER_HOUR * self._usd_per_hour)} USD so far")
        return ", ".join(parts)
