"""The largest steady rate that one replica serves within its SLOs, under continuous batching.

The load is described by `a`, the mean number of requests that arrive per engine step. Everything else follows from it
without iteration: a request decodes for D = output - 1 steps, so by Little's law B = a D sequences decode in each
step, which also carries a x input prompt tokens; that fixes the step's time t, the rate X = a / t, and the waiting
times of the queues in front. Every metric grows with `a`, so the answer is the largest feasible `a`. The derivation,
the queueing formulas and their sources: docs/explanation/throughput.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.provenance import Provenance, ProvenanceKind
from planner.domain.slo import Metric
from planner.profilers import roofline
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.domain.slo import Slo
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.roofline import Array, StepModel


ESTIMATE_SOURCE = "roofline estimate"

GRID_POINTS = 32
"""Loads tried at once; the best interval is refined until `GRID_LEVELS` grids were tried: the answer is exact to
log(largest / smallest load) / 31^3, that is 0.1%."""

GRID_LEVELS = 3

SMALLEST_LOAD = 1e-8
"""Smallest load tried, in requests per step: stands for a lone request."""

LARGEST_FEEDBACK = 0.999
"""Keeps the batch's dispersion finite where a step is nothing but decoding."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica and the sizes of the requests asked about; arrays of shape (buckets,)."""

    steps: StepModel
    input_tokens: Array
    decode_steps: Array
    """Output tokens beyond the first, which the prefill yields."""
    decode_s: Array
    """Attention time of one decoding sequence, at the mean context: input + output / 2."""
    attention_s: Array
    """Attention time of one prompt token."""
    slots: Array
    """Sequences that run at once: KV memory at full length, and max_num_seqs."""
    token_budget: float
    """Tokens that one step may carry (max_num_batched_tokens)."""
    arrival_scv: float
    service_scv: float
    speed: Array
    """How many times as fast as the bare estimate every step is; 1 where nothing was measured."""

    def step_s(self, sequences: Array, prefill: Array) -> Array:
        """Return the time of a step with so many decoding sequences and prompt tokens."""
        bare = self.steps.step_s(
            sequences=sequences, prefill=prefill, decode_s=self.decode_s, attention_s=self.attention_s
        )
        return bare / self.speed


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMix:
    """Mean and prompt-carrying steps at one load."""

    mean_s: Array
    mixed_s: Array
    decode_only_s: Array
    chunk_tokens: Array
    """Prompt tokens of one request in one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The steady state at some loads; arrays of shape (loads, buckets)."""

    rate_rps: Array
    batch: Array
    arrivals_per_step: Array
    dispersion: Array
    """Variance over mean of the number of decoding sequences; 1 on an idle replica."""
    prefill_wait_s: Array
    prefill_utilisation: Array
    slot_wait_s: Array
    """Mean wait for a slot of those that wait."""
    slot_wait_probability: Array
    occupancy: Array
    """Slots in use, prefills included."""
    ttft_s: Array
    tpot_s: Array

    def mean(self, metric: Metric, decode_steps: Array) -> Array:
        """Return the mean of a metric in seconds."""
        if metric is Metric.TTFT:
            return self.ttft_s
        if metric is Metric.TPOT:
            return self.tpot_s
        return self.ttft_s + decode_steps * self.tpot_s


def make_replica(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    *,
    input_tokens: Array,
    output_tokens: Array,
    params: EstimatorParams,
    speed: Array | None = None,
) -> Replica:
    """Return the replica's step model and what depends on the requests' sizes."""
    steps = roofline.step_model(model, gpu, config, params)
    in_memory = roofline.kv_sequences(model, gpu, config, input_tokens + output_tokens, params)
    return Replica(
        steps=steps,
        input_tokens=input_tokens,
        decode_steps=np.maximum(output_tokens - 1.0, 0.0),
        decode_s=roofline.decode_attention_s(steps, model, config, input_tokens + output_tokens / 2),
        attention_s=roofline.prefill_attention_s(steps, model, input_tokens),
        slots=np.minimum(in_memory, float(config.max_num_seqs)),
        token_budget=float(config.max_num_batched_tokens),
        arrival_scv=params.arrival_scv,
        service_scv=params.service_scv,
        speed=np.ones_like(input_tokens) if speed is None else speed,
    )


