"""Gunicorn's settings, from the server's own; loaded with ``--config python:model_server.worker.gunicorn_config``."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any

from model_server.common import contract, logs, processes
from model_server.common.settings import Settings
from model_server.worker.handover import Handover
from model_server.worker.seats import Seats

if TYPE_CHECKING:
    from model_server.worker.worker import LoopWorker

_settings = Settings.from_environment()

# The others are left to the worker: Gunicorn removes the path of a Unix socket when it ends, and the next has it too.
bind = f"fd://{contract.listeners()[0]}"
workers = _settings.processes
worker_class = "model_server.worker.worker.LoopWorker"
preload_app = True
# A hung worker is found by the heartbeat of its main thread, which loads the model too; a hung prediction by the loop.
timeout = max(60, round(_settings.start_timeout))
graceful_timeout = round(_settings.shutdown_timeout)
control_socket_disable = True
# Heartbeats are file times: keep them off the disk.
worker_tmp_dir = "/dev/shm"  # noqa: S108 - Gunicorn makes an unlinked file there
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

_NICENESS = 10
"""Of workers for large requests: a tenth of what the others get while these want the core, all of it when not."""

# For small requests, and for large ones.
_seats = Seats(_settings.workers), Seats(_settings.large_workers)
_handovers = Handover.ends()
# What a worker's model started stays below Gunicorn, so that it is told from that of other versions.
processes.adopt_orphans()


def on_starting(server: Any) -> None:
    """In Gunicorn: look how workers end before it collects them, and say so of one that was not ready."""
    collect = server.reap_workers

    def look_and_collect() -> None:
        for pid, worker in server.WORKERS.items():
            if (ending := processes.peek(pid)) and not worker.ready[0]:
                contract.report_failure(f"a worker {ending} before it was ready")
        collect()

    server.reap_workers = look_and_collect


def pre_fork(server: Any, worker: LoopWorker) -> None:
    """In Gunicorn: say what kind of requests a new worker has, and give it a seat that no other has."""
    others = server.WORKERS.values()
    worker.ready = mmap.mmap(-1, 1)
    worker.large = sum(other.large for other in others) < _settings.large_workers
    worker.handover = _handovers[worker.large]
    worker.seats = _seats[worker.large]
    worker.seat = worker.seats.free({other.seat for other in others if other.large is worker.large})


def post_fork(_server: Any, _worker: LoopWorker) -> None:
    """In a new worker: while a model is loaded, nobody but Gunicorn is its parent; it might end who takes its place."""
    processes.end_with_parent(ends=True)


def child_exit(_server: Any, worker: LoopWorker) -> None:
    """In Gunicorn: a worker is gone."""
    worker.seats.leave(worker.seat)


def post_worker_init(worker: LoopWorker) -> None:
    """In a new worker, before it accepts: have the model answer its own example, then wait for the others'."""
    from model_server.worker.wsgi import application

    # Gunicorn's own status for a worker that cannot boot: it stops instead of forking the next.
    with contract.reporting_failure(status=3):
        application.begin()
        # The model may have taken them.
        worker.init_signals()
    # From now on it answers what it has.
    processes.end_with_parent(ends=False)
    if os.getppid() != worker.ppid:
        # A copy that the model made of its worker, or a worker whose Gunicorn it ended.
        os._exit(0)
    worker.ready[0] = 1
    if worker.large:
        os.nice(_NICENESS)
    contract.report_ready()
    contract.await_opening()
