"""The HTTP client: sends one request, stamps every chunk of the answer when it comes, and names what goes wrong.

aiohttp is an optional dependency (the extra `endpoint`): its parser is C, so that a core reads tens of thousands of
chunks a second. A chunk is stamped before it is looked at.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

from planner.errors import InputError, Where
from planner.profilers.endpoint.records import Failure, FailureKind

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from planner.profilers.endpoint.records import Request

MOST_EVENT_BYTES = 1 << 20
"""A longer server-sent event is no token, and would be kept in memory until it ends."""

MOST_MESSAGE_CHARACTERS = 300
"""Of a server's error text that is repeated to the user."""

MOST_ANSWER_BYTES = 8 << 20
"""Of an answer that is not streamed: metrics, lists of models."""

KEEP_ALIVE_S = 2.0
"""Idle connections are closed after this long: before servers do (uvicorn, and so vLLM, after 5 s), which a request
that is just being sent would take for a failure."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

API_PATHS = ("/chat/completions", "/completions", "/models", "/v1")
"""What users add to a server's address, from the last to the first."""

MOST_SHOWN_CHARACTERS = 80
"""Of an answer that is no error document."""

OVERLOAD_STATUSES = frozenset({429, 503})
MISSING_STATUSES = frozenset({404, 405, 501})
REFUSED_STATUSES = frozenset({401, 403})
WRONG_STATUSES = frozenset({400, 413, 422})


def root_url(url: str) -> str:
    """Return the server's address without a trailing slash, /v1 or a path of OpenAI's API.

    Raises
    ------
    InputError: if it is not http(s)://host, or carries a user name, a query or a fragment.

    Examples
    --------
    >>> root_url("http://127.0.0.1:8000/v1/")
    'http://127.0.0.1:8000'
    >>> root_url("https://host/llm/v1/chat/completions")
    'https://host/llm'
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise InputError(f"{url!r} is not a server's address.", hint="Write --url http://127.0.0.1:8000.")
    if parts.username or parts.password:
        raise InputError("The address holds a user name or password.", hint="Use --api-key-env NAME for a key.")
    if parts.query or parts.fragment:
        raise InputError(f"The address {url!r} ends in a query.", hint="Write --url http://127.0.0.1:8000.")
    url = url.rstrip("/")
    for ending in API_PATHS:
        url = url.removesuffix(ending).rstrip("/")
    return url


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that was not streamed."""

    status: int
    text: str
    content_type: str = ""
    challenge: str = ""
    """WWW-Authenticate: how a server wants to be logged in to."""

    def described(self) -> str:
        """Return in a few words what came."""
        if self.content_type == "text/html" or self.text.lstrip()[:1] == "<":
            return f"{self.status}, a web page {_shown(self.text.encode())}"
        if not self.text.strip():
            return f"{self.status}, nothing more"
        document = self.json()
        if document is None:
            return f"{self.status}, no JSON: {_shown(self.text.encode())}"
        return f"{self.status}, {_message(self.text)[:MOST_SHOWN_CHARACTERS]}"

    def json(self) -> Any:  # noqa: ANN401 - whatever the server says
        """Return the document in the answer; None if it is none."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach the server."""

    url: str
    """As `root_url` returns it."""
    timeout_s: float
    """A request that has not ended after this long has failed."""
    api_key: str | None = None
    ca_file: Path | None = None
    """Certificates to trust beside the system's."""

    @property
    def is_private(self) -> bool:
        """Whether what is sent can be read by nobody on the way: it is encrypted, or stays on this machine."""
        parts = urlsplit(self.url)
        return parts.scheme == "https" or parts.hostname in LOOPBACK


