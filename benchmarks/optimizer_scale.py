"""What the optimiser does where plain branch-and-bound stops: many services, many offers, scarce capacity.

Run it with `python benchmarks/optimizer_scale.py` or `make bench-optimizer`; it writes its section of
docs/benchmarks.md and docs/optimizer_growth.svg. Every case runs in a process of its own, so that its peak memory is
its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _fleets import random_fleet
from _real_fleets import real_fleet
from _report import PAGE, machine, write_section
from optimizer_small import SLICE_FACTOR, melange

from planner.optimize import Assignment, SolverSettings, solve
from planner.optimize.alike import merged
from planner.optimize.arrays import fleet_arrays
from planner.optimize.decompose.budget import Budget
from planner.optimize.decompose.parts import cut
from planner.optimize.decompose.relaxation import relax
from planner.optimize.model import build_model
from planner.optimize.prune import prune

TIME_LIMIT_S = 60.0
CBC_TIME_LIMIT_S = 120
HIGH, LOW = 120.0, 12.0
"""Replicas per service, roughly."""
LARGE = (50, 100, 100)
SEEDS = (0, 1, 2)
KINDS = {"real": real_fleet, "synthetic": random_fleet}
GROWTH = (
    (5, 100, 50),
    (10, 100, 50),
    (20, 100, 50),
    (10, 50, 50),
    (10, 200, 50),
    (10, 100, 25),
    (10, 100, 100),
)
TRAFFIC = (("about 120 replicas each", HIGH, 1e-3), ("about 12 replicas each", LOW, 5e-3))
"""What a service's traffic comes to, and the gap that is asked for."""
PLOT = PAGE.parent / "optimizer_growth.svg"


def measure(kind: str, size: tuple[int, int, int], replicas: float, gap: float, time_limit_s: float, seed: int) -> dict:
    """Return what one call of `solve` took and gave, in this process."""
    problem = KINDS[kind](*size, replicas=replicas, seed=seed)
    fleet = fleet_arrays(prune(problem), Assignment.fractional())
    settings = SolverSettings(relative_gap=gap, time_limit_s=time_limit_s)
    started, cpu = time.perf_counter(), time.process_time()
    plan = solve(problem, settings=settings, assignment=Assignment.fractional())
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = build_model(fleet)
    milp = model.freeze()
    by_class = merged(model, milp)
    linear = relax(cut(by_class), Budget(SolverSettings()))
    return {
        "asked": sum(int((option.throughput_rps > 0).sum()) + 1 for option in problem.options),
        "variables": milp.n_columns,
        "by_class": by_class.milp.n_columns,
        "nonzeros": len(milp.values),
        "cost": plan.cost_usd_per_hour,
        "gap": plan.gap,
        "linear_gap": (plan.cost_usd_per_hour - linear.bound) / plan.cost_usd_per_hour,
        "status": plan.status.value,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_bytes": peak_bytes,
    }


def apart(
    kind: str, size: tuple[int, int, int], replicas: float, gap: float, time_limit_s: float, seed: int = 0
) -> dict:
    """Return `measure` of these in a fresh process."""
    command = [sys.executable, __file__, json.dumps([kind, size, replicas, gap, time_limit_s, seed])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def against_melange(n_buckets: int, n_gpus: int) -> str:
    problem = random_fleet(1, n_buckets, n_gpus, replicas=30.0, seed=1, scarce=False)
    started = time.perf_counter()
    plan = solve(problem, settings=SolverSettings(), assignment=Assignment.fractional())
    seconds = time.perf_counter() - started
    published, published_s = melange(problem, time_limit_s=CBC_TIME_LIMIT_S)
    limit = " (time limit)" if published_s >= CBC_TIME_LIMIT_S else ""
    return (
        f"| {n_buckets} x {n_gpus} | {published:.3f} | {published_s:.2f}{limit} | {plan.cost_usd_per_hour:.3f} "
        f"| {seconds:.2f} | {plan.gap:.4%} | {plan.cost_usd_per_hour / published:.4f} "
        f"| {published_s / seconds:.0f}x faster |"
    )


def row(case: str, found: dict) -> str:
    return (
        f"| {case} | {found['asked']:,} | {found['variables']:,} | {found['by_class']:,} | {found['nonzeros']:,} "
        f"| {found['cost']:,.2f} | {found['gap']:.3%} "
        f"| {found['linear_gap']:.3%} | {found['wall_s']:.1f} | {found['cpu_s']:.1f} "
        f"| {found['peak_bytes'] / 2**20:,.0f} | {found['status']} |"
    )


HEAD = (
    "| case | variables asked for | after pruning | by class | non-zeros | USD/h | gap | above the LP | s | CPU s "
    "| peak MiB | status |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def plot(cases: list[tuple[tuple[int, int, int], dict]]) -> None:
    """Write seconds of CPU and MiB against non-zeros, both axes logarithmic."""
    from math import log10

    width, height, left, low = 360, 260, 50, 40
    panels = []
    series = (("CPU s", lambda found: found["cpu_s"]), ("peak MiB", lambda found: found["peak_bytes"] / 2**20))
    for panel, (title, value) in enumerate(series):
        xs = [log10(found["nonzeros"]) for _, found in cases]
        ys = [log10(value(found)) for _, found in cases]
        x0, x1, y0, y1 = min(xs) - 0.1, max(xs) + 0.1, min(ys) - 0.1, max(ys) + 0.1
        shift = panel * width
        parts = [
            f'<rect x="{shift + left}" y="20" width="{width - left - 20}" height="{height - low - 20}" fill="none" '
            'stroke="#888"/>',
            f'<text x="{shift + width / 2}" y="14" text-anchor="middle">{title} by non-zeros (log, log)</text>',
            f'<text x="{shift + left}" y="{height - 22}">{10**x0:,.0f}</text>',
            f'<text x="{shift + width - 20}" y="{height - 22}" text-anchor="end">{10**x1:,.0f}</text>',
            f'<text x="{shift + left - 4}" y="{height - low}" text-anchor="end">{10**y0:.3g}</text>',
            f'<text x="{shift + left - 4}" y="30" text-anchor="end">{10**y1:.3g}</text>',
        ]
        for (case, _), x, y in zip(cases, xs, ys, strict=True):
            cx = shift + left + (x - x0) / (x1 - x0) * (width - left - 20)
            cy = height - low - (y - y0) / (y1 - y0) * (height - low - 20)
            name = " x ".join(map(str, case))
            parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="#2563eb"><title>{name}</title></circle>')
        panels += parts
    body = "\n".join(panels)
    PLOT.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width}" height="{height}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )


