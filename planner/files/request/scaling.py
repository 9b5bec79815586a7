"""Scale to zero: what a request says of giving a service back while nobody asks for it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from planner.errors import InputError
from planner.files.schema import Bytes, BytesPerS, DurationS, Strict, Usd


class WaitForMachine(Strict):
    """How long a rented machine takes to be there."""

    p50: DurationS = Field(description="Median.")
    p99: DurationS = Field(description="The longest of a hundred.")

    @field_validator("p99")
    @classmethod
    def _in_order(cls, p99: float, info: ValidationInfo) -> float:
        p50 = info.data.get("p50", 0.0)
        if p99 < p50:
            raise InputError(f"p99 is {p99:g} s, less than the median of {p50:g} s.", hint="Swap them.")
        return p99


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
    provision: DurationS | WaitForMachine | None = Field(
        default=None,
        description="Until a rented machine is there, always or with a tail (`{p50: 60s, p99: 180s}`); without it only"
        " pay-per-use offers are compared.",
    )
    image: Bytes | None = Field(
        default=None,
        description="Size of the engine's image, pulled by every rented machine; default: it is there. Containers of"
        " serverless clouds have theirs.",
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

    @property
    def provision_s(self) -> tuple[float, float] | None:
        """Median and p99 of the wait for a rented machine, without its image; None = not stated."""
        if self.provision is None or isinstance(self.provision, WaitForMachine):
            return None if self.provision is None else (self.provision.p50, self.provision.p99)
        return self.provision, self.provision
