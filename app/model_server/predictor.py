"""Runs predictions on threads of their own: so many at once, so many waiting, each with a deadline."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter
from typing import Any

from model_server.errors import BusyError, DeadlineError

_logger = logging.getLogger(__name__)


class _Job:
    """One call that waits, runs, or is done."""

    __slots__ = ("abandoned", "call", "done", "error", "finished", "result", "started")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        # A bare lock is the cheapest thing in Python that another thread can wait for with a time limit.
        self.done = threading.Lock()
        self.done.acquire()
        self.started = 0.0
        self.finished = 0.0
        self.abandoned = False
        self.result: Any = None
        self.error: BaseException | None = None


class Predictor:
    """Calls a model on ``concurrency`` threads, so that the thread that answers can give up in time.

    Args:
        concurrency: calls at once.
        queue_length: calls that may wait beyond those that run.
        timeout: seconds from :meth:`run` until :class:`DeadlineError`.
        on_stuck: called when a call still runs another ``timeout`` after its deadline. By default the worker
            process ends itself gracefully and Gunicorn forks the next: no thread can be stopped from outside.
    """

    def __init__(
        self, concurrency: int, queue_length: int, timeout: float, on_stuck: Callable[[], None] | None = None
    ) -> None:
        self._capacity = concurrency + queue_length
        self._timeout = timeout
        self._on_stuck = on_stuck or _end_this_worker
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._pending = 0
        for number in range(concurrency):
            threading.Thread(target=self._work, name=f"predict-{number}", daemon=True).start()

    def run(self, call: Callable[[], Any]) -> tuple[Any, float, float]:
        """Return what ``call`` returns, the seconds it waited and the seconds it ran.

        Raises:
            BusyError: when the queue is full, at once.
            DeadlineError: when the time is over; a call that has not begun never will.
            Exception: whatever ``call`` raises.
        """
        with self._lock:
            if self._pending >= self._capacity:
                raise BusyError("The server is busy: its queue is full. Try again.", headers={"Retry-After": "1"})
            self._pending += 1
        job = _Job(call)
        submitted = perf_counter()
        self._jobs.put(job)
        if not job.done.acquire(timeout=self._timeout):
            job.abandoned = True
            if job.started:
                self._watch(job)
            raise DeadlineError(f"No prediction within {self._timeout:g} s. Send fewer rows, or try again later.")
        if job.error is not None:
            try:
                # SystemExit and the like end a process; a model has no say in that.
                raise job.error if isinstance(job.error, Exception) else RuntimeError("the model tried to exit")
            finally:
                # The traceback would hold this frame, the frame the job, and the job the traceback.
                del job
        return job.result, job.started - submitted, job.finished - job.started

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if not job.abandoned:
                job.started = perf_counter()
                try:
                    job.result = job.call()
                except BaseException as error:  # noqa: BLE001 - a model may raise anything, and this thread lives on
                    job.error = error
                job.finished = perf_counter()
            with self._lock:
                self._pending -= 1
            job.done.release()
            # A thread that waits for its next job would otherwise keep the last one's input and output alive.
            del job

    def _watch(self, job: _Job) -> None:
        def check() -> None:
            if not job.finished:
                _logger.critical("a prediction is stuck; this worker is replaced", extra={"timeout": self._timeout})
                self._on_stuck()

        timer = threading.Timer(self._timeout, check)
        timer.daemon = True
        timer.start()


def _end_this_worker() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
