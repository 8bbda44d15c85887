"""Versions whose code does harm where it is served: each is rejected with what happened, and leaves nothing behind."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from model_server.common.store import ModelStore, ModelVersion, StoredModel
from serving_harness import Server, Servers, answer_json, store_model

pytestmark = pytest.mark.timing

GOOD = "loaded: nothing"
BAD = {
    "loaded: _exit": "a worker ended with status 0 before it was ready",
    "asked: _exit": "a worker ended with status 0 before it was ready",
    "loaded: exit": "it cannot be loaded: SystemExit: 0",
    "asked: exit": r"it does not answer its own input example: SystemExit\(0\)",
    "loaded: abort": "a worker was ended by SIGABRT before it was ready",
    "asked: be killed": "a worker was ended by SIGKILL before it was ready",
    "loaded: kill the parent": "its server was ended by SIGKILL before it was ready",
    "asked: kill the group": "its server was ended by SIGKILL before it was ready",
    "loaded: close descriptors": r"a worker ended with status \d before it was ready",
    "loaded: fork": "it cannot be loaded: RuntimeError: it has forked",
    "asked: take memory": r"it does not answer its own input example: MemoryError\(\)",
    "loaded: print": "it cannot be loaded: RuntimeError: it has printed",
    # Or what the other worker found there.
    "loaded: write to itself": "(?s)it cannot be loaded: .+",
}


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        found = {**asdict(self.server.champion), "creation_timestamp": self.server.champion.created}
        answer_json(self, 200, {"model_version": found})

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the library's name
        pass


class Registry(ThreadingHTTPServer):
    """Stands in for MLflow's registry: says which version the alias points at, which is on the server's disk."""

    daemon_threads = True
    champion: ModelVersion

    def __init__(self, models: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._models = models
        self._first = self._last = store_model(models, "bad", input_example=["q"])
        self.point_to_one_that("loaded: nothing")
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def point_to_one_that(self, does: str) -> StoredModel:
        """Make a new version the champion."""
        number = self._last.version.created + 1
        version = ModelVersion(self._first.version.name, str(number), number, f"run{number}", "")
        store = ModelStore(self._models, version.name)
        staging = store.stage(version)
        shutil.copytree(self._first.directory, staging, dirs_exist_ok=True)
        (staging / "does").write_text(does)
        self._last = store.commit(version, staging)
        self.champion = version
        return self._last


class Client(threading.Thread):
    """Asks all the time, half of its questions on a connection of their own."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.asked, self.failed = 0, list[str]()
        self.enough = threading.Event()

    def run(self) -> None:
        while not self.enough.wait(0.02):
            try:
                answer = self._server.predict("q")
                if answer.status != 200 or answer.json != {"predictions": ["q"]}:
                    self.failed.append(f"{answer.status}: {answer.body!r}")
            except OSError as error:
                self.failed.append(repr(error))
            self.asked += 1


@pytest.fixture(scope="module")
def registry(shared_servers: Servers) -> Iterator[Registry]:
    made = Registry(shared_servers.directory / "models")
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="module")
def scratch(shared_servers: Servers) -> Path:
    directory = shared_servers.directory / "tmp"
    directory.mkdir()
    return directory


@pytest.fixture(scope="module")
def server(shared_servers: Servers, registry: Registry, scratch: Path) -> Server:
    return shared_servers.start(MLFLOW_TRACKING_URI=registry.url, SERVING_WORKERS="1", TMPDIR=str(scratch))


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """There while the test runs; fails it when a request failed."""
    asking = Client(server)
    asking.start()
    yield asking
    asking.enough.set()
    asking.join()
    assert asking.asked > 0
    assert asking.failed == [], "what was served did not go on"


def of_version(stored: StoredModel) -> list[str]:
    """The processes that were started for a version, wherever they are now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MODEL_SERVER_MODEL") == str(stored.directory):
                found.append(str(process))
        except psutil.Error:
            continue
    return found


def below(server: Server) -> set[psutil.Process]:
    return set(psutil.Process(server.process.pid).children(recursive=True))


def rejection(server: Server, version: str) -> str:
    """Why a version was rejected; empty while it was not."""
    return next((line["reason"] for line in server.logged() if "reason" in line and line["version"] == version), "")


@pytest.mark.parametrize("does", BAD)
@pytest.mark.usefixtures("client")
def test_a_bad_version_is_rejected_with_what_happened_and_leaves_nothing_behind(
    server: Server, registry: Registry, scratch: Path, does: str
) -> None:
    former = server.request("/model").json["version"]
    files, processes = set(scratch.iterdir()), below(server)
    bad = registry.point_to_one_that(does)
    version = bad.version.version
    server.wait_for(lambda: bool(rejection(server, version)), f"version {version}, which does {does!r}, is rejected")
    reason = rejection(server, version)
    assert re.fullmatch(BAD[does], reason)
    said = f"version {version} was rejected: {reason}"
    server.wait_for(lambda: server.request("/model").json["rejected"] == said, "it is told")
    assert server.serves(former)
    assert of_version(bad) == []
    assert below(server) == processes
    assert set(scratch.iterdir()) == files


def test_a_version_that_hangs_is_ended_and_one_that_clings_gives_way(servers: Servers) -> None:
    (servers.directory / "models").mkdir()
    registry = Registry(servers.directory / "models")
    clinging = registry.point_to_one_that("loaded: go on twice")
    started = time.monotonic()
    server = servers.start(MLFLOW_TRACKING_URI=registry.url, SERVING_WORKERS="1")
    # As long as this machine needs.
    seconds = 2 * (time.monotonic() - started) + 2
    assert server.stop() == 0
    assert of_version(clinging) == [], "what it started ends with the server"
    server = servers.start(
        MLFLOW_TRACKING_URI=registry.url,
        SERVING_WORKERS="1",
        SERVING_MODEL_START_TIMEOUT_SECONDS=str(round(seconds)),
    )
    asking = Client(server)
    asking.start()
    hanging = registry.point_to_one_that("loaded: hang")
    version = hanging.version.version
    server.wait_for(lambda: bool(rejection(server, version)), "it is rejected")
    assert rejection(server, version) == f"it was not ready within {round(seconds)} s"
    assert of_version(hanging) == []
    assert server.serves(clinging.version.version)
    good = registry.point_to_one_that(GOOD)
    server.wait_for(lambda: server.serves(good.version.version), "the next good one")
    server.wait_for(lambda: of_version(clinging) == [], "what the former has started is gone")
    asking.enough.set()
    asking.join()
    assert asking.failed == []
    registry.shutdown()
    registry.server_close()
