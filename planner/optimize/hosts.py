"""Replicas that are being filled with adapters, and what an adapter's requests are for each of them.

An adapter's requests come in sizes, one for each bucket of its group. A replica may serve all of them or some; it has
one slot for the adapter either way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.hardware import replica_price
from planner.optimize.rows.packing import packing_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from planner.domain.adapters import Tenancy, Tenant
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.model import Objective
    from planner.optimize.rows.packing import PackingRow

FULL = 1.0 + 5e-10
"""Load of a full replica: half of what the check of a plan forgives."""
DUST = 1e-12
"""Parts of a replica below this are rounding noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An adapter's requests, or the part of them that has no place yet."""

    tenant: Tenant
    rates: FloatArray
    """Req/s of each bucket of its group, in the demand's order."""

    @property
    def rate_rps(self) -> float:
        """Requests per second of all sizes."""
        return float(self.rates.sum())


@dataclass(slots=True, kw_only=True)
class Host:
    """A replica while it is being filled."""

    option: int
    slots: int
    largest_load: float
    """Part of the replica that one adapter can have."""
    rates: dict[str, FloatArray] = field(default_factory=dict)
    """Adapter -> req/s of it that are served here, by the buckets of its group."""
    loads: dict[str, float] = field(default_factory=dict)
    """Adapter -> the part of the replica that this keeps busy."""
    load: float = 0.0

    def room(self, name: str) -> float:
        """Return the load that an adapter can bring, or add to its own; 0 where there is no slot for it."""
        own = self.loads.get(name)
        if own is None and len(self.loads) >= self.slots:
            return 0.0
        return max(min(FULL - self.load, self.largest_load * FULL - (own or 0.0)), 0.0)

    def add(self, name: str, rates: FloatArray, load: float) -> None:
        """Serve so much more of an adapter."""
        self.rates[name] = self.rates[name] + rates if name in self.rates else rates
        self.loads[name] = self.loads.get(name, 0.0) + load
        self.load += load

    def copy(self) -> Host:
        """Return a replica that holds the same and can be filled apart from this one."""
        return replace(self, rates=dict(self.rates), loads=dict(self.loads))


