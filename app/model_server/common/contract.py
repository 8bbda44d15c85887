"""What the supervisor gives a generation, and what the generation tells it.

The supervisor starts Gunicorn with these variables in its environment; Gunicorn's processes report over a pipe, one
JSON object per line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from model_server.common.signature import SignatureError
from model_server.common.store import StoredModel

_logger = logging.getLogger(__name__)

LISTENERS_VARIABLE = "MODEL_SERVER_LISTENER_FDS"
"""Descriptors of the listening sockets, with commas between them."""
REPORT_VARIABLE = "MODEL_SERVER_REPORT_FD"
"""Descriptor of the pipe's writing end."""
OPENING_VARIABLE = "MODEL_SERVER_OPENING_FD"
"""Descriptor of a pipe that ends when the generation may accept."""
MODEL_VARIABLE = "MODEL_SERVER_MODEL"
"""Directory of the stored version; unset while there is none."""
REPLACES_VARIABLE = "MODEL_SERVER_REPLACES"
"""The version that serves meanwhile; unset where none does."""


def assigned_model() -> StoredModel | None:
    """The version this Gunicorn is to serve, or None while there is none."""
    directory = os.environ.get(MODEL_VARIABLE)
    return StoredModel.read(Path(directory)) if directory else None


def replaces_another() -> bool:
    """Whether another version serves while this one starts."""
    return REPLACES_VARIABLE in os.environ


def listeners() -> list[int]:
    """Descriptors of the listening sockets; the TCP port's is the first."""
    return [int(descriptor) for descriptor in os.environ[LISTENERS_VARIABLE].split(",")]


def report_ready() -> None:
    """Tell the supervisor that one worker can answer."""
    _report({"event": "ready"})


def await_opening() -> None:
    """Wait until the supervisor lets this generation accept."""
    os.read(int(os.environ[OPENING_VARIABLE]), 1)


def report_failure(reason: str, kind: str = "start") -> None:
    """Tell the supervisor that this model version cannot be served.

    Args:
        reason: in words.
        kind: in the metric: ``start``, or ``signature``.
    """
    _report({"event": "failed", "reason": reason[:2000], "kind": kind})


@contextlib.contextmanager
def reporting_failure(status: int) -> Iterator[None]:
    """Where what is inside fails, report it and end this process at once.

    Args:
        status: the exit status then.
    """
    try:
        yield
    except BaseException as error:
        _logger.exception("the model cannot be served")
        report_failure(str(error), "signature" if isinstance(error, SignatureError) else "start")
        os._exit(status)


def _report(message: dict[str, str]) -> None:
    # Lines of less than PIPE_BUF bytes stay whole, however many workers write.
    with contextlib.suppress(OSError):
        os.write(int(os.environ[REPORT_VARIABLE]), json.dumps(message).encode() + b"\n")
