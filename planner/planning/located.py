"""Errors that say which part of the request they are about."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from planner.errors import PlannerError, Where

if TYPE_CHECKING:
    from collections.abc import Iterator


def at(field: str) -> Where:
    """Return a place in the request."""
    return Where(field=field)


@contextmanager
def inside(field: str) -> Iterator[None]:
    """Let an error that is raised inside say which part of the request it is about."""
    try:
        yield
    except PlannerError as error:
        if error.where is None:
            error.where = at(field)
        elif error.where.path is None and error.where.field:
            error.where = at(f"{field}.{error.where.field}")
        raise
