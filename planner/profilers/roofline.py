"""The roofline of one engine step: how long it takes to decode B sequences and prefill P prompt tokens.

A step's time is the sum of what runs one after the other: linear layers, attention, all-reduces and the engine's
own overhead; each of the first two is the larger of its arithmetic and its memory traffic. Formulas and sources:
docs/explanation/throughput.md. Everything here is a pure function of the model, the GPU and the configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from planner.domain.model import MixerKind
from planner.domain.precision import KV_BYTES_PER_ELEMENT, SPARSE, UNQUANTIZED_BYTES, bytes_per_parameter, weight_bytes
from planner.profilers.curve import Curve, make_curve, stack_curves
from planner.profilers.support import unsupported
from planner.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.domain.model import LayerGroup, ModelArchitecture
    from planner.profilers.efficiency import Efficiency, EstimatorParams

Array: TypeAlias = NDArray[np.float64]

ACTIVATION_BYTES = 2.0
"""Activations and all-reduced partial sums are bf16 in every engine modelled here."""

MATH_FORMATS = {
    "bf16": ("bf16",),
    "fp16": ("bf16",),
    "fp8": ("fp8", "bf16"),
    "int8": ("bf16",),
    "int4": ("bf16",),
    "nvfp4": ("fp4", "bf16"),
    "mxfp4": ("fp4", "bf16"),
    "int8-2:4": ("bf16",),
    "int4-2:4": ("bf16",),
}
"""Number formats of the arithmetic, best first, by precision of the weights. What the GPU lacks falls back to
weight-only quantisation: weights are expanded to bf16 on the fly, which saves bytes but no FLOPs."""


def smooth_max(compute_s: Array, read_s: Array | float) -> Array:
    """Return sqrt(compute^2 + read^2): the larger one far from the roofline's ridge, 41% more where they are equal.

    Near the ridge neither arithmetic nor memory is used in full. Of max, 4-norm and 2-norm the last one fitted the
    measurements best (docs/explanation/throughput.md).
    """
    smooth: Array = np.sqrt(np.square(compute_s) + np.square(read_s))
    return smooth


def math_format(precision: str, gpu: GpuSpec) -> str | None:
    """Return the number format in which `gpu` multiplies weights of `precision`; None if it cannot."""
    return next((name for name in MATH_FORMATS.get(precision, ()) if name in gpu.peak_flops), None)


def link_kind(gpu: GpuSpec, tensor_parallel: int) -> str:
    """Return "nvlink", "xgmi", "ethernet" or "pcie": what joins the GPUs of a tensor-parallel group.

    An NVLink bridge joins two cards; a larger group of such cards talks over PCIe.
    """
    name = gpu.link.lower()
    if "bridge" in name and tensor_parallel > 2:
        return "pcie"
    return next((kind for kind in ("nvlink", "xgmi", "ethernet") if kind in name), "pcie")


def link_bytes_per_s(gpu: GpuSpec, kind: str) -> float:
    """Return the data-sheet rate, one way, of the link that `link_kind` names."""
    return gpu.pcie_bytes_per_s if kind == "pcie" else gpu.link_bytes_per_s


def visible_tokens(group: LayerGroup, context_tokens: Array) -> Array:
    """Return how many cached tokens one query attends to in a layer of `group` at the given context lengths."""
    limits = [limit for limit in (group.window_tokens, group.attended_tokens_cap) if limit is not None]
    return np.minimum(context_tokens, min(limits)) if limits else context_tokens


def prefill_attention_flops(model: ModelArchitecture, input_tokens: Array) -> Array:
    """Return the FLOPs of causal attention over a whole prompt, shape of `input_tokens`.

    Per layer 2 heads (d_qk + d_v) x sum over t = 1..S of min(t, w), with w the window; without one that is
    S (S + 1) / 2.
    """
    total = np.zeros_like(input_tokens)
    for group in model.layers:
        seen = visible_tokens(group, input_tokens)
        pairs = seen * input_tokens - seen * (seen - 1.0) / 2
        width = group.prefill_head_dim or group.head_dim
        value_width = group.prefill_value_head_dim or group.value_head_dim
        total += group.count * 2.0 * group.n_query_heads * (width + value_width) * pairs
    return total


def decode_attention_flops(model: ModelArchitecture, context_tokens: Array) -> Array:
    """Return the attention FLOPs of one generated token at the given context lengths."""
    total = np.zeros_like(context_tokens)
    for group in model.layers:
        width = group.n_query_heads * (group.head_dim + group.value_head_dim)
        total += group.count * 2.0 * width * visible_tokens(group, context_tokens)
    return total


def kv_bytes_per_gpu(model: ModelArchitecture, config: EngineConfig, context_tokens: Array, *, is_read: bool) -> Array:
    """Return the bytes that one sequence's cache and state take on each GPU of a replica, at the given lengths.

    `is_read`: what one decode step reads (sparse attention reads less than is stored). KV heads that are fewer than
    the tensor-parallel ranks are replicated; an MLA latent vector is replicated on every rank. With data-parallel
    attention nothing is: each rank has its part of the requests.
    """
    element_bytes = KV_BYTES_PER_ELEMENT[config.kv_precision]
    total = np.zeros_like(context_tokens)
    for group in model.layers:
        cached = context_tokens if group.window_tokens is None else np.minimum(context_tokens, group.window_tokens)
        tokens = visible_tokens(group, context_tokens) if is_read else cached
        heads = config.tensor_parallel if config.is_attention_data_parallel else group.n_kv_heads
        shards = max(1, min(config.tensor_parallel, heads))
        per_layer = group.kv_elements_per_token * tokens * element_bytes / shards
        total += group.count * (per_layer + group.state_bytes_per_sequence / config.tensor_parallel)
    return total / config.pipeline_parallel


FULL_KV_HEADS = 32
"""KV heads on one GPU with which decode attention reads the cache as fast as it ever does: those of the smallest model
with a KV head for every query head (Llama-2-7B) whose measurements the exponents are fitted to."""


def kv_reach(model: ModelArchitecture, config: EngineConfig, exponent: float) -> float:
    """Return what part of its best rate decode attention reads the cache at: (heads / `FULL_KV_HEADS`)^exponent.

    Kernels deal out KV heads to a GPU's processors: with few of them on a GPU they keep its memory less busy. Layers
    are read one after the other, so times add up, each weighted with what it caches of a token. A latent vector (MLA)
    has no heads of its own; there the query heads are dealt out.
    """
    ranks = 1 if config.is_attention_data_parallel else config.tensor_parallel
    cached = [(group.count * group.kv_elements_per_token, group) for group in model.layers]
    total = sum(size for size, _ in cached)
    if not total:
        return 1.0
    return total / sum(size / kv_heads_share(_dealt_heads(group, ranks), exponent) for size, group in cached)


def kv_heads_share(heads: float, exponent: float) -> float:
    """Return the part of the best rate with so many heads on a GPU."""
    return float(min(1.0, heads / FULL_KV_HEADS) ** exponent)


def _dealt_heads(group: LayerGroup, ranks: int) -> float:
    heads = group.n_query_heads if group.mixer is MixerKind.LATENT_ATTENTION else group.n_kv_heads
    return max(1.0, heads / ranks)


def kv_transfer_bytes(model: ModelArchitecture, config: EngineConfig, input_tokens: Array) -> Array:
    """Return the bytes of cache and state that prompts of the given lengths leave: one copy of what all layers keep."""
    whole = replace(config, tensor_parallel=1, pipeline_parallel=1)
    return kv_bytes_per_gpu(model, whole, input_tokens, is_read=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMemory:
    """What fits on ONE GPU of a replica, in bytes."""

    usable_bytes: float
    weight_bytes: float
    activation_bytes: float

    @property
    def kv_bytes(self) -> float:
        """Room for the KV cache on one GPU; negative if not even the weights fit."""
        return self.usable_bytes - self.weight_bytes - self.activation_bytes


def engine_efficiency(gpu: GpuSpec, config: EngineConfig, params: EstimatorParams) -> Efficiency:
    """Return what the configured engine reaches of the GPU's rates."""
    kind = link_kind(gpu, config.tensor_parallel)
    return params.efficiency(gpu, config.engine, link_kind=kind, version=config.engine_version)


