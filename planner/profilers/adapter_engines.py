"""How engines are started for many adapters, and which ranks they have room for: profiles/adapter_engines.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.files.bundled import bundled
from planner.profilers.efficiency import engine_family

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEngine:
    """What one engine does for adapters."""

    ranks: tuple[int, ...]
    """Largest ranks that a slot can be made for, ascending; () = any."""
    flags: str
    """With {slots}, {rank} and {held} for the numbers."""


@cache
def load_adapter_engines() -> Mapping[str, AdapterEngine]:
    """Return the bundled table, by engine family."""
    text = bundled("profiles", "adapter_engines.csv").read_text(encoding="utf-8")
    return {
        row["engine"]: AdapterEngine(ranks=tuple(int(rank) for rank in row["ranks"].split()), flags=row["flags"])
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


def adapter_flags(engine: str, *, slots: int, rank: int, held: int) -> str:
    """Return how `engine` is started with `slots` adapters on its GPUs and `held` in host memory; "" if not known.

    Examples
    --------
    >>> adapter_flags("vllm", slots=8, rank=16, held=8)
    '--enable-lora --max-loras 8 --max-lora-rank 16 --max-cpu-loras 8'
    """
    known = load_adapter_engines().get(engine_family(engine))
    return "" if known is None else known.flags.format(slots=slots, rank=rank, held=held)
