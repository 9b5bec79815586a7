"""Discrete events of always-on engines that serve many adapters each, with a fixed number of slots for them.

A request goes to the engine with the fewest requests, to one that holds its adapter where several are equal. An adapter
that is not there is loaded into the slot whose adapter was used least recently and is not in use: from host memory,
which has those of the largest rates, or from the disk.
Requests of all adapters are one batch: with n that wait for first tokens each takes T(n) from there, with n that decode
each takes D(n); while an engine does both, each kind takes twice as long (M T(b) for M = 2 batches).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError
from planner.optimize.preload import Tier
from planner.simulate.functions.clock import BatchClocks
from planner.simulate.functions.records import FunctionRecords, FunctionReplay
from planner.simulate.functions.setting import PARTS, draw
from planner.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from planner.simulate.functions.setting import Functions, Setting
    from planner.simulate.steps import Floats

ADAPTER = PARTS.index("adapter")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSize:
    """Engines, and what each has room for."""

    n_engines: int
    n_slots: int
    """Adapters in GPU memory."""
    most_running: int
    """Requests in one engine's batch."""
    request_kv_bytes: float
    """KV cache that each of them has."""


def pool_size(setting: Setting, functions: Functions, *, n_engines: int, request_kv_bytes: float) -> PoolSize:
    """Return the slots and the batch that fit a GPU beside the weights: slots for all adapters, up to half of the room.

    A slot holds the largest adapter.

    Raises
    ------
    InputError: if the weights leave no room for one slot and one request.
    """
    room = setting.gpu_bytes - setting.backbone_bytes - setting.context_bytes
    slot = float(functions.adapter_bytes.max(initial=0.0))
    half = math.floor(room / 2 / slot) if slot > 0 else len(functions)
    n_slots = max(1, min(len(functions), half))
    most = math.floor((room - n_slots * slot) / request_kv_bytes) if request_kv_bytes > 0 else 1_000_000
    if room < slot or most < 1:
        raise InputError(
            f"The weights take {format_bytes(setting.backbone_bytes)} of {format_bytes(setting.gpu_bytes)}, and leave"
            " no room for an adapter and a request.",
            hint="Use a larger GPU, or weights in a smaller format.",
        )
    return PoolSize(n_engines=n_engines, n_slots=n_slots, most_running=most, request_kv_bytes=request_kv_bytes)


def replay_pool(
    arrival_s: ArrayLike,
    function: ArrayLike,
    *,
    functions: Functions,
    setting: Setting,
    size: PoolSize,
    rng: np.random.Generator,
    end_s: float,
    decode_factor: ArrayLike | None = None,
) -> FunctionReplay:
    """Return what happens to requests of adapters on always-on engines; parameters as `replay_functions`.

    The slots begin with the adapters of the largest rates, the same on every engine.
    """
    run = _Pool(functions, setting, size, rng, end_s)
    run.load(np.asarray(arrival_s, dtype=np.float64), np.asarray(function, dtype=np.int64), decode_factor)
    run.go()
    return run.outcome(np.asarray(arrival_s, dtype=np.float64), np.asarray(function, dtype=np.int64))


class _Engine:
    __slots__ = ("at_s", "batch", "busy_s", "index", "most_running", "slots", "version", "waiting")

    def __init__(self, index: int, adapters: list[int], batch: BatchClocks) -> None:
        self.index = index
        self.slots = dict.fromkeys(adapters, 0)  # adapter -> requests that use it; the least recently used one first
        self.batch = batch
        self.waiting: deque[int] = deque()
        self.version = 0
        self.most_running = 0
        self.at_s = self.busy_s = 0.0


