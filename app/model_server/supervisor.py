"""The process that owns the socket: keeps one generation serving and replaces it when the champion changes."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from types import FrameType

from model_server import logs, metrics
from model_server.generation import Exited, Generation, Ready, python_path
from model_server.registry import Registry, RegistryError
from model_server.settings import Settings
from model_server.store import ModelStore, ModelVersion, StoredModel

_logger = logging.getLogger(__name__)

_FETCH_TIMEOUT_SECONDS = 600.0
_RETRY_REJECTED_SECONDS = 600.0
_RESTART_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Champion:
    """The alias points at this version, and it is on our disk."""

    model: StoredModel


@dataclass(frozen=True)
class Stop:
    """A signal asks us to stop."""

    number: int


@dataclass(frozen=True)
class StartOverdue:
    """A generation has had its time to become ready."""

    generation: Generation


@dataclass(frozen=True)
class Restart:
    """Time to replace a generation that died."""


Event = Champion | Stop | StartOverdue | Restart | Ready | Exited


class Supervisor:
    """Runs until it is asked to stop.

    Args:
        settings: of the server.
        listener: the listening socket; it outlives every generation, so no connection is refused in between.
    """

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._store = ModelStore(settings.model_directory, settings.model_name)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._serving: Generation | None = None
        self._starting: Generation | None = None
        self._draining: set[Generation] = set()
        self._champion: StoredModel | None = None
        self._rejected: dict[ModelVersion, float] = {}
        self._stopping = False

    def run(self) -> int:
        """Serve, and return the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._start_best()
        Refresher(self._settings, self._store, self._events).start()
        while not (self._stopping and self._generations() == set()):
            self._handle(self._events.get())
        _logger.info("stopped")
        return 0

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # SimpleQueue.put is reentrant: safe in a signal handler.
        self._events.put(Stop(number))

    def _handle(self, event: Event) -> None:
        match event:
            case Champion(model):
                self._champion = model
                self._follow_champion()
            case Ready(generation):
                self._on_ready(generation)
            case Exited(generation, status):
                self._on_exit(generation, status)
            case StartOverdue(generation):
                if generation is self._starting:
                    generation.failure = f"it was not ready within {self._settings.start_timeout:g} s"
                    generation.kill()
            case Restart():
                if not self._stopping and self._serving is None and self._starting is None:
                    self._start_best()
            case Stop(number):
                self._stop(number)

    # --- starting and switching ---

    def _follow_champion(self) -> None:
        """Start the champion, unless it serves, starts, or was rejected a short time ago."""
        champion = self._champion
        if champion is None or self._stopping or self._starting is not None:
            return
        serving = self._serving.model if self._serving is not None else None
        if (serving is None or serving.version != champion.version) and not self._is_rejected(champion):
            self._start(champion)

    def _start_best(self) -> None:
        """Start the best of what is on disk, or the server that says there is no model yet."""
        usable = (model for model in self._store.candidates() if not self._is_rejected(model))
        self._start(next(usable, None))

    def _start(self, model: StoredModel | None) -> None:
        generation = Generation(self._settings, model, self._listener.fileno(), self._events.put)
        self._starting = generation
        self._later(self._settings.start_timeout, StartOverdue(generation))
        _logger.info("starting", extra={"version": str(generation)})

    def _on_ready(self, generation: Generation) -> None:
        if generation is not self._starting:
            return
        former, self._serving, self._starting = self._serving, generation, None
        _logger.info("serving", extra={"version": str(generation), "former": str(former) if former else None})
        if generation.model is not None:
            metrics.MODEL_SWITCHES.inc()
            self._store.set_current(generation.model)
        if former is not None:
            self._drain(former)
        self._follow_champion()

    def _drain(self, generation: Generation) -> None:
        self._draining.add(generation)
        generation.stop()
        timer = threading.Timer(self._settings.shutdown_timeout + 5, generation.kill)
        timer.daemon = True
        timer.start()

    def _on_exit(self, generation: Generation, status: int) -> None:
        self._draining.discard(generation)
        if generation is self._starting:
            self._starting = None
            self._reject(generation, status)
        elif generation is self._serving:
            self._serving = None
            if not self._stopping:
                _logger.critical("the server died", extra={"version": str(generation), "status": status})
        if not self._stopping and self._serving is None and self._starting is None:
            self._later(_RESTART_PAUSE_SECONDS, Restart())

    # --- rejected versions ---

    def _reject(self, generation: Generation, status: int) -> None:
        if self._stopping:
            return
        reason = generation.failure or f"it ended with status {status}"
        serving = str(self._serving) if self._serving else None
        _logger.error(
            "a model version was rejected", extra={"version": str(generation), "reason": reason, "serving": serving}
        )
        metrics.MODEL_REJECTIONS.labels("start").inc()
        if generation.model is not None:
            self._rejected[generation.model.version] = time.monotonic()

    def _is_rejected(self, model: StoredModel) -> bool:
        when = self._rejected.get(model.version)
        return when is not None and time.monotonic() - when < _RETRY_REJECTED_SECONDS

    # --- stopping ---

    def _stop(self, number: int) -> None:
        if self._stopping:
            for generation in self._generations():
                generation.kill()
            return
        self._stopping = True
        _logger.info("stopping", extra={"signal": signal.Signals(number).name})
        # From here on a new connection is refused as soon as the workers have closed theirs.
        self._listener.close()
        for generation in self._generations() - self._draining:
            self._drain(generation)
        # Wakes the loop where nothing runs at all.
        self._events.put(Restart())

    def _generations(self) -> set[Generation]:
        return {generation for generation in (self._serving, self._starting) if generation} | self._draining

    def _later(self, seconds: float, event: Event) -> None:
        timer = threading.Timer(seconds, self._events.put, (event,))
        timer.daemon = True
        timer.start()


