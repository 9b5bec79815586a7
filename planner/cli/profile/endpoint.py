"""`gpuplan profile endpoint`: the largest rate at which a live server meets its objectives, size by size."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import console
from planner.cli.options import ForceOption, JsonOption
from planner.cli.profile.endpoint_replica import named, replica_of, told
from planner.cli.profile.endpoint_watch import SECONDS_PER_HOUR, watching
from planner.errors import ExitCode, InputError, OutputExistsError, PlannerError, Where
from planner.units import (
    format_count,
    format_duration,
    format_usd,
    parse_duration_s,
    parse_fraction,
    parse_usd_per_hour,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.table import Table

    from planner.profilers.endpoint.journal import Journal
    from planner.profilers.endpoint.result import Profile, Replica
    from planner.profilers.endpoint.schedule import Size
    from planner.profilers.endpoint.session import Settings, Watcher

ADAPTIVE_ROWS, ADAPTIVE_COLUMNS = 5, 4
"""Of the grid fitted to a trace: each cell takes minutes to measure."""


def command(
    url: Annotated[str, typer.Option(metavar="URL", help="The server: http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="The model, as the server calls it.")],
    slo: Annotated[
        list[str],
        typer.Option(metavar="SLO", help="Objective to meet, e.g. 'ttft p99 <= 2s', 'tpot p95 <= 60ms'. Repeatable."),
    ],
    gpu: Annotated[
        str, typer.Option(metavar="GPU", help="What the server runs on, e.g. H100-80GB; other:NAME if unknown.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Profile to write, .csv.")],
    sizes: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Input x output tokens to measure: 128x128,512x256.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option(metavar="TRACE", help="Measure the sizes of a trace, or of bundled:NAME, instead.")
    ] = None,
    grid: Annotated[
        str, typer.Option(metavar="GRID", help="Grid that divides the trace: melange, or adaptive.")
    ] = "adaptive",
    tp: Annotated[int, typer.Option(min=1, metavar="N", help="GPUs that share each layer.")] = 1,
    pp: Annotated[int, typer.Option(min=1, metavar="N", help="Pipeline stages.")] = 1,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Engine of the server; default: what it says itself.")
    ] = None,
    engine_version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Its version; default: what it says itself.")
    ] = None,
    precision: Annotated[str, typer.Option(metavar="NAME", help="Number format of the weights.")] = "bf16",
    record_as: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model in the profile; default: --model.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Begin no run after this long: 45m. What says most comes first.")
    ] = None,
    confidence: Annotated[str, typer.Option(metavar="SHARE", help="Confidence of each verdict.")] = "95%",
    resolution: Annotated[
        str, typer.Option(metavar="SHARE", help="How near the found rate is to one that fails; less takes longer.")
    ] = "5%",
    mix: Annotated[bool, typer.Option("--mix/--no-mix", help="Measure the sizes mixed too: does load add up?")] = True,
    price: Annotated[
        str | None, typer.Option(metavar="PRICE", help="Of the server, to say what it cost: '2.49 USD/h'.")
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="A request has failed after this long.")] = "2m",
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the API key.")
    ] = None,
    ca_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificates to trust, PEM.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals and prompts.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Drop what was measured before, and begin anew.")] = False,
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> int:
    """Measure a live OpenAI-compatible server: the largest rate at which it meets the objectives, for every size.

    Requests come at random (open loop, Poisson) and are streamed. For each size rates are tried, each as long as a
    sequential test needs, until the largest one that holds is known. That takes some thousand requests a size: minutes
    on a fast server, an hour on a slow one. Everything finished is kept in FILE.journal: after Ctrl-C, a crash or an
    error the same command goes on where it was.
    """
    _require_aiohttp()
    usd_per_hour = None if price is None else _usd_per_hour(price)
    _check_output(output, force=force, restart=restart)
    from planner.files.slo import parse_slo
    from planner.profilers.endpoint.client import Connection, root_url
    from planner.profilers.endpoint.journal import Journal, journal_path
    from planner.profilers.endpoint.schedule import measuring_order
    from planner.profilers.endpoint.session import Settings

    weights = _weights(trace, grid) if sizes is None else None
    connection = Connection(
        url=root_url(url), timeout_s=_positive_s(timeout, "--timeout"), api_key=_api_key(api_key_env), ca_file=ca_file
    )
    settings = Settings(
        connection=connection,
        model=named(model, "--model"),
        sizes=measuring_order(_asked_sizes(sizes, trace) if weights is None else tuple(weights), weights),
        weights=weights,
        slos=tuple(dict.fromkeys(map(parse_slo, slo))),
        confidence=_share(confidence, "--confidence", 0.5, 1.0),
        resolution=_share(resolution, "--resolution", 0.0, 1.0),
        seed=seed,
        budget_s=None if budget is None else _positive_s(budget, "--budget"),
        with_mix=mix,
        replica=told(
            model=record_as or model, gpu=gpu, tp=tp, pp=pp, engine=engine, version=engine_version, precision=precision
        ),
    )
    _check_journal(output, settings, force=force, restart=restart)
    # Nothing was sent until here: what is wrong with the command is told before a server, or a key, has to do with it.
    replica = replica_of(settings)
    settings = dataclasses.replace(settings, replica=dataclasses.asdict(replica))
    with Journal.open(journal_path(output), settings.fingerprint(), restart=restart) as journal:
        _check_mine(output, journal, force=force)
        if journal.entries:
            done = format_count(len(journal.entries), "parts")
            console.note(f"Going on with {journal.path.name}, which holds {done}; --restart drops them.")
        keep = _Keep(output=output, journal=journal, settings=settings, replica=replica)
        try:
            with watching(journal, usd_per_hour) as watcher:
                _measure(settings, journal, watcher, _estimates(replica, settings))
        finally:
            found = keep.write()
    _show(found, usd_per_hour, as_json=as_json)
    return _exit_code(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keep:
    """Writes what is known as the profile, however the measurement ends."""

    output: Path
    journal: Journal
    settings: Settings
    replica: Replica

    def write(self) -> Profile:
        """Write the profile if there is any row, and return it."""
        from datetime import UTC, datetime
        from importlib.metadata import version

        from planner.files.output import write_text
        from planner.profilers.endpoint.result import profile
        from planner.profilers.schema import points_csv

        today = datetime.now(UTC).date()
        found = profile(self.journal, self.settings, self.replica, version=version("gpuplan"), as_of=today)
        if found.points:
            text = points_csv(found.points)
            self.journal.note_output(text)
            write_text(self.output, text, force=True)  # `_check_mine` has seen to what was there
            console.note(f"Wrote {self.output}.")
        return found


def _require_aiohttp() -> None:
    from importlib.util import find_spec

    if find_spec("aiohttp") is None:
        raise InputError(
            "Measuring a server needs the package aiohttp.", hint="Install it: pip install 'gpuplan[endpoint]'."
        )


def _usd_per_hour(text: str) -> float:
    price = _of_option("--price", parse_usd_per_hour, text)
    if price < 0:
        raise InputError(f"--price must not be below zero, as {text!r} is.")
    return price


def _of_option(option: str, parse: Callable[[str], float], text: str) -> float:
    """Return what a text means, or say which option it was given to."""
    try:
        return parse(text)
    except InputError as error:
        raise InputError(f"{option}: {error.message}", hint=error.hint) from error


def _positive_s(text: str, option: str) -> float:
    seconds = _of_option(option, parse_duration_s, text)
    if seconds <= 0:
        raise InputError(f"{option} must be more than zero, not {text!r}.")
    return seconds


def _share(text: str, option: str, low: float, high: float) -> float:
    share = _of_option(option, parse_fraction, text)
    if not low < share < high:
        raise InputError(f"{option} must lie between {low:.0%} and {high:.0%}, not {text!r}.")
    return share


def _api_key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(f"The environment variable {name!r} holds no API key.", hint="Export it first.")
    if not key.isascii() or not key.isprintable():
        raise InputError(f"The environment variable {name!r} holds no API key: it has characters that no header takes.")
    return key


def _asked_sizes(sizes: str | None, trace: str | None) -> tuple[Size, ...]:
    from planner.profilers.endpoint.schedule import parse_sizes

    if sizes is None or trace is not None:
        raise InputError("Give either --sizes or --trace.", hint="Write --sizes 128x128,512x256.")
    return parse_sizes(sizes)


def _weights(trace: str | None, grid: str) -> dict[Size, float] | None:
    """Return the share of a trace's requests in each of its sizes, the mean ones of its grid; None = no trace."""
    from planner.profilers.endpoint.schedule import Size
    from planner.workload.buckets import adaptive_grid, demand_from_trace, melange_grid
    from planner.workload.read import read_trace

    if trace is None:
        return None
    requests = read_trace(trace)
    if grid not in {"melange", "adaptive"}:
        raise InputError(f"{grid!r} is not a grid.", hint="Use --grid melange or --grid adaptive.")
    used = (
        melange_grid() if grid == "melange" else adaptive_grid(requests, rows=ADAPTIVE_ROWS, columns=ADAPTIVE_COLUMNS)
    )
    demand = demand_from_trace(requests, service="default", grid=used, rate_rps=1.0)
    shares: dict[Size, float] = {}
    for bucket in demand.buckets:
        size = Size(max(round(bucket.input_tokens or 1), 1), max(round(bucket.output_tokens or 1), 1))
        shares[size] = shares.get(size, 0.0) + bucket.rate_rps
    return shares