class Client:
    """An open connection pool to one server; use as `async with Client(connection) as client`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the pool.

        Raises
        ------
        InputError: if the file of certificates cannot be used.
        """
        headers = {"Content-Type": "application/json"}
        if self.connection.api_key:
            headers["Authorization"] = f"Bearer {self.connection.api_key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=_trust(self.connection.ca_file), keepalive_timeout=KEEP_ALIVE_S
            ),
            timeout=aiohttp.ClientTimeout(total=self.connection.timeout_s),
            headers=headers,
            read_bufsize=MOST_EVENT_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            await asyncio.sleep(0)  # let the transports close

    async def fetch(self, path: str, document: object = None, *, root: str | None = None) -> Answer | Failure:
        """Return the answer to a GET, or to a POST of `document`; a Failure if none came.

        Parameters
        ----------
        root : another address on the same host than that of the connection.
        """
        session = self._open_session()
        body = None if document is None else json.dumps(document).encode()
        method = "GET" if body is None else "POST"
        try:
            async with session.request(
                method, (root or self.connection.url) + path, data=body, allow_redirects=False
            ) as response:
                if response.status in range(300, 400):
                    return self._redirect(path, response)
                pieces = bytearray()
                async for piece in response.content.iter_any():
                    pieces += piece
                    if len(pieces) > MOST_ANSWER_BYTES:
                        return self._failure(path, FailureKind.PROTOCOL, "the answer has no end")
                return Answer(
                    status=response.status,
                    text=self._redacted(pieces.decode(errors="replace")),
                    content_type=response.content_type,
                    challenge=response.headers.get("WWW-Authenticate", ""),
                )
        except (aiohttp.ClientError, OSError) as error:
            return self._from_exception(path, error)

    async def send(self, path: str, body: bytes, request: Request) -> None:
        """Send one streaming request and write into `request` what comes back and when; never raises for a failure."""
        request.sent_s = time.monotonic()
        try:
            async with self._open_session().post(
                self.connection.url + path, data=body, allow_redirects=False
            ) as response:
                if response.status == 200:
                    request.failure = await self._read(path, response, request)
                else:
                    request.failure = await self._refusal(path, response)
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            request.failure = self._from_exception(path, error)
        request.end_s = time.monotonic()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            msg = "the client is not open"
            raise ValueError(msg)
        return self._session

    async def _read(self, path: str, response: aiohttp.ClientResponse, request: Request) -> Failure | None:
        if response.content_type == "application/json":
            return self._failure(
                path, FailureKind.NO_STREAM, "the server answers in one piece where a stream was asked for"
            )
        if response.content_type == "text/html":
            page = _shown(await response.content.read(4096))
            return self._failure(path, FailureKind.NO_STREAM, f"a web page comes where a stream was asked for: {page}")
        rest = b""
        stream = _Stream(request)
        async for chunk in response.content.iter_any():
            at_s = time.monotonic()
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MOST_EVENT_BYTES:
                return self._failure(path, FailureKind.PROTOCOL, f"an event is longer than {MOST_EVENT_BYTES:,} bytes")
            for line in lines:
                if problem := stream.take(line, at_s):
                    return self._failure(path, FailureKind.PROTOCOL, problem)
        if rest.strip() and (problem := stream.take(rest, time.monotonic())):
            return self._failure(path, FailureKind.PROTOCOL, problem)
        problem = stream.close()
        return self._failure(path, FailureKind.PROTOCOL, problem) if problem else None

    async def _refusal(self, path: str, response: aiohttp.ClientResponse) -> Failure:
        status = response.status
        if status in range(300, 400):
            return self._redirect(path, response)
        text = self._redacted((await response.content.read(4096)).decode(errors="replace"))
        said = f"the server answers {status}: {_message(text)}"
        if status in OVERLOAD_STATUSES:
            after = response.headers.get("Retry-After", "")
            seconds = float(after) if after.replace(".", "", 1).isdigit() else None
            return self._failure(path, FailureKind.OVERLOAD, said, retry_after_s=seconds)
        for statuses, kind in (
            (REFUSED_STATUSES, FailureKind.REFUSED_KEY),
            (MISSING_STATUSES, FailureKind.NOT_FOUND),
            (WRONG_STATUSES, FailureKind.BAD_REQUEST),
        ):
            if status in statuses:
                return self._failure(path, kind, said)
        return self._failure(path, FailureKind.STATUS, said)

    def _redirect(self, path: str, response: aiohttp.ClientResponse) -> Failure:
        target = self._redacted(response.headers.get("Location", "nowhere"))
        return self._failure(path, FailureKind.REDIRECT, f"the server redirects to {target}", target=target)

    def _failure(
        self, path: str, kind: FailureKind, message: str, *, retry_after_s: float | None = None, target: str = ""
    ) -> Failure:
        text = self._redacted(f"{self.connection.url}{path}: {message}").strip()
        return Failure(
            kind=kind,
            message=text[:MOST_MESSAGE_CHARACTERS].rstrip(".") + ".",
            retry_after_s=retry_after_s,
            target=target,
        )

    def _redacted(self, text: str) -> str:
        """Return a text without the API key, which some servers repeat."""
        key = self.connection.api_key
        return text.replace(key, "***") if key else text

    def _from_exception(self, path: str, error: Exception) -> Failure:
        """Return what an exception of the connection means."""
        if isinstance(error, TimeoutError):  # aiohttp's own timeouts are such too
            return self._failure(
                path, FailureKind.TIMEOUT, f"no complete answer within {self.connection.timeout_s:g} s"
            )
        for types, kind, what in _EXCEPTIONS:
            if isinstance(error, types):
                return self._failure(path, kind, f"{what} ({_short(error)})")
        return self._failure(path, FailureKind.DROPPED, f"the connection failed ({_short(error)})")


