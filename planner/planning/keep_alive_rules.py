"""What rules to keep an idle process cost, each adapter by itself: learnt on one half, told on the other.

Each adapter has processes with weights of their own that idle at the price of a whole GPU, or of the part of its memory
that they hold where that is what is billed. A cold start costs the GPU time that it takes, and the price of a missed
objective where its median takes longer than the adapter's bound on the TTFT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation
from planner.optimize.keep_alive import (
    COMMON_KEEP_ALIVE_S,
    HUAWEI_KEEP_ALIVE_S,
    HybridHistogram,
    IdleGaps,
    KeepAliveCost,
    KeepAlivePrices,
    Window,
    best_keep_alive,
    cost_of,
    cost_of_windows,
    idle_gaps,
)
from planner.optimize.preload import Tier
from planner.simulate.functions.setting import process_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.planning.function_case import FunctionCase
    from planner.planning.function_plans import Half
    from planner.planning.function_ways import Prices
    from planner.simulate.functions.setting import Setting
    from planner.simulate.steps import Floats

LEARNT = "learnt"
HINDSIGHT = "best in hindsight"
FIXED: Mapping[str, Window] = {
    "never": Window(until_s=0.0),
    "60 s": Window(until_s=HUAWEI_KEEP_ALIVE_S),
    "10 min": Window(until_s=COMMON_KEEP_ALIVE_S),
    "always": Window(until_s=math.inf),
}
HYBRID = "hybrid histogram"
RULES = (LEARNT, *FIXED, HYBRID, HINDSIGHT)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTable:
    """What each rule costs each adapter on the second half."""

    learnt_s: Floats
    """Cheapest keep-alive of the first half, shape (adapters,)."""
    costs: Mapping[str, tuple[KeepAliveCost, ...]]
    """Rule -> one cost for each adapter; in the order of `RULES`."""
    idle_usd_per_s: Floats
    """Shape (adapters,)."""
    cold_start_usd: Floats
    """Shape (adapters,)."""

    def total_usd(self, rule: str) -> float:
        """Return what a rule costs all adapters together."""
        return math.fsum(cost.total_usd for cost in self.costs[rule])

    def n_cold(self, rule: str) -> int:
        """Return how many requests it leaves cold."""
        return sum(cost.n_cold for cost in self.costs[rule])


def rule_table(first: Half, second: Half, case: FunctionCase, prices: Prices) -> RuleTable:
    """Return what the rules cost on `second`; what is learnt, and what the histogram has seen, is from `first` on."""
    idle_usd, cold_usd = idle_and_cold_usd(case, prices)
    learnt, costs = np.zeros(len(idle_usd)), []
    pairs = zip(gaps_of(first, case), gaps_of(second, case), idle_usd.tolist(), cold_usd.tolist(), strict=True)
    for f, (before, after, idle_usd_per_s, cold_start_usd) in enumerate(pairs):
        price = KeepAlivePrices(idle_usd_per_s=idle_usd_per_s, cold_start_usd=cold_start_usd)
        window = best_keep_alive(before, price)
        learnt[f] = window.until_s
        costs.append(
            {
                LEARNT: cost_of(window, after, price),
                **{name: cost_of(fixed, after, price) for name, fixed in FIXED.items()},
                HYBRID: cost_of_windows(_histogram_windows(before, after), after, price),
                HINDSIGHT: cost_of(best_keep_alive(after, price), after, price),
            }
        )
    return RuleTable(
        learnt_s=learnt,
        costs={name: tuple(cost[name] for cost in costs) for name in RULES},
        idle_usd_per_s=idle_usd,
        cold_start_usd=cold_usd,
    )


def idle_and_cold_usd(case: FunctionCase, prices: Prices) -> tuple[Floats, Floats]:
    """Return what an idle second and a cold start of each adapter's own process cost, both of shape (adapters,)."""
    setting, functions = case.setting, case.functions
    sizes = np.array([process_bytes(setting, float(size), Isolation.DEDICATED) for size in functions.adapter_bytes])
    parts = np.ones(len(functions)) if prices.usd_per_used_gpu_s is None else sizes / setting.gpu_bytes
    idle_usd = prices.usd_per_rented_s * parts
    start_s = start_median_s(setting)
    busy_usd = idle_usd if prices.offer is None else np.full(len(functions), prices.offer.usd_per_container_s)
    is_missed = start_s + setting.prefill.first_s > functions.ttft_bound_s
    return idle_usd, _billed_start_s(setting, prices) * busy_usd + prices.usd_per_miss * is_missed


def start_median_s(setting: Setting) -> float:
    """Return the median of a start from nothing, its adapter merged into weights that come from storage."""
    start = setting.start
    parts = (start.provision_s, start.container_s, start.libraries_s, start.backbone_s[Tier.DISK], start.kernels_s)
    return math.fsum(part.p50 for part in parts)


def _billed_start_s(setting: Setting, prices: Prices) -> float:
    """Return the seconds that a start adds to the bill of a request that is alone."""
    start_s, busy_s = start_median_s(setting), alone_s(setting)
    if prices.offer is not None:
        free_s = 0.0 if prices.offer.bills_container_start else setting.start.container_s.p50
        held_s = start_s - free_s + busy_s
        return (float(prices.offer.billed_s(held_s)) if prices.offer.bills_idle else held_s) - busy_s
    return start_s if prices.rule is None else float(prices.rule.billed_s(start_s + busy_s)) - busy_s


def alone_s(setting: Setting) -> float:
    """Return how long a request keeps a process busy that has the GPU for itself."""
    return setting.prefill.first_s + (0.0 if setting.decode is None else setting.decode.first_s)


def gaps_of(half: Half, case: FunctionCase) -> list[IdleGaps]:
    """Return the idle gaps of each adapter's requests."""
    n = len(case.functions)
    order = np.argsort(half.function, kind="stable")
    starts = np.searchsorted(half.function[order], np.arange(n + 1))
    busy_s = alone_s(case.setting)
    return [
        idle_gaps(half.arrival_s[order[starts[f] : starts[f + 1]]], service_s=busy_s, end_s=half.duration_s)
        for f in range(n)
    ]


def _histogram_windows(before: IdleGaps, after: IdleGaps) -> Sequence[Window]:
    """Return the windows in force during `after`, made from all gaps up to each."""
    both = IdleGaps(
        gaps_s=np.concatenate([before.gaps_s, after.gaps_s]), n_requests=before.n_requests + after.n_requests
    )
    return HybridHistogram().windows(both)[len(before.gaps_s) :]
