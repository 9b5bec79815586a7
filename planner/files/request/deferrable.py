"""Work that can wait: jobs with a deadline beside the services."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from planner.errors import InputError
from planner.files.request.services import Constant, Engine, Parallelism, Precision, as_list
from planner.files.schema import Fraction, Strict
from planner.units import parse_duration_s

_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A time of the day, or a time from now."""

    seconds: float
    """Since midnight, which is when a horizon starts; or since now."""
    is_clock: bool


def parse_moment(text: Any) -> Moment:  # noqa: ANN401 - whatever the document holds
    """Return a moment: a time of the day, or a duration from now or from the start of the horizon.

    Raises
    ------
    InputError: if it is neither.

    Examples
    --------
    >>> parse_moment("06:30").seconds, parse_moment("8h").seconds
    (23400.0, 28800.0)
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise InputError(
            f"{text!r} is neither a time of the day nor a duration with a unit.",
            hint='Write a time of the day in quotes ("22:00": without them, files may read it as 1320), or 8h.',
        )
    match = _CLOCK.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        seconds = parse_duration_s(text)
        if seconds < 0:
            raise InputError(f"It must not be in the past, not {text!r}.")
        return Moment(seconds=seconds, is_clock=False)
    seconds = int(match[1]) * 3600.0 + int(match[2]) * 60.0
    if seconds > 86400.0 or int(match[2]) > 59:
        raise InputError(
            f"{text!r} is no time of the day.", hint='Write "00:00" to "24:00"; a day and more as a duration: 30h.'
        )
    return Moment(seconds=seconds, is_clock=True)


MomentField = Annotated[
    Moment,
    BeforeValidator(parse_moment),
    WithJsonSchema(
        {
            "type": "string",
            "description": "A time of the horizon's first day, or a duration from now or from its start.",
            "examples": ["06:00", "8h"],
        }
    ),
]

DEFAULT_SEQUENCE_TOKENS = 2048
"""Length of training sequences where nothing is said; longer ones cost more attention and memory."""

Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class JobSizes(Strict):
    """How large the requests of a job are. Exactly one of constant and histogram."""

    constant: Constant | None = Field(default=None, description="All requests of one size.")
    histogram: str | None = Field(default=None, description="A file with request sizes and their counts or shares.")

    @model_validator(mode="after")
    def _exactly_one_source(self) -> JobSizes:
        if (self.constant is None) == (self.histogram is None):
            raise InputError(
                "The sizes of a job's requests are either constant or in a histogram.",
                hint="workload: {constant: {input_tokens: 1000, output_tokens: 200}}",
            )
        return self


class Deferrable(Strict):
    """Work with a deadline and no latency objective: on GPUs of its own, or in what services leave of theirs."""

    name: str = Field(min_length=1, description="Your name for it.")
    kind: Literal["offline", "fine-tune"] = Field(
        default="offline",
        description="offline: a batch of requests to answer; fine-tune: tokens to train the model on.",
    )
    model: str = Field(
        min_length=1, description="A name in the model library (`gpuplan models list`), or the path of a config.json."
    )
    precision: Annotated[list[Precision], BeforeValidator(as_list), Field(min_length=1)] | None = Field(
        default=None,
        description="Number formats of the weights that may do it; default: the one the model is published in.",
    )
    engine: Engine = Field(default=Engine(), description="The engine on GPUs of its own.")
    parallelism: Parallelism = Field(default=Parallelism(), description="How a replica of its own may be spread.")
    workload: JobSizes | None = Field(default=None, description="How large its requests are; needed if it is offline.")
    method: Literal["lora", "full"] = Field(
        default="lora", description="What learns: adapters beside frozen weights, or all weights. For fine-tune alone."
    )
    sequence_tokens: int = Field(
        default=DEFAULT_SEQUENCE_TOKENS,
        ge=1,
        strict=True,
        description="Length of a training sequence. For fine-tune alone.",
    )
    requests: Amount | None = Field(default=None, description="How many requests there are; or give `tokens`.")
    tokens: Amount | None = Field(
        default=None,
        description="How many tokens there are, prompts and answers together; or give `requests`. To fine-tune: tokens"
        " of all epochs.",
    )
    start: MomentField | None = Field(
        default=None, description="Not before; default: now, or the start of the horizon."
    )
    deadline: MomentField = Field(
        description="All of it is done by then. With a horizon it is done once per horizon, and a deadline that is not"
        " after the start is the next round's; without one it becomes a steady rate."
    )
    harvest: Literal["allowed", "never"] | None = Field(
        default=None,
        description="Whether it may use what requests leave of a service's replicas with the same model and number"
        " format; requests come first there. Default: allowed for offline, never for fine-tune, which needs an engine"
        " that trains adapters beside requests.",
    )
    efficiency: Fraction | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="What it reaches beside requests, of the rate that the same GPU time gives it alone; default: the"
        " row harvest_efficiency of profiles/efficiency.csv.",
    )

    @property
    def may_harvest(self) -> bool:
        """Whether it may use a service's replicas."""
        return (self.harvest or ("allowed" if self.kind == "offline" else "never")) == "allowed"

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> Deferrable:
        training = {"method", "sequence_tokens"} & self.model_fields_set
        serving = {"workload", "requests", "precision", "engine"} & self.model_fields_set
        wrong = sorted(training if self.kind == "offline" else serving)
        if wrong:
            raise InputError(
                f"The job {self.name!r} is of the kind {self.kind}, and {wrong[0]} belongs to the other one.",
                hint="Leave it out, or set kind to offline or fine-tune.",
            )
        if self.kind == "offline" and self.workload is None:
            raise InputError(
                f"Nothing says how large the requests of {self.name!r} are.",
                hint="workload: {constant: {input_tokens: 1000, output_tokens: 200}}",
            )
        if self.kind == "fine-tune" and self.method == "full" and self.may_harvest:
            raise InputError(
                f"All weights of {self.name!r} learn, so it cannot share a service's.", hint="method: lora"
            )
        return self

    @model_validator(mode="after")
    def _one_amount(self) -> Deferrable:
        if (self.requests is None) == (self.tokens is None):
            raise InputError(f"The job {self.name!r} needs exactly one of requests and tokens.", hint="tokens: 4e9")
        return self
