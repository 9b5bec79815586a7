"""Leaves out what no cheapest plan needs: dominated options and dominated offers. Exact: the optimal cost stays.

An option is dominated by another one of the same service on the same offer if it needs at least as many GPUs (a
multiple, so that replicas still pack), serves no bucket faster, in no scenario either, does no job's work faster, and
draws no less power where watts are limited or minimised, and no less energy where that is counted. Prefill and decode
options are dominated by options of the same role and meeting point alone; but where every offer of a region with such
options is dominated by one of another region, all of them go.

An offer b is dominated by an offer a of which any number can be had if everything that runs on one instance of b also
runs on r = G_b / G_a instances of a, for no more money and no more of anything that is limited. Real catalogs list the
same machine in dozens of regions, and 8-GPU machines at 8 times the price of the 1-GPU machine beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import (
    COMMITTED_MARKETS,
    EnergyBudget,
    Facet,
    InstanceLoss,
    Measure,
    Minimum,
    Resource,
    ShareCap,
    Survival,
    VarietyLimit,
)
from planner.optimize.arrays import chains, option_sort_key, replicas_per_instance
from planner.optimize.egress import is_as_near
from planner.optimize.energy import counts_energy
from planner.optimize.problem_check import offer_gpus
from planner.optimize.rows.limits import instance_usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.domain.hardware import Offer
    from planner.domain.problem import FleetProblem, ServingOption

_PRICE_TOLERANCE = 1e-12
"""Relative: 8 x 0.1 is not 0.8 in floating point, and such offers are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfferGroup:
    """An offer with its options and what decides whether it can replace another."""

    offer: Offer
    gpus: int
    options: tuple[ServingOption, ...]
    signature: tuple[bool | str, ...]
    """Which limits cover the offer, and the groups that rules count it in."""
    is_running: bool
    """Whether replicas run on it today, and leaving it costs something."""

    @property
    def is_unlimited(self) -> bool:
        return self.offer.available is None

    @property
    def sizes(self) -> list[int]:
        return sorted({option.gpus_per_replica for option in self.options})


def prune(problem: FleetProblem, *, keep_apart: str | None = None) -> FleetProblem:
    """Return `problem` without dominated options and offers; its cheapest plans cost the same.

    Parameters
    ----------
    keep_apart : a GPU that offers of other GPUs must not replace (nor be replaced by), for questions about this GPU.
    """
    kept: list[_OfferGroup] = []
    for group in _without_dominated_regions(_ranked_groups(problem, keep_apart), problem):
        if not any(_replaces(better, group, problem) for better in kept):
            kept.append(group)
    options = tuple(option for group in kept for option in group.options)
    return replace(problem, options=options)


def stand_ins(problem: FleetProblem, facet: Facet) -> dict[str, int]:
    """Return for every offer how many other groups of `facet` have an offer that can take all of its place.

    Only offers of the same GPU that come before it in the order of pruning are counted, so that offers that give way to
    each other one after the other come to an end.
    """
    ranked = _ranked_groups(problem, None)
    found = {}
    for index, group in enumerate(ranked):
        own = facet.of(group.offer)
        rivals = (better for better in ranked[:index] if better.offer.gpu == group.offer.gpu)
        others = {
            facet.of(better.offer)
            for better in rivals
            if facet.of(better.offer) != own and _replaces(better, group, problem)
        }
        found[group.offer.name] = len(others)
    return found


def _ranked_groups(problem: FleetProblem, keep_apart: str | None) -> list[_OfferGroup]:
    """Return the offers with their undominated options, each before those that it can take the place of.

    Cheapest per GPU first, small instances before large ones, then by name: among equals the first name stays, which is
    also the tie-break between plans.
    """
    by_offer: dict[str, list[ServingOption]] = {}
    for option in sorted(problem.options, key=option_sort_key):
        rates = (option.throughput_rps, *option.scenario_rps.values())
        if any(np.any(rate > 0) for rate in rates) or _is_rented_unused(problem, option):
            by_offer.setdefault(option.offer.name, []).append(option)
    groups = [
        _OfferGroup(
            offer=options[0].offer,
            gpus=offer_gpus(options[0].offer),
            options=_undominated(options, problem),
            signature=(
                *(limit.scope.covers(options[0].offer) for limit in problem.limits),
                options[0].offer.gpu == keep_apart,
                *_marks(problem, options[0].offer),
            ),
            is_running=any(_runs(problem, option) for option in options),
        )
        for options in by_offer.values()
    ]
    return sorted(groups, key=lambda group: (group.offer.price_usd_per_hour / group.gpus, group.gpus, group.offer.name))