def _estimates(replica: Replica, settings: Settings) -> dict[Size, float]:
    """Return what the estimate says of every size, where model and GPU are known: the search starts from there."""
    import numpy as np

    from planner.catalog.gpus import load_gpus
    from planner.catalog.models import load_model
    from planner.domain.hardware import EngineConfig
    from planner.profilers.capacity import estimate_buckets
    from planner.profilers.efficiency import default_params

    try:
        model, gpu = load_model(replica.model), load_gpus().get(replica.gpu)
    except PlannerError:
        return {}
    config = EngineConfig(
        engine=replica.engine,
        precision=replica.precision,
        tensor_parallel=replica.tensor_parallel,
        pipeline_parallel=replica.pipeline_parallel,
    )
    tokens = np.array([[size.input_tokens, size.output_tokens] for size in settings.sizes], dtype=np.float64)
    found = estimate_buckets(
        model, gpu, config, input_tokens=tokens[:, 0], output_tokens=tokens[:, 1], slos=settings.slos,
        params=default_params(),
    )  # fmt: skip
    return dict(zip(settings.sizes, found.rate_rps.tolist(), strict=True))


def _check_output(output: Path, *, force: bool, restart: bool) -> None:
    from planner.files.output import check_writable
    from planner.profilers.endpoint.journal import journal_path

    if output.suffix.lower() != ".csv":
        raise InputError("A profile is a .csv file.", hint="Write -o profile.csv.", where=Where(path=str(output)))
    check_writable(output, force=force or (journal_path(output).exists() and not restart))


