"""The architecture of a transformer: what decides its memory, its FLOPs and its KV cache.

The profilers see only this; every vendor's config.json dialect is folded into it by `planner.catalog.models`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MixerKind(StrEnum):
    """What mixes tokens in a layer."""

    FULL_ATTENTION = "full"
    SLIDING_WINDOW = "window"
    LATENT_ATTENTION = "mla"
    """Multi-head latent attention: one compressed vector per token and layer, shared by all heads."""
    LINEAR = "linear"
    """State-space and linear attention: a state of constant size per sequence, no KV cache."""
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A weight matrix of a layer that an adapter can attach to."""

    module: str
    """As PEFT's target_modules name it: "q_proj", "down_proj"."""
    inputs: int
    outputs: int
    count: int = 1
    """How many of them the layer has: one in each expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """`count` identical layers. Parameter counts are per layer and include norms and biases."""

    count: int
    mixer: MixerKind
    mixer_params: float
    """Parameters of the attention (or state-space) block."""
    kv_elements_per_token: float
    """Cached elements per token: 2 x KV heads x head_dim, or kv_lora_rank + rope dim for MLA (plus the indexer's)."""
    window_tokens: int | None = None
    """Tokens that a query can see; None = all of them. Also the most that is cached."""
    state_bytes_per_sequence: float = 0.0
    """Constant-size state of linear mixers."""
    n_query_heads: int
    n_kv_heads: int
    """1 for MLA: the latent vector is replicated over tensor-parallel ranks."""
    head_dim: int
    """Width of a query/key head (for MLA: of the absorbed latent query, kv_lora_rank + rope dim)."""
    value_head_dim: int
    """Width of a value head (for MLA: kv_lora_rank, as the values are read from the latent vector)."""
    prefill_head_dim: int | None = None
    """`head_dim` while a prompt is processed, where it differs: MLA multiplies prompts out to full heads."""
    prefill_value_head_dim: int | None = None
    """`value_head_dim` while a prompt is processed, where it differs."""
    attended_tokens_cap: int | None = None
    """Sparse attention (DSA): at most so many tokens are attended to, though all are cached."""
    mlp_params: float
    """Parameters of the dense MLP, or of ALL experts, shared ones and the router."""
    mlp_active_params: float
    """Of these, what one token uses."""
    n_experts: int = 0
    """Routed experts; 0 = dense."""
    n_active_experts: int = 0
    expert_params: float = 0.0
    """Parameters of one routed expert."""
    projections: tuple[Projection, ...] = ()
    """What adapters can attach to; empty = shapes not known. State-space and linear mixers list none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArchitecture:
    """Everything that the profilers need to know of a model."""

    name: str
    """Canonical Hugging Face id, or the path of a user's config.json."""
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerGroup, ...]
    is_embedding_tied: bool
    max_context_tokens: int
    native_precision: str
    """Number format that the weights are published in: "bf16", "fp8", "nvfp4", "mxfp4", ..."""
    native_mixer_bytes: float | None = None
    """Bytes per parameter, scales included, of token mixers in the published quantised weights; None = not known."""
    native_mlp_bytes: float | None = None
    """The same of MLPs and experts."""
    source: str = ""
    confidence: str = ""
    """"read", "computed" or "recalled" for library models, "user" for a user's file, "assumed" for a user's file
    whose model_type is not known and that was read as the usual transformer."""
    embedding_width: int | None = None
    """Width of the token tables where it is not `hidden_size` (OPT-350m)."""
    extra_params: float = 0.0
    """Parameters outside of layers, token tables and the final norm's weight: positions, biases, projections."""

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return sum(group.count for group in self.layers)

    @property
    def embedding_params(self) -> float:
        """Parameters of the input table and the output head (one table if they are tied)."""
        return (
            float(self.vocab_size) * (self.embedding_width or self.hidden_size) * (1 if self.is_embedding_tied else 2)
        )

    @property
    def total_params(self) -> float:
        """All parameters."""
        layers = sum(group.count * (group.mixer_params + group.mlp_params) for group in self.layers)
        return layers + self.embedding_params + self.extra_params + self.hidden_size

    @property
    def active_params(self) -> float:
        """Parameters that one token uses, input and output tables included."""
        layers = sum(group.count * (group.mixer_params + group.mlp_active_params) for group in self.layers)
        return layers + self.embedding_params + self.extra_params + self.hidden_size

    def kv_elements(self, context_tokens: float) -> float:
        """Return the KV-cache elements of one sequence of `context_tokens` tokens, windows taken into account."""
        return sum(
            group.count
            * group.kv_elements_per_token
            * (context_tokens if group.window_tokens is None else min(context_tokens, group.window_tokens))
            for group in self.layers
        )
