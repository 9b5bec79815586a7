"""Many LoRA adapters on one backbone: what they take of a replica's memory, and what reading them adds to its steps.

Engines that share the backbone (S-LoRA, arXiv 2311.03285; vLLM since 0.3) keep one copy of its weights, hold the
adapters of the running batch beside the KV cache, and read each of them once per step. An engine that packs a whole
merged copy per adapter reads, and stores, as many backbones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation, ReplicaBytes, adapter_params
from planner.domain.precision import UNQUANTIZED_BYTES, weight_bytes
from planner.profilers.roofline import kv_bytes_per_gpu, replica_memory

if TYPE_CHECKING:
    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.roofline import Array

ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
"""Modules that adapters change where nobody says which."""
DEFAULT_RANK = 16.0
"""Rank of adapters whose rank is not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """The adapters of one replica's requests."""

    count: float
    rank: float
    zipf_alpha: float
    """Popularity of the k-th adapter is proportional to k^-alpha; 0 = all alike."""
    is_shared: bool
    """One backbone for all of them; otherwise a merged copy of it for each."""
    modules: frozenset[str] = ATTENTION
    """That are stored and read for each of them; those that it does not change are zeros."""


def distinct(adapters: Adapters, batch: float) -> float:
    """Return the expected number of different adapters in a batch: sum over k of 1 - (1 - p_k)^batch.

    Examples
    --------
    >>> round(distinct(Adapters(count=2, rank=8, zipf_alpha=0, is_shared=True), 2), 3)
    1.5
    """
    ranks = np.arange(1, max(1, round(adapters.count)) + 1, dtype=np.float64)
    popularity = ranks**-adapters.zipf_alpha
    popularity /= popularity.sum()
    return float((1.0 - (1.0 - popularity) ** max(batch, 1.0)).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLoad:
    """What adapters take of every GPU of a replica."""

    memory_bytes: float
    """Beside the KV cache."""
    read_bytes: float
    """More per step than without adapters."""


def adapter_load(model: ModelArchitecture, config: EngineConfig, adapters: Adapters, batch: float) -> AdapterLoad:
    """Return what the adapters take while `batch` sequences run.

    Raises
    ------
    InputError: if the model has not the adapters' modules, or their shapes are not known.
    """
    n_gpus = config.gpus_per_replica
    used = distinct(adapters, batch)
    if adapters.is_shared:
        size = adapter_params(model, rank=adapters.rank, target_modules=adapters.modules) * UNQUANTIZED_BYTES / n_gpus
        return AdapterLoad(memory_bytes=used * size, read_bytes=used * size)
    copy = weight_bytes(model, config.precision) / n_gpus
    return AdapterLoad(memory_bytes=(adapters.count - 1.0) * copy, read_bytes=(used - 1.0) * copy)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRoom:
    """Room for adapters on one replica, whoever they are."""

    count: int
    bytes_each: float
    """Over all GPUs of the replica."""
    isolation: Isolation
    """`SHARED_PROCESS` or `SHARED_BACKBONE`."""
    context_bytes: float = 0.0
    """CUDA context and workspace of one process, on every GPU."""

    def taken_bytes(self, n_gpus: int, *, room_bytes: float, activation_bytes: float) -> float:
        """Return what one engine's KV cache loses on every GPU of its replica.

        One engine loses the slots. Of processes on one copy of the weights each has its part of what is left beside
        everybody's adapters, and the contexts and activations of all but the first, which `room_bytes` has counted.
        """
        size = self.bytes_each / n_gpus
        if self.isolation is Isolation.SHARED_PROCESS:
            return self.count * size
        left = room_bytes - self.count * size - (self.count - 1) * (self.context_bytes + activation_bytes)
        return room_bytes - left / self.count

    def read_bytes(self, n_gpus: int, batch: float) -> float:
        """Return what a step of `batch` sequences reads of adapters on every GPU, those of one engine being alike.

        Alike is the dearest case: the more uneven their rates, the fewer different ones are in a batch.
        """
        if self.isolation is Isolation.SHARED_BACKBONE:
            return self.bytes_each / n_gpus
        used = self.count * (1.0 - (1.0 - 1.0 / self.count) ** max(batch, 1.0))
        return float(used * self.bytes_each / n_gpus)


def replica_bytes(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    params: EstimatorParams,
    *,
    tokens: Array,
    under_way: Array,
    context_bytes: float,
) -> ReplicaBytes:
    """Return what a replica holds beside its adapters while the requests of any one size come at their largest rate.

    Parameters
    ----------
    tokens : shape (sizes,), of a request when it is done.
    under_way : shape (sizes,), requests that one process has at once at the largest rate; 0 = it serves none.
    context_bytes : of one process, on every GPU.
    """
    memory, n_gpus = replica_memory(model, gpu, config, params), config.gpus_per_replica
    caches = kv_bytes_per_gpu(model, config, np.maximum(tokens, 1.0), is_read=False)
    requests = np.where(under_way > 0, np.maximum(under_way, 1.0), 0.0)
    return ReplicaBytes(
        usable=n_gpus * memory.usable_bytes,
        weights=n_gpus * memory.weight_bytes,
        activations=n_gpus * memory.activation_bytes,
        context=n_gpus * context_bytes,
        kv=n_gpus * float(np.max(requests * caches, initial=0.0)),
    )
