"""What timings imply: the rates that the step-time model (planner.profilers.roofline) needs, fitted in its own form.

A pass through the layers takes sqrt((FLOPs / F)^2 + (weight bytes / B)^2), elementwise kernels included, as there; a
prompt's attention FLOPs / A; decode attention the larger of cache bytes / K and FLOPs / A; an all-reduce over n GPUs
latency x log2(n) + 2 (n - 1) / n x bytes / L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.hardware import EngineConfig
from planner.profilers.efficiency import default_params
from planner.profilers.floor import TOLERANCE_FRACTION
from planner.profilers.kernels.shapes import Kernel, KernelKind
from planner.profilers.params_file import EfficiencyRow
from planner.profilers.roofline import kv_reach, link_bytes_per_s, link_kind, smooth_max

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from planner.domain.hardware import GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.profilers.kernels.run import Outcome
    from planner.profilers.roofline import Array

SATURATED_LAUNCHES = 10.0
"""A kernel keeps the GPU busy if it takes so many times as long as an empty one; shorter ones tell of no rate."""

LAUNCH_BOUND_FRACTION = 0.5
"""A pass of which launches alone would take this part says nothing of arithmetic or memory."""

IDENTIFIED_FRACTION = 0.5
"""A rate counts as measured if some timed pass spends at least this part of its time on it."""

BRACKET_FACTOR = 16.0
"""A fitted rate is sought up to so many times the largest that any timed pass shows."""

SMOOTHING = 0.35
"""Width, as a logarithm of tokens, over which a curve of layers is a mean: half of a doubling."""

HELD_BACK_FRACTION = 0.1
"""Attention that takes less time at twice the work by more than this is noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPoint:
    """One pass of some tokens through all layers but attention over keys and values; on one GPU."""

    number_format: str
    tokens: int
    seconds: float
    flops: float
    cold_bytes: float
    n_calls: float
    """Kernels that run one after the other."""
    is_check: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one GPU reached; None = the timings do not tell (`untold` says why)."""

    launch_s: float | None = None
    """The shortest time between two kernels: that of an empty one."""
    gemm_flops_per_s: Mapping[str, float]
    """By number format."""
    weight_bytes_per_s: float | None = None
    attention_flops_per_s: float | None = None
    kv_bytes_per_s: float | None = None
    allreduce_latency_s: float | None = None
    """Of one all-reduce over two GPUs."""
    link_bytes_per_s: float | None = None
    layer_factors: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """By number format and tokens of a pass through the layers: its time over what the rates say."""
    link_factors: Mapping[int, Mapping[float, float]] = field(default_factory=dict)
    """By GPUs and bytes of an all-reduce: its time beyond the latency over what the link's rate says."""
    untold: tuple[str, ...] = ()


def _timed(outcomes: Iterable[Outcome], *kinds: KernelKind) -> list[tuple[Kernel, float]]:
    """Return (kernel, seconds of one call) of what was timed, of the given kinds."""
    return [
        (outcome.kernel, outcome.timing.median_s)
        for outcome in outcomes
        if outcome.timing is not None and outcome.kernel.kind in kinds
    ]


def layer_points(outcomes: Sequence[Outcome], number_format: str, *, has_experts: bool) -> tuple[LayerPoint, ...]:
    """Return a pass through the layers for every number of tokens of which all parts were timed, fewest tokens first.

    `has_experts`: count the experts' products too; torch multiplies them in bf16 only.
    """
    parts: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        kernel = outcome.kernel
        is_product = kernel.kind is KernelKind.LINEAR and kernel.number_format == number_format
        if is_product or kernel.kind is KernelKind.ELEMENTWISE or (has_experts and kernel.kind is KernelKind.EXPERTS):
            parts.setdefault(kernel.step_tokens, []).append(outcome)
    n_roles = max((len(_roles(found)) for found in parts.values()), default=0)
    points = []
    for tokens, found in sorted(parts.items()):
        timed = [(outcome.kernel, outcome.timing.median_s) for outcome in found if outcome.timing is not None]
        if len(timed) < len(found) or len(_roles(found)) < n_roles or n_roles < 2:  # one: elementwise kernels alone
            continue
        points.append(
            LayerPoint(
                number_format=number_format,
                tokens=tokens,
                seconds=sum(kernel.count * seconds for kernel, seconds in timed),
                flops=sum(kernel.count * kernel.flops for kernel, _ in timed),
                cold_bytes=sum(kernel.count * kernel.cold_bytes for kernel, _ in timed),
                n_calls=sum(kernel.count for kernel, _ in timed),
                is_check=any(kernel.is_check for kernel, _ in timed),
            )
        )
    return tuple(points)


