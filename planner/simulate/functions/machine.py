"""One machine of a replay of functions: its GPU's memory and batches, the containers in its host memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.simulate.functions.clock import BatchClocks

SLACK = 1e-9
"""Relative; processes that fill a GPU exactly do fit."""


@dataclass(slots=True, eq=False)
class Process:
    """One process of one function."""

    function: int
    machine: Machine
    size_bytes: float
    start_s: float
    batch: BatchClocks
    parts_s: tuple[float, ...] = ()
    ready_s: float = 0.0
    token: int = 0
    """Changes whenever it is used, so that an older deadline is void."""


@dataclass(slots=True, eq=False)
class Machine:
    """What a machine holds now, and what it has held."""

    index: int
    gpu_bytes: float
    host_bytes: float
    end_s: float
    """Until when is paid."""
    is_on: bool = False
    up_s: float = 0.0
    """When it has been provisioned."""
    backbone_ready_s: float = math.inf
    """When the GPU's copy of the backbone that processes share is there; inf = there is none."""
    used_bytes: float = 0.0
    peak_bytes: float = 0.0
    held_s: float = 0.0
    holds_s: list[float] = field(default_factory=list)
    """The same, each time that it was switched on."""
    container_starts_s: list[float] = field(default_factory=list)
    """How much of each of these went by until the first process's container ran."""
    used_s: float = 0.0
    """How long a process of it started or ran; several at once count once, as they are in one container."""
    share_s: float = 0.0
    busy_s: float = 0.0
    n_starting: int = 0
    token: int = 0
    version: int = 0
    """Of what runs: an older prediction of its next end is void."""
    running: dict[Process, None] = field(default_factory=dict)
    at_s: float = 0.0
    """To when the batches have run."""
    idle: dict[Process, None] = field(default_factory=dict)
    waiting: dict[int, float] = field(default_factory=dict)
    """Containers without a process: function -> bytes."""
    live_host_bytes: float = 0.0
    """Containers of processes, and spare ones: those that are ready, and room for those that start."""
    n_spares: int = 0
    """Spare containers that are ready."""
    era: int = 0
    """How often it has been given back: what began before is void."""
    n_processes: int = 0
    container_start_s: float | None = None
    """How long the container of the first process took since it was switched on; None = none has started."""
    queued: dict[int, None] = field(default_factory=dict)
    """Functions with an idle process here that wait for their turn on the GPU."""
    _since_s: float = 0.0
    _counted_s: float = 0.0
    _used_to_s: float = 0.0

    @property
    def free_bytes(self) -> float:
        """GPU memory that is not taken."""
        return self.gpu_bytes * (1 + SLACK) - self.used_bytes

    @property
    def load(self) -> int:
        """Processes that run, and those that will as soon as they have started."""
        return len(self.running) + self.n_starting

    def switch_on(self, now_s: float, *, up_s: float) -> None:
        """Begin to pay."""
        self.is_on, self.up_s = True, up_s
        self._since_s = self._counted_s = now_s
        self.container_start_s = None

    def switch_off(self, now_s: float) -> None:
        """Stop paying, and lose all that it held."""
        self.count(now_s)
        self.holds_s.append(max(0.0, min(now_s, self.end_s) - self._since_s))
        self.container_starts_s.append(min(self.container_start_s or 0.0, self.holds_s[-1]))
        self.held_s += self.holds_s[-1]
        self.is_on, self.used_bytes, self.backbone_ready_s = False, 0.0, math.inf
        self.live_host_bytes, self.n_spares, self.era = 0.0, 0, self.era + 1
        self.waiting.clear()

    def take(self, size_bytes: float, now_s: float) -> None:
        """Reserve GPU memory.

        Raises
        ------
        RuntimeError: if there is not as much: the replay is wrong.
        """
        self.count(now_s)
        self.used_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        if self.free_bytes < 0:
            msg = f"machine {self.index} holds {self.used_bytes:g} bytes of {self.gpu_bytes:g}"
            raise RuntimeError(msg)

    def give(self, size_bytes: float, now_s: float) -> None:
        """Return GPU memory."""
        self.count(now_s)
        self.used_bytes = max(0.0, self.used_bytes - size_bytes)

    def count(self, now_s: float) -> None:
        """Add the memory held until now to the part of the GPU that was taken."""
        now_s = min(now_s, self.end_s)
        if now_s > self._counted_s:
            self.share_s += (now_s - self._counted_s) * self.used_bytes / self.gpu_bytes
            self._counted_s = now_s

    def count_use(self, now_s: float) -> None:
        """Add the time until now, if a process starts or runs; called before either changes."""
        now_s = min(now_s, self.end_s)
        if self.running or self.n_starting:
            self.used_s += now_s - self._used_to_s
        self._used_to_s = now_s

    def advance(self, now_s: float) -> None:
        """Let the batches run to `now_s`."""
        self.count_use(now_s)
        if self.running:
            self.busy_s += now_s - self.at_s
        self.at_s = now_s
        for process in self.running:
            process.batch.advance(now_s)

    def share(self) -> float:
        """Let the processes that run take turns, and return when the first of them has something to tell."""
        n, next_s = len(self.running), math.inf
        for process in self.running:
            process.batch.share(n)
            next_s = min(next_s, process.batch.next_s())
        return next_s

    def first(self) -> Process:
        """Return the process that has something to tell first."""
        return min(self.running, key=lambda process: process.batch.next_s())

    def has_host_room(self, size_bytes: float) -> bool:
        """Return whether a container of this size fits beside those of processes."""
        return self.live_host_bytes + size_bytes <= self.host_bytes * (1 + SLACK)

    def keep_in_host(self, function: int, size_bytes: float, values: Mapping[int, float] | None = None) -> None:
        """Add a container without a process, and drop the least valuable ones while there is no room.

        values : saved seconds per second and byte of each function; None = all alike, the oldest goes first.
        """
        self.waiting[function] = size_bytes
        self.make_host_room(0.0, values)

    def make_host_room(self, size_bytes: float, values: Mapping[int, float] | None = None) -> None:
        """Drop containers without a process until one of this size fits."""
        room = self.host_bytes * (1 + SLACK) - self.live_host_bytes - size_bytes
        while self.waiting and math.fsum(self.waiting.values()) > room:
            least = min(self.waiting, key=lambda f: 0.0 if values is None else values[f])
            del self.waiting[least]
