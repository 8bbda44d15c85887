"""Models, servers and a registry for the tests of the model server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

with warnings.catch_warnings():
    # MLflow warns about its own type hints when it is imported.
    warnings.simplefilter("ignore")
    import mlflow
    import mlflow.pyfunc
    from mlflow.models import Model

from model_server.worker.model import ServedModel
from serving_harness import SIGNATURES, SIGNATURES_OVER_A_HINT, RegisteredModel, Servers, free_port, store_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """MLflow's and schemathesis' warnings are not this project's: here a warning is no failure."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def echo_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ServedModel]:
    """A model that echoes its input, for each signature."""
    root = tmp_path_factory.mktemp("echo")
    served = {}
    for number, (name, signature) in enumerate(SIGNATURES.items(), 1):
        stored = store_model(root, "echo", str(number), signature=signature)
        served[name] = ServedModel.load(stored, max_rows=1000, max_body_bytes=1_000_000)
    hinted = {"a type hint": None, **SIGNATURES_OVER_A_HINT}
    for number, (name, signature) in enumerate(hinted.items(), 101):
        example = (["a query"], {"top_k": 2, "threshold": 0.5})
        stored = store_model(root, "echo_list", str(number), input_example=example)
        if signature is not None:
            metadata = Model.load(stored.model_path)
            metadata.signature = signature
            metadata.save(stored.model_path / "MLmodel")
        served[name] = ServedModel.load(stored, max_rows=1000, max_body_bytes=1_000_000)
    return served


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Servers with a model directory of their own."""
    started = Servers(tmp_path)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """As ``servers``, for the tests of one module."""
    started = Servers(tmp_path_factory.mktemp("servers"))
    (started.directory / "models").mkdir()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def registry_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on SQLite."""
    directory = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{directory}/mlflow.db", "--artifacts-destination", str(directory / "a")),
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    # MLflow's imports alone take a minute on a busy machine.
    deadline = time.monotonic() + 300
    while True:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=5):
                break
        except OSError:
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.2)
    yield uri
    os.killpg(process.pid, 15)
    process.wait(30)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def registered(registry_uri: str, request: pytest.FixtureRequest) -> Iterator[RegisteredModel]:
    """A name of the test's own in the registry."""
    former = mlflow.get_tracking_uri()
    yield RegisteredModel(registry_uri, request.node.name)
    mlflow.set_tracking_uri(former)
