"""The event loop: arrivals, faults and replicas' steps in the order of time, and the router between them.

Compiled by numba. Ties in time: steps end first, then faults, then arrivals; replicas in their order.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from planner.simulate.engine import (
    ABSENT,
    NOBODY,
    PrefixCache,
    begin_step,
    cached_blocks,
    cut_jump,
    end_step,
    enqueue,
    evict_for_growth,
    grown_bytes,
    in_blocks,
    kv_bytes,
    steps_until,
)
from planner.simulate.jit import compiled, compiled_to_disk

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.simulate.engine import Ints, Record, Records
    from planner.simulate.steps import Floats

WEIGHTS, WEIGHTED_RANDOM, LEAST_LOADED, LEAST_KV, PREFIX_AWARE = range(5)
"""Routing policies; see `planner.simulate.run.Policy`."""

LOST, UP, DRAINS = range(3)
"""What becomes of a replica: it is gone with its requests, it serves, or it takes no more and finishes what it has."""

PREFIX_LOAD_FACTOR, PREFIX_LOAD_SLACK = 2.0, 4
"""A cached prefix draws a request to a replica unless that has over twice the least load and four more requests."""


class Fleet(NamedTuple):
    """Everything that changes while the simulation runs."""

    kinds: Records
    """Array of `steps.KIND`; it does not change."""
    replicas: Records
    """Array of `engine.REPLICA`."""
    running: Ints
    """(replicas, slots): each one's running requests."""
    requests: Records
    """Array of `engine.REQUEST`, in the order of arrival."""
    cache: PrefixCache
    """With a row for every replica in `users`, `older` and `newer`."""
    seen: Ints
    """(adapters + 1,): scratch with which a step's different adapters are counted."""


class Routing(NamedTuple):
    """How requests find replicas; groups are runs of equal replicas."""

    policy: int
    weights: Floats
    """(buckets, groups): the plan's; rows sum to 1."""
    planned: Floats
    """(buckets, groups): replicas that the weights are meant for."""
    rate_rps: Floats
    """(buckets, groups): what one replica serves of a bucket alone; 0 = it cannot."""
    decode_row: int
    """Rows of the requests' own. Below them stand the rows for the second half of requests that are handed over."""
    handover: Ints
    """(groups,): requests of bucket b that a group has prefilled go on by row b + handover[group] x decode_row."""
    first: Ints
    """(groups + 1,): replicas of group g are first[g] up to first[g + 1]."""


class Faults(NamedTuple):
    """When replicas come and go, in the order of time; shape (events,)."""

    at_s: Floats
    replica: Ints
    change: Ints
    """LOST, UP or DRAINS."""


class Arrivals(NamedTuple):
    """When requests come in."""

    at_s: Floats
    """(requests,): ascending; only the first `population` count in a closed loop."""
    population: int
    """0 = open; else so many clients send their next request `think_s` after the last one ended."""
    think_s: Floats


@compiled
def _cache_of(cache: PrefixCache, r: int) -> PrefixCache:
    """Return the cache of one replica."""
    return PrefixCache(
        cache.block_tokens, cache.ids, cache.offsets, cache.is_held, cache.users[r], cache.older[r], cache.newer[r]
    )


@compiled
def _begin(fleet: Fleet, r: int, now_s: float, is_exact: bool) -> float:
    replica = fleet.replicas[r]
    kind, cache = fleet.kinds[replica.kind], _cache_of(fleet.cache, r)
    return begin_step(kind, replica, fleet.running[r], fleet.requests, cache, fleet.seen, now_s, is_exact)


@compiled
def _whose_turn(replicas: Records, r: int) -> int:
    """Return which of the engines on the GPUs of `r` has a step under way; NOBODY where they are idle."""
    first = replicas[r].first_mate
    for mate in range(first, first + replicas[r].n_mates):
        if replicas[mate].jump > 0:
            return mate
    return NOBODY


