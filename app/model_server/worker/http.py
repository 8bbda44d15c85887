"""A request and an answer of HTTP/1.1, as the loop and the application pass them to one another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

if TYPE_CHECKING:
    from model_server.worker.connection import Connection
    from model_server.worker.errors import RequestError
    from model_server.worker.scoring import Scored

_PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_NO_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Request:
    """A request whose head has been read, with its body as far as it has come.

    Args:
        connection: the connection that it came on.
        target: as it stands in the request line.
    """

    __slots__ = (
        "_id",
        "abandoned",
        "arrived",
        "began",
        "body",
        "connection",
        "headers",
        "http_1_0",
        "keep_alive",
        "method",
        "path",
        "predicts",
        "query",
        "refusal",
        "small",
        "stuck",
    )

    def __init__(self, connection: Connection, method: str, target: bytes, headers: dict[bytes, bytes]) -> None:
        self.connection = connection
        self.method = method
        self.headers = headers
        """By name in small letters; of a name that comes again, the values with a comma between them."""
        self.path, self.query = _split(target)
        self.body = b""
        self.http_1_0 = False
        self.keep_alive = False
        self.refusal: RequestError | None = None
        """Why it is to be answered with an error, whatever it asks for."""
        self.predicts = False
        """Whether it takes one of the places for predictions."""
        self.small = False
        """Whether another worker answers it when it turns out to be large."""
        self.arrived = 0.0
        """When it was complete, on the clock of ``perf_counter``."""
        self.began = 0.0
        """When it began to be answered; 0 while it waits."""
        self.abandoned = False
        """It was answered when its time was over, while it ran."""
        self.stuck = False
        """It ran for as long again."""
        self._id = ""

    @property
    def gone(self) -> bool:
        """Whether nobody waits for its answer: its time is over, or its client has left."""
        return self.abandoned or self.connection.closed

    @property
    def id(self) -> str:
        """The client's own ``X-Request-Id`` where it is a plain one, else a new one."""
        if not self._id:
            given = self.header("x-request-id") or ""
            self._id = given if _PLAIN_ID.fullmatch(given) else os.urandom(8).hex()
        return self._id

    @property
    def client(self) -> str:
        """The name of who asks, as the proxy says it, or an empty text. What others say in its place is not heeded."""
        return (self.header("x-client") or "") if self.connection.from_proxy else ""

    def header(self, name: str) -> str | None:
        """The value of a header, or None; its name in small letters."""
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1")


class Response:
    """An answer.

    Args:
        status: of HTTP.
        headers: without those that belong to the connection, the date and the length.
        body: the whole of it.
        scored: what is to be counted of it, where it is a prediction.
    """

    __slots__ = ("body", "headers", "scored", "status")

    def __init__(
        self,
        status: int,
        headers: Iterable[tuple[str, str]],
        body: bytes,
        scored: Scored | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.scored = scored

    def to(self, request: Request, *, close: bool) -> bytes:
        """Head and body as they go over the wire, together: in one packet where they fit.

        Args:
            request: what is answered.
            close: whether the connection ends with this answer.
        """
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, '')}\r\nDate: {_date(int(time()))}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in self.headers]
        # Of an answer to HEAD that comes without its body, the application has said how long that would be.
        if self.status not in _NO_BODY and (self.body or request.method != "HEAD"):
            lines.append(f"Content-Length: {len(self.body)}\r\n")
        if close:
            lines.append("Connection: close\r\n\r\n")
        elif request.http_1_0:
            lines.append("Connection: keep-alive\r\n\r\n")
        else:
            lines.append("\r\n")
        head = "".join(lines).encode("latin-1")
        return head if request.method == "HEAD" or self.status in _NO_BODY else head + self.body


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _split(target: bytes) -> tuple[str, str]:
    """Path and query of a request target; the path decoded as WSGI has it, one character for each byte."""
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/") and b"://" in path:
        # The form for proxies, which every server must take: RFC 9112, 3.2.2.
        path = urlsplit(path).path or b"/"
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("latin-1"), query.decode("latin-1")
