"""Where every adapter lives in a fleet of so many replicas, and which of its requests each of its replicas serves.

Two linear programmes with whole adapters between them:

1. What part of every group's requests of every size each option serves, and how many copies of its adapters it has, so
   that the fullest option is as empty as can be (the rows of `rows.residence`, with the replicas given).
2. Copies become adapters. The copies of a group of n on option j are the part v[j] / n of a circle, option after option
   around it; its adapters are points on the circle and live where their point is. They go around the circle in the
   order of a golden section, so that busy and less busy ones are mixed everywhere. On an option's replicas they are
   spread the largest first, each to the emptiest.
3. With everybody's homes given, what each replica serves of every size is a linear programme again: adapters with the
   same homes are served alike, so it has a share for each set of homes, size and replica.

The result is a placement or nothing: where the last programme leaves a replica too full, there is none.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.hosts import FULL, Host
from planner.optimize.milp import MilpBuilder
from planner.optimize.search import run
from planner.optimize.settings import SolverSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from planner.domain.adapters import Tenant
    from planner.optimize.hosts import ServiceOptions
    from planner.optimize.milp import FloatArray, IntArray

LIMIT_S = 20.0
"""For each of the two programmes."""
COPY_COST = 1e-3
"""Of all copies together, in parts of a full replica: fewer copies where they do not help."""
LEAST_PART = 0.02
"""Of a busy adapter's requests of a size: an option that serves less of every size is no home."""
FEW = 8
"""Adapters of a group up to which each lives wherever a tenth of its stretch of the circle is."""
LARGEST_PIECE = 0.3
"""Of a replica: an adapter that keeps more of them busy lives on several."""
MANY_SLOTS = 16
"""Slots from which replicas have some to spare for pieces."""
SPARE_HOMES = 12
"""More homes on every replica for the busiest adapters, where it has the slots."""
ROUNDING = 1e-6
"""Of a replica: what solvers forgive."""
DUST_PART = 1e-7
"""Of an adapter's requests of a size: less is none."""
MOST_REPLICAS = 400
"""Of a service: with more, whole adapters hardly matter, and the last programme is large."""
SLOT_COST = 10.0
"""Of as many slots as there are adapters, in parts of a full replica, where they are lacking."""
LEAST_SLOT = 1e-3
MOST_CHANGES = 12
ROOM_ENOUGH = 0.98
"""Of the fullest option: with less, slots are not changed any more."""
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Homes:
    """What was found."""

    hosts: tuple[Host, ...] | None
    """All replicas with what they serve; None where one would be too full."""
    peak: float
    """Load of the fullest one, 1 = full; infinite where adapters are without a home."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Like adapters, the busiest first."""

    members: tuple[Tenant, ...]
    key: int
    """Of their requests' buckets in `ServiceOptions`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What the first programme says; shapes (groups, sizes, options) and (groups, options)."""

    served: list[FloatArray]
    copies: FloatArray
    peak: float
    """Load of the fullest option, 1 = full, and more where slots are lacking."""
    has_slots: bool
    """Whether there are enough."""


def find_homes(service: ServiceOptions, replicas: IntArray) -> Homes:
    """Return where the adapters of a service live on so many replicas of each option of the fleet, shape (options,)."""
    nowhere = Homes(hosts=None, peak=math.inf)
    options = [option for option in service.options if replicas[option] > 0]
    groups = _groups(service)
    is_many = not options or replicas[options].sum() > MOST_REPLICAS
    parts = None if is_many else _group_parts(service, groups, options, replicas)
    if parts is None or not parts.has_slots:
        return nowhere
    hosts = _settled(service, groups, options, parts, replicas)
    if hosts is None:
        return nowhere
    _add_spare_homes(service, hosts)
    return _routed(service, hosts)


def best_slots(service: ServiceOptions, replicas: IntArray) -> IntArray:
    """Return replicas on the same instances with slots that leave most room, changed one replica at a time.

    Of an option's replicas one gets the next larger or smaller number of slots, as long as the fullest option of the
    first programme gets emptier.
    """
    groups = _groups(service)

    def peak(counts: IntArray) -> float:
        options = [option for option in service.options if counts[option] > 0]
        parts = _group_parts(service, groups, options, counts) if options else None
        return math.inf if parts is None else parts.peak

    best, least = replicas, peak(replicas)
    for _ in range(MOST_CHANGES):
        if least <= ROOM_ENOUGH:
            break
        trials = list(_changed(service, best))
        peaks = [peak(counts) for counts in trials]
        if not peaks or min(peaks) >= least - ROUNDING:
            break
        least = min(peaks)
        best = trials[peaks.index(least)]
    return best


