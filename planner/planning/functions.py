"""Ways to serve many adapters of one model, compared on the same requests and objectives.

What each way decides (how many GPUs, how long to keep, what to load ahead) it learns on the first half of the requests;
what is told of it happens on the second half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation
from planner.errors import InputError
from planner.planning.function_plans import (
    Half,
    attainment_of,
    cost_usd,
    cut,
    learn_dedicated,
    learn_pool,
    miss_usd,
    with_rates,
)
from planner.planning.function_serverless import learn_kept, learn_serverless, learn_shared
from planner.planning.function_ways import Comparison, Prices, Way, WayOutcome
from planner.planning.keep_alive_rules import rule_table
from planner.profilers.first_token import COLD, first_token, published_load_times
from planner.profilers.serverless_figures import beyond_published, figures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from planner.planning.function_case import FunctionCase
    from planner.planning.function_plans import WayPlan
    from planner.simulate.functions.records import FunctionReplay
    from planner.simulate.steps import Floats
    from planner.workload.adapter_traffic import AdapterTraffic

FEWEST_REQUESTS = 20
"""In each half, below which nothing is learnt or judged."""


def halves(traffic: AdapterTraffic) -> tuple[Half, Half]:
    """Return the first and the second half of the time.

    Raises
    ------
    InputError: if one of them has too few requests to learn or to judge by.
    """
    found = cut(Half(arrival_s=traffic.arrival_s, function=traffic.adapter, duration_s=traffic.duration_s))
    if (fewest := min(len(half.arrival_s) for half in found)) < FEWEST_REQUESTS:
        raise InputError(
            f"One half of the time has {fewest} requests, and nothing can be learnt or judged by fewer than"
            f" {FEWEST_REQUESTS}.",
            hint="Take a longer time, or higher rates.",
        )
    return found


def compare_ways(
    traffic: AdapterTraffic, case: FunctionCase, prices: Prices, *, ways: Sequence[Way] = tuple(Way), seed: int = 0
) -> Comparison:
    """Return what each way costs, and how its requests fare, on the second half of `traffic`.

    Ways that share more than an adapter allows are left out, and so is learning how long to keep what a cloud keeps as
    it likes; the comparison says so.

    Raises
    ------
    InputError: if a half has too few requests, or a process does not fit a GPU.
    """
    first, second = halves(traffic)
    case = with_rates(case, first)
    reasons = {way: reason for way in ways if (reason := _reason_against(way, case, prices))}
    found = []
    for way in (way for way in ways if way not in reasons):
        plan = _LEARN[way](first, case, prices, seed)
        found.append(_judged(way, plan, plan.replay(second, seed + 1), case, prices))
    return Comparison(
        ways=tuple(found),
        n_requests=len(second.arrival_s),
        duration_s=second.duration_s,
        target_fraction=case.target_fraction,
        rules=rule_table(first, second, case, prices),
        cautions=(*reasons.values(), *_cautions(found, case)),
    )


_SHARES: Mapping[Way, frozenset[Isolation]] = {
    Way.POOL: frozenset({Isolation.SHARED_PROCESS}),
    Way.SHARED: frozenset({Isolation.SHARED_PROCESS, Isolation.SHARED_BACKBONE}),
}
"""Which isolation allows these ways; the others share nothing."""


def _reason_against(way: Way, case: FunctionCase, prices: Prices) -> str:
    """Return why a way is left out; empty if it is not."""
    if way in _SHARES and case.isolation not in _SHARES[way]:
        return f"{way} is left out: adapter {case.isolated_by!r} asks for isolation {case.isolation}."
    if way is Way.KEPT and prices.offer is not None and prices.offer.keep_alive_s is not None:
        return (
            f"{way} is left out: {prices.offer.provider} itself keeps idle containers {prices.offer.keep_alive_s:g} s."
        )
    return ""


def _judged(way: Way, plan: WayPlan, replay: FunctionReplay, case: FunctionCase, prices: Prices) -> WayOutcome:
    records = replay.records
    counts = np.bincount(records.function, minlength=len(case.functions))
    each = case.objectives.attainment_of_each(records, output_tokens=case.output_tokens)
    known = each[counts >= FEWEST_REQUESTS]
    by_use = plan.is_by_use and prices.usd_per_used_gpu_s is not None
    return WayOutcome(
        way=way,
        n_always_on=plan.n_always_on,
        most_gpus=replay.most_machines,
        gpu_s=replay.gpu_share_s if by_use else replay.gpu_s,
        cost_usd=cost_usd(replay, plan, prices),
        miss_usd=miss_usd(replay, case, prices),
        ttft_p50_s=_quantile_s(records.ttft_s, 0.5),
        ttft_p99_s=_quantile_s(records.ttft_s, 0.99),
        e2e_p50_s=_quantile_s(records.e2e_s, 0.5),
        attainment=attainment_of(replay, case),
        least_attainment=float(known.min()) if len(known) else math.nan,
        cold_fraction=float(records.is_cold.mean()),
        busy_fraction=replay.busy_gpu_s / replay.gpu_s if replay.gpu_s else 0.0,
        learnt=plan.learnt,
        keep_alive_s=plan.keep_alive_s,
        ready=plan.ready,
        replay=replay,
        excess=case.objectives.excess(records, output_tokens=case.output_tokens),
        trial=plan.trial,
    )


def _quantile_s(values_s: Floats, fraction: float) -> float:
    """Return the smallest value that so many do not exceed: one that is infinite stays so, and spoils no other."""
    return float(np.quantile(values_s, fraction, method="inverted_cdf"))


_LEARN: Mapping[Way, Callable[[Half, FunctionCase, Prices, int], WayPlan]] = {
    Way.DEDICATED: learn_dedicated,
    Way.POOL: learn_pool,
    Way.SERVERLESS: learn_serverless,
    Way.KEPT: learn_kept,
    Way.SHARED: learn_shared,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What a shared backbone saves against plain serverless, which is what ServerlessLoRA was compared with."""

    cost: float
    """Part of the cost that is saved; negative if it costs more."""
    ttft: float
    """Part of the mean TTFT that is saved."""
    ttft_as_published: float
    """The same if a first token took as long as it did there."""


