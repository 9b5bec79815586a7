"""Config and dialect to layers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.catalog.architectures import blocks
from planner.catalog.architectures.blocks import Extras, Heads, Layer, Mixer, Mlp
from planner.catalog.architectures.fields import Fields, Flag
from planner.domain.model import MixerKind
from planner.errors import UnsupportedFormatError, Where

if TYPE_CHECKING:
    from planner.catalog.architectures.dialect import Dialect
    from planner.domain.model import Projection

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
ACTIVE_EXPERTS = ("num_experts_per_tok", "experts_per_token", "top_k_experts", "moe_k")
EXPERT_WIDTHS = ("moe_intermediate_size",)
SHARED_WIDTHS = (
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
)
SHARED_COUNTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
WINDOWS = ("sliding_window", "attention_chunk_size")
LAYER_TYPES = {
    "full_attention": MixerKind.FULL_ATTENTION,
    "sliding_attention": MixerKind.SLIDING_WINDOW,
    "chunked_attention": MixerKind.SLIDING_WINDOW,
    "linear_attention": MixerKind.LINEAR,
}
STATE_FIELDS = ("mamba_ssm_cache_dtype", "mamba_ssm_dtype")
STATE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


MAX_LAYERS = 10_000
"""Layers are listed one by one; more of them are a mistake."""


def layer_count(fields: Fields, dialect: Dialect) -> int:
    """Return the number of layers."""
    return fields.integer(*dialect.n_layers, maximum=MAX_LAYERS)


def unsupported(fields: Fields, name: str, problem: str) -> UnsupportedFormatError:
    """Return an error about a structure that gpuplan does not model."""
    return UnsupportedFormatError(
        problem,
        hint="This kind of layer is not modelled; plan with measured profiles of the model instead.",
        where=Where(path=fields.path or None, field=fields.prefix + name),
    )


def layer_kinds(fields: Fields, dialect: Dialect, n_layers: int) -> list[MixerKind]:
    """Return what mixes tokens in each layer (for latent attention: FULL_ATTENTION)."""
    if types := fields.sequence("layer_types", length=n_layers):
        for kind in types:
            if str(kind) not in LAYER_TYPES:
                raise unsupported(fields, "layer_types", f"Layers of type {kind!r} are not known.")
        return [LAYER_TYPES[str(kind)] for kind in types]
    if pattern := fields.sequence("hybrid_layer_pattern", length=n_layers):  # 1 = window
        return [MixerKind.SLIDING_WINDOW if is_window else MixerKind.FULL_ATTENTION for is_window in pattern]
    if dialect.full_attention_every is not None:
        name, default = dialect.full_attention_every
        every = fields.integer(name, default=default)
        return [
            MixerKind.FULL_ATTENTION if (layer + 1) % every == 0 else dialect.other_mixer for layer in range(n_layers)
        ]
    if not fields.has("sliding_window") or not fields.flag(Flag("use_sliding_window", default=True)):
        return [MixerKind.FULL_ATTENTION] * n_layers
    n_full = min(fields.integer("max_window_layers", default=0, minimum=0), n_layers)  # Qwen: the first ones
    return [MixerKind.FULL_ATTENTION] * n_full + [MixerKind.SLIDING_WINDOW] * (n_layers - n_full)


def head_shape(fields: Fields, dialect: Dialect, kind: MixerKind) -> Heads:
    """Return the attention heads of a layer, which may differ between full and windowed layers.

    Raises
    ------
    InputError: if the head counts do not divide.
    """
    own = "swa_" if kind is MixerKind.SLIDING_WINDOW else "global_"
    n_query = fields.integer(*(own + name for name in dialect.n_heads), *dialect.n_heads)
    kv_names = (*(own + name for name in dialect.n_kv_heads), *dialect.n_kv_heads)
    if kind is MixerKind.FULL_ATTENTION:
        kv_names = ("num_global_key_value_heads", *kv_names)
    n_kv = 1 if fields.flag(dialect.is_multi_query) else fields.integer(*kv_names, default=n_query)
    if n_query % n_kv:
        message = f"{n_query} query heads cannot share {n_kv} key-value heads evenly."
        raise fields.error(dialect.n_kv_heads[0], message)
    head_dim = fields.optional_integer(own + "head_dim", "head_dim", "attention_head_dim", "kv_channels")
    if head_dim is None:
        hidden_size = fields.integer(*dialect.hidden_size)
        if hidden_size % n_query:
            raise fields.error(
                "head_dim", f"{hidden_size} is not a multiple of {n_query} heads and head_dim is absent."
            )
        head_dim = hidden_size // n_query
    value_dim = fields.integer(own + "v_head_dim", "v_head_dim", default=head_dim)
    return Heads(n_query=n_query, n_kv=n_kv, head_dim=head_dim, value_dim=value_dim)


def attention(fields: Fields, dialect: Dialect, kind: MixerKind) -> Mixer:
    """Return a full or windowed attention block."""
    is_full = kind is MixerKind.FULL_ATTENTION
    extras = Extras(
        has_qkv_bias=fields.flag(dialect.has_qkv_bias),
        has_output_bias=fields.flag(dialect.has_output_bias),
        has_output_gate=fields.flag(dialect.has_output_gate),
        has_value_projection=not (is_full and fields.flag(Flag("attention_k_eq_v"))),
        has_sinks=dialect.has_sinks,
        qk_norm=dialect.qk_norm if fields.flag(dialect.has_qk_norm) else "",
    )
    return blocks.grouped_query_attention(
        fields.integer(*dialect.hidden_size),
        head_shape(fields, dialect, kind),
        extras,
        window_tokens=None if is_full else fields.integer(*WINDOWS),
    )


def latent(fields: Fields, dialect: Dialect, *, has_own_indexer: bool) -> Mixer:
    """Return a latent attention block; `has_own_indexer` is false where it reuses another layer's choice."""
    indexer = None
    if (head_dim := fields.optional_integer("index_head_dim")) is not None:
        indexer = blocks.Indexer(
            n_heads=fields.integer("index_n_heads"),
            head_dim=head_dim,
            top_tokens=fields.integer("index_topk"),
            has_own_weights=has_own_indexer,
        )
    return blocks.latent_attention(
        fields.integer(*dialect.hidden_size),
        n_heads=fields.integer(*dialect.n_heads),
        query_rank=fields.optional_integer("q_lora_rank"),
        kv_rank=fields.integer("kv_lora_rank"),
        nope_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        value_dim=fields.integer("v_head_dim"),
        indexer=indexer,
    )


