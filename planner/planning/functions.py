"""Four ways to serve many adapters of one model, compared on the same requests and objectives.

What each way decides (how many GPUs, how long to keep, what to load ahead) it learns on the first half of the requests;
what is told of it happens on the second half.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation
from planner.errors import InputError
from planner.optimize.keep_alive import (
    HUAWEI_KEEP_ALIVE_S,
    KeepAlivePrices,
    best_keep_alive,
    idle_gaps,
)
from planner.optimize.preload import Artifact, Place, Tier, greedy_preload
from planner.planning.function_ways import Comparison, Prices, Way, WayOutcome
from planner.profilers.adapter_packing import AdapterMemory, most_adapters
from planner.profilers.serverless_figures import beyond_published, figures
from planner.simulate.functions.pool import pool_size, replay_pool
from planner.simulate.functions.replay import replay_functions
from planner.simulate.functions.setting import Policy, process_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from planner.planning.function_case import FunctionCase
    from planner.simulate.functions.records import FunctionReplay
    from planner.simulate.functions.setting import Functions, Setting
    from planner.simulate.steps import Floats
    from planner.workload.adapter_traffic import AdapterTraffic

HOUR_S = 3600.0
MOST_GPUS = 256
"""Where the search for a number of always-on GPUs ends."""
PATIENCES_S = (0.0, 10.0, 100.0, 1000.0, 10_000.0)
"""What a cold start may be worth, in seconds of a GPU: the keep-alive times that are learnt range over these."""
SMALLER_BATCH = 4
"""Processes with KV cache for this many times fewer requests are tried, too."""
N_SPARES = 2
"""Containers that a machine with a shared backbone has ready for whoever comes next: all run the same program."""
MOST_REPLICAS = 4
"""Processes of one busy adapter on GPUs of its own, at most."""
FEWEST_REQUESTS = 20
"""In each half, below which nothing is learnt or judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """Requests of one half, from 0 on."""

    arrival_s: Floats
    function: NDArray[np.int64]
    duration_s: float


def halves(traffic: AdapterTraffic) -> tuple[Half, Half]:
    """Return the first and the second half of the time.

    Raises
    ------
    InputError: if one of them has too few requests to learn or to judge by.
    """
    found = _cut(Half(arrival_s=traffic.arrival_s, function=traffic.adapter, duration_s=traffic.duration_s))
    if (fewest := min(len(half.arrival_s) for half in found)) < FEWEST_REQUESTS:
        raise InputError(
            f"One half of the time has {fewest} requests, and nothing can be learnt or judged by fewer than"
            f" {FEWEST_REQUESTS}.",
            hint="Take a longer time, or higher rates.",
        )
    return found


def _cut(whole: Half) -> tuple[Half, Half]:
    middle_s = whole.duration_s / 2
    at = int(np.searchsorted(whole.arrival_s, middle_s))
    early = Half(arrival_s=whole.arrival_s[:at], function=whole.function[:at], duration_s=middle_s)
    late = Half(arrival_s=whole.arrival_s[at:] - middle_s, function=whole.function[at:], duration_s=middle_s)
    return early, late


def compare_ways(
    traffic: AdapterTraffic, case: FunctionCase, prices: Prices, *, ways: Sequence[Way] = tuple(Way), seed: int = 0
) -> Comparison:
    """Return what each way costs, and how its requests fare, on the second half of `traffic`.

    Raises
    ------
    InputError: if a half has too few requests, or a process does not fit a GPU.
    """
    first, second = halves(traffic)
    case = _with_rates(case, first)
    found = []
    for way in ways:
        plan = _LEARN[way](first, case, prices, seed)
        found.append(_judged(way, plan, plan.replay(second, seed + 1), case, prices))
    return Comparison(
        ways=tuple(found),
        n_requests=len(second.arrival_s),
        duration_s=second.duration_s,
        target_fraction=case.target_fraction,
        cautions=_cautions(found, case),
    )


