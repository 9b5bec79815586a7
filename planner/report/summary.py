"""What a person wants to know of a plan, in words and figures: computed here once, laid out by the other modules.

Terminal, Markdown and HTML show the same `PlanSummary`; CSV and data frames the same `AllocationRow`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.domain.costs import usd_per_million_tokens, usd_per_month
from planner.domain.disaggregation import Role
from planner.domain.plan import PlanStatus, Rental, RolloutAction
from planner.domain.provenance import ProvenanceKind
from planner.domain.scaling import ScalingWay
from planner.report.adapters import WaysView, ways_views
from planner.report.notes import SAME_COST_FRACTION, Note, baseline_order, notes
from planner.report.robustness import RobustnessView, robustness_view
from planner.report.scaling import GivenBackView, TotalView, given_back_views, totals
from planner.report.schedule import ScheduleView, schedule_view
from planner.report.serves import ServesIndex
from planner.report.wording import clean, number, percent, plural, price, usd, whole_usd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date

    from planner.domain.plan import Allocation, Baseline, Conflict, Period, Plan, RolloutStep
    from planner.domain.scaling import ScalingChoice

MAX_BASELINES = 5
"""Baselines that a table shows; plan.json has all."""
MAX_NAMED_SERVICES = 3
UNNAMED_SERVICE = "default"
"""What the one service of a request without names is called; a headline need not repeat it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRow:
    """One line of plan.csv and of the data frame. None = not known; docs/reference/plan.md describes the columns."""

    service: str
    offer: str
    option: str
    provider: str
    region: str
    market: str
    instance_type: str
    offer_instances: int
    gpu: str
    gpus_per_replica: int
    replicas: int
    gpus: int
    engine: str
    precision: str
    tensor_parallel: int
    pipeline_parallel: int
    serves: str
    request_share_fraction: float | None
    utilization_fraction: float | None
    rate_rps: float
    output_tokens_per_s: float | None
    power_w: float | None
    cost_usd_per_hour: float
    cost_usd_per_month: float
    usd_per_million_output_tokens: float | None
    provenance: str
    provenance_note: str
    price_as_of: str | None
    period_start_s: float | None
    period_duration_s: float | None
    role: str
    transfer_bytes_per_s: float | None
    way: str
    keep_alive_s: float | None
    mean_replicas: float | None
    most_replicas: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingView:
    """One option's replicas, in words."""

    service: str
    option: str
    replicas: int
    engine: str
    """E.g. "TP2 fp8"; empty where only throughputs were given."""
    serves: str
    busy: str
    origin: str
    """Where the throughputs come from: "measured", "estimated", ..."""
    origin_note: str
    usd_per_hour: str
    usd_per_month: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RentalView:
    """Instances to rent and what runs on them, in words."""

    offer: str
    count: int
    what: str
    """Instance type, or the offer's name where there is none."""
    gpus: str
    """GPUs of one instance, e.g. "2x A100-80GB"."""
    where: str
    """Provider, region and market; empty for a price that was given without a place."""
    cost_usd_per_hour: float
    usd_per_hour: str
    usd_per_month: str
    serving: tuple[ServingView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineView:
    """A plan with one GPU type, in words."""

    gpu: str
    replicas: str
    cost_usd_per_hour: float | None
    usd_per_hour: str
    versus: str
    """Against the plan, e.g. "+28%"; or why this GPU type cannot serve the demand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictView:
    """What stands in the way, and what would help."""

    requirement: str
    explanation: str
    suggestion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSummary:
    """Everything that a report of a plan says."""

    title: str
    headline: str
    status: PlanStatus
    has_plan: bool
    usd_per_hour: str
    usd_per_month: str
    rentals: tuple[RentalView, ...]
    baselines: tuple[BaselineView, ...]
    n_baselines_left_out: int
    conflicts: tuple[ConflictView, ...]
    schedule: ScheduleView | None
    notes: tuple[Note, ...]
    warnings: tuple[Note, ...]
    assumptions: tuple[str, ...]
    rollout: tuple[str, ...] = ()
    """Steps from the current plan to this one."""
    robustness: RobustnessView | None = None
    ways: tuple[WaysView, ...] = ()
    """Of services with adapters."""
    given_back: tuple[GivenBackView, ...] = ()
    totals: tuple[TotalView, ...] = ()
    """Below what is rented and given back."""


def summarize(plan: Plan, *, today: date) -> PlanSummary:
    """Return everything that a report of `plan` says; `today` is what the age of prices is counted to."""
    shown = sorted(plan.baselines, key=baseline_order)[:MAX_BASELINES]
    return PlanSummary(
        title=clean(plan.name),
        headline=headline(plan),
        status=plan.status,
        has_plan=plan.cost_usd_per_hour is not None,
        usd_per_hour=usd(plan.cost_usd_per_hour),
        usd_per_month=whole_usd(cost_per_month_usd(plan)),
        rentals=rental_views(plan),
        baselines=tuple(_baseline_view(baseline, plan.cost_usd_per_hour) for baseline in shown),
        n_baselines_left_out=len(plan.baselines) - len(shown),
        conflicts=tuple(_conflict_view(conflict) for conflict in plan.conflicts),
        schedule=schedule_view(plan),
        notes=notes(plan, today=today),
        warnings=tuple(Note(label=clean(warning.code), text=clean(warning.message)) for warning in plan.warnings),
        assumptions=tuple(clean(assumption) for assumption in plan.assumptions),
        rollout=tuple(_rollout_texts(plan)),
        robustness=robustness_view(plan),
        ways=ways_views(plan),
        given_back=tuple(given_back_views(plan)),
        totals=tuple(totals(plan)),
    )


def _rollout_texts(plan: Plan) -> Iterator[str]:
    """Yield the steps of a rollout in words; adapters are loaded when what is new has started."""
    starts = [step for step in plan.rollout if step.action is RolloutAction.START]
    yield from (_rollout_text(plan, step) for step in starts)
    for item in plan.adapters:
        if item.moved:
            yield (
                f"{plural(len(item.moved), 'adapter')} of {clean(item.service)} are on other replicas than today: load"
                " them there, and send their requests as this plan's placement says. What each costs is by the load of"
                " the replicas that it is on now."
            )
    yield from (_rollout_text(plan, step) for step in plan.rollout[len(starts) :])


def _rollout_text(plan: Plan, step: RolloutStep) -> str:
    """Return one step of a rollout in words."""
    where = clean(step.offer)
    if step.action is RolloutAction.ROUTE:
        if step.service in {choice.service for choice in plan.given_back}:
            return f"Send the requests of {clean(step.service)} to what is given back in between."
        return f"Send the requests of {clean(step.service)} as this plan's routing says."
    if not step.service:
        verb = "Rent" if step.action is RolloutAction.START else "Release"
        return f"{verb} {plural(step.instances, 'instance')} of {where}."
    replicas = f"{plural(step.replicas, 'replica')} of {clean(step.service)} on {clean(step.option or step.offer)}"
    instances = plural(step.instances, "instance")
    if step.action is RolloutAction.START:
        return f"Rent {instances} and start {replicas}." if step.instances else f"Start {replicas}."
    return f"Stop {replicas} and release {instances}." if step.instances else f"Stop {replicas}."


def cost_per_month_usd(plan: Plan) -> float | None:
    """Return the plan's cost of a month of 730 hours in USD; None if there is no plan."""
    return usd_per_month(plan.cost_usd_per_hour)


def usd_per_million_output_tokens(plan: Plan) -> float | None:
    """Return the plan's cost per million generated tokens in USD; None where token counts are not known."""
    return usd_per_million_tokens(plan.cost_usd_per_hour, plan.output_tokens_per_s)


def allocation_rows(plan: Plan) -> tuple[AllocationRow, ...]:
    """Return the plan as flat rows, one per allocation, figures unrounded; with a schedule, one per period as well.

    A service that is given back has one at the end.
    """
    index = ServesIndex(plan.routing)
    if not plan.schedule:
        rows = (_allocation_row(allocation, index) for allocation in plan.allocation)
        return (*rows, *map(_given_back_row, plan.given_back))
    return tuple(row for period in plan.schedule for row in _period_rows(plan, period))


def _period_rows(plan: Plan, period: Period) -> Iterator[AllocationRow]:
    """Yield the rows of one period; a month's cost is that of the period's part of the horizon."""
    whole = {(row.service, row.option): row for row in plan.allocation}
    routes = {(route.service, route.row, route.column): route for route in plan.routing}
    now = [
        replace(
            routes[route.service, route.row, route.column],
            rate_rps=route.rate_rps,
            weights=route.weights,
            decode_weights=route.decode_weights,
        )
        for route in period.routing
    ]
    index = ServesIndex(now)
    instances = {rental.offer: rental.instances for rental in period.rentals}
    for item in period.allocation:
        base = whole[item.service, item.option]
        rate = sum(
            route.rate_rps * route.shares.get(item.option, 0.0) for route in now if route.service == item.service
        )
        row = replace(
            base,
            replicas=item.replicas,
            instances=instances.get(base.offer, 0),
            utilization=item.utilization,
            work_utilization=item.work_utilization,
            cost_usd_per_hour=item.cost_usd_per_hour,
            power_w=None if base.power_w is None else base.power_w / base.replicas * item.replicas,
            rate_rps=rate,
            output_tokens_per_s=None,
            transfer_bytes_per_s=None,
        )
        yield replace(
            _allocation_row(row, index),
            cost_usd_per_month=(usd_per_month(item.cost_usd_per_hour) or 0.0) / len(plan.schedule),
            period_start_s=period.start_s,
            period_duration_s=period.duration_s,
        )


def _allocation_row(row: Allocation, index: ServesIndex) -> AllocationRow:
    return AllocationRow(
        service=row.service,
        offer=row.offer,
        option=row.option,
        provider=row.provider,
        region=row.region,
        market=row.market,
        instance_type=row.instance_type,
        offer_instances=row.instances,
        gpu=row.gpu,
        gpus_per_replica=row.gpus_per_replica,
        replicas=row.replicas,
        gpus=row.gpus_per_replica * row.replicas,
        engine=row.engine,
        precision=row.precision,
        tensor_parallel=row.tensor_parallel,
        pipeline_parallel=row.pipeline_parallel,
        serves=index.text(row.service, row.option),
        request_share_fraction=index.request_share(row.service, row.option),
        utilization_fraction=row.utilization + row.work_utilization,
        rate_rps=row.rate_rps,
        output_tokens_per_s=row.output_tokens_per_s,
        power_w=row.power_w,
        cost_usd_per_hour=row.cost_usd_per_hour,
        cost_usd_per_month=usd_per_month(row.cost_usd_per_hour) or 0.0,
        usd_per_million_output_tokens=usd_per_million_tokens(row.cost_usd_per_hour, row.output_tokens_per_s),
        provenance=row.provenance.value,
        provenance_note=row.provenance_note,
        price_as_of=row.price_as_of,
        period_start_s=None,
        period_duration_s=None,
        role=row.role.value,
        transfer_bytes_per_s=row.transfer_bytes_per_s,
        way=ScalingWay.ALWAYS_ON.value,
        keep_alive_s=None,
        mean_replicas=None,
        most_replicas=None,
    )


def _given_back_row(choice: ScalingChoice) -> AllocationRow:
    """Return the row of a service that is given back: nothing of it runs all day, and its cost is expected."""
    way = choice.way
    return AllocationRow(
        service=choice.service,
        offer=way.offer,
        option="",
        provider="",
        region="",
        market="",
        instance_type="",
        offer_instances=0,
        gpu=way.gpu,
        gpus_per_replica=way.gpus_per_replica,
        replicas=0,
        gpus=0,
        engine="",
        precision=way.precision,
        tensor_parallel=way.tensor_parallel,
        pipeline_parallel=way.pipeline_parallel,
        serves="all requests",
        request_share_fraction=1.0,
        utilization_fraction=None,
        rate_rps=choice.requests / choice.judged_s if choice.judged_s else 0.0,
        output_tokens_per_s=None,
        power_w=None,
        cost_usd_per_hour=way.cost_usd_per_hour,
        cost_usd_per_month=usd_per_month(way.cost_usd_per_hour) or 0.0,
        usd_per_million_output_tokens=None,
        provenance=ProvenanceKind.ESTIMATED.value,
        provenance_note="expected: the mean over the judged half of its trace",
        price_as_of=way.price_as_of,
        period_start_s=None,
        period_duration_s=None,
        role=Role.BOTH.value,
        transfer_bytes_per_s=None,
        way=way.way.value,
        keep_alive_s=way.keep_alive_s,
        mean_replicas=way.mean_replicas,
        most_replicas=way.most_replicas,
    )


def service_names(plan: Plan) -> tuple[str, ...]:
    """Return the names of the plan's services, in the plan's order."""
    rows: Iterable[str] = [route.service for route in plan.routing] + [row.service for row in plan.allocation]
    return tuple(dict.fromkeys(rows))


def headline(plan: Plan) -> str:
    """Return one sentence: who is served, with how many GPU types, at what price, and how good that is."""
    services = service_names(plan)
    named = " + ".join(map(clean, services)) if len(services) <= MAX_NAMED_SERVICES else f"{len(services)} services"
    named = "" if services == (UNNAMED_SERVICE,) else named
    who = ", ".join(part for part in (named, f"{number(plan.rate_rps)} req/s" if plan.rate_rps else "") if part)
    prefix = f"{who}: " if who else ""
    if plan.cost_usd_per_hour is None:
        text = _no_plan_text(plan)
        return prefix + text if prefix else text[0].upper() + text[1:]
    per_month = f"{whole_usd(cost_per_month_usd(plan))} USD a month"
    per_token = usd_per_million_output_tokens(plan)
    tokens = "" if per_token is None else f", {price(per_token)} USD per million output tokens"
    n_types = len({row.gpu for row in plan.allocation})
    if plan.given_back and not plan.rentals:
        return f"nothing is rented all day; {_given_back_text(plan)}"
    given_back = f"; {_given_back_text(plan)}" if plan.given_back else ""
    return (
        f"{prefix}{plural(n_types, 'GPU type')}, {usd(plan.cost_usd_per_hour)} USD/h"
        f" ({per_month}{tokens}), {optimality_text(plan)}{given_back}"
    )


def _given_back_text(plan: Plan) -> str:
    """Return what is given back, what it is expected to cost, and what that is with the fleet."""
    names = [clean(choice.service) for choice in plan.given_back]
    named = " + ".join(names) if len(names) <= MAX_NAMED_SERVICES else f"{len(names)} services"
    month = whole_usd(usd_per_month(plan.with_given_back_usd_per_hour))
    expected = f"{named} given back while nobody asks, {price(plan.given_back_usd_per_hour)} USD/h expected"
    in_all = f"{usd(plan.with_given_back_usd_per_hour)} USD/h in all " if plan.rentals else ""
    return f"{expected}: {in_all}({month} USD a month)" if in_all else f"{expected} ({month} USD a month)"


NOT_PLACED = "W413"
"""The warning of a plan whose adapters found no place."""


def _no_plan_text(plan: Plan) -> str:
    if plan.status is PlanStatus.INFEASIBLE:
        return "no feasible plan exists."
    bound = (
        "" if plan.bound_usd_per_hour is None else f" No plan can cost less than {usd(plan.bound_usd_per_hour)} USD/h."
    )
    if any(warning.code == NOT_PLACED for warning in plan.warnings):
        return f"no place was found for every adapter within the limits.{bound}"
    return f"no plan was found before a limit was reached ({clean(plan.solver.termination)}).{bound}"


SIMULATED = {
    True: "simulated: its SLOs hold, and no cheaper fleet that was tried holds them",
    False: "simulated: an SLO is MISSED",
}
"""Of a plan with a proof, by whether it holds."""


def optimality_text(plan: Plan) -> str:
    """Return in words how far the plan's cost can be from the least possible one."""
    if plan.proof is not None and plan.status is PlanStatus.OPTIMAL:
        return SIMULATED[plan.proof.holds]
    if plan.status is PlanStatus.OPTIMAL:
        if plan.gap is None or plan.gap <= 1e-9:
            return "proven optimal"
        return f"proven within {percent(plan.gap, up=True)} of the optimum"
    if plan.gap is None or (plan.bound_usd_per_hour is None and not plan.objectives):
        return "a limit stopped the search before anything was proven"
    how = "places for all adapters were found within" if plan.adapters else "a limit stopped the search at a gap of"
    lowest = "" if plan.objectives else f" (no plan can cost less than {usd(plan.bound_usd_per_hour)} USD/h)"
    return f"not proven optimal: {how} {percent(plan.gap, up=True)}{lowest}"


def rental_views(plan: Plan) -> tuple[RentalView, ...]:
    """Return what to rent and what runs on it, dearest first, in words."""
    index = ServesIndex(plan.routing)
    by_offer: dict[str, list[Allocation]] = defaultdict(list)
    for row in plan.allocation:
        by_offer[row.offer].append(row)
    known = {rental.offer for rental in plan.rentals}
    rentals = [*plan.rentals, *(_rental_of(offer, rows) for offer, rows in by_offer.items() if offer not in known)]
    rentals.sort(key=lambda rental: (-rental.cost_usd_per_hour, rental.offer))
    return tuple(_rental_view(rental, by_offer[rental.offer], index) for rental in rentals)


def _rental_of(offer: str, rows: Sequence[Allocation]) -> Rental:
    """Return the rental that `rows` imply, for a plan.json that lists none."""
    first = rows[0]
    gpus = sum(row.gpus_per_replica * row.replicas for row in rows)
    instances = first.instances or sum(row.replicas for row in rows)
    return Rental(
        offer=offer,
        provider=first.provider,
        instance_type=first.instance_type,
        region=first.region,
        market=first.market,
        gpu=first.gpu,
        gpus_per_instance=gpus / instances if instances else first.gpus_per_replica,
        instances=instances,
        cost_usd_per_hour=sum(row.cost_usd_per_hour for row in rows),
        price_as_of=first.price_as_of,
    )


def _rental_view(rental: Rental, rows: Sequence[Allocation], index: ServesIndex) -> RentalView:
    place = " ".join(part for part in (rental.provider, rental.region, rental.zone) if part)
    return RentalView(
        offer=clean(rental.offer),
        count=rental.instances,
        what=clean(rental.instance_type or rental.offer),
        gpus=f"{number(rental.gpus_per_instance)}x {clean(rental.gpu)}",
        where=clean(", ".join(part for part in (place, rental.market) if part) if place else ""),
        cost_usd_per_hour=rental.cost_usd_per_hour,
        usd_per_hour=usd(rental.cost_usd_per_hour),
        usd_per_month=whole_usd(usd_per_month(rental.cost_usd_per_hour)),
        serving=tuple(_serving_view(row, index) for row in rows),
    )


def _serving_view(row: Allocation, index: ServesIndex) -> ServingView:
    return ServingView(
        service=clean(row.service),
        option=clean(row.option),
        replicas=row.replicas,
        engine=engine_text(row),
        serves=index.text(row.service, row.option),
        busy=f"{100 * (row.utilization + row.work_utilization):.0f}%",
        origin=row.provenance.value,
        origin_note=clean(row.provenance_note),
        usd_per_hour=usd(row.cost_usd_per_hour),
        usd_per_month=whole_usd(usd_per_month(row.cost_usd_per_hour)),
    )


def engine_text(row: Allocation) -> str:
    """Return role and engine configuration in short: "prefill TP2 fp8"; empty where only throughputs were given."""
    is_known = bool(row.engine or row.precision) or row.tensor_parallel > 1 or row.pipeline_parallel > 1
    tensor = f"TP{row.tensor_parallel}" if is_known else ""
    pipeline = f"PP{row.pipeline_parallel}" if row.pipeline_parallel > 1 else ""
    role = "" if row.role is Role.BOTH else row.role.value
    cap = "" if row.power_cap_w is None else f"at {row.power_cap_w:.0f} W"
    return " ".join(part for part in (role, tensor, pipeline, clean(row.precision), cap) if part)


def _baseline_view(baseline: Baseline, plan_cost: float | None) -> BaselineView:
    cost = baseline.cost_usd_per_hour if baseline.feasible else None
    if cost is None:
        versus = clean(baseline.reason) or "cannot serve the demand"
    elif not plan_cost:
        versus = ""
    elif abs(cost / plan_cost - 1) < SAME_COST_FRACTION:
        versus = "the same"
    else:
        versus = f"{'+' if cost > plan_cost else '-'}{percent(abs(cost / plan_cost - 1))}"
    return BaselineView(
        gpu=clean(baseline.offer),
        replicas="" if cost is None else str(baseline.replicas),
        cost_usd_per_hour=cost,
        usd_per_hour="" if cost is None else usd(cost),
        versus=versus,
    )


def _conflict_view(conflict: Conflict) -> ConflictView:
    suggestion = clean(conflict.suggestion)
    if not suggestion and conflict.relaxed is not None:
        now = "" if conflict.current is None else f"{number(conflict.current)} -> "
        suggestion = f"{now}{number(conflict.relaxed)} {clean(conflict.unit)}".strip()
    return ConflictView(
        requirement=clean(conflict.requirement),
        explanation=clean(conflict.explanation),
        suggestion=suggestion or "changing this alone does not help",
    )
