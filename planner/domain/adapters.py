"""Low-rank adapters: many fine-tuned variants that are served from the weights of one backbone.

An adapter of rank r adds to a weight matrix of m inputs and n outputs the product of an m x r and an r x n matrix:
r (m + n) parameters (LoRA, arXiv 2106.09685, section 4.1). What it weighs follows from the model's matrices alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from planner.domain.model import ModelArchitecture, Projection
    from planner.domain.slo import Slo

BYTES_PER_PARAMETER = 2.0
"""Adapters are published and served in 16-bit formats, whatever the backbone's is; 32-bit files are converted."""

ALL_LINEAR = "all-linear"
"""PEFT's name for every matrix of every layer."""

SHORT_NAMES: Mapping[str, str] = MappingProxyType(
    {letter: f"{letter}_proj" for letter in ("q", "k", "v", "o", "gate", "up", "down")}
)
"""Names of papers -> names of PEFT's target_modules."""


class Isolation(StrEnum):
    """What adapters of one backbone have in common."""

    SHARED_PROCESS = "shared-process"
    """One engine serves all adapters: one copy of the weights, one context, one KV cache, batches across adapters."""
    SHARED_BACKBONE = "shared-backbone"
    """A process for each: the weights are mapped into it without a copy, context and KV cache are its own."""
    DEDICATED = "dedicated"
    """A process and a copy of the weights of its own."""

    @property
    def strictness(self) -> int:
        """How little is shared: 0 shares most."""
        return tuple(Isolation).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One adapter and what is asked of it: a rate, or a trace that has one."""

    name: str
    rank: int
    target_modules: tuple[str, ...]
    """As PEFT names them, sorted and without repetition: `canonical_modules`."""
    rate_rps: float | None = None
    """Mean request rate; None = the trace's."""
    trace: str | None = None
    """File with this adapter's requests."""
    slos: tuple[Slo, ...] = ()
    """Objectives in place of the service's; empty = the service's."""
    isolation: Isolation = Isolation.SHARED_PROCESS
    is_merged: bool = False
    """Its product is added to the weights: nothing more in memory or per token, and nothing left to share."""

    def __post_init__(self) -> None:
        """Refuse what cannot be served."""
        if self.rank < 1:
            raise InputError(f"The rank of adapter {self.name!r} is {self.rank}.", hint="It is a whole number above 0.")
        if not self.target_modules:
            raise InputError(f"Adapter {self.name!r} changes no module.", hint="target_modules: q_proj v_proj")
        if (self.rate_rps is None) == (self.trace is None):
            found = "neither is" if self.trace is None else "both are"
            raise InputError(f"Adapter {self.name!r} needs a rate or a trace; {found} given.", hint="rate: 2 req/s")
        if self.rate_rps is not None and not 0 <= self.rate_rps < math.inf:
            raise InputError(f"The rate of adapter {self.name!r} is {self.rate_rps:g} req/s.", hint="It is at least 0.")
        if self.is_merged and self.isolation is not Isolation.DEDICATED:
            raise InputError(
                f"Adapter {self.name!r} is merged, and weights that it has changed cannot be shared.",
                hint=f"isolation: {Isolation.DEDICATED}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaBytes:
    """What ONE replica's GPUs hold beside adapters, in bytes over all of them, as its rates were found."""

    usable: float
    """That engines may have of the GPUs' memory."""
    weights: float
    activations: float
    """Of one process."""
    context: float
    """CUDA context and workspace of every process but the first, whose own is no part of what is usable."""
    kv: float
    """KV caches of the requests of one process at its largest rate; at least those of one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSlots:
    """Room for adapters on ONE replica."""

    count: int
    """Adapters that it holds at once."""
    bytes_each: float
    """Memory that is set aside for each of them, over all GPUs of the replica; 0 = merged into the weights."""
    isolation: Isolation
    """What they share; `DEDICATED` has one slot."""
    rank: int = 0
    """That a slot is made for; 0 = any, or not known."""
    engine_flags: str = ""
    """How the engine is started for them; empty where nothing is to be said."""
    beside: ReplicaBytes | None = None
    """What the replica holds beside its slots; None: not known, as in a problem with given rates."""

    def is_like(self, other: AdapterSlots | None) -> bool:
        """Return whether a replica with `other` has this room, however many adapters wait in its host memory."""
        return other is not None and (self.count, self.bytes_each, self.isolation, self.rank) == (
            other.count,
            other.bytes_each,
            other.isolation,
            other.rank,
        )

    @property
    def n_processes(self) -> int:
        """Engines on the replica's GPUs."""
        return self.count if self.isolation is Isolation.SHARED_BACKBONE else 1

    @property
    def largest_load(self) -> float:
        """Part of a replica that one adapter can keep busy: of processes that take turns each has its own part."""
        return 1.0 / self.n_processes

    def __post_init__(self) -> None:
        """Refuse room for nothing."""
        if self.count < 1 or not 0 <= self.bytes_each < math.inf:
            msg = f"{self.count!r} slots of {self.bytes_each!r} bytes hold no adapter"
            raise ValueError(msg)
        if self.isolation is Isolation.DEDICATED and self.count != 1:
            msg = f"a dedicated replica has one slot, not {self.count!r}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An adapter with requests, as the optimiser places it."""

    name: str
    rate_rps: float
    memory_bytes: float
    """Beside the backbone, unless it is merged."""
    group: int
    """Of like adapters; the buckets of its demand that say so are the group's requests, a bucket for each size."""
    isolation: Isolation = Isolation.SHARED_PROCESS
    """The most that it may share with others."""
    kin_group: int | None = None
    """The group itself where `group` stands for several that are served alike; None: it stands for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """An adapter without requests, which may come all the same."""

    name: str
    memory_bytes: float
    isolation: Isolation | None
    """Slots for adapters that share so have room for it; None = no slots have: it needs a replica that is started for
    it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenancy:
    """The adapters of a service: who they are, and which buckets of its demand their requests are in.

    The requests of every adapter of a group have the sizes of the group: the part of them in a bucket is the bucket's
    part of the group's rate.
    """

    service: str
    tenants: tuple[Tenant, ...]
    idle: tuple[str, ...] = ()
    """Adapters without requests: no replica has any of its load from them."""
    standby: tuple[Standby, ...] = ()
    """The same as far as their sizes are known, in the same order."""

    @property
    def sizes_bytes(self) -> dict[str, float]:
        """Memory of each adapter by name, those without requests last."""
        asked = {tenant.name: tenant.memory_bytes for tenant in self.tenants}
        return asked | {standby.name: standby.memory_bytes for standby in self.standby}

    def members(self, group: int | None) -> tuple[Tenant, ...]:
        """Return the adapters of `group`."""
        return tuple(tenant for tenant in self.tenants if tenant.group == group)


def canonical_modules(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of modules as PEFT has them, sorted, each once; papers' q, k, v, o, gate, up and down too.

    Examples
    --------
    >>> canonical_modules(["v", "q_proj", "q"])
    ('q_proj', 'v_proj')
    """
    return tuple(sorted({SHORT_NAMES.get(name.strip(), name.strip()) for name in names}))


def known_modules(model: ModelArchitecture) -> tuple[str, ...]:
    """Return the modules of `model` that an adapter can change, in the order of a layer."""
    return tuple(dict.fromkeys(projection.module for group in model.layers for projection in group.projections))


def changed_modules(model: ModelArchitecture, target_modules: Iterable[str]) -> frozenset[str]:
    """Return the modules of `model` that `target_modules` names, `all-linear` being all that it has.

    Raises
    ------
    InputError: if the model's shapes are not known, or it has no module of that name.
    """
    known = known_modules(model)
    if not known:
        raise InputError(
            f"The shapes of the weight matrices of {model.name} are not known, and so not the size of its adapters.",
            hint="Name a model of the library, or the path of its config.json.",
        )
    wanted = frozenset(canonical_modules(target_modules))
    if ALL_LINEAR in wanted:
        return frozenset(known)
    if unknown := sorted(wanted - set(known)):
        raise InputError(
            f"{model.name} has no module {unknown[0]!r} whose shape is known.",
            hint=f"It has: {', '.join(known)}; or {ALL_LINEAR} for all of them.",
        )
    return wanted


def adapter_params(model: ModelArchitecture, *, rank: float, target_modules: Iterable[str]) -> float:
    """Return the parameters of an adapter: the sum of rank x (inputs + outputs) over the matrices that it changes.

    Grouped-query attention has narrower k_proj and v_proj; a module of experts counts once for each expert, routed and
    shared ones; latent attention (MLA) has modules of its own (q_a_proj, kv_b_proj, ...). Layers without a module that
    others have are passed over, as PEFT does. Where a checkpoint fuses matrices (qkv_proj, c_attn), this is the size of
    adapters on its parts, which is never below that of one on the whole of the same rank.

    Raises
    ------
    InputError: if the model's shapes are not known, or it has no module of that name.

    Examples
    --------
    >>> from planner.domain.model import LayerGroup, MixerKind, ModelArchitecture, Projection
    >>> layers = LayerGroup(
    ...     count=32, mixer=MixerKind.FULL_ATTENTION, mixer_params=0, kv_elements_per_token=0, n_query_heads=32,
    ...     n_kv_heads=32, head_dim=128, value_head_dim=128, mlp_params=0, mlp_active_params=0,
    ...     projections=tuple(Projection(module=f"{x}_proj", inputs=4096, outputs=4096) for x in "qkvo"),
    ... )
    >>> model = ModelArchitecture(
    ...     name="Llama-2-7b", hidden_size=4096, vocab_size=32000, layers=(layers,), is_embedding_tied=False,
    ...     max_context_tokens=4096, native_precision="fp16",
    ... )
    >>> adapter_params(model, rank=16, target_modules=["q", "k", "v", "o"])
    16777216.0
    """
    chosen = changed_modules(model, target_modules)
    return float(
        sum(
            group.count * projection.count * rank * (projection.inputs + projection.outputs)
            for group in model.layers
            for projection in group.projections
            if projection.module in chosen
        )
    )


SPLIT_BY_INPUTS = frozenset({"o_proj", "down_proj"})
"""Modules whose weights tensor parallelism splits by inputs; those of the others but `NOT_SPLIT` by outputs."""
NOT_SPLIT = frozenset({"q_a_proj", "kv_a_proj_with_mqa"})
"""Modules that every GPU has whole."""


def copied_params(model: ModelArchitecture, *, rank: float, modules: Collection[str]) -> float:
    """Return the parameters of an adapter that every GPU has where engines split only half of them by default.

    Of a module that is split by outputs these are the rank x inputs that come before it is, of one that is split by
    inputs the rank x outputs that come after.
    """

    def copied(projection: Projection) -> int:
        before = 0 if projection.module in SPLIT_BY_INPUTS else projection.inputs
        after = projection.outputs if projection.module in SPLIT_BY_INPUTS | NOT_SPLIT else 0
        return before + after

    return float(
        sum(
            group.count * projection.count * rank * copied(projection)
            for group in model.layers
            for projection in group.projections
            if projection.module in modules
        )
    )


def adapter_bytes(
    model: ModelArchitecture, adapter: Adapter, *, bytes_per_parameter: float = BYTES_PER_PARAMETER
) -> float:
    """Return the memory of an adapter beside its backbone; 0 if it is merged into it.

    Engines that keep adapters in slots of one rank (vLLM's --max-lora-rank) take that rank for each of them.

    Raises
    ------
    InputError: as `adapter_params`.
    """
    if adapter.is_merged:
        return 0.0
    return bytes_per_parameter * adapter_params(model, rank=adapter.rank, target_modules=adapter.target_modules)
