"""Exact answers to small problems of any kind: every fleet is tried, its shares by an exact simplex in integers.

Shares no code with the planner's rows, arrays or checks: it reads the `FleetProblem` alone. A fleet is judged service
by service and period by period; what a service can serve with given replicas is one linear programme, and its duals
bound what it can serve with any others, so that few of them are solved.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from operator import mul

from adapter_enumeration import AdapterService, TooManyError
from enumeration import fits

from planner.domain.hardware import Market
from planner.domain.problem import (
    InstanceLoss,
    Measure,
    Minimum,
    ReplicaLoss,
    Resource,
    Scenario,
    ShareCap,
    Survival,
    VarietyLimit,
)

MOST_FLEETS = 1500
"""Replica counts of one period that are tried at most; larger problems are not enumerated."""
MOST_SCHEDULES = 4000


def exact(value):
    """Return a float that is meant as a short decimal or a small fraction as that number."""
    return Fraction(value).limit_denominator(10**6)


# --- linear programmes in integers ----------------------------------------------------------------------------------


def maximum(objective, rows, bounds):
    """Return the largest objective . v with rows v <= bounds (>= 0), v >= 0, and the duals of the rows, exactly.

    Bland's rule on a tableau of integers (Edmonds' pivoting: every entry is a determinant, so divisions are exact).
    """
    size, n_rows = len(objective), len(rows)
    table, scales = [], []
    for index, (row, bound) in enumerate(zip(rows, bounds, strict=True)):
        entries = [*row, bound]
        scale = math.lcm(*(Fraction(value).denominator for value in entries))
        scaled = [int(value * scale) for value in entries]
        table.append([*scaled[:-1], *(int(index == other) for other in range(n_rows)), scaled[-1]])
        scales.append(scale)
    aim = math.lcm(*(Fraction(value).denominator for value in objective))
    reduced = [*(int(value * aim) for value in objective), *([0] * (n_rows + 1))]
    basis, pivot = [size + row for row in range(n_rows)], 1
    while True:
        enter = next((column for column, value in enumerate(reduced[:-1]) if value > 0), None)
        if enter is None:
            duals = [Fraction(-reduced[size + row] * scales[row], pivot * aim) for row in range(n_rows)]
            return Fraction(-reduced[-1], pivot * aim), duals
        leave, best = -1, None
        for row, entries in enumerate(table):
            if entries[enter] > 0 and (
                best is None
                or (change := entries[-1] * best[1] - best[0] * entries[enter]) < 0
                or (change == 0 and basis[row] < basis[leave])
            ):
                leave, best = row, (entries[-1], entries[enter])
        lead = table[leave]
        new = lead[enter]
        for row, entries in enumerate(table):
            if row != leave:
                factor = entries[enter]
                table[row] = [(a * new - factor * b) // pivot for a, b in zip(entries, lead, strict=True)]
        factor = reduced[enter]
        reduced = [(a * new - factor * b) // pivot for a, b in zip(reduced, lead, strict=True)]
        basis[leave], pivot = enter, new


# --- what one service can serve -------------------------------------------------------------------------------------


class Service:
    """The requests of one service in one period, and what replicas of its options serve of them."""

    def __init__(self, problem, demand, factor):
        self.options = [option for option in problem.options if option.service == demand.service]
        self.rates = [exact(bucket.rate_rps) * exact(factor) for bucket in demand.buckets] if factor else []
        self.total = sum(self.rates, Fraction(0))
        cap = exact(problem.utilization_cap)
        self.bare = {
            (b, j): rate / (exact(float(option.throughput_rps[b])) * cap)
            for b, rate in enumerate(self.rates)
            for j, option in enumerate(self.options)
            if option.throughput_rps[b] > 0
        }
        self.pairs = sorted(self.bare)
        self.pressure = 1 + exact(problem.headroom_fraction)
        self.losses = list(self._losses(problem.rules, demand.service))
        self.scenarios = list(self._scenarios(problem, demand.service, exact(factor))) if self.rates else []
        self._build(problem.rules, demand.service)
        self._cuts = []
        self._enough = []
        self._known = {}

    def _scenarios(self, problem, name, factor):
        """Yield (fraction to serve, number of buckets, replicas that each pair keeps busy) of every scenario."""
        for rule in problem.rules:
            if isinstance(rule, Scenario) and rule.bound > 0:
                (demand,) = [each for each in rule.demands if each.service == name]
                pressure = (1 + exact(rule.headroom_fraction)) / exact(problem.utilization_cap)
                loads = {
                    (b, j): exact(bucket.rate_rps)
                    * factor
                    * pressure
                    / exact(float(option.throughput_in(rule.name)[b]))
                    for b, bucket in enumerate(demand.buckets)
                    for j, option in enumerate(self.options)
                    if option.throughput_in(rule.name)[b] > 0
                }
                yield exact(rule.bound), len(demand.buckets), loads

    def _losses(self, rules, name):
        """Yield (fraction to survive, replicas that each option loses) of every loss."""
        size = len(self.options)
        offers = sorted({option.offer.name for option in self.options})
        for rule in rules:
            if isinstance(rule, Survival) and rule.bound > 0:
                groups = defaultdict(set)
                for j, option in enumerate(self.options):
                    if rule.scope.covers(option.offer):
                        groups[rule.facet.of(option.offer)].add(j)
                for lost in groups.values():
                    yield exact(rule.bound), [math.inf if j in lost else 0 for j in range(size)]
            elif isinstance(rule, ReplicaLoss) and rule.service == name:
                for chosen in itertools.combinations_with_replacement(range(size), rule.count):
                    yield exact(rule.bound), [chosen.count(j) for j in range(size)]
            elif isinstance(rule, InstanceLoss):
                for chosen in itertools.combinations_with_replacement(offers, rule.count):
                    each = [round(o.offer.gpus_per_instance) // o.gpus_per_replica for o in self.options]
                    lost = [chosen.count(o.offer.name) * n for o, n in zip(self.options, each, strict=True)]
                    if any(lost) or not offers:
                        yield exact(rule.bound), lost

    def _build(self, rules, name):
        """Rows over x and, for every loss, the shares w after it; right sides are 1, 0 or (option, replicas lost)."""
        columns = {("x", pair): index for index, pair in enumerate(self.pairs)}
        for z, (_, lost) in enumerate(self.losses):
            for pair in self.pairs:
                if lost[pair[1]] < math.inf:
                    columns["w", z, pair] = len(columns)
        for s, (_, _, loads) in enumerate(self.scenarios):
            for pair in loads:
                columns["s", s, pair] = len(columns)
        self.rows, self.kinds = [], []

        def add(kind, entries):
            row = [Fraction(0)] * len(columns)
            for key, value in entries:
                row[columns[key]] += value
            self.rows.append(row)
            self.kinds.append(kind)

        for b in range(len(self.rates)):
            add(1, [(("x", pair), 1) for pair in self.pairs if pair[0] == b])
        for j in range(len(self.options)):
            mine = [pair for pair in self.pairs if pair[1] == j]
            add((j, 0), [(("x", pair), self.bare[pair] * self.pressure) for pair in mine])
            for z, (_, lost) in enumerate(self.losses):
                if lost[j] < math.inf:
                    add((j, lost[j]), [(("w", z, pair), self.bare[pair]) for pair in mine])
        for z, (bound, lost) in enumerate(self.losses):
            for b in range(len(self.rates)):
                served = [(("x", pair), bound) for pair in self.pairs if pair[0] == b]
                left = [(("w", z, pair), -1) for pair in self.pairs if pair[0] == b and lost[pair[1]] < math.inf]
                add(0, served + left)
        for s, (bound, n_buckets, loads) in enumerate(self.scenarios):
            for j in range(len(self.options)):
                add((j, 0), [(("s", s, pair), load) for pair, load in loads.items() if pair[1] == j])
            for b in range(n_buckets):
                # Nothing is served as planned unless the scenario is served as well.
                planned = [(("x", pair), bound) for pair in self.pairs if pair[0] == 0]
                add(0, planned + [(("s", s, pair), -1) for pair in loads if pair[0] == b])
        for rule in rules:
            if isinstance(rule, ShareCap) and rule.service in {None, name}:
                groups = {rule.facet.of(o.offer) for o in self.options if rule.scope.covers(o.offer)}
                for group in groups:
                    add(0, list(self._share(rule, group)))
        self.objective = [Fraction(0)] * len(columns)
        for pair in self.pairs:
            self.objective[columns["x", pair]] = self.rates[pair[0]]

    def _share(self, rule, group):
        for pair in self.pairs:
            offer = self.options[pair[1]].offer
            inside = rule.scope.covers(offer) and rule.facet.of(offer) == group
            yield ("x", pair), self.rates[pair[0]] * (int(inside) - exact(rule.bound))

    @property
    def is_possible(self):
        """Whether every bucket has an option at all."""
        cases = [(len(self.rates), self.bare), *((n, loads) for _, n, loads in self.scenarios)]
        return all({b for b, _ in loads} == set(range(n)) for n, loads in cases)

    def most_replicas(self):
        """Return the replicas of each option that serve everything alone: no fleet needs more."""
        loads = [
            sum((load * self.pressure for (_, j), load in self.bare.items() if j == mine), Fraction(0))
            for mine in range(len(self.options))
        ]
        spares = [max([lost[j] for _, lost in self.losses if lost[j] < math.inf], default=0) for j in range(len(loads))]
        most = [math.ceil(load) + spare for load, spare in zip(loads, spares, strict=True)]
        for _, _, then in self.scenarios:
            whole = [
                sum((load for (_, j), load in then.items() if j == mine), Fraction(0)) for mine in range(len(most))
            ]
            most = [max(n, math.ceil(load)) for n, load in zip(most, whole, strict=True)]
        return most

    def unserved(self, counts, *, is_exact):
        """Return the least unserved req/s with these replicas; without `is_exact` 1 stands for any above 0."""
        if not self.rates:
            return Fraction(0)
        if any(all(a >= b for a, b in zip(counts, enough, strict=True)) for enough in self._enough):
            return Fraction(0)
        if not is_exact:
            bounds = self._bounds(counts)
            if any(sum(map(mul, duals, bounds)) < self.total for duals in self._cuts):
                return Fraction(1)
        if counts not in self._known:
            self._known[counts] = self._solve(counts)
        return self._known[counts]

    def _bounds(self, counts):
        """Return the rows' right sides: 1 or 0, or what is left of an option's replicas."""
        return [kind if isinstance(kind, int) else max(0, counts[kind[0]] - kind[1]) for kind in self.kinds]

    def _solve(self, counts):
        served, duals = maximum(self.objective, self.rows, self._bounds(counts))
        if served == self.total:
            self._enough.append(counts)
        else:
            self._cuts.append(duals)
        return self.total - served


# --- every fleet ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a fleet comes to."""

    unserved: tuple
    """Req/s by priority, most important first; the mean over the periods."""
    cost: float
    """USD/h with changes, the mean over the periods."""
    watts: float
    gpus: float

    def stage(self, weights):
        """Return a weighted sum of measures in their units."""
        values = {Measure.COST: self.cost, Measure.POWER: self.watts / 1000, Measure.GPUS: self.gpus}
        return sum(weight * values[measure] for measure, weight in weights.items())