def linear_attention(fields: Fields, dialect: Dialect) -> Mixer:
    """Return a gated delta network block."""
    return blocks.gated_delta_net(
        fields.integer(*dialect.hidden_size),
        n_key_heads=fields.integer("linear_num_key_heads"),
        n_value_heads=fields.integer("linear_num_value_heads"),
        key_dim=fields.integer("linear_key_head_dim"),
        value_dim=fields.integer("linear_value_head_dim"),
        kernel=fields.integer("linear_conv_kernel_dim"),
        state_element_bytes=state_element_bytes(fields),
    )


def state_element_bytes(fields: Fields) -> int:
    """Return the bytes per element of recurrent states: as the config says, else 16 bit."""
    name = next((name for name in STATE_FIELDS if fields.has(name)), None)
    if name is None:
        return blocks.ACTIVATION_BYTES
    value = fields.text(name)
    if value not in STATE_BYTES:
        raise fields.error(name, f"{name} must be one of {', '.join(STATE_BYTES)}, not {value!r}.")
    return STATE_BYTES[value]


def mixers(fields: Fields, dialect: Dialect, n_layers: int) -> list[Mixer]:
    """Return the mixer of each layer."""
    if fields.has("kv_lora_rank"):
        own = latent(fields, dialect, has_own_indexer=True)
        shared = latent(fields, dialect, has_own_indexer=False)
        types = fields.sequence("indexer_types", length=n_layers) or ["full"] * n_layers
        return [shared if kind == "shared" else own for kind in types]
    kinds = layer_kinds(fields, dialect, n_layers)
    read = {
        kind: linear_attention(fields, dialect) if kind is MixerKind.LINEAR else attention(fields, dialect, kind)
        for kind in dict.fromkeys(kinds)
    }
    return [read[kind] for kind in kinds]


def mlp_width(fields: Fields, dialect: Dialect) -> int:
    """Return the width of a dense MLP."""
    default = None
    if dialect.mlp_width_factor is not None:
        default = dialect.mlp_width_factor * fields.integer(*dialect.hidden_size)
    return fields.integer(*dialect.mlp_width, default=default) // dialect.mlp_width_divisor


def dense(fields: Fields, dialect: Dialect) -> Mlp:
    """Return the dense MLP."""
    width = mlp_width(fields, dialect)
    return blocks.dense_mlp(_matrices(fields, dialect, width), _shapes(fields, dialect, width))


