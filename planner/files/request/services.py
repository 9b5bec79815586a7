"""Services of a request: a model, its traffic and its objectives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from planner.domain.hardware import PowerCap
from planner.errors import InputError
from planner.files.request.adapters import Adapters
from planner.files.request.egress import Users
from planner.files.request.scaling import ScaleToZero
from planner.files.schema import BytesPerS, Fraction, PowerCapField, RateRps, Strict
from planner.files.slo import SloField


def as_list(value: Any) -> Any:  # noqa: ANN401 - whatever the document holds
    """Return a lone name or number as a list of one."""
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


Precision = Literal["bf16", "fp16", "fp8", "int8", "int4", "nvfp4", "mxfp4"]
Degree = Annotated[int, Field(ge=1, le=64, strict=True)]


class Engine(Strict):
    """The serving engine and the settings of it that change throughput."""

    name: str = Field(
        default="vllm",
        description="vllm, sglang, tensorrt-llm, lmdeploy, tgi or s-lora, or one that profiles.files measured; "
        "measured profiles are used only where they match it.",
    )
    version: str = Field(default="", description="Engine version, for the record.")
    max_num_seqs: int = Field(default=256, ge=1, description="Most sequences in one batch (vLLM's --max-num-seqs).")
    max_num_batched_tokens: int = Field(
        default=8192, ge=1, description="Token budget of one step (vLLM's --max-num-batched-tokens)."
    )
    power_caps: Annotated[list[PowerCapField], BeforeValidator(as_list), Field(min_length=1)] = Field(
        default=[PowerCap(tdp_fraction=1.0)],
        description="Power limits per GPU that compete: parts of the TDP, or watts.",
        examples=[["100%", "70%", "350W"]],
        json_schema_extra={"default": ["100%"]},
    )
    kv_transfer: BytesPerS | None = Field(
        default=None,
        description="With disaggregate: rate at which one instance sends KV caches, and receives them. Default: the "
        "network that the catalog states of the instance, else 10 Gbit/s.",
    )


class Parallelism(Strict):
    """How one replica may be spread over the GPUs of one instance; all given degrees compete."""

    tp: Annotated[list[Degree], BeforeValidator(as_list), Field(min_length=1)] = Field(
        default=[1, 2, 4, 8], description="Tensor-parallel degrees to consider."
    )
    pp: Annotated[list[Degree], BeforeValidator(as_list), Field(min_length=1)] = Field(
        default=[1], description="Pipeline-parallel degrees to consider."
    )


class Columns(Strict):
    """Names of the columns of a generic CSV or Parquet trace."""

    arrival: str | None = Field(
        default=None,
        description="Arrival time: a date and time, or a number with its unit: 'ts:ms', or a column called arrival_s.",
    )
    input: str = Field(description="Prompt tokens.")
    output: str = Field(description="Generated tokens.")


class Grid(Strict):
    """How requests are put into size buckets."""

    kind: Literal["melange", "adaptive", "edges"] = Field(
        default="melange", description="Mélange's 10 x 6 ranges, ranges fitted to the trace, or your own edges."
    )
    rows: int = Field(default=10, ge=1, le=100, description="Input ranges of the adaptive grid.")
    columns: int = Field(default=6, ge=1, le=100, description="Output ranges of the adaptive grid.")
    input_edges: list[int] | None = Field(default=None, description="Upper edges in tokens, ascending (kind: edges).")
    output_edges: list[int] | None = Field(default=None, description="Upper edges in tokens, ascending (kind: edges).")

    @model_validator(mode="after")
    def _edges_go_with_their_kind(self) -> Grid:
        has_edges = self.input_edges is not None and self.output_edges is not None
        if (self.kind == "edges") != has_edges:
            raise InputError("input_edges and output_edges belong to kind: edges, both of them.")
        return self


class Constant(Strict):
    """Requests that are all of one size."""

    input_tokens: float = Field(gt=0, description="Prompt tokens of every request.")
    output_tokens: float = Field(gt=0, description="Generated tokens of every request.")


class Workload(Strict):
    """What is asked of a service. Exactly one of trace, histogram and constant."""

    trace: str | None = Field(
        default=None, description="A trace file, format detected by content; or bundled:NAME for one that ships."
    )
    histogram: str | None = Field(default=None, description="A file with request sizes and their counts or shares.")
    constant: Constant | None = Field(default=None, description="All requests of one size.")
    format: str | None = Field(default=None, description="Trace format, where detection by content fails.")
    columns: Columns | None = Field(default=None, description="Column names of a generic CSV or Parquet trace.")
    skip_bad_rows: bool = Field(default=False, description="Drop and count malformed rows instead of stopping.")
    rate: RateRps | None = Field(
        default=None, description="Mean rate to plan for; the trace is rescaled to it. Needed without a trace."
    )
    peak: str | None = Field(
        default=None,
        description="Plan for a busy window, not the mean: 'p99 of 1m', 'max of 10s'.",
        examples=["p99 of 1m", "max of 10s"],
    )
    by_hour: str | None = Field(
        default=None,
        description="How the rate changes over the horizon: a CSV with the columns hour and rate_rps, or hour and"
        " factor (of the rate); or bundled:NAME for one that ships. Default: the trace's own rates.",
        examples=["demand.csv", "bundled:servegen_m_large"],
    )
    grid: Grid = Field(default=Grid(), description="How requests are put into size buckets.")

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Workload:
        sources = [name for name in ("trace", "histogram", "constant") if getattr(self, name) is not None]
        if len(sources) != 1:
            found = " and ".join(sources) or "none"
            raise InputError(f"A workload needs exactly one of trace, histogram and constant; found {found}.")
        if sources != ["trace"] and self.peak is not None:
            raise InputError("peak needs a trace with arrival times.", hint="Raise the rate instead.")
        return self

    def check_rate(self) -> None:
        """Refuse a workload that says how large requests are and not how many there are.

        Raises
        ------
        InputError: if nothing says its rate.
        """
        if self.trace is None and self.rate is None and self.by_hour is None:
            source = "histogram" if self.constant is None else "constant"
            raise InputError(f"A workload from a {source} says nothing of time: give its rate.", hint="rate: 30 req/s")


Spares = Annotated[int, Field(ge=1, le=10, strict=True)]


class MaxShare(Strict):
    """The largest part of a service's requests that any one of these may serve."""

    provider: Fraction | None = Field(default=None, le=1.0, description="Any one provider.")
    region: Fraction | None = Field(default=None, le=1.0, description="Any one region of a provider.")
    zone: Fraction | None = Field(default=None, le=1.0, description="Any one zone of a region.")
    offer: Fraction | None = Field(default=None, le=1.0, description="Any one offer.")
    gpu: Fraction | None = Field(default=None, le=1.0, description="Any one GPU type.")


