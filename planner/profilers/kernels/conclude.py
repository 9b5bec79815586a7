"""From outcomes to the document: what is believed, what it implies, and what to know about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from planner.domain.provenance import Warning_
from planner.profilers.kernels.document import (
    KIND,
    SCHEMA_VERSION,
    EfficiencyRowDocument,
    LeftOutErrorDocument,
    MachineDocument,
    NoticeDocument,
    ProvenanceDocument,
    RatesDocument,
    SettingsDocument,
    StepDocument,
    StepTimesDocument,
    kernel_document,
)
from planner.profilers.kernels.fit import efficiency_rows, fit_rates, impossible, out_of_order
from planner.profilers.kernels.machine import NORMAL_UNDER_LOAD, MachineState, busy_reason
from planner.profilers.kernels.run import Outcome
from planner.profilers.kernels.table import left_out_errors, steps, whole_formats
from planner.profilers.params_file import COLUMNS
from planner.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from planner.domain.hardware import GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.profilers.kernels.shapes import ShapeSettings
    from planner.profilers.kernels.timing import DeviceFacts

MEMORY_TOLERANCE_FRACTION = 0.12
"""Drivers keep a little back, and catalogs round: memory that differs by more is another GPU's."""

UNSETTLED_FRACTION = 0.2
"""From this part of the shapes on, timings that did not settle are worth a word."""

MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Everything about a run but its outcomes."""

    model: ModelArchitecture
    settings: ShapeSettings
    facts: DeviceFacts
    gpu: GpuSpec | None
    """None: a processor, or a GPU that is not in the catalog."""
    states: tuple[MachineState, ...]
    """Of the GPU: before the run, during it and after it."""
    method: str
    budget_s: float
    date: str
    """YYYY-MM-DD."""
    tool_version: str


def settings_document(session: Session) -> SettingsDocument:
    """Return what was to be timed."""
    return SettingsDocument(model=session.model.name, **asdict(session.settings))


def machine_document(session: Session) -> MachineDocument:
    """Return what it is timed on."""
    facts, last = session.facts, session.states[-1] if session.states else MachineState()
    slowdowns = dict.fromkeys(name for state in session.states for name in state.slowdowns)
    return MachineDocument(
        device="cpu" if facts.kind == "cpu" else "cuda",
        name=facts.name,
        gpu=None if session.gpu is None else session.gpu.name,
        memory_bytes=facts.memory_bytes,
        cache_bytes=facts.cache_bytes,
        n_devices=facts.n_devices,
        half_format="fp16" if facts.half_dtype == "fp16" else "bf16",
        torch_version=facts.torch_version,
        runtime=facts.runtime,
        driver_version=last.driver_version,
        sm_clock_mhz=last.sm_clock_mhz,
        max_sm_clock_mhz=last.max_sm_clock_mhz,
        memory_clock_mhz=last.memory_clock_mhz,
        power_limit_w=last.power_limit_w,
        slowdowns=tuple(slowdowns),
    )


def part_so_far(session: Session, outcomes: Iterable[Outcome]) -> StepTimesDocument:
    """Return the document of a run that is not complete: timings alone."""
    return StepTimesDocument(
        schema_version=SCHEMA_VERSION,
        kind=KIND,
        is_complete=False,
        settings=settings_document(session),
        machine=machine_document(session),
        provenance=_provenance(session),
        kernels=tuple(kernel_document(outcome) for outcome in outcomes),
    )


def conclude(session: Session, outcomes: Sequence[Outcome]) -> StepTimesDocument:
    """Return the document of a complete run; timings that the data sheet rules out have no part in what follows."""
    wrong = {} if session.gpu is None else impossible(outcomes, session.gpu)
    believed = tuple(
        Outcome(kernel=outcome.kernel, skipped=wrong[outcome.kernel.key]) if outcome.kernel.key in wrong else outcome
        for outcome in outcomes
    )
    formats, tp = session.settings.formats, session.settings.tensor_parallel
    rates = fit_rates(believed, formats)
    table = [
        step
        for name in whole_formats(believed, formats)
        for step in steps(session.model, believed, rates, number_format=name, tensor_parallel=tp)
    ]
    source = (
        f"gpuplan profile kernels of {session.date}: {session.model.name} on {session.facts.name}; "
        f"torch {session.facts.torch_version}"
    )
    rows = (
        ()
        if session.gpu is None
        else efficiency_rows(rates, session.gpu, session.model, source=source, tensor_parallel=tp)
    )
    errors = left_out_errors(believed, rates, formats=formats, tensor_parallel=tp)
    return StepTimesDocument(
        schema_version=SCHEMA_VERSION,
        kind=KIND,
        is_complete=True,
        settings=settings_document(session),
        machine=machine_document(session),
        provenance=_provenance(session),
        kernels=tuple(kernel_document(outcome, impossible=wrong.get(outcome.kernel.key, "")) for outcome in outcomes),
        rates=RatesDocument(**{name: getattr(rates, name) for name in RatesDocument.model_fields}),
        left_out_errors=tuple(LeftOutErrorDocument(**asdict(error)) for error in errors),
        steps=tuple(StepDocument(**asdict(step)) for step in table),
        efficiency=tuple(EfficiencyRowDocument(**{name: getattr(row, name) for name in COLUMNS}) for row in rows),
        warnings=tuple(NoticeDocument(**asdict(warning)) for warning in _warnings(session, outcomes, wrong)),
    )


def _provenance(session: Session) -> ProvenanceDocument:
    return ProvenanceDocument(
        tool_version=session.tool_version, date=session.date, method=session.method, budget_s=session.budget_s
    )


def _named(keys: Sequence[str]) -> str:
    more = len(keys) - MOST_NAMED
    return "; ".join(keys[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def early_warnings(session: Session) -> list[Warning_]:
    """Return what can be said before anything is timed: somebody else's work, or another GPU than was named."""
    found = []
    busy = busy_reason(session.states[0]) if session.states else ""
    if busy:
        found.append(
            Warning_(
                code="W521",
                message=f"Somebody else uses the GPU: {busy}. Times will be too long.",
                observed=session.states[0].memory_used_bytes,
            )
        )
    gpu, memory = session.gpu, session.facts.memory_bytes
    if gpu is not None and abs(memory / gpu.memory_bytes - 1.0) > MEMORY_TOLERANCE_FRACTION:
        found.append(
            Warning_(
                code="W526",
                message=f"{session.facts.name} is taken for {gpu.name}, but has {format_bytes(memory)} of memory and "
                f"not {format_bytes(gpu.memory_bytes)}. Name it with --gpu.",
                observed=memory,
                threshold=gpu.memory_bytes,
            )
        )
    return found


