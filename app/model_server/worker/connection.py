"""One client's connection: what was read of its requests, and what is still to be sent to it.

``httptools`` parses and calls back; nothing here waits. The :mod:`loop <model_server.worker.loop>` decides when to
read and write.
"""

from __future__ import annotations

import math
import select
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from time import perf_counter

import httptools

from model_server.worker.errors import HeadTooLargeError, NotHttpError, RequestError, RequestTimeoutError, TooLargeError
from model_server.worker.http import Request, Response

_BODY_CHUNK_BYTES = 256 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Phase(Enum):
    """What a connection waits for."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    """Its request waits or runs."""
    WRITE = auto()
    LINGER = auto()
    CLOSED = auto()


@dataclass(frozen=True)
class Limits:
    """What one connection may take, in bytes and seconds."""

    body_bytes: int
    all_body_bytes: int = 64 * 1024 * 1024
    """Of all bodies that a worker holds; beyond it those that came slowest are refused."""
    head_bytes: int = 64 * 1024
    idle_seconds: float = 75.0
    """Without a request."""
    head_seconds: float = 10.0
    """From a request's first byte to the end of its head."""
    body_seconds: float = 20.0
    """From the end of the head to the end of the body, and more for what came: see the next."""
    body_bytes_per_second: int = 64 * 1024
    small_body_bytes: int | None = None
    """A longer body, or one of a length that is not said, is for another worker; None where there is none."""
    write_seconds: float = 30.0
    """In which a client takes nothing of its answer."""
    linger_seconds: float = 5.0
    """In which what a client still sends after its last answer is thrown away: closed at once, the answer is lost."""

    def seconds(self, phase: Phase) -> float:
        """How long a connection may be in a phase of reading."""
        if phase is Phase.IDLE:
            return self.idle_seconds
        return self.head_seconds if phase is Phase.HEAD else self.body_seconds


