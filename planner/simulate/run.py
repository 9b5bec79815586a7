"""Simulate a fleet: pools of equal replicas, the traffic on them, and what goes wrong on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from planner.simulate import fleet as loop
from planner.simulate.engine import ABSENT, NOBODY, REPLICA, REQUEST, PrefixCache
from planner.simulate.records import RequestRecords

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from planner.domain.workload import PrefixHashes
    from planner.simulate.steps import Floats


TURNED_AWAY = NOBODY


class Policy(StrEnum):
    """How the router picks a replica."""

    WEIGHTS = "weights"
    """The plan's weights choose the pool, the pool's least loaded replica serves."""
    WEIGHTED_RANDOM = "weighted-random"
    """The plan's weights choose the pool, chance one of its replicas (Mélange's balancer)."""
    LEAST_LOADED = "least-loaded"
    """Of all replicas that can serve a request, the one with the fewest others per capacity."""
    LEAST_KV = "least-kv"
    """Of all replicas that can serve a request, the one with the least KV memory in use and nobody waiting."""
    PREFIX_AWARE = "prefix-aware"
    """Of all replicas not much busier than the least loaded one, the one that has most of the prompt cached."""


_CODES = {
    Policy.WEIGHTS: loop.WEIGHTS,
    Policy.WEIGHTED_RANDOM: loop.WEIGHTED_RANDOM,
    Policy.LEAST_LOADED: loop.LEAST_LOADED,
    Policy.LEAST_KV: loop.LEAST_KV,
    Policy.PREFIX_AWARE: loop.PREFIX_AWARE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests in the order of arrival; arrays of shape (requests,)."""

    arrival_s: Floats
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    row: NDArray[np.int64]
    """Row of the router's tables that each request belongs to; TURNED_AWAY = it is sent to nobody."""
    service: NDArray[np.int64]
    prefix: PrefixHashes | None = None
    """Blocks of the prompts, for prefix caching; None = nothing is cached."""
    adapter: NDArray[np.int64] | None = None
    """Number of each request's adapter, -1 where it has none; None = no request has one."""

    def with_rows(self, row: NDArray[np.int64]) -> Traffic:
        """Return the same requests with other rows of the router's tables."""
        return replace(self, row=row)

    def select(self, chosen: NDArray[np.int64]) -> Traffic:
        """Return the requests of the given numbers, in that order; a number may come more than once."""
        return Traffic(
            arrival_s=self.arrival_s[chosen],
            input_tokens=self.input_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            row=self.row[chosen],
            service=self.service[chosen],
            prefix=None if self.prefix is None else prefixes_of(self.prefix, chosen),
            adapter=None if self.adapter is None else self.adapter[chosen],
        )


