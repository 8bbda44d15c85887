"""How many connections each worker of a generation has, so that new ones go to the worker with the fewest.

Whichever worker the kernel wakes first would otherwise take every new connection, and keep it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Collection

_NOBODY = 2**32 - 1
_AHEAD = 1
"""Clients that make a connection for each request would pay more for an exact balance than they gain."""


class Seats:
    """A count of connections for each seat, in memory that a parent and its workers share.

    Args:
        number: of workers at one time. Make it before the fork.
    """

    def __init__(self, number: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * number)).cast("I")
        # Locks on it belong to the process that takes them, and end with it.
        self._lock = os.memfd_create("seats")
        for seat in range(number):
            self.leave(seat)

    def free(self, taken: Collection[int]) -> int:
        """The first seat that is not in ``taken``."""
        return next(seat for seat in range(len(self._counts)) if seat not in taken)

    def set(self, seat: int, connections: int) -> None:
        """Say how many connections the worker on ``seat`` has."""
        self._counts[seat] = connections

    def leave(self, seat: int) -> None:
        """Nobody accepts connections on ``seat``."""
        self._counts[seat] = _NOBODY

    def leave_if_others_stay(self, seat: int) -> bool:
        """Leave ``seat`` if somebody is on every other, so that no two go at the same time."""
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            others = (count for other, count in enumerate(self._counts) if other != seat)
            stays = _NOBODY not in others
            if stays:
                self.leave(seat)
            return stays
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def may_accept(self, seat: int) -> bool:
        """Whether the worker on ``seat`` may have one more connection: no other has many fewer."""
        return self._counts[seat] <= min(self._counts) + _AHEAD
