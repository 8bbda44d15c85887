"""A project runs with the image's packages where they satisfy it; else the service is asked, and its answer holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from example_projects import EXAMPLES
from projects import environment
from projects.environment import is_satisfied, make, requirements_of
from projects.mlproject import ProjectError

# What MLflow and its dependencies warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_requirements_come_from_the_file_that_the_project_names(project: Path) -> None:
    assert requirements_of(project) == []
    (project / "requirements.txt").write_text(
        "# ours\n-r more.txt\nnumpy==2.1.0 \\\n    --hash=sha256:abc \\\n    --hash=sha256:def\n"
    )
    (project / "more.txt").write_text("pandas>=2  # tables\n")
    assert requirements_of(project) == ["pandas>=2", "numpy==2.1.0"]
    (project / "python_env.yaml").write_text("python: 3.11.4\ndependencies: [mlflow, -r requirements.txt]\n")
    assert requirements_of(project) == ["mlflow", "pandas>=2", "numpy==2.1.0"]
    with (project / "MLproject").open("a") as file:
        file.write("conda_env: ours.yaml\n")
    (project / "ours.yaml").write_text("dependencies: [python=3.11, {pip: [scipy]}]\n")
    assert requirements_of(project) == ["scipy"]


def test_a_file_that_cannot_be_read_is_named(project: Path) -> None:
    (project / "requirements.txt").write_text("-r missing.txt\n")
    with pytest.raises(ProjectError, match=r"requirements\.txt of the project cannot be read: .*missing\.txt"):
        requirements_of(project)


@pytest.mark.parametrize(
    ("requirement", "is_there"),
    [
        ("numpy", True),
        (f"numpy=={version('numpy')}", True),
        ("NumPy>=1", True),
        ("numpy==0.1", False),
        ("no-such-package-anywhere", False),
        ("no-such-package-anywhere; python_version < '3'", True),
        ("mlflow[extras]", False),
        ("ours @ https://example.org/ours.whl", False),
        ("--index-url=https://example.org", False),
    ],
)
def test_the_image_s_packages_are_looked_at_first(requirement: str, is_there: bool) -> None:
    assert is_satisfied([requirement]) is is_there


def test_the_wine_example_needs_no_environment_in_the_training_image() -> None:
    # The versions of the image are those of these tests.
    assert is_satisfied(requirements_of(EXAMPLES / "wine"))


Answers = list[tuple[int, dict[str, Any]]]
Service = Callable[[Answers], tuple[str, list[Any]]]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The protocol of the service, spoken over HTTP: the given answers, one after the other."""
    monkeypatch.setattr(environment, "_LOOK_SECONDS", 0.01)
    servers = []

    def start(answers: Answers) -> tuple[str, list[Any]]:
        asked: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked.append((self.path, json.loads(body) if body else None))
                status, answer = answers.pop(0) if answers else (200, {})
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_environment_is_waited_for_and_used(service: Service, tmp_path: Path, interpreter: Path) -> None:
    programs = tmp_path / "abc" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(interpreter)
    ready = {"state": "ready", "environment": "abc", "lock": []}
    url, asked = service([(202, {"state": "installing", "says": "xgboost"})] * 2 + [(200, ready)])
    assert make(["xgboost==3"], url, tmp_path) == programs
    body = {"requirements": ["xgboost==3"], "with": [f"mlflow=={version('mlflow')}"], "mlflow": "full"}
    assert asked == [("/environments", body)] * 3 + [("/environments/abc/use", None)]


def test_mlflow_is_the_project_s_own_where_it_names_one(service: Service, tmp_path: Path) -> None:
    url, asked = service([(422, {"state": "refused", "kind": "version", "reason": "no mlflow==9"})])
    with pytest.raises(ProjectError, match="refused: no mlflow==9"):
        make(["mlflow==9"], url, tmp_path)
    assert asked[0][1]["with"] == []


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (422, {"state": "refused", "kind": "wheel", "reason": "no wheel of abc: give another"}, "no wheel of abc"),
        (503, {"state": "unreachable", "reason": "the index does not answer"}, "unreachable: the index"),
        (200, {"state": "ready", "environment": "missing"}, "is said to be ready"),
    ],
)
def test_what_is_refused_is_told(service: Service, tmp_path: Path, status: int, answer: Any, words: str) -> None:
    url, _ = service([(status, answer)])
    with pytest.raises(ProjectError, match=words):
        make(["abc"], url, tmp_path)


def test_a_service_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"lacks some of abc.*http://127\.0\.0\.1:1,.*does not answer"):
        make(["abc"], "http://127.0.0.1:1", tmp_path)