def _with_rates(case: FunctionCase, seen: Half) -> FunctionCase:
    """Return the case with the rates that were seen in place of those that are stated."""
    rates = np.bincount(seen.function, minlength=len(case.functions)) / seen.duration_s
    return replace(case, functions=replace(case.functions, rate_rps=rates))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a way has decided."""

    replay: Callable[[Half, int], FunctionReplay]
    n_always_on: int
    learnt: Mapping[str, float]
    is_by_use: bool = False
    """A serverless cloud bills it, where there is a price for that."""


def _judged(way: Way, plan: _Plan, replay: FunctionReplay, case: FunctionCase, prices: Prices) -> WayOutcome:
    records = replay.records
    counts = np.bincount(records.function, minlength=len(case.functions))
    each = records.attainment_of_functions(case.functions, output_tokens=case.output_tokens)
    known = each[counts >= FEWEST_REQUESTS]
    by_use = plan.is_by_use and prices.usd_per_used_gpu_s is not None
    return WayOutcome(
        way=way,
        n_always_on=plan.n_always_on,
        most_gpus=replay.most_machines,
        gpu_s=replay.gpu_share_s if by_use else replay.gpu_s,
        cost_usd=_cost_usd(replay, plan, prices),
        ttft_p50_s=_quantile_s(records.ttft_s, 0.5),
        ttft_p99_s=_quantile_s(records.ttft_s, 0.99),
        e2e_p50_s=_quantile_s(records.e2e_s, 0.5),
        attainment=_attainment(replay, case),
        least_attainment=float(known.min()) if len(known) else math.nan,
        cold_fraction=float(records.is_cold.mean()),
        busy_fraction=replay.busy_gpu_s / replay.gpu_s if replay.gpu_s else 0.0,
        learnt=plan.learnt,
        replay=replay,
    )


def _quantile_s(values_s: Floats, fraction: float) -> float:
    """Return the smallest value that so many do not exceed: one that is infinite stays so, and spoils no other."""
    return float(np.quantile(values_s, fraction, method="inverted_cdf"))


def _attainment(replay: FunctionReplay, case: FunctionCase) -> float:
    return float(replay.records.is_attained(case.functions, output_tokens=case.output_tokens).mean())


def _cost_usd(replay: FunctionReplay, plan: _Plan, prices: Prices) -> float:
    if plan.is_by_use and prices.usd_per_used_gpu_s is not None:
        return replay.gpu_share_s * prices.usd_per_used_gpu_s
    return replay.gpu_s * prices.usd_per_gpu_hour / HOUR_S


def _with_policy(case: FunctionCase, policy: Policy) -> Callable[[Half, int], FunctionReplay]:
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
    return max(1, math.floor(turns))


# --- always on -------------------------------------------------------------------------------------------------------


def _learn_dedicated(first: Half, case: FunctionCase, _prices: Prices, seed: int) -> _Plan:
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
    most = _attainment(replay, case)
    while most < case.target_fraction and copies.max() < MOST_REPLICAS:
        if fit > 1:
            fit = 1
        else:
            each = replay.records.attainment_of_functions(functions, output_tokens=case.output_tokens)
            copies = copies + (each < case.target_fraction)  # NaN, without requests, is not below
        other = _dedicated(case, fit, copies)
        replay = other.replay(first, seed)
        if (attainment := _attainment(replay, case)) > most:
            plan, most = other, attainment
    return plan


def _dedicated(case: FunctionCase, on_each: int, copies: NDArray[np.int64]) -> _Plan:
    places = [function for function, count in enumerate(copies.tolist()) for _ in range(count)]
    rates = case.functions.rate_rps / copies
    n_machines = math.ceil(len(places) / on_each)
    warm = _spread(places, rates, n_machines, most=on_each)
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
    return _Plan(
        replay=_with_policy(replace(case, setting=setting), policy),
        n_always_on=n_machines,
        learnt={"copies_per_gpu": float(on_each), "copies": float(len(places))},
    )


def _spread(
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


def _learn_pool(first: Half, case: FunctionCase, _prices: Prices, seed: int) -> _Plan:
    """Take the fewest engines that meet the objectives; attainment is taken to grow with their number."""

    def plan_of(n_engines: int) -> _Plan:
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
        return _Plan(replay=replay, n_always_on=n_engines, learnt=learnt)

    def meets(n_engines: int) -> bool:
        return _attainment(plan_of(n_engines).replay(first, seed), case) >= case.target_fraction

    low, high = 0, 1
    while high < MOST_GPUS and not meets(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return plan_of(high)


# --- paying while it runs --------------------------------------------------------------------------------------------


def _learn_serverless(first: Half, case: FunctionCase, prices: Prices, seed: int) -> _Plan:
    """Nothing is learnt: 60 s for every function, and as many machines as it takes."""
    del first, prices, seed
    n = len(case.functions)
    policy = Policy(
        isolation=Isolation.DEDICATED,
        keep_alive_s=np.full(n, HUAWEI_KEEP_ALIVE_S),
        most_machines=max(n, MOST_GPUS),
        most_batch=case.most_batch,
        most_sharing=most_sharing(case.functions, case.setting, output_tokens=case.output_tokens),
        queue_per_start=case.most_batch,
    )
    return _Plan(
        replay=_with_policy(case, policy), n_always_on=0, learnt={"keep_alive_s": HUAWEI_KEEP_ALIVE_S}, is_by_use=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What the shared way decides, beside what follows from the rates."""

    n_always_on: int
    patience_s: float
    """What a cold start is worth, in seconds of a GPU."""
    most_batch: int
    """Requests that each process has KV cache for: fewer leave room for more processes."""


