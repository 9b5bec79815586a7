"""What answers at an address: a server with OpenAI's API, and of which engine; or else what it is instead.

Nothing is measured until this is known. What is wrong is told with what was asked and what came.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from planner.errors import InputError, MeasurementError
from planner.files.documents import did_you_mean
from planner.profilers.endpoint.client import (
    MISSING_STATUSES,
    OVERLOAD_STATUSES,
    REFUSED_STATUSES,
    Answer,
    Client,
    root_url,
)
from planner.profilers.endpoint.records import Failure, FailureKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from planner.errors import PlannerError
    from planner.profilers.endpoint.client import Connection

MODELS, COMPLETIONS, CHAT = "/v1/models", "/v1/completions", "/v1/chat/completions"

OWNERS: Mapping[str, tuple[str, str]] = {
    "vllm": ("vllm", "/version"),
    "sglang": ("sglang", "/get_server_info"),
    "llamacpp": ("llama.cpp", "/props"),
    "library": ("ollama", "/api/version"),
}
"""`owned_by` in a server's list of models -> the engine, and the page that says its version."""

TGI_ROUTER = "text-generation-router"
"""`router` in what TGI's /info says; its list of models does not name the engine."""

RAW_WAIT_S = 3.0
"""How long a port that speaks no HTTP is listened to."""

RAW_BYTES = 40
"""Of what it says that are looked at."""

MOST_MODELS_SHOWN = 8

HTTP2_SETTINGS = b"\x04"
"""Type of the frame that an HTTP/2 server sends first (RFC 9113, 3.4 and 6.5), after three bytes of its length."""

OTHER_PROTOCOL_CAUSES = frozenset({
    FailureKind.DROPPED, FailureKind.PROTOCOL, FailureKind.TLS, FailureKind.UNREACHABLE, FailureKind.TIMEOUT,
})  # fmt: skip
"""What comes of asking a port in a protocol that it does not speak."""

