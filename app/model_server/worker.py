"""Gunicorn's threaded worker, with a shorter way between two requests on one connection."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

from gunicorn.workers.gthread import ThreadWorker

if TYPE_CHECKING:
    from gunicorn.workers.gthread import TConn

_LINGER_MILLISECONDS = 500


class LingeringThreadWorker(ThreadWorker):
    """Keeps a connection on its thread for a moment after an answer.

    Gunicorn hands every kept-alive connection back to its main thread, which hands it to a thread again when the
    next request comes: two changes of thread and a pipe for each request. A client or proxy that is busy sends its
    next request at once. While threads are plentiful, this worker waits for it where it is.
    """

    def handle(self, conn: TConn) -> Any:
        """Answer one request, and those that follow it closely. Runs in a thread of the pool."""
        while True:
            keep = super().handle(conn)
            # `is True`: neither to be closed nor deferred. HTTP/2 connections never come back as kept alive. A worker
            # that is to stop waits too: the client was told to keep the connection, and may be sending already.
            if keep is not True or self.nr_conns > self.cfg.threads // 2:
                return keep
            # What a plain HTTP parser has read ahead; the type allows for other protocols.
            parser: Any = conn.parser
            if not parser.unreader.buf.getvalue() and not _readable(conn.sock):
                return keep


def _readable(sock: Any) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(_LINGER_MILLISECONDS))
