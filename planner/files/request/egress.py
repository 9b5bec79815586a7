"""Where users are, and what serving them from elsewhere costs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from planner.files.schema import DurationS, Fraction, Strict, UsdPerGb

DEFAULT_BYTES_PER_TOKEN = 4.0
"""English text has about four characters to a token (OpenAI's help centre, "What are tokens and how to count them?",
https://help.openai.com/en/articles/4936856); answers that are streamed as JSON events take far more."""


class EgressChoice(Strict):
    """Traffic between a service's users and replicas in another region."""

    price: UsdPerGb = Field(description="Of what is sent from one region to another, prompts and answers alike.")
    bytes_per_token: float = Field(
        default=DEFAULT_BYTES_PER_TOKEN,
        gt=0,
        le=100_000,
        description="As it is sent: 4 for plain English text, hundreds for an event with JSON around every token.",
    )
    round_trip: DurationS | None = Field(
        default=None,
        description="Between regions: taken off the TTFT and E2E bounds of what serves users of another region.",
    )


EgressField = Annotated[
    EgressChoice,
    BeforeValidator(lambda value: {"price": value} if isinstance(value, str | int | float) else value),
]
ALL_USERS = 1.0


def _users(value: Any) -> Any:  # noqa: ANN401 - whatever the document holds
    return {value: ALL_USERS} if isinstance(value, str) else value


Users = Annotated[
    dict[str, Fraction],
    BeforeValidator(_users),
    Field(min_length=1),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "examples": ["us-east-1"]},
                {"type": "object", "additionalProperties": {"type": ["string", "number"], "examples": ["70%"]}},
            ]
        }
    ),
]
