"""From shares of groups to whole adapters: which replica holds which, and what of its requests it serves.

The programme over groups says how many replicas of each option there are and what part of every group each option
serves. Here every adapter gets its places, one or several, so that no replica has more adapters than slots nor more
load than it can serve. What does not fit, since adapters are whole and replicas are single, gets replicas of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.hardware import replica_price
from planner.optimize.rows.minimums import kept_instances
from planner.optimize.rows.packing import instances_needed, packing_rows
from planner.optimize.search import Fleet, exact_cost

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from planner.domain.adapters import Tenancy, Tenant
    from planner.domain.problem import FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.rows.packing import PackingRow

FULL = 1.0 + 5e-10
"""Load of a full replica: half of what the check of a plan forgives."""
DUST = 1e-12
"""Parts of a replica below this are rounding noise."""
WORTH_SPLITTING = 0.25
"""Of a replica: an adapter that keeps less of it busy goes to one option as a whole."""

SAVING = 1e-9
"""USD/h: less is none."""
MOST_REFUSED = 64
"""Replicas that nothing else can stand in for until no more are tried."""


@dataclass(slots=True, kw_only=True)
class Host:
    """A replica while it is being filled."""

    option: int
    slots: int
    largest_load: float
    """Part of the replica that one adapter can have."""
    rates: dict[str, float] = field(default_factory=dict)
    """Adapter -> req/s of it that are served here."""
    load: float = 0.0

    def room(self) -> float:
        """Return the load that one more adapter can bring; 0 where there is no slot."""
        return min(FULL - self.load, self.largest_load * FULL) if len(self.rates) < self.slots else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """All replicas of one service with adapters."""

    service: str
    hosts: tuple[Host, ...]
    added_replicas: int
    """More than the programme has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A fleet in which every adapter has its places."""

    fleet: Fleet
    placements: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """An adapter's requests, or the part of them that has no place yet."""

    tenant: Tenant
    rate_rps: float