def _check_journal(output: Path, settings: Settings, *, force: bool, restart: bool) -> None:
    """Refuse what a journal of an earlier sitting speaks against, as far as it is known without the server."""
    from planner.profilers.endpoint.journal import Journal, is_begun, journal_path

    path = journal_path(output)
    if not restart and is_begun(path):
        with Journal.open(path, settings.fingerprint(), restart=False) as journal:
            _check_mine(output, journal, force=force)


def _check_mine(output: Path, journal: Journal, *, force: bool) -> None:
    """Refuse to replace a file that this measurement has not written itself."""
    from planner.profilers.endpoint.journal import sha256

    if output.exists() and not force and sha256(output.read_text(encoding="utf-8")) not in journal.outputs:
        raise OutputExistsError(
            "The file exists, and this measurement has not written it.",
            hint="Use --force to overwrite it.",
            where=Where(path=str(output)),
        )


def _measure(settings: Settings, journal: Journal, watcher: Watcher, estimates_rps: Mapping[Size, float]) -> None:
    import asyncio

    from planner.profilers.endpoint.session import Session

    session = Session(settings=settings, journal=journal, watcher=watcher, estimates_rps=estimates_rps)
    asyncio.run(session.measure())


def _show(found: Profile, usd_per_hour: float | None, *, as_json: bool) -> None:
    from planner.profilers.schema import point_record

    cost_usd = None if usd_per_hour is None else found.spent_s / SECONDS_PER_HOUR * usd_per_hour
    if as_json:
        points = [point_record(point) for point in found.points]
        document = {"schema_version": "1", "kind": "EndpointProfile", "points": points} | found.to_dict()
        console.print_json(document | {"cost_usd": cost_usd})
        return
    from rich.text import Text

    console.print_result(_table(found), *map(Text, _lines(found, cost_usd)))


def _table(found: Profile) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("tokens", "req/s", "fails at", "runs"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("because", overflow="fold")
    for one in found.sizes:
        fails = f"{one.fails_rps:.4g}" if math.isfinite(one.fails_rps) else "-"
        rate = f"{one.rate_rps:.4g}" if one.rate_rps else "none"
        table.add_row(
            str(one.size), rate, fails, str(one.n_runs), one.reason + ("" if one.is_closed else " (unfinished)")
        )
    return table


def _lines(found: Profile, cost_usd: float | None) -> Iterator[str]:
    if found.mix is not None:
        mix = found.mix
        fails = f", and fails at {mix.load_sum_fails:.3f}" if math.isfinite(mix.load_sum_fails) else ""
        yield (
            f"Mixed, the sizes hold {mix.rate_rps:.4g} req/s: their load fractions sum to {mix.load_sum:.3f}{fails}"
            " (1 = load adds up)."
        )
    if found.unmeasured:
        yield f"Not measured: {', '.join(map(str, found.unmeasured))}."
    cost = "" if cost_usd is None else f", {format_usd(cost_usd)} USD"
    yield f"Measured for {format_duration(found.spent_s)}{cost}."


def _exit_code(found: Profile) -> int:
    if any(one.rate_rps for one in found.sizes):
        return int(ExitCode.OK)
    is_done = not found.unmeasured and all(one.is_closed for one in found.sizes)
    return int(ExitCode.CHECK_FAILED if is_done else ExitCode.LIMIT_REACHED)
