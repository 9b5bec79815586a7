"""How many adapters of one backbone fit on a GPU, by what they share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.domain.adapters import Isolation

SLACK = 1e-9
"""Relative; sizes that fill a GPU exactly do fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMemory:
    """What one adapter and its backbone take of a GPU, in bytes."""

    backbone_bytes: float
    """The model's weights."""
    adapter_bytes: float
    context_bytes: float
    """CUDA context and workspace of one process."""
    kv_bytes: float = 0.0
    """KV cache of one process: of each adapter where each has a process, of all adapters where they share one."""

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        for size in (self.backbone_bytes, self.adapter_bytes, self.context_bytes, self.kv_bytes):
            if not 0 <= size < math.inf:
                msg = f"sizes in bytes must be at least 0 and finite, not {size!r}"
                raise ValueError(msg)

    def fixed_bytes(self, isolation: Isolation) -> float:
        """Return what is there once on a GPU, however many adapters it has."""
        match isolation:
            case Isolation.DEDICATED:
                return 0.0
            case Isolation.SHARED_BACKBONE:
                return self.backbone_bytes
            case Isolation.SHARED_PROCESS:
                return self.backbone_bytes + self.context_bytes + self.kv_bytes

    def bytes_per_adapter(self, isolation: Isolation) -> float:
        """Return what each adapter adds."""
        match isolation:
            case Isolation.DEDICATED:
                return self.backbone_bytes + self.adapter_bytes + self.context_bytes + self.kv_bytes
            case Isolation.SHARED_BACKBONE:
                return self.adapter_bytes + self.context_bytes + self.kv_bytes
            case Isolation.SHARED_PROCESS:
                return self.adapter_bytes


def most_adapters(
    memory: AdapterMemory, isolation: Isolation, *, usable_bytes: float, reserved_fraction: float = 0.0
) -> float:
    """Return how many adapters of one backbone a GPU holds, a whole number; inf if one more takes nothing.

    With M = usable_bytes x (1 - reserved_fraction), the weights W, the adapter m, the context c and the KV cache v:

        dedicated          n (W + m + c + v) <= M
        shared-backbone    W + n (m + c + v) <= M
        shared-process     W + c + v + n m   <= M

    The second row is ServerlessLoRA's (arXiv 2505.14468, section 4): weights mapped into each function's process.

    Parameters
    ----------
    usable_bytes : memory of the GPU that allocations can have.
    reserved_fraction : part of it that is kept free, in [0, 1).

    Examples
    --------
    >>> seven_billion = AdapterMemory(backbone_bytes=14e9, adapter_bytes=0.1e9, context_bytes=0.5e9, kv_bytes=4e9)
    >>> most_adapters(seven_billion, Isolation.DEDICATED, usable_bytes=44.4e9)
    2.0
    >>> most_adapters(seven_billion, Isolation.SHARED_BACKBONE, usable_bytes=44.4e9)
    6.0
    """
    if not 0 <= reserved_fraction < 1:
        msg = f"reserved_fraction must be in [0, 1), not {reserved_fraction!r}"
        raise ValueError(msg)
    left = usable_bytes * (1 - reserved_fraction) - memory.fixed_bytes(isolation)
    each = memory.bytes_per_adapter(isolation)
    if left < -SLACK * usable_bytes:
        return 0.0
    return math.inf if each == 0 else float(math.floor(max(left, 0.0) / each * (1 + SLACK)))
