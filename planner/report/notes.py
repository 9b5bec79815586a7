"""The labelled remarks below a plan's tables: what binds, what it saves, what it rests on."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from planner.domain.plan import PlanStatus
from planner.domain.problem import Measure
from planner.domain.provenance import ProvenanceKind
from planner.report.adapters import adapter_texts, preload_texts
from planner.report.disaggregation import disaggregation_text
from planner.report.energy import carbon_text, energy_text
from planner.report.jobs import job_texts
from planner.report.proof import proof_text, slo_text
from planner.report.robustness import robustness_text
from planner.report.scaling import comparison_of_fleets, given_back_texts, scaling_texts
from planner.report.wording import age, clean, number, percent, plural, price, usd
from planner.units import format_power

if TYPE_CHECKING:
    from planner.domain.plan import Baseline, Plan

MAX_BINDING = 8
"""Binding limits that a report names; plan.json has all."""
SAME_COST_FRACTION = 5e-4
"""Costs that differ by less print alike, so they are called equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One labelled remark below the tables."""

    label: str
    text: str


def _change_text(plan: Plan) -> str:
    """Return what the changes to today's fleet cost; empty where they have no price."""
    if plan.change_usd_per_hour is None:
        return ""
    return f"{usd(plan.change_usd_per_hour)} USD/h for replicas started and stopped, on top, over the plan's horizon."


def _beside(plan: Plan) -> dict[str, float]:
    """Return what stands beside the cost, in USD/h by name; what has no price, or costs nothing, is left out."""
    parts = {
        "egress": plan.egress_usd_per_hour,
        "energy and emissions": plan.energy_usd_per_hour,
        "changes": plan.change_usd_per_hour,
    }
    return {name: usd_per_hour for name, usd_per_hour in parts.items() if usd_per_hour}


def total_text(plan: Plan) -> str:
    """Return what the plan costs with all that stands beside what is rented; empty where nothing does."""
    beside = _beside(plan)
    if plan.cost_usd_per_hour is None or not beside:
        return ""
    if plan.given_back:
        beside = {"what is given back": plan.given_back_usd_per_hour, **beside}
    total = plan.cost_usd_per_hour + sum(beside.values())
    parts = ", ".join(f"{price(usd_per_hour)} for {name}" for name, usd_per_hour in beside.items())
    return f"{usd(total)} USD/h: {usd(plan.cost_usd_per_hour)} for what is rented, {parts}."


def saving_text(plan: Plan) -> str:
    """Return how the plan compares with the best single GPU type; empty if nothing is known."""
    feasible = [item for item in plan.baselines if item.feasible and item.cost_usd_per_hour is not None]
    if plan.cost_usd_per_hour is None or not plan.baselines:
        return ""
    if not feasible:
        return "No single GPU type can serve this demand."
    best = min(feasible, key=baseline_order)
    name = f"the best single GPU type ({clean(best.offer)}, {usd(best.cost_usd_per_hour)} USD/h)"
    saving = plan.savings_vs_best_single
    if saving is None:
        saving = 1 - plan.cost_usd_per_hour / best.cost_usd_per_hour if best.cost_usd_per_hour else 0.0
    apart = " Both without what is given back." if plan.given_back else ""
    if abs(saving) < SAME_COST_FRACTION:
        return f"As cheap as {name}: a mix saves nothing here.{apart}"
    return f"{percent(abs(saving))} {'below' if saving > 0 else 'above'} {name}.{apart}"


def baseline_order(baseline: Baseline) -> tuple[bool, float, str]:
    """Return what baselines are sorted by."""
    cost = baseline.cost_usd_per_hour
    return (cost is None or not baseline.feasible, cost or 0.0, baseline.offer)


