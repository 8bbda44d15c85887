"""The loop of one worker: all connections, the queue for predictions, and the threads that take turns at it.

One thread, the *leader*, waits for all connections, reads their requests and answers them itself, one after the other.
That is the quickest way while requests are quick: two changes of thread cost more than a small model does, and threads
that are busy at the same time spend their time on Python's lock. When a request takes longer than a moment, another
thread becomes the leader: it goes on with everybody else's requests, and the former hands over its answer when it has
it. Only the leader touches connections, so nothing here needs a lock but the change of leaders.
"""

from __future__ import annotations

import logging
import math
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Protocol

from model_server.common import metrics
from model_server.worker.connection import Connection, Limits, Phase
from model_server.worker.errors import BusyError, DeadlineError, LargeRequestError, RequestError, ServerError
from model_server.worker.handover import Handover
from model_server.worker.http import Request, Response
from model_server.worker.memory import Growth, own_bytes
from model_server.worker.scoring import Scored
from model_server.worker.seats import Seats

_logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 0.01
"""How long a request may take before another thread leads."""
_YIELD_SECONDS = 0.001
"""How long a new connection is left to workers that have fewer."""
_SWEEP_SECONDS = 1.0
"""Between two looks at who has waited for too long."""
_FAREWELL_SECONDS = 1.0
"""How long a worker that stops waits for the next request of an idle client: it may be under way."""
_COUNTED_TOGETHER = 64
"""Answers are counted when nothing else is to be done, or so many at once: singly it takes as long as parsing them."""
_SMALL_BODY_BYTES = 64 * 1024
"""A body that may be held without asking how large all are together."""
_MOST_EVENTS = 8
"""Looked at together, so that those who come meanwhile have their turn."""
_NO_MORE_LARGE = "it has as many large requests as it may, or this one was sent together with another"


class Application(Protocol):
    """What answers requests. Called from any thread; it raises nothing but what is said here."""

    def predicts(self, request: Request) -> bool:
        """Whether a request takes one of the places for predictions."""

    def answer(self, request: Request) -> Response:
        """Answer it; this may take long.

        Raises:
            LargeRequestError: it is large, and is not answered here where its ``small`` is true.
        """

    def refuse(self, request: Request, error: RequestError) -> Response:
        """Answer it with an error; this is quick."""

    def count(self, scored: Sequence[Scored]) -> None:
        """Count predictions that were answered."""


@dataclass(frozen=True)
class Capacity:
    """What a worker does at one time."""

    predictions: int
    """At once."""
    waiting: int
    """Requests for predictions that wait; the next is refused."""
    seconds: float
    """From a request's arrival until it is answered with an error."""
    connections: int = 1000
    """The next takes the place of whoever has waited longest for the end of its request, or for the next."""


@dataclass(slots=True)
class _Answered:
    """What is counted of a request for a prediction."""

    response: Response
    waited: float
    took: float


class _Leader:
    """A thread's turn at leading."""

    __slots__ = ("busy_since", "request")

    def __init__(self) -> None:
        self.request: Request | None = None
        """What it answers now."""
        self.busy_since = 0.0


