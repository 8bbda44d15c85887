"""Asks the registry for the champion, in a thread of its own, and brings it to our disk."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from model_server.common import metrics
from model_server.common.settings import Settings
from model_server.common.situation import Situation
from model_server.common.store import ModelStore, ModelVersion, StoredModel
from model_server.supervisor.generation import python_path
from model_server.supervisor.registry import RegistryError, registry_at

_logger = logging.getLogger(__name__)

_FETCH_TIMEOUT_SECONDS = 600.0
_FETCH_AGAIN_SECONDS = 600.0
"""Until a version is fetched that was fetched before, and removed for its signature."""


@dataclass(frozen=True)
class Champion:
    """What is asked for resolves to this version, and it is on our disk."""

    model: StoredModel
    is_new: bool
    """Whether it came just now."""


class Refresher(threading.Thread):
    """Asks the registry again and again, and brings the champion to our disk.

    Args:
        settings: of the server.
        store: where downloads go.
        situation: where it says why there is no champion.
        notify: called from this thread with the :class:`Champion`, at every round.
    """

    def __init__(
        self, settings: Settings, store: ModelStore, situation: Situation, notify: Callable[[Champion], None]
    ) -> None:
        super().__init__(name="refresher", daemon=True)
        self._settings = settings
        self._store = store
        self._notify = notify
        self._situation = situation
        self._registry = registry_at(settings.tracking_uri, settings.model)
        self._last_said = ""
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._fetched: dict[ModelVersion, float] = {}
        """When, on the monotonic clock."""

    def run(self) -> None:
        """Ask until the process ends."""
        while True:
            self._refresh()
            with contextlib.suppress(queue.Empty):
                self._wakes.get(timeout=self._settings.refresh_interval)

    def wake(self) -> None:
        """Ask at once. Safe in a signal handler."""
        self._wakes.put(None)

    def forget(self) -> None:
        """Let what was fetched and removed be fetched again. Safe in a signal handler."""
        self._fetched.clear()

    def _refresh(self) -> None:
        try:
            version = self._registry.champion()
        except RegistryError as error:
            metrics.REGISTRY_UP.set(0)
            self._situation.say("registry", f"the registry cannot be asked: {error}")
            self._say("the registry cannot be asked; serving goes on", logging.WARNING, reason=str(error))
            return
        metrics.REGISTRY_UP.set(1)
        metrics.REGISTRY_CONTACT.set(time.time())
        if version is None:
            missing = f"the registry has no {self._settings.model}, train one with --tags train"
            self._situation.say("registry", missing)
            self._say("the registry has no such model", logging.WARNING)
            return
        try:
            found = self._store.find(version)
            if found is None and time.monotonic() - self._fetched.get(version, -math.inf) < _FETCH_AGAIN_SECONDS:
                self._situation.say("registry", "")
                return
            model = found or self._fetch(version)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            metrics.MODEL_REJECTIONS.labels("download").inc()
            self._situation.say("registry", f"version {version.version} cannot be downloaded, the log has the reason")
            self._say("a model cannot be downloaded", logging.ERROR, version=version.version, reason=str(error))
            return
        self._last_said = ""
        self._situation.say("registry", "")
        self._notify(Champion(model, is_new=found is None))

    def _fetch(self, version: ModelVersion) -> StoredModel:
        self._situation.say("registry", f"version {version.version} is being downloaded")
        staging = self._store.stage(version)
        # From the beginning: what is signed meanwhile is fetched again as soon as somebody says so.
        self._fetched[version] = time.monotonic()
        try:
            with tempfile.TemporaryFile() as errors:
                done = subprocess.run(
                    [sys.executable, "-m", "model_server.supervisor.fetch", version.uri, str(staging)],
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
        except BaseException:
            self._fetched.pop(version, None)
            raise
        finally:
            self._store.discard(staging)
        _logger.info("downloaded", extra={"version": version.version})
        return stored

    def _say(self, message: str, level: int, **details: str) -> None:
        """Log, but not the same thing at every round."""
        said = message + repr(details)
        if said != self._last_said:
            _logger.log(level, message, extra={"model": str(self._settings.model), **details})
            self._last_said = said
