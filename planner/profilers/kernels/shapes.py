"""What to time: the kernels of one step of a model, at sizes that span what an engine will ask of them.

A step is linear layers, elementwise kernels between them, attention over prompts and over caches, the output head and,
over several GPUs, all-reduces. Shapes are those of ONE GPU of a tensor-parallel group.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING

from planner.domain.precision import BYTES_PER_PARAMETER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from planner.domain.model import LayerGroup, ModelArchitecture

TIMED_FORMATS = ("bf16", "fp8")
"""Number formats of matrix products that can be timed; weights in others are expanded to bf16 or not known to torch."""

ACTIVATION_BYTES = BYTES_PER_PARAMETER["bf16"]

FUSED_HEAD_DIM = 256
"""Widest head that torch's fused attention takes; wider ones run as plain matrix products, slower than in engines."""

WIDTH_STEP = 64
"""Widths that follow from parameter counts are rounded to this, as real ones are; odd widths are slow for no reason."""

MIXER_TOLERANCE_FRACTION = 0.02
"""Norms and biases make up at most this part of an attention block whose projections are known."""


class KernelKind(StrEnum):
    """Kinds of kernels; each has its own way to be built and its own part in a step's time."""

    LAUNCH = "launch"
    LINEAR = "linear"
    EXPERTS = "experts"
    ELEMENTWISE = "elementwise"
    HEAD = "head"
    PREFILL_ATTENTION = "prefill-attention"
    DECODE_ATTENTION = "decode-attention"
    ALL_REDUCE = "all-reduce"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One shape to time on one GPU, and how often a pass through the whole model runs it."""

    kind: KernelKind
    role: str
    """Which of the model's kernels it is, e.g. "qkv"; no two kinds share a role."""
    number_format: str = "bf16"
    count: float = 1.0
    """Times that one step runs it."""
    tokens: int = 1
    """Rows: tokens of a step (of each expert, if there are experts), sequences at the head, or the prompt's length."""
    step_tokens: int = 1
    """Tokens of the whole step; differs from `tokens` for experts only."""
    batch: int = 1
    """Experts that are touched, sequences that decode, or GPUs that reduce."""
    context_tokens: int = 0
    """Cached tokens of each decoding sequence."""
    width_in: int = 0
    width_out: int = 0
    n_query_heads: int = 0
    n_kv_heads: int = 0
    head_dim: int = 0
    value_head_dim: int = 0
    is_check: bool = False
    """Left out of the fit and of the table, to see how far off both are."""

    @property
    def key(self) -> str:
        """Name of the shape, the same in every run: `count` and `is_check` are no part of it."""
        sizes = (
            f"t{self.tokens}",
            f"b{self.batch}" if self.batch > 1 else "",
            f"of{self.step_tokens}" if self.kind is KernelKind.EXPERTS else "",
            f"c{self.context_tokens}" if self.context_tokens else "",
            f"{self.width_in}x{self.width_out}" if self.width_out else "",
            f"h{self.n_query_heads}/{self.n_kv_heads}x{self.head_dim}/{self.value_head_dim}" if self.head_dim else "",
        )
        return " ".join((self.role, self.number_format, *(size for size in sizes if size)))

    @property
    def series(self) -> tuple[str, ...]:
        """What the shapes of one curve share: all but their size."""
        heads = f"{self.n_query_heads}/{self.n_kv_heads}x{self.head_dim}/{self.value_head_dim}"
        return (self.kind.value, self.role, self.number_format, f"{self.width_in}x{self.width_out}", heads)

    @property
    def is_fused(self) -> bool:
        """Whether torch has a fused attention for these heads."""
        return max(self.head_dim, self.value_head_dim) <= FUSED_HEAD_DIM and self.head_dim == self.value_head_dim

    @property
    def flops(self) -> float:
        """Floating-point operations of one call."""
        if self.kind in {KernelKind.LINEAR, KernelKind.HEAD, KernelKind.EXPERTS}:
            return 2.0 * self.batch * self.tokens * self.width_in * self.width_out
        width = self.n_query_heads * (self.head_dim + self.value_head_dim)
        if self.kind is KernelKind.PREFILL_ATTENTION:
            return 2.0 * width * self.tokens * (self.tokens + 1) / 2  # causal: token t sees t tokens
        if self.kind is KernelKind.DECODE_ATTENTION:
            return 2.0 * width * self.batch * self.context_tokens
        return 0.0

    @property
    def cold_bytes(self) -> float:
        """Bytes that come from memory in every call and from no cache: weights, or keys and values."""
        if self.kind in {KernelKind.LINEAR, KernelKind.HEAD, KernelKind.EXPERTS}:
            return self.batch * self.width_in * self.width_out * BYTES_PER_PARAMETER[self.number_format]
        if self.kind is KernelKind.DECODE_ATTENTION:
            # values that are as wide as keys are stored beside them; narrower ones (MLA) are a part of them
            width = self.head_dim + (self.value_head_dim if self.value_head_dim == self.head_dim else 0)
            return self.batch * self.context_tokens * self.n_kv_heads * width * ACTIVATION_BYTES
        if self.kind is KernelKind.ALL_REDUCE:
            return self.tokens * self.width_in * ACTIVATION_BYTES
        return 0.0

    @property
    def moved_bytes(self) -> float:
        """Bytes that one call reads and writes at least."""
        rows = self.batch * self.tokens
        if self.kind in {KernelKind.LINEAR, KernelKind.HEAD, KernelKind.EXPERTS}:
            entry = rows * self.width_in * BYTES_PER_PARAMETER[self.number_format]
            return self.cold_bytes + entry + rows * self.width_out * ACTIVATION_BYTES
        if self.kind is KernelKind.ELEMENTWISE:
            return 3.0 * rows * self.width_in * ACTIVATION_BYTES
        if self.kind is KernelKind.PREFILL_ATTENTION:
            heads = 2 * self.n_query_heads * (self.head_dim + self.value_head_dim)
            return heads * self.tokens * ACTIVATION_BYTES
        return self.cold_bytes

    @property
    def work(self) -> float:
        """A measure that the time of a large call grows with: bytes moved, or operations in units of 100 per byte."""
        return max(self.moved_bytes, self.flops / 100.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeSettings:
    """How far the sizes reach."""

    formats: tuple[str, ...] = ("bf16",)
    """Of the linear layers; the head and attention are always bf16."""
    tensor_parallel: int = 1
    max_sequences: int = 256
    """Largest batch of decoding sequences."""
    max_tokens: int = 8192
    """Most tokens of one step."""
    max_context_tokens: int = 32768
    """Longest prompt and longest cached context."""
    reduce_over: tuple[int, ...] = ()
    """Numbers of GPUs to time all-reduces over; () = none."""


def _powers(least: int, most: int, factor: int) -> list[int]:
    sizes = []
    while least < most:
        sizes.append(least)
        least *= factor
    return [*sizes, most]


def _between(sizes: Sequence[int], *, every: int) -> set[int]:
    """Return sizes halfway between every `every`-th pair of neighbours: those that are held back as checks."""
    pairs = list(pairwise(sizes))
    middles = {round(math.sqrt(low * high)) for low, high in pairs[every // 2 :: every]}
    return middles - set(sizes)


def _round_width(width: float) -> int:
    return max(WIDTH_STEP, round(width / WIDTH_STEP) * WIDTH_STEP)


def _share(width: int, ranks: int) -> int:
    return _round_width(width / ranks) if ranks > 1 else width


@dataclass(frozen=True, slots=True)
class _Product:
    """A matrix product with weights, of any number of tokens."""

    role: str
    width_in: int
    width_out: int
    count: float
    n_experts: int = 0
    n_active: int = 0


def _attention_products(group: LayerGroup, hidden: int, tp: int) -> list[_Product]:
    """Return the projections of a token mixer.

    Where they do not follow from its heads (latent and linear attention), two products with as many parameters stand
    in for them: into the block and out of it.
    """
    if group.mixer_params <= 0:
        return []
    cached = round(group.kv_elements_per_token)
    qkv = group.n_query_heads * group.head_dim + cached
    back = group.n_query_heads * group.value_head_dim
    known = hidden * (qkv + back)
    if cached and abs(group.mixer_params - known) <= MIXER_TOLERANCE_FRACTION * known:
        shards = max(1, min(tp, group.n_kv_heads))
        ours = group.n_query_heads * group.head_dim // tp + cached // shards
        return [
            _Product("qkv", hidden, ours, group.count),
            _Product("attention-out", back // tp, hidden, group.count),
        ]
    inside = _share(_round_width(group.mixer_params / (2 * hidden)), tp)
    return [
        _Product("mixer-in", hidden, inside, group.count),
        _Product("mixer-out", inside, hidden, group.count),
    ]


def _mlp_products(group: LayerGroup, hidden: int, tp: int) -> list[_Product]:
    """Return the products of an MLP, as a gated one with its number of parameters, and those of its experts."""
    products = []
    dense = group.mlp_active_params - group.n_active_experts * group.expert_params - group.n_experts * hidden
    width = _round_width(dense / (3 * hidden))
    if dense >= 3 * hidden * WIDTH_STEP:
        ours = _share(width, tp)
        products += [
            _Product("gate-up", hidden, 2 * ours, group.count),
            _Product("down", ours, hidden, group.count),
        ]
    if group.n_experts:
        ours = _share(_round_width(group.expert_params / (3 * hidden)), tp)
        spread = (group.n_experts, group.n_active_experts)
        products += [
            _Product("experts-gate-up", hidden, 2 * ours, group.count, *spread),
            _Product("experts-down", ours, hidden, group.count, *spread),
        ]
    return products


def _merged(products: Iterable[_Product]) -> list[_Product]:
    """Return each distinct product once, with the sum of the counts."""
    counts: dict[_Product, float] = defaultdict(float)
    for product in products:
        counts[replace(product, count=0.0)] += product.count
    return [replace(product, count=count) for product, count in counts.items()]


def distinct_experts(n_experts: int, n_active: int, tokens: float) -> float:
    """Return how many experts at least one of `tokens` tokens is routed to, if all are equally likely.

    Examples
    --------
    >>> distinct_experts(8, 2, 1.0)
    2.0
    """
    untouched = math.pow(1.0 - n_active / n_experts, tokens)
    return n_experts * (1.0 - untouched)


def _linear_kernel(product: _Product, number_format: str, tokens: int, *, is_check: bool) -> Kernel:
    if not product.n_experts:
        kind, batch, rows = KernelKind.LINEAR, 1, tokens
    else:
        kind = KernelKind.EXPERTS
        batch = max(1, round(distinct_experts(product.n_experts, product.n_active, tokens)))
        rows = math.ceil(tokens * product.n_active / batch)
    return Kernel(
        kind=kind,
        role=product.role,
        number_format="bf16" if product.n_experts else number_format,
        count=product.count,
        tokens=rows,
        step_tokens=tokens,
        batch=batch,
        width_in=product.width_in,
        width_out=product.width_out,
        is_check=is_check,
    )


def _elementwise_width(model: ModelArchitecture, tp: int) -> float:
    """Return the elements per token and layer that a kernel with two inputs and one output moves for all of them.

    Two fused residual additions and norms read two rows and write two; the gate's activation reads two and writes one;
    rotary positions read and write queries and keys.
    """
    total = 0.0
    for group in model.layers:
        active = group.n_active_experts * group.expert_params or group.mlp_active_params
        gate = active / (3 * model.hidden_size) / tp
        rotary = (group.n_query_heads * group.head_dim + group.kv_elements_per_token / 2) / tp
        total += group.count * (8 * model.hidden_size + 3 * gate + 2 * rotary) / 3
    return total / model.n_layers


def _layer_kernels(model: ModelArchitecture, settings: ShapeSettings) -> Iterator[Kernel]:
    tp, hidden = settings.tensor_parallel, model.hidden_size
    products = _merged(
        product
        for group in model.layers
        for product in (*_attention_products(group, hidden, tp), *_mlp_products(group, hidden, tp))
    )
    grid = _powers(1, settings.max_tokens, 2)
    width = _round_width(_elementwise_width(model, tp))
    checks = _between(grid, every=3)
    for tokens in sorted({*grid, *checks}):
        is_check = tokens in checks
        yield Kernel(
            kind=KernelKind.ELEMENTWISE,
            role="elementwise",
            count=float(model.n_layers),
            tokens=tokens,
            step_tokens=tokens,
            width_in=width,
            is_check=is_check,
        )
        for number_format in settings.formats:
            for product in products:
                yield _linear_kernel(product, number_format, tokens, is_check=is_check)


def _head_kernels(model: ModelArchitecture, settings: ShapeSettings) -> Iterator[Kernel]:
    grid = _powers(1, settings.max_sequences, 4)
    checks = _between(grid, every=2)
    for sequences in sorted({*grid, *checks}):
        yield Kernel(
            kind=KernelKind.HEAD,
            role="head",
            tokens=sequences,
            step_tokens=sequences,
            width_in=model.embedding_width or model.hidden_size,
            width_out=_share(model.vocab_size, settings.tensor_parallel),
            is_check=sequences in checks,
        )


def _attention_groups(model: ModelArchitecture) -> dict[tuple[int | None, ...], tuple[LayerGroup, float]]:
    """Return one layer group for each distinct attention, with the number of layers that have it."""
    found: dict[tuple[int | None, ...], tuple[LayerGroup, float]] = {}
    for group in model.layers:
        if group.kv_elements_per_token and group.n_query_heads:
            limit = group.window_tokens or group.attended_tokens_cap
            geometry = (group.n_query_heads, group.n_kv_heads, group.head_dim, group.value_head_dim, limit)
            _, count = found.get(geometry, (group, 0.0))
            found[geometry] = (group, count + group.count)
    return found


def _prefill_kernels(model: ModelArchitecture, settings: ShapeSettings) -> Iterator[Kernel]:
    """Attention over whole prompts, once for each kind of head: the rate is what counts.

    A window is not timed: its rate is taken to be that of full attention.
    """
    grid = _powers(min(256, settings.max_context_tokens), settings.max_context_tokens, 2)
    checks = _between(grid, every=3)
    done = set()
    for group, _ in _attention_groups(model).values():
        head_dim = group.prefill_head_dim or group.head_dim
        value_dim = group.prefill_value_head_dim or group.value_head_dim
        n_heads = max(1, group.n_query_heads // settings.tensor_parallel)
        if (n_heads, head_dim, value_dim) in done:
            continue
        done.add((n_heads, head_dim, value_dim))
        for tokens in sorted({*grid, *checks}):
            yield Kernel(
                kind=KernelKind.PREFILL_ATTENTION,
                role="prefill-attention",
                tokens=tokens,
                step_tokens=tokens,
                n_query_heads=n_heads,
                n_kv_heads=n_heads,
                head_dim=head_dim,
                value_head_dim=value_dim,
                is_check=tokens in checks,
            )


def _decode_kernels(model: ModelArchitecture, settings: ShapeSettings) -> Iterator[Kernel]:
    batches = _powers(1, settings.max_sequences, 4)
    contexts = _powers(min(512, settings.max_context_tokens), settings.max_context_tokens, 4)
    checks = {
        (batch, context)
        for batch in _between(batches, every=2)
        for context in (*_between(contexts, every=2), contexts[-1])
    }
    grid = {(batch, context) for batch in batches for context in contexts}
    for group, count in _attention_groups(model).values():
        limit = group.window_tokens or group.attended_tokens_cap
        # the grid first: where a window is full, a check may be the same shape as a point of the grid
        for batch, context in (*sorted(grid), *sorted(checks - grid)):
            seen = min(context, limit) if limit else context
            yield Kernel(
                kind=KernelKind.DECODE_ATTENTION,
                role="decode-attention" if not limit else f"decode-attention-{limit}",
                count=count,
                tokens=1,
                step_tokens=batch,
                batch=batch,
                context_tokens=seen,
                n_query_heads=max(1, group.n_query_heads // settings.tensor_parallel),
                n_kv_heads=max(1, group.n_kv_heads // settings.tensor_parallel),
                head_dim=group.head_dim,
                value_head_dim=group.value_head_dim,
                is_check=(batch, context) not in grid,
            )


def _reduce_kernels(model: ModelArchitecture, settings: ShapeSettings) -> Iterator[Kernel]:
    """All-reduces of one hidden row per token, two per layer."""
    grid = _powers(1, settings.max_tokens, 8)
    checks = _between(grid, every=2)
    for n_gpus in settings.reduce_over:
        for tokens in sorted({*grid, *checks}):
            yield Kernel(
                kind=KernelKind.ALL_REDUCE,
                role="all-reduce",
                count=2.0 * model.n_layers,
                tokens=tokens,
                step_tokens=tokens,
                batch=n_gpus,
                width_in=model.hidden_size,
                is_check=tokens in checks,
            )


def coarse_to_fine(n: int) -> list[int]:
    """Return positions 0..n-1 in an order whose every beginning spans the whole range: ends, middle, quarters, ...

    Examples
    --------
    >>> coarse_to_fine(5)
    [0, 4, 2, 1, 3]
    """
    order = [0, n - 1][: min(n, 2)]
    stretches = [(0, n - 1)]
    while stretches:
        wider = []
        for low, high in stretches:
            middle = (low + high) // 2
            if low < middle < high:
                order.append(middle)
                wider += [(low, middle), (middle, high)]
        stretches = wider
    return order


def kernels_to_time(model: ModelArchitecture, settings: ShapeSettings) -> tuple[Kernel, ...]:
    """Return every shape to time, those first that span the range, so that a short budget still covers it.

    Examples
    --------
    >>> from planner.catalog.models import load_model
    >>> kernels = kernels_to_time(load_model("meta-llama/Llama-3.1-8B"), ShapeSettings())
    >>> sorted({kernel.role for kernel in kernels if kernel.kind == "linear"})
    ['attention-out', 'down', 'gate-up', 'qkv']
    >>> {(k.width_in, k.width_out, k.count) for k in kernels if k.role == "gate-up"}
    {(4096, 28672, 32.0)}
    """
    series: dict[tuple[str, ...], dict[str, Kernel]] = defaultdict(dict)
    for part in (_layer_kernels, _head_kernels, _prefill_kernels, _decode_kernels, _reduce_kernels):
        for kernel in part(model, settings):
            series[kernel.series].setdefault(kernel.key, kernel)
    ranked = []
    for kernels in series.values():
        by_size = sorted(kernels.values(), key=lambda kernel: kernel.work)
        ranked += [(rank, by_size[position]) for rank, position in enumerate(coarse_to_fine(len(by_size)))]
    launch = Kernel(kind=KernelKind.LAUNCH, role="launch")
    return (launch, *(kernel for _, kernel in sorted(ranked, key=lambda item: item[0])))
