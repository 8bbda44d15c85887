"""One worker's loop, with an application that does what the test says: connections, queue, deadlines, limits."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from model_server.worker.connection import Limits
from model_server.worker.errors import RequestError
from model_server.worker.http import Request, Response
from model_server.worker.loop import Capacity, Loop
from model_server.worker.seats import Seats

pytestmark = pytest.mark.timing

LONG = 60.0
"""Seconds that no test waits for unless something is wrong."""
LIMITS = Limits(body_bytes=1_000_000, idle_seconds=LONG, head_seconds=LONG, body_seconds=LONG)
CAPACITY = Capacity(predictions=1, waiting=2, seconds=LONG)


class Told:
    """An application that answers with the body it was sent, or does what the body says."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        """Released whenever a blocked request begins."""
        self.release = threading.Event()
        self.asked: list[bytes] = []

    def predicts(self, request: Request) -> bool:
        return request.path == "/invocations"

    def answer(self, request: Request) -> Response:
        self.asked.append(request.body)
        if request.body.startswith(b"block"):
            self.begun.release()
            assert self.release.wait(LONG)
        if request.body == b"fail":
            raise ZeroDivisionError
        body = b"x" * int(request.body[5:]) if request.body.startswith(b"large") else request.body
        headers = [("X-Path", request.path), ("X-Query-Length", str(len(request.query)))]
        return Response(200, headers, body)

    def refuse(self, request: Request, error: RequestError) -> Response:
        return Response(error.status, error.headers.items(), json.dumps(error.body(request.id, False)).encode())

    def count(self, scored: object) -> None:
        pass


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection, byte by byte."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=LONG)
        self._read = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def ask(self, body: bytes, path: str = "/invocations", headers: str = "") -> None:
        self.send(f"POST {path} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def receive(self, *, has_body: bool = True) -> Answer:
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers.get("Content-Length", 0)) if has_body else 0
        while len(self._read) < length:
            self._more()
        body, self._read = self._read[:length], self._read[length:]
        return Answer(int(status.split()[1]), headers, body)

    def get(self, body: bytes, path: str = "/invocations", headers: str = "") -> Answer:
        self.ask(body, path, headers)
        return self.receive()

    def is_closed(self) -> bool:
        """Whether the server ends the connection without another byte; waits until it does."""
        with contextlib.suppress(ConnectionResetError):
            return self._read == b"" and self.sock.recv(1) == b""
        return True

    def _more(self) -> None:
        data = self.sock.recv(1 << 20)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._read += data


@dataclass
class Running:
    """A loop that runs, and its clients."""

    loop: Loop
    application: Told
    port: int
    listener: socket.socket
    seats: Seats
    clients: list[Client] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def connect(self) -> Client:
        client = Client(self.port)
        self.clients.append(client)
        return client

    def watch(self) -> None:
        while self.loop.watch(0.1):
            pass
        self.ended.set()


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts loops; with ``beside``, on the listener of another and on the next seat."""
    running: list[Running] = []
    seats = Seats(2)

    def begin(limits: Limits = LIMITS, capacity: Capacity = CAPACITY, beside: Running | None = None) -> Running:
        listener = beside.listener.dup() if beside else socket.create_server(("127.0.0.1", 0), backlog=1024)
        listener.setblocking(False)
        application = Told()
        # A descriptor of its own: the loop closes it when it stops.
        loop = Loop(application, [listener.dup()], seats, len(running), capacity, limits)
        running.append(Running(loop, application, listener.getsockname()[1], listener, seats))
        loop.start()
        threading.Thread(target=running[-1].watch, daemon=True).start()
        return running[-1]

    yield begin
    for one in running:
        one.application.release.set()
        one.listener.close()
        for client in one.clients:
            client.sock.close()
        one.loop.stop()
    for one in running:
        assert one.ended.wait(LONG), "the loop does not end"


# --- HTTP ----------------------------------------------------------------------------------------------------------


def test_answers_one_request_after_the_other_in_their_order(start: Start) -> None:
    client = start().connect()
    bodies = [str(number).encode() for number in range(500)]
    for body in bodies:
        client.ask(body)
    assert [client.receive().body for _ in bodies] == bodies


