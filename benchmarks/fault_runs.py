"""What redundancy is worth when something goes wrong: lose a zone, lose 30% of spot, twice the load for ten minutes.

Two services on the Azure 2023 traces are planned over the bundled catalog for their busy minutes: once as they are,
once so that any zone, any spot pool and any one replica may be lost. Both plans are replayed through each fault, and
what was held before, during and after goes into docs/fault_runs.json, docs/fault_runs.svg and docs/benchmarks.md.
Run: .venv/bin/python benchmarks/fault_runs.py [--no-write]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _report import PAGE, machine, write_section

import planner
from planner.domain.workload import Trace
from planner.optimize import SolverSettings
from planner.planning.explain import question_of
from planner.planning.replay import Prepared, ReplaySettings, prepare
from planner.simulate.events import parse_event
from planner.workload.read import read_trace, resolve_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.domain.plan import Plan
    from planner.planning.replay_outcome import Phase, Replay

REQUEST: dict[str, Any] = {
    "schema_version": "1",
    "kind": "PlanRequest",
    "name": "fault-runs",
    "services": [
        {
            "name": "chat",
            "model": "meta-llama/Llama-3.1-8B",
            "parallelism": {"tp": [1]},
            "workload": {
                "trace": "bundled:azure_conv_2023",
                "rate": "60 req/s",
                "peak": "p99 of 1m",
                "grid": {"kind": "adaptive", "rows": 3, "columns": 3},
            },
            "slo": ["ttft p99 <= 2s", "tpot p95 <= 60ms"],
        },
        {
            "name": "code",
            "model": "meta-llama/Llama-3.1-8B",
            "parallelism": {"tp": [1]},
            "workload": {
                "trace": "bundled:azure_code_2023",
                "rate": "24 req/s",
                "peak": "p99 of 1m",
                "grid": {"kind": "adaptive", "rows": 3, "columns": 3},
            },
            "slo": ["ttft p95 <= 5s", "e2e p95 <= 15s"],
        },
    ],
    "catalog": {
        "providers": ["aws", "gcp"],
        "regions": ["us-east-1", "us-central1"],
        "gpus": {"include": ["L40S", "H100-80GB"]},
        "markets": ["on-demand", "spot"],
        "spot_interruptions": {"gcp": "20%"},
        "spot_recovery": "15min",
    },
    "constraints": {"headroom": "35%", "spot_share": {"max": "50%"}, "max_share": {"zone": "100%"}},
}
SURVIVES = {"survive": ["zone", "spot-pool"], "spare_replicas": 1}
PLANS = {"as it is": {}, "planned to survive": SURVIVES}
START_S, END_S, LENGTH_S = 600.0, 1200.0, 2100.0
"""The fault lasts from the 10th to the 20th minute of 35."""
BIN_S = 30.0
REPLICATIONS = 5
COLOURS = {"as it is": "#b3261e", "planned to survive": "#12666b"}


def plan_for(extra: dict[str, Any]) -> Plan:
    request = copy.deepcopy(REQUEST)
    request["constraints"] |= extra
    return planner.plan(request, settings=SolverSettings(time_limit_s=300.0)).plan


def longer(name: str, n: int) -> Trace:
    """Return a bundled trace that begins again until it has `n` requests."""
    trace = read_trace(resolve_trace(name, base_dir=Path()))
    rounds = math.ceil(n / trace.n_requests)
    own_s = float(trace.arrival_s[-1]) * trace.n_requests / (trace.n_requests - 1)
    return Trace(
        arrival_s=np.concatenate([trace.arrival_s + i * own_s for i in range(rounds)])[:n],
        input_tokens=np.tile(trace.input_tokens, rounds)[:n],
        output_tokens=np.tile(trace.output_tokens, rounds)[:n],
        source=trace.source,
    )


def worst_zone(prepared: Prepared) -> str:
    """Return the zone whose loss leaves the fewest requests within every SLO while it lasts, one replication each."""
    used = {item.offer for item in prepared.plan.allocation}
    offers = [option.offer for option in prepared.question.problem.options if option.offer.name in used]
    zones = sorted({f"{offer.provider} {offer.region} {offer.zone}" for offer in offers})

    def held(zone: str) -> float:
        found = replayed(prepared, f"lose zone {zone}", replications=1)
        during = [phase for phase in found.phases if START_S <= phase.start_s < END_S]
        return min(attained(during, service.service) for service in found.services)

    return min(zones, key=held)


def attained(phases: Sequence[Phase], service: str) -> float:
    """Return the part of a service's requests in some stretches that is within every SLO, mean of the replications."""
    parts = [(phase.services[service].n_requests, phase.attainment[service]) for phase in phases]
    counted = [(n, share) for n, share in parts if n]
    return sum(n * share for n, share in counted) / sum(n for n, _ in counted) if counted else math.nan