class SpotShare(Strict):
    """How much of a service may depend on spot capacity."""

    max: Fraction = Field(le=1.0, description="Largest part of a service's requests that spot capacity may serve.")


class Service(Strict):
    """One model that serves one kind of traffic under its objectives."""

    name: str = Field(min_length=1, description="Your name for it.")
    model: str = Field(
        min_length=1, description="A name in the model library (`gpuplan models list`), or the path of a config.json."
    )
    precision: Annotated[list[Precision], BeforeValidator(as_list), Field(min_length=1)] | None = Field(
        default=None,
        description="Number formats of the weights that compete; default: the one the model is published in.",
    )
    engine: Engine = Field(default=Engine(), description="The serving engine.")
    parallelism: Parallelism = Field(default=Parallelism(), description="How a replica may be spread over GPUs.")
    adapters: Adapters | None = Field(
        default=None,
        description="Low-rank adapters (LoRA) of the model, which requests are for. Their rates add up to the"
        " workload's, which may be left out; it gives the sizes of all their requests.",
        examples=[{"file": "adapters.csv", "isolation": "shared-process"}],
    )
    workload: Workload = Field(description="What is asked of it.")
    slo: list[SloField] = Field(min_length=1, description="Service-level objectives; all must hold.")
    disaggregate: Literal["never", "allowed", "only"] = Field(
        default="never",
        description="Whether prompts and answers may, or must, be served by replicas of their own (prefill and decode "
        "pools), the KV cache passing between them within a region.",
    )
    scale_to_zero: ScaleToZero | None = Field(
        default=None,
        description="Give it back while nobody asks where that is cheaper in all and holds its objectives, cold starts"
        " included; the fleet is then planned for the others.",
        examples=[{"storage": "2 GB/s", "missed": "0.01 USD"}],
    )
    priority: int = Field(
        default=1,
        ge=1,
        le=100,
        strict=True,
        description="1 = most important; with constraints.shed: allowed, larger numbers lose requests first.",
    )
    max_share: MaxShare | None = Field(
        default=None, description="Spread of this service, where it differs from the fleet's."
    )
    spot_share: SpotShare | None = Field(
        default=None, description="Spot share of this service, where it differs from the fleet's."
    )
    users: Users | None = Field(
        default=None,
        description="Region of the users, or the part of them in each ({us-east-1: 70%, eu-west-1: 30%}): what other"
        " regions serve costs catalog.egress.",
    )
    spare_replicas: Annotated[int, Field(ge=0, le=10, strict=True)] | None = Field(
        default=None, description="Spare replicas of this service, where they differ from the fleet's; 0 = none."
    )

    @field_validator("workload")
    @classmethod
    def _something_says_the_rate(cls, workload: Workload, info: ValidationInfo) -> Workload:
        if info.data.get("adapters") is None:
            workload.check_rate()
        return workload
