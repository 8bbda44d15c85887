"""One worker's loop, with an application that does what the test says: connections, queue, deadlines, limits."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from model_server.worker import loop as loop_module
from model_server.worker import memory
from model_server.worker.connection import Limits, Phase
from model_server.worker.errors import LargeRequestError, RequestError
from model_server.worker.handover import Handover
from model_server.worker.http import Request, Response
from model_server.worker.loop import Capacity, Loop
from model_server.worker.memory import Growth, share_of
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
        self.requests: list[Request] = []

    def predicts(self, request: Request) -> bool:
        return request.path == "/invocations"

    def answer(self, request: Request) -> Response:
        self.asked.append(request.body)
        self.requests.append(request)
        if request.body.startswith(b"block"):
            self.begun.release()
            assert self.release.wait(LONG)
        if request.small and request.body.endswith(b"costly"):
            raise LargeRequestError
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

    def begin(
        limits: Limits = LIMITS,
        capacity: Capacity = CAPACITY,
        beside: Running | None = None,
        growth: Growth | None = None,
        handover: Handover | None = None,
        *,
        large: bool = False,
    ) -> Running:
        listener = beside.listener.dup() if beside else socket.create_server(("127.0.0.1", 0), backlog=1024)
        listener.setblocking(False)
        application = Told()
        # A descriptor of its own: the loop closes it when it stops.
        listeners = [] if large else [listener.dup()]
        growth = growth or Growth(share_of(1))
        loop = Loop(application, listeners, seats, len(running), capacity, limits, growth, handover, large=large)
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


def test_a_client_that_leaves_is_heard_of_while_its_request_runs(start: Start) -> None:
    running = start()
    leaving = running.connect()
    leaving.ask(b"block")
    running.application.begun.acquire()
    assert not running.application.requests[0].gone
    leaving.sock.close()
    # The second of these is read after the event that the first may have come with.
    for _ in range(2):
        assert running.connect().get(b"", "/ping").status == 200
    assert running.application.requests[0].gone
    running.application.release.set()
    assert running.connect().get(b"next").body == b"next"


def test_a_client_that_sent_its_next_request_already_has_not_left(start: Start) -> None:
    running = start()
    client = running.connect()
    client.ask(b"block")
    running.application.begun.acquire()
    client.ask(b"next")
    for _ in range(2):
        assert running.connect().get(b"", "/ping").status == 200
    running.application.release.set()
    assert [client.receive().body for _ in range(2)] == [b"block", b"next"]


# --- memory --------------------------------------------------------------------------------------------------------

ROOM = replace(LIMITS, all_body_bytes=500_000)


def test_bodies_under_way_that_are_too_large_together_are_refused_the_slowest_first(start: Start) -> None:
    running = start(ROOM)
    head = b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n"
    slow, quick = running.connect(), running.connect()
    slow.send(head + b"x" * 290_000)
    assert running.connect().get(b"", "/ping").status == 200
    quick.send(head + b"x" * 290_000)
    answer = slow.receive()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "as many bytes" in json.loads(answer.body)["message"]
    quick.send(b"x" * 10_000)
    assert quick.receive().status == 200


def test_a_body_for_which_those_that_wait_leave_no_room_is_refused(start: Start) -> None:
    running = start(ROOM)
    first, second = running.connect(), running.connect()
    first.ask(b"block" + b"x" * 300_000)
    running.application.begun.acquire()
    assert second.get(b"x" * 300_000).status == 503
    running.application.release.set()
    assert first.receive().status == 200
    assert running.connect().get(b"x" * 300_000).status == 200


class Grown(Growth):
    """A memory that has grown when the test says so."""

    def __init__(self) -> None:
        super().__init__(share_of(1))
        self.too_much = threading.Event()

    def is_too_much(self) -> bool:
        return self.too_much.is_set()


def test_a_worker_that_has_grown_ends_when_it_has_answered(start: Start) -> None:
    growth = Grown()
    first = start(growth=growth)
    second = start(beside=first)
    second.application.release.set()
    clients = [first.connect() for _ in range(4)]
    for client in clients:
        client.ask(b"block")
    first.application.begun.acquire()
    growth.too_much.set()
    assert not first.ended.wait(2), "it ends before it has answered"
    first.application.release.set()
    assert [client.receive().status for client in clients] == [200] * 4
    assert first.ended.wait(LONG)
    assert second.connect().get(b"x").status == 200


def test_workers_that_have_grown_never_end_at_the_same_time(start: Start) -> None:
    growth = Grown()
    first = start(growth=growth)
    second = start(beside=first, growth=growth)
    growth.too_much.set()
    gone = threading.Event()
    for running in (first, second):
        threading.Thread(target=lambda one: one.ended.wait(LONG) and gone.set(), args=(running,), daemon=True).start()
    assert gone.wait(LONG)
    remaining = second if first.ended.is_set() else first
    assert not remaining.ended.wait(3), "both have gone"
    assert remaining.connect().get(b"x").status == 200


def test_a_worker_that_is_large_from_the_beginning_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_REST_SECONDS", 0.0)
    assert not Growth(share=1).is_too_much()
    growth = Growth(share=2**40)
    assert not growth.is_too_much()
    monkeypatch.setattr(memory, "own_bytes", lambda: 2**40 + 1)
    assert growth.is_too_much()
    monkeypatch.setattr(memory, "_REST_SECONDS", LONG)
    monkeypatch.setattr(memory, "own_bytes", lambda: 1)
    rested = Growth(share=1)
    monkeypatch.setattr(memory, "own_bytes", lambda: 2)
    assert not rested.is_too_much(), "it has only begun"


def test_the_share_of_a_worker_is_of_the_control_groups_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("805306368\n")
    assert share_of(2, tmp_path) == 301_989_888
    (tmp_path / "memory.max").write_text("max\n")
    assert share_of(2, tmp_path) == share_of(2, tmp_path / "nowhere") > 301_989_888


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


def test_an_event_of_a_former_connection_costs_the_one_that_has_its_number_nothing(start: Start) -> None:
    running = start()
    client = running.connect()
    assert client.get(b"first").status == 200
    (connection,) = running.loop._connections.values()
    end = time.monotonic() + LONG
    while connection.phase is not Phase.IDLE:
        assert time.monotonic() < end
        time.sleep(0.01)
    running.loop._attend(connection, select.EPOLLIN)
    assert client.get(b"second").status == 200


def test_a_client_that_leaves_while_another_comes_takes_nobody_along() -> None:
    """Of some events, the first closes a connection, and the last has its number, another's by then."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    loop = Loop(Told(), [listener], Seats(1), 0, CAPACITY, LIMITS, Growth(share_of(1)))
    leaves = socket.create_connection(listener.getsockname())
    loop._look()
    (number,) = loop._connections
    comes = socket.create_connection(listener.getsockname())

    class Events:
        """What epoll tells, once."""

        def __init__(self, epoll: select.epoll) -> None:
            self._epoll = epoll

        def __getattr__(self, name: str) -> object:
            return getattr(self._epoll, name)

        def poll(self, _seconds: float, _most: int) -> list[tuple[int, int]]:
            return [
                (number, select.EPOLLRDHUP),
                (listener.fileno(), select.EPOLLIN),
                (number, select.EPOLLRDHUP),
            ]

    epoll, loop._epoll = loop._epoll, Events(loop._epoll)  # type: ignore[assignment]
    loop._look()
    loop._epoll = epoll
    assert [connection.sock.getpeername() for connection in loop._connections.values()] == [comes.getsockname()]
    assert list(loop._connections) == [number], "the system gives the lowest number that is free"
    for opened in (leaves, comes, listener, *loop._connections.values()):
        opened.close()


