"""How a solve ended: one vocabulary for every back end."""

from __future__ import annotations

from enum import StrEnum


class Termination(StrEnum):
    """Why a solver stopped. Every back end maps all of its endings onto these; nobody reads a status string."""

    OPTIMAL = "optimal"
    """Proven within the asked gap."""
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    INFEASIBLE_OR_UNBOUNDED = "infeasible-or-unbounded"
    TIME_LIMIT = "time-limit"
    NODE_LIMIT = "node-limit"
    """A limit on branch-and-bound nodes: the same on every machine, unlike a time limit."""
    OTHER_LIMIT = "other-limit"
    """Any other limit of the solver's own (solutions, memory, iterations)."""
    INTERRUPTED = "interrupted"
    NUMERICAL_ERROR = "numerical-error"
    ERROR = "error"
    """The solver failed in a way that it does not explain."""

    @property
    def is_limit(self) -> bool:
        """Whether something stopped the search before its end, so that an incumbent is as good as it got."""
        return self in {
            Termination.TIME_LIMIT,
            Termination.NODE_LIMIT,
            Termination.OTHER_LIMIT,
            Termination.INTERRUPTED,
        }

    @property
    def is_failure(self) -> bool:
        """Whether the solver broke."""
        return self in {Termination.NUMERICAL_ERROR, Termination.ERROR}
