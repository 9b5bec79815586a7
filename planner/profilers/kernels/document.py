"""step-times.json: what was timed, where and how, and what it implies; written whole, and as the part of a run so far.

Units stand in the names; a null means "not known", never "failed".
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import ConfigDict, Field, ValidationError

from planner.errors import InputError, UnsupportedFormatError, Where
from planner.files.documents import load_document, validation_error
from planner.files.parts import Count, NonNegative, Part, Positive
from planner.profilers.kernels.run import Outcome
from planner.profilers.kernels.sampling import Timing
from planner.profilers.kernels.shapes import Kernel, KernelKind

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA_VERSION: Final = "1"
KIND: Final = "StepTimes"
MAX_BYTES = 50_000_000


class SettingsDocument(Part):
    """What was to be timed."""

    model: str = Field(description="Canonical name of the model, or the path of its config.json.")
    formats: tuple[str, ...] = Field(description="Number formats of the linear layers that were timed.")
    tensor_parallel: int = Field(ge=1, description="Shapes are those of one GPU of a group of so many.")
    max_sequences: int = Field(ge=1, description="Largest batch of decoding sequences.")
    max_tokens: int = Field(ge=1, description="Most tokens of one step.")
    max_context_tokens: int = Field(ge=1, description="Longest prompt and longest cached context.")
    reduce_over: tuple[int, ...] = Field(default=(), description="Numbers of GPUs that all-reduces were timed over.")


class MachineDocument(Part):
    """What it was timed on."""

    device: Literal["cuda", "cpu"] = Field(description="cuda: a GPU, AMD's under ROCm included; cpu: a processor.")
    name: str = Field(description="As the driver names it.")
    gpu: str | None = Field(description="Canonical name in the catalog; null for a processor, or a GPU not in it.")
    memory_bytes: NonNegative = Field(description="Of the device, as torch reports it.")
    cache_bytes: NonNegative = Field(description="Last-level cache that operands were rotated through.")
    n_devices: int = Field(ge=1, description="GPUs that torch saw.")
    half_format: Literal["bf16", "fp16"] = Field(
        description="What was timed as bf16: fp16 on GPUs without bf16 arithmetic."
    )
    torch_version: str = Field(description="Version of torch.")
    runtime: str = Field(description='Of the GPU\'s runtime, e.g. "CUDA 12.8"; "" on a processor.')
    driver_version: str | None = Field(default=None, description="Of the GPU's driver.")
    sm_clock_mhz: NonNegative | None = Field(default=None, description="Clock at the end of the run.")
    max_sm_clock_mhz: NonNegative | None = Field(default=None, description="Highest clock that the GPU is allowed.")
    memory_clock_mhz: NonNegative | None = Field(default=None, description="Clock of the memory at the end of the run.")
    power_limit_w: NonNegative | None = Field(default=None, description="Power limit that was set.")
    slowdowns: tuple[str, ...] = Field(default=(), description="What held clocks down at any time that was looked.")


class ProvenanceDocument(Part):
    """How and when."""

    tool: str = Field(default="gpuplan profile kernels", description="What measured.")
    tool_version: str = Field(description="Version of gpuplan.")
    date: str = Field(description="YYYY-MM-DD.")
    method: str = Field(description="How calls were timed.")
    budget_s: Positive = Field(description="Time that the run was given.")


class KernelDocument(Part):
    """One shape: its timing, or why it has none."""

    kind: KernelKind = Field(description="Kind of kernel.")
    role: str = Field(description="Which of the model's kernels of that kind.")
    number_format: str = Field(default="bf16", description="Number format of the operands.")
    count: Positive = Field(default=1.0, description="Times that one step of the whole model runs it.")
    tokens: int = Field(default=1, ge=1, description="Rows: tokens, sequences at the head, or the prompt's length.")
    step_tokens: int = Field(
        default=1, ge=1, description="Tokens of the whole step; differs from `tokens` for experts."
    )
    batch: int = Field(default=1, ge=1, description="Experts touched, sequences that decode, or GPUs that reduce.")
    context_tokens: Count = Field(default=0, description="Cached tokens of each decoding sequence.")
    width_in: Count = Field(default=0, description="Columns of a product's first operand.")
    width_out: Count = Field(default=0, description="Columns of its result.")
    n_query_heads: Count = Field(default=0, description="Query heads on one GPU.")
    n_kv_heads: Count = Field(default=0, description="Key-value heads on one GPU.")
    head_dim: Count = Field(default=0, description="Width of a query and key head.")
    value_head_dim: Count = Field(default=0, description="Width of a value head.")
    is_check: bool = Field(default=False, description="Held back from the fit and from the table.")
    median_s: Positive | None = Field(default=None, description="Median time of one call; null if it was skipped.")
    low_s: Positive | None = Field(default=None, description="Lower end of the 95% interval of the median.")
    high_s: Positive | None = Field(default=None, description="Upper end of that interval.")
    n_samples: Count = Field(default=0, description="Samples taken.")
    calls_per_sample: Count = Field(default=0, description="Calls in each of them.")
    is_settled: bool = Field(default=False, description="Whether half the interval is within 3% of the median.")
    skipped: str = Field(default="", description="Why there is no timing.")
    impossible: str = Field(default="", description="Why the timing is not believed, and left out of all that follows.")

    @property
    def outcome(self) -> Outcome:
        """The outcome that this row was written from."""
        plain = {name: value for name, value in self if name in Kernel.__dataclass_fields__}
        kernel = Kernel(**plain)
        if self.median_s is None or self.low_s is None or self.high_s is None:
            return Outcome(kernel=kernel, skipped=self.skipped)
        timing = Timing(
            median_s=self.median_s,
            low_s=self.low_s,
            high_s=self.high_s,
            n_samples=self.n_samples,
            calls_per_sample=self.calls_per_sample,
            is_settled=self.is_settled,
        )
        return Outcome(kernel=kernel, timing=timing)


class RatesDocument(Part):
    """What the GPU reached, fitted to the timings in the form of the step-time model."""

    launch_s: Positive | None = Field(default=None, description="Shortest time between two kernels.")
    gemm_flops_per_s: dict[str, Positive] = Field(
        default_factory=dict, description="Matrix products of linear layers, elementwise kernels included, by format."
    )
    weight_bytes_per_s: Positive | None = Field(default=None, description="Reading weights.")
    attention_flops_per_s: Positive | None = Field(default=None, description="Attention over prompts.")
    kv_bytes_per_s: Positive | None = Field(default=None, description="Reading keys and values in decoding.")
    allreduce_latency_s: NonNegative | None = Field(default=None, description="Of one all-reduce over two GPUs.")
    link_bytes_per_s: Positive | None = Field(default=None, description="Of the link in all-reduces.")
    untold: tuple[str, ...] = Field(default=(), description="What the timings do not tell, and why.")


class LeftOutErrorDocument(Part):
    """How far off the table and the fitted rates are at the shapes that were held back, as parts of the time."""

    part: str = Field(description="Part of a step.")
    n_shapes: Count = Field(description="Shapes held back.")
    table_median: NonNegative | None = Field(description="Median error of the table.")
    table_worst: NonNegative | None = Field(description="Largest error of the table.")
    roofline_median: NonNegative | None = Field(description="Median error of the fitted rates.")
    roofline_worst: NonNegative | None = Field(description="Largest error of the fitted rates.")


class StepDocument(Part):
    """One step of the whole model, without an engine's own overhead."""

    phase: Literal["decode", "prefill"] = Field(description="What the step does.")
    number_format: str = Field(description="Of the linear layers.")
    sequences: int = Field(ge=1, description="Sequences that get their next token.")
    tokens: int = Field(ge=1, description="Cached tokens of each sequence, or the prompt's length.")
    table_s: Positive = Field(description="From the timed kernels.")
    roofline_s: Positive | None = Field(description="From the fitted rates; null where they lack one.")


