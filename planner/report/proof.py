"""What a plan's simulation says, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.domain.proof import ProofEnd
from planner.report.wording import clean, number, percent, plural, usd
from planner.units import format_duration

if TYPE_CHECKING:
    from planner.domain.plan import Plan
    from planner.domain.proof import AdapterProof, Proof, SimulatedSlo

NOT_SIMULATED = (
    "not simulated: SLOs enter through the throughput of each GPU; gpuplan simulate replays it request by request."
)

NOT_PROVEN = (
    "not proven: replayed beside other ways on {requests:,} requests at the planned rate; gpuplan simulate replays"
    " more, and --verify plans until it holds with headroom."
)


def slo_text(plan: Plan) -> str:
    """Return what the objectives came to in the simulation, or that there was none."""
    proof = plan.proof
    if proof is None:
        return _unproven_text(plan) if plan.allocation else ""
    several = len({slo.service for slo in proof.slos}) > 1
    traffic = ", ".join(dict.fromkeys(clean(service.traffic) for service in proof.services))
    head = f"simulated, {traffic} at {percent(proof.load)} of the planned rate: "
    adapters = "".join(f" {_adapters(item)}" for item in proof.adapters)
    return head + "; ".join(_slo(slo, several=several) for slo in proof.slos) + "." + adapters


def _unproven_text(plan: Plan) -> str:
    """Return that nothing was simulated, or what was beside other ways to serve adapters."""
    replayed = [item.alternatives[0].requests for item in plan.adapters if item.alternatives]
    return NOT_PROVEN.format(requests=min(replayed)) if replayed and min(replayed) > 0 else NOT_SIMULATED


def _adapters(item: AdapterProof) -> str:
    late = f", {len(item.late)} surely do not" if item.late else ""
    return f"{clean(item.service)}: {item.met} of {plural(item.asked, 'adapter')} keep every SLO by themselves{late}."


def _slo(slo: SimulatedSlo, *, several: bool) -> str:
    value = "never" if slo.simulated_s is None else format_duration(slo.simulated_s)
    verdict = ("ok" if slo.met else "MISSED") + ("" if slo.sure else ", not sure")
    name = f"{clean(slo.service)} " if several else ""
    return f"{name}{slo.metric} {slo.statistic} {value} (<= {format_duration(slo.bound_s)}) {verdict}"


def proof_text(plan: Plan) -> str:
    """Return what the proof cost, what it found, and how tight the plan is."""
    proof = plan.proof
    if proof is None:
        return ""
    parts = [_price(proof), f"{plural(proof.fleets, 'fleet')} simulated"]
    if proof.removals and proof.ended is ProofEnd.HELD:
        parts.append(f"with an instance less it misses ({plural(proof.removals, 'way')} tried)")
    knees = [(service.service, service.knee) for service in proof.services if service.knee]
    several = len(proof.services) > 1
    parts += [
        f"{clean(name) + ' ' if several else ''}holds up to {number(knee or 0.0)} times the planned rate"
        for name, knee in knees
    ]
    return "; ".join(parts) + "."


def _price(proof: Proof) -> str:
    before, extra = proof.unproven_usd_per_hour, proof.extra_usd_per_hour
    if proof.ended is ProofEnd.MISSED:
        return f"no plan was found that holds; the one by throughput alone costs {usd(before)} USD/h"
    share = f", {percent(abs(extra) / before)}" if before > 0 else ""
    if abs(extra) < 5e-3:
        return "the plan by throughput alone costs the same"
    return f"{usd(abs(extra))} USD/h{share} {'more' if extra > 0 else 'less'} than the plan by throughput alone"
