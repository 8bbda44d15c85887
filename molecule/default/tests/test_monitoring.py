"""What is watched is seen, what is wrong raises an alert that arrives, and a full disk harms nothing."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import requests
from conftest import ROOT, PlaybookRun, container_ids, containers, healthy_services, is_healthy_again, wait_until
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from testinfra.host import Host

Site = Callable[..., PlaybookRun]
JOBS = {"prometheus", "node", "mlflow", "serving", "environments", "nginx", "alertmanager", "grafana"}
RULES = ROOT / "roles" / "prometheus" / "files" / "rules"
METRICS = "/var/lib/mlops/metrics"


def api(url: str, path: str, **parameters: str) -> Any:
    """What Prometheus answers to one request of its API."""
    answer = requests.get(f"{url}/api/v1/{path}", params=parameters, timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def query(url: str, expression: str) -> list[dict[str, Any]]:
    """The samples of an expression, as of now."""
    return list(api(url, "query", query=expression)["result"])


def value(url: str, expression: str) -> float:
    """The value of an expression that has one sample."""
    (sample,) = query(url, expression)
    return float(sample["value"][1])


def firing(url: str, alert: str) -> list[dict[str, str]]:
    """The labels of each firing alert of this name."""
    alerts = api(url, "alerts")["alerts"]
    return [item["labels"] for item in alerts if item["labels"]["alertname"] == alert and item["state"] == "firing"]


def targets_up(url: str) -> dict[str, str]:
    """Health by job. A query of ``up`` would show what was scraped before a restart for five minutes more."""
    targets = requests.get(f"{url}/api/v1/targets", params={"state": "active"}, timeout=10).json()["data"]
    return {target["labels"]["job"]: target["health"] for target in targets["activeTargets"]}


class TestPrometheus:
    def test_every_target_is_up(self, prometheus_url: str) -> None:
        # A job of its own for each service that other roles add.
        wait_until(lambda: targets_up(prometheus_url).keys() >= JOBS, 60, "every job is scraped")
        wait_until(lambda: set(targets_up(prometheus_url).values()) == {"up"}, 60, "every target is up")

    def test_every_rule_is_loaded_and_evaluated(self, prometheus_url: str) -> None:
        def rules() -> list[dict[str, Any]]:
            return [rule for group in api(prometheus_url, "rules")["groups"] for rule in group["rules"]]

        assert {rule["type"] for rule in rules()} == {"alerting", "recording"}
        # The group of drift has its turn once a minute.
        wait_until(lambda: all(rule["health"] != "unknown" for rule in rules()), 90, "every rule was evaluated")
        assert {rule["name"]: rule.get("lastError") for rule in rules() if rule["health"] != "ok"} == {}

    def test_every_alert_fires_when_it_should(self, host: Host) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            archive.add(RULES, arcname="rules")
            archive.add(ROOT / "tests" / "prometheus" / "alerts.yml", arcname="alerts.yml")
        image = containers(host)["prometheus"]["Config"]["Image"]
        unpack_and_test = "tar --extract --gzip --directory=/tmp && promtool test rules /tmp/alerts.yml"
        result = host.run(
            f"echo {base64.b64encode(stream.getvalue()).decode()} | base64 --decode"
            f" | docker run --rm --interactive --network=none {image} sh -c '{unpack_and_test}'"
        )
        assert result.rc == 0, result.stdout + result.stderr

    def test_retention_is_limited_by_time_and_size(self, prometheus_url: str) -> None:
        assert api(prometheus_url, "status/runtimeinfo")["storageRetention"] == "30d or 4GiB"

    def test_it_can_neither_be_changed_nor_stopped_through_its_api(self, prometheus_url: str) -> None:
        for path in ("/-/reload", "/-/quit"):
            assert requests.post(f"{prometheus_url}{path}", timeout=10).status_code == 403, path
        answer = requests.post(f"{prometheus_url}/api/v1/admin/tsdb/snapshot", timeout=10)
        assert "admin APIs disabled" in answer.text


class TestNodeExporter:
    def test_it_sees_the_memory_and_the_disk_of_the_host(self, host: Host, prometheus_url: str) -> None:
        (total,) = (line.split()[1] for line in host.file("/proc/meminfo").content_string.splitlines()[:1])
        assert value(prometheus_url, "node_memory_MemTotal_bytes") == int(total) * 1024
        size = host.check_output("df --block-size=1 --output=size /").split()[-1]
        assert value(prometheus_url, 'node_filesystem_size_bytes{mountpoint="/"}') == int(size)
        assert value(prometheus_url, "sum(node_filesystem_device_error)") == 0

    def test_it_sees_the_network_of_the_host_and_not_its_own(self, host: Host, prometheus_url: str) -> None:
        received = 'node_network_receive_bytes_total{device="eth0"}'
        before = int(host.file("/sys/class/net/eth0/statistics/rx_bytes").content_string)
        wait_until(lambda: value(prometheus_url, received) >= before, 60, "the host's counter is scraped")
        now = int(host.file("/sys/class/net/eth0/statistics/rx_bytes").content_string)
        assert value(prometheus_url, received) <= now

    def test_metrics_that_a_job_left_in_a_file_are_passed_on(self, host: Host, prometheus_url: str) -> None:
        file = f"{METRICS}/test.prom"
        host.check_output(f"echo 'mlops_test_metric 42' >{file}.tmp && chmod 0644 {file}.tmp && mv {file}.tmp {file}")
        try:
            wait_until(lambda: bool(query(prometheus_url, "mlops_test_metric == 42")), 60, "the metric is there")
        finally:
            host.check_output(f"rm {file}")

    def test_no_collector_fails(self, prometheus_url: str) -> None:
        assert query(prometheus_url, "node_scrape_collector_success == 0") == []

    def test_what_it_sees_of_the_host_it_can_neither_change_nor_use(self, host: Host) -> None:
        for command in (
            "touch /host/var/tmp/intruder",
            "ls /host/etc/mlops/secrets",
            "cat /host/etc/shadow",
            "curl --unix-socket /host/run/docker.sock http://docker/info",
        ):
            assert host.run(f"docker exec mlops-node_exporter {command}").rc != 0, command


class TestConfiguration:
    def test_a_change_restarts_prometheus_alone(self, host: Host, site: Site) -> None:
        before = container_ids(host)
        assert site("--tags", "monitoring", "--extra-vars", "prometheus_retention_time=20d").changed == 1
        after = container_ids(host)
        assert {service for service in after if after[service] != before[service]} == {"prometheus"}
        assert site("--tags", "monitoring").changed == 1, "back to the inventory's value"

    def test_a_rule_that_promtool_refuses_is_never_applied(self, host: Host, failing_site: Site) -> None:
        before = container_ids(host)
        groups = [{"name": "broken", "rules": [{"record": "broken", "expr": "sum("}]}]
        result = failing_site("--tags", "monitoring", "--extra-vars", json.dumps({"prometheus_rule_groups": groups}))
        assert "refuses the new configuration" in result.output
        assert container_ids(host) == before

    def test_receivers_that_amtool_refuses_are_never_applied_nor_shown(self, host: Host, failing_site: Site) -> None:
        before = container_ids(host)
        config = {
            "route": {"receiver": "misspelt"},
            "receivers": [{"name": "chat", "webhook_configs": [{"url": "http://chat.example/hunter2"}]}],
        }
        arguments = ["--tags", "monitoring", "--diff", "--extra-vars", json.dumps({"alertmanager_config": config})]
        result = failing_site(*arguments)
        assert "refuses the new configuration" in result.output
        assert "misspelt" in result.output
        assert "hunter2" not in result.output
        assert container_ids(host) == before


class TestReach:
    def test_only_prometheus_is_published(self, host: Host, settings: dict[str, Any]) -> None:
        published = {
            service: [
                binding["HostPort"] for ports in document["HostConfig"]["PortBindings"].values() for binding in ports
            ]
            for service, document in containers(host).items()
        }
        assert published["prometheus"] == [str(settings["local_host_prometheus_port"])]
        for service in ("node_exporter", "nginx_exporter", "alertmanager"):
            assert published[service] == [], service

    def test_metrics_are_not_reached_through_nginx(self, ui_url: str, api_url: str) -> None:
        for path in ("/metrics", "//metrics", "/metrics?x=1", "/%6detrics", "/x/../metrics", "/stub_status"):
            for url in (ui_url, api_url):
                request = requests.Request("GET", url).prepare()
                request.url = f"{url}{path}"
                answer = requests.Session().send(request, timeout=10)
                assert "# HELP" not in answer.text, f"{url}{path}"
                assert "Active connections" not in answer.text, f"{url}{path}"


# Prints what it is sent, a line for each request.
RECEIVER = """
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print(self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("", 9000), Handler).serve_forever()
"""


class TestAlert:
    @pytest.fixture
    def receiver(self, host: Host) -> Iterator[str]:
        """A container that takes what Alertmanager sends to a webhook."""
        image = containers(host)["mlflow"]["Config"]["Image"]
        script = base64.b64encode(RECEIVER.encode()).decode()
        host.check_output(
            "docker run --detach --rm --name=webhook_receiver --network=mlops --memory=64m --cpus=0.2"
            f" {image} /opt/venv/bin/python -c 'import base64; exec(base64.b64decode(\"{script}\"))'"
        )
        yield "webhook_receiver"
        host.check_output("docker rm --force webhook_receiver")

    def test_a_service_that_stops_is_reported_and_so_is_its_return(
        self, host: Host, prometheus_url: str, receiver: str
    ) -> None:
        def received(status: str) -> bool:
            lines = host.check_output(f"docker logs {receiver}").split("\n")
            messages = [json.loads(line) for line in lines if line.strip()]
            return any(
                alert["labels"]["alertname"] == "ServiceDown"
                and alert["labels"]["job"] == "nginx"
                and alert["status"] == status
                and alert["annotations"]["runbook"] == "docs/monitoring.md#servicedown"
                for message in messages
                for alert in message["alerts"]
            )

        host.check_output("systemctl stop mlops-nginx_exporter")
        try:
            seconds = wait_until(lambda: received("firing"), 120, "the alert arrives")
            print(f"the alert arrived {seconds:.0f} s after the service stopped")
            assert firing(prometheus_url, "ServiceDown")
        finally:
            host.check_output("systemctl start mlops-nginx_exporter")
        seconds = wait_until(lambda: received("resolved"), 60, "the end of the alert arrives")
        print(f"its end arrived {seconds:.0f} s after the service started")

    def test_its_configuration_is_kept_like_a_password(self, host: Host) -> None:
        assert host.file("/etc/mlops/secrets/alertmanager_config").mode == 0o600
        inspected = host.check_output("docker inspect mlops-alertmanager") + host.check_output(
            "systemctl cat mlops-alertmanager"
        )
        assert "webhook_receiver" not in inspected


class TestFullDisk:
    """MLflow's volume on a small file system of its own, as on a host with a disk for data."""

    DATA = "/var/lib/docker/volumes/mlops_mlflow_data/_data"
    DISK = "/srv/mlops-test-disk"

    @pytest.fixture
    def disk(self, host: Host) -> Iterator[str]:
        host.check_output("systemctl stop mlops-mlflow")
        try:
            used = int(host.check_output(f"du --summarize --block-size=1M {self.DATA}").split()[0])
            options = f"size={used + 16}m,mode=0755,uid=10004,gid=10004"
            host.check_output(
                f"mkdir {self.DISK} && mount -t tmpfs -o {options} test {self.DISK}"
                f" && cp --archive {self.DATA}/. {self.DISK} && mount --bind {self.DISK} {self.DATA}"
            )
            host.check_output("systemctl start mlops-mlflow")
            yield self.DISK
        finally:
            host.run("systemctl stop mlops-mlflow")
            for path in (self.DATA, self.DISK):
                host.run(f"umount {path}")
            host.run(f"rmdir {self.DISK}")
            host.check_output("systemctl start mlops-mlflow")

    @staticmethod
    def log(client: MlflowClient, experiment: str, name: str) -> str:
        """Log a run with parameters that need room, and return its id once MLflow has acknowledged all of it."""
        run = client.create_run(experiment, run_name=name).info.run_id
        for number in range(20):
            client.log_param(run, f"parameter-{number}", "x" * 6000)
        client.set_terminated(run)
        return str(run)

    def test_a_full_disk_is_told_and_harms_nothing(
        self, host: Host, prometheus_url: str, mlflow_url: str, disk: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # An answer of 500 is what this test waits for.
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        client = MlflowClient(mlflow_url)
        experiment = client.create_experiment(f"full-disk-{container_ids(host)['mlflow'][:12]}")
        kept = [self.log(client, experiment, "before")]
        since = host.check_output("date +%s")
        host.run(f"dd if=/dev/zero of={disk}/filler bs=64k")

        # MLflow says so, to the client and in its log ...
        with pytest.raises(MlflowException):
            kept.extend(self.log(client, experiment, f"full-{number}") for number in range(20))
        assert "disk is full" in host.check_output(f"journalctl --unit=mlops-mlflow --since=@{since} --output=cat")
        # ... what is there can still be read, and the alert fires.
        assert client.get_run(kept[0]).data.params["parameter-0"] == "x" * 6000
        seconds = wait_until(
            lambda: any(labels["mountpoint"] == disk for labels in firing(prometheus_url, "DiskFull")),
            120,
            "the alert fires",
        )
        print(f"the alert fired {seconds:.0f} s after the disk was full")
        assert "mlflow" in healthy_services(host)

        host.check_output(f"rm {disk}/filler")
        kept.append(self.log(client, experiment, "after"))
        for run in kept:
            data = client.get_run(run).data
            assert len(data.params) == 20, "every acknowledged run is whole"
        check = "import sqlite3; print(*sqlite3.connect('/var/lib/mlflow/mlflow.db').execute('pragma integrity_check'))"
        assert host.check_output(f'docker exec mlops-mlflow /opt/venv/bin/python -c "{check}"') == "('ok',)"
        wait_until(lambda: not firing(prometheus_url, "DiskFull"), 60, "the alert ends")
        with suppress(MlflowException):
            client.delete_experiment(experiment)


def test_prometheus_keeps_what_it_had_when_it_is_killed(host: Host, prometheus_url: str) -> None:
    start = value(prometheus_url, "min_over_time(timestamp(up{job='prometheus'})[5m:5s])")
    before = containers(host)["prometheus"]
    host.check_output(f"kill -9 {before['State']['Pid']}")
    seconds = wait_until(lambda: is_healthy_again(host, "prometheus", before["Id"]), 60, "Prometheus is healthy again")
    print(f"prometheus was healthy again after {seconds:.1f} s")
    samples = query(prometheus_url, f"up{{job='prometheus'}} @ {start}")
    assert samples, "what was stored before is there"