def saving(shared: WayOutcome, plain: WayOutcome, case: FunctionCase) -> Saving:
    """Return what `shared` saves against `plain`."""
    with_s, without_s = (float(each.replay.records.ttft_s.mean()) for each in (shared, plain))
    slower_s = figures("timeline")["inference_s"] - case.setting.prefill.first_s
    return Saving(
        cost=1 - shared.cost_usd / plain.cost_usd if plain.cost_usd > 0 else 0.0,
        ttft=1 - with_s / without_s,
        ttft_as_published=1 - (with_s + slower_s) / (without_s + slower_s),
    )


def _against_published(shared: WayOutcome, plain: WayOutcome, case: FunctionCase) -> list[str]:
    """Return what to say of savings beyond the published ones: what would be left with their time of a first token."""
    saved = saving(shared, plain, case)
    said = list(beyond_published(ttft_reduction=saved.ttft, cost_reduction=saved.cost))
    if said and said[0].startswith("TTFT"):
        said[0] += (
            f" A first token takes {case.setting.prefill.first_s:.2g} s here and"
            f" {figures('timeline')['inference_s']:g} s there: with theirs it would fall by"
            f" {saved.ttft_as_published:.0%}.{_starts_against_published(plain)}"
        )
    return said


def _starts_against_published(plain: WayOutcome) -> str:
    """Return how long starts take here and there, where those here are longer; that, too, is saved by being warm."""
    records = plain.replay.records
    there_s = first_token(published_load_times(), COLD).total_s
    if not records.is_cold.any() or (here_s := float(records.ttft_s[records.is_cold].mean())) <= there_s:
        return ""
    return (
        f" A request that finds nothing ready waits {here_s:.2g} s here on average, queues and tails of starts in it,"
        f" and {there_s:.2g} s there."
    )
