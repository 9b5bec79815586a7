"""A `FleetProblem` as flat arrays in a canonical order, checked: what the row families index into.

Demands, options and offers are sorted by name, so that the answer does not depend on the order of the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.disaggregation import Role
from planner.domain.problem import (
    COMMITTED_MARKETS,
    InstanceLoss,
    Redundancy,
    ReplicaLoss,
    Scenario,
)
from planner.optimize.egress import egress_gb
from planner.optimize.energy import energy_arrays
from planner.optimize.jobs import WorkArrays, sorted_jobs, work_arrays
from planner.optimize.problem_check import check_problem, offer_gpus
from planner.optimize.scenarios import in_scenario

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from planner.domain.hardware import Offer
    from planner.domain.jobs import Job
    from planner.domain.problem import ChangeCost, FleetProblem, Horizon, Limit, Rule, ServingOption
    from planner.domain.workload import Bucket
    from planner.optimize.energy import EnergyArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.settings import Assignment

_ROUNDING = 1e-9
"""Relative; replicas needed are counted with this much forgiveness of floating-point sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioArrays:
    """What a scenario asks of the options of a `FleetArrays`."""

    position: int
    """Of the rule in `FleetArrays.rules`."""
    name: str
    bound: float
    """Part of every bucket that must be served."""
    buckets: tuple[tuple[str, Bucket], ...]
    pair_bucket: IntArray
    pair_option: IntArray
    pair_load: FloatArray
    """As in `FleetArrays`, in this scenario."""
    option_class: IntArray
    """Options of a service with equal throughputs in this scenario are one class, shape (options,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetArrays:
    """Index sets and data of the model. b: bucket, j: option, o: offer, p: pool (offer x chain of replica sizes)."""

    options: tuple[ServingOption, ...]
    offers: tuple[Offer, ...]
    limits: tuple[Limit, ...]
    buckets: tuple[tuple[str, Bucket], ...]
    """(service, bucket), services by name, buckets in their demand's order."""
    pair_bucket: IntArray
    """Shape (pairs,): bucket of every eligible (bucket, option)."""
    pair_option: IntArray
    pair_load: FloatArray
    """Replicas at the utilisation cap that the whole bucket keeps busy, headroom included: lam (1 + rho) / (X U).

    U is the cap of the whole problem times that of the option."""
    pair_transfer: FloatArray
    """Shape (pairs,): how busy a pair keeps a replica's network, as a multiple of its load: X S / W; 0 = not at all."""
    option_offer: IntArray
    option_link: IntArray
    """Shape (options,): 0 = serves requests whole; k = prefill, -k = decode, at meeting point k."""
    option_gpus: IntArray
    option_pool: IntArray
    pool_offer: IntArray
    replicas_upper: FloatArray
    """Shape (options,): replicas that no plan needs more of."""
    units_per_bucket: float
    """What the x of one bucket sum to: 1, or the number of slices."""
    is_sliced: bool
    """Whether x is integer."""
    rules: tuple[Rule, ...]
    change: ChangeCost | None
    """None also where changes cost nothing."""
    headroom_fraction: float
    running: IntArray
    """Shape (options,): replicas of each option that run today; zeros without a `change`."""

    @property
    def is_disaggregated(self) -> bool:
        """Whether any option serves but one part of its requests."""
        return bool(np.any(self.option_link))

    @property
    def pair_covers(self) -> NDArray[np.bool_]:
        """Whether a pair's share counts as service of its bucket: all but those of decode options, shape (pairs,)."""
        return self.option_link[self.pair_option] >= 0

    @property
    def keeps_spares(self) -> bool:
        """Whether replicas that today's requests do not need can be worth keeping."""
        loses = any(isinstance(rule, Redundancy) for rule in self.rules)
        return self.change is not None or loses or bool(self.scenarios) or self.has_adapters

    horizon: Horizon | None = None
    """Periods; buckets, options and pools are then repeated per period, the first period's first. Offers are not."""
    egress_gb: FloatArray | None = None
    """Shape (pairs,): GB/h that leave the users' region if the option serves the whole bucket; None = not asked."""
    egress_usd_per_gb: float = 0.0
    energy: EnergyArrays | None = None
    """What replicas draw and emit; None where nothing limits, prices or minimises it."""
    today: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Shape (options,): replicas of each option that run today, whatever changes cost; empty if nothing is said."""
    bucket_period: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Shape (buckets,); empty where there is one steady state."""
    scenarios: tuple[ScenarioArrays, ...] = ()
    """Scenarios that ask for more than what is planned for."""
    jobs: tuple[Job, ...] = ()
    """By name."""
    work: WorkArrays = field(default_factory=WorkArrays)
    bucket_kin: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Shape (buckets,): kin of adapters whose requests a bucket is, counted over all services, -1 = none; empty
    without any."""
    group_kin: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Shape (groups,): the kin that a group is one of, as in `bucket_kin`; groups of one kin stand together."""
    group_rate_rps: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Shape (groups,): requests of every group, without headroom."""
    group_adapters: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Shape (groups,): adapters of every group."""
    group_residents: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Shape (groups,): total rate over highest rate of a group's adapters; whoever serves all has so many of them."""

    @property
    def has_adapters(self) -> bool:
        """Whether a request of any service must go where its adapter is."""
        return len(self.group_adapters) > 0

    @property
    def request_load(self) -> FloatArray:
        """Replicas at the utilisation cap that the whole bucket keeps busy on average, without headroom."""
        return self.pair_load / (1 + self.headroom_fraction)

    def with_margin(self, margin: float) -> FleetArrays:
        """Return the arrays with all loads larger by the fraction `margin`."""
        if not margin:
            return self
        work = replace(self.work, load=self.work.load * (1 + margin))
        return replace(self, pair_load=self.pair_load * (1 + margin), work=work)

    served: FloatArray | None = None
    """The part of every bucket that is served, shape (buckets,), 0..1; None = all of all."""

    @property
    def served_shares(self) -> FloatArray:
        """What the shares of every bucket sum to, shape (buckets,)."""
        return np.ones(len(self.buckets)) if self.served is None else self.served

    @property
    def n_periods(self) -> int:
        """Number of periods; 1 for a steady state."""
        return self.horizon.n_periods if self.horizon is not None else 1

    @property
    def option_period(self) -> IntArray:
        """Period of every option, shape (options,)."""
        return np.repeat(np.arange(self.n_periods), len(self.options) // self.n_periods)

    @property
    def pool_period(self) -> IntArray:
        """Period of every pool, shape (pools,)."""
        return np.repeat(np.arange(self.n_periods), len(self.pool_offer) // self.n_periods)

    @property
    def pool_is_committed(self) -> NDArray[np.bool_]:
        """Whether a pool's instances are paid in every period, shape (pools,); never so in a steady state."""
        committed = np.array([offer.market in COMMITTED_MARKETS for offer in self.offers], dtype=np.bool_)
        if self.horizon is None:
            return np.zeros(len(self.pool_offer), dtype=np.bool_)
        return committed[self.pool_offer]

    @property
    def unserved(self) -> tuple[tuple[str, Bucket], ...]:
        """Buckets that no option can serve, in one scenario or another."""
        found: list[tuple[str, Bucket]] = []
        parts: tuple[FleetArrays | ScenarioArrays, ...] = (self, *self.scenarios)
        for part in parts:
            served = set(part.pair_bucket.tolist())
            found += [bucket for index, bucket in enumerate(part.buckets) if index not in served]
        return tuple(found)

    @property
    def undone(self) -> tuple[Job, ...]:
        """Jobs that no option can do."""
        done = set(self.work.job.tolist())
        return tuple(job for index, job in enumerate(self.jobs) if index not in done)


def fleet_arrays(problem: FleetProblem, assignment: Assignment) -> FleetArrays:
    """Return `problem` as arrays.

    Raises
    ------
    InputError: if the problem contradicts itself or lacks a number that one of its limits counts.
    """
    check_problem(problem)
    options = tuple(sorted(problem.options, key=option_sort_key))
    offers = tuple(sorted({option.offer.name: option.offer for option in options}.values(), key=lambda o: o.name))
    offer_index = {offer.name: index for index, offer in enumerate(offers)}
    option_offer = np.array([offer_index[option.offer.name] for option in options], dtype=np.int64)
    option_gpus = np.array([option.gpus_per_replica for option in options], dtype=np.int64)
    buckets = _buckets(problem)
    option_link = _links(options)
    pair_bucket, pair_option, pair_load, pair_transfer = _partnered(option_link, *_pairs(problem, options))
    whole_load = _whole_load(pair_option, pair_load, pair_transfer, len(options))
    change = problem.change if problem.change is not None and problem.change.is_priced else None
    running = np.array([change.replicas_of(option) if change else 0 for option in options], dtype=np.int64)
    option_pool, pool_offer = _pools(option_offer, option_gpus, n_offers=len(offers))
    steady = FleetArrays(
        options=options,
        offers=offers,
        limits=problem.limits,
        buckets=buckets,
        pair_bucket=pair_bucket,
        pair_option=pair_option,
        pair_load=pair_load,
        pair_transfer=pair_transfer,
        option_offer=option_offer,
        option_link=option_link,
        option_gpus=option_gpus,
        option_pool=option_pool,
        pool_offer=pool_offer,
        replicas_upper=np.maximum(
            np.maximum(np.ceil(whole_load * (1 + _ROUNDING)) + _spares(problem.rules, options), running),
            np.bincount(pair_option, minlength=len(options)) > 0,
        ),
        rules=problem.rules,
        change=change,
        headroom_fraction=problem.headroom_fraction,
        running=running,
        today=np.array([problem.change.replicas_of(option) for option in options] if problem.change else [], dtype=int),
        units_per_bucket=assignment.units_per_bucket,
        is_sliced=assignment.slice_factor is not None,
    )
    steady = _with_scenarios(steady, problem)
    whole = steady if problem.horizon is None else _over_periods(steady, problem.horizon)
    if problem.jobs:
        whole = _with_jobs(whole, problem, options)
    if problem.tenancies:
        whole = _with_adapters(whole, problem)
    return replace(
        whole,
        energy=energy_arrays(problem, whole),
        egress_gb=egress_gb(problem, whole),
        egress_usd_per_gb=problem.egress.usd_per_gb if problem.egress is not None else 0.0,
    )


def _with_adapters(fleet: FleetArrays, problem: FleetProblem) -> FleetArrays:
    """Return `fleet` with the adapters of its buckets, and room for replicas that hold one adapter each."""
    rates: dict[tuple[str, int], dict[int, list[float]]] = {}
    for tenancy in problem.tenancies:
        for tenant in tenancy.tenants:
            group = tenant.group if tenant.kin_group is None else tenant.kin_group
            rates.setdefault((tenancy.service, tenant.group), {}).setdefault(group, []).append(tenant.rate_rps)
    number = {key: kin for kin, key in enumerate(rates)}
    groups = [each for kin in rates.values() for each in kin.values()]
    kin = np.array([number.get((service, bucket.group or 0), -1) for service, bucket in fleet.buckets], dtype=np.int64)
    count = np.array([len(each) for each in groups], dtype=np.int64)
    of_kin = np.array([sum(len(each) for each in kin.values()) for kin in rates.values()], dtype=np.int64)
    slots = np.array([1 if option.slots is None else option.slots.count for option in fleet.options])
    n_options = len(fleet.options)
    able = np.unique((kin[fleet.pair_bucket] * n_options + fleet.pair_option)[kin[fleet.pair_bucket] >= 0])
    held = np.bincount(able % n_options, weights=of_kin[able // n_options], minlength=n_options)
    # Each adapter on a replica with others, or where it needs more than one, on so many of its own.
    return replace(
        fleet,
        bucket_kin=kin,
        group_kin=np.repeat(np.arange(len(rates)), [len(kin) for kin in rates.values()]),
        group_rate_rps=np.array([sum(each) for each in groups]),
        group_adapters=count,
        group_residents=np.array([sum(each) / max(each) for each in groups]),
        replicas_upper=fleet.replicas_upper + np.ceil(held / slots),
    )


def _with_jobs(fleet: FleetArrays, problem: FleetProblem, options: tuple[ServingOption, ...]) -> FleetArrays:
    """Return `fleet` with the problem's jobs; where one can run, more replicas can be worth having."""
    work = work_arrays(problem, options)
    requests = np.bincount(fleet.pair_option, weights=fleet.request_load, minlength=len(fleet.options))
    together = np.ceil((requests + work.busy(np.ones(work.size), len(fleet.options))) * (1 + _ROUNDING))
    can_work = np.bincount(work.option, minlength=len(fleet.options)) > 0
    return replace(
        fleet,
        jobs=sorted_jobs(problem),
        work=work,
        replicas_upper=np.where(can_work, np.maximum(fleet.replicas_upper, together), fleet.replicas_upper),
    )


def _spares(rules: Iterable[Rule], options: Sequence[ServingOption]) -> IntArray:
    """Return how many replicas of each option a loss can take before those that serve, shape (options,).

    With so many beside what all of its buckets need, an option serves these whatever is lost.
    """
    most = np.zeros(len(options), dtype=np.int64)
    for rule in rules:
        if isinstance(rule, ReplicaLoss):
            mine = [rule.count if option.service == rule.service else 0 for option in options]
        elif isinstance(rule, InstanceLoss):
            mine = [rule.count * replicas_per_instance(option) for option in options]
        else:
            continue
        most = np.maximum(most, mine)
    return most


def replicas_per_instance(option: ServingOption) -> int:
    """Return the most replicas of `option` that one instance holds."""
    return offer_gpus(option.offer) // option.gpus_per_replica


def _over_periods(steady: FleetArrays, horizon: Horizon) -> FleetArrays:
    """Return `steady` once per period, demand times the period's factor; buckets that ask for nothing are left out."""
    n_periods, n_buckets = horizon.n_periods, len(steady.buckets)
    n_options, n_pools = len(steady.options), len(steady.pool_offer)
    factors = np.array([horizon.factors[service] for service, _ in steady.buckets]).reshape(n_buckets, n_periods).T
    is_asked = factors > 0
    position = np.cumsum(is_asked).reshape(is_asked.shape) - 1
    period, pair = np.nonzero(is_asked[:, steady.pair_bucket])
    bucket, option = steady.pair_bucket[pair], steady.pair_option[pair]
    pair_option = option + period * n_options
    pair_load = steady.pair_load[pair] * factors[period, bucket]
    pair_transfer = steady.pair_transfer[pair]
    whole_load = _whole_load(pair_option, pair_load, pair_transfer, n_options * n_periods)
    spares = np.tile(_spares(steady.rules, steady.options), n_periods)
    shift = np.repeat(np.arange(n_periods), n_options) * n_pools
    upper = np.ceil(whole_load * (1 + _ROUNDING)) + np.where(whole_load > 0, spares, 0)
    scenarios = tuple(_scenario_over_periods(each, horizon, n_options) for each in steady.scenarios)
    return replace(
        steady,
        options=steady.options * n_periods,
        buckets=tuple(
            (
                steady.buckets[b][0],
                replace(steady.buckets[b][1], rate_rps=steady.buckets[b][1].rate_rps * factors[t, b]),
            )
            for t, b in np.argwhere(is_asked).tolist()
        ),
        pair_bucket=position[period, bucket],
        pair_option=pair_option,
        pair_load=pair_load,
        pair_transfer=pair_transfer,
        option_offer=np.tile(steady.option_offer, n_periods),
        option_link=np.tile(steady.option_link, n_periods),
        option_gpus=np.tile(steady.option_gpus, n_periods),
        option_pool=np.tile(steady.option_pool, n_periods) + shift,
        pool_offer=np.tile(steady.pool_offer, n_periods),
        replicas_upper=_upper_with(scenarios, upper),
        scenarios=scenarios,
        running=np.tile(steady.running, n_periods),
        today=np.tile(steady.today, n_periods),
        horizon=horizon,
        bucket_period=np.argwhere(is_asked)[:, 0],
    )


def _scenarios(problem: FleetProblem, planned: FleetArrays) -> Iterator[ScenarioArrays]:
    """Yield the scenarios of `problem` that can need more than what is `planned`."""
    for position, rule in enumerate(problem.rules):
        if not isinstance(rule, Scenario) or rule.bound <= 0:
            continue
        then = in_scenario(replace(problem, options=planned.options), replace(rule, bound=1.0))
        bucket, option, load, _ = _pairs(then, then.options)
        classes: dict[tuple[str, bytes], int] = {}
        keys = ((each.service, each.usable_rps.tobytes()) for each in then.options)
        found = ScenarioArrays(
            position=position,
            name=rule.name,
            bound=rule.bound,
            buckets=_buckets(then),
            pair_bucket=bucket,
            pair_option=option,
            pair_load=load,
            option_class=np.array([classes.setdefault(key, len(classes)) for key in keys], dtype=np.int64),
        )
        if not _is_implied(found, planned):
            yield found


def _is_implied(scenario: ScenarioArrays, planned: FleetArrays) -> bool:
    """Return whether whatever serves what is planned serves the scenario as well, at the same shares."""
    place = {(service, b.row, b.column): index for index, (service, b) in enumerate(planned.buckets)}
    index = np.array([place.get((service, b.row, b.column), -1) for service, b in scenario.buckets], dtype=np.int64)
    if np.any(index < 0):
        return False
    n_options = len(planned.options)
    keys = index[scenario.pair_bucket] * n_options + scenario.pair_option
    load = dict(zip(keys.tolist(), (scenario.pair_load * scenario.bound).tolist(), strict=True))
    asked = np.isin(planned.pair_bucket, index)
    most = planned.pair_load[asked] * (1 + _ROUNDING)
    planned_keys = (planned.pair_bucket * n_options + planned.pair_option)[asked]
    return all(
        load.get(key, np.inf) <= at_most for key, at_most in zip(planned_keys.tolist(), most.tolist(), strict=True)
    )


def _scenario_over_periods(steady: ScenarioArrays, horizon: Horizon, n_options: int) -> ScenarioArrays:
    """Return a scenario once per period, its demand times the period's factor."""
    n_periods, n_buckets = horizon.n_periods, len(steady.buckets)
    factors = np.array([horizon.factors[service] for service, _ in steady.buckets]).reshape(n_buckets, n_periods).T
    is_asked = factors > 0
    position = np.cumsum(is_asked).reshape(is_asked.shape) - 1
    period, pair = np.nonzero(is_asked[:, steady.pair_bucket])
    bucket = steady.pair_bucket[pair]
    n_classes = int(steady.option_class.max(initial=-1)) + 1
    return replace(
        steady,
        buckets=tuple(steady.buckets[b] for _, b in np.argwhere(is_asked).tolist()),
        pair_bucket=position[period, bucket],
        pair_option=steady.pair_option[pair] + period * n_options,
        pair_load=steady.pair_load[pair] * factors[period, bucket],
        option_class=np.tile(steady.option_class, n_periods) + np.repeat(np.arange(n_periods), n_options) * n_classes,
    )


def _with_scenarios(planned: FleetArrays, problem: FleetProblem) -> FleetArrays:
    """Return `planned` with the scenarios of `problem`, and room for the replicas that they can need."""
    scenarios = tuple(_scenarios(problem, planned))
    return replace(planned, scenarios=scenarios, replicas_upper=_upper_with(scenarios, planned.replicas_upper))


def _upper_with(scenarios: Iterable[ScenarioArrays], upper: FloatArray) -> FloatArray:
    """Return the replicas that no plan needs more of, shape (options,), where scenarios may need more than `upper`."""
    for part in scenarios:
        whole = np.bincount(part.pair_option, weights=part.pair_load, minlength=len(upper))
        is_able = np.bincount(part.pair_option, minlength=len(upper)) > 0
        upper = np.maximum(upper, np.maximum(np.ceil(whole * (1 + _ROUNDING)), is_able))
    return upper


def _buckets(problem: FleetProblem) -> tuple[tuple[str, Bucket], ...]:
    """Return (service, bucket) of all buckets, services by name."""
    demands = sorted(problem.demands, key=lambda demand: demand.service)
    return tuple((demand.service, bucket) for demand in demands for bucket in demand.buckets)


def _whole_load(pair_option: IntArray, pair_load: FloatArray, pair_transfer: FloatArray, n_options: int) -> FloatArray:
    """Return the replicas of each option that all its buckets keep busy, or their network, shape (options,)."""
    busy = np.bincount(pair_option, weights=pair_load, minlength=n_options)
    return np.maximum(busy, np.bincount(pair_option, weights=pair_load * pair_transfer, minlength=n_options))


def _links(options: tuple[ServingOption, ...]) -> IntArray:
    """Return `FleetArrays.option_link`: meeting points numbered from 1 in their order of name."""
    points = sorted({option.meeting_point for option in options if option.meeting_point is not None})
    number = {point: index for index, point in enumerate(points, start=1)}
    sign = {Role.BOTH: 0, Role.PREFILL: 1, Role.DECODE: -1}
    links = [sign[option.role] * number.get(option.meeting_point or ("",) * 4, 0) for option in options]
    return np.array(links, dtype=np.int64)


def _partnered(
    option_link: IntArray,
    pair_bucket: IntArray,
    pair_option: IntArray,
    pair_load: FloatArray,
    pair_transfer: FloatArray,
) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
    """Return the pairs without those of prefill options that nobody can take a bucket over from, and vice versa."""
    if not np.any(option_link):
        return pair_bucket, pair_option, pair_load, pair_transfer
    link = option_link[pair_option]
    prefill = set(zip(pair_bucket[link > 0].tolist(), link[link > 0].tolist(), strict=True))
    decode = set(zip(pair_bucket[link < 0].tolist(), (-link[link < 0]).tolist(), strict=True))
    met = prefill & decode
    kept = np.array(
        [not at or (bucket, abs(at)) in met for bucket, at in zip(pair_bucket.tolist(), link.tolist(), strict=True)],
        dtype=np.bool_,
    )
    return pair_bucket[kept], pair_option[kept], pair_load[kept], pair_transfer[kept]


def option_sort_key(option: ServingOption) -> tuple[str, str, int, str, str, bytes, str, str, int, str]:
    """Return what options are ordered by: service, offer, size, configuration, throughput, role, then its adapters."""
    return (
        option.service,
        option.offer.name,
        option.gpus_per_replica,
        option.config.precision if option.config else "",
        repr(option.config) if option.config else "",
        b"".join(
            [
                option.throughput_rps.tobytes(),
                *(option.scenario_rps[name].tobytes() for name in sorted(option.scenario_rps)),
            ]
        ),
        option.role.value,
        option.handover.group if option.handover else "",
        option.slots.count if option.slots else 0,
        option.slots.isolation if option.slots else "",
    )


def _pairs(
    problem: FleetProblem, options: tuple[ServingOption, ...]
) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
    """Return bucket, option, load and network load of every pair of positive rate, ordered by bucket, then option."""
    pressure = (1 + problem.headroom_fraction) / problem.utilization_cap
    buckets: list[IntArray] = []
    members: list[IntArray] = []
    loads: list[FloatArray] = []
    transfers: list[FloatArray] = []
    start = 0
    for demand in sorted(problem.demands, key=lambda item: item.service):
        mine = [index for index, option in enumerate(options) if option.service == demand.service]
        size = len(demand.buckets)
        if mine and size:
            throughput = np.array([options[index].usable_rps for index in mine]).T
            rates = np.array([bucket.rate_rps for bucket in demand.buckets])
            inner_bucket, inner_option = np.nonzero(throughput > 0)
            buckets.append(inner_bucket + start)
            members.append(np.array(mine, dtype=np.int64)[inner_option])
            loads.append(rates[inner_bucket] * pressure / throughput[inner_bucket, inner_option])
            busy_s = np.array([_transfer_s(options[index], size) for index in mine]).T
            transfers.append((busy_s * throughput)[inner_bucket, inner_option])
        start += size
    if not buckets:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)
    return np.concatenate(buckets), np.concatenate(members), np.concatenate(loads), np.concatenate(transfers)


def _transfer_s(option: ServingOption, n_buckets: int) -> FloatArray:
    """Return how long one request of each bucket keeps a replica's network busy, shape (buckets,)."""
    if option.handover is None:
        return np.zeros(n_buckets)
    return np.asarray(option.handover.kv_bytes / option.handover.bytes_per_s, dtype=np.float64)


def chains(sizes: list[int]) -> list[list[int]]:
    """Return `sizes` (distinct) split into chains in which every size divides the next larger one.

    Largest first, each size goes to the first chain whose smallest member it divides: one chain for 1, 2, 4, 8.

    Examples
    --------
    >>> chains([1, 2, 4, 8])
    [[8, 4, 2, 1]]
    >>> chains([2, 3, 6, 4])
    [[6, 3], [4, 2]]
    """
    found: list[list[int]] = []
    for size in sorted(set(sizes), reverse=True):
        home = next((chain for chain in found if chain[-1] % size == 0), None)
        if home is None:
            found.append([size])
        else:
            home.append(size)
    return found


def _pools(option_offer: IntArray, option_gpus: IntArray, *, n_offers: int) -> tuple[IntArray, IntArray]:
    """Return every option's pool and every pool's offer; instances of one pool hold one chain of replica sizes."""
    option_pool = np.zeros(len(option_offer), dtype=np.int64)
    pool_offer: list[int] = []
    members: list[list[int]] = [[] for _ in range(n_offers)]
    for option, offer in enumerate(option_offer.tolist()):
        members[offer].append(option)
    for offer, mine in enumerate(members):
        for chain in chains([int(option_gpus[option]) for option in mine]):
            for option in mine:
                if int(option_gpus[option]) in chain:
                    option_pool[option] = len(pool_offer)
            pool_offer.append(offer)
    return option_pool, np.array(pool_offer, dtype=np.int64)
