"""Prefill apart from decode: which part of a request an option serves, and what passes between the two parts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Role(StrEnum):
    """What part of a request a replica serves."""

    BOTH = "both"
    PREFILL = "prefill"
    """Prompts: it fills the KV cache and hands it over."""
    DECODE = "decode"
    """Answers: it generates tokens from a KV cache that was handed to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What a prefill option hands over, or a decode option takes over."""

    kv_bytes: NDArray[np.float64]
    """KV cache of one request of each bucket, shape (buckets of the service,)."""
    bytes_per_s: float
    """Network rate of ONE replica; infinite = no limit."""
    group: str = ""
    """Only options of one service, provider, region and group fit each other: the same weights and KV format."""
    engine_flags: str = ""
    """How the engine is started in this role."""