def _roles(outcomes: Iterable[Outcome]) -> set[tuple[str, int, int]]:
    return {(outcome.kernel.role, outcome.kernel.width_in, outcome.kernel.width_out) for outcome in outcomes}


def golden_minimum(loss: Callable[[float], float], low: float, high: float) -> float:
    """Return where `loss` is least between `low` and `high`, to a ten-thousandth of the distance.

    Examples
    --------
    >>> round(golden_minimum(lambda x: (x - 1.0) ** 2, 0.0, 4.0), 3)
    1.0
    """
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    width = high - low
    left, right = high - ratio * width, low + ratio * width
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-4 * width:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return (low + high) / 2.0


def _log_loss(points: Sequence[LayerPoint], flops_per_s: float, bytes_per_s: float) -> float:
    seconds, compute, read = _columns(points, flops_per_s, bytes_per_s)
    return float(np.sum(np.square(np.log(smooth_max(compute, read) / seconds))))


def _columns(points: Sequence[LayerPoint], flops_per_s: float, bytes_per_s: float) -> tuple[Array, Array, Array]:
    """Return (measured seconds, seconds of arithmetic, seconds of reading) of each point."""
    seconds = np.array([point.seconds for point in points])
    compute = np.array([point.flops for point in points]) / flops_per_s
    read = np.array([point.cold_bytes for point in points]) / bytes_per_s
    return seconds, compute, read


def _best_flops(points: Sequence[LayerPoint], bytes_per_s: float) -> tuple[float, float]:
    """Return (FLOP/s, loss) that fit the points of one format best at a given rate of reading."""
    largest = math.log(max(point.flops / point.seconds for point in points))

    def loss(log_rate: float) -> float:
        return _log_loss(points, math.exp(log_rate), bytes_per_s)

    best = golden_minimum(loss, largest - math.log(2.0), largest + math.log(BRACKET_FACTOR))
    return math.exp(best), loss(best)


def fit_layers(
    by_format: Mapping[str, Sequence[LayerPoint]], untold: list[str]
) -> tuple[dict[str, float], float | None]:
    """Return (FLOP/s by format, bytes/s) of least squared log error; one rate of reading for all formats."""
    points = [point for found in by_format.values() for point in found]
    if not points:
        untold.append("no pass through the layers was timed whole and outlasts its launches")
        return {}, None
    largest = math.log(max(point.cold_bytes / point.seconds for point in points))

    def loss(log_bytes: float) -> float:
        return sum(_best_flops(found, math.exp(log_bytes))[1] for found in by_format.values())

    rate = math.exp(golden_minimum(loss, largest - math.log(2.0), largest + math.log(BRACKET_FACTOR)))
    flops = {name: _best_flops(found, rate)[0] for name, found in by_format.items()}
    read_parts = []
    for name, found in by_format.items():
        seconds, compute, read = _columns(found, flops[name], rate)
        read_parts.append(float(np.max(read / seconds)))
        if float(np.max(compute / seconds)) < IDENTIFIED_FRACTION:
            untold.append(f"no timed pass in {name} is bound by arithmetic: raise --max-tokens")
            del flops[name]
    if max(read_parts) < IDENTIFIED_FRACTION:
        untold.append("no timed pass is bound by reading weights")
        return flops, None
    return flops, rate


def _saturated(timed: Iterable[tuple[Kernel, float]], launch_s: float) -> list[tuple[Kernel, float]]:
    return [
        (kernel, seconds)
        for kernel, seconds in timed
        if kernel.is_fused and not kernel.is_check and seconds >= SATURATED_LAUNCHES * launch_s
    ]


def _mean_rate(amounts: Iterable[float]) -> float | None:
    logs = [math.log(amount) for amount in amounts]
    return math.exp(sum(logs) / len(logs)) if logs else None


