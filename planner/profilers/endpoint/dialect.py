"""What one server understands, found out by asking it, and prompts of exactly the asked length in that dialect.

OpenAI's API has no exact prompt lengths and no fixed answer lengths; servers add ways of their own. What a server
refuses is left out and told, never assumed to work.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from planner.errors import InputError, MeasurementError
from planner.profilers.endpoint.client import Answer, Client
from planner.profilers.endpoint.identify import CHAT, COMPLETIONS
from planner.profilers.endpoint.records import FailureKind, Request
from planner.profilers.endpoint.schedule import Size

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

EXTRAS: Mapping[str, str] = {
    "stream_options": "tokens are counted by the chunks of the stream",
    "ignore_eos": "answers may end before the asked length",
    "min_tokens": "",
    "temperature": "",
}
"""Optional fields of a request, and what is lost without each; "" = nothing that the others do not give."""

WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company",
    "system", "program", "question", "work", "government", "number", "night", "point", "home", "water", "room",
    "mother", "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word",
    "business", "issue", "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game",
    "line", "end", "member", "law", "car", "city", "community", "name", "president", "team", "minute", "idea",
    "kid", "body",
)  # fmt: skip
"""Common words, one token each in nearly every tokenizer: prompts where a server takes no token ids."""

TOKENIZE_FORMS = ("prompt", "content", "inputs")
"""What the text is called in a request to /tokenize: by vLLM and SGLang, llama.cpp, and TGI."""

LENGTH_TRIES = 4
LENGTH_TOLERANCE = 0.02
"""Part by which a prompt may miss the asked length; beyond, the measurement says what was really sent, or stops."""

BUSY_TRIES = 4
LONGEST_BUSY_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How to ask one server for an answer of a given size."""

    path: str
    model: str
    extras: tuple[str, ...]
    """Those of `EXTRAS` that the server takes."""
    token_ids: tuple[int, ...] = ()
    """Ids to make prompts of; empty = prompts are text."""
    counts_prompts: bool = False
    """The server says how many tokens it read."""
    notes: tuple[str, ...] = ()
    """What the server refused, and what that means; for the user."""

    def body(self, prompt: list[int] | str, output_tokens: int) -> bytes:
        """Return the request as JSON."""
        document: dict[str, Any] = {"model": self.model, "max_tokens": output_tokens, "stream": True}
        if self.path == CHAT:
            document["messages"] = [{"role": "user", "content": prompt}]
        else:
            document["prompt"] = prompt
        values = {
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "min_tokens": output_tokens,
            "temperature": 0,
        }
        return json.dumps(document | {name: values[name] for name in self.extras}).encode()


class Prompts:
    """Prompts of given lengths: random, so that no prefix is found in a cache."""

    def __init__(self, dialect: Dialect, rng: np.random.Generator) -> None:
        self._dialect = dialect
        self._rng = rng
        self._words: dict[int, int] = {}
        """Words that make a prompt of so many tokens."""

    def set_words(self, input_tokens: int, words: int) -> None:
        """Note how many words make a prompt of so many tokens."""
        self._words[input_tokens] = max(words, 1)

    def words(self, input_tokens: int) -> int:
        """Return how many words are taken for a prompt of so many tokens."""
        return self._words.get(input_tokens, input_tokens)

    def prompt(self, input_tokens: int) -> list[int] | str:
        """Return a new random prompt."""
        ids = self._dialect.token_ids
        if ids:
            return [ids[i] for i in self._rng.integers(0, len(ids), input_tokens).tolist()]
        picks = self._rng.integers(0, len(WORDS), self.words(input_tokens)).tolist()
        return " ".join(WORDS[i] for i in picks)

    def body(self, size: Size) -> bytes:
        """Return a new random request of a size."""
        return self._dialect.body(self.prompt(size.input_tokens), size.output_tokens)


async def ask(client: Client, dialect: Dialect, prompt: list[int] | str, size: Size) -> Request:
    """Send one request by itself and return it; a server that is busy is asked again after the time it asks for."""
    for attempt in range(BUSY_TRIES):
        request = Request(size=size, due_s=time.monotonic())
        await client.send(dialect.path, dialect.body(prompt, size.output_tokens), request)
        failure = request.failure
        if failure is None or failure.kind is not FailureKind.OVERLOAD or attempt == BUSY_TRIES - 1:
            break
        await asyncio.sleep(min(failure.retry_after_s or 2.0**attempt, LONGEST_BUSY_WAIT_S))
    return request


