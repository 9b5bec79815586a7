"""Which engines serve prefill apart from decode, and how they are started for it: profiles/disaggregation.csv."""

from __future__ import annotations

import csv
from functools import cache
from typing import TYPE_CHECKING

from planner.domain.disaggregation import Role
from planner.errors import InputError
from planner.files.bundled import bundled
from planner.profilers.efficiency import engine_family

if TYPE_CHECKING:
    from collections.abc import Mapping


@cache
def load_role_flags() -> Mapping[tuple[str, Role], str]:
    """Return the bundled table, (engine family, role) -> the flags that start it in this role."""
    text = bundled("profiles", "disaggregation.csv").read_text(encoding="utf-8")
    return {(row["engine"], Role(row["role"])): row["flags"] for row in csv.DictReader(text.splitlines())}


def check_disaggregated(engine: str) -> None:
    """Refuse an engine that is not known to serve prefill apart from decode.

    Raises
    ------
    InputError: naming the engines that do.
    """
    known = sorted({name for name, _ in load_role_flags()})
    if engine_family(engine) not in known:
        raise InputError(
            f"The engine {engine!r} is not known to serve prefill apart from decode.",
            hint=f"These are: {', '.join(known)}. Choose one in engine.name, or set disaggregate to never.",
        )


def role_flags(engine: str, role: Role) -> str:
    """Return how `engine` is started in `role`; "" for an engine that `check_disaggregated` refuses.

    Examples
    --------
    >>> role_flags("sglang", Role.PREFILL)
    '--disaggregation-mode prefill'
    """
    return load_role_flags().get((engine_family(engine), role), "")
