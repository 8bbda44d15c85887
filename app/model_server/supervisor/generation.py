"""One Gunicorn with one model version: how the supervisor starts it, hears of it and stops it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_server.common import processes, situation
from model_server.common.contract import (
    LISTENERS_VARIABLE,
    MODEL_VARIABLE,
    OPENING_VARIABLE,
    REPLACES_VARIABLE,
    REPORT_VARIABLE,
)
from model_server.common.environment import PYTHON_VARIABLE, VARIABLE, Environment
from model_server.common.settings import Settings
from model_server.common.store import StoredModel

_logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_LAST_WORDS_SECONDS = 5.0
_ONE_THREAD_EACH = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_changing = threading.Lock()
_running: set[int] = set()
"""Process ids of the Gunicorns."""


@dataclass(frozen=True)
class Ready:
    """Every worker of a generation can answer."""

    generation: Generation


@dataclass(frozen=True)
class Exited:
    """A generation's Gunicorn is gone."""

    generation: Generation
    status: int


class Generation:
    """A running Gunicorn; it accepts once it is opened.

    Args:
        settings: of the server.
        model: what it serves, or None for a server that says there is no model yet.
        listeners: descriptors of the listening sockets, shared by all generations.
        situation_path: where the supervisor says why what is served is served.
        replaces: the version that serves meanwhile, or None where none does.
        notify: called from a thread of this generation's own with :class:`Ready` and :class:`Exited`.
        environment: the packages that it runs with.
        python: their interpreter, or None for the image's own.
    """

    def __init__(
        self,
        settings: Settings,
        model: StoredModel | None,
        listeners: Sequence[int],
        situation_path: Path,
        replaces: StoredModel | None,
        notify: Callable[[Ready | Exited], None],
        environment: Environment,
        python: str | None,
    ) -> None:
        self.model = model
        self.environment = environment
        self.failure = ""
        """Why it could not serve, as far as it could say."""
        self.failure_kind = "start"
        """The same for the metric: ``start``, or ``signature``."""
        self._settings = settings
        self._workers = settings.processes
        self._notify = notify
        self._scratch = tempfile.TemporaryDirectory(prefix="model-server-version-", ignore_cleanup_errors=True)
        reading, writing = os.pipe()
        awaiting, opening = os.pipe()
        self._opening = os.fdopen(opening, "wb")
        command = [python or sys.executable, "-m", "gunicorn", "--config", "python:model_server.worker.gunicorn_config"]
        try:
            with _changing:
                self._process = subprocess.Popen(
                    [*command, "model_server.worker.wsgi:application"],
                    env={
                        **child_environment(settings, model, replaces),
                        LISTENERS_VARIABLE: ",".join(map(str, listeners)),
                        REPORT_VARIABLE: str(writing),
                        OPENING_VARIABLE: str(awaiting),
                        situation.PATH_VARIABLE: str(situation_path),
                        VARIABLE: environment.to_json(),
                        # What a model leaves there goes with it.
                        "TMPDIR": self._scratch.name,
                    },
                    pass_fds=(*listeners, writing, awaiting),
                    stdin=subprocess.DEVNULL,
                    # A group of its own: a terminal's Ctrl-C reaches the supervisor alone, and stragglers can be found.
                    start_new_session=True,
                )
                _running.add(self._process.pid)
        finally:
            os.close(writing)
            os.close(awaiting)
        listening = threading.Thread(target=self._listen, args=(reading,), daemon=True)
        listening.start()
        threading.Thread(target=self._watch, args=(listening,), daemon=True).start()

    def __str__(self) -> str:
        return self.model.version.version if self.model else "none"

    def open(self) -> None:
        """Have its workers accept, those that come later too."""
        self._opening.close()

    @property
    def is_open(self) -> bool:
        """Whether its workers accept, or will."""
        return self._opening.closed

    def stop(self) -> None:
        """Let it finish its requests and go."""
        self.open()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and its workers at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def _listen(self, reading: int) -> None:
        ready = 0
        with os.fdopen(reading) as reports:
            for line in reports:
                message = json.loads(line)
                if message["event"] == "ready":
                    ready += 1
                    if ready == self._workers:
                        self._notify(Ready(self))
                    continue
                if not self.failure:
                    self.failure, self.failure_kind = message["reason"], message["kind"]
                if ready < self._workers:
                    # The others may never be.
                    self.kill()

    def _watch(self, listening: threading.Thread) -> None:
        status = self._process.wait()
        if status < 0 and self.is_open:
            self._await_workers()
        self._end_strays()
        self._scratch.cleanup()
        # Nobody is left who could report.
        listening.join(_LAST_WORDS_SECONDS)
        self._notify(Exited(self, status))

    def _await_workers(self) -> None:
        """Let workers whose Gunicorn was killed answer what they have."""
        deadline = time.monotonic() + self._settings.shutdown_timeout
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < deadline:
                if os.waitpid(-self._process.pid, os.WNOHANG) == (0, 0):
                    time.sleep(_LOOK_SECONDS)

    def _end_strays(self) -> None:
        """End what a model has started: without its Gunicorn it is a child of this process, in another session."""
        with _changing:
            _running.discard(self._process.pid)
            own = os.getsid(0)
            if not processes.end_strays(lambda pid, session: session != own and _running.isdisjoint((pid, session))):
                _logger.error("processes of a model cannot be ended", extra={"version": str(self)})


def child_environment(settings: Settings, model: StoredModel | None, replaces: StoredModel | None) -> dict[str, str]:
    """The environment of a generation's Gunicorn."""
    environment = {
        **os.environ,
        **dict.fromkeys(_ONE_THREAD_EACH, "1"),
        # Otherwise glibc keeps an arena for each of many threads.
        "MALLOC_ARENA_MAX": "2",
        # Its warnings repeat the input.
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # What Python writes beside a model's code is not signed, and the next start would refuse it.
        "PYTHONDONTWRITEBYTECODE": "1",
        "SERVING_WORKERS": str(settings.workers),
        "PYTHONPATH": python_path(),
        PYTHON_VARIABLE: sys.executable,
    }
    if model is not None:
        environment[MODEL_VARIABLE] = str(model.directory)
    if replaces is not None:
        environment[REPLACES_VARIABLE] = replaces.version.version
    return environment


def python_path() -> str:
    """A search path by which a child process finds this package, wherever it was started from."""
    return os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))))
