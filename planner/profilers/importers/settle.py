"""From runs to points: what a file leaves open comes from the user's options, and nothing implausible passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from planner.errors import InputError
from planner.profilers.efficiency import engine_family
from planner.profilers.schema import MeasuredPoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from planner.profilers.importers.base import Given, Run
    from planner.profilers.importers.content import Content

MAX_FAILED_FRACTION = 0.05
"""Requests that may fail before a run says little of a replica that serves all of them; gpuplan's choice."""
MAX_TOKEN_COUNT_GAP = 0.05
"""How far two counts of the same tokens may be apart: per-token times are off by as much."""
MAX_RATE_GAP = 0.1
"""How far req/s x output tokens may be from tokens/s: tools take the two over slightly different stretches of a run."""
MAX_LATENCY_FACTOR = 3.0
"""How far the mean latency may be from TTFT + TPOT x (output - 1), each a mean of its own; units differ by 1000."""
MAX_IN_FLIGHT_FACTOR = 1.1
"""How far rate x mean latency may be above the requests kept in flight, which it equals by Little's law."""
SAME_LOAD_TOLERANCE = 0.01
"""Rates that an option and a file state may be rounded by so much."""
MAX_LATENCY_S = 86400.0
MAX_TOKENS = 1e8
ESTIMATED = "estimated"
"""Verdict of points that a tool computed. Plans leave them out: nothing estimated is called measured."""


class Names(Protocol):
    """What the catalogs know."""

    def gpu(self, name: str) -> str | None:
        """Return the catalog's name of a GPU; None if it does not have it."""

    def model(self, name: str) -> str | None:
        """Return the library's name of a model; None if it does not have it."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """One fact about the replica that must be known."""

    field: str
    option: str
    what: str


_SETTINGS = (
    _Setting("model", "--model NAME", "model"),
    _Setting("gpu", "--gpu NAME", "GPU"),
    _Setting("tensor_parallel", "--tp N", "tensor parallelism"),
    _Setting("pipeline_parallel", "--pp N", "pipeline parallelism"),
    _Setting("expert_parallel", "--ep N", "expert parallelism"),
    _Setting("engine", "--engine NAME", "engine"),
    _Setting("engine_version", "--engine-version TEXT", "engine version"),
    _Setting("precision", "--precision NAME", "precision"),
)
_OPTIONAL = frozenset({"pipeline_parallel", "expert_parallel", "engine_version"})


def contradictions(run: Run, given: Given, names: Names) -> tuple[str, ...]:
    """Return in words where the user's options and the file say different things."""
    found = []
    for setting in _SETTINGS:
        ours, theirs = getattr(given.replica, setting.field), getattr(run.replica, setting.field)
        if ours and theirs and not _agree(setting.field, ours, theirs, names):
            found.append(f"{setting.what} {ours} is asked for, the file says {theirs}")
    if given.load_kind and run.load_kind and not _same_load(run, given):
        theirs = run.load_kind if run.load is None else f"{run.load_kind} {run.load:g}"
        found.append(f"the load is said to be {_load_text(given)}, the file says {theirs}")
    for what, sizes, size in (
        ("input", given.input_tokens, run.input_tokens),
        ("output", given.output_tokens, run.output_tokens),
    ):
        if sizes and size and not any(math.isclose(size, one, rel_tol=MAX_TOKEN_COUNT_GAP) for one in sizes):
            found.append(
                f"{what} tokens are said to be {', '.join(f'{one:g}' for one in sizes)}, the file says {size:g}"
            )
    return tuple(found)


def _same_load(run: Run, given: Given) -> bool:
    if given.load_kind != run.load_kind or (given.load is None) != (run.load is None):
        return False
    return math.isclose(given.load or 0.0, run.load or 0.0, rel_tol=SAME_LOAD_TOLERANCE)


def _load_text(given: Given) -> str:
    return given.load_kind if given.load is None else f"{given.load_kind} {given.load:g}"


