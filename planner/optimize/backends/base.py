"""What every back end takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading

    import numpy as np
    from numpy.typing import NDArray

    from planner.optimize.milp import Basis, Milp
    from planner.optimize.settings import SolverSettings
    from planner.optimize.termination import Termination


class Capability(StrEnum):
    """What a solver can do; data, so that callers ask instead of comparing names."""

    CONTINUOUS = "continuous"
    """Takes continuous variables. CP-SAT does not: MathOpt scales them to integers, and on a fleet of 60 buckets and
    30 options it then called a plan optimal, bound and all, that was 3% dearer than the optimum."""
    NODE_LIMIT = "node-limit"
    """Stops after so many nodes: a limit that is the same on every machine."""
    INTERRUPT = "interrupt"
    """Returns its best solution when it is interrupted."""
    THREADS = "threads"
    TOLERANCE = "tolerance"
    """Its feasibility tolerance can be set."""
    FULL_PRECISION = "full-precision"
    """Returns all digits of its values, not a rounded printout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSolution:
    """A solver's answer, not to be believed before `planner.optimize.verify`."""

    values: NDArray[np.float64] | None
    """Shape (columns,); None if no solution was found."""
    objective: float | None
    """As the solver states it."""
    bound: float | None
    """Proven lower bound of the objective; None if the solver gives none."""
    termination: Termination
    seconds: float
    solver: str
    version: str
    detail: str = ""
    """The solver's own words, for error messages."""
    row_duals: NDArray[np.float64] | None = None
    """Shape (rows,): what one more unit of a row's side costs; only of linear programmes, where the solver gives it."""
    basis: Basis | None = None
    """Only of `solve_linear`."""


class SolveFunction(Protocol):
    """A back end's entry point."""

    def __call__(self, milp: Milp, settings: SolverSettings, interrupt: threading.Event) -> RawSolution:
        """Return the solver's answer; stop early when `interrupt` is set, if the solver can."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BackEnd:
    """One solver: its name, what it can do, and where its code is, imported only when it is used."""

    name: str
    title: str
    module: str
    capabilities: frozenset[Capability]
