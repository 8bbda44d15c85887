"""Every service runs as it was promised: owned by systemd, confined, healthy, reachable where it should be."""

from __future__ import annotations

import http.client
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests
from conftest import SERVICES, containers, host_secrets, readable_secrets, wait_until
from testinfra.host import Host


@pytest.mark.parametrize(
    "unit", ["mlops.target", "mlops-health.service", *(f"mlops-{name}.service" for name in SERVICES)]
)
def test_units_run_and_start_with_the_host(host: Host, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled


@pytest.mark.parametrize("service", SERVICES)
def test_units_belong_to_the_target(host: Host, service: str) -> None:
    assert "mlops.target" in host.check_output(f"systemctl show mlops-{service} --property=PartOf --value").split()


def test_no_other_container_runs(host: Host) -> None:
    assert set(containers(host)) == set(SERVICES)


class TestConfinement:
    """Least privilege, asserted for every container there is."""

    def test_no_process_is_root(self, host: Host) -> None:
        for service in containers(host):
            users = host.check_output(f"docker top mlops-{service} -eo pid,uid,comm").splitlines()[1:]
            assert users, f"{service} has processes"
            assert "0" not in {line.split()[1] for line in users}, f"{service}: {users}"

    def test_every_service_has_a_user_of_its_own(self, host: Host) -> None:
        users = {service: document["Config"]["User"] for service, document in containers(host).items()}
        assert len(set(users.values())) == len(users), users

    def test_a_volume_belongs_to_the_service_that_writes_it(self, host: Host) -> None:
        for service, document in containers(host).items():
            for mount in document["Mounts"]:
                if mount["Type"] == "volume" and mount["RW"] and mount["Destination"] != "/var/tmp":
                    owner = host.check_output(f"stat --format=%u:%g {mount['Source']}")
                    assert owner == document["Config"]["User"], f"{service}: {mount['Source']}"

    def test_no_capability_is_kept(self, host: Host) -> None:
        for service, document in containers(host).items():
            assert document["HostConfig"]["CapDrop"] == ["ALL"], service
            assert not document["HostConfig"]["CapAdd"], f"{service} has a capability without a reason"
            pid = document["State"]["Pid"]
            status = host.check_output(f"cat /proc/{pid}/status")
            effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
            assert int(effective, 16) == 0, f"{service} has effective capabilities"

    def test_privileges_cannot_grow(self, host: Host) -> None:
        for service, document in containers(host).items():
            assert "no-new-privileges" in document["HostConfig"]["SecurityOpt"], service
            assert document["HostConfig"]["Privileged"] is False, service

    def test_the_root_file_system_is_read_only(self, host: Host) -> None:
        for service, document in containers(host).items():
            assert document["HostConfig"]["ReadonlyRootfs"], service
            assert host.run(f"docker exec mlops-{service} touch /etc/intruder").rc != 0, service

    def test_memory_processor_and_processes_are_limited(self, host: Host) -> None:
        for service, document in containers(host).items():
            limits = document["HostConfig"]
            assert limits["Memory"] > 0, service
            assert limits["MemorySwap"] == limits["Memory"], f"{service} could swap beyond its limit"
            assert limits["NanoCpus"] > 0, service
            assert 0 < limits["PidsLimit"] <= 512, service

    def test_writable_places_in_memory_have_a_size(self, host: Host) -> None:
        for service, document in containers(host).items():
            for path, options in document["HostConfig"]["Tmpfs"].items():
                assert "size=" in options, f"{service}: {path}"
                assert "noexec" in options, f"{service}: {path}"

    def test_the_docker_socket_is_in_no_container(self, host: Host) -> None:
        for service, document in containers(host).items():
            assert "docker.sock" not in json.dumps(document["Mounts"]), service


class TestFiles:
    def test_secrets_and_state_are_for_root_alone(self, host: Host) -> None:
        for directory in ("/etc/mlops/secrets", "/var/lib/mlops"):
            assert host.file(directory).mode == 0o700, directory
            # What containers read, where nobody else passes the directory above.
            read = " -o ".join(f"-path /var/lib/mlops/{name}" for name in ("metrics", "projects", "wheels"))
            find = f"find {directory} \\( {read} \\) -prune -o -type f -print"
            for path in host.check_output(find).split():
                assert host.file(path).mode == 0o600, path
                assert host.file(path).user == "root", path

    def test_a_secret_is_nowhere_but_in_its_file(self, host: Host) -> None:
        secrets = host_secrets(host)
        assert len(secrets) > 2, "there are secrets to look for"
        assert readable_secrets(host, secrets) == [], "[secret, its form, where it is readable]"


class TestEndpoints:
    def test_the_ui_of_mlflow_is_on_the_front_page(self, ui_url: str) -> None:
        answer = requests.get(ui_url, timeout=10)
        assert answer.status_code == 200
        assert "<title>MLflow</title>" in answer.text

    def test_health_is_that_of_the_service_behind(self, ui_url: str, api_url: str, mlflow_url: str) -> None:
        for url in (ui_url, api_url, mlflow_url):
            assert requests.get(f"{url}/health", timeout=10).status_code == 200, url

    def test_every_service_has_a_health_check(self, host: Host) -> None:
        for service, document in containers(host).items():
            assert document["Config"]["Healthcheck"]["Test"][0] == "CMD-SHELL", service
            assert document["State"]["Health"]["Status"] == "healthy", service

    def test_metrics_are_not_for_the_outside(self, ui_url: str, api_url: str) -> None:
        for url in (ui_url, api_url):
            assert requests.get(f"{url}/metrics", timeout=10).status_code == 404, url

    def test_security_headers_stand_once_on_every_answer(self, ui_url: str, api_url: str) -> None:
        for url in (f"{ui_url}/", f"{api_url}/health", f"{api_url}/no-such-path"):
            headers = requests.get(url, timeout=10).headers
            assert headers["X-Content-Type-Options"] == "nosniff", url
            assert headers["Server"] == "nginx", "the version is nobody's business"
        for url in (f"{ui_url}/", f"{ui_url}/health", f"{api_url}/health"):
            headers = requests.get(url, timeout=10).headers
            assert headers["X-Frame-Options"] == "SAMEORIGIN", url
            assert headers["X-XSS-Protection"] == "0", url
            assert headers["Referrer-Policy"] == "strict-origin-when-cross-origin", url
            assert headers["Permissions-Policy"], url

    def test_a_body_that_is_too_large_is_refused_in_json(self, api_url: str) -> None:
        answer = requests.post(f"{api_url}/invocations", data=b"0" * 10_500_000, timeout=10)
        assert answer.status_code == 413
        assert answer.json()["error_code"] == "REQUEST_TOO_LARGE"

    def test_mlflow_refuses_names_it_does_not_know(self, mlflow_url: str) -> None:
        answer = requests.post(
            f"{mlflow_url}/api/2.0/mlflow/experiments/search",
            json={"max_results": 1},
            headers={"Host": "rebound.example"},
            timeout=10,
        )
        assert answer.status_code == 403

    def test_too_many_requests_are_a_429_in_json(self, api_url: str) -> None:
        def ask(_client: int) -> list[tuple[int, dict[str, str], bytes]]:
            connection = http.client.HTTPConnection(urlsplit(api_url).netloc, timeout=10)
            answers = []
            for _ in range(200):
                connection.request("GET", "/version")
                answer = connection.getresponse()
                answers.append((answer.status, dict(answer.headers), answer.read()))
            connection.close()
            return answers

        with ThreadPoolExecutor(8) as clients:
            answers = [answer for one in clients.map(ask, range(8)) for answer in one]
        assert {status for status, _, _ in answers} == {200, 429}
        headers, body = next((headers, body) for status, headers, body in answers if status == 429)
        assert json.loads(body)["error_code"] == "TOO_MANY_REQUESTS"
        assert headers["Retry-After"] == "1"
        assert headers["X-Request-ID"]

    def test_a_service_that_is_away_is_a_502_in_json(self, host: Host, ui_url: str, api_url: str) -> None:
        # Let the limit of the test before pass.
        time.sleep(2)
        for service, url in (("mlflow", ui_url), ("serving", api_url)):
            host.check_output(f"systemctl stop mlops-{service}")
            try:
                answer = requests.get(f"{url}/version", timeout=30)
            finally:
                host.check_output(f"systemctl start mlops-{service}")
            assert answer.status_code in (502, 504)
            assert answer.json()["error_code"] == "UPSTREAM_UNAVAILABLE"
            assert answer.headers["Retry-After"] == "5"

    def test_text_is_compressed(self, ui_url: str) -> None:
        (script, *_) = re.findall(r'src="([^"]+\.js)"', requests.get(ui_url, timeout=10).text)
        assert requests.get(f"{ui_url}/{script}", timeout=30).headers["Content-Encoding"] == "gzip"

    def test_every_request_is_a_line_of_json_in_the_journal(self, host: Host, api_url: str) -> None:
        identifier = requests.get(f"{api_url}/version", timeout=10).headers["X-Request-ID"]

        def logged() -> list[str]:
            lines = host.check_output("journalctl -u mlops-nginx --since -60s --output cat").splitlines()
            return [line for line in lines if identifier in line]

        # nginx keeps its log for a second.
        wait_until(lambda: logged() != [], 30, "the request is in the journal")
        (entry,) = map(json.loads, logged())
        assert entry["status"] == 200
        assert float(entry["upstream_seconds"]) < 10