def _matrices(fields: Fields, dialect: Dialect, width: int, *, rows: int | None = None) -> float:
    return blocks.mlp_params(
        rows or fields.integer(*dialect.hidden_size),
        width,
        is_gated=fields.flag(dialect.is_gated),
        has_bias=fields.flag(dialect.has_mlp_bias),
    )


def _shapes(
    fields: Fields, dialect: Dialect, width: int, *, rows: int | None = None, count: int = 1
) -> tuple[Projection, ...]:
    hidden_size = rows or fields.integer(*dialect.hidden_size)
    return blocks.mlp_projections(hidden_size, width, is_gated=fields.flag(dialect.is_gated), count=count)


def experts(fields: Fields, dialect: Dialect) -> Mlp:
    """Return the mixture of experts.

    Raises
    ------
    InputError: if a token would use more experts than there are.
    """
    hidden_size = fields.integer(*dialect.hidden_size)
    n_experts = fields.integer(*EXPERT_COUNTS)
    n_active = fields.integer(*ACTIVE_EXPERTS)
    if n_active > n_experts:
        raise fields.error(ACTIVE_EXPERTS[0], f"A token cannot use {n_active} of {n_experts} experts.")
    width = fields.integer(*EXPERT_WIDTHS, "intermediate_size")
    latent_size = fields.optional_integer("moe_latent_size")
    expert = _matrices(fields, dialect, width, rows=latent_size)
    if dialect.has_expert_bias:
        expert += 2 * width + hidden_size
    n_shared = dialect.unnamed_shared_experts + fields.integer(*SHARED_COUNTS, default=0, minimum=0)
    shared_width = fields.integer(*SHARED_WIDTHS, default=0, minimum=0) or n_shared * width
    shared = _matrices(fields, dialect, shared_width) if shared_width else 0.0
    if dialect.has_shared_expert_gate and shared_width:
        shared += hidden_size
    router = n_experts * (hidden_size + (1 if dialect.has_router_bias else 0))
    projections = 2 * hidden_size * latent_size if latent_size else 0
    return blocks.mixture_of_experts(
        n_experts=n_experts,
        n_active=n_active,
        expert_params=expert,
        shared_params=shared + router + projections,
        projections=(
            *_shapes(fields, dialect, width, rows=latent_size, count=n_experts),
            *(_shapes(fields, dialect, shared_width) if shared_width else ()),
        ),
    )


def sparse_layers(fields: Fields, n_layers: int) -> list[bool]:
    """Return for each layer whether its MLP is a mixture of experts."""
    if not any(fields.optional_integer(name, minimum=0) for name in EXPERT_COUNTS):
        return [False] * n_layers
    if types := fields.sequence("mlp_layer_types", length=n_layers):
        return [kind == "sparse" for kind in types]
    if isinstance(fields.values.get("moe_layer_freq"), list):
        return [bool(flag) for flag in fields.sequence("moe_layer_freq", length=n_layers)]
    first = fields.integer("first_k_dense_replace", default=0, minimum=0)
    period = fields.integer("moe_layer_freq", default=1)
    step = fields.integer("decoder_sparse_step", "interleave_moe_layer_step", default=1)
    always_dense = fields.sequence("mlp_only_layers")
    return [
        layer >= first and layer % period == 0 and (layer + 1) % step == 0 and layer not in always_dense
        for layer in range(n_layers)
    ]


def norm_params(fields: Fields, dialect: Dialect) -> int:
    """Return the parameters of one norm of the hidden width."""
    return fields.integer(*dialect.hidden_size) * (2 if fields.flag(dialect.has_norm_bias) else 1)


def standard_layers(fields: Fields, dialect: Dialect) -> list[Layer]:
    """Return the layers of a transformer whose layers are a mixer and an MLP each."""
    n_layers = layer_count(fields, dialect)
    norm = norm_params(fields, dialect)
    n_mlp_norms = dialect.norms_per_layer // 2
    is_sparse = sparse_layers(fields, n_layers)
    sparse = experts(fields, dialect) if any(is_sparse) else blocks.NO_MLP
    plain = dense(fields, dialect) if not all(is_sparse) else blocks.NO_MLP
    return [
        Layer(
            mixer=mixer,
            mlp=sparse if sparse_here else plain,
            mixer_norm_params=norm * (dialect.norms_per_layer - n_mlp_norms),
            mlp_norm_params=norm * n_mlp_norms,
        )
        for mixer, sparse_here in zip(mixers(fields, dialect, n_layers), is_sparse, strict=True)
    ]


