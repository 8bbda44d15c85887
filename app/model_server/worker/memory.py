"""The memory of a worker, and whether it has grown beyond its share of the container's."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter

_PAGE = os.sysconf("SC_PAGE_SIZE")
_REST_SECONDS = 60.0
"""A worker lives so long at least: what grows at once would grow again at once."""
_OF_THE_SHARE = 0.75
"""The rest is for the supervisor, for Gunicorn, and for what one request takes."""


class Growth:
    """Watches the memory of this process; make it when the process begins to serve.

    Args:
        share: bytes that it may have. What has more from the beginning is never said to have grown.
    """

    def __init__(self, share: int) -> None:
        self._share = share
        self._rests_until = perf_counter() + _REST_SECONDS
        self._is_large = own_bytes() > share

    def is_too_much(self) -> bool:
        """Whether the process has grown beyond its share, and has served for a while."""
        return not self._is_large and perf_counter() >= self._rests_until and own_bytes() > self._share


def own_bytes() -> int:
    """Bytes of memory that this process has, without files that it has mapped."""
    _, resident, of_files = Path("/proc/self/statm").read_text().split()[:3]
    return (int(resident) - int(of_files)) * _PAGE


def share_of(workers: int, root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that one of ``workers`` may have: of the limit of the control group at ``root``, else of the machine."""
    memory = _PAGE * os.sysconf("SC_PHYS_PAGES")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            # A group without a limit has "max" there, or a number beyond any machine's memory.
            memory = min(memory, int((root / file).read_text()))
        except (OSError, ValueError):
            continue
    return int(memory / workers * _OF_THE_SHARE)
