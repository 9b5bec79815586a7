"""Ways to serve adapters on GPUs that are given back: what each decides on the first half of the requests."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation
from planner.optimize.keep_alive import (
    HUAWEI_KEEP_ALIVE_S,
    KeepAlivePrices,
    best_keep_alive,
    idle_gaps,
)
from planner.optimize.preload import Artifact, Place, Tier, greedy_preload
from planner.planning.function_plans import (
    MOST_GPUS,
    Trial,
    WayPlan,
    cut,
    most_sharing,
    spread,
    trial_of,
    with_policy,
    with_rates,
)
from planner.planning.function_ways import HOUR_S
from planner.planning.keep_alive_rules import alone_s, gaps_of, idle_and_cold_usd
from planner.simulate.functions.setting import Policy, process_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.planning.function_case import FunctionCase
    from planner.planning.function_plans import Half
    from planner.planning.function_ways import Prices
    from planner.simulate.functions.records import FunctionReplay
    from planner.simulate.functions.setting import Setting
    from planner.simulate.steps import Floats

PATIENCES_S = (0.0, 10.0, 100.0, 1000.0, 10_000.0)
"""What a cold start may be worth, in seconds of a GPU: the keep-alive times that are learnt range over these."""
SMALLER_BATCH = 4
"""Processes with KV cache for this many times fewer requests are tried, too."""
N_SPARES = 2
"""Containers that a machine with a shared backbone has ready for whoever comes next: all run the same program."""


def learn_serverless(first: Half, case: FunctionCase, prices: Prices, seed: int) -> WayPlan:
    """Nothing is learnt: 60 s for every function, or what the cloud keeps, and as many machines as it takes.

    It is tried on the second quarter of the time all the same, so that it can be compared with what is learnt there.
    """
    _, late = cut(first)
    stated_s = None if prices.offer is None else prices.offer.keep_alive_s
    keep_alive_s = HUAWEI_KEEP_ALIVE_S if stated_s is None else stated_s
    plan = _apart(case, prices, np.full(len(case.functions), keep_alive_s), learnt={"keep_alive_s": keep_alive_s})
    return replace(plan, trial=trial_of(plan, plan.replay(late, seed), case, prices))


def learn_kept(first: Half, case: FunctionCase, prices: Prices, seed: int) -> WayPlan:
    """Keep each function's process as long as would have been cheapest, for the best worth of a cold start.

    Learnt from the first quarter of the time and tried on the second, like `learn_shared`; the cheapest that meets the
    objectives is taken, else the one that comes closest.
    """
    early, late = cut(first)
    idle_usd, start_usd = idle_and_cold_usd(case, prices)

    def plan_of(half: Half, patience_s: float) -> WayPlan:
        worth = start_usd + patience_s * prices.usd_per_rented_s
        pairs = zip(gaps_of(half, case), idle_usd.tolist(), worth.tolist(), strict=True)
        kept_s = [
            best_keep_alive(gaps, KeepAlivePrices(idle_usd_per_s=idle, cold_start_usd=cold)).until_s
            for gaps, idle, cold in pairs
        ]
        return _apart(case, prices, np.array(kept_s), learnt={"cold_start_worth_gpu_s": patience_s})

    def tried(patience_s: float) -> Trial:
        plan = plan_of(early, patience_s)
        return trial_of(plan, plan.replay(late, seed), case, prices)

    trials = {patience_s: tried(patience_s) for patience_s in PATIENCES_S}
    best = min(trials, key=lambda patience_s: trials[patience_s].key)
    return replace(plan_of(first, best), trial=trials[best])


def _apart(case: FunctionCase, prices: Prices, keep_alive_s: Floats, *, learnt: Mapping[str, float]) -> WayPlan:
    """Return the plan of processes with weights of their own; each has a container to itself where that is billed."""
    policy = Policy(
        isolation=Isolation.DEDICATED,
        keep_alive_s=keep_alive_s,
        most_machines=max(len(case.functions), MOST_GPUS),
        most_batch=case.most_batch,
        most_sharing=most_sharing(case.functions, case.setting, output_tokens=case.output_tokens),
        most_processes=1_000_000 if prices.offer is None else 1,
        queue_per_start=case.most_batch,
    )
    return WayPlan(
        replay=with_policy(case, policy), n_always_on=0, learnt=learnt, is_by_use=True, keep_alive_s=keep_alive_s
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What the shared way decides, beside what follows from the rates."""

    n_always_on: int
    patience_s: float
    """What a cold start is worth, in seconds of a GPU."""
    most_batch: int
    """Requests that each process has KV cache for: fewer leave room for more processes."""