def gemma4_layers(fields: Fields, dialect: Dialect) -> list[Layer]:
    """Return Gemma 4's layers: in the MoE models a dense MLP and the experts run side by side, with norms of their own.

    Raises
    ------
    UnsupportedFormatError: for per-layer embeddings and shared KV layers (the E2B and E4B models).
    """
    for name in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if fields.optional_integer(name, minimum=0):
            raise unsupported(fields, name, f"Gemma 4 with {name} = {fields.values[name]} is not supported.")
    n_layers = layer_count(fields, dialect)
    norm = norm_params(fields, dialect)
    mlp = dense(fields, dialect)
    n_mlp_norms = 2
    if fields.flag(Flag("enable_moe_block")):
        router_scales = norm + fields.integer(*EXPERT_COUNTS)
        mlp = experts(fields, dialect).plus(mlp.params + router_scales, mlp.projections)
        n_mlp_norms = 5
    return [
        Layer(mixer=mixer, mlp=mlp, mixer_norm_params=2 * norm, mlp_norm_params=n_mlp_norms * norm)
        for mixer in mixers(fields, dialect, n_layers)
    ]


HYBRID_BLOCKS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


def hybrid_layers(fields: Fields, dialect: Dialect) -> list[Layer]:
    """Return Nemotron-H's layers: each one is a single block with one norm, and only attention blocks cache."""
    n_layers = len(fields.sequence("layers_block_type")) or layer_count(fields, dialect)
    kinds = [str(kind) for kind in fields.sequence("layers_block_type", length=n_layers)]
    if not kinds:
        pattern = fields.text("hybrid_override_pattern")
        if len(pattern) != n_layers:
            message = f"hybrid_override_pattern has {len(pattern)} blocks for {n_layers} layers."
            raise fields.error("hybrid_override_pattern", message)
        kinds = [HYBRID_BLOCKS.get(letter, letter) for letter in pattern]
    norm = norm_params(fields, dialect)
    readers = {
        "mamba": lambda: Layer(mixer=_mamba2(fields, dialect), mixer_norm_params=norm),
        "attention": lambda: Layer(mixer=attention(fields, dialect, MixerKind.FULL_ATTENTION), mixer_norm_params=norm),
        "mlp": lambda: Layer(mlp=dense(fields, dialect), mlp_norm_params=norm),
        "moe": lambda: Layer(mlp=experts(fields, dialect), mlp_norm_params=norm),
    }
    unknown = next((kind for kind in kinds if kind not in readers), None)
    if unknown is not None:
        raise unsupported(fields, "hybrid_override_pattern", f"Blocks of type {unknown!r} are not known.")
    read = {kind: readers[kind]() for kind in dict.fromkeys(kinds)}
    return [read[kind] for kind in kinds]


def _mamba2(fields: Fields, dialect: Dialect) -> Mixer:
    return blocks.mamba2(
        fields.integer(*dialect.hidden_size),
        n_heads=fields.integer("mamba_num_heads"),
        head_dim=fields.integer("mamba_head_dim"),
        n_groups=fields.integer("n_groups"),
        state_size=fields.integer("ssm_state_size"),
        kernel=fields.integer("conv_kernel"),
        has_conv_bias=fields.flag(Flag("use_conv_bias", default=True)),
        has_projection_bias=fields.flag(Flag("mamba_proj_bias")),
        state_element_bytes=state_element_bytes(fields),
    )


NAS_WIDTH_MULTIPLE = 256
"""Nemotron-NAS rounds MLP widths (2/3 x ffn_mult x hidden size) up to a multiple of this."""


def nas_layers(fields: Fields, dialect: Dialect) -> list[Layer]:
    """Return the layers of a model found by architecture search (Nemotron-NAS): each has a block config of its own."""
    configs = fields.sequence("block_configs", length=layer_count(fields, dialect))
    if not configs:
        raise fields.error("block_configs", "The model's config has no block_configs.")
    layers = []
    for index, config in enumerate(configs):
        if not isinstance(config, dict):
            raise fields.error(f"block_configs.{index}", f"A block config must be an object, not {config!r}.")
        block = Fields(config, fields.path, f"{fields.prefix}block_configs.{index}.")
        layers.append(_nas_layer(fields, dialect, block))
    return layers