def _changed(service: ServiceOptions, replicas: IntArray) -> Iterator[IntArray]:
    """Yield the replicas with one of them given more or fewer slots."""
    fleet = service.fleet
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for option in service.options:
        alike[int(fleet.option_pool[option]), int(fleet.option_gpus[option])].append(option)
    for options in alike.values():
        counts = {option: service.host(option).slots for option in options}
        for option in options:
            if replicas[option] == 0:
                continue
            more = [count for count in counts.values() if count > counts[option]]
            fewer = [count for count in counts.values() if count < counts[option]]
            near = {min(more, default=0), max(fewer, default=0)}
            for other in options:
                if counts[other] in near:
                    changed = replicas.copy()
                    changed[option] -= 1
                    changed[other] += 1
                    yield changed


def _groups(service: ServiceOptions) -> list[_Group]:
    found: dict[tuple[int, int | None], list[Tenant]] = defaultdict(list)
    for key, members in sorted(service.members.items()):
        for tenant in members:
            found[key, tenant.kin_group].append(tenant)
    return [_Group(members=tuple(members), key=key) for (key, _), members in found.items()]


def _group_parts(
    service: ServiceOptions, groups: Sequence[_Group], options: Sequence[int], replicas: IntArray
) -> _Parts | None:
    """Return the parts of groups on options with which the fullest option is emptiest; None if slots are too few."""
    sizes = [len(service.buckets[group.key]) for group in groups]
    units = [np.array([service.unit(group.key, option) for option in options]).T for group in groups]
    first = np.concatenate([[0], np.cumsum(sizes)])
    able = [np.argwhere(np.isfinite(unit)) for unit in units]  # (size, place of the option)
    group = np.repeat(np.arange(len(groups)), [len(pairs) for pairs in able])
    size, place = np.concatenate(able).T
    rates = np.array([sum(tenant.rate_rps for tenant in each.members) for each in groups])
    counts = np.array([float(len(each.members)) for each in groups])
    part = np.concatenate([service.parts[each.key][pairs[:, 0]] for each, pairs in zip(groups, able, strict=True)])
    unit = np.concatenate([each[pairs[:, 0], pairs[:, 1]] for each, pairs in zip(units, able, strict=True)])
    load = rates[group] * part * unit
    made = [service.host(option) for option in options]
    n = np.array([float(replicas[option]) for option in options])
    slots = np.array([float(host.slots) for host in made])
    largest = np.array([host.largest_load for host in made])
    n_options = len(options)
    builder = MilpBuilder()
    x = builder.add_columns("x", len(group))
    v = builder.add_columns("v", len(groups) * n_options, cost=COPY_COST / counts.sum())
    t = builder.add_columns("t", 1, cost=1.0)
    each, here = np.arange(len(x)), v[group * n_options + place]
    wide, own = np.arange(len(v)), np.arange(n_options)
    ones = np.ones(int(first[-1]))
    builder.add_rows("served", rows=first[group] + size, columns=x, values=1.0, lower=ones, upper=ones)
    builder.add_rows(
        "busy",
        rows=np.concatenate([place, own]),
        columns=np.concatenate([x, np.repeat(t, n_options)]),
        values=np.concatenate([load, -n]),
        upper=np.zeros(n_options),
    )
    builder.add_rows(
        "held",
        rows=np.concatenate([each, each]),
        columns=np.concatenate([x, here]),
        values=np.concatenate([counts[group], -np.ones(len(x))]),
        upper=np.zeros(len(x)),
    )
    builder.add_rows(
        "held load",
        rows=np.concatenate([group * n_options + place, wide]),
        columns=np.concatenate([x, v]),
        values=np.concatenate([load / largest[place], -np.ones(len(v))]),
        upper=np.zeros(len(v)),
    )
    builder.add_rows("somewhere", rows=wide // n_options, columns=v, values=1.0, lower=counts)
    lacking = builder.add_columns("lacking", n_options, cost=SLOT_COST / counts.sum())
    builder.add_rows(
        "slots",
        rows=np.concatenate([wide % n_options, own]),
        columns=np.concatenate([v, lacking]),
        values=np.concatenate([np.ones(len(v)), -np.ones(n_options)]),
        upper=slots * n,
    )
    raw = run(builder.freeze(), SolverSettings(time_limit_s=LIMIT_S))
    if raw.values is None:
        return None
    lack = float(raw.values[lacking].sum())
    served = [np.zeros((count, n_options)) for count in sizes]
    for at, row, column, value in zip(group.tolist(), size.tolist(), place.tolist(), raw.values[x], strict=True):
        served[at][row, column] = value
    return _Parts(
        served=served,
        copies=raw.values[v].reshape(len(groups), n_options),
        peak=float(raw.values[t[0]]) + SLOT_COST * lack / counts.sum(),
        has_slots=lack < LEAST_SLOT,
    )


def _settled(
    service: ServiceOptions, groups: Sequence[_Group], options: Sequence[int], parts: _Parts, replicas: IntArray
) -> list[Host] | None:
    """Return replicas with homes for all adapters, their loads as the first programme has them; None without room."""
    wanted: list[list[tuple[float, Tenant]]] = [[] for _ in options]
    for number, group in enumerate(groups):
        for place, tenant, load in _homes_of(service, group, options, parts.served[number], parts.copies[number]):
            wanted[place].append((load, tenant))
    hosts: list[Host] = []
    for place, option in enumerate(options):
        own = [service.host(option) for _ in range(int(replicas[option]))]
        _spread(wanted[place], own)
        hosts += own
    return hosts if _settle_others(service, hosts) else None


def _settle_others(service: ServiceOptions, hosts: Sequence[Host]) -> bool:
    """Give adapters without a home for all of their sizes one, the emptiest; return whether all have."""
    served: dict[str, NDArray[np.bool_]] = {
        name: np.zeros(len(service.parts[tenant.group]), dtype=np.bool_) for name, tenant in service.tenants.items()
    }
    homes = Counter(name for host in hosts for name in host.loads)
    for host in hosts:
        for name in host.loads:
            served[name] |= np.isfinite(service.unit(service.tenants[name].group, host.option))
    for name in sorted(served, key=lambda each: (-service.tenants[each].rate_rps, each)):
        tenant, able = service.tenants[name], served[name]
        while not able.all():
            fit = [
                host
                for host in hosts
                if host.room(name) > 0
                and name not in host.loads
                and np.any(np.isfinite(service.unit(tenant.group, host.option)) & ~able)
            ]
            home = min(fit, key=_load) if fit else _emptied(service, tenant, hosts, homes)
            if home is None:
                return False
            homes[name] += 1
            item = service.item(tenant)
            home.add(name, np.zeros(0), service.load(item, home.option))
            served[name] = able = able | np.isfinite(service.unit(tenant.group, home.option))
    return True


def _emptied(service: ServiceOptions, tenant: Tenant, hosts: Sequence[Host], homes: Counter[str]) -> Host | None:
    """Return a replica for `tenant` alone or with others, from which the idlest adapter with another home is gone."""
    able = [host for host in hosts if np.all(np.isfinite(service.unit(tenant.group, host.option)))]
    for host in sorted(able, key=_load):
        others = [name for name in host.loads if homes[name] > 1 and name != tenant.name]
        if not others or tenant.name in host.loads:
            continue
        gone = min(others, key=lambda name: (host.loads[name], name))
        left = [other for other in hosts if other is not host and gone in other.loads]
        if np.all(np.any([np.isfinite(service.unit(service.tenants[gone].group, o.option)) for o in left], axis=0)):
            host.load -= host.loads.pop(gone)
            del host.rates[gone]
            homes[gone] -= 1
            return host
    return None


def _homes_of(
    service: ServiceOptions, group: _Group, options: Sequence[int], served: FloatArray, copies: FloatArray
) -> list[tuple[int, Tenant, float]]:
    """Return the homes of a group's adapters: place of the option, adapter, and replicas that it keeps busy there."""
    count = len(group.members)
    order = np.argsort(np.argsort(np.modf((np.arange(count) + 1.0) * GOLDEN)[0]))
    lives = np.zeros((count, len(options)), dtype=np.bool_)
    start = 0.0
    for place in range(len(options)):
        length = float(copies[place]) / count
        if served[:, place].max(initial=0.0) <= LEAST_PART / count:
            continue
        lives[:, place] = _are_inside(order, count, start, min(length, 1.0))
        start += length
    lives[~lives.any(axis=1), int(np.argmax(served.sum(axis=0)))] = True
    units = np.array([np.where(np.isfinite(unit), unit, 0.0) for unit in (service.unit(group.key, j) for j in options)])
    weight = served[None, :, :] * lives[:, None, :]  # of each adapter's requests by size and option
    total = weight.sum(axis=2, keepdims=True)
    shares = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    loads = np.einsum("asj,s,js->aj", shares, service.parts[group.key], units)
    return [
        (place, group.members[index], float(loads[index, place]) * group.members[index].rate_rps)
        for index, place in np.argwhere(lives).tolist()
    ]


def _are_inside(order: IntArray, count: int, start: float, length: float) -> NDArray[np.bool_]:
    """Return which points of the circle are on this stretch of it; of few ones, a tenth of whose surroundings is."""
    if length >= 1.0:
        return np.ones(count, dtype=np.bool_)
    if count > FEW:
        return np.asarray(((order + 0.5) / count - start) % 1.0 < length, dtype=np.bool_)
    cell = np.arange(count)[order] / count
    covered = np.zeros(count)
    for turn in (-1.0, 0.0, 1.0):
        low = np.maximum(cell, start % 1.0 + turn)
        high = np.minimum(cell + 1.0 / count, start % 1.0 + turn + length)
        covered += np.maximum(high - low, 0.0)
    return np.asarray(covered * count > 0.1, dtype=np.bool_)


def _spread(wanted: Sequence[tuple[float, Tenant]], hosts: Sequence[Host]) -> None:
    """Give adapters their homes on the replicas of one option, the largest first, as long as there are slots."""
    piece = min(LARGEST_PIECE if hosts[0].slots >= MANY_SLOTS else 1.0, hosts[0].largest_load)
    free = list(hosts)
    for load, tenant in sorted(wanted, key=lambda each: (-each[0], each[1].name)):
        pieces = min(max(math.ceil(load / piece - ROUNDING), 1), len(hosts))
        if not free:
            break
        taken = sorted(free, key=_load)[:pieces] if pieces > 1 else [min(free, key=_load)]
        for host in taken:
            host.add(tenant.name, np.zeros(0), load / len(taken))
            if len(host.loads) >= host.slots:
                free.remove(host)


def _load(host: Host) -> float:
    return host.load


def _add_spare_homes(service: ServiceOptions, hosts: Sequence[Host]) -> None:
    """Let the busiest adapters live on more replicas, as far as there are slots to spare."""
    busiest = sorted(service.tenants.values(), key=lambda tenant: (-tenant.rate_rps, tenant.name))
    for host in hosts:
        more = min(host.slots - len(host.loads), SPARE_HOMES) if host.slots > 1 else 0
        for tenant in busiest:
            if more <= 0:
                break
            if tenant.name not in host.loads and np.any(np.isfinite(service.unit(tenant.group, host.option))):
                host.add(tenant.name, np.zeros(0), 0.0)
                more -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    """Adapters with the same homes whose requests every option serves alike."""

    members: tuple[Tenant, ...]
    homes: tuple[int, ...]
    """Positions of replicas."""


def _classes(service: ServiceOptions, hosts: Sequence[Host]) -> list[_Class]:
    homes: dict[str, list[int]] = defaultdict(list)
    for number, host in enumerate(hosts):
        for name in host.loads:
            homes[name].append(number)
    alike: dict[bytes, int] = {}
    kin = {
        group: alike.setdefault(
            b"".join(service.unit(group, option).tobytes() for option in service.options)
            + service.parts[group].tobytes(),
            len(alike),
        )
        for group in service.members
    }
    found: dict[tuple[int, tuple[int, ...]], list[Tenant]] = defaultdict(list)
    for tenant in service.tenants.values():
        found[kin[tenant.group], tuple(homes[tenant.name])].append(tenant)
    return [_Class(members=tuple(members), homes=at) for (_, at), members in sorted(found.items(), key=lambda e: e[0])]


def _routed(service: ServiceOptions, hosts: Sequence[Host]) -> Homes:
    """Return the replicas with what each serves, the fullest one as empty as can be."""
    classes = _classes(service, hosts)
    rows: list[tuple[int, int, int, float]] = []  # class, size, host, load of the class's requests of the size there
    for at, each in enumerate(classes):
        group = each.members[0].group
        rates = sum(tenant.rate_rps for tenant in each.members) * service.parts[group]
        for home in each.homes:
            unit = service.unit(group, hosts[home].option)
            rows += [(at, place, home, float(load)) for place, load in enumerate(rates * unit) if math.isfinite(load)]
    n_sizes = max(len(service.parts[each.members[0].group]) for each in classes)
    number, size, host = (np.array([row[i] for row in rows], dtype=np.int64) for i in range(3))
    load = np.array([row[3] for row in rows])
    asked, row = np.unique(number * n_sizes + size, return_inverse=True)
    if len(asked) < sum(len(service.parts[each.members[0].group]) for each in classes):
        return Homes(hosts=None, peak=math.inf)
    builder = MilpBuilder()
    y = builder.add_columns("y", len(rows))
    t = builder.add_columns("t", 1, cost=1.0)
    own, ones = np.arange(len(hosts)), np.ones(len(asked))
    builder.add_rows("served", rows=row.reshape(-1), columns=y, values=1.0, lower=ones, upper=ones)
    builder.add_rows(
        "busy",
        rows=np.concatenate([host, own]),
        columns=np.concatenate([y, np.repeat(t, len(hosts))]),
        values=np.concatenate([load, -np.ones(len(hosts))]),
        upper=np.zeros(len(hosts)),
    )
    largest = np.array([each.largest_load for each in hosts])
    if np.any(largest < 1.0):
        totals = np.array([sum(tenant.rate_rps for tenant in each.members) for each in classes])
        highest = np.array([max(tenant.rate_rps for tenant in each.members) for each in classes])
        pairs, row = np.unique(number * len(hosts) + host, return_inverse=True)
        builder.add_rows(
            "own part",
            rows=row.reshape(-1),
            columns=y,
            values=load * (highest / totals)[number],
            upper=largest[pairs % len(hosts)] * (1.0 - ROUNDING),
        )
    raw = run(builder.freeze(), SolverSettings(time_limit_s=LIMIT_S))
    if raw.values is None:
        return Homes(hosts=None, peak=math.inf)
    peak = float(raw.values[t[0]])
    if peak > 1.0 + ROUNDING:
        return Homes(hosts=None, peak=peak)
    filled = _filled(service, hosts, classes, number=number, size=size, host=host, share=raw.values[y])
    fullest = max((each.load for each in filled), default=0.0)
    return Homes(hosts=tuple(filled) if fullest <= FULL else None, peak=peak)


def _filled(
    service: ServiceOptions,
    hosts: Sequence[Host],
    classes: Sequence[_Class],
    *,
    number: IntArray,
    size: IntArray,
    host: IntArray,
    share: FloatArray,
) -> list[Host]:
    """Return the replicas with every adapter's part of its class's requests."""
    kept = np.where(share > DUST_PART, share, 0.0)
    n_sizes = int(size.max(initial=0)) + 1
    total = np.bincount(number * n_sizes + size, weights=kept)
    kept /= total[number * n_sizes + size]
    found = [service.host(each.option) for each in hosts]
    shares: Mapping[tuple[int, int], FloatArray] = defaultdict(lambda: np.zeros(n_sizes))
    for at, column, place, value in zip(number.tolist(), size.tolist(), host.tolist(), kept.tolist(), strict=True):
        shares[at, place][column] = value
    for (at, place), part in shares.items():
        if not part.any():
            continue
        group = classes[at].members[0].group
        sizes = service.parts[group] * part[: len(service.parts[group])]
        unit = service.unit(group, hosts[place].option)
        busy = float(sizes @ np.where(np.isfinite(unit), unit, 0.0))
        for tenant in classes[at].members:
            found[place].add(tenant.name, tenant.rate_rps * sizes, tenant.rate_rps * busy)
    return found