class Loop:
    """Answers what comes in on some listeners, until it is stopped.

    Args:
        application: what answers.
        listeners: non-blocking; other workers accept from them too.
        seats: the connections of all these workers.
        seat: of this worker.
        capacity: of this worker.
        limits: of each connection.
        growth: of this worker's memory.
        handover: to the workers for large requests, or from them to the others; None where there are none.
        large: whether this worker is one for large requests: it accepts nobody itself.
    """

    def __init__(
        self,
        application: Application,
        listeners: Sequence[socket.socket],
        seats: Seats,
        seat: int,
        capacity: Capacity,
        limits: Limits,
        growth: Growth,
        handover: Handover | None = None,
        *,
        large: bool = False,
    ) -> None:
        self._application = application
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._seats = seats
        self._seat = seat
        self._capacity = capacity
        self._limits = limits
        self._growth = growth
        self._handover = handover
        self._large = large
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._others: deque[Request] = deque()
        self._waiting: deque[Request] = deque()
        self._running: set[Request] = set()
        """What former leaders still answer."""
        self._answered: list[_Answered] = []
        """What has not been counted yet."""
        self._outcomes: deque[tuple[Request, Response | None]] = deque()
        """What they have answered since the leader last looked."""
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._accepts_at = 0.0
        self._sweeps_at = perf_counter() + _SWEEP_SECONDS
        self._stopping = False
        self._adopts = handover is not None
        """Whether it takes connections that are handed over."""
        self._adopts_until = math.inf
        self._finished = threading.Event()
        self._active = threading.Event()
        self._leader = _Leader()
        self._lock = threading.Lock()
        self._vacant = threading.Semaphore(0)
        self._spare_threads = 0
        self._epoll.register(self._wake, select.EPOLLIN)
        for descriptor in self._listeners:
            self._epoll.register(descriptor, select.EPOLLIN)
        if handover is not None:
            self._epoll.register(handover, select.EPOLLIN)

    # --- from the main thread ---

    def start(self) -> None:
        """Begin to accept and to answer."""
        self._say_how_many()
        self._appoint()

    def watch(self, seconds: float) -> bool:
        """Have another thread lead when the leader is kept by a slow request; false when the loop has ended.

        Call it again and again.

        Args:
            seconds: after which it returns at the latest, or somewhat later.
        """
        if self._active.wait(seconds):
            sleep(_PATIENCE_SECONDS)
            leader = self._leader
            if leader.busy_since and perf_counter() - leader.busy_since >= _PATIENCE_SECONDS:
                self._relieve(leader)
        return not self._finished.is_set()

    def stop(self) -> None:
        """Accept no more connections, answer what is under way, and end. Safe in a signal handler."""
        self._stopping = True
        self._wake_leader()

    def _relieve(self, leader: _Leader) -> None:
        with self._lock:
            # It may have come back meanwhile.
            if leader.request is None:
                return
            self._running.add(leader.request)
            self._leader = _Leader()
            self._appoint()

    def _appoint(self) -> None:
        """Have a thread lead: one that has nothing to do, or a new one."""
        if self._spare_threads:
            self._spare_threads -= 1
        else:
            threading.Thread(target=self._take_turns, name="leader", daemon=True).start()
        self._vacant.release()

    def _wake_leader(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    # --- from the threads that take turns ---

    def _take_turns(self) -> None:
        while True:
            self._vacant.acquire()
            try:
                self._lead(self._leader)
            except BaseException:
                # Connections may be in any state: the worker is replaced.
                _logger.critical("the server failed", exc_info=True)
                os._exit(1)

    def _lead(self, leader: _Leader) -> None:
        """Answer requests until another thread leads or the loop has ended."""
        while not self._has_ended():
            request = self._due()
            if request is None:
                self._look()
                continue
            leader.request = request
            leader.busy_since = request.began = perf_counter()
            if not self._active.is_set():
                self._active.set()
            response = self._answer(request)
            with self._lock:
                leader.request = None
                if leader is not self._leader:
                    self._outcomes.append((request, response))
                    self._spare_threads += 1
                    self._wake_leader()
                    return
            leader.busy_since = 0.0
            self._finish(request, response)

    def _has_ended(self) -> bool:
        if self._stopping and not (self._connections or self._listeners or self._adopts):
            self._finished.set()
            self._active.set()
        return self._finished.is_set()

    def _due(self) -> Request | None:
        """The next request that can be answered now. What needs no prediction comes first: it is quick."""
        if self._others:
            return self._others.popleft()
        while self._waiting and self._has_a_place():
            request = self._waiting.popleft()
            if request.connection.phase is not Phase.CLOSED:
                return request
            metrics.IN_FLIGHT.dec()
        return None

    def _has_a_place(self) -> bool:
        return sum(request.predicts for request in self._running) < self._capacity.predictions

    def _answer(self, request: Request) -> Response | None:
        """The answer, or None when another worker is to give it."""
        if request.refusal is not None:
            return self._application.refuse(request, request.refusal)
        try:
            return self._application.answer(request)
        except LargeRequestError:
            return None
        except Exception as error:  # noqa: BLE001 - a fault of ours: the client is told, the log has it
            failure = ServerError("The server failed on this request. Its log has the reason under the request's id.")
            failure.__cause__ = error
            return self._application.refuse(request, failure)

    def _finish(self, request: Request, response: Response | None) -> None:
        """Give the client its answer, and take its next request if it has sent one already.

        Args:
            request: what was asked.
            response: the answer, or None when a worker for large requests is to give it.
        """
        connection = request.connection
        if response is None:
            if connection.phase is Phase.CLOSED:
                metrics.IN_FLIGHT.dec()
            elif self._stopping:
                # The others may have stopped before: it would wait for nobody.
                request.small = False
                self._waiting.appendleft(request)
            elif self._give(connection):
                metrics.IN_FLIGHT.dec()
            else:
                request.refusal = _busy(_NO_MORE_LARGE)
                self._others.append(request)
            return
        if connection.phase is not Phase.CLOSED:
            try:
                connection.answer(request, response, last=self._stopping)
            except OSError:
                self._drop(connection)
            else:
                self._go_on(connection)
        if request.predicts:
            now = perf_counter()
            self._answered.append(_Answered(response, (request.began or now) - request.arrived, now - request.arrived))

    def _go_on(self, connection: Connection) -> None:
        """Do what a connection needs after its answer was sent, as far as it was."""
        if connection.phase is Phase.CLOSED:
            self._drop(connection)
        elif connection.phase is Phase.WRITE:
            self._listen_for(connection, select.EPOLLOUT)
        else:
            if connection.events != select.EPOLLIN:
                self._listen_for(connection, select.EPOLLIN)
            if connection.phase is not Phase.LINGER and (request := connection.next()):
                self._take(request)
            elif connection.phase is Phase.BODY:
                # It was sent together with what is answered now.
                self._got(connection, None)
            elif self._large and connection.phase is Phase.IDLE and not self._stopping:
                # What it asks for next may be small.
                self._give(connection)

    def _take(self, request: Request) -> None:
        """Put a request in line, or refuse it."""
        if request.refusal is not None or not self._application.predicts(request):
            self._others.append(request)
            return
        if len(self._waiting) >= self._capacity.waiting and not self._has_a_place():
            request.refusal = _busy("its queue is full")
            self._others.append(request)
            return
        request.predicts = True
        request.small = self._handover is not None and not (self._large or self._stopping)
        metrics.IN_FLIGHT.inc()
        self._waiting.append(request)

    # --- what came ---

    def _look(self) -> None:
        """Wait for something to happen, and do what it asks for."""
        events = self._epoll.poll(0, _MOST_EVENTS)
        if len(self._answered) >= _COUNTED_TOGETHER or not events:
            self._count()
        if not events:
            events = self._epoll.poll(max(0.0, self._next_look() - perf_counter()), _MOST_EVENTS)
        if not events:
            self._active.clear()
        # Before any of them is attended to: what one closes, the next may give its number to another client.
        meant = [self._connections.get(descriptor) for descriptor, _ in events]
        for (descriptor, happened), connection in zip(events, meant, strict=True):
            if len(self._waiting) > self._capacity.waiting and self._has_a_place():
                # What is not read yet need not be refused: these may be quick.
                break
            if descriptor in self._listeners:
                self._accept(self._listeners[descriptor])
            elif descriptor == self._wake:
                self._heed()
            elif self._handover is not None and descriptor == self._handover.fileno():
                self._adopt()
            elif connection is not None and connection.phase is not Phase.CLOSED:
                self._attend(connection, happened)
        self._keep_time(perf_counter())

    def _count(self) -> None:
        """Count what was answered."""
        if not self._answered:
            return
        finished, self._answered = self._answered, []
        metrics.IN_FLIGHT.dec(len(finished))
        metrics.observe(metrics.QUEUE_SECONDS, [one.waited for one in finished])
        metrics.observe(metrics.TOTAL_SECONDS, [one.took for one in finished])
        self._application.count([one.response.scored for one in finished if one.response.scored is not None])

    def _next_look(self) -> float:
        """When something is due even if nothing happens."""
        times = [self._sweeps_at]
        times += [self._deadline(request) for request in self._running if request.predicts and not request.stuck]
        if self._waiting:
            times.append(self._deadline(self._waiting[0]))
        if self._accepts_at:
            times.append(self._accepts_at)
        return min(times)

    def _deadline(self, request: Request) -> float:
        return request.arrived + self._capacity.seconds * (2 if request.abandoned else 1)

    def _attend(self, connection: Connection, happened: int) -> None:
        """Read what a client sent, or send it more."""
        try:
            if happened & (select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP):
                self._drop(connection)
            elif connection.phase is Phase.WRITE:
                connection.write()
                self._go_on(connection)
            elif connection.phase is Phase.ANSWER:
                # One request at a time; what it sends meanwhile waits in the kernel. Only its leaving is heard of.
                self._listen_for(connection, select.EPOLLRDHUP)
            else:
                self._receive(connection)
        except BlockingIOError:
            # It was said of a former connection of this number, closed since.
            pass
        except OSError:
            self._drop(connection)

    def _receive(self, connection: Connection) -> None:
        self._got(connection, connection.receive())

    def _got(self, connection: Connection, request: Request | None) -> None:
        """Look at what was read: a request when it is complete."""
        if request is None and connection.is_large and connection.phase is Phase.BODY and not self._stopping:
            if not self._give(connection) and (request := connection.refuse(_busy(_NO_MORE_LARGE))):
                self._take(request)
            return
        fits = connection.body_bytes <= _SMALL_BODY_BYTES or self._make_room_for_bodies()
        if request is not None:
            if not fits:
                request.refusal = _busy("it holds as many bytes of requests as it may")
                request.body, connection.body_bytes = b"", 0
            self._take(request)

    def _listen_for(self, connection: Connection, events: int) -> None:
        connection.events = events
        self._epoll.modify(connection.sock, events)

    def _drop(self, connection: Connection) -> None:
        descriptor = connection.sock.fileno()
        if descriptor in self._connections:
            del self._connections[descriptor]
            self._epoll.unregister(descriptor)
            connection.close()
            self._say_how_many()

    def _heed(self) -> None:
        """Send what former leaders have answered, and stop when asked to."""
        os.eventfd_read(self._wake)
        while self._outcomes:
            request, response = self._outcomes.popleft()
            self._running.discard(request)
            if not request.abandoned:
                self._finish(request, response)
        if self._stopping and self._adopts_until == math.inf:
            now = perf_counter()
            # Another worker may not have heard yet that it is to stop too, and hand over a large request.
            self._adopts_until = now + _FAREWELL_SECONDS if self._large else now
            while self._adopt():
                pass
            for descriptor, listener in self._listeners.items():
                self._epoll.unregister(descriptor)
                listener.close()
            self._listeners = {}
            self._seats.leave(self._seat)
            self._sweeps_at = now + _FAREWELL_SECONDS
            for connection in self._connections.values():
                if connection.phase is Phase.IDLE:
                    connection.deadline = self._sweeps_at

    # --- new connections ---

    def _accept(self, listener: socket.socket) -> None:
        """Accept who waits, until another worker has fewer connections: then it is that one's turn."""
        while self._seats.may_accept(self._seat):
            if not self._accept_one(listener):
                return
        # It was woken too. Should it be kept, this worker goes on after a moment.
        self._accepts_at = perf_counter() + _YIELD_SECONDS
        self._listen_to_listeners(0)

    def _accept_one(self, listener: socket.socket) -> bool:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return False
        except OSError as error:
            _logger.warning("a connection cannot be accepted", extra={"reason": str(error)})
            self._make_room()
            return False
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._attach(sock)
        return True

    def _attach(self, sock: socket.socket) -> Connection:
        if len(self._connections) >= self._capacity.connections:
            self._make_room()
        sock.setblocking(False)
        connection = self._connections[sock.fileno()] = Connection(sock, self._limits)
        self._epoll.register(sock, select.EPOLLIN)
        self._say_how_many()
        return connection

    def _adopt(self) -> bool:
        """Take a connection that another worker hands over; false when there is none."""
        if self._handover is None or (taken := self._handover.take()) is None:
            return False
        sock, read = taken
        connection = self._attach(sock)
        if read:
            try:
                self._got(connection, connection.feed(read))
            except OSError:
                self._drop(connection)
        return True

    def _give(self, connection: Connection) -> bool:
        """Hand a connection over, with what was read of its request; false when that cannot be."""
        read = connection.unanswered() if connection.phase is not Phase.IDLE else b""
        if self._handover is None or read is None:
            return False
        try:
            self._handover.give(connection.sock, read)
        except OSError:
            return False
        self._drop(connection)
        return True

    def _say_how_many(self) -> None:
        if not self._stopping:
            self._seats.set(self._seat, len(self._connections))

    def _listen_to_listeners(self, events: int) -> None:
        for descriptor in self._listeners:
            self._epoll.modify(descriptor, events)

    def _make_room(self) -> None:
        """Drop who has waited longest and is owed no answer."""
        idle = [one for one in self._connections.values() if one.phase is not Phase.ANSWER]
        if idle:
            self._drop(min(idle, key=lambda connection: connection.deadline))

    def _make_room_for_bodies(self) -> bool:
        """Refuse what is under way, the slowest first, until all bodies are as small as they may be; false if not."""
        while sum(one.body_bytes for one in self._connections.values()) > self._limits.all_body_bytes:
            now = perf_counter()
            slowest = max(self._connections.values(), key=lambda connection: connection.slowness(now))
            if not slowest.slowness(now):
                # All are complete, and wait for their turn.
                return False
            if request := slowest.refuse(_busy("it holds as many bytes of requests as it may")):
                self._take(request)
        return True

    # --- time ---

    def _keep_time(self, now: float) -> None:
        if self._handover is not None and self._adopts and now >= self._adopts_until:
            self._adopts = False
            self._epoll.unregister(self._handover)
        if self._accepts_at and now >= self._accepts_at:
            self._accepts_at = 0.0
            self._listen_to_listeners(select.EPOLLIN)
            for listener in self._listeners.values():
                self._accept_one(listener)
        while self._waiting and now >= self._deadline(self._waiting[0]):
            self._give_up(self._waiting.popleft())
        for request in [one for one in self._running if one.predicts and now >= self._deadline(one)]:
            if not request.abandoned:
                request.abandoned = True
                self._give_up(request)
            elif not request.stuck:
                request.stuck = True
                _logger.critical("a prediction is stuck; this worker is replaced", extra={"request_id": request.id})
                # No thread can be stopped from outside.
                self.stop()
        if now >= self._sweeps_at:
            self._sweeps_at = now + _SWEEP_SECONDS
            self._look_at_memory()
            for connection in [one for one in self._connections.values() if now >= one.deadline]:
                self._expire(connection)

    def _look_at_memory(self) -> None:
        """Stop when this worker has grown too large and all others serve: Gunicorn starts another in its place."""
        if not self._stopping and self._growth.is_too_much() and self._seats.leave_if_others_stay(self._seat):
            metrics.REPLACEMENTS.inc()
            _logger.warning("this worker has grown and is replaced", extra={"bytes": own_bytes()})
            self.stop()

    def _give_up(self, request: Request) -> None:
        seconds = self._capacity.seconds
        error = DeadlineError(f"No prediction within {seconds:g} s. Send fewer rows, or try again later.")
        self._finish(request, self._application.refuse(request, error))

    def _expire(self, connection: Connection) -> None:
        request = connection.expire()
        if request is None:
            self._drop(connection)
        else:
            self._take(request)


def _busy(why: str) -> BusyError:
    return BusyError(f"The server is busy: {why}. Try again.", headers={"Retry-After": "1"})