_EXCEPTIONS: tuple[tuple[tuple[type[Exception], ...], FailureKind, str], ...] = (
    (
        (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError),
        FailureKind.TLS,
        "no trusted TLS connection",
    ),
    ((aiohttp.ClientConnectorError,), FailureKind.UNREACHABLE, "cannot connect"),
    (
        (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError),
        FailureKind.DROPPED,
        "the server closed the connection before the answer was complete",
    ),
    ((aiohttp.ClientResponseError,), FailureKind.PROTOCOL, "not an HTTP answer"),
)
"""What exceptions mean; the first that fits counts."""


class _Stream:
    """The server-sent events of one answer, which fill in its request."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._is_done = False
        self._is_finished = False
        self._ended_s: float | None = None
        self._usage: dict[str, Any] = {}

    def take(self, line: bytes, at_s: float) -> str:
        """Read one line that came at `at_s`; return what is wrong with it, or ""."""
        line = line.strip()
        if not line or line.startswith((b":", b"event:", b"id:", b"retry:")):
            return ""
        if not line.startswith(b"data:"):
            return f"a line of the stream is no server-sent event: {_shown(line)}"
        data = line[5:].strip()
        if data == b"[DONE]":
            self._is_done = True
            return ""
        try:
            event = json.loads(data)
        except ValueError:  # UnicodeDecodeError is one too
            return f"an event of the stream is no JSON: {_shown(data)}"
        return self._take_event(event, at_s)

    def _take_event(self, event: Any, at_s: float) -> str:  # noqa: ANN401 - whatever the server says
        if not isinstance(event, dict):
            return "an event of the stream is no JSON object"
        if event.get("error"):
            return f"the server reports an error within the stream: {_message(json.dumps(event))}"
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        choices = event.get("choices")
        if not choices:
            return ""
        if not isinstance(choices, list) or not isinstance(choices[0], dict):
            return "the choices of an event are of another form than OpenAI's"
        choice = choices[0]
        is_last = bool(choice.get("finish_reason"))
        self._is_finished |= is_last
        if _is_token(choice, is_last=is_last):
            request = self._request
            request.chunks += 1
            request.last_s = at_s
            if request.first_s is None:
                request.first_s = at_s
        elif is_last:
            self._ended_s = at_s
        return ""

    def close(self) -> str:
        """Take the counts at the end of the stream; return what is wrong with the whole, or ""."""
        request = self._request
        request.output_tokens = request.chunks
        if not request.chunks:
            return "the stream ended without a token"
        if not self._is_done and not self._is_finished:
            return "the stream broke off before its end"
        prompt, output = self._usage.get("prompt_tokens"), self._usage.get("completion_tokens")
        if isinstance(prompt, int):
            request.prompt_tokens = prompt
        if isinstance(output, int):
            if output < request.chunks - 1:  # some servers send one chunk more, for the end of the text
                return f"the server counts {output} tokens where {request.chunks} chunks of text came"
            request.output_tokens = output
            if output > request.chunks and self._ended_s is not None:
                request.last_s = self._ended_s  # the last token had no text of its own
        return ""


def _is_token(choice: dict[str, Any], *, is_last: bool) -> bool:
    """Return whether a choice carries a token: some have no text, as those that are a part of a character."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return bool(choice.get("text")) or not is_last
    text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
    return bool(text) or not (is_last or "role" in delta)


def _trust(ca_file: Path | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise InputError("No certificates can be read.", where=Where(path=str(ca_file))) from error


def _short(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _shown(data: bytes) -> str:
    return repr(data[:60].decode(errors="replace"))


def _message(text: str) -> str:
    """Return what an error document says, or the beginning of a text that is none."""
    try:
        document = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:MOST_MESSAGE_CHARACTERS] or "nothing more"
    for _ in range(2):
        if isinstance(document, dict):
            document = next(
                (document[key] for key in ("error", "message", "detail") if document.get(key)), json.dumps(document)
            )
    return " ".join(str(document).split())[:MOST_MESSAGE_CHARACTERS]