def _learn_shared(first: Half, case: FunctionCase, prices: Prices, seed: int) -> _Plan:
    """Take the cheapest choice that meets the objectives, else the one that comes closest.

    Each is made from the first quarter of the time and tried on the second, since what is loaded ahead always suits the
    requests that it was chosen by. More always-on GPUs than the best choice so far costs are not tried.
    """
    early, late = _cut(first)
    seen = _with_rates(case, early)
    floor_usd = late.duration_s * _always_on_usd_per_s(case.setting, prices)
    best = _Choice(n_always_on=0, patience_s=0.0, most_batch=case.most_batch)
    least = (math.inf, math.inf)  # attainment that is missing, USD

    def attempt(choice: _Choice) -> FunctionReplay:
        nonlocal best, least
        plan = _shared(early, seen, prices, choice)
        replay = plan.replay(late, seed)
        key = (max(0.0, case.target_fraction - _attainment(replay, case)), _cost_usd(replay, plan, prices))
        if key < least:
            least, best = key, choice
        return replay

    for n_always_on in _growing(MOST_GPUS):
        if least[0] == 0.0 and n_always_on * floor_usd >= least[1]:
            break
        before = best
        for patience_s in PATIENCES_S:
            replay = attempt(_Choice(n_always_on=n_always_on, patience_s=patience_s, most_batch=case.most_batch))
            if prices.usd_per_used_gpu_s is None and 0 < n_always_on == replay.most_machines:
                break  # no other was rented: how long one would be kept is all the same
        patience_s = best.patience_s if best.n_always_on == n_always_on else PATIENCES_S[0]
        smaller = max(1, case.most_batch // SMALLER_BATCH)
        attempt(_Choice(n_always_on=n_always_on, patience_s=patience_s, most_batch=smaller))
        if before is best and n_always_on > 1:
            break  # more of them were no better
    return _shared(first, case, prices, best)


def _always_on_usd_per_s(setting: Setting, prices: Prices) -> float:
    """Return what a GPU that holds the backbone costs at least."""
    if prices.usd_per_used_gpu_s is None:
        return prices.usd_per_gpu_hour / HOUR_S
    return prices.usd_per_used_gpu_s * setting.backbone_bytes / setting.gpu_bytes


def _growing(most: int) -> list[int]:
    """Return 0, 1, 2, 3, 4, 6, 8, 12, 16, ... up to `most`: each is at most twice what would have been enough."""
    powers = [2**k for k in range(most.bit_length())]
    return sorted({0, *(n for power in powers for n in (power, 3 * power) if n <= most)})


def _shared(first: Half, case: FunctionCase, prices: Prices, choice: _Choice) -> _Plan:
    n_always_on, patience_s = choice.n_always_on, choice.patience_s
    functions, setting = case.functions, replace(case.setting, kv_bytes=choice.most_batch * case.request_kv_bytes)
    case = replace(case, setting=setting, most_batch=choice.most_batch)
    usd_per_s = prices.usd_per_used_gpu_s or prices.usd_per_gpu_hour / HOUR_S
    cold_usd = patience_s * usd_per_s
    sizes = np.array(
        [process_bytes(setting, float(size), Isolation.SHARED_BACKBONE) for size in functions.adapter_bytes]
    )
    if prices.usd_per_used_gpu_s is None:  # the whole machine is paid: its processes stay until memory is short
        keep_alive = np.full(len(functions), math.inf)
        machine_idle_usd = usd_per_s
    else:
        keep_alive = _learnt_keep_alive(first, sizes / setting.gpu_bytes * usd_per_s, cold_usd, setting)
        machine_idle_usd = usd_per_s * setting.backbone_bytes / setting.gpu_bytes
    machine_keep_alive_s = patience_s * usd_per_s / machine_idle_usd if machine_idle_usd > 0 else 0.0
    if n_always_on == 0:
        everybody = idle_gaps(first.arrival_s, service_s=_alone_s(setting), end_s=first.duration_s)
        found = best_keep_alive(everybody, KeepAlivePrices(idle_usd_per_s=machine_idle_usd, cold_start_usd=cold_usd))
        machine_keep_alive_s = found.until_s
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
    return _Plan(
        replay=_with_policy(case, policy),
        n_always_on=n_always_on,
        learnt={
            "cold_start_worth_gpu_s": patience_s,
            "machine_keep_alive_s": machine_keep_alive_s,
            "most_batch": float(choice.most_batch),
            "loaded_ahead": float(len(warm)),
            "containers_ahead": float(len(in_host)),
        },
        is_by_use=True,
    )


def _alone_s(setting: Setting) -> float:
    """Return how long a request keeps a process busy that has the GPU for itself."""
    return setting.prefill.first_s + (0.0 if setting.decode is None else setting.decode.first_s)


def _learnt_keep_alive(first: Half, idle_usd_per_s: Floats, cold_usd: float, setting: Setting) -> Floats:
    """Return for each function the keep-alive time that would have been cheapest, shape (functions,)."""
    order = np.argsort(first.function, kind="stable")
    starts = np.searchsorted(first.function[order], np.arange(len(idle_usd_per_s) + 1))
    found = np.zeros(len(idle_usd_per_s))
    for f, price in enumerate(idle_usd_per_s.tolist()):
        own = first.arrival_s[order[starts[f] : starts[f + 1]]]
        gaps = idle_gaps(own, service_s=_alone_s(setting), end_s=first.duration_s)
        found[f] = best_keep_alive(gaps, KeepAlivePrices(idle_usd_per_s=price, cold_start_usd=cold_usd)).until_s
    return found


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
    spread = _spread(busy, functions.rate_rps, n_machines) if n_machines else ()
    warm: list[tuple[int, int]] = []
    in_host: list[tuple[int, int]] = []
    for machine in range(n_machines):
        places = [
            Place(name="gpu", tier=Tier.GPU, capacity_bytes=setting.gpu_bytes - setting.backbone_bytes),
            Place(name="host", tier=Tier.HOST, capacity_bytes=max(0.0, setting.host_bytes - spare_bytes)),
        ]
        artifacts = []
        for f in (function for function, where in spread if where == machine):
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


_LEARN: Mapping[Way, Callable[[Half, FunctionCase, Prices, int], _Plan]] = {
    Way.DEDICATED: _learn_dedicated,
    Way.POOL: _learn_pool,
    Way.SERVERLESS: _learn_serverless,
    Way.SHARED: _learn_shared,
}


# --- what to be careful with -----------------------------------------------------------------------------------------


def _cautions(found: Sequence[WayOutcome], case: FunctionCase) -> tuple[str, ...]:
    by_way = {outcome.way: outcome for outcome in found}
    said = []
    for outcome in found:
        if not np.isfinite(outcome.replay.records.ttft_s).all():
            n_never = int((~np.isfinite(outcome.replay.records.ttft_s)).sum())
            said.append(f"{outcome.way}: {n_never} requests were never served, for want of memory.")
    if Way.SHARED in by_way and Way.SERVERLESS in by_way:
        said += _against_published(by_way[Way.SHARED], by_way[Way.SERVERLESS], case)
    return tuple(said)


def _against_published(shared: WayOutcome, plain: WayOutcome, case: FunctionCase) -> list[str]:
    """Return what to say of savings beyond the published ones: what would be left with their time of a first token."""
    with_s, without_s = (float(each.replay.records.ttft_s.mean()) for each in (shared, plain))
    saved_ttft = 1 - with_s / without_s
    saved_cost = 1 - shared.cost_usd / plain.cost_usd if plain.cost_usd > 0 else 0.0
    said = list(beyond_published(ttft_reduction=saved_ttft, cost_reduction=saved_cost))
    if said and said[0].startswith("TTFT"):
        theirs_s = figures("timeline")["inference_s"]
        slower_s = theirs_s - case.setting.prefill.first_s
        same = 1 - (with_s + slower_s) / (without_s + slower_s)
        said[0] += (
            f" A first token takes {case.setting.prefill.first_s:.2g} s here and {theirs_s:g} s there: with theirs it"
            f" would fall by {same:.0%}."
        )
    return said
