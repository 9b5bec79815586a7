"""A GPU that is paid while it is held: containers of serverless clouds, and machines that are given back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datetime import date

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingRule:
    """How a cloud counts the time of a machine that is rented for a while."""

    provider: str
    instance_prefix: str = ""
    """Of the instance types that it is the rule of; empty = of all others."""
    minimum_s: float = 0.0
    """Least that is billed for each time a machine is held."""
    step_s: float = 0.0
    """Time is rounded up to whole steps; 0 = not rounded."""
    as_of: date | None = None
    source: str = ""
    notes: str = ""

    def billed_s(self, held_s: ArrayLike) -> NDArray[np.float64]:
        """Return the seconds that are billed for machines that were held so long, shape of `held_s`."""
        return billed_s(held_s, minimum_s=self.minimum_s, step_s=self.step_s)


def billed_s(held_s: ArrayLike, *, minimum_s: float, step_s: float) -> NDArray[np.float64]:
    """Return the seconds that are billed for what was held so long, shape of `held_s`.

    Examples
    --------
    >>> billed_s([0.5, 12.0, 12.2], minimum_s=10.0, step_s=1.0).tolist()
    [10.0, 12.0, 13.0]
    """
    held = np.maximum(np.asarray(held_s, dtype=np.float64), minimum_s)
    if step_s == 0:
        return held
    steps = held / step_s
    whole = np.rint(steps)  # 0.3 s are three steps of 0.1 s, whatever their floats say
    is_whole = np.isclose(steps, whole, rtol=1e-12, atol=1e-9)
    return np.asarray(np.where(is_whole, whole, np.ceil(steps)) * step_s, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PayPerUse:
    """One kind of GPU of one serverless cloud, with how its time is counted."""

    name: str
    """provider/gpu."""
    provider: str
    gpu: str
    usd_per_gpu_s: float
    usd_per_vcpu_s: float = 0.0
    usd_per_gib_s: float = 0.0
    """Of memory."""
    vcpus: float = 0.0
    """That are billed with each GPU; 0 where they are in its price."""
    gib: float = 0.0
    """Memory that is billed with each GPU."""
    is_all_in: bool = True
    """Whether all is known that a container is billed for by the second, disks aside."""
    usd_per_request: float = 0.0
    step_s: float = 0.0
    """Time is rounded up to whole steps; 0 = not rounded."""
    minimum_s: float = 0.0
    """Least that is billed for each time a container is held."""
    bills_idle: bool = True
    """Whether a container that waits for the next request is paid."""
    bills_container_start: bool = True
    """Whether the time until a container runs is paid; what it loads from then on always is."""
    keep_alive_s: float | None = None
    """How long the cloud keeps an idle container; None = as its user says."""
    as_of: date | None = None
    source: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no price or no time."""
        sizes = (self.usd_per_vcpu_s, self.usd_per_gib_s, self.vcpus, self.gib)
        times = (self.step_s, self.minimum_s, self.keep_alive_s or 0.0)
        for value in (self.usd_per_gpu_s, self.usd_per_request, *sizes, *times):
            if not 0 <= value < math.inf:
                msg = f"prices and times must be at least 0 and finite, not {value!r}"
                raise ValueError(msg)
        if self.usd_per_gpu_s == 0 and self.usd_per_request == 0:
            msg = f"{self.name} costs nothing, neither by the second nor by the request"
            raise ValueError(msg)
        if not self.bills_idle and self.keep_alive_s is None:
            msg = f"{self.name} does not bill idle time, so it says itself how long a container idles"
            raise ValueError(msg)

    @property
    def usd_per_container_s(self) -> float:
        """What a container with one GPU costs while it is billed, with the vCPUs and the memory beside it."""
        return self.usd_per_gpu_s + self.usd_per_vcpu_s * self.vcpus + self.usd_per_gib_s * self.gib

    def billed_s(self, held_s: ArrayLike) -> NDArray[np.float64]:
        """Return the seconds that are billed for containers that were held so long, shape of `held_s`."""
        return billed_s(held_s, minimum_s=self.minimum_s, step_s=self.step_s)

    def cost_usd(
        self,
        held_s: ArrayLike,
        *,
        n_requests: int,
        used_s: float,
        gpus_per_container: int = 1,
        container_start_s: ArrayLike = 0.0,
    ) -> float:
        """Return what containers cost.

        Parameters
        ----------
        held_s : how long each was held, from the moment that it began to start, shape (containers,).
        used_s : time in which they started or served, of all together: what is billed where idle time is not, without
            rounding.
        container_start_s : how much of `held_s` went by until the container ran, shape of `held_s` or one number.
        """
        held = np.asarray(held_s, dtype=np.float64)
        free = np.broadcast_to(0.0 if self.bills_container_start else np.asarray(container_start_s), held.shape)
        seconds = float(self.billed_s(held - free).sum()) if self.bills_idle else used_s - float(free.sum())
        return self.usd_per_container_s * gpus_per_container * seconds + self.usd_per_request * n_requests
