"""Connections that one worker of a generation hands to another, with what was read of the request that is under way.

A large request goes to a worker that has none but such, and the connection comes back when it is answered. The socket
itself moves: nothing of a body or of an answer is copied from process to process.
"""

from __future__ import annotations

import os
import socket


class Handover:
    """One end of a channel between workers; make both before the fork. Any process at one end may receive.

    Args:
        sock: what :meth:`ends` made.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def ends(cls) -> tuple[Handover, Handover]:
        """Two ends: what is given into one comes out at the other."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """For the loop, to wait for what comes."""
        return self._sock.fileno()

    def give(self, connection: socket.socket, read: bytes) -> None:
        """Hand over a connection; the caller closes its own descriptor of it.

        Args:
            connection: to a client.
            read: what was read from it and not answered. It goes in a file in memory: a channel holds little.

        Raises:
            OSError: the channel is full.
        """
        file = os.memfd_create("read", os.MFD_CLOEXEC)
        try:
            os.pwrite(file, read, 0)
            socket.send_fds(self._sock, [b"\0"], [connection.fileno(), file])
        finally:
            os.close(file)

    def take(self) -> tuple[socket.socket, bytes] | None:
        """A connection that was handed over, with what was read from it; None when there is none, or nobody to give."""
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._sock, 1, 2, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return None
            if not message:
                return None
            if len(descriptors) == 2:
                break
            # This process may open no more.
            for descriptor in descriptors:
                os.close(descriptor)
        connection, file = descriptors
        try:
            return socket.socket(fileno=connection), os.pread(file, os.fstat(file).st_size, 0)
        finally:
            os.close(file)