def notes(plan: Plan, *, today: date) -> tuple[Note, ...]:
    """Return the labelled remarks below the tables, in the order in which they are read."""
    if plan.cost_usd_per_hour is None:
        texts = [("Binding", binding_text(plan))]
    else:
        texts = [
            ("Unserved", unserved_text(plan)),
            ("Total", total_text(plan)),
            ("Objective", objective_text(plan)),
            ("Robust", robustness_text(plan)),
            *(("Work", text) for text in job_texts(plan)),
            *(("Adapters", text) for text in adapter_texts(plan)),
            *(("Preloaded", text) for text in preload_texts(plan)),
            *(("Given back", text) for text in given_back_texts(plan)),
            ("Compared", comparison_of_fleets(plan)),
            *(("Scale to zero", text) for text in scaling_texts(plan)),
            ("Saving", saving_text(plan)),
            ("SLO", slo_text(plan)),
            ("Proof", proof_text(plan)),
            ("Binding", binding_text(plan)),
            ("Redundancy", redundancy_text(plan)),
            ("Egress", egress_text(plan)),
            ("Spot", spot_text(plan)),
            ("Changes", _change_text(plan)),
            ("Disaggregated", disaggregation_text(plan)),
            ("Idle", idle_text(plan)),
            ("Power", power_text(plan)),
            ("Energy", energy_text(plan)),
            ("Carbon", carbon_text(plan)),
            ("Throughput", provenance_text(plan)),
            ("Prices", price_age_text(plan, today=today)),
        ]
    return tuple(Note(label=label, text=text) for label, text in texts if text)


def objective_text(plan: Plan) -> str:
    """Return what was minimised and how far down, one objective after the other; empty for the cost alone."""
    parts = []
    beside = _beside(plan)
    cost = f"{Measure.COST} with {' and '.join(beside)}" if beside else str(Measure.COST)
    for item in plan.objectives:
        bound = ""
        name = cost if item.minimise == Measure.COST else item.minimise
        if item.bound is not None and item.value - item.bound > SAME_COST_FRACTION * abs(item.value):
            bound = f" (no plan comes to less than {number(item.bound)})"
        parts.append(f"{name} {number(item.value)} {item.unit}".rstrip() + bound)
    return f"least {'; then least '.join(parts)}." if parts else ""


def unserved_text(plan: Plan) -> str:
    """Return how many requests of which services the plan leaves unserved, least important first; empty if none."""
    if not plan.unserved:
        return ""
    served: dict[str, float] = defaultdict(float)
    for route in plan.routing:
        served[route.service] += route.rate_rps
    left: dict[tuple[int, str], float] = defaultdict(float)
    for item in plan.unserved:
        left[-item.priority, item.service] += item.rate_rps
    parts = [
        f"{clean(service)} {number(rate)} of {number(rate + served[service])} req/s (priority {-rank})"
        for (rank, service), rate in sorted(left.items())
    ]
    return "; ".join(parts) + "."


def binding_text(plan: Plan) -> str:
    """Return the limits that hold the cost up, as one sentence; empty if none does."""
    if not plan.binding:
        return ""
    more = len(plan.binding) - MAX_BINDING
    shown = [clean(text).rstrip(".") for text in plan.binding[:MAX_BINDING]]
    return "; ".join([*shown, f"and {more} more"] if more > 0 else shown) + "."


def egress_text(plan: Plan) -> str:
    """Return what is sent to users in other regions and what that costs; empty where nobody said where they are."""
    if plan.egress_gb_per_hour is None:
        return ""
    if not plan.egress_gb_per_hour:
        return "none: all users are served in their own region."
    cost = price(plan.egress_usd_per_hour or 0.0)
    return f"{number(plan.egress_gb_per_hour)} GB/h between users and other regions, {cost} USD/h on top of the cost."


def redundancy_text(plan: Plan) -> str:
    """Return what it costs to be able to lose something, rule by rule; empty where nothing need be lost."""
    parts = []
    for item in plan.redundancy:
        if item.extra_usd_per_hour is None:
            words = "of unknown price: no plan without it was found in time"
        elif not item.extra_usd_per_hour:
            words = "for nothing more" if item.is_proven else "for nothing more as far as is known"
        else:
            share = f", {percent(item.extra_usd_per_hour / plan.cost_usd_per_hour)}" if plan.cost_usd_per_hour else ""
            # Only what is the least itself is known to cost at least so much more than what a stopped search found.
            stopped = "at least " if plan.status is PlanStatus.OPTIMAL else "about "
            words = f"{'' if item.is_proven else stopped}{usd(item.extra_usd_per_hour)} USD/h{share} of the cost"
        parts.append(f"{clean(item.requirement)} {words}")
    return "; ".join(parts) + "." if parts else ""


