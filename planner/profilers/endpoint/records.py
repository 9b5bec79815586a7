"""One request of a measurement: when it was due, when its tokens came, or what went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from planner.errors import InputError, MeasurementError

if TYPE_CHECKING:
    from planner.errors import PlannerError
    from planner.profilers.endpoint.schedule import Size

__all__ = ["Failure", "FailureKind", "Request"]


class FailureKind(StrEnum):
    """What became of a request that was not answered as it should have been."""

    UNREACHABLE = "unreachable"
    TLS = "tls"
    REFUSED_KEY = "key refused"
    NOT_FOUND = "not found"
    REDIRECT = "redirect"
    BAD_REQUEST = "bad request"
    OVERLOAD = "overload"
    TIMEOUT = "timeout"
    DROPPED = "connection dropped"
    STATUS = "server error"
    NO_STREAM = "no streaming"
    PROTOCOL = "not a valid stream"


USERS_TO_MEND = {
    FailureKind.UNREACHABLE: "Is the server up, and is --url its address?",
    FailureKind.TLS: "Trust its certificate by --ca-file FILE, or use the name that the certificate is for.",
    FailureKind.REFUSED_KEY: "Give the name of the environment variable that holds the key: --api-key-env NAME.",
    FailureKind.NOT_FOUND: "Check --url and --model.",
    FailureKind.REDIRECT: "Give the address that it redirects to as --url.",
    FailureKind.BAD_REQUEST: "Check --model and whether --sizes fit the server's context.",
}
"""Failures of the first requests that another command line mends, and how; the others are the server's."""

LOAD_CAN_CAUSE = frozenset({FailureKind.OVERLOAD, FailureKind.TIMEOUT})
"""Failures that say that the rate is too high, and nothing about the server's health."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a request was not answered."""

    kind: FailureKind
    message: str
    """One sentence, without the API key."""
    retry_after_s: float | None = None
    """What the server asked for in Retry-After."""
    target: str = ""
    """Where a redirect leads."""

    def error(self) -> PlannerError:
        """Return the failure as the error that ends a command."""
        if hint := USERS_TO_MEND.get(self.kind):
            return InputError(self.message, hint=hint)
        return MeasurementError(self.message, hint="Nothing can be measured until the server answers one request.")

    def lost(self) -> PlannerError:
        """Return the failure of a server that has answered before as the error that ends a measurement."""
        return MeasurementError(
            f"The server has stopped answering: {self.message}",
            hint="What was measured to its end is kept; once it is up again, the same command goes on from there.",
        )


@dataclass(slots=True, kw_only=True)
class Request:
    """One request under way or ended; times are seconds of one monotonic clock."""

    size: Size
    due_s: float
    """When the schedule wanted it sent: what latencies are counted from, so that a late client hides no waiting."""
    sent_s: float | None = None
    first_s: float | None = None
    """When the first chunk with text came."""
    last_s: float | None = None
    """When the last chunk with text came."""
    end_s: float | None = None
    """When the answer was complete, or the request failed."""
    prompt_tokens: int | None = None
    """By the server's own count; None = it says none."""
    output_tokens: int = 0
    """By the server's own count, else the chunks with text."""
    chunks: int = 0
    failure: Failure | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the whole answer came."""
        return self.end_s is not None and self.failure is None

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token; None = none has come."""
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def e2e_s(self) -> float | None:
        """Time to the last token; None = not answered."""
        return self.last_s - self.due_s if self.is_answered and self.last_s is not None else None

    @property
    def tpot_s(self) -> float | None:
        """(e2e - TTFT) / (output tokens - 1); None = not answered, or of one token."""
        if not self.is_answered or self.first_s is None or self.last_s is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.output_tokens - 1)
