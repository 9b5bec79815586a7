"""Scale to zero: what a request says of giving a service back while nobody asks for it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.files.schema import BytesPerS, DurationS, Strict, Usd


class ScaleToZero(Strict):
    """Give a service back while nobody asks for it, where that is cheaper; needs arrival times, or adapters."""

    mode: Literal["decide", "compare"] = Field(
        default="decide",
        description="decide: give the service back if fleet and what is given back then cost less together; compare:"
        " only show what it would cost.",
    )
    storage: BytesPerS = Field(description="Read rate of where the weights lie, for each replica that starts.")
    loader: str = Field(
        default="safetensors",
        description="What loads them: safetensors, runai-streamer, tensorizer or serverlessllm.",
    )
    graphs: bool = Field(
        default=True, description="Every start compiles and captures CUDA graphs, as vLLM does by default."
    )
    provision: DurationS | None = Field(
        default=None,
        description="Until a rented machine is there; without it only pay-per-use offers are compared.",
    )
    recorded: DurationS | None = Field(
        default=None,
        description="How long the trace was recorded for, from its first request on; default: to its last request, so"
        " that the idle time after it is not counted.",
    )
    missed: Usd = Field(default=0.0, description="What a request is worth that misses an objective.")
    clouds: list[str] | None = Field(
        default=None,
        description="Only these serverless clouds; default: those of `catalog.providers` and of your `files`, or all of"
        " `gpuplan catalog pay-per-use` where no provider is named. Where `catalog.regions` is set, or CPU and memory"
        " may be billed on top, only clouds that are named here are chosen.",
    )
    files: list[str] = Field(default=[], description="Your own pay-per-use offers, as CSV.")
