"""Where a number comes from, and the warnings that travel with a result."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date


class ProvenanceKind(StrEnum):
    """How a throughput was obtained, best first. Nothing simulated or interpolated is called measured."""

    GIVEN = "given"
    """Stated by the user in the request (a Mélange config)."""
    MEASURED = "measured"
    CALIBRATED = "calibrated"
    """Scaled or interpolated between measurements of the same model, GPU and engine."""
    ESTIMATED = "estimated"
    """The analytic model alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Origin of one number."""

    kind: ProvenanceKind
    source: str
    """What was read: a file and its origin, or the name of the formula."""
    as_of: date | None = None
    note: str = ""
    """In words, e.g. "interpolated between 128x2048 and 2048x2048"."""
    error_fraction: float | None = None
    """By what part of itself the number may be too large, one case in ten excepted; None = nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warning_:  # noqa: N801 - `Warning` is a builtin
    """Something that the user must see but that does not stop the work (docs/reference/warnings.md lists the codes)."""

    code: str
    message: str
    observed: float | str | None = None
    threshold: float | str | None = None
