"""A small HTTP server that really queues: `slots` requests at a time, in order of arrival, with a known service law.

It speaks as much of OpenAI's API as vLLM does, and can be told to break in many ways (`fault`). Its clock of service is
exact: every token is due at an absolute time, so that a busy test machine delays tokens but never slows the service.
Runs in a thread of its own (`serving`), or as a process, with a fixed time for each request: endpoint_server.py PORT
SECONDS.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import random
import ssl
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

TLS = Path(__file__).resolve().parent / "tls"
MODEL = "tiny"


@dataclass
class Law:
    """How long requests take, once they are served."""

    slots: int = 1
    first_s: float = 0.0
    """Fixed part of the time to the first token."""
    mean_s: float = 0.01
    """Mean of its exponential part."""
    token_s: float = 0.0
    """Time of every further token."""


@dataclass
class Server:
    law: Law = field(default_factory=Law)
    fault: str = ""
    key: str = ""
    takes_ids: bool = True
    has_completions: bool = True
    has_tokenizer: bool = True
    refused: tuple[str, ...] = ()
    """Fields that it answers 400 to."""
    overload_beyond: int | None = None
    """Requests in the system beyond which it answers 503."""
    faulty_after: int = 0
    """The fault begins after so many answers."""
    metrics: str | None = None
    counts_usage: bool = True
    prompt_offset: int = 0
    """Tokens by which it counts prompts wrong."""
    context: int | None = None
    n_answers: int = 0
    n_inside: int = 0
    url: str = ""
    bodies: list = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    _free: list = field(default_factory=list)
    _server: asyncio.Server | None = None

    def __post_init__(self):
        self._free = [0.0] * self.law.slots

    @property
    def is_faulty(self):
        return self.fault and self.n_answers >= self.faulty_after

    async def handle(self, reader, writer):
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError):
                while await self.one(reader, writer):
                    pass
                await writer.drain()
                writer.close()
        finally:
            if not writer.is_closing():
                writer.transport.abort()

    async def one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return await self.plain(writer, 401, {"error": {"message": f"wrong key {headers.get('authorization')}"}})
        if method == "GET":
            return await self.get(writer, path)
        document = json.loads(body)
        if path == "/tokenize":
            if not self.has_tokenizer:
                return await self.plain(writer, 404, {"detail": "Not Found"})
            return await self.plain(writer, 200, {"tokens": [3 + hash_of(word) for word in document["prompt"].split()]})
        if path == "/v1/completions" and self.has_completions:
            return await self.complete(writer, document, document["prompt"], chat=False)
        if path == "/v1/chat/completions":
            return await self.complete(writer, document, document["messages"][0]["content"], chat=True)
        return await self.plain(writer, 404, {"detail": "Not Found"})

    async def get(self, writer, path):
        if path == "/v1/models":
            return await self.plain(writer, 200, {"data": [{"id": MODEL, "owned_by": "vllm"}]})
        if path == "/version":
            return await self.plain(writer, 200, {"version": "0.32.0"})
        if path == "/metrics" and self.metrics is not None:
            return await self.plain(writer, 200, self.metrics.format(inside=self.n_inside), kind="text/plain")
        return await self.plain(writer, 404, {"detail": "Not Found"})

    async def plain(self, writer, status, document, kind="application/json", more=""):
        text = document if isinstance(document, str) else json.dumps(document)
        data = text.encode()
        writer.write(
            f"HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(data)}\r\n\r\n".encode()
        )
        writer.write(data)
        await writer.drain()
        return True

    async def complete(self, writer, document, prompt, *, chat):
        self.bodies.append(document)
        for name in self.refused:
            if name in document:
                return await self.plain(writer, 400, {"error": {"message": f"unknown field {name}"}})
        if self.context is not None and document["max_tokens"] > self.context:
            return await self.plain(writer, 400, {"error": {"message": f"maximum context is {self.context} tokens"}})
        if isinstance(prompt, list) and not self.takes_ids:
            return await self.plain(writer, 400, {"error": {"message": "prompt must be a string"}})
        if self.overload_beyond is not None and self.n_inside >= self.overload_beyond:
            return await self.plain(writer, 503, {"error": "overloaded"}, more="Retry-After: 0.1\r\n")
        if self.is_faulty and (answer := await FAULTS[self.fault](self, writer)) is not None:
            return answer
        due_s = self.times(document["max_tokens"])
        n_prompt = len(prompt if isinstance(prompt, list) else prompt.split()) + self.prompt_offset
        self.n_inside += 1
        try:
            self.start_stream(writer)
            if chat:
                self.event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
            for number, at_s in enumerate(due_s, 1):
                await asyncio.sleep(max(at_s - time.monotonic(), 0.0))
                if not self.token(writer, number, len(due_s), chat=chat):
                    return False
                await writer.drain()
        finally:
            self.n_inside -= 1
        if self.counts_usage and "stream_options" in document:
            usage = {"prompt_tokens": n_prompt, "completion_tokens": len(due_s)}
            if self.is_faulty and self.fault == "wrong output count":
                usage["completion_tokens"] = 1
            self.event(writer, {"choices": [], "usage": usage})
        self.chunk(writer, b"data: [DONE]\n\n" * (2 if self.is_faulty and self.fault == "done twice" else 1))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        self.n_answers += 1
        return True

    def times(self, n_tokens):
        """Return when each token is due: from the start of service on the slot that is free first."""
        law = self.law
        start_s = max(time.monotonic(), heapq.heappop(self._free))
        first_s = start_s + law.first_s + (self.rng.expovariate(1 / law.mean_s) if law.mean_s else 0.0)
        due_s = [first_s + law.token_s * i for i in range(n_tokens)]
        heapq.heappush(self._free, due_s[-1])
        return due_s

    def start_stream(self, writer, kind="text/event-stream"):
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())

    def chunk(self, writer, data):
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, writer, document):
        self.chunk(writer, b"data: " + json.dumps(document).encode() + b"\n\n")

    def token(self, writer, number, n_tokens, *, chat):
        if self.is_faulty and self.fault in BROKEN_TOKENS and number == min(2, n_tokens):
            self.chunk(writer, BROKEN_TOKENS[self.fault])
            return self.fault != "drops the connection"
        choice = {"delta": {"content": " w"}} if chat else {"text": " w"}
        self.event(writer, {"choices": [choice | {"finish_reason": "length" if number == n_tokens else None}]})
        return True


def hash_of(word):
    return sum(ord(letter) * 31**i for i, letter in enumerate(word)) % 5000


def status_fault(status, message, more=""):
    async def fault(server, writer):
        server.n_answers += 1
        return await server.plain(writer, status, {"error": {"message": message}}, more=more)

    return fault


async def hangs(server, writer):
    await asyncio.sleep(30)
    return False


async def hangs_up(server, writer):
    return False


async def slow_headers(server, writer):
    await asyncio.sleep(0.3)


async def answers_whole(server, writer):
    return await server.plain(writer, 200, {"choices": [{"text": "all at once", "finish_reason": "length"}]})


async def page(server, writer):
    return await server.plain(writer, 200, "<html>Welcome</html>", kind="text/html")


async def no_tokens(server, writer):
    server.start_stream(writer)
    server.chunk(writer, b"data: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


async def no_http(server, writer):
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await writer.drain()
    return False


async def goes_on(server, writer):
    """The fault shows later, within the stream."""


BROKEN_TOKENS = {
    "drops the connection": b'data: {"choices": [{"te',
    "truncated json": b'data: {"choices": [{"te\n\n',
    "garbage": b"\x00\x01garbage\n\n",
    "invalid utf-8": b'data: {"choices": [{"text": "\xff\xfe"}]}\n\n',
    "huge chunk": b"data: " + b"x" * (3 << 20),
    "other form": b'data: {"choices": {"text": "no list"}}\n\n',
    "error event": b'data: {"error": {"message": "CUDA out of memory"}}\n\n',
}
FAULTS = {
    "hangs": hangs,
    "hangs up": hangs_up,
    "500": status_fault(500, "Internal Server Error"),
    "404 model": status_fault(404, f"The model {MODEL} does not exist"),
    "redirect": status_fault(307, "moved", more="Location: http://elsewhere.example/v1/completions\r\n"),
    "429": status_fault(429, "slow down", more="Retry-After: 0.05\r\n"),
    "slow headers": slow_headers,
    "no streaming": answers_whole,
    "wrong content type": page,
    "empty stream": no_tokens,
    "no http": no_http,
    **dict.fromkeys((*BROKEN_TOKENS, "done twice", "wrong output count"), goes_on),
}


@contextmanager
def serving(server: Server, *, tls: bool = False):
    """Run a server in a thread of its own."""
    loop = asyncio.new_event_loop()
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")

    async def start():
        return await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=context, backlog=1000)

    listening = loop.run_until_complete(start())
    port = listening.sockets[0].getsockname()[1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def stop():
        listening.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # let the transports close

    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def main(port: int, first_s: float) -> None:
    server = Server(law=Law(first_s=first_s, mean_s=0.0))
    listening = await asyncio.start_server(server.handle, "127.0.0.1", port, backlog=1000)
    sys.stdout.write(f"{listening.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await listening.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
