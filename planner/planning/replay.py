"""`gpuplan simulate`: does a plan hold its objectives, request by request?"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.disaggregation import Role
from planner.errors import InputError
from planner.planning.explain import question_of
from planner.planning.replay_adapters import Objectives, adapter_outcomes, objectives_of
from planner.planning.replay_given_back import (
    check_settings,
    given_back_notes,
    given_back_outcomes,
    no_simulation,
)
from planner.planning.replay_outcome import (
    Phase,
    PoolOutcome,
    Replay,
    ServiceOutcome,
    across_replications,
    phases_of,
    service_outcome,
)
from planner.planning.replay_traffic import (
    DEFAULT_REQUESTS,
    FAULT_STREAM,
    TrafficSettings,
    moved_events,
    scene_notes,
    scene_of,
    traffic_of,
)
from planner.simulate.events import Reclaims
from planner.simulate.faults import SPOT, Recovery, timeline
from planner.simulate.plans import planned_fleet
from planner.simulate.run import Policy, simulate
from planner.simulate.tenants import adapter_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from planner.domain.plan import Plan
    from planner.domain.workload import Trace
    from planner.planning.question import Question, ReplaySource
    from planner.planning.replay_traffic import Scene
    from planner.simulate.arrivals import Process
    from planner.simulate.events import AnyEvent
    from planner.simulate.faults import Timeline
    from planner.simulate.plans import PlannedFleet
    from planner.simulate.run import Simulation

__all__ = [
    "DEFAULT_REQUESTS",
    "Phase",
    "Replay",
    "ReplaySettings",
    "ServiceOutcome",
    "prepare",
    "replay",
    "replay_of",
]

WARM_UP_FRACTION = 0.05
"""A fleet starts empty; what arrives in this first part of the time does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """How to replay a plan."""

    load: float = 1.0
    """Rates are multiplied by it."""
    policy: Policy = Policy.WEIGHTS
    seed: int = 0
    is_exact: bool = False
    n_requests: int | None = None
    """Most requests of a service; None = `DEFAULT_REQUESTS`, and of a schedule at least two minutes of every period."""
    events: tuple[AnyEvent, ...] = ()
    """What goes wrong on the way; times count from where the time that counts begins."""
    process: Process | None = None
    """How requests arrive; None = as in the trace where it has times, else as a Poisson process."""
    periods: tuple[int, int] | None = None
    """First and last period of a schedule, counted from 0; None = all."""
    phase_s: float | None = None
    """The outcome over time is cut into pieces of this length as well; None = only at periods and events."""
    n_replications: int = 1
    n_threads: int | None = None
    """Replications at a time; None = one for each core. The result does not depend on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan, ready to be replayed as often as is wanted."""

    question: Question
    source: ReplaySource
    plan: Plan
    traces: Mapping[str, Trace]

    def run(self, settings: ReplaySettings) -> Replay:
        """Return how the plan fares."""
        given_back = tuple(given_back_outcomes(self.question, self.plan, settings))
        about_them = tuple(given_back_notes(self.question, self.plan, settings))
        if not self.question.problem.demands:
            check_settings(settings)
            notes = (*about_them, *_job_notes(self.plan))
            return Replay(
                services=(), phases=(), pools=(), simulation=no_simulation(), notes=notes, given_back=given_back
            )
        scene, fleet = self._stage(settings)
        numbers = range(settings.n_replications)
        n_threads = min(settings.n_replications, settings.n_threads or os.cpu_count() or 1)
        notes = (*_notes(self.question, self.plan, scene, fleet, settings), *about_them)
        with ThreadPoolExecutor(max_workers=n_threads) as pool:  # the event loop does not hold the interpreter
            found = across_replications(
                list(pool.map(partial(self._replication, scene, fleet, settings, notes), numbers))
            )
        return replace(found, given_back=given_back)

    def _replication(
        self, scene: Scene, fleet: PlannedFleet, settings: ReplaySettings, notes: tuple[str, ...], number: int
    ) -> Replay:
        """Return one replication; number 0 plays the traffic as it is, others draw blocks of it by another seed."""
        seed = (
            settings.seed if number == 0 else int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
        )
        events = moved_events(settings.events, scene.origin_s)
        traffic = traffic_of(scene, fleet, seed, is_resampled=number > 0)
        changes = timeline(
            fleet.places,
            events,
            length_s=max(scene.end_s, float(traffic.arrival_s[-1])),
            scheduled=fleet.scheduled(),
            recovery=Recovery(start_up_s=self.source.start_up_s, spot_s=self.source.spot_recovery_s),
            rng=np.random.default_rng([seed, FAULT_STREAM]),
        )
        simulated = simulate(
            fleet.pools,
            traffic,
            fleet.router,
            seed=seed,
            is_exact=settings.is_exact,
            faults=[replace(fault, replica=fleet.seats.engines_of(fault.replica)[0]) for fault in changes.faults],
            down_at_start=[engine for each in changes.down_at_start for engine in fleet.seats.engines_of(each)],
        )
        simulation = fleet.seats.by_replica(simulated)
        records = simulation.records
        counts_from_s = scene.origin_s or WARM_UP_FRACTION * float(records.arrival_s[-1])
        counted = records.select(records.arrival_s >= counts_from_s)
        promised = {demand.service: objectives_in(self.question, demand.service) for demand in scene.demands}
        mine = {name: counted.select(counted.service == index) for index, name in enumerate(promised)}
        return Replay(
            services=tuple(service_outcome(name, objectives, mine[name]) for name, objectives in promised.items()),
            adapters=tuple(
                found
                for name, objectives in promised.items()
                if name in self.source.adapters
                for found in adapter_outcomes(name, objectives, fleet.adapter_names(name), mine[name])
            ),
            adapter_names=tuple(name for _, name in fleet.adapters),
            objectives=promised,
            phases=tuple(
                phases_of(
                    promised,
                    records,
                    events,
                    scene.stretches,
                    fleet.replicas.sum(axis=1).tolist(),
                    step_s=settings.phase_s,
                )
            ),
            pools=tuple(_pools(fleet, simulation, changes)),
            simulation=simulation,
            notes=notes,
            n_lost=changes.n_lost,
            origin_s=scene.origin_s,
            counts_from_s=counts_from_s,
        )

    def _stage(self, settings: ReplaySettings) -> tuple[Scene, PlannedFleet]:
        wanted = TrafficSettings(
            load=settings.load,
            n_requests=settings.n_requests,
            periods=settings.periods,
            process=settings.process,
            events=settings.events,
        )
        scene = scene_of(self.question, self.source, self.traces, wanted)
        fleet = planned_fleet(
            self.question.problem, self.plan, self.source.engine, scene.stretches, policy=settings.policy
        )
        return scene, fleet


