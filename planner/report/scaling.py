"""Services that could be given back in between, in words."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from planner.domain.scaling import ScalingWay
from planner.report.wording import clean, percent, price
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.domain.plan import Plan
    from planner.domain.scaling import ScaledService, ScalingChoice

NAMES = {
    ScalingWay.SCALE_TO_ZERO: "Rented and given back",
    ScalingWay.PAY_PER_USE: "Pay per use",
    ScalingWay.SERVERLESS: "A process with weights of its own for each adapter",
    ScalingWay.SHARED: "A process for each adapter on shared weights",
}


def scaling_texts(plan: Plan) -> Iterator[str]:
    """Yield a paragraph for each service that was compared with replicas that are given back."""
    for choice in plan.scale_to_zero:
        notes = "".join(f" {clean(note)}" for note in choice.notes)
        always_on, *others = choice.ways
        groups = groupby(others, key=lambda way: (way.way, way.offer))
        shown = "".join(f" {_group_text(way, offer, list(found))}." for (way, offer), found in groups)
        yield f"{clean(choice.service)}: always on {_usd(always_on)}.{shown} {_choice_text(choice)}{notes}"


def _usd(way: ScaledService) -> str:
    missed = f" + {price(way.missed_usd_per_hour)} for misses" if way.missed_usd_per_hour else ""
    return f"{price(way.cost_usd_per_hour)}{missed} USD/h"


def _group_text(way: ScalingWay, offer: str, found: list[ScaledService]) -> str:
    """Return the rules of one way on one offer."""
    dated = f", price of {found[0].price_as_of}" if found[0].price_as_of else ""
    return f"{NAMES[way]} ({clean(offer)}{dated}), {'; '.join(_rule_text(each) for each in found)}"


def _rule_text(way: ScaledService) -> str:
    fares = "" if way.attainment is None else f", {percent(way.attainment)} within the bounds"
    return f"{_kept(way)}: {_usd(way)}{fares}{'' if way.is_met else ', misses'}"


def _kept(way: ScaledService) -> str:
    kept = "" if way.keep_alive_s is None else f" {format_duration(way.keep_alive_s)}"
    words = {"learnt": f"kept{kept} as learnt", "as the cloud keeps it": f"kept{kept} by the cloud"}
    return words.get(way.rule, f"kept {way.rule}")


def _choice_text(choice: ScalingChoice) -> str:
    if len(choice.ways) == 1:
        return "Nothing was compared with it."
    against = "".join(f" {_veto_text(choice, position)}" for position in choice.vetoed)
    best = choice.ways[choice.chosen]
    if best.way is ScalingWay.ALWAYS_ON:
        if choice.vetoed:
            return f"So always on is chosen.{against}"
        return "Always on is chosen: where it was learnt no other way held the objectives safely and cost less."
    saved = 1 - best.total_usd_per_hour / choice.ways[0].total_usd_per_hour
    return (
        f"Chosen, as the cheapest where it was learnt: {NAMES[best.way].lower()} ({clean(best.offer)}), {_kept(best)},"
        f" {percent(saved)} below always on where it was judged.{against} The plan's fleet is always on all the same:"
        " leave the service out of the request to give it back."
    )


def _veto_text(choice: ScalingChoice, position: int) -> str:
    """Return why a way was passed over that seemed cheaper where it was learnt."""
    way = choice.ways[position]
    why = "missed an objective" if not way.is_met else "cost no less than always on"
    return f"{NAMES[way.way]} ({clean(way.offer)}), {_kept(way)}, seemed cheaper and {why} where it was judged."