def _agree(field: str, ours: str | int, theirs: str | int, names: Names) -> bool:
    if isinstance(ours, int) or isinstance(theirs, int):
        return ours == theirs
    lookup: dict[str, Callable[[str], str | None]] = {"gpu": names.gpu, "model": names.model}
    if field in lookup:
        known = lookup[field](theirs)
        # A name that no catalog has is an alias of the deployment, which the user may know better.
        return known is None or known == (lookup[field](ours) or ours)
    if field == "engine":
        return engine_family(str(ours)) == engine_family(str(theirs))
    if field == "precision":
        return {ours.lower(), theirs.lower()} <= {"fp16", "bf16"} or ours.lower() == theirs.lower()
    return ours.lower() == theirs.lower()


def missing_options(run: Run, given: Given, names: Names) -> tuple[str, ...]:
    """Return the options that must be given because neither they nor the file say what was measured."""
    found = []
    for setting in _SETTINGS:
        value = getattr(given.replica, setting.field) or getattr(run.replica, setting.field)
        is_open = not value or (setting.field == "gpu" and names.gpu(str(value)) is None)
        if is_open and setting.field not in _OPTIONAL:
            found.append(setting.option)
    if run.load_kind == "static_batch" and not (run.load or given.load):
        found.append("--batch N")
    elif not (run.load_kind or given.load_kind):
        found.append("--concurrency N, --rate R or --offline")
    if not run.input_tokens and len(given.input_tokens) != 1:
        found.append("--input-tokens N")
    if not run.output_tokens and len(given.output_tokens) != 1:
        found.append("--output-tokens N")
    return tuple(found)


def settled(run: Run, given: Given, names: Names, content: Content) -> MeasuredPoint:
    """Return the point that a run and the user's options make together.

    Raises
    ------
    InputError: listing the options that are missing, or naming where option and file contradict each other.
    """
    where = run.where
    if against := contradictions(run, given, names):
        raise InputError(f"{_sentence('; '.join(against))}.", hint="Leave the option out, or correct it.", where=where)
    if missing := missing_options(run, given, names):
        unknown = run.replica.gpu if not given.replica.gpu and run.replica.gpu else ""
        also = f" (no GPU is known as {unknown!r})" if unknown and "--gpu NAME" in missing else ""
        raise InputError(
            f"The file does not say all of what was measured{also}.", hint=f"Pass {', '.join(missing)}.", where=where
        )
    return _point(run, given, names, content)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _point(run: Run, given: Given, names: Names, content: Content) -> MeasuredPoint:
    def pick(field: str) -> str:
        return str(getattr(given.replica, field) or getattr(run.replica, field))

    inputs = run.input_tokens or given.input_tokens[0]
    outputs = run.output_tokens or given.output_tokens[0]
    rate, tokens = run.rate_rps or None, run.output_tokens_per_s or None
    stated_model = run.published_as or run.replica.model
    model = names.model(pick("model")) or pick("model")
    notes = [*run.notes]
    if run.replica.gpu and names.gpu(run.replica.gpu) is None:
        notes.append(f"{run.replica.gpu} in the file")
    if run.n_failed and run.n_requests:
        notes.append(f"{run.n_failed:g} of {run.n_requests:g} requests failed")
    return MeasuredPoint(
        model=model,
        gpu=names.gpu(pick("gpu")) or pick("gpu"),
        tensor_parallel=int(pick("tensor_parallel")),
        pipeline_parallel=given.replica.pipeline_parallel or run.replica.pipeline_parallel or 1,
        expert_parallel=given.replica.expert_parallel or run.replica.expert_parallel,
        engine=engine_family(pick("engine")),
        engine_version=pick("engine_version"),
        precision=pick("precision").lower(),
        input_tokens=inputs,
        output_tokens=outputs,
        load_kind=run.load_kind or given.load_kind,
        load=run.load if run.load_kind and run.load else given.load,
        rate_rps=rate or (tokens / outputs if tokens else None),
        output_tokens_per_s=tokens or (rate * outputs if rate else None),
        ttft_s=dict(run.ttft_s),
        tpot_s=dict(run.tpot_s),
        e2e_s=dict(run.e2e_s),
        as_of=run.as_of,
        source=run.source or run.tool,
        where=run.where,
        length_dist=run.length_dist,
        slo=run.slo,
        published_as=stated_model if stated_model != model else "",
        source_ref=", ".join(part for part in (_file_name(content.path), run.label) if part),
        source_sha256=content.sha256,
        tool=run.tool,
        tool_version=run.tool_version,
        licence=run.licence,
        sanity=ESTIMATED if run.is_estimate else "unchecked",
        notes="; ".join(notes),
    )


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", maxsplit=1)[-1]


