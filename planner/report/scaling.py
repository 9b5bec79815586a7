"""Services that could be given back in between, in words."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from planner.domain.costs import usd_per_month
from planner.domain.scaling import ScalingWay
from planner.report.wording import clean, number, percent, price, usd, whole_usd
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.domain.plan import Plan
    from planner.domain.scaling import FleetWithout, ScaledService, ScalingChoice

NAMES = {
    ScalingWay.SCALE_TO_ZERO: "Rented and given back",
    ScalingWay.PAY_PER_USE: "Pay per use",
    ScalingWay.SERVERLESS: "A process with weights of its own for each adapter",
    ScalingWay.SHARED: "A process for each adapter on shared weights",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenBackView:
    """A service that is given back, in words."""

    service: str
    what: str
    where: str
    """The offer."""
    gpus: str
    replicas: str
    engine: str
    kept: str
    usd_per_hour: str
    usd_per_month: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalView:
    """A line below what is rented."""

    label: str
    usd_per_hour: str
    usd_per_month: str


def given_back_views(plan: Plan) -> Iterator[GivenBackView]:
    """Yield the services that the plan gives back."""
    for choice in plan.given_back:
        way = choice.way
        yield GivenBackView(
            service=clean(choice.service),
            what=NAMES[way.way],
            where=clean(way.offer),
            gpus=f"{way.gpus_per_replica}x {clean(way.gpu)}",
            replicas="" if way.mean_replicas is None else f"{number(way.mean_replicas)} on average",
            engine=_engine_text(way),
            kept=_kept(way),
            usd_per_hour=price(way.cost_usd_per_hour),
            usd_per_month=whole_usd(usd_per_month(way.cost_usd_per_hour)),
        )


def totals(plan: Plan) -> Iterator[TotalView]:
    """Yield what all that is rented costs; where services are given back, what these are expected to, and the sum."""
    cost = plan.cost_usd_per_hour
    if not plan.given_back:
        yield _total("total", cost)
        return
    yield _total("fleet", cost)
    yield _total("given back, expected", plan.given_back_usd_per_hour)
    yield _total("in all", plan.with_given_back_usd_per_hour)


def _total(label: str, usd_per_hour: float | None) -> TotalView:
    return TotalView(label=label, usd_per_hour=usd(usd_per_hour), usd_per_month=whole_usd(usd_per_month(usd_per_hour)))


def given_back_texts(plan: Plan) -> Iterator[str]:
    """Yield a paragraph for each service that is given back: what it is on, how its requests fare, what it costs."""
    for choice in plan.given_back:
        way = choice.way
        dated = f", price of {way.price_as_of}" if way.price_as_of else ""
        gpus = f"{way.gpus_per_replica}x {clean(way.gpu)}"
        yield (
            f"{clean(choice.service)}: {NAMES[way.way].lower()}, {clean(way.offer)}"
            f" ({gpus}, {_engine_text(way)}{dated}), {_kept(way)}. {_usd(way)} expected, over"
            f" {choice.requests:,} requests in {format_duration(choice.judged_s)} of its trace. {_replicas_text(way)}"
            f" {_fares_text(way, choice.objectives)}"
        )


def _engine_text(way: ScaledService) -> str:
    pipeline = f" PP{way.pipeline_parallel}" if way.pipeline_parallel > 1 else ""
    return f"TP{way.tensor_parallel}{pipeline} {clean(way.precision)}"


def _replicas_text(way: ScaledService) -> str:
    most = "" if way.most_replicas is None else f", {way.most_replicas} at most"
    return "" if way.mean_replicas is None else f"{number(way.mean_replicas)} replicas on average{most}."


def _fares_text(way: ScaledService, objectives: Sequence[str]) -> str:
    first = [
        f"{name} {'never' if value is None else format_duration(value)}"
        for name, value in (("p50", way.ttft_p50_s), ("p99", way.ttft_p99_s))
    ]
    cold = "" if way.cold_fraction is None else f"{percent(way.cold_fraction)} of its requests wait for a start, "
    within = "" if way.attainment is None else f"{percent(way.attainment)} are within the bounds, "
    asked = f"; the objectives ask for no more than {' and '.join(map(clean, objectives))}" if objectives else ""
    return f"{cold}{within}TTFT {', '.join(first)}{asked}."


def comparison_of_fleets(plan: Plan) -> str:
    """Return what the sets of services to give back come to in all; empty where nothing was decided."""
    texts = list(fleet_texts(plan))
    fleets = [row for row in plan.fleets_without if row.fleet_usd_per_hour]
    nobody = " No fleet was replayed." if fleets and not any(row.is_replayed for row in fleets) else ""
    more = f" {len(texts) - MOST_FLEETS} more are in plan.json." if len(texts) > MOST_FLEETS else ""
    return f"{'; '.join(texts[:MOST_FLEETS])}.{more}{nobody}" if texts else ""


def fleet_texts(plan: Plan) -> Iterator[str]:
    """Yield what each set of services to give back comes to in all: the plan's own, and then the cheapest first."""
    own = tuple(sorted(choice.service for choice in plan.given_back))
    rows = sorted(plan.fleets_without, key=lambda row: (row.given_back != own, _in_all(row)))
    some = any(row.is_replayed for row in rows)
    yield from (_fleet_text(row, marks_others=some) for row in rows)


MOST_FLEETS = 4
"""Sets of services that a report names; plan.json has all."""


def _in_all(row: FleetWithout) -> tuple[float, int]:
    total = row.total_usd_per_hour
    return (float("inf") if total is None else total, len(row.given_back))


