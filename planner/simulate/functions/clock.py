"""Work that shares a processor evenly: a virtual clock that runs slower the more there is.

A piece of work w that begins at virtual time V ends when the clock shows V + w. With n pieces the clock of a GPU that
processes take turns on runs at 1 / n, so each takes n times as long: T_eff = M T(b).
"""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

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

    def pop(self) -> Item:
        """Return the piece that ends first, and set the clock to its end: sums of steps have drifted from it."""
        end, _, item = heapq.heappop(self._ends)
        self.virtual_s = max(self.virtual_s, end)
        return item