def test_head_and_body_of_an_answer_come_together(start: Start) -> None:
    client = start().connect()
    client.ask(b"body")
    assert client.sock.recv(1 << 16).endswith(b"\r\n\r\nbody")


@pytest.mark.parametrize(
    ("target", "path"),
    [("/a?q", "/a"), ("http://h/b?q", "/b"), ("/%2561", "/%61"), ("//invocations", "//invocations"), ("*", "*")],
)
def test_the_path_of_every_form_of_target(start: Start, target: str, path: str) -> None:
    client = start().connect()
    client.send(f"{'OPTIONS' if target == '*' else 'GET'} {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert client.receive().headers["X-Path"] == path


def test_a_body_in_chunks_with_a_trailer(start: Start) -> None:
    client = start().connect()
    head = b"POST /invocations HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.send(head + b"3\r\nabc\r\n")
    client.send(b"2;extension=1\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n")
    assert client.receive().body == b"abcde"
    assert client.get(b"next").body == b"next"


def test_a_request_in_single_bytes(start: Start) -> None:
    client = start().connect()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok":
        client.send(bytes([byte]))
    assert client.receive().body == b"ok"


def test_http_1_0_closes_unless_asked_to_keep(start: Start) -> None:
    running = start()
    kept, closed = running.connect(), running.connect()
    kept.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert kept.receive().headers["Connection"] == "keep-alive"
    assert kept.get(b"next").body == b"next"
    closed.send(b"GET / HTTP/1.0\r\n\r\n")
    assert closed.receive().headers["Connection"] == "close"
    assert closed.is_closed()


def test_a_client_that_asks_to_close_is_closed(start: Start) -> None:
    client = start().connect()
    assert client.get(b"last", headers="Connection: close\r\n").headers["Connection"] == "close"
    assert client.is_closed()


def test_head_has_the_length_but_no_body(start: Start) -> None:
    client = start().connect()
    client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
    assert client.receive(has_body=False).headers["Content-Length"] == "3"
    assert client.get(b"next").body == b"next"


def test_a_client_that_waits_for_continue_is_told_to(start: Start) -> None:
    client = start().connect()
    client.send(b"POST /invocations HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert client.receive(has_body=False).status == 100
    client.send(b"ok")
    assert client.receive().body == b"ok"


def test_an_upgrade_is_answered_as_if_it_had_not_been_asked_for(start: Start) -> None:
    client = start().connect()
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n")
    assert client.receive().status == 200
    assert client.is_closed()


def test_a_head_of_60_kb_is_read(start: Start) -> None:
    client = start().connect()
    answer = client.get(b"ok", f"/invocations?{'q' * 30_000}", f"Cookie: {'c' * 30_000}\r\n")
    assert (answer.body, answer.headers["X-Query-Length"]) == (b"ok", "30000")


# --- requests that are none ----------------------------------------------------------------------------------------


def test_a_body_that_is_cut_short_is_never_answered(start: Start) -> None:
    running = start()
    client = running.connect()
    client.send(b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nonly this")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.is_closed()
    assert running.application.asked == []


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/3.0\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes(range(256)),
    ],
)
def test_what_breaks_the_rules_is_a_400_in_json_and_the_end(start: Start, data: bytes) -> None:
    running = start()
    client = running.connect()
    client.send(data)
    answer = client.receive()
    assert (answer.status, answer.headers["Connection"]) == (400, "close")
    assert json.loads(answer.body)["request_id"]
    assert client.is_closed()
    assert running.application.asked == []


def test_a_request_before_the_broken_one_is_answered_first(start: Start) -> None:
    client = start().connect()
    client.ask(b"good")
    client.send(b"nonsense\r\n\r\n")
    assert client.receive().body == b"good"
    assert client.receive().status == 400


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_a_413_that_reaches_a_client_still_sending(start: Start, chunked: bool) -> None:
    client = start().connect()
    body = b"x" * 8_000_000
    if chunked:
        client.send(b"POST /invocations HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(f"{len(body):x}\r\n".encode() + body)
    else:
        client.ask(body)
    answer = client.receive()
    assert (answer.status, answer.headers["Connection"]) == (413, "close")
    assert b"1000000 bytes" in answer.body


def test_a_head_without_an_end_is_a_431(start: Start) -> None:
    client = start().connect()
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\nX-Long: " + b"x" * 100_000)
    answer = client.receive()
    assert (answer.status, answer.headers["Connection"]) == (431, "close")
    assert json.loads(answer.body)["error_code"] == "BAD_REQUEST"


def test_a_fault_of_the_application_is_a_500_with_an_id(start: Start) -> None:
    client = start().connect()
    answer = client.get(b"fail", headers="X-Request-Id: mine\r\n")
    assert (answer.status, json.loads(answer.body)["request_id"]) == (500, "mine")
    assert client.get(b"next").body == b"next"


# --- slow clients --------------------------------------------------------------------------------------------------


def stall(running: Running, sent: bytes, number: int) -> list[Client]:
    clients = [running.connect() for _ in range(number)]
    for client in clients:
        client.send(sent)
    return clients


HALF_A_HEAD = b"POST /invocations HTTP/1.1\r\nHost: h\r\nX-"
HALF_A_BODY = b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf"


@pytest.mark.parametrize("sent", [b"", HALF_A_HEAD, HALF_A_BODY])
def test_clients_that_stall_hold_up_nobody(start: Start, sent: bytes) -> None:
    running = start()
    stall(running, sent, 300)
    assert running.connect().get(b"prediction").body == b"prediction"
    assert running.connect().get(b"", "/ping").status == 200


@pytest.mark.parametrize("sent", [HALF_A_HEAD, HALF_A_BODY])
def test_a_request_that_does_not_end_is_a_408(start: Start, sent: bytes) -> None:
    running = start(replace(LIMITS, head_seconds=0.1, body_seconds=0.1))
    client = running.connect()
    client.send(sent)
    answer = client.receive()
    assert (answer.status, answer.headers["Connection"]) == (408, "close")
    assert running.application.asked == []


def test_a_connection_without_requests_is_closed(start: Start) -> None:
    running = start(replace(LIMITS, idle_seconds=0.1))
    fresh, used = running.connect(), running.connect()
    used.get(b"once")
    assert fresh.is_closed()
    assert used.is_closed()


def test_one_connection_too_many_takes_the_place_of_who_waited_longest(start: Start) -> None:
    running = start(capacity=replace(CAPACITY, connections=50))
    stalled = stall(running, HALF_A_HEAD, 50)
    assert running.connect().get(b"new").body == b"new"
    assert stalled[0].is_closed()


def test_a_request_that_is_answered_keeps_its_place(start: Start) -> None:
    running = start(capacity=replace(CAPACITY, connections=10))
    asking = running.connect()
    asking.ask(b"block")
    running.application.begun.acquire()
    stall(running, b"", 30)
    assert running.connect().get(b"", "/ping").status == 200
    running.application.release.set()
    assert asking.receive().body == b"block"


def test_a_client_that_reads_slowly_has_all_of_its_answer_and_holds_up_nobody(start: Start) -> None:
    running = start()
    slow = running.connect()
    slow.ask(b"large50000000")
    assert running.connect().get(b"quick").body == b"quick"
    assert len(slow.receive().body) == 50_000_000
    assert slow.get(b"next").body == b"next"


# --- slow requests -------------------------------------------------------------------------------------------------


def test_a_slow_request_holds_up_nobody_else(start: Start) -> None:
    running = start(capacity=replace(CAPACITY, predictions=2))
    slow = running.connect()
    slow.ask(b"block")
    running.application.begun.acquire()
    assert running.connect().get(b"quick").body == b"quick"
    assert running.connect().get(b"", "/ping").status == 200
    running.application.release.set()
    assert slow.receive().body == b"block"
    assert slow.get(b"next").body == b"next"


def test_so_many_at_once_so_many_wait_and_the_next_is_refused(start: Start) -> None:
    running = start()
    slow, first, second, refused = (running.connect() for _ in range(4))
    slow.ask(b"block")
    running.application.begun.acquire()
    first.ask(b"1")
    # An answer to a later request shows that the earlier ones have been read.
    assert running.connect().get(b"", "/ping").status == 200
    second.ask(b"2")
    assert running.connect().get(b"", "/ping").status == 200
    answer = refused.get(b"3")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "Connection" not in answer.headers
    running.application.release.set()
    assert [client.receive().body for client in (slow, first, second)] == [b"block", b"1", b"2"]
    assert refused.get(b"again").body == b"again"
    predicted = [body for body in running.application.asked if body]
    assert predicted == [b"block", b"1", b"2", b"again"]


def test_quick_requests_beyond_the_queue_are_not_refused(start: Start) -> None:
    running = start()
    clients = [running.connect() for _ in range(40)]
    for client in clients:
        client.ask(b"quick")
    assert [client.receive().status for client in clients] == [200] * 40


def test_a_request_that_runs_too_long_is_a_504_while_it_still_runs(start: Start) -> None:
    running = start(capacity=replace(CAPACITY, predictions=2, seconds=0.5))
    client = running.connect()
    client.ask(b"block")
    assert client.receive().status == 504
    assert not running.application.release.is_set()
    assert client.get(b"next").body == b"next"


def test_a_request_whose_time_is_over_before_it_began_never_begins(start: Start) -> None:
    running = start(capacity=replace(CAPACITY, seconds=0.5))
    slow, waiting = running.connect(), running.connect()
    slow.ask(b"block")
    running.application.begun.acquire()
    waiting.ask(b"never")
    assert waiting.receive().status == 504
    running.application.release.set()
    assert slow.receive().status in (200, 504)
    assert waiting.get(b"next").body == b"next"
    assert b"never" not in running.application.asked


def test_a_request_whose_client_has_gone_never_begins(start: Start) -> None:
    running = start()
    slow, gone = running.connect(), running.connect()
    slow.ask(b"block")
    running.application.begun.acquire()
    gone.ask(b"never")
    assert running.connect().get(b"", "/ping").status == 200
    # A reset, which the server hears of although it does not read.
    gone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    gone.sock.close()
    assert running.connect().get(b"", "/ping").status == 200
    running.application.release.set()
    assert slow.receive().body == b"block"
    assert running.connect().get(b"next").body == b"next"
    assert b"never" not in running.application.asked


def test_a_request_that_does_not_come_back_ends_the_loop(start: Start) -> None:
    running = start(capacity=replace(CAPACITY, seconds=0.2))
    client = running.connect()
    client.ask(b"block")
    assert client.receive().status == 504
    assert running.ended.wait(LONG)
    assert not running.application.release.is_set()


# --- the end -------------------------------------------------------------------------------------------------------


def test_a_stop_answers_what_is_under_way_and_what_idle_clients_ask_last(start: Start) -> None:
    running = start(capacity=replace(CAPACITY, predictions=2))
    slow, idle = running.connect(), running.connect()
    idle.get(b"before")
    slow.ask(b"block")
    running.application.begun.acquire()
    running.loop.stop()
    idle.ask(b"last")
    answer = idle.receive()
    assert (answer.body, answer.headers["Connection"]) == (b"last", "close")
    assert not running.ended.is_set()
    running.application.release.set()
    assert slow.receive().headers["Connection"] == "close"
    assert running.ended.wait(LONG)


# --- several workers -----------------------------------------------------------------------------------------------


def test_connections_go_to_the_worker_that_has_the_fewest(start: Start) -> None:
    first = start()
    second = start(beside=first)
    clients = [first.connect() for _ in range(20)]
    for number, client in enumerate(clients):
        assert client.get(b"%d" % number).status == 200
    shares = len(first.application.asked), len(second.application.asked)
    assert sum(shares) == 20
    assert abs(shares[0] - shares[1]) <= 4, f"20 connections, shared {shares}"


def test_a_worker_that_does_not_accept_leaves_its_share_to_the_others(start: Start) -> None:
    running = start()
    running.seats.set(1, 0)
    clients = [running.connect() for _ in range(20)]
    assert [client.get(b"x").status for client in clients] == [200] * 20


def test_a_worker_that_stops_gives_up_its_seat(start: Start) -> None:
    first = start()
    second = start(beside=first)
    second.connect().get(b"x")
    second.loop.stop()
    assert second.ended.wait(LONG)
    first.seats.set(0, 1000)
    assert first.seats.may_accept(0)
