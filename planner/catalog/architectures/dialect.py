"""What differs between model families, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.domain.model import MixerKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.catalog.architectures.blocks import Layer
    from planner.catalog.architectures.fields import Fields, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one family of models names its dimensions and which small parts its blocks have.

    A field given as `Flag` is read from the config; the defaults describe a Llama.
    """

    hidden_size: tuple[str, ...] = ("hidden_size",)
    n_layers: tuple[str, ...] = ("num_hidden_layers",)
    n_heads: tuple[str, ...] = ("num_attention_heads",)
    n_kv_heads: tuple[str, ...] = ("num_key_value_heads",)
    context: tuple[str, ...] = ("max_position_embeddings",)
    default_context_tokens: int | None = None
    """Trained length of families whose configs need not name it."""
    mlp_width: tuple[str, ...] = ("intermediate_size",)
    mlp_width_factor: int | None = None
    """MLP width / hidden size where the config does not give the width."""
    mlp_width_divisor: int = 1
    """The width field counts the gate and the up projection together (QWen-1)."""
    is_gated: Setting = True
    """Three matrices per MLP (gate, up, down) rather than two."""
    has_qkv_bias: Setting = False
    has_output_bias: Setting = False
    has_mlp_bias: Setting = False
    has_norm_bias: Setting = False
    has_head_bias: bool = False
    has_output_gate: Setting = False
    has_sinks: bool = False
    qk_norm: str = ""
    has_qk_norm: Setting = True
    """Whether `qk_norm` applies."""
    norms_per_layer: int = 2
    is_tied: bool = False
    """Where the config does not say."""
    has_embedding_norm: bool = False
    learned_positions: int | None = None
    """Learned position table: rows beyond the context; None = no table."""
    is_multi_query: Setting = False
    """One key-value head, whatever else the config says."""
    full_attention_every: tuple[str, int] | None = None
    """Field and default of n: every n-th layer attends to all tokens, the others are `other_mixer`."""
    other_mixer: MixerKind = MixerKind.SLIDING_WINDOW
    has_router_bias: bool = False
    """The router has a bias, or a correction term, per expert."""
    has_expert_bias: bool = False
    has_shared_expert_gate: bool = False
    unnamed_shared_experts: int = 0
    """Shared experts of a routed one's width that the config does not mention (Llama 4)."""
    layers: Callable[[Fields, Dialect], list[Layer]] | None = None
    """Reader of families whose layers are not the usual mixer + MLP."""
