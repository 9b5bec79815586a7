"""From the fleet that runs today to the plan: what starts, where traffic moves, what stops, and what that costs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from planner.domain.adapters import Isolation
from planner.domain.plan import RolloutAction, RolloutStep

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from planner.domain.plan import AdapterPlan, Allocation, Rental
    from planner.domain.problem import ChangeCost, FleetProblem, Running, ServingOption


def merged_replicas(adapters: Iterable[AdapterPlan]) -> dict[tuple[str, str], Counter[str]]:
    """Return how many replicas of each option have each adapter in their weights, by service and option."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for item in adapters:
        merged = {host.option for host in item.hosts if host.isolation is Isolation.DEDICATED}
        for replica in item.placement:
            if replica.option in merged:
                names = (hosted.adapter for hosted in replica.adapters)
                found.setdefault((item.service, replica.option), Counter()).update(names)
    return found


def changes(
    change: ChangeCost,
    allocation: Iterable[Allocation],
    options: Mapping[tuple[str, str], ServingOption],
    adapters: Iterable[AdapterPlan] = (),
) -> tuple[list[tuple[Allocation, int]], list[tuple[Running, int]]]:
    """Return what starts (allocation, replicas) and what stops (running, replicas), each in order of name.

    A replica with an adapter in its weights stays one of this adapter: for another one it starts anew.
    """
    merged = merged_replicas(adapters)
    starts: list[tuple[Allocation, int]] = []
    kept: dict[int, int] = {}
    for item in sorted(allocation, key=lambda row: (row.service, row.offer, row.option)):
        option = options[item.service, item.option]
        mine = [running for running in change.running if running.is_of(option)]
        left = item.replicas
        for running in mine:
            stays = running.replicas
            if running.merged:
                stays = (Counter(running.merged) & merged.get((item.service, item.option), Counter())).total()
            kept[id(running)] = min(left, stays)
            left -= kept[id(running)]
        if left > 0:
            starts.append((item, left))
    stops = [(running, running.replicas - kept.get(id(running), 0)) for running in change.running]
    stops.sort(key=lambda pair: (pair[0].service, pair[0].offer, pair[0].precision, pair[0].gpus_per_replica))
    return starts, [(running, count) for running, count in stops if count > 0]


def change_cost(
    change: ChangeCost,
    allocation: Iterable[Allocation],
    options: Mapping[tuple[str, str], ServingOption],
    adapters: Iterable[AdapterPlan] = (),
) -> float:
    """Return what the changes to today's fleet cost in USD/h, spread over the plan's horizon."""
    starts, stops = changes(change, allocation, options, adapters)
    total = change.start_usd * sum(count for _, count in starts) + change.stop_usd * sum(count for _, count in stops)
    return total / change.horizon_hours


def unavoidable_change(problem: FleetProblem) -> float:
    """Return what it costs in USD/h to stop what no option could keep running, in any plan."""
    change = problem.change
    if change is None:
        return 0.0
    options = problem.options
    gone = sum(item.replicas for item in change.running if not any(item.is_of(option) for option in options))
    return gone * change.stop_usd / change.horizon_hours


def rollout(
    change: ChangeCost,
    allocation: Iterable[Allocation],
    rentals: Iterable[Rental],
    options: Mapping[tuple[str, str], ServingOption],
    adapters: Iterable[AdapterPlan] = (),
) -> tuple[RolloutStep, ...]:
    """Return the steps to the plan: everything new starts before traffic moves, and nothing stops before it has moved.

    Instances are rented with the first step of their offer that starts something, and released with the last one that
    stops something.
    """
    starts, stops = changes(change, allocation, options, adapters)
    after = {rental.offer: rental.instances for rental in rentals}
    more = {offer: count - change.instances.get(offer, 0) for offer, count in after.items()}
    fewer = {offer: count - after.get(offer, 0) for offer, count in change.instances.items()}
    first = [
        RolloutStep(
            action=RolloutAction.START,
            service=item.service,
            offer=item.offer,
            option=item.option,
            replicas=count,
            instances=max(more.pop(item.offer, 0), 0),
        )
        for item, count in starts
    ]
    first += [
        RolloutStep(action=RolloutAction.START, service="", offer=offer, instances=count)
        for offer, count in sorted(more.items())
        if count > 0
    ]
    moved = sorted({item.service for item, _ in starts} | {running.service for running, _ in stops})
    route = [RolloutStep(action=RolloutAction.ROUTE, service=service) for service in moved]
    last: list[RolloutStep] = []
    for running, count in reversed(stops):
        last.append(
            RolloutStep(
                action=RolloutAction.STOP,
                service=running.service,
                offer=running.offer,
                option=running.option,
                replicas=count,
                instances=max(fewer.pop(running.offer, 0), 0),
            )
        )
    last += [
        RolloutStep(action=RolloutAction.STOP, service="", offer=offer, instances=count)
        for offer, count in sorted(fewer.items(), reverse=True)
        if count > 0
    ]
    return (*first, *route, *reversed(last))