def _without_dominated_regions(groups: Sequence[_OfferGroup], problem: FleetProblem) -> list[_OfferGroup]:
    """Return `groups` without prefill and decode options where another region can do all that a region does.

    A region's prefill and decode replicas move together, each offer's content to an offer of the other region.
    """
    by_region: dict[tuple[str, str], list[_OfferGroup]] = {}
    for group in groups:
        if any(option.handover is not None for option in group.options):
            by_region.setdefault((group.offer.provider, group.offer.region), []).append(group)
    kept: list[list[_OfferGroup]] = []
    dropped: set[str] = set()
    for region in sorted(by_region.values(), key=_price_per_gpu):
        if any(all(any(_replaces(here, group, problem, moves=True) for here in better) for group in region)
               for better in kept):  # fmt: skip
            dropped |= {group.offer.name for group in region}
        else:
            kept.append(region)
    left = (_only_whole(group) if group.offer.name in dropped else group for group in groups)
    return [group for group in left if group.options]


def _price_per_gpu(region: Sequence[_OfferGroup]) -> float:
    """Return the mean price of a GPU over a region's offers."""
    return sum(group.offer.price_usd_per_hour / group.gpus for group in region) / len(region)


def _only_whole(group: _OfferGroup) -> _OfferGroup:
    return replace(group, options=tuple(option for option in group.options if option.handover is None))


def _aims_at_power(problem: FleetProblem) -> bool:
    return problem.goal is not None and any(Measure.POWER in stage for stage in problem.goal.stages)


def _marks(problem: FleetProblem, offer: Offer) -> Iterator[bool | str]:
    """Yield what two offers must share so that one can stand for the other under the rules.

    An offer that takes another one's place must not bring a new GPU type or provider, nor a larger part of the
    requests to a group whose part is capped. The number of distinct offers only falls, unless one of an offer's zones
    gives way to another offer and the others do not; and minima stay fulfilled.
    """
    for rule in problem.rules:
        if isinstance(rule, VarietyLimit):
            yield offer.part_of if rule.facet is Facet.OFFER else rule.facet.of(offer)
        if isinstance(rule, Minimum | EnergyBudget):
            yield rule.scope.covers(offer)
        if isinstance(rule, ShareCap | Survival):
            yield rule.facet.of(offer) if rule.scope.covers(offer) else ""


def _can_lose_instances(problem: FleetProblem) -> bool:
    return any(isinstance(rule, InstanceLoss) for rule in problem.rules)


def _runs(problem: FleetProblem, option: ServingOption) -> bool:
    """Return whether replicas of `option` run today and changes cost something."""
    return problem.change is not None and problem.change.is_priced and problem.change.replicas_of(option) > 0


def _is_rented_unused(problem: FleetProblem, option: ServingOption) -> bool:
    """Return whether there can be a reason to rent for `option` although it serves nothing."""
    minimums = (rule for rule in problem.rules if isinstance(rule, Minimum))
    return _runs(problem, option) or any(rule.scope.covers(option.offer) for rule in minimums)


def _undominated(options: Sequence[ServingOption], problem: FleetProblem) -> tuple[ServingOption, ...]:
    """Return the options of one offer without those that another one of them makes superfluous."""
    watts = _aims_at_power(problem) or any(
        limit.resource is Resource.WATTS and limit.scope.covers(options[0].offer) for limit in problem.limits
    )
    energy = counts_energy(problem)
    # A smaller replica in its place can cut a chain of sizes in two (1, 2, 4 with 3), so sizes must already chain.
    sizes_chain = len(chains([option.gpus_per_replica for option in options])) == 1
    same_size = not sizes_chain or _can_lose_instances(problem)  # a lost instance takes more of the smaller replicas
    kept: list[ServingOption] = []
    for option in sorted(options, key=lambda item: (item.gpus_per_replica, item.power_w or 0.0)):
        stays = _runs(problem, option)
        if stays or not any(
            _serves_as_well(better, option, watts=watts, energy=energy, same_size=same_size) for better in kept
        ):
            kept = [
                old
                for old in kept
                if _runs(problem, old) or not _serves_as_well(option, old, watts=watts, energy=energy, same_size=True)
            ]
            kept.append(option)
    return tuple(sorted(kept, key=option_sort_key))


def _serves_as_well(
    better: ServingOption, worse: ServingOption, *, watts: bool, energy: bool, same_size: bool, moves: bool = False
) -> bool:
    """Return whether each replica of `worse` can be swapped for one of `better`; elsewhere if all there `moves`."""
    if better.service != worse.service or better.gpus_per_replica > worse.gpus_per_replica:
        return False
    if not _hands_over_as_well(better, worse, moves=moves) or not _holds_as_many(better, worse):
        return False
    if same_size and better.gpus_per_replica != worse.gpus_per_replica:
        return False
    if watts and (better.power_w or 0.0) > (worse.power_w or 0.0):
        return False
    if energy and not _draws_no_more(better, worse):
        return False
    return _is_as_fast(better, worse)


def _holds_as_many(better: ServingOption, worse: ServingOption) -> bool:
    """Return whether a replica of `better` holds as many adapters; what they share follows from who is served there."""
    if worse.slots is None or better.slots is None:
        return better.slots is worse.slots
    # Processes that take turns have each its part of the replica: more of them leave less for each.
    has_part = better.slots.largest_load >= worse.slots.largest_load
    return better.slots.count >= worse.slots.count and has_part


