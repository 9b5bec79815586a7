"""The profile's step-time model as flat arrays, in the form that the compiled engine loop reads.

Nothing is modelled here: `engine_table` evaluates `planner.profilers.roofline` once per kind of replica, so the
simulated engine takes exactly the time per step that the profile says, whatever the batch. `measured_table` does the
same for an engine whose steps were measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from planner.profilers import roofline
from planner.profilers.curve import MAX_KNOTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.domain.model import LayerGroup, ModelArchitecture
    from planner.profilers.adapters import AdapterRoom
    from planner.profilers.curve import Curve
    from planner.profilers.efficiency import EstimatorParams

BLOCK_TOKENS = 16
"""KV memory is given out in blocks of this many tokens (vLLM's default block size)."""

MAX_LINES = 8
"""Most pieces of a curve: one for each attention window of a model and one for each bend; models have one to four."""

KIND = np.dtype(
    [
        ("linear_s", "f8"),  # per token of a step
        ("dense_read_s", "f8"),
        ("head_s", "f8"),
        ("head_read_s", "f8"),
        ("communication_s", "f8"),
        ("fixed_s", "f8"),
        ("sequence_s", "f8"),
        ("stages", "f8"),
        ("speed", "f8"),  # how many times as fast as the bare estimate every step is
        ("lone_prefill_factor", "f8"),
        ("kv_room", "f8"),  # bytes on one GPU
        ("block_tokens", "i8"),  # KV memory is given out in blocks of so many
        ("adapter_read_s", "f8"),  # per different adapter of a step; 0 = merged into the weights, or none
        ("transfer_s", "f8"),  # per byte of KV cache (of one GPU) handed to a decode replica
        ("is_prefill", "i8"),  # 1 = yields first tokens and hands over; 0 = serves requests to their end
        ("max_seqs", "i8"),
        ("token_budget", "i8"),
        ("expert_share", "f8", MAX_LINES),  # active over all experts of each kind of layer
        ("expert_read_s", "f8", MAX_LINES),  # 0 pads
        ("knots", "f8", MAX_LINES),  # context lengths between which the next four are straight; infinity pads
        ("decode_s", "f8", MAX_LINES),  # attention time of one decoding sequence at the knots
        ("decode_slope", "f8", MAX_LINES),
        ("kv_bytes", "f8", MAX_LINES),  # memory of one sequence at the knots, bytes on one GPU
        ("kv_slope", "f8", MAX_LINES),
        ("attention_s", "f8", MAX_LINES),  # prefill attention time of a pair of tokens, by window; 0 pads
        ("layer_knots", "f8", MAX_KNOTS),  # logarithms of tokens of a step; all 0 = no curve
        ("layer_factors", "f8", MAX_KNOTS),  # of the layers' time at the knots; 1 = as the roofline says
        ("link_knots", "f8", MAX_KNOTS),
        ("link_factors", "f8", MAX_KNOTS),
        ("attention_window", "f8", MAX_LINES),  # tokens that one query sees at most; infinity = all
    ]
)
"""One kind of replica: its step time and its memory. Times in seconds."""

Floats: TypeAlias = NDArray[np.float64]


class EngineKind(NamedTuple):
    """What one kind of replica is made of."""

    model: ModelArchitecture
    gpu: GpuSpec
    config: EngineConfig
    params: EstimatorParams
    speed: float = 1.0
    room: AdapterRoom | None = None
    """For adapters; of processes that share the weights this is one. None = there are none, or one is merged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredKind:
    """A replica whose step times were measured: what a step takes is a sum over what is in it, times in seconds."""

    fixed_s: float
    read_s: float
    """Reading the weights, which hides behind the arithmetic of many tokens: hypot(tokens token_s, read_s)."""
    token_s: float
    """Per token computed, of a prompt or an answer."""
    sequence_s: float
    """Per decoding sequence, beyond its token."""
    pair_s: float
    """Per pair of a prompt token and a token that it looks at, itself included."""
    context_s: float
    """Per decoding sequence and token of its context."""
    kv_tokens: int
    """How many tokens the KV memory holds."""
    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int


def measured_table(kinds: Sequence[MeasuredKind]) -> NDArray[np.void]:
    """Return an array of `KIND`, one for each of `kinds`; memory counts in tokens."""
    table = np.zeros(len(kinds), dtype=KIND)
    for row, kind in zip(table, kinds, strict=True):
        row["fixed_s"], row["dense_read_s"] = kind.fixed_s, kind.read_s
        row["linear_s"], row["sequence_s"] = kind.token_s, kind.sequence_s
        row["stages"] = row["speed"] = row["lone_prefill_factor"] = 1.0
        row["kv_room"], row["block_tokens"] = kind.kv_tokens, kind.block_tokens
        row["max_seqs"], row["token_budget"] = kind.max_num_seqs, kind.max_num_batched_tokens
        row["attention_s"] = _padded([kind.pair_s], 0.0)
        row["attention_window"] = row["knots"] = np.inf
        row["knots"][0] = 0.0
        row["decode_slope"] = _padded([kind.context_s], 0.0)
        row["kv_slope"] = _padded([1.0], 0.0)
    return table


def engine_table(kinds: Sequence[EngineKind]) -> NDArray[np.void]:
    """Return an array of `KIND`, one for each of `kinds`.

    Raises
    ------
    ValueError: if a model cannot run on its GPU because of its number formats, or has too many attention windows.
    """
    table = np.zeros(len(kinds), dtype=KIND)
    for row, kind in zip(table, kinds, strict=True):
        _fill(row, kind)
    return table


def _fill(row: np.void, kind: EngineKind) -> None:
    step = roofline.step_model(kind.model, kind.gpu, kind.config, kind.params)
    row["linear_s"] = step.linear_s_per_token
    row["dense_read_s"] = step.dense_read_s
    row["head_s"], row["head_read_s"] = step.head_s_per_sequence, step.head_read_s
    row["communication_s"] = step.communication_s_per_token
    row["fixed_s"] = step.communication_fixed_s + step.overhead_s
    _fill_curves(row, step.layer_curve, step.link_curve)
    row["sequence_s"] = step.overhead_s_per_sequence
    row["stages"], row["speed"] = step.stages, kind.speed
    row["lone_prefill_factor"] = step.lone_prefill_factor
    row["kv_room"] = roofline.replica_memory(kind.model, kind.gpu, kind.config, kind.params).kv_bytes
    if kind.room is not None:
        _leave_room(row, kind, kind.room)
    row["block_tokens"] = BLOCK_TOKENS
    row["max_seqs"], row["token_budget"] = kind.config.max_num_seqs, kind.config.max_num_batched_tokens
    row["expert_share"] = _padded([group.n_active / group.n_experts for group in step.experts], 0.0)
    row["expert_read_s"] = _padded([group.read_s for group in step.experts], 0.0)
    windows = _windows(kind.model, step)
    row["attention_s"] = _padded(list(windows.values()), 0.0)
    row["attention_window"] = _padded(list(windows), np.inf)
    knots, *lines = _lines(kind, step)
    row["knots"] = _padded(knots, np.inf)
    for name, values in zip(("decode_s", "decode_slope", "kv_bytes", "kv_slope"), lines, strict=True):
        row[name] = _padded(values, 0.0)


def _fill_curves(row: np.void, layers: Curve | None, links: Curve | None) -> None:
    for name, curve in (("layer", layers), ("link", links)):
        if curve is not None:
            row[f"{name}_knots"], row[f"{name}_factors"] = curve.log_sizes, curve.factors


def _leave_room(row: np.void, kind: EngineKind, room: AdapterRoom) -> None:
    """Take the adapters' memory from the KV cache, and let steps read those that are in them.

    As `planner.profilers.capacity` has it, which takes the dearest mix of adapters for the batch where the engine loop
    counts those that are there.
    """
    n_gpus = kind.config.gpus_per_replica
    memory = roofline.replica_memory(kind.model, kind.gpu, kind.config, kind.params)
    taken = room.taken_bytes(n_gpus, room_bytes=memory.kv_bytes, activation_bytes=memory.activation_bytes)
    efficiency = roofline.engine_efficiency(kind.gpu, kind.config, kind.params)
    rate = kind.gpu.bandwidth_bytes_per_s * efficiency.bandwidth_fraction
    row["kv_room"] = max(0.0, memory.kv_bytes - taken)
    row["adapter_read_s"] = room.bytes_each / n_gpus / rate
    row["fixed_s"] += kind.model.n_layers * efficiency.adapter_overhead_s


def _padded(values: Sequence[float] | Floats, fill: float) -> Floats:
    if len(values) > MAX_LINES:
        msg = f"{len(values)} attention windows and bends in one model; the engine loop holds {MAX_LINES}"
        raise ValueError(msg)
    padded = np.full(MAX_LINES, fill)
    padded[: len(values)] = values
    return padded


def _windows(model: ModelArchitecture, step: roofline.StepModel) -> dict[float, float]:
    """Return by window the time of one (query, key) pair over all layers that have that window."""
    found: dict[float, float] = {}
    for group in model.layers:
        width = (group.prefill_head_dim or group.head_dim) + (group.prefill_value_head_dim or group.value_head_dim)
        pair_s = group.count * 2.0 * group.n_query_heads * width / step.prefill_flops_per_s
        window = _window(group)
        found[window] = found.get(window, 0.0) + pair_s
    return found


def _window(group: LayerGroup) -> float:
    limits = [float(limit) for limit in (group.window_tokens, group.attended_tokens_cap) if limit is not None]
    return min(limits, default=np.inf)


def _lines(kind: EngineKind, step: roofline.StepModel) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return knots, and value and slope of decode attention and of KV memory at each.

    Both are straight between windows; where a decode step goes over from reading to arithmetic is one knot more.
    """
    model, config = kind.model, kind.config

    def decode(context: Floats) -> Floats:
        return roofline.decode_attention_s(step, model, config, context)

    limits = {_window(group) for group in model.layers} | {
        float(group.window_tokens) for group in model.layers if group.window_tokens is not None
    }
    ends = sorted({0.0, *(limit for limit in limits if np.isfinite(limit)), float(model.max_context_tokens) * 4.0})
    knots = np.array(sorted({*ends, *_crossings(ends, decode)}), dtype=np.float64)

    def table(of: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
        values = of(knots)
        slopes = np.append(np.diff(values) / np.diff(knots), 0.0)
        return values, slopes

    decode_s, decode_slope = table(decode)
    kv_bytes, kv_slope = table(lambda context: roofline.kv_bytes_per_gpu(model, config, context, is_read=False))
    return knots[:-1], decode_s[:-1], decode_slope[:-1], kv_bytes[:-1], kv_slope[:-1]


def _crossings(ends: Sequence[float], curve: Callable[[Floats], Floats]) -> list[float]:
    """Return where a curve that is the larger of two straight lines between `ends` bends in between."""
    found = []
    for low, high in pairwise(ends):
        span = (high - low) * 1e-3
        at = np.array([low, low + span, high - span, high])
        y = curve(at)
        first, last = (y[1] - y[0]) / span, (y[3] - y[2]) / span
        if abs(last - first) > 1e-9 * max(abs(first), abs(last)):
            found.append(float(low + ((y[3] - y[0]) - last * (high - low)) / (first - last)))
    return found
