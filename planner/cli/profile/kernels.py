"""`gpuplan profile kernels`: times a model's own kernels on the GPU at hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import console
from planner.cli.options import STDOUT, ForceOption, JsonOption, check_targets, suffix_of
from planner.errors import DataMissingError, ExitCode, InputError, Where
from planner.units import format_duration, parse_duration_s

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from planner.domain.hardware import GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.profilers.kernels.conclude import Session
    from planner.profilers.kernels.document import StepTimesDocument
    from planner.profilers.kernels.machine import MachineState
    from planner.profilers.kernels.run import Outcome
    from planner.profilers.kernels.shapes import Kernel, ShapeSettings
    from planner.profilers.kernels.timing import DeviceFacts, TorchTimer

SUFFIXES = (".json", ".csv")
UNKNOWN_GPU = "unknown"
"""What --gpu says of a GPU that is not in the catalog."""
DEVICES = ("auto", "cuda", "cpu")
PART_SUFFIX = ".part"
SAVE_EVERY_S = 5.0
"""An interrupted run loses at most so much; nvidia-smi is asked as often."""
TELL_EVERY_S = 10.0
DEFAULT_CONTEXT_TOKENS = 32768
GEMM_NAMES = {"fp16": "bf16"}
"""Formats that are timed under another's name."""


