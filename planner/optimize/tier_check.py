"""Part of the independent check of a plan: what its replicas have ready of adapters fits, and is stated alike.

Sizes are added up from the adapters' own, and held to the slots and the host memory that the offers say; nothing of the
knapsack that chose them is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.domain.adapters import Isolation
from planner.errors import SolverLiedError
from planner.profilers.adapter_engines import flag_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.adapters import AdapterSlots, Tenancy
    from planner.domain.plan import AdapterHost, AdapterPlan, Plan, ReplicaTiers
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Demand

TOLERANCE = 1e-9
"""Relative, for bytes and values."""


def check_tiers(problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]) -> None:
    """Return if everything that replicas are said to have ready fits where it is, and what it needs is there, too.

    Plans in which nobody chose what is ready hold.

    Raises
    ------
    SolverLiedError: naming the replica or the adapter that does not hold.
    """
    tenancies = {tenancy.service: tenancy for tenancy in problem.tenancies}
    demands = {demand.service: demand for demand in problem.demands}
    for item in plan.adapters:
        if item.preload is None:
            continue
        tenancy = tenancies[item.service]
        hosts = {host.option: host for host in item.hosts}
        near: set[str] = set()
        for number, replica in enumerate(item.placement):
            option, name = by_key[item.service, replica.option], f"replica {number} of {item.service}"
            if replica.tiers is None or option.slots is None:
                _fail(f"nothing is said of what {name} has ready")
                continue
            own = tuple(held.adapter for held in replica.adapters)
            _check_replica(
                _Ready(
                    name=name,
                    own=own,
                    tiers=replica.tiers,
                    slots=option.slots,
                    host=hosts[replica.option],
                    sizes=tenancy.sizes_bytes,
                    able=_able(option, option.slots, tenancy, demands[item.service]),
                ),
                option,
            )
            near.update(own, replica.tiers.gpu, replica.tiers.host)
        _check_rest(item, set(tenancy.sizes_bytes), near)
        _check_allocation(item, plan)


def _fail(what: str) -> None:
    raise SolverLiedError(f"The plan does not hold: {what}.", hint="This is a bug in gpuplan.")


def _able(option: ServingOption, slots: AdapterSlots, tenancy: Tenancy, demand: Demand) -> set[str]:
    """Return the adapters whose requests a slot of `option` could serve, whatever their size."""
    rates = {index: float(rate) for index, rate in enumerate(option.throughput_rps)}
    missed = {bucket.group for index, bucket in enumerate(demand.buckets) if rates[index] <= 0}
    asked = {tenant.name for tenant in tenancy.tenants if tenant.group not in missed}
    return asked | {each.name for each in tenancy.standby if each.isolation is slots.isolation}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A replica, and what it is said to have."""

    name: str
    own: tuple[str, ...]
    """Adapters that it serves."""
    tiers: ReplicaTiers
    slots: AdapterSlots
    host: AdapterHost
    sizes: Mapping[str, float]
    able: set[str]
    """Adapters that it has slots for."""

    @property
    def all(self) -> tuple[str, ...]:
        """Adapters in slots or in host memory."""
        return (*self.own, *self.tiers.gpu, *self.tiers.host)

    def host_bytes(self, name: str) -> float:
        """Return the host memory that an adapter takes."""
        return self.sizes[name] + self.host.container_bytes


def _check_replica(ready: _Ready, option: ServingOption) -> None:
    """Nothing is twice anywhere, slots hold what is in them, and the memory what is in it with what is in slots."""
    in_slots = (*ready.own, *ready.tiers.gpu)
    if len(in_slots) > ready.slots.count or len(set(ready.all)) != len(ready.all):
        _fail(f"{ready.name} has {len(in_slots)} adapters in slots and {len(ready.tiers.host)} in host memory")
    if ready.slots.isolation is Isolation.DEDICATED:
        if ready.tiers.gpu or ready.tiers.host:
            _fail(f"{ready.name} has one adapter merged into its weights, and others ready")
        return
    if strangers := sorted({*ready.tiers.gpu, *ready.tiers.host} - ready.able):
        _fail(f"{ready.name} has {strangers[0]} ready, which it has no slot for")
    if any(ready.sizes[each] > ready.slots.bytes_each * (1 + TOLERANCE) for each in in_slots):
        _fail(f"{ready.name} has an adapter in a slot that is smaller")
    taken = sum(ready.host_bytes(each) for each in ready.all)
    stated, room = ready.tiers.host_bytes, ready.tiers.host_room_bytes
    if abs(taken - stated) > TOLERANCE * taken or taken > room * (1 + TOLERANCE):
        _fail(f"adapters of {ready.name} take {taken!r} bytes of host memory, and it says {stated!r} of {room!r}")
    if option.offer.ram_bytes is not None:
        part = option.offer.ram_bytes * option.gpus_per_replica / option.offer.gpus_per_instance
        # An engine keeps whom was asked for last: any of them, as many as it may.
        largest = sum(sorted(map(ready.host_bytes, ready.able), reverse=True)[: ready.host.held])
        if max(largest, room) > part * (1 + TOLERANCE):
            _fail(f"adapters of {ready.name} may take {largest!r} bytes of host memory, and it has {part!r}")
    _check_flags(ready, option)


def _check_flags(ready: _Ready, option: ServingOption) -> None:
    """The engine is started for as many adapters as are there, and as many slots of the rank that they are made for."""
    host, slots, n_held = ready.host, ready.slots, len(ready.all)
    if host.held < max(n_held, slots.count):
        _fail(f"{ready.name} has {n_held} adapters in host memory, and room for {host.held}")
    if host.rank != slots.rank:
        _fail(f"slots of {ready.name} are made for the rank {slots.rank}, and it says {host.rank}")
    # Processes on one copy of the weights have no flags, and neither has an engine of which none are known.
    engine = "" if option.config is None or slots.isolation is not Isolation.SHARED_PROCESS else option.config.engine
    found = flag_numbers(engine, host.engine_flags)
    if found is None or (found and found != {"slots": slots.count, "rank": slots.rank, "held": host.held}):
        _fail(
            f"{ready.name} has {slots.count} slots of rank {slots.rank} for {host.held} adapters, and starts with"
            f" {host.engine_flags!r}"
        )


def _check_allocation(item: AdapterPlan, plan: Plan) -> None:
    """The rows of the fleet say the same flags as the hosts."""
    flags = {host.option: host.engine_flags for host in item.hosts}
    for row in plan.allocation:
        if row.service == item.service and row.engine_flags != flags.get(row.option, row.engine_flags):
            _fail(f"{row.option} starts with {row.engine_flags!r}, and its replicas with {flags[row.option]!r}")


def _check_rest(item: AdapterPlan, known: set[str], near: set[str]) -> None:
    """Who is nowhere else is on disk, and who no slot has room for is among these."""
    preload = item.preload
    if preload is None:
        return
    if set(preload.on_disk) != known - near or len(preload.on_disk) != len(known - near):
        _fail(f"{len(preload.on_disk)} adapters of {item.service} are said to be on disk only, not {len(known - near)}")
    if not set(preload.unfit) <= set(preload.on_disk):
        _fail(f"an adapter of {item.service} has no room in any slot, and is in one")
    if preload.saved_s_per_s > preload.bound_s_per_s * (1 + TOLERANCE):
        _fail(f"what {item.service} has ready saves more than its bound")