class EfficiencyRowDocument(Part):
    """A row in the form of profiles/efficiency.csv, for this very GPU."""

    parameter: str = Field(description="As there.")
    scope: str = Field(description="The GPU's name, or that and its link, format or size: GPU/bf16@64 tokens.")
    value: NonNegative = Field(description="The fitted value.")
    unit: str = Field(description="Its unit.")
    source: str = Field(description="What was run.")
    reason: str = Field(description="What it was fitted to.")


class NoticeDocument(Part):
    """Something to know before relying on the figures; docs/reference/warnings.md lists the codes."""

    code: str = Field(pattern=r"^W\d{3}$", description="Stable code.")
    message: str = Field(description="What was found.")
    observed: int | float | str | None = Field(default=None, description="The value that was seen.")
    threshold: int | float | str | None = Field(default=None, description="The value that it was compared with.")


class StepTimesDocument(Part):
    """Times of a model's own kernels on one kind of GPU, and what they imply."""

    model_config = ConfigDict(title="gpuplan StepTimes")

    schema_version: Literal["1"] = Field(description="Version of this format.")
    kind: Literal["StepTimes"] = Field(description="Tells it from other documents.")
    is_complete: bool = Field(description="False: an interrupted run's part, that the same command goes on from.")
    settings: SettingsDocument = Field(description="What was to be timed.")
    machine: MachineDocument = Field(description="What it was timed on.")
    provenance: ProvenanceDocument = Field(description="How and when.")
    kernels: tuple[KernelDocument, ...] = Field(description="Every shape, timed or not.")
    rates: RatesDocument | None = Field(default=None, description="Null while the run is not complete.")
    left_out_errors: tuple[LeftOutErrorDocument, ...] = Field(
        default=(), description="How far off it is on unseen sizes."
    )
    steps: tuple[StepDocument, ...] = Field(default=(), description="The step-time table.")
    efficiency: tuple[EfficiencyRowDocument, ...] = Field(
        default=(), description="What the estimator takes; empty for a processor, or a GPU that is not in the catalog."
    )
    warnings: tuple[NoticeDocument, ...] = Field(default=(), description="What to know before relying on the figures.")


