"""One replica under continuous batching, as vLLM V1 schedules it: chunked prefill under a token budget, KV blocks.

Every step first serves what runs, in the order of admission: one token per decoding sequence, a chunk of prompt for
the others; where the KV memory does not hold it, the sequence admitted last is preempted and starts over later. Then
waiting requests are admitted in order while slots and token budget last and the memory holds the whole next prompt.
Compiled by numba; state lives in flat arrays that `planner.simulate.fleet` owns. A request needs `input + generated`
tokens computed for its next one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from planner.profilers.curve import MAX_KNOTS, SMALLEST
from planner.simulate.jit import compiled
from planner.simulate.steps import MAX_LINES

Ints: TypeAlias = NDArray[np.int64]
Record: TypeAlias = Any
"""One element of a structured array: numba reads its fields as attributes, which numpy's types do not know."""
Records: TypeAlias = Any

NOBODY = -1


REQUEST = np.dtype(
    [
        ("input_tokens", "i8"),
        ("output_tokens", "i8"),
        ("bucket", "i8"),  # row of the router's tables
        ("draw", "f8"),  # uniform in [0, 1), for weighted routing
        ("adapter", "i8"),  # number of its adapter; NOBODY = it has none
        ("computed", "i8"),  # tokens whose KV is in memory
        ("generated", "i8"),
        ("held", "i8"),  # blocks of the prefix cache that it keeps from being evicted
        ("hit_tokens", "i8"),  # prompt tokens that its last admission found in the cache
        ("allocated", "i8"),  # tokens that the blocks it holds have room for
        ("chunk", "i8"),  # tokens computed in the step under way
        ("following", "i8"),  # next one in the queue
        ("replica", "i8"),
        ("preemptions", "i8"),
        ("restarts", "i8"),
        ("sent_s", "f8"),
        ("first_s", "f8"),  # first token
        ("last_s", "f8"),  # latest token
        ("finish_s", "f8"),  # infinity = rejected: it fits no replica's memory
        ("longest_gap_s", "f8"),
        ("delay_s", "f8"),  # what a lone prefill takes longer than at saturation
    ]
)
"""A request: what is asked, where it stands, and what will be told of it."""

REPLICA = np.dtype(
    [
        ("kind", "i8"),
        ("first_mate", "i8"),  # of the engines that take turns on its GPUs, itself among them
        ("n_mates", "i8"),
        ("is_up", "i8"),
        ("n_running", "i8"),
        ("head", "i8"),
        ("tail", "i8"),
        ("n_waiting", "i8"),
        ("jump", "i8"),  # steps of the same batch under way; 0 = idle
        ("used_bytes", "f8"),
        ("idle_bytes", "f8"),  # cached blocks that nobody uses: memory that can be had
        ("oldest", "i8"),  # of those blocks; NOBODY = none
        ("newest", "i8"),
        ("link_free_s", "f8"),  # when it can send the next KV cache
        ("start_s", "f8"),  # when the steps under way began
        ("step_s", "f8"),  # duration of the first of them
        ("growth_s", "f8"),  # by how much each further one is longer
        ("busy_s", "f8"),
        ("n_steps", "i8"),
        ("n_jumps", "i8"),
        ("peak_bytes", "f8"),
        ("peak_adapters", "i8"),  # most that one step was for
    ]
)
"""The state of a replica. Its running requests stand in a row of their own, in the order of admission."""


ABSENT = -1
"""In `PrefixCache.users`: the replica does not have the block."""


