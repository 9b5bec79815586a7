"""Whether a plan is to be proven, what its proof changes of the question, and what the user must know of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.domain.plan import PlanStatus
from planner.domain.proof import ProofEnd
from planner.domain.provenance import Warning_
from planner.errors import InputError
from planner.optimize.termination import Termination
from planner.planning.fleet import UNPROVEN
from planner.planning.proving.caps import with_found_caps
from planner.planning.proving.climb import prove
from planner.units import format_duration
from planner.workload.buckets import W_MEAN_OF_BURSTY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from planner.domain.plan import Plan
    from planner.domain.proof import AdapterProof, Proof, ProofRound
    from planner.optimize import Assignment, SolverSettings
    from planner.planning.question import Question

NOT_PROVEN = "W408"
TOO_SHORT = "W409"
MISSED = "W410"
STOPPED = "W411"
PERIODS_MISS = "W412"

MOST_PERIODS_NAMED = 12
MOST_ADAPTERS_NAMED = 5


def verified(
    question: Question,
    plan: Plan,
    *,
    settings: SolverSettings,
    assignment: Assignment,
    is_asked: bool,
    on_round: Callable[[ProofRound], None] | None = None,
) -> tuple[Question, Plan]:
    """Return the plan that holds its objectives in a replay, or comes nearest, and the question that it answers.

    Without being asked for it, only what comes from traces with arrival times is proven, and what cannot be replayed
    is returned with a warning.

    Raises
    ------
    InputError: if the plan cannot be replayed, and `is_asked`.
    """
    if plan.solver.termination == Termination.INTERRUPTED.value or not (is_asked or has_arrivals(question)):
        return question, plan
    try:
        found = prove(question, plan, settings=settings, assignment=assignment, on_round=on_round)
    except InputError as error:
        if is_asked:
            raise
        return question, replace(plan, warnings=(*plan.warnings, _not_proven(error)))
    except KeyboardInterrupt:
        stopped = replace(plan.solver, termination=Termination.INTERRUPTED.value)
        warning = Warning_(code=STOPPED, message="Ctrl-C came before the plan was replayed: its SLOs are not proven.")
        return question, replace(plan, status=PlanStatus.FEASIBLE, solver=stopped, warnings=(*plan.warnings, warning))
    proof = found.plan.proof
    if proof is None:
        return question, plan
    capped = with_found_caps(question, proof)
    assumptions = (text for text in question.assumptions if text != UNPROVEN)
    warnings = (item for item in question.warnings if not (proof.holds and item.code == W_MEAN_OF_BURSTY))
    return (
        replace(
            capped,
            problem=found.problem,
            assumptions=(*assumptions, *_assumptions(proof)),
            warnings=tuple(warnings),
        ),
        replace(found.plan, warnings=(*found.plan.warnings, *_warnings(proof))),
    )


def has_arrivals(question: Question) -> bool:
    """Return whether all traffic comes from traces that say when each request came."""
    replay = question.replay
    if replay is None:
        return False
    tenants = {tenancy.service: tenancy.tenants for tenancy in question.problem.tenancies}

    def has(service: str) -> bool:
        trace = replay.traffic[service].trace
        if trace is not None and trace.has_arrivals:
            return True
        own = replay.adapters[service].traces if service in replay.adapters else {}
        return bool(own) and all(tenant.name in own for tenant in tenants[service])

    return bool(replay.traffic) and all(map(has, replay.traffic))


def _not_proven(error: InputError) -> Warning_:
    return Warning_(code=NOT_PROVEN, message=f"{error.message} Its SLOs rest on throughput alone.")


def _assumptions(proof: Proof) -> Iterator[str]:
    yield (
        f"Proven by a replay at {proof.load:g} times the planned rate, which is the headroom: traffic to come is"
        " assumed to be no burstier than what was replayed."
    )
    yield "Single-GPU plans have the same utilisation caps; they are not replayed."
    yield from (f"Of the replay: {note}" for note in proof.notes)


def _warnings(proof: Proof) -> Iterator[Warning_]:
    if proof.ended is ProofEnd.MISSED:
        yield Warning_(code=MISSED, message=_missed(proof), observed=", ".join(_misses(proof)))
    if proof.ended in {ProofEnd.TIME_LIMIT, ProofEnd.INTERRUPTED}:
        what = "The time limit" if proof.ended is ProofEnd.TIME_LIMIT else "Ctrl-C"
        which = (
            "the plan is the cheapest one until then whose replay holds"
            if proof.holds
            else "no plan was found until then whose replay holds, and this one misses"
        )
        yield Warning_(code=STOPPED, message=f"{what} stopped the proof: {which}.", observed=proof.fleets)
    if proof.holds and not proof.sure:
        fewest = min(service.requests for service in proof.services)
        yield Warning_(
            code=TOO_SHORT,
            message=f"A replay of {fewest:,} requests is too short for confidence in all objectives: values decided.",
            observed=fewest,
        )

    if proof.holds and proof.missed_periods:
        yield Warning_(code=PERIODS_MISS, message=_missed_periods(proof), observed=len(proof.missed_periods))


def _missed_periods(proof: Proof) -> str:
    parts = []
    for service in dict.fromkeys(miss.service for miss in proof.missed_periods):
        mine = [str(miss.period) for miss in proof.missed_periods if miss.service == service]
        more = f" and {len(mine) - MOST_PERIODS_NAMED} more" if len(mine) > MOST_PERIODS_NAMED else ""
        parts.append(f"{service} in {', '.join(mine[:MOST_PERIODS_NAMED])}{more}")
    return (
        "All periods together keep every objective; in what was played of them, some by themselves (counted from 0)"
        " would miss one: "
        f"{'; '.join(parts)}. Headroom, or a stricter objective, would help there."
    )


def _misses(proof: Proof) -> list[str]:
    services = [slo.service for slo in proof.slos if not (slo.met and slo.sure)]
    return list(dict.fromkeys([*services, *(item.service for item in proof.adapters if item.late)]))


def _late_adapters(item: AdapterProof) -> str:
    named = [f"{each.adapter} ({each.attainment:.2%} of {each.requests:,})" for each in item.late[:MOST_ADAPTERS_NAMED]]
    more = f" and {len(item.late) - len(named)} more" if len(item.late) > len(named) else ""
    return (
        f"{len(item.late)} of {item.asked} adapters of {item.service} surely miss an objective by themselves (requests"
        f" in time: {', '.join(named)}{more})"
    )


def _missed(proof: Proof) -> str:
    """Return which objectives are missed, by how much, and what would help."""
    parts = []
    for slo in proof.slos:
        if slo.met and slo.sure:
            continue
        value = "never ends" if slo.simulated_s is None else f"is {format_duration(slo.simulated_s)}"
        unsure = ", and not surely within it" if slo.met else ""
        parts.append(
            f"{slo.service} {slo.metric} {slo.statistic} {value} instead of {format_duration(slo.bound_s)}{unsure}"
            f" ({slo.attainment:.2%} of its requests are in time)"
        )
    parts += [_late_adapters(item) for item in proof.adapters if item.late]
    return (
        f"No plan within the limits was found whose replay holds; of those tried this is nearest: {'; '.join(parts)}."
        " A looser bound, a lower percentile, other GPUs (catalog.gpus, parallelism.tp) or looser limits would help."
    )
