"""Work that can wait: offline batches and fine-tuning with a deadline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.domain.problem import Horizon


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work that is done at any time between its release and its deadline, all of it.

    Times count from now, or from the start of the horizon. A horizon repeats, and the job with it: a deadline that is
    not after the release is that of the next round. Without a horizon the job is a steady rate, amount / window.
    """

    name: str
    """Its own replicas are those of options whose `service` this is."""
    amount: float
    """In its unit; with a horizon once per horizon."""
    unit: str = "requests"
    deadline_s: float
    release_s: float = 0.0
    harvest_efficiency: float = 1.0
    """What a replica reaches beside online requests, of the rate that the same GPU time gives it alone."""
    output_tokens_per_unit: float | None = None
    """Generated tokens of one unit; None = not known, or none are generated."""

    def window_s(self, horizon: Horizon | None) -> float:
        """Return the length of the time in which the job may run; not above 0 where it never may."""
        length = self.deadline_s - self.release_s
        return length + horizon.length_s if horizon is not None and length <= 0 else length

    def seconds_by_period(self, horizon: Horizon | None) -> tuple[float, ...]:
        """Return how long the job may run in each period; in a steady state the whole window.

        Examples
        --------
        >>> from planner.domain.problem import Horizon
        >>> day = Horizon(step_s=6 * 3600.0, factors={"chat": (1.0,) * 4})
        >>> night = Job(name="n", amount=1.0, release_s=22 * 3600.0, deadline_s=4 * 3600.0)
        >>> [seconds / 3600 for seconds in night.seconds_by_period(day)]
        [4.0, 0.0, 0.0, 2.0]
        """
        if horizon is None:
            return (self.window_s(None),)
        end_s = self.release_s + self.window_s(horizon)
        starts = [period * horizon.step_s for period in range(2 * horizon.n_periods)]  # the next round as well
        overlaps = [max(0.0, min(end_s, at + horizon.step_s) - max(self.release_s, at)) for at in starts]
        n_periods = horizon.n_periods
        return tuple(now + after for now, after in zip(overlaps[:n_periods], overlaps[n_periods:], strict=True))