def replay(
    plan: Plan,
    *,
    plan_path: Path,
    traces: Mapping[str, Trace] | None = None,
    settings: ReplaySettings | None = None,
) -> Replay:
    """Return how `plan` fares on its own traffic, or on that of `traces` by service.

    Raises
    ------
    InputError: if the plan has nothing to simulate, does not fit its request, or a trace is of no service of it.
    """
    return replay_of(question_of(plan, plan_path), plan, traces=traces, settings=settings)


def replay_of(
    question: Question,
    plan: Plan,
    *,
    traces: Mapping[str, Trace] | None = None,
    settings: ReplaySettings | None = None,
) -> Replay:
    """Return how `plan`, an answer to `question`, fares; see `replay`."""
    return prepare(question, plan, traces=traces).run(settings or ReplaySettings())


def prepare(question: Question, plan: Plan, *, traces: Mapping[str, Trace] | None = None) -> Prepared:
    """Return `plan`, an answer to `question`, ready to be replayed.

    Raises
    ------
    InputError: as `replay`.
    """
    services = [demand.service for demand in question.problem.demands]
    given_back = {choice.service for choice in plan.given_back}
    for name in given_back & set(traces or {}):
        raise InputError(
            f"{name} is given back in between: it is replayed on the half of its own trace that judged it.",
            hint=f"Leave the trace of {name} out.",
        )
    is_empty = not services and bool(given_back)
    if not is_empty and not any(item.service in services for item in plan.allocation):
        raise InputError("The plan rents nothing that serves requests: there is nothing to simulate.")
    if question.replay is None:
        raise InputError(
            "This plan has throughputs alone: nothing says how long an engine step takes.",
            hint="Plan a PlanRequest, whose models and GPUs are known.",
        )
    for name in traces or {}:
        if name not in services:
            raise InputError(f"The plan has no service {name!r}.", hint=f"There are: {', '.join(services)}.")
    return Prepared(question=question, source=question.replay, plan=plan, traces=traces or {})