class PrefixCache(NamedTuple):
    """Blocks of prompts that one replica keeps; ids count the distinct blocks of all requests.

    Without caching no request has blocks. Replicas of a model with attention windows, whose memory is no multiple of
    blocks, keep none.
    """

    block_tokens: int
    ids: Ints
    """Blocks of every request, one after the other."""
    offsets: Ints
    """(requests + 1,): request q has ids[offsets[q]:offsets[q + 1]]."""
    is_held: NDArray[np.int8]
    """Shape of `ids`: whether the request counts among the block's users."""
    users: NDArray[np.int32]
    """(blocks,): running requests that share a block; 0 = kept for later, ABSENT = not there."""
    older: NDArray[np.int32]
    """(blocks,): neighbours in the list of blocks kept for later, by the time of their last use."""
    newer: NDArray[np.int32]


@compiled
def _segment(kind: Record, context: float) -> int:
    at = 0
    while at + 1 < MAX_LINES and kind.knots[at + 1] <= context:
        at += 1
    return at


@compiled
def kv_bytes(kind: Record, tokens: int) -> float:
    """Return the memory of a sequence whose blocks hold `tokens`."""
    if tokens == 0:
        return 0.0
    at = _segment(kind, tokens)
    return float(kind.kv_bytes[at] + kind.kv_slope[at] * (tokens - kind.knots[at]))


