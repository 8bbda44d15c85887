"""Gunicorn's threaded worker, with one thread that follows all busy connections while requests are quick."""

from __future__ import annotations

import select
import threading
from concurrent.futures import Future
from contextlib import suppress
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

from gunicorn.workers.gthread import ThreadWorker

if TYPE_CHECKING:
    from gunicorn.workers.gthread import TConn

_LINGER_SECONDS = 0.5
"""How long the follower waits for the next request before connections go back to Gunicorn's main thread."""
_PATIENCE_SECONDS = 0.01
"""How long a request may take before another thread follows the other connections."""
_ONCE = select.EPOLLIN | select.EPOLLONESHOT
_LINGERS: Any = object()
"""The outcome of a connection that the follower has now."""


class _Follower:
    """The thread that follows, by the request that it answers."""

    __slots__ = ("busy_since",)

    def __init__(self) -> None:
        self.busy_since = 0.0
        """When the request began that is being answered; 0 between two."""


class FollowingThreadWorker(ThreadWorker):
    """Answers requests on kept-alive connections one after the other, on one thread, while each is quick.

    Gunicorn gives each request to a thread and its connection back to the main thread afterwards. Two changes of
    thread cost more than a quick request, and threads that are busy at the same time spend their time on Python's
    lock. Here one thread, the follower, waits for all connections that were just answered and answers the next
    request of each itself. When a request takes longer than a moment, another thread becomes the follower, so slow
    requests run side by side as they do with Gunicorn.
    """

    def init_process(self) -> None:
        """Begin in the worker's process."""
        self._ready = select.epoll()
        self._lingering: dict[int, TConn] = {}
        self._lock = threading.Lock()
        self._follower: _Follower | None = None
        self._followed = threading.Event()
        threading.Thread(target=self._relieve, name="relief", daemon=True).start()
        super().init_process()

    def handle(self, conn: TConn) -> Any:
        """Answer a request on a connection that nobody follows yet. Runs in a thread of the pool."""
        keep = self._answer(conn)
        if keep is not True:
            return keep
        # Also in a worker that is to stop: the client was told to keep the connection, and may be sending already.
        self._linger(conn)
        with self._lock:
            if self._follower is not None:
                return _LINGERS
            self._follower = follower = _Follower()
            self._followed.set()
        self._follow(follower)
        return _LINGERS

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Take a connection back from its thread, unless the follower has it."""
        if fs.cancelled() or fs.exception() is not None or fs.result() is not _LINGERS:
            super().finish_request(conn, fs)

    def _answer(self, conn: TConn) -> Any:
        """Answer a request, and those that were read ahead with it; true when the connection stays open."""
        while True:
            keep = super().handle(conn)
            # A plain HTTP parser has what was read ahead; the type allows for other protocols.
            parser: Any = conn.parser
            # `is True`: neither to be closed nor deferred.
            if keep is not True or not parser.unreader.buf.getvalue():
                return keep

    def _linger(self, conn: TConn) -> None:
        descriptor = conn.sock.fileno()
        self._lingering[descriptor] = conn
        try:
            self._ready.modify(descriptor, _ONCE)
        except FileNotFoundError:
            self._ready.register(descriptor, _ONCE)

    def _follow(self, follower: _Follower) -> None:
        while self._follower is follower:
            events = self._ready.poll(_LINGER_SECONDS, maxevents=1)
            if not events:
                self._leave(follower)
                return
            # Relieved between two requests, it may share an event with the next follower.
            conn = self._lingering.pop(events[0][0], None)
            if conn is None:
                continue
            follower.busy_since = perf_counter()
            keep = self._answer(conn)
            follower.busy_since = 0.0
            if keep is True:
                self._linger(conn)
            else:
                self._ready.unregister(events[0][0])
                self._give_back(conn, keep)

    def _leave(self, follower: _Follower) -> None:
        """Nothing more comes: Gunicorn's main thread has the connections again."""
        with self._lock:
            if self._follower is not follower:
                return
            # Under the lock: who adds a connection from now on finds no follower, and becomes it.
            connections = [self._lingering.pop(descriptor) for descriptor in list(self._lingering)]
            self._follower = None
            self._followed.clear()
        for conn in connections:
            self._ready.unregister(conn.sock.fileno())
            self._give_back(conn, True)

    def _give_back(self, conn: TConn, keep: Any) -> None:
        outcome: Future[Any] = Future()
        outcome.set_result(keep)
        self.method_queue.defer(self.finish_request, conn, outcome)

    def _relieve(self) -> None:
        """Have another thread follow when the follower is kept by a slow request."""
        while True:
            self._followed.wait()
            sleep(_PATIENCE_SECONDS)
            former = self._follower
            if former is None or not former.busy_since or perf_counter() - former.busy_since < _PATIENCE_SECONDS:
                continue
            with self._lock:
                if self._follower is not former:
                    continue
                self._follower = follower = _Follower()
            # The pool is closed when the worker stops.
            with suppress(RuntimeError):
                self.tpool.submit(self._follow, follower)
