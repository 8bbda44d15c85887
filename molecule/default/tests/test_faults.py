"""What breaks comes back by itself."""

from __future__ import annotations

import os
import subprocess

import pytest
from conftest import SERVICES, container_ids, containers, healthy_services, is_healthy_again, wait_until
from testinfra.host import Host

ALL = set(SERVICES)
TARGET = os.environ.get("MLOPS_TEST_TARGET", "mlops-molecule")


def answers(host: Host) -> bool:
    """Whether the host can be reached over SSH."""
    try:
        return bool(host.run("true").rc == 0)
    except RuntimeError:
        return False


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_main_process_is_healthy_again(host: Host, service: str) -> None:
    before = container_ids(host)[service]
    host.check_output(f"kill -9 {containers(host)[service]['State']['Pid']}")
    seconds = wait_until(
        lambda: is_healthy_again(host, service, before),
        # 15 s on an idle machine, by `make bench-provision`; a test must also pass on a busy one.
        60,
        f"{service} is healthy",
    )
    print(f"{service} was healthy again after {seconds:.1f} s")


def test_a_hung_service_is_restarted(host: Host) -> None:
    before = container_ids(host)["nginx"]
    # Stopped, not dead: only the health check can tell.
    host.check_output("for pid in $(docker top mlops-nginx -eo pid | tail -n +2); do kill -STOP $pid; done")
    seconds = wait_until(lambda: is_healthy_again(host, "nginx", before), 120, "nginx was restarted")
    print(f"nginx was healthy again after {seconds:.1f} s")


def test_all_comes_back_when_the_engine_restarts(host: Host) -> None:
    before = container_ids(host)
    host.check_output("systemctl restart docker")
    wait_until(lambda: healthy_services(host) == ALL, 90, "every unit is healthy")
    after = container_ids(host)
    assert all(after[service] != before[service] for service in SERVICES)


def test_all_comes_back_when_the_engine_crashes(host: Host) -> None:
    host.check_output("kill -9 $(systemctl show docker --property=MainPID --value)")
    wait_until(lambda: healthy_services(host) == ALL, 120, "every unit is healthy")


def test_all_comes_back_after_a_reboot(host: Host) -> None:
    boot = host.check_output("systemctl show --property=UserspaceTimestampMonotonic --value")
    subprocess.run(["docker", "restart", TARGET], check=True, stdout=subprocess.DEVNULL, timeout=180)
    wait_until(lambda: answers(host), 60, "the host answers over SSH")
    assert host.check_output("systemctl show --property=UserspaceTimestampMonotonic --value") != boot
    wait_until(lambda: healthy_services(host) == ALL, 120, "every unit is healthy")
    assert host.check_output("systemctl --failed --no-legend") == ""