def fit_allreduce(timed: Sequence[tuple[Kernel, float]]) -> tuple[float, float] | None:
    """Return (latency, bytes/s) of least squared relative error, neither negative; None if there is too little."""
    points = [(kernel, seconds) for kernel, seconds in timed if not kernel.is_check]
    if len({kernel.tokens for kernel, _ in points}) < 2:
        return None
    seconds = np.array([value for _, value in points])
    columns = np.array(
        [[math.log2(kernel.batch), 2.0 * (kernel.batch - 1) / kernel.batch * kernel.cold_bytes] for kernel, _ in points]
    )
    scaled = columns / seconds[:, None]
    latency, per_byte = np.linalg.lstsq(scaled, np.ones(len(points)), rcond=None)[0]
    if per_byte <= 0:
        return None
    if latency < 0:
        per_byte = float(np.sum(scaled[:, 1]) / np.sum(np.square(scaled[:, 1])))
    return max(0.0, float(latency)), 1.0 / float(per_byte)


def layer_factors(points: Sequence[LayerPoint], flops_per_s: float, bytes_per_s: float) -> dict[int, float]:
    """Return the time of passes through the layers over what the rates say, by tokens.

    Each is a mean over its neighbours (Nadaraya and Watson's, of logarithms): some sizes split unevenly over a GPU's
    processors, and that says nothing of the sizes beside them.
    """
    seconds, compute, read = _columns(points, flops_per_s, bytes_per_s)
    places = np.log([point.tokens for point in points])
    nearness = np.exp(-0.5 * np.square((places[:, None] - places) / SMOOTHING))
    factors = np.exp(nearness @ np.log(seconds / smooth_max(compute, read)) / nearness.sum(axis=1))
    return {point.tokens: factor for point, factor in zip(points, factors.tolist(), strict=True)}


def link_factors(
    timed: Sequence[tuple[Kernel, float]], latency_s: float, bytes_per_s: float
) -> dict[int, dict[float, float]]:
    """Return the time of all-reduces beyond the latency over what the link's rate says, by GPUs and bytes.

    Short messages, of which the latency is the larger part, tell of no rate.
    """
    found: dict[int, dict[float, float]] = {}
    for kernel, seconds in timed:
        n = kernel.batch
        on_links = 2.0 * (n - 1) / n * kernel.cold_bytes / bytes_per_s
        beyond = seconds - latency_s * math.log2(n)
        if not kernel.is_check and beyond >= seconds / 2.0:
            found.setdefault(n, {})[kernel.cold_bytes] = beyond / on_links
    return found


def fit_rates(outcomes: Sequence[Outcome], formats: Sequence[str]) -> Rates:
    """Return the rates that the timings imply; shapes that are held back as checks have no part in it."""
    untold: list[str] = []
    launches = _timed(outcomes, KernelKind.LAUNCH)
    launch_s = launches[0][1] if launches else None
    floor_s = launch_s or 0.0
    by_format: dict[str, list[LayerPoint]] = {}
    for name in formats:
        points = [
            point
            for point in layer_points(outcomes, name, has_experts=name == "bf16")
            if not point.is_check and point.n_calls * floor_s <= LAUNCH_BOUND_FRACTION * point.seconds
        ]
        if points:
            by_format[name] = points
    flops, weight_bytes_per_s = fit_layers(by_format, untold)
    prefill = _saturated(_timed(outcomes, KernelKind.PREFILL_ATTENTION), floor_s)
    attention = _mean_rate(kernel.flops / seconds for kernel, seconds in prefill)
    if attention is None:
        untold.append("no prompt's attention in a fused kernel is long enough to tell its rate")
    decode = [
        (kernel, seconds)
        for kernel, seconds in _saturated(_timed(outcomes, KernelKind.DECODE_ATTENTION), floor_s)
        if attention is None or kernel.flops / attention <= seconds / 2
    ]
    kv = _mean_rate(kernel.cold_bytes / seconds for kernel, seconds in decode)
    if kv is None:
        untold.append("no decode attention in a fused kernel is long enough, and bound by reading, to tell its rate")
    # how tokens fall to experts is one model's own: its curve says nothing of another's
    has_experts = any(outcome.kernel.kind is KernelKind.EXPERTS for outcome in outcomes)
    all_reduces = _timed(outcomes, KernelKind.ALL_REDUCE)
    reduces = fit_allreduce(all_reduces)
    if reduces is None:
        untold.append("no all-reduce was timed at two sizes or more")
    return Rates(
        launch_s=launch_s,
        gemm_flops_per_s=flops,
        weight_bytes_per_s=weight_bytes_per_s,
        attention_flops_per_s=attention,
        kv_bytes_per_s=kv,
        allreduce_latency_s=None if reduces is None else reduces[0],
        link_bytes_per_s=None if reduces is None else reduces[1],
        layer_factors={
            name: layer_factors(by_format[name], rate, weight_bytes_per_s)
            for name, rate in flops.items()
            if weight_bytes_per_s is not None and not has_experts
        },
        link_factors={} if reduces is None else link_factors(all_reduces, *reduces),
        untold=tuple(untold),
    )


