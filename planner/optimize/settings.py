"""What the caller may choose: the solver, its limits, and how buckets are assigned."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

DEFAULT_TIME_LIMIT_S = 60.0
"""Long enough for a catalog's problem on a laptop; a limit that is reached is reported, never hidden."""
DEFAULT_RELATIVE_GAP = 1e-4
"""One cent in a hundred dollars: below the precision of any throughput that goes in."""
MAX_SEED = 2**31 - 1
"""Solvers keep their seed in 32 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverSettings:
    """Which solver, and when it stops."""

    solver: str = "highs"
    """A name of `planner.optimize.backends`: highs, cbc, scip, cp-sat."""
    time_limit_s: float = DEFAULT_TIME_LIMIT_S
    relative_gap: float = DEFAULT_RELATIVE_GAP
    """(cost - bound) / cost at which a plan counts as optimal."""
    seed: int = 0
    threads: int = 1
    node_limit: int | None = None
    """Branch-and-bound nodes; None = no limit. Deterministic, unlike a time limit."""
    feasibility_tolerance: float | None = None
    """By how much a row may be missed; None = the solver's own default."""
    presolve: bool = True
    """Whether the solver may simplify the programme first; a linear programme that is small already loses by it."""

    def __post_init__(self) -> None:
        """Refuse settings that no solver could honour."""
        if not self.time_limit_s >= 0:
            msg = f"time_limit_s must be >= 0, not {self.time_limit_s!r}"
            raise ValueError(msg)
        if not 0 <= self.relative_gap < 1:
            msg = f"relative_gap must be in [0, 1), not {self.relative_gap!r}"
            raise ValueError(msg)
        if self.threads < 1:
            msg = f"threads must be >= 1, not {self.threads!r}"
            raise ValueError(msg)
        if not 0 <= self.seed <= MAX_SEED:
            msg = f"seed must be in [0, {MAX_SEED}], not {self.seed!r}"
            raise ValueError(msg)


class Clock:
    """A time limit that several solves share."""

    def __init__(self, settings: SolverSettings) -> None:
        self._settings = settings
        self._deadline = time.monotonic() + settings.time_limit_s

    @property
    def asked(self) -> SolverSettings:
        """The settings with the whole of the time."""
        return self._settings

    @property
    def is_over(self) -> bool:
        """Whether nothing is left of the time."""
        return time.monotonic() >= self._deadline

    def settings(self) -> SolverSettings:
        """Return the settings with what is left of the time."""
        return replace(self._settings, time_limit_s=max(self._deadline - time.monotonic(), 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """How a bucket's requests may be split over options."""

    slice_factor: int | None = None
    """None: any shares (routing weights). k: k equal slices, each served by one option, as Mélange does."""

    def __post_init__(self) -> None:
        """Refuse a number of slices that cuts nothing."""
        if self.slice_factor is not None and self.slice_factor < 1:
            msg = f"slice_factor must be >= 1, not {self.slice_factor!r}"
            raise ValueError(msg)

    @classmethod
    def fractional(cls) -> Assignment:
        """Return the default: shares are any non-negative numbers that sum to 1."""
        return cls()

    @classmethod
    def sliced(cls, slice_factor: int) -> Assignment:
        """Return Mélange's assignment: each bucket in `slice_factor` equal slices."""
        return cls(slice_factor=slice_factor)

    @property
    def units_per_bucket(self) -> float:
        """What the assignment variables of one bucket sum to: 1 for shares, the number of slices otherwise."""
        return 1.0 if self.slice_factor is None else float(self.slice_factor)
