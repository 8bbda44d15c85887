"""The HTTP side: asked by services in the container network."""

from __future__ import annotations

import json
import logging
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from environments import metrics
from environments.maker import BusyError, Maker
from environments.requirements import Refused, Request
from environments.settings import Settings
from environments.store import Store

_logger = logging.getLogger(__name__)

_MOST_BYTES = 256 * 1024
_STATUSES = {"ready": 200, "installing": 202, "missing": 404, "refused": 422, "busy": 503, "unreachable": 503}
_USE = re.compile(r"/environments/([0-9a-f]{32})/use")


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    timeout = 30
    """Seconds that a client may be silent."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, b"ok\n", "text/plain")
        elif self.path == "/metrics":
            self._send(200, self.server.metrics(), CONTENT_TYPE_LATEST)
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > _MOST_BYTES:
            self.send_error(413)
            return
        body = self.rfile.read(int(length))
        if self.path == "/environments":
            self._answer(self.server.ask(body))
        elif found := _USE.fullmatch(self.path):
            digest = found[1]
            is_there = self.server.store.use(digest)
            self._answer({"state": "ready" if is_there else "missing", "environment": digest})
        else:
            self.send_error(404)

    def _answer(self, answer: dict[str, Any]) -> None:
        self._send(_STATUSES[answer["state"]], json.dumps(answer).encode(), "application/json")

    def _send(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the library's name
        _logger.debug(format, *arguments)


class Server(ThreadingHTTPServer):
    """Listens, and answers each connection in a thread of its own.

    Args:
        settings: of the service.
        store: of environments.
        maker: makes them.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, settings: Settings, store: Store, maker: Maker) -> None:
        super().__init__((settings.host, settings.port), _Handler)
        self.store = store
        self._maker = maker
        metrics.QUOTA.set(settings.quota)

    def ask(self, body: bytes) -> dict[str, Any]:
        """The answer to ``POST /environments``."""
        try:
            return self._maker.ask(Request.parse(json.loads(body)))
        except (ValueError, RecursionError):
            return {
                "state": "refused",
                "kind": "requirement",
                "reason": "the body is no JSON; see docs/environments.md",
            }
        except Refused as refused:
            return {"state": "refused", "kind": refused.kind, "reason": refused.reason}
        except BusyError:
            return {"state": "busy", "reason": "too many requests wait; ask again later"}

    def metrics(self) -> bytes:
        """The metrics as of now."""
        metrics.COUNT.set(len(self.store.names()))
        metrics.BYTES.set(self.store.size())
        return generate_latest()
