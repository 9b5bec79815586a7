"""What replicas with slots serve of a service's adapters: every way to fill their slots is tried, exactly.

An adapter may be on several replicas, and each of its sizes may be split among them; it takes a slot wherever any of it
is served. Shares no code with the planner's placement or its check.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

MOST_FILLINGS = 500
"""Ways to fill the slots of one fleet that are tried; where there are more, nothing is said of it."""


class AdapterService:
    """The requests of one service's adapters, and whether given replicas of its options serve them."""

    losses = ()
    scenarios = ()

    def __init__(self, problem, demand, tenancy, *, exact, maximum):
        self.options = [option for option in problem.options if option.service == demand.service]
        self.maximum = maximum
        pressure = (1 + exact(problem.headroom_fraction)) / exact(problem.utilization_cap)
        totals = {
            group: sum(exact(b.rate_rps) for b in demand.buckets if b.group == group)
            for group in {bucket.group for bucket in demand.buckets}
        }
        self.asked = [
            {
                b: exact(tenant.rate_rps) * exact(bucket.rate_rps) / totals[tenant.group]
                for b, bucket in enumerate(demand.buckets)
                if bucket.group == tenant.group
            }
            for tenant in tenancy.tenants
        ]
        self.load = [
            {
                (a, b): rate * pressure / exact(float(option.throughput_rps[b]))
                for a, sizes in enumerate(self.asked)
                for b, rate in sizes.items()
                if option.throughput_rps[b] > 0
            }
            for option in self.options
        ]
        """Option -> (adapter, bucket) -> replicas that all of its requests keep busy."""
        self._known = {}
        self._enough = []
        self._too_few = []

    @property
    def is_possible(self):
        """Whether every adapter's sizes have an option at all."""
        able = {pair for load in self.load for pair in load}
        return able == {(a, b) for a, sizes in enumerate(self.asked) for b in sizes}

    def most_replicas(self):
        """Return the replicas of each option that serve all that it can, an adapter on each: no fleet needs more."""
        return [
            sum(
                math.ceil(sum(load for (of, _), load in loads.items() if of == a) / self._most_of_one(j))
                for a in range(len(self.asked))
            )
            for j, loads in enumerate(self.load)
        ]

    def _most_of_one(self, option):
        return Fraction(self.options[option].slots.largest_load).limit_denominator(1000)

    def unserved(self, counts, *, is_exact=False):
        """Return 0 if these replicas serve all adapters, else 1."""
        if any(all(a >= b for a, b in zip(counts, enough, strict=True)) for enough in self._enough):
            return Fraction(0)
        if any(all(a <= b for a, b in zip(counts, few, strict=True)) for few in self._too_few):
            return Fraction(1)
        if counts not in self._known:
            self._known[counts] = self._is_served(counts)
            (self._enough if self._known[counts] else self._too_few).append(counts)
        return Fraction(0 if self._known[counts] else 1)

    def _is_served(self, counts):
        replicas = [j for j, count in enumerate(counts) for _ in range(count)]
        able = [sorted({a for a, _ in loads}) for loads in self.load]
        if sum(min(self.options[j].slots.count, len(able[j])) for j in replicas) < len(self.asked):
            return False
        if not self._serves(replicas, [able[j] for j in replicas]):
            return False  # not even with a slot for every adapter everywhere
        ways = [
            list(itertools.combinations(able[j], min(self.options[j].slots.count, len(able[j]))))
            for j in range(len(counts))
        ]
        fillings = [itertools.combinations_with_replacement(ways[j], count) for j, count in enumerate(counts) if count]
        n_ways = math.prod(math.comb(len(ways[j]) + count - 1, count) for j, count in enumerate(counts) if count)
        if n_ways > MOST_FILLINGS:
            raise TooManyError
        everyone = set(range(len(self.asked)))
        for chosen in itertools.product(*fillings):
            filling = [held for of_option in chosen for held in of_option]
            if set().union(*filling) == everyone and self._serves(replicas, filling):
                return True
        return False

    def _serves(self, replicas, filling):
        """Return whether replicas of these options that hold these adapters serve all requests: one programme."""
        flows = [(host, a, b) for host, held in enumerate(filling) for a, b in self.load[replicas[host]] if a in held]
        rows, bounds = [], []
        for a, sizes in enumerate(self.asked):
            for b in sizes:
                rows.append([int((x, y) == (a, b)) for _, x, y in flows])
                bounds.append(Fraction(1))
        for host, held in enumerate(filling):
            loads = [self.load[replicas[host]][a, b] if at == host else 0 for at, a, b in flows]
            rows.append(loads)
            bounds.append(Fraction(1))
            most = self._most_of_one(replicas[host])
            for a in held if most < 1 else ():
                rows.append([load if x == a else 0 for load, (_, x, _) in zip(loads, flows, strict=True)])
                bounds.append(most)
        n_wanted = sum(map(len, self.asked))
        if not flows:
            return False
        served, _ = self.maximum([1] * len(flows), rows, bounds)
        return served == n_wanted


class TooManyError(Exception):
    """There are too many ways to fill the slots."""
