"""How much of a GPU's data-sheet rates an engine reaches: the few numbers that were fitted, read from a data file.

`profiles/efficiency.csv` holds every value with its source and reason; nothing here is a constant of its own.
docs/explanation/throughput.md tells how they were fitted and how far the estimates are off.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

from planner.errors import DataMissingError, InputError
from planner.files.bundled import bundled
from planner.files.documents import did_you_mean
from planner.profilers.eras import engine_era, engine_scopes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from planner.domain.hardware import GpuSpec
    from planner.profilers.params_file import EfficiencyRow

DEFAULT_SCOPE = "default"

DEFAULT_ENGINE = "vllm"
"""The engine whose parameters are the defaults."""

ENGINE_PARAMETERS = ("step_overhead_s", "sequence_overhead_s", "gemm_factor", "bandwidth_factor")
"""Of these at least one is fitted for every engine that was measured."""

CURVES = ("layer_time_factor", "link_time_factor")
"""Parameters that depend on a size, which ends their scope: "H100-80GB/bf16@64" at 64 tokens of a step (all layers over
the roofline of them), "H100-80GB/nvlink/2@65536" at messages of so many bytes over 2 GPUs (time on the links)."""

MATH_NAMES = ("bf16", "fp8", "int8", "fp4")
"""Number formats that have a matrix rate of their own."""

ENGINE_FAMILIES = {
    "trtllm": "tensorrt-llm",
    "trt-llm": "tensorrt-llm",
    "tensorrtllm": "tensorrt-llm",
    "lmdeploy-turbomind": "lmdeploy",
    "turbomind": "lmdeploy",
    "slora": "s-lora",
    "text-generation-inference": "tgi",
    "llamacpp": "llama.cpp",
    "llama-cpp": "llama.cpp",
    "mii": "deepspeed-mii",
    "deepspeed": "deepspeed-mii",
    "ds-mii": "deepspeed-mii",
    "dsmii": "deepspeed-mii",
    "deepspeed-fastgen": "deepspeed-mii",
    "trt": "tensorrt-llm",
    "tensorrt": "tensorrt-llm",
    "trtllm-pytorch": "tensorrt-llm",
    "dynamo-trt": "tensorrt-llm",
    "dynamo-trtllm": "tensorrt-llm",
    "dynamo-sglang": "sglang",
    "dynamo-vllm": "vllm",
    "vllm-packed": "vllm",
    "hf-peft": "peft",
    "huggingface-peft": "peft",
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
    kv_heads_exponent: float
    """With few KV heads on each GPU decode attention reaches (heads / 32)^exponent of that (`kv_reach`)."""
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
    layer_overhead_s: float
    """Per engine step and layer: launches that no graph of the whole step hides."""
    routing_overhead_s: float
    """Per engine step and mixture-of-experts layer: choosing experts, sorting tokens by them, many small products."""
    request_overhead_s: float
    """Per request before its prefill: HTTP, tokenising, scheduling."""
    output_reserve_fraction: float
    """Of a request's output: the part that the KV cache must have room for when it starts."""
    start_reserve_fraction: float
    """The same for its prefill alone: an engine that sets requests aside when room runs out starts more of them."""
    adapter_overhead_s: float
    """Per engine step and layer: the small products of LoRA adapters, where there are any."""
    turnover_wait: float
    """In a closed loop: how many completions of other requests a new one waits for before its prefill."""
    burst_share: float
    """In a closed loop: part of the requests that arrive all at once, as at the start of a published run."""
    keeps_step: float
    """1 = prefills all that waits before it decodes on: equal requests of a closed loop stay in step; else 0."""
    split_fraction: float
    """Of the ideal speed-up of tensor parallelism; 0 = layers are dealt out and one GPU works at a time."""
    sparse_factor: float
    """Rate of the linear layers with 2:4 sparse weights over that with dense ones; 1 = only bytes are saved."""
    own_formats: frozenset[str] = frozenset()
    """Number formats whose `gemm_fraction` was measured on this very GPU: no other measurement of it caps them."""


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
    fitted_engines: frozenset[str] = frozenset()
    """Engine families with a step overhead that was fitted to measurements of them."""
    fitted_releases: frozenset[str] = frozenset()
    """Scopes of engines' eras with any parameter that was fitted to measurements of them, as in "vllm@2024"."""
    own: frozenset[tuple[str, str]] = frozenset()
    """(parameter, scope) of the user's own rows: they go before every bundled one, however narrow that is."""
    spreads: Mapping[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    """(parameter, scope) -> how far its logarithm moves along each way in which a user's fit may be off by one standard
    deviation; the same ways for all parameters of a fit."""
    curves: Mapping[tuple[str, str], tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """(one of `CURVES`, scope) -> (size, factor) pairs, the smallest size first, as timed kernels gave them."""
    is_context_enforced: bool = True
    """Refuse requests longer than the model's context; off only to compare with benchmarks that ignore it."""

    def value(self, parameter: str, *scopes: str) -> float:
        """Return a parameter for the first of `scopes` (narrowest first) that has it, or its default.

        The user's own rows are asked first: one for an engine holds for all of its releases on all GPUs, though the
        bundled table has rows for one release on one architecture.

        Raises
        ------
        DataMissingError: if the table has none of them.
        """
        keys = [(parameter, scope.lower()) for scope in (*scopes, DEFAULT_SCOPE)]
        for key in (*(key for key in keys if key in self.own), *keys):
            found = self.table.get(key)
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
        return frozenset(name for name in MATH_NAMES if (f"gemm_fraction_{name}", gpu.name.lower()) in self.table)

    def has_spread(self, *scopes: str) -> bool:
        """Return whether a user's fit says of any of these scopes how far it may be off."""
        return any(scope.lower() in {own for _, own in self.spreads} for scope in scopes)

    def is_engine_fitted(self, engine: str) -> bool:
        """Return whether any measurement of this engine went into these parameters."""
        return engine_family(engine) in self.fitted_engines

    def has_row(self, parameter: str, engine: str) -> bool:
        """Return whether `parameter` has a row of this engine's, or of the user's: else it is as any other engine's."""
        scopes = {scope for name, scope in self.table if name == parameter}
        is_engines = engine_family(engine) in {scope.partition("/")[0].partition("@")[0] for scope in scopes}
        return is_engines or (parameter, DEFAULT_SCOPE) in self.own

    def is_release_fitted(self, engine: str, version: str) -> bool:
        """Return whether any measurement of this very era of an engine went into these parameters.

        Today's counts as fitted: whether its engine was, `is_engine_fitted` says.
        """
        era = engine_era(engine_family(engine), version)
        return "@" not in era or era in self.fitted_releases

    def efficiency(self, gpu: GpuSpec, engine: str, *, link_kind: str, version: str = "") -> Efficiency:
        """Return the parameters of `engine` on `gpu` with its GPUs joined by `link_kind`.

        Parameters of the GPU are looked up by its name, then its architecture, then its vendor; those of the engine by
        its era and family on the GPU's architecture, on its vendor's GPUs and on any (`engine_scopes`). What an engine
        makes of a GPU is the product of both.
        """
        scopes = engine_scopes(engine_family(engine), version, gpu.vendor, gpu.architecture)

        def of_gpu(parameter: str) -> float:
            return self.value(parameter, gpu.name, gpu.architecture, gpu.vendor)

        def of_engine(parameter: str) -> float:
            return self.value(parameter, *scopes)

        matrix, link = of_engine("gemm_factor"), (f"{gpu.name}/{link_kind}", link_kind)
        return Efficiency(
            gemm_fraction={name: of_gpu(f"gemm_fraction_{name}") * matrix for name in MATH_NAMES},
            bandwidth_fraction=of_gpu("bandwidth_fraction") * of_engine("bandwidth_factor"),
            kv_bandwidth_fraction=of_gpu("kv_bandwidth_fraction") * of_engine("kv_bandwidth_factor"),
            kv_heads_exponent=of_engine("kv_heads_exponent"),
            attention_fraction=of_gpu("attention_fraction") * of_engine("attention_factor"),
            step_overhead_s=of_engine("step_overhead_s"),
            sequence_overhead_s=of_engine("sequence_overhead_s"),
            lone_prefill_factor=of_engine("lone_prefill_factor"),
            memory_fraction=of_engine("memory_fraction"),
            activation_factor=of_engine("activation_factor"),
            allreduce_latency_s=self.value("allreduce_latency_s", *link) * of_engine("allreduce_latency_factor"),
            link_fraction=self.value("link_fraction", *link) * of_engine("link_factor"),
            layer_overhead_s=of_engine("layer_overhead_s"),
            routing_overhead_s=of_engine("routing_overhead_s"),
            request_overhead_s=of_engine("request_overhead_s"),
            output_reserve_fraction=of_engine("output_reserve_fraction"),
            start_reserve_fraction=of_engine("start_reserve_fraction"),
            adapter_overhead_s=of_engine("adapter_overhead_s"),
            turnover_wait=of_engine("turnover_wait"),
            burst_share=of_engine("burst_share"),
            keeps_step=of_engine("keeps_step"),
            split_fraction=of_engine("split_fraction"),
            sparse_factor=of_gpu("sparse_factor"),
            own_formats=self.own_formats(gpu),
        )

    def with_rows(self, rows: Iterable[EfficiencyRow]) -> EstimatorParams:
        """Return a copy in which the rows go before the bundled ones that hold for the same engine and GPU."""
        rows = tuple(rows)
        own = {(row.parameter, row.scope.lower()): row for row in rows if row.parameter not in CURVES}
        curves: dict[tuple[str, str], dict[float, float]] = {}
        for row in rows:
            if row.parameter in CURVES:
                scope, size = split_size(row.scope)
                curves.setdefault((row.parameter, scope), {})[size] = row.value
        return replace(
            self,
            curves={**self.curves, **{key: tuple(sorted(curve.items())) for key, curve in curves.items()}},
            table={**self.table, **{key: row.value for key, row in own.items()}},
            own=self.own | own.keys(),
            spreads={**self.spreads, **{key: row.spread for key, row in own.items() if row.spread}},
        )

    def with_values(self, **values: float) -> EstimatorParams:
        """Return a copy in which the defaults of the named parameters are overridden for every scope."""
        kept = {key: value for key, value in self.table.items() if key[0] not in values}
        return replace(
            self,
            table=kept | {(name, DEFAULT_SCOPE): value for name, value in values.items()},
            own=frozenset(key for key in self.own if key[0] not in values),
            spreads={key: spread for key, spread in self.spreads.items() if key[0] not in values},
        )


def split_size(scope: str) -> tuple[str, float]:
    """Return the scope of a curve, in lower case, and the size that ends it.

    Raises
    ------
    ValueError: if no positive number ends it.

    Examples
    --------
    >>> split_size("L4/bf16@64")
    ('l4/bf16', 64.0)
    """
    name, _, size = scope.lower().rpartition("@")
    if not name or not 0.0 < float(size) < math.inf:
        raise ValueError(scope)
    return name, float(size)


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
    engines = {
        row["scope"].lower().partition("@")[0]
        for row in rows
        if row["parameter"] in ENGINE_PARAMETERS and row["source"].startswith("fit of")
    }
    releases = {row["scope"].lower() for row in rows if "@" in row["scope"] and row["source"].startswith("fit of")}
    return EstimatorParams(
        table=table,
        arrival_scv=table["arrival_scv", DEFAULT_SCOPE],
        service_scv=table["service_scv", DEFAULT_SCOPE],
        fitted_architectures=frozenset(fitted - {DEFAULT_SCOPE}),
        fitted_engines=frozenset(engines - {DEFAULT_SCOPE}) | {DEFAULT_ENGINE},
        fitted_releases=frozenset(releases),
    )
