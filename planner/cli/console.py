"""Everything that reaches the user's terminal. stdout carries the result alone; stderr carries the rest."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.files.output import write_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, RenderableType

    from planner.domain.provenance import Warning_
    from planner.errors import PlannerError

logger = logging.getLogger("planner")

PIPE_COLUMNS = 120
"""Width of a table that goes to a file or a pipe, where there is no terminal to ask."""


def configure(*, quiet: bool, verbose: bool, no_color: bool) -> None:
    """Set how much goes to stderr and whether colour is used, for the whole process."""
    if no_color:
        os.environ["NO_COLOR"] = "1"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


def result_console() -> Console:
    """Return a rich console on stdout; honours NO_COLOR and COLUMNS."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)


def print_result(*renderables: RenderableType) -> None:
    """Print tables or text to stdout."""
    console = result_console()
    for renderable in renderables:
        console.print(renderable)


def to_json(document: Any) -> str:  # noqa: ANN401 - whatever json can hold
    """Return `document` as JSON text; NaN and infinity are refused rather than written as invalid JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def print_json(document: Any) -> None:  # noqa: ANN401 - whatever json can hold
    """Print exactly one JSON document to stdout."""
    sys.stdout.write(to_json(document))


def write_result(target: str, text: str, *, force: bool) -> None:
    """Write `text` to the file `target`, or to stdout if that is "-"."""
    if target == "-":
        sys.stdout.write(text)
        return
    write_text(Path(target), text, force=force)
    note(f"Wrote {target}.")


def note(message: str) -> None:
    """Tell the user something on stderr, unless -q."""
    logger.info(message)


def show_warnings(warnings: Iterable[Warning_]) -> None:
    """Show warnings on stderr, unless -q."""
    for warning in warnings:
        logger.warning("Warning %s: %s", warning.code, warning.message)


def show_error(error: PlannerError, *, as_json: bool) -> None:
    """Print one error to stderr, as a sentence or as `{"error": {code, message, hint, where}}`."""
    if as_json:
        where = None if error.where is None else str(error.where) or None
        document = {"error": {"code": error.code, "message": error.message, "hint": error.hint, "where": where}}
        sys.stderr.write(to_json(document))
    else:
        sys.stderr.write(f"Error: {error}\n")
