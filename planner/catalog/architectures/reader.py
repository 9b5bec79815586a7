"""A config.json's content to a ModelArchitecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.catalog.architectures.blocks import group_layers
from planner.catalog.architectures.fields import Fields, Flag
from planner.catalog.architectures.layers import standard_layers, unsupported
from planner.catalog.architectures.quantization import quantization
from planner.catalog.architectures.registry import DIALECTS, LLAMA
from planner.domain.model import ModelArchitecture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.catalog.architectures.dialect import Dialect

LANGUAGE_PARTS = ("text_config", "llm_config", "language_config")
"""Where multimodal models keep the language model."""
MAX_STRETCH = 10_000
"""No context is scaled further."""
DECODER_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
UNFAMILIAR = (
    "mamba", "ssm", "conv", "linear_", "state_size", "block_configs", "hybrid", "altup", "laurel", "rwkv",
    "attn_config", "ffn_config", "compress", "num_kv_shared_layers", "layers_block_type", "is_encoder_decoder",
)  # fmt: skip
"""Beginnings of fields that tell of structures a model of unknown type cannot be assumed to share with Llama."""


def architecture_from_config(
    config: Mapping[str, Any], *, name: str, source: str, confidence: str
) -> ModelArchitecture:
    """Return the architecture that a Hugging Face config describes; of multimodal models the language part.

    A model_type that is not known is read as a Llama-like transformer if the config has the usual fields and none that
    tell of another structure; `confidence` is then "assumed".

    Parameters
    ----------
    config : the content of config.json.
    name, source, confidence : as in ModelArchitecture; a `source` of a user's file is its path, shown in errors.

    Raises
    ------
    InputError: naming the missing or invalid field.
    UnsupportedFormatError: for structures that are not modelled.
    """
    outer = Fields(config, source)
    part = next((part for part in LANGUAGE_PARTS if outer.has(part)), None)
    fields = outer if part is None else outer.child(part)
    dialect, is_known = _dialect(fields, outer)
    layers = (dialect.layers or standard_layers)(fields, dialect)
    hidden_size, vocab_size = fields.integer(*dialect.hidden_size), fields.integer("vocab_size", "padded_vocab_size")
    context = fields.integer(*dialect.context, default=dialect.default_context_tokens)
    width = fields.optional_integer("word_embed_proj_dim")
    published = quantization(fields, outer)
    return ModelArchitecture(
        name=name,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        layers=group_layers(layers),
        is_embedding_tied=_is_tied(fields, outer, dialect),
        max_context_tokens=_stretched(fields, context),
        native_precision=published.precision,
        native_mixer_bytes=published.mixer_bytes,
        native_mlp_bytes=published.mlp_bytes,
        source=source,
        confidence=confidence if is_known else "assumed",
        embedding_width=None if width == hidden_size else width,
        extra_params=_extra_params(fields, dialect, context),
    )


def family_of(config: Mapping[str, Any]) -> str:
    """Return the model_type of a config that has been read, of multimodal models the language part's."""
    part = next((config[part] for part in LANGUAGE_PARTS if config.get(part) is not None), config)
    return str(part.get("model_type") or config.get("model_type") or "")


def _dialect(fields: Fields, outer: Fields) -> tuple[Dialect, bool]:
    for place in (fields, outer):
        if dialect := DIALECTS.get(place.text("model_type")):
            return dialect, True
    model_type = fields.text("model_type") or outer.text("model_type")
    strange = next((key for key in fields.values if key.startswith(UNFAMILIAR) and fields.values[key]), None)
    if strange is not None:
        raise unsupported(fields, strange, f"The model_type {model_type!r} is not known and its {strange} is unusual.")
    architectures = outer.sequence("architectures")
    if architectures and not any(str(entry).endswith(DECODER_SUFFIXES) for entry in architectures):
        raise unsupported(outer, "architectures", f"{architectures[0]!r} does not generate text.")
    return LLAMA, False


def _is_tied(fields: Fields, outer: Fields, dialect: Dialect) -> bool:
    flag = Flag("tie_word_embeddings", default=dialect.is_tied)
    return fields.flag(flag) if fields.has(flag.name) else outer.flag(flag)


def _stretched(fields: Fields, context: int) -> int:
    """Return the context length with YaRN scaling, which configs state apart from the trained length."""
    scaling = fields.child("rope_scaling")
    kind = scaling.values.get("rope_type", scaling.values.get("type"))
    factor = scaling.values.get("factor")
    trained = scaling.optional_integer("original_max_position_embeddings")
    if kind != "yarn" or trained is None or factor is None:
        return context
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor <= MAX_STRETCH:
        raise scaling.error("factor", f"factor must be a number from 1 to {MAX_STRETCH}, not {factor!r:.40}.")
    return max(context, int(trained * factor))


def _extra_params(fields: Fields, dialect: Dialect, context: int) -> float:
    """Return the parameters outside of layers and token tables, but for the final norm's weight."""
    hidden_size = fields.integer(*dialect.hidden_size)
    norm_bias = hidden_size if fields.flag(dialect.has_norm_bias) else 0
    extra = norm_bias
    if dialect.has_embedding_norm:
        extra += hidden_size + norm_bias
    if dialect.learned_positions is not None:
        extra += (context + dialect.learned_positions) * hidden_size
    if dialect.has_head_bias:
        extra += fields.integer("vocab_size")
    width = fields.optional_integer("word_embed_proj_dim")
    if width is not None and width != hidden_size:
        extra += 2 * width * hidden_size
    return float(extra)
