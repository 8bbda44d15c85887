"""The role grafana: the viewer, which is what a host without an image of Grafana's has, and then Grafana.

No machine that tests this reaches a registry, so a stand-in takes the place of Grafana's image, in a registry on the
host. It has the port, the
health endpoint and the entry point of upstream's, a directory for the data that belongs to root, as another image might
have, and an administrator, who is made at the first start, whom /api/user knows and `grafana cli` gives a password.
What it shows is the work of the role: unit, files, permissions, secrets, confinement. That Grafana itself takes all
this, it cannot show.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from conftest import ROOT, PlaybookRun, container_ids, containers, registry, run_playbook, wait_until
from testinfra.host import Host

DASHBOARDS = ROOT / "roles" / "grafana" / "files" / "dashboards"
IMAGE = "mlops-test-grafana:1"
STAND_IN = """
import base64, configparser, http.server, json, os, pathlib, signal, sys

signal.signal(signal.SIGTERM, lambda *_: sys.exit())

ini = configparser.ConfigParser(interpolation=None)
ini.read("/etc/grafana/grafana.ini")
secret = {}
for key in ("admin_password", "secret_key"):
    path = ini["security"][key].removeprefix("$__file{").removesuffix("}")
    secret[key] = pathlib.Path(path).read_text()
    assert len(secret[key]) >= 16, key
database = pathlib.Path("/var/lib/grafana/grafana.db")
if not database.exists():
    user = {"login": ini["security"]["admin_user"], "email": "admin@localhost", "password": secret["admin_password"]}
    database.write_text(json.dumps(user))
assert os.getuid() == 10010

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, change=False):
        if self.path == "/api/health":
            return 200
        user = json.loads(database.read_text())
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        name, _, password = base64.b64decode(token).decode().partition(":")
        if self.path != "/api/user":
            return 404
        if name not in (user["login"], user["email"]) or password != user["password"]:
            return 401
        if change:
            user.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            database.write_text(json.dumps(user))
        return 200

    def do_GET(self):
        self.send_response(self.answer())
        self.end_headers()

    def do_PUT(self):
        self.send_response(self.answer(change=True))
        self.end_headers()

http.server.HTTPServer(("", ini.getint("server", "http_port")), Handler).serve_forever()
"""
CLI = """#!/usr/bin/env python3
import json, pathlib, sys

assert sys.argv[1:] == ["cli", "admin", "reset-admin-password", "--password-from-stdin"]
database = pathlib.Path("/var/lib/grafana/grafana.db")
user = json.loads(database.read_text()) | {"password": sys.stdin.readline().rstrip(chr(10))}
database.write_text(json.dumps(user))
print("Admin password changed successfully")
"""
DOCKERFILE = f"""
ARG BASE
FROM ${{BASE}}
USER root
RUN mkdir --mode=0755 /var/lib/grafana \\
    && echo {base64.b64encode(STAND_IN.encode()).decode()} | base64 --decode > /stand-in.py \\
    && echo {base64.b64encode(CLI.encode()).decode()} | base64 --decode > /usr/local/bin/grafana \\
    && chmod 755 /usr/local/bin/grafana
USER 472:0
CMD ["python3", "/stand-in.py"]
"""


@pytest.fixture(scope="module")
def image(host: Host) -> Iterator[str]:
    """The stand-in's name by digest, as a registry gives it; it is removed afterwards."""
    base = host.check_output("docker images --format '{{.Repository}}:{{.Tag}}' mlops-python").split()[0]
    text = base64.b64encode(DOCKERFILE.encode()).decode()
    host.check_output(f"echo {text} | base64 --decode | docker build --quiet --build-arg BASE={base} --tag {IMAGE} -")
    with registry(host) as push:
        yield push(IMAGE)
    host.check_output(f"docker rmi {IMAGE}")


@pytest.fixture(scope="module")
def provisioned(host: Host, image: str) -> Iterator[PlaybookRun]:
    """A run with the stand-in, whose data are removed afterwards."""
    yield run_playbook("site.yml", "--tags", "monitoring", "--extra-vars", f"grafana_image={image}")
    back = run_playbook("site.yml", "--tags", "monitoring")
    assert back.status == 0, back.output
    host.check_output("docker volume rm mlops_grafana_data")


@pytest.fixture
def document(host: Host, provisioned: PlaybookRun) -> dict[str, Any]:
    """What `docker inspect` says about the container."""
    assert provisioned.status == 0, provisioned.output
    return containers(host)["grafana"]


