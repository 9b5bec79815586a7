"""Planning until the replay holds: what plans by throughput alone miss, what the proof costs, and whether it lasts.

Every trace is cut in two. Plans are made, and proven, with the first half; the second half is replayed on them at the
same mean rate, which no plan has seen. Run: .venv/bin/python benchmarks/closing_loop.py [--no-write] [--only NAME]
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from _report import machine, write_section

from planner.optimize import Assignment, SolverSettings
from planner.optimize.fleets import chosen_fleet
from planner.planning.answer import answer, read_question, read_request
from planner.planning.proving.caps import with_found_caps
from planner.planning.proving.verdict import judge
from planner.planning.replay import ReplaySettings, replay_of
from planner.workload.read import read_trace, resolve_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.domain.plan import Plan
    from planner.planning.question import Question

AS_OF = date(2026, 11, 21)
ROOT = Path(__file__).resolve().parents[1]
SETTINGS = SolverSettings(time_limit_s=240.0)
FREE = Assignment.fractional()


@dataclass(frozen=True)
class Traffic:
    """A trace, the rate that it is played at, and three levels of objectives for it."""

    name: str
    path: Path
    rate: str
    levels: tuple[tuple[str, ...], ...]


TRAFFIC = (
    Traffic(
        "Azure code 2023",
        ROOT / "examples" / "traces" / "azure_code_2023.csv",
        "10 req/s",
        (
            ("ttft p99 <= 4s", "tpot p95 <= 100ms"),
            ("ttft p99 <= 2s", "tpot p95 <= 60ms"),
            ("ttft p99 <= 1s", "tpot p95 <= 40ms"),
        ),
    ),
    Traffic(
        "Azure conversation 2023",
        ROOT / "examples" / "traces" / "azure_conv_2023.csv",
        "30 req/s",
        (
            ("ttft p99 <= 4s", "tpot p95 <= 100ms"),
            ("ttft p99 <= 2s", "tpot p95 <= 60ms"),
            ("ttft p99 <= 1s", "tpot p95 <= 40ms"),
        ),
    ),
    Traffic(
        "Mooncake conversation",
        ROOT / "benchmarks" / "data" / "mooncake_conversation.jsonl.gz",
        "6 req/s",
        (
            ("ttft p95 <= 30s", "tpot p95 <= 100ms"),
            ("ttft p95 <= 15s", "tpot p95 <= 60ms"),
            ("ttft p95 <= 8s", "tpot p95 <= 40ms"),
        ),
    ),
)


@dataclass(frozen=True)
class Row:
    """One trace under one level of objectives."""

    traffic: str
    slos: str
    unproven: Plan
    unproven_first: float
    unproven_second: float
    unproven_holds: bool
    proven: Plan
    seconds: float
    second: float
    second_holds: bool
    second_worst: str
    removals: int
    removals_missed: int


def halves(path: Path, folder: Path) -> list[Path]:
    """Write the first and the second half of a trace's requests to `folder`."""
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines(keepends=True)
    suffix = ".jsonl" if ".jsonl" in path.name else ".csv"
    head, body = ([], lines) if suffix == ".jsonl" else (lines[:1], lines[1:])
    found = []
    for index, part in enumerate((body[: len(body) // 2], body[len(body) // 2 :])):
        target = folder / f"{path.name.split('.')[0]}_{index + 1}{suffix}"
        target.write_text("".join(head + part), encoding="utf-8")
        found.append(target)
    return found


def request_of(rate: str, slos: tuple[str, ...], trace: Path) -> dict[str, object]:
    """Return the request that plans for `trace`."""
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "meta-llama/Llama-3.1-8B",
                "workload": {"trace": str(trace), "rate": rate},
                "slo": list(slos),
            }
        ],
        "catalog": {"providers": ["aws", "gcp", "azure"], "markets": ["on-demand"]},
        "constraints": {"headroom": "10%"},
    }


def attained(question: Question, plan: Plan, trace: Path | None = None, load: float = 1.0) -> tuple[float, bool, str]:
    """Return the part of requests within every bound, whether every objective's value holds, and the worst one."""
    traces = {} if trace is None else {"chat": read_trace(resolve_trace(str(trace), base_dir=Path()))}
    found = replay_of(question, plan, traces=traces, settings=ReplaySettings(load=load))
    service = found.services[0]
    worst = judge(found).services[0].worst.slo
    value = "never" if worst.simulated_s is None else f"{worst.simulated_s:.3g} s"
    return service.attainment.value, service.is_met, f"{worst.metric} {worst.statistic} {value}"


