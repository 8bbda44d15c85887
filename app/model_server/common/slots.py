"""Which metric files a process writes: a numbered slot, held by a file lock for as long as the process lives.

prometheus_client names its files after process ids, so the files of dead workers pile up for as long as the
server runs. A slot is taken over by the next process together with its counters: sums stay right over any number
of workers and models, and there are only as many files as there ever were processes at one time.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_held: list[tuple[int, str]] = []  # descriptor of the lock, slot; one at most


def identifier() -> str:
    """The slot of this process, claimed at the first call and after every fork."""
    # Asked for every count: no question to the system on the way.
    if not _held:
        _held.append(_claim(_directory()))
    return _held[0][1]


def _forget_the_parents() -> None:
    # The lock lives on in the parent.
    for descriptor, _ in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_the_parents)


def forget_dead() -> None:
    """Remove the gauges of slots that no process holds: what a dead worker had in flight is not in flight."""
    directory = _directory()
    for lock in directory.glob("*.lock"):
        descriptor = os.open(lock, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_live_gauges(directory, lock.stem)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _claim(directory: Path) -> tuple[int, str]:
    number = 0
    while True:
        slot = f"slot{number}"
        descriptor = os.open(directory / f"{slot}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            number += 1
        else:
            _remove_live_gauges(directory, slot)
            return descriptor, slot


def _remove_live_gauges(directory: Path, slot: str) -> None:
    for file in directory.glob(f"gauge_live*_{slot}.db"):
        file.unlink(missing_ok=True)


def _directory() -> Path:
    return Path(os.environ[_DIRECTORY_VARIABLE])