class ServiceOptions:
    """The options of one service, and what its adapters' requests are for a replica of each."""

    def __init__(self, fleet: FleetArrays, tenancy: Tenancy) -> None:
        self.fleet = fleet
        self.tenancy = tenancy
        self.tenants = {tenant.name: tenant for tenant in tenancy.tenants}
        self.members: dict[int, list[Tenant]] = {}
        """Group -> its adapters, the busiest first."""
        for tenant in sorted(tenancy.tenants, key=lambda each: (-each.rate_rps, each.name)):
            self.members.setdefault(tenant.group, []).append(tenant)
        self.buckets: dict[int, list[int]] = {group: [] for group in self.members}
        """Group -> its buckets in `fleet`, in the demand's order."""
        for index, (service, bucket) in enumerate(fleet.buckets):
            if service == tenancy.service and bucket.group is not None:
                self.buckets[bucket.group].append(index)
        self.parts: dict[int, FloatArray] = {}
        """Group -> the part of its requests in each of its buckets."""
        for group, buckets in self.buckets.items():
            rates = np.array([fleet.buckets[b][1].rate_rps for b in buckets])
            self.parts[group] = rates / rates.sum()
        self.pairs: dict[int, dict[int, int]] = {}
        """Bucket -> option -> pair."""
        mine = {bucket for buckets in self.buckets.values() for bucket in buckets}
        for pair, bucket in enumerate(fleet.pair_bucket.tolist()):
            if bucket in mine:
                self.pairs.setdefault(bucket, {})[int(fleet.pair_option[pair])] = pair
        self.options = sorted({option for options in self.pairs.values() for option in options})
        self._units = {(group, option): self._unit(group, option) for group in self.buckets for option in self.options}
        self._able = {key: np.isfinite(unit) for key, unit in self._units.items()}
        self._filled = {key: np.where(self._able[key], unit, 0.0) for key, unit in self._units.items()}
        self._serves_all = {key: bool(able.all()) for key, able in self._able.items()}

    def _unit(self, group: int, option: int) -> FloatArray:
        """Return the replicas of `option` that 1 req/s of each bucket of `group` keeps busy; inf = cannot be served."""
        pairs = [(self.pairs.get(bucket, {}).get(option), bucket) for bucket in self.buckets[group]]
        return np.array(
            [
                np.inf if pair is None else self.fleet.pair_load[pair] / self.fleet.buckets[bucket][1].rate_rps
                for pair, bucket in pairs
            ]
        )

    def item(self, tenant: Tenant) -> Item:
        """Return all that is asked of an adapter."""
        return Item(tenant=tenant, rates=tenant.rate_rps * self.parts[tenant.group])

    def unit(self, group: int, option: int) -> FloatArray:
        """Return the load of 1 req/s of every bucket of `group`, infinite where `option` cannot serve it."""
        return self._units[group, option]

    def servable(self, item: Item, option: int) -> FloatArray:
        """Return the part of an item's requests that a replica of `option` can serve."""
        key = (item.tenant.group, option)
        return item.rates if self._serves_all[key] else np.where(self._able[key], item.rates, 0.0)

    def load(self, item: Item, option: int) -> float:
        """Return the replicas of `option` that what it can serve of an item keeps busy."""
        return float(item.rates @ self._filled[item.tenant.group, option])

    def can_serve(self, item: Item, option: int) -> bool:
        """Return whether a replica of `option` can serve all of an item."""
        key = (item.tenant.group, option)
        return self._serves_all[key] or not np.any(item.rates[~self._able[key]] > 0)

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

    def items(self, host: Host) -> list[Item]:
        """Return what a replica serves, the largest load first."""
        ranked = sorted(host.loads, key=lambda name: (-host.loads[name], name))
        return [Item(tenant=self.tenants[name], rates=host.rates[name]) for name in ranked]

    def put(self, item: Item, hosts: Iterable[Host]) -> Item | None:
        """Give an adapter its places on `hosts`, emptiest first; return what has none.

        One that fits nowhere as a whole is split: a part fills up the emptiest replica, the rest goes on.
        """
        name = item.tenant.name
        for host in sorted((host for host in hosts if host.room(name) > DUST), key=lambda each: each.load):
            rates, load = self.servable(item, host.option), self.load(item, host.option)
            if not rates.any():
                continue
            part = min(1.0, host.room(name) / load) if load > 0 else 1.0
            if part * load <= DUST and part < 1.0:
                continue
            is_all = part >= 1.0
            given = rates if is_all else part * rates
            host.add(name, given, part * load)
            left = np.zeros_like(item.rates) if is_all and rates is item.rates else item.rates - given
            if is_all:
                left[rates > 0] = 0.0
            if not left.any():
                return None
            item = Item(tenant=item.tenant, rates=left)
        return item


class Prices:
    """What replicas that come and go cost, in the units of an objective: whole instances, and what each replica adds.

    Spare GPUs of an instance cost nothing more.
    """

    def __init__(self, fleet: FleetArrays, replicas: IntArray, aim: Objective) -> None:
        self.fleet = fleet
        self.aim = aim
        self.replicas = replicas.astype(np.int64)
        self.known: dict[int, Mapping[int, float]] = {}
        self.rows: dict[int, list[PackingRow]] = {}
        for row in packing_rows(fleet):
            self.rows.setdefault(row.pool, []).append(row)

    def change(self, *changes: tuple[int, int]) -> float:
        """Return what it costs more to have so many more replicas of each option."""
        after, added = self.replicas.copy(), 0.0
        for option, count in changes:
            after[option] += count
            added += count * float(self.aim.per_replica[option])
        pools = {int(self.fleet.option_pool[option]) for option, _ in changes}
        return added + sum(
            self._pool_cost(pool, after) - self._pool_cost(pool, self.replicas) for pool in sorted(pools)
        )

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
        price = float(self.aim.per_instance[pool])
        gpus = self.fleet.option_gpus
        needed = (-(-int(gpus[row.members] @ replicas[row.members]) // row.usable_gpus) for row in self.rows[pool])
        return price * max(needed, default=0)