def learn_shared(first: Half, case: FunctionCase, prices: Prices, seed: int) -> WayPlan:
    """Take the cheapest choice that meets the objectives, else the one that comes closest.

    Each is made from the first quarter of the time and tried on the second, since what is loaded ahead always suits the
    requests that it was chosen by. More always-on GPUs than the best choice so far costs are not tried.
    """
    early, late = cut(first)
    seen = with_rates(case, early)
    floor_usd_per_hour = HOUR_S * _always_on_usd_per_s(case.setting, prices)
    best = _Choice(n_always_on=0, patience_s=0.0, most_batch=case.most_batch)
    least = Trial(usd_per_hour=math.inf, is_safe=False, shortfall=math.inf)

    def attempt(choice: _Choice) -> FunctionReplay:
        nonlocal best, least
        plan = _shared(early, seen, prices, choice)
        replay = plan.replay(late, seed)
        trial = trial_of(plan, replay, case, prices)
        if trial.key < least.key:
            least, best = trial, choice
        return replay

    for n_always_on in growing(MOST_GPUS):
        if least.shortfall == 0.0 and n_always_on * floor_usd_per_hour >= least.usd_per_hour:
            break
        before = best
        for patience_s in _patiences_s(prices):
            replay = attempt(_Choice(n_always_on=n_always_on, patience_s=patience_s, most_batch=case.most_batch))
            if prices.usd_per_used_gpu_s is None and 0 < n_always_on == replay.most_machines:
                break  # no other was rented: how long one would be kept is all the same
        patience_s = best.patience_s if best.n_always_on == n_always_on else PATIENCES_S[0]
        smaller = max(1, case.most_batch // SMALLER_BATCH)
        attempt(_Choice(n_always_on=n_always_on, patience_s=patience_s, most_batch=smaller))
        if before is best and n_always_on > 1:
            break  # more of them were no better
    return replace(_shared(first, case, prices, best), trial=least)


def _patiences_s(prices: Prices) -> list[float]:
    """Return what a cold start may be worth in seconds of a GPU: the price of a miss among it."""
    usd_per_s = prices.usd_per_rented_s
    of_a_miss = {prices.usd_per_miss / usd_per_s} if usd_per_s > 0 else set()
    return sorted({*PATIENCES_S, *of_a_miss})


def _always_on_usd_per_s(setting: Setting, prices: Prices) -> float:
    """Return what a GPU that holds the backbone costs at least."""
    if prices.usd_per_used_gpu_s is None:
        return prices.usd_per_gpu_hour / HOUR_S
    return prices.usd_per_used_gpu_s * setting.backbone_bytes / setting.gpu_bytes


def growing(most: int) -> list[int]:
    """Return 0, 1, 2, 3, 4, 6, 8, 12, 16, ... up to `most`: each is at most twice what would have been enough."""
    powers = [2**k for k in range(most.bit_length())]
    return sorted({0, *(n for power in powers for n in (power, 3 * power) if n <= most)})


def _shared(first: Half, case: FunctionCase, prices: Prices, choice: _Choice) -> WayPlan:
    n_always_on, patience_s = choice.n_always_on, choice.patience_s
    functions, setting = case.functions, replace(case.setting, kv_bytes=choice.most_batch * case.request_kv_bytes)
    case = replace(case, setting=setting, most_batch=choice.most_batch)
    usd_per_s = prices.usd_per_rented_s
    cold_usd = patience_s * usd_per_s
    sizes = np.array(
        [process_bytes(setting, float(size), Isolation.SHARED_BACKBONE) for size in functions.adapter_bytes]
    )
    if prices.usd_per_used_gpu_s is None:  # the whole machine is paid: its processes stay until memory is short
        keep_alive = np.full(len(functions), math.inf)
        machine_idle_usd = usd_per_s
    else:
        keep_alive = _learnt_keep_alive(first, sizes / setting.gpu_bytes * usd_per_s, cold_usd, case)
        machine_idle_usd = usd_per_s * setting.backbone_bytes / setting.gpu_bytes
    machine_keep_alive_s = patience_s * usd_per_s / machine_idle_usd if machine_idle_usd > 0 else 0.0
    if n_always_on == 0:
        everybody = idle_gaps(first.arrival_s, service_s=alone_s(setting), end_s=first.duration_s)
        found = best_keep_alive(everybody, KeepAlivePrices(idle_usd_per_s=machine_idle_usd, cold_start_usd=cold_usd))
        machine_keep_alive_s = found.until_s
    if prices.offer is not None and prices.offer.keep_alive_s is not None:
        machine_keep_alive_s = prices.offer.keep_alive_s
    warm, in_host = _preload(case, n_always_on)
    policy = Policy(
        isolation=Isolation.SHARED_BACKBONE,
        keep_alive_s=keep_alive,
        n_always_on=n_always_on,
        most_machines=max(MOST_GPUS, n_always_on),
        machine_keep_alive_s=machine_keep_alive_s,
        most_batch=case.most_batch,
        most_sharing=most_sharing(functions, setting, output_tokens=case.output_tokens),
        queue_per_start=case.most_batch,
        keeps_containers=True,
        n_spares=N_SPARES,
        rents_before_evicting=False,
        warm=warm,
        in_host=in_host,
    )
    return WayPlan(
        replay=with_policy(case, policy),
        n_always_on=n_always_on,
        learnt={
            "cold_start_worth_gpu_s": patience_s,
            "machine_keep_alive_s": machine_keep_alive_s,
            "most_batch": float(choice.most_batch),
            "loaded_ahead": float(len(warm)),
            "containers_ahead": float(len(in_host)),
        },
        is_by_use=True,
        keep_alive_s=keep_alive if np.isfinite(keep_alive).all() else None,
    )


def _learnt_keep_alive(first: Half, idle_usd_per_s: Floats, cold_usd: float, case: FunctionCase) -> Floats:
    """Return for each function the keep-alive time that would have been cheapest, shape (functions,)."""
    pairs = zip(gaps_of(first, case), idle_usd_per_s.tolist(), strict=True)
    return np.array(
        [
            best_keep_alive(gaps, KeepAlivePrices(idle_usd_per_s=price, cold_start_usd=cold_usd)).until_s
            for gaps, price in pairs
        ]
    )


def _preload(case: FunctionCase, n_machines: int) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Return the processes and the containers to have ready on each always-on machine, as (function, machine).

    Functions are spread over machines by their rates; each machine then takes the most value per byte of its own, by
    `optimize.preload.greedy_preload`: a process needs its container beside it.
    """
    functions, setting, start = case.functions, case.setting, case.setting.start
    container_saves = {Tier.HOST: start.container_s.p50 + start.libraries_s.p50}
    process_saves = {Tier.GPU: start.backbone_shared_s.p50 + start.adapter_s[Tier.HOST].p50 + start.kernels_s.p50}
    spare_bytes = N_SPARES * setting.container_bytes
    busy = [f for f in range(len(functions)) if functions.rate_rps[f] > 0]
    placed = spread(busy, functions.rate_rps, n_machines) if n_machines else ()
    warm: list[tuple[int, int]] = []
    in_host: list[tuple[int, int]] = []
    for machine in range(n_machines):
        places = [
            Place(name="gpu", tier=Tier.GPU, capacity_bytes=setting.gpu_bytes - setting.backbone_bytes),
            Place(name="host", tier=Tier.HOST, capacity_bytes=max(0.0, setting.host_bytes - spare_bytes)),
        ]
        artifacts = []
        for f in (function for function, where in placed if where == machine):
            rate, adapter = float(functions.rate_rps[f]), float(functions.adapter_bytes[f])
            artifacts += [
                Artifact(
                    name=f"container {f}",
                    size_bytes=setting.container_bytes + adapter,
                    rate_rps=rate,
                    saved_s=container_saves,
                ),
                Artifact(
                    name=f"process {f}",
                    size_bytes=process_bytes(setting, adapter, Isolation.SHARED_BACKBONE),
                    rate_rps=rate,
                    saved_s=process_saves,
                    requires=(f"container {f}",),
                ),
            ]
        held = {name for name, _ in greedy_preload(artifacts, places).held}
        ready = sorted(int(name.split()[1]) for name in held if name.startswith("process"))
        waiting = sorted(int(name.split()[1]) for name in held if name.startswith("container"))
        warm += [(f, machine) for f in ready]
        in_host += [(f, machine) for f in waiting if f"process {f}" not in held]
    return tuple(warm), tuple(in_host)
