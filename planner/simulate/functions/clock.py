"""Work that shares a processor evenly: virtual clocks that run slower the more there is.

A piece of work w that begins at virtual time V ends when the clock shows V + w. Requests of one process are a batch:
n of them that wait for first tokens run at T(1) / T(n), so that each takes T(n); likewise those that decode. Where a
process has both they take turns, and so do the processes of a GPU: with M batches each takes M T(b).
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from planner.profilers.adapter_batching import BatchLatency

Item = TypeVar("Item")


class SharedClock(Generic[Item]):
    """Pieces of work in progress, by the virtual time at which each ends."""

    __slots__ = ("_count", "_ends", "at_s", "rate", "virtual_s")

    def __init__(self) -> None:
        """Begin at time 0 without work."""
        self.at_s = self.virtual_s = 0.0
        self.rate = 0.0
        """Virtual seconds per second, until it is set anew."""
        self._ends: list[tuple[float, int, Item]] = []
        self._count = 0  # items that end together come in the order in which they were added

    def __len__(self) -> int:
        return len(self._ends)

    def advance(self, now_s: float) -> None:
        """Let the clock run to `now_s`."""
        self.virtual_s += (now_s - self.at_s) * self.rate
        self.at_s = now_s

    def add(self, item: Item, work_s: float) -> None:
        """Begin a piece of work now, to where the clock has been advanced."""
        heapq.heappush(self._ends, (self.virtual_s + work_s, self._count, item))
        self._count += 1

    def next_s(self) -> float:
        """Return when the first piece ends if nothing changes; inf without work."""
        if not self._ends:
            return math.inf
        return self.at_s + max(0.0, self._ends[0][0] - self.virtual_s) / self.rate

    def left(self) -> float:
        """Return the seconds until the first piece ends; inf without work."""
        return self.next_s() - self.at_s

    def pop(self) -> Item:
        """Return the piece that ends first, and set the clock to its end: sums of steps have drifted from it."""
        end, _, item = heapq.heappop(self._ends)
        self.virtual_s = max(self.virtual_s, end)
        return item


def stretch(latency: BatchLatency | None, n: int) -> float:
    """Return how many times as long one request takes in a batch of `n` as alone; 1 without any."""
    return 1.0 if latency is None or n == 0 else latency.seconds(n) / latency.first_s


class BatchClocks:
    """The requests of one process, by number: those before their first tokens, and those that decode."""

    __slots__ = ("_decode", "_prefill", "decoding", "prefilling")

    def __init__(self, prefill: BatchLatency, decode: BatchLatency | None) -> None:
        """Begin without requests."""
        self._prefill, self._decode = prefill, decode
        self.prefilling: SharedClock[int] = SharedClock()
        self.decoding: SharedClock[int] = SharedClock()

    def __len__(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def advance(self, now_s: float) -> None:
        """Let the batch run to `now_s`."""
        self.prefilling.advance(now_s)
        self.decoding.advance(now_s)

    def add(self, request: int, prefill_factor: float = 1.0) -> None:
        """Begin a request now, to where the clocks have been advanced.

        prefill_factor : time to its first token alone, over the mean request's.
        """
        self.prefilling.add(request, self._prefill.first_s * prefill_factor)

    def share(self, n_processes: int) -> None:
        """Set how fast the batch runs while so many processes have one."""
        n_first, n_later = len(self.prefilling), len(self.decoding)
        turns = n_processes * ((n_first > 0) + (n_later > 0))
        self.prefilling.rate = 1.0 / (turns * stretch(self._prefill, n_first)) if n_first else 0.0
        self.decoding.rate = 1.0 / (turns * stretch(self._decode, n_later)) if n_later else 0.0

    def next_s(self) -> float:
        """Return when a first token, or the end of an answer, comes next if nothing changes."""
        return min(self.prefilling.next_s(), self.decoding.next_s())

    def pop(self, decode_factor: list[float]) -> tuple[int, bool, bool]:
        """Take what comes next: the request, whether it got its first token, and whether it is done.

        Call it at `next_s`, advanced to there. `decode_factor` has each answer's length over the mean.
        """
        is_first = self.prefilling.left() <= self.decoding.left()
        request = (self.prefilling if is_first else self.decoding).pop()
        goes_on = is_first and self._decode is not None and decode_factor[request] > 0
        if goes_on and self._decode is not None:
            self.decoding.add(request, self._decode.first_s * decode_factor[request])
        return request, is_first, not goes_on
