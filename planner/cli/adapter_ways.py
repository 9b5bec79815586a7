"""Ways to serve adapters, printed: a table, a few lines, or one JSON document."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from planner.optimize.preload import Tier
from planner.units import format_duration, format_usd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from planner.planning.function_case import FunctionCase
    from planner.planning.function_ways import Comparison, Prices, WayOutcome
    from planner.planning.keep_alive_rules import RuleTable


def ways_table(found: Comparison) -> Table:
    """Return a row for each way."""
    from rich.table import Table

    has_misses = any(way.miss_usd > 0 for way in found.ways)

    table = Table(box=None, pad_edge=False)
    for title in (
        "way",
        "GPUs",
        "GPU h",
        "USD",
        *(("misses",) if has_misses else ()),
        "USD/1000",
        "TTFT p50",
        "p99",
        "E2E p50",
        "within",
        "worst",
        "cold",
        "",
    ):
        is_word = title in {"way", ""}
        table.add_column(title, justify="left" if is_word else "right", no_wrap=is_word, overflow="fold")
    for way in found.ways:
        table.add_row(
            way.way.value,
            _gpus(way),
            f"{way.gpu_s / 3600:.1f}",
            format_usd(way.cost_usd),
            *((format_usd(way.miss_usd),) if has_misses else ()),
            format_usd(found.usd_per_1000(way)),
            format_duration(way.ttft_p50_s),
            format_duration(way.ttft_p99_s),
            format_duration(way.e2e_p50_s),
            f"{way.attainment:.1%}",
            "-" if math.isnan(way.least_attainment) else f"{way.least_attainment:.0%}",
            f"{way.cold_fraction:.1%}",
            "" if found.meets(way) else "misses",
        )
    return table


def _gpus(way: WayOutcome) -> str:
    """Return how many GPUs are always on, and the most that were held at a time."""
    return f"{way.n_always_on}" if way.most_gpus == way.n_always_on else f"{way.n_always_on} to {way.most_gpus}"


def rules_table(rules: RuleTable) -> Table:
    """Return a row for each rule to keep an idle process."""
    from rich.table import Table

    title = "\nwhat idles, and cold starts, for each adapter by itself"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("keep-alive", no_wrap=True)
    for name in ("idle h", "cold starts", "USD"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, costs in rules.costs.items():
        idle_h = math.fsum(cost.idle_s for cost in costs) / 3600.0
        table.add_row(name, f"{idle_h:.1f}", f"{rules.n_cold(name):,}", format_usd(rules.total_usd(name)))
    return table


def ways_lines(found: Comparison, n_adapters: int) -> list[str]:
    """Return who was judged, and which way is cheapest."""
    asked = f"{found.target_fraction:.1%} have to be" if found.target_fraction else "means have to be"
    judged = (
        f"{found.n_requests:,} requests for {n_adapters} adapters in {format_duration(found.duration_s)};"
        f" {asked} within their SLOs."
    )
    best = found.cheapest
    if best is None:
        return [judged, "No way meets the SLOs."]
    return [
        judged,
        f"Cheapest that does: {best.way.value}, {format_usd(found.usd_per_1000(best))} USD for 1000 requests.",
    ]


def ready_lines(found: Comparison, names: Sequence[str]) -> list[str]:
    """Return in a line for each way what is loaded before anybody asks, and where."""
    return ["Loaded before anybody asks:", *(f"  {way.way.value}: {_ready_text(way, names)}" for way in found.ways)]


MAX_NAMES = 3
"""Adapters that a line names; --json has all."""


def _ready_text(way: WayOutcome, names: Sequence[str]) -> str:
    tiers = _tiers(way, len(names))
    words = {Tier.GPU: "in GPU memory", Tier.HOST: "in host memory", Tier.DISK: "on disk"}
    parts = [f"{_few([names[f] for f in tiers[tier]])} {words[tier]}" for tier in Tier if tiers[tier]]
    spares = sum(ready.n_spares * len(ready.machines) for ready in way.ready)
    if spares:
        parts.append(f"{spares} containers for whoever comes next")
    return "; ".join(parts) if way.ready else "nothing; all on disk"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _tiers(way: WayOutcome, n_adapters: int) -> dict[Tier, list[int]]:
    """Return every adapter once, where it is nearest on any machine."""
    gpu = dict.fromkeys(f for ready in way.ready for f in ready.gpu)
    host = dict.fromkeys(f for ready in way.ready for f in ready.host if f not in gpu)
    disk = [f for f in range(n_adapters) if f not in gpu and f not in host]
    return {Tier.GPU: list(gpu), Tier.HOST: list(host), Tier.DISK: disk}


def offer_notes(prices: Prices) -> tuple[str, ...]:
    """Return what there is to say of the price of an offer."""
    if prices.offer is None:
        return ()
    dated = "without a date" if prices.offer.as_of is None else f"as of {prices.offer.as_of.isoformat()}"
    more = "" if prices.offer.is_all_in else ", and more that is not known"
    notes = f"; {prices.offer.notes}" if prices.offer.notes else ""
    return (f"{prices.offer.name}: {prices.offer.usd_per_container_s:g} USD/s{more} {dated}{notes}",)


def ways_document(
    found: Comparison, case: FunctionCase, prices: Prices, names: Sequence[str], *, hours: float
) -> dict[str, Any]:
    """Return all of it as one document."""
    best = found.cheapest
    return {
        "schema_version": "1",
        "kind": "AdapterWays",
        "hours": hours,
        "judged_s": found.duration_s,
        "requests": found.n_requests,
        "target_fraction": found.target_fraction,
        "offer": None if prices.offer is None else prices.offer.name,
        "usd_per_miss": prices.usd_per_miss,
        "cheapest": None if best is None else best.way.value,
        "ways": [_way(way, found, names) for way in found.ways],
        "keep_alive": list(_keep_alive(found.rules, names)),
        "cautions": [*found.cautions, *offer_notes(prices)],
        "assumptions": list(case.assumptions),
    }


def _keep_alive(rules: RuleTable, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what each rule costs each adapter, and the time that was learnt for it."""
    for f, name in enumerate(names):
        costs = {rule: found[f] for rule, found in rules.costs.items()}
        yield {
            "adapter": name,
            "requests": next(iter(costs.values())).n_requests,
            "learnt_s": float(rules.learnt_s[f]),
            "idle_usd_per_s": float(rules.idle_usd_per_s[f]),
            "cold_start_usd": float(rules.cold_start_usd[f]),
            "rules": {
                rule: {"idle_s": cost.idle_s, "cold_starts": cost.n_cold, "cost_usd": cost.total_usd}
                for rule, cost in costs.items()
            },
        }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _way(way: WayOutcome, found: Comparison, names: Sequence[str]) -> dict[str, Any]:
    kept = way.keep_alive_s
    return {
        "way": way.way.value,
        "is_met": found.meets(way),
        "gpus_always_on": way.n_always_on,
        "gpus_at_most": way.most_gpus,
        "gpu_s": way.gpu_s,
        "cost_usd": way.cost_usd,
        "miss_usd": way.miss_usd,
        "usd_per_1000_requests": found.usd_per_1000(way),
        "ttft_p50_s": _number(way.ttft_p50_s),
        "ttft_p99_s": _number(way.ttft_p99_s),
        "e2e_p50_s": _number(way.e2e_p50_s),
        "attainment": way.attainment,
        "least_attainment": _number(way.least_attainment),
        "cold_fraction": way.cold_fraction,
        "busy_fraction": way.busy_fraction,
        "peak_gpu_bytes": float(way.replay.peak_bytes.max()),
        "learnt": {name: _number(value) for name, value in way.learnt.items()},
        "keep_alive_s": None if kept is None else dict(zip(names, kept.tolist(), strict=True)),
        "preloaded": [
            {
                "machines": list(ready.machines),
                Tier.GPU.value: [names[f] for f in ready.gpu],
                Tier.HOST.value: [names[f] for f in ready.host],
                "containers_for_any": ready.n_spares,
            }
            for ready in way.ready
        ],
        "on_disk_only": [names[f] for f in _tiers(way, len(names))[Tier.DISK]],
    }