async def learn(client: Client, model: str, size: Size) -> Dialect:
    """Return what the server understands, by asking it for short answers.

    Parameters
    ----------
    size : a size that will be measured; the questions are of its input length.

    Raises
    ------
    InputError: if the server answers no request for a reason that another command line mends.
    MeasurementError: if it answers none for another reason.
    """
    short = Size(size.input_tokens, min(size.output_tokens, 4))
    ids = await _token_ids(client, model)
    dialect = Dialect(path=COMPLETIONS, model=model, extras=tuple(EXTRAS), token_ids=ids)
    request = await _tried(client, dialect, short)
    if ids and _is_refusal(request, FailureKind.BAD_REQUEST, FailureKind.STATUS):
        bare = await _tried(client, replace(dialect, extras=()), short)
        if bare.failure is not None:  # it is the token ids that it does not take
            dialect = replace(dialect, token_ids=())
            request = await _tried(client, dialect, short)
    if _is_refusal(request, FailureKind.NOT_FOUND):
        dialect, first = replace(dialect, path=CHAT, token_ids=()), request
        request = await _tried(client, dialect, short)
        if _is_refusal(request, FailureKind.NOT_FOUND):
            raise _no_text(model, first, request)
    if _is_refusal(request, FailureKind.BAD_REQUEST):
        dialect, request = await _without_refused(client, dialect, short, request)
    if request.failure is not None:
        raise request.failure.error()
    return replace(dialect, counts_prompts=request.prompt_tokens is not None, notes=_notes(dialect, request))


def _no_text(model: str, *requests: Request) -> InputError:
    said = " ".join(request.failure.message for request in requests if request.failure)
    return InputError(
        f"The server completes no text with {model!r}. {said}",
        hint="Is it a model that generates text (not embeddings or speech), and --url the address of the engine's API?",
    )


def _is_refusal(request: Request, *kinds: FailureKind) -> bool:
    return request.failure is not None and request.failure.kind in kinds


async def _tried(client: Client, dialect: Dialect, size: Size) -> Request:
    prompt: list[int] | str = " ".join(WORDS[i % len(WORDS)] for i in range(size.input_tokens))
    if dialect.token_ids:
        prompt = [dialect.token_ids[i % len(dialect.token_ids)] for i in range(size.input_tokens)]
    return await ask(client, dialect, prompt, size)


async def _without_refused(client: Client, dialect: Dialect, size: Size, request: Request) -> tuple[Dialect, Request]:
    """Leave out the optional fields that the server names in its refusals, or else one after the other."""
    while dialect.extras and _is_refusal(request, FailureKind.BAD_REQUEST):
        said = request.failure.message if request.failure else ""
        named = [name for name in dialect.extras if name in said] or [dialect.extras[-1]]
        dialect = replace(dialect, extras=tuple(name for name in dialect.extras if name not in named))
        request = await _tried(client, dialect, size)
    return dialect, request


def _notes(dialect: Dialect, request: Request) -> tuple[str, ...]:
    notes = []
    if dialect.path == CHAT:
        notes.append(f"the server has no {COMPLETIONS}: {CHAT} is measured, whose template adds to prompts")
    for name, loss in EXTRAS.items():
        if name not in dialect.extras:
            notes.append(f"the server refuses {name}" + (f": {loss}" if loss else ""))
    if request.prompt_tokens is None and not dialect.token_ids:
        notes.append("the server neither takes token ids nor counts prompts: one word is taken for one token")
    return tuple(notes)


async def _token_ids(client: Client, model: str) -> tuple[int, ...]:
    """Return ids of common words by the server's own tokenizer; empty if it has no /tokenize."""
    text = " " + " ".join(WORDS)
    for name in TOKENIZE_FORMS:
        answer = await client.fetch("/tokenize", {"model": model, name: text, "add_special_tokens": False})
        if isinstance(answer, Answer) and answer.status == 200 and (found := _ids(answer.json())):
            return found
        if isinstance(answer, Answer) and answer.status in {404, 405, 501}:
            return ()
    return ()


def _ids(document: Any) -> tuple[int, ...]:  # noqa: ANN401 - whatever the server says
    """Return the distinct ids in an answer of /tokenize: a list of ids under "tokens", or TGI's list of objects."""
    tokens = document.get("tokens") if isinstance(document, dict) else document
    if not isinstance(tokens, list):
        return ()
    ids = [one.get("id") if isinstance(one, dict) else one for one in tokens]
    distinct = tuple(dict.fromkeys(one for one in ids if isinstance(one, int) and one >= 0))
    return distinct if len(distinct) >= len(WORDS) // 2 else ()


async def fit_length(client: Client, dialect: Dialect, prompts: Prompts, size: Size) -> int:
    """Return how many tokens the server counts in prompts of a size, after fitting the words of text prompts to it.

    Raises
    ------
    MeasurementError: if the server counts a prompt of token ids as something else by more than LENGTH_TOLERANCE, or
        does not answer.
    """
    short = Size(size.input_tokens, min(size.output_tokens, 2))
    wanted, counted = size.input_tokens, size.input_tokens
    for _ in range(LENGTH_TRIES):
        request = await ask(client, dialect, prompts.prompt(wanted), short)
        if request.failure is not None:
            raise request.failure.lost()
        if request.prompt_tokens is None:
            return wanted
        counted = request.prompt_tokens
        if counted == wanted:
            break
        if dialect.token_ids:
            if abs(counted - wanted) > max(2, LENGTH_TOLERANCE * wanted):
                raise MeasurementError(
                    f"The server counts {counted} tokens in a prompt of {wanted} token ids.",
                    hint="Its usage counts or its truncation are wrong; figures per token would be too.",
                )
            break
        prompts.set_words(wanted, prompts.words(wanted) + wanted - counted)
    return counted
