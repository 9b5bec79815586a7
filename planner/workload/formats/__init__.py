"""The trace formats that gpuplan knows, in the order in which a file is compared with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.workload.formats.azure import AZURE
from planner.workload.formats.bailian import BAILIAN
from planner.workload.formats.burstgpt import BURSTGPT
from planner.workload.formats.generic import format_of_columns, guess_columns
from planner.workload.formats.mooncake import MOONCAKE
from planner.workload.formats.splitwise import SPLITWISE
from planner.workload.formats.vidur import VIDUR

if TYPE_CHECKING:
    from planner.workload.formats.base import Container, TraceFormat

FORMATS = (AZURE, BURSTGPT, BAILIAN, MOONCAKE, VIDUR, SPLITWISE)
"""A format stands before those whose columns it includes."""


def detect(container: Container, columns: tuple[str, ...]) -> TraceFormat | None:
    """Return the format of a file with these columns, None if it is of none."""
    names = frozenset(columns)
    for known in FORMATS:
        if known.matches(container, names):
            return known
    guessed = guess_columns(columns)
    return format_of_columns(guessed) if guessed else None


def describe_formats() -> str:
    """Return the formats that can be read, one phrase each with its columns, for messages."""
    lines = [
        f"{known.name} ({'/'.join(known.containers)}: {', '.join(dict.fromkeys(known.required))})" for known in FORMATS
    ]
    return "; ".join([*lines, "any CSV, JSON lines or Parquet file whose columns you name"])
