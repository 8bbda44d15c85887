"""The process that owns the sockets: keeps one generation serving and replaces it when the champion changes."""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType

from model_server.common import logs, metrics, processes
from model_server.common.environment import Environment
from model_server.common.settings import Settings
from model_server.common.situation import Situation
from model_server.common.store import ModelStore, ModelVersion, StoredModel
from model_server.supervisor.environment import Environments, Settled, UnfitError, Unsettled
from model_server.supervisor.generation import Exited, Generation, Ready
from model_server.supervisor.refresher import Champion, Refresher

_logger = logging.getLogger(__name__)

_RETRY_REJECTED_SECONDS = 600.0
_RETRY_UNSETTLED_SECONDS = 15.0
_RESTART_PAUSE_SECONDS = 1.0
_BACKLOG = 1024
"""Connections that wait while no worker accepts."""


class ListenError(Exception):
    """An address cannot be had; the message names the variable, its value and the way out."""


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
    """Time to serve what can be served, where nothing is."""


@dataclass(frozen=True)
class Rejection:
    """Why a version is not served, and until when on the monotonic clock."""

    reason: str
    until: float


Event = Champion | Stop | StartOverdue | Restart | Ready | Exited | Settled | Unsettled


class Supervisor:
    """Runs until it is asked to stop.

    Args:
        settings: of the server.
        listeners: the listening sockets; they outlive every generation, so no connection is refused in between.
    """

    def __init__(self, settings: Settings, listeners: Sequence[socket.socket]) -> None:
        self._settings = settings
        self._listeners = listeners
        self._store = ModelStore(settings.model_directory, settings.model.name)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._serving: Generation | None = None
        self._starting: Generation | None = None
        self._draining: set[Generation] = set()
        self._champion: StoredModel | None = None
        self._rejected: dict[ModelVersion, Rejection] = {}
        self._situation = Situation()
        self._environments = Environments(settings, self._events.put, partial(self._situation.say, "environment"))
        self._refresher = Refresher(settings, self._store, self._situation, self._events.put)
        self._stopping = False

    def run(self) -> int:
        """Serve, and return the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # Who has moved the alias, or signed what was refused, need not wait for the next look.
        signal.signal(signal.SIGHUP, self._on_hangup)
        # Also where it is not process 1: what a version leaves behind is ended with it.
        processes.adopt_orphans()
        self._environments.keep_used()
        self._start_best()
        self._refresher.start()
        while not (self._stopping and self._generations() == set()):
            self._handle(self._events.get())
            self._tell()
        _logger.info("stopped")
        return 0

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # SimpleQueue.put is reentrant: safe in a signal handler.
        self._events.put(Stop(number))

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self._refresher.forget()
        self._refresher.wake()

    def _handle(self, event: Event) -> None:
        match event:
            case Champion(model, is_new):
                self._champion = model
                if is_new:
                    # What was rejected were other files.
                    self._rejected.pop(model.version, None)
                self._follow_champion()
            case Ready(generation):
                self._on_ready(generation)
            case Exited(generation, status):
                self._on_exit(generation, status)
            case Settled():
                self._on_settled()
            case Unsettled(model, reason, kind, again):
                self._turn_down(model, reason, kind, _RETRY_UNSETTLED_SECONDS if again else _RETRY_REJECTED_SECONDS)
                if again:
                    self._later(_RETRY_UNSETTLED_SECONDS, Restart())
            case StartOverdue(generation):
                if generation is self._starting:
                    generation.failure = f"it was not ready within {self._settings.start_timeout:g} s"
                    generation.kill()
            case Restart():
                self._on_settled()
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
            self._start_settled(champion)

    def _start_best(self) -> None:
        """Start the best of what is on disk, or the server that says there is no model yet."""
        usable = (model for model in self._store.candidates() if not self._is_rejected(model))
        if self._settings.require_signature:
            # Each would take a start to be refused, and until one serves nobody answers.
            usable = (model for model in usable if model.has_signature)
        if not any(self._start_settled(model) for model in usable) and self._serving is None:
            self._start(None, Environment())

    def _start_settled(self, model: StoredModel) -> bool:
        """Start a version when its environment is there; else have it made, and say false."""
        # At the start of the server, before the registry was asked, what served is served on.
        is_interrupted = self._serves_nothing() and self._store.is_current(model)
        try:
            environment = self._environments.known(model, nothing_serves=is_interrupted)
        except UnfitError as error:
            self._turn_down(model, str(error), "environment", _RETRY_REJECTED_SECONDS)
            return False
        if environment is None:
            self._environments.settle(model)
            return False
        self._start(model, environment)
        return True

    def _on_settled(self) -> None:
        """Start what waited for its environment, or anything where nothing serves."""
        self._follow_champion()
        if self._serves_nothing() and self._starting is None and not self._stopping:
            self._start_best()

    def _serves_nothing(self) -> bool:
        return self._serving is None or self._serving.model is None

    def _start(self, model: StoredModel | None, environment: Environment) -> None:
        generation = Generation(
            self._settings,
            model,
            [listener.fileno() for listener in self._listeners],
            self._situation.path,
            self._serving.model if self._serving else None,
            self._events.put,
            environment,
            self._environments.python(environment),
        )
        self._starting = generation
        self._tell_use()
        self._later(self._settings.start_timeout, StartOverdue(generation))
        _logger.info("starting", extra={"version": str(generation)})

    def _on_ready(self, generation: Generation) -> None:
        if generation is not self._starting:
            return
        former, self._serving, self._starting = self._serving, generation, None
        self._tell_use()
        if former is not None:
            self._drain(former)
        # Who has seen a model served is not told that there is none: the other answers its last requests first.
        if former is None or former.model is not None:
            self._open(generation)
        # Its environment may have been settled while this one started.
        self._on_settled()

    def _open(self, generation: Generation) -> None:
        generation.open()
        _logger.info("serving", extra={"version": str(generation)})
        if generation.model is not None:
            metrics.MODEL_SWITCHES.inc()
            self._store.set_current(generation.model)
            # It was right when it came: should its files be wrong later, others are fetched at once.
            self._refresher.forget()

    def _drain(self, generation: Generation) -> None:
        self._draining.add(generation)
        generation.stop()
        timer = threading.Timer(self._settings.shutdown_timeout + 5, generation.kill)
        timer.daemon = True
        timer.start()

    def _on_exit(self, generation: Generation, status: int) -> None:
        self._draining.discard(generation)
        if self._serving is not None and not self._serving.is_open and generation.model is None:
            self._open(self._serving)
        if generation is self._starting:
            self._starting = None
            self._reject(generation, status)
        elif generation is self._serving:
            self._serving = None
            if not self._stopping:
                _logger.critical("the server died", extra={"version": str(generation), "status": status})
        if not self._stopping and self._serves_nothing() and self._starting is None:
            self._later(_RESTART_PAUSE_SECONDS, Restart())

    # --- rejected versions ---

    def _reject(self, generation: Generation, status: int) -> None:
        if self._stopping:
            return
        reason = generation.failure or f"its server {processes.ending(status)} before it was ready"
        self._turn_down(generation.model, reason, generation.failure_kind, _RETRY_REJECTED_SECONDS)

    def _turn_down(self, model: StoredModel | None, reason: str, kind: str, seconds: float) -> None:
        """Do not try a version for so many seconds."""
        former = self._rejected.get(model.version) if model else None
        # What is tried every few seconds is said once.
        if former is None or former.reason != reason or seconds == _RETRY_REJECTED_SECONDS:
            serving = str(self._serving) if self._serving else None
            version = model.version.version if model else "none"
            _logger.error(
                "a model version was rejected", extra={"version": version, "reason": reason, "serving": serving}
            )
            metrics.MODEL_REJECTIONS.labels(kind).inc()
        if model is None:
            return
        self._rejected[model.version] = Rejection(reason, time.monotonic() + seconds)
        if kind == "signature":
            # The registry may have files by now whose signature fits.
            self._store.remove(model)
            if self._champion == model:
                self._champion = None
            self._refresher.wake()

    def _is_rejected(self, model: StoredModel) -> bool:
        rejection = self._rejected.get(model.version)
        return rejection is not None and time.monotonic() < rejection.until

    def _tell_use(self) -> None:
        """Have the environments of what runs kept."""
        running = {generation.environment.digest for generation in self._generations()}
        self._environments.use(running - {""})

    def _tell(self) -> None:
        """Let the workers know why the champion does not serve."""
        starting = self._starting.model if self._starting else None
        self._situation.say("starting", f"version {starting.version.version} is starting" if starting else "")
        # Where the registry does not say which it wants: the last that was tried.
        wanted = self._champion.version if self._champion else next(reversed(self._rejected), None)
        rejected = ""
        if wanted in self._rejected and (self._serving is None or str(self._serving) != wanted.version):
            rejected = f"version {wanted.version} was rejected: {self._rejected[wanted].reason}"
        self._situation.say("rejected", rejected)

    # --- stopping ---

    def _stop(self, number: int) -> None:
        if self._stopping:
            for generation in self._generations():
                generation.kill()
            return
        self._stopping = True
        _logger.info("stopping", extra={"signal": signal.Signals(number).name})
        # From here on a new connection is refused as soon as the workers have closed theirs.
        for listener in self._listeners:
            listener.close()
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


def listen(settings: Settings) -> list[socket.socket]:
    """The listening sockets: the TCP port, and the Unix socket where one is set.

    Raises:
        ListenError: when one of them cannot be had.
    """
    listeners = []
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise ListenError(
                f"cannot listen on SERVING_HOST={settings.host} SERVING_PORT={settings.port}: "
                f"{error.strerror or error}; give another port, or end what has it"
            ) from error
        listeners.append(listener)
        if settings.socket is not None:
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            try:
                # What a former server left; two never share a path.
                settings.socket.unlink(missing_ok=True)
                listener.bind(str(settings.socket))
                settings.socket.chmod(0o660)
            except OSError as error:
                raise ListenError(
                    f"cannot listen on SERVING_SOCKET={settings.socket}: {error.strerror or error}; "
                    "give a path in a directory that this user may write to"
                ) from error
            listeners.append(listener)
        for listener in listeners:
            listener.listen(_BACKLOG)
        undo.pop_all()
    return listeners


def serve(settings: Settings) -> int:
    """Serve until stopped, and return the exit status."""
    logs.configure(settings.debug)
    try:
        listeners = listen(settings)
    except ListenError as error:
        _logger.critical(str(error))
        return 1
    return Supervisor(settings, listeners).run()