def replayed(prepared: Prepared, event: str | None, *, replications: int) -> Replay:
    events = () if event is None else (parse_event(f"{START_S:.0f}s-{END_S:.0f}s: {event}"),)
    return prepared.run(ReplaySettings(n_requests=1_000_000, events=events, n_replications=replications, phase_s=BIN_S))


def run(prepared: Prepared, event: str | None) -> dict[str, Any]:
    found = replayed(prepared, event, replications=REPLICATIONS)
    names = [service.service for service in found.services]
    cuts = {"before": (0.0, START_S), "during": (START_S, END_S), "after": (END_S, math.inf)}
    phases = {
        name: [phase for phase in found.phases if start_s <= phase.start_s < end_s]
        for name, (start_s, end_s) in cuts.items()
    }
    return {
        "event": event,
        "met": found.is_met,
        "replicas_lost": found.n_lost,
        "attainment": {service.service: service.attainment.value for service in found.services},
        "slo": {service.service: {str(i.slo): i.simulated.value for i in service.slos} for service in found.services},
        "phases": {name: {service: attained(those, service) for service in names} for name, those in phases.items()},
        "by_half_minute": {
            service: [phase.attainment[service] for phase in found.phases if phase.start_s < LENGTH_S]
            for service in names
        },
    }


def measure() -> dict[str, Any]:
    plans: dict[str, Any] = {}
    for name, extra in PLANS.items():
        started = time.perf_counter()
        plan = plan_for(extra)
        prepared_plan = prepare(
            question_of(plan, Path("plan.json")),
            plan,
            traces={
                "chat": longer("bundled:azure_conv_2023", round(60 * LENGTH_S)),
                "code": longer("bundled:azure_code_2023", round(24 * LENGTH_S)),
            },
        )
        zone = worst_zone(prepared_plan)
        faults = {
            "nothing": None,
            "its worst zone": f"lose zone {zone}",
            "30% of spot": "lose 30% of market spot",
            "twice the load": "load x 2",
        }
        planned_s = time.perf_counter() - started
        plans[name] = {
            "cost_usd_per_hour": plan.cost_usd_per_hour,
            "status": str(plan.status),
            "replicas": sum(item.replicas for item in plan.allocation),
            "rent": [f"{row.instances} x {row.offer}" for row in plan.rentals],
            "runs": {fault: run(prepared_plan, event) for fault, event in faults.items()},
            "seconds": {"planned": planned_s, "replayed": time.perf_counter() - started - planned_s},
        }
        print(name, plans[name]["cost_usd_per_hour"], plans[name]["seconds"], flush=True)
    return {
        "request": REQUEST,
        "survives": SURVIVES,
        "fault_s": [START_S, END_S],
        "replications": REPLICATIONS,
        "machine": machine(),
        "plans": plans,
    }


def plot(found: dict[str, Any]) -> str:
    """Return small charts: faults across, services down, one line for each plan."""
    faults = [name for name in found["plans"]["as it is"]["runs"] if name != "nothing"]
    services = [service["name"] for service in REQUEST["services"]]
    width, height, left, top = 300, 170, 46, 44
    parts = []
    for column, fault in enumerate(faults):
        for row, service in enumerate(services):
            parts.append(f'<g transform="translate({column * width} {row * height + 30})">')
            parts += panel(found, fault, service, width, height, left=left, top=top)
            parts.append("</g>")
    legend = "".join(
        f'<line x1="{left + i * 190}" y1="16" x2="{left + i * 190 + 24}" y2="16" stroke="{colour}" stroke-width="2"/>'
        f'<text x="{left + i * 190 + 30}" y="20">{name}</text>'
        for i, (name, colour) in enumerate(COLOURS.items())
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(faults) * width} {len(services) * height + 30}" '
        'font-family="sans-serif" font-size="11" role="img" '
        'aria-label="Requests within every SLO through three faults">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{legend}\n{body}\n</svg>\n'
    )


