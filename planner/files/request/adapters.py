"""Adapters of a service: the form of a list of them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from planner.domain.adapters import Adapter, Isolation, canonical_modules
from planner.errors import InputError
from planner.files.schema import RateRpsOrZero, Strict
from planner.files.slo import SloField

MAX_RANK = 4096
"""Published adapters have ranks of 1 to 512; beyond the width of a layer a rank is a number of another kind."""


def _modules(value: Any) -> Any:  # noqa: ANN401 - whatever the document holds
    """Return "q_proj v_proj" as a list; commas, semicolons and plus signs separate too."""
    return [word for word in re.split(r"[\s,;+]+", value) if word] if isinstance(value, str) else value


def _slos(value: Any) -> Any:  # noqa: ANN401 - whatever the document holds
    """Return "ttft p99 <= 2s; tpot mean <= 60ms" as a list."""
    return [part for part in value.split(";") if part.strip()] if isinstance(value, str) else value


class AdapterChoice(Strict):
    """One low-rank adapter of a service's model, and what is asked of it."""

    name: str = Field(min_length=1, description="Your name for it, which requests give.")
    rank: int = Field(ge=1, le=MAX_RANK, strict=True, description="Rank of its matrices (PEFT's r).")
    target_modules: Annotated[
        list[Annotated[str, Field(min_length=1)]], BeforeValidator(_modules), Field(min_length=1)
    ] = Field(
        description="Modules that it changes, as in PEFT's adapter_config.json; q, k, v, o, gate, up and down for "
        "short; all-linear for every one.",
        examples=[["q_proj", "k_proj", "v_proj", "o_proj"], "q k v o"],
    )
    rate: RateRpsOrZero | None = Field(default=None, description="Mean rate of its requests.")
    trace: str | None = Field(default=None, min_length=1, description="A trace file with its requests, instead.")
    slo: Annotated[list[SloField], BeforeValidator(_slos)] = Field(
        default=[], description="Objectives in place of the service's; default: the service's."
    )
    isolation: Isolation | None = Field(
        default=None,
        description="shared-process (one engine for all), shared-backbone (a process for each on the same copy of the "
        "weights) or dedicated; default: the list's.",
    )
    merged: bool = Field(
        default=False, description="Merged into weights of its own: no memory beside them; dedicated only."
    )

    def adapter(self, isolation: Isolation) -> Adapter:
        """Return the adapter; `isolation` is that of the list.

        Raises
        ------
        InputError: if it has both or neither of rate and trace, or is merged and shares weights.
        """
        own = self.isolation or (Isolation.DEDICATED if self.merged else isolation)
        return Adapter(
            name=self.name,
            rank=self.rank,
            target_modules=canonical_modules(self.target_modules),
            rate_rps=self.rate,
            trace=self.trace,
            slos=tuple(self.slo),
            isolation=own,
            is_merged=self.merged,
        )

    @model_validator(mode="after")
    def _can_be_served(self) -> AdapterChoice:
        self.adapter(Isolation.SHARED_PROCESS)
        return self


class Adapters(Strict):
    """The adapters of a service: a list, or a file with one in each row."""

    file: str | None = Field(
        default=None,
        min_length=1,
        description="A CSV with the columns name, rank, target_modules, rate or trace, and optionally slo, isolation "
        "and merged.",
    )
    each: Annotated[list[AdapterChoice], Field(min_length=1)] | None = Field(
        default=None, description="The adapters themselves."
    )
    isolation: Isolation = Field(
        default=Isolation.SHARED_PROCESS, description="What they share, where one does not say otherwise."
    )

    @model_validator(mode="after")
    def _one_source_and_no_name_twice(self) -> Adapters:
        if (self.file is None) == (self.each is None):
            found = "neither is" if self.file is None else "both are"
            raise InputError(f"Adapters stand in a file or under each; {found} given.", hint="file: adapters.csv")
        counts = Counter(choice.name for choice in self.each or ())
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise InputError(f"The adapter {repeated[0]!r} stands there {counts[repeated[0]]} times.")
        return self

    def listed(self) -> tuple[Adapter, ...]:
        """Return the adapters of the list; none where a file has them."""
        return tuple(choice.adapter(self.isolation) for choice in self.each or ())
