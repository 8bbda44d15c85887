"""What a browser is shown: ``/``, a form that asks the model, and ``/docs``, Swagger UI over ``/openapi.json``."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from flask import Flask, after_this_request, request
from flask import Response as FlaskResponse
from werkzeug.exceptions import NotFound
from werkzeug.routing import Rule

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_PAGES = ("ask.html", "docs.html")
_ASSETS = ("page.css", "ask.css", "ask.js", "docs.js", "icon.svg")
_SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
}
_A_YEAR = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class _File:
    body: bytes
    digest: str
    media_type: str


def add_to(app: Flask) -> None:
    """Answer ``/``, ``/docs`` and the files that they are made of.

    Args:
        app: the application; whatever else it answers stays as it is.
    """
    # Of any method, so that who does not ask for the page is answered as where there is none.
    app.url_map.add(Rule("/", endpoint="page"))
    app.view_functions["page"] = _page
    app.add_url_rule("/docs", "docs", lambda: _answer("docs.html"))
    app.add_url_rule("/static/<name>", "static", _asset)


def _page() -> FlaskResponse:
    after_this_request(_differs_by_client)
    # Browsers ask for HTML by name, clients of the API do not.
    if request.method not in ("GET", "HEAD") or "text/html" not in request.headers.get("Accept", ""):
        raise NotFound
    return _answer("ask.html")


def _differs_by_client(response: FlaskResponse) -> FlaskResponse:
    response.vary.add("Accept")
    return response


def _asset(name: str) -> FlaskResponse:
    if name not in _ASSETS + _SWAGGER_UI:
        raise NotFound
    return _answer(name)


def _answer(name: str) -> FlaskResponse:
    file = _read(name)
    response = FlaskResponse(file.body, mimetype=file.media_type, headers=_HEADERS)
    # While replicas change one after the other, a page of the one may come to the other for its files.
    is_this = request.query_string == file.digest.encode()
    response.headers["Cache-Control"] = _A_YEAR if is_this else "no-cache"
    response.set_etag(file.digest)
    response.make_conditional(request)
    return response


@cache
def _read(name: str) -> _File:
    body = _place(name).read_bytes()
    if name in _PAGES:
        body = re.sub(rb'"static/([\w.-]+)"', _with_digest, body)
    return _File(body, hashlib.sha256(body).hexdigest()[:16], _MEDIA_TYPES[name.rpartition(".")[2]])


def _with_digest(link: re.Match[bytes]) -> bytes:
    """A link to a file that changes when the file does, so that browsers may keep what it leads to."""
    name = link[1].decode()
    return f'"static/{name}?{_read(name).digest}"'.encode()


def _place(name: str) -> Traversable:
    if name in _SWAGGER_UI:
        return files("flask_swagger_ui") / "dist" / name
    return files("model_server.worker") / "static" / name