def objections(run: Run, point: MeasuredPoint) -> Iterator[str]:
    """Yield in words why a run must not be taken for what a replica does; nothing if it may."""
    if run.n_requests and run.n_failed > MAX_FAILED_FRACTION * run.n_requests:
        share = run.n_failed / run.n_requests
        yield f"{run.n_failed:g} of {run.n_requests:g} requests failed ({share:.0%}; at most {MAX_FAILED_FRACTION:.0%})"
    yield from _too_large(point)
    rate, tokens = point.rate_rps, point.output_tokens_per_s
    if rate and tokens and abs(rate * point.output_tokens / tokens - 1.0) > MAX_RATE_GAP:
        yield (
            f"{rate:.4g} requests/s of {point.output_tokens:.4g} output tokens are not {tokens:.4g} tokens/s:"
            " one of them has another unit or is not of the whole replica"
        )
    if not (rate or point.ttft_s or point.tpot_s or point.e2e_s):
        yield "neither throughput nor latency was measured"
    yield from _latency_gap(point)
    yield from _too_many_in_flight(point)


def _too_large(point: MeasuredPoint) -> Iterator[str]:
    for name, latencies in (("TTFT", point.ttft_s), ("TPOT", point.tpot_s), ("latency", point.e2e_s)):
        for statistic, value in latencies.items():
            if value > MAX_LATENCY_S:
                yield f"{name} {statistic} of {value:.3g} s is more than a day: the unit is another one"
    for name, value in (
        ("input tokens", point.input_tokens),
        ("output tokens", point.output_tokens),
        ("requests/s", point.rate_rps or 0.0),
        ("tokens/s", point.output_tokens_per_s or 0.0),
    ):
        if value > MAX_TOKENS:
            yield f"{value:.3g} {name} are more than any replica has"


def _latency_gap(point: MeasuredPoint) -> Iterator[str]:
    e2e, tpot = point.e2e_s.get("mean"), point.tpot_s.get("mean")
    if e2e is None or tpot is None:
        return
    parts = point.ttft_s.get("mean", 0.0) + tpot * (point.output_tokens - 1.0)
    if parts and not 1.0 / MAX_LATENCY_FACTOR < e2e / parts < MAX_LATENCY_FACTOR:
        yield (
            f"a mean latency of {e2e:.3g} s and TTFT + TPOT x (output - 1) = {parts:.3g} s contradict each other:"
            " one of them has another unit"
        )


def _too_many_in_flight(point: MeasuredPoint) -> Iterator[str]:
    e2e = point.e2e_s.get("mean")
    if point.load_kind != "concurrency" or not (e2e and point.rate_rps and point.load):
        return
    if point.rate_rps * e2e > MAX_IN_FLIGHT_FACTOR * point.load:
        yield (
            f"{point.rate_rps:.4g} requests/s of {e2e:.4g} s each are {point.rate_rps * e2e:.3g} at a time, not the"
            f" {point.load:g} in flight: one of them has another unit or is not of one replica"
        )