def _is_as_fast(better: ServingOption, worse: ServingOption) -> bool:
    """Return whether `better` serves every bucket at least as fast, in every scenario too, and does every job so."""
    if any(better.job_rates.get(job, 0.0) < rate for job, rate in worse.job_rates.items()):
        return False
    scenarios = better.scenario_rps.keys() | worse.scenario_rps.keys()
    caps = better.utilization_cap, worse.utilization_cap
    return bool(np.all(better.usable_rps >= worse.usable_rps)) and all(
        bool(np.all(better.throughput_in(name) * caps[0] >= worse.throughput_in(name) * caps[1])) for name in scenarios
    )


def _draws_no_more(better: ServingOption, worse: ServingOption) -> bool:
    """Return whether `better` draws no more than `worse`, idle and for every request, in the same place."""
    idle, extra = _idle_and_extra_w(better)
    idle_worse, extra_worse = _idle_and_extra_w(worse)
    return idle <= idle_worse and bool(np.all(extra * worse.throughput_rps <= extra_worse * better.throughput_rps))


def _idle_and_extra_w(option: ServingOption) -> tuple[float, float]:
    idle = float(option.idle_power_w or 0.0)
    return idle, float(option.busy_power_w or 0.0) - idle


def _is_as_clean(better: Offer, worse: Offer, problem: FleetProblem) -> bool:
    """Return whether what is drawn at `better` never counts for more than at `worse`: as energy, carbon or money."""
    if problem.energy is None:
        return True
    here, there = problem.energy.site(better), problem.energy.site(worse)
    if here is None or there is None:
        return here is there
    n_periods = 1 if problem.horizon is None else problem.horizon.n_periods
    ours, theirs = (
        [site.pue * (site.carbon_in(period) or 0.0) for period in range(n_periods)] for site in (here, there)
    )
    return (
        here.pue <= there.pue
        and here.pue * here.usd_per_kwh <= there.pue * there.usd_per_kwh
        and all(our <= their for our, their in zip(ours, theirs, strict=True))
    )


def _hands_over_as_well(better: ServingOption, worse: ServingOption, *, moves: bool) -> bool:
    """Return whether `better` takes the same part of requests, through no slower a network, in the same place.

    moves : all of the place moves, so that another place will do.
    """
    if better.role is not worse.role:
        return False
    if better.handover is None or worse.handover is None:
        return True
    if better.handover.group != worse.handover.group or not (moves or better.meeting_point == worse.meeting_point):
        return False
    busy, busy_now = (item.kv_bytes / item.bytes_per_s for item in (better.handover, worse.handover))
    return bool(np.all(busy <= busy_now))


def _as_flexible(better: Offer, worse: Offer) -> bool:
    """Return whether `better` can be rented for just as few periods: what is committed is paid in all of them."""
    return better.market not in COMMITTED_MARKETS or worse.market in COMMITTED_MARKETS


def _replaces(better: _OfferGroup, worse: _OfferGroup, problem: FleetProblem, *, moves: bool = False) -> bool:
    """Return whether any content of m instances of `worse` runs on r m instances of `better` at no more cost.

    moves : all prefill and decode replicas of the place of `worse` move to that of `better`.
    """
    if worse.is_running or not better.is_unlimited or better.signature != worse.signature or worse.gpus % better.gpus:
        return False
    if _can_lose_instances(problem) and any(replicas_per_instance(option) > 1 for option in better.options):
        return False  # three replicas on each of two offers lose three with an instance, six on one of them all six
    count = worse.gpus // better.gpus
    if count * better.offer.price_usd_per_hour > worse.offer.price_usd_per_hour * (1 + _PRICE_TOLERANCE):
        return False
    watts = _aims_at_power(problem)
    for limit, covered in zip(problem.limits, better.signature, strict=False):
        if not covered:
            continue
        watts = watts or limit.resource is Resource.WATTS
        needed = count * instance_usage(limit.resource, better.offer)
        if needed > instance_usage(limit.resource, worse.offer) * (1 + _PRICE_TOLERANCE):
            return False
    energy = counts_energy(problem)
    is_as_clean = not energy or _is_as_clean(better.offer, worse.offer, problem)
    is_as_flexible = problem.horizon is None or _as_flexible(better.offer, worse.offer)
    if not (is_as_flexible and is_as_clean and is_as_near(better.offer, worse.offer, problem)):
        return False
    return _packs_alike(better, worse, count) and all(
        any(
            _serves_as_well(mine, option, watts=watts, energy=energy, same_size=True, moves=moves)
            for mine in better.options
        )
        for option in worse.options
    )


def _packs_alike(better: _OfferGroup, worse: _OfferGroup, count: int) -> bool:
    """Return whether replicas that pack into an instance of `worse` pack into `count` instances of `better`."""
    if len(chains(better.sizes)) > 1:
        return count == 1 and better.sizes == worse.sizes
    if count == 1:
        return True
    return all(better.gpus % size == 0 for size in worse.sizes) and max(worse.sizes) <= better.gpus