class Refresher(threading.Thread):
    """Asks the registry again and again, and brings the champion to our disk."""

    def __init__(self, settings: Settings, store: ModelStore, events: queue.SimpleQueue[Event]) -> None:
        super().__init__(name="refresher", daemon=True)
        self._settings = settings
        self._store = store
        self._events = events
        self._registry = Registry(settings.tracking_uri, settings.model_name, settings.model_alias)
        self._last_said = ""

    def run(self) -> None:
        """Ask until the process ends."""
        while True:
            self._refresh()
            time.sleep(self._settings.refresh_interval)

    def _refresh(self) -> None:
        try:
            version = self._registry.champion()
        except RegistryError as error:
            metrics.REGISTRY_UP.set(0)
            self._say("the registry cannot be asked; serving goes on", logging.WARNING, reason=str(error))
            return
        metrics.REGISTRY_UP.set(1)
        metrics.REGISTRY_CONTACT.set(time.time())
        if version is None:
            self._say("the registry has no such model and alias", logging.WARNING)
            return
        try:
            model = self._store.find(version) or self._fetch(version)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            metrics.MODEL_REJECTIONS.labels("download").inc()
            self._say("a model cannot be downloaded", logging.ERROR, version=version.version, reason=str(error))
            return
        self._last_said = ""
        self._events.put(Champion(model))

    def _fetch(self, version: ModelVersion) -> StoredModel:
        staging = self._store.stage(version)
        try:
            with tempfile.TemporaryFile() as errors:
                done = subprocess.run(
                    [sys.executable, "-m", "model_server.fetch", version.uri, str(staging)],
                    env={**os.environ, "MLFLOW_TRACKING_URI": self._settings.tracking_uri, "PYTHONPATH": python_path()},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    timeout=_FETCH_TIMEOUT_SECONDS,
                    check=False,
                )
                if done.returncode:
                    errors.seek(0)
                    lines = errors.read().decode(errors="replace").strip().splitlines() or ["no reason given"]
                    raise OSError(f"status {done.returncode}: {lines[-1]}")
            stored = self._store.commit(version, staging)
        finally:
            self._store.discard(staging)
        _logger.info("downloaded", extra={"version": version.version})
        return stored

    def _say(self, message: str, level: int, **details: str) -> None:
        """Log, but not the same thing at every round."""
        said = message + repr(details)
        if said != self._last_said:
            _logger.log(level, message, extra={"model": self._settings.model_name, **details})
            self._last_said = said


def listen(settings: Settings) -> socket.socket:
    """The listening socket.

    Raises:
        OSError: when the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(listener.close)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
        undo.pop_all()
    return listener


def serve(settings: Settings) -> int:
    """Serve until stopped, and return the exit status."""
    logs.configure(settings.debug)
    try:
        listener = listen(settings)
    except OSError as error:
        _logger.critical(
            f"cannot listen on SERVING_HOST={settings.host} SERVING_PORT={settings.port}: {error.strerror or error}; "
            "give another port, or end what has it"
        )
        return 1
    return Supervisor(settings, listener).run()
