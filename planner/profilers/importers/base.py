"""What an importer is, and what it says about a file: runs in canonical units, and what of the file it leaves out.

An importer only translates. What a file does not say (`Run` fields that are None or "") is filled in from the
user's options by `planner.profilers.importers.settle`, which is also where every run is checked.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Protocol

from planner.errors import UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from planner.errors import Where
    from planner.profilers.importers.content import Content, Node

MS = 1e-3
"""Seconds per millisecond."""

SUMMARY_KEYS: Mapping[str, str] = {"mean": "mean", "median": "median", "p90": "p90", "p95": "p95", "p99": "p99"}
"""Statistic of a profile -> the key under which most tools write it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """What was measured; None or "" = not stated."""

    model: str = ""
    gpu: str = ""
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    expert_parallel: int | None = None
    engine: str = ""
    engine_version: str = ""
    precision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the user says of the measurements."""

    replica: Replica = field(default_factory=Replica)
    load_kind: str = ""
    load: float | None = None
    input_tokens: tuple[float, ...] = ()
    output_tokens: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One operating point as a file states it, in s, tokens and req/s of the whole replica."""

    where: Where
    label: str = ""
    """Which part of the file it is, e.g. "run 2"; "" = all of it."""
    tool: str
    tool_version: str = ""
    replica: Replica = field(default_factory=Replica)
    input_tokens: float | None = None
    output_tokens: float | None = None
    length_dist: str = ""
    load_kind: str = ""
    load: float | None = None
    rate_rps: float | None = None
    output_tokens_per_s: float | None = None
    ttft_s: Mapping[str, float] = field(default_factory=dict)
    tpot_s: Mapping[str, float] = field(default_factory=dict)
    e2e_s: Mapping[str, float] = field(default_factory=dict)
    slo: str = ""
    as_of: date | None = None
    n_requests: float | None = None
    """Requests that were sent and should have been answered."""
    n_failed: float = 0.0
    is_estimate: bool = False
    """The tool computed the figures instead of measuring them."""
    published_as: str = ""
    """The source's name of the model where `replica.model` is another spelling of it."""
    licence: str = ""
    source: str = ""
    """What published the figures, where that is another than `tool`."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What an importer found in a file."""

    runs: tuple[Run, ...]
    left_out: tuple[str, ...] = ()
    """What it does not take, each with the reason."""
    is_table: bool = False
    """The file lists many replicas: options pick out of them instead of contradicting them."""


class Importer(Protocol):
    """Reads the files of one tool."""

    name: str
    """What `--format` takes."""
    title: str
    """For people, with the versions that are read."""

    def matches(self, content: Content) -> bool:
        """Return whether the file is one of this tool's, of whatever version."""

    def read(self, content: Content, given: Given) -> Reading:
        """Return what the file says.

        Raises
        ------
        UnsupportedFormatError: if the version is not one that is read; names those.
        InputError: if a value is not what its key holds, or the whole file is no steady measurement.
        """


def all_documents(content: Content, *keys: str) -> bool:
    """Return whether the file is JSON or YAML and each of its documents has all of `keys`."""
    return bool(content.documents) and all(key in node.data for node in content.documents for key in keys)


def any_document(content: Content, *keys: str) -> bool:
    """Return whether one document of the file has all of `keys`."""
    return any(all(key in node.data for key in keys) for node in content.documents)


def statistics_s(node: Node, *, scale: float, keys: Mapping[str, str] = SUMMARY_KEYS) -> dict[str, float]:
    """Return the statistics of a profile that `node` has, in seconds, zeros (not measured) left out.

    Parameters
    ----------
    scale : seconds per unit of the file.
    keys : statistic -> key in `node`.
    """
    found = {statistic: node.number(key) for statistic, key in keys.items()}
    return {statistic: value * scale for statistic, value in found.items() if value}


def sample_statistics(values: Iterable[float]) -> dict[str, float]:
    """Return the statistics of a profile of single requests' values; percentiles by linear interpolation."""
    import numpy as np  # noqa: PLC0415 - most files bring their statistics

    sample = np.asarray(list(values), dtype=np.float64)
    if not sample.size:
        return {}
    found = {"mean": float(sample.mean()), "median": float(np.median(sample))}
    return found | {f"p{level}": float(np.percentile(sample, level)) for level in (90, 95, 99)}