def replica_memory(
    model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, params: EstimatorParams
) -> ReplicaMemory:
    """Return the memory of each GPU of a replica: u x M, weights spread evenly, activations of one full step."""
    efficiency = engine_efficiency(gpu, config, params)
    batched = config.max_num_batched_tokens * model.hidden_size * ACTIVATION_BYTES
    return ReplicaMemory(
        usable_bytes=gpu.memory_bytes * efficiency.memory_fraction,
        weight_bytes=weight_bytes(model, config.precision) / config.gpus_per_replica,
        activation_bytes=efficiency.activation_factor * batched / config.tensor_parallel,
    )


def misfit(model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, params: EstimatorParams) -> str:
    """Return in words why this model cannot run on this configuration at all; "" if it can."""
    if config.precision not in MATH_FORMATS:
        return f"precision {config.precision} is not known (known: {', '.join(MATH_FORMATS)})"
    reason = unsupported(gpu, config)
    if not reason and math_format(config.precision, gpu) is None:
        reason = f"{gpu.name} has no tensor arithmetic for {config.precision} weights"
    if reason:
        return reason
    if config.kv_precision not in KV_BYTES_PER_ELEMENT:
        return f"KV-cache precision {config.kv_precision} is not known (known: {', '.join(KV_BYTES_PER_ELEMENT)})"
    if config.pipeline_parallel > model.n_layers:
        return f"{config.pipeline_parallel} pipeline stages for {model.n_layers} layers"
    memory = replica_memory(model, gpu, config, params)
    if memory.kv_bytes > 0:
        return ""
    n_gpus = config.gpus_per_replica
    return (
        f"weights {format_bytes(memory.weight_bytes * n_gpus)} in {config.precision} do not fit {n_gpus} x {gpu.name} "
        f"({format_bytes(memory.usable_bytes)} usable each, {format_bytes(memory.activation_bytes)} for activations)"
    )


