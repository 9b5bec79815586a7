"""What a replay of functions is given: the machines, the functions, and the rules by which they are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from planner.domain.adapters import Isolation
from planner.domain.distributions import LogNormal
from planner.profilers.startup import Quantiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from planner.optimize.preload import Tier
    from planner.profilers.adapter_batching import BatchLatency
    from planner.simulate.steps import Floats

PARTS = ("provision", "container", "libraries", "backbone", "adapter", "kernels")
"""The parts of a cold start, in the order in which they happen."""
NOTHING = Quantiles(0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTimes:
    """How long each part of a start takes; `draw` makes a time with its tail from the two quantiles."""

    provision_s: Quantiles = NOTHING
    """Until a machine that was not there runs."""
    container_s: Quantiles
    libraries_s: Quantiles
    backbone_s: Mapping[Tier, Quantiles]
    """From the disk and from host memory into the GPU: size / rate of the way."""
    backbone_shared_s: Quantiles
    """Mapped from the copy that is on the GPU."""
    adapter_s: Mapping[Tier, Quantiles]
    kernels_s: Quantiles
    """Compiled, graphs captured, or loaded from a cache."""


def draw(time: Quantiles, rng: np.random.Generator) -> float:
    """Return a random time: log-normal with this median and 99th percentile, or the median where they are the same."""
    if time.p99 <= time.p50 or time.p50 <= 0:
        return time.p50
    return float(LogNormal.from_quantiles(p50_s=time.p50, p99_s=time.p99).sample(1, rng)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One model on one kind of machine, each with one GPU."""

    gpu_bytes: float
    """GPU memory that allocations can have."""
    host_bytes: float
    """Host memory for containers that wait without a GPU."""
    backbone_bytes: float
    context_bytes: float
    """CUDA context and workspace of one process."""
    kv_bytes: float
    """KV cache of a process that serves one function."""
    container_bytes: float
    """A container with its libraries, in host memory."""
    prefill: BatchLatency
    """From a batch's start to its first tokens: T(b)."""
    decode: BatchLatency | None
    """From there to the last tokens; None = first tokens are all that is asked for."""
    decode_steps: float | None = None
    """In which the mean answer's tokens after the first come; None = not known: prompts and decoding take turns."""
    start: StartTimes
    slot_bytes: float = 0.0
    """Of one adapter's slot in an engine that serves many, if that is more than the largest adapter takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Functions:
    """One function for each adapter; arrays of shape (functions,)."""

    adapter_bytes: Floats
    rate_rps: Floats
    """As far as it is known before the replay: it decides what is evicted first."""
    ttft_bound_s: Floats
    tpot_bound_s: Floats
    """inf = none."""

    def __len__(self) -> int:
        return len(self.adapter_bytes)


class Batching(StrEnum):
    """When a free process begins."""

    AT_ONCE = "at-once"
    """With what is there."""
    FILL_OR_EXPIRE = "fill-or-expire"
    """When the batch is full or its oldest request may wait no longer: `profilers.adapter_batching`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How functions with a process each are kept, started and given up."""

    isolation: Isolation
    """dedicated or shared-backbone; `pool` replays shared-process."""
    keep_alive_s: Floats
    """How long each function's idle process stays, shape (functions,); inf = until its memory is needed."""
    n_always_on: int = 0
    """Machines that are paid from beginning to end; with a shared backbone it is loaded on them."""
    most_machines: int
    machine_keep_alive_s: float = math.inf
    """How long a machine on which nothing runs or starts is kept with its idle processes; an empty one goes at once
    if this is inf."""
    most_batch: int = 1
    most_sharing: int = 1
    """Processes that run on a GPU at a time: M."""
    most_processes: int = 1_000_000
    """Processes on one machine, whatever its memory: 1 where every process is a container with a GPU of its own."""
    most_instances: int = 1_000_000
    """Processes of one function."""
    queue_per_start: float = 0.0
    """Another process starts when more than this wait for each one that starts; inf = only where there is none."""
    joins: bool = True
    """Requests join a batch that runs, while it has room; else they wait for its end, as in ServerlessLoRA's model."""
    batching: Batching = Batching.AT_ONCE
    keeps_containers: bool = False
    """A process that is given up leaves its container, libraries and adapter in host memory, while there is room."""
    n_spares: int = 0
    """Containers with their libraries that each machine has ready for any function, as far as host memory goes; one
    that is taken is replaced, which takes as long as a container and its libraries do."""
    has_host_backbone: bool = False
    """The backbone's weights are in host memory of every machine that runs."""
    rents_before_evicting: bool = True
    """Where no machine has room: another one first, or first the idle processes of least value per byte."""
    warm: tuple[tuple[int, int], ...] = ()
    """(function, machine): processes that are ready at the beginning."""
    in_host: tuple[tuple[int, int], ...] = ()
    """(function, machine): containers that are there at the beginning."""

    def __post_init__(self) -> None:
        """Refuse what cannot be replayed."""
        if self.isolation is Isolation.SHARED_PROCESS:
            msg = "functions of one shared process are replayed by planner.simulate.functions.pool"
            raise ValueError(msg)
        if not 0 <= self.n_always_on <= self.most_machines or self.most_machines < 1:
            msg = f"{self.n_always_on} of {self.most_machines} machines cannot be always on"
            raise ValueError(msg)
        if min(self.most_batch, self.most_sharing, self.most_processes, self.most_instances) < 1:
            msg = "most_batch, most_sharing, most_processes and most_instances must be >= 1"
            raise ValueError(msg)


def process_bytes(setting: Setting, adapter_bytes: float, isolation: Isolation) -> float:
    """Return what one more process takes of its GPU: `profilers.adapter_packing`, with this function's adapter."""
    own = adapter_bytes + setting.context_bytes + setting.kv_bytes
    return own + (setting.backbone_bytes if isolation is Isolation.DEDICATED else 0.0)