class _Pool:
    def __init__(
        self, functions: Functions, setting: Setting, size: PoolSize, rng: np.random.Generator, end_s: float
    ) -> None:
        self.setting, self.size, self.rng, self.end_s = setting, size, rng, end_s
        ranked = np.argsort(-functions.rate_rps, kind="stable").tolist()
        busiest = ranked[: size.n_slots]
        in_host = np.cumsum(functions.adapter_bytes[ranked]) <= setting.host_bytes
        self.tiers = {f: Tier.HOST if is_in else Tier.DISK for f, is_in in zip(ranked, in_host.tolist(), strict=True)}
        self.engines = [
            _Engine(i, busiest[::-1], BatchClocks(setting.prefill, setting.decode)) for i in range(size.n_engines)
        ]
        self.n_running = [0] * size.n_engines  # those that load their adapter, too
        self.slot_bytes = float(functions.adapter_bytes.max(initial=0.0))
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.n_events = self.n_loads = 0

    def load(self, arrival_s: Floats, function: NDArray[np.int64], decode_factor: ArrayLike | None) -> None:
        n = len(arrival_s)
        self.arrivals, self.wanted = arrival_s.tolist(), function.tolist()
        factors = np.ones(n) if decode_factor is None else np.asarray(decode_factor, dtype=np.float64)
        self.factors = factors.tolist()
        self.ttft, self.e2e, self.begun = [math.inf] * n, [math.inf] * n, [0.0] * n
        self.where, self.adapter_s = [-1] * n, [0.0] * n

    def go(self) -> None:
        at, n = 0, len(self.arrivals)
        while at < n or self.events:
            if at < n and (not self.events or self.arrivals[at] <= self.events[0][0]):
                self._arrive(at, self.arrivals[at])
                at += 1
            else:
                now_s, _, happen = heapq.heappop(self.events)
                happen(now_s)

    def _at(self, time_s: float, happen: Callable[[float], None]) -> None:
        if time_s < math.inf:
            heapq.heappush(self.events, (time_s, self.n_events, happen))
            self.n_events += 1

    def _arrive(self, request: int, now_s: float) -> None:
        adapter = self.wanted[request]
        engine = min(
            self.engines,
            key=lambda each: (self.n_running[each.index] + len(each.waiting), adapter not in each.slots, each.index),
        )
        self.where[request] = engine.index
        engine.waiting.append(request)
        self._admit(engine, now_s)

    def _admit(self, engine: _Engine, now_s: float) -> None:
        """Let requests in, in the order of arrival, while the batch and the slots have room."""
        while engine.waiting and self.n_running[engine.index] < self.size.most_running:
            request = engine.waiting[0]
            adapter = self.wanted[request]
            is_there = adapter in engine.slots
            if not is_there:
                free = next((each for each, users in engine.slots.items() if users == 0), None)
                if free is None:
                    return
                del engine.slots[free]
                engine.slots[adapter] = 0
            engine.waiting.popleft()
            engine.slots[adapter] = engine.slots.pop(adapter) + 1  # the most recently used one stands last
            self.n_running[engine.index] += 1
            engine.most_running = max(engine.most_running, self.n_running[engine.index])
            if is_there:
                self._prefill(engine, request, now_s)
            else:
                self.n_loads += 1
                self.adapter_s[request] = draw(self.setting.start.adapter_s[self.tiers[adapter]], self.rng)
                self._at(now_s + self.adapter_s[request], partial(self._prefill, engine, request))

    def _prefill(self, engine: _Engine, request: int, now_s: float) -> None:
        self._advance(engine, now_s)
        self.begun[request] = now_s
        engine.batch.add(request)
        self._reschedule(engine)

    def _advance(self, engine: _Engine, now_s: float) -> None:
        if len(engine.batch):
            engine.busy_s += now_s - engine.at_s
        engine.at_s = now_s
        engine.batch.advance(now_s)

    def _reschedule(self, engine: _Engine) -> None:
        engine.batch.share(1)
        engine.version += 1
        self._at(engine.batch.next_s(), partial(self._on_clock, engine, engine.version))

    def _on_clock(self, engine: _Engine, version: int, now_s: float) -> None:
        if version != engine.version:
            return
        self._advance(engine, now_s)
        request, is_first, is_done = engine.batch.pop(self.factors)
        if is_first:
            self.ttft[request] = now_s - self.arrivals[request]
        if is_done:
            self.e2e[request] = now_s - self.arrivals[request]
            engine.slots[self.wanted[request]] -= 1
            self.n_running[engine.index] -= 1
            self._admit(engine, now_s)
        self._reschedule(engine)

    def outcome(self, arrival_s: Floats, function: NDArray[np.int64]) -> FunctionReplay:
        """Return what was recorded; memory is that of the batch at its largest and of all slots."""
        ttft, adapter_s = np.array(self.ttft), np.array(self.adapter_s)
        cold = np.zeros((len(ttft), len(PARTS)))
        cold[:, ADAPTER] = adapter_s
        setting = self.setting
        fixed = setting.backbone_bytes + setting.context_bytes + self.size.n_slots * self.slot_bytes
        peaks = np.array([fixed + engine.most_running * self.size.request_kv_bytes for engine in self.engines])
        held_s = self.size.n_engines * self.end_s
        return FunctionReplay(
            records=FunctionRecords(
                arrival_s=arrival_s,
                function=function,
                machine=np.array(self.where, dtype=np.int64),
                ttft_s=ttft,
                e2e_s=np.array(self.e2e),
                cold_s=cold,
                inference_s=arrival_s + ttft - np.array(self.begun),
            ),
            end_s=self.end_s,
            gpu_s=held_s,
            gpu_share_s=held_s,
            busy_gpu_s=math.fsum(engine.busy_s for engine in self.engines),
            most_machines=self.size.n_engines,
            holds_s=np.zeros(0),
            container_starts_s=np.zeros(0),
            rented_used_s=0.0,
            peak_bytes=peaks,
            n_starts=0,
            n_evictions=self.n_loads,
        )
