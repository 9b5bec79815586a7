"""Operating points of many replicas at once: static batches, closed and open loops, maxima with and without objectives.

Replicas of several kinds are stacked into one (`stack_replicas`), each with the request size asked of it, and every
search runs on all of them together: a thousand points take as long as a few hundred calls of numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.precision import weight_bytes
from planner.profilers.adapters import adapter_load
from planner.profilers.roofline import engine_efficiency, kv_bytes_per_gpu, replica_memory, stack_steps, step_model
from planner.profilers.steady import SMALLEST_LOAD, Load, Replica, make_replica, steady_state, tail
from planner.profilers.variants import drafted_steps, offloaded_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.profilers.adapters import Adapters
    from planner.profilers.efficiency import Efficiency, EstimatorParams
    from planner.profilers.roofline import Array, StepModel
    from planner.profilers.variants import Drafting, Offload

BISECTIONS = 36
"""Halvings of the logarithm of the load: the result is exact to 1e-9."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One replica and one request size."""

    model: ModelArchitecture
    gpu: GpuSpec
    config: EngineConfig
    input_tokens: float
    output_tokens: float
    adapters: Adapters | None = None
    offload: Offload | None = None
    drafting: Drafting | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Operating points of single replicas; arrays of shape (cases,)."""

    rate_rps: Array
    ttft_s: Array
    tpot_s: Array
    """The mean step that a request sees, per output token after the first."""
    batch: Array
    """Sequences that decode in the mean step."""
    step_s: Array
    """Mean time of an engine step."""
    load: Load | None = None
    """The steady state behind the point; None for batches that run in step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What engines and published runs add to the steady state; arrays of shape (cases,)."""

    request_overhead_s: Array
    turnover_wait: Array
    burst_share: Array
    keeps_step: Array
    starts: Array
    """Sequences whose prefill need not wait for the end of another: at least the replica's slots."""


