"""What physics allows: no profile may be faster than its FLOPs at the dense peak or its bytes at full bandwidth.

Independent of the estimator on purpose: no efficiency, no fitted number, only the data sheet and the model's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.domain.precision import BYTES_PER_PARAMETER, KV_BYTES_PER_ELEMENT, SPARSE
from planner.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from planner.domain.hardware import GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.profilers.schema import MeasuredPoint

TOLERANCE_FRACTION = 0.02
"""Rounding of data sheets and of published figures; a profile may beat the floor by so much."""

_MATH_BY_PRECISION = {
    "bf16": ("bf16",),
    "fp16": ("bf16",),
    "fp8": ("bf16", "fp8"),
    "int8": ("bf16", "fp8", "int8"),
}
"""Fastest arithmetic that weights of a precision can use; anything else is held against the fastest there is."""

SPARSE_GAIN = 2.0
"""Sparse tensor cores skip two of every four weights: at most twice the dense rate (arXiv 2104.08378)."""


def peak_flops(gpu: GpuSpec, precision: str) -> float:
    """Return the largest rate that weights of `precision` could reach on one GPU, in FLOP/s of the dense product."""
    gain = SPARSE_GAIN if precision in SPARSE else 1.0
    formats = _MATH_BY_PRECISION.get(precision, tuple(gpu.peak_flops))
    return gain * max((gpu.peak_flops[name] for name in formats if name in gpu.peak_flops), default=float("inf"))


def request_flops(model: ModelArchitecture, input_tokens: float, output_tokens: float) -> float:
    """Return FLOPs that serving one request takes at least: 2 per active parameter and token, attention left out."""
    layers = sum(group.count * (group.mixer_params + group.mlp_active_params) for group in model.layers)
    head = float(model.vocab_size) * (model.embedding_width or model.hidden_size)
    return 2.0 * layers * (input_tokens + output_tokens - 1.0) + 2.0 * head * output_tokens


def step_bytes(model: ModelArchitecture, precision: str) -> float:
    """Return the bytes that one decode step reads at least: what one token's path through the layers weighs.

    Weights of a precision that is not stated are held to the smallest dense one.
    """
    smallest = min(size for name, size in BYTES_PER_PARAMETER.items() if name not in SPARSE)
    layers = sum(group.count * (group.mixer_params + group.mlp_active_params) for group in model.layers)
    return layers * BYTES_PER_PARAMETER.get(precision, smallest)


def _kv_read_bytes(model: ModelArchitecture, context_tokens: float) -> float:
    """Bytes of cache that one generated token reads at least, in the smallest cache format."""
    element = min(KV_BYTES_PER_ELEMENT.values())
    total = 0.0
    for group in model.layers:
        limits = (context_tokens, group.window_tokens, group.attended_tokens_cap)
        seen = min(limit for limit in limits if limit is not None)
        total += group.count * group.kv_elements_per_token * seen * element
    return total


def _largest_batch(
    model: ModelArchitecture, gpu: GpuSpec, *, n_gpus: int, precision: str, input_tokens: float
) -> float:
    """Return how many sequences the whole memory holds beside the weights."""
    per_sequence = _kv_read_bytes(model, input_tokens)
    room = max(0.0, n_gpus * gpu.memory_bytes - step_bytes(model, precision))
    return room / per_sequence if per_sequence else float("inf")


def rate_bounds_rps(
    model: ModelArchitecture,
    gpu: GpuSpec,
    *,
    n_gpus: int,
    precision: str,
    input_tokens: float,
    output_tokens: float,
    batch: float | None = None,
) -> tuple[float, float]:
    """Return the largest rates of one replica that its arithmetic and its memory bandwidth allow, in requests/s.

    Parameters
    ----------
    batch : sequences that decode at once; None = as many as the whole memory holds.
    """
    by_flops = n_gpus * peak_flops(gpu, precision) / request_flops(model, input_tokens, output_tokens)
    if output_tokens <= 1:
        return by_flops, float("inf")
    if batch is None:
        batch = _largest_batch(model, gpu, n_gpus=n_gpus, precision=precision, input_tokens=input_tokens)
    shared = step_bytes(model, precision) / batch if batch else float("inf")
    read = shared + _kv_read_bytes(model, input_tokens)
    return by_flops, n_gpus * gpu.bandwidth_bytes_per_s / read / max(output_tokens - 1.0, 1.0)


def violations(point: MeasuredPoint, model: ModelArchitecture, gpu: GpuSpec) -> tuple[str, ...]:
    """Return in words every physical bound that `point` breaks; () if it is possible."""
    found = []
    slack = 1.0 + TOLERANCE_FRACTION
    flops = point.n_gpus * peak_flops(gpu, point.precision)
    bandwidth = point.n_gpus * gpu.bandwidth_bytes_per_s
    weights = step_bytes(model, point.precision)
    cache = _kv_read_bytes(model, point.input_tokens)
    if point.rate_rps:
        is_load_stated = point.load_kind in {"concurrency", "static_batch"} and point.load
        most, most_read = rate_bounds_rps(
            model,
            gpu,
            n_gpus=point.n_gpus,
            precision=point.precision,
            input_tokens=point.input_tokens,
            output_tokens=point.output_tokens,
            batch=point.load if is_load_stated else None,
        )
        if point.rate_rps > most * slack:
            found.append(f"{point.rate_rps:.4g} requests/s need more FLOPs than the dense peak gives ({most:.4g}/s)")
        if point.rate_rps > most_read * slack:
            found.append(
                f"{point.rate_rps:.4g} requests/s read more bytes than the memory delivers ({most_read:.4g}/s)"
            )
    least = max(request_flops(model, point.input_tokens, 1.0) / flops, weights / bandwidth)
    found += [
        f"TTFT {name} {value * 1e3:.4g} ms is below the prompt's {least * 1e3:.4g} ms of arithmetic or weight reads"
        for name, value in point.ttft_s.items()
        if value * slack < least
    ]
    least = (weights + cache) / bandwidth
    found += [
        f"TPOT {name} {value * 1e3:.4g} ms is below the {least * 1e3:.4g} ms in which the weights can be read"
        for name, value in point.tpot_s.items()
        if value * slack < least
    ]
    return tuple(found)


def check_points(points: Iterable[MeasuredPoint], model: ModelArchitecture, gpu: GpuSpec) -> None:
    """Refuse a profile that is faster than physics allows.

    Raises
    ------
    InputError: for the first point that breaks a bound, with the bound.
    """
    for point in points:
        broken = violations(point, model, gpu)
        if broken:
            raise InputError(
                f"{point.model} on {point.n_gpus} x {point.gpu} at {point.size}: {'; '.join(broken)}.",
                hint="Check units (ms, requests/s of the whole replica), gpu_count and precision; figures taken with "
                "prefix caching or speculative decoding do not describe a replica that serves new prompts.",
                where=point.where,
            )
