"""The adapters of a service, with everything read that they name, and what replicas with room for them serve."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapter_groups import BANDS_PER_DECADE, group_adapters
from planner.domain.adapters import (
    AdapterSlots,
    Isolation,
    Standby,
    Tenancy,
    Tenant,
    adapter_bytes,
)
from planner.domain.provenance import ProvenanceKind
from planner.domain.workload import Bucket, Demand
from planner.errors import InputError
from planner.files.adapters_csv import read_adapters
from planner.planning.adapter_sizes import SizeClass, size_classes
from planner.planning.adapter_slos import slo_classes
from planner.planning.located import at, inside
from planner.profilers.adapter_engines import adapter_flags, slot_shape
from planner.profilers.adapter_hosts import bytes_beside, host_room
from planner.profilers.adapters import AdapterRoom
from planner.units import format_bytes
from planner.workload.rates import mean_rate_rps
from planner.workload.read import read_trace, resolve_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from planner.domain.adapter_groups import AdapterGroup
    from planner.domain.adapters import Adapter, ReplicaBytes
    from planner.domain.hardware import Offer
    from planner.domain.model import ModelArchitecture
    from planner.domain.provenance import Provenance
    from planner.domain.slo import Slo
    from planner.domain.workload import Trace
    from planner.files.request import PlanRequest
    from planner.files.request.services import Service
    from planner.profilers.adapter_engines import SlotShape
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.options import OptionProfile

ALONE = 16
"""The busiest adapters, which are groups of their own: they decide how many replicas there are."""
RATE_TOLERANCE = 1e-3
"""Relative: how far a workload's rate may be from the sum of its adapters', which is often rounded."""
CONTEXT_BYTES = 0.5e9
"""Of one process on a GPU: CUDA context and workspace. Assumed, as in ServerlessLoRA's set-up (arXiv 2505.14468)."""
FEWEST_SHARED = 2
MOST_SLOS = 6
"""Objectives of adapters that are told apart; with more, like ones are put together."""
MOST_GROUPS = 100
"""Groups of adapters; with more, rates that differ by larger factors are one group's."""
ADAPTER_TIME = "adapter_overhead_s"
"""Parameter of the estimator: what adapters add to a step's time, beside reading them, in each layer."""
MOST_BUCKETS = 4000
"""Groups of adapters times sizes of requests that a problem has; sizes are put together until it has no more."""
_WORST_FIRST = tuple(reversed(ProvenanceKind))


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotKind:
    """Slots of one service for adapters that share in one way."""

    isolation: Isolation
    adapters: int
    """That may use them."""
    shape: SlotShape
    engine: str

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of slots per replica that compete: 2, 4, 8, ... and as many as there are adapters."""
        doubled = [2**power for power in range(1, max(self.adapters - 1, 1).bit_length())]
        return tuple(dict.fromkeys([*(count for count in doubled if count < self.adapters), self.adapters]))

    def slots(self, count: int, *, tensor_parallel: int = 1) -> AdapterSlots:
        """Return `count` slots per replica."""
        return AdapterSlots(
            count=count,
            bytes_each=self.shape.bytes_over(tensor_parallel),
            isolation=self.isolation,
            rank=self.shape.rank,
            engine_flags=self.flags(count, held=count),
        )

    def flags(self, count: int, *, held: int) -> str:
        """Return how an engine is started for `count` slots and so many adapters in host memory; "" for processes."""
        if self.isolation is not Isolation.SHARED_PROCESS:
            return ""
        return adapter_flags(self.engine, slots=count, rank=self.shape.rank, held=held)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAdapters:
    """The adapters of a service, grouped, and what is asked of each group."""

    groups: tuple[AdapterGroup, ...]
    tenancy: Tenancy
    demand: Demand
    """A bucket for each group and each class of sizes, group by group."""
    sizes: Demand
    """What the service's workload says: the sizes of the requests of every group."""
    classes: tuple[SizeClass, ...]
    """Of these sizes, which are routed apart."""
    kinds: tuple[SlotKind, ...]
    files: tuple[str, ...]
    """Files that the adapters were read from, as the request names them."""
    own_slos: Mapping[str, tuple[Slo, ...]] = field(default_factory=dict)
    """The objectives of the adapters that have their own, by name."""
    loosest: Mapping[tuple[Slo, ...], tuple[Slo, ...]] = field(default_factory=dict)
    """By the objectives of a group, the strictest of its adapters': the loosest of them."""
    traces: Mapping[str, Trace] = field(default_factory=dict)
    """By adapter, where it has one of its own."""

    @property
    def is_exact(self) -> bool:
        """Whether no sizes and no objectives are put together."""
        are_same = all(strict == loose for strict, loose in self.loosest.items())
        return are_same and all(len(each.positions) == 1 for each in self.classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """One configuration with one number of slots, for every bucket of the demand; arrays of shape (buckets,)."""

    slots: AdapterSlots
    throughput_rps: NDArray[np.float64]
    provenance: tuple[Provenance, ...]
    limiting: tuple[str, ...]
    profile: OptionProfile
    loose_rps: NDArray[np.float64] | None
    """What it serves of each bucket were all its requests as cheap as the cheapest; None where they are all alike."""


def check_adapter_request(request: PlanRequest) -> None:
    """Refuse what a request asks for together with adapters and no plan can give.

    Raises
    ------
    InputError: naming the part of the request.
    """
    for index, service in enumerate(request.services):
        if service.adapters is None:
            continue
        asked = {
            "horizon": (
                request.horizon is not None,
                "a horizon: where they are would have to change by the hour",
                "Plan each period's rates in a request of its own, from the one before with --current.",
            ),
            "robust": (
                request.robust is not None,
                "scenarios: what is asked of each adapter in one is not known",
                "Leave robust out, and raise constraints.headroom.",
            ),
            "deferrable": (
                bool(request.deferrable),
                "deferrable work: what an adapter's replica has left is not modelled",
                "Plan the work in a request of its own.",
            ),
            f"services[{index}].disaggregate": (
                service.disaggregate != "never",
                "disaggregation: what they cost a prefill replica is not modelled",
                "Leave disaggregate out.",
            ),
        }
        for part, (is_asked, what, instead) in asked.items():
            if is_asked:
                raise InputError(
                    f"{service.name} has adapters, which are not planned together with {what}.",
                    hint=instead,
                    where=at(part),
                )


def read_service_adapters(
    service: Service, index: int, *, base_dir: Path
) -> tuple[tuple[Adapter, ...], dict[str, Trace]]:
    """Return the adapters of `service`, number `index` of the request, with the rates of their traces, and the traces.

    Raises
    ------
    InputError: if the list, or a trace that an adapter names, is missing or wrong.
    """
    choice = service.adapters
    if choice is None:
        return (), {}
    with inside(f"services[{index}].adapters"):
        listed = choice.listed()
        if choice.file is not None:
            listed = read_adapters(base_dir / choice.file, isolation=choice.isolation)
        traces = {
            adapter.name: read_trace(resolve_trace(adapter.trace, base_dir=base_dir))
            for adapter in listed
            if adapter.trace is not None
        }
        return tuple(_with_rate(adapter, traces.get(adapter.name)) for adapter in listed), traces


def _with_rate(adapter: Adapter, trace: Trace | None) -> Adapter:
    if trace is None:
        return adapter
    rate = mean_rate_rps(trace)
    if rate is None:
        raise InputError(
            f"The trace {adapter.trace} of adapter {adapter.name!r} has no duration, so no rate.", hint="Give a rate."
        )
    return replace(adapter, rate_rps=rate, trace=None)


def with_sum_of_rates(service: Service, index: int, adapters: Sequence[Adapter]) -> Service:
    """Return `service` with the sum of its adapters' rates for that of its workload.

    Raises
    ------
    InputError: if the workload states another one, or nothing is asked of any adapter.
    """
    total = math.fsum(adapter.rate_rps or 0.0 for adapter in adapters)
    stated = service.workload.rate
    if total <= 0:
        raise InputError(
            f"Nothing is asked of any of the {len(adapters)} adapters of {service.name}.",
            hint="Give one a rate above 0.",
            where=at(f"services[{index}].adapters"),
        )
    if stated is not None and abs(stated - total) > RATE_TOLERANCE * total:
        raise InputError(
            f"The workload of {service.name} has {stated:g} req/s, and its adapters together {total:g} req/s.",
            hint="Leave the workload's rate out: the adapters have it.",
            where=at(f"services[{index}].workload.rate"),
        )
    return service.model_copy(update={"workload": service.workload.model_copy(update={"rate": total})})


def prepare_adapters(
    service: Service, model: ModelArchitecture, adapters: Sequence[Adapter], sizes: Demand
) -> ServiceAdapters:
    """Return the adapters in groups, with what they weigh and what is asked of them.

    Where `sizes` is of a peak, every adapter is asked for so many times as often as on average.

    Raises
    ------
    InputError: if the model has not the modules that an adapter changes, or the engine no room for its rank.
    """
    asked = _at_peak([adapter for adapter in adapters if adapter.rate_rps], service, sizes)
    idle = [adapter for adapter in adapters if not adapter.rate_rps]
    by_slos = slo_classes(asked, MOST_SLOS)
    groups = _grouped([replace(each, slos=by_slos[each.slos].strictest) if each.slos else each for each in asked])
    by_name = {adapter.name: adapter for adapter in asked}
    tenants = tuple(
        Tenant(
            name=name,
            rate_rps=by_name[name].rate_rps or 0.0,
            memory_bytes=adapter_bytes(model, by_name[name]),
            group=index,
            isolation=by_name[name].isolation,
        )
        for index, group in enumerate(groups)
        for name in group.names
    )
    kinds = tuple(_kinds(service, model, asked))
    classes = size_classes(sizes, MOST_BUCKETS // len(groups))
    named = [adapter.trace for adapter in (service.adapters.listed() if service.adapters else ())]
    files = [service.adapters.file if service.adapters else None, *named]
    return ServiceAdapters(
        groups=groups,
        tenancy=Tenancy(
            service=service.name,
            tenants=tenants,
            idle=tuple(adapter.name for adapter in idle),
            standby=tuple(_standby(model, adapter, kinds) for adapter in idle),
        ),
        demand=_demand(groups, sizes, classes),
        sizes=sizes,
        classes=classes,
        kinds=kinds,
        own_slos={adapter.name: adapter.slos for adapter in asked if adapter.slos},
        loosest={each.strictest: each.loosest for each in by_slos.values()},
        files=tuple(name for name in files if name is not None and ":" not in name),
    )


def _at_peak(adapters: Sequence[Adapter], service: Service, sizes: Demand) -> list[Adapter]:
    """Return the adapters with their rates at the service's peak, where one is asked for."""
    if service.workload.peak is None:
        return list(adapters)
    times = sizes.total_rate_rps / math.fsum(adapter.rate_rps or 0.0 for adapter in adapters)
    return [replace(adapter, rate_rps=(adapter.rate_rps or 0.0) * times) for adapter in adapters]


def _grouped(adapters: Sequence[Adapter]) -> tuple[AdapterGroup, ...]:
    """Return the adapters in groups, of wider bands of rates where there would be too many."""
    alike = _alike_in_size(adapters)
    for bands in range(BANDS_PER_DECADE, 0, -1):
        groups = group_adapters(alike, n_alone=ALONE, bands_per_decade=bands)
        if len(groups) <= MOST_GROUPS:
            break
    return groups


def _alike_in_size(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters as large as the largest of them: every slot has room for it, so sizes tell nobody apart."""
    rank = max(adapter.rank for adapter in adapters)
    modules = tuple(sorted({module for adapter in adapters for module in adapter.target_modules}))
    return [replace(adapter, rank=rank, target_modules=modules) for adapter in adapters]


def _standby(model: ModelArchitecture, adapter: Adapter, kinds: Sequence[SlotKind]) -> Standby:
    has_room = any(kind.isolation is adapter.isolation and kind.shape.fits(model, adapter) for kind in kinds)
    size = adapter_bytes(model, adapter)
    return Standby(name=adapter.name, memory_bytes=size, isolation=adapter.isolation if has_room else None)


def _kinds(service: Service, model: ModelArchitecture, adapters: Sequence[Adapter]) -> Iterator[SlotKind]:
    """Yield the ways of sharing that several adapters may use; every slot has room for the largest of them."""
    for isolation in (Isolation.SHARED_PROCESS, Isolation.SHARED_BACKBONE):
        mine = [adapter for adapter in adapters if adapter.isolation is isolation]
        if len(mine) < FEWEST_SHARED:
            continue
        engine = service.engine.name
        has_slots = isolation is Isolation.SHARED_PROCESS
        yield SlotKind(
            isolation=isolation,
            adapters=len(mine),
            shape=slot_shape(model, mine, engine=engine if has_slots else None),
            engine=engine,
        )


def _demand(groups: Sequence[AdapterGroup], sizes: Demand, classes: Sequence[SizeClass]) -> Demand:
    """Return a bucket for each group and class of sizes: all groups have the workload's sizes."""
    total = sizes.total_rate_rps

    def mean(members: Sequence[Bucket], of: Callable[[Bucket], float | None]) -> float | None:
        values = [(bucket.rate_rps, of(bucket)) for bucket in members]
        rate = sum(rate for rate, _ in values)
        return None if any(value is None for _, value in values) else sum(r * (v or 0.0) for r, v in values) / rate

    def bucket(index: int, group: AdapterGroup, column: int, each: SizeClass) -> Bucket:
        members = [sizes.buckets[position] for position in each.positions]
        return Bucket(
            row=index,
            column=column,
            group=index,
            rate_rps=group.total_rate_rps * sum(member.rate_rps for member in members) / total,
            input_range=each.input_range,
            output_range=each.output_range,
            input_tokens=mean(members, lambda bucket: bucket.input_tokens),
            output_tokens=mean(members, lambda bucket: bucket.output_tokens),
        )

    buckets = tuple(
        bucket(index, group, column, each) for index, group in enumerate(groups) for column, each in enumerate(classes)
    )
    count = sum(group.count for group in groups)
    basis = f"{count} adapters in {len(groups)} groups, sizes: {sizes.basis}" if sizes.basis else f"{count} adapters"
    return Demand(service=sizes.service, buckets=buckets, basis=basis, warnings=sizes.warnings)


def hostings(
    adapters: ServiceAdapters,
    slos: Sequence[Slo],
    profile_of: Callable[..., OptionProfile],
    beside_of: Callable[[NDArray[np.float64]], ReplicaBytes],
    *,
    tensor_parallel: int,
) -> Iterator[Hosting]:
    """Yield one adapter per replica, and every number of slots that leaves room to serve anybody.

    The requests of a class of sizes come together, in the mix of the workload: with the part p[b] of the class in size
    bucket b, a replica serves 1 / sum_b p[b] / X[b] of them.

    Parameters
    ----------
    profile_of : objectives, and optionally the room for adapters -> the profile of a configuration for every size.
    beside_of : requests under way of every size -> what a replica of it holds beside its adapters.
    """
    merged = AdapterSlots(count=1, bytes_each=0.0, isolation=Isolation.DEDICATED)
    alone = _hosting(adapters, merged, slos, profile_of, isolation=None, beside_of=beside_of)
    yield alone
    if not alone.throughput_rps.any():
        return
    for kind in adapters.kinds:
        for count in kind.counts:
            slots = kind.slots(count, tensor_parallel=tensor_parallel)
            with_room = partial(profile_of, room=room_of(slots))
            found = _hosting(adapters, slots, slos, with_room, isolation=kind.isolation, beside_of=beside_of)
            if not found.throughput_rps.any():
                break  # more of them leave even less room
            yield found


def has_host_room(adapters: ServiceAdapters, slots: AdapterSlots, offer: Offer, n_gpus: int) -> bool:
    """Return whether the host memory of a replica has room for what is in its slots, as far as that is known."""
    room = host_room(offer, n_gpus)
    if slots.isolation is Isolation.DEDICATED or not room.is_stated:
        return True
    largest = max(tenant.memory_bytes for tenant in adapters.tenancy.tenants)
    return slots.count * (largest + bytes_beside(slots.isolation)) <= room.planned_bytes


def room_of(slots: AdapterSlots | None) -> AdapterRoom | None:
    """Return what the adapters of a replica take of it; None where it has no room for any, or one is merged."""
    if slots is None or slots.isolation is Isolation.DEDICATED:
        return None
    return AdapterRoom(
        count=slots.count, bytes_each=slots.bytes_each, isolation=slots.isolation, context_bytes=CONTEXT_BYTES
    )


def _hosting(
    adapters: ServiceAdapters,
    slots: AdapterSlots,
    slos: Sequence[Slo],
    profile_of: Callable[[Sequence[Slo]], OptionProfile],
    *,
    isolation: Isolation | None,
    beside_of: Callable[[NDArray[np.float64]], ReplicaBytes],
) -> Hosting:
    """Return what `slots` serve of each bucket; groups that share in another way than `isolation` get nothing."""
    profiles: dict[tuple[Slo, ...], OptionProfile] = {}
    served: dict[tuple[Slo, ...], _Served] = {}
    most: dict[tuple[Slo, ...], NDArray[np.float64]] = {}
    throughput: list[NDArray[np.float64]] = []
    loose: list[NDArray[np.float64]] = []
    provenance: list[Provenance] = []
    limiting: list[str] = []
    for group in adapters.groups:
        met = group.slos or tuple(slos)
        if met not in profiles:
            profiles[met] = profile_of(met)
            served[met] = _served(adapters, profiles[met])
        here = served[met]
        may_use = isolation in {None, group.isolation}
        throughput.append(here.throughput_rps if may_use else np.zeros(len(adapters.classes)))
        if not adapters.is_exact:
            loosest = adapters.loosest.get(group.slos, met)
            if loosest not in most:
                most[loosest] = _most_served(adapters, profile_of(loosest))
            loose.append(np.maximum(most[loosest], here.throughput_rps) if may_use else throughput[-1])
        provenance += here.provenance
        limiting += here.limiting
    under_way = np.max([profile.estimates.batch for profile in profiles.values()], axis=0)
    return Hosting(
        slots=replace(slots, beside=beside_of(under_way)),
        throughput_rps=np.concatenate(throughput),
        provenance=tuple(provenance),
        limiting=tuple(limiting),
        profile=next(iter(profiles.values())),
        loose_rps=np.concatenate(loose) if loose else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """What a replica serves of each class of sizes, in their order."""

    throughput_rps: NDArray[np.float64]
    provenance: tuple[Provenance, ...]
    limiting: tuple[str, ...]


def _served(adapters: ServiceAdapters, profile: OptionProfile) -> _Served:
    rates = np.array([bucket.rate_rps for bucket in adapters.sizes.buckets])
    throughput = np.zeros(len(adapters.classes))
    provenance: list[Provenance] = []
    limiting: list[str] = []
    for column, each in enumerate(adapters.classes):
        here = np.array(each.positions)
        rps = profile.throughput_rps[here]
        if np.all(rps > 0):
            throughput[column] = float(rates[here].sum()) / float(np.sum(rates[here] / rps))
        of_class = (profile.provenance[position] for position in each.positions)
        provenance.append(min(of_class, key=lambda origin: _WORST_FIRST.index(origin.kind)))
        limiting.append(profile.limiting[int(here[np.argmin(rps)])])
    return _Served(throughput_rps=throughput, provenance=tuple(provenance), limiting=tuple(limiting))


def _most_served(adapters: ServiceAdapters, profile: OptionProfile) -> NDArray[np.float64]:
    """Return what a replica serves of each class of sizes were all of them the one of which it serves most.

    However the sizes of a class are routed, those on a replica keep it busy for at least their rate over this.
    """
    return np.array([profile.throughput_rps[list(each.positions)].max() for each in adapters.classes])


def adapter_assumptions(
    name: str, adapters: ServiceAdapters, *, params: EstimatorParams, is_at_peak: bool = False
) -> Iterator[str]:
    """Yield what a plan takes for granted of a service's adapters."""
    n_sizes, n_classes = len(adapters.sizes.buckets), len(adapters.classes)
    together = f", put together to {n_classes}" if n_classes < n_sizes else ""
    sizes = "one bucket" if n_sizes == 1 else f"{n_sizes} buckets{together}"
    yield (
        f"{name}: an adapter's requests have the workload's sizes ({sizes}), and each goes to the "
        "replicas that hold the adapter and serve its size. An adapter alone on a replica is merged into its weights."
    )
    n_slos = len(set(adapters.own_slos.values()))
    if n_slos > len(adapters.loosest):
        yield (
            f"{name}: {n_slos} different objectives of adapters are planned as {len(adapters.loosest)}, each the "
            "strictest of those put together; the bound has the loosest."
        )
    for kind in adapters.kinds:
        size = format_bytes(kind.shape.bytes_each)
        more = format_bytes(kind.shape.copied_bytes)
        copied = f" and {more} more for every further GPU of tensor parallelism" if kind.shape.copied_bytes else ""
        if kind.isolation is Isolation.SHARED_PROCESS:
            yield (
                f"{name}: a replica with slots keeps {size} for each{copied}, reads in every step those that its batch"
                " is for, as if all were asked for alike, and never loads an adapter while it serves."
            )
        else:
            yield (
                f"{name}: processes on one copy of the weights keep {size} for their adapter and "
                f"{format_bytes(CONTEXT_BYTES)} for a context each (assumed), and are all taken to be busy at once: "
                "each has its part of the replica's time and of its KV cache."
            )
    for engine in dict.fromkeys(kind.engine for kind in adapters.kinds):
        if not params.has_row(ADAPTER_TIME, engine):
            yield (
                f"{name}: the time that adapters add to a step of {engine} is a published figure (Punica, arXiv"
                " 2310.18547: 2 ms a token of 32 layers), not measured on it."
            )
    if is_at_peak:
        yield (
            f"{name}: at the peak ({adapters.sizes.basis}) every adapter is taken to be asked for so many times as"
            " often as on average, all in the same proportions; their own traces' peaks are not looked at."
        )
