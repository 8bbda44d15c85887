"""Gunicorn's settings, from the server's own; loaded with ``--config python:model_server.worker.gunicorn_config``."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from model_server.common import contract, logs
from model_server.common.settings import Settings

if TYPE_CHECKING:
    from gunicorn.workers.base import Worker

_settings = Settings.from_environment()
_logger = logging.getLogger(__name__)

bind = [f"fd://{descriptor}" for descriptor in os.environ[contract.LISTENERS_VARIABLE].split(",")]
workers = _settings.workers
worker_class = "model_server.worker.worker.FollowingThreadWorker"
# Every request that runs or waits holds a thread; the spare ones answer health checks and say that the queue is full.
threads = _settings.concurrency + _settings.queue_length + 8
worker_connections = 1000 + threads
preload_app = True
keepalive = 75
backlog = 1024
# A hung worker is found by this heartbeat of its main thread; a hung prediction by the predictor.
timeout = 60
graceful_timeout = round(_settings.shutdown_timeout)
control_socket_disable = True
# Heartbeats are file times: keep them off the disk.
worker_tmp_dir = "/dev/shm"  # noqa: S108 - Gunicorn makes an unlinked file there
limit_request_line = 8190
accesslog = None
loglevel = "warning"
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": logs.JsonFormatter}},
    "handlers": {"stdout": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}},
    "root": {"level": "INFO", "handlers": ["stdout"]},
    "loggers": {
        "gunicorn.error": {"level": "WARNING", "handlers": ["stdout"], "propagate": False},
        "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": False},
    },
}


def post_worker_init(_worker: Worker) -> None:
    """In a new worker, before it accepts: answer the model's own example, then say that it is ready."""
    from model_server.worker.wsgi import application

    application.start_worker()
    if application.model is not None:
        try:
            if not application.model.answer_example():
                _logger.warning("the model was logged without an input example: only its loading was checked")
        except Exception as error:  # noqa: BLE001 - it ends in the report and in the exit status
            _logger.error("the model does not work", extra={"reason": str(error)})
            contract.report_failure(str(error))
            # Gunicorn's own status for a worker that cannot boot: it stops instead of forking the next.
            os._exit(3)
    contract.report_ready()
