"""The table of `make status`: what it shows of units and containers, and what it calls a problem."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import appliance_status
import pytest
from ansible.module_utils.container_host import CommandResult, Host

PID = 4242


def container(service: str, health: str = "healthy", networks: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "Config": {
            "Image": f"mlops-{service}:f0f5b9678c44",
            "Labels": {"mlops.unit": f"mlops-{service}.service", "org.opencontainers.image.version": "3.17.2"},
        },
        "State": {"Pid": PID, "Health": {"Status": health}},
        "HostConfig": {"Memory": 1 << 30},
        "NetworkSettings": {
            "Ports": {
                "5000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "5000"}, {"HostIp": "::1", "HostPort": "5000"}],
                "9/udp": None,
            },
            "Networks": networks or {},
        },
    }


class Machine:
    """A host of which systemd and docker say what the test wants."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.properties: dict[str, dict[str, str]] = {}
        self.containers: list[dict[str, Any]] = []

    def unit(self, name: str, active: str = "active", enabled: str = "enabled") -> None:
        path = self.root / "etc" / "systemd" / "system" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.properties[name] = {
            "Id": name,
            "ActiveState": active,
            "UnitFileState": enabled,
            "StateChangeTimestamp": "@1795450896",
            "NRestarts": "2",
            "Result": "exit-code",
        }

    def run(self, command: Sequence[str]) -> CommandResult:
        match command:
            case ["systemctl", "show", *arguments]:
                blocks = [self.properties[name] for name in arguments if not name.startswith("--")]
                texts = ["\n".join(f"{key}={value}" for key, value in block.items()) for block in blocks]
                return CommandResult(0, "\n\n".join(texts) + "\n", "")
            case ["/usr/bin/docker", "ps", *_]:
                return CommandResult(0, "\n".join(str(number) for number in range(len(self.containers))), "")
            case ["/usr/bin/docker", "inspect", *_]:
                return CommandResult(0, json.dumps(self.containers), "")
        raise AssertionError(f"unexpected: {command}")

    def look(self) -> dict[str, Any]:
        return appliance_status.look(Host(self.run, self.root))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.unit("mlops-mlflow.service")
    machine.containers = [container("mlflow")]
    return machine


def test_a_row_says_what_runs_and_where(machine: Machine) -> None:
    (row,) = machine.look()["units"]
    assert row["unit"] == "mlops-mlflow.service"
    assert (row["state"], row["health"], row["restarts"]) == ("active", "healthy", "2")
    assert (row["image"], row["version"]) == ("mlops-mlflow", "3.17.2")
    assert row["port"] == "127.0.0.1:5000"
    assert row["since"].startswith("2026-11-23")


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        (
            "0::/system.slice/docker-1.scope",
            {"system.slice/docker-1.scope/memory.current": 300, "system.slice/docker-1.scope/memory.stat": "inactive"},
        ),
        (
            "5:memory:/docker/1\n1:name=systemd:/docker/1\n0::/docker/1",
            {"memory/docker/1/memory.usage_in_bytes": 300, "memory/docker/1/memory.stat": "total_inactive"},
        ),
    ],
)
def test_memory_is_what_docker_stats_shows_with_either_version_of_cgroups(
    machine: Machine, cgroup: str, files: dict[str, Any]
) -> None:
    (machine.root / "proc" / str(PID)).mkdir(parents=True)
    (machine.root / "proc" / str(PID) / "cgroup").write_text(cgroup + "\n")
    for name, value in files.items():
        path = machine.root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"anon 1\n{value}_file {100 << 20}\n" if isinstance(value, str) else f"{value << 20}\n")
    assert machine.look()["units"][0]["memory"] == "200/1024 MiB"


def test_nothing_is_wrong_when_all_is_up(machine: Machine) -> None:
    machine.unit("mlops-backup.timer")
    machine.unit("mlops-backup.service", "inactive", "static")
    looked = machine.look()
    assert looked["problems"] == []
    assert [row["unit"] for row in looked["units"]] == ["mlops-backup.timer", "mlops-mlflow.service"]
    assert looked["installed"] == ["mlops-backup.timer", "mlops-mlflow.service"]


@pytest.mark.parametrize(
    ("active", "enabled", "words"),
    [
        ("inactive", "enabled", "mlops-web.service is inactive: it should be active"),
        ("activating", "enabled", "mlops-web.service is activating: it should be active"),
        ("failed", "enabled", "mlops-web.service has failed (exit-code): journalctl -u mlops-web.service"),
        ("failed", "static", "mlops-web.service has failed (exit-code): journalctl -u mlops-web.service"),
    ],
)
def test_a_unit_that_should_be_up_and_is_not_is_a_problem(
    machine: Machine, active: str, enabled: str, words: str
) -> None:
    machine.unit("mlops-web.service", active, enabled)
    looked = machine.look()
    assert looked["problems"] == [words]
    assert words in looked["lines"]


def test_an_unhealthy_container_is_a_problem(machine: Machine) -> None:
    machine.containers = [container("mlflow", health="unhealthy")]
    assert machine.look()["problems"] == ["mlops-mlflow.service is active, but its container is unhealthy"]