@compiled
def in_blocks(kind: Record, tokens: int) -> int:
    """Return `tokens` rounded up to whole blocks."""
    return int(-(-tokens // kind.block_tokens) * kind.block_tokens)


@compiled
def _pairs_s(kind: Record, tokens: int) -> float:
    """Return the prefill attention time of the first `tokens` of a prompt."""
    total = 0.0
    for g in range(MAX_LINES):
        if kind.attention_s[g] > 0:
            seen = min(float(tokens), kind.attention_window[g])
            total += kind.attention_s[g] * (seen * tokens - seen * (seen - 1.0) / 2)
    return total


@compiled
def factor_at(knots: Record, factors: Record, tokens: float) -> float:
    """Return a curve's factor at so many tokens, as `planner.profilers.curve.Curve.at` has it; without one 1."""
    if knots[0] == knots[1]:
        return 1.0
    place = math.log(max(tokens, SMALLEST))
    if place <= knots[0]:
        return float(factors[0])
    for k in range(MAX_KNOTS - 1):
        if place < knots[k + 1]:
            share = (place - knots[k]) / (knots[k + 1] - knots[k])
            return float(factors[k] + share * (factors[k + 1] - factors[k]))
    return float(factors[-1])


@compiled
def step_seconds(
    kind: Record, sequences: float, prefill: float, decode_s: float, attention_s: float, n_adapters: int
) -> float:
    """Return the time of one step, as `StepModel.step_s` has it.

    `decode_s` and `attention_s` are sums over the decoding sequences and the prompt tokens.
    """
    batch = sequences / kind.stages
    tokens = batch + prefill / kind.stages
    read = kind.dense_read_s + n_adapters * kind.adapter_read_s
    for g in range(MAX_LINES):
        if kind.expert_read_s[g] > 0:
            read += kind.expert_read_s[g] * (1.0 - (1.0 - kind.expert_share[g]) ** tokens)
    bare = (
        math.hypot(tokens * kind.linear_s, read) * factor_at(kind.layer_knots, kind.layer_factors, tokens)
        + math.hypot((batch + 1.0) * kind.head_s, kind.head_read_s)
        + (decode_s + attention_s) / kind.stages
        + tokens * kind.communication_s * factor_at(kind.link_knots, kind.link_factors, tokens)
        + kind.fixed_s
        + sequences * kind.sequence_s
    )
    return float(bare / kind.speed)


@compiled
def enqueue(replica: Record, requests: Records, q: int) -> None:
    """Put a request at the end of a replica's queue."""
    requests[q].following = NOBODY
    if replica.head == NOBODY:
        replica.head = q
    else:
        requests[replica.tail].following = q
    replica.tail = q
    replica.n_waiting += 1


@compiled
def _block_bytes(kind: Record, cache: PrefixCache) -> float:
    return float(kind.kv_slope[0] * cache.block_tokens)


@compiled
def _keep_block(replica: Record, cache: PrefixCache, block: int) -> None:
    """Put a block that nobody uses any more at the new end of the list."""
    cache.older[block] = replica.newest
    cache.newer[block] = NOBODY
    if replica.newest == NOBODY:
        replica.oldest = block
    else:
        cache.newer[replica.newest] = block
    replica.newest = block


@compiled
def _unlist_block(replica: Record, cache: PrefixCache, block: int) -> None:
    older, newer = cache.older[block], cache.newer[block]
    if older == NOBODY:
        replica.oldest = newer
    else:
        cache.newer[older] = newer
    if newer == NOBODY:
        replica.newest = older
    else:
        cache.older[newer] = older


@compiled
def cached_blocks(request: Record, cache: PrefixCache, q: int) -> int:
    """Return how many whole blocks at the head of a prompt the replica has; one token at least stays to compute."""
    most = min(cache.offsets[q + 1] - cache.offsets[q], (request.input_tokens - 1) // cache.block_tokens)
    n = 0
    while n < most and cache.users[cache.ids[cache.offsets[q] + n]] != ABSENT:
        n += 1
    return n


@compiled
def _take_cached(kind: Record, replica: Record, request: Record, cache: PrefixCache, q: int) -> None:
    """Let a request that is being admitted share the cached head of its prompt."""
    size = _block_bytes(kind, cache)
    n = cached_blocks(request, cache, q)
    for i in range(cache.offsets[q], cache.offsets[q] + n):
        block = cache.ids[i]
        if cache.users[block] == 0:
            _unlist_block(replica, cache, block)
            replica.idle_bytes -= size
            replica.used_bytes += size
        cache.users[block] += 1
        cache.is_held[i] = 1
    request.held = n
    request.computed = request.allocated = request.hit_tokens = n * cache.block_tokens


@compiled
def _share_computed(kind: Record, request: Record, cache: PrefixCache, q: int) -> None:
    """Offer the whole blocks of a prompt that are computed; where the replica has one already, this copy stays ours."""
    if kind.knots[1] < np.inf:
        return
    n_blocks = cache.offsets[q + 1] - cache.offsets[q]
    n = min(n_blocks, min(request.computed, request.input_tokens) // cache.block_tokens)
    for i in range(cache.offsets[q] + request.held, cache.offsets[q] + n):
        if cache.users[cache.ids[i]] == ABSENT:
            cache.users[cache.ids[i]] = 1
            cache.is_held[i] = 1
    request.held = max(request.held, n)


@compiled
def _release(kind: Record, replica: Record, request: Record, cache: PrefixCache, q: int) -> None:
    """Give back a request's memory; blocks that it was the last to use are kept, the end of a prompt going first."""
    size = _block_bytes(kind, cache)
    own_bytes = kv_bytes(kind, request.allocated)
    for i in range(cache.offsets[q] + request.held - 1, cache.offsets[q] - 1, -1):
        if not cache.is_held[i]:
            continue
        block = cache.ids[i]
        cache.is_held[i] = 0
        own_bytes -= size
        cache.users[block] -= 1
        if cache.users[block] == 0:
            _keep_block(replica, cache, block)
            replica.used_bytes -= size
            replica.idle_bytes += size
    replica.used_bytes -= own_bytes
    request.allocated = request.held = 0


@compiled
def _evict_block(kind: Record, replica: Record, cache: PrefixCache) -> None:
    block = replica.oldest
    _unlist_block(replica, cache, block)
    cache.users[block] = ABSENT
    replica.idle_bytes -= _block_bytes(kind, cache)


@compiled
def _preempt_last(kind: Record, replica: Record, running: Ints, requests: Records, cache: PrefixCache) -> int:
    """Take the sequence admitted last off the replica and put it first in the queue; return it."""
    replica.n_running -= 1
    q = int(running[replica.n_running])
    request = requests[q]
    _release(kind, replica, request, cache, q)
    request.computed = 0
    request.preemptions += 1
    request.following = replica.head
    if replica.head == NOBODY:
        replica.tail = q
    replica.head = q
    replica.n_waiting += 1
    return q


@compiled
def _fits(kind: Record, replica: Record, request: Record, tokens: int) -> bool:
    """Return whether the memory that nobody uses holds a sequence of `tokens`."""
    more = kv_bytes(kind, in_blocks(kind, tokens)) - kv_bytes(kind, request.allocated)
    return bool(replica.used_bytes + more <= kind.kv_room)


@compiled
def _grow(kind: Record, replica: Record, request: Record, cache: PrefixCache, tokens: int) -> bool:
    """Give a sequence blocks for `tokens`; False, and nothing given, where the memory does not hold them."""
    if tokens <= request.allocated:
        return True
    needed = in_blocks(kind, tokens)
    if not _fits(kind, replica, request, tokens):
        return False
    used = replica.used_bytes + kv_bytes(kind, needed) - kv_bytes(kind, request.allocated)
    while used + replica.idle_bytes > kind.kv_room and replica.oldest != NOBODY:
        _evict_block(kind, replica, cache)
    replica.used_bytes = used
    replica.peak_bytes = max(replica.peak_bytes, used)
    request.allocated = needed
    return True


@compiled
def _schedule_running(
    kind: Record, replica: Record, running: Ints, requests: Records, cache: PrefixCache
) -> tuple[int, bool]:
    """Give every running sequence its tokens of the next step; return the budget left and whether one was preempted."""
    budget = kind.token_budget
    was_preempted = False
    i = 0
    while i < replica.n_running:
        q = running[i]
        request = requests[q]
        chunk = min(request.input_tokens + request.generated - request.computed, budget)
        while chunk and not _grow(kind, replica, request, cache, request.computed + chunk):
            was_preempted = True
            if _preempt_last(kind, replica, running, requests, cache) == q:
                return budget, True
        request.chunk = chunk
        budget -= chunk
        i += 1
    return budget, was_preempted


@compiled
def _admit(kind: Record, replica: Record, running: Ints, requests: Records, cache: PrefixCache, budget: int) -> None:
    """Admit waiting requests in order; each must find room for all that it computes first, not for its first chunk."""
    while budget > 0 and replica.head != NOBODY and replica.n_running < kind.max_seqs:
        q = replica.head
        request = requests[q]
        if request.computed == 0:
            _take_cached(kind, replica, request, cache, q)
        tokens = request.input_tokens + request.generated
        if not _fits(kind, replica, request, tokens):
            if request.allocated:
                _release(kind, replica, request, cache, q)
                request.computed = 0
            return
        chunk = min(tokens - request.computed, budget)
        _grow(kind, replica, request, cache, request.computed + chunk)
        replica.head = request.following
        replica.n_waiting -= 1
        running[replica.n_running] = q
        replica.n_running += 1
        request.chunk = chunk
        budget -= chunk


@compiled
def _is_decoding(request: Record) -> bool:
    """Return whether the step under way yields the request's next token from its last one."""
    return bool(request.generated > 0 and request.chunk == 1)


@compiled
def _count_adapters(replica: Record, running: Ints, requests: Records, seen: Ints) -> int:
    """Return how many different adapters the scheduled step is for.

    seen : for each adapter the number of the last count that met it; at the end the number of this one.
    """
    seen[-1] += 1
    count = 0
    for i in range(replica.n_running):
        request = requests[running[i]]
        if request.chunk > 0 and request.adapter != NOBODY and seen[request.adapter] != seen[-1]:
            seen[request.adapter] = seen[-1]
            count += 1
    return count


@compiled
def _price_step(kind: Record, replica: Record, running: Ints, requests: Records, seen: Ints) -> bool:
    """Set the duration of the scheduled step; return whether it only decodes."""
    n_adapters = 0
    if kind.adapter_read_s > 0:
        n_adapters = _count_adapters(replica, running, requests, seen)
        replica.peak_adapters = max(replica.peak_adapters, n_adapters)
    sequences, prefill, decode_s, growth_s, attention_s = 0, 0, 0.0, 0.0, 0.0
    for i in range(replica.n_running):
        request = requests[running[i]]
        if _is_decoding(request):
            context = request.computed + 1
            at = _segment(kind, context)
            sequences += 1
            growth_s += kind.decode_slope[at]
            decode_s += kind.decode_s[at] + kind.decode_slope[at] * (context - kind.knots[at])
        elif request.chunk > 0:
            prefill += request.chunk
            attention_s += _pairs_s(kind, request.computed + request.chunk) - _pairs_s(kind, request.computed)
    replica.step_s = step_seconds(kind, sequences, prefill, decode_s, attention_s, n_adapters)
    replica.growth_s = growth_s / kind.stages / kind.speed
    if prefill:
        added_s = replica.step_s - step_seconds(kind, sequences, 0.0, decode_s, 0.0, n_adapters)
        extra_s = (kind.lone_prefill_factor - 1.0) * added_s
        through_s = 0.0
        if kind.stages > 1:  # a prompt's last chunk passes stage after stage
            prompts = prefill * kind.stages
            whole_s = step_seconds(kind, sequences, prompts, decode_s, attention_s * kind.stages, n_adapters)
            through_s = kind.lone_prefill_factor * (whole_s - replica.step_s)
        for i in range(replica.n_running):
            request = requests[running[i]]
            if request.chunk > 0 and not _is_decoding(request):
                is_last = request.computed + request.chunk >= request.input_tokens
                request.delay_s += extra_s + through_s if is_last else extra_s
    return prefill == 0


@compiled
def _unchanged_steps(kind: Record, replica: Record, running: Ints, requests: Records) -> int:
    """Return for how many steps the batch stays as it is: nobody ends, runs out of memory or crosses a knot."""
    steps = 1 << 40
    for i in range(replica.n_running):
        request = requests[running[i]]
        steps = min(steps, request.output_tokens - request.generated)
        at = _segment(kind, request.computed + 1)
        if at + 1 < MAX_LINES and kind.knots[at + 1] < np.inf:
            steps = min(steps, max(1, int(kind.knots[at + 1]) - request.computed - 1))
    if grown_bytes(kind, replica, running, requests, steps) <= kind.kv_room:
        return steps
    low, high = 1, steps  # the first step fits, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if grown_bytes(kind, replica, running, requests, middle) <= kind.kv_room:
            low = middle
        else:
            high = middle
    return low


@compiled
def grown_bytes(kind: Record, replica: Record, running: Ints, requests: Records, steps: int) -> float:
    """Return the memory that the running sequences have after so many steps of the batch under way."""
    total = float(replica.used_bytes)
    for i in range(replica.n_running):
        request = requests[running[i]]
        tokens = max(request.allocated, in_blocks(kind, request.computed + steps))
        total += kv_bytes(kind, tokens) - kv_bytes(kind, request.allocated)
    return total


@compiled
def evict_for_growth(
    kind: Record, replica: Record, running: Ints, requests: Records, cache: PrefixCache, now_s: float
) -> None:
    """Evict what the steps under way have needed room for by now, so that the router sees the cache as it is."""
    if replica.jump <= 1 or replica.oldest == NOBODY:
        return
    begun = min(replica.jump, steps_until(replica, now_s))
    used = grown_bytes(kind, replica, running, requests, begun)
    while used + replica.idle_bytes > kind.kv_room and replica.oldest != NOBODY:
        _evict_block(kind, replica, cache)


@compiled
def begin_step(
    kind: Record,
    replica: Record,
    running: Ints,
    requests: Records,
    cache: PrefixCache,
    seen: Ints,
    now_s: float,
    is_exact: bool,
) -> float:
    """Schedule the next step, or as many as will be alike; return when they end, infinity if there is nothing to do."""
    budget, was_preempted = _schedule_running(kind, replica, running, requests, cache)
    if not was_preempted:
        _admit(kind, replica, running, requests, cache, budget)
    replica.start_s = now_s
    if replica.n_running == 0:
        replica.jump = 0
        return np.inf
    only_decodes = _price_step(kind, replica, running, requests, seen)
    replica.jump = 1
    if only_decodes and not was_preempted and not is_exact:
        replica.jump = _unchanged_steps(kind, replica, running, requests)
    return jump_end_s(replica)


@compiled
def jump_end_s(replica: Record) -> float:
    """Return when the steps under way end: k t + g k (k - 1) / 2 after their start."""
    k = replica.jump
    return float(replica.start_s + k * replica.step_s + replica.growth_s * k * (k - 1) / 2)


@compiled
def cut_jump(replica: Record, now_s: float) -> float:
    """End the steps under way at the first boundary from `now_s` on, since a request came in; return when that is."""
    replica.jump = min(replica.jump, max(1, steps_until(replica, now_s)))
    return jump_end_s(replica)


@compiled
def steps_until(replica: Record, now_s: float) -> int:
    """Return how many of the steps under way have begun by `now_s`: the least k with k t + g k (k - 1) / 2 >= it."""
    elapsed, first, growth = max(0.0, now_s - replica.start_s), replica.step_s, replica.growth_s
    half = first - growth / 2
    k = math.ceil(2.0 * elapsed / (half + math.sqrt(half * half + 2.0 * growth * elapsed)) - 1e-9)
    while k * first + growth * k * (k - 1) / 2 < elapsed:
        k += 1
    return int(k)


@compiled
def end_step(kind: Record, replica: Record, running: Ints, requests: Records, cache: PrefixCache, now_s: float) -> int:
    """Book the tokens of the steps that end now; return how many requests leave the replica.

    They stand in `running` from the new `n_running` on: finished, or with a first token on a prefill replica.
    """
    replica.busy_s += now_s - replica.start_s
    replica.n_steps += replica.jump
    replica.n_jumps += 1
    if replica.jump > 1:
        for i in range(replica.n_running):  # before anybody leaves, as it was when the last step began
            request = requests[running[i]]
            _grow(kind, replica, request, cache, request.computed + replica.jump)
    kept = 0
    n_before = replica.n_running
    for i in range(n_before):
        q = running[i]
        request = requests[q]
        if _advance(kind, replica, request, cache, q, now_s):
            _release(kind, replica, request, cache, q)
            request.chunk = 0
            if request.generated >= request.output_tokens:
                request.finish_s = now_s
        else:
            running[i] = running[kept]
            running[kept] = q
            kept += 1
    replica.n_running = kept
    return int(n_before - kept)


@compiled
def _advance(kind: Record, replica: Record, request: Record, cache: PrefixCache, q: int, now_s: float) -> bool:
    """Book one request's tokens of the steps that end now; return whether it leaves the replica."""
    steps = replica.jump
    gap_s = 0.0
    if _is_decoding(request):
        request.computed += steps
        request.generated += steps
        gap_s = replica.start_s + replica.step_s - request.last_s
        if steps > 1:
            gap_s = max(gap_s, replica.step_s + replica.growth_s * (steps - 1))
    else:
        request.computed += request.chunk
        _share_computed(kind, request, cache, q)
        if request.chunk == 0 or request.computed < request.input_tokens + request.generated:
            return False
        request.generated += 1
        if request.generated == 1:
            request.first_s = now_s
        else:
            gap_s = now_s - request.last_s
    request.longest_gap_s = max(request.longest_gap_s, gap_s)
    request.last_s = now_s
    return bool(kind.is_prefill or request.generated >= request.output_tokens)