def _nas_layer(fields: Fields, dialect: Dialect, block: Fields) -> Layer:
    norm = norm_params(fields, dialect)
    hidden_size = fields.integer(*dialect.hidden_size)
    has_attention, has_mlp = (not block.child(half).flag(Flag("no_op")) for half in ("attention", "ffn"))
    for half in ("attention", "ffn"):
        if block.child(half).flag(Flag("replace_with_linear")):
            raise unsupported(block, f"{half}.replace_with_linear", "Linear replacement blocks are not supported.")
    mixer, mlp = blocks.NO_MIXER, blocks.NO_MLP
    if has_attention:
        n_query = fields.integer(*dialect.n_heads)
        n_kv = n_query // block.child("attention").integer("n_heads_in_group")
        head_dim = fields.integer("head_dim", default=hidden_size // n_query)
        heads = Heads(n_query=n_query, n_kv=max(n_kv, 1), head_dim=head_dim, value_dim=head_dim)
        mixer = blocks.grouped_query_attention(hidden_size, heads, Extras(), window_tokens=None)
    if has_mlp:
        factor = block.child("ffn").values.get("ffn_mult")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise block.error("ffn.ffn_mult", f"ffn_mult must be a positive number, not {factor!r}.")
        width = math.ceil(int(2 * factor * hidden_size / 3) / NAS_WIDTH_MULTIPLE) * NAS_WIDTH_MULTIPLE
        mlp = blocks.dense_mlp(_matrices(fields, dialect, width), _shapes(fields, dialect, width))
    return Layer(
        mixer=mixer,
        mlp=mlp,
        mixer_norm_params=norm if has_attention else 0,
        mlp_norm_params=norm if has_mlp else 0,
    )


def variable_gqa_layers(fields: Fields, dialect: Dialect) -> list[Layer]:
    """Return DeciLM's layers: key-value heads differ by layer, but engines cache the largest number in all of them.

    Where only the total over all layers is known, its mean is used for the parameters.
    """
    layers = standard_layers(fields, dialect)
    total = fields.optional_integer("_num_key_value_heads_total")
    per_layer = fields.sequence("num_key_value_heads_per_layer", length=len(layers))
    if not per_layer and total is None:
        return layers
    hidden_size, norm = fields.integer(*dialect.hidden_size), norm_params(fields, dialect)
    for index, n_kv in enumerate(per_layer):
        Fields({"n_kv": n_kv}, fields.path, f"{fields.prefix}num_key_value_heads_per_layer.{index}.").integer("n_kv")
    widest = max(per_layer, default=fields.integer(*dialect.n_kv_heads))
    counts = per_layer or [(total or 0) / len(layers)] * len(layers)
    head_dim = head_shape(fields, dialect, MixerKind.FULL_ATTENTION).head_dim
    n_query = fields.integer(*dialect.n_heads)
    cached = blocks.grouped_query_attention(
        hidden_size,
        Heads(n_query=n_query, n_kv=widest, head_dim=head_dim, value_dim=head_dim),
        Extras(),
        window_tokens=None,
    )
    surplus = 2 * hidden_size * head_dim
    return [
        Layer(
            mixer=cached,
            mlp=layer.mlp,
            mixer_norm_params=norm - surplus * (widest - n_kv),  # projections that the weights do not have
            mlp_norm_params=norm,
        )
        for layer, n_kv in zip(layers, counts, strict=True)
    ]


def falcon_layers(fields: Fields, dialect: Dialect) -> list[Layer]:
    """Return Falcon's layers: multi-query or grouped heads, and one or two norms, as three flags of the config say."""
    is_new = fields.flag(Flag("new_decoder_architecture"))
    is_multi_query = not is_new and fields.flag(Flag("multi_query", default=True))
    has_one_norm = not is_new and fields.flag(Flag("parallel_attn", default=True))
    n_norms = fields.integer("num_ln_in_parallel_attn", default=1 if has_one_norm else 2)
    return standard_layers(fields, replace(dialect, is_multi_query=is_multi_query, norms_per_layer=n_norms))


def mpt_layers(fields: Fields, dialect: Dialect) -> list[Layer]:
    """Return MPT's layers: the MLP's width is a factor, key-value heads stand in `attn_config`, biases are opt-out."""
    has_bias = not fields.flag(Flag("no_bias", default=True))
    attention_config = fields.child("attn_config")
    values = dict(fields.values)
    if (n_kv := attention_config.optional_integer("kv_n_heads")) is not None:
        values["num_key_value_heads"] = n_kv
    changed = replace(
        dialect,
        mlp_width_factor=fields.integer("expansion_ratio", default=4),
        is_multi_query=attention_config.text("attn_type") == "multiquery_attention",
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=has_bias,
        has_norm_bias=has_bias,
    )
    return standard_layers(replace(fields, values=values), changed)
