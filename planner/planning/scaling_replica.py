"""One service as replicas that come and go: the kinds that could serve it, and how its requests fare on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation
from planner.domain.hardware import EngineConfig
from planner.domain.precision import kv_cache_bytes, state_bytes
from planner.domain.scaling import ScaledService, ScalingWay
from planner.domain.slo import Metric
from planner.errors import InputError
from planner.optimize.keep_alive import (
    COMMON_KEEP_ALIVE_S,
    HUAWEI_KEEP_ALIVE_S,
    KeepAlivePrices,
    best_keep_alive,
    idle_gaps,
)
from planner.optimize.preload import Tier
from planner.planning.estimate import estimate_questions
from planner.planning.estimate_points import Question
from planner.planning.function_case import POOL_BATCH, Sizes, batch_times
from planner.planning.function_objectives import CONFIDENCE, values_s
from planner.planning.scaling_ways import CLOUDS, HOUR_S, LEARNT, MOST_HELD, SEED, dated
from planner.profilers.adapter_batching import BatchLatency, batch_cap
from planner.profilers.roofline import misfit, replica_memory
from planner.profilers.startup import start_up
from planner.simulate.functions.replay import replay_functions
from planner.simulate.functions.setting import NOTHING, Functions, Policy, Setting, StartTimes
from planner.simulate.statistics import next_mean, next_share
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.domain.hardware import GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.domain.pay_per_use import PayPerUse
    from planner.domain.scaling import Doubt
    from planner.domain.slo import Slo
    from planner.files.request.scaling import ScaleToZero
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.startup import Quantiles
    from planner.simulate.functions.records import FunctionReplay
    from planner.simulate.steps import Floats

MOST_REPLICAS = 256
PROMPT_TOKENS = tuple(2.0**power for power in range(5, 18, 2))
"""Lengths of prompts whose times are estimated; between them lies a line."""
FIXED_RULES = {"60 s": HUAWEI_KEEP_ALIVE_S, "10 min": COMMON_KEEP_ALIVE_S}
"""What clouds do without being asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests of one half of a trace, from 0 on."""

    arrival_s: Floats
    input_tokens: Floats
    output_tokens: Floats
    duration_s: float
    headroom_fraction: float = 0.0
    """Objectives have to hold at so much more than this rate, too, as the fleet's have."""

    def at_load(self, load: float) -> Requests:
        """Return the same requests so many times as close together."""
        return replace(self, arrival_s=self.arrival_s / load, duration_s=self.duration_s / load, headroom_fraction=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaKind:
    """A configuration on one kind of GPU, as a replay needs it."""

    gpu: str
    n_gpus: int
    setting: Setting
    most_batch: int
    """Requests that one replica serves at a time: what its memory holds and the bounds allow."""
    mean_output_tokens: float
    config: EngineConfig = field(default_factory=EngineConfig)
    prompt_times: tuple[tuple[float, float], ...] = ()
    """Prompts' lengths in tokens, ascending, and the seconds until their first token alone; empty = all as the mean."""

    @property
    def alone_s(self) -> float:
        """How long a request keeps a replica busy that it has for itself."""
        setting = self.setting
        return setting.prefill.first_s + (0.0 if setting.decode is None else setting.decode.first_s)

    @property
    def start_s(self) -> float:
        """Median of a start, without waiting for a machine."""
        start = self.setting.start
        return math.fsum(
            part.p50 for part in (start.container_s, start.libraries_s, start.backbone_s[Tier.DISK], start.kernels_s)
        )


def replica_kind(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    sizes: Sizes,
    *,
    slos: Sequence[Slo],
    choice: ScaleToZero,
    params: EstimatorParams,
) -> ReplicaKind | None:
    """Return the kind; None if the model does not fit, is not known there, or misses a bound with one request alone."""
    if misfit(model, gpu, config, params):
        return None
    n_gpus = config.gpus_per_replica
    room = replica_memory(model, gpu, config, params).kv_bytes * n_gpus
    each = kv_cache_bytes(model, sizes.input_tokens + sizes.output_tokens) + state_bytes(model)
    fits = min(config.max_num_seqs, math.floor(room / each) if each > 0 else config.max_num_seqs)
    if fits < 1:
        return None
    try:
        prefill, decode = batch_times(model, gpu, config, sizes, params, adapters=None, batch=min(fits, POOL_BATCH))
    except InputError:
        return None  # nothing is known of it
    most = math.floor(min(fits, _within_bounds(prefill, decode, slos, sizes.output_tokens)))
    if most < 1:
        return None
    measured = start_up(
        model,
        gpu,
        precision=config.precision,
        n_gpus=n_gpus,
        storage_bytes_per_s=choice.storage,
        loader=choice.loader,
    )
    start = StartTimes(
        container_s=measured.container_s,
        libraries_s=measured.libraries_s,
        backbone_s={Tier.DISK: measured.weights_s},
        backbone_shared_s=NOTHING,
        adapter_s={Tier.DISK: NOTHING, Tier.HOST: NOTHING},
        kernels_s=measured.compile_s if choice.graphs else NOTHING,
    )
    setting = Setting(
        gpu_bytes=1.0,  # a replica fills its machine, whatever that has
        host_bytes=math.inf,
        backbone_bytes=1.0,
        context_bytes=0.0,
        kv_bytes=0.0,
        container_bytes=1.0,
        prefill=prefill,
        decode=decode,
        decode_steps=sizes.output_tokens - 1 if decode is not None else None,
        start=start,
    )
    return ReplicaKind(
        gpu=gpu.name,
        n_gpus=n_gpus,
        setting=setting,
        most_batch=most,
        mean_output_tokens=sizes.output_tokens,
        config=config,
        prompt_times=_prompt_times(model, gpu, config, sizes, params),
    )


def _prompt_times(
    model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, sizes: Sizes, params: EstimatorParams
) -> tuple[tuple[float, float], ...]:
    """Return how long first tokens of prompts of several lengths take alone, by the estimator, as far as it knows."""
    lengths = sorted({*PROMPT_TOKENS, sizes.input_tokens})
    questions = [
        Question(
            model=model,
            gpu=gpu,
            config=config,
            n_replicas=1.0,
            input_tokens=length,
            output_tokens=sizes.output_tokens,
            is_fixed_length=True,
            load_kind="static_batch",
            load=1.0,
        )
        for length in lengths
    ]
    times = (
        (answer.estimate, length) for answer, length in zip(estimate_questions(questions, params), lengths, strict=True)
    )
    return tuple((length, float(found.ttft_s["mean"] or 0.0)) for found, length in times if found is not None)


def _within_bounds(
    prefill: BatchLatency, decode: BatchLatency | None, slos: Sequence[Slo], output_tokens: float
) -> float:
    """Return the largest batch of which each request meets every bound; 0 if not even one does."""
    most = math.inf
    for slo in slos:
        if slo.metric is Metric.TTFT:
            most = min(most, batch_cap(prefill, slo_s=slo.bound_s))
        elif decode is not None and slo.metric is Metric.TPOT:
            most = min(most, batch_cap(decode, slo_s=slo.bound_s * (output_tokens - 1)))
        elif slo.metric is Metric.E2E:
            later = decode or BatchLatency(first_s=1e-9, per_request_s=0.0)
            both = BatchLatency(
                first_s=prefill.first_s + later.first_s, per_request_s=prefill.per_request_s + later.per_request_s
            )
            most = min(most, batch_cap(both, slo_s=slo.bound_s))
    return most


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A kind of replica with what it costs."""

    way: ScalingWay
    kind: ReplicaKind
    billing: PayPerUse
    """Of a GPU; a replica pays `kind.n_gpus` of them."""
    provision_s: Quantiles = NOTHING
    """Until a machine is there with its image."""
    doubts: tuple[Doubt, ...] = ()
    is_barred: bool = False
    """It is compared, and never chosen."""

    def is_of(self, way: ScaledService) -> bool:
        """Return whether a way in a plan is of this candidate."""
        config = self.kind.config
        return (self.way, self.billing.name, self.kind.gpu) == (way.way, way.offer, way.gpu) and (
            config.precision,
            config.tensor_parallel,
            config.pipeline_parallel,
        ) == (way.precision, way.tensor_parallel, way.pipeline_parallel)

    @property
    def usd_per_idle_s(self) -> float:
        """What a replica that waits costs."""
        return self.billing.usd_per_container_s * self.kind.n_gpus if self.billing.bills_idle else 0.0

    @property
    def usd_per_start(self) -> float:
        """What a start adds to the bill: its GPU time, and what is billed at least for a request that is alone.

        What is rented is paid while the machine is made ready, too.
        """
        start = self.kind.setting.start
        free_s = 0.0 if self.billing.bills_container_start else start.container_s.p50
        held_s = self.kind.start_s + self.provision_s.p50 - free_s + self.kind.alone_s
        billed_s = float(self.billing.billed_s(held_s)) if self.billing.bills_idle else held_s
        return self.billing.usd_per_container_s * self.kind.n_gpus * (billed_s - self.kind.alone_s)

    def misses_when_cold(self, slos: Sequence[Slo]) -> bool:
        """Return whether a request that waits for a start of median length is beyond a bound."""
        start_s = self.kind.start_s + self.provision_s.p50
        ends_s = {
            Metric.TTFT: start_s + self.kind.setting.prefill.first_s,
            Metric.E2E: start_s + self.kind.alone_s,
            Metric.TPOT: 0.0,
        }
        return any(ends_s[slo.metric] > slo.bound_s for slo in slos)

    @property
    def usd_per_request(self) -> float:
        """What a request costs by itself on a replica that starts for it: candidates are sorted by it."""
        price = self.billing.usd_per_container_s * self.kind.n_gpus
        return self.usd_per_start + price * self.kind.alone_s + self.billing.usd_per_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How requests fare, and what it costs."""

    candidate: Candidate
    rule: str
    keep_alive_s: float
    replay: FunctionReplay
    cost_usd: float
    missed_usd: float
    is_met: bool
    """Whether every objective holds."""
    is_safe: bool
    """Whether every objective would hold on as many requests more, each with probability `CONFIDENCE`."""
    attainment: float
    held_fraction: float
    """Part of the time in which at least one replica is held."""

    @property
    def is_given_back(self) -> bool:
        """Whether there is time worth speaking of in which no replica is paid."""
        return self.held_fraction <= MOST_HELD or not self.candidate.billing.bills_idle

    @property
    def key(self) -> tuple[bool, float, float]:
        """Less is better: objectives that hold safely first, or the most requests in time, and then the cost."""
        return (not self.is_safe, 0.0 if self.is_safe else -self.attainment, self.cost_usd + self.missed_usd)


def play(
    candidate: Candidate,
    requests: Requests,
    slos: Sequence[Slo],
    *,
    rule: str,
    keep_alive_s: float,
    missed_usd: float,
    seed: int = SEED,
) -> Outcome:
    """Return how `requests` fare on replicas that are kept for `keep_alive_s` after their last one.

    With headroom they have to hold the objectives closer together as well; the cost is that of the rate itself.
    """
    told = partial(
        _played, candidate, slos=slos, rule=rule, keep_alive_s=keep_alive_s, missed_usd=missed_usd, seed=seed
    )
    found = told(requests)
    if not requests.headroom_fraction or not found.is_met:
        return found
    busier = told(requests.at_load(1.0 + requests.headroom_fraction))
    return replace(found, is_met=busier.is_met, is_safe=found.is_safe and busier.is_safe)


def _played(
    candidate: Candidate,
    requests: Requests,
    *,
    slos: Sequence[Slo],
    rule: str,
    keep_alive_s: float,
    missed_usd: float,
    seed: int,
) -> Outcome:
    kind, n = candidate.kind, len(requests.arrival_s)
    bound_s = min((slo.bound_s for slo in slos if slo.metric is Metric.TTFT), default=math.inf)
    start = replace(kind.setting.start, provision_s=candidate.provision_s)
    replay = replay_functions(
        requests.arrival_s,
        np.zeros(n, dtype=np.int64),
        functions=Functions(
            adapter_bytes=np.zeros(1),
            rate_rps=np.array([n / requests.duration_s]),
            ttft_bound_s=np.array([bound_s]),
            tpot_bound_s=np.array([math.inf]),
        ),
        setting=replace(kind.setting, start=start),
        policy=Policy(
            isolation=Isolation.DEDICATED,
            keep_alive_s=np.array([keep_alive_s]),
            most_machines=MOST_REPLICAS,
            most_batch=kind.most_batch,
            most_processes=1,
            queue_per_start=kind.most_batch,
        ),
        rng=np.random.default_rng(seed),
        end_s=requests.duration_s,
        decode_factor=_decode_factor(requests, kind),
        prefill_factor=_prefill_factor(requests, kind),
    )
    cost_usd = candidate.billing.cost_usd(
        replay.holds_s,
        n_requests=n,
        used_s=replay.rented_used_s,
        gpus_per_container=kind.n_gpus,
        container_start_s=replay.container_starts_s,
    )
    within = _within(replay, requests, [slo for slo in slos if slo.percentile is not None] or slos)
    return Outcome(
        candidate=candidate,
        rule=rule,
        keep_alive_s=keep_alive_s,
        replay=replay,
        cost_usd=cost_usd,
        missed_usd=missed_usd * int((~within).sum()),
        is_met=all(_holds(replay, requests, slo) for slo in slos),
        is_safe=all(_holds(replay, requests, slo, confidence=CONFIDENCE) for slo in slos),
        attainment=float(within.mean()),
        held_fraction=_held_fraction(replay, requests, keep_alive_s),
    )


def _held_fraction(replay: FunctionReplay, requests: Requests, keep_alive_s: float) -> float:
    """Return the part of the time from when a request comes until what served it has been idle for long enough."""
    until_s = np.maximum.accumulate(requests.arrival_s + replay.records.e2e_s + keep_alive_s)
    starts_s = np.append(requests.arrival_s, requests.duration_s)
    free_s = float(starts_s[0] + np.maximum(starts_s[1:] - until_s, 0.0).sum())
    return 1.0 - free_s / requests.duration_s


def _decode_factor(requests: Requests, kind: ReplicaKind) -> Floats:
    """Return the length of each answer after its first token, over the mean one's."""
    later = max(kind.mean_output_tokens - 1.0, 1e-9)
    return np.asarray(np.maximum(requests.output_tokens - 1.0, 0.0) / later, dtype=np.float64)


def _prefill_factor(requests: Requests, kind: ReplicaKind) -> Floats | None:
    """Return each prompt's time to the first token alone over the mean one's; None = all are alike."""
    if len(kind.prompt_times) < 2:
        return None
    tokens, times_s = (np.array(column) for column in zip(*kind.prompt_times, strict=True))
    slope = (times_s[-1] - times_s[-2]) / (tokens[-1] - tokens[-2])
    beyond = np.maximum(requests.input_tokens - tokens[-1], 0.0)
    alone_s = np.interp(requests.input_tokens, tokens, times_s) + slope * beyond
    return np.asarray(alone_s / kind.setting.prefill.first_s, dtype=np.float64)


def _within(replay: FunctionReplay, requests: Requests, slos: Sequence[Slo]) -> np.ndarray:
    found = np.ones(len(requests.arrival_s), dtype=np.bool_)
    for slo in slos:
        found &= values_s(replay.records, slo.metric, requests.output_tokens) <= slo.bound_s
    return found


def _holds(replay: FunctionReplay, requests: Requests, slo: Slo, *, confidence: float | None = None) -> bool:
    """Return whether an objective holds, and would on as many requests to come with probability `confidence`.

    By batch means, since requests that follow one another share starts and queues.
    """
    values = values_s(replay.records, slo.metric, requests.output_tokens)
    if slo.metric is Metric.TPOT:
        values = values[requests.output_tokens > 1]
    if not len(values):
        return True
    if slo.percentile is None:
        mean_s = float(values.mean()) if confidence is None else next_mean(values, confidence)
        return mean_s <= slo.bound_s
    share, within = slo.percentile / 100.0, (values <= slo.bound_s).astype(np.float64)
    return float(within.mean()) >= (share if confidence is None else next_share(within, share, confidence))


def learnt(candidate: Candidate, seen: Requests, slos: Sequence[Slo], *, missed_usd: float) -> Outcome:
    """Return the cheapest keep-alive time on `seen` that meets the objectives safely, else for good.

    The cheapest time is that of `optimize.keep_alive`, misses at their price. Where it misses an objective, longer ones
    cost more and keep more requests warm, so a gap that is long enough, and the one before it is not, is found by
    halving.
    """

    def played(keep_alive_s: float) -> Outcome:
        return play(candidate, seen, slos, rule=rule, keep_alive_s=keep_alive_s, missed_usd=missed_usd)

    if candidate.billing.keep_alive_s is not None:
        rule = CLOUDS
        return played(candidate.billing.keep_alive_s)
    rule = LEARNT
    gaps = idle_gaps(seen.arrival_s, service_s=candidate.kind.alone_s, end_s=seen.duration_s)
    cold_usd = candidate.usd_per_start + (missed_usd if candidate.misses_when_cold(slos) else 0.0)
    prices = KeepAlivePrices(idle_usd_per_s=candidate.usd_per_idle_s, cold_start_usd=cold_usd)
    best = played(best_keep_alive(gaps, prices).until_s)
    if best.is_safe:
        return best
    times = [*(gap for gap in np.unique(gaps.gaps_s).tolist() if gap > best.keep_alive_s), math.inf]
    found = played(math.inf)
    low, high = 0, len(times) - 1
    while found.is_safe and low < high:
        middle = (low + high) // 2
        outcome = played(times[middle])
        if outcome.is_safe:
            found, high = outcome, middle
        else:
            low = middle + 1
    return min(best, found, key=lambda outcome: outcome.key)


def told(
    outcome: Outcome, requests: Requests, *, tried: Outcome | None = None, seen: Requests | None = None
) -> ScaledService:
    """Return what a plan says of an outcome on the judged half, `tried` being that of the half it was learnt on."""
    learnt_usd = (
        None if tried is None or seen is None else (tried.cost_usd + tried.missed_usd) * HOUR_S / seen.duration_s
    )
    hours, records = requests.duration_s / HOUR_S, outcome.replay.records
    p50, p99 = (float(np.quantile(records.ttft_s, part, method="inverted_cdf")) for part in (0.5, 0.99))
    return ScaledService(
        way=outcome.candidate.way,
        rule=outcome.rule,
        offer=outcome.candidate.billing.name,
        gpu=outcome.candidate.kind.gpu,
        gpus_per_replica=outcome.candidate.kind.n_gpus,
        keep_alive_s=outcome.keep_alive_s if math.isfinite(outcome.keep_alive_s) else None,
        cost_usd_per_hour=outcome.cost_usd / hours,
        missed_usd_per_hour=outcome.missed_usd / hours,
        is_met=outcome.is_met,
        attainment=outcome.attainment,
        ttft_p50_s=p50 if math.isfinite(p50) else None,
        ttft_p99_s=p99 if math.isfinite(p99) else None,
        cold_fraction=float(records.is_cold.mean()),
        mean_replicas=outcome.replay.gpu_s / requests.duration_s,
        price_as_of=dated(outcome.candidate.billing.as_of),
        most_replicas=outcome.replay.most_machines,
        precision=outcome.candidate.kind.config.precision,
        tensor_parallel=outcome.candidate.kind.config.tensor_parallel,
        pipeline_parallel=outcome.candidate.kind.config.pipeline_parallel,
        learnt_usd_per_hour=learnt_usd,
        is_safe=None if tried is None else tried.is_safe,
        doubts=outcome.candidate.doubts,
        is_barred=outcome.candidate.is_barred,
    )


def other_rules(outcome: Outcome) -> Iterator[tuple[str, float]]:
    """Yield the fixed rules to compare a learnt time with; a cloud that keeps as it likes leaves none.

    Where a cloud bills by more than the longest of them, the time that is paid anyway is one.
    """
    if outcome.rule != LEARNT:
        return
    yield from FIXED_RULES.items()
    unit_s = outcome.candidate.billing.step_s
    if unit_s > max(FIXED_RULES.values()):
        yield format_duration(unit_s), unit_s
