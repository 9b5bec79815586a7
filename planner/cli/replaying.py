"""Options that `gpuplan simulate` and `gpuplan sweep --load` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.errors import InputError

if TYPE_CHECKING:
    from planner.domain.plan import Plan
    from planner.domain.workload import Trace
    from planner.planning.replay import ReplaySettings

TraceOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[SERVICE=]FILE",
        help="Replay this trace instead of the request's own; bundled:NAME for one that ships. Repeatable.",
    ),
]
PolicyOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="Router: weights, weighted-random, least-loaded, least-kv or prefix-aware."),
]
EventOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="EVENT",
        help="What goes wrong: '10min-20min: lose region us-east-1', 'lose 30% of market spot', 'load x 2'; at random: "
        "'spot at 20%/month, back in 15min', 'fail every 30d, back in 10min'. Repeatable.",
    ),
]
ArrivalsOption = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="trace, poisson, gamma:CV or mmpp:FACTOR,LENGTH,SHARE of bursts."),
]
RequestsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Most requests of a service to replay; default: 100,000.")
]
PeriodsOption = Annotated[
    str | None, typer.Option(metavar="FIRST-LAST", help="Only these periods of a schedule, counted from 0.")
]
ReplicationsOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Independent replications; intervals are then from their scatter.")
]


def settings_of(
    *,
    load: float,
    policy: str,
    seed: int,
    exact: bool,
    requests: int | None,
    event: list[str] | None,
    arrivals: str | None,
    periods: str | None,
    replications: int,
    threads: int | None,
    spot_interruptions: bool,
) -> ReplaySettings:
    """Return the settings that the options above give.

    Raises
    ------
    InputError: if one of them is wrong.
    """
    from planner.planning.replay import ReplaySettings
    from planner.planning.replay_traffic import parse_periods
    from planner.simulate.arrivals import parse_process
    from planner.simulate.events import AS_THE_CATALOG_SAYS, parse_event
    from planner.simulate.run import Policy

    if not 0 < load < float("inf"):
        raise InputError(f"The load cannot be multiplied by {load:g}.", hint="Write e.g. --load 1.3.")
    if policy not in set(Policy):
        raise InputError(f"{policy!r} is not a router.", hint=f"Use one of {', '.join(Policy)}.")
    events = tuple(map(parse_event, event or [])) + ((AS_THE_CATALOG_SAYS,) if spot_interruptions else ())
    return ReplaySettings(
        load=load,
        policy=Policy(policy),
        seed=seed,
        is_exact=exact,
        n_requests=requests,
        events=events,
        process=None if arrivals is None else parse_process(arrivals),
        periods=None if periods is None else parse_periods(periods),
        n_replications=replications,
        n_threads=threads,
    )


def traces_of(named: list[str], plan: Plan) -> dict[str, Trace]:
    """Return the traces by service; a file without a service is for the plan's only one."""
    from planner.workload.read import read_trace, resolve_trace

    services = sorted({route.service for route in plan.routing} or {item.service for item in plan.allocation})
    found = {}
    for text in named:
        service, _, path = text.partition("=") if "=" in text else ("", "", text)
        if not service and not services:
            raise InputError("The plan has no service that its fleet serves.", hint="Leave --trace out.")
        if not service and len(services) > 1:
            raise InputError(f"Which service is {path} for?", hint=f"Write e.g. --trace {services[0]}={path}.")
        found[service or services[0]] = read_trace(resolve_trace(path, base_dir=Path()))
    return found