def measure(traffic: Traffic, slos: tuple[str, ...], parts: list[Path]) -> Row:
    """Plan without and with the loop on the first half, and replay both halves."""
    question = read_question(
        read_request(request_of(traffic.rate, slos, parts[0])), base_dir=Path(), today=AS_OF, strict=False
    )
    unproven = answer(question, settings=SETTINGS, assignment=FREE, verify=False)
    first, holds, _ = attained(question, unproven)
    second, holds_too, _ = attained(question, unproven, parts[1])
    started = time.perf_counter()
    proven = answer(question, settings=SETTINGS, assignment=FREE, verify=True)
    seconds = time.perf_counter() - started
    if proven.proof is None:
        raise SystemExit(f"{traffic.name} {slos}: not proven")
    capped = with_found_caps(question, proven.proof)
    later, later_holds, worst = attained(capped, proven, parts[1])
    fewer = list(without_a_replica(capped, proven))
    load = ReplaySettings(load=proven.proof.load)
    missed = [not judge(replay_of(capped, each, settings=load)).holds for each in fewer]
    return Row(
        traffic=traffic.name,
        slos=", ".join(slos),
        unproven=unproven,
        unproven_first=first,
        unproven_second=second,
        unproven_holds=holds and holds_too,
        proven=proven,
        seconds=seconds,
        second=later,
        second_holds=later_holds,
        second_worst=worst,
        removals=len(fewer),
        removals_missed=sum(missed),
    )


def without_a_replica(question: Question, plan: Plan) -> Iterator[Plan]:
    """Yield the plan without one replica of each of its options, routed anew; not where nothing would be left."""
    replicas = {(item.service, item.option): item.replicas for item in plan.allocation}
    for name in replicas:
        fewer = {key: count - (key == name) for key, count in replicas.items() if count > (key == name)}
        found = None
        if fewer:
            found = chosen_fleet(question.problem, plan, fewer, settings=SETTINGS, assignment=FREE)
        if found is not None:
            yield found.plan


def line(row: Row) -> str:
    """Return a row of the table."""
    proof = row.proven.proof
    if proof is None or not row.unproven.cost_usd_per_hour:
        raise ValueError(row.traffic)
    replicas = sum(item.replicas for item in row.proven.allocation)
    held = "holds" if proof.holds else "misses"
    cells = (
        row.traffic,
        row.slos,
        f"{row.unproven.cost_usd_per_hour:.2f}",
        f"{row.unproven_first:.1%} / {row.unproven_second:.1%}",
        "yes" if row.unproven_holds else "no",
        f"{row.proven.cost_usd_per_hour:.2f}",
        f"{100 * proof.extra_usd_per_hour / row.unproven.cost_usd_per_hour:+.0f}%",
        str(replicas),
        held,
        f"{row.second:.2%}",
        "yes" if row.second_holds else f"no ({row.second_worst})",
        f"{row.removals_missed} of {row.removals}",
        str(proof.fleets),
        f"{row.seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for traffic in TRAFFIC:
            if options.only.lower() not in traffic.name.lower():
                continue
            parts = halves(traffic.path, Path(folder))
            for slos in traffic.levels:
                rows.append(measure(traffic, slos, parts))
                print(line(rows[-1]), flush=True)
    missed = sum(not row.unproven_holds for row in rows)
    lasting = sum(row.second_holds for row in rows)
    tight = sum(row.removals_missed for row in rows), sum(row.removals for row in rows)
    text = "\n".join([
        "## Planning until the replay holds",
        "",
        f"`python benchmarks/closing_loop.py`, {machine()}. Llama-3.1-8B on the on-demand offers of AWS, GCP and Azure"
        " with 10% headroom. Plans are made and proven with the first half of each trace; the second half, unseen, is"
        " replayed at the planned rate without the headroom. In time: requests within every bound, on the first and"
        " the second half. Extra: against the plan by throughput alone. One less: of the fleets without one replica of"
        " one option, routed anew, how many the same proof rejects.",
        "",
        "| trace | SLOs | by throughput USD/h | in time | holds | proven USD/h | extra | replicas | first half"
        " | in time, second half | holds | one less misses | fleets | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *map(line, rows),
        "",
        f"Without the loop {missed} of {len(rows)} plans miss on one half or both; with it {lasting} of {len(rows)}"
        f" hold on the half that they have not seen. Of {tight[1]} fleets with a replica less {tight[0]} do not hold.",
    ])  # fmt: skip
    print(text)
    if not options.no_write and not options.only:
        write_section("closing_loop", text)


if __name__ == "__main__":
    main()