def layers_s(point: LayerPoint, rates: Rates) -> float | None:
    """Return what the fitted rates say of a pass through the layers; None where they lack one."""
    flops, read = rates.gemm_flops_per_s.get(point.number_format), rates.weight_bytes_per_s
    if flops is None or read is None:
        return None
    return max(point.n_calls * (rates.launch_s or 0.0), math.hypot(point.flops / flops, point.cold_bytes / read))


def kernel_s(kernel: Kernel, rates: Rates) -> float | None:
    """Return what the fitted rates say of one call of a kernel; None where they lack one."""
    predicted = _kernel_s(kernel, rates)
    return None if predicted is None else max(predicted, rates.launch_s or 0.0)


def _kernel_s(kernel: Kernel, rates: Rates) -> float | None:
    if kernel.kind in {KernelKind.LINEAR, KernelKind.HEAD, KernelKind.EXPERTS}:
        flops, read = rates.gemm_flops_per_s.get(kernel.number_format), rates.weight_bytes_per_s
        return None if flops is None or read is None else math.hypot(kernel.flops / flops, kernel.cold_bytes / read)
    if kernel.kind is KernelKind.PREFILL_ATTENTION and rates.attention_flops_per_s:
        return kernel.flops / rates.attention_flops_per_s
    if kernel.kind is KernelKind.DECODE_ATTENTION and rates.kv_bytes_per_s:
        compute = kernel.flops / rates.attention_flops_per_s if rates.attention_flops_per_s else 0.0
        return max(kernel.cold_bytes / rates.kv_bytes_per_s, compute)
    if kernel.kind is KernelKind.ALL_REDUCE and rates.link_bytes_per_s is not None:
        moved = 2.0 * (kernel.batch - 1) / kernel.batch * kernel.cold_bytes
        return (rates.allreduce_latency_s or 0.0) * math.log2(kernel.batch) + moved / rates.link_bytes_per_s
    return None


# checks


def impossible(outcomes: Iterable[Outcome], gpu: GpuSpec) -> dict[str, str]:
    """Return, by `Kernel.key`, why a timing is faster than the GPU's data sheet allows; {} if all are possible."""
    found = {}
    slack = 1.0 + TOLERANCE_FRACTION
    for outcome in outcomes:
        if outcome.timing is None or outcome.kernel.kind in {KernelKind.LAUNCH, KernelKind.ALL_REDUCE}:
            continue
        kernel, seconds = outcome.kernel, outcome.timing.median_s
        peak = gpu.peak_flops.get(kernel.number_format, max(gpu.peak_flops.values()))
        if kernel.flops > peak * seconds * slack:
            rate = kernel.flops / seconds / 1e12
            found[kernel.key] = f"{rate:.4g} TFLOP/s are more than the dense peak, {peak / 1e12:.4g}"
        elif kernel.cold_bytes > gpu.bandwidth_bytes_per_s * seconds * slack:
            rate = kernel.cold_bytes / seconds / 1e9
            found[kernel.key] = f"{rate:.4g} GB/s are more than the memory's {gpu.bandwidth_bytes_per_s / 1e9:.4g}"
    return found


