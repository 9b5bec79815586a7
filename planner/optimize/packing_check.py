"""Part of the independent check of a plan: how many instances its replicas fill, by really placing them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from planner.optimize.arrays import chains

if TYPE_CHECKING:
    from collections.abc import Iterable


def instances_needed(sizes: list[int], gpus_per_instance: int) -> int:
    """Return the instances that replicas of these sizes need, together or each chain of dividing sizes by itself."""
    apart = sum(pack(part, gpus_per_instance) for part in _by_chain(sizes))
    return min(pack(sizes, gpus_per_instance), apart)


def _by_chain(sizes: list[int]) -> Iterable[list[int]]:
    """Yield the replicas of each chain of dividing sizes: instances of their own, where sizes do not divide."""
    return ([size for size in sizes if size in chain] for chain in chains(sizes))


def pack(sizes: list[int], gpus_per_instance: int) -> int:
    """Return the instances that replicas of these sizes fill, placed largest first wherever they fit.

    Exact where each size divides the next larger one; an upper bound otherwise.

    Examples
    --------
    >>> pack([4, 2, 2, 1], 8), pack([5, 5, 3, 3], 8), pack([3, 3], 4)
    (2, 2, 2)
    """
    rooms: Counter[int] = Counter()  # free GPUs -> instances with so many; equal ones are placed together
    for size, count in sorted(Counter(sizes).items(), reverse=True):
        unplaced = count
        for room in sorted(room for room in rooms if room >= size):
            unplaced = _fill(rooms, room, size=size, unplaced=unplaced, n_instances=rooms[room])
        per_instance = gpus_per_instance // size
        n_new = -(-unplaced // per_instance)
        rooms[gpus_per_instance] += n_new
        _fill(rooms, gpus_per_instance, size=size, unplaced=unplaced, n_instances=n_new)
    return rooms.total()


def _fill(rooms: Counter[int], room: int, *, size: int, unplaced: int, n_instances: int) -> int:
    """Place replicas of `size` GPUs into `n_instances` instances with `room` free GPUs; return how many are left."""
    per_instance = room // size
    full = min(n_instances, unplaced // per_instance)
    rooms[room] -= full
    rooms[room - per_instance * size] += full
    unplaced -= full * per_instance
    if unplaced > 0 and full < n_instances:
        rooms[room] -= 1
        rooms[room - unplaced * size] += 1
        unplaced = 0
    return unplaced