def panel(
    found: dict[str, Any], fault: str, service: str, width: int, height: int, *, left: int, top: int
) -> list[str]:
    def x(seconds: float) -> float:
        return round(left + seconds / LENGTH_S * (width - left - 12), 1)

    def y(share: float) -> float:
        return round(height - 28 - share * (height - 28 - top), 1)

    lost = "load" if fault == "twice the load" else "lose"
    title = f"{service}: {fault}" if lost == "load" else f"{service}: lose {fault}"
    parts = [
        f'<text x="{left}" y="{top - 12}" font-weight="bold">{title}</text>',
        f'<rect x="{x(START_S)}" y="{y(1)}" width="{round(x(END_S) - x(START_S), 1)}" height="{round(y(0) - y(1), 1)}" '
        'fill="#b3261e" opacity="0.1"/>',
    ]
    parts += [
        f'<line x1="{left}" y1="{y(share)}" x2="{width - 12}" y2="{y(share)}" stroke="#dfe3e8"/>'
        f'<text x="{left - 6}" y="{y(share) + 4}" text-anchor="end">{share:.0%}</text>'
        for share in (0.0, 0.5, 1.0)
    ]
    parts += [
        f'<text x="{x(60.0 * minutes)}" y="{height - 12}" text-anchor="middle">{minutes} min</text>'
        for minutes in (0, 10, 20, 30)
    ]
    for name, colour in COLOURS.items():
        values = found["plans"][name]["runs"][fault]["by_half_minute"][service]
        points = [f"{x((i + 0.5) * BIN_S)},{y(value)}" for i, value in enumerate(values) if value is not None]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return parts


def percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def section(found: dict[str, Any]) -> str:
    plans = found["plans"]
    cheap, dear = (plans[name] for name in PLANS)
    more = dear["cost_usd_per_hour"] / cheap["cost_usd_per_hour"] - 1
    lines = [
        "## When something goes wrong",
        "",
        f"Written by `benchmarks/fault_runs.py` (`make bench-faults`); {found['machine']}. Azure 2023 conversations "
        "at 60 req/s and code at 24 req/s (Llama-3.1-8B), AWS us-east-1 and GCP us-central1 from the bundled catalog, "
        "on demand and up to half on spot, planned for the p99 of 1-minute windows with 35% headroom. One plan is the "
        "cheapest, the other must survive the loss of any zone, any spot pool and any one replica. Both are replayed "
        "for 35 minutes; from the 10th to the 20th minute something is wrong. Means of "
        f"{found['replications']} replications (the trace, and resampled blocks of it); the zone that is lost is the "
        "worst one of each plan. Requests within every SLO:",
        "",
        "| plan | USD/h | what is wrong | service | before | during | after |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, plan in plans.items():
        for fault, ran in plan["runs"].items():
            if fault == "nothing":
                continue
            for service in ran["attainment"]:
                cells = " | ".join(percent(ran["phases"][phase][service]) for phase in ("before", "during", "after"))
                lines.append(f"| {name} | {plan['cost_usd_per_hour']:.2f} | {fault} | {service} | {cells} |")
    calm = {name: plan["runs"]["nothing"] for name, plan in plans.items()}
    held = "; ".join(
        f"{name} {'holds every SLO' if ran['met'] else 'misses an SLO'} "
        f"({', '.join(f'{service} {percent(value)}' for service, value in ran['attainment'].items())})"
        for name, ran in calm.items()
    )
    lines += [
        "",
        f"With nothing wrong: {held}. The redundancy costs {more:.0%} more.",
        "",
        "![Requests within every SLO through three faults](fault_runs.svg)",
        "",
        "What is lost is empty when it comes back, at once: start-up times are not part of this request. Requests "
        "under way on it start over elsewhere, and the router sends what comes in to whoever else can serve it. "
        "A plan that survives a zone is planned for that: not for twice the load, nor for spot that is lost in several "
        "zones at once. In numbers by half minute: [fault_runs.json](fault_runs.json).",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-write", action="store_true", help="print the section and leave the docs alone")
    arguments = parser.parse_args()
    found = measure()
    text = section(found)
    print(text)
    if not arguments.no_write:
        folder = PAGE.parent
        (folder / "fault_runs.json").write_text(json.dumps(rounded(found), indent=1, allow_nan=False) + "\n")
        (folder / "fault_runs.svg").write_text(plot(rounded(found)))
        write_section("fault runs", text)
    return 0


def rounded(value: Any) -> Any:
    """Return `value` with its numbers to five digits, and null for what is not finite."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    raise SystemExit(main())
