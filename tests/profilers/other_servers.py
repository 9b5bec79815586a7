"""Real servers that are no OpenAI servers: web servers with a few fixed pages, and ports that speak something else."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from profilers.endpoint_server import TLS


@dataclass
class Page:
    status: int = 200
    body: Any = ""
    """A document, or a text, which may name the server's port: {port}."""
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Asked:
    url: str = ""
    requests: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@contextmanager
def web_server(pages: dict[str, Page], *, otherwise: Page, tls: bool = False):
    """Serve pages by path; yield what is asked."""
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.requests.append(f"{self.command} {self.path}")
            asked.keys.append(self.headers.get("Authorization"))
            page = pages.get(self.path, otherwise)
            text = page.body if isinstance(page.body, str) else json.dumps(page.body)
            self.send_response(page.status)
            for name, value in {"Content-Type": page.kind, "Content-Length": str(len(text)), **page.headers}.items():
                self.send_header(name, value.replace("{port}", str(self.server.server_address[1])))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = answer  # noqa: N815 - the names that http.server calls

        def log_message(self, *_):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    asked.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    with _running(server):
        yield asked


@contextmanager
def port_that_says(data: bytes, *, unasked: bool = False):
    """Say something to whoever connects, once they have sent anything or at once, and hang up; yield the address."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            if not unasked:
                self.request.recv(4096)
            self.request.sendall(data)
            self.request.shutdown(socket.SHUT_WR)
            self.request.settimeout(1.0)
            while self.request.recv(4096):
                pass

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, *_):
            """Say nothing."""

    server = Server(("127.0.0.1", 0), Handler)
    with _running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"


@contextmanager
def _running(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
