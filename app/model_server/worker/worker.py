"""Gunicorn's side of a worker: heartbeats, signals and the end, around the :mod:`loop <model_server.worker.loop>`."""

from __future__ import annotations

import os
import socket
from typing import Any

from gunicorn.workers.base import Worker

from model_server.common import contract
from model_server.worker.connection import Limits
from model_server.worker.loop import Capacity, Loop
from model_server.worker.seats import Seats

_HEARTBEAT_SECONDS = 1.0


class LoopWorker(Worker):
    """Answers requests by one :class:`Loop`; its main thread watches it."""

    seats: Seats
    """Of all workers of this Gunicorn; set before the fork, as is ``seat``."""
    seat: int

    def run(self) -> None:
        """Serve until asked to stop, and then until every request is answered."""
        application: Any = self.wsgi
        settings = application.settings
        loop = Loop(
            application,
            self._listeners(),
            self.seats,
            self.seat,
            Capacity(settings.concurrency, settings.queue_length, settings.request_timeout),
            Limits(settings.max_body_bytes),
            self._end,
        )
        loop.start()
        stopping = False
        while loop.watch(_HEARTBEAT_SECONDS):
            self.notify()
            if not stopping and (not self.alive or os.getppid() != self.ppid):
                stopping = True
                loop.stop()

    def _listeners(self) -> list[socket.socket]:
        # The first is Gunicorn's: it has closed the descriptor that it was given, and has another.
        descriptors = [*(gunicorns.fileno() for gunicorns in self.sockets), *contract.listeners()[1:]]
        listeners = [socket.socket(fileno=os.dup(descriptor)) for descriptor in descriptors]
        for listener in listeners:
            listener.setblocking(False)
        return listeners

    def _end(self) -> None:
        self.alive = False
