"""Two replicas of the model server behind nginx: one that dies fails what it was answering, and nothing else."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import requests
from conftest import ROOT, container_ids, containers, healthy_services, run_playbook, wait_until
from testinfra.host import Host

CLIENTS = 4
# One address sends all of this load.
SETTINGS = {"serving_replicas": 2, "nginx_api_rate": 10000, "nginx_api_burst": 10000, "nginx_api_logged_percent": 100}


@dataclass
class Answers:
    """What clients got: when a request failed, and how, and how many did not."""

    good: int = 0
    slowest: float = 0.0
    failed: list[tuple[float, str]] = field(default_factory=list)

    @property
    def outage(self) -> float:
        """Seconds between the first request that failed and the last."""
        times = [when for when, _ in self.failed]
        return max(times) - min(times) if times else 0.0


@pytest.fixture(scope="module", autouse=True)
def two_replicas() -> Iterator[None]:
    """Have two replicas, and one again afterwards."""
    result = run_playbook(
        *("site.yml", "--tags", "serve,train"),
        *("--extra-vars", json.dumps(SETTINGS), "--extra-vars", "training_only_when_missing=true"),
    )
    assert result.status == 0, result.output
    yield
    result = run_playbook("site.yml")
    assert result.status == 0, result.output


def under_load(url: str, action: Callable[[], object], seconds: float) -> Answers:
    """Have clients ask for predictions, and do something meanwhile."""
    answers, lock, stop = Answers(), threading.Lock(), threading.Event()

    def ask() -> None:
        while not stop.is_set():
            began = time.monotonic()
            try:
                status = requests.post(f"{url}/invocations", json={"inputs": ["parse json"]}, timeout=30).status_code
                outcome = "" if status == 200 else str(status)
            except requests.RequestException as error:
                outcome = type(error).__name__
            with lock:
                answers.slowest = max(answers.slowest, time.monotonic() - began)
                if outcome:
                    answers.failed.append((began, outcome))
                else:
                    answers.good += 1

    with ThreadPoolExecutor(CLIENTS) as clients:
        for _ in range(CLIENTS):
            clients.submit(ask)
        try:
            time.sleep(1)
            action()
            time.sleep(seconds)
        finally:
            stop.set()
    return answers


def kill(host: Host, service: str) -> Callable[[], object]:
    """Something that kills a service's main process."""
    return lambda: host.check_output(f"kill -9 {containers(host)[service]['State']['Pid']}")


def test_both_answer(host: Host, api_url: str) -> None:
    wait_until(lambda: requests.get(f"{api_url}/ready", timeout=10).status_code == 200, 60, "a model is served")
    assert {"serving", "serving_2"} <= healthy_services(host)
    under_load(api_url, lambda: None, 1)

    def upstreams() -> set[str]:
        lines = host.check_output("journalctl -u mlops-nginx --since -60s --output cat").splitlines()
        return {json.loads(line)["upstream"] for line in lines if '"/invocations"' in line}

    # nginx keeps its log for a second.
    wait_until(lambda: len(upstreams()) == 2, 30, "both replicas are in nginx's log")


@pytest.mark.parametrize("service", ["serving", "serving_2", "mlflow", "prometheus"])
def test_only_what_is_under_way_at_a_service_fails_when_it_is_killed(host: Host, api_url: str, service: str) -> None:
    if service not in healthy_services(host):
        wait_until(lambda: service in healthy_services(host), 90, f"{service} is healthy")
    answers = under_load(api_url, kill(host, service), 8)
    print(f"{service} killed: {answers.good} requests answered, the slowest in {answers.slowest:.2f} s")
    # A request may be what killed a replica: those that it was answering are not asked of the other. A client may come
    # twice while its processes die.
    assert {outcome for _, outcome in answers.failed} <= ({"502"} if service.startswith("serving") else set())
    assert answers.outage < 2
    assert answers.good > 100
    wait_until(lambda: service in healthy_services(host), 90, f"{service} is healthy")


def test_the_only_proxy_is_back_in_seconds_when_it_is_killed(host: Host, api_url: str) -> None:
    answers = under_load(api_url, kill(host, "nginx"), 20)
    print(f"nginx killed: {len(answers.failed)} requests failed in {answers.outage:.1f} s")
    assert answers.outage < 15
    assert answers.good > 100


def test_a_restart_and_the_logs_are_of_every_replica(host: Host) -> None:
    before = container_ids(host)
    result = run_playbook("playbooks/restart.yml", "--extra-vars", "service=serving")
    assert result.status == 0, result.output
    after = container_ids(host)
    assert {name for name in before if before[name] != after.get(name)} == {"serving", "serving_2"}
    logs = run_playbook("playbooks/logs.yml", "--extra-vars", "service=serving follow=false")
    assert logs.status == 0, logs.output
    shown = subprocess.run(
        [ROOT / ".local" / "logs"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert "mlops-serving[" in shown.stdout
    assert "mlops-serving_2[" in shown.stdout


def test_a_replica_too_many_goes(host: Host) -> None:
    result = run_playbook("site.yml", "--tags", "serve")
    assert result.status == 0, result.output
    assert "serving_2" not in containers(host)
    assert not host.file("/etc/systemd/system/mlops-serving_2.service").exists
