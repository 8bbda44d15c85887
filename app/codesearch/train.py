"""``python -m codesearch.train``: one training run, configured by the environment (see docs/training.md)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from types import FrameType

# Nothing heavy is imported here: the processes that read the corpus import this module again.
from codesearch.settings import Settings, TrainingError

_DEFAULTS = {
    # There is no git in the image, and the version of the code is its own tag.
    "GIT_PYTHON_REFRESH": "quiet",
    # About a minute of patience with a tracking server that restarts; MLflow's own default is four.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # The order of a sum depends on the number of threads, and the model's bytes on the order.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}

_logger = logging.getLogger("codesearch")


class _ElapsedFormatter(logging.Formatter):
    """Puts the seconds since the start before each line."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.monotonic()

    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        return f"[{time.monotonic() - self._start:5.1f} s] {prefix}{super().format(record)}"


def _configure_logging() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_ElapsedFormatter())
    _logger.handlers = [handler]
    _logger.propagate = False
    _logger.setLevel(logging.INFO)


def _stop(signal_number: int, _frame: FrameType | None) -> None:
    # As an exception, so that the run is marked as failed and temporary files go.
    raise SystemExit(128 + signal_number)


def main() -> int:
    """Train, and return the exit status: 0 only when a model was logged and registered."""
    _configure_logging()
    signal.signal(signal.SIGTERM, _stop)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        settings = Settings.from_environment(os.environ)
        from codesearch import pipeline

        pipeline.run(settings)
    except TrainingError as error:
        _logger.error("training failed: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