LOGIN_WORDS = ("login", "signin", "sign-in", "oauth", "sso", "auth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """How something that has no OpenAI API is recognised, and what to do about it."""

    path: str
    what: str
    shows: Callable[[Answer], bool]
    hint: str


def _said(answer: Answer, name: str) -> object:
    document = answer.json()
    return document.get(name) if isinstance(document, dict) else None


SIGNS = (
    Sign(
        path="/",
        what="an Ollama without OpenAI's API",
        shows=lambda answer: answer.text.strip() == "Ollama is running",
        hint="Update Ollama, or give its own address as --url, such as http://127.0.0.1:11434.",
    ),
    Sign(
        path="/info",
        what="a text-generation-inference (TGI) with its native API only",
        shows=lambda answer: _said(answer, "router") == TGI_ROUTER or _said(answer, "docker_label") is not None,
        hint="Update TGI: since 1.4 it has /v1/chat/completions.",
    ),
    Sign(
        path="/v2",
        what="a Triton Inference Server",
        shows=lambda answer: _said(answer, "name") == "triton",
        hint="Give the address of its OpenAI-compatible front end as --url, not that of its own API.",
    ),
    Sign(
        path="/",
        what="a web page with a login",
        shows=lambda answer: 'type="password"' in answer.text.lower().replace("'", '"'),
        hint="Ask its operator for the address that programs use, and for a key: --api-key-env NAME.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which engine a server says that it is; "" = it does not say."""

    engine: str = ""
    version: str = ""


async def identify(connection: Connection, model: str) -> Identity:
    """Return which engine serves `model`.

    Raises
    ------
    InputError: if the address is not that of a server with OpenAI's API, it wants a key, or serves other models only.
    MeasurementError: if the server fails.
    """
    async with Client(connection) as client:
        row = await served_models(client, model)
        engine, path = OWNERS.get(str(row.get("owned_by", "")), ("", ""))
        if engine:
            answer = await client.fetch(path)
            version = _said(answer, "version") if isinstance(answer, Answer) and answer.status == 200 else None
            return Identity(engine=engine, version=version if isinstance(version, str) else "")
        info = await client.fetch("/info")
    if isinstance(info, Answer) and info.status == 200 and _said(info, "router") == TGI_ROUTER:
        return Identity(engine="tgi", version=str(_said(info, "version") or ""))
    return Identity()


async def served_models(client: Client, model: str) -> dict[str, Any]:
    """Return what the server's list of models says of `model`; empty if it keeps no list but answers requests.

    Raises
    ------
    InputError, MeasurementError: as `identify`.
    """
    answer = await client.fetch(MODELS)
    if isinstance(answer, Failure):
        raise await _unreached(client, answer)
    if answer.status in REFUSED_STATUSES:
        raise _key_refused(client, MODELS, answer)
    if answer.status in OVERLOAD_STATUSES or (answer.status >= 500 and answer.status not in MISSING_STATUSES):
        raise MeasurementError(
            f"{client.connection.url}{MODELS}: {answer.described()}.",
            hint="Is it still loading its model, overloaded or broken? Try again once it answers.",
        )
    rows = _said(answer, "data") if answer.status == 200 else None
    found = [row for row in rows if isinstance(row, dict) and "id" in row] if isinstance(rows, list) else []
    for row in found:
        if row["id"] == model:
            return row
    if found:
        names = [str(row["id"]) for row in found]
        shown = ", ".join(names[:MOST_MODELS_SHOWN]) + (", ..." if len(names) > MOST_MODELS_SHOWN else "")
        near = did_you_mean(model, names)
        raise InputError(
            f"{client.connection.url} serves no model {model!r}.",
            hint=f"It serves: {shown}." + (f" {near}" if near and len(names) > 1 else ""),
        )
    await _check_api(client, model, answer)
    return {}


async def _check_api(client: Client, model: str, listed: Answer) -> None:
    """Ask for one token, where there is no list of models; raise if nothing that comes is of OpenAI's API."""
    came = {f"GET {MODELS}": listed.described()}
    for path, body in (
        (COMPLETIONS, {"prompt": "a"}),
        (CHAT, {"messages": [{"role": "user", "content": "a"}]}),
    ):
        answer = await client.fetch(path, {"model": model, "max_tokens": 1} | body)
        if isinstance(answer, Failure):
            raise await _unreached(client, answer)
        if answer.status in REFUSED_STATUSES:
            raise _key_refused(client, path, answer)
        if _names_model(answer, model):
            raise InputError(
                f"{client.connection.url}{path}: {answer.described()}.",
                hint="Check --model; the server lists no models.",
            )
        if _is_openai(answer):
            return
        came[f"POST {path}"] = answer.described()
    if listed.status == 400 and (spoken := await _other_protocol(client.connection.url)):
        raise spoken  # nginx says in HTTP that it wants TLS
    what, hint = await _recognised(client)
    raise InputError(
        f"{client.connection.url} is no server with OpenAI's API{what and f', but {what}'}. {_exchange(came)}.",
        hint=hint,
    )


def _exchange(came: Mapping[str, str]) -> str:
    """Return what was asked and what came, the same answer once."""
    asked: dict[str, list[str]] = {}
    for question, answer in came.items():
        asked.setdefault(answer, []).append(question)
    return "; ".join(f"{' and '.join(questions)}: {answer}" for answer, questions in asked.items())


def _is_openai(answer: Answer) -> bool:
    """Return whether an answer to a request is one of OpenAI's API, or one of its errors."""
    if answer.status == 200:
        return isinstance(_said(answer, "choices"), list)
    is_error = isinstance(_said(answer, "error"), dict) or _said(answer, "object") == "error"
    return is_error and answer.status not in MISSING_STATUSES


def _names_model(answer: Answer, model: str) -> bool:
    """Return whether an error says that there is no such model."""
    return answer.status in {400, 404} and isinstance(answer.json(), dict) and model in answer.text


async def _recognised(client: Client) -> tuple[str, str]:
    """Return what answers instead of an OpenAI server, "" = not known, and what to do."""
    url = client.connection.url
    parts = urlsplit(url)
    if parts.path:
        root = f"{parts.scheme}://{parts.netloc}"
        answer = await client.fetch(MODELS, root=root)
        if isinstance(answer, Answer) and isinstance(_said(answer, "data"), list):
            return "", f"There is one at --url {root}."
    for sign in SIGNS:
        answer = await client.fetch(sign.path)
        if isinstance(answer, Answer) and answer.status == 200 and sign.shows(answer):
            return f"{sign.what} (GET {sign.path})", sign.hint
    return "", "Give the address of the engine's API as --url, such as http://127.0.0.1:8000."


def _key_refused(client: Client, path: str, answer: Answer) -> PlannerError:
    message = f"{client.connection.url}{path}: the server answers {answer.status}: "
    if answer.challenge.lower().startswith("basic"):
        return InputError(
            message + "it asks for a user name and a password.",
            hint="That is no key of OpenAI's API; ask its operator for the address that programs use.",
        )
    key = "it refuses this API key." if client.connection.api_key else "it wants an API key."
    return InputError(
        message + key, hint="Give the name of the environment variable that holds the key: --api-key-env NAME."
    )


async def _unreached(client: Client, failure: Failure) -> PlannerError:
    """Return the error for a first question that got no answer, after looking at what the port speaks."""
    if failure.kind is FailureKind.REDIRECT:
        return _redirected(failure)
    if failure.kind in OTHER_PROTOCOL_CAUSES and (spoken := await _other_protocol(client.connection.url)):
        return spoken
    if failure.kind in {FailureKind.DROPPED, FailureKind.PROTOCOL, FailureKind.TIMEOUT}:
        return MeasurementError(
            failure.message, hint="Is --url the address of the engine's API? If it is, see the server's log."
        )
    return failure.error()


async def _other_protocol(url: str) -> InputError | None:
    """Return what a port speaks if it is not what the address says; None = it is, or it is not known."""
    parts = urlsplit(url)
    host, rest = parts.hostname or "", f"{parts.netloc}{parts.path}"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme == "https":
        first = await _first_bytes(host, port)
        is_plain = first.startswith(b"HTTP/") and not await _speaks_tls(host, port)
        return InputError(f"{url} speaks HTTP without TLS.", hint=f"Write --url http://{rest}.") if is_plain else None
    if await _speaks_tls(host, port):
        return InputError(f"{url} speaks TLS, and was asked in plain HTTP.", hint=f"Write --url https://{rest}.")
    first = await _first_bytes(host, port)
    if first[:1] == b"\x00" and first[3:4] == HTTP2_SETTINGS:
        return InputError(
            f"{url} speaks HTTP/2 only, as gRPC ports do; it was asked for {MODELS} in HTTP/1.1.",
            hint="Give the port of the engine's HTTP API as --url.",
        )
    if first and not first.startswith(b"HTTP/"):
        return InputError(
            f"{url} does not speak HTTP: asked for {MODELS}, it says {first.decode(errors='replace')!r}.",
            hint="Give the address of the engine's HTTP API as --url.",
        )
    return None


def _redirected(failure: Failure) -> InputError:
    target = urlsplit(failure.target)
    if any(word in target.path.lower() or word in target.netloc.lower() for word in LOGIN_WORDS):
        hint = "That is a login. Ask for the address that programs use, and for a key: --api-key-env NAME."
    elif target.scheme in {"http", "https"} and target.hostname:
        path = target.path.rstrip("/").removesuffix(MODELS)
        hint = f"Write --url {root_url(f'{target.scheme}://{target.netloc}{path}')}."
    else:
        hint = "Give the address of the engine's API as --url."
    return InputError(failure.message, hint=hint)


async def _first_bytes(host: str, port: int) -> bytes:
    """Return what a port says to a plain HTTP request without a key; empty if nothing."""
    with suppress(OSError):
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), RAW_WAIT_S)
        try:
            writer.write(f"GET {MODELS} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return await asyncio.wait_for(reader.read(RAW_BYTES), RAW_WAIT_S)
        finally:
            writer.transport.abort()
    return b""


async def _speaks_tls(host: str, port: int) -> bool:
    """Return whether a port answers a TLS handshake, with whatever certificate."""
    try:
        _, writer = await asyncio.wait_for(
            asyncio.open_connection(host, port, ssl=ssl.create_default_context()), RAW_WAIT_S
        )
    except ssl.SSLCertVerificationError:
        return True
    except (OSError, ValueError):
        return False
    writer.transport.abort()
    return True
