"""Number formats of weights and KV caches, and the bytes that a model takes in them."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.model import ModelArchitecture

BYTES_PER_PARAMETER: Mapping[str, float] = MappingProxyType(
    {
        "fp32": 4.0,
        "bf16": 2.0,
        "fp16": 2.0,
        "fp8": 1.0,
        "int8": 1.0,
        "int4": 0.5 + (2.0 + 0.5) / 128,
        "nvfp4": 0.5 + 1 / 16,
        "mxfp4": 0.5 + 1 / 32,
        "int8-2:4": (2 * 8 + 2 * 2) / 4 / 8,
        "int4-2:4": (2 * 4 + 2) / 4 / 8,
    }
)
"""Bytes per quantised parameter, scales included.

int4: a 16-bit scale and a 4-bit zero point per group of 128 weights (AWQ, GPTQ). nvfp4: one 8-bit scale per 16 weights.
mxfp4: one 8-bit scale per 32 weights (OCP microscaling formats, 2023). fp8 and int8: scales per block of 128 x 128, row
or tensor are below 0.1% and left out. 2:4 sparsity keeps two of four weights: int8 stores 2 bits of place for each of
them (cuSPARSELt), int4 keeps pairs and stores 2 bits for both (GPUSQ-ViT, CVPR 2023); scales per row are left out.
"""

SPARSE: frozenset[str] = frozenset({"int8-2:4", "int4-2:4"})
"""Formats with two zeros among every four weights, which sparse tensor cores skip."""

KV_BYTES_PER_ELEMENT: Mapping[str, float] = MappingProxyType(
    {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}
)
"""Bytes per cached element."""

UNQUANTIZED_BYTES = BYTES_PER_PARAMETER["bf16"]
"""Bytes per parameter of what quantised checkpoints leave alone."""

EXPERTS_ONLY: frozenset[str] = frozenset({"nvfp4", "mxfp4"})
"""Formats in which mixture-of-experts models are published with their attention unquantised (gpt-oss, DeepSeek-V3.1,
Kimi-K2.5, MiniMax-M2.5 and GLM-5; Qwen3-235B-A22B-NVFP4 is an exception)."""


def _lookup(table: Mapping[str, float], precision: str, what: str) -> float:
    if precision not in table:
        raise InputError(f"{precision!r} is not a number format of {what}.", hint=f"Use one of {', '.join(table)}.")
    return table[precision]


def bytes_per_parameter(precision: str) -> float:
    """Return the bytes that one quantised parameter takes, scales included.

    Raises
    ------
    InputError: if `precision` is not known.

    Examples
    --------
    >>> bytes_per_parameter("mxfp4")
    0.53125
    """
    return _lookup(BYTES_PER_PARAMETER, precision, "weights")


def weight_bytes(model: ModelArchitecture, precision: str) -> float:
    """Return the bytes of all weights of `model` in `precision`.

    Token tables, positions and the final norm stay in bf16, as published checkpoints have them; the norms, biases and
    routers inside layers (below 0.1% of the parameters) are counted in the layers' format. In the formats of
    `EXPERTS_ONLY`, attention and state-space blocks of mixture-of-experts models stay in bf16 too. In the format that
    the model is published in, what its quantization_config says goes before these defaults.

    Raises
    ------
    InputError: if `precision` is not known.
    """
    mlp = bytes_per_parameter(precision)
    unquantized = max(mlp, UNQUANTIZED_BYTES)
    is_moe = any(group.n_experts for group in model.layers)
    mixer = unquantized if is_moe and precision in EXPERTS_ONLY else mlp
    if precision == model.native_precision:
        mixer = mixer if model.native_mixer_bytes is None else model.native_mixer_bytes
        mlp = mlp if model.native_mlp_bytes is None else model.native_mlp_bytes
    inside = sum(group.count * (group.mixer_params * mixer + group.mlp_params * mlp) for group in model.layers)
    outside = model.total_params - sum(group.count * (group.mixer_params + group.mlp_params) for group in model.layers)
    return inside + outside * unquantized


def kv_cache_bytes(model: ModelArchitecture, context_tokens: float, kv_precision: str = "bf16") -> float:
    """Return the bytes of KV cache that one sequence of `context_tokens` tokens holds, windows taken into account.

    Recurrent states are not in it (`LayerGroup.state_bytes_per_sequence`).

    Raises
    ------
    InputError: if `kv_precision` is not known.
    """
    return model.kv_elements(context_tokens) * _lookup(KV_BYTES_PER_ELEMENT, kv_precision, "KV caches")


def state_bytes(model: ModelArchitecture) -> float:
    """Return the bytes of recurrent state that one sequence of any length holds; 0 without linear mixers."""
    return sum(group.count * group.state_bytes_per_sequence for group in model.layers)
