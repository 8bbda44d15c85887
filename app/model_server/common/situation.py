"""Why no model is served, or not the champion: said by the supervisor, read by the workers for their answers.

A small JSON file, replaced whole.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path

PATH_VARIABLE = "MODEL_SERVER_SITUATION"
"""In the environment of a generation: where the file is."""
_TOPICS = ("rejected", "registry", "environment", "starting")


class Situation:
    """The supervisor's side; its threads may speak at the same time."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="model-server-situation-")
        self.path = Path(self._directory.name) / "situation.json"
        self._said: dict[str, str] = {}
        self._lock = threading.Lock()

    def say(self, topic: str, text: str) -> None:
        """Say something of a topic; an empty text takes back what was said.

        Args:
            topic: ``rejected``, ``registry``, ``environment`` or ``starting``.
            text: a clause without a full stop.
        """
        with self._lock:
            if self._said.get(topic, "") == text:
                return
            self._said[topic] = text
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._said))
            temporary.replace(self.path)


def rejection() -> str:
    """Which version was rejected and why; empty when the champion is served."""
    return _read().get("rejected", "")


def progress() -> str:
    """Which version is on its way, and how far it is; empty when none is."""
    said = _read()
    return said.get("environment") or said.get("starting", "")


def absence() -> str:
    """Why no model is served, as a sentence."""
    said = _read()
    reasons = [said[topic] for topic in _TOPICS if said.get(topic)] or ["the registry is being asked"]
    return f"No model is served yet: {'; '.join(reasons)}."


def _read() -> dict[str, str]:
    try:
        said: dict[str, str] = json.loads(Path(os.environ[PATH_VARIABLE]).read_bytes())
    except (OSError, KeyError):
        return {}
    return said
