"""Measures how long a model of each flavour takes from its alias to its first answer, and whether the answer is right.

Each is logged in an environment of its own and served by the model server with its service for environments, on a
volume that has nothing; then a second version with the same requirements. Beside it, for scikit-learn, ``mlflow models
serve``. Run by ``make bench-flavours``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from model_server.worker.model import alike

from benchmarks.flavour_models import FLAVOURS

_APPLICATION = Path(__file__).resolve().parents[1]
_MANAGERS = ("uv", "virtualenv")
_WAIT_SECONDS = 900
_NETWORK = ("UV_DEFAULT_INDEX", "UV_INDEX", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""What the service is told of the network, where this process is told."""


@dataclass(frozen=True)
class Place:
    """Where things are."""

    work: Path
    """A directory for everything that is made."""
    serving: Path
    """Virtual environment with the packages of the serving image."""
    environments: Path
    """Virtual environment of the service that makes environments, with the same Python."""
    python: Path
    """The interpreter that environments are made from."""


@dataclass
class Row:
    """One flavour."""

    flavour: str
    packages: int = 0
    """In the environment that was made; 0 where the image's own are used."""
    megabytes: float = 0.0
    """That came over the network meanwhile."""
    installing: float = 0.0
    """Seconds to make the environment, downloads included."""
    first: float = 0.0
    """Seconds from the alias to the first answer."""
    second: float = 0.0
    """The same for the next version with these requirements."""
    equal: bool = False
    """Whether it answers as where it was logged."""
    load: float = 0.0
    """Load average at the end."""


@contextlib.contextmanager
def _running(log: Path, command: Sequence[str], **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "VIRTUAL_ENV"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**inherited, **variables},
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _get(url: str, body: Any = None) -> tuple[Any, str]:
    """An answer with status 200 and the version that gave it; None where there is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - of 127.0.0.1
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return json.loads(response.read() or b"null"), response.headers.get("X-Model-Version", "")
    except (OSError, ValueError):
        return None, ""


def _first_answer(process: subprocess.Popen[bytes], log: Path, url: str, asked: Any, version: str = "") -> Any:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        answer, by = _get(f"{url}/invocations", asked)
        if answer is not None and by == version:
            return answer
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no answer; the end of {log}:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)


def _await(url: str) -> None:
    """Wait until a service is there."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=10):  # noqa: S310
            return
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")


def _received() -> int:
    """Bytes that came by the interface that leads outside."""
    routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()]
    interface = next(route[0] for route in routes if route[1] == "00000000")
    return int(Path(f"/sys/class/net/{interface}/statistics/rx_bytes").read_text())


def _logged(place: Place, tracking: str, flavour: str) -> dict[str, Any]:
    """Log a model of this flavour in an environment of its own."""
    python = place.work / f"log-{flavour}" / "bin" / "python"
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "benchmarks.flavour_models", flavour, flavour],
        env={**os.environ, "MLFLOW_TRACKING_URI": tracking, "PYTHONPATH": str(_APPLICATION)},
        cwd=place.work,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(place: Place, tracking: str, flavour: str) -> tuple[Row, dict[str, Any]]:
    """Serve a model of one flavour on an empty volume; return what was measured, and what was logged."""
    client = MlflowClient(tracking)
    logged = _logged(place, tracking, flavour)
    directory = place.work / "served"
    shutil.rmtree(directory, ignore_errors=True)
    volume = directory / "environments"
    for path in (volume, directory / "models", directory / "tmp"):
        path.mkdir(parents=True)
    network = directory / "network"
    network.write_text("".join(f"{name}={os.environ[name]}\n" for name in _NETWORK if name in os.environ))
    service_url, url = (f"http://127.0.0.1:{_port()}" for _ in range(2))
    service = _running(
        directory / "environments.log",
        [str(place.environments / "bin/python"), "-m", "environments"],
        PYTHONPATH=str(_APPLICATION),
        ENVIRONMENTS_DIRECTORY=str(volume),
        ENVIRONMENTS_NETWORK=str(network),
        ENVIRONMENTS_PYTHON=str(place.python),
        ENVIRONMENTS_HOST="127.0.0.1",
        ENVIRONMENTS_PORT=service_url.rpartition(":")[2],
    )
    log = directory / "server.log"
    server = _running(
        log,
        [str(place.serving / "bin/python"), "-m", "model_server"],
        PYTHONPATH=str(_APPLICATION),
        MLFLOW_TRACKING_URI=tracking,
        MODEL_NAME=flavour,
        MODEL_DIRECTORY=str(directory / "models"),
        ENVIRONMENTS_URL=service_url,
        ENVIRONMENTS_DIRECTORY=str(volume),
        SERVING_HOST="127.0.0.1",
        SERVING_PORT=url.rpartition(":")[2],
        SERVING_WORKERS="2",
        SERVING_MODEL_REFRESH_SECONDS="1",
        SERVING_MODEL_START_TIMEOUT_SECONDS=str(_WAIT_SECONDS),
        TMPDIR=str(directory / "tmp"),
    )
    row = Row(flavour)
    with service, server as process:
        _await(service_url)
        _await(url)
        received, start = _received(), time.monotonic()
        client.set_registered_model_alias(flavour, "champion", logged["version"])
        answered = _first_answer(process, log, url, logged["asked"], logged["version"])
        row.first = time.monotonic() - start
        row.megabytes = (_received() - received) / 1e6
        row.equal = alike(answered, logged["answered"])
        if not row.equal:
            print(f"{flavour} answers {answered}, and where it was logged {logged['answered']}")
        told = _get(f"{url}/model")[0]
        if digest := told["environment"]["digest"]:
            row.packages = len([*(volume / digest).glob("lib/*/site-packages/*.dist-info")])
        made = [json.loads(line) for line in (directory / "environments.log").read_text().splitlines() if "{" in line]
        row.installing = sum(line.get("seconds", 0.0) for line in made)
        again = client.create_model_version(flavour, logged["source"], logged["run_id"], model_id=logged["model_id"])
        start = time.monotonic()
        client.set_registered_model_alias(flavour, "champion", again.version)
        _first_answer(process, log, url, logged["asked"], str(again.version))
        row.second = time.monotonic() - start
    row.load = os.getloadavg()[0]
    return row, logged


