"""A closed-loop HTTP client: so many connections, each sends its next request when its last was answered."""

from __future__ import annotations

import itertools
import selectors
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter


@dataclass
class Load:
    """What one run measured."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    """Of each answered request, in seconds."""
    errors: int = 0
    """Answers with another status than 200, and connections that broke."""

    @property
    def rate(self) -> float:
        """Answered requests per second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """The latency, in seconds, that ``share`` of the requests stayed below."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class _Connection:
    """One client: its socket, its pending answer, and when it sent."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0.0
        self._received = b""

    def send(self, request: bytes) -> None:
        self.sent = perf_counter()
        self.socket.sendall(request)

    def receive(self) -> int | None:
        """The status of the answer once it is whole, None before.

        Raises:
            ConnectionError: the server closed the connection.
        """
        chunk = self.socket.recv(1 << 18)
        if not chunk:
            raise ConnectionResetError("the server closed the connection")
        self._received += chunk
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return None
        self._received = b""
        return int(head[9:12])


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError(f"an answer without Content-Length: {head!r}")


def post(path: str, bodies: Sequence[bytes]) -> list[bytes]:
    """HTTP requests with these JSON bodies."""
    return [
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in bodies
    ]


def run(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Send ``requests`` in turn over ``connections`` connections to a port of this machine for ``seconds``."""
    source: Iterator[bytes] = itertools.cycle(requests)
    load = Load(seconds)
    with selectors.DefaultSelector() as selector:

        def connect() -> None:
            connection = _Connection(port)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(next(source))

        for _ in range(connections):
            connect()
        start = perf_counter()
        while perf_counter() - start < seconds:
            for key, _ in selector.select(timeout=1):
                connection: _Connection = key.data
                try:
                    status = connection.receive()
                except ConnectionError:
                    load.errors += 1
                    selector.unregister(connection.socket)
                    connection.socket.close()
                    connect()
                    continue
                if status is None:
                    continue
                load.latencies.append(perf_counter() - connection.sent)
                load.errors += status != 200
                connection.send(next(source))
        load.seconds = perf_counter() - start
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    return load