class _Prices:
    """What instances cost for replicas that come and go: whole instances, whose spare GPUs cost nothing more."""

    def __init__(self, fleet: FleetArrays, replicas: IntArray) -> None:
        self.fleet = fleet
        self.replicas = replicas.astype(np.int64)
        self.known: dict[int, Mapping[int, float]] = {}
        self.rows: dict[int, list[PackingRow]] = {}
        for row in packing_rows(fleet):
            self.rows.setdefault(row.pool, []).append(row)

    def change(self, *changes: tuple[int, int]) -> float:
        """Return what it costs more in USD/h to have so many more replicas of each option."""
        after = self.replicas.copy()
        for option, count in changes:
            after[option] += count
        pools = {int(self.fleet.option_pool[option]) for option, _ in changes}
        return sum(self._pool_cost(pool, after) - self._pool_cost(pool, self.replicas) for pool in sorted(pools))

    def swaps(self, option: int, others: Sequence[int]) -> Mapping[int, float]:
        """Return what it costs more to have a replica of each of `others` in place of one of `option`."""
        if option not in self.known:
            self.known[option] = {other: self.change((option, -1), (other, 1)) for other in others}
        return self.known[option]

    def take(self, *changes: tuple[int, int]) -> None:
        """Have so many more replicas of each option from here on."""
        self.known.clear()
        for option, count in changes:
            self.replicas[option] += count

    def _pool_cost(self, pool: int, replicas: IntArray) -> float:
        price = float(self.fleet.offers[int(self.fleet.pool_offer[pool])].price_usd_per_hour)
        gpus = self.fleet.option_gpus
        needed = (-(-int(gpus[row.members] @ replicas[row.members]) // row.usable_gpus) for row in self.rows[pool])
        return price * max(needed, default=0)


class _Service:
    """The options of one service, and what one req/s of an adapter is for a replica of each."""

    def __init__(self, fleet: FleetArrays, tenancy: Tenancy) -> None:
        self.fleet = fleet
        self.tenancy = tenancy
        names = [service for service, _ in fleet.buckets]
        self.first = names.index(tenancy.service)
        self.pairs: dict[int, dict[int, int]] = {}
        """Bucket of the service -> option -> pair."""
        for pair, bucket in enumerate(fleet.pair_bucket.tolist()):
            if names[bucket] == tenancy.service:
                self.pairs.setdefault(bucket - self.first, {})[int(fleet.pair_option[pair])] = pair
        self.options = sorted({option for options in self.pairs.values() for option in options})

    def load_per_rps(self, bucket: int, option: int) -> float:
        """Return the replicas of `option` that one req/s of `bucket` keeps busy; infinite where it cannot be served."""
        pair = self.pairs[bucket].get(option)
        if pair is None:
            return np.inf
        return float(self.fleet.pair_load[pair] / self.fleet.buckets[self.first + bucket][1].rate_rps)

    def host(self, option: int) -> Host:
        """Return an empty replica of `option`."""
        slots = self.fleet.options[option].slots
        if slots is None:
            msg = f"an option of {self.tenancy.service} has no room for adapters"
            raise ValueError(msg)
        return Host(option=option, slots=slots.count, largest_load=slots.largest_load)

    def price(self, option: int) -> float:
        """Return a replica's part of its instance's price in USD/h."""
        chosen = self.fleet.options[option]
        return float(replica_price(chosen.offer, chosen.gpus_per_replica))

    def put(self, item: _Item, hosts: Iterable[Host]) -> _Item | None:
        """Give an adapter its places on `hosts`, emptiest first; return what has none.

        One that fits nowhere as a whole is split: a part fills up the emptiest replica, the rest goes on.
        """
        able = [host for host in hosts if host.room() > DUST and item.tenant.name not in host.rates]
        able = [host for host in able if np.isfinite(self.load_per_rps(item.tenant.bucket, host.option))]
        left = item.rate_rps
        for host in sorted(able, key=lambda each: each.load):
            each_rps = self.load_per_rps(item.tenant.bucket, host.option)
            part = min(left, host.room() / each_rps)
            if part * each_rps <= DUST and part < left:
                continue
            host.rates[item.tenant.name] = part
            host.load += part * each_rps
            left -= part
            if left <= 0:
                return None
        return _Item(tenant=item.tenant, rate_rps=left)


def place(problem: FleetProblem, fleet: FleetArrays, chosen: Fleet) -> Placed:
    """Return `chosen` with every adapter on replicas, with more replicas where they are needed.

    Limits on the fleet are not looked at: whoever asks must check the result.
    """
    replicas, shares = chosen.replicas.copy(), chosen.shares.copy()
    placements = []
    for tenancy in sorted(problem.tenancies, key=lambda each: each.service):
        service = _Service(fleet, tenancy)
        placement = _placed(service, chosen, _Prices(fleet, replicas))
        placements.append(placement)
        counts = np.bincount([host.option for host in placement.hosts], minlength=len(fleet.options))
        mine = np.array([option.service == tenancy.service for option in fleet.options], dtype=np.bool_)
        replicas = np.where(mine, counts, replicas)
        _set_shares(shares, service, placement)
    needed = instances_needed(fleet, replicas)
    instances = kept_instances(fleet, np.maximum(chosen.instances, needed), needed)
    return Placed(
        fleet=Fleet(
            replicas=replicas, instances=instances, shares=shares, cost_usd_per_hour=exact_cost(fleet, instances)
        ),
        placements=tuple(placements),
    )


def _placed(service: _Service, chosen: Fleet, prices: _Prices) -> Placement:
    """Return the replicas of a service, filled option by option, then with what is left over."""
    left: list[_Item] = []
    hosts: list[Host] = []
    for option, items in sorted(_by_option(service, chosen).items()):
        own = [service.host(option) for _ in range(int(chosen.replicas[option]))]
        still_open = list(own)
        for item in _hottest_first(items, service, option):
            rest = service.put(item, _first_to_try(still_open, item, service))
            if rest is not None:
                left.append(rest)
            if own[0].slots == 1:
                while still_open and still_open[-1].rates:
                    still_open.pop()
        hosts += own
    n_planned = len(hosts)
    while left:
        unplaced: list[_Item] = []
        for item in sorted(left, key=lambda each: (-each.rate_rps, each.tenant.name)):
            rest = service.put(item, hosts)
            if rest is not None:
                unplaced.append(rest)
        left = unplaced
        if left:
            best = _best_for(service, left, prices)
            prices.take((best, 1))
            hosts.append(service.host(best))
    kept = _without_needless(service, hosts)
    prices.take(*((host.option, -1) for host in hosts), *((host.option, 1) for host in kept))
    filled = [_cheaper(service, host, prices) for host in kept]
    return Placement(
        service=service.tenancy.service, hosts=tuple(filled), added_replicas=max(0, len(filled) - n_planned)
    )


def _without_needless(service: _Service, hosts: Sequence[Host]) -> list[Host]:
    """Return `hosts` without those whose adapters find room on the others, the dearest for their load first."""
    kept = [host for host in hosts if host.rates]
    by_name = {tenant.name: tenant for tenant in service.tenancy.tenants}
    refused: set[int] = set()
    while len(refused) < MOST_REFUSED:
        left = [index for index in range(len(kept)) if id(kept[index]) not in refused]
        if not left:
            break
        index = min(left, key=lambda i: (-service.price(kept[i].option) / kept[i].load, kept[i].option, i))
        host, others = kept[index], kept[:index] + kept[index + 1 :]
        if not _has_room(host, others):
            refused.add(id(host))
            continue
        trial = [replace(other, rates=dict(other.rates)) for other in others]
        items = [_Item(tenant=by_name[name], rate_rps=rate) for name, rate in host.rates.items()]
        ranked = sorted(items, key=lambda item: (-item.rate_rps, item.tenant.name))
        if all(service.put(item, trial) is None for item in ranked):
            refused = {id(new) for new, old in zip(trial, others, strict=True) if id(old) in refused}
            kept = trial
        else:
            refused.add(id(host))
    return kept


def _has_room(host: Host, others: Sequence[Host]) -> bool:
    """Return whether `others` could have room for the adapters of `host`, were they as fast for them as the fastest."""
    slots = sum(other.slots - len(other.rates) for other in others)
    return len(host.rates) <= slots and any(other.room() > DUST for other in others)


def _cheaper(service: _Service, host: Host, prices: _Prices) -> Host:
    """Return a replica of the option that holds what `host` holds and lets the fleet cost least."""
    by_name = {tenant.name: tenant for tenant in service.tenancy.tenants}

    def moved(option: int) -> Host | None:
        other = service.host(option)
        if len(host.rates) > other.slots:
            return None
        loads = [rate * service.load_per_rps(by_name[name].bucket, option) for name, rate in host.rates.items()]
        if sum(loads) > FULL or max(loads) > other.largest_load * FULL:
            return None
        return replace(other, rates=dict(host.rates), load=sum(loads))

    saved = prices.swaps(host.option, service.options)
    for option in sorted(saved, key=lambda option: (saved[option], option)):
        if saved[option] >= -SAVING:
            break
        found = moved(option)
        if found is not None:
            prices.take((host.option, -1), (option, 1))
            return found
    return host


def _first_to_try(hosts: Sequence[Host], item: _Item, service: _Service) -> Sequence[Host]:
    """Return the replicas of one option that an adapter may go to: of empty ones for one, as many as it needs."""
    if not hosts or hosts[0].slots > 1:
        return hosts
    load = item.rate_rps * service.load_per_rps(item.tenant.bucket, hosts[0].option)
    return hosts[-max(int(np.ceil(load / FULL)), 1) :]


def _hottest_first(items: Sequence[_Item], service: _Service, option: int) -> list[_Item]:
    """Return what an option serves, the largest load first."""

    def key(item: _Item) -> tuple[float, str]:
        return (-item.rate_rps * service.load_per_rps(item.tenant.bucket, option), item.tenant.name)

    return sorted(items, key=key)


def _by_option(service: _Service, chosen: Fleet) -> Mapping[int, list[_Item]]:
    """Return which adapters each option serves, near to its shares of their groups; few are split."""
    found: dict[int, list[_Item]] = {}
    for bucket, pairs in sorted(service.pairs.items()):
        total = service.fleet.buckets[service.first + bucket][1].rate_rps
        quota = {
            option: total * float(chosen.shares[pair])
            for option, pair in sorted(pairs.items())
            if chosen.shares[pair] > DUST and chosen.replicas[option] > 0
        }
        members = sorted(service.tenancy.members(bucket), key=lambda each: (-each.rate_rps, each.name))
        for tenant in members:
            for option, rate in _split(tenant, quota, service).items():
                found.setdefault(option, []).append(_Item(tenant=tenant, rate_rps=rate))
                quota[option] -= rate
    return found


def _split(tenant: Tenant, quota: Mapping[int, float], service: _Service) -> Mapping[int, float]:
    """Return the req/s of an adapter that each option serves: all on that with most of its quota left, if it can."""
    ranked = sorted(quota, key=lambda option: (-quota[option], option))
    first = ranked[0]
    load = tenant.rate_rps * service.load_per_rps(tenant.bucket, first)
    if quota[first] >= tenant.rate_rps or load < WORTH_SPLITTING or len(ranked) == 1:
        return {first: tenant.rate_rps}
    parts: dict[int, float] = {}
    left = tenant.rate_rps
    for option in ranked:
        part = min(left, max(quota[option], 0.0))
        if part > DUST * tenant.rate_rps:
            parts[option] = part
            left -= part
    parts[first] = parts.get(first, 0.0) + left
    return parts


def _best_for(service: _Service, left: Sequence[_Item], prices: _Prices) -> int:
    """Return the option whose replicas hold what is left at the least price, were there no other."""

    def cost(option: int) -> tuple[float, float, int]:
        slots = service.host(option)
        loads = [item.rate_rps * service.load_per_rps(item.tenant.bucket, option) for item in left]
        able = [load for load in loads if np.isfinite(load)]
        if not able:
            return (np.inf, np.inf, option)
        copies = sum(max(1.0, np.ceil(load / slots.largest_load - DUST)) for load in able)
        needed = np.ceil(max(sum(able), copies / slots.slots) - DUST)
        return (prices.change((option, int(max(needed, 1.0)))) / len(able), service.price(option), option)

    return min(service.options, key=cost)


def _set_shares(shares: FloatArray, service: _Service, placement: Placement) -> None:
    """Write the shares of the service's groups that its replicas serve."""
    bucket_of = {tenant.name: tenant.bucket for tenant in service.tenancy.tenants}
    served: dict[tuple[int, int], float] = {}
    for host in placement.hosts:
        for name, rate in host.rates.items():
            key = (bucket_of[name], host.option)
            served[key] = served.get(key, 0.0) + rate
    for bucket, pairs in service.pairs.items():
        total = sum(rate for (at, _), rate in served.items() if at == bucket)
        for option, pair in pairs.items():
            shares[pair] = served.get((bucket, option), 0.0) / total
