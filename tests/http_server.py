"""A local host for the tests of what goes over a network: it answers well, late, or with an error."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Host(ThreadingHTTPServer):
    """/ok answers at once, /slow after ``slow_s``, /fail500 and /gone with an error, /moved with a redirect to /ok.

    ``answers`` are codes that are given before, one per request.
    """

    daemon_threads = True

    def __init__(self, slow_s: float = 3.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.slow_s = slow_s
        self.answers: list[int] = []
        self.got: list[tuple[str, dict[str, Any], dict[str, str]]] = []  # path, JSON, headers
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def wait_for(self, count: int, seconds: float = 5.0) -> list[Any]:
        """Return the JSON of what came, once so much did."""
        until = time.monotonic() + seconds
        while len(self.got) < count and time.monotonic() < until:
            time.sleep(0.005)
        return [content for _, content, _ in self.got]


class _Handler(BaseHTTPRequestHandler):
    server: Host

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        self.server.got.append((self.path, content, dict(self.headers)))
        if self.path.startswith("/slow"):
            time.sleep(self.server.slow_s)
        codes = {"/fail500": 500, "/gone": 410, "/moved": 302}
        code = next((c for path, c in codes.items() if self.path.startswith(path)), 200)
        if self.server.answers:
            code = self.server.answers.pop(0)
        try:
            self.send_response(code, f"about {self.path}")  # an answer may quote the secret
            if code == 302:
                self.send_header("Location", "/ok")
            self.send_header("Content-Length", "0")
            self.end_headers()
        except OSError:  # nobody waits for it any more
            pass

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def host(slow_s: float = 3.0) -> Iterator[Host]:
    """A host on a free port of this machine."""
    server = Host(slow_s)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def dead_url() -> str:
    """A URL of this machine where nobody listens."""
    with Host() as server:
        return server.url