def _warnings(session: Session, outcomes: Sequence[Outcome], wrong: Mapping[str, str]) -> list[Warning_]:
    found = early_warnings(session)
    if any(state.is_throttled for state in session.states):
        limits = {name for state in session.states for name in _faults(state)}
        found.append(
            Warning_(
                code="W522",
                message=f"The GPU's clocks were held down: {', '.join(sorted(limits))}. Times are too long.",
                observed=session.states[-1].sm_clock_mhz,
                threshold=session.states[-1].max_sm_clock_mhz,
            )
        )
    if wrong:
        first = next(iter(wrong))
        found.append(
            Warning_(
                code="W523",
                message=f"{len(wrong)} timings are faster than the data sheet allows and are left out ({first}: "
                f"{wrong[first]}). Is --gpu right?",
                observed=len(wrong),
                threshold=0,
            )
        )
    skipped: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.timing is None:
            skipped.setdefault(outcome.skipped, []).append(outcome.kernel.key)
    found += [
        Warning_(code="W524", message=f"{len(keys)} shapes were skipped, {reason}: {_named(keys)}.", observed=len(keys))
        for reason, keys in skipped.items()
    ]
    return found + _noise(outcomes)


def _faults(state: MachineState) -> tuple[str, ...]:
    mask = state.slowdown_mask & ~NORMAL_UNDER_LOAD
    return MachineState(slowdown_mask=mask).slowdowns


def _noise(outcomes: Sequence[Outcome]) -> list[Warning_]:
    timed = [outcome for outcome in outcomes if outcome.timing is not None]
    unsettled = [outcome.kernel.key for outcome in timed if outcome.timing and not outcome.timing.is_settled]
    found = []
    if len(unsettled) > UNSETTLED_FRACTION * len(timed):
        found.append(
            Warning_(
                code="W525",
                message=f"{len(unsettled)} of {len(timed)} timings are not known to within 3%: {_named(unsettled)}. "
                "Is the machine quiet? A longer --budget helps against noise.",
                observed=len(unsettled) / len(timed),
                threshold=UNSETTLED_FRACTION,
            )
        )
    disorder = out_of_order(outcomes)
    if disorder:
        found.append(
            Warning_(
                code="W525",
                message=f"Attention took less time than with half the work: {_named(disorder)}.",
                observed=len(disorder),
                threshold=0,
            )
        )
    return found
