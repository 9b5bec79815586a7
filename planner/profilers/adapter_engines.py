"""How engines are started for many adapters, which ranks they have room for, and which they compute.

All of it is data: profiles/adapter_engines.csv.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.files.bundled import bundled
from planner.profilers.efficiency import engine_family

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEngine:
    """What one engine does for adapters."""

    ranks: tuple[int, ...]
    """Largest ranks that a slot can be made for, ascending; () = any."""
    is_padded: bool
    """Every product is of the slots' rank, with zeros; else of each adapter's own."""
    flags: str
    """With {slots}, {rank} and {held} for the numbers."""


@cache
def load_adapter_engines() -> Mapping[str, AdapterEngine]:
    """Return the bundled table, by engine family."""
    text = bundled("profiles", "adapter_engines.csv").read_text(encoding="utf-8")
    return {
        row["engine"]: AdapterEngine(
            ranks=tuple(int(rank) for rank in row["ranks"].split()),
            is_padded=row["computes"] == "slot",
            flags=row["flags"],
        )
        for row in csv.DictReader(text.splitlines())
    }


def slot_rank(engine: str, rank: int) -> int:
    """Return the rank that a slot for adapters of up to `rank` is made for; the rank itself where nothing is known.

    Raises
    ------
    InputError: if the engine has no slots for so large a rank.

    Examples
    --------
    >>> slot_rank("vllm", 12), slot_rank("sglang", 12)
    (16, 12)
    """
    known = load_adapter_engines().get(engine_family(engine))
    if known is None or not known.ranks:
        return rank
    if rank > known.ranks[-1]:
        raise InputError(
            f"{engine} serves adapters of ranks up to {known.ranks[-1]}, and one has the rank {rank}.",
            hint="Merge it (merged: true), or choose another engine.",
        )
    return min(each for each in known.ranks if each >= rank)


def computed_rank(engine: str, ranks: Sequence[float], rates: Sequence[float] = ()) -> float:
    """Return the mean rank of the products that a request on `engine` is computed with, beside adapters of `ranks`.

    The rank of the slots where an engine pads to it, or is not known; else the mean of the adapters' own ranks.

    Parameters
    ----------
    rates : what is asked of each adapter, which weighs its rank; () = all alike.

    Raises
    ------
    InputError: if the engine has no slots for so large a rank.

    Examples
    --------
    >>> computed_rank("vllm", [8, 12]), computed_rank("s-lora", [8, 64], [3.0, 1.0])
    (16.0, 22.0)
    """
    known = load_adapter_engines().get(engine_family(engine))
    if known is None or known.is_padded:
        return float(slot_rank(engine, math.ceil(max(ranks))))
    weights = rates if sum(rates) > 0 else [1.0] * len(ranks)
    return sum(rank * weight for rank, weight in zip(ranks, weights, strict=True)) / sum(weights)


def adapter_flags(engine: str, *, slots: int, rank: int, held: int) -> str:
    """Return how `engine` is started with `slots` adapters on its GPUs and `held` in host memory; "" if not known.

    Examples
    --------
    >>> adapter_flags("vllm", slots=8, rank=16, held=8)
    '--enable-lora --max-loras 8 --max-lora-rank 16 --max-cpu-loras 8'
    """
    known = load_adapter_engines().get(engine_family(engine))
    return "" if known is None else known.flags.format(slots=slots, rank=rank, held=held)
