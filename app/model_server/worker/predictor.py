"""Runs predictions on the threads of their requests: so many at once, so many waiting, each with a deadline.

A thread of their own would be simpler to give up on, but the way to it and back costs more than a small model does.
So one watchdog looks after the calls of all threads: when the time of a call is over, it answers in its place.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import perf_counter, sleep
from typing import Any

from model_server.worker.errors import BusyError, DeadlineError

_logger = logging.getLogger(__name__)


class AbandonedError(Exception):
    """The call ended after its deadline, and its request was answered meanwhile."""


class _Call:
    """A call that runs."""

    __slots__ = ("deadline", "give_up", "overdue", "stuck_reported")

    def __init__(self, deadline: float, give_up: Callable[[DeadlineError], None]) -> None:
        self.deadline = deadline
        self.give_up = give_up
        self.overdue = False
        self.stuck_reported = False


class Predictor:
    """Calls a model, at most ``concurrency`` times at once.

    Args:
        concurrency: calls at once.
        queue_length: calls that may wait beyond those that run.
        timeout: seconds from :meth:`run` until the request is given up.
        on_stuck: called when a call still runs another ``timeout`` after its deadline. By default the worker
            process ends once its other requests are answered, and Gunicorn forks the next: no thread can be stopped
            from outside.
    """

    def __init__(
        self, concurrency: int, queue_length: int, timeout: float, on_stuck: Callable[[], None] | None = None
    ) -> None:
        self._queue_length = queue_length
        self._timeout = timeout
        self._on_stuck = on_stuck or self._end_this_worker
        # Whoever holds one of these may call the model. A queue of C code: a semaphore of Python's is far slower.
        self._permits: SimpleQueue[None] = SimpleQueue()
        for _ in range(concurrency):
            self._permits.put(None)
        self._waiting = 0
        self._running: set[_Call] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def run(self, call: Callable[[], Any], give_up: Callable[[DeadlineError], None]) -> tuple[Any, float, float]:
        """Return what ``call`` returns, the seconds it waited and the seconds it ran.

        Args:
            call: the prediction.
            give_up: answers the request in this thread's place, from another thread, when the call runs too long.

        Raises:
            BusyError: when the queue is full, at once.
            DeadlineError: when the time was over before the call could begin; it never will.
            AbandonedError: when the time was over while it ran; ``give_up`` was called then.
            Exception: whatever ``call`` raises.
        """
        arrived = perf_counter()
        self._acquire()
        running = _Call(arrived + self._timeout, give_up)
        started = perf_counter()
        self._running.add(running)
        try:
            result = call()
        except Exception:
            raise
        except BaseException as error:
            # SystemExit and the like end a process; a model has no say in that.
            raise RuntimeError("the model tried to exit") from error
        finally:
            finished = perf_counter()
            with self._lock:
                self._running.discard(running)
            self._permits.put(None)
            if running.overdue:
                raise AbandonedError
        return result, started - arrived, finished - started

    def _acquire(self) -> None:
        if not self._waiting:
            with suppress(Empty):
                return self._permits.get_nowait()
        with self._lock:
            if self._waiting >= self._queue_length:
                raise BusyError("The server is busy: its queue is full. Try again.", headers={"Retry-After": "1"})
            self._waiting += 1
        try:
            return self._permits.get(timeout=self._timeout)
        except Empty:
            raise self._too_late() from None
        finally:
            with self._lock:
                self._waiting -= 1

    def _too_late(self) -> DeadlineError:
        return DeadlineError(f"No prediction within {self._timeout:g} s. Send fewer rows, or try again later.")

    def _watch(self) -> None:
        """Give up on calls whose time is over."""
        while True:
            now = perf_counter()
            next_look = now + self._timeout
            for call in self._running.copy():
                if call.overdue:
                    self._report_stuck(call, now)
                elif call.deadline <= now:
                    self._give_up(call)
                next_look = min(next_look, call.deadline + self._timeout if call.overdue else call.deadline)
            # A call that begins meanwhile arrived after one of these, or after now: its time is over later.
            sleep(max(next_look - perf_counter(), 0.001))

    def _give_up(self, call: _Call) -> None:
        with self._lock:
            # Under the lock: it either is done, or finds that it is overdue.
            if call not in self._running:
                return
            call.overdue = True
        try:
            call.give_up(self._too_late())
        except Exception:
            _logger.exception("a request whose time was over could not be answered")

    def _report_stuck(self, call: _Call, now: float) -> None:
        if now >= call.deadline + self._timeout and not call.stuck_reported:
            call.stuck_reported = True
            _logger.critical("a prediction is stuck; this worker is replaced", extra={"timeout": self._timeout})
            self._on_stuck()

    def _end_this_worker(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        # Gunicorn would wait for the stuck thread; every other request has its answer by then.
        end = threading.Timer(self._timeout + 1, os._exit, (0,))
        end.daemon = True
        end.start()
