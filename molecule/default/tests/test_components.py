"""What the images are made of, known holes by advisories of the test's own, and images that are what was meant."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import PlaybookRun, container_ids, containers, registry, run_playbook, wait_until
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from testinfra.host import Host

PROGRAM = "/usr/local/lib/mlops/appliance-components"
ADVISORIES = "127.0.0.1:5556"
# Two holes in every image, of which one has a fix, in the format that Debian's tracker has; and one in MLflow.
SERVER = """
import http.server, json, zlib

DEBIAN = zlib.compress(b"\\n".join([
    b"VERSION 1", b"CVE-2026-0001,,curl reads on", b"CVE-2026-0002,,zlib inflates", b"",
    b"curl,0,SHRF,999,", b"zlib,1,S ? ,,", b"", b"curl,curl libcurl4t64", b"zlib,zlib1g", b""]))
PYTHON = {"vulns": [{
    "id": "PYSEC-2026-1", "aliases": ["CVE-2026-0003"], "summary": "it tracks", "affected": [{
        "package": {"name": "mlflow", "ecosystem": "PyPI"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]}]}]}

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(*((DEBIAN,) if self.path == "/debsecan/trixie" else (b"", 404)))

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(json.dumps(PYTHON if asked["package"]["name"] == "mlflow" else {}).encode())

http.server.ThreadingHTTPServer(("127.0.0.1", 5556), Handler).serve_forever()
"""


def lists(host: Host) -> dict[str, dict[str, Any]]:
    """The lists on the host by service."""
    names = host.check_output("ls /var/lib/mlops/components").split()
    return {
        name.removesuffix(".cdx.json"): json.loads(host.file(f"/var/lib/mlops/components/{name}").content_string)
        for name in names
        if name.endswith(".cdx.json")
    }


def purls(document: dict[str, Any], kind: str) -> list[str]:
    found = (item.get("purl", "") for item in document["components"])
    return [purl for purl in found if purl.startswith(f"pkg:{kind}/")]


def metrics(host: Host) -> dict[str, float]:
    lines = host.file("/var/lib/mlops/metrics/mlops_components.prom").content_string.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def count(service: str, source: str, severity: str, fixed: str) -> str:
    return f'mlops_known_holes{{image="{service}",source="{source}",severity="{severity}",fixed="{fixed}"}}'


def put(host: Host, text: str, path: str) -> None:
    host.check_output(f"echo {base64.b64encode(text.encode()).decode()} | base64 --decode > {path}")


@pytest.fixture(scope="module")
def advisories(host: Host) -> Iterator[None]:
    """A server of advisories on the host, and settings that name it."""
    configuration = "/etc/mlops/components/components.json"
    host.check_output(f"cp {configuration} {configuration}.kept")
    put(host, SERVER, "/var/tmp/mlops-advisories.py")
    host.check_output("systemd-run --quiet --unit=mlops-test-advisories python3 /var/tmp/mlops-advisories.py")
    named = {
        "components_debian_advisories": f"http://{ADVISORIES}/debsecan/",
        "components_python_advisories": f"http://{ADVISORIES}/v1/query",
    }
    result = run_playbook("site.yml", "--tags", "monitoring", "--extra-vars", json.dumps(named))
    assert result.status == 0, result.output
    yield
    host.run("systemctl stop mlops-test-advisories")
    host.check_output(f"rm /var/tmp/mlops-advisories.py && mv {configuration}.kept {configuration}")
    # What was made up is forgotten, so that no alert of it stays.
    image = containers(host)["nginx"]["Config"]["Image"]
    host.check_output(f"rm /var/lib/mlops/components/holes.json && unshare --mount {PROGRAM} list nginx={image}")


@pytest.fixture(scope="module")
def checked(host: Host, advisories: None) -> None:
    """The unit has asked it."""
    assert advisories is None
    host.check_output("systemctl start mlops-components.service")


@pytest.fixture(scope="module")
def tiny(host: Host) -> Iterator[str]:
    """An image of one file that the host has."""
    name = f"mlops-test-tiny:{time.time_ns()}"
    text = base64.b64encode(b"FROM scratch\nCOPY . /\n").decode()
    host.check_output(f"cd $(mktemp -d) && echo {text} | base64 --decode > Dockerfile && docker build -q -t {name} .")
    yield name
    host.run(f"docker rmi {name}")


def test_every_image_that_runs_has_a_valid_list_that_names_it(host: Host) -> None:
    found = lists(host)
    running = {service: document["Config"]["Image"] for service, document in containers(host).items()}
    assert (
        running.items()
        <= {service: document["metadata"]["component"]["name"] for service, document in found.items()}.items()
    )
    for document in found.values():
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None


def test_a_list_has_what_dpkg_and_python_say_in_the_container(host: Host) -> None:
    document = lists(host)["mlflow"]
    shown = "docker exec mlops-mlflow dpkg-query --show --showformat='${Package}\\n'"
    assert len(purls(document, "deb")) == len(host.check_output(shown).split())
    code = "import importlib.metadata as m; print(*{d.metadata['Name'].lower() for d in m.distributions()})"
    names = host.check_output(f'docker exec mlops-mlflow python -c "{code}"').split()
    assert len(purls(document, "pypi")) == len(names)
    assert any(purl.startswith("pkg:pypi/mlflow@3.") for purl in purls(document, "pypi"))


def test_an_engine_that_keeps_no_layers_as_directories_gives_the_same_list(host: Host) -> None:
    listed = lists(host)["nginx"]
    image = {item["name"]: item["value"] for item in listed["metadata"]["component"]["properties"]}["mlops:image:id"]
    code = f"""