def objectives_in(question: Question, service: str) -> Objectives:
    """Return what `service` promises to whom in a replay."""
    source = question.replay
    if source is None:
        return Objectives(parts=())
    numbers = {name: number for (mine, name), number in adapter_numbers(question.problem).items() if mine == service}
    own = source.adapters[service].slos if service in source.adapters else {}
    return objectives_of(source.slos[service], own, numbers)


def _pools(fleet: PlannedFleet, simulation: Simulation, changes: Timeline) -> Iterator[PoolOutcome]:
    """Yield how busy each pool is; draining counts as work and not as time that a replica serves."""
    records = simulation.records
    answered = records.is_answered
    ends = (records.arrival_s + records.e2e_s)[answered]
    served_s = np.array(changes.served_s(float(ends.max()) if len(ends) else 0.0))
    there = np.bincount(records.replica[answered], weights=records.e2e_s[answered], minlength=len(served_s))
    last = np.cumsum([item.replicas for item in fleet.allocation]).tolist()
    for item, end in zip(fleet.allocation, last, strict=True):
        mine = slice(end - item.replicas, end)
        total_s = float(served_s[mine].sum())
        yield PoolOutcome(
            name=f"{item.service} on {item.option}",
            replicas=item.replicas,
            utilization=min(1.0, float(simulation.busy_s[mine].sum()) / total_s) if total_s > 0 else 0.0,
            at_a_time=math.nan if item.role is not Role.BOTH else float(there[mine].sum()) / max(total_s, 1e-9),
            peak_kv_fraction=float(simulation.peak_kv_fraction[mine].max(initial=0.0)),
        )


def _notes(
    question: Question, plan: Plan, scene: Scene, fleet: PlannedFleet, settings: ReplaySettings
) -> Iterator[str]:
    """Yield what was replayed of the plan, and what was not."""
    horizon = question.problem.horizon
    yield from scene_notes(scene, None if horizon is None else horizon.step_s)
    yield from _job_notes(plan)
    if plan.unserved:
        yield "Requests that the plan leaves unserved are turned away at random, by the share of their size."
    for name, known in scene.adapters.items():
        own = f"; {len(known.traces)} of {len(known.numbers)} come as in their own traces" if known.traces else ""
        yield (
            f"{name}: each request is for an adapter, at random by their rates{own}. It goes to a replica that holds "
            "it, whose steps read the different adapters of their batch."
        )
    if any(item.role is Role.PREFILL for item in fleet.allocation):
        yield (
            "KV caches leave a prefill replica one after the other, at the rate of its network or of the slowest "
            "decode option's, whichever is less."
        )
    if question.problem.egress is not None:
        yield "Round trips of users in other regions are not added to the times."
    asks_catalog = any(isinstance(event, Reclaims) and event.per_s is None for event in settings.events)
    unknown = sorted({place.listing for place in fleet.places if place.market == SPOT and place.reclaims_per_s is None})
    if asks_catalog and unknown:
        yield f"Never reclaimed here, as it is not known how often they are: {', '.join(unknown)}."
    if any(math.isinf(event.end_s) for event in settings.events) and settings.n_replications == 1:
        yield "What happens at random happens once here; --replications shows what it may come to."


def _job_notes(plan: Plan) -> Iterator[str]:
    if plan.jobs:
        names = ", ".join(job.job for job in plan.jobs)
        yield (
            f"Work with a deadline ({names}) is not replayed: the services run alone, as if work beside their requests "
            "took nothing from them."
        )
