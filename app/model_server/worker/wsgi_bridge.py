"""Asks a WSGI application, such as Flask's, and has its answer: PEP 3333, for a request that is complete."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

from model_server.worker.http import Request, Response

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

REQUEST_KEY = "model_server.request"
"""Where the :class:`Request` stands in the environment."""


def answer(application: WSGIApplication, request: Request) -> Response:
    """The application's answer to a request.

    Raises:
        Exception: whatever the application raises.
    """
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> Any:
        if request.method != "HEAD":
            headers = [header for header in headers if header[0].lower() != "content-length"]
        started[:] = int(status[:3]), headers
        return None

    chunks = application(_environment(request), start_response)
    try:
        body = b"".join(chunks)
    finally:
        if (close := getattr(chunks, "close", None)) is not None:
            close()
    status, headers = started
    return Response(status, headers, body)


def _environment(request: Request) -> WSGIEnvironment:
    environment: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "SERVER_NAME": "model-server",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.0" if request.http_1_0 else "HTTP/1.1",
        "CONTENT_TYPE": request.header("content-type") or "",
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        REQUEST_KEY: request,
    }
    for name, value in request.headers.items():
        # A name with an underscore could pass for one with a hyphen.
        if b"_" not in name:
            environment["HTTP_" + name.decode("latin-1").upper().replace("-", "_")] = value.decode("latin-1")
    return environment
