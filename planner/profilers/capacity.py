"""The largest steady rate that one replica serves within its SLOs, under continuous batching.

Every metric of the steady state grows with the load (planner.profilers.steady), so the answer is the largest load at
which each SLO holds and the requests under way fit the replica's slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation
from planner.domain.disaggregation import Role
from planner.domain.provenance import Provenance, ProvenanceKind
from planner.domain.slo import Metric
from planner.profilers import roofline
from planner.profilers.steady import SMALLEST_LOAD, Load, Replica, Tail, make_replica, steady_state, tail
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.domain.slo import Slo
    from planner.profilers.adapters import AdapterRoom
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.roofline import Array


ESTIMATE_SOURCE = "roofline estimate"

GRID_POINTS = 32
"""Loads tried at once; the best interval is refined until `GRID_LEVELS` grids were tried: the answer is exact to
log(largest / smallest load) / 31^3, that is 0.1%."""

GRID_LEVELS = 3

LOWEST_PERCENTILE = 0.5
"""Margins are for the upper tail; an SLO on a percentile below the median is held as if it were on the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketEstimates:
    """Estimates of several buckets on one replica; arrays of shape (buckets,)."""

    rate_rps: Array
    limiting: tuple[str, ...]
    """What keeps each bucket's rate from being larger, in words; the reason where the rate is 0."""
    ttft_s: Array
    """Means at that rate; infinite where the rate is the saturation rate, since the queue then grows without end."""
    tpot_s: Array
    e2e_s: Array
    batch: Array
    """Mean number of decoding sequences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketThroughput:
    """The estimate of one request size."""

    rate_rps: float
    provenance: Provenance
    limiting: str
    ttft_s: float
    tpot_s: float
    e2e_s: float
    batch: float


def slo_values(replica: Replica, load: Load, slos: Sequence[Slo]) -> list[Array]:
    """Return each SLO's statistic in seconds at the given loads."""
    tails: dict[float, Tail] = {}
    values = []
    for slo in slos:
        if slo.percentile is None:
            values.append(load.mean(slo.metric, replica.decode_steps))
            continue
        level = max(slo.percentile / 100.0, LOWEST_PERCENTILE)
        if level not in tails:
            tails[level] = tail(replica, load, level)
        at = tails[level]
        by_metric = {Metric.TTFT: at.ttft_s, Metric.TPOT: at.tpot_s}
        values.append(by_metric.get(slo.metric, at.ttft_s + replica.decode_steps * at.tpot_s))
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """Result of the search over loads; arrays of shape (buckets,)."""

    best: Array
    """Feasible arrivals per step of the largest rate; 0 = none."""
    beyond: Array
    """Smallest infeasible load tried; infinite = none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    is_feasible: NDArray[np.bool_]
    rate_rps: Array


def _search(attempt: Callable[[Array], _Trial], lowest: Array, highest: Array) -> _Search:
    """Find the load of the largest rate up to which everything tried is feasible, on nested logarithmic grids."""
    best, best_rate = np.zeros_like(lowest), np.zeros_like(lowest)
    beyond = np.full_like(lowest, np.inf)
    low, high = np.log(lowest), np.log(highest)
    rows = np.arange(len(lowest))
    for _level in range(GRID_LEVELS):
        grid = np.exp(np.linspace(low, high, GRID_POINTS))
        trial = attempt(grid)
        good = np.logical_and.accumulate(trial.is_feasible, axis=0)
        rates = np.where(good, trial.rate_rps, 0.0)
        top = rates.argmax(axis=0)
        is_better = rates[top, rows] > best_rate
        best, best_rate = np.where(is_better, grid[top, rows], best), np.maximum(best_rate, rates[top, rows])
        n_good = good.sum(axis=0)
        first_bad = np.minimum(n_good, GRID_POINTS - 1)
        beyond = np.where(n_good < GRID_POINTS, np.minimum(beyond, grid[first_bad, rows]), beyond)
        is_open = (n_good > 0) & (n_good < GRID_POINTS)
        low = np.where(is_open, np.log(grid[np.maximum(n_good - 1, 0), rows]), high)
        high = np.where(is_open, np.log(grid[first_bad, rows]), high)
    return _Search(best=best, beyond=beyond)


def _verdicts(replica: Replica, load: Load, slos: Sequence[Slo], values: Sequence[Array]) -> list[NDArray[np.bool_]]:
    """Return for the slots and for each SLO, whose statistics are `values`, whether it holds at the given loads."""
    held = [value <= slo.bound_s for value, slo in zip(values, slos, strict=True)]
    return [load.occupancy <= replica.slots, *held]


def refusals(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    *,
    input_tokens: Array,
    output_tokens: Array,
    params: EstimatorParams,
    role: Role = Role.BOTH,
    taken_bytes: float = 0.0,
) -> tuple[str, ...]:
    """Return per size in words why it cannot be served at all; "" where it can.

    taken_bytes : what adapters take of the room for KV caches on each GPU.
    """
    total = input_tokens + output_tokens
    reason = roofline.misfit(model, gpu, config, params)
    if reason:
        return (reason,) * len(total)
    kept_tokens = input_tokens + 1.0 if role is Role.PREFILL else total
    fits = roofline.kv_sequences(model, gpu, config, kept_tokens, params, taken_bytes=taken_bytes) >= 1
    beside = "the weights and adapters" if taken_bytes else "the weights"
    reasons = []
    for i, tokens in enumerate(total):
        if params.is_context_enforced and tokens > model.max_context_tokens:
            reasons.append(f"{tokens:,.0f} tokens exceed the model's context of {model.max_context_tokens:,} tokens")
        elif not fits[i]:
            reasons.append(f"the KV cache of one request of {kept_tokens[i]:,.0f} tokens does not fit beside {beside}")
        else:
            reasons.append("")
    return tuple(reasons)


def estimate_buckets(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    *,
    input_tokens: Array,
    output_tokens: Array,
    slos: Sequence[Slo],
    params: EstimatorParams,
    speed: Array | None = None,
    role: Role = Role.BOTH,
    handover_s: Array | None = None,
    adapters: AdapterRoom | None = None,
) -> BucketEstimates:
    """Return the largest steady rate of each request size on ONE replica such that every SLO holds.

    Without SLOs this is the saturation rate. A size that cannot be served has rate 0 and the reason in `limiting`.

    Parameters
    ----------
    input_tokens, output_tokens : shape (buckets,), in tokens; output counts the first token.
    speed : shape (buckets,), factor by which measurements say that the replica is faster than the bare estimate.
    role : what part of each request the replica serves; the SLOs are those of this part.
    handover_s : shape (buckets,), time in which a KV cache passes to or from the replica; counts as part of the TTFT.
    adapters : room for adapters that the replica has, all of them in use; rates are then of all adapters together.
    """
    prompt, output = (np.maximum(np.asarray(tokens, dtype=np.float64), 1.0) for tokens in (input_tokens, output_tokens))
    taken = 0.0 if adapters is None else _taken_bytes(model, gpu, config, adapters, params)
    reasons = refusals(
        model, gpu, config, input_tokens=prompt, output_tokens=output, params=params, role=role, taken_bytes=taken
    )
    served = np.flatnonzero([not reason for reason in reasons])
    rate, batch = np.zeros((2, len(prompt)))
    ttft, tpot, e2e = np.full((3, len(prompt)), np.inf)
    limiting = list(reasons)
    if len(served):
        replica = make_replica(
            model,
            gpu,
            config,
            input_tokens=prompt[served],
            output_tokens=output[served],
            params=params,
            speed=None if speed is None else speed[served],
            role=role,
            handover_s=None if handover_s is None else handover_s[served],
            taken_bytes=taken,
        )
        if adapters is None:
            found = _largest_rates(replica, slos, config)
        else:
            found = _with_adapters(replica, slos, config, gpu=gpu, model=model, adapters=adapters, params=params)
        rate[served], batch[served] = found.rate_rps, found.batch
        ttft[served], tpot[served], e2e[served] = found.ttft_s, found.tpot_s, found.e2e_s
        for i, text in zip(served, found.limiting, strict=True):
            limiting[i] = text
    return BucketEstimates(rate_rps=rate, limiting=tuple(limiting), ttft_s=ttft, tpot_s=tpot, e2e_s=e2e, batch=batch)


def _taken_bytes(
    model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, adapters: AdapterRoom, params: EstimatorParams
) -> float:
    if roofline.misfit(model, gpu, config, params):
        return 0.0  # it does not run at all, adapters or not
    memory = roofline.replica_memory(model, gpu, config, params)
    return adapters.taken_bytes(
        config.gpus_per_replica, room_bytes=memory.kv_bytes, activation_bytes=memory.activation_bytes
    )


BATCH_ROUNDS = 3
"""Assumed batches of adapters' steps, each the one found with the last."""