# --- large requests ------------------------------------------------------------------------------------------------


SMALL = replace(LIMITS, small_body_bytes=1_000, head_bytes=1_000)
LARGE_BODY = b"a large body " * 1_000


@pytest.fixture
def two_kinds(start: Start) -> tuple[Running, Running]:
    """A worker for small requests, and one for those that it hands over."""
    small, large = Handover.ends()
    return start(SMALL, handover=small), start(LIMITS, handover=large, large=True)


def test_a_large_body_is_answered_by_another_worker_and_the_connection_comes_back(
    two_kinds: tuple[Running, Running],
) -> None:
    small, large = two_kinds
    client = small.connect()
    for _ in range(3):
        client.send(b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 13000\r\n\r\n" + LARGE_BODY[:500])
        client.send(LARGE_BODY[500:7_000])
        client.send(LARGE_BODY[7_000:])
        assert client.receive().body == LARGE_BODY
        assert client.get(b"small").body == b"small"
    assert (small.application.asked, large.application.asked) == ([b"small"] * 3, [LARGE_BODY] * 3)


def test_a_body_of_a_length_that_is_not_said_is_a_large_one_unless_it_is_there_at_once(
    two_kinds: tuple[Running, Running],
) -> None:
    small, large = two_kinds
    client = small.connect()
    head = b"POST /invocations HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.send(head + b"1\r\na\r\n0\r\n\r\n")
    assert client.receive().body == b"a"
    client.send(head + b"1\r\nb\r\n1\r")
    client.send(b"\nc\r\n0\r\n\r\n")
    assert client.receive().body == b"bc"
    assert small.application.asked[0] == b"a"
    assert (*small.application.asked, *large.application.asked) == (b"a", b"bc")


def test_a_request_that_turns_out_to_be_large_is_handed_over_with_all_that_was_read_of_it(
    two_kinds: tuple[Running, Running],
) -> None:
    small, large = two_kinds
    client = small.connect()
    for number in range(3):
        answer = client.get(b"costly", f"/invocations?{'x' * number}", "X-Request-Id: it\r\n")
        assert (answer.status, answer.body, answer.headers["X-Query-Length"]) == (200, b"costly", str(number))
    assert large.application.asked == [b"costly"] * 3
    assert {request.id for request in large.application.requests} == {"it"}
    assert client.get(b"small").body == b"small"


def test_small_requests_are_answered_while_a_large_one_runs(two_kinds: tuple[Running, Running]) -> None:
    small, large = two_kinds
    slow = small.connect()
    slow.ask(b"block" + LARGE_BODY)
    assert large.application.begun.acquire(timeout=LONG)
    assert [small.connect().get(b"small").status for _ in range(5)] == [200] * 5
    large.application.release.set()
    assert slow.receive().status == 200


def test_a_large_request_that_was_sent_together_with_another_is_refused(two_kinds: tuple[Running, Running]) -> None:
    client = two_kinds[0].connect()
    head = "POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n"
    client.send(head.format(5).encode() + b"small" + head.format(len(LARGE_BODY)).encode() + LARGE_BODY)
    assert client.receive().body == b"small"
    assert client.receive().status == 503


def test_what_cannot_be_handed_over_any_more_is_a_503(start: Start) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    small = start(SMALL, handover=Handover(ours))
    clients = [small.connect() for _ in range(20)]
    for client in clients:
        client.ask(LARGE_BODY)
    answer = clients[-1].receive()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert small.connect().get(b"small").status == 200
    theirs.close()


def test_a_worker_that_stops_answers_large_requests_itself(two_kinds: tuple[Running, Running]) -> None:
    small, large = two_kinds
    client, last = small.connect(), small.connect()
    assert client.get(b"small").status == last.get(b"small").status == 200
    client.ask(b"block")
    assert small.application.begun.acquire(timeout=LONG)
    small.loop.stop()
    last.ask(LARGE_BODY)
    small.application.release.set()
    assert client.receive().status == 200
    assert last.receive().body == LARGE_BODY
    assert small.ended.wait(LONG)
    assert large.application.asked == []


def test_a_request_that_turns_out_to_be_large_while_its_worker_stops_is_answered_there(
    two_kinds: tuple[Running, Running],
) -> None:
    small, large = two_kinds
    client = small.connect()
    client.ask(b"block, costly")
    assert small.application.begun.acquire(timeout=LONG)
    small.loop.stop()
    small.application.release.set()
    assert client.receive().body == b"block, costly"
    assert small.ended.wait(LONG)
    assert large.application.asked == []


def test_a_worker_for_large_requests_that_stops_answers_those_that_are_on_their_way(
    two_kinds: tuple[Running, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = two_kinds
    # A slow machine may take longer than a second from here to the request.
    monkeypatch.setattr(loop_module, "_FAREWELL_SECONDS", 5.0)
    large.loop.stop()
    assert small.connect().get(LARGE_BODY).body == LARGE_BODY
    assert large.ended.wait(LONG)
    waits = small.connect()
    waits.ask(LARGE_BODY)
    assert small.connect().get(b"small").status == 200
    assert large.application.asked == [LARGE_BODY], "the next one waits for the worker that comes in its place"
