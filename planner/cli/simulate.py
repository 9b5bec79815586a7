"""`gpuplan simulate`: replay a plan, request by request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import console
from planner.cli.options import STDOUT, ForceOption, JsonOption, OutputOption, check_targets
from planner.errors import ExitCode, InputError
from planner.units import format_duration

if TYPE_CHECKING:
    from rich.table import Table

    from planner.domain.plan import Plan
    from planner.domain.workload import Trace
    from planner.planning.replay import Replay
    from planner.simulate.statistics import Estimate

SUFFIXES = (".json",)


def command(
    plan: Annotated[
        Path, typer.Argument(help="plan.json as `gpuplan plan -o plan.json` wrote it.", show_default=False)
    ],
    trace: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SERVICE=]FILE",
            help="Replay this trace instead of the request's own; bundled:NAME for one that ships. Repeatable.",
        ),
    ] = None,
    load: Annotated[float, typer.Option(metavar="FACTOR", help="Multiply the rates: 1.3 is 30% more.")] = 1.0,
    policy: Annotated[
        str,
        typer.Option(metavar="NAME", help="Router: weights, weighted-random, least-loaded, least-kv or prefix-aware."),
    ] = "weights",
    event: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EVENT",
            help="What goes wrong: '10min-20min: lose region us-east-1', 'lose 30% of market spot', 'load x 2'. "
            "Repeatable.",
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, metavar="N", help="Most requests of a service to replay.")] = 100_000,
    exact: Annotated[bool, typer.Option("--exact", help="Walk every engine step: slower, the same result.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of routing and random arrivals.")] = 0,
    as_json: JsonOption = False,
    output: OutputOption = None,
    force: ForceOption = False,
) -> int:
    """Replay a plan request by request and say whether every service holds its SLOs; exit code 5 if one does not."""
    check_targets([output] if output else [], suffixes=SUFFIXES, force=force)
    from planner.files.plan_schema import read_plan
    from planner.planning.replay import ReplaySettings, replay
    from planner.simulate.events import parse_event
    from planner.simulate.run import Policy

    if not 0 < load < float("inf"):
        raise InputError(f"The load cannot be multiplied by {load:g}.", hint="Write e.g. --load 1.3.")
    if policy not in set(Policy):
        raise InputError(f"{policy!r} is not a router.", hint=f"Use one of {', '.join(Policy)}.")
    document = read_plan(plan)
    settings = ReplaySettings(
        load=load,
        policy=Policy(policy),
        seed=seed,
        is_exact=exact,
        n_requests=requests,
        events=tuple(map(parse_event, event or [])),
    )
    found = replay(document, plan_path=plan, traces=_traces(trace or [], document), settings=settings)
    if output:
        console.write_result(output, console.to_json(found.to_dict()), force=force)
    if as_json and output != STDOUT:
        console.print_json(found.to_dict())
    elif output != STDOUT:
        console.print_result(_table(found), *([_phases(found)] if event else []), *_lines(found))
    return int(ExitCode.OK if found.is_met else ExitCode.CHECK_FAILED)


def _traces(named: list[str], plan: Plan) -> dict[str, Trace]:
    """Return the traces by service; a file without a service is for the plan's only one."""
    from planner.workload.read import read_trace, resolve_trace

    services = sorted({item.service for item in plan.allocation})
    found = {}
    for text in named:
        service, _, path = text.partition("=") if "=" in text else ("", "", text)
        if not service and len(services) > 1:
            raise InputError(f"Which service is {path} for?", hint=f"Write e.g. --trace {services[0]}={path}.")
        found[service or services[0]] = read_trace(resolve_trace(path, base_dir=Path()))
    return found


def _table(found: Replay) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("service", "left"), ("SLO", "left"), ("simulated", "right"), ("95% interval", "right"), ("", "left"),
        ("within", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for service in found.services:
        for item in service.slos:
            verdict = ("ok" if item.is_met else "missed") + ("" if item.is_sure else ", not sure")
            table.add_row(
                service.service,
                str(item.slo),
                _duration(item.simulated.value),
                _interval(item.simulated),
                verdict,
                f"{item.attainment.value:.2%}",
            )
    return table


def _phases(found: Replay) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="Within every SLO, by time of arrival", title_justify="left")
    table.add_column("from")
    table.add_column("to")
    table.add_column("what is wrong")
    for service in found.services:
        table.add_column(service.service, justify="right")
    for phase in found.phases:
        table.add_row(
            format_duration(phase.start_s),
            format_duration(phase.end_s),
            "; ".join(phase.events) or "-",
            *(f"{value:.2%}" if value == value else "-" for value in phase.attainment.values()),  # noqa: PLR0124
        )
    return table


def _duration(seconds: float) -> str:
    return format_duration(seconds) if seconds < float("inf") else "never"


def _interval(estimate: Estimate) -> str:
    return f"{_duration(max(0.0, estimate.low))} to {_duration(estimate.high)}"


def _lines(found: Replay) -> list[str]:
    lines = [""]
    for service in found.services:
        lost = f", {service.n_unanswered:,} never answered" if service.n_unanswered else ""
        lines.append(
            f"{service.service}: {service.n_requests:,} requests at {service.rate_rps:,.4g} req/s{lost}; "
            f"{service.attainment.value:.2%} within every SLO."
        )
    lines += [f"{name}: at work {share:.0%} of the time." for name, share in found.utilization.items()]
    simulation = found.simulation
    lines.append(
        f"{simulation.n_steps:,} engine steps in {simulation.n_events:,} events, simulated in "
        f"{format_duration(simulation.seconds)}."
    )
    return lines
