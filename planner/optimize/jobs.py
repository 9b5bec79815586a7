"""Jobs as flat arrays: which option can do how much of which job, period by period."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from planner.domain.jobs import Job
    from planner.domain.problem import FleetProblem, Horizon, ServingOption
    from planner.optimize.milp import FloatArray, IntArray


def _no_integers() -> IntArray:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkArrays:
    """Pairs of a job and an option that can do it, in every period of the job's window; shape (work pairs,)."""

    job: IntArray = field(default_factory=_no_integers)
    option: IntArray = field(default_factory=_no_integers)
    """Position in the options of all periods."""
    load: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Replicas that ALL of the job keeps busy, were it done there alone: amount / (rate x seconds)."""
    mean_load: FloatArray = field(default_factory=lambda: np.zeros(0))
    """The same over the whole period, without the utilisation cap: what replicas do of it on average."""
    is_own: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """Whether the option's replicas are the job's own; else it uses what a service leaves of them."""
    order: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Periods since the job's release."""

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self.job)

    def busy(self, work: FloatArray, n_options: int) -> FloatArray:
        """Return the replicas of each option that `work` keeps busy, shape (options,).

        work : y, the part of its job that each pair does, shape (work pairs,).
        """
        return np.bincount(self.option, weights=self.load * work, minlength=n_options).astype(np.float64)

    def done(self, work: FloatArray, n_options: int) -> FloatArray:
        """Return the mean load of each option's replicas in its period, shape (options,)."""
        return np.bincount(self.option, weights=self.mean_load * work, minlength=n_options).astype(np.float64)


def work_arrays(problem: FleetProblem, options: Sequence[ServingOption]) -> WorkArrays:
    """Return who can do the problem's jobs, over its periods.

    options : of one period, in the arrays' order.
    """
    pairs = [pair for k, job in enumerate(sorted_jobs(problem)) for pair in _pairs(k, job, problem, options)]
    job, option, load, mean_load, is_own, order = tuple(zip(*pairs, strict=True)) or ((),) * 6
    return WorkArrays(
        job=np.array(job, dtype=np.int64),
        option=np.array(option, dtype=np.int64),
        load=np.array(load, dtype=np.float64),
        mean_load=np.array(mean_load, dtype=np.float64),
        is_own=np.array(is_own, dtype=np.bool_),
        order=np.array(order, dtype=np.float64),
    )


def _pairs(
    k: int, job: Job, problem: FleetProblem, options: Sequence[ServingOption]
) -> Iterator[tuple[int, int, float, float, bool, float]]:
    """Yield the pairs of job number `k`: job, option, load, mean load, whether they are its own, and their place."""
    horizon = problem.horizon
    step_s = job.window_s(None) if horizon is None else horizon.step_s
    for j, option in enumerate(options):
        is_own = option.service == job.name
        cap = 1.0 if is_own else work_cap(problem, option)
        rate = _rate(job, option)
        if rate <= 0:
            continue
        replica_s = job.amount / rate
        for t, (seconds, order) in enumerate(_periods(job, horizon)):
            if seconds > 0:
                yield k, t * len(options) + j, replica_s / (seconds * cap), replica_s / step_s, is_own, order


def work_cap(problem: FleetProblem, option: ServingOption) -> float:
    """Return what work may fill of a service's replica without requests: a cap above 1 is for requests alone."""
    return problem.utilization_cap * min(option.utilization_cap, 1.0)


def sorted_jobs(problem: FleetProblem) -> tuple[Job, ...]:
    """Return the jobs by name, as `FleetArrays.jobs` has them."""
    return tuple(sorted(problem.jobs, key=lambda job: job.name))


def _rate(job: Job, option: ServingOption) -> float:
    """Return the units of `job` that a replica does per second of its time; of a service's replica beside requests."""
    if option.service == job.name:
        return float(option.throughput_rps[0])
    if not np.any(option.throughput_rps > 0):
        return 0.0  # it serves nothing, so it leaves nothing
    return option.job_rates.get(job.name, 0.0) * job.harvest_efficiency


def _periods(job: Job, horizon: Horizon | None) -> list[tuple[float, float]]:
    """Return the seconds that the job may run in each period, and the period's place after the release."""
    seconds = job.seconds_by_period(horizon)
    first = 0 if horizon is None else int(job.release_s // horizon.step_s)
    return [(length, float((t - first) % len(seconds))) for t, length in enumerate(seconds)]


def check_jobs(problem: FleetProblem, services: Sequence[str]) -> None:
    """Return if the jobs make sense.

    Raises
    ------
    InputError: naming the job and what is wrong with it.
    """
    names = [job.name for job in problem.jobs]
    taken = sorted({name for name in names if names.count(name) > 1 or name in services})
    if taken:
        raise InputError(f"{taken[0]!r} is the name of two jobs, or of a job and a service.", hint="Rename one.")
    for job in problem.jobs:
        if not (np.isfinite(job.amount) and job.amount > 0):
            raise InputError(f"The job {job.name} has {job.amount!r} {job.unit} to do.", hint="Leave it out, or say.")
        if not 0 < job.harvest_efficiency <= 1:
            raise InputError(
                f"The harvest efficiency of {job.name} is {job.harvest_efficiency!r}.",
                hint="It is above 0 and at most 1.",
            )
        _check_window(job, problem.horizon)
    for option in problem.options:
        unknown = sorted(set(option.job_rates) - set(names))
        if unknown or not all(np.isfinite(rate) and rate >= 0 for rate in option.job_rates.values()):
            raise InputError(
                f"The rates of jobs on {option.service} on {option.offer.name} name {unknown or 'no finite rate'}."
            )


def _check_window(job: Job, horizon: Horizon | None) -> None:
    if horizon is None:
        if not (np.isfinite(job.deadline_s) and 0 <= job.release_s < job.deadline_s):
            raise InputError(
                f"The job {job.name} may run from {job.release_s:g} s to {job.deadline_s:g} s, which is no time.",
                hint="Put its deadline after its start.",
            )
        return
    if not (0 <= job.release_s < horizon.length_s and 0 < job.deadline_s <= horizon.length_s):
        raise InputError(
            f"The job {job.name} starts at {job.release_s:g} s and is due at {job.deadline_s:g} s, and the horizon, "
            f"which repeats, is {horizon.length_s:g} s long.",
            hint="Make the horizon longer, or the times shorter; a deadline before the start is the next round's.",
        )
