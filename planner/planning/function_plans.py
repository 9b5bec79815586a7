"""Ways to serve adapters on GPUs that are always on: what each decides on the first half of the requests."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation
from planner.planning.function_ways import HOUR_S
from planner.profilers.adapter_packing import AdapterMemory, most_adapters
from planner.simulate.functions.pool import pool_size, replay_pool
from planner.simulate.functions.replay import replay_functions
from planner.simulate.functions.setting import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from planner.planning.function_case import FunctionCase
    from planner.planning.function_ways import Prices
    from planner.simulate.functions.records import FunctionReplay
    from planner.simulate.functions.setting import Functions, Setting
    from planner.simulate.steps import Floats

MOST_GPUS = 256
"""Where the search for a number of always-on GPUs ends."""
MOST_SHARING = 1_000_000
"""Where nothing bounds how many take turns."""
MOST_REPLICAS = 4
"""Processes of one busy adapter on GPUs of its own, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """Requests of one half, from 0 on."""

    arrival_s: Floats
    function: NDArray[np.int64]
    duration_s: float


def miss_usd(replay: FunctionReplay, case: FunctionCase, prices: Prices) -> float:
    """Return what the requests are worth that missed their bounds."""
    n_missed = len(replay.records) * (1 - attainment_of(replay, case))
    return round(n_missed) * prices.usd_per_miss


def cut(whole: Half) -> tuple[Half, Half]:
    """Return the first and the second half of a time."""
    middle_s = whole.duration_s / 2
    at = int(np.searchsorted(whole.arrival_s, middle_s))
    early = Half(arrival_s=whole.arrival_s[:at], function=whole.function[:at], duration_s=middle_s)
    late = Half(arrival_s=whole.arrival_s[at:] - middle_s, function=whole.function[at:], duration_s=middle_s)
    return early, late


def with_rates(case: FunctionCase, seen: Half) -> FunctionCase:
    """Return the case with the rates that were seen in place of those that are stated."""
    rates = np.bincount(seen.function, minlength=len(case.functions)) / seen.duration_s
    return replace(case, functions=replace(case.functions, rate_rps=rates))


@dataclass(frozen=True, slots=True, kw_only=True)
class WayPlan:
    """What a way has decided."""

    replay: Callable[[Half, int], FunctionReplay]
    n_always_on: int
    learnt: Mapping[str, float]
    is_by_use: bool = False
    """A serverless cloud bills it, where there is a price for that."""
    keep_alive_s: Floats | None = None
    """How long each adapter's idle process stays, shape (adapters,); None where none is given back by itself."""
    trial: Trial | None = None
    """What was decided by on requests that it was not made from; None where nothing is given back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How a way fared on the second quarter, as it was learnt on the first."""

    usd_per_hour: float
    """Paid, and what the misses are worth."""
    is_safe: bool
    """Whether the objectives held with room for chance."""
    shortfall: float
    """What was missing of them."""

    @property
    def key(self) -> tuple[float, float]:
        """Less is better: objectives first, and then the cost."""
        return self.shortfall, self.usd_per_hour


def trial_of(plan: WayPlan, replay: FunctionReplay, case: FunctionCase, prices: Prices) -> Trial:
    """Return how a plan fared on requests that are learnt from."""
    usd = cost_usd(replay, plan, prices) + miss_usd(replay, case, prices)
    objectives, output_tokens = case.objectives, case.output_tokens
    return Trial(
        usd_per_hour=usd * HOUR_S / replay.end_s,
        is_safe=objectives.holds_safely(replay.records, output_tokens=output_tokens),
        shortfall=objectives.shortfall(replay.records, output_tokens=output_tokens),
    )


def attainment_of(replay: FunctionReplay, case: FunctionCase) -> float:
    """Return the part of the requests that met their bounds."""
    return float(case.objectives.is_attained(replay.records, output_tokens=case.output_tokens).mean())


def shortfall_of(replay: FunctionReplay, case: FunctionCase) -> float:
    """Return what is missing of the objectives; 0 if they hold."""
    return case.objectives.shortfall(replay.records, output_tokens=case.output_tokens)


def cost_usd(replay: FunctionReplay, plan: WayPlan, prices: Prices) -> float:
    """Return what a way pays for GPUs."""
    if plan.is_by_use and prices.offer is not None:
        always_on_usd = plan.n_always_on * replay.end_s * prices.usd_per_gpu_hour / HOUR_S
        n_requests = int((replay.records.machine >= plan.n_always_on).sum())
        return always_on_usd + prices.offer.cost_usd(
            replay.holds_s,
            n_requests=n_requests,
            used_s=replay.rented_used_s,
            container_start_s=replay.container_starts_s,
        )
    if plan.is_by_use and prices.usd_per_used_gpu_s is not None:
        return replay.gpu_share_s * prices.usd_per_used_gpu_s
    if plan.is_by_use and prices.rule is not None:
        rented_s = float(prices.rule.billed_s(replay.holds_s).sum())
        return (plan.n_always_on * replay.end_s + rented_s) * prices.usd_per_gpu_hour / HOUR_S
    return replay.gpu_s * prices.usd_per_gpu_hour / HOUR_S


