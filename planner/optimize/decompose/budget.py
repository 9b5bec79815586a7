"""What is left of the time, and whether somebody pressed Ctrl-C."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from planner.optimize.backends import RawSolution
    from planner.optimize.settings import SolverSettings


class Budget:
    """The clock that all programmes of one search share. Ends of it are the only thing that is not repeatable."""

    def __init__(self, settings: SolverSettings, *, whole: Budget | None = None) -> None:
        self._whole = whole
        self._settings = settings
        self._started = time.monotonic()
        self._interrupted = False
        self.version = ""
        """Of the solver, as its first answer says."""

    @property
    def solver(self) -> str:
        """Name of the back end."""
        return self._settings.solver

    @property
    def seconds(self) -> float:
        """Time spent."""
        return time.monotonic() - self._started

    @property
    def left_s(self) -> float:
        """Time left, never negative."""
        return max(self._settings.time_limit_s - self.seconds, 0.0)

    @property
    def stopped_by(self) -> Termination | None:
        """What stopped the search, if something did."""
        if self._interrupted:
            return Termination.INTERRUPTED
        return Termination.TIME_LIMIT if self.left_s <= 0 else None

    def heard(self, raw: RawSolution) -> RawSolution:
        """Return `raw`, and remember if it was interrupted."""
        self.version = self.version or raw.version
        if raw.termination is Termination.INTERRUPTED:
            self.interrupt()
        return raw

    def interrupt(self) -> None:
        """Stop everything at the next opportunity."""
        self._interrupted = True
        if self._whole is not None:
            self._whole.interrupt()

    def part(self, fraction: float) -> Budget:
        """Return a budget of its own for a fraction of what is left."""
        return Budget(replace(self._settings, time_limit_s=self.left_s * fraction), whole=self)

    def at_most(self, seconds: float) -> Budget:
        """Return a budget of its own for `seconds`, or what is left if that is less."""
        return Budget(replace(self._settings, time_limit_s=min(self.left_s, seconds)), whole=self)

    def settings(self) -> SolverSettings:
        """Return the caller's settings with what is left of the time."""
        return replace(self._settings, time_limit_s=self.left_s)
