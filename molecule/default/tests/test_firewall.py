"""Whoever shares the segment reaches what is published and nothing behind it; a container does not reach its host."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from conftest import SERVICES, PlaybookRun, containers, healthy_services, wait_until
from reachability import Target, target_of
from testinfra.host import Host

UNIT = "mlops-firewall.service"
RULES = "/etc/mlops/firewall/firewall.nft"
# Tries each address:port of its arguments, and prints whether it opens.
KNOCK = """
import json, socket, sys
answers = {}
for place in sys.argv[1:]:
    address, port = place.split(":")
    try:
        socket.create_connection((address, int(port)), 2).close()
        answers[place] = True
    except OSError:
        answers[place] = False
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def target(settings: dict[str, Any]) -> Target:
    return target_of(settings["local_host_name"])


def places_behind(host: Host) -> list[str]:
    """Where services listen in the container network."""
    ports = {"mlflow": 5000, "serving": 8000, "prometheus": 9090, "grafana": 3000}
    documents = containers(host)
    return [
        f"{documents[name]['NetworkSettings']['Networks']['mlops']['IPAddress']}:{port}" for name, port in ports.items()
    ]


def a_neighbour_finds(target: Target, places: list[str]) -> dict[str, bool]:
    """What opens to a machine of the same segment that sends packets for the container network to the target."""
    routes = " && ".join(f"ip route add {place.split(':')[0]} via {target.address}" for place in places)
    run = ["docker", "run", "--rm", "--interactive", "--cap-add=NET_ADMIN", "--entrypoint=sh", target.image]
    knock = f"{routes} && exec python3 - {' '.join(places)} {target.address}:22"
    result = subprocess.run([*run, "-c", knock], input=KNOCK, check=True, capture_output=True, text=True)
    answers: dict[str, bool] = json.loads(result.stdout)
    assert answers.pop(f"{target.address}:22"), "the host itself answers"
    return answers


def a_container_finds(host: Host, places: list[str]) -> dict[str, bool]:
    """What opens to a program in the container of MLflow."""
    command = f"docker exec --interactive mlops-mlflow python - {' '.join(places)} <<'END'\n{KNOCK}\nEND"
    answers: dict[str, bool] = json.loads(host.check_output(command))
    return answers


def gateways(host: Host, target: Target) -> list[str]:
    """The host as a container can address it: its SSH on every address."""
    gateway = host.check_output("docker network inspect mlops --format '{{(index .IPAM.Config 0).Gateway}}'")
    return [f"{gateway}:22", f"{target.address}:22"]


def test_a_neighbour_that_sets_a_route_reaches_no_container(host: Host, target: Target) -> None:
    assert not any(a_neighbour_finds(target, places_behind(host)).values())


@pytest.mark.usefixtures("without_firewall")
def test_without_the_firewall_that_neighbour_would_be_in(host: Host, target: Target) -> None:
    assert any(a_neighbour_finds(target, places_behind(host)).values()), "the attack works, so the test above can fail"


def test_a_container_does_not_reach_the_host(host: Host, target: Target) -> None:
    assert not any(a_container_finds(host, gateways(host, target)).values())


@pytest.mark.usefixtures("without_firewall")
def test_without_the_firewall_a_container_would_reach_it(host: Host, target: Target) -> None:
    assert all(a_container_finds(host, gateways(host, target)).values())


def test_it_is_back_after_nftables_and_docker_were_restarted(host: Host) -> None:
    def is_there() -> bool:
        tables = host.run("nft list chain inet mlops from_outside && nft list chain bridge mlops between_containers")
        return bool(host.service(UNIT).is_running and tables.rc == 0)

    try:
        # Each flushes every table, Docker's too: Docker makes its own anew when it starts.
        for command in ("restart nftables", "reload nftables"):
            host.check_output(f"systemctl {command}")
            # systemctl waits for the unit that it names.
            wait_until(is_there, 30, f"the firewall is back after systemctl {command}")
    finally:
        host.check_output("systemctl restart docker")
    assert is_there()
    wait_until(lambda: all(host.service(f"mlops-{name}").is_running for name in SERVICES), 180, "every service is back")


def test_without_it_no_service_starts_until_the_next_run_has_mended_it(
    host: Host, site: Callable[..., PlaybookRun]
) -> None:
    host.check_output(f"echo nonsense >>{RULES} && systemctl stop {UNIT}")
    assert host.run("systemctl restart mlops-node_exporter").rc != 0
    assert "node_exporter" not in containers(host)
    assert site("--tags", "dev").changed > 0
    assert host.service(UNIT).is_running
    assert "node_exporter" in healthy_services(host)
