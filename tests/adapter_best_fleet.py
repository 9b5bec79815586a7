"""All fleets of a few replicas for a few adapters, whichever of them each replica holds: what the best one comes to."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize import SolverSettings
from planner.optimize.backends import solve_milp
from planner.optimize.milp import MilpBuilder
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Replicas of one kind, each on an instance of its own."""

    name: str
    price: float
    speed: float | tuple[float, ...]
    """Req/s of a replica, by size where there are several."""
    slots: int
    place: str = "p"
    """What caps on shares count by: provider and region."""
    idle_kw: float = 0.0
    extra_kw: float = 0.0
    """Of a replica under full load."""
    beside_per_kw: float = 0.0
    """USD/h."""
    beside_per_rps: float | tuple[float, ...] = 0.0
    """USD/h of a request per second that is served here, by size where there are several."""

    def speed_of(self, size):
        """Return the req/s of a replica that serves one size alone."""
        return self.speed[size] if isinstance(self.speed, tuple) else self.speed

    def beside_of(self, size):
        """Return the USD/h of a request per second of one size."""
        return self.beside_per_rps[size] if isinstance(self.beside_per_rps, tuple) else self.beside_per_rps


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a fleet must keep beside serving all adapters."""

    most: int
    """Replicas that are tried."""
    caps: dict[str, float] = field(default_factory=dict)
    """Place -> largest part of all requests."""
    most_kw: float | None = None
    most_replicas: int | None = None
    parts: tuple[float, ...] = (1.0,)
    """Of every adapter's requests, by size."""
    change: Callable[[list], float] | None = None
    """What changes cost in USD/h, of the hosts as `_fillings` yields them."""


def best(rates, kinds, asked, values):
    """Return the least tuple of `values` (a fleet, what stands beside its rent -> the tuple), None if no fleet holds.

    fleet : Counter of positions in `kinds`.
    """
    found = None
    for count in range(1, asked.most + 1):
        for chosen in itertools.combinations_with_replacement(range(len(kinds)), count):
            fleet = Counter(chosen)
            if asked.most_replicas is not None and count > asked.most_replicas:
                continue
            if found is not None and values(fleet, 0.0) >= found:
                continue
            for hosts in _fillings(fleet, kinds, len(rates)):
                beside = _beside(rates, kinds, hosts, asked)
                if beside is not None and (found is None or values(fleet, beside) < found):
                    found = values(fleet, beside)
                    if asked.change is None and not any(kind.beside_per_kw or kind.beside_per_rps for kind in kinds):
                        break
    return found


def rent(kinds):
    """Return the function of a fleet and what stands beside its rent that adds both up."""
    return lambda fleet, beside: (sum(kinds[k].price * n for k, n in fleet.items()) + beside,)


def _fillings(fleet, kinds, n_adapters):
    """Yield every way to fill the replicas with as many adapters as they have slots: (kind, adapters) of each."""
    ways = [
        [
            [(k, held) for held in helds]
            for helds in itertools.combinations_with_replacement(
                list(itertools.combinations(range(n_adapters), min(kinds[k].slots, n_adapters))), n
            )
        ]
        for k, n in sorted(fleet.items())
    ]
    for parts in itertools.product(*ways):
        yield [host for part in parts for host in part]


def _beside(rates, kinds, hosts, asked):
    """Return the least that stands beside the rent of these replicas; None if they do not serve what is asked."""
    found = _least(rates, kinds, hosts, asked)
    return found if found is None or asked.change is None else found + asked.change(hosts)


def _least(rates, kinds, hosts, asked):
    sizes = range(len(asked.parts))
    flows = [
        (at, k, (adapter, size))
        for at, (k, held) in enumerate(hosts)
        for adapter in held
        for size in sizes
        if kinds[k].speed_of(size) > 0
    ]
    wanted = {(adapter, size): rate * asked.parts[size] for adapter, rate in enumerate(rates) for size in sizes}
    if {request for _, _, request in flows} != set(wanted):
        return None
    speed = np.array([kinds[k].speed_of(size) for _, k, (_, size) in flows])
    kw = np.array([kinds[k].extra_kw for _, k, _ in flows]) / speed
    usd = kw * np.array([kinds[k].beside_per_kw for _, k, _ in flows])
    usd = usd + np.array([kinds[k].beside_of(size) for _, k, (_, size) in flows])
    builder = MilpBuilder()
    flow = builder.add_columns("flow", len(flows), cost=usd)

    def row(name, rows, values, *, lower=None, upper=None):
        n_rows = len(lower if upper is None else upper)
        bounds = {"lower": np.full(n_rows, -np.inf) if lower is None else np.array(lower, dtype=float)}
        bounds["upper"] = np.full(n_rows, np.inf) if upper is None else np.array(upper, dtype=float)
        builder.add_rows(name, rows=np.array(rows), columns=flow, values=values, **bounds)

    row("busy", [at for at, _, _ in flows], 1.0 / speed, upper=np.ones(len(hosts)))
    number = {request: index for index, request in enumerate(wanted)}
    want = list(wanted.values())
    row("served", [number[request] for _, _, request in flows], np.ones(len(flows)), lower=want, upper=want)
    for place, part in asked.caps.items():
        inside = np.array([kinds[k].place == place for _, k, _ in flows], dtype=float)
        row("cap", np.zeros(len(flows), dtype=int), inside, upper=[part * sum(rates)])
    idle = sum(kinds[k].idle_kw for k, _ in hosts)
    if asked.most_kw is not None:
        row("energy", np.zeros(len(flows), dtype=int), kw, upper=[asked.most_kw - idle])
    raw = solve_milp(builder.freeze(), SolverSettings())
    if raw.termination is Termination.INFEASIBLE or raw.values is None:
        return None
    return float(usd @ raw.values) + sum(kinds[k].idle_kw * kinds[k].beside_per_kw for k, _ in hosts)
