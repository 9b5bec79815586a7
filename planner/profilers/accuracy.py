"""How far a throughput may lie above the truth, by where it comes from: read from profiles/throughput_error.csv.

One in ten measurements fell short of such a figure by more than `error_fraction` of it: the low end of an interval
that holds eight in ten. docs/explanation/throughput.md tells what was compared with what.
"""

from __future__ import annotations

import csv
from functools import cache
from typing import TYPE_CHECKING

from planner.domain.provenance import ProvenanceKind
from planner.files.bundled import bundled

if TYPE_CHECKING:
    from collections.abc import Mapping

ANY, FITTED, UNFITTED = "any", "fitted", "unfitted"
"""What a row says of GPU architectures: whether the estimator's parameters were fitted to measurements on it."""


@cache
def error_fractions() -> Mapping[tuple[ProvenanceKind, bool], float]:
    """Return the error by (provenance, whether the GPU's architecture was fitted).

    Examples
    --------
    >>> error_fractions()[ProvenanceKind.GIVEN, True]
    0.0
    """
    text = bundled("profiles", "throughput_error.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        for is_fitted in (True, False):
            if row["architecture"] in {ANY, FITTED if is_fitted else UNFITTED}:
                found[ProvenanceKind(row["provenance"]), is_fitted] = float(row["error_fraction"])
    return found
