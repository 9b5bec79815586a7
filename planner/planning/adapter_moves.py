"""Adapters that a plan has on other replicas than the plan that runs today: what to load where before requests move."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.optimize.naming import option_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from planner.domain.plan import AdapterPlan, AdapterReplica, Plan
    from planner.domain.problem import FleetProblem

    Held = frozenset[str]


def with_moves(problem: FleetProblem, plan: Plan, today: Sequence[AdapterPlan]) -> Plan:
    """Return `plan` with the adapters of each service that are on other replicas than `today`.

    Which replica of today's stays as which of the plan's is not said anywhere: of one option those with the most
    adapters in common are taken to be the same.
    """
    if problem.change is None or not today:
        return plan
    before = {item.service: item for item in today}
    items = (
        replace(item, moved=tuple(_moved(item, before[item.service], _kinds(problem, item.service))))
        if item.service in before
        else item
        for item in plan.adapters
    )
    return replace(plan, adapters=tuple(items))


def _kinds(problem: FleetProblem, service: str) -> dict[str, set[str]]:
    """Return by option of the plan the names of today's options that it keeps running."""
    if problem.change is None:
        return {}
    return {
        key: {running.option for running in problem.change.running if running.is_of(option)}
        for option, key in zip(problem.options, option_keys(problem.options), strict=True)
        if option.service == service
    }


def _moved(item: AdapterPlan, before: AdapterPlan, kinds: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield the adapters in both plans whose replicas are not those of today."""
    now: dict[str, set[object]] = defaultdict(set)
    then: dict[str, set[object]] = defaultdict(set)
    for option in dict.fromkeys(replica.option for replica in item.placement):
        mine = [_held(replica) for replica in item.placement if replica.option == option]
        old = [_held(replica) for replica in before.placement if replica.option in kinds.get(option, ())]
        for number, (is_now, was) in enumerate(_paired(mine, old)):
            for name in is_now:
                now[name].add((option, number))
            for name in was:
                then[name].add((option, number))
    gone = {replica.option for replica in before.placement} - {name for names in kinds.values() for name in names}
    for number, replica in enumerate(before.placement):
        if replica.option in gone:
            for name in _held(replica):
                then[name].add(number)
    for name in sorted(now.keys() & {held.adapter for replica in before.placement for held in replica.adapters}):
        if now[name] != then[name]:
            yield name


def _held(replica: AdapterReplica) -> Held:
    return frozenset(held.adapter for held in replica.adapters)


def _paired(mine: Sequence[Held], old: Sequence[Held]) -> Iterator[tuple[Held, Held]]:
    """Yield replicas of the plan with those of today that stay as them, the most alike first; without one, empty."""
    same = Counter(mine) & Counter(old)
    for held in same.elements():
        yield held, held
    mine_left, old_left = list((Counter(mine) - same).elements()), list((Counter(old) - same).elements())
    at = defaultdict(list)
    for j, held in enumerate(old_left):
        for name in held:
            at[name].append(j)
    common = Counter((i, j) for i, held in enumerate(mine_left) for name in held for j in at[name])
    pairs = sorted((-count, i, j) for (i, j), count in common.items())
    free_mine, free_old = set(range(len(mine_left))), set(range(len(old_left)))
    for _, i, j in pairs:
        if i in free_mine and j in free_old:
            free_mine.remove(i)
            free_old.remove(j)
            yield mine_left[i], old_left[j]
    for i in sorted(free_mine):
        yield mine_left[i], frozenset()
    for j in sorted(free_old):
        yield frozenset(), old_left[j]