@compiled
def _next_turn(fleet: Fleet, tree: Floats, r: int, now_s: float, is_exact: bool) -> None:
    """Let the next engine after `r` that has work begin; `r` itself is the last to be asked.

    Engines on the same GPUs take turns by the step, so steps are jumped over only where nobody else has work.
    """
    first, n_mates = fleet.replicas[r].first_mate, fleet.replicas[r].n_mates
    if n_mates == 1:
        _set_time(tree, r, _begin(fleet, r, now_s, is_exact))
        return
    fleet.replicas[r].jump = 0
    _set_time(tree, r, np.inf)
    n_with_work = 0
    for mate in range(first, first + n_mates):
        n_with_work += _load(fleet.replicas[mate]) > 0
    for i in range(1, n_mates + 1):
        mate = first + (r - first + i) % n_mates
        if _load(fleet.replicas[mate]) > 0:
            end_s = _begin(fleet, mate, now_s, is_exact or n_with_work > 1)
            _set_time(tree, mate, end_s)
            if end_s < np.inf:
                return


@compiled
def _idle_tree(n_replicas: int) -> Floats:
    """Return the times of the replicas' next events, none, as a tree whose inner nodes hold the least time below."""
    leaves = 1
    while leaves < n_replicas:
        leaves *= 2
    return np.full(2 * leaves, np.inf)


@compiled
def _set_time(tree: Floats, leaf: int, at_s: float) -> None:
    node = leaf + tree.shape[0] // 2
    tree[node] = at_s
    while node > 1:
        node //= 2
        tree[node] = min(tree[2 * node], tree[2 * node + 1])


@compiled
def _first_leaf(tree: Floats) -> int:
    node, half = 1, tree.shape[0] // 2
    while node < half:
        node = 2 * node if tree[2 * node] <= tree[2 * node + 1] else 2 * node + 1
    return int(node - half)


@compiled
def _push(heap: list[tuple[float, int]], at_s: float, q: int) -> None:
    heap.append((at_s, q))
    child = len(heap) - 1
    while child > 0:
        parent = (child - 1) // 2
        if heap[parent] <= heap[child]:
            return
        heap[parent], heap[child] = heap[child], heap[parent]
        child = parent


@compiled
def _pop(heap: list[tuple[float, int]]) -> tuple[float, int]:
    top = heap[0]
    last = heap.pop()
    if len(heap) == 0:
        return top
    heap[0] = last
    parent = 0
    while 2 * parent + 1 < len(heap):
        child = 2 * parent + 1
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[parent] <= heap[child]:
            break
        heap[parent], heap[child] = heap[child], heap[parent]
        parent = child
    return top


@compiled
def _n_up(replicas: Records, routing: Routing, g: int) -> int:
    count = 0
    for r in range(routing.first[g], routing.first[g + 1]):
        count += replicas[r].is_up
    return count


@compiled
def _row_of(fleet: Fleet, routing: Routing, request: Record) -> int:
    """Return the row of the tables that a request goes by: its own, or where its prefill replica hands over to."""
    if request.generated == 0:
        return int(request.bucket)
    group = fleet.replicas[request.replica].kind
    return int(request.bucket + routing.handover[group] * routing.decode_row)


@compiled
def _draw_of(request: Record) -> float:
    """Return a number in [0, 1) that is the request's own; another one for where it goes after its prefill."""
    return float(request.draw if request.generated == 0 else (request.draw * 4294967296.0) % 1.0)


@compiled
def _weight(replicas: Records, routing: Routing, bucket: int, g: int) -> float:
    """Return a group's weight for a bucket, less the share of the replicas that it should have and has not."""
    weight = routing.weights[bucket, g]
    if weight == 0:
        return 0.0
    return float(weight * min(1.0, _n_up(replicas, routing, g) / max(1.0, routing.planned[bucket, g])))