def _with_adapters(
    replica: Replica,
    slos: Sequence[Slo],
    config: EngineConfig,
    *,
    gpu: GpuSpec,
    model: ModelArchitecture,
    adapters: AdapterRoom,
    params: EstimatorParams,
) -> BucketEstimates:
    """Return the largest rates of a replica whose steps also read adapters, those of all its adapters together.

    What is read depends on the batch, and the batch on how long steps take: the first round assumes the fullest batch,
    each later one the largest batch found before; the last one counts whose batch is no larger than assumed. Processes
    that share the weights take turns: all are taken to be busy, so each is as many times as slow as they are many.
    """
    efficiency = roofline.engine_efficiency(gpu, config, params)
    rate = gpu.bandwidth_bytes_per_s * efficiency.bandwidth_fraction
    turns = adapters.count if adapters.isolation is Isolation.SHARED_BACKBONE else 1
    plain = roofline.step_model(model, gpu, config, params)
    overhead = plain.overhead_s + model.n_layers * efficiency.adapter_overhead_s
    batch = float(replica.slots.max())
    best: BucketEstimates | None = None
    for _ in range(BATCH_ROUNDS):
        read_s = adapters.read_bytes(config.gpus_per_replica, batch) / rate
        steps = replace(plain, dense_read_s=plain.dense_read_s + read_s, overhead_s=overhead)
        found = _largest_rates(replace(replica, steps=steps, speed=replica.speed / turns), slos, config)
        largest = float(found.batch.max())
        if best is not None and largest > batch:
            break
        best = found
        if turns > 1 or largest >= batch:
            break
        batch = largest
    return replace(best or found, rate_rps=(best or found).rate_rps * turns)


