"""Every query of every panel gives data of the live Prometheus, and the viewer draws every panel in Chromium."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from browser import SCHEMES, SIZES, chromium, opened
from conftest import ROOT, run_playbook, wait_until
from selenium import webdriver
from testinfra.host import Host

FILES = ROOT / "roles" / "grafana" / "files" / "dashboards"
# What Grafana makes of the default scrape interval when the panels are not zoomed out.
VARIABLES = {"$__rate_interval": "60s"}
LOOK_BACK_SECONDS = 600
STEP_SECONDS = 15
METRIC = re.compile(r"\w+:\w+:\w+|(?:node|model_server|flask|mlflow|nginx|prometheus|pg|mlops)_\w+|\bup\b")
# Events that did not happen, and have no series until they do.
EVENTS = {"model_server_model_rejections_total"}
# A rule over a day is recorded once a minute, after two scrapes.
PATIENCE_SECONDS = 150


class Target(NamedTuple):
    """One query of one panel."""

    panel: str
    expression: str
    instant: bool


def targets(file: Path) -> Iterator[Target]:
    for panel in json.loads(file.read_text())["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, f"{panel['title']}: a variable that this test does not know"
            yield Target(panel["title"], expression, target.get("instant", False))


def answer(prometheus_url: str, target: Target) -> list[dict[str, Any]]:
    """The series that a query gives."""
    now = time.time()
    if target.instant:
        path, parameters = "query", {"query": target.expression}
    else:
        span = {"start": now - LOOK_BACK_SECONDS, "end": now, "step": STEP_SECONDS}
        path, parameters = "query_range", {"query": target.expression, **span}
    document = requests.post(f"{prometheus_url}/api/v1/{path}", data=parameters, timeout=10).json()
    assert document["status"] == "success", f"{target.panel}: {document.get('error')}: {target.expression}"
    return list(document["data"]["result"])


def has_data(series: list[dict[str, Any]]) -> bool:
    values = (value for item in series for _, value in item.get("values", [item.get("value")]))
    return any(math.isfinite(float(value)) for value in values)


@pytest.fixture(scope="module")
def absent(host: Host, prometheus_url: str) -> tuple[str, ...]:  # noqa: ARG001 - once a model is trained
    """Beginnings of the names of metrics that this host has no source for."""
    sources = {
        "pg_": host.service("mlops-postgres_exporter").is_running,
        "mlops_backup_": host.file("/var/lib/mlops/metrics/mlops_backup.prom").exists,
        # An hour after an image is new.
        "mlops_known_holes": host.run("grep -q ^mlops_known_holes{ /var/lib/mlops/metrics/mlops_components.prom").rc
        == 0,
        "mlops_training_": host.file("/var/lib/mlops/metrics/mlops_training.prom").exists,
    }
    return tuple(prefix for prefix, there in sources.items() if not there)


@pytest.fixture(scope="module")
def prometheus_url(settings: dict[str, Any]) -> Iterator[str]:
    """Prometheus on the host's port, with a model served and requests of all kinds as long as somebody looks."""
    api_url = f"http://127.0.0.1:{settings['local_host_api_port']}"
    result = run_playbook("site.yml", "--tags", "train", "--extra-vars", "training_only_when_missing=true")
    assert result.status == 0, result.output
    wait_until(lambda: requests.get(f"{api_url}/ready", timeout=10).status_code == 200, 60, "a model is served")
    stop = threading.Event()

    def ask() -> None:
        # A point of a graph is about the moments before it: what was asked between two points is in neither.
        for number in count():
            if stop.wait(0.5):
                return
            with suppress(requests.RequestException):
                for body in ({"inputs": [f"parse text {number}"]}, {"no": "input"}):
                    requests.post(f"{api_url}/invocations", json=body, timeout=10)

    client = threading.Thread(target=ask, daemon=True)
    client.start()
    yield f"http://127.0.0.1:{settings['local_host_prometheus_port']}"
    stop.set()
    client.join()


@pytest.mark.parametrize("file", sorted(FILES.glob("*.json")), ids=lambda file: file.stem)
def test_every_query_gives_data(prometheus_url: str, absent: tuple[str, ...], file: Path) -> None:
    pending = [target for target in targets(file) if not any(prefix in target.expression for prefix in absent)]
    assert pending
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        pending = [target for target in pending if not has_data(answer(prometheus_url, target))]
        if not pending or time.monotonic() > deadline:
            break
        time.sleep(3)
    assert not pending, "no data:\n" + "\n".join(f"{target.panel}: {target.expression}" for target in pending)


def test_every_metric_exists_also_where_its_absence_would_pass_for_zero(
    prometheus_url: str, absent: tuple[str, ...]
) -> None:
    named: set[str] = set()
    for file in FILES.glob("*.json"):
        for target in targets(file):
            without_labels = re.sub(r"\b(?:by|on|group_left) \([^)]*\)|\{[^}]*\}", "", target.expression)
            named |= {name for name in METRIC.findall(without_labels) if not name.startswith(absent)}

    def missing() -> set[str]:
        names = requests.get(f"{prometheus_url}/api/v1/label/__name__/values", timeout=10).json()["data"]
        return named - EVENTS - set(names)

    deadline = time.monotonic() + PATIENCE_SECONDS
    while missing() and time.monotonic() < deadline:
        time.sleep(3)
    assert missing() == set()


def test_annotations_are_queries_that_prometheus_takes(prometheus_url: str) -> None:
    for file in FILES.glob("*.json"):
        for annotation in json.loads(file.read_text())["annotations"]["list"]:
            expression = annotation["expr"].replace("$__rate_interval", VARIABLES["$__rate_interval"])
            # It has no series while nothing happens.
            answer(prometheus_url, Target(annotation["name"], expression, instant=False))


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("file", sorted(FILES.glob("*.json")), ids=lambda file: file.stem)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_the_viewer_draws_every_panel(
    prometheus_url: str,  # noqa: ARG001 - once there is something to draw
    grafana_url: str,
    driver: webdriver.Chrome,
    absent: tuple[str, ...],
    file: Path,
    size: str,
    scheme: str,
) -> None:
    document = json.loads(file.read_text())
    sourceless = {target.panel for target in targets(file) if any(prefix in target.expression for prefix in absent)}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        page = opened(driver, f"{grafana_url}/d/{document['uid']}", SIZES[size], scheme)
        undrawn = [panel for panel in page.panels if panel.state != "data" or not panel.marks]
        # The points of six hours are minutes apart: what began just now shows at the next.
        if {panel.title for panel in undrawn} <= sourceless or time.monotonic() > deadline:
            break
        time.sleep(3)
    assert [panel for panel in undrawn if panel.title not in sourceless] == []
    assert {panel.state for panel in undrawn} <= {"empty"}, "what has no source says so"
    assert [panel.title for panel in page.panels] == [
        panel["title"] for panel in document["panels"] if panel["type"] != "row"
    ]
    assert page.width <= SIZES[size][0], "nothing is wider than the page"
    assert page.elsewhere == [], "no request leaves the host"
    assert page.messages == [], "no error, and nothing that the policy refused"
    assert page.first_picture_ms is not None
    print(f"{file.stem}, {size}, {scheme}: first picture after {page.first_picture_ms:.0f} ms")
    # 1 s on an idle machine; a test must also pass on a busy one.
    assert page.first_picture_ms < 10_000
