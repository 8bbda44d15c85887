"""The commands of day-to-day operation: status, restart, down, logs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
import requests
from conftest import ROOT, PlaybookRun, container_ids, healthy_services, run_playbook, wait_until
from testinfra.host import Host


def test_status_is_one_table_of_every_unit_and_the_model(host: Host) -> None:
    result = run_playbook("playbooks/status.yml")
    assert result.status == 0, result.output
    for service in healthy_services(host):
        (row,) = (line for line in result.output.splitlines() if f"mlops-{service}.service " in line)
        assert row.split()[1:3] == ["active", "healthy"]
        assert "MiB" in row
    assert "mlops-backup.timer" in result.output
    assert "server" in result.output


def test_status_fails_when_something_that_should_be_up_is_not(host: Host) -> None:
    host.check_output("systemctl stop mlops-nginx")
    try:
        result = run_playbook("playbooks/status.yml")
    finally:
        host.check_output("systemctl start mlops-nginx")
    assert result.status != 0
    assert "mlops-nginx.service is inactive: it should be active" in result.output


def test_restart_is_of_one_service_and_returns_when_it_is_healthy(host: Host) -> None:
    before = container_ids(host)
    result = run_playbook("playbooks/restart.yml", "--extra-vars", "service=nginx")
    assert result.status == 0, result.output
    after = container_ids(host)
    assert {name for name in before if before[name] != after.get(name)} == {"nginx"}
    assert "nginx" in healthy_services(host)


@pytest.mark.parametrize(("name", "service"), [("serve", "serving"), ("node-exporter", "node_exporter")])
def test_the_names_of_the_compose_system_lead_to_ours(host: Host, name: str, service: str) -> None:
    before = container_ids(host)
    result = run_playbook("playbooks/restart.yml", "--extra-vars", f"service={name}")
    assert result.status == 0, result.output
    after = container_ids(host)
    assert {one for one in before if before[one] != after.get(one)} == {service}
    result = run_playbook("playbooks/logs.yml", "--extra-vars", f"service={name} follow=false")
    assert result.status == 0, result.output
    shown = subprocess.run([ROOT / ".local" / "logs"], capture_output=True, text=True, check=True).stdout
    assert f"mlops-{service}" in shown


def test_the_logs_of_train_are_those_of_training_runs() -> None:
    for name in ("train", "training"):
        result = run_playbook("playbooks/logs.yml", "--extra-vars", f"service={name} follow=false")
        assert result.status == 0, result.output
        assert "CONTAINER_NAME=mlops-training" in (ROOT / ".local" / "logs").read_text()


def test_a_service_that_is_not_there_is_refused_with_those_that_are() -> None:
    for playbook in ("restart", "logs"):
        result = run_playbook(f"playbooks/{playbook}.yml", "--extra-vars", "service=ngnix")
        assert result.status != 0
        assert "There is no service ngnix on this host; there are:" in result.output
        assert "mlops-nginx.service" in result.output


def test_logs_are_the_journal_of_the_service_and_follow_it(api_url: str) -> None:
    result = run_playbook("playbooks/logs.yml", "--extra-vars", "service=nginx")
    assert result.status == 0, result.output
    with subprocess.Popen([ROOT / ".local" / "logs"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as follower:
        try:
            requests.get(f"{api_url}/followed", timeout=10)
            assert follower.stdout is not None
            lines: list[str] = []
            while '"/followed"' not in "".join(lines[-1:]):
                line = follower.stdout.readline().decode()
                assert line, "the journal ended"
                assert "mlops-nginx" in line
                lines.append(line)
        finally:
            follower.terminate()


def test_down_stops_all_over_a_reboot_and_keeps_all_data_and_a_profile_brings_its_services_back(
    host: Host, site: Callable[..., PlaybookRun]
) -> None:
    running = healthy_services(host)
    # One without a name goes with its container.
    named = "docker volume ls --quiet --filter name=mlops_"
    volumes = host.check_output(named)
    result = run_playbook("playbooks/down.yml")
    assert result.status == 0, result.output
    assert host.check_output("docker ps --all --quiet --filter label=mlops.unit") == ""
    assert host.check_output(named) == volumes
    units = json.loads(host.check_output("systemctl list-units 'mlops*' --state=active --output=json"))
    assert units == []
    # Its exit status is 1 for an empty list.
    assert host.run("systemctl list-unit-files 'mlops*' --state=enabled --no-legend").stdout == ""

    status = run_playbook("playbooks/status.yml")
    assert status.status == 0, "nothing should be up, so nothing is wrong"
    assert "Everything was stopped on purpose" in status.output
    assert run_playbook("playbooks/down.yml").changed == 0

    site()
    wait_until(lambda: healthy_services(host) == running, 30, "every service is back")


def in_a_terminal(program: Path, typed: str) -> str:
    """What a program shows on a terminal on which this is typed, to its end."""
    ours, its = pty.openpty()
    with subprocess.Popen([program], stdin=its, stdout=its, stderr=its, start_new_session=True) as running:
        os.close(its)
        os.write(ours, typed.encode())
        shown = b""
        # Reading fails when the program has closed its side.
        with suppress(OSError):
            while part := os.read(ours, 4096):
                shown += part
        assert running.wait(60) == 0, shown
    return shown.decode()


def test_a_shell_for_training_is_a_terminal_in_the_container_of_a_run() -> None:
    result = run_playbook("playbooks/shell_train.yml", "--tags", "train")
    assert result.status == 0, result.output
    commands = "tty; id --user; echo $EXPERIMENT_NAME; curl --silent mlflow:5000/version; touch /x; exit 0"
    shown = in_a_terminal(ROOT / ".local" / "shell-train", f"{commands}\n")
    for wanted in ("/dev/pts/0", "10011", "code-search", mlflow.__version__, "Read-only file system"):
        assert wanted in shown.partition("exit 0")[2], wanted
