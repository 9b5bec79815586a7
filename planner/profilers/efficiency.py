"""How much of a GPU's data-sheet rates an engine reaches: the few numbers that were fitted, read from a data file.

`profiles/efficiency.csv` holds every value with its source and reason; nothing here is a constant of its own.
docs/explanation/throughput.md tells how they were fitted and how far the estimates are off.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from planner.errors import DataMissingError, InputError, Where
from planner.files.bundled import bundled
from planner.files.documents import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from planner.domain.hardware import GpuSpec

DEFAULT_SCOPE = "default"

GEMM_FORMATS = ("bf16", "fp8", "int8", "fp4")
"""Number formats of the arithmetic that have a `gemm_fraction_<format>`."""

ENGINE_FAMILIES = {
    "trtllm": "tensorrt-llm",
    "trt-llm": "tensorrt-llm",
    "tensorrtllm": "tensorrt-llm",
    "lmdeploy-turbomind": "lmdeploy",
    "turbomind": "lmdeploy",
    "slora": "s-lora",
    "text-generation-inference": "tgi",
}
"""Other spellings of an engine's family; measurements count for the same family only."""

ENGINES = ("vllm", "sglang", "tensorrt-llm", "lmdeploy", "tgi", "s-lora")
"""Families that estimates are meant for; those without parameters of their own take the defaults, fitted to vLLM."""


def engine_family(engine: str) -> str:
    """Return the name under which measurements and efficiency of `engine` are kept.

    Examples
    --------
    >>> engine_family("LMDeploy-TurboMind"), engine_family("vllm")
    ('lmdeploy', 'vllm')
    """
    name = engine.strip().lower().replace("_", "-")
    return ENGINE_FAMILIES.get(name, name)


def known_engines() -> tuple[str, ...]:
    """Return every name of an engine that is understood, families first."""
    return (*ENGINES, *ENGINE_FAMILIES)