def serve_with_mlflow(place: Place, tracking: str, manager: str, logged: dict[str, Any]) -> float:
    """Seconds from ``mlflow models serve`` to its first answer, with nothing in its caches."""
    directory = place.work / "mlflow"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    port = _port()
    log = directory / "log"
    programs = place.work / "log-sklearn" / "bin"
    command = [str(programs / "mlflow"), "models", "serve", "--env-manager", manager, "--port", str(port)]
    start = time.monotonic()
    with _running(
        log,
        [*command, "--workers", "2", "--model-uri", f"models:/sklearn/{logged['version']}"],
        PATH=f"{programs}:{os.environ['PATH']}",
        MLFLOW_TRACKING_URI=tracking,
        MLFLOW_ENV_ROOT=str(directory / "environments"),
        UV_CACHE_DIR=str(directory / "uv"),
        PIP_NO_CACHE_DIR="1",
    ) as process:
        _first_answer(process, log, f"http://127.0.0.1:{port}", logged["asked"])
        return time.monotonic() - start


def table(rows: Sequence[Row]) -> str:
    """The report, as Markdown."""
    names = "flavour", "packages", "MB downloaded", "environment, s", "to answer, s", "next version, s", "equal", "load"
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    lines += [
        f"| {row.flavour} | {row.packages} | {row.megabytes:.0f} | {row.installing:.1f} | {row.first:.1f} | "
        f"{row.second:.1f} | {'yes' if row.equal else 'no'} | {row.load:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write ``flavours.{txt,json}``."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("work", "serving", "environments", "python"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--flavours", nargs="+", default=[*FLAVOURS], choices=[*FLAVOURS])
    parser.add_argument("--managers", nargs="*", default=_MANAGERS, choices=_MANAGERS)
    arguments = parser.parse_args()
    place = Place(arguments.work, arguments.serving, arguments.environments, arguments.python)
    port = _port()
    tracking = f"http://127.0.0.1:{port}"
    shutil.rmtree(place.work / "registry", ignore_errors=True)
    (place.work / "registry").mkdir()
    store = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "artifacts", "--workers", "1"]
    rows: list[Row] = []
    lines: list[str] = []
    with _running(
        place.work / "registry" / "log",
        ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *store],
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    ):
        _await(tracking)
        for flavour in arguments.flavours:
            try:
                row, logged = measure(place, tracking, flavour)
            except (MlflowException, RuntimeError, subprocess.CalledProcessError) as error:
                print(f"{flavour}: {error}", flush=True)
                continue
            rows.append(row)
            print(row, flush=True)
            if flavour != "sklearn":
                continue
            for manager in arguments.managers:
                seconds = serve_with_mlflow(place, tracking, manager, logged)
                lines.append(
                    f"mlflow models serve --env-manager {manager}: {seconds:.1f} s, {seconds / row.first:.2f} times as "
                    f"long as the model server; load {os.getloadavg()[0]:.1f}"
                )
                print(lines[-1], flush=True)
    report = "\n".join([table(rows), "", *lines])
    print(f"\n{report}")
    (place.work / "flavours.txt").write_text(report + "\n")
    machine = {"cores": os.cpu_count(), "system": platform.platform()}
    document = {"machine": machine, "rows": [asdict(row) for row in rows], "mlflow": lines}
    (place.work / "flavours.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
