"""Adapters in words: where they live, what each costs, and what other ways to serve them would cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, dataclass
from statistics import median
from typing import TYPE_CHECKING

from planner.domain.adapters import Isolation
from planner.domain.hardware import Market
from planner.domain.plan import AdapterWay, PreloadMethod
from planner.report.wording import clean, percent, plural, usd
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from planner.domain.plan import AdapterAlternative, AdapterHost, AdapterPlan, AdapterPreload, Plan, Route

MAX_FLAGS = 2
"""Kinds of replicas whose flags a report shows; plan.json has all."""


def adapter_texts(plan: Plan) -> Iterator[str]:
    """Yield a paragraph for each service with adapters."""
    for item in plan.adapters:
        engines = {row.option: row.engine for row in plan.allocation if row.service == item.service}
        parts = [f"{_where_text(item)}.", _cost_text(item), _flags_text(item, engines)]
        yield " ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayLine:
    """One way to serve the adapters, in words."""

    way: str
    usd_per_hour: str
    versus: str
    """Against the plan; or why there is no cost."""
    slos: str
    ttft_p50: str
    ttft_p99: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WaysView:
    """All ways to serve the adapters of a service."""

    title: str
    lines: tuple[WayLine, ...]
    note: str = ""
    """What the figures do not show."""

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The lines as cells, in the order of `WAY_COLUMNS`."""
        return tuple(astuple(line) for line in self.lines)


WAY_COLUMNS = ("way", "USD/h", "vs plan", "SLOs", "TTFT p50", "p99")


def ways_views(plan: Plan) -> tuple[WaysView, ...]:
    """Return a table for each service with adapters: what each way would cost, and how requests fare."""
    if plan.cost_usd_per_hour is None:
        return ()
    cost = plan.cost_usd_per_hour
    spot = {row.service for row in plan.allocation if row.market == Market.SPOT}
    return tuple(
        WaysView(
            title=f"Ways to serve the adapters of {clean(item.service)}{_whose_cost(plan)}",
            lines=tuple(_way_line(other, cost) for other in item.alternatives),
            note=SPOT_STAYS if item.service in spot else "",
        )
        for item in plan.adapters
        if item.alternatives
    )


def _whose_cost(plan: Plan) -> str:
    """Return whose costs a table of ways shows, where the plan has more than the service that it is of."""
    services = {row.service for row in plan.allocation} | {choice.service for choice in plan.given_back}
    if len(services) < TWO:
        return ""
    alike = ", all adapters served so" if len(plan.adapters) > 1 else ""
    return f" (USD/h of the whole plan{alike})"


TWO = 2
SPOT_STAYS = (
    "No replay takes spot capacity away: while a spot replica is gone, none serves the adapters that only it has."
)


def _way_line(other: AdapterAlternative, cost: float) -> WayLine:
    def wait(seconds: float | None) -> str:
        return "" if seconds is None else format_duration(seconds)

    return WayLine(
        way=WAY_NAMES[other.way] + (f" ({clean(other.offer)})" if other.offer else ""),
        usd_per_hour="-" if other.cost_usd_per_hour is None else usd(other.cost_usd_per_hour),
        versus=clean(other.reason) if other.cost_usd_per_hour is None else _versus(other, cost),
        slos="" if other.cost_usd_per_hour is None else _slos_text(other),
        ttft_p50=wait(other.ttft_p50_s),
        ttft_p99=wait(other.ttft_p99_s),
    )


WAY_NAMES = {
    AdapterWay.PLAN: "this plan",
    AdapterWay.DEDICATED: "replicas for each adapter",
    AdapterWay.ONE_POOL: "one pool of equal replicas",
    AdapterWay.SERVERLESS: "plain serverless",
    AdapterWay.KEPT: "serverless, kept as learnt",
    AdapterWay.SHARED_BACKBONE: "shared backbone, given back",
}


def _versus(other: AdapterAlternative, cost: float) -> str:
    times = (other.cost_usd_per_hour or 0.0) / cost if cost > 0 else 1.0
    if other.way is AdapterWay.PLAN:
        return ""
    return f"{times:.3g} times" if abs(times - 1) >= SAME else "the same"


def _slos_text(other: AdapterAlternative) -> str:
    """Return whether the objectives hold, and where that is from."""
    if other.is_met is None:
        return "planned at mean rates"
    within = "" if other.attainment is None else f", {percent(other.attainment)} within"
    return f"{'hold' if other.is_met else 'MISSED'}{within}; {other.requests:,} replayed"