def kernel_document(outcome: Outcome, *, impossible: str = "") -> KernelDocument:
    """Return the row of one outcome."""
    timing = {} if outcome.timing is None else asdict(outcome.timing)
    return KernelDocument(**asdict(outcome.kernel), **timing, skipped=outcome.skipped, impossible=impossible)


def to_plain(document: StepTimesDocument) -> dict[str, Any]:
    """Return the document as what JSON can hold."""
    plain: dict[str, Any] = document.model_dump(mode="json")
    return plain


def read_step_times(path: Path) -> StepTimesDocument:
    """Return the document in the file `path`.

    Raises
    ------
    InputError: if it cannot be read, is no such document, or breaks the schema; names the field.
    UnsupportedFormatError: if its `schema_version` is none that this gpuplan reads.
    """
    document = load_document(path, max_bytes=MAX_BYTES)
    data = document.data
    where = Where(path=document.path)
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise InputError(f"This is no {KIND} document.", hint="`gpuplan profile kernels` writes one.", where=where)
    if data.get("schema_version") != SCHEMA_VERSION:
        raise UnsupportedFormatError(
            f"Its schema_version is {data.get('schema_version')!r}; this gpuplan reads {SCHEMA_VERSION!r}.", where=where
        )
    try:
        return StepTimesDocument.model_validate(data)
    except ValidationError as error:
        raise validation_error(error, StepTimesDocument, document) from error


def step_times_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of step-times.json."""
    return StepTimesDocument.model_json_schema(mode="validation")