def spot_text(plan: Plan) -> str:
    """Return how often the plan's spot instances are taken back, by offer; empty if none of that is known."""
    known = [rental for rental in plan.rentals if rental.interruptions_per_day is not None]
    if not known:
        return ""
    parts = []
    for rental in known:
        place = f" in {clean(rental.region)}" if rental.region else ""
        parts.append(f"{clean(rental.instance_type)}{place} {number(rental.interruptions_per_day or 0.0)}")
    return f"interruptions a day, at most: {', '.join(parts)}."


def idle_text(plan: Plan) -> str:
    """Return how many rented GPUs no replica occupies; empty if all are in use."""
    if plan.schedule:
        return ""
    rented = sum(rental.instances * rental.gpus_per_instance for rental in plan.rentals)
    used = sum(row.gpus_per_replica * row.replicas for row in plan.allocation)
    if rented - used < 1e-6:
        return ""
    return f"{number(rented - used)} of {number(rented)} rented GPUs run no replica: whole instances are rented."


def power_text(plan: Plan) -> str:
    """Return the plan's peak power, or of how many rows it is not known."""
    if plan.power_w is not None:
        return f"{format_power(plan.power_w)} at peak, the GPUs of all replicas together, without PUE."
    unknown = sum(row.power_w is None for row in plan.allocation)
    if unknown in {0, len(plan.allocation)}:
        return ""
    known_w = sum(row.power_w or 0.0 for row in plan.allocation)
    without = plural(unknown, "option")
    return f"{format_power(known_w)} at peak, the GPUs without PUE and without {without} whose power is not known."


def provenance_text(plan: Plan) -> str:
    """Return on how many measured, calibrated, estimated and given throughputs the plan rests, and how sure they are.

    The error is the largest one of any row.
    """
    errors = [row.error_fraction for row in plan.allocation if row.error_fraction]
    text = _origins_text(plan)
    if not errors or not text:
        return text
    worst = percent(max(errors))
    # Plans with adapters do not combine with `robust`.
    way_out = "constraints.headroom leaves room" if plan.adapters else "robust.throughput_error plans"
    return f"{text} They may be up to {worst} too high, one case in ten excepted; {way_out} for that."


def _origins_text(plan: Plan) -> str:
    """Return how many throughputs are of which origin."""
    counts = Counter(row.provenance for row in plan.allocation)
    used = [kind for kind in ProvenanceKind if counts[kind]]
    if not used:
        return ""
    if used == [ProvenanceKind.GIVEN]:
        return "as given in the request."
    of_how_many = plural(len(plan.allocation), "option")
    if len(used) == 1:
        return f"{used[0].value}, for all {of_how_many}." if len(plan.allocation) > 1 else f"{used[0].value}."
    options = f"of {of_how_many} " + ", ".join(f"{counts[kind]} {kind.value}" for kind in used)
    by_rate: dict[ProvenanceKind, float] = defaultdict(float)
    for route in plan.routing:
        for option, kind in route.provenance.items():
            by_rate[kind] += route.rate_rps * route.shares.get(option, 0.0)
    total = sum(by_rate.values())
    kinds = [kind for kind in ProvenanceKind if by_rate[kind] > 0]
    if len(kinds) < 2:
        return f"{options}."
    shares = ", ".join(f"{percent(by_rate[kind] / total)} {kind.value}" for kind in kinds)
    return f"{options}; by requests {shares}."


def price_age_text(plan: Plan, *, today: date) -> str:
    """Return how old each provider's oldest price in the plan is."""
    oldest: dict[str, date | None] = {}
    for rental in sorted(plan.rentals, key=lambda rental: rental.provider):
        as_of = _parse_date(rental.price_as_of)
        seen = oldest.get(rental.provider, as_of)
        oldest[rental.provider] = None if as_of is None or seen is None else min(as_of, seen)
    if not oldest:
        return ""
    if set(oldest) == {""} and oldest[""] is None:
        return "as given in the request."
    texts = [f"{clean(provider) or 'given'} {age(as_of, today=today)}" for provider, as_of in oldest.items()]
    return ", ".join(texts) + "."


def _parse_date(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        return None