def with_policy(case: FunctionCase, policy: Policy) -> Callable[[Half, int], FunctionReplay]:
    """Return what replays requests of a half, with a seed, under a policy."""

    def replay(half: Half, seed: int) -> FunctionReplay:
        return replay_functions(
            half.arrival_s,
            half.function,
            functions=case.functions,
            setting=case.setting,
            policy=policy,
            rng=np.random.default_rng(seed),
            end_s=half.duration_s,
        )

    return replay


def most_sharing(functions: Functions, setting: Setting, *, output_tokens: float) -> int:
    """Return how many batches of one request may take turns before the tightest bound is missed; at least 1."""
    turns = float(functions.ttft_bound_s.min()) / setting.prefill.first_s
    if setting.decode is not None and output_tokens > 1:
        turns = min(turns, float(functions.tpot_bound_s.min()) * (output_tokens - 1) / setting.decode.first_s)
    return MOST_SHARING if turns > MOST_SHARING else max(1, math.floor(turns))


def learn_dedicated(first: Half, case: FunctionCase, _prices: Prices, seed: int) -> WayPlan:
    """Pack as many copies on a GPU as fit; if that is too slow one on each, and more copies of those that miss."""
    functions, setting = case.functions, case.setting
    memory = AdapterMemory(
        backbone_bytes=setting.backbone_bytes,
        adapter_bytes=float(functions.adapter_bytes.max()),
        context_bytes=setting.context_bytes,
        kv_bytes=setting.kv_bytes,
    )
    fit = max(1, int(most_adapters(memory, Isolation.DEDICATED, usable_bytes=setting.gpu_bytes)))
    copies = np.ones(len(functions), dtype=np.int64)
    plan = _dedicated(case, fit, copies)
    replay = plan.replay(first, seed)
    least = shortfall_of(replay, case)
    while least > 0 and copies.max() < MOST_REPLICAS:
        if fit > 1:
            fit = 1
        else:
            each = case.objectives.attainment_of_each(replay.records, output_tokens=case.output_tokens)
            copies = copies + (each < (case.target_fraction or 1.0))  # NaN, without requests, is not below
        other = _dedicated(case, fit, copies)
        replay = other.replay(first, seed)
        if (shortfall := shortfall_of(replay, case)) < least:
            plan, least = other, shortfall
    return plan


def _dedicated(case: FunctionCase, on_each: int, copies: NDArray[np.int64]) -> WayPlan:
    places = [function for function, count in enumerate(copies.tolist()) for _ in range(count)]
    rates = case.functions.rate_rps / copies
    n_machines = math.ceil(len(places) / on_each)
    warm = spread(places, rates, n_machines, most=on_each)
    n_sharing = most_sharing(case.functions, case.setting, output_tokens=case.output_tokens)
    policy = Policy(
        isolation=Isolation.DEDICATED,
        keep_alive_s=np.full(len(case.functions), math.inf),
        n_always_on=n_machines,
        most_machines=n_machines,
        most_batch=case.most_batch,
        most_sharing=max(n_sharing, on_each),
        most_instances=int(copies.max()),
        queue_per_start=math.inf,
        warm=warm,
    )
    setting = replace(case.setting, host_bytes=math.inf)  # whoever serves for good needs no container to wait in
    return WayPlan(
        replay=with_policy(replace(case, setting=setting), policy),
        n_always_on=n_machines,
        learnt={"copies_per_gpu": float(on_each), "copies": float(len(places))},
    )


def spread(
    places: Sequence[int], rates: Floats, n_machines: int, *, most: float = math.inf
) -> tuple[tuple[int, int], ...]:
    """Return (function, machine) for each: the busiest first, to the machine with the least load that has room."""
    loads = [(0.0, machine) for machine in range(n_machines)]
    counts = [0] * n_machines
    found = []
    for function in sorted(places, key=lambda f: (-rates[f], f)):
        load, machine = heapq.heappop(loads)
        found.append((function, machine))
        counts[machine] += 1
        if counts[machine] < most:
            heapq.heappush(loads, (load + float(rates[function]), machine))
    return tuple(found)


def learn_pool(first: Half, case: FunctionCase, _prices: Prices, seed: int) -> WayPlan:
    """Take the fewest engines that meet the objectives; attainment is taken to grow with their number."""

    def plan_of(n_engines: int) -> WayPlan:
        size = pool_size(case.pool_setting, case.functions, n_engines=n_engines, request_kv_bytes=case.request_kv_bytes)

        def replay(half: Half, seed: int) -> FunctionReplay:
            return replay_pool(
                half.arrival_s,
                half.function,
                functions=case.functions,
                setting=case.pool_setting,
                size=size,
                rng=np.random.default_rng(seed),
                end_s=half.duration_s,
            )

        learnt = {"slots": float(size.n_slots), "most_running": float(size.most_running)}
        return WayPlan(replay=replay, n_always_on=n_engines, learnt=learnt)

    def meets(n_engines: int) -> bool:
        return shortfall_of(plan_of(n_engines).replay(first, seed), case) == 0.0

    low, high = 0, 1
    while high < MOST_GPUS and not meets(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return plan_of(high)