def prefixes_of(prefix: PrefixHashes, chosen: NDArray[np.int64]) -> PrefixHashes:
    """Return the blocks of the given requests."""
    counts = np.diff(prefix.offsets)[chosen]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    hashes = prefix.hashes[np.repeat(prefix.offsets[chosen], counts) + within]
    return replace(prefix, hashes=hashes, offsets=offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """Which pools serve which requests."""

    weights: Floats
    """(rows, pools): fraction of a row's requests that goes to each pool; of a pool with fewer replicas up than
    planned as much less, and more to the others."""
    rate_rps: Floats
    """(rows, pools): what one replica of a pool serves of a row alone; 0 = it cannot."""
    decode_row: int = 0
    """Rows of the requests' own; below them stand the rows by which prefilled requests go on to decode replicas."""
    handover: tuple[int, ...] = ()
    """(pools,): what a pool has prefilled of row b goes on by row b + handover x decode_row; empty = 1 for all."""
    policy: Policy = Policy.WEIGHTS
    planned: Floats | None = None
    """(rows, pools): replicas that the weights are meant for; None = all that the pools have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A replica goes, or comes (back)."""

    at_s: float
    replica: int
    """Counted through all pools."""
    is_up: bool
    lets_finish: bool = False
    """It takes no more requests and finishes those it has, instead of losing them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What came of it."""

    records: RequestRecords
    n_events: int
    n_steps: int
    """Engine steps of all replicas, those jumped over included."""
    utilization: Floats
    """(replicas,): part of the time from the first arrival to the last finish that each was at work."""
    busy_s: Floats
    """(replicas,): time that each was at work."""
    peak_kv_fraction: Floats
    """(replicas,): largest part of the KV memory that was ever given out."""
    peak_adapters: NDArray[np.int64]
    """(replicas,): most different adapters that one step was for; 0 where they cost a step nothing."""
    seconds: float
    """What the simulation took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """Clients that send their next request when the last one is answered."""

    clients: int
    think_s: Floats
    """(requests,): pause before each request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Runs of equal replicas."""

    kinds: NDArray[np.void]
    """Array of `steps.KIND`, one for each pool."""
    replicas: Sequence[int] = field(default=())
    """How many replicas each pool has."""
    gpus: NDArray[np.int64] | None = None
    """(replicas,): replicas that stand side by side with the same number here take turns on the same GPUs, step by
    step, and come and go together; None = each has its own."""


def simulate(
    pools: Pools,
    traffic: Traffic,
    router: Router,
    *,
    seed: int = 0,
    is_exact: bool = False,
    faults: Sequence[Fault] = (),
    down_at_start: Sequence[int] = (),
    closed_loop: ClosedLoop | None = None,
) -> Simulation:
    """Replay `traffic` on `pools` and return every request's record.

    The same inputs and seed give the same records, to the bit.

    Parameters
    ----------
    is_exact : walk every engine step; otherwise those in which nothing changes are jumped over, with the same result
        up to rounding.
    down_at_start : replicas that a fault brings up later.
    """
    started = time.perf_counter()
    requests = _requests(traffic, seed)
    replicas = _replicas(pools, down_at_start)
    slots = int(pools.kinds["max_seqs"].max()) if len(pools.kinds) else 0
    running = np.zeros((len(replicas), slots), dtype=np.int64)
    seen = np.zeros(int(requests["adapter"].max(initial=-1)) + 2, dtype=np.int64)
    state = loop.Fleet(pools.kinds, replicas, running, requests, _prefix_cache(traffic, len(replicas)), seen)
    planned = np.broadcast_to(np.array(pools.replicas, dtype=np.float64), router.weights.shape)
    if router.planned is not None:
        planned = router.planned
    ordered = sorted(faults, key=lambda fault: (fault.at_s, fault.replica))
    n_events = loop.run(
        state,
        loop.Routing(
            _CODES[router.policy],
            np.ascontiguousarray(router.weights, dtype=np.float64),
            np.ascontiguousarray(planned, dtype=np.float64),
            np.ascontiguousarray(router.rate_rps, dtype=np.float64),
            router.decode_row,
            np.array(router.handover or (1,) * len(pools.replicas), dtype=np.int64),
            np.concatenate([[0], np.cumsum(pools.replicas)]).astype(np.int64),
        ),
        loop.Arrivals(
            np.ascontiguousarray(traffic.arrival_s, dtype=np.float64),
            0 if closed_loop is None else closed_loop.clients,
            np.zeros(0) if closed_loop is None else np.ascontiguousarray(closed_loop.think_s, dtype=np.float64),
        ),
        loop.Faults(
            np.array([fault.at_s for fault in ordered], dtype=np.float64),
            np.array([fault.replica for fault in ordered], dtype=np.int64),
            np.array([_change(fault) for fault in ordered], dtype=np.int64),
        ),
        is_exact,
    )
    return _result(requests, replicas, pools, traffic, n_events=int(n_events), started=started)


def _change(fault: Fault) -> int:
    if fault.is_up:
        return loop.UP
    return loop.DRAINS if fault.lets_finish else loop.LOST


def _requests(traffic: Traffic, seed: int) -> NDArray[np.void]:
    requests = np.zeros(len(traffic.arrival_s), dtype=REQUEST)
    requests["input_tokens"] = np.maximum(traffic.input_tokens, 1)
    requests["output_tokens"] = np.maximum(traffic.output_tokens, 1)
    requests["bucket"] = traffic.row
    requests["draw"] = np.random.default_rng(seed).random(len(requests))
    requests["replica"] = NOBODY
    requests["adapter"] = NOBODY if traffic.adapter is None else traffic.adapter
    for name in ("sent_s", "first_s", "finish_s"):
        requests[name] = np.nan
    return requests


def _prefix_cache(traffic: Traffic, n_replicas: int) -> PrefixCache:
    """Return empty caches, the traffic's hashes counted from 0."""
    if traffic.prefix is None:
        ids, offsets, block_tokens = (
            np.zeros(0, dtype=np.int64),
            np.zeros(len(traffic.arrival_s) + 1, dtype=np.int64),
            1,
        )
        n_blocks = 0
    else:
        distinct, ids = np.unique(traffic.prefix.hashes, return_inverse=True)
        offsets, block_tokens, n_blocks = traffic.prefix.offsets, traffic.prefix.block_tokens, len(distinct)
    return PrefixCache(
        block_tokens,
        ids.astype(np.int64),
        offsets.astype(np.int64),
        np.zeros(len(ids), dtype=np.int8),
        np.full((n_replicas, n_blocks), ABSENT, dtype=np.int32),
        np.zeros((n_replicas, n_blocks), dtype=np.int32),
        np.zeros((n_replicas, n_blocks), dtype=np.int32),
    )


def _replicas(pools: Pools, down: Sequence[int]) -> NDArray[np.void]:
    replicas = np.zeros(sum(pools.replicas), dtype=REPLICA)
    replicas["kind"] = np.repeat(np.arange(len(pools.replicas)), pools.replicas)
    n_replicas = len(replicas)
    gpus = np.arange(n_replicas) if pools.gpus is None else pools.gpus
    starts = np.flatnonzero(np.diff(gpus, prepend=-1))
    sizes = np.diff(starts, append=n_replicas)
    replicas["first_mate"], replicas["n_mates"] = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    replicas["is_up"] = 1
    replicas["is_up"][list(down)] = 0
    for name in ("head", "tail", "oldest", "newest"):
        replicas[name] = NOBODY
    return replicas


def _result(
    requests: NDArray[np.void],
    replicas: NDArray[np.void],
    pools: Pools,
    traffic: Traffic,
    *,
    n_events: int,
    started: float,
) -> Simulation:
    finish = np.where(np.isinf(requests["finish_s"]), np.nan, requests["finish_s"])
    sent = requests["sent_s"]
    span = float(np.nanmax(finish) - np.nanmin(sent)) if np.isfinite(finish).any() else 0.0
    room = pools.kinds["kv_room"][replicas["kind"]]
    has_room = np.isfinite(room) & (room > 0)
    answered = np.isfinite(finish)
    columns = {
        "arrival_s": sent,
        "input_tokens": requests["input_tokens"],
        "output_tokens": requests["output_tokens"],
        "service": traffic.service,
        "ttft_s": np.where(answered, requests["first_s"] - sent + requests["delay_s"], np.nan),
        "longest_gap_s": requests["longest_gap_s"],
        "e2e_s": finish - sent + requests["delay_s"],
        "replica": requests["replica"],
        "preemptions": requests["preemptions"],
        "restarts": requests["restarts"],
        "prefix_hit_tokens": requests["hit_tokens"],
        "is_turned_away": requests["bucket"] == TURNED_AWAY,
        "adapter": requests["adapter"],
    }
    for column in columns.values():
        column.flags.writeable = False
    return Simulation(
        records=RequestRecords(**columns),
        n_events=n_events,
        n_steps=int(replicas["n_steps"].sum()),
        utilization=replicas["busy_s"] / span if span else np.zeros(len(replicas)),
        busy_s=replicas["busy_s"].copy(),
        peak_kv_fraction=np.divide(replicas["peak_bytes"], room, out=np.zeros(len(replicas)), where=has_room),
        peak_adapters=replicas["peak_adapters"].copy(),
        seconds=time.perf_counter() - started,
    )