def group_text(plan: Plan, route: Route) -> str:
    """Return whose requests a route is for: "a0", or "a7 and 40 more" of a group of like adapters."""
    names = [
        share.adapter
        for item in plan.adapters
        if item.service == route.service
        for share in item.shares
        if share.group == route.group
    ]
    if not names:
        return f"group {route.group}"
    return clean(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


SAME = 5e-3
"""Relative: differences that are not told."""


def _where_text(item: AdapterPlan) -> str:
    shared = [host for host in item.hosts if host.isolation is not Isolation.DEDICATED]
    alone = sum(host.replicas for host in item.hosts if host.isolation is Isolation.DEDICATED)
    alike: Counter[str] = Counter()
    for host in sorted(shared, key=_by_slots):
        alike[_room_text(host)] += host.replicas
    places = [f"{plural(replicas, 'replica')} {room}" for room, replicas in alike.items()]
    if alone:
        places.append(f"{plural(alone, 'replica')} of one merged adapter each")
    text = f"{clean(item.service)} has {plural(item.adapters, 'adapter')} on {', '.join(places)}"
    several = sum(share.replicas > 1 for share in item.shares)
    if several:
        text += f"; {several} of them on several"
    if item.idle:
        text += f"; {plural(len(item.idle), 'adapter')} without requests"
    if item.added_replicas:
        more = plural(item.added_replicas, "replica")
        text += f"; {more} more than the bound's programme has, since adapters are whole"
    return text


def _room_text(host: AdapterHost) -> str:
    """Return what a replica has room for adapters in."""
    if host.isolation is Isolation.SHARED_BACKBONE:
        return f"with {host.slots} processes on one copy of the weights"
    return f"with {host.slots} slots"


def preload_texts(plan: Plan) -> Iterator[str]:
    """Yield for each service with adapters what is ready beside those that replicas serve, and how it was chosen."""
    for item in plan.adapters:
        tiers = [replica.tiers for replica in item.placement if replica.tiers is not None]
        in_slots, in_memory = _unique(each.gpu for each in tiers), _unique(each.host for each in tiers)
        if item.preload is None or not (in_slots or in_memory or item.preload.on_disk):
            continue
        places = {"spare slots": in_slots, "host memory": in_memory, "no more than disk": item.preload.on_disk}
        parts = [f"{_names(names)} in {place}" for place, names in places.items() if names]
        unfit = len(item.preload.unfit)
        if unfit:
            parts.append(f"{unfit} of these need an engine that is started anew")
        yield f"{clean(item.service)}: {'; '.join(parts)}.{_waits_text(item)}{_method_text(item.preload)}"


def _waits_text(item: AdapterPlan) -> str:
    """Return how long a first request waits, from where; empty where no replica loads an adapter."""
    waits = [(host.host_wait_s, host.disk_wait_s or 0.0) for host in item.hosts if host.host_wait_s is not None]
    if not waits:
        return ""
    host_s, disk_s = (format_duration(max(each)) for each in zip(*waits, strict=True))
    return f" A first request waits up to {host_s} from host memory, {disk_s} from disk."


def _method_text(preload: AdapterPreload) -> str:
    lost = 1 - preload.saved_s_per_s / preload.bound_s_per_s if preload.bound_s_per_s > 0 else 0.0
    how = {PreloadMethod.PROGRAMME: "an integer programme", PreloadMethod.DENSITY: "value per byte"}[preload.method]
    most = f"at most {percent(lost)} below the best" if lost > SAME_WORTH else "nothing saves more"
    return f" Chosen by {how}, {most}."


SAME_WORTH = 1e-5
"""Relative: what the programme is solved to, and some more."""
MAX_NAMES = 3
"""Adapters that are named; plan.json and adapters.csv have all."""


def _unique(lists: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(clean(name) for name in names[:MAX_NAMES])
    return shown + (f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else "")


def _by_slots(host: AdapterHost) -> tuple[int, int, str]:
    return (host.isolation.strictness, -host.slots, host.option)


def _cost_text(item: AdapterPlan) -> str:
    costs = [share.usd_per_month for share in item.shares]
    return (
        f"An adapter costs {usd(median(costs))} USD a month in the median, {usd(min(costs))} to {usd(max(costs))}, by"
        " its part of its replicas' load."
    )


def _flags_text(item: AdapterPlan, engines: Mapping[str, str]) -> str:
    """Return how the engines with slots are started; `engines` by option."""
    hosts = sorted((host for host in item.hosts if host.isolation is Isolation.SHARED_PROCESS), key=_by_slots)
    flags = list(dict.fromkeys(host.engine_flags for host in hosts if host.engine_flags))
    unknown = dict.fromkeys(engines[host.option] for host in hosts if not host.engine_flags and host.option in engines)
    parts = [f"How to start {clean(engine)} with adapters is not known here." for engine in unknown if engine]
    if flags:
        more = f" (and {len(flags) - MAX_FLAGS} more)" if len(flags) > MAX_FLAGS else ""
        shown = ", and ".join(clean(each) for each in flags[:MAX_FLAGS])
        parts.insert(0, f"Start engines that have slots with {shown}{more}, by their slots.")
    return " ".join(parts)