def test_what_was_stopped_on_purpose_is_down_and_no_problem(machine: Machine) -> None:
    machine.unit("mlops-mlflow.service", "inactive", "disabled")
    machine.containers = []
    looked = machine.look()
    assert looked["units"][0]["state"] == "down"
    assert looked["problems"] == []
    assert "Everything was stopped on purpose" in looked["lines"][-1]


def test_a_host_without_an_appliance_is_a_problem(tmp_path: Path) -> None:
    assert Machine(tmp_path).look()["problems"] == ["there is no appliance on this host: site.yml makes it so"]


class Server(BaseHTTPRequestHandler):
    answer: tuple[int, bytes] = (200, b"")

    def do_GET(self) -> None:
        self.send_response(self.answer[0])
        self.end_headers()
        self.wfile.write(self.answer[1])

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (
            200,
            {"name": "code-search", "version": "7", "loaded_since": "2026-11-23T16:00:00Z"},
            {"name": "code-search", "version": "7", "since": "2026-11-23T16:00:00Z", "notice": "-"},
        ),
        (
            200,
            {"name": "m", "version": "7", "loaded_since": "now", "rejected": "version 8 was rejected: why"},
            {"name": "m", "version": "7", "since": "now", "notice": "version 8 was rejected: why"},
        ),
        (
            503,
            {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "No model is served yet: why."},
            {"name": "none", "version": "-", "since": "-", "notice": "No model is served yet: why."},
        ),
    ],
)
def test_the_model_that_is_served_is_shown(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: dict[str, str],
    shown: dict[str, str],
) -> None:
    monkeypatch.setattr(Server, "answer", (status, json.dumps(body).encode()))
    machine.unit("mlops-serving.service")
    networks = {"mlops": {"IPAddress": "127.0.0.1"}}
    machine.containers = [container("mlflow", networks=networks), container("serving", networks=networks)]
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        monkeypatch.setattr(appliance_status, "MODEL_PORT", server.server_port)
        Thread(target=server.handle_request, daemon=True).start()
        assert machine.look()["models"] == [{"server": "serving", **shown}]


def test_what_the_last_check_for_known_holes_found_is_a_line(machine: Machine) -> None:
    machine.unit("mlops-mlflow.service")
    machine.containers = [container("mlflow")]
    status = machine.root / "var/lib/mlops/components/status"
    status.parent.mkdir(parents=True)
    status.write_text("Known holes in 3 images, checked: never.\n")
    assert machine.look()["lines"][-1] == "Known holes in 3 images, checked: never."


class TestTrainingSchedule:
    TIMER = "mlops-training.timer"

    @pytest.fixture
    def scheduled(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
        monkeypatch.setattr(appliance_status.time, "time", lambda: 1795450896.0)
        machine.unit(self.TIMER)
        return machine

    @staticmethod
    def leave(machine: Machine, **metrics: float) -> None:
        file = machine.root / "var/lib/mlops/metrics/mlops_training_schedule.prom"
        file.parent.mkdir(parents=True)
        file.write_text("".join(f"mlops_training_schedule_{name} {value}\n" for name, value in metrics.items()))

    def test_before_its_first_run_it_says_when_that_is_due(self, scheduled: Machine) -> None:
        self.leave(scheduled, due_timestamp_seconds=1795460000)
        line = scheduled.look()["lines"][-1]
        assert line.startswith("Training is due 2026-11-23 ")
        assert line.endswith("; the schedule has had no run yet.")

    @pytest.mark.parametrize(("success", "how"), [(1, "ended well"), (0, "failed")])
    def test_result_and_age_of_its_last_run_are_said(self, scheduled: Machine, success: int, how: str) -> None:
        ended = 1795450896 - 26 * 3600 - 300
        self.leave(
            scheduled,
            due_timestamp_seconds=float("inf"),
            last_run_timestamp_seconds=ended,
            last_run_success=success,
        )
        line = scheduled.look()["lines"][-1]
        assert line.startswith(f"Training is due never again; the schedule's last run {how} 2026-11-2")
        assert line.endswith(", 1 day, 2:05 hours ago.")

    def test_one_that_was_stopped_on_purpose_is_not_due(self, scheduled: Machine) -> None:
        scheduled.unit(self.TIMER, "inactive", "disabled")
        self.leave(scheduled, due_timestamp_seconds=1795460000)
        assert not any("Training" in line for line in scheduled.look()["lines"])


@pytest.mark.parametrize("name", ["mlops-mlflow:3d6c", "registry.example:5000/team/mlflow@sha256:3d6c"])
def test_an_image_is_shown_by_its_name_without_tag_or_digest(machine: Machine, name: str) -> None:
    machine.unit("mlops-mlflow.service")
    document = container("mlflow")
    document["Config"]["Image"] = name
    machine.containers = [document]
    assert machine.look()["units"][0]["image"] == name.removesuffix(":3d6c").removesuffix("@sha256")


def test_lines_are_columns_under_their_names(machine: Machine) -> None:
    head, row = machine.look()["lines"][:2]
    assert head.startswith("unit ")
    assert row.index("active") == head.index("state")
    assert row.index("127.0.0.1:5000") == head.index("port")
