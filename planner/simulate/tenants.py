"""Adapters in a simulated fleet: which engines there are, whose requests each may have, and that it kept to that.

Replicas of one option that hold the same adapters are one pool: whoever of them is least loaded serves. Where processes
share the weights of a replica, each is an engine of its own and takes turns on the GPUs with the others.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from planner.domain.adapters import AdapterSlots, Tenancy, Tenant
    from planner.domain.plan import AdapterReplica, Allocation, HostedAdapter, Plan
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Demand
    from planner.simulate.run import Simulation
    from planner.simulate.steps import Floats

NO_ADAPTER = -1
FULL = 1 + 1e-9
"""Part of a replica's KV memory that may be given out, with room for rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePool:
    """Equal engines that hold the same adapters."""

    item: int
    """Position in the plan's allocation."""
    replicas: tuple[int, ...]
    """Positions among the replicas of that item: an engine on each."""
    rates: Mapping[str, Floats] | None = None
    """Adapter -> req/s of it that the plan sends here, all engines together, by size as `sizes_of` has them; None where
    requests are for none."""
    gpu_share: float = 1.0
    """Part of its replica's time that the plan gives an engine."""


def engine_pools(
    plan: Plan, allocation: Sequence[Allocation], options: Sequence[ServingOption]
) -> tuple[EnginePool, ...]:
    """Return the engines of every item of the plan's allocation; those of one replica stand side by side."""
    placed = {item.service: item.placement for item in plan.adapters}
    found: list[EnginePool] = []
    for index, (item, option) in enumerate(zip(allocation, options, strict=True)):
        if item.service not in placed or option.slots is None:
            found.append(EnginePool(item=index, replicas=tuple(range(item.replicas))))
            continue
        mine = [replica for replica in placed[item.service] if replica.option == item.option]
        if option.slots.isolation is Isolation.SHARED_BACKBONE:
            found += _processes(index, mine, option.slots)
        else:
            found += _engines(index, mine)
    return tuple(found)


def _engines(item: int, replicas: Sequence[AdapterReplica]) -> Iterator[EnginePool]:
    """Yield pools of one engine for each replica."""
    alike: dict[frozenset[str], list[int]] = {}
    for number, replica in enumerate(replicas):
        alike.setdefault(frozenset(hosted.adapter for hosted in replica.adapters), []).append(number)
    for numbers in alike.values():
        rates: dict[str, Floats] = {}
        for number in numbers:
            for hosted in replicas[number].adapters:
                rates[hosted.adapter] = rates.get(hosted.adapter, 0.0) + _by_size(hosted)
        yield EnginePool(item=item, replicas=tuple(numbers), rates=rates)


def _by_size(hosted: HostedAdapter) -> Floats:
    return np.array(hosted.by_size_rps or (hosted.rate_rps,))


def _processes(item: int, replicas: Sequence[AdapterReplica], slots: AdapterSlots) -> Iterator[EnginePool]:
    """Yield a process for each adapter of each replica."""
    for number, replica in enumerate(replicas):
        for hosted in replica.adapters:
            rates = {hosted.adapter: _by_size(hosted)}
            yield EnginePool(item=item, replicas=(number,), rates=rates, gpu_share=slots.largest_load)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """Which replica of the plan each engine is on, and which adapters each replica holds."""

    replica: NDArray[np.int64]
    """(engines,): replica, counted through the plan's allocation."""
    n_replicas: int
    holds: NDArray[np.bool_]
    """(replicas, adapters): by the plan's placement."""

    def engines_of(self, replica: int) -> list[int]:
        """Return the engines on a replica."""
        return [int(engine) for engine in np.flatnonzero(self.replica == replica)]

    def by_replica(self, simulation: Simulation) -> Simulation:
        """Return the same with the plan's replicas in place of engines: busy while one is, with the fullest's memory.

        Raises
        ------
        RuntimeError: if a request was served where its adapter is not, or memory was given out that is not there.
        """
        records = simulation.records
        if simulation.peak_kv_fraction.max(initial=0.0) > FULL:
            msg = f"{simulation.peak_kv_fraction.max():.6f} of a replica's KV memory was given out"
            raise RuntimeError(msg)
        served = np.where(records.replica >= 0, self.replica[records.replica], NO_ADAPTER)
        _check_holdings(self.holds, served, records.adapter)
        served.flags.writeable = False

        def total(values: Floats) -> Floats:
            found: Floats = np.bincount(self.replica, weights=values, minlength=self.n_replicas).astype(np.float64)
            return found

        peaks = np.zeros(self.n_replicas)
        np.maximum.at(peaks, self.replica, simulation.peak_kv_fraction)
        adapters = np.bincount(self.replica, weights=simulation.peak_adapters, minlength=self.n_replicas)
        return replace(
            simulation,
            records=replace(records, replica=served),
            utilization=total(simulation.utilization),
            busy_s=total(simulation.busy_s),
            peak_kv_fraction=peaks,
            peak_adapters=adapters.astype(np.int64),
        )


def _check_holdings(holds: NDArray[np.bool_], replica: NDArray[np.int64], adapter: NDArray[np.int64]) -> None:
    """Return if every request for an adapter that has a replica has one which holds the adapter."""
    asked = (replica >= 0) & (adapter >= 0)
    wrong = np.flatnonzero(asked & ~holds[replica * asked, adapter * asked]) if holds.size else np.flatnonzero(asked)
    if len(wrong):
        first = int(wrong[0])
        msg = (
            f"request {first} is for adapter {int(adapter[first])} and was sent to replica {int(replica[first])}, "
            "which does not hold it"
        )
        raise RuntimeError(msg)


def seats_of(
    plan: Plan, allocation: Sequence[Allocation], pools: Sequence[EnginePool], numbers: Mapping[tuple[str, str], int]
) -> Seats:
    """Return who sits where; `numbers` are those of the adapters, by service and name."""
    first = np.concatenate([[0], np.cumsum([item.replicas for item in allocation])]).astype(np.int64)
    seats = [int(first[pool.item]) + number for pool in pools for number in pool.replicas]
    holds = np.zeros((int(first[-1]), len(numbers)), dtype=np.bool_)
    items = {(item.service, item.option): index for index, item in enumerate(allocation)}
    for placed in plan.adapters:
        counts: dict[str, int] = defaultdict(int)
        for replica in placed.placement:
            row = int(first[items[placed.service, replica.option]]) + counts[replica.option]
            counts[replica.option] += 1
            holds[row, [numbers[placed.service, hosted.adapter] for hosted in replica.adapters]] = True
    return Seats(replica=np.array(seats, dtype=np.int64), n_replicas=int(first[-1]), holds=holds)


def adapter_numbers(problem: FleetProblem) -> dict[tuple[str, str], int]:
    """Return the number of every adapter with requests, by service and name."""
    names = [(tenancy.service, tenant.name) for tenancy in problem.tenancies for tenant in tenancy.tenants]
    return {name: number for number, name in enumerate(names)}


def tenants_of(tenancies: Sequence[Tenancy], service: str) -> tuple[Tenant, ...]:
    """Return the adapters of a service, () where it has none."""
    return next((tenancy.tenants for tenancy in tenancies if tenancy.service == service), ())


def sizes_of(demand: Demand) -> dict[int | None, tuple[int, ...]]:
    """Return by group of adapters the positions of its requests in the buckets of `demand`, one for each size."""
    found: dict[int | None, list[int]] = defaultdict(list)
    for position, bucket in enumerate(demand.buckets):
        found[bucket.group].append(position)
    return {group: tuple(positions) for group, positions in found.items()}
