"""How engines are started for many adapters, what their slots have room for, and which ranks they compute.

All of it is data: profiles/adapter_engines.csv.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from planner.domain.adapters import BYTES_PER_PARAMETER, adapter_params, changed_modules, copied_params, known_modules
from planner.errors import InputError
from planner.files.bundled import bundled
from planner.profilers.efficiency import engine_family

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from planner.domain.adapters import Adapter
    from planner.domain.model import ModelArchitecture


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEngine:
    """What one engine does for adapters."""

    ranks: tuple[int, ...]
    """Largest ranks that a slot can be made for, ascending; () = any."""
    is_padded: bool
    """Every product is of the slots' rank, with zeros; else of each adapter's own."""
    has_all_modules: bool
    """Slots have room in every module of the model, and those that an adapter does not change are zeros; else in the
    modules that the adapters change."""
    splits_half: bool
    """Of a slot tensor parallelism splits one matrix of each module's two, and every GPU has the other; else both."""
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
            has_all_modules=row["slot_modules"] == "model",
            splits_half=row["slot_split"] == "half",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotShape:
    """What a slot has room for."""

    rank: int
    modules: frozenset[str]
    """Each by its own name."""
    bytes_each: float
    """On a replica without tensor parallelism."""
    copied_bytes: float = 0.0
    """The part of it that tensor parallelism copies to every GPU."""

    def bytes_over(self, tensor_parallel: int) -> float:
        """Return the memory of a slot over all GPUs of a replica."""
        return self.bytes_each + (tensor_parallel - 1) * self.copied_bytes

    def fits(self, model: ModelArchitecture, adapter: Adapter) -> bool:
        """Return whether a slot has room for `adapter`, whoever it may share with."""
        return adapter.rank <= self.rank and self.modules >= changed_modules(model, adapter.target_modules)


def slot_modules(engine: str, model: ModelArchitecture, target_modules: Iterable[str]) -> frozenset[str]:
    """Return the modules that slots of `engine` have room in for adapters that change `target_modules`.

    An engine that is not known is taken to have room in all of them.

    Raises
    ------
    InputError: as `planner.domain.adapters.changed_modules`.
    """
    changed = changed_modules(model, target_modules)
    known = load_adapter_engines().get(engine_family(engine))
    return frozenset(known_modules(model)) if known is None or known.has_all_modules else changed


def slot_shape(model: ModelArchitecture, adapters: Collection[Adapter], *, engine: str | None) -> SlotShape:
    """Return what a slot is like that any of the adapters fits.

    Parameters
    ----------
    engine : that has the slots; None = a slot is a process for one adapter, with nothing set aside for others.

    Raises
    ------
    InputError: if the model has not the modules that an adapter changes, or the engine no slots for its rank.
    """
    rank = max(adapter.rank for adapter in adapters)
    changed = {module for adapter in adapters for module in adapter.target_modules}
    modules, copied = changed_modules(model, changed), 0.0
    if engine is not None:
        rank, modules = slot_rank(engine, rank), slot_modules(engine, model, changed)
        known = load_adapter_engines().get(engine_family(engine))
        if known is None or known.splits_half:
            copied = BYTES_PER_PARAMETER * copied_params(model, rank=rank, modules=modules)
    size = BYTES_PER_PARAMETER * adapter_params(model, rank=rank, target_modules=modules)
    return SlotShape(rank=rank, modules=modules, bytes_each=size, copied_bytes=copied)


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


def flag_numbers(engine: str, flags: str) -> dict[str, int] | None:
    """Return the slots, rank and held adapters that `flags` start `engine` with, by these names; {} without any.

    None where that is not how the engine is started: a flag is missing, twice, not one of its own, or has no number.

    Examples
    --------
    >>> flag_numbers("vllm", "--enable-lora --max-loras 8 --max-lora-rank 16 --max-cpu-loras 9")
    {'slots': 8, 'rank': 16, 'held': 9}
    >>> flag_numbers("s-lora", "")
    {}
    """
    known = load_adapter_engines().get(engine_family(engine))
    names, values = _flag_values(known.flags if known else ""), _flag_values(flags)
    if names is None or values is None or names.keys() != values.keys():
        return None
    if any(value.isdecimal() != bool(names[flag]) for flag, value in values.items()):
        return None
    return {name.strip("{}"): int(values[flag]) for flag, name in names.items() if name}


def _flag_values(flags: str) -> dict[str, str] | None:
    """Return what stands behind each flag, "" where nothing does; None where that is not all, or a flag is twice."""
    first, *parts = f" {flags}".split(" --")
    pairs = [part.strip().partition(" ") for part in parts]
    found = {flag: value for flag, _, value in pairs}
    return None if first.strip() or len(found) < len(parts) else found