@compiled
def _draw_group(replicas: Records, routing: Routing, bucket: int, draw: float) -> int:
    """Return a group by its weight; NOBODY where no group with a weight has a replica up."""
    total = 0.0
    for g in range(routing.weights.shape[1]):
        total += _weight(replicas, routing, bucket, g)
    left, last = draw * total, NOBODY
    for g in range(routing.weights.shape[1]):
        weight = _weight(replicas, routing, bucket, g)
        if weight > 0:
            last = g
            left -= weight
            if left < 0:
                break
    return last


@compiled
def _load(replica: Record) -> int:
    return int(replica.n_running + replica.n_waiting)


@compiled
def _least_loaded_in(replicas: Records, routing: Routing, g: int) -> int:
    best, least = NOBODY, 1 << 40
    for r in range(routing.first[g], routing.first[g + 1]):
        if replicas[r].is_up and _load(replicas[r]) < least:
            best, least = r, _load(replicas[r])
    return best


@compiled
def _random_in(replicas: Records, routing: Routing, g: int, draw: float) -> int:
    """Return one of a group's replicas that are up; `draw` is uniform."""
    left = int(draw * _n_up(replicas, routing, g))
    for r in range(routing.first[g], routing.first[g + 1]):
        if replicas[r].is_up:
            if left == 0:
                return r
            left -= 1
    return NOBODY


@compiled
def _memory_share(kind: Record, replica: Record, running: Ints, requests: Records, now_s: float) -> float:
    """Return the part of a replica's KV memory in use now, what the steps under way have taken included."""
    if replica.jump <= 1:
        return float(replica.used_bytes / kind.kv_room)
    begun = min(replica.jump, steps_until(replica, now_s))
    return float(grown_bytes(kind, replica, running, requests, begun) / kind.kv_room)


@compiled
def _least(fleet: Fleet, routing: Routing, bucket: int, now_s: float) -> int:
    """Return the replica with the least load per capacity, or KV use, of all that can serve the bucket."""
    best, least = NOBODY, np.inf
    for g in range(routing.weights.shape[1]):
        if routing.rate_rps[bucket, g] <= 0:
            continue
        for r in range(routing.first[g], routing.first[g + 1]):
            replica = fleet.replicas[r]
            if not replica.is_up:
                continue
            if routing.policy == LEAST_KV:
                kind = fleet.kinds[replica.kind]
                used = _memory_share(kind, replica, fleet.running[r], fleet.requests, now_s)
                value = used + replica.n_waiting
            else:
                value = (_load(replica) + 1) / routing.rate_rps[bucket, g]
            if value < least:
                best, least = r, value
    return best


@compiled
def _cached_now(fleet: Fleet, r: int, q: int, now_s: float) -> int:
    """Return how many blocks at the head of a prompt a replica has now."""
    replica, cache = fleet.replicas[r], _cache_of(fleet.cache, r)
    evict_for_growth(fleet.kinds[replica.kind], replica, fleet.running[r], fleet.requests, cache, now_s)
    return cached_blocks(fleet.requests[q], cache, q)


@compiled
def _longest_prefix(fleet: Fleet, routing: Routing, q: int, bucket: int, now_s: float) -> int:
    """Return the replica that has most of the prompt cached, of those not much busier than the least loaded one."""
    best = _least(fleet, routing, bucket, now_s)
    if best == NOBODY:
        return best
    most = PREFIX_LOAD_FACTOR * _load(fleet.replicas[best]) + PREFIX_LOAD_SLACK
    longest = _cached_now(fleet, best, q, now_s)
    for g in range(routing.weights.shape[1]):
        if routing.rate_rps[bucket, g] <= 0:
            continue
        for r in range(routing.first[g], routing.first[g + 1]):
            if fleet.replicas[r].is_up and _load(fleet.replicas[r]) <= most:
                found = _cached_now(fleet, r, q, now_s)
                if found > longest:
                    best, longest = r, found
    return best


