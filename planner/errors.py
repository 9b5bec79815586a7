"""The one exception tree.

PlannerError                     anything gpuplan raises on purpose; carries a message, a hint and an exit code
├── InputError                   the user's input is wrong (exit 2)
│   └── UnsupportedFormatError   a file is of a format or version that gpuplan does not read (exit 2)
├── DataMissingError             no profile, price or specification for what was asked (exit 6)
├── MeasurementError             a server or a client was not fit for a measurement, which is refused (exit 5)
├── SolverError                  the solver failed (exit 1)
│   ├── SolverUnavailableError   the back end is not installed or cannot do what was asked (exit 2)
│   └── SolverLiedError          a returned solution does not satisfy our own matrix (exit 1)
└── OutputExistsError            the output file is there and --force was not given (exit 2)

Infeasible requests, reached limits and missed SLOs are results with a status, not exceptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes; users' scripts depend on them (docs/reference/exit-codes.md)."""

    OK = 0
    UNEXPECTED = 1
    BAD_INPUT = 2
    INFEASIBLE = 3
    LIMIT_REACHED = 4
    CHECK_FAILED = 5
    DATA_MISSING = 6
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Where:
    """A place in the user's input: file, 1-based line and column, and the field's dotted path."""

    path: str | None = None
    line: int | None = None
    column: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        position = ":".join(str(part) for part in (self.path, self.line, self.column) if part is not None)
        return ", ".join(part for part in (position, f"field {self.field}" if self.field else "") if part)


class PlannerError(Exception):
    """Base of all errors that gpuplan raises on purpose.

    Parameters
    ----------
    message : what is wrong and the offending value, one sentence.
    hint : what to do about it.
    where : the place in the user's input, if there is one.
    """

    code = "error"
    exit_code = ExitCode.UNEXPECTED

    def __init__(self, message: str, *, hint: str = "", where: Where | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where and str(self.where) else ""
        return f"{place}{self.message}" + (f" {self.hint}" if self.hint else "")


class InputError(PlannerError, ValueError):
    """The user's input is wrong. A ValueError too, so that pydantic reports it with the field that it stands in."""

    code = "bad-input"
    exit_code = ExitCode.BAD_INPUT


class UnsupportedFormatError(InputError):
    """A file is of a format or version that gpuplan does not read."""

    code = "unsupported-format"


class OutputExistsError(InputError):
    """The output file is there and overwriting was not asked for."""

    code = "output-exists"


class DataMissingError(PlannerError):
    """There is no profile, price or specification for what was asked."""

    code = "data-missing"
    exit_code = ExitCode.DATA_MISSING


class MeasurementError(PlannerError):
    """A measurement is refused: the server does not answer as it should, or the client was too slow to tell."""

    code = "measurement-refused"
    exit_code = ExitCode.CHECK_FAILED


class SolverError(PlannerError):
    """A solver failed."""

    code = "solver-failed"


class SolverUnavailableError(SolverError):
    """The back end is not installed or cannot do what was asked."""

    code = "solver-unavailable"
    exit_code = ExitCode.BAD_INPUT


class SolverLiedError(SolverError):
    """A solver returned values that do not satisfy our own matrix."""

    code = "solver-lied"