def kv_sequences(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    context_tokens: Array,
    params: EstimatorParams,
    *,
    taken_bytes: float = 0.0,
) -> Array:
    """Return how many whole sequences of `context_tokens` a replica's KV cache holds, rounded down.

    C(S) = floor((u M - W / (tp pp) - activations) / (bytes of one sequence on each GPU)).

    taken_bytes : what something else takes of the cache's room on each GPU.
    """
    room = max(0.0, replica_memory(model, gpu, config, params).kv_bytes - taken_bytes)
    per_sequence = kv_bytes_per_gpu(model, config, context_tokens, is_read=False)
    return np.floor(np.divide(room, per_sequence, out=np.full_like(per_sequence, np.inf), where=per_sequence > 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertReads:
    """Routed experts of one kind of layer."""

    n_experts: int
    n_active: int
    read_s: float
    """Time to read every expert of all such layers."""

    @property
    def untouched_share(self) -> float:
        """Part of the experts that one token leaves alone."""
        return 1.0 - self.n_active / self.n_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedExperts:
    """`ExpertReads` of several replicas side by side; arrays of shape (buckets,)."""

    untouched_share: Array
    read_s: Array


def _step_s(
    steps: StepModel | StackedSteps, *, sequences: Array, prefill: Array, decode_s: Array, attention_s: Array
) -> Array:
    batch, prompt = sequences / steps.stages, prefill / steps.stages
    tokens = batch + prompt
    read = steps.dense_read_s + sum(
        (group.read_s * (1.0 - group.untouched_share**tokens) for group in steps.experts), 0
    )
    layers = smooth_max(tokens * steps.linear_s_per_token, read)
    if steps.layer_curve is not None:
        layers = layers * steps.layer_curve.at(tokens)
    reduces = tokens * steps.communication_s_per_token
    if steps.link_curve is not None:
        reduces = reduces * steps.link_curve.at(tokens)
    return (
        layers
        + smooth_max((batch + 1.0) * steps.head_s_per_sequence, steps.head_read_s)
        + batch * decode_s
        + prompt * attention_s
        + reduces
        + steps.communication_fixed_s
        + steps.overhead_s
        + sequences * steps.overhead_s_per_sequence
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """Coefficients of one replica's step time; all times in seconds for the whole model."""

    linear_s_per_token: float
    dense_read_s: float
    experts: tuple[ExpertReads, ...]
    head_s_per_sequence: float
    head_read_s: float
    communication_s_per_token: float
    communication_fixed_s: float
    overhead_s: float
    overhead_s_per_sequence: float
    prefill_flops_per_s: float
    """Rate of prefill attention over the tensor-parallel group."""
    decode_flops_per_s: float
    kv_bytes_per_s: float
    """Rate at which one GPU reads its KV cache."""
    stages: int
    lone_prefill_factor: float
    layer_curve: Curve | None = None
    """How many times as long as the roofline says the layers take, by tokens of a step; None = just as long."""
    link_curve: Curve | None = None
    """The same of the time on the links in all-reduces."""

    def step_s(self, *, sequences: Array, prefill: Array, decode_s: Array, attention_s: Array) -> Array:
        """Return the time of one step.

        Parameters
        ----------
        sequences : sequences that decode one token each.
        prefill : prompt tokens processed in the same step.
        decode_s : attention time of one decoding sequence (`decode_attention_s`).
        attention_s : attention time of one prompt token (`prefill_attention_s`).

        Notes
        -----
        With p pipeline stages the batch is cut into p microbatches that keep every stage busy; each passes all
        layers, so a step takes as long as one microbatch's pass and p of them end in that time.
        """
        return _step_s(self, sequences=sequences, prefill=prefill, decode_s=decode_s, attention_s=attention_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedSteps:
    """The step times of several replicas, each for buckets of its own; arrays of shape (buckets,)."""

    linear_s_per_token: Array
    dense_read_s: Array
    experts: tuple[StackedExperts, ...]
    head_s_per_sequence: Array
    head_read_s: Array
    communication_s_per_token: Array
    communication_fixed_s: Array
    overhead_s: Array
    overhead_s_per_sequence: Array
    stages: Array
    lone_prefill_factor: Array
    layer_curve: Curve | None = None
    link_curve: Curve | None = None

    def step_s(self, *, sequences: Array, prefill: Array, decode_s: Array, attention_s: Array) -> Array:
        """Return the time of one step of every replica, as `StepModel.step_s`."""
        return _step_s(self, sequences=sequences, prefill=prefill, decode_s=decode_s, attention_s=attention_s)

    def take(self, order: NDArray[np.intp]) -> StackedSteps:
        """Return the buckets in another order."""
        apart = {"experts", "layer_curve", "link_curve"}
        moved = {name: getattr(self, name)[order] for name in self.__slots__ if name not in apart}
        experts = tuple(
            StackedExperts(untouched_share=group.untouched_share[order], read_s=group.read_s[order])
            for group in self.experts
        )
        return StackedSteps(
            experts=experts,
            layer_curve=None if self.layer_curve is None else self.layer_curve.take(order),
            link_curve=None if self.link_curve is None else self.link_curve.take(order),
            **moved,
        )


def stack_steps(models: Sequence[StepModel], counts: Sequence[int]) -> StackedSteps:
    """Return step models side by side, each repeated for so many buckets."""

    def column(values: Iterable[float]) -> Array:
        return np.repeat(np.array(list(values), dtype=np.float64), counts)

    n_kinds = max((len(model.experts) for model in models), default=0)
    experts = tuple(
        StackedExperts(
            untouched_share=column(m.experts[k].untouched_share if k < len(m.experts) else 1.0 for m in models),
            read_s=column(m.experts[k].read_s if k < len(m.experts) else 0.0 for m in models),
        )
        for k in range(n_kinds)
    )
    return StackedSteps(
        linear_s_per_token=column(model.linear_s_per_token for model in models),
        dense_read_s=column(model.dense_read_s for model in models),
        experts=experts,
        head_s_per_sequence=column(model.head_s_per_sequence for model in models),
        head_read_s=column(model.head_read_s for model in models),
        communication_s_per_token=column(model.communication_s_per_token for model in models),
        communication_fixed_s=column(model.communication_fixed_s for model in models),
        overhead_s=column(model.overhead_s for model in models),
        overhead_s_per_sequence=column(model.overhead_s_per_sequence for model in models),
        stages=column(model.stages for model in models),
        lone_prefill_factor=column(model.lone_prefill_factor for model in models),
        layer_curve=stack_curves([model.layer_curve for model in models], counts),
        link_curve=stack_curves([model.link_curve for model in models], counts),
    )


def _expert_reads(model: ModelArchitecture, bytes_per_s: float, parameter_bytes: float) -> tuple[ExpertReads, ...]:
    reads: dict[tuple[int, int], float] = {}
    for group in model.layers:
        if group.n_experts:
            key = (group.n_experts, group.n_active_experts)
            size = group.count * group.n_experts * group.expert_params * parameter_bytes
            reads[key] = reads.get(key, 0.0) + size / bytes_per_s
    return tuple(ExpertReads(n_experts=n, n_active=k, read_s=read) for (n, k), read in reads.items())


def _dense_bytes(model: ModelArchitecture, precision: str) -> float:
    """Bytes of the layers' weights without routed experts; token tables are read by row, the head apart."""
    parameter_bytes = bytes_per_parameter(precision)
    routed = sum(group.count * group.n_experts * group.expert_params for group in model.layers) * parameter_bytes
    tables = model.embedding_params * max(parameter_bytes, UNQUANTIZED_BYTES)
    return max(0.0, weight_bytes(model, precision) - routed - tables)


def _gemm_flops(gpu: GpuSpec, name: str, efficiency: Efficiency) -> float:
    reached = gpu.peak_flops[name] * efficiency.gemm_fraction[name]
    if name in efficiency.own_formats:
        return reached
    return min(reached, gpu.achieved_flops.get(name, reached))


def _communication(
    model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, efficiency: Efficiency
) -> tuple[float, float]:
    """Return (seconds per token, fixed seconds) of a step's all-reduces and stage hand-overs.

    Ring all-reduce: 2 (tp - 1) / tp x bytes / link rate + latency x log2(tp), twice per layer (Megatron-LM).
    """
    tp, pp = config.tensor_parallel, config.pipeline_parallel
    kind = link_kind(gpu, tp)
    rate = link_bytes_per_s(gpu, kind) * efficiency.link_fraction
    row_bytes = model.hidden_size * ACTIVATION_BYTES
    calls = 2.0 * model.n_layers if tp > 1 else 0.0
    per_token = calls * 2.0 * (tp - 1) / tp * row_bytes / rate + (pp - 1) * row_bytes / rate
    fixed = (calls * math.log2(tp) + (pp - 1)) * efficiency.allreduce_latency_s
    return per_token, fixed


def _overhead_s(model: ModelArchitecture, efficiency: Efficiency) -> float:
    n_routed = sum(group.count for group in model.layers if group.n_experts)
    layers_s = model.n_layers * efficiency.layer_overhead_s + n_routed * efficiency.routing_overhead_s
    return efficiency.step_overhead_s + layers_s


def step_model(model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, params: EstimatorParams) -> StepModel:
    """Return the step-time coefficients of one replica.

    Raises
    ------
    ValueError: if `misfit` names a reason why the model cannot run there because of its number formats.
    """
    name = math_format(config.precision, gpu)
    if name is None:
        msg = misfit(model, gpu, config, params)
        raise ValueError(msg)
    tp = config.tensor_parallel
    efficiency = engine_efficiency(gpu, config, params)
    ranks = 1.0 + (tp - 1.0) * efficiency.split_fraction
    dense_flops = ranks * _gemm_flops(gpu, name, efficiency)
    flops = dense_flops * (efficiency.sparse_factor if config.precision in SPARSE else 1.0)
    head_flops = ranks * _gemm_flops(gpu, "bf16", efficiency) if "bf16" in gpu.peak_flops else dense_flops
    attention_flops = ranks * gpu.peak_flops.get("bf16", gpu.peak_flops[name])
    bandwidth = gpu.bandwidth_bytes_per_s * efficiency.bandwidth_fraction
    kv_rate = gpu.bandwidth_bytes_per_s * efficiency.kv_bandwidth_fraction * ranks / tp
    parameter_bytes = bytes_per_parameter(config.precision)
    active = sum(group.count * (group.mixer_params + group.mlp_active_params) for group in model.layers)
    head_params = float(model.vocab_size) * (model.embedding_width or model.hidden_size)
    per_token, fixed = _communication(model, gpu, config, efficiency)
    return StepModel(
        linear_s_per_token=2.0 * active / flops,
        dense_read_s=_dense_bytes(model, config.precision) / (ranks * bandwidth),
        experts=_expert_reads(model, ranks * bandwidth, parameter_bytes),
        head_s_per_sequence=2.0 * head_params / head_flops,
        head_read_s=head_params * ACTIVATION_BYTES / (ranks * bandwidth),
        communication_s_per_token=per_token,
        communication_fixed_s=fixed,
        overhead_s=_overhead_s(model, efficiency),
        overhead_s_per_sequence=efficiency.sequence_overhead_s,
        prefill_flops_per_s=attention_flops * efficiency.attention_fraction,
        decode_flops_per_s=attention_flops * efficiency.attention_fraction,
        kv_bytes_per_s=kv_rate * kv_reach(model, config, efficiency.kv_heads_exponent),
        stages=config.pipeline_parallel,
        lone_prefill_factor=efficiency.lone_prefill_factor,
        layer_curve=_curve(params, "layer_time_factor", f"{gpu.name}/{name}"),
        link_curve=_curve(
            params,
            "link_time_factor",
            f"{gpu.name}/{link_kind(gpu, tp)}/{tp}",
            unit=model.hidden_size * ACTIVATION_BYTES,
        ),
    )


def _curve(params: EstimatorParams, parameter: str, scope: str, *, unit: float = 1.0) -> Curve | None:
    """Return a timed curve over tokens, of each of which `unit` counts in its sizes; None if nothing was timed."""
    pairs = params.curves.get((parameter, scope.lower()))
    return make_curve([(size / unit, factor) for size, factor in pairs]) if pairs else None


def decode_attention_s(
    steps: StepModel, model: ModelArchitecture, config: EngineConfig, context_tokens: Array
) -> Array:
    """Return the attention time that one decoding sequence adds to a step at the given context lengths."""
    one_stage = kv_bytes_per_gpu(model, config, context_tokens, is_read=True) * config.pipeline_parallel
    return np.maximum(
        one_stage / steps.kv_bytes_per_s,
        decode_attention_flops(model, context_tokens) / steps.decode_flops_per_s,
    )


def prefill_attention_s(steps: StepModel, model: ModelArchitecture, input_tokens: Array) -> Array:
    """Return the mean attention time per prompt token of prompts of the given lengths."""
    flops = prefill_attention_flops(model, input_tokens)
    return flops / np.maximum(input_tokens, 1.0) / steps.prefill_flops_per_s
