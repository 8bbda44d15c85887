"""Gunicorn's side of a worker: heartbeats, signals and the end, around the :mod:`loop <model_server.worker.loop>`."""

from __future__ import annotations

import mmap
import os
import socket
from types import FrameType
from typing import Any

from gunicorn.workers.base import Worker

from model_server.common import contract
from model_server.worker.connection import Limits
from model_server.worker.handover import Handover
from model_server.worker.loop import Capacity, Loop
from model_server.worker.memory import Growth, share_of
from model_server.worker.seats import Seats

_HEARTBEAT_SECONDS = 1.0
_BODIES = 4
"""As many bodies of the largest size does a worker hold: read in part, waiting, or being answered."""
_SMALL_BODY_BYTES = 64 * 1024


class LoopWorker(Worker):
    """Answers requests by one :class:`Loop`; its main thread watches it."""

    large: bool
    """Whether it is one for large requests; set before the fork, as are the others."""
    seats: Seats
    """Of all workers of this kind."""
    seat: int
    ready: mmap.mmap
    """A byte that Gunicorn sees too: 1 when the model has answered."""
    handover: Handover
    """To the workers of the other kind, and from them."""
    _loop: Loop | None = None

    def run(self) -> None:
        """Serve until asked to stop, and then until every request is answered."""
        application: Any = self.wsgi
        settings = application.settings
        self._loop = loop = Loop(
            application,
            [] if self.large else self._listeners(),
            self.seats,
            self.seat,
            Capacity(settings.concurrency, settings.queue_length, settings.request_timeout),
            Limits(
                settings.max_body_bytes,
                _BODIES * settings.max_body_bytes,
                small_body_bytes=None if self.large else _SMALL_BODY_BYTES,
            ),
            Growth(share_of(settings.processes)),
            self.handover,
            large=self.large,
        )
        loop.start()
        if not self.alive:
            loop.stop()
        while loop.watch(_HEARTBEAT_SECONDS):
            self.notify()
            if os.getppid() != self.ppid:
                loop.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop when what is under way is answered."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.stop()

    def _listeners(self) -> list[socket.socket]:
        # The first is Gunicorn's, which has closed the descriptor that it was given and uses another.
        listeners: list[socket.socket] = [gunicorns.sock for gunicorns in self.sockets]  # type: ignore[attr-defined]  # typed as sockets
        listeners += [socket.socket(fileno=descriptor) for descriptor in contract.listeners()[1:]]
        for listener in listeners:
            listener.setblocking(False)
        return listeners