@dataclass(frozen=True)
class State:
    """Replicas of one period, and what follows from them apart from instances."""

    needed: tuple
    unserved: tuple
    watts: float
    change: float

    def is_as_good(self, other):
        """Whether nothing speaks for the other one."""
        return (
            self.unserved <= other.unserved
            and self.watts <= other.watts
            and self.change <= other.change
            and all(a <= b for a, b in zip(self.needed, other.needed, strict=True))
        )


@cache
def instances_for(sizes, gpus):
    """Return the fewest instances for these replica sizes."""
    return fits(list(sizes), gpus)


def enumerate_fleets(problem):
    """Return the best values (unserved by priority, objectives), None if no fleet will do, "large" if too many.

    Adapters are on as many replicas as have slots for them, whole or in parts (`adapter_enumeration`).
    What is prefilled and decoded apart is not followed here (tests/optimize/test_disaggregation.py does), nor is work
    with a deadline, which joins services and periods in one programme (tests/optimize/test_deferrable.py).
    """
    if problem.jobs or any(option.handover is not None for option in problem.options):
        return "large"
    if problem.energy is not None or problem.egress is not None:
        return "large"  # what shares cost is not enumerated
    try:
        return _Enumeration(problem).best()
    except TooManyError:
        return "large"


class _Enumeration:
    def __init__(self, problem):
        self.problem = problem
        self.offers = list({option.offer.name: option.offer for option in problem.options}.values())
        horizon = problem.horizon
        self.n_periods = horizon.n_periods if horizon else 1
        tenancies = {tenancy.service: tenancy for tenancy in problem.tenancies}
        self.services = [
            [
                AdapterService(problem, d, tenancies[d.service], exact=exact, maximum=maximum)
                if d.service in tenancies
                else Service(problem, d, horizon.factors[d.service][t] if horizon else 1)
                for d in problem.demands
            ]
            for t in range(self.n_periods)
        ]
        priority = problem.shed.priority if problem.shed else {}
        self.ranks = [priority.get(demand.service, 1) for demand in problem.demands]

    def best(self):
        if not all(service.is_possible for period in self.services for service in period):
            return None
        states = []
        for period in self.services:
            found = self._states(period)
            if found == "large":
                return "large"
            states.append(found)
        if not all(states):
            return None
        outcomes = self._schedules(states)
        return outcomes if outcomes == "large" else self._chosen(outcomes)

    # replicas of one period

    def _states(self, services):
        change = self.problem.change
        options = [(index, option) for index, service in enumerate(services) for option in service.options]
        now = [change.replicas_of(option) if change and change.is_priced else 0 for _, option in options]
        most = [
            max(*pair) for pair in zip((m for service in services for m in service.most_replicas()), now, strict=True)
        ]
        # Programmes grow with the losses; where demand may be shed every fleet has one of its own.
        effort = (4 if self.problem.shed else 1) * (
            1 + sum(len(service.losses) + len(service.scenarios) for service in services) // 4
        )
        if math.prod(m + 1 for m in most) * effort > MOST_FLEETS:
            return "large"
        states = {}
        for counts in sorted(itertools.product(*(range(m + 1) for m in most)), key=sum):
            state = self._state(services, options, counts, now)
            if state is not None:
                states.setdefault(state, None)
        kept = []
        for state in states:
            if not any(other.is_as_good(state) for other in kept):
                kept = [other for other in kept if not state.is_as_good(other)]
                kept.append(state)
        return kept

    def _state(self, services, options, counts, now):
        limits = self.problem.limits
        for limit in limits:
            if limit.resource is Resource.WATTS:
                used = sum(
                    o.power_w * n for (_, o), n in zip(options, counts, strict=True) if limit.scope.covers(o.offer)
                )
                if used > limit.bound:
                    return None
        sheds = self.problem.shed is not None
        by_rank, start = dict.fromkeys(sorted(set(self.ranks)), Fraction(0)), 0
        for rank, service in zip(self.ranks, services, strict=True):
            mine = counts[start : start + len(service.options)]
            start += len(service.options)
            left = service.unserved(mine, is_exact=sheds)
            if left and not sheds:
                return None
            by_rank[rank] += left
        sizes = defaultdict(list)
        for (_, option), n in zip(options, counts, strict=True):
            sizes[option.offer.name] += [option.gpus_per_replica] * n
        change = self.problem.change
        up, down = (sum(max(s * (n - m), 0) for n, m in zip(counts, now, strict=True)) for s in (1, -1))
        return State(
            needed=tuple(instances_for(tuple(sorted(sizes[o.name])), round(o.gpus_per_instance)) for o in self.offers),
            unserved=tuple(by_rank.values()),
            watts=sum((option.power_w or 0.0) * n for (_, option), n in zip(options, counts, strict=True)),
            change=(up * change.start_usd + down * change.stop_usd) / change.horizon_hours if change else 0.0,
        )

    # instances of all periods

    def _schedules(self, states):
        """Return every outcome of instances in every period that some state of it fits into."""
        if self.problem.horizon is None:
            extra = self._minimum()
            return [
                self._outcome((state,), (rented,))
                for state in states[0]
                for rented in itertools.product(
                    *(range(n, max(n, e) + 1) for n, e in zip(state.needed, extra, strict=True))
                )
                if self._is_allowed((rented,), [(0,) * len(rented)])
            ]
        top = [
            max(*(state.needed[o] for period in states for state in period), self._minimum()[o])
            for o in range(len(self.offers))
        ]
        n_rented = math.prod(m + 1 for m in top)
        if n_rented**self.n_periods > MOST_SCHEDULES * 8:
            return "large"
        every = list(itertools.product(*(range(m + 1) for m in top)))
        fitting = [
            {
                m: found
                for m in every
                if (found := [s for s in period if all(a <= b for a, b in zip(s.needed, m, strict=True))])
            }
            for period in states
        ]
        if math.prod(len(period) for period in fitting) > MOST_SCHEDULES:
            return "large"
        outcomes = []
        for schedule in itertools.product(*fitting):
            started = self._starts(schedule)
            if started is None or not self._is_allowed(schedule, started):
                continue
            choices = [period[m] for period, m in zip(fitting, schedule, strict=True)]
            every_choice = itertools.product(*(self._undominated(each) for each in choices))
            outcomes += [self._outcome(chosen, schedule, started) for chosen in every_choice]
        return outcomes

    @staticmethod
    def _undominated(states):
        kept = []
        for state in sorted(states, key=lambda s: (s.unserved, s.watts, s.change)):
            if not any(
                k.unserved <= state.unserved and k.watts <= state.watts and k.change <= state.change for k in kept
            ):
                kept.append(state)
        return kept

    def _minimum(self):
        """Return the instances of each offer that could be rented for a minimum alone."""
        most = [0] * len(self.offers)
        for rule in self.problem.rules:
            if isinstance(rule, Minimum):
                for index, offer in enumerate(self.offers):
                    if rule.scope.covers(offer):
                        each = offer.gpus_per_instance if rule.resource is Resource.GPUS else 1
                        most[index] = max(most[index], math.ceil(rule.bound / each))
        return most

    def _starts(self, schedule):
        """Return what is started for each period, by offer; None if a lease or a commitment is broken."""
        horizon = self.problem.horizon
        lease = max(1, math.ceil(horizon.minimum_lease_s / horizon.step_s))
        started = [[0] * len(self.offers) for _ in schedule]
        for o, offer in enumerate(self.offers):
            counts = [rented[o] for rented in schedule]
            if offer.market in {Market.RESERVED_1Y, Market.RESERVED_3Y}:
                if len(set(counts)) > 1:
                    return None
                continue
            ages = [99] * counts[-1]
            for period in [*range(len(counts))] * 3:
                ages = [age + 1 for age in ages]
                gone = ages[: max(0, len(ages) - counts[period])]
                if any(age < lease for age in gone):
                    return None
                new = max(0, counts[period] - len(ages))
                ages = ages[len(gone) :] + [0] * new
                started[period][o] = new
        return started

    def _is_allowed(self, schedule, started):
        horizon = self.problem.horizon
        lead = math.ceil(horizon.start_up_s / horizon.step_s) if horizon else 0
        for rule in self.problem.rules:
            if isinstance(rule, VarietyLimit):
                used = {o for rented in schedule for o, m in enumerate(rented) if m}
                if len({rule.facet.of(self.offers[o]) for o in used}) > rule.bound:
                    return False
            if isinstance(rule, Minimum) and any(self._counted(rule, rented) < rule.bound for rented in schedule):
                return False
        for period, rented in enumerate(schedule):
            held = list(rented)
            for ahead in range(1, lead + 1):
                held = [a + b for a, b in zip(held, started[(period + ahead) % len(schedule)], strict=True)]
            if not self._keeps_limits(held):
                return False
        return True

    def _counted(self, rule, rented):
        each = (lambda o: o.gpus_per_instance) if rule.resource is Resource.GPUS else (lambda _: 1)
        return sum(each(o) * m for o, m in zip(self.offers, rented, strict=True) if rule.scope.covers(o))

    def _keeps_limits(self, held):
        if any(o.available is not None and m > o.available for o, m in zip(self.offers, held, strict=True)):
            return False
        for limit in self.problem.limits:
            if limit.resource is not Resource.WATTS:
                used = sum(
                    usage(limit.resource, o) * m
                    for o, m in zip(self.offers, held, strict=True)
                    if limit.scope.covers(o)
                )
                if used > limit.bound + 1e-9:
                    return False
        return True

    def _outcome(self, chosen, schedule, started=None):
        horizon = self.problem.horizon
        share = horizon.start_up_s / horizon.step_s if horizon else 0.0
        started = started or [[0] * len(self.offers)] * len(schedule)
        paid = [
            [m + share * up for m, up in zip(rented, ups, strict=True)]
            for rented, ups in zip(schedule, started, strict=True)
        ]
        n = len(schedule)
        return Outcome(
            unserved=tuple(sum(each) / n for each in zip(*(state.unserved for state in chosen), strict=True)),
            cost=sum(float(o.price_usd_per_hour) * m for each in paid for o, m in zip(self.offers, each, strict=True))
            / n
            + sum(state.change for state in chosen) / n,
            watts=sum(state.watts for state in chosen) / n,
            gpus=sum(o.gpus_per_instance * m for each in paid for o, m in zip(self.offers, each, strict=True)) / n,
        )

    def _chosen(self, outcomes):
        """Return the best values one objective after the other, each kept up to what the goal lets it be missed."""
        if not outcomes:
            return None
        least = min(outcome.unserved for outcome in outcomes)
        left = [outcome for outcome in outcomes if outcome.unserved == least]
        goal = self.problem.goal
        stages = [] if goal is None else list(goal.stages)
        if not any(Measure.COST in stage for stage in stages):
            stages.append({Measure.COST: 1.0})
        values = []
        for stage in stages:
            value = min(outcome.stage(stage) for outcome in left)
            values.append(value)
            within = 0.0 if goal is None else goal.within
            left = [outcome for outcome in left if outcome.stage(stage) <= value * (1 + within) + 1e-9 * max(value, 1)]
        return [float(value) for value in least], values


def usage(resource, offer):
    """Return how much of a limit one instance uses."""
    return {
        Resource.INSTANCES: 1.0,
        Resource.GPUS: offer.gpus_per_instance,
        Resource.VCPUS: offer.vcpus or 0.0,
        Resource.USD_PER_HOUR: float(offer.price_usd_per_hour),
    }[resource]