def step_mix(replica: Replica, sequences: Array, arrivals_per_step: Array) -> StepMix:
    """Return the mean step when `arrivals_per_step` prompts come in per step of `sequences` decoding ones.

    A prompt is worked off in chunks of q = min(input, budget - sequences) tokens; p prompt tokens come in per step. By
    chance a share f = 1 - exp(-p / q) of the steps carries any of them (at least p / budget of the steps must), p / f
    tokens each, with the spread of a Poisson number of chunks; the others only decode. So a long prompt's arithmetic
    is not assumed to hide behind the weight reads of many decode steps.
    """
    room = np.maximum(replica.token_budget - sequences, 1.0)
    chunk = np.minimum(replica.input_tokens, room)
    per_step = np.minimum(arrivals_per_step * replica.input_tokens, room)
    chunks = per_step / chunk
    share = np.maximum(-np.expm1(-chunks), per_step / room)
    tokens = per_step / share
    variance = np.maximum((chunks + np.square(chunks)) / share - np.square(chunks / share), 0.0)
    spread = np.minimum(np.sqrt(variance) * chunk, np.minimum(room - tokens, tokens))
    mixed = (replica.step_s(sequences, tokens - spread) + replica.step_s(sequences, tokens + spread)) / 2
    alone = replica.step_s(sequences, np.zeros_like(chunk))
    mean = share * mixed + (1.0 - share) * alone
    return StepMix(mean_s=mean, mixed_s=mixed, decode_only_s=alone, chunk_tokens=chunk)


def prefill_s(replica: Replica, mix: StepMix) -> Array:
    """Return the time of one prompt's own prefill in the steps of `mix`, to its first token.

    A last, partial chunk also waits for the decode part of its step.
    """
    chunks = replica.input_tokens / mix.chunk_tokens
    return chunks * mix.mixed_s + np.where(chunks > 1.0, mix.decode_only_s, 0.0)