def _fleet_text(row: FleetWithout, *, marks_others: bool) -> str:
    """Return a row in words, what was learnt where it is another sum, and whether its fleet was not replayed."""
    names = f"{', '.join(map(clean, row.given_back))} given back" if row.given_back else "all always on"
    why = f" ({clean(row.reason).rstrip('.')})" if row.reason else ""
    if row.total_usd_per_hour is None:
        return f"{names}: no fleet{why}"
    misses = row.fleet_missed_usd_per_hour + row.missed_usd_per_hour
    parts = [row.fleet_usd_per_hour or 0.0, *([row.given_back_usd_per_hour] if row.given_back else [])]
    missed = f" + {price(misses)} for misses" if misses else ""
    beside = f" = {' + '.join(map(price, parts))}{missed}" if missed or row.given_back else ""
    learnt = price(row.learnt_total_usd_per_hour or 0.0)
    differs = f", {learnt} where it was learnt" if learnt != price(row.total_usd_per_hour) else ""
    unsure = ", its fleet not replayed" if marks_others and row.fleet_usd_per_hour and not row.is_replayed else ""
    return f"{names} {price(row.total_usd_per_hour)}{beside} USD/h{differs}{unsure}{why}"


def scaling_texts(plan: Plan) -> Iterator[str]:
    """Yield a paragraph for each service that was compared with replicas that are given back."""
    for choice in plan.scale_to_zero:
        notes = "".join(f" {clean(note)}" for note in choice.notes)
        always_on, *others = choice.ways
        groups = groupby(others, key=lambda way: (way.way, way.offer))
        shown = "".join(f" {_group_text(way, offer, list(found))}." for (way, offer), found in groups)
        always = f"always on {_usd(always_on)}" if always_on.is_met else "no fleet has all services always on"
        yield f"{clean(choice.service)}: {always}.{shown} {_choice_text(plan, choice)}{notes}"


def _usd(way: ScaledService) -> str:
    missed = f" + {price(way.missed_usd_per_hour)} for misses" if way.missed_usd_per_hour else ""
    return f"{price(way.cost_usd_per_hour)}{missed} USD/h"


def _group_text(way: ScalingWay, offer: str, found: list[ScaledService]) -> str:
    """Return the rules of one way on one offer."""
    dated = f", price of {found[0].price_as_of}" if found[0].price_as_of else ""
    return f"{NAMES[way]} ({clean(offer)}{dated}), {'; '.join(_rule_text(each) for each in found)}"


def _rule_text(way: ScaledService) -> str:
    fares = "" if way.attainment is None else f", {percent(way.attainment)} within the bounds"
    barred = ", only compared" if way.is_barred else ""
    return f"{_kept(way)}: {_usd(way)}{fares}{'' if way.is_met else ', misses'}{barred}"


def _kept(way: ScaledService) -> str:
    if way.rule == "learnt" and way.keep_alive_s is None and not way.keep_alive_by_adapter_s:
        return "kept as learnt" if way.way is ScalingWay.SHARED else "kept for good, as learnt"
    kept = "" if way.keep_alive_s is None else f" {format_duration(way.keep_alive_s)}"
    words = {"learnt": f"kept{kept} as learnt", "as the cloud keeps it": f"kept{kept} by the cloud"}
    return words.get(way.rule, f"kept {way.rule}")


def _choice_text(plan: Plan, choice: ScalingChoice) -> str:
    if len(choice.ways) == 1:
        return "Nothing was compared with it."
    against = "".join(f" {_veto_text(choice, position)}" for position in choice.vetoed)
    best = choice.way
    row = next((row for row in plan.fleets_without if row.given_back == (choice.service,)), None)
    if best.way is ScalingWay.ALWAYS_ON and row is not None:
        return f"It stays always on: {_why_always_on(plan, row)}.{against}"
    if best.way is ScalingWay.ALWAYS_ON:
        if choice.vetoed:
            return f"So always on is chosen.{against}"
        return "Always on is chosen: where it was learnt no other way held the objectives safely and cost less."
    name = f"{NAMES[best.way].lower()} ({clean(best.offer)}), {_kept(best)}"
    if choice.is_applied:
        return f"It is given back, as was cheapest where it was learnt: {name}.{against}"
    saved = 1 - best.total_usd_per_hour / choice.ways[0].total_usd_per_hour
    return (
        f"Chosen, as the cheapest where it was learnt: {name}, {percent(saved)} below always on where it was judged."
        f"{against} It was only compared (scale_to_zero.mode): the fleet serves it all the same."
    )


def _veto_text(choice: ScalingChoice, position: int) -> str:
    """Return why a way was passed over that seemed cheaper where it was learnt."""
    way = choice.ways[position]
    why = "missed an objective" if not way.is_met else "cost no less than always on"
    return f"{NAMES[way.way]} ({clean(way.offer)}), {_kept(way)}, seemed cheaper and {why} where it was judged."


def _why_always_on(plan: Plan, row: FleetWithout) -> str:
    """Return what the fleet would come to without one service, beside what it costs to give that back."""
    if row.fleet_usd_per_hour is None:
        return "no fleet is left for the others"
    if plan.fleets_without[0].fleet_usd_per_hour is None:
        return "it was others that had to leave the fleet"
    now = price(plan.fleets_without[0].fleet_usd_per_hour)
    way = price(row.given_back_usd_per_hour + row.missed_usd_per_hour)
    fleet = price(row.fleet_usd_per_hour)
    return f"without it the fleet costs {fleet} instead of {now} USD/h, and the way to give it back {way}"
