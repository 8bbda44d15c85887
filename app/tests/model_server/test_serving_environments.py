"""From which packages a version is served: the image's own, or those that the service ``environments`` makes for it.

The servers are real, and so is the environment; who makes it is a stand-in that says what the service would.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from model_server.common.signature import sign
from model_server.supervisor.environment import needs
from serving_harness import RegisteredModel, Server, Servers, StoredModel, answer_json, free_port, store_model

pytestmark = pytest.mark.timing
DIGEST = "0123456789abcdef" * 2
MISSING = {"pip_requirements": ["only-there==1.0"]}
OTHER = {"pip_requirements": ["flask==0.1"]}
REJECTED = 'model_server_model_rejections_total{reason="%s"}'
INSTALLING = (202, {"state": "installing", "says": "3 packages are being installed"})
READY = (200, {"state": "ready", "environment": DIGEST, "lock": ["only-there==1.0"], "notes": []})
REFUSED = (422, {"state": "refused", "kind": "version", "reason": "there is no version of only-there==1.0"})
UNREACHABLE = (503, {"state": "unreachable", "reason": "an index does not answer"})


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = 200, {"state": "ready"}
        if self.path == "/environments":
            self.server.asked.append(body)
            status, answer = self.server.answer
        else:
            self.server.used.append(self.path)
        answer_json(self, status, answer)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the library's name
        pass


class Service(ThreadingHTTPServer):
    """Stands in for the service: it answers what the test says, and remembers who asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: tuple[int, dict[str, Any]] = INSTALLING
        self.asked: list[dict[str, Any]] = []
        self.used: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume with an environment that has a package which this one has not."""
    volume = tmp_path / "environments"
    place = volume / DIGEST
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(place)], check=True)
    packages = next((place / "lib").glob("python*/site-packages"))
    (packages / "only_there.py").write_text("WORD = 'brought'\n")
    (packages / "the_others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return volume


@pytest.fixture
def models(servers: Servers) -> Path:
    directory = servers.directory / "models"
    directory.mkdir()
    return directory


@pytest.fixture
def start(servers: Servers, service: Service, volume: Path) -> Callable[..., Server]:
    def _start(*, ready: bool = True, **variables: str) -> Server:
        here = {"ENVIRONMENTS_URL": service.url, "ENVIRONMENTS_DIRECTORY": str(volume), "SERVING_WORKERS": "1"}
        return servers.start(ready=ready, **{**here, **variables})

    return _start


def says(server: Server, what: str) -> bool:
    """Whether a server that serves nothing says why."""
    return what in server.request("/ready").json["message"]


def predicts(server: Server) -> list[str]:
    answer = server.predict("a query")
    assert answer.status == 200, answer.body
    return list(answer.json["predictions"])


def test_what_the_image_satisfies_is_served_at_once_and_nobody_is_asked(
    start: Callable[..., Server], service: Service, models: Path
) -> None:
    requirements = [f"flask=={metadata.version('flask')}", "numpy", f"mlflow=={metadata.version('mlflow-skinny')}"]
    store_model(models, "search", pip_requirements=requirements)
    server = start()
    assert server.request("/model").json["environment"] == {"digest": None, "differences": []}
    assert service.asked == []


def test_the_former_version_answers_until_the_environment_is_there_and_progress_is_told(
    start: Callable[..., Server], service: Service, registered: RegisteredModel
) -> None:
    first = registered.register("search")
    server = start(MLFLOW_TRACKING_URI=registered.uri, MODEL_NAME=registered.name)
    second = registered.register("brought", **MISSING)
    said = f"version {second} gets its environment: 3 packages are being installed"
    server.wait_for(lambda: said in str(server.request("/model").json["coming"]), "progress")
    assert said in [
        f"version {line['version']} gets its environment: {line['says']}" for line in server.logged() if "says" in line
    ]
    assert server.serves(first)
    assert "only-there==1.0" in service.asked[0]["requirements"]
    assert service.asked[0]["with"] == needs()
    service.answer = READY
    server.wait_for(lambda: server.serves(second), "the switch")
    assert predicts(server) == ["a query brought"]
    told = server.request("/model").json
    assert told["environment"] == {"digest": DIGEST, "differences": []}
    assert told["coming"] is None
    server.wait_for(lambda: f"/environments/{DIGEST}/use" in service.used, "the service knows that it is in use")


def test_a_refusal_is_a_rejection_and_what_is_served_goes_on(
    start: Callable[..., Server], service: Service, registered: RegisteredModel
) -> None:
    service.answer = REFUSED
    first = registered.register("search")
    server = start(MLFLOW_TRACKING_URI=registered.uri, MODEL_NAME=registered.name)
    second = registered.register("brought", **MISSING)
    said = f"version {second} was rejected: its environment cannot be made: {REFUSED[1]['reason']}"
    server.wait_for(lambda: server.request("/model").json["rejected"] == said, "the reason")
    assert server.serves(first)
    assert server.metrics()[REJECTED % "environment"] == 1
    assert len(service.asked) == 1, "it is not asked for again at each look at the registry"


@pytest.mark.parametrize("reached", ["the service says so", "nobody answers", "there is none"])
def test_other_versions_of_the_same_packages_serve_when_nobody_makes_an_environment(
    reached: str, start: Callable[..., Server], service: Service, models: Path
) -> None:
    service.answer = UNREACHABLE
    urls = {"nobody answers": f"http://127.0.0.1:{free_port()}", "there is none": ""}
    store_model(models, "search", **OTHER)
    server = start(ENVIRONMENTS_URL=urls.get(reached, service.url))
    environment = server.request("/model").json["environment"]
    assert environment["digest"] is None
    assert environment["differences"][0] == f"flask==0.1: here {metadata.version('flask')}"
    assert any("flask==0.1" in str(line.get("differences")) for line in server.logged())


def test_a_missing_package_is_asked_for_again_until_somebody_brings_it(
    start: Callable[..., Server], service: Service, models: Path
) -> None:
    service.answer = UNREACHABLE
    store_model(models, "brought", **MISSING)
    server = start(ready=False)
    server.wait_for(lambda: says(server, "this image does not have only-there==1.0"), "the reason")
    assert server.metrics()[REJECTED % "environment"] == 1
    service.answer = READY
    server.wait_for(lambda: server.serves("1"), "it is tried again")
    assert predicts(server) == ["a query brought"]


def test_a_restart_needs_no_service_while_the_environment_is_there(
    start: Callable[..., Server], service: Service, models: Path, volume: Path
) -> None:
    service.answer = READY
    store_model(models, "brought", **MISSING)
    start().stop()
    asked = len(service.asked)
    again = start(ENVIRONMENTS_URL=f"http://127.0.0.1:{free_port()}")
    assert predicts(again) == ["a query brought"]
    again.stop()
    shutil.rmtree(volume / DIGEST)
    service.answer = INSTALLING
    server = start(ready=False)
    server.wait_for(lambda: len(service.asked) > asked, "what is gone is asked for again")


def of_another_python(stored: StoredModel) -> None:
    path = stored.model_path / "python_env.yaml"
    path.write_text(path.read_text().replace(f"python: {sys.version.split()[0]}", "python: 3.9.18"))
    assert "3.9.18" in path.read_text()


def test_code_that_was_pickled_by_another_python_is_refused(
    start: Callable[..., Server], service: Service, models: Path
) -> None:
    class ByValue(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow has no types here
        def predict(self, model_input: list[str]) -> list[str]:
            return model_input

    of_another_python(store_model(models, ByValue()))
    server = start(ready=False)
    server.wait_for(lambda: says(server, "it was pickled with Python 3.9.18"), "the reason")
    assert says(server, "log it from code")
    assert server.metrics()[REJECTED % "environment"] == 1
    assert service.asked == []


def test_code_that_was_logged_by_another_python_is_served_and_both_are_told(
    start: Callable[..., Server], models: Path
) -> None:
    of_another_python(store_model(models, "search"))
    told = start().request("/model").json["python"]
    assert told == {"logged_with": "3.9.18", "served_with": sys.version.split()[0]}


def test_nothing_is_installed_for_what_is_not_what_was_signed(
    start: Callable[..., Server], service: Service, models: Path, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    service.answer = READY
    made = store_model(models, "brought", **MISSING)
    sign(made.directory, private)
    (made.model_path / "requirements.txt").write_text("only-there==2.0\n")
    server = start(ready=False, SERVING_SIGNING_KEY=str(public))
    server.wait_for(lambda: server.metrics().get(REJECTED % "signature", 0) == 1, "the refusal")
    assert says(server, "its signature does not fit")
    assert service.asked == []
    assert not any(str(DIGEST) in " ".join(child.cmdline()) for child in psutil.Process(server.process.pid).children())