def command(
    model: Annotated[
        str,
        typer.Option(metavar="NAME", help="A model of the library, or the path of a config.json.", show_default=False),
    ],
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The GPU's name in the catalog; default: as the driver names it."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(metavar="FORMAT", help="bf16 or fp8, can be repeated; default: as the model is published."),
    ] = None,
    tp: Annotated[int, typer.Option(min=1, metavar="N", help="Time one GPU's share of N.")] = 1,
    max_batch: Annotated[int, typer.Option(min=2, metavar="N", help="Largest batch of decoding sequences.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=2, metavar="N", help="Most tokens of one step.")] = 8192,
    max_context: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Longest context; default: the model's, 32768 at most."),
    ] = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Stop timing after this long.")] = "5m",
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto or cuda: a GPU; cpu: the processor, to try this out.")
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be timed; needs no GPU.")] = False,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write .json (everything) or .csv (rows for the estimator); can be repeated; - is stdout.",
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> int:
    """Time a model's own layer shapes on the GPU at hand; no weights and no serving engine are needed."""
    from planner.catalog.gpus import load_gpus
    from planner.catalog.models import load_model
    from planner.profilers.kernels.shapes import kernels_to_time

    targets = output or []
    check_targets([*targets, *([STDOUT] if as_json else [])], suffixes=SUFFIXES, force=force)
    budget_s = parse_duration_s(budget)
    if budget_s <= 0:
        raise InputError(f"--budget must be more than nothing, not {budget!r}.", hint="Write it as 5m.")
    if device not in DEVICES:
        raise InputError(f"{device!r} is no device.", hint=f"Use one of {', '.join(DEVICES)}.")
    if gpu not in {None, UNKNOWN_GPU}:
        load_gpus().get(str(gpu))  # so that a wrong name is told before anything is timed
    architecture = load_model(model)
    settings = _settings(architecture, precision, tp, max_batch, max_tokens, max_context)
    if dry_run:
        _list(architecture, kernels_to_time(architecture, settings), as_json=as_json)
        return int(ExitCode.OK)
    session, timer = _open(architecture, settings, gpu, device, budget_s)
    if session.gpu is None and any(suffix_of(target) == ".csv" for target in targets):
        raise DataMissingError(
            f"Rows for the estimator are shares of a GPU's data sheet, and {session.facts.name} has none here.",
            hint="Write .json, or name the GPU with --gpu.",
        )
    return _measure(session, timer, targets, force=force, as_json=as_json)


def _settings(
    model: ModelArchitecture,
    precision: Sequence[str] | None,
    tp: int,
    max_batch: int,
    max_tokens: int,
    max_context: int | None,
) -> ShapeSettings:
    """Return how far the sizes reach, once they are checked against the model."""
    from planner.profilers.kernels.shapes import TIMED_FORMATS, ShapeSettings

    if not precision and model.native_precision not in {*TIMED_FORMATS, *GEMM_NAMES}:
        console.note(f"{model.name} is published in {model.native_precision}, which cannot be timed; bf16 is.")
    asked = precision or ([model.native_precision] if model.native_precision in TIMED_FORMATS else ["bf16"])
    formats = {GEMM_NAMES.get(name, name): None for name in ("bf16", *asked)}
    wrong = [name for name in formats if name not in TIMED_FORMATS]
    if wrong:
        raise InputError(
            f"Matrix products in {wrong[0]} cannot be timed.",
            hint=f"Use {' or '.join(TIMED_FORMATS)}: weights in int4, int8 and mxfp4 are multiplied in bf16, and torch "
            "has no product of nvfp4 weights that could stand for an engine's.",
        )
    if max_context is not None and max_context > model.max_context_tokens:
        raise InputError(
            f"--max-context {max_context} is longer than the {model.max_context_tokens} tokens of {model.name}."
        )
    heads = {group.n_query_heads for group in model.layers if group.kv_elements_per_token}
    if any(n % tp for n in heads):
        raise InputError(f"--tp {tp} does not divide the {', '.join(map(str, sorted(heads)))} heads of {model.name}.")
    return ShapeSettings(
        formats=tuple(formats),
        tensor_parallel=tp,
        max_sequences=max_batch,
        max_tokens=max_tokens,
        max_context_tokens=max_context or min(model.max_context_tokens, DEFAULT_CONTEXT_TOKENS),
        reduce_over=(tp,) if tp > 1 else (),
    )


def _list(model: ModelArchitecture, kernels: Sequence[Kernel], *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        console.print_json({"model": model.name, "kernels": [asdict(kernel) for kernel in kernels]})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("kernel", "format", "in a step", "shapes", "smallest", "largest"):
        table.add_column(title, justify="left" if title in {"kernel", "format"} else "right", overflow="fold")
    groups: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault((kernel.role, kernel.number_format), []).append(kernel)
    for (role, number_format), found in groups.items():
        ordered = sorted(found, key=lambda kernel: kernel.work)
        table.add_row(
            role, number_format, f"{found[0].count:g}", str(len(found)), _size(ordered[0]), _size(ordered[-1])
        )
    console.print_result(table)
    console.note(f"{len(kernels)} shapes of {model.name}; about one in five is held back to check the fit.")


def _size(kernel: Kernel) -> str:
    """Return the size of a shape in words."""
    if kernel.context_tokens:
        return f"{kernel.batch} x {kernel.context_tokens} cached"
    widths = f" x {kernel.width_in}" + (f" x {kernel.width_out}" if kernel.width_out else "") if kernel.width_in else ""
    return (f"{kernel.batch} x " if kernel.batch > 1 else "") + f"{kernel.tokens}{widths}"


def _open(
    model: ModelArchitecture, settings: ShapeSettings, gpu: str | None, device: str, budget_s: float
) -> tuple[Session, TorchTimer]:
    """Return the run to be, and what times it."""
    from datetime import date
    from importlib.metadata import version

    from planner.profilers.kernels.conclude import Session, early_warnings
    from planner.profilers.kernels.machine import read_state
    from planner.profilers.kernels.timing import open_device

    timer = open_device(device)
    states = (read_state(timer.gpu_id),) if timer.gpu_id else ()  # before our own work keeps the GPU busy
    timer.probe()
    facts = timer.facts()
    for name, reason in facts.unsupported_formats.items():
        if name in settings.formats:
            console.note(f"{name} cannot be timed here ({reason}); bf16 is timed.")
    session = Session(
        model=model,
        settings=replace(
            settings,
            formats=tuple(name for name in settings.formats if name not in facts.unsupported_formats),
            reduce_over=_reduce_over(settings.tensor_parallel, facts),
        ),
        facts=facts,
        gpu=_gpu(gpu, facts),
        states=states,
        method=timer.method,
        budget_s=budget_s,
        date=date.today().isoformat(),
        tool_version=version("gpuplan"),
    )
    console.show_warnings(early_warnings(session))
    return session, timer


def _gpu(name: str | None, facts: DeviceFacts) -> GpuSpec | None:
    """Return the catalog's GPU that is timed; None for a processor, or if the user says that it is not in there."""
    from planner.catalog.gpus import load_gpus

    catalog = load_gpus()
    if facts.kind == "cpu":
        if name not in {None, UNKNOWN_GPU}:
            raise InputError(f"--gpu {name} with --device cpu: a processor's times say nothing of a GPU.")
        return None
    if name == UNKNOWN_GPU:
        return None
    if name is not None:
        return catalog.get(name)
    found = catalog.find(facts.name)
    if found is None:
        raise DataMissingError(
            f"The driver calls this GPU {facts.name!r}, which the catalog does not know.",
            hint=f"Name it with --gpu (`gpuplan catalog gpus` lists names), or time it as it is: --gpu {UNKNOWN_GPU}.",
        )
    if found.note:
        console.note(f"{facts.name} is taken for {found.gpu}: {found.note}.")
    return catalog.by_name[found.gpu]


def _reduce_over(tp: int, facts: DeviceFacts) -> tuple[int, ...]:
    """Return the numbers of GPUs to reduce over: powers of two, and `tp`, as far as there are GPUs.

    Processes on one processor can stand for GPUs, to try this out.
    """
    most = tp if facts.kind == "cpu" else facts.n_devices
    if tp > most:
        console.note(f"All-reduces over {tp} GPUs are not timed: torch sees {most}.")
    powers = {2**k for k in range(1, most.bit_length()) if 2**k <= most}
    return tuple(sorted(powers | ({tp} if 1 < tp <= most else set())))


@dataclass(slots=True, kw_only=True)
class _Recorder:
    """Keeps what was timed so far in the part file, and tells the user how it goes."""

    session: Session
    gpu_id: str
    path: Path | None
    n_kernels: int
    start_s: float
    outcomes: list[Outcome]
    states: list[MachineState] = field(default_factory=list)
    saved_s: float = 0.0
    told_s: float = 0.0

    def __call__(self, outcome: Outcome) -> None:
        import time

        from planner.profilers.kernels.machine import read_state

        self.outcomes.append(outcome)
        now = time.perf_counter() - self.start_s
        if now - self.saved_s >= SAVE_EVERY_S:
            self.saved_s = now
            if self.gpu_id:
                self.states.append(read_state(self.gpu_id))
            self.save()
        if now - self.told_s >= TELL_EVERY_S:
            self.told_s = now
            console.note(f"{len(self.outcomes)} of {self.n_kernels} shapes in {format_duration(now)}.")

    def save(self) -> None:
        """Write the part file, if there is one to write."""
        from planner.files.output import write_text
        from planner.profilers.kernels.conclude import part_so_far
        from planner.profilers.kernels.document import to_plain

        if self.path is not None:
            document = part_so_far(self.session, self.outcomes)
            write_text(self.path, console.to_json(to_plain(document)), force=True)


def _measure(session: Session, timer: TorchTimer, targets: Sequence[str], *, force: bool, as_json: bool) -> int:
    """Time, conclude, write and show; keep what was timed if the user stops it."""
    import time

    from planner.profilers.kernels.conclude import conclude
    from planner.profilers.kernels.machine import read_state
    from planner.profilers.kernels.run import time_kernels
    from planner.profilers.kernels.shapes import kernels_to_time

    part = next((Path(target + PART_SUFFIX) for target in targets if target.endswith(".json")), None)
    kernels = kernels_to_time(session.model, session.settings)
    known = _known(part, session)
    recorder = _Recorder(
        session=session,
        gpu_id=timer.gpu_id,
        path=part,
        n_kernels=len(kernels),
        start_s=time.perf_counter(),
        outcomes=list(known.values()),
    )
    try:
        outcomes = time_kernels(
            kernels,
            timer,
            budget_s=session.budget_s,
            clock=time.perf_counter,
            known=known,
            on_outcome=recorder,
        )
    except KeyboardInterrupt:
        recorder.save()
        kept = f"they are in {part}: the same command goes on from there" if part else "nothing is kept without -o"
        console.note(f"{len(recorder.outcomes)} of {len(kernels)} shapes were timed; {kept}.")
        return int(ExitCode.INTERRUPTED)
    if not any(outcome.timing for outcome in outcomes):
        raise InputError(
            "Nothing could be timed.", hint=f"The first shape: {outcomes[0].skipped}. Try a longer --budget."
        )
    states = [*session.states, *recorder.states]
    if timer.gpu_id:
        states.append(read_state(timer.gpu_id))
    document = conclude(replace(session, states=tuple(states), method=timer.method), outcomes)
    _deliver(document, targets, force=force, as_json=as_json)
    if part is not None:
        part.unlink(missing_ok=True)
    is_sound = not any(row.impossible for row in document.kernels)
    return int(ExitCode.OK if is_sound else ExitCode.CHECK_FAILED)


def _known(part: Path | None, session: Session) -> dict[str, Outcome]:
    """Return what an interrupted run of the same command has timed.

    Raises
    ------
    InputError: if the part file is of another model, device or torch, whose timings would not fit.
    """
    from planner.profilers.kernels.conclude import machine_document, settings_document
    from planner.profilers.kernels.document import read_step_times

    if part is None or not part.exists():
        return {}
    document = read_step_times(part)
    pairs = (
        ("model", document.settings.model, settings_document(session).model),
        ("device", document.machine.name, machine_document(session).name),
        ("torch", document.machine.torch_version, machine_document(session).torch_version),
        ("GPU", document.machine.gpu, machine_document(session).gpu),
    )
    for what, old, new in pairs:
        if old != new:
            raise InputError(
                f"This is the part of another run, of {what} {old} and not {new}.",
                hint="Delete it to start anew, or write to another file.",
                where=Where(path=str(part)),
            )
    timed = {row.outcome.kernel.key: row.outcome for row in document.kernels if row.median_s is not None}
    console.note(f"{len(timed)} shapes were timed before and are taken from {part}.")
    return timed


def _deliver(document: StepTimesDocument, targets: Sequence[str], *, force: bool, as_json: bool) -> None:
    from planner.profilers.kernels.document import to_plain
    from planner.profilers.params_file import EfficiencyRow, rows_csv

    for target in targets:
        if suffix_of(target) == ".csv":
            text = rows_csv(EfficiencyRow(**row.model_dump()) for row in document.efficiency)
        else:
            text = console.to_json(to_plain(document))
        console.write_result(target, text, force=force)
    for warning in document.warnings:
        console.logger.warning("Warning %s: %s", warning.code, warning.message)
    if as_json:
        console.print_json(to_plain(document))
    elif STDOUT not in targets:
        console.print_result(*_tables(document))


def _tables(document: StepTimesDocument) -> Iterator[Table | str]:
    from rich.table import Table

    timed = sum(row.median_s is not None for row in document.kernels)
    unit = document.machine.gpu or document.machine.name
    yield f"{document.settings.model} on {unit}: {timed} of {len(document.kernels)} shapes timed"
    rates = Table("", "reached", "of data sheet", box=None, pad_edge=False, title="Rates", title_justify="left")
    shares = {row.parameter: f"{row.value:.0%}" for row in document.efficiency if row.unit.startswith("of ")}
    for name, reached, parameter in _rates(document):
        rates.add_row(name, reached, shares.get(parameter, "-"))
    yield rates
    errors = Table(
        "part", "shapes", "table", "rates", box=None, pad_edge=False, title="Median error on sizes held back",
        title_justify="left",
    )  # fmt: skip
    for error in document.left_out_errors:
        errors.add_row(error.part, str(error.n_shapes), _percent(error.table_median), _percent(error.roofline_median))
    yield errors
    steps = Table(
        "step", "format", "sequences", "tokens", "ms", "by rates", box=None, pad_edge=False, title="Steps",
        title_justify="left",
    )  # fmt: skip
    for step in document.steps:
        roofline = "-" if step.roofline_s is None else f"{step.roofline_s * 1e3:.4g}"
        row = (step.phase, step.number_format, str(step.sequences), str(step.tokens), f"{step.table_s * 1e3:.4g}")
        steps.add_row(*row, roofline)
    yield steps
    if document.rates is not None:
        yield from (f"Not told: {reason}." for reason in document.rates.untold)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _rates(document: StepTimesDocument) -> Iterator[tuple[str, str, str]]:
    """Yield (what, how fast, the efficiency parameter that it is the rate of)."""
    rates = document.rates
    if rates is None:
        return
    for name, flops in rates.gemm_flops_per_s.items():
        yield f"matrix products, {name}", f"{flops / 1e12:.4g} TFLOP/s", f"gemm_fraction_{name}"
    rows = (
        ("reading weights", rates.weight_bytes_per_s, 1e9, "GB/s", "bandwidth_fraction"),
        ("reading the KV cache", rates.kv_bytes_per_s, 1e9, "GB/s", "kv_bandwidth_fraction"),
        ("attention over prompts", rates.attention_flops_per_s, 1e12, "TFLOP/s", "attention_fraction"),
        ("all-reduce", rates.link_bytes_per_s, 1e9, "GB/s", "link_fraction"),
        ("all-reduce latency", rates.allreduce_latency_s, 1e-6, "us", ""),
        ("launch", rates.launch_s, 1e-6, "us", ""),
    )
    for name, value, unit, unit_name, parameter in rows:
        if value is not None:
            yield name, f"{value / unit:.4g} {unit_name}", parameter
