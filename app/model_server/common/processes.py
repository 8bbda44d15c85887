"""What processes leave behind: found as this process' children, told how they ended, and ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GIVE_UP_SECONDS = 10.0
"""What forks quicker than it is ended is not waited for."""


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own has ended, in sessions of their own too."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(*, ends: bool) -> None:
    """Whether this process is ended at once when its parent has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if ends else 0)


def end_strays(is_stray: Callable[[int, int], bool]) -> bool:
    """End children of this process with all their descendants; false when that cannot be done.

    Args:
        is_stray: says of the process id and the session of a child whether it is to end.
    """
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    # Children of what has ended are this process' own at the next look.
    while strays := [pid for pid, session in _children() if is_stray(pid, session)]:
        for pid in [pid for pid in strays if _kill(pid)]:
            os.waitpid(pid, 0)
        if time.monotonic() > deadline:
            return False
    return True


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        # Of another user, by a model that may become one.
        return False
    return True


def _children() -> Iterator[tuple[int, int]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        # It may have ended meanwhile.
        with contextlib.suppress(OSError):
            # Its name, in parentheses, may have any character.
            _, parent, _, session = path.read_text(errors="replace").rpartition(")")[2].split()[:4]
            if int(parent) == os.getpid():
                yield int(path.parent.name), int(session)


def peek(pid: int) -> str:
    """How a child that was not collected yet has ended, in words; empty while it runs."""
    with contextlib.suppress(ChildProcessError):
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            return ending(found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)
    return ""


def ending(status: int) -> str:
    """A status of :mod:`subprocess` in words."""
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"
