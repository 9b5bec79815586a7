"""What the replicas of a plan have ready beside the adapters that they serve: in spare slots, in host memory, on disk.

Requests may come for what a replica does not serve: for an adapter that nobody has asked for yet, or for one whose only
replica is lost. Which of them wait nearer than on disk is a knapsack (`planner.optimize.preload`): an adapter in host
memory saves what reading it takes less the copy to the GPU, and in a slot all of it; every adapter counts once, where
it saves most; what is in a slot is in host memory, too.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.domain.adapters import Isolation
from planner.domain.plan import AdapterPreload, PreloadMethod, ReplicaTiers
from planner.optimize.naming import option_keys
from planner.optimize.plan_check import verify_plan
from planner.optimize.preload import Artifact, Place, Shelves, Tier, best_preload, greedy_preload, relaxed_bound
from planner.optimize.settings import SolverSettings
from planner.planning.adapter_spot import away_fractions, spot_warnings
from planner.profilers.adapter_hosts import (
    GIGA,
    HOST_BYTES_PER_GPU,
    HOST_FRACTION,
    HostRoom,
    bytes_beside,
    disk_wait_s,
    host_room,
    host_wait_s,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.adapters import AdapterSlots, Tenancy
    from planner.domain.hardware import GpuSpec
    from planner.domain.plan import AdapterHost, AdapterPlan, AdapterReplica, Plan
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.optimize.preload import Preload
    from planner.planning.adapters import SlotKind

OUT_FRACTION = 0.01
"""Of the time that a replica is taken to be lost, in which its adapters are asked of the others; assumed. Of spot it is
the time that it is away, where that is known to be more."""
MOST_PAIRS = 1_000
"""Adapters times places, spare slots and host memories, up to which the integer programme is solved."""
WAIT_DIGITS = 6
"""Microseconds: far below what any time to load is known to."""
SETTINGS = SolverSettings(time_limit_s=1.0, relative_gap=1e-6)


def with_tiers(
    problem: FleetProblem,
    plan: Plan,
    *,
    kinds: Mapping[str, Sequence[SlotKind]],
    gpus: GpuCatalog,
    availability: Mapping[str, float] = MappingProxyType({}),
) -> Plan:
    """Return `plan` with what every replica with slots has ready, and engines that are started for it.

    Adapters that only spot holds are warned of.

    Parameters
    ----------
    kinds : the slots of each service with adapters.
    availability : by offer, the part of the time that a replica there runs; 1 where it is not known.

    Raises
    ------
    SolverLiedError: if what was chosen does not fit.
    """
    if not plan.adapters:
        return plan
    names = dict(zip(map(id, problem.options), option_keys(problem.options), strict=True))
    options = {(option.service, names[id(option)]): option for option in problem.options}
    tenancies = {tenancy.service: tenancy for tenancy in problem.tenancies}
    away = {item.service: away_fractions(plan, item, availability) for item in plan.adapters}
    items = tuple(
        _Service(problem, item, tenancies[item.service], options, gpus, away=away[item.service]).filled(
            kinds.get(item.service, ())
        )
        for item in plan.adapters
    )
    flags = {
        (item.service, old.option): (old.engine_flags, new.engine_flags)
        for item, filled in zip(plan.adapters, items, strict=True)
        for old, new in zip(item.hosts, filled.hosts, strict=True)
        if old.engine_flags
    }
    allocation = tuple(
        replace(row, engine_flags=row.engine_flags.replace(*flags[row.service, row.option]))
        if (row.service, row.option) in flags
        else row
        for row in plan.allocation
    )
    assumptions = (text for item in items for text in _assumptions(item, options, away[item.service]))
    found = replace(
        plan,
        adapters=items,
        allocation=allocation,
        assumptions=(*plan.assumptions, *assumptions),
        warnings=(*plan.warnings, *spot_warnings(plan, availability)),
    )
    verify_plan(problem, found)
    return found


def _assumptions(
    item: AdapterPlan, options: Mapping[tuple[str, str], ServingOption], away: Mapping[str, float]
) -> Iterator[str]:
    """Yield what is taken for granted of what replicas have ready."""
    hosts = [host for host in item.hosts if host.isolation is not Isolation.DEDICATED]
    if not hosts:
        return
    offers = {options[item.service, host.option].offer for host in hosts}
    unknown = ", ".join(sorted(offer.name for offer in offers if offer.ram_bytes is None))
    most_away = max(away.values(), default=0.0)
    on_spot = f" (one that only spot has while that is away, up to {most_away:.2%})" if most_away > 0 else ""
    memory = f" ({HOST_BYTES_PER_GPU / GIGA:g} GB per GPU where it is not known: {unknown})" if unknown else ""
    yield (
        f"{item.service}: adapters take at most {HOST_FRACTION:.0%} of a replica's part of the host memory{memory}, and"
        " every machine's disk has all of them. What is ready beside those that a replica serves is chosen for requests"
        f" that no plan expects: each replica's adapters are asked of others {OUT_FRACTION:.0%} of the time{on_spot},"
        " and one without requests, of which nothing is known, as if it were the rarest of them. Times to load are"
        " published figures and data sheets', not measured here (profiles/lora/serverless.csv)."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spot:
    """A replica with slots for several adapters."""

    number: int
    """Among the replicas of the service."""
    slots: AdapterSlots
    room: HostRoom
    gpu: GpuSpec
    own: tuple[str, ...]
    """Adapters that it serves."""
    able: frozenset[str]
    """Adapters that it could."""
    most_held: int
    """Adapters that its engine may keep in host memory, whichever they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """An adapter that may be asked of replicas that do not serve it."""

    label: str
    """Of its copy in host memory, among the artifacts; in their order."""
    name: str
    rate_rps: float
    spots: tuple[_Spot, ...]


