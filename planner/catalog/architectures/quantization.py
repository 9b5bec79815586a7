"""The number format that a checkpoint's weights are published in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from planner.domain.precision import BYTES_PER_PARAMETER, UNQUANTIZED_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.catalog.architectures.fields import Fields

DTYPES: Mapping[str, str] = MappingProxyType({"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"})
ALGORITHMS: Mapping[str, str] = MappingProxyType(
    {
        "fp8": "fp8",
        "fbgemm_fp8": "fp8",
        "fp8_pb_wo": "fp8",
        "nvfp4": "nvfp4",
        "nvfp4_awq": "nvfp4",
        "mxfp4": "mxfp4",
        "w4a16_awq": "int4",
        "w4a8_awq": "int4",
        "int4_awq": "int4",
        "w8a8_sq_per_channel": "int8",
        "int8_sq": "int8",
    }
)
INTEGER_METHODS = frozenset({"awq", "gptq", "auto-round", "bitsandbytes"})
SCALE_BYTES: Mapping[str, float] = MappingProxyType({"int4": 2.0, "nvfp4": 1.0, "mxfp4": 1.0})
"""Bytes of one group's scale (16-bit in AWQ, GPTQ and compressed-tensors; 8-bit in the float formats)."""
ZERO_POINT_BYTES = 0.5
MICROSCALING_GROUP = 32
"""Weights per scale in MXFP4 (OCP microscaling formats, 2023); NVFP4 has 16."""
NARROWEST_FIRST = ("nvfp4", "mxfp4", "int4", "fp8", "int8")
EXCLUSION_LISTS = ("ignore", "exclude_modules", "modules_to_not_convert")
MIXER_WEIGHTS = re.compile(r"(self_attn|linear_attn)(\*|\.\*)?$|self_attn\.(q|k|v|o|q_a|q_b|kv_a|kv_b)_proj")
"""Exclusions that mean an attention block's own projections, rather than its norms or indexer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How a checkpoint's weights are published."""

    precision: str
    """In a mix of formats, the narrowest."""
    mixer_bytes: float | None = None
    """Bytes per parameter of token mixers, scales included; None = not told."""
    mlp_bytes: float | None = None


def quantization(fields: Fields, outer: Fields) -> Quantization:
    """Return how the weights are published.

    Parameters
    ----------
    fields : the language model's config.
    outer : the whole config: the same, but for multimodal models.
    """
    for place in (outer, fields):
        config = place.mapping("quantization_config")
        if precision := _format(config):
            return _detailed(config, precision)
    for place in (fields, outer):
        for name in ("torch_dtype", "dtype"):
            if place.text(name) in DTYPES:
                return Quantization(precision=DTYPES[place.text(name)])
    return Quantization(precision="bf16")


def _format(config: Mapping[str, Any]) -> str:
    for name in ("quant_algo", "quant_method"):
        algorithm = str(config.get(name, "")).lower()
        if algorithm in ALGORITHMS:
            return ALGORITHMS[algorithm]
    if str(config.get("quant_method", "")).lower() in INTEGER_METHODS:
        bits = config.get("bits", 8 if config.get("load_in_8bit") else 4)
        return "int4" if bits == 4 else "int8" if bits == 8 else ""
    found = _group_formats(config)
    return next((precision for precision in NARROWEST_FIRST if precision in found), "")


def _detailed(config: Mapping[str, Any], precision: str) -> Quantization:
    """Return the bytes per parameter as far as the config tells: group sizes, and what is not quantised.

    Where two formats are mixed, the wider one is taken to be the mixers': attention is the more sensitive part.
    """
    mlp_bytes = _bytes_per_parameter(config, precision)
    listed = [config[name] for name in EXCLUSION_LISTS if isinstance(config.get(name), list)]
    formats = _group_formats(config)
    if any(MIXER_WEIGHTS.search(str(pattern).removesuffix(".*")) for patterns in listed for pattern in patterns):
        return Quantization(precision=precision, mixer_bytes=UNQUANTIZED_BYTES, mlp_bytes=mlp_bytes)
    if len(formats) > 1:
        mixer_bytes = max(BYTES_PER_PARAMETER[name] for name in formats)
        return Quantization(precision=precision, mixer_bytes=mixer_bytes, mlp_bytes=mlp_bytes)
    return Quantization(precision=precision, mixer_bytes=mlp_bytes if listed else None, mlp_bytes=mlp_bytes)


def _bytes_per_parameter(config: Mapping[str, Any], precision: str) -> float:
    groups = [config, *(weights for weights in _weight_groups(config) if isinstance(weights, dict))]
    sizes = [group.get(name) for group in groups for name in ("group_size", "q_group_size")]
    size = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    if precision not in SCALE_BYTES or size is None:
        return BYTES_PER_PARAMETER[precision]
    has_zero_point = precision == "int4" and (config.get("zero_point") is True or config.get("sym") is False)
    return 0.5 + (SCALE_BYTES[precision] + (ZERO_POINT_BYTES if has_zero_point else 0.0)) / size


def _weight_groups(config: Mapping[str, Any]) -> list[Any]:
    groups = config.get("config_groups") or []
    listed = list(groups.values()) if isinstance(groups, dict) else groups if isinstance(groups, list) else []
    return [group.get("weights") for group in (config, *listed) if isinstance(group, dict)]


def _group_formats(config: Mapping[str, Any]) -> set[str]:
    return {name for weights in _weight_groups(config) if (name := _weight_format(weights))}


def _weight_format(weights: Any) -> str:  # noqa: ANN401 - a part of somebody's JSON
    if not isinstance(weights, dict):
        return ""
    four_bit_float = "mxfp4" if weights.get("group_size") == MICROSCALING_GROUP else "nvfp4"
    formats = {"4 float": four_bit_float, "8 float": "fp8", "4 int": "int4", "8 int": "int8"}
    return formats.get(f"{weights.get('num_bits')} {weights.get('type')}", "")