_NUMBER_FORMATS = {
    "bfloat16": "bf16",
    "bf16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp16": "fp16",
    "float32": "fp32",
    "fp32": "fp32",
    "fp8": "fp8",
    "w8a8_fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "int8": "int8",
    "w8a8_int8": "int8",
    "nvfp4": "nvfp4",
    "modelopt_fp4": "nvfp4",
    "mxfp4": "mxfp4",
    "awq": "int4",
    "gptq": "int4",
    "awq_marlin": "int4",
    "gptq_marlin": "int4",
}
"""What engines call a number format of weights -> the name here. "auto" stands for whatever the checkpoint has."""


def precision_of(quantization: str, dtype: str) -> str:
    """Return the precision of weights that an engine's settings mean; "" if they leave it open.

    Examples
    --------
    >>> precision_of("", "bfloat16"), precision_of("FP8", "bfloat16"), precision_of("", "auto")
    ('bf16', 'fp8', '')
    """
    if quantization and quantization.lower() not in {"none", "null", "no_quant"}:
        return _NUMBER_FORMATS.get(quantization.lower(), "")
    return _NUMBER_FORMATS.get(dtype.lower().removeprefix("torch."), "")


_METADATA_KEYS: Mapping[str, tuple[str, ...]] = {
    "model": ("model",),
    "gpu": ("gpu", "gpu_type", "gpu_name", "accelerator"),
    "tensor_parallel": ("tp", "tp_size", "tensor_parallel", "tensor_parallel_size"),
    "pipeline_parallel": ("pp", "pp_size", "pipeline_parallel", "pipeline_parallel_size"),
    "expert_parallel": ("ep", "ep_size", "expert_parallel_size"),
    "engine": ("engine",),
    "engine_version": ("engine_version", "vllm_version"),
    "precision": ("precision",),
}
"""Field of `Replica` -> keys that users give it under in their benchmark's labels, dashes read as underscores."""


def labelled_replica(node: Node) -> Replica:
    """Return what a user wrote about the replica among the labels of a benchmark (`--metadata gpu=H100 tp=2`)."""
    by_key = {key.strip().lower().lstrip("-").replace("-", "_"): key for key in node.data}
    found: dict[str, str | int | None] = {}
    for name, keys in _METADATA_KEYS.items():
        key = next((by_key[key] for key in keys if key in by_key), None)
        if key is not None:
            is_count = name.endswith("_parallel")
            found[name] = node.count(key) if is_count else node.text(key)
    return Replica(**found)  # type: ignore[arg-type]


def merged(first: Replica, second: Replica) -> Replica:
    """Return `first`, what it leaves open taken from `second`."""
    names = Replica.__dataclass_fields__
    return Replica(**{name: getattr(first, name) or getattr(second, name) for name in names})


def day_of_epoch(seconds: float | None) -> date | None:
    """Return the day (UTC) of a Unix time; None if it is not given or no time of our age."""
    if not seconds or not math.isfinite(seconds) or not 0 < seconds < 4e9:  # until 2096
        return None
    return datetime.fromtimestamp(seconds, tz=UTC).date()


def day_of_text(text: str) -> date | None:
    """Return the day that a time stamp begins with (2026-11-21..., 20261121-...); None if it begins with none."""
    match = re.match(r"(\d{4})-?(\d{2})-?(\d{2})", text)
    try:
        return date(int(match[1]), int(match[2]), int(match[3])) if match else None
    except ValueError:
        return None


def check_version(found: str, supported: tuple[str, ...], what: str, where: Where) -> None:
    """Refuse a version of a known format that is not read.

    Raises
    ------
    UnsupportedFormatError: naming those that are.
    """
    if found not in supported:
        raise UnsupportedFormatError(
            f"Version {found or 'none'} of {what} is not read.",
            hint=f"Read are: {', '.join(supported)}.",
            where=where,
        )
