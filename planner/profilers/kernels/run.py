"""The loop over shapes: within a budget, coarse to fine, picking up what an earlier run has timed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from planner.profilers.kernels.shapes import Kernel, KernelKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from planner.profilers.kernels.sampling import Timing

LEAST_LIMIT_S = 0.05
"""A kernel is timed for at least so long, however short the budget."""

FORECAST_CALLS = 4
"""Calls that timing a kernel takes at least: a first one to warm up, a second, and two samples."""

BUDGET_SPENT = "the time budget was spent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one shape: its timing, or why it has none."""

    kernel: Kernel
    timing: Timing | None = None
    skipped: str = ""
    """Why there is no timing; "" if there is one."""


class KernelTimer(Protocol):
    """Times kernels on one device."""

    def time(self, kernel: Kernel, *, limit_s: float) -> Outcome:
        """Return the timing of one kernel, taking about `limit_s` at most, or why it cannot be timed there."""
        ...

    def time_all_reduces(self, kernels: Sequence[Kernel], *, limit_s: float) -> tuple[Outcome, ...]:
        """Return the timings of all-reduces that all go over the same number of GPUs."""
        ...


def forecast_s(kernel: Kernel, timed: Iterable[Outcome]) -> float | None:
    """Return how long one call may take at most: the nearest smaller shape's time, times how much more work it is.

    None if no smaller shape of the same series was timed.
    """
    smaller = [
        (outcome.kernel.work, outcome.timing.median_s)
        for outcome in timed
        if outcome.timing is not None and outcome.kernel.series == kernel.series and outcome.kernel.work <= kernel.work
    ]
    if not smaller:
        return None
    work, seconds = max(smaller)
    return seconds * kernel.work / work


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run under way: what was found so far, and what is left of the budget."""

    timer: KernelTimer
    budget_s: float
    clock: Callable[[], float]
    start_s: float
    found: dict[str, Outcome]
    on_outcome: Callable[[Outcome], None]
    n_left: int

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget_s - (self.clock() - self.start_s)

    def share_s(self, n_kernels: int) -> float:
        """Return an equal share of what is left for each of `n_kernels`, together."""
        return max(LEAST_LIMIT_S, self.left_s / max(self.n_left, 1)) * n_kernels

    def note(self, outcome: Outcome) -> None:
        self.found[outcome.kernel.key] = outcome
        self.n_left -= 1
        self.on_outcome(outcome)

    def try_all(self, kernels: Sequence[Kernel], *, is_last_try: bool) -> list[Kernel]:
        """Time what the budget has room for; return the rest, or on the last try note that it was skipped."""
        deferred = []
        for kernel in kernels:
            need_s = FORECAST_CALLS * (forecast_s(kernel, self.found.values()) or 0.0)
            if self.left_s > 0 and need_s <= self.left_s:
                self.note(self.timer.time(kernel, limit_s=self.share_s(1)))
            elif is_last_try:
                self.note(Outcome(kernel=kernel, skipped=BUDGET_SPENT))
            else:
                deferred.append(kernel)
        return deferred

    def reduce_all(self, kernels: Sequence[Kernel]) -> None:
        """Time the all-reduces, those over the same number of GPUs together."""
        for n_gpus in sorted({kernel.batch for kernel in kernels}):
            group = [kernel for kernel in kernels if kernel.batch == n_gpus]
            if self.left_s > 0:
                outcomes = self.timer.time_all_reduces(group, limit_s=self.share_s(len(group)))
            else:
                outcomes = tuple(Outcome(kernel=kernel, skipped=BUDGET_SPENT) for kernel in group)
            for outcome in outcomes:
                self.note(outcome)


def time_kernels(
    kernels: Sequence[Kernel],
    timer: KernelTimer,
    *,
    budget_s: float,
    clock: Callable[[], float],
    known: Mapping[str, Outcome],
    on_outcome: Callable[[Outcome], None],
) -> tuple[Outcome, ...]:
    """Return an outcome for every kernel, in their order.

    Parameters
    ----------
    budget_s : seconds for all; what is left is shared among the kernels that are left.
    clock : seconds from any start.
    known : outcomes of an earlier run by `Kernel.key`; these kernels are not timed again.
    on_outcome : called with each new outcome, so that an interrupted run loses nothing.

    Notes
    -----
    A kernel that would not fit into what is left of the budget waits until the end: by then a nearer smaller shape
    may say that it does.
    """
    new = [kernel for kernel in kernels if kernel.key not in known]
    run = _Run(
        timer=timer,
        budget_s=budget_s,
        clock=clock,
        start_s=clock(),
        found={kernel.key: known[kernel.key] for kernel in kernels if kernel.key in known},
        on_outcome=on_outcome,
        n_left=len(new),
    )
    alone = [kernel for kernel in new if kernel.kind is not KernelKind.ALL_REDUCE]
    reduces = [kernel for kernel in new if kernel.kind is KernelKind.ALL_REDUCE]
    deferred = run.try_all(alone, is_last_try=False)
    run.reduce_all(reduces)
    run.try_all(deferred, is_last_try=True)
    return tuple(replace(run.found[kernel.key], kernel=kernel) for kernel in kernels)