def check_engine(engine: str, *, measured: Iterable[str] = ()) -> None:
    """Refuse an engine that is neither known nor measured.

    Parameters
    ----------
    measured : engines of the user's own measurements.

    Raises
    ------
    InputError: naming the engine that was probably meant.
    """
    families = {*ENGINES, *map(engine_family, measured)}
    if engine_family(engine) not in families:
        known = ", ".join(sorted(families))
        raise InputError(
            f"The engine {engine!r} is not known.",
            hint=did_you_mean(engine, known_engines())
            or f"Known: {known}; others need measurements of their own in profiles.files.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Shares of the peak rates and fixed times that one engine reaches on one kind of GPU."""

    gemm_fraction: Mapping[str, float]
    """Of the dense peak, by number format, for large matrix products of the linear layers."""
    bandwidth_fraction: float
    """Of the data-sheet bandwidth while weights are read."""
    kv_bandwidth_fraction: float
    """Of the data-sheet bandwidth while the KV cache is read in decoding, on one GPU."""
    kv_shard_exponent: float
    """Decode attention over tp ranks reaches tp^-exponent of that: fewer KV heads on each keep it less busy."""
    attention_fraction: float
    """Of the dense bf16 peak in the attention of prefills."""
    step_overhead_s: float
    """Per engine step: scheduling, launches, sampling of the first sequence."""
    sequence_overhead_s: float
    """Per step and running sequence: sampling, detokenising, bookkeeping."""
    lone_prefill_factor: float
    """A prompt's latency over its share of a busy replica's time: alone it keeps the GPU less busy than in a queue."""
    memory_fraction: float
    """Of a GPU's memory that the engine may fill (vLLM: gpu_memory_utilization)."""
    activation_factor: float
    """Activation memory in units of (batched tokens x hidden size x 2 bytes)."""
    allreduce_latency_s: float
    """Fixed time of one all-reduce between two GPUs; grows with log2(tp)."""
    link_fraction: float
    """Of the link's data-sheet rate in an all-reduce."""
    own_formats: frozenset[str] = frozenset()
    """Number formats whose `gemm_fraction` was measured on this very GPU: no other measurement of it caps them."""


EFFICIENCY_COLUMNS = ("parameter", "scope", "value", "unit", "source", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyRow:
    """One row of profiles/efficiency.csv, or of a user's file of the same columns."""

    parameter: str
    scope: str
    """What it holds for: a GPU's name, its architecture, an engine's family, a kind of link, "<GPU>/<link>", or
    "default"; the narrowest one that applies is taken."""
    value: float
    unit: str
    source: str
    reason: str


def rows_csv(rows: Iterable[EfficiencyRow]) -> str:
    """Return rows as the text of a CSV file, numbers to six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, EFFICIENCY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) | {"value": f"{row.value:.6g}"} for row in rows)
    return text.getvalue()


def parse_rows(text: str, path: str) -> tuple[EfficiencyRow, ...]:
    """Return the rows of an efficiency table; `path` is what errors name.

    Raises
    ------
    InputError: if the columns are not those of profiles/efficiency.csv, a value is not a number that can be one, or
        the bundled table has no such parameter.
    """
    reader = csv.DictReader(io.StringIO(text))
    columns = tuple(reader.fieldnames or ())
    if set(columns) != set(EFFICIENCY_COLUMNS):
        raise InputError(
            f"The table's columns are {', '.join(columns) or 'missing'}.",
            hint=f"They must be {', '.join(EFFICIENCY_COLUMNS)}.",
            where=Where(path=path, line=1),
        )
    known = {parameter for parameter, _ in default_params().table}
    rows = []
    for cells in reader:
        where = Where(path=path, line=reader.line_num)
        if None in cells or None in cells.values():
            raise InputError(f"The row does not have {len(columns)} columns.", where=where)
        if cells["parameter"] not in known:
            hint = did_you_mean(cells["parameter"], known)
            raise InputError(f"There is no parameter {cells['parameter']!r}.", hint=hint, where=where)
        try:
            value = float(cells["value"])
        except ValueError as error:
            raise InputError(f"{cells['value']!r} is not a number.", where=where) from error
        if not math.isfinite(value) or value < 0:
            raise InputError(f"A value of {cells['value']} cannot be.", hint="Give a number from 0 on.", where=where)
        texts = {column: cells[column] for column in EFFICIENCY_COLUMNS if column != "value"}
        rows.append(EfficiencyRow(value=value, **texts))
    return tuple(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorParams:
    """Everything numeric that the estimator assumes beside the model's and the GPU's own facts."""

    table: Mapping[tuple[str, str], float]
    """(parameter, scope) -> value, from profiles/efficiency.csv."""
    arrival_scv: float
    """Squared coefficient of variation of inter-arrival times; 1 = Poisson."""
    service_scv: float
    """Squared coefficient of variation of the prompts' service times at the prefill server."""
    fitted_architectures: frozenset[str] = frozenset()
    """GPU architectures, in lower case, with a matrix rate that was fitted to measurements of them."""
    is_context_enforced: bool = True
    """Refuse requests longer than the model's context; off only to compare with benchmarks that ignore it."""

    def value(self, parameter: str, *scopes: str) -> float:
        """Return a parameter for the first of `scopes` (narrowest first) that has it, or its default.

        Raises
        ------
        DataMissingError: if the table has none of them.
        """
        for scope in (*scopes, DEFAULT_SCOPE):
            found = self.table.get((parameter, scope.lower()))
            if found is not None:
                return found
        raise DataMissingError(
            f"The efficiency table has no {parameter!r} for {' or '.join(map(repr, scopes))} and no default.",
            hint="Add a row to profiles/efficiency.csv.",
        )

    def is_fitted(self, gpu: GpuSpec) -> bool:
        """Return whether any measurement on this GPU, or its architecture, went into these parameters."""
        return gpu.architecture.lower() in self.fitted_architectures or bool(self.own_formats(gpu))

    def own_formats(self, gpu: GpuSpec) -> frozenset[str]:
        """Return the number formats that have a matrix rate measured on this very GPU."""
        return frozenset(name for name in GEMM_FORMATS if (f"gemm_fraction_{name}", gpu.name.lower()) in self.table)

    def efficiency(self, gpu: GpuSpec, engine: str, *, link_kind: str) -> Efficiency:
        """Return the parameters of `engine` on `gpu` with its GPUs joined by `link_kind`."""
        family = engine_family(engine)
        own = (gpu.name, gpu.architecture)
        link = (f"{gpu.name}/{link_kind}", link_kind)
        return Efficiency(
            gemm_fraction={name: self.value(f"gemm_fraction_{name}", *own) for name in GEMM_FORMATS},
            bandwidth_fraction=self.value("bandwidth_fraction", *own),
            kv_bandwidth_fraction=self.value("kv_bandwidth_fraction", *own),
            kv_shard_exponent=self.value("kv_shard_exponent", *own),
            attention_fraction=self.value("attention_fraction", *own),
            step_overhead_s=self.value("step_overhead_s", family),
            sequence_overhead_s=self.value("sequence_overhead_s", family),
            lone_prefill_factor=self.value("lone_prefill_factor", family),
            memory_fraction=self.value("memory_fraction", family),
            activation_factor=self.value("activation_factor", family),
            allreduce_latency_s=self.value("allreduce_latency_s", *link),
            link_fraction=self.value("link_fraction", *link),
            own_formats=self.own_formats(gpu),
        )

    def with_rows(self, rows: Iterable[EfficiencyRow]) -> EstimatorParams:
        """Return a copy in which each of the rows goes before the bundled one of its scope."""
        return replace(self, table={**self.table, **{(row.parameter, row.scope.lower()): row.value for row in rows}})

    def with_values(self, **values: float) -> EstimatorParams:
        """Return a copy in which the defaults of the named parameters are overridden for every scope."""
        kept = {key: value for key, value in self.table.items() if key[0] not in values}
        return replace(self, table=kept | {(name, DEFAULT_SCOPE): value for name, value in values.items()})


@cache
def default_params() -> EstimatorParams:
    """Return the bundled parameters (profiles/efficiency.csv)."""
    text = bundled("profiles", "efficiency.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    table = {(row["parameter"], row["scope"].lower()): float(row["value"]) for row in rows}
    fitted = {
        row["scope"].lower()
        for row in rows
        if row["parameter"].startswith("gemm_fraction_") and row["source"].startswith("fit of")
    }
    return EstimatorParams(
        table=table,
        arrival_scv=table["arrival_scv", DEFAULT_SCOPE],
        service_scv=table["service_scv", DEFAULT_SCOPE],
        fitted_architectures=frozenset(fitted - {DEFAULT_SCOPE}),
    )