def stack_replicas(cases: Sequence[Case], params: EstimatorParams) -> tuple[Replica, Habits]:
    """Return the cases as one stacked replica, and their engines' habits.

    Raises
    ------
    ValueError: if a model cannot run on its GPU because of its number formats.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, case in enumerate(cases):
        alike = (id(case.model), case.gpu.name, case.config, case.adapters, case.offload, case.drafting)
        groups.setdefault(alike, []).append(index)
    parts: list[Replica] = []
    steps: list[StepModel] = []
    habits: list[Efficiency] = []
    starts: list[Array] = []
    for indices in groups.values():
        first = cases[indices[0]]
        sizes = np.array([[cases[i].input_tokens, cases[i].output_tokens] for i in indices])
        made = make_replica(
            first.model, first.gpu, first.config, input_tokens=sizes[:, 0], output_tokens=sizes[:, 1], params=params
        )
        own = step_model(first.model, first.gpu, first.config, params)
        if first.offload is not None:
            made, own = _with_offload(made, own, first, params)
        if first.adapters is not None:
            made, own = _with_adapters(made, own, first, params)
        if first.drafting is not None:
            own = drafted_steps(own, first.drafting)
            made = replace(made, decode_steps=made.decode_steps / first.drafting.tokens_per_step)
        efficiency = engine_efficiency(first.gpu, first.config, params)
        parts.append(made)
        steps.append(own)
        habits.append(efficiency)
        starts.append(_starts(made, sizes, first, efficiency))
    counts = [len(indices) for indices in groups.values()]
    order = np.argsort(np.concatenate([np.array(indices) for indices in groups.values()]), kind="stable")
    sorted_steps = stack_steps(steps, counts)

    def joined(pick: Callable[[Replica], Array]) -> Array:
        return np.concatenate([pick(part) for part in parts])[order]

    replica = Replica(
        steps=sorted_steps.take(order),
        input_tokens=joined(lambda part: part.input_tokens),
        decode_steps=joined(lambda part: part.decode_steps),
        decode_s=joined(lambda part: part.decode_s),
        attention_s=joined(lambda part: part.attention_s),
        slots=np.maximum(joined(lambda part: part.slots), 1.0),
        token_budget=np.repeat([part.token_budget for part in parts], counts)[order],
        arrival_scv=params.arrival_scv,
        service_scv=params.service_scv,
        handover_s=joined(lambda part: part.handover_s),
        speed=joined(lambda part: part.speed),
    )
    return replica, Habits(
        request_overhead_s=np.repeat([habit.request_overhead_s for habit in habits], counts)[order],
        turnover_wait=np.repeat([habit.turnover_wait for habit in habits], counts)[order],
        burst_share=np.repeat([habit.burst_share for habit in habits], counts)[order],
        keeps_step=np.repeat([habit.keeps_step for habit in habits], counts)[order],
        starts=np.concatenate(starts)[order],
    )


def _starts(replica: Replica, sizes: Array, case: Case, efficiency: Efficiency) -> Array:
    """Return how many sequences the cache takes in at once, each with `start_reserve_fraction` of its answer.

    sizes : input and output tokens, shape (cases, 2).
    """

    def kept(fraction: float) -> Array:
        tokens = sizes[:, 0] + np.maximum(sizes[:, 1] * fraction, 1.0)
        return kv_bytes_per_gpu(case.model, case.config, tokens, is_read=False)

    whole, first = kept(efficiency.output_reserve_fraction), kept(efficiency.start_reserve_fraction)
    more = np.divide(whole, first, out=np.ones_like(whole), where=first > 0)
    starts: Array = np.maximum(np.minimum(replica.slots * more, case.config.max_num_seqs), replica.slots)
    return starts


def _with_offload(replica: Replica, steps: StepModel, case: Case, params: EstimatorParams) -> tuple[Replica, StepModel]:
    """Return the replica and its steps with a part of the weights elsewhere: slower steps, more room."""
    if case.offload is None:
        return replica, steps
    freed = freed_bytes(case)
    memory = replica_memory(case.model, case.gpu, case.config, params)
    kept = (
        replica.input_tokens
        + (replica.decode_steps + 1.0) * engine_efficiency(case.gpu, case.config, params).output_reserve_fraction
    )
    room = max(memory.kv_bytes + freed, 0.0)
    slots = np.floor(room / kv_bytes_per_gpu(case.model, case.config, kept, is_read=False))
    slots = np.clip(slots, 1.0, case.config.max_num_seqs)
    return replace(replica, slots=slots), offloaded_steps(steps, case.model, case.config, case.offload)


def freed_bytes(case: Case) -> float:
    """Return the bytes of weights that each GPU of a replica does not hold."""
    fraction = 0.0 if case.offload is None else case.offload.fraction
    return fraction * weight_bytes(case.model, case.config.precision) / case.config.gpus_per_replica


def _with_adapters(
    replica: Replica, steps: StepModel, case: Case, params: EstimatorParams
) -> tuple[Replica, StepModel]:
    """Return the replica and its steps with what the adapters of a full batch take of the cache and of each step."""
    adapters = case.adapters
    if adapters is None:
        return replica, steps
    efficiency = engine_efficiency(case.gpu, case.config, params)
    room = replica_memory(case.model, case.gpu, case.config, params).kv_bytes
    slots = float(replica.slots.mean())
    taken = adapter_load(case.model, case.config, adapters, slots).memory_bytes
    left = max(0.0, 1.0 - taken / room)
    read = adapter_load(case.model, case.config, adapters, max(1.0, slots * left)).read_bytes
    rate = case.gpu.bandwidth_bytes_per_s * efficiency.bandwidth_fraction
    overhead = case.model.n_layers * efficiency.adapter_overhead_s if adapters.is_shared else 0.0
    slower = replace(steps, dense_read_s=steps.dense_read_s + read / rate, overhead_s=steps.overhead_s + overhead)
    return replace(replica, slots=np.maximum(np.ceil(replica.slots * left), 1.0)), slower


def first_tokens_s(replica: Replica, prompts: Array) -> Array:
    """Return the time in which so many prompts that come together are all prefilled; shape of `prompts`.

    Passes of `token_budget` tokens follow one another. p pipeline stages work on p parts of a pass, but a prompt is in
    one part: of the last pass m = min(p, prompts) parts pass all stages one after the other, in (p + m - 1) / p times
    the time of one part.
    """
    zero, stages = np.zeros_like(prompts), replica.steps.stages
    tokens = prompts * replica.input_tokens
    together = np.minimum(tokens, np.maximum(replica.token_budget, 1.0))
    parts = np.minimum(stages, np.maximum(prompts, 1.0))
    last = replica.step_s(zero, together * stages / parts) * (stages + parts - 1.0) / stages
    found: Array = (tokens / together - 1.0) * replica.step_s(zero, together) + last
    return found


def static_batches(replica: Replica, batch: Array) -> Points:
    """Return batches of identical requests that run in step: all prefilled, then all decoded together.

    What the KV cache does not hold at once waits for its turn: so many rounds, and parts of one, one after the other.
    A lone prompt takes `lone_prefill_factor` times its share of a busy replica's time.
    """
    zero = np.zeros_like(batch)
    together = np.minimum(batch, replica.slots)
    lone = np.where(together <= 1.0, replica.steps.lone_prefill_factor, 1.0)
    ttft = first_tokens_s(replica, together) * lone
    pace = replica.step_s(together, zero)
    rounds = batch / together
    total = (ttft + replica.decode_steps * pace) * rounds
    return Points(rate_rps=batch / total, ttft_s=ttft, tpot_s=pace, batch=together, step_s=pace)


def _heaviest(replica: Replica) -> Array:
    return np.log(np.asarray(replica.token_budget / (replica.input_tokens + replica.decode_steps)))


def _largest(replica: Replica, holds: Callable[[Load], NDArray[np.bool_]]) -> Load:
    """Return the steady state at the largest load up to which `holds` is true; the smallest if it never is.

    What `holds` looks at must grow with the load.
    """
    high = _heaviest(replica)
    low = np.full_like(high, np.log(SMALLEST_LOAD))
    is_all = holds(steady_state(replica, np.exp(high)))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        good = holds(steady_state(replica, np.exp(middle)))
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return steady_state(replica, np.exp(np.where(is_all, _heaviest(replica), low)))


def saturated(replica: Replica) -> Points:
    """Return the points where requests are always queued: every slot is taken, or every step full."""
    load = _largest(replica, lambda at: at.occupancy <= replica.slots)
    return _points(load, tpot_s=load.mean_step_s)


TURNOVER_CLIENTS = 8.0
"""Fewest clients with which `turnover_wait` was measured; with fewer it is taken to fall to nothing at one client."""


def closed_loops(
    replica: Replica, concurrency: Array, *, turnover_wait: Array, burst_share: Array, is_random: Array
) -> Points:
    """Return the points at which so many requests are always under way, each replaced as soon as it ends.

    `turnover_wait`: completions that a new request waits for (each takes 1 / rate). `burst_share`: part of the requests
    that come all at once when a run starts; they wait for half of the prefills of the whole batch in the mean.
    `is_random`: 1 where lengths differ, so that prompts meet by chance and wait for each other, in the mean for those
    of half of the clients at most. Clients beyond the slots wait: the rate stays, and TTFT takes up the rest (Little's
    law).
    """
    wanted = np.minimum(concurrency, replica.slots)

    def meeting_s(at: Load) -> Array:
        is_stable = np.isfinite(at.prefill_wait_s)
        service = np.where(is_stable, at.prefill_wait_s, 0.0) * (1.0 - at.prefill_utilisation)
        wait = np.where(is_stable, np.minimum(at.prefill_wait_s, wanted / 2 * service), np.inf)
        waited: Array = np.where(is_random > 0, at.prefill_utilisation * wait, 0.0)
        return waited

    load = _largest(replica, lambda at: at.occupancy + at.rate_rps * meeting_s(at) <= wanted)
    queued = np.maximum(concurrency / load.rate_rps - replica.decode_steps * load.mean_step_s, 0.0)
    burst = static_batches(replica, wanted).ttft_s / 2
    onset = np.clip((wanted - 1.0) / (TURNOVER_CLIENTS - 1.0), 0.0, 1.0)
    ttft = queued + turnover_wait * onset / load.rate_rps
    ttft = ttft + burst_share * np.maximum(burst - queued, 0.0)
    rate = concurrency / (ttft + replica.decode_steps * load.mean_step_s)
    return Points(
        rate_rps=rate, ttft_s=ttft, tpot_s=load.mean_step_s, batch=load.batch, step_s=load.mean_step_s, load=load
    )


def loops_in_step(replica: Replica, concurrency: Array, starts: Array) -> Points:
    """Return the points of closed loops whose requests are alike, on engines that prefill all before they decode on.

    All clients start at once, are prefilled together, end together and start again: one static batch after the other.
    Who is not among the `starts` waits in front of the engine, by Little's law for that share of the whole time. Those
    among them whom the cache does not hold to the end are set aside while they decode, which is no part of either time.
    """
    batches = static_batches(replica, concurrency)
    inside = np.minimum(concurrency, np.maximum(starts, replica.slots))
    waiting = np.maximum(concurrency - inside, 0.0) / batches.rate_rps
    lone = np.where(inside <= 1.0, replica.steps.lone_prefill_factor, 1.0)
    return replace(batches, ttft_s=waiting + first_tokens_s(replica, inside) * lone)


def chosen(is_first: NDArray[np.bool_], first: Points, other: Points) -> Points:
    """Return the points of `first` where `is_first`, else of `other`, whose steady states come along."""
    picked = {
        name: np.where(is_first, getattr(first, name), getattr(other, name))
        for name in ("rate_rps", "ttft_s", "tpot_s", "batch", "step_s")
    }
    return replace(other, **picked)


def open_loops(replica: Replica, rate_rps: Array) -> tuple[Points, NDArray[np.bool_]]:
    """Return the points under Poisson arrivals, and where the rate is more than the replica serves.

    There the point is the saturated one: its latencies grow without end.
    """
    load = _largest(replica, lambda at: (at.rate_rps <= rate_rps) & (at.occupancy <= replica.slots))
    is_over = load.rate_rps < rate_rps * (1.0 - 1e-3)
    return _points(load, tpot_s=load.tpot_s), is_over


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The objectives on one statistic; arrays of shape (cases,), infinite where there is none."""

    level: float | None
    """Between 0 and 1; None = the mean."""
    ttft_s: Array
    tpot_s: Array
    e2e_s: Array


def under_objectives(replica: Replica, bounds: Sequence[Bounds]) -> tuple[Points, NDArray[np.bool_]]:
    """Return the points of the largest Poisson rate at which every statistic is within its bounds, and where none is.

    There the point is that of a lone request.
    """

    def holds(at: Load) -> NDArray[np.bool_]:
        met = at.occupancy <= replica.slots
        for bound in bounds:
            late = at if bound.level is None else tail(replica, at, bound.level)
            total = late.ttft_s + replica.decode_steps * late.tpot_s
            met = met & (late.ttft_s <= bound.ttft_s) & (late.tpot_s <= bound.tpot_s) & (total <= bound.e2e_s)
        return np.asarray(met)

    load = _largest(replica, holds)
    return _points(load, tpot_s=load.tpot_s), ~holds(load)


def _points(load: Load, *, tpot_s: Array) -> Points:
    return Points(
        rate_rps=load.rate_rps,
        ttft_s=load.ttft_s,
        tpot_s=tpot_s,
        batch=load.batch,
        step_s=load.mean_step_s,
        load=load,
    )