class Connection:
    """A connection on which requests come one after the other.

    Args:
        sock: accepted and non-blocking.
        limits: of this connection.
    """

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self.sock = sock
        self.from_proxy = sock.family == socket.AF_UNIX
        """Whether nobody but the proxy on this machine can have made it."""
        self.phase = Phase.IDLE
        self.deadline = 0.0
        """When it has waited for too long, on the clock of ``perf_counter``."""
        self.events = select.EPOLLIN
        """What the loop listens for."""
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._reading = Phase.IDLE
        """How far the parser is; the phase is another while an answer is due."""
        self._complete: deque[Request] = deque()
        self._outgoing = memoryview(b"")
        self._afterwards: Phase | None = None
        """What follows the answer; None: the next request."""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._request: Request | None = None
        self._body: list[bytes] = []
        self.body_bytes = 0
        """What it holds of a body that has not been answered."""
        self.is_large = False
        """Whether the body that is being read is for another worker."""
        self._unanswered: list[bytes] = []
        self._messages = 0
        """That began in what is unanswered."""
        self._continue = False
        self._since = 0.0
        """When this phase of reading began."""
        self._read_on()

    @property
    def closed(self) -> bool:
        """Whether the client has been let go of."""
        return self.phase is Phase.CLOSED

    # --- reading ---

    def receive(self) -> Request | None:
        """Read what there is, and return the next request that is complete, if one is.

        Raises:
            OSError: the client is gone, or has nothing more to say.
        """
        data = self.sock.recv(_BODY_CHUNK_BYTES if self.phase is Phase.BODY else self._limits.head_bytes)
        if not data:
            raise ConnectionResetError("the client closed the connection")
        return None if self.phase is Phase.LINGER else self.feed(data)

    def feed(self, data: bytes) -> Request | None:
        """Take what a client sent; as :meth:`receive`."""
        if self._limits.small_body_bytes is not None:
            if self._reading is Phase.IDLE:
                self._unanswered, self._messages = [data], 0
            else:
                self._unanswered.append(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered as if it had not asked; what follows may be another protocol.
            if self._complete:
                self._complete[-1].keep_alive = False
        except httptools.HttpParserError:
            self._refuse(NotHttpError("This is not a request of HTTP/1.1."))
        if not self._complete:
            self._wait_for_more(data)
        return self.next()

    def _wait_for_more(self, data: bytes) -> None:
        """Note how far a request has come of which this is not all."""
        if self.phase is not self._reading:
            self._read_on()
        if self.phase is Phase.HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(HeadTooLargeError(f"The head is larger than {self._limits.head_bytes} bytes."))
        elif self.phase is Phase.BODY:
            self.deadline = (
                self._since + self._limits.body_seconds + self.body_bytes / self._limits.body_bytes_per_second
            )
            if self._continue and not self.is_large:
                self._continue = False
                self.sock.send(_CONTINUE)

    def unanswered(self) -> bytes | None:
        """What was read of the one request that is under way; None where it was read together with another."""
        return b"".join(self._unanswered) if self._messages == 1 else None

    def next(self) -> Request | None:
        """The next request that was read completely; it is the caller's to have answered."""
        if not self._complete:
            return None
        self.phase, self.deadline = Phase.ANSWER, math.inf
        return self._complete.popleft()

    def expire(self) -> Request | None:
        """Its time is over: the request that is to be refused for it, or None when it is to be closed."""
        if self.phase not in (Phase.HEAD, Phase.BODY):
            return None
        return self.refuse(RequestTimeoutError("The request did not come within its time."))

    def slowness(self, now: float) -> float:
        """What it holds of a body that is not complete, times the seconds for which it has."""
        return self.body_bytes * (now - self._since) if self.phase is Phase.BODY else 0.0

    def refuse(self, error: RequestError) -> Request | None:
        """Give up the request that is being read: it is to be answered with ``error``."""
        self._refuse(error)
        return self.next()

    def _read_on(self) -> None:
        """Wait for what comes next."""
        self.phase = self._reading
        self._since = perf_counter()
        self.deadline = self._since + self._limits.seconds(self.phase)

    def _refuse(self, error: RequestError) -> None:
        """Have the request that is being read answered with an error, and the connection closed."""
        request = self._request or Request(self, "", self._target, self._headers)
        request.refusal = error
        request.keep_alive = False
        self._request = None
        self._body, self.body_bytes = [], 0
        self._complete.append(request)

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head_bytes = 0
        self._messages += 1
        self._reading = Phase.HEAD

    def on_url(self, piece: bytes) -> None:
        """A piece of the target."""
        self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer after a body in chunks."""
        if self._request is not None:
            return
        name = name.lower()
        self._headers[name] = self._headers[name] + b"," + value if name in self._headers else value

    def on_headers_complete(self) -> None:
        """The head is complete."""
        method = self._parser.get_method().decode("latin-1")
        self._request = request = Request(self, method, self._target, self._headers)
        request.http_1_0 = self._parser.get_http_version() == "1.0"
        self._body, self.body_bytes = [], 0
        self._reading = Phase.BODY
        length = int(self._headers.get(b"content-length", 0))
        small = self._limits.small_body_bytes
        self.is_large = small is not None and (length > small or b"transfer-encoding" in self._headers)
        if length > self._limits.body_bytes:
            self._refuse_body()
        self._continue = self._headers.get(b"expect", b"").lower() == b"100-continue" and not request.http_1_0

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        if self._request is None:
            return
        self._body.append(piece)
        self.body_bytes += len(piece)
        if self.body_bytes > self._limits.body_bytes:
            self._refuse_body()

    def on_message_complete(self) -> None:
        """The request is complete."""
        request = self._request
        if request is None:
            return
        request.body = b"".join(self._body)
        request.keep_alive = self._parser.should_keep_alive()
        request.arrived = perf_counter()
        self._request, self._body, self._target, self._headers = None, [], b"", {}
        self._complete.append(request)
        self._reading = Phase.IDLE

    def _refuse_body(self) -> None:
        self._refuse(TooLargeError(f"The body is larger than {self._limits.body_bytes} bytes."))

    # --- writing ---

    def answer(self, request: Request, response: Response, *, last: bool) -> None:
        """Send an answer, as much of it as the client takes now.

        Args:
            request: what is answered.
            response: the answer.
            last: close the connection after it, even where the client would keep it.

        Raises:
            OSError: the client is gone.
        """
        if request.keep_alive and not last:
            self._afterwards = None
        else:
            # More of a request that was refused may be under way: closed at once, the answer would be lost.
            self._afterwards = Phase.LINGER if request.refusal else Phase.CLOSED
        self._outgoing = memoryview(response.to(request, close=self._afterwards is not None))
        if self._reading is not Phase.BODY:
            self.body_bytes = 0
            self._unanswered = []
        self.phase = Phase.WRITE
        self.write()

    def write(self) -> None:
        """Send more of the answer; then read on, or close.

        Raises:
            OSError: the client is gone.
        """
        with suppress(BlockingIOError):
            self._outgoing = self._outgoing[self.sock.send(self._outgoing) :]
        if self._outgoing:
            self.deadline = perf_counter() + self._limits.write_seconds
        elif self._afterwards is None:
            self._read_on()
        elif self._afterwards is Phase.LINGER:
            self.phase = Phase.LINGER
            self.deadline = perf_counter() + self._limits.linger_seconds
            self.sock.shutdown(socket.SHUT_WR)
        else:
            self.phase = Phase.CLOSED

    def close(self) -> None:
        """Let go of the client."""
        self.phase = Phase.CLOSED
        self.sock.close()
