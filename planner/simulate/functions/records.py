"""What is told of every request of a function: one immutable record each, kept as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.simulate.functions.setting import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from planner.simulate.steps import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionRecord:
    """One request; times in seconds. TTFT = queue + cold parts + inference."""

    arrival_s: float
    function: int
    machine: int
    ttft_s: float
    e2e_s: float
    queue_s: float
    cold_s: Mapping[str, float]
    """Wait for each part of the start of the process that served it: `PARTS`."""
    inference_s: float
    """From the start of its batch to its first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionRecords:
    """Records in the order of arrival; arrays of shape (requests,), not to be written to."""

    arrival_s: Floats
    function: NDArray[np.int64]
    machine: NDArray[np.int64]
    ttft_s: Floats
    e2e_s: Floats
    cold_s: Floats
    """Shape (requests, parts)."""
    inference_s: Floats

    def __len__(self) -> int:
        return len(self.arrival_s)

    def __getitem__(self, index: int) -> FunctionRecord:
        return FunctionRecord(
            arrival_s=float(self.arrival_s[index]),
            function=int(self.function[index]),
            machine=int(self.machine[index]),
            ttft_s=float(self.ttft_s[index]),
            e2e_s=float(self.e2e_s[index]),
            queue_s=float(self.queue_s[index]),
            cold_s=dict(zip(PARTS, self.cold_s[index].tolist(), strict=True)),
            inference_s=float(self.inference_s[index]),
        )

    @property
    def queue_s(self) -> Floats:
        """Wait for anything but a cold start."""
        return np.asarray(self.ttft_s - self.inference_s - self.cold_s.sum(axis=1), dtype=np.float64)

    @property
    def is_cold(self) -> NDArray[np.bool_]:
        """Whether each waited for a part of a start."""
        return np.asarray(self.cold_s.sum(axis=1) > 0, dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionReplay:
    """A replay's records and what it held."""

    records: FunctionRecords
    end_s: float
    """Until when is paid."""
    gpu_s: float
    """Seconds that machines were held, from 0 to the end; each has one GPU."""
    gpu_share_s: float
    """The same weighted by the part of its memory that was taken."""
    busy_gpu_s: float
    """Seconds in which a GPU ran a batch."""
    most_machines: int
    """Held at a time."""
    holds_s: Floats
    """How long machines that are not always on were held, one for each time that one was rented."""
    container_starts_s: Floats
    """How much of each of `holds_s` went by until its container ran."""
    rented_used_s: float
    """Seconds in which a process on these started or ran, however many at once."""
    peak_bytes: Floats
    """Most that each machine's GPU memory ever held, shape (machines,)."""
    n_starts: int
    n_evictions: int
