"""The steady state of one replica under continuous batching: its batch, its steps and the queues in front of them.

The load is described by `a`, the mean number of requests that arrive per engine step. Everything else follows from it
without iteration: a request decodes for D = output - 1 steps, so B = a D sequences decode in the mean step, which also
carries a x input prompt tokens; that fixes the step's time t, the rate X = a / t, and the waiting times. The
derivation, the queueing formulas and their sources: docs/explanation/throughput.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.disaggregation import Role
from planner.domain.slo import Metric
from planner.profilers import roofline

if TYPE_CHECKING:
    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.roofline import Array, StackedSteps, StepModel

SMALLEST_LOAD = 1e-8
"""Smallest load tried, in requests per step: stands for a lone request."""

LARGEST_FEEDBACK = 0.999
"""Keeps the batch's dispersion finite where a step is nothing but decoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica and the sizes of the requests asked about; arrays of shape (buckets,)."""

    steps: StepModel | StackedSteps
    input_tokens: Array
    decode_steps: Array
    """Output tokens beyond the first, which the prefill yields."""
    decode_s: Array
    """Attention time of one decoding sequence, at the mean context: input + output / 2."""
    attention_s: Array
    """Attention time of one prompt token."""
    slots: Array
    """Sequences that run at once: KV memory at full length, and max_num_seqs."""
    token_budget: float | Array
    """Tokens that one step may carry (max_num_batched_tokens)."""
    arrival_scv: float
    service_scv: float
    handover_s: Array
    """Time in which a request's KV cache passes to a decode replica, or comes from a prefill replica; else 0."""
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
    mean_step_s: Array
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
    role: Role = Role.BOTH,
    handover_s: Array | None = None,
    taken_bytes: float = 0.0,
) -> Replica:
    """Return the replica's step model and what depends on the requests' sizes.

    A prefill replica is one whose answers are one token long. A decode replica is one whose prompts are one token long:
    the KV cache of the others has come over the network, and the last one is computed anew for the first token's sake.
    `taken_bytes` is what something else takes of the room for KV caches on each GPU.
    """
    steps = roofline.step_model(model, gpu, config, params)
    reserved = roofline.engine_efficiency(gpu, config, params).output_reserve_fraction
    kept_tokens = input_tokens + (1.0 if role is Role.PREFILL else output_tokens * reserved)
    in_memory = roofline.kv_sequences(model, gpu, config, kept_tokens, params, taken_bytes=taken_bytes)
    decode_steps = np.maximum(output_tokens - 1.0, 0.0)
    is_decode = role is Role.DECODE
    last_token_s = roofline.decode_attention_s(steps, model, config, input_tokens)
    return Replica(
        steps=steps,
        input_tokens=np.ones_like(input_tokens) if is_decode else input_tokens,
        decode_steps=np.zeros_like(decode_steps) if role is Role.PREFILL else decode_steps,
        decode_s=roofline.decode_attention_s(steps, model, config, input_tokens + output_tokens / 2),
        attention_s=last_token_s if is_decode else roofline.prefill_attention_s(steps, model, input_tokens),
        handover_s=np.zeros_like(input_tokens) if handover_s is None else handover_s,
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

    A last, partial chunk also waits for the decode part of its step. What the prompt adds to its steps takes longer
    than at saturation (`Efficiency.lone_prefill_factor`); this delays its first token and costs no throughput. Nor does
    it that a chunk passes pipeline stages one after the other, while a step is as long as one stage's part of it.
    """
    chunks = replica.input_tokens / mix.chunk_tokens
    lone, zero = replica.steps.lone_prefill_factor, np.zeros_like(mix.chunk_tokens)
    through = replica.step_s(zero, mix.chunk_tokens * replica.steps.stages) - replica.step_s(zero, mix.chunk_tokens)
    delay = chunks * (lone - 1.0) * (mix.mixed_s - mix.decode_only_s) + lone * through
    return chunks * mix.mixed_s + np.where(chunks > 1.0, mix.decode_only_s, 0.0) + delay


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

    own = prefill_s(replica, mix) + replica.handover_s
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
        mean_step_s=mix.mean_s,
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


def wait_quantile(mean_wait_s: Array, probability: Array, level: float) -> Array:
    """Quantile of a wait that is 0 with probability 1 - p and else exponential with the given mean."""
    tail = np.log(np.maximum(probability, 1e-300) / (1.0 - level))
    return np.where(tail > 0, mean_wait_s * np.maximum(tail, 0.0), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """Quantiles of all requests' latencies; arrays of shape (loads, buckets)."""

    ttft_s: Array
    tpot_s: Array


def tail(replica: Replica, load: Load, level: float) -> Tail:
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
    waits = wait_quantile(load.prefill_wait_s, load.prefill_utilisation, level)
    waits = waits + wait_quantile(load.slot_wait_s, load.slot_wait_probability, level)
    own = prefill_s(replica, mix) + replica.handover_s
    return Tail(ttft_s=started + waits + own, tpot_s=np.maximum(mix.mean_s, load.tpot_s))
