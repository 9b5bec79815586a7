"""The model library: names to architectures, and any user's config.json.

The library is `catalogs/models/`: one config.json-shaped file of dimensions per model, and index.csv with names,
sources and parameter counts (origin in SOURCES.md there).
"""

from __future__ import annotations

import csv
import difflib
import functools
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from planner.catalog.architectures.reader import architecture_from_config, family_of
from planner.domain.precision import kv_cache_bytes
from planner.errors import DataMissingError, InputError, Where
from planner.files.bundled import bundled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from planner.domain.model import ModelArchitecture

__all__ = ["ModelRecord", "ModelSummary", "architecture_from_config", "list_models", "load_model", "load_record"]

CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 5_000_000
"""Published configs have a few thousand bytes; those that list every quantised module, a few hundred thousand."""
WAY_OUT = "See `gpuplan models list`, or give the path of the model's config.json (or of the folder that holds it)."
SUFFIX_PRECISIONS: Mapping[str, str] = MappingProxyType(
    {"-FP8": "fp8", "-FP4": "nvfp4", "-NVFP4": "nvfp4", "-GPTQ": "int4", "-AWQ": "int4"}
)
"""Published format of checkpoints that share a library model's shape, by the end of their name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """One line of `gpuplan models list`."""

    name: str
    family: str
    """The config's model_type, of multimodal models the language part's."""
    total_params: float
    active_params: float
    n_layers: int
    max_context_tokens: int
    kv_bytes_per_token: float
    """At bf16, while the context is shorter than every attention window."""
    native_precision: str
    aliases: tuple[str, ...]
    confidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A model's architecture and what the library says about it."""

    architecture: ModelArchitecture
    family: str
    aliases: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    """Hugging Face ids of other checkpoints with the same shape."""
    notes: str = ""

    @property
    def summary(self) -> ModelSummary:
        """The record as one line of a list."""
        model = self.architecture
        return ModelSummary(
            name=model.name,
            family=self.family,
            total_params=model.total_params,
            active_params=model.active_params,
            n_layers=model.n_layers,
            max_context_tokens=model.max_context_tokens,
            kv_bytes_per_token=kv_cache_bytes(model, 1),
            native_precision=model.native_precision,
            aliases=self.aliases,
            confidence=model.confidence,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A line of index.csv."""

    name: str
    file: str
    aliases: tuple[str, ...]
    variants: tuple[tuple[str, str], ...]
    """(Hugging Face id, how it differs)."""
    source: str
    confidence: str
    notes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """What a name stands for: a library entry, and how the named checkpoint differs from it."""

    entry: _Entry
    difference: str = ""
    precision: str = ""


@dataclass(frozen=True, slots=True)
class _Library:
    entries: tuple[_Entry, ...]
    names: Mapping[str, _Match]
    """Case-folded name -> what it stands for."""
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Case-folded name without organisation -> the names it could stand for."""


def load_model(name_or_path: str, *, base_dir: Path | None = None) -> ModelArchitecture:
    """Return the architecture of a library model or of a user's config.json.

    Parameters
    ----------
    name_or_path : a Hugging Face id, an alias, an id without its organisation (in any case); or the path of a
        config.json, or of a folder with one.
    base_dir : folder that relative paths start from; None = the current one.

    Raises
    ------
    DataMissingError: if neither the library nor the disk has it; names close matches.
    InputError: if a config.json is broken, naming the field; if a name without organisation is ambiguous.

    Examples
    --------
    >>> load_model("llama-3.1-8b").name
    'meta-llama/Llama-3.1-8B'
    """
    return load_record(name_or_path, base_dir=base_dir).architecture


def load_record(name_or_path: str, *, base_dir: Path | None = None) -> ModelRecord:
    """Return the architecture as `load_model`, with the model's family, aliases and notes."""
    text = name_or_path.strip()
    path = (base_dir or Path()) / os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser fails on unknown users
    if text.startswith((".", "/", "~")) or text.lower().endswith(".json"):
        return _user_record(text, path)
    library = _library()
    key = text.casefold()
    if match := library.names.get(key):
        return _library_record(match)
    if candidates := library.ambiguous.get(key):
        raise InputError(f"{text!r} could be {' or '.join(candidates)}.", hint="Give the full name.")
    if text and os.path.exists(path):  # noqa: PTH110 - Path.exists fails on impossible names
        return _user_record(text, path)
    raise DataMissingError(f"There is no model {text!r} in the library.{_did_you_mean(key, library)}", hint=WAY_OUT)


def list_models() -> tuple[ModelSummary, ...]:
    """Return all library models, ordered by name."""
    records = (_library_record(_Match(entry=entry)) for entry in _library().entries)
    return tuple(sorted((record.summary for record in records), key=lambda summary: summary.name.casefold()))


@functools.cache
def _library() -> _Library:
    """Return the index; it ships with gpuplan and does not change while a process runs."""
    index = bundled("catalogs", "models", "index.csv").read_text(encoding="utf-8")
    entries = tuple(_entry(row) for row in csv.DictReader(index.splitlines()))
    names: dict[str, _Match] = {}
    for entry in entries:
        names[entry.name.casefold()] = _Match(entry=entry)
    for entry in entries:
        for alias in entry.aliases:
            names.setdefault(alias.casefold(), _Match(entry=entry))
    variants = {name: match for entry in entries for name, match in _variants(entry)}
    for name, match in variants.items():
        names.setdefault(name.casefold(), match)
    ambiguous: dict[str, tuple[str, ...]] = {}
    for full_names in ([entry.name for entry in entries], variants):
        _add_short_names(full_names, names, ambiguous)
    return _Library(entries, names, ambiguous)


def _entry(row: Mapping[str, str]) -> _Entry:
    variants = (re.fullmatch(r"(\S+)(?: \((.*)\))?", text) for text in row["hf_variants"].split("|"))
    return _Entry(
        name=row["name"],
        file=row["file"],
        aliases=tuple(alias for alias in row["aliases"].split("|") if alias),
        variants=tuple((match[1], match[2] or "") for match in variants if match),
        source=row["source"],
        confidence=row["confidence"],
        notes=row["notes"],
    )


def _variants(entry: _Entry) -> Iterable[tuple[str, _Match]]:
    for name, difference in entry.variants:
        precision = next((found for end, found in SUFFIX_PRECISIONS.items() if name.endswith(end)), "")
        yield name, _Match(entry=entry, difference=difference, precision=precision)


def _add_short_names(
    full_names: Iterable[str], names: dict[str, _Match], ambiguous: dict[str, tuple[str, ...]]
) -> None:
    """Add the names without their organisation; one that several models share is set aside as ambiguous."""
    found: dict[str, list[str]] = {}
    for name in full_names:
        found.setdefault(name.rpartition("/")[2].casefold(), []).append(name)
    for short, owners in found.items():
        if short in names or short in ambiguous:
            continue
        matches = [names[owner.casefold()] for owner in owners]
        if all(match == matches[0] for match in matches):
            names[short] = matches[0]
        else:
            ambiguous[short] = tuple(sorted(owners))


@functools.lru_cache(maxsize=512)
def _library_record(match: _Match) -> ModelRecord:
    entry = match.entry
    config = _changed(json.loads(bundled("catalogs", "models", entry.file).read_text(encoding="utf-8")), match)
    model = architecture_from_config(config, name=entry.name, source=entry.source, confidence=entry.confidence)
    if match.precision:
        model = replace(model, native_precision=match.precision, native_mixer_bytes=None, native_mlp_bytes=None)
    return ModelRecord(
        architecture=model,
        family=family_of(config),
        aliases=entry.aliases,
        variants=tuple(f"{name} ({difference})" if difference else name for name, difference in entry.variants),
        notes=entry.notes,
    )


def _changed(config: dict[str, Any], match: _Match) -> dict[str, Any]:
    """Return a library config with the named checkpoint's difference from it."""
    if match.difference.isdigit():
        return config | {"max_position_embeddings": int(match.difference)}
    if match.difference == "no sliding window":
        return config | {"sliding_window": None}
    if match.difference == "unquantised":
        return {key: value for key, value in config.items() if key != "quantization_config"}
    return config


def _did_you_mean(key: str, library: _Library) -> str:
    """Return the closest names as a sentence, "" if there are none."""
    by_short = {name.rpartition("/")[2]: match.entry.name for name, match in library.names.items()}
    close = difflib.get_close_matches(key.rpartition("/")[2], by_short, n=5, cutoff=0.6)
    names = list(dict.fromkeys(by_short[short] for short in close))[:3]
    return f" Did you mean {' or '.join(names)}?" if names else ""


def _user_record(text: str, path: Path) -> ModelRecord:
    """Return the model in a user's config.json, or in a folder that holds one."""
    file = path / CONFIG_NAME if os.path.isdir(path) else path  # noqa: PTH112 - Path.is_dir fails on impossible names
    where = Where(path=str(file))
    content = _content(file, where)
    try:
        config = json.loads(content)
    except json.JSONDecodeError as error:
        place = Where(path=str(file), line=error.lineno, column=error.colno)
        raise InputError(
            f"This is not JSON: {error.msg}.", hint="Download the config.json again.", where=place
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError("This is not a config.json.", hint="Download it again.", where=where) from error
    if not isinstance(config, dict):
        raise InputError("A config.json is one JSON object.", hint="Download it again.", where=where)
    model = architecture_from_config(config, name=text, source=str(file), confidence="user")
    return ModelRecord(architecture=model, family=family_of(config))


def _content(file: Path, where: Where) -> bytes:
    """Return the bytes of a user's file, unless it is too large to be a config.json."""
    try:
        size = file.stat().st_size
        if size <= MAX_CONFIG_BYTES:
            return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = f"A model is its name or its config.json. {WAY_OUT}"
        raise InputError("There is no such file.", hint=hint, where=where) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"The file cannot be read: {reason}.", where=where) from error
    raise InputError(f"The file has {size:,} bytes; a config.json has a few thousand.", where=where)