class _Service:
    """One service of a plan, and what its replicas could have ready."""

    def __init__(
        self,
        problem: FleetProblem,
        item: AdapterPlan,
        tenancy: Tenancy,
        options: Mapping[tuple[str, str], ServingOption],
        gpus: GpuCatalog,
        *,
        away: Mapping[str, float],
    ) -> None:
        self.item, self.tenancy, self.gpus, self.away = item, tenancy, gpus, away
        self.options = {key: option for (service, key), option in options.items() if service == item.service}
        self.sizes = tenancy.sizes_bytes
        demand = next(demand for demand in problem.demands if demand.service == item.service)
        self.buckets: dict[int | None, list[int]] = defaultdict(list)
        for index, bucket in enumerate(demand.buckets):
            self.buckets[bucket.group].append(index)
        used = {replica.option for replica in item.placement}
        self.able = {key: self._able(self.options[key]) for key in sorted(used)}

    def filled(self, kinds: Sequence[SlotKind]) -> AdapterPlan:
        """Return the service's part of the plan with what its replicas have ready."""
        waiting = tuple(self._waiting())
        found, method = self._chosen(waiting)
        by_label = {each.label: each for each in waiting}
        where = defaultdict(list)
        for artifact, place in found.held:
            where[place].append(by_label[artifact.removeprefix(IN_SLOT)])
        spots = {spot.number: spot for spot in self.spots}
        placement = [
            replace(replica, tiers=self._tiers(spots.get(number), where))
            for number, replica in enumerate(self.item.placement)
        ]
        near = {name for replica in placement for name in _in_memory(replica)}
        return replace(
            self.item,
            placement=tuple(placement),
            hosts=tuple(self._host(host, placement, kinds) for host in self.item.hosts),
            preload=AdapterPreload(
                method=method,
                saved_s_per_s=found.saved_s_per_s,
                bound_s_per_s=found.saved_s_per_s if found.bound_s_per_s is None else found.bound_s_per_s,
                on_disk=tuple(name for name in self.sizes if name not in near),
                unfit=tuple(each.name for each in self.tenancy.standby if each.isolation is None),
                disk_bytes=sum(self.sizes.values()),
            ),
        )

    @cached_property
    def spots(self) -> tuple[_Spot, ...]:
        """The replicas with slots for several adapters."""
        return tuple(self._spots())

    def _spots(self) -> Iterator[_Spot]:
        mosts: dict[str, int] = {}
        for number, replica in enumerate(self.item.placement):
            option, able = self.options[replica.option], self.able[replica.option]
            if option.slots is None or option.slots.isolation is Isolation.DEDICATED:
                continue
            room = host_room(option.offer, option.gpus_per_replica)
            if replica.option not in mosts:
                mosts[replica.option] = self._most_held(option.slots, room, able)
            yield _Spot(
                number=number,
                slots=option.slots,
                room=room,
                gpu=self.gpus.get(option.offer.gpu),
                own=tuple(held.adapter for held in replica.adapters),
                able=able,
                most_held=mosts[replica.option],
            )

    def _most_held(self, slots: AdapterSlots, room: HostRoom, able: Iterable[str]) -> int:
        """Return how many adapters an engine may keep, were they the largest: it keeps whom was asked for last."""
        beside, left, count = bytes_beside(slots.isolation), room.most_bytes, 0
        for size in sorted((self.sizes[name] + beside for name in able), reverse=True):
            left -= size
            if left < 0:
                break
            count += 1
        return max(count, slots.count)

    def _able(self, option: ServingOption) -> frozenset[str]:
        """Return the adapters that slots of `option` have room for, and that it serves in all of their sizes."""
        slots = option.slots
        if slots is None:
            return frozenset()
        is_served = option.throughput_rps > 0
        groups = {group for group, buckets in self.buckets.items() if is_served[buckets].all()}
        asked = (each.name for each in self.tenancy.tenants if each.group in groups)
        idle = (each.name for each in self.tenancy.standby if each.isolation is slots.isolation)
        return frozenset([*asked, *idle])

    def _waiting(self) -> Iterator[_Waiting]:
        """Yield who may be asked for where it is not served, and how often: who is on one replica only, and who idles.

        Nothing is known of the latter: each is taken for the rarest adapter with requests.
        """
        at = defaultdict(list)
        for number, replica in enumerate(self.item.placement):
            for held in replica.adapters:
                at[held.adapter].append(number)
        asked = [
            (each.name, max(OUT_FRACTION, self.away.get(each.name, 0.0)) * each.rate_rps)
            for each in self.tenancy.tenants
            if len(at[each.name]) == 1
        ]
        least = OUT_FRACTION * min(each.rate_rps for each in self.tenancy.tenants)
        idle = ((each.name, least) for each in self.tenancy.standby)
        for index, (name, rate) in enumerate((*asked, *idle)):
            spots = tuple(spot for spot in self.spots if name in spot.able and spot.number not in at[name])
            if spots:
                yield _Waiting(label=f"{index:06d}", name=name, rate_rps=rate, spots=spots)

    # --- the knapsack ------------------------------------------------------------------------------------------------

    def _chosen(self, waiting: Sequence[_Waiting]) -> tuple[Preload, PreloadMethod]:
        places = [place for spot in self.spots for place in self._places(spot)]
        if 2 * sum(len(each.spots) for each in waiting) <= MOST_PAIRS:
            artifacts = [artifact for each in waiting for artifact in self._artifacts(each, each.spots)]
            return best_preload(artifacts, places, settings=SETTINGS), PreloadMethod.PROGRAMME
        artifacts = [artifact for each, spot in self._spread(waiting) for artifact in self._artifacts(each, [spot])]
        found = greedy_preload(artifacts, places)
        # Another replica may save more of an adapter than the one that it was given.
        free = [artifact for each in waiting for artifact in self._artifacts(each, each.spots)]
        bound = max(found.saved_s_per_s, relaxed_bound(Shelves(free, places)))
        return replace(found, bound_s_per_s=bound), PreloadMethod.DENSITY

    def _places(self, spot: _Spot) -> tuple[Place, Place]:
        """Return the slots of a replica that are left, and its host memory that is."""
        beside = bytes_beside(spot.slots.isolation)
        taken = sum(self.sizes[name] + beside for name in spot.own)
        n_free = spot.slots.count - len(spot.own)
        return (
            Place(
                name=f"{Tier.GPU} {spot.number}",
                tier=Tier.GPU,
                capacity_bytes=n_free * spot.slots.bytes_each,
                machine=str(spot.number),
                most=n_free,
            ),
            Place(
                name=f"{Tier.HOST} {spot.number}",
                tier=Tier.HOST,
                capacity_bytes=max(0.0, spot.room.planned_bytes - taken),
                machine=str(spot.number),
                most=spot.most_held - len(spot.own),
            ),
        )

    def _artifacts(self, each: _Waiting, spots: Iterable[_Spot]) -> tuple[Artifact, Artifact]:
        """Return an adapter in host memory, and in a slot beside that, which saves all of what it waits on disk."""
        spots = list(spots)
        isolation, size = spots[0].slots.isolation, self.sizes[each.name]
        by_gpu = {spot.gpu.name: spot.gpu for spot in spots}
        disk_s = {name: disk_wait_s(isolation, gpu, size) for name, gpu in by_gpu.items()}
        less_s = {name: disk_s[name] - host_wait_s(isolation, gpu, size) for name, gpu in by_gpu.items()}

        def at(tier: Tier, saved_s: Mapping[str, float]) -> dict[str, float]:
            return {f"{tier} {spot.number}": saved_s[spot.gpu.name] for spot in spots}

        in_host, in_slot = at(Tier.HOST, less_s), at(Tier.GPU, disk_s)
        return (
            Artifact(
                name=each.label,
                size_bytes=size + bytes_beside(isolation),
                rate_rps=each.rate_rps,
                saved_s={Tier.HOST: max(in_host.values())},
                saved_at_s=in_host,
                places=frozenset(in_host),
                credit=each.label,
            ),
            Artifact(
                name=f"{IN_SLOT}{each.label}",
                size_bytes=max(spot.slots.bytes_each for spot in spots),
                rate_rps=each.rate_rps,
                saved_s={Tier.GPU: max(in_slot.values())},
                saved_at_s=in_slot,
                requires=(each.label,),
                places=frozenset(in_slot),
                credit=each.label,
            ),
        )

    def _spread(self, waiting: Sequence[_Waiting]) -> Iterator[tuple[_Waiting, _Spot]]:
        """Yield one replica for each: the one with the most room left, the most valuable for their size first."""
        left = {spot.number: self._places(spot)[1].capacity_bytes for spot in self.spots}
        for each in sorted(waiting, key=lambda each: (-each.rate_rps / max(self.sizes[each.name], 1.0), each.label)):
            spot = max(each.spots, key=lambda spot: (left[spot.number], -spot.number))
            left[spot.number] -= self.sizes[each.name] + bytes_beside(spot.slots.isolation)
            yield each, spot

    # --- what is told ------------------------------------------------------------------------------------------------

    def _tiers(self, spot: _Spot | None, where: Mapping[str, Sequence[_Waiting]]) -> ReplicaTiers:
        """Return what a replica has ready, what is asked for most first; nothing where its adapter is merged."""
        if spot is None:
            return ReplicaTiers(gpu=(), host=(), host_bytes=0.0, host_room_bytes=0.0)

        def at(tier: Tier) -> list[str]:
            ranked = sorted(where.get(f"{tier} {spot.number}", ()), key=lambda each: (-each.rate_rps, each.label))
            return [each.name for each in ranked]

        in_slots, held = at(Tier.GPU), at(Tier.HOST)
        beside = bytes_beside(spot.slots.isolation)
        taken = sum(self.sizes[name] + beside for name in (*spot.own, *held))
        return ReplicaTiers(
            gpu=tuple(in_slots),
            host=tuple(name for name in held if name not in set(in_slots)),
            host_bytes=taken,
            host_room_bytes=max(spot.room.planned_bytes, taken),
        )

    def _host(self, host: AdapterHost, placement: Sequence[AdapterReplica], kinds: Sequence[SlotKind]) -> AdapterHost:
        """Return the option's row with the number of adapters that any of its replicas has in host memory."""
        if host.isolation is Isolation.DEDICATED:
            return host
        held = max(len(list(_in_memory(replica))) for replica in placement if replica.option == host.option)
        held = max(held, host.slots)
        gpu = self.gpus.get(self.options[host.option].offer.gpu)
        largest = max(self.sizes[name] for name in self.able[host.option])
        flags = next((kind.flags(host.slots, held=held) for kind in kinds if kind.isolation is host.isolation), "")
        return replace(
            host,
            engine_flags=flags,
            held=held,
            container_bytes=bytes_beside(host.isolation),
            host_wait_s=round(host_wait_s(host.isolation, gpu, largest), WAIT_DIGITS),
            disk_wait_s=round(disk_wait_s(host.isolation, gpu, largest), WAIT_DIGITS),
        )


IN_SLOT = "slot of "
"""Before the name of an adapter: the artifact that it is in a slot, beside its copy in host memory."""


def _in_memory(replica: AdapterReplica) -> Iterator[str]:
    """Yield the adapters that a replica has in slots or in host memory."""
    yield from (held.adapter for held in replica.adapters)
    if replica.tiers is not None:
        yield from replica.tiers.gpu
        yield from replica.tiers.host
