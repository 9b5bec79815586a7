"""Which of an engine's releases are alike: profiles/engine_eras.csv, and the scopes under which parameters are kept."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache

from planner.files.bundled import bundled

UNSTATED_VERSION = "unstated"
"""Version of an engine in a published table that does not tell it; a plan's own engine is today's unless it says so."""

MLPERF_VERSION = "mlperf"
"""Version of an engine in submissions to MLPerf, which are tuned."""

NAMED_ERAS = frozenset({UNSTATED_VERSION, MLPERF_VERSION})
"""Versions without a number that are eras of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Era:
    """Releases of one engine that share parameters."""

    name: str
    first: tuple[int, ...]
    """First release that it holds for; () = whatever came before, too."""
    before: tuple[int, ...]
    """First release that is no part of it any more."""


@cache
def load_eras() -> dict[str, tuple[Era, ...]]:
    """Return the bundled table, engine family -> its eras, the oldest first; releases after them are today's."""
    text = bundled("profiles", "engine_eras.csv").read_text(encoding="utf-8")
    found: dict[str, tuple[Era, ...]] = {}
    for row in csv.DictReader(text.splitlines()):
        era = Era(name=row["era"], first=version_key(row["first"]), before=version_key(row["before"]))
        found[row["engine"]] = (*found.get(row["engine"], ()), era)
    return found


def version_key(version: str) -> tuple[int, ...]:
    """Return the first dotted number in a version as a tuple that sorts by age; () if there is none.

    Examples
    --------
    >>> version_key("~0.2 (2023)"), version_key("vLLM 0.10.0, RHEL 9.6"), version_key("nightly")
    ((0, 2), (0, 10, 0), ())
    """
    found = re.search(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def engine_era(family: str, version: str) -> str:
    """Return the scope of the era that a release belongs to; the family's own is today's.

    Of versions without a number, `NAMED_ERAS` are eras of their own, and all others ("nightly", "latest") are today's.

    Examples
    --------
    >>> engine_era("vllm", "0.5.4"), engine_era("vllm", "unstated"), engine_era("vllm", "nightly")
    ('vllm@2024', 'vllm@unstated', 'vllm')
    """
    key, name = version_key(version), version.strip().lower()
    if not key:
        return f"{family}@{name}" if name in NAMED_ERAS else family
    eras = load_eras().get(family, ())
    return next((f"{family}@{era.name}" for era in eras if era.first <= key < era.before), family)


def engine_scopes(family: str, version: str, vendor: str, architecture: str = "") -> tuple[str, ...]:
    """Return the scopes of an engine's parameters, the narrowest first: its era's, those of newer eras, the family's.

    What was never measured of an era is taken from the next newer one. Each scope comes first for GPUs of `vendor`
    alone; the era's own before that for those of `architecture`, as what a newer one makes of one architecture says
    nothing of older releases.

    Examples
    --------
    >>> engine_scopes("vllm", "0.6.3", "NVIDIA")
    ('vllm@v0/nvidia', 'vllm@v0', 'vllm/nvidia', 'vllm')
    >>> engine_scopes("vllm", "0.6.3", "NVIDIA", "Ampere")
    ('vllm@v0/ampere', 'vllm@v0/nvidia', 'vllm@v0', 'vllm/nvidia', 'vllm')
    """
    era = engine_era(family, version)
    names = tuple(dict.fromkeys((era, *newer_scopes(era))))
    own = (f"{names[0]}/{architecture.lower()}",) if architecture else ()
    return (*own, *(scope for name in names for scope in (f"{name}/{vendor.lower()}", name)))


def newer_scopes(scope: str) -> tuple[str, ...]:
    """Return where an engine's parameters are taken from that `scope` has none of: all GPUs, newer eras, the family.

    Examples
    --------
    >>> newer_scopes("vllm@2024"), newer_scopes("vllm")
    (('vllm@v0', 'vllm'), ('vllm',))
    >>> newer_scopes("vllm@2024/ampere")
    ('vllm@2024', 'vllm@v0', 'vllm')
    """
    engine, _, group = scope.partition("/")
    family, _, name = engine.partition("@")
    names = [era.name for era in load_eras().get(family, ())]
    newer = names[names.index(name) + 1 :] if name in names else []
    own = (engine,) if group else ()
    return tuple(dict.fromkeys((*own, *(f"{family}@{each}" for each in newer), family)))
