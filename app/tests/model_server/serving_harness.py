"""Models of every kind of signature, and servers as processes to put them into."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from model_server.common.store import ModelStore, ModelVersion, StoredModel

MODELS = Path(__file__).parent / "models"
APPLICATION = Path(__file__).resolve().parents[2]

PARAMS = ParamSchema([ParamSpec("top_k", DataType.long, 2), ParamSpec("threshold", DataType.double, 0.5)])
SCALARS = ["string", "boolean", "integer", "long", "float", "double"]
SIGNATURES: dict[str, ModelSignature | None] = {
    "no signature": None,
    "one string": ModelSignature(Schema([ColSpec("string")])),
    "one string with params": ModelSignature(Schema([ColSpec("string")]), params=PARAMS),
    "one named string": ModelSignature(Schema([ColSpec("string", "query")])),
    "one named double": ModelSignature(Schema([ColSpec("double", "x")])),
    "two unnamed doubles": ModelSignature(Schema([ColSpec("double"), ColSpec("double")])),
    "four doubles": ModelSignature(Schema([ColSpec("double", name) for name in "abcd"]), params=PARAMS),
    "every scalar": ModelSignature(Schema([ColSpec(kind, kind) for kind in SCALARS])),
    "an optional column": ModelSignature(Schema([ColSpec("double", "a"), ColSpec("string", "b", required=False)])),
    "datetime and binary": ModelSignature(Schema([ColSpec("datetime", "when"), ColSpec("binary", "what")])),
    "a tensor": ModelSignature(Schema([TensorSpec(np.dtype("float64"), (-1, 3))])),
    "an integer tensor": ModelSignature(Schema([TensorSpec(np.dtype("int32"), (-1,))])),
    "named tensors": ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, 2), "a"), TensorSpec(np.dtype("int64"), (-1,), "b")])
    ),
}
# Put in the place of the signature that MLflow takes from the type hint, as `mlflow.models.set_signature` does.
SIGNATURES_OVER_A_HINT = {
    "one string over a hint": SIGNATURES["one string with params"],
    "one named string over a hint": SIGNATURES["one named string"],
    "a double over a hint": SIGNATURES["one named double"],
}


def store_model(root: Path, model: Any, version: str = "1", *, name: str = "m", **options: Any) -> StoredModel:
    """Save ``models/<model>.py``, or a model of this process, and put it into the model store at ``root``."""
    python_model = str(MODELS / f"{model}.py") if isinstance(model, str) else model
    store = ModelStore(root, name)
    meta = ModelVersion(name, version, int(version), f"run{version}", "")
    staging = store.stage(meta)
    mlflow.pyfunc.save_model(staging / "model", python_model=python_model, **{"pip_requirements": [], **options})
    return store.commit(meta, staging)


def answer_json(handler: BaseHTTPRequestHandler, status: int, content: object) -> None:
    """Answer for a service that a test stands in for."""
    body = json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@dataclass
class Answer:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A running model server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def request(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> Answer:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=body, headers=headers or {}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def predict(self, *queries: str) -> Answer:
        return self.request(
            "/invocations", json.dumps({"inputs": queries}).encode(), {"Content-Type": "application/json"}
        )

    def predict_on_held_connections(self, question: str, count: int = 8) -> list[Any]:
        """The predictions that connections get which are open at the same time: they are spread over all workers."""
        held = [http.client.HTTPConnection("127.0.0.1", self.port, timeout=30) for _ in range(count)]
        predictions = []
        for connection in held:
            body = json.dumps({"inputs": [question]})
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200
            predictions.append(json.loads(answer.read())["predictions"][0])
        for connection in held:
            connection.close()
        return predictions

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the server ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{self.log.read_text()}"
            time.sleep(0.05)

    def answers(self, path: str, status: int) -> bool:
        try:
            return self.request(path).status == status
        except OSError:
            return False

    def serves(self, version: str) -> bool:
        return self.request("/ready").headers.get("X-Model-Version") == version

    def workers(self, *, large: bool = False) -> set[int]:
        """The process ids of the workers for small requests or for large ones: those below the newest Gunicorn."""
        try:
            children = psutil.Process(self.process.pid).children()
            gunicorns = [child for child in children if "gunicorn" in child.cmdline()]
            newest = max(gunicorns, key=lambda process: process.create_time(), default=None)
            if newest is None:
                return set()
            usual = newest.nice()
            return {child.pid for child in newest.children() if (child.nice() > usual) is large}
        except psutil.NoSuchProcess:
            return set()

    def wait_for_metrics(self, condition: Callable[[dict[str, float]], bool], what: str) -> dict[str, float]:
        """The metrics when they are as the condition says: predictions are counted after they are answered."""
        self.wait_for(lambda: condition(self.metrics()), what)
        return self.metrics()

    def metrics(self) -> dict[str, float]:
        lines = self.request("/metrics").body.decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


@dataclass
class Servers:
    """Starts servers, and ends those that are left."""

    directory: Path
    started: list[Server] = field(default_factory=list)

    def start(self, *, ready: bool = True, **environment: str) -> Server:
        port = free_port()
        models = self.directory / "models"
        models.mkdir(exist_ok=True)
        log = self.directory / f"server-{port}.log"
        variables = {
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
            "MODEL_NAME": "m",
            "MODEL_DIRECTORY": str(models),
            "SERVING_HOST": "127.0.0.1",
            "SERVING_PORT": str(port),
            "SERVING_WORKERS": "2",
            "SERVING_MODEL_REFRESH_SECONDS": "0.3",
            "SERVING_SHUTDOWN_TIMEOUT_SECONDS": "5",
            "PYTHONPATH": str(APPLICATION),
            **environment,
        }
        inherited = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "model_server"],
                env={**inherited, **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
            )
        server = Server(process, port, log)
        self.started.append(server)
        if ready:
            # Said when every worker has answered the model's example; the first serves before that.
            server.wait_for(
                lambda: any(entry["message"] == "serving" and entry["version"] != "none" for entry in server.logged()),
                "every worker is ready",
            )
        else:
            server.wait_for(lambda: server.answers("/health", 200), "alive")
        return server

    def stop(self) -> None:
        for server in self.started:
            if server.process.poll() is None:
                server.process.terminate()
        for server in self.started:
            try:
                server.process.wait(15)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()


@dataclass
class RegisteredModel:
    """One name in the registry."""

    uri: str
    name: str

    def register(self, model: str, **options: Any) -> str:
        """Log ``models/<model>.py``, register it and make it the champion; return its version."""
        client = mlflow.MlflowClient(self.uri)
        mlflow.set_tracking_uri(self.uri)
        # MLflow remembers the experiment of whatever ran before in this process, on another server.
        mlflow.set_experiment(self.name)
        with mlflow.start_run():
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(MODELS / f"{model}.py"),
                registered_model_name=self.name,
                **{"pip_requirements": [], **options},
            )
        version = str(info.registered_model_version)
        client.set_registered_model_alias(self.name, "champion", version)
        return version

    def point_to(self, version: str) -> None:
        mlflow.MlflowClient(self.uri).set_registered_model_alias(self.name, "champion", version)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