def busy_probability(batch: Array) -> Array:
    """Return the probability that a request finds the engine at work: 1 - exp(-B), the batch being Poisson."""
    return -np.expm1(-batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowding:
    """How the batch fluctuates around its mean, and what one of its requests therefore sees."""

    dispersion: Array
    """F: variance over mean of the batch."""
    coupling: Array
    """G: covariance of the batch and a step's arrivals, over the mean of the latter."""


def crowding(replica: Replica, mix: StepMix, lone_s: Array) -> Crowding:
    """Return the fluctuations of the batch at the load of `mix`.

    Arrivals are Poisson in time, so a long step brings more of them, which makes the next steps longer. Counted in
    steps that is a self-exciting process: each prompt at once lengthens its step, by the share r = 1 - t_d / t of the
    step's time, and then every step of its decoding, by the share e = 1 - t_1 / t_d; t, t_d and t_1 are the mean step,
    the mean step without prompts and the step of a lone sequence. Over windows that are long against the feedback the
    dispersion is 1 / ((1 - r)^2 (1 - e)) = t^2 / (t_d t_1), and G = r^2 / ((1 - r)^2 (1 + r)) + e F; a window of D
    steps sees the part 1 - (1 - exp(-x)) / x of the fast feedback, x = D (1 - r) / (chunks per prompt). With r = 0
    the law is the negative binomial one of a birth-death process with death rates n / (a + b n).
    """
    idle = mix.decode_only_s / mix.mean_s
    fast = 1.0 - idle
    slow = np.clip(1.0 - lone_s / mix.decode_only_s, 0.0, LARGEST_FEEDBACK)
    chunks = replica.input_tokens / mix.chunk_tokens
    window = np.maximum(replica.decode_steps * idle / chunks, 1e-9)
    seen = 1.0 + np.expm1(-window) / window
    dispersion = 1.0 + (1.0 / (np.square(idle) * (1.0 - slow)) - 1.0) * seen
    coupling = np.square(fast / idle) / (1.0 + fast) * seen + slow * dispersion
    return Crowding(dispersion=dispersion, coupling=coupling)


def steady_state(replica: Replica, arrivals_per_step: Array) -> Load:
    """Return the replica's steady state under Poisson arrivals (or `arrival_scv`), `arrivals_per_step` of them a step.

    TPOT is the step that a request sees, N = B + F sequences and a + G / D arrivals: longer than the mean step, since
    more requests are there to see the long ones. Waits: in front of the prefills P-K/Allen-Cunneen with s = the
    prompt's share of full steps; in front of the slots Sakasegawa's approximation of the GI/G/m queue, with Hayward's
    equivalent number of servers, slots / F, for a load more peaked than Poisson's.
    """
    has_decode = replica.decode_steps > 0
    batch = arrivals_per_step * replica.decode_steps
    decoding = np.where(has_decode, np.minimum(batch + 1.0, replica.slots), 0.0)
    mix = step_mix(replica, decoding, arrivals_per_step)
    rate = arrivals_per_step / mix.mean_s
    lone = replica.step_s(np.where(has_decode, 1.0, 0.0), np.zeros_like(batch))
    crowd = crowding(replica, mix, lone)
    steps = np.maximum(replica.decode_steps, 1.0)
    crowded = np.where(has_decode, np.minimum(batch + crowd.dispersion, replica.slots), 0.0)
    most = np.maximum(arrivals_per_step, replica.slots / steps)
    seen = step_mix(replica, crowded, np.minimum(arrivals_per_step + crowd.coupling / steps, most))
    tpot = np.where(has_decode, np.maximum(seen.mean_s, mix.mean_s), mix.mean_s)
    variability = (replica.arrival_scv + replica.service_scv) / 2

    room = np.maximum(replica.token_budget - decoding, 1.0)
    service = replica.input_tokens * replica.step_s(decoding, room) / room
    utilisation = rate * service
    prefill_wait = np.where(utilisation < 1, variability * service / np.maximum(1 - utilisation, 1e-12), np.inf)

    own = prefill_s(replica, mix)
    residence = own + replica.decode_steps * tpot
    occupancy = rate * (own + replica.decode_steps * mix.mean_s)
    slots = np.maximum(replica.slots, 1.0)
    filled = np.minimum(rate * residence / slots, 1.0)
    servers = np.maximum(slots / crowd.dispersion, 1.0)
    free = np.maximum(1.0 - filled, 1e-12) * servers
    slot_wait = np.where(filled < 1, variability * residence / free, np.inf)
    slot_probability = filled ** (np.sqrt(2.0 * (servers + 1.0)) - 1.0)

    started = busy_probability(batch) * mix.mean_s / 2
    wait = utilisation * prefill_wait + np.where(slot_probability > 0, slot_probability * slot_wait, 0.0)
    return Load(
        rate_rps=rate,
        batch=batch,
        arrivals_per_step=arrivals_per_step,
        dispersion=crowd.dispersion,
        prefill_wait_s=prefill_wait,
        prefill_utilisation=utilisation,
        slot_wait_s=slot_wait,
        slot_wait_probability=slot_probability,
        occupancy=occupancy,
        ttft_s=started + wait + own,
        tpot_s=tpot,
    )


def batch_quantile(load: Load, level: float) -> Array:
    """Return the `level` quantile of the number of other sequences that a decoding request shares its steps with.

    A request is likelier to be there while the batch is large: it sees the negative binomial law biased by size, with
    mean M = B + F - 1 and variance M F. The quantile is Cornish-Fisher's, the law's skewness being (2 F - 1) /
    sqrt(M F); it fades out where even one other sequence is rarer than the tail.
    """
    z = NormalDist().inv_cdf(level)
    mean = load.batch + load.dispersion - 1.0
    skew = max(0.0, z * z - 1.0) / 6.0 * (2.0 * load.dispersion - 1.0)
    spread = z * np.sqrt(mean * load.dispersion) + skew
    return mean + spread * np.minimum(1.0, load.batch / (1.0 - level))


def _wait_quantile(mean_wait_s: Array, probability: Array, level: float) -> Array:
    """Quantile of a wait that is 0 with probability 1 - p and else exponential with the given mean."""
    tail = np.log(np.maximum(probability, 1e-300) / (1.0 - level))
    return np.where(tail > 0, mean_wait_s * np.maximum(tail, 0.0), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tail:
    ttft_s: Array
    tpot_s: Array


def tail(replica: Replica, load: Load, level: float) -> _Tail:
    """Return the `level` quantiles of TTFT and TPOT, on the safe side.

    TPOT: the mean step at the batch's quantile, with as many prompts coming in as would keep it there. TTFT: quantiles
    of the two waits (exponential tails), one step under way, and the prefill beside a batch at its quantile; adding
    quantiles bounds the quantile of the sum for positively dependent parts.
    """
    crowd = batch_quantile(load, level)
    steps = np.maximum(replica.decode_steps, 1.0)
    arrivals = np.where(
        replica.decode_steps > 0, np.maximum(load.arrivals_per_step, crowd / steps), load.arrivals_per_step
    )
    decoding = np.where(replica.decode_steps > 0, np.minimum(crowd + 1.0, replica.slots), 0.0)
    mix = step_mix(replica, decoding, np.minimum(arrivals, np.maximum(load.arrivals_per_step, replica.slots / steps)))
    started = np.minimum(1.0, busy_probability(load.batch) / (1.0 - level)) * mix.mean_s
    waits = _wait_quantile(load.prefill_wait_s, load.prefill_utilisation, level)
    waits = waits + _wait_quantile(load.slot_wait_s, load.slot_wait_probability, level)
    return _Tail(ttft_s=started + waits + prefill_s(replica, mix), tpot_s=np.maximum(mix.mean_s, load.tpot_s))


def slo_values(replica: Replica, load: Load, slos: Sequence[Slo]) -> list[Array]:
    """Return each SLO's statistic in seconds at the given loads."""
    tails: dict[float, _Tail] = {}
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


def _verdicts(replica: Replica, load: Load, slos: Sequence[Slo]) -> list[NDArray[np.bool_]]:
    """Return for the slots and for each SLO whether it holds at the given loads."""
    values = slo_values(replica, load, slos)
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
) -> tuple[str, ...]:
    """Return per size in words why it cannot be served at all; "" where it can."""
    total = input_tokens + output_tokens
    reason = roofline.misfit(model, gpu, config, params)
    if reason:
        return (reason,) * len(total)
    fits = roofline.kv_sequences(model, gpu, config, total, params) >= 1
    reasons = []
    for i, tokens in enumerate(total):
        if params.is_context_enforced and tokens > model.max_context_tokens:
            reasons.append(f"{tokens:,.0f} tokens exceed the model's context of {model.max_context_tokens:,} tokens")
        elif not fits[i]:
            reasons.append(f"the KV cache of one request of {tokens:,.0f} tokens does not fit beside the weights")
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
) -> BucketEstimates:
    """Return the largest steady rate of each request size on ONE replica such that every SLO holds.

    Without SLOs this is the saturation rate. A size that cannot be served has rate 0 and the reason in `limiting`.

    Parameters
    ----------
    input_tokens, output_tokens : shape (buckets,), in tokens; output counts the first token.
    speed : shape (buckets,), factor by which measurements say that the replica is faster than the bare estimate.
    """
    prompt, output = (np.maximum(np.asarray(tokens, dtype=np.float64), 1.0) for tokens in (input_tokens, output_tokens))
    reasons = refusals(model, gpu, config, input_tokens=prompt, output_tokens=output, params=params)
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
        )
        found = _largest_rates(replica, slos, config)
        rate[served], batch[served] = found.rate_rps, found.batch
        ttft[served], tpot[served], e2e[served] = found.ttft_s, found.tpot_s, found.e2e_s
        for i, text in zip(served, found.limiting, strict=True):
            limiting[i] = text
    return BucketEstimates(rate_rps=rate, limiting=tuple(limiting), ttft_s=ttft, tpot_s=tpot, e2e_s=e2e, batch=batch)


def _largest_rates(replica: Replica, slos: Sequence[Slo], config: EngineConfig) -> BucketEstimates:
    highest = replica.token_budget / (replica.input_tokens + replica.decode_steps)
    lowest = np.full_like(highest, SMALLEST_LOAD)

    def attempt(loads: Array) -> _Trial:
        load = steady_state(replica, loads)
        verdicts = _verdicts(replica, load, slos)
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
    values, verdicts = slo_values(replica, load, slos), _verdicts(replica, load, slos)
    texts = []
    for i in range(len(lowest)):
        failed = [k for k, verdict in enumerate(verdicts) if not verdict[i]]
        if not stopped[i] or not failed:
            texts.append(f"max_num_batched_tokens {config.max_num_batched_tokens}")
        elif failed[0] == 0:
            texts.append(_slots_text(float(replica.slots[i]), config))
        elif found.best[i] > 0:
            texts.append(str(slos[failed[0] - 1]))
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