def _largest_rates(replica: Replica, slos: Sequence[Slo], config: EngineConfig) -> BucketEstimates:
    highest = replica.token_budget / (replica.input_tokens + replica.decode_steps)
    lowest = np.full_like(highest, SMALLEST_LOAD)

    def attempt(loads: Array) -> _Trial:
        load = steady_state(replica, loads)
        verdicts = _verdicts(replica, load, slos, slo_values(replica, load, slos))
        return _Trial(is_feasible=np.logical_and.reduce(verdicts), rate_rps=load.rate_rps)

    found = _search(attempt, lowest, highest)
    is_served = found.best > 0
    at = steady_state(replica, np.where(is_served, found.best, lowest))
    texts = _limiting_texts(replica, slos, config, found, lowest)
    return BucketEstimates(
        rate_rps=np.where(is_served, at.rate_rps, 0.0),
        limiting=texts,
        ttft_s=at.ttft_s,
        tpot_s=at.tpot_s,
        e2e_s=at.mean(Metric.E2E, replica.decode_steps),
        batch=np.where(is_served, at.batch, 0.0),
    )


def _limiting_texts(
    replica: Replica, slos: Sequence[Slo], config: EngineConfig, found: _Search, lowest: Array
) -> tuple[str, ...]:
    """Name what fails just beyond each rate; for a rate of 0, the SLO that a lone request misses and by how much."""
    stopped = np.isfinite(found.beyond)
    load = steady_state(replica, np.where(stopped, found.beyond, lowest))
    values = slo_values(replica, load, slos)
    verdicts = _verdicts(replica, load, slos, values)
    names = [str(slo) for slo in slos]
    failures = ~np.array(verdicts)
    texts = []
    for i in range(len(lowest)):
        failed = np.flatnonzero(failures[:, i]).tolist()
        if not stopped[i] or not failed:
            texts.append(f"max_num_batched_tokens {config.max_num_batched_tokens}")
        elif failed[0] == 0:
            texts.append(_slots_text(float(replica.slots[i]), config))
        elif found.best[i] > 0:
            texts.append(names[failed[0] - 1])
        else:
            texts.append("; ".join(_missed_text(slos[k - 1], float(values[k - 1][i])) for k in failed))
    return tuple(texts)


def _slots_text(slots: float, config: EngineConfig) -> str:
    if slots >= config.max_num_seqs:
        return f"max_num_seqs {config.max_num_seqs}"
    return f"kv memory: {slots:.0f} requests at a time"


def _missed_text(slo: Slo, best_s: float) -> str:
    best, bound = format_duration(best_s), format_duration(slo.bound_s)
    return f"{slo.metric} {slo.statistic} {best} for a lone request > {bound}"


def bucket_throughput(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    *,
    input_tokens: float,
    output_tokens: float,
    slos: Sequence[Slo],
    params: EstimatorParams,
) -> BucketThroughput:
    """Return the largest steady rate of one request size on ONE replica such that every SLO holds."""
    found = estimate_buckets(
        model,
        gpu,
        config,
        input_tokens=np.array([input_tokens]),
        output_tokens=np.array([output_tokens]),
        slos=slos,
        params=params,
    )
    return BucketThroughput(
        rate_rps=float(found.rate_rps[0]),
        provenance=Provenance(kind=ProvenanceKind.ESTIMATED, source=ESTIMATE_SOURCE),
        limiting=found.limiting[0],
        ttft_s=float(found.ttft_s[0]),
        tpot_s=float(found.tpot_s[0]),
        e2e_s=float(found.e2e_s[0]),
        batch=float(found.batch[0]),
    )
