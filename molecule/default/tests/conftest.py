"""What the tests of a provisioned host share: the playbooks to run on it, its ports, and its journal when one fails."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import browser
import pytest
import requests
from selenium import webdriver
from testinfra.host import Host

ROOT = Path(__file__).parents[3]
INVENTORY = Path(os.environ.get("MOLECULE_SCENARIO_DIRECTORY", Path(__file__).parents[1])) / "inventory"
# Where a secret must not be, and what shows it.
READABLE = {
    "the journal": "journalctl --no-pager --all --output=json",
    "docker inspect": "docker inspect $(docker ps --all --quiet)",
    "units and configuration": "cat /etc/systemd/system/mlops*; "
    "find /etc/mlops -path /etc/mlops/secrets -prune -o -path /etc/mlops/certificate -prune -o -type f -exec cat {} +",
    "arguments": "tail --lines=+1 /proc/[0-9]*/cmdline 2>/dev/null",
    "environments": "tail --lines=+1 /proc/[0-9]*/environ 2>/dev/null",
}
SERVICES = (
    "mlflow",
    "environments",
    "serving",
    "nginx",
    "node_exporter",
    "nginx_exporter",
    "alertmanager",
    "prometheus",
    "grafana",
)


@dataclass(frozen=True)
class PlaybookRun:
    """What `ansible-playbook` left: its exit status, its output, and how long it took in seconds."""

    status: int
    output: str
    seconds: float

    @property
    def changed(self) -> int:
        """The number of changed tasks, over all hosts."""
        lines = self.output.rpartition("PLAY RECAP")[2].splitlines()
        return sum(
            int(word.partition("=")[2]) for line in lines for word in line.split() if word.startswith("changed=")
        )


def run_playbook(*arguments: str, inventory: Path = INVENTORY) -> PlaybookRun:
    """Run `ansible-playbook` on the host under test, as an operator would."""
    # Molecule asks for colours, which would stand between the words that are looked for.
    plain = {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}
    environment = {**os.environ, **plain, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    started = time.monotonic()
    result = subprocess.run(
        ["ansible-playbook", "--inventory", str(inventory), *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    return PlaybookRun(result.returncode, result.stdout, time.monotonic() - started)


@pytest.fixture
def site() -> Callable[..., PlaybookRun]:
    """Run `site.yml`, which has to succeed."""

    def run(*arguments: str) -> PlaybookRun:
        result = run_playbook("site.yml", *arguments)
        assert result.status == 0, result.output
        return result

    return run


@pytest.fixture
def failing_site() -> Callable[..., PlaybookRun]:
    """Run `site.yml`, which has to fail."""

    def run(*arguments: str) -> PlaybookRun:
        result = run_playbook("site.yml", *arguments)
        assert result.status != 0, f"this run had to fail:\n{result.output}"
        return result

    return run


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    """The inventory's variables of the host under test."""
    shown = subprocess.run(
        ["ansible-inventory", "--inventory", str(INVENTORY), "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (variables,) = json.loads(shown.stdout)["_meta"]["hostvars"].values()
    return dict(variables)


@pytest.fixture(scope="session")
def ui_url(settings: dict[str, Any]) -> str:
    """MLflow through nginx."""
    return f"http://127.0.0.1:{settings['local_host_ui_port']}"


@pytest.fixture(scope="session")
def api_url(settings: dict[str, Any]) -> str:
    """The model API through nginx."""
    return f"http://127.0.0.1:{settings['local_host_api_port']}"


@pytest.fixture(scope="session")
def mlflow_url(settings: dict[str, Any]) -> str:
    """MLflow itself."""
    return f"http://127.0.0.1:{settings['local_host_mlflow_port']}"


@pytest.fixture(scope="session")
def prometheus_url(settings: dict[str, Any]) -> str:
    """Prometheus itself."""
    return f"http://127.0.0.1:{settings['local_host_prometheus_port']}"


@pytest.fixture(scope="session")
def grafana_url(settings: dict[str, Any]) -> str:
    """The dashboards, whoever draws them."""
    return f"http://127.0.0.1:{settings['local_host_grafana_port']}"


@pytest.fixture
def without_firewall(host: Host) -> Iterator[None]:
    """The host as if it had no firewall."""
    host.check_output("systemctl stop mlops-firewall")
    yield
    host.check_output("systemctl start mlops-firewall")


@pytest.fixture
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser that notes what is said in its console and what it asks for."""
    with browser.chromium() as driver:
        yield driver


def containers(host: Host) -> dict[str, dict[str, Any]]:
    """The appliance's containers by service, as `docker inspect` tells of them."""
    ids = host.check_output("docker ps --all --quiet --filter label=mlops.unit").split()
    # One that went away in between is left out of the answer.
    documents = json.loads(host.run(f"docker inspect {' '.join(ids)}").stdout) if ids else []
    return {document["Name"].removeprefix("/mlops-"): document for document in documents}


def container_ids(host: Host) -> dict[str, str]:
    """The ids of the appliance's containers by service."""
    return {service: document["Id"] for service, document in containers(host).items()}


def healthy_services(host: Host) -> set[str]:
    """Services whose unit is active and whose container is healthy."""
    return {
        service
        for service, document in containers(host).items()
        if document["State"].get("Health", {}).get("Status") == "healthy"
        and host.run(f"systemctl is-active mlops-{service}").stdout.strip() == "active"
    }


def is_healthy_again(host: Host, service: str, before: str) -> bool:
    """Whether a service is healthy in another container than ``before``; between the two it has none."""
    return service in healthy_services(host) and container_ids(host).get(service, before) != before


def readable_secrets(host: Host, secrets: dict[str, str], **outputs: str) -> list[tuple[str, str, str]]:
    """Which of the secrets can be read, in which form, and where: on the host, or in what a playbook printed."""
    places = {place: host.run(command).stdout for place, command in READABLE.items()} | outputs
    assert all(places.values()), "there is something to search"
    found = []
    for name, secret in secrets.items():
        # Of several lines the longest: how they are joined is another form of the same secret.
        line = max(secret.splitlines(), key=len)
        # Of whole groups: a file may end with a line break, which was taken off here.
        whole = secret.encode()
        encoded = base64.b64encode(whole[: len(whole) // 3 * 3]).decode()
        for form, text in {"plain": line, "escaped": json.dumps(line)[1:-1], "base64": encoded}.items():
            found += [(name, form, place) for place, content in places.items() if text in content]
    return found


def host_secrets(host: Host) -> dict[str, str]:
    """What is in `/etc/mlops/secrets`, by the names of the files."""
    names = host.check_output("ls /etc/mlops/secrets").split()
    return {name: host.check_output(f"cat /etc/mlops/secrets/{name}") for name in names}


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for a condition and return the seconds it took; fail the test when it does not come true in time."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if condition():
            return time.monotonic() - started
        time.sleep(0.5)
    pytest.fail(f"not within {seconds:g} s: {what}")


@contextmanager
def registry(host: Host) -> Iterator[Callable[[str], str]]:
    """A registry on the host; yields what pushes one of the host's images and returns its name by digest."""
    place, address = "/var/tmp/mlops-test-registry", "127.0.0.1:5555"
    # Unpacked only: the package itself would start a service on a port of MLflow's.
    host.check_output(
        f"mkdir -p {place} && cd {place} && apt-get download -qq docker-registry && dpkg -x docker-registry_*.deb . "
        f"&& printf 'version: 0.1\\nstorage: {{filesystem: {{rootdirectory: {place}/data}}}}\\n"
        f"http: {{addr: %s}}\\n' {address} > config.yml "
        f"&& systemd-run --quiet --unit=mlops-test-registry {place}/usr/bin/docker-registry serve {place}/config.yml"
    )

    names: list[str] = []

    def push(image: str) -> str:
        name = f"{address}/{image}"
        names.append(name)
        host.check_output(f"docker tag {image} {name}")
        wait_until(lambda: host.run(f"docker push --quiet {name}").rc == 0, 30, "the registry takes an image")
        digests = host.check_output(f"docker image inspect --format '{{{{join .RepoDigests \" \"}}}}' {name}").split()
        (reference,) = [item for item in digests if item.startswith(address)]
        return reference

    try:
        yield push
    finally:
        host.run(f"docker rmi {' '.join(names)}")
        host.check_output(f"systemctl stop mlops-test-registry && rm -r {place}")


@contextmanager
def steady_client(url: str, verify: str | None = None, **headers: str) -> Iterator[list[str]]:
    """A client that asks the model all the time over a connection that it keeps; yields what failed of it.

    With TLS, ``verify`` is a file with the authorities that it trusts, in place of those that the environment names.
    """
    failed: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            session.headers.update(headers)
            if verify:
                session.trust_env, session.verify = False, verify
            while not stop.wait(0.02):
                try:
                    answer = session.post(f"{url}/invocations", json={"inputs": ["parse json"]}, timeout=30)
                    if answer.status_code != 200:
                        failed.append(f"{answer.status_code} {answer.text}")
                except requests.RequestException as error:
                    failed.append(repr(error))

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield failed
    finally:
        stop.set()
        client.join()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that leave the host what it was come first."""
    items.sort(key=lambda item: item.get_closest_marker("irreversible") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """When a test fails, show what the units said."""
    report = yield
    host = getattr(item, "funcargs", {}).get("host")
    if report.when == "call" and report.failed and isinstance(host, Host):
        # A host that does not answer has no journal to show.
        with suppress(RuntimeError):
            journal = host.run("journalctl --unit='mlops-*' --lines=60 --no-pager --output=short-iso")
            report.sections.append(("journal of mlops-*", journal.stdout))
    return report
