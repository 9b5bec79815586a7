"""model_type to dialect. Supporting a new family is one line here, unless its blocks are of a new kind."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.catalog.architectures import layers
from planner.catalog.architectures.dialect import Dialect
from planner.catalog.architectures.fields import Flag
from planner.domain.model import MixerKind

if TYPE_CHECKING:
    from collections.abc import Mapping

_GPT2_NAMES = Dialect(
    hidden_size=("n_embd", "hidden_size"),
    n_layers=("n_layer", "num_hidden_layers"),
    n_heads=("n_head", "num_attention_heads"),
    context=("n_positions", "max_position_embeddings"),
    mlp_width=("n_inner",),
    mlp_width_factor=4,
    is_gated=False,
    has_norm_bias=True,
)

LLAMA = Dialect(
    has_qkv_bias=Flag("attention_bias"), has_output_bias=Flag("attention_bias"), has_mlp_bias=Flag("mlp_bias")
)
_PLAIN = Dialect()
_QWEN2 = Dialect(has_qkv_bias=True)
_QWEN2_MOE = replace(_QWEN2, has_shared_expert_gate=True)
_QWEN3 = Dialect(has_qkv_bias=Flag("attention_bias"), has_output_bias=Flag("attention_bias"), qk_norm="head")
_QWEN3_NEXT = replace(
    _QWEN3,
    full_attention_every=("full_attention_interval", 4),
    other_mixer=MixerKind.LINEAR,
    has_output_gate=Flag("attn_output_gate", default=True),
    has_shared_expert_gate=True,
)
_GEMMA = Dialect(is_tied=True, has_qkv_bias=Flag("attention_bias"), has_output_bias=Flag("attention_bias"))
_GEMMA2 = replace(_GEMMA, norms_per_layer=4, full_attention_every=("sliding_window_pattern", 2))
_GEMMA3 = replace(_GEMMA2, full_attention_every=("sliding_window_pattern", 6), qk_norm="head")
_GEMMA4 = replace(_GEMMA3, layers=layers.gemma4_layers)
_DEEPSEEK = Dialect(has_router_bias=True)
_GLM4_MOE = Dialect(
    has_qkv_bias=Flag("attention_bias"), qk_norm="head", has_qk_norm=Flag("use_qk_norm"), has_router_bias=True
)
_ALL_BIASES = Dialect(is_gated=False, has_qkv_bias=True, has_output_bias=True, has_mlp_bias=True, has_norm_bias=True)
_GPT2 = replace(
    _GPT2_NAMES,
    has_qkv_bias=True,
    has_output_bias=True,
    has_mlp_bias=True,
    is_tied=True,
    learned_positions=0,
)
_OPT_BIAS = Flag("enable_bias", default=True)
_STARCODER2_BIAS = Flag("use_bias", default=True)
_LLAMA4 = replace(
    LLAMA,
    mlp_width=("intermediate_size_mlp",),
    full_attention_every=("no_rope_layer_interval", 4),
    unnamed_shared_experts=1,
)

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "aquila": _PLAIN,
        "bloom": replace(
            _ALL_BIASES,
            hidden_size=("hidden_size", "n_embed"),
            n_layers=("n_layer", "num_hidden_layers"),
            n_heads=("n_head", "num_attention_heads"),
            context=("seq_length",),
            default_context_tokens=2048,
            mlp_width=("n_inner",),
            mlp_width_factor=4,
            has_embedding_norm=True,
            is_tied=True,
        ),
        "cohere": Dialect(norms_per_layer=1, is_tied=True, has_qkv_bias=Flag("attention_bias")),
        "cohere2": Dialect(
            norms_per_layer=1,
            is_tied=True,
            has_qkv_bias=Flag("attention_bias"),
            full_attention_every=("sliding_window_pattern", 4),
        ),
        "deci": replace(_PLAIN, layers=layers.variable_gqa_layers),
        "deepseek_v2": _PLAIN,
        "deepseek_v3": _DEEPSEEK,
        "deepseek_v32": _DEEPSEEK,
        "falcon": Dialect(
            n_layers=("num_hidden_layers", "n_layer"),
            n_heads=("num_attention_heads", "n_head"),
            n_kv_heads=("num_kv_heads", "n_head_kv"),
            default_context_tokens=2048,
            mlp_width=("ffn_hidden_size",),
            mlp_width_factor=4,
            is_gated=False,
            has_qkv_bias=Flag("bias"),
            has_output_bias=Flag("bias"),
            has_mlp_bias=Flag("bias"),
            has_norm_bias=True,
            is_tied=True,
            layers=layers.falcon_layers,
        ),
        "gemma": _GEMMA,
        "gemma2": _GEMMA2,
        "gemma3": _GEMMA3,
        "gemma3_text": _GEMMA3,
        "gemma4": _GEMMA4,
        "gemma4_text": _GEMMA4,
        "glm4_moe": _GLM4_MOE,
        "glm4_moe_lite": _DEEPSEEK,
        "glm_moe_dsa": _DEEPSEEK,
        "gpt2": _GPT2,
        "gpt_bigcode": replace(_GPT2, is_multi_query=Flag("multi_query", default=True)),
        "gpt_neox": _ALL_BIASES,
        "gpt_oss": Dialect(
            has_qkv_bias=True,
            has_output_bias=True,
            full_attention_every=("sliding_window_pattern", 2),
            has_sinks=True,
            has_router_bias=True,
            has_expert_bias=True,
        ),
        "gptj": replace(_GPT2_NAMES, has_mlp_bias=True, norms_per_layer=1, has_head_bias=True),
        "granite": replace(LLAMA, is_tied=True),
        "internlm": Dialect(has_qkv_bias=Flag("bias"), has_output_bias=Flag("bias")),
        "internlm2": Dialect(has_qkv_bias=Flag("bias"), has_output_bias=Flag("bias")),
        "kimi_k2": _DEEPSEEK,
        "llama": LLAMA,
        "llama4": _LLAMA4,
        "llama4_text": _LLAMA4,
        "mimo_v2_flash": Dialect(has_router_bias=True, has_qkv_bias=Flag("attention_bias")),
        "minimax_m2": Dialect(qk_norm="full", has_qk_norm=Flag("use_qk_norm", default=True), has_router_bias=True),
        "ministral": _PLAIN,
        "mistral": _PLAIN,
        "mixtral": _PLAIN,
        "mpt": Dialect(
            hidden_size=("d_model",),
            n_layers=("n_layers",),
            n_heads=("n_heads",),
            context=("max_seq_len",),
            mlp_width=("ffn_hidden_size",),
            mlp_width_factor=4,
            is_gated=False,
            is_tied=True,
            layers=layers.mpt_layers,
        ),
        "nemotron-nas": replace(_PLAIN, layers=layers.nas_layers),
        "nemotron_h": Dialect(
            is_gated=False,
            has_qkv_bias=Flag("attention_bias"),
            has_output_bias=Flag("attention_bias"),
            has_mlp_bias=Flag("mlp_bias"),
            has_router_bias=True,
            layers=layers.hybrid_layers,
        ),
        "olmo2": replace(LLAMA, qk_norm="full"),
        "olmoe": replace(LLAMA, qk_norm="full"),
        "opt": replace(
            _ALL_BIASES,
            mlp_width=("ffn_dim",),
            has_qkv_bias=_OPT_BIAS,
            has_output_bias=_OPT_BIAS,
            has_mlp_bias=_OPT_BIAS,
            is_tied=True,
            learned_positions=2,
        ),
        "phi": replace(_ALL_BIASES, norms_per_layer=1, has_head_bias=True),
        "phi3": _PLAIN,
        "phi3small": replace(_ALL_BIASES, is_gated=True, mlp_width=("ff_intermediate_size",), is_tied=True),
        "qwen": replace(_QWEN2, mlp_width_divisor=2, context=("max_position_embeddings", "seq_length")),
        "qwen2": _QWEN2,
        "qwen2_moe": _QWEN2_MOE,
        "qwen2_vl": _QWEN2,
        "qwen2_vl_text": _QWEN2,
        "qwen2_5_vl": _QWEN2,
        "qwen2_5_vl_text": _QWEN2,
        "qwen3": _QWEN3,
        "qwen3_5": _QWEN3_NEXT,
        "qwen3_5_text": _QWEN3_NEXT,
        "qwen3_5_moe": _QWEN3_NEXT,
        "qwen3_5_moe_text": _QWEN3_NEXT,
        "qwen3_moe": _QWEN3,
        "qwen3_next": _QWEN3_NEXT,
        "qwen3_vl_text": _QWEN3,
        "qwen3_vl_moe_text": _QWEN3,
        "smollm3": replace(LLAMA, is_tied=True),
        "starcoder2": Dialect(
            is_gated=False,
            has_qkv_bias=_STARCODER2_BIAS,
            has_output_bias=_STARCODER2_BIAS,
            has_mlp_bias=_STARCODER2_BIAS,
            has_norm_bias=True,
            is_tied=True,
        ),
    }
)