def out_of_order(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """Return the attention shapes that took less time than one with half the work did: a sign of noise."""
    series: dict[tuple[str, ...], list[tuple[Kernel, float]]] = {}
    for kernel, seconds in _timed(outcomes, KernelKind.PREFILL_ATTENTION, KernelKind.DECODE_ATTENTION):
        series.setdefault(kernel.series, []).append((kernel, seconds))
    return tuple(
        large.key
        for found in series.values()
        for large, seconds in found
        if any(
            2 * small.work <= large.work and small_s * (1.0 - HELD_BACK_FRACTION) > seconds for small, small_s in found
        )
    )


# rows


def _curves(rates: Rates, gpu: GpuSpec, tensor_parallel: int) -> Iterator[tuple[str, str, float]]:
    """Yield (parameter, scope, factor) of what the rates alone do not tell, size by size."""
    for name, by_tokens in sorted(rates.layer_factors.items()):
        for tokens, factor in sorted(by_tokens.items()):
            yield "layer_time_factor", f"{gpu.name}/{name}@{tokens}", factor
    kind = link_kind(gpu, tensor_parallel)
    for size, factor in sorted(rates.link_factors.get(tensor_parallel, {}).items()):
        yield "link_time_factor", f"{gpu.name}/{kind}/{tensor_parallel}@{size:.0f}", factor


def efficiency_rows(
    rates: Rates, gpu: GpuSpec, model: ModelArchitecture, *, source: str, tensor_parallel: int
) -> tuple[EfficiencyRow, ...]:
    """Return the fitted rates as rows of profiles/efficiency.csv, their scope being this very GPU.

    Times of an engine's own (`step_overhead_s` and the like) are not among them: no engine ran. Neither is
    `allreduce_latency_s`: for short messages engines have all-reduces of their own, whose fitted latency is about half
    of NCCL's (docs/reference/profile.md). A fit may end above a data-sheet rate, as its form leaves a little over; the
    row is then held to the data sheet. The cache was read with the model's own KV heads; what a GPU full of heads would
    reach follows from that by the exponent of engines that nothing was fitted for (`roofline.kv_reach`).
    """
    rows: list[EfficiencyRow] = []

    def add(parameter: str, scope: str, value: float, unit: str, reason: str) -> None:
        rows.append(
            EfficiencyRow(parameter=parameter, scope=scope, value=value, unit=unit, source=source, reason=reason)
        )

    for name, rate in sorted(rates.gemm_flops_per_s.items()):
        if name in gpu.peak_flops:
            share = min(1.0, rate / gpu.peak_flops[name])
            add(f"gemm_fraction_{name}", gpu.name, share, "of dense peak", "linear layers with elementwise kernels")
    sheet = gpu.bandwidth_bytes_per_s
    if rates.weight_bytes_per_s is not None:
        share = min(1.0, rates.weight_bytes_per_s / sheet)
        add("bandwidth_fraction", gpu.name, share, "of data-sheet rate", "weights of linear layers")
    if rates.kv_bytes_per_s is not None:
        exponent = default_params().value("kv_heads_exponent")
        reach = kv_reach(model, EngineConfig(tensor_parallel=tensor_parallel), exponent)
        share = min(1.0, rates.kv_bytes_per_s / sheet / reach)
        reason = f"torch's fused attention in decoding, over {reach:.3g} for this model's KV heads"
        add("kv_bandwidth_fraction", gpu.name, share, "of data-sheet rate", reason)
    if rates.attention_flops_per_s is not None and "bf16" in gpu.peak_flops:
        share = min(1.0, rates.attention_flops_per_s / gpu.peak_flops["bf16"])
        add("attention_fraction", gpu.name, share, "of dense bf16 peak", "torch's fused attention over prompts")
    if rates.link_bytes_per_s is not None:
        kind = link_kind(gpu, tensor_parallel)
        share = min(1.0, rates.link_bytes_per_s / link_bytes_per_s(gpu, kind))
        scope, reason = f"{gpu.name}/{kind}", "torch.distributed all-reduces of hidden rows"
        add("link_fraction", scope, share, "of link rate", reason)
    for parameter, scope, factor in _curves(rates, gpu, tensor_parallel):
        add(parameter, scope, factor, "of the rate's time", "timed kernels over what the rates above say")
    return tuple(rows)