class TestViewer:
    def test_the_addresses_of_grafana_lead_to_its_page(self, grafana_url: str) -> None:
        for path in ("/", "/d/mlops-system", "/d/mlops-system/system-metrics?from=now-1h&to=now"):
            answer = requests.get(f"{grafana_url}{path}", timeout=10)
            assert answer.status_code == 200, path
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert "/viewer/viewer.js" in answer.text

    def test_its_dashboards_are_those_of_grafana(self, grafana_url: str) -> None:
        listed = requests.get(f"{grafana_url}/viewer/dashboards/", timeout=10).json()
        files = {path.name: json.loads(path.read_text()) for path in DASHBOARDS.glob("*.json")}
        assert {item["name"] for item in listed} == files.keys()
        for name, document in files.items():
            assert requests.get(f"{grafana_url}/viewer/dashboards/{name}", timeout=10).json() == document

    def test_of_prometheus_it_passes_on_the_two_questions_only(self, grafana_url: str) -> None:
        for path in ("query?query=1", "query_range?query=1&start=0&end=1&step=1"):
            assert requests.get(f"{grafana_url}/api/v1/{path}", timeout=10).json()["status"] == "success", path
        for path in ("status/config", "targets", "series", "query_exemplars", "query/", "admin/tsdb/snapshot"):
            assert requests.get(f"{grafana_url}/api/v1/{path}", timeout=10).status_code == 404, path

    def test_nothing_else_is_there_and_nothing_can_be_written(self, grafana_url: str) -> None:
        for path in ("/index.html", "/nginx.conf", "/-/quit", "/api/datasources", "/login"):
            assert requests.get(f"{grafana_url}{path}", timeout=10).status_code == 404, path
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert requests.request(method, f"{grafana_url}/api/v1/query", timeout=10).status_code == 405, method

    def test_the_headers_keep_all_that_is_foreign_out(self, grafana_url: str) -> None:
        for path in ("/", "/viewer/viewer.js", "/viewer/dashboards/", "/api/v1/query?query=1", "/nowhere"):
            headers = requests.get(f"{grafana_url}{path}", timeout=10).headers
            policy = headers["Content-Security-Policy"]
            assert "default-src 'self'" in policy, path
            assert "unsafe" not in policy
            assert "://" not in policy
            assert headers["X-Content-Type-Options"] == "nosniff", path
            assert headers["X-Frame-Options"] == "SAMEORIGIN", path
            assert headers["Referrer-Policy"] == "no-referrer", path
            assert headers["Server"] == "nginx", "the version is nobody's business"

    def test_it_needs_little_and_has_neither_volume_nor_secret(self, host: Host) -> None:
        document = containers(host)["grafana"]
        assert document["HostConfig"]["Memory"] == 64 * 1024 * 1024
        assert {mount["Type"] for mount in document["Mounts"]} == {"bind"}
        assert not any(mount["RW"] for mount in document["Mounts"])
        assert "/run/secrets" not in json.dumps(document["Mounts"])
        used = host.check_output("docker stats --no-stream --format '{{.MemUsage}}' mlops-grafana")
        print(f"the viewer uses {used}")

    def test_it_finds_prometheus_again_at_another_address(self, host: Host, grafana_url: str) -> None:
        before = containers(host)["grafana"]["Id"]
        host.check_output("systemctl stop mlops-prometheus")
        try:
            away = requests.get(f"{grafana_url}/api/v1/query?query=1", timeout=30)
        finally:
            host.check_output("systemctl start mlops-prometheus")
        assert away.status_code in (502, 504)
        wait_until(
            lambda: requests.get(f"{grafana_url}/api/v1/query?query=1", timeout=30).status_code == 200, 30, "an answer"
        )
        assert containers(host)["grafana"]["Id"] == before


