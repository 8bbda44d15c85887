"""The servers that are measured: how each is started with a model, on a port of 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model_server.common.store import ModelStore, ModelVersion

_APPLICATION = Path(__file__).resolve().parents[1]
_START_SECONDS = 120


@dataclass(frozen=True)
class Place:
    """Where things are."""

    model: Path
    """The MLflow model."""
    work: Path
    """A directory for what servers need."""
    ours: Path
    """Virtual environment of our model server."""
    mlflow: Path
    """Virtual environment with MLflow in full."""
    mlserver: Path
    """Virtual environment with MLServer."""


@dataclass(frozen=True)
class Command:
    """How to start one server."""

    arguments: list[str]
    environment: dict[str, str]
    directory: Path


def _ours(place: Place, port: int, workers: int) -> Command:
    models = place.work / "models"
    shutil.rmtree(models, ignore_errors=True)
    models.mkdir(parents=True)
    store = ModelStore(models, "code-search")
    version = ModelVersion("code-search", "1", 1, "", "")
    staging = store.stage(version)
    shutil.copytree(place.model, staging / "model")
    store.commit(version, staging)
    environment = {
        "MODEL_DIRECTORY": str(models),
        # Nothing listens there: a server with a model on its disk needs no registry.
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "SERVING_HOST": "127.0.0.1",
        "SERVING_PORT": str(port),
        "SERVING_WORKERS": str(workers),
        "PYTHONPATH": str(_APPLICATION),
    }
    return Command([str(place.ours / "bin/python"), "-m", "model_server"], environment, place.work)


def _mlflow(place: Place, port: int, workers: int) -> Command:
    programs = place.mlflow / "bin"
    arguments = ["models", "serve", "--model-uri", str(place.model), "--env-manager", "local"]
    return Command(
        [str(programs / "mlflow"), *arguments, "--port", str(port), "--workers", str(workers)],
        {"PATH": f"{programs}:{os.environ['PATH']}"},
        place.work,
    )


def _mlserver(place: Place, port: int, workers: int) -> Command:
    directory = place.work / "mlserver"
    directory.mkdir(exist_ok=True)
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": port + 1,
        "metrics_port": port + 2,
        "parallel_workers": workers,
    }
    (directory / "settings.json").write_text(json.dumps(settings))
    model = {
        "name": "code-search",
        "implementation": "mlserver_mlflow.MLflowRuntime",
        "parameters": {"uri": str(place.model)},
    }
    (directory / "model-settings.json").write_text(json.dumps(model))
    programs = place.mlserver / "bin"
    return Command(
        [str(programs / "mlserver"), "start", str(directory)],
        {"PATH": f"{programs}:{os.environ['PATH']}"},
        directory,
    )


SERVERS: dict[str, tuple[str, Callable[[Place, int, int], Command]]] = {
    "model server": ("/ready", _ours),
    "mlflow models serve": ("/ping", _mlflow),
    "MLServer": ("/v2/health/ready", _mlserver),
}
"""By name: the path that answers 200 when it is ready, and how to start it."""


@contextlib.contextmanager
def running(name: str, place: Place, port: int, workers: int) -> Iterator[None]:
    """Have a server run.

    Raises:
        RuntimeError: when it does not become ready; the message has the end of its log.
    """
    ready, command_for = SERVERS[name]
    command = command_for(place, port, workers)
    log = place.work / f"{name.replace(' ', '-')}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command.arguments,
            # One thread for arithmetic in each worker: two cores are full of workers and the client.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **command.environment},
            cwd=command.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(f"http://127.0.0.1:{port}{ready}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} is not ready:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - a URL of this program's own
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
