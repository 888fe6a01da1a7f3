"""A stand-in for W&B's server, of the standard library alone: enough for an online run with scalars and alerts."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAMES = {"name": "run", "displayName": "run", "id": "cnVu"}
BUCKET = {
    **NAMES,
    "description": None,
    "config": None,
    "sweepName": None,
    "summaryMetrics": None,
    "historyLineCount": 0,
    "project": {"id": "cA==", "name": "p", "entity": {"id": "ZQ==", "name": "e"}},
}


class Server(ThreadingHTTPServer):
    """Keeps the alerts that it is told of, and the names of all that it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.alerts: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answer one GraphQL request."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else ""
        self.asked.append(name)
        if name == "NotifyScriptableRunAlert":
            self.alerts.append(variables)
            return {"notifyScriptableRunAlert": {"success": True}}
        if name == "UpsertBucket":
            return {"upsertBucket": {"bucket": {**BUCKET, "name": variables.get("name") or "run"}, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/file"} for file in variables.get("files", [])]
            return {"createRunFiles": {"runID": "cnVu", "uploadHeaders": [], "files": files}}
        if name == "Viewer":
            return {"viewer": {"id": "VQ==", "entity": "e", "username": "e", "flags": "{}", "teams": {"edges": []}}}
        if name == "UpsertView2":
            return {
                "upsertView": {
                    "view": {"id": "Vmlldw==", "name": "nw-pplmon-v", "displayName": "pplmon"},
                    "inserted": True,
                }
            }
        if name == "RunStoppedStatus":
            return {"project": {"run": {"stopped": False}}}
        return {"project": None}


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        if self.path.endswith("/graphql"):
            asked = json.loads(raw)
            self._reply({"data": self.server.answer(asked["query"], asked.get("variables") or {})})
            return
        if "file_stream" in self.path:
            rows = json.loads(raw or b"{}").get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history += map(json.loads, rows)
        self._reply({})

    def do_PUT(self) -> None:
        self.do_POST()

    def do_GET(self) -> None:
        self._reply({})

    def _reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A stand-in on a free port of this machine."""
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
