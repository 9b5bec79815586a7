"""Discrete events of functions with a process each: arrivals, starts, batches, keep-alive, eviction.

Requests of a function wait in one queue; its processes take as many as their batches hold. Where there is none, one
starts on a machine that has room, part by part. Processes on one GPU take turns. Events at the same time come in
the order in which they were foreseen, arrivals first: a request at the last moment of a keep-alive is served warm.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation
from planner.errors import InputError
from planner.optimize.preload import Tier
from planner.profilers.adapter_batching import expire_delay_s, margin_s
from planner.simulate.functions.clock import BatchClocks
from planner.simulate.functions.machine import SLACK, Machine, Process
from planner.simulate.functions.records import FunctionRecords, FunctionReplay
from planner.simulate.functions.setting import PARTS, Batching, draw, process_bytes
from planner.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from planner.simulate.functions.setting import Functions, Policy, Setting
    from planner.simulate.steps import Floats

JUST_S = 1e-9
"""Deadlines closer than this have come."""
LATER_S = 1.0
"""When to look again at what cannot be given up because requests wait for it."""


def replay_functions(
    arrival_s: ArrayLike,
    function: ArrayLike,
    *,
    functions: Functions,
    setting: Setting,
    policy: Policy,
    rng: np.random.Generator,
    end_s: float,
    decode_factor: ArrayLike | None = None,
    prefill_factor: ArrayLike | None = None,
) -> FunctionReplay:
    """Return what happens to requests of functions under a policy, and what it holds meanwhile.

    All requests are served to their end; machines are paid until `end_s`. Requests that can never start, because all
    memory is taken for good, have an infinite TTFT.

    Parameters
    ----------
    arrival_s : ascending times in seconds from 0, shape (requests,).
    function : which function each asks for, shape (requests,).
    decode_factor : length of each answer over the mean, shape (requests,); None = all are alike.
    prefill_factor : time to each first token alone over the mean request's, shape (requests,); None = all are alike.

    Raises
    ------
    InputError: if a process does not fit a GPU, or its container the host.
    """
    run = _Run(functions, setting, policy, rng, end_s)
    run.load(
        np.asarray(arrival_s, dtype=np.float64), np.asarray(function, dtype=np.int64), decode_factor, prefill_factor
    )
    run.go()
    return run.outcome()


def _factors(factor: ArrayLike | None, n: int) -> list[float]:
    return [1.0] * n if factor is None else np.asarray(factor, dtype=np.float64).tolist()


def _turns(process: Process) -> tuple[int, int]:
    """Return how many processes will run on the GPU if this one gets a request, and how many requests it has."""
    n_running = len(process.batch)
    return len(process.machine.running) + (n_running == 0), n_running


class _Run:
    """The state of one replay, and what each event does to it."""

    def __init__(
        self, functions: Functions, setting: Setting, policy: Policy, rng: np.random.Generator, end_s: float
    ) -> None:
        self.setting, self.policy, self.rng, self.end_s = setting, policy, rng, end_s
        n = len(functions)
        self.is_shared = policy.isolation is Isolation.SHARED_BACKBONE
        self.sizes = [process_bytes(setting, float(size), policy.isolation) for size in functions.adapter_bytes]
        self.containers = [setting.container_bytes + float(size) for size in functions.adapter_bytes]
        self.bounds = functions.ttft_bound_s.tolist()
        self.keep_alive = policy.keep_alive_s.tolist()
        start = setting.start
        reload_s = start.kernels_s.p50 + start.adapter_s[Tier.HOST].p50 + start.backbone_shared_s.p50
        held = zip(functions.rate_rps.tolist(), self.sizes, self.containers, strict=True)
        densities = [(rate * reload_s / size, rate / container) for rate, size, container in held]
        self.values = [gpu for gpu, _ in densities]
        self.host_values = dict(enumerate(host for _, host in densities))
        self.queue: list[deque[int]] = [deque() for _ in range(n)]
        self.free: list[dict[Process, None]] = [{} for _ in range(n)]  # processes whose batch has room
        self.n_processes = [0] * n
        self.n_starting = [0] * n
        self.fill_at = [math.nan] * n
        self.starved: dict[int, None] = {}
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.n_events = self.n_starts = self.n_evictions = self.most_on = 0
        self.machines = [
            Machine(index=i, gpu_bytes=setting.gpu_bytes, host_bytes=setting.host_bytes, end_s=end_s)
            for i in range(policy.most_machines)
        ]
        self.on: dict[Machine, None] = {}
        self.off = list(range(policy.most_machines))  # a heap: the lowest number is switched on first
        self._check_fit()
        room = setting.host_bytes - max(self.containers, default=0.0)
        has_room = policy.n_spares * setting.container_bytes <= room
        self.n_spares = policy.n_spares if has_room else math.floor(room / setting.container_bytes)
        self._prepare()

    def _check_fit(self) -> None:
        setting = self.setting
        backbone = setting.backbone_bytes if self.is_shared else 0.0
        largest = max(self.sizes, default=0.0) + backbone
        if largest > setting.gpu_bytes * (1 + SLACK):
            raise InputError(
                f"A process of one function takes {format_bytes(largest)}, and the GPU has"
                f" {format_bytes(setting.gpu_bytes)}.",
                hint="Use a larger GPU, weights in a smaller format, or a smaller batch.",
            )
        if max(self.containers, default=0.0) > setting.host_bytes * (1 + SLACK):
            raise InputError(
                f"A container takes {format_bytes(max(self.containers))}, and the host has"
                f" {format_bytes(setting.host_bytes)}.",
                hint="Give the machine more host memory.",
            )

    def _prepare(self) -> None:
        """Switch on what is always on, with all that is there at the beginning."""
        for _ in range(self.policy.n_always_on):
            machine = self._switch_on(0.0, up_s=0.0)
            machine.n_spares = self.n_spares
            if self.is_shared:
                machine.take(self.setting.backbone_bytes, 0.0)
                machine.backbone_ready_s = 0.0
        for function, index in self.policy.in_host:
            self.machines[index].keep_in_host(function, self.containers[function], self.host_values)
        for function, index in self.policy.warm:
            machine = self.machines[index]
            machine.waiting.pop(function, None)
            process = self._new_process(function, machine, 0.0)
            machine.n_starting += 1
            self.n_starting[function] += 1
            self._ready(process, 0.0)

    def load(
        self,
        arrival_s: Floats,
        function: NDArray[np.int64],
        decode_factor: ArrayLike | None,
        prefill_factor: ArrayLike | None,
    ) -> None:
        """Take the requests."""
        n = len(arrival_s)
        self.arrivals, self.wanted = arrival_s.tolist(), function.tolist()
        self.factors = _factors(decode_factor, n)
        self.prefill_factors = _factors(prefill_factor, n)
        self.ttft, self.e2e, self.inference = [math.inf] * n, [math.inf] * n, [0.0] * n
        self.where = [-1] * n
        self.cold = np.zeros((n, len(PARTS)))

    def go(self) -> None:
        """Handle all arrivals and events in the order of time."""
        arrivals, wanted, n = self.arrivals, self.wanted, len(self.arrivals)
        at = 0
        while at < n or self.events:
            if at < n and (not self.events or arrivals[at] <= self.events[0][0]):
                self.queue[wanted[at]].append(at)
                self._dispatch(wanted[at], arrivals[at])
                at += 1
            else:
                now_s, _, happen = heapq.heappop(self.events)
                happen(now_s)

    def outcome(self) -> FunctionReplay:
        """Return what was recorded."""
        for machine in self.on:
            machine.switch_off(max(self.end_s, machine.at_s))
        records = FunctionRecords(
            arrival_s=np.array(self.arrivals),
            function=np.array(self.wanted, dtype=np.int64),
            machine=np.array(self.where, dtype=np.int64),
            ttft_s=np.array(self.ttft),
            e2e_s=np.array(self.e2e),
            cold_s=self.cold,
            inference_s=np.array(self.inference),
        )
        rented = self.machines[self.policy.n_always_on :]
        return FunctionReplay(
            records=records,
            end_s=self.end_s,
            gpu_s=math.fsum(machine.held_s for machine in self.machines),
            gpu_share_s=math.fsum(machine.share_s for machine in self.machines),
            busy_gpu_s=math.fsum(machine.busy_s for machine in self.machines),
            most_machines=self.most_on,
            holds_s=np.array([hold_s for machine in rented for hold_s in machine.holds_s]),
            container_starts_s=np.array([start_s for machine in rented for start_s in machine.container_starts_s]),
            rented_used_s=math.fsum(machine.used_s for machine in rented),
            peak_bytes=np.array([machine.peak_bytes for machine in self.machines]),
            n_starts=self.n_starts,
            n_evictions=self.n_evictions,
        )

    def _at(self, time_s: float, happen: Callable[[float], None]) -> None:
        """Foresee an event; it is told the time when it happens."""
        if time_s < math.inf:
            heapq.heappush(self.events, (time_s, self.n_events, happen))
            self.n_events += 1

    # --- requests to batches ------------------------------------------------------------------------------------------

    def _dispatch(self, function: int, now_s: float) -> None:
        """Give waiting requests of a function to its processes that have room; start another where they are too few."""
        queue, free = self.queue[function], self.free[function]
        is_crowded = False
        while queue and free:
            process = min(free, key=_turns)
            machine, n_running = process.machine, len(process.batch)
            if n_running == 0 and len(machine.running) >= self.policy.most_sharing:
                machine.queued[function] = None
                is_crowded = True
                break
            size = min(len(queue), self.policy.most_batch - n_running)
            if self._may_fill(function, size, process, now_s):
                return
            self._begin(process, [queue.popleft() for _ in range(size)], now_s)
        if queue and self._needs_process(function, is_crowded=is_crowded):
            self._try_start(function, now_s)

    def _may_fill(self, function: int, size: int, process: Process, now_s: float) -> bool:
        """Return whether a batch should wait for more requests, and see to it that it ends."""
        if self.policy.batching is Batching.AT_ONCE or size >= self.policy.most_batch - len(process.batch):
            return False
        oldest = self.queue[function][0]
        latest_s = self.arrivals[oldest] + expire_delay_s(
            self.setting.prefill, slo_s=self.bounds[function], batch=size, n_sharing=_turns(process)[0]
        )
        if latest_s <= now_s + JUST_S:
            return False
        if self.fill_at[function] != latest_s:
            self.fill_at[function] = latest_s
            self._at(latest_s, partial(self._dispatch, function))
        return True

    def _begin(self, process: Process, requests: list[int], now_s: float) -> None:
        machine = process.machine
        machine.advance(now_s)
        if len(process.batch) == 0:
            process.batch.advance(now_s)
            machine.running[process] = None
            del machine.idle[process]
        for i in requests:
            process.batch.add(i, self.prefill_factors[i])
            self.inference[i] = now_s  # until its first token says how long that took
        process.token += 1
        machine.token += 1
        if not self.policy.joins or len(process.batch) >= self.policy.most_batch:
            del self.free[process.function][process]
        self._reschedule(machine)

    def _reschedule(self, machine: Machine) -> None:
        machine.version += 1
        self._at(machine.share(), partial(self._on_clock, machine, machine.version))

    def _on_clock(self, machine: Machine, version: int, now_s: float) -> None:
        """Handle what comes first on a GPU: a first token, or the end of an answer."""
        if version != machine.version:
            return
        process = machine.first()
        machine.advance(now_s)
        request, is_first, is_done = process.batch.pop(self.factors)
        if is_first:
            self._record_first(process, request, now_s)
        if is_done:
            self.e2e[request] = now_s - self.arrivals[request]
            if len(process.batch) == 0:
                del machine.running[process]
        self._reschedule(machine)
        if not is_done:
            return
        if len(process.batch) == 0:
            self._rest(process, now_s)
            self._next_in_turn(machine, now_s)
            self._retry(now_s)
        elif self.policy.joins:
            self.free[process.function][process] = None
            if self.queue[process.function]:
                self._dispatch(process.function, now_s)

    def _record_first(self, process: Process, request: int, now_s: float) -> None:
        arrival = self.arrivals[request]
        self.ttft[request] = now_s - arrival
        self.inference[request] = now_s - self.inference[request]
        self.where[request] = process.machine.index
        if process.ready_s > arrival:
            began = process.start_s
            for k, part_s in enumerate(process.parts_s):
                self.cold[request, k] = max(0.0, began + part_s - max(began, arrival))
                began += part_s

    def _next_in_turn(self, machine: Machine, now_s: float) -> None:
        """Let the function begin that has least left before its objective (ServerlessLoRA, equation 5)."""
        machine.queued = {
            f: None for f in machine.queued if self.queue[f] and any(p.machine is machine for p in self.free[f])
        }
        while machine.queued and len(machine.running) < self.policy.most_sharing:
            n_sharing = len(machine.running) + 1
            margins = [(self._margin_s(f, n_sharing, now_s), f) for f in machine.queued]
            function = min(margins)[1]
            del machine.queued[function]
            self._dispatch(function, now_s)

    def _margin_s(self, function: int, n_sharing: int, now_s: float) -> float:
        queue = self.queue[function]
        return margin_s(
            self.setting.prefill,
            slo_s=self.bounds[function],
            waited_s=now_s - self.arrivals[queue[0]],
            batch=min(len(queue), self.policy.most_batch),
            n_sharing=n_sharing,
        )

    # --- processes ----------------------------------------------------------------------------------------------------

    def _needs_process(self, function: int, *, is_crowded: bool) -> bool:
        """Return whether the requests that wait are more than the processes of a function should be left with."""
        n_live = self.n_processes[function]
        if n_live >= self.policy.most_instances:
            return False
        if self.policy.queue_per_start == math.inf:
            return n_live == 0
        if is_crowded:
            return self.n_starting[function] == 0
        return len(self.queue[function]) > self.policy.queue_per_start * self.n_starting[function]

    def _try_start(self, function: int, now_s: float) -> bool:
        machine = self._place(function, now_s)
        if machine is None:
            if self.n_processes[function] == 0:
                self.starved[function] = None
            return False
        self.starved.pop(function, None)
        self._start(function, machine, now_s)
        return True

    def _place(self, function: int, now_s: float) -> Machine | None:
        """Return a machine with room for one more process of a function; makes room, or switches one on, if need be."""
        policy, size = self.policy, self.sizes[function]
        best: tuple[tuple[float, ...], Machine] | None = None
        crowded: list[Machine] = []
        for machine in self.on:
            if machine.load >= policy.most_sharing or not self._has_host_room(function, machine):
                continue
            if machine.n_processes >= policy.most_processes:
                continue
            needs_backbone = self.is_shared and machine.backbone_ready_s == math.inf
            if machine.free_bytes >= size + (self.setting.backbone_bytes if needs_backbone else 0.0):
                warmth = 0 if function in machine.waiting else 1 if machine.n_spares else 2
                key = (needs_backbone, warmth, machine.load, machine.index)
                best = min(best or (key, machine), (key, machine), key=lambda pair: pair[0])
            else:
                crowded.append(machine)
        if best is not None:
            return best[1]
        if policy.rents_before_evicting:
            return self._rent(now_s) or self._make_room(size, crowded, now_s)
        return self._make_room(size, crowded, now_s) or self._rent(now_s)

    def _has_host_room(self, function: int, machine: Machine) -> bool:
        return function in machine.waiting or machine.has_host_room(self.containers[function])

    def _rent(self, now_s: float) -> Machine | None:
        if not self.off:
            return None
        machine = self._switch_on(now_s, up_s=now_s + draw(self.setting.start.provision_s, self.rng))
        for _ in range(self.n_spares):
            self._prepare_spare(machine, machine.up_s)
        return machine

    def _switch_on(self, now_s: float, *, up_s: float) -> Machine:
        machine = self.machines[heapq.heappop(self.off)]
        machine.switch_on(now_s, up_s=up_s)
        machine.live_host_bytes = self.n_spares * self.setting.container_bytes
        self.on[machine] = None
        self.most_on = max(self.most_on, len(self.on))
        return machine

    def _prepare_spare(self, machine: Machine, from_s: float) -> None:
        start = self.setting.start
        ready_s = from_s + draw(start.container_s, self.rng) + draw(start.libraries_s, self.rng)
        self._at(ready_s, partial(self._on_spare, machine, machine.era))

    @staticmethod
    def _on_spare(machine: Machine, era: int, _now_s: float) -> None:
        if machine.era == era:
            machine.n_spares += 1

    def _make_room(self, size: float, machines: Sequence[Machine], now_s: float) -> Machine | None:
        """Give up the idle processes whose loss per byte is least, on the machine that loses least by it.

        The rule of `optimize.preload.evict`, for processes of which nothing else depends.
        """
        best: tuple[float, int, list[Process]] | None = None
        for machine in machines:
            missing, falls, loss = size - machine.free_bytes, [], 0.0
            free = (process for process in machine.idle if not self.queue[process.function])
            for process in sorted(free, key=lambda each: (self.values[each.function], each.function)):
                if missing <= 0:
                    break
                falls.append(process)
                missing -= process.size_bytes
                loss += self.values[process.function] * process.size_bytes
            if missing <= 0 and (best is None or (loss, machine.index) < best[:2]):
                best = (loss, machine.index, falls)
        if best is None:
            return None
        for process in best[2]:
            self._stop(process, now_s)
            self.n_evictions += 1
        return self.machines[best[1]]

    def _new_process(self, function: int, machine: Machine, now_s: float) -> Process:
        process = Process(
            function=function,
            machine=machine,
            size_bytes=self.sizes[function],
            start_s=now_s,
            batch=BatchClocks(self.setting.prefill, self.setting.decode),
        )
        machine.take(process.size_bytes, now_s)
        machine.live_host_bytes += self.containers[function]
        machine.make_host_room(0.0, self.host_values)
        machine.n_processes += 1
        self.n_processes[function] += 1
        return process

    def _start(self, function: int, machine: Machine, now_s: float) -> None:
        """Begin a cold start: all of its parts follow from what the machine has by now."""
        start, rng = self.setting.start, self.rng
        provision_s = max(0.0, machine.up_s - now_s)
        has_own = machine.waiting.pop(function, None) is not None
        has_container = has_own or machine.n_spares > 0
        if has_container and not has_own:
            machine.n_spares -= 1
            self._prepare_spare(machine, now_s)
        container_s = 0.0 if has_container else draw(start.container_s, rng)
        libraries_s = 0.0 if has_container else draw(start.libraries_s, rng)
        if machine.container_start_s is None:
            machine.container_start_s = container_s
        process = self._new_process(function, machine, now_s)
        backbone_s = self._backbone_s(machine, now_s + provision_s + container_s + libraries_s, now_s)
        adapter_tier = Tier.HOST if has_own else Tier.DISK
        adapter_s = (
            draw(start.adapter_s[adapter_tier], rng) if self.is_shared else 0.0
        )  # 0: it is merged into the weights
        kernels_s = draw(start.kernels_s, rng)
        process.parts_s = (provision_s, container_s, libraries_s, backbone_s, adapter_s, kernels_s)
        process.ready_s = now_s + sum(process.parts_s)
        machine.count_use(now_s)
        machine.n_starting += 1
        machine.token += 1
        self.n_starting[function] += 1
        self.n_starts += 1
        self._at(process.ready_s, partial(self._on_ready, process))

    def _backbone_s(self, machine: Machine, from_s: float, now_s: float) -> float:
        """Return how long a process waits for its weights from `from_s` on: loaded, or mapped once they are there."""
        start = self.setting.start
        tier = Tier.HOST if self.policy.has_host_backbone else Tier.DISK
        if not self.is_shared:
            return draw(start.backbone_s[tier], self.rng)
        if machine.backbone_ready_s == math.inf:
            machine.take(self.setting.backbone_bytes, now_s)
            machine.backbone_ready_s = from_s + draw(start.backbone_s[tier], self.rng)
            return machine.backbone_ready_s - from_s
        return max(0.0, machine.backbone_ready_s - from_s) + draw(start.backbone_shared_s, self.rng)

    def _on_ready(self, process: Process, now_s: float) -> None:
        self._ready(process, now_s)
        self._retry(now_s)

    def _ready(self, process: Process, now_s: float) -> None:
        process.machine.count_use(now_s)
        process.machine.n_starting -= 1
        self.n_starting[process.function] -= 1
        self._rest(process, now_s)

    def _rest(self, process: Process, now_s: float) -> None:
        """Let a free process take what waits for it, or idle until its keep-alive is over."""
        function, machine = process.function, process.machine
        self.free[function][process] = None
        machine.idle[process] = None
        if self.queue[function] and machine.queued:
            machine.queued[function] = None  # others wait for this GPU too: `_next_in_turn` says who begins
        elif self.queue[function]:
            self._dispatch(function, now_s)
        if process in machine.idle:
            self._at(now_s + self.keep_alive[function], partial(self._on_expire, process, process.token))
            self._rest_machine(machine, now_s)

    def _on_expire(self, process: Process, token: int, now_s: float) -> None:
        if process in process.machine.idle and token == process.token:
            if self.queue[process.function]:  # it waits for its turn, or for its batch to fill
                self._at(now_s + LATER_S, partial(self._on_expire, process, token))
                return
            self._stop(process, now_s)
            self._rest_machine(process.machine, now_s)
            self._retry(now_s)

    def _stop(self, process: Process, now_s: float) -> None:
        function, machine = process.function, process.machine
        del self.free[function][process]
        del machine.idle[process]
        machine.give(process.size_bytes, now_s)
        machine.live_host_bytes = max(0.0, machine.live_host_bytes - self.containers[function])
        machine.n_processes -= 1
        self.n_processes[function] -= 1
        if self.policy.keeps_containers and function not in machine.waiting:
            machine.keep_in_host(function, self.containers[function], self.host_values)

    def _retry(self, now_s: float) -> None:
        """Start processes for functions that have none and found no room, the longest waiting one first."""
        while self.starved:
            function = next(iter(self.starved))
            if not self.queue[function] or self.n_processes[function]:
                del self.starved[function]
            elif not self._try_start(function, now_s):
                return

    # --- machines -----------------------------------------------------------------------------------------------------

    def _rest_machine(self, machine: Machine, now_s: float) -> None:
        """Give a machine back that is empty, or later if nothing begins on it until then."""
        if not machine.is_on or machine.index < self.policy.n_always_on or machine.load:
            return
        if machine.n_processes == 0 and self.policy.machine_keep_alive_s == math.inf:
            self._give_back(machine, now_s)
        else:
            self._at(now_s + self.policy.machine_keep_alive_s, partial(self._on_release, machine, machine.token))

    def _on_release(self, machine: Machine, token: int, now_s: float) -> None:
        if machine.is_on and token == machine.token and not machine.load:
            if any(self.queue[process.function] for process in machine.idle):
                self._at(now_s + LATER_S, partial(self._on_release, machine, token))
                return
            self._give_back(machine, now_s)

    def _give_back(self, machine: Machine, now_s: float) -> None:
        for process in tuple(machine.idle):
            self._stop(process, now_s)
        machine.token += 1
        machine.switch_off(now_s)
        del self.on[machine]
        heapq.heappush(self.off, machine.index)