import importlib.machinery, importlib.util, json
loader = importlib.machinery.SourceFileLoader("components", "{PROGRAM}")
components = importlib.util.module_from_spec(importlib.util.spec_from_loader("components", loader))
loader.exec_module(components)
with components.opened({{"Id": "{image}"}}) as root:
    print(json.dumps(components.component_list("nginx", "nginx", {{"Id": "", "Created": ""}}, root)["components"]))
"""
    put(host, code, "/var/tmp/mlops-test.py")
    assert json.loads(host.check_output("python3 -B /var/tmp/mlops-test.py")) == listed["components"]
    host.check_output("rm /var/tmp/mlops-test.py")


def test_what_looks_for_holes_is_in_none_of_the_images(host: Host) -> None:
    every = "\n".join(
        purl for document in lists(host).values() for kind in ("deb", "pypi") for purl in purls(document, kind)
    )
    assert "mlflow" in every
    for name in ("pip-audit", "debsecan", "cyclonedx"):
        assert name not in every


def test_the_images_are_looked_at_every_week_and_after_they_are_new(host: Host) -> None:
    assert host.check_output("systemctl is-active mlops-components.timer") == "active"
    assert host.check_output("systemctl is-enabled mlops-components.timer") == "enabled"
    assert "Mon *-*-* 04:00:00" in host.check_output("systemctl show --property=TimersCalendar mlops-components.timer")
    assert "OnActiveUSec=1h" in host.check_output("systemctl show --property=TimersMonotonic mlops-components.timer")


@pytest.mark.usefixtures("checked")
def test_known_holes_are_counted_by_image_source_severity_and_fix(host: Host) -> None:
    found = metrics(host)
    for service in ("nginx", "mlflow", "serving"):
        assert found[count(service, "debian", "high", "yes")] == 1
        assert found[count(service, "debian", "unknown", "no")] == 1
        assert found[f'mlops_known_holes_checked{{image="{service}",source="debian"}}'] == 1
    assert found[count("mlflow", "python", "unknown", "yes")] == 1
    assert found[count("nginx", "python", "unknown", "yes")] == 0
    now = int(host.check_output("date +%s"))
    assert 0 <= now - found["mlops_known_holes_check_timestamp_seconds"] < 300
    assert found['mlops_image_built_timestamp_seconds{image="nginx"}'] <= now


@pytest.mark.usefixtures("checked")
def test_they_are_shown_with_their_names_and_in_the_status(host: Host) -> None:
    shown = host.check_output(f"{PROGRAM} show")
    assert "nginx: CVE-2026-0001 in curl, libcurl4t64, severity high" in shown
    assert "mlflow: CVE-2026-0003 in mlflow, severity unknown" in shown
    status = run_playbook("playbooks/status.yml")
    assert "last looked for: 20" in status.output
    assert "Not checked" not in status.output


@pytest.mark.usefixtures("checked")
def test_prometheus_has_them_and_the_alert_names_the_image(prometheus_url: str) -> None:
    def is_firing() -> bool:
        alerts = requests.get(f"{prometheus_url}/api/v1/alerts", timeout=10).json()["data"]["alerts"]
        firing = [alert["labels"] for alert in alerts if alert["state"] == "firing"]
        return any(labels["alertname"] == "KnownHoles" and labels["image"] == "mlflow" for labels in firing)

    wait_until(is_firing, 120, "the alert on MLflow's image fires")


@pytest.mark.usefixtures("checked")
def test_without_the_advisories_nobody_knows_and_everybody_says_so(host: Host) -> None:
    before = {name: value for name, value in metrics(host).items() if name.startswith("mlops_known_holes{")}
    since = host.check_output("date '+%Y-%m-%d %H:%M:%S'")
    host.check_output("systemctl stop mlops-test-advisories")
    host.check_output("systemctl start mlops-components.service")
    found = metrics(host)
    assert {name: value for name, value in found.items() if name.startswith("mlops_known_holes{")} == before
    assert found['mlops_known_holes_checked{image="nginx",source="debian"}'] == 0
    assert found['mlops_known_holes_checked{image="mlflow",source="python"}'] == 0
    journal = host.check_output(f"journalctl --unit=mlops-components --output=cat --no-pager --since='{since}'")
    assert f"nginx: debian: not checked: http://{ADVISORIES}/debsecan/trixie cannot be had: " in journal
    assert f"mlflow: python: not checked: pip-audit has no answer from http://{ADVISORIES}/v1/query: " in journal
    status = host.file("/var/lib/mlops/components/status").content_string
    assert "as far as is known" in status
    assert status.count("Not checked: ") == 2


def test_the_check_sees_no_secret_and_no_engine(host: Host) -> None:
    unit = host.check_output("systemctl show --property=InaccessiblePaths,CapabilityBoundingSet mlops-components")
    assert "/etc/mlops/secrets" in unit
    assert "docker.sock" in unit
    assert "CapabilityBoundingSet=\n" in f"{unit}\n"


class TestImagesOfElsewhere:
    def refused(self, host: Host, values: dict[str, str], *, reason: str) -> None:
        before = container_ids(host)
        result = run_playbook("site.yml", "--tags", "monitoring", "--extra-vars", json.dumps(values))
        assert result.status != 0
        assert reason in " ".join(result.output.split())
        assert container_ids(host) == before

    def provide(self, values: dict[str, str]) -> PlaybookRun:
        return run_playbook("playbooks/images.yml", "--tags", "monitoring", "--extra-vars", json.dumps(values))

    def test_one_of_a_registry_without_a_digest_is_refused_and_what_runs_goes_on(self, host: Host) -> None:
        image = {"grafana_image": "grafana/grafana:11.6.0"}
        self.refused(host, image, reason="Nothing was changed. grafana_image: 'grafana/grafana:11.6.0' has no digest")

    def test_one_with_a_digest_is_pulled_by_it(self, host: Host, tiny: str) -> None:
        with registry(host) as push:
            reference = push(tiny)
            name, _, digest = reference.partition("@")
            tag = tiny.partition(":")[2]
            host.check_output(f"docker rmi {name}:{tag}")
            assert host.run(f"docker image inspect {reference}").rc != 0
            result = self.provide({"nginx_exporter_image": f"{name}:{tag}@{digest}"})
            assert result.status == 0, result.output
            assert host.run(f"docker image inspect {reference}").rc == 0
            assert self.provide({"nginx_exporter_image": f"{name}:{tag}@{digest}"}).changed == 0
            host.check_output(f"docker rmi {reference}")

    def test_an_archive_is_loaded_only_when_it_has_its_checksum(self, host: Host, tiny: str, tmp_path: Path) -> None:
        saved = host.check_output(f"docker save {tiny} | base64 --wrap=0")
        (tmp_path / "nginx_exporter.tar").write_bytes(base64.b64decode(saved))
        host.check_output(f"docker rmi {tiny}")
        values = {"nginx_exporter_image_source": "archive", "mlops_image_archives": str(tmp_path)}
        self.refused(host, values, reason=f"{tmp_path}/SHA256SUMS is missing: write it where the archives were saved")

        sums = tmp_path / "SHA256SUMS"
        sums.write_text(f"{hashlib.sha256(b'another').hexdigest()}  nginx_exporter.tar\n")
        result = self.provide(values)
        assert result.status != 0
        assert "is not the file of which" in " ".join(result.output.split())
        assert host.run(f"docker image inspect {tiny}").rc != 0

        sums.write_text(
            f"{hashlib.sha256((tmp_path / 'nginx_exporter.tar').read_bytes()).hexdigest()}  nginx_exporter.tar\n"
        )
        result = self.provide(values)
        assert result.status == 0, result.output
        assert host.run(f"docker image inspect {tiny}").rc == 0
