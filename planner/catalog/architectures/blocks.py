"""Parameter and cache counts of the blocks that layers are made of.

All counts are of one layer. The formulas follow the modules' definitions in the models' reports; totals of every
bundled model are tested against independently computed ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.domain.model import LayerGroup, MixerKind, Projection

if TYPE_CHECKING:
    from collections.abc import Iterable

ACTIVATION_BYTES = 2
"""Bytes per element of convolution states, and of recurrent states whose format the config does not name (16 bit)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """The token-mixing half of a layer; fields as in LayerGroup."""

    kind: MixerKind
    params: float
    kv_elements_per_token: float = 0.0
    window_tokens: int | None = None
    state_bytes_per_sequence: float = 0.0
    n_query_heads: int = 0
    n_kv_heads: int = 0
    head_dim: int = 0
    value_head_dim: int = 0
    prefill_head_dim: int | None = None
    prefill_value_head_dim: int | None = None
    attended_tokens_cap: int | None = None
    projections: tuple[Projection, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """The per-token half of a layer; fields as in LayerGroup."""

    params: float = 0.0
    active_params: float = 0.0
    n_experts: int = 0
    n_active_experts: int = 0
    expert_params: float = 0.0
    projections: tuple[Projection, ...] = ()

    def plus(self, params: float, projections: tuple[Projection, ...] = ()) -> Mlp:
        """Return this block with `params` more parameters, used by every token, and the matrices that hold them."""
        return Mlp(
            params=self.params + params,
            active_params=self.active_params + params,
            n_experts=self.n_experts,
            n_active_experts=self.n_active_experts,
            expert_params=self.expert_params,
            projections=(*self.projections, *projections),
        )


NO_MIXER = Mixer(kind=MixerKind.NONE, params=0.0)
NO_MLP = Mlp()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Attention heads: how many, and how wide."""

    n_query: int
    n_kv: int
    head_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """The small parts of an attention block that differ between families."""

    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_output_gate: bool = False
    """The query projection yields a gate of the same width as well."""
    has_value_projection: bool = True
    """False where values are the keys."""
    has_sinks: bool = False
    """One learned attention sink per query head."""
    qk_norm: str = ""
    """Norm of queries and keys: "head" = over one head, "full" = over all heads, "layer" = "head" with a bias."""


def attention_params(hidden_size: int, heads: Heads, extras: Extras) -> float:
    """Return the parameters of grouped-query attention's projections, biases and norms."""
    query = heads.n_query * heads.head_dim
    key = heads.n_kv * heads.head_dim
    value = heads.n_kv * heads.value_dim if extras.has_value_projection else 0
    projected = query * (2 if extras.has_output_gate else 1) + key + value
    return (
        hidden_size * (projected + heads.n_query * heads.value_dim)
        + (projected if extras.has_qkv_bias else 0)
        + (hidden_size if extras.has_output_bias else 0)
        + (heads.n_query if extras.has_sinks else 0)
        + {"": 0, "head": 2 * heads.head_dim, "layer": 4 * heads.head_dim, "full": query + key}[extras.qk_norm]
    )


def attention_projections(hidden_size: int, heads: Heads, extras: Extras) -> tuple[Projection, ...]:
    """Return the matrices of grouped-query attention, one by one even where a checkpoint fuses them."""
    query = heads.n_query * heads.head_dim * (2 if extras.has_output_gate else 1)
    key, value = heads.n_kv * heads.head_dim, heads.n_kv * heads.value_dim
    inward = [("q_proj", query), ("k_proj", key), *([("v_proj", value)] if extras.has_value_projection else [])]
    return (
        *(Projection(module=name, inputs=hidden_size, outputs=width) for name, width in inward),
        Projection(module="o_proj", inputs=heads.n_query * heads.value_dim, outputs=hidden_size),
    )


def grouped_query_attention(hidden_size: int, heads: Heads, extras: Extras, *, window_tokens: int | None) -> Mixer:
    """Return an attention block; multi-head and multi-query attention are its special cases."""
    return Mixer(
        kind=MixerKind.FULL_ATTENTION if window_tokens is None else MixerKind.SLIDING_WINDOW,
        params=attention_params(hidden_size, heads, extras),
        kv_elements_per_token=heads.n_kv * (heads.head_dim + heads.value_dim),
        window_tokens=window_tokens,
        n_query_heads=heads.n_query,
        n_kv_heads=heads.n_kv,
        head_dim=heads.head_dim,
        value_head_dim=heads.value_dim,
        projections=attention_projections(hidden_size, heads, extras),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """DeepSeek sparse attention's indexer: picks the tokens that a query attends to."""

    n_heads: int
    head_dim: int
    top_tokens: int
    has_own_weights: bool = True
    """False on layers that reuse another layer's choice: no weights, no cache."""


def latent_attention(  # the compressed ranks and head widths are all independent
    hidden_size: int,
    *,
    n_heads: int,
    query_rank: int | None,
    kv_rank: int,
    nope_dim: int,
    rope_dim: int,
    value_dim: int,
    indexer: Indexer | None,
) -> Mixer:
    """Return a multi-head latent attention block (DeepSeek-V2 report, section 2.1; V3.2 for the indexer).

    One latent vector of kv_rank + rope_dim elements is cached per token, whatever the number of heads.
    """
    query_width = n_heads * (nope_dim + rope_dim)
    query = hidden_size * query_width
    if query_rank is not None:
        query = hidden_size * query_rank + query_rank + query_rank * query_width
    compress = hidden_size * (kv_rank + rope_dim) + kv_rank
    expand = kv_rank * n_heads * (nope_dim + value_dim)
    params = query + compress + expand + n_heads * value_dim * hidden_size
    cached = kv_rank + rope_dim
    if indexer is not None and indexer.has_own_weights:
        query_in = query_rank or hidden_size
        params += query_in * indexer.n_heads * indexer.head_dim + hidden_size * (indexer.head_dim + indexer.n_heads)
        params += 2 * indexer.head_dim
        cached += indexer.head_dim
    return Mixer(
        kind=MixerKind.LATENT_ATTENTION,
        params=params,
        kv_elements_per_token=cached,
        n_query_heads=n_heads,
        n_kv_heads=1,
        head_dim=kv_rank + rope_dim,
        value_head_dim=kv_rank,
        prefill_head_dim=nope_dim + rope_dim,
        prefill_value_head_dim=value_dim,
        attended_tokens_cap=indexer.top_tokens if indexer else None,
        projections=(
            *_latent_query(hidden_size, query_rank, query_width),
            Projection(module="kv_a_proj_with_mqa", inputs=hidden_size, outputs=kv_rank + rope_dim),
            Projection(module="kv_b_proj", inputs=kv_rank, outputs=n_heads * (nope_dim + value_dim)),
            Projection(module="o_proj", inputs=n_heads * value_dim, outputs=hidden_size),
        ),
    )


def _latent_query(hidden_size: int, query_rank: int | None, query_width: int) -> tuple[Projection, ...]:
    """Return the query's matrices: one, or two through a compressed vector."""
    if query_rank is None:
        return (Projection(module="q_proj", inputs=hidden_size, outputs=query_width),)
    return (
        Projection(module="q_a_proj", inputs=hidden_size, outputs=query_rank),
        Projection(module="q_b_proj", inputs=query_rank, outputs=query_width),
    )


def gated_delta_net(
    hidden_size: int,
    *,
    n_key_heads: int,
    n_value_heads: int,
    key_dim: int,
    value_dim: int,
    kernel: int,
    state_element_bytes: int,
) -> Mixer:
    """Return a gated delta network block (Qwen3-Next): linear attention with a state of constant size."""
    keys, values = n_key_heads * key_dim, n_value_heads * value_dim
    convolved = 2 * keys + values
    params = (
        hidden_size * (convolved + values)  # query, key, value and output gate
        + hidden_size * 2 * n_value_heads  # beta and decay
        + convolved * kernel
        + 2 * n_value_heads  # time-step bias and log decay
        + value_dim  # gated norm
        + values * hidden_size
    )
    state = n_value_heads * key_dim * value_dim * state_element_bytes
    return Mixer(
        kind=MixerKind.LINEAR,
        params=params,
        state_bytes_per_sequence=state + convolved * (kernel - 1) * ACTIVATION_BYTES,
    )


def mamba2(
    hidden_size: int,
    *,
    n_heads: int,
    head_dim: int,
    n_groups: int,
    state_size: int,
    kernel: int,
    has_conv_bias: bool,
    has_projection_bias: bool,
    state_element_bytes: int,
) -> Mixer:
    """Return a Mamba-2 block (Dao and Gu, 2024): a state-space mixer with a state of constant size."""
    inner = n_heads * head_dim
    convolved = inner + 2 * n_groups * state_size
    projected = inner + convolved + n_heads
    params = (
        hidden_size * projected
        + convolved * (kernel + (1 if has_conv_bias else 0))
        + 3 * n_heads  # time-step bias, log decay, skip
        + inner  # gated norm
        + inner * hidden_size
        + (projected + hidden_size if has_projection_bias else 0)
    )
    state = n_heads * head_dim * state_size * state_element_bytes
    return Mixer(
        kind=MixerKind.LINEAR,
        params=params,
        state_bytes_per_sequence=state + convolved * (kernel - 1) * ACTIVATION_BYTES,
    )


def mlp_params(hidden_size: int, width: int, *, is_gated: bool, has_bias: bool) -> float:
    """Return the parameters of an MLP: up (and gate) and down projections, and their biases."""
    n_up = 2 if is_gated else 1
    return hidden_size * width * (n_up + 1) + (n_up * width + hidden_size if has_bias else 0)


def mlp_projections(hidden_size: int, width: int, *, is_gated: bool, count: int = 1) -> tuple[Projection, ...]:
    """Return the matrices of `count` MLPs of one layer."""
    inward = ("gate_proj", "up_proj") if is_gated else ("up_proj",)
    return (
        *(Projection(module=name, inputs=hidden_size, outputs=width, count=count) for name in inward),
        Projection(module="down_proj", inputs=width, outputs=hidden_size, count=count),
    )


def dense_mlp(params: float, projections: tuple[Projection, ...]) -> Mlp:
    """Return an MLP that every token uses whole."""
    return Mlp(params=params, active_params=params, projections=projections)


def mixture_of_experts(
    *, n_experts: int, n_active: int, expert_params: float, shared_params: float, projections: tuple[Projection, ...]
) -> Mlp:
    """Return a mixture of experts; `shared_params` are used by every token: router, shared experts, projections."""
    return Mlp(
        params=n_experts * expert_params + shared_params,
        active_params=n_active * expert_params + shared_params,
        n_experts=n_experts,
        n_active_experts=n_active,
        expert_params=expert_params,
        projections=projections,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A mixer and an MLP, with the parameters of the norms around each."""

    mixer: Mixer = NO_MIXER
    mlp: Mlp = NO_MLP
    mixer_norm_params: float = 0.0
    mlp_norm_params: float = 0.0


def group_layers(layers: Iterable[Layer]) -> tuple[LayerGroup, ...]:
    """Return the layers with equal ones put together, in order of first appearance."""
    counts: dict[Layer, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return tuple(_group(layer, count) for layer, count in counts.items())


def _group(layer: Layer, count: int) -> LayerGroup:
    mixer, mlp = layer.mixer, layer.mlp.plus(layer.mlp_norm_params)
    return LayerGroup(
        count=count,
        mixer=mixer.kind,
        mixer_params=float(mixer.params + layer.mixer_norm_params),
        kv_elements_per_token=float(mixer.kv_elements_per_token),
        window_tokens=mixer.window_tokens,
        state_bytes_per_sequence=float(mixer.state_bytes_per_sequence),
        n_query_heads=mixer.n_query_heads,
        n_kv_heads=mixer.n_kv_heads,
        head_dim=mixer.head_dim,
        value_head_dim=mixer.value_head_dim,
        prefill_head_dim=mixer.prefill_head_dim,
        prefill_value_head_dim=mixer.prefill_value_head_dim,
        attended_tokens_cap=mixer.attended_tokens_cap,
        mlp_params=float(mlp.params),
        mlp_active_params=float(mlp.active_params),
        n_experts=mlp.n_experts,
        n_active_experts=mlp.n_active_experts,
        expert_params=float(mlp.expert_params),
        projections=(*mixer.projections, *mlp.projections),
    )