@compiled
def _choose(fleet: Fleet, routing: Routing, q: int, now_s: float) -> int:
    """Return the replica that a request goes to; NOBODY where none is up."""
    request, replicas = fleet.requests[q], fleet.replicas
    bucket = _row_of(fleet, routing, request)
    if routing.policy in {LEAST_LOADED, LEAST_KV}:
        return _least(fleet, routing, bucket, now_s)
    if routing.policy == PREFIX_AWARE:
        return _longest_prefix(fleet, routing, q, bucket, now_s)
    g = _draw_group(replicas, routing, bucket, _draw_of(request))
    if g == NOBODY:
        return _least(fleet, routing, bucket, now_s)  # whoever else can serve it
    if routing.policy == WEIGHTED_RANDOM:
        return _random_in(replicas, routing, g, (_draw_of(request) * 65536.0) % 1.0)
    return _least_loaded_in(replicas, routing, g)


@compiled
def _place(fleet: Fleet, routing: Routing, tree: Floats, q: int, now_s: float, is_exact: bool) -> bool:
    """Send a request to a replica; False where none is up that could serve it."""
    request = fleet.requests[q]
    if request.bucket == NOBODY:
        return True  # turned away
    r = _choose(fleet, routing, q, now_s)
    if r == NOBODY:
        return False
    replica = fleet.replicas[r]
    kind = fleet.kinds[replica.kind]
    request.replica = r
    tokens = request.input_tokens + (1 if kind.is_prefill else request.output_tokens)
    if kv_bytes(kind, in_blocks(kind, tokens)) > kind.kv_room:
        request.finish_s = np.inf  # it would never fit: rejected at once, as engines do
        return True
    enqueue(replica, fleet.requests, q)
    turn = _whose_turn(fleet.replicas, r)
    if turn == NOBODY:
        _set_time(tree, r, _begin(fleet, r, now_s, is_exact))
    elif fleet.replicas[turn].jump > 1:
        _set_time(tree, turn, cut_jump(fleet.replicas[turn], now_s))
    return True


@compiled
def _evict_all(
    replica: Record, running: Ints, requests: Records, cache: PrefixCache, evicted: list[int], now_s: float
) -> None:
    """Empty a replica that is lost; its requests start over."""
    n_before = len(evicted)
    if replica.jump:
        replica.n_steps += min(replica.jump, steps_until(replica, now_s)) - 1  # the one under way is lost
        replica.busy_s += now_s - replica.start_s
    for i in range(replica.n_running):
        evicted.append(running[i])
    q = replica.head
    while q != NOBODY:
        evicted.append(q)
        q = requests[q].following
    replica.n_running = replica.n_waiting = replica.jump = 0
    replica.head = replica.tail = replica.oldest = replica.newest = NOBODY
    replica.used_bytes = replica.idle_bytes = 0.0
    cache.users[:] = ABSENT
    for i in range(n_before, len(evicted)):
        lost = requests[evicted[i]]
        cache.is_held[cache.offsets[evicted[i]] : cache.offsets[evicted[i] + 1]] = 0
        lost.computed = lost.generated = lost.allocated = lost.chunk = lost.held = 0
        lost.first_s = np.nan
        lost.longest_gap_s = lost.delay_s = 0.0
        lost.restarts += 1


@compiled
def _next_of(heap: list[tuple[float, int]], arrivals: Arrivals, opened: int, n_open: int) -> float:
    at_s = arrivals.at_s[opened] if opened < n_open else np.inf
    return min(at_s, heap[0][0]) if len(heap) else at_s


@compiled
def _apply_fault(
    fleet: Fleet, routing: Routing, tree: Floats, r: int, change: int, homeless: list[int], now_s: float, is_exact: bool
) -> None:
    """Lose a replica, bring it up or let it drain, and place what has no replica for it.

    One that comes up while it has work was draining, and goes on; else it comes up empty. Engines on the same GPUs
    come and go together.
    """
    waiting = homeless.copy()
    homeless.clear()
    first = fleet.replicas[r].first_mate
    for mate in range(first, first + fleet.replicas[r].n_mates):
        replica = fleet.replicas[mate]
        replica.is_up = change == UP
        if change == LOST or (change == UP and _load(replica) == 0):
            _evict_all(replica, fleet.running[mate], fleet.requests, _cache_of(fleet.cache, mate), waiting, now_s)
            _set_time(tree, mate, np.inf)
    for q in waiting:
        if not _place(fleet, routing, tree, q, now_s, is_exact):
            homeless.append(q)


