"""The Python environment that a version is served from: settled by the supervisor, told by the workers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

VARIABLE = "MODEL_SERVER_ENVIRONMENT"
"""In the environment of a generation: what is told of it, as JSON."""
PYTHON_VARIABLE = "MODEL_SERVER_PYTHON"
"""The image's own interpreter, which has what the server needs beside its workers."""


@dataclass(frozen=True)
class Environment:
    """What a version is served from."""

    digest: str = ""
    """Of an environment that the service ``environments`` made; empty for the image's own packages."""
    differences: tuple[str, ...] = ()
    """Where it is not what the version was logged with, in words."""
    logged_with: str = ""
    """The version of Python at that time, where its minor version is another; else empty."""

    def to_json(self) -> str:
        """One line, for a file or a variable."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Environment:
        """Raises: ValueError, TypeError or KeyError where it is none."""
        fields = json.loads(text)
        return cls(**{**fields, "differences": tuple(fields["differences"])})


def of_this_process() -> Environment:
    """The environment of a worker."""
    text = os.environ.get(VARIABLE)
    return Environment.from_json(text) if text else Environment()


def description(served_with: str) -> dict[str, Any]:
    """What ``GET /model`` says of it, in a worker.

    Args:
        served_with: the version of Python that serves.
    """
    environment = of_this_process()
    told: dict[str, Any] = {
        "environment": {"digest": environment.digest or None, "differences": list(environment.differences)}
    }
    if environment.logged_with:
        told["python"] = {"logged_with": environment.logged_with, "served_with": served_with}
    return told
