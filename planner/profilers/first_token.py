"""The parts of a TTFT when a function is called that is not, or not wholly, in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from planner.domain.adapters import Isolation
from planner.profilers.serverless_figures import figures


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTimes:
    """Seconds that each artifact of a function takes to be ready where it has to be, once the one before it is."""

    container_s: float
    libraries_s: float
    backbone_s: float
    """From storage into the GPU; `backbone_load_s` works it out."""
    backbone_shared_s: float
    """Mapped from another process that has it on the same GPU."""
    adapter_s: float
    kernels_s: float
    """Compiled, or loaded from a cache."""
    inference_s: float
    """First tokens of a batch of one, everything loaded."""

    def __post_init__(self) -> None:
        """Refuse times that are none."""
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                msg = f"{field.name} must be at least 0 and finite, not {getattr(self, field.name)!r}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmth:
    """What of a function is ready when a request comes."""

    container: bool = False
    libraries: bool = False
    backbone: bool = False
    """In this function's own process."""
    adapter: bool = False
    kernels: bool = False


COLD = Warmth()
WARM = Warmth(container=True, libraries=True, backbone=True, adapter=True, kernels=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """A TTFT by its parts, in the order in which they happen."""

    queue_s: float
    container_s: float
    libraries_s: float
    backbone_s: float
    adapter_s: float
    kernels_s: float
    inference_s: float

    @property
    def load_s(self) -> float:
        """What loading adds."""
        return self.container_s + self.libraries_s + self.backbone_s + self.adapter_s + self.kernels_s

    @property
    def total_s(self) -> float:
        """The TTFT."""
        return self.queue_s + self.load_s + self.inference_s


def backbone_load_s(size_bytes: float, bytes_per_s: float) -> float:
    """Return the time in which weights come from a store: size / rate of the slowest part of the way."""
    if not (0 <= size_bytes < math.inf and 0 < bytes_per_s < math.inf):
        msg = f"size and rate must be positive and finite, not {size_bytes!r} bytes and {bytes_per_s!r} bytes/s"
        raise ValueError(msg)
    return size_bytes / bytes_per_s


def published_load_times(scope: str = "timeline", *, is_fast_store: bool = False) -> LoadTimes:
    """Return the load times of a function of Llama-2-7B that were published.

    Parameters
    ----------
    scope : "timeline" (measured, read off a figure) or "re-implementation" (estimates of other authors).
    is_fast_store : weights come as ServerlessLLM loads them, where the scope has that.

    Raises
    ------
    DataMissingError: if there is no such scope.
    """
    known = figures(scope)
    backbone_s = known["backbone_s"]
    return LoadTimes(
        container_s=known["container_s"],
        libraries_s=known["libraries_s"],
        backbone_s=known.get("backbone_fast_s", backbone_s) if is_fast_store else backbone_s,
        backbone_shared_s=known.get("backbone_shared_s", 0.0),
        adapter_s=known["adapter_s"],
        kernels_s=known["kernels_s"],
        inference_s=known["inference_s"],
    )


def first_token(
    times: LoadTimes,
    warmth: Warmth,
    *,
    isolation: Isolation = Isolation.DEDICATED,
    is_backbone_on_gpu: bool = False,
    queue_s: float = 0.0,
    n_sharing: int = 1,
) -> FirstToken:
    """Return the parts of a TTFT: what is not ready is loaded first, one after the other.

    TTFT = queue + [container + libraries] + [backbone] + [adapter] + [kernels] + M x inference, each bracket only where
    `warmth` lacks it. A dedicated function's adapter is merged into the weights that it loads, and comes with them.

    Parameters
    ----------
    isolation : shared functions map a backbone that is on the GPU already; dedicated ones load their own.
    is_backbone_on_gpu : whether another process has it there.
    queue_s : wait before anything begins.
    n_sharing : batches that share the GPU, this one included.

    Examples
    --------
    >>> times = published_load_times()
    >>> round(first_token(times, COLD).total_s, 2), round(first_token(times, WARM).total_s, 2)
    (9.96, 1.06)
    """
    can_map = isolation is not Isolation.DEDICATED and is_backbone_on_gpu
    load_s = times.backbone_shared_s if can_map else times.backbone_s
    comes_with_weights = isolation is Isolation.DEDICATED
    return FirstToken(
        queue_s=queue_s,
        container_s=0.0 if warmth.container else times.container_s,
        libraries_s=0.0 if warmth.libraries else times.libraries_s,
        backbone_s=0.0 if warmth.backbone else load_s,
        adapter_s=0.0 if warmth.adapter or comes_with_weights else times.adapter_s,
        kernels_s=0.0 if warmth.kernels else times.kernels_s,
        inference_s=n_sharing * times.inference_s,
    )