def main() -> None:
    size = " x ".join(map(str, LARGE))
    lines = [
        "## Large fleets",
        "",
        f"`make bench-optimizer`, {machine()}, load average {os.getloadavg()[0]:.1f} at the start. Services x "
        "buckets x offers; whole calls of `solve`, two threads in the decomposed search. The gap is to the proven "
        "bound, which for decomposed searches is the Lagrangian one and at least the linear programme's. Variables "
        "are shares, replicas and instances: as the request states them, after dominated options and offers are left "
        "out, and with one share for options that serve alike, which is what the search works on.",
        "",
        f"Real fleets (`benchmarks/_real_fleets.py`): {LARGE[0]} models of the bundled library, each with the request "
        "sizes of a stretch of a bundled trace and one of three levels of objectives; throughputs by the profiler; "
        f"{LARGE[2]} on-demand offers of the bundled catalog, 12 GPU types in equal parts, machines of 1 to 8 GPUs, "
        "tensor-parallel degrees of 1 to 8. Of the half of the offers that services want most, 30 to 80% of what they "
        "want can be had. Seeds draw models, traffic, offers and stock; nothing else was chosen.",
        "",
        HEAD,
    ]
    for name, replicas, gap in TRAFFIC:
        for seed in SEEDS:
            found = apart("real", LARGE, replicas, gap, TIME_LIMIT_S, seed)
            lines.append(row(f"{size}, {name}, seed {seed}", found))
            print(lines[-1], flush=True)
    lines += [
        "",
        "Synthetic fleets (`benchmarks/_fleets.py`) are harder: every offer has throughputs of its own, with "
        "independent noise of 20% per bucket, as if there were 100 GPU types. No two options serve alike, each of the "
        "50 scarce offers suits other buckets best, and all of them have to be dealt out in whole replicas. That alone "
        "costs more than the linear programme knows: the Lagrangian bound, which counts whole replicas service by "
        "service, lies above it by the difference of the two columns, so no plan comes closer to it than that.",
        "",
        HEAD,
    ]
    for name, replicas, gap in TRAFFIC:
        lines.append(row(f"{size}, {name}", apart("synthetic", LARGE, replicas, gap, TIME_LIMIT_S)))
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Against Mélange's formulation (slice factor {SLICE_FACTOR}, CBC with its defaults, at most "
        f"{CBC_TIME_LIMIT_S} s), one service, nothing scarce, in one process:",
        "",
        "| buckets x GPU types | Mélange USD/h | s | shares USD/h | s | gap | cost ratio | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in ((60, 4), (100, 16)):
        lines.append(against_melange(*size))
        print(lines[-1], flush=True)
    lines += ["", "Growth of synthetic fleets, at about 120 replicas a service, until a gap of 1% or 20 s:", "", HEAD]
    cases = [(case, apart("synthetic", case, HIGH, 1e-2, 20.0)) for case in GROWTH]
    lines += [row(" x ".join(map(str, case)), found) for case, found in cases]
    plot(cases)
    lines += ["", "![CPU seconds and memory by non-zeros](optimizer_growth.svg)"]
    write_section("optimizer_scale", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*json.loads(sys.argv[1]))))
    else:
        main()