@compiled
def _end(fleet: Fleet, r: int, heap: list[tuple[float, int]], now_s: float) -> int:
    """Book the steps that end now, hand on what only prefills here, and return how many requests are finished.

    KV caches leave a replica one after the other; each comes in at its decode replica as an arrival.
    """
    replica = fleet.replicas[r]
    kind, running = fleet.kinds[replica.kind], fleet.running[r]
    n_left = end_step(kind, replica, running, fleet.requests, _cache_of(fleet.cache, r), now_s)
    n_done = 0
    for i in range(replica.n_running, replica.n_running + n_left):
        request = fleet.requests[running[i]]
        if request.generated >= request.output_tokens:
            n_done += 1
        else:
            sent_s = max(now_s, replica.link_free_s) + kv_bytes(kind, request.computed) * kind.transfer_s
            replica.link_free_s = sent_s
            _push(heap, sent_s, running[i])
    return n_done


@compiled
def _run(fleet: Fleet, routing: Routing, arrivals: Arrivals, faults: Faults, is_exact: bool) -> int:
    n_requests = fleet.requests.shape[0]
    tree = _idle_tree(fleet.replicas.shape[0])
    heap = [(np.inf, NOBODY) for _ in range(0)]
    homeless = [NOBODY for _ in range(0)]
    n_open = arrivals.population if arrivals.population else n_requests
    opened, issued, n_faults, n_events = 0, n_open, 0, 0
    while True:
        step_at = tree[1]
        fault_at = faults.at_s[n_faults] if n_faults < faults.at_s.shape[0] else np.inf
        arrival_at = _next_of(heap, arrivals, opened, n_open)
        now_s = min(step_at, fault_at, arrival_at)
        if now_s == np.inf or (step_at == np.inf and arrival_at == np.inf and len(homeless) == 0):
            return n_events
        n_events += 1
        if step_at <= now_s:
            r = _first_leaf(tree)
            n_done = _end(fleet, r, heap, now_s)
            _next_turn(fleet, tree, r, now_s, is_exact)
            if arrivals.population:
                for _ in range(min(n_done, n_requests - issued)):
                    _push(heap, now_s + arrivals.think_s[issued], issued)
                    issued += 1
        elif fault_at <= now_s:
            r, change = faults.replica[n_faults], faults.change[n_faults]
            n_faults += 1
            _apply_fault(fleet, routing, tree, r, change, homeless, now_s, is_exact)
        else:
            if opened < n_open and arrivals.at_s[opened] <= now_s:
                q = opened
                opened += 1
            else:
                q = _pop(heap)[1]
            if fleet.requests[q].generated == 0:
                fleet.requests[q].sent_s = now_s
            if not _place(fleet, routing, tree, q, now_s, is_exact):
                homeless.append(q)


def _compiled(sources: str) -> Callable[[Fleet, Routing, Arrivals, Faults, bool], int]:
    """Return the loop, compiled at its first call and kept on disk for the next process.

    numba's cache knows the file that a function stands in, not those of the functions that it calls: `sources`, their
    digest, makes it part of the key.
    """

    @compiled_to_disk
    def cached(fleet: Fleet, routing: Routing, arrivals: Arrivals, faults: Faults, is_exact: bool) -> int:
        sources  # noqa: B018 - what a closure refers to is part of the key
        return _run(fleet, routing, arrivals, faults, is_exact)

    return cached


_SOURCES = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in ("steps.py", "engine.py")))

run = _compiled(_SOURCES.hexdigest())
"""Simulate until every request has ended; return the number of events.

`is_exact`: walk every engine step instead of jumping over those in which nothing changes.
"""