class TestWithTheStandIn:
    def test_the_unit_runs_and_the_port_is_published(
        self, host: Host, document: dict[str, Any], grafana_url: str
    ) -> None:
        assert host.service("mlops-grafana").is_running
        assert host.service("mlops-grafana").is_enabled
        assert requests.get(f"{grafana_url}/api/health", timeout=10).status_code == 200
        assert document["State"]["Health"]["Status"] == "healthy"

    def test_the_summary_says_where_the_password_is_and_not_what_it_is(
        self, host: Host, provisioned: PlaybookRun
    ) -> None:
        password = host.check_output("cat /etc/mlops/secrets/grafana_admin_password")
        assert "/etc/mlops/secrets/grafana_admin_password" in provisioned.output
        assert password not in provisioned.output

    def test_the_container_is_confined_like_the_others(self, host: Host, document: dict[str, Any]) -> None:
        limits = document["HostConfig"]
        assert document["Config"]["User"] == "10010:10010", "whatever the image says"
        assert limits["ReadonlyRootfs"]
        assert limits["CapDrop"] == ["ALL"]
        assert not limits["CapAdd"]
        assert "no-new-privileges" in limits["SecurityOpt"]
        assert limits["Memory"] > 0
        processes = host.check_output("docker top mlops-grafana -eo pid,uid,comm").splitlines()[1:]
        assert {line.split()[1] for line in processes} == {"10010"}

    def test_its_data_is_its_own_though_the_images_directory_is_roots(
        self, host: Host, document: dict[str, Any]
    ) -> None:
        (volume,) = (mount for mount in document["Mounts"] if mount["Type"] == "volume")
        assert volume["Name"] == "mlops_grafana_data"
        assert volume["Destination"] == "/var/lib/grafana"
        assert host.check_output(f"stat --format %u:%g {volume['Source']}") == "10010:10010"
        assert host.file(f"{volume['Source']}/grafana.db").exists

    @pytest.mark.parametrize("name", ["grafana_admin_password", "grafana_secret_key"])
    def test_secrets_are_files_and_nowhere_else(self, host: Host, document: dict[str, Any], name: str) -> None:
        secret = host.check_output(f"cat /etc/mlops/secrets/{name}")
        assert len(secret) >= 32
        assert host.file(f"/etc/mlops/secrets/{name}").mode == 0o600
        assert secret not in json.dumps(document)
        for place in ("/etc/mlops/grafana", "/etc/systemd/system"):
            assert host.run(f"grep --recursive --quiet --fixed-strings -- {secret} {place}").rc == 1, place
        assert secret not in host.check_output("journalctl --unit mlops-grafana --no-pager")
        environment = host.check_output(f"cat /proc/{document['State']['Pid']}/environ")
        assert secret not in environment

    def test_what_is_provisioned_is_mounted_read_only(self, document: dict[str, Any]) -> None:
        mounts = {mount["Destination"]: mount["RW"] for mount in document["Mounts"] if mount["Type"] == "bind"}
        assert not any(mounts.values())
        for path in (
            "/etc/grafana/grafana.ini",
            "/etc/grafana/provisioning/datasources/mlops.yml",
            "/etc/grafana/provisioning/dashboards/mlops.yml",
            "/etc/grafana/dashboards/ml-pipeline.json",
            "/etc/grafana/dashboards/system.json",
            "/etc/grafana/dashboards/application.json",
            "/etc/grafana/dashboards/stores.json",
        ):
            assert path in mounts

    def test_nothing_calls_out_and_nobody_signs_up(self, host: Host, provisioned: PlaybookRun) -> None:
        assert provisioned.status == 0, provisioned.output
        configuration = host.file("/etc/mlops/grafana/grafana.ini").content_string
        for line in (
            "allow_sign_up = false",
            "[auth.anonymous]\nenabled = false",
            "reporting_enabled = false",
            "check_for_updates = false",
            "check_for_plugin_updates = false",
            "disable_gravatar = true",
            "news_feed_enabled = false",
            "preinstall_disabled = true",
            "external_enabled = false",
        ):
            assert line in configuration

    def test_its_user_and_password_follow_the_settings_after_the_first_start_too(
        self, host: Host, provisioned: PlaybookRun, image: str, grafana_url: str
    ) -> None:
        assert provisioned.status == 0, provisioned.output
        made = host.check_output("cat /etc/mlops/secrets/grafana_admin_password")
        chosen = 'Quo\'te \\ "colon": naïve $HOME %s'

        def answer(user: str, password: str) -> int:
            # By bytes: requests would write a string as Latin-1.
            login = (user.encode(), password.encode())
            return requests.get(f"{grafana_url}/api/user", auth=login, timeout=10).status_code

        assert answer("admin", made) == 200
        for login, values in (
            (("grace", chosen), {"grafana_admin_user": "grace", "grafana_admin_password": chosen}),
            # A password that is no longer given is kept.
            (("admin", chosen), {}),
            (("admin", made), {"grafana_admin_password": made}),
        ):
            extra = json.dumps({"grafana_image": image, **values})
            result = run_playbook("site.yml", "--tags", "monitoring", "--diff", "--extra-vars", extra)
            assert result.status == 0, result.output
            assert chosen not in result.output
            assert answer(*login) == 200, values
        assert answer("admin", chosen) == 401
        assert chosen not in host.check_output("journalctl --unit mlops-grafana --no-pager")

    @pytest.mark.parametrize(
        ("password", "reason"), [("xyz", "fewer than 4 characters"), ("admin", "well-known default")]
    )
    def test_a_password_that_grafana_refuses_or_everybody_knows_is_refused_before(
        self, host: Host, password: str, reason: str
    ) -> None:
        before = container_ids(host)
        result = run_playbook("site.yml", "--tags", "monitoring", "--extra-vars", f"grafana_admin_password={password}")
        assert result.status != 0
        assert "Nothing was changed. grafana_admin_password: " in result.output
        assert reason in " ".join(result.output.split())
        assert container_ids(host) == before

    def test_a_second_run_changes_nothing(self, provisioned: PlaybookRun, image: str) -> None:
        assert provisioned.status == 0, provisioned.output
        again = run_playbook("site.yml", "--tags", "monitoring", "--extra-vars", f"grafana_image={image}")
        assert again.status == 0, again.output
        assert again.changed == 0, again.output

    def test_without_the_image_the_viewer_is_back_and_the_data_stay(
        self, host: Host, provisioned: PlaybookRun, document: dict[str, Any], grafana_url: str
    ) -> None:
        assert provisioned.status == 0, provisioned.output
        (volume,) = (mount for mount in document["Mounts"] if mount["Type"] == "volume")
        back = run_playbook("site.yml", "--tags", "monitoring")
        assert back.status == 0, back.output
        assert "/viewer/viewer.js" in requests.get(f"{grafana_url}/d/mlops-system", timeout=10).text
        assert host.file(f"{volume['Source']}/grafana.db").exists
        assert host.file("/etc/mlops/secrets/grafana_secret_key").exists
        assert "grafana_admin_password" not in back.output, "the viewer has no login"
